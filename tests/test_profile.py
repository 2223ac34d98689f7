"""Profile likelihoods: ends to full precision, and what is said where there are none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data_sets import BEEF, GAMMA, PROBLEMS
from helpers import batch_of, compiled_programs, some_of
from jax.scipy.stats import norm
from scipy.optimize import brentq, minimize_scalar
from scipy.special import gammaln, xlogy

import fisher_jax as fj
from fisher_jax.profile import sides

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


def normal(params, y):
    return norm.logpdf(y, params["loc"], params["scale"])


def ratio(params):
    return {"ratio": params["loc"] / params["scale"]}


def cauchy(loc, y):
    return -jnp.log1p((y - loc) ** 2)


BERNOULLI = fj.Model(bernoulli, constraints=fj.unit_interval)
TIED = fj.Model(tied, constraints={"scale": fj.positive})
NORMAL = fj.Model(normal, constraints={"scale": fj.positive})
Y = np.random.default_rng(4).normal(size=30)

# Recomputed to full precision: the gamma row by an independent implementation; the others by solving score and cut-off with
# mpmath at 30 digits (R's confint interpolates, and is off in the sixth digit).
PRINTED = {
    "gamma": {"shape": (3.376349098, 4.717763028), "rate": (0.04528679901, 0.06469147237)},
    "ec50": {"ymax": (17.88151257852333, 34.61862613490636), "xhalf": (1.661424150681364, 6.478448178939414)},
    "beetles, logit": {"params[1]": (28.8539070777768573, 40.3005272156051175)},
}


def test_profiles_of_parameters_compile_nothing_after_the_fit():
    fit = fitted("gamma")
    with compiled_programs() as compiled:
        fj.profile_likelihood(fit)
        fit.confidence_intervals(method="profile")
    assert compiled == []


def test_profiles_in_numpy_are_those_of_the_compiled_loop(monkeypatch):
    """Of many fits, and of models of more parameters, one program follows all sides; of a single small one numpy does."""
    ours = gamma_profile()
    monkeypatch.setattr(sides, "evaluation_on_host", lambda *_: None)
    others = fj.profile_likelihood(fitted("gamma"))
    np.testing.assert_array_equal(ours.end_codes, others.end_codes)
    for name in ("lower", "upper", "value", "signed_root"):
        np.testing.assert_allclose(getattr(ours, name), getattr(others, name), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", some_of(PRINTED, "gamma"))
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
    profile = fj.profile_likelihood(fj.fit(BERNOULLI, 0.5, np.array([1.0] * 4 + [0.0] * 6)))

    def fall(p):
        return 4 * np.log(p / 0.4) + 6 * np.log((1 - p) / 0.6) + CUT

    low, high = (brentq(fall, *ends, xtol=1e-14) for ends in ((0.01, 0.4), (0.4, 0.99)))
    np.testing.assert_allclose(profile.interval[0], [low, high], rtol=1e-9)
    lines = str(profile).splitlines()
    assert lines[:4] == [
        "Profile likelihood",
        "  Cut-off  1.9207 nats below the maximum, ½ χ² with one degree of freedom",
        "",
        "  parameter  estimate  lower 95 %  upper 95 %  lower / Wald  upper / Wald",
    ]
    reach = np.sqrt(2 * CUT * 0.4 * 0.6 / 10)  # of the Wald interval
    numbers = [0.4, low, high, (0.4 - low) / reach, (high - 0.4) / reach]
    assert [line.split() for line in lines[4:]] == [["params", *(f"{x:.6g}" for x in numbers)]]
    assert f"<td>{high:.6g}</td>" in profile._repr_html_()
    assert list(profile.to_frame().index) == ["params"]


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
    fit = fj.fit(BERNOULLI, 0.5, np.ones(10))
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


def groups_of_three(params, y):
    """Three values with a common effect of variance tau2, each with noise of variance one."""
    total, squares = jnp.sum(y - params["mu"]), jnp.sum((y - params["mu"]) ** 2)
    common = 1.0 + 3.0 * params["tau2"]
    return -0.5 * (jnp.log(common) + squares - params["tau2"] * total**2 / common)


def test_another_parameter_may_leave_the_edge_that_it_lies_at():
    """Means of groups vary less than by their noise: the variance of effects is zero at the estimate, but not far from it."""
    y = np.random.default_rng(0).normal(size=(8, 3))
    means = y.mean(axis=1, keepdims=True) - y.mean()
    y = y - y.mean(axis=1, keepdims=True) + means * np.sqrt(0.8 / 3) / means.std()
    fit = fj.fit(fj.Model(groups_of_three, constraints={"tau2": fj.positive}), {"mu": 0.5, "tau2": 1.0}, y)
    assert fit.status == fj.Status.BOUNDARY

    def best(mu):
        """ℓ maximised over c = 1 + 3 tau2, at 3 times the mean square of the groups' means about mu or, if less, at one."""
        square = 3 * np.mean((y.mean(axis=1) - mu) ** 2)
        c = max(square, 1.0)
        return -0.5 * (8 * np.log(c) + np.sum((y - mu) ** 2) - (1 - 1 / c) * 8 * square)

    exact = [brentq(lambda mu: best(mu) - best(y.mean()) + CUT, y.mean(), far) for far in (-2.0, 2.0)]
    variance_zero = -0.5 * np.sum((y - exact[1]) ** 2)
    assert best(exact[1]) > variance_zero + 0.01  # with the variance held at zero the profile ends nearer
    with pytest.warns(fj.FitWarning, match="Boundary"):
        profile = fj.profile_likelihood(fit, parameters="mu")
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
    assert "On the profile of scale some of the other parameters cannot be distinguished." in str(profile)


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
    fit = fj.fit(cauchy, 0.0, Y)
    with pytest.warns(fj.FitWarning, match="an end is NaN for function"):
        profile = fj.profile_likelihood(fit, lambda loc: 0.0 * loc)
    assert "Function, lower end: could not be followed to the cut-off" in str(profile)


