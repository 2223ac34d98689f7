"""Designs over a box: places moved by the gradient of the information, and the sensitivity maximised from a grid."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fisher_jax.design.criteria import dual_of_eigenvalue, evaluated, gains, halves, information_of, smooth_dual
from fisher_jax.design.informed import Informed, Region
from fisher_jax.design.search import (
    GOAL,
    LOST,
    Found,
    Whitened,
    among,
    exchanged,
    is_regular,
    lightened,
    reweighted,
)
from fisher_jax.design.weights import best_weights

PER_AXIS = {1: 501, 2: 61, 3: 17}
SOBOL = 2**13  # points where there are more coordinates
STARTS = 12  # places that the sensitivity is climbed from
LOW = 0.05  # below one on the grid, a peak is not looked at
TOGETHER = (0.1, 0.03, 0.01, 1e-3, 1e-4, 1e-6)  # of the box, how near points are to be merged, if that loses nothing
SAME = 1e-9  # of the box


class Climb(NamedTuple):
    """The sensitivity function over a box, in coordinates from zero to one."""

    informed: Informed
    region: Region
    white: Whitened
    grid: Float[np.ndarray, "n d"]
    points: Float[np.ndarray, "n b r r"]

    def scaled(self, where: np.ndarray) -> np.ndarray:
        return self.region.low + where * (self.region.high - self.region.low)

    def at(self, where: Float[np.ndarray, "k d"]) -> Float[np.ndarray, "k b r r"]:
        """Informations, whitened."""
        return self.white.points(self.informed.at(self.region.rows(self.scaled(where))))

    def slopes(self, dual: Float[np.ndarray, "b r r"], where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The gain and its gradient."""
        gain, gradient = self.informed.gains(self.region, self.white.dual(dual), self.scaled(where))
        return gain, gradient * (self.region.high - self.region.low)

    def peaks(self, dual: np.ndarray, support: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """The oracle of the search: local maxima of the sensitivity, climbed to from the grid and from the support."""
        on_grid = gains(dual, self.points)
        maxima = _local_maxima(self.grid, on_grid)
        starts = np.concatenate([support, self.grid[maxima[on_grid[maxima] > 1 - LOW]]])
        found = self._climbed(dual, starts) if len(starts) else starts
        points = self.at(found)
        gain = gains(dual, points)
        order = [k for k in np.argsort(-gain, kind="stable") if gain[k] > 1 + 0.5 * GOAL]
        new: list[int] = []
        for k in order:
            if not _near(found[k], np.concatenate([support, found[new]])):
                new.append(k)
        return found[new], points[new], float(max(np.max(gain, initial=-np.inf), np.max(on_grid)))

    def _climbed(self, dual: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """All at once: their gains are added, and each moves by its own gradient."""
        from scipy.optimize import minimize

        def downhill(flat: np.ndarray) -> tuple[float, np.ndarray]:
            gain, gradient = self.slopes(dual, flat.reshape(starts.shape))
            return -float(np.sum(gain)), -np.ravel(gradient)

        options = {"ftol": 0, "gtol": 1e-10, "maxiter": 200}
        bounds = [(0, 1)] * starts.size
        return minimize(
            downhill, np.ravel(starts), jac=True, method="L-BFGS-B", bounds=bounds, options=options
        ).x.reshape(starts.shape)


def over(criterion: str, climb: Climb) -> Found:
    """The best design over the box; `where` are coordinates from zero to one."""
    slopes = climb.white.slopes
    on_grid = among(criterion, slopes, climb.points)
    first = lightened(criterion, slopes, on_grid)
    if not is_regular(information_of(first.weights, first.points)):
        first = on_grid
    where = climb.grid[first.where]
    found = exchanged(criterion, slopes, where, climb.points[first.where], climb.peaks)
    best = lightened(criterion, slopes, found)
    for together in TOGETHER:
        merged = _merged(criterion, climb, found, together)
        if merged.value <= max(best.value, found.lower) + LOST and len(merged.weights) <= len(best.weights):
            best = merged
            break
    return _certified(criterion, climb, best)


def grid_of(region: Region) -> Float[np.ndarray, "n d"]:
    """Points of the unit box: a lattice with its edges, or scattered ones with the corners."""
    d = len(region.intervals)
    if d in PER_AXIS:
        axes = np.meshgrid(*[np.linspace(0.0, 1.0, PER_AXIS[d])] * d, indexing="ij")
        return np.stack([np.ravel(axis) for axis in axes], axis=-1)
    from scipy.stats import qmc

    corners = np.stack(np.meshgrid(*[[0.0, 1.0]] * min(d, 10), indexing="ij"), axis=-1).reshape(-1, min(d, 10))
    corners = np.pad(corners, ((0, 0), (0, d - corners.shape[1])))
    return np.concatenate([corners, qmc.Sobol(d, seed=0).random(SOBOL)])


def _merged(criterion: str, climb: Climb, found: Found, together: float) -> Found:
    """Points nearer than so much made one, and moved to where they do best."""
    slopes = climb.white.slopes
    kept = found.weights > 1e-7
    where, weights = found.where[kept], found.weights[kept]
    if not len(where):
        return found
    groups = _groups(where, together)
    total = np.array([np.sum(weights[group]) for group in groups])
    means = np.stack([weights[group] @ where[group] / np.sum(weights[group]) for group in groups])
    heaviest = np.stack([where[group[np.argmax(weights[group])]] for group in groups])
    tried = [reweighted(criterion, slopes, found, places, climb.at(places), total) for places in (means, heaviest)]
    start = min(tried, key=lambda one: one.value)
    if not is_regular(information_of(start.weights, start.points)):
        return start
    moved = _polished(criterion, climb, start)
    return lightened(criterion, slopes, moved if moved.value <= start.value else start)


def _polished(criterion: str, climb: Climb, start: Found) -> Found:
    """Places and weights moved together down the gradient of the criterion."""
    from scipy.optimize import minimize

    k, d = start.where.shape
    slopes = climb.white.slopes

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        where, logits = flat[: k * d].reshape(k, d), flat[k * d :]
        weights = np.exp(logits - np.max(logits))
        weights /= np.sum(weights)
        points = climb.at(where)
        information = information_of(weights, points)
        value = evaluated(criterion, information, slopes)
        if not np.isfinite(value) or not is_regular(information):
            return 1e30, np.zeros_like(flat)
        dual = _dual_of(criterion, information, slopes)
        gain, gradient = climb.slopes(dual, where)
        down = np.concatenate([np.ravel(-weights[:, None] * gradient), -weights * (gain - weights @ gain)])
        return value, down

    bounds = [(0, 1)] * (k * d) + [(None, None)] * k
    begin = np.concatenate([np.ravel(start.where), np.log(np.maximum(start.weights, 1e-12))])
    options = {"ftol": 0, "gtol": 1e-12, "maxiter": 500}
    found = minimize(objective, begin, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    where, logits = found.x[: k * d].reshape(k, d), found.x[k * d :]
    weights = np.exp(logits - np.max(logits))
    return reweighted(criterion, slopes, start, where, climb.at(where), weights)


def _dual_of(criterion: str, information: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """Γ of a design; for E with the eigenvector of the largest eigenvalue, a subgradient where there are several."""
    if criterion != "E":
        return smooth_dual(criterion, information, slopes)
    vectors = np.linalg.eigh(halves(information, slopes)[2])[1][:, :, -1]
    return dual_of_eigenvalue(vectors[:, :, None] * vectors[:, None, :], information, slopes)


def _certified(criterion: str, climb: Climb, found: Found) -> Found:
    """With the better of two proofs: that of the search, and that of the design itself where its information is regular."""
    if not is_regular(information_of(found.weights, found.points)):
        return found
    own = best_weights(criterion, found.points, climb.white.slopes)
    largest = max(climb.peaks(own.dual, found.where)[2], own.largest_gain)
    lower = own.value - np.log(largest)
    return found._replace(lower=lower, dual=own.dual) if lower > found.lower else found


def _local_maxima(grid: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Indices of grid points that no near one exceeds, the highest first."""
    order = np.argsort(-gain, kind="stable")[: 50 * STARTS]
    apart = 1.5 * float(len(grid)) ** (-1.0 / grid.shape[1])
    chosen: list[int] = []
    covered = np.zeros((0, grid.shape[1]))
    for k in order:
        if not len(covered) or np.min(np.max(np.abs(covered - grid[k]), axis=1)) > apart:
            chosen.append(int(k))
        covered = np.concatenate([covered, grid[k][None]])
        if len(chosen) == STARTS:
            break
    return np.asarray(chosen, int)


def _near(place: np.ndarray, places: np.ndarray) -> bool:
    return bool(len(places)) and float(np.min(np.max(np.abs(places - place), axis=1))) < SAME


def _groups(where: np.ndarray, together: float) -> list[np.ndarray]:
    """Points linked by steps no longer than `together`."""
    from scipy.cluster.hierarchy import fcluster, linkage

    if len(where) == 1:
        return [np.array([0])]
    labels = fcluster(linkage(where, "single", "chebyshev"), together, "distance")
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]
