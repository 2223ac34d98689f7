"""The same of one fit and of many: a function of one `Fit`, mapped over a `BatchFit` in blocks."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from fisher_jax.fitting.batch_fitted import BLOCK, BatchFit, batch_origin_of
from fisher_jax.fitting.fitted import Fit, origin_of
from fisher_jax.fitting.status import Status
from fisher_jax.models.model import Model, Sample
from fisher_jax.models.parameters import joined

ENTRIES = 2**22  # entries of data times parameters that are worked on at once


def check_fit(fit: Any, caller: str) -> None:
    """Refuse what is no fit."""
    if not isinstance(fit, Fit | BatchFit):
        raise TypeError(f"{caller}: expected a Fit or a BatchFit, got {type(fit).__name__}. Fit the model first.")


def one_of(fit: Any) -> Fit:
    """The record itself: of a batch, all in one."""
    return fit.fits if isinstance(fit, BatchFit) else fit


def is_known(fit: Any) -> bool:
    """Whether the fit's numbers can be looked at now, not only when compiled code runs."""
    return isinstance(fit, BatchFit) or isinstance(fit.status, Status)


def model_of(fit: Any, caller: str) -> Model:
    """The model of a fit that knows its origin."""
    return (batch_origin_of if isinstance(fit, BatchFit) else origin_of)(fit, caller)[0]


def warn_of_failed(fit: Any, caller: str) -> None:
    """A `FitWarning` where a fit, or one of a batch, did not converge, for the public function two calls up."""
    fit._warn(caller, stacklevel=4)


def of_each(fit: Any, function: Callable[..., Any], kind: str, caller: str, *numbers: Any) -> Any:
    """`function(fit, kind, *numbers)` of a fit, or of every one of a batch; with a warning of those that failed.

    The function is hashable, for it is compiled once for each that is not equal to one before.
    """
    check_fit(fit, caller)
    if isinstance(fit, BatchFit):
        return fit._of_each(function, kind, caller, *numbers, stacklevel=4)
    fit._check(kind, caller)
    fit._warn(caller, stacklevel=4)
    return _of_one(function, kind, fit, numbers)


def quietly(fit: Any, function: Callable[..., Any], kind: str, caller: str, *numbers: Any) -> Any:
    """The same without a word on fits that failed, for what is asked of these too."""
    if isinstance(fit, BatchFit):
        return fit._of_each(function, kind, caller, *numbers, warn=False)
    fit._check(kind, caller)
    return _of_one(function, kind, fit, numbers)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _of_one(function: Callable[..., Any], kind: str, fit: Fit, numbers: tuple[Any, ...]) -> Any:
    return function(fit, kind, *numbers)


def with_data(fit: Any, function: Callable[..., Any], caller: str, shared: tuple = ()) -> Any:
    """`function(fit, model, sample, *shared)` of a fit and its data, or of every one of a batch with its own.

    The function is hashable, as in `of_each`; the arrays that it returns are numpy's for a batch.
    """
    check_fit(fit, caller)
    if isinstance(fit, Fit):
        model, sample = origin_of(fit, caller)
        return _one_with_data(function, model, fit, sample, shared)
    model, sets = batch_origin_of(fit, caller)
    if not len(fit):
        raise ValueError(f"{caller}: there are no fits in this batch.")
    own = [fit.fits, sets.own[1:]]
    size = max(1, min(BLOCK, len(fit), ENTRIES // max(1, sets.entries * fit.num_parameters)))
    parts = []
    for start in range(0, len(fit), size):
        rows = np.minimum(np.arange(start, start + size), len(fit) - 1)
        block = jax.tree.map(lambda leaf, rows=rows: leaf[rows], own)
        parts.append(
            jax.device_get(
                _block_with_data(function, model, _Put(sets.mapped, sets.treedef), block, sets.shared, shared)
            )
        )
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(fit)], *parts)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _one_with_data(function: Callable[..., Any], model: Model, fit: Fit, sample: Sample, arrays: tuple) -> Any:
    return function(fit, model, sample, *arrays)


class _Put(NamedTuple):
    """How the arrays of a data set are put together."""

    mapped: tuple[bool, ...]
    treedef: Any

    def sample(self, own: list[Any], shared: list[Any]) -> Sample:
        return Sample(*jax.tree.unflatten(self.treedef, joined(self.mapped, own, shared))[1:])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _block_with_data(
    function: Callable[..., Any], model: Model, put: _Put, block: list[Any], common: list[Any], shared: tuple
) -> Any:
    def one(fit: Fit, own: list[Any]) -> Any:
        return function(fit, model, put.sample(own, common), *shared)

    return jax.vmap(one)(*block)
