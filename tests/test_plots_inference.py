"""Pictures of profiles and of bootstrap replicates show what the records say."""

import functools

import jax
import matplotlib as mpl
import numpy as np
import pytest

import fisher_jax as fj

mpl.use("Agg")
import matplotlib.pyplot as plt

from fisher_jax.plots import bootstrap_histogram, coefficient_plot, profile_curves

COUNTS = np.array([2.0, 4.0, 3.0, 7.0, 1.0])


@functools.cache
def fitted():
    return fj.fit(fj.families.poisson, {"rate": 1.0}, COUNTS)


@functools.cache
def profile():
    return fj.profile_likelihood(fitted(), level=0.9)


@functools.cache
def replicates():
    return fj.bootstrap(fitted(), jax.random.key(0), 200)


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
    np.testing.assert_allclose(root, exact, atol=0.02)  # between the points that were followed
    wald = lines(panel, "Wald")
    slope = np.diff(wald.get_ydata()) / np.diff(wald.get_xdata())
    np.testing.assert_allclose(slope, 1 / np.sqrt(3.4 / 5), rtol=1e-6)


def test_in_nats_the_curve_is_minus_half_the_square():
    (panel,) = profile_curves(profile(), "rate", scale="log_likelihood")
    root = lines(profile_curves(profile())[0], "profile").get_ydata()
    np.testing.assert_allclose(lines(panel, "profile").get_ydata(), -0.5 * root**2)
    assert panel.get_ylabel() == "profile − maximum, in nats"


def test_curves_say_what_is_wrong_with_what_they_are_given():
    with pytest.raises(ValueError, match="profile_curves: no profile is named 'mean'; there are `rate`"):
        profile_curves(profile(), "mean")
    with pytest.raises(ValueError, match="scale='log' is unknown; choose from 'signed_root', 'log_likelihood'"):
        profile_curves(profile(), scale="log")
    with pytest.raises(ValueError, match="1 curves need as many axes, got 2"):
        profile_curves(profile(), axes=plt.subplots(1, 2)[1])


@pytest.mark.exhaustive
def test_a_histogram_holds_the_replicates_their_interval_and_the_normal_curve():
    (panel,) = bootstrap_histogram(replicates(), level=0.9)
    panel.figure.canvas.draw()
    assert sum(patch.get_height() * patch.get_width() for patch in panel.patches) == pytest.approx(1.0)
    ends = [line.get_xdata()[0] for line in panel.lines if line.get_linestyle() == ":"]
    np.testing.assert_allclose(ends, replicates().confidence_intervals(0.9)["rate"])
    assert lines(panel, "estimate").get_xdata()[0] == pytest.approx(3.4)
    density = lines(panel, "Wald").get_ydata()
    assert np.max(density) == pytest.approx(1 / np.sqrt(2 * np.pi * 3.4 / 5), rel=1e-3)
    with pytest.raises(ValueError, match="bootstrap_histogram: no estimated entry is named 'mean'"):
        bootstrap_histogram(replicates(), "mean")
    with pytest.raises(ValueError, match="1 histograms need as many axes, got 2"):
        bootstrap_histogram(replicates(), axes=plt.subplots(1, 2)[1])


@pytest.mark.parametrize(
    ("draw", "error", "said"),
    [
        (lambda: profile_curves(fitted()), TypeError, "profile_curves: expected a Profile, got Fit"),
        (lambda: profile_curves(profile(), []), ValueError, "profile_curves: names is empty"),
        (lambda: bootstrap_histogram(fitted()), TypeError, "bootstrap_histogram: expected a Bootstrap, got Fit"),
        (lambda: bootstrap_histogram(replicates(), []), ValueError, "bootstrap_histogram: names is empty"),
        (
            lambda: coefficient_plot(fitted(), names=[]),
            ValueError,
            "coefficient_plot: there is nothing to draw: got 1 fits",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, error, said):
    with pytest.raises(error, match=said):
        draw()
