"""Many fits: where they start, all of them run, and what is tried again where one failed."""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.blocks import map_blocks
from fisher_jax.errors import require
from fisher_jax.fitting import chunks, engine, workers
from fisher_jax.fitting.compiled_loop import maximize
from fisher_jax.fitting.lanes import Settings
from fisher_jax.fitting.maximization import (
    Solution,
    default_steps,
    default_tolerance,
    first_not_finite,
    make_problem,
    start_at,
)
from fisher_jax.fitting.padding import count_terms
from fisher_jax.fitting.result import Fit
from fisher_jax.fitting.row_program import Leaves, Plan
from fisher_jax.fitting.status import Status
from fisher_jax.fitting.summary import ATTEMPTS
from fisher_jax.models.constraints import Interval, Unconstrained
from fisher_jax.models.dataset import (
    Dataset,
    axis_first,
    axis_of_each,
    common_size,
    first_of,
    to_numpy_unless_on_device,
)
from fisher_jax.models.likelihood import at_modes, likelihood, outer_product_at, term_of, terms_at_once
from fisher_jax.models.model import Model, check_start, flatten_parameters, starting_parameters
from fisher_jax.models.parameters import Layout, Values, in_key_order, key_order, merge, split_by, typed
from fisher_jax.models.programs import jit_with_model
from fisher_jax.optimizers.newton import Newton

CAUTIOUS = 0.01  # times the first radius
# Steps by default. At the end of a chunk lanes wait for the slowest, so what takes more than a few is taken up again by itself,
# with all the steps that a fit has. A retry from another start converges early or not at all.
STEPS_AT_FIRST, STEPS_AGAIN = 50, 200
BLOCK = 64  # fits by an optax transformation that are stepped at once, the fastest waiting for the slowest
STARTS_AT_ONCE, ENTRIES_AT_ONCE = 4096, 2**22  # data sets whose starts are computed at once, and entries of theirs
RETRIED = (Status.STEP_LIMIT, Status.STALLED, Status.INDEFINITE, Status.NOT_FINITE, Status.BAD_START)
FINISHED = (Status.CONVERGED, Status.CONVERGED_TO_ROUNDING, Status.STEP_LIMIT, Status.STALLED)


@dataclass(frozen=True)
class Starts:
    """The starts u (B, p) of many fits, the array leaves of their parameters, and their data sets.

    `values_differ` is true for the leaves that have an axis over the fits. Those of estimated parameters repeat u.
    """

    layout: Layout
    free: np.ndarray
    values: Values
    values_differ: tuple[bool, ...]
    dataset: Dataset

    def __len__(self) -> int:
        return len(self.free)

    @property
    def varying(self) -> Leaves:
        """The starts, and then every array that differs among the fits."""
        return [self.free, *map(np.asarray, split_by(self.mapped, self._leaves)[0])]

    @property
    def shared(self) -> Leaves:
        """The arrays that are common to all."""
        return split_by(self.mapped, self._leaves)[1]

    @property
    def mapped(self) -> tuple[bool, ...]:
        """For each leaf of (values, data, given, weights, strength), whether it differs among the fits."""
        return self.values_differ + self.dataset.differs + self.dataset.strength_differs

    @property
    def treedef(self) -> Any:
        """What puts (values, data, given, weights, strength) together."""
        return jax.tree.structure((self.values, *self.dataset.with_strength))

    @property
    def _leaves(self) -> Leaves:
        return jax.tree.leaves((self.values, *self.dataset.with_strength))

    def take(self, rows: Any) -> "Starts":
        """Some of the fits."""
        values = [
            leaf[rows] if varying else leaf for leaf, varying in zip(self.values, self.values_differ, strict=True)
        ]
        return replace(self, free=self.free[rows], values=values, dataset=self.dataset.take(rows))

    def replace_starts(self, free: np.ndarray) -> "Starts":
        """The same from other starts (B, p)."""
        return replace(self, free=np.asarray(free, self.layout.dtype))

    def in_float64(self) -> "Starts":
        """The same with parameters in float64."""
        return replace(self, layout=replace(self.layout, dtype=np.dtype(np.float64))).replace_starts(self.free)


