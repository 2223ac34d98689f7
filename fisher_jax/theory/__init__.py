"""Theory made visible: the Cramér-Rao bound, and the identities that scores and Hessians obey."""

from fisher_jax.theory.bound import cramer_rao_bound
from fisher_jax.theory.checks import check_information_equality, check_score_mean
from fisher_jax.theory.record import Check

__all__ = ["Check", "check_information_equality", "check_score_mean", "cramer_rao_bound"]
