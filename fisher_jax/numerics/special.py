"""Special functions in elementary operations: arithmetic, comparisons, select, exp, sqrt, floor and the bits of a float.

No branches, loops or tables, so that they run on many lanes in one CPU kernel, where XLA's own call the C library for each number or
are long, and in a Triton kernel, where they have no rule. `elementary` names the form that takes the place of a primitive of JAX.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

MAX_POLYGAMMA = 8  # the highest order of a polygamma function
_SHIFT = 8


def _horner(coefficients: tuple[float, ...], x: Array) -> Array:
    """Coefficients from the highest power down."""
    value: Any = coefficients[0]
    for c in coefficients[1:]:
        value = value * x + c
    return value


def _select(condition: Array, yes: Any, no: Any) -> Array:
    """jnp.where without its jit."""
    like = yes if isinstance(yes, jax.Array) else no
    return lax.select(condition, *(v if isinstance(v, jax.Array) else lax.full_like(like, v) for v in (yes, no)))


def _for_dtype(x: Array, coefficients: tuple[float, ...], enough: int) -> tuple[float, ...]:
    """float32 needs the last `enough` only."""
    return coefficients if x.dtype == jnp.float64 else coefficients[-enough:]


# --- logarithms, powers -------------------------------------------------------------------------------------------------------------


def _log_parts(x: Array) -> tuple[Array, Array]:
    """k and f with x = 2ᵏ (1 + f), 1 + f within sqrt(1/2) and sqrt(2), for float64."""
    bits = lax.bitcast_convert_type(x, jnp.int64)
    # the exponent as a float64 without an integer conversion: its bits below those of 2⁵²
    k = lax.bitcast_convert_type(lax.shift_right_logical(bits, np.int64(52)) | np.int64(0x4330000000000000), x.dtype)
    mantissa = lax.bitcast_convert_type((bits & np.int64(0x000FFFFFFFFFFFFF)) | np.int64(0x3FF0000000000000), x.dtype)
    large = mantissa > math.sqrt(2)
    return k - _select(large, 2.0**52 + 1022, lax.full_like(k, 2.0**52 + 1023)), _select(
        large, 0.5 * mantissa, mantissa
    ) - 1


_LOG_SERIES = (1.479819860510658591e-01, 1.531383769920937332e-01, 1.818357216161805012e-01, 2.222219843214978396e-01,
               2.857142874366239149e-01, 3.999999999940941908e-01, 6.666666666666735130e-01)  # fmt: skip
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10


def _log64(x: Array, correction: Any = 0.0) -> Array:
    """fdlibm's log (Sun Microsystems, e_log.c), under one unit in the last place; plus a small correction."""
    k, f = _log_parts(x)
    s = f / (2 + f)
    z, half = s * s, 0.5 * f * f
    value = k * _LN2_HIGH - ((half - (s * (half + z * _horner(_LOG_SERIES, z)) + (k * _LN2_LOW + correction))) - f)
    # XLA takes subnormal numbers for zero
    outside = _select(x == 0, -jnp.inf, _select(x > 0, x, jnp.nan))
    return _select((x > 0) & (x < jnp.inf), value, outside)


def _log1p64(x: Array) -> Array:
    """log(1 + x) from the rounded sum u and what rounding lost, divided by u."""
    u = 1 + x
    lost = x - (u - 1)
    return _select(lax.abs(x) < 2.0**53, _log64(u, _select(u > 0, lost, 0.0) / _select(u > 0, u, 1.0)), _log64(x))


# --- log-gamma and its derivatives ----------------------------------------------------------------------------------------------------


def _shifted(x: Array) -> tuple[Array, Array, Array, Array]:
    """negative?, small?, the argument for the shift (1 where there is none), the one for the series, of x or 1 - x."""
    negative = x < 0
    a = _select(negative, 1 - x, x)
    small = a < _SHIFT
    return negative, small, _select(small, a, 1.0), _select(small, a + _SHIFT, a)


def _pairs(low: Array) -> tuple[Array, Array, Array, Array]:
    """(low + k)(low + 7 - k), k = 0 … 3: the product of all is low (low + 1) … (low + 7)."""
    p = low * (low + 7)
    return p, p + 6, p + 10, p + 12


def _turn(x: Array, negative: Array) -> Array:
    """The distance of x to the nearest integer for the reflections, signed; 1/2 where there is none."""
    return _select(negative, x - lax.floor(x + 0.5), 0.5)


