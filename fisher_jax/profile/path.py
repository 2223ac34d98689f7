"""Profile likelihoods: the path of restricted maxima, followed from the estimate to where it has fallen by a given amount.

Each lane follows one side of one function of the parameters. A trip looks at one point: a prediction from the last point of
the path, or a Newton step back to it. Steps are chosen so that the signed root r = ±√(2(ℓ̂ − ℓ_p)) grows evenly, by the first
two derivatives of ℓ_p; they are shortened where no restricted maximum is found. No lane waits for another.
"""

import enum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fisher_jax.models.likelihood import Likelihood, terms_at
from fisher_jax.profile.restricted import Point, Restriction, look

MOST_POINTS = 48  # on a side; strides double where the profile flattens
MOST_TRIPS = 400
_MOST_TRIES = 30  # looks at one value of g before a shorter stride is tried
_MOST_FAILURES = 14
_FLAT = 3  # strides in a row, each twice as long as the last, on which almost nothing more is lost
_NEARLY_FLAT = 1e-3
_VERY_FAR = 1e4  # times the first spacing
_NEAR = 1e-3  # standard errors from the path, between its ends


class End(enum.IntEnum):
    """How a profile was left on one side."""

    CUT_OFF = 0
    NEVER_FALLS = 1
    BETTER_FOUND = 2
    STUCK = 3
    EDGE = 4
    RUNNING = 5

    @property
    def words(self) -> str:
        """As tables print it."""
        return _WORDS[self]


_WORDS = {
    End.CUT_OFF: "cut-off reached",
    End.NEVER_FALLS: "never falls to the cut-off",
    End.BETTER_FOUND: "a better optimum lies there",
    End.STUCK: "could not be followed to the cut-off",
    End.EDGE: "never falls to the cut-off, up to the edge of the function's range",
    End.RUNNING: "too long a way to the cut-off",
}


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


class _Walk(NamedTuple):
    """Where a lane is: `trial` is looked at next; `here` on the way back to the path; `base` the last point of it."""

    trial: Float[Array, " p"]
    predicted: Bool[Array, ""]
    leapt: Bool[Array, ""]
    here: Point
    base: Point
    before: Point
    origin: Float[Array, ""]
    unit: Float[Array, ""]
    goal: Float[Array, ""]
    stride: Float[Array, ""]
    inside: Float[Array, ""]
    outside: Float[Array, ""]
    to_lose: Float[Array, ""]
    part: Float[Array, ""]
    tries: Int[Array, ""]
    failures: Int[Array, ""]
    flat: Int[Array, ""]
    bracketed: Int[Array, ""]
    num_points: Int[Array, ""]
    path: Path


def follow(
    target: Likelihood,
    restriction: Restriction,
    span: Any,
    constrained: Bool[Array, " p"],
    free: Float[Array, " p"],
    units: Float[Array, " p"],
    side: Any,
    cut: Any,
) -> Path:
    """The profile of g(u) from the maximum at u in the direction `side` = ±1 of g, to where it has fallen by `cut` nats.

    `span` is a change of g that is large whatever the likelihood: that of a logarithm or a logit, say. It is infinite where
    there is none, and NaN where g may have a range that it does not leave.
    """
    best = terms_at(target, free)
    cut = jnp.asarray(cut, free.dtype)
    side, span = jnp.asarray(side, free.dtype), jnp.asarray(span, free.dtype)

    def trip(walk: _Walk) -> _Walk:
        there = look(target, restriction, best, units, constrained, walk.trial)
        return _advance(walk, there, side, cut, span)

    def running(walk: _Walk) -> Bool[Array, ""]:
        return (walk.path.end == End.RUNNING) & (walk.path.trips < MOST_TRIPS) & (walk.num_points < MOST_POINTS)

    shapes = jax.eval_shape(lambda: look(target, restriction, best, units, constrained, free))
    walk = jax.lax.while_loop(running, trip, _start(shapes, free))
    # So far away that rounding alone moves the slope, and nothing lost on the way.
    way = side * (walk.base.value - walk.origin)
    flat = (way > _VERY_FAR * walk.unit) & (walk.base.drop < _NEARLY_FLAT * cut)
    end = jnp.where((walk.path.end == End.RUNNING) & flat, End.NEVER_FALLS, walk.path.end)
    return walk.path._replace(end=end.astype(jnp.int32))


