"""Likelihood regions of two numbers: boundaries as others find them, and what is said where there is none."""

import functools
import pickle

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
from data_sets import BEEF, PORT_PIRIE
from helpers import batch_of
from jax.scipy.stats import norm
from scipy.interpolate import CubicSpline
from scipy.optimize import minimize_scalar
from scipy.stats import gamma

import fisher_jax as fj
from fisher_jax.profile.path import End

mpl.use("Agg")
import matplotlib.pyplot as plt

# `Minuit.mncontour` of iminuit 2.33.0, strategy 2, tol 1e-8, size 12, of −2ℓ with errordef 1; `cl` is the joint probability.
GAMMA_95 = np.array([
    [3.23068991, 0.04386791], [3.27796678, 0.04318073], [3.68519327, 0.04645517], [4.09240197, 0.05147606],
    [4.49959877, 0.05751677], [4.70319031, 0.06110217], [4.90673852, 0.06662479], [4.85121896, 0.06742601],
    [4.44605142, 0.06424764], [4.04090328, 0.05916584], [3.63576891, 0.05298321], [3.43320901, 0.049332],
])  # fmt: skip
GEV_90 = np.array([
    [3.81598385, 0.02421676], [3.82736477, -0.1137983], [3.84796815, -0.18237354], [3.86757083, -0.21366626],
    [3.89968009, -0.23190069], [3.93687852, -0.13515375], [3.9314024, -0.04936073], [3.91848558, 0.03563095],
    [3.89792602, 0.12006172], [3.88236614, 0.16143243], [3.8529243, 0.19439943], [3.82057713, 0.11232027],
])  # fmt: skip


@functools.cache
def fitted():
    return fj.fit(fj.families.gamma, {"shape": 1.0, "rate": 1.0}, BEEF)


@functools.cache
def beef_region():
    return fj.profile_region(fitted(), ("shape", "rate"))


def crescent(params, kind):
    return -0.5 * params["a"] ** 2 - 0.5 * ((params["b"] - params["a"] ** 2) / 0.3) ** 2


def surface(params, kind):
    """Of one of three kinds, in one density for all of them since its programs are shared."""
    a, b = params["a"], params["b"]
    levels_out = -0.5 * a**2 - 0.2 * jnp.tanh(b) ** 2
    two_peaks = jnp.logaddexp(-0.5 * (a + 3) ** 2, 1.0 - 0.5 * (a - 3) ** 2) - 0.5 * (b - 0.5 * a) ** 2
    return jnp.where(kind == 0, crescent(params, kind), jnp.where(kind == 1, levels_out, two_peaks / 3))


CRESCENT, LEVELS_OUT, TWO_PEAKS = np.zeros(3), np.ones(3), np.full(3, 2.0)


@functools.cache
def crescent_fit():
    return fj.fit(surface, {"a": 0.1, "b": 0.1}, CRESCENT)


@functools.cache
def crescent_region():
    with pytest.warns(fj.FitWarning, match="profile_region: the curve is not closed; print the region"):
        return fj.profile_region(crescent_fit(), ("a", "b"), num_points=16)


def radius_of(region):
    """The distance of the boundary from the estimate in standard errors, as a function of a point's angle."""
    root = np.linalg.cholesky(region.covariance)

    def polar(points):
        x = np.linalg.solve(root, (points - region.estimate).T)
        return np.arctan2(x[1], x[0]), np.hypot(*x)

    angle, radius = polar(np.asarray(region.points))
    order = np.argsort(angle)
    angle, radius = angle[order], radius[order]
    spline = CubicSpline(np.append(angle, angle[0] + 2 * np.pi), np.append(radius, radius[0]), bc_type="periodic")
    return polar, spline


def test_the_boundary_is_that_of_minos():
    polar, radius = radius_of(beef_region())
    angle, expected = polar(GAMMA_95)
    np.testing.assert_allclose(radius(angle), expected, atol=1e-3)


def line(params, y, x):
    return norm.logpdf(y, params["a"] + params["b"] * x, params["scale"])


def test_the_boundary_with_a_third_parameter_at_its_best_has_the_closed_form():
    """Of a regression: with the scale at its best −2ℓ is n log Σ(y − a − b x)² but for a constant."""
    x = np.linspace(-1.0, 2.0, 12)
    y = 1.0 + 0.5 * x + np.cos(7.0 * x)
    model = fj.Model(line, constraints={"scale": fj.positive})
    fit = fj.fit(model, {"a": 0.0, "b": 0.0, "scale": 1.0}, y, given=x)
    region = fj.profile_region(fit, ("a", "b"), num_points=16)
    a, b = region.points.T[:, :, None]
    squares, least = np.sum((y - a - b * x) ** 2, axis=1), np.sum((y - fit.params["a"] - fit.params["b"] * x) ** 2)
    np.testing.assert_allclose(0.5 * 12 * np.log(squares / least), region.cut, rtol=1e-8)
    np.testing.assert_allclose(region.params["scale"], np.sqrt(squares / 12), rtol=1e-6)
    assert region.closed


