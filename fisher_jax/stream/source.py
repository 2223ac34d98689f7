"""Where data sets come from: arrays that are read a block at a time, or chunks of any size made into blocks."""

import itertools
import math
import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import PyTree

from fisher_jax.errors import check_pytree, require
from fisher_jax.input_arrays import labels_of
from fisher_jax.models.parameters import path_name


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


class Arrays:
    """A pytree of arrays with a leading axis: numpy's, memory maps, Zarr's, or whatever has a shape, a dtype and slices."""

    def __init__(self, tree: PyTree, name: str) -> None:
        self.leaves, self.treedef = _leaves(tree, name)
        for label, leaf in self.leaves.items():
            if hasattr(type(leaf), "nchunks_initialized"):  # a Zarr array; asked of itself it would count them
                _check_chunks(leaf, label)
        self.length: int | None = _common_length(self.leaves, name)

    def first(self) -> PyTree:
        return self.treedef.unflatten([np.asanyarray(_in_memory(leaf, 0, 1)[0]) for leaf in self.leaves.values()])

    def blocks(self, start: int, size: int) -> Iterator[PyTree]:
        for at in range(start, self.length or 0, size):
            yield self.part(at, at + size)

    def part(self, start: int, stop: int) -> PyTree:
        """Some of the data sets, in memory of their own."""
        return self.treedef.unflatten([_in_memory(leaf, start, stop) for leaf in self.leaves.values()])


class Chunks:
    """Chunks in order, each a pytree of arrays with a leading axis of any length. An iterator can be read once."""

    def __init__(self, chunks: Iterable[PyTree], name: str) -> None:
        self.name = name
        filled: Iterable[Arrays] = (each for each in (Arrays(chunk, name) for chunk in chunks) if each.length)
        self.length: int | None = None
        if isinstance(chunks, Sequence):
            filled = list(filled)
            self.length = sum(each.length or 0 for each in filled)
        rest = iter(filled)
        head = next(rest, None)
        if head is None:
            raise ValueError(_EMPTY.format(name=name))
        self._first = head.first()
        self._chunks = itertools.chain([head], rest)

    def first(self) -> PyTree:
        return self._first

    def blocks(self, start: int, size: int) -> Iterator[PyTree]:
        return rechunked(self._chunks, start, size, self.name)


def rechunked(chunks: Iterable[Arrays], skip: int, size: int, name: str) -> Iterator[PyTree]:
    """Blocks of `size` from chunks of any size, without the first `skip` data sets."""
    held: list[PyTree] = []
    missing = size
    kind = None
    for chunk in chunks:
        kind = _same_kind(kind, chunk, name)
        at = min(skip, chunk.length or 0)
        skip -= at
        while at < (chunk.length or 0):
            stop = min(at + missing, chunk.length or 0)
            held.append(chunk.part(at, stop))
            missing -= stop - at
            at = stop
            if not missing:
                yield _joined(held)
                held, missing = [], size
    if skip:
        raise ValueError(f"{name} now ends {skip} data sets before the last that is done. Was it changed?")
    if held:
        yield _joined(held)


def source_of(source: Any, name: str) -> Source:
    """The source that the user's argument stands for."""
    if isinstance(source, str | Path):
        source = _opened(Path(source), name)
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
        "sets, a dict or tuple of them, a path to .npy, .zarr or Parquet, stream.parquet(path, columns), or a list or "
        "iterator of chunks."
    )


def _opened(path: Path, name: str) -> Any:
    if not path.exists():
        raise FileNotFoundError(f"{name} {str(path)!r} does not exist.")
    if path.suffix == ".npy":
        return np.load(path, mmap_mode="r")
    if path.suffix == ".zarr":
        return require("zarr", "stream").open(str(path), mode="r")
    if path.suffix == ".parquet" or (path.is_dir() and next(path.glob("*.parquet"), None)):
        from fisher_jax.stream.tables import parquet

        return parquet(path)
    raise ValueError(
        f"{name} {str(path)!r} is of no kind that is known by its name: .npy, .zarr, .parquet or a folder of Parquet "
        "files. Open it and give the array."
    )


