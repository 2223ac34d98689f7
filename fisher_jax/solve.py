"""One maximisation: step until done, then say truly what was reached."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from fisher_jax import linalg
from fisher_jax.differentiate import derivatives_at, gradient_at, outer_product_at, terms_at
from fisher_jax.model import Likelihood
from fisher_jax.optimizers import (
    DRIFT_LIMIT,
    LENGTHENING,
    CurvatureKind,
    DampedState,
    Evaluation,
    NewtonState,
    newton,
    rounding_error,
)
from fisher_jax.status import Status

ROUNDING_LIMIT = 0.01  # standard errors: a rounding floor further out than this is no success
EDGE_INFORMATION = 1e-2  # information on a constrained parameter's own scale below which nothing is left to estimate
EDGE_DISTANCE = 3.0  # how far it must have moved on that scale to count as running away
FAR_AWAY = 20.0  # and how far outward counts as running away in any case, unless it converges there
LONGEST_STRIDE = 7.0  # how far a constrained parameter may move on that scale in one step
_STRETCH = 25  # steps of another's optimiser between two looks at the decrement
_STILL_STEPS = 100  # so many updates in a row that change nothing, and it is taken to have finished

Expected = Callable[[Float[Array, " p"]], Float[Array, "p p"]]


class Problem(NamedTuple):
    """What is maximised: a likelihood of a flat vector, where to start, and what is known about it."""

    likelihood: Likelihood
    start: Float[Array, " p"]
    restricted: Bool[Array, " p"]
    num_observed: Int[Array, ""]
    expected: Expected | None


class Solution(NamedTuple):
    """Where a maximisation ended. `curvature` is minus the Hessian there; all are totals over the data."""

    free: Float[Array, " p"]
    terms: Float[Array, " n"]
    curvature: Float[Array, "p p"]
    last_step: Float[Array, " p"]
    decrement: Float[Array, ""]
    num_steps: Int[Array, ""]
    status: Int[Array, ""]


def default_tolerance(dtype: Any) -> float:
    """√ε standard errors: 1.5e-8 in float64, 3.5e-4 in float32."""
    return float(jnp.finfo(dtype).eps) ** 0.5


def maximise(
    problem: Problem,
    optimizer: Any,
    tolerance: Float[Array, ""],
    max_steps: Int[Array, ""],
) -> Solution:
    """Run the optimiser from the start, and certify where it ends by the observed curvature, whatever the optimiser was."""
    objective = _objective(problem)
    state = optimizer.init(problem.start)
    if isinstance(state, DampedState):
        free, state = _run_damped(problem, objective, optimizer, state, tolerance, max_steps)
        num_steps, broken = state.num_updates - 1, jnp.array(False)
    else:
        _refuse_nested(state)
        free, num_steps, broken = _run_foreign(problem, objective, optimizer, state, tolerance, max_steps)
    found = state if isinstance(state, NewtonState) else _probe(problem, objective, free)
    status = _judge(problem, found, free, num_steps, tolerance, max_steps, broken)
    terms = -jnp.asarray(found.terms)
    return Solution(free, terms, found.curvature, found.step, found.decrement, num_steps, status)


def _objective(problem: Problem) -> Callable[[Array, CurvatureKind], Evaluation]:
    """Minus the log-likelihood, by terms, with the kind of curvature asked for."""
    target = problem.likelihood

    @jax.jit
    def observed(free: Array) -> Evaluation:
        found = derivatives_at(target, free)
        return Evaluation(-found.terms, -found.gradient, found.curvature)

    def objective(free: Array, kind: CurvatureKind) -> Evaluation:
        if kind == "observed":
            return observed(free)
        terms, gradient = gradient_at(target, free)
        if kind == "empirical":
            return Evaluation(-terms, -gradient, outer_product_at(target, free)[1])
        if problem.expected is None:
            raise ValueError(
                "fit: fisher_scoring needs the expected information, and the model has none. Give "
                "Model(…, information=…), the Fisher information of one observation, or use newton or bhhh."
            )
        return Evaluation(-terms, -gradient, problem.expected(free))

    return objective


def _refuse_nested(state: Any) -> None:
    """The damped methods decide about each step themselves, so nothing may scale it afterwards."""
    if any(
        isinstance(leaf, DampedState) for leaf in jax.tree.leaves(state, is_leaf=lambda s: isinstance(s, DampedState))
    ):
        raise ValueError(
            "fit: newton, fisher_scoring and bhhh are whole optimisers and cannot be part of an optax.chain. "
            "Chain fisher_jax.optimizers.scale_by_information instead."
        )


def _sized(problem: Problem, state: DampedState) -> DampedState:
    return state._replace(terms=jnp.zeros((problem.likelihood.num_terms,), problem.start.dtype))


def _run_damped(
    problem: Problem, objective: Any, optimizer: Any, state: DampedState, tolerance: Array, max_steps: Array
) -> tuple[Float[Array, " p"], DampedState]:
    def unfinished(carry: tuple[Array, DampedState]) -> Array:
        _, state = carry
        return (state.num_updates == 0) | ((state.num_updates <= max_steps) & ~_finished(state, tolerance))

    def step(carry: tuple[Array, DampedState]) -> tuple[Array, DampedState]:
        free, state = carry
        updates, state = optimizer.update(free, state, free, objective=_within_stride(objective, problem, free))
        return optax.apply_updates(free, updates), state

    return jax.lax.while_loop(unfinished, step, (problem.start, _sized(problem, state)))


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
    tested = _within(state, tolerance) & jnp.isfinite(state.drift)
    failed = state.stuck | state.running_away | _stationary(state, tolerance) | ~_finite(state)
    return tested | state.at_floor | failed


def _within(state: DampedState, tolerance: Array) -> Bool[Array, ""]:
    return state.definite & (state.decrement < tolerance)


def _stationary(state: DampedState, tolerance: Array) -> Bool[Array, ""]:
    """No slope, and no positive definite curvature either."""
    return ~state.definite & (state.flatness < tolerance**2)


def _finite(state: DampedState) -> Bool[Array, ""]:
    slopes = jnp.all(jnp.isfinite(state.grad)) & jnp.all(jnp.isfinite(state.curvature))
    return jnp.isfinite(state.value) & slopes


class _Foreign(NamedTuple):
    """State of another's optimiser in the loop; `still` counts updates in a row that changed nothing."""

    free: Float[Array, " p"]
    inner: Any
    num_steps: Int[Array, ""]
    still: Int[Array, ""]
    broken: Bool[Array, ""]
    arrived: Bool[Array, ""]


