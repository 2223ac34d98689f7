"""New observations: intervals against closed forms, coverage, scoring rules, and scores of observations left out."""

import copy
import functools
import pickle
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.stats as st
import statsmodels.api as sm
from jax.scipy.stats import norm, poisson
from scipy.special import betaln

import fisher_jax as fj

N = 12
X = np.linspace(0.0, 1.0, N)
DESIGN = np.column_stack([np.ones(N), X])
Y = 1.0 + 2.0 * X + np.random.default_rng(0).normal(size=N)
NEW = np.array([0.5, 1.5])
START = {"a": 0.0, "b": 0.0, "scale": 1.0}
FLAT_START = {"a": 0.0, "scale": 1.0}


def straight(params, x):
    return {"loc": params["a"] + params["b"] * x, "scale": params["scale"]}


def level_only(params, x):
    return {"loc": params["a"] + 0.0 * x, "scale": params["scale"]}


LINE = fj.linked(fj.families.normal, straight, constraints={"scale": fj.positive})
FLAT = fj.linked(fj.families.normal, level_only, constraints={"scale": fj.positive})
COUNTS = fj.Model(
    lambda params, y: poisson.logpmf(y, params["rate"]),
    log_cdf=lambda params, y: jnp.log(poisson.cdf(jnp.floor(y), params["rate"])),
    constraints={"rate": fj.positive},
    support=(0.0, np.inf),
    discrete=True,
)
POINT = fj.Model(lambda params, y: norm.logpdf(y, params["loc"], 1.0))  # a density and nothing else


@functools.cache
def line():
    return fj.fit(LINE, START, Y, given=X)


@functools.cache
def counts():
    return fj.fit(COUNTS, {"rate": 1.0}, np.array([0.0, 2.0, 1.0, 4.0, 2.0]))


@functools.cache
def spread():
    return fj.fit(fj.families.exponential, None, np.array([0.3, 1.2, 0.1, 2.7, 0.9]))


def least_squares(x, y):
    """Coefficients, the unbiased standard deviation, and the leverage of new rows."""
    beta, residual = np.linalg.lstsq(x, y, rcond=None)[:2]
    new = np.column_stack([np.ones(len(NEW)), NEW])
    return beta, np.sqrt(residual[0] / (len(y) - 2)), np.einsum("ij,jk,ik->i", new, np.linalg.inv(x.T @ x), new)


def students_interval(level=0.95):
    beta, s, leverage = least_squares(DESIGN, Y)
    reach = st.t.ppf(0.5 * (1 + level), N - 2) * s * np.sqrt(1 + leverage)
    return (beta[0] + beta[1] * NEW)[:, None] + np.array([-1.0, 1.0]) * reach[:, None]


# --- predictive distributions -----------------------------------------------------------------------------------------


def test_plug_in_intervals_are_the_quantiles_at_the_estimate():
    fit = line()
    loc, scale = fit.params["a"] + fit.params["b"] * NEW, fit.params["scale"]
    predicted = fj.predictive_distribution(fit, NEW, method="plug-in")
    expected = np.column_stack(st.norm.interval(0.9, loc, scale))
    np.testing.assert_allclose(predicted.intervals(0.9), expected, rtol=1e-12)
    np.testing.assert_allclose(predicted.cdf(2.0), st.norm.cdf(2.0, loc, scale), rtol=1e-12)
    assert predicted.effective_points == 1.0


def test_intervals_by_the_likelihood_are_students_of_a_normal_regression():
    predicted, expected = fj.predictive_distribution(line(), NEW), students_interval()
    np.testing.assert_allclose(predicted.intervals(), expected, atol=0.02)
    np.testing.assert_allclose(predicted.cdf(expected[:, 1]), 0.975, atol=0.001)
    beta, s, leverage = least_squares(DESIGN, Y)
    density = st.t.logpdf(2.0, N - 2, beta[0] + beta[1] * NEW, s * np.sqrt(1 + leverage))
    np.testing.assert_allclose(predicted.log_density(np.full(2, 2.0)), density, atol=0.02)
    np.testing.assert_allclose(predicted.mean(), beta[0] + beta[1] * NEW, atol=0.01)


