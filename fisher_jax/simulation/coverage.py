"""`coverage`: how often confidence intervals contain the true parameters, by kind and by the number of observations."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.errors import FitWarning, check_count, check_key, check_level, entry_point, require
from fisher_jax.fitting.covariance import KINDS
from fisher_jax.fitting.fit import fit_batch
from fisher_jax.fitting.result import Fit
from fisher_jax.inference.bootstrap import bootstrap
from fisher_jax.information import has_closed_form
from fisher_jax.models.model import Model
from fisher_jax.reporting import Report, Reported, ReportTable, percent
from fisher_jax.simulation.experiment import Experiment, check_sizes, draw_blocks, key_for_other_draws, make_experiment

BY_BOOTSTRAP = ("percentile", "basic", "bca")
ALL_KINDS = ("wald", "profile", *KINDS, *BY_BOOTSTRAP)
NATURAL = " natural"


@dataclass(frozen=True, repr=False)
class Coverage(Reported):
    """How often intervals of several kinds contain the truth, at several n. It prints as a table.

    Attributes
    ----------
    probability, probability_error : arrays (N, K, q)
        For each n, kind and parameter the coverage probability, estimated by the fraction of the data sets whose interval
        contains the truth, those without an interval counted as not covering, and its Monte Carlo standard error.
    length, length_error : arrays (N, K, q)
        Mean length of the finite intervals, in the parameter's unit, and its error.
    num_without : integer array (N, K, q)
        Data sets without an interval: the fit failed, or an end is NaN.
    num_unbounded : integer array (N, K, q)
        Intervals with an end at infinity, which have no length.
    num_data_sets : integer array (N, K)
        The number of data sets behind each probability.
    num_observations : tuple of int
    kinds : tuple of str
    names : tuple of str
    level : float
        The nominal coverage.
    """

    probability: Any
    probability_error: Any
    length: Any
    length_error: Any
    num_without: Any
    num_unbounded: Any
    num_data_sets: Any
    num_observations: tuple[int, ...]
    kinds: tuple[str, ...]
    names: tuple[str, ...]
    level: float

    @entry_point
    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each n, parameter and kind (needs the extra `frames`)."""
        pd = require("pandas", "frames")
        axes = [self.num_observations, self.kinds, self.names]
        index = pd.MultiIndex.from_product(axes, names=["num_observations", "kind", "name"])
        columns = ("probability", "probability_error", "length", "length_error", "num_without", "num_unbounded")
        frame = pd.DataFrame({column: np.ravel(getattr(self, column)) for column in columns}, index=index)
        return frame.assign(num_data_sets=np.repeat(np.ravel(self.num_data_sets), len(self.names)))

    def summary(self) -> Report:
        def cell(index: tuple[int, int, int]) -> str:
            length = float(self.length[index])
            probability = f"{100 * self.probability[index]:.1f} ± {100 * self.probability_error[index]:.1f}"
            return f"{probability}; {'-' if np.isnan(length) else f'{length:.3g}'}"

        kinds, sizes = range(len(self.kinds)), list(enumerate(self.num_observations))
        rows = [
            (name, str(n), *(cell((i, k, j)) for k in kinds)) for j, name in enumerate(self.names) for i, n in sizes
        ]
        most = int(np.max(self.num_data_sets))
        counts = [f"{most} at each n"]
        for kind, numbers in zip(self.kinds, self.num_data_sets.T, strict=True):
            if np.min(numbers) < most:
                counts.append(f"{kind} " + " to ".join(map(str, np.unique([np.min(numbers), np.max(numbers)]))))
        facts = [
            ("Data sets", ", ".join(counts)),
            ("Cells", "coverage probability in per cent; mean length"),
        ]
        without = [
            f"{missing} of {self.num_data_sets[i, k]} at n = {n}, {self.kinds[k]}"
            for i, n in sizes
            for k in kinds
            if (missing := int(np.max(self.num_without[i, k])))
        ]
        notes = []
        if without:
            notes.append(f"without an interval, and counted as not covering: {'; '.join(without)}.")
        if unbounded := int(np.sum(self.num_unbounded)):
            notes.append(f"{unbounded} intervals have an end at infinity; they are left out of the mean lengths.")
        title = f"Coverage of nominal {percent(self.level)} intervals"
        return Report(title, facts, [ReportTable(("parameter", "n", *self.kinds), rows)], notes)


