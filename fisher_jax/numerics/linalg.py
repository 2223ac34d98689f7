"""Small symmetric matrices: factorise, solve, invert and diagnose. Everything reports, nothing repairs.

A matrix is scaled to unit diagonal before it is factorised, so that definiteness and conditioning do not depend on the
units of the parameters. Up to `UNROLLED` rows the factorisation is written out in element-wise operations, which XLA fuses
and batches; above, a loop does the same block by block. LAPACK is not called where fits may be batched: it is slow on many
small matrices, and XLA's CPU client can deadlock on two batched triangular solves at once (jaxlib 0.10.2).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

UNROLLED = 8  # rows; in a batch of fits with 5 parameters six times faster than by blocks
BLOCK = 4  # larger blocks compile longer and run no faster


class Factor(NamedTuple):
    """A = S L Lᵀ S with S = diag(`scale`) and L lower triangular, and what was found on the way.

    `pivot` is the smallest pivot of the scaled matrix if all are clearly positive, else the first that is not, less the
    largest entry left in its column: in (0, 1] for a positive definite matrix, about zero for a singular one, negative
    for an indefinite one, NaN for a matrix that is not finite. L means something only where `definite` is true.
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
    scaled, scale = to_unit_diagonal(matrix)
    threshold = singular_pivot(p, matrix.dtype)
    lower, pivot = (_unrolled if p <= UNROLLED else _by_blocks)(scaled, threshold)
    return Factor(lower, scale, pivot, pivot > threshold)


def _unrolled(scaled: Float[Array, "p p"], threshold: float) -> tuple[Float[Array, "p p"], Float[Array, ""]]:
    p = scaled.shape[-1]
    columns: list[Array] = []
    worst = jnp.ones((), scaled.dtype)
    sound = jnp.array(True)
    for j in range(p):
        column, pivot = scaled[:, j], scaled[j, j]
        left_over = jnp.max(jnp.abs(column[j + 1 :]), initial=0.0)
        found = jnp.where(pivot > threshold, jnp.minimum(worst, pivot), pivot - left_over)
        worst = jnp.where(sound, found, worst)
        sound = sound & (pivot > threshold)
        column = jnp.where(jnp.arange(p) >= j, column, 0.0) / jnp.sqrt(jnp.where(pivot > threshold, pivot, 1.0))
        scaled = scaled - column[:, None] * column[None, :]
        columns.append(column)
    lower = jnp.stack(columns, axis=1) if columns else jnp.zeros((0, 0), scaled.dtype)
    return lower, worst


