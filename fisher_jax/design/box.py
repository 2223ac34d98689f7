"""The search for an optimal design over a box: the sensitivity is climbed from a grid, and points are merged and moved.

Over a box the exchanges of `candidates` add the local maxima of tr(Γ I(z)), climbed to by its gradient from the best points of a
grid. Points of the result that lie near each other are merged, and places and weights moved together down the gradient of the
criterion, −w_i ∂tr(Γ I(z))/∂z; the bound is then proved anew. Coordinates run from zero to one in each direction of the box.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.design.candidates import (
    GOAL,
    NEGLIGIBLE,
    WeightedPoints,
    Whitening,
    drop_light,
    exchange,
    is_regular,
    reweight,
    search_candidates,
)
from fisher_jax.design.criteria import dual_of, evaluate, gains, mix
from fisher_jax.design.point_information import Nodes, PointInformation, information_at, pad
from fisher_jax.design.weights import best_weights
from fisher_jax.errors import check_pytree
from fisher_jax.information.expectations import Enumeration
from fisher_jax.models.constraints import Interval
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.programs import jit_with_model

GRID_PER_AXIS = {1: 501, 2: 61, 3: 17}
SOBOL_POINTS = 2**13  # where there are more coordinates
STARTS = 12  # grid points that the sensitivity is climbed from
PEAK = 0.95  # gain on the grid from which on a peak may exceed one between its points
MERGED = (0.1, 0.03, 0.01, 1e-3, 1e-4, 1e-6)  # of the box, distances below which points are tried to be merged
SAME = 1e-9  # of the box


@dataclass(frozen=True)
class Box:
    """A box of points z: the intervals of the coordinates, and how these make up z. `is_vector`: z is one array of them."""

    intervals: tuple[Interval, ...]
    treedef: Any
    is_vector: bool

    def rows(self, where: Any) -> PyTree:
        """The points z at coordinates (…, d) from zero to one."""
        low = np.array([interval.low for interval in self.intervals])
        high = np.array([interval.high for interval in self.intervals])
        z = low + where * (high - low)
        if self.is_vector:
            return z
        return jax.tree.unflatten(self.treedef, [z[..., k] for k in range(len(self.intervals))])

    def grid(self) -> Float[np.ndarray, "n d"]:
        """Coordinates of a lattice with its edges, or in many dimensions of scattered points and the corners."""
        d = len(self.intervals)
        if d in GRID_PER_AXIS:
            axes = np.meshgrid(*[np.linspace(0.0, 1.0, GRID_PER_AXIS[d])] * d, indexing="ij")
            return np.stack([np.ravel(axis) for axis in axes], axis=-1)
        from scipy.stats import qmc

        corners = np.stack(np.meshgrid(*[[0.0, 1.0]] * min(d, 10), indexing="ij"), axis=-1).reshape(-1, min(d, 10))
        corners = np.pad(corners, ((0, 0), (0, d - corners.shape[1])))
        return np.concatenate([corners, qmc.Sobol(d, seed=0).random(SOBOL_POINTS)])


def check_region(region: PyTree) -> Box:
    """A user's region: an interval, a list of them for a vector z, or a pytree of them."""
    check_pytree(region, "region")
    intervals, treedef = jax.tree.flatten(region, is_leaf=lambda leaf: isinstance(leaf, Interval))
    for leaf in intervals:
        if not isinstance(leaf, Interval) or not (np.isfinite(leaf.low) and np.isfinite(leaf.high)):
            raise ValueError(
                f"region holds {leaf!r}; expected intervals with two finite ends, as in fisher_jax.interval(0, 10), "
                "or a pytree of them shaped like one z."
            )
    if not intervals:
        raise ValueError("region holds no interval. Give one for each coordinate of z.")
    return Box(tuple(intervals), treedef, isinstance(region, list))


