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
import jax.numpy as jnp
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
import zarr

import fisher_jax as fj
from fisher_jax.stream.ledger import sole_writer

START = {"rate": 1.0, "loc": 1.0}
SETS = 44
KINDS = ("observed", "sandwich")  # of all tests that ask for covariances, since a model is compiled for them
FORMS = ["zarr", "parquet"]


def log_density(params, y):
    """Normal, with the reciprocal of the standard deviation: a density that takes little time to compile."""
    return jnp.log(params["rate"]) - 0.5 * (params["rate"] * (y - params["loc"])) ** 2


MODEL = fj.Model(log_density, constraints={"rate": fj.positive})


@pytest.fixture(scope="module")
def data():
    return np.random.default_rng(1).gamma(3.0, 0.5, (SETS, 25))


def stream(source, sink, part=None, **settings):
    return fj.fit_stream(MODEL, START, source, sink, part=part, **{"block": 4, "covariances": (), **settings})


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
    np.testing.assert_array_equal(
        first.to_columns()["loc"], fj.fit_batch(MODEL, START, data, covariances=()).params["loc"]
    )


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
    name = "loc/c/{}.0f.partial" if form == "zarr" else ".part-{:08d}.parquet.partial"
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
    result = stream(data, tmp_path / "fits.zarr", covariances=KINDS)
    fits = xr.open_zarr(tmp_path / "fits.zarr")  # a warning would be an error here
    assert dict(fits.sizes) == {"data_set": SETS, "parameter": 2, "parameter_": 2}
    assert list(fits["parameter"].values) == ["rate", "loc"]
    covariances = fits["covariance (observed)"].sel(parameter="rate", parameter_="loc")
    np.testing.assert_array_equal(covariances, result.to_columns()["covariance (observed)"][:, 0, 1])
    flags = dict(zip(fits.status.flag_meanings.split(), fits.status.flag_values, strict=True))
    assert flags["not_fitted_yet"] == -1
    assert flags["step_limit"] == fj.Status.STEP_LIMIT
    assert fits.status.dtype.kind == "i"
    assert fits.num_steps.long_name == "steps of the optimiser"
    # The length of an iterator is known in the end only.
    stream(iter([data[:20], data[20:]]), tmp_path / "iterator.zarr", covariances=KINDS)
    xr.testing.assert_identical(xr.open_zarr(tmp_path / "iterator.zarr"), fits)


def test_a_parameter_may_have_the_name_of_a_dimension(data, tmp_path):
    fj.fit_stream(lambda p, y: -((y - p["parameter"]) ** 2), {"parameter": 0.0}, data[:4], tmp_path / "fits.zarr")
    fits = xr.open_zarr(tmp_path / "fits.zarr")
    assert fits["parameter"].dims == ("data_set",)
    assert fits["covariance (observed)"].dims == ("data_set", "parameter_", "parameter__")


def test_other_tools_read_a_parquet_sink_as_one_table_beside_unfinished_files(data, tmp_path):
    result = stream(data, tmp_path / "fits.parquet", covariances=KINDS)
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
        np.testing.assert_array_equal(
            result.to_columns()["loc"], fj.fit_batch(MODEL, START, data, covariances=()).params["loc"]
        )
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


def dates(calendar):
    return xr.date_range("2001-01-01", periods=4, freq="90D", calendar=calendar, use_cftime=calendar != "standard")


@pytest.fixture(scope="module")
def grid():
    """A grid whose observations lie in the middle, with missing values, units, and coordinates of all kinds."""
    values = np.random.default_rng(2).gamma(3.0, 0.5, (3, 25, 4))
    values[0, 3, 1] = values[1, 1:, 2] = values[2, :, 3] = np.nan
    coords = {
        "lat": ("lat", [60.0, 50.0, 40.0], {"units": "degrees_north"}),
        "season": dates("standard"),
        "area": (("lat", "season"), np.arange(12.0).reshape(3, 4)),
        "height": 2.0,
    }
    return xr.DataArray(
        values, dims=("lat", "time", "season"), coords=coords, name="y", attrs={"units": "mm", "source": "gauges"}
    )


@pytest.fixture(scope="module")
def fits_of_grid(grid):
    return fj.xarray.fit(MODEL, START, grid, dim="time", covariances=KINDS)


def stream_cells(source, sink, **settings):
    return stream(source, sink, **{"dim": "time", "covariances": KINDS, "block": 5, **settings})


