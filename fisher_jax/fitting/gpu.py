"""Whole fits in one GPU kernel: one data set to a lane, a block of lanes to a warp, what a fit needs in its registers.

The kernel takes each lane a few steps further: it loads the lane's state, evaluates and steps, and stores the state. A block
runs until the slowest of its lanes is through, so passes are short, and between them the lanes that have not ended are
gathered into full blocks. A lane's state goes through memory unchanged, so that neither blocks nor passes change a result.

The way into the kernel is Pallas' lowering to Triton, which JAX intends to remove: it is used in this file only.
"""

import contextlib
import math
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from fisher_jax.fitting import workers
from fisher_jax.fitting.lanes import Chunk, Settings, collect_solutions, is_through
from fisher_jax.fitting.row_program import Leaves, Plan, RowProgram, columns_of_chunk, evaluate_columns
from fisher_jax.numerics import batched_linalg as algebra
from fisher_jax.numerics.jaxprs import Flat, Step, bind, flatten, while_loop
from fisher_jax.optimizers.newton import Evaluation, Newton, State, advance, begin, trial

BLOCK = 32  # lanes: a warp. More would wait longer for their slowest.
# Rows of a data set at once, to hide the latency of memory; in float32 twice as many where they are little work.
ROWS, FEW_EQUATIONS = 2, 100
# Steps of the first pass, and of each of the others. Gathered lanes read memory here and there: to gather a third of them after 4
# steps saved one step in five, and cost as much time.
FIRST_STEPS, STEPS = 7, 2
DOUBLED_AFTER = 4  # passes: from there on each makes twice the steps of the last, for the few that take many


class _Memory:
    """An array as the row program reads it, entry by entry: one number for all lanes, or one for each in the last axis."""

    def __init__(self, ref: Any, like: jax.ShapeDtypeStruct, lanes: Array | None) -> None:
        self.ref, self.shape, self.is_bool, self.lanes = ref, like.shape, like.dtype == bool, lanes

    def __getitem__(self, index: Any) -> Array:
        index = index if isinstance(index, tuple) else (index,)
        at: Any = 0
        for i, size in zip(index, self.shape, strict=False):
            at = at * size + i
        return self._truth(self.ref[at] if self.lanes is None else self.ref[at, self.lanes])

    def rows(self, r: Any, count: int) -> list[list[Array]]:
        """The entries of some rows, by one access to memory where lanes have their own."""
        num_rows, entries = self.shape[:2]
        if not entries:
            return [[] for _ in range(count)]
        if self.lanes is None:
            numbers = [jnp.minimum(r + k, num_rows - 1) if k else r for k in range(count)]
            return [[self[number, j] for j in range(entries)] for number in numbers]
        size = 1 << (count * entries - 1).bit_length()
        entry = jnp.minimum(r * entries + jnp.arange(size, dtype=jnp.int32), num_rows * entries - 1)
        columns = [self._truth(x) for x in _split(self.ref[_grid(entry, self.lanes)])]
        return [columns[k * entries : (k + 1) * entries] for k in range(count)]

    def _truth(self, x: Array) -> Array:
        return x != 0 if self.is_bool else x


def _grid(entry: Array, lanes: Array) -> tuple[Array, Array]:
    """The two indices of a table: lanes first, so that Triton gives a thread all that is its lane's."""
    shape = (BLOCK, entry.shape[0])
    return jnp.broadcast_to(entry, shape), jnp.broadcast_to(lanes[:, None], shape)


def _split(table: Array) -> list[Array]:
    """The columns of a table (lanes, columns), a power of two of them."""
    return [column.reshape(BLOCK) for column in lax.split(table, [1] * table.shape[1], 1)]


def _joined(columns: list[Array]) -> Array:
    """The table of a power of two of columns: in pairs, which is what Triton can do."""
    if len(columns) == 1:
        return columns[0][:, None]
    even, odd = _joined(columns[::2]), _joined(columns[1::2])
    return jnp.stack([even, odd], axis=-1).reshape(even.shape[0], -1)


