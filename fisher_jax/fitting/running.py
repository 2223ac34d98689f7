"""A maximisation under way: begin it, advance it by one trip, and tell whether another can gain anything.

`solve` runs one until it is done; `lanes` run many side by side, a trip for all of them at a time.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from fisher_jax.models.likelihood import Likelihood, derivatives_at, gradient_at, outer_product_at, terms_at
from fisher_jax.numerics import linalg
from fisher_jax.optimizers.damped import CurvatureKind, DampedState, Evaluation, NewtonState, is_finite, rounding_error

LONGEST_STRIDE = 7.0  # how far a constrained parameter may move on its own scale in one step
_STRETCH = 25  # steps of another's optimiser between two looks at the decrement
_STILL_STEPS = 100  # so many updates in a row that change nothing, and it is taken to have finished

Expected = Callable[[Float[Array, " p"]], tuple[Float[Array, " n"], Float[Array, " p"], Float[Array, "p p"]]]


class Problem(NamedTuple):
    """What is maximised: a likelihood of a flat vector, where to start, and what is known about it.

    `expected` gives the terms, their gradient and the expected information at once, where there is a closed form.
    """

    likelihood: Likelihood
    start: Float[Array, " p"]
    restricted: Bool[Array, " p"]
    num_observed: Int[Array, ""]
    expected: Expected | None


class Run(NamedTuple):
    """Where a maximisation is, with the state of its optimiser.

    `num_steps` is −1 until a damped method has looked at the start; `still` counts updates of another's optimiser in a row
    that changed nothing, `broken` says that it stepped to where nothing is finite, `arrived` that no step can gain.
    """

    free: Float[Array, " p"]
    state: Any
    num_steps: Int[Array, ""]
    still: Int[Array, ""]
    broken: Bool[Array, ""]
    arrived: Bool[Array, ""]


def begin(problem: Problem, optimizer: Any) -> Run:
    """The start, nothing evaluated yet."""
    state = optimizer.init(problem.start)
    zero, no = jnp.zeros((), jnp.int32), jnp.array(False)
    if isinstance(state, DampedState):
        return Run(problem.start, sized(problem, state), zero - 1, zero, no, no)
    _refuse_nested(state)
    return Run(problem.start, state, zero, zero, no, no)


def unfinished(run: Run, max_steps: Int[Array, ""]) -> Bool[Array, ""]:
    """Whether another trip is due."""
    return (run.num_steps < max_steps) & (run.still < _STILL_STEPS) & ~run.broken & ~run.arrived


def trip(problem: Problem, optimizer: Any, run: Run, tolerance: Array, max_steps: Array) -> Run:
    """One step of a damped method; of another's optimiser a stretch of steps, and a look at the decrement after it."""
    objective = objective_of(problem)
    if isinstance(run.state, DampedState):
        return _damped_step(problem, objective, optimizer, run, tolerance)
    return _stretch(problem, objective, optimizer, run, tolerance, max_steps)


def objective_of(problem: Problem) -> Callable[[Array, CurvatureKind], Evaluation]:
    """Minus the log-likelihood, by terms, with the kind of curvature asked for."""
    target = problem.likelihood

    @jax.jit
    def observed(free: Array) -> Evaluation:
        found = derivatives_at(target, free)
        return Evaluation(-found.terms, -found.gradient, found.curvature)

    def objective(free: Array, kind: CurvatureKind) -> Evaluation:
        if kind == "observed":
            return observed(free)
        if kind == "empirical":
            terms, gradient = gradient_at(target, free)
            return Evaluation(-terms, -gradient, outer_product_at(target, free)[1])
        if problem.expected is None:
            raise ValueError(
                "optimizer: fisher_scoring and natural_gradient need the expected information, and the model has none. Give "
                "Model(…, information=…), the Fisher information of one observation, or use newton, bhhh or "
                'natural_gradient(kind="empirical").'
            )
        terms, gradient, information = problem.expected(free)
        return Evaluation(-terms, -gradient, information)

    return objective


def _refuse_nested(state: Any) -> None:
    """The damped methods decide about each step themselves, so nothing may scale it afterwards."""
    if any(
        isinstance(leaf, DampedState) for leaf in jax.tree.leaves(state, is_leaf=lambda s: isinstance(s, DampedState))
    ):
        raise ValueError(
            "optimizer: newton, fisher_scoring and bhhh are whole optimisers and cannot be part of an optax.chain. "
            "Chain fisher_jax.optimizers.scale_by_information instead."
        )


def sized(problem: Problem, state: DampedState) -> DampedState:
    """The state with room for the likelihood's terms."""
    return state._replace(terms=jnp.zeros((problem.likelihood.num_terms,), problem.start.dtype))