def make_starts(model: Model, params: PyTree, axis: Any, dataset: Dataset) -> Starts:
    """Check and flatten the start parameters of many fits; where there are none, those of the model's `initial`."""
    assert dataset.size is not None
    if params is None:
        data, given, _ = dataset.one(0).parts
        params = starting_parameters(model, None, data, given)
        layout, values = flatten_parameters(model, params)
        check_something_estimated(layout)
        values, free = initial_starts(model, layout, dataset)
        return Starts(layout, free, values, (True,) * len(values), dataset)
    marked = axis_of_each(params, axis, "start")
    first = in_key_order(first_of(axis_first(params, marked), marked), key_order(params))
    layout, _ = flatten_parameters(model, first)
    check_something_estimated(layout)
    marks = layout.blocks(marked)
    blocks = typed(layout, layout.blocks(params))
    values = [axis_first(block, mark) for block, mark in zip(blocks, marks, strict=True)]
    differ = tuple(mark.number is not None for mark in jax.tree.leaves(marks))
    return Starts(layout, _starts(layout, values, differ, dataset.size), values, differ, dataset)


def num_starts(params: PyTree, axis: Any) -> int:
    """How many fits there are starts for; zero where it has one for all."""
    return common_size({"start": (params, axis_of_each(params, axis, "start"))})


def check_starts(model: Model, params: PyTree, axis: Any, dataset: Dataset, count: int) -> None:
    """Raise for starting parameters of another number of data sets; and for one of each where one for all was announced.

    `dataset` is one of the data sets.
    """
    marked = axis_of_each(params, axis, "start")
    axis_first(params, marked)
    size = common_size({"start": (params, marked)})
    if size not in (0, count):
        raise ValueError(
            f"start has values for {size} data sets, but there are {count}. "
            "Give one start for each, or one for all with start_axis=None."
        )
    # A stack of starts taken for one start would have as many parameters as all fits together, and matrices of their square.
    leaves, treedef = jax.tree.flatten(params)
    each = [hasattr(leaf, "dtype") and np.ndim(leaf) > 0 and np.shape(leaf)[0] == count for leaf in leaves]
    if size or not any(each) or _accepts(model, params, dataset):
        return
    first = [leaf[0] if varying else leaf for leaf, varying in zip(leaves, each, strict=True)]
    if _accepts(model, jax.tree.unflatten(treedef, first), dataset):
        axes = 0 if all(each) else jax.tree.unflatten(treedef, [0 if varying else None for varying in each])
        shapes = ", ".join(str(np.shape(leaf)) for leaf, varying in zip(leaves, each, strict=True) if varying)
        raise ValueError(
            f"start holds arrays of shape {shapes}, and there are {count} data sets. As one start for all, which "
            "start_axis=None means, the density does not accept it; as one start for each it does. "
            f"Give start_axis={axes}."
        )


def _accepts(model: Model, params: PyTree, dataset: Dataset) -> bool:
    """Whether the density returns, for these parameters, one number for an observation, or terms of a series."""
    data, given, _ = dataset.parts
    arguments = (data,) if given is None else (data, given)
    try:
        if model.is_dependent:
            jax.eval_shape(lambda y, *z: terms_at_once(model, params, y, z), *arguments)
        else:
            row = jax.tree.map(lambda leaf: leaf[0], arguments)
            jax.eval_shape(lambda y, *z: term_of(model, params, y, z), *row)
    except (TypeError, ValueError, IndexError, ZeroDivisionError):
        return False
    return True


def take_starts(params: PyTree, axis: Any, rows: Any) -> PyTree:
    """The starting parameters of some data sets, or of one."""

    def take(leaf: Any, mark: Any) -> Any:
        return leaf if mark.number is None else np.take(np.asarray(leaf), rows, axis=mark.number)

    if params is None:
        return None
    return in_key_order(jax.tree.map(take, params, axis_of_each(params, axis, "start")), key_order(params))


