"""One maximisation: the problem, its evaluation, the first fits of a density, and the certificate.

A fit maximises ℓ over the unconstrained vector u. Whatever steps (Newton's method in a trust region of `optimizers.newton`, or an
optax transformation), what is reported comes from `certify`, by the observed information where the steps ended.

The first fits of a density step in numpy on the host around one small compiled evaluation (`fit_on_host`). What a person waits for
at first is compiling: a loop with its step and certificate compiles for seconds, the evaluation alone for a few tenths, and the
dozen steps of a fit cost numpy some milliseconds. So the loop (`compiled_loop.py`) is compiled only when steps on the host have
cost as much as compiling it would. Data are padded to a few sizes by rows of weight zero, and derivatives by fixed parameters are
taken and ignored, so that removing an observation or fixing a parameter compiles nothing.
"""

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fisher_jax.fitting import workers
from fisher_jax.fitting.covariance import KINDS
from fisher_jax.fitting.many_rows import Rows
from fisher_jax.fitting.padding import class_size
from fisher_jax.fitting.result import Fit
from fisher_jax.fitting.status import (
    EDGE_DISTANCE,
    EDGE_INFORMATION,
    FAR_AWAY,
    ROUNDING_LIMIT,
    ROUNDING_UNITS,
    Status,
)
from fisher_jax.information import Scoring, has_closed_form, scoring_at, total_expected
from fisher_jax.models.constraints import Unconstrained
from fisher_jax.models.dataset import Dataset, pad_dataset
from fisher_jax.models.likelihood import (
    Likelihood,
    at_modes,
    derivatives_and_scores_at,
    derivatives_at,
    gradient_at,
    likelihood,
    modes_in,
    outer_product_at,
    sum_with_rounding,
    terms_at,
    total_weight,
)
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Leaf, Values
from fisher_jax.models.prior import is_of_expected, prior_derivatives
from fisher_jax.models.programs import collection_paused, jit_with_model, programs_of, quick
from fisher_jax.numerics import batched_linalg as lanes
from fisher_jax.numerics.expansion import CannotExpand
from fisher_jax.numerics.linalg import UNROLLED, singular_pivot
from fisher_jax.optimizers.newton import (
    DRIFT_LIMIT,
    LENGTHENING,
    Evaluation,
    Kind,
    Newton,
    State,
    advance,
    begin,
    is_finite,
    trial,
)

_OF_A_STEP = "value", "rounding", "gradient", "information"  # of what an evaluation returns
NO_EXPECTED = (
    "optimizer: fisher_scoring and natural_gradient need the expected information, and the model has none. Give "
    "Model(…, information=…), the Fisher information of one observation, or use newton, bhhh or "
    'natural_gradient(kind="empirical").'
)
HAND_OVER = 0.3  # standard errors: so near, scoring's linear convergence is left for Newton's steps
NEWTON_STEPS = 1000  # a curved valley takes hundreds (NIST: Bennett5, MGH17)
FOREIGN_STEPS = 10_000
MOST_ROWS = 2**14  # above, evaluations cost more than compiling, and rows are dealt to lanes (`many_rows`)
LARGE_TABLE = 2**16  # entries of an array that a density closes over, above which it is not compiled in
ENOUGH_SECONDS = 1.0  # of fits on the host for each second that the loop would take to compile
LOOP_TO_EVALUATION = 3.0  # how many times as long as the evaluation the loop takes to compile, and at least a second
ENOUGH_OF_MARGINAL = 10.0  # of a model with latent effects

Expected = Callable[[Float[Array, " p"]], tuple[Float[Array, " n"], Float[Array, " p"], Float[Array, "p p"]]]


class Problem(NamedTuple):
    """What is maximised: a likelihood of a flat vector, and where to start.

    `restricted` is true for the entries of u that are logarithms or logits, and so without a unit. `expected` gives the terms,
    their gradient and the expected information at once, where there is a closed form.
    """

    likelihood: Likelihood
    start: Float[Array, " p"]
    restricted: tuple[bool, ...]
    num_observed: Int[Array, ""]
    expected: Expected | None


