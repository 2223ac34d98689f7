"""Predictions, contrasts and marginal effects: statsmodels' numbers, closed forms, tables, batches, and errors in calls."""

import copy
import functools
import pickle
import re
import warnings
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.stats as st
from data_sets import spector
from helpers import compiled_programs
from jax.scipy.special import log_ndtr
from jax.scipy.stats import norm

import fisher_jax as fj
from fisher_jax.fitting.result import Origin
from fisher_jax.inference import predicted_rows, prediction

RNG = np.random.default_rng(7)
N = 80
X = np.column_stack([np.ones(N), RNG.normal(size=N), RNG.uniform(size=N) < 0.4]).astype(float)
TIME = RNG.uniform(0.5, 3.0, N)
COUNTS = RNG.poisson(TIME * np.exp(0.3 + 0.5 * X[:, 1] - 0.4 * X[:, 2]))
CLUSTERS = RNG.integers(0, 12, N)
NEW = {"x": np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 1.0], [1.0, 1.5, 1.0]]), "time": np.array([1.0, 1.0, 2.0])}


def poisson_rate(beta, z):
    return {"rate": z["time"] * jnp.exp(z["x"] @ beta)}


def logit(beta, z):
    return {"logit": z @ beta}


def probit(beta, z):
    return {"logit": log_ndtr(z @ beta) - log_ndtr(-(z @ beta))}


def negative_binomial(params, z):
    return {"mean": jnp.exp(z @ params["beta"]), "size": params["size"]}


def choice(beta, z):
    return {"logits": jnp.concatenate([jnp.zeros(1), z @ beta])}


POISSON = fj.linked(fj.families.poisson, poisson_rate)
LOGIT = fj.linked(fj.families.bernoulli, logit)


@functools.cache
def counts():
    return fj.fit(POISSON, np.zeros(3), COUNTS, given={"x": X, "time": TIME})


@functools.cache
def grades():
    y, x = spector()
    return fj.fit(LOGIT, np.zeros(x.shape[1]), y, given=x)


def plain_density(params, y, z):
    """A density with no family behind it; with `model=` it predicts by fits whose parameters it shares."""
    return norm.logpdf(y, 0.0, params["shape"])


@functools.cache
def durations():
    model = fj.linked(
        fj.families.weibull,
        lambda params, z: {"shape": params["shape"], "scale": jnp.exp(params["a"] + params["b"] * z)},
        constraints={"shape": fj.positive},
    )
    y = 2.0 * RNG.weibull(1.7, N) * np.exp(0.3 * X[:, 1])
    return fj.fit(model, {"shape": 1.0, "a": 0.0, "b": 0.0}, y, given=X[:, 1])


@functools.cache
def many():
    y = RNG.poisson(TIME * np.exp(0.3 + 0.5 * X[:, 1]), (4, N))
    return fj.fit_batch(POISSON, np.zeros(3), y, given={"x": X, "time": TIME}, given_axis=None)


# Predictions ----------------------------------------------------------------------------------------------------------


def test_predictions_of_a_logit_are_those_of_statsmodels_glm():
    import statsmodels.api as sm

    y, x = spector()
    peer = sm.GLM(y, x, family=sm.families.Binomial()).fit(tol=1e-14, maxiter=100).get_prediction().summary_frame()
    prediction = fj.predict(grades())
    np.testing.assert_allclose(prediction.estimate, peer["mean"], rtol=1e-7)
    np.testing.assert_allclose(prediction.standard_errors(), peer["mean_se"], rtol=1e-6)
    ends = prediction.confidence_intervals()
    np.testing.assert_allclose(ends, peer[["mean_ci_lower", "mean_ci_upper"]], rtol=1e-6)


def test_predictions_with_an_exposure_are_those_of_statsmodels_glm():
    import statsmodels.api as sm

    peer = sm.GLM(COUNTS, X, exposure=TIME, family=sm.families.Poisson()).fit(tol=1e-14, maxiter=100)
    peer = peer.get_prediction(NEW["x"], exposure=NEW["time"]).summary_frame(alpha=0.1)
    frame = fj.predict(counts(), NEW, level=0.9).to_frame()
    np.testing.assert_allclose(frame, peer, rtol=1e-6)
    assert list(frame.columns) == ["estimate", "standard_error", "lower", "upper"]


def test_the_covariance_of_predictions_is_that_of_their_derivatives():
    fit = counts()
    prediction = fj.predict(fit, NEW)
    rate = NEW["time"] * np.exp(NEW["x"] @ fit.params)
    slopes = rate[:, None] * NEW["x"]
    np.testing.assert_allclose(prediction.estimate, rate, rtol=1e-12)
    np.testing.assert_allclose(prediction.covariance(), slopes @ fit.covariance() @ slopes.T, rtol=1e-9)
    np.testing.assert_allclose(np.diagonal(prediction.covariance()) ** 0.5, prediction.standard_errors(), rtol=1e-12)


def test_rows_in_blocks_are_those_taken_at_once(monkeypatch):
    fit, fits = counts(), many()
    whole, batch, effects = fj.predict(fit), fj.predict(fits, NEW), fj.marginal_effects(fit, variables="x[1]")
    monkeypatch.setattr(predicted_rows, "ENTRIES", 2 * 3)  # two rows
    for part, reference in ((fj.predict(fit), whole), (fj.predict(fits, NEW), batch)):
        np.testing.assert_allclose(part.estimate, reference.estimate, rtol=1e-14)
        np.testing.assert_allclose(part.standard_errors(), reference.standard_errors(), rtol=1e-13)
    in_blocks = fj.marginal_effects(fit, variables="x[1]")
    np.testing.assert_allclose(in_blocks.estimate, effects.estimate, rtol=1e-12)
    np.testing.assert_allclose(in_blocks.standard_errors(), effects.standard_errors(), rtol=1e-12)


