"""`profile_likelihood`: how the likelihood falls as one parameter, or one function of them, is moved and the rest follow."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from fisher_jax.errors import check_level, entry_point, require, warn
from fisher_jax.fitting.fit import fit as fit_once
from fisher_jax.fitting.map_fits import check_fit
from fisher_jax.fitting.parameter_functions import as_function, numbers_of, outline
from fisher_jax.fitting.passes import passes_of
from fisher_jax.fitting.result import Fit, origin_of
from fisher_jax.fitting.status import Status
from fisher_jax.models.parameter_names import LinearCombinations, choose_estimated
from fisher_jax.models.parameters import Values
from fisher_jax.models.programs import ById
from fisher_jax.numerics.array_namespace import on_host
from fisher_jax.profile.path import End
from fisher_jax.profile.sides import Sides, cut_of, profile_sides, profile_sides_by_passes, profile_sides_of_each
from fisher_jax.reporting import Report, Reported, ReportTable, number, percent

MOST_RESTARTS = 5
_FITS_AT_ONCE = 4096  # of a batch, whose curves are in memory with room for the longest
_UNFINISHED = (Status.STEP_LIMIT, Status.STALLED)  # of fits that go on from where they stopped
# What a restart changes in a batch of fits.
_OF_FIT = (
    "values",
    "log_likelihood",
    "status_code",
    "num_steps",
    "decrement",
    "free",
    "curvature",
    "last_step",
    "suspect",
)


@dataclass(frozen=True, repr=False)
class Profile(Reported):
    """Profile likelihoods of parameters or of functions of them, with the intervals that they give.

    Of many fits every array has a leading axis B; ``len(profile)``, ``profile[3]`` and ``profile[10:20]`` are as of a `Fit`.

    Attributes
    ----------
    estimate, standard_error : arrays (m,)
        At the maximum; the standard error is Wald's, from the observed information, in the same unit.
    lower, upper : arrays (m,)
        Ends of the interval {c : ℓ̂ − ℓ_p(c) ≤ ½ χ²₁(level)}. Where the profile never falls so far, the edge of the parameter's
        range or ±inf; NaN where the end was not reached. `lower_end` and `upper_end` explain it in words.
    end_codes : integer array (m, 2)
        The same as codes.
    value, signed_root : arrays (m, k)
        The curve: c in increasing order, and r = sign(c − ĉ) √(2(ℓ̂ − ℓ_p(c))), which is a straight line for a quadratic
        likelihood; NaN in unused places at the end.
    free : array (m, k, p)
        The unconstrained parameters along the curve; `params` gives the parameters themselves.
    reached, fallen : arrays (m, 2)
        The last point of each side, and by how many nats the profile had fallen there.
    singular : boolean array (m,)
        Whether somewhere on the profile the data do not determine some of the other parameters.
    num_restarts : int, or integer array (B,)
        How often a better optimum was found on the way, and the fit made again from there.
    gained : float, or array (B,)
        By how many nats the log-likelihood rose in these.
    names : tuple of str
    level : float
        The coverage aimed at.
    fit : Fit
        The fit that was profiled: the one given, or one restarted from a better point that the path met.
    """

    estimate: Any
    standard_error: Any
    lower: Any
    upper: Any
    end_codes: Any
    value: Any
    signed_root: Any
    free: Any
    reached: Any
    fallen: Any
    singular: Any
    num_restarts: Any
    gained: Any
    fit: Fit
    names: tuple[str, ...]
    level: float

    def __len__(self) -> int:
        return len(self.fit)

    def __bool__(self) -> bool:
        return True  # or Python would ask for the length

    def __getitem__(self, index: Any) -> "Profile":
        fit = self.fit[index]  # which checks the index
        arrays: dict[str, Any] = {name: np.asarray(getattr(self, name))[index] for name in _ARRAYS}
        profile = replace(self, fit=fit, **arrays)
        return profile if fit.has_batch else replace(profile, num_restarts=int(profile.num_restarts))

    def __iter__(self) -> Iterator["Profile"]:
        return (self[k] for k in range(len(self)))

    @property
    def lower_end(self) -> Any:
        """What each lower end is, in words: a tuple (m,), of many fits an array (B, m)."""
        return _words(self.end_codes[..., 0])

    @property
    def upper_end(self) -> Any:
        """What each upper end is, in words: a tuple (m,), of many fits an array (B, m)."""
        return _words(self.end_codes[..., 1])

    @property
    def interval(self) -> Float[np.ndarray, "*b m 2"]:
        """Lower and upper ends."""
        return np.stack([self.lower, self.upper], axis=-1)

    @property
    def log_likelihood(self) -> Float[np.ndarray, "*b m k"]:
        """ℓ_p along the curve less its maximum, in nats."""
        return -0.5 * self.signed_root**2

    @property
    def skewness(self) -> Float[np.ndarray, "*b m 2"]:
        """Each half of the interval divided by Wald's, z standard errors: 1 where the likelihood is quadratic."""
        wald = np.sqrt(2 * cut_of(self.level)) * self.standard_error
        return np.stack([self.estimate - self.lower, self.upper - self.estimate], axis=-1) / wald[..., None]

    @property
    def params(self) -> PyTree:
        """The parameters along the curve: a pytree like the fit's, each leaf with axes (m, k) in front."""
        layout, values = self.fit.layout, self.fit.values

        def of_one(free: Any, values: Values) -> PyTree:
            return jax.vmap(jax.vmap(lambda free: layout.constrain(free, values)))(free)

        free = jnp.asarray(self.free)
        return jax.vmap(of_one)(free, values) if self.fit.has_batch else of_one(free, values)

    @property
    def notes(self) -> tuple[str, ...]:
        """What limits the result, in sentences."""
        return _notes_of_many(self) if self.fit.has_batch else _notes(self)

    def summary(self) -> Report:
        """A table of estimates, ends, and each half of the interval divided by Wald's; of many fits their medians."""
        level = percent(self.level)
        titles = ("parameter", "estimate", f"lower {level}", f"upper {level}", "lower / Wald", "upper / Wald")
        facts = [("Cut-off", f"{cut_of(self.level):.4f} nats below the maximum, ½ χ² with one degree of freedom")]
        columns = [self.estimate, self.lower, self.upper, self.skewness[..., 0], self.skewness[..., 1]]
        numbers = np.stack(columns, axis=-1)
        caption = ""
        if self.fit.has_batch:
            facts.insert(0, ("Fits", str(len(self))))
            caption = "medians over the fits, of the numbers that there are"
            numbers = np.array([[_median(numbers[:, k, j]) for j in range(5)] for k in range(len(self.names))])
        rows = [(name, *row) for name, row in zip(self.names, numbers, strict=True)]
        keys = ("estimate", "lower", "upper", "lower_over_wald", "upper_over_wald")
        return Report("Profile likelihood", facts, [ReportTable(titles, rows, caption, keys=keys)], self.notes)

    @entry_point
    def to_frame(self) -> Any:
        """The table as a pandas DataFrame by name, with both ends in words (needs the extra `frames`).

        Of many fits a row for each fit and name, whose index is `fit` and `name`.
        """
        if not self.fit.has_batch:
            frame = self.summary().to_frame().rename_axis("name")
            return frame.assign(lower_end=self.lower_end, upper_end=self.upper_end)
        pd = require("pandas", "frames")
        index = pd.MultiIndex.from_product([range(len(self)), self.names], names=["fit", "name"])
        columns = {"estimate": self.estimate, "lower": self.lower, "upper": self.upper}
        columns |= {"lower_over_wald": self.skewness[..., 0], "upper_over_wald": self.skewness[..., 1]}
        columns |= {"lower_end": self.lower_end, "upper_end": self.upper_end}
        return pd.DataFrame({key: np.ravel(column) for key, column in columns.items()}, index=index)


