"""How batches are run: one kernel, arrays or products of matrices, by several threads; the same results each way."""

import functools
import gc
import itertools
import os
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import some_of
from jax.scipy.special import betainc
from jax.scipy.stats import norm
from scipy import stats

import fisher_jax as fj
from fisher_jax.fitting import cpu, engine, workers
from fisher_jax.models.model import as_model
from fisher_jax.models.programs import collection_paused, programs_of, quick

RNG = np.random.default_rng(5)
NORMAL_DATA = RNG.normal(2.0, 3.0, (5, 12))
START = {"loc": 0.0, "log_scale": 0.0}


def new_normal():
    """A function with an object of its own at each call, which no program was compiled for."""
    own = object()
    return lambda params, y: norm.logpdf(y, params["loc"], jnp.exp(params["log_scale"])) if own else 0.0


normal = new_normal()


def new_exponential():
    """The same with one parameter, whose program compiles in half the time."""
    own = object()
    return lambda log_rate, y: log_rate - jnp.exp(log_rate) * y if own else 0.0


exponential = new_exponential()
WAITS = RNG.exponential(0.2, (5, 12))


def logistic(beta, y, z):
    eta = z @ beta
    return y * eta - jnp.logaddexp(0.0, eta)


def logistic_derivatives(beta, y, z, weights=1.0):
    """Log-likelihood, score and information of a logistic regression."""
    eta = z @ beta
    p = 1 / (1 + np.exp(-eta))
    score, information = z.T @ (weights * (y - p)), (z.T * (weights * p * (1 - p))) @ z
    return np.sum(weights * (y * eta - np.logaddexp(0.0, eta))), score, information


def autoregression(params, y):
    return norm.logpdf(y[1:], params["phi"] * y[:-1], jnp.exp(params["log_scale"]))


def compiled_for(log_density, what="fit"):
    """What was compiled for a density, of one kind: the (key, program) pairs."""
    return [(key, value) for key, value in programs_of(as_model(log_density)).items() if key[0] == what]


def assert_like_fit(fits, fit_one, numbers):
    """Statuses equal, and estimates within 1e-8 standard errors of what `fit` finds."""
    for k in numbers:
        alone = fit_one(k)
        assert fits[k].status == alone.status
        errors = np.sqrt(np.diag(np.linalg.inv(alone.curvature)))
        assert np.max(np.abs(fits.free[k] - alone.free) / errors) < 1e-8
        np.testing.assert_allclose(fits.log_likelihood[k], alone.log_likelihood, rtol=1e-11)


# --- one kernel -----------------------------------------------------------------------------------------------------


def test_a_batch_is_one_marked_call_and_no_loop_of_xlas():
    fj.fit_batch(normal, START, NORMAL_DATA, engine="kernel")
    ((_, program),) = compiled_for(normal)
    entry = program.as_text().split("\nENTRY ")[1].split("\n}")[0].splitlines()
    called = [line for line in entry if " call(" in line]
    assert len(called) == 1
    for name, value in cpu.ONE_KERNEL.items():
        assert f'{name}="{value}"' in called[0]
    assert not any(" while(" in line for line in entry)
    # the data's layout, each fit's number of terms and limit of steps, and the condition that never holds
    assert sum(" fusion(" in line for line in entry) <= 5


def test_covariates_may_be_of_a_higher_precision_than_the_parameters():
    z, y = RNG.normal(size=(40, 1)), RNG.uniform(size=(6, 40)) < 0.5
    for way in engine.ENGINES:
        fits = fj.fit_batch(logistic, np.zeros(1, np.float32), y, given=z, engine=way)
        assert fits.free.dtype == np.float32
        assert fits.converged.all()
        for k in range(6):
            _, score, information = logistic_derivatives(fits.free[k].astype(float), y[k], z)
            np.testing.assert_allclose(np.linalg.solve(information, score), 0.0, atol=1e-3)


