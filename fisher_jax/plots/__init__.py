"""Pictures of a fit and of information matrices. They need matplotlib, which the extra `plots` brings."""

from fisher_jax.plots.fits import coefficient_plot, influence_plot
from fisher_jax.plots.information import information_ellipses, information_heat_map
from fisher_jax.plots.likelihood_surface import likelihood_surface

__all__ = [
    "coefficient_plot",
    "influence_plot",
    "information_ellipses",
    "information_heat_map",
    "likelihood_surface",
]
