"""The data of a fit, or of many: observations, covariates and weights, checked where they come in."""

import functools
import math
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from fisher_jax.models.model import Model
from fisher_jax.models.parameters import path_name
from fisher_jax.numerics.namespace import namespace

CALLER = "fit_batch"


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["data", "given", "weights"], meta_fields=["size", "differs"]
)
@dataclass(frozen=True, eq=False)
class Dataset:
    """One data set or many, as arrays.

    Attributes
    ----------
    data, given, weights : pytrees, and array or None
        Observations, covariates and weights, each leaf with a leading axis of length n; of many data sets, what differs among
        them has an axis over the data sets before it.
    size : int or None
        How many data sets there are; None where this is one, without an axis.
    differs : tuple of bool
        Of many data sets: for each array, in the order of `jax.tree.leaves`, whether it has an axis over the data sets, or is
        what all share.
    """

    data: PyTree
    given: PyTree = None
    weights: Any = None
    size: int | None = field(default=None, kw_only=True)
    differs: tuple[bool, ...] = field(default=(), kw_only=True)

    @property
    def parts(self) -> tuple[PyTree, PyTree, Any]:
        """Data, covariates and weights."""
        return self.data, self.given, self.weights

    @property
    def axes(self) -> tuple[Any, Any, Any]:
        """For `parts`, 0 where the data sets differ in an array and None where they share it: the `in_axes` of `jax.vmap`."""
        treedef = jax.tree.structure(self.parts)
        return jax.tree.unflatten(treedef, [0 if differs else None for differs in self.differs])

    @functools.cached_property
    def entries(self) -> int:
        """The number of entries of the largest array that is one data set's own, or of its observations if more."""
        leaves, differs = jax.tree.leaves(self.parts), self.differs or (False,) * len(jax.tree.leaves(self.parts))
        shapes = [np.shape(leaf)[own:] for leaf, own in zip(leaves, differs, strict=True)]
        rows = [shape[0] for shape in shapes if shape]
        return max([1, *rows, *(math.prod(shape) for shape, own in zip(shapes, differs, strict=True) if own)])

    def take(self, rows: Any) -> "Dataset":
        """Some of many data sets: a slice, or an array of numbers or of truths."""
        return replace(self._indexed(rows), size=len(np.arange(self.size or 0)[rows]), differs=self.differs)

    def one(self, row: int) -> "Dataset":
        """One of many data sets."""
        return self._indexed(row)

    def _indexed(self, rows: Any) -> "Dataset":
        leaves, treedef = jax.tree.flatten(self.parts)
        own = [leaf[rows] if differs else leaf for leaf, differs in zip(leaves, self.differs, strict=True)]
        return Dataset(*jax.tree.unflatten(treedef, own))


def check_dataset(model: Model, data: PyTree, given: PyTree, weights: Any, caller: str) -> Dataset:
    """One data set; raise where leaves disagree about n or weights do not fit. Python lists become arrays."""
    data = as_arrays(data)
    given = None if given is None else as_arrays(given)
    if not jax.tree.leaves(data):
        raise ValueError(f"{caller}: data holds no array. Give the observations, with a leading axis of length n.")
    if not model.is_dependent:
        _common_length({"data": data, "given": given}, caller)
    if weights is not None:
        weights = _check_weights(weights, model, data, caller)
    return Dataset(data, given, weights)


def check_datasets(
    model: Model, data: PyTree, given: PyTree, weights: Any, axes: tuple[Any, Any, Any], num_starts: int
) -> Dataset:
    """Many data sets, whose axes over them are given as for `jax.vmap`; where all of it is shared, one for each start."""
    named = {
        "data": as_arrays(data),
        "given": None if given is None else as_arrays(given),
        "weights": None if weights is None else as_arrays(weights),
    }
    marks = [axis_of_each(tree, axis, name) for (name, tree), axis in zip(named.items(), axes, strict=True)]
    moved = [axis_first(tree, mark) for tree, mark in zip(named.values(), marks, strict=True)]
    _check_not_flat(model, moved[0], marks[0])
    size = common_size({name: (tree, mark) for (name, tree), mark in zip(named.items(), marks, strict=True)})
    size = size or num_starts
    if not size:
        raise ValueError(f"{CALLER}: every axis is None, so there is one data set only. Use fit.")
    first, given, weights = (first_of(tree, mark) for tree, mark in zip(moved, marks, strict=True))
    if weights is not None and marks[2].number is not None:
        weights = np.ones_like(weights)  # a bad weight is that data set's own trouble
    check_dataset(model, first, given, weights, CALLER)
    differs = tuple(mark.number is not None for mark in jax.tree.leaves(marks))
    leaves, treedef = jax.tree.flatten(tuple(moved))
    kept = [at_hand(leaf) if own else leaf for leaf, own in zip(leaves, differs, strict=True)]
    return Dataset(*jax.tree.unflatten(treedef, kept), size=size, differs=differs)


def on_device(leaf: Any) -> bool:
    """Whether an array lies in the memory of one device, and not the CPU's, where it should stay."""
    return isinstance(leaf, jax.Array) and [device.platform != "cpu" for device in leaf.devices()] == [True]


