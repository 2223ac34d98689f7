"""Tests of hypotheses, functions of parameters and comparisons: printed and closed-form values, edges, and what is said."""

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from data_sets import BEEF, GAMMA, PROBLEMS, gamma_information, gamma_log_density
from helpers import batch_of
from jax.scipy.stats import norm, poisson
from test_oracles import assert_printed, fitted

import fisher_jax as fj

HELD = fj.Model(gamma_log_density, constraints={"shape": fj.fixed, "rate": fj.positive}, information=gamma_information)
COUNTS = np.array([2.0, 4.0, 3.0])


def mean(params):
    return params["shape"] / params["rate"]


def shape_is_one(params):
    return params["shape"] - 1.0


def rate_log_density(rate, y):
    return poisson.logpmf(y, rate)


def normal_log_density(params, y):
    return norm.logpdf(y, params["loc"], params["scale"])


def sum_log_density(params, y):
    return norm.logpdf(y, params["a"] + params["b"], jnp.exp(params["log_sigma"]))


def variance_log_density(params, y):
    """Three values with a common effect of variance tau2, each with noise of variance one."""
    total, squares = jnp.sum(y - params["mu"]), jnp.sum((y - params["mu"]) ** 2)
    common = 1.0 + 3.0 * params["tau2"]
    return -0.5 * (jnp.log(common) + squares - params["tau2"] * total**2 / common)


VARIANCE = fj.Model(variance_log_density, constraints={"tau2": fj.positive})


@functools.cache
def held(shape):
    return fj.fit(HELD, {"shape": shape, "rate": 1.0}, BEEF)


@functools.cache
def batch(*, second_has_rows=True):
    """Fits of the data and of twice the data; without rows the second has weights of zero."""
    start, ones = {"shape": 1.0, "rate": 1.0}, np.ones_like(BEEF)
    second = fj.fit(GAMMA, start, BEEF[::-1] * 2.0, weights=ones if second_has_rows else 0.0 * ones)
    return batch_of(fj.fit(GAMMA, start, BEEF, weights=ones), second)


@functools.cache
def counts():
    return fj.fit(rate_log_density, 1.0, COUNTS)


@functools.cache
def singular():
    data = np.random.default_rng(0).normal(2.0, 1.0, 50)
    return fj.fit(sum_log_density, {"a": 1.0, "b": 1.0, "log_sigma": 0.0}, data)


@functools.cache
def at_boundary():
    data = np.random.default_rng(0).normal(size=(40, 3))
    fit = fj.fit(VARIANCE, {"mu": 0.0, "tau2": 1.0}, data)
    assert fit.status is fj.Status.BOUNDARY
    return fit


# The delta method.


def test_delta_method_of_the_gamma_mean_matches_the_recomputed_row():
    found = fj.delta_method(fitted("gamma"), mean)
    assert_printed(found.value, "73.6456692913")
    assert_printed(found.standard_error, "2.308065509652")
    np.testing.assert_allclose(
        found.interval, found.value + np.array([-1, 1]) * 1.959963984540054 * found.standard_error
    )
    closed = 73.6456692913386 / np.sqrt(254 * 4.00833903182907)  # mean/√(n shape), since the mean is the sample's
    np.testing.assert_allclose(found.standard_error, closed, rtol=1e-8)


