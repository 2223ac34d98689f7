"""White's information-matrix test: right as often as it says, and powerful against what it is for."""

import jax
import numpy as np
import pytest

import fisher_jax as fj
from fisher_jax.fitting.result import origin_of
from fisher_jax.inference.information_matrix_test import _rank, indicator_covariances, indicators

MODELS = {
    "normal": (fj.families.normal, {"loc": 0.0, "scale": 1.0}, lambda rng, n: rng.normal(3.0, 2.0, n)),
    "gamma": (fj.families.gamma, {"shape": 1.0, "rate": 1.0}, lambda rng, n: rng.gamma(2.0, 1.0, n)),
}


def p_values(name, count, num_replicates):
    model, start, draw = MODELS[name]
    rng = np.random.default_rng(1)
    fits = [fj.fit(model, start, draw(rng, 50)) for _ in range(count)]
    tests = [fj.information_matrix_test(fit, jax.random.key(k), num_replicates) for k, fit in enumerate(fits)]
    return np.array([test.p_value for test in tests])


def test_a_wrong_model_is_found_and_the_report_says_by_what():
    model, start, _ = MODELS["normal"]
    skewed = np.exp(np.random.default_rng(2).normal(size=100))
    found = fj.information_matrix_test(fj.fit(model, start, skewed), jax.random.key(0), 199)
    assert found.p_value == 1 / 200
    assert found.degrees_of_freedom == 2  # the entry of the mean with itself is zero at every estimate
    assert found.names == ("loc, loc", "loc, scale", "scale, scale")
    assert np.isnan(found.indicators[0])
    # for a normal, skewness and kurtosis: both too large here
    assert np.all(found.indicators[1:] > 3)
    lines = str(found).splitlines()
    assert lines[0] == "Information-matrix test"
    assert lines[3] == "  p-value          0.005, by 199 replicates from the model"
    assert lines[6].split() == ["loc,", "loc", "-"]


def test_indicators_are_those_of_a_normal_by_hand():
    """With z standardised: the entry of mean and log standard deviation is Σ z³ − 3z over n σ, hence the skewness."""
    model, start, draw = MODELS["normal"]
    data = draw(np.random.default_rng(3), 50)
    fit = fj.fit(model, start, data)
    z = (data - data.mean()) / data.std()
    expected = [0.0, np.mean(z**3) / data.std(), np.mean(z**4) - 3.0]
    np.testing.assert_allclose(indicators(fit), expected, atol=1e-6)


def test_their_spread_is_that_of_a_normal_by_hand():
    """Of Σ z³ − 3z over σ and of Σ z⁴ − 6z² + 3, the variances are 6 n/σ² and 24 n, less what is known of them from the fit."""
    model, start, draw = MODELS["normal"]
    data = draw(np.random.default_rng(3), 50)
    fit = fj.fit(model, start, data)
    found = indicator_covariances(fit, origin_of(fit), np.asarray(fit.free)[None], jax.random.key(0))[0]
    scale = float(fit.params["scale"])
    draws = 2000  # of which the variances of the third and fourth powers have standard errors of some ten per cent
    np.testing.assert_allclose(found[1, 1], 6 * 50 / scale**2, rtol=5 * np.sqrt(60 / draws))
    np.testing.assert_allclose(found[2, 2], 24 * 50, rtol=5 * np.sqrt(220 / draws))
    np.testing.assert_allclose(found[0], 0.0, atol=1e-6 * 50)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", MODELS)
def test_a_true_model_is_rejected_as_often_as_it_should_be(name):
    """At n = 50 within 3 to 7 % at a nominal 5 %, over 1000 samples (Monte Carlo error 0.7 %)."""
    rejected = np.mean(p_values(name, 1000, 199) <= 0.05)
    assert 0.03 < rejected < 0.07


def test_a_spread_that_is_not_finite_gives_no_p_value():
    model, start, draw = MODELS["normal"]
    fit = fj.fit(model, start, draw(np.random.default_rng(3), 50))
    covariances = np.broadcast_to(np.eye(3), (20, 3, 3)).copy()
    observed = np.random.default_rng(0).normal(size=(20, 3))
    assert np.isfinite(_rank(fit, observed, covariances, 99, ()).p_value)
    covariances[4, 0, 0] = np.nan
    found = _rank(fit, observed, covariances, 99, ())
    assert np.isnan(found.p_value)
    assert "not finite at 1 of 20 estimates" in " ".join(str(found).split())


def test_too_few_replicates_give_no_p_value():
    model, start, draw = MODELS["normal"]
    fit = fj.fit(model, start, draw(np.random.default_rng(3), 50))
    found = _rank(fit, np.ones((19, 3)), np.broadcast_to(np.eye(3), (19, 3, 3)), 99, ())
    assert np.isnan(found.p_value)
    assert "Only 18 replicates converged" in " ".join(str(found).split())
