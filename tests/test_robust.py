"""Robust covariances against Stata's printed values, statsmodels on data that it ships, and numpy written out."""

import functools
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from data_sets import PROBLEMS, ships
from helpers import batch_of
from jax.scipy.stats import norm
from registry import MODELS
from test_oracles import assert_printed

import fisher_jax as fj


def linear_log_density(params, y, x):
    return norm.logpdf(y, x @ params["beta"], jnp.exp(params["log_sigma"]))


@functools.cache
def poisson():
    """The ships' fit, their labels, and statsmodels' model of the same."""
    import statsmodels.api as sm

    problem = PROBLEMS["ships"]()
    fit = fj.fit(problem.model, problem.start, problem.data, given=problem.given, tolerance=1e-12)
    y, x, service, ship = ships()
    return fit, ship, sm.Poisson(y, x, offset=np.log(service))


@functools.cache
def grunfeld():
    """Investment of eleven firms in twenty years on value and capital: fit, statsmodels' model, firms and years."""
    import statsmodels.api as sm

    data = sm.datasets.grunfeld.load_pandas().data
    x = np.column_stack([np.ones(len(data)), data["value"] / 1e3, data["capital"] / 1e3])
    y = data["invest"].to_numpy() / 1e2
    start = {"beta": np.zeros(3), "log_sigma": 0.0}
    fit = fj.fit(linear_log_density, start, y, given=x, tolerance=1e-12)
    return fit, sm.OLS(y, x), data["firm"].to_numpy(str), data["year"].to_numpy()


@functools.cache
def macro():
    """Growth of consumption on that of income, by quarters: fit and statsmodels' model."""
    import statsmodels.api as sm

    data = sm.datasets.macrodata.load_pandas().data
    growth = 100 * np.diff(np.log(data[["realcons", "realdpi"]].to_numpy()), axis=0)
    x, y = np.column_stack([np.ones(len(growth)), growth[:, 1]]), growth[:, 0]
    fit = fj.fit(linear_log_density, {"beta": np.zeros(2), "log_sigma": 0.0}, y, given=x, tolerance=1e-12)
    return fit, sm.OLS(y, x)


def sandwich(fit, **how):
    return np.asarray(fj.robust(fit, **how).covariance("sandwich"))


