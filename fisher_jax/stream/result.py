"""What a stream of fits leaves behind: where the results are, and how many ended how."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fisher_jax.errors import entry_point
from fisher_jax.stream.sink import Sink


@dataclass(frozen=True)
class StreamResult:
    """Fits that have been written to disk.

    Attributes
    ----------
    path : pathlib.Path
        Where they are.
    num_fits : int
        How many.
    statuses : dict of str to int
        The count of each status that occurred.
    num_resumed : int
        How many of them an earlier run had left.
    seconds : float
        What this run took.
    unknown : tuple of str
        Parts of the model or settings that could not be fingerprinted, so that a change in them would not have been noticed.

    Examples
    --------
    >>> import fisher_jax as fj, numpy as np, pathlib, tempfile
    >>> from jax.scipy.stats import poisson
    >>> sink = pathlib.Path(tempfile.mkdtemp()) / "rates.zarr"
    >>> counts = np.array([[2, 4, 3], [0, 1, 2]])
    >>> result = fj.fit_stream(lambda rate, y: poisson.logpmf(y, rate), 1.0, counts, sink)
    >>> print(result.num_fits, result.to_columns()["params"].round(3))
    2 [3. 1.]
    """

    path: Path
    num_fits: int
    statuses: dict[str, int]
    num_resumed: int
    seconds: float
    unknown: tuple[str, ...]
    sink: Sink = field(repr=False)

    @entry_point
    def open(self) -> Any:
        """The results as a Zarr group, or as a pyarrow data set, of which nothing is yet read."""
        return self.sink.open()

    @entry_point
    def to_columns(self) -> dict[str, np.ndarray]:
        """All columns in memory: those of `Fit.to_columns`, and covariances (B, q, q)."""
        return self.sink.read()

    @entry_point
    def summary(self) -> str:
        """A report to print."""
        done = self.num_fits - self.num_resumed
        lines = [f"{self.num_fits} fits in {self.path}"]
        lines += [
            f"  {count} {label} ({100 * count / max(self.num_fits, 1):.4g} %)" for label, count in self.statuses.items()
        ]
        lines += [f"  {done} in {self.seconds:.1f} s, {self.num_resumed} left by an earlier run"]
        if self.unknown:
            lines += [f"  not fingerprinted, so a change would not be noticed: {', '.join(self.unknown)}"]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.summary()
