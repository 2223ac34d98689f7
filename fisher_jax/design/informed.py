"""What one observation at each point z tells, and the derivatives of what is asked: all that a design depends on."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.errors import check_pytree, check_pytrees, shown
from fisher_jax.information.bound import slope_of
from fisher_jax.information.closed_form import has_closed_form, total_expected
from fisher_jax.information.exact import by_nodes
from fisher_jax.information.expectations import Enumeration, MonteCarlo, QuasiMonteCarlo
from fisher_jax.information.expected import check_expectation, describe, expected_information
from fisher_jax.models.constraints import Interval
from fisher_jax.models.dataset import check_given
from fisher_jax.models.model import Model, as_model, check_start, flatten_parameters
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.programs import jit_with_model

SIZES = (32, 256)  # rows at once that are compiled for, besides a whole grid
AT_ONCE = 4096


@dataclass(frozen=True, eq=False)
class Informed:
    """A model at one or several values of its parameters.

    `values` are the array leaves of params, each with a leading axis of b parameter values; `tangent` is ∂θ/∂u (b, q, p),
    `slopes` are the derivatives (b, s, p) of what is asked with respect to u, and `names` what that is called.
    """

    model: Model
    layout: Layout
    expectation: Any
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
        """How the information was computed, in words."""
        how = "closed form" if self.expectation is None else f"s sᵀ by {describe(self.expectation)}"
        return f"expected: {how}, averaged over a design"

    def at(self, rows: PyTree) -> Float[np.ndarray, "k b p p"]:
        """The information on u of one observation at each row, on the host in float64."""
        found = _enumerated if isinstance(self.expectation, Enumeration) else _informations
        count = jax.tree.leaves(rows)[0].shape[0]
        rows = jax.tree.map(lambda leaf: _padded(leaf, count), rows)
        return np.asarray(found(self.model, self.layout, self.expectation, self.values, rows), float)[:count]

    def warn_of_irregular(self, rows: PyTree) -> None:
        """An `InformationWarning` where the expectation was not taken well at these rows."""
        for k in range(self.num_values):
            values = [value[k] for value in self.values]
            expected_information(self.model, self.layout, self.layout.free_names, values, self.expectation, rows)

    def gains(self, region: "Region", dual: np.ndarray, coordinates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """tr(Γ I(z)) (k,) and its gradient (k, d) at points of a region."""
        each = _enumerated_gains if isinstance(self.expectation, Enumeration) else _gains
        count = len(coordinates)
        arrays = [jnp.asarray(part, self.layout.dtype) for part in (dual, _padded(coordinates, count))]
        found = each(self.model, self.layout, self.expectation, region, self.values, *arrays)
        return np.asarray(found[0], float)[:count], np.asarray(found[1], float)[:count]


@dataclass(frozen=True)
class Region:
    """A box of points z: the intervals of the coordinates, and how these make up z. `is_vector`: z is one array of them."""

    intervals: tuple[Interval, ...]
    treedef: Any
    is_vector: bool

    @property
    def low(self) -> np.ndarray:
        return np.array([interval.low for interval in self.intervals])

    @property
    def high(self) -> np.ndarray:
        return np.array([interval.high for interval in self.intervals])

    def rows(self, coordinates: Any) -> PyTree:
        """Points of coordinates (…, d)."""
        if self.is_vector:
            return coordinates
        return jax.tree.unflatten(self.treedef, [coordinates[..., k] for k in range(len(self.intervals))])


def region_of(region: PyTree) -> Region:
    """A user's region: an interval, a list of them for a vector z, or a pytree of them."""
    check_pytree(region, "region")
    found, treedef = jax.tree.flatten(region, is_leaf=lambda leaf: isinstance(leaf, Interval))
    for leaf in found:
        if not isinstance(leaf, Interval) or not (np.isfinite(leaf.low) and np.isfinite(leaf.high)):
            raise ValueError(
                f"region holds {leaf!r}; expected intervals with two finite ends, as in fisher_jax.interval(0, 10), "
                "or a pytree of them shaped like one z."
            )
    if not found:
        raise ValueError("region holds no interval. Give one for each coordinate of z.")
    return Region(tuple(found), treedef, isinstance(region, list))


