"""One fit whose rows lie on several devices, of one process or of many: each step is one pass in which each device adds up its own.

The arrays stay where they are. In a pass every device computes value, gradient and information of its rows, and one sum over all
devices (`psum`) of one vector brings these together, to every process the same: so all take the same steps on their hosts.
"""

import functools
import math
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from fisher_jax.fitting.covariance import precise
from fisher_jax.fitting.maximization import (
    PriorTerm,
    evaluate,
    first_not_finite,
    make_problem,
    stages_of,
    step_on_host,
    total_information,
)
from fisher_jax.fitting.result import Fit, SourceOrigin, with_log_prior
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.likelihood import outer_product_at, total_weight
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Values, path_name
from fisher_jax.models.programs import jit_with_model
from fisher_jax.numerics.differentiate import matrices_of_triangles, upper_triangle
from fisher_jax.optimizers.newton import Evaluation, Kind, Newton
from fisher_jax.sources import check_rows_alone


class ShardedRows(NamedTuple):
    """A data set whose arrays are split along their leading axis over `axes` of a mesh of devices."""

    dataset: Dataset
    mesh: Any
    axes: tuple[str, ...]

    @property
    def num_rows(self) -> int:
        return int(jax.tree.leaves(self.dataset.data)[0].shape[0])

    @property
    def num_parts(self) -> int:
        return math.prod(self.mesh.shape[axis] for axis in self.axes)


def is_sharded(tree: PyTree) -> bool:
    """Whether arrays are split over several devices."""
    return any(
        isinstance(leaf, jax.Array)
        and not isinstance(leaf, jax.core.Tracer)
        and len(leaf.sharding.device_set) > 1
        and not leaf.is_fully_replicated
        for leaf in jax.tree.leaves(tree)
    )


def sharded_rows(model: Model, data: PyTree, given: PyTree, weights: Any) -> ShardedRows:
    """The rows; raise where the arrays are not split alike."""
    check_rows_alone(model)
    lengths, places = {}, {}
    for name, part in (("data", data), ("given", given), ("weights", weights)):
        for path, leaf in jax.tree_util.tree_flatten_with_path(part)[0]:
            label = f"{name} {path_name(path)}" if path else name
            sharding: Any = leaf.sharding if isinstance(leaf, jax.Array) else None
            spec = tuple(sharding.spec) if isinstance(sharding, NamedSharding) else ()
            if not spec or spec[0] is None or any(axis is not None for axis in spec[1:]):
                raise ValueError(
                    f"{label} is not split along its leading axis alone, where other arrays of this fit are split over several "
                    "devices. Split all alike, jax.device_put(array, NamedSharding(mesh, PartitionSpec(axis))), with rows of "
                    "weight zero added where their number is no multiple of the devices'."
                )
            axes = (spec[0],) if isinstance(spec[0], str) else tuple(spec[0])
            lengths[label], places[label] = int(leaf.shape[0]), (sharding.mesh, axes)
    if len(set(lengths.values())) > 1 or len(set(places.values())) > 1:
        texts = ", ".join(f"{label}: {length} rows over {places[label][1]}" for label, length in lengths.items())
        raise ValueError(f"the arrays are not split alike ({texts}). All need the same rows on the same devices.")
    mesh, axes = next(iter(places.values()))
    return ShardedRows(Dataset(data, given, weights), mesh, axes)


