"""Profile likelihoods: ends to full precision, and what is said where there are none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data_sets import BEEF, GAMMA, PROBLEMS
from helpers import some_of
from jax.scipy.stats import norm
from scipy.optimize import brentq, minimize_scalar
from scipy.special import gammaln, xlogy
from scipy.stats import nbinom, poisson

import fisher_jax as fj

CUT = 1.920729410347062  # half the 95 % quantile of chi-squared with one degree of freedom


@functools.cache
def fitted(name):
    problem = PROBLEMS[name]()
    fit = fj.fit(problem.model, problem.start, problem.data, given=problem.given)
    assert fit.status.converged, fit.diagnosis()
    return fit


@functools.cache
def gamma_profile():
    return fj.profile_likelihood(fitted("gamma"))


def bernoulli(p, y):
    return jnp.where(y > 0, jnp.log(p), jnp.log1p(-p))


def tied(params, y):
    """Only a + b can be told."""
    return norm.logpdf(y, params["a"] + params["b"], params["scale"])


def cauchy(loc, y):
    return -jnp.log1p((y - loc) ** 2)


TIED = fj.Model(tied, constraints={"scale": fj.positive})
Y = np.random.default_rng(4).normal(size=30)

# Recomputed to full precision: the gamma row by an independent implementation; the others by solving score and cut-off with
# mpmath at 30 digits (R's confint interpolates, and is off in the sixth digit).
PRINTED = {
    "gamma": {"shape": (3.376349098, 4.717763028), "rate": (0.04528679901, 0.06469147237)},
    "ec50": {"ymax": (17.88151257852333, 34.61862613490636), "xhalf": (1.661424150681364, 6.478448178939414)},
    "beetles, logit": {"params[1]": (28.8539070777768573, 40.3005272156051175)},
}


@pytest.mark.parametrize("name", some_of(PRINTED, "gamma", "beetles, logit"))
def test_ends_match_those_recomputed_by_others(name):
    profile = gamma_profile() if name == "gamma" else fj.profile_likelihood(fitted(name))
    for parameter, ends in PRINTED[name].items():
        received = profile.interval[profile.names.index(parameter)]
        np.testing.assert_allclose(received, ends, rtol=1e-9)
    assert profile.lower_end == profile.upper_end == ("cut-off reached",) * len(profile.names)


def test_a_function_is_profiled_as_if_it_were_a_parameter():
    """The mean of a gamma: the density rewritten in the mean, its shape maximised by scipy at each."""

    def best(mean):
        def loss(shape):
            rate = shape / mean
            return -np.sum(xlogy(shape, rate) - gammaln(shape) + (shape - 1) * np.log(BEEF) - rate * BEEF)

        return -minimize_scalar(loss, bounds=(2.0, 7.0), method="bounded", options={"xatol": 1e-11}).fun

    top, centre = best(BEEF.mean()), BEEF.mean()
    expected = [brentq(lambda mean: best(mean) - top + CUT, centre, far, xtol=1e-9) for far in (60.0, 90.0)]
    profile = fj.profile_likelihood(fitted("gamma"), lambda p: {"mean": p["shape"] / p["rate"], "same": p["shape"]})
    assert profile.names == ("mean", "same")
    np.testing.assert_allclose(profile.interval[0], expected, rtol=1e-8)
    np.testing.assert_allclose(profile.interval[1], gamma_profile().interval[0], rtol=1e-9)
    np.testing.assert_allclose(profile.standard_error[0], 2.308065509652, rtol=1e-9)  # the delta method's


def test_points_of_the_curve_are_restricted_maxima():
    profile, fit = gamma_profile(), fitted("gamma")
    for k, name in enumerate(profile.names):
        used = np.isfinite(profile.value[k])
        assert used.sum() >= 7
        assert np.all(np.diff(profile.value[k][used]) > 0)
        assert np.all(np.diff(profile.signed_root[k][used]) > 0)
        for point in np.flatnonzero(used):
            params = jax.tree.map(lambda leaf, k=k, point=point: leaf[k, point], profile.params)
            assert float(params[name]) == pytest.approx(profile.value[k, point], rel=1e-12)
            drop = fit.log_likelihood - fj.log_likelihood(fit.origin.model, params, BEEF)
            np.testing.assert_allclose(drop, -profile.log_likelihood[k, point], atol=1e-6)
            slopes = fj.score(fit.origin.model, params, BEEF)
            other = next(n for n in profile.names if n != name)
            assert abs(slopes[other]) * fit.standard_errors()[other] < 5e-3


def test_the_fit_gives_profile_intervals_too_with_fixed_parameters_at_their_value():
    model = fj.Model(
        lambda p, y: jnp.log(p["share"][y]) + 0 * p["held"], constraints={"share": fj.simplex, "held": fj.fixed}
    )
    fit = fj.fit(model, {"share": np.array([0.2, 0.3, 0.5]), "held": 7.0}, np.array([0, 0, 1, 1, 2, 2, 2, 2]))
    found = fit.confidence_intervals(level=0.95, method="profile")
    assert found["held"].tolist() == [7.0, 7.0]

    def fall(p, k):  # of one category's share among n, the others in proportion
        return xlogy(k, p) + xlogy(8 - k, 1 - p) - xlogy(k, k / 8) - xlogy(8 - k, 1 - k / 8) + CUT

    for row, k in zip(found["share"], (2, 2, 4), strict=True):
        exact = [brentq(fall, *ends, args=(k,), xtol=1e-13) for ends in ((1e-9, k / 8), (k / 8, 1 - 1e-9))]
        np.testing.assert_allclose(row, exact, rtol=1e-9)


def test_one_parameter_and_what_is_printed_of_it():
    fit = fj.fit(fj.families.poisson, {"rate": 1.0}, np.array([2.0, 4.0, 3.0]))
    profile = fj.profile_likelihood(fit)
    exact = [brentq(lambda r: 9 * np.log(r / 3) - 3 * (r - 3) + CUT, *ends) for ends in ((0.1, 3.0), (3.0, 20.0))]
    np.testing.assert_allclose(profile.interval[0], exact, rtol=1e-9)
    assert str(profile).splitlines() == [
        "Profile likelihood",
        "  Cut-off  1.9207 nats below the maximum, ½ χ² with one degree of freedom",
        "",
        "  parameter  estimate  lower 95 %  upper 95 %  lower / Wald  upper / Wald",
        "  rate              3     1.44154      5.4081      0.795148       1.22864",
    ]
    assert "<td>5.4081</td>" in profile._repr_html_()
    assert list(profile.to_frame().index) == ["rate"]


@pytest.mark.exhaustive
def test_float32_ends_are_right_to_its_own_precision():
    start = {"shape": np.float32(1.0), "rate": np.float32(1.0)}
    fit = fj.fit(GAMMA, start, BEEF.astype(np.float32))
    profile = fj.profile_likelihood(fit)
    assert profile.lower.dtype == np.float32
    np.testing.assert_allclose(profile.interval, gamma_profile().interval, rtol=2e-5)


# Where there is no end, or not that one.


@pytest.mark.exhaustive
def test_an_infinite_end_is_said():
    profile = fj.profile_likelihood(fitted("orobanche"), parameters="theta")
    assert profile.upper[0] == np.inf
    assert profile.lower[0] == pytest.approx(18.0153810184, rel=1e-9)
    assert "Theta, upper end: never falls to the cut-off; at" in str(profile)
    assert "the profile has fallen by 1.146 of" in str(profile)


def test_a_boundary_optimum_has_one_end_and_the_edge():
    fit = fj.fit(fj.Model(bernoulli, constraints=fj.unit_interval), 0.5, np.ones(10))
    assert fit.status == fj.Status.BOUNDARY
    with pytest.warns(fj.FitWarning, match="not to be relied on. Boundary"):
        profile = fj.profile_likelihood(fit)
    np.testing.assert_allclose(profile.interval[0], [np.exp(-CUT / 10), 1.0], rtol=1e-7)
    text = str(profile)
    assert "The fit did not converge: Boundary" in text
    assert "Params, upper end: the interval goes to 1, the edge of the range" in text
    assert text.splitlines()[4].split()[-2:] == ["-", "-"]  # no Wald interval to compare with
    with pytest.warns(fj.FitWarning, match="Boundary"):
        odds = fj.profile_likelihood(fit, lambda p: p**2)
    np.testing.assert_allclose(odds.interval[0], [np.exp(-CUT / 5), 1.0], rtol=1e-6)
    assert "up to the edge of the function's range" in str(odds)


def test_separation_leaves_a_slope_with_a_lower_end_only():
    x = np.linspace(-2.0, 2.0, 12)
    y = (x > 0.1).astype(float)
    fit = fj.fit(lambda b, y, x: jax.nn.log_sigmoid((2 * y - 1) * b * x), 0.0, y, given=x)
    assert fit.status == fj.Status.BOUNDARY
    with pytest.warns(fj.FitWarning, match="Boundary"):
        profile = fj.profile_likelihood(fit)
    exact = brentq(lambda b: -np.sum(np.log1p(np.exp(-b * np.abs(x)))) + CUT, 0.01, 50.0)
    np.testing.assert_allclose(profile.lower[0], exact, rtol=1e-7)
    assert profile.upper[0] == np.inf
    assert "Params, upper end: never falls to the cut-off" in str(profile)


def test_another_parameter_may_leave_the_edge_that_it_lies_at():
    """Counts less spread than Poisson: the size of a negative binomial is infinite at the estimate, but not far from it."""
    y = np.random.default_rng(0).poisson(3.8, size=(400, 20))[9]
    fit = fj.fit(fj.families.negative_binomial, {"mean": 5.0, "size": 2.0}, y)
    assert fit.status == fj.Status.BOUNDARY

    def best(mean):
        def loss(log_size):
            size = np.exp(log_size)
            return -np.sum(nbinom.logpmf(y, size, size / (size + mean)))

        return max(-minimize_scalar(loss, bounds=(-1.0, 8.0), method="bounded").fun, np.sum(poisson.logpmf(y, mean)))

    top = np.sum(poisson.logpmf(y, y.mean()))
    exact = [brentq(lambda mean: best(mean) - top + CUT, y.mean(), far) for far in (0.4 * y.mean(), 2.0 * y.mean())]
    assert best(exact[1]) > np.sum(poisson.logpmf(y, exact[1])) + 0.01  # a Poisson's profile ends nearer
    with pytest.warns(fj.FitWarning, match="Boundary"):
        profile = fj.profile_likelihood(fit, parameters="mean")
    np.testing.assert_allclose(profile.interval[0], exact, rtol=1e-7)


@pytest.mark.parametrize("seed", [4, 7])
def test_a_singular_direction_is_infinite_whatever_rounding_does_far_away(seed):
    y = np.random.default_rng(seed).normal(size=30)
    fit = fj.fit(TIED, {"a": 0.0, "b": 0.0, "scale": 1.0}, y)
    with pytest.warns(fj.FitWarning, match="Singular information"):
        profile = fj.profile_likelihood(fit)
    assert profile.interval[:2].tolist() == [[-np.inf, np.inf]] * 2


def test_a_singular_direction_is_infinite_and_the_rest_is_told():
    fit = fj.fit(TIED, {"a": 0.0, "b": 0.0, "scale": 1.0}, Y)
    assert fit.status == fj.Status.SINGULAR_INFORMATION
    with pytest.warns(fj.FitWarning, match="Singular information"):
        profile = fj.profile_likelihood(fit)
    assert profile.interval[:2].tolist() == [[-np.inf, np.inf]] * 2
    squares = np.sum((Y - Y.mean()) ** 2)

    def fall(scale):
        return -30 * np.log(scale) - squares / (2 * scale**2) + 15 * np.log(squares / 30) + 15 + CUT

    exact = [brentq(fall, *ends) for ends in ((0.2, np.sqrt(squares / 30)), (np.sqrt(squares / 30), 5.0))]
    np.testing.assert_allclose(profile.interval[2], exact, rtol=1e-7)
    assert "A, lower end: never falls to the cut-off" in str(profile)
    assert "On the profile of scale some of the other parameters cannot be told apart." in str(profile)


def test_a_better_peak_restarts_the_fit_and_says_so():
    y = np.array([-2.0, -2.1, 1.9, 2.0, 2.2])
    lower, higher = fj.fit(cauchy, -2.0, y), fj.fit(cauchy, 2.0, y)
    assert lower.converged
    profile = fj.profile_likelihood(lower)
    gain = float(higher.log_likelihood - lower.log_likelihood)
    assert gain > 1
    assert profile.num_restarts == 1
    np.testing.assert_allclose(profile.interval, fj.profile_likelihood(higher).interval, rtol=1e-9)
    assert f"A better optimum was found on the way, higher by {gain:.4g} nats" in str(profile)
    assert float(profile.fit.log_likelihood) == pytest.approx(float(higher.log_likelihood))
    with pytest.warns(fj.FitWarning, match="an end is NaN for params; print"):
        assert np.isnan(lower.confidence_intervals(level=0.95, method="profile")[1])


def test_a_fit_that_stopped_too_early_is_finished_first():
    fit = fj.fit(GAMMA, {"shape": 1.0, "rate": 1.0}, BEEF, max_steps=3)
    with pytest.warns(fj.FitWarning, match="Step limit"):
        profile = fj.profile_likelihood(fit)
    np.testing.assert_allclose(profile.interval, gamma_profile().interval, rtol=1e-9)
    assert profile.num_restarts == 1


def test_a_function_that_does_not_move_is_not_answered():
    with pytest.warns(fj.FitWarning, match="an end is NaN for function"):
        profile = fj.profile_likelihood(fitted("gamma"), lambda p: 0.0 * p["rate"])
    assert "Function, lower end: could not be followed to the cut-off" in str(profile)


# Many fits, and devices.


def test_every_fit_of_a_batch_has_the_intervals_that_it_has_by_itself():
    weights = np.ones((5, len(BEEF)))
    weights[1, :100] = 0.0
    weights[2] = np.random.default_rng(0).integers(0, 4, len(BEEF))
    fits = fj.fit_batch(GAMMA, {"shape": 1.0, "rate": 1.0}, BEEF, weights=weights, data_axis=None)
    found = fits.confidence_intervals(level=0.95, method="profile")
    assert found["shape"].shape == (5, 2)
    for k in range(5):
        single = fj.fit(GAMMA, {"shape": 1.0, "rate": 1.0}, BEEF, weights=weights[k])
        expected = single.confidence_intervals(level=0.95, method="profile")
        for name in expected:
            np.testing.assert_allclose(found[name][k], expected[name], rtol=1e-9)


def test_profile_intervals_of_a_batch_without_fits_and_of_failed_fits():
    fits = fj.fit_batch(GAMMA, {"shape": 1.0, "rate": 1.0}, np.stack([BEEF, np.ones_like(BEEF)]))
    assert fits[:0].confidence_intervals(level=0.95, method="profile")["shape"].shape == (0, 2)
    with pytest.warns(fj.FitWarning) as said:
        fits.confidence_intervals(level=0.95, method="profile")
    assert any("confidence_intervals: 1 of 2 fits did not converge" in str(warning.message) for warning in said)


@pytest.mark.exhaustive
def test_profile_intervals_cover_as_often_as_they_say():
    """2000 gamma samples of 50: the share within three Monte Carlo standard errors and a point and a half of 95 %."""
    draws = np.random.default_rng(8).gamma(3.0, 1.0, size=(2000, 50))
    found = fj.fit_batch(GAMMA, {"shape": 1.0, "rate": 1.0}, draws).confidence_intervals(level=0.95, method="profile")
    for name, truth in (("shape", 3.0), ("rate", 1.0)):
        share = np.mean((found[name][:, 0] < truth) & (truth < found[name][:, 1]))
        assert abs(share - 0.95) < 0.015 + 3 * np.sqrt(0.05 * 0.95 / 2000)


def test_a_summary_may_show_profile_intervals():
    fit = fitted("gamma")
    text = str(fit.summary("sandwich", level=0.9, method="profile"))
    ends = fit.confidence_intervals(level=0.9, method="profile")
    assert "Intervals                by profile likelihood" in text
    assert f"{ends['shape'][0]:.6g}" in text
    assert f"{ends['shape'][1]:.6g}" in text
    frame = fit.to_frame(level=0.9, method="profile")
    np.testing.assert_allclose(frame.loc["rate", ["lower", "upper"]].to_numpy(float), ends["rate"], rtol=1e-12)
    with pytest.raises(ValueError, match="summary: method='bca' is unknown"):
        fit.summary(method="bca")


def log_mean(params):
    return {"log mean": jnp.log(params["shape"] / params["rate"])}


@functools.cache
def many():
    """Three fits: whole data, half of the data, and one that does not converge."""
    weights = np.ones((3, len(BEEF)))
    weights[1, ::2] = 0.0
    data = np.stack([BEEF, BEEF, np.ones_like(BEEF)])
    return fj.fit_batch(GAMMA, {"shape": 1.0, "rate": 1.0}, data, weights=weights)


@functools.cache
def profiles_of_many():
    with pytest.warns(fj.FitWarning) as warned:
        profiles = fj.profile_likelihood(many(), log_mean)
    assert [str(warning.message)[:60] for warning in warned] == [
        "profile_likelihood: 1 of 3 fits did not converge, and their ",
        "profile_likelihood: an end is NaN in 1 of 3 fits; print the ",
    ]
    return profiles


def test_a_function_of_each_fit_of_a_batch_has_the_profile_that_it_has_by_itself():
    found = profiles_of_many()
    assert found.interval.shape == (3, 1, 2)
    for k in (0, 1):
        alone = fj.profile_likelihood(many()[k], log_mean)
        one = found[k]
        np.testing.assert_allclose(one.interval, alone.interval, rtol=1e-9)
        np.testing.assert_allclose(one.standard_error, alone.standard_error, rtol=1e-9)
        used = np.isfinite(one.value)
        np.testing.assert_allclose(one.value[used], alone.value[np.isfinite(alone.value)], rtol=1e-6)
        assert one.upper_end == alone.upper_end == ("cut-off reached",)
        assert one.names == ("log mean",)
        assert str(one) == str(alone)
    assert np.isnan(found.standard_error[2]).all()


def test_profiles_of_many_fits_index_iterate_print_and_frame():
    found = profiles_of_many()
    assert len(found) == len(found[:2]) + 1 == 3
    assert [one.estimate[0] for one in found] == found.estimate[:, 0].tolist()
    assert len(found[np.array([True, False, True])]) == 2
    text = str(found)
    assert "Fits     3" in text
    assert "1 of 3 fits did not converge." in text
    assert "medians over the fits" in text
    frame = found.to_frame()
    assert frame.index.names == ["fit", "name"]
    np.testing.assert_array_equal(frame.loc[(1, "log mean"), "upper"], found.upper[1, 0])
    shape = jax.tree.leaves(found.params)[0].shape
    assert shape == found.value.shape
    with pytest.raises(TypeError, match="this is one fit, without a batch axis"):
        found[0][0]


def test_a_fit_of_a_batch_that_stopped_early_is_profiled_from_where_it_goes_on():
    fits = fj.fit_batch(GAMMA, {"shape": 1.0, "rate": 1.0}, np.stack([BEEF, BEEF]), max_steps=2, retry=False)
    assert not np.any(fits.converged)
    with pytest.warns(fj.FitWarning, match="2 of 2 fits did not converge"):
        found = fj.profile_likelihood(fits)
    assert found.num_restarts.tolist() == [1, 1]
    assert found.fit.converged.all()
    np.testing.assert_allclose(found.interval, np.stack([gamma_profile().interval] * 2), rtol=1e-8)
    assert "In 2 of 2 fits a better optimum was found" in str(found)


def test_the_profile_of_a_batch_without_fits_is_an_error():
    with pytest.raises(ValueError, match="profile_likelihood: there are no fits in this batch"):
        fj.profile_likelihood(many()[:0])
