"""What the benchmarks of batches share: fits that count, laps in turn, cost by size, memory, and the tables."""

import argparse
import importlib
import os
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

CORES = os.cpu_count()
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", CORES)

import numpy as np

CLOSE = 0.01  # standard errors from the reference, in the worst parameter: nearer than that, a fit counts
AGREE = 1e-3  # two references that differ by less are one
AS_ACCURATE = 0.002  # what a peer's share of counted fits may fall short of ours before its tolerance is tightened
LAPS = 5
FIRST, SOME = 1000, 2000  # fits in a first call, and in one that chooses a tolerance

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("workload", nargs="?", help="one of them; all in turn if left out")
parser.add_argument("--fits", type=int, default=100_000, help="fits in the largest batch (100000)")
parser.add_argument("--million", action="store_true", help="cost per fit up to a million")
parser.add_argument("--laps", type=int, default=LAPS, help=f"laps of which the median counts ({LAPS})")


class Truth(NamedTuple):
    """Estimates and standard errors (B, p) of a float64 reference, NaN where it found no maximum."""

    estimates: np.ndarray
    errors: np.ndarray


class Contender(NamedTuple):
    """A fitter of the first `size` data sets: `call(size)` returns estimates (size, p). Ours have no `target`."""

    name: str
    call: Callable[[int], np.ndarray]
    size: int
    target: float | None = None
    truth: Truth | None = None  # its own, if its model is another
    cold: float | None = None  # seconds of the first call, if that has been made


class Result(NamedTuple):
    name: str
    size: int
    counted: float
    cold: float
    rate: float
    target: float | None


def reference(fit_from: Callable[[Any], Any], starts: tuple[Any, Any], columns: Callable[[Any], np.ndarray]) -> Truth:
    """From two starts; only maxima that both found count. `columns` puts a pytree of parameters into (B, p)."""
    first, second = (fit_from(start) for start in starts)
    estimates, errors = columns(first.params), columns(quietly(first.standard_errors))
    apart = np.max(np.abs(estimates - columns(second.params)) / errors, axis=1)
    good = first.converged & second.converged & (apart < AGREE)
    print(
        f"reference: {np.mean(good):.2%} of {len(good)} have a maximum found from both starts; "
        f"{np.sum(first.converged & second.converged & ~(apart < AGREE))} with two different ones, left out"
    )
    return Truth(np.where(good[:, None], estimates, np.nan), np.where(good[:, None], errors, np.nan))


def quietly(method: Callable[[], Any]) -> Any:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return method()


def counted(found: np.ndarray, truth: Truth) -> np.ndarray:
    """Which fits end within `CLOSE` of the reference in every parameter."""
    estimates, errors = (part[: len(found)] for part in truth)
    return np.all(np.abs(found - estimates) < CLOSE * errors, axis=1)


def share(found: np.ndarray, truth: Truth) -> float:
    """The part of the data sets with a maximum on which the fit ends at it."""
    has_one = np.isfinite(truth.errors[: len(found), 0])
    return float(counted(found, truth)[has_one].mean())


def compare(contenders: list[Contender], truth: Truth, laps: int) -> list[Result]:
    """All in turn, lap after lap, in one process; the rate is of counted fits, by the median lap."""
    first = [timed(contender.call, min(contender.size, FIRST))[0] for contender in contenders]
    cold = [
        spent if contender.cold is None else contender.cold for spent, contender in zip(first, contenders, strict=True)
    ]
    times: list[list[float]] = [[] for _ in contenders]
    found: list[Any] = [None] * len(contenders)
    for _ in range(laps):
        for k, contender in enumerate(contenders):
            spent, found[k] = timed(contender.call, contender.size)
            times[k].append(spent)
    return [
        Result(
            contender.name,
            contender.size,
            share(found[k], contender.truth or truth),
            cold[k],
            counted(found[k], contender.truth or truth).sum() / statistics.median(times[k]),
            contender.target,
        )
        for k, contender in enumerate(contenders)
    ]


def timed(call: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    found = call(*arguments)
    return time.perf_counter() - start, found


def tightened(
    name: str, make: Callable[[float], Callable[[int], np.ndarray]], tolerances: tuple[float, ...], goal: float,
    truth: Truth, size: int, target: float | None = None, own: Truth | None = None,
) -> Contender:  # fmt: skip
    """The peer with the first of its tolerances that is as accurate as we are, or the last."""
    for tolerance in tolerances:
        call = make(tolerance)
        cold, found = timed(call, min(size, SOME))
        reached = share(found, own or truth)
        if reached >= goal - AS_ACCURATE:
            break
    return Contender(f"{name}, tolerance {tolerance:.0e}", call, size, target, own, cold)


def table(title: str, results: list[Result], ours: str) -> None:
    """Rates, and ours divided by each; beside it the ratio that is asked for."""
    by_name = {result.name: result for result in results}
    own = by_name[ours].rate
    print(
        f"\n{title}\n{'':<52}{'fits':>8}{'within':>9}{'first call':>12}{'counted fits/s':>16}{'ours/its':>10}{'asked':>7}"
    )
    for r in results:
        ratio = "" if r.name == ours else f"{own / r.rate:.3g}" if r.rate else "∞"
        asked = "" if r.target is None else f"{r.target:g}"
        print(
            f"{r.name:<52}{r.size:>8}{r.counted:>9.2%}{r.cold:>10.2f} s{r.rate:>16.0f}{ratio:>10}{asked:>7}", flush=True
        )


def cost_by_size(fit_first: Callable[[int], Any], largest: int, laps: int) -> float:
    """Cost per fit, from a thousand fits up, and the memory of the largest batch.

    Returns the seconds of the first call, compiling and all.
    """
    cold = timed(fit_first, FIRST)[0]
    sizes = [10**k for k in range(3, 7) if 10**k <= largest]
    before = resident()
    print("\nfits       µs per fit")
    for size in sizes:
        runs = [timed(fit_first, size) for _ in range(laps if size < 10**6 else 1)]
        spent = statistics.median(spent for spent, _ in runs)
        print(f"{size:<11}{1e6 * spent / size:>10.2f}", flush=True)
        del runs
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"first call, compiling: {cold:.1f} s")
    print(f"memory at {sizes[-1]} fits: {max(0.0, peak - before):.0f} MiB above the data and what was compiled")
    return cold


def resident() -> float:
    """Resident memory now, in MiB."""
    with open("/proc/self/status", encoding="ascii") as lines:  # noqa: PTH123
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def optional(name: str) -> Any:
    """A peer's module, or `None` and a word where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        print(f"{name}: left out, {error}")
        return None
