"""Loops in blocks of one size: over rows on the device, over data sets on the host. Memory does not grow with their number."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

CHUNK_ENTRIES = 2**19  # rows × parameters in memory at once
HOST_ENTRIES = 2**23  # numbers in memory at once in a loop over data sets


def in_chunks(
    rows: PyTree,
    weights: Float[Array, " n"] | None,
    at_once: int,
    of_chunk: Callable[[PyTree, Any], tuple[Array, Any]],
    dtype: Any,
) -> tuple[Array, Any]:
    """Apply `of_chunk(rows, weights) -> (by_row, totals)` to all rows: by_row is joined, totals are added up.

    The last chunk reaches back over rows that are counted already, with weight zero, so that all have one size and the rows need
    not be padded, which would copy them. `dtype` is that of weights where there are none.
    """
    n = jax.tree.leaves(rows)[0].shape[0]
    count = -(-n // max(at_once, 1))
    if count == 1:
        return of_chunk(rows, weights)
    of_chunk = jax.jit(of_chunk)  # traced once for its shapes and for the loop
    size = -(-n // count)
    whole = count * size == n

    def cut(k: Array) -> tuple[Array, PyTree, Array | None, Array]:
        start = jnp.minimum(k * size, n - size)
        part, part_weights = jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size), (jax.tree.map(jnp.asarray, rows), weights)
        )
        fresh = start + jnp.arange(size) >= k * size
        if not whole:
            ones = jnp.ones((size,), dtype)
            part_weights = jnp.where(fresh, ones if part_weights is None else part_weights, 0.0)
        return start, part, part_weights, fresh

    def body(k: Array, carry: tuple[Array, Any]) -> tuple[Array, Any]:
        rows_so_far, totals = carry
        start, part, part_weights, fresh = cut(k)
        by_row, added = of_chunk(part, part_weights)
        before = jax.lax.dynamic_slice_in_dim(rows_so_far, start, size)
        by_row = jnp.where(fresh.reshape((-1,) + (1,) * (by_row.ndim - 1)), by_row, before)
        rows_so_far = jax.lax.dynamic_update_slice_in_dim(rows_so_far, by_row, start, axis=0)
        return rows_so_far, jax.tree.map(jnp.add, totals, added)

    by_row, added = jax.eval_shape(lambda: of_chunk(*cut(jnp.array(0))[1:3]))
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), added)
    return jax.lax.fori_loop(0, count, body, (jnp.zeros((n, *by_row.shape[1:]), by_row.dtype), zeros))


def vmap_in_blocks(function: Callable[..., Any], rows: PyTree, at_once: int) -> Any:
    """`jax.vmap(function)(rows)`, at most so many rows at a time.

    The last row is repeated until all blocks have one size. `jax.lax.map(…, batch_size=…)` would compile `function` a second time
    for a smaller block at the end.
    """
    count = jax.tree.leaves(rows)[0].shape[0]
    num_blocks = -(-count // max(at_once, 1))
    if num_blocks <= 1:
        return jax.vmap(function)(rows)
    size = -(-count // num_blocks)
    if extra := num_blocks * size - count:
        repeated = np.minimum(np.arange(count + extra), count - 1)
        rows = jax.tree.map(lambda leaf: leaf[repeated], rows)
    return jax.tree.map(lambda leaf: leaf[:count], jax.lax.map(function, rows, batch_size=size))


def blocks_of(count: int, entries: int) -> Iterator[np.ndarray]:
    """The numbers 0, 1, … of `count` data sets of so many entries, in blocks of one size; the last exceeds the count.

    One size, so that one compiled program serves all blocks.
    """
    size = max(1, min(count, HOST_ENTRIES // max(entries, 1)))
    for start in range(0, count, size):
        yield np.arange(start, start + size)


def map_blocks(function: Callable[[np.ndarray], Any], count: int, size: int) -> Any:
    """`function(rows)` for the rows 0, 1, … of `count`, so many at a time, joined on the host as numpy arrays.

    The last row is repeated to fill the last block, so that one compiled program serves all.
    """
    parts = []
    for start in range(0, count, size):
        parts.append(jax.device_get(function(np.minimum(np.arange(start, start + size), count - 1))))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *parts)
