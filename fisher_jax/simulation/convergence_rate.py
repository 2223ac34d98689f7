"""`convergence_rate`: how fast an estimator's spread falls as data sets grow."""

from dataclasses import dataclass, fields
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, PyTree

from fisher_jax.errors import check_count, check_key, entry_point, require, warn
from fisher_jax.reporting import Report, Reported, Table
from fisher_jax.simulation.asymptotics import promise_of
from fisher_jax.simulation.experiment import check_numbers, experiment_of
from fisher_jax.simulation.normality import with_error
from fisher_jax.simulation.sampling_distribution import compared, estimated, key_apart
from fisher_jax.simulation.sampling_record import SamplingDistribution


@dataclass(frozen=True, repr=False)
class ConvergenceRate(Reported):
    """The slope of log standard deviation on log n, beside the −½ of regular models. It prints as a table.

    Attributes
    ----------
    distributions : tuple of SamplingDistribution
        One for each n.
    rate, rate_error : arrays (q,)
        The exponent a in sd(θ̂) ∝ nᵃ for each parameter and its Monte Carlo standard error, by weighted least squares.
    """

    distributions: tuple[SamplingDistribution, ...]
    rate: Any
    rate_error: Any

    @property
    def names(self) -> tuple[str, ...]:
        """The entries of θ."""
        return self.distributions[0].names

    @property
    def num_observations(self) -> tuple[int, ...]:
        """Each n."""
        return tuple(found.num_observations for found in self.distributions)

    @property
    def standard_deviation(self) -> Float[np.ndarray, "k q"]:
        """Of θ̂ at each n."""
        return np.stack([found.standard_deviation.value for found in self.distributions])

    @property
    def standard_deviation_error(self) -> Float[np.ndarray, "k q"]:
        """Its Monte Carlo standard error."""
        return np.stack([found.standard_deviation.standard_error for found in self.distributions])

    @property
    def promised(self) -> Float[np.ndarray, "k q"]:
        """The standard deviation (I⁻¹/n)^½ that theory promises; NaN where it promises none."""
        diagonals = [np.diagonal(found.expected) / found.num_observations for found in self.distributions]
        return np.sqrt(np.stack(diagonals))

    @entry_point
    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each n and parameter (needs the extra `frames`)."""
        pd = require("pandas", "frames")
        index = pd.MultiIndex.from_product([self.num_observations, self.names], names=["num_observations", "name"])
        columns = {
            "standard_deviation": self.standard_deviation,
            "standard_deviation_error": self.standard_deviation_error,
            "promised": self.promised,
        }
        return pd.DataFrame({name: np.ravel(part) for name, part in columns.items()}, index=index)

    def summary(self) -> Report:
        first = self.distributions[0]
        failed = ", ".join(f"{found.num_failed} at n = {found.num_observations}" for found in self.distributions)
        facts = [("Estimator", first.estimator), ("Replicates", f"{first.num_replicates} at each n; failed: {failed}")]
        rows = [
            (
                name,
                *map(with_error, self.standard_deviation[:, k], self.standard_deviation_error[:, k]),
                with_error(self.rate[k], self.rate_error[k]),
            )
            for k, name in enumerate(self.names)
        ]
        titles = ("parameter", *(f"sd, n = {n}" for n in self.num_observations), "exponent of n")
        notes = dict.fromkeys(note for found in self.distributions for note in found.notes)
        return Report(
            "Rate of convergence", facts, [Table(titles, rows)], ["regular models have the exponent −½.", *notes]
        )


jax.tree_util.register_dataclass(ConvergenceRate, [f.name for f in fields(ConvergenceRate)], [])


@entry_point
def convergence_rate(
    model: Any,
    params: PyTree,
    key: Any,
    *,
    num_observations: Any,
    num_replicates: Any = 2000,
    given: PyTree = None,
    estimator: Any = None,
    expectation: Any = None,
) -> ConvergenceRate:
    """Sampling distributions at several n, and the exponent a with which the standard deviation falls, sd(θ̂) ∝ nᵃ.

    Parameters
    ----------
    num_observations : sequence of int
        At least two different n; with `given`, multiples of the number of its rows.
    model, params, key, num_replicates, given, estimator, expectation
        As for `sampling_distribution`. Each n has data sets of its own.

    Returns
    -------
    ConvergenceRate
        With the exponent of each parameter and its error: −½ in regular models, −1 for the maximum of uniform observations.
        NaN where fewer than two n have a standard deviation, with a `FitWarning`.

    Raises
    ------
    ValueError, TypeError
        As `sampling_distribution` does, and for fewer than two different n.

    Notes
    -----
    The error is that of the replicates alone: at small n the exponent is that of these n, not of the limit.

    References
    ----------
    van der Vaart, A. W. (1998), Asymptotic Statistics, section 5.3 for −½; Lehmann, E. L. and Casella, G. (1998), Theory of
    Point Estimation, 2nd ed., chapter 6 for others.

    Examples
    --------
    >>> import fisher_jax as fj, jax, jax.numpy as jnp
    >>> uniform = fj.Model(
    ...     lambda p, y: jnp.where((y > 0) & (y < p["upper"]), -jnp.log(p["upper"]), -jnp.inf),
    ...     sample=lambda key, p: p["upper"] * jax.random.uniform(key),
    ... )
    >>> found = fj.convergence_rate(
    ...     uniform, {"upper": 1.0}, jax.random.key(0), num_observations=(50, 200), estimator=lambda y: {"upper": y.max()}
    ... )
    >>> print(abs(found.rate[0] + 1) < 0.1)
    True
    """
    check_key(key)
    sizes = check_numbers(num_observations)
    if len(set(sizes)) < 2:
        raise ValueError(f"num_observations={num_observations} must be at least two different numbers.")
    count = check_count(num_replicates, 2, "num_replicates")
    found = tuple(
        _at(model, params, jax.random.fold_in(key, k), (n, count), given, estimator, expectation)
        for k, n in enumerate(sizes)
    )
    spread = np.stack([one.standard_deviation.value for one in found])
    errors = np.stack([one.standard_deviation.standard_error for one in found])
    slopes = [_slope(np.log(np.array(sizes, float)), spread[:, k], errors[:, k]) for k in range(spread.shape[1])]
    if any(np.isnan(slope) for slope, _ in slopes):
        warn("the exponent is NaN where fewer than two n have a standard deviation; print the result to see why.")
    rate, error = (np.array(part) for part in zip(*slopes, strict=True))
    return ConvergenceRate(found, rate, error)


def _at(model: Any, params: PyTree, key: Any, numbers: Any, given: PyTree, estimator: Any, expectation: Any) -> Any:
    experiment = experiment_of(model, params, given, numbers[0])
    estimates = estimated(experiment, key, numbers[1], estimator)
    promise = promise_of(experiment, expectation, key_apart(key))
    return compared(experiment, *estimates, estimator, promise)


def _slope(log_n: np.ndarray, spread: np.ndarray, errors: np.ndarray) -> tuple[float, float]:
    """Of log spread on log n by weighted least squares, and its error."""
    known = np.isfinite(spread) & np.isfinite(errors) & (spread > 0) & (errors > 0)
    if len(set(log_n[known])) < 2:
        return np.nan, np.nan
    weight = (spread[known] / errors[known]) ** 2
    x = log_n[known] - np.average(log_n[known], weights=weight)
    information = np.sum(weight * x**2)
    return float(np.sum(weight * x * np.log(spread[known])) / information), float(1 / np.sqrt(information))
