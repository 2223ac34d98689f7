"""Small vectors and symmetric matrices of many maximisations at once, the axis of lanes last.

An entry is an array of any shape S, one number for each lane (S is () for a single maximisation). Up to `UNROLLED` entries a
vector is a list of them and a matrix its upper triangle, a dict {(i, j): entry} with i <= j: everything is then element-wise
over S, which compiles into one loop over lanes and needs no array of more than S. Above, a vector is an array (p, *S) and a
matrix an array (p, p, *S), and loops over blocks keep the program small.

`linalg` holds the same algorithms for arrays (*b, p, p), with whole columns as its entries. The two are apart because a kernel of
a CPU or a GPU has no arrays to slice: there a matrix must be single entries, and reciprocals of the diagonal are stored, since a
division costs as much as many products. Outside of kernels, columns make shorter programs.

A first fit steps on the host, where entries are numpy's scalars. There a vector is an array (p,) and a matrix an array (p, p),
however few entries it has, and LAPACK factorises: what takes time is the number of calls.

Definiteness is judged as in `linalg`: on the matrix scaled to unit diagonal, by the size of its pivots.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fisher_jax.numerics import linalg
from fisher_jax.numerics.array_namespace import namespace as namespace_of_arrays
from fisher_jax.numerics.linalg import BLOCK, UNROLLED, singular_pivot

Entry = Any  # an array of shape S, of numpy or of JAX
Vector = Any  # a list of p entries, or an array (p, *S)
Matrix = Any  # a dict of the upper triangle's entries, or an array (p, p, *S)


class _Scalars:
    """numpy for its own scalars, the entries of a single maximisation that steps on the host.

    numpy's functions of arrays take a microsecond or two to call, ten times as long as these, which give the same.
    """

    abs = staticmethod(abs)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @staticmethod
    def isfinite(value: Any) -> Any:
        return abs(value) < np.inf if isinstance(value, np.number) else np.isfinite(value)

    @staticmethod
    def where(condition: Any, new: Any, old: Any) -> Any:
        if isinstance(condition, np.bool_):
            if type(new) is type(old) and isinstance(new, np.generic):
                return new if condition else old
            pair = _of_one_type(new, old)
            if pair is not None:
                return pair[0] if condition else pair[1]
        return np.where(condition, new, old)

    @staticmethod
    def maximum(a: Any, b: Any) -> Any:
        pair = _of_one_type(a, b)
        if pair is None:
            return np.maximum(a, b)
        a, b = pair
        return a if a >= b or a != a else b

    @staticmethod
    def minimum(a: Any, b: Any) -> Any:
        pair = _of_one_type(a, b)
        if pair is None:
            return np.minimum(a, b)
        a, b = pair
        return a if a <= b or a != a else b


def _of_one_type(a: Any, b: Any) -> tuple[Any, Any] | None:
    """Two scalars of one type of numpy's, a Python number being converted to the other's; None where numpy is to promote them."""
    one, other = type(a), type(b)
    if one is other:
        return (a, b) if issubclass(one, np.generic) else None
    if other is float and issubclass(one, np.floating):
        return a, one(b)
    if one is float and issubclass(other, np.floating):
        return other(a), b
    return None


_SCALARS = _Scalars()


def namespace(entry: Any) -> Any:
    """What computes with an entry, or an array of them: `jax.numpy`, numpy, or numpy for scalars."""
    return _SCALARS if isinstance(entry, np.generic) else namespace_of_arrays(entry)


class Factor(NamedTuple):
    """A = S L Lᵀ S with S = diag(1 / `inverse_scale`) and L lower triangular; its diagonal is stored as reciprocals.

    On the host `lower` is L⁻¹, by which products solve. `pivot` is as in `linalg.Factor`: the smallest pivot of the scaled matrix
    if all are clearly positive, else the first that is not, less the largest entry left in its column. L is valid only where
    `definite` is true.
    """

    lower: Matrix
    inverse_scale: Vector
    pivot: Entry
    definite: Entry


def vector(array: Any) -> Vector:
    """The vector whose entries lie along the first axis of an array (p, *S)."""
    return [array[i] for i in range(len(array))] if len(array) <= UNROLLED else array


def matrix(array: Any) -> Matrix:
    """The symmetric matrix in an array (p, p, *S)."""
    p = len(array)
    return {(i, j): array[i, j] for i in range(p) for j in range(i, p)} if p <= UNROLLED else array


def to_array(v: Vector) -> Any:
    """A vector as an array (p, *S)."""
    return namespace(v[0]).stack(v) if isinstance(v, list) else v


def matrix_to_array(a: Matrix) -> Any:
    """A matrix as an array (p, p, *S)."""
    if not isinstance(a, dict):
        return a
    xp, p = namespace(a[0, 0]), max(j for _, j in a) + 1
    return xp.stack([xp.stack([a[min(i, j), max(i, j)] for j in range(p)]) for i in range(p)])


def each(f: Callable[..., Any], *vectors: Vector) -> Vector:
    """A function of the entries of vectors in the same place, for each place; it may close over arrays of shape S."""
    if isinstance(vectors[0], list):
        return [f(*entries) for entries in zip(*vectors, strict=True)]
    # vmap, so that arrays of shape S that f closes over meet entries of the same rank.
    return f(*vectors) if _is_on_host(vectors[0]) else jax.vmap(f)(*vectors)


def each_entry(f: Callable[..., Any], *matrices: Matrix) -> Matrix:
    """The same for matrices."""
    if isinstance(matrices[0], dict):
        return {key: f(*(a[key] for a in matrices)) for key in matrices[0]}
    return f(*matrices)


def total(v: Vector) -> Entry:
    """The sum of the entries."""
    return functools.reduce(lambda a, b: a + b, v) if isinstance(v, list) else v.sum(axis=0)


def largest(v: Vector) -> Entry:
    """The largest entry."""
    return functools.reduce(namespace(v[0]).maximum, v) if isinstance(v, list) else v.max(axis=0)


def every(v: Vector) -> Entry:
    """Whether all entries are true."""
    return functools.reduce(lambda a, b: a & b, v) if isinstance(v, list) else v.all(axis=0)


def every_entry(a: Matrix) -> Entry:
    """Whether all entries of a matrix are true."""
    return every(list(a.values())) if isinstance(a, dict) else a.all(axis=(0, 1))


def dot(a: Vector, b: Vector) -> Entry:
    """aᵀ b."""
    if _is_on_host(a):
        return a @ b
    return total(each(lambda x, y: x * y, a, b))


def times(a: Matrix, v: Vector) -> Vector:
    """A v in full precision on every device (no TF32)."""
    if isinstance(a, dict):
        p = len(v)
        return [total([a[min(i, j), max(i, j)] * v[j] for j in range(p)]) for i in range(p)]
    return a @ v if _is_on_host(a) else jnp.sum(a * v[None], axis=1)


def diagonal(a: Matrix) -> Vector:
    """The entries A_ii."""
    if isinstance(a, dict):
        return [entry for (i, j), entry in a.items() if i == j]
    return a[np.arange(len(a)), np.arange(len(a))]


def add_to_diagonal(a: Matrix, v: Vector) -> Matrix:
    """A + diag(v)."""
    if isinstance(a, dict):
        return {(i, j): entry + v[i] if i == j else entry for (i, j), entry in a.items()}
    return a + _of_entries(np.eye(len(v), dtype=v.dtype), v) * v[None]


def scale_both_sides(a: Matrix, v: Vector) -> Matrix:
    """diag(v) A diag(v)."""
    if isinstance(a, dict):
        return {(i, j): entry * v[i] * v[j] for (i, j), entry in a.items()}
    return a * v[:, None] * v[None]


def never(condition: Entry) -> bool:
    """Whether it is known, on the host, not to hold, so that what depends on it need not be computed."""
    return isinstance(condition, np.bool_ | np.ndarray) and not condition.any()


def _of_entries(pattern: np.ndarray, v: Any) -> np.ndarray:
    """A pattern over (p, p) or (p,) for arrays whose later axes are those of `v` after the first."""
    return pattern.reshape(pattern.shape + (1,) * (v.ndim - 1))


def gershgorin(a: Matrix) -> tuple[Entry, Entry]:
    """Bounds below and above all eigenvalues: the ends of Gershgorin's circles."""
    centre = diagonal(a)
    if isinstance(a, dict):
        p, xp = len(centre), namespace(centre[0])
        radius = [
            total([xp.abs(a[min(i, j), max(i, j)]) for j in range(p) if j != i] or [0.0 * centre[i]]) for i in range(p)
        ]
    else:
        radius = abs(a).sum(axis=1) - abs(centre)
    return -largest(each(lambda c, r: r - c, centre, radius)), largest(each(lambda c, r: c + r, centre, radius))