def test_a_stream_of_cells_is_to_the_last_bit_what_xarray_fit_gives(grid, fits_of_grid, tmp_path):
    grid.to_dataset().to_zarr(tmp_path / "in.zarr", zarr_format=3, consolidated=False)
    array = zarr.open_group(tmp_path / "in.zarr", mode="r")["y"]
    for k, source in enumerate((grid, grid.chunk({"lat": 2, "time": 10}), array)):
        for part in range(2):
            result = stream_cells(source, tmp_path / f"{k}.zarr", part=(part, 2))
        labelled = result.to_xarray()
        assert labelled.estimate.chunks is not None  # nothing is read yet
        xr.testing.assert_identical(labelled.compute(), fits_of_grid)
    unstacked = xr.open_zarr(tmp_path / "0.zarr").set_index(data_set=["lat", "season"]).unstack("data_set")
    np.testing.assert_array_equal(unstacked["loc"].sel(lat=grid.lat), labelled.estimate.sel(parameter="loc"))


def test_a_zarr_group_or_its_path_is_a_dictionary_of_its_arrays(grid, fits_of_grid, tmp_path):
    grid.to_dataset().to_zarr(tmp_path / "in.zarr", zarr_format=3, consolidated=False)
    model = fj.Model(lambda params, y: log_density(params, y["y"]), constraints=MODEL.constraints)
    group = zarr.open_group(tmp_path / "in.zarr", mode="r")
    for k, source in enumerate((group, f"{tmp_path}/in.zarr/")):
        result = fj.fit_stream(model, START, source, tmp_path / f"{k}.zarr", dim="time", block=5)
        xr.testing.assert_allclose(result.to_xarray().estimate, fits_of_grid.estimate, rtol=1e-12)


@pytest.mark.parametrize("calendar", ["standard", "noleap"])
def test_dates_of_any_calendar_stay_in_a_zarr_sink_and_are_text_in_a_table_if_it_has_no_such_type(
    calendar, grid, tmp_path
):
    if calendar != "standard":
        pytest.importorskip("cftime")
    other = grid.assign_coords(season=dates(calendar))
    labelled = stream_cells(other, tmp_path / "fits.zarr").to_xarray()
    xr.testing.assert_identical(labelled.season, other.season.assign_attrs(labelled.season.attrs))
    assert getattr(labelled.season.values[0], "calendar", "standard") == calendar
    with pytest.raises(ValueError, match="is no Zarr sink"):
        stream_cells(other, tmp_path / "fits.parquet").to_xarray()
    table = pd.read_parquet(tmp_path / "fits.parquet")
    expected = (
        list(other.season.values) if calendar == "standard" else [date.isoformat() for date in other.season.values]
    )
    assert table["season"].tolist() == [*(pd.to_datetime(expected) if calendar == "standard" else expected)] * 3
    assert table["area"].tolist() == list(range(12))


