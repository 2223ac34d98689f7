"""Element-wise programs in stages, so that XLA computes each value once.

XLA:CPU fuses a cheap value into each of its users, which then each compute it anew: the sums over rows of a gradient and an
information would each repeat the row, and each entry of a step the factorisation before it. What is used more than once is
therefore held back, at few places, by a call that returns its arguments and is not inlined. A barrier of JAX's own
(`jax.lax.optimization_barrier`) is dropped before XLA:CPU fuses.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr

from fisher_jax.numerics.jaxprs import Flat, Step, bind, flatten, scan_counts, while_loop

WORTH = 4  # operations, from which on a value is read again rather than computed again
LARGEST = 1024  # entries: larger arrays are not copied


def in_stages(closed: ClosedJaxpr, hold: Callable[[list[Any]], Sequence[Any]]) -> Callable[..., list[Any]]:
    """The function of a jaxpr, evaluated so that `hold` is given what must not be computed again and returns it."""
    flat = flatten(closed)
    return lambda *arguments: _evaluate(flat, arguments, hold)


def _evaluate(flat: Flat, arguments: Sequence[Any], hold: Callable[[list[Any]], Sequence[Any]]) -> list[Any]:
    values: dict[Any, Any] = dict(zip(flat.inputs, arguments, strict=True))
    read = lambda o: values[o] if type(o) is int else o  # noqa: E731
    for steps, held in _stages(flat):
        for step in steps:
            operands = [read(o) for o in step.operands]
            found = _LOOPS[step.name](step, operands, hold) if step.name in _LOOPS else bind(step, operands)
            values.update(zip(step.results, found, strict=True))
        if held:
            values.update(zip(held, hold([values[v] for v in held]), strict=True))
    return [read(o) for o in flat.outputs]


def _while(step: Step, operands: list[Any], hold: Callable[[list[Any]], Sequence[Any]]) -> Sequence[Any]:
    return while_loop(step, operands, lambda flat, arguments: _evaluate(flat, arguments, hold))


def _scan(step: Step, operands: list[Any], hold: Callable[[list[Any]], Sequence[Any]]) -> Sequence[Any]:
    """As a `while`: XLA would call the body of a scan, and copy what it returns, in each of its steps."""
    params, (body,) = step.equation.params, step.inner
    first, count = scan_counts(step.equation)
    second, length = first + count, params["length"]
    consts, carry, rows = operands[:first], operands[first:second], operands[second:]
    made = [jnp.zeros(v.aval.shape, v.aval.dtype) for v in step.equation.outvars[count:]]

    def one(state: tuple[Any, list[Any], list[Any]]) -> tuple[Any, list[Any], list[Any]]:
        k, carry, made = state
        at = length - 1 - k if params["reverse"] else k
        row = [lax.dynamic_index_in_dim(x, at, keepdims=False) for x in rows]
        found = _evaluate(body, [*consts, *carry, *row], hold)
        put = [lax.dynamic_update_index_in_dim(to, x, at, 0) for to, x in zip(made, found[len(carry) :], strict=True)]
        return k + 1, found[: len(carry)], put

    _, carry, made = lax.while_loop(lambda state: state[0] < length, one, (jnp.int32(0), carry, made))
    return [*carry, *made]


_LOOPS = {"while": _while, "scan": _scan}


def _stages(flat: Flat) -> list[tuple[list[Step], list[int]]]:
    """The equations in groups, each with what is held after it: as few groups as there are such values on one path."""
    uses: dict[int, int] = {}
    for o in (*(o for step in flat.steps for o in step.operands), *flat.outputs):
        if type(o) is int:
            uses[o] = uses.get(o, 0) + 1
    work: dict[int, int] = {}  # operations that each user would repeat
    available: dict[int, int] = {}  # the first stage that may use a value
    stages: dict[int, tuple[list[Step], list[int]]] = {}
    for step in flat.steps:
        operands = [o for o in step.operands if type(o) is int]
        stage = max((available.get(o, 0) for o in operands), default=0)
        steps, held = stages.setdefault(stage, ([], []))
        steps.append(step)
        available.update(dict.fromkeys(step.results, stage))
        if _is_elementwise(step):
            (result,) = step.results
            work[result] = 1 + sum(work.get(o, 0) for o in operands)
            if uses.get(result, 0) > 1 and work[result] >= WORTH:
                held.append(result)
                work[result], available[result] = 0, stage + 1
    return [stages[k] for k in sorted(stages)]


def _is_elementwise(step: Step) -> bool:
    """Whether the step makes one small array, each of whose entries is made of the operands' entries in its place."""
    if len(step.results) != 1 or step.inner:
        return False
    (result,), operands = step.equation.outvars, step.equation.invars
    shape = result.aval.shape
    alike = all(v.aval.shape in ((), shape) for v in operands)
    return shape != () and 0 < math.prod(shape) <= LARGEST and alike
