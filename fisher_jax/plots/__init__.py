"""Figures of results. They need matplotlib (the extra `plots`), which is imported when one is drawn.

A function takes the result to draw, then the `names` of the entries to show, and returns the axes that it has drawn on.
"""

from fisher_jax.plots.checking import calibration_histogram, residual_plot, rootogram, worm
from fisher_jax.plots.design import design_plot
from fisher_jax.plots.extremes import quantiles, return_levels
from fisher_jax.plots.fits import bootstrap_histogram, coefficient_plot, influence_plot
from fisher_jax.plots.information import information_ellipses, information_heat_map
from fisher_jax.plots.likelihood import likelihood_surface, profile_curves, profile_region, quadratic_approximation
from fisher_jax.plots.simulation import convergence_curves, coverage_curves, joint_ellipses, standardized_histograms

__all__ = [
    "bootstrap_histogram",
    "calibration_histogram",
    "coefficient_plot",
    "convergence_curves",
    "coverage_curves",
    "design_plot",
    "influence_plot",
    "information_ellipses",
    "information_heat_map",
    "joint_ellipses",
    "likelihood_surface",
    "profile_curves",
    "profile_region",
    "quadratic_approximation",
    "quantiles",
    "residual_plot",
    "return_levels",
    "rootogram",
    "standardized_histograms",
    "worm",
]