def reference(model, **how):
    how = {"cov_type": how.pop("cov_type")} | ({"cov_kwds": how} if how else {})
    if hasattr(model, "offset"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # statsmodels of its own way to hand cov_kwds on
            return model.fit(method="newton", tol=1e-14, maxiter=100, disp=0, **how).cov_params()
    return model.fit(**how).cov_params()


def test_ships_by_ship_match_stata():
    fit, ship, _ = poisson()
    errors = fj.robust(fit, clusters=ship).standard_errors("sandwich")
    assert_printed(errors, "0.03817694295902 0.09213163536669 0.0968656626603")
    assert_printed(
        fj.robust(fit, correction="n/(n-1)").standard_errors("sandwich"),
        "0.09144457613957 0.16103531267836 0.2558675415017",
    )


def test_poisson_robust_cluster_and_newey_west_match_statsmodels():
    fit, ship, model = poisson()
    groups = ship.astype(int)
    for received, expected in (
        (sandwich(fit), reference(model, cov_type="HC0")),
        (
            sandwich(fit, clusters=ship, correction="G/(G-1) (n-1)/(n-p)"),
            reference(model, cov_type="cluster", groups=groups),
        ),
        (
            sandwich(fit, clusters=ship, correction="none"),
            reference(model, cov_type="cluster", groups=groups, use_correction=False),
        ),
        (sandwich(fit, lags=3), reference(model, cov_type="HAC", maxlags=3)),
    ):
        np.testing.assert_allclose(received, expected, rtol=1e-8)


def test_regression_robust_and_clustered_one_and_two_ways_matches_statsmodels_on_grunfeld():
    fit, model, firm, year = grunfeld()
    _, codes = np.unique(firm, return_inverse=True)
    factor = "G/(G-1) (n-1)/(n-p)"
    # The normal's variance is a parameter here and none in statsmodels: take its own n − p, of the coefficients.
    n, p = len(year), 3
    own = (n - 1 - p) / (n - p)
    white = sandwich(fit, correction="n/(n-p)")[:3, :3] * (n - p - 1) / (n - p)
    np.testing.assert_allclose(white, reference(model, cov_type="HC1"), rtol=1e-8)
    one = sandwich(fit, clusters=firm, correction=factor)[:3, :3] * own
    np.testing.assert_allclose(one, reference(model, cov_type="cluster", groups=codes), rtol=1e-8)
    two = sandwich(fit, clusters=(firm, year), correction=factor)[:3, :3] * own
    np.testing.assert_allclose(
        two, reference(model, cov_type="cluster", groups=np.column_stack([codes, year.astype(int)])), rtol=1e-8
    )


def test_two_ways_of_clusters_are_the_sum_of_both_less_that_of_their_meet_written_out_in_numpy():
    fit, _, firm, year = grunfeld()
    scores = np.asarray(
        fj.scores(linear_log_density, fit.params, fit.origin.dataset.data, given=fit.origin.dataset.given)["beta"]
    )
    bread = np.linalg.inv(np.asarray(fit.curvature)[:3, :3])

    def middle(labels):
        groups = [np.flatnonzero([a == b for a in labels]) for b in dict.fromkeys(labels)]
        totals = np.array([scores[rows].sum(axis=0) for rows in groups])
        return len(groups) / (len(groups) - 1) * totals.T @ totals

    both = list(zip(firm, year, strict=True))
    expected = bread @ (middle(list(firm)) + middle(list(year)) - middle(both)) @ bread
    np.testing.assert_allclose(sandwich(fit, clusters=(firm, year))[:3, :3], expected, rtol=1e-8)


def test_regression_newey_west_matches_statsmodels_on_macrodata():
    fit, model = macro()
    for lags in (0, 1, 4):
        expected = reference(model, cov_type="HAC", maxlags=lags)
        np.testing.assert_allclose(sandwich(fit, lags=lags)[:2, :2], expected, rtol=1e-8)


def test_newey_west_of_a_dependent_model_is_written_out_in_numpy():
    model, start, data, _ = MODELS["autoregression"]
    fit = fj.fit(model, start, data)
    natural = [fj.scores(model, fit.params, data)[name] for name in ("level", "phi", "scale")]
    h = np.stack(natural, axis=1)
    middle = h.T @ h + sum((1 - lag / 5) * (h[lag:].T @ h[:-lag] + (h[lag:].T @ h[:-lag]).T) for lag in range(1, 5))
    bread = np.asarray(fit.covariance())
    np.testing.assert_allclose(sandwich(fit, lags=4), bread @ middle @ bread, rtol=1e-7)


def test_sampling_weights_square_in_the_middle_and_frequency_weights_do_not():
    problem = PROBLEMS["ships"]()
    weights = np.repeat([1.0, 3.0], 17)
    fit = fj.fit(problem.model, problem.start, problem.data, given=problem.given, weights=weights)
    scores = np.asarray(fj.scores(problem.model, fit.params, problem.data, given=problem.given))
    bread = np.asarray(fit.covariance())
    for kind, power in (("frequency", 1), ("sampling", 2)):
        expected = bread @ (scores.T * weights**power) @ scores @ bread
        np.testing.assert_allclose(sandwich(fit, weights=kind), expected, rtol=1e-8)
    # n is the sum of frequency weights, and the number of rows of a sample.
    for kind, n in (("frequency", 68.0), ("sampling", 34.0)):
        ratio = sandwich(fit, weights=kind, correction="n/(n-p)") / sandwich(fit, weights=kind)
        np.testing.assert_allclose(ratio, n / (n - 3.0), rtol=1e-12)


def test_an_observation_of_weight_zero_is_in_no_cluster_whatever_it_holds():
    fit, ship, _ = poisson()
    model, (data, given, _) = fit.origin.model, fit.origin.dataset.parts
    longer = {name: np.concatenate([leaf, leaf[:1]]) for name, leaf in given.items()}
    weights = np.append(np.ones(len(data)), 0.0)
    same = fj.fit(model, np.zeros(3), np.append(data, np.nan), given=longer, weights=weights, tolerance=1e-12)
    received = fj.robust(same, clusters=np.append(ship, 99.0))
    np.testing.assert_allclose(received.covariance("sandwich"), sandwich(fit, clusters=ship), rtol=1e-8)


def test_every_way_to_look_at_the_fit_uses_the_new_middle_and_names_it():
    fit, ship, _ = poisson()
    by_ship = fj.robust(fit, clusters=ship)
    words = "sandwich by 5 clusters, factor G/(G − 1)"
    assert words in str(by_ship.summary("sandwich"))
    assert words in str(by_ship.summary())
    assert words not in str(by_ship.summary("observed"))
    test = fj.wald_test(by_ship, {"params[0]": 0.0}, kind="sandwich")
    assert words in str(test)
    z = by_ship.params[0] / by_ship.standard_errors("sandwich")[0]
    np.testing.assert_allclose(test.statistic, z**2, rtol=1e-10)
    slope = fj.delta_method(by_ship, lambda beta: beta[0], kind="sandwich")
    np.testing.assert_allclose(slope.standard_error, by_ship.standard_errors("sandwich")[0], rtol=1e-10)
    assert slope.description == words
    np.testing.assert_array_equal(by_ship.covariance(), by_ship.covariance("sandwich"))
    np.testing.assert_array_equal(by_ship.covariance("observed"), fit.covariance())
    np.testing.assert_allclose(by_ship.tic(), fit.tic())
    assert words in str(fj.coefficient_table(ships=by_ship, kind="sandwich"))
    descriptions = [fj.robust(fit, **how).describe("sandwich") for how in ({"lags": 2}, {"weights": "sampling"})]
    assert descriptions[0] == "Newey-West sandwich, Bartlett's kernel with 2 lags, no small-sample factor"
    assert "Σ w² s sᵀ of sampling weights" in descriptions[1]


def test_an_indefinite_two_way_covariance_is_reported_and_not_mended():
    fit, ship, _ = poisson()
    period = fit.origin.dataset.given["x"][:, 0]
    with pytest.warns(fj.FitWarning, match="robust: the covariance is not positive semi-definite"):
        both = fj.robust(fit, clusters=(ship, period))
    parts = [
        sandwich(fit, clusters=labels)
        for labels in (ship, period, [f"{a} {b}" for a, b in zip(ship, period, strict=True)])
    ]
    matrix = np.asarray(both.covariance("sandwich"))
    np.testing.assert_allclose(matrix, parts[0] + parts[1] - parts[2], rtol=1e-8)
    assert np.linalg.eigvalsh(matrix)[0] < 0
    assert "not positive semi-definite" in str(both.summary("sandwich"))
    with pytest.warns(fj.FitWarning, match="wald_test: the covariance of the restrictions is not positive definite"):
        test = fj.wald_test(both, np.zeros(3), kind="sandwich")
    assert np.isnan(test.statistic)


def test_a_factor_that_does_not_exist_is_said():
    fit, ship, _ = poisson()
    model, (data, given, _) = fit.origin.model, fit.origin.dataset.parts
    one_left = fj.fit(model, np.zeros(3), data, given=given, weights=np.where(np.asarray(ship) == ship[0], 1.0, 0.0))
    with pytest.warns(
        fj.FitWarning, match="robust: there is no such covariance, and its entries are NaN: sandwich by 5"
    ):
        found = fj.robust(one_left, clusters=ship)
    with pytest.warns(fj.FitWarning, match="small-sample factor does not exist"):
        assert np.isnan(found.covariance("sandwich")).all()


def test_a_batch_has_the_same_as_each_fit_alone():
    fit, ship, _ = poisson()
    model, (data, given, _) = fit.origin.model, fit.origin.dataset.parts
    fits = batch_of(fit, fj.fit(model, np.zeros(3), data[::-1], given=given, tolerance=1e-12))
    by_ship = fj.robust(fits, clusters=ship)
    np.testing.assert_allclose(by_ship.covariance("sandwich")[0], sandwich(fit, clusters=ship), rtol=1e-8)
    np.testing.assert_allclose(by_ship.covariance("sandwich")[1], sandwich(fits[1], clusters=ship), rtol=1e-8)
    assert "by 5 clusters" in str(by_ship.summary("sandwich"))
    np.testing.assert_allclose(by_ship.tic()[0], fit.tic(), rtol=1e-8)


def test_float32_scores_are_added_up_in_float64():
    fit, ship, _ = poisson()
    problem = PROBLEMS["ships"]()
    given = {name: np.asarray(leaf, np.float32) for name, leaf in problem.given.items()}
    single = fj.fit(problem.model, np.zeros(3, np.float32), problem.data.astype(np.float32), given=given)
    received = fj.robust(single, clusters=ship).covariance("sandwich")
    assert received.dtype == np.float64
    np.testing.assert_allclose(received, sandwich(fit, clusters=ship), rtol=2e-2)


def test_a_boundary_has_no_robust_standard_error_either():
    model = fj.Model(lambda rate, y: y * jnp.log(rate) - rate, constraints=fj.positive)
    for data, finite in ((np.zeros(20), False), (np.arange(20.0), True)):
        fit = fj.robust(fj.fit(model, 1.0, data), clusters=np.arange(20) // 4)
        assert (fit.status is fj.Status.BOUNDARY) == (not finite)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", fj.FitWarning)
            assert np.isfinite(fit.standard_errors("sandwich")) == finite


def test_a_robust_fit_prints_its_robust_errors_unless_told_otherwise():
    fit, ship, _ = poisson()
    by_ship = fj.robust(fit, clusters=ship)
    errors = by_ship.summary().to_frame()["standard_error"]
    np.testing.assert_allclose(errors, np.sqrt(np.diagonal(sandwich(fit, clusters=ship))), rtol=1e-10)
    assert "sandwich by 5 clusters" in str(by_ship)
    plain = by_ship.summary("observed").to_frame()["standard_error"]
    np.testing.assert_allclose(plain, np.sqrt(np.diagonal(fit.covariance("observed"))), rtol=1e-10)
