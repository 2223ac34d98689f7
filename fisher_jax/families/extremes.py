"""Families of extreme values: maxima over blocks, and excesses over a threshold.

A shape ξ > 0 is a heavy upper tail, ξ < 0 a finite upper end, as in Coles, S. (2001), An Introduction to Statistical Modeling
of Extreme Values; scipy's `genextreme` has c = −ξ. Log-densities and information are smooth through ξ = 0.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma, gammaln
from jax.typing import ArrayLike
from jaxtyping import Array

from fisher_jax.families.common import (
    Family,
    Nested,
    OverSquare,
    Params,
    Scalar,
    before_support,
    dtype_of,
    floats,
    outside_support,
    symmetric,
)
from fisher_jax.families.location_scale import shifted, standardize
from fisher_jax.families.starts import Sample, not_negative, starting_values
from fisher_jax.models.constraints import positive
from fisher_jax.numerics.array_namespace import AnyArray
from fisher_jax.numerics.stable_functions import expm1_over, horner, log1p_over, log_inverse_cloglog, log_one_minus_exp

EULER = float(np.euler_gamma)
ONE_MINUS_EULER = 1.0 - EULER
GUMBEL_INFORMATION = (1.0, -ONE_MINUS_EULER, ONE_MINUS_EULER**2 + math.pi**2 / 6.0)

# Gumbel ---------------------------------------------------------------------------------------------------------------


def gumbel_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Gumbel: the largest of many values whose tail falls as an exponential does; y real.

    log p(y) = −z − e^{−z} − log scale, z = (y − loc) / scale.

    - `loc`: real, the mode.
    - `scale`: positive.

    Mean loc + γ scale.
    Information [[1, −(1 − γ)], [·, (1 − γ)² + π²/6]] / scale², γ Euler's constant; verified by quadrature in the tests.
    In scipy: `scipy.stats.gumbel_r(loc=loc, scale=scale)`; minima are `gumbel_l`, here −y.
    Start: moments.
    """
    z, scale = standardize(params, y)
    return -z - jnp.exp(-z) - jnp.log(scale)


def gumbel_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    return shifted(params, -jnp.log(-jnp.log(floats(uniform)[0])))


def gumbel_log_cdf(params: Params, y: ArrayLike) -> Scalar:
    return -jnp.exp(-standardize(params, y)[0])


def gumbel_log_survival(params: Params, y: ArrayLike) -> Scalar:
    return log_inverse_cloglog(-standardize(params, y)[0])


def gumbel_mean(params: Params) -> Scalar:
    return shifted(params, jnp.asarray(EULER, dtype_of(params)))


@starting_values
def gumbel_initial(y: ArrayLike) -> dict[str, Any]:
    s = Sample(y)
    mean, deviation = s.moments()
    scale = deviation * (math.sqrt(6.0) / math.pi)
    return s.params(loc=mean - EULER * scale, scale=s.positive(scale))


gumbel = Family(
    gumbel_log_density,
    ("loc", "scale"),
    quantile=gumbel_quantile,
    constraints={"scale": positive},
    initial=gumbel_initial,
    information=OverSquare(("loc", "scale"), GUMBEL_INFORMATION),
    log_cdf=gumbel_log_cdf,
    log_survival=gumbel_log_survival,
    mean=gumbel_mean,
)


# Generalised extreme value --------------------------------------------------------------------------------------------


def _reduced(z: Array, shape: Array) -> tuple[Array, Array]:
    """x = log(1 + ξz) / ξ, which is z at ξ = 0, and whether z lies outside the support 1 + ξz > 0."""
    outside = shape * z <= -1.0
    z = jnp.where(outside, 0.0, z)  # which is inside for every shape
    return z * log1p_over(shape * z), outside


