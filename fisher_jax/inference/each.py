"""The same of one fit and of many: a function of one `Fit`, mapped over a `BatchFit` in blocks."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from fisher_jax.batch_fitted import BatchFit
from fisher_jax.fitted import Fit
from fisher_jax.status import Status


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


@functools.partial(jax.jit, static_argnums=(0, 1))
def _of_one(function: Callable[..., Any], kind: str, fit: Fit, numbers: tuple[Any, ...]) -> Any:
    return function(fit, kind, *numbers)
