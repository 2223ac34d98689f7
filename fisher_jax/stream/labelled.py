"""Labelled arrays as sources: each cell of a grid is a data set, along one dimension; and results with the labels of the grid."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from fisher_jax.errors import require
from fisher_jax.fitting.result import FACTS
from fisher_jax.models.fingerprint import digest
from fisher_jax.models.parameters import path_name
from fisher_jax.sources import check_chunks, open_path
from fisher_jax.stream.sink import Columns


class Cells:
    """A labelled array as an array (B, n) of the cells in C order, or (B,) if it does not lie along `dim`, read a slice at a time.

    Rows with a missing value are masked.
    """

    def __init__(self, array: Any, sizes: Mapping[str, int], dim: tuple[str, int] | None) -> None:
        self.array, self.sizes, self.dim = array, dict(sizes), dim
        self.shape = (math.prod(sizes.values()), *(() if dim is None else (dim[1],)))
        self.dtype = array.dtype

    def __getitem__(self, where: slice) -> np.ndarray:
        start, stop, _ = where.indices(self.shape[0])
        axes = [*self.sizes, *(() if self.dim is None else (self.dim[0],))]
        present = [name for name in axes if name in self.array.dims]
        missing = tuple(k for k, name in enumerate(axes) if name not in self.array.dims)
        parts = []
        for box in _boxes(tuple(self.sizes.values()), start, stop):
            places = {name: place for name, place in zip(self.sizes, box, strict=True) if name in self.array.dims}
            values = self.array.isel(places).transpose(*present).to_numpy()
            counts = [place.stop - place.start for place in box]
            values = np.broadcast_to(np.expand_dims(values, missing), (*counts, *self.shape[1:]))
            parts.append(values.reshape(-1, *self.shape[1:]))
        return masked(np.concatenate(parts)) if self.dim is not None else np.concatenate(parts)


def masked(values: np.ndarray) -> np.ndarray:
    """NaN as missing values; other arrays as they are."""
    nan = values != values
    return np.ma.MaskedArray(values, nan) if nan.any() else values


def _boxes(sizes: tuple[int, ...], start: int, stop: int) -> Iterator[tuple[slice, ...]]:
    """The entries from `start` to `stop` of an array in C order as few boxes, in order."""
    if not sizes or start == stop:
        yield from [()] if not sizes else []
        return
    inner = math.prod(sizes[1:])
    first, last = -(-start // inner), stop // inner  # of the entries of the first axis these are whole
    if first > last:  # all within one
        for rest in _boxes(sizes[1:], start - last * inner, stop - last * inner):
            yield (slice(last, last + 1), *rest)
        return
    for rest in _boxes(sizes[1:], start % inner, inner) if start % inner else ():
        yield (slice(first - 1, first), *rest)
    if first < last:
        yield (slice(first, last), *(slice(0, size) for size in sizes[1:]))
    for rest in _boxes(sizes[1:], 0, stop % inner) if stop % inner else ():
        yield (slice(last, last + 1), *rest)


class Grid(NamedTuple):
    """The cells: their dimensions, and the coordinates along these as variables of xarray."""

    sizes: dict[str, int]
    coordinates: dict[str, Any]

    def encoded(self) -> "Grid":
        """With dates and durations as numbers, as the CF conventions have it."""
        encode = require("xarray", "xarray").conventions.encode_cf_variable
        coordinates = dict(self.coordinates)
        for name, variable in coordinates.items():
            if not _is_text(variable.values):
                coordinates[name] = encode(variable)
                coordinates[name].attrs.pop("_FillValue", None)
        return Grid(self.sizes, coordinates)

    def attributes(self) -> dict[str, dict[str, Any]]:
        """What JSON holds of the attributes of each coordinate."""
        return {
            name: {
                key: value.item() if isinstance(value, np.generic) else value
                for key, value in variable.attrs.items()
                if isinstance(value, str | int | float | np.number)
            }
            for name, variable in self.coordinates.items()
        }

    def columns(self, start: int, stop: int) -> Columns:
        places = dict(
            zip(self.sizes, np.unravel_index(np.arange(start, stop), tuple(self.sizes.values())), strict=True)
        )
        columns = {}
        for name, variable in self.coordinates.items():
            at = tuple(places[dim] for dim in variable.dims)
            columns[name] = variable.values[at] if at else np.repeat(variable.values, stop - start)
        return columns

    def fingerprint(self) -> dict[str, Any]:
        table: dict[str, Any] = {"cells": ", ".join(f"{name} ({size})" for name, size in self.sizes.items())}
        for name, variable in self.coordinates.items():
            values = variable.values
            table[f"coordinate {name}"] = digest(
                repr(values.tolist()).encode() if values.dtype == object else values.tobytes()
            )
        return table


def by_cell(
    arguments: dict[str, Any], dim: str, *, is_dependent: bool
) -> tuple[dict[str, PyTree], dict[str, PyTree], Grid]:
    """The arguments with `Cells` for what differs among cells and plain arrays for what they share, their axes, and the grid."""
    xr = require("xarray", "xarray")
    trees = {name: _opened(xr, value, name) for name, value in arguments.items()}
    leaves = {
        f"{name} {path_name(path)}" if path else name: (name, leaf)
        for name, tree in trees.items()
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
    of_source = {label: leaf for label, (name, leaf) in leaves.items() if name == "source"}
    sizes: dict[str, int] = {}
    for label, (name, leaf) in leaves.items():
        if not isinstance(leaf, xr.DataArray):
            if name != "start":
                raise TypeError(
                    f"{label} is a {type(leaf).__name__} without names of dimensions, which dim={dim!r} needs. Give a DataArray."
                )
            continue
        if leaf.dtype.kind not in "biuf" or {"_FillValue", "missing_value", "scale_factor"} & leaf.attrs.keys():
            raise TypeError(
                f"{label} does not hold plain numbers (dtype {leaf.dtype}, attributes {list(leaf.attrs)}). "
                "Encode dates and text as numbers, and decode what was opened undecoded by xarray.decode_cf."
            )
        if name == "source" and dim not in leaf.dims:
            raise ValueError(f"{label} has no dimension {dim!r}; it has {', '.join(map(repr, leaf.dims))}.")
        if name == "source":
            sizes |= {each: size for each, size in leaf.sizes.items() if each != dim}
    if not sizes:
        raise ValueError(f"source has no dimension but {dim!r}, so there is one data set. Use fisher_jax.fit.")
    num_rows = next(iter(of_source.values())).sizes[dim]
    for label, (name, leaf) in leaves.items():
        allowed = {*sizes, *(() if name == "start" else (dim,))}
        if unknown := [each for each in getattr(leaf, "dims", ()) if each not in allowed]:
            raise ValueError(
                f"{label} has the dimension {unknown[0]!r}, of which source has none. It has {sorted(allowed)}."
            )
    labelled = {label: leaf for label, (_, leaf) in leaves.items() if isinstance(leaf, xr.DataArray)}
    try:
        xr.align(*labelled.values(), join="exact", copy=False)
    except ValueError as error:
        raise ValueError(
            f"{', '.join(labelled)} are not aligned: {error} Align them by xarray.align or .reindex_like."
        ) from error

    # A block without missing values has weights as one with some has, so that last bits do not depend on what is in a block.
    # Those of a dependent model may have none: there weights stay as they are.
    weighted = any(leaf.dtype.kind == "f" for leaf in labelled.values()) and not is_dependent
    if weighted and trees["weights"] is None:
        trees["weights"] = xr.DataArray(np.ones(num_rows), dims=dim)

    def convert(name: str, leaf: Any) -> Any:
        if not isinstance(leaf, xr.DataArray):
            return leaf
        if name == "source" or (name == "weights" and weighted) or set(leaf.dims) & set(sizes):
            return Cells(leaf, sizes, None if name == "start" else (dim, num_rows))
        return masked(np.broadcast_to(leaf.to_numpy(), (num_rows,)))

    converted = {name: jax.tree.map(lambda leaf, name=name: convert(name, leaf), tree) for name, tree in trees.items()}
    axes: dict[str, PyTree] = {}
    for name in converted.keys() - {"source"}:
        marks = jax.tree.map(lambda leaf: 0 if isinstance(leaf, Cells) else None, converted[name])
        axes[name] = marks if jax.tree.leaves(marks) else None
    return converted, axes, Grid(sizes, _coordinates(of_source, sizes))


def _opened(xr: Any, value: Any, name: str) -> PyTree:
    """A Dataset as a dictionary of its variables; a Zarr array or group, or a path to one, opened, with its chunks checked."""
    if isinstance(value, str | Path):
        if not str(value).rstrip("/").endswith(".zarr"):
            raise ValueError(f"{name} {str(value)!r} does not end in .zarr: with dim, open it by xarray and give that.")
        value = open_path(value, name)
    if hasattr(type(value), "nchunks_initialized"):  # a Zarr array
        names = getattr(value.metadata, "dimension_names", None) or value.attrs.get("_ARRAY_DIMENSIONS")
        if not names or None in names:
            raise ValueError(
                f"the Zarr array {name} has no names of dimensions. Give xarray.DataArray(array, dims=(…))."
            )
        check_chunks(value, name)
        return xr.DataArray(require("dask.array", "xarray").from_zarr(value), dims=tuple(names))
    if hasattr(value, "group_keys"):  # a Zarr group
        for label, array in value.arrays():
            check_chunks(array, f"{name} {label}")
        consolidated = value.metadata.consolidated_metadata is not None
        value = xr.open_zarr(value.store, group=value.path or None, chunks=None, consolidated=consolidated)
    as_dictionary = lambda part: dict(part.data_vars) if isinstance(part, xr.Dataset) else part  # noqa: E731
    return jax.tree.map(as_dictionary, value, is_leaf=lambda part: isinstance(part, xr.Dataset | xr.DataArray))


def _coordinates(arrays: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    """What lies along the cells, and the places along dimensions without coordinates."""
    xr = require("xarray", "xarray")
    coordinates: dict[str, Any] = {}
    for label, array in arrays.items():
        for name, coordinate in array.coords.items():
            if not set(coordinate.dims) <= set(sizes):
                continue
            if getattr(array.indexes.get(name), "nlevels", 1) > 1:
                raise ValueError(
                    f"{label} has several labels in one along {name!r}. Unstack it, by .unstack({name!r})."
                )
            if len(str(name).split()) != 1 or "/" in str(name):
                raise ValueError(
                    f"the coordinate {name!r} of {label} cannot be written. Rename it, without spaces and slashes."
                )
            coordinates.setdefault(str(name), coordinate.variable.to_base_variable())
    missing = {name: xr.Variable(name, np.arange(size)) for name, size in sizes.items() if name not in coordinates}
    return coordinates | missing


def dataset_of(path: Path, manifest: Mapping[str, Any]) -> Any:
    """A Zarr sink as the Dataset that `fisher_jax.xarray.fit` would have made, of which only coordinates are read."""
    xr, da = require("xarray", "xarray"), require("dask.array", "xarray")
    raw = xr.open_zarr(path, chunks={})
    along, length = raw["status"].dims[0], raw.sizes[raw["status"].dims[0]]
    sizes = manifest["cells"] or {along: length}
    dims, shape = tuple(sizes), tuple(sizes.values())
    names, settings = manifest["parameters"], manifest["settings"]
    listed = (f"covariances[{k}]" for k in itertools.count())
    kinds = [settings[each] for each in itertools.takewhile(settings.__contains__, listed)]

    def reshape(array: Any) -> Any:
        return array.reshape((*shape, *array.shape[1:]))

    def side_by_side(columns: Sequence[str], long_name: str) -> tuple[Any, ...]:
        array = reshape(da.stack([raw[column].data for column in columns], axis=-1))
        return ((*dims, "parameter"), array, {"long_name": long_name})

    columns = [f"parameter {name}" if name in FACTS else name for name in names]
    variables = {"estimate": side_by_side(columns, "maximum-likelihood estimate")}
    for kind in kinds:
        end, suffix = ("", "") if kind == kinds[0] else (f"_{kind}", f" ({kind})")
        errors = [f"{name} standard error{suffix}" for name in names]
        variables[f"standard_error{end}"] = side_by_side(errors, f"standard error ({kind})")
        covariance = reshape(raw[f"covariance ({kind})"].data)
        attributes = {"long_name": f"covariance of the estimate ({kind})"}
        variables[f"covariance{end}"] = ((*dims, "parameter", "parameter_"), covariance, attributes)
    for fact in FACTS:
        variables[fact] = (dims, reshape(raw[fact].data), raw[fact].attrs)
    coordinates: dict[str, Any] = {"parameter": names} | ({"parameter_": names} if kinds else {})
    for name, over in manifest["coordinates"].items():
        values = raw[name].values.reshape(shape)
        values = values[tuple(slice(None) if dim in over else 0 for dim in dims)]
        kept = tuple(dim for dim in dims if dim in over)
        coordinates[name] = (kept, values, raw[name].attrs)
    return xr.Dataset(variables, coords=coordinates)


def _is_text(values: np.ndarray) -> bool:
    return values.dtype.kind in "UT" or (values.dtype == object and all(isinstance(each, str) for each in values.flat))
