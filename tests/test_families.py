"""Families: normalised densities right at ordinary and extreme values, samplers and quantiles that match, exact information."""

import functools
import itertools
import pickle
import pydoc
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special as sp
import scipy.stats as st
from families_registry import FAMILIES
from helpers import some_of

import fisher_jax as fj
from fisher_jax import families
from fisher_jax.numerics import stable_functions as special

CHUNK = 1024
NAMES = sorted(FAMILIES)
SCALAR = [name for name in NAMES if FAMILIES[name].kind != "multivariate"]
CONTINUOUS = [name for name in NAMES if FAMILIES[name].kind == "continuous"]
CASES = [pytest.param(name, k, id=f"{name}-{k}") for name in SCALAR for k in range(2)]


def free(name):
    """The parameters that are estimated."""
    table = dict(FAMILIES[name].model.declarations.constraints)
    return [key for key in FAMILIES[name].points[0] if table.get((key,)) != fj.fixed]


@functools.cache
def compiled(name):
    """Value, score and Hessian in the free parameters, for CHUNK values of y at once: one compilation for all tests."""
    log_density = FAMILIES[name].model.log_density

    def at(estimated, known, y):
        def f(estimated):
            return log_density({**estimated, **known}, y)

        def slope(estimated):
            value, score = jax.value_and_grad(f)(estimated)
            return score, (value, score)

        hessian, (value, score) = jax.jacfwd(slope, has_aux=True)(estimated)
        return value, score, hessian

    return jax.jit(jax.vmap(at, in_axes=(None, None, 0)))


def evaluate(name, params, y):
    """The log-densities (n,), scores (n, q) and Hessians (n, q, q), q free numbers in the order of `free`."""
    names = free(name)
    estimated = {key: jnp.asarray(params[key], float) for key in names}
    known = {key: jnp.asarray(value, float) for key, value in params.items() if key not in names}
    n = len(y)
    y = np.asarray(y, float)
    chunks = [compiled(name)(estimated, known, np.resize(y[i : i + CHUNK], CHUNK)) for i in range(0, n, CHUNK)]
    value, score, hessian = jax.tree.map(lambda *parts: np.concatenate(parts)[:n], *chunks)
    sizes = {key: np.size(params[key]) for key in names}
    score = np.concatenate([score[key].reshape(n, -1) for key in names], axis=1)
    rows = [
        np.concatenate([hessian[row][column].reshape(n, sizes[row], sizes[column]) for column in names], axis=2)
        for row in names
    ]
    return value, score, np.concatenate(rows, axis=1)


@functools.cache
def jitted_information(name):
    return jax.jit(FAMILIES[name].model.information)


def information(name, params):
    """The family's information at the parameters, nested, by one compilation for each dtype."""
    return jitted_information(name)(
        {key: jnp.asarray(value, jnp.result_type(float, value)) for key, value in params.items()}
    )


@functools.cache
def value_and_score(name):
    """One log-density and its gradient in all parameters."""
    return jax.jit(jax.value_and_grad(FAMILIES[name].model.log_density))


def closed_form(name, params):
    """The family's information as a matrix over its free parameters."""
    nested, names = information(name, params), free(name)
    sizes = {key: np.size(params[key]) for key in names}
    return np.block(
        [[np.reshape(nested[row][column], (sizes[row], sizes[column])) for column in names] for row in names]
    )


def piece(low, high, order=400):
    """Double-exponential nodes and weights between two ends, either of which may be infinite."""
    if np.isinf(low):
        y, weights = piece(-high, np.inf, order)
        return -y, weights
    if np.isinf(high):
        t = np.linspace(-4.2, 4.2, order)
        x = np.exp(np.pi / 2 * np.sinh(t))
        return low + x, x * np.pi / 2 * np.cosh(t) * (t[1] - t[0])
    t = np.linspace(-3.6, 3.6, order)
    from_low, from_high = sp.expit(np.pi * np.sinh(t)), sp.expit(-np.pi * np.sinh(t))
    width = high - low
    y = np.where(t < 0, low + width * from_low, high - width * from_high)
    return y, width * np.pi * np.cosh(t) * from_low * from_high * (t[1] - t[0])


def rule(name, params):
    """Values of y and weights whose weighted sum is the integral, or the sum over all values."""
    family = FAMILIES[name]
    if family.kind == "discrete":
        values = family.nodes(params)
        return values, np.ones(len(values))
    low, high = family.nodes(params)
    ends = [low, *family.cuts(params), high]
    pieces = [piece(a, b) for a, b in itertools.pairwise(ends)]
    return tuple(np.concatenate(part) for part in zip(*pieces, strict=True))


@functools.cache
def moments(name, k):
    """E[1], E[s], E[s sᵀ] and −E[H] by quadrature or enumeration."""
    params = FAMILIES[name].points[k]
    y, weights = rule(name, params)
    value, score, hessian = evaluate(name, params, y)
    mass = weights * np.exp(value)
    held = mass > 1e-280
    mass, score, hessian = mass[held], score[held], hessian[held]
    return mass.sum(), mass @ score, np.einsum("n,ni,nj", mass, score, score), -np.einsum("n,nij", mass, hessian)


def assert_close_matrix(received, expected, tolerance):
    scale = np.sqrt(np.diagonal(expected))
    np.testing.assert_allclose(
        received / np.outer(scale, scale), expected / np.outer(scale, scale), rtol=0, atol=tolerance
    )


# Identities -----------------------------------------------------------------------------------------------------------


def test_the_registry_holds_every_family():
    assert sorted(families.__all__) == NAMES
    assert families.__all__ == sorted(families.__all__)
    assert len(NAMES) >= 25
    for name in NAMES:
        assert f"| `{name}` |" in families.__doc__
        assert FAMILIES[name].closed_form == (FAMILIES[name].model.information is not None)


@pytest.mark.parametrize(("name", "k"), CASES)
def test_the_density_is_normalised_and_its_mean_score_is_zero(name, k):
    total, mean_score, information, _ = moments(name, k)
    np.testing.assert_allclose(total, 1.0, rtol=1e-11)
    scale = np.sqrt(np.diagonal(information))
    np.testing.assert_allclose(mean_score / scale, 0.0, atol=1e-9)


