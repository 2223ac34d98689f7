"""Several fits given at once: by name, and whether they are of the same data."""

from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from fisher_jax.fitting.result import Fit


def same_data(one: Any, other: Any) -> bool:
    """Whether two fits have as many observations, and the same ones where that can be seen."""
    counts, other_counts = np.asarray(one.num_observations), np.asarray(other.num_observations)
    if counts.shape != other_counts.shape or not np.allclose(counts, other_counts, rtol=1e-5):
        return False
    (data, weights), (others, other_weights) = _seen(one), _seen(other)
    structures: list[Any] = [jax.tree.structure(data), jax.tree.structure(others)]
    if structures[0] != structures[1]:  # each model has its data in its own way
        return _alike(weights, other_weights)
    return all(map(_alike, [*jax.tree.leaves(data), weights], [*jax.tree.leaves(others), other_weights]))


def _seen(fit: Any) -> tuple[PyTree, Any]:
    """The data and weights, where the fit still knows them."""
    if fit.origin is None:
        return None, None
    return fit.origin.dataset.data, fit.origin.dataset.weights


def _alike(x: Any, y: Any) -> bool:
    """Equal, or so different in shape that they may be two ways to write the same."""
    if x is y or x is None or y is None or np.shape(x) != np.shape(y):
        return True
    return np.array_equal(np.asarray(x), np.asarray(y), equal_nan=np.asarray(x).dtype.kind == "f")


def named_fits(fits: Any, named: dict[str, Any]) -> dict[str, Fit]:
    """All fits by name; what is none is refused."""
    if fits is not None and not isinstance(fits, dict):
        raise TypeError(f"expected fits by name, as in gamma=fit, or a dict, got {type(fits).__name__}.")
    if twice := set(fits or {}) & set(named):
        raise ValueError(f"the name {sorted(twice)[0]!r} is given twice.")
    found = {str(name): fit for name, fit in {**(fits or {}), **named}.items()}
    for name, fit in found.items():
        if not isinstance(fit, Fit):
            raise TypeError(f"{name!r} is no Fit but {type(fit).__name__}.")
        if fit.has_batch:
            raise TypeError(
                f"{name!r} holds many fits, and this is a table of single ones. Take one, fits[0], or the arrays "
                "fits.aic()."
            )
        fit._check_single()
    return found