_STATIC = ("num_observations", "kinds", "names", "level")
jax.tree_util.register_dataclass(Coverage, [f.name for f in fields(Coverage) if f.name not in _STATIC], list(_STATIC))


@entry_point
def coverage(
    model: Model | Callable[..., Any],
    params: PyTree,
    key: Array,
    *,
    num_observations: int | Sequence[int] | None = None,
    num_replicates: int = 2000,
    level: float = 0.95,
    kinds: str | Sequence[str] = ("wald", "profile"),
    given: PyTree = None,
    num_bootstraps: int = 999,
    num_bootstrapped: int = 200,
) -> Coverage:
    """Draw many data sets, compute intervals from each, and count how often they contain the true parameters.

    Parameters
    ----------
    model, params, key, given
        As for `sampling_distribution`; at a single n the same key gives the same data sets.
    num_observations : int or sequence of int
        One n or several; with `given` its number of rows or multiples of it.
    num_replicates : int
        How many data sets at each n.
    level : float
        The nominal coverage.
    kinds : str or sequence of str
        ``"wald"`` (from the observed information; also called ``"observed"``), ``"expected"``, ``"empirical"``, ``"sandwich"``,
        computed on the unconstrained scale, or symmetric on that of the parameters as ``"wald natural"`` and so on;
        ``"profile"``; and by bootstrap ``"percentile"``, ``"basic"`` and ``"bca"``.
    num_bootstraps, num_bootstrapped : int
        Replicates of each bootstrap, and how many of the data sets are bootstrapped, since each takes a batch of fits.

    Returns
    -------
    Coverage
        Coverage probabilities and mean lengths with Monte Carlo errors, by n, kind and parameter. Data sets without an interval
        (a failed fit, an end that could not be computed) count as not covering; their number is given. It prints as a table.

    Raises
    ------
    ValueError, TypeError
        If the model has no sampler, a kind is unknown, or the arguments do not fit together.

    References
    ----------
    Brown, L. D., Cai, T. T. and DasGupta, A. (2001), Statist. Sci. 16, 101-133: the difference between nominal and actual coverage.

    Examples
    --------
    >>> import fisher_jax as fj, jax
    >>> covered = fj.coverage(
    ...     fj.families.exponential, {"rate": 2.0}, jax.random.key(0), num_observations=20, num_replicates=500, kinds="wald"
    ... )
    >>> print(covered.probability.shape, abs(covered.probability[0, 0, 0] - 0.95) < 0.05)
    (1, 1, 1) True
    """
    check_level(level)
    check_key(key)
    experiments = [make_experiment(model, params, given, n) for n in check_sizes(num_observations)]
    kinds = _check_kinds(kinds, experiments[0])
    count = check_count(num_replicates, 1, "num_replicates")
    num_bootstraps = check_count(num_bootstraps, 2, "num_bootstraps")
    num_bootstrapped = min(count, check_count(num_bootstrapped, 1, "num_bootstrapped"))
    keys = [key] if len(experiments) == 1 else [jax.random.fold_in(key, k) for k in range(len(experiments))]
    sums = np.stack(
        [
            _simulate(experiment, key_of_size, count, level, kinds, num_bootstraps, num_bootstrapped)
            for experiment, key_of_size in zip(experiments, keys, strict=True)
        ]
    )
    data_sets, covered, without, finite, lengths, squares = np.moveaxis(sums, 2, 0)
    probability = covered / data_sets
    smoothed = (covered + 1) / (data_sets + 2)  # so that the error of a probability of one is not zero
    with np.errstate(invalid="ignore", divide="ignore"):
        length = lengths / finite
        variance = np.maximum(squares / finite - length**2, 0.0) / finite
    return Coverage(
        probability=probability,
        probability_error=np.sqrt(smoothed * (1 - smoothed) / data_sets),
        length=length,
        length_error=np.sqrt(variance),
        num_without=without.astype(int),
        num_unbounded=(data_sets - finite - without).astype(int),
        num_data_sets=data_sets[..., 0].astype(int),
        num_observations=tuple(experiment.num_observations for experiment in experiments),
        kinds=kinds,
        names=experiments[0].layout.names,
        level=float(level),
    )


