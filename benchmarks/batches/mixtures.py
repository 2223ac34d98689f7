"""Mixtures of three normals, n = 200, p = 8, float64, from the quantiles of the data."""

import harness
import jax.numpy as jnp
import numpy as np
from jax.nn import log_softmax, logsumexp

import fisher_jax as fj

OBSERVATIONS = 200
LOC, SCALE, WEIGHTS = np.array([-4.0, 0.0, 4.0]), np.array([1.0, 0.7, 1.2]), np.array([0.3, 0.4, 0.3])


def log_density(params, y):
    log_weights = log_softmax(jnp.concatenate([jnp.zeros(1), params["logits"]]))
    z = (y - params["loc"]) / params["scale"]
    return logsumexp(log_weights - 0.5 * jnp.log(2.0 * jnp.pi) - jnp.log(params["scale"]) - 0.5 * z**2)


def problems(size):
    draw = np.random.default_rng(7)
    component = draw.choice(3, p=WEIGHTS, size=(size, OBSERVATIONS))
    y = draw.normal(LOC[component], SCALE[component])
    start = {
        "loc": np.quantile(y, [1 / 6, 1 / 2, 5 / 6], axis=1).T,
        "logits": np.zeros((size, 2)),
        "scale": np.repeat(np.std(y, axis=1, keepdims=True) / 3, 3, axis=1),
    }
    logits = np.log(WEIGHTS[1:] / WEIGHTS[0])
    truth = {name: np.tile(value, (size, 1)) for name, value in {"loc": LOC, "logits": logits, "scale": SCALE}.items()}
    model = fj.Model(log_density, constraints={"scale": fj.positive})
    return {"fit_batch": harness.Problem(model, harness.total(log_density), start, y, truth)}


QUESTIONS = {
    "mixtures": harness.Question(
        "mixture of three normals, n = 200, p = 8",
        problems,
        [("fit_batch", "first version: fit_batch", 2.0)],
        most=20_000,
        first_most=5_000,
    )
}
