"""Jaxprs (traced functions) as flat lists of equations: calls of inner functions inlined, equal equations merged.

`flatten` is the one walk over a jaxpr on which row programs (`expansion`), kernels (`fusion`) and the search for linear predictors
are built. Variables are whole numbers there, constants are arrays. Equal equations are merged while they still are about whole
arrays, since each pass of automatic differentiation computes the value of a function anew.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

# Calls of inner functions, and the parameter that holds the function; those without a rule for derivatives first.
_PLAIN_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr"}
_CALLS = {
    **_PLAIN_CALLS, "core_call": "call_jaxpr", "remat": "jaxpr", "checkpoint": "jaxpr", "remat2": "jaxpr",
    "custom_vjp_call": "call_jaxpr", "custom_vjp_call_jaxpr": "fun_jaxpr", "custom_jvp_call": "call_jaxpr",
}  # fmt: skip
_BODIES = {"scan": ("jaxpr",), "while": ("cond_jaxpr", "body_jaxpr")}


class Step(NamedTuple):
    """An equation about arrays. Operands are numbers of variables, or constants.

    `outer` is the equation at the user's level; `inner` holds the functions that a loop or a conditional calls.
    """

    name: str
    equation: Any
    outer: Any
    operands: tuple[Any, ...]
    results: tuple[int, ...]
    inner: tuple["Flat", ...]


class Flat:
    """A flattened jaxpr. Operands and outputs are numbers of variables, or constants."""

    def __init__(self, inputs: tuple[int, ...], steps: tuple[Step, ...], outputs: tuple[Any, ...]):
        self.inputs, self.steps, self.outputs = inputs, steps, outputs
        self._exact: dict[tuple[bool, ...], set[int]] = {}

    def primitives(self) -> set[str]:
        """The names of all operations, those in loops and branches included."""
        inside = (name for step in self.steps for flat in step.inner for name in flat.primitives())
        return {step.name for step in self.steps}.union(inside)

    def uses_inputs(self) -> bool:
        """Whether an operation or an output depends on an argument."""
        used = {o for o in (*self.outputs, *(o for step in self.steps for o in step.operands)) if type(o) is int}
        return not used.isdisjoint(self.inputs)

    def exact(self, mask: tuple[bool, ...]) -> set[int]:
        """The variables on which the masked outputs depend."""
        if mask not in self._exact:
            needed = {o for o, m in zip(self.outputs, mask, strict=True) if m and type(o) is int}
            for step in reversed(self.steps):
                hit = [r in needed for r in step.results]
                if any(hit):
                    uses = scan_needs(step, hit)[1] if step.name == "scan" else [True] * len(step.operands)
                    needed.update(
                        o for o, is_used in zip(step.operands, uses, strict=True) if is_used and type(o) is int
                    )
            self._exact[mask] = needed
        return self._exact[mask]


def flatten(closed: core.ClosedJaxpr, *, keep_rules: bool = False) -> Flat:
    """A jaxpr without inner functions, repeated equations and unused ones.

    With `keep_rules` calls of functions that have rules of their own for derivatives remain, and so do loops as they are.
    """
    calls = _PLAIN_CALLS if keep_rules else _CALLS
    numbers = itertools.count()
    results_of: dict[Any, tuple[int, ...]] = {}
    steps: list[Step] = []

    def key_of(x: Any) -> Any:
        return (x.dtype, x.tobytes()) if isinstance(x, np.ndarray) and x.size == 1 else x if type(x) is int else id(x)

    def key_of_params(params: dict[str, Any]) -> Any:
        key = tuple(params.items())
        try:
            hash(key)
        except TypeError:
            key = tuple((k, id(v)) for k, v in params.items())
        return key

    def walk(jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any], outer: Any) -> list[Any]:
        env = dict(zip(jaxpr.constvars, consts if keep_rules else map(np.asarray, consts), strict=True))
        env |= dict(zip(jaxpr.invars, arguments, strict=True))

        def read(v: Any) -> Any:
            return np.asarray(v.val, getattr(v.aval, "dtype", None)) if isinstance(v, core.Literal) else env[v]

        for equation in jaxpr.eqns:
            name, params = equation.primitive.name, equation.params
            operands, user = [read(v) for v in equation.invars], outer or equation
            if name in calls:
                inner = params[calls[name]]
                results = walk(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), operands, user)
            elif name == "call_hi_primitive" and not keep_rules:  # of JAX 0.12, which has a method for its expansion
                shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in equation.invars]
                inner = jax.make_jaxpr(params["_prim"].expand)(*shapes)
                results = walk(inner.jaxpr, inner.consts, operands, user)
            elif name == "custom_linear_solve" and not keep_rules:  # by its factors
                cuts, solve = np.cumsum([0, *params["const_lengths"]]), params["jaxprs"].solve
                results = walk(solve.jaxpr, solve.consts, [*operands[cuts[2] : cuts[3]], *operands[cuts[4] :]], user)
            else:
                outputs = tuple(str(v.aval) for v in equation.outvars)
                key = (name, key_of_params(params), outputs, *map(key_of, operands))
                if key not in results_of:
                    results_of[key] = tuple(next(numbers) for _ in equation.outvars)
                    bodies = params["branches"] if name == "cond" else [params[k] for k in _BODIES.get(name, ())]
                    inner = () if keep_rules else tuple(map(flatten, bodies))
                    steps.append(Step(name, equation, user, tuple(operands), results_of[key], inner))
                results = list(results_of[key])
            env.update(zip(equation.outvars, results, strict=True))
        return [read(v) for v in jaxpr.outvars]

    inputs = tuple(next(numbers) for _ in closed.jaxpr.invars)
    outputs = tuple(walk(closed.jaxpr, closed.consts, inputs, None))
    needed, used = {o for o in outputs if type(o) is int}, []
    for step in reversed(steps):
        if any(r in needed for r in step.results):
            used.append(step)
            needed.update(o for o in step.operands if type(o) is int)
    return Flat(inputs, tuple(reversed(used)), outputs)


def primitives_of(jaxpr: core.ClosedJaxpr | core.Jaxpr) -> set[str]:
    """The names of all operations of a jaxpr as it is, those of all functions among its parameters included."""
    is_jaxpr = lambda value: isinstance(value, core.ClosedJaxpr | core.Jaxpr)  # noqa: E731
    names: set[str] = set()
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        names.add(equation.primitive.name)
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr):
            names |= primitives_of(value) if is_jaxpr(value) else set()
    return names


def bind(step: Step, operands: Sequence[Any]) -> Sequence[Any]:
    """The results of an equation for other operands."""
    primitive = step.equation.primitive
    params = primitive.get_bind_params(step.equation.params)
    functions, params = params if isinstance(params, tuple) else ((), params)  # a pair up to JAX 0.9
    results = primitive.bind(*functions, *operands, **params)
    return results if primitive.multiple_results else [results]


def while_loop(step: Step, operands: Sequence[Any], evaluate: Callable[[Flat, list[Any]], list[Any]]) -> Sequence[Any]:
    """The results of a `while` for other operands; `evaluate` runs its condition and its body.

    A loop that is mapped has a condition for each of its members, along the first axes of what it carries; those that have ended
    wait.
    """
    params, (condition, body) = step.equation.params, step.inner
    first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]

    run = lambda part, consts, carry: evaluate(part, [*consts, *carry])  # noqa: E731
    goes_on = lambda carry: run(condition, operands[:first], carry)[0]  # noqa: E731
    advance = lambda carry: run(body, operands[first:second], carry)  # noqa: E731
    if params["cond_jaxpr"].out_avals[0].shape == ():
        return jax.lax.while_loop(goes_on, advance, list(operands[second:]))

    def advance_some(carry: list[Any]) -> list[Any]:
        going = goes_on(carry)
        to = lambda x: going.reshape(going.shape + (1,) * (x.ndim - going.ndim))  # noqa: E731
        return [jnp.where(to(new), new, old) for new, old in zip(advance(carry), carry, strict=True)]

    return jax.lax.while_loop(lambda carry: jnp.any(goes_on(carry)), advance_some, list(operands[second:]))


def scan_counts(equation: Any) -> tuple[int, int]:
    """How many constants a scan has, and how many values it carries: an argument with one axis more outside its body is rows.

    JAX 0.10 names the two numbers among its parameters, later versions do not.
    """
    body = equation.params["jaxpr"]
    num_rows = [
        sum(len(v.aval.shape) > len(inside.aval.shape) for v, inside in zip(outer, inner, strict=True))
        for outer, inner in ((equation.invars, body.jaxpr.invars), (equation.outvars, body.jaxpr.outvars))
    ]
    carry = len(equation.outvars) - num_rows[1]
    return len(equation.invars) - num_rows[0] - carry, carry


def scan_needs(step: Step, hit: Sequence[bool]) -> tuple[list[bool], list[bool]]:
    """Of the body's outputs, and of the operands: those on which some outputs of a scan depend, from step to step.

    A carried value that is needed is needed from the step before: repeated until no more are added.
    """
    (flat,), (consts, carry) = step.inner, scan_counts(step.equation)
    mask = list(hit)
    while True:
        exact = flat.exact(tuple(mask))
        needed = [v in exact for v in flat.inputs]
        in_carry = [n or m for n, m in zip(needed[consts : consts + carry], mask[:carry], strict=True)]
        needed[consts : consts + carry] = in_carry
        if in_carry == mask[:carry]:
            return mask, needed
        mask[:carry] = in_carry
