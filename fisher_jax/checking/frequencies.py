"""Observed and expected frequencies: of the values of a count, as a rootogram shows them and Pearson's χ² compares them, and of u.

Bins of counts are chosen for each fit by itself from what it expects, and kept for its replicates.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from fisher_jax.checking.distances import counts_in_bins
from fisher_jax.checking.integral_transform import Transform, check_transform, integral_transform, of_number
from fisher_jax.checking.quantile_comparison import with_rows_for_weights
from fisher_jax.fitting.map_fits import with_data
from fisher_jax.fitting.result import Fit, origin_of
from fisher_jax.inference.row_distributions import has_known_intervals
from fisher_jax.models.auxiliary import without_auxiliary
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.model import Model

_MOST_CANDIDATES = 500  # ends of bins that are tried: of very large counts a bin has many values in any case


class Frequencies(NamedTuple):
    """How many observations have each value, and how many are expected to by the fitted model: arrays (k,)."""

    values: np.ndarray
    observed: np.ndarray
    expected: np.ndarray


@dataclass(frozen=True)
class ExpectedUpTo:
    """The expected number of observations up to each of some values, Σ P(Y ≤ value; zᵢ), for `map_fits.with_data`."""

    def __call__(self, fit: Fit, model: Model, dataset: Dataset, values: Float[Array, " k"]) -> Float[Array, " k"]:
        params, dtype = fit.layout.assemble(fit.values), fit.layout.dtype
        model, data = without_auxiliary(model, dataset.data)
        weights = dataset.weights
        if weights is None:
            weights = jnp.ones((jax.tree.leaves(data)[0].shape[0],), dtype)

        def up_to(*z: PyTree) -> Float[Array, " k"]:
            return jax.vmap(lambda y: jnp.exp(of_number(model, params, y, z).log_high))(jnp.asarray(values, dtype))

        if dataset.given is None:
            return up_to() * jnp.sum(weights)
        return jnp.sum(weights[:, None] * jax.vmap(up_to)(dataset.given), axis=0)


@dataclass(frozen=True)
class ObservedUpTo:
    """How many observations are at most each of some values, for `map_fits.with_data`."""

    def __call__(self, fit: Fit, model: Model, dataset: Dataset, values: Float[Array, " k"]) -> Float[Array, " k"]:
        (y,) = jax.tree.leaves(without_auxiliary(model, dataset.data)[1])
        is_below = (y[:, None] <= values[None, :]).astype(fit.layout.dtype)
        return jnp.sum(is_below if dataset.weights is None else is_below * dataset.weights[:, None], axis=0)


def are_counts(fit: Fit) -> bool:
    """Whether the observations are independent whole numbers, whose values are known."""
    one = fit[0] if fit.has_batch else fit
    model, dataset = origin_of(one)
    model, data = without_auxiliary(model, dataset.data)
    return (
        model.discrete
        and not model.is_dependent
        and len(jax.tree.leaves(data)) == 1
        and not has_known_intervals(model, one.params, data, dataset.given)
    )


def frequencies(fit: Fit, most: int = 200) -> Frequencies:
    """The frequencies of each value from the least to the greatest of one fit's data; raise where these are more than `most`."""
    if fit.has_batch:
        raise TypeError("takes one fit. Take one of yours, as fits[3].")
    if not are_counts(fit):
        raise ValueError("needs independent counts, each of a known value: a model with discrete=True.")
    check_transform(*origin_of(fit))
    counted = np.unique(_counts_of_each(fit)[0])
    first, last = int(counted[0]), int(counted[-1])
    if last - first >= most:
        raise ValueError(
            f"the counts go from {first} to {last}, which are {last - first + 1} values; at most {most} are shown one by one."
        )
    values = np.arange(first, last + 1.0)
    upper = np.concatenate([[first - 1.0], values])[None]
    expected, observed = (_at_ends(fit, each, upper)[0] for each in (ExpectedUpTo(), ObservedUpTo()))
    return Frequencies(values, np.diff(observed), np.diff(expected))