def test_covariates_are_matched_by_name_along_several_dimensions_of_observations_and_entries(grid, tmp_path):
    grid = grid.fillna(1.0)
    x = xr.DataArray(np.linspace(-1.0, 1.0, 25), dims="time")
    height = xr.DataArray([0.0, 1.0, 2.0, 3.0], dims="season", coords={"season": grid.season})
    z = xr.concat([xr.ones_like(x), x], "column")
    model = fj.Model(lambda p, y, z: -((y - z["z"] @ p["b"] - z["h"]) ** 2))
    start = {"b": xr.zeros_like(height) + xr.DataArray([0.0, 0.0], dims="column")}
    square = {"time": ("a", "b")}, {"a": 5, "b": 5}
    for k, (dim, reshape) in enumerate((("time", lambda each: each), (("a", "b"), lambda each: folded(each, *square)))):
        given = {"z": reshape(z), "h": height}
        result = fj.fit_stream(
            model, start, reshape(grid), tmp_path / f"{k}.zarr", given=given, dim=dim, entry_dims="column", block=5
        )
        residuals = (grid - height).transpose("lat", "season", "time").values.reshape(12, 25)
        slopes = np.polyfit(x.values, residuals.T, 1)
        np.testing.assert_allclose(result.to_columns()["b[1]"], slopes[0], rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(result.to_columns()["b[0]"], slopes[1], rtol=1e-8, atol=1e-12)


def folded(array, names, sizes):
    """The array with one dimension as two."""
    (name, pair), *_ = names.items()
    index = pd.MultiIndex.from_product([range(sizes[each]) for each in pair], names=pair)
    along = xr.Coordinates.from_pandas_multiindex(index, name)
    return array.assign_coords(along).unstack(name).drop_vars(pair)


def test_labelled_arrays_that_do_not_fit_raise_by_name(grid, data, tmp_path):
    zarr.create_array(str(tmp_path / "plain.zarr"), data=data)
    scaled = zarr.create_array(str(tmp_path / "scaled.zarr"), data=data, dimension_names=("site", "time"))
    scaled.attrs["scale_factor"] = 0.1
    group = zarr.open_group(str(tmp_path / "holes.zarr"), mode="w")
    group.create_array("y", data=data, chunks=(4, 25), dimension_names=("site", "time"))
    (tmp_path / "holes.zarr" / "y" / "c" / "2" / "0").unlink()
    moved = xr.ones_like(grid).isel(lat=[1, 0, 2])
    for changed, error, message in (
        ({"dim": None}, TypeError, "an array of xarray, whose names need dim"),
        ({"dim": None, "source": data, "entry_dims": "a"}, ValueError, "entry_dims='a' names dimensions.*need dim"),
        ({"dim": "year"}, ValueError, "source has no dimension 'year'.*it has 'lat', 'time', 'season'"),
        ({"source": grid[0, :, 0]}, ValueError, "source has no dimensions but 'time', so there is one data set"),
        ({"source": data}, TypeError, "source is an array of shape .* without names of dimensions"),
        ({"weights": np.ones(25)}, TypeError, "weights is an array of shape .* without names of dimensions"),
        ({"weights": moved}, ValueError, "source and weights have different coordinates along 'lat', first at place 0"),
        (
            {"weights": xr.DataArray(np.ones(3), dims="depth")},
            ValueError,
            "weights has the dimension 'depth'; expected",
        ),
        ({"source": grid.astype(str)}, TypeError, "source: expected numbers, got an array of dtype <U"),
        ({"source": grid.stack(cell=("lat", "season"))}, ValueError, "several labels in one along 'cell'. Unstack"),
        ({"source": grid.rename(lat="the lat")}, ValueError, "the coordinate 'the lat' of source cannot be written"),
        ({"source": grid.assign_coords(lat=[{1}, {2}, {3}])}, TypeError, "the coordinate 'lat' holds objects, as {1}"),
        ({"source": grid.rename(area="units")}, ValueError, "coordinate 'units', which is a name in the result"),
        ({"source": grid.rename(area="rate")}, ValueError, "coordinates have the names of results: rate"),
        ({"source": tmp_path / "plain.zarr"}, ValueError, "Zarr array source has no names of dimensions"),
        ({"source": tmp_path / "scaled.zarr"}, ValueError, "source has the attribute scale_factor"),
        ({"source": tmp_path / "holes.zarr"}, ValueError, "of the 11 chunks of source y, 1.* are missing"),
        ({"source": str(tmp_path / "y.nc")}, ValueError, "source .*y.nc' does not end in .zarr: with dim, open it"),
    ):
        with pytest.raises(error, match=message):
            stream(**{"source": grid, "dim": "time", **changed}, sink=tmp_path / "fits.zarr")
    assert not (tmp_path / "fits.zarr").exists()


# --- killed processes -------------------------------------------------------------------------------------------------

# One process imports all that is needed and starts the others by `fork`, before JAX and Zarr have threads.
SCENARIO = """
import os, pathlib, signal, sys, time, traceback
import jax
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp
import numpy as np
import fisher_jax as fj
import pyarrow.parquet, zarr

folder, form, kills = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
model = fj.Model(lambda rate, y: jnp.log(rate) - rate * y, constraints=fj.positive)
fit_stream = fj.fit_stream  # imported here, once
data = np.random.default_rng(1).gamma(3.0, 0.5, (8 * 15 + 5, 25))

def start(sink, part):
    child = os.fork()
    if child == 0:
        try:
            fit_stream(model, 1.0, data, folder / f"{sink}.{form}", block=8, part=part, covariances=())
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
    # The first as the sink is made, the others after so many more blocks are done and within the time that some take; a single
    # one in the middle.
    least = 16 * kill // kills if kills > 1 else 5
    children = [start("parts", (k, 2)) for k in range(2)]
    while len(list((folder / f"parts.{form}").rglob("block-*.json"))) < least or not list(folder.glob(".parts.*")):
        time.sleep(0.001)
    time.sleep(rng.uniform(0.0, 0.03))
    for child in children:
        os.kill(child, signal.SIGKILL)
    codes = wait(*children)
    print(kill, codes, len(list((folder / f"parts.{form}").rglob("block-*.json"))), flush=True)
    assert -signal.SIGKILL in codes and set(codes) <= {0, -signal.SIGKILL}, codes
last = [(0, 2), (1, 2)] if kills > 1 else [None]
assert wait(*[start("parts", part) for part in last]) == [0] * len(last)
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
