"""A grid of annual maxima, 720 × 1440 cells of sixty, as a labelled array: seconds, memory, and cells per second beside others.

Two processes. One fits the grid by `xarray.fit`, in memory and backed by Dask in two chunkings, and by `fit_batch` the same
data laid out as it takes them, with the same weights; all in turn. Its resident memory is looked at while the labelled array in
memory is fitted, before the other copy exists. The other fits some cells by `xarray.fit`, by a loop of
`scipy.stats.genextreme.fit`, and by xclim's `fit` with method ML, in turn, and counts which end within 0.01 standard errors of
ours. ``python benchmarks/maps.py 90 180`` takes a grid of that size.
"""

import json
import subprocess
import sys
import time

import harness
import numpy as np
from streaming import Watch, imported

GRID, YEARS, MASKED, LAPS = (720, 1440), 60, 0.03, 3
SOME = 60  # cells that the others fit
START = {"loc": 40.0, "scale": 10.0, "shape": 0.05}


def grid(shape):
    """GEV maxima by inversion, masked in a part of the cells."""
    import xarray as xr

    rng = np.random.default_rng(1)
    loc, scale, form = (rng.normal(*about, shape) for about in ((40.0, 5.0), (10.0, 1.0), (0.05, 0.05)))
    values = rng.exponential(size=(YEARS, *shape))
    np.power(values, -form, out=values)
    values -= 1
    values *= scale / form
    values += loc
    values[:, rng.random(shape) < MASKED] = np.nan
    return xr.DataArray(values, dims=("year", "lat", "lon"), attrs={"units": "mm"})


def measure(shape):
    fj = imported()
    model, data = fj.families.gev, grid(shape)

    def labelled(array):
        return lambda: fj.xarray.fit(model, START, array, dim="year").compute(scheduler="threads")

    labelled(data)()
    with Watch() as watch:
        labelled(data)()
    rows = data.values.reshape(YEARS, -1).T
    weights = np.isfinite(rows).astype(np.uint8)
    rows = np.ascontiguousarray(np.where(weights, rows, START["loc"]))
    calls = {"fit_batch, laid out": lambda: fj.fit_batch(model, START, rows, weights=weights)}
    calls["xarray.fit, in memory"] = labelled(data)
    for parts in (4, 12):
        chunks = {"lat": -(-shape[0] // parts), "lon": -(-shape[1] // 2)}
        calls[f"xarray.fit, Dask, {2 * parts} chunks"] = labelled(data.chunk({"year": -1, **chunks}))
    seconds = harness.medians(harness.take_turns(calls, LAPS))
    print(json.dumps({"seconds": seconds, "gigabytes": watch.most / 2**30, "data": data.nbytes / 2**30}))


def compare_others(shape):
    fj = imported()
    import scipy.stats
    import xarray as xr

    array = grid((20, SOME // 20)).stack(cell=("lat", "lon")).reset_index("cell", drop=True)
    array = array.isel(cell=np.flatnonzero(np.isfinite(array.values).all(axis=0)))
    ours = fj.xarray.fit(fj.families.gev, START, array, dim="year")
    many = array.isel(cell=np.arange(50_000) % array.sizes["cell"])
    indices = harness.optional("xclim.indices.stats")
    dated = array.assign_coords(year=np.arange(1960, 1960 + YEARS)).rename(year="time")
    dated = dated.assign_coords(time=xr.date_range("1960-01-01", periods=YEARS, freq="YS"))
    peers = {"scipy.stats.genextreme.fit": lambda: np.array([scipy.stats.genextreme.fit(y) for y in array.values.T])}
    if indices is not None:
        peers["xclim.indices.stats.fit, ML"] = lambda: (
            indices.fit(dated, dist="genextreme", method="ML").transpose("cell", ...).values
        )
    calls = {"xarray.fit": lambda: fj.xarray.fit(fj.families.gev, START, many, dim="year")}
    calls["xarray.fit"]()
    results, rows = {}, {}
    for name, call in {**calls, **peers}.items():
        spent, results[name] = harness.stopwatch(lambda call=call: harness.quietly(call))
        count = many.sizes["cell"] if name in calls else array.sizes["cell"]
        within = 1.0
        if name in peers:
            theirs = results[name][:, [1, 2, 0]] * [1, 1, -1]  # scipy's shape has the other sign, and comes first
            close = np.abs(theirs - ours.estimate.values) < harness.CLOSE * ours.standard_error.values
            within = float(np.mean(np.all(close, axis=1)[ours.status.values <= 1]))
        rows[name] = count / spent, within
    print(json.dumps(rows))


def run(*arguments):
    command = [sys.executable, __file__, *map(str, arguments)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def main(arguments):
    shape = tuple(int(text) for text in arguments[:2]) or GRID
    began = time.perf_counter()
    result = run("measure", *shape)
    base = result["seconds"]["fit_batch, laid out"]
    rows = [[name, f"{seconds:.2f} s", f"{seconds / base:.2f}"] for name, seconds in result["seconds"].items()]
    rows.append(["GiB resident at most, in memory", f"{result['gigabytes']:.2f}", f"{result['data']:.2f} of data"])
    harness.table(f"{shape[0]} × {shape[1]} cells of {YEARS} maxima, GEV, float64", ["", "/ fit_batch"], rows)
    others = run("others", *shape)
    ours = others["xarray.fit"][0]
    rows = [[name, f"{rate:.4g}", f"{within:.2%}", f"{ours / rate:.3g}"] for name, (rate, within) in others.items()]
    title = f"some of these cells, {time.perf_counter() - began:.0f} s in all"
    harness.table(title, ["cells/s", "within 0.01 SE", "ours / it"], rows)


if __name__ == "__main__":
    jobs = {"measure": measure, "others": compare_others}
    if sys.argv[1:2] and sys.argv[1] in jobs:
        jobs[sys.argv[1]](tuple(int(text) for text in sys.argv[2:4]))
    else:
        main(sys.argv[1:])
