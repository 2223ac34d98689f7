"""Which way a batch of fits is run, and running it: chunks of data sets through compiled programs in several hands.

The ways give the same results to rounding. "kernel" is the row program in one kernel (`rows`, `cpu`); "arrays" are (n, L) arrays
by XLA (`arrays`).
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fisher_jax.fitting import arrays, cpu, gpu, workers
from fisher_jax.fitting import rows as row_programs
from fisher_jax.fitting.lanes import Chunk, Ended, Marker, Settings, as_it_is, fit_lanes, informations
from fisher_jax.fitting.plan import Leaves, Plan
from fisher_jax.fitting.program import HAND_OVER
from fisher_jax.models.model import programs_of
from fisher_jax.numerics.differentiate import upper_triangle
from fisher_jax.numerics.expansion import CannotExpand
from fisher_jax.numerics.linalg import UNROLLED
from fisher_jax.optimizers.newton import Evaluation, Kind, Newton

ENGINES = ("kernel", "arrays")
# Data sets that one call takes. Few sizes, so that few programs are compiled. More would leave the cache: what is made of the
# data before the fits is then bound by memory. At the end of a chunk lanes wait for the slowest, which the larger size makes rare.
CAPACITIES = (512, 8192)
MOST_BYTES = 2**24  # of the data of one chunk, where the smallest does not need more


def platform() -> str:
    """What JAX runs on by default: "cpu", "gpu", "tpu"."""
    name = jax.default_backend()
    return "gpu" if name in ("cuda", "rocm") else name


def choose(plan: Plan, kind: Kind, own: Leaves, shared: Leaves, asked: str | None) -> tuple[str, Any]:
    """The way to run a batch, and its row program where it has one.

    Raises
    ------
    ValueError
        If a way was asked for that this model cannot go.
    """
    programs, portable = programs_of(plan.model), platform() == "gpu"
    if asked == "arrays" or plan.layout.num_free > UNROLLED or plan.model.is_dependent:
        if asked == "kernel":
            reason = "a dependent model" if plan.model.is_dependent else f"more than {UNROLLED} parameters"
            raise ValueError(f'engine="kernel" is for models without {reason}. Leave it out, or use engine="arrays".')
        return "arrays", None
    key = ("rows", _key(plan), kind, portable, _shapes(own, 2), _shapes(shared, 1), plan.num_terms)
    if key not in programs:
        try:
            programs[key] = row_programs.rows_of(plan, kind, own, shared, portable=portable)
        except CannotExpand as error:
            programs[key] = error.again()
    found = programs[key]
    if isinstance(found, CannotExpand):
        if asked == "kernel":
            raise ValueError(f'engine="kernel": {found}. Leave it out, or use engine="arrays".') from found
        return "arrays", None
    return "kernel", found


def fit_all(
    plan: Plan,
    own: Leaves,
    shared: Leaves,
    starts: np.ndarray,
    num_observed: np.ndarray,
    settings: Settings,
    max_steps: int,
    *,
    engine: str | None = None,
    num_workers: int = 1,
    watch: Callable[[np.ndarray], None] | None = None,
) -> tuple[Ended, str]:
    """Fit every data set: where each ended, as numpy arrays with matrices (B, p, p), and which way was taken.

    `own` are the fixed parameters and data that differ, with a leading axis over the data sets; `shared` those that do not.
    Steps by expected or empirical information are followed by Newton's from `HAND_OVER` on, so that each fit is certified by its
    observed information. `watch` is told the statuses of each chunk that is done.
    """
    count, p = starts.shape
    pieces, capacity = _pieces(count, own, num_workers, plan.num_lanes)
    fit, way = _compiled_fit(plan, capacity, own, shared, engine)
    dtype = plan.layout.dtype
    ended = Ended(
        np.empty((count, p), dtype),
        np.empty(count, dtype),
        np.empty((count, p, p), dtype),
        np.empty((count, p), dtype),
        np.empty(count, dtype),
        np.empty(count, np.int32),
        np.empty(count, np.int32),
    )

    def work(piece: slice) -> None:
        padded = lambda leaf: _padded(leaf[piece], capacity, plan.num_lanes)  # noqa: E731
        begin, size = padded(starts), piece.stop - piece.start
        limit = np.full(capacity, max_steps, np.int32)
        chunk = Chunk([], begin, begin, padded(num_observed), limit, np.int32(size))
        found = fit([padded(leaf) for leaf in own], shared, chunk, settings)
        found = found._replace(information=symmetric(np.asarray(found.information), p))
        for to, part in zip(ended, found, strict=True):
            to[piece] = np.asarray(part)[:size]
        if watch is not None:
            watch(ended.status[piece])

    workers.run(work, pieces, num_workers)
    return ended, way


def information_of_each(
    plan: Plan,
    own: Leaves,
    shared: Leaves,
    u: np.ndarray,
    kind: Kind,
    *,
    engine: str | None = None,
    num_workers: int = 1,
) -> np.ndarray:
    """The total information of each data set at its own u, (B, p, p)."""
    count, p = u.shape
    pieces, capacity = _pieces(count, own, num_workers, plan.num_lanes)
    evaluate = _compiled_matrix(plan, kind, capacity, own, shared, engine)
    out = np.empty((count, p, p), plan.layout.dtype)

    def work(piece: slice) -> None:
        size = piece.stop - piece.start
        data = [_padded(leaf[piece], capacity, plan.num_lanes) for leaf in own]
        found = evaluate(data, shared, _padded(u[piece], capacity, plan.num_lanes), np.int32(size))
        out[piece] = symmetric(np.asarray(found)[:size], p)

    workers.run(work, pieces, num_workers)
    return out


def _pieces(count: int, own: Leaves, num_workers: int, num_lanes: int) -> tuple[list[slice], int]:
    """The batch in chunks, an equal share for each worker where that fits, and the size that they are filled up to."""
    share, most = -(-count // num_workers), MOST_BYTES * count // max(sum(leaf.nbytes for leaf in own), 1)
    sizes = [size for size in CAPACITIES if size <= most] or CAPACITIES[:1]
    capacity = next((size for size in sizes if size >= share), sizes[-1])
    size, capacity = min(share, capacity), max(capacity, num_lanes)
    return [slice(at, min(at + size, count)) for at in range(0, count, size)], capacity


def symmetric(triangles: np.ndarray, p: int) -> np.ndarray:
    """Matrices (B, p, p) of upper triangles (B, p(p + 1)/2), or of matrices laid out flat."""
    if triangles.shape[1] == p * p:
        return triangles.reshape(-1, p, p)
    whole = np.empty((len(triangles), p, p), triangles.dtype)
    for k, (i, j) in enumerate(upper_triangle(p)):
        whole[:, i, j] = whole[:, j, i] = triangles[:, k]
    return whole


def _padded(leaf: np.ndarray, capacity: int, num_lanes: int) -> np.ndarray:
    """The data sets of one piece, filled up. Lanes without one step through the first, which is known to be a data set."""
    if len(leaf) == capacity:
        return leaf
    whole = np.zeros((capacity, *leaf.shape[1:]), leaf.dtype)
    whole[: len(leaf)] = leaf
    whole[len(leaf) : len(leaf) + num_lanes] = leaf[:1]
    return whole


def _compiled_fit(plan: Plan, capacity: int, own: Leaves, shared: Leaves, asked: Any) -> tuple[Callable[..., Any], str]:
    """A program that fits a chunk, and the way it runs: by the optimiser's information, and then by the observed one."""
    newton = replace(plan.optimizer, kind="observed")
    optimizers = [newton] if plan.optimizer == newton else [plan.optimizer, newton]
    ways = [choose(plan, optimizer.kind, own, shared, asked) for optimizer in optimizers]

    def build(marked: Marker) -> Callable[..., Any]:
        def call(own: Leaves, shared: Leaves, chunk: Chunk, settings: Settings) -> Ended:
            steps, loose = 0, settings._replace(tolerance=jnp.full_like(settings.tolerance, HAND_OVER))
            for optimizer, (way, rows) in zip(optimizers, ways, strict=True):
                last = optimizer is newton
                fit = _fit_of_chunk(plan, optimizer, way, rows, own, shared, marked, handed_over=not last)
                found = fit(chunk, settings if last else loose)
                steps = steps + found.num_steps
                chunk = chunk._replace(starts=found.u, max_steps=chunk.max_steps - found.num_steps)
            return found._replace(num_steps=steps)

        return call

    p, dtype = plan.layout.num_free, plan.layout.dtype
    vectors, whole = jax.ShapeDtypeStruct((capacity, p), dtype), jax.ShapeDtypeStruct((capacity,), np.int32)
    number = jax.ShapeDtypeStruct((), dtype)
    chunk = Chunk([], vectors, vectors, whole, whole, jax.ShapeDtypeStruct((), np.int32))
    key = ("fit", tuple(way for way, _ in ways), plan.optimizer)
    fit = _compiled(plan, key, capacity, own, shared, build, (chunk, Settings(number, number)))
    return fit, ways[-1][0]


