"""The normal distribution function in both tails, in elementary operations that a row program can take apart.

With the Mills ratio M(t) = (1 − Φ(t)) / φ(t) and g(t) = 1 − t M(t), which is −M′(t): log Φ(x) = log M(−x) + log φ(x) for x < 0,
its slope is λ = φ/Φ = 1 / M(−x), and the slope of that is −λ (x + λ) with x + λ = g(−x) / M(−x). `jax.scipy.special.log_ndtr` has
these as exp(log φ − log Φ) and by differences, whose errors grow like x² and x⁴; here no digit is lost, since Cody's approximations
of erfc give M and g without cancellation.

Each function is traced once for a shape (`jax.jit`), however often a density and its derivatives call it: tracing them anew took
half of the time of a first fit of interval-censored observations.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

from fisher_jax.numerics import special

_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)
_ROOT_TWO = math.sqrt(2.0)
_ROOT_HALF_PI = math.sqrt(0.5 * math.pi)
NEAR = 0.5 * _ROOT_TWO  # within this distance of zero Φ is computed from erf
_FURTHEST = {
    8: 1e150,
    4: 1e18,
}  # bytes of the dtype: where squares do not overflow; beyond, Φ is zero or one to all digits


def _limited(x: Array) -> Array:
    far = _FURTHEST.get(x.dtype.itemsize, 100.0)
    return jnp.clip(x, -far, far)


def _tail(t: Array) -> tuple[Array, Array]:
    """M(t) and g(t) for t ≥ 0.66; for smaller t those at 0.66."""
    a = jnp.maximum(t, 0.46875 * _ROOT_TWO) / _ROOT_TWO
    middle, c = jnp.minimum(a, 4.0), jnp.maximum(a, 4.0)
    i = 1.0 / (c * c)
    far = a > 4.0
    # erfc(a) e^{a²} is `quotient` in the middle, and (1/√π − quotient) / a beyond.
    above = jnp.where(far, i * special.horner(special.ERFC_FAR, i), special.horner(special.ERFC_MIDDLE, middle))
    under = jnp.where(far, special.horner(special.ERFC_FAR_UNDER, i), special.horner(special.ERFC_MIDDLE_UNDER, middle))
    quotient = above / under
    rest = math.sqrt(math.pi) * quotient
    mills = jnp.where(far, (1.0 / math.sqrt(math.pi) - quotient) / c, quotient) * _ROOT_HALF_PI
    return mills, jnp.where(far, rest, 1.0 - _ROOT_TWO * middle * mills)


def _near(x: Array) -> Array:
    """2Φ(x) − 1 for |x| ≤ NEAR; for others that at zero."""
    a = jnp.where(jnp.abs(x) > NEAR, 0.0, x) / _ROOT_TWO
    return a * special.horner(special.ERF_NEAR, a * a) / special.horner(special.ERF_NEAR_UNDER, a * a)


def _density(x: Array) -> Array:
    return jnp.exp(-0.5 * x * x - _HALF_LOG_TWO_PI)


# The Mills ratio ------------------------------------------------------------------------------------------------------


@jax.custom_jvp
@jax.jit
def mills_ratio(t: Array) -> Array:
    """(1 − Φ(t)) / φ(t), for t ≥ −0.7."""
    inside = 0.5 * (1.0 - _near(t)) / _density(jnp.clip(t, -NEAR, NEAR))
    return jnp.where(t > NEAR, _tail(_limited(t))[0], inside)


@jax.custom_jvp
@jax.jit
def mills_slope(t: Array) -> Array:
    """1 − t (1 − Φ(t)) / φ(t), for t ≥ −0.7: minus the slope of the Mills ratio."""
    inside = jnp.clip(t, -NEAR, NEAR)
    return jnp.where(t > NEAR, _tail(_limited(t))[1], 1.0 - inside * mills_ratio(inside))


@mills_ratio.defjvp
def _mills_ratio_along(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (t,) = primals
    return mills_ratio(t), -mills_slope(t) * tangents[0]


@mills_slope.defjvp
def _mills_slope_along(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (t,) = primals
    return mills_slope(t), (t * mills_slope(t) - mills_ratio(t)) * tangents[0]


# The distribution function --------------------------------------------------------------------------------------------


@jax.custom_jvp
@jax.jit
def log_normal_cdf(x: Array) -> Array:
    """log Φ(x), to a few rounding errors of Φ in the lower tail and of 1 − Φ in the upper one."""
    mills, _ = _tail(jnp.abs(_limited(x)))
    lower, upper = x < -NEAR, x > NEAR
    density = _density(x)
    # One logarithm for each of the two ends: of M with log φ beside it, of 1 less a tail.
    log_lower = jnp.log(jnp.where(lower, mills, 1.0)) - 0.5 * x * x - _HALF_LOG_TWO_PI
    less = jnp.where(upper, mills * density, 0.5 - 0.5 * _near(x))
    return jnp.where(lower, log_lower, jnp.log1p(-jnp.where(lower, 0.0, less)))


@jax.custom_jvp
@jax.jit
def normal_hazard(x: Array) -> Array:
    """φ(x) / Φ(x), the slope of log Φ: the hazard rate of a normal variable at −x."""
    mills, _ = _tail(jnp.abs(_limited(x)))
    density = _density(x)
    cdf = jnp.where(x > NEAR, 1.0 - mills * density, 0.5 + 0.5 * _near(x))
    return jnp.where(x < -NEAR, 1.0 / mills, density / cdf)


@jax.custom_jvp
@jax.jit
def _excess(x: Array) -> Array:
    """x + φ(x) / Φ(x)."""
    mills, slope = _tail(jnp.abs(_limited(x)))
    return jnp.where(x < -NEAR, slope / mills, x + normal_hazard(x))


@log_normal_cdf.defjvp
def _log_normal_cdf_along(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,) = primals
    return log_normal_cdf(x), normal_hazard(x) * tangents[0]


@normal_hazard.defjvp
def _normal_hazard_along(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,) = primals
    return normal_hazard(x), -normal_hazard(x) * _excess(x) * tangents[0]


@_excess.defjvp
def _excess_along(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,) = primals
    return _excess(x), (1.0 - normal_hazard(x) * _excess(x)) * tangents[0]
