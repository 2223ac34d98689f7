"""`cross_validation`: each observation scored under a fit to the others, all the fits in one batch.

An observation is left out by its weight, so that the data stay as they are, and the fits of all folds differ in weights only.
A score is that of `predictive_scores` with the estimate of the fold that the observation was left out of.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array, Int, PyTree

from fisher_jax.blocks import blocks_of
from fisher_jax.errors import check_count, check_flag, check_key, check_pytrees, entry_point, silent, warn
from fisher_jax.fitting.fit import fit, fit_batch
from fisher_jax.fitting.result import Fit, join_fits, origin_of
from fisher_jax.inference.predicted_rows import Rows
from fisher_jax.inference.predictive_scores import PredictiveScores, ScoringRule, clusters_of, read_rule, score_rows
from fisher_jax.inference.replicates import failures, whole_weights
from fisher_jax.input_arrays import as_labels
from fisher_jax.latent.marginal import MarginalModel
from fisher_jax.models.model import Model, as_model
from fisher_jax.numerics.array_namespace import is_traced, on_host
from fisher_jax.sources import is_source

LEAVE_ONE_OUT = "leave one out"


@dataclass(frozen=True, repr=False)
class CrossValidation(PredictiveScores):
    """Scores of n observations, each under a fit to other folds; printed as their mean. Lower is better.

    Attributes
    ----------
    values, weights, clusters, rule, notes
        As in `PredictiveScores`; NaN where the fit of the fold failed.
    folds : integer array (n,)
        The fold, from 0, that each observation is left out with.
    labels : array (K,)
        The labels of the folds, where they were given; else their numbers.
    fits : Fit
        The fit to all but each fold, of all K; `fits.status` has their statuses.
    fit : Fit
        That to all observations, from which they start.

    Examples
    --------
    >>> import fisher_jax as fj, jax, jax.numpy as jnp
    >>> y = jnp.array([0.3, 1.2, 0.1, 2.7, 0.9, 4.0, 0.6, 1.9])
    >>> validation = fj.cross_validation(fj.families.exponential, None, y, folds="leave one out")
    >>> print(f"{validation.mean:.3f} ± {validation.standard_error:.3f}", validation.fits.converged.all())
    1.509 ± 0.379 True
    """

    folds: np.ndarray = None  # type: ignore[assignment]
    labels: np.ndarray = None  # type: ignore[assignment]
    fits: Fit = None  # type: ignore[assignment]
    fit: Fit = None  # type: ignore[assignment]

    _title = "Cross-validation"

    def _check_like(self, other: PredictiveScores) -> None:
        if isinstance(other, CrossValidation) and not np.array_equal(self.folds, other.folds):
            raise ValueError("the folds differ. Give both models the same key, or the same labels as folds.")

    def _columns(self) -> dict[str, np.ndarray]:
        return super()._columns() | {"fold": self.labels[self.folds]}

    def _facts(self) -> list[tuple[str, str]]:
        failed = int(np.sum(~np.asarray(self.fits.converged)))
        text = f"{len(self.labels)}" + (f", of which the fits of {failed} failed" if failed else "")
        return [*super()._facts(), ("Folds", text)]


@entry_point
def cross_validation(
    model: Model | Callable[..., Any],
    start: PyTree,
    data: PyTree,
    *,
    given: PyTree = None,
    weights: PyTree = None,
    strength: float | None = None,
    rule: ScoringRule = "log",
    level: float | None = None,
    folds: Any = 10,
    key: Array | None = None,
    clusters: Any = None,
    missing: Literal["raise", "drop"] = "raise",
    devices: int | Sequence[jax.Device] | None = None,
    progress: bool = False,
) -> CrossValidation:
    """Score each observation under a fit to the others, by folds that are left out in turn. Lower is better.

    Parameters
    ----------
    model, start, data, given, weights, strength, missing
        As for `fit`. The prior of a model counts in each fit, and has no part in the scores. Leaving one out of a row that stands
        for several equal observations, by its weight, leaves the others; a fold is left out with whole rows.
    rule, level
        As for `predictive_scores`: by default the log score −log p(yᵢ; θ̂ without the fold of i).
    folds : int, "leave one out", array (n,), or str
        How many folds, of nearly the same size, drawn at random with `key`; one for each observation (or cluster); the label of the
        fold of each observation; or the name of a column that has these.
    key : jax.random.key, optional
        What a number of folds is drawn with. The same key gives the same folds to every model.
    clusters : array (n,), or str, optional
        Labels of observations that are left out together, since they depend on each other; or the name of a column. The standard
        error is then that of clusters.
    devices, progress
        As for `fit_batch`.

    Returns
    -------
    CrossValidation
        `values` (n,), with `mean`, `standard_error`, `total`, the `folds`, their `fits` and `compare(other)`.

    Raises
    ------
    ValueError, TypeError
        If the model is `dependent`, whose terms are not left out one by one, there are fewer than two folds, a cluster is split, or
        the arguments do not fit together.

    Warns
    -----
    FitWarning
        Where the fit of a fold failed: its scores are NaN, and so is their mean.

    Notes
    -----
    It estimates the score of a fit to n(1 − 1/K) observations, which is somewhat worse than that of all. For the log score and
    leaving one out, the total is asymptotically half of TIC, and of AIC where the model is right (Stone 1977). The standard error
    takes the scores as independent; since the fits share their data, it is somewhat too small.

    What was made of all the data before, as the categories and knots of a formula or a choice of covariates, is not left out.

    All fits are one batch, and begin at the estimate from all observations. Cost: K fits, and n evaluations of the rule. Of a model
    with latent effects an observation is a group, and the log score that of a new group.

    References
    ----------
    Stone, M. (1977), J. R. Statist. Soc. B 39, 44-47; Arlot, S. and Celisse, A. (2010), A survey of cross-validation procedures for
    model selection, Statist. Surv. 4, 40-79.

    Examples
    --------
    >>> import fisher_jax as fj, jax, jax.numpy as jnp
    >>> x = jnp.arange(12.0)
    >>> y = jnp.array([1.0, 0, 2, 3, 1, 4, 4, 7, 6, 9, 12, 13])
    >>> constant = fj.linked(fj.families.poisson, lambda p, x: {"rate": jnp.exp(p["a"])})
    >>> trend = fj.linked(fj.families.poisson, lambda p, x: {"rate": jnp.exp(p["a"] + p["b"] * x)})
    >>> first = fj.cross_validation(constant, {"a": 1.0}, y, given=x, folds=4, key=jax.random.key(0))
    >>> second = fj.cross_validation(trend, {"a": 1.0, "b": 0.0}, y, given=x, folds=4, key=jax.random.key(0))
    >>> print(f"{first.mean:.2f} {second.mean:.2f} {second.compare(first).mean:.2f}")
    3.84 1.84 -2.01
    """
    model = as_model(model)
    if model.is_dependent:
        raise ValueError(
            "the model is `dependent`: a term left out still enters those after it. Fit the series up to some time, and score what "
            "comes after it."
        )
    if model.auxiliary is not None:
        raise ValueError("the model has an auxiliary measurement, which is no observation to be left out.")
    check_pytrees(start=start, data=data, given=given, weights=weights)
    if is_source(data, given, weights):
        raise TypeError("data come from a source, and are fitted once for each fold: give them as arrays.")
    if is_traced(start, data, given, weights):
        raise TypeError("folds are made on the host, so not under jit, vmap or grad. Call it outside.")
    check_flag(progress, "progress")
    read = read_rule(rule, level, model)
    if isinstance(model, MarginalModel) and read.title != read_rule("log", None, model).title:
        raise ValueError('an observation of a model with latent effects is a group, which only rule="log" can score.')
    with silent():  # the statuses of the folds explain what is wrong
        whole = fit(model, start, data, given=given, weights=weights, strength=strength, missing=missing)
    dataset = origin_of(whole).dataset
    count = len(jax.tree.leaves(dataset.data)[0])
    if isinstance(clusters, str):
        clusters = dataset.column(clusters)
    codes = None if clusters is None else clusters_of(clusters, count)
    if isinstance(folds, str) and folds != LEAVE_ONE_OUT:
        folds = dataset.column(folds)
    fold_of, labels = assign_folds(folds, key, codes, count)
    full = np.ones(count) if dataset.weights is None else np.asarray(dataset.weights, float)
    # Of equal observations in one row one is left out; the others are still there.
    by_copy = isinstance(folds, str) and codes is None and dataset.weights is not None
    without = np.maximum(whole_weights(full) - 1.0, 0.0) if by_copy else 0.0
    begin = whole.params if whole.converged else start
    parts = []
    for numbers in blocks_of(len(labels), count):
        left_in = fold_of[None, :] != numbers[numbers < len(labels)][:, None]
        parts.append(
            fit_batch(
                model,
                begin,
                dataset.data,
                given=dataset.given,
                weights=np.where(left_in, full, without),
                data_axis=None,
                strength=strength,
                covariances=(),
                devices=devices,
                progress=progress,
            )
        )
    fits = join_fits(parts, np.arange(len(labels)))
    free = np.where(np.asarray(fits.converged)[:, None], np.asarray(fits.free), np.nan)[fold_of]
    leaves = jax.tree.leaves(dataset.given)
    rows = Rows(dataset.given, (False,) * len(leaves))
    scores = score_rows(
        model, fits.layout, on_host(whole.values), free, np.zeros(1), rows, dataset.data, read, by_row=True
    )
    notes: tuple[str, ...] = ()
    if failed := failures(fits):
        notes = (f"of the fits without a fold failed: {failed} of {len(fits)}. The scores of these folds are NaN.",)
        warn(notes[0])
    weights = None if dataset.weights is None else full
    return CrossValidation(scores, weights, codes, read.title, notes, fold_of, labels, fits, whole)


def assign_folds(
    folds: Any, key: Any, codes: Int[np.ndarray, " n"] | None, count: int
) -> tuple[Int[np.ndarray, " n"], np.ndarray]:
    """The fold of each of so many observations, from 0, and the labels of the folds; whole clusters are in one fold."""
    units = np.arange(count) if codes is None else codes
    num_units, of_what = int(units.max()) + 1, "observations" if codes is None else "clusters"
    is_number = isinstance(folds, int | np.integer) and not isinstance(folds, bool)
    if key is not None and not is_number:
        raise ValueError("key draws a number of folds, and these were not to be drawn. Leave it out.")
    if num_units < 2:
        raise ValueError(f"{of_what} are left out in turn, and there is one, without which there is none to fit.")
    if isinstance(folds, str):
        return units, np.arange(num_units)
    if is_number:
        check_count(folds, 2, "folds", entries=0)
        if folds > num_units:
            raise ValueError(
                f"folds={folds} are more than the {num_units} {of_what}. Give fewer, or {LEAVE_ONE_OUT!r}."
            )
        if key is None:
            raise ValueError(f"the {folds} folds are drawn at random: give a key, as key=jax.random.key(0).")
        check_key(key)
        fold_of_unit = np.empty(num_units, int)
        fold_of_unit[np.asarray(jax.random.permutation(key, num_units))] = np.arange(num_units) % int(folds)
        return fold_of_unit[units], np.arange(int(folds))
    array = as_labels(folds, "folds")
    if array.shape != (count,):
        raise ValueError(
            f"folds has shape {array.shape}, expected ({count},), a label for each observation; or give a number, or "
            f"{LEAVE_ONE_OUT!r}."
        )
    labels, fold_of = np.unique(array, return_inverse=True)
    if len(labels) < 2:
        raise ValueError("all observations are in one fold, so none are left to fit. Give at least two folds.")
    first = np.full(num_units, -1)
    first[units[::-1]] = fold_of[::-1]
    if np.any(first[units] != fold_of):
        raise ValueError("a cluster is split over several folds. Give all of its observations the same label.")
    return fold_of, labels
