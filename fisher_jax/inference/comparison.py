"""`compare` and `coefficient_table`: several fits side by side, by information criteria and by estimates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import numpy as np

from fisher_jax.errors import check_choice, check_level, entry_point, require, warn
from fisher_jax.fitting.covariance import CovarianceKind, takeuchi
from fisher_jax.fitting.result import Fit, Origin, SourceOrigin
from fisher_jax.fitting.summary import COLUMNS
from fisher_jax.latent.grouped import Grouped
from fisher_jax.latent.marginal import MarginalModel
from fisher_jax.reporting import Report, Reported, ReportTable, listed, number, percent

Shown = Literal["standard_error", "z", "p_value", "interval"]
CRITERIA = {"aic": "AIC", "aicc": "AICc", "bic": "BIC", "tic": "TIC"}
BY_COUNT = ("aicc", "bic")  # those that depend on the number of observations


@dataclass(frozen=True, repr=False)
class Comparison(Reported):
    """Fits of several models to the same data, the best first. Arrays are numpy's, in the order of `names`.

    Attributes
    ----------
    names : tuple of str
    criterion : str
        By which they are ordered: "aic", "aicc", "bic" or "tic".
    log_likelihood, num_parameters : arrays
    aic, aicc, bic, tic : arrays
        NaN where one is not defined: AICc for n ≤ p + 1, TIC for an information that is not positive definite.
    difference : array
        The criterion less that of the best.
    weight : array
        Akaike weights exp(−difference/2), divided by their sum.
    status : tuple of str
        How each fit ended.
    num_observations : float
    """

    names: tuple[str, ...]
    criterion: str
    log_likelihood: np.ndarray
    num_parameters: np.ndarray
    aic: np.ndarray
    aicc: np.ndarray
    bic: np.ndarray
    tic: np.ndarray
    difference: np.ndarray
    weight: np.ndarray
    status: tuple[str, ...]
    num_observations: float

    @entry_point
    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each fit (needs the extra `frames`)."""
        pd = require("pandas", "frames")
        columns: dict[str, Any] = {"log_likelihood": self.log_likelihood, "parameters": self.num_parameters}
        columns |= {label: getattr(self, name) for name, label in CRITERIA.items()}
        columns |= {"difference": self.difference, "weight": self.weight, "status": self.status}
        return pd.DataFrame(columns, index=pd.Index(self.names, name="fit"))

    @entry_point
    def to_latex(self) -> str:
        """A LaTeX tabular with the rules of booktabs."""
        return self.summary().to_latex()

    def summary(self) -> Report:
        """A row for each fit: its log-likelihood, criteria, Akaike weight and status."""
        facts = [("Observations", f"{self.num_observations:g}"), ("Ordered by", CRITERIA[self.criterion])]
        titles = ("fit", "log-lik.", "p", *CRITERIA.values(), "difference", "weight", "status")

        def texts(column: np.ndarray, digits: int) -> list[str]:
            return ["-" if np.isnan(x) else f"{x:.{digits}f}" for x in column]

        criteria = [texts(column, 2) for column in (self.aic, self.aicc, self.bic, self.tic, self.difference)]
        columns = [self.names, texts(self.log_likelihood, 3), map(str, self.num_parameters), *criteria]
        rows = list(zip(*columns, texts(self.weight, 3), self.status, strict=True))
        failed = [name for name, status in zip(self.names, self.status, strict=True) if "converged" not in status]
        return Report("Comparison of fits", facts, [ReportTable(titles, rows)], _failure(failed))


