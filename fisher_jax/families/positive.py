"""Families on the positive half-line: sizes, amounts, distances."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erfinv, ndtri, polygamma
from jax.typing import ArrayLike
from jaxtyping import Array

from fisher_jax.families.common import (
    Family,
    Nested,
    OverSquare,
    Params,
    Scalar,
    before_support,
    floats,
    outside_support,
    symmetric,
)
from fisher_jax.families.location_scale import NORMAL_INFORMATION, normal_log_density, normal_quantile, normal_sample
from fisher_jax.families.starts import Sample, not_negative, starting_values
from fisher_jax.families.starts import positive as above_zero
from fisher_jax.models.constraints import fixed, positive
from fisher_jax.numerics.incomplete_gamma import gamma_quantile_of_log, log_gamma_tails
from fisher_jax.numerics.inversion import invert
from fisher_jax.numerics.normal_tail import log_normal_cdf, mills_ratio, mills_slope
from fisher_jax.numerics.stable_functions import HALF_LOG_TWO_PI, log_one_minus_exp, log_ratio, stirling_error
from fisher_jax.numerics.tails import Tails

# Lognormal ------------------------------------------------------------------------------------------------------------


def lognormal_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Lognormal: y > 0 whose logarithm is N(loc, scale²).

    log p(y) = −½ z² − log scale − ½ log 2π − log y, z = (log y − loc) / scale.

    - `loc`: real, the mean of log y.
    - `scale`: positive, the standard deviation of log y.

    Mean exp(loc + ½ scale²).
    Information diag(1, 2) / scale².
    In scipy: `scipy.stats.lognorm(s=scale, scale=exp(loc))`.
    Start: the maximum.
    """
    y = floats(y, *params.values())[0]
    outside = y <= 0
    log_y = jnp.log(jnp.where(outside, 1.0, y))
    return outside_support(outside, normal_log_density(params, log_y) - log_y)


def lognormal_sample(key: Array, params: Params) -> Scalar:
    return jnp.exp(normal_sample(key, params))


def lognormal_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    return jnp.exp(normal_quantile(uniform, params))


def _standardized_log(params: Params, y: ArrayLike) -> tuple[Array, Array]:
    """(log y − loc) / scale, and whether y lies below the support, where it is that of y = 1."""
    y, loc, scale = floats(y, params["loc"], params["scale"])
    before = y <= 0
    return (jnp.log(jnp.where(before, 1.0, y)) - loc) / scale, before


def lognormal_log_cdf(params: Params, y: ArrayLike) -> Scalar:
    z, before = _standardized_log(params, y)
    return outside_support(before, log_normal_cdf(z))


def lognormal_log_survival(params: Params, y: ArrayLike) -> Scalar:
    z, before = _standardized_log(params, y)
    return before_support(before, log_normal_cdf(-z))


def lognormal_mean(params: Params) -> Scalar:
    loc, scale = floats(params["loc"], params["scale"])
    return jnp.exp(loc + 0.5 * scale**2)


@starting_values
def lognormal_initial(y: ArrayLike) -> dict[str, Any]:
    s = Sample(y, above_zero)
    mean, deviation = s.of(s.xp.log(s.y)).moments(otherwise=1.0)
    return s.params(loc=mean, scale=deviation)


lognormal = Family(
    lognormal_log_density,
    ("loc", "scale"),
    sample=lognormal_sample,
    quantile=lognormal_quantile,
    constraints={"scale": positive},
    initial=lognormal_initial,
    information=NORMAL_INFORMATION,
    log_cdf=lognormal_log_cdf,
    log_survival=lognormal_log_survival,
    mean=lognormal_mean,
    support=(0.0, math.inf),
)


# Gamma ----------------------------------------------------------------------------------------------------------------