@pytest.mark.exhaustive
def test_the_boundary_with_a_third_parameter_at_its_best_is_that_of_minos():
    fit = fj.fit(fj.families.gev, None, PORT_PIRIE)
    region = fj.profile_region(fit, ("loc", "shape"), level=0.9)
    polar, radius = radius_of(region)
    angle, expected = polar(GEV_90)
    np.testing.assert_allclose(radius(angle), expected, atol=1e-3)
    # Every point has the deviance of the cut-off, and no other scale would do better.
    drops = [fit.log_likelihood - fj.log_likelihood(fj.families.gev, one, PORT_PIRIE) for one in _each(region.params)]
    np.testing.assert_allclose(drops, -np.log(0.1), atol=1e-9)
    change = {"loc": 0.0, "scale": 5e-7, "shape": 0.0}  # where a slope of 1e-3 would be steeper than the curvature
    for one, drop in zip(_each(region.params), drops, strict=True):
        for sign in (-1, 1):
            beside = jax.tree.map(lambda x, step, sign=sign: x + sign * step, one, change)
            assert fit.log_likelihood - fj.log_likelihood(fj.families.gev, beside, PORT_PIRIE) > drop


def _each(params):
    return [jax.tree.map(lambda leaf, k=k: leaf[k], params) for k in range(len(jax.tree.leaves(params)[0]))]


def test_points_lie_on_the_cut_off_of_scipy_and_are_a_closed_curve():
    region = beef_region()
    assert region.closed
    assert set(region.ends) == {"cut-off reached"}
    drops = [fitted().log_likelihood - gamma.logpdf(BEEF, a, scale=1 / b).sum() for a, b in region.points]
    np.testing.assert_allclose(drops, region.cut, rtol=1e-8)
    (curve,) = region.curves
    np.testing.assert_array_equal(curve[0], curve[-1])


def test_with_joint_false_the_extremes_are_the_ends_of_the_single_profiles():
    region = fj.profile_region(fitted(), ("shape", "rate"), joint=False)
    # The same as in `test_profile.py`.
    ends = {"shape": (3.376349098, 4.717763028), "rate": (0.04528679901, 0.06469147237)}
    for k, name in enumerate(region.names):
        received = [region.points[:, k].min(), region.points[:, k].max()]
        np.testing.assert_allclose(received, ends[name], atol=5e-3 * fitted().standard_errors()[name])
    assert region.cut == pytest.approx(1.920729410347062)
    assert beef_region().cut == pytest.approx(2.995732273553991)  # half of R's qchisq(0.95, 2)


def test_the_region_of_two_functions_is_that_of_the_model_written_in_them():
    """In a and b − a² the crescent is an ellipse, with closed form."""
    fit = fj.fit(crescent, {"a": 0.1, "b": 0.1}, CRESCENT)
    region = fj.profile_region(fit, lambda p: {"a": p["a"], "c": p["b"] - p["a"] ** 2}, num_points=16)
    assert region.closed
    assert region.names == ("a", "c")
    a, c = region.points.T
    np.testing.assert_allclose(1.5 * a**2 + 1.5 * (c / 0.3) ** 2, region.cut, rtol=1e-9)
    np.testing.assert_allclose(region.covariance, np.diag([1 / 3, 0.03]), atol=1e-9)  # the delta method's


def test_where_the_region_is_not_star_shaped_points_are_not_joined():
    region = crescent_region()
    assert set(region.ends) == {"cut-off reached"}
    assert not region.closed
    assert len(region.curves) == 2
    assert np.sum(~region.joined) == 2
    assert len(region.points) > 16  # rays were added where it bends
    assert "The boundary leaps in 2 places" in str(region)
    a, b = region.points.T
    np.testing.assert_allclose(1.5 * a**2 + 1.5 * ((b - a**2) / 0.3) ** 2, region.cut, rtol=1e-9)


def test_a_smaller_region_of_the_same_likelihood_is_closed():
    assert fj.profile_region(crescent_fit(), ("a", "b"), level=0.3, num_points=16).closed


def test_a_region_that_extends_to_infinity_says_on_how_many_rays():
    fit = fj.fit(surface, {"a": 0.1, "b": 0.1}, LEVELS_OUT)
    with pytest.warns(fj.FitWarning, match="not closed"):
        region = fj.profile_region(fit, ("a", "b"), num_points=16)
    away = region.end_codes == End.NEVER_FALLS
    assert away.sum() == 2  # along b, on both sides
    assert np.all(np.isnan(region.points[away]))
    assert np.all(np.abs(region.reached[away, 1]) > 5)
    np.testing.assert_allclose(region.fallen[away], 0.6, rtol=1e-3)
    assert np.all(np.isfinite(region.points[~away]))
    assert "On 2 of 16 rays: never falls to the cut-off" in str(region)
    assert len(region.curves) == 2


