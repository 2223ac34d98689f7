"""The path of restricted maxima, followed from the estimate to where the likelihood has fallen by a given amount.

Each lane follows one side of one function g of the parameters. A trip evaluates one point, and then either

- predicts the next point of the path along its tangent and curvature, if this one is on the path (`_onward`);
- takes a Newton step back to the path at constant g, if it is not yet;
- aims at a nearer value of g, if no restricted maximum was reached (`_back`).

Values of g are chosen so that the signed root r = ±√(2(ℓ̂ − ℓ_p)), which is linear in g for a quadratic likelihood, grows evenly,
by the first two derivatives of ℓ_p. The end is where ℓ̂ − ℓ_p equals the cut-off (Venzon and Moolgavkar 1988, eq. (2)), bracketed
once it has been passed. No lane waits for another, as one would if all took steps of the same kind at a time.
"""

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fisher_jax.profile.restricted import Point

MOST_POINTS = 48  # on a side; strides double where the profile flattens
MOST_TRIPS = 400
_MOST_TRIES = 30  # evaluations at one value of g before a shorter stride is tried
_MOST_FAILURES = 14
_FLAT = 3  # strides in a row, each twice as long as the last, on which the profile hardly falls
_NEARLY_FLAT = 1e-3  # of the fall to the cut-off
_VERY_FAR = 1e4  # times the first spacing
_NEAR = 1e-3  # standard errors from the path, between its ends


class End(enum.IntEnum):
    """How a profile ended on one side."""

    CUT_OFF = 0, "cut-off reached"
    NEVER_FALLS = 1, "never falls to the cut-off"
    BETTER_FOUND = 2, "a better optimum lies there"
    STUCK = 3, "could not be followed to the cut-off"
    EDGE = 4, "never falls to the cut-off, up to the edge of the function's range"
    RUNNING = 5, "too long a way to the cut-off"

    words: str  # as tables print it

    def __new__(cls, code: int, words: str = "") -> "End":
        end = int.__new__(cls, code)
        end._value_, end.words = code, words
        return end


class Path(NamedTuple):
    """One side of a profile: its points from the estimate outwards (NaN after the last), and its end.

    `drops` are ℓ̂ − ℓ_p; `end_free` is u at the end, or at the last point.
    """

    drops: Float[Array, " k"]
    frees: Float[Array, "k p"]
    end_free: Float[Array, " p"]
    end_value: Float[Array, ""]
    end: Int[Array, ""]
    singular: Bool[Array, ""]
    trips: Int[Array, ""]


class Walk(NamedTuple):
    """The state of a lane."""

    # Changed by every trip.
    trial: Float[Array, " p"]  # where the next trip evaluates
    tries: Int[Array, ""]  # trips since the last prediction
    # From a prediction until the path is reached or missed.
    predicted: Bool[Array, ""]  # whether `trial` is a prediction, and no Newton step
    leapt: Bool[Array, ""]
    here: Point  # the best point so far on the way back to the path
    part: Float[Array, ""]  # of Newton's step that is taken
    # Changed where a point of the path is reached. Distances are of g from the estimate, outwards.
    base: Point  # the last point of the path
    origin: Float[Array, ""]  # g at the estimate
    unit: Float[Array, ""]  # about one standard error of g
    inside: Float[Array, ""]  # the farthest distance above the cut-off
    outside: Float[Array, ""]  # the nearest below it
    bracketed: Int[Array, ""]  # points since the cut-off was passed
    expected_drop: Float[Array, ""]  # what the profile would fall by if it went on as far again
    flat: Int[Array, ""]  # strides in a row on which it hardly fell
    num_points: Int[Array, ""]
    # Changed with every prediction.
    goal: Float[Array, ""]  # the value of g aimed at
    stride: Float[Array, ""]  # how far that is from the last point
    failures: Int[Array, ""]
    # What is reported.
    path: Path


