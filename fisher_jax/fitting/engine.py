"""How a batch of fits is run: the engine is chosen, and chunks of data sets are distributed over workers.

The user's density is traced once; what runs is the program made of it. Three ways agree to rounding: "kernel", the row program
(`row_program.py`) in one kernel of a CPU (`cpu.py`, with the loop of `lanes.py`) or of a GPU (`gpu.py`); "arrays", (n, L)
arrays by XLA (`arrays.py`, with the loop of `lanes.py`); and "host", where the evaluation alone is compiled, from the row program
or of arrays, and numpy makes the steps (`step_lanes` of `lanes.py`). The loop takes seconds to compile, the evaluation tenths: the
first small batches on a CPU step on the host, until that has cost as much as compiling the loop would.

A chunk is what one call of a program takes (`chunks.py`).
"""

import functools
import importlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fisher_jax.fitting import arrays, cpu, workers
from fisher_jax.fitting import row_program as row_programs
from fisher_jax.fitting.chunks import CAPACITIES, MOST_BYTES, bytes_of_each, pad_chunk, pieces_of, to_host
from fisher_jax.fitting.lanes import (
    Chunk,
    Marker,
    Settings,
    as_it_is,
    entries_last,
    fit_lanes,
    information_matrices,
    step_lanes,
)
from fisher_jax.fitting.maximization import HAND_OVER, Solution
from fisher_jax.fitting.row_program import Leaves, Plan
from fisher_jax.models.programs import collection_paused, programs_of, quick
from fisher_jax.numerics.batched_linalg import vector
from fisher_jax.numerics.differentiate import matrices_of_triangles
from fisher_jax.numerics.expansion import CannotExpand
from fisher_jax.numerics.linalg import UNROLLED
from fisher_jax.optimizers.newton import Evaluation, Kind, Newton

ENGINES = ("compiled", "kernel", "arrays", "host")
FEW_BYTES = 2**22  # of the data of one chunk, with which a costly model is sooner done compiled fast than run fast
HOST_FITS, HOST_ROWS = 2**14, 2**22  # what steps on the host at most: data sets, and rows of them in all
HOST_LANES, HOST_ROWS_AT_ONCE = (512, 64), 2**16  # data sets at once there: the first, if they have no more rows
EVALUATION = "evaluation of many"
HOST_FITS_OF_MANY = 512  # data sets at most of models with many parameters (`UNROLLED`), each of which steps by itself
STEPS_IN_A_CALL = 8  # so many of these cost as much as one step of all lanes of others
HOST_FITS_MARGINAL, HOST_MARGINAL = 128, 8  # data sets at most, and at once, of a model with latent effects
HOST_COST = 2**26  # evaluated rows that cost as much as compiling a loop
HOST_CALL = 2**17  # and as much as one call with numpy's step
HOST_SECONDS = 15.0  # after which one batch waits for the loop instead, whatever it has cost
Programs = list[tuple[Any, Callable[..., Any]]]  # a device, and the program compiled for it


def gpu_kernels() -> Any:
    """The module of kernels for the GPU; None where JAX runs on another device, or has no way into such kernels any more."""
    if workers.platform() != "gpu":
        return None
    try:
        return importlib.import_module("fisher_jax.fitting.gpu")
    except (ImportError, Warning):
        return None


class NoKernel(Exception):  # noqa: N818  # no failure: arrays take over
    """A fit has no kernel on this device, for the reason given."""


