"""Means and covariances: stable, the same in whatever parts they came, with errors that are those of repetition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fisher_jax as fj
from fisher_jax.moments import (
    RunningMean,
    RunningMoments,
    covariance,
    covariance_matrix,
    covariance_of_moments,
    moments,
)

RNG = np.random.default_rng(3)
ROWS = RNG.gamma(2.0, size=(9000, 3)) @ np.array([[1.0, 0.4, 0.0], [0.0, 1.0, -0.7], [0.0, 0.0, 0.3]])


def together(parts):
    total = RunningMoments.empty(3)
    for part in parts:
        total = total.merge(RunningMoments.of(part))
    return total


def test_the_covariance_is_numpys():
    found = covariance_matrix(ROWS)
    np.testing.assert_allclose(found.value, np.cov(ROWS.T), rtol=1e-12)
    cross = covariance(ROWS[:, 0], ROWS[:, 1:])
    assert cross.value.shape == cross.standard_error.shape == (2,)
    np.testing.assert_allclose(cross.value, found.value[0, 1:], rtol=1e-12)
    np.testing.assert_allclose(cross.standard_error, found.standard_error[0, 1:], rtol=1e-12)
    assert covariance(ROWS[:, 0], ROWS[:, 1]).value.shape == ()


def test_a_mean_of_1e8_costs_no_digits_that_the_data_have():
    far = ROWS + 1e8  # exact deviations from here on: those of the rounded rows
    exact = np.cov((far - 1e8).T)
    np.testing.assert_allclose(covariance_matrix(far).value, exact, rtol=1e-8)
    errors = covariance_matrix(far - 1e8).standard_error
    np.testing.assert_allclose(covariance_matrix(far).standard_error, errors, rtol=1e-6)
    naive = covariance_of_moments(jnp.mean(far, axis=0), far.T @ far / len(far))
    assert np.max(np.abs(naive - exact)) > 0.1  # what the difference of moments makes of it


def test_a_mean_of_1000_costs_float32_no_digits():
    single = (ROWS + 1000.0).astype(np.float32)
    found = covariance_matrix(single)
    assert found.value.dtype == jnp.float32
    np.testing.assert_allclose(found.value, np.cov(single.astype(float).T), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shift", [0.0, 1e8])
def test_neither_order_nor_grouping_matters(shift):
    rows = ROWS + shift
    whole = RunningMoments.of(rows)
    for cuts in ([1, 2, 7], [4000, 4500], range(900, 9000, 900)):
        parts = np.split(rows, cuts)
        for order in (parts, parts[::-1]):
            for a, b in zip(together(order), whole, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-7 * np.max(np.abs(b)))


def test_a_merged_tree_is_a_merged_chain():
    parts = [RunningMoments.of(part) for part in np.split(ROWS, 8)]
    pairs = [parts[k].merge(parts[k + 1]) for k in range(0, 8, 2)]
    tree = pairs[0].merge(pairs[1]).merge(pairs[2].merge(pairs[3]))
    for a, b in zip(tree, together(np.split(ROWS, 8)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11 * np.max(np.abs(b)))


def test_a_scan_over_chunks_is_the_whole():
    step = lambda total, part: (total.merge(RunningMoments.of(part)), None)  # noqa: E731
    scanned, _ = jax.jit(lambda x: jax.lax.scan(step, RunningMoments.empty(3), x))(ROWS.reshape(9, 1000, 3))
    for a, b in zip(scanned, moments(ROWS), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11 * np.max(np.abs(b)))


def test_weights_are_frequencies_and_zero_leaves_out_even_nan():
    rows = ROWS[:6].copy()
    weights = np.array([1.0, 2.0, 0.0, 3.0, 1.0, 0.0])
    repeated = RunningMoments.of(np.repeat(rows, weights.astype(int), axis=0))
    rows[2], rows[5] = np.nan, np.inf
    for a, b in zip(moments(rows, weights=weights), repeated, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    assert np.all(np.isnan(moments(rows).mean))
    nothing = moments(rows, weights=np.zeros(6))
    assert nothing.num_rows == 0.0
    assert np.all(np.isnan(nothing.covariance().value))


def test_standard_errors_are_the_spread_over_repetitions():
    repetitions, n = 4000, 200
    x = RNG.gamma(2.0, size=(repetitions, n, 2)) + np.array([3.0, 0.0])
    x[..., 1] += 0.5 * x[..., 0]
    found = jax.vmap(RunningMoments.of)(x)
    for estimate in (jax.vmap(method)(found) for method in ESTIMATES):
        spread = np.std(estimate.value, axis=0, ddof=1)
        said = np.sqrt(np.mean(estimate.standard_error**2, axis=0))
        # The error of a standard deviation from these repetitions, and the O(1/n) bias of the estimated fourth moment.
        np.testing.assert_allclose(said, spread, rtol=4 * np.sqrt(4 / (2 * repetitions)) + 4 / n)


ESTIMATES = (RunningMoments.average, RunningMoments.covariance, RunningMoments.second_moment)


def test_the_three_definitions_of_the_covariance_agree():
    found = moments(ROWS)
    direct = np.mean(ROWS[:, :, None] * ROWS[:, None, :], axis=0)
    np.testing.assert_allclose(found.second_moment().value, direct, rtol=1e-12)
    by_moments = covariance_of_moments(found.mean, found.second_moment().value)
    np.testing.assert_allclose(by_moments * 9000 / 8999, found.covariance().value, rtol=1e-11, atol=1e-13)


def test_one_row_has_no_spread():
    found = moments(ROWS[:1])
    np.testing.assert_array_equal(found.mean, ROWS[0])
    for estimate in (found.covariance(), found.average()):
        assert np.all(np.isnan(estimate.standard_error))


def test_values_one_at_a_time_are_the_values_together():
    values = ROWS[:50] + 1e8
    seen = RunningMean.empty({"x": jax.ShapeDtypeStruct((3,), float)})
    seen = jax.lax.fori_loop(0, 50, lambda k, seen: seen.include({"x": jnp.asarray(values)[k]}), seen)
    found = seen.average()
    np.testing.assert_allclose(found.value["x"], values.mean(axis=0), rtol=1e-15)
    np.testing.assert_allclose(found.standard_error["x"], values.std(axis=0, ddof=1) / 50**0.5, rtol=1e-7)


def test_the_empirical_fisher_is_the_scores_second_moment_about_zero():
    model, params, y = fj.families.gamma, {"shape": 2.0, "rate": 1.5}, ROWS[:500, 0]
    scores = fj.scores(model, params, y)
    rows = jnp.stack([scores["shape"], scores["rate"]], axis=1)
    order = [("shape", "rate").index(name) for name in fj.empirical_fisher(model, params, y).names]
    expected = moments(rows).second_moment().value[np.ix_(order, order)]
    np.testing.assert_allclose(fj.empirical_fisher(model, params, y).matrix, expected, rtol=1e-12)