def test_intervals_calibrated_by_replicates_are_students_of_a_normal_regression():
    replicates = fj.bootstrap(line(), jax.random.key(1), 3000, method="parametric")
    predicted = fj.predictive_distribution(line(), NEW, method="bootstrap", replicates=replicates)
    expected = students_interval()
    np.testing.assert_allclose(predicted.intervals(), expected, atol=0.04 * np.ptp(expected[0]))
    np.testing.assert_allclose(predicted.cdf(expected[:, 0]), 0.025, atol=0.003)


def test_of_a_small_regression_the_plug_in_covers_too_rarely_and_the_likelihood_as_often_as_it_says():
    """Of one row; coverage given the estimate is exact, so that only the spread over data sets is Monte Carlo error."""
    rng = np.random.default_rng(5)
    coverage = {"plug-in": [], "likelihood": []}
    for _ in range(60):
        y = 1.0 + 2.0 * X + rng.normal(size=N)
        fit = fj.fit(LINE, START, y, given=X)
        for method, values in coverage.items():
            low, high = fj.predictive_distribution(fit, NEW, method=method, num_points=256).intervals()[1]
            values.append(st.norm.cdf(high, 4.0) - st.norm.cdf(low, 4.0))
    # Of the pivot, whose distribution is Student's with n − 2 degrees of freedom.
    plug_in, leverage = st.norm.ppf(0.975) * np.sqrt((N - 2) / N), least_squares(DESIGN, Y)[2][1]
    exact = 2.0 * st.t.cdf(plug_in / np.sqrt(1.0 + leverage), N - 2) - 1.0
    for method, expected in (("plug-in", exact), ("likelihood", 0.95)):
        error = np.std(coverage[method]) / np.sqrt(60)
        assert abs(np.mean(coverage[method]) - expected) < 3.5 * error + 0.003
    assert exact < 0.8
    assert np.mean(coverage["likelihood"]) - np.mean(coverage["plug-in"]) > 0.1


def test_a_prior_counts_in_the_predictive_distribution():
    """Of a normal mean with a normal prior: N(m, v + 1) with v = 1/(n + λ)."""
    y, strength = np.array([1.4, 3.0, 2.2]), 2.0
    model = fj.Model(
        POINT.log_density,
        log_cdf=lambda params, y: norm.logcdf(y, params["loc"], 1.0),
        log_survival=lambda params, y: norm.logsf(y, params["loc"], 1.0),
        prior=lambda params, strength: -0.5 * strength * params["loc"] ** 2,
    )
    fit = fj.fit(model, {"loc": 0.0}, y, strength=strength)
    v = 1.0 / (len(y) + strength)
    exact = st.norm(v * y.sum(), np.sqrt(1.0 + v))
    predicted = fj.predictive_distribution(fit)
    np.testing.assert_allclose(predicted.intervals(0.9)[0], exact.interval(0.9), atol=0.01)
    np.testing.assert_allclose(predicted.log_density(y), exact.logpdf(y), atol=0.01)


def test_of_a_model_with_an_auxiliary_measurement_its_rows_are_predicted():
    model = fj.with_auxiliary(fj.families.exponential, lambda params, m: norm.logpdf(m, params["rate"], 0.1))
    y = np.array([0.3, 1.2, 0.1, 2.7, 0.9])
    fit = fj.fit(model, {"rate": 1.0}, (y, 0.7))
    rate = float(fit.params["rate"])
    predicted = fj.predictive_distribution(fit, method="plug-in")
    np.testing.assert_allclose(predicted.intervals(0.9)[0], st.expon.interval(0.9, scale=1 / rate), rtol=1e-9)
    np.testing.assert_allclose(fj.predictive_scores(fit).values, rate * y - np.log(rate), rtol=1e-9)


