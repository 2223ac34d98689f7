"""A function of one fit that is compiled, of one fit or of every one of many: these in blocks of one size."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fisher_jax.fitting.result import Fit, origin_of
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.model import Model
from fisher_jax.models.programs import jit_with_model
from fisher_jax.numerics.array_namespace import is_traced, on_host

BLOCK = 4096  # fits that are worked on at once
ENTRIES = 2**22  # entries of data times parameters that are worked on at once


def check_fit(fit: Any) -> None:
    """Raise for what is no fit."""
    if not isinstance(fit, Fit):
        raise TypeError(f"expected a Fit, got {type(fit).__name__}. Fit the model first.")


def of_each(fit: Fit, function: Callable[..., Any], kind: str | None, *numbers: Any) -> Any:
    """`function(fit, kind, *numbers)` of a fit, or of every one of many; with a warning of those that failed.

    The function is hashable, for it is compiled once for each that is not equal to one before.
    """
    check_fit(fit)
    kind = fit._check(kind)
    fit._warn(kind)
    return quietly(fit, function, kind, *numbers)


def quietly(fit: Fit, function: Callable[..., Any], kind: str | None, *numbers: Any) -> Any:
    """The same without a warning of fits that failed, for what is asked of these too."""
    kind = fit._check(kind)
    if not fit.has_batch:
        return _of_one(function, kind, fit, numbers)
    if is_traced(fit, numbers):
        return _of_block(function, kind, fit, numbers)
    host = on_host(fit)
    if not len(fit):  # to know the shapes, the function is run on made-up fits
        zeros = jax.tree.map(lambda leaf: np.zeros((BLOCK, *leaf.shape[1:]), leaf.dtype), host)
        return jax.tree.map(lambda leaf: np.asarray(leaf)[:0], _of_block(function, kind, zeros, numbers))
    parts = []
    for start in range(0, len(fit), BLOCK):
        rows = np.arange(start, start + BLOCK)
        block = host[np.where(rows < len(fit), rows, start)]  # filled up with its first
        parts.append(jax.device_get(_of_block(function, kind, block, numbers)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(fit)], *parts)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _of_one(function: Callable[..., Any], kind: str, fit: Fit, numbers: tuple[Any, ...]) -> Any:
    return function(fit, kind, *numbers)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _of_block(function: Callable[..., Any], kind: str, fits: Fit, numbers: tuple[Any, ...]) -> Any:
    return jax.vmap(lambda fit: function(fit, kind, *numbers))(fits)


def with_data(fit: Fit, function: Callable[..., Any], shared: tuple = ()) -> Any:
    """`function(fit, model, dataset, *shared)` of a fit and its data, or of every one of many with its own.

    The function is hashable, as in `of_each`; the arrays that it returns are numpy's for many fits.
    """
    check_fit(fit)
    model, dataset = origin_of(fit)
    if not fit.has_batch:
        return _one_with_data(function, model, fit, dataset, shared)
    if not len(fit):
        raise ValueError("there are no fits in this batch.")
    size = max(1, min(BLOCK, len(fit), ENTRIES // max(1, dataset.entries * fit.num_parameters)))
    parts, host = [], on_host(fit)
    for start in range(0, len(fit), size):
        rows = np.minimum(np.arange(start, start + size), len(fit) - 1)
        block = _block_with_data(function, model, host[rows], dataset.take(rows), shared)
        parts.append(jax.device_get(block))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(fit)], *parts)


@functools.partial(jit_with_model, static_argnums=(0, 1))
def _one_with_data(function: Callable[..., Any], model: Model, fit: Fit, dataset: Dataset, arrays: tuple) -> Any:
    return function(fit, model, dataset, *arrays)


@functools.partial(jit_with_model, static_argnums=(0, 1))
def _block_with_data(function: Callable[..., Any], model: Model, fits: Fit, datasets: Dataset, arrays: tuple) -> Any:
    def one(fit: Fit, parts: tuple[Any, Any, Any]) -> Any:
        return function(fit, model, Dataset(*parts), *arrays)

    return jax.vmap(one, in_axes=(0, datasets.axes))(fits, datasets.parts)