_STATIC = ("names", "level")
_ARRAYS = tuple(f.name for f in fields(Profile) if f.name not in (*_STATIC, "fit"))
jax.tree_util.register_dataclass(Profile, ["fit", *_ARRAYS], list(_STATIC))


def _words(codes: Any) -> Any:
    words = [End(int(code)).words for code in np.ravel(codes)]
    return tuple(words) if np.ndim(codes) == 1 else np.array(words, object).reshape(np.shape(codes))


def _median(numbers: np.ndarray) -> float:
    numbers = numbers[~np.isnan(numbers)]
    return float(np.median(numbers)) if len(numbers) else np.nan


@dataclass(frozen=True)
class Numbers:
    """A user's function with its numbers in one row, hashable."""

    function: ById

    def __call__(self, params: PyTree) -> Float[Array, " k"]:
        return numbers_of(self.function.function, params)


@entry_point
def profile_likelihood(
    fit: Fit,
    function: str | Sequence[str] | Callable[..., Any] | None = None,
    *,
    level: float = 0.95,
    parameters: str | Sequence[str] | None = None,
) -> Profile:
    """Profile likelihoods ℓ_p(c) = max {ℓ(θ) : g(θ) = c} of parameters or of functions g of them, and their intervals.

    Parameters
    ----------
    fit : Fit
        As `fit` or `fit_batch` returned it. One that ended at a boundary or with singular information can be profiled too: the
        ends that exist are found, and the report states why the others do not.
    function : str or sequence of str, or callable, optional
        Parameters by name (`"scale"`, `"beta[2]"`, `"beta"` for all of its entries), or linear combinations of them (`"a - b"`, as
        for `delta_method`). Or ``function(params)``, which returns a number, or an array or pytree of them. Each is profiled by
        itself. By default every estimated entry of the parameters is.
    level : float
        Coverage aimed at, strictly between 0 and 1: the cut-off lies ½ χ²₁(level) nats below the maximum.
    parameters : str or sequence of str, optional
        The same as names given for `function`.

    Returns
    -------
    Profile
        Prints as a table. `fisher_jax.plots.profile_curves` draws its curves. Of many fits it has their axis and can be
        indexed: each has the profile that it has by itself, to rounding.

    Raises
    ------
    ValueError, TypeError
        If an argument is none of those described, or the fit was made without its data.

    Notes
    -----
    All sides of all profiles are followed at once. From a point with ∇ℓ = λ ∇g the path of restricted maxima is predicted
    along its tangent and corrected by Newton steps, which use the Hessians of ℓ and g; λ is the profile's slope and, with its
    derivative, shows where the cut-off lies. An end is exact to rounding. The interval does not depend on how the parameter is
    written: that of a scale is the image of that of its logarithm.

    If a point better than the estimate is met, the fit is made again from there, and `num_restarts`, `fit` and the printed
    table show it. A likelihood with several peaks is left at the first crossing of the cut-off on either side; a path on
    which the other parameters would have to leap cannot be followed beyond, and is reported as such. Near the edge of the
    parameter space the χ² distribution does not hold; what is returned then is the set of values within the cut-off. That of a
    standard deviation of effects goes down to zero where the data allow it; were the truth zero, 97.5 % or more of nominal 95 %
    intervals would hold it, since half of the statistics or more are zero (Self and Liang 1987).
    Coverage of nominal 95 % intervals of four families' parameters, 4000 data sets (`benchmarks/calibration.txt`): 92.3
    to 94.1 % at n = 20, 94.2 to 95.3 at 50, 94.8 to 95.5 at 200; from other seeds a GEV's location at 50 had 93.3 ± 0.4.

    A function is compiled once for each object: define it once, not as a lambda at each call. Cost: some ten Hessians for each
    side, and for memory the scores of as many rows as a Hessian takes at once.

    References
    ----------
    Venzon, D. J. and Moolgavkar, S. H. (1988), Appl. Statist. 37, 87-94, eq. (2) for the intervals' ends.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> counts = jnp.array([2.0, 4.0, 3.0])
    >>> fit = fj.fit(fj.families.poisson, {"rate": 1.0}, counts)
    >>> profile = fj.profile_likelihood(fit)
    >>> print(f"{profile.lower[0]:.3f} {profile.upper[0]:.3f}")
    1.442 5.408
    >>> halved = fj.profile_likelihood(fit, lambda params: {"probability of none": jnp.exp(-params["rate"])})
    >>> print(halved.names, halved.interval.round(4))
    ('probability of none',) [[0.0045 0.2366]]
    >>> fj.profile_likelihood(fit, "rate").names
    ('rate',)
    """
    check_fit(fit)
    check_level(level)
    if passes_of(fit) is None:
        origin_of(fit)
    fit._check("observed")
    fit._warn()
    if function is not None and parameters is not None:
        raise ValueError("give a function or the names of parameters, not both.")
    if function is None:
        columns = np.array(choose_estimated(fit.layout, parameters, "parameters"))
        numbers, names = None, tuple(fit.names[k] for k in columns)
    else:
        numbers, columns, names = numbers_meant(function, fit, "function")
    profile_of = _profile_many if fit.has_batch else _profile_one
    profile = profile_of(fit, numbers, columns, names, float(level))
    unreached = np.any(np.isin(profile.end_codes, (End.STUCK, End.RUNNING, End.BETTER_FOUND)), axis=-1)
    if np.any(unreached):
        if fit.has_batch:
            which = f"in {int(np.sum(np.any(unreached, axis=-1)))} of {len(fit)} fits"
        else:
            which = f"for {', '.join(names[k] for k in np.flatnonzero(unreached))}"
        warn(f"an end is NaN {which}; print the profile to see why.")
    return profile


