"""Batches on a GPU: ``python benchmarks/batches --device gpu``, made for eight minutes. Tables are kept in `benchmarks/results`.

Three rates: from numpy to numpy; the program of one chunk alone, its data on the device; and that of the arrays which take over
where there is no kernel. Large batches repeat the data sets of a smaller one. Fits count that end within 0.01 standard errors
of a reference in float64, found for the first of them. With ``--gpufit FOLDER``, which holds Gpufit's Python package and its
shared library, its fits of the spots stand beside.
"""

import contextlib
import fcntl
import functools
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

import counts
import extremes
import harness
import jax
import numpy as np
import regressions
import spots

import fisher_jax as fj
from fisher_jax.fitting import engine

KNOWN = 2000  # data sets with a reference
SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
SECONDS = 20.0  # of all laps of one size, after which larger ones are left out
RESULTS = Path(__file__).parents[1] / "results"


class Work(NamedTuple):
    """What is fitted: `problems(size)` by row, how many different data sets, how many fits at most, and what is timed."""

    title: str
    problems: object
    different: int
    most: int
    float32: bool = False  # beside the precision of the problem
    arrays: bool = False  # beside the kernel
    peer: bool = False  # Gpufit


def gammas(size):
    draw = np.random.default_rng(4)
    truth = {"shape": draw.uniform(1.0, 6.0, size), "rate": draw.uniform(0.5, 2.0, size)}
    y = draw.gamma(truth["shape"][:, None], 1.0 / truth["rate"][:, None], (size, 50))
    mean, variance = y.mean(axis=1), y.var(axis=1)
    start = {"shape": mean**2 / variance, "rate": mean / variance}
    log_likelihood = harness.total(fj.families.gamma.log_density)
    return {"families.gamma": harness.Problem(fj.families.gamma, log_likelihood, start, y, truth)}


def some_spots(size, side):
    """The two rows that differ on a GPU, with the counts as a camera gives them."""
    problems = spots.problems(size, side, 1000)
    kept = {"linked": problems[spots.BY_NEWTON], "a plain density": problems[spots.BY_DENSITY]}
    return {row: problem._replace(data=problem.data.astype(np.uint16)) for row, problem in kept.items()}


def logistic(size, p):
    """By `linked` alone: a kernel of 8 parameters compiles for a quarter of a minute."""
    return {"linked": regressions.problems(size, p, own_design=False)["linked"]}


WORKS = {
    "gpu-spots-7": Work(
        "spots, 7 × 7 pixels", functools.partial(some_spots, side=7), 2**17, 10**7, arrays=True, peer=True
    ),
    "gpu-spots-11": Work("spots, 11 × 11 pixels", functools.partial(some_spots, side=11), 2**16, 10**6),
    "gpu-gev": Work("GEV, n = 50", extremes.problems, 2**17, 10**6, float32=True, arrays=True),
    "gpu-gamma": Work("gamma, n = 50", gammas, 2**17, 10**6, float32=True),
    "gpu-counts": Work("negative binomial, n = 50, p = 4", counts.problems, 2**15, 10**6, float32=True),
    "gpu-logistic-8": Work("logistic, n = 500, p = 8", functools.partial(logistic, p=8), 2**13, 10**5, float32=True),
    "gpu-logistic-15": Work("logistic, n = 500, p = 15", functools.partial(logistic, p=15), 2**13, 10**5),
}


def repeated(problem, size):
    """As many data sets, the given ones over and over."""
    rows = np.arange(size) % len(jax.tree.leaves(problem.data)[0])
    take = lambda tree: jax.tree.map(lambda leaf: leaf[rows], tree)  # noqa: E731
    return problem._replace(start=take(problem.start), data=take(problem.data), second=take(problem.second))


def in_float32(problem):
    def narrow(tree):
        return jax.tree.map(lambda leaf: leaf.astype(np.float32) if leaf.dtype == np.float64 else leaf, tree)

    given = None if problem.given is None else narrow(problem.given)
    return problem._replace(start=narrow(problem.start), data=narrow(problem.data), given=given)


class Captured(Exception):  # noqa: N818  # no failure: what was looked for is at hand
    """Raised in place of fitting."""


def program_of_a_chunk(problem, size, way):
    """What `fit_batch` runs for one chunk, and its arguments on the device."""
    caught = []

    def catch(*arguments, devices, **_):
        caught.extend((arguments, devices))
        raise Captured

    fit_all, engine.fit_all = engine.fit_all, catch
    with contextlib.suppress(Captured):
        problem.fit()
    engine.fit_all = fit_all
    (plan, own, shared, starts, observed, settings, most), devices = caught
    ((_, fit),), _, size = engine._compiled_fit(
        plan, engine._ways(plan, own, shared, way), size, own, shared, way, devices[:1]
    )
    sizes = np.array([size, most], np.int32)
    padded = [np.resize(leaf, (size, *leaf.shape[1:])) for leaf in own]
    return fit, jax.device_put((padded, shared, np.resize(starts, (size, starts.shape[1])), observed, sizes, settings))


def seconds_of(call):
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def least_seconds(call, laps):
    """Nothing but noise lengthens laps."""
    call()
    seconds = [seconds_of(call)]
    while len(seconds) < laps and sum(seconds) < SECONDS:
        seconds.append(seconds_of(call))
    return min(seconds)


