"""One maximisation as a program: evaluate, step, certify.

The step is `optimizers.newton`; any other optax transformation goes through `optimizers.foreign`. Whatever the method, the
status is decided here, by the observed information where it ended.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fisher_jax.fitting.problem import Problem
from fisher_jax.fitting.status import Status
from fisher_jax.models.likelihood import (
    derivatives_at,
    gradient_at,
    outer_product_at,
    sum_with_rounding,
    terms_at,
)
from fisher_jax.numerics import lanes
from fisher_jax.numerics.linalg import singular_pivot
from fisher_jax.optimizers.newton import (
    DRIFT_LIMIT,
    LENGTHENING,
    Evaluation,
    Kind,
    Newton,
    State,
    advance,
    begin,
    trial,
)

ROUNDING_LIMIT = 0.01  # standard errors: a rounding floor further out than this is no success
EDGE_INFORMATION = 1e-2  # information on a constrained parameter's own scale below which nothing is left to estimate
EDGE_DISTANCE = 3.0  # how far it must have moved on that scale to count as running away
FAR_AWAY = 20.0  # and how far outward counts as running away in any case, unless it converges there
NO_EXPECTED = (
    "optimizer: fisher_scoring and natural_gradient need the expected information, and the model has none. Give "
    "Model(…, information=…), the Fisher information of one observation, or use newton, bhhh or "
    'natural_gradient(kind="empirical").'
)
HAND_OVER = 0.3  # standard errors: so near, scoring's linear convergence is left for Newton's steps


class Run(NamedTuple):
    """A maximisation by a method of Newton's kind under way.

    `by_observed` says that the observed information is used, as it is at the end of all; `steps_before` counts the steps taken
    before. `radius_factor` multiplies the first radius. `arrived`: no step can gain, or none is left.
    """

    state: State
    steps_before: Int[Array, ""]
    by_observed: Bool[Array, ""]
    radius_factor: Float[Array, ""]
    arrived: Bool[Array, ""]

    @property
    def num_steps(self) -> Int[Array, ""]:
        """Steps taken: looking at the start is none."""
        return self.steps_before + jnp.maximum(self.state.count, 0)


class Solution(NamedTuple):
    """Where a maximisation ended. `curvature` is minus the Hessian there; all are totals over the data."""

    free: Float[Array, " p"]
    log_likelihood: Float[Array, ""]
    curvature: Float[Array, "p p"]
    last_step: Float[Array, " p"]
    decrement: Float[Array, ""]
    num_steps: Int[Array, ""]
    status: Int[Array, ""]


def _foreign() -> Any:
    """`optimizers.foreign`, which brings optax: imported by those who use another's optimiser."""
    from fisher_jax.optimizers import foreign

    return foreign


def default_tolerance(dtype: Any) -> float:
    """√ε standard errors: 1.5e-8 in float64, 3.5e-4 in float32."""
    return float(jnp.finfo(dtype).eps) ** 0.5


def evaluate(problem: Problem, kind: Kind, point: Float[Array, " p"]) -> Evaluation:
    """The log-likelihood with the kind of information asked for, as arrays (p,) and (p, p)."""
    target = problem.likelihood
    if kind == "observed":
        terms, gradient, information = derivatives_at(target, point)
    elif kind == "empirical":
        terms, gradient = gradient_at(target, point)
        information = outer_product_at(target, point)[1]
    elif problem.expected is None:
        raise ValueError(NO_EXPECTED)
    else:
        terms, gradient, information = problem.expected(point)
    value, rounding = sum_with_rounding(terms)
    return Evaluation(value, gradient, information, rounding)


def _in_lanes(problem: Problem, kind: Kind, point: Float[Array, " p"]) -> Evaluation:
    found = evaluate(problem, kind, point)
    return found._replace(gradient=lanes.vector(found.gradient), information=lanes.matrix(found.information))


def start(problem: Problem, optimizer: Any, radius_factor: Any = 1.0) -> Any:
    """The start, nothing evaluated yet."""
    if not isinstance(optimizer, Newton):
        return _foreign().start(optimizer, problem.start)
    state, no = begin(lanes.vector(problem.start)), jnp.array(False)
    factor = jnp.asarray(radius_factor, problem.start.dtype)
    return Run(state, jnp.zeros((), jnp.int32), jnp.array(optimizer.kind == "observed"), factor, no)


def unfinished(run: Any, max_steps: Int[Array, ""]) -> Bool[Array, ""]:
    """Whether another trip is due."""
    return ~run.arrived if isinstance(run, Run) else _foreign().unfinished(run, max_steps)


def trip(problem: Problem, optimizer: Any, run: Any, tolerance: Float[Array, ""], max_steps: Int[Array, ""]) -> Any:
    """One evaluation and step; of another's optimiser a stretch of steps, and a look at the decrement after it."""
    if not isinstance(optimizer, Newton):
        return _foreign().stretch(
            optimizer,
            run,
            lambda u: -jnp.sum(terms_at(problem.likelihood, u)),
            lambda u, kind: evaluate(problem, kind, u),
            lambda u: _in_lanes(problem, "observed", u),
            tolerance,
            max_steps,
        )
    point = lanes.to_array(trial(run.state))
    if optimizer.kind == "observed":
        reached, aim = _in_lanes(problem, "observed", point), tolerance
    else:
        reached = jax.lax.cond(
            run.by_observed,
            lambda u: _in_lanes(problem, "observed", u),
            lambda u: _in_lanes(problem, optimizer.kind, u),
            point,
        )
        aim = jnp.where(run.by_observed, tolerance, HAND_OVER)
    state, ended = advance(optimizer, run.state, reached, aim, run.radius_factor, problem.restricted)
    steps = run.steps_before + state.count
    ended = ended | (steps >= max_steps)
    # Wherever scoring ends, near the maximum or for want of a step that gains, the observed information goes on and judges.
    hand_over = ~run.by_observed & (ended | is_within(state, HAND_OVER))
    point = lanes.select(hand_over, handed_over_at(state, HAND_OVER), state.point)
    return Run(
        state._replace(point=point, count=jnp.where(hand_over, -1, state.count)),
        jnp.where(hand_over, steps, run.steps_before),
        run.by_observed | hand_over,
        run.radius_factor,
        ended & run.by_observed,
    )