@entry_point
def compare(
    fits: dict[str, Fit] | None = None, /, *, criterion: Literal["aic", "aicc", "bic", "tic"] = "aic", **named: Fit
) -> Comparison:
    """Compare fits of several models to the same data by information criteria; smaller is better.

    Parameters
    ----------
    fits : dict of Fit, optional
        Fits by name, where names are not words of Python.
    criterion : {"aic", "aicc", "bic", "tic"}
        What orders them and gives their weights.
    named : Fit
        Fits by name: ``compare(gamma=fit_1, weibull=fit_2)``.

    Returns
    -------
    Comparison
        To print, or `to_frame()`, `to_latex()`. Fits that did not converge are listed too, with a note and a `FitWarning`.

    Raises
    ------
    ValueError, TypeError
        If fewer than two fits are given, or fits of different data: likelihoods of different observations, or of
        transformed ones (y and log y), cannot be compared, nor restricted likelihoods of models with other coefficients. For
        batches use `aic()` and its like, which are arrays.

    Notes
    -----
    The models need not be nested, and none need be true. AIC and AICc estimate predictive accuracy for models that are nearly
    right, TIC for any, with a larger variance; BIC selects the true model as n grows. A weight is not a probability.

    A model with latent effects counts groups. Beside one of the same rows without groups it has no AICc and BIC (NaN).

    References
    ----------
    Burnham, K. P. and Anderson, D. R. (2002), Model Selection and Multimodel Inference, 2nd ed., eqs. (2.2), (2.4), (2.9).

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> y = jnp.array([1.0, 2.0, 3.0, 6.0, 4.0, 5.0])
    >>> gumbel = fj.fit(fj.families.gumbel, {"loc": 1.0, "scale": 1.0}, y)
    >>> normal = fj.fit(fj.families.normal, {"loc": 1.0, "scale": 1.0}, y)
    >>> table = fj.compare(gumbel=gumbel, normal=normal)
    >>> print(table.names, table.difference.round(2))
    ('normal', 'gumbel') [0.   0.33]
    """
    fits = named_fits(fits, named)
    if len(fits) < 2:
        raise ValueError(f"got {len(fits)} fit; give at least two, as in compare(gamma=fit_1, weibull=fit_2).")
    check_choice(criterion, CRITERIA, "criterion")
    (first_name, first), *others = fits.items()
    for name, fit in others:
        if not same_data(first, fit):
            raise ValueError(
                f"{first_name!r} and {name!r} are fits of different data ({float(first.num_observations):g} and "
                f"{float(fit.num_observations):g} observations), whose likelihoods cannot be compared. Fit all to the same."
            )
        check_same_integrals(first, fit, first_name, name)
    values = {name: np.array([float(getattr(fit, name)()) for fit in fits.values()]) for name in ("aic", "aicc", "bic")}
    counts = {name: float(fit.num_observations) for name, fit in fits.items()}
    if not np.allclose(list(counts.values()), counts[first_name], rtol=1e-5):  # groups in one, and rows in another
        if criterion in BY_COUNT:
            stated = ", ".join(f"{count:g} of {name!r}" for name, count in counts.items())
            raise ValueError(
                f"criterion={criterion!r} depends on the number of observations, which are groups in some of these fits and "
                f"rows in others: {stated}. Compare them by 'aic'."
            )
        values |= {name: np.full(len(fits), np.nan) for name in BY_COUNT}
    # Without the warning of `tic` about a fit that failed, since the status stands beside it.
    values["tic"] = np.array(
        [
            np.nan if fit.curvature is None or fit.outer_product is None else float(fit._computed(takeuchi))
            for fit in fits.values()
        ]
    )
    order = np.argsort(values[criterion], kind="stable")  # NaN last
    difference = values[criterion][order] - values[criterion][order[0]]
    likelihoods = np.where(np.isnan(difference), 0.0, np.exp(-0.5 * difference))
    fits = dict(list(fits.items())[k] for k in order)
    _warn_of_failures(fits)
    return Comparison(
        names=tuple(fits),
        criterion=criterion,
        log_likelihood=np.array([float(fit.log_likelihood) for fit in fits.values()]),
        num_parameters=np.array([fit.num_parameters for fit in fits.values()]),
        difference=difference,
        weight=likelihoods / likelihoods.sum() if likelihoods.sum() > 0 else np.full(len(order), np.nan),
        status=tuple(fit.status.label for fit in fits.values()),
        num_observations=float(first.num_observations),
        **{name: column[order] for name, column in values.items()},
    )


