"""All fits of a batch, and what is tried again where one failed."""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from fisher_jax.errors import require
from fisher_jax.fitting import engine, workers
from fisher_jax.fitting.lanes import Ended, Settings
from fisher_jax.fitting.loop import maximise
from fisher_jax.fitting.maximization import default_steps, default_tolerance, first_not_finite, make_problem
from fisher_jax.fitting.result import Fit
from fisher_jax.fitting.rows import Leaves, Plan
from fisher_jax.fitting.starts import Starts, finite_rows, initial_starts
from fisher_jax.fitting.status import Status
from fisher_jax.fitting.summary import ATTEMPTS
from fisher_jax.models.dataset import Dataset, at_hand
from fisher_jax.models.likelihood import likelihood, outer_product_at
from fisher_jax.models.model import Model, jit_with_model
from fisher_jax.models.parameters import Layout, merge
from fisher_jax.optimizers.newton import Newton

CAUTIOUS = 0.01  # times the first radius
# Steps by default. At the end of a chunk lanes wait for the slowest, so what takes more than a few is taken up again by itself,
# with all the steps that a fit has. What failed and starts elsewhere arrives soon or hardly ever.
STEPS_AT_FIRST, STEPS_AGAIN = 50, 200
BLOCK = 64  # fits by another's optimiser that are stepped at once, the fastest waiting for the slowest
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
    engine: str | None
    devices: workers.Devices
    progress: bool


class Retry(NamedTuple):
    """Which of the failed are taken up again, from where, and with how much of the first radius."""

    rows: np.ndarray
    starts: Starts
    radius_factor: float


def fit_all(how: How, starts: Starts, *, retry: bool, float64_finish: bool) -> Fit:
    """Fit them, retry what failed, and finish in float64 if asked."""
    with _progress(how.progress, len(starts)) as watch:
        at_first = STEPS_AT_FIRST if retry and isinstance(how.optimizer, Newton) else None
        fits = _run(how, starts, 1.0, watch, most_steps=at_first)
    ran = fits.engine
    if at_first is not None and how.max_steps is None:
        slow = np.flatnonzero(fits.status_code == Status.STEP_LIMIT)
        if len(slow):
            fits = _replaced(fits, slow, _run(how, starts.take(slow), 1.0))
    attempt = np.zeros(len(starts), np.int8)
    if retry:
        fits, attempt = _retried(how, starts, fits, attempt)
    if float64_finish and starts.layout.dtype == np.float32:
        starts = starts.in_float64()
        fits, attempt = _finished(how, starts, fits, attempt)
    fits = _blamed(how, starts, fits)
    if not {"observed", "sandwich"} & set(how.kinds):
        fits = replace(fits, curvature=None)
    return replace(fits, attempt=attempt, engine=ran)


def _plan_of(how: How, starts: Starts) -> tuple[Plan, Leaves, Leaves]:
    """The plan of a batch, and its arrays: those that differ, and those that all share."""
    layout, (data, given, weights) = starts.layout, starts.dataset.parts
    fixed = [i for i, leaf in enumerate(layout.leaves) if leaf.is_fixed]
    rows, treedef = jax.tree.flatten((data, given, weights))
    leaves = [starts.values[i] for i in fixed] + rows
    differs = tuple(starts.values_differ[i] for i in fixed) + starts.dataset.differs
    num_terms = _num_terms(how.model, starts)
    lanes = how.num_lanes or engine.lanes_of_arrays(num_terms, layout.num_free)
    plan = Plan(how.model, layout, how.optimizer, treedef, len(fixed), differs, num_terms, lanes)
    own = [at_hand(leaf) for leaf, mine in zip(leaves, differs, strict=True) if mine]
    return plan, own, [np.asarray(leaf) for leaf, mine in zip(leaves, differs, strict=True) if not mine]


