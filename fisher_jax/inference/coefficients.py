"""`coefficient_table`: estimates and standard errors of several fits side by side."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fisher_jax.errors import entry_point, require, warn
from fisher_jax.fitting.result import Fit
from fisher_jax.fitting.summary import Row
from fisher_jax.inference.samples import named_fits
from fisher_jax.reporting import Report, Reported, Table, number


@dataclass(frozen=True, repr=False)
class CoefficientTable(Reported):
    """Estimates and standard errors of several fits side by side.

    Attributes
    ----------
    names : tuple of str
        Of the fits, which are the columns.
    parameters : tuple of str
        Of all parameters that occur, which are the rows.
    estimates, standard_errors : arrays (rows, fits)
        NaN where a fit does not have the parameter; a standard error is NaN also where it was held fixed.
    covariances : tuple of str
        Which covariance each column's standard errors come from.
    facts : dict of str to array (fits,)
        What stands below: observations, log-likelihood, AIC and BIC.
    failed : tuple of str
        The fits that did not converge.
    """

    names: tuple[str, ...]
    parameters: tuple[str, ...]
    estimates: np.ndarray
    standard_errors: np.ndarray
    covariances: tuple[str, ...]
    facts: dict[str, np.ndarray]
    failed: tuple[str, ...]

    @entry_point
    def to_frame(self) -> Any:
        """A pandas DataFrame with two columns for each fit, "estimate" and "standard_error" (needs the extra `frames`)."""
        pd = require("pandas", "frames")
        columns = pd.MultiIndex.from_product([self.names, ["estimate", "standard_error"]])
        both = np.stack([self.estimates, self.standard_errors], axis=2).reshape(len(self.parameters), -1)
        return pd.DataFrame(both, index=pd.Index(self.parameters, name="parameter"), columns=columns)

    @entry_point
    def to_latex(self) -> str:
        """A LaTeX tabular, of booktabs' rules: standard errors in brackets below the estimates, facts at the foot."""
        rows: list[tuple[str, ...]] = []
        for k, name in enumerate(self.parameters):
            rows.append((name, *map(_blank, self.estimates[k])))
            rows.append(("", *(f"({_blank(x)})" if _blank(x) else "" for x in self.standard_errors[k])))
        return Table(("", *self.names), rows, foot=self._foot()).to_latex()

    def _foot(self) -> list[tuple[str, ...]]:
        return [(label, *(f"{x:.2f}" if x % 1 else f"{x:g}" for x in numbers)) for label, numbers in self.facts.items()]

    def summary(self) -> Report:
        facts = [(f"Covariance of {name}", said) for name, said in zip(self.names, self.covariances, strict=True)]
        if len(set(self.covariances)) == 1:
            facts = [("Covariance", self.covariances[0])]
        rows = [
            (name, *(_with_error(*pair) for pair in zip(self.estimates[k], self.standard_errors[k], strict=True)))
            for k, name in enumerate(self.parameters)
        ]
        notes = [f"did not converge, so not to be relied on: {', '.join(self.failed)}."] if self.failed else []
        titles = ("parameter", *self.names)
        return Report("Estimates (standard errors)", facts, [Table(titles, rows, foot=self._foot())], notes)


@entry_point
def coefficient_table(fits: Any = None, /, *, kind: str | None = None, **named: Any) -> CoefficientTable:
    """Estimates with standard errors of several fits side by side, a column for each fit.

    Parameters
    ----------
    fits : dict of Fit, optional
        Fits by name, where names are not words of Python.
    kind : {"observed", "expected", "empirical", "sandwich"}, optional
        The covariance, as for `Fit.covariance`; each column's is named.
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
    >>> free = fj.fit(fj.families.gamma, {"shape": 1.0, "rate": 1.0}, y)
    >>> exponential = fj.Model(fj.families.gamma.log_density, constraints={"shape": fj.fixed, "rate": fj.positive})
    >>> held = fj.fit(exponential, {"shape": 1.0, "rate": 1.0}, y)
    >>> print(fj.coefficient_table(gamma=free, exponential=held).estimates.round(2))
    [[0.87 0.33]
     [2.62 1.  ]]
    """
    fits = named_fits(fits, named)
    if not fits:
        raise ValueError("got no fit. Give them by name, as in coefficient_table(gamma=fit).")
    kinds = [fit._check(kind) for fit in fits.values()]
    columns = [_coefficients(fit, kind) for fit, kind in zip(fits.values(), kinds, strict=True)]
    parameters = tuple(dict.fromkeys(name for column in columns for name in column))
    lost = (np.nan, np.nan)
    both = np.array([[column.get(name, lost) for column in columns] for name in parameters]).reshape(-1, len(fits), 2)
    failed = tuple(name for name, fit in fits.items() if not fit.converged)
    if failed:
        warn(f"did not converge, so not to be relied on: {', '.join(failed)}.")
    facts = {
        "observations": [float(fit.num_observations) for fit in fits.values()],
        "log-likelihood": [float(fit.log_likelihood) for fit in fits.values()],
        "AIC": [float(fit.aic()) for fit in fits.values()],
        "BIC": [float(fit.bic()) for fit in fits.values()],
    }
    return CoefficientTable(
        names=tuple(fits),
        parameters=parameters,
        estimates=both[..., 0],
        standard_errors=both[..., 1],
        covariances=tuple(fit.describe(kind) for fit, kind in zip(fits.values(), kinds, strict=True)),
        facts={label: np.array(numbers) for label, numbers in facts.items()},
        failed=failed,
    )


def _coefficients(fit: Fit, kind: str) -> dict[str, tuple[float, float]]:
    """Estimate and standard error by name, the fixed parameters among them."""
    rows: list[Row] = fit._rows(kind, 0.95)
    return {row.name.removesuffix(" (fixed)"): (row.estimate, row.standard_error) for row in rows}


def _blank(x: float) -> str:
    return "" if np.isnan(x) else f"{x:.4g}"


def _with_error(estimate: float, error: float) -> str:
    if np.isnan(estimate):
        return ""
    return number(estimate) if np.isnan(error) else f"{estimate:.5g} ({error:.3g})"
