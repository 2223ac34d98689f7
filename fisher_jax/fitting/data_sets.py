"""Many data sets as the lanes take them: flat lists of arrays, those that differ with a leading axis. Checked at the door."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.fitting.lanes_v1 import Leaves
from fisher_jax.fitting.problem import checked_start
from fisher_jax.models.model import (
    Model,
    Sample,
    as_arrays,
    check_sample,
    check_start,
    flatten_parameters,
    starting_parameters,
)
from fisher_jax.models.parameters import Layout, Values, joined, parted, path_name, typed

CALLER = "fit_batch"
BLOCK, BLOCK_ENTRIES = 4096, 2**22  # data sets whose starts are computed at once, and entries of theirs


@dataclass(frozen=True)
class DataSets:
    """B data sets. `own` holds the starts u (B, p) and then every array that differs, `shared` what is common to all.

    `mapped` says of each leaf of (values, data, given, weights), put together by `treedef`, to which of the two it belongs;
    `entries` is the number of entries of the largest array that is one data set's own, or of its observations if more.
    """

    layout: Layout
    own: Leaves
    shared: Leaves
    mapped: tuple[bool, ...]
    treedef: Any
    entries: int

    def __len__(self) -> int:
        return len(self.own[0])

    def take(self, rows: Any) -> "DataSets":
        """Some of the data sets."""
        return replace(self, own=[leaf[rows] for leaf in self.own])

    def sample(self, row: int) -> Sample:
        """The data, covariates and weights of one of them."""
        leaves = joined(self.mapped, [leaf[row] for leaf in self.own[1:]], self.shared)
        return Sample(*jax.tree.unflatten(self.treedef, leaves)[1:])

    def axes(self) -> Sample:
        """For each array of data, covariates and weights, 0 where the data sets differ in it and None where they share it."""
        return Sample(*jax.tree.unflatten(self.treedef, [0 if differs else None for differs in self.mapped])[1:])

    def arrays(self) -> Sample:
        """The arrays to which `axes` belong."""
        return Sample(*jax.tree.unflatten(self.treedef, joined(self.mapped, self.own[1:], self.shared))[1:])

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
    _refuse_flat(model, moved.data, marks[0])
    parts = {name: (tree, mark) for name, tree, mark in zip(named, sample, marks, strict=True)}
    size = _size(parts) or _size({"params": (params, _marked(params, axes[0], "params"))})
    if not size:
        raise ValueError(f"{CALLER}: every axis is None, so there is one data set only. Use fit.")
    first = Sample(*(_first(tree, mark) for tree, mark in zip(moved, marks, strict=True)))
    if first.weights is not None and marks[2].number is not None:
        first = first._replace(weights=np.ones_like(first.weights))  # a bad weight is that data set's own trouble
    first = check_sample(model, first.data, first.given, first.weights, CALLER)
    layout, values, own_values, start = _starting_values(model, params, axes[0], moved, first, marks, size)
    leaves, treedef = jax.tree.flatten((values, moved.data, moved.given, moved.weights))
    mapped = own_values + _are_mapped(marks)
    own, shared = parted(mapped, leaves)
    rows = max(np.shape(leaf)[0] for leaf in jax.tree.leaves((first.data, first.given)))
    entries = max(rows, *(int(np.prod(np.shape(leaf)[1:])) for leaf in own))
    return DataSets(layout, [start, *map(np.asarray, own)], shared, mapped, treedef, entries)


def _refuse_flat(model: Model, data: PyTree, marks: PyTree) -> None:
    for leaf, mark in zip(jax.tree.leaves(data), jax.tree.leaves(marks), strict=True):
        if mark.number is not None and np.ndim(leaf) == 1 and not model.is_dependent:
            raise ValueError(
                f"{CALLER}: data of shape {np.shape(leaf)} needs an axis over the data sets and one over the observations, "
                "(B, n) by default. For one data set use fit."
            )


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _marked(tree: PyTree, axis: Any, name: str) -> PyTree:
    """For each leaf its axis, or `None`; an axis may be given for a whole branch."""
    if tree is None:
        return None
    if any(not isinstance(a, int | np.integer) or isinstance(a, bool) for a in jax.tree.leaves(axis)):
        raise TypeError(f"{CALLER}: {name}_axis={axis!r} must be a whole number, None, or a pytree of them.")
    try:
        return jax.tree.map(lambda a, branch: jax.tree.map(lambda _: _Axis(a), branch), axis, tree, is_leaf=_is_none)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{CALLER}: {name}_axis={axis!r} does not fit {name}: give a number or None for all of it, or a pytree of them "
            f"shaped like {name} or like its first branches."
        ) from error


def check_starts(params: PyTree, axis: Any, count: int) -> None:
    """Refuse starting parameters for another number of data sets."""
    marked = _marked(params, axis, "params")
    _axis_first(params, marked)
    size = _size({"params": (params, marked)})
    if size not in (0, count):
        raise ValueError(
            f"{CALLER}: params has starts for {size} data sets, but there are {count}. "
            "Give one start for each, or one for all with params_axis=None."
        )


def rows_of(params: PyTree, axis: Any, rows: Any) -> PyTree:
    """The starting parameters of some data sets, or of one."""

    def take(leaf: Any, mark: _Axis) -> Any:
        return leaf if mark.number is None else np.take(np.asarray(leaf), rows, axis=mark.number)

    return None if params is None else jax.tree.map(take, params, _marked(params, axis, "params"))


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
    """B, on which all leaves must agree; zero if none of them has an axis over data sets."""
    sizes = {}
    for name, (tree, marks) in parts.items():
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        for (path, leaf), mark in zip(leaves, jax.tree.leaves(marks), strict=True):
            if mark.number is not None:
                sizes[f"{name} {path_name(path)}" if path else name] = np.shape(leaf)[mark.number]
    if not sizes:
        return 0
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
    model: Model, params: PyTree, axis: Any, moved: Sample, first: Sample, marks: list[PyTree], size: int
) -> tuple[Layout, Values, tuple[bool, ...], np.ndarray]:
    """The layout, the array leaves of the starting parameters, which of them differ, and every start u (B, p)."""
    if params is None:
        layout, values = flatten_parameters(model, starting_parameters(model, None, first, CALLER), CALLER)
        _refuse_all_fixed(layout)
        leaves, treedef = jax.tree.flatten(moved)
        mapped = _are_mapped(marks)
        own, shared = parted(mapped, leaves)
        values, start = _by_block(lambda own: _initial(model, layout, treedef, mapped, own, shared), own, size)
        return layout, values, (True,) * len(values), start
    marked = _marked(params, axis, "params")
    layout, _ = flatten_parameters(model, _first(_axis_first(params, marked), marked), CALLER)
    _refuse_all_fixed(layout)
    value_marks = layout.blocks(marked)
    blocks = typed(layout, layout.blocks(params))
    values = [_axis_first(block, mark) for block, mark in zip(blocks, value_marks, strict=True)]
    mapped = _are_mapped(value_marks)
    check_starts(params, axis, size)
    return layout, values, mapped, _starts(layout, values, mapped, size)


def _are_mapped(marks: Any) -> tuple[bool, ...]:
    return tuple(mark.number is not None for mark in jax.tree.leaves(marks))


def _refuse_all_fixed(layout: Layout) -> None:
    if layout.num_free == 0:
        raise ValueError(f"{CALLER}: every parameter is fixed, so there is nothing to estimate. Use log_likelihood.")


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _initial(
    model: Model, layout: Layout, treedef: Any, mapped: tuple[bool, ...], own: Leaves, shared: Leaves
) -> tuple[Values, Float[Array, "R p"]]:
    """The leaves of what the model's `initial` makes of each data set, and their u."""

    def one(own: Leaves) -> tuple[Values, Array]:
        params = starting_parameters(model, None, jax.tree.unflatten(treedef, joined(mapped, own, shared)), CALLER)
        free = {i for i, _ in layout.free_leaves}
        blocks = enumerate(layout.blocks(params))
        values = [jnp.asarray(value, layout.dtype if i in free else None) for i, value in blocks]
        return values, checked_start(layout, values)

    try:
        return jax.vmap(one)(own)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise TypeError(
            f"{CALLER}: the model's `initial` is mapped over the data sets, so write it with jax.numpy and without float() or "
            "if; or give `params` with params_axis=0."
        ) from error


