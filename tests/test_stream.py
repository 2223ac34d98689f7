"""From disk to disk: the results are those of `fit_batch`, whatever the source, the sink, the blocks and the interruptions."""

import errno
import json
import os
import pathlib
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
import optax
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from jax.scipy.stats import norm

import fisher_jax as fj
from fisher_jax.models.fingerprint import fingerprint, unknown
from fisher_jax.sources import as_ragged, source_of
from fisher_jax.stream.ledger import differences, sole_writer

START = {"shape": 1.0, "rate": 1.0}
SETS, ROWS = 60, 25
BENCHMARK = pathlib.Path(__file__).parents[1] / "benchmarks" / "streaming.py"


def log_density(params, y):
    """Weibull: a density that takes little time to compile."""
    scaled = params["rate"] * y
    return (
        jnp.log(params["shape"] * params["rate"]) + (params["shape"] - 1) * jnp.log(scaled) - scaled ** params["shape"]
    )


MODEL = fj.Model(log_density, constraints=fj.positive)
LINE = fj.Model(lambda p, y, z: norm.logpdf(y, p["a"] + p["b"] * z, p["s"]), constraints={"s": fj.positive})


@pytest.fixture(scope="module")
def data():
    return np.random.default_rng(1).gamma(3.0, 0.5, (SETS, ROWS))


@pytest.fixture(scope="module")
def expected(data):
    return fj.fit_batch(MODEL, START, data, engine="compiled")


def stream(source, sink, **settings):
    return fj.fit_stream(MODEL, START, source, sink, **{"block": 16, **settings})


def check(result, fits):
    """The columns are those of the batch, to the last bit."""
    found = result.to_columns()
    assert result.num_fits == len(fits) == len(found["status"])
    for name, column in fits.to_columns().items():
        np.testing.assert_array_equal(found[name], column, err_msg=name)
    if "observed" in fits.kinds:
        np.testing.assert_array_equal(found["covariance (observed)"], fits.covariance("observed"))


def as_zarr(data, folder):
    zarr.create_array(str(folder / "y.zarr"), data=data, chunks=(7, 25))
    return folder / "y.zarr"


def as_zarr_array(data, folder):
    return zarr.open_array(str(as_zarr(data, folder)), mode="r")


def as_memory_map(data, folder):
    np.save(folder / "y.npy", data)
    return np.load(folder / "y.npy", mmap_mode="r")


def as_npy(data, folder):
    as_memory_map(data, folder)
    return str(folder / "y.npy")


def as_lists(data, folder):
    pq.write_table(pa.table({"y": list(data), "id": np.arange(SETS)}), folder / "y.parquet", row_group_size=9)
    return fj.sources.parquet(folder / "y.parquet", "y")


def as_fixed_lists_in_a_folder(data, folder):
    (folder / "rows").mkdir()
    for k, part in enumerate(np.split(data, [13, 14])):
        lists = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), ROWS)
        pq.write_table(pa.table({"y": lists}), folder / "rows" / f"{k}.parquet", row_group_size=20)
    return folder / "rows"


def as_number_columns(data, folder):
    names = [f"year {k}" for k in range(ROWS)]
    pq.write_table(pa.table(dict(zip(names, data.T, strict=True))), folder / "y.parquet")
    return fj.sources.parquet(folder / "y.parquet", names)


