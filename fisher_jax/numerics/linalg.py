"""Small symmetric matrices: factorise, solve, invert and diagnose. A singular matrix is reported, never repaired.

A matrix is scaled to unit diagonal before it is factorised, so that definiteness and conditioning do not depend on the
units of the parameters. Up to `UNROLLED` rows the factorisation is written out in element-wise operations, which XLA fuses
and batches; above, a loop does the same block by block. LAPACK is not called where fits may be batched: it is slow on many
small matrices, and XLA's CPU client can deadlock on two batched triangular solves at once (jaxlib 0.10.2).

Matrices may have leading axes, and be arrays of numpy, which then computes (column by column, whatever their size). For matrices
of single entries, as kernels need them, see `batched_linalg`.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from fisher_jax.numerics.array_namespace import AnyArray, namespace

UNROLLED = 8  # rows; in a batch of fits with 5 parameters six times faster than by blocks
BLOCK = 4  # larger blocks compile longer and run no faster


class Factor(NamedTuple):
    """A = S L Lᵀ S with S = diag(`scale`) and L lower triangular, with its pivot.

    `pivot` is the smallest pivot of the scaled matrix if all are clearly positive, else the first that is not, less the
    largest entry left in its column: in (0, 1] for a positive definite matrix, about zero for a singular one, negative
    for an indefinite one, NaN for a matrix that is not finite. L is valid only where `definite` is true.
    """

    lower: Float[AnyArray, "*b p p"]
    scale: Float[AnyArray, "*b p"]
    pivot: Float[AnyArray, "*b"]
    definite: Bool[AnyArray, "*b"]


def singular_pivot(p: int, dtype: np.typing.DTypeLike) -> float:
    """The size below which a pivot of a unit-diagonal p × p matrix is rounding error: 100 p ε."""
    return 100.0 * max(p, 1) * float(jnp.finfo(dtype).eps)


def product(left: Float[AnyArray, "..."], right: Float[AnyArray, "..."]) -> Float[AnyArray, "..."]:
    """The matrix product in full precision: by default an accelerator rounds what it multiplies."""
    if namespace(left, right) is np:
        return np.matmul(left, right)
    return jnp.matmul(left, right, precision="highest")


def factorize(matrix: Float[AnyArray, "*b p p"]) -> Factor:
    """Cholesky factor of a symmetric matrix scaled to unit diagonal, with its definiteness."""
    p = matrix.shape[-1]
    threshold = singular_pivot(p, matrix.dtype)
    with np.errstate(all="ignore"):  # a matrix that is not finite is reported by its pivot
        scaled, scale = to_unit_diagonal(matrix)
        if p <= UNROLLED or namespace(matrix) is np:
            lower, pivot = _by_columns(scaled, threshold)
        else:
            blocks = functools.partial(_by_blocks, threshold=threshold)
            lower, pivot = jnp.vectorize(blocks, signature="(p,p)->(p,p),()")(scaled)
    return Factor(lower, scale, pivot, pivot > threshold)


def _by_columns(
    scaled: Float[AnyArray, "*b p p"], threshold: float
) -> tuple[Float[AnyArray, "*b p p"], Float[AnyArray, "*b"]]:
    p, xp = scaled.shape[-1], namespace(scaled)
    columns: list[Array] = []
    smallest = xp.ones(scaled.shape[:-2], scaled.dtype)
    definite = xp.ones(scaled.shape[:-2], bool)
    for j in range(p):
        column, pivot = scaled[..., j], scaled[..., j, j]
        largest_left = xp.max(xp.abs(column[..., j + 1 :]), axis=-1, initial=0.0)
        so_far = xp.where(pivot > threshold, xp.minimum(smallest, pivot), pivot - largest_left)
        smallest = xp.where(definite, so_far, smallest)
        definite = definite & (pivot > threshold)
        below = np.broadcast_to(np.arange(p) >= j, column.shape)
        column = xp.where(below, column, 0.0) / xp.sqrt(xp.where(pivot > threshold, pivot, 1.0))[..., None]
        scaled = scaled - column[..., :, None] * column[..., None, :]
        columns.append(column)
    return (xp.stack(columns, axis=-1) if columns else xp.zeros_like(scaled)), smallest


def _by_blocks(scaled: Float[Array, "p p"], threshold: float) -> tuple[Float[Array, "p p"], Float[Array, ""]]:
    p = scaled.shape[-1]
    m = -(-p // BLOCK) * BLOCK  # p rounded up to whole blocks
    matrix = jnp.eye(m, dtype=scaled.dtype).at[:p, :p].set(scaled)

    def step(k: Array, carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        matrix, lower, smallest, definite = carry
        start = k * BLOCK
        corner, pivot = _by_columns(jax.lax.dynamic_slice(matrix, (start, start), (BLOCK, BLOCK)), threshold)
        columns = jax.lax.dynamic_slice_in_dim(matrix, start, BLOCK, axis=1)
        below = _substitute(corner, columns.T, range(BLOCK)).T
        below = jnp.where((jnp.arange(m) >= start + BLOCK)[:, None], below, 0.0)
        matrix = matrix - jnp.matmul(below, below.T, precision="highest")
        columns = jax.lax.dynamic_update_slice_in_dim(below, corner, start, axis=0)
        lower = jax.lax.dynamic_update_slice_in_dim(lower, columns, start, axis=1)
        smallest = jnp.where(definite, jnp.where(pivot > threshold, jnp.minimum(smallest, pivot), pivot), smallest)
        return matrix, lower, smallest, definite & (pivot > threshold)

    start = (matrix, jnp.zeros_like(matrix), jnp.ones((), scaled.dtype), jnp.array(True))
    _, lower, smallest, _ = jax.lax.fori_loop(0, m // BLOCK, step, start)
    return lower[:p, :p], smallest


def solve_lower(factor: Factor, right: Float[AnyArray, "..."]) -> Float[AnyArray, "..."]:
    """L⁻¹ S⁻¹ `right` (*b, p, …): half of a solve. Its squared length is `right`ᵀ A⁻¹ `right`."""
    return _triangular(factor.lower, right / _for_rows(factor.scale, right), forward=True)


def solve(factor: Factor, right: Float[AnyArray, "..."]) -> Float[AnyArray, "..."]:
    """A⁻¹ `right` (*b, p, …)."""
    upper = factor.lower.mT
    return _triangular(upper, solve_lower(factor, right), forward=False) / _for_rows(factor.scale, right)


def _for_rows(scale: Float[AnyArray, "*b p"], right: Any) -> AnyArray:
    """One number for each row of `right`, whatever axes it has after its rows."""
    return scale.reshape(scale.shape + (1,) * (right.ndim - scale.ndim))


def _triangular(
    triangle: Float[AnyArray, "*b p p"], right: Float[AnyArray, "..."], *, forward: bool
) -> Float[AnyArray, "..."]:
    """Solve with a lower triangle from the first row on (`forward`), or with an upper one from the last."""
    p, leading = triangle.shape[-1], triangle.ndim - 1
    columns = right.reshape((*right.shape[:leading], math.prod(right.shape[leading:])))
    if p <= UNROLLED or namespace(triangle, right) is np:
        solved = _substitute(triangle, columns, range(p) if forward else range(p - 1, -1, -1))
    else:
        blocks = functools.partial(_substitute_by_blocks, forward=forward)
        solved = jnp.vectorize(blocks, signature="(p,p),(p,k)->(p,k)")(triangle, columns)
    return solved.reshape(right.shape)


def _substitute_by_blocks(
    triangle: Float[Array, "p p"], right: Float[Array, "p k"], *, forward: bool
) -> Float[Array, "p k"]:
    p = triangle.shape[0]
    m = -(-p // BLOCK) * BLOCK
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


def _substitute(
    triangle: Float[AnyArray, "*b p p"], right: Float[AnyArray, "*b p k"], order: range
) -> Float[AnyArray, "*b p k"]:
    """Solve a triangular system column by column: each unknown, once solved, is subtracted from all the other rows."""
    solved: dict[int, Array] = {}
    with np.errstate(all="ignore"):
        for j in order:
            solved[j] = right[..., j, :] / triangle[..., j, j, None]
            right = right - triangle[..., :, j, None] * solved[j][..., None, :]
    return namespace(right).stack([solved[j] for j in range(len(solved))], axis=-2) if solved else right


def inverse(matrix: Float[AnyArray, "*b p p"]) -> Float[AnyArray, "*b p p"]:
    """A⁻¹ of a positive definite matrix, symmetric to the last bit; all NaN where A is not positive definite.

    `weak_directions` finds which parameters are to blame.
    """
    factor, p, xp = factorize(matrix), matrix.shape[-1], namespace(matrix)
    half = solve_lower(factor, xp.broadcast_to(xp.eye(p, dtype=matrix.dtype), matrix.shape))
    with np.errstate(all="ignore"):
        if p <= UNROLLED:
            whole = xp.sum(half[..., :, :, None] * half[..., :, None, :], axis=-3)
        else:
            whole = product(half.mT, half)
            whole = 0.5 * (whole + whole.mT)  # BLAS may round the two halves differently
    return xp.where(factor.definite[..., None, None], whole, np.nan)


def log_determinant(matrix: Float[AnyArray, "*b p p"]) -> Float[AnyArray, "*b"]:
    """log det A of a positive definite matrix; NaN where A is not positive definite."""
    factor, xp = factorize(matrix), namespace(matrix)
    diagonal = xp.where(factor.definite[..., None], xp.diagonal(factor.lower, axis1=-2, axis2=-1), 1.0)
    whole = 2.0 * xp.sum(xp.log(diagonal) + xp.log(factor.scale), axis=-1)
    return xp.where(factor.definite, whole, np.nan)


def to_unit_diagonal(matrix: Float[AnyArray, "*b p p"]) -> tuple[Float[AnyArray, "*b p p"], Float[AnyArray, "*b p"]]:
    """The matrix with rows and columns divided by the square roots of its diagonal, and these; by one where that is zero."""
    xp = namespace(matrix)
    diagonal = xp.abs(xp.diagonal(matrix, axis1=-2, axis2=-1))
    scale = xp.sqrt(xp.where(diagonal > 0, diagonal, 1.0))
    return matrix / scale[..., :, None] / scale[..., None, :], scale


def weak_directions(
    matrix: Float[np.ndarray, "p p"],
    names: tuple[str, ...],
    below: float = np.inf,
    jacobian: Float[np.ndarray, "q p"] | None = None,
) -> list[tuple[float, str]]:
    """Eigenvalues under `below` of the matrix scaled to unit diagonal, the least first, and their directions in words.

    Runs on the host with numpy, for messages. The directions are in the units of the named parameters: those of the matrix, or
    with a `jacobian` functions of these.
    """
    scaled, scale = to_unit_diagonal(np.asarray(matrix, np.float64))
    values, vectors = np.linalg.eigh(scaled)
    slopes = (np.eye(len(scale)) if jacobian is None else np.asarray(jacobian, np.float64)) / scale
    units = row_lengths(slopes)
    return [
        (float(value), describe_direction(slopes @ vector, names, units))
        for value, vector in zip(values, vectors.T, strict=True)
        if value < below
    ]


def row_lengths(slopes: Float[np.ndarray, "*b q p"]) -> Float[np.ndarray, "*b q"]:
    """The largest change of each of q numbers for a step of length one in what they depend on; one where that is zero."""
    lengths = np.sqrt(np.sum(slopes**2, axis=-1))
    return np.where(lengths > 0, lengths, 1.0)


def describe_direction(
    direction: Float[np.ndarray, " q"],
    names: tuple[str, ...],
    units: Float[np.ndarray, " q"] | float = 1.0,
    most: int = 8,
) -> str:
    """`+1 a -0.98 b`: the parameters that make up a direction, the largest in its unit first, with coefficient one.

    The coefficients are of the parameters themselves, however their units differ.
    """
    sizes = np.abs(direction / units)
    # Rounded, so that sizes that are equal but for rounding come in the order of the names.
    sizes = np.round(sizes / np.max(sizes, initial=np.finfo(float).tiny), 6)
    # Coefficients left out have squares of at most a millionth: a curvature is quadratic in them.
    order = [k for k in np.argsort(-sizes, kind="stable") if sizes[k] >= 1e-3]
    text = " ".join(f"{direction[k] / direction[order[0]]:+.4g} {names[k]}" for k in order[:most])
    return text + (f" and {len(order) - most} more" if len(order) > most else "")
