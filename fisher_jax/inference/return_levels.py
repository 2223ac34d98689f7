"""`return_levels`: values that are exceeded once in so many periods on average, with their uncertainty.

The level of period T is z = F⁻¹(1 − 1/(λT)), λ being the number of observations in a unit of T: one for maxima of years, the number
of excesses a year for a threshold model, to whose level the threshold is added. These are eqs (3.4), (4.12) and (4.13) of
Coles, S. (2001), An Introduction to Statistical Modeling of Extreme Values.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from fisher_jax.errors import check_choice, check_level, entry_point, is_number, require, shown, to_numpy
from fisher_jax.fitting import covariance as covariances
from fisher_jax.fitting.covariance import CovarianceKind
from fisher_jax.fitting.intervals import normal_quantile
from fisher_jax.fitting.map_fits import check_fit, of_each
from fisher_jax.fitting.result import Fit, origin_of
from fisher_jax.inference.bootstrap import Bootstrap
from fisher_jax.inference.predicted_rows import as_table, predictor_of
from fisher_jax.models.model import check_quantile
from fisher_jax.models.programs import ById, call_differentiable
from fisher_jax.profile.profile_likelihood import profile_likelihood
from fisher_jax.reporting import Report, Reported, ReportTable, number, percent

Method = Literal["delta", "profile", "bootstrap"]


@dataclass(frozen=True, repr=False)
class ReturnLevels(Reported):
    """Return levels with standard errors and intervals. It prints as a table. Of many fits arrays have a leading axis B.

    Attributes
    ----------
    periods : array (k,)
        In the unit of which `rate` counts observations.
    value, standard_error : arrays (k,)
        The levels, in the unit of the observations. Standard errors are by the delta method, or over the replicates.
    interval : array (k, 2)
        Lower and upper ends. Infinite where a profile never falls to its cut-off; NaN where an end was not reached.
    threshold, rate, rate_error : float
        As given.
    level : float
        The coverage aimed at.
    method : str
        How the intervals were made.
    description : str
        Of which covariance, profile or replicates.
    notes : tuple of str
        What limits the result.
    """

    periods: np.ndarray
    value: np.ndarray
    standard_error: np.ndarray
    interval: np.ndarray
    threshold: float
    rate: float
    rate_error: float
    level: float
    method: str
    description: str
    notes: tuple[str, ...]

    def summary(self) -> Report:
        """A table of periods, levels, standard errors and intervals; of many fits their medians."""
        columns = [self.value, self.standard_error, self.interval[..., 0], self.interval[..., 1]]
        numbers, caption = np.stack(columns, axis=-1), ""
        facts = [("Intervals", f"{self.method}, {self.description}")]
        if self.rate != 1.0 or self.rate_error:
            error = f" ± {self.rate_error:.3g}" if self.rate_error else ", taken as known,"
            facts.append(("Observations", f"{self.rate:.6g}{error} in a unit of the period"))
        if self.threshold:
            facts.append(("Threshold", f"{self.threshold:g}"))
        if numbers.ndim == 3:
            facts.insert(0, ("Fits", str(len(numbers))))
            caption = "medians over the fits, of those that have all numbers"
            whole = numbers[~np.any(np.isnan(numbers), axis=(1, 2))]
            numbers = np.median(whole, axis=0) if len(whole) else np.full(numbers.shape[1:], np.nan)
        titles = ("period", "level", "std. error", *(f"{end} {percent(self.level)}" for end in ("lower", "upper")))
        rows = [(number(period), *row) for period, row in zip(self.periods, numbers, strict=True)]
        keys = ("level", "standard_error", "lower", "upper")
        return Report("Return levels", facts, [ReportTable(titles, rows, caption, keys=keys)], self.notes)

    @entry_point
    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each period, of many fits for each fit and period (needs the extra `frames`)."""
        pd = require("pandas", "frames")
        columns = {"level": self.value, "standard_error": self.standard_error}
        columns |= {"lower": self.interval[..., 0], "upper": self.interval[..., 1]}
        index = pd.Index(self.periods, name="period")
        if self.value.ndim == 2:
            index = pd.MultiIndex.from_product([range(len(self.value)), self.periods], names=["fit", "period"])
        return pd.DataFrame({name: np.ravel(column) for name, column in columns.items()}, index=index)


