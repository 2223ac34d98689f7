"""The search for an optimal design: points are added where the sensitivity is largest, and all weights are solved anew.

Each round solves for the best weights of the points at hand, drops none but the lightest, and adds those points of the design
space at which tr(Γ I) exceeds one. The value less the logarithm of the largest gain is a lower bound on every design's
criterion. At the end points of next to no weight are left out.

Source: Yang, M., Biedermann, S. and Tang, E. (2013), J. Am. Stat. Assoc. 108, 1411-1420.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fisher_jax.design.criteria import dual_of, evaluate, gains, mix
from fisher_jax.design.weights import best_weights

ROUNDS = 60
ADDED = 8  # points in a round
MAX_POINTS = 240  # in a round, whose Newton steps cost its cube
GOAL = 1e-8  # how far above one the largest gain may end
SPREADING = 60  # rounds of the multiplicative algorithm for the points to begin with
LIGHT = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 0.0)  # weights under which points are tried to be left out
NEGLIGIBLE = 1e-7  # increase of the log-criterion for which a design of fewer points is preferred
REGULAR = 1e-9  # smallest eigenvalue of an information that is inverted, in whitened coordinates


class Whitening(NamedTuple):
    """Coordinates of the information in which that of a spread-out design is the identity.

    I' = Wᵀ I W with W `basis` (b, p, r), and K' = K W. Where the rank r is below p, no point has information in the other
    directions; `whole` is W with these as well.
    """

    basis: Float[np.ndarray, "b p r"]
    slopes: Float[np.ndarray, "b s r"]
    whole: Float[np.ndarray, "b p p"]

    def whiten(self, information_matrices: Float[np.ndarray, "*k b p p"]) -> Float[np.ndarray, "*k b r r"]:
        return np.swapaxes(self.basis, 1, 2) @ information_matrices @ self.basis

    def restore(self, dual: Float[np.ndarray, "b r r"]) -> Float[np.ndarray, "b p p"]:
        """Γ in the original coordinates."""
        return self.basis @ dual @ np.swapaxes(self.basis, 1, 2)


class WeightedPoints(NamedTuple):
    """Places with their informations and weights, the log-criterion, a lower bound on every design's, and the Γ of its proof."""

    where: np.ndarray
    points: Float[np.ndarray, "m b r r"]
    weights: Float[np.ndarray, " m"]
    value: float
    lower: float
    dual: Float[np.ndarray, "b r r"]

    @property
    def is_regular(self) -> bool:
        """Whether the information can be inverted."""
        return is_regular(mix(self.weights, self.points))


# (Γ, support) -> places to add, their informations, and the largest gain of all places
Oracle = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, float]]


def is_regular(information: Float[np.ndarray, "b r r"]) -> bool:
    return bool(np.all(np.linalg.eigvalsh(information)[:, 0] > REGULAR))


def search_candidates(criterion: str, slopes: np.ndarray, points: Float[np.ndarray, "n b r r"]) -> WeightedPoints:
    """The best design of a finite number of candidates; `where` are their indices."""

    def oracle(dual: np.ndarray, support: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        gain = gains(dual, points)
        order = np.argsort(-gain, kind="stable")[:ADDED]
        new = np.setdiff1d(order[gain[order] > 1 + 0.5 * GOAL], support)
        return new, points[new], float(gain[order[0]])

    # Where to begin: the heaviest points after some rounds of the multiplicative algorithm (the root for all but D, for which
    # it is monotone), as many as it takes to identify what all of them do. E begins with A, which is smooth.
    n, r = len(points), points.shape[-1]
    weights = np.full(n, 1.0 / n)
    smooth, power = ("D", 1.0) if criterion == "D" else ("A", 0.5)
    for _ in range(SPREADING if n > 2 * r else 0):
        dual = dual_of(smooth, mix(weights, points), slopes)
        weights = np.maximum(weights * np.maximum(gains(dual, points), 0.0) ** power, 1e-12 / n)
        weights /= np.sum(weights)
    order, count = np.argsort(-weights, kind="stable"), min(n, max(4 * r, 16))
    while count < n and not np.all(np.linalg.eigvalsh(np.mean(points[order[:count]], axis=0))[:, 0] > 1e-6):
        count = min(n, 2 * count)
    return exchange(criterion, slopes, order[:count], points[order[:count]], oracle)


def exchange(
    criterion: str, slopes: np.ndarray, where: np.ndarray, points: np.ndarray, oracle: Oracle
) -> WeightedPoints:
    """Solve for the weights, ask the oracle for places where the sensitivity is largest, add these, and repeat."""
    lower, dual = -np.inf, np.zeros((0, 0, 0))
    for _ in range(ROUNDS):
        best = best_weights(criterion, points, slopes)
        new_where, new_points, largest = oracle(best.dual, where[best.weights > 1e-4 / len(where)])
        largest = max(largest, best.largest_gain)
        if not dual.size or best.value - np.log(largest) > lower:
            lower, dual = best.value - np.log(largest), best.dual
        # No nearer than the weights themselves were solved for.
        if largest < max(1 + GOAL, 2 * best.largest_gain - 1) or not len(new_where):
            break
        heaviest = np.argsort(-best.weights, kind="stable")[:MAX_POINTS]
        where = np.concatenate([where[heaviest], new_where])
        points = np.concatenate([points[heaviest], new_points])
    best = best_weights(criterion, points, slopes)
    return WeightedPoints(where, points, best.weights, best.value, lower, dual)


def drop_light(criterion: str, slopes: np.ndarray, design: WeightedPoints) -> WeightedPoints:
    """Without the points of next to no weight: as few as leave the criterion as it is."""
    for light in LIGHT:
        heavy = design.weights > light
        if np.any(heavy):
            reduced = reweight(
                criterion, slopes, design, design.where[heavy], design.points[heavy], design.weights[heavy]
            )
            if reduced.value <= design.value + NEGLIGIBLE:
                return reduced
    return design


def reweight(
    criterion: str,
    slopes: np.ndarray,
    design: WeightedPoints,
    where: np.ndarray,
    points: np.ndarray,
    weights: np.ndarray,
) -> WeightedPoints:
    """These points with the best weights, or with those given where the information is singular."""
    weights = weights / np.sum(weights)
    information = mix(weights, points)
    value = evaluate(criterion, information, slopes)
    if is_regular(information):
        best = best_weights(criterion, points, slopes)
        if best.value <= value:
            weights, value = best.weights, best.value
    return design._replace(where=where, points=points, weights=weights, value=value)