def test_delta_method_keeps_the_layout_of_what_the_function_returns():
    fit = fitted("ec50")
    x = jnp.linspace(0.0, 10.0, 6).reshape(2, 3)
    found = fj.delta_method(fit, lambda p: {"curve": p["ymax"] / (1 + x / p["xhalf"]), "log": jnp.log(p["xhalf"])})
    assert found.names == (*(f"curve[{i},{j}]" for i in range(2) for j in range(3)), "log")
    assert found.value["curve"].shape == found.standard_error["curve"].shape == (2, 3)
    assert found.interval["curve"].shape == (2, 3, 2)
    # By hand: derivatives 1/(1 + x/h) and y x/h²/(1 + x/h)² of ymax and xhalf, in the order of the start.
    assert fit.names == ("ymax", "xhalf")
    y, h = float(fit.params["ymax"]), float(fit.params["xhalf"])
    falling = 1 / (1 + np.ravel(x) / h)
    slopes = np.vstack([np.column_stack([falling, y * np.ravel(x) / h**2 * falling**2]), [0.0, 1 / h]])
    expected = slopes @ np.asarray(fit.covariance()) @ slopes.T
    np.testing.assert_allclose(found.covariance, expected, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(np.ravel(found.standard_error["curve"]), np.sqrt(np.diag(expected))[:6], rtol=1e-10)
    frame = found.to_frame()
    assert list(frame.columns) == ["estimate", "standard_error", "z", "p_value", "lower", "upper"]
    np.testing.assert_allclose(frame["p_value"], 2 * scipy.stats.norm.sf(np.abs(frame["z"])), rtol=1e-12)
    assert "curve[1,2]" in str(found)
    assert "<td>" in found._repr_html_()


def test_a_gradient_of_zero_is_said_to_tell_nothing_and_a_constant_is_not():
    estimate = counts().params
    with pytest.warns(
        fj.FitWarning, match="the gradient of `square` is zero at the estimate: its first-order variance is 0"
    ):
        found = fj.delta_method(counts(), lambda rate: {"square": (rate - estimate) ** 2, "constant": 0.0 * rate})
    np.testing.assert_array_equal(found.flat, [False, True])
    assert found.names == ("constant", "square")
    assert "Use a profile or the bootstrap." in str(found)
    with pytest.warns(
        fj.FitWarning, match="gradient of"
    ):  # near zero as a fit's tolerance leaves it, and off the diagonal
        near = fj.delta_method(two_means(), lambda p: (p["a"] - 1.0) * (p["b"] - 2.0))
    assert bool(near.flat[0])


@functools.cache
def two_means():
    return fj.fit(
        lambda p, y: norm.logpdf(y[0], p["a"]) + norm.logpdf(y[1], p["b"]),
        {"a": 0.0, "b": 0.0},
        np.array([[0.5, 1.0], [1.5, 3.0]]) + 1e-7,
    )


def test_delta_method_under_jit_and_of_a_batch_equals_that_of_each_fit():
    fit, fits = fitted("gamma"), batch()
    plain = fj.delta_method(fit, mean)
    inside = jax.jit(lambda fit: fj.delta_method(fit, mean))(fit)
    np.testing.assert_allclose(inside.standard_error, plain.standard_error, rtol=1e-12)
    many = fj.delta_method(fits, mean, kind="sandwich", level=0.9)
    assert many.value.shape == (2,)
    assert many.covariance.shape == (2, 1, 1)
    np.testing.assert_allclose(
        many.standard_error[1], fj.delta_method(fits[1], mean, kind="sandwich").standard_error, rtol=1e-10
    )
    np.testing.assert_allclose(many.standard_error[1], 2 * many.standard_error[0], rtol=1e-6)


# The three tests.


def test_the_three_tests_of_the_gamma_shape_match_the_recomputed_row():
    fit = fitted("gamma")
    for shape, ratio, wald, score in (
        (4.5, "1.90756971524", "2.06776264", "2.06781695"),
        (1.0, "184.776565329", "77.4145828", "78.8053742"),
    ):
        hypothesis = {"shape": shape}
        assert_printed(fj.likelihood_ratio_test(fit, hypothesis).statistic, ratio)
        assert_printed(fj.likelihood_ratio_test(fit, held(shape)).statistic, ratio)
        assert_printed(fj.wald_test(fit, hypothesis).statistic, wald, relative=1e-7)  # 1.5e-8 standard errors off
        for kind in ("expected", "observed"):  # one and the same for an exponential family in its own parameters
            assert_printed(fj.score_test(held(shape), kind=kind).statistic, score)
    one = fj.wald_test(fit, {"shape": 4.5})
    np.testing.assert_allclose(one.p_value, 2 * norm.sf(np.sqrt(2.06776264)), rtol=1e-6)
    np.testing.assert_allclose(fj.wald_test(fit, shape_is_one).statistic, fj.wald_test(fit, {"shape": 1.0}).statistic)
    assert str(one).splitlines()[:4] == [
        "Wald test",
        "  Null hypothesis  shape = 4.5",
        "  Statistic        2.06776, chi-squared with 1 degree of freedom",
        "  p-value          0.1504",
    ]


def test_tests_of_one_rate_have_closed_forms():
    # n = 3 counts with mean 3, H0 rate 2: Wald n (3 − 2)²/3, score n (3 − 2)²/2, ratio 2 n (3 log(3/2) − 1).
    np.testing.assert_allclose(fj.wald_test(counts(), 2.0).statistic, 1.0, rtol=1e-9)
    np.testing.assert_allclose(fj.likelihood_ratio_test(counts(), 2.0).statistic, 6 * (3 * np.log(1.5) - 1), rtol=1e-9)


@pytest.mark.exhaustive
def test_a_batch_of_points_has_the_same_likelihood_ratios():
    fits = fj.fit_batch(rate_log_density, 1.0, np.stack([COUNTS, [1.0, 2.0, 3.0]]))
    found = fj.likelihood_ratio_test(fits, 2.0)
    np.testing.assert_allclose(found.statistic, [6 * (3 * np.log(1.5) - 1), 0.0], rtol=1e-9, atol=1e-12)
    assert isinstance(found.p_value, np.ndarray)


def test_hypotheses_are_written_by_structure_by_name_or_as_a_function():
    fit = fitted("spector, logit")
    by_name = fj.wald_test(fit, {"params[0]": 0.0, "params[2]": 0.0})
    assert by_name.hypothesis == ("params[0] = 0", "params[2] = 0")
    same = [
        fj.wald_test(fit, [0.0, None, 0.0, None]),
        fj.wald_test(fit, np.array([0.0, np.nan, 0.0, np.nan])),
        fj.wald_test(fit, lambda beta: {"a": beta[0] + beta[2], "b": beta[0] - beta[2]}),
    ]
    for test in same:
        np.testing.assert_allclose(test.statistic, by_name.statistic, rtol=1e-9)
        assert test.degrees_of_freedom == 2
    assert same[2].hypothesis == ("a = 0", "b = 0")


def test_likelihood_ratio_of_some_entries_matches_statsmodels():
    import statsmodels.api as sm
    from data_sets import as_stata_stores, spector

    y, x = spector()
    x = as_stata_stores(x)
    quiet = {"disp": 0, "tol": 1e-14, "maxiter": 100}
    full, null = sm.Logit(y, x).fit(**quiet), sm.Logit(y, x[:, [0, 3]]).fit(**quiet)
    found = fj.likelihood_ratio_test(fitted("spector, logit"), {"params[1]": 0.0, "params[2]": 0.0})
    np.testing.assert_allclose(found.statistic, 2 * (full.llf - null.llf), rtol=1e-8)
    assert found.degrees_of_freedom == 2
    problem = PROBLEMS["spector, logit"]()
    fits = batch_of(
        *(
            fj.fit(problem.model, problem.start, y, given=problem.given, weights=weights)
            for weights in (np.ones(32), np.r_[np.zeros(2), np.ones(30)])
        )
    )
    many = fj.likelihood_ratio_test(fits, {"params[1]": 0.0, "params[2]": 0.0})
    np.testing.assert_allclose(many.statistic[0], found.statistic, rtol=1e-7)
    second = sm.Logit(y[2:], x[2:]).fit(**quiet).llf - sm.Logit(y[2:], x[2:, [0, 3]]).fit(**quiet).llf
    np.testing.assert_allclose(many.statistic[1], 2 * second, rtol=1e-7)


def test_a_whole_simplex_can_be_held():
    counts = np.array([0, 1, 1, 2, 2, 2])
    fit = fj.fit(fj.Model(lambda p, y: jnp.log(p[y]), constraints=fj.simplex), np.full(3, 1 / 3), counts)
    observed = np.array([1.0, 2.0, 3.0])
    ratio = fj.likelihood_ratio_test(fit, np.full(3, 1 / 3))
    np.testing.assert_allclose(ratio.statistic, 2 * np.sum(observed * np.log(observed / 2)), rtol=1e-9)
    assert ratio.degrees_of_freedom == 2
    np.testing.assert_allclose(
        fj.wald_test(fit, {"params[1]": 0.2}).statistic, (1 / 3 - 0.2) ** 2 / (2 / 9 / 6), rtol=1e-8
    )
    with pytest.raises(ValueError, match=r"\+1 params\[0\] \+1 params\[1\] \+1 params\[2\] is zero"):
        fj.wald_test(fit, np.full(3, 1 / 3))


def test_a_hypothesis_must_lie_in_the_parameters_range():
    counts = np.array([0, 1, 1, 2, 2, 2])
    fit = fj.fit(fj.Model(lambda p, y: jnp.log(p[y]), constraints=fj.simplex), np.full(3, 1 / 3), counts)
    for values in ([0.5, 0.5, 0.5], [-0.5, 0.5, 1.0]):
        with pytest.raises(
            ValueError, match="`params` is positive and summing to one along its last axis, and cannot be"
        ):
            fj.likelihood_ratio_test(fit, np.array(values))


# At the edges.


def test_a_null_on_the_boundary_has_the_mixtures_p_value_and_says_why():
    found = fj.likelihood_ratio_test(at_boundary(), {"tau2": 0.0})
    assert float(found.statistic) == 0.0
    assert float(found.p_value) == float(found.mixture_p_value) == 1.0
    inside, null = inside_and_null(1.0)
    found = fj.likelihood_ratio_test(inside, {"tau2": 0.0})
    assert inside.converged
    assert float(found.statistic) > 0.5
    np.testing.assert_allclose(found.mixture_p_value, 0.5 * found.p_value, rtol=1e-12)
    assert "an even mixture of 0 and 1 degrees of freedom" in " ".join(str(found).split())
    fitted_null = fj.likelihood_ratio_test(inside, null)
    np.testing.assert_allclose(fitted_null.statistic, found.statistic, rtol=1e-9)
    np.testing.assert_allclose(fitted_null.mixture_p_value, found.mixture_p_value, rtol=1e-8)
    assert fj.likelihood_ratio_test(inside, null, num_on_boundary=0).mixture_p_value is None
    # The score points inwards from there too, and needs the null only.
    assert np.isfinite(fj.score_test(null, "tau2").statistic)


@functools.cache
def inside_and_null(size):
    """Fits of data with effects of some size: of the model, and with their variance held at zero."""
    data = at_boundary().origin.dataset.data + size * effects()
    null = fj.Model(variance_log_density, constraints={"tau2": fj.fixed})
    return fj.fit(VARIANCE, {"mu": 0.0, "tau2": 1.0}, data), fj.fit(null, {"mu": 0.0, "tau2": 0.0}, data)


def test_a_batch_of_nulls_on_the_boundary_has_the_mixtures_p_values_too():
    fits, nulls = map(batch_of, inside_and_null(1.0), inside_and_null(2.0))
    found = fj.likelihood_ratio_test(fits, nulls)
    for k in range(2):
        alone = fj.likelihood_ratio_test(fits[k], nulls[k])
        np.testing.assert_allclose(found.mixture_p_value[k], alone.mixture_p_value, rtol=1e-9)


def effects():
    return 0.7 * np.random.default_rng(9).normal(size=(40, 1))


def test_at_a_boundary_there_is_no_wald_test_and_no_standard_error():
    with pytest.warns(fj.FitWarning, match="wald_test: not to be relied on. Boundary"):
        test = fj.wald_test(at_boundary(), {"tau2": 0.5})
    assert np.isnan(test.statistic)
    assert "  p-value          -" in str(test)
    with pytest.warns(fj.FitWarning, match="delta_method: not to be relied on. Boundary"):
        assert np.isnan(fj.delta_method(at_boundary(), lambda p: p["tau2"]).standard_error)
    with pytest.warns(fj.FitWarning, match="tic"):
        assert np.isnan(at_boundary().tic())
    assert "ran to a boundary (direction: tau2)" in str(fj.identifiability(at_boundary()))


def test_a_null_that_fits_better_than_the_alternative_is_said_to():
    short = fj.fit(GAMMA, {"shape": 0.5, "rate": 0.2}, BEEF, max_steps=1)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = fj.likelihood_ratio_test(short, held(4.5))
    assert "the null fits better than the alternative, by up to" in str(said[0].message)
    assert "the fit of the alternative ended with status step limit" in str(said[1].message)
    assert all(issubclass(one.category, fj.FitWarning) for one in said)
    assert float(found.statistic) < 0
    assert np.isnan(found.p_value)
    assert "ended with status step limit" in " ".join(str(found).split())


def test_a_restricted_fit_needs_a_start_inside_and_a_robust_one_a_wald_test():
    ran_out = dataclasses.replace(at_boundary(), values=[at_boundary().values[0], jnp.array(0.0)])
    with pytest.raises(
        ValueError, match=r"the estimate of `tau2`, 0\.0, is not inside its range, so the restricted model has no"
    ):
        fj.likelihood_ratio_test(ran_out, {"mu": 0.0})
    found = fj.likelihood_ratio_test(fj.robust(counts(), correction="n/(n-1)"), 2.0)
    assert "a likelihood ratio takes no account" in " ".join(str(found).split())


def bump_log_density(params, y):
    """A flat background on the unit interval, and a narrow signal of some fraction at some position."""
    signal = jnp.exp(norm.logpdf(y, params["position"], 0.03))
    return jnp.log(1.0 - params["fraction"] + params["fraction"] * signal)


def flat_or_bump(key, params):
    which, at, where = jax.random.split(key, 3)
    signal = params["position"] + 0.03 * jax.random.normal(at)
    return jnp.where(jax.random.uniform(which) < params["fraction"], signal, jax.random.uniform(where))


BUMP = fj.Model(bump_log_density, sample=flat_or_bump, constraints={"fraction": fj.unit_interval})
POSITIONS = {"fraction": np.full(6, 0.05), "position": np.linspace(0.1, 0.9, 6)}


@functools.cache
def bump():
    data = np.random.default_rng(3).uniform(size=100)
    return fj.fit(BUMP, {"fraction": 0.05, "position": 0.5}, data, starts=POSITIONS)


def test_a_null_that_leaves_a_parameter_without_information_has_no_p_value_and_names_it():
    with pytest.warns(
        fj.FitWarning, match=r"have no information about position, .*parametric bootstrap: likelihood_ratio_test\("
    ):
        test = fj.likelihood_ratio_test(bump(), {"fraction": 0.0})
    assert test.statistic > 0
    assert np.isnan(test.p_value)
    assert np.isnan(test.mixture_p_value)
    assert "mixture is the one to use" not in str(test)
    assert "not chi-squared" in str(test)
    with pytest.warns(fj.FitWarning, match="have no information about position"):  # a point of the same density
        assert np.isnan(fj.likelihood_ratio_test(bump(), {"fraction": 0.0, "position": 0.5}).p_value)


def test_the_null_may_be_a_fit_of_a_model_without_the_parameters_or_a_restriction():
    def with_source(params, y):
        return jnp.logaddexp(jnp.log1p(-params["share"]) + norm.logpdf(y, params["loc"], 1.0),
                             jnp.log(params["share"]) + norm.logpdf(y, params["loc"] + params["shift"], 1.0))  # fmt: skip

    data = np.random.default_rng(5).normal(size=80) + 3.0 * (np.arange(80) < 15)
    start = {"share": 0.3, "loc": 0.0, "shift": 2.0}
    fit = fj.fit(fj.Model(with_source, constraints={"share": fj.unit_interval}), start, data)
    assert fit.converged
    alone = fj.fit(lambda params, y: norm.logpdf(y, params["loc"], 1.0), {"loc": 0.0}, data)
    for null, names in ((alone, "shift"), (lambda params: params["shift"], "share")):
        with pytest.warns(fj.FitWarning, match=f"under the null the data have no information about {names}, so that"):
            assert np.isnan(fj.likelihood_ratio_test(fit, null).p_value)


def test_the_bootstraps_p_value_is_that_of_the_statistic_under_the_null():
    """The statistic of an exponential rate of one is 2n (ȳ − 1 − log ȳ), whose distribution numpy draws."""
    data = np.array([0.2, 0.5, 0.9, 0.3, 0.4])
    fit = fj.fit(fj.families.exponential, {"rate": 1.0}, data)

    def statistic(y):
        return 2.0 * y.shape[-1] * (y.mean(-1) - 1.0 - np.log(y.mean(-1)))

    test = fj.likelihood_ratio_test(fit, {"rate": 1.0}, key=jax.random.key(0), num_replicates=999)
    np.testing.assert_allclose(test.statistic, statistic(data), rtol=1e-8)
    drawn = statistic(np.random.default_rng(0).exponential(size=(200_000, 5)))
    exact = np.mean(drawn >= statistic(data))
    assert abs(float(test.p_value) - exact) < 4 * np.sqrt(exact * (1 - exact) / 999)
    assert "by parametric bootstrap, 999 data sets" in str(test)
    with pytest.raises(ValueError, match="num_replicates=5 must be a whole number, at least 19"):
        fj.likelihood_ratio_test(fit, {"rate": 1.0}, key=jax.random.key(0), num_replicates=5)
    with pytest.raises(TypeError, match="takes one fit"):
        fj.likelihood_ratio_test(batch(), {"shape": 1.0}, key=jax.random.key(0))


def test_the_bootstrap_takes_the_look_elsewhere_effect_into_account():
    test = fj.likelihood_ratio_test(
        bump(), {"fraction": 0.0}, key=jax.random.key(1), num_replicates=99, starts=POSITIONS
    )
    at_one_place = 0.5 * (1.0 - float(jax.scipy.special.erf(jnp.sqrt(0.5 * test.statistic))))
    assert test.p_value > 5 * at_one_place
    assert test.mixture_p_value is None
    for starts in ({"fraction": 0.05, "position": 0.5}, {"fraction": np.full(6, 0.05), "position": 0.5}):
        with pytest.raises(
            ValueError, match=r"likelihood_ratio_test: starts has leaves of shapes .* one more leading axis"
        ):
            fj.likelihood_ratio_test(bump(), {"fraction": 0.0}, key=jax.random.key(1), starts=starts)


@pytest.mark.exhaustive
def test_the_bootstrap_rejects_a_true_null_without_information_about_a_position_at_its_level():
    p_values = []
    for seed in range(200):
        data = np.random.default_rng(seed).uniform(size=100)
        fit = fj.fit(BUMP, {"fraction": 0.05, "position": 0.5}, data, starts=POSITIONS)
        settings = {"key": jax.random.key(seed), "num_replicates": 39, "starts": POSITIONS}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", fj.FitWarning)
            p_values.append(float(fj.likelihood_ratio_test(fit, {"fraction": 0.0}, **settings).p_value))
    rejected = np.mean(np.array(p_values) <= 0.05)
    assert abs(rejected - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 200)


def test_identifiability_names_what_is_lost_and_keeps_what_is_not():
    found = fj.identifiability(singular(), lambda p: p["a"] + p["b"])
    assert singular().status is fj.Status.SINGULAR_INFORMATION
    np.testing.assert_array_equal(found.singular, [True, False, False])
    np.testing.assert_allclose(found.eigenvalues, [0.0, 1.0, 2.0], atol=1e-7)
    assert found.describe() in ("+1 a -1 b", "+1 b -1 a")
    assert dict(zip(found.names, found.identified, strict=True)) == {
        "a": False, "b": False, "log_sigma": True, "function": True,
    }  # fmt: skip
    sigma = np.std(singular().origin.dataset.data)
    np.testing.assert_allclose(found.standard_errors[2:], [1 / np.sqrt(100), sigma / np.sqrt(50)], rtol=1e-6)
    assert np.all(np.isnan(found.standard_errors[:2]))
    text = " ".join(str(found).split())
    assert "Directions 3, without information 1, weak 0" in text
    assert "Not identified: a, b." in text
    assert "Still identified: log_sigma (standard error 0.1), function" in text
    sound = fj.identifiability(counts())
    assert bool(sound.all_identified)
    assert "There is enough information along every direction." in str(sound)
    weak = fj.identifiability(fitted("beetles, logit"))
    assert weak.weak[0]
    assert "0.00032         weak" in str(weak)


@pytest.mark.parametrize("unit", [1e8, 1e-8])
def test_what_is_identified_does_not_depend_on_units(unit):
    model = fj.Model(lambda p, y: norm.logpdf(y, p["a"], p["s"]) + 0.0 * p["b"], constraints={"s": fj.positive})
    data = unit * np.random.default_rng(0).normal(size=30)
    fit = fj.fit(model, {"a": 0.0, "b": 0.0, "s": unit}, data)
    found = fj.identifiability(fit, lambda p: {"sum": p["a"] + p["b"], "ratio": p["a"] / p["s"]})
    assert dict(zip(found.names, found.identified.tolist(), strict=True)) == {
        "a": True, "b": False, "s": True, "sum": False, "ratio": True,
    }  # fmt: skip


@pytest.mark.exhaustive
def test_identifiability_of_a_batch_is_that_of_each_fit():
    data = np.random.default_rng(0).normal(2.0, 1.0, (3, 50))
    fits = fj.fit_batch(sum_log_density, {"a": 1.0, "b": 1.0, "log_sigma": 0.0}, data)
    found = fj.identifiability(fits)
    assert found.eigenvalues.shape == (3, 3)
    np.testing.assert_array_equal(found.all_identified, [False, False, False])
    np.testing.assert_allclose(found[1].eigenvalues, fj.identifiability(fits[1]).eigenvalues, atol=1e-12)
    assert "With a direction without information  3" in str(found)


# Scores of candidates.


def regression_log_density(beta, y, z):
    return poisson.logpmf(y, jnp.exp(z @ beta))


def with_offset(beta, y, z, offset):
    return poisson.logpmf(y, jnp.exp(z @ beta + offset))


@functools.cache
def regression():
    """Counts, a design of two columns, candidates of which the last follows from the design, and the null fits."""
    rng = np.random.default_rng(0)
    design = np.column_stack([np.ones(200), rng.normal(size=200)])
    columns = rng.normal(size=(200, 5))
    columns[:, 4] = 2 * design[:, 1] + 1
    y = rng.poisson(np.exp(design @ [0.3, 0.5] + 0.2 * columns[:, 0])).astype(float)
    linked = fj.linked(fj.families.poisson, lambda beta, z: {"rate": jnp.exp(z @ beta)})
    return (
        y,
        design,
        columns,
        fj.fit(linked, np.zeros(2), y, given=design),
        fj.fit(regression_log_density, np.zeros(2), y, given=design),
    )


def test_scores_of_candidates_match_statsmodels_one_by_one():
    import statsmodels.api as sm

    y, design, columns, linked, plain = regression()
    model = sm.GLM(y, design, family=sm.families.Poisson()).fit(tol=1e-14)
    expected = [model.score_test(exog_extra=columns[:, [k]])[0].item() for k in range(4)]
    for fit, enters in ((linked, None), (linked, "rate"), (plain, with_offset)):
        with pytest.warns(fj.FitWarning, match="1 of 5 tests have no statistic: a candidate follows from"):
            found = fj.score_test(fit, candidates=columns, enters=enters)
        np.testing.assert_allclose(found.statistic[:4], expected, rtol=1e-7)
        assert np.isnan(found.statistic[4])
    assert "Without a statistic  1" in str(found)
    pairs = fj.score_test(linked, candidates=columns[:, :4].reshape(200, 2, 2))
    assert pairs.degrees_of_freedom == 2
    both = model.score_test(exog_extra=columns[:, 2:4])[0].item()
    np.testing.assert_allclose(pairs.statistic[1], both, rtol=1e-7)


@pytest.mark.parametrize("kind", ["observed", "empirical", "sandwich"])
def test_a_candidate_has_the_same_score_as_a_held_effect_freed(kind):
    _, _, columns, linked, _ = regression()
    found = fj.score_test(linked, candidates=columns[:, :2], kind=kind)
    freed = fj.score_test(effect_held(), "effect", kind=kind)
    np.testing.assert_allclose(found.statistic[0], freed.statistic, rtol=1e-7)


def test_the_score_test_does_not_pass_over_clusters():
    _, _, columns, linked, _ = regression()
    by_cluster = fj.robust(linked, clusters=np.arange(200) // 4)
    with pytest.raises(ValueError, match=r"score_test: this fit has a robust covariance \(sandwich by 50 clusters"):
        fj.score_test(by_cluster, candidates=columns, kind="sandwich")
    same = fj.score_test(linked, candidates=columns[:, :2]).statistic
    np.testing.assert_array_equal(fj.score_test(by_cluster, candidates=columns[:, :2]).statistic, same)


@functools.cache
def effect_held():
    y, design, columns, _, _ = regression()
    model = fj.Model(
        lambda p, y, z: poisson.logpmf(y, jnp.exp(z["x"] @ p["beta"] + p["effect"] * z["extra"])),
        constraints={"effect": fj.fixed},
    )
    return fj.fit(model, {"beta": np.zeros(2), "effect": 0.0}, y, given={"x": design, "extra": columns[:, 0]})


def test_robust_score_statistic_is_written_out_in_numpy():
    # Boos (1992), eq. (7), for one extra column of a Poisson regression.
    y, design, columns, linked, _ = regression()
    found = fj.score_test(linked, candidates=columns[:, :2], kind="sandwich")
    for x, statistic in zip(columns[:, :2].T, found.statistic, strict=True):
        mu = np.exp(design @ np.asarray(linked.params))
        adjusted = x - design @ np.linalg.solve(design.T @ (mu[:, None] * design), design.T @ (mu * x))
        np.testing.assert_allclose(statistic, (x @ (y - mu)) ** 2 / np.sum((adjusted * (y - mu)) ** 2), rtol=1e-7)


def test_scores_of_a_batch_are_those_of_each_fit():
    y, design, columns, linked, _ = regression()
    fits = batch_of(linked, fj.fit(linked.origin.model, np.zeros(2), y[::-1], given=design))
    found = fj.score_test(fits, candidates=columns[:, :2])
    np.testing.assert_allclose(
        found.statistic[0], fj.score_test(linked, candidates=columns[:, :2]).statistic, rtol=1e-7
    )
    np.testing.assert_allclose(
        found.statistic[1], fj.score_test(fits[1], candidates=columns[:, :2]).statistic, rtol=1e-7
    )


@pytest.mark.exhaustive
def test_scores_of_values_held_differently_in_each_of_a_batch():
    nulls = fj.fit_batch(
        HELD,
        {"shape": np.array([4.5, 1.0]), "rate": 1.0},
        np.stack([BEEF, BEEF]),
        start_axis={"shape": 0, "rate": None},
    )
    assert_printed(fj.score_test(nulls).statistic, "2.06781695 78.8053742")


# Model choice.


def test_criteria_have_their_closed_forms():
    fit = fitted("gamma")
    np.testing.assert_allclose(fit.aicc(), fit.aic() + 2 * 2 * 3 / (254 - 3), rtol=1e-12)
    penalty = np.trace(np.linalg.inv(np.asarray(fit.covariance("empirical"))) @ np.asarray(fit.covariance()))
    np.testing.assert_allclose(fit.tic(), 2 * penalty - 2 * fit.log_likelihood, rtol=1e-9)
    np.testing.assert_allclose(batch().aicc()[0], fit.aicc(), rtol=1e-9)
    np.testing.assert_allclose(batch().tic()[0], fit.tic(), rtol=1e-7)
    assert np.isnan(fj.fit(rate_log_density, 1.0, COUNTS[:2]).aicc())


def test_fits_are_compared_in_a_table():
    table = fj.compare({name: fitted(name) for name in ("lognormal", "weibull", "gamma")})
    assert table.names == ("gamma", "weibull", "lognormal")
    aic = np.array([4 + 2 * 1253.62511368925, 4 + 2 * 1255.22471986, 4 + 2 * 1261.319299])
    np.testing.assert_allclose(table.aic, aic, rtol=1e-9)
    np.testing.assert_allclose(table.difference, aic - aic[0], atol=1e-6)
    np.testing.assert_allclose(
        table.weight, np.exp(-0.5 * (aic - aic[0])) / np.exp(-0.5 * (aic - aic[0])).sum(), rtol=1e-6
    )
    assert str(table).splitlines()[-3].split()[:4] == ["gamma", "-1253.625", "2", "2511.25"]
    assert list(table.to_frame().index) == list(table.names)
    assert table.to_latex().splitlines()[4].startswith("gamma & -1253.625 & 2 &")
    assert "<td>2511.25</td>" in table._repr_html_()
    with pytest.warns(fj.FitWarning, match="did not converge, so not to be relied on: alternative"):
        edge = fj.compare(alternative=at_boundary(), same=at_boundary(), criterion="bic")
    assert np.all(np.isnan(edge.tic))


def test_data_laid_out_otherwise_may_be_the_same():
    """A model of y alone, and one whose data are both y and a covariate."""
    x, y = np.random.default_rng(0).normal(size=(2, 30))
    alone = fj.fit(lambda p, y: norm.logpdf(y, p), 0.0, y)
    both = fj.fit(lambda p, d: norm.logpdf(d["y"], p[0] + p[1] * d["x"]), np.zeros(2), {"x": x, "y": y})
    assert set(fj.compare(alone=alone, both=both).names) == {"alone", "both"}
    assert float(fj.likelihood_ratio_test(both, alone).statistic) > 0
    with pytest.raises(ValueError, match="fits of different data"):
        fj.compare(alone=alone, other=fj.fit(lambda p, y: norm.logpdf(y, p), 0.0, y + 1.0))


def test_coefficients_stand_side_by_side():
    table = fj.coefficient_table(free=fitted("gamma"), held=held(4.5))
    assert table.parameters == ("shape", "rate")
    np.testing.assert_allclose(table.estimates[0], [4.00833903182907, 4.5])
    assert_printed(table.standard_errors[1, 0], "0.00494611370441")
    assert np.isnan(table.standard_errors[0, 1])
    lines = str(table).splitlines()
    assert lines[1] == "  Covariance  inverse observed information, (minus Hessian)⁻¹"
    assert lines[5].split() == ["rate", "0.054427", "(0.00495)", "0.061103", "(0.00181)"]
    assert table.to_frame()["free"]["standard_error"].iloc[1] == table.standard_errors[1, 0]
    assert list(table.to_frame()["held"].columns) == list(fitted("gamma").to_frame().columns)
    assert r"shape & 4.008 & 4.5 \\" in table.to_latex()
    assert "<th>shape</th>" in table._repr_html_()


@pytest.mark.parametrize("show", ["standard_error", "z", "p_value", "interval"])
def test_a_table_shows_what_was_chosen_in_brackets(show):
    fit = fj.fit(fj.families.normal, None, BEEF)
    table, row = fj.coefficient_table(curve=fit, show=show, level=0.6827), fit.to_frame(level=0.6827).loc["loc"]
    numbers = row[["lower", "upper"]] if show == "interval" else [row[show]]
    assert f"({', '.join(f'{x:.3g}' for x in numbers)})" in str(table)
    assert f"({', '.join(f'{x:.4g}' for x in numbers)})" in table.to_latex()
    assert show != "interval" or "68.27 % intervals" in str(table)
    np.testing.assert_array_equal(table.to_frame()["curve"].loc["loc"], row)


def test_matrices_have_labels_on_request():
    fit = fitted("gamma")
    for method in (fit.covariance, fit.correlation):
        frame = method("sandwich", labels=True)
        assert list(frame.index) == list(frame.columns) == list(fit.names)
        np.testing.assert_array_equal(frame, method("sandwich"))
    with pytest.raises(ValueError, match="labels=True gives the matrix of one fit"):
        batch().covariance(labels=True)


# Precision.


def test_float32_fits_have_the_same_tests():
    start = {"shape": np.float32(1.0), "rate": np.float32(1.0)}
    single = fj.fit(GAMMA, start, BEEF.astype(np.float32))
    for test, expected in ((fj.wald_test, 2.06776264), (fj.likelihood_ratio_test, 1.90756971524)):
        np.testing.assert_allclose(test(single, {"shape": 4.5}).statistic, expected, rtol=1e-3)
    np.testing.assert_allclose(fj.delta_method(single, mean).standard_error, 2.308065509652, rtol=1e-3)


def test_float32_batches_have_the_ratios_of_their_fits():
    """Of 20 000 terms each log-likelihood is known to a few thousandths in float32, their difference by terms far better."""
    data = np.random.default_rng(0).normal(2.0, 3.0, size=(2, 20_000)).astype(np.float32)
    start = {"loc": np.float32(1.9), "scale": np.float32(1.0)}
    constraints = {"loc": None, "scale": fj.positive}
    full, held = (fj.Model(normal_log_density, constraints=constraints | {"loc": loc}) for loc in (None, fj.fixed))
    fits, nulls = (fj.fit_batch(model, start, data) for model in (full, held))
    found = fj.likelihood_ratio_test(fits, nulls).statistic
    rough = 2 * (fits.log_likelihood - nulls.log_likelihood)
    for k in range(2):
        alone = fj.likelihood_ratio_test(fits[k], nulls[k]).statistic
        np.testing.assert_allclose(found[k], alone, rtol=1e-6)
    assert np.max(np.abs(rough - found)) > 1e-3


def test_a_cell_without_observations_has_no_likelihood_ratio_and_is_not_counted():
    fits = batch(second_has_rows=False)
    with pytest.warns(fj.FitWarning, match="1 fits of the alternative did not converge"):
        test = fj.likelihood_ratio_test(fits, {"shape": 1.0, "rate": 1.0})
    assert np.isnan(test.p_value).tolist() == [False, True]
    assert "Without a statistic  1" in str(test)
    with pytest.warns(fj.FitWarning, match="too few observations"):
        assert np.isnan(fj.likelihood_ratio_test(fits[1], {"shape": 1.0}).p_value)
    with pytest.warns(fj.FitWarning, match="did not converge"):
        table = fj.compare(full=fits[1], empty=fits[1])
    assert np.isnan(table.aic).all()


def test_float32_fits_of_rows_and_of_weights_can_be_compared():
    start, data = {"loc": np.float32(2.0), "scale": np.float32(1.0)}, np.array([1.0, 2.0, 3.0, 6.0], np.float32)
    free, held = (
        fj.Model(normal_log_density, constraints={"loc": loc, "scale": fj.positive}) for loc in (None, fj.fixed)
    )
    rows = fj.fit(free, start, np.repeat(data, 2))
    weighted = fj.fit(held, start, data, weights=np.full(4, 2.0, np.float32))
    expected = 2 * (rows.log_likelihood - weighted.log_likelihood)
    np.testing.assert_allclose(fj.likelihood_ratio_test(rows, weighted).statistic, expected, rtol=1e-5)


@pytest.mark.exhaustive
def test_float32_fits_have_the_same_score_test():
    null = fj.fit(HELD, {"shape": np.float32(4.5), "rate": np.float32(1.0)}, BEEF.astype(np.float32))
    np.testing.assert_allclose(fj.score_test(null).statistic, 2.06781695, rtol=1e-2)


@pytest.mark.exhaustive
@pytest.mark.parametrize("n", [25, 100, 500])
def test_sizes_of_the_three_tests_are_five_percent_but_for_small_samples(n):
    # Of 4000 samples under the null 5 % reject within 1.4 points (4 standard errors); at n = 25 the Wald test of a shape, whose
    # estimate is skewed, and by less the likelihood ratio reject too often.
    keys = jax.random.split(jax.random.key(n), 4000 * n)
    data = np.asarray(jax.vmap(lambda key: fj.families.gamma.sample(key, {"shape": 2.0, "rate": 1.0}))(keys)).reshape(
        4000, n
    )
    fits = fj.fit_batch(GAMMA, {"shape": 2.0, "rate": 1.0}, data)
    nulls = fj.fit_batch(HELD, {"shape": 2.0, "rate": 1.0}, data, covariances=())
    sizes = [
        np.mean(test.p_value < 0.05)
        for test in (fj.likelihood_ratio_test(fits, nulls), fj.score_test(nulls), fj.wald_test(fits, {"shape": 2.0}))
    ]
    allowed = 0.014 if n > 25 else 0.03
    assert np.all(np.abs(np.array(sizes) - 0.05) < allowed), sizes
