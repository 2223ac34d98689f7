"""White's indicators, the upper triangle of s sᵀ + H: their mean at an estimate, and their covariance under the model."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.fitting.result import Fit, Origin
from fisher_jax.inference.replicates import given_of_draws, num_rows
from fisher_jax.models.drawing import draw_data_sets
from fisher_jax.models.likelihood import terms_of
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.programs import jit_with_model
from fisher_jax.numerics import linalg
from fisher_jax.numerics.differentiate import each_at, weigh

_LEAST_DRAWS = 2000  # observations that a covariance comes from
_DRAWS_EACH = 20  # and that each score and each indicator adds to them


def indicators(fit: Fit) -> np.ndarray:
    """The upper triangle of (1/n) Σ (s sᵀ + H), in the unconstrained parameters; of a batch those of each (R, k)."""
    rows, columns = np.triu_indices(fit.num_parameters)
    difference = np.asarray(fit.outer_product, float) - np.asarray(fit.curvature, float)
    return difference[..., rows, columns] / np.asarray(fit.num_observations, float)[..., None]


def spreads(fit: Fit, origin: Origin, frees: Float[np.ndarray, "r p"], key: Any) -> np.ndarray:
    """The covariance (R, k, k) of n times the indicators at each of these u, estimation included, if the model is right there.

    Summed over observations, E[m mᵀ] − E[m sᵀ] E[s sᵀ]⁻¹ E[s mᵀ] for one's indicators m, on draws from the model at u itself.

    References
    ----------
    White, H. (1982), Econometrica 50, 1-25, section 4; in this form Lancaster, T. (1984), Econometrica 52, 1051-1053.
    """
    given, weights = given_of_draws(origin)
    rows, p = num_rows(origin, given), fit.num_parameters
    wanted = max(_LEAST_DRAWS, _DRAWS_EACH * (p + p * (p + 1) // 2))
    copies = -(-wanted // max(1, round(float(fit.num_observations))))
    return np.asarray(_spreads(origin.model, fit.layout, rows, copies, fit.values, frees, given, weights, key))


@functools.partial(jit_with_model, static_argnums=(0, 1, 2, 3))
def _spreads(
    model: Model,
    layout: Layout,
    rows: int,
    copies: int,
    values: Values,
    frees: Float[Array, "r p"],
    given: PyTree,
    weights: Any,
    key: Any,
) -> Float[Array, "r k k"]:
    terms = terms_of(model, layout, values, given is not None)
    upper = np.triu_indices(frees.shape[1])
    each = _each_of_series if model.is_dependent else each_at

    def one(numbered: tuple[Array, Array]) -> Array:
        number, free = numbered
        at, own = layout.constrained_values(free, values), jax.random.fold_in(key, number)
        drawn = draw_data_sets(model, layout, at, given, rows, own, jnp.arange(copies))

        def of_copy(y: PyTree) -> tuple[Array, Array]:
            scores, hessians = each(terms, free, y if given is None else (y, given))
            m = scores[:, :, None] * scores[:, None, :] + hessians
            return weigh(scores, weights), weigh(m[:, upper[0], upper[1]], weights)

        s, m = (part.reshape(-1, part.shape[-1]) for part in jax.vmap(of_copy)(drawn))
        return _left_over(m, s) / copies

    return jax.lax.map(one, (jnp.arange(len(frees)), frees))


def _each_of_series(terms: Any, free: Float[Array, " p"], rows: PyTree) -> tuple[Array, Array]:
    """The score and the Hessian of each term, where every term may need all the data."""
    slopes = jax.jacfwd(lambda u: terms(u, rows))
    return slopes(free), jax.jacfwd(slopes)(free)


def _left_over(m: Float[Array, "d k"], s: Float[Array, "d p"]) -> Float[Array, "k k"]:
    """Σ m mᵀ less what regression on s explains of it."""
    with jax.default_matmul_precision("highest"):
        factor = linalg.factorise(s.T @ s)
        rest = m - s @ linalg.solve(factor, s.T @ m)
        return rest.T @ rest