def calibration(fit: Fit, num_bins: int, level: float) -> tuple[Float[np.ndarray, " k"], float, float]:
    """The density of u of one fit's data in each bin, and between which heights each lies with this probability."""
    from scipy.stats import binom

    if fit.has_batch:
        raise TypeError("takes one fit. Take one of yours, as fits[3].")
    fit._warn()
    transform = integral_transform(replace(fit, origin=with_rows_for_weights(fit)))
    counts = counts_in_bins(Transform(*map(np.atleast_2d, transform)), num_bins)[0]
    total = counts.sum()
    lower, upper = (binom.ppf(0.5 * (1 + side * level), total, 1 / num_bins) for side in (-1, 1))
    scale = num_bins / total
    return counts * scale, float(lower * scale), float(upper * scale)


# --- bins of Pearson's χ² -----------------------------------------------------------------------------------------------


def bins_of(fit: Fit, numbers: Int[np.ndarray, " b"]) -> Float[np.ndarray, "b k"]:
    """The upper ends of bins of values for each of many fits, or one, such that each bin is expected to have a fraction 1/number of
    the observations at least; the last bin has no end.

    Where a fit has fewer bins than others its last end is repeated; NaN where there are not two bins.
    """
    candidates = [np.unique(counts) for counts in _counts_of_each(fit)]
    candidates = [
        np.unique(np.quantile(values, np.linspace(0, 1, _MOST_CANDIDATES), method="lower"))
        if len(values) > _MOST_CANDIDATES
        else values
        for values in candidates
    ]
    up_to = _at_ends(fit, ExpectedUpTo(), _as_rows(candidates))
    ends = []
    for values, expected, number, total in zip(
        candidates, up_to, numbers, np.atleast_1d(fit.num_observations), strict=True
    ):
        least, before, chosen = total / number, 0.0, []
        for value, below in zip(values, expected, strict=False):
            # What is left above must suffice for the last bin.
            if below - before >= least and total - below >= least:
                chosen.append(value)
                before = below
        ends.append(np.array(chosen or [np.nan]))
    return _as_rows(ends)


def chi_square_of_bins(fit: Fit, ends: Float[np.ndarray, "b k"]) -> Float[np.ndarray, " b"]:
    """Σ (observed − expected)² / expected over the bins of one fit, or of each of many."""
    observed, expected = (_at_ends(fit, each, ends) for each in (ObservedUpTo(), ExpectedUpTo()))
    edge = np.zeros((len(ends), 1))
    total = edge + np.reshape(np.asarray(fit.num_observations, float), (-1, 1))
    observed, expected = (np.diff(np.concatenate([edge, part, total], axis=1)) for part in (observed, expected))
    is_empty = (observed == 0) & (expected == 0)  # between an end and its repetition
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sum(np.where(is_empty, 0.0, (observed - expected) ** 2 / expected), axis=1)


def _counts_of_each(fit: Fit) -> list[Float[np.ndarray, " n"]]:
    """The counts of each fit, without those of weight zero."""
    each = []
    for k in range(len(fit) if fit.has_batch else 1):
        model, dataset = origin_of(fit[k] if fit.has_batch else fit)
        y = np.asarray(jax.tree.leaves(without_auxiliary(model, dataset.data)[1])[0], float)
        each.append(y if dataset.weights is None else y[np.asarray(dataset.weights) > 0])
    return each


def _at_ends(fit: Fit, function: Callable[..., Any], ends: Float[np.ndarray, "b k"]) -> Float[np.ndarray, "b k"]:
    """A function of ends that each fit has for itself."""
    if fit.has_batch:
        return np.asarray(with_data(fit, function, (), (ends,)), float)
    return np.asarray(with_data(fit, function, (ends[0],)), float)[None]


def _as_rows(parts: list[Float[np.ndarray, " _"]]) -> Float[np.ndarray, "b k"]:
    """Arrays as the rows of one, with their last entry repeated."""
    most = max(map(len, parts))
    return np.stack([np.append(part, np.repeat(part[-1:], most - len(part))) for part in parts])
