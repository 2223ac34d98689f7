"""Many data sets as the lanes take them: flat lists of arrays, those that differ with a leading axis. Checked at the door."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from fisher_jax.lanes import Leaves
from fisher_jax.model import (
    Model,
    Sample,
    as_arrays,
    check_sample,
    check_start,
    flatten_parameters,
    starting_parameters,
)
from fisher_jax.parameters import Layout, Values, path_name
from fisher_jax.problem import checked_start

CALLER = "fit_batch"
BLOCK = 4096  # data sets whose starts are computed at once


@dataclass(frozen=True)
class DataSets:
    """B data sets. `own` holds the starts u (B, p) and then every array that differs, `shared` what is common to all.

    `mapped` says of each leaf of (values, data, given, weights), put together by `treedef`, to which of the two it belongs.
    """

    layout: Layout
    own: Leaves
    shared: Leaves
    mapped: tuple[bool, ...]
    treedef: Any
    num_rows: int

    def __len__(self) -> int:
        return len(self.own[0])

    def take(self, rows: Any) -> "DataSets":
        """Some of the data sets."""
        return replace(self, own=[leaf[rows] for leaf in self.own])

    def started_at(self, start: np.ndarray) -> "DataSets":
        """The same from other starts (B, p)."""
        return replace(self, own=[np.asarray(start, self.layout.dtype), *self.own[1:]])

    def in_float64(self) -> "DataSets":
        """The same with parameters in float64."""
        layout = replace(self.layout, dtype=np.dtype(np.float64))
        return replace(self, layout=layout).started_at(self.own[0])


def data_sets(model: Model, params: PyTree, sample: Sample, axes: tuple[Any, Any, Any, Any]) -> DataSets:
    """Check and flatten what `fit_batch` was given; `axes` are those of params, data, given and weights, as for `jax.vmap`."""
    given = None if sample.given is None else as_arrays(sample.given)
    weights = None if sample.weights is None else as_arrays(sample.weights)
    sample = Sample(as_arrays(sample.data), given, weights)
    named = dict(zip(("data", "given", "weights"), sample, strict=True))
    marks = [_marked(tree, axis, name) for (name, tree), axis in zip(named.items(), axes[1:], strict=True)]
    moved = Sample(*(_axis_first(tree, mark) for tree, mark in zip(sample, marks, strict=True)))
    size = _size({name: (tree, mark) for name, tree, mark in zip(named, sample, marks, strict=True)})
    first = Sample(*(_first(tree, mark) for tree, mark in zip(moved, marks, strict=True)))
    if first.weights is not None:
        first = first._replace(weights=np.ones_like(first.weights))  # a bad weight is that data set's own trouble
    first = check_sample(model, first.data, first.given, first.weights, CALLER)
    layout, values, value_marks = _starting_values(model, params, axes[0], moved, marks, first, size)
    leaves, treedef = jax.tree.flatten((values, moved.data, moved.given, moved.weights))
    mapped = tuple(mark.number is not None for mark in jax.tree.leaves([value_marks, *marks]))
    own = [np.asarray(leaf) for leaf, is_own in zip(leaves, mapped, strict=True) if is_own]
    shared = [leaf for leaf, is_own in zip(leaves, mapped, strict=True) if not is_own]
    start = _starts(layout, values, value_marks, size)
    num_rows = max(jnp.shape(leaf)[0] for leaf in jax.tree.leaves(first.data))
    return DataSets(layout, [start, *own], shared, mapped, treedef, num_rows)


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _marked(tree: PyTree, axis: Any, name: str) -> PyTree:
    """For each leaf its axis, or `None`; an axis may be given for a whole branch."""
    if tree is None:
        return None
    try:
        return jax.tree.map(lambda a, branch: jax.tree.map(lambda _: _Axis(a), branch), axis, tree, is_leaf=_is_none)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{CALLER}: {name}_axis={axis!r} does not fit {name}: give a number or None for all of it, or a pytree of them "
            f"shaped like {name} or like its first branches."
        ) from error


@dataclass(frozen=True)
class _Axis:
    """An axis or `None`, so that a tree of them has a leaf everywhere."""

    number: int | None


def _axis_first(tree: PyTree, marks: PyTree) -> PyTree:
    def move(leaf: Any, mark: _Axis) -> Any:
        if mark.number is None:
            return leaf
        if not -np.ndim(leaf) <= mark.number < np.ndim(leaf):
            raise ValueError(
                f"{CALLER}: an array of shape {np.shape(leaf)} has no axis {mark.number} over the data sets. "
                "Data, weights and starts for each data set need that axis; what all share is given axis None."
            )
        return np.moveaxis(np.asarray(leaf), mark.number, 0)

    return None if tree is None else jax.tree.map(move, tree, marks)


def _size(parts: dict[str, tuple[PyTree, PyTree]]) -> int:
    """B, on which all leaves must agree."""
    sizes = {}
    for name, (tree, marks) in parts.items():
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        for (path, leaf), mark in zip(leaves, jax.tree.leaves(marks), strict=True):
            if mark.number is not None:
                sizes[f"{name} {path_name(path)}" if path else name] = np.shape(leaf)[mark.number]
    if not sizes:
        raise ValueError(f"{CALLER}: every axis is None, so there is one data set only. Use fit.")
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise ValueError(f"{CALLER}: the number of data sets differs ({said}). Their axes must have the same length B.")
    size = next(iter(sizes.values()))
    if size == 0:
        raise ValueError(f"{CALLER}: there are no data sets (an axis of length 0).")
    return size


def _first(tree: PyTree, marks: PyTree) -> PyTree:
    if tree is None:
        return None
    return jax.tree.map(lambda leaf, mark: leaf if mark.number is None else leaf[0], tree, marks)


def _starting_values(
    model: Model, params: PyTree, axis: Any, moved: Sample, marks: list[PyTree], first: Sample, size: int
) -> tuple[Layout, Values, list[_Axis]]:
    """The layout, and the array leaves of the starting parameters with their axes."""
    if params is None:
        layout, values = flatten_parameters(model, starting_parameters(model, None, first, CALLER), CALLER)
        return layout, _initial(model, layout, moved, marks, size), [_Axis(0)] * len(values)
    marked = _marked(params, axis, "params")
    one = jax.tree.map(
        lambda leaf, mark: leaf if mark.number is None else np.moveaxis(leaf, mark.number, 0)[0], params, marked
    )
    layout, _ = flatten_parameters(model, one, CALLER)
    value_marks = layout.blocks(marked)
    values = [_axis_first(block, mark) for block, mark in zip(layout.blocks(params), value_marks, strict=True)]
    for value, mark in zip(values, value_marks, strict=True):
        if mark.number is not None and len(value) != size:
            raise ValueError(
                f"{CALLER}: params has starts for {len(value)} data sets, but there are {size}. "
                "Give one start for each, or one for all with params_axis=None."
            )
    return layout, values, value_marks


def _initial(model: Model, layout: Layout, moved: Sample, marks: list[PyTree], size: int) -> Values:
    """The leaves (B, …) of what the model's `initial` makes of each data set."""
    axes = [jax.tree.map(lambda mark: None if mark.number is None else 0, mark) for mark in marks]

    @jax.jit
    def one(sample: Sample) -> Values:
        def initial(data: PyTree, given: PyTree, weights: Any) -> Values:
            params = starting_parameters(model, None, Sample(data, given, weights), CALLER)
            return [jnp.asarray(value, layout.dtype) for value in layout.blocks(params)]

        return jax.vmap(initial, axes)(*sample)

    def block(start: int) -> Sample:
        rows = np.minimum(np.arange(start, start + min(BLOCK, size)), size - 1)
        cut = [
            None
            if tree is None
            else jax.tree.map(lambda leaf, mark: leaf if mark.number is None else leaf[rows], tree, mark)
            for tree, mark in zip(moved, marks, strict=True)
        ]
        return Sample(*cut)

    parts = [jax.device_get(one(block(start))) for start in range(0, size, min(BLOCK, size))]
    return [np.concatenate(leaves)[:size] for leaves in zip(*parts, strict=True)]


def _starts(layout: Layout, values: Values, marks: list[_Axis], size: int) -> np.ndarray:
    """u at the start of each fit (B, p); NaN where it lies outside its constraint."""
    if layout.num_free == 0:
        raise ValueError(f"{CALLER}: every parameter is fixed, so there is nothing to estimate. Use log_likelihood.")
    if all(mark.number is None for mark in marks):
        check_start(layout, values, CALLER)
        return np.broadcast_to(np.asarray(layout.unconstrain(values)), (size, layout.num_free))
    axes = [None if mark.number is None else 0 for mark in marks]

    @jax.jit
    def block(values: Values) -> Array:
        return jax.vmap(lambda values: checked_start(layout, values), (axes,))(values)

    parts = []
    for start in range(0, size, min(BLOCK, size)):
        rows = np.minimum(np.arange(start, start + min(BLOCK, size)), size - 1)
        cut = [value if axis is None else np.asarray(value)[rows] for value, axis in zip(values, axes, strict=True)]
        parts.append(np.asarray(block(cut)))
    return np.concatenate(parts)[:size]