def gamma_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Gamma: y > 0, a sum of exponential durations where the shape is a whole number.

    log p(y) = shape log rate − log Γ(shape) + (shape − 1) log y − rate y, computed in saddle-point form: right in float32 at a
    shape of a million.

    - `shape`: positive; 1 is the exponential.
    - `rate`: positive; the mean is shape / rate.

    Information [[ψ₁(shape), −1/rate], [·, shape/rate²]].
    In scipy: `scipy.stats.gamma(a=shape, scale=1 / rate)`.
    Start: within 1.5 % of the maximum (Choi, S. C. and Wette, R. 1969, Technometrics 11, 683-690).
    """
    y, shape, rate = floats(y, params["shape"], params["rate"])
    outside = y <= 0
    y = jnp.where(outside, 1.0, y)
    # shape log(rate y / shape) − (rate y − shape) and what remains of Stirling's formula: no large terms are subtracted
    log_y, difference = jnp.log(y), rate * y - shape
    deviance = difference - shape * log_ratio(difference, shape, jnp.log(rate) + log_y)
    normaliser = 0.5 * jnp.log(shape) - HALF_LOG_TWO_PI - stirling_error(shape)
    return outside_support(outside, normaliser - log_y - deviance)


def gamma_tails(params: Params, y: ArrayLike) -> Tails:
    y, shape, rate = floats(y, params["shape"], params["rate"])
    return log_gamma_tails(shape, jnp.where(rate > 0, rate * y, jnp.nan))


def gamma_log_cdf(params: Params, y: ArrayLike) -> Scalar:
    return gamma_tails(params, y)[0]


def gamma_log_survival(params: Params, y: ArrayLike) -> Scalar:
    return gamma_tails(params, y)[1]


def gamma_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    uniform, shape, rate = floats(uniform, params["shape"], params["rate"])
    return shape / rate * jnp.exp(gamma_quantile_of_log(uniform, shape))


def gamma_sample(key: Array, params: Params) -> Scalar:
    shape, rate = floats(params["shape"], params["rate"])
    return jax.random.gamma(key, shape, (), shape.dtype) / rate


def gamma_information(params: Params) -> Nested:
    shape, rate = floats(params["shape"], params["rate"])
    return symmetric(("shape", "rate"), polygamma(1, shape), -1.0 / rate, shape / rate**2)


def gamma_mean(params: Params) -> Scalar:
    shape, rate = floats(params["shape"], params["rate"])
    return shape / rate


@starting_values
def gamma_initial(y: ArrayLike) -> dict[str, Any]:
    s = Sample(y, above_zero)
    mean = s.positive(s.mean())
    gap = _gap(s, -s.xp.log(s.y / mean))  # log of the mean less mean of the logarithms, which is about 1 / (2 shape)
    shape = (3.0 - gap + s.xp.sqrt((gap - 3.0) ** 2 + 24.0 * gap)) / (12.0 * gap)
    return s.params(shape=s.positive(shape), rate=s.positive(shape / mean))


def _gap(s: Sample, values: Any) -> Any:
    """The mean of values that are about zero where all observations are equal; ½ where it is no more than rounding error."""
    gap = s.mean(values)
    return s.xp.where(gap > s.eps, gap, 0.5)


gamma = Family(
    gamma_log_density,
    ("shape", "rate"),
    main="rate",
    sample=gamma_sample,
    quantile=gamma_quantile,
    constraints={"shape": positive, "rate": positive},
    initial=gamma_initial,
    information=gamma_information,
    log_cdf=gamma_log_cdf,
    log_survival=gamma_log_survival,
    mean=gamma_mean,
    support=(0.0, math.inf),
)


# Rayleigh -------------------------------------------------------------------------------------------------------------


def rayleigh_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Rayleigh: the length y > 0 of a vector of two independent normal components.

    log p(y) = log y − 2 log scale − ½ (y / scale)².

    - `scale`: positive, the standard deviation of either component.

    Mean scale √(π/2).
    Information 4 / scale².
    In scipy: `scipy.stats.rayleigh(scale=scale)`.
    Start: the maximum.
    """
    y, scale = floats(y, params["scale"])
    outside = y <= 0
    z = jnp.where(outside, 1.0, y) / scale
    return outside_support(outside, jnp.log(z) - jnp.log(scale) - 0.5 * z * z)


def rayleigh_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    return floats(params["scale"])[0] * jnp.sqrt(-2.0 * jnp.log1p(-floats(uniform)[0]))


def _rayleigh_hazard(params: Params, y: ArrayLike) -> tuple[Array, Array]:
    """−log P(Y > y), and whether y lies below the support, where it is that of one scale."""
    y, scale = floats(y, params["scale"])
    before = y <= 0
    z = jnp.where(before, scale, y) / scale
    return 0.5 * z * z, before


def rayleigh_log_cdf(params: Params, y: ArrayLike) -> Scalar:
    x, before = _rayleigh_hazard(params, y)
    return outside_support(before, log_one_minus_exp(x))


def rayleigh_log_survival(params: Params, y: ArrayLike) -> Scalar:
    x, before = _rayleigh_hazard(params, y)
    return before_support(before, -x)


