"""What is read in blocks: arrays on disk, chunks of any size, Parquet files.

Of `fit_stream` an entry along the leading axis is a data set, of `fit` a row of the one data set, which `RowSource` reads.
"""

import functools
import itertools
import math
import mmap
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
from jaxtyping import PyTree

from fisher_jax.errors import check_pytree, entry_point, require
from fisher_jax.input_arrays import labels_of
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import path_name

__all__ = ["Chunks", "Parquet", "chunks", "parquet"]

Block = TypeVar("Block")

URL = re.compile(r"\w[\w+.-]+:/")  # a drive of Windows has one letter
PARQUET_ROWS = 2**14  # read at once, whatever the row groups
PARQUET_BUFFER = 2**20  # bytes read at once of a column; without it, a row group's whole column would be


@runtime_checkable
class Source(Protocol):
    """B data sets that can be read in order."""

    @property
    def length(self) -> int | None:
        """B, or `None` if it is known only in the end."""

    def first(self) -> PyTree:
        """The first data set of all, without its axis."""

    def blocks(self, start: int, size: int) -> Iterator[PyTree]:
        """Blocks of `size` data sets as numpy arrays in memory, from the one numbered `start`; the last may be shorter."""


def source_of(source: Any, name: str) -> Source:
    """The source that the user's argument stands for."""
    if isinstance(source, str | Path):
        source = open_path(source, name)
    if hasattr(source, "blocks") and hasattr(source, "first"):
        return source
    if hasattr(source, "arrays") and hasattr(source, "group_keys"):  # a Zarr group
        return Arrays(_members(source), name)
    if isinstance(source, Mapping) and jax.tree_util.all_leaves([source]):  # an .npz file
        source = dict(source)
    is_tree = not jax.tree_util.all_leaves([source])
    if not isinstance(source, list) and (is_tree or hasattr(source, "dtype") or labels_of(source)):
        return Arrays(source, name)
    if isinstance(source, Iterable):
        return Chunks(source, name)
    raise TypeError(
        f"{name} is a {type(source).__name__}. Give an array, memory map or Zarr array with a leading axis over data "
        "sets, a dict or tuple of them, a path to .npy, .zarr or Parquet, sources.parquet(path, columns), or a list or "
        "iterator of chunks."
    )


def is_source(*values: Any) -> bool:
    """Whether one of the arguments of `fit` stands for rows that are read in blocks: a path, a Zarr array or group, a source."""
    return any(_is_read_in_blocks(type(value)) for value in values)  # type: ignore[arg-type]  # mypy: a class has no hash


@functools.lru_cache(maxsize=256)  # needed at each fit
def _is_read_in_blocks(kind: type) -> bool:
    # Of the class, not of the value: a table may have a column of that name.
    def has(*names: str) -> bool:
        return all(hasattr(kind, name) for name in names)

    return (
        issubclass(kind, str | Path)
        or has("nchunks_initialized")
        or has("blocks", "first")
        or has("arrays", "group_keys")
    )


def check_rows_alone(model: Model) -> None:
    """Raise for models whose rows can neither be read in blocks nor lie on several devices, since a term needs more than a row."""
    remedy = "Give the data as arrays in memory."
    if model.is_dependent:
        raise ValueError(f"the model is `dependent`: a term may need all the data before it. {remedy}")
    if model.with_modes is not None:
        raise ValueError(f"the model has latent effects, whose observations are groups of rows. {remedy}")
    if model.auxiliary is not None:
        raise ValueError(f"the model has an auxiliary measurement, which counts once. {remedy}")


def open_path(path: str | Path, name: str) -> Any:
    """What is at a path or URL, by its ending."""
    return _open_url(str(path), name) if URL.match(str(path)) else _open(Path(path), name)


