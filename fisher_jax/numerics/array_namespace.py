"""numpy for numbers that are known, jax.numpy for what is traced, so that one formula serves both.

A person waits for every program that JAX compiles, and the numbers of a finished fit are few: numpy computes them at once.
Inside `jit`, `vmap` or `grad` the same formula runs on tracers. Formulas keep leading axes (…), those of many fits.
"""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

if TYPE_CHECKING:
    AnyArray = Any  # no type checker knows what the two have in common
else:
    AnyArray = Array | np.ndarray | np.generic  # numpy's own reductions return scalars


def namespace(*trees: PyTree) -> Any:
    """`jax.numpy` where any leaf is an array or a tracer of JAX, else `numpy`."""
    if len(trees) == 1 and isinstance(trees[0], np.ndarray):  # most calls, and those for which time counts
        return np
    return jnp if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(trees)) else np


def is_traced(*trees: PyTree) -> bool:
    """Whether any leaf is known only when compiled code runs."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def on_host(tree: PyTree) -> PyTree:
    """The tree with arrays of numpy; as it is where any leaf is traced."""
    return tree if is_traced(tree) else jax.tree.map(np.asarray, tree)
