"""The best weights of given points: Newton's method along the central path of the simplex, on the host."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fisher_jax.design.criteria import dual_of_eigenvalue, gains, halves, information_of, log_value, smooth

PATH = 10.0 ** -np.arange(1, 12)  # weights of the barrier −Σ log w
LAST = {"E": 8}  # how many of them; further on rounding spoils the proof
NEWTON_STEPS = 40
NEAR, MIDDLE = 1e-2, 1e-9  # of the barrier's weight: decrements at which the path is followed on, and at its end
ROUNDING = 1e-13  # of the value


class Weighted(NamedTuple):
    """Weights, the log-criterion at them, Γ, and the largest gain among the points: how far from one it is tells how good."""

    weights: Float[np.ndarray, " m"]
    value: float
    dual: Float[np.ndarray, "b r r"]
    largest_gain: float


class Target(NamedTuple):
    """What is minimised at one place of the path, in the weights w and, for E, the bounds t on the eigenvalues."""

    value: float
    gradient: Float[np.ndarray, " k"]
    hessian: Float[np.ndarray, "k k"]


def best_weights(criterion: str, points: np.ndarray, slopes: np.ndarray, *, goal: float = 1e-10) -> Weighted:
    """The weights of m points that together see all that is asked, until the largest gain is within `goal` of one."""
    m = len(points)
    weights = np.full(m, 1.0 / m)
    extra = np.zeros(0)
    if criterion == "E":
        extra = 2 * np.linalg.eigvalsh(halves(information_of(weights, points), slopes)[2])[:, -1]
    best = None
    path = PATH[: LAST.get(criterion)]
    for barrier in path:
        near = MIDDLE if criterion == "E" and barrier == path[-1] else NEAR
        try:
            weights, extra = _followed(criterion, weights, extra, points, slopes, barrier, near)
            found = _judged(criterion, weights, extra, points, slopes)
        except np.linalg.LinAlgError:  # as far as rounding lets the path be followed
            break
        if not np.isfinite(found.largest_gain):
            break
        if best is None or found.value + np.log(found.largest_gain) < best.value + np.log(best.largest_gain):
            best = found
        if best.largest_gain < 1 + goal:
            break
    return _judged(criterion, np.full(m, 1.0 / m), extra, points, slopes) if best is None else best


def _judged(criterion: str, weights: np.ndarray, extra: np.ndarray, points: np.ndarray, slopes: np.ndarray) -> Weighted:
    information = information_of(weights, points)
    covariance = halves(information, slopes)[2]
    if criterion == "E":
        resolvent = np.linalg.inv(extra[:, None, None] * np.eye(slopes.shape[1]) - covariance)
        mixture = resolvent / np.trace(resolvent, axis1=1, axis2=2)[:, None, None]
        dual = dual_of_eigenvalue(mixture, information, slopes)
    else:
        dual = smooth(criterion, weights, points, slopes).dual
    return Weighted(weights, log_value(criterion, covariance), dual, float(np.max(gains(dual, points))))


def _followed(
    criterion: str,
    weights: np.ndarray,
    extra: np.ndarray,
    points: np.ndarray,
    slopes: np.ndarray,
    barrier: float,
    near: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Newton's steps at one weight of the barrier, relative to the weights, which keep their sum."""
    m = len(weights)
    for _ in range(NEWTON_STEPS):
        here = _target(criterion, weights, extra, points, slopes, barrier)
        scale = np.concatenate([weights, extra])
        gradient, hessian = scale * here.gradient, scale[:, None] * here.hessian * scale[None, :]
        tied = np.concatenate([weights, np.zeros(len(extra))])
        step = _tied_step(gradient, hessian, tied)
        decrement = -gradient @ step
        if not decrement > near * barrier:
            break
        length = min(1.0, 0.95 / max(np.max(-step), 1e-300))
        for _ in range(40):
            moved = scale * (1 + length * step)
            there = _value(criterion, moved[:m], moved[m:], points, slopes, barrier)
            if there <= here.value - 0.1 * length * decrement + ROUNDING * (1 + abs(here.value)):
                break
            length *= 0.5
        else:
            break
        weights, extra = moved[:m] / np.sum(moved[:m]), moved[m:]
    return weights, extra


def _tied_step(gradient: np.ndarray, hessian: np.ndarray, tied: np.ndarray) -> np.ndarray:
    """Newton's step along which `tied` · step is zero."""
    solved = np.linalg.solve(hessian, np.stack([gradient, tied], axis=1))
    return -solved[:, 0] + solved[:, 1] * (tied @ solved[:, 0]) / (tied @ solved[:, 1])


def _target(
    criterion: str, weights: np.ndarray, extra: np.ndarray, points: np.ndarray, slopes: np.ndarray, barrier: float
) -> Target:
    value = _value(criterion, weights, extra, points, slopes, barrier)
    if criterion == "E":
        gradient, hessian = _of_eigenvalue(weights, extra, points, slopes, barrier)
    else:
        _, gradient, hessian, _ = smooth(criterion, weights, points, slopes)
    m = len(weights)
    gradient[:m] -= barrier / weights
    hessian[np.arange(m), np.arange(m)] += barrier / weights**2
    return Target(value, gradient, hessian)


def _value(
    criterion: str, weights: np.ndarray, extra: np.ndarray, points: np.ndarray, slopes: np.ndarray, barrier: float
) -> float:
    covariance = halves(information_of(weights, points), slopes)[2]
    of_barrier = -barrier * float(np.sum(np.log(weights)))
    if criterion != "E":
        return log_value(criterion, covariance) + of_barrier
    slack = np.linalg.eigvalsh(extra[:, None, None] * np.eye(covariance.shape[-1]) - covariance)
    if np.any(slack <= 0):
        return np.inf
    return float(np.mean(np.log(extra))) - barrier * float(np.sum(np.log(slack))) + of_barrier


def _of_eigenvalue(
    weights: np.ndarray, extra: np.ndarray, points: np.ndarray, slopes: np.ndarray, barrier: float
) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives of mean log t − μ Σ log det(t I − N), without the negative curvature of the logarithm of t."""
    inverse, half, covariance = halves(information_of(weights, points), slopes)
    b, s = len(extra), covariance.shape[-1]
    resolvent = np.linalg.inv(extra[:, None, None] * np.eye(s) - covariance)
    falls = np.einsum("bxs,ibxy,byt->ibst", half, points, half, optimize=True)  # −∂N/∂w
    m = len(weights)
    gradient = np.concatenate(
        [
            -barrier * np.einsum("bst,ibts->i", resolvent, falls),
            1 / (b * extra) - barrier * np.trace(resolvent, axis1=1, axis2=2),
        ]
    )
    turned = resolvent[None] @ falls
    across = points @ inverse[None]
    dual = half @ resolvent @ np.swapaxes(half, 1, 2)
    hessian = np.zeros((m + b, m + b))
    hessian[:m, :m] = np.einsum("ibst,jbts->ij", turned, turned, optimize=True) + 2 * np.einsum(
        "ibxy,jbyx->ij", across, points @ dual[None], optimize=True
    )
    hessian[:m, m:] = np.einsum("ibst,bts->ib", turned, resolvent)
    hessian[m:, :m] = hessian[:m, m:].T
    hessian[m:, m:] = np.diag(np.einsum("bst,bts->b", resolvent, resolvent))
    hessian *= barrier
    return gradient, 0.5 * (hessian + hessian.T)
