"""Whole fits in one CPU kernel: rows and steps in loops, 64 lanes, compiled into a single function.

XLA's CPU runtime starts a kernel of its own for each fusion, copy and reduction; a step of 64 lanes would start hundreds, each
on an array of half a kilobyte. A call with the attributes below is compiled into one function instead, loops included. They
are undocumented names of XLA: where it ignores them the results are the same to rounding, only slower, and
`tests/test_engine.py` says so for each JAX that is supported.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array

from fisher_jax.fitting.plan import Leaves, Plan
from fisher_jax.fitting.rows import RowProgram, Scalars, row_program
from fisher_jax.numerics.stages import in_stages
from fisher_jax.optimizers.newton import Evaluation, Kind

ONE_KERNEL = {"xla_cpu_small_call": "true", "inlineable": "false"}
# Threads of ours do what Eigen's would: a core each. Vectors of 512 bits are worth 1.1 to 1.4 times where there are any. Sums that
# XLA hands to a library (YNNPACK, from JAX 0.11 on by default) cannot be part of a kernel.
COMPILER_OPTIONS = {
    "xla_cpu_multi_thread_eigen": False,
    "xla_cpu_prefer_vector_width": 512,
    "xla_cpu_experimental_ynn_fusion_type": "",
}


def one_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as one CPU kernel."""

    def call(*arguments: Any) -> Any:
        # Traced outside the marked context, so that only the calls below are marked and what they call is inlined.
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
        run = in_stages(closed, lambda values: hold(*values))
        treedef = jax.tree.structure(shape)

        @jax.jit
        def hold(*values: Any) -> Any:
            return values

        @jax.jit
        def inner(*leaves: Any) -> Any:
            # XLA (jaxlib 0.10) aborts the process where a marked call does not use one of its arguments. So it returns, beside
            # its outputs, a condition on all of them that never holds, which only LLVM can know.
            ends = [leaf.reshape(-1)[0].astype(jnp.float32) for leaf in leaves if leaf.size]
            return run(*leaves), functools.reduce(jnp.logical_or, [(e != e) & (e == e) for e in ends])

        with set_xla_metadata(**ONE_KERNEL):
            outputs, never = inner(*jax.tree.leaves(arguments))
        # Used out here, on the smallest output: work on large arrays inside would be cut up for threads, and fail to link.
        k = min(range(len(outputs)), key=lambda k: outputs[k].size)
        outputs[k] = lax.select(jnp.broadcast_to(never, outputs[k].shape), jnp.zeros_like(outputs[k]), outputs[k])
        return jax.tree.unflatten(treedef, outputs)

    return call


def rows_of(plan: Plan, kind: Kind, own: Leaves, shared: Leaves) -> RowProgram:
    """The row program of a plan for data sets with arrays of these shapes.

    Raises
    ------
    CannotExpand
        Where the density uses what has no form on single numbers.
    """

    def like(leaf: Any, drop: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(np.shape(leaf)[drop:], jax.dtypes.canonicalize_dtype(leaf.dtype))

    own_fixed, own_rows = plan.split(own, own=True)
    shared_fixed, shared_rows = plan.split(shared, own=False)
    fixed = plan.fixed([like(leaf, 1) for leaf in own_fixed], [like(leaf, 0) for leaf in shared_fixed])
    rows = [like(leaf, 2) for leaf in own_rows], [like(leaf, 1) for leaf in shared_rows]
    return row_program(plan.model, plan.layout, kind, fixed, *rows, plan.observations, plan.values)


def columns_of_chunk(plan: Plan, rows: RowProgram, own: Leaves, shared: Leaves) -> tuple[Leaves, Leaves]:
    """The arrays of a chunk that the lanes hold in columns, and those that all share, as `evaluate_columns` takes them.

    What depends on the data alone is computed here, for the whole chunk, where XLA works on large arrays.
    """
    own_fixed, own_rows = plan.split(own, own=True)
    shared_fixed, shared_rows = plan.split(shared, own=False)
    flat_own = [leaf.reshape(*leaf.shape[:2], -1) for leaf in own_rows]
    flat_shared = [leaf.reshape(leaf.shape[0], -1) for leaf in shared_rows]
    leading = (flat_own or own_fixed or [jnp.zeros((1,))])[0].shape[0]
    own_parts = [jnp.broadcast_to(x, (leading, plan.num_terms)) for x in rows.own(_last_axis(flat_own))]
    shared_parts = [jnp.broadcast_to(x, (plan.num_terms,)) for x in rows.shared(_last_axis(flat_shared))]
    return [*flat_own, *own_parts, *own_fixed], [*flat_shared, *shared_parts, *shared_fixed]


def evaluate_columns(plan: Plan, rows: RowProgram, common: Leaves, u: Scalars, columns: Leaves) -> Evaluation:
    """Log-likelihood, gradient and information of the data sets in the columns, whose last axis is that of lanes."""
    of_data = plan.differs[plan.num_fixed :]
    own_rows, own_parts, own_fixed = _cut(columns, sum(of_data), len(rows.own.outputs))
    shared_rows, shared_parts, shared_fixed = _cut(common, len(of_data) - sum(of_data), len(rows.shared.outputs))
    fixed = plan.fixed(
        [[leaf[index] for index in np.ndindex(leaf.shape[:-1])] for leaf in own_fixed],
        [[leaf[index] for index in np.ndindex(leaf.shape)] for leaf in shared_fixed],
    )

    def row_at(r: Array) -> tuple[Scalars, ...]:
        return (
            [leaf[r, j] for leaf in own_rows for j in range(leaf.shape[1])],
            [leaf[r, j] for leaf in shared_rows for j in range(leaf.shape[1])],
            [part[r] for part in own_parts],
            [part[r] for part in shared_parts],
        )

    return rows.evaluate(u, [entry for entries in fixed for entry in entries], plan.num_terms, row_at)


def _cut(leaves: Leaves, first: int, second: int) -> tuple[Leaves, Leaves, Leaves]:
    return leaves[:first], leaves[first : first + second], leaves[first + second :]


def _last_axis(leaves: Leaves) -> Leaves:
    return [leaf[..., j] for leaf in leaves for j in range(leaf.shape[-1])]
