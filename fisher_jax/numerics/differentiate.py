"""Values, scores and Hessians of log-density terms by automatic differentiation: of a flat vector, or of a list of scalars.

Up to `FORWARD_UP_TO` parameters each entry of the Hessian is one nested forward pass, which also yields the value and
the gradient; above, each row is one forward pass over the reverse-mode gradient. `benchmarks/derivative_modes.py`
measures from how many parameters on the second is faster.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.blocks import vmap_in_blocks

FORWARD_UP_TO = 3


def weigh(terms: Float[Array, "n *k"], weights: Float[Array, " n"] | None) -> Float[Array, "n *k"]:
    """Weighted terms; with a weight of zero a term is zero even if it is NaN, since that observation does not count."""
    if weights is None:
        return terms
    weights = weights.reshape((-1,) + (1,) * (terms.ndim - 1))
    return jnp.where(weights == 0, 0.0, weights * terms)


def by_entry(
    terms: Callable[[Array], Array], flat: Float[Array, " p"], weights: Float[Array, " c"] | None
) -> tuple[Float[Array, " c"], Float[Array, " p"], Float[Array, "p p"]]:
    """Forward over forward: one nested pass for each entry of the upper triangle."""
    p = flat.shape[0]
    if p == 0:
        return weigh(terms(flat), weights), jnp.zeros((0,), flat.dtype), jnp.zeros((0, 0), flat.dtype)
    value, slopes, bends = _entries(terms, flat)
    upper = {entry: -jnp.sum(weigh(bend, weights)) for entry, bend in bends.items()}
    gradient = jnp.stack([jnp.sum(weigh(slope, weights)) for slope in slopes])
    return weigh(value, weights), gradient, _symmetric(upper, p)


def _entries(
    terms: Callable[[Array], Array], flat: Float[Array, " p"]
) -> tuple[Array, list[Array], dict[tuple[int, int], Array]]:
    """The terms, their first derivatives and the upper triangle of their second, each of the terms' shape."""
    basis = np.eye(flat.shape[0], dtype=flat.dtype)
    slopes: list[Array] = []
    bends: dict[tuple[int, int], Array] = {}
    for a in range(flat.shape[0]):
        along_a = functools.partial(lambda direction, u: jax.jvp(terms, (u,), (direction,)), basis[a])
        for b in range(a, flat.shape[0]):
            (value, slope), (_, bends[a, b]) = jax.jvp(along_a, (flat,), (basis[b],))
        slopes.append(slope)
    return value, slopes, bends


def _symmetric(upper: dict[tuple[int, int], Array], p: int) -> Float[Array, "*c p p"]:
    return jnp.stack([jnp.stack([upper[min(a, b), max(a, b)] for b in range(p)], -1) for a in range(p)], -2)


def each_at(
    terms: Callable[[Array, PyTree], Array], flat: Float[Array, " p"], rows: PyTree
) -> tuple[Float[Array, "c p"], Float[Array, "c p p"]]:
    """The score and the Hessian of each row's term."""
    p = flat.shape[0]
    if p == 0:
        empty = terms(flat, rows)[:, None] * jnp.zeros((0,), flat.dtype)
        return empty, empty[:, :, None]
    if p <= FORWARD_UP_TO:
        _, slopes, bends = _entries(lambda u: terms(u, rows), flat)
        return jnp.stack(slopes, axis=-1), _symmetric(bends, p)

    def of_row(row: PyTree) -> tuple[Array, Array]:
        gradient = jax.grad(lambda u: terms(u, jax.tree.map(lambda leaf: leaf[None], row))[0])
        value, push = jax.linearize(gradient, flat)
        return value, jax.vmap(push)(jnp.eye(p, dtype=flat.dtype))

    scores, hessians = jax.vmap(of_row)(rows)
    return scores, 0.5 * (hessians + jnp.swapaxes(hessians, -1, -2))


def each_score_at(
    terms: Callable[[Array, PyTree], Array], flat: Float[Array, " p"], rows: PyTree
) -> Float[Array, "c p"]:
    """The score of each row's term."""
    if flat.shape[0] > FORWARD_UP_TO:

        def of_row(row: PyTree) -> Array:
            return jax.grad(lambda u: terms(u, jax.tree.map(lambda leaf: leaf[None], row))[0])(flat)

        return jax.vmap(of_row)(rows)
    value, push = jax.linearize(lambda u: terms(u, rows), flat)
    return batched(push, jnp.eye(flat.shape[0], dtype=flat.dtype), value.shape[0]).T