def test_intervals_stay_in_the_range_and_are_made_on_its_scale():
    family = fj.families.binomial
    model = fj.linked(family, lambda beta, z: {"logit": beta[0] + beta[1] * z["x"], "trials": z["trials"]})
    x, trials = np.arange(5.0), np.full(5, 9.0)
    fit = fj.fit(model, np.zeros(2), np.array([1.0, 2.0, 4.0, 7.0, 8.0]), given={"x": x, "trials": trials})
    new = {"x": np.array([-5.0, 2.0, 6.0, 5000.0]), "trials": np.array([9.0, 20.0, 9.0, 9.0])}
    prediction = fj.predict(fit, new)
    line = np.column_stack([np.ones(4), new["x"]])
    eta, error = line @ fit.params, np.sqrt(np.sum(line @ fit.covariance() * line, axis=1))
    expected = new["trials"][:, None] / (1.0 + np.exp(-(eta[:, None] + st.norm.ppf([0.025, 0.975]) * error[:, None])))
    np.testing.assert_allclose(prediction.confidence_intervals()[:3], expected[:3], rtol=1e-8)
    # Where rounding has put the probability at one, without an error, the interval is the number itself.
    np.testing.assert_array_equal(prediction.confidence_intervals()[3], [9.0, 9.0])
    natural = prediction.confidence_intervals(scale="natural")
    reach = st.norm.ppf(0.975) * prediction.standard_errors()
    np.testing.assert_allclose(natural[:, 1], prediction.estimate + reach, rtol=1e-9)
    assert natural[1, 1] > expected[1, 1]
    symmetric = fj.predict(fit, new, scale="natural").confidence_intervals()
    np.testing.assert_array_equal(symmetric, natural)


def test_an_interval_below_an_end_is_made_on_the_logarithm_of_the_distance():
    low, high = prediction._intervals_within(
        np, np.array([-2.0]), np.array([1.0]), np.array([-np.inf]), np.array([0.0])
    )
    np.testing.assert_allclose([low[0], high[0]], [-2.0 * np.exp(0.5), -2.0 * np.exp(-0.5)], rtol=1e-14)


def test_parameters_of_the_family_have_intervals_on_the_scale_of_their_constraint():
    fit = durations()
    prediction = fj.predict(fit, np.array([0.0, 1.0]), "shape")
    shape, error = fit.params["shape"], fit.standard_errors()["shape"]
    np.testing.assert_allclose(prediction.estimate, [shape, shape])
    np.testing.assert_allclose(prediction.standard_errors(), [error, error], rtol=1e-9)
    np.testing.assert_allclose(prediction.confidence_intervals()[1], fit.confidence_intervals()["shape"], rtol=1e-9)
    scale = fj.predict(fit, np.array([0.0]), "scale")
    of_log = fj.delta_method(fit, lambda params: params["a"])
    np.testing.assert_allclose(np.log(scale.confidence_intervals()[0]), of_log.interval, rtol=1e-9)


def test_quantiles_are_those_of_the_delta_method():
    fit = durations()

    def median(params):
        return jnp.exp(params["a"] + params["b"]) * jnp.log(2.0) ** (1.0 / params["shape"])

    reference = fj.delta_method(fit, median)
    prediction = fj.predict(fit, np.array([1.0]), 0.5)
    np.testing.assert_allclose(prediction.estimate[0], reference.value, rtol=1e-12)
    np.testing.assert_allclose(prediction.standard_errors()[0], reference.standard_error, rtol=1e-9)
    assert prediction.confidence_intervals(level=0.9999999)[0, 0] > 0
    with compiled_programs() as compiled:
        other = fj.predict(fit, np.array([2.0]), 0.9, level=0.5)
        other.standard_errors()
    assert compiled == []  # another level of the quantile, other rows
    assert other.estimate[0] > prediction.estimate[0]


def test_a_function_is_of_the_familys_parameters_or_of_params_and_covariates():
    def sd_and_mean(eta):
        return {"sd": jnp.sqrt(eta["rate"]), "both": jnp.stack([eta["rate"], 2.0 * eta["rate"]])}

    prediction = fj.predict(counts(), NEW, sd_and_mean, scale=fj.positive)
    rate = fj.predict(counts(), NEW)
    assert prediction.estimate["both"].shape == (3, 2)
    assert prediction.confidence_intervals()["both"].shape == (3, 2, 2)
    np.testing.assert_allclose(prediction.estimate["sd"] ** 2, rate.estimate, rtol=1e-12)
    np.testing.assert_allclose(prediction.confidence_intervals()["sd"] ** 2, rate.confidence_intervals(), rtol=1e-9)
    assert prediction.to_frame().index[1] == (0, "both[1]")


def test_a_function_for_a_plain_density_is_of_params_and_covariates():
    fit, x = durations(), np.array([0.0, 2.0])
    line = fj.predict(fit, x, lambda params, z: params["a"] + params["b"] * z, model=plain_density)
    positions = [fit.names.index(name) for name in ("a", "b")]
    covariance = fit.covariance()[np.ix_(positions, positions)]
    np.testing.assert_allclose(line.standard_errors()[1] ** 2, [1.0, 2.0] @ covariance @ [1.0, 2.0], rtol=1e-9)
    shape = fj.predict(fit, x, "shape", model=plain_density)
    np.testing.assert_allclose(shape.confidence_intervals()[0], fit.confidence_intervals()["shape"], rtol=1e-9)


