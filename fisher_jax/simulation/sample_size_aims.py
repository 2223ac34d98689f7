"""What a sample size can be chosen for: standard errors, or the power of a test."""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from fisher_jax.errors import FitWarning
from fisher_jax.fitting.functions import in_one_row
from fisher_jax.fitting.result import Fit
from fisher_jax.inference.wald import wald_test
from fisher_jax.moments import Estimate
from fisher_jax.simulation.normality import moments


@dataclass(frozen=True)
class Precision:
    """Standard errors that are wanted of some entries."""

    where: tuple[int, ...]
    wanted: np.ndarray

    def needed(self, matrix: np.ndarray) -> float:
        """How many observations it takes, given the covariance for one."""
        with np.errstate(divide="ignore"):
            return float(np.max(np.diagonal(matrix)[list(self.where)] / self.wanted**2))

    def power_at(self, n: int, matrix: np.ndarray) -> None:
        """The power at n, where power is what is wanted."""

    def words(self, names: tuple[str, ...]) -> str:
        """What is wanted, as a report says it."""
        said = [f"{names[k]} ± {value:g}" for k, value in zip(self.where, self.wanted, strict=True)]
        return f"standard error of {', '.join(said)}"

    def seen(self, fits: Fit, values: np.ndarray, function: Any) -> np.ndarray:
        """What simulated fits show of it, a row each."""
        return values[:, list(self.where)][fits.converged]

    def judged(self, rows: np.ndarray, count: int) -> Estimate:
        """All rows in a number or numbers with their errors."""
        covariance, error = moments(rows)[1]
        spread = np.sqrt(np.diagonal(covariance))
        return Estimate(spread, 0.5 * np.diagonal(error) / spread)


@dataclass(frozen=True)
class Power:
    """Power of Wald's test that some entries have other values than they have."""

    where: tuple[int, ...]
    tested: np.ndarray
    power: float
    level: float
    away: np.ndarray

    def needed(self, matrix: np.ndarray) -> float:
        """How many observations it takes, given the covariance for one."""
        from scipy.optimize import brentq

        each = self._noncentrality(matrix)
        if not each > 0:
            return math.inf
        high = 10.0
        while self._rejects(high) < self.power:
            high *= 2
        return float(brentq(lambda x: self._rejects(x) - self.power, 0.0, high, xtol=1e-10)) / each

    def _noncentrality(self, matrix: np.ndarray) -> float:
        """Of one observation."""
        block = matrix[np.ix_(self.where, self.where)]
        return float(self.away @ np.linalg.solve(block, self.away))

    def _rejects(self, noncentrality: float) -> float:
        from scipy.stats import chi2, ncx2

        if noncentrality <= 0:
            return self.level
        return float(ncx2.sf(chi2.isf(self.level, len(self.where)), len(self.where), noncentrality))

    def power_at(self, n: int, matrix: np.ndarray) -> float:
        """The power at n, where power is what is wanted."""
        return self._rejects(n * self._noncentrality(matrix))

    def words(self, names: tuple[str, ...]) -> str:
        """What is wanted, as a report says it."""
        said = ", ".join(f"{names[k]} = {value:g}" for k, value in zip(self.where, self.tested, strict=True))
        return f"power {self.power:g} of Wald's test of {said} at level {self.level:g}"

    def seen(self, fits: Fit, values: np.ndarray, function: Any) -> np.ndarray:
        """What simulated fits show of it, a row each."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FitWarning)  # failed fits are counted
            p = np.asarray(wald_test(fits, self._restriction(fits, function)).p_value)
        return (p < self.level) & fits.converged

    def _restriction(self, fits: Fit, function: Any) -> Any:
        if function is None:
            return {fits.names[k]: value for k, value in zip(self.where, self.tested, strict=True)}
        return lambda params: in_one_row(function(params))[np.array(self.where)] - jnp.asarray(self.tested)

    def judged(self, rows: np.ndarray, count: int) -> Estimate:
        """All rows in a number or numbers with their errors."""
        share, smoothed = np.mean(rows), (np.sum(rows) + 1) / (count + 2)
        return Estimate(float(share), float(np.sqrt(smoothed * (1 - smoothed) / count)))


Aim = Precision | Power
