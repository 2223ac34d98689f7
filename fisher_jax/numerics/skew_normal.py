"""The distribution function of the skew normal, in both tails.

F(z; a) = 2 ∫_{−∞}^z φ(t) Φ(a t) dt is Φ(z) − 2 T(z, a) with Owen's function T. For z ≤ 0 (else 1 − F(−z; −a)) and h = −z it is

    F = (1/π) ∫_a^∞ exp(−½ h² (1 + x²)) / (1 + x²) dx,

whose integrand is positive; T is half of such an integral from 0 to |a|. With b = |a| h and M the Mills ratio:

- a < 0: Φ(−h) + 2 T(h, |a|), a sum;
- a > 0 and b ≥ 1.5: the integral itself, with x = (b + s) / h;
- a > 0 and b < 1.5: Φ(−h) − 2 T(h, a), in which few digits cancel.

Where |a| > 1, T(h, |a|) comes from T(b, 1/|a|) (Owen, D. B. 1956, Tables for computing bivariate normal probabilities, Ann. Math.
Statist. 27, 1075-1090), so that one Gauss-Legendre rule serves all, over an interval on which its integrand falls by e^{−40}.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fisher_jax.numerics.normal_tail import log_normal_cdf, mills_ratio

_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)
_NODES, _WEIGHTS = (0.5 * part for part in np.polynomial.legendre.leggauss(28))
_NODES = _NODES + 0.5
_FROM = 1.5
_FALL = 40.0


def _integral(linear: Array, quadratic: Array, center: Array, square: Array, length: Array) -> Array:
    """∫ exp(−linear x − quadratic x²) / ((x + center)² + square) dx over 0 to length."""
    x = length * jnp.asarray(_NODES, length.dtype)
    terms = jnp.exp(-x * (linear + quadratic * x)) / ((x + center) ** 2 + square)
    return length * jnp.sum(jnp.asarray(_WEIGHTS, length.dtype) * terms)


def _log_tail(h: Array, a: Array) -> Array:
    """log F(−h; a) for h ≥ 0."""
    size = jnp.abs(a)
    b = jnp.minimum(size * h, float(jnp.finfo(h.dtype).max) ** 0.25)
    steep, direct = size > 1.0, (a > 0) & (size * h >= _FROM)
    p, q = jnp.where(steep, b, h), jnp.where(steep, 1.0 / jnp.where(steep, size, 1.0), size)
    reach = math.sqrt(2.0 * _FALL) / jnp.maximum(p, 1e-3)
    value = _integral(
        jnp.where(direct, b, 0.0),
        jnp.where(direct, 0.5, 0.5 * p * p),
        jnp.where(direct, b, 0.0),
        jnp.where(direct, h * h, 1.0),
        jnp.where(direct, 2.0 * _FALL / (b + jnp.sqrt(b * b + 2.0 * _FALL)), jnp.minimum(q, reach)),
    )
    of_h, of_b = mills_ratio(h), mills_ratio(b)
    density_h = jnp.exp(-0.5 * h * h - _HALF_LOG_TWO_PI)
    ratio = jnp.exp(jnp.where(steep, 0.5 * (h - b) * (h + b), 0.0))  # φ(b) / φ(h), at most one
    owen = math.sqrt(2.0 / math.pi) * value  # 2 T(p, q) / φ(p)
    # Each of these is F / φ(h).
    gentle_below, gentle_above = of_h + owen, of_h - owen
    cdf_b = 1.0 - of_b * jnp.exp(-0.5 * b * b - _HALF_LOG_TWO_PI)
    steep_below = 2.0 * of_h * cdf_b + ratio * (of_b - owen)
    steep_above = ratio * (owen - of_b * (1.0 - 2.0 * of_h * density_h))
    by_sum = jnp.where(a < 0, jnp.where(steep, steep_below, gentle_below), jnp.where(steep, steep_above, gentle_above))
    bracket = jnp.where(direct, owen * h, by_sum)
    return jnp.log(bracket) - jnp.where(direct, 0.5 * b * b, 0.0) - 0.5 * h * h - _HALF_LOG_TWO_PI


@jax.custom_jvp
def log_skew_normal_cdf(z: Array, shape: Array) -> Array:
    """log F(z; shape), to a few rounding errors of F in the lower tail and of 1 − F in the upper one; see the module."""
    lower, endless = z <= 0, jnp.isinf(z)
    tail = _log_tail(jnp.where(endless, 1.0, jnp.abs(z)), jnp.where(lower, shape, -shape))
    tail = jnp.where(endless, -jnp.inf, tail)
    return jnp.where(lower, tail, jnp.log1p(-jnp.exp(jnp.where(lower, -1.0, tail))))


@log_skew_normal_cdf.defjvp
def _log_skew_normal_cdf_along(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    z, shape = primals
    value = log_skew_normal_cdf(z, shape)
    log_density = math.log(2.0) - _HALF_LOG_TWO_PI - 0.5 * z * z + log_normal_cdf(shape * z)
    # ∂F/∂shape is the integrand of the second formula at its lower end.
    log_slope = -0.5 * z * z * (1.0 + shape * shape) - math.log(math.pi) - jnp.log1p(shape * shape)
    return value, jnp.exp(log_density - value) * tangents[0] - jnp.exp(log_slope - value) * tangents[1]
