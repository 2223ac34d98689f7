"""Many maximisations side by side, none waiting for another: lanes that take the next data set when they are done.

A lane is one maximisation under way; L of them are stepped at a time, and every number of theirs is an entry of an array that
ends in the axis of lanes. A lane that has ended writes its result to its data set's own row of the output and takes the next
data set, in place: the cost of that goes with the number of fits, not with lanes times steps. Nothing in a lane depends on
its neighbours, so results do not depend on the number of lanes or on the order of the data sets.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fisher_jax.fitting.maximization import Solution, certify, is_within, next_start
from fisher_jax.fitting.row_program import Leaves
from fisher_jax.numerics import batched_linalg as algebra
from fisher_jax.optimizers.newton import Evaluation, Newton, State, advance, begin, trial


class Settings(NamedTuple):
    """What may change without compiling anew."""

    tolerance: Any
    radius_factor: Any  # times the first radius of the optimiser


class Chunk(NamedTuple):
    """Data sets to be fitted, each array with a leading axis over them; `size` of them count.

    `starts` are where to begin, `origins` where the fit began at first, to which the status compares its end.
    """

    data: Leaves
    starts: Any  # (b, p)
    origins: Any  # (b, p)
    num_observed: Any  # (b,)
    max_steps: Any  # (b,)
    size: Any


Marker = Callable[[Callable[..., Any]], Callable[..., Any]]  # makes a separate program of a function


# Traced once for an optimiser, a number of parameters and of lanes, whatever the model.
_advance = jax.jit(advance, static_argnums=(0, 5))


def as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself: the `Marker` that makes no separate program."""
    return function