def test_of_exponential_observations_the_predictive_distribution_is_that_of_f():
    n, mean = 5, 1.04
    predicted = fj.predictive_distribution(spread())
    levels = np.array([0.05, 0.5, 0.95, 0.999])
    np.testing.assert_allclose(st.f.cdf(predicted.quantiles(levels)[0] / mean, 2, 2 * n), levels, atol=0.002)
    np.testing.assert_allclose(predicted.cdf(predicted.quantiles(levels)[0]), levels, rtol=1e-9)


def test_limits_of_counts_are_whole_numbers_with_at_least_their_probability():
    """A flat prior for log rate makes the predictive distribution negative binomial."""
    total, n = 9.0, 5
    exact = st.nbinom(total, n / (n + 1.0))
    for level in (0.5, 0.8, 0.95):
        low, high = fj.predictive_distribution(counts()).intervals(level)[0]
        tail = 0.5 * (1 - level)
        assert (low, high) == (exact.ppf(tail), exact.ppf(1 - tail))
        assert exact.cdf(high) - exact.cdf(low - 1) >= level
    low, high = fj.predictive_distribution(counts(), method="plug-in").intervals(0.8)[0]
    assert (low, high) == (st.poisson.ppf(0.1, 1.8), st.poisson.ppf(0.9, 1.8))
    k = np.arange(12.0)
    np.testing.assert_allclose(fj.predictive_distribution(counts()).log_density(k), exact.logpmf(k), atol=0.02)


def test_a_discrete_family_with_quantiles_has_the_same_limits_as_its_exact_predictive_distribution():
    """Geometric with a flat prior for the logit of its probability: a beta-geometric distribution."""
    y = np.array([1.0, 3.0, 2.0, 7.0, 1.0, 4.0, 2.0, 2.0])
    predicted = fj.predictive_distribution(fj.fit(fj.families.geometric, None, y))
    k, n, failures = np.arange(200), len(y), np.sum(y - 1)
    cdf = np.cumsum(np.exp(betaln(n + 1, failures + k) - betaln(n, failures)))
    assert predicted.intervals(0.9)[0].tolist() == (1.0 + np.searchsorted(cdf, [0.05, 0.95])).tolist()
    np.testing.assert_allclose(predicted.cdf(1.0 + k[:10]), cdf[:10], atol=0.003)


def test_draws_of_several_rows_share_their_parameters():
    predicted = fj.predictive_distribution(line(), NEW)
    draws = predicted.sample(jax.random.key(0), 20_000)
    assert draws.shape == (20_000, 2)
    new = np.column_stack([np.ones(2), NEW])
    _, s, _ = least_squares(DESIGN, Y)
    covariance = s**2 * (N - 2) / (N - 4) * (np.eye(2) + new @ np.linalg.inv(DESIGN.T @ DESIGN) @ new.T)
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=0.03)


def test_of_a_formula_new_rows_come_as_a_table():
    table = pd.DataFrame({"y": Y, "x": X})
    fit = fj.formula("y ~ x", fj.families.normal, table).fit()
    new = pd.DataFrame({"x": NEW}, index=["in", "out"])
    predicted = fj.predictive_distribution(fit, new)
    np.testing.assert_allclose(predicted.intervals(), students_interval(), rtol=0.02)
    frame = predicted.to_frame(0.8)
    assert list(frame.index) == ["in", "out"]
    assert list(frame.columns) == ["median", "lower", "upper"]
    assert "in   " in str(predicted)
    assert "lower 95 %" in str(predicted)
    scores = fj.predictive_scores(fit, "log", np.array([2.0, 3.0]), given=new)
    expected = fj.predictive_scores(line(), "log", np.array([2.0, 3.0]), given=NEW)
    np.testing.assert_allclose(scores.values, expected.values, rtol=1e-5)


def test_of_censored_durations_it_is_the_duration_that_is_predicted():
    table = {"t": np.array([1.0, 3.0, 2.0, 5.0, 4.0]), "died": np.array([1, 1, 1, 0, 1]), "x": np.arange(5.0)}
    fit = fj.formula("t ~ 1", fj.families.exponential, table, event="died").fit()
    predicted = fj.predictive_distribution(fit, {"x": [0.0]}, method="plug-in")
    np.testing.assert_allclose(predicted.intervals(0.9)[0], st.expon.interval(0.9, scale=15.0 / 4), rtol=1e-7)


