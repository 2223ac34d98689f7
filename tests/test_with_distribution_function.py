"""Distribution functions of bare densities by quadrature and summation, against those of families and scipy."""

import functools
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st
from helpers import compiled_programs

import fisher_jax as fj
from fisher_jax import families

U = np.array([1e-30, 1e-9, 0.02, 0.3, 0.7, 0.99, 1 - 1e-9])


def bare(family, **more):
    return fj.with_distribution_function(fj.Model(family.log_density, **more))


def log_erlang(params, y):
    """Of shape 3: a gamma density that takes little time to compile, and so is the beta density."""
    inside = y > 0
    y = jnp.where(inside, y, 1.0)
    return jnp.where(
        inside, 3 * jnp.log(params["rate"]) - math.log(2.0) + 2 * jnp.log(y) - params["rate"] * y, -jnp.inf
    )


def log_beta(params, y):
    """With b = 5, of which Γ(a + 5) / Γ(a) is a product."""
    a, inside = params["a"], (y > 0) & (y < 1)
    y = jnp.where(inside, y, 0.5)
    log_density = sum(jnp.log(a + k) for k in range(5)) - math.log(24.0) + (a - 1) * jnp.log(y) + 4 * jnp.log1p(-y)
    return jnp.where(inside, log_density, -jnp.inf)


CASES = {
    "normal": (bare(families.normal), {"loc": 250.0, "scale": 0.3}, st.norm(250.0, 0.3)),
    "cauchy": (bare(families.cauchy), {"loc": 0.7, "scale": 1.3}, st.cauchy(0.7, 1.3)),
    "gamma": (
        fj.with_distribution_function(log_erlang, support=(0.0, math.inf)),
        {"rate": 1e-3},
        st.gamma(3, scale=1e3),
    ),
    "beta": (fj.with_distribution_function(log_beta, support=(0.0, 1.0)), {"a": 0.7}, st.beta(0.7, 5.0)),
    "poisson": (
        bare(families.poisson, support=(0.0, math.inf), discrete=True),
        {"rate": 31.0},
        st.poisson(31.0),
    ),
    "binomial": (
        bare(families.binomial, support=(0.0, 12.0), discrete=True),
        {"logit": 0.7, "trials": 12.0},
        st.binom(12, 1 / (1 + math.exp(-0.7))),
    ),
}


@functools.cache
def compiled(name):
    """Both logarithms with their derivatives: along y, and of two models by the parameters."""
    model = CASES[name][0]

    def both(y, params):
        return jnp.stack([model.log_cdf(params, y), model.log_survival(params, y)])

    def at(y, params):
        by_params = jax.jacfwd(both, 1)(y, params) if name in ("normal", "poisson") else None
        return both(y, params), jax.jacfwd(both)(y, params), by_params

    return jax.jit(jax.vmap(at, in_axes=(0, None)))


