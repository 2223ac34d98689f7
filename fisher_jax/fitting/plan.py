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
    """A model, its parameters, its optimiser, and how fixed parameters and data lie in one flat list. Hashable.

    The list holds the `num_fixed` fixed leaves of the parameters, then those of (data, given, weights), which `treedef` puts
    together; `differs` says of each whether it has an axis over the data sets, or is what all share. `num_terms` is the number of
    log-densities of a data set, `num_lanes` how many are fitted side by side.
    """

    model: Model
    layout: Layout
    optimizer: Any
    treedef: Any
    num_fixed: int
    differs: tuple[bool, ...]
    num_terms: int
    num_lanes: int = 64

    @property
    def has_weights(self) -> bool:
        """Whether there are weights, by which the terms that count may differ among the data sets."""
        return jax.tree.unflatten(self.treedef, [True] * self.treedef.num_leaves)[2] is not None

    def split(self, leaves: Leaves, *, own: bool) -> tuple[Leaves, Leaves]:
        """Of the leaves that differ (`own`), or of those that are shared: the fixed parameters, and the data."""
        numbers = [i for i, differs in enumerate(self.differs) if differs == own]
        cut = sum(i < self.num_fixed for i in numbers)
        return leaves[:cut], leaves[cut:]

    def fixed(self, own: Leaves, shared: Leaves) -> Leaves:
        """All fixed parameters in order."""
        mine, common = iter(own), iter(shared)
        return [next(mine) if differs else next(common) for differs in self.differs[: self.num_fixed]]

    def values(self, fixed: Leaves) -> Leaves:
        """The parameters' leaves: the fixed ones as given, None for those that follow from u."""
        given = iter(fixed)
        return [next(given) if leaf.is_fixed else None for leaf in self.layout.leaves]

    def observations(self, own: Leaves, shared: Leaves) -> tuple[PyTree, PyTree, Any]:
        """Data, covariates and weights."""
        mine, common = iter(own), iter(shared)
        rows = [next(mine) if differs else next(common) for differs in self.differs[self.num_fixed :]]
        return jax.tree.unflatten(self.treedef, rows)