def by_row(
    terms: Callable[[Array], Array], flat: Float[Array, " p"], weights: Float[Array, " c"] | None
) -> tuple[Float[Array, " c"], Float[Array, " p"], Float[Array, "p p"]]:
    """Forward over reverse: the gradient linearised once, then pushed along each axis."""

    def gradient_and_terms(u: Array) -> tuple[Array, Array]:
        value, pull = jax.vjp(terms, u)
        return pull(cotangent(value, weights))[0], value

    (gradient, value), push = jax.linearize(gradient_and_terms, flat)
    rows = batched(lambda axis: -push(axis)[0], jnp.eye(flat.shape[0], dtype=flat.dtype), value.shape[0])
    return weigh(value, weights), gradient, 0.5 * (rows + rows.T)


def cotangent(value: Array, weights: Array | None) -> Array:
    """The weights of the terms in a sum, for reverse mode."""
    return jnp.ones_like(value) if weights is None else weights


def batched(function: Callable[[Array], Array], rows: Float[Array, "p p"], num_terms: int) -> Array:
    """`vmap` over the rows, a few at a time, so that their copies of the terms fit the cache."""
    return vmap_in_blocks(function, rows, max(32, 2**14 // max(num_terms, 1)))


# --- functions of a list of p entries, each a scalar or an array over lanes that do not interact ------------------------
#
# Only the parameter that a derivative is taken by has a tangent: with a unit vector as tangent the program would multiply by
# zeros, which XLA may not remove, since 0 × NaN is NaN.


def upper_triangle(p: int) -> list[tuple[int, int]]:
    """The pairs i ≤ j, in the order in which the entries of an information matrix are listed."""
    return [(i, j) for i in range(p) for j in range(i, p)]


def matrices_of_triangles(triangles: np.ndarray, p: int) -> np.ndarray:
    """Matrices (B, p, p) of upper triangles (B, p(p + 1)/2), or of matrices laid out flat."""
    if triangles.shape[1] == p * p:
        return triangles.reshape(-1, p, p)
    whole = np.empty((len(triangles), p, p), triangles.dtype)
    for k, (i, j) in enumerate(upper_triangle(p)):
        whole[:, i, j] = whole[:, j, i] = triangles[:, k]
    return whole


def first_order(terms: Callable[[list[Array]], Array], u: list[Array]) -> tuple[Array, list[Array]]:
    """Terms and their slopes; those by reverse mode are summed over rows, which are the first axis where there are any."""
    if len(u) > FORWARD_UP_TO:
        return _value_and_gradient(terms, u)
    one = jnp.ones_like(u[0])
    pairs = [jax.jvp(lambda a, i=i: terms(_replace(u, i, a)), (u[i],), (one,)) for i in range(len(u))]
    return pairs[0][0], [slope for _, slope in pairs]


def second_order(terms: Callable[[list[Array]], Array], u: list[Array]) -> tuple[Array, list[Array], list[Array]]:
    """Terms, slopes, and the upper triangle of minus the second derivatives; both are summed over rows if by reverse mode."""
    p, one, information = len(u), jnp.ones_like(u[0]), {}
    gradient: list[Array] = []
    if p <= FORWARD_UP_TO:
        for i in range(p):

            def along_i(t: list[Array], i: int = i) -> tuple[Array, Array]:
                return jax.jvp(lambda a: terms(_replace(t, i, a)), (t[i],), (one,))

            for j in range(i, p):
                (value, slope), (_, bend) = jax.jvp(lambda b, j=j: along_i(_replace(u, j, b)), (u[j],), (one,))
                information[i, j] = -bend
            gradient.append(slope)
        return value, gradient, [information[pair] for pair in upper_triangle(p)]
    for j in range(p):
        (value, gradient), (_, column) = jax.jvp(
            lambda b, j=j: _value_and_gradient(terms, _replace(u, j, b)), (u[j],), (one,)
        )
        for i in range(j + 1):
            information[i, j] = -column[i]
    return value, gradient, [information[pair] for pair in upper_triangle(p)]


def _replace(u: list[Array], i: int, value: Any) -> list[Array]:
    return [value if k == i else t for k, t in enumerate(u)]


def _value_and_gradient(terms: Callable[[list[Array]], Array], u: list[Array]) -> tuple[Array, list[Array]]:
    value, pull = jax.vjp(terms, u)
    return value, pull(jnp.ones_like(value))[0]
