"""Families of counts without an upper limit. Draws are counts held as floating numbers, so that none overflows."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.scipy.special import digamma
from jax.typing import ArrayLike
from jaxtyping import Array

from fisher_jax.families.common import (
    Family,
    Nested,
    Params,
    Scalar,
    before_support,
    floats,
    guess_of_count,
    not_a_count,
    outside_support,
    quantile_of_count,
    symmetric,
    tails_of_count,
)
from fisher_jax.families.starts import Sample, not_negative, starting_values
from fisher_jax.families.starts import positive as above_zero
from fisher_jax.models.constraints import positive, unit_interval
from fisher_jax.numerics.incomplete_beta import log_beta_tails
from fisher_jax.numerics.incomplete_gamma import log_gamma_tails
from fisher_jax.numerics.stable_functions import (
    HALF_LOG_TWO_PI,
    horner,
    log_complement,
    log_one_minus_exp,
    log_quotient,
    stirling_error,
)
from fisher_jax.numerics.tails import Tails

# Poisson --------------------------------------------------------------------------------------------------------------


def poisson_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Poisson: a count y = 0, 1, 2, ….

    log p(y) = y log rate − rate − log y!, computed in saddle-point form: right in float32 at counts of a million, and at y = 0
    for a rate that underflows to zero.

    - `rate`: positive, the mean and the variance.

    Information 1 / rate.
    In scipy: `scipy.stats.poisson(mu=rate)`.
    Start: the maximum.
    """
    return _poisson(*floats(y, params["rate"]))


@jax.custom_jvp
def _poisson(y: Array, rate: Array) -> Scalar:
    """What the data alone decide, the support included, is one term: in a fit it is computed once."""
    some = y > 0
    counted, expected = jnp.where(some, y, 1.0), jnp.where(some, rate, 1.0)
    at_its_mode = jnp.where(some, -0.5 * jnp.log(counted) - HALF_LOG_TWO_PI - stirling_error(counted), 0.0)
    of_data = jnp.where(not_a_count(y), -jnp.inf, at_its_mode)
    value = y * log_quotient(expected - counted, counted, expected) - (rate - y)
    return jnp.where(rate < 0, jnp.nan, value) + of_data


@functools.partial(_poisson.defjvp, symbolic_zeros=True)
def _poisson_along(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Any]:
    y, rate = primals
    along_y, along_rate = tangents
    moved = jnp.zeros_like(rate)
    if not isinstance(along_rate, SymbolicZero):
        moved = _poisson_slope(y, rate) * along_rate
    if not isinstance(along_y, SymbolicZero):
        moved = moved + (jnp.log(rate) - digamma(y + 1.0)) * along_y
    return _poisson(y, rate), moved


@jax.custom_jvp
def _poisson_slope(y: Array, rate: Array) -> Scalar:
    """y / rate − 1, and −1 at y = rate = 0; by the reciprocal that the information is, so that scoring divides once."""
    return jnp.where(rate < 0, jnp.nan, jnp.where(y > 0, y * (1.0 / rate), y) - 1.0)


@functools.partial(_poisson_slope.defjvp, symbolic_zeros=True)
def _poisson_slope_along(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Any]:
    y, rate = primals
    along_y, along_rate = tangents
    inverse, moved = 1.0 / rate, jnp.zeros_like(rate)
    if not isinstance(along_rate, SymbolicZero):
        moved = -jnp.where(y > 0, y * inverse * inverse, 0.0) * along_rate
    if not isinstance(along_y, SymbolicZero):
        moved = moved + inverse * along_y
    return _poisson_slope(y, rate), moved


def poisson_tails(params: Params, y: ArrayLike) -> Tails:
    rate = floats(y, params["rate"])[1]
    mean = jnp.where(rate < 0, jnp.nan, rate)
    # P(Y > k) = P(k + 1, rate)
    return tails_of_count(y, lambda k: log_gamma_tails(k + 1.0, mean)[::-1], rate.dtype)


def poisson_log_cdf(params: Params, y: ArrayLike) -> Scalar:
    return poisson_tails(params, y)[0]


def poisson_log_survival(params: Params, y: ArrayLike) -> Scalar:
    return poisson_tails(params, y)[1]


