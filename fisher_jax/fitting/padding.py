"""Ragged data: data sets of different lengths, sorted into a few sizes and padded up to these by rows of weight zero."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from fisher_jax.input_arrays import as_weights
from fisher_jax.models.dataset import (
    Dataset,
    as_arrays,
    check_dataset,
    check_labels,
    pad,
    place_measured,
    without_masks,
)
from fisher_jax.models.model import Model, starting_parameters
from fisher_jax.models.parameters import in_key_order, key_order

FILLING = 2**20  # rows that take about as long to fit as a program to compile


def is_ragged(data: Any) -> bool:
    """A list holds one entry for each data set; several arrays of one data set are a tuple or a dictionary."""
    return isinstance(data, list)


class DataSets(NamedTuple):
    """A list of data sets, with arrays in every entry, and how many rows each has.

    `weights` is a list too, or None; `given` a list, or what all share, which it may be of series only; `num_masked` counts
    for each data set as in `Dataset`.
    """

    lengths: np.ndarray
    data: list[PyTree]
    given: PyTree
    weights: list[Any] | None
    num_masked: np.ndarray | None

    def one(self, number: int) -> Dataset:
        """One of them, without its weights."""
        return Dataset(self.data[number], self.given[number] if is_ragged(self.given) else self.given)


def check_list(model: Model, data: list[Any], given: PyTree, weights: Any) -> DataSets:
    """The list with arrays in every entry; rows in which an entry is masked have weight zero."""
    count = len(data)
    lengths = []
    shared = given is not None and model.is_dependent and not is_ragged(given)
    givens = [given] * count if shared or given is None else _same_number(given, count, "given")
    each_weights = [None] * count if weights is None else _same_number(weights, count, "weights")
    parts = []
    for k, (entry, given_k, weight) in enumerate(zip(data, givens, each_weights, strict=True)):
        entry, _ = place_measured(model, entry, None)
        name, given_name = f"data[{k}]", "given" if shared else f"given[{k}]"
        # What is missing in one data set is left to its status.
        arrays = as_arrays(entry, name, "keep"), as_arrays(given_k, given_name, "keep")
        check_labels({name: entry, given_name: given_k, f"weights[{k}]": weight}, (None, None, None))
        lengths_of_leaves = {np.shape(leaf)[0] if np.ndim(leaf) else -1 for leaf in jax.tree.leaves(arrays[0])}
        length = lengths_of_leaves.pop() if len(lengths_of_leaves) == 1 else -1
        if length == -1:
            raise ValueError(
                f"data[{k}] holds arrays of shapes {[np.shape(leaf) for leaf in jax.tree.leaves(arrays[0])]}; "
                "those of one data set need the same leading axis, one row for each observation."
            )
        lengths.append(length)
        if given_k is not None and not model.is_dependent:
            rows = [np.shape(leaf)[0] if np.ndim(leaf) else 0 for leaf in jax.tree.leaves(arrays[1])]
            if any(count != length for count in rows):
                raise ValueError(
                    f"given[{k}] has {rows[0]} rows, but data[{k}] has {length}; one row for each observation."
                )
        weight = None if weight is None else as_weights(weight, f"weights[{k}]")
        parts.append(without_masks(model, Dataset(*arrays, weight)))
    num_masked = None
    if any(part.num_masked is not None for part in parts):
        num_masked = np.array([part.num_masked or 0 for part in parts])
    return DataSets(
        np.array(lengths),
        [part.data for part in parts],
        parts[0].given if shared or given is None else [part.given for part in parts],
        None if all(part.weights is None for part in parts) else [part.weights for part in parts],
        num_masked,
    )


def size_classes(model: Model, params: PyTree, datasets: DataSets) -> Iterator[tuple[np.ndarray, Dataset]]:
    """The data sets in classes of sizes 2, 3, 4, 6, 8, 12, …, as few as pay: their numbers, and their arrays padded.

    `params` are those of one data set.
    """
    lengths, entries, given, _, num_masked = datasets
    givens = given if is_ragged(given) else None
    weights = datasets.weights or [None] * len(entries)
    sizes = np.array([class_size(int(n)) for n in lengths])
    # Each class joins the next larger one if padding it up costs less than to compile for it.
    for size, larger in itertools.pairwise(np.unique(sizes)):
        members = sizes == size
        if members.sum() * (larger - size) <= FILLING:
            sizes[members] = larger
    for size in np.unique(sizes):
        rows = np.flatnonzero(sizes == size)
        stack = _stacked([pad(entries[k], int(lengths[k]), int(size)) for k in rows])
        if givens is not None:
            given = _stacked([pad(givens[k], int(lengths[k]), int(size)) for k in rows])
        one_given = given if givens is None else jax.tree.map(lambda leaf: leaf[0], given)
        one_data = jax.tree.map(lambda leaf: leaf[0], stack)
        if not model.is_dependent:
            check_dataset(model, one_data, one_given, None)
        terms = count_terms(model, lambda: params, one_data, one_given)
        padded_weights = np.zeros((len(rows), terms))
        for row, k in enumerate(rows):
            count = max(terms - int(size) + int(lengths[k]), 0)
            each = np.ones(count) if weights[k] is None else np.asarray(weights[k], float)
            if each.shape != (count,):
                raise ValueError(
                    f"weights[{k}] has shape {each.shape}, expected ({count},), one weight per observation."
                )
            padded_weights[row, :count] = each
        differs = [True] * len(jax.tree.leaves(stack)) + [givens is not None] * len(jax.tree.leaves(given)) + [True]
        masked = None if num_masked is None else num_masked[rows]
        yield rows, Dataset(stack, given, padded_weights, size=len(rows), differs=tuple(differs), num_masked=masked)


def _same_number(trees: Any, count: int, name: str) -> list[Any]:
    """The list of what belongs to each data set."""
    if not isinstance(trees, list) or len(trees) != count:
        what = f"a list of {len(trees)}" if isinstance(trees, list) else type(trees).__name__
        raise ValueError(
            f"data is a list of {count} data sets, so {name} must be a list of {count} too, one entry for each; "
            f"got {what}."
        )
    return trees


def each_initial(model: Model, datasets: DataSets) -> PyTree:
    """What the model's `initial` makes of each data set as it is, with a leading axis."""
    each = map(datasets.one, range(len(datasets.data)))
    starts = [starting_parameters(model, None, one.data, one.given) for one in each]
    return in_key_order(jax.tree.map(lambda *leaves: np.stack(leaves), *starts), key_order(starts[0]))


def class_size(length: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, …: at most half as long again."""
    power = 2 << (max(length, 2) - 1).bit_length() - 1
    return 3 * power // 4 if length <= 3 * power // 4 else power


def _stacked(trees: list[PyTree]) -> PyTree:
    try:
        return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
    except ValueError as error:
        raise ValueError(
            f"the data sets of a list must be alike but for their number of observations: the same pytree, and the "
            f"same shape of one observation. ({error})"
        ) from error


def count_terms(model: Model, make_params: Callable[[], PyTree], data: PyTree, given: PyTree) -> int:
    """The number of log-densities of a data set: one for each row, but of a `dependent` model the length of what it returns."""
    if not model.is_dependent:
        return int(np.shape(jax.tree.leaves(data)[0])[0])
    arguments = (make_params(), data) if given is None else (make_params(), data, given)
    return int(jax.eval_shape(model.log_density, *arguments).shape[0])
