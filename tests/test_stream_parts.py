"""A sink that several processes write to: it ends as one process would have left it, whatever happens to them."""

import errno
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
import zarr
from jax.scipy.stats import gamma

import fisher_jax as fj
from fisher_jax.stream.ledger import sole_writer

START = {"shape": 1.0, "rate": 1.0}
SETS = 44
FORMS = ["zarr", "parquet"]


def log_density(params, y):
    return gamma.logpdf(y, params["shape"], scale=1 / params["rate"])


MODEL = fj.Model(log_density, constraints=fj.positive)


@pytest.fixture(scope="module")
def data():
    return np.random.default_rng(1).gamma(3.0, 0.5, (SETS, 25))


def stream(source, sink, part=None, **settings):
    return fj.fit_stream(MODEL, START, source, sink, part=part, **{"block": 4, **settings})


def contents(folder):
    """All files, the number of parts left out: it is what may differ."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for name in files:
        if name.endswith("manifest.json"):
            files[name] = json.loads(files[name])
            del files[name]["settings"]["parts"]
    return files


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return {form: contents(stream(data, folder / f"fits.{form}").path) for form in FORMS}


@pytest.mark.parametrize("form", FORMS)
def test_parts_in_any_order_leave_the_files_of_one_call(form, data, whole, tmp_path):
    sink = tmp_path / f"fits.{form}"
    first = stream(data, sink, (2, 3))
    assert (first.part, first.num_fits, first.num_in_sink, first.unfinished) == ((2, 3), 16, 16, (0, 1))
    assert re.search(r"16 fits of part 2 of 3 in .*(?s:.*)all parts +16 fits(?s:.*)unfinished parts +0, 1", str(first))
    second = stream([data[:30], data[30:]], sink, (0, 3))
    for read in (first.open, second.to_columns):
        with pytest.raises(ValueError, match=r"holds 28 fits, and these parts are unfinished: 1\. Wait for them"):
            read()
    last = stream(data, sink, (np.int64(1), 3))
    assert (last.num_in_sink, last.unfinished, last.statuses) == (SETS, (), {"converged": 16})
    assert contents(sink) == whole[form]
    again = stream(data, sink, (1, 3))
    assert (again.num_resumed, again.num_fits) == (16, 16)
    assert [path.name for path in tmp_path.iterdir()] == [sink.name]
    np.testing.assert_array_equal(first.to_columns()["shape"], fj.fit_batch(MODEL, START, data).params["shape"])


def test_parts_at_the_same_time_make_one_sink_and_the_last_completes_it(data, whole, tmp_path):
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda k: stream(data, tmp_path / "fits.zarr", (k, 3)), range(3)))
    assert contents(tmp_path / "fits.zarr") == whole["zarr"]
    assert any(not result.unfinished for result in results)


@pytest.mark.parametrize("form", FORMS)
def test_a_call_without_part_does_what_lost_parts_left(form, data, whole, tmp_path):
    sink = tmp_path / f"fits.{form}"
    stream(data, sink, (1, 3))
    (tmp_path / f".fits.{form}.part-2.lock").write_text("process 1 on a machine that is gone")
    (tmp_path / f".fits.{form}.part-2.partial").mkdir()
    result = stream(data, sink)
    assert (result.num_fits, result.num_resumed, result.unfinished) == (SETS, 16, ())
    assert contents(sink) == whole[form]
    assert [path.name for path in tmp_path.iterdir()] == [sink.name]


def test_without_a_block_parts_get_some_each_and_a_later_call_without_part_the_same_ones(data, tmp_path):
    first = stream(data, tmp_path / "fits.zarr", (0, 3), block=None)
    assert 12 <= first.num_fits <= 16
    assert stream(data, tmp_path / "fits.zarr", block=None).num_resumed == first.num_fits
    nothing = stream(data, tmp_path / "few.zarr", (0, 3), block=SETS)  # one block, which is that of the last part
    assert (nothing.num_fits, nothing.num_in_sink, nothing.unfinished) == (0, 0, (2,))
    with pytest.raises(ValueError, match="holds 0 fits, and these parts are unfinished: 2"):
        nothing.to_columns()
    assert not (tmp_path / "few.zarr").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no shared locks")
def test_a_part_has_one_writer_and_excludes_calls_without_part(data, tmp_path):
    sink = tmp_path / "fits.zarr"
    here = f"process {os.getpid()} on {socket.gethostname()}"
    with sole_writer(sink, (1, 2)):
        with pytest.raises(RuntimeError, match=rf"is writing to part 1 of 2 of .*fits\.zarr \({here}\). Wait"):
            stream(data, sink, (1, 2))
        with pytest.raises(RuntimeError, match=rf"is writing to parts of .*fits\.zarr \(part 1: {here}\). Wait"):
            stream(data, sink)
        assert stream(data, sink, (0, 2)).unfinished == (1,)
    with sole_writer(sink), pytest.raises(RuntimeError, match=rf"is writing to .*fits\.zarr \({here}\)"):
        stream(data, sink, (1, 2))
    assert not stream(data, sink, (1, 2)).unfinished


@pytest.mark.parametrize("form", FORMS)
def test_a_part_removes_unfinished_files_of_its_own_and_of_no_other(form, data, tmp_path):
    sink = tmp_path / f"fits.{form}"
    stream(data, sink, (0, 2))  # blocks 0 to 4 of 11
    name = "shape/c/{}.0f.partial" if form == "zarr" else ".part-{:08d}.parquet.partial"
    mine, other = (sink / name.format(number) for number in (5, 4))
    for file in (mine, other):
        file.write_bytes(b"half of it")
    stream(data, sink, (1, 2))
    assert other.exists()
    assert not mine.exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"part": (0, 4)}, "begun otherwise: parts was 3, is 4. Call"),
        ({"part": (1, 3), "block": 5}, "begun otherwise: block was 4, is 5"),
        ({"part": (1, 3), "source": np.ones((SETS + 1, 25))}, "source number of data sets was 44, is 45"),
        ({"block": 5}, "begun otherwise: block was 4, is 5"),
    ],
)
def test_other_settings_than_those_of_the_first_part_raise_by_name(changed, message, data, tmp_path):
    stream(data, tmp_path / "fits.zarr", (0, 3))
    with pytest.raises(ValueError, match=message):
        stream(**{"source": data, "sink": tmp_path / "fits.zarr", **changed})


def test_of_two_parts_that_begin_at_once_with_other_settings_the_second_raises(data, tmp_path, monkeypatch):
    replace = pathlib.Path.replace

    def comes_second(self, target):
        if self.name == "fits.zarr" and target == tmp_path / "fits.zarr":
            monkeypatch.setattr(pathlib.Path, "replace", replace)
            stream(data, tmp_path / "fits.zarr", (1, 2), retry=False)
        return replace(self, target)

    monkeypatch.setattr(pathlib.Path, "replace", comes_second)
    with pytest.raises(ValueError, match="begun otherwise: retry was False, is True"):
        stream(data, tmp_path / "fits.zarr", (0, 2))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (
            {"part": (3, 3)},
            ValueError,
            r"part=\(3, 3\): there are the parts 0 to 2. Count them from 0: if task numbers",
        ),
        ({"part": (-1, 3)}, ValueError, "k of part=.*=-1 must be a whole number, at least 0"),
        ({"part": (True, 3)}, ValueError, "k of part=.*=True must be a whole number"),
        ({"part": (0, 0)}, ValueError, "K of part=.*=0 must be a whole number, at least 1"),
        ({"part": (0, 2.5)}, ValueError, "K of part=.*=2.5 must be a whole number"),
        ({"part": 3}, TypeError, r"part=3 must be two whole numbers \(k, K\)"),
        ({"part": (1, 2, 3)}, TypeError, r"part=.* must be two whole numbers \(k, K\)"),
        (
            {"part": (0, 2), "overwrite": True},
            ValueError,
            "a part that starts late would discard what others have written",
        ),
        (
            {"part": (0, 2), "source": iter([np.ones((4, 3))])},
            ValueError,
            "length of source is unknown.* leave part out",
        ),
        (
            {"sink": "s3://bucket/fits.zarr"},
            ValueError,
            r"on an object store.*copy the complete sink.*filesystem\('s3'\)",
        ),
        ({"sink": pathlib.Path("s3://bucket/fits.zarr")}, ValueError, "on an object store"),
    ],
)
def test_what_is_no_part_raises_and_leaves_no_trace(changed, error, message, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        stream(**{"source": data, "sink": "fits.zarr", **changed})
    assert not list(tmp_path.iterdir())


# --- the file system --------------------------------------------------------------------------------------------------


def copies(self, target):
    """What object stores that are mounted as folders do: a folder is copied file by file."""
    shutil.copytree(self, target, dirs_exist_ok=True) if self.is_dir() else shutil.copy(self, target)


def renames_no_folder(self, target):
    if self.is_dir():
        raise OSError(errno.EXDEV, "Invalid cross-device link")
    return self.rename(target)


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        (copies, "does not rename files as a whole"),
        (renames_no_folder, "does not rename folders .Invalid cross-device"),
    ],
)
def test_a_file_system_that_does_not_rename_is_an_error_at_the_start(replace, message, data, tmp_path, monkeypatch):
    monkeypatch.setattr(pathlib.Path, "replace", replace)
    with pytest.raises(OSError, match=f"{message}.*fit_stream needs a local disk, or a shared file system"):
        stream(data, tmp_path / "fits.zarr")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="locks by opening")
def test_locks_that_do_not_exclude_are_an_error_and_so_is_a_part_without_locks(data, tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", lambda *_: None)
    with pytest.raises(OSError, match="gives one lock to two"):
        stream(data, tmp_path / "fits.zarr")

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(OSError, match=r"keeps no locks \(No locks available\), which part=… needs.*mounted with flock"):
        stream(data, tmp_path / "fits.zarr", (0, 2))
    assert not list(tmp_path.iterdir())


# --- other tools read the sinks ---------------------------------------------------------------------------------------


def test_xarray_opens_a_zarr_sink_with_dimensions_names_and_flags(data, tmp_path):
    result = stream(data, tmp_path / "fits.zarr")
    fits = xr.open_zarr(tmp_path / "fits.zarr")  # a warning would be an error here
    assert dict(fits.sizes) == {"data_set": SETS, "parameter": 2, "parameter_": 2}
    assert list(fits["parameter"].values) == ["shape", "rate"]
    covariances = fits["covariance (observed)"].sel(parameter="rate", parameter_="shape")
    np.testing.assert_array_equal(covariances, result.to_columns()["covariance (observed)"][:, 1, 0])
    flags = dict(zip(fits.status.flag_meanings.split(), fits.status.flag_values, strict=True))
    assert flags["not_fitted_yet"] == -1
    assert flags["step_limit"] == fj.Status.STEP_LIMIT
    assert fits.status.dtype.kind == "i"
    assert fits.num_steps.long_name == "number of steps"
    # The length of an iterator is known in the end only.
    stream(iter([data[:20], data[20:]]), tmp_path / "iterator.zarr")
    xr.testing.assert_identical(xr.open_zarr(tmp_path / "iterator.zarr"), fits)


def test_a_parameter_may_have_the_name_of_a_dimension(data, tmp_path):
    fj.fit_stream(lambda p, y: -((y - p["parameter"]) ** 2), {"parameter": 0.0}, data[:4], tmp_path / "fits.zarr")
    fits = xr.open_zarr(tmp_path / "fits.zarr")
    assert fits["parameter"].dims == ("data_set",)
    assert fits["covariance (observed)"].dims == ("data_set", "parameter_", "parameter__")


def test_other_tools_read_a_parquet_sink_as_one_table_beside_unfinished_files(data, tmp_path):
    result = stream(data, tmp_path / "fits.parquet")
    columns = result.to_columns()
    for name in (".part-00000003.parquet.partial", "_fisher_jax/block-00000003.json.partial"):
        (tmp_path / "fits.parquet" / name).write_bytes(b"half of it")
    for table in (pl.read_parquet(tmp_path / "fits.parquet" / "*.parquet"), pd.read_parquet(tmp_path / "fits.parquet")):
        assert set(table.columns) == set(columns)
        np.testing.assert_array_equal(table["rate standard error"], columns["rate standard error"])


# --- sources on object stores ------------------------------------------------------------------------------------------


def test_zarr_and_parquet_are_read_from_object_stores(data, whole, tmp_path):
    zarr.create_array("memory://bucket/y.zarr", data=data, chunks=(7, 25))
    memory = fsspec.filesystem("memory")
    memory.makedirs("/bucket/rows")
    for k, part in enumerate(np.split(data, [13])):
        with memory.open(f"/bucket/rows/{k}.parquet", "wb") as file:
            pq.write_table(pa.table({"y": list(part)}), file, row_group_size=9)
    np.save(tmp_path / "y.npy", data)
    urls = ("memory://bucket/y.zarr", "memory://bucket/rows", f"file://{tmp_path}/y.npy")
    for k, url in enumerate(urls):
        result = stream(url, tmp_path / f"{k}.zarr")
        np.testing.assert_array_equal(result.to_columns()["shape"], fj.fit_batch(MODEL, START, data).params["shape"])
    memory.rm("/bucket/y.zarr/c/3/0")
    memory.touch("/bucket/y.csv")
    for url, error, message in (
        ("memory://bucket/y.zarr", ValueError, "of the 7 chunks of source, 1 are missing"),
        ("memory://bucket/none.zarr", FileNotFoundError, "source 'memory://bucket/none.zarr' does not exist"),
        ("memory://bucket/y.csv", ValueError, "format of source 'memory://bucket/y.csv' does not follow"),
        (pathlib.Path("memory://bucket/y.zarr"), ValueError, "lost a slash. Give the URL as text"),
        ("nosuch://bucket/y.zarr", ValueError, "Protocol not known: nosuch"),
    ):
        with pytest.raises(error, match=message):
            stream(url, tmp_path / "fits.zarr")


# --- labelled sources -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grid():
    """A grid whose dimension of observations is in the middle, with missing values, dates and text for coordinates."""
    values = np.random.default_rng(2).gamma(3.0, 0.5, (3, 25, 4))
    values[0, 3, 1] = np.nan
    values[2, :, 3] = np.nan
    coords = {
        "lat": ("lat", [60.0, 50.0, 40.0], {"units": "degrees_north"}),
        "season": pd.to_datetime(["2001-01-01", "2001-04-01", "2001-07-01", "2001-10-01"]),
        "region": ("lat", ["north", "middle", "south"]),
    }
    return xr.DataArray(values, dims=("lat", "time", "season"), coords=coords)


@pytest.mark.parametrize("kind", ["array", "dask", "zarr path"])
def test_cells_of_labelled_arrays_are_data_sets_and_their_coordinates_stay(kind, grid, tmp_path):
    source = {"array": grid, "dask": grid.chunk({"lat": 2, "season": 3}), "zarr path": tmp_path / "in.zarr"}[kind]
    if kind == "zarr path":
        grid.drop_vars("region").to_dataset(name="y").to_zarr(tmp_path / "in.zarr", zarr_format=3, consolidated=False)
    density = log_density if kind != "zarr path" else (lambda p, y: log_density(p, y["y"]))
    model = fj.Model(density, constraints=fj.positive)
    cells = grid.transpose("lat", "season", "time").values.reshape(12, 25)
    expected = fj.fit_batch(MODEL, START, np.ma.masked_invalid(cells))
    for k in range(2):
        result = fj.fit_stream(model, START, source, tmp_path / "fits.zarr", dim="time", block=5, part=(k, 2))
    np.testing.assert_allclose(result.to_columns()["shape"], expected.params["shape"], rtol=1e-8)
    for name, column in fj.fit_stream(model, START, source, tmp_path / "one.zarr", dim="time").to_columns().items():
        np.testing.assert_array_equal(result.to_columns()[name], column)  # whatever the blocks
    labelled = result.to_xarray()
    assert labelled.estimate.dims == ("lat", "season", "parameter")
    assert labelled.estimate.chunks is not None  # nothing is read yet
    np.testing.assert_allclose(
        labelled.estimate.sel(parameter="rate").values.ravel(), expected.params["rate"], rtol=1e-8
    )
    np.testing.assert_array_equal(labelled.status.values.ravel(), expected.status)
    assert labelled.num_observations.values.tolist() == [[25, 24, 25, 25], [25] * 4, [25, 25, 25, 0]]
    assert {"standard_error", "covariance", "log_likelihood", "decrement"} <= set(labelled.data_vars)
    for name in ("lat", "season", *(["region"] if kind != "zarr path" else [])):
        np.testing.assert_array_equal(labelled[name].values, grid[name].values)
    assert labelled.lat.units == "degrees_north"
    unstacked = xr.open_zarr(tmp_path / "fits.zarr").set_index(data_set=["lat", "season"]).unstack("data_set")
    np.testing.assert_array_equal(unstacked["shape"].sel(lat=grid.lat), labelled.estimate.sel(parameter="shape"))


def test_covariates_of_labelled_arrays_are_matched_by_name(grid, tmp_path):
    grid = grid.fillna(1.0)
    x = xr.DataArray(np.linspace(-1.0, 1.0, 25), dims="time")
    height = xr.DataArray([0.0, 1.0, 2.0, 3.0], dims="season", coords={"season": grid.season})
    model = fj.Model(lambda p, y, z: -((y - p["a"] - p["b"] * z["x"] - z["h"]) ** 2))
    start = {"a": 0.0, "b": xr.zeros_like(height)}
    given = {"x": x, "h": height}
    result = fj.fit_stream(model, start, grid, tmp_path / "fits.parquet", given=given, dim="time", block=5)
    residuals = (grid - height).transpose("lat", "season", "time").values.reshape(12, 25)
    slopes = np.polyfit(x.values, residuals.T, 1)[0]
    np.testing.assert_allclose(result.to_columns()["b"], slopes, rtol=1e-8, atol=1e-12)
    table = pd.read_parquet(tmp_path / "fits.parquet")
    assert table["region"].tolist() == ["north"] * 4 + ["middle"] * 4 + ["south"] * 4
    assert table["season"].tolist() == [*pd.to_datetime(grid.season.values)] * 3
    with pytest.raises(ValueError, match="is no Zarr sink"):
        result.to_xarray()


def test_labelled_arrays_that_do_not_fit_raise_by_name(grid, data, tmp_path):
    zarr.create_array(str(tmp_path / "plain.zarr"), data=data)
    group = zarr.open_group(str(tmp_path / "holes.zarr"), mode="w")
    group.create_array("y", data=data, chunks=(4, 25), dimension_names=("site", "time"))
    (tmp_path / "holes.zarr" / "y" / "c" / "2" / "0").unlink()
    for changed, error, message in (
        ({"dim": None}, TypeError, "an array of xarray, whose names need dim"),
        ({"dim": "year"}, ValueError, "source has no dimension 'year'; it has 'lat', 'time', 'season'"),
        ({"source": grid[0, :, 0]}, ValueError, "no dimension but 'time', so there is one data set"),
        ({"source": data}, TypeError, "source is a ndarray without names of dimensions"),
        ({"weights": np.ones(25)}, TypeError, "weights is a ndarray without names of dimensions"),
        ({"weights": xr.ones_like(grid).isel(lat=[1, 0, 2])}, ValueError, "source, weights are not aligned"),
        (
            {"weights": xr.DataArray(np.ones(3), dims="depth")},
            ValueError,
            "weights has the dimension 'depth', of which",
        ),
        ({"source": grid.astype(str)}, TypeError, "source does not hold plain numbers .dtype <U"),
        ({"source": grid.stack(cell=("lat", "season"))}, ValueError, "several labels in one along 'cell'. Unstack"),
        ({"source": tmp_path / "plain.zarr"}, ValueError, "Zarr array source has no names of dimensions"),
        ({"source": tmp_path / "holes.zarr"}, ValueError, "of the 11 chunks of source y, 1.* are missing"),
    ):
        with pytest.raises(error, match=message):
            stream(**{"source": grid, "dim": "time", **changed}, sink=tmp_path / "fits.zarr")
    assert not (tmp_path / "fits.zarr").exists()


# --- killed processes -------------------------------------------------------------------------------------------------

# One process imports JAX and starts the others by `fork`, before JAX has threads.
SCENARIO = """
import os, pathlib, signal, sys, time, traceback
import jax
jax.config.update("jax_enable_x64", True)
import numpy as np
import fisher_jax as fj
from jax.scipy.stats import gamma

