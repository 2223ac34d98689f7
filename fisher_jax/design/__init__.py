"""Optimal designs: where to observe, and how often, so that the information is largest."""

from fisher_jax.design.optimal import optimal_design
from fisher_jax.design.record import Design

__all__ = ["Design", "optimal_design"]
