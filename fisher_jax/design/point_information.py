"""The information of one observation at each point z, and the derivatives of the estimand: all that a design depends on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.blocks import vmap_in_blocks
from fisher_jax.errors import check_pytrees, shown
from fisher_jax.information.closed_form import has_closed_form, total_expected
from fisher_jax.information.cramer_rao import slope_of
from fisher_jax.information.expectations import Enumeration, MonteCarlo, Quadrature, QuasiMonteCarlo
from fisher_jax.information.fisher_information import check_expectation, describe, expected_information
from fisher_jax.information.quadrature import by_nodes
from fisher_jax.models.auxiliary import check_without_auxiliary
from fisher_jax.models.dataset import check_given
from fisher_jax.models.model import Model, as_model, check_start, flatten_parameters
from fisher_jax.models.parameters import Layout, Values, in_key_order, key_order
from fisher_jax.models.programs import jit_with_model

Nodes = Quadrature | Enumeration

PADDED_SIZES = (32, 256)  # numbers of rows that are compiled for, besides a whole grid
ROWS_AT_ONCE = 4096


@dataclass(frozen=True, eq=False)
class PointInformation:
    """A model at one or several values of its parameters.

    `values` are the array leaves of params, each with a leading axis of b parameter values; `tangent` is ∂θ/∂u (b, q, p),
    `slopes` are the derivatives (b, s, p) of the estimand with respect to u, and `names` its entries.
    """

    model: Model
    layout: Layout
    expectation: Nodes | None
    values: Values
    tangent: Float[np.ndarray, "b q p"]
    slopes: Float[np.ndarray, "b s p"]
    names: tuple[str, ...]

    @property
    def num_values(self) -> int:
        """b: over how many parameter values the criterion is averaged."""
        return len(self.slopes)

    @property
    def route(self) -> str:
        """How the information was computed."""
        how = "closed form" if self.expectation is None else f"s sᵀ by {describe(self.expectation)}"
        return f"expected: {how}, averaged over a design"

    def at(self, rows: PyTree) -> Float[np.ndarray, "k b p p"]:
        """The information about u of one observation at each row, on the host in float64."""
        compute = _at_rows_enumerated if isinstance(self.expectation, Enumeration) else _at_rows
        rows, count = pad(rows)
        return np.asarray(compute(self.model, self.layout, self.expectation, self.values, rows), float)[:count]

    def warn_of_irregular(self, rows: PyTree) -> None:
        """An `InformationWarning` where the expectation is inaccurate at these rows."""
        for k in range(self.num_values):
            values = [value[k] for value in self.values]
            expected_information(self.model, self.layout, self.layout.free_names, values, self.expectation, rows)


def pad(rows: PyTree) -> tuple[PyTree, int]:
    """Rows with the last repeated, so that few numbers of rows are ever compiled for, and how many they were."""
    count = jax.tree.leaves(rows)[0].shape[0]
    size = next((size for size in PADDED_SIZES if count <= size), count)
    index = np.minimum(np.arange(size), count - 1)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[index], rows), count


def make_point_information(
    model: Any,
    params: PyTree,
    expectation: Any,
    function: Callable[[PyTree], PyTree] | None,
    params_axis: Any,
    criterion: str,
) -> PointInformation:
    """Check a user's model and parameters, and differentiate the estimand."""
    model = as_model(model)
    check_without_auxiliary(model, "a design")
    if model.is_dependent:
        raise ValueError("a dependent model has no information per observation, so no weights to give to points.")
    if expectation is not None:
        check_expectation(expectation)
    elif not has_closed_form(model):
        raise ValueError(
            "the model has no information in closed form. Give an expectation: Quadrature(lower, upper) for a "
            "continuous scalar y, Enumeration(values) for a discrete one; or use a linked model."
        )
    if isinstance(expectation, MonteCarlo | QuasiMonteCarlo):
        raise ValueError(
            f"{type(expectation).__name__} leaves an error in every information, so that nothing could be certified. "
            "Use a linked model, Quadrature or Enumeration."
        )
    check_pytrees(params=params)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(params)):
        raise TypeError("params is traced; designs are searched for on the host, outside jax.jit and jax.vmap.")
    first = params
    if params_axis is not None:
        if not isinstance(params_axis, int) or params_axis != 0:
            raise ValueError(f"params_axis={shown(params_axis)} must be 0, or None for one value of the parameters.")
        shapes = [np.shape(leaf) for leaf in jax.tree.leaves(params)]
        lengths = {shape[:1] for shape in shapes}
        if len(lengths) != 1 or lengths <= {(), (0,)}:
            raise ValueError(
                "params_axis=0 needs leaves with one common leading axis, a row for each value of the parameters; got "
                f"shapes {shapes}."
            )
        first = in_key_order(jax.tree.map(lambda leaf: np.asarray(leaf)[0], params), key_order(params))
    layout, _ = flatten_parameters(model, first)
    p = layout.num_free
    if p == 0:
        raise ValueError("every parameter is fixed, so that there is no parameter to have information about.")
    # By numpy: each of these steps would be a program of its own.
    arrays = [np.asarray(value) if params_axis == 0 else np.asarray(value)[None] for value in layout.blocks(params)]
    each = [[array[k] for array in arrays] for k in range(len(arrays[0]))]
    for single in each:
        check_start(layout, single)
    tangent = np.stack([np.asarray(layout.jacobian(layout.unconstrain(single)), float) for single in each])
    values, each = [jnp.asarray(array) for array in arrays], [[jnp.asarray(value) for value in row] for row in each]
    names, slopes = layout.free_names, np.broadcast_to(np.eye(p), (len(each), p, p))
    # D-optimal designs for all parameters are the same in every parametrisation, so that u serves; where constraints tie
    # entries together, the covariance of θ would have the determinant zero.
    if function is not None or criterion != "D" or tangent.shape[1] == tangent.shape[2]:
        pairs = [slope_of(layout, single, function, None) for single in each]
        names = pairs[0][0]
        slopes = np.stack([np.asarray(slope, float) for _, slope in pairs]) @ tangent
    if np.any(~np.isfinite(slopes)) or np.any(np.all(slopes == 0, axis=-1)):
        raise ValueError(
            f"the derivatives of {', '.join(names)} with respect to the parameters are zero or not finite at one of "
            "the parameter values, so that no design is better than another to first order."
        )
    return PointInformation(model, layout, expectation, values, tangent, slopes, names)


