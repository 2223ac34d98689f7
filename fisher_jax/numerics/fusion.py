"""Element-wise programs in stages, so that XLA computes each value once.

XLA:CPU fuses a cheap value into each of its users, which then each compute it anew: the sums over rows of a gradient and of an
information would each repeat the row, and each entry of a step the factorisation before it. Values that are used more than once
therefore pass through a barrier at the end of a stage: a call that returns its arguments and is not inlined. As few stages are made
as there are such values on one path. A barrier of JAX's own (`jax.lax.optimization_barrier`) is dropped before XLA:CPU fuses.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr

from fisher_jax.numerics.jaxprs import Flat, Step, bind, flatten, scan_counts, while_loop

LEAST_WORK = 4  # operations, from which on a value is read again rather than computed again
LARGEST = 1024  # entries: larger arrays are not copied

Barrier = Callable[[list[Any]], Sequence[Any]]


def evaluate_in_stages(closed: ClosedJaxpr, barrier: Barrier) -> Callable[..., list[Any]]:
    """The function of a jaxpr; values that XLA must not compute again pass through `barrier`, which returns them."""
    flat = flatten(closed)
    return lambda *arguments: _evaluate(flat, arguments, barrier)


def _evaluate(flat: Flat, arguments: Sequence[Any], barrier: Barrier) -> list[Any]:
    values: dict[Any, Any] = dict(zip(flat.inputs, arguments, strict=True))
    read = lambda o: values[o] if type(o) is int else o  # noqa: E731
    for steps, reused in _stages(flat):
        for step in steps:
            operands = [read(o) for o in step.operands]
            if step.name == "while":
                results = while_loop(step, operands, lambda inner, arguments: _evaluate(inner, arguments, barrier))
            elif step.name == "scan":
                results = _scan(step, operands, barrier)
            else:
                results = bind(step, operands)
            values.update(zip(step.results, results, strict=True))
        if reused:
            values.update(zip(reused, barrier([values[v] for v in reused]), strict=True))
    return [read(o) for o in flat.outputs]


def _scan(step: Step, operands: list[Any], barrier: Barrier) -> Sequence[Any]:
    """As a `while`: XLA would call the body of a scan, and copy what it returns, in each of its steps."""
    params, (body,) = step.equation.params, step.inner
    first, count = scan_counts(step.equation)
    second, length = first + count, params["length"]
    consts, carry, rows = operands[:first], operands[first:second], operands[second:]
    outputs = [jnp.zeros(v.aval.shape, v.aval.dtype) for v in step.equation.outvars[count:]]

    def advance(state: tuple[Any, list[Any], list[Any]]) -> tuple[Any, list[Any], list[Any]]:
        k, carry, outputs = state
        at = length - 1 - k if params["reverse"] else k
        row = [lax.dynamic_index_in_dim(x, at, keepdims=False) for x in rows]
        results = _evaluate(body, [*consts, *carry, *row], barrier)
        new = zip(outputs, results[len(carry) :], strict=True)
        return k + 1, results[: len(carry)], [lax.dynamic_update_index_in_dim(to, x, at, 0) for to, x in new]

    _, carry, outputs = lax.while_loop(lambda state: state[0] < length, advance, (jnp.int32(0), carry, outputs))
    return [*carry, *outputs]


def _stages(flat: Flat) -> list[tuple[list[Step], list[int]]]:
    """The equations in groups, each with the values that pass through the barrier after it."""
    uses = Counter(o for o in (*(o for step in flat.steps for o in step.operands), *flat.outputs) if type(o) is int)
    work: dict[int, int] = {}  # operations that each user would repeat
    available: dict[int, int] = {}  # the first stage that may use a value
    stages: dict[int, tuple[list[Step], list[int]]] = {}
    for step in flat.steps:
        operands = [o for o in step.operands if type(o) is int]
        stage = max((available.get(o, 0) for o in operands), default=0)
        steps, reused = stages.setdefault(stage, ([], []))
        steps.append(step)
        available.update(dict.fromkeys(step.results, stage))
        # Whether the step makes one small array, each of whose entries is made of the operands' entries in its place: only such
        # values does XLA fuse into their users.
        shape = step.equation.outvars[0].aval.shape if len(step.results) == 1 and not step.inner else ()
        is_small = shape != () and 0 < math.prod(shape) <= LARGEST
        if is_small and all(v.aval.shape in ((), shape) for v in step.equation.invars):
            (result,) = step.results
            work[result] = 1 + sum(work.get(o, 0) for o in operands)
            if uses[result] > 1 and work[result] >= LEAST_WORK:
                reused.append(result)
                work[result], available[result] = 0, stage + 1
    return [stages[k] for k in sorted(stages)]
