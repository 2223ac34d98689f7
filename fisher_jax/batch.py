"""The front door to many fits: `fit_batch`."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from fisher_jax.batch_fitted import BatchFit, joined_fits
from fisher_jax.data_sets import CALLER, DataSets, data_sets, rows_of
from fisher_jax.extras import require
from fisher_jax.feed import Work, first_unsound, fits_of
from fisher_jax.fit import check_optimizer, check_stopping, default_steps
from fisher_jax.fitted import Fit
from fisher_jax.inference.covariance import KINDS
from fisher_jax.information import has_closed_form
from fisher_jax.lanes import Leaves, Plan, Settings
from fisher_jax.model import Model, Sample, as_model
from fisher_jax.optimizers import newton
from fisher_jax.ragged import is_ragged, size_classes
from fisher_jax.solve import default_tolerance
from fisher_jax.status import Status

FIRST_DAMPING, STRONGER_DAMPING = 1e-3, 1.0
QUEUE = 4  # data sets in a device's queue for each of its lanes
_RETRIED = (Status.STEP_LIMIT, Status.STALLED, Status.INDEFINITE, Status.NOT_FINITE, Status.BAD_START)


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


def fit_batch(
    model: Any,
    params: PyTree,
    data: PyTree,
    *,
    given: PyTree = None,
    weights: Any = None,
    params_axis: Any = None,
    data_axis: Any = 0,
    given_axis: Any = None,
    weights_axis: Any = 0,
    optimizer: Any = None,
    tolerance: Any = None,
    max_steps: Any = None,
    covariances: Any = ("observed",),
    retry: bool = True,
    float64_finish: bool = False,
    num_lanes: Any = None,
    mesh: Mesh | None = None,
    progress: bool = False,
) -> BatchFit:
    """Fit a model to many data sets at once, each as `fit` would, none waiting for another.

    Parameters
    ----------
    model : Model or callable
        As for `fit`.
    params : pytree, or None
        Starting values, one for all; one for each with `params_axis`; or `None` for what the model's `initial` makes of each.
    data : pytree, or list
        The observations of all data sets, each leaf with an axis over the data sets: (B, n, …) by default. Data sets of
        different lengths come as a list, one entry for each; `given` and `weights`, if they differ, as lists too.
    given : pytree, optional
        Covariates, one set for all data sets unless `given_axis` says otherwise.
    weights : array, optional
        Frequency weights (B, n), or (n,) with ``weights_axis=None``. A weight of zero leaves an observation out.
    params_axis, data_axis, given_axis, weights_axis : int, None, or pytree of them
        The axis over data sets in each, as in `jax.vmap`: a pytree prefix; `None` for what all share.
    optimizer, tolerance, max_steps
        As for `fit`.
    covariances : tuple of {"observed", "expected", "empirical", "sandwich"}
        The kinds of covariance to be had from the result; each keeps a p × p matrix or two for every fit. ``()`` keeps none.
    retry : bool
        Take up again what ended at the step limit, stalled, at a saddle, not finite or with a bad start: first with a thousand
        times the damping; then from another start (the model's `initial` if it has one, else two conditional standard errors
        off where it ended); then in float64, if it was not and x64 is enabled. The first success counts, and `attempt` tells
        which it was; without any, the first attempt's end stands.
    float64_finish : bool
        Take up every fit made in float32 again in float64 from where it ended (needs x64); results are then float64.
    num_lanes : int, optional
        How many fits each device works on at once; the default keeps the working set within the cache of a CPU, or a GPU busy.
    mesh : jax.sharding.Mesh, optional
        The devices; all local ones by default.
    progress : bool
        Show a bar with the rate and the count of each status (needs the extra `progress`).

    Returns
    -------
    BatchFit
        One fate for each data set; numerical trouble in one is its own status and touches no other.

    Raises
    ------
    ValueError, TypeError
        If the arguments do not fit together, or a start for all lies outside its constraint.

    Notes
    -----
    The step is that of `fit`. Results do not depend on the number of lanes or devices. Compiled once for each model,
    optimiser, number of observations and of lanes; the number of data sets is free. On a CPU, XLA uses one core for
    small steps: to use n, set the environment variable JAX_NUM_CPU_DEVICES=n (or JAX's option jax_num_cpu_devices) before
    anything else of JAX. Not to be called under `jit` or `vmap`; `jax.vmap` of `fit` is, in lock-step.

    Examples
    --------
    >>> import fisher_jax as fj, jax
    >>> draw = lambda key: fj.families.gamma.sample(key, {"shape": 4.0, "rate": 2.0})
    >>> data = jax.vmap(draw)(jax.random.split(jax.random.key(1), 500 * 80)).reshape(500, 80)
    >>> fits = fj.fit_batch(fj.families.gamma, {"shape": 1.0, "rate": 1.0}, data)
    >>> print(fits.converged.all(), fits.params["shape"].shape, fits.standard_errors()["shape"].shape)
    True (500,) (500,)
    """
    model = as_model(model, CALLER)
    _refuse_tracers((params, data, given, weights))
    optimizer = newton() if optimizer is None else optimizer
    check_optimizer(optimizer, CALLER)
    check_stopping(tolerance, max_steps, CALLER)
    kinds = _checked_kinds(covariances, model)
    how = How(model, optimizer, tolerance, max_steps, kinds, _checked_lanes(num_lanes), _all_devices(mesh), progress)
    axes = (params_axis, data_axis, given_axis, weights_axis)
    finish = functools.partial(fit_data_sets, how, retry=retry, float64_finish=float64_finish)
    if is_ragged(data):
        return _fit_ragged(finish, model, params, params_axis, Sample(data, given, weights))
    return finish(data_sets(model, params, Sample(data, given, weights), axes))


def _fit_ragged(
    finish: Callable[[DataSets], BatchFit], model: Model, params: PyTree, params_axis: Any, sample: Sample
) -> BatchFit:
    """Each class of sizes by itself, and the fits in the order of the data sets."""
    if not sample.data:
        raise ValueError(f"{CALLER}: data is an empty list; there are no data sets.")
    given_axis = 0 if is_ragged(sample.given) else None
    parts, order = [], []
    for rows, part in size_classes(model, rows_of(params, params_axis, 0), sample):
        starts = rows_of(params, params_axis, rows)
        parts.append(finish(data_sets(model, starts, part, (params_axis, 0, given_axis, 0))))
        order.append(rows)
    return joined_fits(parts, np.argsort(np.concatenate(order)))


def fit_data_sets(how: How, sets: DataSets, *, retry: bool, float64_finish: bool) -> BatchFit:
    """Fit them, retry what failed, and finish in float64 if asked."""
    work: list[Work] = []
    fits = _run(how, sets, FIRST_DAMPING, work)
    attempt = np.zeros(len(sets), np.int8)
    if retry:
        fits, attempt = _retried(how, sets, fits, attempt, work)
    if float64_finish:
        sets = sets.in_float64()
        again = _run(
            how, sets.started_at(np.where(np.isfinite(fits.free), fits.free, sets.own[0])), FIRST_DAMPING, work
        )
        fits = again
    fits = _blamed(how, sets, fits)
    busy, trips = sum(w.busy for w in work), sum(w.trips for w in work)
    return BatchFit(fits, attempt, np.float64(busy / trips), how.kinds)


def _run(how: How, sets: DataSets, damping: float, work: list[Work]) -> Fit:
    """All fits from their starts, in one record."""
    plan, settings = _plan(how, sets), _settings(how, sets, damping)
    found = fits_of(plan, _chunks(sets, plan.rows), sets.shared, settings, how.kinds, work)
    parts = list(_watched(found, len(sets)) if how.progress else found)
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def _plan(how: How, sets: DataSets) -> Plan:
    lanes = how.num_lanes or default_lanes(sets.num_rows, how.mesh.devices.flat[0].platform)
    return Plan(how.model, sets.layout, how.optimizer, sets.treedef, sets.mapped, lanes, QUEUE * lanes, how.mesh)


def default_lanes(num_rows: int, platform: str) -> int:
    """Lanes × observations that stay in a CPU's cache, or keep an accelerator busy: a power of two."""
    entries, most = (2**14, 1024) if platform == "cpu" else (2**22, 2**16)
    return min(most, 2 ** max(0, (entries // num_rows).bit_length() - 1))


def _settings(how: How, sets: DataSets, damping: float) -> Settings:
    dtype = sets.layout.dtype
    tolerance = default_tolerance(dtype) if how.tolerance is None else how.tolerance
    steps = default_steps(how.optimizer, sets.layout) if how.max_steps is None else how.max_steps
    return Settings(np.asarray(tolerance, dtype), np.int32(steps), np.asarray(damping, dtype))


def _chunks(sets: DataSets, rows: int) -> Iterator[Leaves]:
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


def _retried(how: How, sets: DataSets, fits: Fit, attempt: np.ndarray, work: list[Work]) -> tuple[Fit, np.ndarray]:
    """Take up again what failed and might not have: the ladder of `fit_batch`."""
    how = how._replace(progress=False)
    for rung, start_again in enumerate((_damped_more, _other_start, _in_float64), start=1):
        failed = np.flatnonzero(np.isin(fits.status_code, _RETRIED))
        tried = start_again(how, sets.take(failed), jax.tree.map(lambda leaf, f=failed: leaf[f], fits))
        if not len(failed) or tried is None:
            continue
        rows, again, damping = tried
        found = _run(how, again.take(rows), damping, work) if len(rows) else None
        if found is not None:
            good = found.status_code <= Status.CONVERGED_TO_ROUNDING
            fits = _replaced(fits, failed[rows[good]], jax.tree.map(lambda leaf, g=good: leaf[g], found))
            attempt[failed[rows[good]]] = rung
    return fits, attempt


def _blamed(how: How, sets: DataSets, fits: Fit) -> Fit:
    """With the observation to blame where a fit ended because something was not finite."""
    rows = np.flatnonzero(np.isin(fits.status_code, (Status.BAD_START, Status.NOT_FINITE)))
    plan, suspect = _plan(how, sets), fits.suspect.copy()
    for start in range(0, len(rows), plan.rows):
        part = rows[start : start + plan.rows]
        suspect[part] = first_unsound(plan, sets.started_at(np.asarray(fits.free)).take(part).own, sets.shared)
    return replace(fits, suspect=suspect)


def _replaced(fits: Fit, rows: np.ndarray, by: Fit) -> Fit:
    def put(leaf: np.ndarray, new: np.ndarray) -> np.ndarray:
        leaf = leaf.copy()
        leaf[rows] = new
        return leaf

    return jax.tree.map(put, fits, replace(by, layout=fits.layout))


Retry = tuple[np.ndarray, DataSets, float] | None  # which of the failed, from where, and how much damped


def _damped_more(how: How, sets: DataSets, failed: Fit) -> Retry:
    return np.flatnonzero(failed.status_code != Status.BAD_START), sets, STRONGER_DAMPING


def _other_start(how: How, sets: DataSets, failed: Fit) -> Retry:
    if failed.curvature is None:
        return None
    with np.errstate(divide="ignore"):  # where there is no curvature there is no start: not finite, so left out
        scale = 1.0 / np.sqrt(np.abs(np.diagonal(failed.curvature, axis1=1, axis2=2)))
    signs = np.where(np.arange(scale.shape[1]) % 2 == 0, 2.0, -2.0)
    start = failed.free + signs * scale
    return np.flatnonzero(np.all(np.isfinite(start), axis=1)), sets.started_at(start), FIRST_DAMPING


def _in_float64(how: How, sets: DataSets, failed: Fit) -> Retry:
    if sets.layout.dtype != np.float32 or jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
        return None
    return np.arange(len(sets)), sets.in_float64(), FIRST_DAMPING


def _refuse_tracers(trees: Any) -> None:
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees)):
        raise TypeError(
            f"{CALLER}: runs on the host and cannot be called under jit, vmap or grad. Call it outside, or use jax.vmap of fit."
        )


def _checked_kinds(kinds: Any, model: Model) -> tuple[str, ...]:
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"{CALLER}: covariances names {kind!r}; choose from {', '.join(map(repr, KINDS))}.")
    if "expected" in kinds and not has_closed_form(model):
        raise ValueError(
            f'{CALLER}: covariances names "expected", but the model has no closed form of its information. '
            "Give Model(…, information=…), or choose another kind."
        )
    return kinds


def _checked_lanes(num_lanes: Any) -> int | None:
    if num_lanes is not None and (int(num_lanes) != num_lanes or num_lanes < 1):
        raise ValueError(f"{CALLER}: num_lanes={num_lanes} must be a whole number, at least 1.")
    return None if num_lanes is None else int(num_lanes)


def _all_devices(mesh: Mesh | None) -> Mesh:
    """The mesh's devices in one row, or all local ones, or the one that JAX was told to use."""
    if mesh is not None:
        return _row(tuple(mesh.devices.flat))
    chosen = getattr(jax.config, "jax_default_device", None)
    return _row((chosen,) if isinstance(chosen, jax.Device) else tuple(jax.local_devices()))


@functools.cache
def _row(devices: tuple[Any, ...]) -> Mesh:
    return Mesh(np.array(devices), ("fits",))