def _num_terms(model: Model, starts: Starts) -> int:
    """How many log-densities a data set has."""
    data, given, _ = starts.dataset.one(0).parts
    if not model.is_dependent:
        return int(np.shape(jax.tree.leaves(data)[0])[0])
    params = starts.layout.constrain(starts.free[0], _first_values(starts))
    return int(jax.eval_shape(model.log_density, params, data, *(() if given is None else (given,))).shape[0])


def _first_values(starts: Starts) -> list[Any]:
    return [leaf[0] if own else leaf for leaf, own in zip(starts.values, starts.values_differ, strict=True)]


def _counts(starts: Starts, num_terms: int) -> tuple[Any, Any]:
    """n of each data set, its terms or the sum of their weights; and how many terms count at all, of each or of all."""
    weights, size = starts.dataset.weights, len(starts)
    if weights is None:
        return np.full(size, num_terms, starts.layout.dtype), np.asarray(num_terms, np.int32)
    weights = np.broadcast_to(np.asarray(weights), (size, np.shape(weights)[-1]))
    return np.sum(weights, axis=1, dtype=starts.layout.dtype), np.sum(weights != 0, axis=1, dtype=np.int32)


def _run(how: How, starts: Starts, radius_factor: float, watch: Any = None, *, most_steps: int | None = None) -> Fit:
    """All fits from their starts, in at most so many steps where the user does not say."""
    plan, own, shared = _plan_of(how, starts)
    layout, dtype = starts.layout, starts.layout.dtype
    tolerance = np.asarray(default_tolerance(dtype) if how.tolerance is None else how.tolerance, dtype)
    if most_steps is None or not isinstance(how.optimizer, Newton):
        most_steps = default_steps(how.optimizer)
    max_steps = int(most_steps if how.max_steps is None else how.max_steps)
    num_observations, num_observed = _counts(starts, plan.num_terms)
    if isinstance(how.optimizer, Newton):
        settings = Settings(tolerance, np.asarray(radius_factor, dtype))
        ended, ran = engine.fit_all(
            plan,
            own,
            shared,
            starts.free,
            num_observed,
            settings,
            max_steps,
            engine=how.engine,
            devices=how.devices,
            watch=watch,
        )
    else:
        ended, ran = _by_another(plan, starts, tolerance, max_steps), "lock-step"
        if watch is not None:
            watch(ended.status)
    started = finite_rows(starts.free)
    reached = layout.constrained_values(ended.u, list(starts.values))
    values = [
        _where(started, np.broadcast_to(new, (len(starts), *leaf.shape)), old)
        for new, old, leaf in zip(reached, starts.values, layout.leaves, strict=True)
    ]
    matrix = functools.partial(engine.information_of_each, plan, own, shared, engine=how.engine, devices=how.devices)
    expected = None
    if "expected" in how.kinds:
        natural = replace(plan, layout=layout.natural())
        expected = engine.information_of_each(
            natural, own, shared, np.asarray(layout.join(values)), "expected", engine=how.engine, devices=how.devices
        )
    return Fit(
        values=values,
        log_likelihood=ended.log_likelihood,
        status_code=ended.status,
        num_steps=ended.num_steps,
        decrement=ended.decrement,
        num_observations=num_observations,
        free=ended.u,
        curvature=ended.information,  # retries look at it; dropped at the end where it was not asked for
        outer_product=matrix(ended.u, "empirical") if {"empirical", "sandwich"} & set(how.kinds) else None,
        expected=expected,
        suspect=np.full(len(starts), -1, np.int32),
        last_step=ended.last_step,
        attempt=np.zeros(len(starts), np.int8),
        layout=layout,
        kinds=how.kinds,
        engine=ran,
    )


def _where(condition: np.ndarray, new: np.ndarray, old: Any) -> np.ndarray:
    if condition.all():
        return np.array(new)  # of its own: what is fixed is the user's array
    return np.where(condition.reshape(-1, *(1,) * (new.ndim - 1)), new, old).astype(new.dtype)