def recursion(params, y):
    def step(level, y):
        following = params["level"] + params["weight"] * (y - level)
        return following, -0.5 * (y - level) ** 2

    return jax.lax.scan(step, params["level"], y)[1]


def sorted_first(params, y):
    return recursion(params, jnp.sort(y))


@pytest.mark.parametrize(("terms", "whole"), [(recursion, True), (sorted_first, False)])
def test_a_recursion_runs_in_one_kernel_unless_it_calls_a_library(terms, whole):
    model, start = fj.dependent(terms), {"level": 0.0, "weight": 0.5}
    fits = fj.fit_batch(model, start, NORMAL_DATA, engine="arrays")
    program = next(value for key, value in programs_of(model).items() if key[0] == "fit")
    entry = program.as_text().split("\nENTRY ")[1].split("\n}")[0]
    assert (" while(" not in entry) == whole
    assert_like_fit(fits, lambda k: fj.fit(model, start, NORMAL_DATA[k]), range(3))


def test_the_marked_call_is_emitted_as_one_function(tmp_path):
    """XLA's attributes are undocumented: where a version ignores them, each fusion in the loops is a kernel of its own."""
    script = """
        import jax.numpy as jnp
        import fisher_jax as fj

        fj.fit_batch(lambda p, y: -0.5 * (y - p) ** 2, 0.0, jnp.ones((2, 3)), engine="kernel")
    """
    dump = f"--xla_dump_to={tmp_path} --xla_dump_hlo_module_re=jit_call$"
    run_script(script, os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {dump}"})
    kernels = [file.name for file in tmp_path.glob("*.obj-file.*.o")]
    assert 1 <= len(kernels) <= 8, kernels  # else hundreds


def run_script(script, environment=None):
    """What a script prints in a process of its own."""
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_marked_call_may_leave_an_argument_unused():
    """XLA aborted the process, so in one of its own."""
    script = """
        import jax, jax.numpy as jnp
        from fisher_jax.fitting import cpu

        double = jax.jit(cpu.one_kernel(lambda used, unused: {"twice": 2 * used}))
        print(double(jnp.arange(3.0), jnp.full((2, 2), jnp.nan))["twice"].tolist())
    """
    assert run_script(script) == "[0.0, 2.0, 4.0]\n"


def test_what_does_not_compile_marked_is_compiled_unmarked(monkeypatch):
    def cannot_compile(function):
        def call(*arguments):
            raise jax.errors.JaxRuntimeError("INTERNAL: cannot link")

        return call

    marked = fj.fit_batch(exponential, 0.0, WAITS)
    monkeypatch.setattr(cpu, "one_kernel", cannot_compile)
    unmarked = fj.fit_batch(new_exponential(), 0.0, WAITS, engine="kernel")
    assert unmarked.engine == "kernel"
    np.testing.assert_array_equal(unmarked.status, marked.status)
    np.testing.assert_allclose(unmarked.free, marked.free, rtol=1e-10)


def test_an_option_that_this_jax_does_not_know_is_done_without(monkeypatch):
    known = fj.fit_batch(exponential, 0.0, WAITS)
    monkeypatch.setattr(cpu, "COMPILER_OPTIONS", {"xla_of_another_time": True})
    unknown = fj.fit_batch(new_exponential(), 0.0, WAITS, engine="kernel")
    np.testing.assert_array_equal(unknown.status, known.status)
    np.testing.assert_allclose(unknown.free, known.free, rtol=1e-10)


# --- the host -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["newton", "bhhh"])
def test_small_batches_step_on_the_host_to_where_the_kernel_ends(stage):
    optimizer = getattr(fj.optimizers, stage)()
    run = functools.partial(fj.fit_batch, exponential, 0.0, WAITS, optimizer=optimizer, covariances=("sandwich",))
    host, kernel = run(), run(engine="kernel")
    assert (host.engine, kernel.engine) == ("host", "kernel")
    np.testing.assert_array_equal(host.status, kernel.status)
    np.testing.assert_array_equal(host.num_steps, kernel.num_steps)
    np.testing.assert_allclose(host.free, kernel.free, rtol=1e-12)
    np.testing.assert_allclose(host.covariance("sandwich"), kernel.covariance("sandwich"), rtol=1e-10)


def test_what_steps_by_another_optimiser_has_information_of_the_other_kinds():
    optimizer = pytest.importorskip("optax").lbfgs()
    run = functools.partial(fj.fit_batch, new_exponential(), 0.0, WAITS, covariances=("sandwich",))
    ours, theirs = run(), run(optimizer=optimizer)
    assert (ours.engine, theirs.engine) == ("host", "lock-step")
    np.testing.assert_allclose(theirs.covariance("sandwich"), ours.covariance("sandwich"), rtol=1e-6)


def test_steps_on_the_host_compile_no_loop_until_they_have_cost_as_much(monkeypatch):
    density = new_exponential()
    monkeypatch.setattr(engine, "HOST_COST", 20 * engine.HOST_CALL)
    ways = [fj.fit_batch(density, 0.0, WAITS).engine for _ in range(6)]
    assert (ways[0], ways[-1]) == ("host", "kernel")
    assert ways == sorted(ways)  # never back
    assert len(compiled_for(density)) == 1
    monkeypatch.undo()
    assert fj.fit_batch(density, 0.0, WAITS).engine == "kernel"  # since it is there


def test_what_is_tried_again_compiles_nothing_when_the_batch_was_too_large_for_the_host(monkeypatch):
    monkeypatch.setattr(engine, "HOST_FITS", 4)
    density, starts = new_exponential(), np.array([0.0, 0.0, 0.0, 0.0, -500.0])
    fits = fj.fit_batch(density, starts, WAITS, start_axis=0, max_steps=10, covariances=("sandwich",))
    assert fits.engine == "kernel"
    assert fits.status[:4].tolist() == [fj.Status.CONVERGED] * 4
    assert fits.status[4] == fj.Status.STEP_LIMIT  # so that it alone was tried again
    assert len(compiled_for(density, "information")) == 1
    assert not compiled_for(density, engine.EVALUATION)


def test_a_batch_that_takes_long_on_the_host_waits_for_the_loop(monkeypatch):
    monkeypatch.setattr(engine, "HOST_SECONDS", 0.0)
    fits = fj.fit_batch(new_exponential(), 0.0, WAITS)
    assert fits.engine == "kernel"
    assert fits.converged.all()
    assert fj.fit_batch(new_exponential(), 0.0, WAITS, engine="host").engine == "host"  # as asked


def test_the_host_is_a_cpu_and_has_no_lanes(monkeypatch):
    with pytest.raises(ValueError, match='num_lanes=64 is not for engine="host"'):
        fj.fit_batch(exponential, 0.0, WAITS, engine="host", num_lanes=64)
    monkeypatch.setattr(engine.workers, "platform", lambda: "gpu")
    with pytest.raises(ValueError, match='engine="host" steps on a CPU, and JAX computes on a gpu'):
        fj.fit_batch(exponential, 0.0, WAITS, engine="host")


# --- other devices --------------------------------------------------------------------------------------------------


class Lowered(BaseException):
    """What stops a fit once its program is lowered; not an exception that another way is tried after."""


class Exporting:
    """Stands for jax in the engine: what would be compiled there is lowered for CUDA instead, and the fit stops."""

    def __init__(self, function=None):
        self.function = function

    def __getattr__(self, name):
        return getattr(jax, name)

    def jit(self, function, **options):
        return Exporting(jax.jit(function, **options))

    def lower(self, *arguments):
        raise Lowered(self.function.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text())


@pytest.mark.parametrize("way", ["kernel", "arrays", "products"])
def test_fit_programs_lower_for_cuda_without_lapack(way, monkeypatch):
    monkeypatch.setattr(engine, "jax", Exporting())
    if way == "products":
        arguments, options = (logistic, jnp.zeros(9), np.ones((2, 20))), {"given": np.eye(20)[:, :9]}
    else:
        arguments, options = (new_normal(), START, NORMAL_DATA), {"engine": way}
    with pytest.raises(Lowered) as stopped:
        fj.fit_batch(*arguments, **options)
    text = str(stopped.value)
    assert "func.func public @main" in text
    assert "lapack" not in text
    assert "callback" not in text


# --- the ways agree -------------------------------------------------------------------------------------------------


def regressions(p, count=3, n=60):
    """Responses of some logistic regressions, a design for each, and weights with zeros among them."""
    rng = np.random.default_rng(p)
    designs = rng.normal(size=(count, n, p))
    y = (rng.random((count, n)) < 1 / (1 + np.exp(-designs[..., 0]))).astype(float)
    return y, designs, rng.integers(0, 4, (count, n)).astype(float)


def assert_maximum(fits, k, derivatives):
    """Fit k has converged within 1e-8 standard errors of where these derivatives have a maximum, whose value it has."""
    value, score, information = derivatives(fits.free[k])
    newton_step = np.linalg.solve(information, score)
    assert fits[k].status == fj.Status.CONVERGED
    assert np.max(np.abs(newton_step) / np.sqrt(np.diag(np.linalg.inv(information)))) < 1e-8
    np.testing.assert_allclose(fits.curvature[k], information, rtol=1e-9, atol=1e-9 * np.max(information))
    np.testing.assert_allclose(fits.log_likelihood[k], value, rtol=1e-11)


def test_products_over_a_shared_design_find_the_maximum_whatever_a_row_of_weight_zero_holds():
    y, designs, _ = regressions(9, n=120)
    weights = np.ones(120)
    weights[3] = 0.0
    z = designs[0].copy()
    z[3] = np.nan
    fits = fj.fit_batch(logistic, jnp.zeros(9), y, given=z, weights=weights, weights_axis=None, engine="arrays")
    assert fits.engine == "arrays"
    for k in range(3):
        assert_maximum(fits, k, lambda u: logistic_derivatives(u, y[k], np.nan_to_num(z), weights))  # noqa: B023
    with pytest.raises(ValueError, match="more than 8 parameters"):
        fj.fit_batch(logistic, jnp.zeros(9), y, given=z, weights=weights, weights_axis=None, engine="kernel")


def test_products_over_designs_of_their_own_with_weights_find_the_maximum():
    y, designs, weights = regressions(9, n=120)
    fits = fj.fit_batch(logistic, jnp.zeros(9), y, given=designs, given_axis=0, weights=weights)
    assert fits.engine == "host"
    for k in range(3):
        assert_maximum(fits, k, lambda u: logistic_derivatives(u, y[k], designs[k], weights[k]))  # noqa: B023


def heteroscedastic(u, y, z):
    return norm.logpdf(y, z @ u[:5], jnp.exp(z[:4] @ u[5:]))


def test_products_of_two_predictors_find_the_maximum():
    rng = np.random.default_rng(1)
    z = np.concatenate([np.ones((80, 1)), 0.3 * rng.normal(size=(80, 4))], axis=1)
    y = rng.normal(size=(2, 80))
    fits = fj.fit_batch(heteroscedastic, jnp.zeros(9), y, given=z)

    def derivatives(u, y):
        scale = np.exp(z[:, :4] @ u[5:])
        r = (y - z @ u[:5]) / scale
        by_loc, by_scale = z / scale[:, None], z[:, :4]
        across = by_loc.T @ (2 * r[:, None] * by_scale)
        information = np.block([[by_loc.T @ by_loc, across], [across.T, (by_scale.T * 2 * r**2) @ by_scale]])
        score = np.concatenate([by_loc.T @ r, by_scale.T @ (r**2 - 1)])
        return np.sum(stats.norm.logpdf(y, z @ u[:5], scale)), score, information

    for k in range(2):
        assert_maximum(fits, k, lambda u: derivatives(u, y[k]))  # noqa: B023


def test_predictors_in_the_kernel_find_the_maximum():
    y, designs, weights = regressions(3)
    fits = fj.fit_batch(logistic, jnp.zeros(3), y, given=designs, given_axis=0, weights=weights, engine="kernel")
    assert fits.engine == "kernel"
    for k in range(3):
        assert_maximum(fits, k, lambda u: logistic_derivatives(u, y[k], designs[k], weights[k]))  # noqa: B023


def test_series_are_fitted_in_arrays_to_their_least_squares():
    y = np.cumsum(np.random.default_rng(2).normal(size=(3, 40)), axis=1) * 0.2
    model, start = fj.dependent(autoregression), {"phi": 0.0, "log_scale": 0.0}
    fits = fj.fit_batch(model, start, y, engine="arrays")
    assert fits.engine == "arrays"
    assert fits.converged.all()
    phi = np.sum(y[:, 1:] * y[:, :-1], axis=1) / np.sum(y[:, :-1] ** 2, axis=1)
    log_scale = 0.5 * np.log(np.mean((y[:, 1:] - phi[:, None] * y[:, :-1]) ** 2, axis=1))
    np.testing.assert_allclose(fits.free, np.stack([phi, log_scale], axis=1), rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="models without a dependent model"):
        fj.fit_batch(model, start, y, engine="kernel")


def truncated(params, y):
    return jnp.log(betainc(2.0, 3.0, jax.nn.sigmoid(params["loc"]))) - (y - params["loc"]) ** 2


def test_every_way_hands_over_to_newtons_steps_at_the_same_point():
    y, bhhh = RNG.exponential(0.2, 40), fj.optimizers.bhhh()
    alone = fj.fit(exponential, 0.0, y, optimizer=bhhh)
    traced = jax.jit(lambda y: fj.fit(exponential, 0.0, y, optimizer=bhhh).num_steps)(y)
    batch = fj.fit_batch(exponential, 0.0, y[None], optimizer=bhhh)
    assert alone.num_steps == traced == batch.num_steps[0] > 2


def test_a_kernel_that_cannot_be_is_refused_when_asked_for_and_else_is_arrays(monkeypatch):
    data = RNG.normal(size=(2, 20))
    with pytest.raises(ValueError, match=r"regularized_incomplete_beta.*test_engine\.py:\d+.*Leave it out"):
        fj.fit_batch(truncated, {"loc": 0.0}, data, engine="kernel")
    monkeypatch.setattr(engine, "HOST_FITS", 0)
    fits = fj.fit_batch(truncated, {"loc": 0.0}, data)
    assert fits.engine == "arrays"
    assert fits.converged.all()


@pytest.mark.parametrize(
    ("way", "own"),
    some_of(
        list(itertools.product(["kernel", "arrays"], [False, True])),
        ("kernel", False),
        ("kernel", True),
        ("arrays", False),
    ),
)
def test_rows_of_weight_zero_are_not_there_whatever_they_hold(way, own):
    weights = np.ones((3, 15))
    weights[0, :4], weights[1, [2, 7]] = 0.0, 0.0
    weights[:, 5] = 0.0
    data = np.random.default_rng(9).normal(size=(3, 15) if own else 15)
    data[..., 5] = np.nan
    if own:
        data[0, 1] = np.inf
    fits = fj.fit_batch(normal, START, data, data_axis=0 if own else None, weights=weights, engine=way)
    assert fits.engine == way
    alone = lambda k: fj.fit(normal, START, np.broadcast_to(data, (3, 15))[k][weights[k] > 0])  # noqa: E731
    assert_like_fit(fits, alone, range(3))
    np.testing.assert_array_equal(fits.num_observations, weights.sum(1))


# --- workers --------------------------------------------------------------------------------------------------------


def test_what_one_worker_raises_reaches_the_caller_and_stops_the_others():
    begun = []

    def work(piece):
        begun.append(piece)
        if piece == 1:
            raise RuntimeError("in piece 1")
        time.sleep(0.02)

    with pytest.raises(RuntimeError, match="in piece 1"):
        workers.run(work, range(100), 2)
    assert len(begun) < 10


def test_an_error_in_one_chunk_of_a_batch_is_raised(monkeypatch):
    monkeypatch.setattr(engine, "pad_chunk", lambda *_: (_ for _ in ()).throw(MemoryError("no room")))
    with pytest.raises(MemoryError, match="no room"):
        fj.fit_batch(normal, START, NORMAL_DATA, devices=2)


def test_threads_keep_the_callers_precision():
    seen = []
    with jax.enable_x64(False):
        workers.run(lambda _: seen.append(jnp.ones(1).dtype), range(4), 2)
    assert seen == [np.float32] * 4


@pytest.mark.parametrize("devices", [0, -1, True, 1.0, "all", [], [0]])
def test_devices_that_are_no_number_of_threads_are_refused(devices):
    with pytest.raises(TypeError, match="must be a number of threads, at least 1, or a list of CPU devices"):
        fj.fit_batch(normal, START, NORMAL_DATA, devices=devices)


def test_there_is_a_thread_for_each_core_that_the_process_may_use(monkeypatch):
    seen = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    monkeypatch.setattr(workers, "run", lambda work, pieces, number: seen.append(number) or [work(x) for x in pieces])
    assert workers.num_cores() == 3
    fits = fj.fit_batch(normal, START, NORMAL_DATA)
    assert set(seen) == {3}
    assert fits.converged.all()
    fj.fit_batch(normal, START, NORMAL_DATA, devices=[jax.devices()[0]] * 2)
    assert seen[-1] == 2


# --- several starts -------------------------------------------------------------------------------------------------

MIXED = np.concatenate([RNG.normal(-2.0, 1.0, 60), RNG.normal(2.0, 1.0, 60)])


def mixture(params, y):
    return jnp.logaddexp(norm.logpdf(y, params["a"], 1.0), norm.logpdf(y, params["b"], 1.0)) - jnp.log(2.0)


def test_a_mixture_has_two_optima_that_are_as_good():
    starts = {"a": np.array([-1.0, 1.0, -3.0]), "b": np.array([1.0, -1.0, 3.0])}
    fit = fj.fit(mixture, {"a": 0.0, "b": 0.0}, MIXED, starts=starts)
    assert fit.converged
    one, other = fit.optima
    assert {one.num_starts, other.num_starts} == {1, 2}
    np.testing.assert_allclose(one.log_likelihood, other.log_likelihood, rtol=1e-12)
    np.testing.assert_allclose([one.params["a"], one.params["b"]], [other.params["b"], other.params["a"]], rtol=1e-6)
    assert fit.params == one.params
    assert fit.log_likelihood == one.log_likelihood


def two_peaks(loc, y):
    """The lower peak at 0, the higher at 6."""
    return jnp.logaddexp(-((loc - y) ** 2), 1.0 - (loc - y - 6.0) ** 2)


def test_the_best_of_several_maxima_is_returned():
    data = np.zeros(3)
    assert abs(fj.fit(two_peaks, 0.5, data).params) < 0.1
    fit = fj.fit(two_peaks, 0.5, data, starts=np.array([0.5, 5.5, -0.5]))
    assert abs(fit.params - 6.0) < 0.1
    assert [optimum.num_starts for optimum in fit.optima] == [1, 2]
    assert fit.optima[0].log_likelihood > fit.optima[1].log_likelihood


def test_many_starts_run_in_lanes_and_end_at_the_same_maxima():
    few = fj.fit(two_peaks, 0.5, np.zeros(3), starts=np.array([0.5, 5.5, -0.5]))
    many = fj.fit(two_peaks, 0.5, np.zeros(3), starts=np.linspace(-0.5, 6.5, 201))
    assert (few.engine, many.engine) == ("host", "host")
    assert [optimum.num_starts > 90 for optimum in many.optima] == [True, True]
    for one, other in zip(many.optima, few.optima, strict=True):
        np.testing.assert_allclose(one.params, other.params, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(one.log_likelihood, other.log_likelihood, rtol=1e-12)


def test_a_number_of_starts_is_drawn_with_the_key_and_begins_at_params():
    fit = fj.fit(mixture, {"a": -1.0, "b": 1.0}, MIXED, starts=8, key=jax.random.key(3))
    again = fj.fit(mixture, {"a": -1.0, "b": 1.0}, MIXED, starts=8, key=jax.random.key(3))
    assert fit.optima == again.optima
    assert sum(optimum.num_starts for optimum in fit.optima) <= 8
    only = fj.fit(mixture, {"a": -1.0, "b": 1.0}, MIXED, starts=1, key=jax.random.key(3))
    np.testing.assert_allclose(only.free, fj.fit(mixture, {"a": -1.0, "b": 1.0}, MIXED).free, rtol=1e-7)


BAD_STARTS = {
    "no key": (3, r"starts are drawn with a key. Give key=jax.random.key\(0\)"),
    "none": (0, "starts=0 must be a whole number, at least 1, or stacked"),
    "no axis": ({"a": 0.0, "b": 1.0}, r"expected those of start, \[\(\), \(\)\], each with one more leading axis"),
    "lengths": ({"a": np.zeros(2), "b": np.zeros(3)}, "of the same length"),
    "shapes": ({"a": np.zeros((2, 2)), "b": np.zeros((2, 2))}, r"leaves of shapes \[\(2, 2\), \(2, 2\)\]"),
    "names": ({"a": np.zeros(2)}, "starts must be starting parameters like start"),
}


def poisson(log_rate, y):
    """With Stirling's formula for log y!."""
    return y * log_rate - jnp.exp(log_rate) - 0.5 * jnp.log(2 * jnp.pi * y) - y * jnp.log(y) + y


def test_several_starts_of_a_density_with_a_term_of_the_data_alone_end_at_one_maximum():
    # What stands for log y! has no parameters, and is summed once for all starts.
    counts = np.array([2.0, 4.0, 3.0, 7.0])
    left_out = np.sum(0.5 * np.log(2 * np.pi * counts) + counts * np.log(counts) - counts)
    fit = fj.fit(poisson, 0.0, counts, starts=np.log([0.5, 2.0, 9.0]))
    assert [optimum.num_starts for optimum in fit.optima] == [3]
    np.testing.assert_allclose(fit.params, np.log(4.0), rtol=1e-9)
    np.testing.assert_allclose(fit.log_likelihood, 16.0 * np.log(4.0) - 16.0 - left_out, rtol=1e-12)
    np.testing.assert_allclose(fit.standard_errors(), 0.25, rtol=1e-9)


@pytest.mark.parametrize(("starts", "message"), BAD_STARTS.values(), ids=BAD_STARTS)
def test_starts_that_do_not_fit_are_refused(starts, message):
    with pytest.raises(ValueError, match=message):
        fj.fit(mixture, {"a": 0.0, "b": 1.0}, MIXED, starts=starts)


def test_what_xla_flags_say_stands_before_the_options_of_a_quick_program(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=2")
    assert "xla_backend_optimization_level" not in quick(0)
    monkeypatch.delenv("XLA_FLAGS")
    assert quick(0)["xla_backend_optimization_level"] == 0


def test_the_garbage_collector_is_as_it_was_after_programs_are_made():
    def fails(params, y):
        assert not gc.isenabled()
        raise RuntimeError("of the user's")

    with pytest.raises(RuntimeError, match="of the user's"):
        fj.fit(fails, 0.0, np.ones(3))
    assert gc.isenabled()
    gc.disable()
    try:
        with collection_paused(), collection_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