class Solution(NamedTuple):
    """Where a maximisation ended, or b of them; totals over the data, on the unconstrained scale, of JAX or of numpy."""

    free: Any  # (p,) or (b, p)
    log_likelihood: Any  # () or (b,)
    curvature: Any  # −∇²ℓ (p, p); of many the upper triangle (b, p (p + 1) / 2), or (b, p²) above `UNROLLED` parameters
    last_step: Any  # (p,) or (b, p)
    decrement: Any  # () or (b,)
    num_steps: Any  # () or (b,)
    status: Any  # () or (b,)


def make_problem(model: Model, layout: Layout, values: Values, dataset: Dataset, start: Float[Array, " p"]) -> Problem:
    """The problem in u. A start that is NaN lies outside its constraint."""
    target = likelihood(model, layout, values, dataset)
    scoring = functools.partial(scoring_of, model, layout, values, dataset, target)
    return Problem(
        target,
        start,
        tuple(bool(r) for r in layout.unitless),
        num_observed(target) * observations_in_a_term(model, dataset),
        scoring if has_closed_form(model) else None,
    )


def start_at(layout: Layout, values: Values) -> Float[Array, " p"]:
    """u at the start; NaN where a start known only at run time lies outside its constraint."""
    inside = jnp.all(jnp.stack([jnp.asarray(test) for test in layout.contains(values)]))
    return jnp.where(inside, layout.unconstrain(values), jnp.nan)


def observations_in_a_term(model: Model, dataset: Dataset) -> int:
    """How many observations a term of the log-likelihood stands for: with latent effects, where it is a group, the rows of one.

    A histogram may have as many parameters as bins.
    """
    if model.with_modes is None:
        return model.numbers_in_row
    return max(math.prod(np.shape(leaf)[1:2]) for leaf in jax.tree.leaves(dataset.data))


def num_observed(target: Likelihood) -> Array:
    """The number of observations of nonzero weight; those of an invalid one, NaN by now, count."""
    if target.weights is None:
        return jnp.asarray(target.num_terms)
    return jnp.sum(target.weights != 0)


def total_information(
    model: Model, layout: Layout, values: Values, dataset: Dataset, target: Likelihood
) -> Array | None:
    """n I(θ) by the model's closed form, where it has one; with minus the Hessian of a prior that counts there."""
    if not has_closed_form(model):
        return None
    total = total_expected(
        model, layout, values, dataset.given, jnp.asarray(total_weight(target), layout.dtype), target.weights
    )
    if dataset.strength is None or is_of_expected(model):
        return total
    return total + prior_information(model, layout, values, dataset)


def prior_information(model: Model, layout: Layout, values: Values, dataset: Dataset) -> Float[Array, "q q"]:
    """Minus the Hessian of the prior with respect to θ."""
    natural = layout.natural()
    return prior_derivatives(model, natural, values, dataset, natural.unconstrain(values))[2]


@functools.partial(jit_with_model, static_argnums=(0, 1), level=0)
def _prior_at(
    model: Model, layout: Layout, values: Values, strength: tuple[Any, ...], u: Float[Array, " p"]
) -> tuple[tuple[Array, ...], Array]:
    prior = Dataset(None, strength=strength)
    estimate = layout.constrained_values(u, values)
    return prior_derivatives(model, layout, values, prior, u), prior_information(model, layout, estimate, prior)


class PriorTerm(NamedTuple):
    """A prior beside rows that are not in memory, added once to what is summed over them."""

    model: Model
    layout: Layout
    values: Values
    strength: tuple[Any, ...]

    def added_to(self, at: Evaluation, kind: Kind, u: np.ndarray) -> Evaluation:
        """An evaluation of the rows at u, of numpy, with the prior; its scores have no variance."""
        (value, slope, information), _ = jax.device_get(_prior_at(*self, u))
        parts, dtype = [float(at.value), float(value), float(at.rounding)], self.layout.dtype
        high = dtype.type(sum(parts))
        low = dtype.type(math.fsum([*parts, -float(high)]) if np.isfinite(high) else 0.0)
        matrix = at.information if kind == "empirical" else at.information + information
        return Evaluation(high, at.gradient + slope, matrix, low)

    def added_to_expected(self, total: np.ndarray | None, u: np.ndarray) -> np.ndarray | None:
        """n I(θ) with minus the Hessian of the prior."""
        return None if total is None else total + jax.device_get(_prior_at(*self, u)[1])