def follow(
    evaluate: Callable[[Float[Array, " p"]], Point], free: Float[Array, " p"], side: Array, cut: Any, span: Any
) -> Path:
    """The profile of g from the maximum at u in the direction `side` = ±1 of g, to where it has fallen by `cut` nats.

    `evaluate(u)` is the `Point` at u. `span` is a change of g that is large whatever the likelihood: for example that of a
    logarithm or a logit. It is infinite where there is none, and NaN where g may have a range that it does not leave.
    """
    cut, span = jnp.asarray(cut, free.dtype), jnp.asarray(span, free.dtype)
    evaluate = jax.jit(
        evaluate
    )  # traced once for its shapes and for the loop, which is most of the wait for a long density
    walk = begin(jax.eval_shape(evaluate, free), free)
    walk = jax.lax.while_loop(is_running, lambda walk: advance(walk, evaluate(walk.trial), side, cut, span), walk)
    return finish(walk, side, cut)


def is_running(walk: Walk) -> Bool[Array, "*l"]:
    """Whether the side goes on, or each of many."""
    return (walk.path.end == End.RUNNING) & (walk.path.trips < MOST_TRIPS) & (walk.num_points < MOST_POINTS)


def begin(point: Any, free: Float[Array, " p"]) -> Walk:
    """Before the first trip, which evaluates the estimate itself: here that would compile all derivatives a second time.

    `point` has the shapes of a `Point`.
    """
    blank: Any = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), point)
    zero: Any = jnp.zeros((), free.dtype)
    count: Any = jnp.zeros((), jnp.int32)
    drops = jnp.full((MOST_POINTS,), jnp.nan, free.dtype)
    frees = jnp.full((MOST_POINTS, *free.shape), jnp.nan, free.dtype)
    return Walk(
        trial=free,
        predicted=jnp.array(True),
        leapt=jnp.array(False),
        part=zero + 1.0,
        outside=zero + jnp.inf,
        path=Path(drops, frees, free, zero, count + End.RUNNING, jnp.array(False), count),
        **dict.fromkeys(("here", "base"), blank),
        **dict.fromkeys(("origin", "unit", "inside", "expected_drop", "goal", "stride"), zero),
        **dict.fromkeys(("tries", "bracketed", "flat", "num_points", "failures"), count),
    )


def finish(walk: Walk, side: Array, cut: Any) -> Path:
    """The side as far as it came."""
    # So far away that rounding alone moves the slope, and hardly fallen on the way.
    way = side * (walk.base.value - walk.origin)
    flat = (way > _VERY_FAR * walk.unit) & (walk.base.drop < _NEARLY_FLAT * cut)
    end = jnp.where((walk.path.end == End.RUNNING) & flat, End.NEVER_FALLS, walk.path.end)
    return walk.path._replace(end=end.astype(jnp.int32))


def advance(walk: Walk, there: Point, side: Array, cut: Array, span: Array) -> Walk:
    """One trip: judge the point evaluated, then go on, back nearer to the path, or back to its last point."""
    first = walk.num_points == 0
    walk = walk._replace(path=walk.path._replace(trips=walk.path.trips + 1), tries=walk.tries + 1)

    # A prediction is accepted near the path and not far beyond its end. After a leap, or several failures, it need not be near:
    # Newton's steps from there may do better than another prediction.
    near = there.definite & (there.distance < 1.0)
    sound = there.finite & (there.drop < 4.0 * cut) & (near | walk.leapt | (walk.failures >= 5))
    # A Newton step is accepted if it came nearer, or raised the likelihood by more than the change of g explains.
    nearer = there.definite & (there.distance < 0.5 * walk.here.distance)
    gain = walk.here.drop - there.drop - walk.here.slope * (there.value - walk.here.value)
    gains = there.finite & (nearer | (gain > 1e-4 * walk.part * walk.here.distance**2))
    accepted = jnp.where(walk.predicted, sound, gains) | first
    here = _choose(accepted, there, walk.here)
    part = jnp.where(accepted, 1.0, 0.25 * walk.part)

    # A curve is drawn through the points, which takes a thousandth of a standard error; the end is to be right to rounding. A point
    # is near enough too where a step to the path changes the likelihood by no more than its rounding error.
    fine = jnp.sqrt(jnp.finfo(here.free.dtype).eps) * 100
    tolerance = jnp.where(jnp.abs(here.drop - cut) < 0.02 * cut, jnp.minimum(fine, _NEAR), _NEAR)
    floor = ~accepted & ((0.5 * here.distance**2 <= here.rounding) | (walk.tries > 6)) & (here.distance < 0.03)
    on_path = here.definite & ((here.distance < tolerance) | floor)

    arrived = first | ((accepted | ~walk.predicted) & on_path)
    leaps = walk.predicted & ~accepted & there.finite & ~walk.leapt & jnp.any(there.leap != 0)
    failed = ~arrived & ~leaps & ((walk.predicted & ~accepted) | (walk.tries > _MOST_TRIES))
    anew = walk._replace(
        here=here,
        predicted=jnp.array(True),
        leapt=jnp.array(False),
        part=jnp.ones_like(part),
        tries=jnp.zeros_like(walk.tries),
    )
    leaping = walk._replace(trial=there.free + there.leap, leapt=jnp.array(True))
    correcting = walk._replace(
        here=here, part=part, predicted=jnp.array(False), trial=here.free + part * _newton(here, walk.goal)
    )
    onward, back = _onward(anew, side, cut, span), _back(anew, cut, span)
    result = _choose(arrived, onward, _choose(failed, back, _choose(leaps, leaping, correcting)))
    dead = first & ~there.finite
    return result._replace(path=result.path._replace(end=jnp.where(dead, jnp.int32(End.STUCK), result.path.end)))


