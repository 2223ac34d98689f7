"""`optimal_design`: where to observe, and how often, so that a criterion of the information is best."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.design.box import Sensitivity, check_region, search_box
from fisher_jax.design.candidates import Whitening, drop_light, search_candidates
from fisher_jax.design.criteria import CRITERIA, UNIDENTIFIED, covariance_of, evaluate, gains, mix
from fisher_jax.design.point_information import Nodes, PointInformation, check_points, make_point_information
from fisher_jax.errors import check_choice, check_count, check_function, entry_point, is_number, shown, warn
from fisher_jax.information import Covariance, Information
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import path_name
from fisher_jax.numerics import linalg
from fisher_jax.reporting import Report, Reported, ReportTable, listed, number

DEPENDENT = 1e-9  # singular value of the rows of K, each of length one, below which one follows from the others


@dataclass(frozen=True, repr=False)
class Design(Reported):
    """An approximate design: points, and the proportion of the observations at each.

    Attributes
    ----------
    points : pytree
        The points z, with a leading axis of length m, as a model's `given`.
    weights : array (m,)
        The proportion of the observations at each; they sum to one.
    value : float
        The criterion, smaller being better, of the covariance N per observation: for D the s-th root of its determinant, for A
        its trace, for E its largest eigenvalue, for c the variance of the function. Averaged over several parameter
        values, geometrically. Infinite where the design does not identify the estimand.
    efficiency_bound : float
        No design of the region or the candidates has a criterion below `value` times this: the equivalence theorem's bound.
    criterion : {"D", "A", "E", "c"}
    names : tuple of str
        What rows and columns of N belong to: parameters, or entries of the function.
    status : str
        "optimal" where the bound reaches the efficiency that was required, else the likely causes.
    dual, basis, point_information
        What `sensitivity` and `efficiency` are computed from: Γ, the coordinates of the search, the model at its parameters.

    Notes
    -----
    An efficiency of 0.8 means that 100 observations with this design are worth 80 with the other.
    """

    points: PyTree
    weights: Any
    value: Any
    efficiency_bound: Any
    dual: Any
    basis: Any
    criterion: str
    names: tuple[str, ...]
    status: str
    point_information: PointInformation

    @property
    def information(self) -> Information:
        """Information per observation, averaged over the design; of several parameter values with a leading axis.

        About the parameters themselves, or about unconstrained coordinates where constraints tie them together.
        """
        source = self.point_information
        matrix, names = mix(np.asarray(self.weights, float), source.at(self.points)), source.layout.free_names
        if source.tangent.shape[1] == source.tangent.shape[2]:
            back = np.linalg.inv(source.tangent)
            matrix, names = np.swapaxes(back, 1, 2) @ matrix @ back, source.layout.names
        return Information(self._as_result(matrix), names, source.route)

    @entry_point
    def covariance(self, num_observations: int) -> Covariance:
        """The covariance of an efficient estimate of the estimand, from so many observations at the design's weights.

        Parameters
        ----------
        num_observations : int
            n.

        Returns
        -------
        Covariance
            K (n M)⁻ Kᵀ, by `names`; NaN where the design does not identify them.
        """
        n = check_count(num_observations, 1, "num_observations", entries=0)
        information_matrices = self.point_information.at(self.points)
        covariance, outside = covariance_of(*self._whiten(information_matrices, np.asarray(self.weights, float)))
        covariance = np.where(outside[:, None, None] > UNIDENTIFIED, np.nan, covariance) / n
        route = f"Cramér-Rao bound for {n:g} observations from: {self.point_information.route}"
        return Covariance(self._as_result(covariance), self.names, route)

    @entry_point
    def sensitivity(self, points: PyTree) -> Float[np.ndarray, " k"]:
        """The gain of an observation at each point: at an optimal design at most one everywhere, and one at its points.

        Parameters
        ----------
        points : pytree
            Any points z, with a leading axis of length k.

        Returns
        -------
        array (k,)
            tr(Γ I(z)) with minus Γ the derivative of the logarithm of the criterion with respect to the information, per
            parameter for D: the classical variance function divided by its bound. One divided by its largest value is
            `efficiency_bound`.
        """
        rows = check_points(self.point_information.model, points, "points")
        return gains(self.dual, self.point_information.at(rows))

    @entry_point
    def efficiency(self, points: PyTree, weights: Any = None) -> float:
        """The efficiency of another design relative to this one, by the criterion of this: one if it is as good.

        Parameters
        ----------
        points : pytree or Design
            The points of the other, with a leading axis of length k; repeated points count as often as they occur.
        weights : array (k,), optional
            The proportion or number of observations at each; equal by default.

        Returns
        -------
        float
            This criterion divided by that one: the fraction of the observations that this design would need for the same. Zero
            where the other does not identify the estimand.
        """
        if isinstance(points, Design):
            points, weights = points.points, points.weights if weights is None else weights
        rows = check_points(self.point_information.model, points, "points")
        count = jax.tree.leaves(rows)[0].shape[0]
        weights = np.ones(count) if weights is None else np.asarray(weights, float)
        if weights.shape != (count,):
            raise ValueError(f"weights has shape {weights.shape}, expected ({count},), one for each point.")
        if not (np.all(weights >= 0) and np.all(np.isfinite(weights)) and np.sum(weights) > 0):
            raise ValueError("weights must be finite, not negative, and not all zero.")
        information_matrices = self.point_information.at(rows)
        infinite = ~np.all(np.isfinite(information_matrices), axis=(1, 2, 3))
        if np.any(infinite):
            raise ValueError(
                f"the information of one observation is not finite at point {int(np.argmax(infinite))}. Leave such points out."
            )
        other = evaluate(self.criterion, *self._whiten(information_matrices, weights / np.sum(weights)))
        return float(np.exp(np.log(self.value) - other))

    @entry_point
    def round(self, num_observations: int) -> np.ndarray:
        """Whole numbers of observations at each point, as near to the weights as any: the efficient rounding.

        Parameters
        ----------
        num_observations : int
            n, at least the number of points.

        Returns
        -------
        array of int (m,)
            Summing to n, none zero.

        References
        ----------
        Pukelsheim, F. and Rieder, S. (1992), Efficient rounding of approximate designs, Biometrika 79, 763-770.
        """
        weights = np.asarray(self.weights, float)
        n = check_count(num_observations, len(weights), "num_observations", ", the number of points", entries=0)
        # A product that is a whole number but for rounding is not rounded up.
        counts = np.ceil((n - 0.5 * len(weights)) * weights * (1 - 1e-12)).astype(int)
        counts = np.maximum(counts, 1)
        while counts.sum() < n:
            counts[np.argmin(counts / weights)] += 1
        while counts.sum() > n:
            counts[np.argmax(np.where(counts > 1, (counts - 1) / weights, -np.inf))] -= 1
        return counts

    def _whiten(self, information_matrices: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """M and K in the coordinates of the search."""
        whitened = np.swapaxes(self.basis, 1, 2) @ mix(weights, information_matrices) @ self.basis
        return whitened, self.point_information.slopes @ self.basis

    def _as_result(self, matrix: np.ndarray) -> Array:
        """In the dtype of the parameters; without the leading axis where they have one value."""
        result = jnp.asarray(matrix, self.point_information.layout.dtype)
        return result[0] if self.point_information.num_values == 1 else result

    def summary(self) -> Report:
        # Rounded down, so that no more is claimed than proved.
        proved = np.floor(min(float(self.efficiency_bound), 1 - 1e-6) * 1e6 + 1e-4) / 1e6
        facts = [
            ("Criterion", CRITERIA[self.criterion]),
            ("Of", listed(self.names)),
            ("Value", f"{number(self.value)} per observation"),
            ("Efficiency", f"at least {proved:.6f}, by the equivalence theorem"),
        ]
        if self.point_information.num_values > 1:
            facts.append(("Averaged over", f"{self.point_information.num_values} values of the parameters"))
        coordinates = {}
        for path, leaf in jax.tree_util.tree_flatten_with_path(self.points)[0]:
            name, values = path_name(path) if path else "z", np.asarray(leaf)
            for index in np.ndindex(values.shape[1:]):
                label = name + (f"[{','.join(map(str, index))}]" if index else "")
                coordinates[label] = values[(slice(None), *index)]
        weights = [f"{weight:.6f}" for weight in np.asarray(self.weights)]
        numbers = map(str, range(len(weights)))
        table = ReportTable(
            ("point", *coordinates, "weight"), list(zip(numbers, *coordinates.values(), weights, strict=True))
        )
        optimal = self.status == "optimal"
        return Report("Optimal design" if optimal else "Design", facts, [table], [] if optimal else [self.status])


jax.tree_util.register_dataclass(
    Design,
    ["points", "weights", "value", "efficiency_bound", "dual", "basis"],
    ["criterion", "names", "status", "point_information"],
)


@entry_point
def optimal_design(
    model: Model | Callable[..., Any],
    params: PyTree,
    candidates: PyTree = None,
    *,
    region: PyTree = None,
    criterion: str = "D",
    function: Callable[[PyTree], PyTree] | None = None,
    expectation: Nodes | None = None,
    params_axis: int | None = None,
    efficiency: float = 0.9999,
) -> Design:
    """The points z and the proportions of observations at them that make the information largest, with a proven bound.

    With M = Σ w I(z) and N = K M⁻¹ Kᵀ, the covariance per observation of the estimand, it minimises det N (D), tr N (A), the
    largest eigenvalue of N (E), or the variance of one function of the parameters (c).

    Parameters
    ----------
    model : Model or callable
        With covariates: a `linked` model, one with its own `information`, or any with an `expectation`.
    params : pytree
        The parameters θ at which the design is optimal, since I(z) depends on them: a prior guess, to be varied.
    candidates : pytree, optional
        The points z among which to choose, with a leading axis, as a model's `given`.
    region : interval, list of intervals, or pytree of them, optional
        Instead of candidates: the box of points, shaped like one z, as ``fj.interval(0, 10)`` or
        ``{"dose": fj.interval(0, 1)}``; a list for a vector z. Points and weights are then found together.
    criterion : {"D", "A", "E", "c"}
        A and E depend on the units of the parameters, D does not.
    function : callable, optional
        g(params), the estimand: an array or a pytree; by default the parameters themselves. Needed for "c", where it returns one
        number. For "D" no entry may be a function of the others.
    expectation : Quadrature, Enumeration or None
        As for `fisher_information`.
    params_axis : 0 or None
        With 0 every leaf of params has a leading axis of values, and the logarithm of the criterion is averaged over them: a
        design for uncertain parameters (pseudo-Bayesian).
    efficiency : float
        The efficiency that the bound shall prove; otherwise a `FitWarning` is given.

    Returns
    -------
    Design
        Points and weights, with a bound on its efficiency. With several parameter values its matrices have a leading axis.

    Raises
    ------
    ValueError
        If the points do not identify the estimand, naming the direction, or an argument is invalid.

    Warns
    -----
    FitWarning
        If the bound stays below `efficiency`; `status` reports it too.

    Notes
    -----
    Points are added where the sensitivity function is largest and the weights of all solved anew by Newton's method along the
    central path; over a region the function is climbed from a grid by its gradient, and places and weights are then moved
    together by that of the information. The bound follows from the equivalence theorem with the largest sensitivity: exact
    among candidates, over a region as good as the search for that maximum, which is from some hundreds of points in one
    dimension and some thousands in more. For E it holds with any mixture of eigenvectors, and the best is found with the
    weights. A c-optimal design may have a singular information: it identifies the function and not every parameter.

    Leaves that the model declares `fixed` count as known. The work is done on the host in float64, from informations in the dtype
    of the parameters; in float32 expect bounds of 0.99999.

    References
    ----------
    Kiefer, J. and Wolfowitz, J. (1960), Canad. J. Math. 12, 363-366. Pukelsheim, F. (1993), Optimal Design of Experiments,
    chapter 7. Exchanges with all weights solved anew: Yang, M., Biedermann, S. and Tang, E. (2013), J. Am. Stat. Assoc. 108,
    1411-1420.

    Examples
    --------
    Doses for a logistic curve: half of the animals at each dose, where 18 and 82 % respond.

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
    check_choice(criterion, CRITERIA, "criterion")
    if (candidates is None) == (region is None):
        raise ValueError(
            "give either candidates, the points to choose among, or region=, an interval for each coordinate."
        )
    if function is not None:
        check_function(function, "function")
    elif criterion == "c":
        raise ValueError('criterion="c" needs function=, the one number to be estimated.')
    if not is_number(efficiency) or not 0 < efficiency < 1:
        raise ValueError(f"efficiency={shown(efficiency)} must lie between 0 and 1: what the bound is to reach.")
    source = make_point_information(model, params, expectation, function, params_axis, criterion)
    if criterion == "c" and len(source.names) != 1:
        raise ValueError(
            f'criterion="c" is for one number, but function returns {len(source.names)}: {", ".join(source.names)}. '
            'Use "A" or "D" for several.'
        )
    dtype = source.layout.dtype
    if region is None:
        rows = check_points(source.model, candidates, "candidates")
        information_matrices = source.at(rows)
        whitening = _whiten(source, information_matrices, criterion)
        design = search_candidates(criterion, whitening.slopes, whitening.whiten(information_matrices))
        design = drop_light(criterion, whitening.slopes, design)
        order = np.argsort(design.where)
        points = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[design.where[order]]), rows)
    else:
        box = check_region(region)
        grid = box.grid()
        information_matrices = source.at(jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), box.rows(grid)))
        whitening = _whiten(source, information_matrices, criterion)
        design = search_box(
            criterion, Sensitivity(source, box, whitening, grid, whitening.whiten(information_matrices))
        )
        order = np.lexsort(design.where.T[::-1])
        points = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), box.rows(design.where[order]))
    if expectation is not None:
        source.warn_of_irregular(points)
    provable = 1.0 - 100 * float(jnp.finfo(dtype).eps)  # no bound is surer than the rounding of the informations
    bound = min(provable, float(np.exp(design.lower - design.value)))
    status = "optimal"
    if not bound >= efficiency:
        status = (
            f"the efficiency is proved to be at least {bound:.6f} only, below the {efficiency:g} asked for. Likely causes: too "
            "little precision (float32), a sensitivity with a kink, or parameters about which hardly any point has information."
        )
        warn(status)
    return Design(
        points=points,
        weights=design.weights[order],
        value=float(np.exp(design.value)),
        efficiency_bound=bound,
        dual=whitening.restore(design.dual),
        basis=whitening.whole,
        criterion=criterion,
        names=source.names,
        status=status,
        point_information=source,
    )