@functools.cache
def waits():
    return fj.fit(fj.families.exponential, None, TIME)


def test_a_model_without_covariates_has_one_prediction_and_no_effects():
    prediction = fj.predict(waits())
    reference = fj.delta_method(waits(), lambda params: 1.0 / params["rate"])
    np.testing.assert_allclose(prediction.estimate, [reference.value], rtol=1e-12)
    np.testing.assert_allclose(prediction.standard_errors(), [reference.standard_error], rtol=1e-9)
    with pytest.raises(ValueError, match=r"the model was fitted without covariates. Leave new out"):
        fj.predict(waits(), np.ones(3))
    with pytest.raises(ValueError, match="the model has no covariates"):
        fj.marginal_effects(waits())


def test_a_clustered_fit_has_clustered_errors_unless_another_kind_is_asked_for():
    fit = counts()
    clustered = fj.robust(fit, clusters=CLUSTERS)
    slopes = fj.predict(fit, NEW).estimate[:, None] * NEW["x"]
    prediction = fj.predict(clustered, NEW)
    variance = np.sum(slopes @ clustered.covariance("sandwich") * slopes, axis=1)
    np.testing.assert_allclose(prediction.standard_errors() ** 2, variance, rtol=1e-9)
    assert "12 clusters" in str(prediction)
    observed = fj.predict(clustered, NEW, kind="observed")
    np.testing.assert_allclose(observed.standard_errors(), fj.predict(fit, NEW).standard_errors(), rtol=1e-14)


# Many fits, transformations, precision ---------------------------------------------------------------------------------


def test_predictions_of_many_fits_are_those_of_each():
    fits = many()
    common = fj.predict(fits, NEW)
    own_rows = {"x": np.stack([NEW["x"] + k for k in range(4)]), "time": NEW["time"]}
    own = fj.predict(fits, own_rows, new_axis={"x": 0, "time": None})
    pairs, effects = common.contrast("pairs", ratio=True), fj.marginal_effects(fits, dummy=True)
    for k in range(4):
        one = fj.predict(fits[k], NEW)
        np.testing.assert_allclose(common.confidence_intervals()[k], one.confidence_intervals(), rtol=1e-10)
        np.testing.assert_allclose(common.covariance()[k], one.covariance(), rtol=1e-10)
        np.testing.assert_allclose(pairs.p_values()[k], one.contrast("pairs", ratio=True).p_values(), rtol=1e-9)
        alone = fj.predict(fits[k], {"x": own_rows["x"][k], "time": NEW["time"]})
        np.testing.assert_allclose(own.standard_errors()[k], alone.standard_errors(), rtol=1e-10)
        one_effects = fj.marginal_effects(fits[k], dummy=True)
        np.testing.assert_allclose(effects.standard_errors()[k], one_effects.standard_errors(), rtol=1e-10)
    assert common.average().estimate.shape == (4, 1)
    assert str(common) == "Predictions: mean, of shape (4, 3, 1)"
    with pytest.raises(ValueError, match="this is of a batch"):
        common.to_frame()


def test_a_prediction_inside_jit_is_that_outside():
    @jax.jit
    def inside(fit):
        prediction = fj.predict(fit, NEW, model=POISSON)
        ratio = prediction.contrast([1.0, -1.0, 0.0], ratio=True)
        return prediction, prediction.confidence_intervals(), ratio.p_values(), prediction.average().standard_errors()

    prediction, ends, p_values, error = inside(counts())
    outside = fj.predict(counts(), NEW)
    np.testing.assert_allclose(prediction.estimate, outside.estimate, rtol=1e-9)
    np.testing.assert_allclose(ends, outside.confidence_intervals(), rtol=1e-7)
    np.testing.assert_allclose(p_values, outside.contrast([1.0, -1.0, 0.0], ratio=True).p_values(), rtol=1e-6)
    np.testing.assert_allclose(error, outside.average().standard_errors(), rtol=1e-7)


def test_float32_agrees_with_float64():
    with jax.enable_x64(False), warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = fj.fit(POISSON, np.zeros(3, np.float32), COUNTS, given={"x": X, "time": TIME})
        prediction = fj.predict(fit, NEW)
        assert prediction.estimate.dtype == np.float32
    np.testing.assert_allclose(prediction.estimate, fj.predict(counts(), NEW).estimate, rtol=1e-4)
    np.testing.assert_allclose(prediction.standard_errors(), fj.predict(counts(), NEW).standard_errors(), rtol=1e-3)


def test_predictions_survive_copies_pickling_and_transformations_of_their_arrays():
    prediction = fj.predict(counts(), NEW)
    effects = prediction.contrast()
    for again in (
        copy.deepcopy(prediction),
        pickle.loads(pickle.dumps(prediction)),
        jax.tree.map(np.asarray, prediction),
    ):
        np.testing.assert_array_equal(again.confidence_intervals(), prediction.confidence_intervals())
    again = jax.tree.map(np.asarray, effects)
    np.testing.assert_array_equal(again.p_values(), effects.p_values())
    assert again.heading == "contrast"


def test_a_loaded_fit_predicts_by_the_model_that_it_is_given(tmp_path):
    counts().save(tmp_path / "fit.npz")
    fit = fj.load(tmp_path / "fit.npz")
    prediction = fj.predict(fit, NEW, model=POISSON)
    np.testing.assert_allclose(prediction.standard_errors(), fj.predict(counts(), NEW).standard_errors(), rtol=1e-12)
    with pytest.raises(ValueError, match=r"predict: the fit no longer has its model.* Give it: model=…"):
        fj.predict(fit, NEW)


