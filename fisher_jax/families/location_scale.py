"""Families on the whole real line, with a location and a scale."""

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr, ndtri
from jax.typing import ArrayLike
from jaxtyping import Array

from fisher_jax.families.common import Nested, Params, Scalar, by_inversion, dtype_of, floats, symmetric
from fisher_jax.families.special import HALF_LOG_TWO_PI, alternating_weights, stirling_error
from fisher_jax.models.constraints import positive
from fisher_jax.models.model import Model


def standardise(params: Params, y: ArrayLike) -> tuple[Array, Array]:
    """z = (y − loc) / scale, and the scale."""
    y, loc, scale = floats(y, params["loc"], params["scale"])
    return (y - loc) / scale, scale


def shifted(params: Params, z: Array) -> Array:
    """The y of a standard draw or quantile z: loc + scale z."""
    loc, scale = floats(params["loc"], params["scale"])
    return loc + scale * z


# Normal ---------------------------------------------------------------------------------------------------------------


def normal_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Log-density of N(loc, scale²): −½ z² − log scale − ½ log 2π.

    `scale` > 0 is the standard deviation. Information diag(1, 2) / scale².
    """
    z, scale = standardise(params, y)
    return -0.5 * z * z - jnp.log(scale) - HALF_LOG_TWO_PI


def normal_sample(key: Array, params: Params) -> Scalar:
    return shifted(params, jax.random.normal(key, (), dtype_of(params)))


def normal_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    return shifted(params, ndtri(floats(uniform)[0]))


def normal_information(params: Params) -> Nested:
    inverse_variance = 1.0 / floats(params["scale"])[0] ** 2
    return symmetric(("loc", "scale"), inverse_variance, 0.0, 2.0 * inverse_variance)


normal = Model(
    normal_log_density,
    sample=normal_sample,
    quantile=normal_quantile,
    constraints={"scale": positive},
    information=normal_information,
)


# Skew normal ----------------------------------------------------------------------------------------------------------


def skew_normal_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Log-density log 2 − log scale + log φ(z) + log Φ(shape z), with `scale` > 0 and any real `shape`.

    No closed form of the information. At shape = 0 it is singular: the score of `loc` is a multiple of that of `shape`
    (Azzalini, A. 1985, A class of distributions which includes the normal ones, Scand. J. Statist. 12).
    """
    z, scale = standardise(params, y)
    tail = log_ndtr(z * jnp.asarray(params["shape"], z.dtype), series_order=10)
    return math.log(2.0) - HALF_LOG_TWO_PI - jnp.log(scale) - 0.5 * z * z + tail


def skew_normal_sample(key: Array, params: Params) -> Scalar:
    first, second = jax.random.normal(key, (2,), dtype_of(params))
    shape = jnp.asarray(params["shape"], first.dtype)
    length = jnp.hypot(1.0, shape)
    return shifted(params, shape / length * jnp.abs(first) + second / length)


skew_normal = Model(skew_normal_log_density, sample=skew_normal_sample, constraints={"scale": positive})


# Logistic -------------------------------------------------------------------------------------------------------------


def logistic_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Log-density −z − 2 log(1 + e^{−z}) − log scale, with `scale` > 0.

    Information diag(1/3, (3 + π²)/9) / scale²; derived, and verified by quadrature in the tests.
    """
    z, scale = standardise(params, y)
    return jax.nn.log_sigmoid(z) + jax.nn.log_sigmoid(-z) - jnp.log(scale)


def logistic_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    u = floats(uniform)[0]
    return shifted(params, jnp.log(u) - jnp.log1p(-u))


def logistic_information(params: Params) -> Nested:
    inverse_square = 1.0 / floats(params["scale"])[0] ** 2
    return symmetric(("loc", "scale"), inverse_square / 3.0, 0.0, (3.0 + math.pi**2) / 9.0 * inverse_square)


logistic = Model(
    logistic_log_density,
    sample=by_inversion(logistic_quantile),
    quantile=logistic_quantile,
    constraints={"scale": positive},
    information=logistic_information,
)


# Laplace --------------------------------------------------------------------------------------------------------------


def laplace_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Log-density −|z| − log(2 scale), with `scale` > 0.

    Information diag(1, 1) / scale² in its score form E[s sᵀ]. At the kink z = 0 the Hessian misses a point mass: −E[H] is 0
    for `loc`, and observed_information with it.
    """
    z, scale = standardise(params, y)
    return -jnp.abs(z) - jnp.log(2.0 * scale)