def poisson_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    uniform, rate = floats(uniform, params["rate"])
    deviation = jnp.sqrt(rate)
    return quantile_of_count(
        poisson_tails,
        uniform,
        {"rate": rate},
        guess_of_count(uniform, rate, deviation, 1.0 / jnp.maximum(deviation, 1e-3)),
    )


def poisson_sample(key: Array, params: Params) -> Scalar:
    rate = floats(params["rate"])[0]
    return jax.random.poisson(key, rate, ()).astype(rate.dtype)


def poisson_information(params: Params) -> Nested:
    return symmetric(("rate",), 1.0 / floats(params["rate"])[0])


def _mean_of_counts(s: Sample) -> Any:
    """The mean; half a count in all where there is none."""
    mean = s.mean()
    return s.xp.where(mean > 0, mean, 0.5 / s.size)


def poisson_mean(params: Params) -> Scalar:
    return floats(params["rate"])[0]


@starting_values
def poisson_initial(y: ArrayLike) -> dict[str, Any]:
    s = Sample(y, not_negative)
    return s.params(rate=s.positive(_mean_of_counts(s)))


poisson = Family(
    poisson_log_density,
    ("rate",),
    sample=poisson_sample,
    quantile=poisson_quantile,
    constraints={"rate": positive},
    initial=poisson_initial,
    information=poisson_information,
    log_cdf=poisson_log_cdf,
    log_survival=poisson_log_survival,
    mean=poisson_mean,
    support=(0.0, math.inf),
    discrete=True,
)


# Zero-inflated Poisson ------------------------------------------------------------------------------------------------