def _newton(point: Point, goal: Array) -> Float[Array, " p"]:
    """The step to the path, and along it to where g is `goal`."""
    return point.inward + point.tangent * (goal - point.value)


def _onward(walk: Walk, side: Array, cut: Array, span: Array) -> Walk:
    """The point is on the path: write it down, judge whether this is the end, and predict the next."""
    here, first = walk.here, walk.num_points == 0
    # ℓ at the maximum near by, which is half a squared distance higher.
    drop = jnp.where(first, 0.0, here.drop - 0.5 * jnp.where(here.definite, here.distance, 0.0) ** 2)
    spacing = jnp.minimum(jnp.sqrt(2 * cut) / 3, 1.0)  # of the signed root, from point to point
    origin = jnp.where(first, here.value, walk.origin)
    way = side * (here.value - origin)
    # One standard error of g, by its curvature; where it has none, at most a thousand of those that it has if no other parameter
    # moves. The first stride then corrects it.
    longest = 1e3 / jnp.sqrt(jnp.abs(here.stiffness))
    bends = here.bend < 0
    error = jnp.where(
        here.definite & bends, jnp.minimum(1.0 / jnp.sqrt(jnp.where(bends, -here.bend, 1.0)), longest), longest
    )
    error = jnp.where(jnp.isfinite(error), error, jnp.maximum(1.0, jnp.abs(here.value)))
    unit = jnp.where(first, error, jnp.where(walk.num_points == 1, way / spacing, walk.unit))

    rise, bend = -side * here.slope, -here.bend

    def distance_of(fall: Array) -> Float[Array, ""]:
        """How far outwards ℓ_p has fallen by so much more, to second order; infinite where it never does."""
        under = rise**2 + 2 * bend * fall
        below = rise + jnp.sqrt(jnp.maximum(under, 0.0))
        reachable = (under >= 0) & (below > 0)
        return jnp.where(reachable, 2 * fall / jnp.where(reachable, below, 1.0), jnp.inf * jnp.sign(fall))

    # The next point lies one spacing further in the signed root, or at the cut-off if that is hardly more. No stride is more than
    # twice the last, since the derivatives hold near by only.
    root, end_root = jnp.sqrt(2 * jnp.maximum(drop, 0.0)), jnp.sqrt(2 * cut)
    next_root = jnp.where(root + 1.5 * spacing >= end_root, end_root, root + spacing)
    limit = jnp.where(first, unit * spacing, 2.0 * walk.stride)
    aim = way + jnp.clip(distance_of(0.5 * next_root**2 - drop), -limit, limit)
    # Once the cut-off has been passed, stay within the bracket; every eighth time bisect it, so that it cannot stay long.
    inside = jnp.where(drop < cut, jnp.maximum(walk.inside, way), walk.inside)
    outside = jnp.where(drop >= cut, jnp.minimum(walk.outside, way), walk.outside)
    bracketed = walk.bracketed + jnp.isfinite(outside)
    astray = jnp.isfinite(outside) & ((aim <= inside) | (aim >= outside) | (bracketed % 8 == 0))
    aim = jnp.where(astray, 0.5 * (inside + outside), aim)
    goal = origin + side * aim

    # The profile levels out if, far from the estimate, it would hardly fall by going as far again were the slope to stay, and that
    # becomes less from stride to stride.
    expected_drop = rise * way
    fades = (expected_drop <= 0.9 * walk.expected_drop) | (expected_drop <= 1e3 * here.rounding)
    long = (way > 2.0 * unit) | (way > span)
    fading = (expected_drop < _NEARLY_FLAT * (cut - drop)) & fades & long & ~jnp.isfinite(outside)
    flat = jnp.where(fading, walk.flat + 1, 0)

    better = ~first & (drop < -jnp.maximum(1e-6, here.rounding))
    # Near enough for one more step, whose error is of third order, to end at the cut-off to rounding.
    reached = ~first & (jnp.abs(drop - cut) <= jnp.finfo(here.free.dtype).eps ** (1 / 3) * cut)
    tests = jnp.stack([better, reached, flat >= _FLAT])
    codes = jnp.array([End.BETTER_FOUND, End.CUT_OFF, End.NEVER_FALLS], jnp.int32)
    last = jnp.where(reached, here.value + side * distance_of(cut - drop), here.value)
    now = jnp.arange(MOST_POINTS) == walk.num_points
    path = walk.path._replace(
        drops=jnp.where(now, drop, walk.path.drops),
        frees=jnp.where(now[:, None], here.free[None, :], walk.path.frees),
        singular=walk.path.singular | here.singular,
        end=jnp.where(jnp.any(tests), codes[jnp.argmax(tests)], jnp.int32(End.RUNNING)),
        end_value=last,
        end_free=here.free + _newton(here, last),
    )

    # Predict along the tangent, and along what it has changed by since the point before, if that was about as far.
    ahead, behind = goal - here.value, here.value - walk.base.value
    usable = ~first & (jnp.abs(ahead) <= 3.0 * jnp.abs(behind))
    change = (here.tangent - walk.base.tangent) * jnp.where(usable, ahead / jnp.where(usable, behind, 1.0), 0.0)
    return walk._replace(
        trial=here.free + _newton(here, goal) + 0.5 * ahead * change,
        base=here._replace(drop=drop),
        origin=origin,
        unit=unit,
        inside=inside,
        outside=outside,
        bracketed=bracketed,
        expected_drop=expected_drop,
        flat=flat,
        num_points=walk.num_points + 1,
        goal=goal,
        stride=jnp.abs(aim - way),
        failures=jnp.zeros_like(walk.failures),
        path=path,
    )


