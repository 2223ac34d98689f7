"""Programs of single entries against plain JAX: value, gradient and Hessian, NaN and infinities included."""

import inspect
import time

import densities
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families_registry import FAMILIES

from fisher_jax.numerics import expansion
from fisher_jax.numerics.expansion import CannotExpand, expand, split

LANES = 16


def row_derivatives(log_density, like, reverse=False):
    """(theta, y, z) -> value, gradient, upper triangle of the information, theta a list of scalars."""
    leaves, treedef = jax.tree.flatten(like)
    shapes = [np.shape(leaf) for leaf in leaves]
    p = sum(int(np.prod(shape)) for shape in shapes)

    def term(theta, y, z):
        entries = iter(theta)
        parts = [[next(entries) for _ in range(int(np.prod(shape)))] for shape in shapes]
        arrays = [a[0] if not shape else jnp.stack(a).reshape(shape) for a, shape in zip(parts, shapes, strict=True)]
        return log_density(jax.tree.unflatten(treedef, arrays), y, z)

    def replaced(theta, i, value):
        return [*theta[:i], value, *theta[i + 1 :]]

    def forward(theta, y, z):
        gradient, information, unit = [], [], jnp.ones_like(theta[0])
        for i in range(p):
            along_i = lambda t, i=i: jax.jvp(lambda a: term(replaced(t, i, a), y, z), (t[i],), (unit,))
            for j in range(i, p):
                along_j = lambda b, i=i, j=j: along_i(replaced(theta, j, b), i)
                (value, slope), (_, bend) = jax.jvp(along_j, (theta[j],), (unit,))
                information.append(-bend)
            gradient.append(slope)
        return value, gradient, information

    def forward_over_reverse(theta, y, z):
        information, unit = {}, jnp.ones_like(theta[0])

        def gradient_and_value(t):
            value, pull = jax.vjp(lambda t: term(t, y, z), t)
            return pull(jnp.ones_like(value))[0], value

        for j in range(p):
            along_j = lambda b, j=j: gradient_and_value(replaced(theta, j, b))
            (gradient, value), (row, _) = jax.jvp(along_j, (theta[j],), (unit,))
            information |= {(i, j): -row[i] for i in range(j + 1)}
        return value, gradient, [information[i, j] for i in range(p) for j in range(i, p)]

    return (forward_over_reverse if reverse or p > 3 else forward), p


def stack(draws):
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *draws)


def one_lane(tree):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), tree)


def entries(tree):
    return [jnp.asarray(c) for a in jax.tree.leaves(tree) for c in np.asarray(a).reshape(len(a), -1).T]


def poison(tree, values):
    """The first lanes of each floating leaf take the values, in its first entry."""

    def leaf(a):
        if a.dtype.kind != "f":
            return a
        a = a.copy()
        a.reshape(len(a), -1)[: len(values), 0] = values
        return a

    return jax.tree.map(leaf, tree)


def family_case(name):
    family, rng = FAMILIES[name], np.random.default_rng(0)
    draws = []
    for k in range(LANES):
        jitter = lambda v: np.asarray(v) * (1 + 0.03 * rng.uniform(-1, 1, np.shape(v)))
        draw = {n: np.asarray(v, float) if n in ("trials", "limit") else jitter(v) for n, v in family.points[k % 2].items()}
        if "covariance" in draw:
            draw["covariance"] = 0.5 * (draw["covariance"] + draw["covariance"].T)
        draws.append(draw)
    params = stack(draws)
    y = jax.jit(jax.vmap(family.model.sample))(jax.random.split(jax.random.key(1), LANES), params)
    y = jax.tree.map(np.asarray, y)
    return (lambda p, y, z: family.model.log_density(p, y)), params, y, np.zeros(LANES), False


def density_case(name):
    density, rng = densities.DENSITIES[name], np.random.default_rng(0)
    params, y, z = stack([density.draw(rng) for _ in range(LANES)])
    return density.log_density, params, y, z, density.reverse


def compare(case, dtype, tolerance):
    log_density, params, y, z, reverse = case
    params, y, z = jax.tree.map(lambda a: a.astype(dtype) if a.dtype.kind == "f" else a, (params, y, z))
    row, p = row_derivatives(log_density, one_lane(params), reverse)
    # lanes 0 … 2: an observation not finite; 3, 4: a parameter not finite
    y = poison(y, [np.nan, np.inf, -np.inf])
    fine = entries(params)
    theta = [jnp.concatenate([fine[0][:3], jnp.asarray([np.nan, np.inf], dtype), fine[0][5:]]), *fine[1:]]
    program = expand(row, [jax.ShapeDtypeStruct((), dtype)] * p, one_lane(y), one_lane(z))
    results = program(theta, entries(y), entries(z))
    results = np.stack([np.broadcast_to(r, LANES) for r in results])
    expected = np.stack(jax.tree.leaves(jax.jit(jax.vmap(row))(theta, y, z)))
    np.testing.assert_array_equal(np.isnan(results[0]), np.isnan(expected[0]))
    np.testing.assert_array_equal(results[0][np.isinf(expected[0])], expected[0][np.isinf(expected[0])])
    finite = np.isfinite(expected)
    assert np.all(np.isfinite(results[finite]))
    error = np.abs(results - expected)[finite] / np.maximum(1, np.abs(expected[finite]))
    assert error.max() < tolerance
    return program, results, expected


@pytest.mark.parametrize("name", FAMILIES)
def test_families_expand_to_what_jax_computes(name):
    compare(family_case(name), np.float64, 1e-12)


@pytest.mark.parametrize("name", densities.DENSITIES)
def test_densities_expand_to_what_jax_computes(name):
    compare(density_case(name), np.float64, 1e-12)
