"""Labelled arrays: each cell is the fit of its data, whatever the chunks; names, coordinates and units are obeyed or raise."""

import functools

import cftime
import dask.array
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from data_sets import PORT_PIRIE
from helpers import compiled_programs
from jax.scipy.stats import norm

import fisher_jax as fj
from fisher_jax.models.homogeneity import powers_of_parameters
from fisher_jax.models.model import flatten_parameters

RNG = np.random.default_rng(3)
YEARS = np.arange(1960, 2000)
GEV = fj.families.gev
START = {"loc": 4.0, "scale": 0.2, "shape": 0.0}
FIRST = ("estimate", "standard_error", "covariance")


@functools.cache
def maxima():
    """Four by six cells of forty maxima; one without data, one with too few, one with some missing."""
    values = 4.0 + 0.2 * RNG.gumbel(size=(len(YEARS), 4, 6))
    values[:, 1, 2], values[2:, 3, 4], values[[0, 7, 8], 0, 0] = np.nan, np.nan, np.nan
    coords = {
        "year": YEARS,
        "lat": np.linspace(-10.0, 20.0, 4),
        "lon": np.arange(6.0),
        "area": (("lat", "lon"), RNG.random((4, 6)), {"units": "m2"}),
        "height": 2.0,
    }
    attributes = {"units": "mm", "source": "a gauge"}
    return xr.DataArray(values, dims=("year", "lat", "lon"), coords=coords, attrs=attributes, name="level")


def in_rows(array):
    """Cells by years as fit_batch takes them, masked where missing."""
    return np.ma.masked_invalid(array.transpose("lat", "lon", "year").values.reshape(24, -1))


@functools.cache
def mapped():
    return fj.xarray.fit(GEV, START, maxima(), dim="year", covariances=("observed", "sandwich"), functions=FUNCTIONS)


def levels(fits):
    return fj.return_levels(fits, [10, 100])


def mean(fits):
    return fj.delta_method(fits, lambda params: {"loc": params["loc"], "twice": 2 * params["scale"]})


FUNCTIONS = {"level": levels, "of": mean, "wald": lambda fits: fits.confidence_intervals()["shape"]}


def test_each_cell_is_to_the_last_bit_the_fit_of_its_data_in_a_batch():
    fits = fj.fit_batch(GEV, START, in_rows(maxima()), covariances=("observed", "sandwich"))
    result = mapped().stack(cell=("lat", "lon"))
    np.testing.assert_array_equal(result.status, fits.status_code)
    has_fit = fits.status_code != fj.Status.TOO_FEW_OBSERVATIONS
    assert has_fit.sum() == 22
    for name in ("loc", "scale", "shape"):
        np.testing.assert_array_equal(result.estimate.sel(parameter=name)[has_fit], fits.params[name][has_fit])
    with pytest.warns(fj.FitWarning):
        covariances = fits.covariance("observed"), fits.covariance("sandwich")
    for name, matrix in zip(("covariance", "covariance_sandwich"), covariances, strict=True):
        found = result[name].transpose("cell", "parameter", "parameter_").values
        np.testing.assert_array_equal(found, matrix)
    np.testing.assert_array_equal(result.standard_error.sel(parameter="loc") > 0, result.status <= 1)
    np.testing.assert_array_equal(result.num_observations, fits.num_observations)
    np.testing.assert_array_equal(result.log_likelihood[has_fit], fits.log_likelihood[has_fit])
    with pytest.warns(fj.FitWarning):
        record = fj.return_levels(fits, [10, 100])
    for name, part in (("level", record.value), ("level_standard_error", record.standard_error)):
        np.testing.assert_allclose(result[name].transpose("cell", ...).values[has_fit], part[has_fit], rtol=1e-12)


def test_a_cell_without_data_has_a_status_and_no_numbers():
    empty, few = mapped().isel(lat=1, lon=2), mapped().isel(lat=3, lon=4)
    for cell, count in ((empty, 0), (few, 2)):
        assert cell.status == fj.Status.TOO_FEW_OBSERVATIONS
        assert cell.num_observations == count
        for name in (*FIRST, "log_likelihood", "decrement"):
            assert np.all(np.isnan(cell[name]))
        assert np.all(np.isnan(cell.level))
    assert mapped().num_observations[0, 0] == 37