def gev_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Generalised extreme value: the largest of many values; y real, with an end at loc − scale/shape.

    log p(y) = −(1 + ξ) x − e^{−x} − log scale, x = log(1 + ξz) / ξ, z = (y − loc) / scale, where 1 + ξz > 0.

    - `loc`: real, exceeded with probability 1 − 1/e.
    - `scale`: positive.
    - `shape` ξ: real. Positive: a heavy upper tail and a lower end (Fréchet). Zero: Gumbel. Negative: an upper end (Weibull). The
      sign is that of Coles (2001), the opposite of scipy's c.

    Mean loc + scale (Γ(1 − ξ) − 1) / ξ for ξ < 1, else infinite.
    Information finite for ξ > −½ (NaN elsewhere), that of Prescott, P. and Walden, A. T. (1980), Biometrika 67, 723-724, whose k is
    −ξ; verified by quadrature in the tests. The likelihood has no maximum for ξ < −1, and is unbounded there.
    In scipy: `scipy.stats.genextreme(c=-shape, loc=loc, scale=scale)`.
    Start: three quantiles, which determine the parameters in closed form.
    """
    z, scale = standardize(params, y)
    shape = jnp.asarray(params["shape"], z.dtype)
    x, outside = _reduced(z, shape)
    return outside_support(outside, -(1.0 + shape) * x - jnp.exp(-x) - jnp.log(scale))


def _gev_place(params: Params, y: ArrayLike) -> tuple[Array, Array, Array]:
    """x, and whether z lies below or above the support."""
    z, _ = standardize(params, y)
    shape = jnp.asarray(params["shape"], z.dtype)
    x, outside = _reduced(jnp.where(jnp.isinf(z), 0.0, z), shape)
    return x, (outside & (shape > 0)) | (z == -jnp.inf), (outside & (shape < 0)) | (z == jnp.inf)


def gev_log_cdf(params: Params, y: ArrayLike) -> Scalar:
    x, below, above = _gev_place(params, y)
    return outside_support(below, jnp.where(above, 0.0, -jnp.exp(-x)))


def gev_log_survival(params: Params, y: ArrayLike) -> Scalar:
    x, below, above = _gev_place(params, y)
    return outside_support(above, before_support(below, log_inverse_cloglog(-x)))


def gev_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    x, shape = floats(-jnp.log(-jnp.log(floats(uniform)[0])), params["shape"])
    return shifted(params, x * expm1_over(shape * x))


def _entries(p: Array, g: Array, q: Array, xi: Array) -> tuple[Array, ...]:
    """The information at scale one but for the powers of ξ that divide it, from p = (1 + ξ)² Γ(1 + 2ξ), g = Γ(2 + ξ), q."""
    one_minus_euler_xi = ONE_MINUS_EULER * xi
    return (
        p,
        g - p,
        p - q,
        1.0 - 2.0 * g + p,
        q + g - p - 1.0 - one_minus_euler_xi,
        (math.pi * xi) ** 2 / 6.0 + (1.0 + one_minus_euler_xi) ** 2 - 2.0 * q + p,
    )


_POWERS = (0, 1, 2, 2, 3, 4)
_SERIES_BELOW = 0.4


def _log_gamma_over(order: int) -> tuple[float, ...]:
    """Taylor coefficients of log Γ(2 + x) / x. Made on the host."""
    from scipy.special import zetac

    k = np.arange(2, order + 1)
    return (ONE_MINUS_EULER, *((-1.0) ** k * zetac(k) / k).tolist())


def _power_series(order: int) -> tuple[tuple[float, ...], ...]:
    """Taylor coefficients in ξ of the six entries times 1 + 2ξ, which takes away the nearest pole. Made on the host."""

    def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.convolve(a, b)[:order]

    def from_start(*coefficients: float) -> np.ndarray:
        return np.array([*coefficients, *[0.0] * (order - len(coefficients))])

    log_gamma = np.array([0.0, *_log_gamma_over(order - 1)])  # log Γ(2 + x)
    slope = log_gamma[1:] * np.arange(1, order)  # ψ(2 + x), one coefficient fewer

    def exponential(series: np.ndarray) -> np.ndarray:
        result = from_start(1.0)
        for n in range(1, order):
            result[n] = np.dot(np.arange(1, n + 1) * series[1 : n + 1], result[n - 1 :: -1]) / n
        return result

    gamma_one, gamma_two = exponential(log_gamma), exponential(log_gamma * 2.0 ** np.arange(order))
    pole = from_start(1.0, 2.0)
    p = product(from_start(1.0, 2.0, 1.0), gamma_two)  # times 1 + 2ξ
    g = product(pole, gamma_one)
    # q = Γ(2 + ξ) [ξ ψ(1 + ξ) + 1 + ξ], and ξ ψ(1 + ξ) = ξ ψ(2 + ξ) − ξ / (1 + ξ)
    bracket = np.array([0.0, *slope]) + from_start(1.0, 1.0) + np.array([0.0, *(-1.0) ** np.arange(1, order)])
    q = product(g, bracket)
    whole = product(pole, from_start(1.0, ONE_MINUS_EULER))
    square = product(pole, product(from_start(1.0, ONE_MINUS_EULER), from_start(1.0, ONE_MINUS_EULER)))
    square = square + product(pole, from_start(0.0, 0.0, math.pi**2 / 6.0))
    series = (p, g - p, p - q, pole - 2.0 * g + p, q + g - p - whole, square - 2.0 * q + p)
    return tuple(tuple(map(float, s[power:])) for s, power in zip(series, _POWERS, strict=True))


_COEFFICIENTS = _power_series(48)
_LOG_GAMMA_OVER = _log_gamma_over(47)


def gev_information(params: Params) -> Nested:
    scale, shape = floats(params["scale"], params["shape"])
    # The closed form divides by up to ξ⁴ and has no digit left near zero; the series of 48 terms is exact up to |ξ| = 0.4.
    near = jnp.abs(shape) < _SERIES_BELOW
    small, xi = jnp.where(near, shape, 0.0), jnp.where(near | (shape <= -0.5), 1.0, shape)
    g = jnp.exp(gammaln(2.0 + xi))
    p = (1.0 + xi) ** 2 * jnp.exp(gammaln(1.0 + 2.0 * xi))
    direct = _entries(p, g, g * (xi * digamma(1.0 + xi) + 1.0 + xi), xi)
    entries = [
        jnp.where(near, horner(coefficients, small) / (1.0 + 2.0 * small), value / xi**power)
        for coefficients, value, power in zip(_COEFFICIENTS, direct, _POWERS, strict=True)
    ]
    loc_loc, loc_scale, loc_shape, scale_scale, scale_shape, shape_shape = (
        jnp.where(shape > -0.5, entry, jnp.nan) for entry in entries
    )
    return symmetric(
        ("loc", "scale", "shape"),
        *(loc_loc / scale**2, loc_scale / scale**2, loc_shape / scale),
        *(scale_scale / scale**2, scale_shape / scale),
        shape_shape,
    )


def _growth(xp: Any, shape: AnyArray, x: AnyArray | float) -> AnyArray:
    """(e^{ξx} − 1) / ξ, the standard quantile at x; for starts, by numpy or jax.numpy."""
    zero = shape == 0
    nonzero = xp.where(zero, 1.0, shape)
    return xp.where(zero, x, xp.expm1(nonzero * x) / nonzero)


def _shape_of_ratio(s: Sample, upper: AnyArray, lower: AnyArray, step: float) -> AnyArray:
    """ξ from two neighbouring distances between quantiles that are `step` apart in x, whose ratio is e^{ξ step}.

    Zero where one of them vanishes. Clipped to between −0.45 and 2, so that a small sample does not start where the information is
    infinite (ξ ≤ −½) or the likelihood unbounded (ξ < −1).
    """
    distinct = (upper > s.eps * s.unit) & (lower > s.eps * s.unit)
    ratio = s.xp.where(distinct, upper, 1.0) / s.xp.where(distinct, lower, 1.0)
    return s.xp.clip(s.xp.log(ratio) / step, -0.45, 2.0)


def gev_mean(params: Params) -> Scalar:
    shape = floats(params["shape"])[0]
    finite = shape < 1.0
    xi = jnp.where(finite, shape, 0.0)
    # log Γ(1 − ξ) / ξ: near zero by the series of log Γ(2 − ξ), since a difference from zero would lose its digits
    near = jnp.abs(xi) < _SERIES_BELOW
    small, large = jnp.where(near, xi, 0.0), jnp.where(near, 0.5, xi)
    slope = jnp.where(near, log1p_over(-small) - horner(_LOG_GAMMA_OVER, -small), gammaln(1.0 - large) / large)
    return jnp.where(finite, shifted(params, slope * expm1_over(xi * slope)), jnp.inf)


@starting_values
def gev_initial(y: ArrayLike) -> dict[str, Any]:
    s = Sample(y)
    # x = −log(−log u) at equal distances of 1.4; the levels are 0.108, 0.578 and 0.873
    first, middle, last = -0.8, 0.6, 2.0
    low, median, high = s.quantiles(*(math.exp(-math.exp(-x)) for x in (first, middle, last)))
    shape = _shape_of_ratio(s, high - median, median - low, middle - first)
    scale = s.spread((high - low) / (_growth(s.xp, shape, last) - _growth(s.xp, shape, first)), s.moments()[1])
    loc = median - scale * _growth(s.xp, shape, middle)
    # Every observation must be inside the support that the start has: 1 + ξz ≥ 0.1.
    below, above = ((end - loc) / scale for end in s.extremes())
    shape = s.xp.clip(shape, -0.9 / s.positive(above), 0.9 / s.positive(-below))
    return s.params(loc=loc, scale=scale, shape=shape)


gev = Family(
    gev_log_density,
    ("loc", "scale", "shape"),
    quantile=gev_quantile,
    constraints={"scale": positive},
    initial=gev_initial,
    information=gev_information,
    log_cdf=gev_log_cdf,
    log_survival=gev_log_survival,
    mean=gev_mean,
)


# Generalised Pareto ---------------------------------------------------------------------------------------------------


def generalized_pareto_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Generalised Pareto: the excess y ≥ 0 over a high threshold; it has an end at −scale/shape where shape < 0.

    log p(y) = −(1 + ξ) x − log scale, x = log(1 + ξ y / scale) / ξ, where 1 + ξ y / scale > 0.

    - `scale`: positive.
    - `shape` ξ: real. Positive: a heavy tail. Zero: exponential. Negative: an upper end. The same sign as scipy's c.

    Mean scale / (1 − ξ) for ξ < 1, else infinite.
    Information, finite for ξ > −½ (NaN elsewhere):
    scale, scale 1 / (scale² (1 + 2ξ)); scale, shape 1 / (scale (1 + ξ)(1 + 2ξ)); shape, shape 2 / ((1 + ξ)(1 + 2ξ)).
    Derived; verified by quadrature in the tests.
    In scipy: `scipy.stats.genpareto(c=shape, scale=scale)`.
    Start: two quantiles, which determine the parameters in closed form (Pickands, J. 1975, Ann. Statist. 3, 119-131).
    """
    y, scale, shape = floats(y, params["scale"], params["shape"])
    below = y < 0
    x, above = _reduced(jnp.where(below, 0.0, y) / scale, shape)
    return outside_support(below | above, -(1.0 + shape) * x - jnp.log(scale))