def _by_blocks(scaled: Float[Array, "p p"], threshold: float) -> tuple[Float[Array, "p p"], Float[Array, ""]]:
    p = scaled.shape[-1]
    m = _whole_blocks(p)
    matrix = jnp.eye(m, dtype=scaled.dtype).at[:p, :p].set(scaled)

    def step(k: Array, carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        matrix, lower, worst, sound = carry
        start = k * BLOCK
        corner, pivot = _unrolled(jax.lax.dynamic_slice(matrix, (start, start), (BLOCK, BLOCK)), threshold)
        columns = jax.lax.dynamic_slice_in_dim(matrix, start, BLOCK, axis=1)
        below = _substitute(corner, columns.T, range(BLOCK)).T
        below = jnp.where((jnp.arange(m) >= start + BLOCK)[:, None], below, 0.0)
        matrix = matrix - jnp.matmul(below, below.T, precision="highest")
        columns = jax.lax.dynamic_update_slice_in_dim(below, corner, start, axis=0)
        lower = jax.lax.dynamic_update_slice_in_dim(lower, columns, start, axis=1)
        worst = jnp.where(sound, jnp.where(pivot > threshold, jnp.minimum(worst, pivot), pivot), worst)
        return matrix, lower, worst, sound & (pivot > threshold)

    start = (matrix, jnp.zeros_like(matrix), jnp.ones((), scaled.dtype), jnp.array(True))
    _, lower, worst, _ = jax.lax.fori_loop(0, m // BLOCK, step, start)
    return lower[:p, :p], worst


def _whole_blocks(p: int) -> int:
    """p rounded up to a multiple of the block size."""
    return -(-p // BLOCK) * BLOCK


def solve_lower(factor: Factor, right: Float[Array, "p *k"]) -> Float[Array, "p *k"]:
    """L⁻¹ S⁻¹ `right`: half of a solve. Its squared length is `right`ᵀ A⁻¹ `right`."""
    p = factor.scale.shape[0]
    return _triangular(factor.lower, right / factor.scale.reshape((p,) + (1,) * (right.ndim - 1)), forward=True)


def solve(factor: Factor, right: Float[Array, "p *k"]) -> Float[Array, "p *k"]:
    """A⁻¹ `right`."""
    p = factor.scale.shape[0]
    whole = _triangular(factor.lower.T, solve_lower(factor, right), forward=False)
    return whole / factor.scale.reshape((p,) + (1,) * (right.ndim - 1))


def _triangular(triangle: Float[Array, "p p"], right: Float[Array, "p *k"], *, forward: bool) -> Float[Array, "p *k"]:
    """Solve with a lower triangle from the first row on (`forward`), or with an upper one from the last."""
    p = triangle.shape[0]
    if p <= UNROLLED:
        return _substitute(triangle, right, range(p) if forward else range(p - 1, -1, -1))
    solved = _substitute_by_blocks(triangle, right.reshape(p, -1), forward=forward)
    return solved.reshape(right.shape)


def _substitute_by_blocks(
    triangle: Float[Array, "p p"], right: Float[Array, "p k"], *, forward: bool
) -> Float[Array, "p k"]:
    p, m = triangle.shape[0], _whole_blocks(triangle.shape[0])
    triangle = jnp.eye(m, dtype=triangle.dtype).at[:p, :p].set(triangle)
    right = jnp.pad(right, ((0, m - p), (0, 0)))
    order = range(BLOCK) if forward else range(BLOCK - 1, -1, -1)

    def step(k: Array, right: Array) -> Array:
        start = (k if forward else m // BLOCK - 1 - k) * BLOCK
        corner = jax.lax.dynamic_slice(triangle, (start, start), (BLOCK, BLOCK))
        solved = _substitute(corner, jax.lax.dynamic_slice_in_dim(right, start, BLOCK), order)
        columns = jax.lax.dynamic_slice_in_dim(triangle, start, BLOCK, axis=1)
        right = right - jnp.matmul(columns, solved, precision="highest")
        return jax.lax.dynamic_update_slice_in_dim(right, solved, start, axis=0)

    return jax.lax.fori_loop(0, m // BLOCK, step, right)[:p]


def _substitute(triangle: Float[Array, "p p"], right: Float[Array, "p *k"], order: range) -> Float[Array, "p *k"]:
    """Solve a triangular system column by column: each unknown, once known, is taken out of all the other rows."""
    solved: dict[int, Array] = {}
    for j in order:
        solved[j] = right[j] / triangle[j, j]
        column = triangle[:, j].reshape((-1,) + (1,) * (right.ndim - 1))
        right = right - column * solved[j][None]
    return jnp.stack([solved[j] for j in range(len(solved))]) if solved else right


def inverse(matrix: Float[Array, "p p"]) -> Float[Array, "p p"]:
    """A⁻¹ of a positive definite matrix, symmetric to the last bit; all NaN where A is not positive definite.

    The caller says why: `weakest_direction` finds the culprit.
    """
    factor = factorise(matrix)
    half = solve_lower(factor, jnp.eye(matrix.shape[-1], dtype=matrix.dtype))
    product = (
        jnp.sum(half[:, :, None] * half[:, None, :], axis=0)
        if len(matrix) <= UNROLLED
        else jnp.matmul(half.T, half, precision="highest")
    )
    return jnp.where(factor.definite, product, jnp.nan)


def log_determinant(matrix: Float[Array, "p p"]) -> Float[Array, ""]:
    """log det A of a positive definite matrix; NaN where A is not positive definite."""
    factor = factorise(matrix)
    diagonal = jnp.where(factor.definite, jnp.diagonal(factor.lower), 1.0)
    return jnp.where(factor.definite, 2.0 * jnp.sum(jnp.log(diagonal) + jnp.log(factor.scale)), jnp.nan)


def to_unit_diagonal(matrix: Float[Array, "p p"]) -> tuple[Float[Array, "p p"], Float[Array, " p"]]:
    """The matrix with rows and columns divided by the square roots of its diagonal, and these; by one where that is zero."""
    diagonal = jnp.abs(jnp.diagonal(matrix))
    scale = jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1.0))
    return matrix / scale[:, None] / scale[None, :], scale


def weak_directions(matrix: np.ndarray, below: float) -> list[tuple[float, np.ndarray]]:
    """Eigenvalues under `below` of the matrix scaled to unit diagonal, the least first, and their eigenvectors.

    Runs on the host with numpy, for messages. Each vector is scaled so that its largest entry is one in units of each
    parameter's own conditional standard error.
    """
    diagonal = np.abs(np.diagonal(matrix))
    scale = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    values, vectors = np.linalg.eigh(matrix / scale[:, None] / scale[None, :])
    largest = [vector[np.argmax(np.abs(vector))] for vector in vectors.T]
    return [
        (float(value), vector / size)
        for value, vector, size in zip(values, vectors.T, largest, strict=True)
        if value < below
    ]


def weakest_direction(matrix: np.ndarray) -> tuple[float, np.ndarray]:
    """The first of `weak_directions`, however strong it is."""
    return weak_directions(matrix, np.inf)[0]


def describe_direction(direction: np.ndarray, names: tuple[str, ...], most: int = 4) -> str:
    """`+1 a −0.98 b`: the parameters that make up a direction, the largest first."""
    order = [k for k in np.argsort(-np.abs(direction), kind="stable") if abs(direction[k]) >= 0.05]
    said = " ".join(f"{direction[k]:+.2g} {names[k]}" for k in order[:most])
    return said + (f" and {len(order) - most} more" if len(order) > most else "")