@pytest.mark.parametrize("chunks", [{"lat": 2, "lon": 3}, {"lat": 1, "lon": 6}, {"lat": 3, "lon": 4}], ids=str)
def test_chunks_change_no_bit_of_any_result(chunks):
    lazy = fj.xarray.fit(
        GEV,
        START,
        maxima().chunk({"year": -1, **chunks}),
        dim="year",
        covariances=("observed", "sandwich"),
        functions=FUNCTIONS,
    )
    assert lazy.estimate.chunks is not None
    assert lazy.chunksizes["lat"][0] == chunks["lat"]
    xr.testing.assert_identical(lazy.compute(scheduler="threads"), mapped())


def test_blocks_of_threads_compile_once():
    fj.xarray.fit(GEV, START, maxima(), dim="year")  # compiles
    with compiled_programs() as compiled:
        fj.xarray.fit(GEV, START, maxima().chunk({"lat": 1, "lon": 3}), dim="year").compute(scheduler="threads")
    assert not compiled


def test_the_result_keeps_coordinates_and_attributes_and_its_status_is_by_cf():
    result = mapped()
    assert result.estimate.dims == ("lat", "lon", "parameter")
    assert result.covariance.dims == ("lat", "lon", "parameter", "parameter_")
    xr.testing.assert_identical(result.area, maxima().area.drop_vars("year", errors="ignore"))
    assert float(result.height) == 2.0
    assert "year" not in result.coords
    assert result.attrs == {"source": "a gauge"}
    assert list(result.parameter.values) == ["loc", "scale", "shape"]
    meanings = result.status.attrs["flag_meanings"].split()
    assert [meanings[k] for k in (0, 9)] == ["converged", "too_few_observations"]
    assert list(result.status.attrs["flag_values"]) == list(range(10))
    assert result.status.dtype == result.status.attrs["flag_values"].dtype == np.int8
    assert result.covariance_sandwich.attrs["kind"] == "sandwich"
    assert list(result.level_period) == [10.0, 100.0]
    assert result.level_interval.dims == ("lat", "lon", "level_period", "level_end")
    assert result.wald.dims == ("lat", "lon", "wald_dim_0")
    np.testing.assert_allclose(result.of_twice, 2 * result.estimate.sel(parameter="scale"), rtol=1e-12)
    assert "of_loc_standard_error" in result


def test_port_pirie_is_what_is_published():
    """Estimates and errors of `ismev::gev.fit` and its kin, whose optimiser stops some 1e-4 standard errors short."""
    array = xr.DataArray(PORT_PIRIE[:, None, None], dims=("year", "lat", "lon"))
    cell = fj.xarray.fit(GEV, None, array, dim="year").isel(lat=0, lon=0)
    published, errors = [3.87475133, 0.19804888, -0.05011658], [0.02793260, 0.02024787, 0.09825585]
    np.testing.assert_array_less(np.abs(cell.estimate - published), 3e-4 * np.array(errors))
    np.testing.assert_allclose(cell.standard_error, errors, rtol=1e-4)
    there = fj.log_likelihood(GEV, dict(zip(START, published, strict=True)), PORT_PIRIE)
    assert 0 <= float(cell.log_likelihood - there) < 1e-7  # ours is the maximum


# NIST Statistical Reference Datasets, nonlinear regression: Misra1a and DanWood, with their certified values.
MISRA1A = (
    [77.6, 114.9, 141.1, 190.8, 239.9, 289.0, 332.8, 378.4, 434.8, 477.3, 536.8, 593.1, 689.1, 760.0],
    [10.07, 14.73, 17.94, 23.93, 29.61, 35.18, 40.02, 44.82, 50.76, 55.05, 61.01, 66.40, 75.47, 81.78],
    lambda x, a, b, xp: a * (1 - xp.exp(-b * x)),
    (250.0, 5e-4),
    (2.3894212918e02, 5.5015643181e-04),
)
DANWOOD = (
    [1.309, 1.471, 1.490, 1.565, 1.611, 1.680],
    [2.138, 3.421, 3.597, 4.340, 4.882, 5.660],
    lambda x, a, b, xp: a * x**b,
    (0.7, 4.0),
    (7.6886226176e-01, 3.8604055871e00),
)