def test_a_failed_fit_predicts_nothing():
    y, x = np.array([0.0, 0.0, 1.0, 1.0]), np.arange(4.0)
    model = fj.linked(fj.families.bernoulli, lambda beta, x: {"logit": beta[0] + beta[1] * x})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fj.FitWarning)
        fit = fj.fit(model, np.zeros(2), y, given=x)
        predicted = fj.predictive_distribution(fit)
        assert np.all(np.isnan(predicted.intervals()))
        assert np.all(np.isnan(predicted.cdf(0.0)))
        assert np.all(np.isnan(fj.predictive_scores(fit, "brier").values))
    with pytest.warns(fj.FitWarning, match="not to be relied on"):
        fj.predictive_distribution(fit)


def test_a_predictive_distribution_is_copied_and_pickled():
    predicted = fj.predictive_distribution(line(), NEW, method="plug-in")
    for other in (pickle.loads(pickle.dumps(predicted)), copy.deepcopy(predicted)):
        np.testing.assert_array_equal(other.intervals(), predicted.intervals())


def test_in_single_precision():
    y = Y.astype(np.float32)
    fit = fj.fit(fj.families.normal, {"loc": np.float32(0.0), "scale": np.float32(1.0)}, y)
    predicted = fj.predictive_distribution(fit)
    assert predicted.intervals().dtype == np.float32
    expected = st.t.interval(0.95, N - 1, np.mean(Y), np.std(Y, ddof=1) * np.sqrt(1 + 1 / N))
    np.testing.assert_allclose(predicted.intervals()[0], expected, atol=0.03)
    crps = fj.predictive_scores(fit, "crps", y).values
    np.testing.assert_allclose(crps, normal_crps(Y, np.mean(Y), np.std(Y)), rtol=1e-4, atol=1e-5)


# --- scoring rules ----------------------------------------------------------------------------------------------------


def normal_crps(y, loc, scale):
    """Gneiting and Raftery 2007, eq. (5) of Gneiting et al. 2005 in other words."""
    z = (y - loc) / scale
    return scale * (z * (2 * st.norm.cdf(z) - 1) + 2 * st.norm.pdf(z) - 1 / np.sqrt(np.pi))


def test_crps_of_continuous_families_is_its_closed_form():
    fit = line()
    loc, scale = fit.params["a"] + fit.params["b"] * X, float(fit.params["scale"])
    np.testing.assert_allclose(fj.predictive_scores(fit, "crps").values, normal_crps(Y, loc, scale), rtol=1e-11)
    far = np.array([60.0, -40.0] + [1.0] * (N - 2))
    np.testing.assert_allclose(
        fj.predictive_scores(fit, "crps", far, given=X).values, normal_crps(far, loc, scale), rtol=1e-11
    )
    rate, y = float(spread().params["rate"]), np.array([0.0, 0.2, 1.0, 9.0, -1.0])
    inside = np.maximum(y, 0.0)
    expected = np.abs(y) - 2 / rate * (1 - np.exp(-rate * inside)) + 1 / (2 * rate)
    np.testing.assert_allclose(fj.predictive_scores(spread(), "crps", y).values, expected, rtol=1e-11)


def test_crps_of_long_tails_is_its_closed_form_and_none_where_it_is_infinite():
    """Friederichs and Thorarinsdottir (2012): of a generalized Pareto distribution, by 2/(1−ξ)(1 − p^{1−ξ}) and 1/(2−ξ)."""
    y = np.array([0.5, 30.0])
    family = fj.families.generalized_pareto
    model = fj.Model(
        family.log_density,
        quantile=family.quantile,
        log_survival=lambda params, y: -jnp.log1p(params["shape"] * y / params["scale"]) / params["shape"],
        constraints={"shape": fj.fixed, "scale": fj.positive},
    )
    for shape in (0.3, 0.9, 2.2):
        fit = fj.fit(model, {"scale": 1.0, "shape": shape}, st.genpareto.rvs(shape, size=30, random_state=1))
        scale, scores = float(fit.params["scale"]), fj.predictive_scores(fit, "crps", y).values
        if shape > 2:
            assert np.all(np.isnan(scores))
            continue
        above = st.genpareto.sf(y, shape, scale=scale)
        expected = y - 2 * scale / (1 - shape) * (1 - above ** (1 - shape)) + scale / (2 - shape)
        np.testing.assert_allclose(scores, expected, rtol=1e-7)


