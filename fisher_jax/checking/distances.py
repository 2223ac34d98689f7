"""Distances between u = F(Y; θ̂) of a data set and the uniform distribution, of many data sets at a time.

With F̄(u) the mean over the observations of the probability that a number drawn from the interval of each lies below u:

- Kolmogorov-Smirnov    D = sup |F̄(u) − u|
- Cramér-von Mises      W² = m ∫ (F̄(u) − u)² du
- Anderson-Darling      A² = m ∫ (F̄(u) − u)² / (u (1 − u)) du

Of continuous observations F̄ is the empirical distribution function of u, and these are the statistics of Stephens (1974). Of counts
F̄ is linear within each jump of F (Czado, Gneiting and Held 2009), so that nothing is drawn and the same data have the same
distance; without covariates D is the greatest distance of the two distribution functions at a whole number.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from fisher_jax.checking.integral_transform import Transform

_NARROW = 1e-8  # intervals of u that are taken as points: slopes of F̄ above its inverse would lose digits when they end
_AT_ONCE = 2**19  # numbers in memory at once, of each of some twenty arrays
_NODES, _WEIGHTS = (0.5 * array for array in np.polynomial.legendre.leggauss(8))

Distance = Callable[[Transform], Float[np.ndarray, " r"]]


def kolmogorov_smirnov(transform: Transform) -> Float[np.ndarray, " r"]:
    """D of each of the data sets (r, n)."""
    if np.any(transform.is_wide):
        return _in_blocks(lambda part: _Deviations(part).greatest(), transform)
    u, i, m = _sorted(np.exp(transform.log_low))
    return np.nanmax(np.maximum(i / m - u, u - (i - 1) / m), axis=-1, initial=0.0)


def cramer_von_mises(transform: Transform) -> Float[np.ndarray, " r"]:
    """W² of each of the data sets (r, n)."""
    if np.any(transform.is_wide):
        return _in_blocks(lambda part: _Deviations(part).integral(), transform)
    u, i, m = _sorted(np.exp(transform.log_low))
    return 1 / (12 * m[:, 0]) + np.nansum((u - (2 * i - 1) / (2 * m)) ** 2, axis=-1)


def anderson_darling(transform: Transform) -> Float[np.ndarray, " r"]:
    """A² of each of the data sets (r, n), which weighs the tails."""
    if np.any(transform.is_wide):
        return _in_blocks(lambda part: _Deviations(part).weighted_integral(), transform)
    log_u, i, m = _sorted(transform.log_low)
    log_above = -_sorted(-transform.log_above_low)[0]  # decreases where u increases
    terms = (2 * i - 1) * log_u + (2 * m + 1 - 2 * i) * log_above
    return -m[:, 0] - np.nansum(terms, axis=-1) / m[:, 0]


def counts_in_bins(transform: Transform, num_bins: int) -> Float[np.ndarray, "r k"]:
    """How many observations lie in each of k equal intervals of u; those that are intervals themselves by their part in each."""
    edges = np.arange(num_bins + 1) / num_bins
    low, high = np.exp(transform.log_low), np.exp(transform.log_high)
    is_wide = high > low
    counts = np.empty((len(low), num_bins))
    below = np.zeros(len(low))
    for k in range(num_bins):
        with np.errstate(invalid="ignore", divide="ignore"):
            part = np.clip((edges[k + 1] - low) / (high - low), 0.0, 1.0)
        up_to = np.sum(np.where(is_wide, part, low < edges[k + 1]), axis=-1)
        up_to = up_to if k + 1 < num_bins else np.sum(~np.isnan(low), axis=-1).astype(float)
        counts[:, k], below = up_to - below, up_to
    return counts


def _sorted(values: Float[np.ndarray, "r n"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The numbers of each row in order, those that are missing last; their ranks; and how many there are, (r, 1)."""
    m = np.sum(~np.isnan(values), axis=-1, keepdims=True).astype(float)
    return np.sort(values, axis=-1), np.arange(1.0, values.shape[-1] + 1)[None, :], m


