"""Families on the whole real line, with a location and a scale."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jax.typing import ArrayLike
from jaxtyping import Array

from fisher_jax.families.common import Family, Nested, OverSquare, Params, Scalar, dtype_of, floats, symmetric
from fisher_jax.families.starts import Sample, starting_values
from fisher_jax.models.constraints import positive
from fisher_jax.numerics.incomplete_beta import beta_quantile_of_logit, log_beta_tails
from fisher_jax.numerics.inversion import invert
from fisher_jax.numerics.normal_tail import log_normal_cdf
from fisher_jax.numerics.skew_normal import log_skew_normal_cdf
from fisher_jax.numerics.stable_functions import HALF_LOG_TWO_PI, alternating_weights, log_sigmoid, stirling_error
from fisher_jax.numerics.tails import Tails


def standardize(params: Params, y: ArrayLike) -> tuple[Array, Array]:
    """z = (y − loc) / scale, and the scale."""
    y, loc, scale = floats(y, params["loc"], params["scale"])
    return (y - loc) / scale, scale


def shifted(params: Params, z: Array) -> Array:
    """The y of a standard draw or quantile z: loc + scale z."""
    loc, scale = floats(params["loc"], params["scale"])
    return loc + scale * z


# Normal ---------------------------------------------------------------------------------------------------------------


def normal_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Normal: y real.

    log p(y) = −½ z² − log scale − ½ log 2π, z = (y − loc) / scale.

    - `loc`: real, the mean.
    - `scale`: positive, the standard deviation.

    Information diag(1, 2) / scale².
    In scipy: `scipy.stats.norm(loc=loc, scale=scale)`.
    Start: the maximum.
    """
    z, scale = standardize(params, y)
    return -0.5 * z * z - jnp.log(scale) - HALF_LOG_TWO_PI


def normal_sample(key: Array, params: Params) -> Scalar:
    return shifted(params, jax.random.normal(key, (), dtype_of(params)))


def normal_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    return shifted(params, ndtri(floats(uniform)[0]))


NORMAL_INFORMATION = OverSquare(("loc", "scale"), (1.0, 0.0, 2.0))


def normal_log_cdf(params: Params, y: ArrayLike) -> Scalar:
    return log_normal_cdf(standardize(params, y)[0])


def normal_log_survival(params: Params, y: ArrayLike) -> Scalar:
    return log_normal_cdf(-standardize(params, y)[0])


def normal_mean(params: Params) -> Scalar:
    return floats(params["loc"])[0]


@starting_values
def normal_initial(y: ArrayLike) -> dict[str, Any]:
    s = Sample(y)
    mean, deviation = s.moments()
    return s.params(loc=mean, scale=deviation)


normal = Family(
    normal_log_density,
    ("loc", "scale"),
    sample=normal_sample,
    quantile=normal_quantile,
    constraints={"scale": positive},
    initial=normal_initial,
    information=NORMAL_INFORMATION,
    log_cdf=normal_log_cdf,
    log_survival=normal_log_survival,
    mean=normal_mean,
)


# Skew normal ----------------------------------------------------------------------------------------------------------