def test_crps_of_a_distribution_with_an_atom_has_the_digits_of_one_without():
    """A mixture of zero, with probability ζ, and a normal distribution, whose distribution function jumps in its middle."""
    y = np.array([0.0, -0.7, 1.5])
    fit = fj.fit(fj.hurdle(fj.families.normal), None, np.array([0.0, 0.0, 0.0, 1.1, -0.4, 2.0, 0.3, -1.2, 0.9]))
    zero, loc, scale = (float(fit.params[name]) for name in ("zero_probability", "loc", "scale"))

    # E|X − y| − ½ E|X − X'| of the mixture, by |a − N(μ, σ²)| in closed form.
    def distance(a, scale):
        return scale * (2 * st.norm.pdf(a / scale) + a / scale * (2 * st.norm.cdf(a / scale) - 1))

    to_y = zero * np.abs(y) + (1 - zero) * distance(y - loc, scale)
    within = 2 * zero * (1 - zero) * distance(loc, scale) + (1 - zero) ** 2 * distance(0.0, np.sqrt(2) * scale)
    np.testing.assert_allclose(fj.predictive_scores(fit, "crps", y).values, to_y - 0.5 * within, rtol=1e-10)


def test_crps_of_counts_is_a_sum_over_them():
    y = np.array([0.0, 2.0, 7.0, 60.0])
    k = np.arange(200.0)
    expected = [np.sum((st.poisson.cdf(k, 1.8) - (k >= value)) ** 2) for value in y]
    np.testing.assert_allclose(fj.predictive_scores(counts(), "crps", y).values, expected, rtol=1e-9)


def test_crps_of_a_mixture_is_twice_its_mean_pinball_score():
    predicted = fj.predictive_distribution(line(), NEW, num_points=16)
    y, levels = np.array([2.0, 6.0]), (np.arange(500) + 0.5) / 500
    quantiles = predicted.quantiles(levels)
    pinball = np.mean((y[:, None] - quantiles) * (levels - (y[:, None] < quantiles)), axis=1)
    np.testing.assert_allclose(fj.predictive_scores(predicted, "crps", y).values, 2 * pinball, rtol=1e-3)
    one = fj.predictive_scores(predicted, "pinball", y, level=0.9).values
    q = predicted.quantiles(0.9)
    np.testing.assert_allclose(one, (y - q) * (0.9 - (y < q)), rtol=1e-12)
    np.testing.assert_allclose(fj.predictive_scores(predicted, "log", y).values, -predicted.log_density(y), rtol=1e-12)


def test_the_other_rules_are_what_they_are_defined_as():
    fit = line()
    loc, scale = fit.params["a"] + fit.params["b"] * X, float(fit.params["scale"])
    assert fj.predictive_scores(fit).total == pytest.approx(-float(fit.log_likelihood), rel=1e-12)
    np.testing.assert_allclose(fj.predictive_scores(fit, "squared error").values, (Y - loc) ** 2, rtol=1e-12)
    low, high = st.norm.interval(0.5, loc, scale)
    expected = high - low + 4.0 * np.maximum(low - Y, 0) + 4.0 * np.maximum(Y - high, 0)
    np.testing.assert_allclose(fj.predictive_scores(fit, "interval", level=0.5).values, expected, rtol=1e-10)
    absolute = fj.predictive_scores(fit, lambda params, y, x: jnp.abs(y - params["a"] - params["b"] * x))
    np.testing.assert_allclose(absolute.values, np.abs(Y - loc), rtol=1e-12)
    coin = fj.fit(fj.families.bernoulli, None, np.array([0.0, 1.0, 1.0, 1.0]))
    np.testing.assert_allclose(fj.predictive_scores(coin, "brier").values, [0.5625, 0.0625, 0.0625, 0.0625], rtol=1e-6)


