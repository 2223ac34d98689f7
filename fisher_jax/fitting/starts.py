"""Where many fits begin: start parameters, one for all or one for each, and the data sets. What `fit_batch` checks."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.fitting.maximization import start_at
from fisher_jax.models.constraints import Interval, Unconstrained
from fisher_jax.models.dataset import Dataset, axis_first, axis_of_each, common_size, first_of
from fisher_jax.models.likelihood import term_of, terms_at_once
from fisher_jax.models.model import Model, check_start, flatten_parameters, jit_with_model, starting_parameters
from fisher_jax.models.parameters import Layout, Values, merge, split_by, typed

Leaves = list[Any]
BLOCK, BLOCK_ENTRIES = 4096, 2**22  # data sets whose starts are computed at once, and entries of theirs


@dataclass(frozen=True)
class Starts:
    """The starts u (B, p) of many fits, the array leaves of their parameters, and their data sets.

    `values_differ` says which leaves have an axis over the fits. Those of estimated parameters repeat u.
    """

    layout: Layout
    free: np.ndarray
    values: Values
    values_differ: tuple[bool, ...]
    dataset: Dataset

    def __len__(self) -> int:
        return len(self.free)

    @property
    def own(self) -> Leaves:
        """The starts, and then every array that differs among the fits."""
        return [self.free, *map(np.asarray, split_by(self.mapped, self._leaves)[0])]

    @property
    def shared(self) -> Leaves:
        """The arrays that are common to all."""
        return split_by(self.mapped, self._leaves)[1]

    @property
    def mapped(self) -> tuple[bool, ...]:
        """For each leaf of (values, data, given, weights), whether it differs among the fits."""
        return self.values_differ + self.dataset.differs

    @property
    def treedef(self) -> Any:
        """What puts (values, data, given, weights) together."""
        return jax.tree.structure((self.values, *self.dataset.parts))

    @property
    def _leaves(self) -> Leaves:
        return jax.tree.leaves((self.values, *self.dataset.parts))

    @property
    def entries(self) -> int:
        """The number of entries of the largest array that is one fit's own."""
        own, _ = split_by(self.values_differ, self.values)
        return max([self.dataset.entries, self.layout.num_free, *(int(np.prod(np.shape(leaf)[1:])) for leaf in own)])

    def take(self, rows: Any) -> "Starts":
        """Some of the fits."""
        values = [leaf[rows] if own else leaf for leaf, own in zip(self.values, self.values_differ, strict=True)]
        return replace(self, free=self.free[rows], values=values, dataset=self.dataset.take(rows))

    def started_at(self, free: np.ndarray) -> "Starts":
        """The same from other starts (B, p)."""
        return replace(self, free=np.asarray(free, self.layout.dtype))

    def in_float64(self) -> "Starts":
        """The same with parameters in float64."""
        return replace(self, layout=replace(self.layout, dtype=np.dtype(np.float64))).started_at(self.free)


def starts_of(model: Model, params: PyTree, axis: Any, dataset: Dataset) -> Starts:
    """Check and flatten the start parameters of many fits; where there are none, those of the model's `initial`."""
    assert dataset.size is not None
    if params is None:
        data, given, _ = dataset.one(0).parts
        params = starting_parameters(model, None, data, given)
        layout, values = flatten_parameters(model, params)
        _check_something_free(layout)
        values, free = _of_initial(model, layout, dataset)
        return Starts(layout, free, values, (True,) * len(values), dataset)
    marked = axis_of_each(params, axis, "params")
    layout, _ = flatten_parameters(model, first_of(axis_first(params, marked), marked))
    _check_something_free(layout)
    marks = layout.blocks(marked)
    blocks = typed(layout, layout.blocks(params))
    values = [axis_first(block, mark) for block, mark in zip(blocks, marks, strict=True)]
    differ = tuple(mark.number is not None for mark in jax.tree.leaves(marks))
    return Starts(layout, _starts(layout, values, differ, dataset.size), values, differ, dataset)


def num_starts(params: PyTree, axis: Any) -> int:
    """How many fits `params` has starts for; zero where it has one for all."""
    return common_size({"params": (params, axis_of_each(params, axis, "params"))})


def check_starts(model: Model, params: PyTree, axis: Any, dataset: Dataset, count: int) -> None:
    """Raise for starting parameters of another number of data sets; and for one of each where one for all was announced.

    `dataset` is one of the data sets.
    """
    marked = axis_of_each(params, axis, "params")
    axis_first(params, marked)
    size = common_size({"params": (params, marked)})
    if size not in (0, count):
        raise ValueError(
            f"params has starts for {size} data sets, but there are {count}. "
            "Give one start for each, or one for all with params_axis=None."
        )
    # A stack of starts taken for one start would have as many parameters as all fits together, and matrices of their square.
    leaves, treedef = jax.tree.flatten(params)
    each = [hasattr(leaf, "dtype") and np.ndim(leaf) > 0 and np.shape(leaf)[0] == count for leaf in leaves]
    if size or not any(each) or _accepts(model, params, dataset):
        return
    first = [leaf[0] if own else leaf for leaf, own in zip(leaves, each, strict=True)]
    if _accepts(model, jax.tree.unflatten(treedef, first), dataset):
        axes = 0 if all(each) else jax.tree.unflatten(treedef, [0 if own else None for own in each])
        shapes = ", ".join(str(np.shape(leaf)) for leaf, own in zip(leaves, each, strict=True) if own)
        raise ValueError(
            f"params holds arrays of shape {shapes}, and there are {count} data sets. As one start for all, which "
            "params_axis=None means, the density does not accept it; as one start for each it does. "
            f"Give params_axis={axes}."
        )


