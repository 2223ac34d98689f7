"""Functions that JAX can differentiate in one mode only, made ready for both.

A function with a `jax.custom_vjp` in it (such as an ODE solved by `odeint`) has derivatives in reverse only, one with a
`jax.lax.while_loop` forward only. Which modes a function allows is tried on abstract values. Where one is missing, the function
gets a rule for its derivative (`jax.custom_jvp`): its Jacobian J(x), computed in the mode that it has, times the tangent. The rule
is linear in the tangent, so that reverse mode can transpose it. Second derivatives are derivatives of J, in forward mode where
that is possible; else J, as a function of x, gets such a rule too.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, PyTree

from fisher_jax.numerics.jaxprs import primitives_of

Mode = Literal["both", "reverse", "reverse over reverse", "reverse once", "forward", "forward once", "neither"]

# Operations that may lack a mode. Functions without them are not tried, which would trace each several times.
SUSPECTS = {"custom_vjp_call", "custom_vjp_call_jaxpr", "while"}
# In the jaxpr of a forward derivative through a `custom_vjp`, which raises only when it is compiled.
MARK_OF_FAILURE = "custom_lin"


def in_both_modes(
    function: Callable[..., PyTree], arguments: tuple[PyTree, ...], modes: dict[Any, Mode]
) -> Callable[..., PyTree]:
    """The function, or where it has derivatives in one mode only, one of the same value that has both.

    Only the structure and the shapes of `arguments` matter; the mode for these is stored in `modes`.
    """
    leaves, treedef = jax.tree.flatten(arguments)
    is_array = [(hasattr(leaf, "shape") and hasattr(leaf, "dtype")) or isinstance(leaf, float) for leaf in leaves]
    arrays = [leaf for leaf, array in zip(leaves, is_array, strict=True) if array]
    shapes = [jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in arrays]
    key = treedef, tuple(is_array), tuple((shape.shape, str(shape.dtype)) for shape in shapes)
    structures: list[Any] = []  # of what the function returned when it was last called

    def of_arrays(*arrays: Array) -> tuple[Array, ...]:
        rest = iter(arrays)
        whole = [next(rest) if array else leaf for leaf, array in zip(leaves, is_array, strict=True)]
        results, structure = jax.tree.flatten(function(*jax.tree.unflatten(treedef, whole)))
        structures[:] = [structure]
        # A result that is no array is left out here: the caller, who knows what is expected, raises.
        return tuple(jnp.asarray(leaf) for leaf in results if hasattr(leaf, "dtype") or isinstance(leaf, int | float))

    if key not in modes:
        modes[key] = _mode_of(of_arrays, shapes)
    if modes[key] == "both":
        return function
    with_rule = _with_rule(of_arrays, modes[key])

    def call(*arguments: PyTree) -> PyTree:
        arrays = [leaf for leaf, array in zip(jax.tree.leaves(arguments), is_array, strict=True) if array]
        results = with_rule(*map(jnp.asarray, arrays))
        return jax.tree.unflatten(structures[0], results)

    return call


def _mode_of(function: Callable[..., tuple[Array, ...]], shapes: list[jax.ShapeDtypeStruct]) -> Mode:
    """Which derivatives by the floating arguments exist, as far as tracing shows."""
    if primitives_of(jax.make_jaxpr(function)(*shapes)).isdisjoint(SUSPECTS):
        return "both"
    floating = tuple(k for k, shape in enumerate(shapes) if jnp.issubdtype(shape.dtype, jnp.floating))

    def total(*arrays: Array) -> Array:
        results = [leaf for leaf in function(*arrays) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        return sum(map(jnp.sum, results), jnp.zeros(()))

    def forward(of: Callable[..., Any]) -> Callable[..., Any]:
        def along(*arrays: Array) -> Any:
            some = [arrays[k] for k in floating]
            return jax.jvp(_of_some(of, arrays, floating), some, [jnp.ones_like(x) for x in some])

        return along

    def reverse(of: Callable[..., Any]) -> Callable[..., Any]:
        def summed(*arrays: Array) -> Array:
            return sum(map(jnp.sum, jax.tree.leaves(of(*arrays))), jnp.zeros(()))

        return jax.grad(summed, argnums=floating)

    def works(of: Callable[..., Any]) -> bool:
        try:
            return MARK_OF_FAILURE not in primitives_of(jax.make_jaxpr(of)(*shapes))
        except (TypeError, ValueError, NotImplementedError, AssertionError):  # JAX raises any of these
            return False

    if not floating:
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
    with_rule = jax.custom_jvp(function)

    def rule(primals: tuple[Array, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
        if mode == "neither":
            raise TypeError(
                "a function cannot be differentiated as often as it takes, neither forward nor in reverse: a custom_vjp or a "
                "while_loop in it stands in the way. Write it with jax.custom_jvp, or with jax.lax.scan in place of a while_loop."
            )
        active = tuple(k for k, tangent in enumerate(tangents) if not isinstance(tangent, SymbolicZero))

        def jacobian(*arrays: Array) -> tuple[Array, ...]:
            """The derivatives of each result by each active argument."""
            jacobian_by = jax.jacfwd if mode.startswith("forward") else jax.jacrev
            some = _of_some(function, arrays, active)
            rows = jacobian_by(some, argnums=tuple(range(len(active))))(*(arrays[k] for k in active))
            return tuple(slope for row in rows for slope in row)

        if mode == "reverse over reverse":
            jacobian = _with_rule(jacobian, mode)
        elif mode.endswith("once"):
            jacobian = _with_rule(jacobian, "neither")
        results, slopes = with_rule(*primals), iter(jacobian(*primals))
        return results, tuple(sum(_contract(next(slopes), tangents[k]) for k in active) for _ in results)

    with_rule.defjvp(rule, symbolic_zeros=True)
    return with_rule


def differentiable_both_ways(function: Callable[..., Array]) -> Callable[..., Array]:
    """A function of numbers to a number that only forward mode can differentiate, with derivatives of any order in both modes.

    What `in_both_modes` finds out of a user's function is known of this one, whose Jacobian gets such a rule as well.
    """
    with_rule = jax.custom_jvp(function)

    def rule(primals: tuple[Array, ...], tangents: tuple[Any, ...]) -> tuple[Array, Any]:
        active = tuple(k for k, tangent in enumerate(tangents) if not isinstance(tangent, SymbolicZero))
        moved = jnp.zeros_like(primals[0])
        for k in active:
            along = differentiable_both_ways(_derivative(function, k))(*primals)
            moved = moved + along * tangents[k]
        return with_rule(*primals), moved

    with_rule.defjvp(rule, symbolic_zeros=True)
    return with_rule


def _derivative(function: Callable[..., Array], place: int) -> Callable[..., Array]:
    def derivative(*arguments: Array) -> Array:
        tangents = tuple(jnp.ones_like(x) if k == place else jnp.zeros_like(x) for k, x in enumerate(arguments))
        return jax.jvp(function, arguments, tangents)[1]

    return derivative


def _contract(slope: Array, tangent: Array) -> Array:
    """A Jacobian (…, *shape) times a tangent of that shape."""
    axes = tuple(range(slope.ndim - tangent.ndim, slope.ndim))
    return jnp.sum(slope * jnp.broadcast_to(tangent, slope.shape), axis=axes)


def _of_some(function: Callable[..., Any], arrays: tuple[Array, ...], places: tuple[int, ...]) -> Callable[..., Any]:
    """The function of the arguments in these places, the others being those given."""

    def of_some(*some: Array) -> Any:
        new = dict(zip(places, some, strict=True))
        return function(*(new.get(k, array) for k, array in enumerate(arrays)))

    return of_some
