"""What each observation does to the estimate, by the implicit function theorem. In u."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from fisher_jax.blocks import CHUNK_ENTRIES, in_chunks
from fisher_jax.fitting.covariance import precise
from fisher_jax.models.likelihood import Likelihood, scores_at
from fisher_jax.numerics import linalg
from fisher_jax.numerics.differentiate import each_at

Moves = tuple[Float[Array, "n p"], Float[Array, "n p"]]


def moves(
    target: Likelihood, free: Float[Array, " p"], curvature: Float[Array, "p p"], weights: Float[Array, " n"]
) -> Moves:
    """For each observation ∂û/∂wᵢ = J⁻¹ sᵢ, and how û would move without it.

    `target` is without weights, J the curvature with them. Without an observation û moves by one step of Newton's on the
    others, −(J − wᵢJᵢ)⁻¹ wᵢ sᵢ, or where terms are not separable by −wᵢ ∂û/∂wᵢ; NaN where J, or what is left of it, is not
    positive definite; zero where the weight is.
    """
    p = free.shape[0]
    if not target.separable:
        derivatives = _solved(curvature, precise(scores_at(target, free)))
        return derivatives, -weights[:, None] * derivatives

    def of_chunk(rows: PyTree, weights: Float[Array, " c"]) -> tuple[Array, float]:
        scores, hessians = map(precise, each_at(target.terms, free, rows))
        left = curvature[None] + weights[:, None, None] * hessians
        deleted = jax.vmap(lambda rest, score: _solved(rest, score[None])[0])(left, -weights[:, None] * scores)
        return jnp.concatenate([_solved(curvature, scores), deleted], axis=1), 0.0

    found, _ = in_chunks(target.rows, weights, max(16, CHUNK_ENTRIES // p**2), of_chunk, weights.dtype)
    return found[:, :p], jnp.where(weights[:, None] == 0, 0.0, found[:, p:])


def _solved(matrix: Float[Array, "p p"], rows: Float[Array, "n p"]) -> Float[Array, "n p"]:
    factor = linalg.factorise(matrix)
    return jnp.where(factor.definite, linalg.solve(factor, rows.T).T, jnp.nan)


def distances(curvature: Float[Array, "p p"], moves: Float[Array, "n p"]) -> Float[Array, " n"]:
    """√(dᵀ J d): how far each move goes, in standard errors."""
    squared = jnp.sum(jnp.matmul(moves, curvature, precision="highest") * moves, axis=1)
    return jnp.sqrt(jnp.maximum(squared, 0.0))
