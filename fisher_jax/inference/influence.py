"""`influence`: what each observation does to the estimate, without fitting again.

The estimate û solves Σ wᵢ sᵢ(u) = 0, with sᵢ the score of observation i. By the implicit function theorem ∂û/∂wᵢ = J⁻¹ sᵢ, with
J = −Σ wᵢ Hᵢ the observed curvature: a function of the scores at the estimate alone (Giordano et al. 2019, eq. (5)). To leave an
observation out changes its weight by all of it, which the derivative follows to first order only. One Newton step on the others,
−(J + wᵢ Hᵢ)⁻¹ wᵢ sᵢ, takes the leverage of the observation into account too (Cook and Weisberg 1982, eq. (5.2.4)).
"""

import functools
import tempfile
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from fisher_jax.blocks import CHUNK_ENTRIES, in_chunks
from fisher_jax.errors import entry_point, require
from fisher_jax.fitting.covariance import precise
from fisher_jax.fitting.map_fits import check_fit, with_data
from fisher_jax.fitting.passes import Passes, passes_of
from fisher_jax.fitting.result import Fit, origin_of
from fisher_jax.fitting.status import Status
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.likelihood import at_modes, likelihood, scores_at
from fisher_jax.models.model import Model
from fisher_jax.models.programs import jit_with_model
from fisher_jax.numerics import linalg
from fisher_jax.numerics.differentiate import each_at
from fisher_jax.reporting import Report, Reported, ReportTable

