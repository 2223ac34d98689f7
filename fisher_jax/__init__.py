"""Fit any log-density by maximum likelihood, and know how far to trust the fit."""

import importlib
from typing import TYPE_CHECKING, Any

from fisher_jax._version import __version__

if TYPE_CHECKING:
    from fisher_jax import families, moments, optimizers, plots, priors, sources, xarray
    from fisher_jax.checking.goodness_of_fit import GoodnessOfFit, goodness_of_fit
    from fisher_jax.checking.quantile_comparison import QuantileComparison, quantile_comparison
    from fisher_jax.checking.residuals import Residuals, residuals
    from fisher_jax.combinators.binned import binned
    from fisher_jax.combinators.censored import censored
    from fisher_jax.combinators.distributions import from_distribution
    from fisher_jax.combinators.joint import joint
    from fisher_jax.combinators.mixture import mixture
    from fisher_jax.combinators.truncated import truncated
    from fisher_jax.combinators.zeros import hurdle, zero_inflated
    from fisher_jax.design import Design, optimal_design
    from fisher_jax.errors import FitError, FitWarning
    from fisher_jax.fitting.fit import fit, fit_batch
    from fisher_jax.fitting.joint_fit import joint_fit
    from fisher_jax.fitting.result import Fit
    from fisher_jax.fitting.saving import load
    from fisher_jax.fitting.status import Status
    from fisher_jax.frames.formula import Formula, formula
    from fisher_jax.inference.bootstrap import Bootstrap, bootstrap
    from fisher_jax.inference.comparison import CoefficientTable, Comparison, coefficient_table, compare
    from fisher_jax.inference.components import component_probabilities
    from fisher_jax.inference.cross_validation import CrossValidation, cross_validation
    from fisher_jax.inference.delta import DeltaEstimate, delta_method
    from fisher_jax.inference.hypothesis import HypothesisTest
    from fisher_jax.inference.identifiability import Identifiability, identifiability
    from fisher_jax.inference.influence import Influence, influence
    from fisher_jax.inference.information_matrix_test import InformationMatrixTest, information_matrix_test
    from fisher_jax.inference.laplace_check import LaplaceCheck, check_laplace
    from fisher_jax.inference.likelihood_ratio import likelihood_ratio_test
    from fisher_jax.inference.marginal_effects import marginal_effects
    from fisher_jax.inference.prediction import Effects, Prediction, predict
    from fisher_jax.inference.predictive_distribution import PredictiveDistribution, predictive_distribution
    from fisher_jax.inference.predictive_scores import PredictiveScores, ScoreDifference, predictive_scores
    from fisher_jax.inference.return_levels import ReturnLevels, return_levels
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
    from fisher_jax.information.bartlett import Check, check_information_equality, check_score_mean
    from fisher_jax.information.cramer_rao import cramer_rao_bound
    from fisher_jax.information.derivatives import hessian, hessian_vector_product, log_likelihood, score, scores
    from fisher_jax.information.expectations import Enumeration, MonteCarlo, Quadrature, QuasiMonteCarlo
    from fisher_jax.latent.effects import PredictedEffects, predicted_effects
    from fisher_jax.latent.grouped import Grouped, by_group
    from fisher_jax.latent.marginal import MarginalModel, marginal
    from fisher_jax.latent.mixed import mixed
    from fisher_jax.models.auxiliary import with_auxiliary
    from fisher_jax.models.constraints import (
        fixed,
        interval,
        ordered,
        positive,
        positive_definite,
        simplex,
        unit_interval,
    )
    from fisher_jax.models.distribution_function import with_distribution_function
    from fisher_jax.models.linked import linked
    from fisher_jax.models.model import Model, dependent
    from fisher_jax.models.prior import with_prior
    from fisher_jax.profile.profile_likelihood import Profile, profile_likelihood
    from fisher_jax.profile.profile_region import ProfileRegion, profile_region
    from fisher_jax.simulation.convergence_rate import ConvergenceRate, convergence_rate
    from fisher_jax.simulation.coverage import Coverage, coverage
    from fisher_jax.simulation.sample_size import SampleSize, sample_size
    from fisher_jax.simulation.sampling_distribution import SamplingDistribution, sampling_distribution
    from fisher_jax.simulation.score_distribution import ScoreDistribution, score_distribution
    from fisher_jax.stream import StreamResult, fit_stream

