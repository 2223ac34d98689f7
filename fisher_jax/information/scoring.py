"""Terms, gradient and expected information of a linked model in one pass: η and ∂η/∂u are taken once and serve all three."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.blocks import CHUNK_ENTRIES, in_chunks
from fisher_jax.information.closed_form import as_matrix
from fisher_jax.models.likelihood import Likelihood
from fisher_jax.models.linked import LinkedModel
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.numerics.differentiate import FORWARD_UP_TO, weigh


class Scoring(NamedTuple):
    """The log-likelihood's weighted terms, the gradient of their sum, and the expected information in u: totals."""

    terms: Float[Array, " n"]
    gradient: Float[Array, " p"]
    information: Float[Array, "p p"]


class _Row(NamedTuple):
    """One observation: its term, ∂ term/∂η, ∂η/∂u, and the family's information times the rows of ∂η/∂u it belongs to."""

    term: Float[Array, ""]
    slopes: Float[Array, " f"]
    jacobian: Float[Array, "f p"]
    informed: Float[Array, "f p"]


def scoring_at(
    model: LinkedModel, layout: Layout, values: Values, target: Likelihood, has_given: bool, free: Float[Array, " p"]
) -> Scoring:
    """All that a step of Fisher scoring needs, at u."""

    def of_chunk(rows: PyTree, weights: Array | None) -> tuple[Array, tuple[Array, Array]]:
        y, z = (rows[0], (rows[1],)) if has_given else (rows, ())
        row = jax.vmap(lambda y, *z: _row(model, layout, values, free, y, z))(y, *z)
        gradient = jnp.einsum("nf,nfp->p", weigh(row.slopes, weights), row.jacobian, precision="highest")
        matrix = jnp.einsum("nfp,nfq->pq", row.jacobian, weigh(row.informed, weights), precision="highest")
        return weigh(row.term, weights), (gradient, 0.5 * (matrix + matrix.T))

    at_once = max(256, CHUNK_ENTRIES // max(free.shape[0], 1))
    terms, (gradient, matrix) = in_chunks(target.rows, target.weights, at_once, of_chunk, free.dtype)
    return Scoring(terms, gradient, matrix)


def row_of_scoring(
    model: Any, layout: Layout, values: Values, free: Float[Array, " p"], y: PyTree, z: tuple[PyTree, ...]
) -> Scoring:
    """The same for one observation of a linked model: its term, gradient and expected information in u."""
    row = _row(model, layout, values, free, y, z)
    gradient = jnp.matmul(row.slopes, row.jacobian, precision="highest")
    return Scoring(row.term, gradient, jnp.matmul(row.jacobian.T, row.informed, precision="highest"))


def _row(
    model: LinkedModel, layout: Layout, values: Values, free: Float[Array, " p"], y: PyTree, z: tuple[PyTree, ...]
) -> _Row:
    family_layout, _, predicted = model.log_density.layout(layout.constrain(free, values), *z)
    leaves, treedef = jax.tree.flatten(predicted)
    # What the family holds fixed, a number of trials, may be an integer; if not, it may depend on u all the same.
    estimated = [not leaf.is_fixed for leaf in family_layout.leaves]
    moving = [i for i, leaf in enumerate(leaves) if estimated[i] or jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]
    shapes = [jnp.shape(leaves[i]) for i in moving]
    sizes = [int(np.prod(shape)) for shape in shapes]

    def predict(free: Array) -> Float[Array, " f"]:
        found = jax.tree.leaves(model.log_density.predict(layout.constrain(free, values), *z))
        return jnp.concatenate([jnp.ravel(jnp.asarray(found[i], free.dtype)) for i in moving])

    def term(eta: Float[Array, " f"]) -> Array:
        given = list(leaves)
        for i, part, shape in zip(moving, jnp.split(eta, np.cumsum(sizes)[:-1]), shapes, strict=True):
            given[i] = part.reshape(shape)
        return model.family.log_density(jax.tree.unflatten(treedef, given), y).astype(eta.dtype)

    eta, push = jax.linearize(predict, free)
    jacobian = jax.vmap(push, out_axes=1)(jnp.eye(free.shape[0], dtype=free.dtype))
    value, slopes = _value_and_slopes(term, eta)
    inner = as_matrix(model.family.information(predicted), family_layout).astype(free.dtype)  # type: ignore[misc]
    inner = _spread(inner, np.repeat([estimated[i] for i in moving], sizes))
    return _Row(value, slopes, jacobian, jnp.matmul(inner, jacobian, precision="highest"))


def _spread(inner: Float[Array, "e e"], estimated: np.ndarray) -> Float[Array, "f f"]:
    """The family's information, with rows and columns of zeros for what it holds fixed."""
    if estimated.all():
        return inner
    places = jnp.asarray(np.flatnonzero(estimated))
    return jnp.zeros((len(estimated), len(estimated)), inner.dtype).at[places[:, None], places[None, :]].set(inner)


def _value_and_slopes(term: Callable[[Array], Array], eta: Float[Array, " f"]) -> tuple[Array, Array]:
    if eta.shape[0] > FORWARD_UP_TO:
        return jax.value_and_grad(term)(eta)
    value, push = jax.linearize(term, eta)
    return value, jax.vmap(push)(jnp.eye(eta.shape[0], dtype=eta.dtype))