SHOWN = 10  # observations of a report
IN_MEMORY = 2**28  # bytes of an array of influences
FAR = 0.5  # standard errors: an estimate that moves by more would be read differently
_NO_STEP = (
    "at the estimate the curvature of the others is not positive definite. Either this observation alone determines a parameter, "
    "or it lies so far out that the fit without it is another one: fit again without it."
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
        others, which takes its leverage into account; −wᵢ ∂θ̂/∂wᵢ for the terms of a `dependent` model. Zero for an
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
    at_edge : tuple of str
        The parameters held at the edge of their range, of one fit that ended there.
    """

    derivatives: np.ndarray
    deletions: np.ndarray
    distances: np.ndarray
    weights: np.ndarray
    names: tuple[str, ...]
    one_step: bool
    at_edge: tuple[str, ...] = ()

    @property
    def jackknife_covariance(self) -> np.ndarray:
        """The infinitesimal jackknife Σ wᵢ (∂θ̂/∂wᵢ)(∂θ̂/∂wᵢ)ᵀ, (q, q): the sandwich without a small-sample factor."""
        derivatives = np.where(self.weights[..., None] > 0, self.derivatives, 0.0)
        return np.swapaxes(derivatives, -1, -2) @ (self.weights[..., None] * derivatives)

    @entry_point
    def most_influential(self, count: int = SHOWN) -> np.ndarray:
        """The observations by distance, farthest first; those without a step come before all."""
        distances = np.where(np.isnan(self.distances), np.inf, self.distances)
        return np.argsort(-distances, axis=-1, kind="stable")[..., :count]

    @entry_point
    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each observation (needs the extra `frames`); not of a batch."""
        pd = require("pandas", "frames")
        if self.distances.ndim != 1:
            raise ValueError("this is of a batch. Take the arrays, or frame that of one fit: fits[0].")
        frame = pd.DataFrame(self.deletions, columns=[f"{name} without it" for name in self.names])
        frame.insert(0, "distance", self.distances)
        return frame.rename_axis("observation")

    def summary(self) -> Report:
        """The observations that move the estimate farthest; of a batch only how many there are."""
        if self.distances.ndim != 1:
            num_fits, num_rows = self.distances.shape
            return Report(f"Influence of {num_rows} observations on each of {num_fits} fits")
        rows = [(str(i), self.distances[i], *self.deletions[i]) for i in self.most_influential().tolist()]
        facts = [
            ("Observations", f"{len(self.distances)}"),
            # Not `> FAR`: an observation without a step counts as far too.
            ("Move it farther than", f"{FAR:g} standard errors: {int(np.sum(~(self.distances <= FAR)))}"),
            ("Left out", "one Newton step on the others" if self.one_step else "to first order, a term each"),
        ]
        if self.at_edge:
            facts.append(("Held at the edge", ", ".join(self.at_edge)))
        titles = ("without", "std. errors", *(f"Δ {name}" for name in self.names))
        num_undefined = int(np.sum(np.isnan(self.distances)))
        notes = [f"{num_undefined} without a step (-): {_NO_STEP}"] if num_undefined else []
        return Report("Influence of single observations", facts, [ReportTable(titles, rows)], notes)


@entry_point
def influence(fit: Fit) -> Influence:
    """How each observation moves the estimate: implicit derivatives with respect to weights, and case deletion.

    Parameters
    ----------
    fit : Fit
        As `fit` or `fit_batch` returned it, since the scores are taken again from its data.

    Returns
    -------
    Influence
        `derivatives` and `deletions` in the user's parametrisation. For a fit at a boundary they are those of the other parameters,
        with the one at its edge held there; NaN where the others are at no maximum given that, or the curvature is not positive
        definite. A `FitWarning` then explains why.

    Raises
    ------
    ValueError, TypeError
        If this is no fit, or it was made without its data.

    Notes
    -----
    Nothing is refitted: one score and one Hessian for each observation, and a p × p solve. A deletion is one Newton step, so
    it is exact where the log-likelihood is quadratic.

    Of a fit to data that are read in blocks it takes one pass. Arrays of more than 256 MiB are then in temporary files, mapped to
    memory, and a parameter at the edge of its range is not held there.

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
    if (passes := passes_of(fit)) is not None:
        derivatives, deletions, far, weights = _by_passes(fit, passes)
        return Influence(derivatives, deletions, far, weights, fit.names, True)
    edge, one_step = fit._edge(), not origin_of(fit).model.is_dependent
    edges: dict[str, Any] = {"each" if fit.has_batch else "shared": (edge,)}
    derivatives, deletions, far, weights = map(np.asarray, with_data(fit, influence_at, **edges))
    at_edge: tuple[str, ...] = ()
    if not fit.has_batch:
        moved = np.any((np.asarray(fit.layout.jacobian(fit.free)) != 0) & edge, axis=1)
        at_edge = tuple(name for name, mark in zip(fit.names, moved, strict=True) if mark)
    return Influence(derivatives, deletions, far, weights, fit.names, one_step, at_edge)


def _by_passes(fit: Fit, passes: Passes) -> tuple[np.ndarray, ...]:
    """`influence_at` of rows that are read in blocks; what is larger than `IN_MEMORY` is in a temporary file, mapped to memory."""
    num_rows, q = fit.origin.num_rows, len(fit.names)  # type: ignore[union-attr]
    arrays: list[np.ndarray] = []
    for shape in ((num_rows, q), (num_rows, q), (num_rows,), (num_rows,)):
        if 8 * num_rows * q <= IN_MEMORY:
            arrays.append(np.empty(shape))
        else:
            with tempfile.TemporaryFile() as file:  # it stays until the array is gone
                arrays.append(np.memmap(file, np.float64, "w+", shape=shape))

    def of_piece(piece: Dataset) -> Any:
        return jax.device_get(_influence_at(passes.model, fit, piece))

    for start, count, parts in passes.over(of_piece, fit.layout.dtype):
        for array, part in zip(arrays, parts, strict=True):
            array[start : start + count] = part[:count]
    return tuple(arrays)


@functools.partial(jit_with_model, static_argnums=(0,), level=1)
def _influence_at(model: Model, fit: Fit, dataset: Dataset) -> tuple[Array, Array, Array, Array]:
    return influence_at(fit, model, dataset)


def influence_at(
    fit: Fit, model: Model, dataset: Dataset, edge: Bool[Array, " p"] | None = None
) -> tuple[Float[Array, "n q"], Float[Array, "n q"], Float[Array, " n"], Float[Array, " n"]]:
    """Of one fit: ∂θ̂/∂wᵢ, how θ̂ moves without observation i, how far that is in standard errors, and the weights.

    What `edge` marks of u is held.
    """
    edge = jnp.zeros(fit.free.shape, bool) if edge is None else edge
    at_edge = edge[:, None] | edge[None, :]
    curvature = jnp.where(at_edge, jnp.eye(edge.shape[0]), precise(fit.curvature))
    # At a boundary û is no root of the score, and the implicit function theorem holds for the others only.
    curvature = jnp.where((fit.status_code == Status.BOUNDARY) & ~jnp.any(edge), jnp.nan, curvature)
    # Without weights: a weighted likelihood puts another row where the weight is zero, but the derivative there is of interest.
    target = at_modes(likelihood(model, fit.layout, fit.values, replace(dataset, weights=None)), fit.free)
    weights = precise(jnp.ones((target.num_terms,)) if dataset.weights is None else jnp.asarray(dataset.weights))
    p = fit.free.shape[0]

    def solve(matrix: Float[Array, "p p"], rows: Float[Array, "n p"]) -> Float[Array, "n p"]:
        factor = linalg.factorize(matrix)
        return jnp.where(factor.definite, linalg.solve(factor, rows.T).T, jnp.nan)

    def of_chunk(rows: PyTree, weights: Float[Array, " c"]) -> tuple[Array, float]:
        scores, hessians = map(precise, each_at(target.terms, fit.free, rows))
        scores, hessians = jnp.where(edge, 0.0, scores), jnp.where(at_edge, 0.0, hessians)
        others = curvature[None] + weights[:, None, None] * hessians
        steps = jax.vmap(lambda other, score: solve(other, score[None])[0])(others, -weights[:, None] * scores)
        return jnp.concatenate([solve(curvature, scores), steps], axis=1), 0.0

    if target.separable:
        # A chunk holds a p × p matrix for each of its rows.
        pairs, _ = in_chunks(target.rows, weights, max(16, CHUNK_ENTRIES // p**2), of_chunk, weights.dtype)
        derivatives, steps = pairs[:, :p], jnp.where(weights[:, None] == 0, 0.0, pairs[:, p:])
    else:  # every term may need all the data, so that a Hessian of each would cost n passes
        derivatives = solve(curvature, jnp.where(edge, 0.0, precise(scores_at(target, fit.free))))
        steps = -weights[:, None] * derivatives
    squared = jnp.sum(jnp.matmul(steps, curvature, precision="highest") * steps, axis=1)

    # From u to θ: derivatives by the Jacobian, steps as they are, since these are not small.
    layout, free = replace(fit.layout, dtype=steps.dtype), precise(fit.free)

    def theta(free: Float[Array, " p"]) -> Float[Array, " q"]:
        return layout.join(layout.constrained_values(free, fit.values))

    return (
        jnp.matmul(derivatives, precise(fit.layout.jacobian(fit.free)).T, precision="highest"),
        jax.vmap(lambda step: theta(free + step) - theta(free))(steps),
        jnp.sqrt(jnp.maximum(squared, 0.0)),
        weights,
    )


@functools.partial(jit_with_model, static_argnums=(0, 1), level=1)
def influence_of_units(
    model: Model,
    num_units: int,
    fit: Fit,
    dataset: Dataset,
    unit_of: Int[Array, " n"],
    weights: Float[Array, " n"] | None,
) -> Float[Array, "g p"]:
    """∂û/∂w = J⁻¹ Σ sᵢ over the terms of each unit, a cluster of observations or one; weighted where there are `weights`."""
    scores = scores_at(likelihood(model, fit.layout, fit.values, dataset), fit.free)
    if weights is not None:
        weights = jnp.asarray(weights, scores.dtype)[:, None]
        scores = jnp.where(weights == 0, 0.0, weights * scores)
    totals = jnp.zeros((num_units, fit.free.shape[0]), scores.dtype).at[unit_of].add(scores)
    return linalg.solve(linalg.factorize(fit.curvature), totals.T).T
