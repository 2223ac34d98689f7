"""`coverage`: how often confidence intervals hold the truth, by kind and by the number of observations."""

import warnings
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, PyTree

from fisher_jax.errors import FitWarning, check_count, check_key, check_level, entry_point
from fisher_jax.fitting.covariance import KINDS
from fisher_jax.fitting.fit import fit_batch
from fisher_jax.fitting.result import Fit
from fisher_jax.inference.bootstrap import bootstrap
from fisher_jax.information import has_closed_form
from fisher_jax.simulation.coverage_record import Coverage
from fisher_jax.simulation.experiment import Experiment, check_numbers, data_sets_of, experiment_of
from fisher_jax.simulation.sampling_distribution import key_apart

BY_BOOTSTRAP = ("percentile", "basic", "bca")
_KINDS = ("wald", "profile", *KINDS, *BY_BOOTSTRAP)
NATURAL = " natural"


@entry_point
def coverage(
    model: Any,
    params: PyTree,
    key: Any,
    *,
    num_observations: Any = None,
    num_replicates: Any = 2000,
    level: Any = 0.95,
    kinds: Any = ("wald", "profile"),
    given: PyTree = None,
    num_bootstraps: Any = 999,
    num_bootstrapped: Any = 200,
) -> Coverage:
    """Draw many data sets, make intervals from each, and count how often they hold the parameters that were drawn from.

    Parameters
    ----------
    model, params, key, given
        As for `sampling_distribution`; at a single n the same key gives the same data sets.
    num_observations : int or sequence of int
        One n or several; with `given` its number of rows or multiples of it.
    num_replicates : int
        How many data sets at each n.
    level : float
        The coverage aimed at.
    kinds : str or sequence of str
        ``"wald"`` (from the observed information; also called ``"observed"``), ``"expected"``, ``"empirical"``, ``"sandwich"``,
        made on the unconstrained scale, or symmetric on the parameters' own as ``"wald natural"`` and so on; ``"profile"``; and
        by bootstrap ``"percentile"``, ``"basic"`` and ``"bca"``.
    num_bootstraps, num_bootstrapped : int
        Replicates of each bootstrap, and how many of the data sets are bootstrapped, since each takes a batch of fits.

    Returns
    -------
    Coverage
        Shares and mean lengths with Monte Carlo errors, by n, kind and parameter. Data sets without an interval (a failed fit,
        an end that could not be found) count as not covering, and are counted. It prints as a table.

    Raises
    ------
    ValueError, TypeError
        If the model has no sampler, a kind is unknown, or the arguments do not fit together.

    References
    ----------
    Brown, L. D., Cai, T. T. and DasGupta, A. (2001), Statist. Sci. 16, 101-133: why the nominal level is not the actual one.

    Examples
    --------
    >>> import fisher_jax as fj, jax
    >>> found = fj.coverage(
    ...     fj.families.exponential, {"rate": 2.0}, jax.random.key(0), num_observations=20, num_replicates=500, kinds="wald"
    ... )
    >>> print(found.share.shape, abs(found.share[0, 0, 0] - 0.95) < 0.05)
    (1, 1, 1) True
    """
    check_level(level)
    check_key(key)
    sizes = check_numbers(num_observations)
    experiments = [experiment_of(model, params, given, n) for n in sizes]
    kinds = _checked(kinds, experiments[0])
    count = check_count(num_replicates, 1, "num_replicates")
    few = _Bootstraps(
        check_count(num_bootstraps, 2, "num_bootstraps"),
        min(count, check_count(num_bootstrapped, 1, "num_bootstrapped")),
    )
    keys = [key] if len(experiments) == 1 else [jax.random.fold_in(key, k) for k in range(len(experiments))]
    found = [_at(experiment, own, count, level, kinds, few) for experiment, own in zip(experiments, keys, strict=True)]
    share, share_error, length, length_error, without, unbounded, data_sets = map(np.stack, zip(*found, strict=True))
    return Coverage(
        share=share,
        share_error=share_error,
        length=length,
        length_error=length_error,
        num_without=without,
        num_unbounded=unbounded,
        num_data_sets=data_sets,
        num_observations=tuple(experiment.num_observations for experiment in experiments),
        kinds=kinds,
        names=experiments[0].layout.names,
        level=float(level),
    )


class _Bootstraps(NamedTuple):
    replicates: int
    data_sets: int


class _Counts(NamedTuple):
    """Sums over data sets, (K, q) each."""

    held: Any
    lengths: Any
    squares: Any
    finite: Any
    without: Any
    data_sets: Any