def check_something_estimated(layout: Layout) -> None:
    if layout.num_free == 0:
        raise ValueError("every parameter is fixed, so there is nothing to estimate. Use log_likelihood.")


def initial_starts(model: Model, layout: Layout, dataset: Dataset) -> tuple[Values, np.ndarray]:
    """Parameters by the model's `initial` for each data set, and their u (B, p); NaN where they lie outside a constraint."""
    leaves, treedef = jax.tree.flatten(dataset.parts)
    varying, shared = split_by(dataset.differs, leaves)
    assert dataset.size is not None
    if not varying:  # one data set for all
        data, given, _ = dataset.parts
        params = starting_parameters(model, None, data, given)
        values = [np.asarray(value) for value in layout.blocks(params)]
        repeated = lambda x: np.broadcast_to(x, (dataset.size, *np.shape(x)))  # noqa: E731
        return [repeated(value) for value in values], repeated(np.asarray(start_at(layout, values)))
    block = _starts_at_once(varying, dataset.size)
    initial = functools.partial(_initial, model, layout, treedef, dataset.differs)
    return map_blocks(lambda rows: initial([leaf[rows] for leaf in varying], shared), dataset.size, block)


@functools.partial(jit_with_model, static_argnums=(0, 1, 2, 3), level=1)
def _initial(
    model: Model, layout: Layout, treedef: Any, differs: tuple[bool, ...], varying: Leaves, shared: Leaves
) -> tuple[Values, Float[Array, "R p"]]:
    """The leaves of what the model's `initial` makes of each data set, and their u."""

    def one(varying: Leaves) -> tuple[Values, Array]:
        data, given, _ = jax.tree.unflatten(treedef, merge(differs, varying, shared))
        params = starting_parameters(model, None, data, given)
        free = {i for i, _ in layout.free_leaves}
        blocks = enumerate(layout.blocks(params))
        values = [jnp.asarray(value, layout.dtype if i in free else None) for i, value in blocks]
        return values, start_at(layout, values)

    return jax.vmap(one)(varying)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _unconstrain(layout: Layout, mapped: tuple[bool, ...], varying: Leaves, shared: Leaves) -> Float[Array, "R p"]:
    return jax.vmap(lambda varying: start_at(layout, merge(mapped, varying, shared)))(varying)


