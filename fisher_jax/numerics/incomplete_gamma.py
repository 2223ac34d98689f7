"""The regularised incomplete gamma functions P(a, x) and Q(a, x) = 1 − P(a, x), as logarithms, and their inverse.

With D(a, x) = a log x − x − log Γ(a), and t = x e^{∓s} in the integrals,

    log Q(a, x) = D(a, x) + log ∫₀^∞ exp(−(x − a) s − x (eˢ − 1 − s)) ds,
    log P(a, x) = D(a + 1, x) − log x + log(1 + x ∫₀^∞ exp(−(a + 1 − x) s − x (e^{−s} − 1 + s)) ds),

the second from P(a, x) = P(a + 1, x) + x^a e^{−x} / Γ(a + 1), which spares the integrals of small shapes their long tails. Up to
x = a + ½ the lower tail is computed, above the upper; the other is its complement. `tails` describes the quadrature.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import ndtri
from jaxtyping import Array, Float

from fisher_jax.numerics.stable_functions import HALF_LOG_TWO_PI, log_quotient, stirling_error
from fisher_jax.numerics.tails import (
    Tails,
    both_tails,
    poisson_cumulant,
    reach_of_quadratic,
    rule_for,
    solve_tails,
    tail_integral,
    tails_at_end,
)


@jax.custom_jvp
def _log_over_mean(a: Array, x: Array) -> Array:
    """log(x / a)."""
    return log_quotient(x - a, a, x)


@_log_over_mean.defjvp
def _log_over_mean_along(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    """Here −1/a: as a derivative of the quotient's difference and base it would be a difference of two terms 1/x."""
    (a, x), (along_a, along_x) = primals, tangents
    return _log_over_mean(a, x), along_x / x - along_a / a


@jax.custom_jvp
def log_power(a: Float[Array, "*b"], x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """D(a, x) = a log x − x − log Γ(a), in saddle-point form: no large terms are subtracted where x is near a."""
    return -a * poisson_cumulant(_log_over_mean(a, x)) + _normaliser(a)


def _normaliser(a: Array) -> Array:
    """a log a − a − log Γ(a)."""
    return 0.5 * jnp.log(a) - HALF_LOG_TWO_PI - stirling_error(a)


@log_power.defjvp
def _log_power_along(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    """By a, log(x / a) less what the normaliser grows by, which cancels if the value is differentiated as it stands."""
    a, x = primals
    along_a, along_x = tangents
    normaliser, moved = jax.jvp(_normaliser, (a,), (along_a,))
    ratio = _log_over_mean(a, x)
    return -a * poisson_cumulant(ratio) + normaliser, ratio * along_a + moved + (a - x) / x * along_x


@jax.jit  # traced once for a shape
def log_gamma_tails(a: Float[Array, "*b"], x: Float[Array, "*b"]) -> Tails:
    """log P(a, x) and log Q(a, x), the logarithms of the lower and the upper tail of the gamma distribution of shape a and rate 1.

    Parameters
    ----------
    a
        The shape, positive; NaN elsewhere. At a = k + 1 the upper tail is P(Y ≤ k) of a Poisson count of mean x.
    x
        From 0 to infinity; below 0 as at 0.

    Returns
    -------
    tuple of arrays
        Of the shape to which a and x broadcast. Any derivatives in a and x exist, in both modes; at x = 0 and ∞ they are 0.

    Notes
    -----
    In float64 the relative error of the logarithms is a few 1e-14 for shapes from 0.01 on, in the body and far beyond underflow;
    below that the logarithm of a probability near one loses digits like 1/a. An evaluation takes some eighty exponentials.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from fisher_jax.numerics.incomplete_gamma import log_gamma_tails
    >>> lower, upper = log_gamma_tails(jnp.asarray(2.0), jnp.asarray(1e5))  # Q(2, x) = (1 + x) e^{−x}
    >>> print(f"{upper:.4g}")
    -9.999e+04
    """
    a, x = jnp.broadcast_arrays(a, x)
    inside = (x > 0) & (x < jnp.inf) & (a > 0)
    a_, x_ = jnp.where(inside, a, 1.0), jnp.where(inside, x, 1.0)
    is_lower = x_ <= a_ + 0.5
    sign = jnp.where(is_lower, -1.0, 1.0).astype(x_.dtype)
    shape = jnp.where(is_lower, a_ + 1.0, a_)
    # (x − a) first: at large shapes adding 1 loses its digits
    slope = jnp.where(is_lower, 1.0 - (x_ - a_), x_ - a_)
    reach = jnp.where(is_lower, reach_of_quadratic(slope, x_), _reach_of_exponential(a_, x_))
    integral = tail_integral(
        lambda s: slope[..., None] * s + x_[..., None] * poisson_cumulant(sign[..., None] * s), reach
    )
    # One logarithm for both: of the lower tail of (1 + x R) / x
    factor = jnp.where(is_lower, 1.0 + x_ * integral, integral)
    tail = log_power(shape, x_) + jnp.log(factor) - jnp.where(is_lower, jnp.log(x_), 0.0)
    lower, upper = both_tails(tail, is_lower)
    invalid = ~(a > 0) | jnp.isnan(x)
    ends = tails_at_end(invalid, x > 0)
    return jnp.where(inside, lower, ends[0]), jnp.where(inside, upper, ends[1])


def _reach_of_exponential(a: Array, x: Array) -> Array:
    """An s with (x − a) s + x (eˢ − 1 − s) ≥ `Rule.reach`, for x > a."""
    reach, slope = rule_for(x.dtype).reach, jnp.maximum(x - a, 0.0)
    # with s²/2 in place of eˢ − 1 − s; then twice s ← log(1 + (reach + a s) / x), which never leads below the root
    s = 2.0 * reach / (slope + jnp.sqrt(slope * slope + 2.0 * x * reach))
    for _ in range(2):
        s = jnp.log1p((reach + a * s) / x)
    return s


def gamma_quantile_of_log(uniform: Float[Array, ""], a: Float[Array, ""]) -> Float[Array, ""]:
    """log(x / a) at which P(a, x) = uniform."""
    # Wilson and Hilferty's approximation, where it makes sense
    z = ndtri(jnp.clip(uniform, jnp.finfo(a.dtype).tiny, 1.0 - jnp.finfo(a.dtype).epsneg))
    cube_root = 1.0 - 1.0 / (9.0 * a) + z / (3.0 * jnp.sqrt(a))
    start = jnp.where((a > 1.0) & (cube_root > 0.3), 3.0 * jnp.log(jnp.maximum(cube_root, 0.3)), 0.0)
    return solve_tails(_tails_of_log, uniform, lax.stop_gradient(start), a)


def _tails_of_log(log_ratio: Array, a: Array) -> Tails:
    return log_gamma_tails(a, a * jnp.exp(log_ratio))
