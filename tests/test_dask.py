"""Workers of Dask in processes of their own: what travels, what is compiled there, threads, precision, a worker that is killed."""

import functools
import gc
import os
import pathlib
import pickle
import signal
import time
import uuid
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from jax.scipy.stats import norm

import fisher_jax as fj
from fisher_jax.fitting.workers import num_cores, num_threads
from fisher_jax.models import travel
from fisher_jax.models.fingerprint import LARGE

distributed = pytest.importorskip("distributed")
cloudpickle = pytest.importorskip("cloudpickle")

RNG = np.random.default_rng(5)
DATA = RNG.normal(3.0, 2.0, (12, 20))
START = {"loc": 0.0, "scale": 1.0}


@pytest.fixture(scope="module")
def client():
    """Two worker processes of a thread each, in float64."""
    # Any free port for the dashboard: without, another cluster on this machine would be a warning.
    settings = {"dashboard_address": "127.0.0.1:0", "silence_logs": 50, "env": {"JAX_ENABLE_X64": "1"}}
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", **settings) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def workers_of(client):
    return list(client.scheduler_info()["workers"])


class Settings:
    """An object of the user's, of which a fingerprint cannot tell what its methods do."""

    def __init__(self, shift):
        self.shift = shift

    def shifted(self, y):
        return y - self.shift