def choose(plan: Plan, kind: Kind, varying: Leaves, shared: Leaves, engine: str | None) -> tuple[str, Any]:
    """The way to run a batch, "kernel" or "arrays", and its row program where it has one.

    Raises
    ------
    ValueError
        If `engine` names a way that this model cannot be run by.
    """
    programs = programs_of(plan.model)
    obstacles = {
        "a dependent model": plan.model.is_dependent,
        "an auxiliary measurement": plan.model.auxiliary is not None,
        "a prior": plan.num_strengths is not None,
        "latent effects": plan.model.with_modes is not None,
        f"more than {UNROLLED} parameters": plan.layout.num_free > UNROLLED,
    }
    if engine == "arrays" or any(obstacles.values()):
        if engine == "kernel":
            reason = next(reason for reason, holds in obstacles.items() if holds)
            raise ValueError(f'engine="kernel" is for models without {reason}. Leave it out, or use engine="arrays".')
        return "arrays", None
    key = _rows_key(plan, kind, varying, shared)
    if key not in programs:
        try:
            if workers.platform() != "cpu" and gpu_kernels() is None:
                programs[key] = NoKernel(f"this JAX has no kernels for a {workers.platform()}")
            else:
                programs[key] = row_programs.rows_of(plan, kind, varying, shared, portable=workers.platform() == "gpu")
        except CannotExpand as error:
            programs[key] = error.again()
    program = programs[key]
    if isinstance(program, CannotExpand | NoKernel):
        if engine == "kernel":
            raise ValueError(f'engine="kernel": {program}. Leave it out, or use engine="arrays".') from program
        return "arrays", None
    return "kernel", program


def _rows_key(plan: Plan, kind: Kind, varying: Leaves, shared: Leaves) -> tuple[Any, ...]:
    return "rows", _key(plan), kind, workers.platform(), _shapes(varying, 2), _shapes(shared, 1), plan.num_terms


def fit_all(
    plan: Plan,
    varying: Leaves,
    shared: Leaves,
    starts: np.ndarray,
    num_observed: np.ndarray,
    settings: Settings,
    max_steps: int,
    *,
    engine: str | None = None,
    devices: workers.Devices = (None,),
    may_step_on_host: bool = True,
    watch: Callable[[np.ndarray], None] | None = None,
) -> tuple[Solution, str]:
    """Fit every data set: where each ended, as numpy arrays with matrices (B, p, p), and the name of the engine.

    `varying` are the fixed parameters and data that differ, with a leading axis over the data sets; `shared` those that do not.
    Steps by expected or empirical information are followed by Newton's from `HAND_OVER` on, so that each fit is certified by its
    observed information. `num_observed` is how many terms of each count, or of all. With `may_step_on_host` a small batch
    may do so. `watch` is called with the statuses of each chunk that is done.
    """
    count, ways = len(starts), _ways(plan, varying, shared, engine)
    rest = varying, shared, starts, num_observed, settings, max_steps, devices
    if may_step_on_host and _is_for_host(plan, count, engine):
        host = _host_of(plan, ways, varying, shared)
        if engine == "host" or not (host.is_spent or _is_compiled(plan, _loop(plan, ways), varying, shared)):
            pieces, capacity = _pieces_on_host(plan, count)
            fit = _fit_on_host(plan, ways, capacity, varying, shared, host, engine)
            try:
                solution = _fit_pieces(plan, pieces, capacity, [(None, fit)], *rest, on_host=True)
            except _Spent:
                pass  # and what has been done with it, at most as long as compiling takes
            else:
                if watch is not None:
                    watch(solution.status)
                return solution, "host"
    pieces, capacity = pieces_of(plan, count, varying, devices, ways[0].rows)
    fits, way, capacity = _compiled_fit(plan, ways, capacity, varying, shared, engine, devices[: len(pieces)])
    return _fit_pieces(plan, pieces, capacity, fits, *rest, watch=watch), way


