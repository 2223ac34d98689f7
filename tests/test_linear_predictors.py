"""Linear predictors found in densities: how many, with which coefficients, and that nothing else changes."""

import densities
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import gammaln
from jax.scipy.stats import norm

from fisher_jax.numerics.linear_predictors import linear_predictors

RNG = np.random.default_rng(3)
U, Z = jnp.asarray(RNG.normal(size=5)), jnp.asarray(RNG.normal(size=5))


def predictors_of(function, u, *data, made_of=None):
    shapes = [jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x)) for x in data]
    return linear_predictors(function, jax.ShapeDtypeStruct(np.shape(u), np.float64), shapes, made_of)


def assert_composes(function, found, *data):
    """The cut function equals the whole, and its inner part is affine with the coefficients it tells."""
    for u in (U, 2.0 - U):
        x = found.inner(u, *data)
        np.testing.assert_allclose(found.outer(x, *data), function(u, *data), rtol=1e-14)
        np.testing.assert_allclose(x, found.inner(0 * u, *data) + found.coefficients(u, *data) @ u, rtol=1e-12)


def negative_binomial(u, y, z):
    eta, log_size = z @ u[:4] + 0.5, u[4]
    size = jnp.exp(log_size)
    total = jnp.log(size + jnp.exp(eta))
    return gammaln(y + size) - gammaln(size) - gammaln(y + 1) + size * (log_size - total) + y * (eta - total)


def gev(u, y):
    return densities.gev({"loc": u[0], "log_scale": u[1], "shape": u[2]}, y, None)


@pytest.mark.parametrize("product", [jnp.dot, lambda z, b: jnp.sum(z * b)], ids=["matmul", "sum of products"])
def test_a_logistic_density_has_one_predictor(product):
    def log_density(beta, y, z):
        return y * product(z, beta) - jnp.logaddexp(0.0, product(z, beta))

    found = predictors_of(log_density, U, 1.0, Z)
    assert found.count == 1
    np.testing.assert_allclose(found.coefficients(U, 1.0, Z), Z[None], rtol=1e-15)
    assert_composes(log_density, found, 1.0, Z)


def test_a_negative_binomial_density_has_two_predictors():
    found = predictors_of(negative_binomial, U, 3.0, Z[:4])
    assert found.count == 2
    coefficients = found.coefficients(U, 3.0, Z[:4])
    expected = np.array([[*Z[:4], 0.0], [0.0, 0.0, 0.0, 0.0, 1.0]])
    order = np.argsort(coefficients[:, 4])
    np.testing.assert_allclose(coefficients[order], expected, rtol=1e-15)
    assert_composes(negative_binomial, found, 3.0, Z[:4])


def test_what_no_cut_makes_smaller_is_left_whole():
    assert predictors_of(gev, U[:3], 1.0) is None
    assert predictors_of(lambda u, y: norm.logpdf(y, u[0] * u[1], jnp.exp(u[2])), U[:3], 1.0) is None


def test_products_of_parameters_and_functions_of_them_are_not_linear():
    def log_density(u, y, z):
        return -((y - (z @ u[:4]) * u[4] - jnp.sin(u[4])) ** 2)

    found = predictors_of(log_density, U, 1.0, Z[:4])
    assert found.count == 2
    assert_composes(log_density, found, 1.0, Z[:4])


def test_divided_by_and_indexed_by_data_is_linear_and_dividing_data_is_not():
    def by_data(u, y, z, group):
        return -((y - jnp.sum(u[:4] / z[:4]) - u[group]) ** 2)

    found = predictors_of(by_data, U, 1.0, Z, 3)
    assert found.count == 1
    assert_composes(by_data, found, 1.0, Z, 3)
    assert predictors_of(lambda u, y: -((y - jnp.sum(1.0 / u)) ** 2), U, 1.0) is None


@jax.custom_jvp
def loss(x):
    return -jnp.log1p(jnp.exp(-x))


@loss.defjvp
def _(primals, tangents):
    return loss(*primals), 7.0 * tangents[0]  # wrong on purpose, so that it can be told from the true derivative


def test_functions_keep_their_own_derivatives():
    def log_density(beta, y, z):
        return loss(y * (z @ beta))

    found = predictors_of(log_density, U, 2.0, Z)
    assert found.count == 1
    slope = jax.grad(lambda x: found.outer(x, 2.0, Z))(found.inner(U, 2.0, Z))
    np.testing.assert_allclose(slope @ found.coefficients(U, 2.0, Z), 14.0 * Z, rtol=1e-14)


@jax.custom_jvp
def scaled(u):
    return 3.0 * u


@scaled.defjvp
def _(primals, tangents):
    return scaled(*primals), 5.0 * tangents[0]


def test_a_linear_function_with_a_rule_of_its_own_is_not_looked_into():
    def log_density(beta, y, z):
        return -((y - scaled(z @ beta)) ** 2)

    found = predictors_of(log_density, U, 1.0, Z)
    x = found.inner(U, 1.0, Z)
    slope = jax.grad(lambda x: found.outer(x, 1.0, Z))(x) @ found.coefficients(U, 1.0, Z)
    np.testing.assert_allclose(slope, jax.grad(log_density)(U, 1.0, Z), rtol=1e-13)


@pytest.mark.parametrize("made_of", [None, [False, True]], ids=["anything", "covariates"])
def test_coefficients_are_made_of_what_they_may_be_made_of(made_of):
    """A residual is cut before its observation where that may not be used, so that data sets share the coefficients."""

    def log_density(u, y, z):
        return norm.logpdf(y - z @ u[:4], 0.0, jnp.exp(u[4]))

    found = predictors_of(log_density, U, 1.0, Z[:4], made_of=made_of)
    assert found.count == 2
    assert_composes(log_density, found, 1.0, Z[:4])
    if made_of is not None:
        np.testing.assert_array_equal(found.inner(U, 1.0, Z[:4]), found.inner(U, 7.0, Z[:4]))


def test_no_predictor_is_made_of_what_it_may_not_be_made_of():
    assert predictors_of(lambda u, y, z: -(jnp.exp(z @ u) ** 2), U, 1.0, Z, made_of=[True, False]) is None
