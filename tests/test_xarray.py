"""Labelled arrays: each cell is the fit of its data, whatever the chunks; names, coordinates and units are obeyed or raise.

Nearly all tests run one program: straight lines through the forty years of each cell, with weights of one byte.
"""

import functools

import cftime
import dask.array
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import scipy.stats
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
GEV_START = {"loc": 4.0, "scale": 0.2, "shape": 0.0}
X = xr.DataArray(np.linspace(0, 1, len(YEARS)), dims="year", coords={"year": YEARS}, attrs={"units": "year"})


def line(params, z):
    return {"loc": params["a"] + params["b"] * z, "scale": params["scale"]}


LINE = fj.linked(fj.families.normal, line, constraints={"scale": fj.positive})
START = {"a": 0.0, "b": 0.0, "scale": 1.0}


@functools.cache
def levels():
    """Four by six cells of forty years; one without data, one with too few, one with some missing."""
    values = 4.0 + 0.2 * RNG.gumbel(size=(len(YEARS), 4, 6)) + 2 * X.values[:, None, None]
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


def fit_lines(array, **arguments):
    return fj.xarray.fit(LINE, START, array, **({"dim": "year", "given": X} | arguments))


@functools.cache
def mapped():
    return fit_lines(levels())


def test_each_cell_is_to_the_last_bit_the_fit_of_its_data_in_a_batch():
    rows = np.ma.masked_invalid(levels().transpose("lat", "lon", "year").values.reshape(24, -1))
    fits = fj.fit_batch(LINE, START, rows, given=X.values, engine="compiled")
    result = mapped().stack(cell=("lat", "lon")).transpose("cell", ...)
    np.testing.assert_array_equal(result.status, fits.status_code)
    has_fit = fits.status_code != fj.Status.TOO_FEW_OBSERVATIONS
    assert has_fit.sum() == 22
    for name in START:
        np.testing.assert_array_equal(result.estimate.sel(parameter=name)[has_fit], fits.params[name][has_fit])
    with pytest.warns(fj.FitWarning):
        np.testing.assert_array_equal(result.covariance, fits.covariance())
    np.testing.assert_array_equal(result.standard_error.sel(parameter="b") > 0, result.status <= 1)
    np.testing.assert_array_equal(result.num_observations, fits.num_observations)
    np.testing.assert_array_equal(result.log_likelihood[has_fit], fits.log_likelihood[has_fit])


def test_a_cell_without_data_has_a_status_and_no_numbers():
    for cell, count in ((mapped().isel(lat=1, lon=2), 0), (mapped().isel(lat=3, lon=4), 2)):
        assert cell.status == fj.Status.TOO_FEW_OBSERVATIONS
        assert cell.num_observations == count
        for name in ("estimate", "standard_error", "covariance", "log_likelihood", "decrement"):
            assert np.all(np.isnan(cell[name]))
    assert mapped().num_observations[0, 0] == 37


@pytest.mark.parametrize("chunks", [{"lat": 2, "lon": 3}, {"lat": 1, "lon": 6}, {"lat": 3, "lon": 4}], ids=str)
def test_chunks_change_no_bit_of_any_result_and_their_threads_compile_nothing_more(chunks):
    whole = mapped()
    with compiled_programs() as compiled:
        lazy = fit_lines(levels().chunk({"year": -1, **chunks}))
        assert lazy.chunksizes["lat"][0] == chunks["lat"]
        xr.testing.assert_identical(lazy.compute(scheduler="threads"), whole)
    assert not compiled


def test_the_result_keeps_coordinates_and_attributes_and_its_status_is_by_cf():
    result = mapped()
    assert result.estimate.dims == ("lat", "lon", "parameter")
    assert result.covariance.dims == ("lat", "lon", "parameter", "parameter_")
    xr.testing.assert_identical(result.area, levels().area)
    assert float(result.height) == 2.0
    assert "year" not in result.coords
    assert result.attrs == {"source": "a gauge"}
    assert list(result.parameter.values) == ["a", "b", "scale"]
    assert list(result.units.values) == ["mm", "mm year-1", "mm"]
    meanings = result.status.attrs["flag_meanings"].split()
    assert [meanings[k] for k in (0, 9)] == ["converged", "too_few_observations"]
    assert list(result.status.attrs["flag_values"]) == list(range(10))
    assert result.status.dtype == result.status.attrs["flag_values"].dtype == np.int8
    assert result.covariance.attrs["kind"] == "observed"


