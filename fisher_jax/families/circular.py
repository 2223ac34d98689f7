"""A family of angles."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from fisher_jax.families.common import Family, Nested, Params, Scalar, floats, open_uniform, symmetric
from fisher_jax.families.stable_functions import bessel_ratio, log_i0e
from fisher_jax.families.starts import Sample, starting_values
from fisher_jax.models.constraints import positive


def von_mises_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Von Mises: an angle y in radians, with a density over any one turn.

    log p(y) = κ cos(y − loc) − log(2π I₀(κ)).

    - `loc`: real, the mean direction in radians; known up to whole turns.
    - `concentration` κ: positive; 0 is the uniform distribution, and 1/κ the variance where κ is large.

    Mean loc, the mean direction.
    Information diag(κ A(κ), A′(κ)) with A = I₁/I₀ and A′ = 1 − A/κ − A²; verified by quadrature in the tests.
    In scipy: `scipy.stats.vonmises(kappa=concentration, loc=loc)`.
    Start: the mean direction, and κ by the approximation of Banerjee et al. (2005), J. Mach. Learn. Res. 6, eq. (4.4).
    """
    y, loc, kappa = floats(y, params["loc"], params["concentration"])
    # κ (cos(y − loc) − 1) − log(2π I₀(κ) e^{−κ}): κ cos(y − loc) and log I₀(κ) cancel where κ is large
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
    # For such a concentration the angle is NaN; the loop would not end.
    never = ~((kappa > jnp.finfo(kappa.dtype).tiny) & jnp.isfinite(kappa))
    start = (key, jnp.full((), jnp.nan, kappa.dtype), never)
    one_minus_f = jax.lax.while_loop(lambda state: ~state[2], propose, start)[1]
    angle = 2.0 * jnp.arcsin(jnp.sqrt(jnp.minimum(0.5 * one_minus_f, 1.0)))
    angle = jnp.where(jax.random.bernoulli(for_sign), angle, -angle)
    return jnp.mod(loc + angle + math.pi, 2.0 * math.pi) - math.pi


def von_mises_information(params: Params) -> Nested:
    _, kappa = floats(params["loc"], params["concentration"])
    return symmetric(("loc", "concentration"), kappa * bessel_ratio(kappa), 0.0, jax.grad(jax.grad(log_i0e))(kappa))


def von_mises_mean(params: Params) -> Scalar:
    return floats(params["loc"])[0]


@starting_values
def von_mises_initial(y: ArrayLike) -> dict[str, Any]:
    s = Sample(y)
    loc = s.xp.arctan2(s.mean(s.xp.sin(s.y)), s.mean(s.xp.cos(s.y)))
    # 1 − R, R the length of the mean vector, in a form that does not cancel where all angles are close together
    rest = s.mean(2.0 * s.xp.sin(0.5 * (s.y - loc)) ** 2)
    rest = s.xp.where(rest > s.eps, rest, 0.5)
    length = s.xp.clip(1.0 - rest, 0.0, 1.0)
    kappa = length * (2.0 - length**2) / (rest * (1.0 + length))
    return s.params(loc=loc, concentration=s.xp.maximum(kappa, 0.01))


von_mises = Family(
    von_mises_log_density,
    ("loc", "concentration"),
    sample=von_mises_sample,
    constraints={"concentration": positive},
    initial=von_mises_initial,
    information=von_mises_information,
    mean=von_mises_mean,
)
