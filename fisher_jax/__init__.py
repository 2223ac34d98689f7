"""Fit any log-density by maximum likelihood, and know how far to trust the fit."""

from fisher_jax import families, moments, optimizers, stream
from fisher_jax._version import __version__
from fisher_jax.errors import FitError, FitWarning
from fisher_jax.expectation import Enumeration, MonteCarlo, Quadrature, QuasiMonteCarlo
from fisher_jax.fitting.batch import fit_batch
from fisher_jax.fitting.files import load
from fisher_jax.fitting.fit import fit
from fisher_jax.fitting.result import Fit
from fisher_jax.fitting.status import Status
from fisher_jax.inference.bootstrap import bootstrap
from fisher_jax.inference.bootstrap_record import Bootstrap
from fisher_jax.inference.coefficients import CoefficientTable, coefficient_table
from fisher_jax.inference.comparison import Comparison, compare
from fisher_jax.inference.delta import DeltaEstimate, delta_method
from fisher_jax.inference.identification import Identifiability, identifiability
from fisher_jax.inference.influential import Influence, influence
from fisher_jax.inference.information_matrix_test import InformationMatrixTest, information_matrix_test
from fisher_jax.inference.likelihood_ratio import likelihood_ratio_test
from fisher_jax.inference.profile_likelihood import profile_likelihood
from fisher_jax.inference.profile_record import Profile
from fisher_jax.inference.record import HypothesisTest
from fisher_jax.inference.robust import robust
from fisher_jax.inference.score import score_test
from fisher_jax.inference.wald import wald_test
from fisher_jax.information import (
    Covariance,
    Estimate,
    Information,
    InformationOperator,
    InformationWarning,
    Regularity,
    Solution,
    empirical_fisher,
    fisher_information,
    information_operator,
    observed_information,
)
from fisher_jax.information.derivatives import hessian, hessian_vector_product, log_likelihood, score, scores
from fisher_jax.models.constraints import fixed, interval, ordered, positive, positive_definite, simplex, unit_interval
from fisher_jax.models.linked import linked
from fisher_jax.models.model import Model, dependent
from fisher_jax.stream import StreamResult, fit_stream
from fisher_jax.theory import (
    Check,
    ConvergenceRate,
    Coverage,
    SampleSize,
    SamplingDistribution,
    ScoreDistribution,
    check_information_equality,
    check_score_mean,
    convergence_rate,
    coverage,
    cramer_rao_bound,
    sample_size,
    sampling_distribution,
    score_distribution,
)
from fisher_jax.theory.design import Design, optimal_design

__all__ = [
    "Bootstrap",
    "Check",
    "CoefficientTable",
    "Comparison",
    "ConvergenceRate",
    "Covariance",
    "Coverage",
    "DeltaEstimate",
    "Design",
    "Enumeration",
    "Estimate",
    "Fit",
    "FitError",
    "FitWarning",
    "HypothesisTest",
    "Identifiability",
    "Influence",
    "Information",
    "InformationMatrixTest",
    "InformationOperator",
    "InformationWarning",
    "Model",
    "MonteCarlo",
    "Profile",
    "Quadrature",
    "QuasiMonteCarlo",
    "Regularity",
    "SampleSize",
    "SamplingDistribution",
    "ScoreDistribution",
    "Solution",
    "Status",
    "StreamResult",
    "__version__",
    "bootstrap",
    "check_information_equality",
    "check_score_mean",
    "coefficient_table",
    "compare",
    "convergence_rate",
    "coverage",
    "cramer_rao_bound",
    "delta_method",
    "dependent",
    "empirical_fisher",
    "families",
    "fisher_information",
    "fit",
    "fit_batch",
    "fit_stream",
    "fixed",
    "hessian",
    "hessian_vector_product",
    "identifiability",
    "influence",
    "information_matrix_test",
    "information_operator",
    "interval",
    "likelihood_ratio_test",
    "linked",
    "load",
    "log_likelihood",
    "moments",
    "observed_information",
    "optimal_design",
    "optimizers",
    "ordered",
    "positive",
    "positive_definite",
    "profile_likelihood",
    "robust",
    "sample_size",
    "sampling_distribution",
    "score",
    "score_distribution",
    "score_test",
    "scores",
    "simplex",
    "stream",
    "unit_interval",
    "wald_test",
]