def _run_foreign(
    problem: Problem, objective: Any, optimizer: Any, inner: Any, tolerance: Array, max_steps: Array
) -> tuple[Float[Array, " p"], Int[Array, ""], Bool[Array, ""]]:
    """The loop of optax, with a look at the decrement after every stretch of steps, since only that says when to stop."""
    step = _foreign_step(problem, objective, optax.with_extra_args_support(optimizer), inner)

    def goes_on(carry: _Foreign) -> Array:
        return (carry.num_steps < max_steps) & (carry.still < _STILL_STEPS) & ~carry.broken

    def stretch(carry: _Foreign) -> _Foreign:
        until = carry.num_steps + _STRETCH
        carry = jax.lax.while_loop(lambda now: goes_on(now) & (now.num_steps < until), step, carry)
        found = objective(carry.free, "observed")
        factor = linalg.factorise(found.curvature)
        squared = jnp.sum(linalg.solve_lower(factor, found.gradient) ** 2)
        near = (squared < tolerance**2) | (0.5 * squared <= rounding_error(found.value))
        return carry._replace(arrived=factor.definite & near)

    zero, no = jnp.zeros((), jnp.int32), jnp.array(False)
    start = _Foreign(problem.start, inner, zero, zero, no, no)
    end = jax.lax.while_loop(lambda carry: goes_on(carry) & ~carry.arrived, stretch, start)
    return end.free, end.num_steps, end.broken


