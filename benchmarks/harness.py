"""The one harness of the benchmarks: calls timed in turn, problems with a reference in plain JAX, the table of all contenders.

What is compared takes turns in one process, lap after lap, so that a slow moment of the machine meets all; medians over the
laps are reported. A fit counts if it ends within 0.01 standard errors, in every parameter, of a float64 reference: what two
fits from different starts reached, taken to the maximum by Newton's method in plain JAX. Rates are of counted fits. Only the
public API of fisher_jax is used, and of its results only what every version has, so that the same files run against another
version: ``--first PATH`` starts it in processes of its own.
"""

import argparse
import functools
import gc
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp
from jax.flatten_util import ravel_pytree

import fisher_jax as fj

CORES = len(os.sched_getaffinity(0))
CLOSE = 0.01  # standard errors from the reference, in the worst parameter: nearer than that, a fit counts
SAME = 1e-3  # two references that differ by less are one
AS_ACCURATE = 0.002  # what a peer's fraction of counted fits may fall short of ours before its tolerance is tightened
SOME = 2000  # fits in a run that chooses a tolerance or a chunk

parser = argparse.ArgumentParser()
parser.add_argument("--only", default="", help="the questions whose names begin so, as in spots or spots-11")
parser.add_argument("--size", type=int, help="fits in the largest batch (100000, on a GPU ten million)")
parser.add_argument("--laps", type=int, default=5, help="laps of which the median counts (5)")
parser.add_argument("--quick", action="store_true", help="to see that all runs: 500 fits, one lap")
parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="where JAX computes (cpu)")
parser.add_argument("--first", help="the root of another version of fisher_jax, timed in the same run")
parser.add_argument(
    "--gpufit", help="a folder with Gpufit's Python package and its shared library, timed beside on a GPU"
)
parser.add_argument("--serve", help=argparse.SUPPRESS)


def read_settings():
    jax.config.update("jax_enable_x64", True)
    settings = parser.parse_args()
    if settings.size is None:
        settings.size = 10_000_000 if settings.device == "gpu" else 100_000
    if settings.quick:
        settings.size, settings.laps = min(settings.size, 500), 1
    # Two versions and the peers share one GPU: none may take most of its memory at its start.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    jax.config.update("jax_platforms", {"cpu": "cpu", "gpu": "cuda,cpu"}[settings.device])
    return settings


class Problem(NamedTuple):
    """Many data sets and a model; leaves of `start`, `second` and `data` have them along the first axis."""

    model: Any
    log_likelihood: Callable[
        [Any, Any, Any], Any
    ]  # (params, data, given) of one data set in plain JAX, for the reference
    start: Any
    data: Any
    second: Any  # another start, for the reference
    given: Any = None
    given_axis: int | None = None
    options: Mapping[str, Any] = MappingProxyType({})  # of fit_batch

    def first(self, size):
        def cut(tree):
            return jax.tree.map(lambda leaf: leaf[:size], tree)

        given = self.given if self.given_axis is None else cut(self.given)
        return self._replace(start=cut(self.start), data=cut(self.data), second=cut(self.second), given=given)

    def fit(self, **options):
        options = {"start_axis": 0, **self.options, **options}
        if self.given is not None:
            options |= {"given": self.given, "given_axis": self.given_axis}
        fits = fj.fit_batch(self.model, self.start, self.data, **options)
        # Rates are those of programs that run again and again. Before, small batches step on the host.
        while getattr(fits, "engine", "") == "host":
            fits = fj.fit_batch(self.model, self.start, self.data, **options)
        return fits

    def in_float64(self):
        """The same by the default step, for the reference."""

        def exact(tree):
            return jax.tree.map(lambda leaf: leaf.astype(np.float64) if leaf.dtype == np.float32 else leaf, tree)

        return self._replace(start=exact(self.start), given=exact(self.given), options={"covariances": ()})


class Truth(NamedTuple):
    """Estimates and standard errors (B, p), NaN where there is no reference."""

    estimates: np.ndarray
    errors: np.ndarray


class Contender(NamedTuple):
    """A fitter: `measure(size)` returns seconds and the estimates (size, p) of the first data sets, or no estimates."""

    name: str
    measure: Callable[[int], tuple[float, np.ndarray | None]]
    size: int
    truth: Truth
    first: float | None = None  # seconds of the first call, if that has been made


class Question(NamedTuple):
    """One table. `claims` are (row, the beginning of other rows, the ratio of rates asked for)."""

    title: str
    problems: Callable[[int], dict[str, Problem]]  # by row, all of the same data
    claims: list[tuple[str, str, float]]
    peers: Callable[..., list[Contender]] = lambda problems, truths, goal: []  # goal: what fraction of ours counts
    most: int = 100_000
    first_most: int = 20_000  # fits in a lap of the other version


