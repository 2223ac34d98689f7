"""What follows a fit with latent effects: covariances, tests, intervals, draws, many fits at once.

The reference is a linear mixed model, whose marginal density is known in closed form: every function of a fit of `mixed` must give
what it gives of the fit of that density. What concerns any model with a parameter at the edge of its range is tested with the
closed form alone, which compiles in less time. The longer half runs by `make exhaustive`.
"""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import batch_of
from scipy import stats

import fisher_jax as fj

GROUPS, ROWS = 15, 56
LENGTHS = np.array([2, 3, 4, 5, 4, 3, 5, 4, 2, 5, 4, 5, 3, 4, 3])
GROUP = np.repeat(np.arange(GROUPS), LENGTHS)
X = np.random.default_rng(1).normal(size=ROWS)
START = {"mean": 0.0, "slope": 0.0, "scale": 1.0, "sd": {"group": 1.0}}
AT_ZERO = START | {"sd": {"group": 0.0}}
CONSTRAINTS = {"scale": fj.positive, "sd": {"group": fj.positive}}
FIXED = {"scale": fj.positive, "sd": {"group": fj.fixed}}


def responses(sd, seed):
    rng = np.random.default_rng(seed)
    return 1 + 0.5 * X + sd * rng.normal(size=GROUPS)[GROUP] + 0.7 * rng.normal(size=ROWS)


Y, WITHOUT_EFFECT = responses(0.8, 2), responses(0.0, 7)
TABLE = fj.by_group({"group": GROUP, "x": X, "y": Y, "without effect": WITHOUT_EFFECT}, "group")


def predictor(params, effects, x):
    return {"loc": params["mean"] + params["slope"] * x + effects["group"], "scale": params["scale"]}


def closed_form(params, y, x):
    """The marginal log-density of a group: normal, with covariance scale² I + sd² 1 1ᵀ. y is by_group's or its rows."""
    y = y.rows if isinstance(y, fj.Grouped) else y
    variance, effect = params["scale"] ** 2, params["sd"]["group"] ** 2
    residual, n = x.weights * (y - params["mean"] - params["slope"] * x.rows), jnp.sum(x.weights)
    squares = jnp.sum(residual**2) - effect * jnp.sum(residual) ** 2 / (variance + n * effect)
    return -0.5 * (n * jnp.log(2 * jnp.pi * variance) + jnp.log1p(n * effect / variance) + squares / variance)


MIXED = fj.mixed(fj.families.normal, predictor, {"group": 0.0}, constraints={"scale": fj.positive})
CLOSED = fj.Model(closed_form, constraints=CONSTRAINTS, sample=MIXED.sample)


@functools.cache
def mixed_fit():
    return fj.fit(MIXED, START, TABLE["y"], given=TABLE["x"])


@functools.cache
def closed_fit(column="y"):
    return fj.fit(CLOSED, START, TABLE[column], given=TABLE["x"])


