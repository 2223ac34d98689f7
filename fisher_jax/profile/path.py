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
import numpy as np
from jaxtyping import Bool, Float, Int

from fisher_jax.numerics.array_namespace import AnyArray
from fisher_jax.numerics.array_namespace import namespace as namespace_of_arrays
from fisher_jax.numerics.batched_linalg import namespace, select
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

    drops: Float[AnyArray, " k"]
    frees: Float[AnyArray, "k p"]
    end_free: Float[AnyArray, " p"]
    end_value: Float[AnyArray, ""]
    end: Int[AnyArray, ""]
    singular: Bool[AnyArray, ""]
    trips: Int[AnyArray, ""]


class Walk(NamedTuple):
    """The state of a lane."""

    # Changed by every trip.
    trial: Float[AnyArray, " p"]  # where the next trip evaluates
    tries: Int[AnyArray, ""]  # trips since the last prediction
    # From a prediction until the path is reached or missed.
    predicted: Bool[AnyArray, ""]  # whether `trial` is a prediction, and no Newton step
    leapt: Bool[AnyArray, ""]
    here: Point  # the best point so far on the way back to the path
    part: Float[AnyArray, ""]  # of Newton's step that is taken
    # Changed where a point of the path is reached. Distances are of g from the estimate, outwards.
    base: Point  # the last point of the path
    origin: Float[AnyArray, ""]  # g at the estimate
    unit: Float[AnyArray, ""]  # about one standard error of g
    inside: Float[AnyArray, ""]  # the farthest distance above the cut-off
    outside: Float[AnyArray, ""]  # the nearest below it
    bracketed: Int[AnyArray, ""]  # points since the cut-off was passed
    expected_drop: Float[AnyArray, ""]  # what the profile would fall by if it went on as far again
    flat: Int[AnyArray, ""]  # strides in a row on which it hardly fell
    num_points: Int[AnyArray, ""]
    # Changed with every prediction.
    goal: Float[AnyArray, ""]  # the value of g aimed at
    stride: Float[AnyArray, ""]  # how far that is from the last point
    failures: Int[AnyArray, ""]
    # What is reported.
    path: Path


