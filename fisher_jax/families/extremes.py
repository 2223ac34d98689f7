"""Families of extreme values: maxima over blocks, and excesses over a threshold.

A shape ξ > 0 is a heavy upper tail, ξ < 0 a finite upper end, as in Coles, S. (2001), An Introduction to Statistical Modeling
of Extreme Values; scipy's `genextreme` has c = −ξ. Log-densities and information are smooth through ξ = 0.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma, gammaln
from jax.typing import ArrayLike
from jaxtyping import Array

from fisher_jax.families.common import Nested, Params, Scalar, by_inversion, floats, outside_support, symmetric
from fisher_jax.families.location_scale import shifted, standardise
from fisher_jax.families.special import expm1_over, horner, log1p_over
from fisher_jax.models.constraints import positive
from fisher_jax.models.model import Model

ONE_MINUS_EULER = 1.0 - float(np.euler_gamma)


# Gumbel ---------------------------------------------------------------------------------------------------------------


def gumbel_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Log-density −z − e^{−z} − log scale of a maximum, z = (y − loc) / scale, with `scale` > 0.

    Information [[1, −(1 − γ)], [·, (1 − γ)² + π²/6]] / scale², γ Euler's constant; verified by quadrature in the tests.
    """
    z, scale = standardise(params, y)
    return -z - jnp.exp(-z) - jnp.log(scale)


def gumbel_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    return shifted(params, -jnp.log(-jnp.log(floats(uniform)[0])))


def gumbel_information(params: Params) -> Nested:
    inverse_square = 1.0 / floats(params["scale"])[0] ** 2
    return symmetric(
        ("loc", "scale"),
        *(inverse_square, -ONE_MINUS_EULER * inverse_square),
        (ONE_MINUS_EULER**2 + math.pi**2 / 6.0) * inverse_square,
    )


gumbel = Model(
    gumbel_log_density,
    sample=by_inversion(gumbel_quantile),
    quantile=gumbel_quantile,
    constraints={"scale": positive},
    information=gumbel_information,
)


# Generalised extreme value --------------------------------------------------------------------------------------------


def _reduced(z: Array, shape: Array) -> tuple[Array, Array]:
    """x = log(1 + ξz) / ξ, which is z at ξ = 0, and whether z lies outside the support 1 + ξz > 0."""
    outside = shape * z <= -1.0
    z = jnp.where(outside, 0.0, z)
    return z * log1p_over(shape * z), outside