class Row(NamedTuple):
    """A row whose programs are compiled: its problem, the reference, the counted fraction, seconds of the first call."""

    name: str
    problem: object
    truth: object
    counted: float
    first: float
    sizes: list
    programs: dict  # of one chunk, by the way that it is run: the call and its size


def compiled_row(name, problem, work, settings):
    known = problem.first(KNOWN)
    first = seconds_of(lambda: known.fit().values)  # before the reference, whose fits may use the same program
    truth = harness.reference(known)
    counted = harness.fraction(harness.columns(known.fit().params), truth)
    sizes = [size for size in SIZES if size <= min(work.most, settings.size)]
    for size in sizes:
        if size <= 100_000:  # larger batches run by the same program
            repeated(problem, size).fit()
    programs = {}
    for way in ("kernel", "arrays") if work.arrays else (None,):
        size = min(settings.size, work.most, 2**14 if way == "arrays" else 2**20)
        fit, arguments = program_of_a_chunk(repeated(problem, size), size, way)
        programs[way or "its program"] = functools.partial(fit, *arguments), size
    return Row(name, problem, truth, counted, first, sizes, programs)


def timed_row(row, settings):
    """The lines of the table."""
    lines = []

    def add(what, size, first, least):
        rate = f"{row.counted * size / least:.3g}"
        lines.append([f"{row.name}, {what}", str(size), f"{row.counted:.2%}", first, f"{1e3 * least:.2f} ms", rate])

    first = f"{row.first:.1f} s"
    for size in row.sizes:
        batch = repeated(row.problem, size)
        least = least_seconds(lambda batch=batch: batch.fit().values, settings.laps)
        add("numpy to numpy", size, first, least)
        first = "-"
        if least * settings.laps > SECONDS:
            break
    for way, (call, size) in row.programs.items():
        add(f"{way} on the device", size, "-", least_seconds(call, 2 * settings.laps))
    return lines


@contextlib.contextmanager
def taking_turns(how):
    """Compiling together with other questions (fcntl.LOCK_SH), or measuring alone when all have compiled (LOCK_EX)."""
    if "ONE_AT_A_TIME" not in os.environ:
        yield
        return
    with Path(os.environ["ONE_AT_A_TIME"]).open("a") as lock:
        fcntl.flock(lock, how)
        yield


def gpufit_of_spots(problem, truth, settings):
    """Gpufit's fits, at the tolerance that makes them as accurate as ours."""
    sys.path.insert(0, settings.gpufit)
    module = harness.optional("pygpufit.gpufit")
    if module is None:
        return []
    side = int(np.sqrt(problem.data.shape[1]))

    def fit(size, tolerance):
        batch = repeated(problem, size)
        start = batch.start
        peak = start["photons"] / (2 * np.pi * start["width"] ** 2)
        initial = np.stack([peak, start["x"], start["y"], start["width"], start["background"]], axis=1)
        data = np.ascontiguousarray(batch.data.reshape(size, side * side), np.float32)
        begun = time.perf_counter()
        found = module.fit(
            data,
            None,
            module.ModelID.GAUSS_2D,
            initial.astype(np.float32),
            tolerance,
            100,
            None,
            module.EstimatorID.MLE,
            None,
        )[0]
        seconds = time.perf_counter() - begun
        peak, x, y, width, background = found.T
        return np.stack([background, peak * 2 * np.pi * width**2, width, x, y], axis=1), seconds

    table = []
    for tolerance in (1e-4, 1e-5, 1e-6, 1e-7):
        counted = harness.fraction(fit(KNOWN, tolerance)[0], truth)
        size = min(1_000_000, settings.size)
        least = min(fit(size, tolerance)[1] for _ in range(settings.laps))
        table.append(
            [
                f"Gpufit, tolerance {tolerance:.0e}",
                str(size),
                f"{counted:.2%}",
                "-",
                f"{1e3 * least:.2f} ms",
                f"{counted * size / least:.3g}",
            ]
        )
    return table


def run(settings, work):
    with taking_turns(fcntl.LOCK_SH):
        problems = work.problems(min(work.different, settings.size))
        if work.float32:
            problems |= {f"{row}, float32": in_float32(problem) for row, problem in problems.items()}
        compiled = [compiled_row(row, problem, work, settings) for row, problem in problems.items()]
    with taking_turns(fcntl.LOCK_EX):
        rows = [line for row in compiled for line in timed_row(row, settings)]
        if work.peer and settings.gpufit:
            rows += gpufit_of_spots(compiled[-1].problem, compiled[-1].truth, settings)
    card = jax.devices()[0].device_kind
    header = ["fits", "within 0.01 SE", "first call", "least", "counted fits/s"]
    said = f"\n{card}, JAX {jax.__version__}"
    print(said)
    harness.table(work.title, header, rows)
    if settings.device == "gpu":
        RESULTS.mkdir(exist_ok=True)
        with (RESULTS / f"{card.replace(' ', '_')}.txt").open("a") as kept, contextlib.redirect_stdout(kept):
            print(said)
            harness.table(work.title, header, rows)


QUESTIONS = {name: functools.partial(run, work=work) for name, work in WORKS.items()}