def follow(
    evaluate: Callable[[Float[AnyArray, " p"]], Point], free: Float[AnyArray, " p"], side: AnyArray, cut: Any, span: Any
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


def is_running(walk: Walk) -> Bool[AnyArray, "*l"]:
    """Whether the side goes on, or each of many."""
    return (walk.path.end == End.RUNNING) & (walk.path.trips < MOST_TRIPS) & (walk.num_points < MOST_POINTS)


def begin(point: Any, free: Float[AnyArray, " p"]) -> Walk:
    """Before the first trip, which evaluates the estimate itself: here that would compile all derivatives a second time.

    `point` has the shapes of a `Point`.
    """
    xp = namespace_of_arrays(free)
    # [()] makes numpy's scalars of its arrays without axes.
    blank: Any = jax.tree.map(lambda leaf: xp.zeros(leaf.shape, leaf.dtype)[()], point)
    zero: Any = xp.zeros((), free.dtype)[()]
    count: Any = xp.zeros((), xp.int32)[()]
    drops = xp.full((MOST_POINTS,), xp.nan, free.dtype)
    frees = xp.full((MOST_POINTS, *free.shape), xp.nan, free.dtype)
    no, yes = zero > 0, zero == 0
    return Walk(
        trial=free,
        predicted=yes,
        leapt=no,
        part=zero + 1.0,
        outside=zero + np.inf,
        path=Path(drops, frees, free, zero, count + int(End.RUNNING), no, count),
        **dict.fromkeys(("here", "base"), blank),
        **dict.fromkeys(("origin", "unit", "inside", "expected_drop", "goal", "stride"), zero),
        **dict.fromkeys(("tries", "bracketed", "flat", "num_points", "failures"), count),
    )


def finish(walk: Walk, side: AnyArray, cut: Any) -> Path:
    """The side as far as it came."""
    # So far away that rounding alone moves the slope, and hardly fallen on the way.
    way = side * (walk.base.value - walk.origin)
    flat = (way > _VERY_FAR * walk.unit) & (walk.base.drop < _NEARLY_FLAT * cut)
    end = namespace(way).where((walk.path.end == End.RUNNING) & flat, int(End.NEVER_FALLS), walk.path.end)
    return walk.path._replace(end=end.astype("int32"))


def advance(walk: Walk, there: Point, side: AnyArray, cut: AnyArray, span: AnyArray) -> Walk:
    """One trip: judge the point evaluated, then go on, back nearer to the path, or back to its last point."""
    xp, first = namespace(there.drop), walk.num_points == 0
    walk = walk._replace(path=walk.path._replace(trips=walk.path.trips + 1), tries=walk.tries + 1)

    # A prediction is accepted near the path and not far beyond its end. After a leap, or several failures, it need not be near:
    # Newton's steps from there may do better than another prediction.
    near = there.definite & (there.distance < 1.0)
    sound = there.finite & (there.drop < 4.0 * cut) & (near | walk.leapt | (walk.failures >= 5))
    # A Newton step is accepted if it came nearer, or raised the likelihood by more than the change of g explains.
    nearer = there.definite & (there.distance < 0.5 * walk.here.distance)
    gain = walk.here.drop - there.drop - walk.here.slope * (there.value - walk.here.value)
    gains = there.finite & (nearer | (gain > 1e-4 * walk.part * walk.here.distance**2))
    accepted = xp.where(walk.predicted, sound, gains) | first
    here = select(accepted, there, walk.here)
    part = xp.where(accepted, 1.0, 0.25 * walk.part)

    # A curve is drawn through the points, which takes a thousandth of a standard error; the end is to be right to rounding. A point
    # is near enough too where a step to the path changes the likelihood by no more than its rounding error.
    fine = min(float(jnp.finfo(here.free.dtype).eps) ** 0.5 * 100, _NEAR)
    tolerance = xp.where(xp.abs(here.drop - cut) < 0.02 * cut, fine, _NEAR)
    floor = ~accepted & ((0.5 * here.distance**2 <= here.rounding) | (walk.tries > 6)) & (here.distance < 0.03)
    on_path = here.definite & ((here.distance < tolerance) | floor)

    arrived = first | ((accepted | ~walk.predicted) & on_path)
    leaps = walk.predicted & ~accepted & there.finite & ~walk.leapt & (there.leap != 0).any()
    failed = ~arrived & ~leaps & ((walk.predicted & ~accepted) | (walk.tries > _MOST_TRIES))
    anew = walk._replace(
        here=here,
        predicted=first | True,
        leapt=first & False,
        part=0 * part + 1.0,
        tries=0 * walk.tries,
    )
    result = _first_of(
        (arrived, lambda: _onward(anew, side, cut, span)),
        (failed, lambda: _back(anew, cut, span)),
        (leaps, lambda: walk._replace(trial=there.free + there.leap, leapt=first | True)),
        otherwise=lambda: walk._replace(
            here=here, part=part, predicted=first & False, trial=here.free + part * _newton(here, walk.goal)
        ),
    )
    end = xp.where(first & ~there.finite, int(End.STUCK), result.path.end).astype("int32")
    return result._replace(path=result.path._replace(end=end))


def _newton(point: Point, goal: AnyArray) -> Float[AnyArray, " p"]:
    """The step to the path, and along it to where g is `goal`."""
    return point.inward + point.tangent * (goal - point.value)


def _onward(walk: Walk, side: AnyArray, cut: AnyArray, span: AnyArray) -> Walk:
    """The point is on the path: write it down, judge whether this is the end, and predict the next."""
    here, first = walk.here, walk.num_points == 0
    xp = namespace(here.drop)
    # ℓ at the maximum near by, which is half a squared distance higher.
    drop = xp.where(first, 0.0, here.drop - 0.5 * xp.where(here.definite, here.distance, 0.0) ** 2)
    spacing = xp.minimum(xp.sqrt(2 * cut) / 3, 1.0)  # of the signed root, from point to point
    origin = xp.where(first, here.value, walk.origin)
    way = side * (here.value - origin)
    # One standard error of g, by its curvature; where it has none, at most a thousand of those that it has if no other parameter
    # moves. The first stride then corrects it.
    longest = 1e3 / xp.sqrt(xp.abs(here.stiffness))
    bends = here.bend < 0
    error = xp.where(
        here.definite & bends, xp.minimum(1.0 / xp.sqrt(xp.where(bends, -here.bend, 1.0)), longest), longest
    )
    error = xp.where(xp.isfinite(error), error, xp.maximum(1.0, xp.abs(here.value)))
    unit = xp.where(first, error, xp.where(walk.num_points == 1, way / spacing, walk.unit))

    rise, bend = -side * here.slope, -here.bend

    def distance_of(fall: AnyArray) -> Float[AnyArray, ""]:
        """How far outwards ℓ_p has fallen by so much more, to second order; infinite where it never does."""
        under = rise**2 + 2 * bend * fall
        below = rise + xp.sqrt(xp.maximum(under, 0.0))
        reachable = (under >= 0) & (below > 0)
        return xp.where(reachable, 2 * fall / xp.where(reachable, below, 1.0), xp.inf * xp.sign(fall))

    # The next point lies one spacing further in the signed root, or at the cut-off if that is hardly more. No stride is more than
    # twice the last, since the derivatives hold near by only.
    root, end_root = xp.sqrt(2 * xp.maximum(drop, 0.0)), xp.sqrt(2 * cut)
    next_root = xp.where(root + 1.5 * spacing >= end_root, end_root, root + spacing)
    limit = xp.where(first, unit * spacing, 2.0 * walk.stride)
    aim = way + xp.minimum(xp.maximum(distance_of(0.5 * next_root**2 - drop), -limit), limit)
    # Once the cut-off has been passed, stay within the bracket; every eighth time bisect it, so that it cannot stay long.
    inside = xp.where(drop < cut, xp.maximum(walk.inside, way), walk.inside)
    outside = xp.where(drop >= cut, xp.minimum(walk.outside, way), walk.outside)
    bracketed = (walk.bracketed + xp.isfinite(outside)).astype("int32")
    astray = xp.isfinite(outside) & ((aim <= inside) | (aim >= outside) | (bracketed % 8 == 0))
    aim = xp.where(astray, 0.5 * (inside + outside), aim)
    goal = origin + side * aim

    # The profile levels out if, far from the estimate, it would hardly fall by going as far again were the slope to stay, and that
    # becomes less from stride to stride.
    expected_drop = rise * way
    fades = (expected_drop <= 0.9 * walk.expected_drop) | (expected_drop <= 1e3 * here.rounding)
    long = (way > 2.0 * unit) | (way > span)
    fading = (expected_drop < _NEARLY_FLAT * (cut - drop)) & fades & long & ~xp.isfinite(outside)
    flat = xp.where(fading, walk.flat + 1, 0).astype("int32")

    better = ~first & (drop < -xp.maximum(1e-6, here.rounding))
    # Near enough for one more step, whose error is of third order, to end at the cut-off to rounding.
    reached = ~first & (xp.abs(drop - cut) <= jnp.finfo(here.free.dtype).eps ** (1 / 3) * cut)
    end = xp.where(flat >= _FLAT, int(End.NEVER_FALLS), int(End.RUNNING))
    end = xp.where(better, int(End.BETTER_FOUND), xp.where(reached, int(End.CUT_OFF), end)).astype("int32")
    last = xp.where(reached, here.value + side * distance_of(cut - drop), here.value)
    now = xp.arange(MOST_POINTS) == walk.num_points
    path = walk.path._replace(
        drops=xp.where(now, drop, walk.path.drops),
        frees=xp.where(now[:, None], here.free[None, :], walk.path.frees),
        singular=walk.path.singular | here.singular,
        end=end,
        end_value=last,
        end_free=here.free + _newton(here, last),
    )

    # Predict along the tangent, and along what it has changed by since the point before, if that was about as far.
    ahead, behind = goal - here.value, here.value - walk.base.value
    usable = ~first & (xp.abs(ahead) <= 3.0 * xp.abs(behind))
    change = (here.tangent - walk.base.tangent) * xp.where(usable, ahead / xp.where(usable, behind, 1.0), 0.0)
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
        stride=xp.abs(aim - way),
        failures=0 * walk.failures,
        path=path,
    )


