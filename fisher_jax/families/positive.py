"""Families on the positive half-line: sizes, amounts, distances."""

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import erfinv, polygamma
from jax.typing import ArrayLike
from jaxtyping import Array

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
from fisher_jax.families.location_scale import normal_information, normal_log_density, normal_quantile, normal_sample
from fisher_jax.families.special import HALF_LOG_TWO_PI, log_ratio, stirling_error
from fisher_jax.models.constraints import fixed, positive
from fisher_jax.models.model import Model

# Lognormal ------------------------------------------------------------------------------------------------------------


def lognormal_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Log-density of y > 0 whose logarithm is N(loc, scale²): that of log y, less log y. Information as for `normal`."""
    y = floats(y, *params.values())[0]
    outside = y <= 0
    log_y = jnp.log(jnp.where(outside, 1.0, y))
    return outside_support(outside, normal_log_density(params, log_y) - log_y)


def lognormal_sample(key: Array, params: Params) -> Scalar:
    return jnp.exp(normal_sample(key, params))


def lognormal_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    return jnp.exp(normal_quantile(uniform, params))


lognormal = Model(
    lognormal_log_density,
    sample=lognormal_sample,
    quantile=lognormal_quantile,
    constraints={"scale": positive},
    information=normal_information,
)


# Gamma ----------------------------------------------------------------------------------------------------------------


def gamma_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Log-density shape log rate − log Γ(shape) + (shape − 1) log y − rate y, for y > 0; `shape` and `rate` > 0.

    Computed in saddle-point form: right in float32 at a shape of a million.
    Information [[ψ₁(shape), −1/rate], [·, shape/rate²]].
    """
    y, shape, rate = floats(y, params["shape"], params["rate"])
    outside = y <= 0
    y = jnp.where(outside, 1.0, y)
    log_y, difference = jnp.log(y), rate * y - shape
    deviance = difference - shape * log_ratio(difference, shape, jnp.log(rate) + log_y)
    normaliser = 0.5 * jnp.log(shape) - HALF_LOG_TWO_PI - stirling_error(shape)
    return outside_support(outside, normaliser - log_y - deviance)


def gamma_sample(key: Array, params: Params) -> Scalar:
    shape, rate = floats(params["shape"], params["rate"])
    return jax.random.gamma(key, shape, (), shape.dtype) / rate


def gamma_information(params: Params) -> Nested:
    shape, rate = floats(params["shape"], params["rate"])
    return symmetric(("shape", "rate"), polygamma(1, shape), -1.0 / rate, shape / rate**2)


gamma = Model(
    gamma_log_density,
    sample=gamma_sample,
    constraints={"shape": positive, "rate": positive},
    information=gamma_information,
)


# Rayleigh -------------------------------------------------------------------------------------------------------------


def rayleigh_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Log-density log y − 2 log scale − ½ (y / scale)², for y > 0; `scale` > 0. Information 4 / scale²."""
    y, scale = floats(y, params["scale"])
    outside = y <= 0
    z = jnp.where(outside, 1.0, y) / scale
    return outside_support(outside, jnp.log(z) - jnp.log(scale) - 0.5 * z * z)


def rayleigh_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    return floats(params["scale"])[0] * jnp.sqrt(-2.0 * jnp.log1p(-floats(uniform)[0]))


def rayleigh_information(params: Params) -> Nested:
    return symmetric(("scale",), 4.0 / floats(params["scale"])[0] ** 2)


rayleigh = Model(
    rayleigh_log_density,
    sample=by_inversion(rayleigh_quantile),
    quantile=rayleigh_quantile,
    constraints={"scale": positive},
    information=rayleigh_information,
)


# Half-normal ----------------------------------------------------------------------------------------------------------


def half_normal_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Log-density ½ log(2/π) − log scale − ½ (y / scale)², for y ≥ 0; `scale` > 0. Information 2 / scale²."""
    y, scale = floats(y, params["scale"])
    z = y / scale
    return outside_support(y < 0, math.log(2.0) - HALF_LOG_TWO_PI - jnp.log(scale) - 0.5 * z * z)


def half_normal_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    return floats(params["scale"])[0] * math.sqrt(2.0) * erfinv(floats(uniform)[0])


def half_normal_information(params: Params) -> Nested:
    return symmetric(("scale",), 2.0 / floats(params["scale"])[0] ** 2)


half_normal = Model(
    half_normal_log_density,
    sample=by_inversion(half_normal_quantile),
    quantile=half_normal_quantile,
    constraints={"scale": positive},
    information=half_normal_information,
)


# Pareto ---------------------------------------------------------------------------------------------------------------


def pareto_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Log-density log shape − log y − shape · log(y / minimum), for y ≥ minimum; `shape` > 0.

    `minimum` > 0 is a known constant: where it is a parameter, the support moves with it and no information exists.
    Information of `shape` 1 / shape².
    """
    y, shape, minimum = floats(y, params["shape"], params["minimum"])
    outside = y < minimum
    y = jnp.where(outside, minimum, y)
    return outside_support(outside, jnp.log(shape) - jnp.log(y) - shape * jnp.log(y / minimum))


def pareto_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    x, shape, minimum = floats(-jnp.log1p(-floats(uniform)[0]), params["shape"], params["minimum"])
    return minimum * jnp.exp(x / shape)


def pareto_information(params: Params) -> Nested:
    return with_constant(symmetric(("shape",), 1.0 / floats(params["shape"])[0] ** 2), "minimum")


pareto = Model(
    pareto_log_density,
    sample=by_inversion(pareto_quantile),
    quantile=pareto_quantile,
    constraints={"shape": positive, "minimum": fixed},
    information=pareto_information,
)


# Inverse Gaussian -----------------------------------------------------------------------------------------------------


def inverse_gaussian_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Log-density ½ log(shape / (2π y³)) − shape (y − mean)² / (2 mean² y), for y > 0; `mean` and `shape` > 0.

    Information diag(shape / mean³, 1 / (2 shape²)).
    """
    y, mean, shape = floats(y, params["mean"], params["shape"])
    outside = y <= 0
    y = jnp.where(outside, 1.0, y)
    z = (y - mean) / mean
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


inverse_gaussian = Model(
    inverse_gaussian_log_density,
    sample=inverse_gaussian_sample,
    constraints={"mean": positive, "shape": positive},
    information=inverse_gaussian_information,
)
