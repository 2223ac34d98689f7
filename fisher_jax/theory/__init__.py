"""Theory made visible: the Cramér-Rao bound, the identities that scores and Hessians obey, sampling distributions."""

from fisher_jax.theory.bound import cramer_rao_bound
from fisher_jax.theory.checks import check_information_equality, check_score_mean
from fisher_jax.theory.coverage import coverage
from fisher_jax.theory.coverage_record import Coverage
from fisher_jax.theory.rates import ConvergenceRate, convergence_rate
from fisher_jax.theory.record import Check
from fisher_jax.theory.sample_size import SampleSize, sample_size
from fisher_jax.theory.sampling import sampling_distribution
from fisher_jax.theory.sampling_record import SamplingDistribution
from fisher_jax.theory.score_sums import ScoreDistribution, score_distribution

__all__ = [
    "Check",
    "ConvergenceRate",
    "Coverage",
    "SampleSize",
    "SamplingDistribution",
    "ScoreDistribution",
    "check_information_equality",
    "check_score_mean",
    "convergence_rate",
    "coverage",
    "cramer_rao_bound",
    "sample_size",
    "sampling_distribution",
    "score_distribution",
]
