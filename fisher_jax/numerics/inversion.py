"""Quantiles of a distribution function by bisection over the floating numbers.

Floating numbers are ordered as the integers of their bits are, so that halving an interval of these finds, after as many steps as
there are bits, the least number at which a distribution function reaches a level: to the last place, at any scale, without a
bracket, and of a step function the place of its step. Derivatives are those of the implicit function.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import PyTree

Logarithm = Callable[..., Any]


def reaches(uniform: Array, log_cdf: Array, log_survival: Array) -> Array:
    """Whether P(Y ≤ y) is a uniform number or more, decided in the smaller tail: 1 − u is exact above ½."""
    lower = uniform < 0.5
    at_least = log_cdf >= jnp.log(jnp.where(lower, uniform, 0.5))
    return jnp.where(lower, at_least, log_survival <= jnp.log1p(-jnp.where(lower, 0.5, uniform)))


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
) -> Array:
    """The least y between two ends with P(Y ≤ y) ≥ uniform, NaN where a probability is.

    The two functions take (params, y, *z); they are compared, so give functions of a module or records. The parameters decide the
    dtype.
    """
    dtype = jnp.result_type(float, *jax.tree.leaves(params))
    return _invert(log_cdf, log_survival, *(jnp.asarray(x, dtype) for x in (uniform, low, high)), params, z)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _invert(
    log_cdf: Logarithm,
    log_survival: Logarithm,
    uniform: Array,
    low: Array,
    high: Array,
    params: PyTree,
    z: tuple[Any, ...],
) -> Array:
    dtype = uniform.dtype
    limits = jnp.finfo(dtype)

    def number(place: Array) -> Array:
        return lax.bitcast_convert_type(_mirrored(place), dtype)

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        below, above = ends
        middle = (below & above) + ((below ^ above) >> 1)  # their mean, which does not overflow
        y = number(middle)
        lower, higher = log_cdf(params, y, *z), log_survival(params, y, *z)
        # Where quadrature cannot tell, y is too far out.
        up = jnp.where(jnp.isnan(lower) | jnp.isnan(higher), y > 0, reaches(uniform, lower, higher))
        return jnp.where(up, below, middle), jnp.where(up, middle, above)

    start = [_places(jnp.clip(end, limits.min, limits.max)) for end in (low, high)]
    # The lower end itself is a candidate: begin one place below.
    _, above = lax.fori_loop(0, limits.bits, halve, (start[0] - 1, start[1]))
    y = number(above)
    at = log_cdf(params, y, *z) + log_survival(params, y, *z)
    return jnp.where(jnp.isnan(at) | jnp.isnan(uniform), jnp.nan, y)


@_invert.defjvp
def _invert_along(log_cdf: Logarithm, log_survival: Logarithm, primals: Any, tangents: Any) -> tuple[Array, Array]:
    uniform, low, high, params, z = primals
    y = _invert(log_cdf, log_survival, uniform, low, high, params, z)
    lower = uniform < 0.5

    def mismatch(uniform: Array, y: Array, params: PyTree, z: tuple[Any, ...]) -> Array:
        """The logarithm of the tail less that of its level, which stays zero along the quantile."""
        in_lower = log_cdf(params, y, *z) - jnp.log(jnp.where(lower, uniform, 0.5))
        in_upper = log_survival(params, y, *z) - jnp.log1p(-jnp.where(lower, 0.5, uniform))
        return jnp.where(lower, in_lower, in_upper)

    slope = jax.grad(mismatch, argnums=1)(uniform, y, params, z)
    along_uniform, _, _, along_params, along_z = tangents
    _, moved = jax.jvp(
        lambda uniform, params, z: mismatch(uniform, y, params, z),
        (uniform, params, z),
        (along_uniform, along_params, along_z),
    )
    flat = slope == 0  # a count does not move
    return y, jnp.where(flat, 0.0, -moved / jnp.where(flat, 1.0, slope))
