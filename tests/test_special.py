"""Elementary special functions against mpmath, over their whole domains, in both precisions."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jax.scipy import special as jsp

from fisher_jax.numerics import special, stable_functions

RNG = np.random.default_rng(0)
POSITIVE = np.concatenate(
    [
        10.0 ** np.arange(-30, 30, 2.5),
        RNG.uniform(0, 3, 60),
        RNG.uniform(0, 20, 40),
        [1, 2, 0.5, 1.5, 2.5, 3.999, 4, 7.999, 8, 8.0001, 1 + 1e-6, 2 - 1e-6],
    ]
)
NEGATIVE = -np.concatenate([RNG.uniform(0, 30, 60), [0.5, 1.5, 1e-10, 1e-3, 1 + 1e-6, 2 - 1e-6, 0.9999, 100.25]])
BOTH = np.concatenate([POSITIVE, NEGATIVE])
LOGARITHMS = np.concatenate([POSITIVE, RNG.uniform(0.9, 1.1, 100), 10.0 ** RNG.uniform(-300, 300, 100)])
ABOVE_MINUS_ONE = np.concatenate(
    [POSITIVE, -RNG.uniform(0, 1, 100), -(10.0 ** np.arange(-20.0, 0)), RNG.uniform(-0.6, -0.2, 50)]
)
TAILS = np.concatenate([RNG.uniform(-6, 26, 200), NEGATIVE[:60] / 6, [0.46875, 0.5, 4.0, 26.5]])


def log_gamma(x):
    return mpmath.log(abs(mpmath.gamma(x))) if x < 1e5 else mpmath.loggamma(x)


def polygamma(order):
    return special.polygamma(order), lambda x: mpmath.polygamma(order, x)


# form, reference, arguments, whether errors are relative where the value is below 1, largest errors in float64 and float32
CASES = {
    "log": (special.elementary("log", np.float64), mpmath.log, LOGARITHMS, True, 2e-16, None),
    "log1p": (special.log1p, mpmath.log1p, ABOVE_MINUS_ONE, True, 2e-16, 2e-7),
    "lgamma": (special.elementary("lgamma", np.float64), log_gamma, BOTH, False, 8e-15, 2e-6),
    "lgamma at its zeros": (
        special.elementary("lgamma", np.float64),
        log_gamma,
        RNG.uniform(0.51, 2.49, 100),
        True,
        1e-15,
        1e-6,
    ),
    "digamma": (special.elementary("digamma", np.float64), mpmath.digamma, BOTH, False, 2e-15, 1e-6),
    "trigamma": (*polygamma(1), BOTH, False, 2e-15, 1e-6),
    "polygamma 2": (*polygamma(2), BOTH, False, 3e-15, 1e-6),
    "polygamma 3": (*polygamma(3), BOTH, False, 3e-15, 1e-6),
    "polygamma 4": (*polygamma(4), BOTH, False, 3e-15, 2e-6),
    "erf": (special.elementary("erf", np.float64, portable=True), mpmath.erf, BOTH, True, 1e-15, 3e-7),
    "erfc": (special.elementary("erfc", np.float64, portable=True), mpmath.erfc, TAILS, True, 1e-15, 1e-6),
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["64", "32"])
@pytest.mark.parametrize("name", CASES)
def test_errors_stay_below_those_of_the_table(name, dtype):
    form, reference, arguments, relative, *tolerances = CASES[name]
    tolerance = tolerances[dtype is np.float32]
    if tolerance is None:
        pytest.skip("JAX's own serves")
    limits = np.finfo(dtype)
    x = arguments[(np.abs(arguments) < 1e30)] if dtype is np.float32 else arguments
    x = x.astype(dtype)
    results = np.asarray(jax.jit(form)(x))
    with mpmath.workdps(40):
        expected = [reference(mpmath.mpf(float(v))) for v in x]
        errors = [
            float(abs(mpmath.mpf(float(a)) - b) / (abs(b) if relative else max(1, abs(b))))
            for a, b in zip(results, expected, strict=True)
            if 4 * limits.tiny < abs(b) < limits.max
        ]
    assert len(errors) > 0.6 * len(x)
    assert max(errors) < tolerance


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["64", "32"])
def test_powers_keep_the_digits_that_the_exponent_magnifies(dtype):
    rng = np.random.default_rng(1)
    x = np.concatenate([10.0 ** rng.uniform(-10, 10, 200), rng.uniform(1.01, 2, 200)]).astype(dtype)
    span = 300 if dtype is np.float64 else 36
    y = (rng.uniform(-1, 1, 400) * span / np.abs(np.log10(x))).astype(dtype)
    results = np.asarray(jax.jit(special.elementary("pow", dtype))(x, y))
    with mpmath.workdps(40):
        expected = [mpmath.mpf(float(a)) ** mpmath.mpf(float(b)) for a, b in zip(x, y, strict=True)]
        errors = [float(abs(mpmath.mpf(float(a)) / b - 1)) for a, b in zip(results, expected, strict=True)]
    assert max(errors) < (1e-14 if dtype is np.float64 else 1e-5)


def same(a, b):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-6)


POINTS = np.array([0.0, np.inf, -np.inf, np.nan, -1, 1, -2, 2, 0.5, -0.5, 3, -3, 2.5, 1e-30, -1e-30])


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["64", "32"])
def test_powers_have_the_special_values_of_jax(dtype):
    x, y = (np.ravel(a).astype(dtype) for a in np.meshgrid(POINTS, POINTS))
    same(jax.jit(special.elementary("pow", dtype))(x, y), jax.jit(jnp.power)(x, y))


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["64", "32"])
def test_poles_infinities_and_nan_are_those_of_jax(dtype):
    x = np.array([0, np.inf, -np.inf, np.nan, -1, -2, 1, 2], dtype)
    own = {"lgamma": jsp.gammaln, "log1p": jnp.log1p, "erf": jsp.erf, "erfc": jsp.erfc}
    elsewhere = x[1:]  # JAX 0.11 changed its digamma at 0
    finite = x[np.abs(x) < np.inf]

    @jax.jit
    def of_both(x, elsewhere, finite):
        pairs = [(special.elementary(name, dtype, portable=True)(x), function(x)) for name, function in own.items()]
        pairs.append((special.elementary("log", np.float64)(x.astype(np.float64)), jnp.log(x)))
        pairs.append((special.elementary("digamma", dtype)(elsewhere), jsp.digamma(elsewhere)))
        return [*pairs, *((special.polygamma(order)(finite), jsp.polygamma(order, finite)) for order in (1, 2, 3))]

    for elementary, of_jax in of_both(x, elsewhere, finite):
        same(elementary, of_jax)


def nth_derivative(function, order):
    for _ in range(order):
        function = jax.grad(function)
    return jax.jit(jax.vmap(function))


@pytest.mark.parametrize("order", [0, 1, 2, 3, 4])
def test_derivatives_of_a_sigmoid_keep_their_digits_in_both_tails(order):
    x = np.array([-700.0, -80, -30, -5, -1.3, -0.2, 0, 1e-5, 0.4, 2, 6, 20, 37, 60, 500])
    with mpmath.workdps(40):
        expected = []
        for t in map(mpmath.mpf, x):
            p, q = 1 / (1 + mpmath.exp(-t)), 1 / (1 + mpmath.exp(t))
            closed = -mpmath.log1p(mpmath.exp(-t)), q, -p * q, -p * q * (q - p), -p * q * ((q - p) ** 2 - 2 * p * q)
            expected.append(float(closed[order]))
    np.testing.assert_allclose(
        nth_derivative(stable_functions.log_sigmoid, order)(x), expected, rtol=1e-12, atol=1e-16 if order > 2 else 0
    )


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_derivatives_of_stirlings_error_make_those_of_log_gamma(order):
    x = np.concatenate([[1e-30, 1e-9, 1e-3, 7.999, 8.0, 8.1, 40.0, 1e5, 1e9], RNG.uniform(0, 12, 30)])
    with mpmath.workdps(40):
        # Of log Γ less (x − ½) log x − x, whose derivatives are written out.
        of_rest = [lambda t: mpmath.log(t) - 0.5 / t, lambda t: 1 / t + 0.5 / t**2]
        of_rest += [lambda t: -1 / t**2 - 1 / t**3, lambda t: 2 / t**3 + 3 / t**4]
        of_gamma = [mpmath.polygamma(order - 1, t) for t in map(mpmath.mpf, x)]
        expected = [float(gamma - of_rest[order - 1](t)) for gamma, t in zip(of_gamma, map(mpmath.mpf, x), strict=True)]
    error = nth_derivative(stable_functions.stirling_error, order)(x) - np.array(expected)
    assert np.max(np.abs(error) / np.abs(np.array(of_gamma, float))) < [1e-14, 1e-14, 1e-13, 1e-12][order - 1]
