"""Variances and unit deviances of families, for Pearson and deviance residuals.

The unit deviance is d = 2 (log p(y; saturated) − log p(y; μ)): the saturated model has its mean at y, whatever the covariates, and
the other parameters as they are (McCullagh and Nelder 1989, section 2.3). That of a gamma, normal or inverse Gaussian distribution
is thereby divided by the dispersion.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.scipy.special import gamma
from jaxtyping import Array

from fisher_jax.families.common import Family
from fisher_jax.models.linked import LinkedModel
from fisher_jax.models.model import Model
from fisher_jax.numerics.stable_functions import times_log_ratio


def family_at(model: Model, params: Any, z: tuple[Any, ...]) -> tuple[Model, Any]:
    """The family behind a linked model, and its parameters for these covariates."""
    while isinstance(model, LinkedModel):
        params, z = model.log_density.predict(params, *z), ()
        model = model.family
    return model, params


def name_of_family(model: Model) -> str:
    """The name of the family that a model is or is linked to; empty where there is none."""
    while isinstance(model, LinkedModel):
        model = model.family
    return model.name if isinstance(model, Family) else ""


def _weibull(params: Any, mean: Array) -> Array:
    first, second = (gamma(1.0 + k / params["shape"]) for k in (1, 2))
    return params["scale"] ** 2 * (second - first**2)


def _student_t(params: Any, mean: Array) -> Array:
    df = params["df"]
    variance = params["scale"] ** 2 * df / jnp.where(df > 2, df - 2, 1.0)
    return jnp.where(df > 2, variance, jnp.where(df > 1, jnp.inf, jnp.nan))


def _pareto(params: Any, mean: Array) -> Array:
    shape = params["shape"]
    heavy = shape <= 2
    shape = jnp.where(heavy, 3.0, shape)
    return jnp.where(heavy, jnp.inf, params["minimum"] ** 2 * shape / ((shape - 1) ** 2 * (shape - 2)))


def _generalized_pareto(params: Any, mean: Array) -> Array:
    shape = params["shape"]
    heavy = shape >= 0.5
    shape = jnp.where(heavy, 0.0, shape)
    return jnp.where(heavy, jnp.inf, params["scale"] ** 2 / ((1 - shape) ** 2 * (1 - 2 * shape)))


def _beta_binomial(params: Any, mean: Array) -> Array:
    trials = params["trials"]
    return mean * (1 - mean / trials) * (1 + (trials - 1) / (params["concentration"] + 1))


def _zero_inflated_poisson(params: Any, mean: Array) -> Array:
    return mean * (1 + params["inflation"] * params["rate"])


def _skew_normal(params: Any, mean: Array) -> Array:
    square = params["shape"] ** 2
    return params["scale"] ** 2 * (1 - 2 / jnp.pi * square / (1 + square))


def _beta(params: Any, mean: Array) -> Array:
    return mean * (1 - mean) / (params["a"] + params["b"] + 1)


# The variance of y as a function of the family's parameters and of the mean of y.
VARIANCES: dict[str, Callable[[Any, Array], Array]] = {
    "bernoulli": lambda params, mean: mean * (1 - mean),
    "beta": _beta,
    "beta_binomial": _beta_binomial,
    "binomial": lambda params, mean: mean * (1 - mean / params["trials"]),
    "exponential": lambda params, mean: mean**2,
    "gamma": lambda params, mean: mean**2 / params["shape"],
    "generalized_pareto": _generalized_pareto,
    "geometric": lambda params, mean: mean * (mean - 1),
    "gumbel": lambda params, mean: jnp.pi**2 / 6 * params["scale"] ** 2,
    "half_normal": lambda params, mean: (1 - 2 / jnp.pi) * params["scale"] ** 2,
    "inverse_gaussian": lambda params, mean: mean**3 / params["shape"],
    "laplace": lambda params, mean: 2 * params["scale"] ** 2,
    "logistic": lambda params, mean: jnp.pi**2 / 3 * params["scale"] ** 2,
    "lognormal": lambda params, mean: jnp.expm1(params["scale"] ** 2) * mean**2,
    "negative_binomial": lambda params, mean: mean + mean**2 / params["size"],
    "normal": lambda params, mean: params["scale"] ** 2 * jnp.ones_like(mean),
    "pareto": _pareto,
    "poisson": lambda params, mean: mean,
    "rayleigh": lambda params, mean: (2 - 0.5 * jnp.pi) * params["scale"] ** 2,
    "skew_normal": _skew_normal,
    "student_t": _student_t,
    "weibull": _weibull,
    "zero_inflated_poisson": _zero_inflated_poisson,
}


def _log_ratio(y: Array, mean: Array) -> Array:
    """y log(y / mean), which is zero at y = 0."""
    return -times_log_ratio(y, mean - y, jnp.log(mean))


def _binomial(y: Array, mean: Array, trials: Any) -> Array:
    return 2 * (_log_ratio(y, mean) + _log_ratio(trials - y, trials - mean))


def _negative_binomial(y: Array, mean: Array, size: Any) -> Array:
    return 2 * (_log_ratio(y, mean) - _log_ratio(y + size, mean + size))


def _gamma(y: Array, mean: Array, shape: Any) -> Array:
    return 2 * shape * (y / mean - 1 - jnp.log(y / mean))


# The unit deviance as a function of the family's parameters, of the mean of y and of y.
UNIT_DEVIANCES: dict[str, Callable[[Any, Array, Array], Array]] = {
    "bernoulli": lambda params, mean, y: _binomial(y, mean, 1.0),
    "binomial": lambda params, mean, y: _binomial(y, mean, params["trials"]),
    "exponential": lambda params, mean, y: _gamma(y, mean, 1.0),
    "gamma": lambda params, mean, y: _gamma(y, mean, params["shape"]),
    # The failures before the first success: a negative binomial of size one.
    "geometric": lambda params, mean, y: _negative_binomial(y - 1, mean - 1, 1.0),
    "inverse_gaussian": lambda params, mean, y: params["shape"] * (y - mean) ** 2 / (mean**2 * y),
    "negative_binomial": lambda params, mean, y: _negative_binomial(y, mean, params["size"]),
    "normal": lambda params, mean, y: ((y - mean) / params["scale"]) ** 2,
    "poisson": lambda params, mean, y: 2 * (_log_ratio(y, mean) - (y - mean)),
}
