"""A fit is a function: its derivatives are those of the maximum, NaN where there is none; and what is compiled goes with it."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import compiled_programs
from jax.scipy.stats import norm

import fisher_jax as fj
from fisher_jax import Status
from fisher_jax.fitting import maximization
from fisher_jax.models.fingerprint import LARGE

RNG = np.random.default_rng(12)
Y, Z, W = jnp.asarray(RNG.gamma(3.0, 2.0, 40)), jnp.asarray(RNG.normal(size=40)), jnp.asarray(RNG.uniform(0.5, 2, 40))


def log_density(params, y, z):
    """Exponential growth in z, with normal errors: no derivative of it is constant, and none compiles for long."""
    residual = (y - jnp.exp(params["slope"] * z + params["offset"])) / params["scale"]
    return -0.5 * residual**2 - jnp.log(params["scale"])


MODEL = fj.Model(log_density, constraints={"scale": fj.positive, "offset": fj.fixed})


def fitted(y, weights, offset):
    """The estimate, its standard errors of two kinds, and the log-likelihood, with a parameter fixed: one flat vector."""
    params = {"scale": 3.0, "slope": 0.0, "offset": offset}
    fit = fj.fit(MODEL, params, y, given=Z, weights=weights, tolerance=1e-10)
    errors = [x for kind in ("observed", "sandwich") for x in fit.standard_errors(kind).values()]
    return jnp.stack([*fit.params.values(), *errors, fit.log_likelihood])


ALONG = jnp.asarray(RNG.normal(size=40)), jnp.asarray(RNG.normal(size=40)), jnp.asarray(1.0)
AT = Y, W, jnp.asarray(1.5)


@pytest.fixture(scope="module")
def compiled():
    return jax.jit(fitted), jax.jit(jax.jacrev(fitted, argnums=(0, 1, 2)))


@pytest.mark.parametrize("number", [0, 1, 2], ids=["data", "weights", "fixed parameter"])
def test_reverse_derivatives_of_a_fit_are_its_central_differences(compiled, number):
    function, jacobian = compiled
    step = 1e-4
    moved = [
        function(*(x + (sign * step * a if i == number else 0) for i, (x, a) in enumerate(zip(AT, ALONG, strict=True))))
        for sign in (1, -1, 2, -2)
    ]
    differences = (8 * (moved[0] - moved[1]) - (moved[2] - moved[3])) / (12 * step)
    along = jnp.tensordot(jacobian(*AT)[number], ALONG[number], ALONG[number].ndim)
    np.testing.assert_allclose(along, differences, rtol=1e-6)


def test_forward_derivatives_are_the_reverse_ones(compiled):
    _, jacobian = compiled
    _, along = jax.jit(lambda *tangents: jax.jvp(fitted, AT, tangents))(*ALONG)
    pieces = zip(jacobian(*AT), ALONG, strict=True)
    np.testing.assert_allclose(along, sum(jnp.tensordot(d, a, a.ndim) for d, a in pieces), rtol=1e-9)


def test_the_log_likelihood_moves_as_if_the_estimate_stood_still(compiled):
    function, jacobian = compiled
    scale, slope = function(*AT)[:2]
    params = {"scale": scale, "offset": AT[2], "slope": slope}
    gradient = jax.grad(lambda y: fj.log_likelihood(MODEL, params, y, given=Z, weights=W))(Y)
    np.testing.assert_allclose(jacobian(*AT)[0][-1], gradient, rtol=1e-8, atol=1e-10)


def logistic(beta, y, z):
    return y * beta * z - jnp.logaddexp(0.0, beta * z)


def slope_and_status(z, y):
    fit = fj.fit(logistic, 0.0, y, given=z)
    return fit.params, fit.status_code


def test_derivatives_are_nan_where_nothing_is_certified_and_only_there():
    z = jnp.array([-2.0, -1.0, 1.0, 2.0])
    y = jnp.array([[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0]])

    def both(z, y):
        _, pushed, status = jax.jvp(lambda z: slope_and_status(z, y), (z,), (z**2,), has_aux=True)
        return jax.grad(lambda z: slope_and_status(z, y)[0])(z), pushed, status

    reverse, forward, status = jax.jit(jax.vmap(both, in_axes=(None, 0)))(z, y)
    assert list(status) == [Status.BOUNDARY, Status.CONVERGED]
    assert np.isnan(reverse[0]).all()
    assert np.isnan(forward[0])
    assert np.isfinite(reverse[1]).all()
    np.testing.assert_allclose(reverse[1] @ z**2, forward[1], rtol=1e-10, atol=1e-14)


# --- steps on the host ----------------------------------------------------------------------------------------------


def counted(log_density):
    """The density, and a list that grows when it is traced."""
    traces = []

    def count(params, y):
        traces.append(1)
        return log_density(params, y)

    return count, traces


def normal(params, y):
    return norm.logpdf(y, params["loc"], params["scale"])


def test_fits_of_another_length_start_and_fixed_parameter_compile_nothing():
    density, traces = counted(normal)
    free, fixed = (fj.Model(density, constraints=c) for c in ({"scale": fj.positive}, {"scale": fj.fixed}))
    first = fj.fit(free, {"loc": 0.0, "scale": 1.0}, Y)
    assert (first.engine, first.status) == ("host", Status.CONVERGED)
    known = len(traces)
    shorter = fj.fit(free, {"loc": 0.0, "scale": 1.0}, Y[1:])
    other = fj.fit(free, {"loc": 3.0, "scale": 2.0}, Y, weights=W)
    assert (shorter.engine, other.engine) == ("host", "host")
    assert len(traces) == known
    held = fj.fit(fixed, {"loc": 0.0, "scale": 2.0}, Y)
    again = fj.fit(fixed, {"loc": 0.0, "scale": 3.0}, Y[2:])
    np.testing.assert_allclose([held.params["loc"], again.params["loc"]], [np.mean(Y), np.mean(Y[2:])], rtol=1e-12)
    np.testing.assert_allclose(shorter.params["scale"], np.std(Y[1:]), rtol=1e-8)
    assert (held.free.size, again.free.size) == (1, 1)
    assert len(traces) == known


def test_a_value_held_outside_the_range_it_was_estimated_in_is_held_as_it_is():
    density, traces = counted(normal)
    start = {"loc": 1.0, "scale": 1.0}
    fj.fit(fj.Model(density, constraints={"loc": fj.positive, "scale": fj.positive}), start, np.abs(Y))
    known = len(traces)
    held = fj.fit(fj.Model(density, constraints={"loc": fj.fixed, "scale": fj.positive}), start | {"loc": -1.0}, Y)
    assert len(traces) > known
    assert (held.status, held.params["loc"]) == (Status.CONVERGED, -1.0)
    np.testing.assert_allclose(held.params["scale"], np.sqrt(np.mean((Y + 1.0) ** 2)), rtol=1e-8)


SAMPLES = {
    Status.CONVERGED: np.asarray(Y[:12]),
    Status.BOUNDARY: np.full(12, 3.0),
    Status.BAD_START: np.array([np.nan, *Y[:11]]),
}
POSITIVE = fj.Model(normal, constraints={"scale": fj.positive})
loop_of_normal = jax.jit(lambda y: fj.fit(POSITIVE, {"loc": 0.0, "scale": 1.0}, y))
loop_of_sum = jax.jit(lambda y: fj.fit(sum_of_two, {"a": 0.0, "b": 1.0}, y))


def sum_of_two(params, y):
    return norm.logpdf(y, params["a"] + params["b"], 3.0)


def assert_same(host, loop):
    assert host.engine == "host"
    assert host.status == Status(int(loop.status_code))
    if host.status != Status.BOUNDARY:  # where rounding says how far it goes
        assert host.num_steps == loop.num_steps
        np.testing.assert_allclose(host.log_likelihood, loop.log_likelihood, rtol=1e-11)


@pytest.mark.parametrize("status", SAMPLES)
def test_steps_on_the_host_end_as_those_of_the_compiled_loop(status, monkeypatch):
    monkeypatch.setattr(maximization, "ENOUGH_SECONDS", np.inf)
    y = SAMPLES[status]
    host, loop = fj.fit(POSITIVE, {"loc": 0.0, "scale": 1.0}, y), loop_of_normal(y)
    assert host.status == status
    assert_same(host, loop)
    assert host.suspect == loop.suspect
    if status == Status.CONVERGED:
        assert np.max(np.abs(host.free - loop.free) * np.sqrt(np.diag(host.curvature))) < 1e-8
        for kind in ("observed", "empirical", "sandwich"):
            np.testing.assert_allclose(host.covariance(kind), loop.covariance(kind), rtol=1e-8)


def test_what_enters_as_a_sum_is_singular_on_the_host_as_in_the_loop():
    y = SAMPLES[Status.CONVERGED]
    host, loop = fj.fit(sum_of_two, {"a": 0.0, "b": 1.0}, y), loop_of_sum(y)
    assert host.status == Status.SINGULAR_INFORMATION
    assert_same(host, loop)


def test_a_density_that_is_fitted_often_gets_its_loop(monkeypatch):
    monkeypatch.setattr(maximization, "ENOUGH_SECONDS", 0.0)

    def waiting_time(rate, y):
        return jnp.log(rate) - rate * y

    model = fj.Model(waiting_time, constraints=fj.positive)
    first, second = (fj.fit(model, 1.0, Y) for _ in range(2))
    assert (first.engine, second.engine) == ("host", "loop")
    np.testing.assert_allclose(first.free, second.free, rtol=1e-9)
    assert first.num_steps == second.num_steps


def test_the_longer_an_evaluation_compiles_the_longer_fits_step_on_the_host():
    quick, slow = (maximization._Evaluation(None, compiling, seconds=2.0) for compiling in (0.1, 1.0))
    assert quick.is_spent(POSITIVE)
    assert not slow.is_spent(POSITIVE)


# --- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "way", ["host", "kernel", *(pytest.param(way, marks=pytest.mark.exhaustive) for way in ("loop", "arrays"))]
)
def test_models_that_are_dropped_are_let_go_of_with_their_data(way, monkeypatch):
    monkeypatch.setattr(maximization, "ENOUGH_SECONDS", np.inf if way == "host" else -1.0)

    def references_of_one_fit(number):
        table = np.full(LARGE, float(number))

        def log_density(params, y):
            return -0.5 * (y - params - jnp.asarray(table)[0]) ** 2

        if way in ("host", "loop"):
            fit = fj.fit(log_density, 0.0, np.arange(4.0))
        else:
            fit = fj.fit_batch(log_density, 0.0, np.arange(8.0).reshape(2, 4), engine=way)
        assert fit.engine == way
        return weakref.ref(log_density), weakref.ref(table)

    references = [reference for number in range(2) for reference in references_of_one_fit(number)]
    gc.collect()
    assert not any(reference() is not None for reference in references)


def test_a_dropped_model_needs_no_garbage_collection_to_go():
    def use_model():
        table = np.full(LARGE, 1.0)

        def log_density(params, y):
            return norm.logpdf(y * jnp.asarray(table)[0], params)

        assert fj.fit(log_density, 0.0, Y).converged
        return weakref.ref(log_density), weakref.ref(table)

    gc.collect()
    gc.disable()
    try:
        references = use_model()
        assert [reference() for reference in references] == [None] * 2
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_a_large_table_is_held_once(kind):
    size = 2 * maximization.LARGE_TABLE + 17  # a size that no other test has
    table = kind(np.arange(float(size)))

    def log_density(params, row):
        return norm.logpdf(jnp.asarray(table)[row], params)

    fit = fj.fit(log_density, 0.0, np.arange(9))
    if kind is np.asarray:
        table[:] = 0.0  # a program keeps the values that it was compiled with
    again = fj.fit(log_density, 1.0, np.arange(9))
    assert [one.status for one in (fit, again)] == [Status.CONVERGED] * 2
    np.testing.assert_allclose([fit.params, again.params], [4.0, 4.0], rtol=1e-9)
    assert sum(array.size == size for array in jax.live_arrays()) == 1


@pytest.mark.exhaustive
def test_a_dropped_model_goes_with_its_data_whatever_was_asked_of_it():
    start, key = {"loc": 0.0, "scale": 1.0}, jax.random.key(0)

    def use_model():
        table = np.full(LARGE, 1.0)

        def log_density(params, y):
            return norm.logpdf(y * jnp.asarray(table)[0], params["loc"], params["scale"])

        def sample(key, params):
            return params["loc"] + params["scale"] * jnp.asarray(table)[0] * jax.random.normal(key)

        model = fj.Model(log_density, sample=sample, constraints={"scale": fj.positive})
        fit = fj.fit(model, start, Y)
        str(fit.summary())
        str(fj.profile_likelihood(fit))
        fj.likelihood_ratio_test(fit, {"loc": 0.1})
        fj.bootstrap(fit, key, num_replicates=8)
        fj.score(model, start, Y)
        fj.observed_information(model, start, Y)
        fj.fisher_information(model, start, expectation=fj.MonteCarlo(key, 100))
        fj.information_operator(model, start, data=Y, kind="observed").diagonal(key)
        fj.sampling_distribution(model, start, key, num_observations=20, num_replicates=8)
        return [weakref.ref(thing) for thing in (log_density, sample, table)]

    references = use_model()
    gc.collect()
    assert [reference() for reference in references] == [None] * 3


def test_a_method_keeps_its_programs_with_its_object():
    class Shifted:
        def __init__(self, shift):
            self.shift = shift

        def log_density(self, params, y):
            return norm.logpdf(y, params + self.shift)

    def use_model(shift):
        shifted = Shifted(shift)
        fit = fj.fit(shifted.log_density, 0.0, Y)
        np.testing.assert_allclose(fit.params, np.mean(Y) - shift, rtol=1e-9)
        return weakref.ref(shifted)

    references = [use_model(shift) for shift in (1.0, 2.0)]
    gc.collect()
    assert [reference() for reference in references] == [None] * 2


def test_models_made_anew_of_the_same_functions_share_their_programs():
    z, counts = np.linspace(0.0, 1.0, 12), np.arange(12)

    def predictor(beta, z):
        return {"rate": jnp.exp(beta * z)}

    def use_model(null):
        model = fj.linked(fj.families.poisson, predictor)
        fj.likelihood_ratio_test(fj.fit(model, 0.0, counts, given=z), null)
        fj.score(model, 0.0, counts, given=z)

    use_model(1.0)
    with compiled_programs() as compiled:
        use_model(2.0)
    assert compiled == []


def test_another_value_tested_compiles_nothing():
    density, _ = counted(normal)
    fit = fj.fit(fj.Model(density, constraints={"scale": fj.positive}), {"loc": 0.0, "scale": 1.0}, Y)
    fj.likelihood_ratio_test(fit, {"loc": 0.1})
    with compiled_programs() as compiled:
        fj.likelihood_ratio_test(fit, {"loc": 0.2})
    assert compiled == []


def test_standard_errors_are_differentiated_by_the_data_without_jit_too():
    y = jnp.array([1.0, 2.5, 0.7, 3.1])

    def error(y):  # of an exponential rate, 1 / (√n ȳ)
        return fj.fit(fj.families.exponential, {"rate": 1.0}, y).standard_errors()["rate"]

    np.testing.assert_allclose(jax.grad(error)(y), -1.0 / (8 * y.mean() ** 2) * np.ones(4), rtol=1e-8)
