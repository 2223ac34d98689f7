"""Whole fits in one CPU kernel: rows and steps in loops, 64 lanes, compiled into a single function.

XLA's CPU runtime starts a kernel of its own for each fusion, copy and reduction; a step of 64 lanes would start hundreds, each
on an array of half a kilobyte. A call with the attributes below is compiled into one function instead, loops included. They
are undocumented names of XLA: where it ignores them the results are the same to rounding, only slower;
`tests/test_engine.py` fails then, for each JAX that is supported.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from fisher_jax.models.programs import SAME_SUMS
from fisher_jax.numerics.fusion import evaluate_in_stages

# Below that LLVM contracts other products, and results differ in their last bits; above, data leave the cache.
LEAST_LANES = 64
ONE_KERNEL = {"xla_cpu_small_call": "true", "inlineable": "false"}
# fisher_jax runs one thread for each core, so Eigen's are off. Vectors of 512 bits are worth 1.1 to 1.4 times where there are
# any. Sums that XLA hands to a library (YNNPACK, see `SAME_SUMS`) cannot be part of a kernel either.
COMPILER_OPTIONS = {
    "xla_cpu_multi_thread_eigen": False,
    "xla_cpu_prefer_vector_width": 512,
    **SAME_SUMS,
}


def one_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as one CPU kernel."""

    def call(*arguments: Any) -> Any:
        # Traced outside the marked context, so that only the calls below are marked and what they call is inlined.
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
        run = evaluate_in_stages(closed, lambda values: hold(*values))
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
