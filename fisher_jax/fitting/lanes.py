"""Many maximisations on the device, none waiting for another: lanes that take the next data set when they are done.

One loop, whose trips step all lanes once by the step that a single fit uses. A lane that has finished writes where it ended
to the next free row of the output and takes the next data set from the queue. A call ends when its queue is empty; what is
then unfinished stays in its lane for the next call, so that only the last call waits for its stragglers. Nothing returns to
the host meanwhile, and nothing passes between devices: each runs its own lanes on its own queue.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PyTree

from fisher_jax.fitting.problem import problem_of
from fisher_jax.fitting.running import Problem, Run, begin, trip, unfinished
from fisher_jax.fitting.solve import ended
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Values, joined
from fisher_jax.optimizers.damped import DampedState

Leaves = list[Any]  # of the data sets: start u, then what differs among them


@dataclass(frozen=True)
class Plan:
    """What a program is compiled for. Hashable.

    `treedef` puts (values, data, given, weights) together again from leaves, of which `mapped` says which ones differ among the
    data sets. `num_lanes` and `capacity`, the data sets in a queue, are those of one device.
    """

    model: Model
    layout: Layout
    optimizer: Any
    treedef: Any
    mapped: tuple[bool, ...]
    num_lanes: int
    capacity: int
    mesh: Mesh

    @property
    def rows(self) -> int:
        """Data sets that one call takes, over all devices."""
        return self.capacity * self.mesh.size

    def parts(self, own: Leaves, shared: Leaves) -> tuple[Values, Dataset]:
        """The parameters' leaves and the sample of one data set."""
        values, data, given, weights = jax.tree.unflatten(self.treedef, joined(self.mapped, own, shared))
        return values, Dataset(data, given, weights)

    def problem(self, own: Leaves, shared: Leaves) -> Problem:
        """What is maximised for one data set; its start comes first among its leaves."""
        values, sample = self.parts(own[1:], shared)
        return problem_of(self.model, self.layout, values, sample, own[0], "fit_batch")


class Lanes(NamedTuple):
    """One device's lanes between two calls: the row that each is at work on (−1: none), its run, and its data set."""

    row: Int[Array, " L"]
    run: Run
    held: Leaves


class Settings(NamedTuple):
    """What may change without compiling anew."""

    tolerance: Any
    max_steps: Any
    damping_factor: Any  # times the damping that the optimiser begins with


class Ended(NamedTuple):
    """Where runs ended, in the order in which they did: rows of numbers, floating ones apart from integers and truths.

    `ended` counts the rows; the first integer of each is the data set's own row. `busy` and `trips` count the lanes' steps and
    those that they had time for.
    """

    floats: Float[Array, "R f"]
    integers: Int[Array, "R i"]
    ended: Int[Array, " D"]
    busy: Float[Array, " D"]
    trips: Float[Array, " D"]


class _Loop(NamedTuple):
    source: Int[Array, " L"]  # where in the buffer each lane's data set lies
    row: Int[Array, " L"]
    run: Run
    taken: Int[Array, ""]
    out: Ended


def empty_lanes(plan: Plan, chunk: Leaves, shared: Leaves) -> Lanes:
    """Idle lanes for all devices, to begin with; what they step through in vain is the first data set."""
    lanes = plan.num_lanes * plan.mesh.size
    own = [np.repeat(leaf[:1], lanes, axis=0) for leaf in chunk]
    shapes = _run_shapes(plan, *(tuple(map(_shape, leaves)) for leaves in (own, shared)))
    run = jax.tree.map(lambda shape: np.zeros(shape.shape, shape.dtype), shapes)
    return Lanes(jnp.full((lanes,), -1, jnp.int32), run, own)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jax.dtypes.canonicalize_dtype(jnp.result_type(leaf)))


@functools.lru_cache(maxsize=64)
def _run_shapes(plan: Plan, own: tuple[Any, ...], shared: tuple[Any, ...]) -> Run:
    def beginning(own: Leaves, shared: Leaves) -> Run:
        return jax.vmap(lambda own: begin(plan.problem(own, shared), plan.optimizer))(own)

    return jax.eval_shape(beginning, list(own), list(shared))


@functools.lru_cache(maxsize=64)
def program(plan: Plan) -> Any:
    """The compiled call: (lanes, chunk, shared, count, first, drain, settings) → (lanes, ended)."""
    one, all_of = PartitionSpec(plan.mesh.axis_names), PartitionSpec()
    sharded = jax.shard_map(
        functools.partial(_call, plan),
        mesh=plan.mesh,
        in_specs=(one, one, all_of, one, one, all_of, all_of),
        out_specs=one,
        check_vma=False,
    )
    return jax.jit(sharded, donate_argnums=0)


