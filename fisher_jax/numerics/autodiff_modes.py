"""Functions that JAX can differentiate in one mode only, made ready for both.

A function with a `jax.custom_vjp` in it (an ODE solved by `odeint`, say) has derivatives in reverse only, one with a
`jax.lax.while_loop` forward only. Which modes a function allows is tried on abstract values. Where one is missing the
function gets a rule by which JAX can go on in either: its Jacobian J(x) in the mode that there is, times the tangent. That is
linear in the tangent, so that reverse mode can transpose it. Second derivatives are those of J, forward where that can be;
else J, as a function of x, gets such a rule too.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, PyTree

from fisher_jax.numerics.jaxprs import primitives_of

Mode = Literal["both", "reverse", "reverse over reverse", "reverse once", "forward", "forward once", "neither"]

# What may lack a mode; other functions are not tried, which would take several traces of each.
SUSPECTS = {"custom_vjp_call", "custom_vjp_call_jaxpr", "while"}
# Left behind by a forward derivative through a `custom_vjp`, which is an error only when it is compiled.
MARK_OF_FAILURE = "custom_lin"


def in_both_modes(
    function: Callable[..., PyTree], arguments: tuple[PyTree, ...], known: dict[Any, Mode]
) -> Callable[..., PyTree]:
    """The function, or where it has derivatives in one mode only, one of the same value that has both.

    `arguments` tell structure and shapes; `known` keeps what was found for these.
    """
    leaves, treedef = jax.tree.flatten(arguments)
    is_array = [(hasattr(leaf, "shape") and hasattr(leaf, "dtype")) or isinstance(leaf, float) for leaf in leaves]
    shapes = [
        jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))
        for leaf, a in zip(leaves, is_array, strict=True)
        if a
    ]
    key = treedef, tuple(is_array), tuple((shape.shape, str(shape.dtype)) for shape in shapes)
    results: list[Any] = []  # the structure of what the function returns, known when it was called

    def of_arrays(*arrays: Array) -> tuple[Array, ...]:
        given = iter(arrays)
        whole = [next(given) if a else leaf for leaf, a in zip(leaves, is_array, strict=True)]
        found, structure = jax.tree.flatten(function(*jax.tree.unflatten(treedef, whole)))
        results[:] = [structure]
        # What is no array is for the caller to complain of.
        return tuple(jnp.asarray(leaf) for leaf in found if hasattr(leaf, "dtype") or isinstance(leaf, int | float))

    if key not in known:
        known[key] = _mode_of(of_arrays, shapes)
    if known[key] == "both":
        return function
    ready = _with_rule(of_arrays, known[key])

    def call(*arguments: PyTree) -> PyTree:
        now = [leaf for leaf, a in zip(jax.tree.leaves(arguments), is_array, strict=True) if a]
        found = ready(*map(jnp.asarray, now))
        return jax.tree.unflatten(results[0], found)

    return call


def _mode_of(function: Callable[..., tuple[Array, ...]], shapes: list[jax.ShapeDtypeStruct]) -> Mode:
    """Which derivatives by the floating arguments can be had, as far as tracing shows."""
    if primitives_of(jax.make_jaxpr(function)(*shapes)).isdisjoint(SUSPECTS):
        return "both"
    moved = tuple(k for k, shape in enumerate(shapes) if jnp.issubdtype(shape.dtype, jnp.floating))

    def total(*arrays: Array) -> Array:
        floating = [leaf for leaf in function(*arrays) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        return sum(map(jnp.sum, floating), jnp.zeros(()))

    def forward(of: Callable[..., Any]) -> Callable[..., Any]:
        def along(*arrays: Array) -> Any:
            def of_moved(*some: Array) -> Any:
                return of(*_replaced(arrays, moved, some))

            some = [arrays[k] for k in moved]
            return jax.jvp(of_moved, some, [jnp.ones_like(x) for x in some])

        return along

    def reverse(of: Callable[..., Any]) -> Callable[..., Any]:
        def summed(*arrays: Array) -> Array:
            return sum(map(jnp.sum, jax.tree.leaves(of(*arrays))), jnp.zeros(()))

        return jax.grad(summed, argnums=moved)

    def works(of: Callable[..., Any]) -> bool:
        try:
            return MARK_OF_FAILURE not in primitives_of(jax.make_jaxpr(of)(*shapes))
        except (TypeError, ValueError, NotImplementedError, AssertionError):  # JAX has many words for it
            return False

    if not moved:
        return "both"
    if works(forward(total)):
        if works(forward(reverse(total))):
            return "both"
        return "forward" if works(forward(forward(total))) else "forward once"
    if works(forward(reverse(total))):
        return "reverse"
    if works(reverse(reverse(total))):
        return "reverse over reverse"
    return "reverse once" if works(reverse(total)) else "neither"


def _with_rule(function: Callable[..., tuple[Array, ...]], mode: Mode) -> Callable[..., tuple[Array, ...]]:
    """The function with a rule for its derivative in the mode that it has."""
    ready = jax.custom_jvp(function)

    def rule(primals: tuple[Array, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
        if mode == "neither":
            raise TypeError(
                "a function cannot be differentiated as often as it takes, neither forward nor in reverse: a custom_vjp or a "
                "while_loop in it stands in the way. Write it with jax.custom_jvp, or with jax.lax.scan in place of a while_loop."
            )
        moved = tuple(k for k, tangent in enumerate(tangents) if not isinstance(tangent, SymbolicZero))

        def jacobian(*arrays: Array) -> tuple[Array, ...]:
            """A row of slopes for each result."""

            def of_moved(*some: Array) -> tuple[Array, ...]:
                return function(*_replaced(arrays, moved, some))

            each = jax.jacfwd if mode.startswith("forward") else jax.jacrev
            rows = each(of_moved, argnums=tuple(range(len(moved))))(*(arrays[k] for k in moved))
            return tuple(slope for row in rows for slope in row)

        if mode == "reverse over reverse":
            jacobian = _with_rule(jacobian, mode)
        elif mode.endswith("once"):
            jacobian = _with_rule(jacobian, "neither")
        results, slopes = ready(*primals), iter(jacobian(*primals))
        return results, tuple(sum(_contracted(next(slopes), tangents[k]) for k in moved) for _ in results)

    ready.defjvp(rule, symbolic_zeros=True)
    return ready


def _contracted(slope: Array, tangent: Array) -> Array:
    """A Jacobian (…, *shape) times a tangent of that shape."""
    axes = tuple(range(slope.ndim - tangent.ndim, slope.ndim))
    return jnp.sum(slope * jnp.broadcast_to(tangent, slope.shape), axis=axes)


def _replaced(arrays: tuple[Array, ...], where: tuple[int, ...], some: tuple[Array, ...]) -> list[Array]:
    new = dict(zip(where, some, strict=True))
    return [new.get(k, array) for k, array in enumerate(arrays)]
