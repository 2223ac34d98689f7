"""What must hold for every model: transformations, tracing, precision, pytrees."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import some_of
from jax.scipy.stats import norm
from registry import MODELS

import fisher_jax as fj
from fisher_jax.numerics import linalg


def fit(name, **settings):
    model, start, data, given = MODELS[name]
    return fj.fit(model, start, data, given=given, **settings)


# What takes a compilation for each model: some in every run, the others by `make exhaustive`.
SOME = some_of(MODELS, "gamma", "logistic", "autoregression")


@pytest.mark.parametrize("name", some_of(MODELS, "poisson"))  # a series under jit is below, mapped
def test_a_fit_survives_jit_and_a_pytree_round_trip(name):
    model, start, data, given = MODELS[name]
    plain = fit(name)
    jit_at_data = jax.jit(lambda y: fj.fit(model, start, y, given=given))(data)
    leaves, treedef = jax.tree.flatten(plain)
    rebuilt = jax.tree.unflatten(treedef, leaves)
    for other in (jit_at_data, rebuilt):
        assert other.status is plain.status
        np.testing.assert_allclose(other.covariance("sandwich"), plain.covariance("sandwich"), rtol=1e-8, atol=1e-16)
        assert jax.tree.structure(other) == treedef


@pytest.mark.parametrize("name", some_of(MODELS, "normal", "autoregression"))
def test_vmap_equals_a_loop(name):
    model, start, data, given = MODELS[name]
    batch = np.stack([np.roll(data, k) for k in range(5)])  # as many as below, for the same programs
    fit_all = jax.vmap(lambda y: fj.fit(model, start, y, given=given))
    errors_of_all = jax.vmap(lambda one: one.standard_errors())
    if name != "normal":  # one model without jit, in which the standard errors compile a program for each operation
        fit_all, errors_of_all = jax.jit(fit_all), jax.jit(errors_of_all)
    fits = fit_all(batch)
    errors = errors_of_all(fits)
    for k in (0, 3):
        alone = fj.fit(model, start, batch[k], given=given)
        assert fits.status[k] == alone.status
        for mine, theirs in zip(
            jax.tree.leaves((fits.params, errors)),
            jax.tree.leaves((alone.params, alone.standard_errors())),
            strict=True,
        ):
            np.testing.assert_allclose(mine[k], theirs, rtol=1e-8)


def test_one_bad_data_set_harms_no_other_under_vmap():
    model, start, data, _ = MODELS["normal"]
    batch = np.stack([data, np.full_like(data, np.nan), np.full_like(data, np.inf), np.full_like(data, 2.0), data])
    fits = jax.vmap(lambda y: fj.fit(model, start, y))(batch)
    alone = fit("normal")
    assert fits.status[0] == fits.status[4] == alone.status
    assert np.all(fits.status[1:4] > fj.Status.CONVERGED_TO_ROUNDING)
    np.testing.assert_allclose(fits.params["scale"][0], alone.params["scale"], rtol=1e-9)


def test_other_data_one_observation_less_and_a_fixed_parameter_compile_nothing_new():
    traces = 0

    def log_density(params, y):
        nonlocal traces
        traces += 1
        return norm.logpdf(y, params["loc"], params["scale"])

    constraints = {"scale": fj.positive}
    y = np.random.default_rng(0).normal(size=40)
    fj.fit(fj.Model(log_density, constraints=constraints), {"loc": 0.0, "scale": 1.0}, y)
    before = traces
    for k in range(3):
        again = fj.fit(
            fj.Model(log_density, constraints={"scale": fj.interval(0, np.inf)}),
            {"loc": 1.0 * k, "scale": 2.0},
            k + 2.0 * y,
            max_steps=None,
            tolerance=1e-6 / (k + 1),
        )
        again.standard_errors()
        fj.fit(fj.Model(log_density, constraints=constraints), again.params, y)
    fj.fit(fj.Model(log_density, constraints=constraints), {"loc": 0.0, "scale": 1.0}, y[:-1])  # one less
    fj.fit(fj.Model(log_density, constraints=constraints | {"loc": fj.fixed}), {"loc": 0.0, "scale": 1.0}, y)
    assert traces == before


def single(tree):
    """The floating arrays of a pytree in float32."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32) if np.asarray(x).dtype == float else x, tree)