_SIN_PI = (-2.1915353447830215e-05, 0.00046630280576761255, -0.0073704309457143504, 0.08214588661112823, -0.5992645293207921,
           2.550164039877345, -5.16771278004997, math.pi)  # fmt: skip
_COS_PI = (-1.0638e-4 * 0 + 4.303069587032947e-06, -0.00010463810492484570, 0.0019295743094039230, -0.025806891390014060,
           0.23533063035889320, -1.3352627688545895, 4.0587121264167682, -4.9348022005446793, 1.0)  # fmt: skip


def _sin_pi(r: Array) -> Array:
    return r * _horner(_for_dtype(r, _SIN_PI, 6), r * r)


def _cos_pi(r: Array) -> Array:
    return _horner(_for_dtype(r, _COS_PI, 7), r * r)


def _lgamma(x: Array) -> Array:
    negative, small, low, far = _shifted(x)
    i = 1 / far
    series = (1 / 156, -691 / 360360, 1 / 1188, -1 / 1680, 1 / 1260, -1 / 360, 1 / 12)
    stirling = (far - 0.5) * (lax.log(far) - 1) + (
        0.5 * math.log(2 * math.pi) - 0.5 + i * _horner(_for_dtype(x, series, 4), i * i)
    )
    p, q, r, s = _pairs(low)
    product = _select(small, p * q * (r * s), 1.0)
    # one logarithm serves both: log Γ(x) = log π - log |sin πx| - log Γ(1 - x) for x < 0
    rest = lax.log(_select(negative, product * (math.pi / lax.abs(_sin_pi(_turn(x, negative)))), product))
    value = _select(negative, rest - stirling, stirling - rest)
    return _select(lax.abs(x) < jnp.inf, value, lax.abs(x))


def _digamma(x: Array) -> Array:
    negative, small, low, far = _shifted(x)
    i = 1 / far
    series = (-1 / 12, 691 / 32760, -1 / 132, 1 / 240, -1 / 252, 1 / 120, -1 / 12)
    value = lax.log(far) - 0.5 * i + i * i * _horner(_for_dtype(x, series, 4), i * i)
    p, q, r, s = _pairs(low)
    pq, rs = p * q, r * s
    shift = (2 * low + 7) * ((p + q) * rs + (r + s) * pq) / (pq * rs)
    value = value - _select(small, shift, 0.0)
    turn = _turn(x, negative)
    return value - _select(negative, math.pi * _cos_pi(turn) / _sin_pi(turn), 0.0)


def _inverse_pairs(low: Array) -> list[tuple[Array, Array]]:
    p, q, r, s = _pairs(low)
    pq, rs = p * q, r * s
    each = 1 / (pq * rs)
    return [(p, q * rs * each), (q, p * rs * each), (r, s * pq * each), (s, r * pq * each)]


def _trigamma(x: Array) -> Array:
    negative, small, low, far = _shifted(x)
    i = 1 / far
    series = (7 / 6, -691 / 2730, 5 / 66, -1 / 30, 1 / 42, -1 / 30, 1 / 6)
    value = i * (1 + 0.5 * i + i * i * _horner(_for_dtype(x, series, 4), i * i))
    squared = (2 * low + 7) * (2 * low + 7)  # 1/a² + 1/b² = ((a + b)² - 2ab) / (ab)²
    shift: Any = sum((squared - 2 * p) * inverse * inverse for p, inverse in _inverse_pairs(low))
    value = value + _select(small, shift, 0.0)
    sin = _sin_pi(_turn(x, negative))
    return _select(negative, (math.pi / sin) * (math.pi / sin) - value, value)


def _polygamma(order: int, x: Array) -> Array:
    """Of order n ≥ 2: n! Σ (x + k)^(-n-1) for k < 8, and the asymptotic series at x + 8; reflection by derivatives of the cotangent."""
    negative, small, low, far = _shifted(x)
    n, i, sign = order, 1 / far, -1.0 if order % 2 == 0 else 1.0
    bernoulli = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510, 43867 / 798, -174611 / 330)
    terms = [b * math.factorial(2 * k + n - 1) / math.factorial(2 * k) for k, b in enumerate(bernoulli, 1)]
    series = _horner(_for_dtype(x, tuple(reversed(terms)), 6), i * i)
    value = _power(i, n) * (math.factorial(n - 1) + i * (math.factorial(n) / 2 + i * series))
    shift: Any = sum(_power(1 / (low + k), n + 1) for k in range(_SHIFT))
    value = value + _select(small, math.factorial(n) * shift, 0.0)
    turn = _turn(x, negative)
    sin = _sin_pi(turn)
    cotangent = _cos_pi(turn) / sin
    # π dⁿ/dxⁿ cot πx = πⁿ⁺¹ P(cot πx), P ← -(1 + c²) P'
    polynomial = np.polynomial.Polynomial([0, 1])
    for _ in range(n):
        polynomial = -polynomial.deriv() * np.polynomial.Polynomial([1, 0, 1])
    reflected = math.pi ** (n + 1) * _horner(tuple(float(c) for c in polynomial.coef[::-1]), cotangent)
    # ψₙ(1 - x) (-1)ⁿ = ψₙ(x) + π dⁿ/dxⁿ cot πx, and `value` is |ψₙ|
    return _select(negative, -value - reflected, sign * value)


