"""Moré, Garbow and Hillstrom's problems: what has an isolated minimum is reached, and nothing is called converged elsewhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hard_problems import PROBLEMS
from helpers import some_of

import fisher_jax as fj

IN_EVERY_RUN = ("rosenbrock", "powell_badly_scaled", "powell_singular", "wood", "meyer")


@functools.cache
def fits_from_near_and_far(name):
    """The fits from the standard start, 10 and 100 times as far, by one program."""
    problem = PROBLEMS[name]
    model = fj.dependent(lambda x, y: -0.5 * problem.residuals(x) ** 2)
    y = np.zeros(len(problem.residuals(jnp.asarray(problem.start))))
    starts = [
        problem.start * factor if np.any(problem.start) else problem.start + factor - 1 for factor in (1.0, 10.0, 100.0)
    ]
    return [fj.fit(model, start, y) for start in starts]


@functools.partial(jax.jit, static_argnums=0)
def derivatives(name, x):
    """The gradient and the Hessian of half the sum of squares, by plain JAX."""

    def half_sum(x):
        return 0.5 * jnp.sum(PROBLEMS[name].residuals(x) ** 2)

    return jax.grad(half_sum)(x), jax.hessian(half_sum)(x)


def is_minimum(name, fit):
    """Whether the gradient vanishes and the Hessian is positive definite."""
    gradient, hessian = map(np.asarray, derivatives(name, jnp.asarray(fit.params)))
    size = 1 / np.sqrt(np.diagonal(hessian))
    slope = gradient * size
    return np.all(np.abs(slope) < 1e-6) and np.linalg.eigvalsh(hessian * size * size[:, None])[0] > 0


@pytest.mark.parametrize(
    "name", some_of([name for name, p in PROBLEMS.items() if p.isolated], *IN_EVERY_RUN[:2], *IN_EVERY_RUN[3:])
)
def test_an_isolated_minimum_is_reached_from_the_standard_start(name):
    fit = fits_from_near_and_far(name)[0]
    assert fit.converged, fit.status
    sum_of_squares = -2 * float(fit.log_likelihood)
    assert any(np.isclose(sum_of_squares, least, rtol=1e-5, atol=1e-12) for least in PROBLEMS[name].minima)


@pytest.mark.parametrize("name", some_of(PROBLEMS, *IN_EVERY_RUN))
def test_what_is_called_converged_is_a_minimum_from_any_start(name):
    for fit in fits_from_near_and_far(name):
        assert not fit.converged or is_minimum(name, fit)