class _Arrays:
    """The arrays of a chunk, their lanes last, and those that all share, laid out for the kernel."""

    def __init__(self, varying: Leaves, shared: Leaves) -> None:
        self.varying, self.shared = (
            [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves] for leaves in (varying, shared)
        )
        flat = [leaf.reshape(math.prod(leaf.shape[:-1]), leaf.shape[-1]) for leaf in varying]
        flat += [leaf.reshape(-1) for leaf in shared]
        flat = [leaf.astype(jnp.uint8) if leaf.dtype == bool else leaf for leaf in flat]
        self.operands = [leaf if leaf.size else jnp.zeros((1,) * leaf.ndim, leaf.dtype) for leaf in flat]  # never read

    def read(self, refs: Sequence[Any], lanes: Array) -> tuple[Leaves, Leaves]:
        """The same as the row program reads them."""
        count = len(self.varying)
        varying = [_Memory(ref, like, lanes) for ref, like in zip(refs[:count], self.varying, strict=True)]
        return varying, [_Memory(ref, like, None) for ref, like in zip(refs[count:], self.shared, strict=True)]


class _States:
    """The states of lanes as a table (lanes, columns), a power of two of columns: numbers of any kind, as floating numbers.

    One array and not one for each entry, since Triton looks through the whole kernel for each access to memory in it. Behind
    the state stand whether the lane has ended, and how many steps it may make.
    """

    def __init__(self, p: int, dtype: Any) -> None:
        state = jax.eval_shape(begin, [jax.ShapeDtypeStruct((), dtype) for _ in range(p)])
        ended, limit = jax.ShapeDtypeStruct((), bool), jax.ShapeDtypeStruct((), jnp.int32)
        self.like, self.treedef = jax.tree.flatten((state, ended, limit))
        self.dtype, self.size = dtype, 1 << (len(self.like) - 1).bit_length()

    def begun(self, starts: Float[Array, "b p"], ended: Array, limit: Array) -> Float[Array, "b c"]:
        """The table of fresh lanes: of their states only point and count are used."""
        (b, p), used = starts.shape, len(self.like)
        zeros = lambda count: jnp.zeros((b, count), self.dtype)  # noqa: E731
        columns = [x.astype(self.dtype)[:, None] for x in (jnp.full_like(limit, -1), ended, limit)]
        return jnp.concatenate([starts, zeros(used - 3 - p), *columns, zeros(self.size - used)], axis=1)

    def unpack(self, columns: Sequence[Array]) -> tuple[State, Array, Array]:
        """The state, whether it has ended, and the limit."""
        pairs = zip(columns[: len(self.like)], self.like, strict=True)
        return jax.tree.unflatten(self.treedef, [x != 0 if to.dtype == bool else x.astype(to.dtype) for x, to in pairs])

    def pack(self, state: State, ended: Array, limit: Array) -> list[Array]:
        """The columns of the table."""
        columns = [leaf.astype(self.dtype) for leaf in jax.tree.leaves((state, ended, limit))]
        return columns + [jnp.zeros_like(columns[0])] * (self.size - len(columns))