def _start(shapes: Point, free: Float[Array, " p"]) -> _Walk:
    nothing = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    zero, none = jnp.zeros((), free.dtype), jnp.zeros((), jnp.int32)
    blank = jnp.full((MOST_POINTS,), jnp.nan, free.dtype)
    path = Path(
        drops=blank,
        frees=jnp.full((MOST_POINTS, *free.shape), jnp.nan, free.dtype),
        end_free=free,
        end_value=zero,
        end=jnp.full((), End.RUNNING, jnp.int32),
        singular=jnp.array(False),
        trips=none,
    )
    return _Walk(
        trial=free,
        predicted=jnp.array(True),
        leapt=jnp.array(False),
        here=nothing,
        base=nothing,
        before=nothing,
        origin=zero,
        unit=zero,
        goal=zero,
        stride=zero,
        inside=zero,
        outside=jnp.full((), jnp.inf, free.dtype),
        to_lose=zero,
        part=jnp.ones((), free.dtype),
        tries=none,
        failures=none,
        flat=none,
        bracketed=none,
        num_points=none,
        path=path,
    )


def _advance(walk: _Walk, there: Point, side: Array, cut: Array, span: Array) -> _Walk:
    """One trip: judge the point looked at, then go on, back nearer to the path, or back to its last point."""
    first = walk.num_points == 0
    walk = walk._replace(path=walk.path._replace(trips=walk.path.trips + 1), tries=walk.tries + 1)
    taken = jnp.where(walk.predicted, _sound(walk, there, cut), _gains(walk, there)) | first
    here = _choose(taken, there, walk.here)
    part = jnp.where(taken, 1.0, 0.25 * walk.part)
    arrived = first | ((taken | ~walk.predicted) & _on_path(here, taken, walk.tries, cut))
    leaps = walk.predicted & ~taken & there.finite & ~walk.leapt & jnp.any(there.leap != 0)
    failed = ~arrived & ~leaps & ((walk.predicted & ~taken) | (walk.tries > _MOST_TRIES))
    correcting = walk._replace(
        here=here, part=part, predicted=jnp.array(False), trial=here.free + part * _newton(here, walk.goal)
    )
    onward = _onward(walk._replace(here=here), side, cut, span)
    back = _back(walk, side, cut, span)
    leaping = walk._replace(trial=there.free + there.leap, leapt=jnp.array(True))
    result = _choose(arrived, onward, _choose(failed, back, _choose(leaps, leaping, correcting)))
    dead = first & ~there.finite
    return result._replace(path=result.path._replace(end=jnp.where(dead, jnp.int32(End.STUCK), result.path.end)))


def _newton(point: Point, goal: Array) -> Float[Array, " p"]:
    return point.inward + point.tangent * (goal - point.value)


def _sound(walk: _Walk, there: Point, cut: Array) -> Bool[Array, ""]:
    """Whether a predicted point is near enough to the path, and not far beyond its end; after a leap it need not be near."""
    near = there.definite & (there.distance < 1.0)
    return there.finite & (there.drop < 4.0 * cut) & (near | walk.leapt | (walk.failures >= 5))


def _gains(walk: _Walk, there: Point) -> Bool[Array, ""]:
    """Whether a Newton step came nearer, or raised the likelihood beyond what the change of g alone would."""
    gain = walk.here.drop - there.drop - walk.here.slope * (there.value - walk.here.value)
    nearer = there.definite & (there.distance < 0.5 * walk.here.distance)
    return there.finite & (nearer | (gain > 1e-4 * walk.part * walk.here.distance**2))