def _leaves(tree: PyTree, name: str) -> tuple[dict[str, Any], Any]:
    """Each array under its name, as it is: nothing is read."""
    check_pytree(tree, name)
    found, treedef = jax.tree_util.tree_flatten_with_path(tree)
    leaves = {f"{name} {path_name(path)}" if path else name: leaf for path, leaf in found}
    for label, leaf in leaves.items():
        if labels_of(leaf):
            raise TypeError(
                f"{label} is a {type(leaf).__name__} of pandas, whose index a stream does not look at. Give arrays, "
                "by .to_numpy()."
            )
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype") and len(leaf.shape)):
            raise TypeError(
                f"{label} is {_said(leaf)}, where an array with a leading axis over data sets was expected."
            )
    return {label: np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf for label, leaf in leaves.items()}, treedef


def _members(group: Any) -> PyTree:
    """The arrays of a Zarr group by name, those of the groups in it too."""
    return dict(group.arrays()) | {name: _members(inner) for name, inner in group.groups()}


def _check_chunks(array: Any, label: str) -> None:
    """Raise where chunks of a Zarr array are missing, which Zarr itself reads as the fill value.

    A fill value that is not a number passes: the data sets that it stands in end with a status that says so.
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
            f"them as its fill value {array.fill_value}. Restore them. Zarr leaves out chunks that hold nothing but the fill "
            "value: if these are such, write the array with config={'write_empty_chunks': True}, or give an iterator of its parts, "
            "(array[k : k + 1000] for k in range(0, len(array), 1000))."
        )


def _said(leaf: Any) -> str:
    return "a single number" if hasattr(leaf, "shape") else f"of type {type(leaf).__name__}"


def _common_length(leaves: dict[str, Any], name: str) -> int:
    lengths = {label: int(leaf.shape[0]) for label, leaf in leaves.items()}
    if not lengths:
        raise ValueError(f"{name} holds no array.")
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{label}: {length}" for label, length in lengths.items())
        raise ValueError(f"the number of data sets differs ({said}). Their leading axes must have the same length B.")
    return next(iter(lengths.values()))


_EMPTY = "{name} is empty: it holds no data set. If it is an iterator, was it read before?"


def check_not_empty(source: Source, name: str) -> None:
    if source.length == 0:
        raise ValueError(_EMPTY.format(name=name))


def _same_kind(kind: Any, chunk: Arrays, name: str) -> Any:
    """Each chunk must be like the first in all but length."""
    mine = (chunk.treedef, [(tuple(leaf.shape[1:]), np.dtype(leaf.dtype)) for leaf in chunk.leaves.values()])
    if kind is not None and mine != kind:
        said = [", ".join(f"(…, {shape}) {dtype}" for shape, dtype in each[1]) for each in (kind, mine)]
        raise ValueError(
            f"the chunks of {name} differ: the first holds {said[0]}, another {said[1]}. "
            "All must have the same structure, dtypes and shapes but for the leading axis."
        )
    return mine


def _in_memory(leaf: Any, start: int, stop: int) -> np.ndarray:
    part = leaf[start:stop]  # of a ragged one, the arrays in it are not copied; netCDF's may be masked
    part = part.copy() if isinstance(part, np.ma.MaskedArray) else np.array(part)
    if isinstance(leaf, np.memmap) and leaf.mode in ("r", "r+"):
        _let_go(leaf)
    return part


def _let_go(leaf: Any) -> None:
    """Pages of a file that have been read count as resident until they are let go."""
    while isinstance(leaf, np.ndarray):
        leaf = leaf.base
    if isinstance(leaf, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        leaf.madvise(mmap.MADV_DONTNEED)


def as_ragged(entries: Sequence[np.ndarray]) -> np.ndarray:
    """An array (B,) of arrays that differ in length: so they are cut and joined as others are."""
    ragged = np.empty(len(entries), object)
    for k, entry in enumerate(entries):
        ragged[k] = np.asarray(entry)
    return ragged


def is_ragged(tree: PyTree) -> bool:
    return any(getattr(leaf, "dtype", None) == np.dtype(object) for leaf in jax.tree.leaves(tree))


def entries_of(tree: PyTree, count: int) -> list[PyTree]:
    """One entry for each data set, as `fit_batch` takes those of different lengths."""
    return [jax.tree.map(lambda leaf, k=k: leaf[k], tree) for k in range(count)]


def _joined(parts: list[PyTree]) -> PyTree:
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *leaves: _concatenated(leaves), *parts)


def _concatenated(leaves: Sequence[np.ndarray]) -> np.ndarray:
    masked = any(isinstance(leaf, np.ma.MaskedArray) for leaf in leaves)
    return np.ma.concatenate(leaves) if masked else np.concatenate(leaves)