SOURCES = {
    "array": lambda data, _: data,
    "jax array": lambda data, _: jnp.asarray(data),
    "memory map": as_memory_map,
    "npy path": as_npy,
    "zarr path": as_zarr,
    "zarr array": as_zarr_array,
    "parquet lists": as_lists,
    "parquet folder": as_fixed_lists_in_a_folder,
    "parquet number columns": as_number_columns,
    "list of chunks": lambda data, _: np.split(data, [1, 1, 30, 47]),
    "iterator of chunks": lambda data, _: (part for part in np.split(data, [0, 31, 33])),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_gives_what_fit_batch_gives(name, data, expected, tmp_path):
    check(stream(SOURCES[name](data, tmp_path), tmp_path / "fits.zarr"), expected)


@pytest.mark.parametrize("form", ["zarr", "parquet"])
@pytest.mark.parametrize("block", [1, 7, SETS, 1000, None])
def test_results_do_not_depend_on_sink_or_block(form, block, data, expected, tmp_path):
    check(stream(data[:20], tmp_path / f"fits.{form}", block=block), expected[:20])


def test_sinks_are_read_by_their_own_libraries(data, expected, tmp_path):
    stream(data, tmp_path / "fits.zarr")
    group = zarr.open_group(str(tmp_path / "fits.zarr"), mode="r")
    columns = expected.to_columns().keys() | {"covariance (observed)"}
    assert dict(group.arrays()).keys() == columns | {"parameter", "parameter_"}
    stream(data, tmp_path / "fits.parquet")
    table = pq.read_table(tmp_path / "fits.parquet")
    np.testing.assert_array_equal(table["rate"], expected.params["rate"])
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".pkl", ".pickle")]


def test_only_the_kinds_asked_for_are_written(data, tmp_path):
    result = stream(data, tmp_path / "both.zarr", covariances=("sandwich", "observed"))
    fits = fj.fit_batch(MODEL, START, data, covariances=("sandwich", "observed"), engine="compiled")
    found = result.to_columns()
    np.testing.assert_array_equal(found["covariance (sandwich)"], fits.covariance("sandwich"))
    np.testing.assert_array_equal(found["rate standard error"], fits.standard_errors("sandwich")["rate"])
    np.testing.assert_array_equal(found["rate standard error (observed)"], fits.standard_errors("observed")["rate"])
    none = stream(data, tmp_path / "none.zarr", covariances=()).to_columns()
    assert not [name for name in none if "error" in name or "covariance" in name]


@pytest.mark.parametrize("shared", [True, False])
def test_covariates_weights_and_starts_are_shared_or_each_their_own(shared, tmp_path):
    rng = np.random.default_rng(2)
    x = rng.normal(size=ROWS if shared else (SETS, ROWS))
    y = 1.0 + 2.0 * x + rng.normal(size=(SETS, ROWS))
    weights = rng.integers(0, 3, ROWS if shared else (SETS, ROWS)).astype(float)
    start = {"a": 0.0 if shared else rng.normal(size=SETS), "b": 0.0, "s": 1.0}
    axes = {"given_axis": None if shared else 0, "weights_axis": None if shared else 0}
    axes["start_axis"] = None if shared else {"a": 0, "b": None, "s": None}
    given = x if shared else as_memory_map(x, tmp_path)
    weighted = weights if shared else [weights[:40], weights[40:]]
    result = fj.fit_stream(LINE, start, y, tmp_path / "a.zarr", given=given, weights=weighted, block=16, **axes)
    check(result, fj.fit_batch(LINE, start, y, given=x, weights=weights, **axes))


@pytest.mark.parametrize("form", ["array of arrays", "parquet"])
def test_data_sets_may_differ_in_length(form, tmp_path):
    rng = np.random.default_rng(5)
    lengths = rng.integers(10, 40, 20)
    ys, weights = (
        [draw(n) for n in lengths] for draw in (lambda n: rng.gamma(3.0, 0.5, n), lambda n: rng.integers(1, 3, n))
    )
    pq.write_table(pa.table({"y": ys, "w": weights}), tmp_path / "in.parquet", row_group_size=6)
    parquet = {name: fj.sources.parquet(tmp_path / "in.parquet", name, ragged=True) for name in "yw"}
    arrays = {"y": as_ragged(ys), "w": as_ragged(weights)}
    source = parquet if form == "parquet" else arrays
    expected = fj.fit_batch(MODEL, START, ys, weights=weights)
    for block in (7, 100):
        found = stream(source["y"], tmp_path / f"{block}.zarr", weights=source["w"], block=block).to_columns()
        np.testing.assert_array_equal(found["status"], expected.status)
        for name, column in expected.to_columns().items():
            if name not in ("decrement", "num_steps"):
                np.testing.assert_allclose(found[name], column, rtol=1e-8, err_msg=name)