def _fit_of_chunk(
    plan: Plan,
    optimizer: Newton,
    way: str,
    rows: Any,
    own: Leaves,
    shared: Leaves,
    marked: Marker,
    *,
    handed_over: bool,
) -> Callable[[Chunk, Settings], Ended]:
    """The fit of a chunk by one kind of information: all of it a kernel where it can be, else its step."""
    evaluation: Callable[[Leaves], Callable[..., Evaluation]]  # of the arrays that all data sets share
    if way == "kernel":
        on_gpu = platform() == "gpu"
        data, common = row_programs.columns_of_chunk(plan, rows, own, shared, lanes_last=on_gpu)
        if on_gpu:
            return lambda chunk, settings: gpu.fit_lanes(
                plan, optimizer, rows, common, chunk._replace(data=data), settings, handed_over=handed_over
            )
        evaluation = lambda common: functools.partial(row_programs.evaluate_columns, plan, rows, common)  # noqa: E731
    else:
        data, common = arrays.columns_of_chunk(plan, own), shared
        evaluation = lambda common: arrays.evaluation(plan, optimizer.kind, own, common)  # noqa: E731
    is_kernel = way == "kernel" or arrays.is_recursion(plan, own, shared)
    of_all, of_step = (marked, as_it_is) if is_kernel else (as_it_is, marked)

    def fit(common: Leaves, chunk: Chunk, settings: Settings) -> Ended:
        restricted, evaluate = plan.layout.restricted, evaluation(common)
        return fit_lanes(
            optimizer, restricted, evaluate, chunk, settings, plan.num_lanes, handed_over=handed_over, marked=of_step
        )

    return lambda chunk, settings: of_all(fit)(common, chunk._replace(data=data), settings)