@pytest.mark.parametrize(("name", "k"), CASES)
def test_outer_product_and_hessian_forms_of_the_information_agree(name, k):
    _, _, outer, minus_hessian = moments(name, k)
    if name == "laplace":  # the kink's point mass is in no Hessian
        minus_hessian[0, 0] += outer[0, 0]
    if name == "categorical":
        np.testing.assert_allclose(minus_hessian, outer, atol=1e-13)
    else:
        assert_close_matrix(minus_hessian, outer, 1e-8)


@pytest.mark.parametrize(("name", "k"), [case for case in CASES if FAMILIES[case.values[0]].closed_form])
def test_the_closed_form_is_the_information(name, k):
    received = closed_form(name, FAMILIES[name].points[k])
    assert_close_matrix(received, moments(name, k)[2], 1e-9)


# The density ----------------------------------------------------------------------------------------------------------


def log_chances(name, distribution, y):
    if FAMILIES[name].kind == "continuous":
        return distribution.logpdf(y)
    if name == "zero_inflated_poisson":
        return np.log(distribution.pmf(y))
    return distribution.logpmf(y)


@pytest.mark.parametrize(("name", "k"), [case for case in CASES if FAMILIES[case.values[0]].scipy])
def test_log_density_is_scipys(name, k):
    family = FAMILIES[name]
    params = family.points[k]
    distribution = family.scipy(params)
    if family.kind == "discrete":
        y = family.nodes(params)[:60]
    else:
        y = distribution.ppf([1e-9, 1e-4, 0.03, 0.2, 0.5, 0.8, 0.97, 0.9999, 1 - 1e-9])
    received, score, hessian = evaluate(name, params, y)
    np.testing.assert_allclose(received, log_chances(name, distribution, y), rtol=1e-11, atol=1e-11)
    assert np.all(np.isfinite(score))
    assert np.all(np.isfinite(hessian))


def test_multivariate_log_densities_are_scipys():
    for name in ("dirichlet", "multivariate_normal"):
        family = FAMILIES[name]
        for k, params in enumerate(family.points):
            distribution = family.scipy(params)
            for y in distribution.rvs(5, random_state=k):
                np.testing.assert_allclose(value_and_score(name)(params, y)[0], distribution.logpdf(y), rtol=1e-11)


OUTSIDE = {
    "not negative": [-1.0, -1e-300],
    "positive": [-1.0, 0.0],
    "unit interval": [-0.1, 0.0, 1.0, 1.1],
    "from minimum on": [0.0, 0.59],
    "0 or 1": [-1.0, 0.5, 2.0],
    "0 to trials": [-1.0, 0.5, 48.0, np.inf],
    "counts": [-1.0, 0.5],
    "counts from 1": [-1.0, 0.0, 1.5],
    "0 to K - 1": [-1.0, 0.5, 3.0],
    "real with an end": [],  # by its own parameters, below
    "real": [],
    "angle": [],
}


@pytest.mark.parametrize(("name", "k"), CASES)
def test_outside_the_support_the_density_is_zero_and_no_derivative_is_nan(name, k):
    family = FAMILIES[name]
    params = family.points[k]
    y = list(OUTSIDE[family.support])
    if family.kind == "continuous" and name != "von_mises":
        low, high = family.nodes(params)
        y += [end + step for end, step in ((low, -0.5), (high, 0.5)) if np.isfinite(end)]
    if not y:
        return
    value, score, hessian = evaluate(name, params, y)
    np.testing.assert_array_equal(value, -np.inf)
    assert np.all(np.isfinite(score))
    assert np.all(np.isfinite(hessian))


@pytest.mark.parametrize("name", SCALAR)
def test_a_missing_observation_is_not_taken_for_an_impossible_one(name):
    assert np.isnan(evaluate(name, FAMILIES[name].points[0], [np.nan])[0][0])


@pytest.mark.parametrize("name", [name for name in NAMES if FAMILIES[name].kind == "discrete"])
def test_integers_are_taken_as_the_numbers_they_are(name):
    family = FAMILIES[name]
    params, y = family.points[0], min(9, int(family.nodes(family.points[0])[-1]))
    expected = evaluate(name, params, [y])[0][0]
    np.testing.assert_allclose(jax.jit(family.model.log_density)(params, np.uint8(y)), expected, rtol=1e-14)


def single(params):
    return jax.tree.map(lambda value: jnp.asarray(value, jnp.float32), params)


def in_float32(name, params, y):
    """Log-densities (n,) and scores (n, q) of up to ten values, by one compilation."""
    batch = np.resize(np.asarray(y, np.float32), 10)
    value, score = jax.vmap(value_and_score(name), in_axes=(None, 0))(single(params), batch)
    score = np.concatenate([np.reshape(score[key], (10, -1)) for key in free(name)], axis=1)
    return np.asarray(value)[: len(y)], score[: len(y)]


@pytest.mark.parametrize("name", SCALAR)
def test_float32_is_right_to_its_rounding(name):
    family = FAMILIES[name]
    params = family.points[0]
    if family.kind == "discrete":
        y = np.asarray(family.nodes(params)[:10], float)
    else:
        y = np.asarray(family.scipy(params).ppf([1e-3, 0.2, 0.5, 0.8, 0.999]), np.float32).astype(float)
    rounded = {key: np.asarray(value, np.float32).astype(float) for key, value in params.items()}
    expected, expected_score, _ = evaluate(name, rounded, y)
    value, score = in_float32(name, params, y)
    assert value.dtype == np.float32
    np.testing.assert_allclose(value, expected, rtol=2e-5, atol=4e-6)
    np.testing.assert_allclose(score, expected_score, rtol=1e-4, atol=2e-5 * np.abs(expected_score).max())


# Extreme arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "params", "y", "tolerance"),
    [
        ("poisson", {"rate": 1.001e6}, 1e6, 2e-3),
        ("gamma", {"shape": 1e6, "rate": 2.0}, 500_500.0, 2e-3),
        ("negative_binomial", {"mean": 3.0, "size": 1e4}, 5.0, 1e-6),
        ("negative_binomial", {"mean": 1.01e6, "size": 50.0}, 1e6, 2e-3),
        ("binomial", {"logit": 0.1, "trials": 1e6}, 525_000.0, 2e-3),
        ("beta_binomial", {"probability": 0.3, "concentration": 1e6, "trials": 20.0}, 7.0, 1e-5),
        ("beta", {"a": 3e5, "b": 7e5}, 0.3002, 1e-2),
        ("student_t", {"df": 1e3, "loc": 0.0, "scale": 1.0}, 1.5, 1e-6),
        ("von_mises", {"loc": 0.0, "concentration": 1e5}, 0.004, 1e-6),
    ],
)
def test_float32_keeps_its_digits_where_log_gamma_functions_cancel(name, params, y, tolerance):
    params = {key: np.float32(value).astype(float) for key, value in params.items()}
    y = float(np.float32(y))
    expected, expected_score, _ = evaluate(name, params, [y])
    value, score = in_float32(name, params, [y])
    np.testing.assert_allclose(value, expected, rtol=0, atol=tolerance)
    if FAMILIES[name].closed_form:
        scale = np.sqrt(np.diagonal(closed_form(name, params)))
        np.testing.assert_allclose(score / scale, expected_score / scale, rtol=0, atol=5e-3)


