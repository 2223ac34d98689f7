"""The record of a sampling distribution: estimates from many data sets beside what theory promises of them."""

import functools
from dataclasses import dataclass, fields
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from fisher_jax.errors import entry_point, require
from fisher_jax.fitting.status import Status
from fisher_jax.information import Covariance, Information
from fisher_jax.moments import Estimate
from fisher_jax.reporting import Report, Table, number
from fisher_jax.simulation.normality import ComparedWithNormal, moments, with_error

MAXIMUM_LIKELIHOOD = "maximum likelihood"


@dataclass(frozen=True, repr=False)
class SamplingDistribution(ComparedWithNormal):
    """What an estimator does over many data sets of one size, beside N(θ, (n I)⁻¹). It prints as a table.

    Attributes
    ----------
    estimates : array (R, q)
        θ̂ of every replicate, failed ones included; see `kept`.
    status_code : integer array (R,)
        How each fit ended, codes of `Status`; of an estimator of your own, whether it is finite.
    truth : array (q,)
        θ, the parameters that the data were drawn at.
    information : Information
        Per observation; of the free coordinates where constraints tie entries together. NaN where there is none.
    bound : Covariance
        (q, q): the covariance of √n(θ̂ − θ) that theory promises, and the Cramér-Rao bound of unbiased estimators.
    predicted_bias, predicted_bias_error : arrays (q,)
        E[θ̂] − θ of maximum likelihood to order 1/n, and its error; NaN where that does not hold, for `notes` to say.
    num_observations : int
        n.
    names : tuple of str
        The entries of θ.
    rank : int
        How many of them are free, p.
    estimator : str
    notes : tuple of str
        What speaks against the theory here.

    Notes
    -----
    Only replicates that converged enter any figure; the others are counted by status in print and in `num_failed`.

    `mean`, `covariance`, `mean_error` and `covariance_error` are of `vectors`, √n(θ̂ − θ), with Monte Carlo standard errors;
    `standardised` divides these by the promised standard deviations, or by their own where none is promised. `mahalanobis`
    holds n(θ̂ − θ)ᵀ I (θ̂ − θ), `marginal_normality` and `joint_normality` the Kolmogorov-Smirnov distances from the standard
    normal and from χ² with their p-values, which take a sampled information for exact; `mean_test` and `covariance_test` test
    that the mean is zero and the covariance is the bound, all entries at once. With enough replicates all of them find what
    any finite n differs by from its limit.
    """

    estimates: Any
    status_code: Any
    truth: Any
    information: Information
    bound: Covariance
    predicted_bias: Any
    predicted_bias_error: Any
    num_observations: int
    names: tuple[str, ...]
    rank: int
    estimator: str
    notes: tuple[str, ...]

    @property
    def kept(self) -> Bool[np.ndarray, " r"]:
        """Which replicates converged; only these enter any figure."""
        return np.asarray(self.status_code) <= Status.CONVERGED_TO_ROUNDING

    @property
    def num_replicates(self) -> int:
        """R, those that failed included."""
        return len(self.status_code)

    @property
    def num_failed(self) -> int:
        """How many are left out."""
        return int(np.sum(~self.kept))

    @property
    def failures(self) -> dict[Status, int]:
        """How many failed, by status."""
        codes, counts = np.unique(np.asarray(self.status_code)[~self.kept], return_counts=True)
        return {Status(int(code)): int(count) for code, count in zip(codes, counts, strict=True)}

    @functools.cached_property
    def vectors(self) -> Float[np.ndarray, "k q"]:
        """√n(θ̂ − θ) of each replicate that converged."""
        return np.sqrt(self.num_observations) * (np.asarray(self.estimates)[self.kept] - np.asarray(self.truth))

    @property
    def expected(self) -> Float[np.ndarray, "q q"]:
        """The promised covariance of √n(θ̂ − θ), the matrix of `bound`."""
        return np.asarray(self.bound.matrix, float)

    @property
    def expected_pieces(self) -> Float[np.ndarray, "k q q"]:
        """Independent errors of it; none where it is exact."""
        errors = self.bound.errors
        return np.zeros((0, *self.expected.shape)) if errors is None else np.asarray(errors, float)

    @functools.cached_property
    def bias(self) -> Estimate:
        """E[θ̂] − θ over the replicates, with its error, in the parameters' units."""
        root = np.sqrt(self.num_observations)
        return Estimate(self.mean / root, self.mean_error / root)

    @functools.cached_property
    def standard_deviation(self) -> Estimate:
        """Of θ̂ itself, (q,) with its error."""
        variance, error = np.diagonal(self.covariance), np.diagonal(self.covariance_error)
        value = np.sqrt(variance / self.num_observations)
        with np.errstate(invalid="ignore", divide="ignore"):
            return Estimate(value, 0.5 * value * error / variance)

    @functools.cached_property
    def efficiency(self) -> Estimate:
        """Cramér-Rao bound by actual variance, (q,): one for an efficient estimator.

        Above one only by bias, by chance, or since fits that failed are left out.
        """
        variance = np.diagonal(self.covariance)
        with np.errstate(invalid="ignore", divide="ignore"):
            value = np.diagonal(self.expected) / variance
            relative = np.diagonal(self.covariance_error) / variance
            pieces = np.diagonal(self.expected_pieces, axis1=1, axis2=2) / np.diagonal(self.expected)
        return Estimate(value, value * np.sqrt(relative**2 + np.sum(pieces**2, axis=0)))

    @functools.cached_property
    def joint_efficiency(self) -> Estimate:
        """(det bound / det covariance)^(1/p) over the free directions: one for an efficient estimator."""
        covariance = moments(self.whitened)[1].value
        if (
            len(self.whitened) < 2 * self.rank + 4
            or not np.all(np.isfinite(covariance))
            or np.linalg.eigvalsh(covariance)[0] <= 0
        ):
            return Estimate(np.nan, np.nan)
        value = float(np.exp(-np.linalg.slogdet(covariance)[1] / self.rank))
        off = self.whitened - np.mean(self.whitened, axis=0)
        lengths = np.sum(off * np.linalg.solve(covariance, off.T).T, axis=1)  # d log det = mean of these, less p
        carried = self._whitening @ self.expected_pieces @ self._whitening.T
        pieces = np.trace(carried, axis1=1, axis2=2)
        error = np.sqrt(np.var(lengths) / len(off) + np.sum(pieces**2))
        return Estimate(value, value * float(error) / self.rank)

    @entry_point
    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each parameter (needs the extra `frames`)."""
        pd = require("pandas", "frames")
        return pd.DataFrame(self._columns(), index=pd.Index(self.names, name="name"))

    def _columns(self) -> dict[str, Any]:
        distance = self.marginal_normality
        pairs = {
            "bias": self.bias,
            "predicted_bias": Estimate(self.predicted_bias, self.predicted_bias_error),
            "standard_deviation": self.standard_deviation,
            "efficiency": self.efficiency,
            "skewness": self.skewness,
        }
        columns = {"truth": np.asarray(self.truth)}
        for name, (value, error) in pairs.items():
            columns |= {name: np.asarray(value), f"{name}_error": np.asarray(error)}
        promised = np.sqrt(np.diagonal(self.expected) / self.num_observations)
        tests = {"distance_from_normal": distance.statistic, "distance_p_value": distance.p_value}
        return columns | {"promised_standard_deviation": promised} | tests

    def summary(self) -> Report:
        columns = self._columns()
        titles = ("parameter", "truth", "bias", "predicted", "std. dev.", "promised", "efficiency", "skewness")
        shown = (
            "bias",
            "predicted_bias",
            "standard_deviation",
            "promised_standard_deviation",
            "efficiency",
            "skewness",
        )
        nothing = np.zeros(len(self.names))
        rows = []
        for k, name in enumerate(self.names):
            cells = [with_error(columns[c][k], columns.get(f"{c}_error", nothing)[k]) for c in shown]
            rows.append((name, number(self.truth[k]), *cells))
        title = f"Sampling distribution of {self.estimator}, {self.num_observations} observations"
        return Report(title, self._facts(), [Table(titles, rows)], list(self.notes))

    def _facts(self) -> list[tuple[str, str]]:
        failed = ", ".join(f"{count} {status.label}" for status, count in self.failures.items())
        counted = f"{self.num_replicates}"
        if self.num_failed:
            counted += f", of which {self.num_failed} failed ({failed}) and are left out of every figure"
        facts = [("Replicates", counted), ("Information", self.information.route)]
        efficiency = self.joint_efficiency
        if not np.isnan(efficiency.value):
            facts.append(("Efficiency, all parameters", with_error(*efficiency)))
        return facts + self.agreement("θ", "the bound")


_STATIC = ("num_observations", "names", "rank", "estimator", "notes")
jax.tree_util.register_dataclass(
    SamplingDistribution, [f.name for f in fields(SamplingDistribution) if f.name not in _STATIC], list(_STATIC)
)