def test_errors_of_means_and_of_differences_are_those_of_statsmodels():
    first, second = (
        fj.predictive_scores(fj.fit(model, start, Y, given=X), "crps")
        for model, start in ((LINE, START), (FLAT, FLAT_START))
    )
    assert first.standard_error == pytest.approx(st.sem(first.values))
    difference = first.compare(second)
    assert difference.p_value == pytest.approx(st.ttest_rel(first.values, second.values).pvalue)
    np.testing.assert_allclose(
        difference.interval(0.9), st.ttest_rel(first.values, second.values).confidence_interval(0.9)
    )
    series = sm.OLS(difference.differences, np.ones(N))
    expected = series.fit(cov_type="HAC", cov_kwds={"maxlags": 2, "use_correction": True}).bse[0]
    assert first.compare(second, lags=2).standard_error == pytest.approx(expected)
    clusters = np.repeat(np.arange(4), 3)
    first, second = (
        fj.predictive_scores(fj.fit(model, start, Y, given=X), "crps", clusters=clusters)
        for model, start in ((LINE, START), (FLAT, FLAT_START))
    )
    expected = series.fit(cov_type="cluster", cov_kwds={"groups": clusters}).bse[0]
    assert first.compare(second).standard_error == pytest.approx(expected)
    assert first.compare(second).degrees_of_freedom == 3
    assert "less than zero: the first is better" in str(first.compare(second))


def test_weights_count_equal_observations():
    y, weights = np.array([0.5, 1.0, 2.0]), np.array([1.0, 3.0, 0.0])
    weighted = fj.predictive_scores(spread(), "log", y, weights=weights)
    repeated = fj.predictive_scores(spread(), "log", np.array([0.5, 1.0, 1.0, 1.0]))
    assert weighted.mean == pytest.approx(repeated.mean)
    assert weighted.standard_error == pytest.approx(repeated.standard_error)
    assert weighted.total == pytest.approx(repeated.total)


# --- cross-validation -------------------------------------------------------------------------------------------------


def test_leaving_one_out_is_as_a_loop_over_fits():
    expected = []
    for i in range(N):
        others = np.arange(N) != i
        beta = np.linalg.lstsq(DESIGN[others], Y[others], rcond=None)[0]
        scale = np.sqrt(np.mean((Y[others] - DESIGN[others] @ beta) ** 2))
        expected.append(-st.norm.logpdf(Y[i], DESIGN[i] @ beta, scale))
    validation = fj.cross_validation(LINE, START, Y, given=X, folds="leave one out")
    np.testing.assert_allclose(validation.values, expected, rtol=1e-6)
    assert len(validation.fits) == N
    assert np.all(validation.fits.converged)
    assert validation.mean == pytest.approx(np.mean(expected), rel=1e-6)
    crps = fj.cross_validation(LINE, START, Y, given=X, folds="leave one out", rule="crps")
    loc = validation.fits.params["a"] + validation.fits.params["b"] * X
    np.testing.assert_allclose(crps.values, normal_crps(Y, loc, validation.fits.params["scale"]), rtol=1e-6)


def test_leaving_one_out_is_near_the_influence_of_single_observations_and_half_of_tic():
    rng = np.random.default_rng(2)
    y = rng.exponential(size=200)
    validation = fj.cross_validation(fj.families.exponential, None, y, folds="leave one out")
    moved = validation.fits.params["rate"] - validation.fit.params["rate"]
    np.testing.assert_allclose(moved, fj.influence(validation.fit).deletions[:, 0], atol=3e-4)
    assert np.std(moved) > 0.004
    assert validation.total == pytest.approx(float(validation.fit.tic()) / 2, abs=0.02)


