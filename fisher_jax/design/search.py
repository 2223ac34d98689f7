"""The search for an optimal design: points are added where the sensitivity is largest, and all weights solved anew."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fisher_jax.design.criteria import evaluated, gains, information_of, smooth_dual
from fisher_jax.design.weights import best_weights

ROUNDS = 60
ADDED = 8  # points in a round
MOST = 240  # points worked on at once
GOAL = 1e-8  # how far above one the largest gain may end
SPREADING = 60  # rounds of the multiplicative algorithm, which finds where to begin
LIGHT = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 0.0)  # weights under which points are left out, if that loses nothing
LOST = 1e-7  # of the log-criterion, what counts as nothing


class Whitened(NamedTuple):
    """Coordinates of the information in which that of a spread-out design is the identity.

    I' = Wᵀ I W with W `basis` (b, p, r), and K' = K W. Where the rank r is below p, the rest holds no information anywhere;
    `whole` is W with these directions as well.
    """

    basis: Float[np.ndarray, "b p r"]
    slopes: Float[np.ndarray, "b s r"]
    whole: Float[np.ndarray, "b p p"]

    def points(self, informations: Float[np.ndarray, "k b p p"]) -> Float[np.ndarray, "k b r r"]:
        return np.swapaxes(self.basis, 1, 2) @ informations @ self.basis

    def dual(self, dual: Float[np.ndarray, "b r r"]) -> Float[np.ndarray, "b p p"]:
        """Γ in the original coordinates."""
        return self.basis @ dual @ np.swapaxes(self.basis, 1, 2)


class Found(NamedTuple):
    """Points with weights, the log-criterion, the lower bound on anybody's, and the Γ that proves it."""

    where: np.ndarray
    points: Float[np.ndarray, "m b r r"]
    weights: Float[np.ndarray, " m"]
    value: float
    lower: float
    dual: Float[np.ndarray, "b r r"]


Oracle = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, float]]


def exchanged(criterion: str, slopes: np.ndarray, where: np.ndarray, points: np.ndarray, oracle: Oracle) -> Found:
    """Solve for the weights, ask the oracle where the sensitivity is largest, add these points, and again.

    `oracle(dual, support)` returns places, their informations and the largest gain of all.
    """
    lower, dual = -np.inf, np.zeros(0)
    for _ in range(ROUNDS):
        best = best_weights(criterion, points, slopes)
        support = where[best.weights > 1e-4 / len(where)]
        new_where, new_points, largest = oracle(best.dual, support)
        largest = max(largest, best.largest_gain)
        if not dual.size or best.value - np.log(largest) > lower:
            lower, dual = best.value - np.log(largest), best.dual
        if largest < max(1 + GOAL, 2 * best.largest_gain - 1) or not len(new_where):
            break
        kept = np.argsort(-best.weights, kind="stable")[:MOST]
        where = np.concatenate([where[kept], new_where])
        points = np.concatenate([points[kept], new_points])
    best = best_weights(criterion, points, slopes)
    return Found(where, points, best.weights, best.value, lower, dual)


def lightened(criterion: str, slopes: np.ndarray, found: Found) -> Found:
    """Without the points of next to no weight: as few as lose nothing of the criterion."""
    for light in LIGHT:
        kept = found.weights > light
        if not np.any(kept):
            continue
        reduced = reweighted(criterion, slopes, found, found.where[kept], found.points[kept], found.weights[kept])
        if reduced.value <= found.value + LOST:
            return reduced
    return found


def reweighted(
    criterion: str, slopes: np.ndarray, found: Found, where: np.ndarray, points: np.ndarray, weights: np.ndarray
) -> Found:
    """These points with the best weights, or with those they have where the information is singular."""
    weights = weights / np.sum(weights)
    value = evaluated(criterion, information_of(weights, points), slopes)
    if is_regular(information_of(weights, points)):
        best = best_weights(criterion, points, slopes)
        if best.value <= value:
            weights, value = best.weights, best.value
    return found._replace(where=where, points=points, weights=weights, value=value)


def is_regular(information: Float[np.ndarray, "b r r"]) -> bool:
    """Whether it can be inverted, in whitened coordinates."""
    return bool(np.all(np.linalg.eigvalsh(information)[:, 0] > 1e-9))


def among(criterion: str, slopes: np.ndarray, points: Float[np.ndarray, "n b r r"]) -> Found:
    """The best design of a finite number of candidates; `where` are their indices."""

    def oracle(dual: np.ndarray, support: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        gain = gains(dual, points)
        order = np.argsort(-gain, kind="stable")[:ADDED]
        new = np.setdiff1d(order[gain[order] > 1 + 0.5 * GOAL], support)
        return new, points[new], float(gain[order[0]])

    start = _begin(criterion, slopes, points)
    return exchanged(criterion, slopes, start, points[start], oracle)


def _begin(criterion: str, slopes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Some candidates that see all there is, those that matter among them, by the multiplicative algorithm."""
    n, r = len(points), points.shape[-1]
    weights = np.full(n, 1.0 / n)
    power = 1.0 if criterion == "D" else 0.5
    for _ in range(SPREADING if n > 2 * r else 0):
        dual = smooth_dual("D" if criterion == "D" else "A", information_of(weights, points), slopes)
        weights = np.maximum(weights * np.maximum(gains(dual, points), 0.0) ** power, 1e-12 / n)
        weights /= np.sum(weights)
    order = np.argsort(-weights, kind="stable")
    count = min(n, max(4 * r, 16))
    while count < n and not np.all(np.linalg.eigvalsh(np.mean(points[order[:count]], axis=0))[:, 0] > 1e-6):
        count = min(n, 2 * count)
    return order[:count]