@pytest.mark.parametrize("name", CASES)
def test_both_tails_are_those_of_scipy(name):
    _, params, distribution = CASES[name]
    y = np.concatenate([distribution.ppf(U), distribution.isf([1e-12, 1e-30])])
    value, along_y, _ = compiled(name)(y, params)
    np.testing.assert_allclose(value[:, 0], distribution.logcdf(y), rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(value[:, 1], distribution.logsf(y), rtol=1e-8, atol=1e-9)
    if not CASES[name][0].discrete:
        hazard = np.exp(distribution.logpdf(y)[:, None] - np.asarray(value)) * [1.0, -1.0]
        np.testing.assert_allclose(along_y, hazard, rtol=1e-6)


def test_derivatives_in_the_parameters_are_those_under_the_integral():
    y, (_, params, _) = np.array([249.0, 249.9, 250.4, 252.0]), CASES["normal"]
    *_, slopes = compiled("normal")(y, params)
    z = (y - params["loc"]) / params["scale"]
    hazards = np.exp(st.norm.logpdf(z) - st.norm.logcdf(z)), np.exp(st.norm.logpdf(z) - st.norm.logsf(z))
    by_loc = np.stack([-hazards[0], hazards[1]], axis=1) / params["scale"]
    np.testing.assert_allclose(slopes["loc"], by_loc, rtol=1e-8)
    np.testing.assert_allclose(slopes["scale"], by_loc * z[:, None], rtol=1e-8)
    y, (_, params, _) = np.array([10.0, 30.5, 60.0]), CASES["poisson"]
    *_, slopes = compiled("poisson")(y, params)
    poisson = st.poisson(31.0)  # d P(Y ≤ y) / d rate = −p(y)
    np.testing.assert_allclose(slopes["rate"][:, 0], -poisson.pmf(np.floor(y)) / poisson.cdf(y), rtol=1e-9)
    np.testing.assert_allclose(slopes["rate"][:, 1], poisson.pmf(np.floor(y)) / poisson.sf(y), rtol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_outside_the_support_and_at_infinity_probabilities_are_zero_and_one(name):
    model, params, _ = CASES[name]
    ends = (-np.inf, np.inf) if model.support is None else (-1.0, np.inf)
    value, along_y, _ = compiled(name)(np.resize([*ends, np.nan], 9), params)
    np.testing.assert_array_equal(value[:2], [[-np.inf, 0.0], [0.0, -np.inf]])
    assert np.all(np.isnan(value[2]))
    assert np.all(np.isfinite(along_y[1])) or model.support is None


@pytest.mark.parametrize("name", ["beta", "poisson"])
def test_the_quantile_inverts_it(name):
    model, params, distribution = CASES[name]
    u = np.array([1e-9, 0.3, 0.7, 1 - 1e-9])
    quantile = jax.jit(jax.vmap(model.quantile, in_axes=(0, None)))
    np.testing.assert_allclose(quantile(u, params), distribution.ppf(u), rtol=1e-8)


def test_the_quantile_is_differentiated_as_an_implicit_function():
    model, params, distribution = CASES["cauchy"]
    u = np.array([1e-9, 0.3, 0.8, 1 - 1e-9])
    functions = jax.jit(jax.vmap(jax.value_and_grad(model.quantile, (0, 1)), in_axes=(0, None)))
    value, (by_u, by_params) = functions(u, params)
    np.testing.assert_allclose(value, distribution.ppf(u), rtol=1e-8)
    # Of the quantile loc + scale tan(π (u − ½)), with the digits of the smaller of u and 1 − u.
    tangent = np.where(u < 0.5, -1.0, 1.0) / np.tan(math.pi * np.minimum(u, 1 - u))
    np.testing.assert_allclose(by_u, params["scale"] * math.pi * (1 + tangent**2), rtol=1e-7)
    np.testing.assert_allclose(by_params["loc"], 1.0, rtol=1e-7)
    np.testing.assert_allclose(by_params["scale"], tangent, rtol=1e-7)


def test_outside_of_compiled_code_it_is_not_compiled_operation_by_operation():
    model, params, distribution = CASES["cauchy"]
    for function, arguments, expected in (
        (model.log_survival, (params, 0.7), distribution.logsf(0.7)),
        (model.quantile, (0.7, params), distribution.ppf(0.7)),
    ):
        with compiled_programs() as compiled:
            np.testing.assert_allclose(function(*arguments), expected, rtol=1e-8)
        assert len(compiled) <= 2


def half_a_density(params, y):
    return families.normal.log_density(params, y) + math.log(0.5)


def two_peaks(params, y):
    narrow = families.normal.log_density({"loc": 1e6, "scale": 1e-3}, y)
    return jnp.logaddexp(narrow, families.normal.log_density(params, y)) - math.log(2.0)


@pytest.mark.parametrize("density", [half_a_density, two_peaks])
def test_what_is_not_known_to_be_right_is_not_a_number(density):
    """A density that does not integrate to one; a peak that no node hits."""
    model = fj.with_distribution_function(density)
    assert np.isnan(jax.jit(model.log_cdf)({"loc": 0.0, "scale": 1.0}, 0.3))


def test_covariates_and_a_support_that_depends_on_parameters():
    def log_density(params, y, z):
        return families.pareto.log_density({"shape": params["shape"] * z, "minimum": params["minimum"]}, y)

    model = fj.with_distribution_function(log_density, support=lambda params, z: (params["minimum"], math.inf))
    params = {"shape": 1.7, "minimum": 0.6}
    value = jax.jit(model.log_survival)(params, 5.0, 2.0)
    np.testing.assert_allclose(value, 3.4 * np.log(0.6 / 5.0), rtol=1e-9)


def test_a_model_with_it_is_compared_pickled_and_kept_as_it_was():
    model = fj.Model(families.normal.log_density, constraints={"scale": fj.positive}, quantile=families.normal.quantile)
    one, two = fj.with_distribution_function(model), fj.with_distribution_function(model)
    assert one == two
    assert hash(one) == hash(two)
    assert one != fj.with_distribution_function(model, nodes=257)
    assert pickle.loads(pickle.dumps(one)) == one
    assert one.quantile is families.normal.quantile
    assert one.constraints == model.constraints


def test_wrong_calls_say_what_to_do():
    with pytest.raises(ValueError, match=r"nodes=10 must be a whole number, at least 65"):
        fj.with_distribution_function(families.gamma.log_density, nodes=10)
    with pytest.raises(ValueError, match=r"Give the density of one observation"):
        fj.with_distribution_function(fj.dependent(lambda params, y: y))
    with pytest.raises(TypeError, match=r"expected a fisher_jax\.Model or a function"):
        fj.with_distribution_function(3)
    model = fj.with_distribution_function(families.dirichlet.log_density)
    with pytest.raises(ValueError, match=r"y has shape \(3,\)"):
        model.log_cdf({"concentration": np.ones(3)}, np.ones(3) / 3)
