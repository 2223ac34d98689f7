"""What the tests of many models share."""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest

from fisher_jax.fitting.result import Origin
from fisher_jax.models.dataset import Dataset


def some_of(names, *few):
    """Parameters of a test: a few of the names in every run, the others by `make exhaustive`. A name may be a tuple."""
    if strangers := set(few) - set(names):
        raise ValueError(f"some_of: {sorted(strangers)} are none of {list(names)}.")
    return [
        pytest.param(
            *(name if isinstance(name, tuple) else (name,)), marks=() if name in few else pytest.mark.exhaustive
        )
        for name in names
    ]


@contextlib.contextmanager
def compiled_programs():
    """A list with an entry for each program that XLA compiles meanwhile."""
    compiled = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def batch_of(*fits):
    """Fits of one model to data of one shape as one batch, as `fit_batch` returns it, without compiling its program."""
    leaves, treedef = jax.tree.flatten(fits[0].origin.dataset.parts)
    stacked = [
        np.stack(each) for each in zip(*(jax.tree.leaves(fit.origin.dataset.parts) for fit in fits), strict=True)
    ]
    dataset = Dataset(*jax.tree.unflatten(treedef, stacked), size=len(fits), differs=(True,) * len(leaves))
    batch = jax.tree.map(lambda *of_each: np.stack(of_each), *fits)
    return dataclasses.replace(batch, origin=Origin(fits[0].origin.model, dataset))


def normal_derivatives(residuals, of_mean, variance, slopes, bends):
    """log N(residuals; 0, V), its gradient and Hessian in numpy, for means linear in the parameters and V of separate terms.

    Of each parameter the derivative of the means, V′ and V″; the mixed second derivatives of V are zero.
    """
    inverse = np.linalg.inv(variance)
    weighted = inverse @ residuals
    value = -0.5 * (residuals @ weighted + np.linalg.slogdet(variance)[1] + len(residuals) * np.log(2 * np.pi))
    gradient = of_mean @ weighted + 0.5 * (weighted @ slopes @ weighted - np.trace(inverse @ slopes, axis1=1, axis2=2))
    moved = of_mean + slopes @ weighted  # V times the derivative of −V⁻¹ residuals
    hessian = 0.5 * np.einsum("iab,jba->ij", inverse @ slopes, inverse @ slopes) - moved @ inverse @ moved.T
    second = 0.5 * (weighted @ bends @ weighted - np.trace(inverse @ bends, axis1=1, axis2=2))
    return value, gradient, hessian + np.diag(second)