def _call(
    plan: Plan,
    lanes: Lanes,
    chunk: Leaves,
    shared: Leaves,
    count: Int[Array, "1"],
    first: Int[Array, "1"],
    drain: Bool[Array, ""],
    settings: Settings,
) -> tuple[Lanes, Ended]:
    """Work through `count` data sets of the chunk, whose rows are numbered from `first`; with `drain`, to the last lane."""
    buffer = [jnp.concatenate([held, new]) for held, new in zip(lanes.held, chunk, strict=True)]

    def goes_on(loop: _Loop) -> Array:
        return (loop.taken < count[0]) | (drain & jnp.any(loop.row >= 0))

    def body(loop: _Loop) -> _Loop:
        loop, new = _refill(plan, loop, count[0], first[0])
        # Gathered once: fused into each of the derivatives' passes it would be read out of order again and again.
        own = jax.lax.optimization_barrier([leaf[loop.source] for leaf in buffer])
        run = jax.vmap(functools.partial(_lane, plan, shared, settings))(own, new, loop.run)
        return _write(loop, run, settings.max_steps)

    start = jnp.arange(plan.num_lanes, dtype=jnp.int32)
    loop = _Loop(start, lanes.row, lanes.run, jnp.zeros((), jnp.int32), _nothing(plan, lanes.run))
    loop = jax.lax.while_loop(goes_on, body, loop)
    return Lanes(loop.row, loop.run, [leaf[loop.source] for leaf in buffer]), loop.out


def _nothing(plan: Plan, run: Run) -> Ended:
    """Room for what a call may end: its own queue, and what was left in the lanes."""
    floats, integers = jax.eval_shape(_pack, run, jnp.zeros((plan.num_lanes,), jnp.int32))
    rows = plan.capacity + plan.num_lanes
    return Ended(
        jnp.zeros((rows, floats.shape[1]), floats.dtype),
        jnp.zeros((rows, integers.shape[1]), jnp.int32),
        jnp.zeros((1,), jnp.int32),
        jnp.zeros((1,), jnp.float32),
        jnp.zeros((1,), jnp.float32),
    )


def _refill(plan: Plan, loop: _Loop, count: Array, first: Array) -> tuple[_Loop, Bool[Array, " L"]]:
    """Give idle lanes the next data sets in the queue."""
    idle = loop.row < 0
    next_one = loop.taken + jnp.cumsum(idle, dtype=jnp.int32) - 1
    new = idle & (next_one < count)
    source = jnp.where(new, plan.num_lanes + next_one, loop.source)
    row = jnp.where(new, first + next_one, loop.row)
    return loop._replace(source=source, row=row, taken=loop.taken + jnp.sum(new, dtype=jnp.int32)), new


def _lane(plan: Plan, shared: Leaves, settings: Settings, own: Leaves, new: Bool[Array, ""], run: Run) -> Run:
    """One trip of one lane, from the start if its data set is new."""
    problem = plan.problem(own, shared)
    fresh = begin(problem, plan.optimizer)
    if isinstance(fresh.state, DampedState):  # the terms of the last data set are looked at by no first step
        damping = fresh.state.damping * settings.damping_factor
        fresh = fresh._replace(state=fresh.state._replace(terms=run.state.terms, damping=damping))
    run = jax.tree.map(lambda fresh, old: jnp.where(new, fresh, old), fresh, run)
    return trip(problem, plan.optimizer, run, settings.tolerance, settings.max_steps)


def _write(loop: _Loop, run: Run, max_steps: Array) -> _Loop:
    """Write where finished lanes ended, and set them idle."""
    out, at_work = loop.out, loop.row >= 0
    done = at_work & ~jax.vmap(unfinished, (0, None))(run, max_steps)
    place = jnp.where(done, out.ended[0] + jnp.cumsum(done, dtype=jnp.int32) - 1, len(out.floats))
    floats, integers = _pack(run, loop.row)
    out = Ended(
        out.floats.at[place].set(floats, mode="drop"),
        out.integers.at[place].set(integers, mode="drop"),
        out.ended + jnp.sum(done, dtype=jnp.int32),
        out.busy + jnp.sum(at_work, dtype=jnp.float32),
        out.trips + 1,
    )
    return loop._replace(row=jnp.where(done, -1, loop.row), run=run, out=out)


def _pack(run: Run, row: Int[Array, " L"]) -> tuple[Float[Array, "L f"], Int[Array, "L i"]]:
    """What is kept of each run as a row of floating numbers and a row of integers, the data set's own row first."""
    leaves = jax.tree.leaves(ended(run))
    floats = [leaf.reshape(len(row), -1) for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    others = [leaf.reshape(len(row), -1) for leaf in leaves if not jnp.issubdtype(leaf.dtype, jnp.floating)]
    integers = [row[:, None], *(leaf.astype(jnp.int32) for leaf in others)]
    return jnp.concatenate(floats, axis=1), jnp.concatenate(integers, axis=1)


def unpack(like: PyTree, floats: Float[Array, " f"], integers: Int[Array, " i"]) -> PyTree:
    """One run's end from its rows of numbers, the first integer left out; `like` has its structure, shapes and dtypes."""
    leaves, treedef = jax.tree.flatten(like)
    taken = {True: 0, False: 1}
    found = []
    for leaf in leaves:
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        size = int(np.prod(leaf.shape))
        part = (floats if floating else integers)[taken[floating] : taken[floating] + size]
        taken[floating] += size
        found.append(part.reshape(leaf.shape).astype(leaf.dtype))
    return jax.tree.unflatten(treedef, found)