@pytest.mark.parametrize("store", ["netcdf", "zarr"])
def test_results_are_stored_and_read_as_they_are(tmp_path, store):
    path = tmp_path / f"fits.{store}"
    if store == "netcdf":
        mapped().to_netcdf(path, engine="scipy")
        stored = xr.load_dataset(path, engine="scipy")
    else:
        levels().to_dataset().to_zarr(tmp_path / "data.zarr", consolidated=False)
        data = xr.open_zarr(tmp_path / "data.zarr", chunks={}, consolidated=False)
        lazy = fj.xarray.fit(LINE, START, data.level, dim="year", given=X)
        assert lazy.estimate.chunks is not None
        lazy.to_zarr(path, consolidated=False)
        stored = xr.load_dataset(path, engine="zarr", consolidated=False)
    xr.testing.assert_equal(stored, mapped())
    assert list(stored.status.attrs["flag_values"]) == list(range(10))
    assert stored.status.attrs["flag_meanings"] == mapped().status.attrs["flag_meanings"]
    assert stored.status.dtype == np.int8


def test_cells_and_observations_that_are_stacked_keep_their_index():
    stacked = levels().stack(cell=("lat", "lon"))
    xr.testing.assert_identical(fit_lines(stacked), mapped().stack(cell=("lat", "lon")).transpose("cell", ...))
    lazy = fit_lines(stacked.chunk(cell=7)).compute(scheduler="threads")
    xr.testing.assert_equal(lazy.unstack("cell").transpose("lat", "lon", ...), mapped())
    decade = {"year": pd.MultiIndex.from_product([range(4), range(10)], names=("decade", "rest"))}
    array, x = (
        part.assign_coords(xr.Coordinates.from_pandas_multiindex(decade["year"], "year")) for part in (levels(), X)
    )
    np.testing.assert_array_equal(fit_lines(array, given=x).estimate, mapped().estimate)


def of_pirie(array):
    functions = {
        "level": lambda fits: fj.return_levels(fits, [10, 100]),
        "of": lambda fits: fj.delta_method(fits, lambda params: {"loc": params["loc"], "twice": 2 * params["scale"]}),
        "wald": lambda fits: fits.confidence_intervals()["shape"],
    }
    kinds = ("observed", "sandwich")
    return fj.xarray.fit(GEV, GEV_START, array, dim="year", covariances=kinds, functions=functions)


def test_port_pirie_is_what_is_published_and_functions_are_mapped_over_cells():
    """Estimates and errors of `ismev::gev.fit` and its kin, whose optimiser stops some 1e-4 standard errors short."""
    array = xr.DataArray(PORT_PIRIE[:, None, None], dims=("year", "lat", "lon"))
    array = xr.concat([array.where(False), array], "lon")
    result = of_pirie(array)
    xr.testing.assert_identical(of_pirie(array.chunk(lon=1)).compute(scheduler="threads"), result)
    cell = result.isel(lat=0, lon=1)
    published, errors = [3.87475133, 0.19804888, -0.05011658], [0.02793260, 0.02024787, 0.09825585]
    np.testing.assert_array_less(np.abs(cell.estimate - published), 3e-4 * np.array(errors))
    np.testing.assert_allclose(cell.standard_error, errors, rtol=1e-4)
    there = fj.log_likelihood(GEV, dict(zip(GEV_START, published, strict=True)), PORT_PIRIE)
    assert 0 <= float(cell.log_likelihood - there) < 1e-7  # ours is the maximum

    def log_densities(theta):
        return scipy.stats.genextreme.logpdf(PORT_PIRIE, -theta[2], theta[0], theta[1])

    loc, scale, shape = cell.estimate.values
    quantiles = scipy.stats.genextreme.isf([1 / 10, 1 / 100], -shape, loc, scale)
    np.testing.assert_allclose(cell.level, quantiles, rtol=1e-9)
    assert list(result.level_period) == [10.0, 100.0]
    assert result.level_interval.dims == ("lat", "lon", "level_period", "level_end")
    np.testing.assert_allclose(cell.of_twice, 2 * scale, rtol=1e-12)
    np.testing.assert_allclose(cell.of_loc_standard_error, cell.standard_error[0], rtol=1e-9)
    assert result.wald.dims == ("lat", "lon", "wald_dim_0")
    np.testing.assert_allclose(cell.wald.mean(), shape, rtol=1e-9)
    assert result.covariance_sandwich.attrs["kind"] == "sandwich"
    theta = np.array([loc, scale, shape])
    scores = [
        (log_densities(theta + step) - log_densities(theta - step)) / (2 * step.sum()) for step in 1e-6 * np.eye(3)
    ]
    sandwich = cell.covariance.values @ scores @ np.transpose(scores) @ cell.covariance.values
    np.testing.assert_allclose(cell.covariance_sandwich, sandwich, rtol=1e-6)
    empty = result.isel(lat=0, lon=0)
    assert all(np.all(np.isnan(empty[name])) for name in ("level", "level_interval", "of_twice", "wald"))