def _back(walk: Walk, cut: AnyArray, span: AnyArray) -> Walk:
    """No restricted maximum was reached at the goal: aim at a nearer one, or end here."""
    base, failures, xp = walk.base, walk.failures + 1, namespace(walk.goal)
    ahead = 0.25 * (walk.goal - base.value)
    goal = base.value + ahead
    way = xp.abs(base.value - walk.origin)
    # At the edge of its range g hardly moves, while the parameters run off: the tangent is very steep.
    far = ((base.tangent * way) ** 2).sum() > 1e4 * ((base.free - walk.path.frees[0]) ** 2).sum()
    runs_off = xp.isnan(span) & far
    ends = (failures > _MOST_FAILURES) | (goal == base.value) | (runs_off & (xp.abs(ahead) < 1e-6 * way))
    loss = span * (xp.abs(base.slope) + 0.5 * span * xp.abs(base.bend))  # over a large change of g
    level = (walk.flat > 0) | (loss < _NEARLY_FLAT * (cut - base.drop))
    code = xp.where(level, int(End.NEVER_FALLS), xp.where(runs_off, int(End.EDGE), int(End.STUCK)))
    end = xp.where(ends, code, int(End.RUNNING)).astype("int32")
    trial = base.free + _newton(base, goal)
    path = walk.path._replace(end=end)
    return walk._replace(trial=trial, goal=goal, stride=xp.abs(ahead), failures=failures, path=path)


def _first_of(*cases: tuple[Any, Callable[[], Walk]], otherwise: Callable[[], Walk]) -> Walk:
    """The walk of the first condition that holds; on the host no other is computed."""
    if isinstance(cases[0][0], np.bool_):
        return next((walk() for holds, walk in cases if holds), None) or otherwise()
    result = otherwise()
    for holds, walk in reversed(cases):
        result = select(holds, walk(), result)
    return result
