"""Lifetimes: Weibull, n = 30, three in ten of them censored on average, float64."""

import harness
import jax.numpy as jnp
import numpy as np

import fisher_jax as fj

OBSERVATIONS, SHAPE, SCALE = 30, 1.5, 10.0
LIMIT = SCALE * (-np.log(0.3)) ** (1.0 / SHAPE)  # beyond which three lifetimes in ten end


def log_density(params, y):
    w = params["shape"] * jnp.log(y["time"] / params["scale"])
    log_hazard = jnp.log(params["shape"]) - jnp.log(y["time"]) + w
    return y["event"] * log_hazard - jnp.exp(w)


def problems(size):
    full = SCALE * np.random.default_rng(4).weibull(SHAPE, (size, OBSERVATIONS))
    y = {"time": np.minimum(full, LIMIT), "event": (full < LIMIT).astype(float)}
    exponential = y["time"].sum(axis=1) / np.maximum(y["event"].sum(axis=1), 1.0)
    truth = {"shape": np.full(size, SHAPE), "scale": np.full(size, SCALE)}
    model = fj.Model(log_density, constraints={"shape": fj.positive, "scale": fj.positive})
    start = {"shape": np.ones(size), "scale": exponential}
    return {"fit_batch": harness.Problem(model, harness.total(log_density), start, y, truth)}


def peers(problems, truths, goal):
    if not harness.optional("lifelines"):
        return []
    from lifelines import WeibullFitter

    def one(time, event):
        fitter = WeibullFitter().fit(time, event)
        return fitter.lambda_, fitter.rho_  # our scale and shape

    y = problems["fit_batch"].data
    call = harness.one_by_one(one, y["time"], y["event"])
    return [
        harness.Contender("lifelines WeibullFitter", harness.timed(call), min(len(y["time"]), 200), truths["fit_batch"])
    ]


QUESTIONS = {
    "survival": harness.Question(
        "Weibull, n = 30, 30 % censored",
        problems,
        [("fit_batch", "first version: fit_batch", 4.0)],
        peers,
    )
}
