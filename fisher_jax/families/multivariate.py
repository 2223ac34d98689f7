"""The multivariate normal family."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from fisher_jax.families.common import Family, Nested, Params, Scalar, floats
from fisher_jax.families.starts import Sample, starting_values
from fisher_jax.models.constraints import positive_definite
from fisher_jax.numerics.linalg import factorize, inverse, solve_lower
from fisher_jax.numerics.stable_functions import HALF_LOG_TWO_PI


def multivariate_normal_log_density(params: Params, y: Float[ArrayLike, " d"]) -> Scalar:
    """Multivariate normal: a real vector y (d,).

    log p(y) = −½ (y − loc)ᵀ Σ⁻¹ (y − loc) − ½ log det Σ − ½ d log 2π.

    - `loc`: real, shape (d,), the mean.
    - `covariance`: positive definite, shape (d, d), of which the symmetric part is taken as Σ, so that each of its d² entries has a
      derivative; the log-density is NaN where Σ is not positive definite.

    Information Σ⁻¹ for `loc`, ¼ (Pᵢₖ Pⱼₗ + Pᵢₗ Pⱼₖ) for covariance entries ij and kl, P = Σ⁻¹, and zero between: of rank
    d (d + 1)/2 over the d² entries. Derived; verified by autodiff and draws in the tests.
    In scipy: `scipy.stats.multivariate_normal(mean=loc, cov=covariance)`.
    Start: moments, correlations shrunk by d / (n + d), so that the covariance is definite for n ≤ d too.
    """
    y, loc, covariance = floats(y, params["loc"], params["covariance"])
    factor = factorize(_symmetric_part(covariance))
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
    factor = factorize(_symmetric_part(covariance))
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


def multivariate_normal_mean(params: Params) -> Float[Array, " d"]:
    return floats(params["loc"])[0]


@starting_values
def multivariate_normal_initial(y: Float[ArrayLike, "n d"]) -> dict[str, Any]:
    s = Sample(y)
    mean, deviation = s.moments()
    d = s.y.shape[1]
    z = s.xp.where(s.inside[:, None], (s.y - mean) / deviation, 0.0)
    weight = s.xp.maximum(d / (s.size + d), d * s.eps)
    correlation = (1.0 - weight) * (z.T @ z) / s.size + weight * s.xp.eye(d, dtype=s.dtype)
    deviation = s.xp.clip(deviation, 16.0 * s.tiny**0.5, 0.1 * s.huge**0.5)  # whose square is a number of the dtype too
    return s.params(loc=mean, covariance=deviation[:, None] * correlation * deviation[None, :])


multivariate_normal = Family(
    multivariate_normal_log_density,
    ("loc", "covariance"),
    main=None,
    sample=multivariate_normal_sample,
    quantile=multivariate_normal_quantile,
    constraints={"covariance": positive_definite},
    initial=multivariate_normal_initial,
    information=multivariate_normal_information,
    mean=multivariate_normal_mean,
)
