"""`convergence_rate`: how fast an estimator's standard deviation falls as data sets grow."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.errors import check_count, check_key, entry_point, require, warn
from fisher_jax.information.expectations import Expectation
from fisher_jax.models.model import Model
from fisher_jax.reporting import Report, Reported, ReportTable, with_error
from fisher_jax.simulation.experiment import check_sizes, make_experiment
from fisher_jax.simulation.sampling_distribution import (
    Estimator,
    SamplingDistribution,
    check_methods,
    simulate,
)


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
        return tuple(each.num_observations for each in self.distributions)

    @property
    def standard_deviation(self) -> Float[np.ndarray, "k q"]:
        """Of θ̂ at each n."""
        return np.stack([each.standard_deviation.value for each in self.distributions])

    @property
    def standard_deviation_error(self) -> Float[np.ndarray, "k q"]:
        """Its Monte Carlo standard error."""
        return np.stack([each.standard_deviation.standard_error for each in self.distributions])

    @property
    def asymptotic_standard_deviation(self) -> Float[np.ndarray, "k q"]:
        """The standard deviation (I⁻¹/n)^½ by asymptotic theory; NaN where there is no bound."""
        return np.stack([each.asymptotic_standard_deviation for each in self.distributions])

    @entry_point
    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each n and parameter (needs the extra `frames`)."""
        pd = require("pandas", "frames")
        index = pd.MultiIndex.from_product([self.num_observations, self.names], names=["num_observations", "name"])
        columns = ("standard_deviation", "standard_deviation_error", "asymptotic_standard_deviation")
        return pd.DataFrame({name: np.ravel(getattr(self, name)) for name in columns}, index=index)

    def summary(self) -> Report:
        first = self.distributions[0]
        failed = ", ".join(f"{each.num_failed} at n = {each.num_observations}" for each in self.distributions)
        facts = [("Estimator", first.estimator), ("Replicates", f"{first.num_replicates} at each n; failed: {failed}")]
        values = np.vstack([self.standard_deviation, self.rate])
        errors = np.vstack([self.standard_deviation_error, self.rate_error])
        rows = [(name, *map(with_error, values[:, k], errors[:, k])) for k, name in enumerate(self.names)]
        headings = ("parameter", *(f"sd, n = {n}" for n in self.num_observations), "exponent of n")
        notes = ["regular models have the exponent −½."]
        notes += dict.fromkeys(note for each in self.distributions for note in each.notes)
        return Report("Rate of convergence", facts, [ReportTable(headings, rows)], notes)


jax.tree_util.register_dataclass(ConvergenceRate, [f.name for f in fields(ConvergenceRate)], [])


@entry_point
def convergence_rate(
    model: Model | Callable[..., Any],
    params: PyTree,
    key: Array,
    *,
    num_observations: Sequence[int],
    num_replicates: int = 2000,
    given: PyTree = None,
    estimator: Estimator | None = None,
    expectation: Expectation | None = None,
) -> ConvergenceRate:
    """Sampling distributions at several n, and the exponent a with which the standard deviation falls, sd(θ̂) ∝ nᵃ.

    Parameters
    ----------
    num_observations : sequence of int
        At least two different n; with `given`, multiples of the number of its rows.
    model, params, key, num_replicates, given, estimator, expectation
        As for `sampling_distribution`. The data sets of each n are drawn anew.

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
    >>> rate = fj.convergence_rate(
    ...     uniform, {"upper": 1.0}, jax.random.key(0), num_observations=(50, 200), estimator=lambda y: {"upper": y.max()}
    ... )
    >>> print(abs(rate.rate[0] + 1) < 0.1)
    True
    """
    check_key(key)
    sizes = check_sizes(num_observations)
    if len(set(sizes)) < 2:
        raise ValueError(f"num_observations={num_observations} must be at least two different numbers.")
    count = check_count(num_replicates, 2, "num_replicates")
    check_methods(estimator, expectation)
    experiments = [make_experiment(model, params, given, n) for n in sizes]
    distributions = tuple(
        simulate(experiment, jax.random.fold_in(key, k), count, estimator, expectation)
        for k, experiment in enumerate(experiments)
    )
    deviations = np.stack([each.standard_deviation.value for each in distributions])
    errors = np.stack([each.standard_deviation.standard_error for each in distributions])

    # Weighted least squares of log sd on log n, for each parameter; the error of log sd is that of sd divided by sd.
    rate, rate_error = np.full((2, deviations.shape[1]), np.nan)
    for k in range(len(rate)):
        usable = np.isfinite(deviations[:, k]) & np.isfinite(errors[:, k])
        usable &= (deviations[:, k] > 0) & (errors[:, k] > 0)
        log_n, sd = np.log(np.array(sizes, float))[usable], deviations[usable, k]
        if len(set(log_n)) < 2:
            continue
        weight = (sd / errors[usable, k]) ** 2
        x = log_n - np.average(log_n, weights=weight)
        information = np.sum(weight * x**2)
        rate[k], rate_error[k] = np.sum(weight * x * np.log(sd)) / information, 1 / np.sqrt(information)
    if np.any(np.isnan(rate)):
        warn("the exponent is NaN where fewer than two n have a standard deviation; print the result to see why.")
    return ConvergenceRate(distributions, rate, rate_error)