@pytest.mark.parametrize(("x", "y", "curve", "start", "certified"), [MISRA1A, DANWOOD], ids=["Misra1a", "DanWood"])
def test_curves_are_those_of_curvefit_and_of_nist(x, y, curve, start, certified):
    array = xr.DataArray(y, dims="x", coords={"x": x})
    by_xarray = array.curvefit(
        "x",
        lambda x, a, b: curve(x, a, b, np),
        p0=dict(zip("ab", start, strict=True)),
        kwargs={"ftol": 1e-15, "xtol": 1e-15},
    )

    def log_density(params, y, x):
        return norm.logpdf(y, curve(x, params["a"], params["b"], jnp), params["sigma"])

    model = fj.Model(log_density, constraints={"sigma": fj.positive})
    result = fj.xarray.fit(model, dict(zip("ab", start, strict=True)) | {"sigma": 1.0}, array, dim="x", given=array.x)
    assert result.status == fj.Status.CONVERGED
    estimate = result.estimate.sel(parameter=["a", "b"])
    np.testing.assert_allclose(estimate, by_xarray.curvefit_coefficients, rtol=1e-8)
    np.testing.assert_allclose(estimate, certified, rtol=1e-8)


def line(params, z):
    return {"loc": params["a"] + params["b"] * z, "scale": params["scale"]}


LINE = fj.linked(fj.families.normal, line, constraints={"scale": fj.positive})
LINE_START = {"a": 0.0, "b": 0.0, "scale": 1.0}


@functools.cache
def trend():
    x = xr.DataArray(np.linspace(0, 1, len(YEARS)), dims="year", coords={"year": YEARS}, attrs={"units": "year"})
    return x, (maxima() + 2 * x).assign_attrs(units="mm")


def by_least_squares(y, x):
    keep = np.isfinite(y)
    design = np.stack([np.ones(len(x)), x], 1)[keep]
    return np.linalg.lstsq(design, y[keep], rcond=None)[0]


def test_covariates_are_broadcast_by_name():
    x, y = trend()
    per_cell = x + xr.DataArray(np.arange(4.0), dims="lat") * x**2
    shared, each = (
        fj.xarray.fit(LINE, LINE_START, y, dim="year", given=z) for z in (x, per_cell.transpose("lat", "year"))
    )
    for result, z in ((shared, x), (each, per_cell.isel(lat=2))):
        found = result.estimate.isel(lat=2, lon=5).sel(parameter=["a", "b"])
        np.testing.assert_allclose(found, by_least_squares(y.isel(lat=2, lon=5).values, z.values), rtol=1e-9)
    lazy = fj.xarray.fit(LINE, LINE_START, y.chunk({"lat": 2}), dim="year", given=per_cell.chunk({"lat": 1})).compute()
    xr.testing.assert_equal(lazy, each)
    # The same for all observations of a cell: a constant, which is as good as the intercept.
    assert np.all(fj.xarray.fit(LINE, LINE_START, y, dim="year", given=y.lat).status != 0)


def test_weights_and_starts_are_broadcast_by_name_and_one_cell_is_enough():
    x, y = trend()
    some = xr.DataArray(np.where(YEARS < 1980, 1.0, 0.0), dims="year")
    weighted = fj.xarray.fit(LINE, LINE_START, y, dim="year", given=x, weights=some)
    early = fj.xarray.fit(LINE, LINE_START, y.isel(year=slice(20)), dim="year", given=x.isel(year=slice(20)))
    np.testing.assert_allclose(weighted.estimate, early.estimate, rtol=1e-9)
    starts = LINE_START | {"scale": xr.DataArray(np.linspace(0.5, 2, 6), dims="lon")}
    np.testing.assert_allclose(
        fj.xarray.fit(LINE, starts, y, dim="year", given=x, weights=some).estimate, early.estimate, rtol=1e-6
    )
    one = fj.xarray.fit(LINE, LINE_START, y.isel(lat=2, lon=5), dim="year", given=x)
    assert one.status.shape == ()
    whole = fj.xarray.fit(LINE, LINE_START, y, dim="year", given=x)
    np.testing.assert_array_equal(one.estimate, whole.estimate.isel(lat=2, lon=5))