def _fit_pieces(
    plan: Plan,
    pieces: list[slice],
    capacity: int,
    fits: Programs,
    varying: Leaves,
    shared: Leaves,
    starts: np.ndarray,
    num_observed: np.ndarray,
    settings: Settings,
    max_steps: int,
    devices: workers.Devices,
    *,
    on_host: bool = False,
    watch: Callable[[np.ndarray], None] | None = None,
) -> Solution:
    """Where each fit ended, of the batch in pieces, each filled up to a chunk of `capacity` data sets."""
    (count, p), dtype = starts.shape, plan.layout.dtype
    num_lanes = capacity if on_host else plan.num_lanes
    solutions = Solution(
        np.empty((count, p), dtype),
        np.empty(count, dtype),
        np.empty((count, p, p), dtype),
        np.empty((count, p), dtype),
        np.empty(count, dtype),
        np.empty(count, np.int32),
        np.empty(count, np.int32),
    )

    def work(number: int) -> None:
        piece, (device, fit) = pieces[number], fits[number % len(fits)]
        pad = lambda leaf: pad_chunk(leaf, piece, capacity, num_lanes, device)  # noqa: E731
        observed = pad(num_observed) if num_observed.ndim else num_observed
        sizes = np.array([piece.stop - piece.start, max_steps], np.int32)
        solution = fit([pad(leaf) for leaf in varying], shared, pad(starts), observed, sizes, settings)
        if isinstance(solution, Solution):
            solution = solution._replace(curvature=matrices_of_triangles(np.asarray(solution.curvature), p))
        else:
            solution = unpacked(to_host(solution))
        for to, part in zip(solutions, solution, strict=True):
            to[piece] = np.asarray(part)[: sizes[0]]
        if watch is not None:
            watch(solutions.status[piece])

    def unpacked(numbers: np.ndarray) -> Solution:
        """The results of a chunk that came as one array."""
        widths = [part[0].size for part in solutions]
        parts = np.split(numbers, np.cumsum([capacity * width for width in widths])[:-1])
        return Solution(*(part.reshape(capacity, *to.shape[1:]) for part, to in zip(parts, solutions, strict=True)))

    workers.run(work, range(len(pieces)), len(devices))
    return solutions


def information_of_each(
    plan: Plan,
    varying: Leaves,
    shared: Leaves,
    u: np.ndarray,
    kind: Kind,
    *,
    engine: str | None = None,
    devices: workers.Devices = (None,),
) -> np.ndarray:
    """The total information of each data set at its own u, (B, p, p)."""
    count, p = u.shape
    way = Way(Newton(kind), *choose(plan, kind, varying, shared, engine))  # the plan's optimiser may be one of optax
    compiled = _matrices(way.name, kind)
    if _is_for_host(plan, count, engine) and (engine == "host" or not _is_compiled(plan, compiled, varying, shared)):
        pieces, capacity = _pieces_on_host(plan, count)
        num_lanes = capacity
        evaluations = [(None, _information_on_host(plan, way, capacity, varying, shared))]
    else:
        pieces, capacity = pieces_of(plan, count, varying, devices, way.rows)
        num_lanes = plan.num_lanes
        evaluations, capacity = _compiled_matrix(plan, kind, capacity, varying, shared, engine, devices[: len(pieces)])
    out = np.empty((count, p, p), plan.layout.dtype)

    def work(number: int) -> None:
        piece, (device, evaluate) = pieces[number], evaluations[number % len(evaluations)]
        size = piece.stop - piece.start
        data, points = (
            [pad_chunk(leaf, piece, capacity, num_lanes, device) for leaf in leaves] for leaves in (varying, [u])
        )
        triangles = evaluate(data, shared, *points, np.int32(size))
        out[piece] = matrices_of_triangles(np.asarray(triangles)[:size], p)

    workers.run(work, range(len(pieces)), len(devices))
    return out


class Way(NamedTuple):
    """A part of a fit: by which optimiser, the way it is run, and the row program if there is one."""

    optimizer: Newton
    name: str
    rows: Any


def _ways(plan: Plan, varying: Leaves, shared: Leaves, engine: Any) -> list[Way]:
    """The stages of a fit: by the optimiser's information, then by the observed one, which certifies."""
    newton = replace(plan.optimizer, kind="observed")
    optimizers = [newton] if plan.optimizer == newton else [plan.optimizer, newton]
    return [Way(optimizer, *choose(plan, optimizer.kind, varying, shared, engine)) for optimizer in optimizers]


