"""Fits from disk to disk: `fit_stream`."""

import time
from functools import partial
from typing import Any

from jaxtyping import PyTree

from fisher_jax.errors import check_count, check_flag, entry_point
from fisher_jax.fitting.fit import check_kinds, check_optimizer, check_stopping
from fisher_jax.fitting.workers import devices_of
from fisher_jax.models.model import as_model
from fisher_jax.stream.inputs import default_block, inputs_of
from fisher_jax.stream.ledger import sole_writer
from fisher_jax.stream.pipeline import fitted_columns, run_blocks
from fisher_jax.stream.result import StreamResult
from fisher_jax.stream.resume import begin, check_place, finished_blocks, manifest_of
from fisher_jax.stream.sink import sink_at


@entry_point
def fit_stream(
    model: Any,
    params: PyTree,
    source: Any,
    sink: Any,
    *,
    given: Any = None,
    weights: Any = None,
    params_axis: Any = None,
    given_axis: Any = None,
    weights_axis: Any = 0,
    optimizer: Any = None,
    tolerance: Any = None,
    max_steps: Any = None,
    covariances: Any = ("observed",),
    retry: bool = True,
    float64_finish: bool = False,
    devices: Any = None,
    progress: bool = False,
    block: Any = None,
    sink_format: Any = None,
    overwrite: bool = False,
) -> StreamResult:
    """Fit a model to more data sets than memory holds, from disk to disk; after an interruption, call it again to go on.

    Parameters
    ----------
    model, params
        As for `fit_batch`. One start for each data set (``params_axis=0``) may come from any source.
    source : array, pytree of arrays, path, list, iterator, or what `stream.parquet` returns
        The observations of all data sets. An array, or a dict or tuple of arrays, has a leading axis over data sets; it may
        be a memory map or a Zarr array, and is read a block at a time. A path ends in .npy, .zarr or .parquet, or is a folder
        of Parquet files. A list or an iterator holds chunks: arrays or pytrees of them, of any length each. Data sets that
        differ in length come from ``stream.parquet(…, ragged=True)`` or as a numpy array of arrays, its dtype object.
    sink : str or pathlib.Path
        Where the results go: a folder ending in .zarr (a Zarr group) or in .parquet (a Parquet file for each block).
    given, weights
        As for `fit_batch`; what differs among data sets may come from any source.
    params_axis, given_axis, weights_axis : 0, None, or pytree of them
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
        If the arguments do not fit together, the sink is something else's, or it was begun with another model, other settings
        or another source: the difference is named. If chunks of a Zarr array are missing, which Zarr would read as its fill
        value. Numerical trouble never raises: look at the column `status`.
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
    axes = {"params": params_axis, "given": given_axis, "weights": weights_axis}
    arguments = {"source": source, "params": params, "given": given, "weights": weights}
    target = sink_at(sink, sink_format)
    with sole_writer(target.path):
        check_place(target, overwrite=overwrite)
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
        manifest = manifest_of(model, inputs, settings, size)
        done = [] if overwrite else finished_blocks(target, manifest)
        fit = partial(fitted_columns, model, axes, devices=devices, **settings)
        make_ready = partial(begin, target, manifest, overwrite=overwrite)
        counts = run_blocks(target, inputs, fit, size, done, make_ready, progress=progress)
    resumed = sum(sum(marker.values()) for marker in done)
    seconds = time.perf_counter() - began
    return StreamResult(
        target.path, sum(counts.values()), counts, resumed, seconds, tuple(manifest["not fingerprinted"]), target
    )
