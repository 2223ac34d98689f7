"""Fits from disk to disk: blocks are read, fitted and written at the same time, each in a thread of its own."""

import contextlib
import functools
import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import PyTree

from fisher_jax.errors import check_count, check_flag, entry_point, require, shown
from fisher_jax.fitting import covariance as covariance_kinds
from fisher_jax.fitting.fit import check_kinds, check_optimizer, check_stopping, fit_batch
from fisher_jax.fitting.result import Fit
from fisher_jax.fitting.status import Status
from fisher_jax.fitting.workers import devices_of
from fisher_jax.models.model import Model, as_model
from fisher_jax.optimizers.newton import Newton
from fisher_jax.reporting import Report, Reported, ReportTable
from fisher_jax.stream.inputs import default_block, inputs_of
from fisher_jax.stream.labelled import Grid, by_cell, dataset_of
from fisher_jax.stream.ledger import check_file_system, manifest_of, part_of, sole_writer, writer_of
from fisher_jax.stream.sink import Columns, Sink, ZarrSink, sink_at

if TYPE_CHECKING:
    import optax
    import xarray as xr


NO_GRID: dict[str, Any] = {
    "cells": {},
    "coordinates": {},
    "places": [],
    "units": None,
    "attributes": {},
}  # in a manifest


@dataclass(frozen=True, repr=False)
class StreamResult(Reported):
    """Fits that have been written to disk.

    Attributes
    ----------
    path : pathlib.Path
        Where they are.
    num_fits : int
        How many; of a part, those in it.
    statuses : dict of str to int
        The count of each status that occurred in them.
    num_resumed : int
        How many of them an earlier run had left.
    seconds : float
        What this run took.
    unknown : tuple of str
        Parts of the model or settings that could not be fingerprinted, so that a change in them would not have been noticed.
    part : tuple of int, or None
        Which part this was, and of how many.
    num_in_sink : int
        How many fits of all parts were in the sink when this call ended.
    unfinished : tuple of int
        The parts that had something left to do then; empty where all fits are there.

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
    part: tuple[int, int] | None
    num_in_sink: int
    unfinished: tuple[int, ...]
    sink: Sink = field(repr=False)

    @entry_point
    def open(self) -> Any:
        """The results as a Zarr group, or as a pyarrow data set, of which nothing is yet read.

        Raises a `ValueError` while parts are unfinished.
        """
        self._check_finished()
        return self.sink.open()

    @entry_point
    def to_columns(self) -> Columns:
        """All columns in memory: those of `Fit.to_columns`, and covariances (B, q, q).

        Raises a `ValueError` while parts are unfinished.
        """
        self._check_finished()
        return self.sink.read()

    @entry_point
    def to_xarray(self) -> "xr.Dataset":
        """The results in a Zarr sink as a Dataset over the cells of a labelled source (needs the extra `xarray`).

        It is that of `fisher_jax.xarray.fit`, with the same variables, coordinates and units. Only coordinates are read; variables
        are Dask's arrays. Of other sources the dimension is `data_set`. Raises a `ValueError` while parts are unfinished.
        """
        self._check_finished()
        manifest = self.sink.ledger.manifest
        if manifest is None or not isinstance(self.sink, ZarrSink):
            raise ValueError(
                f"{self.path} is no Zarr sink. Read it by open or to_columns, or give a sink that ends in .zarr."
            )
        return dataset_of(self.path, manifest)

    @entry_point
    def summary(self) -> Report:
        """A report to print."""
        facts = [
            ("this run", f"{self.num_fits - self.num_resumed} fits in {self.seconds:.1f} s"),
            ("an earlier run", f"{self.num_resumed} fits"),
        ]
        of = ""
        if self.part is not None:
            k, parts = self.part
            of = f" of part {k} of {parts}"
            facts.append(("all parts", f"{self.num_in_sink} fits"))
            facts.append(("unfinished parts", _listed(self.unfinished) if self.unfinished else "none"))
        rows = [(label, str(k), f"{100 * k / self.num_fits:.4g} %") for label, k in self.statuses.items()]
        note = f"not fingerprinted, so that a change would not be noticed: {', '.join(self.unknown)}"
        table = ReportTable(("status", "fits", "fraction"), rows)
        return Report(f"{self.num_fits} fits{of} in {self.path}", facts, [table], [note] if self.unknown else [])

    def _check_finished(self) -> None:
        # Other parts may have gone on since.
        manifest = self.sink.ledger.manifest
        unfinished, fits = self.sink.ledger.unfinished(manifest) if manifest else (self.unfinished, 0)
        if unfinished:
            raise ValueError(
                f"{self.path} holds {fits} fits, and these parts are unfinished: {_listed(unfinished)}. Wait for them, or do them: "
                f"fit_stream(…, part=(k, {self.part[1] if self.part else 1})) for each, or fit_stream(…) without part for all."
            )


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
    optimizer: "optax.GradientTransformation | Newton | None" = None,
    tolerance: float | None = None,
    max_steps: int | None = None,
    strength: float | None = None,
    covariances: Sequence[str] = ("observed",),
    retry: bool = True,
    float64_finish: bool = False,
    devices: int | Sequence[jax.Device] | None = None,
    progress: bool = False,
    block: int | None = None,
    sink_format: str | None = None,
    overwrite: bool = False,
    part: tuple[int, int] | None = None,
    dim: Hashable | Sequence[Hashable] | None = None,
    entry_dims: Hashable | Sequence[Hashable] = (),
) -> StreamResult:
    """Fit a model to more data sets than memory holds, from disk to disk; after an interruption, call it again to go on.

    Several processes, on one machine or on many with a common file system, each do a part of it: `part`.

    Parameters
    ----------
    model, start
        As for `fit_batch`. One start for each data set (``start_axis=0``) may come from any source.
    source : array, pytree of arrays, path, list, iterator, or what `sources.parquet` returns
        The observations of all data sets. An array, or a dict or tuple of arrays, has a leading axis over data sets; it may
        be a memory map or a Zarr array, and is read a block at a time. A path ends in .npy, .zarr or .parquet, or is a folder
        of Parquet files; a URL, as "s3://bucket/y.zarr", of .zarr or Parquet is read through fsspec. A list or an iterator holds
        chunks: arrays or pytrees of them, of any length each. Data sets that
        differ in length come from ``sources.parquet(…, ragged=True)`` or as a numpy array of arrays, its dtype object.
    sink : str or pathlib.Path
        Where the results go: a folder ending in .zarr (a Zarr group) or in .parquet (a Parquet file for each block).
    given, weights
        As for `fit_batch`; what differs among data sets may come from any source.
    start_axis, given_axis, weights_axis : 0, None, or pytree of them
        0 if there is one for each data set, along the leading axis; `None` for what all share.
    optimizer, tolerance, max_steps, retry, float64_finish, devices
        As for `fit_batch`.
    strength : float, optional
        Of the model's prior, the same for all data sets.
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
        Discard what the sink holds, if it is the results of an earlier stream, and start anew. Not with `part`, where a process
        that starts late would discard what others have written.
    part : tuple of int, optional
        (k, K): do part k of K, counted from 0, a contiguous share of the blocks, as in ``part=(task_id, num_tasks)``. All K calls
        are alike but for k, run in any order or at the same time, and write to one sink. The lengths of all sources must be
        known. A part that was lost is done by calling it again, and what all lost parts left by a call without `part`.
    dim : str, or sequence of them, optional
        The observations lie along this dimension of labelled arrays, or these (needs the extra `xarray`). `source` is then a
        DataArray, a Dataset (a dictionary of its variables), a Zarr array or group with named dimensions, or the path of one; each
        cell of its other dimensions, in C order, is a data set. Start, covariates, weights and missing values are as for
        `fisher_jax.xarray.fit`, and so are the estimates, to the last bit; `StreamResult.to_xarray` returns its Dataset. The axes
        of the arguments follow from the names. Cells are read a block at a time, so the arrays on disk should be chunked along the
        cells, not along `dim`. Missing chunks are noticed in Zarr arrays, groups and paths, but not in what xarray has opened.
    entry_dims : str, or sequence of them
        With `dim`: dimensions of the entries of one observation or covariate, as for `fisher_jax.xarray.fit`.

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
        If another thread or process is writing to the sink, or to the same part of it; its process and machine are named.
    OSError
        If a page of a Parquet file does not match its checksum, or the file system of the sink is none that this works on.

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

    The last part to finish completes the sink. Until then `StreamResult.unfinished` names the parts that are not done, `open`
    and `to_columns` raise, and in a Zarr sink rows that are not yet fitted have the status −1. With `part` the default of
    `block` is small enough for each part to have some four blocks at least. Results do not depend on the number of parts.

    The sink's file system must rename files and folders as a whole, and keep locks (``flock``) among all machines that write:
    local disks do, and so do NFS, Lustre (mounted with ``flock``, not ``localflock``), GPFS and CephFS; object stores do
    not, mounted as a folder or not. Each call tries it out beside the sink, as far as one machine can, and raises an
    `OSError` if it fails. Without `part` a file system that keeps no locks is a warning.

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
    part = _check_part(part)
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
    trees = [value for value in arguments.values() if not isinstance(value, Iterator)]
    if dim is None and any(type(leaf).__module__.startswith("xarray") for leaf in jax.tree.leaves(trees)):
        raise TypeError(
            "an argument is an array of xarray, whose names need dim: the dimension that observations lie along."
        )
    if dim is None and entry_dims != ():
        raise ValueError(f"entry_dims={shown(entry_dims)} names dimensions of labelled arrays, which need dim as well.")
    if overwrite and part is not None:
        raise ValueError(
            f"overwrite=True with part={part}: a part that starts late would discard what others have written. Remove "
            f"{target.path} before the first part starts, and leave overwrite out."
        )
    ledger, writer_name = target.ledger, writer_of(part)
    with sole_writer(target.path, part):
        check_file_system(target.path, writer_name)
        ledger.check_place(overwrite=overwrite)
        kinds = check_kinds(covariances, model)
        grid: Grid | None = None
        if dim is not None:
            arguments, axes, grid = by_cell(model, arguments, dim, entry_dims, kinds)
            grid = grid.encoded(as_table=not isinstance(target, ZarrSink))
        inputs = inputs_of(arguments, axes)
        if part is not None and inputs.iterators:
            raise ValueError(
                f"the length of {inputs.iterators[0]} is unknown, so that it has no parts: it is an iterator. Give an array, a "
                "path or a list of chunks, or leave part out."
            )
        begun = None if overwrite else ledger.manifest
        # A call without `part` does what is left of a sink that was begun in parts.
        parts = part[1] if part is not None else begun["settings"].get("parts", 1) if begun else 1
        if block is not None:
            size = check_count(block, 1, "block")
        else:
            num_parameters = grid.num_parameters if grid is not None else inputs.num_parameters(model)
            size = default_block(inputs, num_parameters, len(kinds), parts)
        settings: dict[str, Any] = {
            "optimizer": optimizer,
            "tolerance": tolerance,
            "max_steps": max_steps,
            "strength": strength,
            "covariances": kinds,
            "retry": retry,
            "float64_finish": float64_finish,
        }
        length = inputs.length
        table = inputs.fingerprint() | (grid.fingerprint() if grid is not None else {})
        manifest = manifest_of(model, table, settings, size, parts, length)
        manifest |= grid.described() if grid is not None else NO_GRID
        if begun is not None:
            ledger.check_settings(manifest)
        marked = set[int]() if overwrite else ledger.marked()
        share: Iterable[int]
        if length is None or inputs.iterators:  # read in order, once, to their ends
            finished = list(itertools.takewhile(marked.__contains__, itertools.count()))
            share = () if finished and ledger.complete else itertools.count(len(finished))
        else:
            mine = part_of(*part, length, size) if part is not None else part_of(0, 1, length, size)
            finished = [number for number in mine if number in marked]
            share = [number for number in mine if number not in marked]
        ledger.remove_partial(mine if part is not None else None, writer_name)
        counts = ledger.statuses(finished)
        num_resumed = counts.total()
        # No bit may depend on what the process has fitted before: whoever takes up a stream writes what another would have written.
        settings |= {"devices": devices, "engine": "compiled"}
        axes_of_fits = {f"{name}_axis": axis for name, axis in axes.items()}
        with contextlib.ExitStack() as stack:
            bar = None
            if progress:
                tqdm = require("tqdm.auto", "progress").tqdm
                total = length if part is None or length is None else min(mine.stop * size, length) - mine.start * size
                bar = stack.enter_context(tqdm(total=total, initial=num_resumed, unit=" fits"))
                bar.set_postfix(counts)
            reader, writer = (stack.enter_context(ThreadPoolExecutor(1)) for _ in range(2))
            blocks = inputs.runs(share, size)
            # While a block is fitted, the next is read and the one before is written.
            following, written = reader.submit(next, blocks, None), None
            while (read := following.result()) is not None:
                number, rows, arrays = read
                following = reader.submit(next, blocks, None)
                first_row = number * size
                try:
                    if grid is None:
                        fits = fit_batch(model, **arrays._asdict(), **settings, **axes_of_fits)
                        columns = _columns(fits)
                    else:  # what is missing is found here, and with it the axes
                        whole, of_cells = grid.arguments.of_cells(jax.tree.leaves(tuple(arrays)), at_least_one=True)
                        fits = fit_batch(model, **of_cells, **settings)
                        columns = grid.columns(first_row, whole, _columns(fits))
                except (TypeError, ValueError) as error:
                    error.add_note(
                        f"This came up in the data sets {first_row} to {first_row + rows - 1} of the source."
                    )
                    raise
                if written is None:  # not before: arguments for which fit_batch raises must leave no trace
                    lay_out = functools.partial(
                        target.lay_out,
                        columns=columns,
                        names=fits.names,
                        coordinates=grid.coordinate_attributes() if grid is not None else {},
                        length=length,
                        size=size,
                    )
                    manifest["parameters"] = list(fits.names)
                    ledger.begin(manifest, lay_out, writer_name, overwrite=overwrite)
                else:
                    written.result()
                codes, numbers = np.unique(columns["status"], return_counts=True)
                statuses = Counter({Status(int(code)).label: int(k) for code, k in zip(codes, numbers, strict=True)})
                written = writer.submit(_write, target, number, first_row, size, columns, statuses)
                counts = counts + statuses
                if bar is not None:
                    bar.set_postfix(counts, refresh=False)
                    bar.update(rows)
            if written is not None:
                written.result()
        unfinished, num_in_sink = ledger.unfinished(manifest) if part is not None else ((), counts.total())
        if not unfinished and not ledger.complete:
            target.close()
            ledger.close(writer_name)
    seconds = time.perf_counter() - began
    unknown = tuple(manifest["not fingerprinted"])
    result = (target.path, counts.total(), dict(counts), num_resumed, seconds, unknown)
    return StreamResult(*result, part, num_in_sink, unfinished, target)


def _check_part(part: Any) -> tuple[int, int] | None:
    if part is None:
        return None
    if not isinstance(part, tuple | list) or len(part) != 2:
        raise TypeError(
            f"part={shown(part)} must be two whole numbers (k, K): which part, counted from 0, of how many."
        )
    k, parts = check_count(part[0], 0, "k of part=(k, K)"), check_count(part[1], 1, "K of part=(k, K)")
    if k >= parts:
        raise ValueError(
            f"part=({k}, {parts}): there are the parts 0 to {parts - 1}. Count them from 0: if task numbers begin with 1, "
            "give (task - 1, number of tasks)."
        )
    return k, parts


def _listed(parts: tuple[int, ...]) -> str:
    more = f" and {len(parts) - 20} more" if len(parts) > 20 else ""
    return f"{', '.join(map(str, parts[:20]))}{more} ({len(parts)} in all)" if more else ", ".join(map(str, parts))


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