def test_a_pytree_of_integers_and_numbers_keeps_its_types_up_to_the_device(tmp_path):
    seen = []

    def density(rate, y):
        seen.append((y["count"].dtype, y["time"].dtype))
        return y["count"] * jnp.log(rate) - rate * y["time"]

    rng = np.random.default_rng(3)
    y = {"count": rng.poisson(4.0, (30, 12)).astype(np.uint16), "time": np.ones((30, 12), np.float32)}
    result = fj.fit_stream(density, 1.0, y, tmp_path / "a.zarr", block=8)
    assert set(seen) == {(np.dtype(np.uint16), np.dtype(np.float32))}
    np.testing.assert_allclose(result.to_columns()["params"], y["count"].mean(axis=1), rtol=1e-6)


@pytest.mark.parametrize("as_chunks", [False, True])
def test_starts_of_each_keep_the_order_in_which_their_keys_were_written(data, as_chunks, tmp_path):
    ones = np.ones(len(data))
    for name, start in {"one": {"shape": 1.0, "rate": 1.0}, "each": {"shape": ones, "rate": ones}}.items():
        axis = None if name == "one" else 0
        start = [start] if as_chunks and axis == 0 else start
        fj.fit_stream(MODEL, start, data, tmp_path / f"{name}.zarr", start_axis=axis)
    one, each = (zarr.open_group(tmp_path / f"{name}.zarr")["covariance (observed)"][:] for name in ("one", "each"))
    np.testing.assert_allclose(each, one, rtol=1e-6)


def test_a_start_from_initial_and_numbers_by_name_from_parquet(tmp_path):
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(2, 30, ROWS))
    pq.write_table(pa.table({"x": list(x), "y": list(y)}), tmp_path / "in.parquet")
    columns = fj.sources.parquet(tmp_path / "in.parquet", {"left": "x", "right": "y"})
    model = fj.Model(
        lambda p, y: norm.logpdf(y["right"], p * y["left"]),
        initial=lambda data: jnp.mean(data["left"] * data["right"]),
    )
    result = fj.fit_stream(model, None, columns, tmp_path / "fits.parquet", block=7)
    np.testing.assert_allclose(result.to_columns()["params"], (x * y).sum(1) / (x * x).sum(1), rtol=1e-8)


@pytest.mark.parametrize("form", ["zarr", "parquet"])
def test_what_was_interrupted_goes_on_where_it_stopped(form, data, expected, tmp_path):
    def breaks_off():
        yield data[:40]
        raise OSError("the disk is gone")

    sink = tmp_path / f"fits.{form}"
    with pytest.raises(OSError, match="gone"):
        stream(breaks_off(), sink)
    result = stream(iter([data[:50], data[50:]]), sink)
    assert result.num_resumed == 32
    check(result, expected)
    assert stream(iter([data]), sink).num_resumed == SETS
    check(stream(data, sink, overwrite=True), expected)


def test_a_source_that_has_shrunk_since_raises(data, tmp_path):
    def breaks_off():
        yield data[:40]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="gone"):
        stream(breaks_off(), tmp_path / "fits.zarr")
    with pytest.raises(ValueError, match="source now ends 2 data sets before the last that is done"):
        stream(iter([data[:30]]), tmp_path / "fits.zarr")