def _power(x: Array, n: int) -> Array:
    return x if n == 1 else _power(x * x, n // 2) if n % 2 == 0 else x * _power(x, n - 1)


# --- erf, erfc ------------------------------------------------------------------------------------------------------------------------

# Cody, W. J. (1969), Rational Chebyshev approximations for the error function, Math. Comp. 23, 631-637; coefficients of CALERF.
_NEAR = (
    1.85777706184603153e-1,
    3.16112374387056560e0,
    1.13864154151050156e2,
    3.77485237685302021e2,
    3.20937758913846947e3,
)
_NEAR_UNDER = (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3)
_MIDDLE = (2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594e0, 6.61191906371416295e1, 2.98635138197400131e2,
           8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3, 1.23033935479799725e3)  # fmt: skip
_MIDDLE_UNDER = (1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3,
                 3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3)  # fmt: skip
_FAR = (1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1, 1.25781726111229246e-1, 1.60837851487422766e-2,
        6.58749161529837803e-4)  # fmt: skip
_FAR_UNDER = (1.0, 2.56852019228982242e0, 1.87295284992346725e0, 5.27905102951428412e-1, 6.05183413124413191e-2,
              2.33520497626869185e-3)  # fmt: skip


def _erf_parts(x: Array) -> tuple[Array, Array, Array]:
    """|x| < 1/2?, erf there, and erfc |x|."""
    a = lax.abs(x)
    near = a < 0.5
    small = _select(near, x, 0.0)
    inside = small * _horner(_NEAR, small * small) / _horner(_NEAR_UNDER, small * small)
    b = lax.min(lax.max(a, lax.full_like(a, 0.46875)), lax.full_like(a, 4.0))
    c = lax.min(lax.max(a, lax.full_like(a, 4.0)), lax.full_like(a, 1e4))
    i = 1 / (c * c)
    far = a > 4
    # one division for both ranges
    above = _select(far, i * _horner(_FAR, i), _horner(_MIDDLE, b))
    quotient = above / _select(far, _horner(_FAR_UNDER, i), _horner(_MIDDLE_UNDER, b))
    scale = _select(far, (1 / math.sqrt(math.pi) - quotient) / c, quotient)
    a = lax.min(a, lax.full_like(a, 1e4))
    head = lax.floor(a * 16) / 16  # exp(-a²) with a² in two parts, since rounding of a² would be magnified
    return near, inside, lax.exp(-head * head) * lax.exp(-(a - head) * (a + head)) * scale


def _erf(x: Array) -> Array:
    near, inside, tail = _erf_parts(x)
    return _select(near, inside, _select(x < 0, tail - 1, 1 - tail))


def _erfc(x: Array) -> Array:
    near, inside, tail = _erf_parts(x)
    return _select(near, 1 - inside, _select(x < 0, 2 - tail, tail))


# --- what takes the place of which primitive -------------------------------------------------------------------------------------------

_FORMS: dict[str, Callable[..., Array]] = {"lgamma": _lgamma, "digamma": _digamma, "erf": _erf, "erfc": _erfc}
_FORMS_64: dict[str, Callable[..., Array]] = {"log": _log64, "log1p": _log1p64}


def elementary(name: str, dtype: Any) -> Callable[..., Array] | None:
    """The elementary form of a primitive, None where the primitive itself is as good."""
    dtype = np.dtype(dtype)
    if dtype == np.float64 and name in _FORMS_64:
        return _FORMS_64[name]
    return _FORMS.get(name) if dtype in (np.float32, np.float64) else None


@functools.cache
def polygamma_of(order: int) -> Callable[[Array], Array]:
    """The polygamma function of a constant order: the derivative of that order of digamma."""
    return _digamma if order == 0 else _trigamma if order == 1 else functools.partial(_polygamma, order)