def _on_path(here: Point, taken: Array, tries: Array, cut: Array) -> Bool[Array, ""]:
    fine = jnp.sqrt(jnp.finfo(here.free.dtype).eps) * 100
    tolerance = jnp.where(jnp.abs(here.drop - cut) < 0.02 * cut, jnp.minimum(fine, _NEAR), _NEAR)
    floor = ~taken & ((0.5 * here.distance**2 <= here.rounding) | (tries > 6)) & (here.distance < 0.03)
    return here.definite & ((here.distance < tolerance) | floor)


def _onward(walk: _Walk, side: Array, cut: Array, span: Array) -> _Walk:
    """The point is on the path: write it down, see whether this is the end, and predict the next."""
    here, first = walk.here, walk.num_points == 0
    drop = jnp.where(first, 0.0, here.drop - 0.5 * jnp.where(here.definite, here.distance, 0.0) ** 2)
    origin = jnp.where(first, here.value, walk.origin)
    way = side * (here.value - origin)
    unit = jnp.where(first, _unit(here), jnp.where(walk.num_points == 1, way / _spacing(cut), walk.unit))
    path = walk.path
    now = jnp.arange(MOST_POINTS) == walk.num_points
    path = path._replace(
        drops=jnp.where(now, drop, path.drops),
        frees=jnp.where(now[:, None], here.free[None, :], path.frees),
        singular=path.singular | here.singular,
    )
    inside = jnp.where(drop < cut, jnp.maximum(walk.inside, way), walk.inside)
    outside = jnp.where(drop >= cut, jnp.minimum(walk.outside, way), walk.outside)
    step = _to_goal(here, drop, side, cut)
    limit = jnp.where(first, unit * _spacing(cut), 2.0 * walk.stride)
    step = jnp.clip(step, -limit, limit)
    bracketed = walk.bracketed + jnp.isfinite(outside)
    aim = way + step
    astray = jnp.isfinite(outside) & ((aim <= inside) | (aim >= outside) | (bracketed % 8 == 0))
    aim = jnp.where(astray, 0.5 * (inside + outside), aim)
    long = (way > 2.0 * unit) | (way > span)
    to_lose = -side * here.slope * way  # by as far again, were the slope to stay
    fades = (to_lose <= 0.9 * walk.to_lose) | (to_lose <= 1e3 * here.rounding)
    fading = (to_lose < _NEARLY_FLAT * (cut - drop)) & fades & long & ~jnp.isfinite(outside)
    flat = jnp.where(fading, walk.flat + 1, 0)
    precision = jnp.finfo(here.free.dtype).eps ** (1 / 3)
    reached = ~first & (jnp.abs(drop - cut) <= precision * cut)
    better = ~first & (drop < -jnp.maximum(1e-6, here.rounding))
    tests = jnp.stack([better, reached, flat >= _FLAT])
    codes = jnp.array([End.BETTER_FOUND, End.CUT_OFF, End.NEVER_FALLS], jnp.int32)
    end = jnp.where(jnp.any(tests), codes[jnp.argmax(tests)], jnp.int32(End.RUNNING))
    last = jnp.where(reached, here.value + side * _to_goal(here, drop, side, cut, whole=True), here.value)
    goal = origin + side * aim
    base = here._replace(drop=drop)
    return walk._replace(
        base=base,
        before=_choose(first, here, walk.base),
        origin=origin,
        unit=unit,
        goal=goal,
        stride=jnp.abs(aim - way),
        inside=inside,
        outside=outside,
        to_lose=to_lose,
        part=jnp.ones_like(walk.part),
        predicted=jnp.array(True),
        leapt=jnp.array(False),
        tries=jnp.zeros_like(walk.tries),
        failures=jnp.zeros_like(walk.failures),
        flat=flat,
        bracketed=bracketed,
        num_points=walk.num_points + 1,
        trial=_predict(base, walk.base, goal, walk.num_points > 0),
        path=path._replace(end=end, end_value=last, end_free=here.free + _newton(here, last)),
    )


