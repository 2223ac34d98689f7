"""numpy for concrete arrays, jax.numpy for traced ones, so that one formula serves both.

Every program that JAX compiles takes time before it runs, and the numbers of a finished fit are few: numpy computes them at once.
Inside `jit`, `vmap` or `grad` the same formula runs on tracers. Formulas keep leading axes (…), those of many fits.
"""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

if TYPE_CHECKING:
    AnyArray = Any  # type checkers have no common base of the two
else:
    AnyArray = Array | np.ndarray | np.generic  # numpy's own reductions return scalars


def namespace(*trees: PyTree) -> Any:
    """`jax.numpy` where any leaf is an array or a tracer of JAX, else `numpy`."""
    if len(trees) == 1 and isinstance(trees[0], np.ndarray | np.generic):  # most calls, and those whose time counts
        return np
    return jnp if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(trees)) else np


def is_traced(*trees: PyTree) -> bool:
    """Whether any leaf has a value only when compiled code runs."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def on_host(tree: PyTree) -> PyTree:
    """The tree with arrays of numpy; unchanged where any leaf is traced."""
    return tree if is_traced(tree) else jax.tree.map(np.asarray, tree)
