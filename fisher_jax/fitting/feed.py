"""Chunks of data sets through the lanes of all devices, and the fits that come out, in order."""

import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fisher_jax.fitting.fit import record, unsound_at
from fisher_jax.fitting.lanes import Ended, Lanes, Leaves, Plan, Settings, empty_lanes, program, unpack
from fisher_jax.fitting.result import Fit
from fisher_jax.fitting.running import begin
from fisher_jax.fitting.solve import conclude, ended
from fisher_jax.models.likelihood import outer_product_at


class Work(NamedTuple):
    """Steps that the lanes took, and those that they had time for."""

    busy: float = 0.0
    trips: float = 0.0


class _Open(NamedTuple):
    """A chunk on its way: its data sets, and where those that have ended did."""

    chunk: Leaves
    floats: np.ndarray
    integers: np.ndarray
    missing: np.ndarray  # how many have not ended: one number, changed in place


def fits_of(
    plan: Plan, chunks: Iterable[Leaves], shared: Leaves, settings: Settings, kinds: tuple[str, ...], work: list[Work]
) -> Iterator[Fit]:
    """The fits of each chunk of at most `plan.rows` data sets, as numpy arrays, in order. `work` gains an entry per call."""
    shared = _on_all_devices(plan, shared)
    opened: dict[int, _Open] = {}
    lanes: Lanes | None = None
    launched: Ended | None = None
    given_out = 0
    for number, (chunk, last) in enumerate(_with_last(chunks)):
        if lanes is None:
            lanes = jax.device_put(empty_lanes(plan, chunk, shared), _over_devices(plan))
        opened[number] = _open(chunk)
        lanes, out = _launch(plan, lanes, chunk, shared, number * plan.rows, last, settings)
        waiting, launched = launched, out  # look at the call before while this one runs
        for ending in [waiting] if not last else [waiting, launched]:
            _collect(plan, ending, opened, work)
        while given_out in opened and not opened[given_out].missing[0]:
            yield _finish(plan, opened.pop(given_out), shared, settings, kinds)
            given_out += 1


def _with_last(chunks: Iterable[Leaves]) -> Iterator[tuple[Leaves, bool]]:
    """Each chunk, and whether it is the last."""
    iterator = iter(chunks)
    held = next(iterator, None)
    while held is not None:
        following = next(iterator, None)
        yield held, following is None
        held = following


def _open(chunk: Leaves) -> _Open:
    count = len(chunk[0])
    return _Open(chunk, np.empty((count, 0)), np.empty((count, 0), np.int32), np.array([count]))


def _launch(
    plan: Plan, lanes: Lanes, chunk: Leaves, shared: Leaves, first: int, last: bool, settings: Settings
) -> tuple[Lanes, Ended]:
    """Start one call on all devices, each with an equal share of the chunk."""
    devices, count = plan.mesh.size, len(chunk[0])
    share = -(-count // devices)
    starts = np.minimum(np.arange(devices) * share, count)
    counts = np.minimum(starts + share, count) - starts
    padded = [_padded(leaf, starts, counts, plan.capacity) for leaf in chunk]
    own = jax.device_put((padded, counts.astype(np.int32), (first + starts).astype(np.int32)), _over_devices(plan))
    return program(plan)(lanes, own[0], shared, own[1], own[2], np.bool_(last), settings)


def _on_all_devices(plan: Plan, shared: Leaves) -> Leaves:
    return jax.device_put(shared, NamedSharding(plan.mesh, PartitionSpec()))


def _over_devices(plan: Plan) -> NamedSharding:
    return NamedSharding(plan.mesh, PartitionSpec(plan.mesh.axis_names))


def _padded(leaf: np.ndarray, starts: np.ndarray, counts: np.ndarray, capacity: int) -> np.ndarray:
    """Each device's share, filled up with the first data set."""
    if len(starts) == 1 and counts[0] == capacity:
        return leaf
    whole = np.repeat(leaf[:1], len(starts) * capacity, axis=0).reshape(len(starts), capacity, *leaf.shape[1:])
    for k, (start, count) in enumerate(zip(starts, counts, strict=True)):
        whole[k, :count] = leaf[start : start + count]
    return whole.reshape(-1, *leaf.shape[1:])


def _collect(plan: Plan, ending: Ended | None, opened: dict[int, _Open], work: list[Work]) -> None:
    """Put what ended in a call where it belongs."""
    if ending is None:
        return
    out: Ended = jax.device_get(ending)
    work.append(Work(float(out.busy.sum()), float(out.trips.sum()) * plan.num_lanes))
    room = plan.capacity + plan.num_lanes
    ends = np.concatenate([np.arange(count) + k * room for k, count in enumerate(out.ended)])
    floats, integers = out.floats[ends], out.integers[ends]
    numbers = integers[:, 0] // plan.rows
    for number in np.unique(numbers):
        mine, open_ = numbers == number, opened[int(number)]
        if not open_.floats.shape[1]:
            count = len(open_.floats)
            open_ = opened[int(number)] = open_._replace(
                floats=np.empty((count, floats.shape[1]), floats.dtype),
                integers=np.empty((count, integers.shape[1]), np.int32),
            )
        rows = integers[mine, 0] - number * plan.rows
        open_.floats[rows], open_.integers[rows] = floats[mine], integers[mine]
        open_.missing[0] -= len(rows)


def _finish(plan: Plan, done: _Open, shared: Leaves, settings: Settings, kinds: tuple[str, ...]) -> Fit:
    count = len(done.floats)
    padded = [_grown(leaf, plan.rows) for leaf in (done.floats, done.integers, *done.chunk)]
    floats, integers, *chunk = jax.device_put(padded, _over_devices(plan))
    fits = jax.device_get(_judged(plan, kinds, chunk, shared, floats, integers, settings))
    return jax.tree.map(lambda leaf: leaf[:count], fits)


def _grown(leaf: np.ndarray, rows: int) -> np.ndarray:
    if len(leaf) == rows:
        return leaf
    return np.concatenate([leaf, np.repeat(leaf[:1], rows - len(leaf), axis=0)])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _judged(
    plan: Plan, kinds: tuple[str, ...], chunk: Leaves, shared: Leaves, floats: Any, integers: Any, settings: Settings
) -> Fit:
    """The record of each run: its status, and what its covariances need. All lanes alike, so nothing waits here."""

    def one(own: Leaves, floats: Any, integers: Any) -> Fit:
        problem = plan.problem(own, shared)
        like = jax.eval_shape(lambda: ended(begin(problem, plan.optimizer)))
        run = unpack(like, floats, integers)
        found = conclude(problem, run, settings.tolerance, settings.max_steps)
        values, sample = plan.parts(own[1:], shared)
        return record(plan.model, plan.layout, values, sample, problem, found, kinds)

    return jax.vmap(one)(chunk, floats, integers)


def first_unsound(plan: Plan, own: Leaves, shared: Leaves) -> np.ndarray:
    """For each data set the first observation whose log-density or score is not finite at the start; −1 where all are."""
    padded = jax.device_put([_grown(leaf, plan.rows) for leaf in own], _over_devices(plan))
    return jax.device_get(_unsound(plan, padded, _on_all_devices(plan, shared)))[: len(own[0])]


@functools.partial(jax.jit, static_argnums=0)
def _unsound(plan: Plan, own: Leaves, shared: Leaves) -> Any:
    def one(own: Leaves) -> Any:
        target = plan.problem(own, shared).likelihood
        return unsound_at(target, own[0], outer_product_at(target, own[0])[0])

    return jax.vmap(one)(own)
