"""Pictures of a fit and of information matrices. They need matplotlib, which the extra `plots` brings."""

from fisher_jax.plots.bootstrap_histogram import bootstrap_histogram
from fisher_jax.plots.design import design_plot
from fisher_jax.plots.fits import coefficient_plot, influence_plot
from fisher_jax.plots.information import information_ellipses, information_heat_map
from fisher_jax.plots.large_samples import convergence_curves, coverage_curves, quadratic_approximation
from fisher_jax.plots.likelihood_surface import likelihood_surface
from fisher_jax.plots.normality import joint_ellipses, standardised_histograms
from fisher_jax.plots.profile_curves import profile_curves

__all__ = [
    "bootstrap_histogram",
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
    "quadratic_approximation",
    "standardised_histograms",
]
