"""Histograms of the probability integral transform."""

from dataclasses import replace

import numpy as np
from jaxtyping import Float

from fisher_jax.checking.distances import counts_in_bins
from fisher_jax.checking.integral_transform import Transform, integral_transform
from fisher_jax.checking.quantile_comparison import with_rows_for_weights
from fisher_jax.fitting.result import Fit


def calibration(fit: Fit, num_bins: int, level: float) -> tuple[Float[np.ndarray, " k"], float, float]:
    """The density of u of one fit's data in each bin, and between which heights each lies with this probability."""
    from scipy.stats import binom

    if fit.has_batch:
        raise TypeError("takes one fit. Take one of yours, as fits[3].")
    fit._warn()
    transform = integral_transform(replace(fit, origin=with_rows_for_weights(fit)))
    counts = counts_in_bins(Transform(*map(np.atleast_2d, transform)), num_bins)[0]
    total = counts.sum()
    lower, upper = (binom.ppf(0.5 * (1 + side * level), total, 1 / num_bins) for side in (-1, 1))
    scale = num_bins / total
    return counts * scale, float(lower * scale), float(upper * scale)