def _damped_step(problem: Problem, objective: Any, optimizer: Any, run: Run, tolerance: Array) -> Run:
    free = run.free
    updates, state = optimizer.update(free, run.state, free, objective=_within_stride(objective, problem, free))
    return run._replace(
        free=optax.apply_updates(free, updates),
        state=state,
        num_steps=state.num_updates - 1,
        arrived=_finished(state, tolerance),
    )


def _within_stride(objective: Any, problem: Problem, free: Float[Array, " p"]) -> Any:
    """The objective, infinite where a constrained parameter would leap by more than a factor e^`LONGEST_STRIDE` at once.

    Far out on a logarithmic scale a log-density is often all rounding error, which may look like a gain.
    """

    def bounded(trial: Array, kind: CurvatureKind) -> Evaluation:
        found = objective(trial, kind)
        leaps = jnp.any(problem.restricted & (jnp.abs(trial - free) > LONGEST_STRIDE))
        return found._replace(value=jnp.where(leaps, jnp.inf, found.value))

    return bounded


def _finished(state: DampedState, tolerance: Array) -> Bool[Array, ""]:
    """Whether nothing is gained by another step: certified, or known to fail."""
    # By another curvature than the observed one, which will judge, the distance is known to a factor of two or so.
    aim = tolerance if isinstance(state, NewtonState) else 0.5 * tolerance
    tested = within(state, aim) & jnp.isfinite(state.drift)
    failed = state.stuck | state.running_away | _stationary(state, tolerance) | ~is_finite(state)
    return tested | state.at_floor | failed


def within(state: DampedState, tolerance: Array) -> Bool[Array, ""]:
    """Whether the minimum is nearer than the tolerance, by the state's own curvature."""
    return state.definite & (state.decrement < tolerance)


def _stationary(state: DampedState, tolerance: Array) -> Bool[Array, ""]:
    """No slope, and no positive definite curvature either."""
    return ~state.definite & (state.flatness < tolerance**2)


def _stretch(problem: Problem, objective: Any, optimizer: Any, run: Run, tolerance: Array, max_steps: Array) -> Run:
    """The loop of optax for a while, then a look at the decrement, since only that says when to stop."""
    step = _foreign_step(problem, objective, optax.with_extra_args_support(optimizer), run.state)
    until = run.num_steps + _STRETCH
    run = jax.lax.while_loop(lambda now: unfinished(now, max_steps) & (now.num_steps < until), step, run)
    found = objective(run.free, "observed")
    factor = linalg.factorise(found.curvature)
    squared = jnp.sum(linalg.solve_lower(factor, found.gradient) ** 2)
    near = (squared < tolerance**2) | (0.5 * squared <= rounding_error(found.value))
    return run._replace(arrived=factor.definite & near)


def _foreign_step(problem: Problem, objective: Any, optimizer: Any, inner: Any) -> Callable[[Run], Run]:
    def value_of(free: Array) -> Array:
        return -jnp.sum(terms_at(problem.likelihood, free))

    value_and_grad = optax.value_and_grad_from_state(value_of) if _line_search(inner) else _plain(value_of)

    def update(free: Array, state: Any, value: Array, grad: Array, **extra: Any) -> tuple[Array, Any]:
        return optimizer.update(grad, state, free, value=value, grad=grad, value_fn=value_of, **extra)

    extra = {"objective": objective} if _asks_for_objective(update, problem.start, inner) else {}

    def step(run: Run) -> Run:
        value, grad = value_and_grad(run.free, state=run.state)
        updates, inner = update(run.free, run.state, value, grad, **extra)
        moved = optax.apply_updates(run.free, updates)
        broken = ~(jnp.isfinite(value) & jnp.all(jnp.isfinite(grad)) & jnp.all(jnp.isfinite(moved)))
        still = jnp.where(jnp.all(moved == run.free), run.still + 1, 0)
        return Run(jnp.where(broken, run.free, moved), inner, run.num_steps + 1, still, broken, run.arrived)

    return step


def _asks_for_objective(update: Callable[..., Any], free: Float[Array, " p"], inner: Any) -> bool:
    """Whether an update fails for want of `objective`; optax's line searches refuse what they have not asked for."""
    try:
        jax.eval_shape(update, free, inner, jnp.zeros((), free.dtype), free)
    except TypeError as error:
        if "objective" in str(error):
            return True
        raise
    return False


def _line_search(inner: Any) -> bool:
    """Whether the optimiser's state keeps the value and gradient that its line search ended with."""
    kept = [optax.tree.get_all_with_path(inner, name) for name in ("value", "grad")]
    return all(len(found) == 1 and found[0][1] is not None for found in kept)


def _plain(value_of: Callable[[Array], Array]) -> Callable[..., tuple[Array, Array]]:
    value_and_grad = jax.value_and_grad(value_of)
    return lambda free, state: value_and_grad(free)
