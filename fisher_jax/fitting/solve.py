"""One maximisation: step until done, then say truly what was reached."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fisher_jax.fitting.running import Problem, Run, begin, objective_of, sized, trip, unfinished, within
from fisher_jax.fitting.status import Status
from fisher_jax.numerics import linalg
from fisher_jax.optimizers import newton
from fisher_jax.optimizers.damped import (
    DRIFT_LIMIT,
    LENGTHENING,
    DampedState,
    NewtonState,
    is_finite,
    rounding_error,
    seen_at,
)

ROUNDING_LIMIT = 0.01  # standard errors: a rounding floor further out than this is no success
EDGE_INFORMATION = 1e-2  # information on a constrained parameter's own scale below which nothing is left to estimate
EDGE_DISTANCE = 3.0  # how far it must have moved on that scale to count as running away
FAR_AWAY = 20.0  # and how far outward counts as running away in any case, unless it converges there


class Solution(NamedTuple):
    """Where a maximisation ended. `curvature` is minus the Hessian there; all are totals over the data."""

    free: Float[Array, " p"]
    log_likelihood: Float[Array, ""]
    curvature: Float[Array, "p p"]
    last_step: Float[Array, " p"]
    decrement: Float[Array, ""]
    num_steps: Int[Array, ""]
    status: Int[Array, ""]


def default_tolerance(dtype: Any) -> float:
    """√ε standard errors: 1.5e-8 in float64, 3.5e-4 in float32."""
    return float(jnp.finfo(dtype).eps) ** 0.5


def maximise(problem: Problem, optimizer: Any, tolerance: Float[Array, ""], max_steps: Int[Array, ""]) -> Solution:
    """Run the optimiser from the start until done, and say what was reached."""
    run = jax.lax.while_loop(
        lambda run: unfinished(run, max_steps),
        lambda run: trip(problem, optimizer, run, tolerance, max_steps),
        begin(problem, optimizer),
    )
    return conclude(problem, ended(run), tolerance, max_steps)


def ended(run: Run) -> Run:
    """What `conclude` needs of a run: little, so that many can be kept."""
    state = run.state._replace(terms=None) if isinstance(run.state, DampedState) else None
    return run._replace(state=state)


def conclude(problem: Problem, run: Run, tolerance: Float[Array, ""], max_steps: Int[Array, ""]) -> Solution:
    """Certify where a run ended by the observed curvature, whatever the optimiser was."""
    found = run.state
    if not isinstance(found, NewtonState):
        objective = objective_of(problem)
        foreign = found is None
        found = _probe(problem, objective, run.free) if foreign else seen_at(found, objective(run.free, "observed"))
    status = _judge(problem, found, run.free, run.num_steps, tolerance, max_steps, run.broken)
    return Solution(run.free, -found.value, found.curvature, found.step, found.decrement, run.num_steps, status)


def _probe(problem: Problem, objective: Any, free: Float[Array, " p"]) -> NewtonState:
    """What Newton's method finds at a point that another optimiser reached, without moving from it.

    One evaluation there, one at the end of the step that it would take.
    """
    optimizer = newton()

    def step(_: Any, states: tuple[NewtonState, NewtonState]) -> tuple[NewtonState, NewtonState]:
        _, state = states
        return state, optimizer.update(free, state, free, objective=objective)[1]

    start = sized(problem, optimizer.init(free))
    here, beyond = jax.lax.fori_loop(0, 2, step, (start, start))
    at_floor = 0.5 * here.decrement**2 <= rounding_error(here.terms)
    return here._replace(step=beyond.step, drift=beyond.drift, lengthening=beyond.lengthening, at_floor=at_floor)


def _judge(
    problem: Problem,
    state: DampedState,
    free: Float[Array, " p"],
    num_steps: Array,
    tolerance: Array,
    max_steps: Array,
    broken: Array,
) -> Int[Array, ""]:
    """The status, from the certificate alone: the first of these conditions that holds."""
    regular = state.drift < DRIFT_LIMIT
    near = within(state, tolerance)
    # The curvature's own diagonal, without the other parameters: weakness shared by several is not an edge.
    faint = jnp.abs(jnp.diagonal(state.curvature)) < EDGE_INFORMATION
    moved, outward = jnp.abs(free - problem.start), jnp.abs(free) > jnp.abs(problem.start)
    escaped = jnp.any(problem.restricted & (faint & (moved > EDGE_DISTANCE) | outward & (moved > FAR_AWAY)))
    nearly = jnp.minimum(ROUNDING_LIMIT, 100 * default_tolerance(free.dtype))
    near_enough = jnp.where(state.at_floor, ROUNDING_LIMIT, jnp.where(state.stuck, nearly, 0.0))
    at_floor = state.definite & (state.decrement < near_enough)
    slope = jnp.sqrt(state.flatness)
    stationary = ~state.definite & (slope < jnp.maximum(tolerance, jnp.where(state.stuck, nearly, 0.0)))
    fading = (near | at_floor | stationary) & ~regular & jnp.isfinite(state.drift)
    # What is left of the slope leaves its mark on the curvature too, on a ridge that is curved.
    singular = jnp.abs(state.pivot) <= jnp.maximum(linalg.singular_pivot(free.shape[0], free.dtype), slope)
    unmoved = jnp.all((free == problem.start) | ~jnp.isfinite(problem.start))
    no_start = ~jnp.isfinite(state.value) & unmoved
    conditions = [
        (no_start, Status.BAD_START),
        (broken | ~is_finite(state), Status.NOT_FINITE),
        (near & regular, Status.CONVERGED),
        (at_floor & regular, Status.CONVERGED_TO_ROUNDING),
        (problem.num_observed < free.shape[0], Status.TOO_FEW_OBSERVATIONS),
        (escaped, Status.BOUNDARY),
        (state.running_away | fading & (state.lengthening > LENGTHENING), Status.BOUNDARY),
        (fading & near, Status.SINGULAR_INFORMATION),
        (stationary & singular, Status.SINGULAR_INFORMATION),
        (stationary, Status.INDEFINITE),
        (num_steps >= max_steps, Status.STEP_LIMIT),
    ]
    tests = jnp.stack([jnp.asarray(condition) for condition, _ in conditions])
    codes = jnp.array([status for _, status in conditions], jnp.int32)
    return jnp.where(jnp.any(tests), codes[jnp.argmax(tests)], jnp.int32(Status.STALLED))
