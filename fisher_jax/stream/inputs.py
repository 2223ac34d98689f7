"""What a stream of fits reads: each argument either shared by all data sets or a source, and blocks of all of them together."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from fisher_jax.models.fingerprint import Table, digest, fingerprint
from fisher_jax.models.model import Model, starting_parameters
from fisher_jax.models.parameters import path_name
from fisher_jax.stream.source import Arrays, Source, check_not_empty, entries_of, is_ragged, source_of

MOST_IN_A_BLOCK = 2**16
BYTES_IN_A_BLOCK = 2**26  # of data and results; some three blocks are in memory at a time


class Block(NamedTuple):
    """The arguments of `fit_batch` for some data sets."""

    params: PyTree
    data: PyTree
    given: PyTree
    weights: PyTree


@dataclass(frozen=True)
class Inputs:
    """The arguments by their names: what all data sets share, and the sources of what differs. `axes` says which is which."""

    shared: dict[str, PyTree]
    sources: dict[str, Source]
    axes: dict[str, Any]

    @property
    def length(self) -> int | None:
        """B, or `None` if no source knows it."""
        known = [source.length for source in self.sources.values() if source.length is not None]
        return known[0] if known else None

    def blocks(self, start: int, size: int) -> Iterator[tuple[int, Block]]:
        """Blocks, each with the number of data sets in it."""
        readers = {name: source.blocks(start, size) for name, source in self.sources.items()}
        while True:
            parts = {name: next(reader, None) for name, reader in readers.items()}
            lengths = {name: _rows(part) for name, part in parts.items()}
            if len(set(lengths.values())) > 1:
                raise ValueError(_differ({name: start + rows for name, rows in lengths.items()}))
            if not (rows := lengths["source"]):
                return
            if is_ragged(parts["source"]):
                parts = {name: part if name == "params" else entries_of(part, rows) for name, part in parts.items()}
            yield rows, self._together(parts)
            start += rows

    def first(self) -> Block:
        """The arguments of `fit` for the first data set."""
        return self._together({name: source.first() for name, source in self.sources.items()})

    def fingerprint(self) -> Table:
        """The shared values, and of the sources their shapes, dtypes and first data set."""
        table: Table = {f"{name}_axis": str(axis) for name, axis in self.axes.items()}
        for name, value in self.shared.items():
            table |= fingerprint(value, name)
        for name, source in self.sources.items():
            length = "unknown" if source.length is None else source.length
            table[f"{name} number of data sets"] = length
            for path, leaf in jax.tree_util.tree_flatten_with_path(source.first())[0]:
                label = f"{name} {path_name(path)}" if path else name
                leaf = np.asanyarray(leaf)
                table[label] = f"{leaf.dtype.str} ({', '.join(map(str, ('B', *leaf.shape)))})"
                table[f"{label} first data set"] = digest(leaf.tobytes())
        return table

    def _together(self, parts: dict[str, PyTree]) -> Block:
        def one(name: str) -> PyTree:
            if name not in self.sources:
                return self.shared.get(name)
            if name not in self.shared:
                return parts[name]
            return jax.tree.map(
                lambda own, common: common if own is None else own, parts[name], self.shared[name], is_leaf=_is_none
            )

        return Block(one("params"), one("source"), one("given"), one("weights"))


def inputs_of(arguments: dict[str, Any], axes: dict[str, Any]) -> Inputs:
    """Tell what is shared from what differs, and refuse sources that do not fit together."""
    shared: dict[str, PyTree] = {}
    sources: dict[str, Source] = {}
    for name, value in arguments.items():
        axis = axes.get(name, 0)
        if value is None and name != "source":
            shared[name] = None
        elif axis is None:
            shared[name] = value
        elif isinstance(axis, int) and not isinstance(axis, bool) and axis == 0:
            sources[name] = source_of(value, name)
        else:
            own, shared[name] = _divided(value, axis, name)
            sources[name] = Arrays(own, name)
    for name, source in sources.items():
        check_not_empty(source, name)
    lengths = {name: source.length for name, source in sources.items() if source.length is not None}
    if len(set(lengths.values())) > 1:
        raise ValueError(_differ(lengths))
    return Inputs(shared, sources, axes)


def default_block(model: Model, inputs: Inputs, num_kinds: int) -> int:
    """A power of two of data sets whose data and results stay within bounds."""
    first = inputs.first()
    params = starting_parameters(model, first.params, first.data, first.given)
    entries = sum(np.size(leaf) for leaf in jax.tree.leaves(params))
    own = [source.first() for source in inputs.sources.values()]
    size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(own))
    size += 8 * (num_kinds + bool(num_kinds)) * entries**2
    return min(MOST_IN_A_BLOCK, 2 ** max(0, (BYTES_IN_A_BLOCK // max(size, 1)).bit_length() - 1))


def _divided(value: PyTree, axis: Any, name: str) -> tuple[PyTree, PyTree]:
    """The leaves that differ and those that are shared, each with `None` in the others' places."""
    try:
        marks = jax.tree.map(lambda a, branch: jax.tree.map(lambda _: str(a), branch), axis, value, is_leaf=_is_none)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}_axis={axis!r} does not fit {name}: {_AXES}") from error
    if set(jax.tree.leaves(marks)) - {"0", "None"}:
        raise ValueError(f"{name}_axis={axis!r}: {_AXES}")
    own = jax.tree.map(lambda mark, leaf: leaf if mark == "0" else None, marks, value)
    return own, jax.tree.map(lambda mark, leaf: None if mark == "0" else leaf, marks, value)


_AXES = "give 0 (one for each data set, along the leading axis), None (shared by all), or a pytree of them."


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _rows(part: PyTree) -> int:
    leaves = jax.tree.leaves(part)
    return len(leaves[0]) if leaves else 0


def _differ(lengths: dict[str, Any]) -> str:
    said = ", ".join(f"{name}: {length}" for name, length in lengths.items())
    return f"the number of data sets differs ({said}). Give one entry for each, or what all share with axis None."