def _whiten(source: PointInformation, information_matrices: Float[np.ndarray, "m b p p"], criterion: str) -> Whitening:
    """Coordinates in which all points together have the identity for their information.

    Raises where the points do not identify the estimand.
    """
    finite = np.all(np.isfinite(information_matrices), axis=(1, 2, 3))
    if not np.all(finite):
        raise ValueError(
            f"the information of one observation is not finite at {np.sum(~finite)} of {len(finite)} points, the first of "
            f"them number {int(np.argmin(finite))}. Leave these points out."
        )
    tolerance = 1e-12 if source.layout.dtype == np.float64 else 1e-6
    bases, ranges = [], []
    for matrix, slope, tangent in zip(
        np.mean(information_matrices, axis=0), source.slopes, source.tangent, strict=True
    ):
        diagonal = np.abs(np.diagonal(matrix))
        scale = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
        values, vectors = np.linalg.eigh(matrix / scale[:, None] / scale[None, :])
        positive = values > tolerance * len(values)
        outside = np.linalg.norm((slope / scale) @ vectors[:, ~positive], axis=1)
        if np.any(outside > UNIDENTIFIED * np.linalg.norm(slope / scale, axis=1)):
            value, direction = linalg.weak_directions(matrix, source.layout.names, jacobian=tangent)[0]
            raise ValueError(
                f"the points do not identify {source.names[int(np.argmax(outside))]}: all of them together "
                f"hold no information along {direction} (eigenvalue {value:.3g} at unit diagonal). Give other points, fix a "
                "parameter, or choose a function that they identify."
            )
        bases.append(vectors / scale[:, None] / np.sqrt(np.where(positive, values, 1.0)))
        ranges.append(positive)
    ranks = [int(np.sum(positive)) for positive in ranges]
    if min(ranks) < max(ranks):
        raise ValueError(
            f"the points identify {min(ranks)} directions at some parameter values and {max(ranks)} at others."
        )
    basis = np.stack([whole[:, positive] for whole, positive in zip(bases, ranges, strict=True)])
    slopes = source.slopes @ basis
    rows = slopes / np.linalg.norm(slopes, axis=2, keepdims=True)
    if criterion == "D" and np.any(np.linalg.svd(rows, compute_uv=False)[:, -1] < DEPENDENT):
        raise ValueError(
            f"the determinant of the covariance of {', '.join(source.names)} is zero whatever the design: they "
            'depend on each other. Leave some out, or use criterion="A".'
        )
    return Whitening(basis, slopes, np.stack(bases))
