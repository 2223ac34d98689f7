"""One damped step of Newton's kind: proposed, accepted or rejected, and what it tells of the point that was reached."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from fisher_jax.numerics import linalg

CurvatureKind = Literal["observed", "expected", "empirical"]

UNDAMPED_BELOW = 0.1  # standard errors: within this distance a Newton step needs no damping
DRIFT_LIMIT = 0.1  # relative change of curvature along a Newton step that a regular maximum never shows so close
LENGTHENING = 0.85  # Newton steps on the way to infinity do not shorten; towards a degenerate minimum they do
RUNAWAY_STEPS = 15  # so many such steps in a row, each taking most of the curvature away, and nothing will come
_LEAST_DAMPING = 1e-30  # far below rounding: the damping's unit may be a curvature met long ago
_FARTHEST = 1e8  # times the parameter, or one: a first proposal that leads farther owes it to a vanishing curvature
_FORGETTING = 0.1  # what an accepted step leaves of the largest curvature seen


class Evaluation(NamedTuple):
    """An objective to be minimised at one point.

    `value` is a scalar, or the terms whose sum is the objective: given terms, two points are compared by summing the
    differences, which float32 survives. `gradient` and `curvature` are totals, in the order of `ravel_pytree(params)`.

    Examples
    --------
    A parabola, for an optimiser that is run by hand:

    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> def objective(params, kind):
    ...     return fj.optimizers.Evaluation(jnp.sum(params**2), 2 * params, 2 * jnp.eye(2))
    """

    value: Float[Array, "*n"]
    gradient: Float[Array, " p"]
    curvature: Float[Array, "p p"]


Objective = Callable[[PyTree, CurvatureKind], Evaluation]


class DampedState(NamedTuple):
    """State of `newton`, `fisher_scoring` and `bhhh`.

    What belongs to the current point changes only when a step is accepted: `terms`, `value`, `grad`, `curvature`,
    `decrement` (distance to the minimum in standard errors; infinite where the curvature is not positive definite),
    `pivot` and `definite` (of the curvature) and `flatness` (squared gradient over the curvature's diagonal, summed).
    `step`, `drift` and `lengthening` belong to the last undamped step towards a point where the curvature was positive
    definite; drift and lengthening are infinite after a damped one: the step itself, the largest relative change of the
    curvature along it, and the next such step's length as a multiple of its own. `runaway` counts such steps in a row
    along which the curvature faded without the steps growing shorter.
    `largest_diagonal` changes when a step is accepted, `damping` and `growth` at every update; `at_floor` says that the last
    step promised less than the rounding error of the objective and did not come nearer either; `rejected` that it was not
    taken; `stuck` that it was not although it was too short to change a parameter.
    """

    num_updates: Int[Array, ""]
    terms: Float[Array, "*n"] | None
    value: Float[Array, ""]
    grad: PyTree
    curvature: Float[Array, "p p"]
    decrement: Float[Array, ""]
    pivot: Float[Array, ""]
    definite: Bool[Array, ""]
    flatness: Float[Array, ""]
    step: Float[Array, " p"]
    drift: Float[Array, ""]
    lengthening: Float[Array, ""]
    runaway: Int[Array, ""]
    damping: Float[Array, ""]
    growth: Float[Array, ""]
    largest_diagonal: Float[Array, " p"]
    at_floor: Bool[Array, ""]
    rejected: Bool[Array, ""]
    stuck: Bool[Array, ""]

    @property
    def running_away(self) -> Bool[Array, ""]:
        """The minimum lies at infinity."""
        return self.runaway >= RUNAWAY_STEPS


class NewtonState(DampedState):
    """A state whose curvature is the observed one, so that its decrement certifies a minimum."""


class Trial(NamedTuple):
    """A proposed step: the step itself, its predicted gain, and how it came about."""

    step: Float[Array, " p"]
    predicted: Float[Array, ""]
    undamped: Bool[Array, ""]
    damping: Float[Array, ""]
    factor: linalg.Factor


def initial_state(flat: Float[Array, " p"], params: PyTree, damping: float) -> DampedState:
    p, dtype = flat.shape[0], flat.dtype
    nothing, infinite = jnp.zeros((), dtype), jnp.full((), jnp.inf, dtype)
    return DampedState(
        num_updates=jnp.zeros((), jnp.int32),
        terms=None,
        value=infinite,
        grad=jax.tree.map(jnp.zeros_like, params),
        curvature=jnp.zeros((p, p), dtype),
        decrement=infinite,
        pivot=nothing,
        definite=jnp.array(False),
        flatness=infinite,
        step=jnp.zeros_like(flat),
        drift=infinite,
        lengthening=infinite,
        runaway=jnp.zeros((), jnp.int32),
        damping=jnp.full((), damping, dtype),
        growth=jnp.full((), 2.0, dtype),
        largest_diagonal=jnp.zeros((p,), dtype),
        at_floor=jnp.array(False),
        rejected=jnp.array(False),
        stuck=jnp.array(False),
    )


def with_terms(state: DampedState, evaluate: Callable[[], Evaluation]) -> DampedState:
    """The state with room for the objective's terms, whose number is not known to `init`."""
    if state.terms is not None:
        return state
    value = jax.eval_shape(evaluate).value
    return state._replace(terms=jnp.zeros(value.shape, value.dtype))


def propose(state: DampedState, flat: Float[Array, " p"]) -> Trial:
    """The next step: undamped close to the minimum, else with the least of four dampings that makes it descend."""
    gradient, _ = ravel_pytree(state.grad)
    # On a plateau the curvature is next to nothing, in one direction far less than in another: bound what it asks for.
    plateau = jnp.abs(gradient) / (_FARTHEST * jnp.maximum(1.0, jnp.abs(flat)))
    diagonal = jnp.maximum(_positive_diagonal(state.largest_diagonal, gradient), plateau)
    undamped = state.definite & (state.decrement < UNDAMPED_BELOW) & ~state.rejected
    ladder = _dampings(state, diagonal, undamped)
    # Factorised once more rather than picked from a stack: in a batch, picking is dearer than what is picked.
    damped = [state.curvature + jnp.diag(rung * diagonal) for rung in ladder]
    damping, matrix = ladder[3], damped[3]
    for k in (2, 1, 0):
        definite = linalg.factorise(damped[k]).definite
        damping, matrix = jnp.where(definite, ladder[k], damping), jnp.where(definite, damped[k], matrix)
    chosen = linalg.factorise(matrix)
    step = -linalg.solve(chosen, gradient)
    predicted = -_dot(gradient, step) - 0.5 * _dot(step, _times(state.curvature, step))
    return Trial(step, predicted, undamped, damping, chosen)


def _dampings(state: DampedState, diagonal: Float[Array, " p"], undamped: Bool[Array, ""]) -> Float[Array, "4"]:
    """λ as it is (or none), ten and a hundred times that, and one that is certain to suffice (Gershgorin's circles)."""
    root = jnp.sqrt(diagonal)
    scaled = state.curvature / root[:, None] / root[None, :]
    centre = jnp.diagonal(scaled)
    lowest = jnp.min(centre - (jnp.sum(jnp.abs(scaled), axis=1) - jnp.abs(centre)))
    certain = jnp.maximum(100 * state.damping, 1.01 * jnp.maximum(-lowest, 0.0) + state.damping)
    least = jnp.where(undamped, 0.0, state.damping)
    return jnp.stack([least, 10 * state.damping, 100 * state.damping, certain])


def _positive_diagonal(largest: Float[Array, " p"], gradient: Float[Array, " p"]) -> Float[Array, " p"]:
    """A scale for each parameter: its curvature, or where it has none its squared gradient, which has the same unit."""
    return jnp.where(largest > 0, largest, jnp.where(gradient != 0, gradient**2, 1.0))


def advance(
    state: DampedState,
    trial: Trial,
    reached: Evaluation,
    restore: Callable[[Array], PyTree],
    unchanged: Bool[Array, ""],
) -> tuple[Bool[Array, ""], DampedState]:
    """Accept or reject the trial point, and carry on what the next step needs."""
    first = state.num_updates == 0
    old_gradient, _ = ravel_pytree(state.grad)
    factor = linalg.factorise(reached.curvature)
    there = _standing(state, reached, factor, restore)
    decrement, finite = there.decrement, is_finite(there)
    gain = jnp.sum(state.terms - reached.value)  # type: ignore[operator]
    indistinct = trial.predicted <= rounding_error(state.terms)  # type: ignore[arg-type]
    # So close that the gain drowns in rounding, the slope still tells whether the step came nearer.
    nearer = trial.undamped & (decrement < jnp.where(indistinct, 1.0, 0.5) * state.decrement)
    taken = first | (finite & ((gain > 1e-4 * trial.predicted) | nearer))
    floor = indistinct & trial.undamped & ~(finite & (decrement < 0.5 * state.decrement)) & ~first
    drift, lengthening = _certificate(state, trial, reached, factor, old_gradient)
    unprobed = jnp.where(trial.undamped, jnp.stack([state.drift, state.lengthening]), jnp.inf)
    probed = trial.undamped & factor.definite & finite & ~first
    damping, growth = _next_damping(state, trial, gain, taken, first)
    largest = jnp.maximum(_FORGETTING * state.largest_diagonal, jnp.abs(jnp.diagonal(reached.curvature)))
    there = there._replace(largest_diagonal=jnp.where(jnp.isfinite(largest), largest, state.largest_diagonal))
    state = jax.tree.map(lambda new, old: jnp.where(taken, new, old), there, state)
    return taken, state._replace(
        num_updates=state.num_updates + 1,
        step=jnp.where(probed, trial.step, state.step),
        drift=jnp.where(probed, drift, unprobed[0]),
        lengthening=jnp.where(probed, lengthening, unprobed[1]),
        runaway=jnp.where(probed & taken & (drift > DRIFT_LIMIT) & (lengthening > LENGTHENING), state.runaway + 1, 0),
        damping=damping,
        growth=growth,
        at_floor=floor,
        rejected=~taken,
        stuck=~taken & (unchanged | (damping > jnp.sqrt(jnp.finfo(damping.dtype).max))),
    )


def seen_at(state: DampedState, found: Evaluation) -> DampedState:
    """The state of a damped method whose point is looked at anew, with another kind of curvature.

    What it knows of its last step stays: where the one curvature fades along it, so does the other.
    """
    seen = _standing(state, found, linalg.factorise(found.curvature), lambda gradient: gradient)
    near = 0.5 * seen.decrement**2 <= rounding_error(found.value)
    return seen._replace(at_floor=state.at_floor | near)


def _standing(
    state: DampedState, found: Evaluation, factor: linalg.Factor, restore: Callable[[Array], PyTree]
) -> DampedState:
    """The state with what belongs to a point taken from an evaluation there."""
    half = linalg.solve_lower(factor, found.gradient)
    state = state._replace(
        terms=found.value,
        value=jnp.sum(found.value),
        grad=restore(found.gradient),
        curvature=found.curvature,
        pivot=factor.pivot,
        definite=factor.definite,
        flatness=_flatness(found),
    )
    decrement = jnp.where(is_finite(state) & factor.definite, jnp.sqrt(_dot(half, half)), jnp.inf)
    return state._replace(decrement=decrement)


def is_finite(state: DampedState) -> Bool[Array, ""]:
    """Whether value, slope and curvature are finite at the current point."""
    gradient, _ = ravel_pytree(state.grad)
    slopes = jnp.all(jnp.isfinite(gradient)) & jnp.all(jnp.isfinite(state.curvature))
    return jnp.isfinite(state.value) & slopes


def _flatness(reached: Evaluation) -> Float[Array, ""]:
    scale = _positive_diagonal(jnp.abs(jnp.diagonal(reached.curvature)), reached.gradient)
    return jnp.sum(reached.gradient**2 / scale)


def _certificate(
    state: DampedState, trial: Trial, reached: Evaluation, factor: linalg.Factor, old_gradient: Float[Array, " p"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Whether the last step looks like Newton's at a regular minimum.

    There the curvature hardly changes along the step, by any direction's measure. On the way to infinity, or to a
    degenerate minimum, it changes by a constant factor each time, however small the gradient has become; and on the way to
    infinity the steps do not shorten.
    """
    half = linalg.solve_lower(trial.factor, reached.curvature - state.curvature)
    drift = jnp.max(jnp.abs(linalg.solve_lower(trial.factor, half.T)), initial=0.0)
    following = -linalg.solve(factor, reached.gradient)
    scale = _positive_diagonal(state.largest_diagonal, old_gradient)
    length = _dot(trial.step, scale * trial.step)
    lengthening = jnp.where(length > 0, _dot(trial.step, scale * following) / length, 0.0)
    return jnp.where(jnp.isnan(drift), jnp.inf, drift), lengthening


def _next_damping(
    state: DampedState, trial: Trial, gain: Array, taken: Bool[Array, ""], first: Bool[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Nielsen's rule: shrink λ by how well the gain was predicted, or grow it ever faster."""
    used = jnp.where(trial.undamped, state.damping, trial.damping)
    ratio = jnp.where(trial.predicted > 0, gain / trial.predicted, 1.0)
    shrunk = used * jnp.maximum(1 / 3, 1 - (2 * jnp.minimum(ratio, 1.0) - 1) ** 3)
    damping = jnp.where(taken, jnp.maximum(shrunk, _LEAST_DAMPING), used * state.growth)
    growth = jnp.where(taken, 2.0, 2 * state.growth)
    return jnp.where(first, state.damping, damping), jnp.where(first, state.growth, growth)


def rounding_error(terms: Float[Array, "*n"]) -> Float[Array, ""]:
    """Below this, a difference of the objective is not to be told from the rounding of its terms."""
    return 2 * jnp.finfo(terms.dtype).eps * jnp.sum(jnp.abs(terms))


def _dot(a: Array, b: Array) -> Array:
    return jnp.sum(a * b)


def _times(matrix: Float[Array, "p p"], vector: Float[Array, " p"]) -> Float[Array, " p"]:
    """Matrix times vector in full precision on every device (no TF32)."""
    return jnp.sum(matrix * vector[None, :], axis=1)