def _root_mean_square(s: Sample) -> Any:
    return s.unit * s.xp.sqrt(s.mean((s.y / s.unit) ** 2))


def rayleigh_mean(params: Params) -> Scalar:
    return math.sqrt(0.5 * math.pi) * floats(params["scale"])[0]


@starting_values
def rayleigh_initial(y: ArrayLike) -> dict[str, Any]:
    s = Sample(y, above_zero)
    return s.params(scale=s.spread(math.sqrt(0.5) * _root_mean_square(s)))


rayleigh = Family(
    rayleigh_log_density,
    ("scale",),
    quantile=rayleigh_quantile,
    constraints={"scale": positive},
    initial=rayleigh_initial,
    information=OverSquare(("scale",), (4.0,)),
    log_cdf=rayleigh_log_cdf,
    log_survival=rayleigh_log_survival,
    mean=rayleigh_mean,
    support=(0.0, math.inf),
)


# Half-normal ----------------------------------------------------------------------------------------------------------


def half_normal_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Half-normal: the absolute value y ≥ 0 of a normal variable of mean zero.

    log p(y) = ½ log(2/π) − log scale − ½ (y / scale)².

    - `scale`: positive, the standard deviation of the normal variable.

    Mean scale √(2/π).
    Information 2 / scale².
    In scipy: `scipy.stats.halfnorm(scale=scale)`.
    Start: the maximum.
    """
    y, scale = floats(y, params["scale"])
    z = y / scale
    return outside_support(y < 0, math.log(2.0) - HALF_LOG_TWO_PI - jnp.log(scale) - 0.5 * z * z)


def half_normal_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    # erfinv(u) below ½, since (1 + u) / 2 rounds where u is small; above it from (1 − u) / 2, which is exact
    u, scale = floats(uniform, params["scale"])
    lower = u < 0.5
    from_zero = math.sqrt(2.0) * erfinv(jnp.where(lower, u, 0.0))
    return scale * jnp.where(lower, from_zero, -ndtri(0.5 - 0.5 * jnp.where(lower, 0.5, u)))


def half_normal_log_cdf(params: Params, y: ArrayLike) -> Scalar:
    y, scale = floats(y, params["scale"])
    before = y <= 0
    return outside_support(before, jnp.log(jax.lax.erf(jnp.where(before, scale, y) / (math.sqrt(2.0) * scale))))


def half_normal_log_survival(params: Params, y: ArrayLike) -> Scalar:
    y, scale = floats(y, params["scale"])
    before = y <= 0
    return before_support(before, math.log(2.0) + log_normal_cdf(-jnp.where(before, scale, y) / scale))


def half_normal_mean(params: Params) -> Scalar:
    return math.sqrt(2.0 / math.pi) * floats(params["scale"])[0]


@starting_values
def half_normal_initial(y: ArrayLike) -> dict[str, Any]:
    s = Sample(y, not_negative)
    return s.params(scale=s.spread(_root_mean_square(s)))


half_normal = Family(
    half_normal_log_density,
    ("scale",),
    quantile=half_normal_quantile,
    constraints={"scale": positive},
    initial=half_normal_initial,
    information=OverSquare(("scale",), (2.0,)),
    log_cdf=half_normal_log_cdf,
    log_survival=half_normal_log_survival,
    mean=half_normal_mean,
    support=(0.0, math.inf),
)


# Pareto ---------------------------------------------------------------------------------------------------------------


def pareto_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Pareto: y ≥ minimum, with a tail that falls as a power.

    log p(y) = log shape − log y − shape · log(y / minimum).

    - `shape`: positive; P(Y > y) = (minimum / y)^shape.
    - `minimum`: positive, a known constant that is not estimated: the support moves with it, so that it has no information.

    Mean minimum · shape / (shape − 1) for shape > 1, else infinite.
    Information 1 / shape² of `shape`.
    In scipy: `scipy.stats.pareto(b=shape, scale=minimum)`.
    Start: the maximum, which has `minimum` at the smallest observation; give params where it is known.
    """
    y, shape, minimum = floats(y, params["shape"], params["minimum"])
    outside = y < minimum
    y = jnp.where(outside, minimum, y)
    return outside_support(outside, jnp.log(shape) - jnp.log(y) - shape * jnp.log(y / minimum))


def pareto_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    x, shape, minimum = floats(-jnp.log1p(-floats(uniform)[0]), params["shape"], params["minimum"])
    return minimum * jnp.exp(x / shape)


