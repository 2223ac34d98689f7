"""The criteria of optimal design as functions of the weights: values, derivatives, and the sensitivity of each point.

With weights w, M = Σ w_i I_i is the information of a design, K the derivatives of the estimand, and N = K M⁻¹ Kᵀ its covariance
per observation. A criterion is the logarithm of a mean of the variances in N: (log det N)/s for D, log tr N for A and c,
log λ_max(N) for E; with several parameter values the average of these. Minus its derivative along I_i is tr(Γ I_i), where

    Γ = M⁻¹Kᵀ N⁻¹ KM⁻¹/s  (D),    M⁻¹Kᵀ KM⁻¹/tr N  (A, c),    M⁻¹Kᵀ Z KM⁻¹ λ_max/tr(ZN)²  (E, with any density matrix Z).

No design has a log-criterion below the value less log max tr(Γ I): the equivalence theorem. All of it is numpy on the host, in
float64: (m, b, r, r) are the informations of m points at b parameter values, and (b, s, r) the K.

Source: Pukelsheim, F. (1993), Optimal Design of Experiments, chapter 7.
"""

import numpy as np
from jaxtyping import Float

Matrices = Float[np.ndarray, "b _ _"]

CRITERIA = {
    "D": "D-optimal: the determinant of the covariance",
    "A": "A-optimal: the trace of the covariance",
    "E": "E-optimal: the largest eigenvalue of the covariance",
    "c": "c-optimal: the variance of one function",
}
# In coordinates where all points together have the identity for their information:
ZERO_EIGENVALUE = 1e-11  # eigenvalues below are taken for zero
UNIDENTIFIED = 1e-6  # the relative length of K outside the range of M from which on the estimand is not identified


def mix(weights: Float[np.ndarray, " m"], points: Float[np.ndarray, "m b r r"]) -> Matrices:
    """M (b, r, r)."""
    return np.einsum("i,ibxy->bxy", weights, points)


def gains(dual: Float[np.ndarray, "b r r"], points: Float[np.ndarray, "m b r r"]) -> Float[np.ndarray, " m"]:
    """tr(Γ I) of each point: at an optimal design at most one, and one at its points."""
    return np.einsum("bxy,ibxy->i", dual, points) / len(dual)


def covariance_of(information: Matrices, slopes: Matrices) -> tuple[Matrices, Float[np.ndarray, " b"]]:
    """N = K M⁻ Kᵀ (b, s, s), and by parameter value the relative length of K outside the range of M.

    Both in whitened coordinates. With a generalised inverse N is right wherever M identifies the estimand, singular or not.
    """
    covariances, outside = [], []
    for matrix, slope in zip(information, slopes, strict=True):
        values, vectors = np.linalg.eigh(matrix)
        positive = values > ZERO_EIGENVALUE
        along = slope @ vectors
        covariances.append((along[:, positive] / values[positive]) @ along[:, positive].T)
        length = np.linalg.norm(along)
        outside.append(np.linalg.norm(along[:, ~positive]) / length if length > 0 else 0.0)
    return np.stack(covariances), np.asarray(outside)


def log_criterion(criterion: str, covariance: Matrices) -> float:
    """The log-criterion of N, averaged over parameter values."""
    if criterion == "D":
        return float(np.mean(np.linalg.slogdet(covariance)[1])) / covariance.shape[-1]
    if criterion == "E":
        return float(np.mean(np.log(np.linalg.eigvalsh(covariance)[:, -1])))
    return float(np.mean(np.log(np.trace(covariance, axis1=1, axis2=2))))


def evaluate(criterion: str, information: Matrices, slopes: Matrices) -> float:
    """The log-criterion of a design; infinite where it does not identify the estimand."""
    covariance, outside = covariance_of(information, slopes)
    return np.inf if np.any(outside > UNIDENTIFIED) else log_criterion(criterion, covariance)


def solve(information: Matrices, slopes: Matrices) -> tuple[Matrices, Matrices, Matrices]:
    """M⁻¹, U = M⁻¹ Kᵀ and N = K U, of a regular M."""
    inverse = np.linalg.inv(information)
    half = inverse @ np.swapaxes(slopes, 1, 2)
    covariance = slopes @ half
    return inverse, half, 0.5 * (covariance + np.swapaxes(covariance, 1, 2))


def dual_of(criterion: str, information: Matrices, slopes: Matrices, mixture: Matrices | None = None) -> Matrices:
    """Γ (b, r, r) of a design; for E with Z = `mixture`, or by default with the eigenvector of the largest eigenvalue."""
    _, half, covariance = solve(information, slopes)
    transposed = np.swapaxes(half, 1, 2)
    if criterion == "D":
        return half @ np.linalg.solve(covariance, transposed) / covariance.shape[-1]
    if criterion != "E":
        return half @ transposed / np.trace(covariance, axis1=1, axis2=2)[:, None, None]
    values, vectors = np.linalg.eigh(covariance)
    if mixture is None:
        mixture = vectors[:, :, -1:] * vectors[:, None, :, -1]
    mixed = np.einsum("bxy,byx->b", mixture, covariance)
    return half @ mixture @ transposed * (values[:, -1] / mixed**2)[:, None, None]


def traces_of_products(
    left: Float[np.ndarray, "m b r r"], right: Float[np.ndarray, "m b r r"]
) -> Float[np.ndarray, "m m"]:
    """tr(L_i R_j), summed over parameter values. To plan an `einsum` takes longer, and a search makes thousands."""
    return left.reshape(len(left), -1) @ np.swapaxes(right, 2, 3).reshape(len(right), -1).T


def derivatives(
    criterion: str, weights: np.ndarray, points: Float[np.ndarray, "m b r r"], slopes: Matrices
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, "m m"]]:
    """Gradient and Hessian of the log-criterion in the weights, for D, A and c.

    ∂ᵢⱼ = 2 tr(M⁻¹ I_i Γ I_j) less s tr(Γ I_i Γ I_j) for D and less tr(Γ I_i) tr(Γ I_j) for A, averaged over parameter values.
    """
    information = mix(weights, points)
    dual = dual_of(criterion, information, slopes)
    by_inverse, by_dual = points @ np.linalg.inv(information), points @ dual
    hessian = 2 * traces_of_products(by_inverse, by_dual)
    if criterion == "D":
        hessian -= slopes.shape[1] * traces_of_products(by_dual, by_dual)
    else:
        each = np.einsum("ibxx->ib", by_dual)
        hessian -= each @ each.T
    hessian /= len(slopes)
    return -np.einsum("ibxx->i", by_dual) / len(slopes), 0.5 * (hessian + hessian.T)
