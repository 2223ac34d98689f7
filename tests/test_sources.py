"""A fit whose data are read in blocks, or lie on several devices, is the fit of the same data in memory."""

import copy
import json
import os
import pickle
import socket
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from scipy import optimize, stats

import fisher_jax as fj
from fisher_jax import Status, families
from fisher_jax.fitting import passes

RNG = np.random.default_rng(5)
N = 1000  # sixteen pieces of 64 rows, the last not full, two to a block
X = RNG.normal(size=N)
Y = RNG.poisson(np.exp(0.3 + 0.5 * X)).astype(float)
WEIGHTS = RNG.integers(0, 3, N).astype(float)
SHIPS = np.array(["a", "b", "c", "d", "e"])[RNG.integers(0, 5, N)]
PORTS = RNG.integers(0, 300, N)
START = {"a": 0.0, "b": 0.0}


def predictor(params, z):
    return {"rate": jnp.exp(params["a"] + params["b"] * z)}


MODEL = fj.linked(families.poisson, predictor)


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "MOST_ROWS_IN_A_PIECE", 64)
        patch.setattr(passes, "PIECES_IN_A_BLOCK", 2)
        yield


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("sources") / "counts.parquet"
    table = pa.table({"y": Y, "x": X, "w": WEIGHTS, "ship": SHIPS})
    pq.write_table(table, path, row_group_size=300)
    return path


@pytest.fixture(scope="module")
def columns(path):
    return {name: fj.sources.parquet(path, name) for name in ("y", "x", "w")}


@pytest.fixture(scope="module")
def source(columns):
    """Data, covariates and weights, as `fit` takes them."""
    return {"data": columns["y"], "given": columns["x"], "weights": columns["w"]}


@pytest.fixture(scope="module")
def streamed(source):
    return fj.fit(MODEL, START, **source)


@pytest.fixture(scope="module")
def in_memory():
    return fj.fit(MODEL, START, Y, given=X, weights=WEIGHTS)


def assert_same(fit, other, kinds=("observed", "expected", "empirical", "sandwich")):
    assert fit.status == other.status == Status.CONVERGED
    np.testing.assert_allclose(fit.free, other.free, rtol=1e-12)
    np.testing.assert_allclose(fit.log_likelihood, other.log_likelihood, rtol=1e-13)
    assert fit.num_observations == other.num_observations
    for kind in kinds:
        np.testing.assert_allclose(fit.covariance(kind), other.covariance(kind), rtol=1e-12)


def test_a_fit_by_passes_is_the_fit_in_memory_whatever_the_source(streamed, in_memory, path, tmp_path):
    assert_same(streamed, in_memory)
    assert streamed.engine == "source"
    assert f"{N} rows in {path}, 8 blocks" in str(streamed.summary())
    np.save(tmp_path / "y.npy", Y)
    x = zarr.create_array(str(tmp_path / "x.zarr"), data=X, chunks=(170,))

    def parts():
        yield from (WEIGHTS[:1], WEIGHTS[1:700], WEIGHTS[700:])

    other = fj.fit(MODEL, START, str(tmp_path / "y.npy"), given=x, weights=fj.sources.chunks(parts))
    np.testing.assert_array_equal(other.free, streamed.free)
    mixed = fj.fit(MODEL, START, fj.sources.chunks([Y[:400], Y[400:]]), given=X, weights=WEIGHTS)
    np.testing.assert_array_equal(mixed.free, streamed.free)


def slope_through_zero(slope, row):
    return -((row["y"] - slope * row["x"]) ** 2)


def test_a_zarr_group_is_a_dictionary_of_its_arrays(tmp_path):
    group = zarr.open_group(str(tmp_path / "rows.zarr"), mode="w")
    for name, values in {"x": X, "y": Y}.items():
        group.create_array(name, data=values, chunks=(170,))
    np.testing.assert_allclose(fj.fit(slope_through_zero, 0.0, group).params, X @ Y / (X @ X), rtol=1e-9)


def test_blocks_and_cores_change_no_digit(streamed, source, monkeypatch):
    monkeypatch.setattr(passes, "PIECES_IN_A_BLOCK", 5)
    monkeypatch.setattr(passes.workers, "num_cores", lambda: 1)
    other = fj.fit(MODEL, START, **source)
    assert other.origin.num_blocks == 4
    for name in ("free", "log_likelihood", "curvature", "outer_product", "expected"):
        np.testing.assert_array_equal(getattr(other, name), getattr(streamed, name))


