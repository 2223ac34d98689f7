"""Newton's method, Fisher scoring and BHHH in a trust region: one step for one maximisation or for many lanes.

At a point u with log-likelihood l, gradient g and information J (minus the Hessian, or what stands for it), the step s
maximises

    gᵀ s − ½ sᵀ J s   subject to   |D s| ≤ radius,

D² being the largest |diag J| met so far. Either s = J⁻¹ g lies inside, or (J + λ D²) s = g with |D s| = radius for the
λ ≥ 0 that makes J + λ D² positive semi-definite; λ is the root of the secular equation 1/radius = 1/|D s(λ)|, found by
Newton's iteration with safeguards, indefinite and singular J included (Moré & Sorensen 1983, SIAM J. Sci. Stat. Comput.
4, 553, algorithm 3.14). A step is accepted for its gain, and the radius follows how well the gain was predicted. Within
a tenth of a standard error of the maximum the step is Newton's whatever the radius, hence quadratic convergence.

Everything is element-wise over the shape S of an entry (see `numerics.batched_linalg`): () for one maximisation, (L,) for L
lanes. A lane with `count` < 0 is fresh: only its point means anything, and what else its state holds is never used in
arithmetic that reaches a result.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from fisher_jax.errors import entry_point
from fisher_jax.numerics import batched_linalg as lanes
from fisher_jax.numerics.batched_linalg import Entry, Matrix, Vector

Kind = Literal["observed", "expected", "empirical"]

LONGEST_STRIDE = (
    7.0  # e^7: a constrained parameter moves by no larger factor at once; farther off a density is rounding
)
FARTHEST = (
    1e8  # times the parameter, or one: a first Newton step that is longer means that the information is almost zero
)
LONGEST_LEAP = (
    4.0  # times the parameter, or one: off the concave part a longer step leaves where the quadratic is valid
)
DRIFT_LIMIT = 0.1  # relative change of information along a Newton step that a regular maximum never shows so close
LENGTHENING = 0.85  # Newton steps on the way to infinity do not shorten; towards a degenerate maximum they do
RUNAWAY_STEPS = 15  # after so many in a row, each losing most of the information, the maximum is at infinity
IRREGULAR_STEPS = 4  # so many steps within the tolerance may look irregular before the maximum is called so
SECULAR_ITERATIONS = 15  # two or three are usual; an indefinite matrix that is nearly singular needs the most


class Evaluation(NamedTuple):
    """A log-likelihood at one point: to be maximised, totals over the data.

    `value` + `rounding` is the log-likelihood: where it is summed with compensation `rounding` holds what the sum
    rounded off, else it is zero. `gradient` is its gradient, `information` minus its Hessian or what stands for it
    (expected information, sum of the scores' outer products).

    An objective that a user gives to an optimiser returns arrays (p,) and (p, p), in the order of
    `ravel_pytree(params)`.

    Examples
    --------
    A parabola −Σ x², for an optimiser that is run by hand:

    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> def objective(params, kind):
    ...     return fj.optimizers.Evaluation(-jnp.sum(params**2), -2 * params, 2 * jnp.eye(2))
    """

    value: Entry
    gradient: Vector
    information: Matrix
    rounding: Entry = 0.0


Objective = Callable[[PyTree, Kind], Evaluation]


class State(NamedTuple):
    """Where a maximisation is.

    Of the point, changed when a step is accepted: `point`, `at` (the evaluation there), `decrement` (distance to the
    maximum in standard errors; infinite where the information is not positive definite), `pivot` and `definite` (see
    `batched_linalg.Factor`) and `diagonal`, the largest |diag J| met. Of the next step: `step`, `near` (Newton's own, so close
    to the maximum that nothing may shorten it), `shift` (its λ) and `radius`.

    Of the last near step: `drift`, the relative change of the information along it, and `lengthening`, the next such
    step's length as a multiple of its own; both are infinite after a step that was not near. `runaway` counts such
    steps in a row along which the information faded and that did not shorten. `irregular` counts those within the
    tolerance along which the information changed. `rejections` counts rejected steps in a row. `at_floor`: the last
    step was predicted to gain less than rounding and did not come nearer either; `stuck`: it was rejected although too short to
    matter.

    `count` is the number of steps, −1 before the start has been evaluated.
    """

    point: Vector
    at: Evaluation
    decrement: Entry
    pivot: Entry
    definite: Entry
    diagonal: Vector
    step: Vector
    near: Entry
    shift: Entry
    radius: Entry
    drift: Entry
    lengthening: Entry
    runaway: Entry
    irregular: Entry
    rejections: Entry
    at_floor: Entry
    stuck: Entry
    count: Entry

    @property
    def running_away(self) -> Entry:
        """Whether the maximum lies at infinity."""
        return self.runaway >= RUNAWAY_STEPS

    @property
    def finite(self) -> Entry:
        """Whether value, gradient and information are finite at the point."""
        return is_finite(self.at)

    @property
    def flatness(self) -> Entry:
        """The squared gradient over the information's diagonal, summed: the squared decrement of unrelated parameters."""
        scale = _positive(lanes.each(abs, lanes.diagonal(self.at.information)), self.at.gradient)
        return lanes.total(lanes.each(lambda g, d: g * g / d, self.at.gradient, scale))


@dataclass(frozen=True)
class Newton:
    """A trust-region method of Newton's kind: with its thresholds. Made by `newton`, `fisher_scoring` and `bhhh`.

    It is an optax transformation (`init`, `update`) that accepts or rejects its own steps.
    """

    kind: Kind = "observed"
    first_radius: float = 1.0  # times the full Newton step, or times the step that diag J alone would make
    accept_above: float = 1e-4  # of the predicted gain: any real gain is taken, rounding is not
    near_below: float = 0.1  # standard errors: within this distance a Newton step needs no trust region
    nearer_by: float = 0.5  # near steps must halve the distance where the gain cannot be seen; Newton's own square it
    shrink_below: float = 0.1  # of the predicted gain: the quadratic is wrong at this length
    grow_above: float = 0.75  # of the predicted gain: the quadratic is right, longer steps may be as well
    growth: float = 2.0  # distant starts lose with less, curved valleys with more
    trusted_within: float = 0.03  # of the predicted gain: so well predicted, a far longer step is worth an evaluation
    fast_growth: float = 10.0  # then: after a step back to the floor of a curved valley the radius must recover at once
    cut: float = 0.25  # what a rejection leaves of the length; a parabola's minimum gained nothing on NIST's problems
    rounding_units: float = (
        4.0  # ε |l|: below this the gain is computed from the gradients at both ends, not from values
    )

    def accept(
        self, gain: Entry, predicted: Entry, indistinct: Entry, near: Entry, reached: Entry, decrement: Entry
    ) -> Entry:
        """Whether a finite trial point is taken: for its gain, or near the maximum for its decrement, `reached`."""
        xp = lanes.namespace(gain)
        closer = near & (reached < xp.where(indistinct, 1.0, self.nearer_by) * decrement)
        return (gain > self.accept_above * predicted) | closer

    def resize(
        self, radius: Entry, length: Entry, gain: Entry, predicted: Entry, accepted: Entry, rejections: Entry
    ) -> Entry:
        """The next radius after a step of that length. A point that is not finite counts as a gain of −∞.

        A rejected step is cut ever harder while rejections go on, so that a kink or an edge ends the fit in a few
        evaluations.
        """
        xp = lanes.namespace(gain)
        surprise = xp.abs(gain - predicted)
        growth = xp.where(surprise < self.trusted_within * predicted, self.fast_growth, self.growth)
        good = xp.where(gain > self.grow_above * predicted, growth * length, length)
        # After a rejection the step went to the edge, and its length is the radius: what rejections left of the radius is in the
        # units of a scale that ends with them (`guarded` in `advance`).
        good = xp.where(rejections > 0, good, xp.maximum(radius, good))
        after_acceptance = xp.where(gain < self.shrink_below * predicted, self.cut * length, good)
        return xp.where(
            accepted, after_acceptance, length * self.cut * 0.5 ** xp.minimum(rejections, 40).astype(gain.dtype)
        )

    def propose(
        self, at: Evaluation, scale: Vector, radius: Entry, shift: Entry, step: Vector, needed: Entry
    ) -> tuple[Vector, Entry]:
        """The step to the edge of the trust region and its λ where it is `needed`; elsewhere the step and λ passed in.

        `scale` is D², `shift` a first guess of λ (not positive where there is none).
        """
        if lanes.never(needed):
            return step, shift
        xp = lanes.namespace(radius)
        gradient = at.gradient
        inverse_root = lanes.each(lambda d: 1.0 / xp.sqrt(d), scale)
        scaled = lanes.scale_both_sides(at.information, inverse_root)
        lowest, highest = lanes.gershgorin(scaled)
        pull = xp.sqrt(lanes.dot(gradient, lanes.each(lambda g, d: g / d, gradient, scale))) / radius
        # At λ = high the matrix exceeds |D⁻¹ g| / radius times the identity, so that the step lies inside; low is a
        # bound below.
        smallest = lanes.largest(lanes.each(lambda d: -d, lanes.diagonal(scaled)))
        low = xp.maximum(xp.maximum(smallest, pull - highest), 0.0)
        high = xp.maximum(pull - lowest, low)
        usable = (shift > low) & (shift < high)
        guess = xp.where(usable, shift, xp.maximum(xp.sqrt(low * high), low + 0.1 * (high - low)))
        steepest = lanes.each(lambda g, d: xp.where(needed, g / d / pull, 0.0), gradient, scale)
        first = lanes.select(needed, steepest, step)

        def iterate(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            low, high, guess, step, shift, pending, k = carry
            shifted = lanes.add_to_diagonal(at.information, lanes.each(lambda d: guess * d, scale))
            factor = lanes.factorize(shifted)
            half = lanes.solve_lower(factor, gradient)
            shifted_step = lanes.solve_upper(factor, half)
            stretched = lanes.each(lambda d, s: d * s, scale, shifted_step)
            squared = lanes.dot(shifted_step, stretched)
            length = xp.sqrt(squared)
            across = lanes.solve_lower(factor, stretched)
            newton = guess + squared / lanes.dot(across, across) * (length - radius) / radius
            definite = factor.definite & xp.isfinite(length)
            short = definite & (length < radius)
            # Near the hard case g has next to nothing along the weakest direction z, and no λ makes the step long
            # enough: s + τ z on the edge is as good as the best step to a tenth (eq. 3.10 ff.) if z costs little
            # curvature.
            weak, product = lanes.weak_direction(factor)
            size = xp.sqrt(lanes.dot(weak, lanes.each(lambda d, z: d * z, scale, weak)))
            along = lanes.dot(weak, stretched) / size
            missing = xp.maximum(radius * radius - squared, 0.0)
            root = xp.abs(along) + xp.sqrt(along * along + missing)
            reach = xp.where(along < 0, -missing, missing) / xp.where(root > 0, root, 1.0) / size
            cheap = reach * reach * lanes.dot(weak, product) <= 0.19 * (lanes.dot(half, half) + guess * radius * radius)
            on_edge = definite & (xp.abs(length - radius) <= 0.1 * radius)
            hard = short & cheap & ~on_edge
            # Where J is merely singular z gains nothing, and s alone is as good: no reason to wander along a ridge.
            reach = xp.where(guess * radius * radius > 0.25 * lanes.dot(half, half), reach, 0.0)
            shrink = xp.minimum(1.0, radius / length)
            use = pending & definite
            step = lanes.each(
                lambda old, s, z: xp.where(use, xp.where(hard, s + reach * z, shrink * s), old),
                step,
                shifted_step,
                weak,
            )
            shift = xp.where(use, guess, shift)
            inside = short & (guess <= 0.0)
            low = xp.where(short, low, xp.maximum(low, guess))
            high = xp.where(short, xp.minimum(high, guess), high)
            middle = xp.maximum(xp.sqrt(low * high), low + 0.01 * (high - low))
            guess = xp.where(definite & (newton > low) & (newton < high), newton, middle)
            pending = pending & ~on_edge & ~hard & ~inside
            return low, high, guess, step, shift, pending, k + 1

        carry = (low, high, guess, first, xp.where(needed, guess, shift), needed, 0)
        shifted_step = lanes.repeat_while(xp, lambda c: xp.any(c[5]) & (c[6] < SECULAR_ITERATIONS), iterate, carry)
        return shifted_step[3], shifted_step[4]

    def init(self, params: PyTree) -> State:
        """The state before the first evaluation."""
        flat, _ = ravel_pytree(params)
        return begin(lanes.vector(flat))

    def update(
        self, updates: PyTree, state: State, params: PyTree = None, *, objective: Objective, **extra: Any
    ) -> tuple[PyTree, State]:
        """Evaluate once, at the start or at the trial point, and move there or stay. `updates` is not used."""
        flat, restore = ravel_pytree(params)
        state = state._replace(point=lanes.vector(flat))
        at = objective(restore(lanes.to_array(trial(state))), self.kind)
        reached = Evaluation(
            jnp.asarray(at.value, flat.dtype),
            lanes.vector(at.gradient),
            lanes.matrix(at.information),
            jnp.asarray(at.rounding, flat.dtype),
        )
        state, _ = advance(self, state, reached, jnp.zeros((), flat.dtype))
        return restore(lanes.to_array(state.point) - flat), state


def begin(point: Vector) -> State:
    """Fresh lanes at their starts."""
    xp = lanes.namespace(point[0])
    zero = xp.zeros_like(point[0])
    none, no, whole = lanes.each(lambda u: 0.0 * zero, point), zero > 0, zero.astype("int32")
    p = len(point)
    empty: Any = {(i, j): zero for i in range(p) for j in range(i, p)}
    if not isinstance(point, list):
        none, empty = xp.zeros_like(point), xp.zeros((p, *point.shape), point.dtype)
    return State(
        point=point,
        at=Evaluation(zero, none, empty, zero),
        decrement=zero + xp.inf,
        pivot=zero,
        definite=no,
        diagonal=none,
        step=none,
        near=no,
        shift=zero,
        radius=zero,
        drift=zero + xp.inf,
        lengthening=zero + xp.inf,
        runaway=whole,
        irregular=whole,
        rejections=whole,
        at_floor=no,
        stuck=no,
        count=whole - 1,
    )


def is_finite(at: Evaluation) -> Entry:
    """Whether value, gradient and information are finite."""
    xp = lanes.namespace(at.value)
    return (
        xp.isfinite(at.value)
        & lanes.every(lanes.each(xp.isfinite, at.gradient))
        & lanes.every_entry(lanes.each_entry(xp.isfinite, at.information))
    )


def trial(state: State) -> Vector:
    """Where the log-likelihood is to be evaluated next: the start itself in a fresh lane."""
    xp = lanes.namespace(state.count)
    return lanes.each(lambda u, s: xp.where(state.count < 0, u, u + s), state.point, state.step)


def advance(
    optimizer: Newton,
    state: State,
    reached: Evaluation,
    tolerance: Entry,
    radius_factor: Entry = 1.0,
    restricted: tuple[bool, ...] = (),
) -> tuple[State, Entry]:
    """Accept or reject the trial point, propose the next step, and decide whether another can gain anything.

    Parameters
    ----------
    reached
        The evaluation at `trial(state)`.
    tolerance
        Decrement below which the maximum counts as reached, in standard errors.
    radius_factor
        Times the first radius: below one for a more cautious start.
    restricted
        For each entry of u whether it is a logarithm or a logit, without a unit; such entries move by `LONGEST_STRIDE` at most.

    Returns
    -------
    tuple
        The state and, for each lane, whether it has ended: certified, at the floor of rounding, or known to fail.
    """
    xp = lanes.namespace(reached.value)
    eps = jnp.finfo(reached.value.dtype).eps
    fresh, old, before = state.count < 0, state.at, state.step

    # The point reached: its distance to the maximum, and Newton's step from there.
    factor = lanes.factorize(reached.information)
    half = lanes.solve_lower(factor, reached.gradient)
    newton = lanes.solve_upper(factor, half)
    finite = is_finite(reached)
    decrement = xp.where(finite & factor.definite, xp.sqrt(lanes.dot(half, half)), xp.inf)

    # What the step was to gain and what it gained. Two log-likelihoods that agree to rounding are compared by the
    # trapezoid of their slopes, unless they differ by far more than rounding can explain.
    bent = lanes.times(old.information, before)
    slope = lanes.dot(old.gradient, before)
    predicted = slope - 0.5 * lanes.dot(before, bent)
    gain = (reached.value - old.value) + (reached.rounding - old.rounding)
    rounding = optimizer.rounding_units * eps * xp.abs(old.value)
    indistinct = predicted <= rounding
    trapezoid = 0.5 * (slope + lanes.dot(reached.gradient, before))
    gain = xp.where(finite, xp.where(indistinct & (xp.abs(gain) <= 16 * rounding), trapezoid, gain), -xp.inf)
    accepted = optimizer.accept(gain, predicted, indistinct, state.near, decrement, state.decrement)
    taken = fresh | finite & accepted
    rejections = xp.where(taken, 0, state.rejections + 1).astype(state.count.dtype)

    # Whether a near step looked like Newton's at a regular maximum: the information hardly changes, along the step and
    # in the weakest direction. On the way to infinity or to a degenerate maximum it changes by a constant factor each
    # time, however small the gradient has become; on the way to infinity the steps do not shorten either.
    probed = state.near & factor.definite & finite & ~fresh
    drift = state.drift
    if not lanes.never(probed):
        across = lanes.times(reached.information, before)
        change = lanes.solve_lower(factor, lanes.each(lambda a, b: a - b, across, bent))
        weak, product = lanes.weak_direction(factor)
        there = lanes.dot(weak, product)
        along, energy = lanes.dot(change, change), lanes.dot(before, across)
        faded = xp.abs(there - lanes.dot(weak, lanes.times(old.information, weak))) / there
        drift = xp.maximum(xp.sqrt(along / xp.where(energy > 0, energy, 1.0)), faded)
        drift = xp.where(xp.isnan(drift), xp.inf, drift)

    # The point from here on.
    diag = lanes.each(abs, lanes.diagonal(reached.information))
    # The largest met is never forgotten, as in MINPACK: forgetting ended in flat corners of NIST's Lanczos and MGH09.
    largest = lanes.each(lambda d, before: xp.where(fresh, d, xp.maximum(d, before)), diag, state.diagonal)
    point = lanes.select(taken, trial(state), state.point)
    at = lanes.select(taken, reached, old)
    diagonal = lanes.select(taken, largest, state.diagonal)
    # On a plateau, or where one parameter has next to no information, the diagonal does not measure how far
    # the quadratic holds. There a parameter is scaled by its size: from its gradient, or from the radius where ℓ is not
    # concave.
    scale = _positive(diagonal, at.gradient)
    pull = xp.sqrt(lanes.dot(at.gradient, lanes.each(lambda g, d: g / d, at.gradient, scale)))
    # A rejection at a point where ℓ is concave changes no scale: in another, the radius would mean another length.
    concave = xp.where(taken, factor.definite, state.definite)
    extent = xp.where(concave, 0.0, xp.where(fresh, pull, state.radius))

    def guarded(d: Entry, g: Entry, u: Entry) -> Entry:
        leap = LONGEST_LEAP * xp.maximum(1.0, xp.abs(u))
        return xp.maximum(d, xp.maximum(xp.abs(g) / leap, (extent / leap) ** 2))

    scale = lanes.each(guarded, scale, at.gradient, point)

    def length_of(s: Vector) -> Entry:
        return xp.sqrt(lanes.dot(s, lanes.each(lambda d, x: d * x, scale, s)))

    squared = lanes.dot(before, lanes.each(lambda d, x: d * x, scale, before))
    lengthening = lanes.dot(newton, lanes.each(lambda d, x: d * x, scale, before)) / xp.where(squared > 0, squared, 1.0)
    unprobed = xp.where(state.near, state.drift, xp.inf), xp.where(state.near, state.lengthening, xp.inf)
    drift = xp.where(fresh, xp.inf, xp.where(probed, drift, unprobed[0]))
    lengthening = xp.where(fresh, xp.inf, xp.where(probed, lengthening, unprobed[1]))
    fades = probed & taken & (drift > DRIFT_LIMIT) & (lengthening > LENGTHENING)
    unchanged = lanes.every(lanes.each(lambda s, u: xp.abs(s) <= eps * xp.abs(u), before, state.point))

    # The radius. At first the whole Newton step is tried, unless it leads out of all proportion.
    whole = length_of(newton)
    excess = lanes.largest(lanes.each(lambda s, u: xp.abs(s) / (FARTHEST * xp.maximum(1.0, xp.abs(u))), newton, point))
    first = xp.where(factor.definite, whole / xp.maximum(excess, 1.0), pull)
    length = xp.sqrt(squared)
    resized = optimizer.resize(state.radius, length, gain, predicted, taken, state.rejections)
    radius = xp.where(fresh, radius_factor * optimizer.first_radius * first, resized)
    # A rejected step is too short to matter if it was predicted to gain less than rounding, or if the radius underflows.
    hopeless = (
        unchanged | (predicted <= 0.01 * eps * xp.abs(old.value)) | (radius < jnp.finfo(radius.dtype).tiny ** 0.5)
    )
    state = State(
        point=point,
        at=at,
        decrement=xp.where(taken, decrement, state.decrement),
        pivot=xp.where(taken, factor.pivot, state.pivot),
        definite=xp.where(taken, factor.definite, state.definite),
        diagonal=diagonal,
        step=before,
        near=taken & factor.definite & (decrement < optimizer.near_below),
        shift=state.shift,
        radius=radius,
        drift=drift,
        lengthening=lengthening,
        runaway=xp.where(fades, state.runaway + 1, 0).astype(state.count.dtype),
        irregular=xp.where(
            probed & (decrement < tolerance) & (drift > DRIFT_LIMIT), xp.where(fresh, 0, state.irregular) + 1, 0
        ).astype(state.count.dtype),
        rejections=rejections,
        at_floor=indistinct & state.near & ~(finite & (decrement < 0.5 * state.decrement)) & ~fresh,
        stuck=~taken & hopeless,
        count=state.count + 1,
    )
    ended = finished(state, tolerance)

    # The next step: Newton's where it may be, else one to the edge of the trust region. A first guess of λ: from an
    # accepted point one Newton iteration from λ = 0; after a rejection as if all of J + λ D² were one number.
    inside = taken & factor.definite & (state.near | (whole <= radius * (1.0 + 1e-6)))
    stretched = lanes.solve_lower(factor, lanes.each(lambda d, x: d * x, scale, newton))
    from_zero = whole * whole / lanes.dot(stretched, stretched) * (whole - radius) / radius
    from_last = state.shift + slope / squared * (length / radius - 1.0)
    guess = xp.where(taken, xp.where(factor.definite, from_zero, -1.0), from_last)
    guess = xp.where(inside | xp.isnan(guess), 0.0, guess)
    default = lanes.select(inside, newton, before)
    step, shift = optimizer.propose(at, scale, radius, guess, default, state.finite & ~inside & ~ended & (radius > 0))
    if any(restricted):
        strides = [xp.abs(step[i]) for i, limited in enumerate(restricted) if limited]
        shorten = xp.minimum(1.0, LONGEST_STRIDE / xp.maximum(lanes.largest(strides), LONGEST_STRIDE))
        step = lanes.each(lambda s: shorten * s, step)
    return state._replace(step=step, shift=shift), ended


def finished(state: State, tolerance: Entry) -> Entry:
    """Whether nothing is gained by another step: certified, or known to fail."""
    xp = lanes.namespace(state.decrement)
    tested = state.definite & (state.decrement < tolerance) & xp.isfinite(state.drift)
    # A badly scaled maximum may be this near while its information still changes: a step or two more shows it to be
    # regular.
    tested = tested & ((state.drift < DRIFT_LIMIT) | (state.irregular >= IRREGULAR_STEPS))
    stationary = ~state.definite & (state.flatness < tolerance * tolerance)
    return tested | state.at_floor | state.stuck | state.running_away | stationary | ~state.finite


def _positive(diagonal: Vector, gradient: Vector) -> Vector:
    """A scale for each parameter: its information, or without any its squared gradient, of the same unit."""
    xp = lanes.namespace(gradient[0])
    return lanes.each(
        lambda d, g: xp.where(d > 0, d, xp.where((g != 0) & xp.isfinite(g), g * g, 1.0)), diagonal, gradient
    )


@entry_point
def newton(*, first_radius: float = 1.0) -> Newton:
    """Newton's method in a trust region, one evaluation per update.

    Parameters
    ----------
    first_radius : float
        How much of the first Newton step is tried, in units of its length; below one for a more cautious start.

    Returns
    -------
    Newton
        An optax transformation. Its update needs the keyword `objective`, called as ``objective(params, "observed") ->
        Evaluation``: the log-likelihood, which is maximised, with its gradient and minus its Hessian. The first update
        evaluates at the start and does not move; each later one evaluates once, at its trial point, and either moves
        there or stays. The parameters given must be those that the last update led to.

    Notes
    -----
    The trust region is a ball in units of the largest diagonal of the information met, and its subproblem is solved
    to a tenth of the radius, indefinite and singular information included. Within a tenth of a standard error of the
    maximum the step is Newton's. The `updates` passed in are not used. To combine an information-scaled direction with
    optax's own pieces (schedules, clipping, momentum) use `scale_by_information`.

    References
    ----------
    Moré, J. J. and Sorensen, D. C. (1983), Computing a trust region step, SIAM J. Sci. Stat. Comput. 4, 553-572,
    algorithm 3.14.

    Examples
    --------
    >>> import jax.numpy as jnp, optax
    >>> from fisher_jax.optimizers import Evaluation, newton
    >>> def objective(x, kind):
    ...     return Evaluation(-jnp.sum((x - 3.0) ** 2), -2 * (x - 3.0), 2 * jnp.eye(1))
    >>> optimizer, x = newton(), jnp.zeros(1)
    >>> state = optimizer.init(x)
    >>> for _ in range(3):
    ...     updates, state = optimizer.update(x, state, x, objective=objective)
    ...     x = optax.apply_updates(x, updates)
    >>> print(f"{x[0]:.4f}")
    3.0000
    """
    return _checked("observed", first_radius)


@entry_point
def fisher_scoring(*, first_radius: float = 1.0) -> Newton:
    """Fisher scoring: `newton` with the expected information for the curvature.

    Parameters
    ----------
    first_radius : float
        As for `newton`.

    Returns
    -------
    Newton
        As for `newton`; the objective is called with kind ``"expected"``. `fisher_jax.fit` can supply it for a model
        that has an `information`.

    Notes
    -----
    The expected information is positive semi-definite wherever it exists, so that the direction is always uphill;
    convergence is linear, quadratic only where expected and observed information agree. So `fisher_jax.fit` ends it
    with steps of `newton`.

    Examples
    --------
    >>> import fisher_jax as fj
    >>> optimizer = fj.optimizers.fisher_scoring()
    """
    return _checked("expected", first_radius)


@entry_point
def bhhh(*, first_radius: float = 1.0) -> Newton:
    """Berndt, Hall, Hall and Hausman's method: `newton` with the sum of the scores' outer products for the curvature.

    Parameters
    ----------
    first_radius : float
        As for `newton`.

    Returns
    -------
    Newton
        As for `newton`; the objective is called with kind ``"empirical"``.

    Notes
    -----
    Needs first derivatives only. Convergence is linear, the faster the larger n and the better the model fits.
    `fisher_jax.fit` ends it with steps of `newton`.

    References
    ----------
    Berndt, E., Hall, B., Hall, R. and Hausman, J. (1974), Ann. Econ. Soc. Meas. 3, 653-665.

    Examples
    --------
    >>> import fisher_jax as fj
    >>> optimizer = fj.optimizers.bhhh()
    """
    return _checked("empirical", first_radius)


def _checked(kind: Kind, first_radius: float) -> Newton:
    if not first_radius > 0:
        raise ValueError(f"first_radius={first_radius} must be a positive number. The default is 1.")
    return Newton(kind, float(first_radius))
