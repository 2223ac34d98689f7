"""Errors and warnings of fits, and optional dependencies with how to get them."""

import importlib
from types import ModuleType


def require(module: str, extra: str, caller: str) -> ModuleType:
    """Import an optional module, or say which extra of fisher_jax brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'{caller} needs {module}: pip install "fisher_jax[{extra}]".') from error


class FitWarning(UserWarning):
    """A number was asked of a fit whose status does not support it, or is less sure than was asked for.

    Examples
    --------
    >>> import fisher_jax as fj, warnings
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", fj.FitWarning)  # stop at the first
    """


class FitError(RuntimeError):
    """Raised by `Fit.raise_if_failed`; the message is that of the status.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> fit = fj.fit(fj.families.poisson, {"rate": 1.0}, jnp.array([2.0, 4.0, 3.0]), max_steps=0)
    >>> try:
    ...     fit.raise_if_failed()
    ... except fj.FitError as error:
    ...     print(str(error)[:10])
    Step limit
    """
