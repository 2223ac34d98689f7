"""Gradients, scores and curvatures of a likelihood as functions of a flat vector, by automatic differentiation.

Up to `FORWARD_UP_TO` parameters each entry of the Hessian is one nested forward pass, which also yields the value and
the gradient; above, each row is one forward pass over the reverse-mode gradient. `benchmarks/derivative_modes.py`
measures where the crossing lies. Data are taken in chunks of rows, so that memory does not grow with n × p.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from fisher_jax.model import Likelihood
from fisher_jax.moments.running import sum_of_products

FORWARD_UP_TO = 3
CHUNK_ENTRIES = 2**19  # rows × parameters held at once


class Derivatives(NamedTuple):
    """The log-likelihood at a point: weighted terms, their gradient and minus their Hessian, both totals."""

    terms: Float[Array, " n"]
    gradient: Float[Array, " p"]
    curvature: Float[Array, "p p"]


def weigh(terms: Float[Array, "n *k"], weights: Float[Array, " n"] | None) -> Float[Array, "n *k"]:
    """Weighted terms; a weight of zero silences even NaN, since that observation is not there."""
    if weights is None:
        return terms
    weights = weights.reshape((-1,) + (1,) * (terms.ndim - 1))
    return jnp.where(weights == 0, 0.0, weights * terms)


def terms_at(target: Likelihood, flat: Float[Array, " p"]) -> Float[Array, " n"]:
    """The weighted log-densities."""
    return weigh(target.terms(flat, target.rows), target.weights)


def derivatives_at(target: Likelihood, flat: Float[Array, " p"]) -> Derivatives:
    """Terms, gradient and minus Hessian in one pass over the data."""
    method = _by_entry if flat.shape[0] <= FORWARD_UP_TO else _by_row

    def of_chunk(rows: PyTree, weights: Float[Array, " c"] | None) -> tuple[Array, tuple[Array, Array]]:
        terms, gradient, curvature = method(lambda u: target.terms(u, rows), flat, weights)
        return terms, (gradient, curvature)

    terms, (gradient, curvature) = _in_chunks(target, flat, of_chunk)
    return Derivatives(terms, gradient, curvature)


def gradient_at(target: Likelihood, flat: Float[Array, " p"]) -> tuple[Float[Array, " n"], Float[Array, " p"]]:
    """Weighted terms and the gradient of their sum."""

    def of_chunk(rows: PyTree, weights: Float[Array, " c"] | None) -> tuple[Array, Array]:
        terms, pull = jax.vjp(lambda u: target.terms(u, rows), flat)
        return weigh(terms, weights), pull(_cotangent(terms, weights))[0]

    return _in_chunks(target, flat, of_chunk)


def scores_at(target: Likelihood, flat: Float[Array, " p"]) -> Float[Array, "n p"]:
    """The gradient of each term, without its weight."""
    scores, _ = _in_chunks(target, flat, lambda rows, _: (_chunk_scores(target, flat, rows), 0.0))
    return scores


def outer_product_at(target: Likelihood, flat: Float[Array, " p"]) -> tuple[Bool[Array, " n"], Float[Array, "p p"]]:
    """Which scores are finite, and Σ wᵢ sᵢ sᵢᵀ, never holding more than a chunk of scores."""

    def of_chunk(rows: PyTree, weights: Float[Array, " c"] | None) -> tuple[Array, Array]:
        scores = _chunk_scores(target, flat, rows)
        counted = scores if weights is None else jnp.where((weights == 0)[:, None], 0.0, scores)
        return jnp.all(jnp.isfinite(counted), axis=1), sum_of_products(weigh(scores, weights), counted)

    return _in_chunks(target, flat, of_chunk)


def _by_entry(
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
        along_a = functools.partial(_directional, terms, basis[a])
        for b in range(a, flat.shape[0]):
            (value, slope), (_, bends[a, b]) = jax.jvp(along_a, (flat,), (basis[b],))
        slopes.append(slope)
    return value, slopes, bends


def _symmetric(upper: dict[tuple[int, int], Array], p: int) -> Float[Array, "*c p p"]:
    return jnp.stack([jnp.stack([upper[min(a, b), max(a, b)] for b in range(p)], -1) for a in range(p)], -2)


def _directional(terms: Callable[[Array], Array], direction: Any, flat: Array) -> tuple[Array, Array]:
    return jax.jvp(terms, (flat,), (direction,))


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

    def one(row: PyTree) -> tuple[Array, Array]:
        gradient = jax.grad(lambda u: terms(u, jax.tree.map(lambda leaf: leaf[None], row))[0])
        value, push = jax.linearize(gradient, flat)
        return value, jax.vmap(push)(jnp.eye(p, dtype=flat.dtype))

    scores, hessians = jax.vmap(one)(rows)
    return scores, 0.5 * (hessians + jnp.swapaxes(hessians, -1, -2))


def each_score_at(
    terms: Callable[[Array, PyTree], Array], flat: Float[Array, " p"], rows: PyTree
) -> Float[Array, "c p"]:
    """The score of each row's term."""
    if flat.shape[0] > FORWARD_UP_TO:

        def one(row: PyTree) -> Array:
            return jax.grad(lambda u: terms(u, jax.tree.map(lambda leaf: leaf[None], row))[0])(flat)

        return jax.vmap(one)(rows)
    value, push = jax.linearize(lambda u: terms(u, rows), flat)
    return _batched(push, jnp.eye(flat.shape[0], dtype=flat.dtype), value.shape[0]).T