OTHERWISE = {
    "tolerance": ({"tolerance": 1e-6}, "tolerance was 1e-08, is 1e-06"),
    "block": ({"block": 17}, "block was 16, is 17"),
    "kinds": ({"covariances": ("sandwich",)}, r"covariances\[0\] was observed, is sandwich"),
    "steps": ({"max_steps": 50}, "max_steps was None, is 50"),
    "retry": ({"retry": False}, "retry was True, is False"),
    "start": ({"start": {"shape": 1.0, "rate": 2.0}}, r"start\['rate'\] was 1.0, is 2.0"),
    "shape": ({"source": np.ones((SETS, 3))}, r"source was <f8 \(B, 25\), is <f8 \(B, 3\)"),
    "dtype": ({"source": np.ones((SETS, ROWS), np.float32)}, r"source was <f8 \(B, 25\), is <f4 \(B, 25\)"),
    "number": ({"source": np.ones((SETS + 1, ROWS))}, "source number of data sets was 60, is 61"),
    "content": ({"source": np.ones((SETS, ROWS))}, "source first data set was"),
    "constraints": ({"model": fj.Model(log_density)}, "constraints"),
    "code": ({"model": fj.Model(lambda p, y: -log_density(p, y), constraints=fj.positive)}, "the code of log_density"),
    "optimizer": (
        {"optimizer": optax.adam(1e-2)},
        "optimizer was None, is GradientTransformationExtraArgs of 2. Call",
    ),
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_another_setting_raises_by_name(name, data, tmp_path):
    plain = {"model": MODEL, "start": START, "source": data, "sink": tmp_path / "fits.zarr", "tolerance": 1e-8}
    fj.fit_stream(**plain, block=16)
    changed, message = OTHERWISE[name]
    with pytest.raises(ValueError, match=f"begun otherwise.*{message}"):
        fj.fit_stream(**{**plain, "block": 16, **changed})
    fj.fit_stream(**plain, block=16, devices=1, progress=True)  # of no influence


def density_with(width, power=2):
    weights = np.arange(3.0) * power

    def density(p, y):
        """What it says does not matter."""
        return -(((y - p) / width) ** power) * weights[1]

    return density


def test_a_function_is_known_by_what_it_does_and_not_by_its_address():
    one, same = fingerprint(density_with(1.5), "f"), fingerprint(density_with(1.5), "f")
    assert one == same
    assert not unknown(one)
    assert json.loads(json.dumps(one)) == one
    assert "0x" not in json.dumps(one)
    assert differences(one, fingerprint(density_with(2.5), "f")) == ["f closure width was 1.5, is 2.5"]
    assert [line.split(" was")[0] for line in differences(one, fingerprint(density_with(1.5, 3), "f"))] == [
        "f closure power",
        "f closure weights",
    ]
    assert unknown(fingerprint(lambda y: y, "f") | fingerprint(object(), "g")) == ["g"]


def test_a_model_that_holds_another_has_the_same_fingerprint_in_every_process():
    density = fj.linked(fj.families.exponential, lambda params: {"rate": jnp.exp(params["a"])}).log_density
    table = fingerprint(density, "f")
    assert not [row for row in table if "_key" in row or "_hash" in row]  # hashes of functions are made of addresses
    pickle.dumps(fj.families.exponential)  # which gives it a name
    assert fingerprint(density, "f") == table


def test_what_cannot_be_fingerprinted_is_reported(data, tmp_path):
    unheard_of = object()
    result = fj.fit_stream(lambda p, y: -((y - p) ** 2) * (unheard_of is not None), 0.0, data, tmp_path / "fits.zarr")
    assert result.unknown == ("log_density closure unheard_of",)
    assert "Not fingerprinted" in str(result)


def test_the_bar_counts_what_an_earlier_run_left(data, tmp_path, capsys):
    stream(data, tmp_path / "fits.zarr", progress=True)
    assert f"{SETS}/{SETS}" in capsys.readouterr().err
    result = stream(data, tmp_path / "fits.zarr", progress=True)
    assert f"converged={SETS}" in capsys.readouterr().err
    assert re.search(rf"converged +{SETS} +100 %", str(result))


INVALID = {
    "suffix": ({"sink": "fits.csv"}, "does not end in .zarr or .parquet"),
    "format": ({"sink_format": "csv"}, "sink_format='csv' must be 'zarr' or 'parquet'"),
    "empty": ({"source": np.ones((0, 3))}, "source is empty"),
    "no chunks": ({"source": iter([])}, "source is empty"),
    "lengths": ({"source": {"a": np.ones((3, 2)), "b": np.ones((4, 2))}}, "source a: 3, source b: 4"),
    "given": ({"given": np.ones((3, ROWS)), "given_axis": 0}, "source: 60, given: 3"),
    "late": ({"given": iter([np.ones((3, ROWS))]), "given_axis": 0}, "differs .*source: 16, given: 3"),
    "axis": ({"given": np.ones((3, ROWS)), "given_axis": 1}, "given_axis=1: give 0"),
    "block": ({"block": 0}, "block=0 must be a whole number"),
    "word": ({"block": "all"}, "block='all' must be a whole number"),
    "no sink": ({"sink": None}, "sink must be a path that ends in .zarr or .parquet, got NoneType"),
    "kind": ({"covariances": ("exact",)}, "covariances='exact' is unknown"),
    "chunks": ({"source": [np.ones((20, ROWS)), np.ones((2, 4))]}, "the chunks of source differ"),
    "unheard": ({"source": "no_such.npy"}, "does not exist"),
}


@pytest.mark.parametrize("name", INVALID)
def test_what_does_not_fit_raises_and_leaves_no_trace(name, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changed, message = INVALID[name]
    with pytest.raises((TypeError, ValueError, FileNotFoundError), match=message):
        stream(**{"source": data, "sink": "fits.zarr", **changed})
    if name != "chunks":
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("source", [3, np.float64(3.0), {"a": "text"}, None])
def test_what_is_no_source_raises(source, tmp_path):
    with pytest.raises((TypeError, ValueError), match="source"):
        stream(source, tmp_path / "fits.zarr")


def test_what_is_not_ours_is_neither_written_to_nor_removed(data, tmp_path):
    zarr.create_array(str(tmp_path / "fits.zarr"), data=data)
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="exists, but is no sink that fit_stream wrote"):
            stream(data, tmp_path / "fits.zarr", overwrite=overwrite)
    np.testing.assert_array_equal(zarr.open_array(str(tmp_path / "fits.zarr"), mode="r")[:], data)


def test_parquet_that_holds_no_data_sets_raises(tmp_path):
    pq.write_table(pa.table({"a": [[1.0], [1.0, 2.0]], "b": [1.0, None], "c": ["x", "y"]}), tmp_path / "in.parquet")
    for column, message in {
        "a": "differ in length",
        "b": "missing values",
        "c": "holds string",
        "d": "no column",
    }.items():
        with pytest.raises((TypeError, ValueError), match=message):
            stream(fj.sources.parquet(tmp_path / "in.parquet", column), tmp_path / "fits.zarr")


def test_a_missing_library_is_named_with_its_extra(data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ImportError, match=r'fit_stream: this needs zarr: pip install "fisher_jax\[stream\]"'):
        stream(data, tmp_path / "fits.zarr")


# --- damaged and incomplete sources -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [None, (14, 25)])
@pytest.mark.parametrize("store", ["folder", "memory"])
def test_a_chunk_missing_from_a_zarr_array_is_an_error_and_no_fill_value(store, shards, data, expected, tmp_path):
    place = str(tmp_path / "y.zarr") if store == "folder" else zarr.storage.MemoryStore()
    array = zarr.create_array(place, data=data, chunks=(7, 25), shards=shards)
    if store == "folder":
        (tmp_path / "y.zarr" / "c" / "3" / "0").unlink()
        first = ", the first of them 'c/3/0',"
    else:
        del array.store._store_dict["c/3/0"]
        first = ""
    number = 9 if shards is None else 5
    with pytest.raises(ValueError, match=rf"of the {number} chunks of source, 1{first} are missing .* fill value 0\.0"):
        stream(array, tmp_path / "fits.zarr")
    check(stream((array[k : k + 10] for k in (0, 10)), tmp_path / "fits.zarr"), expected[:20])


def test_a_missing_chunk_that_reads_as_nan_ends_in_a_status(data, tmp_path):
    array = zarr.create_array(
        str(tmp_path / "y.zarr"), shape=data.shape, chunks=(7, 25), dtype=float, fill_value=np.nan
    )
    array[7:] = data[7:]
    assert stream(array, tmp_path / "fits.zarr").statuses == {"bad start": 7, "converged": SETS - 7}


def test_groups_within_a_zarr_group_are_read_as_dicts_within_a_dict(data, tmp_path):
    group = zarr.open_group(str(tmp_path / "in.zarr"), mode="w")
    group.create_array("scale", data=2.0 * data)
    group.create_group("measured").create_array("y", data=data)
    block = next(source_of(tmp_path / "in.zarr", "source").blocks(16, 5))
    np.testing.assert_array_equal(block["scale"], 2.0 * data[16:21])
    np.testing.assert_array_equal(block["measured"]["y"], data[16:21])


def test_a_parquet_page_that_does_not_match_its_checksum_is_an_error(data, tmp_path):
    path = tmp_path / "y.parquet"
    settings = {"compression": "none", "use_dictionary": False, "row_group_size": 30}
    pq.write_table(pa.table({"y": list(data)}), path, write_page_checksum=True, **settings)
    content = bytearray(path.read_bytes())
    content[3000] ^= 0x10  # a bit of one number
    path.write_bytes(content)
    with pytest.raises(OSError, match=r"y\.parquet is damaged: .*CRC checksum"):
        stream(fj.sources.parquet(path, "y"), tmp_path / "fits.zarr")


def test_results_in_parquet_carry_checksums(data, tmp_path):
    result = stream(data[:16], tmp_path / "fits.parquet")
    part = next((tmp_path / "fits.parquet").glob("*.parquet"))
    content = bytearray(part.read_bytes())
    content[len(content) // 4] ^= 0x10
    part.write_bytes(content)
    with pytest.raises(OSError, match="is damaged"):
        result.to_columns()


# --- one writer at a time ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["zarr", "parquet"])
def test_of_two_threads_on_one_sink_the_second_is_turned_away(form, data, expected, tmp_path):
    begun, turned_away = threading.Event(), threading.Event()

    def chunks():
        yield data[:30]
        begun.set()
        turned_away.wait(60.0)
        yield data[30:]

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(stream, chunks(), tmp_path / f"fits.{form}")
        begun.wait(60.0)
        for overwrite in (False, True):
            message = rf"another call of fit_stream is writing to .*fits\.{form} \(process {os.getpid()} on "
            with pytest.raises(RuntimeError, match=message):
                stream(data, tmp_path / f"fits.{form}", overwrite=overwrite)
        turned_away.set()
        check(first.result(), expected)
    assert [path.name for path in tmp_path.iterdir()] == [f"fits.{form}"]


HOLDER = """
import pathlib, sys, time
from fisher_jax.stream.ledger import sole_writer
with sole_writer(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_another_process_on_a_sink_turns_this_one_away_until_it_is_killed(data, expected, tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "fits.zarr")], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(RuntimeError, match=f"process {other.pid} on "):
            stream(data, tmp_path / "fits.zarr")
        other.kill()
    check(stream(data, tmp_path / "fits.zarr"), expected)


def test_of_many_threads_that_begin_at_once_one_writes_at_a_time(tmp_path):
    inside, most, together = [], [], threading.Barrier(8)

    def take_turns(number):
        together.wait(60.0)
        for _ in range(200):
            try:
                with sole_writer(tmp_path / "fits.zarr"):
                    inside.append(number)
                    most.append(len(inside))
                    inside.remove(number)
            except RuntimeError:
                pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(take_turns, range(8)))
    assert max(most) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="locks by opening")
def test_a_file_system_without_locks_is_named(data, tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.warns(UserWarning, match=r"keeps no locks \(No locks available\). See to it that no other call"):
        stream(data[:16], tmp_path / "fits.zarr")


MISFITS = {
    "rows of given": (
        {"given": np.ones(ROWS - 1)},
        r"fit_stream: the leading axes of data and given differ \(data: 25, given: 24\)",
    ),
    "weights": (
        {"weights": -np.ones(ROWS), "weights_axis": None},
        r"(?s)fit_stream: weights must be finite .*data sets 0 to 15 of",
    ),
    "density": ({"model": log_density, "given": np.ones(ROWS)}, r"fit_stream: log_density takes \(params, y\)"),
    "optimizer": ({"optimizer": 3}, "fit_stream: optimizer must be an optax transformation"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_fit_batch_raises_is_named_after_fit_stream(name, data, tmp_path):
    changed, message = MISFITS[name]
    arguments = {"model": LINE, "start": {"a": 0.0, "b": 0.0, "s": 1.0}, "source": data, "given": np.ones(ROWS)}
    with pytest.raises((TypeError, ValueError), match=message):
        fj.fit_stream(**arguments | changed, sink=tmp_path / "fits.zarr", block=16)
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_users_own_functions_keeps_its_kind_and_says_its_line(data, tmp_path):
    def density(params, y):
        raise ValueError("of mine: no such density")

    with pytest.raises(
        ValueError, match=r"log_density raised ValueError at line \d+ of test_stream.py.*: of mine: no such density\."
    ):
        fj.fit_stream(density, 0.0, data, tmp_path / "fits.zarr")


# --- interruptions ----------------------------------------------------------------------------------------------------


class Interrupted(BaseException):
    """What no handler of errors expects."""


@pytest.mark.parametrize(
    ("form", "stride"),
    [
        ("zarr", 13),
        pytest.param("parquet", 1, marks=pytest.mark.exhaustive),
        pytest.param("zarr", 1, marks=pytest.mark.exhaustive),
    ],
)
def test_a_break_at_any_step_of_writing_leaves_the_same_files(form, stride, data, tmp_path, monkeypatch):
    """Every file is put in its place by a rename: break off before or after one of them, and go on."""
    rename, left = pathlib.Path.replace, {"steps": 10**9, "before": False}

    def break_off_there(self, target):
        left["steps"] -= 1
        if left["steps"] == 0 and left["before"]:
            raise Interrupted
        moved = rename(self, target)
        if left["steps"] == 0:
            raise Interrupted
        return moved

    monkeypatch.setattr(pathlib.Path, "replace", break_off_there)
    stream(data[:40], tmp_path / f"whole.{form}")
    files = contents(tmp_path / f"whole.{form}")
    steps = 10**9 - left["steps"]
    for step in range(1, steps + 1, stride):
        sink = tmp_path / str(step) / f"fits.{form}"
        left.update(steps=step, before=step % 2 == 0)
        with pytest.raises(Interrupted):
            stream(data[:40], sink)
        left["steps"] = 10**9
        stream(data[:40], sink)
        assert contents(sink) == files, step


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


CHILD = """
import sys
import jax
jax.config.update("jax_enable_x64", True)
import fisher_jax as fj
from jax.scipy.stats import gamma

def log_density(params, y):
    return gamma.logpdf(y, params["shape"], scale=1 / params["rate"])

model = fj.Model(log_density, constraints=fj.positive)
print("ready", flush=True)
fj.fit_stream(model, {"shape": 1.0, "rate": 1.0}, sys.argv[1], sys.argv[2], block=64)
"""


def killed_at_random(form, kills, folder):
    """The sink of a run that was killed so many times, and that of one that was not."""
    rng = np.random.default_rng(kills)
    np.save(folder / "y.npy", rng.gamma(3.0, 0.5, (64 * 100 + 5, 30)))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
    environment |= {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def run(sink):
        command = [sys.executable, "-W", "error", "-c", CHILD, str(folder / "y.npy"), str(folder / sink)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True)

    def wait(process):
        _, said = process.communicate()
        assert process.returncode == 0, said

    wait(run(f"whole.{form}"))
    landed = 0
    for _ in range(kills):
        process = run(f"killed.{form}")
        process.stdout.readline()
        markers = len(list((folder / f"killed.{form}").rglob("block-*.json")))
        while process.poll() is None and len(list((folder / f"killed.{form}").rglob("block-*.json"))) == markers:
            time.sleep(0.002)  # until it is at work
        time.sleep(rng.uniform(0.0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        landed += process.returncode == -signal.SIGKILL
    assert landed == kills, "it was done before it was killed so often: make it longer"
    wait(run(f"killed.{form}"))
    return folder / f"killed.{form}", folder / f"whole.{form}"


@pytest.mark.parametrize(
    ("form", "kills"),
    [
        pytest.param("zarr", 20, marks=pytest.mark.exhaustive),
        pytest.param("parquet", 20, marks=pytest.mark.exhaustive),
    ],
)
def test_a_run_killed_at_any_moments_ends_with_the_same_files(form, kills, tmp_path):
    killed, whole = killed_at_random(form, kills, tmp_path)
    assert contents(killed) == contents(whole)


@pytest.mark.exhaustive
def test_a_million_fits_stream_within_bounded_memory():
    run = subprocess.run([sys.executable, str(BENCHMARK), "--json"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["fits"] == 1_000_000
    assert found["gigabytes"] < 2.0