def _pareto_hazard(params: Params, y: ArrayLike) -> tuple[Array, Array]:
    """−log P(Y > y), and whether y lies below the support, where it is that of twice the minimum."""
    y, shape, minimum = floats(y, params["shape"], params["minimum"])
    before = y <= minimum
    y = jnp.where(before, 2.0 * minimum, y)
    return shape * log_ratio(y - minimum, minimum, jnp.log(y)), before


def pareto_log_cdf(params: Params, y: ArrayLike) -> Scalar:
    x, before = _pareto_hazard(params, y)
    return outside_support(before, log_one_minus_exp(x))


def pareto_log_survival(params: Params, y: ArrayLike) -> Scalar:
    x, before = _pareto_hazard(params, y)
    return before_support(before, -x)


def pareto_mean(params: Params) -> Scalar:
    shape, minimum = floats(params["shape"], params["minimum"])
    finite = shape > 1.0
    above = jnp.where(finite, shape, 2.0)
    return jnp.where(finite, minimum * (above / (above - 1.0)), jnp.inf)


def pareto_support(params: Params) -> tuple[Scalar, float]:
    return floats(params["minimum"])[0], math.inf


@starting_values
def pareto_initial(y: ArrayLike) -> dict[str, Any]:
    s = Sample(y, above_zero)
    minimum = s.extremes()[0]
    gap = _gap(s, s.xp.where(s.inside, s.xp.log(s.y / minimum), 0.0))
    return s.params(shape=s.positive(1.0 / gap), minimum=minimum)


pareto = Family(
    pareto_log_density,
    ("shape", "minimum"),
    quantile=pareto_quantile,
    constraints={"shape": positive, "minimum": fixed},
    initial=pareto_initial,
    information=OverSquare(("shape",), (1.0,), constants=("minimum",)),
    log_cdf=pareto_log_cdf,
    log_survival=pareto_log_survival,
    mean=pareto_mean,
    support=pareto_support,
)


# Inverse Gaussian -----------------------------------------------------------------------------------------------------


