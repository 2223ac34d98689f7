"""Replicates of a vector beside the normal distribution that is its limit: moments with errors, and tests of the difference.

The tests of mean and covariance are Hotelling's, on the replicates in whitened coordinates W x with W Σ Wᵀ = 1, where Σ is the
asymptotic covariance: rows W x for the mean, and products of their entries for the covariance. An error that Σ itself has
(sampled) is added to the variance of these rows' mean. The shape is tested by Kolmogorov and Smirnov's distance, entry by entry
from the standard normal, and of xᵀ Σ⁻¹ x from χ².

Source: Anderson, T. W. (2003), An Introduction to Multivariate Statistical Analysis, 3rd ed., chapter 5.
"""

import abc
import functools
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from fisher_jax.information import Covariance, Information
from fisher_jax.moments import Estimate, covariance_of_sums
from fisher_jax.reporting import Reported, probability

MIN_REPLICATES = 5  # below, fourth moments do not determine the error of a covariance


class HotellingTest(NamedTuple):
    """A test that a mean is zero: Hotelling's T², χ² distributed in the limit of many replicates if it is.

    The p-value is that of F, so that it holds for few replicates as well.
    """

    statistic: float
    degrees_of_freedom: int
    p_value: float

    def __str__(self) -> str:
        if np.isnan(self.p_value):
            return "too few replicates for a test"
        return f"T² = {self.statistic:.3g} ({self.degrees_of_freedom} df), p = {probability(self.p_value)}"


class KolmogorovSmirnov(NamedTuple):
    """Kolmogorov-Smirnov distance from a distribution, and the p-value of so large a one."""

    statistic: Any
    p_value: Any