def scoring_of(
    model: Model, layout: Layout, values: Values, dataset: Dataset, target: Likelihood, free: Float[Array, " p"]
) -> Scoring:
    """Terms, gradient and expected information at u: of a linked model in one pass, of another by Dᵀ n I(θ) D, D = ∂θ/∂u."""
    if model.information is None:
        at = scoring_at(model, layout, values, target, dataset.given is not None, free)  # type: ignore[arg-type]
        if target.once is None:
            return at
        value, slope, information, _ = target.once(free)
        return Scoring(jnp.append(at.terms, value), at.gradient + slope, at.information + information)
    terms, gradient = gradient_at(target, free)
    expected = total_information(model, layout, layout.constrained_values(free, values), dataset, target)
    jacobian = layout.jacobian(free)
    with jax.default_matmul_precision("highest"):
        return Scoring(terms, gradient, jacobian.T @ expected @ jacobian)


def first_not_finite(target: Likelihood, free: Float[Array, " p"], finite_scores: Bool[Array, " n"]) -> Int[Array, ""]:
    """Index of the first observation whose log-density or score is not finite; −1 where there is none, or no start."""
    return first_of(finite_scores & jnp.isfinite(terms_at(target, free)), free)


def first_of(finite: Bool[Array, " n"], free: Float[Array, " p"]) -> Int[Array, ""]:
    """Index of the first observation that is not finite; −1 where there is none, or no start."""
    started = jnp.all(jnp.isfinite(free))
    return jnp.where(jnp.all(finite) | ~started, -1, jnp.argmin(finite)).astype(jnp.int32)


def default_tolerance(dtype: Any) -> float:
    """√ε standard errors: 1.5e-8 in float64, 3.5e-4 in float32."""
    return float(jnp.finfo(dtype).eps) ** 0.5


def default_steps(optimizer: Any) -> int:
    """How many steps an optimiser may take where the user does not say."""
    return NEWTON_STEPS if isinstance(optimizer, Newton) else FOREIGN_STEPS


def evaluate(problem: Problem, kind: Kind, point: Float[Array, " p"]) -> Evaluation:
    """The log-likelihood with information of this kind, as arrays (p,) and (p, p)."""
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


def is_within(state: State, tolerance: Any) -> Any:
    """Whether the maximum is nearer than the tolerance, certified or not."""
    return state.definite & (state.decrement < tolerance)