def at_hand(leaf: Any) -> Any:
    """An array of numpy, or one that lies on a device as it is."""
    return leaf if on_device(leaf) else np.asarray(leaf)


def check_given(model: Model, given: PyTree, caller: str) -> PyTree:
    """Covariates as arrays with one leading axis; those of a series come as they are."""
    if given is None:
        return None
    given = as_arrays(given)
    if not model.is_dependent:
        _common_length({"given": given}, caller)
    return given


def as_arrays(tree: PyTree) -> PyTree:
    if isinstance(tree, list | tuple) and not hasattr(tree, "_fields") and _is_numbers(tree):
        return np.asarray(tree)
    return jax.tree.map(_as_array, tree)


def _is_numbers(tree: Any) -> bool:
    if isinstance(tree, list | tuple):
        return all(_is_numbers(item) for item in tree)
    return isinstance(tree, bool | int | float | np.number)


def _as_array(leaf: Any) -> Any:
    """An array of numbers as JAX will hold it without loss."""
    if isinstance(leaf, jax.Array):
        return leaf
    array = np.asarray(leaf)
    if array.dtype.kind not in "biufcV":
        raise TypeError(
            f"data: expected arrays of numbers, got {type(leaf).__name__} of dtype {array.dtype}. "
            "Encode text and categories as numbers first."
        )
    narrow = jax.dtypes.canonicalize_dtype(array.dtype)
    narrowed = array.dtype.kind in "iu" and narrow != array.dtype and array.size > 0
    if narrowed and (array.max() > np.iinfo(narrow).max or array.min() < np.iinfo(narrow).min):
        raise ValueError(
            f"data: integers from {array.min()} to {array.max()} do not fit {narrow}, which is what JAX holds them in unless "
            "x64 is enabled. Enable it, or give them as floating numbers."
        )
    return array


def _common_length(trees: dict[str, PyTree], caller: str) -> int:
    lengths = {}
    for root, tree in trees.items():
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            name = f"{root} {path_name(path)}" if path else root
            if leaf.ndim == 0:
                raise ValueError(f"{caller}: {name} is a scalar; expected a leading axis of length n, one row each.")
            lengths[name] = leaf.shape[0]
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise ValueError(
            f"{caller}: the leading axes of data and given differ ({said}). "
            "All leaves need the same length n, one row for each observation."
        )
    n = next(iter(lengths.values()))
    if n == 0:
        raise ValueError(f"{caller}: data has no observations (leading axis of length 0).")
    return n


def _check_weights(weights: Any, model: Model, data: PyTree, caller: str) -> Any:
    weights = _as_array(weights)
    n = None if model.is_dependent else jax.tree.leaves(data)[0].shape[0]
    if weights.ndim != 1 or (n is not None and weights.shape[0] != n):
        expected = f"({n},)" if n is not None else "(number of terms,)"
        raise ValueError(
            f"{caller}: weights has shape {weights.shape}, expected {expected}, one weight per observation."
        )
    if not isinstance(weights, jax.core.Tracer):
        host = np.asarray(weights)
        if not np.all(np.isfinite(host)) or np.any(host < 0):
            worst = int(np.argmax(~(np.isfinite(host) & (host >= 0))))
            raise ValueError(
                f"{caller}: weights must be finite and not negative; weights[{worst}] is {host[worst]}. "
                "A weight of zero leaves an observation out."
            )
    return weights


def _check_not_flat(model: Model, data: PyTree, marks: PyTree) -> None:
    for leaf, mark in zip(jax.tree.leaves(data), jax.tree.leaves(marks), strict=True):
        if mark.number is not None and np.ndim(leaf) == 1 and not model.is_dependent:
            raise ValueError(
                f"{CALLER}: data of shape {np.shape(leaf)} needs an axis over the data sets and one over the observations, "
                "(B, n) by default. For one data set use fit."
            )


def _is_none(leaf: Any) -> bool:
    return leaf is None


def axis_of_each(tree: PyTree, axis: Any, name: str) -> PyTree:
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


@dataclass(frozen=True)
class _Axis:
    """An axis or `None`, so that a tree of them has a leaf everywhere."""

    number: int | None


def axis_first(tree: PyTree, marks: PyTree) -> PyTree:
    def move(leaf: Any, mark: _Axis) -> Any:
        if mark.number is None:
            return leaf
        if not -np.ndim(leaf) <= mark.number < np.ndim(leaf):
            raise ValueError(
                f"{CALLER}: an array of shape {np.shape(leaf)} has no axis {mark.number} over the data sets. "
                "Data, weights and starts for each data set need that axis; what all share is given axis None."
            )
        leaf = at_hand(leaf)
        return namespace(leaf).moveaxis(leaf, mark.number, 0)

    return None if tree is None else jax.tree.map(move, tree, marks)


def common_size(parts: dict[str, tuple[PyTree, PyTree]]) -> int:
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


def first_of(tree: PyTree, marks: PyTree) -> PyTree:
    if tree is None:
        return None
    return jax.tree.map(lambda leaf, mark: leaf if mark.number is None else leaf[0], tree, marks)
