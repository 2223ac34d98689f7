"""`sampling_distribution`: what an estimator does over many data sets, beside what theory promises."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from fisher_jax.errors import call_user, check_count, check_function, check_key, entry_point, warn
from fisher_jax.fitting import workers
from fisher_jax.fitting.fit import fit_batch
from fisher_jax.fitting.status import Status
from fisher_jax.models.parameters import layout_of
from fisher_jax.simulation.asymptotics import Promise, promise_of
from fisher_jax.simulation.experiment import Experiment, data_sets_of, experiment_of
from fisher_jax.simulation.sampling_record import MAXIMUM_LIKELIHOOD, SamplingDistribution

NOTHING_PROMISED = (
    "without a bound there is nothing to measure efficiency or normality by, and `standardised` is in units of the "
    "estimates' own standard deviations."
)


@entry_point
def sampling_distribution(
    model: Any,
    params: PyTree,
    key: Any,
    *,
    num_observations: Any = None,
    num_replicates: Any = 10_000,
    given: PyTree = None,
    estimator: Any = None,
    expectation: Any = None,
) -> SamplingDistribution:
    """Draw many data sets from the model, estimate from each, and compare with the promised N(θ, (n I)⁻¹).

    Parameters
    ----------
    model : Model
        With a sampler.
    params : pytree
        The parameters θ that the data are drawn at, and where each fit starts.
    key : jax.random.key
        The same key gives the same data sets, of which the first are the same for any number of replicates.
    num_observations : int
        n, the size of each data set. With `given` the number of its rows unless a multiple is asked for, in which case the rows
        are repeated; of a `dependent` model it is the number of terms of the series that its sampler draws.
    num_replicates : int
        R, how many data sets, at least 2.
    given : pytree, optional
        The covariates, one design for all data sets.
    estimator : callable, optional
        ``estimator(data)`` or ``estimator(data, given)``: from one data set to a pytree like params, in terms of jax.numpy. By
        default maximum likelihood, all data sets in one `fit_batch`.
    expectation : MonteCarlo, QuasiMonteCarlo, Quadrature or Enumeration, optional
        How the information is come by; by default in closed form if the model has one, else by 20 000 draws.

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
    Whether the theory holds is tested by draws of its own: E[s] = 0 and E[s sᵀ + H] = 0 at θ. Where the first fails (the
    support depends on θ) there is no bound, and it and what is measured by it are NaN; where the second fails (a kink) the
    bound is that of the outer product of scores. `notes` and the printed table say so.

    The predicted bias is Cox and Snell's, (1/n) I⁻¹ (½ ∇ tr(I⁻¹ H) + H I⁻¹ s) under the expectation; a curved map from
    the free coordinates adds its own.

    Memory is that of the estimates and of one chunk of data sets, whatever the number of replicates. A first call compiles for
    some seconds. Not to be called under `jit`.

    References
    ----------
    van der Vaart, A. W. (1998), Asymptotic Statistics, theorem 5.39; Cox, D. R. and Snell, E. J. (1968), J. R. Statist. Soc. B
    30, 248-275, eq. (20).

    Examples
    --------
    >>> import fisher_jax as fj, jax
    >>> found = fj.sampling_distribution(
    ...     fj.families.exponential, {"rate": 2.0}, jax.random.key(0), num_observations=50, num_replicates=2000
    ... )
    >>> print(found.covariance.shape, found.num_failed, abs(found.bias.value[0] - 2.0 / 49) < 4 * found.bias.standard_error[0])
    (1, 1) 0 True
    """
    experiment = experiment_of(model, params, given, num_observations)
    count = check_count(num_replicates, 2, "num_replicates")
    check_key(key)
    (estimates, status), promise = workers.side_by_side(
        lambda: estimated(experiment, key, count, estimator),
        lambda: promise_of(experiment, expectation, key_apart(key)),
    )
    return compared(experiment, estimates, status, estimator, promise)


def key_apart(key: Any) -> Any:
    """A key for what else needs draws, theory's side or a bootstrap, apart from those of the data sets."""
    return jax.random.fold_in(key, 2**32 - 1)