class NormalComparison(Reported):
    """Replicates of a vector (R, q), beside the normal distribution with mean zero that is its limit.

    `names` are those of the q entries, `rank` is that of the asymptotic covariance, less than q where constraints tie
    entries together.
    """

    information: Information
    names: tuple[str, ...]
    rank: int

    @property
    @abc.abstractmethod
    def valid(self) -> Bool[np.ndarray, " r"]:
        """Which replicates enter."""

    @property
    @abc.abstractmethod
    def vectors(self) -> Float[np.ndarray, "k q"]:
        """One row for each replicate that enters."""

    @property
    @abc.abstractmethod
    def _limit(self) -> Information | Covariance:
        """The asymptotic covariance, with its error."""

    @property
    def num_replicates(self) -> int:
        """R, those that failed included."""
        return len(self.valid)

    @property
    def num_failed(self) -> int:
        """How many replicates are left out."""
        return int(np.sum(~self.valid))

    @property
    def asymptotic_covariance(self) -> Float[np.ndarray, "q q"]:
        """The covariance of the limiting normal distribution; NaN where there is none."""
        return np.asarray(self._limit.matrix, float)

    @property
    def asymptotic_covariance_errors(self) -> Float[np.ndarray, "k q q"]:
        """Independent errors of it, whose squares add up to its variance; none (k = 0) where it is exact."""
        errors, q = self._limit.errors, len(self.names)
        return np.zeros((0, q, q)) if errors is None else np.asarray(errors, float)

    @property
    def mean(self) -> Float[np.ndarray, " q"]:
        """Over the replicates."""
        return self._moments[0].value

    @property
    def mean_error(self) -> Float[np.ndarray, " q"]:
        """Monte Carlo standard error of `mean`."""
        return self._moments[0].standard_error

    @property
    def covariance(self) -> Float[np.ndarray, "q q"]:
        """Over the replicates, about their mean."""
        return self._moments[1].value

    @property
    def covariance_error(self) -> Float[np.ndarray, "q q"]:
        """Monte Carlo standard error of each entry of `covariance`, whatever the distribution (fourth moments)."""
        return self._moments[1].standard_error

    @functools.cached_property
    def _moments(self) -> tuple[Estimate, Estimate]:
        return moments(self.vectors)

    @functools.cached_property
    def standardized(self) -> Float[np.ndarray, "k q"]:
        """Each entry divided by its asymptotic standard deviation; where there is none, by that of the replicates."""
        variance = np.diagonal(self.asymptotic_covariance)
        scale = np.sqrt(np.where(np.isfinite(variance), variance, np.diagonal(self.covariance)))
        return self.vectors / np.where(scale > 0, scale, np.nan)

    @functools.cached_property
    def whitened(self) -> Float[np.ndarray, "k p"]:
        """The vectors in p directions in which the limit is independent standard normals."""
        return self.vectors @ self._whitening.T

    @functools.cached_property
    def _whitening(self) -> Float[np.ndarray, "p q"]:
        """W with W Σ Wᵀ = 1, from the p largest eigenvalues of Σ at unit diagonal; NaN where these are not all positive."""
        covariance, q = self.asymptotic_covariance, len(self.names)
        if np.all(np.isfinite(covariance)):
            scale = np.sqrt(np.diagonal(covariance))
            scale = np.where(scale > 0, scale, 1.0)
            values, directions = np.linalg.eigh(covariance / scale[:, None] / scale[None, :])
            values, directions = values[q - self.rank :], directions[:, q - self.rank :]
            # The rounding is that of the dtype in which the information was computed.
            if np.all(values > 10 * q * np.finfo(np.asarray(self.information.matrix).dtype).eps):
                return (directions / np.sqrt(values)).T / scale
        return np.full((self.rank, q), np.nan)

    @functools.cached_property
    def mahalanobis(self) -> Float[np.ndarray, " k"]:
        """Squared distances xᵀ Σ⁻¹ x from zero in the asymptotic covariance: in the limit χ² with `rank` degrees of freedom."""
        return np.sum(self.whitened**2, axis=1)

    @functools.cached_property
    def skewness(self) -> Estimate:
        """Of each entry, zero in the limit, with its Monte Carlo standard error; NaN of a few replicates."""
        if len(self.vectors) < MIN_REPLICATES:
            return Estimate(*np.full((2, len(self.names)), np.nan))
        centered = self.vectors - np.mean(self.vectors, axis=0)
        deviation = np.sqrt(np.mean(centered**2, axis=0))
        z = centered / np.where(deviation > 0, deviation, np.nan)
        value = np.mean(z**3, axis=0)
        # The delta method for m₃/m₂^(3/2): what one replicate adds to it.
        influence = z**3 - value - 3 * z - 1.5 * value * (z**2 - 1)
        return Estimate(value, np.sqrt(np.mean(influence**2, axis=0) / len(z)))

    @functools.cached_property
    def marginal_normality(self) -> KolmogorovSmirnov:
        """Kolmogorov-Smirnov for each entry of `standardized` against the standard normal, (q,) each.

        NaN without an asymptotic standard deviation: with one that is estimated, the p-value would be another.
        """
        from scipy.special import ndtr

        columns = np.where(np.isfinite(np.diagonal(self.asymptotic_covariance)), self.standardized, np.nan).T
        tests = [kolmogorov_smirnov(ndtr(np.sort(column))) for column in columns]
        return KolmogorovSmirnov(*(np.array(part) for part in zip(*tests, strict=True)))

    @functools.cached_property
    def joint_normality(self) -> KolmogorovSmirnov:
        """Kolmogorov-Smirnov for `mahalanobis` against χ²."""
        from scipy.special import chdtr

        return kolmogorov_smirnov(chdtr(self.rank, np.sort(self.mahalanobis)))

    @functools.cached_property
    def mean_test(self) -> HotellingTest:
        """Test that the mean is zero, over all entries at once."""
        return hotelling(self.whitened, np.zeros((0, self.rank)))

    @functools.cached_property
    def covariance_test(self) -> HotellingTest:
        """Test that the covariance is the asymptotic one, over all entries at once."""
        rows, columns = np.triu_indices(self.rank)
        centered, count = self.whitened, len(self.whitened)
        if count:
            centered = centered - np.mean(centered, axis=0)
        # n/(n − 1), so that the products have the unbiased covariance for their mean.
        products = count / max(count - 1, 1) * centered[:, rows] * centered[:, columns] - (rows == columns)
        errors = self._whitening @ self.asymptotic_covariance_errors @ self._whitening.T
        return hotelling(products, errors[:, rows, columns])

    def _facts(self, failures: str, mean: str, covariance: str) -> list[tuple[str, str]]:
        """Replicates, information and the three tests, for a report; no tests where there is no limit."""
        left_out = f", of which {failures} and are left out of every figure" if self.num_failed else ""
        facts = [("Replicates", f"{self.num_replicates}{left_out}"), ("Information", self.information.route)]
        if np.all(np.isnan(self.whitened)):
            return facts
        distance = self.joint_normality
        return [
            *facts,
            (f"Mean against {mean}", str(self.mean_test)),
            (f"Covariance against {covariance}", str(self.covariance_test)),
            (
                f"Distances against χ² ({self.rank} df)",
                f"Kolmogorov-Smirnov {distance.statistic:.3g}, p = {probability(distance.p_value)}",
            ),
        ]


