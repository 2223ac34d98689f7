"""Special functions in elementary operations: arithmetic, comparisons, select, exp, sqrt, floor and the bits of a float.

They have no branches, loops or tables, so that they run on many lanes in one CPU kernel, where those of XLA call the C library for
each number or are long, and in a Triton kernel, which has no rules for them. `elementary` returns the form that replaces a
primitive of JAX.

Largest errors against mpmath at the arguments of tests/test_special.py, relative to max(1, |value|) where a function has
zeros (log-gamma, digamma, polygamma), else relative; and ns a value in one CPU kernel, those of XLA in brackets:

====================  ==================  =================  ================
function              float64             float32            ns, float64
====================  ==================  =================  ================
log                   1.3e-16             (XLA's)            1.1 (4.9)
log1p                 1.2e-16             1.1e-7             1.4 (6.5)
pow, |y| < 5          3.0e-16             3e-7               3.3 (14)
pow, up to 1e±300     4.5e-15             2e-6
lgamma                5.1e-15             1.1e-6             10 (29)
digamma               9.0e-16             5.1e-7             6.8 (26)
trigamma              6.7e-16             3.0e-7             2.1 (112)
polygamma 2, 3, 4     1.5e-15             8e-7
erf, erfc             4.6e-16             1.5e-7             4.4 (3.3)
====================  ==================  =================  ================

log-gamma is relative at its zeros 1 and 2. Results below the smallest normal number are zero, as XLA has it. At infinity
trigamma and its derivatives are 0, where JAX has NaN.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

MAX_POLYGAMMA = 4  # the highest order of a polygamma function


def horner(coefficients: tuple[float, ...], x: Array) -> Array:
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


# --- logarithms, powers ---------------------------------------------------------------------------------------------


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
    value = k * _LN2_HIGH - ((half - (s * (half + z * horner(_LOG_SERIES, z)) + (k * _LN2_LOW + correction))) - f)
    # XLA takes subnormal numbers for zero
    outside = _select(x == 0, -jnp.inf, _select(x > 0, x, jnp.nan))
    return _select((x > 0) & (x < jnp.inf), value, outside)


def log1p(x: Array) -> Array:
    """log(1 + x) from the rounded sum u and its rounding error divided by u."""
    u = 1 + x
    one = u - x  # to rounding; XLA would simplify (1 + x) - 1 to x
    tail = (x - (u - one)) + (1 - one)
    inside = (u > 0) & (u < jnp.inf)
    correction = _select(inside, tail, 0.0) / _select(inside, u, 1.0)
    return _log64(u, correction) if x.dtype == jnp.float64 else lax.log(u) + correction


def _head(x: Array) -> Array:
    """x with the lower half of its digits cleared, so that products of two such are exact."""
    kind, mask = (np.int64, -(1 << 27)) if x.dtype == jnp.float64 else (np.int32, -(1 << 12))
    return lax.bitcast_convert_type(lax.bitcast_convert_type(x, kind) & kind(mask), x.dtype)


def _pow(x: Array, y: Array) -> Array:
    """exp(y log |x|); values at 0, 1, infinities and for x < 0 as in C.

    An error of the exponent is an absolute one of its size in the relative error of the power, and the exponent may be several
    hundred: so log |x| is a sum `main + tail` of about twice the digits, and so is its product with y.
    """
    a = lax.abs(x)
    series: tuple[float, ...]
    if x.dtype == jnp.float64:
        k, f = _log_parts(a)
        series, high, low = _LOG_SERIES, _LN2_HIGH, _LN2_LOW
    else:
        bits = lax.bitcast_convert_type(a, np.int32)
        mantissa = lax.bitcast_convert_type((bits & np.int32(0x007FFFFF)) | np.int32(0x3F800000), x.dtype)
        large = mantissa > math.sqrt(2)
        k = lax.convert_element_type(lax.shift_right_logical(bits, np.int32(23)) - np.int32(127), x.dtype)
        k, f = k + _select(large, lax.full_like(k, 1.0), 0.0), _select(large, 0.5 * mantissa, mantissa) - 1
        series, high, low = _LOG_SERIES_32, 0.693359375, -2.12194440e-4
    s = f / (2 + f)
    z = s * s
    head = _head(f)
    half, rest = 0.5 * head * head, 0.5 * (f - head) * (f + head)  # f²/2, exactly
    # log |x| = k log 2 + f - f²/2 + …: sums in order of size, each with its rounding error (two-sums)
    first = k * high
    total = first + f
    back = total - first
    tail = (first - (total - back)) + (f - back)
    main = total - half
    back = main - total
    tail = tail + ((total - (main - back)) + (-half - back))
    tail = tail + (s * (half + rest + z * horner(series, z)) - rest + k * low)
    main, before = main + tail, main
    tail = tail - (main - before)
    normal = (a > 0) & (a < jnp.inf)
    log = _select(normal, main, _select(a == 0, -jnp.inf, a))
    product = _select(a == 1, 0.0, log * y)
    log_head, y_head = (
        _head(log),
        _head(y),
    )  # Dekker's product: the rounding error of log × y from products of half the digits
    log_tail, y_tail = log - log_head, y - y_head
    error = ((log_head * y_head - product) + log_head * y_tail + log_tail * y_head) + log_tail * y_tail
    correct = normal & (a != 1) & (lax.abs(product) < 1e3)
    value = lax.exp(product) * (1 + _select(correct, error + tail * y, 0.0))
    whole, odd = lax.floor(y) == y, lax.floor(0.5 * y) * 2 != y
    negative = _select(whole, _select(odd, -value, value), _select(a < jnp.inf, jnp.nan, value))
    signed = _select(x < 0, negative, value)
    return _select(y == 0, jnp.ones_like(x), signed)


_LOG_SERIES_32 = (0.24279078841, 0.28498786688, 0.40000972152, 0.66666662693)


# --- log-gamma and its derivatives ----------------------------------------------------------------------------------
#
# For x ≥ 8 (float32: 4) Stirling's series; below, the recurrence leads to x + 8 (x + 4); for x < 0 reflection.


def _shift(x: Array) -> int:
    return 8 if x.dtype == jnp.float64 else 4


def _shifted(x: Array, shift: int) -> tuple[Array, Array, Array, Array]:
    """negative?, small?, the argument for the shift (1 where there is none), the one for the series, of x or 1 - x."""
    negative = x < 0
    a = _select(negative, 1 - x, x)
    small = a < shift
    return negative, small, _select(small, a, 1.0), _select(small, a + shift, a)


def _pairs(low: Array, shift: int) -> list[Array]:
    """(low + k)(low + shift - 1 - k) for k < shift / 2: the product of all is low (low + 1) … (low + shift - 1)."""
    p = low * (low + (shift - 1))
    return [p, *(p + k * (shift - 1 - k) for k in range(1, shift // 2))]


def _product(factors: list[Array]) -> Array:
    """In pairs, so that the operations do not wait for each other."""
    while len(factors) > 1:
        factors = [functools.reduce(lax.mul, factors[k : k + 2]) for k in range(0, len(factors), 2)]
    return factors[0]


def _turn(x: Array, negative: Array) -> Array:
    """The distance of x to the nearest integer for the reflections, signed; 1/2 where there is none."""
    return _select(negative, x - lax.floor(x + 0.5), 0.5)


_SIN_PI = tuple((-1) ** k * math.pi ** (2 * k + 1) / math.factorial(2 * k + 1) for k in reversed(range(12)))


def _sin_pi(r: Array) -> Array:
    """sin πr for |r| ≤ 1/2."""
    return r * horner(_for_dtype(r, _SIN_PI, 7), r * r)


def _cotangent(r: Array, sin: Array) -> Array:
    return _sin_pi(0.5 - lax.abs(r)) / sin


# log Γ(2 + t) / t for |t| ≤ 1/2, interpolated at Chebyshev points (relative errors 2e-17, 5e-10): Stirling's form has no
# relative accuracy near the zeros at 1 and 2.
_NEAR_TWO = (2.7475390051909663e-07, -5.811277768921246e-07, 9.242852225162277e-07, -1.9743106888421067e-06,
    4.3828545383846665e-06,
    -9.45628851510172e-06, 2.050601970174762e-05, -4.4923727564247656e-05, 9.945761692157133e-05, -0.00022315497746292723,
    0.0005096695196526673, -0.0011927539009983087, 0.002890510330865901, -0.007385551028935545, 0.02058080842778338,
    -0.06735230105319563, 0.3224670334241132, 0.42278433509846713)  # fmt: skip
_NEAR_TWO_32 = (0.00011347281994554691, -0.0002538170956727826, 0.0005065171429518161, -0.0011858600344983208,
    0.002890795321559696,
    -0.007386174155633413, 0.020580799471518252, -0.0673522814721006, 0.3224670334689425, 0.4227843350004583)  # fmt: skip


def _lgamma(x: Array) -> Array:
    shift = _shift(x)
    negative, small, low, far = _shifted(x, shift)
    i = 1 / far
    series = (-3617 / 122400, 1 / 156, -691 / 360360, 1 / 1188, -1 / 1680, 1 / 1260, -1 / 360, 1 / 12)
    stirling = (far - 0.5) * (lax.log(far) - 1) + (
        0.5 * math.log(2 * math.pi) - 0.5 + i * horner(_for_dtype(x, series, 4), i * i)
    )
    near, below = lax.abs(x - 1.5) < 1, x < 1.5
    t = _select(near, x - _select(below, 1.0, lax.full_like(x, 2.0)), 0.0)
    stirling = _select(near, t * horner(_NEAR_TWO if x.dtype == jnp.float64 else _NEAR_TWO_32, t), stirling)
    product = _select(near, _select(below, x, 1.0), _select(small, _product(_pairs(low, shift)), 1.0))
    # one logarithm serves all: log Γ(x) = log π - log |sin πx| - log Γ(1 - x) for x < 0
    rest = lax.log(_select(negative, product * (math.pi / lax.abs(_sin_pi(_turn(x, negative)))), product))
    value = _select(negative, rest - stirling, stirling - rest)
    return _select(lax.abs(x) < jnp.inf, value, lax.abs(x))


def _digamma(x: Array) -> Array:
    shift = _shift(x)
    negative, small, low, far = _shifted(x, shift)
    i = 1 / far
    series = (3617 / 8160, -1 / 12, 691 / 32760, -1 / 132, 1 / 240, -1 / 252, 1 / 120, -1 / 12)
    value = lax.log(far) - 0.5 * i + i * i * horner(_for_dtype(x, series, 4), i * i)
    # 1/a + 1/b = (a + b) / ab: Σ 1/(low + k) with one division
    pairs = _pairs(low, shift)
    above: Any = sum(_product(pairs[:k] + pairs[k + 1 :]) for k in range(len(pairs)))
    value = value - _select(small, (2 * low + (shift - 1)) * above / _product(pairs), 0.0)
    turn = _turn(x, negative)
    value = value - _select(negative, math.pi * _cotangent(turn, _sin_pi(turn)), 0.0)
    return _select((x <= 0) & (x == lax.floor(x)), jnp.nan, value)  # the pole has no sign


def _inverse_pairs(low: Array, shift: int) -> list[tuple[Array, Array]]:
    """The pairs and their inverses, with one division."""
    pairs = _pairs(low, shift)
    each = 1 / _product(pairs)
    return [(p, _product(pairs[:k] + pairs[k + 1 :]) * each) for k, p in enumerate(pairs)]


def _trigamma(x: Array) -> Array:
    shift = _shift(x)
    negative, small, low, far = _shifted(x, shift)
    i = 1 / far
    series = (-3617 / 510, 7 / 6, -691 / 2730, 5 / 66, -1 / 30, 1 / 42, -1 / 30, 1 / 6)
    value = i * (1 + 0.5 * i + i * i * horner(_for_dtype(x, series, 5), i * i))
    total = 2 * low + (shift - 1)  # 1/a² + 1/b² = ((a + b)² - 2ab) / (ab)²
    squared = total * total
    above: Any = sum((squared - 2 * p) * inverse * inverse for p, inverse in _inverse_pairs(low, shift))
    value = value + _select(small, above, 0.0)
    sin = _sin_pi(_turn(x, negative))
    value = _select(negative, (math.pi / sin) * (math.pi / sin) - value, value)
    return _select(x == 0, jnp.inf, value)


def _polygamma(order: int, x: Array) -> Array:
    """Of order n ≥ 2: n! Σ (x + k)^(-n-1) for k < shift, and the asymptotic series; reflected by the cotangent."""
    shift = 8 if order == 2 else 8 + 2 * order
    negative, small, low, far = _shifted(x, shift)
    n, i, sign = order, 1 / far, -1.0 if order % 2 == 0 else 1.0
    bernoulli = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510, 43867 / 798, -174611 / 330)
    terms = [b * math.factorial(2 * k + n - 1) / math.factorial(2 * k) for k, b in enumerate(bernoulli, 1)]
    series = horner(_for_dtype(x, tuple(reversed(terms)), 6), i * i)
    value = _power(i, n) * (math.factorial(n - 1) + i * (math.factorial(n) / 2 + i * series))
    above: Any = sum(_power(1 / (low + k), n + 1) for k in range(shift))
    value = value + _select(small, math.factorial(n) * above, 0.0)
    turn = _turn(x, negative)
    # π dⁿ/dxⁿ cot πx = πⁿ⁺¹ P(cot πx), P ← -(1 + c²) P'
    polynomial = np.polynomial.Polynomial([0, 1])
    for _ in range(n):
        polynomial = -polynomial.deriv() * np.polynomial.Polynomial([1, 0, 1])
    reflection = math.pi ** (n + 1) * horner(
        tuple(float(c) for c in polynomial.coef[::-1]), _cotangent(turn, _sin_pi(turn))
    )
    # (-1)ⁿ ψₙ(1 - x) = ψₙ(x) + π dⁿ/dxⁿ cot πx, and `value` is |ψₙ|
    value = _select(negative, -value - reflection, sign * value)
    return _select((x <= 0) & (x == lax.floor(x)), jnp.nan if n % 2 == 0 else jnp.inf, value)


def _power(x: Array, n: int) -> Array:
    return x if n == 1 else _power(x * x, n // 2) if n % 2 == 0 else x * _power(x, n - 1)


# --- erf, erfc ------------------------------------------------------------------------------------------------------

# Cody, W. J. (1969), Rational Chebyshev approximations for the error function, Math. Comp. 23, 631-637; coefficients of CALERF.
ERF_NEAR = (
    1.85777706184603153e-1,
    3.16112374387056560e0,
    1.13864154151050156e2,
    3.77485237685302021e2,
    3.20937758913846947e3,
)
ERF_NEAR_UNDER = (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3)
ERFC_MIDDLE = (2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594e0, 6.61191906371416295e1, 2.98635138197400131e2,
           8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3, 1.23033935479799725e3)  # fmt: skip
ERFC_MIDDLE_UNDER = (1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3,
                 3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3)  # fmt: skip
ERFC_FAR = (1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1, 1.25781726111229246e-1, 1.60837851487422766e-2,
        6.58749161529837803e-4)  # fmt: skip
ERFC_FAR_UNDER = (1.0, 2.56852019228982242e0, 1.87295284992346725e0, 5.27905102951428412e-1, 6.05183413124413191e-2,
              2.33520497626869185e-3)  # fmt: skip


def _erf_parts(x: Array) -> tuple[Array, Array, Array]:
    """|x| < 1/2?, erf there, and erfc |x|."""
    a = lax.abs(x)
    near = a < 0.5
    small = _select(near, x, 0.0)
    inside = small * horner(ERF_NEAR, small * small) / horner(ERF_NEAR_UNDER, small * small)
    b = lax.min(lax.max(a, lax.full_like(a, 0.46875)), lax.full_like(a, 4.0))
    c = lax.min(lax.max(a, lax.full_like(a, 4.0)), lax.full_like(a, 1e4))
    i = 1 / (c * c)
    far = a > 4
    # one division for both ranges
    above = _select(far, i * horner(ERFC_FAR, i), horner(ERFC_MIDDLE, b))
    quotient = above / _select(far, horner(ERFC_FAR_UNDER, i), horner(ERFC_MIDDLE_UNDER, b))
    scale = _select(far, (1 / math.sqrt(math.pi) - quotient) / c, quotient)
    a = lax.min(a, lax.full_like(a, 1e4))
    head = lax.floor(a * 16) / 16  # exp(-a²) with a² in two parts, since rounding of a² would be magnified
    # in this order: XLA merges a product of two exponentials that stand side by side
    return near, inside, lax.exp(-head * head) * scale * lax.exp(-(a - head) * (a + head))


def _erf(x: Array) -> Array:
    near, inside, tail = _erf_parts(x)
    return _select(near, inside, _select(x < 0, tail - 1, 1 - tail))


def _erfc(x: Array) -> Array:
    near, inside, tail = _erf_parts(x)
    return _select(near, 1 - inside, _select(x < 0, 2 - tail, tail))


# --- the forms by the names of the primitives that they replace -------------------------------------------------------

_FORMS: dict[str, Callable[..., Array]] = {"lgamma": _lgamma, "digamma": _digamma, "log1p": log1p, "pow": _pow}
_FORMS_64: dict[str, Callable[..., Array]] = {"log": _log64}
_PORTABLE: dict[str, Callable[..., Array]] = {"erf": _erf, "erfc": _erfc}


def elementary(name: str, dtype: Any, portable: bool = False) -> Callable[..., Array] | None:
    """The elementary form of a primitive; None where the primitive itself is as good.

    With `portable` there are also forms of primitives that XLA compiles well on a CPU but for which Triton has no rule.
    """
    dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float64):
        return None
    forms = _FORMS | (_PORTABLE if portable else _FORMS_64 if dtype == np.float64 else {})
    return forms.get(name)


@functools.cache
def polygamma(order: int) -> Callable[[Array], Array]:
    """The polygamma function of a constant order: the derivative of that order of digamma."""
    return _digamma if order == 0 else _trigamma if order == 1 else functools.partial(_polygamma, order)
