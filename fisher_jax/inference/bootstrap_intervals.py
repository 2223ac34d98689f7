"""Intervals from bootstrap replicates, as functions of plain arrays; a column for each number, on the host."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int


def percentile(replicates: Float[np.ndarray, "r k"], level: Any) -> Float[np.ndarray, "k 2"]:
    """The quantiles (1 ∓ level)/2 of the replicates."""
    tail = 0.5 * (1.0 - float(level))
    return np.quantile(replicates, [tail, 1.0 - tail], axis=0).T


def basic(
    replicates: Float[np.ndarray, "r k"], estimate: Float[np.ndarray, " k"], level: Any
) -> Float[np.ndarray, "k 2"]:
    """The percentile interval reflected about the estimate."""
    return 2.0 * estimate[:, None] - percentile(replicates, level)[:, ::-1]


def bca(
    replicates: Float[np.ndarray, "r k"],
    estimate: Float[np.ndarray, " k"],
    acceleration: Float[np.ndarray, " k"],
    level: Any,
) -> Float[np.ndarray, "k 2"]:
    """Bias-corrected and accelerated: quantiles at Φ(z₀ + (z₀ + z)/(1 − a(z₀ + z))).

    NaN where z₀ is infinite, or where 1 − a(z₀ + z) is not positive, past which the quantiles run backwards.
    z₀ = Φ⁻¹ of the share of replicates below the estimate, those equal to it counted half.
    """
    from scipy.special import ndtr, ndtri

    z = ndtri(0.5 * (1.0 + np.array([-1.0, 1.0]) * float(level)))
    found = np.full((len(estimate), 2), np.nan)
    for k, value in enumerate(estimate):
        column = replicates[:, k]
        bias = ndtri(0.5 * (np.mean(column < value) + np.mean(column <= value)))
        shifted = bias + z
        if np.isfinite(bias) and np.all(acceleration[k] * shifted < 1.0):
            found[k] = np.quantile(column, ndtr(bias + shifted / (1.0 - acceleration[k] * shifted)))
    return found


def acceleration(influence: Float[np.ndarray, "g k"], copies: Int[np.ndarray, " g"] | None) -> Float[np.ndarray, " k"]:
    """Σ L³ / (6 (Σ L²)^{3/2}) of the influences L, each counted as often as it has copies; zero where none has any."""
    copies = np.ones(len(influence)) if copies is None else copies
    squares, cubes = copies @ influence**2, copies @ influence**3
    return np.where(squares > 0, cubes / (6.0 * np.where(squares > 0, squares, 1.0) ** 1.5), 0.0)


def jackknife_acceleration(
    left_out: Float[np.ndarray, "g k"], copies: Int[np.ndarray, " g"] | None
) -> Float[np.ndarray, " k"]:
    """The acceleration from the estimates with each one left out: L is their mean less each."""
    return acceleration(np.average(left_out, axis=0, weights=copies) - left_out, copies)