def test_rows_are_also_summed_by_products_of_matrices_and_by_arrays(source, in_memory, monkeypatch):
    monkeypatch.setattr(passes, "FEW", 1)
    monkeypatch.setattr(passes, "EXPANDED_UP_TO", 0)
    monkeypatch.setattr(passes, "UNROLLED", 0)
    ways = []
    way_of = passes.Passes._way_of

    def watched(*arguments):
        ways.append(way_of(*arguments))
        return ways[-1]

    monkeypatch.setattr(passes.Passes, "_way_of", watched)
    assert_same(fj.fit(MODEL, START, **source), in_memory)
    monkeypatch.setattr(passes, "FEW", 12)
    assert_same(fj.fit(MODEL, START, **source), in_memory)
    assert ways == ["predictors"] * 2 + ["arrays"] * 2


@pytest.mark.parametrize("optimizer", [fj.optimizers.fisher_scoring(), fj.optimizers.bhhh()], ids=["scoring", "bhhh"])
def test_other_steps_come_to_the_same_maximum(columns, optimizer):
    fit = fj.fit(families.poisson, None, columns["y"], optimizer=optimizer)
    assert fit.converged
    np.testing.assert_allclose(fit.params["rate"], Y.mean(), rtol=1e-9)


@pytest.mark.filterwarnings(
    "ignore:robust. the covariance is not positive semi-definite"
)  # by two ways, of few clusters
def test_robust_covariances_read_the_data_again(streamed, in_memory):
    for settings in ({}, {"clusters": "ship"}, {"clusters": (SHIPS, PORTS), "weights": "sampling"}):
        arrays = settings | ({"clusters": SHIPS} if settings.get("clusters") == "ship" else {})
        robust, expected = fj.robust(streamed, **settings), fj.robust(in_memory, **arrays)
        np.testing.assert_allclose(robust.covariance(), expected.covariance(), rtol=1e-12)
        assert robust.robust == expected.robust


def test_influence_reads_the_data_again(streamed):
    design = np.column_stack([np.ones(N), X])
    mean = np.exp(design @ streamed.free)
    scores, curvatures = (Y - mean)[:, None] * design, np.einsum("n,ni,nj->nij", WEIGHTS * mean, design, design)
    information = curvatures.sum(axis=0)
    steps = np.linalg.solve(information - curvatures, (-WEIGHTS[:, None] * scores)[..., None])[..., 0]
    influence = fj.influence(streamed)
    np.testing.assert_allclose(influence.derivatives, np.linalg.solve(information, scores.T).T, rtol=1e-10, atol=1e-16)
    np.testing.assert_allclose(influence.deletions, steps, rtol=1e-10, atol=1e-16)
    distances = np.sqrt(np.einsum("ni,ij,nj->n", steps, information, steps))
    np.testing.assert_allclose(influence.distances, distances, rtol=1e-10, atol=1e-16)
    np.testing.assert_array_equal(influence.weights, WEIGHTS)


def log_likelihood(a, b):
    return np.sum(WEIGHTS * stats.poisson.logpmf(Y, np.exp(a + b * X)))


def profile_of_a(a):
    slope = lambda b: np.sum(WEIGHTS * X * (Y - np.exp(a + b * X)))  # noqa: E731
    return log_likelihood(a, optimize.brentq(slope, -2.0, 3.0, xtol=1e-14))


def profile_of_b(b):
    return log_likelihood(np.log(np.sum(WEIGHTS * Y) / np.sum(WEIGHTS * np.exp(b * X))), b)


def test_profiles_and_tests_of_the_likelihood_read_the_data_again(streamed):
    profile, cut = fj.profile_likelihood(streamed), stats.chi2(1).ppf(0.95) / 2
    for k, function in enumerate((profile_of_a, profile_of_b)):
        places = np.isfinite(profile.value[k])
        right = [function(value) - streamed.log_likelihood for value in profile.value[k, places]]
        np.testing.assert_allclose(profile.log_likelihood[k, places], right, atol=1e-9)
        estimate, error = profile.estimate[k], profile.standard_error[k]
        for side, end in zip((-1, 1), profile.interval[k], strict=True):
            fall = lambda c: streamed.log_likelihood - function(c) - cut  # noqa: B023, E731
            np.testing.assert_allclose(end, optimize.brentq(fall, estimate, estimate + 4 * side * error), rtol=1e-9)
    ends = streamed.confidence_intervals(method="profile")
    np.testing.assert_allclose(ends["b"], profile.interval[1], rtol=1e-12)
    test = fj.likelihood_ratio_test(streamed, "b = 0.4")
    np.testing.assert_allclose(test.statistic, 2 * (streamed.log_likelihood - profile_of_b(0.4)), rtol=1e-9)


