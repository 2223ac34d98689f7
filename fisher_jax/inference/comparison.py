"""`compare`: several fits of the same data side by side, by likelihood and information criteria."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fisher_jax.errors import entry_point, require, warn
from fisher_jax.fitting.covariance import takeuchi
from fisher_jax.fitting.result import Fit
from fisher_jax.inference.samples import named_fits, same_data
from fisher_jax.reporting import Report, Reported, Table

CRITERIA = ("aic", "aicc", "bic", "tic")


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

    def _columns(self) -> dict[str, Any]:
        return {
            "log_likelihood": self.log_likelihood,
            "parameters": self.num_parameters,
            "AIC": self.aic,
            "AICc": self.aicc,
            "BIC": self.bic,
            "TIC": self.tic,
            "difference": self.difference,
            "weight": self.weight,
            "status": self.status,
        }

    @entry_point
    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each fit (needs the extra `frames`)."""
        pd = require("pandas", "frames")
        return pd.DataFrame(self._columns(), index=pd.Index(self.names, name="fit"))

    @entry_point
    def to_latex(self) -> str:
        """A LaTeX tabular, of booktabs' rules."""
        return self.summary().to_latex()

    def summary(self) -> Report:
        facts = [("Observations", f"{self.num_observations:g}"), ("Ordered by", _said(self.criterion))]
        titles = ("fit", "log-lik.", "p", "AIC", "AICc", "BIC", "TIC", "difference", "weight", "status")
        rows = [
            (
                name,
                *(_fixed(x, 3) for x in (self.log_likelihood[k],)),
                f"{self.num_parameters[k]}",
                *(_fixed(column[k], 2) for column in (self.aic, self.aicc, self.bic, self.tic, self.difference)),
                _fixed(self.weight[k], 3),
                self.status[k],
            )
            for k, name in enumerate(self.names)
        ]
        return Report("Comparison of fits", facts, [Table(titles, rows)], self._notes())

    def _notes(self) -> list[str]:
        failed = [name for name, status in zip(self.names, self.status, strict=True) if "converged" not in status]
        return [f"did not converge, so not to be relied on: {', '.join(failed)}."] if failed else []


@entry_point
def compare(fits: Any = None, /, *, criterion: str = "aic", **named: Any) -> Comparison:
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
        To print, or `to_frame()`, `to_latex()`. Fits that did not converge are there too, and it is said.

    Raises
    ------
    ValueError, TypeError
        If fewer than two fits are given, or fits of different data: likelihoods of different observations, or of
        transformed ones (y and log y), cannot be compared. Of many fits take `aic()` and its like, which are arrays.

    Notes
    -----
    The models need not be nested, and none need be right. AIC and AICc estimate predictive accuracy for models that can come
    near the truth, TIC for any, at the price of more noise; BIC goes for the true model as n grows. A weight is no probability.

    References
    ----------
    Burnham, K. P. and Anderson, D. R. (2002), Model Selection and Multimodel Inference, 2nd ed., eqs. (2.2), (2.4), (2.9).

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> y = jnp.array([1.0, 2.0, 3.0, 6.0, 4.0, 5.0])
    >>> gamma = fj.fit(fj.families.gamma, {"shape": 1.0, "rate": 1.0}, y)
    >>> normal = fj.fit(fj.families.normal, {"loc": 1.0, "scale": 1.0}, y)
    >>> table = fj.compare(gamma=gamma, normal=normal)
    >>> print(table.names, table.difference.round(2))
    ('normal', 'gamma') [0.   0.06]
    """
    fits = named_fits(fits, named)
    if len(fits) < 2:
        raise ValueError(f"got {len(fits)} fit; give at least two, as in compare(gamma=fit_1, weibull=fit_2).")
    if criterion not in CRITERIA:
        raise ValueError(f"criterion={criterion!r} is unknown; choose from {', '.join(map(repr, CRITERIA))}.")
    first, *others = fits
    for name in others:
        if not same_data(fits[first], fits[name]):
            raise ValueError(
                f"{first!r} and {name!r} are fits of different data ({float(fits[first].num_observations):g} and "
                f"{float(fits[name].num_observations):g} observations), whose likelihoods cannot be compared. "
                "Fit all to the same."
            )
    values = {key: np.array([_criterion(fit, key) for fit in fits.values()]) for key in CRITERIA}
    order = np.argsort(values[criterion], kind="stable")  # NaN last
    chosen = values[criterion][order]
    difference = chosen - chosen[0]
    parts = np.where(np.isnan(difference), 0.0, np.exp(-0.5 * difference))
    names, records = list(fits), list(fits.values())
    result = Comparison(
        names=tuple(names[k] for k in order),
        criterion=criterion,
        log_likelihood=np.array([float(records[k].log_likelihood) for k in order]),
        num_parameters=np.array([records[k].num_parameters for k in order]),
        difference=difference,
        weight=parts / parts.sum() if parts.sum() > 0 else np.full(len(order), np.nan),
        status=tuple(records[k].status.label for k in order),
        num_observations=float(records[0].num_observations),
        **{key: column[order] for key, column in values.items()},
    )
    if result._notes():
        warn(f"{result._notes()[0]}")
    return result


def _criterion(fit: Fit, name: str) -> float:
    """One criterion of a fit; TIC without a warning, since the status stands beside it, and NaN where it has none."""
    if name != "tic":
        return float(getattr(fit, name)())
    return float("nan") if fit.curvature is None or fit.outer_product is None else float(fit._computed(takeuchi))


def _said(criterion: str) -> str:
    return {"aic": "AIC", "aicc": "AICc", "bic": "BIC", "tic": "TIC"}[criterion]


def _fixed(x: float, digits: int) -> str:
    return "-" if np.isnan(x) else f"{x:.{digits}f}"
