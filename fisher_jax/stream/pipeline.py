"""Fits from disk to disk: blocks are read, fitted and written at the same time, each in a thread of its own."""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree

from fisher_jax.errors import check_count, check_flag, entry_point, require
from fisher_jax.fitting import covariance as covariance_kinds
from fisher_jax.fitting.fit import check_kinds, check_optimizer, check_stopping, fit_batch
from fisher_jax.fitting.result import Fit
from fisher_jax.fitting.status import Status
from fisher_jax.fitting.workers import devices_of
from fisher_jax.models.model import Model, as_model
from fisher_jax.reporting import Report, Reported, ReportTable
from fisher_jax.stream.inputs import default_block, inputs_of
from fisher_jax.stream.ledger import manifest_of, sole_writer
from fisher_jax.stream.sink import Columns, Sink, sink_at


@dataclass(frozen=True, repr=False)
class StreamResult(Reported):
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
    def to_columns(self) -> Columns:
        """All columns in memory: those of `Fit.to_columns`, and covariances (B, q, q)."""
        return self.sink.read()

    @entry_point
    def summary(self) -> Report:
        """A report to print."""
        facts = [
            ("this run", f"{self.num_fits - self.num_resumed} fits in {self.seconds:.1f} s"),
            ("an earlier run", f"{self.num_resumed} fits"),
        ]
        rows = [(label, str(k), f"{100 * k / self.num_fits:.4g} %") for label, k in self.statuses.items()]
        note = f"not fingerprinted, so that a change would not be noticed: {', '.join(self.unknown)}"
        table = ReportTable(("status", "fits", "fraction"), rows)
        return Report(f"{self.num_fits} fits in {self.path}", facts, [table], [note] if self.unknown else [])


