"""`goodness_of_fit`: how far the data are from the fitted model, among data sets drawn from it.

A distance between the data and a model that was fitted to them is smaller than one to the true distribution, so that tables of the
latter reject far too rarely, and how much smaller depends on the family, on the parameters and on n. The parametric bootstrap needs
no table: data sets are drawn from the model at the estimate and fitted in one batch, each has its distance to its own fit, and the
p-value is the rank of the data's, p = (1 + #{T* ≥ T}) / (B + 1) over B replicates (Stute, González Manteiga and Presedo Quindimil
1993). Of families of location and scale, whose distances do not depend on the parameters, it is exact.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from fisher_jax.checking import distances
from fisher_jax.checking.frequencies import are_counts, bins_of, chi_square_of_bins
from fisher_jax.checking.integral_transform import Transform, check_transform, integral_transform
from fisher_jax.checking.quantile_comparison import with_rows_for_weights
from fisher_jax.checking.residuals import MeanResiduals
from fisher_jax.errors import (
    call_user,
    check_choice,
    check_count,
    check_key,
    check_level,
    entry_point,
    kind_of,
    require,
    shown,
    warn,
)
from fisher_jax.fitting.map_fits import check_fit, with_data
from fisher_jax.fitting.result import Fit, origin_of
from fisher_jax.inference.replicates import failures, given_of_draws, refits_of_drawn, refits_of_each, schemes_of
from fisher_jax.models.auxiliary import without_auxiliary
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.model import Model
from fisher_jax.models.programs import UserFunction
from fisher_jax.reporting import Report, Reported, ReportTable, listed, percent, with_error

FEWEST = 19  # replicates by which a p-value could be 5 %
Alternative = Literal["greater", "less", "two-sided"]
Statistic = str | Callable[..., Any]

_DISTANCES: dict[str, distances.Distance] = {
    "kolmogorov_smirnov": distances.kolmogorov_smirnov,
    "anderson_darling": distances.anderson_darling,
    "cramer_von_mises": distances.cramer_von_mises,
}
_TITLES = {
    "kolmogorov_smirnov": "Kolmogorov-Smirnov",
    "anderson_darling": "Anderson-Darling",
    "cramer_von_mises": "Cramér-von Mises",
    "chi_square": "Pearson's χ² of bins",
    "dispersion": "dispersion",
    "zeros": "zeros beyond expectation",
}
STATISTICS = tuple(_TITLES)
# Too little is as wrong as too much; of the others only large values speak against the model.
_TWO_SIDED = ("dispersion", "zeros")


@dataclass(frozen=True, repr=False, eq=False)
class GoodnessOfFit(Reported):
    """Statistics of the data beside those of replicates from the fitted model. It prints as a table.

    Of many fits every array has their axis first; those that did not converge have NaN.

    Attributes
    ----------
    statistics : tuple of str
        The names of the k statistics.
    value : array (k,), or (B, k)
        Those of the data.
    p_value : array (k,), or (B, k)
        The fraction of the replicates and the data whose statistic is at least as extreme; NaN where the statistic is, or fewer
        than 19 replicates have one.
    p_value_error : array like `p_value`
        Its standard error over other keys.
    replicates : array (R, k), or (B, R, k)
        Those of the replicates, each at its own estimate; NaN where its fit failed or the statistic is not a number.
    alternatives : tuple of str
        Which values count as extreme.
    num_failed : int, or array (B,)
        How many replicates' fits failed; they are left out.
    notes : tuple of str
    """

    statistics: tuple[str, ...]
    value: np.ndarray
    p_value: np.ndarray
    replicates: np.ndarray
    alternatives: tuple[str, ...]
    num_failed: Any
    notes: tuple[str, ...]

    @property
    def num_replicates(self) -> int:
        """How many data sets were drawn, for each fit."""
        return int(self.replicates.shape[-2])

    @property
    def p_value_error(self) -> np.ndarray:
        """The standard error of the p-values: that of a fraction of as many replicates, of two-sided ones of twice a fraction."""
        count = np.sum(~np.isnan(self.replicates), axis=-2) + 1
        sides = np.where(np.array(self.alternatives) == "two-sided", 2, 1)
        return np.sqrt(self.p_value * (sides - self.p_value) / count)

    @entry_point
    def critical_values(self, level: float = 0.05) -> Float[np.ndarray, "*b k"]:
        """What each statistic exceeds with this probability if the model is right: quantiles of the replicates.

        Parameters
        ----------
        level : float
            The probability of rejecting a right model, by large values.

        Notes
        -----
        Where (B + 1) level is a whole number m it is the m-th largest of the B replicates, which a statistic exceeds exactly where
        its p-value by large values is `level` or less.
        """
        check_level(level)
        missing = np.all(np.isnan(self.replicates), axis=-2, keepdims=True)
        quantiles = np.nanquantile(np.where(missing, 0.0, self.replicates), 1 - level, axis=-2, method="weibull")
        return np.where(missing[..., 0, :], np.nan, quantiles)

    def summary(self) -> Report:
        """The statistics with their p-values; of many fits how many reject."""
        facts = [
            ("Null hypothesis", "the data come from the model, at some parameters"),
            ("Replicates", f"{self.num_replicates} data sets drawn at the estimate, each fitted again"),
        ]
        if self.value.ndim == 2:
            facts.insert(1, ("Fits", f"{len(self.value)}, each with its replicates"))
            tested = np.sum(~np.isnan(self.p_value), axis=0)
            rows = []
            for k, name in enumerate(self.statistics):
                below = [int(np.sum(self.p_value[:, k] <= level)) for level in (0.05, 0.01)]
                rows.append((_TITLES.get(name, name), str(tested[k]), *(str(count) for count in below)))
            table = ReportTable(("statistic", "tests", "p up to 0.05", "p up to 0.01"), rows)
            return Report("Goodness of fit", facts, [table], self.notes)
        critical = self.critical_values(0.05)
        lines: list[tuple[Any, ...]] = []
        for k, name in enumerate(self.statistics):
            critical_value = critical[k] if self.alternatives[k] == "greater" else np.nan
            p_value = with_error(self.p_value[k], self.p_value_error[k])
            lines.append((_TITLES.get(name, name), self.value[k], critical_value, p_value, self.alternatives[k]))
        columns = ("statistic", "value", f"upper {percent(0.05)}", "p-value", "extreme if")
        return Report("Goodness of fit", facts, [ReportTable(columns, lines)], self.notes)

    @entry_point
    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each statistic, of many fits for each fit and statistic (needs the extra `frames`)."""
        pd = require("pandas", "frames")
        columns = {name: getattr(self, name).ravel() for name in ("value", "p_value", "p_value_error")}
        if self.value.ndim == 1:
            return pd.DataFrame(columns, index=pd.Index(self.statistics, name="statistic"))
        index = pd.MultiIndex.from_product([range(len(self.value)), self.statistics], names=["fit", "statistic"])
        return pd.DataFrame(columns, index=index)


