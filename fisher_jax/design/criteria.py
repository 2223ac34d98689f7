"""The criteria of optimal design as functions of the weights: values, derivatives, and what each point adds.

With M the information of a design and K the derivatives of what is asked, N = K M⁻¹ Kᵀ is the covariance per observation.
A criterion is the logarithm of a mean of the variances in N: D (log det N)/s, A and c log tr N, E log λ_max(N); with several
parameter values the average of these. All of it is numpy on the host, in float64: (m, b, r, r) are the informations of m
points at b parameter values, and (b, s, r) the K.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

CRITERIA = {
    "D": "D-optimal: the determinant of the covariance",
    "A": "A-optimal: the trace of the covariance",
    "E": "E-optimal: the largest eigenvalue of the covariance",
    "c": "c-optimal: the variance of one function",
}
RANK = (
    1e-11  # eigenvalues of an information, in coordinates where all points together have the identity, that are nothing
)
SEEN = 1e-6  # of what is asked, how much may lie outside what the information sees


class Derivatives(NamedTuple):
    """Of the log-criterion with respect to the weights, and Γ: minus the derivative along I is tr(Γ I)."""

    value: float
    gradient: Float[np.ndarray, " m"]
    hessian: Float[np.ndarray, "m m"]
    dual: Float[np.ndarray, "b r r"]


def information_of(weights: Float[np.ndarray, " m"], points: Float[np.ndarray, "m b r r"]) -> np.ndarray:
    """M (b, r, r)."""
    return np.einsum("i,ibxy->bxy", weights, points)


def gains(dual: Float[np.ndarray, "b r r"], points: Float[np.ndarray, "m b r r"]) -> Float[np.ndarray, " m"]:
    """tr(Γ I) of each point: at an optimal design at most one, and one at its points."""
    return np.einsum("bxy,ibxy->i", dual, points) / len(dual)


def covariance_of(information: np.ndarray, slopes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """N = K M⁻ Kᵀ (b, s, s), and by parameter value how much of what is asked M does not see (b,).

    Both in whitened coordinates. M⁻ is a generalised inverse: where M is singular, N is right for what M sees.
    """
    found, unseen = [], []
    for matrix, slope in zip(information, slopes, strict=True):
        values, vectors = np.linalg.eigh(matrix)
        kept = values > RANK
        along = slope @ vectors
        found.append((along[:, kept] / values[kept]) @ along[:, kept].T)
        total = np.linalg.norm(along)
        unseen.append(np.linalg.norm(along[:, ~kept]) / total if total > 0 else 0.0)
    return np.stack(found), np.asarray(unseen)


def log_value(criterion: str, covariance: np.ndarray) -> float:
    """The log-criterion of N, averaged over parameter values."""
    if criterion == "D":
        return float(np.mean(np.linalg.slogdet(covariance)[1])) / covariance.shape[-1]
    if criterion == "E":
        return float(np.mean(np.log(np.linalg.eigvalsh(covariance)[:, -1])))
    return float(np.mean(np.log(np.trace(covariance, axis1=1, axis2=2))))


def evaluated(criterion: str, information: np.ndarray, slopes: np.ndarray) -> float:
    """The log-criterion of a design; infinite where it does not see all that is asked."""
    covariance, unseen = covariance_of(information, slopes)
    return np.inf if np.any(unseen > SEEN) else log_value(criterion, covariance)


def halves(information: np.ndarray, slopes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """M⁻¹, U = M⁻¹ Kᵀ and N = K U, of a regular M."""
    inverse = np.linalg.inv(information)
    half = inverse @ np.swapaxes(slopes, 1, 2)
    covariance = slopes @ half
    return inverse, half, 0.5 * (covariance + np.swapaxes(covariance, 1, 2))


def smooth(criterion: str, weights: np.ndarray, points: np.ndarray, slopes: np.ndarray) -> Derivatives:
    """Value and derivatives for D, A and c.

    Γ is M⁻¹KᵀN⁻¹KM⁻¹/s for D and M⁻¹KᵀKM⁻¹/tr N for A and c.
    """
    inverse, half, covariance = halves(information_of(weights, points), slopes)
    s, b = covariance.shape[-1], len(covariance)
    dual = _dual(criterion, half, covariance)
    by_inverse, by_dual = points @ inverse, points @ dual
    hessian = 2 * np.einsum("ibxy,jbyx->ij", by_inverse, by_dual, optimize=True) / b
    if criterion == "D":
        hessian -= s * np.einsum("ibxy,jbyx->ij", by_dual, by_dual, optimize=True) / b
    else:
        each = np.einsum("ibxx->ib", by_dual)
        hessian -= each @ each.T / b
    gradient = -np.einsum("ibxx->i", by_dual) / b
    return Derivatives(log_value(criterion, covariance), gradient, 0.5 * (hessian + hessian.T), dual)


def smooth_dual(criterion: str, information: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """Γ of a design for D, A and c."""
    return _dual(criterion, *halves(information, slopes)[1:])


def _dual(criterion: str, half: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    if criterion == "D":
        return half @ np.linalg.solve(covariance, np.swapaxes(half, 1, 2)) / covariance.shape[-1]
    return half @ np.swapaxes(half, 1, 2) / np.trace(covariance, axis1=1, axis2=2)[:, None, None]


def dual_of_eigenvalue(mixture: np.ndarray, information: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """Γ for E: λ_max M⁻¹KᵀZKM⁻¹ / tr(ZN)², a bound for every density matrix Z, and the best with the right one."""
    _, half, covariance = halves(information, slopes)
    largest = np.linalg.eigvalsh(covariance)[:, -1]
    mixed = np.einsum("bxy,byx->b", mixture, covariance)
    return half @ mixture @ np.swapaxes(half, 1, 2) * (largest / mixed**2)[:, None, None]
