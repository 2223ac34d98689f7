"""A family of angles."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from fisher_jax.families.common import Nested, Params, Scalar, floats, open_uniform, symmetric
from fisher_jax.families.special import bessel_ratio, log_i0e
from fisher_jax.models.constraints import positive
from fisher_jax.models.model import Model


def von_mises_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Log-density κ cos(y − loc) − log(2π I₀(κ)) of an angle y in radians, `concentration` κ > 0.

    A density over any one turn: it has period 2π in y and in `loc`, so that `loc` is known up to whole turns. Information
    diag(κ A(κ), A′(κ)) with A = I₁/I₀ and A′ = 1 − A/κ − A²; verified by quadrature in the tests.
    """
    y, loc, kappa = floats(y, params["loc"], params["concentration"])
    return -2.0 * kappa * jnp.sin(0.5 * (y - loc)) ** 2 - math.log(2.0 * math.pi) - log_i0e(kappa)


def von_mises_sample(key: Array, params: Params) -> Scalar:
    """An angle in [−π, π) by the rejection of Best, D. J. and Fisher, N. I. (1979), Appl. Statist. 28, 152-157.

    Their r − 1 and 1 − f are computed directly, so that nothing cancels at large or small concentration.
    """
    loc, kappa = floats(params["loc"], params["concentration"])
    root = jnp.hypot(1.0, 2.0 * kappa)
    tau = jnp.sqrt(1.0 + root)
    rho = 2.0 * kappa * tau / ((tau + math.sqrt(2.0)) * (1.0 + root))
    one_minus_rho = (math.sqrt(2.0) * tau - 1.0 - 1.0 / (2.0 * kappa + root)) / (2.0 * kappa)
    r_minus_one = jnp.where(kappa > 1.0, one_minus_rho, 1.0 - rho) ** 2 / (2.0 * rho)

    def propose(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        key, for_angle, for_test = jax.random.split(state[0], 3)
        half_turn = 0.5 * math.pi * open_uniform(for_angle, kappa.dtype)
        proposed = 2.0 * r_minus_one * jnp.sin(half_turn) ** 2 / (r_minus_one + 2.0 * jnp.cos(half_turn) ** 2)
        c = kappa * (r_minus_one + proposed)
        return key, proposed, jnp.log(c / open_uniform(for_test, kappa.dtype)) + 1.0 - c >= 0.0

    key, for_sign = jax.random.split(key)
    never = ~(
        (kappa > jnp.finfo(kappa.dtype).tiny) & jnp.isfinite(kappa)
    )  # the angle is NaN then; a loop would not end
    start = (key, jnp.full((), jnp.nan, kappa.dtype), never)
    one_minus_f = jax.lax.while_loop(lambda state: ~state[2], propose, start)[1]
    angle = 2.0 * jnp.arcsin(jnp.sqrt(jnp.minimum(0.5 * one_minus_f, 1.0)))
    angle = jnp.where(jax.random.bernoulli(for_sign), angle, -angle)
    return jnp.mod(loc + angle + math.pi, 2.0 * math.pi) - math.pi


def von_mises_information(params: Params) -> Nested:
    _, kappa = floats(params["loc"], params["concentration"])
    return symmetric(("loc", "concentration"), kappa * bessel_ratio(kappa), 0.0, jax.grad(jax.grad(log_i0e))(kappa))


von_mises = Model(
    von_mises_log_density,
    sample=von_mises_sample,
    constraints={"concentration": positive},
    information=von_mises_information,
)
