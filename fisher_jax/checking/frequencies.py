"""Observed and expected frequencies of the values of a count, as a rootogram shows them and Pearson's χ² compares them."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.checking.integral_transform import check_distribution, of_number
from fisher_jax.fitting.map_fits import with_data
from fisher_jax.fitting.result import Fit, origin_of
from fisher_jax.models.auxiliary import AuxiliaryModel
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.model import Model


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
        model = model.base if isinstance(model, AuxiliaryModel) else model
        weights = dataset.weights
        if weights is None:
            weights = jnp.ones((jax.tree.leaves(dataset.data)[0].shape[0],), dtype)

        def up_to(*z: PyTree) -> Float[Array, " k"]:
            return jax.vmap(lambda y: jnp.exp(of_number(model, params, y, z).log_high))(jnp.asarray(values, dtype))

        if dataset.given is None:
            return up_to() * jnp.sum(weights)
        return jnp.sum(weights[:, None] * jax.vmap(up_to)(dataset.given), axis=0)


@dataclass(frozen=True)
class ObservedUpTo:
    """How many observations are at most each of some values, for `map_fits.with_data`."""

    def __call__(self, fit: Fit, model: Model, dataset: Dataset, values: Float[Array, " k"]) -> Float[Array, " k"]:
        y = jax.tree.leaves(dataset.data.observations if isinstance(model, AuxiliaryModel) else dataset.data)[0]
        is_below = (y[:, None] <= values[None, :]).astype(fit.layout.dtype)
        return jnp.sum(is_below if dataset.weights is None else is_below * dataset.weights[:, None], axis=0)


def frequencies(fit: Fit, most: int = 200) -> Frequencies:
    """The frequencies of each value from the least to the greatest of one fit's data; raise where these are more than `most`."""
    model, dataset = origin_of(fit)
    if fit.has_batch:
        raise TypeError("takes one fit. Take one of yours, as fits[3].")
    if not model.discrete or model.is_dependent or len(jax.tree.leaves(dataset.data)) != 1:
        raise ValueError("needs independent counts: a model with discrete=True.")
    check_distribution(model, dataset)
    y = np.asarray(jax.tree.leaves(dataset.data)[0], float)
    counted = y if dataset.weights is None else y[np.asarray(dataset.weights) > 0]
    first, last = int(counted.min()), int(counted.max())
    if last - first >= most:
        raise ValueError(
            f"the counts go from {first} to {last}, which are {last - first + 1} values; at most {most} are shown one by one."
        )
    values = np.arange(first, last + 1.0)
    upper = np.concatenate([[first - 1.0], values])
    expected, observed = (
        np.asarray(with_data(fit, each, (upper,)), float) for each in (ExpectedUpTo(), ObservedUpTo())
    )
    return Frequencies(values, np.diff(observed), np.diff(expected))


def bins_of(fit: Fit, num_bins: int) -> Float[np.ndarray, " k"]:
    """The upper ends of bins of values, the last of which has none, such that each is expected to have a fraction 1/`num_bins` of
    the observations of one fit at least.
    """
    y = np.asarray(jax.tree.leaves(origin_of(fit).dataset.data)[0], float)
    values = np.unique(y)
    if len(values) > 500:  # of very large counts a bin has many values in any case
        values = np.unique(np.quantile(values, np.linspace(0, 1, 500), method="lower"))
    up_to = np.asarray(with_data(fit, ExpectedUpTo(), (values,)), float)
    total, ends, before = float(fit.num_observations), [], 0.0
    for value, expected in zip(values, up_to, strict=True):
        # What is left above must suffice for the last bin.
        if expected - before >= total / num_bins and total - expected >= total / num_bins:
            ends.append(value)
            before = expected
    return np.array(ends)


def chi_square_of_bins(fit: Fit, ends: Float[np.ndarray, " k"], total: Any) -> Any:
    """Σ (observed − expected)² / expected over the bins, of one fit or of each of many with `total` observations."""
    observed, expected = (np.asarray(with_data(fit, each, (ends,)), float) for each in (ObservedUpTo(), ExpectedUpTo()))
    edge, total = np.zeros((*observed.shape[:-1], 1)), np.asarray(total, float)[..., None]
    observed, expected = (np.diff(np.concatenate([edge, part, total + edge], axis=-1)) for part in (observed, expected))
    return np.sum((observed - expected) ** 2 / expected, axis=-1)
