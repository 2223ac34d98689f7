"""The information matrices as operators: products, diagonals, traces, log-determinants and solves against dense ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import some_of
from jax.flatten_util import ravel_pytree
from jax.scipy.stats import norm

import fisher_jax as fj
from fisher_jax.information import operator as operators
from fisher_jax.information.operator import information_operator

N = 150
RNG = np.random.default_rng(5)
X = RNG.normal(size=(N, 4))
Y = np.sin(X @ [0.5, -1.0, 0.3, 0.8]) + RNG.normal(size=N)
W = RNG.integers(0, 4, N).astype(float)
PARAMS = {"beta": np.array([0.4, -0.8, 0.1, 0.9]), "scale": 1.3}
VECTOR = {"beta": np.array([1.0, -2.0, 0.5, 3.0]), "scale": -1.5}
FLAT = np.append(VECTOR["beta"], VECTOR["scale"])
KEY = jax.random.key(0)


def curve():
    """A function with an object of its own at each call, so that nothing compiled under other settings serves it."""
    own = object()
    return lambda p, y, x: norm.logpdf(y, jnp.sin(jnp.dot(x, p["beta"])), p["scale"]) if own else 0.0


def sampler(key, p, x):
    return jnp.sin(jnp.dot(x, p["beta"])) + p["scale"] * jax.random.normal(key)


def quantile(uniform, p, x):
    return norm.ppf(uniform, jnp.sin(jnp.dot(x, p["beta"])), p["scale"])


def predictor(p, x):
    return {"loc": jnp.sin(jnp.dot(x, p["beta"])), "scale": p["scale"]}


NORMAL = fj.Model(
    lambda p, y: norm.logpdf(y, p["loc"], p["scale"]),
    information=lambda p: jnp.diag(jnp.stack([jnp.ones(()), 2.0 * jnp.ones(())])) / p["scale"] ** 2,
)
LINKED = fj.linked(NORMAL, predictor)
CURVE = fj.Model(curve(), sample=sampler, quantile=quantile)
DENSE = {"empirical": fj.empirical_fisher, "observed": fj.observed_information}


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0])


def at_data(kind, **changed):
    return information_operator(CURVE, PARAMS, **{"kind": kind, "data": Y, "given": X} | changed)


@pytest.mark.parametrize(("chunk", "weights"), [(4096, None), (16, W)], ids=["whole", "chunked and weighted"])
@pytest.mark.parametrize("kind", ["empirical", "observed"])
def test_products_at_the_data_are_those_of_the_dense_matrix(kind, chunk, weights, monkeypatch):
    monkeypatch.setattr(operators, "ROWS_AT_ONCE", chunk)
    density = curve()
    operator = information_operator(density, PARAMS, kind=kind, data=Y, given=X, weights=weights)
    dense = DENSE[kind](density, PARAMS, Y, given=X, weights=weights)
    assert operator.route == dense.route
    np.testing.assert_allclose(flat(operator.product(VECTOR)), dense.matrix @ FLAT, rtol=1e-10)
    np.testing.assert_allclose(flat(operator @ VECTOR), dense.matrix @ FLAT, rtol=1e-10)


@pytest.mark.parametrize("one_by_one_above", [4096, 2], ids=["in chunks", "one by one"])
def test_diagonal_and_trace_of_outer_products_are_exact(one_by_one_above, monkeypatch):
    monkeypatch.setattr(operators, "ONE_BY_ONE_ABOVE", one_by_one_above)
    density = curve()
    operator = information_operator(density, PARAMS, kind="empirical", data=Y, given=X, weights=W)
    dense = fj.empirical_fisher(density, PARAMS, Y, given=X, weights=W).matrix
    diagonal, trace = operator.diagonal(), operator.trace()
    assert set(diagonal.value) == {"beta", "scale"}
    np.testing.assert_allclose(flat(diagonal.value), np.diag(dense), rtol=1e-12)
    np.testing.assert_allclose(trace.value, np.trace(dense), rtol=1e-12)
    assert not np.any(flat(diagonal.standard_error))
    assert trace.standard_error == 0


@pytest.mark.parametrize("given", [X, None], ids=["rows", "one"])
def test_a_linked_model_has_its_exact_information(given):
    model, params, vector = LINKED, PARAMS, VECTOR
    if given is None:
        model = fj.linked(NORMAL, lambda p: {"loc": p["beta"] @ p["beta"], "scale": p["scale"]})
    operator = information_operator(model, params, given=given)
    dense = fj.fisher_information(model, params, given=given)
    assert operator.route == dense.route
    np.testing.assert_allclose(flat(operator @ vector), dense.matrix @ FLAT, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(flat(operator.diagonal().value), np.diag(dense.matrix), rtol=1e-10)
    np.testing.assert_allclose(operator.trace().value, np.trace(dense.matrix), rtol=1e-10)
    assert operator.trace().standard_error == 0


WAYS = [(fj.MonteCarlo, "hessian"), (fj.QuasiMonteCarlo, "outer"), (fj.MonteCarlo, "outer")]


@pytest.mark.parametrize(("way", "estimator"), some_of(WAYS, *WAYS[:2]))
def test_a_sampled_operator_is_the_dense_matrix_of_the_same_draws(way, estimator, monkeypatch):
    monkeypatch.setattr(operators, "ROWS_AT_ONCE", 100)
    expectation = way(KEY, 256, estimator)
    density = fj.Model(curve(), sample=sampler, quantile=quantile)
    operator = information_operator(density, PARAMS, expectation, given=X[:7])
    dense = fj.fisher_information(density, PARAMS, expectation, given=X[:7])
    assert operator.route == dense.route
    assert operator.num_samples == dense.num_samples == 256 * 7
    np.testing.assert_allclose(flat(operator @ VECTOR), dense.matrix @ FLAT, rtol=1e-10)
    diagonal = operator.diagonal(KEY, 2)
    error = flat(diagonal.standard_error)
    if estimator == "outer":
        np.testing.assert_allclose(flat(diagonal.value), np.diag(dense.matrix), rtol=1e-10)
        np.testing.assert_allclose(error, np.diag(dense.entry_errors), rtol=1e-8)
    else:
        assert np.all(np.abs(flat(diagonal.value) - np.diag(dense.matrix)) < 5 * error)
        assert np.all(error > 0)


@pytest.mark.parametrize("estimator", ["outer", "hessian"])
def test_errors_of_a_sampled_trace_are_as_large_as_its_misses(estimator):
    exact = float(np.trace(fj.fisher_information(LINKED, PARAMS, given=X[:5]).matrix))

    def trace(key):
        return information_operator(CURVE, PARAMS, fj.MonteCarlo(key, 64, estimator), given=X[:5]).trace(key, 2)

    found = jax.jit(jax.vmap(trace))(jax.random.split(KEY, 200))
    said = np.sqrt(np.mean(found.standard_error**2))
    assert abs(np.mean(found.value) - exact) < 4 * said / np.sqrt(200)
    assert 0.8 < np.std(found.value) / said < 1.2


def test_errors_of_probed_diagonal_and_trace_are_as_large_as_their_misses():
    operator, dense = at_data("observed"), fj.observed_information(CURVE, PARAMS, Y, given=X).matrix
    keys = jax.random.split(KEY, 200)
    trace = jax.vmap(lambda key: operator.trace(key, 16))(keys)
    diagonal = jax.vmap(lambda key: operator.diagonal(key, 16))(keys)
    for found, exact in (
        (trace, np.trace(dense)),
        (
            jax.tree.map(lambda tree: tree["beta"], diagonal, is_leaf=lambda tree: isinstance(tree, dict)),
            np.diag(dense)[:4],
        ),
    ):
        said = np.sqrt(np.mean(found.standard_error**2, axis=0))
        assert np.all(np.abs(np.mean(found.value, axis=0) - exact) < 4 * said / np.sqrt(200))
        assert np.all(np.abs(np.std(found.value, axis=0) / said - 1) < 0.2)


def test_dependent_data_are_taken_whole_and_series_drawn_whole():
    def terms(p, y):
        return norm.logpdf(y[1:], p["phi"] * y[:-1], p["scale"])

    def series(key, p):
        step = lambda last, noise: 2 * (p["phi"] * last + p["scale"] * noise,)  # noqa: E731
        return jax.lax.scan(step, jnp.zeros(()), jax.random.normal(key, (20,)))[1]

    model, params, vector = fj.dependent(terms, sample=series), {"phi": 0.5, "scale": 1.0}, {"phi": 1.0, "scale": -2.0}
    for kind in ("empirical", "observed"):
        operator = information_operator(model, params, kind=kind, data=Y, weights=W[1:])
        dense = DENSE[kind](model, params, Y, weights=W[1:]).matrix
        np.testing.assert_allclose(flat(operator @ vector), dense @ np.array([1.0, -2.0]), rtol=1e-10)
        if kind == "empirical":
            np.testing.assert_allclose(flat(operator.diagonal().value), np.diag(dense), rtol=1e-10)
    draws = fj.MonteCarlo(KEY, 256, "outer")
    operator = information_operator(model, params, draws)
    dense = fj.fisher_information(model, params, draws)
    np.testing.assert_allclose(flat(operator @ vector), dense.matrix @ np.array([1.0, -2.0]), rtol=1e-10)
    np.testing.assert_allclose(operator.trace().value, np.trace(dense.matrix), rtol=1e-10)


def test_leaves_held_fixed_are_ignored_in_a_vector_and_zero_in_a_result():
    model = fj.Model(curve(), constraints={"scale": fj.fixed})
    operator = information_operator(model, PARAMS, kind="empirical", data=Y, given=X)
    dense = fj.empirical_fisher(model, PARAMS, Y, given=X).matrix
    assert operator.num_parameters == 4
    product = operator @ {"beta": VECTOR["beta"], "scale": "of no account"}
    np.testing.assert_allclose(product["beta"], dense @ VECTOR["beta"], rtol=1e-10)
    assert product["scale"] == 0
    assert operator.diagonal().value["scale"] == 0
    np.testing.assert_allclose(operator.trace().value, np.trace(dense), rtol=1e-12)


@pytest.mark.parametrize("kind", ["empirical", "observed"])
def test_a_solve_is_that_of_the_dense_matrix_and_its_residual_the_true_one(kind):
    operator, dense = at_data(kind), DENSE[kind](CURVE, PARAMS, Y, given=X).matrix
    damped = dense + 0.5 * np.eye(5)
    found = operator.solve(VECTOR, 0.5, tolerance=1e-10)
    np.testing.assert_allclose(flat(found.value), np.linalg.solve(damped, FLAT), rtol=1e-8)
    left_over = np.linalg.norm(FLAT - damped @ flat(found.value)) / np.linalg.norm(FLAT)
    np.testing.assert_allclose(found.residual, left_over, atol=1e-13)
    assert found.converged
    assert found.num_steps <= 6


def test_a_solve_says_when_it_has_not_converged():
    saddle = lambda p, y: y * (p["a"] ** 2 - p["b"] ** 2) + jnp.sin(p["a"]) * jnp.exp(p["b"])  # noqa: E731
    operator = information_operator(saddle, {"a": 0.3, "b": 0.2}, kind="observed", data=np.ones(3))
    found = operator.solve({"a": 1.0, "b": 0.1})
    assert not found.converged
    assert found.num_steps < 5
    short = at_data("empirical").solve(VECTOR, tolerance=1e-10, max_steps=2)
    assert not short.converged
    assert short.num_steps == 2
    assert short.residual > 1e-10
    nothing = at_data("empirical").solve(jax.tree.map(np.zeros_like, VECTOR))
    assert nothing.converged
    assert not np.any(flat(nothing.value))
    broken = at_data("empirical").solve({"beta": np.full(4, np.nan), "scale": 0.0})
    assert not broken.converged


def test_the_log_determinant_is_the_dense_one_within_its_error():
    operator, dense = at_data("observed"), fj.observed_information(CURVE, PARAMS, Y, given=X).matrix
    exact = np.linalg.slogdet(dense + 0.3 * np.eye(5))[1]
    found = jax.vmap(lambda key: operator.log_determinant(key, damping=0.3, num_probes=8))(jax.random.split(KEY, 50))
    z = (found.value - exact) / found.standard_error
    assert abs(np.mean(z)) < 0.7
    assert np.std(z) < 1.6


def test_a_log_determinant_of_low_rank_stops_where_the_krylov_space_does():
    p, rank = 60, 5
    x = RNG.normal(size=(rank, p))
    operator = information_operator(
        lambda b, y, x: norm.logpdf(y, jnp.dot(x, b), 1.0), np.zeros(p), kind="empirical", data=np.ones(rank), given=x
    )
    exact = np.linalg.slogdet(x.T @ x / rank + 0.01 * np.eye(p))[1]
    found = operator.log_determinant(KEY, damping=0.01, num_probes=64, num_steps=20)
    np.testing.assert_allclose(found.value, exact, atol=4 * found.standard_error)
    assert found.standard_error < 5.0
    assert np.isnan(at_data("observed").log_determinant(KEY, damping=-100.0).value)


def test_too_few_lanczos_steps_show_in_the_error():
    scales = np.geomspace(1.0, 1e4, 50)
    operator = information_operator(
        lambda b, y: -0.5 * jnp.sum((y - b) ** 2 * scales), np.zeros(50), kind="observed", data=np.zeros((1, 50))
    )
    exact = np.sum(np.log(scales))
    for steps in (6, 50):
        found = operator.log_determinant(KEY, num_steps=steps)
        assert abs(found.value - exact) <= 2 * found.standard_error + 1e-9
    np.testing.assert_allclose(found.value, exact, rtol=1e-10)  # a diagonal matrix leaves its probes no variance


def network(params, y, x):
    hidden = x
    for layer in params[:-1]:
        hidden = jnp.tanh(jnp.dot(hidden, layer["weight"]) + layer["bias"])
    logits = jnp.dot(hidden, params[-1]["weight"]) + params[-1]["bias"]
    return jax.nn.log_softmax(logits)[y]


def test_a_network_of_a_hundred_thousand_parameters_works_and_its_residual_is_true():
    sizes = [(30, 290), (290, 290), (290, 10)]
    params = [
        {"weight": (RNG.normal(size=s) / np.sqrt(s[0])).astype(np.float32), "bias": np.zeros(s[1], np.float32)}
        for s in sizes
    ]
    x, y = RNG.normal(size=(200, 30)).astype(np.float32), RNG.integers(0, 10, 200)
    operator = information_operator(network, params, kind="empirical", data=y, given=x)
    assert operator.num_parameters > 95_000
    assert "names" not in vars(operator.layout)
    gradient = jax.tree.map(lambda g: np.asarray(g) / np.float32(200), fj.score(network, params, y, given=x))
    weigh = jax.vmap(lambda y, x: jax.jvp(lambda p: network(p, y, x), (params,), (gradient,))[1])
    slopes = jax.jit(weigh)(y, x)
    product = operator @ gradient
    inside = sum(np.vdot(a, b) for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(product), strict=True))
    np.testing.assert_allclose(inside, np.mean(np.asarray(slopes) ** 2), rtol=1e-4)
    found = operator.solve(gradient, 0.1, tolerance=1e-4)
    assert found.converged
    again = jax.tree.map(
        lambda g, m, v: g - np.asarray(m) - np.float32(0.1) * np.asarray(v),
        gradient,
        operator @ found.value,
        found.value,
    )
    np.testing.assert_allclose(np.linalg.norm(flat(again)) / np.linalg.norm(flat(gradient)), found.residual, rtol=0.05)
    diagonal = operator.diagonal()
    np.testing.assert_allclose(flat(diagonal.value).sum(dtype=float), operator.trace().value, rtol=1e-5)
    assert diagonal.value[0]["weight"].dtype == jnp.float32


def temporary_bytes(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float64) for shape in shapes]
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def test_memory_does_not_grow_with_the_number_of_observations():
    def solve(x, y):
        return information_operator(CURVE, PARAMS, kind="observed", data=y, given=x).solve(VECTOR, 1.0)

    few, many = (temporary_bytes(solve, (n, 4), (n,)) for n in (25 * 4096 - 1, 10**7 + 1))
    assert many < 1.1 * few


def test_memory_does_not_grow_with_the_number_of_draws():
    def needed(num_samples):
        draws = fj.MonteCarlo(KEY, num_samples, "outer")
        product = lambda beta: information_operator(CURVE, PARAMS | {"beta": beta}, draws, given=X[:10]) @ VECTOR  # noqa: E731
        return temporary_bytes(product, (4,))

    assert needed(10**7) < 1.1 * needed(10**5)


def test_nothing_is_traced_again_for_another_vector_point_or_data():
    traces = []

    def density(p, y, x):
        traces.append(1)
        return norm.logpdf(y, jnp.sin(jnp.dot(x, p["beta"])), p["scale"])

    first = information_operator(density, PARAMS, kind="empirical", data=Y, given=X) @ VECTOR
    count = len(traces)
    other = information_operator(density, PARAMS | {"scale": 2.0}, kind="empirical", data=Y + 1, given=X)
    assert not np.allclose(flat(first), flat(other @ VECTOR))
    assert len(traces) == count


def test_an_operator_goes_through_jit_and_vmap():
    operator = at_data("empirical")
    passed = jax.jit(lambda operator, vector: operator.solve(vector, 1.0))(operator, VECTOR)
    np.testing.assert_allclose(flat(passed.value), flat(operator.solve(VECTOR, 1.0).value), rtol=1e-10)
    vectors = {"beta": np.eye(5)[:, :4], "scale": np.eye(5)[:, 4]}
    rows = jax.vmap(operator.product)(vectors)
    dense = np.column_stack([rows["beta"], rows["scale"]])
    np.testing.assert_allclose(dense, fj.empirical_fisher(CURVE, PARAMS, Y, given=X).matrix, rtol=1e-10, atol=1e-14)
    points = jax.vmap(lambda scale: at_data("empirical").trace().value / scale)(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(points[0], 2 * points[1], rtol=1e-12)


BAD = {
    "data without kind": (lambda: information_operator(CURVE, PARAMS, data=Y, given=X), 'without kind=.*"empirical"'),
    "unknown kind": (lambda: at_data("outer"), "kind='outer' is unknown"),
    "no data": (lambda: information_operator(CURVE, PARAMS, kind="observed"), "data is None. Give data="),
    "expected with data": (lambda: at_data("expected"), "takes no data"),
    "expected with weights": (lambda: information_operator(LINKED, PARAMS, given=X, weights=W), "takes no weights"),
    "expectation at data": (lambda: at_data("observed", expectation=fj.MonteCarlo(KEY, 2)), "takes no expectation"),
    "bartlett": (lambda: information_operator(CURVE, PARAMS, fj.MonteCarlo(KEY, 2), given=X), 'estimator="outer"'),
    "quadrature": (lambda: information_operator(CURVE, PARAMS, fj.Quadrature(0.0, 1.0)), "must be MonteCarlo or Quasi"),
    "no route": (lambda: information_operator(CURVE, PARAMS, given=X), "no method to compute the expectation.*linked"),
    "own closed form": (lambda: information_operator(NORMAL, {"loc": 0.0, "scale": 1.0}), "Use fisher_information"),
    "no sampler": (lambda: information_operator(curve(), PARAMS, fj.MonteCarlo(KEY, 2, "outer")), "no sampler"),
    "no key": (lambda: at_data("observed").trace(), "Give key=jax.random.key"),
    "one probe": (lambda: at_data("observed").diagonal(KEY, 1), "num_probes=1 must be a whole number, at least 2"),
    "no steps": (lambda: at_data("observed").log_determinant(KEY, num_steps=0), "num_steps=0 must be a whole number"),
    "other structure": (lambda: at_data("observed") @ {"beta": np.ones(4)}, "product: expected a pytree like params"),
    "other shape": (lambda: at_data("observed") @ {"beta": np.ones(3), "scale": 1.0}, r"`beta` has shape \(3,\)"),
}


@pytest.mark.parametrize(("call", "said"), BAD.values(), ids=BAD)
def test_misuse_is_refused_with_what_to_do(call, said):
    with pytest.raises((ValueError, TypeError), match=said):
        call()