@entry_point
def return_levels(
    fit: Fit,
    periods: ArrayLike,
    *,
    given: PyTree = None,
    threshold: float = 0.0,
    rate: float = 1.0,
    rate_error: float = 0.0,
    kind: CovarianceKind | None = None,
    level: float = 0.95,
    method: Method = "delta",
    replicates: Bootstrap | None = None,
) -> ReturnLevels:
    """The levels that are exceeded once in each of these periods on average, z_T = u + F⁻¹(1 − 1/(λT); θ̂).

    Parameters
    ----------
    fit : Fit
        One or many, of any model with a quantile function: `families.gev`, `gumbel`, `generalized_pareto`, or your own.
    periods : array (k,)
        T, for example in years: each longer than the time between two observations, 1/λ.
    given : pytree, optional
        Covariates of one observation, at which the levels of a model with covariates are meant. For a model from a formula the
        columns of the formula, ``{"year": 2020.0}``, or a table of one row.
    threshold : float
        u, which is added: that of a model of excesses.
    rate : float
        λ, the observations per unit of T: of excesses of a threshold their number divided by the length of the record.
    rate_error : float
        Its standard error, by which the delta method adds (∂z/∂λ)² times its square: the rate is estimated independently of θ. By a
        Poisson number of N excesses it is λ/√N.
    kind : {"observed", "expected", "empirical", "sandwich"}, optional
        The covariance for the delta method, as for `Fit.covariance`.
    level : float
        Coverage aimed at by the intervals.
    method : {"delta", "profile", "bootstrap"}
        Symmetric intervals; those of the profile likelihood of each level; or quantiles of `replicates`.
    replicates : Bootstrap, optional
        Of this fit, by `bootstrap`.

    Returns
    -------
    ReturnLevels
        Prints as a table. `fisher_jax.plots.return_levels` draws them over the period.

    Raises
    ------
    ValueError, TypeError
        If the model has no quantile function, covariates are missing, a period is too short, or arguments do not fit together.

    Notes
    -----
    Levels far beyond the data are skewed: the likelihood allows far higher ones, and hardly lower. Symmetric intervals then reach
    too low on both sides; profile intervals do not (Coles 2001, section 2.6.6, and figures 3.3 and 3.4).

    References
    ----------
    Coles, S. (2001), An Introduction to Statistical Modeling of Extreme Values, eqs (3.4), (4.12), (4.13) and (4.15).

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> y = jnp.array([4.03, 3.83, 3.65, 3.88, 4.01, 4.08, 4.18, 3.80, 4.36, 3.96, 3.98, 4.69, 3.85])
    >>> fit = fj.fit(fj.families.gumbel, None, y)
    >>> print(fj.return_levels(fit, [10, 100]).value.round(2))
    [4.34 4.79]
    """
    check_fit(fit)
    check_level(level)
    check_choice(method, get_args(Method), "method")
    model, dataset = origin_of(fit)
    check_quantile(model)
    if dataset.given is not None and given is None:
        raise ValueError(
            "the fit has covariates. Give those of one observation, at which the levels are meant: given=…."
        )
    if dataset.given is None and given is not None:
        raise ValueError("the fit has no covariates. Leave given out.")
    predictor, table = predictor_of(model), as_table(model, fit, given)
    if predictor is not None and table is not None:
        rows = predictor.covariates(table)
        count = {len(leaf) for leaf in jax.tree.leaves(rows)}
        if count != {1}:
            raise ValueError(f"given has {max(count)} rows; the levels are those of one. Call it for each.")
        given = jax.tree.map(lambda leaf: leaf[0], rows)
    numbers = {"threshold": threshold, "rate": rate, "rate_error": rate_error}
    for name, given_number in numbers.items():
        if not is_number(given_number) or not np.isfinite(given_number):
            raise TypeError(f"{name}={shown(given_number)} must be a finite number.")
    if not rate > 0 or rate_error < 0:
        raise ValueError(f"rate={rate:g} must be positive and rate_error={rate_error:g} not negative.")
    times = np.atleast_1d(to_numpy(periods, "periods"))
    if times.ndim != 1 or not len(times) or times.dtype.kind not in "iuf":
        raise TypeError(f"periods={shown(periods)} must be one number or several.")
    if not np.all(np.isfinite(times) & (rate * times > 1)):
        raise ValueError(
            f"periods={shown(periods)} must be finite and longer than 1/rate = {1 / rate:.4g}, the time between two observations."
        )
    if (method == "bootstrap") != (replicates is not None):
        raise ValueError('method="bootstrap" needs replicates=bootstrap(fit, key), and no other method takes them.')
    if replicates is not None and not isinstance(replicates, Bootstrap):
        raise TypeError(f"replicates={shown(replicates)} must be what fisher_jax.bootstrap returns.")
    if method != "delta" and (rate_error or kind is not None):
        raise ValueError(f'method={method!r} takes neither kind nor rate_error; only "delta" does.')

    times = times.astype(float)
    which = fit._check(kind)
    function = _Levels(ById(model.quantile), given is not None)
    z = () if given is None else (jax.tree.map(jnp.asarray, given),)
    value, errors = map(
        np.asarray, of_each(fit, function, which, times, float(threshold), float(rate), float(rate_error), *z)
    )
    if np.any(errors == 0):
        raise ValueError(
            "a level does not move with the parameters at all: the model's quantile function has steps, as of a discrete "
            "distribution, and its levels have no standard errors."
        )
    reach = normal_quantile(0.5 * (1 + float(level))) * errors
    interval = np.stack([value - reach, value + reach], axis=-1)
    description = fit.describe(which)
    notes: tuple[str, ...] = ()
    if method != "delta":
        of_params = _LevelsOfParams(ById(model.quantile), tuple(times), float(threshold), float(rate), _Frozen.of(z))
    if method == "profile":
        profile = profile_likelihood(fit, of_params, level=level)
        value, errors, interval = profile.estimate, profile.standard_error, profile.interval
        notes, description = profile.notes, "of each level"
    if replicates is not None:
        errors, interval = (
            replicates.standard_errors(of_params),
            replicates.flat_intervals(level, "percentile", of_params),
        )
        description = f"percentiles of {replicates.num_replicates} replicates, {replicates.description}"
        notes = tuple(replicates.notes)
    record = float(threshold), float(rate), float(rate_error), float(level), method, description, notes
    return ReturnLevels(times, value, np.asarray(errors), interval, *record)