def _check_kinds(kinds: Any, experiment: Experiment) -> tuple[str, ...]:
    kinds = tuple(kinds) if isinstance(kinds, list | tuple) else (kinds,)
    if not kinds or len(set(kinds)) < len(kinds):
        raise ValueError(f"kinds={kinds} must be one or more different kinds of intervals.")
    for kind in kinds:
        bare = str(kind).removesuffix(NATURAL)
        if bare not in ALL_KINDS or (bare != kind and bare in ("profile", *BY_BOOTSTRAP)):
            raise ValueError(
                f"kinds names {kind!r}; choose from {', '.join(map(repr, ALL_KINDS))}, and Wald's kinds followed by "
                f"{NATURAL!r}."
            )
        if bare == "expected" and not has_closed_form(experiment.model):
            raise ValueError(
                'kinds names "expected", but the model has no closed form of its information. Give '
                "Model(…, information=…), or choose another kind."
            )
    return kinds


def _simulate(
    experiment: Experiment,
    key: Array,
    count: int,
    level: float,
    kinds: tuple[str, ...],
    num_bootstraps: int,
    num_bootstrapped: int,
) -> Float[np.ndarray, "k 6 q"]:
    """Sums over the data sets of one size, by kind and parameter.

    The numbers of data sets, of intervals that cover, of missing ones and of finite ones; the sums of the finite lengths and of
    their squares.
    """
    bootstrap_key, done = key_for_other_draws(key), 0
    sums = np.zeros((len(kinds), 6, len(experiment.truth)))
    covariances = tuple({_covariance(kind) for kind in kinds} | {"observed"})
    by_bootstrap = [kind for kind in kinds if kind in BY_BOOTSTRAP]
    for data in draw_blocks(experiment, key, count):
        fits = fit_batch(experiment.model, experiment.params, data, given=experiment.given, covariances=covariances)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FitWarning)  # failed fits and missing ends are counted
            ends = {kind: _ends(fits, kind, level) for kind in kinds if kind not in BY_BOOTSTRAP}
            first = fits[: max(0, num_bootstrapped - done)]
            ends |= {kind: np.full((len(first), len(experiment.truth), 2), np.nan) for kind in by_bootstrap}
            for k in np.flatnonzero(first.converged).tolist() if by_bootstrap else ():
                replicates = bootstrap(first[k], jax.random.fold_in(bootstrap_key, done + k), num_bootstraps)
                for kind in by_bootstrap:  # all from the same replicates
                    ends[kind][k] = replicates.flat_intervals(level, kind)
        for k, kind in enumerate(kinds):
            lower, upper = np.moveaxis(ends[kind], -1, 0)
            covers = (lower <= experiment.truth) & (experiment.truth <= upper)
            missing = np.isnan(lower) | np.isnan(upper)
            finite = np.isfinite(upper - lower)
            lengths = np.where(finite, upper - lower, 0.0)
            columns = (np.ones_like(lengths), covers, missing, finite, lengths, lengths**2)
            sums[k] += np.sum(np.stack(columns), axis=1)
        done += len(fits)
    return sums


def _covariance(kind: str) -> str:
    """The covariance behind a kind of interval: its own, or for profiles and bootstraps that which every fit has."""
    bare = kind.removesuffix(NATURAL)
    return bare if bare in KINDS else "observed"


def _ends(fits: Fit, kind: str, level: float) -> Float[np.ndarray, "c q 2"]:
    """The intervals of every fit, Wald's or by profile; NaN where there is none."""
    if kind == "profile":
        intervals = fits.confidence_intervals(level=level, method="profile")
    else:
        scale = "natural" if kind.endswith(NATURAL) else "unconstrained"
        intervals = fits.confidence_intervals(_covariance(kind), level=level, scale=scale)  # type: ignore[arg-type]
    ends = np.asarray(jax.vmap(jax.vmap(fits.layout.flatten, -1, -1))(intervals), float)
    # A profile needs no curvature at the estimate, so that one may exist where the fit has not converged.
    return ends if kind == "profile" else np.where(fits.converged[:, None, None], ends, np.nan)
