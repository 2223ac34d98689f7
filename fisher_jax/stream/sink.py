"""Where the results go: a Zarr group with an array for each column, or a folder of Parquet files, one for each block."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fisher_jax.errors import require, shown
from fisher_jax.fitting.summary import ATTEMPTS
from fisher_jax.sources import URL, Parquet
from fisher_jax.stream.ledger import PARTIAL, Ledger, reach_disk, write_durably
from fisher_jax.xarray import FACTS_BY_CF, STATUS_LABELS, flags

Columns = dict[str, np.ndarray]

NOT_FITTED = -1  # the status of a row that is not yet written
NOT_YET = {NOT_FITTED: "not fitted yet"}
CODES = {"status": NOT_YET | STATUS_LABELS, "attempt": NOT_YET | dict(enumerate(ATTEMPTS))}


class ZarrSink:
    """A folder that `zarr.open_group` and `xarray.open_zarr` open: an array (B, …) for each column, a chunk for each block."""

    def __init__(self, path: Path) -> None:
        self.zarr = require("zarr", "stream")
        self.path = path
        # Zarr warns of unknown files in the folder of a group, but never looks into that of an array.
        self.ledger = Ledger(path, path / "status" / "_fisher_jax")

    def lay_out(
        self,
        folder: Path,
        columns: Columns,
        names: Sequence[str],
        coordinates: Mapping[str, dict[str, Any]],
        length: int | None,
        size: int,
    ) -> None:
        """Make the arrays, of their full length where it is known, with the names of their axes and the coordinates.

        `names` are those of the parameters; of the columns `coordinates` (with their attributes) lie along the data sets.
        """
        dims: list[str] = []
        for dim in ("data_set", "parameter", "parameter_"):
            while dim in columns or dim in dims:  # a parameter has the name of an axis
                dim += "_"
            dims.append(dim)
        group = self.zarr.open_group(
            str(folder), mode="w", zarr_format=3, attributes={"coordinates": " ".join([*coordinates, *dims[1:]])}
        )
        for name, column in columns.items():
            shape, chunks = (length or 0, *column.shape[1:]), (size, *column.shape[1:])
            kind = column.dtype.kind
            # No row may look like a fit before it is one.
            missing: Any = np.nan if kind == "f" else "" if kind in "UTO" else False if kind == "b" else NOT_FITTED
            attributes: dict[str, Any] = FACTS_BY_CF.get(name, {"long_name": name})
            if name in CODES:
                codes = flags(CODES[name]).items()
                attributes = attributes | {key: x if isinstance(x, str) else x.tolist() for key, x in codes}
            group.create_array(
                name,
                shape=shape,
                chunks=chunks,
                dtype=str if kind in "UTO" else column.dtype,
                fill_value=missing,
                dimension_names=dims[: len(shape)],
                attributes=coordinates.get(name, attributes),
            )
        for dim in dims[1:]:
            along = group.create_array(
                dim,
                shape=(len(names),),
                chunks=(len(names),),
                dtype=str,
                fill_value="",
                dimension_names=[dim],
                attributes={"long_name": "name of the parameter"},
            )
            along[:] = np.array(names, dtype=object)
        if length is not None:
            self._consolidate(folder)

    def write(self, number: int, start: int, size: int, columns: Columns) -> None:
        """Write the rows from `start` on, a block of at most `size`, and wait until they are on the disk."""
        group = self.zarr.open_group(str(self.path), mode="r+", use_consolidated=False)
        written = []
        for name, column in columns.items():
            array = group[name]
            if array.shape[0] < start + len(column):
                array.resize((start + len(column), *column.shape[1:]))
            array[start : start + len(column)] = column
            folder = self.path / name
            chunk = folder / "c" / str(number)
            written += [folder, folder / "zarr.json", folder / "c", chunk, *chunk.rglob("*")]
        reach_disk(path for path in written if path.exists())  # a chunk of nothing but NaN is not stored

    def close(self) -> None:
        """Say once more, where readers look first, what the arrays are, now that nothing changes in them."""
        if "consolidated_metadata" not in json.loads((self.path / "zarr.json").read_text(encoding="utf-8")):
            self._consolidate(self.path)

    def open(self) -> Any:
        return self.zarr.open_group(str(self.path), mode="r")

    def read(self) -> Columns:
        arrays = dict(self.open().arrays())
        along = arrays["status"].metadata.dimension_names[0]
        leave_out = (self.ledger.manifest or {})["coordinates"]
        return {
            name: np.asarray(array[:])
            for name, array in arrays.items()
            if array.metadata.dimension_names[0] == along and name not in leave_out
        }

    def _consolidate(self, folder: Path) -> None:
        # Zarr's own function warns that other readers may not know of it; xarray warns where it is missing.
        group = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))
        arrays = {file.parent.name: json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*/zarr.json")}
        group["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": arrays}
        write_durably(folder / "zarr.json", group)


class ParquetSink:
    """A folder of Parquet files, one for each block, which other tools read as one data set."""

    def __init__(self, path: Path) -> None:
        self.arrow, self.parquet = (require(name, "stream") for name in ("pyarrow", "pyarrow.parquet"))
        self.path = path
        self.ledger = Ledger(path, path / "_fisher_jax")  # what begins with an underscore is not read as data

    def lay_out(self, folder: Path, **_: Any) -> None:
        """Nothing: each file describes what it holds."""

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

    def close(self) -> None:
        """Nothing: each file is complete."""

    def open(self) -> Any:
        return require("pyarrow.dataset", "stream").dataset(str(self.path), format="parquet")

    def read(self) -> Columns:
        leave_out = (self.ledger.manifest or {})["coordinates"]
        columns = {name: name for name in self.open().schema.names if name not in leave_out}
        source = Parquet(self.path, columns, ragged=False)
        return next(source.blocks(0, source.length or 0))


Sink = ZarrSink | ParquetSink


def sink_at(path: Any, form: Any) -> Sink:
    """The sink at a path, in the named format or else in that of the path's ending."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            f"sink must be a path that ends in .zarr or .parquet, got {type(path).__name__}. For results in memory "
            "use fit_batch."
        )
    if URL.match(os.fspath(path)):
        raise ValueError(
            f"the sink {os.fspath(path)!r} is on an object store, where files cannot be renamed, as fit_stream must. Give a "
            "path on a disk or a shared file system, and copy the complete sink, as in "
            f"fsspec.filesystem({os.fspath(path).split(':')[0]!r}).put(sink, url, recursive=True)."
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
