"""Which way a batch of fits is run, and running it: chunks of data sets through compiled programs in several hands.

The ways give the same results to rounding. "kernel" is the row program in one kernel (`rows`, `cpu`); "arrays" are (n, L) arrays
by XLA (`arrays`).
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from fisher_jax.fitting import arrays, cpu, workers
from fisher_jax.fitting.lanes import Chunk, Ended, Settings, fit_lanes, informations
from fisher_jax.fitting.plan import Leaves, Plan
from fisher_jax.fitting.program import HAND_OVER
from fisher_jax.models.model import programs_of
from fisher_jax.numerics.expansion import CannotExpand
from fisher_jax.numerics.linalg import UNROLLED
from fisher_jax.optimizers.newton import Kind

ENGINES = ("kernel", "arrays")
# Data sets that one call takes. Few sizes, so that few programs are compiled; at the end of a chunk lanes wait for the slowest,
# which the larger sizes make rare.
CAPACITIES = (512, 8192, 65536)


def choose(plan: Plan, kind: Kind, own: Leaves, shared: Leaves, asked: str | None) -> tuple[str, Any]:
    """The way to run a batch, and its row program where it has one.

    Raises
    ------
    ValueError
        If a way was asked for that this model cannot go.
    """
    programs = programs_of(plan.model)
    if asked == "arrays" or plan.layout.num_free > UNROLLED or plan.model.is_dependent:
        if asked == "kernel":
            reason = "a dependent model" if plan.model.is_dependent else f"more than {UNROLLED} parameters"
            raise ValueError(f'engine="kernel" is for models without {reason}. Leave it out, or use engine="arrays".')
        return "arrays", None
    key = ("rows", _key(plan), kind, _shapes(own, 2), _shapes(shared, 1), plan.num_terms)
    if key not in programs:
        try:
            programs[key] = cpu.rows_of(plan, kind, own, shared)
        except CannotExpand as error:
            programs[key] = error
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
    pieces, capacity = _pieces(count, num_workers, plan.num_lanes)
    optimizers = (
        [plan.optimizer]
        if plan.optimizer.kind == "observed"
        else [plan.optimizer, replace(plan.optimizer, kind="observed")]
    )
    phases = [_compiled_fit(replace(plan, optimizer=o), o.kind, capacity, own, shared, engine) for o in optimizers]
    dtype = plan.layout.dtype
    ended = Ended(
        np.empty((count, p), dtype),
        np.empty(count, dtype),
        np.empty((count, _num_entries(p)), dtype),
        np.empty((count, p), dtype),
        np.empty(count, dtype),
        np.empty(count, np.int32),
        np.empty(count, np.int32),
    )

    def work(piece: slice) -> None:
        padded = lambda leaf: _padded(leaf[piece], capacity, plan.num_lanes)  # noqa: E731
        data, origins, observed = [padded(leaf) for leaf in own], padded(starts), padded(num_observed)
        size, begin, before = piece.stop - piece.start, origins, np.zeros(capacity, np.int32)
        for number, fit in enumerate(phases):
            last = number == len(phases) - 1
            loose = settings if last else settings._replace(tolerance=np.asarray(HAND_OVER, dtype))
            chunk = Chunk([], begin, origins, observed, (max_steps - before).astype(np.int32), np.int32(size))
            found = fit(data, shared, chunk, loose)
            begin = found.u
            before = before + np.asarray(found.num_steps)
        for to, part in zip(ended, found, strict=True):
            to[piece] = np.asarray(part)[:size]
        ended.num_steps[piece] = before[:size]
        if watch is not None:
            watch(ended.status[piece])

    workers.run(work, pieces, num_workers)
    return ended._replace(information=symmetric(ended.information, p)), phases[-1].engine


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
    pieces, capacity = _pieces(count, num_workers, plan.num_lanes)
    evaluate = _compiled_matrix(plan, kind, capacity, own, shared, engine)
    out = np.empty((count, _num_entries(p)), plan.layout.dtype)

    def work(piece: slice) -> None:
        size = piece.stop - piece.start
        data = [_padded(leaf[piece], capacity, plan.num_lanes) for leaf in own]
        out[piece] = np.asarray(evaluate(data, shared, _padded(u[piece], capacity, plan.num_lanes), np.int32(size)))[
            :size
        ]

    workers.run(work, pieces, num_workers)
    return symmetric(out, p)


def _pieces(count: int, num_workers: int, num_lanes: int) -> tuple[list[slice], int]:
    """The batch in chunks, an equal share for each worker where that fits, and the size that they are filled up to."""
    share = -(-count // num_workers)
    capacity = next((size for size in CAPACITIES if size >= share), CAPACITIES[-1])
    size, capacity = min(share, capacity), max(capacity, num_lanes)
    return [slice(at, min(at + size, count)) for at in range(0, count, size)], capacity


def _num_entries(p: int) -> int:
    """Of an information as `Ended` holds it."""
    return p * (p + 1) // 2 if p <= UNROLLED else p * p


def symmetric(triangles: np.ndarray, p: int) -> np.ndarray:
    """Matrices (B, p, p) of upper triangles (B, p(p + 1)/2), or of matrices laid out flat."""
    if triangles.shape[1] == p * p:
        return triangles.reshape(-1, p, p)
    place = np.empty((p, p), int)
    place[np.triu_indices(p)] = np.arange(triangles.shape[1])
    place.T[np.triu_indices(p)] = np.arange(triangles.shape[1])
    return triangles[:, place]


def _padded(leaf: np.ndarray, capacity: int, num_lanes: int) -> np.ndarray:
    """The data sets of one piece, filled up. Lanes without one step through the first, which is known to be a data set."""
    if len(leaf) == capacity:
        return leaf
    whole = np.zeros((capacity, *leaf.shape[1:]), leaf.dtype)
    whole[: len(leaf)] = leaf
    whole[len(leaf) : len(leaf) + num_lanes] = leaf[:1]
    return whole


class _Compiled:
    """A compiled program and the way it runs."""

    def __init__(self, call: Callable[..., Any], engine: str) -> None:
        self.call, self.engine = call, engine

    def __call__(self, *arguments: Any) -> Any:
        return self.call(*arguments)


def _compiled_fit(plan: Plan, kind: Kind, capacity: int, own: Leaves, shared: Leaves, asked: Any) -> _Compiled:
    def build(way: str, rows: Any, run: Callable[..., Any]) -> Callable[..., Any]:
        def call(own: Leaves, shared: Leaves, chunk: Chunk, settings: Settings) -> Ended:
            restricted = plan.layout.restricted
            if way == "arrays":
                data, of_lanes = arrays.lanes_of_chunk(plan, kind, own, shared)
                return fit_lanes(
                    plan.optimizer, restricted, of_lanes, chunk._replace(data=data), settings, plan.num_lanes
                )
            data, common = cpu.columns_of_chunk(plan, rows, own, shared)

            def fit(common: Leaves, chunk: Chunk, settings: Settings) -> Ended:
                return fit_lanes(
                    plan.optimizer,
                    restricted,
                    functools.partial(cpu.evaluate_columns, plan, rows, common),
                    chunk,
                    settings,
                    plan.num_lanes,
                )

            return run(fit)(common, chunk._replace(data=data), settings)

        return call

    p, dtype = plan.layout.num_free, plan.layout.dtype
    vectors, whole = jax.ShapeDtypeStruct((capacity, p), dtype), jax.ShapeDtypeStruct((capacity,), np.int32)
    number = jax.ShapeDtypeStruct((), dtype)
    chunk = Chunk([], vectors, vectors, whole, whole, jax.ShapeDtypeStruct((), np.int32))
    return _compiled(plan, "fit", kind, capacity, own, shared, asked, build, (chunk, Settings(number, number)))


def _compiled_matrix(plan: Plan, kind: Any, capacity: int, own: Leaves, shared: Leaves, asked: Any) -> _Compiled:
    def build(way: str, rows: Any, run: Callable[..., Any]) -> Callable[..., Any]:
        def call(own: Leaves, shared: Leaves, u: Any, size: Any) -> Any:
            if way == "arrays":
                data, of_lanes = arrays.lanes_of_chunk(plan, kind, own, shared)
                return informations(of_lanes, data, u, size, plan.num_lanes)
            data, common = cpu.columns_of_chunk(plan, rows, own, shared)

            def matrix(common: Leaves, data: Leaves, u: Any, size: Any) -> Any:
                return informations(
                    functools.partial(cpu.evaluate_columns, plan, rows, common), data, u, size, plan.num_lanes
                )

            return run(matrix)(common, data, u, size)

        return call

    u = jax.ShapeDtypeStruct((capacity, plan.layout.num_free), plan.layout.dtype)
    size = jax.ShapeDtypeStruct((), np.int32)
    return _compiled(plan, "information", kind, capacity, own, shared, asked, build, (u, size))


def _compiled(
    plan: Plan, what: str, kind: Any, capacity: int, own: Leaves, shared: Leaves, asked: Any, build: Any, others: Any
) -> _Compiled:
    """The program for these shapes, compiled once for each model."""
    way, rows = choose(plan, kind, own, shared, asked)
    programs = programs_of(plan.model)
    key = (what, way, _key(plan), plan.optimizer, kind, capacity, _shapes(own, 1), _shapes(shared, 0))
    if key not in programs:
        like = lambda leaf, shape: jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(leaf.dtype))  # noqa: E731
        arguments = (
            [like(leaf, (capacity, *leaf.shape[1:])) for leaf in own],
            [like(leaf, leaf.shape) for leaf in shared],
        )
        options = cpu.COMPILER_OPTIONS if jax.default_backend() == "cpu" else None
        call = jax.jit(build(way, rows, cpu.one_kernel), compiler_options=options)
        try:
            compiled = call.lower(*arguments, *others).compile()
        except jax.errors.JaxRuntimeError:
            if way == "arrays":
                raise
            # XLA does not promise that a marked call compiles. Without the mark the program is the same, only slower.
            call = jax.jit(build(way, rows, jax.jit), compiler_options=options)
            compiled = call.lower(*arguments, *others).compile()
        programs[key] = _Compiled(compiled, way)
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
