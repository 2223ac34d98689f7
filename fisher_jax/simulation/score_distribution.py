"""`score_distribution`: the multivariate central limit theorem for the score, on the user's own model."""

import functools
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.errors import check_count, entry_point
from fisher_jax.information import Information
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.likelihood import likelihood
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.programs import jit_with_model
from fisher_jax.moments import Estimate
from fisher_jax.reporting import Report, Table
from fisher_jax.simulation.asymptotics import coordinates, information_of, not_invertible
from fisher_jax.simulation.experiment import data_sets_of, experiment_of
from fisher_jax.simulation.normality import ComparedWithNormal, probability, with_error
from fisher_jax.simulation.sampling_distribution import key_apart

_AT_ONCE = 2**16  # observations


@dataclass(frozen=True, repr=False)
class ScoreDistribution(ComparedWithNormal):
    """Scores n^(−1/2) Σ sᵢ of many data sets at the truth, beside N(0, I). It prints as a table.

    Attributes
    ----------
    scores : array (R, q)
        One row for each data set, those that are not finite included; see `kept`.
    information : Information
        Per observation, whose matrix is the covariance that theory promises.
    num_observations : int
        n.
    names : tuple of str
        The parameters; their free coordinates where constraints tie entries together.
    rank : int
        How many there are.
    notes : tuple of str
        What speaks against the theory here.

    Notes
    -----
    `mean`, `covariance`, their errors and what is measured by them are named as in `SamplingDistribution`.
    """

    scores: Any
    information: Information
    num_observations: int
    names: tuple[str, ...]
    rank: int
    notes: tuple[str, ...]

    @property
    def kept(self) -> np.ndarray:
        """Which data sets have a finite score (R,); only these enter any figure."""
        return np.all(np.isfinite(np.asarray(self.scores)), axis=1)

    @property
    def num_failed(self) -> int:
        """How many data sets are left out."""
        return int(np.sum(~self.kept))

    @functools.cached_property
    def vectors(self) -> Float[np.ndarray, "k q"]:
        """The finite scores."""
        return np.asarray(self.scores)[self.kept]

    @property
    def expected(self) -> Float[np.ndarray, "q q"]:
        """I."""
        return np.asarray(self.information.matrix, float)

    @property
    def expected_pieces(self) -> Float[np.ndarray, "k q q"]:
        """Independent errors of it; none where it is exact."""
        errors = self.information.errors
        return np.zeros((0, *self.expected.shape)) if errors is None else np.asarray(errors, float)

    def summary(self) -> Report:
        promised = np.sqrt(np.diagonal(self.expected))
        variance, error = np.diagonal(self.covariance), np.diagonal(self.covariance_error)
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = Estimate(np.sqrt(variance), 0.5 * error / np.sqrt(variance))
        distance, rows = self.marginal_normality, []
        for k, name in enumerate(self.names):
            pairs = [Estimate(self.mean, self.mean_error), spread, Estimate(promised, 0 * promised), self.skewness]
            cells = [with_error(pair.value[k], pair.standard_error[k]) for pair in pairs]
            rows.append((name, *cells, f"{distance.statistic[k]:.3g}", probability(distance.p_value[k])))
        titles = ("parameter", "mean", "std. dev.", "promised", "skewness", "distance", "p")
        title = f"Scores n^(−1/2) Σ sᵢ at the truth, {self.num_observations} observations"
        return Report(title, self._facts(), [Table(titles, rows)], list(self.notes))

    def _facts(self) -> list[tuple[str, str]]:
        lost = f", of which {self.num_failed} have no finite score and are left out" if self.num_failed else ""
        facts = [("Replicates", f"{len(self.kept)}{lost}"), ("Information", self.information.route)]
        return facts + self.agreement("zero", "the information")


_STATIC = ("num_observations", "names", "rank", "notes")
jax.tree_util.register_dataclass(
    ScoreDistribution, [f.name for f in fields(ScoreDistribution) if f.name not in _STATIC], list(_STATIC)
)


@entry_point
def score_distribution(
    model: Any,
    params: PyTree,
    key: Any,
    *,
    num_observations: Any = None,
    num_replicates: Any = 10_000,
    given: PyTree = None,
    expectation: Any = None,
) -> ScoreDistribution:
    """The central limit theorem for the score: n^(−1/2) Σ sᵢ over many data sets, compared with N(0, I).

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
    Nothing is fitted: that sums of scores are normal is the reason why estimates are, whose error is to first order
    I⁻¹ times the mean score. Where the mean of the score is not zero, the sum grows as √n and the printed mean shows it.

    References
    ----------
    van der Vaart, A. W. (1998), Asymptotic Statistics, example 2.18 (the multivariate theorem) and theorem 5.39.

    Examples
    --------
    >>> import fisher_jax as fj, jax
    >>> found = fj.score_distribution(
    ...     fj.families.exponential, {"rate": 2.0}, jax.random.key(0), num_observations=50, num_replicates=2000
    ... )
    >>> print(found.expected, abs(found.covariance[0, 0] - 0.25) < 4 * found.covariance_error[0, 0])
    [[0.25]] True
    """
    experiment = experiment_of(model, params, given, num_observations)
    count = check_count(num_replicates, 2, "num_replicates")
    layout = coordinates(experiment.layout)
    found, notes = information_of(experiment, layout, expectation, key_apart(key))
    if note := not_invertible(found):
        notes = (note, *notes)
    parts = [
        np.asarray(_scores(experiment.model, layout, experiment.values, data, experiment.given), float)
        for data in data_sets_of(experiment, key, count)
    ]
    rows = np.concatenate(parts) / np.sqrt(experiment.num_observations)
    return ScoreDistribution(rows, found, experiment.num_observations, found.names, layout.num_free, notes)


@functools.partial(jit_with_model, static_argnums=(0, 1))
def _scores(model: Model, layout: Layout, values: Values, data: PyTree, given: PyTree) -> Float[Array, "c p"]:
    """Total scores of several data sets."""
    free = layout.unconstrain(values)
    leaf = jax.tree.leaves(data)[0]
    at_once = max(1, _AT_ONCE // max(1, leaf[0].size))

    def one(data: PyTree) -> Array:
        target = likelihood(model, layout, values, Dataset(data, given))
        return jax.jacfwd(lambda u: jnp.sum(target.terms(u, target.rows)))(free)

    return jax.lax.map(one, data, batch_size=min(at_once, leaf.shape[0]))
