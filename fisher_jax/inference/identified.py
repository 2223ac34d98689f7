"""Which directions of parameter space the data inform about, from the eigenvalues of the scaled information. On the host."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from fisher_jax.numerics.linalg import to_unit_diagonal

NOT_IDENTIFIED = 0.5  # power of ε under which an eigenvalue of a unit-diagonal information is none: a fit is no nearer
LOADS = 1e-4  # part of a gradient along directions without information, above which it depends on them


class Identification(NamedTuple):
    """Of one information matrix, or of many with a leading axis.

    `eigenvalues` ascend; `directions` has the eigenvectors for rows, in units of each parameter's own conditional standard
    error 1/√J_kk, `scale` the √J_kk (one where that is zero), and `singular` says which of them are without information.
    """

    eigenvalues: Float[np.ndarray, "*b p"]
    directions: Float[np.ndarray, "*b p p"]
    scale: Float[np.ndarray, "*b p"]
    singular: Bool[np.ndarray, "*b p"]


def identify(information: Float[np.ndarray, "*b p p"], precision: np.dtype) -> Identification:
    """Eigenvalues and directions of the information scaled to unit diagonal; NaN where it is not finite.

    References
    ----------
    Belsley, D. A., Kuh, E. and Welsch, R. E. (1980), Regression Diagnostics, section 3.2, for the scaling.
    """
    information = np.asarray(information, np.float64)
    known = np.all(np.isfinite(information), axis=(-2, -1), keepdims=True)
    scaled, scale = to_unit_diagonal(np.where(known, information, 0.0))
    values, vectors = np.linalg.eigh(scaled)
    directions = np.where(known, np.swapaxes(vectors, -1, -2), np.nan)
    eigenvalues = np.where(known[..., 0], values, np.nan)
    return Identification(eigenvalues, directions, scale, eigenvalues < np.finfo(precision).eps ** NOT_IDENTIFIED)


def identified(
    found: Identification, information: Float[np.ndarray, "*b p p"], gradient: Float[np.ndarray, "*b k p"]
) -> tuple[Bool[np.ndarray, "*b k"], Float[np.ndarray, "*b k"]]:
    """Whether functions with these gradients do not depend on the directions without information, and standard errors then.

    A function is identified where its gradient lies in the range of the information; its variance is gᵀ J⁺ g, the same for
    every generalised inverse.

    References
    ----------
    Rothenberg, T. J. (1971), Econometrica 39, 577-591, theorem 8.
    """
    without = np.diagonal(np.where(np.isfinite(information), information, 0.0), axis1=-2, axis2=-1) == 0
    along = np.einsum("...kp,...jp->...kj", gradient / found.scale[..., None, :], found.directions)
    singular = found.singular[..., None, :]
    total = np.sum(along**2, axis=-1)
    lost = np.sum(np.where(singular, along**2, 0.0), axis=-1)
    # What has no information has no unit either in which its share could be weighed: it is lost with any slope.
    holds = (lost <= LOADS**2 * total) & ~np.any(without[..., None, :] & (gradient != 0), axis=-1)
    safe = np.where(singular, 1.0, found.eigenvalues[..., None, :])
    variance = np.sum(np.where(singular, 0.0, along**2 / safe), axis=-1)
    return holds, np.sqrt(np.where(holds, variance, np.nan))
