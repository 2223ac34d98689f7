"""Families of ordered categories: a grade, an answer from "never" to "always", cut from a latent variable."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from fisher_jax.families.common import (
    Family,
    Nested,
    Params,
    Scalar,
    dtype_of,
    exceeds,
    floats,
    not_a_count,
    of_category,
    outside_support,
)
from fisher_jax.models.constraints import ordered
from fisher_jax.numerics.normal_tail import log_normal_cdf
from fisher_jax.numerics.stable_functions import HALF_LOG_TWO_PI, log_sigmoid, one_minus_sigmoid, sigmoid


def _ends(params: Params, y: Array) -> tuple[Array, Array, Array, Array]:
    """The ends of the latent interval of category y less `loc`, and whether it is the first or the last category.

    An end at infinity is replaced by a finite one in a place where it is not used: its derivatives must be finite as well.
    """
    loc, cutpoints = floats(params["loc"], params["cutpoints"])
    number, places = cutpoints.shape[0], jnp.arange(cutpoints.shape[0])
    first, last = y <= 0, y >= number
    upper = jnp.sum(jnp.where(places == jnp.where(last, number - 1, y), cutpoints, 0.0)) - loc
    lower = jnp.sum(jnp.where(places == jnp.where(first, 1, y) - 1, cutpoints, 0.0)) - loc
    return lower, upper, first, last


def _category(params: Params, y: ArrayLike) -> tuple[Array, Array, Array]:
    """y, whether it lies outside 0, …, K − 1, and y with 0 in its place where it does."""
    y, _ = floats(y, params["cutpoints"])
    outside = not_a_count(y) | (y > params["cutpoints"].shape[0])
    return y, outside, jnp.where(outside, 0.0, y)


def _probabilities(cumulative: Float[Array, " k"]) -> Float[Array, " j"]:
    """The probabilities of all categories, from F at the cutpoints."""
    return jnp.diff(cumulative, prepend=0.0, append=1.0)


def _cumulative_information(cumulative: Array, density: Array) -> Nested:
    """Information of `loc` and `cutpoints` from F and f at the cutpoints less `loc`: Σ ∂p_k ∂p_kᵀ / p_k over categories."""
    probabilities = _probabilities(cumulative)
    of_cutpoints = jnp.diff(jnp.diag(density), axis=0, prepend=0.0, append=0.0)  # ∂p_k / ∂cutpoint_j
    slopes = jnp.concatenate([-jnp.sum(of_cutpoints, axis=1, keepdims=True), of_cutpoints], axis=1)
    matrix = (slopes / probabilities[:, None]).T @ slopes
    return {
        "loc": {"loc": matrix[0, 0], "cutpoints": matrix[0, 1:]},
        "cutpoints": {"loc": matrix[1:, 0], "cutpoints": matrix[1:, 1:]},
    }


def _cut(latent: Array, params: Params) -> Int[Array, ""]:
    """The category in which a draw of the latent variable lies."""
    loc, cutpoints = floats(params["loc"], params["cutpoints"])
    return jnp.sum(loc + latent > cutpoints)


def _up_to(params: Params, y: ArrayLike, log_cdf: Callable[[Array], Array], *, upper: bool) -> Scalar:
    """log P(Y ≤ y), or with `upper` log P(Y > y), from the log F of a latent variable that is symmetric about zero."""
    y, loc, cutpoints = floats(y, params["loc"], params["cutpoints"])
    number, places = cutpoints.shape[0], jnp.arange(cutpoints.shape[0])

    def log_probability(cut: Array) -> Scalar:
        end = jnp.sum(jnp.where(places == cut, cutpoints, 0.0)) - loc
        return log_cdf(-end if upper else end)

    return of_category(y, number + 1, log_probability, upper=upper)


# Ordered logit --------------------------------------------------------------------------------------------------------


def ordered_logit_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Ordered logit: y = 0, …, K − 1 is one of K ordered categories, cut from a logistic latent variable; proportional odds.

    log p(y) = log(F(c_y − loc) − F(c_{y−1} − loc)), F(x) = 1 / (1 + e^{−x}), c_{−1} = −∞ and c_{K−1} = ∞.

    - `loc`: real, the location of the latent variable; larger values make higher categories more probable.
    - `cutpoints` c: shape (K − 1,), increasing. Adding one number to `loc` and to all of them changes nothing.

    Mean p (K,), that of the K indicators of y.
    Information Σ ∂p_k ∂p_kᵀ / p_k, of rank K − 1: fit with `loc` a function of covariates without a constant, by `formula` or
    `linked`, or held at zero.
    In scipy: differences of `scipy.stats.logistic.cdf(cutpoints - loc)`.
    No `initial`: the data do not determine K, so give params.
    """
    y, outside, inside = _category(params, y)
    lower, upper, first, last = _ends(params, inside)
    # F(b) − F(a) = F(b) F(−a) (1 − e^{a − b}), none of which cancels
    between = ~(first | last)
    difference = jnp.log(-jnp.expm1(jnp.where(between, lower - upper, -1.0)))
    below = jnp.where(last, 0.0, log_sigmoid(upper))
    above = jnp.where(first, 0.0, log_sigmoid(-lower))
    value = below + above + jnp.where(between, difference, 0.0)
    return outside_support(outside, jnp.where(jnp.isnan(y), jnp.nan, value))


