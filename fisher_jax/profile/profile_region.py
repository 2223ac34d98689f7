"""`profile_region`: the values of two parameters at which the likelihood, the others at their best, is within a cut-off."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, PyTree

from fisher_jax.errors import check_count, check_flag, check_level, entry_point, kind_of, require, shown, warn
from fisher_jax.fitting import covariance as covariances
from fisher_jax.fitting.map_fits import check_fit
from fisher_jax.fitting.result import Fit, origin_of
from fisher_jax.fitting.status import Status
from fisher_jax.models.parameter_names import is_text
from fisher_jax.numerics.array_namespace import on_host
from fisher_jax.profile.path import End
from fisher_jax.profile.profile_likelihood import MOST_RESTARTS, Numbers, fit_higher, numbers_meant
from fisher_jax.profile.rays import Rays, follow_rays, pair_at
from fisher_jax.profile.sides import cut_of
from fisher_jax.reporting import Report, Reported, ReportTable, listed, number, percent

_STEEP = 0.7  # radians between a chord and the boundary at its ends, above which another ray is followed between
_SHORT = 0.02  # chords shorter than this part of the largest radius need none
_MOST_HALVINGS = 6  # of the angle between two rays
_MOST_ADDED = 4  # times the rays asked for
_PARALLEL = 1e-10  # 1 − correlation² of the two numbers, up to which one is a function of the other


@dataclass(frozen=True, repr=False)
class ProfileRegion(Reported):
    """The boundary of a likelihood region of two numbers, as points in order of their angle. It prints as a table.

    Attributes
    ----------
    estimate : array (2,)
        The two numbers at the maximum.
    points : array (k, 2)
        Points of the boundary in the user's unit, counterclockwise as rays leave the estimate; NaN for a ray on which the
        profile did not reach the cut-off.
    end_codes : integer array (k,)
        How each ray ended; `ends` gives it in words.
    joined : boolean array (k,)
        Whether the boundary goes on from this point to the next; the last one's next is the first. False beside a ray without
        a point, and where the boundary leaps: there the region is not star-shaped about the estimate.
    angles : array (k,)
        The angle of each ray where x = L⁻¹(ψ − ψ̂), L Lᵀ the covariance of ψ on the scale of the constraints (the logarithm of a
        positive parameter).
    free : array (k, p)
        u at the points; `params` gives the parameters themselves, those not of the pair at their best.
    reached, fallen : arrays (k, 2) and (k,)
        The last point that was followed on each ray, and by how many nats the profile had fallen there.
    covariance : array (2, 2)
        Wald's, of the two numbers in the user's unit, from the observed information; NaN where the fit did not converge.
    names : tuple of two str
    level : float
        The coverage aimed at, of both numbers together if `joint`, else of each by itself.
    joint : bool
    fit : Fit
        The fit that was profiled: the one given, or one restarted from a better point that a ray met.
    num_restarts : int
        How often that happened.
    notes : tuple of str
        What limits the result.
    """

    estimate: Any
    points: Any
    end_codes: Any
    joined: Any
    angles: Any
    free: Any
    reached: Any
    fallen: Any
    covariance: Any
    fit: Fit
    names: tuple[str, ...]
    level: float
    joint: bool
    num_restarts: int
    notes: tuple[str, ...]

    @property
    def ends(self) -> tuple[str, ...]:
        """How each ray ended, in words."""
        return tuple(End(int(code)).words for code in self.end_codes)

    @property
    def closed(self) -> bool:
        """Whether every ray reached the boundary, and each point is joined with the next: the points are a closed curve."""
        return bool(np.all(self.joined))

    @property
    def cut(self) -> float:
        """By how many nats the profile has fallen on the boundary."""
        return _cut_of(self.level, self.joint)

    @property
    def curves(self) -> list[Float[np.ndarray, "m 2"]]:
        """The points in runs that are joined: one, whose last point is its first, if the curve is closed."""
        points, joined = np.asarray(self.points), np.asarray(self.joined)
        if self.closed:
            return [np.concatenate([points, points[:1]])]
        # Begin after a break, so that no run is cut at the angle zero.
        order = np.roll(np.arange(len(points)), -1 - int(np.argmin(joined)))
        runs = np.split(order, np.flatnonzero(~joined[order])[:-1] + 1)
        return [points[run] for run in runs if np.all(np.isfinite(points[run]))]

    @property
    def params(self) -> PyTree:
        """The parameters at the points: a pytree like the fit's, each leaf with an axis k in front."""
        layout, values = self.fit.layout, self.fit.values
        return jax.vmap(lambda free: layout.constrain(free, values))(jnp.asarray(self.free))

    def summary(self) -> Report:
        """The cut-off, whether the curve is closed, and of each number the estimate and how far the points reach."""
        points = np.asarray(self.points)
        exists = np.all(np.isfinite(points), axis=1)
        ends = np.full((2, 2), np.nan)
        if np.any(exists):
            ends = np.stack([np.min(points[exists], axis=0), np.max(points[exists], axis=0)], axis=1)
        what, degrees = ("both together", "two degrees") if self.joint else ("each by itself", "one degree")
        facts = [
            ("Level", f"{percent(self.level)}, {what}"),
            ("Cut-off", f"{self.cut:.4f} nats below the maximum, ½ χ² with {degrees} of freedom"),
            (
                "Points",
                f"{int(np.sum(exists))} on {len(exists)} rays, {'a closed curve' if self.closed else 'not closed'}",
            ),
        ]
        errors = np.sqrt(np.diagonal(self.covariance))
        rows = [
            (name, *row) for name, row in zip(self.names, zip(self.estimate, errors, *ends.T, strict=True), strict=True)
        ]
        titles = ("parameter", "estimate", "std. error", "least point", "greatest point")
        keys = ("estimate", "standard_error", "least", "greatest")
        return Report("Profile region", facts, [ReportTable(titles, rows, keys=keys)], self.notes)

    @entry_point
    def to_frame(self) -> Any:
        """The points as a pandas DataFrame, with the angle and the end of each ray in words (needs the extra `frames`)."""
        pd = require("pandas", "frames")
        frame = pd.DataFrame(np.asarray(self.points), columns=list(self.names))
        return frame.assign(angle=self.angles, end=self.ends, joined=self.joined)


