"""The trust-region step, lane by lane."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fisher_jax.numerics import batched_linalg as lanes
from fisher_jax.optimizers.newton import Evaluation, Newton, advance, begin, trial

RNG = np.random.default_rng(3)


def quartic(u):
    """A log-likelihood with saddles, of any number of parameters."""
    u = u - jnp.arange(len(u))
    return jnp.sum(0.3 * u**2 - 0.25 * u**4) - 0.1 * jnp.sum(u[1:] * u[:-1])


@jax.jit
@jax.vmap
def derivatives(u):
    return quartic(u), jax.grad(quartic)(u), -jax.hessian(quartic)(u)


@jax.jit
def one_step(state):
    value, gradient, information = (jnp.moveaxis(a, 0, -1) for a in derivatives(lanes.to_array(trial(state)).T))
    reached = Evaluation(value, lanes.vector(gradient), lanes.matrix(information), jnp.zeros_like(value))
    return advance(Newton(), state, reached, 1e-8)


def run(state, steps):
    ends = []
    for _ in range(steps):
        state, ended = one_step(state)
        ends.append(np.asarray(ended))
    return state, np.array(ends)


def run_on_host(start, steps):
    """The same for one maximisation in numpy."""
    state = begin(start)
    with np.errstate(all="ignore"):
        for _ in range(steps):
            value, gradient, information = (np.asarray(a)[0] for a in derivatives(trial(state)[None]))
            state, _ = advance(Newton(), state, Evaluation(value, gradient, information, np.float64(0.0)), 1e-8)
    return state


@pytest.mark.parametrize("p", [2, 5, pytest.param(11, marks=pytest.mark.exhaustive)])
def test_every_lane_reaches_a_maximum_with_numpy_and_with_jax(p):
    starts = 3.0 * RNG.normal(size=(p, 7))
    state, ends = run(begin(lanes.vector(jnp.asarray(starts))), 60)
    assert np.all(np.any(ends, axis=0))
    assert np.all(state.definite & (state.decrement < 1e-8))
    for lane, start in enumerate(starts.T):
        alone = run_on_host(start, 60)
        assert alone.definite
        assert alone.decrement < 1e-8
        np.testing.assert_allclose(alone.point, lanes.to_array(state.point)[:, lane], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("p", [3, 11])
def test_what_a_lane_held_before_is_ignored_by_its_next_maximisation(p):
    clean = begin(lanes.vector(jnp.asarray(RNG.normal(size=(p, 4)))))
    spoiled = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan if leaf.dtype.kind == "f" else 1), clean)
    spoiled = spoiled._replace(point=clean.point, count=clean.count)
    for steps in (1, 2, 6):
        jax.tree.map(np.testing.assert_array_equal, run(clean, steps)[0], run(spoiled, steps)[0])


@pytest.mark.parametrize("p", [2, 5, 11])
def test_the_step_to_the_edge_is_nearly_the_best_there(p):
    matrix = RNG.normal(size=(p, p))
    matrix, gradient = matrix + matrix.T, RNG.normal(size=p)
    scale, radius = np.exp(RNG.normal(size=p)), 0.7
    one = np.float64(1.0)
    at = Evaluation(one, gradient, matrix, 0 * one)
    with np.errstate(all="ignore"):
        step, _ = Newton().propose(at, scale, radius * one, 0 * one, 0 * gradient, np.True_)
    # The exact solution by eigenvalues and bisection of the secular equation.
    root = np.sqrt(scale)
    values, vectors = np.linalg.eigh(matrix / root / root[:, None])
    pulled = vectors.T @ (gradient / root)
    low, high = max(0.0, -values[0]), 1e6
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if np.linalg.norm(pulled / (values + middle)) > radius else (low, middle)
    best = vectors @ (pulled / (values + high)) / root

    def gain(s):
        return gradient @ s - 0.5 * s @ matrix @ s

    assert np.sqrt(step @ (scale * step)) <= 1.1 * radius
    assert gain(step) >= 0.8 * gain(best)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_first_newton_step_far_too_long_is_shortened_once_and_not_after_each_accepted_step(dtype):
    count, unit = (
        dtype(1e4),
        dtype(100.0),
    )  # log-density of a Poisson count with rate exp(unit u − 20), and a normal prior of u

    def at(u):
        rate = np.exp(unit * u - 20)
        curvature = unit * unit * rate + 1
        value = count * (unit * u - 20) - rate - u * u / 2
        return Evaluation(value, [unit * (count - rate) - u], {(0, 0): curvature}, dtype(0))

    state, ended, steps = begin([dtype(0)]), False, 0
    with np.errstate(all="ignore"):
        while not ended and steps < 40:
            state, ended = advance(Newton(), state, at(dtype(trial(state)[0])), dtype(np.finfo(dtype).eps ** 0.5))
            steps += 1
    assert ended
    assert steps < 25  # seven are the first step, shortened
    np.testing.assert_allclose(state.point[0], (np.log(1e4) + 20) / 100, rtol=1e-5)
