"""A model with some entries of its parameters held, as a model of the others; and its fit to the data of a fit."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from fisher_jax.fitting.fit import fit, fit_batch
from fisher_jax.fitting.result import Fit, origin_of
from fisher_jax.inference.hypothesis import Hypothesis
from fisher_jax.models.constraints import Interval, Unconstrained, fixed
from fisher_jax.models.model import ById, DependentModel, Model
from fisher_jax.models.parameters import Layout

Parts = dict[str, list[Any]]


@dataclass(frozen=True)
class _Restricted:
    """A model's log-density, its parameters in two parts: those estimated and those held, by leaf."""

    function: ById
    layout: Layout
    held: tuple[tuple[int, ...], ...]  # of each leaf, the entries held, in order

    @property
    def user_function(self) -> Any:
        """What its programs are kept with, since it is made anew for each test."""
        return self.function.function

    @property
    def made_with(self) -> tuple[Any, ...]:
        """What it is beside the user's function."""
        return self.layout, self.held

    def __call__(self, parts: Parts, *arguments: PyTree) -> Array:
        leaves = zip(self.layout.leaves, self.held, parts["estimated"], parts["held"], strict=True)
        values = [_joined(leaf.shape, held, a, b) for leaf, held, a, b in leaves]
        return self.function.function(self.layout.assemble(values), *arguments)


def _joined(shape: tuple[int, ...], held: tuple[int, ...], estimated: Any, values: Any) -> Array:
    """A leaf from its two parts, of which one may be absent."""
    if estimated is None or values is None:
        return jnp.reshape(values if estimated is None else estimated, shape)
    others = [k for k in range(int(np.prod(shape))) if k not in held]
    order = np.argsort([*others, *held])
    return jnp.concatenate([estimated, values.astype(estimated.dtype)])[order].reshape(shape)


def refit(full: Any, hypothesis: Hypothesis) -> Any:
    """The fit, or the fits of a batch, with the hypothesised values held; starting from the estimates of the others."""
    model, layout = origin_of(full).model, full.layout
    held = tuple(tuple(hypothesis.entries_of(i)) for i in range(len(layout.leaves)))
    _refuse_tied(layout, held)
    under = _Restricted(ById(model.log_density), layout, held)
    parts, constraints = _split(full, hypothesis, held)
    kind = DependentModel if model.is_dependent else Model
    restricted = kind(under, constraints=constraints)
    if not full.has_batch:
        _check_inside(full, held)
    return fit_again(full, restricted, parts)


def fit_again(full: Any, model: Model, params: PyTree) -> Any:
    """Another model fitted to the data of a fit, or to those of a batch with starts for each."""
    dataset = origin_of(full).dataset
    data, given, weights = dataset.parts
    if not full.has_batch:
        return fit(model, params, data, given=given, weights=weights)
    data_axis, given_axis, weights_axis = dataset.axes
    return fit_batch(
        model, params, data, given=given, weights=weights, params_axis=0, data_axis=data_axis, given_axis=given_axis,
        weights_axis=weights_axis, covariances=(),
    )  # fmt: skip


def _check_inside(full: Fit, held: tuple[tuple[int, ...], ...]) -> None:
    """Refuse to start from an estimate that ran to the very edge of its range."""
    for (i, leaf), inside in zip(full.layout.free_leaves, full.layout.contains(full.values), strict=True):
        if not held[i] and not inside:
            raise ValueError(
                f"the estimate of `{leaf.name}`, {np.asarray(full.values[i])}, is not inside its range, so the "
                "restricted model has no start. Write the model under the hypothesis, fit it, and give that fit."
            )


def _refuse_tied(layout: Layout, held: tuple[tuple[int, ...], ...]) -> None:
    for leaf, entries in zip(layout.leaves, held, strict=True):
        if 0 < len(entries) < leaf.size and not isinstance(leaf.constraint, Interval | Unconstrained):
            raise ValueError(
                f"`{leaf.name}` is {leaf.constraint.description}, so some of its entries cannot be held while the "
                "others move. Write the model under the hypothesis, fit it, and give that fit."
            )


def _split(full: Any, hypothesis: Hypothesis, held: tuple[tuple[int, ...], ...]) -> tuple[Parts, Parts]:
    """The two parts of the starting parameters, and the constraints of each."""
    batched, layout = full.has_batch, full.layout
    values = full.values
    parts: Parts = {"estimated": [], "held": []}
    constraints: Parts = {"estimated": [], "held": []}
    for i, (leaf, entries) in enumerate(zip(layout.leaves, held, strict=True)):
        value = np.asarray(values[i])
        fill = np.array(list(hypothesis.entries_of(i).values()), layout.dtype)
        fill = np.broadcast_to(fill, (len(value), len(fill))) if batched else fill
        if leaf.is_fixed or len(entries) == leaf.size:
            estimated, kept = None, value if leaf.is_fixed else fill.reshape(value.shape)
        elif not entries:
            estimated, kept = value, None
        else:
            flat = value.reshape((*value.shape[: int(batched)], -1))
            estimated, kept = np.delete(flat, entries, axis=-1), fill
        parts["estimated"].append(estimated)
        parts["held"].append(kept)
        constraints["estimated"].append(leaf.constraint if estimated is not None else None)
        constraints["held"].append(fixed if kept is not None else None)
    return parts, constraints