@pytest.mark.parametrize("name", SOME)
def test_float32_agrees_with_float64_within_a_hundredth_of_a_standard_error(name):
    model, start, data, given = MODELS[name]
    exact, coarse = fit(name), fj.fit(model, single(start), single(data), given=single(given))
    assert coarse.free.dtype == jnp.float32
    assert coarse.converged, coarse.status
    distance = exact.layout.flatten(coarse.params) - exact.layout.flatten(exact.params)
    assert np.max(np.abs(distance) / exact.layout.flatten(exact.standard_errors())) < 0.01
    np.testing.assert_allclose(
        exact.layout.flatten(coarse.standard_errors()), exact.layout.flatten(exact.standard_errors()), rtol=0.01
    )


def test_parameters_may_be_any_pytree_and_are_named_by_their_path():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Line:
        beta: jax.Array
        noise: dict

    model = fj.Model(
        lambda p, y, x: norm.logpdf(y, jnp.dot(x, p.beta), p.noise["scale"]),
        constraints=Line(beta=None, noise={"scale": fj.positive}),
    )
    x = np.random.default_rng(0).normal(size=(50, 2))
    y = x @ [1.0, 2.0] + np.random.default_rng(1).normal(size=50)
    fit = fj.fit(model, Line(np.zeros(2), {"scale": 1.0}), y, given=x)
    assert fit.names == ("beta[0]", "beta[1]", "noise.scale")
    assert isinstance(fit.params, Line)
    assert isinstance(fit.standard_errors(), Line)
    np.testing.assert_allclose(fit.params.beta, np.linalg.lstsq(x, y)[0], rtol=1e-9)


def test_leaves_that_are_no_arrays_are_carried_along():
    model = fj.Model(lambda p, y: norm.logpdf(p["link"](y), p["loc"], 1.0))
    fit = fj.fit(model, {"loc": 0.0, "link": jnp.log}, np.array([1.0, 2.0, 4.0]))
    assert fit.names == ("loc",)
    np.testing.assert_allclose(fit.params["loc"], np.log(2.0), rtol=1e-12)


def test_data_may_be_a_pytree_and_integers_stay_integers():
    seen = []

    def log_density(rate, y):
        seen.append(y["count"].dtype)
        return y["count"] * jnp.log(rate) - rate * y["time"]

    data = {"count": np.array([1, 2, 3], np.int16), "time": np.array([1.0, 2.0, 1.0])}
    fit = fj.fit(fj.Model(log_density, constraints=fj.positive), 1.0, data)
    np.testing.assert_allclose(fit.params, 1.5, rtol=1e-9)
    assert set(seen) == {np.dtype(np.int16)}


def test_initial_gives_the_start_where_none_is_given():
    model = fj.Model(
        lambda p, y: norm.logpdf(y, p["loc"], p["scale"]),
        constraints={"scale": fj.positive},
        initial=lambda y: {"loc": jnp.median(y), "scale": jnp.std(y)},
    )
    y = np.random.default_rng(0).normal(100.0, 1e-3, 50)
    fit = fj.fit(model, None, y)
    assert fit.status is fj.Status.CONVERGED
    np.testing.assert_allclose(fit.params["scale"], y.std(), rtol=1e-7)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e9])
def test_units_do_not_matter(scale):
    _, start, data, _ = MODELS["gamma"]
    there = fj.fit(MODELS["gamma"].model, {"shape": start["shape"], "rate": start["rate"] / scale}, data * scale)
    here = fit("gamma")
    assert there.status is fj.Status.CONVERGED
    np.testing.assert_allclose(there.params["shape"], here.params["shape"], rtol=1e-7)
    np.testing.assert_allclose(there.standard_errors()["rate"] * scale, here.standard_errors()["rate"], rtol=1e-7)