def _checked(kinds: Any, experiment: Experiment) -> tuple[str, ...]:
    kinds = tuple(kinds) if isinstance(kinds, list | tuple) else (kinds,)
    if not kinds or len(set(kinds)) < len(kinds):
        raise ValueError(f"kinds={kinds} must be one or more different kinds of intervals.")
    for kind in kinds:
        bare = str(kind).removesuffix(NATURAL)
        if bare not in _KINDS or (bare != kind and bare in ("profile", *BY_BOOTSTRAP)):
            raise ValueError(
                f"kinds names {kind!r}; choose from {', '.join(map(repr, _KINDS))}, those of Wald's also with "
                f"{NATURAL!r} behind."
            )
        if bare == "expected" and not has_closed_form(experiment.model):
            raise ValueError(
                'kinds names "expected", but the model has no closed form of its information. Give '
                "Model(…, information=…), or choose another kind."
            )
    return kinds


def _at(
    experiment: Experiment, key: Any, count: int, level: Any, kinds: tuple[str, ...], few: _Bootstraps
) -> tuple[np.ndarray, ...]:
    """Share, its error, length, its error, without, unbounded and data sets, at one n."""
    apart = key_apart(key)  # from the keys of the data sets
    kept = tuple({_covariance(kind) for kind in kinds} | {"observed"})
    total: Any = None
    done = 0
    for data in data_sets_of(experiment, key, count):
        fits = fit_batch(experiment.model, experiment.params, data, given=experiment.given, covariances=kept)
        some = fits[: max(0, few.data_sets - done)]
        ends = _bootstrapped(some, [kind for kind in kinds if kind in BY_BOOTSTRAP], level, few, (apart, done))
        ends |= {kind: _ends(fits, kind, level) for kind in kinds if kind not in BY_BOOTSTRAP}
        parts = [_counted(ends[kind], experiment.truth) for kind in kinds]
        new = _Counts(*(np.stack(part) for part in zip(*parts, strict=True)))
        total = new if total is None else _Counts(*map(np.add, total, new))
        done += len(fits)
    return _shares(total)


def _covariance(kind: str) -> str:
    bare = kind.removesuffix(NATURAL)
    return bare if bare in KINDS else "observed"


def _bootstrapped(
    fits: Fit, kinds: list[str], level: Any, few: _Bootstraps, key: tuple[Any, int]
) -> dict[str, Float[np.ndarray, "b q 2"]]:
    """The intervals of every fit by each kind, from the same replicates. `key` has the first one's number too."""
    ends = {kind: np.full((len(fits), len(fits.layout.names), 2), np.nan) for kind in kinds}
    for k in np.flatnonzero(fits.converged).tolist() if kinds else ():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FitWarning)  # what these would say is counted
            replicates = bootstrap(fits[k], jax.random.fold_in(key[0], key[1] + k), few.replicates)
            for kind in kinds:
                ends[kind][k] = replicates.flat_intervals(level, kind)
    return ends


def _ends(fits: Fit, kind: str, level: Any) -> Float[np.ndarray, "b q 2"]:
    """The intervals of every fit; NaN where there is none."""
    layout = fits.layout
    bare = kind.removesuffix(NATURAL)
    scale = "natural" if bare != kind else "unconstrained"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        if bare == "profile":
            found = fits.confidence_intervals(level=level, method="profile")
        else:
            found = fits.confidence_intervals(_covariance(kind), level=level, scale=scale)  # type: ignore[arg-type]
    ends = np.asarray(jax.vmap(jax.vmap(layout.flatten, -1, -1))(found), float)
    has_one = fits.converged | (bare == "profile")  # a profile can be followed from where the others have no curvature
    return np.where(has_one[:, None, None], ends, np.nan)


def _counted(ends: Float[np.ndarray, "b q 2"], truth: Float[np.ndarray, " q"]) -> _Counts:
    """Sums over the data sets of a chunk."""
    lower, upper = ends[..., 0], ends[..., 1]
    held = (lower <= truth) & (truth <= upper)
    lengths = upper - lower
    finite = np.isfinite(lengths)
    known = np.where(finite, lengths, 0.0)
    without = np.isnan(lower) | np.isnan(upper)
    held, lengths, squares, finite, without = (
        np.sum(part, axis=0) for part in (held, known, known**2, finite, without)
    )
    return _Counts(held, lengths, squares, finite, without, np.int64(len(ends)))


def _shares(total: _Counts) -> tuple[np.ndarray, ...]:
    count = np.asarray(total.data_sets)[:, None]
    share = total.held / count
    smoothed = (total.held + 1) / (count + 2)  # so that the error of a share of one is not zero
    with np.errstate(invalid="ignore", divide="ignore"):
        length = total.lengths / total.finite
        variance = np.maximum(total.squares / total.finite - length**2, 0.0) / total.finite
    unbounded = count - total.finite - total.without
    error = np.sqrt(smoothed * (1 - smoothed) / count)
    return share, error, length, np.sqrt(variance), total.without, unbounded, np.asarray(total.data_sets)
