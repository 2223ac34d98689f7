"""Five models of different kinds, each with a start and data, for tests that must hold for any model."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import polygamma
from jax.scipy.stats import gamma, norm, poisson

import fisher_jax as fj


class Case(NamedTuple):
    model: fj.Model
    start: Any
    data: Any
    given: Any


def _gamma_information(params):
    shape, rate = params["shape"], params["rate"]
    return {
        "shape": {"shape": polygamma(1, shape), "rate": -1.0 / rate},
        "rate": {"shape": -1.0 / rate, "rate": shape / rate**2},
    }


def _logistic(beta, y, x):
    eta = jnp.dot(x, beta)
    return y * eta - jnp.logaddexp(0.0, eta)


def _logistic_information(beta, x):
    p = 1.0 / (1.0 + jnp.exp(-jnp.dot(x, beta)))
    return p * (1.0 - p) * jnp.outer(x, x)


def _counts(params, y, x):
    return poisson.logpmf(y, jnp.exp(params["intercept"] + params["slope"] * x))


def _counts_information(params, x):
    mean = jnp.exp(params["intercept"] + params["slope"] * x)
    return mean * jnp.outer(jnp.array([1.0, x]), jnp.array([1.0, x]))


def _autoregression(params, y):
    return norm.logpdf(y[1:], params["level"] + params["phi"] * y[:-1], params["scale"])


def _series(rng):
    y = np.zeros(200)
    for t in range(1, 200):
        y[t] = 0.5 + 0.6 * y[t - 1] + rng.normal()
    return y


_RNG = np.random.default_rng(11)
_X = np.column_stack([np.ones(300), _RNG.normal(size=(300, 3))])
_SHORT = np.linspace(-1.0, 1.0, 150)

MODELS = {
    "gamma": Case(
        fj.Model(
            lambda p, y: gamma.logpdf(y, p["shape"], scale=1.0 / p["rate"]),
            constraints={"shape": fj.positive, "rate": fj.positive},
            information=_gamma_information,
        ),
        {"shape": 1.0, "rate": 1.0},
        _RNG.gamma(2.5, 0.8, 200),
        None,
    ),
    "normal": Case(
        fj.Model(
            lambda p, y: norm.logpdf(y, p["loc"], p["scale"]),
            constraints={"scale": fj.positive},
            information=lambda p: jnp.diag(jnp.array([1.0, 2.0])) / p["scale"] ** 2,
        ),
        {"loc": 0.0, "scale": 1.0},
        _RNG.normal(3.0, 2.0, 100),
        None,
    ),
    "logistic": Case(
        fj.Model(_logistic, information=_logistic_information),
        np.zeros(4),
        (_RNG.uniform(size=300) < 1 / (1 + np.exp(-_X @ [0.3, 1.0, -0.5, 0.0]))).astype(float),
        _X,
    ),
    "poisson": Case(
        fj.Model(_counts, information=_counts_information),
        {"intercept": 0.0, "slope": 0.0},
        _RNG.poisson(np.exp(1.0 + 0.7 * _SHORT)),
        _SHORT,
    ),
    "autoregression": Case(
        fj.dependent(_autoregression, constraints={"scale": fj.positive}),
        {"level": 0.0, "phi": 0.0, "scale": 2.0},
        _series(_RNG),
        None,
    ),
}
