"""Information-scaled steps as optax transformations.

optax minimises, so the objective here is minus a log-likelihood, and the curvature is its Hessian or a stand-in for it. What
these need beyond optax's own loop is one keyword-only extra argument, `objective`: a function from the parameters (and the
kind of curvature wanted) to an `Evaluation`. `fisher_jax.fit` supplies it.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from fisher_jax import linalg

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


class _Trial(NamedTuple):
    """A proposed step: the step itself, its predicted gain, and how it came about."""

    step: Float[Array, " p"]
    predicted: Float[Array, ""]
    undamped: Bool[Array, ""]
    damping: Float[Array, ""]
    factor: linalg.Factor


def newton(*, damping: float = 1e-3) -> optax.GradientTransformationExtraArgs:
    """Newton's method with Levenberg-Marquardt damping, one evaluation per update.

    Parameters
    ----------
    damping : float
        Initial λ: λ times the largest diagonal met of late is added to the curvature.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        Its update needs the keyword `objective`, called as ``objective(params, "observed") -> Evaluation``. The first update
        evaluates at the start and does not move; each later one evaluates once, at its trial point, and either moves
        there or stays. The parameters given must be those that the last update led to. The first update gives the state
        room for the objective's terms, so make it before a `jax.lax.scan` or `while_loop`.

    Notes
    -----
    λ follows Nielsen's rule; it multiplies a slowly forgotten maximum of the curvature's diagonal. Where the curvature is
    not positive definite, λ is raised within the step until the sum is. Within a tenth of a standard error of the minimum
    the step is undamped, hence quadratic convergence. The `updates` passed in are not used. To combine an
    information-scaled direction with optax's own pieces (schedules, clipping, momentum) use `scale_by_information`.

    References
    ----------
    Nielsen, H. B. (1999), Damping parameter in Marquardt's method, IMM-REP-1999-05, eq. (2.4).

    Examples
    --------
    >>> import jax.numpy as jnp, optax
    >>> from fisher_jax.optimizers import Evaluation, newton
    >>> def objective(x, kind):
    ...     return Evaluation(jnp.sum((x - 3.0) ** 2), 2 * (x - 3.0), 2 * jnp.eye(1))
    >>> optimizer, x = newton(), jnp.zeros(1)
    >>> state = optimizer.init(x)
    >>> for _ in range(8):
    ...     updates, state = optimizer.update(x, state, x, objective=objective)
    ...     x = optax.apply_updates(x, updates)
    >>> print(f"{x[0]:.4f}")
    3.0000
    """
    return _damped("observed", damping)


def fisher_scoring(*, damping: float = 1e-3) -> optax.GradientTransformationExtraArgs:
    """Fisher scoring: `newton` with the expected information for the curvature.

    Parameters
    ----------
    damping : float
        As for `newton`.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        As for `newton`; the objective is called with kind ``"expected"``. `fisher_jax.fit` can supply it for a model that
        has an `information`.

    Notes
    -----
    The expected information is positive semi-definite wherever it exists, so that the direction is always uphill;
    convergence is linear, quadratic only where expected and observed information agree.

    Examples
    --------
    >>> import fisher_jax as fj
    >>> optimizer = fj.optimizers.fisher_scoring()
    """
    return _damped("expected", damping)


def bhhh(*, damping: float = 1e-3) -> optax.GradientTransformationExtraArgs:
    """Berndt, Hall, Hall and Hausman's method: `newton` with the sum of the scores' outer products for the curvature.

    Parameters
    ----------
    damping : float
        As for `newton`.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        As for `newton`; the objective is called with kind ``"empirical"``.

    Notes
    -----
    Needs first derivatives only. Convergence is linear, the faster the larger n and the better the model fits.

    References
    ----------
    Berndt, E., Hall, B., Hall, R. and Hausman, J. (1974), Ann. Econ. Soc. Meas. 3, 653-665.

    Examples
    --------
    >>> import fisher_jax as fj
    >>> optimizer = fj.optimizers.bhhh()
    """
    return _damped("empirical", damping)


def scale_by_information(
    kind: CurvatureKind = "observed", *, damping: float = 0.0
) -> optax.GradientTransformationExtraArgs:
    """Multiply the incoming updates by the inverse information at the current parameters.

    Parameters
    ----------
    kind : {"observed", "expected", "empirical"}
        Which curvature the objective is asked for.
    damping : float
        λ ≥ 0: λ times the curvature's diagonal is added before inverting.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        Its update needs the keyword `objective` as in `newton`. Where the damped curvature is not positive definite the
        updates become NaN: damp more, or use ``"expected"`` or ``"empirical"``.

    Notes
    -----
    A building block: follow it by ``optax.scale(-1.0)`` or ``optax.scale_by_learning_rate(schedule)`` to descend. By itself it
    guards against nothing; `newton` is the robust method.

    Examples
    --------
    >>> import fisher_jax as fj, optax
    >>> optimizer = optax.chain(
    ...     fj.optimizers.scale_by_information("empirical", damping=0.01),
    ...     optax.scale_by_learning_rate(optax.linear_schedule(0.1, 1.0, 10)),
    ... )
    """

    def init(params: PyTree) -> optax.EmptyState:
        return optax.EmptyState()

    def update(
        updates: PyTree, state: optax.EmptyState, params: PyTree = None, *, objective: Objective, **extra: Any
    ) -> tuple[PyTree, optax.EmptyState]:
        curvature = objective(params, kind).curvature
        flat, restore = ravel_pytree(updates)
        factor = linalg.factorise(curvature + damping * jnp.diag(jnp.diagonal(curvature)))
        return restore(jnp.where(factor.definite, linalg.solve(factor, flat), jnp.nan)), state

    return optax.GradientTransformationExtraArgs(init, update)


@functools.cache
def _damped(kind: CurvatureKind, damping: float) -> optax.GradientTransformationExtraArgs:
    if not damping > 0:
        raise ValueError(f"damping: expected a positive number, got {damping}. The default is 1e-3.")

    def init(params: PyTree) -> DampedState:
        flat, _ = ravel_pytree(params)
        state = _initial_state(flat, params, damping)
        return NewtonState(*state) if kind == "observed" else state

    def update(
        updates: PyTree, state: DampedState, params: PyTree = None, *, objective: Objective, **extra: Any
    ) -> tuple[PyTree, DampedState]:
        flat, restore = ravel_pytree(params)
        state = with_terms(state, lambda: objective(params, kind))
        trial = _propose(state, flat)
        step = jnp.where(state.num_updates == 0, 0.0, trial.step)
        reached = objective(restore(flat + step), kind)
        unchanged = jnp.all(jnp.abs(step) <= jnp.finfo(flat.dtype).eps * jnp.abs(flat))
        taken, state = _advance(state, trial, reached, restore, unchanged)
        return restore(jnp.where(taken, step, 0.0)), state

    return optax.GradientTransformationExtraArgs(init, update)


def _initial_state(flat: Float[Array, " p"], params: PyTree, damping: float) -> DampedState:
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


def _propose(state: DampedState, flat: Float[Array, " p"]) -> _Trial:
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
    return _Trial(step, predicted, undamped, damping, chosen)


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


def _advance(
    state: DampedState,
    trial: _Trial,
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
    state: DampedState, trial: _Trial, reached: Evaluation, factor: linalg.Factor, old_gradient: Float[Array, " p"]
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
    state: DampedState, trial: _Trial, gain: Array, taken: Bool[Array, ""], first: Bool[Array, ""]
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