# Many fits, and devices.


@functools.cache
def many(max_steps=None):
    """Three fits: whole data, every second row of the data, and one that does not converge."""
    all_rows, every_second = np.ones(30), np.arange(30.0) % 2
    fit = functools.partial(fj.fit, NORMAL, {"loc": 1.0, "scale": 2.0}, max_steps=max_steps)
    of_each = ((Y, all_rows), (Y, every_second), (np.full(30, np.nan), all_rows))
    return batch_of(*(fit(y, weights=weights) for y, weights in of_each))


def test_every_fit_of_a_batch_has_its_profile_intervals():
    with pytest.warns(fj.FitWarning) as said:
        intervals = many().confidence_intervals(level=0.95, method="profile")
    assert any("confidence_intervals: 1 of 3 fits did not converge" in str(warning.message) for warning in said)
    for k, y in enumerate((Y, Y[1::2])):
        # n log(scale) + Σ(y − loc)² / (2 scale²), with the other parameter at its best, has risen by the cut-off.
        reach = y.std() * np.sqrt(np.expm1(2 * CUT / len(y)))
        np.testing.assert_allclose(intervals["loc"][k], y.mean() + np.array([-reach, reach]), rtol=1e-9)
        rise = lambda ratio, n=y.size: n * (np.log(ratio) + 0.5 / ratio**2 - 0.5) - CUT  # noqa: E731
        ends = [brentq(rise, *between, xtol=1e-14) for between in ((0.3, 1.0), (1.0, 4.0))]
        np.testing.assert_allclose(intervals["scale"][k], y.std() * np.array(ends), rtol=1e-9)
    assert np.isnan(intervals["loc"][2]).all()
    assert many()[:0].confidence_intervals(level=0.95, method="profile")["loc"].shape == (0, 2)


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


@functools.cache
def profiles_of_many():
    with pytest.warns(fj.FitWarning) as warned:
        profiles = fj.profile_likelihood(many(), ratio)
    assert [str(warning.message)[:60] for warning in warned] == [
        "profile_likelihood: 1 of 3 fits did not converge, and their ",
        "profile_likelihood: an end is NaN in 1 of 3 fits; print the ",
    ]
    return profiles


def test_a_function_of_each_fit_of_a_batch_has_the_profile_that_it_has_by_itself():
    found = profiles_of_many()
    assert found.interval.shape == (3, 1, 2)
    for k in (0, 1):
        alone = fj.profile_likelihood(many()[k], ratio)
        one = found[k]
        np.testing.assert_allclose(one.interval, alone.interval, rtol=1e-9)
        np.testing.assert_allclose(one.standard_error, alone.standard_error, rtol=1e-9)
        used = np.isfinite(one.value)
        np.testing.assert_allclose(one.value[used], alone.value[np.isfinite(alone.value)], rtol=1e-6)
        assert one.upper_end == alone.upper_end == ("cut-off reached",)
        assert one.names == ("ratio",)
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
    np.testing.assert_array_equal(frame.loc[(1, "ratio"), "upper"], found.upper[1, 0])
    shape = jax.tree.leaves(found.params)[0].shape
    assert shape == found.value.shape
    with pytest.raises(TypeError, match="this is one fit, without a batch axis"):
        found[0][0]


def test_a_fit_of_a_batch_that_stopped_early_is_profiled_from_where_it_goes_on():
    fits = many(max_steps=2)[[0, 1, 0]]
    assert not np.any(fits.converged)
    with pytest.warns(fj.FitWarning, match="3 of 3 fits did not converge"):
        found = fj.profile_likelihood(fits, ratio)
    assert found.num_restarts.tolist() == [1, 1, 1]
    assert found.fit.converged.all()
    np.testing.assert_allclose(found.interval, profiles_of_many().interval[[0, 1, 0]], rtol=1e-8)
    assert "In 3 of 3 fits a better optimum was found" in str(found)


def test_the_profile_of_a_batch_without_fits_is_an_error():
    with pytest.raises(ValueError, match="profile_likelihood: there are no fits in this batch"):
        fj.profile_likelihood(many()[:0])