@pytest.mark.parametrize("p", [1, 2, 5, 12, 13, 30])
def test_small_matrices_are_factorised_solved_and_inverted(p):
    rng = np.random.default_rng(p)
    root = rng.normal(size=(p, p + 2)) * 10.0 ** rng.uniform(-3, 3, (p, 1))
    matrix, right = root @ root.T, rng.normal(size=p)

    @jax.jit
    def compute(matrix, right):
        factor = linalg.factorize(matrix)
        solution, half = linalg.solve(factor, right), linalg.solve_lower(factor, right)
        return factor.definite, factor.pivot, solution, half, linalg.inverse(matrix)

    definite, pivot, solution, half, inverse = map(np.asarray, compute(matrix, right))
    assert definite
    assert 0 < pivot <= 1 + 1e-12
    np.testing.assert_allclose(matrix @ solution, right, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(half @ half, right @ np.linalg.solve(matrix, right), rtol=1e-6)
    np.testing.assert_allclose(inverse @ matrix, np.eye(p), atol=1e-5)
    assert np.array_equal(inverse, inverse.T)


@pytest.mark.parametrize("p", [2, 5, 13])
def test_a_matrix_that_cannot_be_inverted_is_reported_and_not_repaired(p):
    rng = np.random.default_rng(p)
    singular = np.cov(rng.normal(size=(p, 50)))
    singular[:, -1], singular[-1, :] = singular[:, 0], singular[0, :]
    singular[-1, -1] = singular[0, 0]
    indefinite = np.cov(rng.normal(size=(p, 50))) - 2.0 * np.eye(p)

    @jax.jit
    @jax.vmap
    def compute(matrix):
        factor = linalg.factorize(matrix)
        return factor.definite, factor.pivot, linalg.inverse(matrix)

    definite, pivot, inverse = map(np.asarray, compute(np.stack([singular, indefinite, np.full((p, p), np.nan)])))
    assert not definite.any()
    assert abs(pivot[0]) < 1e-12
    assert pivot[1] < -0.1
    assert np.isnan(inverse[0]).all()


@pytest.mark.parametrize("name", MODELS)
def test_a_fit_lowers_for_cuda_without_host_callbacks(name):
    model, start, data, given = MODELS[name]
    exported = jax.export.export(
        jax.jit(lambda y, z: fj.fit(model, start, y, given=z).log_likelihood), platforms=["cuda"]
    )(data, given)
    targets = re.findall(r"custom_call @([\w.]+)", exported.mlir_module())
    assert not [target for target in targets if "callback" in target or "lapack" in target]


def test_a_fit_knows_what_it_was_made_from_until_a_transformation():
    data = jnp.array([1.0, 2.0, 4.0])

    def log_density(rate, y):
        return jnp.log(rate) - rate * y

    fit = fj.fit(log_density, 1.0, data)
    assert fit.origin.model == fj.Model(log_density)
    assert fit.origin.dataset.data is data
    assert jax.tree.map(lambda leaf: leaf, fit).origin is None
    assert jax.jit(lambda y: fj.fit(log_density, 1.0, y))(data).origin is None


def test_inference_lowers_for_cuda_without_host_callbacks():
    from fisher_jax.inference.influence import influence_at
    from fisher_jax.profile.sides import _profiles

    model, start, data, given = MODELS["gamma"]
    fit = fj.fit(model, start, data, given=given)
    sample, columns = fit.origin.dataset, np.arange(2)

    def profiles(free):
        return _profiles(model, fit.layout, None, sample, (fit.values, free, fit.curvature), columns, 1.92)

    def influence(free):
        return influence_at(dataclasses.replace(fit, free=free), model, sample)

    def tests(data):
        fit = fj.fit(model, start, data)
        ratio = fj.delta_method(fit, lambda params: params["shape"] / params["rate"])
        return fj.wald_test(fit, {"shape": 1.0}, kind="sandwich").statistic, ratio.flat_standard_error

    for function, argument in ((profiles, fit.free), (influence, fit.free), (tests, data)):
        exported = jax.export.export(jax.jit(function), platforms=["cuda"])(argument)
        targets = re.findall(r"custom_call @([\w.]+)", exported.mlir_module())
        assert not [target for target in targets if "callback" in target or "lapack" in target]
