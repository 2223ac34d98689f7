"""Functions of the parameters, a user's or some entries of them, as functions of u: their numbers, names and derivatives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.errors import call_user, check_function, check_pytree, kind_of
from fisher_jax.fitting.result import Fit
from fisher_jax.models.parameter_names import LinearCombinations, is_text, read_combinations
from fisher_jax.models.parameters import Values, path_name
from fisher_jax.models.programs import ById, call_differentiable


@dataclass(frozen=True)
class Output:
    """What a function returns: the names of its numbers, and how they are laid out."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    treedef: Any

    def arrange(self, flat: Any, *, trailing: int = 0) -> PyTree:
        """Numbers in one row as the function returns them. `trailing` axes come after that of the numbers, others before it."""
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
    returned = call_differentiable(function, (params,), "function")
    return in_one_row(jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), returned))


@dataclass(frozen=True)
class OfParameters:
    """A user's function of params, hashable whatever it is."""

    function: ById

    def __call__(self, fit: Fit, free: Float[Array, " p"]) -> Float[Array, " k"]:
        """Its numbers in one row, at u."""
        return numbers_of(self.function.function, fit.layout.constrain(free, fit.values), free.dtype)


@dataclass(frozen=True)
class Entries:
    """Some entries of θ, by their positions."""

    positions: tuple[int, ...]

    def __call__(self, fit: Fit, free: Float[Array, " p"]) -> Float[Array, " k"]:
        """Their values, at u."""
        return fit.layout.join(fit.layout.constrained_values(free, fit.values))[np.array(self.positions)]


def as_function(given: Any, fit: Fit, name: str) -> Any:
    """The function of params that is meant: the user's, or the parameters or linear combinations that a text names."""
    return read_combinations(fit.layout, given, name) if is_text(given) else given


def outline(function: Any, fit: Fit, name: str) -> Output:
    """What a function of params returns, learnt without running it; `fit` may have a batch axis."""
    check_function(function, name)
    ahead = jnp.ndim(fit.status_code)
    values = [jax.ShapeDtypeStruct(jnp.shape(value)[ahead:], jnp.result_type(value)) for value in fit.values]

    def of_values(values: Values) -> PyTree:
        returned = call_user(function, (fit.layout.assemble(values),), name)
        check_pytree(returned, f"what {name} returned")
        for leaf in jax.tree.leaves(returned):
            is_number = isinstance(leaf, bool | int | float | np.generic | np.ndarray | jax.Array)
            # A key of JAX's random numbers is an array whose dtype has no kind.
            if not is_number or getattr(getattr(leaf, "dtype", np.dtype(float)), "kind", "O") not in "biufc":
                raise TypeError(
                    f"{name} must return a number, an array or a pytree of them, but returned {kind_of(leaf)}."
                )
        return returned

    leaves, treedef = jax.tree_util.tree_flatten_with_path(jax.eval_shape(of_values, values))
    if not any(np.prod(leaf.shape) for _, leaf in leaves):
        raise TypeError(f"{name} must return a number, an array or a pytree of them, but returned nothing.")
    names: list[str] = []
    for path, leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"{name} must return floating numbers but returned dtype {leaf.dtype}. "
                "Does it compare or round where it should compute?"
            )
        whole = name_within(name, path)
        names += [f"{whole}[{','.join(map(str, index))}]" if leaf.shape else whole for index in np.ndindex(leaf.shape)]
    if isinstance(function, LinearCombinations):
        names = list(function.names)
    return Output(tuple(names), tuple(leaf.shape for _, leaf in leaves), treedef)


def name_within(root: str, path: Any) -> str:
    """A path's name, after that of its root where it begins with an index: `params`, `params[1]`, `scale`."""
    name = path_name(path) if path else ""
    return root + name if not name or name.startswith("[") else name


def linearize(function: Callable[[Fit, Array], Array], fit: Fit) -> tuple[Float[Array, " k"], Float[Array, "k p"]]:
    """The numbers of `function(fit, u)` at the estimate, and their derivatives with respect to u."""
    value, push = jax.linearize(lambda free: function(fit, free), fit.free)
    return value, jax.vmap(push)(jnp.eye(fit.free.shape[0], dtype=fit.free.dtype)).T