# Where each public name is defined. Modules are imported when one of its names is first used: to import all of them takes as long
# as to import JAX.
_DEFINED_IN = {
    "families": "",
    "moments": "",
    "optimizers": "",
    "plots": "",
    "priors": "",
    "sources": "",
    "xarray": "",
    "from_distribution": "fisher_jax.combinators.distributions",
    "joint": "fisher_jax.combinators.joint",
    "mixture": "fisher_jax.combinators.mixture",
    "joint_fit": "fisher_jax.fitting.joint_fit",
    "binned": "fisher_jax.combinators.binned",
    "censored": "fisher_jax.combinators.censored",
    "truncated": "fisher_jax.combinators.truncated",
    "hurdle": "fisher_jax.combinators.zeros",
    "zero_inflated": "fisher_jax.combinators.zeros",
    "FitError": "fisher_jax.errors",
    "FitWarning": "fisher_jax.errors",
    "Enumeration": "fisher_jax.information.expectations",
    "MonteCarlo": "fisher_jax.information.expectations",
    "Quadrature": "fisher_jax.information.expectations",
    "QuasiMonteCarlo": "fisher_jax.information.expectations",
    "fit_batch": "fisher_jax.fitting.fit",
    "load": "fisher_jax.fitting.saving",
    "fit": "fisher_jax.fitting.fit",
    "Fit": "fisher_jax.fitting.result",
    "Status": "fisher_jax.fitting.status",
    "Formula": "fisher_jax.frames.formula",
    "formula": "fisher_jax.frames.formula",
    "bootstrap": "fisher_jax.inference.bootstrap",
    "Bootstrap": "fisher_jax.inference.bootstrap",
    "CoefficientTable": "fisher_jax.inference.comparison",
    "coefficient_table": "fisher_jax.inference.comparison",
    "Comparison": "fisher_jax.inference.comparison",
    "compare": "fisher_jax.inference.comparison",
    "component_probabilities": "fisher_jax.inference.components",
    "DeltaEstimate": "fisher_jax.inference.delta",
    "delta_method": "fisher_jax.inference.delta",
    "Identifiability": "fisher_jax.inference.identifiability",
    "identifiability": "fisher_jax.inference.identifiability",
    "Influence": "fisher_jax.inference.influence",
    "influence": "fisher_jax.inference.influence",
    "InformationMatrixTest": "fisher_jax.inference.information_matrix_test",
    "information_matrix_test": "fisher_jax.inference.information_matrix_test",
    "LaplaceCheck": "fisher_jax.inference.laplace_check",
    "check_laplace": "fisher_jax.inference.laplace_check",
    "likelihood_ratio_test": "fisher_jax.inference.likelihood_ratio",
    "profile_likelihood": "fisher_jax.profile.profile_likelihood",
    "Profile": "fisher_jax.profile.profile_likelihood",
    "profile_region": "fisher_jax.profile.profile_region",
    "ProfileRegion": "fisher_jax.profile.profile_region",
    "HypothesisTest": "fisher_jax.inference.hypothesis",
    "marginal_effects": "fisher_jax.inference.marginal_effects",
    "Effects": "fisher_jax.inference.prediction",
    "Prediction": "fisher_jax.inference.prediction",
    "predict": "fisher_jax.inference.prediction",
    "predictive_distribution": "fisher_jax.inference.predictive_distribution",
    "PredictiveDistribution": "fisher_jax.inference.predictive_distribution",
    "predictive_scores": "fisher_jax.inference.predictive_scores",
    "PredictiveScores": "fisher_jax.inference.predictive_scores",
    "ScoreDifference": "fisher_jax.inference.predictive_scores",
    "cross_validation": "fisher_jax.inference.cross_validation",
    "CrossValidation": "fisher_jax.inference.cross_validation",
    "return_levels": "fisher_jax.inference.return_levels",
    "ReturnLevels": "fisher_jax.inference.return_levels",
    "robust": "fisher_jax.inference.robust",
    "goodness_of_fit": "fisher_jax.checking.goodness_of_fit",
    "GoodnessOfFit": "fisher_jax.checking.goodness_of_fit",
    "residuals": "fisher_jax.checking.residuals",
    "Residuals": "fisher_jax.checking.residuals",
    "quantile_comparison": "fisher_jax.checking.quantile_comparison",
    "QuantileComparison": "fisher_jax.checking.quantile_comparison",
    "score_test": "fisher_jax.inference.score",
    "wald_test": "fisher_jax.inference.wald",
    "Covariance": "fisher_jax.information",
    "Estimate": "fisher_jax.information",
    "Information": "fisher_jax.information",
    "InformationOperator": "fisher_jax.information",
    "InformationWarning": "fisher_jax.information",
    "Regularity": "fisher_jax.information",
    "Solution": "fisher_jax.information",
    "empirical_fisher": "fisher_jax.information",
    "fisher_information": "fisher_jax.information",
    "information_operator": "fisher_jax.information",
    "observed_information": "fisher_jax.information",
    "hessian": "fisher_jax.information.derivatives",
    "hessian_vector_product": "fisher_jax.information.derivatives",
    "log_likelihood": "fisher_jax.information.derivatives",
    "score": "fisher_jax.information.derivatives",
    "scores": "fisher_jax.information.derivatives",
    "PredictedEffects": "fisher_jax.latent.effects",
    "predicted_effects": "fisher_jax.latent.effects",
    "Grouped": "fisher_jax.latent.grouped",
    "by_group": "fisher_jax.latent.grouped",
    "MarginalModel": "fisher_jax.latent.marginal",
    "marginal": "fisher_jax.latent.marginal",
    "mixed": "fisher_jax.latent.mixed",
    "fixed": "fisher_jax.models.constraints",
    "interval": "fisher_jax.models.constraints",
    "ordered": "fisher_jax.models.constraints",
    "positive": "fisher_jax.models.constraints",
    "positive_definite": "fisher_jax.models.constraints",
    "simplex": "fisher_jax.models.constraints",
    "unit_interval": "fisher_jax.models.constraints",
    "linked": "fisher_jax.models.linked",
    "with_auxiliary": "fisher_jax.models.auxiliary",
    "with_prior": "fisher_jax.models.prior",
    "with_distribution_function": "fisher_jax.models.distribution_function",
    "Model": "fisher_jax.models.model",
    "dependent": "fisher_jax.models.model",
    "StreamResult": "fisher_jax.stream",
    "fit_stream": "fisher_jax.stream",
    "Check": "fisher_jax.information.bartlett",
    "ConvergenceRate": "fisher_jax.simulation.convergence_rate",
    "Coverage": "fisher_jax.simulation.coverage",
    "SampleSize": "fisher_jax.simulation.sample_size",
    "SamplingDistribution": "fisher_jax.simulation.sampling_distribution",
    "ScoreDistribution": "fisher_jax.simulation.score_distribution",
    "check_information_equality": "fisher_jax.information.bartlett",
    "check_score_mean": "fisher_jax.information.bartlett",
    "convergence_rate": "fisher_jax.simulation.convergence_rate",
    "coverage": "fisher_jax.simulation.coverage",
    "cramer_rao_bound": "fisher_jax.information.cramer_rao",
    "sample_size": "fisher_jax.simulation.sample_size",
    "sampling_distribution": "fisher_jax.simulation.sampling_distribution",
    "score_distribution": "fisher_jax.simulation.score_distribution",
    "Design": "fisher_jax.design",
    "optimal_design": "fisher_jax.design",
}

