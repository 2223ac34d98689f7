"""Means and covariances with their standard errors, streamed: computed from parts of the rows, merged in any order.

Deviations are taken from the mean, never as the difference of two large numbers, so that a mean of 1e8 beside a standard
deviation of one costs no digits. What E[XXᵀ] − E[X]E[X]ᵀ is safe for, a mean near zero as that of a score, it is used for.
"""

from fisher_jax.moments.covariance import covariance, covariance_matrix, covariance_of_moments, moments
from fisher_jax.moments.running import Estimate, RunningMean, RunningMoments

__all__ = [
    "Estimate",
    "RunningMean",
    "RunningMoments",
    "covariance",
    "covariance_matrix",
    "covariance_of_moments",
    "moments",
]