def _levels(
    quantile: Any, params: PyTree, times: Any, threshold: Any, rate: Any, z: tuple[PyTree, ...], dtype: Any
) -> Float[Array, " k"]:
    def of_period(period: Array) -> Float[Array, ""]:
        level = jnp.asarray(call_differentiable(quantile, (1.0 - 1.0 / (rate * period), params, *z), "quantile"))
        if level.shape != () or not jnp.issubdtype(level.dtype, jnp.floating):
            raise ValueError(
                f"quantile(uniform, params) must return a floating number, but returned shape {level.shape} of {level.dtype}: "
                "return levels are those of continuous observations."
            )
        return level.astype(dtype) + threshold

    return jax.vmap(of_period)(jnp.asarray(times, dtype))


@dataclass(frozen=True)
class _Levels:
    """Levels and their standard errors by the delta method, of one fit of which many are mapped."""

    quantile: ById
    has_given: bool

    def __call__(
        self, fit: Fit, kind: str, times: Array, threshold: Any, rate: Any, rate_error: Any, *z: PyTree
    ) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
        dtype = fit.layout.dtype

        def of_free(free: Float[Array, " p"], rate: Array) -> Float[Array, " k"]:
            params = fit.layout.constrain(free, fit.values)
            return _levels(self.quantile.function, params, times, jnp.asarray(threshold, dtype), rate, z, dtype)

        rate = jnp.asarray(rate, dtype)
        slopes, of_rate = jax.jacfwd(of_free, argnums=(0, 1))(fit.free, rate)
        free_covariance = covariances.free_covariance(fit, kind)
        slopes = slopes.astype(free_covariance.dtype)
        variance = jnp.sum(jnp.matmul(slopes, free_covariance, precision="highest") * slopes, axis=1)
        return of_free(fit.free, rate), jnp.sqrt(variance + (of_rate * rate_error) ** 2)


@dataclass(frozen=True)
class _Frozen:
    """Arrays of covariates as a key: equal where their numbers are."""

    treedef: Any
    leaves: tuple[tuple[Any, ...], ...]

    @classmethod
    def of(cls, tree: PyTree) -> "_Frozen":
        leaves, treedef = jax.tree.flatten(tree)
        arrays = [np.asarray(leaf) for leaf in leaves]
        return cls(treedef, tuple((array.shape, array.dtype.str, array.tobytes()) for array in arrays))

    def thaw(self) -> PyTree:
        arrays = [np.frombuffer(content, dtype).reshape(shape) for shape, dtype, content in self.leaves]
        return jax.tree.unflatten(self.treedef, [jnp.asarray(array) for array in arrays])


@dataclass(frozen=True)
class _LevelsOfParams:
    """Levels as a function of params, equal where all it is made of is: it is compiled once for all that are equal."""

    quantile: ById
    times: tuple[float, ...]
    threshold: float
    rate: float
    given: _Frozen

    def __call__(self, params: PyTree) -> Float[Array, " k"]:
        dtype = jnp.result_type(float, *jax.tree.leaves(params))
        return _levels(self.quantile.function, params, self.times, self.threshold, self.rate, self.given.thaw(), dtype)