def _open(path: Path, name: str) -> Any:
    if not path.exists():
        raise FileNotFoundError(f"{name} {str(path)!r} does not exist.")
    if path.suffix == ".npy":
        return np.load(path, mmap_mode="r")
    if path.suffix == ".zarr":
        return require("zarr", "stream").open(str(path), mode="r")
    if path.suffix == ".parquet" or (path.is_dir() and next(path.glob("*.parquet"), None)):
        return Parquet(path, None, ragged=False)
    raise ValueError(
        f"the format of {name} {str(path)!r} does not follow from its name, as it does of .npy, .zarr, .parquet or a folder "
        "of Parquet files. Open it and give the array."
    )


def _open_url(url: str, name: str) -> Any:
    """What an object store holds, or whatever else fsspec reads."""
    files, path = _at_url(url, name)
    if not files.exists(path):
        raise FileNotFoundError(f"{name} {url!r} does not exist.")
    if isinstance(path, str) and files.protocol in (("file", "local"), "file"):
        return _open(Path(path), name)
    if path.rstrip("/").endswith(".zarr"):
        return require("zarr", "stream").open(url, mode="r")
    if path.endswith(".parquet") or (files.isdir(path) and files.glob(f"{path}/*.parquet")):
        return Parquet(url, None, ragged=False)
    raise ValueError(
        f"the format of {name} {url!r} does not follow from its name, as it does of .zarr, .parquet or a folder of Parquet "
        "files. Copy others to a disk."
    )