def columns(params):
    """Estimates (B, p); a dictionary's leaves in the order of their names."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(params)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def total(log_density):
    """The log-likelihood of one data set by a density of one observation."""

    def log_likelihood(params, data, given):
        if given is None:
            return jnp.sum(jax.vmap(lambda y: log_density(params, y))(data))
        return jnp.sum(jax.vmap(lambda y, z: log_density(params, y, z))(data, given))

    return log_likelihood


def reference(problem):
    """The maxima near what the library finds from two starts; where these differ, neither counts."""
    exact = problem.in_float64()
    shared = exact.given if exact.given_axis is None else None
    each = exact.given if exact.given_axis is not None else None
    unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], exact.start))[1]

    def derivatives(arguments):
        u, data, given = arguments

        def objective(u):
            return problem.log_likelihood(unravel(u), data, shared if given is None else given)

        return jax.grad(objective)(u), jax.hessian(objective)(u)

    mapped = jax.jit(lambda *arguments: jax.lax.map(derivatives, arguments, batch_size=256))

    def polish(start):
        """Estimates, standard errors, and whether Newton's method has ended at a maximum."""
        u = columns(exact._replace(start=start).fit().params)
        for _ in range(4):
            # Solved by numpy: batched LAPACK calls inside a loop of XLA were seen to wait for ever on two cores.
            gradient, hessian = (np.asarray(part) for part in mapped(u, exact.data, each))
            finite = np.isfinite(gradient).all(axis=1) & np.isfinite(hessian).all(axis=(1, 2))
            information = np.where(finite[:, None, None], -hessian, np.eye(u.shape[1]))
            values, vectors = np.linalg.eigh(information)
            definite = finite & (values[:, 0] > 0)
            inverse = (vectors / np.where(definite[:, None], values, 1.0)[:, None, :]) @ vectors.mT
            errors = np.sqrt(np.diagonal(inverse, axis1=1, axis2=2))
            step = np.where(definite[:, None], np.einsum("bij,bj->bi", inverse, gradient), 0.0)
            u = u + step
        return u, errors, definite & np.all(np.abs(step) < 1e-6 * errors, axis=1)

    first, errors, at_first = polish(exact.start)
    second, other_errors, at_second = polish(exact.second)
    two = at_first & at_second & (np.max(np.abs(first - second) / errors, axis=1) > SAME)
    good = (at_first | at_second) & ~two
    print(
        f"reference: {np.mean(good):.2%} of {len(good)} data sets have one maximum; {np.sum(two)} have two, left out",
        flush=True,
    )
    estimates, errors = (np.where(at_first[:, None], *pair) for pair in ((first, second), (errors, other_errors)))
    return Truth(np.where(good[:, None], estimates, np.nan), np.where(good[:, None], errors, np.nan))


def within(estimates, truth):
    """Which fits end within `CLOSE` of the reference in every parameter."""
    size = len(estimates)
    return np.all(np.abs(estimates - truth.estimates[:size]) < CLOSE * truth.errors[:size], axis=1)


def fraction(estimates, truth):
    """The fraction of the data sets with a reference on which the fit ends at it."""
    has_reference = np.isfinite(truth.errors[: len(estimates), 0])
    return float(within(estimates, truth)[has_reference].mean())


def stopwatch(call, clock=time.perf_counter):
    """Seconds of a call by a clock, and its result, which is waited for."""
    start = clock()
    result = jax.block_until_ready(call())
    return clock() - start, result


def take_turns(calls, laps, *, warm=1, clock=time.perf_counter):
    """Seconds {name: one for each lap} of calls in turn, lap after lap; the `warm` laps before, which compile, do not count."""
    seconds = {name: [] for name in calls}
    for lap in range(-warm, laps):
        for name, call in calls.items():
            spent, _ = stopwatch(call, clock)
            seconds[name] += [spent] * (lap >= 0)
    return seconds


def medians(seconds):
    return {name: statistics.median(laps) for name, laps in seconds.items()}


def memory(kind="VmRSS"):
    """Bytes of this process in memory now; their peak by "VmHWM" (Linux)."""
    return 1024 * int(Path("/proc/self/status").read_text().split(kind + ":")[1].split()[0])


def timed(call):
    """A contender's `measure` by a function that returns its estimates."""

    def measure(*arguments):
        gc.collect()  # outside of the time
        return stopwatch(lambda: call(*arguments))

    return measure


def ours(problem):
    return timed(lambda size: columns(problem.first(size).fit().params))


def tightened(name, make, tolerances, goal, truth, size):
    """The peer with the first of its tolerances by which it is as accurate as we are, or the last."""
    for tolerance in tolerances:
        call = make(tolerance)
        if fraction(call(min(size, SOME)), truth) >= goal - AS_ACCURATE:
            break
    return Contender(f"{name}, tolerance {tolerance:.0e}", timed(call), size, truth)