def numbers_meant(
    function: Any, fit: Fit, argument: str
) -> tuple[Numbers | None, Int[np.ndarray, " m"], tuple[str, ...]]:
    """What a text or a function stands for: a function and its numbers, or None and entries of θ; and their names."""
    function = as_function(function, fit, argument)
    if isinstance(function, LinearCombinations) and function.entry_places is not None:
        columns = np.array(function.entry_places)
        return None, columns, tuple(fit.names[k] for k in columns)
    names = outline(function, fit, argument).names
    return Numbers(ById(function)), np.arange(len(names)), names


def _profile_one(
    fit: Fit, numbers: Numbers | None, columns: Int[np.ndarray, " m"], names: tuple[str, ...], level: float
) -> Profile:
    """The profiles of one fit, made again where a better point is met."""
    passes = passes_of(fit)
    best, restarts = fit, 0
    # A fit that stopped too early goes on from where it did.
    better = fit_higher(fit, fit.values) if fit.status in _UNFINISHED else None
    while True:
        if better is not None:
            best, restarts = better, restarts + 1
        maximum = best.values, best.free, np.asarray(best.curvature)
        if passes is not None:
            sides = profile_sides_by_passes(passes, best.layout, maximum, numbers, columns, level)
        else:
            sides = profile_sides(*origin_of(fit), best.layout, maximum, numbers, columns, level)
        falls = np.where(sides.codes == End.BETTER_FOUND, sides.fallen, np.inf)
        if restarts == MOST_RESTARTS or not np.any(np.isfinite(falls)):
            break
        # From the highest of the points that lie above the maximum.
        row, side = np.unravel_index(np.argmin(falls), falls.shape)
        last = int(np.sum(np.isfinite(sides.drops[row, side]))) - 1
        better = fit_higher(
            best, best.layout.constrained_values(jnp.asarray(sides.frees[row, side, last]), best.values)
        )
        if better is None:
            break
    gained = float(best.penalized_log_likelihood - fit.penalized_log_likelihood)
    return _profile_of_sides(best, sides, names, level, restarts, gained)


