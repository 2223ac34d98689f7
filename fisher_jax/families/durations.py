"""Families of durations: the time to an event, watched to its end or for a limited time."""

import math

import jax.numpy as jnp
from jax.typing import ArrayLike

from fisher_jax.families.common import (
    Nested,
    Params,
    Scalar,
    by_inversion,
    floats,
    outside_support,
    symmetric,
    with_constant,
)
from fisher_jax.families.extremes import ONE_MINUS_EULER
from fisher_jax.models.constraints import fixed, positive
from fisher_jax.models.model import Model

# Exponential ----------------------------------------------------------------------------------------------------------


def exponential_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Log-density log rate − rate y, for y ≥ 0; `rate` > 0. Information 1 / rate²."""
    y, rate = floats(y, params["rate"])
    return outside_support(y < 0, jnp.log(rate) - rate * y)


def exponential_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    return -jnp.log1p(-floats(uniform)[0]) / floats(params["rate"])[0]


def exponential_information(params: Params) -> Nested:
    return symmetric(("rate",), 1.0 / floats(params["rate"])[0] ** 2)


exponential = Model(
    exponential_log_density,
    sample=by_inversion(exponential_quantile),
    quantile=exponential_quantile,
    constraints={"rate": positive},
    information=exponential_information,
)


# Censored exponential -------------------------------------------------------------------------------------------------


def censored_exponential_log_density(params: Params, y: dict[str, ArrayLike]) -> Scalar:
    """Log-density event · log rate − rate · time of an exponential time watched until `limit` only; `rate` > 0.

    y is {"time": …, "event": …} with 0 ≤ time ≤ limit: event 1 where it ended at `time`, 0 where it was still going on then.
    With respect to length along the times of events plus a point mass at `limit`. `limit` > 0 is a known constant.
    Information of `rate` (1 − e^{−rate · limit}) / rate².
    """
    time, event, rate, limit = floats(y["time"], y["event"], params["rate"], params["limit"])
    return outside_support((time < 0) | (time > limit), event * jnp.log(rate) - rate * time)


def censored_exponential_quantile(uniform: ArrayLike, params: Params) -> dict[str, Scalar]:
    time, limit = floats(exponential_quantile(uniform, params), params["limit"])
    return {"time": jnp.minimum(time, limit), "event": (time <= limit).astype(time.dtype)}


def censored_exponential_information(params: Params) -> Nested:
    rate, limit = floats(params["rate"], params["limit"])
    return with_constant(symmetric(("rate",), -jnp.expm1(-rate * limit) / rate**2), "limit")


censored_exponential = Model(
    censored_exponential_log_density,
    sample=by_inversion(censored_exponential_quantile),
    quantile=censored_exponential_quantile,
    constraints={"rate": positive, "limit": fixed},
    information=censored_exponential_information,
)


# Weibull --------------------------------------------------------------------------------------------------------------


def weibull_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Log-density log shape − log y + w − eʷ with w = shape · log(y / scale), for y > 0; `shape` and `scale` > 0.

    Information [[((1 − γ)² + π²/6) / shape², −(1 − γ) / scale], [·, shape² / scale²]], γ Euler's constant; verified by
    quadrature in the tests.
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
    return symmetric(
        ("shape", "scale"),
        *((ONE_MINUS_EULER**2 + math.pi**2 / 6.0) / shape**2, -ONE_MINUS_EULER / scale),
        (shape / scale) ** 2,
    )


weibull = Model(
    weibull_log_density,
    sample=by_inversion(weibull_quantile),
    quantile=weibull_quantile,
    constraints={"shape": positive, "scale": positive},
    information=weibull_information,
)
