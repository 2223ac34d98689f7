"""What a program for many fits is compiled for, and where each array of a data set belongs."""

from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import PyTree

from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout

Leaves = list[Any]


@dataclass(frozen=True)
class Plan:
    """A model, its parameters, its optimiser, and how (values, data, given, weights) lie in flat lists. Hashable.

    `treedef` puts the four together again from all leaves; `mapped` says of each leaf whether the data sets differ in it;
    `num_terms` is the number of log-densities of a data set.
    """

    model: Model
    layout: Layout
    optimizer: Any
    treedef: Any
    mapped: tuple[bool, ...]
    num_terms: int

    def split(self, leaves: Leaves, *, own: bool) -> tuple[Leaves, Leaves]:
        """Of the leaves that differ (`own`) or that are shared: the fixed parameters, and the data with one row each."""
        numbers = [i for i, differs in enumerate(self.mapped) if differs == own]
        count, parameters = len(self.layout.leaves), self.layout.leaves
        fixed = [leaf for i, leaf in zip(numbers, leaves, strict=True) if i < count and parameters[i].is_fixed]
        return fixed, [leaf for i, leaf in zip(numbers, leaves, strict=True) if i >= count]

    def fixed(self, own: Leaves, shared: Leaves) -> Leaves:
        """All fixed parameters in order."""
        mine, common = iter(own), iter(shared)
        count = len(self.layout.leaves)
        return [
            next(mine) if differs else next(common)
            for differs, leaf in zip(self.mapped[:count], self.layout.leaves, strict=True)
            if leaf.is_fixed
        ]

    def values(self, fixed: Leaves) -> Leaves:
        """The parameters' leaves: the fixed ones as given, None for those that follow from u."""
        given = iter(fixed)
        return [next(given) if leaf.is_fixed else None for leaf in self.layout.leaves]

    def observations(self, own: Leaves, shared: Leaves) -> tuple[PyTree, PyTree, Any]:
        """Data, covariates and weights."""
        mine, common = iter(own), iter(shared)
        count = len(self.layout.leaves)
        rows = [next(mine) if differs else next(common) for differs in self.mapped[count:]]
        _, data, given, weights = jax.tree.unflatten(self.treedef, [None] * count + rows)
        return data, given, weights