def test_observations_along_two_dimensions_and_vectors_of_entries():
    x, y = trend()
    flat = xr.DataArray(y.values.reshape(5, 8, 4, 6), dims=("a", "b", "lat", "lon"))
    z = xr.DataArray(x.values.reshape(5, 8), dims=("a", "b"))
    both = fj.xarray.fit(LINE, LINE_START, flat, dim=("b", "a"), given=z)
    np.testing.assert_allclose(
        both.estimate, fj.xarray.fit(LINE, LINE_START, y, dim="year", given=x).estimate, rtol=1e-9
    )

    def log_density(params, y, z):
        return norm.logpdf(y["level"], z @ params["beta"], params["scale"])

    design = xr.concat([xr.ones_like(x), x], "column")
    result = fj.xarray.fit(
        fj.Model(log_density, constraints={"scale": fj.positive}),
        {"beta": np.zeros(2), "scale": 1.0},
        y.to_dataset(name="level"),
        dim="year",
        given=design,
        entry_dims="column",
    )
    assert list(result.parameter.values) == ["beta[0]", "beta[1]", "scale"]
    np.testing.assert_allclose(result.estimate, both.estimate, rtol=1e-6)


def series(params, y):
    return norm.logpdf(y[1:], params["phi"] * y[:-1], params["scale"])


AUTOREGRESSION = fj.dependent(series, constraints={"scale": fj.positive})


MM = (1, 0)
LOGARITHMS = fj.linked(fj.families.gamma, lambda p, z: {"shape": jnp.exp(p["k"]), "rate": jnp.exp(p["a"] + p["b"] * z)})


@pytest.mark.parametrize(
    ("model", "start", "powers"),
    [
        (GEV, START, [(1,), (1,), (0,)]),
        (fj.families.gamma, {"shape": 1.0, "rate": 1.0}, [(0,), (-1,)]),
        (LINE, LINE_START, [MM, (1, -1), MM]),
        (AUTOREGRESSION, {"phi": 0.0, "scale": 1.0}, [(0,), (1,)]),
        (fj.Model(lambda p, y: norm.logpdf(y, p["loc"], 0.5)), {"loc": 1.0}, [(np.nan,)]),
        (fj.Model(lambda p, y: norm.logpdf(y, p["a"] * p["b"], p["s"])), {"a": 1.0, "b": 1.0, "s": 1.0}, [(np.nan,)] * 2 + [(1,)]),
        (LOGARITHMS, {"k": 0.0, "a": 0.0, "b": 0.0}, [(np.nan, 0), (np.nan, 0), (np.nan, -1)]),
    ],
    ids=["gev", "gamma", "line", "series", "a constant in the density", "only a product counts", "logarithms"],
)  # fmt: skip
def test_powers_of_units_follow_where_the_density_scales_and_nowhere_else(model, start, powers):
    layout, values = flatten_parameters(model, start)
    row = jax.ShapeDtypeStruct((9,) if model.is_dependent else (), np.float64)
    z = row if len(powers[0]) == 2 else None
    found = powers_of_parameters(model, layout, values, row, z, tuple(range(len(powers[0]))))
    np.testing.assert_array_equal(found.T, powers)


def test_units_of_products_are_those_of_cf():
    x, y = trend()
    result = fj.xarray.fit(LINE, LINE_START, y.isel(lat=[0], lon=[1]).assign_attrs(units="kg m-2"), dim="year", given=x)
    assert list(result.units.values) == ["kg m-2", "kg m-2 year-1", "kg m-2"]
    half = fj.xarray.fit(LINE, LINE_START, y.isel(lat=[0], lon=[1]), dim="year", given=x.drop_attrs())
    assert list(half.units.values) == ["mm", "", "mm"]
    plain = fj.xarray.fit(LINE, LINE_START, y.isel(lat=[0], lon=[1]).drop_attrs(), dim="year", given=x.drop_attrs())
    assert "units" not in plain.coords