# Averages and contrasts ------------------------------------------------------------------------------------------------


def test_an_average_is_linear_in_the_rows_and_weighted_as_the_fit():
    fit = counts()
    weights = np.arange(1.0, N + 1.0)
    prediction = fj.predict(fit)
    shares = weights / weights.sum()
    average = prediction.average(weights)
    np.testing.assert_allclose(average.estimate, [shares @ prediction.estimate], rtol=1e-12)
    np.testing.assert_allclose(average.standard_errors() ** 2, [shares @ prediction.covariance() @ shares], rtol=1e-10)
    weighted = fj.fit(POISSON, np.zeros(3), COUNTS, given={"x": X, "time": TIME}, weights=weights)
    rows = fj.predict(weighted)
    np.testing.assert_allclose(rows.average().estimate, [shares @ rows.estimate], rtol=1e-12)
    # Weighted scores of a log link sum to zero: the mean of the predictions is that of the data.
    np.testing.assert_allclose(rows.average().estimate, [shares @ COUNTS], rtol=1e-9)
    assert rows.average().confidence_intervals()[0, 0] > 0


def test_contrasts_are_those_of_the_linear_predictor():
    """Poisson with a log link: a ratio of rates is e to a contrast of β, whose test statsmodels' t_test gives."""
    import statsmodels.api as sm

    peer = sm.GLM(COUNTS, X, exposure=TIME, family=sm.families.Poisson()).fit(tol=1e-14, maxiter=100).t_test([0, 0, 1])
    new = {"x": np.array([[1.0, 0.7, 1.0], [1.0, 0.7, 0.0]]), "time": np.ones(2)}
    ratio = fj.predict(counts(), new).contrast([1.0, -1.0], ratio=True, names=["treated / not"])
    np.testing.assert_allclose(np.log(ratio.estimate), peer.effect, rtol=1e-7)
    np.testing.assert_allclose(ratio.standard_errors() / ratio.estimate, peer.sd[0], rtol=1e-7)
    np.testing.assert_allclose(ratio.z_values(), np.ravel(peer.tvalue), rtol=1e-7)
    np.testing.assert_allclose(ratio.p_values(), np.ravel(peer.pvalue), rtol=1e-6)
    np.testing.assert_allclose(np.log(ratio.confidence_intervals()), peer.conf_int(), rtol=1e-6)
    frame = ratio.to_frame()
    assert list(frame.columns) == ["estimate", "standard_error", "z", "p_value", "lower", "upper"]
    assert list(frame.index) == ["treated / not"]


def test_differences_use_the_covariance_between_predictions():
    prediction = fj.predict(counts(), NEW)
    covariance = prediction.covariance()
    pairs = prediction.contrast()
    assert pairs.labels == ("0 − 1", "0 − 2", "1 − 2")
    for effect, error, (i, j) in zip(pairs.estimate, pairs.standard_errors(), [(0, 1), (0, 2), (1, 2)], strict=True):
        np.testing.assert_allclose(effect, prediction.estimate[i] - prediction.estimate[j], rtol=1e-12)
        np.testing.assert_allclose(error**2, covariance[i, i] + covariance[j, j] - 2 * covariance[i, j], rtol=1e-9)
    weights = np.array([[1.0, -1.0, 0.0], [0.5, 0.5, -1.0]])
    by_weights = prediction.contrast(weights)
    np.testing.assert_allclose(by_weights.covariance(), weights @ covariance @ weights.T, rtol=1e-9)
    shifted = {"x": NEW["x"] + [0.0, 0.0, 1.0], "time": NEW["time"]}
    by_rows = prediction.contrast(fj.predict(counts(), shifted))
    np.testing.assert_allclose(by_rows.estimate, prediction.estimate * (1.0 - np.exp(counts().params[2])), rtol=1e-10)
    first = fj.predict(counts(), {"x": NEW["x"][:1], "time": NEW["time"][:1]})
    np.testing.assert_allclose(prediction.contrast(first).estimate[1:], -pairs.estimate[:2], rtol=1e-12)
    assert "not adjusted for the number of effects" in str(pairs)


def test_the_ratio_of_averages_is_the_standardised_rate_ratio():
    fit = counts()
    both = [{"x": np.column_stack([X[:, :2], np.full(N, level)]), "time": TIME} for level in (1.0, 0.0)]
    treated, control = (fj.predict(fit, rows).average() for rows in both)
    ratio = treated.contrast(control, ratio=True)
    # With a log link and no interaction it is e^β, whatever the rows.
    np.testing.assert_allclose(ratio.estimate, np.exp(fit.params[2]), rtol=1e-10)
    np.testing.assert_allclose(ratio.standard_errors() / ratio.estimate, fit.standard_errors()[2], rtol=1e-9)


# Marginal effects -----------------------------------------------------------------------------------------------------


@functools.cache
def regressions(name):
    """A fit, and statsmodels' of the same."""
    import statsmodels.api as sm

    if name in ("logit", "probit"):
        y, x = spector()
        peer = (sm.Logit if name == "logit" else sm.Probit)(y, x).fit(disp=0, tol=1e-13)
        predictor = logit if name == "logit" else probit
        return grades() if name == "logit" else fj.fit(
            fj.linked(fj.families.bernoulli, predictor), np.zeros(x.shape[1]), y, given=x
        ), peer
    if name == "poisson":
        fit = fj.fit(POISSON, np.zeros(3), COUNTS, given={"x": X, "time": np.ones(N)})
        return fit, sm.Poisson(COUNTS, X).fit(disp=0, tol=1e-13)
    y = np.random.default_rng(2).negative_binomial(2.0, 2.0 / (2.0 + np.exp(X @ [0.9, 0.5, -0.4])))
    model = fj.linked(fj.families.negative_binomial, negative_binomial, constraints={"size": fj.positive})
    fit = fj.fit(model, {"beta": np.zeros(3), "size": 1.0}, y, given=X)
    start = [*fit.params["beta"], 1.0 / fit.params["size"]]
    peer = sm.NegativeBinomial(y, X).fit(disp=0, start_params=start, method="newton", tol=1e-13)
    return fit, peer


