"""The multivariate normal family."""

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from fisher_jax.families.common import Nested, Params, Scalar, floats
from fisher_jax.families.special import HALF_LOG_TWO_PI
from fisher_jax.models.constraints import positive_definite
from fisher_jax.models.model import Model
from fisher_jax.numerics.linalg import factorise, inverse, solve_lower


def multivariate_normal_log_density(params: Params, y: Float[ArrayLike, " d"]) -> Scalar:
    """Log-density −½ (y − loc)ᵀ Σ⁻¹ (y − loc) − ½ log det Σ − ½ d log 2π of a vector y (d,).

    `loc` (d,); `covariance` (d, d) positive definite, of which the symmetric part is taken as Σ, so that each of its d² entries
    has a derivative; NaN where Σ is not positive definite. Information Σ⁻¹ for `loc`, ¼ (Pᵢₖ Pⱼₗ + Pᵢₗ Pⱼₖ) for covariance
    entries ij and kl, P = Σ⁻¹, and none between: of rank d (d + 1)/2 over the d² entries. Derived; verified by autodiff and
    draws in the tests.
    """
    y, loc, covariance = floats(y, params["loc"], params["covariance"])
    factor = factorise(_symmetric_part(covariance))
    diagonal = jnp.where(factor.definite, jnp.diagonal(factor.lower), 1.0)
    half = solve_lower(factor, y - loc)
    half_log_det = jnp.sum(jnp.log(diagonal) + jnp.log(factor.scale))
    value = -0.5 * jnp.sum(half * half) - half_log_det - y.shape[0] * HALF_LOG_TWO_PI
    return jnp.where(factor.definite, value, jnp.nan)


def _symmetric_part(matrix: Float[Array, "d d"]) -> Float[Array, "d d"]:
    return 0.5 * (matrix + matrix.T)


def _transformed(params: Params, z: Float[Array, " d"]) -> Float[Array, " d"]:
    """The y of independent standard normal numbers."""
    loc, covariance = floats(params["loc"], params["covariance"])
    factor = factorise(_symmetric_part(covariance))
    return loc + jnp.where(factor.definite, factor.scale * jnp.sum(factor.lower * z[None, :], axis=1), jnp.nan)


def multivariate_normal_sample(key: Array, params: Params) -> Float[Array, " d"]:
    loc, _ = floats(params["loc"], params["covariance"])
    return _transformed(params, jax.random.normal(key, loc.shape, loc.dtype))


def multivariate_normal_quantile(uniform: Float[ArrayLike, " d"], params: Params) -> Float[Array, " d"]:
    """The y of d uniform numbers, the first coordinate from the first, each further one given those before."""
    return _transformed(params, ndtri(floats(uniform)[0]))


def multivariate_normal_information(params: Params) -> Nested:
    _, covariance = floats(params["loc"], params["covariance"])
    precision = inverse(_symmetric_part(covariance))
    d = precision.shape[0]
    products = precision[:, None, :, None] * precision[None, :, None, :]
    return {
        "loc": {"loc": precision, "covariance": jnp.zeros((d, d, d), precision.dtype)},
        "covariance": {
            "loc": jnp.zeros((d, d, d), precision.dtype),
            "covariance": 0.25 * (products + jnp.swapaxes(products, 2, 3)),
        },
    }


multivariate_normal = Model(
    multivariate_normal_log_density,
    sample=multivariate_normal_sample,
    quantile=multivariate_normal_quantile,
    constraints={"covariance": positive_definite},
    information=multivariate_normal_information,
)
