"""Single-molecule spots: Poisson counts in a square of pixels under a Gaussian spot on a flat background, p = 5.

picasso fits a Gaussian taken at the pixels' centres, which is cheaper than its integral over them; its fits are held
against a float64 reference of that model, and ours of that model is timed beside it.
"""

import concurrent.futures
import importlib
import sys
import types
from typing import Any

import common
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf

import fisher_jax as fj

NAMES = ("x", "y", "photons", "background", "width")
BACKGROUND, WIDTH = 10.0, 1.3
POSITIVE = dict.fromkeys(("photons", "background", "width"), fj.positive)
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)


def integrated(params, pixel):
    def in_pixel(centre, edge):
        scaled = (edge - centre + jnp.array([0.5, -0.5], edge.dtype)) / (
            params["width"] * np.sqrt(2.0).astype(edge.dtype)
        )
        upper, lower = erf(scaled)
        return 0.5 * (upper - lower)

    spot = in_pixel(params["x"], pixel["x"]) * in_pixel(params["y"], pixel["y"])
    return {"rate": params["background"] + params["photons"] * spot}


def at_centre(params, pixel):
    squared = ((pixel["x"] - params["x"]) ** 2 + (pixel["y"] - params["y"]) ** 2) / params["width"] ** 2
    peak = params["photons"] / (2.0 * np.pi * params["width"] ** 2)
    return {"rate": params["background"] + peak * jnp.exp(-0.5 * squared)}


INTEGRATED = fj.linked(fj.families.poisson, integrated, constraints=POSITIVE)
AT_CENTRE = fj.linked(fj.families.poisson, at_centre, constraints=POSITIVE)


def pixels(side, dtype):
    y, x = np.meshgrid(np.arange(side, dtype=dtype), np.arange(side, dtype=dtype), indexing="ij")
    return {"x": x.ravel(), "y": y.ravel()}


def spots(size, side, photons, seed=1):
    """Counts (B, side²) and the parameters that made them."""
    draw = np.random.default_rng(seed)
    truth = {
        "x": (side - 1) / 2 + draw.uniform(-0.5, 0.5, size),
        "y": (side - 1) / 2 + draw.uniform(-0.5, 0.5, size),
        "photons": np.maximum(photons(draw, size), 100.0),
        "background": np.full(size, BACKGROUND),
        "width": np.full(size, WIDTH),
    }
    from scipy.special import erf

    def in_pixels(centre):
        edges = np.arange(side + 1) - 0.5 - centre[:, None]
        return 0.5 * np.diff(erf(edges / (WIDTH * np.sqrt(2.0))), axis=1)

    rate = in_pixels(truth["y"])[:, :, None] * in_pixels(truth["x"])[:, None, :]
    rate = BACKGROUND + truth["photons"][:, None, None] * rate
    return draw.poisson(rate).reshape(size, -1).astype(np.uint16), truth


