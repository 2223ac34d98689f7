"""A batch in chunks, the data sets that one call of a program takes: how large they are, and how they are filled up.

They have few sizes, so that few programs are compiled, and are padded up to these.
"""

import sys
from typing import Any

import jax
import numpy as np

from fisher_jax.fitting import workers
from fisher_jax.fitting.cpu import LEAST_LANES
from fisher_jax.fitting.row_program import Leaves, Plan

# Data sets that one call takes. Few sizes, so that few programs are compiled. More would leave a CPU's cache: what is made of
# the data before the fits is then bound by memory. At the end of a chunk lanes wait for the slowest, which the larger size makes
# rare. On a GPU a call costs as much as the fits of some thousand data sets.
CAPACITIES = {"cpu": (512, 8192), "gpu": (1024, 8192, 2**17)}
MOST_BYTES = 2**24  # of the data of one chunk on a CPU, where the smallest does not need more
MOST_LANES, MOST_NUMBERS = 2**14, 2**26  # in arrays on a GPU: lanes, and rows × parameters × lanes
OF_FREE_MEMORY = 0.5  # what chunks may take of what is free on another device
COPIES = 3  # of its data that a chunk needs there
MANY_BYTES = 2**20  # of results; the limit was not tuned
TABLE = 128  # numbers at most that the state of a fit needs there


def lanes_of_arrays(num_terms: int, num_free: int) -> int:
    """How many fits are under way at once by default; on a GPU as many as its memory has room for the derivatives of."""
    if workers.platform() == "cpu":
        return LEAST_LANES
    most = max(MOST_NUMBERS // max(num_terms * num_free, 1), 1)
    return int(np.clip(1 << most.bit_length() - 1, LEAST_LANES, MOST_LANES))


def bytes_of_each(varying: Leaves) -> int:
    """How many bytes the varying arrays of one data set have."""
    return sum(leaf.nbytes // max(len(leaf), 1) for leaf in varying)


def pieces_of(
    plan: Plan, count: int, varying: Leaves, devices: workers.Devices, rows: Any = None
) -> tuple[list[slice], int]:
    """The batch in chunks, an equal share for each worker where that fits, and the size that they are filled up to.

    `rows` is the row program, if there is one: what it makes of the data alone needs memory as well.
    """
    sent = bytes_of_each(varying)
    if workers.platform() == "cpu":
        share = -(-count // len(devices))
        most = MOST_BYTES // max(sent, 1)
        sizes = [size for size in CAPACITIES["cpu"] if size <= most] or CAPACITIES["cpu"][:1]
        capacity = next((size for size in sizes if size >= share), sizes[-1])
        size, capacity = min(share, capacity), max(capacity, plan.num_lanes)
    else:
        share = -(-count // len(set(devices)))
        # The terms of `constant` are there until they are summed.
        made = 0 if rows is None else plan.num_terms * (len(rows.varying.outputs) + (rows.constant is not None))
        each = COPIES * sent + 2 * plan.layout.dtype.itemsize * (made + TABLE)
        largest = max([TABLE, made, *(leaf.size // max(count, 1) for leaf in varying)])
        free = []  # what the chunk of each worker may take of a device's memory
        for device in dict.fromkeys(devices):
            memory = (device or workers.default_device()).memory_stats() or {}
            left = memory.get("bytes_limit", sys.maxsize) - memory.get("bytes_in_use", 0)
            free.append(int(OF_FREE_MEMORY * left / devices.count(device)))
        most = max(min(min(free) // each, (2**31 - 1) // largest), LEAST_LANES)  # Triton counts entries in 32 bits
        sizes = [size for size in CAPACITIES["gpu"] if size <= most]
        just = max(LEAST_LANES, 1 << (share - 1).bit_length())
        if not sizes:
            capacity = min(just, 1 << most.bit_length() - 1)
        else:
            capacity = next((size for size in sizes if size >= share), sizes[-1])
            if share < capacity // 2:  # what fills a chunk up is sent as well
                smaller = [size for size in sizes if size <= share]
                capacity = smaller[-1] if smaller else just if capacity * sent > MOST_BYTES else capacity
        size = min(share, capacity)
    return [slice(at, min(at + size, count)) for at in range(0, count, size)], capacity


def pad_chunk(leaf: Any, piece: slice, capacity: int, num_lanes: int, device: Any) -> Any:
    """The data sets of one piece, padded up to `capacity`. Lanes without one step through a copy of its first."""
    size = piece.stop - piece.start
    if isinstance(leaf, jax.Array):  # in the memory of another device, where it stays, or goes on to the next
        padded = _take_rows(leaf, np.minimum(np.arange(piece.start, piece.start + capacity), piece.stop - 1))
        return jax.device_put(padded, device or workers.default_device())
    if size == capacity:
        return leaf[piece]
    whole = np.zeros((capacity, *leaf.shape[1:]), leaf.dtype)
    whole[:size] = leaf[piece]
    whole[size : size + num_lanes] = leaf[piece.start]
    return whole


def to_host(array: jax.Array) -> np.ndarray:
    """The numbers of an array on a device. Many of them go through memory that the device can write to by itself."""
    (device,) = array.devices()
    if array.nbytes >= MANY_BYTES and "pinned_host" in {memory.kind for memory in device.addressable_memories()}:
        array = jax.device_put(array, jax.sharding.SingleDeviceSharding(device, memory_kind="pinned_host"))
    return np.asarray(array)


@jax.jit
def _take_rows(leaf: jax.Array, rows: jax.Array) -> jax.Array:
    return leaf[rows]
