"""Vectors whose distribution theory says is normal: their moments with errors, and how far they are from it."""

import abc
import functools
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from fisher_jax.information import Information
from fisher_jax.moments import Estimate, covariance_of_sums
from fisher_jax.reporting import Reported

_TOO_FEW = 4  # vectors, which have no fourth moments to speak of


class Agreement(NamedTuple):
    """A test that a mean is what theory says: Hotelling's T², χ² distributed in the limit of many replicates if it is.

    The p-value is that of F, so that it holds for few replicates as well.
    """

    statistic: float
    degrees_of_freedom: int
    p_value: float


class Closeness(NamedTuple):
    """Kolmogorov-Smirnov distance from the distribution that theory says, and the p-value of so large a one."""

    statistic: Any
    p_value: Any


class ComparedWithNormal(Reported):
    """Vectors, one a replicate, beside the normal distribution with mean zero that theory promises.

    Attributes
    ----------
    vectors : array (R, q)
        One row for each replicate that counts.
    expected : array (q, q)
        The covariance that theory promises; NaN where it promises none.
    expected_pieces : array (k, q, q)
        Independent errors of it, where it is sampled; none (k = 0) where it is exact.
    rank : int
        Its rank p, less than q where constraints tie entries together.
    """

    information: Information
    names: tuple[str, ...]
    rank: int

    @property
    @abc.abstractmethod
    def vectors(self) -> Float[np.ndarray, "r q"]:
        """One row for each replicate that counts."""

    @property
    @abc.abstractmethod
    def expected(self) -> Float[np.ndarray, "q q"]:
        """The covariance that theory promises."""

    @property
    @abc.abstractmethod
    def expected_pieces(self) -> Float[np.ndarray, "k q q"]:
        """Independent errors of it."""

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
    def standardised(self) -> Float[np.ndarray, "r q"]:
        """Each entry in units of the standard deviation that theory promises; where it promises none, of its own."""
        own = np.sqrt(np.diagonal(self.covariance))
        promised = np.sqrt(np.diagonal(self.expected))
        scale = np.where(np.isfinite(promised), promised, own)
        return self.vectors / np.where(scale > 0, scale, np.nan)

    @functools.cached_property
    def whitened(self) -> Float[np.ndarray, "r p"]:
        """The vectors in p directions in which theory promises independent standard normals."""
        return self.vectors @ self._whitening.T

    @functools.cached_property
    def _whitening(self) -> Float[np.ndarray, "p q"]:
        """W with W Σ Wᵀ = 1, from the p largest eigenvalues of Σ at unit diagonal; NaN where these are not all positive."""
        nothing = np.full((self.rank, len(self.names)), np.nan)
        if not np.all(np.isfinite(self.expected)):
            return nothing
        scale = np.sqrt(np.diagonal(self.expected))
        scale = np.where(scale > 0, scale, 1.0)
        values, directions = np.linalg.eigh(self.expected / scale[:, None] / scale[None, :])
        kept = slice(len(values) - self.rank, None)
        rounding = np.finfo(np.asarray(self.information.matrix).dtype).eps
        if np.any(values[kept] <= 10 * len(values) * rounding):
            return nothing
        return (directions[:, kept] / np.sqrt(values[kept])).T / scale

    @functools.cached_property
    def mahalanobis(self) -> Float[np.ndarray, " r"]:
        """Squared distances xᵀ Σ⁻¹ x from zero in the promised covariance: χ² with `rank` degrees of freedom in theory."""
        return np.sum(self.whitened**2, axis=1)

    @functools.cached_property
    def skewness(self) -> Estimate:
        """Of each entry, zero in theory, with its Monte Carlo standard error; NaN of a few replicates."""
        if len(self.vectors) <= _TOO_FEW:
            nothing = np.full(len(self.names), np.nan)
            return Estimate(nothing, nothing)
        off = self.vectors - np.mean(self.vectors, axis=0)
        spread = np.sqrt(np.mean(off**2, axis=0))
        z = off / np.where(spread > 0, spread, np.nan)
        value = np.mean(z**3, axis=0)
        influence = z**3 - value - 3 * z - 1.5 * value * (z**2 - 1)
        return Estimate(value, np.sqrt(np.mean(influence**2, axis=0) / len(z)))

    @functools.cached_property
    def marginal_normality(self) -> Closeness:
        """Kolmogorov-Smirnov for each entry of `standardised` against the standard normal, (q,) each.

        NaN where no standard deviation is promised: by their own one, the p-value would be another.
        """
        promised = np.isfinite(np.diagonal(self.expected))
        found = [
            against_normal(np.where(known, column, np.nan))
            for known, column in zip(promised, self.standardised.T, strict=True)
        ]
        return Closeness(*(np.array(part) for part in zip(*found, strict=True)))

    @functools.cached_property
    def joint_normality(self) -> Closeness:
        """Kolmogorov-Smirnov for `mahalanobis` against χ²."""
        return against_chi_squared(self.mahalanobis, self.rank)

    @functools.cached_property
    def mean_test(self) -> Agreement:
        """Test that the mean is zero, over all entries at once."""
        return joint_test(self.whitened, np.zeros((0, self.rank)))

    @functools.cached_property
    def covariance_test(self) -> Agreement:
        """Test that the covariance is the promised one, over all entries at once, whose errors go together."""
        rows, columns = np.triu_indices(self.rank)
        off = self.whitened - np.mean(self.whitened, axis=0) if len(self.whitened) else self.whitened
        count = len(off) / max(len(off) - 1, 1)
        products = count * off[:, rows] * off[:, columns] - (rows == columns)
        carried = self._whitening @ self.expected_pieces @ self._whitening.T
        return joint_test(products, carried[:, rows, columns])

    def agreement(self, mean: str, covariance: str) -> list[tuple[str, str]]:
        """The three tests in words, for a report; nothing where theory promises nothing."""
        if np.all(np.isnan(self.whitened)):
            return []
        distance = self.joint_normality
        return [
            (f"Mean against {mean}", _tested(self.mean_test)),
            (f"Covariance against {covariance}", _tested(self.covariance_test)),
            (
                f"Distances against χ² ({self.rank} df)",
                f"Kolmogorov-Smirnov {distance.statistic:.3g}, p = {probability(distance.p_value)}",
            ),
        ]