folder, form, kills = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
model = fj.Model(lambda p, y: gamma.logpdf(y, p["shape"], scale=1 / p["rate"]), constraints=fj.positive)
data = np.random.default_rng(1).gamma(3.0, 0.5, (8 * 30 + 5, 25))

def start(sink, part):
    child = os.fork()
    if child == 0:
        try:
            fj.fit_stream(model, {"shape": 1.0, "rate": 1.0}, data, folder / f"{sink}.{form}", block=8, part=part)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child

def wait(*children):
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]

assert wait(start("whole", None)) == [0]
rng = np.random.default_rng(kills)
for kill in range(kills):
    # The first as the sink is made, the others after so many more blocks are done and within the time that some take.
    least = 31 * kill // max(kills, 2)
    children = [start("parts", (k, 2)) for k in range(2)]
    while len(list((folder / f"parts.{form}").rglob("block-*.json"))) < least or not list(folder.glob(".parts.*")):
        time.sleep(0.001)
    time.sleep(rng.uniform(0.0, 0.03))
    for child in children:
        os.kill(child, signal.SIGKILL)
    codes = wait(*children)
    print(kill, codes, len(list((folder / f"parts.{form}").rglob("block-*.json"))), flush=True)
    assert -signal.SIGKILL in codes and set(codes) <= {0, -signal.SIGKILL}, codes
assert wait(*[start("parts", (k, 2)) for k in range(2)]) == [0, 0]
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts processes by fork")
@pytest.mark.parametrize(
    ("form", "kills"),
    [
        ("zarr", 1),
        pytest.param("zarr", 10, marks=pytest.mark.exhaustive),
        pytest.param("parquet", 10, marks=pytest.mark.exhaustive),
    ],
)
def test_two_processes_killed_at_any_moment_end_with_the_files_of_one(form, kills, tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
    environment |= {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-c", SCENARIO, str(tmp_path), form, str(kills)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stdout + run.stderr
    print(run.stdout)
    found, expected = (contents(tmp_path / f"{name}.{form}") for name in ("parts", "whole"))
    assert found.keys() == expected.keys()
    assert found == expected