def _compiled_fit(
    plan: Plan, ways: list[Way], capacity: int, varying: Leaves, shared: Leaves, engine: Any, devices: workers.Devices
) -> tuple[Programs, str, int]:
    """Programs that fit a chunk, one for each device, the way they run at last, and the size of their chunks."""

    def build(marked: Marker) -> Callable[..., Any]:
        def call(varying: Leaves, shared: Leaves, starts: Any, observed: Any, sizes: Any, settings: Settings) -> Any:
            def fit_of(way: Way, *, handed_over: bool) -> Callable[[Chunk, Settings], Any]:
                return _fit_of_chunk(plan, way, varying, shared, marked, handed_over=handed_over)

            return _in_stages(ways, fit_of, starts, observed, sizes, settings, jnp)

        return call

    def others(capacity: int) -> tuple[Any, ...]:
        dtype, like = plan.layout.dtype, jax.ShapeDtypeStruct
        observed = like((capacity,) if plan.has_weights else (), np.int32)
        number = like((), dtype)
        return like((capacity, plan.layout.num_free), dtype), observed, like((2,), np.int32), Settings(number, number)

    try:
        fits, capacity = _compiled(plan, _loop(plan, ways), capacity, varying, shared, build, others, devices)
    except NoKernel as error:
        _leave_kernels(plan, [way.optimizer.kind for way in ways], varying, shared, error)
        return _compiled_fit(plan, _ways(plan, varying, shared, engine), capacity, varying, shared, engine, devices)
    return fits, ways[-1].name, capacity


def _loop(plan: Plan, ways: list[Way]) -> tuple[Any, ...]:
    """What the program of whole fits is called among those of its model."""
    return "fit", tuple(way.name for way in ways), plan.optimizer


def _matrices(way: str, kind: Kind) -> tuple[Any, ...]:
    """What the program of the information of each data set is called there."""
    return "information", way, kind


def _is_compiled(plan: Plan, what: tuple[Any, ...], varying: Leaves, shared: Leaves) -> bool:
    """Whether there is such a program for a CPU, for chunks of any size."""
    programs = programs_of(plan.model)
    return any(_program_key(plan, what, size, varying, shared) in programs for size in CAPACITIES["cpu"])


def _in_stages(
    ways: list[Way], fit_of: Callable[..., Any], starts: Any, observed: Any, sizes: Any, settings: Settings, xp: Any
) -> Any:
    """The fit of a chunk by each way in turn, where the one before has handed over: `fit_of(way, handed_over=…)` is its part."""
    size, most = sizes
    observed, limit = (xp.broadcast_to(x, (len(starts),)) for x in (observed, most))
    chunk = Chunk([], starts, starts, observed, limit, size)
    steps, loose = 0, settings._replace(tolerance=xp.full_like(settings.tolerance, HAND_OVER))
    for way in ways:
        last = way is ways[-1]
        solution = fit_of(way, handed_over=not last)(chunk, settings if last else loose)
        if not isinstance(solution, Solution):  # a kernel's, in one piece, since each transfer costs by itself
            return solution if way is ways[0] else solution.at[-2 * len(starts) : -len(starts)].add(steps)
        steps = steps + solution.num_steps
        chunk = chunk._replace(starts=solution.free, max_steps=chunk.max_steps - solution.num_steps)
    return solution._replace(num_steps=steps)


class _Spent(Exception):  # noqa: N818  # no failure: a compiled loop takes over
    """Steps on the host have cost as much as compiling the loop would."""


@dataclass
class _Host:
    """What steps on the host have cost for a model, an optimiser and data of these shapes, in evaluated rows.

    It is counted, not timed, so that a program that runs again takes the same way again, unless one batch takes `HOST_SECONDS`.
    """

    cost: int = 0

    @property
    def is_spent(self) -> bool:
        """Whether it is about what compiling the loop would have."""
        return self.cost > HOST_COST


def _is_for_host(plan: Plan, count: int, engine: str | None) -> bool:
    """Whether a batch may step on the host: where it is asked for, or small on a CPU and no engine named.

    Raises
    ------
    ValueError
        If it is asked for and there is no such way.
    """
    if engine == "host" and workers.platform() != "cpu":
        raise ValueError(f'engine="host" steps on a CPU, and JAX computes on a {workers.platform()}. Leave it out.')
    most = HOST_FITS if plan.layout.num_free <= UNROLLED else HOST_FITS_OF_MANY
    most = HOST_FITS_MARGINAL if plan.model.with_modes is not None else most
    small = count <= most and count * plan.num_terms <= HOST_ROWS
    return engine == "host" or (engine is None and small and workers.platform() == "cpu")