def zero_inflated_poisson_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Zero-inflated Poisson: a Poisson count that is replaced by zero with probability π.

    log p(y) = log P₀ with P₀ = π + (1 − π) e^{−λ} at y = 0, and log(1 − π) + y log λ − λ − log y! at y = 1, 2, ….

    - `inflation` π: between 0 and 1.
    - `rate` λ: positive, the mean of the counts that are not replaced.

    Mean (1 − π) λ.
    Information ππ (1 − e^{−λ}) / ((1 − π) P₀), πλ −e^{−λ} / P₀, λλ (1 − π) (1/λ − π e^{−λ} / P₀); verified by enumeration in
    the tests.
    In scipy: none; a mixture of zero and `scipy.stats.poisson(mu=rate)`.
    Start: moments.
    """
    y, inflation, rate = floats(y, params["inflation"], params["rate"])
    outside = not_a_count(y)
    y = jnp.where(outside, 0.0, y)
    zero = jnp.log(inflation + (1.0 - inflation) * jnp.exp(-rate))
    value = jnp.where(y == 0, zero, jnp.log1p(-inflation) + _poisson(y, rate))
    valid = (inflation >= 0) & (inflation <= 1) & (rate >= 0)
    return outside_support(outside, jnp.where(valid, value, jnp.nan))


def zero_inflated_poisson_tails(params: Params, y: ArrayLike) -> Tails:
    _, inflation, rate = floats(y, params["inflation"], params["rate"])
    valid = (inflation >= 0) & (inflation <= 1)
    pi = jnp.where(valid, inflation, jnp.nan)

    def tails(k: Array) -> Tails:
        lower, upper = poisson_tails({"rate": rate}, k)
        upper = upper + jnp.log1p(-pi)
        # π + (1 − π) Q where that is small, and where Q underflows the sum of logarithms; a zero π has a slope in the first alone.
        small, none = upper > -math.log(2.0), lower < math.log(jnp.finfo(rate.dtype).tiny)
        direct = jnp.log(pi + (1.0 - pi) * jnp.exp(jnp.where(none, -1.0, lower)))
        positive_pi = jnp.where(none & (pi > 0), pi, 0.5)
        of_logs = jnp.where(pi > 0, jnp.logaddexp(jnp.log(positive_pi), jnp.log1p(-positive_pi) + lower), lower)
        return jnp.where(small, jnp.where(none, of_logs, direct), log_complement(upper)), upper

    return tails_of_count(y, tails, rate.dtype)


def zero_inflated_poisson_log_cdf(params: Params, y: ArrayLike) -> Scalar:
    return zero_inflated_poisson_tails(params, y)[0]


def zero_inflated_poisson_log_survival(params: Params, y: ArrayLike) -> Scalar:
    return zero_inflated_poisson_tails(params, y)[1]


def zero_inflated_poisson_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    uniform, inflation, rate = floats(uniform, params["inflation"], params["rate"])
    deviation = jnp.sqrt(rate)
    of_count = jnp.clip((uniform - inflation) / (1.0 - inflation), 0.0, 1.0)
    return quantile_of_count(
        zero_inflated_poisson_tails,
        uniform,
        {"inflation": inflation, "rate": rate},
        guess_of_count(of_count, rate, deviation, 1.0 / jnp.maximum(deviation, 1e-3)),
    )


def zero_inflated_poisson_sample(key: Array, params: Params) -> Scalar:
    inflation, rate = floats(params["inflation"], params["rate"])
    for_zero, for_count = jax.random.split(key)
    replaced = jax.random.uniform(for_zero, (), rate.dtype) < inflation
    return jnp.where(replaced, 0.0, poisson_sample(for_count, {"rate": rate}))


def zero_inflated_poisson_information(params: Params) -> Nested:
    inflation, rate = floats(params["inflation"], params["rate"])
    poisson_zero, rest = jnp.exp(-rate), 1.0 - inflation
    zero = inflation + rest * poisson_zero
    return symmetric(
        ("inflation", "rate"),
        *(-jnp.expm1(-rate) / (rest * zero), -poisson_zero / zero),
        rest * (1.0 / rate - inflation * poisson_zero / zero),
    )


def zero_inflated_poisson_mean(params: Params) -> Scalar:
    inflation, rate = floats(params["inflation"], params["rate"])
    return (1.0 - inflation) * rate


@starting_values
def zero_inflated_poisson_initial(y: ArrayLike) -> dict[str, Any]:
    # mean = (1 − π) λ and variance / mean = 1 + π λ
    s = Sample(y, not_negative)
    mean, deviation = _mean_of_counts(s), s.moments(otherwise=0.0)[1]
    excess = s.xp.maximum(deviation * (deviation / mean) - 1.0, 0.0)
    inflation = s.xp.clip(excess / (mean + excess), 0.05, 0.95)
    return s.params(inflation=inflation, rate=s.positive(mean / (1.0 - inflation)))


zero_inflated_poisson = Family(
    zero_inflated_poisson_log_density,
    ("inflation", "rate"),
    main="rate",
    sample=zero_inflated_poisson_sample,
    quantile=zero_inflated_poisson_quantile,
    constraints={"inflation": unit_interval, "rate": positive},
    initial=zero_inflated_poisson_initial,
    information=zero_inflated_poisson_information,
    log_cdf=zero_inflated_poisson_log_cdf,
    log_survival=zero_inflated_poisson_log_survival,
    mean=zero_inflated_poisson_mean,
    support=(0.0, math.inf),
    discrete=True,
)


# Negative binomial ----------------------------------------------------------------------------------------------------


def negative_binomial_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Negative binomial: a count y = 0, 1, 2, … with mean μ and variance μ + μ²/r.

    log p(y) = log Γ(r + y) − log Γ(r) − log y! + r log(r / (r + μ)) + y log(μ / (r + μ)), computed in saddle-point form: exact in
    the Poisson limit r → ∞, where differences of log-gamma functions have no digit left.

    - `mean` μ: positive.
    - `size` r: positive; 1/r is often called the dispersion.

    Information μμ r / (μ (μ + r)), μr 0, rr Σ_{k ≥ 0} P(Y > k) / (r + k)² − μ / (r (μ + r)); NaN below a size of 0.01.
    In scipy: `scipy.stats.nbinom(n=size, p=size / (size + mean))`.
    Start: moments.
    """
    y, mean, size = floats(y, params["mean"], params["size"])
    outside = not_a_count(y)
    y = jnp.where(outside, 0.0, y)
    empty = y == 0
    counted = jnp.where(empty, 1.0, y)
    expected, total = jnp.where(empty, 1.0, mean), y + size
    terms = y * log_quotient(expected - counted, counted, expected) - total * log_quotient(mean - y, total, mean + size)
    of_size = 0.5 * (jnp.log(size) - jnp.log(total)) + stirling_error(total) - stirling_error(size)
    value = jnp.where(mean < 0, jnp.nan, terms + jnp.where(empty, 0.0, of_size))
    # What the data alone decide is one term: in a fit it is computed once.
    of_count = jnp.where(empty, 0.0, -0.5 * jnp.log(counted) - HALF_LOG_TWO_PI - stirling_error(counted))
    return outside_support(outside, value + of_count)


