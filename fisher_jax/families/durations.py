"""Families of durations: the time to an event, watched to its end or for a limited time."""

import math
from typing import Any

import jax.numpy as jnp
from jax.scipy.special import gammaln
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
from fisher_jax.families.extremes import EULER, GUMBEL_INFORMATION, ONE_MINUS_EULER
from fisher_jax.families.starts import Sample, not_negative, starting_values, zero_or_one
from fisher_jax.families.starts import positive as above_zero
from fisher_jax.models.constraints import fixed, positive
from fisher_jax.numerics.stable_functions import log_complement, log_inverse_cloglog, log_one_minus_exp, log_sigmoid

# Exponential ----------------------------------------------------------------------------------------------------------


def exponential_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Exponential: a duration y ≥ 0 whose event comes at a constant rate.

    log p(y) = log rate − rate y.

    - `rate`: positive, one divided by the mean.

    Information 1 / rate².
    In scipy: `scipy.stats.expon(scale=1 / rate)`.
    Start: the maximum.
    """
    y, rate = floats(y, params["rate"])
    return outside_support(y < 0, jnp.log(rate) - rate * y)


def exponential_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    # log1p: a small uniform number keeps its digits, and 1 − u of the open interval is never zero
    return -jnp.log1p(-floats(uniform)[0]) / floats(params["rate"])[0]


def exponential_log_cdf(params: Params, y: ArrayLike) -> Scalar:
    y, rate = floats(y, params["rate"])
    before = y <= 0
    return outside_support(before, log_one_minus_exp(rate * jnp.where(before, 1.0, y)))


def exponential_log_survival(params: Params, y: ArrayLike) -> Scalar:
    y, rate = floats(y, params["rate"])
    return -rate * jnp.maximum(y, 0.0)


def exponential_mean(params: Params) -> Scalar:
    return 1.0 / floats(params["rate"])[0]


@starting_values
def exponential_initial(y: ArrayLike) -> dict[str, Any]:
    s = Sample(y, not_negative)
    return s.params(rate=s.positive(1.0 / s.spread(s.mean())))


exponential = Family(
    exponential_log_density,
    ("rate",),
    quantile=exponential_quantile,
    constraints={"rate": positive},
    initial=exponential_initial,
    information=OverSquare(("rate",), (1.0,)),
    log_cdf=exponential_log_cdf,
    log_survival=exponential_log_survival,
    mean=exponential_mean,
    support=(0.0, math.inf),
)


# Censored exponential -------------------------------------------------------------------------------------------------


def censored_exponential_log_density(params: Params, y: dict[str, ArrayLike]) -> Scalar:
    """Censored exponential: an exponential duration that is watched until a limit only.

    y is {"time": …, "event": …} with 0 ≤ time ≤ limit: event 1 where the duration ended at `time`, 0 where it had not ended then.
    log p(y) = event · log rate − rate · time, with respect to length along the times of events plus a point mass at `limit`.

    - `rate`: positive, one divided by the mean of the uncensored duration.
    - `limit`: positive, a known constant that is not estimated.

    Mean {"time": (1 − e^{−rate · limit}) / rate, "event": 1 − e^{−rate · limit}}.
    Information (1 − e^{−rate · limit}) / rate² of `rate`.
    In scipy: `scipy.stats.expon(scale=1 / rate)` of data that are a `scipy.stats.CensoredData`.
    Start: the maximum, half an event where there is none; `limit` the longest time.
    """
    time, event, rate, limit = floats(y["time"], y["event"], params["rate"], params["limit"])
    return outside_support((time < 0) | (time > limit), event * jnp.log(rate) - rate * time)


def censored_exponential_quantile(uniform: ArrayLike, params: Params) -> dict[str, Scalar]:
    time, limit = floats(exponential_quantile(uniform, params), params["limit"])
    return {"time": jnp.minimum(time, limit), "event": (time <= limit).astype(time.dtype)}


def censored_exponential_log_cdf(params: Params, y: dict[str, ArrayLike]) -> Scalar:
    """Of `time`, whatever `event` is: 0 from the limit on."""
    time, rate, limit = floats(y["time"], params["rate"], params["limit"])
    inside = (time > 0) & (time < limit)
    value = log_complement(-rate * jnp.where(inside, time, limit))
    outside = jnp.where(jnp.isnan(time), jnp.nan, jnp.where(time > 0, 0.0, -jnp.inf))
    return jnp.where(inside, value, outside)


def censored_exponential_log_survival(params: Params, y: dict[str, ArrayLike]) -> Scalar:
    time, limit = floats(y["time"], params["limit"])
    inside = jnp.where(time < limit, time, 0.0)
    value = exponential_log_survival(params, inside)
    return jnp.where(time >= limit, -jnp.inf, jnp.where(jnp.isnan(time), jnp.nan, value))


def censored_exponential_information(params: Params) -> Nested:
    rate, limit = floats(params["rate"], params["limit"])
    return symmetric(("rate",), -jnp.expm1(-rate * limit) / rate**2, constants=("limit",))


def censored_exponential_mean(params: Params) -> dict[str, Scalar]:
    rate, limit = floats(params["rate"], params["limit"])
    events = -jnp.expm1(-rate * limit)
    return {"time": events / rate, "event": events}


@starting_values
def censored_exponential_initial(y: dict[str, ArrayLike]) -> dict[str, Any]:
    s = Sample(y["time"], not_negative)
    events = Sample(y["event"], zero_or_one).mean()
    rate = s.xp.maximum(events, 0.5 / s.size) / s.spread(s.mean())
    return s.params(rate=s.positive(rate), limit=s.spread(s.extremes()[1]))


censored_exponential = Family(
    censored_exponential_log_density,
    ("rate", "limit"),
    quantile=censored_exponential_quantile,
    constraints={"rate": positive, "limit": fixed},
    initial=censored_exponential_initial,
    information=censored_exponential_information,
    log_cdf=censored_exponential_log_cdf,
    log_survival=censored_exponential_log_survival,
    mean=censored_exponential_mean,
)


# Weibull --------------------------------------------------------------------------------------------------------------


def weibull_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Weibull: a duration y > 0 whose rate grows or falls as a power of time.

    log p(y) = log shape − log y + w − eʷ with w = shape · log(y / scale).

    - `shape`: positive; below 1 the rate of events falls with time, above 1 it grows, and 1 is the exponential.
    - `scale`: positive; a fraction 1/e of durations is longer.

    Mean scale Γ(1 + 1/shape).
    Information [[((1 − γ)² + π²/6) / shape², −(1 − γ) / scale], [·, shape² / scale²]], γ Euler's constant; verified by
    quadrature in the tests.
    In scipy: `scipy.stats.weibull_min(c=shape, scale=scale)`.
    Start: moments of log y.
    """
    y, shape, scale = floats(y, params["shape"], params["scale"])
    outside = y <= 0
    y = jnp.where(outside, 1.0, y)
    w = shape * jnp.log(y / scale)
    return outside_support(outside, jnp.log(shape) - jnp.log(y) + w - jnp.exp(w))


