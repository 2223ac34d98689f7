"""Linear predictors found in a function: log p = f(x; data) with x = x₀ + C u, where C is made of data alone.

Derivatives are then taken in x, which has few entries, and carried through C: the gradient is Cᵀ s and the information Cᵀ W C.
For covariates that all data sets share these are products of matrices. Found by walking through the function's equations:
what is made of u by sums, products with data and moves of entries is linear; where something else uses it, the function is cut.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from jaxtyping import Array, Float

# Equations linear in all operands together, and those linear in one operand while the others are data.
_SUMS = frozenset(
    [
        "add",
        "add_any",
        "sub",
        "neg",
        "reduce_sum",
        "reshape",
        "squeeze",
        "broadcast_in_dim",
        "transpose",
        "slice",
        "expand_dims",
        "copy",
        "concatenate",
        "rev",
        "cumsum",
    ]
)
_PRODUCTS = frozenset(["mul", "dot_general"])
_BY_INDEX = frozenset(["div", "dynamic_slice", "gather"])  # linear in the first operand only
_CALLS = frozenset(["jit", "pjit", "closed_call"])


@dataclass(frozen=True)
class Predictors:
    """A function of (u, *data) as outer(inner(u, *data), *data), `inner` being linear in u and of `count` entries."""

    inner: Callable[..., Float[Array, " m"]]
    outer: Callable[..., Array]
    count: int

    def coefficients(self, u: Float[Array, " p"], *data: Any) -> Float[Array, "m p"]:
        """C, which does not depend on u but for its length and dtype."""
        return jax.jacfwd(lambda u: self.inner(u, *data))(jnp.zeros_like(u))


def linear_predictors(
    function: Callable[..., Array], u: jax.ShapeDtypeStruct, data: Sequence[Any], made_of: Sequence[bool] | None = None
) -> Predictors | None:
    """Cut a function of (u, *data) where it is linear in u; None where that leaves no fewer entries than u has.

    `data` are shapes of arrays; `made_of` says of each whether coefficients may be made of it, by default of all. Functions with
    rules of their own for derivatives are kept whole.
    """
    closed = _inlined(jax.make_jaxpr(function)(u, *data))
    jaxpr, consts = closed.jaxpr, closed.consts
    cut: dict[Any, Any] = {}
    while True:
        linear, moved = _walk(jaxpr, cut, made_of)
        used = [v for e in jaxpr.eqns if any(o in moved for o in e.outvars) for v in e.invars] + list(jaxpr.outvars)
        found = dict.fromkeys(v for v in used if not isinstance(v, Literal) and v in linear)
        if found == cut:
            break
        # What follows from a predictor by sums and products with data is a function of it, not another predictor.
        cut = found
    sizes = [math.prod(v.aval.shape) for v in cut]
    if not cut or sum(sizes) >= u.shape[0]:
        return None

    def inner(u: Any, *data: Any) -> Any:
        found = _evaluate(jaxpr, consts, dict(zip(jaxpr.invars, (u, *data), strict=True)), list(cut), skip=moved)
        return jnp.concatenate([x.reshape(-1) for x in found])

    def outer(x: Any, *data: Any) -> Any:
        env = dict(zip(jaxpr.invars[1:], data, strict=True))
        start = 0
        for v, size in zip(cut, sizes, strict=True):
            env[v] = x[start : start + size].reshape(v.aval.shape).astype(v.aval.dtype)
            start += size
        return _evaluate(jaxpr, consts, env, jaxpr.outvars, skip=set(linear))[0]

    return Predictors(inner, outer, sum(sizes))


def _walk(jaxpr: Any, cut: Any, made_of: Sequence[bool] | None) -> tuple[dict[Any, frozenset[int]], set[Any]]:
    """The variables linear in u, with the data leaves that their coefficients use; and those that depend on u otherwise."""
    linear: dict[Any, frozenset[int]] = {jaxpr.invars[0]: frozenset()}
    moved: set[Any] = set()
    origin = {v: frozenset([k]) for k, v in enumerate(jaxpr.invars[1:])}
    for equation in jaxpr.eqns:
        name, operands = equation.primitive.name, equation.invars
        variables = [v for v in operands if not isinstance(v, Literal)]
        moving = [v for v in variables if v in linear]
        uses = frozenset[int]().union(*(linear.get(v, origin.get(v, frozenset())) for v in variables))
        if any(v in moved or v in cut for v in variables):
            moved.update(equation.outvars)
        elif not moving:
            origin.update(dict.fromkeys(equation.outvars, uses))
        elif made_of is not None and not all(made_of[k] for k in uses):
            moved.update(equation.outvars)
        elif (
            (name in _SUMS)
            or (name in _PRODUCTS and len(moving) == 1)
            or (name in _BY_INDEX and len(moving) == 1 and operands[0] is moving[0])
            or (name == "convert_element_type" and jnp.issubdtype(equation.params["new_dtype"], jnp.floating))
        ):
            linear.update(dict.fromkeys(equation.outvars, uses))
        else:
            moved.update(equation.outvars)
    return linear, moved


def _evaluate(jaxpr: Any, consts: Any, env: dict[Any, Any], outputs: Any, skip: Any = frozenset()) -> list[Any]:
    """These variables of a jaxpr, where some are known; equations that make only what is known or skipped are left out."""
    env = {**dict(zip(jaxpr.constvars, consts, strict=True)), **env}
    read = lambda v: v.val if isinstance(v, Literal) else env[v]  # noqa: E731
    for equation in jaxpr.eqns:
        if all(v in env or v in skip for v in equation.outvars):
            continue
        if all(isinstance(v, Literal) or v in env for v in equation.invars):
            env.update(zip(equation.outvars, _bind(equation, [read(v) for v in equation.invars]), strict=True))
    return [read(v) for v in outputs]


def _bind(equation: Any, operands: list[Any]) -> list[Any]:
    """What an equation makes of other operands; functions with rules of their own for derivatives keep them."""
    params = equation.primitive.get_bind_params(equation.params)
    functions, params = params if isinstance(params, tuple) else ((), params)  # the first up to JAX 0.9
    found = equation.primitive.bind(*functions, *operands, **params)
    return list(found) if equation.primitive.multiple_results else [found]


def _inlined(closed: Any) -> Any:
    """The jaxpr with the bodies of jitted functions in place of the calls; rules for derivatives stay."""
    made: dict[Any, list[Any]] = {}  # each pass of a user's code may write the same product again

    def walk(jaxpr: Any, consts: Any, arguments: Any) -> list[Any]:
        env = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, arguments, strict=True))
        read = lambda v: v.val if isinstance(v, Literal) else env[v]  # noqa: E731
        for equation in jaxpr.eqns:
            operands = [read(v) for v in equation.invars]
            if equation.primitive.name in _CALLS:
                inner = equation.params.get("jaxpr") or equation.params["call_jaxpr"]
                found = walk(inner.jaxpr, inner.consts, operands)
            else:
                names = [(str(x.val), str(x.aval)) if isinstance(x, Literal) else id(env[x]) for x in equation.invars]
                key = (equation.primitive, str(equation.params), *names)
                if key not in made:
                    made[key] = [
                        operands,
                        _bind(equation, operands),
                    ]  # the operands stay alive, so that their ids are theirs
                found = made[key][1]
            env.update(zip(equation.outvars, found, strict=True))
        return [read(v) for v in jaxpr.outvars]

    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in closed.jaxpr.invars]
    return jax.make_jaxpr(lambda *arguments: walk(closed.jaxpr, closed.consts, arguments))(*shapes)