def _accepts(model: Model, params: PyTree, dataset: Dataset) -> bool:
    """Whether the density makes of these parameters one number for an observation, or terms of a series."""
    data, given, _ = dataset.parts
    try:
        if model.is_dependent:
            jax.eval_shape(lambda y, *z: terms_at_once(model, params, y, z), data, *_if_any(given))
        else:
            y, z = jax.tree.map(lambda leaf: leaf[0], (data, _if_any(given)))
            jax.eval_shape(lambda y, *z: term_of(model, params, y, z), y, *z)
    except (TypeError, ValueError, IndexError, ZeroDivisionError):
        return False
    return True


def _if_any(given: PyTree) -> tuple[PyTree, ...]:
    return () if given is None else (given,)


def rows_of(params: PyTree, axis: Any, rows: Any) -> PyTree:
    """The starting parameters of some data sets, or of one."""

    def take(leaf: Any, mark: Any) -> Any:
        return leaf if mark.number is None else np.take(np.asarray(leaf), rows, axis=mark.number)

    return None if params is None else jax.tree.map(take, params, axis_of_each(params, axis, "params"))


def _check_something_free(layout: Layout) -> None:
    if layout.num_free == 0:
        raise ValueError("every parameter is fixed, so there is nothing to estimate. Use log_likelihood.")


def initial_starts(model: Model, starts: Starts) -> np.ndarray:
    """u of what the model's `initial` makes of each data set (B, p); NaN where that lies outside its constraint."""
    return _of_initial(model, starts.layout, starts.dataset)[1]


def _of_initial(model: Model, layout: Layout, dataset: Dataset) -> tuple[Values, np.ndarray]:
    leaves, treedef = jax.tree.flatten(dataset.parts)
    own, shared = split_by(dataset.differs, leaves)
    assert dataset.size is not None
    if not own:  # one data set for all
        data, given, _ = dataset.parts
        params = starting_parameters(model, None, data, given)
        values = [np.asarray(value) for value in layout.blocks(params)]
        repeated = lambda x: np.broadcast_to(x, (dataset.size, *np.shape(x)))  # noqa: E731
        return [repeated(value) for value in values], repeated(np.asarray(start_at(layout, values)))
    return _by_block(lambda own: _initial(model, layout, treedef, dataset.differs, own, shared), own, dataset.size)


@functools.partial(jit_with_model, static_argnums=(0, 1, 2, 3))
def _initial(
    model: Model, layout: Layout, treedef: Any, differs: tuple[bool, ...], own: Leaves, shared: Leaves
) -> tuple[Values, Float[Array, "R p"]]:
    """The leaves of what the model's `initial` makes of each data set, and their u."""

    def one(own: Leaves) -> tuple[Values, Array]:
        data, given, _ = jax.tree.unflatten(treedef, merge(differs, own, shared))
        params = starting_parameters(model, None, data, given)
        free = {i for i, _ in layout.free_leaves}
        blocks = enumerate(layout.blocks(params))
        values = [jnp.asarray(value, layout.dtype if i in free else None) for i, value in blocks]
        return values, start_at(layout, values)

    return jax.vmap(one)(own)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _unconstrained(layout: Layout, mapped: tuple[bool, ...], own: Leaves, shared: Leaves) -> Float[Array, "R p"]:
    return jax.vmap(lambda own: start_at(layout, merge(mapped, own, shared)))(own)


def _by_block(function: Callable[[Leaves], Any], own: Leaves, size: int) -> Any:
    """A mapped function over all rows, a block of one size at a time."""
    entries = max(int(np.prod(leaf.shape[1:])) for leaf in own)
    block = min(BLOCK, 1 << (size - 1).bit_length(), max(1, BLOCK_ENTRIES // max(entries, 1)))
    parts = []
    for start in range(0, size, block):
        rows = np.minimum(np.arange(start, start + block), size - 1)
        parts.append(jax.device_get(function([leaf[rows] for leaf in own])))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:size], *parts)


def finite_rows(rows: np.ndarray) -> np.ndarray:
    """Whether each row holds finite numbers only."""
    finite = np.isfinite(rows)
    return np.ones(len(rows), bool) if finite.all() else finite.all(axis=1)


def _starts(layout: Layout, values: Values, mapped: tuple[bool, ...], size: int) -> np.ndarray:
    """u at the start of each fit (B, p); NaN where it lies outside its constraint."""
    own, shared = split_by(mapped, values)
    if own and all(isinstance(leaf.constraint, Interval | Unconstrained) for _, leaf in layout.free_leaves):
        # What lies outside such a range has no logarithm, so that numpy can tell by itself, and nothing is compiled.
        whole = [
            np.asarray(value) if differs else np.broadcast_to(np.asarray(value), (size, *np.shape(value)))
            for value, differs in zip(values, mapped, strict=True)
        ]
        free = np.asarray(layout.unconstrain(whole))
        whole_rows = finite_rows(free)
        return free if whole_rows.all() else np.where(whole_rows[:, None], free, np.nan)
    if own:
        return _by_block(lambda own: _unconstrained(layout, mapped, own, shared), own, size)
    check_start(layout, values)
    return np.broadcast_to(np.asarray(layout.unconstrain(values)), (size, layout.num_free))
