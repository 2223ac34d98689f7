"""`by_group`: a long table of rows as groups of rows, each an observation of a marginal model."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.errors import entry_point, names_in
from fisher_jax.fitting.groups import groups_of, split_groups, take_labels
from fisher_jax.models.dataset import as_unmasked_arrays


@jax.tree_util.register_pytree_node_class
class Grouped:
    """Rows in groups, filled up to the longest; a pytree. Made by `by_group`.

    Attributes
    ----------
    rows : pytree
        What was grouped, each array (G, m, …): G groups of m rows. Of one group, as a joint density gets it, (m, …).
    weights : array (G, m)
        1 for a row, 0 for one that only fills up a group; of one group (m,).
    labels : array (G,) or None
        The labels of the groups, in their order; not a part of the pytree.
    is_filled : bool
        Whether any weight may be other than 1, so that the rows must not be used without their weights.

    Examples
    --------
    >>> import fisher_jax as fj
    >>> visits = fj.by_group({"clinic": ["a", "a", "b"], "patients": [3.0, 5.0, 2.0]}, "clinic")
    >>> print(visits["patients"].rows.tolist(), visits.weights.tolist(), visits.labels)
    [[3.0, 5.0], [2.0, 2.0]] [[1.0, 1.0], [1.0, 0.0]] ['a' 'b']
    """

    rows: PyTree
    weights: Float[Array, "*G m"]
    labels: np.ndarray | None

    holds_data = True  # and may be passed where arrays are

    def __init__(self, rows: PyTree, weights: Any, labels: Any = None) -> None:
        self.rows, self.weights, self.labels = rows, weights, labels
        self.is_filled = isinstance(weights, jax.core.Tracer) or bool(np.any(np.asarray(weights) != 1))

    def __getitem__(self, name: Any) -> "Grouped":
        """The columns of that name, or of several, in the same groups."""
        rows = {key: self.rows[key] for key in name} if isinstance(name, list | tuple) else self.rows[name]
        new = Grouped.tree_unflatten(self.is_filled, (rows, self.weights))
        new.labels = self.labels
        return new

    def with_weights(self, weights: Any) -> "Grouped":
        """The same rows with other weights."""
        return Grouped(self.rows, weights, self.labels)

    def total(self, terms: Float[Array, " m"]) -> Float[Array, ""]:
        """The sum of terms over the rows of one group, without those that only fill it up."""
        return jnp.sum(jnp.where(self.weights == 0, 0, self.weights * terms))

    def tree_flatten(self) -> tuple[tuple[PyTree, Any], bool]:
        return (self.rows, self.weights), self.is_filled

    @classmethod
    def tree_unflatten(cls, is_filled: bool, children: tuple[PyTree, Any]) -> "Grouped":
        new = object.__new__(cls)  # whose parts may be anything that JAX puts in the place of arrays
        (new.rows, new.weights), new.labels, new.is_filled = children, None, is_filled
        return new

    def __repr__(self) -> str:
        shape = np.shape(self.weights)
        return f"Grouped({' groups of up to '.join(map(str, shape))} rows)"


@entry_point
def by_group(table: PyTree, by: Any) -> Grouped:
    """The rows of a long table in groups: what `fit` takes as data and covariates of a model with latent effects.

    Parameters
    ----------
    table : table, or pytree of arrays (n, …)
        A table of pandas, polars or pyarrow, a dictionary of columns, or any pytree of arrays with one row for each observation.
    by : str, sequence of str, or array (n,)
        The column, or the columns, whose values make the groups, which is then left out of the rows; or labels. An empty list
        puts all rows in one group.

    Returns
    -------
    Grouped
        With arrays (G, m, …), the groups in the order of their labels, and weights (G, m) that are 0 where a group has fewer
        than m rows: its last row is repeated there.

    Raises
    ------
    ValueError, TypeError
        If columns are missing or have missing values, or lengths differ.

    Examples
    --------
    >>> import fisher_jax as fj
    >>> visits = fj.by_group({"clinic": ["a", "a", "b"], "patients": [3.0, 5.0, 2.0]}, "clinic")
    >>> visits
    Grouped(2 groups of up to 2 rows)

    With a column of the counts and one of the weeks a fit is ``fit(model, start, visits["count"], given=visits["week"])``.
    """
    names = [] if isinstance(by, np.ndarray) else names_in(by)
    if isinstance(by, list | tuple) and not len(by):
        arrays = as_unmasked_arrays(table, "table")
        lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(arrays)}
        if len(lengths) != 1 or () in lengths or (0,) in lengths:
            raise ValueError(
                f"table has columns of lengths {sorted(lengths)}; expected one row or more, as many in each."
            )
        weights = np.ones((1, *lengths.pop()))
        return Grouped(jax.tree.map(lambda leaf: np.asarray(leaf)[None], arrays), weights, np.array(["all rows"]))
    if isinstance(table, dict) and names and set(names) <= set(table):
        groups = groups_of([table[name] for name in names])
        rest = {name: column for name, column in table.items() if name not in names}
    elif isinstance(table, dict) and isinstance(by, str):
        raise ValueError(f"by={by!r} is no column of the table, which has {', '.join(map(str, table))}.")
    else:
        groups, parts, _ = take_labels(by, {"table": table})
        rest = parts["table"]
    if isinstance(rest, dict):  # whose columns may be lists
        rest = {name: np.asarray(column) if isinstance(column, list) else column for name, column in rest.items()}
    rows = as_unmasked_arrays(rest, "table")
    arrays, _, weights, _ = split_groups(groups, rows, None, None, as_list=False)
    if weights is None:
        weights = np.ones((len(groups.rows), int(groups.lengths.max())))
    return Grouped(arrays, weights, groups.labels)
