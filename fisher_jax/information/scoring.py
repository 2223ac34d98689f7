"""Terms, gradient and expected information of a linked model in one pass: what a step of Fisher scoring needs.

With η(u) the predictor, of Jacobian J, and I_η the family's information, the gradient is Jᵀ ∂log p/∂η and the expected
information Jᵀ I_η J, so that η and J are computed once for both.
"""

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


def scoring_at(
    model: LinkedModel, layout: Layout, values: Values, target: Likelihood, has_given: bool, free: Float[Array, " p"]
) -> Scoring:
    """All that a step of Fisher scoring needs, at u."""

    def of_chunk(rows: PyTree, weights: Array | None) -> tuple[Array, tuple[Array, Array]]:
        y, z = (rows[0], (rows[1],)) if has_given else (rows, ())
        row = jax.vmap(lambda y, *z: _parts_of_row(model, layout, values, free, y, z))(y, *z)
        term, slopes, jacobian, inner_jacobian = row
        gradient = jnp.einsum("nf,nfp->p", weigh(slopes, weights), jacobian, precision="highest")
        matrix = jnp.einsum("nfp,nfq->pq", jacobian, weigh(inner_jacobian, weights), precision="highest")
        return weigh(term, weights), (gradient, 0.5 * (matrix + matrix.T))

    at_once = max(256, CHUNK_ENTRIES // max(free.shape[0], 1))
    terms, (gradient, matrix) = in_chunks(target.rows, target.weights, at_once, of_chunk, free.dtype)
    return Scoring(terms, gradient, matrix)


def row_of_scoring(
    model: Any, layout: Layout, values: Values, free: Float[Array, " p"], y: PyTree, z: tuple[PyTree, ...]
) -> Scoring:
    """The same for one observation of a linked model: its term, gradient and expected information in u."""
    term, slopes, jacobian, inner_jacobian = _parts_of_row(model, layout, values, free, y, z)
    gradient = jnp.matmul(slopes, jacobian, precision="highest")
    return Scoring(term, gradient, jnp.matmul(jacobian.T, inner_jacobian, precision="highest"))


def _parts_of_row(
    model: LinkedModel, layout: Layout, values: Values, free: Float[Array, " p"], y: PyTree, z: tuple[PyTree, ...]
) -> tuple[Float[Array, ""], Float[Array, " f"], Float[Array, "f p"], Float[Array, "f p"]]:
    """Of one observation: its term, ∂ term/∂η, J = ∂η/∂u, and I_η J."""
    family_layout, _, predicted = model.log_density.layout(layout.constrain(free, values), *z)
    leaves, treedef = jax.tree.flatten(predicted)
    # What the family holds fixed, a number of trials, may be an integer; if not, it may depend on u all the same.
    estimated = [not leaf.is_fixed for leaf in family_layout.leaves]
    moving = [i for i, leaf in enumerate(leaves) if estimated[i] or jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]
    shapes = [jnp.shape(leaves[i]) for i in moving]
    sizes = [int(np.prod(shape)) for shape in shapes]

    def predict(free: Array) -> Float[Array, " f"]:
        etas = jax.tree.leaves(model.log_density.predict(layout.constrain(free, values), *z))
        return jnp.concatenate([jnp.ravel(jnp.asarray(etas[i], free.dtype)) for i in moving])

    def term(eta: Float[Array, " f"]) -> Array:
        filled = list(leaves)
        for i, part, shape in zip(moving, jnp.split(eta, np.cumsum(sizes)[:-1]), shapes, strict=True):
            filled[i] = part.reshape(shape)
        return model.family.log_density(jax.tree.unflatten(treedef, filled), y).astype(eta.dtype)

    eta, push = jax.linearize(predict, free)
    jacobian = jax.vmap(push, out_axes=1)(jnp.eye(free.shape[0], dtype=free.dtype))
    if eta.shape[0] > FORWARD_UP_TO:
        value, slopes = jax.value_and_grad(term)(eta)
    else:
        value, push = jax.linearize(term, eta)
        slopes = jax.vmap(push)(jnp.eye(eta.shape[0], dtype=eta.dtype))
    inner = as_matrix(model.family.information(predicted), family_layout).astype(free.dtype)  # type: ignore[misc]
    is_estimated = np.repeat([estimated[i] for i in moving], sizes)
    if not is_estimated.all():  # rows and columns of zeros for what the family holds fixed
        places = jnp.asarray(np.flatnonzero(is_estimated))
        zeros = jnp.zeros((len(is_estimated), len(is_estimated)), inner.dtype)
        inner = zeros.at[places[:, None], places[None, :]].set(inner)
    return value, slopes, jacobian, jnp.matmul(inner, jacobian, precision="highest")
