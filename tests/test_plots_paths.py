"""Paths of several optimisers on one likelihood surface, each by its name and where it went."""

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np

import fisher_jax as fj

mpl.use("Agg")
import matplotlib.pyplot as plt

from fisher_jax.plots import likelihood_surface


def test_paths_are_drawn_by_name_in_colours_of_their_own():
    y = np.array([1.0, 2.0, 3.0, 6.0])
    model = fj.families.normal
    fit = fj.fit(model, {"loc": 0.0, "scale": 1.0}, y)
    short = [{"loc": 2.0, "scale": 1.5}, {"loc": jnp.asarray(2.5), "scale": 1.7}, fit.params]
    long = [{"loc": 2.0 + 0.02 * k, "scale": 1.5} for k in range(50)]
    axes = likelihood_surface(fit, model, y, ["loc", "scale"], path={"newton": short, "gradient": long}, num_points=11)
    drawn = {line.get_label(): line for line in axes.lines}
    newton, gradient = drawn["newton, 2 steps"], drawn["gradient, 49 steps"]
    np.testing.assert_allclose(newton.get_xydata()[:2], [[2.0, 1.5], [2.5, 1.7]])
    np.testing.assert_allclose(gradient.get_xdata(), 2.0 + 0.02 * np.arange(50))
    assert newton.get_color() != gradient.get_color()
    assert (newton.get_marker(), gradient.get_marker()) == ("o", "")
    plt.close("all")
