"""Information criteria of a fit, from plain arrays."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fisher_jax.fitting.covariance import precise
from fisher_jax.numerics import linalg


def aicc(log_likelihood: Any, num_parameters: int, num_observations: Any) -> Array:
    """AIC with the correction for small samples; NaN where n ≤ p + 1, for which it is not defined.

    References
    ----------
    Hurvich, C. M. and Tsai, C.-L. (1989), Biometrika 76, 297-307.
    """
    left = jnp.asarray(num_observations) - num_parameters - 1
    penalty = jnp.where(left > 0, 2.0 * num_parameters * num_observations / jnp.where(left > 0, left, 1.0), jnp.nan)
    return penalty - 2.0 * jnp.asarray(log_likelihood)


def tic(log_likelihood: Any, curvature: Float[Array, "p p"], outer_product: Float[Array, "p p"]) -> Array:
    """2 tr(J⁻¹K) − 2ℓ, the same in every parametrisation; NaN where J is not positive definite.

    References
    ----------
    Takeuchi, K. (1976), Suri-Kagaku 153, 12-18; Burnham, K. P. and Anderson, D. R. (2002), Model Selection and Multimodel
    Inference, eq. (2.4).
    """
    with jax.default_matmul_precision("highest"):
        product = linalg.inverse(precise(curvature)) * precise(outer_product)
    return 2.0 * jnp.sum(product) - 2.0 * jnp.asarray(log_likelihood)