def _back(walk: Walk, cut: Array, span: Array) -> Walk:
    """No restricted maximum was reached at the goal: aim at a nearer one, or end here."""
    base, failures = walk.base, walk.failures + 1
    ahead = 0.25 * (walk.goal - base.value)
    goal = base.value + ahead
    way = jnp.abs(base.value - walk.origin)
    # At the edge of its range g hardly moves, while the parameters run off: the tangent is very steep.
    runs_off = jnp.isnan(span) & (
        jnp.sum((base.tangent * way) ** 2) > 1e4 * jnp.sum((base.free - walk.path.frees[0]) ** 2)
    )
    ends = (failures > _MOST_FAILURES) | (goal == base.value) | (runs_off & (jnp.abs(ahead) < 1e-6 * way))
    loss = span * (jnp.abs(base.slope) + 0.5 * span * jnp.abs(base.bend))  # over a large change of g
    level = (walk.flat > 0) | (loss < _NEARLY_FLAT * (cut - base.drop))
    code = jnp.where(level, End.NEVER_FALLS, jnp.where(runs_off, End.EDGE, End.STUCK))
    end = jnp.where(ends, code, End.RUNNING).astype(jnp.int32)
    trial = base.free + _newton(base, goal)
    path = walk.path._replace(end=end)
    return walk._replace(trial=trial, goal=goal, stride=jnp.abs(ahead), failures=failures, path=path)


def _choose(which: Array, one: Any, other: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(which, a, b), one, other)