def fit_lanes(
    optimizer: Newton,
    restricted: tuple[bool, ...],
    evaluate: Callable[[algebra.Vector, Leaves], Evaluation],
    chunk: Chunk,
    settings: Settings,
    num_lanes: int,
    *,
    handed_over: bool = False,
    one_by_one: bool = True,
    marked: Marker = as_it_is,
) -> Solution:
    """Fit the data sets of a chunk; `evaluate(u, columns)` takes those of the lanes, with the axis over them last.

    If `handed_over`, a second stage with another kind of information follows: this one stops within the tolerance without a
    certificate, and returns only the u where that stage starts and the number of steps. Lanes that have ended are refilled
    `one_by_one`, which costs least where a loop costs nothing; or all at once. `marked` makes a separate program of the step.
    """
    capacity, _ = chunk.starts.shape
    number = jnp.arange(num_lanes, dtype=jnp.int32)

    # Plain slices: `x[lane]` and `x.at[lane].set` would trace and compile a gather and a scatter for each array of the state.
    def read(x: Array, at: Array, axis: int = 0) -> Array:
        return jax.lax.dynamic_index_in_dim(x, at, axis, keepdims=False, allow_negative_indices=False)

    def write(x: Array, value: Array, at: Array, axis: int = 0) -> Array:
        return jax.lax.dynamic_update_index_in_dim(x, value, at, axis, allow_negative_indices=False)

    def replace_column(leaf: Array, column: Array, lane: Array, row: Array) -> Array:
        return write(column, read(leaf, row), lane, column.ndim - 1)

    @marked
    def step(state: State, reached: Evaluation, settings: Settings) -> tuple[State, Array]:
        return _advance(optimizer, state, reached, settings.tolerance, settings.radius_factor, restricted)

    of_ended = functools.partial(
        collect_solutions, tolerance=settings.tolerance, restricted=restricted, handed_over=handed_over
    )

    def refill(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        """One lane that has ended: its result goes out, the next data set comes in. With none left the lane is parked."""
        lane, todo, following, row_of, limit, ended, state, columns, out = carry
        lane = jax.lax.while_loop(lambda k: ~read(ended, k), lambda k: k + 1, lane)
        row, one = read(row_of, lane), jax.tree.map(lambda leaf: read(leaf, lane, leaf.ndim - 1), state)
        begun, observed, most = (read(x, row) for x in (chunk.origins, chunk.num_observed, chunk.max_steps))
        solution = of_ended(one, algebra.vector(begun), observed, most)
        rows = [None if x is None else jnp.concatenate([jnp.ravel(y) for y in jax.tree.leaves(x)]) for x in solution]
        out = Solution(
            *(
                to if x is None else write(to, x.astype(to.dtype).reshape(to.shape[1:]), row)
                for to, x in zip(out, rows, strict=True)
            )
        )
        more, row = following < chunk.size, jnp.minimum(following, chunk.size - 1)
        columns = [replace_column(leaf, column, lane, row) for leaf, column in zip(chunk.data, columns, strict=True)]
        start = read(chunk.starts, row)
        if isinstance(state.point, list):
            point: algebra.Vector = [write(x, start[i], lane) for i, x in enumerate(state.point)]
        else:
            point = write(state.point, start, lane, 1)
        # A count of −1 marks a fresh lane: what else its state holds is not used.
        state = state._replace(point=point, count=write(state.count, jnp.int32(-1), lane))
        ended, row_of = write(ended, ~more, lane), write(row_of, following, lane)
        limit = write(limit, read(chunk.max_steps, row), lane)
        return lane + 1, todo - 1, following + more, row_of, limit, ended, state, columns, out

    def refill_all(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        """The same for all lanes that have ended."""
        _, todo, following, row_of, limit, ended, state, columns, out = carry
        rows = jnp.minimum(row_of, capacity - 1)
        solution = of_ended(state, algebra.vector(chunk.origins[rows].T), chunk.num_observed[rows], limit)
        to = jnp.where(ended, row_of, capacity)  # out of range, which is dropped
        # A vector, a matrix or a number of each lane as an array with the lanes first.
        flat = [
            None if x is None else jnp.concatenate([jnp.reshape(y, (-1, num_lanes)) for y in jax.tree.leaves(x)]).T
            for x in solution
        ]
        out = Solution(
            *(
                old if x is None else old.at[to].set(x.reshape(num_lanes, *old.shape[1:]), mode="drop")
                for old, x in zip(out, flat, strict=True)
            )
        )
        row = following + jnp.cumsum(ended, dtype=jnp.int32) - 1
        more, source = ended & (row < chunk.size), jnp.minimum(row, capacity - 1)
        new = [jnp.moveaxis(leaf[source], 0, -1) for leaf in chunk.data]
        columns = [jnp.where(more, x, column) for x, column in zip(new, columns, strict=True)]
        point = algebra.select(more, algebra.vector(chunk.starts[source].T), state.point)
        state = state._replace(point=point, count=jnp.where(more, -1, state.count))
        row_of, limit = jnp.where(more, row, row_of), jnp.where(more, chunk.max_steps[source], limit)
        following = jnp.minimum(following + todo, chunk.size)
        return jnp.int32(0), jnp.int32(0), following, row_of, limit, ended & ~more, state, columns, out

    def trip(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        following, row_of, limit, parked, state, columns, out = carry
        reached = evaluate(trial(state), columns)
        state, done = step(state, reached, settings)
        done = is_through(state, done, limit, settings.tolerance, handed_over=handed_over) & ~parked
        start = (jnp.int32(0), jnp.sum(done, dtype=jnp.int32), following, row_of, limit, done, state, columns, out)
        _, _, following, row_of, limit, ended, state, columns, out = jax.lax.while_loop(
            lambda c: c[1] > 0, refill if one_by_one else refill_all, start
        )
        return following, row_of, limit, ended | parked, state, columns, out

    first = jnp.minimum(number, capacity - 1)
    columns = [jnp.moveaxis(leaf[first], 0, -1) for leaf in chunk.data]
    state = begin(algebra.vector(chunk.starts[first].T))
    p, dtype = len(state.point), state.point[0].dtype
    entries = p * (p + 1) // 2 if isinstance(state.point, list) else p * p
    vectors, numbers, whole = (
        jnp.zeros((capacity, p), dtype),
        jnp.zeros((capacity,), dtype),
        jnp.zeros((capacity,), jnp.int32),
    )
    out = Solution(vectors, numbers, jnp.zeros((capacity, entries), dtype), vectors, numbers, whole, whole)
    carry = (jnp.int32(num_lanes), number, chunk.max_steps[first], number >= chunk.size, state, columns, out)
    return jax.lax.while_loop(lambda c: ~jnp.all(c[3]), trip, carry)[-1]


def step_lanes(
    optimizer: Newton,
    restricted: tuple[bool, ...],
    evaluate: Callable[[algebra.Vector], Evaluation],
    chunk: Chunk,
    settings: Settings,
    *,
    handed_over: bool = False,
) -> Solution:
    """The same by steps in numpy around a compiled evaluation of the whole chunk, with a lane for each data set.

    The last to end is waited for. To compile the evaluation alone takes a fraction of what the loop takes.
    """
    u, rows = np.array(chunk.starts.T), np.arange(chunk.size)
    parts: list[tuple[np.ndarray, State]] = []  # those that have ended
    with np.errstate(all="ignore"):  # NaN and infinities are what a status explains
        state = begin(algebra.vector(u[:, rows]))
        step = advance if isinstance(state.point, list) else _advance_each
        while len(rows):
            u[:, rows] = algebra.to_array(trial(state))
            reached = jax.tree.map(lambda x, rows=rows: x[..., rows], evaluate(algebra.vector(u)))
            state, done = step(optimizer, state, reached, settings.tolerance, settings.radius_factor, restricted)
            # numpy widens float32 that meets a Python number in `where`.
            state = jax.tree.map(lambda x: x.astype(u.dtype, copy=False) if x.dtype.kind == "f" else x, state)
            done = is_through(state, done, chunk.max_steps[rows], settings.tolerance, handed_over=handed_over)
            if done.any():
                parts.append((rows[done], _take(state, done)))
                rows, state = rows[~done], _take(state, ~done)
        places = np.argsort(np.concatenate([rows for rows, _ in parts]))
        places = places[np.minimum(np.arange(len(chunk.starts)), chunk.size - 1)]
        state = jax.tree.map(lambda *x: np.concatenate(x, -1)[..., places], *(state for _, state in parts))
        solution = collect_solutions(
            state,
            algebra.vector(chunk.origins.T),
            chunk.num_observed,
            chunk.max_steps,
            tolerance=settings.tolerance,
            restricted=restricted,
            handed_over=handed_over,
        )
    return Solution(*(None if x is None else entries_last(x) for x in solution))


def entries_last(x: Any) -> np.ndarray:
    """A vector, a matrix or a number of each lane as an array (L, entries), or (L,) of a number."""
    if isinstance(x, list | dict):
        return np.stack(jax.tree.leaves(x), 1)
    return x if x.ndim == 1 else np.moveaxis(x, -1, 0).reshape(x.shape[-1], -1)


def _take(state: Any, lanes: Any) -> Any:
    return jax.tree.map(lambda x: x[..., lanes], state)


def _advance_each(
    optimizer: Newton, state: State, reached: Evaluation, *settings: Any
) -> tuple[State, Bool[np.ndarray, " L"]]:
    """`advance` lane by lane, for vectors that are arrays: numpy has LAPACK for one matrix of that size."""
    ends = [advance(optimizer, _take(state, k), _take(reached, k), *settings) for k in range(len(state.count))]
    states = jax.tree.map(lambda *x: np.stack(x, -1), *(state for state, _ in ends))
    return states, np.array([done for _, done in ends])


def is_through(state: State, done: Any, limit: Any, tolerance: Any, *, handed_over: bool) -> Any:
    """Whether a lane makes no more steps: by `advance`, at its limit, or near enough to be handed over."""
    return done | (state.count >= limit) | (is_within(state, tolerance) & handed_over)


def collect_solutions(
    state: State,
    begun: algebra.Vector,
    num_observed: Any,
    max_steps: Any,
    *,
    tolerance: Any,
    restricted: tuple[bool, ...],
    handed_over: bool,
) -> Solution:
    """The solution of each lane that has ended, or its next start if another stage follows.

    Vectors and matrices are those of `numerics.batched_linalg`.
    """
    xp = algebra.namespace(state.count)
    steps = xp.maximum(state.count, 0)
    if handed_over:
        return Solution(next_start(state, tolerance), None, None, None, None, steps, None)
    value, rounding = state.at.value, state.at.rounding
    return Solution(
        state.point,
        xp.where(xp.isfinite(rounding), value + rounding, value),
        state.at.information,
        algebra.each(lambda s: xp.where(xp.isfinite(state.drift), s, 0.0), state.step),
        state.decrement,
        steps,
        certify(state, begun, num_observed, tolerance, max_steps, restricted),
    )


def information_matrices(
    evaluate: Callable[[algebra.Vector, Leaves], Evaluation],
    data: Leaves,
    u: Float[Array, "b p"],
    size: Int[Array, ""],
    num_lanes: int,
) -> Float[Array, "b t"]:
    """The information of each of the first `size` data sets at its own u, as `Solution` holds it."""

    def block(k: Array, out: Array) -> Array:
        at = k * num_lanes
        cut = lambda leaf: jnp.moveaxis(jax.lax.dynamic_slice_in_dim(leaf, at, num_lanes, 0), 0, -1)  # noqa: E731
        information = evaluate(algebra.vector(cut(u)), [cut(leaf) for leaf in data]).information
        rows = jnp.concatenate([x.reshape(-1, num_lanes) for x in jax.tree.leaves(information)])
        return jax.lax.dynamic_update_slice_in_dim(out, rows.T, at, 0)

    capacity, p = u.shape
    entries = p * (p + 1) // 2 if isinstance(algebra.vector(u[0]), list) else p * p
    return jax.lax.fori_loop(0, -(-size // num_lanes), block, jnp.zeros((capacity, entries), u.dtype))
