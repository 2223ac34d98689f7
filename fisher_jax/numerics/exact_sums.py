"""Sums over many blocks without rounding errors, so that neither the size of the blocks nor their number changes a digit."""

import math
from typing import Any

import numpy as np

from fisher_jax.numerics.array_namespace import AnyArray


class Sums:
    """Sums of arrays of one shape (m, L), one number for each of L lanes, in pairs of which the second holds what rounding took.

    By Knuth's two-sum (1997, The Art of Computer Programming 2, section 4.2.2, theorem B).
    """

    def __init__(self) -> None:
        self.high: Any = 0.0
        self.low: Any = 0.0

    def add(self, terms: AnyArray, rounding: Any = 0.0) -> None:
        """Add an array, and what rounding took from it already."""
        terms = np.asarray(terms, np.float64)
        total = self.high + terms
        part = total - self.high
        self.low = self.low + (((self.high - (total - part)) + (terms - part)) + rounding)
        self.high = total

    def totals(self) -> list[tuple[float, float]]:
        """Each total as a pair: the nearest number, and what is left."""
        pairs = []
        for high, low in zip(self.high, np.broadcast_to(self.low, np.shape(self.high)), strict=True):
            if np.all(np.isfinite(high)) and np.all(np.isfinite(low)):
                total = math.fsum([*high, *low])
                pairs.append((total, math.fsum([*high, *low, -total])))
            else:
                pairs.append((float(np.sum(high)), 0.0))
        return pairs
