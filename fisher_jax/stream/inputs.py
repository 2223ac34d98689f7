"""What a stream of fits reads: each argument either shared by all data sets or a source, and blocks of all of them together."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from fisher_jax.models.fingerprint import Fingerprint, digest, fingerprint
from fisher_jax.models.model import Model, starting_parameters
from fisher_jax.models.parameters import KeyOrder, in_key_order, key_order, path_name
from fisher_jax.sources import Arrays, Source, check_lengths, check_not_empty, is_ragged, source_of

MOST_IN_A_BLOCK = 2**16
BYTES_IN_A_BLOCK = 2**26  # of data and results; some three blocks are in memory at a time


class Block(NamedTuple):
    """The arguments of `fit_batch` for some data sets."""

    start: PyTree
    data: PyTree
    given: PyTree
    weights: PyTree


@dataclass(frozen=True)
class Inputs:
    """The arguments by their names: what all data sets share, and the sources of what differs.

    An argument may be in both: then each has `None` in the place of the other's leaves. `axes` are those of the user, and
    `start_order` is how the dictionaries of the start were written, which sources read in JAX's order.
    """

    shared: dict[str, PyTree]
    sources: dict[str, Source]
    axes: dict[str, Any]
    start_order: KeyOrder

    @property
    def length(self) -> int | None:
        """B, or `None` if no source knows it."""
        return next((source.length for source in self.sources.values() if source.length is not None), None)

    @property
    def iterators(self) -> list[str]:
        """The arguments whose lengths are known only in the end."""
        return [name for name, source in self.sources.items() if source.length is None]

    def runs(self, blocks: Iterable[int], size: int) -> Iterator[tuple[int, int, Block]]:
        """The blocks of these ascending numbers, each with its number and the number of data sets in it."""
        numbers = iter(blocks)
        number = next(numbers, None)
        while number is not None:
            for rows, block in self.blocks(number * size, size):
                yield number, rows, block
                before, number = number, next(numbers, None)
                if number != before + 1:  # they are read on from there
                    break
            else:
                return

    def blocks(self, start: int, size: int) -> Iterator[tuple[int, Block]]:
        """Blocks, each with the number of data sets in it."""
        readers = {name: source.blocks(start, size) for name, source in self.sources.items()}
        while True:
            parts = {name: next(reader, None) for name, reader in readers.items()}
            leaves = {name: jax.tree.leaves(part) for name, part in parts.items()}
            check_lengths({name: start + (len(those[0]) if those else 0) for name, those in leaves.items()})
            rows = len(leaves["source"][0]) if leaves["source"] else 0
            if not rows:
                return
            if is_ragged(parts["source"]):  # fit_batch takes data sets of different lengths in a list
                for name in parts.keys() - {"start"}:
                    parts[name] = [jax.tree.map(lambda leaf, k=k: leaf[k], parts[name]) for k in range(rows)]
            yield rows, self._together(parts)
            start += rows

    def first(self) -> Block:
        """The arguments of `fit` for the first data set."""
        return self._together({name: source.first() for name, source in self.sources.items()})

    def num_parameters(self, model: Model) -> int:
        """How many numbers the parameters are, fixed ones too."""
        first = self.first()
        params = starting_parameters(model, first.start, first.data, first.given)
        return sum(np.size(leaf) for leaf in jax.tree.leaves(params))

    def fingerprint(self) -> Fingerprint:
        """The shared values, and of the sources their shapes, dtypes and first data set."""
        table: Fingerprint = {f"{name}_axis": str(axis) for name, axis in self.axes.items()}
        for name, value in self.shared.items():
            table |= fingerprint(value, name)
        for name, source in self.sources.items():
            table[f"{name} number of data sets"] = "unknown" if source.length is None else source.length
            for path, leaf in jax.tree_util.tree_flatten_with_path(source.first())[0]:
                label = f"{name} {path_name(path)}" if path else name
                leaf = np.asanyarray(leaf)
                table[label] = f"{leaf.dtype.str} ({', '.join(map(str, ('B', *leaf.shape)))})"
                table[f"{label} first data set"] = digest(leaf.tobytes())
        return table

    def _together(self, parts: dict[str, PyTree]) -> Block:
        def merge(name: str) -> PyTree:
            if name not in parts or name not in self.shared:
                return parts.get(name, self.shared.get(name))
            fill = lambda leaf, shared: shared if leaf is None else leaf  # noqa: E731
            return jax.tree.map(fill, parts[name], self.shared[name], is_leaf=lambda leaf: leaf is None)

        start = in_key_order(merge("start"), self.start_order)
        return Block(start, merge("source"), merge("given"), merge("weights"))


def inputs_of(arguments: dict[str, Any], axes: dict[str, Any]) -> Inputs:
    """Separate what is shared from what differs; raise where the sources do not fit together."""
    shared: dict[str, PyTree] = {}
    sources: dict[str, Source] = {}
    for name, value in arguments.items():
        axis = axes.get(name, 0)
        if axis is None or (value is None and name != "source"):
            shared[name] = value
        elif isinstance(axis, int) and not isinstance(axis, bool) and axis == 0:
            sources[name] = source_of(value, name)
        else:
            differing, shared[name] = _divide(value, axis, name)
            sources[name] = Arrays(differing, name)
    for name, source in sources.items():
        check_not_empty(source, name)
    check_lengths({name: source.length for name, source in sources.items() if source.length is not None})
    start = arguments["start"]
    if "start" in sources and "start" not in shared:  # chunks in a list, or columns of a file, have it below
        start = start[0] if isinstance(start, list) and start else getattr(start, "columns", start)
    return Inputs(shared, sources, axes, key_order(start))


def default_block(inputs: Inputs, num_parameters: int, num_kinds: int, parts: int) -> int:
    """A power of two of data sets whose data and results stay within bounds; of several parts each has some four at least."""
    differing = [source.first() for source in inputs.sources.values()]
    size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(differing))
    size += (
        8 * (num_kinds + bool(num_kinds)) * num_parameters**2
    )  # covariances, and the information that they come from
    most = BYTES_IN_A_BLOCK // max(size, 1)
    if parts > 1 and inputs.length is not None:  # so that parts differ little in length
        most = min(most, inputs.length // (4 * parts))
    return min(MOST_IN_A_BLOCK, 2 ** max(0, most.bit_length() - 1))


def _divide(value: PyTree, axis: Any, name: str) -> tuple[PyTree, PyTree]:
    """The leaves that differ and those that are shared, each with `None` in the others' places."""
    explanation = "give 0 (one for each data set, along the leading axis), None (shared by all), or a pytree of them."
    try:
        # As text, since None would be no leaf.
        marks = jax.tree.map(
            lambda a, branch: jax.tree.map(lambda _: str(a), branch), axis, value, is_leaf=lambda leaf: leaf is None
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}_axis={axis!r} does not fit {name}: {explanation}") from error
    if set(jax.tree.leaves(marks)) - {"0", "None"}:
        raise ValueError(f"{name}_axis={axis!r}: {explanation}")
    differing = jax.tree.map(lambda mark, leaf: leaf if mark == "0" else None, marks, value)
    return differing, jax.tree.map(lambda mark, leaf: None if mark == "0" else leaf, marks, value)
