"""Traced functions written out: a jaxpr with the bodies of inner functions in place of the calls, equal equations merged."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core


class Step(NamedTuple):
    """An equation about arrays. Operands are numbers of variables, or numpy arrays.

    `outer` is the equation at the user's level; `inner` holds the functions that a loop or a choice calls.
    """

    name: str
    equation: Any
    outer: Any
    operands: tuple[Any, ...]
    results: tuple[int, ...]
    inner: tuple[Any, ...]


class Flat:
    """A jaxpr written out. Operands and outputs are numbers of variables, or numpy arrays."""

    def __init__(self, inputs: tuple[int, ...], steps: tuple[Step, ...], outputs: tuple[Any, ...]):
        self.inputs, self.steps, self.outputs = inputs, steps, outputs
        self._exact: dict[tuple[bool, ...], set[int]] = {}

    def primitives(self) -> set[str]:
        """The names of all operations, those in loops and branches included."""
        inside = (name for step in self.steps for flat in step.inner for name in flat.primitives())
        return {step.name for step in self.steps}.union(inside)

    def exact(self, mask: tuple[bool, ...]) -> set[int]:
        """The variables on which the masked outputs depend."""
        if mask in self._exact:
            return self._exact[mask]
        wanted = {o for o, m in zip(self.outputs, mask, strict=True) if m and type(o) is int}
        for step in reversed(self.steps):
            hit = [r in wanted for r in step.results]
            if any(hit):
                needed = scan_needs(step, hit)[1] if step.name == "scan" else [True] * len(step.operands)
                wanted.update(o for o, n in zip(step.operands, needed, strict=True) if n and type(o) is int)
        self._exact[mask] = wanted
        return wanted


def scan_counts(equation: Any) -> tuple[int, int]:
    """How many constants a scan has, and how many values it carries: what has one axis more outside its body is rows.

    JAX 0.10 names the two numbers among its parameters, later ones do not.
    """
    body = equation.params["jaxpr"]
    num_rows = [
        sum(len(v.aval.shape) > len(inside.aval.shape) for v, inside in zip(outer, inner, strict=True))
        for outer, inner in ((equation.invars, body.jaxpr.invars), (equation.outvars, body.jaxpr.outvars))
    ]
    carry = len(equation.outvars) - num_rows[1]
    return len(equation.invars) - num_rows[0] - carry, carry


def scan_needs(step: Step, hit: Sequence[bool]) -> tuple[list[bool], list[bool]]:
    """Of the body's outputs, and of the operands: what the outputs of a scan depend on, carried from step to step."""
    (flat,), (consts, carry) = step.inner, scan_counts(step.equation)
    mask = list(hit)
    while True:
        wanted = flat.exact(tuple(mask))
        needed = [v in wanted for v in flat.inputs]
        needed[consts : consts + carry] = [
            n or m for n, m in zip(needed[consts : consts + carry], mask[:carry], strict=True)
        ]
        if needed[consts : consts + carry] == mask[:carry]:
            return mask, needed
        mask[:carry] = needed[consts : consts + carry]


_INLINED = {
    "jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr", "remat": "jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr", "custom_vjp_call": "call_jaxpr", "custom_vjp_call_jaxpr": "fun_jaxpr", "custom_jvp_call": "call_jaxpr",
}  # fmt: skip
_BODIES = {"scan": ("jaxpr",), "while": ("cond_jaxpr", "body_jaxpr")}


def flatten(closed: Any) -> Flat:
    """A jaxpr without inner functions, repeated equations and unused ones."""
    numbers = itertools.count()
    made: dict[Any, tuple[int, ...]] = {}
    steps: list[Step] = []

    def key_of(x: Any) -> Any:
        return x if type(x) is int else (x.dtype, x.tobytes()) if x.size == 1 else id(x)

    def key_of_params(params: dict[str, Any]) -> Any:
        try:
            key = tuple(params.items())
            hash(key)
        except TypeError:
            key = tuple((k, id(v)) for k, v in params.items())
        return key

    def walk(jaxpr: Any, consts: Sequence[Any], given: Sequence[Any], outer: Any) -> list[Any]:
        env = dict(zip(jaxpr.constvars, map(np.asarray, consts), strict=True)) | dict(
            zip(jaxpr.invars, given, strict=True)
        )

        def read(v: Any) -> Any:
            return np.asarray(v.val, getattr(v.aval, "dtype", None)) if isinstance(v, core.Literal) else env[v]

        for equation in jaxpr.eqns:
            name, params = equation.primitive.name, equation.params
            operands, user = [read(v) for v in equation.invars], outer or equation
            if name in _INLINED:
                inner = params[_INLINED[name]]
                results = walk(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), operands, user)
            elif name == "call_hi_primitive":  # of JAX 0.12, which tells by itself what it is made of
                shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in equation.invars]
                inner = jax.make_jaxpr(params["_prim"].expand)(*shapes)
                results = walk(inner.jaxpr, inner.consts, operands, user)
            elif name == "custom_linear_solve":  # by its own factors
                cuts, solve = np.cumsum([0, *params["const_lengths"]]), params["jaxprs"].solve
                results = walk(solve.jaxpr, solve.consts, [*operands[cuts[2] : cuts[3]], *operands[cuts[4] :]], user)
            else:
                key = (
                    name,
                    key_of_params(params),
                    tuple(str(v.aval) for v in equation.outvars),
                    *map(key_of, operands),
                )
                if key not in made:
                    made[key] = tuple(next(numbers) for _ in equation.outvars)
                    inner = tuple(
                        map(
                            flatten,
                            params["branches"] if name == "cond" else [params[k] for k in _BODIES.get(name, ())],
                        )
                    )
                    steps.append(Step(name, equation, user, tuple(operands), made[key], inner))
                results = list(made[key])
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


def bind(step: Step, operands: Sequence[Any]) -> Sequence[Any]:
    """The results of an equation, of other operands."""
    primitive = step.equation.primitive
    found = primitive.bind(*operands, **step.equation.params)
    return found if primitive.multiple_results else [found]


def while_loop(step: Step, operands: Sequence[Any], evaluate: Callable[[Flat, list[Any]], list[Any]]) -> Sequence[Any]:
    """The same for a `while`, whose condition and body `evaluate` writes out."""
    params, (goes_on, body) = step.equation.params, step.inner
    first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    return jax.lax.while_loop(
        lambda carry: evaluate(goes_on, [*operands[:first], *carry])[0],
        lambda carry: evaluate(body, [*operands[first:second], *carry]),
        list(operands[second:]),
    )
