"""log P(low < Y ≤ high) from the distribution and survival functions of a model, without loss in either tail.

With F(y) = P(Y ≤ y) and S(y) = P(Y > y) it is log(F(high) − F(low)) or log(S(low) − S(high)). Of the two, that one is taken whose
larger term is the smaller number: in the upper tail F(high) and F(low) are both nearly 1, and their difference has no digit, while
S(low) and S(high) have all of theirs. What remains is the loss by an interval that is narrow beside the distribution: a width of
1e-6 standard deviations leaves ten digits in float64.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from fisher_jax.numerics.stable_functions import log_complement, log_one_minus_exp

LOG_HALF = -0.6931471805599453


def log_difference(larger: Float[Array, "*b"], smaller: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """log(e^larger − e^smaller); −∞, with derivative zero, where rounding leaves nothing of the difference."""
    positive = larger > smaller
    difference = jnp.where(positive, larger - smaller, 1.0)
    value = jnp.where(positive, larger, 0.0) + log_one_minus_exp(difference)
    invalid = jnp.isnan(larger) | jnp.isnan(smaller)
    return jnp.where(positive, value, jnp.where(invalid, jnp.nan, -jnp.inf))


def log_sum(a: Float[Array, "*b"], b: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """log(eᵃ + eᵇ), with finite derivatives where one of them, or both, are −∞."""
    high, low = jnp.maximum(a, b), jnp.minimum(a, b)
    some = low > -jnp.inf
    difference = jnp.where(some, low - high, -1.0)
    return high + jnp.where(some, jnp.log1p(jnp.exp(difference)), 0.0)


def log_between(
    cdf_low: Float[Array, "*b"],
    survival_low: Float[Array, "*b"],
    cdf_high: Float[Array, "*b"],
    survival_high: Float[Array, "*b"],
) -> Float[Array, "*b"]:
    """log P(low < Y ≤ high) from the logarithms of F and S at both ends."""
    in_lower_tail = cdf_high < survival_low
    larger, smaller = (
        jnp.where(in_lower_tail, cdf_high, survival_low),
        jnp.where(in_lower_tail, cdf_low, survival_high),
    )
    return log_difference(larger, smaller)


def larger_from_smaller(log_cdf: Float[Array, "*b"], log_survival: Float[Array, "*b"]) -> tuple[Array, Array]:
    """log F and log S, the larger of the two from the smaller, so that it is exact near zero."""
    is_low = log_cdf < LOG_HALF
    survival = log_complement(jnp.where(is_low, log_cdf, -1.0))
    cdf = log_complement(jnp.where(is_low, -1.0, log_survival))
    return jnp.where(is_low, log_cdf, cdf), jnp.where(is_low, survival, log_survival)


def log_tails(
    log_cdf: Callable[..., Any] | None, log_survival: Callable[..., Any] | None, params: PyTree, y: Any, *z: PyTree
) -> tuple[Array, Array]:
    """log F(y) and log S(y), one from the other where a model has one alone; y may be infinite.

    From the other it has all digits too: log F = log(1 − e^{log S}), and log S is exact near zero.
    """
    y = jnp.asarray(y, jnp.result_type(float, y, *jax.tree.leaves(params)))
    finite = jnp.isfinite(y)
    place = jnp.where(finite, y, 1.0)
    cdf = None if log_cdf is None else log_cdf(params, place, *z)
    survival = None if log_survival is None else log_survival(params, place, *z)
    if cdf is None:
        cdf = log_complement(survival)  # type: ignore[arg-type]
    if survival is None:
        survival = log_complement(cdf)
    below, above = y == -jnp.inf, y == jnp.inf
    nan = jnp.where(jnp.isnan(y), jnp.nan, 0.0)
    return (
        jnp.where(below, -jnp.inf, jnp.where(above, 0.0, cdf)) + nan,
        jnp.where(above, -jnp.inf, jnp.where(below, 0.0, survival)) + nan,
    )