def _profile_many(
    fits: Fit, numbers: Numbers | None, columns: Int[np.ndarray, " m"], names: tuple[str, ...], level: float
) -> Profile:
    """The profiles of each of many fits, some at a time. Those that need another fit are then profiled one by one."""
    if not len(fits):
        raise ValueError("there are no fits in this batch.")
    model, _ = origin_of(fits)
    host = replace(on_host(fits), origin=fits.origin)
    parts = []
    for start in range(0, len(fits), _FITS_AT_ONCE):
        block = host[start : start + _FITS_AT_ONCE]
        maxima, datasets = (block.values, block.free, block.curvature), origin_of(block).dataset
        sides = profile_sides_of_each(model, datasets, fits.layout, maxima, numbers, columns, level)
        count = len(block)
        parts.append(_profile_of_sides(block, sides, names, level, np.zeros(count, int), np.zeros(count)))
    profile = _join(parts, fits)
    again = np.any(profile.end_codes == End.BETTER_FOUND, axis=(1, 2)) | np.isin(host.status_code, _UNFINISHED)
    if not np.any(again):
        return profile
    each = {int(k): _profile_one(host[int(k)], numbers, columns, names, level) for k in np.flatnonzero(again)}
    rows = [np.flatnonzero(~again), *(np.array([k]) for k in each)]
    one_each = []
    for one in each.values():
        arrays: dict[str, Any] = {name: np.asarray(getattr(one, name))[None] for name in _ARRAYS}
        one_each.append(replace(one, **arrays))
    order = np.argsort(np.concatenate(rows))
    profiles = _join([profile[rows[0]], *one_each] if len(rows[0]) else one_each, fits)
    # What a batch keeps of its fits and one fit does not (other covariances) is that of the fit given.
    values: dict[str, Any] = {name: np.asarray(getattr(profiles, name))[order] for name in _ARRAYS}
    restarted = jax.tree.map(np.array, on_host(fits))
    for k, one in each.items():
        if one.num_restarts:
            for name in _OF_FIT:
                for whole, part in zip(
                    jax.tree.leaves(getattr(restarted, name)), jax.tree.leaves(getattr(one.fit, name)), strict=True
                ):
                    whole[k] = np.asarray(part)
    return replace(profiles, fit=replace(restarted, origin=fits.origin, engine=fits.engine), **values)


