"""Data sets in Parquet files: rows, one for each data set."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from fisher_jax.errors import require
from fisher_jax.stream.source import Arrays, as_ragged, rechunked

ROWS = 2**14  # read at once, whatever the row groups
BUFFER = 2**20  # bytes read at once of a column; without it, a row group's whole column would be


def parquet(path: Any, columns: Any = None, *, ragged: bool = False) -> "Parquet":
    """A source for `fit_stream`: a Parquet file, or a folder of them in order of their names; one row is one data set.

    Parameters
    ----------
    path : str or pathlib.Path
        The file or folder.
    columns : str, list of str, or a dict or tuple of them
        Which columns make the pytree that the model sees. A name stands for that column: lists of one length n give (B, n),
        lists of lists (B, n, …), numbers (B,). A list of names stands for number columns side by side, (B, n). A dict or
        tuple gives a dict or tuple of such. By default the only column, or a dict of all.
    ragged : bool
        The lists differ in length: each data set has as many observations as its list is long.

    Returns
    -------
    Parquet
        Give it as `source`, `given`, `weights` or `params`.

    Notes
    -----
    Pages that carry a checksum are checked against it as they are read, and damage raises an `OSError`; damage to others may
    go unnoticed. pyarrow writes checksums with ``write_page_checksum=True``, and so does `fit_stream`.

    Examples
    --------
    >>> import fisher_jax as fj, numpy as np, pathlib, tempfile
    >>> import pyarrow as pa, pyarrow.parquet as pq
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> pq.write_table(pa.table({"station": [7, 8], "1990": [3.0, 1.0], "1991": [4.0, 2.0]}), folder / "rain.parquet")
    >>> source = fj.stream.parquet(folder / "rain.parquet", ["1990", "1991"])
    >>> print(next(source.blocks(0, 10)))
    [[3. 4.]
     [1. 2.]]
    """
    return Parquet(path, columns, ragged=ragged)


class Parquet:
    """The source that `parquet` makes: rows are read group by group, and only the columns that are used.

    Examples
    --------
    >>> import fisher_jax as fj
    >>> source = fj.stream.parquet("catalogue.parquet", "flux")  # doctest: +SKIP
    """

    def __init__(self, path: Any, columns: Any, *, ragged: bool) -> None:
        path = Path(path)
        self.ragged = ragged
        module = require("pyarrow.parquet", "stream")
        self._paths = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        if not self._paths:
            raise ValueError(f"the folder {str(path)!r} holds no file named *.parquet.")
        self._files = [
            module.ParquetFile(each, buffer_size=BUFFER, pre_buffer=False, page_checksum_verification=True)
            for each in self._paths
        ]
        self.path = path
        self.columns = self._checked(columns)
        self.length: int | None = sum(file.metadata.num_rows for file in self._files)

    def first(self) -> PyTree:
        return Arrays(next(self._chunks(0, 1)), str(self.path)).first()

    def blocks(self, start: int, size: int) -> Iterator[PyTree]:
        skip, begun = self._whole_groups(start)
        chunks = self._chunks(begun, min(ROWS, size))
        return rechunked((Arrays(chunk, str(self.path)) for chunk in chunks), start - skip, size, str(self.path))

    def _checked(self, columns: Any) -> Any:
        known = self._files[0].schema_arrow.names
        if columns is None:
            columns = known[0] if len(known) == 1 else {name: name for name in known}
        for name in jax.tree.leaves(columns):
            if name not in known:
                raise ValueError(f"{str(self.path)!r} has no column {name!r}; it has {', '.join(map(repr, known))}.")
        return columns

    def _whole_groups(self, start: int) -> tuple[int, tuple[int, int]]:
        """How many rows lie in the row groups that can be skipped altogether, and which group is the first to be read."""
        rows = 0
        for k, file in enumerate(self._files):
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                if rows + count > start:
                    return rows, (k, group)
                rows += count
        return rows, (len(self._files), 0)

    def _chunks(self, begun: int | tuple[int, int], rows: int) -> Iterator[PyTree]:
        first_file, first_group = begun if isinstance(begun, tuple) else (begun, 0)
        names = sorted(set(jax.tree.leaves(self.columns)))
        for k, file in enumerate(self._files[first_file:]):
            groups = list(range(first_group if k == 0 else 0, file.num_row_groups))
            batches = file.iter_batches(batch_size=rows, row_groups=groups, columns=names, use_threads=False)
            try:
                yield from map(self._tree, batches)
            except OSError as error:
                raise OSError(f"{self._paths[first_file + k]} is damaged: {error}. Restore it.") from error

    def _tree(self, batch: Any) -> PyTree:
        def read(part: Any) -> np.ndarray:
            if isinstance(part, str):
                return _array(batch.column(part), part, ragged=self.ragged)
            return np.stack([_array(batch.column(name), name) for name in part], axis=1)

        return jax.tree.map(read, self.columns, is_leaf=lambda part: isinstance(part, list))


def _array(column: Any, name: str, *, ragged: bool = False) -> np.ndarray:
    """A column of numbers (B,), or of lists of one length (B, n); where they are `ragged`, an array (B,) of arrays."""
    if column.null_count:
        raise ValueError(
            f"column {name!r} has {column.null_count} missing values in one stretch of rows. Fill them in, and give "
            "them weight zero."
        )
    if not hasattr(column, "flatten") or not hasattr(column.type, "value_type"):
        return _numbers(column, name)
    inside = _array(column.flatten(), name)
    lengths = getattr(column.type, "list_size", None)
    if lengths is not None:
        return inside.reshape(len(column), lengths, *inside.shape[1:])
    found = column.value_lengths().to_numpy(zero_copy_only=False)
    if ragged:
        return as_ragged(np.split(inside, np.cumsum(found)[:-1]))
    if len(found) and found.min() < found.max():
        raise ValueError(
            f"the lists in column {name!r} differ in length ({found.min()} to {found.max()}). Say "
            "stream.parquet(…, ragged=True) if these are data sets of different lengths."
        )
    return inside.reshape(len(column), int(found[0]) if len(found) else 0, *inside.shape[1:])


def _numbers(column: Any, name: str) -> np.ndarray:
    array = column.to_numpy(zero_copy_only=False)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"column {name!r} holds {column.type}, where numbers were expected.")
    return array