def _in_blocks(of_part: Distance, transform: Transform) -> Float[np.ndarray, " r"]:
    size = max(1, _AT_ONCE // (16 * transform.log_low.shape[-1]))
    starts = range(0, len(transform.log_low), size)
    return np.concatenate([of_part(Transform(*(end[k : k + size] for end in transform))) for k in starts])


class _Deviations:
    """F̄(u) − u at the ends of all intervals of u, in order: piecewise linear between them, with a jump at what is a point.

    `before` and `after` (r, k) are its limits at the ends from below and above, `gaps` (r, k + 1) the distances between 0, the ends
    and 1, and `u` and `above` the ends with these, (r, k + 2), and one minus them.
    """

    def __init__(self, transform: Transform):
        counts = ~np.isnan(transform.log_low)
        m = np.sum(counts, axis=-1, keepdims=True)
        low, high, above_low, above_high = (np.where(counts, np.exp(end), 1.0) for end in transform)
        # The difference of the smaller ones has the digits.
        width = np.where(high < 0.5, high - low, above_low - above_high)
        is_point = width < _NARROW
        middle, above_middle = 0.5 * (low + high), 0.5 * (above_low + above_high)
        ends = np.concatenate([np.where(is_point, middle, low), np.where(is_point, middle, high)], axis=-1)
        above = np.concatenate(
            [np.where(is_point, above_middle, above_low), np.where(is_point, above_middle, above_high)], axis=-1
        )
        slope = np.where(counts & ~is_point, 1.0 / (m * np.where(is_point, 1.0, width)), 0.0)
        slopes = np.concatenate([slope, -slope], axis=-1)
        jump = np.where(counts & is_point, 1.0 / m, 0.0)
        jumps = np.concatenate([jump, np.zeros_like(jump)], axis=-1)
        # Rows that do not count have no slope and no jump, at 1.
        missing = np.concatenate([~counts, ~counts], axis=-1)
        above = np.where(missing, 0.0, above)
        with np.errstate(divide="ignore"):
            order = np.argsort(np.log(ends) - np.log(above), axis=-1, kind="stable")
        ends, above, slopes, jumps = (np.take_along_axis(part, order, axis=-1) for part in (ends, above, slopes, jumps))
        edge = np.zeros((len(ends), 1))
        self.m = m[:, 0]
        self.u = np.concatenate([edge, ends, edge + 1.0], axis=-1)
        self.above = np.concatenate([edge + 1.0, above, edge], axis=-1)
        self.gaps = np.maximum(np.where(self.u[:, 1:] < 0.5, np.diff(self.u), -np.diff(self.above)), 0.0)
        # F̄ just after each end: the jumps up to it, and the slopes times the gaps before it.
        risen = np.cumsum(np.cumsum(slopes, axis=-1)[:, :-1] * self.gaps[:, 1:-1], axis=-1)
        risen = np.concatenate([edge, risen], axis=-1)
        total = np.cumsum(jumps, axis=-1) + risen
        self.after = np.where(above == 0, 0.0, total - ends)  # F̄(1) = 1, not to rounding only: it is divided by 1 − u
        self.before = self.after - jumps

    def greatest(self) -> Float[np.ndarray, " r"]:
        return np.maximum(np.abs(self.before), np.abs(self.after)).max(axis=-1)

    @property
    def _segments(self) -> tuple[np.ndarray, np.ndarray]:
        """The deviation at the lower and at the upper end of each gap; it is zero at u = 0 and u = 1."""
        edge = np.zeros((len(self.after), 1))
        return np.concatenate([edge, self.after], axis=-1), np.concatenate([self.before, edge], axis=-1)

    def integral(self) -> Float[np.ndarray, " r"]:
        first, last = self._segments
        return self.m * np.sum(self.gaps * (first**2 + first * last + last**2) / 3, axis=-1)

    def weighted_integral(self) -> Float[np.ndarray, " r"]:
        """1 / (u (1 − u)) = 1/u + 1/(1 − u), each times the square of a linear function."""
        first, last = self._segments
        from_zero = _over_distance(self.u[:, :-1], self.gaps, first, last)
        from_one = _over_distance(self.above[:, 1:], self.gaps, last, first)
        return self.m * np.sum(from_zero + from_one, axis=-1)


def _over_distance(start: Any, gap: Any, first: Any, last: Any) -> np.ndarray:
    """∫ d(x)² / x dx from `start` over a gap, d linear from `first` to `last`.

    With x = start + gap s and c = start/gap these are the integrals A_k of s^k / (c + s) from 0 to 1, which A_k = 1/k − c A_{k−1}
    gives near c = 0, and Gauss-Legendre quadrature where the difference would cancel.
    """
    has_gap = gap > 0
    c = np.where(has_gap, start / np.where(has_gap, gap, 1.0), 1.0)
    near = c < 1
    safe = np.where(near & (c > 0), c, 1.0)
    moments = [np.log1p(1 / safe)]
    moments += [1 - safe * moments[0]]
    moments += [0.5 - safe * moments[1]]
    # At x = 0 is d = 0, but for an observation that the model excludes: the distance is infinite.
    at_zero = np.inf, 1.0, 0.5
    moments = [np.where(c > 0, moment, limit) for moment, limit in zip(moments, at_zero, strict=True)]
    far = np.where(near, 1.0, c)
    by_quadrature = [np.zeros_like(far) for _ in moments]
    for node, weight in zip(_NODES + 0.5, _WEIGHTS, strict=True):
        for k in range(3):
            by_quadrature[k] += weight * node**k / (far + node)
    a0, a1, a2 = (np.where(near, closed, other) for closed, other in zip(moments, by_quadrature, strict=True))
    with np.errstate(invalid="ignore"):
        of_first = np.where(first == 0, 0.0, first**2 * (a0 - 2 * a1 + a2))
    total = of_first + 2 * first * last * (a1 - a2) + last**2 * a2
    return np.where(has_gap, total, 0.0)
