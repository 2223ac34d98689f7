"""Lifetimes: Weibull, n = 30, three in ten of them censored on average, float64."""

import warnings

import common
import jax.numpy as jnp
import numpy as np

import fisher_jax as fj

OBSERVATIONS, SHAPE, SCALE = 30, 1.5, 10.0
LIMIT = SCALE * (-np.log(0.3)) ** (1.0 / SHAPE)  # beyond which three lifetimes in ten end


def log_density(params, y):
    w = params["shape"] * jnp.log(y["time"] / params["scale"])
    log_hazard = jnp.log(params["shape"]) - jnp.log(y["time"]) + w
    return y["event"] * log_hazard - jnp.exp(w)


MODEL = fj.Model(log_density, constraints={"shape": fj.positive, "scale": fj.positive})


def lifetimes(size, seed=4):
    full = SCALE * np.random.default_rng(seed).weibull(SHAPE, (size, OBSERVATIONS))
    return {"time": np.minimum(full, LIMIT), "event": (full < LIMIT).astype(float)}


def some(y, size):
    return {name: part[:size] for name, part in y.items()}


def starts(y):
    """The exponential's estimate."""
    return {"shape": np.ones(len(y["time"])), "scale": y["time"].sum(axis=1) / np.maximum(y["event"].sum(axis=1), 1.0)}


def columns(params):
    return np.stack([np.asarray(params[name]) for name in ("shape", "scale")], axis=1)


def fit(y, start=None):
    return fj.fit_batch(MODEL, starts(y) if start is None else start, y, params_axis=0)


def lifelines(y):
    from lifelines import WeibullFitter

    def one(time, event):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            found = WeibullFitter().fit(time, event)
            return [found.rho_, found.lambda_]

    return lambda size: np.array([one(y["time"][k], y["event"][k]) for k in range(size)])


def main(arguments):
    y = lifetimes(10**6 if arguments.million else arguments.fits)
    cold = common.cost_by_size(lambda size: fit(some(y, size)), len(y["time"]), arguments.laps)
    y = some(y, arguments.fits)
    size = len(y["time"])
    same = {"shape": np.full(size, SHAPE), "scale": np.full(size, SCALE)}
    truth = common.reference(lambda start: fit(y, start), (None, same), columns)
    ours = "fit_batch"
    contenders = [common.Contender(ours, lambda size: columns(fit(some(y, size)).params), size, cold=cold)]
    if common.optional("lifelines"):
        contenders.append(common.Contender("lifelines WeibullFitter", lifelines(y), min(size, 200)))
    results = common.compare(contenders, truth, arguments.laps)
    common.table("Weibull, n = 30, 30 % censored", results, ours)