def skew_normal_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Skew normal: y real, with a longer tail to the right where shape > 0 and to the left where shape < 0.

    log p(y) = log 2 − log scale + log φ(z) + log Φ(shape z), z = (y − loc) / scale.

    - `loc`: real; the mean at shape 0 only.
    - `scale`: positive; the standard deviation at shape 0 only.
    - `shape`: real, of the sign of the skewness.

    Mean loc + scale √(2/π) shape / √(1 + shape²).
    Information: no closed form. At shape = 0 it is singular: the score of `loc` is a multiple of that of `shape`
    (Azzalini, A. 1985, A class of distributions which includes the normal ones, Scand. J. Statist. 12).
    In scipy: `scipy.stats.skewnorm(a=shape, loc=loc, scale=scale)`.
    Start: three moments, the skewness within ±0.05 to ±0.9: it is below 0.995 in absolute value, and the likelihood is always
    stationary at shape 0.
    """
    z, scale = standardize(params, y)
    tail = log_normal_cdf(z * jnp.asarray(params["shape"], z.dtype))
    return math.log(2.0) - HALF_LOG_TWO_PI - jnp.log(scale) - 0.5 * z * z + tail


def skew_normal_sample(key: Array, params: Params) -> Scalar:
    # δ |Z₁| + √(1 − δ²) Z₂ with δ = shape / √(1 + shape²); `hypot` does not overflow at a large shape
    first, second = jax.random.normal(key, (2,), dtype_of(params))
    shape = jnp.asarray(params["shape"], first.dtype)
    length = jnp.hypot(1.0, shape)
    return shifted(params, shape / length * jnp.abs(first) + second / length)


def skew_normal_log_cdf(params: Params, y: ArrayLike) -> Scalar:
    z, _ = standardize(params, y)
    return log_skew_normal_cdf(z, jnp.asarray(params["shape"], z.dtype))


def skew_normal_log_survival(params: Params, y: ArrayLike) -> Scalar:
    z, _ = standardize(params, y)
    return log_skew_normal_cdf(-z, -jnp.asarray(params["shape"], z.dtype))


def skew_normal_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    return invert(skew_normal_log_cdf, skew_normal_log_survival, uniform, params)


def skew_normal_mean(params: Params) -> Scalar:
    shape = floats(params["shape"])[0]
    return shifted(params, math.sqrt(2.0 / math.pi) * shape / jnp.hypot(1.0, shape))


@starting_values
def skew_normal_initial(y: ArrayLike) -> dict[str, Any]:
    # With δ = shape / √(1 + shape²): mean = loc + scale δ √(2/π), variance = scale² (1 − 2δ²/π), and the skewness is
    # ½ (4 − π) (δ √(2/π))³ / (1 − 2δ²/π)^{3/2}, solved for δ.
    s = Sample(y)
    mean, deviation = s.moments()
    skewness = s.mean(((s.y - mean) / deviation) ** 3)
    power = s.xp.clip(s.xp.abs(skewness), 0.05, 0.9) ** (2.0 / 3.0)
    delta = s.xp.where(skewness < 0, -1.0, 1.0) * s.xp.sqrt(
        0.5 * math.pi * power / (power + (2.0 - 0.5 * math.pi) ** (2.0 / 3.0))
    )
    scale = s.positive(deviation / s.xp.sqrt(1.0 - 2.0 / math.pi * delta**2))
    loc = mean - math.sqrt(2.0 / math.pi) * scale * delta
    return s.params(loc=loc, scale=scale, shape=delta / s.xp.sqrt(1.0 - delta**2))


skew_normal = Family(
    skew_normal_log_density,
    ("loc", "scale", "shape"),
    sample=skew_normal_sample,
    quantile=skew_normal_quantile,
    constraints={"scale": positive},
    initial=skew_normal_initial,
    log_cdf=skew_normal_log_cdf,
    log_survival=skew_normal_log_survival,
    mean=skew_normal_mean,
)


# Logistic -------------------------------------------------------------------------------------------------------------


def logistic_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Logistic: y real, symmetric.

    log p(y) = −z − 2 log(1 + e^{−z}) − log scale, z = (y − loc) / scale.

    - `loc`: real, the mean.
    - `scale`: positive; the standard deviation is π/√3 times as large.

    Information diag(1/3, (3 + π²)/9) / scale²; derived, and verified by quadrature in the tests.
    In scipy: `scipy.stats.logistic(loc=loc, scale=scale)`.
    Start: moments.
    """
    z, scale = standardize(params, y)
    return log_sigmoid(z) + log_sigmoid(-z) - jnp.log(scale)


def logistic_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    u = floats(uniform)[0]
    return shifted(params, jnp.log(u) - jnp.log1p(-u))


def logistic_log_cdf(params: Params, y: ArrayLike) -> Scalar:
    return log_sigmoid(standardize(params, y)[0])


def logistic_log_survival(params: Params, y: ArrayLike) -> Scalar:
    return log_sigmoid(-standardize(params, y)[0])


@starting_values
def logistic_initial(y: ArrayLike) -> dict[str, Any]:
    s = Sample(y)
    mean, deviation = s.moments()
    return s.params(loc=mean, scale=s.positive(deviation * (math.sqrt(3.0) / math.pi)))


logistic = Family(
    logistic_log_density,
    ("loc", "scale"),
    quantile=logistic_quantile,
    constraints={"scale": positive},
    initial=logistic_initial,
    information=OverSquare(("loc", "scale"), (1.0 / 3.0, 0.0, (3.0 + math.pi**2) / 9.0)),
    log_cdf=logistic_log_cdf,
    log_survival=logistic_log_survival,
    mean=normal_mean,
)


# Laplace --------------------------------------------------------------------------------------------------------------


