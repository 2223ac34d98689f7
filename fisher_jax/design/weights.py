"""The best weights of given points: Newton's method along the central path of the simplex, on the host.

With a barrier −μ Σ log w the weights stay positive; μ falls tenfold from one stage of the path to the next, each stage begun at
the end of the last, and the search ends where the largest gain tr(Γ I_i) proves the weights good enough. The criterion E is not
smooth: its largest eigenvalues are bounded by further variables t, min mean log t − μ Σ log det(t I − N) − μ Σ log w, whose
resolvent (t I − N)⁻¹ gives the mixture of eigenvectors with which Γ proves the bound.

Source: Boyd, S. and Vandenberghe, L. (2004), Convex Optimization, sections 11.2 and 11.6.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fisher_jax.design.criteria import derivatives, dual_of, gains, log_criterion, mix, solve, traces_of_products

BARRIERS = 10.0 ** -np.arange(1, 12)  # μ at the stages of the path
LAST_STAGE = {"E": 8}  # further on, rounding of the resolvent spoils the proof
NEWTON_STEPS = 40  # in a stage
DECREMENT = 1e-2  # times μ, at which a stage ends: near enough for Newton's method to converge in the next
LAST_DECREMENT = 1e-9  # times μ, in the last stage for E, since its proof needs the resolvent at the very centre
ROUNDING = 1e-13  # of the value


class Weighted(NamedTuple):
    """Weights, the log-criterion at them, Γ, and the largest gain among the points, which is one where they are optimal."""

    weights: Float[np.ndarray, " m"]
    value: float
    dual: Float[np.ndarray, "b r r"]
    largest_gain: float


def best_weights(criterion: str, points: np.ndarray, slopes: np.ndarray, *, goal: float = 1e-10) -> Weighted:
    """The weights of m points that together identify the estimand, until the largest gain is within `goal` of one."""
    m = len(points)
    weights, bounds = np.full(m, 1.0 / m), np.zeros(0)
    if criterion == "E":
        bounds = 2 * np.linalg.eigvalsh(solve(mix(weights, points), slopes)[2])[:, -1]
    best = None
    barriers = BARRIERS[: LAST_STAGE.get(criterion)]
    for barrier in barriers:
        decrement = LAST_DECREMENT if criterion == "E" and barrier == barriers[-1] else DECREMENT
        try:
            weights, bounds = _center(criterion, weights, bounds, points, slopes, barrier, decrement)
            candidate = _prove(criterion, weights, bounds, points, slopes)
        except np.linalg.LinAlgError:  # as far as rounding lets the path be followed
            break
        if not np.isfinite(candidate.largest_gain):
            break
        if best is None or _upper(candidate) < _upper(best):
            best = candidate
        if best.largest_gain < 1 + goal:
            break
    return _prove(criterion, np.full(m, 1.0 / m), bounds, points, slopes) if best is None else best


def _upper(weighted: Weighted) -> float:
    """The value together with the gap that is not proved to be zero."""
    return weighted.value + float(np.log(weighted.largest_gain))


def _prove(criterion: str, weights: np.ndarray, bounds: np.ndarray, points: np.ndarray, slopes: np.ndarray) -> Weighted:
    """Γ and the largest gain at these weights."""
    information, mixture = mix(weights, points), None
    covariance = solve(information, slopes)[2]
    if criterion == "E":
        resolvent = np.linalg.inv(bounds[:, None, None] * np.eye(slopes.shape[1]) - covariance)
        mixture = resolvent / np.trace(resolvent, axis1=1, axis2=2)[:, None, None]
    dual = dual_of(criterion, information, slopes, mixture)
    return Weighted(weights, log_criterion(criterion, covariance), dual, float(np.max(gains(dual, points))))


def _center(
    criterion: str,
    weights: np.ndarray,
    bounds: np.ndarray,
    points: np.ndarray,
    slopes: np.ndarray,
    barrier: float,
    goal: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Newton's method at one stage, in relative changes of weights and bounds; the weights keep their sum."""
    m = len(weights)
    for _ in range(NEWTON_STEPS):
        value = _objective(criterion, weights, bounds, points, slopes, barrier)
        if criterion == "E":
            gradient, hessian = _eigenvalue_derivatives(weights, bounds, points, slopes, barrier)
        else:
            gradient, hessian = derivatives(criterion, weights, points, slopes)
        gradient[:m] -= barrier / weights
        hessian[np.arange(m), np.arange(m)] += barrier / weights**2
        scale = np.concatenate([weights, bounds])
        gradient, hessian = scale * gradient, scale[:, None] * hessian * scale[None, :]
        # The step that minimises the quadratic model among those along which Σ dw = 0.
        total = np.concatenate([weights, np.zeros(len(bounds))])
        solved = np.linalg.solve(hessian, np.stack([gradient, total], axis=1))
        step = -solved[:, 0] + solved[:, 1] * (total @ solved[:, 0]) / (total @ solved[:, 1])
        decrement = -gradient @ step
        if not decrement > goal * barrier:
            break
        length = min(1.0, 0.95 / max(np.max(-step), 1e-300))  # no weight loses more than 95 %
        for _ in range(40):
            moved = scale * (1 + length * step)
            trial = _objective(criterion, moved[:m], moved[m:], points, slopes, barrier)
            if trial <= value - 0.1 * length * decrement + ROUNDING * (1 + abs(value)):
                break
            length *= 0.5
        else:
            break
        weights, bounds = moved[:m] / np.sum(moved[:m]), moved[m:]
    return weights, bounds


def _objective(
    criterion: str, weights: np.ndarray, bounds: np.ndarray, points: np.ndarray, slopes: np.ndarray, barrier: float
) -> float:
    covariance = solve(mix(weights, points), slopes)[2]
    of_weights = -barrier * float(np.sum(np.log(weights)))
    if criterion != "E":
        return log_criterion(criterion, covariance) + of_weights
    slack = np.linalg.eigvalsh(bounds[:, None, None] * np.eye(covariance.shape[-1]) - covariance)
    if np.any(slack <= 0):
        return np.inf
    return float(np.mean(np.log(bounds))) - barrier * float(np.sum(np.log(slack))) + of_weights


def _eigenvalue_derivatives(
    weights: np.ndarray, bounds: np.ndarray, points: np.ndarray, slopes: np.ndarray, barrier: float
) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives of mean log t − μ Σ log det(t I − N), without the negative curvature of the logarithm of t."""
    inverse, half, covariance = solve(mix(weights, points), slopes)
    m, (b, s) = len(weights), covariance.shape[:2]
    resolvent = np.linalg.inv(bounds[:, None, None] * np.eye(s) - covariance)
    falls = np.swapaxes(half, 1, 2) @ points @ half  # −∂N/∂w
    turned = resolvent[None] @ falls
    by_inverse, dual = points @ inverse[None], half @ resolvent @ np.swapaxes(half, 1, 2)
    of_weights = -barrier * np.einsum("bst,ibts->i", resolvent, falls)
    of_bounds = 1 / (b * bounds) - barrier * np.trace(resolvent, axis1=1, axis2=2)
    hessian = np.zeros((m + b, m + b))
    hessian[:m, :m] = traces_of_products(turned, turned) + 2 * traces_of_products(by_inverse, points @ dual[None])
    hessian[:m, m:] = np.einsum("ibst,bts->ib", turned, resolvent)
    hessian[m:, :m] = hessian[:m, m:].T
    hessian[m:, m:] = np.diag(np.einsum("bst,bts->b", resolvent, resolvent))
    return np.concatenate([of_weights, of_bounds]), 0.5 * barrier * (hessian + hessian.T)
