"""`optimal_design`: where to observe, and how often, so that a criterion of the information is best."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from fisher_jax.design.criteria import CRITERIA, SEEN
from fisher_jax.design.informed import Informed, informed_of, points_of, region_of
from fisher_jax.design.record import Design
from fisher_jax.design.region import Climb, grid_of, over
from fisher_jax.design.search import Whitened, among, lightened
from fisher_jax.errors import check_function, entry_point, shown, warn
from fisher_jax.numerics import linalg

DEPENDENT = 1e-9  # singular value of the rows of K, each of length one, below which one follows from the others


@entry_point
def optimal_design(
    model: Any,
    params: PyTree,
    candidates: PyTree = None,
    *,
    region: PyTree = None,
    criterion: Any = "D",
    function: Any = None,
    expectation: Any = None,
    params_axis: Any = None,
    efficiency: Any = 0.9999,
) -> Design:
    """The points z and the share of the observations at each that make the information largest, certified.

    With M = Σ w I(z) and N = K M⁻¹ Kᵀ, the covariance per observation of what is asked, it minimises det N (D), tr N (A), the
    largest eigenvalue of N (E), or the variance of one function of the parameters (c).

    Parameters
    ----------
    model : Model or callable
        With covariates: a `linked` model, one with its own `information`, or any with an `expectation`.
    params : pytree
        The parameters θ at which the design is optimal, since I(z) depends on them: a guess, to be varied.
    candidates : pytree, optional
        The points z among which to choose, with a leading axis, as a model's `given`.
    region : interval, list of intervals, or pytree of them, optional
        Instead of candidates: the box of points, shaped like one z, as ``fj.interval(0, 10)`` or
        ``{"dose": fj.interval(0, 1)}``; a list for a vector z. Points and weights are then found together.
    criterion : {"D", "A", "E", "c"}
        A and E depend on the units of the parameters, D does not.
    function : callable, optional
        g(params): what is to be known, an array or a pytree; by default the parameters themselves. Needed for "c", where it
        returns one number. For "D" its entries may not depend on each other.
    expectation : Quadrature, Enumeration or None
        As for `fisher_information`.
    params_axis : 0 or None
        With 0 every leaf of params has a leading axis of values, and the logarithm of the criterion is averaged over them: a
        design for not knowing them well (pseudo-Bayesian).
    efficiency : float
        What the bound is to reach; a `FitWarning` says if it does not.

    Returns
    -------
    Design
        Points and weights, with a bound on its efficiency. Of several parameter values its matrices have a leading axis.

    Raises
    ------
    ValueError
        If no design tells what is asked, naming the direction, or an argument is not as said above.

    Warns
    -----
    FitWarning
        If the bound stays below `efficiency`; `status` says it too.

    Notes
    -----
    Points are added where the sensitivity function is largest and the weights of all solved anew by Newton's method along the
    central path; over a region the function is climbed from a grid by its gradient, and places and weights are then moved
    together by that of the information. The bound follows from the equivalence theorem with the largest sensitivity: exact
    among candidates, over a region as good as the search for that maximum, which is from some hundreds of points in one
    dimension and some thousands in more. For E it holds with any mixture of eigenvectors, and the best is found with the
    weights. A c-optimal design may have a singular information: it tells the function and not every parameter.

    Leaves that the model holds `fixed` are known. The work is done on the host in float64, from informations in the dtype
    of the parameters; in float32 expect bounds of 0.99999.

    References
    ----------
    Kiefer, J. and Wolfowitz, J. (1960), Canad. J. Math. 12, 363-366. Pukelsheim, F. (1993), Optimal Design of Experiments,
    chapter 7. Exchanges with all weights solved anew: Yang, M., Biedermann, S. and Tang, E. (2013), J. Am. Stat. Assoc. 108,
    1411-1420.

    Examples
    --------
    Doses for a logistic curve: half of the animals at either dose, where 18 and 82 % respond.

    >>> import fisher_jax as fj
    >>> def response(params, dose):
    ...     return {"logit": params["slope"] * (dose - params["middle"])}
    >>> model = fj.linked(fj.families.bernoulli, response)
    >>> design = fj.optimal_design(model, {"middle": 3.0, "slope": 2.0}, region=fj.interval(0, 6))
    >>> [round(float(dose), 3) for dose in design.points]
    [2.228, 3.772]
    >>> print(design.weights.round(3), round(design.efficiency([1.0, 2.0, 3.0, 4.0, 5.0]), 2))
    [0.5 0.5] 0.75
    """
    _check_arguments(candidates, region, criterion, function, efficiency)
    informed = informed_of(model, params, expectation, function, params_axis, criterion)
    if criterion == "c" and len(informed.names) != 1:
        raise ValueError(
            f'criterion="c" is for one number, but function returns {len(informed.names)}: '
            f'{", ".join(informed.names)}. Use "A" or "D" for several.'
        )
    if region is None:
        rows = points_of(informed.model, candidates, "candidates")
        raw = informed.at(rows)
        white = _whitened(informed, raw, criterion)
        found = lightened(criterion, white.slopes, among(criterion, white.slopes, white.points(raw)))
        order = np.argsort(found.where)
        points = jax.tree.map(lambda leaf: leaf[found.where[order]], rows)
    else:
        box = region_of(region)
        grid = grid_of(box)
        raw = informed.at(box.rows(jnp.asarray(box.low + grid * (box.high - box.low), informed.layout.dtype)))
        white = _whitened(informed, raw, criterion)
        climb = Climb(informed, box, white, grid, white.points(raw))
        found = over(criterion, climb)
        order = np.lexsort(found.where.T[::-1])
        points = box.rows(jnp.asarray(climb.scaled(found.where[order]), informed.layout.dtype))
    if expectation is not None:
        informed.warn_of_irregular(points)
    told = 1.0 - 100 * float(jnp.finfo(informed.layout.dtype).eps)  # of what rounding lets one tell
    bound = min(told, float(np.exp(found.lower - found.value)))
    status = "optimal"
    if not bound >= efficiency:
        status = (
            f"the efficiency is known to be at least {bound:.6f} only, below the {efficiency:g} asked for. Likely causes: too "
            "little precision (float32), a sensitivity with a kink, or parameters that hardly any point informs of."
        )
        warn(f"{status}")
    return Design(
        points,
        found.weights[order],
        float(np.exp(found.value)),
        bound,
        white.dual(found.dual),
        white.whole,
        criterion,
        informed.names,
        status,
        informed,
    )


def _check_arguments(candidates: PyTree, region: PyTree, criterion: Any, function: Any, efficiency: Any) -> None:
    if not isinstance(criterion, str) or criterion not in CRITERIA:
        raise ValueError(f"criterion={shown(criterion)} is unknown; choose from {', '.join(map(repr, CRITERIA))}.")
    if (candidates is None) == (region is None):
        raise ValueError(
            "give either candidates, the points to choose among, or region=, an interval for each coordinate."
        )
    if function is not None:
        check_function(function, "function")
    if criterion == "c" and function is None:
        raise ValueError('criterion="c" needs function=, the one number that is to be known.')
    if not isinstance(efficiency, int | float) or not 0 < efficiency < 1:
        raise ValueError(f"efficiency={shown(efficiency)} must lie between 0 and 1: what the bound is to reach.")


def _whitened(informed: Informed, raw: np.ndarray, criterion: str) -> Whitened:
    """Coordinates in which all points together have the identity for their information; refuses what none tells."""
    if not np.all(np.isfinite(raw)):
        worst = int(np.argmax(~np.all(np.isfinite(raw), axis=(1, 2, 3))))
        raise ValueError(
            f"the information of one observation is not finite at {np.sum(~np.isfinite(raw).all((1, 2, 3)))} of "
            f"{len(raw)} points, the first of them number {worst}. Leave these points out."
        )
    rank = 1e-12 if informed.layout.dtype == np.float64 else 1e-6
    parts = []
    for matrix, slope, tangent in zip(np.mean(raw, axis=0), informed.slopes, informed.tangent, strict=True):
        scaled, scale = _to_unit_diagonal(matrix)
        values, vectors = np.linalg.eigh(scaled)
        kept = values > rank * len(values)
        outside = np.linalg.norm((slope / scale) @ vectors[:, ~kept], axis=1)
        if np.any(outside > SEEN * np.linalg.norm(slope / scale, axis=1)):
            value, direction = linalg.weak_directions(matrix, informed.layout.names, jacobian=tangent)[0]
            raise ValueError(
                f"no design of these points tells {informed.names[int(np.argmax(outside))]}: all of them together "
                f"hold no information along {direction} (eigenvalue {value:.3g} at unit diagonal). Give other points, fix a "
                "parameter, or ask for a function of what is told."
            )
        parts.append((vectors / scale[:, None] / np.sqrt(np.where(kept, values, 1.0)), kept))
    ranks = {int(np.sum(kept)) for _, kept in parts}
    if len(ranks) > 1:
        raise ValueError(
            f"the points tell of {min(ranks)} directions at some parameter values and of {max(ranks)} at others."
        )
    basis = np.stack([whole[:, kept] for whole, kept in parts])
    slopes = informed.slopes @ basis
    rows = slopes / np.linalg.norm(slopes, axis=2, keepdims=True)
    if criterion == "D" and np.any(np.linalg.svd(rows, compute_uv=False)[:, -1] < DEPENDENT):
        raise ValueError(
            f"the determinant of the covariance of {', '.join(informed.names)} is zero whatever the design: they "
            'depend on each other. Ask for fewer, or use criterion="A".'
        )
    return Whitened(basis, slopes, np.stack([whole for whole, _ in parts]))


def _to_unit_diagonal(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    diagonal = np.abs(np.diagonal(matrix))
    scale = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    return matrix / scale[:, None] / scale[None, :], scale