def test_folds_are_of_nearly_one_size_and_the_same_for_every_model():
    y = np.concatenate([Y, Y + 0.1])[:23]
    x = np.concatenate([X, X])[:23]
    first, second = (
        fj.cross_validation(model, start, y, given=x, folds=5, key=jax.random.key(3))
        for model, start in ((LINE, START), (FLAT, FLAT_START))
    )
    assert sorted(np.bincount(first.folds)) == [4, 4, 5, 5, 5]
    np.testing.assert_array_equal(first.folds, second.folds)
    difference = first.compare(second)
    assert difference.mean == pytest.approx(first.mean - second.mean)
    assert difference.mean < 0
    by_label = fj.cross_validation(LINE, START, y, given=x, folds=first.folds * 10)
    np.testing.assert_allclose(by_label.values, first.values, rtol=1e-6)
    assert by_label.labels.tolist() == [0, 10, 20, 30, 40]
    assert list(by_label.to_frame().columns) == ["score", "fold"]
    assert "Folds         5" in str(first)
    with pytest.raises(ValueError, match="the folds differ"):
        first.compare(fj.cross_validation(LINE, START, y, given=x, folds=5, key=jax.random.key(4)))


def test_clusters_are_left_out_as_wholes():
    clusters = np.repeat(["a", "b", "c", "d", "e", "f"], 2)
    validation = fj.cross_validation(LINE, START, Y, given=X, folds=3, key=jax.random.key(0), clusters=clusters)
    for cluster in set(clusters):
        assert len(set(validation.folds[clusters == cluster])) == 1
    alone = fj.cross_validation(LINE, START, Y, given=X, folds="leave one out", clusters=clusters)
    assert len(alone.fits) == 6
    expected = fj.cross_validation(LINE, START, Y, given=X, folds=clusters)
    np.testing.assert_allclose(alone.values, expected.values, rtol=1e-6)
    assert alone.standard_error != pytest.approx(expected.standard_error)


def test_an_observation_of_weight_zero_changes_nothing():
    weights = np.ones(N + 1)
    weights[-1] = 0.0
    x, y = np.append(X, 0.5), np.append(Y, 50.0)
    folds = np.append(np.arange(N) % 4, 0)
    validation = fj.cross_validation(LINE, START, y, given=x, weights=weights, folds=folds)
    expected = fj.cross_validation(LINE, START, Y, given=X, folds=folds[:-1])
    assert validation.mean == pytest.approx(expected.mean, rel=1e-6)
    assert validation.standard_error == pytest.approx(expected.standard_error, rel=1e-6)


def test_of_equal_observations_in_one_row_one_is_left_out():
    y, weights = np.array([0.4, 1.9, 1.1]), np.array([2.0, 1.0, 3.0])
    validation = fj.cross_validation(fj.families.exponential, None, y, weights=weights, folds="leave one out")
    repeated = np.repeat(y, weights.astype(int))
    expected = fj.cross_validation(fj.families.exponential, None, repeated, folds="leave one out")
    assert validation.total == pytest.approx(expected.total, rel=1e-6)
    assert validation.standard_error == pytest.approx(expected.standard_error, rel=1e-6)


def test_where_the_fit_of_a_fold_fails_its_scores_are_nan():
    y, x = np.array([0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0]), np.arange(8.0)
    model = fj.linked(fj.families.bernoulli, lambda beta, x: {"logit": beta[0] + beta[1] * x})
    folds = np.array([1, 2, 0, 0, 1, 2, 1, 2])  # without the first fold the others are separated
    with pytest.warns(fj.FitWarning, match="of the fits without a fold failed: 1 boundary of 3"):
        validation = fj.cross_validation(model, np.zeros(2), y, given=x, folds=folds)
    np.testing.assert_array_equal(np.isnan(validation.values), folds == 0)
    assert np.isnan(validation.mean)
    assert np.isnan(validation.standard_error)
    assert "of which the fits of 1 failed" in str(validation)


# --- bad input --------------------------------------------------------------------------------------------------------


