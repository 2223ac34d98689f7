"""Families of proportions: one between zero and one, and several that sum to one."""

import jax
import jax.numpy as jnp
from jax.scipy.special import polygamma
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from fisher_jax.families.common import Nested, Params, Scalar, floats, outside_support, symmetric
from fisher_jax.families.special import HALF_LOG_TWO_PI, log_ratio, stirling_error
from fisher_jax.models.constraints import positive
from fisher_jax.models.model import Model

# Beta -----------------------------------------------------------------------------------------------------------------


def beta_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Log-density (a − 1) log y + (b − 1) log(1 − y) + log Γ(a + b) − log Γ(a) − log Γ(b), for 0 < y < 1; `a` and `b` > 0.

    Computed in saddle-point form. Information [[ψ₁(a) − ψ₁(a + b), −ψ₁(a + b)], [·, ψ₁(b) − ψ₁(a + b)]].
    """
    y, a, b = floats(y, params["a"], params["b"])
    outside = (y <= 0) | (y >= 1)
    y = jnp.where(outside, 0.5, y)
    difference = b * y - a * (1.0 - y)  # (a + b) y − a
    logs = jnp.stack([jnp.log(y), jnp.log1p(-y)])
    return outside_support(outside, _dirichlet(jnp.stack([a, b]), jnp.stack([difference, -difference]), logs))


def _dirichlet(alpha: Float[Array, " k"], difference: Float[Array, " k"], log_y: Float[Array, " k"]) -> Scalar:
    """The log-density from nyᵢ − αᵢ and log yᵢ, n = Σα, in saddle-point form."""
    n = jnp.sum(alpha)
    terms = (
        alpha * log_ratio(difference, alpha, jnp.log(n) + log_y) + 0.5 * jnp.log(alpha) - stirling_error(alpha) - log_y
    )
    return jnp.sum(terms) - 0.5 * jnp.log(n) + stirling_error(n) - (alpha.shape[0] - 1) * HALF_LOG_TWO_PI


def beta_sample(key: Array, params: Params) -> Scalar:
    a, b = floats(params["a"], params["b"])
    return jax.random.beta(key, a, b, (), a.dtype)


def beta_information(params: Params) -> Nested:
    a, b = floats(params["a"], params["b"])
    common = polygamma(1, a + b)
    return symmetric(("a", "b"), polygamma(1, a) - common, -common, polygamma(1, b) - common)


beta = Model(
    beta_log_density, sample=beta_sample, constraints={"a": positive, "b": positive}, information=beta_information
)


# Dirichlet ------------------------------------------------------------------------------------------------------------


def dirichlet_log_density(params: Params, y: Float[ArrayLike, " k"]) -> Scalar:
    """Log-density Σ (αᵢ − 1) log yᵢ + log Γ(Σα) − Σ log Γ(αᵢ), for y (K,) positive and summing to one, which is not checked.

    `concentration` α (K,) > 0; a density in any K − 1 of the K proportions. Information diag ψ₁(αᵢ) − ψ₁(Σα) 11ᵀ.
    """
    y, alpha = floats(y, params["concentration"])
    outside = jnp.any(y <= 0)
    y = jnp.where(outside, jnp.ones_like(y) / y.shape[0], y)
    return outside_support(outside, _dirichlet(alpha, jnp.sum(alpha) * y - alpha, jnp.log(y)))


def dirichlet_sample(key: Array, params: Params) -> Float[Array, " k"]:
    alpha = floats(params["concentration"])[0]
    return jax.random.dirichlet(key, alpha, (), alpha.dtype)


def dirichlet_information(params: Params) -> Nested:
    alpha = floats(params["concentration"])[0]
    matrix = jnp.diag(polygamma(1, alpha)) - polygamma(1, jnp.sum(alpha))
    return {"concentration": {"concentration": matrix}}


dirichlet = Model(
    dirichlet_log_density,
    sample=dirichlet_sample,
    constraints={"concentration": positive},
    information=dirichlet_information,
)