def check_points(model: Model, points: PyTree, name: str) -> PyTree:
    """A user's points as arrays with one leading axis."""
    check_pytrees(**{name: points})
    if not sum(np.size(leaf) for leaf in jax.tree.leaves(points)):
        raise ValueError(f"{name} holds no points. Give the values of z with a leading axis, one row for each.")
    return jax.tree.map(jnp.asarray, check_given(model, points, name))


def information_at(
    model: Model, layout: Layout, expectation: Nodes | None, values: Values, z: PyTree
) -> Float[Array, "b p p"]:
    """The information about u of one observation at z, at each value of the parameters."""
    given = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], z)

    def at(*values: Array) -> Array:
        if expectation is not None:
            return by_nodes(model, layout, list(values), expectation, given).matrix
        tangent = layout.jacobian(layout.unconstrain(list(values)))
        matrix = total_expected(model, layout, list(values), given, 1.0, None)
        return jnp.matmul(tangent.T, jnp.matmul(matrix, tangent, precision="highest"), precision="highest")

    return jax.vmap(at)(*values)


def _compute_at_rows(
    model: Model, layout: Layout, expectation: Nodes | None, values: Values, rows: PyTree
) -> Float[Array, "k b p p"]:
    at = lambda z: information_at(model, layout, expectation, values, z)  # noqa: E731
    return vmap_in_blocks(at, rows, ROWS_AT_ONCE)


# The values of an enumeration are arrays, which cannot be static.
_at_rows = jit_with_model(_compute_at_rows, static_argnums=(0, 1, 2))
_at_rows_enumerated = jit_with_model(_compute_at_rows, static_argnums=(0, 1))