def _host_of(plan: Plan, ways: list[Way], varying: Leaves, shared: Leaves) -> _Host:
    key = ("host", tuple(way.optimizer for way in ways), _key(plan), _shapes(varying, 1), _shapes(shared, 0))
    host: _Host = programs_of(plan.model).setdefault(key, _Host())
    return host


def _pieces_on_host(plan: Plan, count: int) -> tuple[list[slice], int]:
    """The batch in chunks of one size, and that size."""
    few, fewer = HOST_LANES
    capacity = few if few * plan.num_terms <= HOST_ROWS_AT_ONCE and plan.layout.num_free <= UNROLLED else fewer
    capacity = HOST_MARGINAL if plan.model.with_modes is not None else capacity
    return [slice(at, min(at + capacity, count)) for at in range(0, count, capacity)], capacity


def _fit_on_host(
    plan: Plan, ways: list[Way], capacity: int, varying: Leaves, shared: Leaves, host: _Host, engine: str | None
) -> Callable[..., Solution]:
    """The fit of a chunk by steps on the host; it raises `_Spent` where no engine is named and they take too long."""
    evaluations = [_compiled_evaluation(plan, way, capacity, varying, shared) for way in ways]
    began, lock = time.perf_counter(), threading.Lock()

    def fit(
        varying: Leaves, shared: Leaves, starts: np.ndarray, observed: Any, sizes: np.ndarray, settings: Settings
    ) -> Solution:
        data = jax.device_put((varying, shared))

        def fit_of(way: Way, *, handed_over: bool) -> Callable[[Chunk, Settings], Solution]:
            program = evaluations[ways.index(way)]

            def evaluate(u: Any) -> Evaluation:
                if engine is None and time.perf_counter() - began > HOST_SECONDS:
                    host.cost = HOST_COST + 1
                if engine is None and host.is_spent:
                    raise _Spent
                with lock:
                    steps = 1 if isinstance(u, list) else capacity // STEPS_IN_A_CALL
                    host.cost += steps * HOST_CALL + capacity * plan.num_terms
                return jax.tree.map(np.asarray, program(*data, u))

            return functools.partial(step_lanes, way.optimizer, plan.layout.unitless, evaluate, handed_over=handed_over)

        return _in_stages(ways, fit_of, starts, observed, sizes, settings, np)

    return fit


def _information_on_host(
    plan: Plan, way: Way, capacity: int, varying: Leaves, shared: Leaves
) -> Callable[..., np.ndarray]:
    """The information of each data set of a chunk, as `Solution` holds it, by the evaluation that steps on the host need."""
    evaluate = _compiled_evaluation(plan, way, capacity, varying, shared)

    def call(varying: Leaves, shared: Leaves, u: np.ndarray, size: Any) -> np.ndarray:
        return entries_last(jax.tree.map(np.asarray, evaluate(varying, shared, vector(u.T)).information))

    return call


def _compiled_evaluation(plan: Plan, way: Way, capacity: int, varying: Leaves, shared: Leaves) -> Any:
    """Log-likelihood, gradient and information of every data set of a chunk, (capacity,) each, as one program."""

    def build(marked: Marker) -> Callable[..., Any]:
        def call(varying: Leaves, shared: Leaves, u: Any) -> Evaluation:
            evaluation, data, common, is_kernel = _evaluation_of_chunk(plan, way, varying, shared)
            columns = [jnp.moveaxis(leaf, 0, -1) for leaf in data]
            evaluate = lambda common, u, columns: evaluation(common)(u, columns)  # noqa: E731
            return (marked if is_kernel else as_it_is)(evaluate)(common, u, columns)

        return call

    def others(capacity: int) -> tuple[Any]:
        u = jax.ShapeDtypeStruct((plan.layout.num_free, capacity), plan.layout.dtype)
        return (jax.eval_shape(vector, u),)

    what = (EVALUATION, way.name, way.optimizer.kind)
    return _compiled(plan, what, capacity, varying, shared, build, others, (None,))[0][0][1]