def _starts_at_once(varying: Leaves, size: int) -> int:
    """How many data sets a block of `map_blocks` takes where starts are computed."""
    entries = max(int(np.prod(leaf.shape[1:])) for leaf in varying)
    return min(STARTS_AT_ONCE, 1 << (size - 1).bit_length(), max(1, ENTRIES_AT_ONCE // max(entries, 1)))


def finite_rows(rows: np.ndarray) -> np.ndarray:
    """Whether each row holds finite numbers only."""
    finite = np.isfinite(rows)
    return np.ones(len(rows), bool) if finite.all() else finite.all(axis=1)


def _starts(layout: Layout, values: Values, mapped: tuple[bool, ...], size: int) -> np.ndarray:
    """u at the start of each fit (B, p); NaN where it lies outside its constraint."""
    varying, shared = split_by(mapped, values)
    if varying and all(isinstance(leaf.constraint, Interval | Unconstrained) for _, leaf in layout.free_leaves):
        # Outside such a range the logarithm is NaN: numpy shows it, and no program is compiled.
        whole = [
            np.asarray(value) if differs else np.broadcast_to(np.asarray(value), (size, *np.shape(value)))
            for value, differs in zip(values, mapped, strict=True)
        ]
        free = np.asarray(layout.unconstrain(whole))
        whole_rows = finite_rows(free)
        return free if whole_rows.all() else np.where(whole_rows[:, None], free, np.nan)
    if varying:
        return map_blocks(
            lambda rows: _unconstrain(layout, mapped, [leaf[rows] for leaf in varying], shared),
            size,
            _starts_at_once(varying, size),
        )
    check_start(layout, values)
    return np.broadcast_to(np.asarray(layout.unconstrain(values)), (size, layout.num_free))


class Options(NamedTuple):
    """The arguments of `fit_batch` beside the data."""

    model: Model
    optimizer: Any
    tolerance: Any
    max_steps: Any
    kinds: tuple[str, ...]
    num_lanes: int | None = None
    engine: str | None = None
    devices: workers.Devices = (None,)
    progress: bool = False


def fit_all(options: Options, starts: Starts, *, retry: bool, float64_finish: bool) -> Fit:
    """Fit them, retry what failed, and finish in float64 where `float64_finish`."""
    with _progress(options.progress, len(starts)) as watch:
        at_first = STEPS_AT_FIRST if retry and isinstance(options.optimizer, Newton) else None
        fits = _run(options, starts, 1.0, watch, most_steps=at_first)
    ran = fits.engine
    if at_first is not None and options.max_steps is None:
        slow = np.flatnonzero(fits.status_code == Status.STEP_LIMIT)
        if len(slow):
            fits = _replace_rows(fits, slow, _run(options, starts.take(slow), 1.0))
    attempt = np.zeros(len(starts), np.int8)
    if retry:
        fits, attempt = _retry(options, starts, fits, attempt)
    if float64_finish and starts.layout.dtype == np.float32:
        starts = starts.in_float64()
        fits, attempt = _finish(options, starts, fits, attempt)
    rows = np.flatnonzero(np.isin(fits.status_code, (Status.BAD_START, Status.NOT_FINITE)))
    if len(rows):  # which observation is to blame
        _, *varying = starts.varying
        leaves = [np.asarray(fits.free)[rows], *(leaf[rows] for leaf in varying)]
        suspects = functools.partial(_suspects, options.model, starts.layout, starts.treedef, starts.mapped)
        suspect = np.array(fits.suspect)
        suspect[rows] = map_blocks(
            lambda block: suspects([leaf[block] for leaf in leaves], starts.shared), len(rows), BLOCK
        )
        fits = replace(fits, suspect=suspect)
    if not {"observed", "sandwich"} & set(options.kinds):
        fits = replace(fits, curvature=None)
    return replace(fits, attempt=attempt, engine=ran)


def _run(
    options: Options, starts: Starts, radius_factor: float, watch: Any = None, *, most_steps: int | None = None
) -> Fit:
    """All fits from their starts, in at most so many steps where the user gives no limit."""
    layout, dtype, size = starts.layout, starts.layout.dtype, len(starts)
    by_newton = isinstance(options.optimizer, Newton)
    tolerance = np.asarray(default_tolerance(dtype) if options.tolerance is None else options.tolerance, dtype)
    if most_steps is None or not by_newton:
        most_steps = default_steps(options.optimizer)
    max_steps = int(most_steps if options.max_steps is None else options.max_steps)

    # The plan, and its arrays: those that differ among the data sets, and those that all share.
    data, given, weights = starts.dataset.parts
    fixed = [i for i, leaf in enumerate(layout.leaves) if leaf.is_fixed]
    rows, treedef = jax.tree.flatten((data, given, weights))
    strength = starts.dataset.strength
    leaves = [starts.values[i] for i in fixed] + [np.asarray(x, dtype) for x in strength or ()] + rows
    differs = tuple(starts.values_differ[i] for i in fixed) + starts.dataset.strength_differs + starts.dataset.differs
    first, (first_data, first_given, _) = starts.free[0], starts.dataset.one(0).parts
    first_values = [
        leaf[0] if varying else leaf for leaf, varying in zip(starts.values, starts.values_differ, strict=True)
    ]
    num_terms = count_terms(options.model, lambda: layout.constrain(first, first_values), first_data, first_given)
    lanes = options.num_lanes or chunks.lanes_of_arrays(num_terms, layout.num_free)
    num_strengths = None if strength is None else len(strength)
    num_fixed = len(fixed) + (num_strengths or 0)
    plan = Plan(options.model, layout, options.optimizer, treedef, num_fixed, differs, num_terms, lanes, num_strengths)
    varying = [to_numpy_unless_on_device(leaf) for leaf, mine in zip(leaves, differs, strict=True) if mine]
    shared = [np.asarray(leaf) for leaf, mine in zip(leaves, differs, strict=True) if not mine]

    # n of each data set, its terms or the sum of their weights; and how many terms count at all, of each or of all.
    if weights is None:
        num_observations, num_observed = np.full(size, num_terms, dtype), np.asarray(num_terms, np.int32)
    else:
        weights = np.broadcast_to(np.asarray(weights), (size, np.shape(weights)[-1]))
        num_observations = np.sum(weights, axis=1, dtype=dtype)
        num_observed = np.sum(weights != 0, axis=1, dtype=np.int32)
    num_observed = np.asarray(num_observed * options.model.numbers_in_row, np.int32)

    where: Any = {"engine": options.engine, "devices": options.devices}
    if by_newton:
        settings = Settings(tolerance, np.asarray(radius_factor, dtype))
        solution, ran = engine.fit_all(
            plan,
            varying,
            shared,
            starts.free,
            num_observed,
            settings,
            max_steps,
            watch=watch,
            may_step_on_host=options.num_lanes is None,
            **where,
        )
    else:
        function = functools.partial(_maxima, options.model, layout, options.optimizer, starts.treedef, starts.mapped)
        stops = tolerance, np.int32(max_steps)
        solution, ran = (
            map_blocks(
                lambda rows: function([leaf[rows] for leaf in starts.varying], starts.shared, *stops), size, BLOCK
            ),
            "lock-step",
        )
        if watch is not None:
            watch(solution.status)

    started = finite_rows(starts.free)
    reached = layout.constrained_values(solution.free, list(starts.values))
    values = []
    for new, old, leaf in zip(reached, starts.values, layout.leaves, strict=True):
        value = np.array(np.broadcast_to(new, (size, *leaf.shape)))  # a copy: what is fixed is the user's array
        if not started.all():
            value = np.where(started.reshape(-1, *(1,) * len(leaf.shape)), value, old).astype(value.dtype)
        values.append(value)
    outer_product = expected = None
    if {"empirical", "sandwich"} & set(options.kinds):
        outer_product = engine.information_of_each(plan, varying, shared, solution.free, "empirical", **where)
    if "expected" in options.kinds:
        natural, theta = replace(plan, layout=layout.natural()), np.asarray(layout.join(values))
        expected = engine.information_of_each(natural, varying, shared, theta, "expected", **where)
    return Fit(
        values=values,
        log_likelihood=solution.log_likelihood,
        status_code=solution.status,
        num_steps=solution.num_steps,
        decrement=solution.decrement,
        num_observations=num_observations,
        free=solution.free,
        curvature=solution.curvature,  # retries look at it; dropped at the end where `kinds` do not need it
        outer_product=outer_product,
        expected=expected,
        suspect=np.full(size, -1, np.int32),
        last_step=solution.last_step,
        attempt=np.zeros(size, np.int8),
        layout=layout,
        kinds=options.kinds,
        engine=ran,
    )


@functools.partial(jit_with_model, static_argnums=(0, 1, 2, 3, 4))
def _maxima(
    model: Model,
    layout: Layout,
    optimizer: Any,
    treedef: Any,
    mapped: tuple[bool, ...],
    varying: Leaves,
    shared: Leaves,
    tolerance: Any,
    max_steps: Any,
) -> Solution:
    """Fits by an optax transformation in lock-step; `varying` begins with their starts."""

    def one(varying: Leaves) -> Solution:
        values, *parts = jax.tree.unflatten(treedef, merge(mapped, varying[1:], shared))
        return maximize(
            make_problem(model, layout, values, Dataset(*parts), varying[0]), optimizer, tolerance, max_steps
        )

    return jax.vmap(one)(varying)


@functools.partial(jit_with_model, static_argnums=(0, 1, 2, 3))
def _suspects(
    model: Model, layout: Layout, treedef: Any, mapped: tuple[bool, ...], varying: Leaves, shared: Leaves
) -> Any:
    """The first observation of each data set whose log-density or score is not finite; `varying` begins with the u."""

    def one(varying: Leaves) -> Any:
        values, *parts = jax.tree.unflatten(treedef, merge(mapped, varying[1:], shared))
        target = at_modes(likelihood(model, layout, values, Dataset(*parts)), varying[0])
        return first_not_finite(target, varying[0], outer_product_at(target, varying[0])[0])

    return jax.vmap(one)(varying)


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


def _retry(options: Options, starts: Starts, fits: Fit, attempt: np.ndarray) -> tuple[Fit, np.ndarray]:
    """Retry failed fits with each strategy in turn. The first success counts."""
    for number, way in enumerate(ATTEMPTS[1:], start=1):
        failed = np.flatnonzero(np.isin(fits.status_code, RETRIED))
        if not len(failed):
            break
        some, before, radius_factor = starts.take(failed), _rows(fits, failed), 1.0
        rows = np.arange(len(failed))
        if way == "stronger damping":
            if not isinstance(options.optimizer, Newton):
                continue
            rows, radius_factor = np.flatnonzero(before.status_code != Status.BAD_START), CAUTIOUS
        elif way == "another start":
            # The model's own start where it is another; else two conditional standard errors off, to either side in turn.
            with np.errstate(divide="ignore"):  # where there is no curvature there is no start: not finite, so left out
                scale = 1.0 / np.sqrt(np.abs(np.diagonal(np.asarray(before.curvature), axis1=1, axis2=2)))
            free = np.asarray(before.free) + np.where(np.arange(scale.shape[1]) % 2 == 0, 2.0, -2.0) * scale
            if options.model.initial is not None:
                _, initial = initial_starts(options.model, some.layout, some.dataset)
                another = np.all(np.isfinite(initial), axis=1) & np.any(initial != some.free, axis=1)
                free = np.where(another[:, None], initial, free)
            rows, some = np.flatnonzero(np.all(np.isfinite(free), axis=1)), some.replace_starts(free)
        else:
            if some.layout.dtype != np.float32 or not has_float64():
                continue
            some = some.in_float64()
        if not len(rows):
            continue
        again = _run(options, some.take(rows), radius_factor, most_steps=STEPS_AGAIN)
        converged = again.status_code <= Status.CONVERGED_TO_ROUNDING
        successes = failed[rows[converged]]
        fits, attempt[successes] = _replace_rows(fits, successes, _rows(again, converged)), number
    return fits, attempt


def _finish(options: Options, starts: Starts, fits: Fit, attempt: np.ndarray) -> tuple[Fit, np.ndarray]:
    """Fits of float32 taken up again in float64, the precision of `starts`."""
    rows = np.flatnonzero(np.isin(fits.status_code, FINISHED))
    widen = lambda leaf: leaf.astype(np.float64) if leaf.dtype == np.float32 else leaf  # noqa: E731
    wide = replace(jax.tree.map(widen, fits), layout=starts.layout)
    if not len(rows):
        return wide, attempt
    again = _run(options, starts.take(rows).replace_starts(np.asarray(fits.free)[rows]), 1.0)
    again = replace(again, num_steps=again.num_steps + np.asarray(fits.num_steps)[rows])
    before, after = (codes <= Status.CONVERGED_TO_ROUNDING for codes in (wide.status_code[rows], again.status_code))
    attempt[rows[after & ~before]] = ATTEMPTS.index("float64")
    return _replace_rows(wide, rows[before | after], _rows(again, before | after)), attempt


def _rows(fits: Fit, rows: Any) -> Fit:
    return jax.tree.map(lambda leaf: leaf[rows], fits)


def _replace_rows(fits: Fit, rows: np.ndarray, by: Fit) -> Fit:
    def put(leaf: np.ndarray, new: np.ndarray) -> np.ndarray:
        leaf = leaf.copy()
        leaf[rows] = new
        return leaf

    return jax.tree.map(put, fits, replace(by, layout=fits.layout, kinds=fits.kinds))


def has_float64() -> bool:
    """Whether JAX computes in float64 (jax_enable_x64)."""
    return bool(jax.dtypes.canonicalize_dtype(np.float64) == np.float64)
