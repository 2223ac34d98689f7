"""Data sets of different lengths: sorted into a few sizes, filled up, and what fills them given weight zero."""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from fisher_jax.models.dataset import CALLER, Dataset, as_arrays, check_dataset
from fisher_jax.models.model import Model, starting_parameters

FILLING = 2**20  # rows that take about as long to fit as a program to compile


def is_ragged(data: Any) -> bool:
    """A list holds one entry for each data set; several arrays of one data set are a tuple or a dictionary."""
    return isinstance(data, list)


def size_classes(
    model: Model, params: PyTree, data: list[Any], given: PyTree, weights: Any
) -> Iterator[tuple[np.ndarray, Dataset]]:
    """The data sets in classes of sizes 2, 3, 4, 6, 8, 12, …, as few as pay: which they are, and their arrays filled up.

    `given` and `weights` are lists as `data` is; of series `given` may be what all share. `params` are those of one data set.
    """
    entries = [as_arrays(entry) for entry in data]
    count = len(entries)
    differs = is_ragged(given) or (given is not None and not model.is_dependent)
    givens = _entries(given, count, "given") if differs else None
    given = None if given is None or differs else as_arrays(given)
    weights = _entries(weights, count, "weights") if weights is not None else [None] * count
    lengths = np.array([_length(k, entry) for k, entry in enumerate(entries)])
    if givens is not None and not model.is_dependent:
        _check_givens(givens, lengths)
    sizes = _merged(np.array([class_size(int(n)) for n in lengths]))
    for size in np.unique(sizes):
        rows = np.flatnonzero(sizes == size)
        stack = _stacked([_filled(entries[k], int(size), int(lengths[k])) for k in rows])
        if givens is not None:
            given = _stacked([_filled(givens[k], int(size), int(lengths[k])) for k in rows])
        one_given = given if givens is None else jax.tree.map(lambda leaf: leaf[0], given)
        terms = _num_terms(model, params, jax.tree.map(lambda leaf: leaf[0], stack), one_given, int(size))
        counted = [_weights(weights[k], terms - int(size) + int(lengths[k]), terms, int(k)) for k in rows]
        own = [True] * len(jax.tree.leaves(stack)) + [givens is not None] * len(jax.tree.leaves(given)) + [True]
        yield rows, Dataset(stack, given, np.stack(counted), size=len(rows), differs=tuple(own))


def _entries(trees: Any, count: int, name: str) -> list[PyTree]:
    if not isinstance(trees, list) or len(trees) != count:
        what = f"a list of {len(trees)}" if isinstance(trees, list) else type(trees).__name__
        raise ValueError(
            f"{CALLER}: data is a list of {count} data sets, so {name} must be a list of {count} too, one entry for each; "
            f"got {what}."
        )
    return [as_arrays(tree) for tree in trees]


def _check_givens(givens: list[PyTree], lengths: np.ndarray) -> None:
    for k, (given, length) in enumerate(zip(givens, lengths, strict=True)):
        rows = [np.shape(leaf)[0] if np.ndim(leaf) else 0 for leaf in jax.tree.leaves(given)]
        if any(count != length for count in rows):
            raise ValueError(
                f"{CALLER}: given[{k}] has {rows[0]} rows, but data[{k}] has {length}; one row for each observation."
            )


def each_initial(model: Model, data: list[Any], given: PyTree) -> PyTree:
    """What the model's `initial` makes of each data set as it is, with a leading axis."""
    givens = given if is_ragged(given) else [given] * len(data)
    starts = [
        starting_parameters(model, None, as_arrays(one), own, CALLER) for one, own in zip(data, givens, strict=True)
    ]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *starts)


def _length(number: int, entry: PyTree) -> int:
    lengths = {np.shape(leaf)[0] if np.ndim(leaf) else -1 for leaf in jax.tree.leaves(entry)}
    if len(lengths) != 1 or -1 in lengths:
        raise ValueError(
            f"{CALLER}: data[{number}] holds arrays of shapes {[np.shape(leaf) for leaf in jax.tree.leaves(entry)]}; "
            "those of one data set need the same leading axis, one row for each observation."
        )
    return lengths.pop()


def class_size(length: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, …: at most half as long again."""
    power = 2 << (max(length, 2) - 1).bit_length() - 1
    return 3 * power // 4 if length <= 3 * power // 4 else power


def _merged(sizes: np.ndarray) -> np.ndarray:
    """Each class joins the next larger one if to fill it up costs less than to compile for it: `FILLING` rows."""
    sizes, classes = sizes.copy(), np.unique(sizes)
    for size, larger in itertools.pairwise(classes):
        mine = sizes == size
        if mine.sum() * (larger - size) <= FILLING:
            sizes[mine] = larger
    return sizes


def _filled(tree: PyTree, size: int, length: int) -> PyTree:
    """The last row again and again, ones where there is none; what has no row for each observation as it is."""

    def fill(leaf: np.ndarray) -> np.ndarray:
        leaf = np.asarray(leaf)
        if leaf.ndim == 0 or len(leaf) != length:
            return leaf
        last = leaf[-1:] if len(leaf) else np.ones((1, *leaf.shape[1:]), leaf.dtype)
        return np.concatenate([leaf, np.repeat(last, size - len(leaf), axis=0)])

    return jax.tree.map(fill, tree)


def _stacked(trees: list[PyTree]) -> PyTree:
    try:
        return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
    except ValueError as error:
        raise ValueError(
            f"{CALLER}: the data sets of a list must be alike but for their number of observations: the same pytree, and the "
            f"same shape of one observation. ({error})"
        ) from error


def _num_terms(model: Model, params: PyTree, data: PyTree, given: PyTree, size: int) -> int:
    """How many log-densities a data set of this size has: one for each row, but of a series what its function returns."""
    if not model.is_dependent:
        check_dataset(model, data, given, None, CALLER)
        return size
    params = starting_parameters(model, params, data, given, CALLER)
    arguments = (params, data) if given is None else (params, data, given)
    return jax.eval_shape(model.log_density, *arguments).shape[0]


def _weights(weights: Any, count: int, terms: int, number: int) -> np.ndarray:
    """The weights of a data set's own terms, and zeros for the rest."""
    own = np.ones(max(count, 0)) if weights is None else np.asarray(weights, float)
    if own.shape != (max(count, 0),):
        raise ValueError(
            f"{CALLER}: weights[{number}] has shape {own.shape}, expected ({count},), one weight per observation."
        )
    return np.concatenate([own, np.zeros(terms - len(own))])