def laplace_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Laplace: y real, symmetric, with exponential tails.

    log p(y) = −|z| − log(2 scale), z = (y − loc) / scale.

    - `loc`: real, the median.
    - `scale`: positive, the mean absolute deviation.

    Mean loc.
    Information diag(1, 1) / scale² in its score form E[s sᵀ]. At the kink z = 0 the Hessian misses a point mass: −E[H] is 0
    for `loc`, and observed_information with it.
    In scipy: `scipy.stats.laplace(loc=loc, scale=scale)`.
    Start: the maximum.
    """
    z, scale = standardize(params, y)
    return -jnp.abs(z) - jnp.log(2.0 * scale)


def laplace_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    u = floats(uniform)[0]  # from the nearer end: 1 − u is exact above ½
    return shifted(params, jnp.where(u < 0.5, jnp.log(2.0 * u), -jnp.log(2.0 * (1.0 - u))))


def _laplace_log_cdf(z: Array) -> Scalar:
    lower = z < 0
    half = math.log(2.0)
    return jnp.where(lower, z - half, jnp.log1p(-0.5 * jnp.exp(-jnp.where(lower, 0.0, z))))


def laplace_log_cdf(params: Params, y: ArrayLike) -> Scalar:
    return _laplace_log_cdf(standardize(params, y)[0])


def laplace_log_survival(params: Params, y: ArrayLike) -> Scalar:
    return _laplace_log_cdf(-standardize(params, y)[0])


@starting_values
def laplace_initial(y: ArrayLike) -> dict[str, Any]:
    s = Sample(y)
    (median,) = s.quantiles(0.5)
    return s.params(loc=median, scale=s.spread(s.mean(s.xp.abs(s.y - median))))


laplace = Family(
    laplace_log_density,
    ("loc", "scale"),
    quantile=laplace_quantile,
    constraints={"scale": positive},
    initial=laplace_initial,
    log_cdf=laplace_log_cdf,
    log_survival=laplace_log_survival,
    information=OverSquare(("loc", "scale"), (1.0, 0.0, 1.0)),
    mean=normal_mean,
)


# Cauchy ---------------------------------------------------------------------------------------------------------------


def cauchy_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Cauchy: y real, symmetric, with tails so heavy that there is no mean.

    log p(y) = −log(1 + z²) − log(π scale), z = (y − loc) / scale.

    - `loc`: real, the median.
    - `scale`: positive, half the distance between the quartiles.

    Mean: none, NaN.
    Information diag(1, 1) / (2 scale²).
    In scipy: `scipy.stats.cauchy(loc=loc, scale=scale)`.
    Start: the quartiles.
    """
    z, scale = standardize(params, y)
    return -jnp.log1p(z * z) - jnp.log(math.pi * scale)


def cauchy_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    u = floats(uniform)[0]
    lower = u < 0.5  # from the nearer end, where the tangent has all its digits
    return shifted(params, jnp.where(lower, -1.0, 1.0) / jnp.tan(math.pi * jnp.where(lower, u, 1.0 - u)))


@jax.custom_jvp
def _cauchy_log_cdf(z: Array) -> Scalar:
    # The angle between the point (|z|, 1) and the nearer half-axis has all its digits in either tail.
    tail = jnp.arctan2(jnp.ones_like(z), jnp.abs(z)) / math.pi
    lower = z < 0
    return jnp.where(lower, jnp.log(tail), jnp.log1p(-jnp.where(lower, 0.0, tail)))


def _without_square(z: Array) -> tuple[Array, Array]:
    """z / (1 + z²) and the larger of 1 and |z|, of which z² need not overflow."""
    size = jnp.maximum(jnp.abs(z), 1.0)
    return (z / size) / (1.0 / size + (z / size) * z), size


@jax.custom_jvp
def _cauchy_rate(z: Array) -> Scalar:
    """The density divided by the distribution function."""
    _, size = _without_square(z)
    inverse, ratio = 1.0 / size, z / size
    return inverse / (math.pi * jnp.exp(_cauchy_log_cdf(z)) * size) / (inverse * inverse + ratio * ratio)


