"""Hypothesised values of parameters, as a user writes them: by structure or by name."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from fisher_jax.errors import check_pytree, shown
from fisher_jax.fitting.functions import named_within
from fisher_jax.models.constraints import Fixed, Interval, Simplex, Unconstrained
from fisher_jax.models.parameters import Layout


@dataclass(frozen=True)
class Hypothesis:
    """Which entries of which array leaves of params are held at which values.

    `where` has a pair for each entry: the leaf's index in `Layout.leaves`, and the entry's in the raveled leaf.
    """

    names: tuple[str, ...]
    where: tuple[tuple[int, int], ...]
    values: np.ndarray

    @property
    def words(self) -> tuple[str, ...]:
        """`shape = 4.5` for each."""
        return tuple(f"{name} = {value:g}" for name, value in zip(self.names, self.values, strict=True))

    def entries_of(self, leaf: int) -> dict[int, float]:
        """The entries held in one leaf, with their values."""
        return {k: float(v) for (i, k), v in zip(self.where, self.values, strict=True) if i == leaf}


def hypothesised(layout: Layout, restriction: PyTree) -> Hypothesis:
    """The entries named in a pytree of values; `None`, NaN and what is absent are not restricted.

    The tree is shaped like params or a part of it; a key may also be an entry's name as reports print it, as `beta[1]`.
    """
    check_pytree(restriction, "the hypothesis")
    if jax.tree_util.all_leaves([restriction]) and "params" not in {leaf.name for leaf in layout.leaves}:
        raise TypeError(
            f"the hypothesis is {shown(restriction)}. Write names and values as a dictionary, as "
            f"{{{(*layout.names, 'scale')[0]!r}: 0.0}}, or give a function of params that is zero under it."
        )
    by_name: dict[str, tuple[int, int | None]] = {leaf.name: (i, None) for i, leaf in enumerate(layout.leaves)}
    by_name |= {name: (i, k) for i, leaf in enumerate(layout.leaves) for k, name in enumerate(leaf.entry_names)}
    found: dict[tuple[int, int], float] = {}
    for path, value in jax.tree_util.tree_flatten_with_path(restriction)[0]:
        if callable(value):  # a function inside an Equinox module
            continue
        name = named_within("params", path)
        if name not in by_name:
            known = ", ".join(f"`{leaf.name}`" for leaf in layout.leaves)
            raise ValueError(
                f"the hypothesis names `{name}`, but the parameters are {known}. Spell it as in summary()."
            )
        found |= _entries(layout, *by_name[name], value, name)
    if not found:
        raise ValueError("the hypothesis restricts nothing: every value is None or NaN.")
    where = tuple(sorted(found))
    names = tuple(layout.leaves[i].entry_names[k] for i, k in where)
    return Hypothesis(names, where, np.array([found[key] for key in where]))


def _entries(layout: Layout, i: int, k: int | None, value: Any, name: str) -> dict[tuple[int, int], float]:
    if isinstance(value, jax.core.Tracer):
        raise TypeError(f"the value of `{name}` must be known now, but is traced. Give numbers.")
    value = np.asarray(value)
    shape = layout.leaves[i].shape if k is None else ()
    if value.dtype.kind not in "iuf" or value.shape not in ((), shape):
        raise ValueError(
            f"the hypothesised value of `{name}` must be a number or an array of shape {shape}, "
            f"got {value.dtype} of shape {value.shape}."
        )
    flat = np.broadcast_to(value, shape).ravel().astype(float)
    constraint = layout.leaves[i].constraint
    if isinstance(constraint, Interval) and np.any((flat < constraint.low) | (flat > constraint.high)):
        raise ValueError(f"`{name}` is {constraint.description}, and cannot be {value}.")
    tied = not isinstance(constraint, Interval | Unconstrained | Fixed)
    if tied and k is None and not np.any(np.isnan(flat)) and not _within(constraint, flat.reshape(shape)):
        raise ValueError(f"`{name}` is {constraint.description}, and cannot be {value.tolist()}.")
    return {(i, j if k is None else k): float(x) for j, x in enumerate(flat) if not np.isnan(x)}


def _within(constraint: Any, value: np.ndarray) -> bool:
    """Whether the constraint allows it, to six digits where entries add up to one, of which some may be zero."""
    if isinstance(constraint, Simplex):
        return bool(np.all(value >= 0) and np.allclose(value.sum(axis=-1), 1.0, rtol=0.0, atol=1e-6))
    return bool(constraint.contains(value))


def free_positions(layout: Layout, hypothesis: Hypothesis) -> tuple[int, ...]:
    """Where in θ the entries are; those held `fixed` in the fit are refused."""
    starts, start = {}, 0
    for i, leaf in layout.free_leaves:
        starts[i], start = start, start + leaf.size
    held = [name for name, (i, _) in zip(hypothesis.names, hypothesis.where, strict=True) if i not in starts]
    if held:
        raise ValueError(
            f"`{held[0]}` was held fixed in this fit, so it was not estimated and cannot be tested with it. "
            "Fit without `fixed`, or use score_test, which needs the null fit only."
        )
    return tuple(starts[i] + k for i, k in hypothesis.where)
