"""The data of a fit, or of many: observations, covariates and weights, checked once when an entry point receives them."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from fisher_jax.errors import check_choice, kind_of, shown
from fisher_jax.input_arrays import (
    LEAVE_OUT,
    Labels,
    as_array,
    as_weights,
    check_same_labels,
    check_unmasked,
    labels_of,
)
from fisher_jax.models.auxiliary import Observed
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import path_name
from fisher_jax.numerics.array_namespace import namespace
from fisher_jax.tables import MISSING, as_column, as_columns, is_column, is_table


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["data", "given", "weights", "strength"],
    meta_fields=["size", "differs"],
    drop_fields=["num_masked", "table", "group_labels"],
)
@dataclass(frozen=True, eq=False)
class Dataset:
    """One data set or many, as arrays.

    Attributes
    ----------
    data, given, weights : pytrees, and array or None
        Observations, covariates and weights, each leaf with a leading axis of length n; of many data sets, what differs among
        them has an axis over the data sets before it.
    strength : tuple, or None
        The strength of the model's prior, where the prior is to be counted: empty for a prior without one, else one number, or one
        for each of many data sets. None where the prior is not counted. No part of `parts`.
    size : int or None
        How many data sets there are; None where this is one, without an axis.
    differs : tuple of bool
        Of many data sets: for each array, in the order of `jax.tree.leaves`, whether it has an axis over the data sets, or is
        what all share.
    num_masked : integer array, () or (B,), or None
        How many rows were left out, by weight zero, because one of their entries is masked; None where none is. No part of the
        pytree.
    table : Table or None
        The table that the data come from, with the rows that they are, for columns by name; of many data sets it has a first axis
        over them. No part of the pytree.
    group_labels : array (n,), or None
        Of a model with latent effects, whose observations are groups, their labels where `by_group` made them. No part of the
        pytree.
    """

    data: PyTree
    given: PyTree = None
    weights: Any = None
    strength: tuple[Any, ...] | None = None
    size: int | None = field(default=None, kw_only=True)
    differs: tuple[bool, ...] = field(default=(), kw_only=True)
    num_masked: Any = field(default=None, kw_only=True)
    table: Any = field(default=None, kw_only=True)
    group_labels: Any = field(default=None, kw_only=True)

    @property
    def parts(self) -> tuple[PyTree, PyTree, Any]:
        """Data, covariates and weights."""
        return self.data, self.given, self.weights

    @property
    def axes(self) -> tuple[Any, Any, Any]:
        """For `parts`, 0 where the data sets differ in an array and None where they share it: the `in_axes` of `jax.vmap`."""
        treedef = jax.tree.structure(self.parts)
        return jax.tree.unflatten(treedef, [0 if differs else None for differs in self.differs])

    @property
    def with_strength(self) -> tuple[PyTree, PyTree, Any, Any]:
        """`parts` and the strength of the prior, the arguments of a `Dataset`."""
        return *self.parts, self.strength

    @property
    def strength_given(self) -> Any:
        """The argument `strength` of the fit: None, a number, or one for each data set."""
        return self.strength[0] if self.strength else None

    @property
    def strength_differs(self) -> tuple[bool, ...]:
        """Of each strength, none or one, whether it differs among many data sets."""
        return tuple(bool(np.ndim(number)) for number in self.strength or ())

    @property
    def axes_with_strength(self) -> tuple[Any, Any, Any, Any]:
        """For `with_strength`, the `in_axes` of `jax.vmap`."""
        of_strength = (
            None if self.strength is None else tuple(0 if differs else None for differs in self.strength_differs)
        )
        return *self.axes, of_strength

    @functools.cached_property
    def entries(self) -> int:
        """The number of entries of the largest array in which data sets differ, for one of them, or of its rows if more."""
        leaves = jax.tree.leaves(self.parts)
        differs = self.differs or (False,) * len(leaves)
        shapes = [np.shape(leaf)[differ:] for leaf, differ in zip(leaves, differs, strict=True)]
        rows = [shape[0] for shape in shapes if shape]
        return max([1, *rows, *(math.prod(shape) for shape, differ in zip(shapes, differs, strict=True) if differ)])

    def take(self, rows: Any) -> "Dataset":
        """Some of many data sets, by a slice or an array of indices or truth values."""
        return replace(self._indexed(rows), size=len(np.arange(self.size or 0)[rows]), differs=self.differs)

    def one(self, row: int) -> "Dataset":
        """One of many data sets."""
        return self._indexed(row)

    def _indexed(self, rows: Any) -> "Dataset":
        leaves, treedef = jax.tree.flatten(self.parts)
        selected = [leaf[rows] if differs else leaf for leaf, differs in zip(leaves, self.differs, strict=True)]
        table = None if self.table is None else self.table.take(rows)
        strength = self.strength
        if strength is not None:
            strength = tuple(
                x[rows] if differs else x for x, differs in zip(strength, self.strength_differs, strict=True)
            )
        data, given, weights = jax.tree.unflatten(treedef, selected)
        return Dataset(data, given, weights, strength, table=table, group_labels=self.group_labels)

    def column(self, name: str) -> Any:
        """A column by its name: of the table that the data come from, else of covariates or data that are a dictionary."""
        if self.table is not None:
            return self.table.column(name)
        for part in (self.given, self.data):
            if isinstance(part, dict) and name in part:
                return part[name]
        names = [str(key) for part in (self.given, self.data) if isinstance(part, dict) for key in part]
        having = f" (these have {', '.join(names)})" if names else ""
        raise ValueError(
            f"there is no column {name!r} with the data of this fit{having}. Fit from a table, by fisher_jax.formula or with a "
            "table as given=, or give the column itself."
        )


def check_dataset(model: Model, data: PyTree, given: PyTree, weights: Any, missing: str = "raise") -> Dataset:
    """One data set; raise where leaves disagree about n or weights do not fit. Python lists become arrays.

    Rows with a masked entry get weight zero, and other values in place of the masked ones; so do, with ``missing="drop"``, those in
    which a value is missing that comes from a table.
    """
    check_choice(missing, MISSING, "missing")
    data, _ = place_measured(model, data, None)
    if model.parts:
        data, given, weights, _ = place_parts(model, data, given, weights, None, missing)
    parts = {"data": data, "given": given, "weights": weights}
    data, given, weights = _as_arrays_of_parts(data, given, weights, (missing,) * 3)
    if not jax.tree.leaves(data):
        raise ValueError("data holds no array. Give the observations, with a leading axis of length n.")
    if not model.is_dependent:
        _check_common_length({"data": data, "given": given})
    model.check_data(data, given)
    check_labels(parts, (None, None, None))
    if weights is not None:
        n = None if model.is_dependent else jax.tree.leaves(data)[0].shape[0]
        n = sum(rows_of_parts(model, data).values()) if model.parts else n
        if weights.ndim != 1 or (n is not None and weights.shape[0] != n):
            expected = f"({n},)" if n is not None else "(number of terms,)"
            raise ValueError(f"weights has shape {weights.shape}, expected {expected}, one weight per observation.")
        if not isinstance(weights, jax.core.Tracer):
            host = np.asarray(weights)
            is_valid = np.isfinite(host) & (host >= 0)
            if not np.all(is_valid):
                first = int(np.argmin(is_valid))
                raise ValueError(
                    f"weights must be finite and not negative; weights[{first}] is {host[first]}. "
                    "A weight of zero leaves an observation out."
                )
    return replace(without_masks(model, Dataset(data, given, weights)), group_labels=_labels_of_groups(parts))


def check_datasets(
    model: Model, data: PyTree, given: PyTree, weights: Any, axes: tuple[Any, Any, Any], num_starts: int
) -> Dataset:
    """Many data sets, whose axes over them are given as for `jax.vmap`; where all of it is shared, one for each start."""
    data, data_axis = place_measured(model, data, axes[0])
    axes = (data_axis, *axes[1:])
    if model.parts:
        data, given, weights, axes = place_parts(model, data, given, weights, axes, "raise")
    parts = {"data": data, "given": given, "weights": weights}
    # A table of many data sets is a matrix, in which a missing value is left to the status of its data set.
    policies = ["raise" if axis is None else "" for axis in axes]
    named = dict(zip(parts, _as_arrays_of_parts(data, given, weights, policies), strict=True))
    marks = [axis_of_each(tree, axis, name) for (name, tree), axis in zip(named.items(), axes, strict=True)]
    moved = [axis_first(tree, mark) for tree, mark in zip(named.values(), marks, strict=True)]
    for leaf, mark in zip(jax.tree.leaves(moved[0]), jax.tree.leaves(marks[0]), strict=True):
        if mark.number is not None and np.ndim(leaf) == 1 and not model.is_dependent:
            raise ValueError(
                f"data of shape {np.shape(leaf)} needs an axis over the data sets and one over the observations, "
                "(B, n) by default. For one data set use fit."
            )
    size = common_size({name: (tree, mark) for (name, tree), mark in zip(named.items(), marks, strict=True)})
    size = size or num_starts
    if not size:
        raise ValueError("every axis is None, so there is one data set only. Use fit.")
    first, one_given, one_weights = (first_of(tree, mark) for tree, mark in zip(moved, marks, strict=True))
    if one_weights is not None and marks[2].number is not None:
        one_weights = np.ones_like(one_weights)  # an invalid weight is left to the status of its data set
    check_dataset(model, first, one_given, one_weights)
    check_labels(parts, tuple(marks))
    differs = tuple(mark.number is not None for mark in jax.tree.leaves(marks))
    dataset = without_masks(model, Dataset(*moved, size=size, differs=differs))
    leaves, treedef = jax.tree.flatten(dataset.parts)
    leaves = [
        to_numpy_unless_on_device(leaf) if differs else leaf
        for leaf, differs in zip(leaves, dataset.differs, strict=True)
    ]
    data, given, weights = jax.tree.unflatten(treedef, leaves)
    return replace(dataset, data=data, given=given, weights=weights, group_labels=_labels_of_groups(parts))


def _labels_of_groups(parts: dict[str, PyTree]) -> Any:
    """The labels of groups that `by_group` made, None where there are none: arrays lose them."""
    holders = [part for part in parts.values() if getattr(part, "holds_data", False)]
    return next((part.labels for part in holders if getattr(part, "labels", None) is not None), None)


def place_measured(model: Model, data: PyTree, axis: Any) -> tuple[PyTree, Any]:
    """The data of a model with an auxiliary measurement as they are stored, `Observed`, with their axes over data sets.

    The user gives a pair (observations, measured), and for `axis` one for both or a pair. Other data are as they were.
    """
    if model.auxiliary is None or isinstance(data, Observed):
        return data, axis
    if not isinstance(data, tuple | list) or hasattr(data, "_fields") or len(data) != 2:
        raise TypeError(
            f"data is {shown(data)}; a model with an auxiliary measurement takes the pair (observations, measured)."
        )
    observations, measured = data
    if _is_numbers(observations):
        observations = np.asarray(observations)
    first_axis, measured_axis = axis if isinstance(axis, tuple) and len(axis) == 2 else (axis, axis)
    leaves = jax.tree.leaves(observations)
    marks = jax.tree.leaves(axis_of_each(observations, first_axis, "data"))
    if not leaves:
        raise ValueError("data holds no array. Give the observations, with a leading axis of length n.")
    shape = list(np.shape(leaves[0]))
    if marks[0].number is not None and -len(shape) <= marks[0].number < len(shape):
        del shape[marks[0].number]
    if not shape:
        raise ValueError(
            f"the observations in data have shape {np.shape(leaves[0])}; expected an axis of length n, one row each."
        )
    arrays = as_unmasked_arrays(measured, "data measured")
    measured_marks = axis_of_each(arrays, measured_axis, "data")

    def beside_rows(leaf: Any, mark: _Axis) -> Any:
        xp = namespace(leaf)
        if mark.number is None:
            return xp.broadcast_to(leaf, (shape[0], *leaf.shape))
        return xp.broadcast_to(leaf[:, None], (leaf.shape[0], shape[0], *leaf.shape[1:]))

    placed = jax.tree.map(beside_rows, axis_first(arrays, measured_marks), measured_marks)
    new_axes = jax.tree.map(lambda mark: None if mark.number is None else 0, measured_marks)
    return Observed(observations, placed), None if axis is None else Observed(first_axis, new_axes)


def place_parts(
    model: Model, data: PyTree, given: PyTree, weights: Any, axes: tuple[Any, Any, Any] | None, missing: str
) -> tuple[PyTree, PyTree, Any, Any]:
    """The data of a joint model as they are stored, with their axes over data sets, where there are many.

    Data and covariates are dictionaries by part, with the rows of each checked to be as many; weights are those of one part after
    the other. A part without covariates has an array (n, 0) in their place, from which those who draw know how many rows there are.
    """
    names = tuple(model.parts)

    def of_each(tree: Any, name: str, what: str) -> dict[str, Any]:
        if not isinstance(tree, dict) or any(key not in names for key in tree):
            keys = f" with {', '.join(map(repr, tree))}" if isinstance(tree, dict) else ""
            raise ValueError(
                f"{name} of a joint model is a dictionary by its parts, {', '.join(map(repr, names))}; got {kind_of(tree)}{keys}."
            )
        lacking = [key for key in names if key not in tree]
        if what == "all" and lacking:
            raise ValueError(f"{name} lacks the part {', '.join(map(repr, lacking))}.")
        return tree

    def axes_of(axis: Any) -> dict[str, Any]:
        return {key: axis.get(key) for key in names} if isinstance(axis, dict) else dict.fromkeys(names, axis)

    data = of_each(data, "data", "all")
    given = {} if given is None else of_each(given, "given", "some")
    data_axes, given_axes = (axes_of(axis) for axis in axes[:2]) if axes is not None else ({}, {})
    arrays, covariates, rows = {}, {}, {}
    axis_of_given: dict[str, Any] = {}
    for key in names:
        z, as_checked = given.get(key), as_arrays if axes is None else as_unmasked_arrays
        arrays[key] = as_checked(data[key], f"data {key}", missing)
        covariates[key] = None if z is None else as_checked(z, f"given {key}", missing)
        trees = {f"data {key}": arrays[key], f"given {key}": covariates[key]}
        if axes is not None:
            marks = axis_of_each(arrays[key], data_axes[key], "data"), axis_of_each(z, given_axes[key], "given")
            moved = (axis_first(tree, mark) for tree, mark in zip(trees.values(), marks, strict=True))
            trees = {name: first_of(tree, mark) for name, tree, mark in zip(trees, moved, marks, strict=True)}
        if not jax.tree.leaves(arrays[key]):
            raise ValueError(f"data {key} holds no array. Give the observations, with a leading axis of length n.")
        _check_common_length(trees)
        rows[key] = jax.tree.leaves(trees[f"data {key}"])[0].shape[0]
        if z is None:
            covariates[key], axis_of_given[key] = np.zeros((rows[key], 0)), None
        else:
            axis_of_given[key] = given_axes.get(key)
    if isinstance(weights, dict):
        each = of_each(weights, "weights", "some")
        columns = [as_weights(each[key], f"weights {key}") if key in each else np.ones(rows[key]) for key in names]
        for key, column in zip(names, columns, strict=True):
            if column.shape[-1] != rows[key]:
                raise ValueError(
                    f"weights {key} has shape {column.shape}, expected {rows[key]}, one weight per observation."
                )
        leading = np.broadcast_shapes(*(column.shape[:-1] for column in columns))
        weights = np.concatenate([np.broadcast_to(c, (*leading, c.shape[-1])) for c in columns], axis=-1)
    # Covariates are given an axis by part; a part's whole tree has it.
    return arrays, covariates, weights, None if axes is None else (axes[0], axis_of_given, axes[2])


def rows_of_parts(model: Model, data: PyTree) -> dict[str, int]:
    """How many rows each part of the data of a joint model has."""
    return {name: np.shape(jax.tree.leaves(data[name])[0])[0] for name in model.parts}


def parts_of(model: Model, dataset: Dataset, weights: Any) -> "list[tuple[Model, Dataset]]":
    """Of a joint model, that of a row of each part, with its data; none of other models."""
    result, start = [], 0
    for name, rows in rows_of_parts(model, dataset.data).items():
        z = None if dataset.given is None else dataset.given[name]
        of_part = None if weights is None else weights[start : start + rows]
        result.append((model.parts[name], Dataset(dataset.data[name], None if is_count(z) else z, of_part)))
        start += rows
    return result


def is_count(given: PyTree) -> bool:
    """Whether the covariates of a part are an array without columns, which stands for its number of rows only."""
    return given is None or (hasattr(given, "shape") and given.shape[1:] == (0,))


def _as_arrays_of_parts(
    data: PyTree, given: PyTree, weights: Any, missing: Sequence[str]
) -> tuple[PyTree, PyTree, Any]:
    data, given = as_arrays(data, "data", missing[0]), as_arrays(given, "given", missing[1])
    if is_column(weights) and missing[2]:
        weights = as_column(weights, "weights")
    return data, given, None if weights is None else as_weights(weights, "weights")


def check_labels(parts: dict[str, PyTree], marks: tuple[PyTree, ...]) -> None:
    """Raise where the labels of arguments from pandas do not match.

    `marks` are the axes over the data sets, as `axis_of_each` gives them, None where there is one data set. An index is compared
    with an index and columns with columns: a table of many data sets may have its observations in columns that have names.
    """
    all_labels = []
    for (name, part), mark in zip(parts.items(), marks, strict=True):
        if not any(labels_of(leaf) for leaf in jax.tree.leaves(part)):
            continue
        leaves = jax.tree_util.tree_flatten_with_path(part)[0]
        axes = [axis.number for axis in jax.tree.leaves(mark)]
        if len(axes) != len(leaves):  # one data set, or tables, which have become columns that the data sets share
            axes = [None] * len(leaves)
        for (path, leaf), axis in zip(leaves, axes, strict=True):
            labels = labels_of(leaf)
            of_sets = None if axis is None else axis % np.ndim(leaf)
            of_rows = 1 if of_sets == 0 else 0
            for k, index in enumerate(labels):
                if k in (of_sets, of_rows):
                    what = "data sets" if k == of_sets else "observations"
                    all_labels.append(Labels(_name_of(name, path), (what, ("index", "column")[k]), index))
    check_same_labels(all_labels)


def without_masks(model: Model, dataset: Dataset) -> Dataset:
    """The data set, or many, with weight zero for the rows in which an entry of the data or of the covariates is masked.

    Their values become those of the row before: the values under a mask must not enter anything, and the model's `initial` gets the
    data without weights.
    """
    leaves, treedef = jax.tree.flatten((dataset.data, dataset.given))
    if not any(isinstance(leaf, np.ma.MaskedArray) for leaf in leaves):
        return dataset
    if model.parts:
        of_each = dict(zip(model.parts, parts_of(model, dataset, dataset.weights), strict=True))
        parts = {name: without_masks(*each) for name, each in of_each.items()}
        counted = [
            np.ones(rows) if parts[name].weights is None else parts[name].weights
            for name, rows in rows_of_parts(model, dataset.data).items()
        ]
        given = {name: dataset.given[name] if part.given is None else part.given for name, part in parts.items()}
        number = sum(int(part.num_masked) for part in parts.values() if part.num_masked is not None)
        data = {name: part.data for name, part in parts.items()}
        return Dataset(data, given, np.concatenate(counted), num_masked=np.asarray(number))
    if model.is_dependent:
        raise ValueError(
            "the data are masked, and the model is `dependent`: a weight of zero leaves out a term, but the value "
            "under the mask would enter those after it. Give the series without masks, and write its terms for missing values, "
            "for example with an indicator as given=."
        )
    differs = dataset.differs[: len(leaves)] or (False,) * len(leaves)
    masked: dict[bool, Any] = {False: False, True: False}
    for k, (leaf, differ) in enumerate(zip(leaves, differs, strict=True)):
        if isinstance(leaf, np.ma.MaskedArray):
            entries = np.ma.getmaskarray(leaf)
            rows = np.asarray(entries.reshape(*entries.shape[: 1 + differ], -1).any(axis=-1))
            leaves[k], masked[differ] = with_row_before(np.asarray(leaf), rows), masked[differ] | rows
    left_out = masked[False] | masked[True]
    weights = np.ones(left_out.shape) if dataset.weights is None else dataset.weights
    weights = namespace(weights).where(left_out, 0, weights)
    num_masked = left_out.sum(axis=-1)
    if dataset.size is None:
        differs = ()
    else:
        differs, num_masked = (*differs, weights.ndim == 2), np.broadcast_to(num_masked, (dataset.size,))
    data, given = jax.tree.unflatten(treedef, leaves)
    return Dataset(data, given, weights, size=dataset.size, differs=differs, num_masked=num_masked)


def with_row_before(leaf: np.ndarray, masked: np.ndarray) -> np.ndarray:
    """The array with the last unmasked row before in place of each masked row, else the first after; ones where all are masked."""
    place = np.maximum.accumulate(np.where(masked, -1, np.arange(masked.shape[-1])), axis=-1)
    place = np.where(place < 0, np.argmin(masked, axis=-1)[..., None], place)
    to_entries = (*masked.shape, *(1,) * (leaf.ndim - masked.ndim))
    filled = np.take_along_axis(leaf, place.reshape(to_entries), axis=masked.ndim - 1)
    all_masked = np.broadcast_to(masked.all(axis=-1, keepdims=True), masked.shape)
    return np.where(all_masked.reshape(to_entries), filled.dtype.type(1), filled)


def pad(tree: PyTree, length: int, size: int) -> PyTree:
    """Each array of `length` rows with copies of its last row added up to `size`, ones where there is none.

    What is added has weight zero; a copy of a row is inside the support of the density, so that its derivatives are finite.
    Arrays that do not have a row for each observation stay as they are.
    """

    def pad_leaf(leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)
        if leaf.ndim == 0 or len(leaf) != length or length == size:
            return leaf
        last = leaf[-1:] if length else np.ones((1, *leaf.shape[1:]), leaf.dtype)
        return np.concatenate([leaf, np.repeat(last, size - length, axis=0)])

    return jax.tree.map(pad_leaf, tree)


def pad_dataset(dataset: Dataset, size: int, dtype: Any) -> Dataset:
    """A data set of independent observations with rows of weight zero added up to `size`."""
    length = np.shape(jax.tree.leaves(dataset.data)[0])[0]
    weights = np.ones(length, dtype) if dataset.weights is None else np.asarray(dataset.weights, dtype)
    weights = np.concatenate([weights, np.zeros(size - length, dtype)])
    return Dataset(pad(dataset.data, length, size), pad(dataset.given, length, size), weights, dataset.strength)


def on_device(leaf: Any) -> bool:
    """Whether an array lies in the memory of one device that is not a CPU; it should stay there."""
    return isinstance(leaf, jax.Array) and [device.platform != "cpu" for device in leaf.devices()] == [True]


def to_numpy_unless_on_device(leaf: Any) -> Any:
    """An array of numpy; one on a device, or with a mask, as it is."""
    return leaf if on_device(leaf) or isinstance(leaf, np.ma.MaskedArray) else np.asarray(leaf)


def check_given(model: Model, given: PyTree, name: str = "given") -> PyTree:
    """Covariates as arrays with one leading axis, where there are no weights; those of a dependent model may have any shapes."""
    if given is None:
        return None
    arrays = as_unmasked_arrays(given, name)
    if not model.is_dependent:
        _check_common_length({name: arrays})
    check_labels({name: given}, (None,))
    return arrays


def as_arrays(tree: PyTree, name: str, missing: str = "raise") -> PyTree:
    """The argument `name` with arrays of numbers for its leaves; masked arrays where entries are masked.

    A table becomes a dictionary of its columns. `missing` is what to do where values are missing in it, as for
    `tables.as_columns`; an empty text leaves tables as matrices.
    """
    if isinstance(tree, list | tuple) and not hasattr(tree, "_fields") and _is_numbers(tree):
        return np.asarray(tree)
    leaves, treedef = jax.tree.flatten(tree)
    if missing:
        for k, leaf in enumerate(leaves):
            if type(leaf) is not np.ndarray and (is_table(leaf) or is_column(leaf)):
                path, _ = jax.tree_util.tree_flatten_with_path(tree)[0][k]
                leaves[k] = (as_columns if is_table(leaf) else as_column)(leaf, _name_of(name, path), missing)
        tree = jax.tree.unflatten(treedef, leaves)
        leaves, treedef = jax.tree.flatten(tree)

    def name_of(k: int) -> str:
        path, _ = jax.tree_util.tree_flatten_with_path(tree)[0][k]
        return _name_of(name, path)

    return jax.tree.unflatten(treedef, [as_array(leaf, functools.partial(name_of, k)) for k, leaf in enumerate(leaves)])


def as_unmasked_arrays(tree: PyTree, name: str, missing: str = "raise") -> PyTree:
    """The argument `name` with arrays of numbers for its leaves, where there are no weights that could leave out a row."""
    arrays = as_arrays(tree, name, missing)
    for path, leaf in jax.tree_util.tree_flatten_with_path(arrays)[0]:
        check_unmasked(leaf, functools.partial(_name_of, name, path), LEAVE_OUT)
    return arrays


def _is_numbers(tree: Any) -> bool:
    if isinstance(tree, list | tuple):
        return all(_is_numbers(item) for item in tree)
    return isinstance(tree, bool | int | float | np.number)


def _name_of(argument: str, path: Any) -> str:
    """The name of a leaf of an argument in messages: data, given, data x[0]."""
    return f"{argument} {path_name(path)}" if path else argument


def _check_common_length(trees: dict[str, PyTree]) -> None:
    """Raise where leaves differ in their number of rows, or have none."""
    lengths = {}
    for root, tree in trees.items():
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            name = _name_of(root, path)
            if leaf.ndim == 0:
                raise ValueError(f"{name} is a scalar; expected a leading axis of length n, one row each.")
            lengths[name] = leaf.shape[0]
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise ValueError(
            f"the leading axes of data and given differ ({listed}). "
            "All leaves need the same length n, one row for each observation."
        )
    if 0 in lengths.values():
        raise ValueError(f"{next(iter(lengths))} has no rows (leading axis of length 0).")


def axis_of_each(tree: PyTree, axis: Any, name: str) -> PyTree:
    """For each leaf its axis, or `None`; an axis may be given for a whole branch."""
    if tree is None:
        return None
    if any(not isinstance(a, int | np.integer) or isinstance(a, bool) for a in jax.tree.leaves(axis)):
        raise TypeError(f"{name}_axis={axis!r} must be a whole number, None, or a pytree of them.")
    try:
        return jax.tree.map(
            lambda a, branch: jax.tree.map(lambda _: _Axis(a), branch), axis, tree, is_leaf=lambda a: a is None
        )
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{name}_axis={axis!r} does not fit {name}: give a number or None for all of it, or a pytree of them "
            f"shaped like {name} or like its first branches."
        ) from error


@dataclass(frozen=True)
class _Axis:
    """An axis or `None`, so that a tree of them has a leaf everywhere."""

    number: int | None


def axis_first(tree: PyTree, marks: PyTree) -> PyTree:
    """The tree with the axis over data sets of each leaf moved to the front."""

    def move(leaf: Any, mark: _Axis) -> Any:
        if mark.number is None:
            return leaf
        if not -np.ndim(leaf) <= mark.number < np.ndim(leaf):
            raise ValueError(
                f"an array of shape {np.shape(leaf)} has no axis {mark.number} over the data sets. "
                "Data, weights and starts for each data set need that axis; an array that all share has axis None."
            )
        leaf = to_numpy_unless_on_device(leaf)
        return leaf if mark.number == 0 else namespace(leaf).moveaxis(leaf, mark.number, 0)

    return None if tree is None else jax.tree.map(move, tree, marks)


def common_size(parts: dict[str, tuple[PyTree, PyTree]]) -> int:
    """B, on which all leaves must agree; zero if none of them has an axis over data sets."""
    sizes = {}
    for name, (tree, marks) in parts.items():
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        for (path, leaf), mark in zip(leaves, jax.tree.leaves(marks), strict=True):
            if mark.number is not None:
                if not -np.ndim(leaf) <= mark.number < np.ndim(leaf):
                    raise ValueError(
                        f"{_name_of(name, path)} has shape {np.shape(leaf)}, which has no axis {mark.number} over data sets."
                    )
                sizes[_name_of(name, path)] = np.shape(leaf)[mark.number]
    if not sizes:
        return 0
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise ValueError(f"the number of data sets differs ({listed}). Their axes must have the same length B.")
    size = next(iter(sizes.values()))
    if size == 0:
        raise ValueError("there are no data sets (an axis of length 0).")
    return size


def first_of(tree: PyTree, marks: PyTree) -> PyTree:
    """The part of the first data set."""
    if tree is None:
        return None
    return jax.tree.map(lambda leaf, mark: leaf if mark.number is None else leaf[0], tree, marks)