def gev_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Log-density −(1 + ξ) x − e^{−x} − log scale, x = log(1 + ξz) / ξ, z = (y − loc) / scale, for 1 + ξz > 0.

    `shape` ξ is any real number, `scale` > 0. The information is finite for ξ > −½ (NaN elsewhere) and that of Prescott, P. and
    Walden, A. T. (1980), Biometrika 67, 723-724, whose k is −ξ; verified by quadrature in the tests.
    """
    z, scale = standardise(params, y)
    shape = jnp.asarray(params["shape"], z.dtype)
    x, outside = _reduced(z, shape)
    return outside_support(outside, -(1.0 + shape) * x - jnp.exp(-x) - jnp.log(scale))


def gev_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    x, shape = floats(-jnp.log(-jnp.log(floats(uniform)[0])), params["shape"])
    return shifted(params, x * expm1_over(shape * x))


def _entries(p: Array, g: Array, q: Array, xi: Array) -> tuple[Array, ...]:
    """The information at scale one but for the powers of ξ that divide it, from p = (1 + ξ)² Γ(1 + 2ξ), g = Γ(2 + ξ), q."""
    one_minus_euler_xi = ONE_MINUS_EULER * xi
    return (
        p,
        g - p,
        p - q,
        1.0 - 2.0 * g + p,
        q + g - p - 1.0 - one_minus_euler_xi,
        (math.pi * xi) ** 2 / 6.0 + (1.0 + one_minus_euler_xi) ** 2 - 2.0 * q + p,
    )


_POWERS = (0, 1, 2, 2, 3, 4)
_SERIES_BELOW = 0.4


def _power_series(order: int) -> tuple[tuple[float, ...], ...]:
    """Taylor coefficients in ξ of the six entries times 1 + 2ξ, which takes away the nearest pole. Made on the host."""
    from scipy.special import zetac

    def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.convolve(a, b)[:order]

    def from_start(*coefficients: float) -> np.ndarray:
        return np.array([*coefficients, *[0.0] * (order - len(coefficients))])

    k = np.arange(2, order)
    log_gamma = np.array([0.0, ONE_MINUS_EULER, *((-1.0) ** k * zetac(k) / k)])  # log Γ(2 + x)
    slope = log_gamma[1:] * np.arange(1, order)  # ψ(2 + x), one coefficient fewer

    def exponential(series: np.ndarray) -> np.ndarray:
        result = from_start(1.0)
        for n in range(1, order):
            result[n] = np.dot(np.arange(1, n + 1) * series[1 : n + 1], result[n - 1 :: -1]) / n
        return result

    gamma_one, gamma_two = exponential(log_gamma), exponential(log_gamma * 2.0 ** np.arange(order))
    pole = from_start(1.0, 2.0)
    p = product(from_start(1.0, 2.0, 1.0), gamma_two)  # times 1 + 2ξ
    g = product(pole, gamma_one)
    # q = Γ(2 + ξ) [ξ ψ(1 + ξ) + 1 + ξ], and ξ ψ(1 + ξ) = ξ ψ(2 + ξ) − ξ / (1 + ξ)
    bracket = np.array([0.0, *slope]) + from_start(1.0, 1.0) + np.array([0.0, *(-1.0) ** np.arange(1, order)])
    q = product(g, bracket)
    whole = product(pole, from_start(1.0, ONE_MINUS_EULER))
    square = product(pole, product(from_start(1.0, ONE_MINUS_EULER), from_start(1.0, ONE_MINUS_EULER)))
    square = square + product(pole, from_start(0.0, 0.0, math.pi**2 / 6.0))
    series = (p, g - p, p - q, pole - 2.0 * g + p, q + g - p - whole, square - 2.0 * q + p)
    return tuple(tuple(map(float, s[power:])) for s, power in zip(series, _POWERS, strict=True))


_COEFFICIENTS = _power_series(48)


def gev_information(params: Params) -> Nested:
    scale, shape = floats(params["scale"], params["shape"])
    near = jnp.abs(shape) < _SERIES_BELOW
    small, xi = jnp.where(near, shape, 0.0), jnp.where(near | (shape <= -0.5), 1.0, shape)
    g = jnp.exp(gammaln(2.0 + xi))
    p = (1.0 + xi) ** 2 * jnp.exp(gammaln(1.0 + 2.0 * xi))
    direct = _entries(p, g, g * (xi * digamma(1.0 + xi) + 1.0 + xi), xi)
    entries = [
        jnp.where(near, horner(coefficients, small) / (1.0 + 2.0 * small), value / xi**power)
        for coefficients, value, power in zip(_COEFFICIENTS, direct, _POWERS, strict=True)
    ]
    loc_loc, loc_scale, loc_shape, scale_scale, scale_shape, shape_shape = (
        jnp.where(shape > -0.5, entry, jnp.nan) for entry in entries
    )
    return symmetric(
        ("loc", "scale", "shape"),
        *(loc_loc / scale**2, loc_scale / scale**2, loc_shape / scale),
        *(scale_scale / scale**2, scale_shape / scale),
        shape_shape,
    )


gev = Model(
    gev_log_density,
    sample=by_inversion(gev_quantile),
    quantile=gev_quantile,
    constraints={"scale": positive},
    information=gev_information,
)


# Generalised Pareto ---------------------------------------------------------------------------------------------------


def generalized_pareto_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Log-density −(1 + ξ) x − log scale, x = log(1 + ξ y / scale) / ξ, for y ≥ 0 and 1 + ξ y / scale > 0.

    `shape` ξ is any real number, `scale` > 0. Information, finite for ξ > −½ (NaN elsewhere):
    scale, scale 1 / (scale² (1 + 2ξ)); scale, shape 1 / (scale (1 + ξ)(1 + 2ξ)); shape, shape 2 / ((1 + ξ)(1 + 2ξ)).
    Derived; verified by quadrature in the tests.
    """
    y, scale, shape = floats(y, params["scale"], params["shape"])
    below = y < 0
    x, above = _reduced(jnp.where(below, 0.0, y) / scale, shape)
    return outside_support(below | above, -(1.0 + shape) * x - jnp.log(scale))


def generalized_pareto_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    x, scale, shape = floats(-jnp.log1p(-floats(uniform)[0]), params["scale"], params["shape"])
    return scale * x * expm1_over(shape * x)


def generalized_pareto_information(params: Params) -> Nested:
    scale, shape = floats(params["scale"], params["shape"])
    xi = jnp.where(shape > -0.5, shape, jnp.nan)
    once, twice = 1.0 + xi, 1.0 + 2.0 * xi
    return symmetric(("scale", "shape"), 1.0 / (scale**2 * twice), 1.0 / (scale * once * twice), 2.0 / (once * twice))


generalized_pareto = Model(
    generalized_pareto_log_density,
    sample=by_inversion(generalized_pareto_quantile),
    quantile=generalized_pareto_quantile,
    constraints={"scale": positive},
    information=generalized_pareto_information,
)
