"""Replicates of a fit's data, and their fits: drawn from the model, or the same data under other weights. A chunk at a time.

To draw terms with replacement is to weight each by how often it comes: the data stay as they are, and only weights (R, n) of a
chunk of replicates are in memory. A replicate depends on the key and on its own number, not on the chunk that it is in.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from fisher_jax.blocks import HOST_ENTRIES, blocks_of
from fisher_jax.fitting.fit import fit_batch
from fisher_jax.fitting.padding import class_size
from fisher_jax.fitting.result import Fit, Origin, join_fits, origin_of
from fisher_jax.fitting.status import Status
from fisher_jax.inference.robust import cluster_codes
from fisher_jax.latent.grouped import Grouped
from fisher_jax.models.auxiliary import AuxiliaryModel
from fisher_jax.models.dataset import rows_of_parts
from fisher_jax.models.drawing import check_sampler, draw_data_sets, draw_measured
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.programs import quick_options


class Scheme(NamedTuple):
    """What is drawn with replacement: units, or runs of `length` consecutive ones, until there are as many as in the data.

    `unit_of` is the unit (from 0) of each term: an observation, or a cluster of them. `copies` is how many equal ones each unit
    stands for, one where it is None. `weights` multiply how often each term was drawn. Runs may go on from the last unit to the
    first if `circular`. Of `strata`, numbers of consecutive units, each is drawn from by itself.
    """

    unit_of: Int[np.ndarray, " n"]
    copies: Int[np.ndarray, " g"] | None = None
    weights: Float[np.ndarray, " n"] | None = None
    length: int = 1
    circular: bool = False
    strata: tuple[int, ...] = ()

    @property
    def num_units(self) -> int:
        return num_units_of(self.unit_of)

    @property
    def total(self) -> int:
        """How many units a replicate has."""
        return self.num_units if self.copies is None else int(self.copies.sum())


def num_units_of(unit_of: Int[np.ndarray, " n"]) -> int:
    """How many units there are."""
    return int(unit_of.max()) + 1 if len(unit_of) else 0


def draw_counts(scheme: Scheme, key: Array, numbers: Int[np.ndarray, " r"]) -> Float[np.ndarray, "r g"]:
    """How often each unit comes in the replicates of these numbers."""
    if scheme.strata:
        parts, ends = [], np.cumsum([0, *scheme.strata])
        for k, (start, end) in enumerate(itertools.pairwise(ends)):
            copies = None if scheme.copies is None else scheme.copies[start:end]
            parts.append(draw_counts(Scheme(np.arange(end - start), copies), jax.random.fold_in(key, k), numbers))
        return np.concatenate(parts, axis=1)
    copies = None if scheme.copies is None else scheme.copies[None]
    return draw_counts_of_each(scheme, key[None], np.array([scheme.total]), copies, numbers)[0]


def draw_counts_of_each(
    scheme: Scheme, keys: Array, totals: Int[np.ndarray, " b"], copies: Any, numbers: Int[np.ndarray, " r"]
) -> Float[np.ndarray, "b r g"]:
    """The same of each of many fits with its key; `totals` and `copies` are those of each."""
    num_units = scheme.num_units
    size, most = class_size(num_units), class_size(int(np.max(totals)))
    if copies is not None:
        copies = np.pad(copies, ((0, 0), (0, size - num_units)))
    counter = _counter(size, most, scheme.length, scheme.circular)
    return np.asarray(counter(copies, totals, num_units, keys, numbers))[:, :, :num_units]


@functools.cache  # compiled when called, not when imported, since the options ask JAX for its device
def _counter(size: int, most: int, length: int, circular: bool) -> Callable[..., Float[Array, "b r s"]]:
    """For up to `size` units, of which up to `most` are drawn: the same program for numbers that are near each other."""

    def count(copies: Any, total: Array, num_units: Array, key: Array, number: Array) -> Float[Array, " s"]:
        # The k-th of several random numbers does not depend on how many there are.
        num_starts = total if circular else total - length + 1
        starts = jax.random.randint(jax.random.fold_in(key, number), (-(-most // length),), 0, num_starts)
        if copies is not None:  # from the number of a copy to that of its unit
            starts = jnp.searchsorted(jnp.cumsum(copies), starts, side="right")
        # The last run is cut, so that each replicate has as many units as the data.
        runs = (starts[:, None] + jnp.arange(length)[None, :]).reshape(-1)[:most] % num_units
        return jnp.zeros((size,), int).at[runs].add((jnp.arange(most) < total).astype(int)).astype(float)

    of_one = jax.vmap(count, in_axes=(None, None, None, None, 0))
    return jax.jit(jax.vmap(of_one, in_axes=(0, 0, None, 0, None)), compiler_options=quick_options(1))


class SchemeOfEach(NamedTuple):
    """The scheme of each of many fits: what all share, and the copies (B, g) and the weights (B, n) that differ, or None."""

    shared: Scheme
    copies: Int[np.ndarray, "b g"] | None
    weights: Float[np.ndarray, "b n"] | None

    def take(self, rows: Int[np.ndarray, " r"]) -> "SchemeOfEach":
        """Those of some of the fits."""
        copies, weights = (None if array is None else array[rows] for array in (self.copies, self.weights))
        return SchemeOfEach(self.shared, copies, weights)

    def of(self, k: int) -> Scheme:
        """That of one of them."""
        copies, weights = (None if array is None else array[k] for array in (self.copies, self.weights))
        return self.shared._replace(copies=copies, weights=weights)


def schemes_of(fits: Fit, method: str, clusters: Any, block_length: Any) -> SchemeOfEach:
    """The schemes of a batch of fits; which cluster an observation is in is the same for all."""
    origin = origin_of(fits)
    if origin.model.parts:
        raise ValueError(
            "the rows of a joint model are drawn within each part, of one fit at a time. Take one by fits[k]."
        )
    if isinstance(clusters, str):
        clusters = origin.dataset.column(clusters)
        if np.ndim(clusters) > 1:
            raise ValueError(
                "each fit has clusters of its own, and those of the bootstrap are the same in all. Take one fit by fits[k]."
            )
    shared = scheme_of(fits[0], origin_of(fits[0]), method, clusters, block_length)
    weights = origin.dataset.weights
    if weights is None:
        return SchemeOfEach(shared, None, None)
    weights = np.broadcast_to(np.asarray(weights), (len(fits), len(shared.unit_of)))
    if shared.copies is None:
        return SchemeOfEach(shared, None, weights)
    return SchemeOfEach(shared, whole_weights(weights), None)


def refit_each(fits: Fit, schemes: SchemeOfEach, keys: Array, count: int, method: str, **settings: Any) -> Fit:
    """Fits of `count` replicates of each of many fits, from its estimate: all of the first fit's, then the second's, and so on.

    Each replicate is that of the fit by itself with its key.
    """
    parts = list(refits_of_each(fits, schemes, keys, count, method, **settings))
    return join_fits(parts, np.arange(len(fits) * count))


def refits_of_each(
    fits: Fit, schemes: SchemeOfEach, keys: Array, count: int, method: str, **settings: Any
) -> Iterator[Fit]:
    """The same in parts: some fits at a time in one batch, or one by one where the replicates of a fit fill what is held in memory.

    Those that are drawn from the model have their data.
    """
    model, dataset = origin_of(fits)
    rows = num_draws(fits, schemes) if method == "parametric" else 0
    size = HOST_ENTRIES // (max(dataset.entries, rows) * count)
    if isinstance(model, AuxiliaryModel):  # the measurement is drawn anew for each replicate of a fit
        size = 0
    for start in range(0, len(fits), max(size, 1)):
        block, these = fits[start : start + max(size, 1)], slice(start, start + max(size, 1))
        if size == 0 and method == "parametric":
            yield from refits_of_drawn(block[0], origin_of(block[0]), keys[start], count, **settings)
            continue
        if size == 0:
            scheme = schemes.of(start)
            yield refit_resampled(block[0], origin_of(block[0]), scheme, keys[start], count, **settings)
            continue
        begin = block.layout.assemble([np.repeat(np.asarray(value), count, axis=0) for value in block.values])
        if method == "parametric":
            arguments = _draw_of_each(block, schemes, keys[these], start, count, rows)
        else:
            copies = None if schemes.copies is None else schemes.copies[these]
            totals = np.full(len(block), schemes.shared.num_units) if copies is None else copies.sum(axis=1)
            counts = draw_counts_of_each(schemes.shared, keys[these], totals, copies, np.arange(count))
            weights = counts[:, :, schemes.shared.unit_of]
            if schemes.weights is not None:
                weights = weights * schemes.weights[these][:, None, :]
            arguments = _repeat_data(block, count) | {"weights": weights.reshape(-1, weights.shape[-1])}
        strength = origin_of(block).dataset.strength_given
        strength = np.repeat(strength, count) if np.ndim(strength) else strength
        yield fit_batch(model, begin, start_axis=0, strength=strength, **arguments, **settings)


def _repeat_data(block: Fit, count: int) -> dict[str, Any]:
    """Data and covariates of many fits as arguments of `fit_batch`, those of each `count` times; what they share once."""
    dataset = origin_of(block).dataset
    leaves, treedef = jax.tree.flatten(dataset.parts)
    repeated = [
        np.repeat(np.asarray(leaf), count, axis=0) if differs else leaf
        for leaf, differs in zip(leaves, dataset.differs, strict=True)
    ]
    data, given, _ = jax.tree.unflatten(treedef, repeated)
    data_axis, given_axis, _ = dataset.axes
    return {"data": data, "given": given, "data_axis": data_axis, "given_axis": given_axis}


def num_draws(fits: Fit, schemes: SchemeOfEach) -> int:
    """The most observations that are drawn for a fit of a batch; zero of a dependent model."""
    if origin_of(fits).model.is_dependent:
        return 0
    return len(schemes.shared.unit_of) if schemes.copies is None else int(schemes.copies.sum(axis=1).max())


def _draw_of_each(block: Fit, schemes: SchemeOfEach, keys: Array, start: int, count: int, rows: int) -> dict[str, Any]:
    """`count` data sets drawn from each of many fits, as arguments of `fit_batch`; rows that a fit does not have weigh zero."""
    model, dataset = origin_of(block)
    check_sampler(model, dataset.given)
    data, given, weights = [], [], []
    for k in range(len(block)):
        fit = block[k]
        origin = origin_of(fit)
        covariates, counted = origin.dataset.given, origin.dataset.weights
        if schemes.copies is not None and not model.is_dependent:
            times = schemes.copies[start + k]
            source = np.repeat(np.arange(len(times)), times)
            counted = (np.arange(rows) < len(source)).astype(float)
            source = np.append(source, np.full(rows - len(source), source[-1]))
            covariates = jax.tree.map(lambda leaf, source=source: np.asarray(leaf)[source], covariates)
        drawn = draw_data_sets(model, fit.layout, fit.values, covariates, rows, keys[k], np.arange(count))
        check_drawn(origin, drawn, rows)
        data.append(jax.device_get(drawn))
        given.append(covariates)
        weights.append(counted)

    def for_each(trees: list[PyTree]) -> PyTree:
        return jax.tree.map(lambda *leaves: np.repeat(np.stack([np.asarray(a) for a in leaves]), count, axis=0), *trees)

    return {
        "data": jax.tree.map(lambda *leaves: np.concatenate(leaves), *data),
        "given": for_each(given),
        "given_axis": None if given[0] is None else 0,
        "weights": for_each(weights),
    }


def refit_left_out_of_each(fits: Fit, schemes: SchemeOfEach, **settings: Any) -> Fit:
    """`refit_left_out` of each of many fits, all of the first fit's, then the second's, and so on."""
    parts = [refit_left_out(fit, origin_of(fit), schemes.of(k), **settings) for k, fit in enumerate(fits)]
    return join_fits(parts, np.arange(sum(map(len, parts))))


def scheme_of(fit: Fit, origin: Origin, method: str, clusters: Any, block_length: Any) -> Scheme:
    """The scheme of a method of `bootstrap`."""
    model = origin.model
    weights = None if origin.dataset.weights is None else np.asarray(origin.dataset.weights)
    num_terms = int(fit.num_observations) if weights is None else len(weights)
    if clusters is not None:
        if method != "nonparametric":
            raise ValueError(f'clusters are drawn by method="nonparametric", not {method!r}.')
        if isinstance(clusters, str):
            clusters = origin.dataset.column(clusters)
        if np.shape(clusters) != (num_terms,):
            raise ValueError(
                f"clusters has shape {np.shape(clusters)}, expected ({num_terms},), one label for each observation."
            )
        return Scheme(cluster_codes(clusters), weights=weights)
    if block_length is not None and model.parts:
        raise ValueError("blocks of consecutive rows would run from one part of a joint model into the next.")
    if block_length is not None:
        is_whole = isinstance(block_length, int | np.integer) and not isinstance(block_length, bool)
        if not is_whole or not 1 <= block_length < num_terms:
            raise ValueError(
                f"block_length={block_length!r} must be a whole number from 1 to {num_terms - 1}, less than the "
                "number of observations."
            )
        circular = method == "circular block"
        return Scheme(np.arange(num_terms), weights=weights, length=int(block_length), circular=circular)
    if model.is_dependent and not model.parts and method == "nonparametric":
        raise ValueError(
            'the terms of a dependent model cannot be drawn one by one. Use method="block" with block_length, or '
            '"parametric" if the model can draw a series.'
        )
    # A frequency weight stands for as many equal observations, each of which may be drawn: it multiplies nothing.
    copies = None if weights is None else whole_weights(weights)
    strata = tuple(rows_of_parts(model, origin.dataset.data).values())
    return Scheme(np.arange(num_terms), copies=copies, strata=strata)


def refit_resampled(fit: Fit, origin: Origin, scheme: Scheme, key: Array, count: int, **settings: Any) -> Fit:
    """Fits of the same data, each term weighted by how often it was drawn, from the estimate."""

    def chunks() -> Iterator[Float[np.ndarray, "r n"]]:
        for numbers in blocks_of(count, len(scheme.unit_of)):
            counts = draw_counts(scheme, key, numbers)[: count - int(numbers[0]), scheme.unit_of]
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
    settings = settings | {"strength": origin.dataset.strength_given}
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
    parts = list(refits_of_drawn(fit, origin, key, count, **settings))
    return join_fits(parts, np.arange(count))


def refits_of_drawn(fit: Fit, origin: Origin, key: Array, count: int, **settings: Any) -> Iterator[Fit]:
    """The same in parts, a chunk at a time, each with its data."""
    for drawn in draw_data(origin, fit.layout, fit.values, key, count):
        fits = fit_batch(origin.model, fit.params, **drawn, weights_axis=None, **settings)
        yield fits[:count]  # the last chunk goes past the count
        count -= len(fits)


def draw_data(origin: Origin, layout: Layout, values: Values, key: Array, count: int) -> Iterator[dict[str, Any]]:
    """Data sets (R, n, …) drawn from the model at some parameters, a chunk at a time, with covariates and weights for all.

    As the arguments of `fit_batch`; the last chunk goes on past the count.
    """
    model, data = origin.model, origin.dataset.data
    given, weights = given_of_draws(origin)
    rows = num_rows(origin, given)
    for numbers in blocks_of(count, sum(int(np.size(leaf)) for leaf in jax.tree.leaves(data))):
        drawn = draw_data_sets(model, layout, values, given, rows, key, numbers)
        check_drawn(origin, drawn, rows)
        strength = origin.dataset.strength_given
        yield {"data": jax.device_get(drawn), "given": given, "weights": weights, "strength": strength}


def check_drawn(origin: Origin, drawn: PyTree, rows: int) -> None:
    """Raise where a sampler does not draw data like those fitted."""
    model, data = origin.model, origin.dataset.data
    if isinstance(data, Grouped) and not isinstance(drawn, Grouped):
        data = data.rows  # the covariates show which of them only fill up a group, drawn for or not
    structure: Any = jax.tree.structure(data)
    expected = [leaf.shape if model.is_dependent else (rows, *leaf.shape[1:]) for leaf in jax.tree.leaves(data)]
    shapes = [leaf.shape[1:] for leaf in jax.tree.leaves(drawn)]
    if jax.tree.structure(drawn) != structure or shapes != expected:
        raise ValueError(
            f"what the model's sampler draws has leaves of shape {shapes}, the data {expected}. "
            "`sample` must return data like those fitted: one observation, or for a dependent model the whole series."
        )


def given_of_draws(origin: Origin) -> tuple[PyTree, Any]:
    """Covariates of each observation to be drawn, and the weights of the terms; frequency weights become repeated rows."""
    model, dataset = origin
    check_sampler(model, dataset.given)
    if model.parts and dataset.weights is not None and np.any(np.asarray(dataset.weights) != 1):
        raise ValueError(
            "data sets drawn from a joint model have one row for each observation. Repeat rows in place of weights."
        )
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


def whole_weights(weights: Any) -> Int[np.ndarray, "*b n"]:
    """Weights as whole numbers; raise for others, from which the number of observations is not known."""
    host = np.asarray(weights)
    if np.any(host != np.round(host)):
        first = np.argwhere(host != np.round(host))[0]
        raise ValueError(
            f"the fit's weights are frequencies, how many equal observations a row stands for, so they must be whole "
            f"numbers here; weights[{','.join(map(str, first))}] is not."
        )
    return host.astype(int)


def failures(fits: Fit) -> str:
    """How many fits failed, by status, in words; empty where none did."""
    codes, counts = np.unique(fits.status[~fits.converged], return_counts=True)
    return ", ".join(f"{count} {Status(int(code)).label}" for code, count in zip(codes, counts, strict=True))
