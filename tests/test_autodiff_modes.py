"""Densities that JAX differentiates in one mode only are fitted as others are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.ode import odeint
from jax.scipy.stats import norm

import fisher_jax as fj
from fisher_jax.numerics.autodiff_modes import in_both_modes


@jax.custom_vjp
def square(x):
    return x * x


square.defvjp(lambda x: (x * x, x), lambda x, g: (2 * x * g,))


def cube(x):
    return jax.lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1] * x), (0, x))[1]


@jax.custom_vjp
def falling(x):
    return jnp.exp(-x)


falling.defvjp(lambda x: (falling(x), x), lambda x, g: (-g * falling(x),))  # as `odeint` calls itself in its derivative


def decayed(rate):
    return odeint(lambda y, t: -rate * y, jnp.ones(()), jnp.array([0.0, 1.0]))[1]


@jax.custom_vjp
def halted(x):
    return cube(x)


halted.defvjp(
    lambda x: (halted(x), x), lambda x, g: (g * jax.lax.while_loop(lambda y: y < 0, lambda y: y + 1, 3 * x**2),)
)

# The mode that each has, the function, and the same function written for both.
FUNCTIONS = {
    "reverse": (lambda p: square(p[0]) * p[1] ** 2, lambda p: (p[0] * p[1]) ** 2),
    "reverse over reverse": (lambda p: falling(p[0]) * p[1] ** 2, lambda p: jnp.exp(-p[0]) * p[1] ** 2),
    "forward": (lambda p: cube(p[0]) * p[1] ** 2, lambda p: p[0] ** 3 * p[1] ** 2),
}
POINT = jnp.array([0.8, 1.7])


@pytest.mark.parametrize("mode", FUNCTIONS)
def test_a_function_of_one_mode_has_hessians_by_both(mode):
    function, same = FUNCTIONS[mode]
    known = {}
    ready, expected = in_both_modes(function, (POINT,), known), jax.jit(jax.hessian(same))(POINT)
    assert set(known.values()) == {mode}
    for hessian in (jax.jacfwd(jax.jacfwd(ready)), jax.jacfwd(jax.grad(ready))):
        np.testing.assert_allclose(jax.jit(hessian)(POINT), expected, rtol=1e-6, atol=1e-7)


def test_a_function_that_has_both_modes_is_left_as_it_is():
    def function(p):
        return jnp.sum(jax.nn.softplus(p)) + jax.lax.fori_loop(0, 3, lambda _, x: x * p[0], 1.0)

    assert in_both_modes(function, (POINT,), {}) is function


def test_where_no_mode_serves_the_first_derivatives_are_had_and_the_second_raise():
    ready = in_both_modes(lambda p: halted(p[0]) * p[1], (POINT,), {})
    np.testing.assert_allclose(jax.grad(ready)(POINT), [3 * 0.8**2 * 1.7, 0.8**3], rtol=1e-12)
    with pytest.raises(
        TypeError, match="cannot be differentiated as often as it takes, neither forward nor in reverse"
    ):
        jax.hessian(ready)(POINT)
    y = np.array([1.0, 2.0])
    with pytest.raises(TypeError, match=r"with jax\.lax\.scan in place of a while_loop"):
        fj.fit(lambda p, y: -halted(y - p), 0.0, y)


X = np.linspace(-1.0, 1.0, 30)
Y = 1.0 + X + 0.1 * np.random.default_rng(0).normal(size=30)


def reverse_only(params, y):  # with few parameters derivatives are taken forward
    return -0.5 * square((y - params["loc"]) / params["scale"]) - jnp.log(params["scale"])


def both(params, y):
    return -0.5 * ((y - params["loc"]) / params["scale"]) ** 2 - jnp.log(params["scale"])


def forward_only(params, y, x):  # with many in reverse
    return norm.logpdf(y, params["a"] + params["b"] * x + cube(params["c"]) * x**2, jnp.exp(params["s"]))


def both_of_four(params, y, x):
    return norm.logpdf(y, params["a"] + params["b"] * x + params["c"] ** 3 * x**2, jnp.exp(params["s"]))


@pytest.mark.parametrize(
    ("one", "same", "start", "given"),
    [
        (reverse_only, both, {"loc": 0.0, "scale": 1.0}, None),
        (forward_only, both_of_four, {"a": 1.0, "b": 1.0, "c": 0.5, "s": -2.0}, X),
    ],
    ids=["custom_vjp and two parameters", "while_loop and four"],
)
def test_fits_are_those_of_the_density_written_for_both_modes(one, same, start, given):
    y = Y + (0.2 * X**2 if given is not None else 0.0)
    fit, other = fj.fit(one, start, y, given=given), fj.fit(same, start, y, given=given)
    assert fit.status is other.status
    assert fit.converged
    for kind in ("observed", "sandwich"):
        np.testing.assert_allclose(fit.covariance(kind), other.covariance(kind), rtol=1e-8, atol=1e-12)
    batch = fj.fit_batch(one, start, y[None], given=given)
    np.testing.assert_allclose(batch.covariance()[0], other.covariance(), rtol=1e-6, atol=1e-12)
    for found, expected in zip(
        *(jax.tree.leaves(fj.score(d, start, y, given=given)) for d in (one, same)), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.exhaustive
def test_a_curve_that_is_the_solution_of_an_equation_is_fitted_and_a_function_of_its_parameters_has_an_error():
    model = fj.linked(
        fj.families.poisson, lambda p: {"rate": 10.0 * decayed(p["rate"])}, constraints={"rate": fj.positive}
    )
    fit = fj.fit(model, {"rate": 1.0}, np.array([5.0, 7.0, 6.0]))
    np.testing.assert_allclose(fit.params["rate"], np.log(10 / 6), rtol=1e-6)  # the mean is 10 e^−rate
    np.testing.assert_allclose(fit.standard_errors()["rate"], 1 / np.sqrt(18.0), rtol=1e-5)
    left = fj.delta_method(fit, lambda p: decayed(p["rate"]))
    np.testing.assert_allclose(left.standard_error, 0.6 / np.sqrt(18.0), rtol=1e-5)