def factorize(a: Matrix) -> Factor:
    """Cholesky factor of a matrix scaled to unit diagonal, with its definiteness."""
    if _is_on_host(a):
        return _by_lapack(a)
    diagonals = diagonal(a)
    p, xp = len(diagonals), namespace(diagonals[0])

    def inverse_root(d: Entry) -> Entry:
        return 1.0 / xp.sqrt(xp.where(d != 0, xp.abs(d), 1.0))

    inverse_scale = each(inverse_root, diagonals)
    scaled = scale_both_sides(a, inverse_scale)
    threshold = singular_pivot(p, diagonals[0].dtype)
    lower, pivot = (_unrolled if isinstance(a, dict) else _by_blocks)(scaled, threshold)
    return Factor(lower, inverse_scale, pivot, pivot > threshold)


def _is_on_host(a: Any) -> bool:
    """Whether a vector or matrix is that of one maximisation which steps in numpy."""
    return isinstance(a, np.ndarray)


def _by_lapack(a: np.ndarray) -> Factor:
    """The factor on the host."""
    size = abs(a.diagonal())
    inverse_scale = 1.0 / np.sqrt(np.where(size != 0, size, 1.0))
    threshold = singular_pivot(len(a), a.dtype)
    try:
        lower = np.linalg.cholesky(a * inverse_scale[:, None] * inverse_scale)
        pivot = lower.diagonal().min() ** 2
    except np.linalg.LinAlgError:
        pivot = a.dtype.type(0.0)
    if pivot > threshold:
        return Factor(np.linalg.inv(lower), inverse_scale, pivot, np.True_)
    pivot = linalg.factorize(a).pivot[()]
    return Factor(np.full_like(a, np.nan), inverse_scale, pivot, pivot > threshold)


