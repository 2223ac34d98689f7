"""`sampling_distribution`: an estimator over many data sets, beside what asymptotic theory predicts."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from fisher_jax.errors import call_user, check_count, check_function, check_key, entry_point, require, warn
from fisher_jax.fitting import workers
from fisher_jax.fitting.fit import fit_batch
from fisher_jax.fitting.status import Status
from fisher_jax.information import Covariance, Information
from fisher_jax.information.expectations import Expectation
from fisher_jax.information.fisher_information import check_expectation
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import layout_of
from fisher_jax.moments import Estimate
from fisher_jax.reporting import Report, ReportTable, number, with_error
from fisher_jax.simulation.asymptotics import predict
from fisher_jax.simulation.experiment import Experiment, draw_blocks, key_for_other_draws, make_experiment
from fisher_jax.simulation.normality import NormalComparison, moments, standard_deviations

Estimator = Callable[..., PyTree]


@dataclass(frozen=True, repr=False)
class SamplingDistribution(NormalComparison):
    """An estimator over many data sets of one size, beside N(θ, (n I)⁻¹). It prints as a table.

    Attributes
    ----------
    estimates : array (R, q)
        θ̂ of every replicate, failed ones included; see `valid`.
    status_code : integer array (R,)
        How each fit ended, codes of `Status`; of an estimator of your own, whether it is finite.
    truth : array (q,)
        θ, the parameters that the data were drawn at.
    information : Information
        Per observation; about the unconstrained coordinates where constraints tie entries together. NaN where there is none.
    bound : Covariance
        (q, q): the asymptotic covariance of √n(θ̂ − θ), and the Cramér-Rao bound of unbiased estimators.
    predicted_bias, predicted_bias_error : arrays (q,)
        E[θ̂] − θ of maximum likelihood to order 1/n, and its error; NaN where that does not hold, with the reason in `notes`.
    num_observations : int
        n.
    names : tuple of str
        The entries of θ.
    rank : int
        p, the number of unconstrained coordinates.
    estimator : str
    notes : tuple of str
        Which conditions of the theory fail here.

    Notes
    -----
    Only replicates that converged enter any figure; the others are counted by status in print and in `num_failed`.

    `mean`, `covariance`, `mean_error` and `covariance_error` are of `vectors`, √n(θ̂ − θ), with Monte Carlo standard errors;
    `standardized` divides these by the asymptotic standard deviations, or by their own where there is no asymptotic one.
    `mahalanobis` holds n(θ̂ − θ)ᵀ I (θ̂ − θ), `marginal_normality` and `joint_normality` the Kolmogorov-Smirnov distances from
    the standard normal and from χ² with their p-values, which take a sampled information for exact; `mean_test` and
    `covariance_test` test that the mean is zero and the covariance is the bound, all entries at once. With enough replicates
    all of them detect the difference between any finite n and its limit.
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
    def valid(self) -> Bool[np.ndarray, " r"]:
        """Which replicates converged; only these enter any figure."""
        return np.asarray(self.status_code) <= Status.CONVERGED_TO_ROUNDING

    @property
    def failures(self) -> dict[Status, int]:
        """How many failed, by status."""
        codes, counts = np.unique(np.asarray(self.status_code)[~self.valid], return_counts=True)
        return {Status(int(code)): int(count) for code, count in zip(codes, counts, strict=True)}

    @functools.cached_property
    def vectors(self) -> Float[np.ndarray, "k q"]:
        """√n(θ̂ − θ) of each replicate that converged."""
        return np.sqrt(self.num_observations) * (np.asarray(self.estimates)[self.valid] - np.asarray(self.truth))

    @property
    def _limit(self) -> Covariance:
        return self.bound

    @functools.cached_property
    def bias(self) -> Estimate:
        """E[θ̂] − θ over the replicates, with its error, in the parameters' units."""
        root = np.sqrt(self.num_observations)
        return Estimate(self.mean / root, self.mean_error / root)

    @functools.cached_property
    def standard_deviation(self) -> Estimate:
        """Of θ̂ itself, (q,) with its error."""
        return standard_deviations(self._moments[1], self.num_observations)

    @property
    def asymptotic_standard_deviation(self) -> Float[np.ndarray, " q"]:
        """The standard deviation (I⁻¹/n)^½ of θ̂ by asymptotic theory; NaN where there is no bound."""
        return np.sqrt(np.diagonal(self.asymptotic_covariance) / self.num_observations)

    @functools.cached_property
    def efficiency(self) -> Estimate:
        """Cramér-Rao bound divided by variance, (q,): one for an efficient estimator.

        Above one only by bias, by chance, or since fits that failed are left out.
        """
        variance, bound = np.diagonal(self.covariance), np.diagonal(self.asymptotic_covariance)
        with np.errstate(invalid="ignore", divide="ignore"):
            value = bound / variance
            relative = np.diagonal(self.covariance_error) / variance
            of_bound = np.diagonal(self.asymptotic_covariance_errors, axis1=1, axis2=2) / bound
        return Estimate(value, value * np.sqrt(relative**2 + np.sum(of_bound**2, axis=0)))

    @functools.cached_property
    def joint_efficiency(self) -> Estimate:
        """(det bound / det covariance)^(1/p) in p unconstrained directions: one for an efficient estimator."""
        covariance, count = moments(self.whitened)[1].value, len(self.whitened)
        if count < 2 * self.rank + 4 or not np.all(np.isfinite(covariance)) or np.linalg.eigvalsh(covariance)[0] <= 0:
            return Estimate(np.nan, np.nan)
        value = float(np.exp(-np.linalg.slogdet(covariance)[1] / self.rank))
        # d log det C = tr(C⁻¹ dC): over the replicates the mean of x'C⁻¹x less p, and of the bound's errors the trace.
        centered = self.whitened - np.mean(self.whitened, axis=0)
        lengths = np.sum(centered * np.linalg.solve(covariance, centered.T).T, axis=1)
        errors = self._whitening @ self.asymptotic_covariance_errors @ self._whitening.T
        error = np.sqrt(np.var(lengths) / count + np.sum(np.trace(errors, axis1=1, axis2=2) ** 2))
        return Estimate(value, value * float(error) / self.rank)

    def _columns(self) -> dict[str, Estimate]:
        """What is tabulated of each parameter; the asymptotic standard deviation without an error."""
        return {
            "bias": self.bias,
            "predicted_bias": Estimate(self.predicted_bias, self.predicted_bias_error),
            "standard_deviation": self.standard_deviation,
            "asymptotic_standard_deviation": Estimate(self.asymptotic_standard_deviation, None),
            "efficiency": self.efficiency,
            "skewness": self.skewness,
        }

    @entry_point
    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each parameter (needs the extra `frames`)."""
        pd = require("pandas", "frames")
        columns = {"truth": np.asarray(self.truth)}
        for name, (value, error) in self._columns().items():
            columns[name] = np.asarray(value)
            if error is not None:
                columns[f"{name}_error"] = np.asarray(error)
        columns["distance_from_normal"], columns["distance_p_value"] = self.marginal_normality
        return pd.DataFrame(columns, index=pd.Index(self.names, name="name"))

    def summary(self) -> Report:
        failures = ", ".join(f"{count} {status.label}" for status, count in self.failures.items())
        facts = self._facts(f"{self.num_failed} failed ({failures})", "θ", "the bound")
        if not np.isnan(self.joint_efficiency.value):
            facts.insert(2, ("Efficiency, all parameters", with_error(*self.joint_efficiency)))
        headings = ("parameter", "truth", "bias", "predicted", "std. dev.", "asymptotic", "efficiency", "skewness")
        rows = [
            (
                name,
                number(self.truth[k]),
                *(
                    with_error(value[k], None if error is None else error[k])
                    for value, error in self._columns().values()
                ),
            )
            for k, name in enumerate(self.names)
        ]
        title = f"Sampling distribution of {self.estimator}, {self.num_observations} observations"
        return Report(title, facts, [ReportTable(headings, rows)], list(self.notes))


_STATIC = ("num_observations", "names", "rank", "estimator", "notes")
jax.tree_util.register_dataclass(
    SamplingDistribution, [f.name for f in fields(SamplingDistribution) if f.name not in _STATIC], list(_STATIC)
)


@entry_point
def sampling_distribution(
    model: Model | Callable[..., Any],
    params: PyTree,
    key: Array,
    *,
    num_observations: int | None = None,
    num_replicates: int = 10_000,
    given: PyTree = None,
    estimator: Estimator | None = None,
    expectation: Expectation | None = None,
) -> SamplingDistribution:
    """Draw many data sets from the model, estimate from each, and compare with their limit N(θ, (n I)⁻¹).

    Parameters
    ----------
    model : Model
        With a sampler.
    params : pytree
        The parameters θ that the data are drawn at, and where each fit starts.
    key : jax.random.key
        The same key gives the same data sets, of which the first are the same for any number of replicates.
    num_observations : int
        n, the size of each data set. With `given` its number of rows, or a multiple of it, in which case the rows are repeated;
        of a `dependent` model it is the number of terms of the series that its sampler draws.
    num_replicates : int
        R, how many data sets, at least 2.
    given : pytree, optional
        The covariates, one design for all data sets.
    estimator : callable, optional
        ``estimator(data)`` or ``estimator(data, given)``: from one data set to a pytree like params, written in jax.numpy. By
        default maximum likelihood, all data sets in one `fit_batch`.
    expectation : MonteCarlo, QuasiMonteCarlo, Quadrature or Enumeration, optional
        How the information is computed; by default in closed form if the model has one, else by 20 000 draws.

    Returns
    -------
    SamplingDistribution
        `covariance` and `mean` of √n(θ̂ − θ) with their Monte Carlo errors, the bound, efficiency, bias and its prediction,
        and tests of normality. It prints as a table. Fits that failed are counted by status and left out.

    Raises
    ------
    ValueError, TypeError
        If the model has no sampler, or the arguments do not fit together.

    Warns
    -----
    FitWarning
        If no replicate converged, so that there is nothing to compare.

    Notes
    -----
    The conditions of the theory are tested by further draws: E[s] = 0 and E[s sᵀ + H] = 0 at θ. Where the first fails (the
    support depends on θ) there is no bound, and it and what is derived from it are NaN; where the second fails (a kink) the
    bound is that of the outer product of scores. `notes` and the printed table report it.

    The predicted bias is Cox and Snell's, (1/n) I⁻¹ (½ ∇ tr(I⁻¹ H) + H I⁻¹ s) under the expectation; a curved map from
    the unconstrained coordinates adds a term.

    Memory is that of the estimates and of one block of data sets, whatever the number of replicates. A first call compiles for
    some seconds. Not to be called under `jit`.

    References
    ----------
    van der Vaart, A. W. (1998), Asymptotic Statistics, theorem 5.39; Cox, D. R. and Snell, E. J. (1968), J. R. Statist. Soc. B
    30, 248-275, eq. (20).

    Examples
    --------
    >>> import fisher_jax as fj, jax
    >>> distribution = fj.sampling_distribution(
    ...     fj.families.exponential, {"rate": 2.0}, jax.random.key(0), num_observations=20, num_replicates=500
    ... )
    >>> bias, error = distribution.bias
    >>> print(distribution.covariance.shape, distribution.num_failed, abs(bias[0] - 2.0 / 19) < 4 * error[0])
    (1, 1) 0 True
    """
    experiment = make_experiment(model, params, given, num_observations)
    count = check_count(num_replicates, 2, "num_replicates")
    check_key(key)
    check_methods(estimator, expectation)
    return simulate(experiment, key, count, estimator, expectation)


def check_methods(estimator: Any, expectation: Any) -> None:
    """Check how to estimate and how to take expectations, where either is given."""
    if expectation is not None:
        check_expectation(expectation)
    if estimator is not None:
        check_function(estimator, "estimator", "a data set that returns parameters")


def simulate(
    experiment: Experiment, key: Array, count: int, estimator: Estimator | None, expectation: Expectation | None
) -> SamplingDistribution:
    """Estimate from each data set, and beside it predict."""

    def estimate() -> tuple[np.ndarray, ...]:
        estimate_all = _fit_all(experiment) if estimator is None else _apply_all(estimator, experiment)
        parts = [estimate_all(data) for data in draw_blocks(experiment, key, count)]
        return tuple(np.concatenate(part) for part in zip(*parts, strict=True))

    (estimates, status), prediction = workers.side_by_side(
        estimate, lambda: predict(experiment, expectation, key_for_other_draws(key))
    )
    notes, bias = prediction.notes, prediction.bias
    name = "maximum likelihood"
    if estimator is not None:
        name = getattr(estimator, "__name__", type(estimator).__name__)
        name = "an estimator" if name == "<lambda>" else f"`{name}`"
        bias = Estimate(*np.full((2, len(experiment.truth)), np.nan))
        notes += ("no bias is predicted: the expansion is that of maximum likelihood.",)
    elif prediction.no_bias:
        notes += (f"no bias is predicted: {prediction.no_bias}.",)
    if not np.all(np.isfinite(np.asarray(prediction.bound.matrix))):
        notes += (
            "without a bound there is no efficiency and no test of normality, and `standardized` is in units of the "
            "estimates' own standard deviations.",
        )
    if not np.any(status <= Status.CONVERGED_TO_ROUNDING):
        most = Status(int(np.bincount(status).argmax()))
        notes = (f"none of the replicates converged: {most.meaning}. Likely causes: {most.causes}.", *notes)
        warn(f"none of the {len(status)} replicates converged; most ended so: {most.label}, {most.meaning}.")
    return SamplingDistribution(
        estimates=estimates,
        status_code=status,
        truth=experiment.truth,
        information=prediction.information,
        bound=prediction.bound,
        predicted_bias=bias.value,
        predicted_bias_error=bias.standard_error,
        num_observations=experiment.num_observations,
        names=experiment.layout.names,
        rank=experiment.layout.num_free,
        estimator=name,
        notes=notes,
    )


def _fit_all(experiment: Experiment) -> Callable[[PyTree], tuple[np.ndarray, np.ndarray]]:
    """Maximum likelihood: from a block of data sets to estimates (c, q) and their statuses (c,)."""

    def estimate(data: PyTree) -> tuple[np.ndarray, np.ndarray]:
        fits = fit_batch(experiment.model, experiment.params, data, given=experiment.given, covariances=("observed",))
        theta = jax.vmap(experiment.layout.join)(fits.values)
        return np.asarray(theta, float), np.asarray(fits.status, np.int8)

    return estimate


def _apply_all(estimator: Estimator, experiment: Experiment) -> Callable[[PyTree], tuple[np.ndarray, np.ndarray]]:
    """A user's estimator in place of maximum likelihood, compiled once for all blocks."""
    layout = experiment.layout
    arguments = () if experiment.given is None else (experiment.given,)

    def flatten(data: PyTree) -> Array:
        params = call_user(estimator, (data, *arguments), "estimator")
        returned = layout_of(params)[0] if jax.tree.leaves(params) else None
        if (
            returned is None
            or returned.treedef != layout.treedef
            or [leaf.shape for leaf in returned.leaves] != [leaf.shape for leaf in layout.leaves]
        ):
            shapes = ", ".join(f"{leaf.name} {leaf.shape}" for leaf in layout.leaves)
            raise ValueError(
                f"estimator returned {jax.tree.map(jnp.shape, params)}, but the parameters are {shapes}. Return a pytree "
                "like params, fixed ones included."
            )
        return layout.flatten(params)

    flatten_all = jax.jit(jax.vmap(flatten))

    def estimate(data: PyTree) -> tuple[np.ndarray, np.ndarray]:
        theta = np.asarray(flatten_all(jax.tree.map(jnp.asarray, data)), float)
        finite = np.all(np.isfinite(theta), axis=1)
        return theta, np.where(finite, Status.CONVERGED, Status.NOT_FINITE).astype(np.int8)

    return estimate