def next_start(state: State, tolerance: Any) -> lanes.Vector:
    """Where Newton's steps go on from scoring's: where its next step would lead, or where it is if it came no nearer."""
    return lanes.select(is_within(state, tolerance), trial(state), state.point)


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

    Element-wise over the lanes. `begun` is where it began, `restricted` is true for the entries of u that are logarithms or logits,
    `broken` where the optimiser stepped to where nothing is finite.
    """
    xp = lanes.namespace(state.decrement)
    p, dtype = len(state.point), state.decrement.dtype
    num_steps = state.count if num_steps is None else num_steps
    regular = state.drift < DRIFT_LIMIT
    near = state.definite & (state.decrement < tolerance)
    # The information's own diagonal, without the other parameters: weakness shared by several is not an edge.
    diagonal = lanes.diagonal(state.at.information)
    escaped, ran_out = xp.zeros_like(state.definite), xp.asarray(num_steps >= max_steps)
    blurred, rounding = escaped, ROUNDING_UNITS * jnp.finfo(dtype).eps * xp.abs(state.at.value)
    for i in (i for i, limited in enumerate(restricted) if limited):
        faint, moved = xp.abs(diagonal[i]) < EDGE_INFORMATION, xp.abs(state.point[i] - begun[i])
        # Here ℓ differs from its limit by less than it is rounded: what looks like a maximum may be one at infinity.
        blurred = blurred | (faint & (moved > EDGE_DISTANCE) & (xp.abs(diagonal[i]) < rounding))
        outward = xp.abs(state.point[i]) > xp.abs(begun[i])
        # Where only the steps ran out, a long way is no sign that it goes on without end; faint information is.
        escaped = escaped | (faint & (moved > EDGE_DISTANCE)) | (outward & (moved > FAR_AWAY) & ~ran_out)
    nearly = min(ROUNDING_LIMIT, 100 * default_tolerance(dtype))
    near_enough = xp.where(state.at_floor, ROUNDING_LIMIT, xp.where(state.stuck, nearly, 0.0))
    at_floor = state.definite & (state.decrement < near_enough)
    slope = xp.sqrt(state.flatness)
    stationary = ~state.definite & (slope < tolerance)
    fading = (near | at_floor | stationary) & ~regular & xp.isfinite(state.drift)
    # A gradient that is not exactly zero perturbs the information too, on a ridge that is curved.
    singular = xp.abs(state.pivot) <= xp.maximum(singular_pivot(p, dtype), slope)
    unmoved = lanes.every(lanes.each(lambda u, b: (u == b) | ~xp.isfinite(b), state.point, begun))
    conditions = [
        # First: without an observation the other conditions would judge the values under weights of zero.
        (num_observed == 0, Status.TOO_FEW_OBSERVATIONS),
        (~xp.isfinite(state.at.value) & unmoved, Status.BAD_START),
        (broken | ~state.finite, Status.NOT_FINITE),
        ((near | at_floor) & blurred, Status.BOUNDARY),
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


class ClosesOverTraced(Exception):  # noqa: N818  # no error: the compiled loop takes over
    """The density closes over a tracer of another transformation, so that no compiled program can be stored."""


@dataclass
class _Evaluation:
    """A compiled evaluation, the seconds that compiling took, and those that fits by it have taken."""

    call: Any
    compiling: float = 0.0
    seconds: float = 0.0

    def is_spent(self, model: Model) -> bool:
        """Whether fits on the host have taken as long as compiling the loop would."""
        if model.is_costly:
            return False
        if model.with_modes is not None:
            return self.seconds > ENOUGH_OF_MARGINAL
        return self.seconds > ENOUGH_SECONDS * max(1.0, LOOP_TO_EVALUATION * self.compiling)


class _FromModeToMode:
    """An evaluation of a model with latent effects in one fit: each searches for modes from those of the one before."""

    def __init__(self, call: Any, rows: int, effects: int, dtype: Any) -> None:
        self.call, self.modes = call, np.full((rows, effects), np.nan, dtype)

    def __call__(self, u: np.ndarray, **options: Any) -> dict[str, Any]:
        at: dict[str, Any] = self.call(u, begin=self.modes, **options)
        modes = np.asarray(at.pop("modes"))
        self.modes = np.where(np.isnan(modes), self.modes, modes)
        return at


def fit_on_host(
    model: Model,
    layout: Layout,
    optimizer: Newton,
    values: Values,
    dataset: Dataset,
    tolerance: Any,
    max_steps: int,
    *,
    free_all: bool = True,
) -> Fit | None:
    """The fit, in arrays of numpy; None where a compiled loop is the better way.

    With `free_all` the derivatives by fixed parameters are taken as well and ignored. Where they are not finite they can spoil the
    others, so a fit that fails is repeated without them.
    """
    length = np.shape(jax.tree.leaves(dataset.data)[0])[0]
    num_rows, size = (0, length) if model.is_dependent else (length, class_size(length))
    if workers.platform() != "cpu" or (layout.num_free > UNROLLED and not model.is_costly):
        return None
    programs, like = programs_of(model), ("fits like this", layout, optimizer, size)
    if like in programs and programs[like].is_spent(model):
        return None
    values = [np.asarray(value) for value in values]
    # A closed form covers the parameters that are estimated only.
    whole = _layout_with_fixed(model, layout, values) if free_all and model.information is None else layout
    optimizers = stages_of(optimizer, model)
    padded = dataset
    if num_rows > MOST_ROWS:
        try:
            rows = Rows(model, whole, values, dataset)
            evaluations = [_Evaluation(_of_rows(rows, step.kind, model, whole, dataset)) for step in optimizers]
            evaluations[0].call(np.asarray(whole.unconstrain(values)), values, dataset)
        except CannotExpand:
            return None
    else:
        padded = dataset if model.is_dependent else pad_dataset(dataset, size, layout.dtype)
        evaluations = [_evaluation(model, whole, step.kind, values, padded) for step in optimizers]
        # By this key the next fit need not look at the data to see that a compiled loop is due.
        programs[like] = evaluations[-1]
        if evaluations[-1].is_spent(model):
            return None
    begun = time.perf_counter()
    calls: list[Any] = [functools.partial(each.call, values=values, dataset=padded) for each in evaluations]
    if model.num_latent:
        calls = [_FromModeToMode(call, size, model.num_latent, layout.dtype) for call in calls]
    # What is compiled returns everything in each step.
    fit = step_on_host(
        layout, whole, optimizers, calls, values, tolerance, max_steps, always_whole=num_rows <= MOST_ROWS
    )
    if whole is not layout and int(fit.status_code) > Status.CONVERGED_TO_ROUNDING:
        return fit_on_host(model, layout, optimizer, values, dataset, tolerance, max_steps, free_all=False)
    evaluations[-1].seconds += time.perf_counter() - begun
    return replace(fit, engine="host" if num_rows <= MOST_ROWS else "rows")


def evaluation_on_host(
    model: Model, layout: Layout, values: Values, dataset: Dataset
) -> Callable[[np.ndarray], Evaluation] | None:
    """Log-likelihood, gradient and observed information at u, in numpy, by the program that single fits step around.

    None where they do not step so, or where it is not finite at these values.
    """
    length = np.shape(jax.tree.leaves(dataset.data)[0])[0]
    few = layout.num_free <= UNROLLED or model.is_costly
    if workers.platform() != "cpu" or not few or (length > MOST_ROWS and not model.is_dependent):
        return None
    values = [np.asarray(value) for value in values]
    padded = dataset if model.is_dependent else pad_dataset(dataset, class_size(length), layout.dtype)
    begin = np.full((class_size(length), model.num_latent), np.nan, layout.dtype) if model.num_latent else None

    def of(whole: Layout) -> Callable[[np.ndarray], Evaluation]:
        call, places = _evaluation(model, whole, "observed", values, padded).call, _places(layout, whole, "free_size")
        start = np.asarray(whole.unconstrain(values))

        def evaluate(u: np.ndarray) -> Evaluation:
            full = start.copy()
            full[places] = u
            at = call(full, values=values, dataset=padded, begin=begin)
            value, rounding, gradient, information = (np.asarray(at[name]) for name in _OF_A_STEP)
            return Evaluation(value[()], gradient[places], information[np.ix_(places, places)], rounding[()])

        return evaluate

    u = np.asarray(layout.unconstrain(values))
    try:
        layouts = [layout] if model.information is not None else [_layout_with_fixed(model, layout, values), layout]
        return next((evaluate for evaluate in map(of, dict.fromkeys(layouts)) if is_finite(evaluate(u))), None)
    except ClosesOverTraced:
        return None


def stages_of(optimizer: Newton, model: Model) -> list[Newton]:
    """The optimisers by which a fit steps in turn: one by other than the observed information hands over to Newton's steps.

    Raises
    ------
    ValueError
        If it needs the expected information and the model has none.
    """
    if optimizer.kind == "expected" and not has_closed_form(model):
        raise ValueError(NO_EXPECTED)
    return [optimizer] if optimizer.kind == "observed" else [optimizer, replace(optimizer, kind="observed")]


def step_on_host(
    layout: Layout,
    whole: Layout,
    optimizers: list[Newton],
    calls: Sequence[Callable[..., dict[str, Any]]],
    values: Values,
    tolerance: Any,
    max_steps: int,
    *,
    always_whole: bool = False,
    watch: Callable[[State], None] = lambda state: None,
) -> Fit:
    """The fit by steps in numpy, by each optimiser in turn: the first hands over to the next near the maximum.

    `calls` evaluate: `call(u)` returns value, rounding, gradient and information, and `call(u, whole=True)`, or every call where
    `always_whole`, also what the fit reports besides. `whole` is the layout of u, which may hold fixed parameters among the free
    ones of `layout`. `watch` is called after each step.
    """
    # Where the free entries of the layout are among those of the whole one: in u, and in θ.
    in_u, in_theta = (_places(layout, whole, size) for size in ("free_size", "size"))
    square = np.ix_(in_u, in_u)
    steps = 0
    with np.errstate(all="ignore"):  # NaN and infinities are what a status explains
        u = np.asarray(whole.unconstrain(values))
        start = point = u[in_u]
        for step, call in zip(optimizers, calls, strict=True):
            hands_over = step is not optimizers[-1]
            aim = np.asarray(HAND_OVER if hands_over else tolerance, layout.dtype)[()]
            state, ended = begin(point), False
            while not ended:
                u[in_u] = trial(state)
                at, evaluated = call(u), u.copy()
                value, rounding, gradient, information = (np.asarray(at[name]) for name in _OF_A_STEP)
                reached = Evaluation(value[()], gradient[in_u], information[square], rounding[()])
                state, done = advance(step, state, reached, aim, layout.dtype.type(1.0), layout.unitless)
                if layout.dtype != np.float64:  # numpy widens float32 scalars that meet float64 ones
                    state = jax.tree.map(lambda x: layout.dtype.type(x) if x.dtype.kind == "f" else x, state)
                watch(state)
                ended = bool(done) or steps + int(state.count) >= max_steps
                ended = ended or (hands_over and bool(is_within(state, aim)))
            point = next_start(state, aim) if hands_over else state.point
            steps += int(state.count)
        u[in_u] = point
        if not always_whole or not np.array_equal(u, evaluated):  # the last step was seldom rejected
            at = calls[-1](u, whole=True)
        at = {name: entry if entry is None else np.asarray(entry) for name, entry in at.items()}
        status = certify(state, start, at["num_observed"], tolerance, max_steps, layout.unitless, num_steps=steps)
        estimate = layout.constrained_values(point, values)
    is_not_finite = int(status) in (Status.BAD_START, Status.NOT_FINITE)
    expected = at["expected"]
    return Fit(
        values=[np.asarray(value) for value in estimate],
        log_likelihood=np.asarray(state.at.value + state.at.rounding),
        status_code=np.asarray(status, np.int32),
        num_steps=np.asarray(steps, np.int32),
        decrement=np.asarray(state.decrement),
        num_observations=at["num_observations"],
        free=point,
        curvature=state.at.information,
        outer_product=at["outer_product"][square],
        expected=None if expected is None else expected[np.ix_(in_theta, in_theta)],
        suspect=np.asarray(at["suspect"] if is_not_finite else -1, np.int32),
        last_step=state.step if np.isfinite(state.drift) else np.zeros_like(point),
        attempt=np.zeros((), np.int8),
        layout=layout,
        kinds=KINDS,
    )


def _layout_with_fixed(model: Model, layout: Layout, values: Values) -> Layout:
    """A layout with floating fixed parameters among the free ones, so that fixing one changes no program.

    What was compiled for a model that estimates them serves, where the fixed values lie inside its constraints and come back from
    the unconstrained scale as they were.
    """

    def free(leaf: Leaf, value: np.ndarray) -> Leaf:
        moves = leaf.is_fixed and value.dtype == layout.dtype
        return replace(leaf, free_shape=leaf.shape, constraint=Unconstrained()) if moves else leaf

    whole = replace(layout, leaves=tuple(free(leaf, value) for leaf, value in zip(layout.leaves, values, strict=True)))
    if whole == layout or whole.num_free > UNROLLED:
        return layout

    def serves(other: Layout) -> bool:
        if len(other.leaves) != len(layout.leaves) or replace(other, leaves=layout.leaves) != layout:
            return False
        for theirs, freed, leaf in zip(other.leaves, whole.leaves, layout.leaves, strict=True):
            was_freed = leaf.is_fixed and not freed.is_fixed and not theirs.is_fixed
            if theirs != freed and not (was_freed and (theirs.name, theirs.shape) == (freed.name, freed.shape)):
                return False
        if not all(other.contains(values)):
            return False
        again = other.constrained_values(other.unconstrain(values), values)
        precision = 8 * np.finfo(layout.dtype).eps
        return all(np.allclose(new, old, rtol=precision, atol=0) for new, old in zip(again, values, strict=True))

    return next((key[2] for key in programs_of(model) if key[0] == "evaluation" and serves(key[2])), whole)


def _places(layout: Layout, whole: Layout, size: str) -> np.ndarray:
    """Where the free entries of a layout are among those of the whole; `size` names their number in a leaf."""
    places: list[int] = []
    start = 0
    for leaf, other in ((layout.leaves[i], whole.leaves[i]) for i in whole.order):
        count = 0 if other.is_fixed else getattr(other, size)
        places += [] if leaf.is_fixed else range(start, start + count)
        start += count
    return np.array(places, int)


@functools.partial(jit_with_model, static_argnums=(0, 1), level=0)
def _first_suspect(
    model: Model, layout: Layout, free: Float[Array, " p"], values: Values, dataset: Dataset
) -> Int[Array, ""]:
    """The first observation that is not finite at u; operation by operation it would compile sixty programs."""
    target = likelihood(model, layout, values, dataset)
    return first_not_finite(target, free, outer_product_at(target, free)[0])


def _of_rows(rows: Rows, kind: Kind, model: Model, layout: Layout, dataset: Dataset) -> Callable[..., dict[str, Any]]:
    """An evaluation by rows in lanes; with `whole` also the other entries that the compiled one of few rows returns."""

    def call(u: np.ndarray, values: Values, dataset: Any, *, whole: bool = False) -> dict[str, Any]:
        at = rows.evaluate(u, kind)
        result = {"value": at.value, "rounding": at.rounding, "gradient": at.gradient, "information": at.information}
        if not whole:
            return result
        weights = None if dataset.weights is None else np.asarray(dataset.weights)
        count = np.shape(jax.tree.leaves(dataset.data)[0])[0]
        target = likelihood(model, layout, values, dataset)
        suspect = np.array(-1, np.int32)
        if not np.isfinite(at.value + np.sum(at.gradient) + np.sum(at.information)):
            suspect = np.asarray(_first_suspect(model, layout, u, values, dataset))
        expected = None
        if has_closed_form(model):
            estimate = layout.constrained_values(u, values)
            expected = np.asarray(jax.jit(lambda e: total_information(model, layout, e, dataset, target))(estimate))
        return result | {
            "outer_product": rows.evaluate(u, "empirical").information,
            "expected": expected,
            "suspect": suspect,
            "num_observations": np.asarray(count if weights is None else np.sum(weights), layout.dtype),
            "num_observed": count if weights is None else int(np.sum(weights != 0)),
        }

    return call


def _evaluation(model: Model, layout: Layout, kind: Any, values: Values, dataset: Dataset) -> _Evaluation:
    """The compiled evaluation for arrays of these shapes."""
    leaves, treedef = jax.tree.flatten((values, dataset))
    shapes = [jax.ShapeDtypeStruct(np.shape(leaf), jax.dtypes.canonicalize_dtype(leaf.dtype)) for leaf in leaves]
    x64 = jax.config.read("jax_enable_x64")
    key = ("evaluation", x64, layout, kind, treedef, *((x.shape, x.dtype) for x in shapes))
    programs = programs_of(model)
    if key not in programs:

        def call(u: Any, values: Values, dataset: Dataset, begin: Any) -> dict[str, Any]:
            problem = make_problem(model, layout, values, dataset, u)
            target = at_modes(problem.likelihood, u, begin)
            problem = problem._replace(likelihood=target)
            plain = kind == "observed" and target.once is None
            if plain and target.is_marginal and target.num_terms > 1:
                # A long program, so that the density is traced once for all that is asked of it.
                derivatives, finite, outer_product = derivatives_and_scores_at(target, u)
                value, rounding = sum_with_rounding(derivatives.terms)
                at = Evaluation(value, derivatives.gradient, derivatives.curvature, rounding)
                suspect = first_of(finite & jnp.isfinite(derivatives.terms), u)
            else:
                at = evaluate(problem, kind, u)
                if plain and target.num_terms == 1 and target.weights is not None:
                    # The total score is that of the one term times its weight.
                    outer_product = jnp.outer(at.gradient, at.gradient) / jnp.where(
                        target.weights[0] > 0, target.weights[0], 1.0
                    )
                    suspect = first_of((jnp.isfinite(at.value) & jnp.all(jnp.isfinite(at.gradient)))[None], u)
                else:
                    finite, outer_product = outer_product_at(target, u)
                    suspect = first_not_finite(target, u, finite)
            estimate = layout.constrained_values(u, values)
            return {
                "value": at.value,
                "rounding": at.rounding,
                "gradient": at.gradient,
                "information": at.information,
                "outer_product": outer_product,
                "expected": total_information(model, layout, estimate, dataset, target),
                "suspect": suspect,
                "num_observations": jnp.asarray(total_weight(target), layout.dtype),
                "num_observed": problem.num_observed,
            } | ({"modes": modes_in(target)} if model.num_latent else {})

        u = jax.ShapeDtypeStruct((layout.num_free,), layout.dtype)
        try:
            rows, begin = np.shape(jax.tree.leaves(dataset.data)[0])[0], None
            if model.num_latent:
                begin = jax.ShapeDtypeStruct((rows, model.num_latent), layout.dtype)
            begun = time.perf_counter()
            compiled = _compile(call, (u, *jax.tree.unflatten(treedef, shapes), begin))
            compiling = time.perf_counter() - begun
        except TypeError as error:
            if "constant handler" in str(error):
                raise ClosesOverTraced from error
            raise

        def evaluate_whole(
            u: Any, values: Values, dataset: Dataset, *, begin: Any = None, whole: bool = False
        ) -> dict[str, Any]:
            result: dict[str, Any] = compiled(u, values, dataset, begin)
            return result

        programs[key] = _Evaluation(evaluate_whole, compiling)
    evaluation: _Evaluation = programs[key]
    return evaluation


@collection_paused()
def _compile(call: Callable[..., Any], arguments: tuple[Any, ...]) -> Callable[..., Any]:
    """Compiled as fast as can be; large arrays that the density closes over are arguments, not copied into the program."""
    traced = jax.jit(call).trace(*arguments)
    tables, num_leaves = traced.jaxpr.consts, len(jax.tree.leaves(arguments))
    if any(isinstance(table, jax.core.Tracer) for table in tables):
        raise ClosesOverTraced
    if any(np.size(table) > LARGE_TABLE for table in tables):
        tables = [table if isinstance(table, jax.Array) else jnp.array(table) for table in tables]  # numpy's may change
        jaxpr, result = traced.jaxpr.jaxpr, jax.tree.structure(traced.out_info)

        def with_tables(tables: list[Any], *arguments: Any) -> Any:
            return jax.tree.unflatten(result, jax.core.eval_jaxpr(jaxpr, tables, *jax.tree.leaves(arguments)))

        compiled = _compile_fast(jax.jit(with_tables).lower(tables, *arguments))
        return functools.partial(compiled, tables)
    compiled = _compile_fast(traced.lower())
    try:
        closes_over_traced = len(jax.tree.leaves(compiled.in_avals)) != num_leaves
    except ValueError:  # JAX's own check of the same
        closes_over_traced = True
    if closes_over_traced:
        raise ClosesOverTraced
    return compiled


def _compile_fast(lowered: Any) -> Any:
    """Compile, fast, what runs a few dozen times.

    To try the options first, as `quick_options` does, would be one more program to wait for.
    """
    try:
        return lowered.compile(compiler_options=quick(0))
    except jax.errors.JaxRuntimeError as error:
        if "option" not in str(error).lower() and "flag" not in str(error).lower():
            raise
        return lowered.compile()