def estimated(experiment: Experiment, key: Any, num_replicates: int, estimator: Any) -> tuple[np.ndarray, np.ndarray]:
    """The estimates (R, q) and their statuses (R,)."""
    one = _fitted if estimator is None else _Own(estimator, experiment)
    parts = [one(experiment, data) for data in data_sets_of(experiment, key, num_replicates)]
    estimates, status = (np.concatenate(part) for part in zip(*parts, strict=True))
    return estimates, status


def compared(
    experiment: Experiment, estimates: np.ndarray, status: np.ndarray, estimator: Any, promise: Promise
) -> SamplingDistribution:
    """Estimates beside what was promised."""
    own, expansion = estimator is not None, promise.expansion
    nothing = np.full_like(expansion.bias, np.nan)
    notes = promise.notes
    if own:
        notes += ("no bias is predicted: the expansion is that of maximum likelihood.",)
    elif expansion.reason:
        notes += (f"no bias is predicted: {expansion.reason}.",)
    if not promise.has_bound:
        notes += (NOTHING_PROMISED,)
    if not np.any(status <= Status.CONVERGED_TO_ROUNDING):
        said = Status(int(np.bincount(status).argmax()))
        notes = (f"none of the replicates converged: {said.meaning}. Likely causes: {said.causes}.", *notes)
        warn(f"none of the {len(status)} replicates converged; most ended so: {said.label}, {said.meaning}.")
    return SamplingDistribution(
        estimates=estimates,
        status_code=status,
        truth=experiment.truth,
        information=promise.information,
        bound=promise.bound,
        predicted_bias=nothing if own else expansion.bias,
        predicted_bias_error=nothing if own else expansion.bias_error,
        num_observations=experiment.num_observations,
        names=experiment.layout.names,
        rank=experiment.layout.num_free,
        estimator=_name(estimator) if own else MAXIMUM_LIKELIHOOD,
        notes=notes,
    )


def _name(estimator: Any) -> str:
    name = getattr(estimator, "__name__", type(estimator).__name__)
    return "an estimator" if name == "<lambda>" else f"`{name}`"


def _fitted(experiment: Experiment, data: PyTree) -> tuple[np.ndarray, np.ndarray]:
    fits = fit_batch(experiment.model, experiment.params, data, given=experiment.given, covariances=("observed",))
    theta = jax.vmap(experiment.layout.join)(fits.values)
    return np.asarray(theta, float), np.asarray(fits.status, np.int8)


class _Own:
    """A user's estimator, compiled once for all chunks."""

    def __init__(self, estimator: Any, experiment: Experiment) -> None:
        check_function(estimator, "estimator", "a data set that returns parameters")
        also = () if experiment.given is None else (experiment.given,)

        def flat(data: PyTree) -> Any:
            return experiment.layout.flatten(_checked(call_user(estimator, (data, *also), "estimator"), experiment))

        self.every = jax.jit(jax.vmap(flat))

    def __call__(self, experiment: Experiment, data: PyTree) -> tuple[np.ndarray, np.ndarray]:
        theta = np.asarray(self.every(jax.tree.map(jnp.asarray, data)), float)
        good = np.all(np.isfinite(theta), axis=1)
        return theta, np.where(good, Status.CONVERGED, Status.NOT_FINITE).astype(np.int8)


def _checked(found: PyTree, experiment: Experiment) -> PyTree:
    """Refuse what is not like params."""
    layout = experiment.layout
    same = bool(jax.tree.leaves(found))
    if same:
        own = layout_of(found, ())[0]
        same = own.treedef == layout.treedef
        same = same and [leaf.shape for leaf in own.leaves] == [leaf.shape for leaf in layout.leaves]
    if not same:
        shapes = ", ".join(f"{leaf.name} {leaf.shape}" for leaf in layout.leaves)
        raise ValueError(
            f"estimator returned {jax.tree.map(jnp.shape, found)}, but the parameters are {shapes}. Return a pytree "
            "like params, fixed ones included."
        )
    return found