def _join(parts: list[Profile], fits: Fit) -> Profile:
    """Profiles of many fits in one, their curves filled up by NaN to the longest."""
    longest = max(part.value.shape[2] for part in parts)

    def join_arrays(name: str) -> Any:
        arrays = [np.asarray(getattr(part, name)) for part in parts]
        if name in ("value", "signed_root", "free"):
            filled = [np.full((*a.shape[:2], longest, *a.shape[3:]), np.nan, a.dtype) for a in arrays]
            for whole, a in zip(filled, arrays, strict=True):
                whole[:, :, : a.shape[2]] = a
            arrays = filled
        return np.concatenate(arrays)

    return replace(parts[0], fit=fits, **{name: join_arrays(name) for name in _ARRAYS})


def _profile_of_sides(
    fit: Fit, sides: Sides, names: tuple[str, ...], level: float, num_restarts: Any, gained: Any
) -> Profile:
    """The record of one fit, or of many."""
    value, root, free = _curves(sides)
    converged = np.asarray(fit.converged)
    return Profile(
        estimate=sides.estimates,
        standard_error=np.where(converged[..., None], sides.errors, np.nan),
        lower=sides.ends[..., 0],
        upper=sides.ends[..., 1],
        end_codes=sides.codes,
        value=value,
        signed_root=root,
        free=free,
        reached=sides.reached,
        fallen=sides.fallen,
        singular=np.any(sides.singular, axis=-1),
        num_restarts=num_restarts,
        gained=gained,
        fit=fit,
        names=names,
        level=level,
    )


