"""Any optax transformation as the optimiser of a likelihood: the one adapter between optax's loop and this library's.

optax's transformations minimise and have no criterion for stopping. So they are given minus the log-likelihood, and every
`STRETCH` steps the decrement is computed, which is one; where they end is certified by the observed information, as it is
for every other method.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from fisher_jax.numerics import batched_linalg as lanes
from fisher_jax.optimizers.newton import Evaluation, Newton, Objective, State, advance, begin, trial

STRETCH = 25  # steps between two looks at the decrement, each of which costs a Hessian
STILL_STEPS = (
    100  # so many updates in a row that change nothing, and it has finished; MultiSteps and schedules pause less
)


class _Run(NamedTuple):
    """An optimiser of optax's under way: where it is, its own state, and why it might end.

    `still` counts updates in a row that changed nothing, `broken` that it stepped to where nothing is finite, `arrived`
    that the decrement is below the tolerance.
    """

    point: Float[Array, " p"]
    inner: Any
    num_steps: Int[Array, ""]
    still: Int[Array, ""]
    broken: Bool[Array, ""]
    arrived: Bool[Array, ""]


def maximize(
    optimizer: Any,
    start: Float[Array, " p"],
    value_of: Callable[[Array], Array],
    objective: Objective,
    observed: Callable[[Array], Evaluation],
    tolerance: Float[Array, ""],
    max_steps: Int[Array, ""],
) -> tuple[State, Int[Array, ""], Bool[Array, ""]]:
    """The loop of optax from a start until it ends.

    Parameters
    ----------
    value_of
        Minus the log-likelihood.
    objective
        The extra argument of `natural_gradient` and its kin.
    observed
        The evaluation by the observed information, in the form of `numerics.batched_linalg`.

    Returns
    -------
    tuple
        Newton's state where it ended, for the certificate; the number of steps; whether it stepped to where nothing is finite.
    """
    optimizer = optax.with_extra_args_support(optimizer)
    inner = optimizer.init(start)
    if any(isinstance(leaf, State) for leaf in jax.tree.leaves(inner, is_leaf=lambda leaf: isinstance(leaf, State))):
        raise ValueError(
            "optimizer: newton, fisher_scoring and bhhh are whole optimisers and cannot be part of an optax.chain. "
            "Chain fisher_jax.optimizers.scale_by_information instead."
        )
    zero, no = jnp.zeros((), jnp.int32), jnp.array(False)
    begun = _Run(start, inner, zero, zero, no, no)
    # A line search keeps the value and gradient that it ended with, which need not be computed again.
    entries = [optax.tree.get_all_with_path(inner, name) for name in ("value", "grad")]
    searches = all(len(entry) == 1 and entry[0][1] is not None for entry in entries)
    by_state, plain = optax.value_and_grad_from_state(value_of), jax.value_and_grad(value_of)

    def update(point: Array, inner: Any, value: Array, grad: Array, **extra: Any) -> tuple[Array, Any]:
        return optimizer.update(grad, inner, point, value=value, grad=grad, value_fn=value_of, **extra)

    # Whether it uses `objective` shows only when it is called; optax's line searches raise for keywords that they do not use.
    extra: dict[str, Any] = {}
    try:
        jax.eval_shape(update, start, inner, jnp.zeros((), start.dtype), start)
    except TypeError as error:
        if "objective" not in str(error):
            raise
        extra = {"objective": objective}

    def unfinished(run: _Run) -> Bool[Array, ""]:
        return (run.num_steps < max_steps) & (run.still < STILL_STEPS) & ~run.broken & ~run.arrived

    def step(run: _Run) -> _Run:
        value, grad = by_state(run.point, state=run.inner) if searches else plain(run.point)
        updates, inner = update(run.point, run.inner, value, grad, **extra)
        moved = optax.apply_updates(run.point, updates)
        broken = ~(jnp.isfinite(value) & jnp.all(jnp.isfinite(grad)) & jnp.all(jnp.isfinite(moved)))
        still = jnp.where(jnp.all(moved == run.point), run.still + 1, 0)
        return _Run(jnp.where(broken, run.point, moved), inner, run.num_steps + 1, still, broken, run.arrived)

    def stretch(run: _Run) -> _Run:
        """Some steps, then the decrement."""
        until = run.num_steps + STRETCH
        run = jax.lax.while_loop(lambda now: unfinished(now) & (now.num_steps < until), step, run)
        at = observed(run.point)
        factor = lanes.factorize(at.information)
        half = lanes.solve_lower(factor, at.gradient)
        squared = lanes.dot(half, half)
        near = (squared < tolerance**2) | (0.5 * squared <= _rounding(at))
        return run._replace(arrived=factor.definite & near)

    run = jax.lax.while_loop(unfinished, stretch, begun)
    return _newton_state(observed, run.point), run.num_steps, run.broken


def _newton_state(observed: Callable[[Array], Evaluation], point: Float[Array, " p"]) -> State:
    """Newton's state at a point that another optimiser reached, without moving from it.

    One evaluation there, and one at the end of Newton's step, which shows how the information changes.
    """
    optimizer = Newton()

    def evaluate(_: Any, states: tuple[State, State]) -> tuple[State, State]:
        _, state = states
        reached = observed(lanes.to_array(trial(state)))
        return state, advance(optimizer, state, reached, jnp.zeros((), point.dtype))[0]

    fresh = begin(lanes.vector(point))
    here, beyond = jax.lax.fori_loop(0, 2, evaluate, (fresh, fresh))
    at_floor = 0.5 * here.decrement**2 <= _rounding(here.at)
    return here._replace(drift=beyond.drift, lengthening=beyond.lengthening, at_floor=at_floor)


def _rounding(at: Evaluation) -> Array:
    """A gain below this cannot be distinguished from the rounding of the log-likelihood."""
    return Newton().rounding_units * jnp.finfo(at.value.dtype).eps * jnp.abs(at.value)
