"""Logistic regressions, n = 500: on one design for all with p = 15 and 40, and each on its own with p = 8."""

import functools

import harness
import numpy as np
from jax.nn import log_sigmoid

import fisher_jax as fj

OBSERVATIONS = 500


def log_density(beta, y, z):
    eta = z @ beta
    return y * log_sigmoid(eta) + (1.0 - y) * log_sigmoid(-eta)


LINKED = fj.linked(fj.families.bernoulli, lambda beta, z: {"logit": z @ beta})


def problems(size, p, own_design):
    draw = np.random.default_rng(6)
    # Slopes such that the linear predictor varies alike for all p, and hardly any data set is separated.
    beta = draw.normal(0.0, 0.7 / np.sqrt(p), (size, p))
    design = draw.normal(size=(*((size,) if own_design else ()), OBSERVATIONS, p))
    design[..., 0] = 1.0
    eta = np.einsum("bnp,bp->bn", design, beta) if own_design else beta @ design.T
    y = (draw.uniform(size=eta.shape) < 1.0 / (1.0 + np.exp(-eta))).astype(np.float64)
    axis, log_likelihood = 0 if own_design else None, harness.total(log_density)
    return {
        row: harness.Problem(model, log_likelihood, np.zeros((size, p)), y, beta, design, axis)
        for row, model in {"linked": LINKED, "a plain density, z @ beta": fj.Model(log_density)}.items()
    }


def question(title, p, own_design, asked, most, first_most):
    return harness.Question(
        f"logistic regression, n = 500, p = {p}, {title}",
        functools.partial(problems, p=p, own_design=own_design),
        [(row, f"first version: {row}", asked) for row in ("linked", "a plain density, z @ beta")],
        most=most,
        first_most=first_most,
    )


QUESTIONS = {
    "regressions-15": question("one design for all", 15, False, 10.0, 20_000, 2_000),
    "regressions-40": question("one design for all", 40, False, 10.0, 5_000, 500),
    "regressions-own": question("each its own design", 8, True, 6.0, 10_000, 2_000),
}