def moments(vectors: Float[np.ndarray, "k q"]) -> tuple[Estimate, Estimate]:
    """Mean and covariance with their Monte Carlo errors; NaN where there are too few vectors for them."""
    count, q = vectors.shape
    if not count:
        return Estimate(*np.full((2, q), np.nan)), Estimate(*np.full((2, q, q), np.nan))
    mean = np.mean(vectors, axis=0, dtype=float)
    centered = vectors - mean
    # By numpy, where `fisher_jax.moments` would compile a program.
    covariance = covariance_of_sums(count, centered.T @ centered, (centered**2).T @ centered**2, np)
    if count < MIN_REPLICATES:
        covariance = covariance._replace(standard_error=np.full((q, q), np.nan))
    return Estimate(mean, np.sqrt(np.diagonal(covariance.value) / count)), covariance


def standard_deviations(covariance: Estimate, num_observations: int = 1) -> Estimate:
    """Square roots of the diagonal divided by n, each with its error: d√v = dv/(2√v)."""
    variance, error = np.diagonal(covariance.value), np.diagonal(covariance.standard_error)
    value = np.sqrt(variance / num_observations)
    with np.errstate(invalid="ignore", divide="ignore"):
        return Estimate(value, 0.5 * value * error / variance)


def hotelling(rows: Float[np.ndarray, "r m"], errors: Float[np.ndarray, "k m"]) -> HotellingTest:
    """Hotelling's test that the mean of the rows is zero; `errors` are further independent errors of that mean."""
    from scipy.stats import f

    count, m = rows.shape
    if count <= m + 1 or not np.all(np.isfinite(rows)) or not np.all(np.isfinite(errors)):
        return HotellingTest(np.nan, m, np.nan)
    mean = np.mean(rows, axis=0)
    variance = np.cov(rows, rowvar=False).reshape(m, m) / count + errors.T @ errors
    values, directions = np.linalg.eigh(variance)
    along = directions.T @ mean
    size = np.sqrt(np.mean(rows**2)) or 1.0
    # Directions without any spread: the mean is exactly zero there, or certainly is not.
    spread = values > (1e-12 * size) ** 2
    if np.any(np.abs(along[~spread]) > 1e-9 * size):
        return HotellingTest(np.inf, m, 0.0)
    statistic, df = float(np.sum(along[spread] ** 2 / values[spread])), int(np.sum(spread))
    if not df:
        return HotellingTest(0.0, 0, 1.0)
    return HotellingTest(statistic, df, float(f.sf(statistic * (count - df) / (df * (count - 1)), df, count - df)))


def kolmogorov_smirnov(uniform: Float[np.ndarray, " k"]) -> KolmogorovSmirnov:
    """Of sorted values of a distribution function, against the uniform distribution."""
    from scipy.stats import kstwo

    count = len(uniform)
    if not count or not np.all(np.isfinite(uniform)):
        return KolmogorovSmirnov(np.nan, np.nan)
    steps = np.arange(count + 1) / count
    statistic = float(max(np.max(steps[1:] - uniform), np.max(uniform - steps[:-1])))
    return KolmogorovSmirnov(statistic, float(kstwo.sf(statistic, count)))
