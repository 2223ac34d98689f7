"""What bad data sets cost the good ones: 1 in 100 poisoned, and 1 in 500 that never converge; GEV, n = 50, float64."""

import extremes
import harness
import jax.numpy as jnp
import numpy as np

import fisher_jax as fj

KINK = 50.0


def log_density(params, y):
    """The GEV's log-density; where the data say so, a kink at loc = 10, on which no Newton step ends."""
    return extremes.log_density(params, y["y"]) - y["kink"] * jnp.abs(params["loc"] - 10.0)


def poisoned(y, weights):
    """One data set in a hundred: NaN, infinite, constant, all zeros, a huge outlier, or without weights, in turn."""
    y, weights = y.copy(), weights.copy()
    bad = np.arange(0, len(y), 100)
    for kind in range(6):
        rows = bad[kind::6]
        if kind == 5:
            weights[rows] = 0.0
        elif kind in (2, 3):
            y[rows] = (12.0, 0.0)[kind - 2]
        else:
            y[rows, 7] = {0: np.nan, 1: np.inf, 4: 1e12}[kind]
    return y, weights, bad


def run(settings):
    model = fj.Model(log_density, constraints={"scale": fj.positive})
    y = extremes.maxima((settings.size, extremes.OBSERVATIONS))
    start, weights, smooth, kinked = extremes.starts(y), np.ones_like(y), np.zeros_like(y), np.zeros_like(y)
    bad_y, bad_weights, poisoned_rows = poisoned(y, weights)
    kinked_rows = np.arange(0, len(y), 500)
    kinked[kinked_rows] = KINK
    none = np.arange(0)
    fits = {}
    truth = harness.reference(extremes.problems(len(y))[extremes.OURS])

    def contender(name, y, weights, kink):
        def call(size):
            fits[name] = fj.fit_batch(model, start, {"y": y, "kink": kink}, weights=weights, start_axis=0)
            return harness.columns(fits[name].params)

        return harness.Contender(name, harness.timed(call), len(y), truth)

    runs = {
        "clean": (contender("clean", y, weights, smooth), none),
        "1 in 100 poisoned": (contender("1 in 100 poisoned", bad_y, bad_weights, smooth), poisoned_rows),
        "1 in 500 with a kink": (contender("1 in 500 with a kink", y, weights, kinked), kinked_rows),
    }
    rates = harness.compare("GEV, n = 50", [part for part, _ in runs.values()], settings.laps)
    harness.show_claims(rates, [("1 in 100 poisoned", "clean", 0.8), ("1 in 500 with a kink", "clean", 0.9)])
    clean = harness.columns(fits["clean"].params)
    rows = []
    for name, (_, bad) in runs.items():
        good = np.setdiff1d(np.arange(len(y)), bad)
        same = np.array_equal(harness.columns(fits[name].params)[good], clean[good], equal_nan=True)
        rows.append(
            [
                name,
                "identical" if same else "DIFFERENT",
                f"{np.mean(fits[name].converged[bad]):.0%}" if len(bad) else "-",
            ]
        )
    harness.table("the other data sets", ["to the last bit", "of the bad: converged"], rows)


QUESTIONS = {"trouble": run}