def _generalized_pareto_hazard(params: Params, y: ArrayLike) -> tuple[Array, Array, Array]:
    """−log P(Y > y), and whether y lies below or above the support."""
    y, scale, shape = floats(y, params["scale"], params["shape"])
    below, endless = y <= 0, y == jnp.inf
    x, above = _reduced(jnp.where(below | endless, 0.0, y) / scale, shape)
    # Outside x is one, which is not used.
    return jnp.where(below | endless | above, 1.0, x), below, above | endless


def generalized_pareto_log_cdf(params: Params, y: ArrayLike) -> Scalar:
    x, below, above = _generalized_pareto_hazard(params, y)
    return outside_support(below, jnp.where(above, 0.0, log_one_minus_exp(x)))


def generalized_pareto_log_survival(params: Params, y: ArrayLike) -> Scalar:
    x, below, above = _generalized_pareto_hazard(params, y)
    return outside_support(above, before_support(below, -x))


def generalized_pareto_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    x, scale, shape = floats(-jnp.log1p(-floats(uniform)[0]), params["scale"], params["shape"])
    return scale * x * expm1_over(shape * x)


def generalized_pareto_information(params: Params) -> Nested:
    scale, shape = floats(params["scale"], params["shape"])
    xi = jnp.where(shape > -0.5, shape, jnp.nan)
    once, twice = 1.0 + xi, 1.0 + 2.0 * xi
    return symmetric(("scale", "shape"), 1.0 / (scale**2 * twice), 1.0 / (scale * once * twice), 2.0 / (once * twice))