def _tested(found: Agreement) -> str:
    if np.isnan(found.p_value):
        return "too few replicates to tell"
    return f"T² = {found.statistic:.3g} ({found.degrees_of_freedom} df), p = {probability(found.p_value)}"


def moments(vectors: Float[np.ndarray, "r q"]) -> tuple[Estimate, Estimate]:
    """Mean and covariance with their Monte Carlo errors; NaN of fewer than two vectors, and the covariance's of a few."""
    count, q = vectors.shape
    if not count:
        nothing = np.full(q, np.nan), np.full((q, q), np.nan)
        return Estimate(nothing[0], nothing[0]), Estimate(nothing[1], nothing[1])
    mean = np.mean(vectors, axis=0, dtype=float)
    off = vectors - mean
    covariance = covariance_of_sums(count, off.T @ off, (off**2).T @ off**2, np)
    average = Estimate(mean, np.sqrt(np.diagonal(covariance.value) / count))
    return average, covariance if count > _TOO_FEW else covariance._replace(standard_error=np.full((q, q), np.nan))


def joint_test(rows: Float[np.ndarray, "r m"], pieces: Float[np.ndarray, "k m"]) -> Agreement:
    """Hotelling's test that the mean of the rows is zero; `pieces` are further errors that its expectation has."""
    count, m = rows.shape
    if count <= m + 1 or not np.all(np.isfinite(rows)) or not np.all(np.isfinite(pieces)):
        return Agreement(np.nan, m, np.nan)
    from scipy.stats import f

    mean = np.mean(rows, axis=0)
    variance = np.cov(rows, rowvar=False).reshape(m, m) / count + pieces.T @ pieces
    values, directions = np.linalg.eigh(variance)
    along = directions.T @ mean
    size = np.sqrt(np.mean(rows**2)) or 1.0
    live = values > (1e-12 * size) ** 2
    if np.any(np.abs(along[~live]) > 1e-9 * size):  # off without any spread
        return Agreement(np.inf, m, 0.0)
    statistic = float(np.sum(along[live] ** 2 / values[live]))
    df = int(np.sum(live))
    if not df:  # exactly what theory says, each time
        return Agreement(0.0, 0, 1.0)
    return Agreement(statistic, df, float(f.sf(statistic * (count - df) / (df * (count - 1)), df, count - df)))


def against_normal(values: Float[np.ndarray, " r"]) -> Closeness:
    """Kolmogorov-Smirnov against the standard normal."""
    from scipy.special import ndtr

    return _kolmogorov_smirnov(ndtr(np.sort(values)))


def against_chi_squared(values: Float[np.ndarray, " r"], degrees_of_freedom: int) -> Closeness:
    """Kolmogorov-Smirnov against χ²."""
    from scipy.special import chdtr

    return _kolmogorov_smirnov(chdtr(degrees_of_freedom, np.sort(values)))


def _kolmogorov_smirnov(uniform: Float[np.ndarray, " r"]) -> Closeness:
    """Of sorted values of the distribution function."""
    from scipy.stats import kstwo

    count = len(uniform)
    if not count or not np.all(np.isfinite(uniform)):
        return Closeness(np.nan, np.nan)
    steps = np.arange(count + 1) / count
    statistic = float(max(np.max(steps[1:] - uniform), np.max(uniform - steps[:-1])))
    return Closeness(statistic, float(kstwo.sf(statistic, count)))


def with_error(value: Any, error: Any) -> str:
    """`0.4990 ± 0.0012`: the error to two digits and the value to the same decimals; a dash where there is none."""
    value, error = float(value), float(error)
    if np.isnan(value):
        return "-"
    if not (np.isfinite(error) and error > 0):
        return f"{value:.4g}"
    decimals = 1 - int(np.floor(np.log10(float(f"{error:.1e}"))))
    if not 0 <= decimals <= 7 or abs(value) >= 1e6:
        return f"{value:.4g} ± {error:.2g}"
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def probability(p: Any) -> str:
    """A p-value as reports print it."""
    return "-" if np.isnan(float(p)) else f"{float(p):.2g}"
