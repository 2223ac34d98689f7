"""Optimal designs: where to observe, and how often, so that the information is largest."""

from fisher_jax.design.optimal_design import Design, optimal_design

__all__ = ["Design", "optimal_design"]