class Sensitivity(NamedTuple):
    """The sensitivity function tr(Γ I(z)) over a box, with the whitened informations of its grid."""

    information: PointInformation
    box: Box
    whitening: Whitening
    grid: Float[np.ndarray, "n d"]
    points: Float[np.ndarray, "n b r r"]

    def information_matrices(self, where: Float[np.ndarray, "k d"]) -> Float[np.ndarray, "k b r r"]:
        """Whitened, at any places."""
        return self.whitening.whiten(self.information.at(self.box.rows(where)))

    def gradient(self, dual: Float[np.ndarray, "b r r"], where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The gain (k,) and its gradient (k, d)."""
        information = self.information
        compute = _gains_enumerated if isinstance(information.expectation, Enumeration) else _gains
        where, count = pad(where)
        arrays = [jnp.asarray(part, information.layout.dtype) for part in (self.whitening.restore(dual), where)]
        result = compute(
            information.model, information.layout, information.expectation, self.box, information.values, *arrays
        )
        gain, gradient = (np.asarray(part, float)[:count] for part in result)
        return gain, gradient

    def peaks(self, dual: np.ndarray, support: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """The oracle of the search: local maxima of the sensitivity, climbed to from the grid and from the support."""
        from scipy.optimize import minimize

        on_grid = gains(dual, self.points)
        # The highest points of the grid that have no higher one near.
        order = np.argsort(-on_grid, kind="stable")[: 50 * STARTS]
        spacing = 1.5 * float(len(self.grid)) ** (-1.0 / self.grid.shape[1])
        maxima = [k for n, k in enumerate(order) if not _near(self.grid[k], self.grid[order[:n]], spacing)][:STARTS]
        starts = np.concatenate([support, self.grid[[k for k in maxima if on_grid[k] > PEAK]]])

        def downhill(flat: np.ndarray) -> tuple[float, np.ndarray]:
            """All at once: the gains are added, and each place moves by its own gradient."""
            gain, gradient = self.gradient(dual, flat.reshape(starts.shape))
            return -float(np.sum(gain)), -np.ravel(gradient)

        options = {"ftol": 0, "gtol": 1e-10, "maxiter": 200}
        bounds = [(0, 1)] * starts.size
        result = minimize(downhill, np.ravel(starts), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        where = result.x.reshape(starts.shape)
        points = self.information_matrices(where)
        gain = gains(dual, points)
        new: list[int] = []
        for k in np.argsort(-gain, kind="stable"):
            if gain[k] > 1 + 0.5 * GOAL and not _near(where[k], np.concatenate([support, where[new]]), SAME):
                new.append(k)
        return where[new], points[new], float(max(np.max(gain, initial=-np.inf), np.max(on_grid)))


def search_box(criterion: str, sensitivity: Sensitivity) -> WeightedPoints:
    """The best design over the box; `where` are coordinates from zero to one."""
    slopes = sensitivity.whitening.slopes
    on_grid = search_candidates(criterion, slopes, sensitivity.points)
    start = drop_light(criterion, slopes, on_grid)
    if not start.is_regular:  # exchanges need a regular information
        start = on_grid
    solution = exchange(criterion, slopes, sensitivity.grid[start.where], start.points, sensitivity.peaks)
    best = drop_light(criterion, slopes, solution)
    for distance in MERGED:
        merged = _merge(criterion, sensitivity, solution, distance)
        if merged.value <= max(best.value, solution.lower) + NEGLIGIBLE and len(merged.weights) <= len(best.weights):
            best = merged
            break
    if not best.is_regular:
        return best
    # The better of two proofs: that of the search, and that of the design itself.
    weighted = best_weights(criterion, best.points, slopes)
    largest = max(sensitivity.peaks(weighted.dual, best.where)[2], weighted.largest_gain)
    lower = weighted.value - np.log(largest)
    return best._replace(lower=lower, dual=weighted.dual) if lower > best.lower else best


def _merge(criterion: str, sensitivity: Sensitivity, design: WeightedPoints, distance: float) -> WeightedPoints:
    """Points linked by steps no longer than the distance made one, and moved to where they do best."""
    from scipy.cluster.hierarchy import fcluster, linkage

    slopes = sensitivity.whitening.slopes
    heavy = design.weights > 1e-7
    where, weights = design.where[heavy], design.weights[heavy]
    if not len(where):
        return design
    labels = np.ones(1)
    if len(where) > 1:
        labels = fcluster(linkage(where, "single", "chebyshev"), distance, "distance")
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    total = np.array([np.sum(weights[group]) for group in groups])
    means = np.stack([weights[group] @ where[group] / np.sum(weights[group]) for group in groups])
    heaviest = np.stack([where[group[np.argmax(weights[group])]] for group in groups])
    trials = [
        reweight(criterion, slopes, design, places, sensitivity.information_matrices(places), total)
        for places in (means, heaviest)
    ]
    start = min(trials, key=lambda trial: trial.value)
    if not start.is_regular:
        return start
    moved = _move(criterion, sensitivity, start)
    return drop_light(criterion, slopes, moved if moved.value <= start.value else start)


def _move(criterion: str, sensitivity: Sensitivity, start: WeightedPoints) -> WeightedPoints:
    """Places and weights moved together down the gradient of the criterion; weights are exp of logits, scaled to sum to one."""
    from scipy.optimize import minimize

    k, d = start.where.shape
    slopes = sensitivity.whitening.slopes

    def split(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits = flat[k * d :]
        weights = np.exp(logits - np.max(logits))
        return flat[: k * d].reshape(k, d), weights / np.sum(weights)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        where, weights = split(flat)
        information = mix(weights, sensitivity.information_matrices(where))
        value = evaluate(criterion, information, slopes)
        if not np.isfinite(value) or not is_regular(information):
            return 1e30, np.zeros_like(flat)
        gain, gradient = sensitivity.gradient(dual_of(criterion, information, slopes), where)
        return value, np.concatenate([np.ravel(-weights[:, None] * gradient), -weights * (gain - weights @ gain)])

    bounds = [(0, 1)] * (k * d) + [(None, None)] * k
    begin = np.concatenate([np.ravel(start.where), np.log(np.maximum(start.weights, 1e-12))])
    options = {"ftol": 0, "gtol": 1e-12, "maxiter": 500}
    where, weights = split(minimize(objective, begin, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x)
    return reweight(criterion, slopes, start, where, sensitivity.information_matrices(where), weights)


def _near(place: np.ndarray, places: np.ndarray, distance: float) -> bool:
    return bool(np.any(np.max(np.abs(places - place), axis=1) <= distance))


def _compute_gains(
    model: Model,
    layout: Layout,
    expectation: Nodes | None,
    box: Box,
    values: Values,
    dual: Float[Array, "b p p"],
    where: Float[Array, "k d"],
) -> tuple[Float[Array, " k"], Float[Array, "k d"]]:
    def gain(where: Array) -> Array:
        z = jax.tree.map(lambda leaf: leaf.astype(layout.dtype), box.rows(where))
        return jnp.sum(dual * information_at(model, layout, expectation, values, z)) / len(dual)

    return jax.vmap(jax.value_and_grad(gain))(where)


# The values of an enumeration are arrays, which cannot be static.
_gains = jit_with_model(_compute_gains, static_argnums=(0, 1, 2, 3))
_gains_enumerated = jit_with_model(_compute_gains, static_argnums=(0, 1, 3))