def _fit_of_chunk(
    plan: Plan, way: Way, varying: Leaves, shared: Leaves, marked: Marker, *, handed_over: bool
) -> Callable[[Chunk, Settings], Solution]:
    """The fit of a chunk by one kind of information: all of it a kernel where it can be, else its step."""
    (optimizer, name, rows), kernels = way, gpu_kernels()
    if name == "kernel" and kernels is not None:
        return functools.partial(kernels.fit_lanes, plan, optimizer, rows, varying, shared, handed_over=handed_over)
    evaluation, data, common, is_kernel = _evaluation_of_chunk(plan, way, varying, shared)
    of_all, of_step = (marked, as_it_is) if is_kernel else (as_it_is, marked)

    def fit(common: Leaves, chunk: Chunk, settings: Settings) -> Solution:
        restricted, evaluate = plan.layout.unitless, evaluation(common)
        return fit_lanes(
            optimizer,
            restricted,
            evaluate,
            chunk,
            settings,
            min(plan.num_lanes, len(chunk.starts)),
            handed_over=handed_over,
            one_by_one=workers.platform() == "cpu",
            marked=of_step,
        )

    return lambda chunk, settings: of_all(fit)(common, chunk._replace(data=data), settings)


def _evaluation_of_chunk(
    plan: Plan, way: Way, varying: Leaves, shared: Leaves
) -> tuple[Callable[[Leaves], Callable[..., Evaluation]], Leaves, Leaves, bool]:
    """The evaluation made of the arrays that all data sets share; those of each; the former; and whether it can be one kernel."""
    if way.name == "kernel":
        data, common = row_programs.columns_of_chunk(plan, way.rows, varying, shared)
        return (
            lambda common: functools.partial(row_programs.evaluate_columns, plan, way.rows, common),
            data,
            common,
            True,
        )
    data, is_kernel = arrays.columns_of_chunk(plan, varying), arrays.has_loops(plan, varying, shared)
    kind, is_kernel = way.optimizer.kind, workers.platform() == "cpu" and is_kernel
    return lambda common: arrays.evaluation(plan, kind, varying, common), data, shared, is_kernel


def _compiled_matrix(
    plan: Plan, kind: Kind, capacity: int, varying: Leaves, shared: Leaves, engine: Any, devices: workers.Devices
) -> tuple[Programs, int]:
    """Programs for the information of each data set of a chunk, one for each device, and the size of their chunks."""
    way, rows = choose(plan, kind, varying, shared, engine)

    def build(marked: Marker) -> Callable[..., Any]:
        def call(varying: Leaves, shared: Leaves, u: Any, size: Any) -> Any:
            kernels, lanes = gpu_kernels(), min(plan.num_lanes, len(u))
            if way == "arrays":
                columns = arrays.columns_of_chunk(plan, varying)
                return information_matrices(arrays.evaluation(plan, kind, varying, shared), columns, u, size, lanes)
            if kernels is not None:
                return kernels.information_matrices(plan, rows, varying, shared, u)
            data, common = row_programs.columns_of_chunk(plan, rows, varying, shared)

            def in_kernel(common: Leaves, data: Leaves, u: Any, size: Any) -> Any:
                evaluate = functools.partial(row_programs.evaluate_columns, plan, rows, common)
                return information_matrices(evaluate, data, u, size, lanes)

            return marked(in_kernel)(common, data, u, size)

        return call

    def others(capacity: int) -> tuple[Any, Any]:
        vectors = jax.ShapeDtypeStruct((capacity, plan.layout.num_free), plan.layout.dtype)
        return vectors, jax.ShapeDtypeStruct((), np.int32)

    try:
        return _compiled(plan, _matrices(way, kind), capacity, varying, shared, build, others, devices)
    except NoKernel as error:
        _leave_kernels(plan, [kind], varying, shared, error)
        return _compiled_matrix(plan, kind, capacity, varying, shared, engine, devices)


def _leave_kernels(plan: Plan, kinds: list[Kind], varying: Leaves, shared: Leaves, why: NoKernel) -> None:
    """Have `choose` answer from now on that there is no kernel."""
    for kind in kinds:
        programs_of(plan.model)[_rows_key(plan, kind, varying, shared)] = NoKernel(
            str(why)
        )  # without the frames of `why`


