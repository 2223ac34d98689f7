"""A user's function of params, as a function of u: its values in one row, their names, and their derivatives."""

import itertools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.errors import call_user, check_function, check_pytree, kind_of
from fisher_jax.fitting.result import Fit
from fisher_jax.models.parameters import Values, path_name
from fisher_jax.models.programs import ById, call_differentiable


@dataclass(frozen=True)
class Output:
    """What a function returns: the names of its numbers, and how they are laid out."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    treedef: Any

    def arranged(self, flat: Any, *, trailing: int = 0) -> PyTree:
        """Numbers in one row as the function returns them. So many axes come after that of the numbers, others before it."""
        axis = flat.ndim - 1 - trailing
        before, after = flat.shape[:axis], flat.shape[axis + 1 :]
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])[:-1]
        xp = np if isinstance(flat, np.ndarray) else jnp
        parts = xp.split(flat, ends, axis=axis)
        leaves = [part.reshape(before + shape + after) for part, shape in zip(parts, self.shapes, strict=True)]
        return jax.tree.unflatten(self.treedef, leaves)


def in_one_row(tree: PyTree) -> Array:
    """All numbers of a pytree."""
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def numbers_of(function: Any, params: PyTree, dtype: Any = None) -> Array:
    """All numbers that a user's function of params returns."""
    found = call_differentiable(function, (params,), "function")
    return in_one_row(jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), found))


@dataclass(frozen=True)
class OfParameters:
    """A function of params, hashable whatever it is."""

    function: ById

    def __call__(self, fit: Fit, free: Float[Array, " p"]) -> Float[Array, " k"]:
        """Its numbers in one row, at u."""
        return numbers_of(self.function.function, fit.layout.constrain(free, fit.values), free.dtype)


def outline(function: Any, fit: Fit, name: str) -> Output:
    """What a function of params returns, learnt without running it; `fit` may have a batch axis."""
    check_function(function, name)
    ahead = jnp.ndim(fit.status_code)
    values = [jax.ShapeDtypeStruct(jnp.shape(value)[ahead:], jnp.result_type(value)) for value in fit.values]

    def of_values(values: Values) -> PyTree:
        found = call_user(function, (fit.layout.assemble(values),), name)
        check_pytree(found, f"what {name} returned")
        for leaf in jax.tree.leaves(found):
            numbers = isinstance(leaf, bool | int | float | np.generic | np.ndarray | jax.Array)
            if not numbers or getattr(getattr(leaf, "dtype", np.dtype(float)), "kind", "O") not in "biufc":
                raise TypeError(
                    f"{name} must return a number, an array or a pytree of them, but returned {kind_of(leaf)}."
                )
        return found

    returned = jax.eval_shape(of_values, values)
    found, treedef = jax.tree_util.tree_flatten_with_path(returned)
    if not any(np.prod(leaf.shape) for _, leaf in found):
        raise TypeError(f"{name} must return a number, an array or a pytree of them, but returned nothing.")
    for _, leaf in found:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"{name} must return floating numbers but returned dtype {leaf.dtype}. "
                "Does it compare or round where it should compute?"
            )
    names = [_names(named_within(name, path), leaf.shape) for path, leaf in found]
    return Output(tuple(itertools.chain(*names)), tuple(leaf.shape for _, leaf in found), treedef)


def named_within(root: str, path: Any) -> str:
    """A path's name, with that of its root where it has none of its own: `params`, `params[1]`, `scale`."""
    name = path_name(path) if path else ""
    return root + name if not name or name.startswith("[") else name


def _names(name: str, shape: tuple[int, ...]) -> list[str]:
    return [f"{name}[{','.join(map(str, index))}]" if shape else name for index in np.ndindex(shape)]


def linearised(function: Any, fit: Fit) -> tuple[Float[Array, " k"], Float[Array, "k p"]]:
    """The numbers of `function(fit, u)` at the estimate, and their derivatives."""
    value, push = jax.linearize(lambda free: function(fit, free), fit.free)
    return value, jax.vmap(push)(jnp.eye(fit.free.shape[0], dtype=fit.free.dtype)).T