@entry_point
def goodness_of_fit(
    fit: Fit,
    statistic: Statistic | Sequence[Statistic] | Mapping[str, Statistic] = "anderson_darling",
    *,
    key: Array,
    num_replicates: int = 999,
    num_bins: int | None = None,
    alternative: Alternative | None = None,
    devices: int | Sequence[jax.Device] | None = None,
) -> GoodnessOfFit:
    """Test whether the data can have come from the model, by statistics of data sets drawn from it and fitted again.

    Parameters
    ----------
    fit : Fit
        As `fit` returned it, of a model that has a sampler; it must have converged. Or many, as `fit_batch` returned them, of which
        each is tested: the replicates of all are one batch.
    statistic : str or callable, or several in a sequence or a dictionary
        All share the replicates.

        - "kolmogorov_smirnov", "anderson_darling", "cramer_von_mises": distances between u = F(y; θ̂, z) and the uniform
          distribution, by the distribution function of the model; with covariates, too. Anderson-Darling's weighs the tails.
        - "chi_square": Σ (observed − expected)² / expected over bins: of values where these are counts, else of u, of equal length.
        - "dispersion": Σ (y − μ)² / V / (n − p), with the variance V of the family and p the number of its free parameters; about 1
          under the model. For counts: of a family with a scale parameter it shows little.
        - "zeros": the number of zeros less the expected one.
        - a function ``statistic(params, data)`` or ``statistic(params, data, given)`` that returns one number of a data set at its
          estimate, in `jax.numpy`.
    key : jax.random.key
        The same key gives the same replicates. Of many fits those of the k-th are drawn with ``jax.random.fold_in(key, k)``.
    num_replicates : int
        B, at least 19. The p-value has the standard error √(p (1 − p) / (B + 1)), two-sided √(p (2 − p) / (B + 1)).
    num_bins : int, optional
        Of "chi_square"; by default 2 n^{2/5}, and at most n/5. Bins of counts are of values, each expected to have at least a
        fraction 1/`num_bins` of the observations, so that there may be fewer.
    alternative : {"greater", "less", "two-sided"}, optional
        Which values of the statistics speak against the model: by default "greater", and "two-sided" of "dispersion" and "zeros",
        twice the smaller of the two fractions.
    devices : int, or sequence of jax.Device, optional
        As for `fit_batch`.

    Returns
    -------
    GoodnessOfFit
        It prints. Replicates whose fit failed are left out and counted, with a `FitWarning`.

    Raises
    ------
    ValueError, TypeError
        If the fit did not converge, the model has no sampler, or it lacks what the statistic needs.

    Notes
    -----
    Valid for composite hypotheses: the parameters of each replicate are estimated as those of the data were. The fraction of right
    models rejected is the nominal one up to O(1/n), exactly so in families of location and scale.

    For counts the distances take u at the whole jump of F, without random numbers: the same data have the same value. Whole-number
    weights are so many equal observations. Of a `dependent` model u is that of y_t given the values before, which needs
    ``log_cdf=`` of its terms and a sampler of the whole series.

    A large p-value is no proof of the model: `residuals`, `quantile_comparison` and their plots show where it fails.

    References
    ----------
    Stute, W., González Manteiga, W. and Presedo Quindimil, M. (1993), Bootstrap based goodness-of-fit-tests, Metrika 40, 243-256;
    Stephens, M. A. (1974), EDF statistics for goodness of fit and some comparisons, J. Amer. Statist. Assoc. 69, 730-737;
    Czado, C., Gneiting, T. and Held, L. (2009), Predictive model assessment for count data, Biometrics 65, 1254-1261;
    Moore, D. S. (1986), in D'Agostino and Stephens, Goodness-of-Fit Techniques, chapter 3, for the number of bins.

    Examples
    --------
    >>> import fisher_jax as fj, jax
    >>> draw = lambda key: fj.families.weibull.sample(key, {"shape": 3.0, "scale": 1.0})
    >>> data = jax.vmap(draw)(jax.random.split(jax.random.key(1), 60))
    >>> fit = fj.fit(fj.families.exponential, None, data)
    >>> test = fj.goodness_of_fit(fit, ["anderson_darling", "kolmogorov_smirnov"], key=jax.random.key(2), num_replicates=199)
    >>> print(test.p_value)
    [0.005 0.005]
    """
    check_fit(fit)
    model, dataset = origin_of(fit)
    check_key(key)
    statistics = _named(statistic)
    if alternative is not None:
        check_choice(alternative, get_args(Alternative), "alternative")
    size = max(len(fit), 1) if fit.has_batch else 1
    count = check_count(num_replicates, FEWEST, "num_replicates", entries=size * len(statistics))
    if num_bins is not None:
        check_count(num_bins, 2, "num_bins")
    for name, function in statistics.items():
        if isinstance(function, str):
            _check_statistic(name, function, model, dataset)
    if not np.any(fit.converged):
        which = "there is no fit in this batch that converged. See its `status` and `summary()`."
        raise ValueError(which if fit.has_batch else f"needs a fit that converged. {fit.diagnosis()}")
    if fit.has_batch:
        if dataset.weights is not None and not np.all(np.isin(dataset.weights, (0.0, 1.0))):
            raise ValueError(
                "observations of a batch have weights other than 0 and 1. Take each fit by itself, as fits[3]."
            )
    else:
        fit = replace(fit, origin=with_rows_for_weights(fit))
    given_of_draws(origin_of(fit[0] if fit.has_batch else fit))  # raises where the model has no sampler

    converged = np.flatnonzero(np.atleast_1d(fit.converged))
    some = fit[converged] if fit.has_batch else fit
    bins = _Bins(some, num_bins) if "chi_square" in statistics.values() else None
    value = _evaluate(statistics, some, bins, np.arange(len(converged)))
    settings = {"covariances": (), "devices": devices}
    if fit.has_batch:
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.asarray(converged))
        schemes = schemes_of(some, "parametric", None, None)
        refits = refits_of_each(some, schemes, keys, count, "parametric", **settings)
    else:
        refits = refits_of_drawn(fit, origin_of(fit), key, count, **settings)
    parts, failed, words, done = [], [], [], 0
    for fits in refits:
        of_part = _evaluate(statistics, fits, bins, np.arange(done, done + len(fits)) // count)
        parts.append(np.where(np.asarray(fits.converged)[:, None], of_part, np.nan))
        failed.append(~np.asarray(fits.converged))
        words.append(failures(fits))
        done += len(fits)
    replicates, did_fail = np.concatenate(parts), np.concatenate(failed)
    num_failed: Any = np.sum(did_fail.reshape(-1, count), axis=1)
    notes = _notes(fit, statistics, value, replicates, did_fail, words)
    alternatives = tuple(
        alternative or ("two-sided" if function in _TWO_SIDED else "greater") for function in statistics.values()
    )
    if fit.has_batch:
        value = _in_places(value, converged, len(fit), np.nan)
        replicates = _in_places(replicates.reshape(len(converged), count, -1), converged, len(fit), np.nan)
        num_failed = _in_places(num_failed, converged, len(fit), 0)
    else:
        value, num_failed = value[0], int(num_failed[0])
    p_value = _rank(value, replicates, alternatives)
    if notes:
        warn(" ".join(notes))
    return GoodnessOfFit(tuple(statistics), value, p_value, replicates, alternatives, num_failed, notes)


def _named(statistic: Any) -> dict[str, Any]:
    """The statistics by name; raise for what is none."""
    several: Any = statistic
    if isinstance(statistic, str) or callable(statistic):
        several = [statistic]
    if isinstance(several, Mapping):
        named = {str(name): function for name, function in several.items()}
    elif isinstance(several, list | tuple):
        named = {
            function if isinstance(function, str) else getattr(function, "__name__", kind_of(function)): function
            for function in several
        }
        if len(named) < len(several):
            raise ValueError("several statistics have one name. Give them in a dictionary, by names of your own.")
    else:
        named = {}
    if not named:
        raise TypeError(
            f"statistic={shown(statistic)} must be one of {', '.join(map(repr, STATISTICS))}, a function of params and data, or "
            "several in a list or a dictionary."
        )
    for function in named.values():
        if isinstance(function, type) or not callable(function):
            check_choice(function, STATISTICS, "statistic", " Or give a function of params and data.")
    return named


def _check_statistic(name: str, function: str, model: Model, dataset: Dataset) -> None:
    """Raise where the model lacks what a statistic needs."""
    of_rows, data = without_auxiliary(model, dataset.data)
    if function == "dispersion":  # checked where its residuals are made
        return
    if function == "zeros":
        if not of_rows.discrete or of_rows.is_dependent or len(jax.tree.leaves(data)) != 1:
            raise ValueError('"zeros" is a statistic of independent counts: of a model with discrete=True.')
        return
    check_transform(model, dataset)
    if function == "chi_square" and of_rows.discrete and of_rows.is_dependent:
        raise ValueError(
            '"chi_square" of counts compares them with those of independent observations. Take "cramer_von_mises".'
        )


class _Bins:
    """The bins of "chi_square" of each tested fit, the same for its replicates: values of a count, or equal parts of u."""

    def __init__(self, fit: Fit, num_bins: int | None):
        n = np.atleast_1d(np.asarray(fit.num_observations, float))
        by_size = np.maximum(2, np.minimum(2 * n**0.4, n / 5).astype(int))
        self.numbers = np.full(len(n), num_bins) if num_bins else by_size
        self.ends = bins_of(fit, self.numbers) if are_counts(fit) else None
        if self.ends is not None and np.all(np.isnan(self.ends)):
            raise ValueError("the counts do not suffice for two bins. Give a smaller num_bins, or another statistic.")

    def chi_square(self, fit: Fit, tested: Int[np.ndarray, " r"]) -> Float[np.ndarray, " r"]:
        """Σ (observed − expected)² / expected of each fit, in the bins of the tested ones of these numbers."""
        if self.ends is not None:
            return chi_square_of_bins(fit, self.ends[tested])
        (transform, is_missing), numbers = _transform_of(fit), self.numbers[tested]
        result = np.empty(len(numbers))
        for number in np.unique(numbers):
            rows = numbers == number
            counts = distances.counts_in_bins(Transform(*(end[rows] for end in transform)), int(number))
            expected = counts.sum(axis=-1, keepdims=True) / number
            result[rows] = np.sum((counts - expected) ** 2 / expected, axis=-1)
        return np.where(is_missing, np.nan, result)


def _transform_of(fit: Fit) -> tuple[Transform, Bool[np.ndarray, " r"]]:
    """The transform of the data of each fit, of one fit in one row; and where it is lost, since a row that counts has none."""
    transform = Transform(*map(np.atleast_2d, integral_transform(fit)))
    weights = origin_of(fit).dataset.weights
    counted = True if weights is None else np.atleast_2d(np.asarray(weights)) > 0
    is_missing = np.any(np.isnan(transform.log_low) & counted, axis=-1)
    return Transform(*(np.where(is_missing[:, None], np.log(0.5), end) for end in transform)), is_missing


def _evaluate(
    statistics: dict[str, Any], fit: Fit, bins: _Bins | None, tested: Int[np.ndarray, " r"]
) -> Float[np.ndarray, "r k"]:
    """The statistics of each fit's data at its estimate, of one fit in one row; `tested` are the numbers of these fits."""
    transform: Any = None
    is_missing: Any = None
    if any(function in _DISTANCES for function in statistics.values()):
        transform, is_missing = _transform_of(fit)
    columns = []
    for name, function in statistics.items():
        if function in _DISTANCES:
            columns.append(np.where(is_missing, np.nan, _DISTANCES[function](transform)))
        elif function == "chi_square":
            assert bins is not None
            columns.append(bins.chi_square(fit, tested))
        elif function == "dispersion":
            columns.append(with_data(fit, _Dispersion()))
        elif function == "zeros":
            columns.append(with_data(fit, _Zeros()))
        else:
            columns.append(with_data(fit, _OfUser(function, name)))
    return np.stack([np.atleast_1d(np.asarray(column, float)) for column in columns], axis=-1)


@dataclass(frozen=True)
class _Dispersion:
    """Σ (y − μ)² / V / (n − p), for `map_fits.with_data`."""

    def __call__(self, fit: Fit, model: Model, dataset: Dataset) -> Float[Array, ""]:
        squares = MeanResiduals("pearson", '"dispersion"')(fit, model, dataset)[1] ** 2
        weights = jnp.ones_like(squares) if dataset.weights is None else dataset.weights
        return jnp.sum(jnp.where(weights > 0, weights * squares, 0.0)) / (jnp.sum(weights) - fit.num_parameters)


@dataclass(frozen=True)
class _Zeros:
    """#{y = 0} − Σ P(Y = 0; zᵢ), for `map_fits.with_data`."""

    def __call__(self, fit: Fit, model: Model, dataset: Dataset) -> Float[Array, ""]:
        params, given = fit.layout.assemble(fit.values), () if dataset.given is None else (dataset.given,)
        model, data = without_auxiliary(model, dataset.data)
        (y,) = jax.tree.leaves(data)

        def of_one(y: Array, *z: PyTree) -> Float[Array, ""]:
            mass = jnp.exp(call_user(model.log_density, (params, jnp.zeros((), fit.layout.dtype), *z), "log_density"))
            return (y == 0) - mass

        excess = jax.vmap(of_one)(y, *given)
        return jnp.sum(excess if dataset.weights is None else excess * dataset.weights)


@dataclass(frozen=True)
class _OfUser:
    """A user's function of the parameters and the data, for `map_fits.with_data`."""

    function: UserFunction
    name: str

    def __call__(self, fit: Fit, model: Model, dataset: Dataset) -> Float[Array, ""]:
        if dataset.weights is not None and not model.is_dependent:
            raise ValueError("a function of the data needs fits without weights. Take each by itself, as fits[3].")
        given = () if dataset.given is None else (dataset.given,)
        arguments = fit.layout.assemble(fit.values), dataset.data, *given
        value = jnp.asarray(call_user(self.function, arguments, f"statistic {self.name}"))
        if value.shape != ():
            raise ValueError(f"statistic {self.name} must return one number, but returned shape {value.shape}.")
        return value.astype(fit.layout.dtype)


def _notes(
    fit: Fit,
    statistics: dict[str, Any],
    value: np.ndarray,
    replicates: np.ndarray,
    did_fail: np.ndarray,
    words: list[str],
) -> tuple[str, ...]:
    """What is left out, in sentences; `words` state by which status the fits of each part failed."""
    notes, total = [], len(replicates)
    if fit.has_batch and not np.all(fit.converged):
        num = int(np.sum(~np.asarray(fit.converged)))
        notes.append(f"{num} of {len(fit)} fits did not converge and are not tested.")
    if np.any(did_fail):
        kinds = "; ".join(dict.fromkeys(word for word in words if word))
        notes.append(
            f"of the replicates' fits {np.sum(did_fail)} of {total} failed ({kinds}). They are left out of the p-values."
        )
    missing = np.any(np.isnan(value), axis=0)
    if np.any(missing):
        names = [name for name, is_missing in zip(statistics, missing, strict=True) if is_missing]
        notes.append(
            f"{listed(names)} of the data is not a number, as where log_cdf is NaN at an observation: there is no p-value."
        )
    if num := int(np.sum(np.any(np.isnan(replicates[~did_fail]), axis=1))):
        notes.append(f"statistics of {num} of {total} replicates are not numbers, and are left out.")
    return tuple(notes)


def _in_places(array: np.ndarray, places: np.ndarray, count: int, fill: Any) -> np.ndarray:
    whole = np.full((count, *array.shape[1:]), fill, array.dtype)
    whole[places] = array
    return whole


def _rank(
    value: Float[np.ndarray, "*b k"], replicates: Float[np.ndarray, "*b r k"], alternatives: tuple[str, ...]
) -> Float[np.ndarray, "*b k"]:
    """The fraction of the replicates and the data that are at least as extreme."""
    value = value[..., None, :]
    count = np.sum(~np.isnan(replicates), axis=-2)
    # The same counts in another order have the same statistic as accurately as they are fitted.
    slack = 1e-6 * np.where(np.isfinite(value), np.abs(value), 0.0)
    with np.errstate(invalid="ignore"):
        above = (1 + np.sum(replicates >= value - slack, axis=-2)) / (count + 1)
        below = (1 + np.sum(replicates <= value + slack, axis=-2)) / (count + 1)
    kinds = np.array(alternatives)
    both = np.minimum(1.0, 2 * np.minimum(above, below))
    p_value = np.where(kinds == "greater", above, np.where(kinds == "less", below, both))
    return np.where((count >= FEWEST) & ~np.isnan(value[..., 0, :]), p_value, np.nan)
