"""All fits of a batch, and what is tried again where one failed: the ladder of `fit_batch`."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from fisher_jax.errors import require
from fisher_jax.fitting.feed import Work, first_unsound, fits_of
from fisher_jax.fitting.fit import default_steps, is_damped
from fisher_jax.fitting.lanes import Leaves, Plan, Settings
from fisher_jax.fitting.result import Fit
from fisher_jax.fitting.solve import default_tolerance
from fisher_jax.fitting.starts import Starts, initial_starts
from fisher_jax.fitting.status import Status
from fisher_jax.fitting.summary import ATTEMPTS
from fisher_jax.models.dataset import CALLER
from fisher_jax.models.model import Model

STRONGER = 1000.0  # times the damping that the optimiser begins with
QUEUE = 8  # data sets in a device's queue for each of its lanes
_RETRIED = (Status.STEP_LIMIT, Status.STALLED, Status.INDEFINITE, Status.NOT_FINITE, Status.BAD_START)
_FINISHED = (Status.CONVERGED, Status.CONVERGED_TO_ROUNDING, Status.STEP_LIMIT, Status.STALLED)


class How(NamedTuple):
    """What was asked of a batch, beside the data."""

    model: Model
    optimizer: Any
    tolerance: Any
    max_steps: Any
    kinds: tuple[str, ...]
    num_lanes: int | None
    mesh: Mesh
    progress: bool


class Retry(NamedTuple):
    """Which of the failed are taken up again, from where, and with how many times the damping."""

    rows: np.ndarray
    sets: Starts
    damping_factor: float


def fit_data_sets(how: How, sets: Starts, *, retry: bool, float64_finish: bool) -> Fit:
    """Fit them, retry what failed, and finish in float64 if asked."""
    work: list[Work] = []
    keeping = how._replace(kinds=(*how.kinds, "observed"))  # the curvature says where to start again
    fits = _run(keeping if retry else how, sets, 1.0, work)
    attempt = np.zeros(len(sets), np.int8)
    if retry:
        fits, attempt = _retried(keeping._replace(progress=False), sets, fits, attempt, work)
    if not {"observed", "sandwich"} & set(how.kinds):
        fits = replace(fits, curvature=None)
    if float64_finish and sets.layout.dtype == np.float32:
        sets = sets.in_float64()
        fits, attempt = _finished(how._replace(progress=False), sets, fits, attempt, work)
    fits = _blamed(how, sets, fits)
    return replace(fits, attempt=attempt, kinds=how.kinds)


def _run(how: How, sets: Starts, damping_factor: float, work: list[Work]) -> Fit:
    """All fits from their starts, in one record."""
    plan, settings = plan_of(how, sets), settings_of(how, sets, damping_factor)
    found = fits_of(plan, _chunks(sets, plan.rows), sets.shared, settings, how.kinds, work)
    parts = list(_watched(found, len(sets)) if how.progress else found)
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def plan_of(how: How, sets: Starts) -> Plan:
    """What the lanes are compiled for."""
    lanes = how.num_lanes or default_lanes(sets.entries, how.mesh.devices.flat[0].platform)
    return Plan(how.model, sets.layout, how.optimizer, sets.treedef, sets.mapped, lanes, QUEUE * lanes, how.mesh)


def default_lanes(entries: int, platform: str) -> int:
    """So many data sets of so many entries as stay in a CPU's cache, or keep an accelerator busy: a power of two."""
    room, least, most = (2**13, 8, 1024) if platform == "cpu" else (2**22, 1, 2**16)
    return int(np.clip(2 ** ((room // max(entries, 1)).bit_length() - 1), least, most))


def settings_of(how: How, sets: Starts, damping_factor: float) -> Settings:
    """Tolerance, steps and damping, the defaults where nothing was said."""
    dtype = sets.layout.dtype
    tolerance = default_tolerance(dtype) if how.tolerance is None else how.tolerance
    steps = default_steps(how.optimizer, sets.layout) if how.max_steps is None else how.max_steps
    return Settings(np.asarray(tolerance, dtype), np.int32(steps), np.asarray(damping_factor, dtype))


def _chunks(sets: Starts, rows: int) -> Iterator[Leaves]:
    for start in range(0, len(sets), rows):
        yield [leaf[start : start + rows] for leaf in sets.own]


def _watched(found: Iterator[Fit], total: int) -> Iterator[Fit]:
    """The same fits, with a bar that shows the rate and the count of each status."""
    counts: dict[str, int] = {}
    with require("tqdm.auto", "progress", CALLER).tqdm(total=total, unit=" fits") as bar:
        for fits in found:
            codes, numbers = np.unique(fits.status_code, return_counts=True)
            for code, number in zip(codes, numbers, strict=True):
                label = Status(int(code)).label
                counts[label] = counts.get(label, 0) + int(number)
            bar.set_postfix(counts, refresh=False)
            bar.update(len(fits.status_code))
            yield fits


def _retried(how: How, sets: Starts, fits: Fit, attempt: np.ndarray, work: list[Work]) -> tuple[Fit, np.ndarray]:
    """Take up again what failed and might not have, one rung after the other."""
    for rung, start_again in enumerate((_damped_more, _other_start, _in_float64), start=1):
        failed = np.flatnonzero(np.isin(fits.status_code, _RETRIED))
        if not len(failed):
            break
        tried = start_again(how, sets.take(failed), _rows(fits, failed))
        if tried is None or not len(tried.rows):
            continue
        found = _run(how, tried.sets.take(tried.rows), tried.damping_factor, work)
        good = found.status_code <= Status.CONVERGED_TO_ROUNDING
        won = failed[tried.rows[good]]
        fits, attempt[won] = _replaced(fits, won, _rows(found, good)), rung
    return fits, attempt


def _rows(fits: Fit, rows: Any) -> Fit:
    return jax.tree.map(lambda leaf: leaf[rows], fits)


def _replaced(fits: Fit, rows: np.ndarray, by: Fit) -> Fit:
    def put(leaf: np.ndarray, new: np.ndarray) -> np.ndarray:
        leaf = leaf.copy()
        leaf[rows] = new
        return leaf

    return jax.tree.map(put, fits, replace(by, layout=fits.layout, kinds=fits.kinds))


def _damped_more(how: How, sets: Starts, failed: Fit) -> Retry | None:
    if not is_damped(how.optimizer, sets.layout):
        return None
    return Retry(np.flatnonzero(failed.status_code != Status.BAD_START), sets, STRONGER)


def _other_start(how: How, sets: Starts, failed: Fit) -> Retry | None:
    """The model's own start where it is another; else two conditional standard errors off, to either side in turn."""
    curvature, ended = np.asarray(failed.curvature), np.asarray(failed.free)
    with np.errstate(divide="ignore"):  # where there is no curvature there is no start: not finite, so left out
        scale = 1.0 / np.sqrt(np.abs(np.diagonal(curvature, axis1=1, axis2=2)))
    start = ended + np.where(np.arange(scale.shape[1]) % 2 == 0, 2.0, -2.0) * scale
    if how.model.initial is not None:
        initial = initial_starts(how.model, sets)
        another = np.all(np.isfinite(initial), axis=1) & np.any(initial != sets.own[0], axis=1)
        start = np.where(another[:, None], initial, start)
    return Retry(np.flatnonzero(np.all(np.isfinite(start), axis=1)), sets.started_at(start), 1.0)


def _in_float64(how: How, sets: Starts, failed: Fit) -> Retry | None:
    if sets.layout.dtype != np.float32 or not has_float64():
        return None
    return Retry(np.arange(len(sets)), sets.in_float64(), 1.0)


def has_float64() -> bool:
    """Whether JAX was told to compute in float64."""
    return bool(jax.dtypes.canonicalize_dtype(np.float64) == np.float64)


def _finished(how: How, sets: Starts, fits: Fit, attempt: np.ndarray, work: list[Work]) -> tuple[Fit, np.ndarray]:
    """Fits of float32 taken up again in float64, as which the sets are given."""
    rows = np.flatnonzero(np.isin(fits.status_code, _FINISHED))
    wide = replace(jax.tree.map(_widened, fits), layout=sets.layout)
    if not len(rows):
        return wide, attempt
    found = _run(how, sets.take(rows).started_at(np.asarray(fits.free)[rows]), 1.0, work)
    found = replace(found, num_steps=found.num_steps + np.asarray(fits.num_steps)[rows])
    had, has = (codes <= Status.CONVERGED_TO_ROUNDING for codes in (wide.status_code[rows], found.status_code))
    attempt[rows[has & ~had]] = ATTEMPTS.index("float64")
    return _replaced(wide, rows[had | has], _rows(found, had | has)), attempt


def _widened(leaf: np.ndarray) -> np.ndarray:
    return leaf.astype(np.float64) if leaf.dtype == np.float32 else leaf


def _blamed(how: How, sets: Starts, fits: Fit) -> Fit:
    """With the observation to blame where a fit ended because something was not finite."""
    rows = np.flatnonzero(np.isin(fits.status_code, (Status.BAD_START, Status.NOT_FINITE)))
    plan, suspect = plan_of(how, sets), np.array(fits.suspect)
    for start in range(0, len(rows), plan.rows):
        part = rows[start : start + plan.rows]
        suspect[part] = first_unsound(plan, sets.started_at(np.asarray(fits.free)).take(part).own, sets.shared)
    return replace(fits, suspect=suspect)