def negative_binomial_tails(params: Params, y: ArrayLike) -> Tails:
    _, mean, size = floats(y, params["mean"], params["size"])
    logit = jnp.log(size) - jnp.log(jnp.where(mean < 0, jnp.nan, mean))

    def tails(k: Array) -> Tails:
        # P(Y ≤ k) = I_p(r, k + 1) with p = r / (r + μ); its distance from the mean is that of the Poisson limit.
        return log_beta_tails(size, k + 1.0, logit, log_quotient(k + 1.0 - mean, mean, k + 1.0))

    return tails_of_count(y, tails, mean.dtype)


def negative_binomial_log_cdf(params: Params, y: ArrayLike) -> Scalar:
    return negative_binomial_tails(params, y)[0]


def negative_binomial_log_survival(params: Params, y: ArrayLike) -> Scalar:
    return negative_binomial_tails(params, y)[1]


def negative_binomial_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    uniform, mean, size = floats(uniform, params["mean"], params["size"])
    deviation = jnp.sqrt(mean + mean * (mean / size))
    skewness = (1.0 + 2.0 * mean / size) / jnp.maximum(deviation, 1e-3)
    return quantile_of_count(
        negative_binomial_tails,
        uniform,
        {"mean": mean, "size": size},
        guess_of_count(uniform, mean, deviation, skewness),
    )


def negative_binomial_sample(key: Array, params: Params) -> Scalar:
    mean, size = floats(params["mean"], params["size"])
    # a Poisson count whose rate is a gamma draw
    for_rate, for_count = jax.random.split(key)
    rate = jax.random.gamma(for_rate, size, (), mean.dtype) * (mean / size)
    return poisson_sample(for_count, {"rate": rate})


_STEPS = np.linspace(-4.0, 4.2, 300)
_NODES = np.exp(_STEPS - np.exp(-_STEPS))
_WEIGHTS = np.exp(-_NODES) * _NODES * (1.0 + np.exp(-_STEPS)) * (_STEPS[1] - _STEPS[0])
_LOG_SERIES = (0.0, 0.0, *(1.0 / k for k in range(2, 19)))
SMALLEST_SIZE, LARGEST_RATIO = 0.01, 1e9


def negative_binomial_information(params: Params) -> Nested:
    """As the docstring of the log-density states it.

    The entry of `size` is a difference that cancels like μ/r². It equals Σ_{j ≥ 2} Rʲ B(j, r) / j with R = μ / (μ + r), whose
    terms are all positive, and that is ∫₀^∞ e^{−rv} [−log(1 − Rt) − Rt] / t dv with t = 1 − e^{−v}, here by a double-exponential
    rule of 300 nodes. Derived; relative error below 1e-9 in float64 for sizes from 0.01 and mean/size up to 1e9, NaN beyond.
    """
    mean, size = floats(params["mean"], params["size"])
    nodes, weights = jnp.asarray(_NODES, mean.dtype), jnp.asarray(_WEIGHTS, mean.dtype)
    v = nodes / size
    t, success = -jnp.expm1(-v), mean / (mean + size)
    z, rest = success * t, size / (mean + size) + success * jnp.exp(-v)
    near = z < 0.1
    log_term = jnp.where(near, horner(_LOG_SERIES, jnp.where(near, z, 0.0)), -jnp.log(rest) - z)
    of_size = jnp.sum(weights * log_term / t) / size
    accurate = (size >= SMALLEST_SIZE) & (mean <= LARGEST_RATIO * size)
    return symmetric(("mean", "size"), size / (mean * (mean + size)), 0.0, jnp.where(accurate, of_size, jnp.nan))