def _by_another(plan: Plan, starts: Starts, tolerance: Any, max_steps: int) -> Ended:
    """Fits by an optimiser that is not one of ours, a block of them in lock-step."""
    static = plan.model, plan.layout, plan.optimizer, starts.treedef, starts.mapped
    _, *own = starts.own
    parts = []
    for at in range(0, len(starts), BLOCK):
        rows = np.minimum(np.arange(at, at + BLOCK), len(starts) - 1)
        block = [leaf[rows] for leaf in own]
        ended = _maxima(*static, starts.free[rows], block, starts.shared, tolerance, np.int32(max_steps))
        parts.append(jax.device_get(ended))
    return Ended(*(np.concatenate(leaves)[: len(starts)] for leaves in zip(*parts, strict=True)))


@functools.partial(jit_with_model, static_argnums=(0, 1, 2, 3, 4))
def _maxima(
    model: Model,
    layout: Layout,
    optimizer: Any,
    treedef: Any,
    mapped: tuple[bool, ...],
    frees: Any,
    own: Leaves,
    shared: Leaves,
    tolerance: Any,
    max_steps: Any,
) -> Ended:
    def one(start: Any, own: Leaves) -> Ended:
        values, *parts = jax.tree.unflatten(treedef, merge(mapped, own, shared))
        problem = make_problem(model, layout, values, Dataset(*parts), start)
        found = maximise(problem, optimizer, tolerance, max_steps)
        return Ended(
            found.free,
            found.log_likelihood,
            found.curvature,
            found.last_step,
            found.decrement,
            found.num_steps,
            found.status,
        )

    return jax.vmap(one)(frees, own)


@contextmanager
def _progress(shown: bool, total: int) -> Iterator[Any]:
    """A bar that shows the rate and the count of each status."""
    if not shown:
        yield None
        return
    counts: dict[str, int] = {}
    lock = threading.Lock()  # workers report at once
    with require("tqdm.auto", "progress").tqdm(total=total, unit=" fits") as bar:

        def watch(status: np.ndarray) -> None:
            with lock:
                for code, number in zip(*np.unique(status, return_counts=True), strict=True):
                    label = Status(int(code)).label
                    counts[label] = counts.get(label, 0) + int(number)
                bar.set_postfix(counts, refresh=False)
                bar.update(len(status))

        yield watch


def _retried(how: How, starts: Starts, fits: Fit, attempt: np.ndarray) -> tuple[Fit, np.ndarray]:
    """Take up again what failed and might not have, one way after the other."""
    for number, start_again in enumerate((_more_cautious, _other_start, _in_float64), start=1):
        failed = np.flatnonzero(np.isin(fits.status_code, _RETRIED))
        if not len(failed):
            break
        tried = start_again(how, starts.take(failed), _rows(fits, failed))
        if tried is None or not len(tried.rows):
            continue
        found = _run(how, tried.starts.take(tried.rows), tried.radius_factor, most_steps=STEPS_AGAIN)
        good = found.status_code <= Status.CONVERGED_TO_ROUNDING
        won = failed[tried.rows[good]]
        fits, attempt[won] = _replaced(fits, won, _rows(found, good)), number
    return fits, attempt


def _rows(fits: Fit, rows: Any) -> Fit:
    return jax.tree.map(lambda leaf: leaf[rows], fits)


def _replaced(fits: Fit, rows: np.ndarray, by: Fit) -> Fit:
    def put(leaf: np.ndarray, new: np.ndarray) -> np.ndarray:
        leaf = leaf.copy()
        leaf[rows] = new
        return leaf

    return jax.tree.map(put, fits, replace(by, layout=fits.layout, kinds=fits.kinds))


def _more_cautious(how: How, starts: Starts, failed: Fit) -> Retry | None:
    if not isinstance(how.optimizer, Newton):
        return None
    return Retry(np.flatnonzero(failed.status_code != Status.BAD_START), starts, CAUTIOUS)