def ordered_logit_sample(key: Array, params: Params) -> Int[Array, ""]:
    return _cut(jax.random.logistic(key, (), dtype_of(params)), params)


def ordered_logit_quantile(uniform: ArrayLike, params: Params) -> Int[Array, ""]:
    loc, cutpoints = floats(params["loc"], params["cutpoints"])
    return jnp.sum(exceeds(uniform, sigmoid(cutpoints - loc), sigmoid(loc - cutpoints)))


def ordered_logit_log_cdf(params: Params, y: ArrayLike) -> Scalar:
    return _up_to(params, y, log_sigmoid, upper=False)


def ordered_logit_log_survival(params: Params, y: ArrayLike) -> Scalar:
    return _up_to(params, y, log_sigmoid, upper=True)


def ordered_logit_information(params: Params) -> Nested:
    loc, cutpoints = floats(params["loc"], params["cutpoints"])
    z = cutpoints - loc
    return _cumulative_information(sigmoid(z), sigmoid(z) * one_minus_sigmoid(z))


def ordered_logit_mean(params: Params) -> Float[Array, " k"]:
    loc, cutpoints = floats(params["loc"], params["cutpoints"])
    return _probabilities(sigmoid(cutpoints - loc))


ordered_logit = Family(
    ordered_logit_log_density,
    ("loc", "cutpoints"),
    sample=ordered_logit_sample,
    quantile=ordered_logit_quantile,
    constraints={"cutpoints": ordered},
    information=ordered_logit_information,
    log_cdf=ordered_logit_log_cdf,
    log_survival=ordered_logit_log_survival,
    mean=ordered_logit_mean,
    support=(0.0, 1.0),
    discrete=True,
)


# Ordered probit -------------------------------------------------------------------------------------------------------


def ordered_probit_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Ordered probit: y = 0, …, K − 1 is one of K ordered categories, cut from a normal latent variable of variance one.

    log p(y) = log(Φ(c_y − loc) − Φ(c_{y−1} − loc)), c_{−1} = −∞ and c_{K−1} = ∞.

    - `loc`: real, the mean of the latent variable; larger values make higher categories more probable.
    - `cutpoints` c: shape (K − 1,), increasing. Adding one number to `loc` and to all of them changes nothing.

    Mean p (K,), that of the K indicators of y.
    Information Σ ∂p_k ∂p_kᵀ / p_k, of rank K − 1: fit with `loc` a function of covariates without a constant, by `formula` or
    `linked`, or held at zero.
    In scipy: differences of `scipy.stats.norm.cdf(cutpoints - loc)`.
    No `initial`: the data do not determine K, so give params.
    """
    y, outside, inside = _category(params, y)
    lower, upper, first, last = _ends(params, inside)
    # In the tail where the probabilities are small: Φ(b) − Φ(a) = Φ(−a) − Φ(−b).
    between = ~(first | last)
    right = between & (lower + upper > 0)
    far = jnp.where(right, -lower, upper)
    near = jnp.where(right, -upper, lower)
    top = log_normal_cdf(jnp.where(last, -lower, far))
    rest = jnp.log(-jnp.expm1(jnp.where(between, log_normal_cdf(jnp.where(between, near, -1.0)) - top, -1.0)))
    value = top + jnp.where(between, rest, 0.0)
    return outside_support(outside, jnp.where(jnp.isnan(y), jnp.nan, value))


def ordered_probit_sample(key: Array, params: Params) -> Int[Array, ""]:
    return _cut(jax.random.normal(key, (), dtype_of(params)), params)


def ordered_probit_quantile(uniform: ArrayLike, params: Params) -> Int[Array, ""]:
    loc, cutpoints = floats(params["loc"], params["cutpoints"])
    return jnp.sum(exceeds(uniform, ndtr(cutpoints - loc), ndtr(loc - cutpoints)))


def ordered_probit_log_cdf(params: Params, y: ArrayLike) -> Scalar:
    return _up_to(params, y, log_normal_cdf, upper=False)


def ordered_probit_log_survival(params: Params, y: ArrayLike) -> Scalar:
    return _up_to(params, y, log_normal_cdf, upper=True)


def ordered_probit_information(params: Params) -> Nested:
    loc, cutpoints = floats(params["loc"], params["cutpoints"])
    z = cutpoints - loc
    return _cumulative_information(ndtr(z), jnp.exp(-0.5 * z * z - HALF_LOG_TWO_PI))


def ordered_probit_mean(params: Params) -> Float[Array, " k"]:
    loc, cutpoints = floats(params["loc"], params["cutpoints"])
    return _probabilities(ndtr(cutpoints - loc))


ordered_probit = Family(
    ordered_probit_log_density,
    ("loc", "cutpoints"),
    sample=ordered_probit_sample,
    quantile=ordered_probit_quantile,
    constraints={"cutpoints": ordered},
    information=ordered_probit_information,
    log_cdf=ordered_probit_log_cdf,
    log_survival=ordered_probit_log_survival,
    mean=ordered_probit_mean,
    support=(0.0, 1.0),
    discrete=True,
)