def weibull_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    e, shape, scale = floats(-jnp.log1p(-floats(uniform)[0]), params["shape"], params["scale"])
    return scale * e ** (1.0 / shape)


def weibull_information(params: Params) -> Nested:
    shape, scale = floats(params["shape"], params["scale"])
    of_shape = GUMBEL_INFORMATION[2] / shape**2
    return symmetric(("shape", "scale"), of_shape, -ONE_MINUS_EULER / scale, (shape / scale) ** 2)


def _log_of_ratio(params: Params, y: ArrayLike) -> tuple[Array, Array]:
    """shape · log(y / scale), and whether y lies below the support, where it is that of one scale."""
    y, shape, scale = floats(y, params["shape"], params["scale"])
    before = y <= 0
    return shape * jnp.log(jnp.where(before, scale, y) / scale), before


def weibull_log_cdf(params: Params, y: ArrayLike) -> Scalar:
    w, before = _log_of_ratio(params, y)
    return outside_support(before, log_inverse_cloglog(w))


def weibull_log_survival(params: Params, y: ArrayLike) -> Scalar:
    w, before = _log_of_ratio(params, y)
    return before_support(before, -jnp.exp(w))


def weibull_mean(params: Params) -> Scalar:
    shape, scale = floats(params["shape"], params["scale"])
    return scale * jnp.exp(gammaln(1.0 + 1.0 / shape))


