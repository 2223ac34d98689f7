"""Several fits given at once: by name, and whether they are of the same data."""

from typing import Any

import jax
import numpy as np

from fisher_jax.batch_fitted import BatchFit
from fisher_jax.fitted import Fit


def same_data(one: Any, other: Any) -> bool:
    """Whether two fits have as many observations, and the same ones where that can be seen."""
    a, b = (fit.fits if isinstance(fit, BatchFit) else fit for fit in (one, other))
    if np.shape(a.num_observations) != np.shape(b.num_observations):
        return False
    if not np.allclose(np.asarray(a.num_observations), np.asarray(b.num_observations), rtol=1e-5):
        return False
    return all(_alike(x, y) for x, y in zip(_seen(one), _seen(other), strict=False))


def _seen(fit: Any) -> list[Any]:
    """The arrays of data and weights, where the fit still knows them."""
    if isinstance(fit, Fit):
        return [] if fit.origin is None else [*jax.tree.leaves(fit.origin.sample.data), fit.origin.sample.weights]
    if fit.origin is None:
        return []
    arrays = fit.origin.sets.arrays()
    return [*jax.tree.leaves(arrays.data), arrays.weights]


def _alike(x: Any, y: Any) -> bool:
    """Equal, or so different in shape that they may be two ways to write the same."""
    if x is y or x is None or y is None or np.shape(x) != np.shape(y):
        return True
    return np.array_equal(np.asarray(x), np.asarray(y), equal_nan=np.asarray(x).dtype.kind == "f")


def named_fits(fits: Any, named: dict[str, Any], caller: str) -> dict[str, Fit]:
    """All fits by name; what is none is refused."""
    if fits is not None and not isinstance(fits, dict):
        raise TypeError(
            f"{caller}: expected fits by name, as in {caller}(gamma=fit), or a dict, got {type(fits).__name__}."
        )
    if twice := set(fits or {}) & set(named):
        raise ValueError(f"{caller}: the name {sorted(twice)[0]!r} is given twice.")
    found = {str(name): fit for name, fit in {**(fits or {}), **named}.items()}
    for name, fit in found.items():
        if isinstance(fit, BatchFit):
            raise TypeError(
                f"{caller}: {name!r} is a BatchFit, one table for many fits. Take one, fits[0], or the arrays fits.aic()."
            )
        if not isinstance(fit, Fit):
            raise TypeError(f"{caller}: {name!r} is no Fit but {type(fit).__name__}.")
        fit._check_single(caller)
    return found