@pytest.mark.parametrize(
    ("name", "params", "y", "expected"),
    [  # limits that scipy's own formulas need not reach
        ("negative_binomial", {"mean": 3.7, "size": 1e13}, [0, 3, 40], st.poisson(3.7)),
        ("student_t", {"df": 1e14, "loc": 0.2, "scale": 1.3}, [-4.0, 0.2, 3.0], st.norm(0.2, 1.3)),
        ("beta_binomial", {"probability": 0.3, "concentration": 1e14, "trials": 9.0}, [0, 4, 9], st.binom(9, 0.3)),
        ("gev", {"loc": 0.2, "scale": 1.3, "shape": 0.0}, [-2.0, 0.2, 9.0], st.gumbel_r(0.2, 1.3)),
        ("gev", {"loc": 0.2, "scale": 1.3, "shape": 1e-13}, [-2.0, 0.2, 9.0], st.gumbel_r(0.2, 1.3)),
        ("generalized_pareto", {"scale": 1.3, "shape": 0.0}, [0.0, 0.2, 30.0], st.expon(scale=1.3)),
        ("von_mises", {"loc": 0.0, "concentration": 1e-13}, [0.0, 3.0], st.uniform(0, 2 * np.pi)),
        ("skew_normal", {"loc": 0.2, "scale": 1.3, "shape": 0.0}, [-4.0, 3.0], st.norm(0.2, 1.3)),
        ("zero_inflated_poisson", {"inflation": 1e-14, "rate": 3.7}, [0, 3, 40], st.poisson(3.7)),
    ],
)
def test_limits_are_reached(name, params, y, expected):
    value, score, hessian = evaluate(name, params, y)
    chances = expected.logpmf if isinstance(expected.dist, st.rv_discrete) else expected.logpdf
    np.testing.assert_allclose(value, chances(y), rtol=1e-10)
    assert np.all(np.isfinite(score))
    assert np.all(np.isfinite(hessian))


def test_far_tails_keep_their_digits():
    value = evaluate("skew_normal", {"loc": 0.0, "scale": 1.0, "shape": -2.0}, [11.0, 40.0])[0]
    np.testing.assert_allclose(
        value, np.log(2) + st.norm.logpdf([11.0, 40.0]) + sp.log_ndtr([-22.0, -80.0]), rtol=1e-13
    )
    value, score, _ = evaluate("bernoulli", {"logit": 40.0}, [0, 1])
    np.testing.assert_allclose(value, [-40.0, -np.exp(-40.0)], rtol=1e-13)
    np.testing.assert_allclose(score[:, 0], [-1.0, np.exp(-40.0)], rtol=1e-13)
    value = evaluate("binomial", {"logit": 800.0, "trials": 5.0}, [5, 3])[0]
    np.testing.assert_allclose(value, [0.0, np.log(10.0) - 1600.0], rtol=1e-13, atol=1e-300)
    value = evaluate("poisson", {"rate": 1e-300}, [0, 1])[0]
    np.testing.assert_allclose(value, [-1e-300, -300 * np.log(10)], rtol=1e-13)
    value, score, hessian = evaluate("poisson", {"rate": 0.0}, [0])
    np.testing.assert_array_equal(np.concatenate([value, score[0], hessian[0, 0]]), [0.0, -1.0, 0.0])
    assert np.isnan(evaluate("poisson", {"rate": -0.5}, [0])[0][0])


def gumbel_limit(z):
    """Value, ∂ξ, ∂ξξ and ∂ξ∂z of the GEV log-density at ξ = 0 and scale one, from x = z − ξz²/2 + ξ²z³/3 − …"""
    t = np.exp(-z)
    return (
        -z - t,
        -z + z**2 / 2 * (1 - t),
        z**2 - 2 / 3 * z**3 * (1 - t) - t * z**4 / 4,
        -1 + z * (1 - t) + z**2 / 2 * t,
    )


