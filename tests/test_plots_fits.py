"""Figures of fits side by side, of influence and of bootstrap replicates."""

import functools

import jax
import matplotlib as mpl
import numpy as np
import pytest

import fisher_jax as fj

mpl.use("Agg")
import matplotlib.pyplot as plt

from fisher_jax.plots import bootstrap_histogram, coefficient_plot, influence_plot

Y = np.random.default_rng(3).gamma(4.0, 0.5, 15)
START = {"shape": 1.0, "rate": 1.0}


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def fit():
    return fj.fit(fj.families.gamma, START, Y)


def test_each_fit_has_its_estimates_and_intervals(fit):
    exponential = fj.fit(fj.families.exponential, {"rate": 1.0}, Y)
    axes = coefficient_plot(gamma=fit, exponential=exponential, names=["shape", "rate"], level=0.9)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["shape", "rate"]
    bars = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 2 and line.get_linewidth() == 2]
    intervals = fit.confidence_intervals(level=0.9)
    np.testing.assert_allclose(bars[0], intervals["shape"], rtol=1e-6)
    np.testing.assert_allclose(bars[1], intervals["rate"], rtol=1e-6)
    np.testing.assert_allclose(bars[2], exponential.confidence_intervals(level=0.9)["rate"], rtol=1e-6)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["gamma", "exponential"]
    with pytest.raises(ValueError, match="coefficient_plot: names: no entry is named 'loc'; there are shape, rate"):
        coefficient_plot(fit, names=["loc"])


def test_what_has_no_interval_stands_open():
    edge = fj.fit(fj.families.gamma, START, np.full(6, 2.0))
    axes = coefficient_plot(edge, reference=None)
    assert [line.get_markerfacecolor() for line in axes.lines if len(line.get_xdata())] == ["none", "none"]


def influence(*distances):
    moves = np.array(distances)[:, None] * np.array([[1.0, -1.0]])
    return fj.Influence(moves, moves, np.array(distances), np.ones(len(distances)), ("loc", "scale"), True)


def test_the_farthest_observations_are_named(fit):
    found = influence(0.1, 0.9, 0.2, 1.4)
    axes = influence_plot(found, count=2, labels=[f"day {k}" for k in range(4)])
    assert [text.get_text() for text in axes.texts] == ["day 3", "day 1"]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), found.distances)
    with pytest.raises(ValueError, match="influence_plot: 2 labels for 4 observations"):
        influence_plot(found, labels=["a", "b"])
    with pytest.raises(TypeError, match="influence_plot: expected Influence, got Fit"):
        influence_plot(fit)


def test_what_cannot_be_left_out_is_crossed():
    axes = influence_plot(influence(0.1, 0.2, 0.1, np.nan), count=1)
    (crosses,) = [line for line in axes.lines if line.get_marker() == "x"]
    assert crosses.get_xdata().tolist() == [3]
    assert axes.texts[0].get_text() == "3"


@functools.cache
def bootstrap():
    fit = fj.fit(fj.families.poisson, {"rate": 1.0}, np.array([2.0, 4.0, 3.0, 7.0, 1.0]))
    return fj.bootstrap(fit, jax.random.key(0), 200)


def lines(panel, label):
    return next(line for line in panel.lines if line.get_label() == label)


@pytest.mark.exhaustive
def test_a_histogram_holds_the_replicates_their_interval_and_the_normal_curve():
    (panel,) = bootstrap_histogram(bootstrap(), level=0.9)
    panel.figure.canvas.draw()
    assert sum(patch.get_height() * patch.get_width() for patch in panel.patches) == pytest.approx(1.0)
    ends = [line.get_xdata()[0] for line in panel.lines if line.get_linestyle() == ":"]
    np.testing.assert_allclose(ends, bootstrap().confidence_intervals(0.9)["rate"])
    assert lines(panel, "estimate").get_xdata()[0] == pytest.approx(3.4)
    density = lines(panel, "Wald").get_ydata()
    assert np.max(density) == pytest.approx(1 / np.sqrt(2 * np.pi * 3.4 / 5), rel=1e-3)
    with pytest.raises(ValueError, match="bootstrap_histogram: no estimated entry is named 'mean'"):
        bootstrap_histogram(bootstrap(), "mean")
    with pytest.raises(ValueError, match="1 histograms need as many axes, got 2"):
        bootstrap_histogram(bootstrap(), axes=plt.subplots(1, 2)[1])


@pytest.mark.parametrize(
    ("draw", "error", "message"),
    [
        (lambda fit: bootstrap_histogram(fit), TypeError, "bootstrap_histogram: expected Bootstrap, got Fit"),
        (lambda fit: bootstrap_histogram(bootstrap(), []), ValueError, "expected one or more different names out of rate"),
        (lambda fit: bootstrap_histogram(bootstrap(), "mean"), ValueError, "no entry is named 'mean'; there are rate"),
        (lambda fit: bootstrap_histogram(bootstrap(), axes=plt.subplots(1, 2)[1]), ValueError, "1 panels need as many"),
        (lambda fit: coefficient_plot(fit, []), ValueError, "coefficient_plot: names=.*; expected one or more"),
        (lambda fit: coefficient_plot(), ValueError, "coefficient_plot: got no fit"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_raises(draw, error, message, fit):
    with pytest.raises(error, match=message):
        draw(fit)