def test_extremes_with_a_trend_maximise_the_likelihood_that_scipy_has():
    """Vectors of covariates and of parameters, and data that are a Dataset."""

    def log_density(params, y, z):
        return fj.families.gumbel.log_density({**params, "loc": z @ params["beta"]}, y["level"])

    model = fj.Model(log_density, constraints={"scale": fj.positive})
    start = {"beta": np.array([4.0, 0.0]), "scale": 0.2}
    design = xr.concat([xr.ones_like(X), X], "column")
    maxima = levels().isel(lat=[0], lon=[0, 5])  # three missing, none missing
    result = fj.xarray.fit(model, start, maxima.to_dataset(), dim="year", given=design, entry_dims="column")
    assert list(result.parameter.values) == ["beta[0]", "beta[1]", "scale"]
    assert np.all(result.status == 0)
    for k, missing in enumerate((3, 0)):
        there = np.isfinite(maxima.values[:, 0, k])
        assert np.sum(~there) == missing

        def loss(theta, y=maxima.values[there, 0, k], x=X.values[there]):
            return -np.sum(scipy.stats.gumbel_r.logpdf(y, theta[0] + theta[1] * x, theta[2]))

        theta = scipy.optimize.minimize(
            loss, [4.0, 2.0, 0.2], method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-13, "maxiter": 4000}
        ).x
        cell = result.isel(lat=0, lon=k)
        np.testing.assert_allclose(cell.estimate, theta, atol=2e-6)
        np.testing.assert_allclose(cell.log_likelihood, -loss(theta), rtol=1e-11)
        np.testing.assert_allclose(cell.log_likelihood, -loss(cell.estimate.values), rtol=1e-12)


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


@pytest.mark.parametrize(
    ("x", "y", "curve", "start", "certified"),
    [MISRA1A, pytest.param(*DANWOOD, marks=pytest.mark.exhaustive)],
    ids=["Misra1a", "DanWood"],
)
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


def by_least_squares(y, x):
    keep = np.isfinite(y)
    design = np.stack([np.ones(len(x)), x], 1)[keep]
    return np.linalg.lstsq(design, y[keep], rcond=None)[0]


def test_covariates_are_broadcast_by_name():
    per_cell = X + xr.DataArray(np.arange(4.0), dims="lat") * X**2
    each = fit_lines(levels(), given=per_cell.transpose("lat", "year"))
    for result, z in ((mapped(), X), (each, per_cell.isel(lat=2))):
        found = result.estimate.isel(lat=2, lon=5).sel(parameter=["a", "b"])
        np.testing.assert_allclose(found, by_least_squares(levels().isel(lat=2, lon=5).values, z.values), rtol=1e-9)
    lazy = fit_lines(levels().chunk({"lat": 2}), given=per_cell.chunk({"lat": 1})).compute()
    xr.testing.assert_equal(lazy, each)
    # The same for all observations of a cell: a constant, which is as good as the intercept.
    assert np.all(fit_lines(levels(), given=levels().lat).status != 0)


def test_weights_and_starts_are_broadcast_by_name_and_one_cell_is_enough():
    some = xr.DataArray((YEARS < 1980).astype(np.uint8), dims="year")
    early = by_least_squares(levels().isel(year=slice(20), lat=2, lon=5).values, X.values[:20])
    starts = START | {"scale": xr.DataArray(np.linspace(0.5, 2, 6), dims="lon")}
    for start, rtol in ((START, 1e-9), (starts, 1e-6)):
        weighted = fj.xarray.fit(LINE, start, levels(), dim="year", given=X, weights=some)
        np.testing.assert_allclose(weighted.estimate.isel(lat=2, lon=5)[:2], early, rtol=rtol)
        assert weighted.num_observations[2, 5] == 20
    one = fit_lines(levels().isel(lat=2, lon=5))
    assert one.status.shape == ()
    np.testing.assert_array_equal(one.estimate, mapped().estimate.isel(lat=2, lon=5))


