"""Figures of sampling distributions, convergence and coverage."""

import functools

import jax
import matplotlib as mpl
import numpy as np
import pytest

import fisher_jax as fj

mpl.use("Agg")
import matplotlib.pyplot as plt

from fisher_jax.plots import (
    convergence_curves,
    coverage_curves,
    joint_ellipses,
    standardized_histograms,
)

KEY = jax.random.key(3)
NORMAL = {"loc": 1.0, "scale": 2.0}


@functools.cache
def scores():
    return fj.score_distribution(fj.families.normal, NORMAL, KEY, num_observations=40, num_replicates=4000)


@functools.cache
def rate():
    return fj.convergence_rate(
        fj.families.normal, NORMAL, KEY, num_observations=(10, 40), num_replicates=500, estimator=moments
    )


@functools.cache
def covered():
    numbers = np.arange(8.0).reshape(2, 2, 2) / 10
    counts = np.full((2, 2, 2), 3)
    parts = (numbers, numbers / 10, numbers, numbers, 0 * counts, 0 * counts, np.full((2, 2), 30))
    return fj.Coverage(*parts, (10, 40), ("wald", "profile"), ("loc", "scale"), 0.9)


def moments(y):
    return {"loc": y.mean(), "scale": y.std()}


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def line(panel, label):
    return next(line for line in panel.lines if line.get_label().startswith(label))


def test_histograms_have_area_one_and_the_normal_curve():
    panels = standardized_histograms(scores())
    assert [panel.get_xlabel().partition(":")[0] for panel in panels] == ["loc", "scale"]
    for panel in panels:
        areas = [patch.get_width() * patch.get_height() for patch in panel.patches]
        assert sum(areas) == pytest.approx(1.0)
        x, y = panel.lines[0].get_data()
        np.testing.assert_allclose(y, np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi))
    assert "estimate − truth" in standardized_histograms(rate().distributions[0], "loc")[0].get_xlabel()


def test_ellipses_lie_at_their_mahalanobis_distance_and_hold_the_fraction_that_is_written():
    axes = joint_ellipses(scores())
    for level, label in ((0.5, "50 %"), (0.95, "95 %")):
        drawn = line(axes, label)
        points = np.stack(drawn.get_data())
        distances = np.sum(points * np.linalg.solve(scores().asymptotic_covariance, points), axis=0)
        np.testing.assert_allclose(distances, -2 * np.log(1 - level))
        percentage = float(drawn.get_label().split(": ")[1].split(" ±")[0])
        assert percentage == pytest.approx(100 * np.mean(scores().mahalanobis < -2 * np.log(1 - level)), abs=0.06)
        assert percentage == pytest.approx(100 * level, abs=3)
    distribution = rate().distributions[1]
    points = np.stack(line(joint_ellipses(distribution), "95 %").get_data())
    np.testing.assert_allclose(points.mean(axis=1), distribution.truth, atol=0.01)
    assert np.ptp(points[0]) == pytest.approx(2 * np.sqrt(-2 * np.log(0.05) * 4 / 40), rel=1e-3)


def test_curves_over_n_show_spread_and_bound():
    axes = convergence_curves(rate())
    np.testing.assert_allclose(axes.lines[0].get_ydata(), rate().standard_deviation[:, 0])
    asymptotic = next(each for each in axes.lines if len(each.get_xdata()) == 2 and each.get_linestyle() == "-")
    np.testing.assert_allclose(asymptotic.get_ydata(), 2.0 / np.sqrt([10, 40]))
    ratio = convergence_curves(rate(), "scale", relative=True).lines[0].get_ydata()
    np.testing.assert_allclose(
        ratio, (rate().standard_deviation[:, 1] / rate().asymptotic_standard_deviation[:, 1]) ** 2
    )


def test_coverage_is_drawn_in_per_cent_beside_the_level():
    panels = coverage_curves(covered())
    for j, panel in enumerate(panels):
        assert panel.lines[0].get_ydata()[0] == 90.0
        np.testing.assert_allclose(panel.lines[1].get_ydata(), 100 * covered().probability[:, 0, j])
    assert [text.get_text() for text in panels[1].get_legend().get_texts()] == ["wald", "profile"]


@pytest.mark.parametrize(
    ("draw", "error", "message"),
    [
        (lambda: standardized_histograms(3), TypeError, "histograms: expected SamplingDistribution or Score"),
        (lambda: standardized_histograms(scores(), "mean"), ValueError, "no entry is named 'mean'; there are loc, scale"),
        (lambda: standardized_histograms(scores(), []), ValueError, "expected one or more different names"),
        (lambda: standardized_histograms(scores(), axes=plt.subplots()[1]), ValueError, "2 panels need as many axes, got 1"),
        (lambda: joint_ellipses(scores(), ["loc"]), ValueError, "joint_ellipses: an ellipse is of two entries, got 1"),
        (lambda: joint_ellipses(3), TypeError, "joint_ellipses: expected"),
        (lambda: convergence_curves(scores()), TypeError, "convergence_curves: expected ConvergenceRate"),
        (lambda: coverage_curves(scores()), TypeError, "coverage_curves: expected Coverage"),
        (lambda: coverage_curves(covered(), axes=plt.subplots()[1]), ValueError, "2 panels need as many axes, got 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_raises(draw, error, message):
    with pytest.raises(error, match=message):
        draw()
