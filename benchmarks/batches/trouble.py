"""What bad data sets cost the good ones: 1 in 100 poisoned, and 1 in 500 that never converge; GEV, n = 50, float64."""

import statistics

import common
import extremes
import jax.numpy as jnp
import numpy as np

import fisher_jax as fj

FALLS_BY = 1 / 3
KINK = 50.0


def with_kinks(params, y):
    """The GEV's log-density; where the data say so, a kink at loc = 10, on which no Newton step ends."""
    return extremes.log_density(params, y["y"]) - y["kink"] * jnp.abs(params["loc"] - 10.0)


MODEL = fj.Model(with_kinks, constraints={"scale": fj.positive})


def poisoned(y, weights):
    """One data set in a hundred: NaN, infinite, constant, all zeros, a huge outlier, or without weights, in turn."""
    y, weights = y.copy(), weights.copy()
    bad = np.arange(0, len(y), 100)
    for kind in range(6):
        rows = bad[kind::6]
        if kind == 0:
            y[rows, 7] = np.nan
        elif kind == 1:
            y[rows, 7] = np.inf
        elif kind == 2:
            y[rows] = 12.0
        elif kind == 3:
            y[rows] = 0.0
        elif kind == 4:
            y[rows, 7] = 1e12
        else:
            weights[rows] = 0.0
    return y, weights, bad


def fit(y, start, weights, kink):
    return fj.fit_batch(MODEL, start, {"y": y, "kink": kink}, weights=weights, params_axis=0)


def good_ones(size, bad):
    return np.setdiff1d(np.arange(size), bad)


def line(name, fits, times, clean_fits, clean_times, bad):
    """The rate beside that of clean data, whether the good ones noticed, and how the bad ones ended."""
    spent, good = statistics.median(times), good_ones(len(fits), bad)
    same = np.array_equal(extremes.columns(fits.params)[good], extremes.columns(clean_fits.params)[good])
    codes, numbers = np.unique(fits.status[bad], return_counts=True)
    ends = ", ".join(f"{count} {fj.Status(int(code)).label}" for code, count in zip(codes, numbers, strict=True))
    part, said = statistics.median(clean_times) / spent, "identical" if same else "DIFFERENT"
    return f"{name:<24}{len(fits) / spent:>9.0f}{part:>10.0%}   > {1 - FALLS_BY:.0%}   {said:<12}{ends}"


def main(arguments):
    y = extremes.maxima(arguments.fits)
    start, weights, straight = extremes.starts(y), np.ones_like(y), np.zeros_like(y)
    y_poisoned, weights_poisoned, poisoned_ones = poisoned(y, weights)
    kinked_ones = np.arange(0, len(y), 500)
    kinked = straight.copy()
    kinked[kinked_ones] = KINK
    runs = {
        "clean": (lambda: fit(y, start, weights, straight), kinked_ones[:0]),
        "1 in 100 poisoned": (lambda: fit(y_poisoned, start, weights_poisoned, straight), poisoned_ones),
        "1 in 500 with a kink": (lambda: fit(y, start, weights, kinked), kinked_ones),
    }
    times, fits = {name: [] for name in runs}, {name: run() for name, (run, _) in runs.items()}
    for _ in range(arguments.laps):
        for name, (run, _) in runs.items():
            times[name].append(common.timed(run)[0])
    print(f"\n{'GEV, n = 50':<24}{'fits/s':>9}{'of clean':>10}   asked   good ones   ends of the bad")
    for name, (_, bad) in runs.items():
        print(line(name, fits[name], times[name], fits["clean"], times["clean"], bad), flush=True)