def _compiled(
    plan: Plan,
    what: tuple[Any, ...],
    capacity: int,
    varying: Leaves,
    shared: Leaves,
    build: Callable[[Marker], Callable[..., Any]],
    others: Callable[[int], tuple[Any, ...]],
    devices: workers.Devices,
) -> tuple[Programs, int]:
    """A program for each device, compiled once for each model and these shapes, and the size of their chunks.

    That is `capacity`, or more where there is such a program and filling up costs less than compiling another. `build(marked)`
    is the function to compile, in which `marked` makes a kernel of a function; `others(capacity)` are the shapes of its arguments
    that are not data.
    """
    programs = programs_of(plan.model)
    each = bytes_of_each(varying)

    def key_of(capacity: int, device: Any) -> tuple[Any, ...]:
        return _program_key(plan, what, capacity, varying, shared, device)

    @collection_paused()
    def compiled(capacity: int, device: Any) -> Any:
        sharding = None if device is None else jax.sharding.SingleDeviceSharding(device)

        def like(leaf: Any, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(leaf.dtype), sharding=sharding)

        data = [like(leaf, (capacity, *leaf.shape[1:])) for leaf in varying]
        arguments = data, [like(leaf, leaf.shape) for leaf in shared]
        more = jax.tree.map(lambda leaf: like(leaf, leaf.shape), others(capacity))
        kernels = gpu_kernels()
        if kernels is not None and "kernel" in what[1]:
            try:
                return kernels.compiled(build(jax.jit), *arguments, *more)
            except Exception as error:  # Pallas, Triton and XLA raise errors of many kinds for what they cannot do
                reason = (str(error).splitlines() or [""])[0]
                if "RESOURCE_EXHAUSTED" in reason and "hared memory" not in reason:
                    raise  # memory that is short now is no reason to do without for good
                raise NoKernel(f"the kernel does not compile ({type(error).__name__}: {reason})") from error
        if workers.platform() == "cpu":
            # The small operations of a marginal density and of the search for its modes run as fast compiled at half the cost.
            # With many effects that would still be half a minute: by an eighth of it they run four times slower.
            # An evaluation without the loop around it runs as fast compiled at level 1, and is compiled in half of the time.
            level = 0 if plan.model.is_costly and capacity * each < FEW_BYTES else 1
            is_quick = plan.model.with_modes is not None or what[0] == EVALUATION
            options = cpu.COMPILER_OPTIONS | (quick(level) if is_quick else {})
            # XLA may fail to compile a marked call, or not know an option. Without them the program is only slower.
            for marked in (cpu.one_kernel, jax.jit):
                try:
                    function = jax.jit(build(marked), compiler_options=options)
                    return function.lower(*arguments, *more).compile()
                except jax.errors.JaxRuntimeError:
                    pass
        return jax.jit(build(jax.jit)).lower(*arguments, *more).compile()

    different = list(dict.fromkeys(devices))
    if key_of(capacity, different[0]) not in programs:
        others_there = (size for size in CAPACITIES.get(workers.platform(), ()) if size > capacity)
        small = (size for size in others_there if size * each <= MOST_BYTES)
        capacity = next((size for size in small if key_of(size, different[0]) in programs), capacity)
    for device in different:
        if key_of(capacity, device) not in programs:
            programs[key_of(capacity, device)] = compiled(capacity, device)
    return [(device, programs[key_of(capacity, device)]) for device in different], capacity


def _program_key(
    plan: Plan, what: tuple[Any, ...], capacity: int, varying: Leaves, shared: Leaves, device: Any = None
) -> tuple[Any, ...]:
    return (*what, workers.platform(), device, _key(plan), capacity, _shapes(varying, 1), _shapes(shared, 0))


def _key(plan: Plan) -> tuple[Any, ...]:
    return (
        jax.config.read("jax_enable_x64"),
        plan.layout,
        plan.treedef,
        plan.num_fixed,
        plan.differs,
        plan.num_terms,
        plan.num_lanes,
        plan.num_strengths,
    )


def _shapes(leaves: Leaves, drop: int) -> tuple[Any, ...]:
    return tuple((leaf.shape[drop:], str(leaf.dtype)) for leaf in leaves)