def _foreign_step(problem: Problem, objective: Any, optimizer: Any, inner: Any) -> Callable[[_Foreign], _Foreign]:
    def value_of(free: Array) -> Array:
        return -jnp.sum(terms_at(problem.likelihood, free))

    value_and_grad = optax.value_and_grad_from_state(value_of) if _line_search(inner) else _plain(value_of)

    def update(free: Array, state: Any, value: Array, grad: Array, **extra: Any) -> tuple[Array, Any]:
        return optimizer.update(grad, state, free, value=value, grad=grad, value_fn=value_of, **extra)

    extra = {"objective": objective} if _asks_for_objective(update, problem.start, inner) else {}

    def step(carry: _Foreign) -> _Foreign:
        value, grad = value_and_grad(carry.free, state=carry.inner)
        updates, inner = update(carry.free, carry.inner, value, grad, **extra)
        moved = optax.apply_updates(carry.free, updates)
        broken = ~(jnp.isfinite(value) & jnp.all(jnp.isfinite(grad)) & jnp.all(jnp.isfinite(moved)))
        still = jnp.where(jnp.all(moved == carry.free), carry.still + 1, 0)
        return _Foreign(jnp.where(broken, carry.free, moved), inner, carry.num_steps + 1, still, broken, carry.arrived)

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


def _probe(problem: Problem, objective: Any, free: Float[Array, " p"]) -> NewtonState:
    """What Newton's method finds at a point that another optimiser reached, without moving from it.

    One evaluation there, one at the end of the step that it would take.
    """
    optimizer = newton()

    def step(_: Any, states: tuple[NewtonState, NewtonState]) -> tuple[NewtonState, NewtonState]:
        _, state = states
        return state, optimizer.update(free, state, free, objective=objective)[1]

    start = _sized(problem, optimizer.init(free))
    here, beyond = jax.lax.fori_loop(0, 2, step, (start, start))
    at_floor = 0.5 * here.decrement**2 <= rounding_error(here.terms)
    return here._replace(step=beyond.step, drift=beyond.drift, lengthening=beyond.lengthening, at_floor=at_floor)


def _judge(
    problem: Problem,
    state: NewtonState,
    free: Float[Array, " p"],
    num_steps: Array,
    tolerance: Array,
    max_steps: Array,
    broken: Array,
) -> Int[Array, ""]:
    """The status, from the certificate alone: the first of these conditions that holds."""
    regular = state.drift < DRIFT_LIMIT
    within = _within(state, tolerance)
    # The curvature's own diagonal, without the other parameters: weakness shared by several is not an edge.
    faint = jnp.abs(jnp.diagonal(state.curvature)) < EDGE_INFORMATION
    moved, outward = jnp.abs(free - problem.start), jnp.abs(free) > jnp.abs(problem.start)
    escaped = jnp.any(problem.restricted & (faint & (moved > EDGE_DISTANCE) | outward & (moved > FAR_AWAY)))
    nearly = jnp.minimum(ROUNDING_LIMIT, 100 * default_tolerance(free.dtype))
    near_enough = jnp.where(state.at_floor, ROUNDING_LIMIT, jnp.where(state.stuck, nearly, 0.0))
    at_floor = state.definite & (state.decrement < near_enough)
    slope = jnp.sqrt(state.flatness)
    stationary = ~state.definite & (slope < jnp.maximum(tolerance, jnp.where(state.stuck, nearly, 0.0)))
    fading = (within | at_floor | stationary) & ~regular & jnp.isfinite(state.drift)
    # What is left of the slope leaves its mark on the curvature too, on a ridge that is curved.
    singular = jnp.abs(state.pivot) <= jnp.maximum(linalg.singular_pivot(free.shape[0], free.dtype), slope)
    unmoved = jnp.all((free == problem.start) | ~jnp.isfinite(problem.start))
    no_start = ~jnp.isfinite(state.value) & unmoved
    conditions = [
        (no_start, Status.BAD_START),
        (broken | ~_finite(state), Status.NOT_FINITE),
        (within & regular, Status.CONVERGED),
        (at_floor & regular, Status.CONVERGED_TO_ROUNDING),
        (problem.num_observed < free.shape[0], Status.TOO_FEW_OBSERVATIONS),
        (escaped, Status.BOUNDARY),
        (state.running_away | fading & (state.lengthening > LENGTHENING), Status.BOUNDARY),
        (fading & within, Status.SINGULAR_INFORMATION),
        (stationary & singular, Status.SINGULAR_INFORMATION),
        (stationary, Status.INDEFINITE),
        (num_steps >= max_steps, Status.STEP_LIMIT),
    ]
    tests = jnp.stack([jnp.asarray(condition) for condition, _ in conditions])
    codes = jnp.array([status for _, status in conditions], jnp.int32)
    return jnp.where(jnp.any(tests), codes[jnp.argmax(tests)], jnp.int32(Status.STALLED))
