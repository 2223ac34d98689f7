"""`influence`: what each observation does to the estimate, without refitting."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fisher_jax.errors import entry_point, require
from fisher_jax.fitting.covariance import precise
from fisher_jax.fitting.each import check_fit, with_data
from fisher_jax.fitting.result import Fit, origin_of
from fisher_jax.fitting.status import Status
from fisher_jax.inference import influence_of_each as influences
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.likelihood import likelihood
from fisher_jax.models.model import Model
from fisher_jax.reporting import Report, Reported, Table, number

SHOWN = 10  # observations of a report
FAR = 0.5  # standard errors that the estimate would move
_NO_STEP = (
    "at the estimate the others' curvature is not positive definite. Either the observation alone tells of a parameter, or it "
    "lies so far out that the fit without it is another: fit again without it."
)


@dataclass(frozen=True, repr=False)
class Influence(Reported):
    """How the estimate depends on each observation. Arrays are numpy's; of a batch with a leading axis B.

    Attributes
    ----------
    derivatives : array (n, q)
        ∂θ̂/∂wᵢ, in units of each parameter per unit of the observation's weight: the empirical influence function over n.
    deletions : array (n, q)
        How θ̂ would move if the observation, with all its weight, were left out: to first order along one Newton step on the
        others, which takes its leverage into account; −∂θ̂/∂wᵢ alone for the terms of a `dependent` model. Zero for an
        observation of weight zero; NaN where the curvature of the others at θ̂ is not positive definite: they do not determine
        the parameters, or have their own maximum too far away for a step.
    distances : array (n,)
        How far that is, in standard errors of the whole fit: √(dᵀ J d) with the observed curvature J.
    weights : array (n,)
        The weights of the fit, ones where it has none.
    names : tuple of str
        The parameters.
    one_step : bool
        Whether the deletions take leverage into account.
    """

    derivatives: np.ndarray
    deletions: np.ndarray
    distances: np.ndarray
    weights: np.ndarray
    names: tuple[str, ...]
    one_step: bool

    @property
    def jackknife_covariance(self) -> np.ndarray:
        """The infinitesimal jackknife Σ wᵢ (∂θ̂/∂wᵢ)(∂θ̂/∂wᵢ)ᵀ, (q, q): the sandwich without a small-sample factor."""
        derivatives = np.where(self.weights[..., None] > 0, self.derivatives, 0.0)
        return np.swapaxes(derivatives, -1, -2) @ (self.weights[..., None] * derivatives)

    @entry_point
    def most_influential(self, count: int = SHOWN) -> np.ndarray:
        """The observations by distance, farthest first, those without a step before all."""
        return np.argsort(-np.where(np.isnan(self.distances), np.inf, self.distances), axis=-1, kind="stable")[
            ..., :count
        ]

    @entry_point
    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each observation (needs the extra `frames`); not of a batch."""
        pd = require("pandas", "frames")
        if self.distances.ndim != 1:
            raise ValueError("this is of a batch. Take the arrays, or frame that of one fit: fits[0].")
        frame = pd.DataFrame(self.deletions, columns=[f"{name} without it" for name in self.names])
        frame.insert(0, "distance", self.distances)
        return frame.rename_axis("observation")

    def _table(self) -> Report:
        rows = [
            (str(i), number(self.distances[i]), *map(number, self.deletions[i]))
            for i in self.most_influential().tolist()
        ]
        far = int(np.sum(~(self.distances <= FAR)))
        facts = [
            ("Observations", f"{self.distances.shape[0]}"),
            ("Move it farther than", f"{FAR:g} standard errors: {far}"),
            ("Left out", "one Newton step on the others" if self.one_step else "to first order, a term each"),
        ]
        titles = ("without", "std. errors", *(f"Δ {name}" for name in self.names))
        lost = int(np.sum(np.isnan(self.distances)))
        notes = [f"{lost} without a step (-): {_NO_STEP}"] if lost else []
        return Report("Influence of single observations", facts, [Table(titles, rows)], notes)

    def summary(self) -> Report:
        if self.distances.ndim != 1:
            return Report(
                f"Influence of {self.distances.shape[1]} observations on each of {self.distances.shape[0]} fits"
            )
        return self._table()


@entry_point
def influence(fit: Any) -> Influence:
    """How each observation moves the estimate: implicit derivatives with respect to weights, and case deletion.

    Parameters
    ----------
    fit : Fit
        As `fit` or `fit_batch` returned it, since the scores are taken again from its data.

    Returns
    -------
    Influence
        `derivatives` and `deletions` in the user's parametrisation. NaN for a fit at a boundary, or whose curvature is not
        positive definite; a `FitWarning` then says why.

    Raises
    ------
    ValueError, TypeError
        If this is no fit, or it does not know its data.

    Notes
    -----
    Nothing is refitted: one score and one Hessian for each observation, and a p × p solve. A deletion is one Newton step, so
    it is exact where the log-likelihood is quadratic.

    References
    ----------
    Cook, R. D. and Weisberg, S. (1982), Residuals and Influence in Regression, eq. (5.2.4), for the step; Giordano, R. et al.
    (2019), AISTATS 89, eq. (5), for the derivatives.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> fit = fj.fit(fj.families.normal, {"loc": 0.0, "scale": 1.0}, jnp.array([1.0, 2.0, 3.0, 4.0, 5.0, 7.0]))
    >>> found = fj.influence(fit)
    >>> print(found.most_influential(1), found.deletions[5].round(2))
    [5] [-1.67 -1.04]
    """
    check_fit(fit)
    if fit.curvature is None:
        raise ValueError("the curvature was not kept. Fit again with fit_batch(…, covariances=('observed',)).")
    fit._warn()
    derivatives, deletions, far, weights = map(np.asarray, with_data(fit, _influence_of))
    return Influence(derivatives, deletions, far, weights, fit.names, not origin_of(fit).model.is_dependent)


def _influence_of(fit: Fit, model: Model, dataset: Dataset) -> tuple[Array, Array, Array, Array]:
    curvature = precise(fit.curvature)
    curvature = jnp.where(fit.status_code == Status.BOUNDARY, jnp.nan, curvature)
    # The rows as they are: in a weighted likelihood another one stands where the weight is zero.
    bare = likelihood(model, fit.layout, fit.values, replace(dataset, weights=None))
    weights = precise(jnp.ones((bare.num_terms,)) if dataset.weights is None else jnp.asarray(dataset.weights))
    derivatives, deleted = influences.moves(bare, fit.free, curvature, weights)
    jacobian = precise(fit.layout.jacobian(fit.free))
    return (
        jnp.matmul(derivatives, jacobian.T, precision="highest"),
        _in_theta(fit, deleted),
        influences.distances(curvature, deleted),
        weights,
    )


def _in_theta(fit: Fit, moves: Float[Array, "n p"]) -> Float[Array, "n q"]:
    """Moves of û as moves of θ̂."""
    layout, free = replace(fit.layout, dtype=moves.dtype), precise(fit.free)

    def theta(free: Array) -> Array:
        return layout.join(layout.constrained_values(free, fit.values))

    return jax.vmap(lambda move: theta(free + move) - theta(free))(moves)
