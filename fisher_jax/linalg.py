"""Small symmetric matrices: factorise, solve, invert and diagnose. Everything reports, nothing repairs.

A matrix is scaled to unit diagonal before it is factorised, so that definiteness and conditioning do not depend on the
units of the parameters. Up to `UNROLLED` rows the factorisation is written out in element-wise operations, which XLA
fuses and batches; LAPACK or cuSOLVER takes over above.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

UNROLLED = 12


class Factor(NamedTuple):
    """A = S L Lᵀ S with S = diag(`scale`) and L lower triangular, and what was found on the way.

    `pivot` is the first pivot of the scaled matrix that is not clearly positive, or the smallest one if all are: in
    (0, 1] for a positive definite matrix, about zero for a singular one, negative for an indefinite one, NaN for a
    matrix that is not finite. L means something only where `definite` is true.
    """

    lower: Float[Array, "p p"]
    scale: Float[Array, " p"]
    pivot: Float[Array, ""]
    definite: Bool[Array, ""]


def singular_pivot(p: int, dtype: np.typing.DTypeLike) -> float:
    """The size below which a pivot of a unit-diagonal p × p matrix is rounding error: 100 p ε."""
    return 100.0 * max(p, 1) * float(jnp.finfo(dtype).eps)


def factorise(matrix: Float[Array, "p p"]) -> Factor:
    """Cholesky factor of a symmetric matrix scaled to unit diagonal, with its definiteness."""
    p = matrix.shape[-1]
    diagonal = jnp.abs(jnp.diagonal(matrix))
    scale = jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1.0))
    scaled = matrix / scale[:, None] / scale[None, :]
    threshold = singular_pivot(p, matrix.dtype)
    lower, pivot = _unrolled(scaled, threshold) if p <= UNROLLED else _library(scaled)
    return Factor(lower, scale, pivot, pivot > threshold)


def _unrolled(scaled: Float[Array, "p p"], threshold: float) -> tuple[Float[Array, "p p"], Float[Array, ""]]:
    p = scaled.shape[-1]
    columns: list[Array] = []
    worst = jnp.ones((), scaled.dtype)
    sound = jnp.array(True)
    for j in range(p):
        column = scaled[:, j]
        for previous in columns:
            column = column - previous * previous[j]
        pivot = column[j]
        worst = jnp.where(sound, jnp.minimum(worst, pivot), worst)
        sound = sound & (pivot > threshold)
        column = column / jnp.sqrt(jnp.where(pivot > threshold, pivot, 1.0))
        columns.append(jnp.where(jnp.arange(p) >= j, column, 0.0))
    lower = jnp.stack(columns, axis=1) if columns else jnp.zeros((0, 0), scaled.dtype)
    return lower, worst


def _library(scaled: Float[Array, "p p"]) -> tuple[Float[Array, "p p"], Float[Array, ""]]:
    lower = jnp.linalg.cholesky(scaled, symmetrize_input=False)
    smallest = jnp.min(jnp.diagonal(lower)) ** 2
    return lower, jnp.where(jnp.isnan(smallest), _failed_pivot(scaled), smallest)


def _failed_pivot(scaled: Float[Array, "p p"]) -> Float[Array, ""]:
    """A stand-in for the pivot that the library does not return: the scaled matrix's smallest eigenvalue."""
    finite = jnp.all(jnp.isfinite(scaled))
    smallest = jnp.linalg.eigvalsh(jnp.where(finite, scaled, jnp.eye(scaled.shape[-1], dtype=scaled.dtype)))[0]
    return jnp.where(finite, smallest, jnp.nan)


def solve_lower(factor: Factor, right: Float[Array, "p *k"]) -> Float[Array, "p *k"]:
    """L⁻¹ S⁻¹ `right`: half of a solve. Its squared length is `right`ᵀ A⁻¹ `right`."""
    p = factor.scale.shape[0]
    scaled = right / factor.scale.reshape((p,) + (1,) * (right.ndim - 1))
    if p > UNROLLED:
        return _triangular(factor.lower, scaled, transpose=False)
    rows: list[Array] = []
    for i in range(p):
        row = scaled[i]
        for j in range(i):
            row = row - factor.lower[i, j] * rows[j]
        rows.append(row / factor.lower[i, i])
    return jnp.stack(rows) if rows else scaled


def solve(factor: Factor, right: Float[Array, "p *k"]) -> Float[Array, "p *k"]:
    """A⁻¹ `right`."""
    p = factor.scale.shape[0]
    half = solve_lower(factor, right)
    if p > UNROLLED:
        whole = _triangular(factor.lower, half, transpose=True)
    else:
        rows: list[Array] = [half[i] for i in range(p)]
        for i in reversed(range(p)):
            for j in range(i + 1, p):
                rows[i] = rows[i] - factor.lower[j, i] * rows[j]
            rows[i] = rows[i] / factor.lower[i, i]
        whole = jnp.stack(rows) if rows else half
    return whole / factor.scale.reshape((p,) + (1,) * (right.ndim - 1))


def _triangular(lower: Array, right: Array, *, transpose: bool) -> Array:
    return jax.scipy.linalg.solve_triangular(lower, right, lower=True, trans="T" if transpose else 0)


def inverse(matrix: Float[Array, "p p"]) -> Float[Array, "p p"]:
    """A⁻¹ of a positive definite matrix, symmetric to the last bit; all NaN where A is not positive definite.

    The caller says why: `weakest_direction` finds the culprit.
    """
    factor = factorise(matrix)
    half = solve_lower(factor, jnp.eye(matrix.shape[-1], dtype=matrix.dtype))
    product = jnp.sum(half[:, :, None] * half[:, None, :], axis=0) if _small(matrix) else half.T @ half
    return jnp.where(factor.definite, product, jnp.nan)


def _small(matrix: Array) -> bool:
    return matrix.shape[-1] <= UNROLLED


def weakest_direction(matrix: np.ndarray) -> tuple[float, np.ndarray]:
    """Smallest eigenvalue of the matrix scaled to unit diagonal, and its eigenvector in the matrix's own units.

    Runs on the host with numpy, for messages. The vector is scaled so that its largest entry is one in units of each
    parameter's own conditional standard error.
    """
    diagonal = np.abs(np.diagonal(matrix))
    scale = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    values, vectors = np.linalg.eigh(matrix / scale[:, None] / scale[None, :])
    vector = vectors[:, 0]
    return float(values[0]), vector / vector[np.argmax(np.abs(vector))]
