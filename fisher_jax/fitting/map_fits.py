"""Map a compiled function over one fit or many, in blocks of one size, so that one program serves all."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fisher_jax.blocks import map_blocks
from fisher_jax.fitting.result import Fit, origin_of
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.model import Model
from fisher_jax.models.programs import jit_with_model
from fisher_jax.numerics.array_namespace import is_traced, on_host

BLOCK = 4096  # fits in a block
ENTRIES = 2**22  # entries of data times parameters in a block


def check_fit(fit: Any) -> None:
    """Raise for anything but a fit."""
    if not isinstance(fit, Fit):
        raise TypeError(f"expected a Fit, got {type(fit).__name__}. Fit the model first.")


def of_each(fit: Fit, function: Callable[..., Any], kind: str | None, *numbers: Any, warns: bool = True) -> Any:
    """`function(fit, kind, *numbers)` of a fit, or of each of many; with a warning about those that failed, unless it is waived.

    The function is hashable: it is compiled once for all that are equal.
    """
    check_fit(fit)
    kind = fit._check(kind)
    if warns:
        fit._warn(kind)
    if not fit.has_batch or is_traced(fit, numbers):
        return _compiled(function, kind, fit, numbers)
    host = on_host(fit)
    if not len(fit):  # the shapes of no results are those of made-up fits
        zeros = jax.tree.map(lambda leaf: np.zeros((BLOCK, *leaf.shape[1:]), leaf.dtype), host)
        return jax.tree.map(lambda leaf: np.asarray(leaf)[:0], _compiled(function, kind, zeros, numbers))
    return map_blocks(lambda rows: _compiled(function, kind, host[rows], numbers), len(host), BLOCK)


def with_data(fit: Fit, function: Callable[..., Any], shared: tuple = (), each: tuple = ()) -> Any:
    """`function(fit, model, dataset, *shared)` of a fit and its data, or of each of many and its own.

    `each` are further arguments that differ among many fits, with a first axis over them. The function is hashable, as in
    `of_each`; the arrays that it returns are numpy's for many fits.
    """
    check_fit(fit)
    model, dataset = origin_of(fit)
    if not fit.has_batch:
        return _compiled_with_data(function, model, fit, dataset, shared, ())
    if not len(fit):
        raise ValueError("there are no fits in this batch.")
    size = max(1, min(BLOCK, len(fit), ENTRIES // max(1, dataset.entries * fit.num_parameters)))

    host = on_host(fit)
    return map_blocks(
        lambda rows: _compiled_with_data(
            function, model, host[rows], dataset.take(rows), shared, tuple(array[rows] for array in each)
        ),
        len(fit),
        size,
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compiled(function: Callable[..., Any], kind: str, fit: Fit, numbers: tuple[Any, ...]) -> Any:
    def of_one(fit: Fit) -> Any:
        return function(fit, kind, *numbers)

    return (jax.vmap(of_one) if fit.has_batch else of_one)(fit)


@functools.partial(jit_with_model, static_argnums=(0, 1), level=1)
def _compiled_with_data(
    function: Callable[..., Any], model: Model, fit: Fit, dataset: Dataset, shared: tuple, each: tuple
) -> Any:
    def of_one(fit: Fit, parts: tuple[Any, ...], *each: Any) -> Any:
        return function(fit, model, Dataset(*parts), *shared, *each)

    if not fit.has_batch:
        return function(fit, model, dataset, *shared)
    return jax.vmap(of_one, in_axes=(0, dataset.axes_with_strength, *(0,) * len(each)))(
        fit, dataset.with_strength, *each
    )