def test_influences_that_are_large_lie_in_a_file(streamed, monkeypatch):
    expected = fj.influence(streamed)
    monkeypatch.setattr("fisher_jax.inference.influence.IN_MEMORY", 0)
    influence = fj.influence(streamed)
    assert isinstance(influence.deletions, np.memmap)
    np.testing.assert_array_equal(influence.deletions, expected.deletions)


def test_totals_at_any_parameters_are_read_in_blocks(source, monkeypatch):
    monkeypatch.setattr("fisher_jax.information.derivatives.ROWS_IN_A_BLOCK", 300)
    arrays = {"data": Y, "given": X, "weights": WEIGHTS}
    for function in (fj.log_likelihood, fj.score, fj.hessian, fj.observed_information, fj.empirical_fisher):
        for value, expected in zip(
            *(jax.tree.leaves(function(MODEL, START, **each)) for each in (source, arrays)), strict=True
        ):
            if not isinstance(value, str):
                np.testing.assert_allclose(value, expected, rtol=1e-12)
    with pytest.raises(TypeError, match=r"scores: takes arrays in memory"):
        fj.scores(MODEL, START, **source)


def test_a_fit_of_a_source_survives_pickle_deepcopy_and_a_file(columns, tmp_path):
    fit = fj.fit(families.poisson, None, columns["y"])
    errors = fj.robust(fit, clusters="ship").standard_errors()["rate"]
    for other in (pickle.loads(pickle.dumps(fit)), copy.deepcopy(fit)):
        assert fj.robust(other, clusters="ship").standard_errors()["rate"] == errors
    fit.save(tmp_path / "fit.npz")
    assert fj.load(tmp_path / "fit.npz").standard_errors()["rate"] == fit.standard_errors()["rate"]


def test_missing_values_in_a_file_raise_or_are_left_out(tmp_path):
    y = pa.array([None if k == 3 else float("nan") if k == 200 else float(v) for k, v in enumerate(Y)])
    count = pa.array([None if k == 7 else int(v) for k, v in enumerate(Y)], pa.int64())
    pq.write_table(pa.table({"y": y, "count": count}), tmp_path / "holes.parquet")
    for name, rows in (("y", [3, 200]), ("count", [7])):
        source = fj.sources.parquet(tmp_path / "holes.parquet", name)
        with pytest.raises(ValueError, match=rf"column '{name}' has 1 missing values .* missing=\"drop\""):
            fj.fit(families.poisson, {"rate": 1.0}, source)
        fit = fj.fit(families.poisson, {"rate": 1.0}, source, missing="drop")
        assert fit.num_masked == len(rows)
        np.testing.assert_allclose(fit.params["rate"], np.delete(Y, rows).mean(), rtol=1e-9)
        assert "left out" in str(fit)


def test_the_row_to_blame_is_named(tmp_path):
    y = Y.copy()
    y[777] = np.nan
    np.save(tmp_path / "y.npy", y)
    fit = fj.fit(families.poisson, {"rate": 1.0}, tmp_path / "y.npy")
    assert (fit.status, int(fit.suspect)) == (Status.BAD_START, 777)
    assert "observation 777" in fit.diagnosis()


def test_a_bar_shows_each_pass(columns, capsys):
    fit = fj.fit(families.poisson, None, columns["y"], progress=True)
    shown = capsys.readouterr().err
    assert f"pass {fit.origin.num_passes}, step" in shown
    assert "log-likelihood" in shown


def chunked(*parts):
    return fj.sources.chunks(list(parts))


def missing_chunk(folder):
    array = zarr.create_array(str(folder / "y.zarr"), shape=(N,), chunks=(100,), dtype="f8")
    array[:] = Y + 1
    next((folder / "y.zarr" / "c").iterdir()).unlink()
    return array


