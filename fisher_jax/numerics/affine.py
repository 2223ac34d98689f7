"""Where a function depends on its parameters through linear predictors only, found in its row program.

log p = f(t, d; data) with t = offset + C u, the coefficients C made of data alone, and d the parameters that f uses beside t.
Derivatives are then taken in (t, d), of which there are few, and carried through C: the gradient is Cᵀ s and the information
Cᵀ W C, which for covariates that all data sets share are products of matrices.
"""

from dataclasses import dataclass
from typing import Any

from fisher_jax.numerics.expansion import Program

_LINEAR = frozenset({"add", "add_any", "sub", "neg", "mul", "div", "convert_element_type"})


@dataclass(frozen=True)
class Predictors:
    """A program cut at its linear predictors.

    `inner` takes the arguments of the program and returns the predictors t; `outer` takes the arguments and, as one more, t, and returns
    what the program does. `direct` are the parameters, by number, that `outer` uses beside t.
    """

    inner: Program
    outer: Program
    direct: tuple[int, ...]
    count: int


def linear_predictors(program: Program, num_parameters: int) -> Predictors | None:
    """Cut a program at what is linear in the first `num_parameters` entries of its first argument; None where that gains nothing.

    A predictor combines two parameters or more: a single one is differentiated as well directly.
    """
    parameters = program.inputs[0][:num_parameters]
    # For each number that is linear in the parameters with coefficients of data alone: which of them it combines.
    linear: dict[int, frozenset[int]] = {number: frozenset([number]) for number in parameters}
    nonlinear: set[int] = set()
    for equation in program.equations:
        operands = [o for o in equation.operands if type(o) is int]
        moving = [o for o in operands if o in linear]
        if any(o in nonlinear for o in operands):
            nonlinear.add(equation.result)
        elif moving:
            name = equation.primitive.name
            products = name in ("mul", "div")
            allowed = name in _LINEAR and (not products or len(moving) == 1)
            if name == "div" and equation.operands[1] in moving:
                allowed = False
            if allowed:
                linear[equation.result] = frozenset().union(*(linear[o] for o in moving))
            else:
                nonlinear.add(equation.result)
    used: dict[int, None] = {}
    for equation in program.equations:
        if equation.result in nonlinear:
            used |= {o: None for o in equation.operands if type(o) is int and o in linear}
    used |= {o: None for o in program.outputs if type(o) is int and o in linear}
    predictors = tuple(o for o in used if len(linear[o]) > 1)
    direct = tuple(k for k, number in enumerate(parameters) if number in used)
    if not predictors or len(predictors) + len(direct) >= num_parameters:
        return None
    inner = Program(_needed(program, predictors, frozenset()), program.inputs, predictors)
    outer = Program(
        _needed(program, program.outputs, frozenset(predictors)), (*program.inputs, predictors), program.outputs
    )
    return Predictors(inner, outer, direct, len(predictors))


def _needed(program: Program, outputs: tuple[Any, ...], known: frozenset[int]) -> tuple[Any, ...]:
    """The equations that these outputs need where some numbers are known."""
    needed, kept = {o for o in outputs if type(o) is int}, []
    for equation in reversed(program.equations):
        if equation.result in needed and equation.result not in known:
            kept.append(equation)
            needed.update(o for o in equation.operands if type(o) is int)
    return tuple(reversed(kept))