@dataclass(frozen=True, repr=False)
class CoefficientTable(Reported):
    """Estimates and standard errors of several fits side by side.

    Attributes
    ----------
    names : tuple of str
        Of the fits, which are the columns.
    parameters : tuple of str
        Of all parameters that occur, which are the rows.
    numbers : array (rows, fits, 6)
        Estimate, standard error, z, p-value, lower and upper end, as `Fit.to_frame` has them; NaN where a fit does not have the
        parameter, and all but the estimate where it was fixed.
    show, level
        As they were given.
    covariances : tuple of str
        Which covariance each column's standard errors come from.
    facts : dict of str to array (fits,)
        The foot of the table: observations, log-likelihood, AIC and BIC.
    failed : tuple of str
        The fits that did not converge.
    notes : tuple of str
        Sentences on fits that ended with a parameter at the edge of its range.
    """

    names: tuple[str, ...]
    parameters: tuple[str, ...]
    numbers: np.ndarray
    show: Shown
    level: float
    covariances: tuple[str, ...]
    facts: dict[str, np.ndarray]
    failed: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def estimates(self) -> np.ndarray:
        """The estimates (rows, fits)."""
        return self.numbers[..., 0]

    @property
    def standard_errors(self) -> np.ndarray:
        """The standard errors (rows, fits)."""
        return self.numbers[..., 1]

    @property
    def p_values(self) -> np.ndarray:
        """Two-sided p-values (rows, fits) of the hypotheses that a parameter is zero, NaN where zero is not inside its range."""
        return self.numbers[..., 3]

    @entry_point
    def to_frame(self) -> Any:
        """A pandas DataFrame with six columns for each fit, those of `Fit.to_frame` (needs the extra `frames`)."""
        pd = require("pandas", "frames")
        columns = pd.MultiIndex.from_product([self.names, COLUMNS])
        index = pd.Index(self.parameters, name="parameter")
        return pd.DataFrame(self.numbers.reshape(len(index), -1), index=index, columns=columns)

    @entry_point
    def to_latex(self) -> str:
        """A LaTeX tabular with the rules of booktabs: in brackets below the estimates what `show` names, facts at the foot."""
        rows: list[tuple[str, ...]] = []
        for name, numbers in zip(self.parameters, self.numbers, strict=True):
            rows.append((name, *("" if np.isnan(x[0]) else f"{x[0]:.4g}" for x in numbers)))
            rows.append(("", *(self._in_brackets(x, 4) for x in numbers)))
        return ReportTable(("", *self.names), rows, foot=self._foot()).to_latex()

    def _foot(self) -> list[tuple[str, ...]]:
        return [(label, *(f"{x:.2f}" if x % 1 else f"{x:g}" for x in numbers)) for label, numbers in self.facts.items()]

    def summary(self) -> Report:
        """A row for each parameter, with observations, log-likelihood, AIC and BIC at the foot."""
        facts = [(f"Covariance of {name}", text) for name, text in zip(self.names, self.covariances, strict=True)]
        if len(set(self.covariances)) == 1:
            facts = [("Covariance", self.covariances[0])]

        def text(numbers: np.ndarray) -> str:
            if np.isnan(numbers[0]):
                return ""
            brackets = self._in_brackets(numbers, 3)
            return f"{numbers[0]:.5g} {brackets}" if brackets else number(numbers[0])

        rows = [(name, *map(text, numbers)) for name, numbers in zip(self.parameters, self.numbers, strict=True)]
        table = ReportTable(("parameter", *self.names), rows, foot=self._foot())
        what = {"standard_error": "standard errors", "z": "z", "p_value": "p-values"}.get(
            self.show, f"{percent(self.level)} intervals"
        )
        return Report(f"Estimates ({what})", facts, [table], (*_failure(self.failed), *self.notes))

    def _in_brackets(self, numbers: np.ndarray, digits: int) -> str:
        """What stands beside or below an estimate; empty where it does not exist."""
        shown = numbers[4:] if self.show == "interval" else numbers[[COLUMNS.index(self.show)]]
        return "" if np.isnan(shown).any() else f"({', '.join(f'{x:.{digits}g}' for x in shown)})"