def _by_row(
    terms: Callable[[Array], Array], flat: Float[Array, " p"], weights: Float[Array, " c"] | None
) -> tuple[Float[Array, " c"], Float[Array, " p"], Float[Array, "p p"]]:
    """Forward over reverse: the gradient linearised once, then pushed along each axis."""

    def gradient_and_terms(u: Array) -> tuple[Array, Array]:
        value, pull = jax.vjp(terms, u)
        return pull(_cotangent(value, weights))[0], value

    (gradient, value), push = jax.linearize(gradient_and_terms, flat)
    rows = _batched(lambda axis: -push(axis)[0], jnp.eye(flat.shape[0], dtype=flat.dtype), value.shape[0])
    return weigh(value, weights), gradient, 0.5 * (rows + rows.T)


def _cotangent(value: Array, weights: Array | None) -> Array:
    return jnp.ones_like(value) if weights is None else weights


def _batched(function: Callable[[Array], Array], rows: Float[Array, "p p"], num_terms: int) -> Array:
    """`vmap` over the rows, a few at a time, so that what they hold of the data stays in the cache."""
    at_once = max(32, 2**14 // max(num_terms, 1))
    if at_once >= rows.shape[0]:
        return jax.vmap(function)(rows)
    return jax.lax.map(function, rows, batch_size=at_once)


def _chunk_scores(target: Likelihood, flat: Float[Array, " p"], rows: PyTree) -> Float[Array, "c p"]:
    if target.separable:
        return each_score_at(target.terms, flat, rows)
    _, push = jax.linearize(lambda u: target.terms(u, rows), flat)
    return _batched(push, jnp.eye(flat.shape[0], dtype=flat.dtype), target.num_terms).T


def in_chunks(
    rows: PyTree,
    weights: Float[Array, " n"] | None,
    at_once: int,
    of_chunk: Callable[[PyTree, Any], tuple[Array, Any]],
    dtype: Any,
) -> tuple[Array, Any]:
    """Apply `of_chunk(rows, weights) -> (by_row, totals)` to all rows: by_row is joined, totals are added up.

    The rows are read where they lie; the last chunk goes back over rows already counted, with weight zero. `dtype` is that
    of weights where there are none.
    """
    n = jax.tree.leaves(rows)[0].shape[0]
    count = -(-n // max(at_once, 1))
    if count == 1:
        return of_chunk(rows, weights)
    size = -(-n // count)
    whole = count * size == n

    def cut(k: Array) -> tuple[Array, PyTree, Array | None, Array]:
        start = jnp.minimum(k * size, n - size)
        part, part_weights = jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size), (jax.tree.map(jnp.asarray, rows), weights)
        )
        fresh = start + jnp.arange(size) >= k * size
        if not whole:
            ones = jnp.ones((size,), dtype)
            part_weights = jnp.where(fresh, ones if part_weights is None else part_weights, 0.0)
        return start, part, part_weights, fresh

    def body(k: Array, carry: tuple[Array, Any]) -> tuple[Array, Any]:
        joined, totals = carry
        start, part, part_weights, fresh = cut(k)
        by_row, added = of_chunk(part, part_weights)
        before = jax.lax.dynamic_slice_in_dim(joined, start, size)
        by_row = jnp.where(fresh.reshape((-1,) + (1,) * (by_row.ndim - 1)), by_row, before)
        joined = jax.lax.dynamic_update_slice_in_dim(joined, by_row, start, axis=0)
        return joined, jax.tree.map(jnp.add, totals, added)

    by_row, added = jax.eval_shape(lambda: of_chunk(*cut(jnp.array(0))[1:3]))
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), added)
    return jax.lax.fori_loop(0, count, body, (jnp.zeros((n, *by_row.shape[1:]), by_row.dtype), zeros))


def _in_chunks(
    target: Likelihood, flat: Float[Array, " p"], of_chunk: Callable[[PyTree, Any], tuple[Array, Any]]
) -> tuple[Array, Any]:
    if not target.separable:
        return of_chunk(target.rows, target.weights)
    at_once = max(256, CHUNK_ENTRIES // max(flat.shape[0], 1))
    return in_chunks(target.rows, target.weights, at_once, of_chunk, flat.dtype)