def informed_of(
    model: Any, params: PyTree, expectation: Any, function: Any, params_axis: Any, criterion: str
) -> Informed:
    """Check a user's model and parameters, and differentiate what is asked."""
    model = as_model(model)
    _check_route(model, expectation)
    check_pytrees(params=params)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(params)):
        raise TypeError("params is traced; designs are searched for on the host, outside jax.jit and jax.vmap.")
    one = _first(params, params_axis)
    layout, _ = flatten_parameters(model, one)
    if layout.num_free == 0:
        raise ValueError("every parameter is fixed, so that there is nothing to be informed of.")
    values = [jnp.asarray(value) if params_axis == 0 else jnp.asarray(value)[None] for value in layout.blocks(params)]
    each = [[value[k] for value in values] for k in range(len(values[0]))]
    for one in each:
        check_start(layout, one)
    tangent = np.stack([np.asarray(layout.jacobian(layout.unconstrain(one)), float) for one in each])
    names, slopes = layout.free_names, np.broadcast_to(np.eye(layout.num_free), (len(each),) + 2 * (layout.num_free,))
    if function is not None or criterion != "D" or tangent.shape[1] == tangent.shape[2]:
        found = [slope_of(layout, one, function, None) for one in each]
        names = found[0][0]
        slopes = np.stack([np.asarray(slope, float) for _, slope in found]) @ tangent
    if np.any(~np.isfinite(slopes)) or np.any(np.all(slopes == 0, axis=-1)):
        raise ValueError(
            f"the derivatives of {', '.join(names)} with respect to the parameters are zero or not finite at one of "
            "the parameter values, so that no design is better than another to first order."
        )
    return Informed(model, layout, expectation, values, tangent, slopes, names)


def points_of(model: Model, points: PyTree, name: str) -> PyTree:
    """A user's points as arrays with one leading axis."""
    check_pytrees(**{name: points})
    if not sum(np.size(leaf) for leaf in jax.tree.leaves(points)):
        raise ValueError(f"{name} holds no points. Give the values of z with a leading axis, one row for each.")
    return jax.tree.map(jnp.asarray, check_given(model, points, name))


def _first(params: PyTree, params_axis: Any) -> PyTree:
    """One value of the parameters, the first where there are several."""
    if params_axis is None:
        return params
    if not isinstance(params_axis, int) or params_axis != 0:
        raise ValueError(f"params_axis={shown(params_axis)} must be 0, or None for one value of the parameters.")
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(params)}
    if len(lengths) != 1 or lengths == {()} or lengths == {(0,)}:
        raise ValueError(
            f"params_axis=0 needs leaves with one common leading axis, a row for each value of the parameters; got "
            f"shapes {[np.shape(leaf) for leaf in jax.tree.leaves(params)]}."
        )
    return jax.tree.map(lambda leaf: np.asarray(leaf)[0], params)


def _check_route(model: Model, expectation: Any) -> None:
    if model.is_dependent:
        raise ValueError("a dependent model has no information per observation, so no weights to give to points.")
    if expectation is None and not has_closed_form(model):
        raise ValueError(
            "the model has no information in closed form. Give an expectation: Quadrature(lower, upper) for a "
            "continuous scalar y, Enumeration(values) for a discrete one; or use a linked model."
        )
    if expectation is None:
        return
    check_expectation(expectation)
    if isinstance(expectation, MonteCarlo | QuasiMonteCarlo):
        raise ValueError(
            f"{type(expectation).__name__} leaves an error in every information, so that nothing could be certified. "
            "Use a linked model, Quadrature or Enumeration."
        )


def _padded(leaf: Any, count: int) -> np.ndarray:
    """With the last row repeated, so that few numbers of rows are ever compiled for."""
    size = next((size for size in SIZES if count <= size), count)
    return np.concatenate([np.asarray(leaf), np.repeat(np.asarray(leaf)[-1:], size - count, axis=0)])


def _information(model: Model, layout: Layout, expectation: Any, values: Values, z: PyTree) -> Float[Array, "p p"]:
    """On u, of one observation at z."""
    given = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], z)
    if expectation is not None:
        return by_nodes(model, layout, values, expectation, given).matrix
    tangent = layout.jacobian(layout.unconstrain(values))
    found = total_expected(model, layout, values, given, 1.0, None)
    return jnp.matmul(tangent.T, jnp.matmul(found, tangent, precision="highest"), precision="highest")


def _at_all(model: Model, layout: Layout, expectation: Any, values: Values, rows: PyTree) -> Float[Array, "k b p p"]:
    def at(z: PyTree) -> Array:
        return jax.vmap(lambda *one: _information(model, layout, expectation, list(one), z))(*values)

    few = jax.tree.leaves(rows)[0].shape[0] <= AT_ONCE
    return jax.vmap(at)(rows) if few else jax.lax.map(at, rows, batch_size=AT_ONCE)


def _gains_at_all(
    model: Model,
    layout: Layout,
    expectation: Any,
    region: Region,
    values: Values,
    dual: Float[Array, "b p p"],
    coordinates: Float[Array, "k d"],
) -> tuple[Float[Array, " k"], Float[Array, "k d"]]:
    def gain(coordinates: Array) -> Array:
        z = region.rows(coordinates)
        found = jax.vmap(lambda *one: _information(model, layout, expectation, list(one), z))(*values)
        return jnp.sum(dual * found) / len(dual)

    return jax.vmap(jax.value_and_grad(gain))(coordinates)


_informations = jit_with_model(_at_all, static_argnums=(0, 1, 2))
_enumerated = jit_with_model(_at_all, static_argnums=(0, 1))
_gains = jit_with_model(_gains_at_all, static_argnums=(0, 1, 2, 3))
_enumerated_gains = jit_with_model(_gains_at_all, static_argnums=(0, 1, 3))
