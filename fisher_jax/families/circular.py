"""A family of angles."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from fisher_jax.families.common import Family, Nested, Params, Scalar, floats, open_uniform, outside_support, symmetric
from fisher_jax.families.starts import Sample, starting_values
from fisher_jax.models.constraints import positive
from fisher_jax.numerics.inversion import invert
from fisher_jax.numerics.stable_functions import bessel_ratio, log_i0e


def von_mises_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Von Mises: an angle y in radians, with a density over any one turn.

    log p(y) = κ cos(y − loc) − log(2π I₀(κ)).

    - `loc`: real, the mean direction in radians; known up to whole turns.
    - `concentration` κ: positive; 0 is the uniform distribution, and 1/κ the variance where κ is large.

    Mean loc, the mean direction.
    Distribution function: that of the angle between −π and π, as it is drawn; zero below, one from π on.
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


# P(Y ≤ y) on the turn from −π to π is an integral of e^{κ (cos t − 1)} from −π − loc to y − loc, which passes the mode at 0 and the
# antipodes at ±π. Each monotone piece is an integral from its highest point down, as far as e^{−40} of its height.
_NODES, _WEIGHTS = (0.5 * part for part in np.polynomial.legendre.leggauss(32))
_FALL = 40.0


def _pieces(low: Array, high: Array) -> tuple[Array, Array]:
    """The distances from the mode at which the monotone pieces between two angles in [−2π, 2π] begin and end."""
    pi = math.pi
    begin = (2.0 * pi + low, -jnp.minimum(high, 0.0), jnp.maximum(low, 0.0), 2.0 * pi - high)
    end = (
        jnp.minimum(high + 2.0 * pi, pi),
        -jnp.maximum(low, -pi),
        jnp.minimum(high, pi),
        2.0 * pi - jnp.maximum(low, pi),
    )
    first, last = (jnp.clip(jnp.stack(part), 0.0, pi) for part in (begin, end))
    return first, jnp.maximum(first, last)


def _term(k: int, t: Array, kappa: Array, log_unit: Array) -> Array:
    below = -2.0 * jnp.sin(0.5 * t) ** 2  # cos t − 1
    return below**k * jnp.exp(kappa * below - log_unit)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _arc(k: int, low: Array, high: Array, kappa: Array, log_unit: Array) -> Array:
    """∫ (cos t − 1)ᵏ e^{κ (cos t − 1)} dt between two angles, divided by a constant; a sum of terms of one sign."""
    first, last = _pieces(low, high)
    reach = jnp.sin(0.5 * first) ** 2 + 0.5 * _FALL / jnp.maximum(kappa, 1e-3)
    last = jnp.minimum(last, 2.0 * jnp.arcsin(jnp.sqrt(jnp.minimum(reach, 1.0))))
    width = jnp.maximum(last - first, 0.0)
    nodes = first[:, None] + width[:, None] * jnp.asarray(_NODES + 0.5, first.dtype)[None, :]
    weights = jnp.asarray(_WEIGHTS, first.dtype)[None, :]
    return jnp.sum(width * jnp.sum(weights * _term(k, nodes, kappa, log_unit), axis=1))


@_arc.defjvp
def _arc_along(k: int, primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    low, high, kappa, log_unit = primals
    at_ends = _term(k, high, kappa, log_unit) * tangents[1] - _term(k, low, kappa, log_unit) * tangents[0]
    return _arc(k, *primals), at_ends + _arc(k + 1, *primals) * tangents[2]


def _log_arc(y: Array, loc: Array, kappa: Array) -> Array:
    """log P(Y ≤ y) for y between −π and π, right where it is small."""
    loc = loc - 2.0 * math.pi * jnp.round(loc / (2.0 * math.pi))
    low, high = -math.pi - loc, y - loc
    first, last = _pieces(low, high)
    # The height of the highest point: what is summed neither overflows nor underflows.
    nearest = jnp.min(jnp.where(last > first, first, math.pi))
    log_unit = jax.lax.stop_gradient(-2.0 * kappa * jnp.sin(0.5 * nearest) ** 2)
    return jnp.log(_arc(0, low, high, kappa, log_unit)) + log_unit - math.log(2.0 * math.pi) - log_i0e(kappa)


def _von_mises(y: Array, loc: Array, kappa: Array) -> Scalar:
    before, after = y <= -math.pi, y >= math.pi
    y = jnp.where(before | after, 0.0, y)
    lower, upper = _log_arc(y, loc, kappa), _log_arc(-y, -loc, kappa)
    small = lower < upper
    value = jnp.where(small, lower, jnp.log1p(-jnp.exp(jnp.where(small, -1.0, upper))))
    return outside_support(before, jnp.where(after, 0.0, value))


def von_mises_log_cdf(params: Params, y: ArrayLike) -> Scalar:
    return _von_mises(*floats(y, params["loc"], params["concentration"]))


def von_mises_log_survival(params: Params, y: ArrayLike) -> Scalar:
    y, loc, kappa = floats(y, params["loc"], params["concentration"])
    return _von_mises(-y, -loc, kappa)


def von_mises_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    return invert(von_mises_log_cdf, von_mises_log_survival, uniform, params, low=-math.pi, high=math.pi)


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
    quantile=von_mises_quantile,
    constraints={"concentration": positive},
    initial=von_mises_initial,
    information=von_mises_information,
    log_cdf=von_mises_log_cdf,
    log_survival=von_mises_log_survival,
    mean=von_mises_mean,
)