_STATIC = ("names", "level", "joint", "num_restarts", "notes")
jax.tree_util.register_dataclass(
    ProfileRegion, [f.name for f in fields(ProfileRegion) if f.name not in _STATIC], list(_STATIC)
)


@entry_point
def profile_region(
    fit: Fit,
    pair: Sequence[str] | Callable[..., Any],
    *,
    level: float = 0.95,
    joint: bool = True,
    num_points: int = 64,
) -> ProfileRegion:
    """The boundary of a likelihood region of two numbers ψ: {ψ : 2 (ℓ̂ − ℓ_p(ψ)) ≤ χ²(level)}, ℓ_p(ψ) = max {ℓ(θ) : g(θ) = ψ}.

    Parameters
    ----------
    fit : Fit
        One fit, as `fit` returned it. As for `profile_likelihood`, one that did not converge can be profiled too.
    pair : two strings, or callable
        Two parameters by name, or linear combinations of them, as for `profile_likelihood`: ``("a", "b - c")``. Or
        ``function(params)``, which returns two numbers, as an array, a dictionary or another pytree.
    level : float
        Coverage aimed at, strictly between 0 and 1.
    joint : bool
        Of both numbers together, by χ² with two degrees of freedom: the boundary is 2.996 nats below the maximum at 95 %.
        False takes one degree of freedom, 1.921 nats at 95 %: then the least and greatest values of each number on the boundary
        are the ends of its own profile interval, and both together are covered less often (by 85 %).
    num_points : int
        Rays from the estimate, at equal angles in the metric of the covariance. More are added where the boundary bends sharply.

    Returns
    -------
    ProfileRegion
        Prints as a table. `fisher_jax.plots.profile_region` draws it.

    Raises
    ------
    ValueError, TypeError
        If an argument is none of those described, the two numbers do not vary independently at the estimate, or the fit was made
        without its data.

    Warns
    -----
    FitWarning
        If the curve that was found is not closed. The report states in which directions and why.

    Notes
    -----
    All rays are followed at once, as the sides of `profile_likelihood` are: restricted maxima, predicted from point to point
    and corrected by Newton steps, to the first crossing of the cut-off, which is exact to rounding. A region that extends to
    infinity or to an edge of the parameter space has rays without a point. Of a region that is not star-shaped about the
    estimate the boundary leaps from one ray to the next; what lies behind is not followed, and the two points are not joined.
    The region does not depend on how the parameters are written; where the points lie on its boundary does.

    `Minuit.mncontour` of iminuit 2 takes its ``cl`` below one as the joint probability too. MINOS contours of "one sigma" in
    the older sense, 2 (ℓ̂ − ℓ_p) = 1, are ``level=0.6827, joint=False``, and cover both numbers together by 39 %.

    Cost: for each ray some ten Hessians.

    References
    ----------
    Venzon, D. J. and Moolgavkar, S. H. (1988), Appl. Statist. 37, 87-94, for the profile and its cut-off; James, F. and Roos, M.
    (1975), Comput. Phys. Commun. 10, 343-367, for MINOS contours.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> y = jnp.array([1.0, 2.0, 3.0, 6.0])
    >>> fit = fj.fit(fj.families.normal, {"loc": 0.0, "scale": 1.0}, y)
    >>> region = fj.profile_region(fit, ("loc", "scale"), num_points=16)
    >>> print(region.closed, region.points.min(axis=0).round(3), region.points.max(axis=0).round(3))
    True [-0.417  0.954] [6.417 6.236]
    """
    check_fit(fit)
    check_level(level)
    check_flag(joint, "joint")
    check_count(num_points, 8, "num_points", entries=100 * max(fit.num_parameters, 1))
    if fit.has_batch:
        raise TypeError("takes one fit, for each has a curve of its own. Take one of yours, as fits[3].")
    model, dataset = origin_of(fit)
    fit._check("observed")
    fit._warn()
    function, columns, names = _numbers_of(fit, pair)
    cut = _cut_of(level, joint)

    best, restarts = fit, 0
    better = fit_higher(fit, fit.values) if fit.status in (Status.STEP_LIMIT, Status.STALLED) else None
    while True:
        if better is not None:
            best, restarts = better, restarts + 1
        maximum = best.values, best.free, jnp.asarray(best.curvature)
        center, root = _whitening(best, function, columns, names, maximum)

        settings = maximum, function, columns, center, root
        follow = functools.partial(follow_rays, model, dataset, best.layout, *settings, cut=cut, most=num_points)
        angles, rays = _follow_all(follow, num_points)
        falls = np.where(rays.code == End.BETTER_FOUND, rays.fallen, np.inf)
        if restarts == MOST_RESTARTS or not np.any(np.isfinite(falls)):
            break
        highest = rays.last[int(np.argmin(falls))]
        better = fit_higher(best, best.layout.constrained_values(jnp.asarray(highest), best.values))
        if better is None:
            break

    on_boundary = rays.code == End.CUT_OFF
    joined = on_boundary & np.roll(on_boundary, -1) & ~_is_open(angles, rays)
    wald = _wald(best, function, columns, maximum)
    region = ProfileRegion(
        estimate=wald[0],
        points=np.where(on_boundary[:, None], rays.numbers, np.nan),
        end_codes=rays.code,
        joined=joined,
        angles=angles,
        free=np.where(on_boundary[:, None], rays.free, np.nan),
        reached=rays.reached,
        fallen=rays.fallen,
        covariance=wald[1],
        fit=best,
        names=names,
        level=float(level),
        joint=bool(joint),
        num_restarts=restarts,
        notes=_notes(best, fit, rays, joined, names, cut, restarts),
    )
    if not region.closed:
        warn("the curve is not closed; print the region to see where and why.")
    return region


