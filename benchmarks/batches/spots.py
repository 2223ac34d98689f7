"""Single-molecule spots: Poisson counts in a square of pixels under a Gaussian spot on a flat background, p = 5, float32.

picasso fits a Gaussian taken at the pixels' centres; ours of the same model are compared with it. The integral of the Gaussian
over each pixel, which the counts are drawn from, costs more and is timed beside. Each is held against a float64 reference of
its own model.
"""

import concurrent.futures
import functools
import importlib
import sys
import types

import harness
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf, gammaln

import fisher_jax as fj

NAMES = ("background", "photons", "width", "x", "y")
BACKGROUND, WIDTH = 10.0, 1.3
POSITIVE = dict.fromkeys(("photons", "background", "width"), fj.positive)
LINKED, BY_DENSITY = "linked, expected information", "a plain density"
BY_NEWTON, INTEGRATED = "linked, the default step", "integrals, linked, expected information"
INTEGRATED_DENSITY = "integrals, a plain density"
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)


def integrated(params, pixel):
    def in_pixel(center, position):
        scale = params["width"] * 2.0**0.5
        return 0.5 * (erf((position + 0.5 - center) / scale) - erf((position - 0.5 - center) / scale))

    spot = in_pixel(params["x"], pixel["x"]) * in_pixel(params["y"], pixel["y"])
    return {"rate": params["background"] + params["photons"] * spot}


def at_center(params, pixel):
    squared = ((pixel["x"] - params["x"]) ** 2 + (pixel["y"] - params["y"]) ** 2) / params["width"] ** 2
    peak = params["photons"] / (2.0 * np.pi * params["width"] ** 2)
    return {"rate": params["background"] + peak * jnp.exp(-0.5 * squared)}


def density_of(predictor):
    def log_density(params, count, pixel):
        rate = predictor(params, pixel)["rate"]
        return count * jnp.log(rate) - rate - gammaln(count + 1.0)

    return log_density


def problems(size, side, photons):
    draw = np.random.default_rng(1)
    truth = {
        "x": (side - 1) / 2 + draw.uniform(-0.5, 0.5, size),
        "y": (side - 1) / 2 + draw.uniform(-0.5, 0.5, size),
        "photons": np.maximum(draw.normal(photons, 0.1 * photons, size), 100.0),
        "background": np.full(size, BACKGROUND),
        "width": np.full(size, WIDTH),
    }
    from scipy.special import erf

    def in_pixels(center):
        edges = np.arange(side + 1) - 0.5 - center[:, None]
        return 0.5 * np.diff(erf(edges / (WIDTH * np.sqrt(2.0))), axis=1)

    spot = in_pixels(truth["y"])[:, :, None] * in_pixels(truth["x"])[:, None, :]
    counts = draw.poisson(BACKGROUND + truth["photons"][:, None, None] * spot).reshape(size, -1).astype(np.float32)
    y, x = np.meshgrid(np.arange(side, dtype=np.float32), np.arange(side, dtype=np.float32), indexing="ij")
    pixels = {"x": x.ravel(), "y": y.ravel()}

    def linked(predictor):
        return fj.linked(fj.families.poisson, predictor, constraints=POSITIVE)

    density, exact = density_of(at_center), density_of(integrated)
    log_likelihood, of_integrals = harness.total(density), harness.total(exact)
    newton, scoring = {"covariances": ()}, {"covariances": (), "optimizer": fj.optimizers.fisher_scoring()}
    rows = {
        LINKED: (linked(at_center), log_likelihood, scoring),
        BY_NEWTON: (linked(at_center), log_likelihood, newton),
        BY_DENSITY: (fj.Model(density, constraints=POSITIVE), log_likelihood, newton),
        INTEGRATED: (linked(integrated), of_integrals, scoring),
        INTEGRATED_DENSITY: (fj.Model(exact, constraints=POSITIVE), of_integrals, newton),
    }
    start = starts(counts, pixels)
    return {
        row: harness.Problem(model, log_likelihood, start, counts, truth, given=pixels, options=options)
        for row, (model, log_likelihood, options) in rows.items()
    }


def starts(counts, pixels):
    """Background from the darkest fifth of the pixels, the rest by moments of what lies above it, the width as known."""
    few = counts.shape[1] // 5
    background = np.maximum(np.partition(counts, few, axis=1)[:, :few].mean(axis=1) * 1.25, 0.5)
    above = np.maximum(counts - background[:, None], 0.0)
    photons = np.maximum(above.sum(axis=1), 10.0)
    values = (
        background,
        photons,
        np.full(len(counts), WIDTH),
        above @ pixels["x"] / photons,
        above @ pixels["y"] / photons,
    )
    return {name: value.astype(np.float32) for name, value in zip(NAMES, values, strict=True)}


def picasso(module, problem, side, tolerance, most):
    """Its fits of the first spots, in our parameters."""

    def call(size):
        start = {name: value.astype(np.float64) for name, value in problem.first(size).start.items()}
        peak = start["photons"] / (2 * np.pi * start["width"] ** 2)
        initial = np.stack([peak, start["x"], start["y"], start["width"], start["background"]], axis=1)
        images = problem.data[:size].reshape(-1, side, side)
        run = module.fit_spots_async(module.SPHERICAL, images, initial, True, tolerance, most, harness.CORES)
        concurrent.futures.wait(run.futures)
        peak, x, y, width, background = run.results()[0].T
        return np.stack([background, peak * 2 * np.pi * width**2, width, x, y], axis=1)

    return call


def peers(problems, truths, goal, side):
    # Of its `lib`, which brings windows and sound, picasso's fitter uses a count of workers only.
    lib = types.ModuleType("picasso.lib")
    lib.n_workers = lambda: harness.CORES
    sys.modules["picasso.lib"] = lib
    if not harness.optional("picasso"):
        return []
    importlib.import_module("picasso").lib = lib
    module = harness.optional("picasso.fitting.gaussfit")
    if not module:
        return []
    problem, truth = problems[LINKED], truths[LINKED]
    size = len(problem.data)
    shipped = harness.timed(picasso(module, problem, side, None, None))
    return [
        harness.Contender("picasso, as shipped", shipped, size, truth),
        harness.tightened("picasso", lambda t: picasso(module, problem, side, t, 200), TOLERANCES, goal, truth, size),
    ]


def question(side, photons, linked, by_density):
    return harness.Question(
        f"spots, {side} × {side} pixels, N = {photons}",
        functools.partial(problems, side=side, photons=photons),
        [(LINKED, "picasso, ", linked), (BY_DENSITY, "picasso, ", by_density)],
        functools.partial(peers, side=side),
    )


QUESTIONS = {
    "spots-7": question(7, 1000, 10.0, 5.0),
    "spots-11": question(11, 1000, 8.0, 5.0),
    "spots-faint": question(7, 300, 8.0, 5.0),
}