def shifted(shift):
    """A model that no fingerprint identifies: it closes over an object, and over more bytes than are hashed."""
    settings, table = Settings(shift), np.zeros(LARGE // 8 + 1)

    def log_density(params, y):
        return norm.logpdf(settings.shifted(y) + jnp.asarray(table)[0], params["loc"], params["scale"])

    return fj.Model(log_density, constraints={"scale": fj.positive})


def count_compilations():
    """The number of programs that this process has compiled since this was called first."""
    compiled = jax.monitoring.__dict__.setdefault("compiled_in_this_test", [])
    if not compiled:
        compiled.append(0)
        jax.monitoring.register_event_duration_secs_listener(
            lambda event, _, **__: compiled.append(1) if event.endswith("backend_compile_duration") else None
        )
    return sum(compiled)


def test_each_worker_compiles_a_model_once_and_takes_no_two_models_for_each_other(client):
    client.run(count_compilations)
    models, compiled = [shifted(0.0), shifted(1.0)], []
    expected = [float(fj.log_likelihood(model, START, DATA[0])) for model in models]
    assert expected[0] != expected[1]
    for _ in range(3):  # each task pickles its model anew
        for address in workers_of(client):
            for model, value in zip(models, expected, strict=True):
                future = client.submit(fj.log_likelihood, model, START, DATA[0], workers=[address], pure=False)
                assert float(future.result()) == value
        compiled.append(client.run(count_compilations))
    assert compiled[0] == compiled[1] == compiled[2]
    assert min(compiled[0].values()) > 0


def test_a_value_that_is_replaced_between_two_tasks_is_seen_by_the_second(client):
    settings = Settings(0.0)
    model = fj.Model(lambda params, y: norm.logpdf(y - settings.shift, params["loc"], params["scale"]))
    values = []
    for settings.shift in (0.0, 1.0):
        # Here the model is never called: in one process what it uses would count as fixed from its first use.
        values.append(client.submit(fj.log_likelihood, model, START, DATA[0], workers=workers_of(client)[:1]).result())
    expected = [np.sum(norm.logpdf(DATA[0] - shift, 0.0, 1.0)) for shift in (0.0, 1.0)]
    np.testing.assert_allclose(values, expected, rtol=1e-12)


def problems():
    """Models made of functions that no other process can import: model, parameters, data and covariates."""
    scale = 2.0

    def density(params, y):
        return norm.logpdf(y, params["loc"], scale)

    loc = {"loc": 1.0}
    scaled = fj.Model(lambda params, y: density(params, y) * params["c"], constraints={"c": fj.fixed})
    linked = fj.linked(fj.families.exponential, lambda params: {"rate": jnp.exp(params["loc"])})
    auxiliary = fj.with_auxiliary(functools.partial(density), lambda params, m: norm.logpdf(m, params["loc"]))
    herds = {"y": DATA[0], "x": DATA[1], "herd": np.arange(20) // 4}
    mixed = fj.formula("y ~ x + (1 | herd)", fj.families.normal, herds)
    return {
        "fixed": (scaled, loc | {"c": 2.0}, DATA[0], None),
        "linked": (linked, loc, np.abs(DATA[0]), None),
        "auxiliary": (auxiliary, loc, (DATA[0], 3.0), None),
        "mixed": (mixed.model, mixed.start, mixed.data, mixed.given),
    }


def test_models_of_every_kind_arrive_as_they_are_and_come_back_as_the_same_object(client):
    here = problems()

    def task(problems):
        values = {name: float(fj.log_likelihood(*parts[:3], given=parts[3])) for name, parts in problems.items()}
        return values, {name: parts[0] for name, parts in problems.items()}

    values, models = client.submit(task, here).result()
    for name, parts in here.items():
        np.testing.assert_allclose(
            values[name], fj.log_likelihood(*parts[:3], given=parts[3]), rtol=1e-12, err_msg=name
        )
        assert models[name] is parts[0], name


def test_results_travel_with_their_model_and_data(client):
    y = DATA[0]
    model = fj.Model(
        lambda params, y: norm.logpdf(y, params["loc"], params["scale"]), constraints={"scale": fj.positive}
    )
    future = client.submit(fj.fit, model, START, y)
    there, here = future.result(), fj.fit(model, START, y)
    assert there.origin.model is model
    np.testing.assert_array_equal(there.free, here.free)
    # The fit stays where it was made, with its data.
    sandwich = client.submit(lambda fit: fit.covariance("sandwich"), future).result()
    np.testing.assert_allclose(sandwich, here.covariance("sandwich"), rtol=1e-10)
    bare = client.submit(lambda fit: fit.standard_errors(), jax.tree.map(np.asarray, here)).result()  # without data
    np.testing.assert_array_equal(bare["loc"], here.standard_errors()["loc"])


def test_a_task_computes_in_one_thread_and_everything_else_in_one_for_each_core(client):
    assert set(client.run(num_threads).values()) == {num_cores()}  # outside tasks
    assert client.map(lambda _: num_threads(), range(4), pure=False)[0].result() == 1
    assert num_threads() == num_cores()


def test_a_worker_without_x64_raises_where_the_model_comes_from_float64(client):
    def without_x64(model):
        with jax.enable_x64(False):
            fj.fit(model, START, DATA[0])

    model = fj.Model(lambda params, y: norm.logpdf(y, params["loc"], params["scale"]))
    with pytest.raises(
        ValueError, match=r"fit: this model was sent by a process that computes in float64, .*JAX_ENABLE_X64=1"
    ):
        client.submit(without_x64, model).result()
    with jax.enable_x64(False):
        future = client.submit(lambda model: str(fj.log_likelihood(model, START, DATA[0]).dtype), model)
    assert future.result() == "float64"  # a worker in float64 takes a model from anywhere


def users():
    """Densities of several kinds that use a shift, each with a function that sets it."""
    settings, values, entries = Settings(0.0), [0.0], np.array([0.0, None])
    frame, labelled = pd.DataFrame({"shift": [0.0]}), [None]

    class Constants:
        shift = 0.0

        def method(self):
            return 0.0

    class Slots:
        __slots__ = ("shift",)

    slots, constants = Slots(), Constants()
    return {
        "an attribute": (lambda _, y: -((y - settings.shift) ** 2), lambda shift: setattr(settings, "shift", shift)),
        "a list": (lambda _, y: -((y - values[0]) ** 2), lambda shift: values.__setitem__(0, shift)),
        "an array of objects": (lambda _, y: -((y - entries[0]) ** 2), lambda shift: entries.__setitem__(0, shift)),
        "a frame": (
            lambda _, y: -((y - frame["shift"].iloc[0]) ** 2),
            lambda shift: frame.__setitem__("shift", [shift]),
        ),
        "a series": (
            lambda _, y: -((y - labelled[0][0]) ** 2),
            lambda shift: labelled.__setitem__(0, pd.Series([shift])),
        ),
        "a slot": (lambda _, y: -((y - slots.shift) ** 2), lambda shift: setattr(slots, "shift", shift)),
        "of a class": (lambda _, y: -((y - Constants.shift) ** 2), lambda shift: setattr(Constants, "shift", shift)),
        "a method": (
            lambda _, y: -((y - constants.method()) ** 2),
            lambda shift: setattr(Constants, "method", lambda self: shift),
        ),
    }


def test_a_model_does_not_stand_for_a_copy_that_was_sent_with_other_values():
    for name, (density, change) in users().items():
        model, sent = fj.Model(density), []
        for shift in (0.0, 1.0):
            change(shift)
            sent.append(cloudpickle.dumps(model))
        assert cloudpickle.loads(sent[1]) is model, name
        values = [cloudpickle.loads(copy).log_density({}, 3.0) for copy in (*sent, sent[0])]
        assert values == [-9.0, -4.0, -9.0], name


def test_a_model_that_is_changed_where_it_arrived_is_another_when_it_is_sent_on():
    density, _ = users()["an attribute"]
    sent = cloudpickle.dumps(fj.Model(density))
    arrived = cloudpickle.loads(sent)
    assert cloudpickle.loads(sent) is arrived
    arrived.log_density.__closure__[0].cell_contents.shift = 1.0
    assert cloudpickle.loads(cloudpickle.dumps(arrived)) is arrived
    assert [cloudpickle.loads(sent).log_density({}, 3.0), arrived.log_density({}, 3.0)] == [-9.0, -4.0]


def test_what_has_arrived_is_freed_when_others_have_come():
    def bytes_of_one():
        return pickle.dumps(fj.Model(functools.partial(fj.families.normal.log_density)))

    first = weakref.ref(pickle.loads(bytes_of_one()))
    assert first() is not None
    for _ in range(travel.MAX_ARRIVED):
        pickle.loads(bytes_of_one())
    gc.collect()
    assert first() is None


def test_labelled_arrays_are_fitted_by_workers_as_in_memory_also_where_one_is_killed(client, tmp_path):
    xr = pytest.importorskip("xarray")
    num_blocks, seconds = 8, 0.2

    def leave_a_mark(fits):
        pathlib.Path(tmp_path, f"{os.getpid()}-{uuid.uuid4()}").touch()
        time.sleep(seconds)
        return fits.params["loc"]

    def begun(*pids):
        return sum(int(path.name.split("-")[0]) in pids for path in tmp_path.iterdir())

    def fit(cells):
        return fj.xarray.fit(fj.families.normal, START, cells, dim="time", functions={"mean": leave_a_mark})

    cells = xr.DataArray(np.tile(DATA, (num_blocks, 1)).reshape(num_blocks, 12, 20), dims=("lat", "lon", "time"))
    expected, lazy = fit(cells), fit(cells.chunk(lat=1))
    first, second = client.run(os.getpid).values()
    result = client.compute(lazy)
    deadline = time.monotonic() + 120
    while begun(first) < 2:  # one block is done there, and the second is under way
        assert time.monotonic() < deadline
        assert not result.done()
        time.sleep(seconds / 20)
    os.kill(first, signal.SIGKILL)
    xr.testing.assert_identical(result.result(timeout=120), expected)
    pids = {int(path.name.split("-")[0]) for path in tmp_path.iterdir()} - {os.getpid()}
    assert begun(*pids) > num_blocks  # what was lost is done again
    assert begun(second) > 0
