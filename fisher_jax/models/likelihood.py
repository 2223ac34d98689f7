"""The log-likelihood of a model and its data as a function of a flat vector, with its derivatives. Totals over the data.

Data are taken in chunks of rows, so that memory does not grow with n × p.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from fisher_jax.blocks import CHUNK_ENTRIES, in_chunks
from fisher_jax.errors import kind_of
from fisher_jax.models.dataset import Dataset, parts_of
from fisher_jax.models.model import Model, check_arity
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.prior import counts_once, once_derivatives
from fisher_jax.models.programs import call_differentiable
from fisher_jax.moments import sum_of_products
from fisher_jax.numerics.differentiate import FORWARD_UP_TO, batched, by_entry, by_row, cotangent, each_score_at, weigh


class Likelihood(NamedTuple):
    """The log-likelihood as a function of a flat vector and of rows, which may be taken in chunks where `separable`.

    `terms(flat, rows)` returns one log-density for each row; `weights` is `None` or one number for each term. `once` gives what
    counts once, beside the terms of the rows, an auxiliary measurement or a prior, with its gradient, minus its Hessian and the
    variance of its score; functions here that return weighted terms append it. `with_modes(flat, rows, begin)` gives the rows of
    a marginal model the modes of their latent effects at a point; see `at_modes`. `parts` are the log-likelihoods of the data
    sets of a joint model, whose terms are these one after the other.
    """

    terms: Callable[[Float[Array, " p"], PyTree], Float[Array, " n"]]
    rows: PyTree
    weights: Float[Array, " n"] | None
    num_terms: int
    separable: bool
    once: Callable[[Float[Array, " p"]], tuple[Array, Array, Array, Array]] | None = None
    with_modes: Callable[..., PyTree] | None = None
    is_marginal: bool = False
    parts: "tuple[Likelihood, ...]" = ()


class Derivatives(NamedTuple):
    """The log-likelihood at a point: weighted terms, their gradient and minus their Hessian, both totals."""

    terms: Float[Array, " n"]
    gradient: Float[Array, " p"]
    curvature: Float[Array, "p p"]


def terms_of(
    model: Model, layout: Layout, values: Values, has_given: bool
) -> Callable[[Float[Array, " p"], PyTree], Float[Array, " n"]]:
    """The log-densities as a function of u in `layout` and of rows, which are y or (y, z). Validates the values returned."""

    def terms(free: Float[Array, " p"], rows: PyTree) -> Float[Array, " n"]:
        y, z = (rows[0], (rows[1],)) if has_given else (rows, ())
        params = layout.constrain(free, values)
        if model.is_dependent:
            return terms_at_once(model, params, y, z).astype(layout.dtype)
        return jax.vmap(lambda y, *z: term_of(model, params, y, z))(y, *z).astype(layout.dtype)

    return terms


def likelihood(model: Model, layout: Layout, values: Values, dataset: Dataset) -> Likelihood:
    """The log-likelihood as a function of u in `layout`. Called where jitted code is traced; checks what comes back."""
    rows = dataset.data if dataset.given is None else (dataset.data, dataset.given)
    terms = terms_of(model, layout, values, dataset.given is not None)
    if model.with_modes is None:
        shape = jax.eval_shape(terms, jax.ShapeDtypeStruct((layout.num_free,), layout.dtype), rows).shape
    else:  # one for each group; to trace the density would take as long as all else before a first fit
        shape = np.shape(jax.tree.leaves(rows)[0])[:1]
    once: Callable[[Float[Array, " p"]], tuple[Array, Array, Array, Array]] | None = None
    if counts_once(model, dataset):

        def once(free: Float[Array, " p"]) -> tuple[Array, Array, Array, Array]:
            return once_derivatives(model, layout, values, dataset, free)

    weights = dataset.weights
    if weights is not None:
        if weights.shape != shape:
            raise ValueError(
                f"weights has shape {weights.shape}, but the density returned {shape[0]} terms. "
                "Give one weight for each term."
            )
        weights = jnp.asarray(weights, layout.dtype)
        # Negative weights that are known only when compiled code runs become NaN, which the status reports.
        weights = jnp.where(weights >= 0, weights, jnp.nan)
        if not model.is_dependent:
            rows = _replace_uncounted(rows, weights)
    with_modes = None if model.with_modes is None else modes_of(model, layout, values, dataset.given is not None)
    separable = not model.is_dependent
    parts = tuple(likelihood(part, layout, values, of_part) for part, of_part in parts_of(model, dataset, weights))
    return Likelihood(terms, rows, weights, shape[0], separable, once, with_modes, with_modes is not None, parts)


def _replace_uncounted(rows: PyTree, weights: Float[Array, " n"]) -> PyTree:
    """The rows, with copies of the first one of positive weight in place of those of weight zero; of ones, where there is none.

    In reverse mode a NaN of a row of weight zero would still reach the derivatives (0 × NaN).
    """
    is_counted = weights > 0
    source, none_counted = jnp.argmax(is_counted), ~jnp.any(is_counted)

    def replace_uncounted(leaf: Array) -> Array:
        mask = is_counted.reshape((-1,) + (1,) * (leaf.ndim - 1))
        return jnp.where(mask, leaf, jnp.where(none_counted, jnp.ones((), leaf.dtype), leaf[source]))

    return jax.tree.map(replace_uncounted, jax.tree.map(jnp.asarray, rows))


def modes_of(model: Model, layout: Layout, values: Values, has_given: bool) -> Callable[..., PyTree]:
    """The rows of a marginal model with the modes of their latent effects, as a function of u, of rows, and where to begin."""

    def with_modes(free: Float[Array, " p"], rows: PyTree, begin: Float[Array, "n q"] | None) -> PyTree:
        params = layout.constrain(free, values)
        y, *z = rows if has_given else (rows,)
        of_group = lambda begin, y, *z: model.with_modes(params, y, *z, begin=begin)  # type: ignore[misc]  # noqa: E731
        found = jax.vmap(of_group, in_axes=(None if begin is None else 0, 0, *(0 for _ in z)))(begin, y, *z)
        return (found, *z) if has_given else found

    return with_modes


def at_modes(target: Likelihood, flat: Float[Array, " p"], begin: Float[Array, "n q"] | None = None) -> Likelihood:
    """The log-likelihood near `flat`, with the modes of latent effects found there: for derivatives at that point only.

    The search of a row begins at `begin` where that is a number, else where the model says.
    """
    if target.with_modes is None:
        return target
    return target._replace(rows=target.with_modes(flat, target.rows, begin), with_modes=None)


def modes_in(target: Likelihood) -> Float[Array, "n q"]:
    """The modes with which `at_modes` has made this log-likelihood; NaN where one is not certified."""
    found = target.rows if hasattr(target.rows, "mode") else target.rows[0]
    return jnp.where(found.mode.certified[:, None], found.mode.effects, jnp.nan)


def term_of(model: Model, params: PyTree, y: PyTree, z: tuple[PyTree, ...]) -> Float[Array, ""]:
    """The log-density of one observation, checked to be a floating scalar."""
    value = _call_density(model, (params, y, *z), "log_density")
    if jnp.shape(value) != ():
        raise ValueError(
            f"log_density(params, {'y, z' if z else 'y'}) must return a scalar for ONE observation but "
            f"returned shape {jnp.shape(value)} for y of shape {_shapes_of(y)}. Did you pass a function of the whole "
            "data set? See fisher_jax.dependent. If an observation is a vector, sum its log-densities."
        )
    return _check_floating(value, "log_density")


def terms_at_once(model: Model, params: PyTree, y: PyTree, z: tuple[PyTree, ...]) -> Float[Array, " n"]:
    """The conditional log-densities of a dependent model, checked to be a floating vector."""
    value = _call_density(model, (params, y, *z), "terms")
    if jnp.ndim(value) != 1:
        raise ValueError(
            f"terms(params, data) must return the conditional log-densities, one for each time, shape (n,), but "
            f"returned shape {jnp.shape(value)} for data of shape {_shapes_of(y)}. Do not sum them: their scores are needed."
        )
    return _check_floating(value, "terms")


def _call_density(model: Model, arguments: tuple[Any, ...], name: str) -> Any:
    check_arity(model.log_density, ("params", "y", "z")[: len(arguments)], name)
    value = call_differentiable(model.log_density, arguments, name)
    if not isinstance(value, bool | int | float | complex | np.generic | np.ndarray | jax.Array):
        raise TypeError(f"{name} must return an array but returned {kind_of(value)}.")
    return value


def _check_floating(value: Any, name: str) -> Array:
    value = jnp.asarray(value)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(
            f"{name} must return a floating number in nats but returned dtype {value.dtype}. "
            "Does it compare or round where it should compute?"
        )
    return value


def _shapes_of(tree: PyTree) -> str:
    shapes = [str(jnp.shape(leaf)) for leaf in jax.tree.leaves(tree)]
    return shapes[0] if len(shapes) == 1 else f"({', '.join(shapes)})"


def terms_at(target: Likelihood, flat: Float[Array, " p"]) -> Float[Array, " n"]:
    """The weighted log-densities."""
    if target.parts:
        terms = jnp.concatenate([terms_at(part, flat) for part in target.parts])
    else:
        target = at_modes(target, flat)
        terms = weigh(target.terms(flat, target.rows), target.weights)
    return terms if target.once is None else jnp.append(terms, target.once(flat)[0])


def _total(of_parts: list[Array]) -> Array:
    return functools.reduce(jnp.add, of_parts)


def derivatives_at(target: Likelihood, flat: Float[Array, " p"]) -> Derivatives:
    """Terms, gradient and minus Hessian in one pass over the data."""
    if target.parts:
        each = [derivatives_at(part, flat) for part in target.parts]
        terms = jnp.concatenate([d.terms for d in each])
        gradient, curvature = _total([d.gradient for d in each]), _total([d.curvature for d in each])
    else:
        # A density with latent effects is a long program, which the derivatives entry by entry would repeat.
        method = by_entry if flat.shape[0] <= FORWARD_UP_TO and not target.is_marginal else by_row
        rows_at_modes = at_modes(target, flat)

        def of_chunk(rows: PyTree, weights: Float[Array, " c"] | None) -> tuple[Array, tuple[Array, Array]]:
            terms, gradient, curvature = method(lambda u: rows_at_modes.terms(u, rows), flat, weights)
            return terms, (gradient, curvature)

        terms, (gradient, curvature) = _in_chunks(rows_at_modes, flat, of_chunk)
    if target.once is not None:
        value, slope, information, _ = target.once(flat)
        terms, gradient, curvature = jnp.append(terms, value), gradient + slope, curvature + information
    return Derivatives(terms, gradient, curvature)


def derivatives_and_scores_at(
    target: Likelihood, flat: Float[Array, " p"]
) -> tuple[Derivatives, Bool[Array, " n"], Float[Array, "p p"]]:
    """`derivatives_at` and `outer_product_at` from one trace of a long density; of separable terms without one that counts once."""
    target = at_modes(target, flat)

    def term_and_score(u: Array, row: PyTree) -> tuple[Array, Array]:
        return jax.value_and_grad(lambda u: target.terms(u, jax.tree.map(lambda leaf: leaf[None], row))[0])(u)

    def of_chunk(rows: PyTree, weights: Float[Array, " c"] | None) -> tuple[Array, tuple[Array, Array, Array]]:
        (terms, scores), push = jax.linearize(lambda u: jax.vmap(term_and_score, in_axes=(None, 0))(u, rows), flat)
        counted = scores if weights is None else jnp.where((weights == 0)[:, None], 0.0, scores)
        axes = jnp.eye(flat.shape[0], dtype=flat.dtype)
        curvature = -batched(lambda axis: jnp.sum(weigh(push(axis)[1], weights), axis=0), axes, len(terms))
        # In one array, as chunks are joined: the terms, and zero where all scores are finite.
        by_row = jnp.stack([weigh(terms, weights), jnp.sum(0.0 * counted, axis=1)], axis=1)
        weighted = weigh(scores, weights)
        products = sum_of_products(weighted, counted)
        return by_row, (jnp.sum(weighted, axis=0), 0.5 * (curvature + curvature.T), products)

    by_row, (gradient, curvature, products) = _in_chunks(target, flat, of_chunk)
    return Derivatives(by_row[:, 0], gradient, curvature), by_row[:, 1] == 0, products


def gradient_at(target: Likelihood, flat: Float[Array, " p"]) -> tuple[Float[Array, " n"], Float[Array, " p"]]:
    """Weighted terms and the gradient of their sum."""
    if target.parts:
        each = [gradient_at(part, flat) for part in target.parts]
        terms, gradient = jnp.concatenate([terms for terms, _ in each]), _total([gradient for _, gradient in each])
    else:
        rows_at_modes = at_modes(target, flat)

        def of_chunk(rows: PyTree, weights: Float[Array, " c"] | None) -> tuple[Array, Array]:
            terms, pull = jax.vjp(lambda u: rows_at_modes.terms(u, rows), flat)
            return weigh(terms, weights), pull(cotangent(terms, weights))[0]

        terms, gradient = _in_chunks(rows_at_modes, flat, of_chunk)
    if target.once is not None:
        value, slope, _, _ = target.once(flat)
        terms, gradient = jnp.append(terms, value), gradient + slope
    return terms, gradient


def variance_of_once(target: Likelihood, flat: Float[Array, " p"]) -> Float[Array, "p p"]:
    """The variance of the score of the term that counts once; zero where there is none."""
    return jnp.zeros((flat.shape[0],) * 2, flat.dtype) if target.once is None else target.once(flat)[3]


def scores_at(target: Likelihood, flat: Float[Array, " p"]) -> Float[Array, "n p"]:
    """The gradient of the term of each row, without its weight."""
    if target.parts:
        return jnp.concatenate([scores_at(part, flat) for part in target.parts])
    target = at_modes(target, flat)
    scores, _ = _in_chunks(target, flat, lambda rows, _: (_chunk_scores(target, flat, rows), 0.0))
    return scores


def outer_product_at(target: Likelihood, flat: Float[Array, " p"]) -> tuple[Bool[Array, " n"], Float[Array, "p p"]]:
    """Which scores are finite, and Σ wᵢ sᵢ sᵢᵀ, never holding more than a chunk of scores.

    A term that counts once adds the variance of its score, of which its one score is no estimate.
    """
    if target.parts:
        each = [outer_product_at(part, flat) for part in target.parts]
        finite, products = jnp.concatenate([finite for finite, _ in each]), _total([products for _, products in each])
    else:
        rows_at_modes = at_modes(target, flat)

        def of_chunk(rows: PyTree, weights: Float[Array, " c"] | None) -> tuple[Array, Array]:
            scores = _chunk_scores(rows_at_modes, flat, rows)
            counted = scores if weights is None else jnp.where((weights == 0)[:, None], 0.0, scores)
            return jnp.all(jnp.isfinite(counted), axis=1), sum_of_products(weigh(scores, weights), counted)

        finite, products = _in_chunks(rows_at_modes, flat, of_chunk)
    if target.once is not None:
        _, slope, _, variance = target.once(flat)
        finite, products = jnp.append(finite, jnp.all(jnp.isfinite(slope))), products + variance
    return finite, products


def _chunk_scores(target: Likelihood, flat: Float[Array, " p"], rows: PyTree) -> Float[Array, "c p"]:
    if target.separable:
        return each_score_at(target.terms, flat, rows)
    _, push = jax.linearize(lambda u: target.terms(u, rows), flat)
    return batched(push, jnp.eye(flat.shape[0], dtype=flat.dtype), target.num_terms).T


def _in_chunks(
    target: Likelihood, flat: Float[Array, " p"], of_chunk: Callable[[PyTree, Any], tuple[Array, Any]]
) -> tuple[Array, Any]:
    if not target.separable:
        return of_chunk(target.rows, target.weights)
    at_once = max(256, CHUNK_ENTRIES // max(flat.shape[0], 1))
    return in_chunks(target.rows, target.weights, at_once, of_chunk, flat.dtype)


def sum_with_rounding(terms: Float[Array, " n"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Σ terms as a pair: an exact sum of their leading parts, and the sum of the remainders.

    Adding and subtracting a number n times as large as any term leaves of each what has no more than its unit of rounding, so
    that their sum is exact (Rump, Ogita and Oishi 2008, SIAM J. Sci. Comput. 31, 189, algorithm 3.2).
    """
    n = max(terms.shape[0], 1)
    largest = jnp.max(jnp.abs(terms), initial=jnp.finfo(terms.dtype).tiny)
    _, exponent = jnp.frexp(largest)
    big = jnp.ldexp(jnp.ones((), terms.dtype), exponent + (n + 1).bit_length())
    high = (terms + big) - big
    exact = jnp.isfinite(big) & jnp.isfinite(largest)
    high = jnp.where(exact, high, terms)
    return jnp.sum(high), jnp.sum(jnp.where(exact, terms - high, 0.0))


def total_weight(target: Likelihood) -> Array | int:
    """n: the number of terms, or the sum of their weights."""
    return target.num_terms if target.weights is None else jnp.sum(target.weights)
