"""Log-likelihoods along one parameter, over two and as profiles, beside their quadratic approximation."""

import functools
from dataclasses import replace

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest

import fisher_jax as fj

mpl.use("Agg")
import matplotlib.pyplot as plt

from fisher_jax.plots import likelihood_surface, profile_curves, quadratic_approximation

NORMAL = {"loc": 1.0, "scale": 2.0}


@functools.cache
def poisson():
    return fj.fit(fj.families.poisson, {"rate": 1.0}, np.array([2.0, 4.0, 3.0, 7.0, 1.0]))


@functools.cache
def normal():
    return fj.fit(fj.families.normal, NORMAL, np.array([1.0, 2.0, 3.0, 6.0]))


@functools.cache
def profile():
    return fj.profile_likelihood(poisson(), level=0.9)


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def lines(panel, label):
    return next(line for line in panel.lines if line.get_label() == label)


def test_the_curve_meets_the_cut_off_at_the_intervals_ends():
    (panel,) = profile_curves(profile())
    panel.figure.canvas.draw()
    grid, root = lines(panel, "profile").get_data()
    cut = lines(panel, "90 %").get_ydata()[0]
    assert cut == pytest.approx(-1.6448536, rel=1e-6)
    for end, side in zip(profile().interval[0], (cut, -cut), strict=True):
        assert np.interp(end, grid, root) == pytest.approx(side, abs=1e-3)
    exact = np.sign(grid - 3.4) * np.sqrt(2 * np.maximum(5 * (grid - 3.4 - 3.4 * np.log(grid / 3.4)), 0))
    np.testing.assert_allclose(root, exact, atol=0.02)  # between the points that were computed
    wald = lines(panel, "Wald")
    slope = np.diff(wald.get_ydata()) / np.diff(wald.get_xdata())
    np.testing.assert_allclose(slope, 1 / np.sqrt(3.4 / 5), rtol=1e-6)


def test_both_ends_of_the_interval_are_drawn_where_they_lie_beyond_the_outermost_points_by_rounding():
    low, high = profile().interval[0]
    beyond = replace(
        profile(), lower=np.array([profile().value[0, 0] - 1e-6]), upper=np.array([profile().value[0, -1] + 1e-6])
    )
    (panel,) = profile_curves(beyond)
    upright = [line.get_xdata()[0] for line in panel.lines if len(set(line.get_xdata())) == 1]
    np.testing.assert_allclose(upright, [low, high], rtol=2e-3)


def test_in_nats_the_curve_is_minus_half_the_square():
    (panel,) = profile_curves(profile(), "rate", scale="log_likelihood")
    root = lines(profile_curves(profile())[0], "profile").get_ydata()
    np.testing.assert_allclose(lines(panel, "profile").get_ydata(), -0.5 * root**2)
    assert panel.get_ylabel() == "profile − maximum, in nats"


def test_paths_are_drawn_by_name_in_colours_of_their_own():
    short = [{"loc": 2.0, "scale": 1.5}, {"loc": jnp.asarray(2.5), "scale": 1.7}, normal().params]
    long = [{"loc": 2.0 + 0.02 * k, "scale": 1.5} for k in range(50)]
    axes = likelihood_surface(normal(), path={"newton": short, "gradient": long}, num_points=11)
    drawn = {line.get_label(): line for line in axes.lines}
    newton, gradient = drawn["newton, 2 steps"], drawn["gradient, 49 steps"]
    np.testing.assert_allclose(newton.get_xydata()[:2], [[2.0, 1.5], [2.5, 1.7]])
    np.testing.assert_allclose(gradient.get_xdata(), 2.0 + 0.02 * np.arange(50))
    assert newton.get_color() != gradient.get_color()
    assert (newton.get_marker(), gradient.get_marker()) == ("o", "")


def test_the_contour_of_the_level_lies_on_the_ellipse_where_the_likelihood_is_quadratic():
    fit = fj.fit(fj.families.normal, NORMAL, np.random.default_rng(0).normal(size=100_000))
    axes = likelihood_surface(fit, level=0.9, num_points=41)
    axes.figure.canvas.draw()
    contours = axes.collections[0]
    heavy = contours.get_paths()[int(np.argmax(contours.get_linewidths()))].vertices
    information = fit.num_observations * np.asarray(fit.information().matrix)
    deviations = heavy - [fit.params["loc"], fit.params["scale"]]
    drops = 0.5 * np.einsum("ni,ij,nj->n", deviations, information, deviations)
    np.testing.assert_allclose(drops, -np.log(0.1), rtol=0.05)
    points = np.stack(lines(axes, "Wald ellipse, 90 %").get_data(), axis=1) - [fit.params["loc"], fit.params["scale"]]
    np.testing.assert_allclose(0.5 * np.einsum("ni,ij,nj->n", points, information, points), -np.log(0.1), rtol=1e-6)


def test_a_likelihood_that_is_a_parabola_lies_on_it():
    y = np.random.default_rng(0).normal(size=50)
    fit = fj.fit(fj.families.normal, NORMAL, y)
    axes = quadratic_approximation(fit, "loc")
    x, height = axes.lines[0].get_data()
    np.testing.assert_allclose(height, -0.5 * x**2, atol=1e-8)
    x, height = quadratic_approximation([fit], "scale", reach=12.0).lines[0].get_data()
    scale = float(fit.params["scale"])
    s = scale * (1 + x / np.sqrt(2 * 50))
    exact = np.where(s > 0, -50 * np.log(np.abs(s) / scale) - 25 * (scale**2 / s**2 - 1), np.nan)
    np.testing.assert_allclose(height, exact, rtol=1e-9, atol=1e-9)
    assert np.isnan(height[0])


@pytest.mark.parametrize(
    ("draw", "error", "message"),
    [
        (lambda: profile_curves(poisson()), TypeError, "profile_curves: expected Profile, got Fit"),
        (lambda: profile_curves(profile(), []), ValueError, r"names=\[\]; expected one or more different names"),
        (lambda: profile_curves(profile(), "mean"), ValueError, "no entry is named 'mean'; there are rate"),
        (lambda: profile_curves(profile(), scale="log"), ValueError, "'log' is unknown; choose from 'signed_root'"),
        (lambda: profile_curves(profile(), axes=plt.subplots(1, 2)[1]), ValueError, "1 panels need as many axes, got 2"),
        (lambda: quadratic_approximation(profile()), TypeError, "expected Fit, got Profile"),
        (lambda: quadratic_approximation([]), ValueError, "quadratic_approximation: got no fit"),
        (lambda: likelihood_surface(profile()), TypeError, "likelihood_surface: expected Fit, got Profile"),
        (lambda: likelihood_surface(poisson()), ValueError, "expected two different ones out of rate"),
        (lambda: likelihood_surface(normal(), ["loc", "loc"]), ValueError, "expected one or more different names"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_raises(draw, error, message):
    with pytest.raises(error, match=message):
        draw()
