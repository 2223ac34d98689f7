"""The record of a design: its points and weights, its criterion, and the proof of how near it comes to the best."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from fisher_jax.design.criteria import CRITERIA, SEEN, covariance_of, evaluated, gains, information_of
from fisher_jax.design.informed import Informed, points_of
from fisher_jax.errors import check_count, entry_point
from fisher_jax.information import Covariance, Information
from fisher_jax.models.parameters import path_name
from fisher_jax.reporting import Report, Reported, Table, number


@dataclass(frozen=True, repr=False)
class Design(Reported):
    """An approximate design: the share of the observations that each point gets.

    Attributes
    ----------
    points : pytree
        The points z, with a leading axis of length m, as a model's `given`.
    weights : array (m,)
        The share of each; they sum to one.
    value : float
        The criterion, smaller being better, of the covariance N per observation: for D the s-th root of its determinant, for A
        its trace, for E its largest eigenvalue, for c the variance of the function. Averaged over several parameter
        values, geometrically. Infinite where the design does not tell what is asked.
    efficiency_bound : float
        No design of the region or the candidates has a criterion below `value` times this: the equivalence theorem's bound.
    criterion : {"D", "A", "E", "c"}
    names : tuple of str
        What rows and columns of N belong to: parameters, or entries of the function.
    status : str
        "optimal" where the bound reaches what was asked for, else in words what is the matter.
    dual, basis, informed
        What `sensitivity` and `efficiency` are computed from: Γ, the coordinates of the search, the model at its parameters.

    Notes
    -----
    An efficiency of 0.8 means that with this design 100 observations tell as much as 80 with the other.
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
    informed: Informed

    @property
    def information(self) -> Information:
        """Information per observation, averaged over the design; of several parameter values with a leading axis.

        Of the parameters themselves, or of free coordinates where constraints tie them together.
        """
        informed = self.informed
        matrix = self._matrix(self.points, self.weights)
        names = informed.layout.free_names
        if informed.tangent.shape[1] == informed.tangent.shape[2]:
            back = np.linalg.inv(informed.tangent)
            matrix, names = np.swapaxes(back, 1, 2) @ matrix @ back, informed.layout.names
        return Information(self._typed(matrix), names, informed.route)

    @entry_point
    def covariance(self, num_observations: Any) -> Covariance:
        """The covariance of an efficient estimate of what was asked, from so many observations spread as the weights say.

        Parameters
        ----------
        num_observations : int
            n.

        Returns
        -------
        Covariance
            K (n M)⁻ Kᵀ, by `names`; NaN where the design does not tell them.
        """
        num_observations = check_count(num_observations, 1, "num_observations", entries=0)
        found, unseen = covariance_of(*self._whitened(self.points, self.weights))
        found = np.where(unseen[:, None, None] > SEEN, np.nan, found) / num_observations
        route = f"Cramér-Rao bound for {num_observations:g} observations from: {self.informed.route}"
        return Covariance(self._typed(found), self.names, route)

    @entry_point
    def sensitivity(self, points: PyTree) -> np.ndarray:
        """What an observation at each point would add: at an optimal design at most one everywhere, and one at its points.

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
        rows = points_of(self.informed.model, points, "points")
        return gains(self.dual, self.informed.at(rows))

    @entry_point
    def efficiency(self, points: PyTree, weights: Any = None) -> float:
        """How well another design does beside this one, by the criterion of this: one if as well.

        Parameters
        ----------
        points : pytree or Design
            The points of the other, with a leading axis of length k; repeated ones count as often as they stand there.
        weights : array (k,), optional
            The share or number of observations at each; equal by default.

        Returns
        -------
        float
            This criterion by that one: the share of the observations that this design would need for the same. Zero where the
            other does not tell what is asked.
        """
        if isinstance(points, Design):
            points, weights = points.points, points.weights if weights is None else weights
        rows = points_of(self.informed.model, points, "points")
        shares = _shares(weights, jax.tree.leaves(rows)[0].shape[0])
        _check_finite(self.informed.at(rows))
        other = evaluated(self.criterion, *self._whitened(rows, shares))
        return float(np.exp(np.log(self.value) - other))

    @entry_point
    def round(self, num_observations: Any) -> np.ndarray:
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
        points = len(weights)
        num_observations = check_count(
            num_observations, points, "num_observations", ", the number of points", entries=0
        )
        counts = np.ceil((num_observations - 0.5 * len(weights)) * weights * (1 - 1e-12)).astype(int)
        counts = np.maximum(counts, 1)
        while counts.sum() < num_observations:
            counts[np.argmin(counts / weights)] += 1
        while counts.sum() > num_observations:
            counts[np.argmax(np.where(counts > 1, (counts - 1) / weights, -np.inf))] -= 1
        return counts

    def _matrix(self, points: PyTree, weights: Any) -> np.ndarray:
        return information_of(np.asarray(weights, float), self.informed.at(points))

    def _whitened(self, points: PyTree, weights: Any) -> tuple[np.ndarray, np.ndarray]:
        """M and K in the coordinates of the search."""
        matrix = self._matrix(points, weights)
        return np.swapaxes(self.basis, 1, 2) @ matrix @ self.basis, self.informed.slopes @ self.basis

    def _typed(self, matrix: np.ndarray) -> Any:
        found = jnp.asarray(matrix, self.informed.layout.dtype)
        return found[0] if self.informed.num_values == 1 else found

    def summary(self) -> Report:
        several = self.informed.num_values
        facts = [
            ("Criterion", CRITERIA[self.criterion]),
            ("Of", _listed(self.names)),
            ("Value", f"{number(self.value)} per observation"),
            ("Efficiency", f"at least {_just_below(float(self.efficiency_bound))}, by the equivalence theorem"),
        ]
        if several > 1:
            facts.append(("Averaged over", f"{several} values of the parameters"))
        columns = _columns(self.points)
        titles = ("point", *columns, "weight")
        rows = [
            (str(k), *(number(column[k]) for column in columns.values()), f"{weight:.6f}")
            for k, weight in enumerate(np.asarray(self.weights))
        ]
        notes = [] if self.status == "optimal" else [self.status]
        return Report("Optimal design" if self.status == "optimal" else "Design", facts, [Table(titles, rows)], notes)


jax.tree_util.register_dataclass(
    Design,
    ["points", "weights", "value", "efficiency_bound", "dual", "basis"],
    ["criterion", "names", "status", "informed"],
)


def _columns(points: PyTree) -> dict[str, np.ndarray]:
    """The coordinates of the points, each by name."""
    columns = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(points)[0]:
        name, values = path_name(path) if path else "z", np.asarray(leaf)
        for index in np.ndindex(values.shape[1:]):
            columns[name + (f"[{','.join(map(str, index))}]" if index else "")] = values[(slice(None), *index)]
    return columns


def _listed(names: tuple[str, ...], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _just_below(share: float) -> str:
    """Digits that are no more than the share itself."""
    return f"{np.floor(min(share, 1 - 1e-6) * 1e6 + 1e-4) / 1e6:.6f}"


def _shares(weights: Any, count: int) -> np.ndarray:
    shares = np.ones(count) if weights is None else np.asarray(weights, float)
    if shares.shape != (count,):
        raise ValueError(
            f"Design.efficiency: weights has shape {shares.shape}, expected ({count},), one for each point."
        )
    if not (np.all(shares >= 0) and np.all(np.isfinite(shares)) and np.sum(shares) > 0):
        raise ValueError("Design.efficiency: weights must be finite, not negative, and not all zero.")
    return shares / np.sum(shares)


def _check_finite(informations: Float[np.ndarray, "k b p p"]) -> None:
    lost = ~np.all(np.isfinite(informations), axis=(1, 2, 3))
    if np.any(lost):
        raise ValueError(
            f"Design.efficiency: the information of one observation is not finite at point {int(np.argmax(lost))}. Leave such "
            "points out."
        )