class Other:
    """Another version of the library, in a process of its own that answers a line by a line."""

    def __init__(self, settings, question, devices):
        paths = [settings.first, os.environ.get("PYTHONPATH", "")]
        # Its batches take one core for each CPU device that JAX is told to make.
        devices = {"JAX_NUM_CPU_DEVICES": str(devices)} if devices > 1 else {}
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | devices
        command = [sys.executable, sys.argv[0], "--serve", question, "--size", str(settings.size)]
        command += ["--device", settings.device]
        self.process = subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def measure(self, row, size):
        self.process.stdin.write(json.dumps([row, size]) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        estimates = np.load(answer["estimates"])
        Path(answer["estimates"]).unlink()
        return answer["seconds"], estimates

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def serve(question, size):
    """The other end of `Other`: what the library prints goes to standard error, answers go to standard output."""
    answers, sys.stdout = sys.stdout, sys.stderr
    print(f"first version: {fj.__file__}")
    problems = question.problems(min(size, question.most))
    for line in sys.stdin:
        row, size = json.loads(line)
        seconds, estimates = ours(problems[row])(size)
        with tempfile.NamedTemporaryFile(suffix=".npy", delete=False) as file:
            np.save(file, estimates)
        print(json.dumps({"seconds": seconds, "estimates": file.name}), file=answers, flush=True)


def answer(name, question, settings):
    """Time all contenders of a question in turn and print its table."""
    size = min(settings.size, question.most)
    problems = question.problems(size)
    first_calls = {row: ours(problem)(size) for row, problem in problems.items()}
    by_likelihood = {problem.log_likelihood: problem for problem in reversed(problems.values())}
    by_likelihood = {key: reference(problem) for key, problem in by_likelihood.items()}
    truths = {row: by_likelihood[problem.log_likelihood] for row, problem in problems.items()}
    contenders = [
        Contender(row, ours(problem), size, truths[row], first_calls[row][0]) for row, problem in problems.items()
    ]
    others = []
    if settings.first:
        versions = {1: "first version"}
        if settings.device == "cpu" and CORES > 1:
            versions[CORES] = "first version, a device a core"
        for devices, label in versions.items():
            other = Other(settings, name, devices)
            others.append(other)
            for row in problems:
                measure = functools.partial(other.measure, row)
                contenders.append(Contender(f"{label}: {row}", measure, min(size, question.first_most), truths[row]))
    main = next(iter(problems))
    contenders += question.peers(problems, truths, fraction(first_calls[main][1], truths[main]))
    rates = compare(question.title, contenders, settings.laps)
    for other in others:
        other.close()
    show_claims(rates, question.claims)


def compare(title, contenders, laps):
    """All in turn, lap after lap; prints the table and returns the rates of counted fits by name."""
    first = [c.measure(c.size)[0] if c.first is None else c.first for c in contenders]
    seconds: list[list[float]] = [[] for _ in contenders]
    estimates: list[Any] = [None] * len(contenders)
    for _ in range(laps):
        for k, contender in enumerate(contenders):
            spent, estimates[k] = contender.measure(contender.size)
            seconds[k].append(spent)
    rates, rows = {}, []
    for k, (name, _, size, truth, _) in enumerate(contenders):
        median = statistics.median(seconds[k])
        rates[name], counted = size / median, "-"
        if estimates[k] is not None:
            rates[name] = within(estimates[k], truth).sum() / median
            counted = f"{fraction(estimates[k], truth):.2%}"
        spread = f"{min(seconds[k]) / median:.2f}-{max(seconds[k]) / median:.2f}"
        compiling = first[k] - median  # what the first call took more than the others
        compiling = f"{compiling:.1f} s" if compiling > 0.05 else "-"
        rows.append([name, str(size), counted, compiling, f"{rates[name]:.4g}", spread])
    main = rates[contenders[0].name]
    for row in rows:
        row.append(f"{main / rates[row[0]]:.3g}" if rates[row[0]] else "∞")
    header = ["fits", "within 0.01 SE", "compiling", "counted fits/s", "laps / median", "first row / it"]
    table(title, header, rows)
    return rates


def show_claims(rates, claims):
    rows = [
        [f"{row} / {other}", f"{rates[row] / rates[other]:.3g}" if rates[other] else "∞", f"{least:.3g}"]
        for row, asked, least in claims
        for other in rates
        if other.startswith(asked) and row in rates and row != other
    ]
    if rows:
        table("", ["ratio", "asked"], rows)


def table(title, header, rows):
    """Print rows whose first entry is a name."""
    widths = [max(len(row[k]) for row in ([title, *header], *rows)) for k in range(len(header) + 1)]
    print()
    for row in ([title, *header], *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("  ".join(cells), flush=True)


def in_threads(call, *arrays):
    """A peer on all cores: one thread for each with its part of the rows."""
    parts = zip(*(np.array_split(array, CORES) for array in arrays), strict=True)
    with ThreadPoolExecutor(CORES) as pool:
        return np.concatenate(list(pool.map(lambda part: call(*part), parts)))


def quietly(call, *arguments):
    """Call a peer without its warnings."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return call(*arguments)


def one_by_one(fit, *arrays):
    """A peer that fits one data set at a time, on the first `size` of them."""
    return lambda size: np.array([quietly(fit, *rows) for rows in zip(*(a[:size] for a in arrays), strict=True)])


def optional(name):
    """A peer's module, or `None` where it is not installed, which is printed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        print(f"{name}: left out, {error}")
        return None