@entry_point
def coefficient_table(
    fits: dict[str, Fit] | None = None,
    /,
    *,
    kind: CovarianceKind | None = None,
    level: float = 0.95,
    show: Shown = "standard_error",
    **named: Fit,
) -> CoefficientTable:
    """Estimates of several fits side by side, a column for each fit, with standard errors, z, p-values or intervals.

    Parameters
    ----------
    fits : dict of Fit, optional
        Fits by name, where names are not words of Python.
    kind : {"observed", "expected", "empirical", "sandwich"}, optional
        The covariance, as for `Fit.covariance`; each column's is named.
    level : float
        Coverage aimed at by the intervals.
    show : {"standard_error", "z", "p_value", "interval"}
        What is printed in brackets beside each estimate. The frame has all of it.
    named : Fit
        Fits by name: ``coefficient_table(gamma=fit_1, weibull=fit_2)``.

    Returns
    -------
    CoefficientTable
        To print, or `to_frame()`, `to_latex()`. The fits may be of different data.

    Raises
    ------
    ValueError, TypeError
        If no fit is given, or a kind that one of them does not have.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> y = jnp.array([1.0, 2.0, 3.0, 6.0])
    >>> free = fj.fit(fj.families.weibull, {"shape": 1.0, "scale": 1.0}, y)
    >>> exponential = fj.Model(fj.families.weibull.log_density, constraints={"shape": fj.fixed, "scale": fj.positive})
    >>> held = fj.fit(exponential, {"shape": 1.0, "scale": 1.0}, y)
    >>> print(fj.coefficient_table(weibull=free, exponential=held).estimates.round(2))
    [[1.7  1.  ]
     [3.38 3.  ]]
    """
    check_level(level)
    check_choice(show, get_args(Shown), "show")
    fits = named_fits(fits, named)
    if not fits:
        raise ValueError("got no fit. Give them by name, as in coefficient_table(gamma=fit).")
    kinds = [fit._check(kind) for fit in fits.values()]
    columns, notes = [], []  # numbers by name, the fixed parameters among them
    for (name, fit), used in zip(fits.items(), kinds, strict=True):
        rows, conditional = fit._rows(used, level)
        columns.append({row.parameter: row[1:] for row in rows})
        notes += [f"`{name}`: {conditional}"] if conditional else []
    parameters = tuple(dict.fromkeys(name for column in columns for name in column))
    absent = (np.nan,) * len(COLUMNS)
    numbers = np.array([[column.get(name, absent) for column in columns] for name in parameters])
    facts = {
        "observations": [fit.num_observations for fit in fits.values()],
        "log-likelihood": [fit.log_likelihood for fit in fits.values()],
        "AIC": [fit.aic() for fit in fits.values()],
        "BIC": [fit.bic() for fit in fits.values()],
    }
    return CoefficientTable(
        names=tuple(fits),
        parameters=parameters,
        numbers=numbers.reshape(-1, len(fits), len(COLUMNS)),
        show=show,
        level=level,
        covariances=tuple(fit.describe(used) for fit, used in zip(fits.values(), kinds, strict=True)),
        facts={label: np.array([float(x) for x in numbers]) for label, numbers in facts.items()},
        failed=_warn_of_failures(fits),
        notes=tuple(notes),
    )


def _warn_of_failures(fits: dict[str, Fit]) -> tuple[str, ...]:
    """The names of the fits that did not converge, with a warning."""
    failed = tuple(name for name, fit in fits.items() if not fit.converged)
    for note in _failure(failed):
        warn(note)
    return failed


def _failure(names: Sequence[str]) -> list[str]:
    return [f"did not converge, so not to be relied on: {', '.join(names)}."] if names else []


def named_fits(fits: Any, named: dict[str, Any]) -> dict[str, Fit]:
    """All fits by name; raise for anything but single fits."""
    if fits is not None and not isinstance(fits, dict):
        raise TypeError(f"expected fits by name, as in gamma=fit, or a dict, got {type(fits).__name__}.")
    if twice := set(fits or {}) & set(named):
        raise ValueError(f"the name {sorted(twice)[0]!r} is given twice.")
    by_name = {str(name): fit for name, fit in {**(fits or {}), **named}.items()}
    for name, fit in by_name.items():
        if not isinstance(fit, Fit):
            raise TypeError(f"{name!r} is no Fit but {type(fit).__name__}.")
        if fit.has_batch:
            raise TypeError(
                f"{name!r} holds many fits, and this is a table of single ones. Take one, fits[0], or the arrays "
                "fits.aic()."
            )
        fit._check_single()
    return by_name


