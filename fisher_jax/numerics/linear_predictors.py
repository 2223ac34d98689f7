"""Linear predictors of a function: log p = f(x; data) with x = x₀ + C u, where C is made of data alone.

Derivatives are then taken in x, which has few entries, and carried through C: the gradient is Cᵀ s and the information Cᵀ W C.
For covariates that all data sets share these are products of matrices.

They are found by a walk through the equations of the function. Results of sums, of products with data and of moves of entries of u
are linear in u; where another operation uses a linear variable, the function is cut there. Later variables
that depend on a cut one are not predictors, so the walk is repeated until the cuts stay the same.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fisher_jax.numerics.jaxprs import Flat, bind, flatten

# Operations linear in all operands together, in one operand while the others are data, and in the first only.
_SUMS = frozenset(
    {
        *("add", "add_any", "sub", "neg", "reduce_sum", "cumsum"),
        *("reshape", "squeeze", "broadcast_in_dim", "transpose", "slice", "expand_dims", "copy", "concatenate", "rev"),
    }
)
_PRODUCTS = frozenset(["mul", "dot_general"])
_BY_INDEX = frozenset(["div", "dynamic_slice", "gather"])


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

    `data` are shapes of arrays; `made_of` states of each whether coefficients may be made of it, by default of all. Functions with
    rules of their own for derivatives are not cut inside.
    """
    flat = flatten(jax.make_jaxpr(function)(u, *data), keep_rules=True)
    shapes = dict(zip(flat.inputs, [u, *data], strict=True))
    for step in flat.steps:
        shapes.update(zip(step.results, (v.aval for v in step.equation.outvars), strict=True))
    cut: list[int] = []
    while True:
        linear, nonlinear = _dependence(flat, cut, made_of)
        used = [o for step in flat.steps if nonlinear.issuperset(step.results) for o in step.operands]
        before, cut = cut, list(dict.fromkeys(o for o in (*used, *flat.outputs) if type(o) is int and o in linear))
        if cut == before:
            break
    sizes = [math.prod(shapes[v].shape) for v in cut]
    if not cut or sum(sizes) >= u.shape[0]:
        return None

    def inner(u: Any, *data: Any) -> Any:
        arguments = dict(zip(flat.inputs, (u, *data), strict=True))
        return jnp.concatenate([x.reshape(-1) for x in _evaluate(flat, arguments, cut, skip=nonlinear)])

    def outer(x: Any, *data: Any) -> Any:
        values = dict(zip(flat.inputs[1:], data, strict=True))
        start = 0
        for v, size in zip(cut, sizes, strict=True):
            values[v] = x[start : start + size].reshape(shapes[v].shape).astype(shapes[v].dtype)
            start += size
        return _evaluate(flat, values, flat.outputs, skip=linear)[0]

    return Predictors(inner, outer, sum(sizes))


def _dependence(flat: Flat, cut: Sequence[int], made_of: Sequence[bool] | None) -> tuple[set[int], set[int]]:
    """The variables that are linear in u, and those that depend on u otherwise or on a cut variable."""
    u, *data = flat.inputs
    linear, nonlinear = {u}, set[int]()
    sources = {u: frozenset[int](), **{v: frozenset([k]) for k, v in enumerate(data)}}  # data that enter a variable
    for step in flat.steps:
        variables = [o for o in step.operands if type(o) is int]
        in_u = [v for v in variables if v in linear]
        if any(v in nonlinear or v in cut for v in variables):
            nonlinear.update(step.results)
            continue
        uses = frozenset[int]().union(*(sources[v] for v in variables))
        sources.update(dict.fromkeys(step.results, uses))
        if not in_u:
            continue
        is_linear = (
            step.name in _SUMS
            or (step.name in _PRODUCTS and len(in_u) == 1)
            or (step.name in _BY_INDEX and len(in_u) == 1 and step.operands[0] is in_u[0])
            or (step.name == "convert_element_type" and jnp.issubdtype(step.equation.params["new_dtype"], jnp.floating))
        )
        is_allowed = made_of is None or all(made_of[k] for k in uses)
        (linear if is_linear and is_allowed else nonlinear).update(step.results)
    return linear, nonlinear


def _evaluate(flat: Flat, values: dict[int, Any], outputs: Sequence[Any], skip: set[int]) -> list[Any]:
    """These variables of a function, where the values of some are given; steps whose results are given or skipped are left out."""
    values = dict(values)
    for step in flat.steps:
        is_needed = not all(v in values or v in skip for v in step.results)
        if is_needed and all(type(o) is not int or o in values for o in step.operands):
            operands = [values[o] if type(o) is int else o for o in step.operands]
            values.update(zip(step.results, bind(step, operands), strict=True))
    return [values[o] if type(o) is int else o for o in outputs]
