"""Where the results go: a Zarr group with an array for each column, or a folder of Parquet files, one for each block."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from fisher_jax.errors import require, shown
from fisher_jax.sources import Parquet
from fisher_jax.stream.ledger import PARTIAL, Ledger, reach_disk

Columns = dict[str, np.ndarray]


class ZarrSink:
    """A folder that `zarr.open_group` opens: an array (B, …) for each column, a chunk of it for each block."""

    def __init__(self, path: Path) -> None:
        self.zarr = require("zarr", "stream")
        self.path = path
        # Zarr warns of unknown files in the folder of a group, but never looks into that of an array.
        self.ledger = Ledger(path, path / "status" / "_fisher_jax")

    def write(self, number: int, start: int, size: int, columns: Columns) -> None:
        """Write the rows from `start` on, a block of at most `size`, and wait until they are on the disk."""
        group = self.zarr.open_group(str(self.path), mode="a")
        written = [self.path, self.path / "zarr.json"]
        for name, column in columns.items():
            if name not in group:
                empty, chunks = (0, *column.shape[1:]), (size, *column.shape[1:])
                missing = np.nan if column.dtype.kind == "f" else -1  # no row may look like a fit before it is one
                group.create_array(name, shape=empty, chunks=chunks, dtype=column.dtype, fill_value=missing)
            array = group[name]
            array.resize((start + len(column), *column.shape[1:]))
            array[start : start + len(column)] = column
            folder = self.path / name
            chunk = folder / "c" / str(number)
            written += [folder, folder / "zarr.json", folder / "c", chunk, *chunk.rglob("*")]
        reach_disk(path for path in written if path.exists())  # a chunk of nothing but NaN is not stored

    def open(self) -> Any:
        return self.zarr.open_group(str(self.path), mode="r")

    def read(self) -> Columns:
        return {name: np.asarray(array[:]) for name, array in self.open().arrays()}


class ParquetSink:
    """A folder of Parquet files, one for each block, which other tools read as one data set."""

    def __init__(self, path: Path) -> None:
        self.arrow, self.parquet = (require(name, "stream") for name in ("pyarrow", "pyarrow.parquet"))
        self.path = path
        self.ledger = Ledger(path, path / "_fisher_jax")  # what begins with an underscore is not read as data

    def write(self, number: int, start: int, size: int, columns: Columns) -> None:
        """As for `ZarrSink`."""
        arrays = {}
        for name, column in columns.items():
            arrays[name] = self.arrow.array(np.ascontiguousarray(column).reshape(-1))
            for length in reversed(column.shape[1:]):  # matrices are lists of lists of one length
                arrays[name] = self.arrow.FixedSizeListArray.from_arrays(arrays[name], length)
        whole = self.path / f"part-{number:08d}.parquet"
        partial = self.path / f".{whole.name}{PARTIAL}"
        self.parquet.write_table(self.arrow.table(arrays), partial, write_page_checksum=True)
        reach_disk([partial])
        partial.replace(whole)
        reach_disk([self.path])

    def open(self) -> Any:
        return require("pyarrow.dataset", "stream").dataset(str(self.path), format="parquet")

    def read(self) -> Columns:
        source = Parquet(self.path, {name: name for name in self.open().schema.names}, ragged=False)
        return next(source.blocks(0, source.length or 0))


Sink = ZarrSink | ParquetSink


def sink_at(path: Any, form: Any) -> Sink:
    """The sink at a path, in the named format or else in that of the path's ending."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            f"sink must be a path that ends in .zarr or .parquet, got {type(path).__name__}. For results in memory "
            "use fit_batch."
        )
    path = Path(path)
    sinks: dict[str, Any] = {"zarr": ZarrSink, "parquet": ParquetSink}
    ending = path.suffix.removeprefix(".")
    if form is None and ending not in sinks:
        raise ValueError(
            f"the sink {str(path)!r} does not end in .zarr or .parquet. Name it so, or give sink_format='zarr' "
            "or 'parquet'."
        )
    form = ending if form is None else form
    if not isinstance(form, str) or form not in sinks:
        raise ValueError(f"sink_format={shown(form)} must be 'zarr' or 'parquet'.")
    return sinks[form](path)