@entry_point
def fit_stream(
    model: Model | Callable[..., Any],
    start: PyTree,
    source: Any,
    sink: str | os.PathLike[str],
    *,
    given: Any = None,
    weights: Any = None,
    start_axis: PyTree = None,
    given_axis: PyTree = None,
    weights_axis: PyTree = 0,
    optimizer: Any = None,
    tolerance: float | None = None,
    max_steps: int | None = None,
    covariances: Sequence[str] = ("observed",),
    retry: bool = True,
    float64_finish: bool = False,
    devices: Any = None,
    progress: bool = False,
    block: int | None = None,
    sink_format: str | None = None,
    overwrite: bool = False,
) -> StreamResult:
    """Fit a model to more data sets than memory holds, from disk to disk; after an interruption, call it again to go on.

    Parameters
    ----------
    model, start
        As for `fit_batch`. One start for each data set (``start_axis=0``) may come from any source.
    source : array, pytree of arrays, path, list, iterator, or what `sources.parquet` returns
        The observations of all data sets. An array, or a dict or tuple of arrays, has a leading axis over data sets; it may
        be a memory map or a Zarr array, and is read a block at a time. A path ends in .npy, .zarr or .parquet, or is a folder
        of Parquet files. A list or an iterator holds chunks: arrays or pytrees of them, of any length each. Data sets that
        differ in length come from ``sources.parquet(…, ragged=True)`` or as a numpy array of arrays, its dtype object.
    sink : str or pathlib.Path
        Where the results go: a folder ending in .zarr (a Zarr group) or in .parquet (a Parquet file for each block).
    given, weights
        As for `fit_batch`; what differs among data sets may come from any source.
    start_axis, given_axis, weights_axis : 0, None, or pytree of them
        0 if there is one for each data set, along the leading axis; `None` for what all share.
    optimizer, tolerance, max_steps, retry, float64_finish, devices
        As for `fit_batch`.
    covariances : tuple of {"observed", "expected", "empirical", "sandwich"}
        The kinds whose standard errors and covariance matrices are written; ``()`` for none.
    progress : bool
        Show a bar with the rate and the count of each status, those of an earlier run included (needs the extra `progress`).
    block : int, optional
        Data sets in a block, the unit that is read, fitted, written and marked as done. Default 65 536, or fewer so that the
        data and results of one stay below 64 MiB; some three blocks are in memory at a time.
    sink_format : {"zarr", "parquet"}, optional
        If the sink's name does not end so.
    overwrite : bool
        Discard what the sink holds, if it is the results of an earlier stream, and start anew.

    Returns
    -------
    StreamResult
        Where the results are, and how many ended how.

    Raises
    ------
    ValueError, TypeError
        If the arguments do not fit together, the sink's place holds something else, or it was begun with another model, other
        settings or another source: the difference is named. If chunks of a Zarr array are missing, which Zarr would read as
        its fill value. Numerical trouble never raises: look at the column `status`.
    RuntimeError
        If another thread or process is writing to the sink.
    OSError
        If a page of a Parquet file does not match its checksum.

    Notes
    -----
    The columns are those of `Fit.to_columns`: estimates, standard errors and facts, with the codes of `Status`; then
    ``covariance (kind)``, (B, q, q). Standard errors of the first kind are named ``x standard error``, others
    ``x standard error (kind)``.

    A block is on the disk before its marker is, so a process killed at any moment leaves each block whole or unmarked; called
    again, it ends with what an undisturbed run would have written. For that, model and settings must be the same. A function
    counts as the same if its code, the values that it closes over, its defaults and what it names of its own module are; a
    source if its dtypes, shapes and first data set are. `devices` and `progress` may change. An iterator is read
    from its beginning again.

    Reading and writing happen in threads of their own beside the fits. A generator runs in the reading thread.

    Examples
    --------
    >>> import fisher_jax as fj, numpy as np, pathlib, tempfile
    >>> from jax.scipy.stats import poisson
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> np.save(folder / "counts.npy", np.random.default_rng(1).poisson(3.0, (1000, 20)))
    >>> log_density = lambda rate, y: poisson.logpmf(y, rate)
    >>> result = fj.fit_stream(log_density, 1.0, folder / "counts.npy", folder / "rates.zarr")
    >>> result.statuses, result.open()["params"].shape
    ({'converged': 1000}, (1000,))
    """
    began = time.perf_counter()
    model = as_model(model)
    flags = {"retry": retry, "float64_finish": float64_finish, "progress": progress, "overwrite": overwrite}
    for name, flag in flags.items():
        check_flag(flag, name)
    check_stopping(tolerance, max_steps)
    if optimizer is not None:
        check_optimizer(optimizer)
    devices_of(devices)
    axes = {"start": start_axis, "given": given_axis, "weights": weights_axis}
    arguments = {"source": source, "start": start, "given": given, "weights": weights}
    target = sink_at(sink, sink_format)
    with sole_writer(target.path):
        target.ledger.check_place(overwrite=overwrite)
        inputs = inputs_of(arguments, axes)
        kinds = check_kinds(covariances, model)
        size = default_block(model, inputs, len(kinds)) if block is None else check_count(block, 1, "block")
        settings: dict[str, Any] = {
            "optimizer": optimizer,
            "tolerance": tolerance,
            "max_steps": max_steps,
            "covariances": kinds,
            "retry": retry,
            "float64_finish": float64_finish,
        }
        manifest = manifest_of(model, inputs.fingerprint(), settings, size)
        finished = [] if overwrite else target.ledger.finished(manifest)
        counts = sum(finished, Counter[str]())
        num_resumed, number = counts.total(), len(finished)
        settings |= {f"{name}_axis": axis for name, axis in axes.items()} | {"devices": devices}
        with contextlib.ExitStack() as stack:
            bar = None
            if progress:
                tqdm = require("tqdm.auto", "progress").tqdm
                bar = stack.enter_context(tqdm(total=inputs.length, initial=num_resumed, unit=" fits"))
                bar.set_postfix(counts)
            reader, writer = (stack.enter_context(ThreadPoolExecutor(1)) for _ in range(2))
            is_complete = finished and target.ledger.complete
            blocks = iter(()) if is_complete else inputs.blocks(num_resumed, size)
            # While a block is fitted, the next is read and the one before is written.
            following, written = reader.submit(next, blocks, None), None
            while (read := following.result()) is not None:
                rows, part = read
                following = reader.submit(next, blocks, None)
                first_row = counts.total()
                try:
                    columns = _columns(
                        fit_batch(model, part.start, part.data, given=part.given, weights=part.weights, **settings)
                    )
                except (TypeError, ValueError) as error:
                    error.add_note(
                        f"This came up in the data sets {first_row} to {first_row + rows - 1} of the source."
                    )
                    raise
                if written is None:  # not before: arguments for which fit_batch raises must leave no trace
                    target.ledger.begin(manifest, overwrite=overwrite)
                else:
                    written.result()
                codes, numbers = np.unique(columns["status"], return_counts=True)
                statuses = Counter({Status(int(code)).label: int(k) for code, k in zip(codes, numbers, strict=True)})
                written = writer.submit(_write, target, number, first_row, size, columns, statuses)
                number, counts = number + 1, counts + statuses
                if bar is not None:
                    bar.set_postfix(counts, refresh=False)
                    bar.update(rows)
            if written is not None:
                written.result()
            if not is_complete:
                target.ledger.close()
    seconds = time.perf_counter() - began
    unknown = tuple(manifest["not fingerprinted"])
    return StreamResult(target.path, counts.total(), dict(counts), num_resumed, seconds, unknown, target)


def _columns(fits: Fit) -> Columns:
    """The columns of `Fit.to_columns` for all its kinds of covariance, and the matrices."""
    columns = fits.to_columns("")
    for kind in fits.kinds:
        covariance = fits._computed(covariance_kinds.covariance, kind)
        errors, _ = fits._errors_in_columns(kind)  # the status stands beside it, so no warning
        suffix = "" if kind == fits.kinds[0] else f" ({kind})"
        columns |= {f"{name} standard error{suffix}": errors[:, k] for k, name in enumerate(fits.names)}
        columns[f"covariance ({kind})"] = covariance
    return columns


def _write(target: Sink, number: int, start: int, size: int, columns: Columns, statuses: Counter[str]) -> None:
    target.write(number, start, size, columns)
    target.ledger.mark(number, statuses)  # after the block is on the disk