def test_a_better_optimum_on_a_ray_is_taken_up():
    fit = fj.fit(surface, {"a": -3.0, "b": 0.0}, TWO_PEAKS)
    assert fit.params["a"] < 0
    region = fj.profile_region(fit, ("a", "b"), level=0.999, num_points=16)
    assert region.num_restarts == 1
    assert region.fit.params["a"] > 0
    best = minimize_scalar(lambda x: -float(np.logaddexp(-0.5 * (x + 3) ** 2, 1 - 0.5 * (x - 3) ** 2)), bounds=(2, 4))
    np.testing.assert_allclose(region.estimate[0], best.x, atol=1e-3)
    assert "A better optimum was found on the way" in str(region)


def test_float32_gives_the_same_boundary_to_its_own_digits():
    start = {"a": np.float32(0.1), "b": np.float32(0.1)}
    region = fj.profile_region(
        fj.fit(crescent, start, CRESCENT.astype(np.float32)), ("a", "b"), level=0.3, num_points=16
    )
    assert region.points.dtype == np.float32
    a, b = region.points.T
    np.testing.assert_allclose(1.5 * a**2 + 1.5 * ((b - a**2) / 0.3) ** 2, region.cut, rtol=1e-4)


def test_a_region_prints_frames_and_pickles():
    region = beef_region()
    text = str(region)
    for part in ("95 %, both together", "2.9957 nats", "64 on 64 rays, a closed curve", "shape", "4.00834"):
        assert part in text
    frame = region.to_frame()
    assert list(frame.columns) == ["shape", "rate", "angle", "end", "joined"]
    np.testing.assert_array_equal(frame[["shape", "rate"]], region.points)
    again = pickle.loads(pickle.dumps(region))
    assert str(again) == text


@pytest.mark.parametrize(
    ("pair", "error", "message"),
    [
        ("shape", TypeError, r"pair='shape' must be two names, as \('shape', 'rate'\), or a function of params"),
        (("shape",), TypeError, "must be two names"),
        (None, TypeError, "pair=NoneType must be two names"),
        (
            ("shape", "shpe"),
            ValueError,
            "pair: in 'shpe' no parameter is named 'shpe'; there are .*Did you mean `shape`",
        ),
        (("shape", "shape"), ValueError, "pair names 'shape' twice; expected two different numbers"),
        (lambda p: p["shape"], ValueError, r"pair has 1 numbers \(pair\); expected two"),
        (lambda p: [p["shape"], 2 * p["shape"]], ValueError, "do not vary independently at the estimate"),
        (("shape", "2 shape"), ValueError, "shape and 2 shape do not vary independently at the estimate"),
    ],
)
def test_a_wrong_pair_is_an_error_that_says_what_is_expected(pair, error, message):
    with pytest.raises(error, match=f"profile_region: .*{message}"):
        fj.profile_region(fitted(), pair)


def test_wrong_levels_counts_and_batches_are_errors():
    with pytest.raises(ValueError, match=r"level=1\.5 must lie strictly between 0 and 1"):
        fj.profile_region(fitted(), ("shape", "rate"), level=1.5)
    with pytest.raises(ValueError, match="num_points=3 must be a whole number, at least 8"):
        fj.profile_region(fitted(), ("shape", "rate"), num_points=3)
    with pytest.raises(TypeError, match="joint='both' must be True or False"):
        fj.profile_region(fitted(), ("shape", "rate"), joint="both")
    fits = batch_of(fitted(), fitted())
    with pytest.raises(
        TypeError, match=r"takes one fit, for each has a curve of its own. Take one of yours, as fits\[3\]"
    ):
        fj.profile_region(fits, ("shape", "rate"))


def test_the_plot_has_the_boundary_of_each_level_and_its_ellipse():
    inner = fj.profile_region(fitted(), ("shape", "rate"), level=0.5)
    axes = fj.plots.profile_region([beef_region(), inner])
    curves = [line.get_xydata() for line in axes.lines if line.get_linestyle() == "-"]
    np.testing.assert_array_equal(curves[0][:-1], inner.points)
    np.testing.assert_array_equal(curves[1][:-1], beef_region().points)
    ellipses = [line.get_xydata() for line in axes.lines if line.get_linestyle() == "--"]
    inverse = np.linalg.inv(inner.covariance)
    for points, region in zip(ellipses, (inner, beef_region()), strict=True):
        away = points - region.estimate
        np.testing.assert_allclose(np.sum(away @ inverse * away, axis=1), 2 * region.cut, rtol=1e-9)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["50 %", "Wald", "95 %"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("shape", "rate")
    plt.close("all")


def test_the_plot_marks_the_ends_of_a_boundary_that_is_not_closed():
    axes = fj.plots.profile_region(crescent_region(), wald=False)
    rings = [line for line in axes.lines if line.get_fillstyle() == "none"]
    assert len(rings) == 2
    assert "95 %, not closed" in [text.get_text() for text in axes.get_legend().get_texts()]
    with pytest.raises(ValueError, match="regions of a, b and of shape, rate have no axes in common"):
        fj.plots.profile_region([crescent_region(), beef_region()])
    with pytest.raises(
        TypeError, match=r"expected ProfileRegion, got Fit. Give what fisher_jax.profile_region returns"
    ):
        fj.plots.profile_region(fitted())
    plt.close("all")