BAD = {
    "no distribution": (lambda: fj.predictive_distribution(point()), "neither a distribution function nor quantiles"),
    "method": (lambda: fj.predictive_distribution(spread(), method="bayes"), "method='bayes' is unknown"),
    "replicates": (lambda: fj.predictive_distribution(spread(), method="bootstrap"), "needs replicates="),
    "kind": (lambda: fj.predictive_distribution(spread(), kind="observed"), 'is for method="normal"'),
    "points": (lambda: fj.predictive_distribution(spread(), num_points=3), "num_points=3 must be"),
    "covariates": (lambda: fj.predictive_distribution(spread(), NEW), "fitted without covariates"),
    "quantile level": (lambda: plugged().quantiles(1.0), "strictly between 0 and 1"),
    "y": (lambda: fj.predictive_distribution(line(), NEW, method="plug-in").cdf(Y), r"an array \(2,\)"),
    "rule": (lambda: fj.predictive_scores(spread(), "mse"), "rule='mse' is unknown"),
    "no level": (lambda: fj.predictive_scores(spread(), "pinball"), "needs a level"),
    "level": (lambda: fj.predictive_scores(spread(), "log", level=0.9), 'is for the rules "pinball" and "interval"'),
    "mean": (lambda: fj.predictive_scores(point(), "squared error"), "needs the mean"),
    "brier of a time": (lambda: fj.predictive_scores(spread(), "brier"), "0 or 1"),
    "no given": (lambda: fj.predictive_scores(line(), "log", Y), "the fit has covariates"),
    "rows": (
        lambda: fj.predictive_scores(line(), "log", Y, given=NEW),
        "data has 12 observations, and given 2 rows of covariates",
    ),
    "no data": (lambda: fj.predictive_scores(plugged()), "data is missing"),
    "no fit": (lambda: fj.predictive_scores(Y), "expected a Fit"),
    "half a count": (
        lambda: fj.predictive_scores(counts(), "crps", np.array([1.5])),
        "whole numbers here, but y is 1.5",
    ),
    "limit": (lambda: fj.predictive_scores(limited(), "crps"), "at a limit stands for all beyond"),
    "other covariates": (
        lambda: fj.predictive_scores(line(), "log", Y, given=DESIGN),
        r"given has shape \(12, 2\); expected \(m,\)",
    ),
    "one observation": (
        lambda: fj.cross_validation(fj.families.exponential, None, Y[:1], folds="leave one out"),
        "observations are left out in turn, and there is one",
    ),
    "no key": (lambda: fj.cross_validation(LINE, START, Y, given=X), "drawn at random: give a key"),
    "many folds": (lambda: fj.cross_validation(LINE, START, Y, given=X, folds=13), "more than the 12 observations"),
    "one fold": (lambda: fj.cross_validation(LINE, START, Y, given=X, folds=np.zeros(N)), "in one fold"),
    "labels": (lambda: fj.cross_validation(LINE, START, Y, given=X, folds=[0, 1]), r"expected \(12,\)"),
    "split": (
        lambda: fj.cross_validation(LINE, START, Y, given=X, folds=np.arange(N) % 2, clusters=np.arange(N) // 2),
        "a cluster is split",
    ),
    "dependent": (lambda: fj.cross_validation(fj.dependent(lambda params, y: y), 0.0, Y), "is `dependent`"),
}


def limited():
    return fj.fit(fj.censored(fj.families.exponential, high=2.0), {"rate": 1.0}, np.array([0.3, 2.0]))


def point():
    return fj.fit(POINT, {"loc": 0.0}, Y)


def plugged():
    return fj.predictive_distribution(spread(), method="plug-in")


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_explained(case):
    call, match = BAD[case]
    with pytest.raises((ValueError, TypeError), match=match):
        call()


def test_scores_of_other_observations_are_not_compared():
    first = fj.predictive_scores(spread(), "log", np.array([1.0, 2.0]))
    for other, match in (
        (fj.predictive_scores(spread(), "log", np.array([1.0])), "not of the same observations"),
        (fj.predictive_scores(spread(), "crps", np.array([1.0, 2.0])), "by the same rule"),
        (fj.predictive_scores(spread(), "log", np.array([1.0, 2.0]), weights=np.ones(2)), "other weights"),
    ):
        with pytest.raises(ValueError, match=match):
            first.compare(other)