def negative_binomial_mean(params: Params) -> Scalar:
    return floats(params["mean"])[0]


@starting_values
def negative_binomial_initial(y: ArrayLike) -> dict[str, Any]:
    # variance / mean = 1 + mean / size; a variance that is hardly larger than the mean starts near the Poisson limit
    s = Sample(y, not_negative)
    mean, deviation = _mean_of_counts(s), s.moments(otherwise=0.0)[1]
    excess = s.xp.maximum(deviation * (deviation / mean) - 1.0, 0.01)
    return s.params(mean=s.positive(mean), size=s.xp.clip(mean / excess, 2.0 * SMALLEST_SIZE, s.huge))


negative_binomial = Family(
    negative_binomial_log_density,
    ("mean", "size"),
    sample=negative_binomial_sample,
    quantile=negative_binomial_quantile,
    constraints={"mean": positive, "size": positive},
    initial=negative_binomial_initial,
    information=negative_binomial_information,
    log_cdf=negative_binomial_log_cdf,
    log_survival=negative_binomial_log_survival,
    mean=negative_binomial_mean,
    support=(0.0, math.inf),
    discrete=True,
)


# Geometric ------------------------------------------------------------------------------------------------------------


def geometric_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Geometric: the first success comes at trial y = 1, 2, ….

    log p(y) = log p + (y − 1) log(1 − p).

    - `probability` p: between 0 and 1, of success at each trial.

    Mean 1/p.
    Information 1 / (p² (1 − p)).
    In scipy: `scipy.stats.geom(probability)`.
    Start: the maximum, with half a failure added: with none it lies at p = 1.
    """
    y, p = floats(y, params["probability"])
    outside = not_a_count(y - 1.0)
    failures = jnp.where(outside, 0.0, y - 1.0)
    some = failures > 0
    of_failures = jnp.where(some, failures * jnp.log1p(-jnp.where(some, p, 0.0)), 0.0 * failures)
    return outside_support(outside, jnp.where(p <= 1.0, jnp.log(p) + of_failures, jnp.nan))


def geometric_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    x, p = floats(-jnp.log1p(-floats(uniform)[0]), params["probability"])
    each = -jnp.log1p(-p)
    y = jnp.ceil(x / each)
    # The quotient may have been rounded over a whole number, to either side.
    y = jnp.where((y - 1.0) * each >= x, y - 1.0, jnp.where(y * each < x, y + 1.0, y))
    return jnp.maximum(y, 1.0)  # of a uniform number that underflows the ceiling is zero


def _geometric_hazard(params: Params, y: ArrayLike) -> tuple[Array, Array]:
    """−log P(Y > y), and whether y lies below the support, where it is that of y = 1."""
    y, p = floats(y, params["probability"])
    before = y < 1
    return -jnp.where(before, 1.0, jnp.floor(y)) * jnp.log1p(-p), before


def geometric_log_cdf(params: Params, y: ArrayLike) -> Scalar:
    x, before = _geometric_hazard(params, y)
    return outside_support(before, log_one_minus_exp(x))


def geometric_log_survival(params: Params, y: ArrayLike) -> Scalar:
    x, before = _geometric_hazard(params, y)
    return before_support(before, -x)


def geometric_information(params: Params) -> Nested:
    p = floats(params["probability"])[0]
    return symmetric(("probability",), 1.0 / (p**2 * (1.0 - p)))


def geometric_mean(params: Params) -> Scalar:
    return 1.0 / floats(params["probability"])[0]


@starting_values
def geometric_initial(y: ArrayLike) -> dict[str, Any]:
    s = Sample(y, above_zero)
    mean = s.xp.maximum(s.mean(), 1.0)
    return s.params(probability=s.xp.clip(1.0 / (mean + 0.5 / s.size), s.tiny, 1.0 - s.eps))


geometric = Family(
    geometric_log_density,
    ("probability",),
    quantile=geometric_quantile,
    constraints={"probability": unit_interval},
    initial=geometric_initial,
    information=geometric_information,
    log_cdf=geometric_log_cdf,
    log_survival=geometric_log_survival,
    mean=geometric_mean,
    support=(1.0, math.inf),
    discrete=True,
)
