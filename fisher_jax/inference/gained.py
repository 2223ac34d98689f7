"""By how much one log-likelihood exceeds another of the same data: by observations where float32 could not tell."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fisher_jax.fitting.each import BLOCK, with_data
from fisher_jax.fitting.result import Fit
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.likelihood import likelihood, terms_at
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout
from fisher_jax.numerics.array_namespace import on_host


def gained_over(fit: Any, null: Any) -> Any:
    """ℓ(θ̂) − ℓ(θ̂₀)."""
    known = fit.origin is not None and null.origin is not None and fit.free.size
    if known and fit.layout.dtype == np.float32:
        return _by_terms(fit, null)
    gained, held = on_host((fit.log_likelihood, null.log_likelihood))
    return gained - held


def gained_over_point(fit: Fit, model: Model, dataset: Dataset, theta: Array) -> Array:
    """What is gained over the point that a hypothesis consists of, by one fit and its data."""
    natural = _wide(fit.layout).natural()
    target = likelihood(model, natural, fit.values, dataset)
    reached = fit.layout.join(fit.layout.constrained_values(fit.free, fit.values)).astype(natural.dtype)
    return jnp.sum(terms_at(target, reached) - terms_at(target, theta.astype(natural.dtype)))


def _by_terms(fit: Any, null: Any) -> Any:
    """The same from the differences of the terms, in float64 where x64 is enabled."""
    if fit.has_batch:
        blocks = [slice(start, start + BLOCK) for start in range(0, len(fit), BLOCK)]
        found = np.concatenate([_difference(fit[block], null[block]) for block in blocks])
        return found.astype(_wide(fit.layout).dtype)
    return jnp.asarray(_difference(fit, null), _wide(fit.layout).dtype)


def _difference(fit: Any, null: Any) -> Any:
    terms, others = (np.asarray(with_data(f, _terms), np.float64) for f in (fit, null))
    if terms.shape == others.shape:
        return np.sum(terms - others, axis=-1)
    return np.sum(terms, axis=-1) - np.sum(others, axis=-1)


def _terms(fit: Fit, model: Model, dataset: Dataset) -> Array:
    layout = _wide(fit.layout)
    return terms_at(likelihood(model, layout, fit.values, dataset), fit.free.astype(layout.dtype))


def _wide(layout: Layout) -> Layout:
    return replace(layout, dtype=jax.dtypes.canonicalize_dtype(np.float64))