def assert_margins(effects, peer):
    np.testing.assert_allclose(effects.estimate, peer.margeff, rtol=1e-6)
    np.testing.assert_allclose(effects.standard_errors(), peer.margeff_se, rtol=1e-6)
    np.testing.assert_allclose(effects.z_values(), peer.tvalues, rtol=1e-6)
    np.testing.assert_allclose(effects.p_values(), peer.pvalues, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(effects.confidence_intervals(), peer.conf_int(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "at", "dummy"),
    [
        ("logit", "overall", False),
        ("logit", "mean", True),
        ("poisson", "overall", False),
        ("poisson", "mean", False),
        ("poisson", "overall", True),
        ("negative binomial", "mean", False),
        *(pytest.param("probit", at, True, marks=pytest.mark.exhaustive) for at in ("overall", "mean")),
        *(pytest.param("negative binomial", "overall", dummy, marks=pytest.mark.exhaustive) for dummy in (False, True)),
    ],
)
def test_marginal_effects_are_those_of_statsmodels(name, at, dummy):
    fit, peer = regressions(name)
    assert_margins(fj.marginal_effects(fit, at=at, dummy=dummy), peer.get_margeff(at=at, dummy=dummy))


@pytest.mark.parametrize("method", ["eyex", "dyex", "eydx"])
def test_elasticities_are_those_of_statsmodels(method):
    fit, peer = regressions("poisson")
    assert_margins(fj.marginal_effects(fit, method=method), peer.get_margeff(method=method))


def test_clustered_marginal_effects_are_those_of_statsmodels():
    import statsmodels.api as sm

    fit, _ = regressions("poisson")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # statsmodels of its own way to hand cov_kwds on
        settings = {"groups": CLUSTERS, "use_correction": False}
        peer = sm.Poisson(COUNTS, X).fit(disp=0, tol=1e-13, cov_type="cluster", cov_kwds=settings)
    clustered = fj.robust(fit, clusters=CLUSTERS, correction="none")
    assert_margins(fj.marginal_effects(clustered), peer.get_margeff())


def test_multinomial_effects_are_on_the_probability_of_each_category():
    import statsmodels.api as sm

    y = np.random.default_rng(4).integers(0, 3, N)
    peer = sm.MNLogit(y, X).fit(disp=0, tol=1e-13).get_margeff()
    fit = fj.fit(fj.linked(fj.families.categorical, choice), np.zeros((3, 2)), y, given=X)
    effects = fj.marginal_effects(fit)
    assert effects.estimate.shape == (2, 3)
    np.testing.assert_allclose(effects.estimate, peer.margeff, rtol=1e-6, atol=1e-10)
    np.testing.assert_allclose(effects.standard_errors(), peer.margeff_se, rtol=1e-6)
    np.testing.assert_allclose(effects.estimate.sum(axis=1), 0.0, atol=1e-12)


def test_effects_in_each_row_average_to_the_overall_ones():
    fit, _ = regressions("poisson")
    rows = fj.marginal_effects(fit, variables="x[1]", at="rows")
    overall = fj.marginal_effects(fit, variables="x[1]")
    assert len(rows) == N
    np.testing.assert_allclose(rows.average().estimate, overall.estimate, rtol=1e-12)
    np.testing.assert_allclose(rows.average().standard_errors(), overall.standard_errors(), rtol=1e-10)
    assert overall.labels == ("x[1]",)
    weights = np.arange(N)
    by_hand = rows.average(weights).standard_errors()
    weighted = fj.marginal_effects(fit, variables="x[1]", weights=weights)
    np.testing.assert_allclose(weighted.standard_errors(), by_hand, rtol=1e-10)


def test_covariates_in_a_dictionary_are_named_by_their_path():
    effects = fj.marginal_effects(counts(), dummy=True)
    assert effects.labels == ("time", "x[1]", "x[2]: 1 − 0")
    rate = fj.predict(counts())
    np.testing.assert_allclose(effects.estimate[0], np.mean(rate.estimate / TIME), rtol=1e-10)
    np.testing.assert_allclose(effects.estimate[1], counts().params[1] * np.mean(rate.estimate), rtol=1e-10)


# Tables ---------------------------------------------------------------------------------------------------------------


def make_table():
    rng = np.random.default_rng(5)
    frame = pd.DataFrame(
        {
            "age": rng.uniform(20.0, 60.0, N),
            "region": rng.choice(["north", "south", "west"], N),
            "treated": rng.uniform(size=N) < 0.5,
            "year": rng.integers(2001, 2004, N),
            "name": [f"person {k}" for k in range(N)],
        },
        index=np.arange(1000, 1000 + N),
    )
    mean = np.exp(0.5 + 0.02 * frame.age + 0.3 * frame.treated + 0.2 * (frame.region == "west"))
    return frame.assign(count=rng.poisson(mean))


TABLE = make_table()


@functools.cache
def from_table():
    text = "count ~ age + I(age**2 / 100) + age:treated + treated + region + C(year)"
    return fj.formula(text, fj.families.poisson, TABLE).fit()


def test_a_table_predicts_with_its_index_and_by_the_levels_of_the_fit():
    fit = from_table()
    whole, part = fj.predict(fit, TABLE), fj.predict(fit, TABLE.loc[[1003, 1001]])
    np.testing.assert_allclose(whole.estimate, fj.predict(fit).estimate, rtol=1e-12)
    np.testing.assert_allclose(part.estimate, whole.estimate[[3, 1]], rtol=1e-12)
    assert list(part.to_frame().index) == [1003, 1001]
    assert "1003" in str(part)
    columns = {name: TABLE[name].to_numpy()[[3, 1]] for name in TABLE.columns}
    np.testing.assert_array_equal(fj.predict(fit, columns).estimate, part.estimate)
    with pytest.raises(ValueError, match=r"is another pytree.*The model came from a formula: give a table"):
        fj.predict(fit, np.ones((2, 9)))
    with pytest.raises(ValueError, match=r"'region' of new has levels that the fit has not seen: 'east'"):
        fj.predict(fit, TABLE.head(2).assign(region="east"))


def test_a_column_of_a_table_has_its_total_derivative_and_a_category_its_changes():
    fit = from_table()
    effects = fj.marginal_effects(fit, TABLE)
    expected = ["age", "region: south − north", "region: west − north", "treated: True − False"]
    assert list(effects.labels) == [*expected, "year: 2002 − 2001", "year: 2003 − 2001"]
    columns = list(fit.names)
    beta, mean = fit.params["rate"], fj.predict(fit).estimate
    at = {name: beta[columns.index(name)] for name in columns}
    slope = at["age"] + 2.0 * TABLE.age / 100.0 * at["I(age ** 2 / 100)"] + TABLE.treated * at["age:treated"]
    np.testing.assert_allclose(effects.estimate[0], np.mean(slope * mean), rtol=1e-7)

    def average_slope(params):
        beta, design = params["rate"], fit.origin.dataset.given["rate"]
        z = {name: beta[columns.index(name)] for name in columns}
        slope = z["age"] + 2.0 * TABLE.age.to_numpy() / 100.0 * z["I(age ** 2 / 100)"]
        slope = slope + TABLE.treated.to_numpy() * z["age:treated"]
        return jnp.mean(slope * jnp.exp(design @ beta))

    reference = fj.delta_method(fit, average_slope)
    np.testing.assert_allclose(effects.standard_errors()[0], reference.standard_error, rtol=1e-7)
    treated, control = (fj.predict(fit, TABLE.assign(treated=value)).average() for value in (True, False))
    difference = treated.contrast(control)
    np.testing.assert_allclose(effects.estimate[3], difference.estimate[0], rtol=1e-10)
    np.testing.assert_allclose(effects.confidence_intervals()[3], difference.confidence_intervals()[0], rtol=1e-9)


def test_categories_change_from_the_first_in_the_order_that_was_given():
    order = ["west", "south", "north"]
    ordered = TABLE.assign(region=pd.Categorical(TABLE.region, order))
    assert ordered.region.iloc[0] != "west"  # which is the first in the order of appearance
    effects = fj.marginal_effects(from_table(), ordered, "region")
    assert list(effects.labels) == ["region: south − west", "region: north − west"]
    by_appearance = pytest.importorskip("pyarrow").Table.from_pandas(TABLE, preserve_index=False)
    place = by_appearance.column_names.index("region")
    by_appearance = by_appearance.set_column(place, "region", by_appearance["region"].dictionary_encode())
    effects = fj.marginal_effects(from_table(), by_appearance, "region")
    assert list(effects.labels) == ["region: south − north", "region: west − north"]


def test_at_the_means_of_a_table_a_square_is_that_of_the_mean():
    fit = from_table()
    effects = fj.marginal_effects(fit, TABLE, ["age", "treated"], at="mean")
    columns, beta = list(fit.names), fit.params["rate"]
    middle = TABLE.assign(age=TABLE.age.mean())
    design = fit.origin.model.log_density.predictor.covariates(middle)["rate"].mean(axis=0)
    at = {name: beta[columns.index(name)] for name in columns}
    slope = at["age"] + 2.0 * TABLE.age.mean() / 100.0 * at["I(age ** 2 / 100)"]
    slope = slope + TABLE.treated.mean() * at["age:treated"]
    np.testing.assert_allclose(effects.estimate[0], slope * np.exp(design @ beta), rtol=1e-7)


@pytest.mark.parametrize("library", ["polars", "pyarrow"])
def test_tables_of_other_libraries_give_the_same_effects(library):
    pl, pa = pytest.importorskip("polars"), pytest.importorskip("pyarrow")
    other = pl.from_pandas(TABLE) if library == "polars" else pa.Table.from_pandas(TABLE, preserve_index=False)
    mine, theirs = fj.marginal_effects(from_table(), TABLE), fj.marginal_effects(from_table(), other)
    assert theirs.labels == mine.labels
    np.testing.assert_allclose(theirs.estimate, mine.estimate, rtol=1e-10)
    np.testing.assert_allclose(theirs.standard_errors(), mine.standard_errors(), rtol=1e-10)


def without_table(fit):
    return replace(fit, origin=Origin(fit.origin.model, replace(fit.origin.dataset, table=None)))


def test_what_is_wrong_with_the_variables_of_a_table_is_said():
    fit = from_table()
    for call, message in (
        (
            lambda: fj.marginal_effects(without_table(fit)),
            "the model came from a formula, .*marginal_effects\\(fit, table\\)",
        ),
        (lambda: fj.marginal_effects(fit, TABLE, "name"), "names 'name', which the model does not depend on"),
        (lambda: fj.marginal_effects(fit, TABLE, "agee"), "names 'agee', but the covariates are 'age', 'region'"),
        (
            lambda: fj.marginal_effects(fit, TABLE, method="eyex"),
            "region: south − north.* is a discrete change, which has no elasticity",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


# Reports and what is said of bad input ----------------------------------------------------------------------------------


def test_reports_show_the_first_rows_and_how_many_there_are_more():
    text = str(fj.predict(counts()))
    assert text.startswith("Predictions: mean\n  Covariance  inverse observed information")
    assert re.search(r"\n  row +estimate +std. error +lower 95 % +upper 95 %\n", text)
    assert len(re.findall(r"\n  \d+ +\d\.\d", text)) == prediction.SHOWN
    assert f"{N - prediction.SHOWN} more are not shown: see to_frame()." in text
    text = str(fj.marginal_effects(counts(), at="mean"))
    assert re.search(r"dy/dx at the means +estimate +std. error +z +p-value +lower 95 % +upper 95 %", text)
    assert "<table>" in fj.predict(counts(), NEW)._repr_html_()


def test_predictions_by_two_fits_with_the_same_covariance_have_no_contrast():
    prediction = fj.predict(counts(), NEW)
    with pytest.raises(ValueError, match="the two predictions are by different fits"):
        prediction.contrast(replace(prediction, free=prediction.free + 1.0))


def fails(call, kind, message):
    return pytest.param(call, kind, message, id=message[:40])


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        fails(lambda: fj.predict(durations(), model=plain_density), ValueError, 'what="mean": the model has no mean'),
        fails(
            lambda: fj.predict(durations(), what=0.5, model=plain_density),
            ValueError,
            "the model has no quantile function",
        ),
        fails(
            lambda: fj.predict(durations(), what="c", model=plain_density),
            ValueError,
            "what='c' is none of 'a', 'b', 'shape'",
        ),
        fails(lambda: fj.predict(counts(), what="mu"), ValueError, "what='mu' is none of 'mean', 'rate'"),
        fails(lambda: fj.predict(counts(), what=1.0), ValueError, "what=1.0: a quantile has a level strictly between"),
        fails(lambda: fj.predict(counts(), what=None), TypeError, 'what=None must be "mean"'),
        fails(lambda: fj.predict(counts(), what=lambda eta: eta["mu"]), ValueError, "what raised KeyError"),
        fails(lambda: fj.predict(counts(), {"x": NEW["x"]}), ValueError, "new lacks `time`: expected covariates"),
        fails(
            lambda: fj.predict(counts(), NEW | {"w": NEW["time"]}), ValueError, "new has `w`, which the fit does not"
        ),
        fails(lambda: fj.predict(counts(), NEW["x"]), ValueError, r"new is another pytree: .*got \(m, 3\)"),
        fails(
            lambda: fj.predict(counts(), {"x": NEW["x"][:, :2], "time": NEW["time"]}),
            ValueError,
            r"new x has shape \(3, 2\); expected \(m, 3\)",
        ),
        fails(lambda: fj.predict(counts(), NEW | {"time": 1.0}), ValueError, "new time is a scalar"),
        fails(lambda: fj.predict(counts(), NEW | {"time": np.ones(2)}), ValueError, "leading axes .* differ"),
        fails(lambda: fj.predict(counts(), NEW, new_axis=0), ValueError, "new_axis is for many fits"),
        fails(
            lambda: fj.predict(many(), {"x": np.ones((3, 2, 3)), "time": np.ones((3, 2))}, new_axis=0),
            ValueError,
            "new has rows for 3 fits, but there are 4",
        ),
        fails(lambda: fj.predict(counts(), NEW, scale="log"), ValueError, "scale='log' is unknown"),
        fails(lambda: fj.predict(counts(), NEW, kind="hc3"), ValueError, "kind='hc3' is unknown"),
        fails(lambda: fj.predict(counts(), NEW, level=95), ValueError, "level=95 must lie strictly between"),
        fails(
            lambda: fj.predict(counts(), NEW).contrast([1.0, -1.0]),
            ValueError,
            r"other has shape \(2,\), expected \(3,\)",
        ),
        fails(lambda: fj.predict(counts(), NEW).contrast(None), TypeError, "other=None must be another Prediction"),
        fails(lambda: fj.predict(counts(), NEW).contrast(fj.predict(many()[0], NEW)), ValueError, "by different fits"),
        fails(lambda: fj.predict(counts(), NEW).contrast(fj.predict(counts())), ValueError, "have 3 and 80 rows"),
        fails(lambda: fj.predict(counts(), NEW).contrast(names=["a"]), ValueError, "there are 3 contrasts"),
        fails(
            lambda: fj.predict(counts(), NEW).average([1.0, -1.0, 0.0]), ValueError, "weights must be finite and not"
        ),
        fails(lambda: fj.marginal_effects(counts(), variables="x[7]"), ValueError, "but the covariates are 'time', 'x"),
        fails(lambda: fj.marginal_effects(counts(), variables=[1]), TypeError, "must be a name or a sequence of"),
        fails(lambda: fj.marginal_effects(counts(), at="median"), ValueError, "at='median' is unknown"),
        fails(
            lambda: fj.marginal_effects(counts(), NEW | {"time": np.array([1.0, np.nan, 1.0])}),
            ValueError,
            "new has covariates that are NaN",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:marginal_effects:fisher_jax.FitWarning")
def test_bad_input_raises_with_what_came_and_what_to_do(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_a_dependent_model_has_no_prediction_of_a_row():
    with pytest.raises(ValueError, match="the model is `dependent`"):
        fj.predict(counts(), NEW, model=fj.dependent(lambda params, y: y))


def test_rows_with_nan_are_nan_with_a_warning_and_change_no_other():
    rows = NEW | {"time": np.array([1.0, np.nan, 2.0])}
    with pytest.warns(
        fj.FitWarning, match="predict: 1 of 3 rows of new have a covariate that is NaN, the first of them row 1"
    ):
        prediction = fj.predict(counts(), rows)
    assert np.isnan(prediction.estimate[1])
    assert np.isnan(prediction.standard_errors()[1])
    np.testing.assert_array_equal(prediction.estimate[[0, 2]], fj.predict(counts(), NEW).estimate[[0, 2]])
    assert np.isfinite(prediction.contrast([1.0, 0.0, -1.0]).p_values())


def test_a_fit_that_failed_has_no_standard_errors():
    fit = fj.fit(POISSON, np.zeros(3), COUNTS, given={"x": X, "time": TIME}, max_steps=1)
    with pytest.warns(fj.FitWarning, match="Step limit"):
        prediction = fj.predict(fit, NEW)
    assert np.all(np.isfinite(prediction.estimate))
    assert np.all(np.isnan(prediction.standard_errors()))
    assert np.all(np.isnan(prediction.confidence_intervals()))
    with pytest.warns(fj.FitWarning, match="Step limit"):
        assert np.all(np.isnan(fj.marginal_effects(fit).p_values()))


def test_the_quantile_of_a_discrete_distribution_has_no_first_order_error():
    with pytest.warns(fj.FitWarning, match="the quantile does not move with the parameters"):
        prediction = fj.predict(grades(), what=0.9)
    assert set(prediction.estimate) == {0.0, 1.0}
    assert np.all(np.isnan(prediction.standard_errors()))


def test_other_rows_and_levels_compile_nothing():
    fit = counts()
    fj.predict(fit, NEW).confidence_intervals()
    with compiled_programs() as compiled:
        prediction = fj.predict(
            fj.robust(fit, clusters=CLUSTERS), {"x": 2.0 * NEW["x"], "time": NEW["time"]}, level=0.8
        )
        compiled.clear()  # what `robust` needs
        prediction = fj.predict(fit, {"x": 2.0 * NEW["x"], "time": NEW["time"]}, level=0.8)
        prediction.contrast("pairs").p_values()
        prediction.average().confidence_intervals()
    assert compiled == []


def test_a_covariance_that_does_not_fit_memory_raises(monkeypatch):
    prediction = fj.predict(counts(), NEW)
    big = copy.copy(prediction)
    object.__setattr__(big, "value", np.broadcast_to(prediction.value[:1], (10**8, 1)))
    with pytest.raises(ValueError, match="covariance: the number of rows=100000000 needs 8e\\+07 GB"):
        big.covariance()


def test_a_support_that_is_no_pair_of_numbers_raises():
    with pytest.raises(TypeError, match="must be a pair of numbers, the lower end first"):
        fj.Model(norm.logpdf, support=(1.0, 0.0))


def test_a_users_model_predicts_its_own_mean_inside_its_support():
    model = fj.Model(
        plain_density, mean=lambda params, z: jnp.exp(params["a"]) + z, support=lambda params, z: (z, jnp.inf)
    )
    fit, z = durations(), np.array([0.0, 3.0])
    of_log = fj.delta_method(fit, lambda params: params["a"]).interval
    ends = fj.predict(fit, z, model=model).confidence_intervals()
    np.testing.assert_allclose(ends, np.exp(of_log) + z[:, None], rtol=1e-9)


def test_a_formulas_fit_has_effects_of_the_columns_of_its_own_table():
    import statsmodels.formula.api as smf

    peer = smf.poisson("count ~ age + C(region) + treated", TABLE.assign(treated=TABLE.treated * 1.0)).fit(
        disp=0, tol=1e-13
    )
    table = TABLE.assign(treated=TABLE.treated * 1.0)
    fit = fj.formula("count ~ age + C(region) + treated", fj.families.poisson, table).fit()
    effects = fj.marginal_effects(fit, dummy=True)
    assert effects.labels == ("age", "region: south − north", "region: west − north", "treated: 1 − 0")
    margins = peer.get_margeff(dummy=False)
    np.testing.assert_allclose(effects.estimate[0], margins.margeff[2], rtol=1e-7)
    np.testing.assert_allclose(effects.standard_errors()[0], margins.margeff_se[2], rtol=1e-7)
    assert list(fj.predict(fit).to_frame().index) == list(TABLE.index)
    exposed = fj.formula(
        "count ~ age", fj.families.poisson, TABLE.assign(days=2.0 + TABLE.age / 60), exposure="days"
    ).fit()
    assert fj.marginal_effects(exposed).labels == ("age",)
    assert fj.marginal_effects(exposed, variables=["days"]).labels == ("days",)


def test_ordered_categories_are_named_and_their_effects_sum_to_zero():
    grades = TABLE.assign(grade=pd.cut(TABLE["count"], [-1, 2, 4, 100], labels=["low", "middle", "high"]))
    fit = fj.formula("grade ~ age", fj.families.ordered_logit, grades).fit()
    prediction, effects = fj.predict(fit, grades.head(2)), fj.marginal_effects(fit)
    assert list(prediction.to_frame().index[:3]) == [(1000, f"mean[{level}]") for level in ("low", "middle", "high")]
    np.testing.assert_allclose(prediction.estimate.sum(axis=1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(effects.estimate.sum(axis=1), 0.0, atol=1e-12)