def starts(counts, side, dtype):
    """Background from the darkest fifth of the pixels, the rest by moments of what lies above it, the width as known."""
    counts = counts.astype(np.float32)
    place = pixels(side, np.float32)
    darkest = np.partition(counts, side * side // 5, axis=1)[:, : side * side // 5]
    background = np.maximum(darkest.mean(axis=1) * 1.25, 0.5)
    above = np.maximum(counts - background[:, None], 0.0)
    photons = np.maximum(above.sum(axis=1), 10.0)
    found = {
        "x": above @ place["x"] / photons,
        "y": above @ place["y"] / photons,
        "photons": photons,
        "background": background,
        "width": np.full(len(counts), WIDTH),
    }
    return {name: value.astype(dtype) for name, value in found.items()}


def fit(model, counts, side, dtype, start=None, **options):
    start = starts(counts, side, dtype) if start is None else start
    return fj.fit_batch(
        model,
        start,
        counts,
        given=pixels(side, dtype),
        params_axis=0,
        **{"optimizer": fj.optimizers.fisher_scoring(), "covariances": (), **options},
    )


def columns(params):
    return np.stack([np.asarray(params[name], np.float64) for name in NAMES], axis=1)


def gaussfit() -> Any:
    """picasso's fitter. Of its `lib`, which brings sound and windows, it uses a count of workers only."""
    lib = types.ModuleType("picasso.lib")
    lib.n_workers = lambda: common.CORES
    sys.modules.setdefault("picasso.lib", lib)
    try:
        sys.modules["picasso"] = importlib.import_module("picasso")
        sys.modules["picasso"].lib = lib
    except ImportError as error:
        print(f"picasso: left out, {error}")
        return None
    return common.optional("picasso.fitting.gaussfit")


def picasso(module, counts, side, tolerance, most):
    """Its fits of the first spots, in our parameters."""

    def call(size):
        first = counts[:size]
        start = starts(first, side, np.float64)
        peak = start["photons"] / (2 * np.pi * start["width"] ** 2)
        initial = np.stack([peak, start["x"], start["y"], start["width"], start["background"]], axis=1)
        images = first.reshape(-1, side, side).astype(np.float32)
        run = module.fit_spots_async(module.SPHERICAL, images, initial, True, tolerance, most, common.CORES)
        concurrent.futures.wait(run.futures)
        peak, x, y, width, background = run.results()[0].T
        return np.stack([x, y, peak * 2 * np.pi * width**2, background, width], axis=1)

    return call


def one(title, side, photons, arguments, cold):
    counts, made_by = spots(arguments.fits, side, photons)

    def truth(model):
        exact = {"optimizer": fj.optimizers.newton(), "covariances": ("observed",)}
        return common.reference(
            lambda start: fit(model, counts, side, np.float64, start, **exact), (None, made_by), columns
        )

    exact, exact_at_centre = truth(INTEGRATED), truth(AT_CENTRE)

    def ours(model, dtype, **options):
        return lambda size: columns(fit(model, counts[:size], side, dtype, **options).params)

    size, single = arguments.fits, np.float32
    ours_name = "fit_batch float32, Fisher scoring"
    newton = {"optimizer": fj.optimizers.newton()}
    contenders = [
        common.Contender(ours_name, ours(INTEGRATED, single), size),
        common.Contender("fit_batch float64, Fisher scoring", ours(INTEGRATED, np.float64), size),
        common.Contender("fit_batch float32, Newton (the default)", ours(INTEGRATED, single, **newton), size),
        common.Contender("fit_batch float32, picasso's model", ours(AT_CENTRE, single), size, truth=exact_at_centre),
    ]
    spent, found = common.timed(contenders[0].call, min(size, common.SOME))
    contenders[0] = contenders[0]._replace(cold=cold or spent)
    module = gaussfit()
    if module is not None:
        goal = common.share(found, exact)
        as_shipped = picasso(module, counts, side, None, None)
        contenders += [
            common.Contender("picasso, as shipped", as_shipped, size, truth=exact_at_centre),
            common.tightened(
                "picasso", lambda t: picasso(module, counts, side, t, 200), TOLERANCES, goal, exact, size, 4.0, exact_at_centre
            ),
        ]  # fmt: skip
    common.table(title, common.compare(contenders, exact, arguments.laps), ours_name)


def main(arguments):
    bright, faint = (lambda draw, size: draw.normal(1000.0, 100.0, size)), (lambda draw, size: np.full(size, 300.0))
    counts, _ = spots(10**6 if arguments.million else arguments.fits, 7, bright)
    largest = len(counts)
    cold = common.cost_by_size(lambda size: fit(INTEGRATED, counts[:size], 7, np.float32), largest, arguments.laps)
    for side in (7, 11):
        for said, photons in (("N(1000, 100)", bright), ("300", faint)):
            title = f"spots of {side} × {side} pixels, {said} photons"
            one(title, side, photons, arguments, cold if side == 7 else None)
