"""Blocks read, fitted and written at the same time, each in other hands."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np

from fisher_jax.errors import require
from fisher_jax.fitting import covariance as covariances
from fisher_jax.fitting.fit import fit_batch
from fisher_jax.fitting.result import Fit
from fisher_jax.fitting.status import Status
from fisher_jax.models.model import Model
from fisher_jax.stream.inputs import Block, Inputs
from fisher_jax.stream.sink import Columns, Sink

Counts = dict[str, int]


def run_blocks(
    target: Sink, inputs: Inputs, fit: Any, size: int, done: list[Counts], make_ready: Any, *, progress: bool
) -> Counts:
    """Read, fit and write, each block while its neighbours are in the other hands; the count of each status."""
    counts: Counts = {}
    for marker in done:
        _add(counts, marker)
    start, number = sum(counts.values()), len(done)
    with _bar(inputs.length, counts, progress) as bar, ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        if done and target.ledger.complete:
            return counts
        blocks = inputs.blocks(start, size)
        coming = reader.submit(next, blocks, None)
        written = writer.submit(_nothing)
        while (found := coming.result()) is not None:
            coming = reader.submit(next, blocks, None)
            try:
                columns = fit(found[1])
            except (TypeError, ValueError) as error:
                error.add_note(f"This came up in the data sets {start} to {start + found[0] - 1} of the source.")
                raise
            written.result()
            if number == len(done):  # not before: what fit_batch refuses must leave no trace
                make_ready()
            new = _counted(columns["status"])
            written = writer.submit(_write, target, number, start, size, columns, new)
            number, start = number + 1, start + found[0]
            _add(counts, new)
            if bar is not None:
                bar.set_postfix(counts, refresh=False)
                bar.update(found[0])
        written.result()
    target.ledger.close()
    return counts


def _nothing() -> None:
    pass


def _write(target: Sink, number: int, start: int, size: int, columns: Columns, counts: Counts) -> None:
    target.write(number, start, size, columns)
    target.ledger.mark(number, counts)


def fitted_columns(model: Model, axes: dict[str, Any], block: Block, **settings: Any) -> Columns:
    """The fits of a block, as columns."""
    fits = fit_batch(
        model,
        block.params,
        block.data,
        given=block.given,
        weights=block.weights,
        params_axis=axes["params"],
        given_axis=axes["given"],
        weights_axis=axes["weights"],
        **settings,
    )
    return columns_of(fits)


def columns_of(fits: Fit) -> Columns:
    """The columns of `Fit.to_columns` for all its kinds of covariance, and the matrices."""
    columns = fits.to_columns("")
    for kind in fits.kinds:
        covariance = fits._computed(covariances.covariance, kind)  # the status stands beside it, so no warning
        errors = covariances.root_diagonal(covariance)
        which = "" if kind == fits.kinds[0] else f" ({kind})"
        columns |= {f"{name} standard error{which}": errors[:, k] for k, name in enumerate(fits.names)}
        columns[f"covariance ({kind})"] = covariance
    return columns


def _counted(status: np.ndarray) -> Counts:
    codes, numbers = np.unique(status, return_counts=True)
    return {Status(int(code)).label: int(number) for code, number in zip(codes, numbers, strict=True)}


def _add(counts: Counts, more: Counts) -> None:
    for label, number in more.items():
        counts[label] = counts.get(label, 0) + number


def _bar(total: int | None, counts: Counts, shown: bool) -> Any:
    """A bar that begins with what an earlier run left, or nothing."""
    if not shown:
        return nullcontext()
    bar = require("tqdm.auto", "progress").tqdm(total=total, initial=sum(counts.values()), unit=" fits")
    bar.set_postfix(counts)
    return bar