@functools.partial(jit_with_model, static_argnums=(0, 1, 2, 3, 4, 5), level=1)
def one_pass(
    model: Model,
    layout: Layout,
    kind: Kind,
    whole: bool,
    mesh: Any,
    axes: tuple[str, ...],
    values: Values,
    parts: tuple[PyTree, PyTree, Any],
    u: Float[Array, " p"],
) -> Float[Array, " m"]:
    """All that a step needs, or the end with `whole`, in one vector: totals over the rows of all devices, by one sum over these."""

    def of_device(values: Values, parts: tuple[PyTree, PyTree, Any], u: Float[Array, " p"]) -> Float[Array, " m"]:
        dataset = Dataset(*parts)
        problem = make_problem(model, layout, values, dataset, u)
        target = problem.likelihood
        if not whole:
            at = evaluate(problem, kind, u)
            entries = [at.value[None], at.rounding[None], at.gradient, _triangle(at.information)]
        else:
            finite, outer_product = outer_product_at(target, u)
            estimate = layout.constrained_values(u, values)
            expected = total_information(model, layout, estimate, dataset, target)
            first = first_not_finite(target, u, finite) + 1
            firsts = jnp.zeros(math.prod(mesh.shape[axis] for axis in axes)).at[jax.lax.axis_index(axes)].set(first)
            counts = jnp.stack([jnp.asarray(total_weight(target)), problem.num_observed])
            entries = [_triangle(outer_product), counts, firsts, *([] if expected is None else [expected.ravel()])]
        return jax.lax.psum(jnp.concatenate([precise(entry) for entry in entries]), axes)

    rows, everywhere = PartitionSpec(axes), PartitionSpec()
    return jax.shard_map(
        of_device, mesh=mesh, in_specs=(everywhere, rows, everywhere), out_specs=everywhere, check_vma=False
    )(values, parts, u)


def _triangle(matrix: Float[Array, "p p"]) -> Float[Array, " t"]:
    return jnp.stack([matrix[i, j] for i, j in upper_triangle(matrix.shape[0])])


def fit_sharded(
    rows: ShardedRows,
    model: Model,
    layout: Layout,
    optimizer: Newton,
    values: Values,
    strength: tuple[Any, ...] | None,
    tolerance: Any,
    max_steps: int,
) -> Fit:
    """The fit, by one pass for each step and one more for the outer product of scores."""
    optimizers = stages_of(optimizer, model)
    values = [np.asarray(value) for value in values]
    p, q, dtype = layout.num_free, len(layout.names), layout.dtype
    num_passes = 0
    prior = None if strength is None else PriorTerm(model, layout, values, strength)

    def call(u: np.ndarray, *, kind: Kind, whole: bool = False) -> dict[str, Any]:
        nonlocal num_passes
        num_passes += 1
        static = (model, layout, kind, whole, rows.mesh, rows.axes)
        vector = np.asarray(one_pass(*static, values, rows.dataset.parts, np.asarray(u, dtype)))
        if not whole:
            high = dtype.type(vector[0])
            gradient, triangle = vector[2 : 2 + p].astype(dtype), vector[None, 2 + p :].astype(dtype)
            rounding = dtype.type((vector[0] - float(high)) + vector[1])
            at = Evaluation(high, gradient, matrices_of_triangles(triangle, p)[0], rounding)
            return (at if prior is None else prior.added_to(at, kind, u))._asdict()
        triangle, counts, firsts, expected = np.split(vector, np.cumsum([p * (p + 1) // 2, 2, rows.num_parts]).tolist())
        part = int(np.argmax(firsts > 0))
        suspect = part * (rows.num_rows // rows.num_parts) + int(firsts[part]) - 1 if np.any(firsts > 0) else -1
        total = expected.reshape(q, q).astype(dtype) if len(expected) else None
        return {
            "outer_product": matrices_of_triangles(triangle[None].astype(dtype), p)[0],
            "expected": total if prior is None else prior.added_to_expected(total, u),
            "suspect": np.array(suspect, np.int32),
            "num_observations": np.asarray(counts[0], dtype),
            "num_observed": int(counts[1]),
        }

    calls = [functools.partial(call, kind=step.kind) for step in optimizers]
    fit = step_on_host(layout, layout, optimizers, calls, values, tolerance, max_steps)
    where = f"the memory of {rows.num_parts} devices"
    origin = SourceOrigin(model, None, where, rows.num_rows, rows.num_parts, num_passes, strength)
    fit = replace(fit, engine="devices", origin=origin)
    return with_log_prior(fit, model, Dataset(None, strength=strength))
