"""Likelihood ratios of restrictions written as functions: the same as those of fits of the restricted model."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from data_sets import BEEF, GAMMA
from jax.scipy.stats import norm
from scipy.optimize import minimize_scalar
from scipy.stats import gamma
from test_inference import batch
from test_oracles import fitted

import fisher_jax as fj


def shape_is_four_and_a_half(params):
    return params["shape"] - 4.5


def shape_is_one(params):
    return params["shape"] - 1.0


def mean_is_seventy(params):
    return params["shape"] / params["rate"] - 70.0


def no_rate(params):
    return params["rate"] + 1.0


@pytest.mark.parametrize(
    ("restriction", "printed"),
    [
        (shape_is_four_and_a_half, 1.90756971524),
        pytest.param(shape_is_one, 184.776565329, marks=pytest.mark.exhaustive),
    ],
)
def test_a_value_held_by_a_function_has_the_printed_ratio(restriction, printed):
    found = fj.likelihood_ratio_test(fitted("gamma"), restriction)
    np.testing.assert_allclose(found.statistic, printed, rtol=2e-11)
    assert found.degrees_of_freedom == 1
    assert found.hypothesis == ("restriction = 0",)


def test_a_curved_restriction_on_a_batch_has_the_ratios_of_the_model_written_under_it():
    found = fj.likelihood_ratio_test(batch(), mean_is_seventy)
    for k, y in enumerate([BEEF, BEEF[::-1] * 2.0]):

        def loss(shape, y=y):
            return -gamma.logpdf(y, shape, scale=70.0 / shape).sum()

        null = minimize_scalar(loss, bounds=(1.0, 9.0), method="bounded", options={"xatol": 1e-8})
        expected = 2 * (batch().log_likelihood[k] + null.fun)
        np.testing.assert_allclose(found.statistic[k], expected, rtol=1e-9)


@pytest.mark.exhaustive
def test_two_restrictions_on_a_weighted_series_match_the_values_held():
    def terms(params, y):
        return norm.logpdf(y[1:], params["level"] + params["phi"] * y[:-1], params["scale"])

    y = np.cumsum(np.random.default_rng(1).normal(size=120)) * 0.5
    model = fj.dependent(terms, constraints={"scale": fj.positive})
    fit = fj.fit(model, {"level": 0.0, "phi": 0.5, "scale": 1.0}, y, weights=np.arange(119) % 3)
    found = fj.likelihood_ratio_test(fit, lambda params: [params["phi"] - 0.8, params["level"] ** 3 + params["level"]])
    held = fj.likelihood_ratio_test(fit, {"phi": 0.8, "level": 0.0})
    np.testing.assert_allclose(found.statistic, held.statistic, rtol=1e-8)
    assert found.degrees_of_freedom == 2


def test_a_restriction_that_nothing_obeys_has_no_statistic_and_says_so():
    fit = fj.fit(fj.families.exponential, {"rate": 1.0}, BEEF)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = fj.likelihood_ratio_test(fit, no_rate)
    assert any("no parameters were found at which the restriction holds" in str(entry.message) for entry in said)
    assert np.isnan(found.statistic)
    assert "No parameters were found" in str(found)


@pytest.mark.exhaustive
def test_in_float32_the_ratio_is_that_of_float64_to_three_digits():
    start = {"shape": jnp.float32(1.0), "rate": jnp.float32(1.0)}
    found = fj.likelihood_ratio_test(fj.fit(GAMMA, start, BEEF.astype(np.float32)), shape_is_four_and_a_half)
    np.testing.assert_allclose(found.statistic, 1.90756971524, rtol=1e-3)