def fit_higher(best: Fit, values: Values) -> Fit | None:
    """A fit to the same data from these parameters, if it ends higher."""
    if not all(map(bool, best.layout.contains(values))):
        return None
    start = best.layout.assemble([np.asarray(value) for value in values])
    passes = passes_of(best)
    if passes is not None:
        other = fit_once(passes.model, start, **passes.arguments_by_name)
    else:
        model, dataset = origin_of(best)
        data, given, weights = dataset.parts
        other = fit_once(model, start, data, given=given, weights=weights, strength=dataset.strength_given)
    return other if float(other.penalized_log_likelihood) > float(best.penalized_log_likelihood) else None


def _curves(
    sides: Sides,
) -> tuple[Float[np.ndarray, "*b m k"], Float[np.ndarray, "*b m k"], Float[np.ndarray, "*b m k p"]]:
    """Values, signed roots and u along both sides, in the order of the values; NaN after the last."""
    roots = np.sqrt(2 * np.maximum(sides.drops, 0.0)) * np.array([-1.0, 1.0])[:, None]
    # The lower side backwards, without its first point: both sides begin at the estimate.
    value, root = (np.concatenate([a[..., 0, :0:-1], a[..., 1, :]], axis=-1) for a in (sides.values, roots))
    free = np.concatenate([sides.frees[..., 0, :0:-1, :], sides.frees[..., 1, :, :]], axis=-2)
    used = np.isfinite(root)
    most = max(int(np.max(np.sum(used, axis=-1))), 1)
    order = np.argsort(np.where(used, value, np.inf), axis=-1, kind="stable")[..., :most]
    value, root = np.take_along_axis(value, order, axis=-1), np.take_along_axis(root, order, axis=-1)
    return value, root, np.take_along_axis(free, order[..., None], axis=-2)


def _notes(profile: Profile) -> tuple[str, ...]:
    notes = []
    if profile.num_restarts:
        notes.append(
            f"a better optimum was found on the way, higher by {float(profile.gained):.4g} nats: the fit was made again from "
            "there, and what is shown is about that fit (`.fit`)."
        )
    if not profile.fit.converged:
        notes.append(f"the fit did not converge: {profile.fit.diagnosis()}")
    names = profile.names
    for (k, side), code in np.ndenumerate(profile.end_codes):
        edge = profile.interval[k, side]
        if code == End.NEVER_FALLS and np.isfinite(edge):
            notes.append(
                f"{names[k]}, {('lower', 'upper')[side]} end: the interval goes to {number(edge)}, the edge of the range, where "
                f"the profile has fallen by {max(profile.fallen[k, side], 0.0):.4g} of {cut_of(profile.level):.4g} nats only. "
                f"Were the true value {number(edge)} itself, {percent(0.5 * (1 + profile.level))} or more of intervals at "
                "this cut-off would hold it."
            )
        elif code != End.CUT_OFF:
            notes.append(
                f"{names[k]}, {('lower', 'upper')[side]} end: {End(int(code)).words}; at "
                f"{number(profile.reached[k, side])} the profile has fallen by {max(profile.fallen[k, side], 0.0):.4g} of "
                f"{cut_of(profile.level):.4g} nats."
            )
    if singular := [name for name, flag in zip(names, profile.singular, strict=True) if flag]:
        notes.append(f"on the profile of {', '.join(singular)} some of the other parameters cannot be distinguished.")
    return tuple(notes)


def _notes_of_many(profile: Profile) -> tuple[str, ...]:
    notes, count = [], len(profile)
    if restarts := int(np.sum(profile.num_restarts > 0)):
        notes.append(
            f"in {restarts} of {count} fits a better optimum was found on the way; they were made again from there."
        )
    if failed := int(np.sum(~np.asarray(profile.fit.converged))):
        notes.append(f"{failed} of {count} fits did not converge.")
    for k, name in enumerate(profile.names):
        for side, word in enumerate(("lower", "upper")):
            codes = profile.end_codes[:, k, side]
            for code in np.unique(codes[codes != End.CUT_OFF]):
                which = codes == code
                notes.append(
                    f"{name}, {word} end: {End(int(code)).words} in {int(np.sum(which))} of {count} fits, first in fit "
                    f"{int(np.argmax(which))}."
                )
    return tuple(notes)