def fit_lanes(
    plan: Plan,
    optimizer: Newton,
    rows: RowProgram,
    varying: Leaves,
    shared: Leaves,
    chunk: Chunk,
    settings: Settings,
    *,
    handed_over: bool,
) -> Any:
    """Fit the data sets of a chunk as `lanes.fit_lanes` does; if not `handed_over`, `Solution` comes as one array."""
    capacity, p = chunk.starts.shape
    restricted, dtype = plan.layout.unitless, plan.layout.dtype
    states, arrays = _States(p, dtype), _Arrays(*columns_of_chunk(plan, rows, varying, shared, lanes_last=True))
    rows_at_once = ROWS * (2 if dtype == np.float32 and rows.rest.num_equations <= FEW_EQUATIONS else 1)

    def step(state: State, ended: Array, reached: Evaluation, limit: Array, settings: Settings) -> tuple[State, Array]:
        new, done = advance(optimizer, state, reached, settings.tolerance, settings.radius_factor, restricted)
        done = is_through(new, done, limit, settings.tolerance, handed_over=handed_over)
        return algebra.select(ended, state, new), ended | done

    def kernel(*refs: Any) -> None:
        waiting, steps, settings, before, *data, after = refs
        lane = waiting[pl.program_id(0) * BLOCK + jnp.arange(BLOCK, dtype=jnp.int32)]
        varying, shared = arrays.read(data, jnp.minimum(lane, capacity - 1))
        limits = Settings(settings[0], settings[1])

        def trip(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            number, ended, state = carry
            reached = evaluate_columns(
                plan,
                rows,
                shared,
                trial(state),
                varying,
                read=_Memory.rows,
                rows_at_once=min(rows_at_once, plan.num_terms),
            )
            state, ended = _for_triton(step)(state, ended, reached, limit, limits)
            return number + 1, ended, state

        goes_on = lambda carry: (carry[0] < steps[0]) & (jnp.min(carry[1].astype(jnp.int32)) == 0)  # noqa: E731
        # Lines of memory first: each holds all columns of one lane.
        at = _grid(jnp.arange(states.size, dtype=jnp.int32), lane)[::-1]
        state, _, limit = states.unpack(_split(before[at]))
        _, ended, state = lax.while_loop(goes_on, trip, (jnp.int32(0), lane == capacity, state))
        after[at] = _joined(states.pack(state, ended, limit))

    # The last row belongs to no data set: surplus lanes of blocks that are not full write there.
    number = jnp.arange(capacity + 1, dtype=jnp.int32)
    one_more = lambda x: jnp.concatenate([x, jnp.zeros_like(x[:1])])  # noqa: E731
    table = states.begun(one_more(chunk.starts), number >= chunk.size, one_more(chunk.max_steps))
    call = pl.pallas_call(
        kernel,
        grid=(capacity // BLOCK,),
        out_shape=jax.ShapeDtypeStruct(table.shape, dtype),
        input_output_aliases={3: 0},
        **_how(),
    )
    limits = jnp.stack([settings.tolerance, settings.radius_factor]).astype(dtype)

    def waiting(table: Array) -> Array:
        """Whether each lane goes on."""
        return table[:, len(states.like) - 2] == 0

    def one_pass(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        passes, ahead, table = carry
        steps = jnp.where(passes == 0, FIRST_STEPS, STEPS << jnp.clip(passes - DOUBLED_AFTER, 0, 20))
        # The numbers of the lanes that go on, each at its place among them; after the last, that of no lane.
        lane = jnp.minimum(jnp.searchsorted(ahead, number[1:], method="scan_unrolled"), capacity)
        table = call(lane.astype(jnp.int32), steps[None].astype(jnp.int32), limits, table, *arrays.operands)
        return passes + 1, jnp.cumsum(waiting(table), dtype=jnp.int32), table

    ahead = jnp.minimum(number + 1, chunk.size)  # how many of the lanes so far go on
    carry = jnp.int32(0), ahead, table
    _, _, table = lax.while_loop(lambda carry: carry[1][-1] > 0, one_pass, carry)
    if handed_over:
        state, _, limit = states.unpack([table[:, k] for k in range(states.size)])
        begun = [chunk.origins[:, i] for i in range(p)]
        rules: dict[str, Any] = {"tolerance": settings.tolerance, "restricted": restricted, "handed_over": True}
        solution = collect_solutions(state, begun, chunk.num_observed, limit, **rules)
        return solution._replace(
            free=jnp.stack(solution.free, axis=1)[:capacity], num_steps=solution.num_steps[:capacity]
        )
    return _results(states, table, chunk, settings, restricted)


def _results(
    states: _States, table: Float[Array, "c k"], chunk: Chunk, settings: Settings, restricted: tuple[bool, ...]
) -> Float[Array, " r"]:
    """`Solution` as one array, field after field, with both triangles of the information: as the host needs it."""
    capacity, p = chunk.starts.shape

    def columns_of(
        state: State, begun: list[Array], observed: Array, limit: Array, tolerance: Array
    ) -> list[list[Array]]:
        solution = collect_solutions(
            state, begun, observed, limit, tolerance=tolerance, restricted=restricted, handed_over=False
        )
        whole = [solution.curvature[min(i, j), max(i, j)] for i in range(p) for j in range(p)]
        parts = [x if isinstance(x, list) else [x] for x in solution._replace(curvature=whole)]
        return [[x.astype(states.dtype) for x in columns] for columns in parts]

    def kernel(tolerance: Any, before: Any, origins: Any, num_observed: Any, to: Any) -> None:
        lane = pl.program_id(0) * BLOCK + jnp.arange(BLOCK, dtype=jnp.int32)

        def table_of(width: int) -> tuple[Array, Array]:
            """Where the entries of a table (capacity, width) stand, and which are there of a power of two of columns."""
            column, line = _grid(jnp.arange(1 << (width - 1).bit_length(), dtype=jnp.int32), lane)
            return line * width + column, column < width

        state, _, limit = states.unpack(_split(before[table_of(states.size)[0]]))
        place, there = table_of(p)
        begun = _split(triton.load(origins.at[place], mask=there, other=0.0))[:p]
        first = 0
        for columns in _for_triton(columns_of)(state, begun, num_observed[lane], limit, tolerance[0]):
            width = len(columns)
            place, there = table_of(width)
            # By a mask and not by clipped places, so that Triton sees that columns lie side by side and has threads write them so.
            triton.store(to.at[first + place], _joined(columns + columns[-1:] * (place.shape[1] - width)), mask=there)
            first += capacity * width

    out = jax.ShapeDtypeStruct((capacity * (p * p + 2 * p + 4),), states.dtype)
    call = pl.pallas_call(kernel, grid=(capacity // BLOCK,), out_shape=out, **_how())
    tolerance = settings.tolerance.astype(states.dtype)[None]
    return call(tolerance, table.reshape(-1), chunk.origins.reshape(-1), chunk.num_observed)


def information_matrices(
    plan: Plan, rows: RowProgram, varying: Leaves, shared: Leaves, u: Float[Array, "b p"]
) -> Float[Array, "b t"]:
    """The information of each data set at its own u, as `Solution` holds it."""
    capacity, p = u.shape
    arrays = _Arrays(*columns_of_chunk(plan, rows, varying, shared, lanes_last=True))

    def kernel(points: Any, *refs: Any) -> None:
        *data, to = refs
        lane = pl.program_id(0) * BLOCK + jnp.arange(BLOCK, dtype=jnp.int32)
        varying, shared = arrays.read(data, lane)
        at = evaluate_columns(plan, rows, shared, [points[i, lane] for i in range(p)], varying)
        for k, entry in enumerate(at.information.values()):
            to[k, lane] = entry

    out = jax.ShapeDtypeStruct((p * (p + 1) // 2, capacity), u.dtype)
    return pl.pallas_call(kernel, grid=(capacity // BLOCK,), out_shape=out, **_how())(u.T, *arrays.operands).T


def compiled(function: Callable[..., Any], *arguments: Any) -> Any:
    """A program with kernels in it, compiled for arguments of these shapes."""
    with without_deprecation():
        return jax.jit(function).lower(*arguments).compile()


_ONE_AT_A_TIME = threading.Lock()  # the filters of warnings are the process's


@contextlib.contextmanager
def without_deprecation() -> Iterator[None]:
    """JAX intends to remove the way into the kernel, which does not concern the user: arrays will take over."""
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated", DeprecationWarning)
        yield


def _how() -> dict[str, Any]:
    """The arguments of a kernel: without a GPU it is run by the rules of its language, slowly."""
    if workers.default_device().platform == "cpu":
        return {"interpret": True}
    return {"compiler_params": triton.CompilerParams(num_warps=max(1, BLOCK // 32), num_stages=1)}


def _for_triton(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function in operations that Triton has; its maxima and minima drop NaN, and here they pass it on as elsewhere."""

    def call(*arguments: Any) -> Any:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
        return jax.tree.unflatten(jax.tree.structure(shape), _evaluate(flatten(closed), jax.tree.leaves(arguments)))

    return call


def _evaluate(flat: Flat, arguments: Sequence[Any]) -> list[Any]:
    values: dict[Any, Any] = dict(zip(flat.inputs, arguments, strict=True))
    read = lambda o: values[o] if type(o) is int else o  # noqa: E731
    for step in flat.steps:
        results = _RULES.get(step.name, bind)(step, [read(o) for o in step.operands])
        values.update(zip(step.results, results, strict=True))
    return [read(o) for o in flat.outputs]


def _with_nan(step: Step, operands: list[Any]) -> Sequence[Any]:
    x, y = jnp.broadcast_arrays(*operands)
    (result,) = bind(step, [x, y])
    return [jnp.where(x != x, x, jnp.where(y != y, y, result))]


_RULES: dict[str, Callable[..., Sequence[Any]]] = {
    "while": lambda step, operands: while_loop(step, operands, _evaluate),
    "max": _with_nan,
    "min": _with_nan,
    "reduce_or": lambda step, operands: [jnp.max(operands[0].astype(jnp.int32)) > 0],
}