def same_data(fit: Fit, other: Fit) -> bool:
    """Whether two fits have as many observations, and the same ones as far as both have their data."""
    models = [each.origin.model for each in (fit, other) if each.origin is not None]
    if fit.has_batch and other.has_batch and any(isinstance(model, MarginalModel) for model in models):
        # Whether groups of rows and rows are of the same data is seen from those of the first fits.
        return len(fit) == len(other) and (not len(fit) or same_data(fit[0], other[0]))
    counts, other_counts = np.asarray(fit.num_observations), np.asarray(other.num_observations)
    rows, other_rows = (_count_rows(each) for each in (fit, other))
    if rows is not None or other_rows is not None:  # groups of rows, perhaps others in each, or the rows themselves
        totals = counts if rows is None else rows, other_counts if other_rows is None else other_rows
        # A fit without its model does not record whether it counts groups.
        if fit.origin is None or other.origin is None:
            return bool(np.all(np.isclose(*totals) | np.isclose(counts, other_counts)))
        return bool(np.isclose(*totals)) and all(map(_alike, _sorted_values(fit), _sorted_values(other)))
    if counts.shape != other_counts.shape or not np.allclose(counts, other_counts, rtol=1e-5):
        return False
    if isinstance(fit.origin, SourceOrigin) and isinstance(other.origin, SourceOrigin):
        return fit.origin.num_rows == other.origin.num_rows and fit.origin.description == other.origin.description
    if not isinstance(fit.origin, Origin) or not isinstance(other.origin, Origin):
        return True
    mine, others = fit.origin.dataset, other.origin.dataset
    flattened: list[Any] = [jax.tree.flatten(dataset.data) for dataset in (mine, others)]
    (leaves, treedef), (other_leaves, other_treedef) = flattened
    same_form = treedef == other_treedef  # each model may take its data in its own form, and these cannot be compared
    return _alike(mine.weights, others.weights) and (not same_form or all(map(_alike, leaves, other_leaves)))


def check_same_integrals(fit: Fit, other: Fit, name: str, other_name: str) -> None:
    """Raise where restricted likelihoods are of other error contrasts, or one is restricted and the other is not."""
    if fit.origin is None or other.origin is None:
        return  # their models are not known
    integrated, others = fit.origin.model.integrated, other.origin.model.integrated
    if sorted(integrated) != sorted(others):
        lists = [listed([f"`{name}`" for name in names]) if names else "none" for names in (integrated, others)]
        raise ValueError(
            f"the likelihood of {name!r} is integrated over {lists[0]} and that of {other_name!r} over {lists[1]}: restricted "
            "likelihoods of models with other coefficients cannot be compared. Fit both by maximum likelihood, without reml=."
        )


def _count_rows(fit: Fit) -> float | None:
    """How many rows the groups of a fit have whose observations are groups; None of others, and of many fits."""
    if not isinstance(fit.origin, Origin) or fit.has_batch:
        return None
    return fit.origin.model.count_rows(*fit.origin.dataset.parts)


def _sorted_values(fit: Fit) -> list[np.ndarray]:
    """The data of all rows, in groups or not, in an order that does not depend on the groups."""
    assert fit.origin is not None
    data, given, weights = fit.origin.dataset.parts
    grouped = next((part for part in (given, data) if isinstance(part, Grouped)), None)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(data.rows if isinstance(data, Grouped) else data)]
    counted = np.ones(np.shape(leaves[0])[:1] if grouped is None else np.shape(grouped.weights), bool)
    if grouped is not None:
        counted &= np.asarray(grouped.weights) > 0
    if weights is not None:
        counted &= np.asarray(weights > 0).reshape(-1, *[1] * (counted.ndim - 1))
    return [np.sort(leaf[counted], axis=None) for leaf in leaves]


def _alike(x: Any, y: Any) -> bool:
    """Equal, or so different in shape that they may be two forms of the same."""
    if x is y or x is None or y is None or np.shape(x) != np.shape(y):
        return True
    return np.array_equal(np.asarray(x), np.asarray(y), equal_nan=np.asarray(x).dtype.kind == "f")
