"""Families of proportions: one between zero and one, and several that sum to one."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import polygamma
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from fisher_jax.families.common import Family, Nested, Params, Scalar, floats, outside_support, symmetric
from fisher_jax.families.starts import Sample, between_zero_and_one, starting_values
from fisher_jax.models.constraints import positive
from fisher_jax.numerics.incomplete_beta import beta_quantile_of_logit, log_beta_tails
from fisher_jax.numerics.stable_functions import HALF_LOG_TWO_PI, log_ratio, stirling_error
from fisher_jax.numerics.tails import Tails

# Beta -----------------------------------------------------------------------------------------------------------------


def beta_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Beta: a proportion y between 0 and 1.

    log p(y) = (a − 1) log y + (b − 1) log(1 − y) + log Γ(a + b) − log Γ(a) − log Γ(b), computed in saddle-point form.

    - `a`: positive; the mean is a / (a + b).
    - `b`: positive; a + b is the concentration.

    Information [[ψ₁(a) − ψ₁(a + b), −ψ₁(a + b)], [·, ψ₁(b) − ψ₁(a + b)]].
    In scipy: `scipy.stats.beta(a=a, b=b)`.
    Start: moments.
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


def beta_tails(params: Params, y: ArrayLike) -> Tails:
    y, a, b = floats(y, params["a"], params["b"])
    outside = (y <= 0) | (y >= 1)
    inside = jnp.where(outside, 0.5, y)
    end = jnp.where(y <= 0, -jnp.inf, jnp.inf)
    return log_beta_tails(a, b, jnp.where(outside, end, jnp.log(inside) - jnp.log1p(-inside)))


def beta_log_cdf(params: Params, y: ArrayLike) -> Scalar:
    return beta_tails(params, y)[0]


def beta_log_survival(params: Params, y: ArrayLike) -> Scalar:
    return beta_tails(params, y)[1]


def beta_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    uniform, a, b = floats(uniform, params["a"], params["b"])
    difference = beta_quantile_of_logit(uniform, a, b)
    small = jnp.exp(-jnp.abs(difference))
    return jnp.where(difference < 0, a * small / (a * small + b), a / (a + b * small))


def beta_sample(key: Array, params: Params) -> Scalar:
    a, b = floats(params["a"], params["b"])
    return jax.random.beta(key, a, b, (), a.dtype)


def beta_information(params: Params) -> Nested:
    a, b = floats(params["a"], params["b"])
    common = polygamma(1, a + b)
    return symmetric(("a", "b"), polygamma(1, a) - common, -common, polygamma(1, b) - common)


def beta_mean(params: Params) -> Scalar:
    a, b = floats(params["a"], params["b"])
    return a / (a + b)


@starting_values
def beta_initial(y: ArrayLike) -> dict[str, Any]:
    s = Sample(y, between_zero_and_one)
    mean, deviation = s.moments(otherwise=0.25)
    # The variance is mean (1 − mean) / (a + b + 1).
    total = s.xp.maximum(mean / deviation * ((1.0 - mean) / deviation) - 1.0, 0.1)
    return s.params(a=s.positive(mean * total), b=s.positive((1.0 - mean) * total))


beta = Family(
    beta_log_density,
    ("a", "b"),
    sample=beta_sample,
    quantile=beta_quantile,
    constraints={"a": positive, "b": positive},
    initial=beta_initial,
    information=beta_information,
    log_cdf=beta_log_cdf,
    log_survival=beta_log_survival,
    mean=beta_mean,
    support=(0.0, 1.0),
)


# Dirichlet ------------------------------------------------------------------------------------------------------------


def dirichlet_log_density(params: Params, y: Float[ArrayLike, " k"]) -> Scalar:
    """Dirichlet: proportions y (K,), positive and summing to one, which is not checked.

    log p(y) = Σ (αᵢ − 1) log yᵢ + log Γ(Σα) − Σ log Γ(αᵢ), a density in any K − 1 of the K proportions.

    - `concentration` α: positive, shape (K,); the mean is α / Σα.

    Information diag ψ₁(αᵢ) − ψ₁(Σα) 11ᵀ.
    In scipy: `scipy.stats.dirichlet(alpha=concentration)`.
    Start: moments.
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


def dirichlet_mean(params: Params) -> Float[Array, " k"]:
    alpha = floats(params["concentration"])[0]
    return alpha / jnp.sum(alpha)


@starting_values
def dirichlet_initial(y: Float[ArrayLike, "n k"]) -> dict[str, Any]:
    s = Sample(y, between_zero_and_one)
    mean, deviation = s.moments(otherwise=0.25)
    # The variances are mean (1 − mean) / (Σα + 1); their sums are compared, in which no component of zero spread counts much.
    total = s.xp.maximum(s.xp.sum(mean * (1.0 - mean)) / s.xp.sum(deviation**2) - 1.0, 0.1)
    return s.params(concentration=s.positive(mean * total))


dirichlet = Family(
    dirichlet_log_density,
    ("concentration",),
    main=None,
    sample=dirichlet_sample,
    constraints={"concentration": positive},
    initial=dirichlet_initial,
    information=dirichlet_information,
    mean=dirichlet_mean,
    support=(0.0, 1.0),
)
