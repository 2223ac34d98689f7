"""`score_distribution`: the multivariate central limit theorem for the score, on the user's own model."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from fisher_jax.blocks import vmap_in_blocks
from fisher_jax.errors import check_count, entry_point
from fisher_jax.information import Information
from fisher_jax.information.expectations import Expectation
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.likelihood import likelihood
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.programs import jit_with_model
from fisher_jax.reporting import Report, ReportTable, number, probability, with_error
from fisher_jax.simulation.asymptotics import coordinates, describe_singular, information_of
from fisher_jax.simulation.experiment import draw_blocks, key_for_other_draws, make_experiment
from fisher_jax.simulation.normality import NormalComparison, standard_deviations
from fisher_jax.simulation.sampling_distribution import check_methods

OBSERVATIONS_AT_ONCE = 2**16


@dataclass(frozen=True, repr=False)
class ScoreDistribution(NormalComparison):
    """Scores n^(−1/2) Σ sᵢ of many data sets at the truth, beside N(0, I). It prints as a table.

    Attributes
    ----------
    scores : array (R, q)
        One row for each data set, those that are not finite included; see `valid`.
    information : Information
        Per observation, whose matrix is the covariance of the limit.
    num_observations : int
        n.
    names : tuple of str
        The parameters; their unconstrained coordinates where constraints tie entries together.
    rank : int
        Their number.
    notes : tuple of str
        Which conditions of the theory fail here.

    Notes
    -----
    `mean`, `covariance`, their errors and the tests are named as in `SamplingDistribution`.
    """

    scores: Any
    information: Information
    num_observations: int
    names: tuple[str, ...]
    rank: int
    notes: tuple[str, ...]

    @property
    def valid(self) -> Bool[np.ndarray, " r"]:
        """Which data sets have a finite score; only these enter any figure."""
        return np.all(np.isfinite(np.asarray(self.scores)), axis=1)

    @functools.cached_property
    def vectors(self) -> Float[np.ndarray, "k q"]:
        """The finite scores."""
        return np.asarray(self.scores)[self.valid]

    @property
    def _limit(self) -> Information:
        return self.information

    def summary(self) -> Report:
        deviation, distance = standard_deviations(self._moments[1]), self.marginal_normality
        rows = [
            (
                name,
                with_error(self.mean[k], self.mean_error[k]),
                with_error(deviation.value[k], deviation.standard_error[k]),
                number(np.sqrt(self.asymptotic_covariance[k, k])),
                with_error(self.skewness.value[k], self.skewness.standard_error[k]),
                f"{distance.statistic[k]:.3g}",
                probability(distance.p_value[k]),
            )
            for k, name in enumerate(self.names)
        ]
        headings = ("parameter", "mean", "std. dev.", "asymptotic", "skewness", "distance", "p")
        title = f"Scores n^(−1/2) Σ sᵢ at the truth, {self.num_observations} observations"
        facts = self._facts(f"{self.num_failed} have no finite score", "zero", "the information")
        return Report(title, facts, [ReportTable(headings, rows)], list(self.notes))


_STATIC = ("num_observations", "names", "rank", "notes")
jax.tree_util.register_dataclass(
    ScoreDistribution, [f.name for f in fields(ScoreDistribution) if f.name not in _STATIC], list(_STATIC)
)


@entry_point
def score_distribution(
    model: Model | Callable[..., Any],
    params: PyTree,
    key: Array,
    *,
    num_observations: int | None = None,
    num_replicates: int = 10_000,
    given: PyTree = None,
    expectation: Expectation | None = None,
) -> ScoreDistribution:
    """The central limit theorem for the score: n^(−1/2) Σ sᵢ over many data sets, beside its limit N(0, I).

    Parameters
    ----------
    model, params, key, num_observations, num_replicates, given, expectation
        As for `sampling_distribution`; the same key gives the same data sets.

    Returns
    -------
    ScoreDistribution
        Mean and covariance with Monte Carlo errors, and tests of normality. It prints as a table.

    Raises
    ------
    ValueError, TypeError
        If the model has no sampler, or the arguments do not fit together.

    Notes
    -----
    No model is fitted: estimates are normal because sums of scores are, since their error is to first order I⁻¹ times the
    mean score. Where the mean of the score is not zero, the sum grows as √n and the printed mean shows it.

    References
    ----------
    van der Vaart, A. W. (1998), Asymptotic Statistics, example 2.18 (the multivariate theorem) and theorem 5.39.

    Examples
    --------
    >>> import fisher_jax as fj, jax
    >>> scores = fj.score_distribution(
    ...     fj.families.exponential, {"rate": 2.0}, jax.random.key(0), num_observations=20, num_replicates=500
    ... )
    >>> near = abs(scores.covariance[0, 0] - 0.25) < 4 * scores.covariance_error[0, 0]
    >>> print(scores.asymptotic_covariance, near)
    [[0.25]] True
    """
    experiment = make_experiment(model, params, given, num_observations)
    count = check_count(num_replicates, 2, "num_replicates")
    check_methods(None, expectation)
    layout = coordinates(experiment.layout)
    information, notes = information_of(experiment, layout, expectation, key_for_other_draws(key))
    if note := describe_singular(information):
        notes = (note, *notes)
    totals = [
        np.asarray(_scores(experiment.model, layout, experiment.values, data, experiment.given), float)
        for data in draw_blocks(experiment, key, count)
    ]
    n = experiment.num_observations
    return ScoreDistribution(
        np.concatenate(totals) / np.sqrt(n), information, n, information.names, layout.num_free, notes
    )


@functools.partial(jit_with_model, static_argnums=(0, 1))
def _scores(model: Model, layout: Layout, values: Values, data: PyTree, given: PyTree) -> Float[Array, "c p"]:
    """Total scores of several data sets."""
    free = layout.unconstrain(values)
    leaf = jax.tree.leaves(data)[0]
    at_once = max(1, OBSERVATIONS_AT_ONCE // max(1, leaf[0].size))

    def score(data: PyTree) -> Array:
        target = likelihood(model, layout, values, Dataset(data, given))
        return jax.jacfwd(lambda u: jnp.sum(target.terms(u, target.rows)))(free)

    return vmap_in_blocks(score, data, at_once)