def _at_url(url: str, name: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    if "://" not in url:
        raise ValueError(f"{name} {url!r} is a pathlib.Path of a URL, which has lost a slash. Give the URL as text.")
    try:
        return require("fsspec.core", "stream").url_to_fs(url)
    except ImportError as error:  # of the package for this kind of store
        raise ImportError(f"{name} {url!r} cannot be read: {error}.") from error


def _members(group: Any) -> PyTree:
    """The arrays of a Zarr group by name, those of the groups in it too."""
    return dict(group.arrays()) | {name: _members(inner) for name, inner in group.groups()}


class Arrays:
    """A pytree of arrays with a leading axis: numpy's, memory maps, Zarr's, or whatever has a shape, a dtype and slices."""

    def __init__(self, tree: PyTree, name: str) -> None:
        check_pytree(tree, name)
        leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
        self.treedef: Any = structure
        if not leaves:
            raise ValueError(f"{name} holds no array.")
        self.leaves: dict[str, Any] = {}  # as they are: nothing is read yet
        for path, leaf in leaves:
            label = f"{name} {path_name(path)}" if path else name
            if labels_of(leaf):
                raise TypeError(
                    f"{label} is a {type(leaf).__name__} of pandas, whose index a stream does not look at. Give arrays, "
                    "by .to_numpy()."
                )
            if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype") and len(leaf.shape)):
                what = "a single number" if hasattr(leaf, "shape") else f"of type {type(leaf).__name__}"
                raise TypeError(f"{label} is {what}, where an array with a leading axis over data sets was expected.")
            if hasattr(
                type(leaf), "nchunks_initialized"
            ):  # a Zarr array; of the array itself this would count its chunks
                check_chunks(leaf, label)
            self.leaves[label] = np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf
        lengths = {label: int(leaf.shape[0]) for label, leaf in self.leaves.items()}
        check_lengths(lengths)
        self.length: int = next(iter(lengths.values()))

    def first(self) -> PyTree:
        return self.treedef.unflatten([np.asanyarray(_in_memory(leaf, 0, 1)[0]) for leaf in self.leaves.values()])

    def blocks(self, start: int, size: int) -> Iterator[PyTree]:
        for at in range(start, self.length, size):
            yield self.part(at, at + size)

    def part(self, start: int, stop: int) -> PyTree:
        """Some of the data sets, in memory of their own."""
        return self.treedef.unflatten([_in_memory(leaf, start, stop) for leaf in self.leaves.values()])


def _in_memory(leaf: Any, start: int, stop: int) -> np.ndarray:
    part = leaf[start:stop]  # of a ragged one, the arrays in it are not copied; netCDF's may be masked
    part = part.copy() if isinstance(part, np.ma.MaskedArray) else np.array(part)
    if isinstance(leaf, np.memmap) and leaf.mode in ("r", "r+"):
        while isinstance(leaf, np.ndarray):
            leaf = leaf.base
        # The pages of a file that have been read count as resident memory until they are given up.
        if isinstance(leaf, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            leaf.madvise(mmap.MADV_DONTNEED)
    return part


def check_chunks(array: Any, label: str) -> None:
    """Raise where chunks of a Zarr array are missing, which Zarr itself reads as the fill value.

    A fill value that is not a number passes: the data sets that it stands in end with a status that explains it.
    """
    if array.fill_value != array.fill_value:
        return
    stored = array.shards or array.chunks
    places = [range(-(-length // size)) for length, size in zip(array.shape, stored, strict=True)]
    number = math.prod(map(len, places))
    first = ""
    if hasattr(array.store, "root"):  # on a disk, where Zarr's own count takes minutes for a hundred thousand chunks
        folder = Path(array.store.root) / array.path
        keys = map(array.metadata.encode_chunk_key, itertools.product(*places))
        missing = [key for key in keys if not (folder / key).exists()]
        first = f", the first of them {missing[0]!r}," if missing else ""
        count = len(missing)
    else:
        count = number - array.nchunks_initialized // math.prod(
            size // inner for size, inner in zip(stored, array.chunks, strict=True)
        )
    if count:
        raise ValueError(
            f"of the {number} chunks of {label}, {count}{first} are missing from {array.store}, and Zarr would read "
            f"them as its fill value {array.fill_value}. Restore them. Zarr leaves out chunks that hold only the fill "
            "value: if these are such, write the array with config={'write_empty_chunks': True}, or give an iterator of its parts, "
            "(array[k : k + 1000] for k in range(0, len(array), 1000))."
        )


@entry_point
def chunks(parts: Iterable[PyTree] | Callable[[], Iterable[PyTree]]) -> "Chunks":
    """A source made of chunks in order, each a pytree of arrays with a leading axis of any length.

    Parameters
    ----------
    parts : sequence, iterable, or callable
        The chunks: a list of them, an object that can be iterated over again, or a function without arguments that returns them
        anew each time it is called. `fit` reads them once for each pass, so that it cannot take an iterator, which is used up after
        the first; `fit_stream` can.

    Returns
    -------
    Chunks
        Give it as `data`, `given` or `weights` of `fit`, or as a source of `fit_stream`.

    Raises
    ------
    TypeError, ValueError
        If there is no chunk; or, where they are read, if a chunk differs from the first in structure, dtype or shape of a row.

    Examples
    --------
    >>> import fisher_jax as fj, numpy as np
    >>> def read():
    ...     for year in range(3):  # for example each from a file of its own
    ...         yield np.array([2.0, 4.0, 3.0]) + year
    >>> fit = fj.fit(fj.families.poisson, {"rate": 1.0}, fj.sources.chunks(read))
    >>> print(f"{fit.params['rate']:.3f} {fit.num_observations:g} {fit.engine}")
    4.000 9 source
    """
    if not callable(parts) and not isinstance(parts, Iterable):
        raise TypeError(
            f"chunks is a {type(parts).__name__}; expected a list of chunks, or a function that returns them."
        )
    return Chunks(parts, "chunks")


class Chunks:
    """The source that `chunks` makes: chunks in order, each a pytree of arrays with a leading axis of any length.

    Examples
    --------
    >>> import fisher_jax as fj, numpy as np
    >>> source = fj.sources.chunks([np.ones(3), np.zeros(2)])
    >>> print([len(block) for block in source.blocks(0, 2)])
    [2, 2, 1]
    """

    def __init__(self, parts: Iterable[PyTree] | Callable[[], Iterable[PyTree]], name: str) -> None:
        self.name, self._parts = name, parts
        self.is_iterator = isinstance(parts, Iterator)
        self.length: int | None = None
        if isinstance(parts, Sequence):
            self.length = sum(part.length for part in self._filled())
        self._rest = self._filled()
        head = next(self._rest, None)
        if head is None:
            raise ValueError(_EMPTY.format(name=name))
        self._first = head.first()
        self._rest = itertools.chain([head], self._rest)

    def _filled(self) -> Iterator[Arrays]:
        """The chunks that hold something."""
        parts = self._parts() if callable(self._parts) else self._parts
        return (part for part in (Arrays(chunk, self.name) for chunk in parts) if part.length)

    def first(self) -> PyTree:
        return self._first

    def blocks(self, start: int, size: int) -> Iterator[PyTree]:
        return rechunk(self._rest if self.is_iterator else self._filled(), start, size, self.name)

    def __reduce__(self) -> tuple[Any, ...]:
        return Chunks, (self._parts, self.name)


def rechunk(chunks: Iterable[Arrays], skip: int, size: int, name: str) -> Iterator[PyTree]:
    """Blocks of `size` from chunks of any size, without the first `skip` data sets."""
    parts: list[PyTree] = []
    missing, first = size, None
    for chunk in chunks:
        # Each chunk must be like the first in all but length.
        shapes = [(tuple(leaf.shape[1:]), np.dtype(leaf.dtype)) for leaf in chunk.leaves.values()]
        first = first or (chunk.treedef, shapes)
        if first != (chunk.treedef, shapes):
            texts = [", ".join(f"(…, {shape}) {dtype}" for shape, dtype in each) for each in (first[1], shapes)]
            raise ValueError(
                f"the chunks of {name} differ: the first holds {texts[0]}, another {texts[1]}. "
                "All must have the same structure, dtypes and shapes but for the leading axis."
            )
        at = min(skip, chunk.length)
        skip -= at
        while at < chunk.length:
            stop = min(at + missing, chunk.length)
            parts.append(chunk.part(at, stop))
            missing -= stop - at
            at = stop
            if not missing:
                yield _join(parts)
                parts, missing = [], size
    if skip:
        raise ValueError(f"{name} now ends {skip} data sets before the last that is done. Was it changed?")
    if parts:
        yield _join(parts)


def _join(parts: list[PyTree]) -> PyTree:
    def concatenate(*leaves: np.ndarray) -> np.ndarray:
        masked = any(isinstance(leaf, np.ma.MaskedArray) for leaf in leaves)
        return np.ma.concatenate(leaves) if masked else np.concatenate(leaves)

    return parts[0] if len(parts) == 1 else jax.tree.map(concatenate, *parts)


@entry_point
def parquet(path: str | Path, columns: PyTree = None, *, ragged: bool = False) -> "Parquet":
    """A source: a Parquet file, or a folder of them in order of their names; one row is an observation of `fit`, or a data set.

    Parameters
    ----------
    path : str or pathlib.Path
        The file or folder; or its URL, as "s3://bucket/rain.parquet", which is read through fsspec.
    columns : str, list of str, or a dict or tuple of them
        Which columns make the pytree that the model sees. A name stands for that column: lists of one length n give (B, n),
        lists of lists (B, n, …), numbers (B,). A list of names stands for number columns side by side, (B, n). A dict or
        tuple gives a dict or tuple of such. By default the only column, or a dict of all.
    ragged : bool
        The lists differ in length: each data set has as many observations as its list is long.

    Returns
    -------
    Parquet
        Give it as `data`, `given` or `weights` of `fit`, which reads columns of one file together, or as `source`, `given`,
        `weights` or `start` of `fit_stream`.

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
    >>> source = fj.sources.parquet(folder / "rain.parquet", ["1990", "1991"])
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
    >>> source = fj.sources.parquet("catalogue.parquet", "flux")  # doctest: +SKIP
    """

    def __init__(self, path: str | Path, columns: PyTree, *, ragged: bool, missing: str = "") -> None:
        self.path: str | Path = str(path) if URL.match(str(path)) else Path(path)
        self.ragged, self.missing = ragged, missing
        module = require("pyarrow.parquet", "stream")
        self._paths: list[Any]
        if isinstance(self.path, Path):
            self._paths = sorted(self.path.glob("*.parquet")) if self.path.is_dir() else [self.path]
            opened = self._paths
        else:
            files, inside = _at_url(self.path, "the Parquet file")
            self._paths = sorted(files.glob(f"{inside}/*.parquet")) if files.isdir(inside) else [inside]
            opened = [files.open(each, "rb") for each in self._paths]
        if not self._paths:
            raise ValueError(f"the folder {str(path)!r} holds no file named *.parquet.")
        settings = {"buffer_size": PARQUET_BUFFER, "pre_buffer": False, "page_checksum_verification": True}
        self._files = [module.ParquetFile(each, **settings) for each in opened]
        available = self._files[0].schema_arrow.names
        if columns is None:
            columns = available[0] if len(available) == 1 else {name: name for name in available}
        for name in jax.tree.leaves(columns):
            if name not in available:
                raise ValueError(f"{str(path)!r} has no column {name!r}; it has {', '.join(map(repr, available))}.")
        self.columns = columns
        self.length: int = sum(file.metadata.num_rows for file in self._files)

    def __reduce__(self) -> tuple[Any, ...]:
        # Open files belong to one process.
        reopen = functools.partial(Parquet, ragged=self.ragged, missing=self.missing)
        return reopen, (self.path, self.columns)

    @property
    def names(self) -> list[str]:
        """All columns of the file, read or not."""
        return list(self._files[0].schema_arrow.names)

    def labels(self, name: str) -> Iterator[np.ndarray]:
        """A column of numbers or text, some rows at a time."""
        for file in self._files:
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=[name], use_threads=False):
                yield batch.column(0).to_numpy(zero_copy_only=False)

    def first(self) -> PyTree:
        return Arrays(next(self._chunks(0, 1)), str(self.path)).first()

    def blocks(self, start: int, size: int) -> Iterator[PyTree]:
        # Row groups that lie before the start are not read.
        groups = [file.metadata.row_group(k).num_rows for file in self._files for k in range(file.num_row_groups)]
        ends = np.cumsum(groups, dtype=int)
        before = int(np.searchsorted(ends, start, side="right"))
        skip = start - (int(ends[before - 1]) if before else 0)
        chunks = (Arrays(chunk, str(self.path)) for chunk in self._chunks(before, min(PARQUET_ROWS, size)))
        return rechunk(chunks, skip, size, str(self.path))

    def _chunks(self, before: int, rows: int) -> Iterator[PyTree]:
        """So many rows at a time, without the first row groups."""
        names = sorted(set(jax.tree.leaves(self.columns)))
        for path, file in zip(self._paths, self._files, strict=True):
            groups = list(range(min(before, file.num_row_groups), file.num_row_groups))
            before = max(before - file.num_row_groups, 0)
            batches = file.iter_batches(batch_size=rows, row_groups=groups, columns=names, use_threads=False)
            try:
                yield from map(self._tree, batches)
            except OSError as error:
                raise OSError(f"{path} is damaged: {error}. Restore it.") from error

    def _tree(self, batch: Any) -> PyTree:
        def read(part: Any) -> np.ndarray:
            if isinstance(part, str):
                return _array(batch.column(part), part, ragged=self.ragged, missing=self.missing)
            arrays = [_array(batch.column(name), name, missing=self.missing) for name in part]
            masked = any(isinstance(array, np.ma.MaskedArray) for array in arrays)
            return np.ma.stack(arrays, axis=1) if masked else np.stack(arrays, axis=1)

        return jax.tree.map(read, self.columns, is_leaf=lambda part: isinstance(part, list))


def _array(column: Any, name: str, *, ragged: bool = False, missing: str = "") -> np.ndarray:
    """A column of numbers (B,), or of lists of one length (B, n); where they are `ragged`, an array (B,) of arrays.

    With `missing`, as `fit` has it, NaN is missing like a null: "drop" masks the entries, "raise" raises.
    """
    is_list = hasattr(column, "flatten") and hasattr(column.type, "value_type")
    if missing == "drop" and not is_list:
        is_missing = column.is_null(nan_is_null=True).to_numpy(zero_copy_only=False)
        if is_missing.any():
            kind = column.type.to_pandas_dtype()
            return np.ma.MaskedArray(column.fill_null(0).to_numpy(zero_copy_only=False).astype(kind), is_missing)
    count = column.null_count
    if missing == "raise" and not is_list and str(column.type) in ("float", "double", "halffloat"):
        count = int(np.sum(column.is_null(nan_is_null=True).to_numpy(zero_copy_only=False)))
    if count:
        remedy = "Fill them in, and give them weight zero." if not missing else 'Fill them in, or give missing="drop".'
        raise ValueError(f"column {name!r} has {count} missing values in one stretch of rows. {remedy}")
    if not is_list:
        array = column.to_numpy(zero_copy_only=False)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"column {name!r} holds {column.type}, where numbers were expected.")
        return array
    inside = _array(column.flatten(), name)
    length = getattr(column.type, "list_size", None)
    if length is None:
        lengths = column.value_lengths().to_numpy(zero_copy_only=False)
        if ragged:
            return as_ragged(np.split(inside, np.cumsum(lengths)[:-1]))
        if len(lengths) and lengths.min() < lengths.max():
            raise ValueError(
                f"the lists in column {name!r} differ in length ({lengths.min()} to {lengths.max()}). Give "
                "sources.parquet(…, ragged=True) if these are data sets of different lengths."
            )
        length = int(lengths[0]) if len(lengths) else 0
    return inside.reshape(len(column), length, *inside.shape[1:])


class RowSource:
    """The rows of one data set, read in blocks: observations, covariates and weights in step, each a source or in memory.

    `missing` is that of `fit`, and is obeyed where values can be missing: in Parquet files.
    """

    def __init__(self, data: Any, given: Any, weights: Any, missing: str) -> None:
        self.arguments = (data, given, weights, missing)
        self.has_given, self.has_weights = given is not None, weights is not None
        sources = {}
        for name, value in (("data", data), ("given", given), ("weights", weights)):
            if value is not None:
                sources[name] = source = source_of(value, name)
                check_not_empty(source, name)
                if getattr(source, "is_iterator", False):
                    raise TypeError(
                        f"{name} is an iterator of chunks, which can be read once, and a fit reads its data once for each step. "
                        "Give sources.chunks(function), a function that returns the chunks anew each time, or a list of them."
                    )
                if getattr(source, "ragged", False):
                    raise ValueError(f"{name} is a ragged source, of many data sets. Use fit_stream.")
        lengths = {name: source.length for name, source in sources.items() if source.length is not None}
        _check_same_rows(lengths)
        self.length: int | None = next(iter(lengths.values()), None)
        # Columns of one file are read together: of such a reader each block is a dictionary of the parts.
        self.files = {name: source for name, source in sources.items() if isinstance(source, Parquet)}
        self._sources = {name: source for name, source in sources.items() if name not in self.files}
        self._joint = [
            Parquet(
                path,
                {name: source.columns for name, source in self.files.items() if source.path == path},
                ragged=False,
                missing=missing,
            )
            for path in dict.fromkeys(source.path for source in self.files.values())
        ]

    @property
    def arguments_by_name(self) -> dict[str, Any]:
        """The arguments of `fit`, to read the same rows again."""
        return dict(zip(("data", "given", "weights", "missing"), self.arguments, strict=True))

    def __reduce__(self) -> tuple[Any, ...]:
        return RowSource, self.arguments

    def __deepcopy__(self, memo: Any) -> "RowSource":
        return self  # nothing of it changes, and arrays on disk would be copied into memory

    def blocks(self, size: int) -> Iterator[tuple[PyTree, PyTree, Any]]:
        """Data, covariates and weights of `size` rows at a time; the next are read while these are used."""
        return read_ahead(self._blocks(size))

    def _blocks(self, size: int) -> Iterator[tuple[PyTree, PyTree, Any]]:
        joint = [source.blocks(0, size) for source in self._joint]
        single = {name: source.blocks(0, size) for name, source in self._sources.items()}
        names, start = [*self.files, *self._sources], 0
        while True:
            parts: dict[str, PyTree] = {name: next(reader, None) for name, reader in single.items()}
            for reader in joint:
                parts |= next(reader, {})
            leaves = {name: jax.tree.leaves(parts.get(name)) for name in names}
            rows = {name: start + (len(those[0]) if those else 0) for name, those in leaves.items()}
            _check_same_rows(rows)
            if rows["data"] == start:
                return
            weights = parts.get("weights")
            if weights is not None:
                _check_weights(weights, start)
            yield parts["data"], parts.get("given"), weights
            start = rows["data"]

    def column(self, name: str) -> np.ndarray:
        """One column in memory: of a Parquet file that is read, else of covariates or data that are a dictionary."""
        for file in self._joint:
            if name in file.names:
                return np.concatenate(list(file.labels(name)))
        parts = []
        for data, given, _ in self.blocks(PARQUET_ROWS):
            holders = [part for part in (given, data) if isinstance(part, dict) and name in part]
            if not holders:
                names = [key for file in self._joint for key in file.names]
                names += [str(key) for part in (given, data) if isinstance(part, dict) for key in part]
                having = f" (it has {', '.join(names)})" if names else ""
                raise ValueError(
                    f"there is no column {name!r} in the source of this fit{having}. Give the labels as an array."
                )
            parts.append(np.asarray(holders[0][name]))
        return np.concatenate(parts)

    def describe(self) -> str:
        """Where the data come from, in words."""
        data = self.arguments[0]
        return str(
            self.files["data"].path if "data" in self.files else data if isinstance(data, str | Path) else "a source"
        )


def _check_same_rows(lengths: dict[str, int]) -> None:
    if len(set(lengths.values())) > 1:
        texts = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise ValueError(f"the numbers of rows differ ({texts}). All need the same, one row for each observation.")


def _check_weights(weights: Any, start: int) -> None:
    host = np.ma.filled(weights, 0)
    if host.ndim != 1:
        raise ValueError(f"weights are rows of shape {host.shape[1:]}; expected one number for each observation.")
    is_valid = np.isfinite(host) & (host >= 0)
    if not is_valid.all():
        k = int(np.argmin(is_valid))
        raise ValueError(
            f"weights must be finite and not negative; weights[{start + k}] is {host[k]}. A weight of zero leaves an "
            "observation out."
        )


def read_ahead(blocks: Iterator[Block]) -> Iterator[Block]:
    """The same blocks, each read in a thread while the one before is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="fisher_jax reader") as pool:
        following = pool.submit(next, blocks, None)
        while (block := following.result()) is not None:
            following = pool.submit(next, blocks, None)
            yield block


_EMPTY = "{name} is empty: it holds no data set. If it is an iterator, was it read before?"


def check_not_empty(source: Source, name: str) -> None:
    if source.length == 0:
        raise ValueError(_EMPTY.format(name=name))


def check_lengths(lengths: dict[str, int]) -> None:
    """As many data sets in one source as in another, by their names."""
    if len(set(lengths.values())) > 1:
        texts = ", ".join(f"{label}: {length}" for label, length in lengths.items())
        raise ValueError(
            f"the number of data sets differs ({texts}). Give one entry for each along the leading axes, or what all share "
            "with axis None."
        )


def as_ragged(entries: Sequence[np.ndarray]) -> np.ndarray:
    """An array (B,) of arrays that differ in length: so they are cut and joined as others are."""
    ragged = np.empty(len(entries), object)
    for k, entry in enumerate(entries):
        ragged[k] = np.asarray(entry)
    return ragged


def is_ragged(tree: PyTree) -> bool:
    return any(getattr(leaf, "dtype", None) == np.dtype(object) for leaf in jax.tree.leaves(tree))
