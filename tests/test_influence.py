"""What each observation does to the estimate, beside refits and textbook formulas."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import fisher_jax as fj
from fisher_jax.inference import influence as influence_module

RNG = np.random.default_rng(8)
N = 20
Z = np.stack([np.ones(N), RNG.normal(size=N)], axis=1)
Y = Z @ np.array([1.0, 2.0]) + 0.3 * RNG.normal(size=N)
GAMMA = RNG.gamma(4.0, 0.5, N)
START = {"shape": 1.0, "rate": 1.0}


def line(beta, y, z):
    return norm.logpdf(y, z @ beta, 0.3)


def without(array, i):
    return np.delete(array, i, axis=0)


def test_in_a_linear_regression_deletion_is_exact():
    found = fj.influence(fj.fit(line, jnp.zeros(2), Y, given=Z))
    gram = np.linalg.inv(Z.T @ Z)
    beta = gram @ Z.T @ Y
    for i in range(N):
        refit = np.linalg.lstsq(without(Z, i), without(Y, i))[0]
        np.testing.assert_allclose(found.deletions[i], refit - beta, rtol=1e-9, atol=1e-12)
    residuals, leverage = Y - Z @ beta, np.einsum("ni,ij,nj->n", Z, gram, Z)
    cook = residuals**2 * leverage / (0.3**2 * (1 - leverage) ** 2)  # times the number of parameters
    np.testing.assert_allclose(found.distances, np.sqrt(cook), rtol=1e-9)
    np.testing.assert_allclose(found.derivatives, (gram @ (Z * residuals[:, None]).T).T, rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def weighted():
    weights = np.ones(N)
    weights[[3, 5]] = 2.0, 0.5
    return weights, fj.fit(fj.families.gamma, START, GAMMA, weights=weights)


def test_derivatives_are_those_of_refits_with_other_weights(weighted):
    weights, fit = weighted
    found, step = fj.influence(fit), 1e-4
    for i in (0, 3, 5):
        ends = []
        for change in (step, -step):
            other = weights.copy()
            other[i] += change
            refit = fj.fit(fj.families.gamma, START, GAMMA, weights=other).params
            ends.append(np.array([refit["shape"], refit["rate"]]))
        np.testing.assert_allclose(found.derivatives[i], (ends[0] - ends[1]) / (2 * step), rtol=1e-5)


def test_deletions_are_nearly_those_of_refits_and_the_jackknife_is_the_sandwich(weighted):
    weights, fit = weighted
    found = fj.influence(fit)
    for i in (0, 3, 5):
        rest = weights.copy()
        rest[i] = 0.0
        refit = fj.fit(fj.families.gamma, START, GAMMA, weights=rest).params
        moved = np.array([refit["shape"] - fit.params["shape"], refit["rate"] - fit.params["rate"]])
        np.testing.assert_allclose(found.deletions[i], moved, rtol=0.15)
    np.testing.assert_allclose(found.jackknife_covariance, fit.covariance("sandwich"), rtol=1e-9)


def test_an_observation_of_weight_zero_moves_nothing_but_would():
    data, weights = np.append(GAMMA, [np.nan, 30.0]), np.append(np.ones(N), [0.0, 0.0])
    found = fj.influence(fj.fit(fj.families.gamma, START, data, weights=weights))
    np.testing.assert_array_equal(found.deletions[-2:], 0.0)
    assert np.isnan(found.derivatives[-2]).all()
    assert found.derivatives[-1, found.names.index("rate")] < 0  # a large one would lower the rate
    assert np.isfinite(found.jackknife_covariance).all()


def test_a_batch_is_the_same_for_each():
    fits = fj.fit_batch(line, jnp.zeros(2), Y + RNG.normal(size=(3, N)), given=Z)
    found, alone = fj.influence(fits), fj.influence(fits[1])
    assert found.derivatives.shape == found.deletions.shape == (3, N, 2)
    np.testing.assert_allclose(found.deletions[1], alone.deletions, rtol=1e-9)
    np.testing.assert_allclose(found.jackknife_covariance[1], alone.jackknife_covariance, rtol=1e-9)
    assert "20 observations on each of 3 fits" in str(found)


def test_terms_of_a_series_are_left_out_to_first_order():
    def terms(params, y):
        return norm.logpdf(y[1:], params * y[:-1], 1.0)

    found = fj.influence(fj.fit(fj.dependent(terms), 0.1, Y))
    np.testing.assert_allclose(found.deletions, -found.derivatives, rtol=1e-6)
    assert "to first order, a term each" in str(found)


def test_the_report_names_what_carries_the_fit():
    """One observation alone tells of the second group."""
    z = np.array([0.0, 0.0, 0.0, 1.0])
    y = np.array([1.0, 1.2, 0.9, 3.0])
    fit = fj.fit(
        lambda p, y, z: norm.logpdf(y, p["level"] + p["group"] * z, 1.0), {"level": 0.0, "group": 0.0}, y, given=z
    )
    found = fj.influence(fit)
    assert found.most_influential(1) == [3]
    assert np.isnan(found.distances[3])
    text = str(found)
    assert "1 without a step (-): at the estimate the curvature of the others is not positive definite." in text
    assert "Δ group" in text
    assert "Δ group" in found._repr_html_()
    assert list(found.to_frame().columns) == ["distance", "level without it", "group without it"]


def test_at_a_boundary_there_is_no_influence():
    fit = fj.fit(fj.families.gamma, START, np.full(N, 2.0), weights=np.ones(N))
    with pytest.warns(fj.FitWarning, match="influence: not to be relied on. Boundary"):
        found = fj.influence(fit)
    assert np.isnan(found.derivatives).all()


def test_many_rows_are_taken_in_chunks(monkeypatch):
    fit = fj.fit(line, jnp.zeros(2), jnp.tile(Y, 3), given=jnp.tile(Z, (3, 1)))

    def compute():  # compiled anew each time
        return jax.jit(lambda free: influence_module.influence_at(replace(fit, free=free), *fit.origin))(fit.free)

    whole = compute()
    monkeypatch.setattr(influence_module, "CHUNK_ENTRIES", 100)
    for part, all_ in zip(compute(), whole, strict=True):
        np.testing.assert_allclose(part, all_, rtol=1e-12)
