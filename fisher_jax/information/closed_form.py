"""Information in closed form: that of a model's `information`, and Jᵀ I_η J of a linked model, η its family's parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.blocks import CHUNK_ENTRIES, in_chunks
from fisher_jax.errors import call_user
from fisher_jax.models.linked import LinkedModel
from fisher_jax.models.model import Model, check_arity
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.numerics.differentiate import FORWARD_UP_TO, weigh


def has_closed_form(model: Model) -> bool:
    """Whether the expected information is known without draws or quadrature."""
    return model.information is not None or (isinstance(model, LinkedModel) and model.family.information is not None)


def total_expected(
    model: Model, layout: Layout, values: Values, given: PyTree, num_observations: Any, weights: Any
) -> Float[Array, "q q"]:
    """n I(θ), θ being `values`: summed over the covariates' rows, or n times that of one where there are none."""
    names = ("params",) if given is None else ("params", "z")
    if model.information is not None:
        check_arity(model.information, names, "information")
        total = _total_of_closed_form
    else:
        check_arity(model.log_density.predictor, names, "predictor")
        total = _total_of_linked
    if given is None:
        return num_observations * total(model, layout, values, (), None)
    if model.is_dependent:  # whose covariates come whole, and whose information is that of one term on average
        return num_observations * _closed_form(model, layout, values)(given)
    q = len(layout.names)

    def of_chunk(rows: PyTree, weights: Array | None) -> tuple[Array, Array]:
        empty_rows = jnp.zeros((jax.tree.leaves(rows)[0].shape[0], 0))
        return empty_rows, total(model, layout, values, (rows,), weights)

    rows, at_once = jax.tree.map(jnp.asarray, given), max(16, CHUNK_ENTRIES // q**2)
    return in_chunks(rows, weights, at_once, of_chunk, layout.dtype)[1]


def _closed_form(model: Model, layout: Layout, values: Values) -> Callable[..., Float[Array, "q q"]]:
    """The user's closed form as a function of the covariates, if there are any."""
    params = layout.assemble([jnp.asarray(value, layout.dtype) for value in values])
    return lambda *z: as_matrix(call_user(model.information, (params, *z), "information"), layout)  # type: ignore[arg-type]


def _total_of_closed_form(
    model: Model, layout: Layout, values: Values, rows: tuple[PyTree, ...], weights: Array | None
) -> Float[Array, "q q"]:
    """Of one observation, or summed over rows."""
    information = _closed_form(model, layout, values)
    return jnp.sum(weigh(jax.vmap(information)(*rows), weights), axis=0) if rows else information()


def _total_of_linked(
    model: Any, layout: Layout, values: Values, rows: tuple[PyTree, ...], weights: Array | None
) -> Float[Array, "q q"]:
    """Jᵀ I_η J of one observation, or summed over rows, as one product of tall matrices."""

    def factors(*z: PyTree) -> tuple[Float[Array, "e q"], Float[Array, "e q"]]:
        jacobian, inner = predicted(model, layout, values, z)
        return jacobian, jnp.matmul(inner, jacobian, precision="highest")

    left, right = jax.vmap(factors)(*rows) if rows else jax.tree.map(lambda part: part[None], factors())
    right = weigh(right, weights)
    if weights is not None:  # what a row of weight zero holds may be NaN, which zero times would not remove
        left = jnp.where((weights == 0)[:, None, None], 0.0, left)
    matrix = jnp.einsum("nep,neq->pq", left, right, precision="highest")
    return 0.5 * (matrix + matrix.T)


def predicted(
    model: LinkedModel, layout: Layout, values: Values, z: tuple[PyTree, ...]
) -> tuple[Float[Array, "e q"], Float[Array, "e e"]]:
    """J = ∂η/∂θ and the family's information I_η, for one observation."""
    natural = layout.natural()
    theta = natural.unconstrain(values)

    def predict(theta: Array) -> Array:
        return model.predict(natural.constrain(theta, values), *z).astype(theta.dtype)

    reverse = theta.shape[0] > max(FORWARD_UP_TO, jax.eval_shape(predict, theta).shape[0])
    jacobian = (jax.jacrev if reverse else jax.jacfwd)(predict)(theta)
    family_layout, inner = model.family_information(natural.constrain(theta, values), *z)
    return jacobian, as_matrix(inner, family_layout).astype(theta.dtype)


def as_matrix(information: Any, layout: Layout) -> Float[Array, "q q"]:
    """A user's closed form as one matrix: an array (q, q), or nested like params in params, over the free leaves."""
    q = len(layout.names)
    if isinstance(information, jax.Array | np.ndarray | float | int):
        matrix = jnp.asarray(information, layout.dtype)
        order = layout.entries_sorted_by_jax
        if matrix.size == q * q and matrix.ndim in (0, 2):
            return matrix.reshape(q, q)[order[:, None], order]
        names = ", ".join(layout.names[k] for k in np.argsort(order))
        raise ValueError(
            f"information: expected shape {(q, q)} for the parameters {names}, got {matrix.shape}. "
            "Return it in this order, or nested like jax.hessian's result."
        )
    try:
        rows = [layout.blocks(row) for row in layout.blocks(information)]
    except ValueError as error:
        raise ValueError(
            f"information: expected an array {(q, q)} or a pytree nested like params in params, got {information!r}: {error}"
        ) from error
    free = layout.free_leaves
    for i, row in free:
        for j, column in free:
            if np.size(rows[i][j]) != row.size * column.size:
                raise ValueError(
                    f"information: that of `{row.name}` of shape {row.shape} and `{column.name}` of shape {column.shape} has "
                    f"shape {np.shape(rows[i][j])}. Are the parameters of the shapes that the model expects?"
                )
    parts = [
        [jnp.asarray(rows[i][j], layout.dtype).reshape(row.size, column.size) for j, column in free] for i, row in free
    ]
    return jnp.block(parts)
