"""Replicates of a fit's data, and their fits: drawn from the model, or the same data under other weights. A chunk at a time.

To draw terms with replacement is to weight each by how often it comes: the data stay as they are, and only weights (R, n) of a
chunk of replicates are in memory. A replicate depends on the key and on its own number, not on the chunk that it is in.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from fisher_jax.blocks import blocks_of
from fisher_jax.fitting.fit import fit_batch
from fisher_jax.fitting.result import Fit, Origin, join_fits
from fisher_jax.fitting.status import Status
from fisher_jax.inference.robust import cluster_codes
from fisher_jax.models.auxiliary import AuxiliaryModel
from fisher_jax.models.drawing import check_sampler, draw_data_sets, draw_measured
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.programs import quick_options


class Scheme(NamedTuple):
    """What is drawn with replacement: units, or runs of `length` consecutive ones, until there are as many as in the data.

    `unit_of` is the unit (from 0) of each term: an observation, or a cluster of them. `copies` is how many equal ones each unit
    stands for, one where it is None. `weights` multiply how often each term was drawn. Runs may go on from the last unit to the
    first if `circular`.
    """

    unit_of: Int[np.ndarray, " n"]
    copies: Int[np.ndarray, " g"] | None = None
    weights: Float[np.ndarray, " n"] | None = None
    length: int = 1
    circular: bool = False

    @property
    def num_units(self) -> int:
        return int(self.unit_of.max()) + 1 if len(self.unit_of) else 0

    @property
    def total(self) -> int:
        """How many units a replicate has."""
        return self.num_units if self.copies is None else int(self.copies.sum())


def draw_counts(scheme: Scheme, key: Array, numbers: Int[np.ndarray, " r"]) -> Float[Array, "r g"]:
    """How often each unit comes in the replicates of these numbers."""
    num_starts = scheme.total if scheme.circular else scheme.total - scheme.length + 1
    return _counter(scheme.num_units, num_starts, scheme.length, scheme.total)(scheme.copies, key, numbers)


@functools.cache  # compiled when called, not when imported, since the options ask JAX for its device
def _counter(num_units: int, num_starts: int, length: int, total: int) -> Callable[..., Float[Array, "r g"]]:
    def count(copies: Any, key: Array, number: Array) -> Float[Array, " g"]:
        starts = jax.random.randint(jax.random.fold_in(key, number), (-(-total // length),), 0, num_starts)
        if copies is not None:  # from the number of a copy to that of its unit
            starts = jnp.searchsorted(jnp.cumsum(copies), starts, side="right")
        # The last run is cut, so that each replicate has as many units as the data.
        runs = (starts[:, None] + jnp.arange(length)[None, :]).reshape(-1)[:total] % num_units
        return jnp.zeros((num_units,), int).at[runs].add(1).astype(float)

    return jax.jit(jax.vmap(count, in_axes=(None, None, 0)), compiler_options=quick_options(1))


def scheme_of(fit: Fit, origin: Origin, method: str, clusters: Any, block_length: Any) -> Scheme:
    """The scheme of a method of `bootstrap`."""
    model = origin.model
    weights = None if origin.dataset.weights is None else np.asarray(origin.dataset.weights)
    num_terms = int(fit.num_observations) if weights is None else len(weights)
    if clusters is not None:
        if method != "nonparametric":
            raise ValueError(f'clusters are drawn by method="nonparametric", not {method!r}.')
        if np.shape(clusters) != (num_terms,):
            raise ValueError(
                f"clusters has shape {np.shape(clusters)}, expected ({num_terms},), one label for each observation."
            )
        return Scheme(cluster_codes(clusters), weights=weights)
    if block_length is not None:
        is_whole = isinstance(block_length, int | np.integer) and not isinstance(block_length, bool)
        if not is_whole or not 1 <= block_length < num_terms:
            raise ValueError(
                f"block_length={block_length!r} must be a whole number from 1 to {num_terms - 1}, less than the "
                "number of observations."
            )
        circular = method == "circular block"
        return Scheme(np.arange(num_terms), weights=weights, length=int(block_length), circular=circular)
    if model.is_dependent and method == "nonparametric":
        raise ValueError(
            'the terms of a dependent model cannot be drawn one by one. Use method="block" with block_length, or '
            '"parametric" if the model can draw a series.'
        )
    # A frequency weight stands for as many equal observations, each of which may be drawn: it multiplies nothing.
    return Scheme(np.arange(num_terms), copies=None if weights is None else whole_weights(weights))


def refit_resampled(fit: Fit, origin: Origin, scheme: Scheme, key: Array, count: int, **settings: Any) -> Fit:
    """Fits of the same data, each term weighted by how often it was drawn, from the estimate."""

    def chunks() -> Iterator[Float[np.ndarray, "r n"]]:
        for numbers in blocks_of(count, len(scheme.unit_of)):
            counts = np.asarray(draw_counts(scheme, key, numbers))[: count - int(numbers[0]), scheme.unit_of]
            yield counts if scheme.weights is None else counts * scheme.weights[None, :]

    return _refit_weighted(fit, origin, chunks(), settings, key)


def refit_left_out(fit: Fit, origin: Origin, scheme: Scheme, **settings: Any) -> Fit:
    """Fits of the same data with one unit after the other left out, or one copy of it, from the estimate."""
    weights = origin.dataset.weights
    full = np.ones(len(scheme.unit_of)) if weights is None else np.asarray(weights, float)
    without = 0.0 if scheme.copies is None else np.maximum(full - 1.0, 0.0)

    def chunks() -> Iterator[Float[np.ndarray, "r n"]]:
        for numbers in blocks_of(scheme.num_units, len(full)):
            yield np.where(scheme.unit_of[None, :] == numbers[numbers < scheme.num_units][:, None], without, full)

    return _refit_weighted(fit, origin, chunks(), settings)


def _refit_weighted(
    fit: Fit, origin: Origin, chunks: Iterator[np.ndarray], settings: dict[str, Any], key: Array | None = None
) -> Fit:
    """Fits by weights; with a key, each to an auxiliary measurement drawn at the estimate, where the model has one."""
    (data, given, _), done, parts = origin.dataset.parts, 0, []
    axis: Any = None
    for weights in chunks:
        if key is not None and isinstance(origin.model, AuxiliaryModel):
            numbers = np.arange(done, done + len(weights))
            measured = draw_measured(origin.model, fit.layout, fit.values, key, numbers)
            data, axis = (data[0], measured), (None, 0)
        parts.append(
            fit_batch(origin.model, fit.params, data, given=given, weights=weights, data_axis=axis, **settings)
        )
        done += len(weights)
    return join_fits(parts, np.arange(sum(map(len, parts))))


def refit_drawn(fit: Fit, origin: Origin, key: Array, count: int, **settings: Any) -> Fit:
    """Fits of data drawn from the model at the estimate, from the estimate."""
    parts = [
        fit_batch(origin.model, fit.params, **drawn, weights_axis=None, **settings)
        for drawn in draw_data(origin, fit.layout, fit.values, key, count)
    ]
    return join_fits(parts, np.arange(count))  # the last chunk went past the count


def draw_data(origin: Origin, layout: Layout, values: Values, key: Array, count: int) -> Iterator[dict[str, Any]]:
    """Data sets (R, n, …) drawn from the model at some parameters, a chunk at a time, with covariates and weights for all.

    As the arguments of `fit_batch`; the last chunk goes on past the count.
    """
    model, data = origin.model, origin.dataset.data
    given, weights = given_of_draws(origin)
    rows = num_rows(origin, given)
    structure: Any = jax.tree.structure(data)
    expected = [leaf.shape if model.is_dependent else (rows, *leaf.shape[1:]) for leaf in jax.tree.leaves(data)]
    for numbers in blocks_of(count, sum(int(np.size(leaf)) for leaf in jax.tree.leaves(data))):
        drawn = draw_data_sets(model, layout, values, given, rows, key, numbers)
        shapes = [leaf.shape[1:] for leaf in jax.tree.leaves(drawn)]
        if jax.tree.structure(drawn) != structure or shapes != expected:
            raise ValueError(
                f"what the model's sampler draws has leaves of shape {shapes}, the data {expected}. "
                "`sample` must return data like those fitted: one observation, or for a dependent model the whole series."
            )
        yield {"data": jax.device_get(drawn), "given": given, "weights": weights}


def given_of_draws(origin: Origin) -> tuple[PyTree, Any]:
    """Covariates of each observation to be drawn, and the weights of the terms; frequency weights become repeated rows."""
    model, dataset = origin
    check_sampler(model)
    if dataset.weights is None or model.is_dependent:
        return dataset.given, dataset.weights
    times = whole_weights(dataset.weights)
    return jax.tree.map(lambda leaf: np.repeat(np.asarray(leaf), times, axis=0), dataset.given), None


def num_rows(origin: Origin, given: PyTree) -> int:
    """How many observations a data set to be drawn has; zero of a dependent model, whose sampler draws the whole series."""
    model, dataset = origin
    if model.is_dependent:
        return 0
    if given is None and dataset.weights is not None:
        return int(np.sum(np.asarray(dataset.weights)))
    return jax.tree.leaves(dataset.data if given is None else given)[0].shape[0]


def whole_weights(weights: Any) -> Int[np.ndarray, " n"]:
    """Weights as whole numbers; raise for others, which do not tell how many observations there are."""
    host = np.asarray(weights)
    if np.any(host != np.round(host)):
        raise ValueError(
            f"the fit's weights are frequencies, how many equal observations a row stands for, so they must be whole "
            f"numbers here; weights[{int(np.argmax(host != np.round(host)))}] is not."
        )
    return host.astype(int)


def failures(fits: Fit) -> str:
    """How many fits failed, by status, in words; empty where none did."""
    codes, counts = np.unique(fits.status[~fits.converged], return_counts=True)
    return ", ".join(f"{count} {Status(int(code)).label}" for code, count in zip(codes, counts, strict=True))