@pytest.mark.parametrize("shape", [0.0, 1e-12, -1e-12, 1e-9])
def test_gev_is_smooth_through_a_shape_of_zero(shape):
    z = np.array([-2.5, -0.3, 0.0, 0.4, 3.0, 12.0])
    value, score, hessian = evaluate("gev", {"loc": 0.0, "scale": 1.0, "shape": shape}, z)
    expected = gumbel_limit(z)
    np.testing.assert_allclose(value, expected[0], rtol=1e-6 if shape > 1e-10 else 1e-9)
    np.testing.assert_allclose(score[:, 2], expected[1], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(hessian[:, 2, 2], expected[2], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(hessian[:, 0, 2], -expected[3], rtol=1e-5, atol=1e-6)


def test_generalized_pareto_is_smooth_through_a_shape_of_zero():
    z = np.array([0.0, 0.4, 3.0, 12.0])
    _, score, hessian = evaluate("generalized_pareto", {"scale": 1.0, "shape": 0.0}, z)
    np.testing.assert_allclose(score[:, 1], -z + z**2 / 2, rtol=1e-13)
    np.testing.assert_allclose(hessian[:, 1, 1], z**2 - 2 / 3 * z**3, rtol=1e-13)
    np.testing.assert_allclose(hessian[:, 0, 1], z - z**2, rtol=1e-13)


# Special functions ----------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)
def derivatives(function, x):
    first = jax.grad(function)
    return jax.vmap(lambda x: jnp.stack([function(x), first(x), jax.jvp(first, (x,), (jnp.ones_like(x),))[1]]))(x)


def test_log1p_over_has_two_exact_derivatives_everywhere():
    w = np.concatenate([np.linspace(-0.85, 0.85, 35), [-0.3, 0.3, 1e-12, -1e-5, np.nextafter(0.3, 0)]])
    k = np.arange(1500, dtype=np.longdouble)
    powers = np.power(-w.astype(np.longdouble)[:, None], k)
    value = powers @ (1 / (k + 1))
    slope = -(powers[:, :-1] @ (k[1:] / (k[1:] + 1)))
    curvature = powers[:, :-2] @ (k[2:] * (k[2:] - 1) / (k[2:] + 1))
    received = derivatives(special.log1p_over, w)
    np.testing.assert_allclose(received, np.stack([value, slope, curvature], 1).astype(float), rtol=1e-12)


def test_stirling_error_has_two_exact_derivatives():
    x = np.array([1e-8, 1e-3, 0.5, 1.0, 3.3, 7.999, 8.0, 12.0, 40.0])
    expected = np.stack(
        [
            sp.gammaln(x) - (x - 0.5) * np.log(x) + x - 0.5 * np.log(2 * np.pi),
            sp.digamma(x) - np.log(x) + 0.5 / x,
            sp.polygamma(1, x) - 1 / x - 0.5 / x**2,
        ],
        1,
    )
    np.testing.assert_allclose(derivatives(special.stirling_error, x), expected, rtol=1e-12, atol=3e-14)
    large = derivatives(special.stirling_error, np.array([1e4, 1e9]))
    np.testing.assert_allclose(large[:, 0], [1 / 12e4 - 1 / 360e12, 1 / 12e9], rtol=1e-12)


def test_log_i0e_has_two_exact_derivatives_on_both_sides_of_its_switch():
    kappa = np.array([1e-6, 0.1, 2.0, 14.0, 24.999, 25.001, 60.0])
    ratio = sp.i1e(kappa) / sp.i0e(kappa)
    expected = np.stack([np.log(sp.i0e(kappa)), ratio - 1, 1 - ratio / kappa - ratio**2], 1)
    received = derivatives(special.log_i0e, kappa)
    np.testing.assert_allclose(received[:, 0], expected[:, 0], rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(received[:, 1:], expected[:, 1:], rtol=1e-10)
    far = derivatives(special.log_i0e, np.array([1e6]))[0]
    np.testing.assert_allclose(far[1:], [-0.5e-6 - 0.125e-12, 0.5e-12 + 0.25e-18], rtol=1e-12)


# The information ------------------------------------------------------------------------------------------------------


def test_negative_binomial_information_of_the_size():
    entry = information("negative_binomial", {"mean": 2.7, "size": 1.6})["size"]["size"]
    np.testing.assert_allclose(entry, 0.0638683878, atol=5e-11)  # printed in the plan's table of closed forms
    evaluated = jax.jit(
        jax.vmap(lambda mean, size: families.negative_binomial.information({"mean": mean, "size": size}))
    )
    means, sizes = np.array([2.7, 0.3, 40.0, 300.0]), np.array([1.6, 0.5, 7.0, 0.9])
    received = evaluated(means, sizes)["size"]["size"]
    k = np.arange(20_000)
    for mean, size, entry in zip(means, sizes, received, strict=True):
        tail = st.nbinom(size, size / (size + mean)).sf(k)
        np.testing.assert_allclose(entry, np.sum(tail / (size + k) ** 2) - mean / (size * (mean + size)), rtol=1e-9)
    # sizes and means at which that difference has no digit left: Σ_{j ≥ 2} Rʲ B(j, r) / j
    means, sizes = np.array([2.7, 1e-6, 1e4, 1.0, 30.0]), np.array([1e6, 0.01, 1e8, 0.01, 0.1])
    j = np.arange(2, 100_000.0)
    for mean, size, entry in zip(means, sizes, evaluated(means, sizes)["size"]["size"], strict=True):
        terms = (
            np.exp(j * np.log(mean / (mean + size)) + sp.betaln(j, size)) / j if size < 10 else small_terms(mean, size)
        )
        np.testing.assert_allclose(entry, np.sum(terms), rtol=1e-9)
    beyond = evaluated(np.array([1.0, 1e9]), np.array([0.009, 0.1]))
    assert np.all(np.isnan(beyond["size"]["size"]))
    assert np.all(np.isfinite(beyond["mean"]["mean"]))


def small_terms(mean, size):
    """Rʲ B(j, r) / j for j = 2, … by their ratios, where the log-beta function cancels."""
    chance, j = mean / (mean + size), np.arange(2, 60.0)
    first = chance**2 / (2 * size * (size + 1))
    return first * np.concatenate([[1.0], np.cumprod(chance * j**2 / ((size + j) * (j + 1)))])


@pytest.mark.parametrize(("mean", "size"), [(1e4, 0.01), (1e6, 0.01), (1e7, 0.01), (1e6, 0.05), (1e8, 0.2)])
def test_negative_binomial_information_at_the_edge_of_what_it_claims(mean, size):
    """The integral of its docstring by a hundred thousand nodes."""
    v = np.exp(np.linspace(-40.0, 12.0, 400_001))
    t, chance = -np.expm1(-v), mean / (mean + size)
    z = chance * t
    series = z**2 * (1 / 2 + z * (1 / 3 + z * (1 / 4 + z * (1 / 5 + z / 6))))
    term = np.where(z < 1e-3, series, -np.log(size / (mean + size) + chance * np.exp(-v)) - z) / t
    expected = np.sum(np.exp(-size * v) * term * v) * (52.0 / 400_000)
    received = information("negative_binomial", {"mean": mean, "size": size})["size"]["size"]
    np.testing.assert_allclose(received, expected, rtol=1e-9)


def test_student_information_of_the_degrees_of_freedom():
    for df in (0.3, 2.0, 15.0):
        textbook = (sp.polygamma(1, df / 2) - sp.polygamma(1, (df + 1) / 2)) / 4
        textbook -= (df + 5) / (2 * df * (df + 1) * (df + 3))
        received = information("student_t", {"df": df, "loc": 0.0, "scale": 1.0})["df"]["df"]
        np.testing.assert_allclose(received, textbook, rtol=1e-11)
    received = information("student_t", {"df": 1e6, "loc": 0.0, "scale": 1.0})["df"]["df"]
    np.testing.assert_allclose(received, 3.5e-24, rtol=1e-4)


@pytest.mark.parametrize("shape", [-0.45, -0.401, -0.399, -0.1, -1e-3, 0.0, 1e-7, 0.05, 0.399, 0.401, 1.3])
def test_gev_information_holds_through_zero_and_over_its_switch(shape):
    """The integral over x = −log Exp(1), in which all scores are explicit."""
    t = np.linspace(-6.4 if shape < 0 else -4.5, 4.6, 4001)
    e = np.exp(t - np.exp(-t))
    weights = np.exp(-e) * e * (1 + np.exp(-t)) * (t[1] - t[0])
    x = -np.log(e)
    with np.errstate(all="ignore"):
        grown = np.exp(shape * x)  # 1 + ξz
        z = np.where(shape * x == 0, x, np.expm1(shape * x) / shape)
        w = shape * z
        near = z**2 * (-1 / 2 + 2 * w / 3 - 3 * w**2 / 4 + 4 * w**3 / 5 - 5 * w**4 / 6)
        by_shape = np.where(np.abs(w) < 1e-3, near, (z / grown - x) / shape)  # ∂x/∂ξ at fixed z
    slope = -((1 + shape) - e) / grown  # of the log-density in z
    scores = np.stack([-slope, -1 - z * slope, -x - ((1 + shape) - e) * by_shape])
    expected = (weights * scores) @ scores.T
    received = closed_form("gev", {"loc": 0.0, "scale": 1.0, "shape": shape})
    assert_close_matrix(received, expected, 1e-7 if shape < -0.44 else 1e-9)


def test_no_information_where_none_is_finite():
    for name in ("gev", "generalized_pareto"):
        for shape in (-0.5, -0.8):
            nested = information(name, {**FAMILIES[name].points[0], "shape": shape})
            assert all(np.isnan(entry) for row in nested.values() for entry in row.values())


def test_gev_information_in_float32():
    for shape in (-0.3, 0.0, 0.01, 0.3, 0.5, 2.0):
        params = {"loc": 0.0, "scale": 1.0, "shape": shape}
        assert_close_matrix(closed_form("gev", single(params)), closed_form("gev", params), 2e-4)


def test_multivariate_normal_information_is_the_mean_outer_product_of_scores():
    """Scores are quadratic in y, so that a Gauss-Hermite rule of three by three points averages their products exactly."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    z = np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2)
    weights = np.outer(weights, weights).ravel() / weights.sum() ** 2
    for params in FAMILIES["multivariate_normal"].points:
        y = params["loc"] + z @ np.linalg.cholesky(params["covariance"]).T
        score = jax.vmap(value_and_score("multivariate_normal"), in_axes=(None, 0))(params, y)[1]
        nested = information("multivariate_normal", params)
        for row, column in itertools.product(params, params):
            expected = np.einsum("n,n...->n...", weights, score[row]).reshape(9, -1).T @ score[column].reshape(9, -1)
            received = np.reshape(nested[row][column], expected.shape)
            np.testing.assert_allclose(received, expected, rtol=1e-10, atol=1e-10)


def test_multivariate_normal_in_more_dimensions_and_without_definiteness():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(7, 7))
    params = {"loc": rng.normal(size=7), "covariance": root @ root.T}
    y = rng.normal(size=7)
    expected = st.multivariate_normal(params["loc"], params["covariance"]).logpdf(y)
    np.testing.assert_allclose(jax.jit(families.multivariate_normal.log_density)(params, y), expected, rtol=1e-10)
    bad = {"loc": np.zeros(2), "covariance": np.array([[1.0, 2.0], [2.0, 1.0]])}
    assert np.isnan(value_and_score("multivariate_normal")(bad, np.zeros(2))[0])
    assert np.all(np.isnan(jax.jit(families.multivariate_normal.sample)(jax.random.key(0), bad)))
    assert np.all(np.isnan(information("multivariate_normal", bad)["loc"]["loc"]))


def test_dirichlet_information_is_that_of_autodiff():
    family = FAMILIES["dirichlet"]
    second = jax.jit(jax.hessian(family.model.log_density))
    for params in family.points:  # its Hessian does not depend on y
        hessian = second(params, np.array([0.2, 0.5, 0.3]))["concentration"]["concentration"]
        received = information("dirichlet", params)["concentration"]["concentration"]
        np.testing.assert_allclose(received, -hessian, rtol=1e-11)


def test_censored_exponential_information_and_normalisation():
    for params in FAMILIES["censored_exponential"].points:
        time, weights = piece(0.0, params["limit"])
        time, event = np.append(time, params["limit"]), np.append(np.ones_like(time), 0.0)
        weights = np.append(weights, 1.0)
        function = jax.vmap(value_and_score("censored_exponential"), in_axes=(None, 0))
        value, score = function(params, {"time": time, "event": event})
        mass = weights * np.exp(value)
        np.testing.assert_allclose(mass.sum(), 1.0, rtol=1e-12)
        nested = information("censored_exponential", params)
        np.testing.assert_allclose(mass @ score["rate"] ** 2, nested["rate"]["rate"], rtol=1e-11)
        assert nested["rate"]["limit"] == 0.0
    late = families.censored_exponential.log_density({"rate": 1.0, "limit": 2.0}, {"time": 2.5, "event": 1})
    assert late == -np.inf


# Draws and quantiles --------------------------------------------------------------------------------------------------

DRAWS = 4000


@functools.cache
def drawn(name):
    """DRAWS observations at both points, by one compilation."""
    sample = jax.jit(jax.vmap(FAMILIES[name].model.sample, in_axes=(0, None)))
    points = [jax.tree.map(lambda value: jnp.asarray(value, float), params) for params in FAMILIES[name].points]
    return [sample(jax.random.split(jax.random.key(k), DRAWS), params) for k, params in enumerate(points)]


@pytest.mark.parametrize(("name", "k"), [case for case in CASES if FAMILIES[case.values[0]].scipy])
def test_draws_follow_the_distribution(name, k):
    """Kolmogorov's distance, whose 0.1 % point is 1.95 / √n; smaller for discrete values."""
    family = FAMILIES[name]
    params = family.points[k]
    y = np.asarray(drawn(name)[k])
    assert y.dtype == float
    cdf = family.scipy(params).cdf
    if name == "von_mises":
        assert np.all((y >= -np.pi) & (y < np.pi))
        y = params["loc"] + np.mod(y - params["loc"] + np.pi, 2 * np.pi) - np.pi
    if family.kind == "discrete":
        values = family.nodes(params)
        distance = np.max(np.abs(np.mean(y[:, None] <= values, axis=0) - cdf(values)))
    else:
        distance = st.kstest(y, cdf).statistic
    assert distance < 1.95 / np.sqrt(DRAWS)


def test_draws_of_several_numbers_have_their_moments():
    for k in range(2):
        for name in ("multivariate_normal", "dirichlet"):
            y = np.asarray(drawn(name)[k])
            distribution = FAMILIES[name].scipy(FAMILIES[name].points[k])
            mean = distribution.mean() if callable(distribution.mean) else distribution.mean
            cov = distribution.cov() if name == "dirichlet" else FAMILIES[name].points[k]["covariance"]
            np.testing.assert_array_less(np.abs(y.mean(0) - mean), 4 * np.sqrt(np.diagonal(cov) / DRAWS))
            np.testing.assert_allclose(np.cov(y.T), cov, atol=0.12 * np.max(np.abs(cov)))
        chances = np.bincount(np.asarray(drawn("categorical")[k]), minlength=3) / DRAWS
        p = sp.softmax(FAMILIES["categorical"].points[k]["logits"])
        np.testing.assert_array_less(np.abs(chances - p), 4 * np.sqrt(p * (1 - p) / DRAWS))
        params, y = FAMILIES["censored_exponential"].points[k], drawn("censored_exponential")[k]
        survived = np.exp(-params["rate"] * params["limit"])
        assert abs(np.mean(y["event"]) - (1 - survived)) < 4 * np.sqrt(survived * (1 - survived) / DRAWS)
        assert np.all((y["event"] == 1) | (y["time"] == params["limit"]))


@pytest.mark.parametrize("name", NAMES)
def test_draws_are_inside_the_support_and_have_the_parameters_dtype(name):
    model, params, y = FAMILIES[name].model, FAMILIES[name].points[1], drawn(name)[1]
    in_batch = jax.vmap(value_and_score(name), in_axes=(None, 0))
    values = evaluate(name, params, y)[0] if name in SCALAR else in_batch(params, y)[0]
    assert np.all(np.isfinite(values))
    params = single(params)
    for leaf in jax.tree.leaves(jax.eval_shape(model.sample, jax.random.key(0), params)):
        assert leaf.dtype == jnp.float32 or name in ("categorical", "ordered_logit", "ordered_probit")


@functools.cache
def jitted_quantile(name):
    return jax.jit(jax.vmap(FAMILIES[name].model.quantile, in_axes=(0, None)))


# von Mises' turn scipy begins elsewhere, and of two others it has four digits in the tails.
INVERTED = [name for name in SCALAR if FAMILIES[name].model.quantile and FAMILIES[name].scipy]
INVERTED = [name for name in INVERTED if name not in ("von_mises", "skew_normal", "log_logistic")]
# Found by iteration, which takes long to compile: `test_incomplete_functions.py` has them, too.
BY_ITERATION = ["gamma", "beta", "student_t", "poisson", "negative_binomial", "binomial", "beta_binomial"]


@pytest.mark.parametrize(
    ("name", "k"),
    some_of(
        list(itertools.product(INVERTED, range(2))),
        *itertools.product([name for name in INVERTED if name not in BY_ITERATION], range(2)),
    ),
)
def test_the_quantile_inverts_the_distribution_function(name, k):
    """`test_distribution_functions.py` asks more, of all families."""
    family = FAMILIES[name]
    params, u = family.points[k], np.array([1e-12, 1e-3, 0.21, 0.5, 0.77, 0.999, 1 - 1e-12])
    received = jitted_quantile(name)(u, params)
    expected = family.scipy(params).ppf(u)
    if name == "half_normal":  # scipy takes the normal quantile at (1 + u) / 2, which rounds
        expected = params["scale"] * np.sqrt(2) * sp.erfinv(u)
    np.testing.assert_allclose(received, expected, rtol=1e-11, atol=1e-11)


def test_quantiles_of_the_others():
    params = FAMILIES["categorical"].points[0]
    cumulative = np.cumsum(sp.softmax(params["logits"]))
    u = np.array([1e-9, cumulative[0] - 1e-9, cumulative[0] + 1e-9, cumulative[1] + 1e-9, 1 - 1e-16])
    received = jax.jit(jax.vmap(families.categorical.quantile, in_axes=(0, None)))(u, params)
    np.testing.assert_array_equal(received, [0, 0, 1, 2, 2])
    params = FAMILIES["multivariate_normal"].points[0]
    received = jax.jit(families.multivariate_normal.quantile)(st.norm.cdf([0.3, -1.1]), params)
    expected = params["loc"] + np.linalg.cholesky(params["covariance"]) @ [0.3, -1.1]
    np.testing.assert_allclose(received, expected, rtol=1e-12)
    received = jax.jit(families.censored_exponential.quantile)(0.99, {"rate": 1.7, "limit": 0.5})
    assert (received["time"], received["event"]) == (0.5, 0.0)


def test_von_mises_draws_at_small_and_large_concentration():
    draw = jax.jit(jax.vmap(families.von_mises.sample, in_axes=(0, None)))
    keys = jax.random.split(jax.random.key(5), 2000)
    for kappa, dtype in itertools.product([1e-6, 0.02, 1e3, 1e6], [jnp.float32, jnp.float64]):
        y = draw(keys, {"loc": jnp.asarray(0.0, dtype), "concentration": jnp.asarray(kappa, dtype)})
        reference = st.norm(0, kappa**-0.5) if kappa > 100 else st.vonmises(kappa)
        assert st.kstest(np.asarray(y, float), reference.cdf).statistic < 1.95 / np.sqrt(2000), (kappa, dtype)
    for kappa in (np.nan, -1.0, 0.0):
        assert np.all(np.isnan(draw(keys, {"loc": jnp.asarray(0.0), "concentration": jnp.asarray(kappa)})))


# What a family says of itself -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_help_shows_the_parameters_the_formula_the_information_and_scipys_name(name):
    family = getattr(families, name)
    shown = pydoc.render_doc(family, renderer=pydoc.plaintext)  # as help() prints it
    assert family.__doc__.splitlines()[0] in shown
    assert "log p(y) = " in shown
    assert "Information" in shown
    assert "In scipy: " in shown
    assert ("Start: " in shown) == (family.initial is not None)
    listed = [line.split("`")[1] for line in shown.splitlines() if line.strip().startswith("- `")]
    assert tuple(listed) == family.parameters
    assert set(listed) == set(FAMILIES[name].points[0])


def test_a_family_prints_as_its_name_and_parameters():
    assert repr(families.gev) == "families.gev(loc, scale, shape)"
    assert [repr(getattr(families, name)).split("(")[0] for name in NAMES] == [f"families.{name}" for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_a_family_survives_pickling_with_all_that_it_has(name):
    family = getattr(families, name)
    again = pickle.loads(pickle.dumps(family))
    assert again == family
    assert repr(again) == repr(family)
    assert again.__doc__ == family.__doc__
    assert again.information == family.information


# Means ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_is_scipys_or_that_of_draws(name):
    model = FAMILIES[name].model
    for k, params in enumerate(FAMILIES[name].points):
        mean = model.mean(params)
        for leaf in jax.tree.leaves(model.mean(single(params))):
            assert leaf.dtype == jnp.float32
        if FAMILIES[name].scipy is not None:
            distribution = FAMILIES[name].scipy(params)
            expected = distribution.mean() if callable(distribution.mean) else distribution.mean
            np.testing.assert_allclose(mean, expected, rtol=1e-11)
            continue
        y = drawn(name)[k]
        if FAMILIES[name].kind == "discrete":  # a category, whose mean is that of the indicators of all
            y = np.asarray(y)[:, None] == np.arange(len(mean))
            # By the probabilities: a rare category may not be among the draws.
            error = np.sqrt(mean * (1.0 - mean) / DRAWS)
            np.testing.assert_array_less(np.abs(np.mean(y, axis=0) - mean), 4 * error)
            continue
        for leaf, values in zip(jax.tree.leaves(mean), jax.tree.leaves(y), strict=True):
            error = np.std(values, axis=0) / np.sqrt(DRAWS)
            np.testing.assert_array_less(np.abs(np.mean(values, axis=0) - leaf), 4 * error)


@pytest.mark.parametrize(
    ("name", "params", "expected"),
    [
        ("student_t", {"df": 1.0, "loc": 0.2, "scale": 1.3}, np.nan),
        ("pareto", {"shape": 0.9, "minimum": 2.0}, np.inf),
        ("gev", {"loc": 0.2, "scale": 1.3, "shape": 1.0}, np.inf),
        ("generalized_pareto", {"scale": 1.3, "shape": 1.2}, np.inf),
    ],
)
def test_a_mean_that_does_not_exist_is_nan_or_infinite(name, params, expected):
    assert np.array_equal(FAMILIES[name].model.mean(params), expected, equal_nan=True)


@pytest.mark.parametrize("shape", [-0.7, -0.401, -0.399, -1e-3, 1e-9, 0.399, 0.401, 0.9])
def test_the_mean_of_the_gev_and_its_slope_hold_through_zero_and_over_their_switch(shape):
    def mean(xi):
        return families.gev.mean({"loc": 0.0, "scale": 1.0, "shape": xi})

    value, slope = jax.value_and_grad(mean)(shape)
    np.testing.assert_allclose(value, st.genextreme(-shape).mean() if abs(shape) > 1e-6 else np.euler_gamma, rtol=1e-8)
    g = sp.gamma(1 - shape)
    at_zero = 0.5 * (np.euler_gamma**2 + np.pi**2 / 6)
    expected = (-g * sp.digamma(1 - shape) * shape - (g - 1)) / shape**2 if abs(shape) > 1e-2 else at_zero
    np.testing.assert_allclose(slope, expected, rtol=1e-9 if abs(shape) > 1e-2 else 3e-3)


@pytest.mark.parametrize("name", SCALAR)
def test_the_mean_lies_in_the_support_that_the_family_states(name):
    family = FAMILIES[name]
    for params in family.points:
        support = family.model.support
        low, high = (support(params) if callable(support) else support) or (-np.inf, np.inf)
        if np.ndim(family.model.mean(params)):  # that of the indicators of a category
            assert (low, high) == (0.0, 1.0)
        elif family.kind == "discrete":
            ends = np.asarray(family.nodes(params))[[0, -1]]
            assert (low, high) == (ends[0], ends[1] if name in ("bernoulli", "binomial", "beta_binomial") else np.inf)
        else:
            # An end that estimated parameters decide is not stated.
            ends = family.nodes(params)
            stated = name not in ("gev", "generalized_pareto", "von_mises")
            assert (low, high) == tuple(ends) if stated else low in (-np.inf, 0.0)


# Starts ---------------------------------------------------------------------------------------------------------------

STARTING = [name for name in NAMES if FAMILIES[name].model.initial]
EXPLICIT = ["exponential", "half_normal", "inverse_gaussian", "lognormal", "normal", "pareto", "poisson", "rayleigh"]


def test_families_without_a_start_are_those_with_a_constant_that_no_data_determine():
    assert set(NAMES) - set(STARTING) == {"binomial", "beta_binomial", "categorical", "ordered_logit", "ordered_probit"}
    with pytest.raises(ValueError, match="has no `initial`"):
        fj.fit(families.binomial, None, np.array([1.0, 3.0]))


@functools.cache
def start_and_truth(name, k):
    """The fits of 400 draws from the family's own start, and from the truth."""
    model, params = FAMILIES[name].model, FAMILIES[name].points[k]
    y = jax.tree.map(lambda leaf: leaf[:400], drawn(name)[k])
    if name == "pareto":
        params = {**params, "minimum": np.min(y)}
    return fj.fit(model, None, y), fj.fit(model, params, y)


@pytest.mark.parametrize(
    ("name", "k"), some_of(list(itertools.product(STARTING, range(2))), ("gev", 0), ("gev", 1), ("normal", 1))
)
def test_a_fit_from_the_start_of_the_family_ends_where_one_from_the_truth_does(name, k):
    ours, true = start_and_truth(name, k)
    np.testing.assert_allclose(ours.log_likelihood, true.log_likelihood, rtol=1e-9)
    if name == "laplace":  # whose Hessian misses the point mass at the kink
        return
    assert ours.converged
    assert true.converged
    assert ours.num_steps <= true.num_steps + 4
    if name in EXPLICIT:
        assert ours.num_steps == 1


@pytest.mark.parametrize("name", STARTING)
def test_the_start_is_near_the_truth_where_the_sample_is_large(name):
    """Within two standard errors of 25 observations, or 0.6 of the value where the information has no closed form."""
    for k, params in enumerate(FAMILIES[name].points):
        start = FAMILIES[name].model.initial(drawn(name)[k])
        if FAMILIES[name].closed_form:
            away = np.concatenate([np.ravel(start[key] - params[key]) for key in free(name)])
            assert away @ closed_form(name, params) @ away < 4 / 25 * len(away)
        else:
            assert all(abs(start[key] - params[key]) < 0.6 * abs(params[key]) for key in free(name))


@functools.cache
def degenerate(name):
    """Samples of six observations that determine little, or nothing, or are impossible."""
    like = drawn(name)[0]
    if name == "censored_exponential":
        times = np.array([[0.0] * 6, [0.5] * 6, [1e-30] * 6, [0.0, 0.1, 0.2, 0.3, 0.4, 0.5], [np.nan] * 6])
        return [{"time": t, "event": np.full(6, e)} for t, e in itertools.product(times, [0.0, 1.0])]
    values = np.array(
        [
            *([value] * 6 for value in (0.0, 1.0, 0.3, -2.0, 7.0, 1e30, -1e30, 1e-30, 1e-44, np.nan, np.inf)),
            [0.0, 0.0, 0.0, 0.0, 0.0, 1.0],
            [0.0, 1.0, 1.0, 1.0, 1.0, 1.0],
            [0.3, 0.3, 0.3, 0.3, 0.3, 0.7],
            [-1e30, 0.0, 0.0, 0.0, 0.0, 1e30],
            [1e-30, 1.0, 1.0, 1.0, 1.0, 1e30],
            [1.0, 2.0, np.nan, np.inf, -np.inf, 3.0],
            [5.0, 5.0, 5.0, 5.0, 5.0, np.nextafter(5.0, 6.0)],
            [0.2, 0.5, 0.9, 0.1, 0.4, 0.3],
            [3.0, 1.0, 4.0, 1.0, 5.0, 9.0],
        ]
    )
    width = np.shape(like)[1:]
    return list(np.broadcast_to(values.reshape(*values.shape, *[1] * len(width)), (*values.shape, *width)))


def assert_inside(name, start):
    """Finite, of shape as in the registry and strictly inside the constraints."""
    params = FAMILIES[name].points[0]
    assert {key: np.shape(value) for key, value in start.items()} == {key: np.shape(params[key]) for key in params}
    table = dict(FAMILIES[name].model.declarations.constraints)
    for key, value in start.items():
        assert np.all(np.isfinite(value)), (key, value)
        if (key,) in table and key in free(name):
            assert table[key,].contains(value), (key, value)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", STARTING)
def test_degenerate_samples_give_finite_starts_inside_the_constraints(name, dtype):
    with np.errstate(over="ignore"), warnings.catch_warnings():
        warnings.simplefilter("error")
        for y in degenerate(name):
            for few in (6, 1, 0):
                sample = jax.tree.map(lambda leaf: leaf[:few].astype(dtype), y)  # noqa: B023
                start = FAMILIES[name].model.initial(sample)
                assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(start))
                assert_inside(name, start)


@pytest.mark.parametrize("name", STARTING)
def test_starts_under_jit_and_vmap_are_those_of_numpy(name):
    stack = jax.tree.map(lambda *leaves: np.stack(leaves), *degenerate(name))
    good = jax.tree.map(lambda leaf: np.asarray(leaf[:12]).reshape(2, 6, *leaf.shape[1:]), drawn(name)[0])
    stack = jax.tree.map(lambda *parts: np.concatenate(parts), good, stack)
    traced = jax.jit(jax.vmap(FAMILIES[name].model.initial))(stack)
    for k in range(len(jax.tree.leaves(stack)[0])):
        known = FAMILIES[name].model.initial(jax.tree.map(lambda leaf: leaf[k], stack))  # noqa: B023
        assert_inside(name, {key: np.asarray(value[k]) for key, value in traced.items()})
        if k < 2:
            for key, value in known.items():
                np.testing.assert_allclose(traced[key][k], value, rtol=1e-10, atol=1e-12)


def test_every_observation_is_inside_the_support_at_the_start_of_a_family_whose_support_has_an_end():
    draws = np.random.default_rng(3).normal(size=(40, 12))
    for y in (*draws, *-np.exp(draws), *np.exp(2 * draws)):
        start = families.gev.initial(y)
        assert np.all(1 + start["shape"] * (y - start["loc"]) / start["scale"] > 0.05)
        start = families.generalized_pareto.initial(y**2)
        assert np.all(1 + start["shape"] * y**2 / start["scale"] > 0.05)


def test_batches_and_samples_of_several_sizes_start_from_what_the_family_makes_of_each():
    y = np.asarray(drawn("exponential")[0]).reshape(40, 100)
    fits = fj.fit_batch(families.exponential, None, y)
    assert np.all(fits.converged)
    assert np.all(fits.num_steps == 1)  # that start is the maximum
    np.testing.assert_allclose(fits.params["rate"], 1 / y.mean(axis=1), rtol=1e-9)
    ragged = [y[0], y[1, :60], y[2, :80]]
    fits = fj.fit_batch(families.exponential, None, ragged)
    assert np.all(fits.num_steps == 1)
    np.testing.assert_allclose(fits.params["rate"], [1 / part.mean() for part in ragged], rtol=1e-9)


# Fits -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gev", "pareto", "poisson"])
def test_a_fit_to_its_own_draws_finds_the_truth(name):
    params, (_, fit) = FAMILIES[name].points[0], start_and_truth(name, 0)
    assert fit.converged
    names = free(name)
    errors = np.array([fit.params[key] - params[key] for key in names])
    information = closed_form(name, params)
    assert fit.num_observations * errors @ information @ errors < st.chi2(len(names)).ppf(0.999)


def test_the_binomial_density_moves_with_its_counts_and_trials():
    """By the rule of the family, which no fit asks for these."""

    def written_out(logit, y, trials):
        log_factorial = lambda n: jax.scipy.special.gammaln(n + 1.0)  # noqa: E731
        ways = log_factorial(trials) - log_factorial(y) - log_factorial(trials - y)
        return ways + y * logit - trials * jnp.log1p(jnp.exp(logit))

    def of_family(logit, y, trials):
        return families.binomial.log_density({"logit": logit, "trials": trials}, y)

    @jax.jit
    def derivatives(*at):
        """Of each density the two by the logit, in reverse mode, and the first by all three, in forward mode."""
        return [
            jnp.stack([jax.grad(f)(*at), jax.hessian(f)(*at), *jax.jacfwd(f, argnums=(0, 1, 2))(*at)])
            for f in (of_family, written_out)
        ]

    for at in ((0.3, 4.0, 9.0), (-1.7, 0.0, 5.0), (2.0, 7.0, 7.0)):
        np.testing.assert_allclose(*derivatives(*at), rtol=1e-12)
