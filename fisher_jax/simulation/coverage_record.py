"""The record of how often intervals hold the truth, and how long they are."""

from dataclasses import dataclass, fields
from typing import Any

import jax
import numpy as np

from fisher_jax.errors import entry_point, require
from fisher_jax.reporting import Report, Reported, Table


@dataclass(frozen=True, repr=False)
class Coverage(Reported):
    """How often intervals of several kinds hold the truth, at several n. It prints as a table.

    Attributes
    ----------
    share, share_error : arrays (N, K, q)
        For each n, kind and parameter the share of the data sets whose interval holds the truth, those without an interval
        counted as not covering, and its Monte Carlo standard error.
    length, length_error : arrays (N, K, q)
        Mean length of the finite intervals, in the parameter's unit, and its error.
    num_without : integer array (N, K, q)
        Data sets without an interval: the fit failed, or an end is NaN.
    num_unbounded : integer array (N, K, q)
        Intervals with an end at infinity, which have no length.
    num_data_sets : integer array (N, K)
        How many data sets are behind each share.
    num_observations : tuple of int
    kinds : tuple of str
    names : tuple of str
    level : float
        The coverage aimed at.
    """

    share: Any
    share_error: Any
    length: Any
    length_error: Any
    num_without: Any
    num_unbounded: Any
    num_data_sets: Any
    num_observations: tuple[int, ...]
    kinds: tuple[str, ...]
    names: tuple[str, ...]
    level: float

    @entry_point
    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each n, parameter and kind (needs the extra `frames`)."""
        pd = require("pandas", "frames")
        axes = [self.num_observations, self.kinds, self.names]
        index = pd.MultiIndex.from_product(axes, names=["num_observations", "kind", "name"])
        parts = ("share", "share_error", "length", "length_error", "num_without", "num_unbounded")
        columns = {part: np.ravel(getattr(self, part)) for part in parts}
        counts = np.repeat(np.ravel(self.num_data_sets), len(self.names))
        return pd.DataFrame(columns | {"num_data_sets": counts}, index=index)

    def summary(self) -> Report:
        rows = [
            (name, str(n), *(self._cell(i, k, j) for k in range(len(self.kinds))))
            for j, name in enumerate(self.names)
            for i, n in enumerate(self.num_observations)
        ]
        most = int(np.max(self.num_data_sets))
        fewer = [
            f"{kind} {_range(counts)}"
            for kind, counts in zip(self.kinds, self.num_data_sets.T, strict=True)
            if np.min(counts) < most
        ]
        facts = [
            ("Data sets", ", ".join([f"{most} at each n", *fewer])),
            ("Cells", "share that holds the truth in per cent; mean length"),
        ]
        title = f"Coverage of nominal {100 * self.level:g} % intervals"
        return Report(title, facts, [Table(("parameter", "n", *self.kinds), rows)], self._notes())

    def _cell(self, i: int, k: int, j: int) -> str:
        percent = f"{100 * self.share[i, k, j]:.1f} ± {100 * self.share_error[i, k, j]:.1f}"
        length = float(self.length[i, k, j])
        return f"{percent}; {'-' if np.isnan(length) else f'{length:.3g}'}"

    def _notes(self) -> list[str]:
        found = []
        for i, n in enumerate(self.num_observations):
            for k, kind in enumerate(self.kinds):
                if lost := int(np.max(self.num_without[i, k])):
                    found.append(f"{lost} of {self.num_data_sets[i, k]} at n = {n}, {kind}")
        notes = []
        if found:
            notes.append(f"without an interval, and counted as not holding the truth: {'; '.join(found)}.")
        if unbounded := int(np.sum(self.num_unbounded)):
            notes.append(f"{unbounded} intervals have an end at infinity; they are left out of the mean lengths.")
        return notes


_STATIC = ("num_observations", "kinds", "names", "level")
jax.tree_util.register_dataclass(Coverage, [f.name for f in fields(Coverage) if f.name not in _STATIC], list(_STATIC))


def _range(numbers: Any) -> str:
    least, most = int(np.min(numbers)), int(np.max(numbers))
    return f"{least}" if least == most else f"{least} to {most}"