BAD = {
    "other shape": (lambda _: chunked(Y, np.ones((5, 2))), {}, "the chunks of chunks differ"),
    "other dtype": (lambda _: chunked(Y, Y.astype("f4")), {}, "the chunks of chunks differ"),
    "lengths known": (
        lambda _: chunked(Y),
        {"given": X[:-1]},
        "numbers of rows differ .*data: 1000, given: 999",
    ),
    "lengths met": (
        lambda _: fj.sources.chunks(lambda: iter([Y])),
        {"given": X[:-1]},
        "numbers of rows differ .*data: 1000, given: 999",
    ),
    "weights": (lambda _: chunked(Y), {"weights": np.where(np.arange(N) == 300, -1.0, 1.0)}, r"weights\[300\] is -1"),
    "empty": (lambda _: chunked(Y[:0]), {}, "empty"),
    "iterator": (lambda _: fj.sources.chunks(iter([Y])), {}, "an iterator of chunks, which can be read once"),
    "no chunks": (lambda _: fj.sources.chunks(3), {}, "expected a list of chunks, or a function"),
    "no column": (lambda folder: fj.sources.parquet(folder / "counts.parquet", "z"), {}, "has no column 'z'"),
    "no file": (lambda folder: folder / "none.npy", {}, "does not exist"),
    "missing chunk": (missing_chunk, {}, "1, the first of them .* are missing from"),
    "optax": (lambda _: chunked(Y), {"optimizer": "lbfgs"}, r"fitted by newton\(\), fisher_scoring\(\) or bhhh\(\)"),
    "starts": (lambda _: chunked(Y), {"starts": 3, "key": jax.random.key(0)}, "starts= needs the data in memory"),
    "progress": (lambda _: Y, {"progress": True}, "progress=True is for data from a source"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_source_that_cannot_be_fitted_is_an_error(case, path):
    source, options, message = BAD[case]
    if options.get("optimizer") == "lbfgs":
        import optax

        options = {"optimizer": optax.lbfgs()}
    model, start = (MODEL, START) if "given" in options else (families.poisson, {"rate": 1.0})
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        fj.fit(model, start, source(path.parent), **options)


def test_what_cannot_read_in_blocks_says_so(streamed, columns):
    dependent = fj.dependent(lambda params, y: -((y - params["m"]) ** 2))
    with pytest.raises(ValueError, match="the model is `dependent`"):
        fj.fit(dependent, {"m": 0.0}, columns["y"])
    with pytest.raises(TypeError, match="fitted by fit_stream"):
        fj.fit_batch(families.poisson, {"rate": 1.0}, columns["y"])
    with pytest.raises(TypeError, match="not under jit"):
        jax.jit(lambda rate: fj.fit(families.poisson, {"rate": rate}, columns["y"]).params)(1.0)
    with pytest.raises(
        ValueError, match=r"bootstrap: needs the data in memory, but those of this fit are in .*parquet"
    ):
        fj.bootstrap(streamed, jax.random.key(0))
    with pytest.raises(ValueError, match="lags= needs"):
        fj.robust(streamed, lags=2)
    with pytest.raises(ValueError, match="clusters has 3 labels, but the source has 1000 rows"):
        fj.robust(streamed, clusters=["a", "b", "c"])
    with pytest.raises(ValueError, match="there is no column 'captain' in the source"):
        fj.robust(streamed, clusters="captain")


@pytest.mark.exhaustive
def test_randhie_repeated_has_the_estimates_of_the_original_and_smaller_errors(tmp_path, monkeypatch):
    from statsmodels.datasets import randhie

    monkeypatch.setattr(passes, "MOST_ROWS_IN_A_PIECE", 2**12)
    table = randhie.load_pandas().data
    y, x = table.pop("mdvis").to_numpy(), np.column_stack([np.ones(len(table)), table.to_numpy(float)])
    names = [f"x{k}" for k in range(x.shape[1])]
    columns = pa.table({"y": y, **dict(zip(names, x.T, strict=True))})
    with pq.ParquetWriter(tmp_path / "rand.parquet", columns.schema) as writer:
        for _ in range(5):
            writer.write_table(columns)
    model = fj.linked(families.poisson, lambda beta, z: {"rate": jnp.exp(z @ beta)})
    source, given = (fj.sources.parquet(tmp_path / "rand.parquet", part) for part in ("y", names))
    fit = fj.fit(model, np.zeros(x.shape[1]), source, given=given)
    one = fj.fit(model, np.zeros(x.shape[1]), y, given=x)
    np.testing.assert_allclose(fit.params, one.params, rtol=1e-9)
    np.testing.assert_allclose(fit.standard_errors(), one.standard_errors() / np.sqrt(5), rtol=1e-9)
    assert fit.origin.num_blocks == 13
    test, expected = (fj.wald_test(each, "params[3] = 0").statistic for each in (fit, one))
    np.testing.assert_allclose(test, 5 * expected, rtol=1e-9)


# Rows on several devices.

ON_DEVICES = """
import json, sys
import jax
jax.config.update("jax_enable_x64", True)
if sys.argv[1] != "one":
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[1]))
import numpy as np
from jax import numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import fisher_jax as fj

rng = np.random.default_rng(5)
n = 1000
x = rng.normal(size=n)
y = rng.poisson(np.exp(0.3 + 0.5 * x)).astype(float)
weights = rng.integers(0, 3, n).astype(float)
model = fj.linked(fj.families.poisson, lambda p, z: {"rate": jnp.exp(p["a"] + p["b"] * z)})
start = {"a": 0.0, "b": 0.0}
mesh = jax.make_mesh((jax.device_count(),), ("rows",))
split = NamedSharding(mesh, PartitionSpec("rows"))

def put(array):
    each = n // jax.process_count()
    own = array[jax.process_index() * each : (jax.process_index() + 1) * each]
    return jax.make_array_from_process_local_data(split, own)

def told(call):
    try:
        return call() and ""
    except Exception as error:
        return str(error)

fit = fj.fit(model, start, put(y), given=put(x), weights=put(weights))
result = {"engine": fit.engine, "free": fit.free.tolist(), "value": float(fit.log_likelihood), "report": str(fit)}
result |= {kind: np.asarray(fit.covariance(kind)).tolist() for kind in ("observed", "expected", "sandwich")}
if sys.argv[1] == "one":
    from fisher_jax.fitting.sharded import one_pass
    from fisher_jax.models.model import flatten_parameters

    layout, values = flatten_parameters(model, start)
    programs = [
        jax.jit(lambda v, parts, u: one_pass(model, layout, "observed", whole, mesh, ("rows",), v, parts, u))
        .lower([np.asarray(v) for v in values], (put(y), put(x), put(weights)), np.zeros(2)).compile().as_text()
        for whole in (False, True)
    ]
    names = (" all-reduce(", "all-reduce-start(", "all-gather", "all-to-all", "collective-permute")
    result["collectives"] = [[text.count(name) for name in names] for text in programs]
    bad = np.where(np.arange(n) == 777, np.nan, y)
    result["suspect"] = int(fj.fit(model, start, put(bad), given=put(x), weights=put(np.ones(n))).suspect)
    result["errors"] = [
        told(lambda: fj.fit(model, start, put(y), given=x)),
        told(lambda: fj.fit(fj.families.poisson, None, put(y))),
        told(lambda: fj.influence(fit)),
    ]
print(json.dumps(result))
"""


def run_on_devices(*arguments, devices):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-c", textwrap.dedent(ON_DEVICES), *arguments]
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def result_of(process):
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(output.splitlines()[-1])


def assert_is_fit(result, fit):
    assert result["engine"] == "devices"
    assert f"{N} rows in the memory of 4 devices" in result["report"]
    np.testing.assert_allclose(result["free"], fit.free, rtol=1e-12)
    np.testing.assert_allclose(result["value"], fit.log_likelihood, rtol=1e-12)
    for kind in ("observed", "expected", "sandwich"):
        np.testing.assert_allclose(result[kind], fit.covariance(kind), rtol=1e-12)


def test_rows_on_four_devices_are_fitted_with_one_sum_over_devices_a_pass(in_memory):
    result = result_of(run_on_devices("one", devices=4))
    assert_is_fit(result, in_memory)
    assert result["collectives"] == [[1, 0, 0, 0, 0]] * 2
    assert result["suspect"] == 777
    for error, words in zip(
        result["errors"],
        ("given is not split along its leading axis", "start=None needs the data in one place", "memory of 4 devices"),
        strict=True,
    ):
        assert words in error


def test_two_processes_with_half_of_the_rows_each_make_the_fit_of_one(in_memory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [run_on_devices(str(k), address, devices=2) for k in range(2)]
    first, second = map(result_of, processes)
    assert first == second
    assert_is_fit(first, in_memory)