def _unrolled(scaled: dict[tuple[int, int], Any], threshold: float) -> tuple[dict[tuple[int, int], Any], Any]:
    """The factor of a matrix of single entries and its pivot, column by column (right-looking)."""
    entries, p = dict(scaled), max(j for _, j in scaled) + 1
    xp = namespace(entries[0, 0])
    lower: dict[tuple[int, int], Any] = {}
    smallest, definite = xp.ones_like(entries[0, 0]), None
    for j in range(p):
        pivot = entries[j, j]
        positive = pivot > threshold
        # The first pivot that is not positive is reported less the largest entry left in its column: a zero pivot beside nonzero
        # entries means an indefinite matrix, a column of zeros a singular one.
        rest = [xp.abs(entries[j, k]) for k in range(j + 1, p)]
        failed = pivot - functools.reduce(xp.maximum, rest) if rest else pivot
        so_far = xp.where(positive, xp.minimum(smallest, pivot), failed)
        smallest = so_far if definite is None else xp.where(definite, so_far, smallest)
        definite = positive if definite is None else definite & positive
        inverse_root = 1.0 / xp.sqrt(xp.where(positive, pivot, 1.0))
        lower[j, j] = inverse_root
        for i in range(j + 1, p):
            lower[i, j] = entries[j, i] * inverse_root
        for i in range(j + 1, p):
            for k in range(i, p):
                entries[i, k] = entries[i, k] - lower[i, j] * lower[k, j]
    return lower, smallest