def test_observations_may_lie_along_two_dimensions():
    flat = xr.DataArray(levels().values.reshape(5, 8, 4, 6), dims=("a", "b", "lat", "lon"))
    z = xr.DataArray(X.values.reshape(5, 8), dims=("a", "b"))
    both = fit_lines(flat, dim=("b", "a"), given=z)
    np.testing.assert_allclose(both.estimate, mapped().estimate, rtol=1e-9)


def series(params, y):
    return norm.logpdf(y[1:], params["phi"] * y[:-1], params["scale"])


AUTOREGRESSION = fj.dependent(series, constraints={"scale": fj.positive})


MM = (1, 0)
LOGARITHMS = fj.linked(fj.families.gamma, lambda p, z: {"shape": jnp.exp(p["k"]), "rate": jnp.exp(p["a"] + p["b"] * z)})


@pytest.mark.parametrize(
    ("model", "start", "powers"),
    [
        (GEV, GEV_START, [(1,), (1,), (0,)]),
        (fj.families.gamma, {"shape": 1.0, "rate": 1.0}, [(0,), (-1,)]),
        (LINE, START, [MM, (1, -1), MM]),
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
    y = levels().isel(lat=[0], lon=[1])
    assert list(fit_lines(y.assign_attrs(units="kg m-2")).units.values) == ["kg m-2", "kg m-2 year-1", "kg m-2"]
    assert list(fit_lines(y, given=X.drop_attrs()).units.values) == ["mm", "", "mm"]
    assert "units" not in fit_lines(y.drop_attrs(), given=X.drop_attrs()).coords


def test_counts_in_single_precision_and_their_profile_intervals():
    counts = xr.DataArray(RNG.poisson(4.0, (3, 30)).astype(np.uint16), dims=("cell", "day"))
    functions = {"ends": lambda fits: fits.confidence_intervals(method="profile")["rate"]}
    result = fj.xarray.fit(fj.families.poisson, {"rate": np.float32(1.0)}, counts, dim="day", functions=functions)
    assert result.estimate.dtype == np.float32
    means = counts.mean("day").values
    np.testing.assert_allclose(result.estimate[:, 0], means, rtol=1e-5)
    half = scipy.stats.chi2.ppf(0.95, 1) / 2
    for k in range(2):  # where the log-likelihood is lower by that
        fall = 30 * (means * np.log(means / result.ends[:, k]) - means + result.ends[:, k])
        np.testing.assert_allclose(fall, half, rtol=2e-3)
    big_endian = fj.xarray.fit(fj.families.poisson, {"rate": np.float32(1.0)}, counts.astype(">u2"), dim="day")
    np.testing.assert_array_equal(big_endian.estimate, result.estimate)


def wrong(change=lambda array: array, model=LINE, start=START, **arguments):
    """A function that calls `fit` with valid arguments, of which those given here are replaced by invalid ones."""
    return lambda: fj.xarray.fit(model, start, change(levels()), **({"dim": "year", "given": X} | arguments))


def years(calendar):
    return xr.date_range(
        "2000-01-01", periods=len(YEARS), freq="YS", calendar=calendar, use_cftime=calendar != "standard"
    )


def dated(array, calendar):
    return array.assign_coords(year=years(calendar))


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
    "dimension of covariates": (wrong(given=X.expand_dims(column=3)), ValueError, "fit: given has the dimension 'column'; expected some of 'lat', 'lon', 'year'.*entry_dims"),
    "dimension of weights": (wrong(weights=X.expand_dims(site=3)), ValueError, "weights has the dimension 'site'"),
    "dimension of starts": (wrong(start=START | {"loc": X}), ValueError, "start loc has the dimension 'year'.*one start for each cell"),
    "not aligned": (wrong(given=X.assign_coords(year=YEARS + 1)), ValueError, "fit: data and given have different coordinates along 'year', first at place 0: 1960 and 1961. Align.*xarray.align.*reindex_like"),
    "another length": (wrong(given=X[:-1]), ValueError, "data and given have 40 and 39 places along 'year'. Align"),
    "mixed calendars": (wrong(lambda a: dated(a, "standard"), given=dated(X, "noleap")), ValueError, "different calendars along 'year': standard and noleap.*convert_calendar"),
    "dates": (wrong(given=dated(X, "standard").year), TypeError, "fit: given holds dates.*array.dt.year"),
    "dates of cftime": (wrong(given=xr.DataArray(np.array([cftime.DatetimeNoLeap(2000, 1, 1)] * 40), dims="year")), TypeError, "given holds dates"),
    "durations": (wrong(given=xr.DataArray(pd.to_timedelta(np.arange(40), "D"), dims="year")), TypeError, "given holds durations.*np.timedelta64"),
    "text": (wrong(lambda a: a.astype(str)), TypeError, "data: expected numbers.*Encode text"),
    "objects": (wrong(lambda a: a.astype(object)), TypeError, "data: expected numbers, got an array of dtype object"),
    "complex": (wrong(lambda a: a.astype(complex)), TypeError, "real and imaginary parts"),
    "not decoded": (wrong(lambda a: a.assign_attrs(_FillValue=-999)), ValueError, "data has the attribute _FillValue, so it was opened without decoding.*decode_cf"),
    "reserved dimension": (wrong(lambda a: a.rename(lat="parameter")), ValueError, "'parameter', which is a name in the result. Rename it"),
    "reserved coordinate": (wrong(lambda a: a.assign_coords(status=1)), ValueError, "'status', which is a name in the result"),
    "no cells": (wrong(lambda a: a[:, :0]), ValueError, "'lat' has length 0"),
    "weights missing": (wrong(weights=X.where(X > 0.1)), ValueError, r"weights is missing \(NaN\) where data are not.*fillna"),
    "a series with gaps": (wrong(model=AUTOREGRESSION, start={"phi": 0.0, "scale": 1.0}, given=None), ValueError, "missing values.*`dependent`"),
    "chunked along dim": (wrong(lambda a: a.chunk(year=10)), ValueError, r"fit: data is in 4 chunks along 'year'.*\.chunk\({'year': -1, 'lat': 100}\)"),
    "functions no dictionary": (wrong(functions=len), TypeError, "functions=.*must be a dictionary of functions"),
    "functions that are none": (wrong(functions={"level": 3}), TypeError, r"functions\['level'\] must be a function of a Fit"),
    "what has no numbers": (wrong(functions={"report": lambda fits: fits.summary()}), TypeError, r"functions\['report'\] returned Report"),
    "another number of fits": (wrong(functions={"one": lambda fits: np.ones(1)}), ValueError, r"functions\['one'\] returned an array of shape \(1,\).*for 23 fits"),
    "nothing to learn from": (wrong(lambda a: a.where(False), functions={"size": len}), ValueError, "no cell has data"),
    "auxiliary measurement": (wrong(model=fj.with_auxiliary(LINE, lambda p, m: 0.0)), ValueError, "auxiliary.*fit_batch"),
    "tolerance": (wrong(lambda a: a.chunk(lat=1), tolerance=-1.0), ValueError, "fit: tolerance=-1.0"),
    "start outside": (wrong(lambda a: a.chunk(lat=1), start=START | {"scale": -1.0}), ValueError, "fit: parameter `scale` starts at -1.0"),
    "density": (wrong(lambda a: a.chunk(lat=1), model=lambda p, y, z: p["mu"] + y), ValueError, "fit: log_density raised KeyError"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISUSE)
def test_what_cannot_be_obeyed_raises_at_the_call(name):
    call, kind, message = MISUSE[name]
    mapped()
    with compiled_programs() as compiled, pytest.raises(kind, match=f"(?s){message}"):
        call()
    assert not compiled


def test_masked_arrays_of_dask_are_fitted():
    masked = dask.array.ma.masked_invalid(levels().transpose("lat", "lon", "year").data)
    array = xr.DataArray(dask.array.asarray(masked).rechunk((2, 3, -1)), dims=("lat", "lon", "year"))
    np.testing.assert_array_equal(fit_lines(array).compute(scheduler="threads").estimate, mapped().estimate)


def test_series_without_gaps_are_fitted():
    found = fj.xarray.fit(
        AUTOREGRESSION, {"phi": 0.0, "scale": 1.0}, levels().isel(lat=[2], lon=[1, 2]), dim="year"
    ).isel(lat=0)
    assert list(found.units.values) == ["1", "mm"]
    assert np.all(found.status == 0)
    assert np.all(found.num_observations == len(YEARS) - 1)
    y = levels().values[:, 2, 1]
    np.testing.assert_allclose(found.estimate[0, 0], y[1:] @ y[:-1] / (y[:-1] @ y[:-1]), rtol=1e-9)
