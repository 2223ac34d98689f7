"""Fits of many replicates of one fit's data: drawn from the model, or the same data weighted anew. A chunk at a time."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from fisher_jax.blocks import blocks_of
from fisher_jax.fitting.fit import fit_batch
from fisher_jax.fitting.result import Fit, Origin, joined_fits
from fisher_jax.inference.resampling import Scheme, resampled_counts
from fisher_jax.models.drawing import check_sampler, draw_data_sets


def refit_weighted(fit: Fit, origin: Origin, weights_of: Iterator[np.ndarray], **settings: Any) -> Fit:
    """Fits of the same data under chunks of weights (R, n), from the estimate."""
    dataset = origin.dataset
    parts = [
        fit_batch(
            origin.model, fit.params, dataset.data, given=dataset.given, weights=weights, data_axis=None, **settings
        )
        for weights in weights_of
    ]
    return _joined(parts)


def refit_drawn(fit: Fit, origin: Origin, key: Any, count: int, **settings: Any) -> Fit:
    """Fits of data drawn from the model at the estimate, from the estimate."""
    parts = [
        fit_batch(origin.model, fit.params, **drawn, weights_axis=None, **settings)
        for drawn in drawn_data(origin, fit.layout, fit.values, key, count)
    ]
    return _cut(_joined(parts), count)


def drawn_data(origin: Origin, layout: Any, values: Any, key: Any, count: int) -> Iterator[dict[str, Any]]:
    """Data sets (R, n, …) drawn from the model at some parameters, a chunk at a time, with covariates and weights for all.

    As the arguments of `fit_batch`; the last chunk goes on past the count.
    """
    given, weights = given_of_draws(origin)
    rows = num_rows(origin, given)
    for numbers in blocks_of(count, _entries(origin.dataset.data)):
        drawn = draw_data_sets(origin.model, layout, values, given, rows, key, numbers)
        _check_drawn(drawn, origin, rows)
        yield {"data": jax.device_get(drawn), "given": given, "weights": weights}


def resampled_weights(scheme: Scheme, weights: Any, key: Any, count: int) -> Iterator[np.ndarray]:
    """Weights (R, n) of all replicates in chunks; `weights` are those of the fit where they multiply what is drawn."""
    for numbers in blocks_of(count, len(scheme.unit_of)):
        drawn = np.asarray(resampled_counts(scheme, key, numbers))[:, scheme.unit_of]
        drawn = drawn[: max(0, count - int(numbers[0]))]
        yield drawn if weights is None else drawn * np.asarray(weights)[None, :]


def _joined(parts: list[Fit]) -> Fit:
    return joined_fits(parts, np.arange(sum(map(len, parts))))


def _cut(fits: Fit, count: int) -> Fit:
    return fits if len(fits) == count else fits[:count]


def _entries(data: PyTree) -> int:
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(data))


def given_of_draws(origin: Origin) -> tuple[PyTree, Any]:
    """Covariates of each observation to be drawn, and the weights of the terms; frequency weights become repeated rows."""
    model, dataset = origin
    check_sampler(model)
    if dataset.weights is None or model.is_dependent:
        return dataset.given, dataset.weights
    times = whole_weights(dataset.weights)
    if dataset.given is None:
        return None, None
    return jax.tree.map(lambda leaf: np.repeat(np.asarray(leaf), times, axis=0), dataset.given), None


def whole_weights(weights: Any) -> np.ndarray:
    """Weights as whole numbers; others are refused, since they say nothing of how many observations there are."""
    host = np.asarray(weights)
    if np.any(host != np.round(host)):
        raise ValueError(
            f"the fit's weights are frequencies, how many equal observations a row stands for, so they must be whole "
            f"numbers here; weights[{int(np.argmax(host != np.round(host)))}] is not."
        )
    return host.astype(int)


def num_rows(origin: Origin, given: PyTree) -> int:
    model, dataset = origin
    if model.is_dependent:
        return 0
    if given is not None:
        return jax.tree.leaves(given)[0].shape[0]
    return (
        jax.tree.leaves(dataset.data)[0].shape[0]
        if dataset.weights is None
        else int(np.sum(np.asarray(dataset.weights)))
    )


def _check_drawn(drawn: PyTree, origin: Origin, rows: int) -> None:
    """Refuse a sampler whose draws are not shaped like the data."""

    def shape(leaf: Any) -> tuple[int, ...]:
        return tuple(leaf.shape) if origin.model.is_dependent else (rows, *leaf.shape[1:])

    expected = [shape(leaf) for leaf in jax.tree.leaves(origin.dataset.data)]
    got = [tuple(leaf.shape[1:]) for leaf in jax.tree.leaves(drawn)]
    structures: list[Any] = [jax.tree.structure(tree) for tree in (drawn, origin.dataset.data)]
    if structures[0] != structures[1] or got != expected:
        raise ValueError(
            f"what the model's sampler draws has leaves of shape {got}, the data {expected}. "
            "`sample` must return data like those fitted: one observation, or for a dependent model the whole series."
        )


def each_left_out(units: int, unit_of: np.ndarray, weights: Any, one_copy: bool) -> Iterator[np.ndarray]:
    """Weights (R, n) with one unit after the other left out, or one copy of it."""
    base = np.ones(len(unit_of)) if weights is None else np.asarray(weights, float)
    for numbers in blocks_of(units, len(unit_of)):
        taken = unit_of[None, :] == numbers[numbers < units][:, None]
        yield np.where(taken, np.maximum(base - 1.0, 0.0) if one_copy else 0.0, base)
