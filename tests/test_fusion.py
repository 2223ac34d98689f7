"""Programs in stages give the same numbers, each computed once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fisher_jax.fitting import cpu
from fisher_jax.numerics.fusion import evaluate_in_stages

X = jnp.linspace(0.5, 2.0, 64)


def chain(x, y):
    """One value of many operations, used by three results."""
    used = ((x * y + 1.0) * x - y) * (x + y) - x * x
    return used * x, used * y, used - x


def looped(x, y):
    def body(carry):
        k, a, b = carry
        first, second, third = chain(a, b)
        return k + 1, 1e-3 * first + a, 1e-3 * (second + third) + b

    return lax.while_loop(lambda carry: carry[0] < 5, body, (0, x, y))[1:]


def scanned(x, y, reverse=False):
    def step(carry, row):
        first, second, third = chain(carry, row)
        return 1e-3 * first + carry, (second, third)

    return lax.scan(step, x, y[None] + jnp.arange(5.0)[:, None], reverse=reverse)


def scanned_backwards(x, y):
    return scanned(x, y, reverse=True)


def staged(function, *arguments):
    """The results in stages, and how many values were held back at a time."""
    held = []
    run = evaluate_in_stages(jax.make_jaxpr(function)(*arguments), lambda values: held.append(len(values)) or values)
    return run(*arguments), held


@pytest.mark.parametrize("function", [chain, looped, scanned, scanned_backwards])
def test_results_are_those_of_the_function(function):
    results, held = staged(function, X, X + 1.0)
    for result, expected in zip(results, jax.tree.leaves(function(X, X + 1.0)), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-14)
    assert sum(held) >= 1


def test_what_is_used_once_or_cheap_or_scalar_or_large_is_not_held_back():
    assert staged(lambda x: ((x * x + 1.0) * x - 2.0) * x, X)[1] == []
    assert staged(lambda x: ((x + 1.0) * x, (x + 1.0) - x), X)[1] == []
    assert staged(chain, jnp.float64(2.0), jnp.float64(3.0))[1] == []
    large = jnp.ones((64, 64))
    assert staged(chain, large, large)[1] == []


def test_values_that_do_not_need_each_other_are_held_back_together():
    def two(x, y):
        return *chain(x, y), *chain(y, x)

    assert staged(two, X, X + 1.0)[1] == [2]


def test_a_kernel_computes_once_what_several_results_use():
    def multiplications(wrapped):
        text = jax.jit(wrapped).lower(X, X).compile().as_text()
        return text.count(" multiply(")

    assert multiplications(cpu.one_kernel(chain)) < 0.7 * multiplications(chain)
    for result, expected in zip(jax.jit(cpu.one_kernel(looped))(X, X + 1.0), looped(X, X + 1.0), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-13)