def generalized_pareto_mean(params: Params) -> Scalar:
    scale, shape = floats(params["scale"], params["shape"])
    finite = shape < 1.0
    return jnp.where(finite, scale / (1.0 - jnp.where(finite, shape, 0.0)), jnp.inf)


@starting_values
def generalized_pareto_initial(y: ArrayLike) -> dict[str, Any]:
    s = Sample(y, not_negative)
    step = math.log(2.0)  # x = −log(1 − u) at the median and the upper quartile
    median, quartile = s.quantiles(0.5, 0.75)
    shape = _shape_of_ratio(s, quartile - median, median, step)
    scale = s.spread(median / _growth(s.xp, shape, step), s.spread(s.mean()))
    shape = s.xp.maximum(shape, -0.9 * (scale / s.positive(s.extremes()[1])))  # the largest is inside the support
    return s.params(scale=scale, shape=shape)


generalized_pareto = Family(
    generalized_pareto_log_density,
    ("scale", "shape"),
    quantile=generalized_pareto_quantile,
    constraints={"scale": positive},
    initial=generalized_pareto_initial,
    information=generalized_pareto_information,
    log_cdf=generalized_pareto_log_cdf,
    log_survival=generalized_pareto_log_survival,
    mean=generalized_pareto_mean,
    support=(0.0, math.inf),
)
