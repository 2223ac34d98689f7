"""Score statistics from plain arrays: is the slope along what was held compatible with zero?"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from fisher_jax.fitting.covariance import precise
from fisher_jax.numerics import linalg

LOST = 1e4  # times ε: what is left of a variance that the nuisance parameters explain but for rounding


class Nuisance(NamedTuple):
    """The estimated parameters at the null estimate: total score, the information to be inverted, and the score's variance."""

    gradient: Float[Array, " p"]
    information: Float[Array, "p p"]
    variance: Float[Array, "p p"] | None  # None where it is the information, by the model


class Tested(NamedTuple):
    """The k directions tested, with the same for them and between them and the p nuisance parameters."""

    gradient: Float[Array, " k"]
    information: Float[Array, "k k"]
    cross: Float[Array, "k p"]
    variance: Float[Array, "k k"] | None
    cross_variance: Float[Array, "k p"] | None


def score_statistic(nuisance: Nuisance, tested: Tested) -> Float[Array, ""]:
    """Squared length of the effective score: chi-squared with k degrees of freedom. NaN where its variance is not definite.

    With slope C = J_λλ⁻¹ J_λψ of the tested on the nuisance scores, the effective score is g_ψ − Cᵀ g_λ, and its variance that
    of the model J_ψψ − J_ψλ C, or K_ψψ − Cᵀ K_λψ − K_ψλ C + Cᵀ K_λλ C where the model need not be right.

    References
    ----------
    Rao, C. R. (1948), Proc. Camb. Phil. Soc. 44, 50-57; Boos, D. D. (1992), Am. Statistician 46, 327-333, eq. (7).
    """
    factor = linalg.factorise(precise(nuisance.information))
    cross = precise(tested.cross)
    slope = linalg.solve(factor, cross.T)
    effective = precise(tested.gradient) - _times(slope.T, precise(nuisance.gradient))
    if nuisance.variance is None or tested.variance is None or tested.cross_variance is None:
        whole = precise(tested.information)
        variance = whole - _times(cross, slope)
    else:
        whole, mixed = precise(tested.variance), _times(precise(tested.cross_variance), slope)
        variance = whole - mixed - mixed.T + _times(slope.T, _times(precise(nuisance.variance), slope))
    floor = LOST * jnp.finfo(tested.gradient.dtype).eps * jnp.abs(jnp.diagonal(whole))
    found = linalg.factorise(0.5 * (variance + variance.T))
    known = factor.definite & found.definite & jnp.all(jnp.diagonal(variance) > floor)
    return jnp.where(known, jnp.sum(linalg.solve_lower(found, effective) ** 2), jnp.nan)


def _times(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right, precision="highest")