def _cut_of(level: float, joint: bool) -> float:
    """By how many nats the profile may fall: half the quantile of χ² with two degrees of freedom is −log(1 − level)."""
    return float(-np.log1p(-float(level))) if joint else cut_of(level)


def _numbers_of(fit: Fit, pair: Any) -> tuple[Numbers | None, Int[np.ndarray, " 2"], tuple[str, ...]]:
    """The function that returns the two numbers, or their entries of θ, and their names."""
    if not callable(pair) or isinstance(pair, type):
        if isinstance(pair, str) or not is_text(pair) or len(pair) != 2:
            what = shown(pair) if isinstance(pair, str | list | tuple | np.ndarray) else kind_of(pair)
            raise TypeError(
                f"pair={what} must be two names, as ({', '.join(map(repr, fit.names[:2]))}), or a function of params."
            )
        if pair[0] == pair[1]:
            raise ValueError(f"pair names {pair[0]!r} twice; expected two different numbers.")
    numbers, columns, names = numbers_meant(pair, fit, "pair")
    if len(names) != 2:
        raise ValueError(f"pair has {len(names)} numbers ({listed(names)}); expected two.")
    return numbers, columns, names


def _whitening(
    fit: Fit, function: Numbers | None, columns: Any, names: tuple[str, ...], maximum: Any
) -> tuple[Float[np.ndarray, " 2"], Float[np.ndarray, "2 2"]]:
    """The two numbers at the estimate and the root L of their covariance, on the scale on which rays are straight.

    Where the information is singular, their standard errors if no other parameter moved are used in its place.
    """
    center, slopes, covariance = map(np.asarray, pair_at(fit.layout, function, maximum, columns))
    products = slopes @ slopes.T
    if not np.linalg.det(products) > _PARALLEL * products[0, 0] * products[1, 1]:
        raise ValueError(
            f"{names[0]} and {names[1]} do not vary independently at the estimate, so they have no region."
        )
    variances = np.diagonal(covariance)
    if np.all(variances > 0) and np.linalg.det(covariance) > _PARALLEL * np.prod(variances):
        return center, np.linalg.cholesky(covariance)
    curvature = np.abs(np.diagonal(np.asarray(fit.curvature)))
    units = 1.0 / np.sqrt(np.where((curvature > 0) & np.isfinite(curvature), curvature, 1.0))
    return center, np.diag(np.linalg.norm(slopes * units, axis=1)).astype(center.dtype)


