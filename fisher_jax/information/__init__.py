"""Information matrices, expected and at the data; derivatives, the Cramér-Rao bound and Bartlett's identities."""

from fisher_jax.information.closed_form import as_matrix, has_closed_form, total_expected
from fisher_jax.information.derivatives import empirical_fisher, observed_information
from fisher_jax.information.fisher_information import InformationWarning, fisher_information
from fisher_jax.information.krylov import Solution
from fisher_jax.information.matrix import Covariance, Information
from fisher_jax.information.operator import InformationOperator, information_operator
from fisher_jax.information.regularity import Regularity
from fisher_jax.information.scoring import Scoring, scoring_at
from fisher_jax.moments import Estimate

__all__ = [
    "Covariance",
    "Estimate",
    "Information",
    "InformationOperator",
    "InformationWarning",
    "Regularity",
    "Scoring",
    "Solution",
    "as_matrix",
    "empirical_fisher",
    "fisher_information",
    "has_closed_form",
    "information_operator",
    "observed_information",
    "scoring_at",
    "total_expected",
]