def _by_blocks(scaled: Any, threshold: float) -> tuple[Any, Any]:
    """The same, `BLOCK` columns at a time: a short loop instead of a long program, and one pass over the rest for a block."""
    p = len(scaled)
    m = -(-p // BLOCK) * BLOCK
    padding = np.diag((np.arange(m) >= p).astype(scaled.dtype))
    whole = jnp.pad(scaled, ((0, m - p), (0, m - p)) + ((0, 0),) * (scaled.ndim - 2)) + _of_entries(padding, scaled[0])
    rows = _of_entries(np.arange(m), scaled[0])

    def step(k: Any, carry: tuple[Any, Any, Any, Any]) -> tuple[Any, Any, Any, Any]:
        rest, lower, smallest, definite = carry
        start = k * BLOCK
        columns = _part(rest, start, 1)
        block = _part(columns, start, 0)
        corner, pivot = _unrolled({(i, j): block[i, j] for i in range(BLOCK) for j in range(i, BLOCK)}, threshold)
        columns_done: list[Any] = []
        for j in range(BLOCK):
            column = columns[:, j] - sum(columns_done[i] * corner[j, i][None] for i in range(j))
            columns_done.append(column * corner[j, j][None])
        below = [jnp.where(rows >= start + BLOCK, column, 0.0) for column in columns_done]
        rest = rest - sum(column[:, None] * column[None] for column in below)
        inside = [
            [corner[i, j] if i >= j else jnp.zeros_like(corner[j, j]) for j in range(BLOCK)] for i in range(BLOCK)
        ]
        put = _put(jnp.stack(below, axis=1), jnp.stack([jnp.stack(row) for row in inside]), start, 0)
        lower = _put(lower, put, start, 1)
        smallest = jnp.where(definite, jnp.where(pivot > threshold, jnp.minimum(smallest, pivot), pivot), smallest)
        return rest, lower, smallest, definite & (pivot > threshold)

    one = jnp.ones_like(scaled[0, 0])
    _, lower, smallest, _ = lax.fori_loop(0, m // BLOCK, step, (whole, jnp.zeros_like(whole), one, one > 0))
    return lower, smallest


def solve_lower(factor: Factor, right: Vector) -> Vector:
    """L⁻¹ S⁻¹ `right`: half of a solve. Its squared length is `right`ᵀ A⁻¹ `right`."""
    right = each(lambda r, s: r * s, right, factor.inverse_scale)
    return factor.lower @ right if _is_on_host(right) else _substitute(factor.lower, right, forward=True)


def solve_upper(factor: Factor, half: Vector) -> Vector:
    """S⁻¹ L⁻ᵀ `half`: the other half, A⁻¹ `right` of the result of `solve_lower`."""
    solved = half @ factor.lower if _is_on_host(half) else _substitute(factor.lower, half, forward=False)
    return each(lambda x, s: x * s, solved, factor.inverse_scale)


def solve(factor: Factor, right: Vector) -> Vector:
    """A⁻¹ `right`."""
    return solve_upper(factor, solve_lower(factor, right))


def _substitute(lower: Matrix, right: Vector, *, forward: bool) -> Vector:
    if isinstance(lower, dict):
        p, solved = len(right), dict(enumerate(right))
        for i in range(p) if forward else range(p - 1, -1, -1):
            done = range(i) if forward else range(i + 1, p)
            solved[i] = sum((-lower[max(i, j), min(i, j)] * solved[j] for j in done), solved[i]) * lower[i, i]
        return [solved[i] for i in range(p)]
    p, m = len(right), len(lower)
    blocks = m // BLOCK
    rows = _of_entries(np.arange(m), right)

    def step(k: Any, right: Any) -> Any:
        start = (k if forward else blocks - 1 - k) * BLOCK
        # The columns of L that multiply these unknowns, or of Lᵀ: rows of L.
        across = _part(lower, start, 1 if forward else 0)
        corner = _part(across, start, 0 if forward else 1)
        inside, unknowns = (
            {(i, j): corner[i, j] for i in range(BLOCK) for j in range(i + 1)},
            _part(right, start, 0),
        )
        solved = _substitute(inside, [unknowns[i] for i in range(BLOCK)], forward=forward)
        column = (lambda j: across[:, j]) if forward else (lambda j: across[j])
        part = sum(column(j) * solved[j][None] for j in range(BLOCK))
        ahead = rows >= start + BLOCK if forward else rows < start
        return _put(right - jnp.where(ahead, part, 0.0), jnp.stack(solved), start, 0)

    padded = jnp.pad(right, ((0, m - p),) + ((0, 0),) * (right.ndim - 1))
    return lax.fori_loop(0, blocks, step, padded)[:p]


def weak_direction(factor: Factor) -> tuple[Vector, Vector]:
    """A vector z along which A is small, and A z: one step of inverse iteration.

    It starts from an irregular vector: a regular one (of ones, say) may by symmetry be orthogonal to the eigenvector.
    """
    p = len(factor.inverse_scale)
    irregular = np.cos(1.0 + 2.4 * np.arange(p)) + 0.3
    if isinstance(factor.inverse_scale, list):
        right = [float(irregular[i]) / factor.inverse_scale[i] for i in range(p)]
    else:
        pattern = _of_entries(irregular.astype(factor.inverse_scale.dtype), factor.inverse_scale)
        right = pattern / factor.inverse_scale
    return solve(factor, right), right


def repeat_while(xp: Any, condition: Callable[[Any], Any], body: Callable[[Any], Any], carry: Any) -> Any:
    """`jax.lax.while_loop`, or the same in Python for numpy."""
    if xp is jnp:
        return lax.while_loop(condition, body, carry)
    while condition(carry):
        carry = body(carry)
    return carry


def _part(x: Any, start: Any, axis: int) -> Any:
    """`BLOCK` rows or columns from `start` on."""
    return lax.dynamic_slice_in_dim(x, start, BLOCK, axis)


def _put(x: Any, part: Any, start: Any, axis: int) -> Any:
    return lax.dynamic_update_slice_in_dim(x, part, start, axis)


def select(condition: Entry, new: Any, old: Any) -> Any:
    """`new` in the lanes where the condition holds, else `old`, for any pytree of vectors, matrices and entries."""
    if isinstance(condition, np.bool_):  # a single maximisation on the host
        return new if condition else old
    xp = namespace(condition)
    return jax.tree.map(lambda n, o: xp.where(condition, n, o), new, old)