def _unit(here: Point) -> Float[Array, ""]:
    """One standard error of g; where it has none, at most a thousand of those with all else held."""
    longest = 1e3 / jnp.sqrt(jnp.abs(here.stiffness))
    own = 1.0 / jnp.sqrt(jnp.where(here.bend < 0, -here.bend, 1.0))
    unit = jnp.where(here.definite & (here.bend < 0), jnp.minimum(own, longest), longest)
    return jnp.where(jnp.isfinite(unit), unit, jnp.maximum(1.0, jnp.abs(here.value)))


def _spacing(cut: Array) -> Array:
    """How far the signed root goes from point to point."""
    return jnp.minimum(jnp.sqrt(2 * cut) / 3, 1.0)


def _to_goal(here: Point, drop: Array, side: Array, cut: Array, whole: bool = False) -> Float[Array, ""]:
    """How far outwards the next point lies, or the `whole` way to the cut, by the first two derivatives of the profile."""
    root, end, spacing = jnp.sqrt(2 * jnp.maximum(drop, 0.0)), jnp.sqrt(2 * cut), _spacing(cut)
    aim = jnp.where(root + 1.5 * spacing >= end, end, root + spacing)
    wanted = (cut if whole else 0.5 * aim**2) - drop
    rise, bend = -side * here.slope, -here.bend
    under = rise**2 + 2 * bend * wanted
    below = rise + jnp.sqrt(jnp.maximum(under, 0.0))
    reachable = (under >= 0) & (below > 0)
    return jnp.where(reachable, 2 * wanted / jnp.where(reachable, below, 1.0), jnp.inf * jnp.sign(wanted))


def _predict(base: Point, before: Point, goal: Array, curved: Any) -> Float[Array, " p"]:
    """Along the tangent, and along what it has changed by since the point before, if that was as far."""
    ahead, behind = goal - base.value, base.value - before.value
    usable = curved & (jnp.abs(ahead) <= 3.0 * jnp.abs(behind))
    change = (base.tangent - before.tangent) * jnp.where(usable, ahead / jnp.where(usable, behind, 1.0), 0.0)
    return base.free + _newton(base, goal) + 0.5 * ahead * change


def _back(walk: _Walk, side: Array, cut: Array, span: Array) -> _Walk:
    """No maximum was found at the goal: aim at a nearer one, or end here."""
    base, failures = walk.base, walk.failures + 1
    ahead = 0.25 * (walk.goal - base.value)
    goal = base.value + ahead
    way = jnp.abs(base.value - walk.origin)
    runs_off = jnp.isnan(span) & (
        jnp.sum((base.tangent * way) ** 2) > 1e4 * jnp.sum((base.free - walk.path.frees[0]) ** 2)
    )
    given_up = (failures > _MOST_FAILURES) | (goal == base.value)
    close = runs_off & (jnp.abs(ahead) < 1e-6 * way)
    loss = span * (jnp.abs(base.slope) + 0.5 * span * jnp.abs(base.bend))
    level = (walk.flat > 0) | (loss < _NEARLY_FLAT * (cut - base.drop))
    code = jnp.where(level, End.NEVER_FALLS, jnp.where(runs_off, End.EDGE, End.STUCK))
    end = jnp.where(given_up | close, code, End.RUNNING).astype(jnp.int32)
    return walk._replace(
        goal=goal,
        stride=jnp.abs(ahead),
        trial=base.free + _newton(base, goal),
        predicted=jnp.array(True),
        leapt=jnp.array(False),
        part=jnp.ones_like(walk.part),
        tries=jnp.zeros_like(walk.tries),
        failures=failures,
        path=walk.path._replace(end=end),
    )


def _choose(which: Array, one: Any, other: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(which, a, b), one, other)
