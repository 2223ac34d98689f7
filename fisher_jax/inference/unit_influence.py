"""How an estimate would move with the weight of an observation or of a cluster, to first order."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fisher_jax.models.dataset import Dataset
from fisher_jax.models.likelihood import likelihood, scores_at
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.programs import jit_with_model
from fisher_jax.numerics import linalg


@functools.partial(jit_with_model, static_argnums=(0, 1, 7), level=1)
def unit_influence(
    model: Model,
    layout: Layout,
    values: Values,
    dataset: Dataset,
    free: Float[Array, " p"],
    curvature: Float[Array, "p p"],
    unit_of: Int[np.ndarray, " n"] | Int[Array, " n"],
    num_units: int,
    weights: Any,
) -> Float[Array, "g p"]:
    """du/dw = J⁻¹ Σ sᵢ over the terms of each unit, weighted where weights multiply them."""
    target = likelihood(model, layout, values, dataset)
    scores = scores_at(target, free)
    if weights is not None:
        weights = jnp.asarray(weights, scores.dtype)[:, None]
        scores = jnp.where(weights == 0, 0.0, weights * scores)
    summed = jnp.zeros((num_units, free.shape[0]), scores.dtype).at[unit_of].add(scores)
    return linalg.solve(linalg.factorise(curvature), summed.T).T
