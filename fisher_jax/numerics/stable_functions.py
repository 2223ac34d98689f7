"""Functions that keep log-densities and their derivatives exact where the textbook formula loses digits.

Differences of log-gamma functions cancel: at counts of a million, float32 has no digit of a log-probability left, and
float64 half. Loader's saddle-point form (Loader, C. 2000, Fast and accurate computation of binomial probabilities)
replaces log Γ by `stirling_error`, which is small, and y log(mean/y) by `times_log_ratio`, which does not cancel near mean = y.
All functions here are smooth through their special points, in value, first and second derivative.
"""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.scipy.special import i0e, i1e
from jaxtyping import Array, Bool, Float

HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)

_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156, -3617 / 122400)
_SHIFT = 8


def _halves(x: Float[Array, "*b"]) -> tuple[Float[Array, "*b"], Float[Array, "*b"]]:
    """Of the logistic distribution at x the larger tail, and the smaller: 1 / (1 + e) and e / (1 + e) with e = exp(−|x|)."""
    power = jnp.exp(-jnp.abs(x))
    larger = 1.0 / (1.0 + power)
    return larger, power * larger


@jax.custom_jvp
def log_sigmoid(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """log(1 / (1 + e⁻ˣ)). Its derivatives, of every order, take one exponential and no other function.

    Those of `jax.nn.log_sigmoid` take a longer program with each order.
    """
    return jnp.minimum(x, 0.0) - jnp.log1p(jnp.exp(-jnp.abs(x)))


@jax.custom_jvp
def sigmoid(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """1 / (1 + e⁻ˣ)."""
    larger, smaller = _halves(x)
    return jnp.where(x < 0, smaller, larger)


@jax.custom_jvp
def one_minus_sigmoid(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """1 / (1 + eˣ), which is what is left of one, without cancellation."""
    larger, smaller = _halves(x)
    return jnp.where(x < 0, larger, smaller)


@jax.custom_jvp
def _sigmoid_slope(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """p (1 − p) for p = `sigmoid`."""
    larger, smaller = _halves(x)
    return larger * smaller


log_sigmoid.defjvps(lambda along, _, x: one_minus_sigmoid(x) * along)
sigmoid.defjvps(lambda along, _, x: _sigmoid_slope(x) * along)
one_minus_sigmoid.defjvps(lambda along, _, x: -_sigmoid_slope(x) * along)
_sigmoid_slope.defjvps(lambda along, slope, x: slope * (one_minus_sigmoid(x) - sigmoid(x)) * along)


def horner(coefficients: tuple[float, ...], x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """The polynomial c₀ + c₁ x + c₂ x² + …"""
    value = jnp.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + coefficient
    return value


@jax.custom_jvp
@jax.jit  # traced once for a shape, however often a density and its derivatives call it
def stirling_error(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """S(x) = log Γ(x) − (x − ½) log x + x − ½ log 2π for x > 0, absolutely exact to a few rounding errors.

    Stirling's series from 8 on; below, the recurrence of Γ leads there. With two derivatives it takes a third of the time of
    `gammaln` and its own. Those of higher order, which latent effects need, are sums written out: taken by JAX, each would be a
    program nearly twice as long as the one before.
    """
    small, low, far = _shifted(x)
    pair, scale = low * (low + 7.0), 1.0 / (low + _SHIFT) ** 2
    product = (pair * scale) * ((pair + 6.0) * scale) * ((pair + 10.0) * scale) * ((pair + 12.0) * scale)
    step = (
        (low - 0.5) * jnp.log1p(_SHIFT / low) - _SHIFT - jnp.log(product)
    )  # the product of (x + k) / (x + 8), k = 0 … 7
    return horner(_STIRLING, 1.0 / (far * far)) / far + jnp.where(small, step, 0.0)


def _shifted(x: Float[Array, "*b"]) -> tuple[Bool[Array, "*b"], Float[Array, "*b"], Float[Array, "*b"]]:
    """Whether x is below the range of the series, x if it is, and where the series is taken."""
    small = x < _SHIFT
    low = jnp.where(small, x, 1.0)
    return small, low, jnp.where(small, low + _SHIFT, x)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
@functools.partial(jax.jit, static_argnums=0)
def _stirling_derivative(order: int, x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """The derivative of S of an order from 1 on.

    With g(t) = (t + ½) log(1 + 1/t) − 1 it is that of S(x + 8) + g(x) + … + g(x + 7); of the logarithms in the derivatives of g
    all but the first and the last cancel.
    """
    small, low, far = _shifted(x)
    factors = [math.prod(range(2 * k + 1, 2 * k + 1 + order)) * c for k, c in enumerate(_STIRLING)]
    inverse = 1.0 / far
    series = horner(tuple(factors), inverse * inverse) * inverse ** (order + 1)
    # Those of x + k and x + 8 − k by one division, with the inverse of their product.
    pairs = [(low + k, low + (_SHIFT - k)) for k in range(_SHIFT // 2)]
    of_products = [1.0 / (left * right) for left, right in pairs]
    inverses = [right * each for each, (_, right) in zip(of_products, pairs, strict=True)]
    inverses += [1.0 / (low + _SHIFT // 2)]
    inverses += [left * each for each, (left, _) in zip(of_products[::-1], pairs[::-1], strict=True)]
    first, *between, last = (inverse**order for inverse in inverses)
    middle = math.factorial(order - 1) * sum(between, 0.5 * (first + last))
    if order == 1:
        ends = -jnp.log1p(_SHIFT / low)
    else:
        ends = math.factorial(order - 2) * (inverses[-1] ** (order - 1) - inverses[0] ** (order - 1))
    return (-1) ** order * (series + jnp.where(small, ends + middle, 0.0))


stirling_error.defjvps(lambda along, _, x: _stirling_derivative(1, x) * along)


@_stirling_derivative.defjvp
def _(order: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _stirling_derivative(order, *primals), _stirling_derivative(order + 1, *primals) * tangents[0]


def log_ratio(difference: Float[Array, "*b"], base: Float[Array, "*b"], log_sum: Float[Array, "*b"]) -> Array:
    """log((base + difference) / base) for base > 0, given log(base + difference)."""
    near = jnp.abs(difference) < 0.5 * base
    return jnp.where(near, jnp.log1p(jnp.where(near, difference / base, 0.0)), log_sum - jnp.log(base))


def times_log_ratio(y: Float[Array, "*b"], difference: Float[Array, "*b"], log_mean: Float[Array, "*b"]) -> Array:
    """y log(mean / y) with mean = y + difference, zero at y = 0, where `log_mean` must be finite all the same."""
    empty = y == 0
    return y * log_ratio(jnp.where(empty, 0.0, difference), jnp.where(empty, 1.0, y), log_mean)


@jax.custom_jvp
def log_quotient(difference: Float[Array, "*b"], base: Float[Array, "*b"], total: Float[Array, "*b"]) -> Array:
    """log(total / base) with total = base + difference, as `log_ratio`, where the logarithm of the total is not at hand.

    One logarithm serves both cases: near total = base that of 1 + difference / base, with what rounding took from that sum.
    """
    near = jnp.abs(difference) < 0.5 * base
    ratio = jnp.where(near, difference / base, 0.0)
    rounded = 1.0 + ratio
    unit = rounded - ratio  # 1 to rounding; XLA would simplify (1 + ratio) − 1 to `ratio`
    remainder = (ratio - (rounded - unit)) + (1.0 - unit)
    # The correction is remainder / rounded, here to a quarter of the remainder.
    return jnp.log(jnp.where(near, rounded, total)) + jnp.where(near, remainder * (1.0 - ratio), -jnp.log(base))


@functools.partial(log_quotient.defjvp, symbolic_zeros=True)
def _log_quotient_slope(primals: tuple[Array, ...], tangents: tuple[Any, ...]) -> tuple[Array, Any]:
    difference, base, total = primals
    along_difference, along_base, _ = tangents
    moved = jnp.zeros_like(total)
    if not isinstance(along_difference, SymbolicZero):
        moved = along_difference / total
    if not isinstance(along_base, SymbolicZero):
        moved = moved - difference / base / total * along_base
    return log_quotient(difference, base, total), moved


def log1p_over(w: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """log(1 + w) / w for w > −1, one at w = 0. Near there the series of 2 artanh(w / (2 + w)) / w."""
    near = jnp.abs(w) < 0.3
    small, large = jnp.where(near, w, 0.0), jnp.where(near, 1.0, w)
    u = small / (2.0 + small)
    series = 2.0 / (2.0 + small) * horner(tuple(1.0 / (2 * k + 1) for k in range(11)), u * u)
    return jnp.where(near, series, jnp.log1p(large) / large)


def expm1_over(w: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """(eʷ − 1) / w, one at w = 0."""
    zero = w == 0
    safe = jnp.where(zero, 1.0, w)
    return jnp.where(zero, 1.0 + 0.5 * w, jnp.expm1(safe) / safe)


# Coefficients of I₀(κ) e^{−κ} √(2πκ) in 1/κ (Hankel's expansion)
_HANKEL = tuple(itertools.accumulate(range(1, 20), lambda c, k: c * (2 * k - 1) ** 2 / (8.0 * k), initial=1.0))
_HANKEL_FROM = 25.0


def log_i0e(kappa: Float[Array, ""]) -> Float[Array, ""]:
    """log(I₀(κ) e^{−κ}) for κ > 0. Hankel's expansion from 25 on, since derivatives of the Bessel functions cancel there."""
    far = kappa > _HANKEL_FROM
    low, high = jnp.where(far, 1.0, kappa), jnp.where(far, kappa, _HANKEL_FROM)
    expansion = jnp.log(horner(_HANKEL, 1.0 / high)) - 0.5 * jnp.log(high) - HALF_LOG_TWO_PI
    return jnp.where(far, expansion, jnp.log(i0e(low)))


def bessel_ratio(kappa: Float[Array, ""]) -> Float[Array, ""]:
    """A(κ) = I₁(κ) / I₀(κ), the mean resultant length of the von Mises distribution."""
    return i1e(kappa) / i0e(kappa)


def alternating_weights(terms: int) -> np.ndarray:
    """Weights wₖ with Σ wₖ aₖ ≈ Σ (−1)ᵏ aₖ to 5.8^−terms (Cohen, Rodriguez Villegas and Zagier 2000, algorithm 1)."""
    d = (3.0 + math.sqrt(8.0)) ** terms
    d = (d + 1.0 / d) / 2.0
    b, c, weights = -1.0, -d, []
    for k in range(terms):
        c = b - c
        weights.append(c / d)
        b *= (k + terms) * (k - terms) / ((k + 0.5) * (k + 1.0))
    return np.array(weights)


# Both sides of a distribution function from one ------------------------------------------------------------------------


@jax.custom_jvp
@jax.jit
def log_one_minus_exp(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """log(1 − e^{−x}) for x ≥ 0: log P(Y ≤ y) where log P(Y > y) is −x. At zero −∞, with derivative zero; NaN below.

    References
    ----------
    Mächler, M. (2012), Accurately computing log(1 − exp(−|a|)), vignette of the R package Rmpfr, eq. (7).
    """
    near, empty = x < math.log(2.0), x == 0
    small, large = jnp.where(near & ~empty, x, 1.0), jnp.where(near, 1.0, x)
    value = jnp.where(near, jnp.log(-jnp.expm1(-small)), jnp.log1p(-jnp.exp(-large)))
    return jnp.where(empty, -jnp.inf, jnp.where(x < 0, jnp.nan, value))


def log_complement(log_probability: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """log(1 − p) from log p; what rounding puts above 0 counts as 0."""
    return log_one_minus_exp(-jnp.minimum(log_probability, 0.0))


@jax.custom_jvp
@jax.jit
def _odds(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """1 / (eˣ − 1); zero at zero."""
    empty = x == 0
    return jnp.where(empty, 0.0, 1.0 / jnp.expm1(jnp.where(empty, 1.0, x)))


@log_one_minus_exp.defjvp
def _log_one_minus_exp_along(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,) = primals
    return log_one_minus_exp(x), _odds(x) * tangents[0]


@_odds.defjvp
def _odds_along(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,) = primals
    return _odds(x), -_odds(x) * (1.0 + _odds(x)) * tangents[0]


# Beyond these eᵛ is as good as zero, or 1 − exp(−eᵛ) as good as one, and its derivatives as good as zero.
_EARLY, _LATE = -30.0, 10.0


@jax.custom_jvp
def log_inverse_cloglog(v: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """log(1 − exp(−eᵛ)): log P(Y ≤ y) where log P(Y > y) is −eᵛ, right where eᵛ underflows as well."""
    early, x = v < _EARLY, jnp.exp(jnp.minimum(v, _LATE))
    return jnp.where(early, v - 0.5 * x, log_one_minus_exp(jnp.where(early, 1.0, x)))


@jax.custom_jvp
def _growth_rate(v: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """x / (eˣ − 1), x = eᵛ."""
    early, x = v < _EARLY, jnp.exp(jnp.minimum(v, _LATE))
    return jnp.where(early, 1.0 - 0.5 * x, x / jnp.expm1(jnp.where(early, 1.0, x)))


@log_inverse_cloglog.defjvp
def _log_inverse_cloglog_along(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (v,) = primals
    return log_inverse_cloglog(v), _growth_rate(v) * tangents[0]


@_growth_rate.defjvp
def _growth_rate_along(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (v,) = primals
    rate = _growth_rate(v)
    return rate, rate * (1.0 - rate - jnp.exp(jnp.minimum(v, _LATE))) * tangents[0]