def _follow_all(follow: Callable[[np.ndarray], Rays], num_points: int) -> tuple[np.ndarray, Rays]:
    """Rays at equal angles, and more between two whose points do not determine the boundary between them; in order."""
    angles = 2 * np.pi * np.arange(num_points) / num_points
    rays = follow(angles)
    for _ in range(_MOST_HALVINGS):
        wide = np.flatnonzero(_is_open(angles, rays))
        if not len(wide) or len(angles) + len(wide) > (1 + _MOST_ADDED) * num_points:
            break
        new = 0.5 * (angles + np.append(angles[1:], 2 * np.pi))[wide]
        angles = np.concatenate([angles, new])
        order = np.argsort(angles, kind="stable")
        rays = jax.tree.map(lambda *leaves, order=order: np.concatenate(leaves)[order], rays, follow(new))
        angles = angles[order]
    return angles, rays


def _is_open(angles: np.ndarray, rays: Rays) -> Bool[np.ndarray, " k"]:
    """Whether between a point and the next, both on the boundary, the chord departs from the boundary's own direction there."""
    on_boundary = rays.code == End.CUT_OFF
    radius = np.where(on_boundary, rays.radius, 0.0)
    x = radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    chord = np.roll(x, -1, axis=0) - x
    length = np.linalg.norm(chord, axis=1)
    # Counterclockwise along the boundary, the region to the left: ℓ_p rises inwards, along `normal`.
    direction = np.stack([rays.normal[:, 1], -rays.normal[:, 0]], axis=1)
    norm = np.linalg.norm(direction, axis=1)

    def turn(other: np.ndarray, size: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.arccos(np.clip(np.sum(chord * other, axis=1) / (length * size), -1.0, 1.0))

    steep = np.maximum(turn(direction, norm), turn(np.roll(direction, -1, axis=0), np.roll(norm, -1)))
    both = on_boundary & np.roll(on_boundary, -1)
    return both & (length > _SHORT * np.max(radius)) & ~(steep <= _STEEP)


def _wald(
    fit: Fit, function: Numbers | None, columns: Any, maximum: Any
) -> tuple[Float[np.ndarray, " 2"], Float[np.ndarray, "2 2"]]:
    """The two numbers at the estimate and their covariance, in the user's unit."""
    if function is not None:
        pair = pair_at(fit.layout, function, maximum, columns)
        theta, matrix = np.asarray(pair.values), np.asarray(pair.covariance)
    else:
        theta = np.asarray(fit.layout.join(on_host(fit.values)))[columns]
        matrix = np.asarray(fit._computed(covariances.covariance, "observed", True))[np.ix_(columns, columns)]
    return theta, matrix if fit.converged else np.full((2, 2), np.nan)


def _notes(
    best: Fit, given: Fit, rays: Rays, joined: np.ndarray, names: tuple[str, ...], cut: float, restarts: int
) -> tuple[str, ...]:
    notes = []
    if restarts:
        gained = float(best.penalized_log_likelihood - given.penalized_log_likelihood)
        notes.append(
            f"a better optimum was found on the way, higher by {gained:.4g} nats: the fit was made again from there, and what "
            "is shown is about that fit (`.fit`)."
        )
    if not best.converged:
        notes.append(f"the fit did not converge: {best.diagnosis()}")
    for code in np.unique(rays.code[rays.code != End.CUT_OFF]):
        which = rays.code == code
        first = int(np.argmax(which))
        place = ", ".join(f"{name} {number(x)}" for name, x in zip(names, rays.reached[first], strict=True))
        notes.append(
            f"on {int(np.sum(which))} of {len(which)} rays: {End(int(code)).words}; on the first of them, at {place}, the profile "
            f"has fallen by {max(float(rays.fallen[first]), 0.0):.4g} of {cut:.4g} nats."
        )
    on_boundary = rays.code == End.CUT_OFF
    leaps = on_boundary & np.roll(on_boundary, -1) & ~joined
    if np.any(leaps):
        first = int(np.argmax(leaps))
        ends = [", ".join(map(number, rays.numbers[k % len(leaps)])) for k in (first, first + 1)]
        notes.append(
            f"the boundary leaps in {int(np.sum(leaps))} places, first from ({ends[0]}) to ({ends[1]}): the region is not "
            "star-shaped about the estimate, and what lies behind is not followed."
        )
    if np.any(rays.singular):
        notes.append(f"on {int(np.sum(rays.singular))} rays some of the other parameters cannot be distinguished.")
    return tuple(notes)
