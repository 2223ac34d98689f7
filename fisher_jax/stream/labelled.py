"""Labelled arrays as sources: each cell of a grid is a data set; and results with the labels of the grid.

What names, coordinates and missing values mean is decided by `fisher_jax.xarray`, so that a stream gives what its `fit` gives.
Here cells are read from the arrays a block at a time, and what is known of the grid is written beside the results.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from fisher_jax.errors import check_pytrees, require, shown
from fisher_jax.fitting.result import FACTS
from fisher_jax.fitting.status import Status
from fisher_jax.models.fingerprint import digest
from fisher_jax.models.model import Model
from fisher_jax.sources import check_chunks, open_path
from fisher_jax.stream.sink import Columns
from fisher_jax.xarray import (
    PARAMETER,
    PARAMETER_2,
    UNITS,
    Axes,
    CellArguments,
    arrange,
    as_dataset,
    attributes_of,
    coordinates_of,
    in_order,
    outputs_of_fits,
    units_of,
)

# What columns hold for a cell without data; in others it is NaN, or 0 of integers.
EMPTY = {"num_observations": 0, "status": int(Status.TOO_FEW_OBSERVATIONS)}


class Cells:
    """A labelled array as a plain one, whose first axis goes through the cells in C order, read a slice at a time."""

    def __init__(
        self, arguments: CellArguments, place: int, variable: Any, axes: Axes, sizes: Mapping[Any, int]
    ) -> None:
        self.arguments, self.about, self.variable = arguments, arguments.inputs[place], variable
        self.axes, self.sizes = axes, sizes
        rows = () if self.about.role == "start" else (math.prod(arguments.row_sizes),)
        entries = (sizes[name] for name in axes.entries if name in variable.dims)
        self.shape = (math.prod(sizes[name] for name in axes.cells), *rows, *entries)
        self.ndim, self.dtype = len(self.shape), variable.dtype

    def __getitem__(self, where: slice) -> np.ndarray:
        start, stop, _ = where.indices(self.shape[0])
        dims, parts = self.variable.dims, []
        absent = tuple(np.s_[:] if name in dims else None for name in self.axes.cells)
        for box in _boxes(tuple(self.sizes[name] for name in self.axes.cells), start, stop):
            places = {name: place for name, place in zip(self.axes.cells, box, strict=True) if name in dims}
            part = in_order(self.variable.isel(places), self.axes, self.sizes).compute().data[(*absent, ...)]
            parts.append(self.arguments.stacked(self.about, part, tuple(place.stop - place.start for place in box)))
        return np.concatenate(parts)


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


@dataclasses.dataclass(frozen=True)
class Grid:
    """The cells: their dimensions and coordinates, and what else results record of them.

    Of the `coordinates`, variables of xarray by name, those in `places` only count along a dimension that has none.
    """

    arguments: CellArguments
    sizes: dict[str, int]
    coordinates: dict[str, Any]
    places: list[str]
    num_parameters: int  # entries of them, fixed ones too
    units: list[str] | None
    attributes: dict[str, Any]

    def encoded(self, *, as_table: bool) -> "Grid":
        """With coordinates that a sink can hold: dates as numbers with a unit, or in a table those of other calendars as text."""
        encode = require("xarray", "xarray").conventions.encode_cf_variable
        coordinates = dict(self.coordinates)
        for name, variable in coordinates.items():
            kind = variable.dtype.kind
            is_text = kind in "UT" or (kind == "O" and all(isinstance(each, str) for each in variable.values.flat))
            is_other = kind == "O" and not is_text
            if is_other and not all(hasattr(each, "calendar") for each in variable.values.flat):
                raise TypeError(
                    f"the coordinate {name!r} holds objects, as {shown(variable.values.flat[0])}, which a sink cannot hold. Give "
                    "numbers, dates or text, or leave it out, by .drop_vars."
                )
            if as_table and is_other:
                text = np.array([each.isoformat() for each in variable.values.flat]).reshape(variable.shape)
                coordinates[name] = variable.copy(data=text)
            elif not as_table and not is_text:
                coordinates[name] = encode(variable)
                coordinates[name].attrs.pop("_FillValue", None)
        return dataclasses.replace(self, coordinates=coordinates)

    def described(self) -> dict[str, Any]:
        """What a manifest records of the cells."""
        return {
            "cells": self.sizes,
            "coordinates": {name: list(variable.dims) for name, variable in self.coordinates.items()},
            "places": self.places,
            "units": self.units,
            "attributes": _as_json(self.attributes),
        }

    def coordinate_attributes(self) -> dict[str, dict[str, Any]]:
        return {name: _as_json(variable.attrs) for name, variable in self.coordinates.items()}

    def columns(self, start: int, whole: np.ndarray, columns: Columns) -> Columns:
        """Columns of results for all cells from `start` on, of those for the `whole` ones, with the coordinates before them."""
        too_few = columns["status"] == Status.TOO_FEW_OBSERVATIONS
        places = np.unravel_index(np.arange(start, start + len(whole)), tuple(self.sizes.values()))
        along = dict(zip(self.sizes, places, strict=True))
        labels = {}
        for name, variable in self.coordinates.items():
            at = tuple(along[dim] for dim in variable.dims)
            labels[name] = variable.values[at] if at else np.repeat(variable.values, len(whole))
        if clash := labels.keys() & columns.keys():
            raise ValueError(f"coordinates have the names of results: {', '.join(sorted(clash))}. Rename them.")
        for name, column in columns.items():
            missing: Any = np.nan if column.dtype.kind == "f" else 0
            labels[name] = np.full((len(whole), *column.shape[1:]), EMPTY.get(name, missing), column.dtype)
            labels[name][whole] = column
            if column.dtype.kind == "f" and name not in EMPTY:
                labels[name][np.flatnonzero(whole)[too_few]] = np.nan
        return labels

    def fingerprint(self) -> dict[str, Any]:
        table: dict[str, Any] = {"cells": ", ".join(f"{name} ({size})" for name, size in self.sizes.items())}
        for name, variable in self.coordinates.items():
            values = variable.values
            table[f"coordinate {name}"] = digest(
                repr(values.tolist()).encode() if values.dtype == object else values.tobytes()
            )
        return table


def by_cell(
    model: Model, arguments: dict[str, Any], dim: Any, entry_dims: Any, kinds: tuple[str, ...]
) -> tuple[dict[str, PyTree], dict[str, PyTree], Grid]:
    """The arguments with `Cells` for what differs among cells and plain arrays for what they share, their axes, and the grid."""
    check_pytrees(**{name: arguments[name] for name in ("start", "source", "given", "weights")})
    opened = {"start": arguments["start"]}
    opened |= {name: _opened(arguments[name], name) for name in ("source", "given", "weights")}
    cells, leaves, axes, sizes, variables = arrange(model, opened, dim, entry_dims)
    if not axes.cells:
        dims = ", ".join(map(repr, (*axes.rows, *axes.entries)))
        raise ValueError(f"source has no dimensions but {dims}, so there is one data set. Use fisher_jax.fit.")
    varying = iter(variables)
    arrays = [
        Cells(cells, place, next(varying), axes, sizes) if about.varies else about.shared
        for place, about in enumerate(cells.inputs)
    ]
    marks = [0 if about.varies else None for about in cells.inputs]
    converted = dict(zip(opened, jax.tree.unflatten(cells.treedef, arrays), strict=True))
    by_name = dict(zip(opened, jax.tree.unflatten(cells.treedef, marks), strict=True))
    layout, values, outline = cells.outline([array for array in arrays if isinstance(array, Cells)])
    outputs = outputs_of_fits(layout.names, layout.dtype, kinds)
    reserved = [PARAMETER, PARAMETER_2, UNITS, *(output.name for output in outputs)]
    coordinates = _writable(coordinates_of(leaves, axes, reserved))
    xr = require("xarray", "xarray")
    grid_sizes = {str(name): sizes[name] for name in axes.cells}
    places = [name for name in grid_sizes if name not in coordinates]
    coordinates |= {name: xr.Variable(name, np.arange(grid_sizes[name])) for name in places}
    grid = Grid(
        cells,
        grid_sizes,
        coordinates,
        places,
        sum(np.size(leaf) for leaf in jax.tree.leaves(layout.assemble(values))),
        units_of(model, layout, values, outline, leaves),
        attributes_of(opened["source"], leaves),
    )
    return converted, {name: mark if jax.tree.leaves(mark) else None for name, mark in by_name.items()}, grid


def _opened(value: Any, name: str) -> PyTree:
    """The argument with Zarr arrays, groups and paths to them opened by xarray, their chunks checked."""
    xr = require("xarray", "xarray")

    def of_group(group: Any, leave_out: Sequence[str] = ()) -> Any:
        consolidated = group.metadata.consolidated_metadata is not None
        return xr.open_zarr(
            group.store, group=group.path or None, chunks=None, consolidated=consolidated, drop_variables=leave_out
        )

    def open_one(part: Any) -> Any:
        if isinstance(part, str | Path):
            if not str(part).rstrip("/").endswith(".zarr"):
                raise ValueError(
                    f"{name} {str(part)!r} does not end in .zarr: with dim, open it by xarray and give that."
                )
            part = open_path(part, name)
        if hasattr(type(part), "nchunks_initialized"):  # a Zarr array
            dims = _names_of(part)
            if not dims:
                raise ValueError(
                    f"the Zarr array {name} has no names of dimensions. Give xarray.DataArray(array, dims=(…))."
                )
            check_chunks(part, name)
            above, _, label = part.path.rpartition("/")
            if not label:  # of no group
                attributes = {key: value for key, value in part.attrs.items() if key != "_ARRAY_DIMENSIONS"}
                return xr.DataArray(require("dask.array", "xarray").from_zarr(part), dims=dims, attrs=attributes)
            group = require("zarr", "stream").open_group(part.store, path=above, mode="r")
            return of_group(group, [each for each, array in group.arrays() if array.ndim and not _names_of(array)])[
                label
            ]
        if hasattr(type(part), "group_keys"):  # a Zarr group
            for label, array in part.arrays():
                check_chunks(array, f"{name} {label}")
            return of_group(part)
        return part

    labelled = xr.Dataset | xr.DataArray
    return jax.tree.map(
        open_one, value, is_leaf=lambda part: isinstance(part, labelled) or hasattr(type(part), "group_keys")
    )


def _names_of(array: Any) -> tuple[str, ...]:
    """The names of the dimensions of a Zarr array, empty where some have none."""
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS") or ()
    return () if None in names else tuple(names)


def _writable(coords: Any) -> dict[str, Any]:
    """Coordinates as variables by name; raise for those that a sink cannot hold."""
    for name in coords:
        if getattr(coords.to_dataset().indexes.get(name), "nlevels", 1) > 1:
            raise ValueError(f"source has several labels in one along {name!r}. Unstack it, by .unstack({name!r}).")
        if len(str(name).split()) != 1 or "/" in str(name):
            raise ValueError(
                f"the coordinate {name!r} of source cannot be written. Rename it, without spaces and slashes."
            )
    return {str(name): coordinate.variable.to_base_variable() for name, coordinate in coords.items()}


def _as_json(attributes: Mapping[Any, Any]) -> dict[str, Any]:
    """What JSON holds of attributes."""
    return {
        str(key): value.item() if isinstance(value, np.generic) else value
        for key, value in attributes.items()
        if isinstance(value, str | int | float | np.number)
    }


def dataset_of(path: Path, manifest: Mapping[str, Any]) -> Any:
    """A Zarr sink as the Dataset that `fisher_jax.xarray.fit` would have made, of which only coordinates are read."""
    xr, da = require("xarray", "xarray"), require("dask.array", "xarray")
    raw = xr.open_zarr(path, chunks={})
    along, length = raw["status"].dims[0], raw.sizes[raw["status"].dims[0]]
    sizes = manifest["cells"] or {along: length}
    dims, shape = tuple(sizes), tuple(sizes.values())
    names, settings = manifest["parameters"], manifest["settings"]
    listed = (f"covariances[{k}]" for k in itertools.count())
    kinds = tuple(settings[each] for each in itertools.takewhile(settings.__contains__, listed))

    columns = {"estimate": [f"parameter {name}" if name in FACTS else name for name in names]}
    for kind in kinds:
        end, suffix = ("", "") if kind == kinds[0] else (f"_{kind}", f" ({kind})")
        columns[f"standard_error{end}"] = [f"{name} standard error{suffix}" for name in names]
        columns[f"covariance{end}"] = [f"covariance ({kind})"]
    outputs, results = outputs_of_fits(names, raw[columns["estimate"][0]].dtype, kinds), []
    for output in outputs:
        parts = [raw[column].data for column in columns.get(output.name, [output.name])]
        array = da.stack(parts, axis=-1) if output.dims == (PARAMETER,) else parts[0]
        results.append(array.reshape((*shape, *output.shape)))
    coordinates: dict[str, Any] = {}
    for name, over in manifest["coordinates"].items():
        if name not in manifest["places"]:
            values = raw[name].values.reshape(shape)[tuple(slice(None) if dim in over else 0 for dim in dims)]
            coordinates[name] = (tuple(dim for dim in dims if dim in over), values, raw[name].attrs)
    result = as_dataset(outputs, results, dims, coordinates, names, kinds).assign_attrs(manifest["attributes"])
    return result if manifest["units"] is None else result.assign_coords({UNITS: (PARAMETER, manifest["units"])})
