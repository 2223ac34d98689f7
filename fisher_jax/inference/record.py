"""The record of a test of a hypothesis."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fisher_jax.reporting import Report, Reported, number


@dataclass(frozen=True, repr=False)
class HypothesisTest(Reported):
    """A test of a null hypothesis: its statistic, chi-squared under the null, and the p-value.

    Attributes
    ----------
    statistic : array
        A scalar, or one number for each fit of a batch or each candidate; NaN where there is none.
    p_value : array
        The probability under the null of a statistic at least as large, by the chi-squared distribution or what `distribution`
        says; NaN where no distribution is known.
    mixture_p_value : array or None
        For one parameter on the boundary of its range under the null: that of the mixture of two chi-squared distributions
        which holds there.
    degrees_of_freedom : int
        How many restrictions the null hypothesis makes.
    test : str
        Its name.
    hypothesis : tuple of str
        The null hypothesis, a restriction each.
    covariance : str
        Which information or covariance was used, in words; empty where none was.
    notes : tuple of str
        What a reader must know of it.
    distribution : str
        Where the p-value comes from, in words, if not from the chi-squared distribution.
    """

    statistic: Any
    p_value: Any
    mixture_p_value: Any
    degrees_of_freedom: int
    test: str
    hypothesis: tuple[str, ...]
    covariance: str
    notes: tuple[str, ...] = ()
    distribution: str = ""

    def _table(self) -> Report:
        shape = jnp.shape(self.statistic)
        freedom = (
            self.distribution
            or f"chi-squared with {self.degrees_of_freedom} degree{'s' * (self.degrees_of_freedom != 1)} of freedom"
        )
        facts = [("Null hypothesis", _joined(self.hypothesis))]
        if shape:
            facts += [("Tests", str(int(np.prod(shape)))), ("Distribution", freedom), *self._spread()]
        else:
            facts += [("Statistic", f"{number(self.statistic)}, {freedom}"), ("p-value", _probability(self.p_value))]
            if self.mixture_p_value is not None:
                facts.append(("p-value of the mixture", _probability(self.mixture_p_value)))
        if self.covariance:
            facts.append(("Covariance", self.covariance))
        return Report(self.test, facts, notes=list(self.notes))

    def _spread(self) -> list[tuple[str, str]]:
        """How many of many tests reject, and the smallest p-value."""
        p = np.ravel(np.asarray(self.p_value if self.mixture_p_value is None else self.mixture_p_value))
        known = p[~np.isnan(p)]
        found = [("p-value", f"below {level:g} in {int(np.sum(known < level))}") for level in (0.05, 0.001)]
        if len(known):
            found.append(("Smallest p-value", f"{_probability(np.min(known))}, of number {int(np.nanargmin(p))}"))
        if len(known) < len(p):
            found.append(("Without a statistic", str(len(p) - len(known))))
        return found

    def summary(self) -> Report:
        if isinstance(self.statistic, jax.core.Tracer):
            return Report(f"{self.test} of {_joined(self.hypothesis)}")
        return self._table()


jax.tree_util.register_dataclass(
    HypothesisTest,
    ["statistic", "p_value", "mixture_p_value"],
    ["degrees_of_freedom", "test", "hypothesis", "covariance", "notes", "distribution"],
)


def chi_squared_test(
    statistic: Any,
    degrees_of_freedom: int,
    test: str,
    hypothesis: tuple[str, ...],
    covariance: str = "",
    notes: tuple[str, ...] = (),
    *,
    num_on_boundary: int = 0,
) -> HypothesisTest:
    """The record of a test whose statistic is chi-squared; with the mixture's p-value for one parameter on a boundary."""
    p_value = survival(statistic, degrees_of_freedom)
    mixture = None
    if num_on_boundary == 1:
        mixture = 0.5 * (p_value + survival(statistic, degrees_of_freedom - 1))
    probabilities = (p_value, mixture)
    if isinstance(statistic, np.ndarray):  # of a batch, which lives on the host
        probabilities = jax.tree.map(np.asarray, probabilities)
    return HypothesisTest(statistic, *probabilities, degrees_of_freedom, test, hypothesis, covariance, notes)


def survival(statistic: Any, degrees_of_freedom: int) -> Array:
    """P(χ² ≥ statistic); with no degree of freedom all mass is at zero. NaN for a negative statistic."""
    statistic = jnp.asarray(statistic)
    if degrees_of_freedom == 0:
        return jnp.where(statistic > 0, 0.0, jnp.where(statistic == 0, 1.0, jnp.nan))
    safe = jnp.where(statistic >= 0, statistic, 0.0)
    return jnp.where(statistic >= 0, jax.scipy.special.gammaincc(0.5 * degrees_of_freedom, 0.5 * safe), jnp.nan)


def _joined(hypothesis: tuple[str, ...], most: int = 6) -> str:
    more = f" and {len(hypothesis) - most} more" if len(hypothesis) > most else ""
    return ", ".join(hypothesis[:most]) + more


def _probability(p: Any) -> str:
    return "-" if np.isnan(float(p)) else f"{float(p):.4g}"