def quietly(function, *arguments, **keywords):
    """The result of a function that warns of a fit at its boundary."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fj.FitWarning)
        return function(*arguments, **keywords)


def words(result):
    return " ".join(str(result).replace("-\n  ", "-").split())


def gain_over_least_squares(fit, y):
    """2 (ℓ̂ − ℓ) over the regression without effects, by numpy."""
    design = np.column_stack([np.ones(ROWS), X])
    residual = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    variance = np.mean(residual**2)
    return 2 * (float(fit.log_likelihood) + 0.5 * ROWS * (np.log(2 * np.pi * variance) + 1))


# A group is an observation.


@pytest.mark.parametrize("kind", ["observed", "empirical", "sandwich"])
def test_covariances_by_group_are_those_of_the_closed_form(kind):
    assert mixed_fit().status == fj.Status.CONVERGED
    np.testing.assert_allclose(mixed_fit().covariance(kind), closed_fit().covariance(kind), rtol=1e-9, atol=1e-15)


def test_reports_count_groups_and_rows():
    assert "Observations 15 groups, 56 rows, free parameters 4" in words(mixed_fit())
    assert float(mixed_fit().num_observations) == GROUPS
    assert "Observations 15, free parameters 4" in words(closed_fit())


@pytest.mark.exhaustive
def test_robust_keeps_the_groups_and_takes_their_scores():
    robust = fj.robust(mixed_fit())
    np.testing.assert_allclose(robust.covariance(), mixed_fit().covariance("sandwich"), rtol=1e-9)
    assert "15 groups, 56 rows" in words(robust)


def test_a_function_of_the_variances_has_the_closed_forms_error():
    def correlation(params):
        return params["sd"]["group"] ** 2 / (params["sd"]["group"] ** 2 + params["scale"] ** 2)

    results = [fj.delta_method(fit, correlation) for fit in (mixed_fit(), closed_fit())]
    np.testing.assert_allclose(results[0].standard_error, results[1].standard_error, rtol=1e-8)


# A variance of zero.


@pytest.mark.exhaustive  # the closed form has the same test in every run, in a batch
def test_a_variance_of_zero_is_tested_by_the_even_mixture_and_the_report_names_it():
    test = fj.likelihood_ratio_test(mixed_fit(), "sd.group = 0")
    np.testing.assert_allclose(test.statistic, gain_over_least_squares(mixed_fit(), Y), rtol=1e-7)
    np.testing.assert_allclose(test.mixture_p_value, 0.5 * stats.chi2.sf(float(test.statistic), 1), rtol=1e-9)
    assert "½ χ² with 0 and ½ χ² with 1 degree of freedom" in words(test)


@functools.cache
def rows_fit():
    def density(params, y, x):
        return jax.scipy.stats.norm.logpdf(y, params["mean"] + params["slope"] * x, params["scale"])

    model = fj.Model(density, constraints={"scale": fj.positive})
    return fj.fit(model, {"mean": 0.0, "slope": 0.0, "scale": 1.0}, Y, given=X)


def test_a_fit_to_the_rows_without_groups_is_a_null_whose_variance_is_zero():
    test = fj.likelihood_ratio_test(mixed_fit(), rows_fit())
    np.testing.assert_allclose(test.statistic, gain_over_least_squares(mixed_fit(), Y), rtol=1e-7)
    np.testing.assert_allclose(test.mixture_p_value, 0.5 * stats.chi2.sf(float(test.statistic), 1), rtol=1e-9)
    with pytest.raises(ValueError, match="the two fits are of different data"):
        fj.likelihood_ratio_test(mixed_fit(), fj.fit(rows_fit().origin.model, rows_fit().params, Y[1:], given=X[1:]))
    with pytest.raises(ValueError, match=r"these take data of other forms.*Give the null as values"):
        fj.likelihood_ratio_test(mixed_fit(), rows_fit(), key=jax.random.key(0))


def test_no_scores_are_needed_where_the_null_lacks_nothing_but_a_variance_at_zero(monkeypatch):
    def compile_scores(fit, values):
        raise AssertionError("all parameters that are left are those of the null, which has estimated them")

    monkeypatch.setattr("fisher_jax.inference.likelihood_ratio.find_unidentified", compile_scores)
    for null in ("sd.group = 0", rows_fit()):
        assert fj.likelihood_ratio_test(mixed_fit(), null).mixture_p_value > 0
    with pytest.raises(AssertionError, match="all parameters that are left"):
        fj.likelihood_ratio_test(mixed_fit(), "slope = 0")


def test_criteria_that_count_observations_are_not_compared_between_groups_and_rows():
    table = fj.compare(mixed=mixed_fit(), rows=rows_fit())
    assert table.names == ("mixed", "rows")
    np.testing.assert_allclose(table.aic, [float(mixed_fit().aic()), float(rows_fit().aic())])
    assert np.all(np.isnan(table.bic))
    assert np.all(np.isnan(table.aicc))
    with pytest.raises(ValueError, match=r"criterion='bic' depends on the number of observations, which are groups"):
        fj.compare(mixed=mixed_fit(), rows=rows_fit(), criterion="bic")


def with_slopes(*, correlated):
    """A model with a random slope too, and where a fit starts."""

    def predictor(params, effects, x):
        return {
            "loc": params["mean"] + effects["group"] + (params["slope"] + effects["slope"]) * x,
            "scale": params["scale"],
        }

    effects, constraints = {"group": 0.0, "slope": 0.0}, {"scale": fj.positive}
    model = fj.mixed(fj.families.normal, predictor, effects, correlated=correlated, constraints=constraints)
    spread = {"covariance": 0.4 * np.eye(2)} if correlated else {"sd": {"group": 0.6, "slope": 0.1}}
    return model, {name: value for name, value in START.items() if name != "sd"} | spread


@pytest.mark.exhaustive
@pytest.mark.parametrize("correlated", [True, False])
def test_a_random_slope_with_its_covariance_has_the_mixture_of_one_and_two_degrees(correlated):
    model, start = with_slopes(correlated=correlated)
    fit = fj.fit(model, start, TABLE["y"], given=TABLE["x"])
    test = quietly(fj.likelihood_ratio_test, fit, mixed_fit())
    freedom = 2 if correlated else 1
    assert test.degrees_of_freedom == freedom
    at_zero = float(test.statistic == 0)  # where the slope's own variance is estimated at zero
    laws = [stats.chi2.sf(float(test.statistic), k) if k else at_zero for k in (freedom - 1, freedom)]
    np.testing.assert_allclose(test.mixture_p_value, 0.5 * sum(laws), rtol=1e-9)
    assert f"½ χ² with {freedom - 1} and ½ χ² with {freedom} degree" in words(test)
    # Without any effect two variances are zero, of whose mixture the weights are not known.
    test = quietly(fj.likelihood_ratio_test, fit, rows_fit())
    assert test.mixture_p_value is None
    assert "weights depend on the information" in words(test)
    assert "bootstrap" in words(test)


def test_a_standard_deviation_of_zero_has_no_score_test_since_its_score_vanishes():
    with pytest.warns(fj.FitWarning, match="the score vanishes for every observation, whose density is even"):
        test = fj.score_test(null_fit(), "sd.group = 0")
    assert np.isnan(test.statistic)
    assert np.isnan(test.p_value)


# A fit that ended with the variance at zero.


@functools.cache
def null_fit():
    """The fit with the variance held at zero, whose results those at the boundary must have."""
    model = fj.Model(closed_form, constraints=FIXED)
    return fj.fit(model, AT_ZERO, TABLE["without effect"], given=TABLE["x"])


def test_errors_beside_a_variance_at_zero_are_those_with_it_held_there_in_batches_too():
    assert closed_fit("without effect").status == fj.Status.BOUNDARY
    fits = batch_of(closed_fit(), closed_fit("without effect"))
    assert fits.status.tolist() == [fj.Status.CONVERGED, fj.Status.BOUNDARY]
    for kind in ("observed", "sandwich"):
        with pytest.warns(fj.FitWarning, match="in 1 of 2 fits, which ended with a parameter at the edge of its range"):
            frame = fits.to_frame(kind)
        for name in ("mean", "slope", "scale"):
            expected = null_fit().standard_errors(kind)[name]
            np.testing.assert_allclose(frame[f"{name} standard error"][1], expected, rtol=1e-6)
            np.testing.assert_allclose(
                frame[f"{name} standard error"][0], closed_fit().standard_errors(kind)[name], rtol=1e-6
            )
        ends = null_fit().confidence_intervals(kind)["slope"]
        np.testing.assert_allclose([frame["slope lower"][1], frame["slope upper"][1]], ends, rtol=1e-6)
        assert np.isnan(frame["sd.group standard error"][1])
    assert np.all(np.isnan(quietly(fits.covariance)[1]))  # a matrix would need the row of the variance
    test = fj.likelihood_ratio_test(fits, "sd.group = 0")
    assert test.statistic[1] == 0.0
    assert test.mixture_p_value[1] == 1.0
    np.testing.assert_allclose(test.statistic[0], gain_over_least_squares(fits[0], Y), rtol=1e-7)
    assert "did not converge" not in words(test)
    assert "Distribution ½ χ² with 0 and ½ χ² with 1" in words(test)


def test_the_influence_of_a_group_beside_a_variance_at_zero_is_that_with_it_held_there():
    with pytest.warns(fj.FitWarning, match="Boundary"):
        found = fj.influence(closed_fit("without effect"))
    held = fj.influence(null_fit())
    np.testing.assert_allclose(found.deletions[:, :3], held.deletions, atol=1e-7)
    np.testing.assert_allclose(found.distances, held.distances, atol=1e-6)
    assert np.all(found.deletions[:, 3] == 0)
    assert found.at_edge == ("sd.group",)
    assert "Held at the edge sd.group" in words(found)


def test_the_profile_of_a_standard_deviation_goes_down_to_zero_and_says_what_that_means():
    fit = closed_fit("without effect")
    profile = quietly(fj.profile_likelihood, fit, "sd")
    assert profile.lower[0] == 0.0
    assert profile.lower_end == ("never falls to the cut-off",)
    assert profile.upper_end == ("cut-off reached",)
    assert "Sd.group, lower end: the interval goes to 0, the edge of the range" in words(profile)
    assert "Were the true value 0 itself, 97.5 % or more of intervals at this cut-off would hold it" in words(profile)
    # The upper end: there the likelihood with the standard deviation held has fallen by the cut-off.
    upper = null_fit().params | {"sd": {"group": float(profile.upper[0])}}
    held = fj.fit(null_fit().origin.model, upper, TABLE["without effect"], given=TABLE["x"])
    fall = float(fit.log_likelihood - held.log_likelihood)
    np.testing.assert_allclose(fall, 0.5 * stats.chi2.ppf(0.95, 1), rtol=1e-6)


# The longer half.


@pytest.mark.exhaustive
def test_profiles_are_those_of_the_closed_form():
    results = [fj.profile_likelihood(fit, ["slope", "sd"]) for fit in (mixed_fit(), closed_fit())]
    np.testing.assert_allclose(results[0].interval, results[1].interval, rtol=1e-7)
    assert np.all(results[0].end_codes == 0)


@pytest.mark.exhaustive
def test_influence_tests_and_identifiability_are_those_of_the_closed_form():
    fits = mixed_fit(), closed_fit()
    found = [fj.influence(fit) for fit in fits]
    np.testing.assert_allclose(found[0].deletions, found[1].deletions, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found[0].jackknife_covariance, fits[0].covariance("sandwich"), rtol=1e-8, atol=1e-15)
    for hypothesis in ("slope = 0.3", "mean = slope"):
        wald = [fj.wald_test(fit, hypothesis) for fit in fits]
        ratio = [fj.likelihood_ratio_test(fit, hypothesis) for fit in fits]
        np.testing.assert_allclose(wald[0].statistic, wald[1].statistic, rtol=1e-8)
        np.testing.assert_allclose(ratio[0].statistic, ratio[1].statistic, rtol=1e-6)
    models = [
        fj.mixed(fj.families.normal, predictor, {"group": 0.0}, constraints=FIXED | {"slope": fj.fixed, "sd": None})
    ]
    models.append(fj.Model(closed_form, constraints=CONSTRAINTS | {"slope": fj.fixed}))
    nulls = [fj.fit(model, START, TABLE["y"], given=TABLE["x"]) for model in models]
    tests = [fj.score_test(null, "slope = 0") for null in nulls]
    np.testing.assert_allclose(tests[0].statistic, tests[1].statistic, rtol=1e-7)
    spectra = [fj.identifiability(fit).eigenvalues for fit in fits]
    np.testing.assert_allclose(spectra[0], spectra[1], rtol=1e-8)
    table = fj.coefficient_table(mixed=fits[0], closed=fits[1])
    np.testing.assert_allclose(table.estimates[:, 0], table.estimates[:, 1], rtol=1e-8)


@pytest.mark.exhaustive
@pytest.mark.parametrize("method", ["nonparametric", "parametric"])
def test_bootstraps_draw_groups_and_are_those_of_the_closed_form(method):
    key = jax.random.key(0)
    found = [quietly(fj.bootstrap, fit, key, num_replicates=20, method=method) for fit in (mixed_fit(), closed_fit())]
    np.testing.assert_array_equal(found[0].valid, found[1].valid)
    assert np.sum(found[0].valid) > 15
    np.testing.assert_allclose(found[0].replicates(), found[1].replicates(), rtol=1e-5)


@pytest.mark.exhaustive
def test_a_bootstrap_says_that_without_replicates_at_the_boundary_a_distribution_is_cut_off():
    weak = fj.fit(
        CLOSED, START, 0.35 * np.asarray(TABLE["y"].rows) + np.asarray(TABLE["without effect"].rows), given=TABLE["x"]
    )
    with pytest.warns(
        fj.FitWarning, match="a variance at zero: without them the distribution of its estimate is cut off"
    ):
        fj.bootstrap(weak, jax.random.key(0), num_replicates=100)


@pytest.mark.exhaustive
def test_the_bootstrap_of_a_variance_of_zero_ranks_the_statistic():
    test = quietly(fj.likelihood_ratio_test, closed_fit(), "sd.group = 0", key=jax.random.key(0), num_replicates=99)
    assert test.p_value == 0.01
    assert "by parametric bootstrap, 99 data sets" in words(test)
    test = quietly(
        fj.likelihood_ratio_test, closed_fit("without effect"), "sd.group = 0", key=jax.random.key(0), num_replicates=99
    )
    assert test.statistic == 0
    assert test.p_value == 1.0


@pytest.mark.exhaustive
def test_the_test_of_a_variance_has_its_size_under_the_null():
    # Of few groups the statistic is zero in more than half of the data sets, so that the test rejects too seldom; of 200 hardly.
    y = np.random.default_rng(11).normal(size=(1500, 200, 3))
    x = fj.Grouped(np.random.default_rng(12).normal(size=(200, 3)), np.ones((200, 3)))
    fits = quietly(fj.fit_batch, CLOSED, START, y, given=x)
    test = quietly(fj.likelihood_ratio_test, fits, "sd.group = 0")
    assert 0.46 < np.mean(test.statistic < 1e-3) < 0.56
    assert 0.033 < np.mean(test.mixture_p_value < 0.05) < 0.067  # three standard errors
    assert np.mean(test.p_value < 0.05) < 0.04


def expected_information(params):
    """Of the linear mixed model, the mean over the groups, in closed form: mean, slope, scale, sd."""
    whole = np.zeros((4, 4))
    for g in range(GROUPS):
        m, scale, sd = LENGTHS[g], float(params["scale"]), float(params["sd"]["group"])
        design, ones = np.column_stack([np.ones(m), X[g == GROUP]]), np.ones((m, m))
        inverse = np.linalg.inv(scale**2 * np.eye(m) + sd**2 * ones)
        changes = 2 * scale * np.eye(m), 2 * sd * ones
        whole[:2, :2] += design.T @ inverse @ design
        whole[2:, 2:] += [[0.5 * np.trace(inverse @ a @ inverse @ b) for b in changes] for a in changes]
    return whole / GROUPS


@pytest.mark.exhaustive
def test_the_fisher_information_by_draws_is_the_closed_form_within_its_errors():
    params, draws = mixed_fit().params, fj.MonteCarlo(jax.random.key(0), 500)
    information = fj.fisher_information(MIXED, params, draws, given=TABLE["x"])
    difference = np.asarray(information.matrix) - expected_information(params)
    errors = np.asarray(information.entry_errors)
    np.testing.assert_allclose(np.where(errors < 1e-10, difference, 0.0), 0.0, atol=1e-8)
    assert np.all(np.abs(difference) < 4.5 * errors + 1e-8)
    assert fj.check_information_equality(MIXED, params, draws, given=TABLE["x"]).passed
    assert fj.check_score_mean(MIXED, params, draws, given=TABLE["x"]).passed
    bound = fj.cramer_rao_bound(MIXED, params, draws, given=TABLE["x"], num_observations=GROUPS)
    np.testing.assert_allclose(bound.matrix, np.linalg.inv(GROUPS * expected_information(params)), rtol=0.05, atol=3e-4)
    size = fj.sample_size(MIXED, params, standard_error={"slope": 0.05}, given=TABLE["x"], expectation=draws)
    assert size.num_observations % GROUPS == 0  # the covariates are repeated as a whole


@pytest.mark.exhaustive
def test_simulations_fit_what_the_model_draws():
    params, key = mixed_fit().params, jax.random.key(0)
    draws = fj.MonteCarlo(key, 500)
    spread = fj.sampling_distribution(CLOSED, params, key, given=TABLE["x"], num_replicates=400, expectation=draws)
    predicted = np.sqrt(np.diag(np.linalg.inv(GROUPS * expected_information(params))))
    np.testing.assert_allclose(spread.standard_deviation[0][:2], predicted[:2], rtol=0.15)
    covered = fj.coverage(CLOSED, params, key, given=TABLE["x"], num_replicates=400, kinds="wald")
    assert np.all(np.asarray(covered.probability) > 0.85)


# A mixed model for each gene.


def poisson_predictor(params, effects, x):
    return {"rate": jnp.exp(params["mean"] + params["slope"] * x + effects["group"])}


POISSON = fj.mixed(fj.families.poisson, poisson_predictor, {"group": 0.0})
POISSON_START = {"mean": 0.0, "slope": 0.0, "sd": {"group": 1.0}}


@functools.cache
def counts():
    """Counts (B, G, m) of six genes, two of them without an effect."""
    rng = np.random.default_rng(3)
    rows = [
        rng.poisson(np.exp(0.3 + 0.4 * X + sd * rng.normal(size=GROUPS)[GROUP]))
        for sd in (1.0, 0.5, 0.8, 0.6, 0.0, 0.0)
    ]
    grouped = fj.by_group({"group": GROUP, "counts": np.array(rows, float).T}, "group")
    return np.moveaxis(np.asarray(grouped["counts"].rows), -1, 0)


@functools.cache
def gene_fits():
    kinds = "observed", "empirical", "sandwich"
    return fj.fit_batch(POISSON, POISSON_START, counts(), given=TABLE["x"], covariances=kinds)


@pytest.mark.exhaustive
def test_a_batch_of_mixed_models_is_the_fits_one_by_one():
    fits = gene_fits()
    assert fits.engine == "arrays"
    assert np.sum(fits.converged) >= 4
    for k in range(len(fits)):
        one = fj.fit(POISSON, POISSON_START, counts()[k], given=TABLE["x"])
        assert one.status == fits.status[k]
        np.testing.assert_allclose(fits.log_likelihood[k], one.log_likelihood, rtol=1e-9)
        if one.converged:
            np.testing.assert_allclose(fits[k].params["sd"]["group"], one.params["sd"]["group"], rtol=1e-5)
            for kind in fits.kinds:
                np.testing.assert_allclose(fits[k].covariance(kind), one.covariance(kind), rtol=1e-5, atol=1e-12)


@pytest.mark.exhaustive
def test_many_fits_with_effects_are_tested_against_as_many_without():
    def density(params, y, x):
        return jax.scipy.stats.poisson.logpmf(y, jnp.exp(params["mean"] + params["slope"] * x))

    rows = counts()[:, np.asarray(TABLE["x"].weights) > 0]
    nulls = fj.fit_batch(fj.Model(density), {"mean": 0.0, "slope": 0.0}, rows, given=X)
    test = quietly(fj.likelihood_ratio_test, gene_fits(), nulls)
    gains = np.maximum(gene_fits().log_likelihood - nulls.log_likelihood, 0.0)
    np.testing.assert_allclose(test.statistic, 2 * gains, atol=1e-6)
    np.testing.assert_allclose(test.mixture_p_value[0], 0.5 * stats.chi2.sf(test.statistic[0], 1), rtol=1e-9)


@pytest.mark.exhaustive
def test_genes_in_float32_and_from_disk_are_the_same(tmp_path):
    fits, small = gene_fits(), jax.tree.map(np.float32, (POISSON_START, counts(), TABLE["x"]))
    single = fj.fit_batch(POISSON, small[0], small[1], given=small[2])
    np.testing.assert_array_equal(single.converged, fits.converged)
    slopes, errors = fits.params["slope"], quietly(fits.standard_errors)["slope"]
    close = fits.converged
    assert np.all(np.abs(single.params["slope"] - slopes)[close] < 0.01 * errors[close])
    np.save(tmp_path / "counts.npy", counts())
    result = fj.fit_stream(POISSON, POISSON_START, tmp_path / "counts.npy", tmp_path / "fits.parquet", given=TABLE["x"])
    columns = result.to_columns()
    np.testing.assert_allclose(columns["slope"], slopes, rtol=1e-6)
    expected = quietly(fits.to_columns)["slope standard error"]
    assert np.all(np.isfinite(expected))  # also of those whose variance is at zero
    np.testing.assert_allclose(columns["slope standard error"], expected, rtol=1e-5)


@pytest.mark.exhaustive
def test_other_ways_to_give_many_data_sets_of_groups():
    fits = gene_fits()
    ragged = fj.fit_batch(
        POISSON, POISSON_START, [counts()[0], counts()[1][:12]], given=[TABLE["x"], take(TABLE["x"], slice(12))]
    )
    np.testing.assert_allclose(ragged.log_likelihood[0], fits.log_likelihood[0], rtol=1e-9)
    alone = of_groups(1, slice(12))
    np.testing.assert_allclose(ragged.log_likelihood[1], alone.log_likelihood, rtol=1e-9)
    # Groups of groups: clinics in three countries.
    by = fj.fit_batch(POISSON, POISSON_START, counts()[0], given=TABLE["x"], by=np.repeat(["a", "b", "c"], 5))
    alone = of_groups(0, slice(5, 10))
    np.testing.assert_allclose(by["b"].log_likelihood, alone.log_likelihood, rtol=1e-7)
    with pytest.raises(ValueError, match='engine="kernel" is for models without latent effects'):
        fj.fit_batch(POISSON, POISSON_START, counts(), given=TABLE["x"], engine="kernel")


def of_groups(gene, groups):
    """The fit of one gene to some of the groups, the others having weight zero: of one shape with other fits."""
    weights = np.zeros(GROUPS)
    weights[groups] = 1.0
    return fj.fit(POISSON, POISSON_START, counts()[gene], given=TABLE["x"], weights=weights)


def take(grouped, groups):
    return jax.tree.map(lambda leaf: leaf[groups], grouped)


# Restricted maximum likelihood.


@pytest.mark.exhaustive
def test_with_coefficients_integrated_out_it_is_restricted_maximum_likelihood():
    def joint(params, effects, y, x):  # of all groups at once, with a flat prior for the coefficients
        def of_group(b, y, x):
            return MIXED.joint({**params, **effects["coefficients"]}, b, y, x)

        return jnp.sum(jax.vmap(of_group)(effects["groups"], y, x))

    effects = {"coefficients": {"mean": 0.0, "slope": 0.0}, "groups": np.zeros((GROUPS, 1))}
    model = fj.marginal(joint, effects, constraints=CONSTRAINTS)
    y, x = (jax.tree.map(lambda leaf: np.asarray(leaf)[None], TABLE[name]) for name in ("y", "x"))
    fit = fj.fit(model, {"scale": 1.0, "sd": {"group": 1.0}}, y, given=x)
    assert fit.converged
    # Wolfinger, Tobias and Sall (1994), eq. (6): by numpy, at the estimate.
    scale, sd = float(fit.params["scale"]), float(fit.params["sd"]["group"])
    design = np.column_stack([np.ones(ROWS), X])
    covariance = scale**2 * np.eye(ROWS) + sd**2 * (GROUP[:, None] == GROUP[None, :])
    inverse = np.linalg.inv(covariance)
    left = design.T @ inverse @ design
    residual = Y - design @ np.linalg.solve(left, design.T @ inverse @ Y)
    log_dets = np.linalg.slogdet(covariance)[1] + np.linalg.slogdet(left)[1]
    restricted = -0.5 * (log_dets + residual @ inverse @ residual + (ROWS - 2) * np.log(2 * np.pi))
    np.testing.assert_allclose(fit.log_likelihood, restricted, rtol=1e-10)
    assert sd > float(closed_fit().params["sd"]["group"])  # which maximum likelihood estimates too low