def test_precision_and_integers_are_those_of_the_arrays():
    counts = xr.DataArray(RNG.poisson(4.0, (3, 30)).astype(np.uint16), dims=("cell", "day"))
    result = fj.xarray.fit(fj.families.poisson, {"rate": np.float32(1.0)}, counts, dim="day")
    assert result.estimate.dtype == np.float32
    np.testing.assert_allclose(result.estimate[:, 0], counts.mean("day"), rtol=1e-5)


def wrong(change=lambda array: array, model=GEV, start=START, **arguments):
    return lambda: fj.xarray.fit(model, start, change(maxima()), **({"dim": "year"} | arguments))


def years(calendar):
    return xr.date_range(
        "2000-01-01", periods=len(YEARS), freq="YS", calendar=calendar, use_cftime=calendar != "standard"
    )


def dated(array, calendar):
    return array.assign_coords(year=years(calendar))


X = xr.DataArray(np.linspace(0, 1, len(YEARS)), dims="year", coords={"year": YEARS})
MISUSE = {
    "dimension missing": (wrong(dim="time"), ValueError, "fit: data has no dimension 'time', along which.*it has 'year', 'lat', 'lon'"),
    "dimension twice": (wrong(dim=("year", "year")), ValueError, "names a dimension twice"),
    "dim empty": (wrong(dim=()), ValueError, "dim is empty"),
    "dim and entries": (wrong(entry_dims="year"), ValueError, "'year' is in dim and in entry_dims"),
    "variable without dim": (wrong(lambda a: xr.Dataset({"y": a, "z": a.mean("year")})), ValueError, "fit: data z has no dimension 'year'.*leave this variable out"),
    "Dataset without variables": (wrong(lambda a: xr.Dataset()), ValueError, "data is a Dataset without variables"),
    "no data": (wrong(lambda a: {}), ValueError, "data holds no array"),
    "plain array": (wrong(lambda a: a.values), TypeError, r"fit: data is an array of shape \(40, 4, 6\).*without names of dimensions.*fit_batch"),
    "plain array beside": (wrong(lambda a: {"x": a, "y": a.values}), TypeError, "fit: data y is an array.*without names"),
    "plain weights": (wrong(weights=np.ones(40)), TypeError, "weights is an array.*without names"),
    "dimension of covariates": (wrong(model=LINE, start=LINE_START, given=X.expand_dims(column=3)), ValueError, "fit: given has the dimension 'column'; expected some of 'lat', 'lon', 'year'.*entry_dims"),
    "dimension of weights": (wrong(weights=X.expand_dims(site=3)), ValueError, "weights has the dimension 'site'"),
    "dimension of starts": (wrong(start=START | {"loc": X}), ValueError, "start loc has the dimension 'year'.*one start for each cell"),
    "not aligned": (wrong(model=LINE, start=LINE_START, given=X.assign_coords(year=YEARS + 1)), ValueError, "fit: data and given have different coordinates along 'year', first at place 0: 1960 and 1961. Align.*xarray.align.*reindex_like"),
    "another length": (wrong(model=LINE, start=LINE_START, given=X[:-1]), ValueError, "data and given have 40 and 39 places along 'year'. Align"),
    "mixed calendars": (wrong(lambda a: dated(a, "standard"), model=LINE, start=LINE_START, given=dated(X, "noleap")), ValueError, "different calendars along 'year': standard and noleap.*convert_calendar"),
    "dates": (wrong(model=LINE, start=LINE_START, given=dated(X, "standard").year), TypeError, "fit: given holds dates.*array.dt.year"),
    "dates of cftime": (wrong(model=LINE, start=LINE_START, given=xr.DataArray(np.array([cftime.DatetimeNoLeap(2000, 1, 1)] * 40), dims="year")), TypeError, "given holds dates"),
    "durations": (wrong(model=LINE, start=LINE_START, given=xr.DataArray(pd.to_timedelta(np.arange(40), "D"), dims="year")), TypeError, "given holds durations.*np.timedelta64"),
    "text": (wrong(lambda a: a.astype(str)), TypeError, "data: expected numbers.*Encode text"),
    "objects": (wrong(lambda a: a.astype(object)), TypeError, "data: expected numbers, got an array of dtype object"),
    "complex": (wrong(lambda a: a.astype(complex)), TypeError, "real and imaginary parts"),
    "not decoded": (wrong(lambda a: a.assign_attrs(_FillValue=-999)), ValueError, "data has the attribute _FillValue, so it was opened without decoding.*decode_cf"),
    "reserved dimension": (wrong(lambda a: a.rename(lat="parameter")), ValueError, "'parameter', which is a name in the result. Rename it"),
    "reserved coordinate": (wrong(lambda a: a.assign_coords(status=1)), ValueError, "'status', which is a name in the result"),
    "no cells": (wrong(lambda a: a[:, :0]), ValueError, "'lat' has length 0"),
    "weights missing": (wrong(weights=X.where(X > 0.1)), ValueError, r"weights is missing \(NaN\) where data are not.*fillna"),
    "a series with gaps": (wrong(model=AUTOREGRESSION, start={"phi": 0.0, "scale": 1.0}), ValueError, "missing values.*`dependent`"),
    "chunked along dim": (wrong(lambda a: a.chunk(year=10)), ValueError, r"fit: data is in 4 chunks along 'year'.*\.chunk\({'year': -1, 'lat': 100}\)"),
    "functions no dictionary": (wrong(functions=levels), TypeError, "functions=.*must be a dictionary of functions"),
    "functions that are none": (wrong(functions={"level": 3}), TypeError, r"functions\['level'\] must be a function of a Fit"),
    "what has no numbers": (wrong(functions={"report": lambda fits: fits.summary()}), TypeError, r"functions\['report'\] returned Report"),
    "another number of fits": (wrong(functions={"one": lambda fits: np.ones(1)}), ValueError, r"functions\['one'\] returned an array of shape \(1,\).*for 23 fits"),
    "nothing to learn from": (wrong(lambda a: a.where(False), functions={"level": levels}), ValueError, "no cell has data"),
    "auxiliary measurement": (wrong(model=fj.with_auxiliary(GEV, lambda p, m: 0.0)), ValueError, "auxiliary.*fit_batch"),
    "tolerance": (wrong(lambda a: a.chunk(lat=1), tolerance=-1.0), ValueError, "fit: tolerance=-1.0"),
    "start outside": (wrong(lambda a: a.chunk(lat=1), start=START | {"scale": -1.0}), ValueError, "fit: parameter `scale` starts at -1.0"),
    "density": (wrong(lambda a: a.chunk(lat=1), model=lambda p, y: p["mu"] + y), ValueError, "fit: log_density raised KeyError"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISUSE)
def test_what_cannot_be_obeyed_raises_at_the_call(name):
    call, kind, message = MISUSE[name]
    with pytest.raises(kind, match=f"(?s){message}"):
        call()


def test_masked_arrays_of_dask_and_series_without_gaps_are_fitted():
    masked = dask.array.ma.masked_invalid(maxima().transpose("lat", "lon", "year").data)
    array = xr.DataArray(dask.array.asarray(masked).rechunk((2, 3, -1)), dims=("lat", "lon", "year"))
    result = fj.xarray.fit(GEV, START, array, dim="year").compute(scheduler="threads")
    np.testing.assert_array_equal(result.estimate, mapped().estimate)
    whole = maxima().isel(lat=[2], lon=[1, 2])
    found = fj.xarray.fit(AUTOREGRESSION, {"phi": 0.0, "scale": 1.0}, whole, dim="year")
    assert list(found.units.values) == ["1", "mm"]
    assert np.all(found.status == 0)
    assert np.all(found.num_observations == len(YEARS) - 1)
    single = fj.fit(AUTOREGRESSION, {"phi": 0.0, "scale": 1.0}, whole.isel(lat=0, lon=0).values)
    np.testing.assert_allclose(found.estimate.isel(lat=0, lon=0).sel(parameter="phi"), single.params["phi"], rtol=1e-9)
