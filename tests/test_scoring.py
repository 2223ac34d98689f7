"""One pass over the data of a linked model gives what separate passes give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fisher_jax as fj
from fisher_jax.information import scoring, scoring_at, total_expected
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.likelihood import gradient_at, likelihood
from fisher_jax.models.model import flatten_parameters

N = 7
Z = jnp.linspace(-1.0, 1.0, N)
WEIGHTS = jnp.array([1.0, 2.0, 0.0, 0.5, 1.0, 3.0, 1.0])
COUNTS = jnp.array([2, 0, 1, 3, 4, 1, 2])


def line(params, z):
    return params["level"] + params["slope"] * z


LINKED = {
    "poisson": (lambda p, z: {"rate": jnp.exp(line(p, z))}, COUNTS),
    # What the family holds fixed: an integer, and a number that moves with the parameters.
    "binomial": (lambda p, z: {"logit": line(p, z), "trials": 5}, COUNTS),
    "normal": (lambda p, z: {"loc": line(p, z), "scale": jnp.exp(0.1 * line(p, z))}, COUNTS / 3.0),
    "student_t": (lambda p, z: {"df": 5.0 + z**2, "loc": line(p, z), "scale": 1.0 + p["slope"] ** 2}, COUNTS / 3.0),
    "multivariate_normal": (
        lambda p, z: {"loc": jnp.stack([line(p, z), -z]), "covariance": jnp.array([[1.0, 0.3], [0.3, 2.0]])},
        jnp.stack([Z, Z**2], axis=1),
    ),
}


def problem(name, weights):
    predictor, data = LINKED[name]
    model = fj.linked(getattr(fj.families, name), predictor, constraints={"level": fj.positive})
    layout, values = flatten_parameters(model, {"level": 0.7, "slope": 0.3})
    sample = Dataset(data, Z, weights)
    return model, layout, values, likelihood(model, layout, values, sample)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("poisson", WEIGHTS),
        ("binomial", None),
        pytest.param("normal", WEIGHTS, marks=pytest.mark.exhaustive),
        pytest.param("student_t", None, marks=pytest.mark.exhaustive),
        pytest.param("multivariate_normal", WEIGHTS, marks=pytest.mark.exhaustive),
    ],
)
def test_scoring_in_one_pass_is_the_gradient_and_the_expected_information(name, weights):
    model, layout, values, target = problem(name, weights)
    free = jnp.asarray(layout.unconstrain(values))
    weight = N if weights is None else jnp.sum(weights)

    @jax.jit
    def compute(free):
        return (
            scoring_at(model, layout, values, target, True, free),
            gradient_at(target, free),
            total_expected(model, layout, values, Z, weight, weights),
            layout.jacobian(free),
        )

    found, (terms, gradient), total, jacobian = compute(free)
    np.testing.assert_allclose(found.terms, terms, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(found.gradient, gradient, rtol=1e-12)
    np.testing.assert_allclose(found.information, jacobian.T @ total @ jacobian, rtol=1e-11, atol=1e-14)


def test_a_number_held_fixed_by_the_family_may_move_with_the_parameters():
    def predictor(params, z):
        return {"logit": 0.3, "trials": 5.0 + jnp.exp(params * z)}

    model = fj.linked(fj.families.binomial, predictor)
    layout, values = flatten_parameters(model, 0.2)
    target = likelihood(model, layout, values, Dataset(COUNTS, Z, None))
    free = jnp.asarray(layout.unconstrain(values))
    compute = jax.jit(lambda free: (scoring_at(model, layout, values, target, True, free), gradient_at(target, free)))
    found, (_, gradient) = compute(free)
    assert gradient[0] != 0.0
    np.testing.assert_allclose(found.gradient, gradient, rtol=1e-12)


def test_chunks_of_rows_give_what_all_rows_give(monkeypatch):
    model, layout, values, _ = problem("poisson", None)
    data, given = jnp.tile(COUNTS, 200), jnp.tile(Z, 200)
    target = likelihood(model, layout, values, Dataset(data, given, None))
    free = jnp.asarray(layout.unconstrain(values))

    def compute():  # compiled anew each time
        return jax.jit(lambda free: scoring_at(model, layout, values, target, True, free))(free)

    whole = compute()
    monkeypatch.setattr(scoring, "CHUNK_ENTRIES", 1)
    parts = compute()
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11)