def _compiled_matrix(
    plan: Plan, kind: Kind, capacity: int, own: Leaves, shared: Leaves, asked: Any
) -> Callable[..., Any]:
    way, rows = choose(plan, kind, own, shared, asked)

    def build(marked: Marker) -> Callable[..., Any]:
        def call(own: Leaves, shared: Leaves, u: Any, size: Any) -> Any:
            if way == "arrays":
                columns = arrays.columns_of_chunk(plan, own)
                return informations(arrays.evaluation(plan, kind, own, shared), columns, u, size, plan.num_lanes)
            on_gpu = platform() == "gpu"
            data, common = row_programs.columns_of_chunk(plan, rows, own, shared, lanes_last=on_gpu)
            if on_gpu:
                return gpu.informations(plan, rows, data, common, u)

            def in_kernel(common: Leaves, data: Leaves, u: Any, size: Any) -> Any:
                evaluate = functools.partial(row_programs.evaluate_columns, plan, rows, common)
                return informations(evaluate, data, u, size, plan.num_lanes)

            return marked(in_kernel)(common, data, u, size)

        return call

    u = jax.ShapeDtypeStruct((capacity, plan.layout.num_free), plan.layout.dtype)
    size = jax.ShapeDtypeStruct((), np.int32)
    return _compiled(plan, ("information", way, kind), capacity, own, shared, build, (u, size))


def _compiled(
    plan: Plan,
    what: tuple[Any, ...],
    capacity: int,
    own: Leaves,
    shared: Leaves,
    build: Callable[..., Any],
    others: Any,
) -> Callable[..., Any]:
    """The program for these shapes, compiled once for each model. `build` takes what makes a kernel of a function."""
    programs = programs_of(plan.model)
    key = (*what, platform(), _key(plan), capacity, _shapes(own, 1), _shapes(shared, 0))
    if key not in programs:
        like = lambda leaf, shape: jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(leaf.dtype))  # noqa: E731
        arguments = (
            [like(leaf, (capacity, *leaf.shape[1:])) for leaf in own],
            [like(leaf, leaf.shape) for leaf in shared],
        )
        attempts: list[tuple[Marker, Any]] = [(jax.jit, None)]
        if platform() == "cpu":
            # XLA promises neither that a marked call compiles nor that it knows an option: without, the program is only slower.
            attempts = [(cpu.one_kernel, cpu.COMPILER_OPTIONS), (jax.jit, cpu.COMPILER_OPTIONS), *attempts]
        for number, (marked, options) in enumerate(attempts, start=1):
            try:
                lowered = jax.jit(build(marked), compiler_options=options).lower(*arguments, *others)
                programs[key] = lowered.compile()
                break
            except jax.errors.JaxRuntimeError:
                if number == len(attempts):
                    raise
    return programs[key]


def _key(plan: Plan) -> tuple[Any, ...]:
    return (
        jax.config.read("jax_enable_x64"),
        plan.layout,
        plan.treedef,
        plan.num_fixed,
        plan.differs,
        plan.num_terms,
        plan.num_lanes,
    )


def _shapes(leaves: Leaves, drop: int) -> tuple[Any, ...]:
    return tuple((leaf.shape[drop:], str(leaf.dtype)) for leaf in leaves)
