"""What the incomplete gamma and beta functions share: one rule of quadrature, two cumulant functions, complements, inverses.

A tail of the gamma or the beta distribution is its density at the end of the tail times

    R = ∫₀^∞ exp(−φ(s)) ds,    φ(s) = c s + n κ(s),    c ≥ 0,

where s is the distance from that end on the scale of log x or logit x. There the densities are log-concave, so that φ is convex,
and φ is linear in c and n. κ(s) = log E exp(sZ) − s E Z is the centred cumulant function of a Poisson variable of mean one
(`poisson_cumulant`) or of a Bernoulli variable (`bernoulli_cumulant`). R neither underflows nor cancels, and so a logarithm of a
probability keeps its digits at −10⁵ as at −1.

R is computed by Gauss and Legendre's rule in √(s/S), with S just beyond φ(S) = `reach`. The nodes s are constants of
differentiation: the sum is then an ordinary smooth function of the shapes and of x, and each derivative of it is the same rule for
the derivative of the integral. Forty nodes give 6e-15 for all shapes from 0.01 on (measured, against composite rules and against
mpmath), twenty suffice in float32.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float

from fisher_jax.numerics.stable_functions import horner, log_complement

Tails = tuple[Array, Array]  # the logarithms of P(Y ≤ y) and of P(Y > y)

# Quadrature -----------------------------------------------------------------------------------------------------------


class Rule(NamedTuple):
    """Nodes and weights on (0, 1), and the `reach`: e^−reach is negligible beside one."""

    nodes: Float[np.ndarray, " n"]
    weights: Float[np.ndarray, " n"]
    reach: float


@functools.cache
def rule_for(dtype: DTypeLike) -> Rule:
    number, reach = (20, 19.0) if jnp.finfo(dtype).bits <= 32 else (40, 38.0)
    t, weights = np.polynomial.legendre.leggauss(number)
    root = 0.5 * (t + 1.0)
    return Rule((root * root).astype(dtype), (root * weights).astype(dtype), reach)


def tail_integral(
    exponent: Callable[[Float[Array, "*b n"]], Float[Array, "*b n"]], reach: Float[Array, "*b"]
) -> Float[Array, "*b"]:
    """∫₀^∞ exp(−φ(s)) ds for a convex φ that increases from 0 and is beyond `Rule.reach` at s = reach."""
    rule = rule_for(reach.dtype)
    reach = lax.stop_gradient(reach)[..., None]
    return jnp.sum(reach * rule.weights * jnp.exp(-exponent(reach * rule.nodes)), axis=-1)


def reach_of_quadratic(slope: Array, curvature: Array) -> Array:
    """An s with slope · s + curvature · (e^{−s} − 1 + s) ≥ `Rule.reach`: where s² / (2 + s), which is smaller, is in its place."""
    reach = rule_for(slope.dtype).reach
    total, b = slope + curvature, reach - 2.0 * slope
    # The root of total s² − b s − 2 reach = 0 that is positive, without cancellation for either sign of b.
    root = jnp.sqrt(b * b + 8.0 * total * reach)
    return jnp.where(b > 0, (b + root) / (2.0 * total), 4.0 * reach / (root - jnp.minimum(b, 0.0)))


# Cumulant functions ---------------------------------------------------------------------------------------------------

_EXPONENTIAL = tuple(1.0 / math.factorial(k) for k in range(2, 14))
_LOGARITHM = tuple(2.0 / (2 * k + 3) for k in range(8))
_NEAR = 0.25  # below this the closed forms lose digits, and the series has few terms


@jax.jit  # traced once for a shape, as those of `stable_functions`
def poisson_cumulant(s: Array) -> Array:
    """eˢ − 1 − s."""
    near = jnp.abs(s) < _NEAR
    small = jnp.where(near, s, 0.0)
    return jnp.where(near, small * small * horner(_EXPONENTIAL, small), jnp.expm1(s) - s)


@jax.jit
def bernoulli_cumulant(s: Array, probability: Array, other: Array) -> Array:
    """log(other + probability · eˢ) − probability · s, where `other` is 1 − probability.

    Both probabilities are given since one minus the other has no digits where that is near one. The cumulant function of the other
    outcome is the same with −s in place of s: here the rarer one is taken.
    """
    # Not `minimum`, whose derivative at a tie is the mean of two of opposite sign.
    is_rarer = probability <= other
    rarer, commoner = jnp.where(is_rarer, probability, other), jnp.where(is_rarer, other, probability)
    v = jnp.where(is_rarer, s, -s)
    near = jnp.abs(v) < _NEAR
    far = v > 0.8 * math.log(jnp.finfo(s.dtype).max)
    small = jnp.where(near, v, 0.0)
    u = rarer * jnp.expm1(jnp.where(far, 0.0, v))
    r = u / (2.0 + u)  # log(1 + u) = 2 artanh r, and log(1 + u) − u = −u r + 2 r³ (1/3 + r²/5 + …)
    series = r * (r * r * horner(_LOGARITHM, r * r) - u) + rarer * small * small * horner(_EXPONENTIAL, small)
    direct = jnp.log1p(u) - rarer * v
    distant = jnp.where(far, v, 1.0)
    # (1 − rarer) v, as a sum that never overflows
    asymptote = commoner * distant + jnp.log(rarer + commoner * jnp.exp(-distant))
    return jnp.where(near, series, jnp.where(far, asymptote, direct))


# Complements ----------------------------------------------------------------------------------------------------------


def both_tails(tail: Array, is_lower: Bool[Array, "*b"]) -> Tails:
    """The two tails from the logarithm of one."""
    other = log_complement(tail)
    return jnp.where(is_lower, tail, other), jnp.where(is_lower, other, tail)


def tails_at_end(invalid: Bool[Array, "*b"], above: Bool[Array, "*b"]) -> Tails:
    """The tails outside the support: zero and one, above it one and zero; NaN where the arguments are invalid."""
    lower, upper = jnp.where(above, 0.0, -jnp.inf), jnp.where(above, -jnp.inf, 0.0)
    return jnp.where(invalid, jnp.nan, lower), jnp.where(invalid, jnp.nan, upper)


# Inverses -------------------------------------------------------------------------------------------------------------

MOST_STEPS = 200


def excess(uniform: Array, tails: Tails) -> Array:
    """How far log F exceeds log u, for u above one half how far log(1 − u) exceeds log(1 − F): zero at the quantile."""
    lower, upper = tails
    low = uniform <= 0.5
    return jnp.where(
        low, lower - jnp.log(jnp.where(low, uniform, 0.5)), jnp.log1p(-jnp.where(low, 0.5, uniform)) - upper
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def solve_tails(tails: Callable[..., Tails], uniform: Array, start: Array, *shapes: Array) -> Array:
    """The x at which the distribution function with these tails, ``tails(x, *shapes)``, is `uniform`; NaN outside (0, 1).

    Both tails must be log-concave in x. Newton's method for their logarithms then cannot diverge: from the side on which the
    probability is too small it converges monotonically, and from the other its first step leads there. The last step starts where
    the logarithm is right to half of the digits. Derivatives of any order, by the implicit function theorem.
    """
    inside = (uniform > 0) & (uniform < 1)
    u = jnp.where(inside, uniform, 0.5)
    enough = math.sqrt(jnp.finfo(start.dtype).eps)

    def advance(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, _, steps = state
        value, slope = jax.jvp(lambda x: excess(u, tails(x, *shapes)), (x,), (jnp.ones_like(x),))
        return x - value / slope, jnp.abs(value), steps + 1

    x, distance, _ = lax.while_loop(
        lambda state: (state[1] > enough) & (state[2] < MOST_STEPS),
        advance,
        (start, jnp.full_like(start, jnp.inf), jnp.zeros((), jnp.int32)),
    )
    return jnp.where(inside & (distance <= enough), x, jnp.nan)


@solve_tails.defjvp
def _solve_tails_along(
    tails: Callable[..., Tails], primals: tuple[Array, ...], tangents: tuple[Any, ...]
) -> tuple[Array, Array]:
    uniform, start, *shapes = primals
    along_uniform, _, *along_shapes = tangents
    x = solve_tails(tails, uniform, start, *shapes)

    def at(x: Array, uniform: Array, *shapes: Array) -> Array:
        return excess(uniform, tails(x, *shapes))

    slope = jax.jvp(lambda x: at(x, uniform, *shapes), (x,), (jnp.ones_like(x),))[1]
    others = jax.jvp(lambda *rest: at(x, *rest), (uniform, *shapes), (along_uniform, *along_shapes))[1]
    return x, -others / slope


def least_count(tails: Callable[[Array], Tails], uniform: Array, start: Array, largest: ArrayLike = math.inf) -> Array:
    """The least k = 0, 1, … with P(Y ≤ k) ≥ uniform, `largest` at 1; NaN outside [0, 1] or where the tails are not numbers.

    From `start` on, steps that double until they enclose it, then halves. P(Y ≤ k) counts as reached within 8 rounding errors, so
    that the distribution function of k, rounded, leads back to k.
    """
    inside = (uniform > 0) & (uniform < 1)
    u = jnp.where(inside, uniform, 0.5)
    # Relative to the logarithm too: far out that has a rounding error which is larger than that of the probability.
    slack = 8 * jnp.finfo(start.dtype).eps * (1.0 - jnp.log(jnp.minimum(u, 1.0 - u)))
    largest = jnp.asarray(largest, start.dtype)
    below, never = jnp.full_like(start, -1.0), jnp.zeros((), bool)
    guess = jnp.clip(
        jnp.where(jnp.isnan(start), 0.0, jnp.round(start)), 0.0, jnp.minimum(largest, 1 / jnp.finfo(start.dtype).eps)
    )

    def unfinished(state: tuple[Array, ...]) -> Array:
        low, high, *_, steps = state
        return (high - low > 1) & (steps < MOST_STEPS)

    def advance(state: tuple[Array, ...]) -> tuple[Array, ...]:
        low, high, probe, has_low, has_high, steps = state
        reached = excess(u, tails(probe)) >= -slack
        low, high = jnp.where(reached, low, probe), jnp.where(reached, probe, high)
        has_low, has_high = has_low | ~reached, has_high | reached
        stride = 2.0 ** steps.astype(start.dtype)
        outward = jnp.where(has_high, high - stride, low + stride)
        middle = jnp.floor(0.5 * (low + jnp.where(has_high, high, low)))
        return (
            low,
            high,
            jnp.clip(jnp.where(has_low & has_high, middle, outward), low + 1, high - 1),
            has_low,
            has_high,
            steps + 1,
        )

    state: tuple[Array, ...] = below, largest, guess, never, never, jnp.zeros((), jnp.int32)
    low, high, *_ = lax.while_loop(unfinished, advance, state)
    count = jnp.where(high - low > 1, jnp.nan, high)
    edge = jnp.where(uniform == 0, 0.0, jnp.where(uniform == 1, largest, jnp.nan))
    return jnp.where(inside, count, edge)