@starting_values
def weibull_initial(y: ArrayLike) -> dict[str, Any]:
    # −log y is Gumbel with scale 1 / shape
    s = Sample(y, above_zero)
    mean, deviation = s.of(s.xp.log(s.y)).moments(otherwise=1.0)
    inverse = deviation * math.sqrt(6.0) / math.pi
    scale = s.xp.minimum(s.xp.exp(mean + EULER * inverse), s.extremes()[1])
    return s.params(shape=s.positive(1.0 / inverse), scale=s.positive(scale))


weibull = Family(
    weibull_log_density,
    ("shape", "scale"),
    main="scale",
    quantile=weibull_quantile,
    constraints={"shape": positive, "scale": positive},
    initial=weibull_initial,
    information=weibull_information,
    log_cdf=weibull_log_cdf,
    log_survival=weibull_log_survival,
    mean=weibull_mean,
    support=(0.0, math.inf),
)


# Log-logistic ---------------------------------------------------------------------------------------------------------


def log_logistic_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Log-logistic: a duration y > 0 whose logarithm is logistic; the odds of an event grow as a power of time.

    log p(y) = log shape − log y + log F + log(1 − F), F = 1 / (1 + e^{−w}) the distribution function, w = shape · log(y / scale).

    - `scale`: positive, the median.
    - `shape`: positive; the tail falls as y^{−shape}. Above 1 the rate of events first grows and then falls, below it only falls.

    Mean scale (π/shape) / sin(π/shape) for shape > 1, else infinite.
    Information diag(shape² / (3 scale²), (3 + π²) / (9 shape²)); derived, and verified by quadrature in the tests.
    In scipy: `scipy.stats.fisk(c=shape, scale=scale)`.
    Start: moments of log y.
    """
    w, outside = _log_of_ratio(params, y)
    y, shape = floats(y, params["shape"])
    value = jnp.log(shape) - jnp.log(jnp.where(outside, 1.0, y)) + log_sigmoid(w) + log_sigmoid(-w)
    return outside_support(outside, value)


def log_logistic_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    u, shape, scale = floats(uniform, params["shape"], params["scale"])
    return scale * jnp.exp((jnp.log(u) - jnp.log1p(-u)) / shape)


def log_logistic_information(params: Params) -> Nested:
    scale, shape = floats(params["scale"], params["shape"])
    return symmetric(("scale", "shape"), (shape / scale) ** 2 / 3.0, 0.0, (3.0 + math.pi**2) / 9.0 / shape**2)


def log_logistic_log_cdf(params: Params, y: ArrayLike) -> Scalar:
    w, before = _log_of_ratio(params, y)
    return outside_support(before, log_sigmoid(w))


def log_logistic_log_survival(params: Params, y: ArrayLike) -> Scalar:
    w, before = _log_of_ratio(params, y)
    return before_support(before, log_sigmoid(-w))


def log_logistic_mean(params: Params) -> Scalar:
    scale, shape = floats(params["scale"], params["shape"])
    finite = shape > 1.0
    x = math.pi / jnp.where(finite, shape, 2.0)
    return jnp.where(finite, scale * x / jnp.sin(x), jnp.inf)


@starting_values
def log_logistic_initial(y: ArrayLike) -> dict[str, Any]:
    # log y is logistic with scale 1 / shape
    s = Sample(y, above_zero)
    mean, deviation = s.of(s.xp.log(s.y)).moments(otherwise=1.0)
    scale = s.xp.minimum(s.xp.exp(mean), s.extremes()[1])
    return s.params(scale=s.positive(scale), shape=s.positive(math.pi / (math.sqrt(3.0) * deviation)))


log_logistic = Family(
    log_logistic_log_density,
    ("scale", "shape"),
    quantile=log_logistic_quantile,
    constraints={"scale": positive, "shape": positive},
    initial=log_logistic_initial,
    information=log_logistic_information,
    log_cdf=log_logistic_log_cdf,
    log_survival=log_logistic_log_survival,
    mean=log_logistic_mean,
    support=(0.0, math.inf),
)