def inverse_gaussian_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Inverse Gaussian: the time y > 0 at which a Brownian motion with drift first reaches a level.

    log p(y) = ½ log(shape / (2π y³)) − shape (y − mean)² / (2 mean² y).

    - `mean`: positive.
    - `shape`: positive; the variance is mean³ / shape.

    Information diag(shape / mean³, 1 / (2 shape²)).
    In scipy: `scipy.stats.invgauss(mu=mean / shape, scale=shape)`.
    Start: the maximum.
    """
    y, mean, shape = floats(y, params["mean"], params["shape"])
    outside = y <= 0
    y = jnp.where(outside, 1.0, y)
    z = (y - mean) / mean  # before it is squared: mean² may overflow
    value = 0.5 * jnp.log(shape) - HALF_LOG_TWO_PI - 1.5 * jnp.log(y) - 0.5 * shape * z * z / y
    return outside_support(outside, value)


def inverse_gaussian_sample(key: Array, params: Params) -> Scalar:
    """The method of Michael, Schucany and Haas (1976), with the smaller root written so that it does not cancel."""
    mean, shape = floats(params["mean"], params["shape"])
    for_square, for_choice = jax.random.split(key)
    a = 0.5 * mean / shape * jax.random.normal(for_square, (), mean.dtype) ** 2
    root = 1.0 / (1.0 + a + jnp.sqrt(a * (2.0 + a)))
    smaller = jax.random.uniform(for_choice, (), mean.dtype) * (1.0 + root) <= 1.0
    return mean * jnp.where(smaller, root, 1.0 / root)


def inverse_gaussian_information(params: Params) -> Nested:
    mean, shape = floats(params["mean"], params["shape"])
    return symmetric(("mean", "shape"), shape / mean**3, 0.0, 0.5 / shape**2)


# The distribution function is Φ(a) + e^{2 shape/mean} Φ(−b), with a, b = √(shape/y) (y/mean ∓ 1) (Shuster, J. 1968, On the
# inverse Gaussian distribution function, J. Amer. Statist. Assoc. 63, 1514-1516). Since b² − a² = 4 shape/mean, it is φ(a) times
# a sum of two Mills ratios for a < 0, and one minus it φ(a) times a difference of them.
_NODES, _WEIGHTS = (0.5 * part for part in np.polynomial.legendre.leggauss(10))
_NODES = _NODES + 0.5


def _passage(y: Array, mean: Array, shape: Array) -> tuple[Array, Array]:
    root = jnp.sqrt(shape / y)
    return root * ((y - mean) / mean), root * ((y + mean) / mean)


@jax.custom_jvp
def _log_tails(y: Array, mean: Array, shape: Array) -> Array:
    """log P(Y ≤ y) and log P(Y > y), shape (2,)."""
    a, b = _passage(y, mean, shape)
    lower, early = a <= 0, a < -0.7  # early: P(Y > y) is above a half
    log_density = -0.5 * a * a - HALF_LOG_TWO_PI
    of_size, of_b = mills_ratio(jnp.stack([jnp.abs(a), b]))
    log_passed = jnp.log(of_size + of_b) + log_density
    # M(a) − M(b), b = a + 2 √(shape/y), from the slope of M where they are close to each other
    late = jnp.where(early, 0.0, a)
    width = 2.0 * jnp.sqrt(shape / y)
    slopes = mills_slope(late + width * jnp.asarray(_NODES, y.dtype))
    close = width * jnp.sum(slopes * jnp.asarray(_WEIGHTS, y.dtype))
    of_late = jnp.where(lower, jnp.exp(0.5 * late * late + HALF_LOG_TWO_PI) - of_size, of_size)
    difference = jnp.where(width < 0.5, close, of_late - of_b)
    log_waiting = jnp.log(jnp.where(early, 1.0, difference)) + log_density
    return jnp.stack(
        [
            jnp.where(lower, log_passed, jnp.log1p(-jnp.exp(jnp.where(lower, -1.0, log_waiting)))),
            jnp.where(early, jnp.log1p(-jnp.exp(jnp.where(early, log_passed, -1.0))), log_waiting),
        ]
    )


@_log_tails.defjvp
def _log_tails_along(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    y, mean, shape = primals
    value = _log_tails(y, mean, shape)
    a, b = _passage(y, mean, shape)
    ratio = mills_ratio(b)
    # The derivatives of P(Y ≤ y), each divided by φ(a).
    slopes = (
        jnp.sqrt(shape / y) / y,
        -2.0 * shape / mean * ratio / mean,
        2.0 * ratio / mean - 1.0 / jnp.sqrt(shape * y),
    )
    moved = sum((slope * along for slope, along in zip(slopes, tangents, strict=True)), start=jnp.zeros_like(y))
    scaled = jnp.exp(-0.5 * a * a - HALF_LOG_TWO_PI - value)
    return value, scaled * jnp.asarray([1.0, -1.0], y.dtype) * moved


def _inverse_gaussian_tails(params: Params, y: ArrayLike) -> tuple[Array, Array, Array]:
    y, mean, shape = floats(y, params["mean"], params["shape"])
    before, never = y <= 0, y == jnp.inf
    return before, never, _log_tails(jnp.where(before | never, mean, y), mean, shape)


def inverse_gaussian_log_cdf(params: Params, y: ArrayLike) -> Scalar:
    before, never, tails = _inverse_gaussian_tails(params, y)
    return outside_support(before, jnp.where(never, 0.0, tails[0]))


def inverse_gaussian_log_survival(params: Params, y: ArrayLike) -> Scalar:
    before, never, tails = _inverse_gaussian_tails(params, y)
    return outside_support(never, before_support(before, tails[1]))


def inverse_gaussian_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    return invert(inverse_gaussian_log_cdf, inverse_gaussian_log_survival, uniform, params, low=0.0)


def inverse_gaussian_mean(params: Params) -> Scalar:
    return floats(params["mean"])[0]


@starting_values
def inverse_gaussian_initial(y: ArrayLike) -> dict[str, Any]:
    s = Sample(y, above_zero)
    mean = s.positive(s.mean())
    gap = _gap(s, (s.y - mean) / s.y * ((s.y - mean) / mean))  # mean · mean of 1/y, less 1
    return s.params(mean=mean, shape=s.positive(mean / gap))


inverse_gaussian = Family(
    inverse_gaussian_log_density,
    ("mean", "shape"),
    sample=inverse_gaussian_sample,
    quantile=inverse_gaussian_quantile,
    constraints={"mean": positive, "shape": positive},
    initial=inverse_gaussian_initial,
    information=inverse_gaussian_information,
    log_cdf=inverse_gaussian_log_cdf,
    log_survival=inverse_gaussian_log_survival,
    mean=inverse_gaussian_mean,
    support=(0.0, math.inf),
)