def laplace_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    u = floats(uniform)[0]
    return shifted(params, jnp.where(u < 0.5, jnp.log(2.0 * u), -jnp.log(2.0 * (1.0 - u))))


def laplace_information(params: Params) -> Nested:
    inverse_square = 1.0 / floats(params["scale"])[0] ** 2
    return symmetric(("loc", "scale"), inverse_square, 0.0, inverse_square)


laplace = Model(
    laplace_log_density,
    sample=by_inversion(laplace_quantile),
    quantile=laplace_quantile,
    constraints={"scale": positive},
    information=laplace_information,
)


# Cauchy ---------------------------------------------------------------------------------------------------------------


def cauchy_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Log-density −log(1 + z²) − log(π scale), with `scale` > 0. Information diag(1, 1) / (2 scale²)."""
    z, scale = standardise(params, y)
    return -jnp.log1p(z * z) - jnp.log(math.pi * scale)


def cauchy_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    u = floats(uniform)[0]
    lower = u < 0.5
    return shifted(params, jnp.where(lower, -1.0, 1.0) / jnp.tan(math.pi * jnp.where(lower, u, 1.0 - u)))


def cauchy_information(params: Params) -> Nested:
    entry = 0.5 / floats(params["scale"])[0] ** 2
    return symmetric(("loc", "scale"), entry, 0.0, entry)


cauchy = Model(
    cauchy_log_density,
    sample=by_inversion(cauchy_quantile),
    quantile=cauchy_quantile,
    constraints={"scale": positive},
    information=cauchy_information,
)


# Student's t ----------------------------------------------------------------------------------------------------------


def student_t_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Log-density log Γ((ν + 1)/2) − log Γ(ν/2) − ½ log(νπ) − log scale − ½ (ν + 1) log(1 + z²/ν), with `df` ν and `scale` > 0.

    Exact for any ν, the normal limit included. The information of ν cancels like ν² in its textbook form; here it is an
    alternating series of positive terms. Derived; verified by quadrature in the tests.
    """
    z, scale = standardise(params, y)
    df = jnp.asarray(params["df"], z.dtype)
    constant = 0.5 * df * jnp.log1p(1.0 / df) - 0.5 + stirling_error(0.5 * df + 0.5) - stirling_error(0.5 * df)
    return constant - HALF_LOG_TWO_PI - jnp.log(scale) - 0.5 * (df + 1.0) * jnp.log1p(z * z / df)


def student_t_sample(key: Array, params: Params) -> Scalar:
    dtype = dtype_of(params)
    return shifted(params, jax.random.t(key, jnp.asarray(params["df"], dtype), (), dtype))


_WEIGHTS = alternating_weights(22)


def student_t_information(params: Params) -> Nested:
    df, scale = floats(params["df"], params["scale"])
    # νν = T(ν) = ¼ [ψ₁(ν/2) − ψ₁((ν + 1)/2)] − (ν + 5) / (2ν(ν + 1)(ν + 3)); `terms` are T(ν + k) + T(ν + k + 1)
    k = df + jnp.arange(len(_WEIGHTS), dtype=df.dtype)
    terms = (7.0 + 30.0 / k + 24.0 / (k * k)) / ((k + 1.0) * (k + 2.0) * (k + 3.0) * (k + 4.0))
    return symmetric(
        ("df", "loc", "scale"),
        *(jnp.sum(jnp.asarray(_WEIGHTS, df.dtype) * terms), 0.0, -2.0 / (scale * (df + 1.0) * (df + 3.0))),
        *((df + 1.0) / ((df + 3.0) * scale**2), 0.0),
        2.0 * df / ((df + 3.0) * scale**2),
    )


student_t = Model(
    student_t_log_density,
    sample=student_t_sample,
    constraints={"df": positive, "scale": positive},
    information=student_t_information,
)
