"""Score, scores, Hessian and products with it, of any log-density, by automatic differentiation.

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

from fisher_jax.model import (
    Likelihood,
    Model,
    Sample,
    as_model,
    check_sample,
    flatten_parameters,
    likelihood,
)
from fisher_jax.parameters import Layout, Values

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
        product = jnp.einsum("np,nq->pq", weigh(scores, weights), counted, precision="highest")
        return jnp.all(jnp.isfinite(counted), axis=1), product

    return _in_chunks(target, flat, of_chunk)


def _by_entry(
    terms: Callable[[Array], Array], flat: Float[Array, " p"], weights: Float[Array, " c"] | None
) -> tuple[Float[Array, " c"], Float[Array, " p"], Float[Array, "p p"]]:
    """Forward over forward: one nested pass for each entry of the upper triangle."""
    p = flat.shape[0]
    basis = np.eye(p, dtype=flat.dtype)
    value = terms(flat) if p == 0 else None
    gradient: list[Array] = []
    upper: dict[tuple[int, int], Array] = {}
    for a in range(p):
        along_a = functools.partial(_directional, terms, basis[a])
        for b in range(a, p):
            (value, slope), (_, bend) = jax.jvp(along_a, (flat,), (basis[b],))
            upper[a, b] = -jnp.sum(weigh(bend, weights))
        gradient.append(jnp.sum(weigh(slope, weights)))
    curvature = [jnp.stack([upper[min(a, b), max(a, b)] for b in range(p)]) for a in range(p)]
    empty = jnp.zeros((0,), flat.dtype)
    stacked = jnp.stack(curvature) if curvature else empty.reshape(0, 0)
    return weigh(value, weights), jnp.stack(gradient) if gradient else empty, stacked  # type: ignore[arg-type]


def _directional(terms: Callable[[Array], Array], direction: Any, flat: Array) -> tuple[Array, Array]:
    return jax.jvp(terms, (flat,), (direction,))


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
    """`vmap` over the rows, a few at a time where p × n would be too much at once."""
    at_once = max(8, CHUNK_ENTRIES // max(num_terms, 1))
    if at_once >= rows.shape[0]:
        return jax.vmap(function)(rows)
    return jax.lax.map(function, rows, batch_size=at_once)


def _chunk_scores(target: Likelihood, flat: Float[Array, " p"], rows: PyTree) -> Float[Array, "c p"]:
    if target.separable and flat.shape[0] > FORWARD_UP_TO:

        def one(row: PyTree) -> Array:
            return jax.grad(lambda u: target.terms(u, jax.tree.map(lambda leaf: leaf[None], row))[0])(flat)

        return jax.vmap(one)(rows)
    _, push = jax.linearize(lambda u: target.terms(u, rows), flat)
    return _batched(push, jnp.eye(flat.shape[0], dtype=flat.dtype), target.num_terms).T


def _in_chunks(
    target: Likelihood, flat: Float[Array, " p"], of_chunk: Callable[[PyTree, Any], tuple[Array, Any]]
) -> tuple[Array, Any]:
    """Apply `of_chunk(rows, weights) -> (by_row, totals)` to all rows: by_row is joined, totals are added up."""
    n, at_once = target.num_terms, max(256, CHUNK_ENTRIES // max(flat.shape[0], 1))
    if not target.separable or n <= at_once:
        return of_chunk(target.rows, target.weights)
    count = -(-n // at_once)
    size = -(-n // count)
    padding = count * size - n
    weights = target.weights
    if padding and weights is None:
        weights = jnp.ones((n,), flat.dtype)
    chunks = jax.tree.map(lambda leaf: _cut(jnp.asarray(leaf), count, size, padding, "edge"), target.rows)
    cut_weights = None if weights is None else _cut(weights, count, size, padding, "constant")

    def body(totals: Any, chunk: Any) -> tuple[Any, Array]:
        by_row, added = of_chunk(*chunk)
        return jax.tree.map(jnp.add, totals, added), by_row

    shapes = jax.eval_shape(of_chunk, *jax.tree.map(lambda leaf: leaf[0], (chunks, cut_weights)))[1]
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    totals, by_row = jax.lax.scan(body, zeros, (chunks, cut_weights))
    return by_row.reshape((count * size, *by_row.shape[2:]))[:n], totals


def _cut(leaf: Array, count: int, size: int, padding: int, mode: str) -> Array:
    padded = jnp.pad(leaf, [(0, padding)] + [(0, 0)] * (leaf.ndim - 1), mode=mode)
    return padded.reshape((count, size, *leaf.shape[1:]))


def at_door(
    model: Any, params: PyTree, data: PyTree, given: PyTree, weights: Any, caller: str
) -> tuple[Model, Layout, Values, Sample]:
    """Check a user's arguments; the layout is the natural one, so that flat means θ."""
    model = as_model(model, caller)
    layout, values = flatten_parameters(model, params, caller)
    return model, layout.natural(), values, check_sample(model, data, given, weights, caller)


