"""What an information matrix says of where estimates fall: standard errors and ellipses, each with its own error."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from fisher_jax.information.matrix import Information

_ANGLES = np.linspace(0, 2 * np.pi, 361)
CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)])


class Region(NamedTuple):
    """A total information and its inverse with their pieces of error, on the host in float64."""

    label: str
    matrix: Float[np.ndarray, "q q"]
    errors: Float[np.ndarray, "k q q"]
    covariance: Float[np.ndarray, "q q"]
    covariance_errors: Float[np.ndarray, "k q q"]

    def standard_errors(self) -> tuple[Float[np.ndarray, " q"], Float[np.ndarray, " q"]]:
        """Of each parameter, the others unknown, and their own errors."""
        value = np.sqrt(np.diagonal(self.covariance))
        pieces = np.diagonal(self.covariance_errors, axis1=1, axis2=2) / (2 * value)
        return value, np.sqrt(np.sum(pieces**2, axis=0))

    def ellipse(
        self, pair: list[int], radius: float, *, known: bool
    ) -> tuple[Float[np.ndarray, "2 n"], Float[np.ndarray, " n"]]:
        """Points r L e(φ) where L Lᵀ is the covariance of two entries, and the standard error of each one's distance.

        The covariance is conditional where the others are `known`. The standard error is a share of the distance from the
        centre: a change E of the covariance takes the point outwards by ½ e(φ)ᵀ L⁻¹ E L⁻ᵀ e(φ) of it, to first order.
        """
        rows, columns = np.ix_(pair, pair)
        covariance, errors = self.covariance[rows, columns], self.covariance_errors[:, rows, columns]
        if known:
            covariance = np.linalg.inv(self.matrix[rows, columns])
            errors = covariance @ self.errors[:, rows, columns] @ covariance
        lower = np.linalg.cholesky(covariance)
        whitened = np.linalg.solve(lower, np.swapaxes(np.linalg.solve(lower, errors), 1, 2))
        shares = 0.5 * np.einsum("ia,kij,ja->ka", CIRCLE, whitened, CIRCLE)
        return radius * lower @ CIRCLE, np.sqrt(np.sum(shares**2, axis=0))


def region_of(record: Information, label: str, names: tuple[str, ...], num_observations: Any) -> Region:
    """That of n observations, with rows and columns in the order of `names`."""
    n = float(num_observations)
    if not (np.isfinite(n) and n > 0):
        raise ValueError(f"num_observations={num_observations} must be positive.")
    try:
        inverse = record.inverse()
    except ValueError as error:
        raise ValueError(f"there are no ellipses of {label!r}. {error}") from error
    order = [record.names.index(name) for name in names]
    parts = [
        np.zeros((0, len(names), len(names))) if part is None else np.asarray(part, float)[..., order, :][..., order]
        for part in (record.matrix, record.errors, inverse.matrix, inverse.errors)
    ]
    return Region(label, n * parts[0], n * parts[1], parts[2] / n, parts[3] / n)