def is_within(state: State, tolerance: Any) -> Any:
    """Whether the maximum is nearer than the tolerance, certified or not."""
    return state.definite & (state.decrement < tolerance)


def handed_over_at(state: State, tolerance: Any) -> lanes.Vector:
    """Where Newton's steps go on from scoring's: where its next step would lead, or where it is if it came no nearer."""
    return lanes.select(is_within(state, tolerance), trial(state), state.point)


def maximise(problem: Problem, optimizer: Any, tolerance: Float[Array, ""], max_steps: Int[Array, ""]) -> Solution:
    """Run the optimiser from the start until done, and say what was reached."""
    run = jax.lax.while_loop(
        lambda run: unfinished(run, max_steps),
        lambda run: trip(problem, optimizer, run, tolerance, max_steps),
        start(problem, optimizer),
    )
    return conclude(problem, run, tolerance, max_steps)


def conclude(problem: Problem, run: Any, tolerance: Float[Array, ""], max_steps: Int[Array, ""]) -> Solution:
    """What was reached and how far to trust it."""
    broken: Any = False
    if isinstance(run, Run):
        state = run.state
    else:
        state = _foreign().certify_by(lambda u: _in_lanes(problem, "observed", u), run.point)
        broken = run.broken
    status = certify(
        state,
        lanes.vector(problem.start),
        problem.num_observed,
        tolerance,
        max_steps,
        problem.restricted,
        num_steps=run.num_steps,
        broken=broken,
    )
    last_step = jnp.where(jnp.isfinite(state.drift), lanes.to_array(state.step), 0.0)
    value, curvature = state.at.value + state.at.rounding, lanes.matrix_to_array(state.at.information)
    return Solution(lanes.to_array(state.point), value, curvature, last_step, state.decrement, run.num_steps, status)


def certify(
    state: State,
    begun: lanes.Vector,
    num_observed: Any,
    tolerance: Any,
    max_steps: Any,
    restricted: tuple[bool, ...],
    *,
    num_steps: Any = None,
    broken: Any = False,
) -> Any:
    """The status of a maximisation that ended in this state, from the certificate alone: the first condition that holds.

    Element-wise over the lanes. `begun` is where it began, `restricted` says of each entry of u whether it is a logarithm or logit,
    `broken` that the optimiser stepped to where nothing is finite.
    """
    xp = lanes.namespace(state.decrement)
    p, dtype = len(state.point), state.decrement.dtype
    num_steps = state.count if num_steps is None else num_steps
    regular = state.drift < DRIFT_LIMIT
    near = state.definite & (state.decrement < tolerance)
    # The information's own diagonal, without the other parameters: weakness shared by several is not an edge.
    diagonal = lanes.diagonal(state.at.information)
    escaped, ran_out = xp.zeros_like(state.definite), xp.asarray(num_steps >= max_steps)
    for i in (i for i, limited in enumerate(restricted) if limited):
        faint, moved = xp.abs(diagonal[i]) < EDGE_INFORMATION, xp.abs(state.point[i] - begun[i])
        outward = xp.abs(state.point[i]) > xp.abs(begun[i])
        # Where only the steps ran out, a long way is no sign that it goes on without end; faint information is.
        escaped = escaped | (faint & (moved > EDGE_DISTANCE)) | (outward & (moved > FAR_AWAY) & ~ran_out)
    nearly = min(ROUNDING_LIMIT, 100 * default_tolerance(dtype))
    near_enough = xp.where(state.at_floor, ROUNDING_LIMIT, xp.where(state.stuck, nearly, 0.0))
    at_floor = state.definite & (state.decrement < near_enough)
    slope = xp.sqrt(state.flatness)
    stationary = ~state.definite & (slope < tolerance)
    fading = (near | at_floor | stationary) & ~regular & xp.isfinite(state.drift)
    # What is left of the slope leaves its mark on the information too, on a ridge that is curved.
    singular = xp.abs(state.pivot) <= xp.maximum(singular_pivot(p, dtype), slope)
    unmoved = lanes.every(lanes.each(lambda u, b: (u == b) | ~xp.isfinite(b), state.point, begun))
    conditions = [
        # First, for without an observation the rest says what lies under weights of zero.
        (num_observed == 0, Status.TOO_FEW_OBSERVATIONS),
        (~xp.isfinite(state.at.value) & unmoved, Status.BAD_START),
        (broken | ~state.finite, Status.NOT_FINITE),
        (near & regular, Status.CONVERGED),
        (at_floor & regular, Status.CONVERGED_TO_ROUNDING),
        (num_observed < p, Status.TOO_FEW_OBSERVATIONS),
        (escaped, Status.BOUNDARY),
        (state.running_away | fading & (state.lengthening > LENGTHENING), Status.BOUNDARY),
        (fading & near, Status.SINGULAR_INFORMATION),
        (stationary & singular, Status.SINGULAR_INFORMATION),
        (stationary, Status.INDEFINITE),
        (ran_out, Status.STEP_LIMIT),
    ]
    status = xp.full_like(state.count, int(Status.STALLED))
    for condition, code in reversed(conditions):
        status = xp.where(condition, int(code), status)
    return status.astype("int32")
