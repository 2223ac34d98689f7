"""Derivatives against closed forms, in either mode, whole or in chunks."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import some_of
from jax.scipy.stats import norm

import fisher_jax as fj
from fisher_jax.blocks import vmap_in_blocks
from fisher_jax.information.derivatives import check_arguments
from fisher_jax.models import likelihood as likelihoods

N = 400


def normal_regression():
    """A function with an object of its own at each call, so that nothing compiled under other settings serves it."""
    own = object()
    return lambda beta, y, x: norm.logpdf(y, jnp.dot(x, beta), 1.5) if own else 0.0


regression = normal_regression()


def series(params, y):
    return norm.logpdf(y[1:], params["phi"] * y[:-1], 1.0)


def problem(p):
    rng = np.random.default_rng(p)
    x = rng.normal(size=(N, p))
    return rng.normal(size=p), rng.normal(size=N), x


def test_rows_in_blocks_are_those_at_once_and_the_function_is_traced_once():
    traced = []

    def function(row):
        traced.append(row)
        return {"sum": jnp.sum(row["x"])}

    rows = {"x": jnp.arange(14.0).reshape(7, 2)}
    for at_once in (3, 7, 100):
        np.testing.assert_array_equal(vmap_in_blocks(function, rows, at_once)["sum"], np.sum(rows["x"], axis=1))
    assert len(traced) == 3


CASES = list(itertools.product((False, True), (1, 3, 4, 20), (2**19, 2**10)))
# Each two of these settings meet in every run.
MEETING = [(True, 1, 2**19), (False, 1, 2**10), (False, 4, 2**19), (True, 4, 2**10)]


@pytest.mark.parametrize(("weighted", "p", "chunk"), some_of(CASES, *MEETING))
def test_all_derivatives_of_a_regression_have_their_closed_form(p, chunk, weighted, monkeypatch):
    monkeypatch.setattr(likelihoods, "CHUNK_ENTRIES", chunk)
    regression = normal_regression()
    beta, y, x = problem(p)
    w = np.random.default_rng(0).integers(0, 4, N).astype(float) if weighted else np.ones(N)
    given = {"given": x, "weights": w if weighted else None}
    s = x * ((y - x @ beta) / 1.5**2)[:, None]
    vector = np.arange(1.0, p + 1.0)
    hessian = -(x.T * w) @ x / 1.5**2
    np.testing.assert_allclose(
        fj.log_likelihood(regression, beta, y, **given), np.sum(w * norm.logpdf(y, x @ beta, 1.5)), rtol=1e-12
    )
    np.testing.assert_allclose(fj.scores(regression, beta, y, **given), s * w[:, None], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(fj.score(regression, beta, y, **given), w @ s, rtol=1e-10)
    np.testing.assert_allclose(fj.hessian(regression, beta, y, **given), hessian, rtol=1e-10, atol=1e-9)
    product = fj.hessian_vector_product(regression, beta, y, vector, **given)
    np.testing.assert_allclose(product, hessian @ vector, rtol=1e-9)
    np.testing.assert_allclose(fj.hessian_vector_product(regression, beta, y, **given)(vector), product, rtol=1e-12)
    np.testing.assert_allclose(
        fj.observed_information(regression, beta, y, **given), -hessian / w.sum(), rtol=1e-10, atol=1e-9
    )
    np.testing.assert_allclose(
        fj.empirical_fisher(regression, beta, y, **given), (s.T * w) @ s / w.sum(), rtol=1e-9, atol=1e-12
    )


def test_weights_count_observations_as_often_as_they_say():
    y = np.array([1.0, 2.0, 5.0])
    density = lambda p, y: norm.logpdf(y, p["loc"], p["scale"])  # noqa: E731
    model = fj.Model(density, constraints={"scale": fj.positive})
    start = {"loc": 0.0, "scale": 1.0}
    weighted = fj.fit(model, start, y, weights=np.array([3, 1, 2]))
    repeated = fj.fit(model, start, np.repeat(y, [3, 1, 2]))
    assert weighted.num_observations == 6
    for kind in ("observed", "empirical", "sandwich"):
        np.testing.assert_allclose(weighted.covariance(kind), repeated.covariance(kind), rtol=1e-7)
    np.testing.assert_allclose(weighted.bic(), repeated.bic(), rtol=1e-12)


@pytest.mark.parametrize("p", [2, 4])
def test_an_observation_of_weight_zero_is_not_there_whatever_it_holds(p):
    _, y, x = problem(p)
    w = np.ones(N)
    y[5], w[5], x[9], w[9] = np.nan, 0.0, np.inf, 0.0
    kept = w > 0
    some = fj.fit(regression, np.zeros(p), y, given=x, weights=w)
    all_of_them = fj.fit(regression, np.zeros(p), y[kept], given=x[kept])
    assert some.status is fj.Status.CONVERGED
    np.testing.assert_allclose(some.params, all_of_them.params, rtol=1e-9)
    np.testing.assert_allclose(some.covariance("sandwich"), all_of_them.covariance("sandwich"), rtol=1e-8, atol=1e-14)


def test_dependent_terms_give_the_closed_form_of_an_autoregression():
    rng = np.random.default_rng(0)
    y = np.zeros(300)
    for t in range(1, 300):
        y[t] = 0.6 * y[t - 1] + rng.normal()
    fit = fj.fit(fj.dependent(series), {"phi": 0.0}, y)
    assert fit.num_observations == 299
    np.testing.assert_allclose(fit.params["phi"], y[1:] @ y[:-1] / (y[:-1] @ y[:-1]), rtol=1e-10)
    np.testing.assert_allclose(fit.standard_errors()["phi"], (y[:-1] @ y[:-1]) ** -0.5, rtol=1e-10)
    s = (y[1:] - fit.params["phi"] * y[:-1]) * y[:-1]
    np.testing.assert_allclose(fit.standard_errors("empirical")["phi"], (s @ s) ** -0.5, rtol=1e-9)


def test_forward_and_reverse_mode_agree(monkeypatch):
    beta, y, x = problem(3)
    forward = fj.hessian(regression, beta, y, given=x)
    monkeypatch.setattr(likelihoods, "FORWARD_UP_TO", 0)
    np.testing.assert_allclose(fj.hessian(normal_regression(), beta, y, given=x), forward, rtol=1e-12)


def test_derivatives_are_those_of_the_users_own_parameters_whatever_the_constraints():
    density = lambda p, y: norm.logpdf(y, p["loc"], p["scale"])  # noqa: E731
    bound = fj.Model(density, constraints={"scale": fj.positive})
    point, y = {"loc": 1.0, "scale": 2.0}, np.array([0.0, 3.0, 4.0])
    np.testing.assert_allclose(fj.hessian(bound, point, y), fj.hessian(density, point, y), rtol=1e-14)
    assert set(fj.score(bound, point, y)) == {"loc", "scale"}


def test_memory_stays_that_of_a_chunk_for_the_outer_products_of_a_million_scores():
    compiled = (
        jax.jit(lambda x, y: fj.empirical_fisher(regression, jnp.zeros(20), y, given=x).matrix)
        .lower(jax.ShapeDtypeStruct((10**6, 20), jnp.float64), jax.ShapeDtypeStruct((10**6,), jnp.float64))
        .compile()
    )
    held = compiled.memory_analysis().temp_size_in_bytes
    assert held < 10**6 * 20 * 8 / 10  # a tenth of the scores, had they all been held


def test_single_precision_parameters_with_double_precision_data_in_uneven_chunks(monkeypatch):
    monkeypatch.setattr(likelihoods, "CHUNK_ENTRIES", 2**10)
    beta, y, x = problem(5)
    regression, beta = normal_regression(), jnp.asarray(beta, jnp.float32)
    data = {"data": y[:301], "given": x[:301]}
    for function in (fj.score, fj.hessian, fj.empirical_fisher):
        found = jnp.asarray(np.asarray(function(regression, beta, **data)))
        exact = function(regression, np.asarray(beta, float), **data)
        np.testing.assert_allclose(found, exact, rtol=1e-3, atol=1e-2)
    assert fj.empirical_fisher(regression, beta, **data).matrix.dtype == jnp.float32


def test_one_pass_gives_all_derivatives_and_scores_in_chunks_that_overlap(monkeypatch):
    """What a fit with latent effects takes, here of a regression, whose closed form is known."""
    monkeypatch.setattr(likelihoods, "CHUNK_ENTRIES", 2**10)  # two chunks of 200 of the 399 rows
    beta, y, x = problem(4)
    y, x, w = y[1:], x[1:], np.random.default_rng(0).integers(0, 4, N - 1).astype(float)
    model, layout, values, dataset = check_arguments(normal_regression(), beta, y, x, w)

    @jax.jit
    def one_pass(y):
        target = likelihoods.likelihood(model, layout, values, dataclasses.replace(dataset, data=y))
        return likelihoods.derivatives_and_scores_at(target, jnp.asarray(beta))

    derivatives, finite, products = one_pass(y)
    s = x * ((y - x @ beta) / 1.5**2)[:, None]
    np.testing.assert_allclose(derivatives.terms, w * norm.logpdf(y, x @ beta, 1.5), rtol=1e-12)
    np.testing.assert_allclose(derivatives.gradient, w @ s, rtol=1e-10)
    np.testing.assert_allclose(derivatives.curvature, (x.T * w) @ x / 1.5**2, rtol=1e-10, atol=1e-9)
    np.testing.assert_allclose(products, (s.T * w) @ s, rtol=1e-10, atol=1e-9)
    assert np.all(finite)
    uncounted, counted = np.flatnonzero(w == 0)[5], np.flatnonzero(w)[-5]
    y[[uncounted, counted]] = np.nan
    assert np.flatnonzero(~one_pass(y)[1]).tolist() == [counted]