__all__ = [
    "Bootstrap",
    "Check",
    "CoefficientTable",
    "Comparison",
    "ConvergenceRate",
    "Covariance",
    "Coverage",
    "CrossValidation",
    "DeltaEstimate",
    "Design",
    "Effects",
    "Enumeration",
    "Estimate",
    "Fit",
    "FitError",
    "FitWarning",
    "Formula",
    "GoodnessOfFit",
    "Grouped",
    "HypothesisTest",
    "Identifiability",
    "Influence",
    "Information",
    "InformationMatrixTest",
    "InformationOperator",
    "InformationWarning",
    "LaplaceCheck",
    "MarginalModel",
    "Model",
    "MonteCarlo",
    "PredictedEffects",
    "Prediction",
    "PredictiveDistribution",
    "PredictiveScores",
    "Profile",
    "ProfileRegion",
    "Quadrature",
    "QuantileComparison",
    "QuasiMonteCarlo",
    "Regularity",
    "Residuals",
    "ReturnLevels",
    "SampleSize",
    "SamplingDistribution",
    "ScoreDifference",
    "ScoreDistribution",
    "Solution",
    "Status",
    "StreamResult",
    "__version__",
    "binned",
    "bootstrap",
    "by_group",
    "censored",
    "check_information_equality",
    "check_laplace",
    "check_score_mean",
    "coefficient_table",
    "compare",
    "component_probabilities",
    "convergence_rate",
    "coverage",
    "cramer_rao_bound",
    "cross_validation",
    "delta_method",
    "dependent",
    "empirical_fisher",
    "families",
    "fisher_information",
    "fit",
    "fit_batch",
    "fit_stream",
    "fixed",
    "formula",
    "from_distribution",
    "goodness_of_fit",
    "hessian",
    "hessian_vector_product",
    "hurdle",
    "identifiability",
    "influence",
    "information_matrix_test",
    "information_operator",
    "interval",
    "joint",
    "joint_fit",
    "likelihood_ratio_test",
    "linked",
    "load",
    "log_likelihood",
    "marginal",
    "marginal_effects",
    "mixed",
    "mixture",
    "moments",
    "observed_information",
    "optimal_design",
    "optimizers",
    "ordered",
    "plots",
    "positive",
    "positive_definite",
    "predict",
    "predicted_effects",
    "predictive_distribution",
    "predictive_scores",
    "priors",
    "profile_likelihood",
    "profile_region",
    "quantile_comparison",
    "residuals",
    "return_levels",
    "robust",
    "sample_size",
    "sampling_distribution",
    "score",
    "score_distribution",
    "score_test",
    "scores",
    "simplex",
    "sources",
    "truncated",
    "unit_interval",
    "wald_test",
    "with_auxiliary",
    "with_distribution_function",
    "with_prior",
    "xarray",
    "zero_inflated",
]


def __getattr__(name: str) -> Any:
    if name not in _DEFINED_IN:
        raise AttributeError(f"module 'fisher_jax' has no attribute {name!r}")
    module = _DEFINED_IN[name]
    value = getattr(importlib.import_module(module), name) if module else importlib.import_module(f"fisher_jax.{name}")
    globals()[name] = value  # not asked for again
    return value


def __dir__() -> list[str]:
    return __all__
