"""The regularised incomplete beta function I_x(a, b) and its complement I_{1−x}(b, a), as logarithms, and its inverse.

With D(a, b) = a log x + b log(1 − x) − log B(a, b), n = a + b, and logit t = logit x − s in the integral,

    log I_x(a, b) = D(a + 1, b) − log(n x) + log(1 + n x ∫₀^∞ exp(−((a + 1)(1 − x) − b x) s − (n + 1) κ(s)) ds),

κ the centred cumulant function of a Bernoulli variable of probability 1 − x. It uses

    I_x(a, b) = I_x(a + 1, b) + x^a (1 − x)^b / (a B(a, b)),

which spares the integrals of small shapes their long tails. Where logit x is above log((a + ½) / (b + ½)), the complement is
computed instead, with a and b exchanged. `tails` describes the quadrature.

The argument is logit x: both x and 1 − x then keep their digits, and what depends on them has simple derivatives.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import ndtri
from jaxtyping import Array, Float

from fisher_jax.numerics.stable_functions import HALF_LOG_TWO_PI, stirling_error
from fisher_jax.numerics.tails import (
    Tails,
    bernoulli_cumulant,
    both_tails,
    reach_of_quadratic,
    rule_for,
    solve_tails,
    tail_integral,
    tails_at_end,
)


@jax.custom_jvp
def _log_over_mean(a: Array, b: Array, logit: Array, difference: Array) -> Array:
    """log(x / (a / n)), from difference = logit x − log(a / b), which is not differentiated by itself."""
    total = a + b
    return b / total * difference - bernoulli_cumulant(difference, a / total, b / total)


@_log_over_mean.defjvp
def _log_over_mean_along(primals: tuple[Array, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    a, b, logit, _ = primals
    along_a, along_b, along_logit, _ = tangents
    moved = along_b / (a + b) - b / (a * (a + b)) * along_a + jax.nn.sigmoid(-logit) * along_logit
    return _log_over_mean(*primals), moved


@jax.custom_jvp
def _slope(a: Array, b: Array, logit: Array, difference: Array) -> Array:
    """a (1 − x) − b x = −a b (e^difference − 1) / (a e^difference + b), exact near its zero."""
    small = jnp.exp(-jnp.abs(difference))
    under = jnp.where(difference > 0, a + b * small, a * small + b)
    return jnp.sign(difference) * a * (b / under) * jnp.expm1(-jnp.abs(difference))


@_slope.defjvp
def _slope_along(primals: tuple[Array, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    a, b, logit, _ = primals
    along_a, along_b, along_logit, _ = tangents
    x, y = jax.nn.sigmoid(logit), jax.nn.sigmoid(-logit)
    return _slope(*primals), y * along_a - x * along_b - (a + b) * (x * y) * along_logit


@jax.custom_jvp
def log_beta_power(a: Array, b: Array, logit: Array, difference: Array) -> Array:
    """D(a, b) = a log x + b log(1 − x) − log B(a, b), in saddle-point form."""
    total = a + b
    return -total * bernoulli_cumulant(difference, a / total, b / total) + _normaliser(a, b)


def _normaliser(a: Array, b: Array) -> Array:
    """D(a, b) at the mean, x = a / (a + b)."""
    total = a + b
    logs = 0.5 * (jnp.log(a) + jnp.log(b) - jnp.log(total))
    return logs - HALF_LOG_TWO_PI - stirling_error(a) - stirling_error(b) + stirling_error(total)


@log_beta_power.defjvp
def _log_beta_power_along(primals: tuple[Array, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    a, b, logit, difference = primals
    along_a, along_b, along_logit, _ = tangents
    moved = jax.jvp(_normaliser, (a, b), (along_a, along_b))[1]
    moved = moved + _log_over_mean(a, b, logit, difference) * along_a
    moved = moved + _log_over_mean(b, a, -logit, -difference) * along_b
    return log_beta_power(*primals), moved + _slope(*primals) * along_logit


@jax.jit  # traced once for a shape
def log_beta_tails(
    a: Float[Array, "*b"],
    b: Float[Array, "*b"],
    logit: Float[Array, "*b"],
    difference: Float[Array, "*b"] | None = None,
) -> Tails:
    """log I_x(a, b) and log(1 − I_x(a, b)), the logarithms of the lower and the upper tail of the beta distribution.

    Parameters
    ----------
    a, b
        The shapes, positive; NaN elsewhere.
    logit
        log(x / (1 − x)), from −∞ to ∞.
    difference
        logit x − log(a / b), where it is known more exactly than by this subtraction. It matters where a and b are above 10⁸ or so.

    Returns
    -------
    tuple of arrays
        Of the shape to which the arguments broadcast. Any derivatives in a, b and logit exist, in both modes; at logit = ±∞ they
        are 0.

    Notes
    -----
    Accuracy and cost are those of `incomplete_gamma.log_gamma_tails`, with a logarithm besides each exponential.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from fisher_jax.numerics.incomplete_beta import log_beta_tails
    >>> lower, upper = log_beta_tails(jnp.asarray(1e4), jnp.asarray(1.0), jnp.asarray(-10.0))  # I_x(a, 1) = x^a
    >>> print(f"{lower:.0f}")
    -100000
    """
    if difference is None:
        difference = logit - (jnp.log(a) - jnp.log(b))
    a, b, logit, difference = jnp.broadcast_arrays(a, b, logit, lax.stop_gradient(difference))
    inside = (jnp.abs(logit) < jnp.inf) & (a > 0) & (b > 0)
    a_, b_ = jnp.where(inside, a, 1.0), jnp.where(inside, b, 1.0)
    l_, d_ = jnp.where(inside, logit, 0.0), jnp.where(inside, difference, 0.0)
    # x (b + ½) ≤ (1 − x) (a + ½)
    is_lower = _slope(a_, b_, l_, d_) >= 0.5 * jnp.tanh(0.5 * l_)
    tail = _lower_tail(
        jnp.where(is_lower, a_, b_),
        jnp.where(is_lower, b_, a_),
        jnp.where(is_lower, l_, -l_),
        jnp.where(is_lower, d_, -d_),
    )
    lower, upper = both_tails(tail, is_lower)
    invalid = ~((a > 0) & (b > 0)) | jnp.isnan(logit)
    ends = tails_at_end(invalid, logit > 0)
    return jnp.where(inside, lower, ends[0]), jnp.where(inside, upper, ends[1])


def _lower_tail(a: Array, b: Array, logit: Array, difference: Array) -> Array:
    x, y = jax.nn.sigmoid(logit), jax.nn.sigmoid(-logit)
    more, total = a + 1.0, a + b + 1.0
    slope = _slope(a, b, logit, difference) + y
    curvature = total * (x * y)
    reach, limit = reach_of_quadratic(slope, curvature), rule_for(x.dtype).reach
    # Where y is small, the exponent grows like an exponential: s ← log(1 + (exp((limit + b s) / total) − 1) / y) never leads
    # below the root, and is left out where it would be no improvement.
    for _ in range(3):
        reach = jnp.minimum(reach, jnp.log1p(jnp.expm1((limit + b * reach) / total) / y))
    integral = tail_integral(
        lambda s: slope[..., None] * s + total[..., None] * bernoulli_cumulant(s, y[..., None], x[..., None]), reach
    )
    log_x = jax.nn.log_sigmoid(logit)
    return (
        log_beta_power(more, b, logit, lax.stop_gradient(difference - jnp.log1p(1.0 / a)))
        - log_x
        - jnp.log(a + b)
        + jnp.log1p((a + b) * x * integral)
    )


def beta_quantile_of_logit(uniform: Float[Array, ""], a: Float[Array, ""], b: Float[Array, ""]) -> Float[Array, ""]:
    """logit x − log(a / b) at which I_x(a, b) = uniform."""
    z = ndtri(jnp.clip(uniform, jnp.finfo(a.dtype).tiny, 1.0 - jnp.finfo(a.dtype).epsneg))
    # The normal approximation for the logit, where it makes sense
    start = jnp.where((a > 1.0) & (b > 1.0), z * jnp.sqrt(1.0 / a + 1.0 / b), 0.0)
    return solve_tails(_tails_of_difference, uniform, lax.stop_gradient(start), a, b)


def _tails_of_difference(difference: Array, a: Array, b: Array) -> Tails:
    return log_beta_tails(a, b, difference + jnp.log(a) - jnp.log(b), difference)
