"""Groups of rows, each a data set: one model for each gene, station or firm of a table."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from fisher_jax.errors import names_in
from fisher_jax.fitting.padding import FILLING
from fisher_jax.input_arrays import as_labels
from fisher_jax.models.dataset import as_arrays
from fisher_jax.models.parameters import path_name
from fisher_jax.tables import Table, describe_missing, is_table, missing_in

WASTE = 4  # padded rows for each row, beyond which data sets of different lengths are fitted in classes


class Groups(NamedTuple):
    """The labels of the groups in their order, (G,), and the rows of each."""

    labels: np.ndarray
    rows: list[np.ndarray]

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(rows) for rows in self.rows])

    @property
    def is_padded(self) -> bool:
        """Whether the groups become one batch, filled up to the longest."""
        size, total = int(self.lengths.max()), int(self.lengths.sum())
        return size * len(self.rows) <= WASTE * total + FILLING

    def padded(self) -> np.ndarray:
        """The rows of each group (G, longest), its last row again where it has fewer."""
        size = int(self.lengths.max())
        return np.stack([np.concatenate([rows, np.repeat(rows[-1:], size - len(rows))]) for rows in self.rows])


def groups_of(keys: Sequence[Any]) -> Groups:
    """The groups of rows whose labels agree, in the order of the labels; several labels of a row are put in one text."""
    columns = [as_labels(key, "by") for key in keys]
    shapes = {column.shape for column in columns}
    if len(shapes) > 1 or columns[0].ndim != 1 or columns[0].size == 0:
        raise ValueError(
            f"by has labels of shape {', '.join(map(str, shapes))}; expected (n,), one label for each observation."
        )
    try:
        each = [np.unique(column, return_inverse=True) for column in columns]
    except TypeError as error:
        raise TypeError(
            "by has labels of several types, which have no order. Give all of one type, as text."
        ) from error
    unique, codes = each[0]
    if len(columns) > 1:
        # Groups are distinguished by the labels themselves and not by their text, which "a, b" and "c" share with "a" and "b, c".
        combinations, codes = np.unique(np.stack([codes for _, codes in each]), axis=1, return_inverse=True)
        texts = [labels.astype(str)[index] for (labels, _), index in zip(each, combinations, strict=True)]
        unique = np.array([", ".join(row) for row in zip(*texts, strict=True)])
        by_text = np.argsort(unique, kind="stable")
        unique, codes = unique[by_text], np.argsort(by_text)[codes]
    order = np.argsort(codes, kind="stable")  # the rows of each group in their order
    ends = np.cumsum(np.bincount(codes))[:-1]
    unique = np.array([str(label) for label in unique]) if unique.dtype == object else unique
    printed, counts = np.unique(unique, return_counts=True)
    if np.any(counts > 1):
        raise ValueError(
            f"by has different groups with the same label {str(printed[np.argmax(counts)])!r}. Rename them."
        )
    return Groups(unique, np.split(order, ends))


def take_labels(by: Any, parts: dict[str, Any]) -> tuple[Groups, dict[str, Any], Table | None]:
    """The groups that `by` makes, the data without the columns that it names, and the table that these come from.

    Parameters
    ----------
    by : str, sequence of str, or array (n,)
        Columns of the first table among `parts`, or the labels themselves.
    parts : dict
        data, given and weights.
    """
    names = names_in(by) if not isinstance(by, np.ndarray) else []
    tables = {name: Table(part, name) for name, part in parts.items() if is_table(part)}
    rows = max((len(table) for table in tables.values()), default=None)
    if not names or (
        rows is not None and len(names) == rows and not set(names) <= set(next(iter(tables.values())).names)
    ):
        return groups_of([by]), parts, next(iter(tables.values()), None)
    if not tables:
        raise ValueError(
            f"by={by!r} names a column, but neither data nor given is a table. Give a table, or the labels themselves as an array."
        )
    keys, parts = [], dict(parts)
    for name in names:
        owner = next((part for part, table in tables.items() if name in table.names), next(iter(tables)))
        series = tables[owner].series(name, ", by which the groups are made")
        places = missing_in(series)
        if places.any():
            raise ValueError(describe_missing({name: places}, owner, len(places)))
        keys.append(series.to_numpy())
    for part, table in tables.items():
        parts[part] = table.without(names)
    return groups_of(keys), parts, next(iter(tables.values()))


def split_groups(
    groups: Groups, data: PyTree, given: PyTree, weights: Any, *, as_list: bool
) -> tuple[PyTree, PyTree, Any, int | None]:
    """Data, covariates and weights with an axis over the groups, or as lists of data sets; and the axis of the covariates.

    Covariates that are the same in every group are shared: a regression on a common design is then made of matrix products.
    """
    n = int(groups.lengths.sum())
    data, given = as_arrays(data, "data"), as_arrays(given, "given")
    for name, part in (("data", data), ("given", given), ("weights", weights)):
        for path, leaf in jax.tree_util.tree_flatten_with_path(part)[0]:
            if np.ndim(leaf) == 0 or len(leaf) != n:
                part_name = f"{name} {path_name(path)}" if path else name
                raise ValueError(f"{part_name} has shape {np.shape(leaf)}, but by has {n} labels, one for each row.")
    if as_list:
        each = [jax.tree.map(lambda leaf: leaf[rows], (data, given, weights)) for rows in groups.rows]  # noqa: B023
        of_data, of_given, of_weights = (list(parts) for parts in zip(*each, strict=True))
        return of_data, None if given is None else of_given, None if weights is None else of_weights, None
    rows, lengths = groups.padded(), groups.lengths
    stacked = jax.tree.map(lambda leaf: leaf[rows], data)
    if given is not None:
        moved = jax.tree.map(lambda leaf: leaf[rows], given)
        same = all(np.array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape)) for leaf in jax.tree.leaves(moved))
        shared = same and not any(isinstance(leaf, np.ma.MaskedArray) for leaf in jax.tree.leaves(moved))
        given = jax.tree.map(lambda leaf: leaf[0], moved) if shared else moved
    axis = None if given is None or shared else 0
    counts = np.arange(rows.shape[1]) < lengths[:, None]
    if weights is not None:
        weights = np.asarray(weights)[rows] * counts
    elif not counts.all():
        weights = counts.astype(float)
    return stacked, given, weights, axis