@_cauchy_log_cdf.defjvp
def _cauchy_log_cdf_along(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (z,) = primals
    return _cauchy_log_cdf(z), _cauchy_rate(z) * tangents[0]


@_cauchy_rate.defjvp
def _cauchy_rate_along(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (z,) = primals
    rate = _cauchy_rate(z)
    return rate, -rate * (2.0 * _without_square(z)[0] + rate) * tangents[0]


def cauchy_log_cdf(params: Params, y: ArrayLike) -> Scalar:
    return _cauchy_log_cdf(standardize(params, y)[0])


def cauchy_log_survival(params: Params, y: ArrayLike) -> Scalar:
    return _cauchy_log_cdf(-standardize(params, y)[0])


def cauchy_mean(params: Params) -> Scalar:
    return shifted(params, jnp.full((), jnp.nan, dtype_of(params)))


@starting_values
def cauchy_initial(y: ArrayLike) -> dict[str, Any]:
    s = Sample(y)
    low, median, high = s.quantiles(0.25, 0.5, 0.75)
    return s.params(loc=median, scale=s.spread(0.5 * high - 0.5 * low))


cauchy = Family(
    cauchy_log_density,
    ("loc", "scale"),
    quantile=cauchy_quantile,
    constraints={"scale": positive},
    initial=cauchy_initial,
    log_cdf=cauchy_log_cdf,
    log_survival=cauchy_log_survival,
    information=OverSquare(("loc", "scale"), (0.5, 0.0, 0.5)),
    mean=cauchy_mean,
)


# Student's t ----------------------------------------------------------------------------------------------------------


def student_t_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Student's t: y real, symmetric, with tails that fall as |y|^{−ν − 1}.

    log p(y) = log Γ((ν + 1)/2) − log Γ(ν/2) − ½ log(νπ) − log scale − ½ (ν + 1) log(1 + z²/ν), z = (y − loc) / scale; exact for any
    ν, the normal limit included.

    - `df` ν: positive, the degrees of freedom; 1 is the Cauchy, ∞ the normal distribution.
    - `loc`: real, the median.
    - `scale`: positive; the standard deviation is √(ν / (ν − 2)) times as large.

    Mean loc for ν > 1; none below, NaN.
    Information that of an alternating series of positive terms, since that of ν cancels like ν² in its textbook form. Derived;
    verified by quadrature in the tests.
    In scipy: `scipy.stats.t(df=df, loc=loc, scale=scale)`.
    Start: the quartiles, and the fourth moment for ν.
    """
    z, scale = standardize(params, y)
    df = jnp.asarray(params["df"], z.dtype)
    # log Γ((ν + 1)/2) − log Γ(ν/2) − ½ log(ν/2) by Stirling's formula: the gamma functions themselves cancel at large ν
    constant = 0.5 * df * jnp.log1p(1.0 / df) - 0.5 + stirling_error(0.5 * df + 0.5) - stirling_error(0.5 * df)
    return constant - HALF_LOG_TWO_PI - jnp.log(scale) - 0.5 * (df + 1.0) * jnp.log1p(z * z / df)


def student_t_tails(params: Params, y: ArrayLike) -> Tails:
    """(1 + z / √(ν + z²)) / 2 is Beta(ν/2, ν/2); its logit 2 arsinh(z / √ν) is smooth at zero and exact in both tails."""
    z, _ = standardize(params, y)
    half = 0.5 * jnp.asarray(params["df"], z.dtype)
    return log_beta_tails(half, half, 2.0 * jnp.arcsinh(z / jnp.sqrt(2.0 * half)))


def student_t_log_cdf(params: Params, y: ArrayLike) -> Scalar:
    return student_t_tails(params, y)[0]


def student_t_log_survival(params: Params, y: ArrayLike) -> Scalar:
    return student_t_tails(params, y)[1]


def student_t_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    uniform, df, *_ = floats(uniform, params["df"], params["loc"], params["scale"])
    return shifted(params, jnp.sqrt(df) * jnp.sinh(0.5 * beta_quantile_of_logit(uniform, 0.5 * df, 0.5 * df)))


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


def student_t_mean(params: Params) -> Scalar:
    return shifted(params, jnp.where(floats(params["df"])[0] > 1.0, 0.0, jnp.nan))


@starting_values
def student_t_initial(y: ArrayLike) -> dict[str, Any]:
    s = Sample(y)
    low, median, high = s.quantiles(0.25, 0.5, 0.75)
    mean, deviation = s.moments()
    # The excess kurtosis is 6 / (ν − 4). The quartiles of ν = 5, near those of any ν above 3, lie at ±0.73 scales.
    excess = s.mean(((s.y - mean) / deviation) ** 4) - 3.0
    return s.params(
        df=4.0 + 6.0 / s.xp.maximum(excess, 0.2), loc=median, scale=s.spread((high - low) / 1.46, deviation)
    )


student_t = Family(
    student_t_log_density,
    ("df", "loc", "scale"),
    main="loc",
    sample=student_t_sample,
    quantile=student_t_quantile,
    constraints={"df": positive, "scale": positive},
    initial=student_t_initial,
    information=student_t_information,
    log_cdf=student_t_log_cdf,
    log_survival=student_t_log_survival,
    mean=student_t_mean,
)