@functools.partial(jax.jit, static_argnums=(0, 1))
def _unconstrained(layout: Layout, mapped: tuple[bool, ...], own: Leaves, shared: Leaves) -> Float[Array, "R p"]:
    return jax.vmap(lambda own: checked_start(layout, joined(mapped, own, shared)))(own)


def _by_block(function: Callable[[Leaves], Any], own: Leaves, size: int) -> Any:
    """A mapped function over all rows, a block of one size at a time."""
    entries = max(int(np.prod(leaf.shape[1:])) for leaf in own)
    block = min(BLOCK, 1 << (size - 1).bit_length(), max(1, BLOCK_ENTRIES // max(entries, 1)))
    parts = []
    for start in range(0, size, block):
        rows = np.minimum(np.arange(start, start + block), size - 1)
        parts.append(jax.device_get(function([leaf[rows] for leaf in own])))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:size], *parts)


def initial_starts(model: Model, sets: DataSets) -> np.ndarray:
    """u of what the model's `initial` makes of each data set (B, p); NaN where that lies outside its constraint."""
    count = len(sets.layout.leaves)
    leaves = joined(sets.mapped, sets.own[1:], sets.shared)[count:]
    mapped = sets.mapped[count:]
    own, shared = parted(mapped, leaves)
    treedef = jax.tree.structure(Sample(*jax.tree.unflatten(sets.treedef, range(len(sets.mapped)))[1:]))
    return _by_block(lambda own: _initial(model, sets.layout, treedef, mapped, own, shared), own, len(sets))[1]


def _starts(layout: Layout, values: Values, mapped: tuple[bool, ...], size: int) -> np.ndarray:
    """u at the start of each fit (B, p); NaN where it lies outside its constraint."""
    own, shared = parted(mapped, values)
    if own:
        return _by_block(lambda own: _unconstrained(layout, mapped, own, shared), own, size)
    check_start(layout, values, CALLER)
    return np.broadcast_to(np.asarray(layout.unconstrain(values)), (size, layout.num_free))
