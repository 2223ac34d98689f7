"""Quantiles of a distribution function by bisection over the floating numbers.

Floating numbers are ordered as the integers of their bits are, so that halving an interval of these finds, after as many steps as
there are bits, the least number at which a distribution function reaches a level: to the last place, at any scale, without a
bracket, and of a step function the place of its step. Derivatives are those of the implicit function.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import PyTree

Logarithm = Callable[..., Any]


LOG_HALF = math.log(0.5)


def _places(x: Array) -> Array:
    """The integers that are ordered as floating numbers; it is its own inverse on integers."""
    bits = lax.bitcast_convert_type(x, np.int64 if x.dtype.itemsize == 8 else np.int32)
    return _mirrored(bits)


def _mirrored(bits: Array) -> Array:
    return jnp.where(bits < 0, jnp.asarray(jnp.iinfo(bits.dtype).min, bits.dtype) - bits, bits)


def invert(
    log_cdf: Logarithm,
    log_survival: Logarithm,
    uniform: ArrayLike,
    params: PyTree,
    *z: PyTree,
    low: ArrayLike = -np.inf,
    high: ArrayLike = np.inf,
    discrete: bool = False,
) -> Array:
    """The least y between two ends with P(Y ≤ y) ≥ uniform, NaN where a probability is, and outside [0, 1].

    The two functions take (params, y, *z); they are compared, so give functions of a module or records. The parameters decide the
    dtype. Where Y is `discrete`, a level counts as reached within 8 rounding errors of the logarithm of the smaller tail: that of a
    count itself, rounded, leads back to the count.
    """
    uniform = jnp.asarray(uniform, jnp.result_type(float, *jax.tree.leaves(params)))
    # That of the smaller tail has all digits; in place of the other stands a number that shows which is the smaller.
    lower = uniform < 0.5
    log_level, log_rest = jnp.log(jnp.where(lower, uniform, 0.75)), jnp.log1p(-jnp.where(lower, 0.5, uniform))
    return invert_level(log_cdf, log_survival, log_level, log_rest, params, *z, low=low, high=high, discrete=discrete)


def invert_level(
    log_cdf: Logarithm,
    log_survival: Logarithm,
    log_level: Array,
    log_rest: Array,
    params: PyTree,
    *z: PyTree,
    low: ArrayLike = -np.inf,
    high: ArrayLike = np.inf,
    discrete: bool = False,
) -> Array:
    """The same from the logarithms of a level and of one minus it, of which the first is used where it is below log ½.

    So a level that is one to rounding has a quantile too, as those within a window in the upper tail.
    """
    dtype = log_level.dtype
    if discrete:
        slack = 8 * float(jnp.finfo(dtype).eps)
        log_level, log_rest = log_level * (1.0 + slack) - slack, log_rest * (1.0 - slack) + slack
    ends = (jnp.asarray(end, dtype) for end in (low, high))
    return _invert(log_cdf, log_survival, log_level, log_rest, *ends, params, z)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _invert(
    log_cdf: Logarithm,
    log_survival: Logarithm,
    log_level: Array,
    log_rest: Array,
    low: Array,
    high: Array,
    params: PyTree,
    z: tuple[Any, ...],
) -> Array:
    dtype = log_level.dtype
    limits = jnp.finfo(dtype)
    in_lower = log_level < LOG_HALF

    def number(place: Array) -> Array:
        return lax.bitcast_convert_type(_mirrored(place), dtype)

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        below, above = ends
        middle = (below & above) + ((below ^ above) >> 1)  # their mean, which does not overflow
        y = number(middle)
        lower, higher = log_cdf(params, y, *z), log_survival(params, y, *z)
        # Where quadrature fails, y is too far out.
        reached = jnp.where(in_lower, lower >= log_level, higher <= log_rest)
        up = jnp.where(jnp.isnan(lower) | jnp.isnan(higher), y > 0, reached)
        return jnp.where(up, below, middle), jnp.where(up, middle, above)

    start = [_places(jnp.clip(end, limits.min, limits.max)) for end in (low, high)]
    # The lower end itself is a candidate: begin one place below.
    _, above = lax.fori_loop(0, limits.bits, halve, (start[0] - 1, start[1]))
    y = number(above)
    at = log_cdf(params, y, *z) + log_survival(params, y, *z)
    # The ends may be infinite; that of level one is an end also where the tail underflows before.
    at_high = (above == start[1]) | (~in_lower & (log_rest == -jnp.inf))
    y = jnp.where(above == start[0], low, jnp.where(at_high, high, y))
    return jnp.where(jnp.isnan(at) | jnp.isnan(log_level) | jnp.isnan(log_rest), jnp.nan, y)


@_invert.defjvp
def _invert_along(log_cdf: Logarithm, log_survival: Logarithm, primals: Any, tangents: Any) -> tuple[Array, Array]:
    log_level, _, _, _, params, z = primals
    y = _invert(log_cdf, log_survival, *primals)
    in_lower = log_level < LOG_HALF

    def logarithm(y: Array, params: PyTree, z: tuple[Any, ...]) -> Array:
        """That of the smaller tail, which along the quantile is that of its level."""
        return jnp.where(in_lower, log_cdf(params, y, *z), log_survival(params, y, *z))

    slope = jax.grad(logarithm)(y, params, z)
    along_level, along_rest, _, _, along_params, along_z = tangents
    moved = jax.jvp(lambda params, z: logarithm(y, params, z), (params, z), (along_params, along_z))[1]
    moved = moved - jnp.where(in_lower, along_level, along_rest)
    flat = slope == 0  # a count does not move
    return y, jnp.where(flat, 0.0, -moved / jnp.where(flat, 1.0, slope))