def jitted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Jit a function of (target, θ, layout), with the problem built where it is traced."""

    @functools.partial(jax.jit, static_argnums=(0, 1, 4))
    def run(model: Model, layout: Layout, values: Values, sample: Sample, caller: str, *extra: Any) -> Any:
        target = likelihood(model, layout, values, sample, caller)
        return function(target, layout.unconstrain(values), layout, *extra)

    return functools.wraps(function)(run)


@jitted
def _log_likelihood(target: Likelihood, theta: Array, layout: Layout) -> Array:
    return jnp.sum(terms_at(target, theta))


@jitted
def _score(target: Likelihood, theta: Array, layout: Layout) -> Values:
    return layout.split(gradient_at(target, theta)[1], 0.0)


@jitted
def _scores(target: Likelihood, theta: Array, layout: Layout) -> Values:
    return layout.split(weigh(scores_at(target, theta), target.weights), 0.0)


@jitted
def _hessian(target: Likelihood, theta: Array, layout: Layout) -> Array:
    return -derivatives_at(target, theta).curvature


@jitted
def _product_with(target: Likelihood, theta: Array, layout: Layout, vector: Values) -> Values:
    push = jax.jvp(lambda flat: gradient_at(target, flat)[1], (theta,), (layout.join(vector),))[1]
    return layout.split(push, 0.0)


def log_likelihood(
    model: Any, params: PyTree, data: PyTree, *, given: PyTree = None, weights: Any = None
) -> Float[Array, ""]:
    """Log-likelihood ℓ(θ) = Σ wᵢ log p(yᵢ; θ), in nats, total over the data.

    Parameters
    ----------
    model : Model or callable
        A model, or a log-density of one observation.
    params : pytree
        The parameters θ, any pytree of floating arrays.
    data : pytree
        The observations, each leaf with a leading axis of length n.
    given : pytree, optional
        Covariates with the same leading axis, handed to the log-density as its third argument.
    weights : array (n,), optional
        Frequency weights: an observation of weight w counts as w equal ones. Zero leaves it out, whatever it holds.

    Returns
    -------
    scalar array
        The total, in the floating dtype of `params`; not finite where the log-density is not.

    Raises
    ------
    ValueError, TypeError
        If the log-density does not return one floating scalar per observation, or the arguments do not fit together.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> from jax.scipy.stats import norm
    >>> def log_density(params, y):
    ...     return norm.logpdf(y, params["loc"], params["scale"])
    >>> print(f"{fj.log_likelihood(log_density, {'loc': 0.0, 'scale': 1.0}, jnp.array([1.0, 2.0])):.4f}")
    -4.3379
    """
    return _log_likelihood(*at_door(model, params, data, given, weights, "log_likelihood"), "log_likelihood")


def score(model: Any, params: PyTree, data: PyTree, *, given: PyTree = None, weights: Any = None) -> PyTree:
    """Score ∇ℓ(θ), total over the data: a pytree like `params`.

    Parameters
    ----------
    model, params, data, given, weights
        As for `log_likelihood`.

    Returns
    -------
    pytree
        ∂ℓ/∂θ in the user's own parametrisation, each leaf of its parameter's shape, in nats per unit of the parameter.
        Leaves that the model holds `fixed` are zero. Other constraints play no part: on a simplex, say, the entries are
        differentiated as if they were free.

    Raises
    ------
    ValueError, TypeError
        As for `log_likelihood`.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> from jax.scipy.stats import norm
    >>> def log_density(params, y):
    ...     return norm.logpdf(y, params["loc"], 1.0)
    >>> print(fj.score(log_density, {"loc": 0.0}, jnp.array([1.0, 2.0]))["loc"])
    3.0
    """
    arguments = at_door(model, params, data, given, weights, "score")
    return arguments[1].assemble(_score(*arguments, "score"))


def scores(model: Any, params: PyTree, data: PyTree, *, given: PyTree = None, weights: Any = None) -> PyTree:
    """Score of each observation: a pytree like `params` whose leaves have a leading axis of length n.

    Parameters
    ----------
    model, params, data, given, weights
        As for `log_likelihood`.

    Returns
    -------
    pytree
        wᵢ ∂log p(yᵢ; θ)/∂θ; their sum is `score`. Leaves that the model holds `fixed` are zero.

    Raises
    ------
    ValueError, TypeError
        As for `log_likelihood`.

    Notes
    -----
    The result itself has n × q numbers; for sums of products of scores use `empirical_fisher`, which does not hold them.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> from jax.scipy.stats import norm
    >>> def log_density(params, y):
    ...     return norm.logpdf(y, params["loc"], 1.0)
    >>> print(fj.scores(log_density, {"loc": 0.0}, jnp.array([1.0, 2.0]))["loc"])
    [1. 2.]
    """
    arguments = at_door(model, params, data, given, weights, "scores")
    return arguments[1].assemble(_scores(*arguments, "scores"))


def hessian(
    model: Any, params: PyTree, data: PyTree, *, given: PyTree = None, weights: Any = None
) -> Float[Array, "q q"]:
    """Hessian ∇²ℓ(θ), total over the data, as one symmetric matrix.

    Parameters
    ----------
    model, params, data, given, weights
        As for `log_likelihood`.

    Returns
    -------
    array (q, q)
        Second derivatives in the user's own parametrisation, in the order of the flattened parameters, which JAX takes
        by sorted key in a dictionary. `observed_information(…).names` lists it. Leaves held `fixed` are absent.

    Raises
    ------
    ValueError, TypeError
        As for `log_likelihood`.

    Notes
    -----
    Up to three parameters each entry costs one nested forward pass; above, each row costs about two gradients. Memory is a
    chunk of rows times q, whatever n.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> from jax.scipy.stats import norm
    >>> def log_density(params, y):
    ...     return norm.logpdf(y, params["loc"], 1.0)
    >>> print(fj.hessian(log_density, {"loc": 0.0}, jnp.array([1.0, 2.0])))
    [[-2.]]
    """
    return _hessian(*at_door(model, params, data, given, weights, "hessian"), "hessian")


def hessian_vector_product(
    model: Any, params: PyTree, data: PyTree, vector: PyTree = None, *, given: PyTree = None, weights: Any = None
) -> Any:
    """Product ∇²ℓ(θ) v, total over the data, without forming the Hessian.

    Parameters
    ----------
    model, params, data, given, weights
        As for `log_likelihood`.
    vector : pytree, optional
        v, a pytree like `params`. Left out, the result is the function of v, for use in an iterative solver.

    Returns
    -------
    pytree, or callable
        The product, like `params`, leaves held `fixed` being zero; or the function from v to it.

    Raises
    ------
    ValueError, TypeError
        As for `log_likelihood`.

    Notes
    -----
    One product costs about two gradients, forward over reverse.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> from jax.scipy.stats import norm
    >>> def log_density(params, y):
    ...     return norm.logpdf(y, params["loc"], 1.0)
    >>> product = fj.hessian_vector_product(log_density, {"loc": 0.0}, jnp.array([1.0, 2.0]))
    >>> print(product({"loc": 3.0})["loc"])
    -6.0
    """
    caller = "hessian_vector_product"
    arguments = (*at_door(model, params, data, given, weights, caller), caller)
    layout = arguments[1]

    def product(vector: PyTree) -> PyTree:
        """∇²ℓ(θ) v."""
        return layout.assemble(_product_with(*arguments, layout.blocks(vector)))

    return product if vector is None else product(vector)