def _other_start(how: How, starts: Starts, failed: Fit) -> Retry | None:
    """The model's own start where it is another; else two conditional standard errors off, to either side in turn."""
    curvature, ended = np.asarray(failed.curvature), np.asarray(failed.free)
    with np.errstate(divide="ignore"):  # where there is no curvature there is no start: not finite, so left out
        scale = 1.0 / np.sqrt(np.abs(np.diagonal(curvature, axis1=1, axis2=2)))
    start = ended + np.where(np.arange(scale.shape[1]) % 2 == 0, 2.0, -2.0) * scale
    if how.model.initial is not None:
        initial = initial_starts(how.model, starts)
        another = np.all(np.isfinite(initial), axis=1) & np.any(initial != starts.free, axis=1)
        start = np.where(another[:, None], initial, start)
    return Retry(np.flatnonzero(np.all(np.isfinite(start), axis=1)), starts.started_at(start), 1.0)


def _in_float64(how: How, starts: Starts, failed: Fit) -> Retry | None:
    if starts.layout.dtype != np.float32 or not has_float64():
        return None
    return Retry(np.arange(len(starts)), starts.in_float64(), 1.0)


def has_float64() -> bool:
    """Whether JAX was told to compute in float64."""
    return bool(jax.dtypes.canonicalize_dtype(np.float64) == np.float64)


def _finished(how: How, starts: Starts, fits: Fit, attempt: np.ndarray) -> tuple[Fit, np.ndarray]:
    """Fits of float32 taken up again in float64, as which the starts are given."""
    rows = np.flatnonzero(np.isin(fits.status_code, _FINISHED))
    wide = replace(jax.tree.map(_widened, fits), layout=starts.layout)
    if not len(rows):
        return wide, attempt
    found = _run(how, starts.take(rows).started_at(np.asarray(fits.free)[rows]), 1.0)
    found = replace(found, num_steps=found.num_steps + np.asarray(fits.num_steps)[rows])
    had, has = (codes <= Status.CONVERGED_TO_ROUNDING for codes in (wide.status_code[rows], found.status_code))
    attempt[rows[has & ~had]] = ATTEMPTS.index("float64")
    return _replaced(wide, rows[had | has], _rows(found, had | has)), attempt


def _widened(leaf: np.ndarray) -> np.ndarray:
    return leaf.astype(np.float64) if leaf.dtype == np.float32 else leaf


def _blamed(how: How, starts: Starts, fits: Fit) -> Fit:
    """With the observation to blame where a fit ended because something was not finite."""
    rows = np.flatnonzero(np.isin(fits.status_code, (Status.BAD_START, Status.NOT_FINITE)))
    if not len(rows):
        return fits
    static = how.model, starts.layout, starts.treedef, starts.mapped
    suspect = np.array(fits.suspect)
    _, *own = starts.own
    for at in range(0, len(rows), BLOCK):
        some = rows[np.minimum(np.arange(at, at + BLOCK), len(rows) - 1)]
        block = [leaf[some] for leaf in own]
        suspect[some] = np.asarray(_suspects(*static, np.asarray(fits.free)[some], block, starts.shared))
    return replace(fits, suspect=suspect)


@functools.partial(jit_with_model, static_argnums=(0, 1, 2, 3))
def _suspects(
    model: Model, layout: Layout, treedef: Any, mapped: tuple[bool, ...], frees: Any, own: Leaves, shared: Leaves
) -> Any:
    def one(free: Any, own: Leaves) -> Any:
        values, *parts = jax.tree.unflatten(treedef, merge(mapped, own, shared))
        target = likelihood(model, layout, values, Dataset(*parts))
        return first_not_finite(target, free, outer_product_at(target, free)[0])

    return jax.vmap(one)(frees, own)
