"""Fits of labelled arrays: one for each cell of a grid, along one dimension, from DataArrays to a Dataset.

What a call amounts to is decided here from names, coordinates and dtypes alone, before any number is read, so that the result
does not depend on how the arrays are divided: which dimensions are cells, which arrays differ among them, whether there are
weights. Then `_Cells` takes blocks of plain arrays, cells first, and returns blocks of results; in memory one block is all of it,
and of Dask-backed arrays each chunk is one, later. It goes through a block in slabs of about one size: each is a `fit_batch` on
views of the arrays, since the engine copies each of its own small chunks anyway.

`fit_stream` arranges labelled arrays by the same `arrange`, reads and fits blocks of cells by the same `CellArguments`, and
describes its results by the same `as_dataset`.
"""

import math
import threading
import uuid
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from fisher_jax.errors import check_function, entry_point, is_number, kind_of, require, shown, silent
from fisher_jax.fitting import covariance as covariances
from fisher_jax.fitting.batch import check_something_estimated
from fisher_jax.fitting.fit import batch_options, fit_batch
from fisher_jax.fitting.result import Fit
from fisher_jax.fitting.status import Status
from fisher_jax.fitting.workers import devices_of, threads_of_dask_worker
from fisher_jax.models.dataset import with_row_before
from fisher_jax.models.homogeneity import powers_of_parameters
from fisher_jax.models.likelihood import term_of, terms_at_once
from fisher_jax.models.model import Model, as_model, check_start, flatten_parameters, starting_parameters
from fisher_jax.models.parameters import Layout, Values, in_key_order, key_order, path_name
from fisher_jax.numerics.array_namespace import on_host

if TYPE_CHECKING:
    import optax
    import xarray as xr

    from fisher_jax.optimizers.newton import Newton

__all__ = ["fit"]

# A slab: cells, and bytes of their data, for each worker; of one block all workers share. Results of a slab are small beside it.
CELLS_EACH, BYTES_EACH, LEAST_WORKERS = 2**13, 2**22, 8
PARAMETER, PARAMETER_2, UNITS = "parameter", "parameter_", "units"
RAW = ("_FillValue", "missing_value", "scale_factor", "add_offset")  # attributes of what is not decoded
OF_VALUES = (
    "units",
    "standard_name",
    "long_name",
    "cell_methods",
    "valid_min",
    "valid_max",
    "valid_range",
    "actual_range",
)
NO_UNIT = ("", "1", "dimensionless")
# Parts of the library's own records that have one entry, or several, for each fit, and what their names end in.
PARTS = {
    "value": "",
    "estimate": "",
    "standard_error": "_standard_error",
    "interval": "_interval",
    "statistic": "_statistic",
    "p_value": "_p_value",
}
# Blocks of Dask's threads come at once: one at a time uses all cores, or all threads of its worker, and what is compiled for one
# serves the others.
_engine = threading.Lock()
NO_DATA = "no cell has data, so it is not known what functions return. Leave functions out."


class Leaf(NamedTuple):
    """An array of an argument: its name in messages, its role, and the labelled array."""

    name: str
    role: Literal["start", "data", "given", "weights"]
    array: Any

    @property
    def attributes(self) -> Mapping[str, Any]:
        return getattr(self.array, "attrs", {})


class Axes(NamedTuple):
    """Which dimensions are what: of the cells, of the observations, and of the entries of one of them."""

    cells: tuple[Hashable, ...]
    rows: tuple[Hashable, ...]
    entries: tuple[Hashable, ...]


class _Output(NamedTuple):
    """A variable of the result: its dimensions and shape behind those of the cells, and what it holds where there is no fit."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: Any
    empty: Any
    labels: tuple[tuple[str, Any], ...] = ()  # coordinates along its own dimensions


@entry_point
def fit(
    model: Model | Callable[..., Any],
    start: PyTree,
    data: PyTree,
    *,
    dim: Hashable | Sequence[Hashable],
    given: PyTree = None,
    weights: Any = None,
    entry_dims: Hashable | Sequence[Hashable] = (),
    functions: Mapping[str, Callable[[Fit], Any]] | None = None,
    optimizer: "optax.GradientTransformation | Newton | None" = None,
    tolerance: float | None = None,
    max_steps: int | None = None,
    strength: float | None = None,
    covariances: str | Sequence[str] = ("observed",),
    retry: bool = True,
    float64_finish: bool = False,
    engine: Literal["compiled", "kernel", "arrays", "host"] | None = None,
    devices: int | Sequence[jax.Device] | None = None,
    num_lanes: int | None = None,
) -> "xr.Dataset":
    """Fit a model along a dimension of labelled arrays, in each cell of the others (needs the extra `xarray`).

    Parameters
    ----------
    model : Model or callable
        As for `fisher_jax.fit`.
    start : pytree, or None
        Starting values, one for all cells; DataArrays over dimensions of the cells, for one each; or `None` for what the
        model's `initial` makes of each cell.
    data : DataArray, Dataset, or pytree of DataArrays
        The observations. All dimensions but `dim` and `entry_dims` are cells. A Dataset is passed to the density as a dictionary
        of its variables. They may be backed by Dask: the result is then computed when it is asked for.
    dim : str, or sequence of them
        The dimension that the observations of a cell lie along, or several: rows are then in C order of the names given.
    given : DataArray, Dataset, number, or pytree of them, optional
        Covariates, broadcast by the names of their dimensions: over `dim` only they are shared by all cells, over dimensions of the
        cells only they are the same for all observations of a cell.
    weights : DataArray, optional
        Frequency weights, broadcast like covariates. A weight of zero leaves an observation out.
    entry_dims : str, or sequence of them
        Dimensions of the entries of one observation, of its covariates or of a vector of starting values: they are passed to the
        density as axes of one array, in this order.
    functions : dict of callables, optional
        ``{name: function}``: what each function returns of the fits of a block, a `Fit` with a batch axis and its data, becomes
        variables. That is an array, or a pytree of arrays, with a first axis over the fits; or what `return_levels`,
        `delta_method`, `profile_likelihood` or a test returns, whose standard errors, intervals, statistics and p-values are
        then variables as well, ``name_standard_error`` and so on. Integers and truth values become floating numbers, so that a cell
        without a fit can be NaN.
    optimizer, tolerance, max_steps, retry, float64_finish, engine, devices, num_lanes
        As for `fit_batch`, but by default the engine is "compiled".
    strength : float, optional
        Of the model's prior, the same for all cells.
    covariances : tuple of {"observed", "expected", "empirical", "sandwich"}
        The kinds of covariance. The first gives `standard_error` and `covariance`, another `standard_error_sandwich` and so on.

    Returns
    -------
    Dataset
        With the dimensions of the cells first, their coordinates, and the attributes of the data. `estimate` and
        `standard_error` have the dimension `parameter`, which is labelled by the names of the parameters, and `covariance` has
        `parameter` and `parameter_`; `log_likelihood`, `num_observations`, `decrement`, `num_steps` and `status` are as in `Fit`,
        the last with the attributes `flag_values` and `flag_meanings` of the CF conventions. Look at it first, as in
        ``result.where(result.status <= 1)``: of a fit that did not converge the estimate is where it ended, and the standard errors
        are NaN. A cell without data, or with fewer observations than parameters and no maximum, has the status `too few
        observations` and NaN.

        Where a variable of data or covariates has the attribute `units`, the coordinate `units` along `parameter` has those of the
        parameters, as far as they follow: "1" for a number, an empty text where they do not.

    Raises
    ------
    ValueError, TypeError
        If dimensions are missing or unknown, coordinates are not aligned, an array does not hold numbers, data are chunked along
        `dim`, or other arguments do not fit together. Numerical trouble never raises: look at `status`.

    Notes
    -----
    NaN in data or covariates is a missing value: its observation gets weight zero in its cell. Infinities are not missing. A model
    of `dependent` data takes no missing values.

    In memory the work needs the arrays, the results and some hundred megabytes. Numbers are those of `fit_batch` on the same cells,
    with `engine="compiled"` and weights of zero for what is missing and else of one, to the last bit, whatever the chunks of
    Dask-backed arrays: there each block of cells is one call of the engine, one at a time in each process, since a call uses all
    cores. With `functions`, blocks are read at the call until there is a cell with data, on which it is found out what they return.

    Units follow from how the log-density scales. It is differentiated, at random points, with respect to data and parameters;
    where Euler's equation for homogeneous functions holds to rounding, with whole powers, these are the powers of the unit.
    Entries of `covariance` have the product of two units.

    Examples
    --------
    >>> import fisher_jax as fj, numpy as np, xarray as xr
    >>> counts = xr.DataArray([[2.0, 4.0, 3.0], [0.0, 1.0, np.nan]], dims=("site", "day"), coords={"site": ["a", "b"]})
    >>> result = fj.xarray.fit(fj.families.poisson, {"rate": 1.0}, counts, dim="day")
    >>> print(result.estimate.sel(parameter="rate").values.round(2), result.num_observations.values, result.status.values)
    [3.  0.5] [3. 2.] [0 0]
    """
    model = as_model(model)
    if model.auxiliary is not None:
        raise ValueError("a model with an auxiliary measurement has no labelled form yet. Use fit_batch with arrays.")
    options = batch_options(
        model,
        optimizer=optimizer,
        tolerance=tolerance,
        max_steps=max_steps,
        covariances=covariances,
        retry=retry,
        float64_finish=float64_finish,
        engine=engine,
        devices=devices,
        num_lanes=num_lanes,
    )
    settings = {
        "optimizer": options.optimizer,
        "tolerance": tolerance,
        "max_steps": max_steps,
        "strength": strength,
        "covariances": options.kinds,
        "retry": retry,
        "float64_finish": float64_finish,
        # Not by steps on the host: bits would depend on how a map is cut, and on what the process of a block has fitted before.
        "engine": engine or "compiled",
        "devices": devices,
        "num_lanes": num_lanes,
    }
    if functions is not None:
        if not isinstance(functions, Mapping) or not all(isinstance(name, str) for name in functions):
            raise TypeError(
                f"functions={shown(functions)} must be a dictionary of functions of the fits, by the name of the result."
            )
        for name, function in functions.items():
            check_function(function, f"functions[{name!r}]", "a Fit with a batch axis")
    arguments, leaves, axes, sizes, variables = arrange(
        model, {"start": start, "data": data, "given": given, "weights": weights}, dim, entry_dims
    )
    for leaf in leaves:
        _check_one_chunk(leaf, axes)
    variables = [in_order(variable, axes, sizes) for variable in variables]
    layout, values, outline = arguments.outline(variables)
    number = np.dtype(np.float64) if float64_finish else layout.dtype
    base = outputs_of_fits(layout.names, number, options.kinds)
    coords = coordinates_of(leaves, axes, [PARAMETER, PARAMETER_2, UNITS, *(output.name for output in base)])
    cells = _Cells(
        **vars(arguments),
        settings=settings,
        functions=dict(functions or {}),
        x64=bool(jax.config.read("jax_enable_x64")),
        outputs=tuple(base),
        of_functions=None if functions else (),
    )
    if any(variable.chunks is not None for variable in variables):
        outputs, results = _lazily(cells, variables, axes)
    else:
        outputs, results = cells.fit(_arrays_of(variables, axes))
    result = as_dataset(outputs, results, axes.cells, coords, layout.names, options.kinds)
    if (units := units_of(model, layout, values, outline, leaves)) is not None:
        result = result.assign_coords({UNITS: (PARAMETER, _label(units))})
    return result.assign_attrs(attributes_of(data, leaves))


def arrange(
    model: Model, arguments: Mapping[str, PyTree], dim: Any, entry_dims: Any
) -> tuple["CellArguments", list[Leaf], Axes, dict[Hashable, int], list[Any]]:
    """What the arguments amount to: how blocks of cells are put together, all arrays, their dimensions, and those that differ.

    `arguments` are start, data, given and weights in this order, by the names that they have in messages. The arrays that differ
    among cells are returned as they are, variables of xarray, of which nothing is read.
    """
    xr = require("xarray", "xarray")
    roles: dict[Any, str] = dict(zip(("start", "data", "given", "weights"), arguments, strict=True))
    trees = {role: _plain_tree(xr, role, arguments[name]) for role, name in roles.items()}
    leaves = [leaf for role, name in roles.items() for leaf in _leaves_of(xr, role, name, trees[role])]
    labelled = [leaf for leaf in leaves if isinstance(leaf.array, xr.DataArray)]
    axes = _axes_of(
        [leaf for leaf in labelled if leaf.role == "data"], _names(dim, "dim"), _names(entry_dims, "entry_dims")
    )
    for leaf in labelled:
        _check_dimensions(leaf, axes)
    _check_aligned(labelled)
    sizes: dict[Hashable, int] = {}
    for leaf in labelled:
        sizes |= leaf.array.sizes
    if not all(sizes[name] for name in (*axes.cells, *axes.rows)):
        empty = next(name for name in (*axes.cells, *axes.rows) if not sizes[name])
        raise ValueError(f"the dimension {empty!r} has length 0: there is nothing to fit.")

    # What all cells share is passed as it is; what differs, with the dimensions of the cells that it has.
    row_sizes = tuple(sizes[name] for name in axes.rows)
    is_varying = [
        isinstance(leaf.array, xr.DataArray) and bool(set(leaf.array.dims) & {*axes.cells}) for leaf in leaves
    ]
    of_data = [k for k, leaf in enumerate(leaves) if leaf.role == "data"]
    if not any(is_varying[k] for k in of_data):  # one cell, or one data set from several starts
        is_varying[of_data[0]] = True
    inputs, variables = [], []
    for leaf, varies in zip(leaves, is_varying, strict=True):
        array, has_rows, num_entries = leaf.array, False, np.ndim(leaf.array)
        if isinstance(array, xr.DataArray):
            has_rows = bool(set(array.dims) & set(axes.rows))
            num_entries = sum(name in axes.entries for name in array.dims)
            if varies:
                variables.append(array.variable)
            else:
                array = np.asarray(in_order(array.variable, axes, sizes).compute().data)
                array = _with_rows(array, has_rows, row_sizes, (), leaf.role)
        elif leaf.role == "given":
            array = np.broadcast_to(array, (math.prod(row_sizes),))
        inputs.append(_Input(leaf.name, leaf.role, None if varies else array, has_rows, num_entries))
    treedef, start_order = jax.tree.structure(tuple(trees.values())), key_order(trees["start"])
    cells = CellArguments(model, treedef, start_order, tuple(inputs), row_sizes)
    return cells, leaves, axes, sizes, variables


def _names(names: Any, argument: str) -> tuple[Hashable, ...]:
    """One name or several, as a tuple; raise where one comes twice."""
    listed = tuple(names) if isinstance(names, list | tuple) else (names,)
    try:
        distinct = set(listed)
    except TypeError:  # arrays and dictionaries have no hash
        raise TypeError(f"{argument}={shown(names)} must be the name of a dimension, or a list of names.") from None
    if len(distinct) != len(listed):
        raise ValueError(f"{argument}={names!r} names a dimension twice.")
    if argument == "dim" and not listed:
        raise ValueError("dim is empty. Name the dimension that the observations of a cell lie along.")
    return listed


def _plain_tree(xr: Any, role: str, tree: PyTree) -> PyTree:
    """The argument with Datasets as dictionaries of their variables."""

    def is_labelled(part: Any) -> bool:
        return isinstance(part, xr.Dataset | xr.DataArray)

    def as_dictionary(part: Any) -> Any:
        if not isinstance(part, xr.Dataset):
            return _Box(part) if isinstance(part, xr.DataArray) else part
        if not part.data_vars:
            raise ValueError(f"{role} is a Dataset without variables.")
        return {name: _Box(array) for name, array in part.data_vars.items()}

    order = key_order(tree)
    plain = jax.tree.map(as_dictionary, tree, is_leaf=is_labelled)
    return in_key_order(plain, order) if role == "start" else plain


class _Box:
    """A DataArray as a leaf of pytrees, whatever another library may have registered."""

    def __init__(self, array: Any) -> None:
        self.array = array


def _leaves_of(
    xr: Any, role: Literal["start", "data", "given", "weights"], argument: str, tree: PyTree
) -> Iterator[Leaf]:
    """The arrays of an argument, each checked to be of numbers."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    if role == "data" and not leaves:
        raise ValueError(
            f"{argument} holds no array. Give a DataArray, a Dataset, or a dictionary or tuple of DataArrays."
        )
    for path, leaf in leaves:
        name = f"{argument} {path_name(path)}" if path else argument
        if isinstance(leaf, _Box):
            _check_numbers(name, leaf.array)
            yield Leaf(name, role, leaf.array)
        elif role == "start" or (role == "given" and is_number(leaf)):
            yield Leaf(name, role, leaf)
        else:
            raise TypeError(
                f"{name} is {shown(leaf)}, an object of {kind_of(leaf)} without names of dimensions. Give a DataArray, "
                "xarray.DataArray(values, dims=(…)): arrays are matched by the names of their dimensions. "
                "For plain arrays use fisher_jax.fit_batch."
            )


def _check_numbers(name: str, array: Any) -> None:
    """Raise for dates, text and other objects, for what is not decoded, and for arrays that hide more than numbers."""
    if len(set(array.dims)) != len(array.dims):
        raise ValueError(f"{name} has a dimension twice: {array.dims}. Rename one.")
    raw = [attribute for attribute in RAW if attribute in array.attrs]
    if raw:
        raise ValueError(
            f"{name} has the attribute {raw[0]}, so it was opened without decoding: missing values would count as numbers. "
            "Decode it, by xarray.decode_cf(dataset), or open it with mask_and_scale=True."
        )
    kind = array.dtype.kind
    if kind == "M" or (kind == "O" and array.size and _is_date(array)):
        raise TypeError(
            f"{name} holds dates ({array.dtype}); a density takes numbers. Give the year, array.dt.year, or the time since the "
            "first, as a number of days or years."
        )
    if kind == "m":
        raise TypeError(
            f'{name} holds durations ({array.dtype}). Give them in a unit, as array / np.timedelta64(1, "D").'
        )
    if kind not in "biuf":
        how = (
            "Encode text and categories as numbers first." if kind in "OSU" else "Give their real and imaginary parts."
        )
        raise TypeError(f"{name}: expected numbers, got an array of dtype {array.dtype}. {how}")
    array_type = type(array.data)
    if not array_type.__module__.startswith(("numpy", "xarray", "dask", "jax", "pandas")):
        raise TypeError(
            f"{name} is in a {array_type.__module__}.{array_type.__name__}, of which units or a layout would be lost. Give "
            "numpy's or Dask's arrays: array.as_numpy(), or array.pint.dequantify()."
        )


def _is_date(array: Any) -> bool:
    first = array.isel(dict.fromkeys(array.dims, 0)).values.item()
    return hasattr(first, "year") and hasattr(first, "month")


def _axes_of(data: list[Leaf], rows: tuple[Hashable, ...], entries: tuple[Hashable, ...]) -> Axes:
    """The dimensions of cells, observations and entries, in the order of the data."""
    names = list(dict.fromkeys(name for leaf in data for name in leaf.array.dims))
    for leaf in data:
        missing = [name for name in rows if name not in leaf.array.dims]
        if missing:
            raise ValueError(
                f"{leaf.name} has no dimension {missing[0]!r}, along which observations lie by dim=; it has "
                f"{', '.join(map(repr, leaf.array.dims)) or 'none'}. Name another, or leave this variable out."
            )
    both = set(rows) & set(entries)
    if both:
        raise ValueError(f"{min(map(str, both))!r} is in dim and in entry_dims; an axis is one or the other.")
    cells = tuple(name for name in names if name not in rows and name not in entries)
    return Axes(cells, rows, entries)


def _check_dimensions(leaf: Leaf, axes: Axes) -> None:
    """Raise for a dimension that is neither one of the data nor announced."""
    dims = leaf.array.dims
    allowed = {"start": (*axes.cells, *axes.entries), "weights": (*axes.cells, *axes.rows)}.get(
        leaf.role, (*axes.cells, *axes.rows, *axes.entries)
    )
    strange = [name for name in dims if name not in allowed]
    if strange:
        hint = "entry_dims=… lists which dimensions are entries of one observation or covariate"
        if leaf.role == "start":
            hint = "one start for each cell has dimensions of the cells only"
        if leaf.role == "weights":
            hint = "weights have dimensions of the cells and dim only"
        raise ValueError(
            f"{leaf.name} has the dimension {strange[0]!r}; expected some of {', '.join(map(repr, allowed))} ({hint})."
        )


def _check_one_chunk(leaf: Leaf, axes: Axes) -> None:
    """Raise where an array of Dask is in chunks along a dimension that a fit needs whole."""
    for name, chunks in getattr(leaf.array, "chunksizes", {}).items():
        if name not in axes.cells and len(chunks) > 1:
            raise ValueError(
                f"{leaf.name} is in {len(chunks)} chunks along {name!r}, and a fit needs all observations of a cell. Make them one "
                f"chunk, with smaller ones along other dimensions: .chunk({{{name!r}: -1, {(axes.cells or ('x',))[0]!r}: 100}})."
            )


def _check_aligned(leaves: list[Leaf]) -> None:
    """Raise where two arrays have other lengths or coordinates along a dimension of one name."""
    firsts: dict[Hashable, Leaf] = {}
    indexed: dict[Hashable, Leaf] = {}
    for leaf in leaves:
        for name in leaf.array.dims:
            first = firsts.setdefault(name, leaf)
            index = leaf.array.indexes.get(name)
            other = None if index is None else indexed.setdefault(name, leaf)
            reference = other or first
            how = (
                f'Align them, by xarray.align(…, join="inner"), or by .reindex_like(…, method="nearest", tolerance=…) where '
                f"coordinates along {name!r} differ by rounding."
            )
            if leaf.array.sizes[name] != first.array.sizes[name]:
                raise ValueError(
                    f"{first.name} and {leaf.name} have {first.array.sizes[name]} and {leaf.array.sizes[name]} places along "
                    f"{name!r}. {how}"
                )
            if other is None or other is leaf or index.equals(other.array.indexes[name]):
                continue
            before = other.array.indexes[name]
            calendars = [_calendar(before), _calendar(index)]
            if calendars[0] != calendars[1]:
                raise ValueError(
                    f"{reference.name} and {leaf.name} have different calendars along {name!r}: {calendars[0]} and {calendars[1]}. "
                    'Convert one, by .convert_calendar("standard").'
                )
            place = next(
                k for k, (a, b) in enumerate(zip(before, index, strict=True)) if a != b and not (a != a and b != b)
            )
            raise ValueError(
                f"{reference.name} and {leaf.name} have different coordinates along {name!r}, first at place {place}: "
                f"{before[place]} and {index[place]}. {how}"
            )


def _calendar(index: Any) -> str:
    """The calendar of an index of dates; empty for others."""
    if hasattr(index, "calendar"):
        return str(index.calendar)
    return "standard" if getattr(index.dtype, "kind", "") == "M" else ""


def in_order(variable: Any, axes: Axes, sizes: Mapping[Hashable, int]) -> Any:
    """The variable with cells first, then all dimensions of observations or none, then entries."""
    if set(variable.dims) & set(axes.rows):
        missing = {name: sizes[name] for name in axes.rows if name not in variable.dims}
        variable = variable.set_dims({**missing, **variable.sizes})
    return variable.transpose(*(name for name in (*axes.cells, *axes.rows, *axes.entries) if name in variable.dims))


def _with_rows(array: Any, has_rows: bool, row_sizes: tuple[int, ...], cells: tuple[int, ...], role: str) -> Any:
    """An array (*cells, n, …) of one (*cells, *rows, …), or of one that is the same for all observations."""
    if role == "start":
        return array
    rest = array.shape[len(cells) + len(row_sizes) * has_rows :]
    if has_rows:
        return array.reshape(*cells, math.prod(row_sizes), *rest)
    whole = array.reshape(*cells, 1, *rest)
    return np.broadcast_to(whole, (*cells, math.prod(row_sizes), *rest))


class _Input(NamedTuple):
    """What a block function must know of an array: its role, itself if all cells share it, and its axes behind those of cells."""

    name: str
    role: str
    shared: Any  # None where it differs among cells
    has_rows: bool
    num_entries: int

    @property
    def varies(self) -> bool:
        return self.shared is None


class _Slab(NamedTuple):
    """Cells that one call of the engine fits: their place in the block, which of them have data, and arguments of `fit_batch`."""

    place: tuple[slice, ...]
    has_data: np.ndarray
    arguments: dict[str, Any]


@dataclass(frozen=True)
class CellArguments:
    """Makes the arguments of `fit_batch` of plain arrays of some cells.

    `inputs` describes each array, in the order of the leaves of (start, data, given, weights), which `treedef` puts together.
    """

    model: Model
    treedef: Any
    start_order: Any
    inputs: tuple[_Input, ...]
    row_sizes: tuple[int, ...]

    def stacked(self, leaf: _Input, part: Any, cells: tuple[int, ...]) -> np.ndarray:
        """The slab of one array with one axis for cells and, unless it is a start, one for observations; a view if it can be."""
        if isinstance(part, np.ma.MaskedArray):  # of Dask only: xarray's own arrays have NaN
            part = np.ma.filled(part.astype(np.result_type(part.dtype, np.float32)), np.nan)
        part = np.asarray(part)
        count = len(self.row_sizes) * leaf.has_rows + leaf.num_entries
        behind = part.shape[part.ndim - count :]
        part = np.broadcast_to(part, (*cells, *behind)).reshape(math.prod(cells), *behind)
        return _with_rows(part, leaf.has_rows, self.row_sizes, part.shape[:1], leaf.role)

    def of_cells(self, leaves: list[Any], *, at_least_one: bool = False) -> tuple[np.ndarray, dict[str, Any]]:
        """Which cells have data, (B,), and the arguments of `fit_batch` for these, none where there are none.

        Missing values have weight zero, with the observation before in their places. With `at_least_one` the first cell counts as
        one with data where none has: its fit has the status of one without.
        """
        leaves = list(leaves)
        size = next(len(leaf) for leaf, about in zip(leaves, self.inputs, strict=True) if about.varies)
        roles = [about.role for about in self.inputs]
        left_out: Any = False
        missing = [
            _missing(leaf, 1 + about.varies) if about.role in ("data", "given") else None
            for leaf, about in zip(leaves, self.inputs, strict=True)
        ]
        for places in missing:
            left_out = left_out if places is None else left_out | places
        weights_at = roles.index("weights") if "weights" in roles else None
        has_missing = bool(np.any(left_out))
        if self.model.is_dependent and has_missing:
            raise ValueError(
                "there are missing values (NaN), and the model is `dependent`: a weight of zero leaves out a term, but "
                "the missing value would enter those after it. Fill them in, with an indicator as given=, "
                "by which the terms leave them out."
            )
        weights: Any = None
        if weights_at is not None:
            weights = np.where(left_out, 0, leaves[weights_at]) if has_missing else leaves[weights_at]
            if np.any(np.isnan(weights)):
                raise ValueError(
                    f"{self.inputs[weights_at].name} is missing (NaN) where data are not. Give an observation that is to be left "
                    "out weight zero, by .fillna(0)."
                )
        elif any(places is not None for places in missing) and not self.model.is_dependent:
            # By the dtypes alone, so that all slabs and chunks run one program. One byte each, since they are copied.
            weights = (~np.broadcast_to(left_out, (size, math.prod(self.row_sizes)))).view(np.uint8)
        whole = np.ones(size, bool)
        if weights is not None:
            weights = np.broadcast_to(weights, (size, weights.shape[-1]))
            if has_missing or weights_at is not None:
                whole = np.any(weights != 0, axis=1)
        if not whole.any():
            if not at_least_one:
                return whole, {}
            whole[0] = True
        chosen: Any = None if whole.all() else whole
        for k, (about, places) in enumerate(zip(self.inputs, missing, strict=True)):
            if about.varies and chosen is not None:
                leaves[k], places = leaves[k][chosen], None if places is None else places[chosen]
            if places is not None and places.any():
                leaves[k] = _filled(leaves[k], places)
        weights = weights if weights is None or chosen is None else weights[chosen]
        if weights_at is not None:
            leaves[weights_at] = weights
        start, data, given, _ = jax.tree.unflatten(self.treedef, leaves)
        start = in_key_order(start, self.start_order)
        marks = jax.tree.unflatten(self.treedef, [0 if about.varies else -1 for about in self.inputs])
        axes = jax.tree.map(lambda mark: None if mark < 0 else 0, marks)
        arguments = {"start": start, "data": data, "given": given, "weights": weights}
        return whole, arguments | dict(zip(("start_axis", "data_axis", "given_axis"), axes, strict=False))

    def outline(self, variables: Sequence[Any]) -> tuple[Layout, Values, tuple[PyTree, PyTree]]:
        """The parameters, their start as far as all cells share it, and the shapes of an observation and its covariates.

        Of `variables`, the arrays that differ, only dtypes and the lengths of the axes of entries count. Traces the density
        once, so that an error in it is raised at the call, also where the fits come later.
        """
        n, varying, outlines, starts = math.prod(self.row_sizes), iter(variables), [], []
        start_order = self.start_order
        for about in self.inputs:
            array = next(varying) if about.varies else about.shared
            entries = np.shape(array)[np.ndim(array) - about.num_entries :]
            dtype = jax.dtypes.canonicalize_dtype(np.dtype(getattr(array, "dtype", type(array))).newbyteorder("="))
            leading = () if about.role == "start" else (n,)
            outlines.append(jax.ShapeDtypeStruct((*leading, *entries), dtype))
            if about.role == "start":
                starts.append(np.full(entries, np.nan, array.dtype) if about.varies else array)
        start, data, given, _ = jax.tree.unflatten(self.treedef, [*starts, *outlines[len(starts) :]])
        if start is None:
            orders: list[Any] = []

            def initial(data: PyTree, given: PyTree) -> PyTree:
                params = starting_parameters(self.model, None, data, given)
                orders.append(key_order(params))
                return params

            shapes = jax.eval_shape(initial, data, given)
            nan = jax.tree.map(
                lambda leaf: np.full(leaf.shape, np.nan if leaf.dtype.kind == "f" else 0, leaf.dtype), shapes
            )
            start, start_order = nan, orders[0]
        layout, values = flatten_parameters(self.model, in_key_order(start, start_order))
        check_something_estimated(layout)
        if starts and not any(about.varies for about in self.inputs if about.role == "start"):
            check_start(layout, values)
        params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), layout.dtype), layout.assemble(values))
        if not self.model.is_dependent:
            data, given = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), (data, given))
        of_rows = terms_at_once if self.model.is_dependent else term_of
        jax.eval_shape(
            lambda params, y, *z: of_rows(self.model, params, y, z), params, data, *(() if given is None else (given,))
        )
        return layout, values, (data, given)


@dataclass(frozen=True)
class _Cells(CellArguments):
    """Fits the cells of a block: a function of plain arrays, which other threads and processes can call.

    `outputs` are the variables that every result has, `of_functions` those that `functions` add, None until they are known.
    """

    settings: dict[str, Any]
    functions: dict[str, Callable[[Fit], Any]]
    x64: bool
    outputs: tuple[_Output, ...] = field(repr=False)
    of_functions: tuple[_Output, ...] | None = field(repr=False)

    def __dask_tokenize__(self) -> str:
        return uuid.uuid4().hex  # functions of a user have no name that surely distinguishes them

    def __call__(self, *arrays: Any) -> tuple[np.ndarray, ...]:
        """The variables of the result of a block whose outputs are known."""
        return tuple(self.fit(arrays)[1])

    def fit(self, arrays: Sequence[Any]) -> tuple[list[_Output], list[np.ndarray]]:
        """What the results are, and the results, each with the axes of the cells first."""
        shape, prepared = self._slabs_of(arrays)
        outputs: list[_Output] = []
        results: list[np.ndarray] = []

        def add(new: Sequence[_Output]) -> None:
            outputs.extend(new)
            results.extend(np.full((*shape, *output.shape), output.empty, output.dtype) for output in new)

        def store(slab: _Slab, fits: Fit, others: list[np.ndarray]) -> None:
            with jax.enable_x64(self.x64), silent():
                numbers = [*_numbers_of(fits), *others]
            for result, output, part in zip(results, outputs, numbers, strict=True):
                # A view, since slabs are contiguous; the ellipsis keeps a result without axes from becoming a number.
                place: Any = (*slab.place, ...)
                result[place].reshape(-1, *output.shape)[slab.has_data] = part

        add(self.outputs)
        of_functions = self.of_functions
        add(of_functions or ())
        # Beside the engine a thread prepares the next slab and stores the results of the last, in the order they are submitted.
        with ThreadPoolExecutor(1, thread_name_prefix="fisher_jax slabs") as beside:
            following, stored = beside.submit(next, prepared, None), []
            while (slab := following.result()) is not None:
                following = beside.submit(next, prepared, None)
                if not slab.has_data.any():
                    continue
                fits, of_fits = self._fit_slab(slab)
                new = [output for output, _ in of_fits]
                if of_functions is None:  # the first fits show what functions return
                    add(new)
                    of_functions = tuple(new)
                if [(output.name, output.shape) for output in new] != [
                    (output.name, output.shape) for output in of_functions
                ]:
                    both = [sorted(f"{output.name} {output.shape}" for output in some) for some in (of_functions, new)]
                    raise ValueError(
                        f"functions return {', '.join(both[1])} for some cells, and {', '.join(both[0])} for others: the "
                        "names and shapes must be the same for all."
                    )
                stored.append(beside.submit(store, slab, fits, [numbers for _, numbers in of_fits]))
            for future in stored:
                future.result()
        if of_functions is None:
            raise ValueError(NO_DATA)
        return outputs, results

    def learn(self, arrays: Sequence[Any]) -> tuple[_Output, ...] | None:
        """The variables that functions return, from the first cells with data; None where there are none."""
        for slab in self._slabs_of(arrays)[1]:
            if slab.has_data.any():
                return tuple(output for output, _ in self._fit_slab(slab, 2)[1])
        return None

    def _slabs_of(self, arrays: Sequence[Any]) -> tuple[tuple[int, ...], Iterator[_Slab]]:
        """The sizes of the block along the dimensions of cells, and its cells in slabs, each prepared when it is asked for."""
        varying = [leaf for leaf in self.inputs if leaf.varies]
        behind = [len(self.row_sizes) * leaf.has_rows + leaf.num_entries for leaf in varying]
        splits = [array.ndim - count for array, count in zip(arrays, behind, strict=True)]
        shape = np.broadcast_shapes(*(array.shape[:split] for array, split in zip(arrays, splits, strict=True)))
        bytes_each = sum(
            array.dtype.itemsize * math.prod(array.shape[split:]) for array, split in zip(arrays, splits, strict=True)
        )

        # Settings of Dask and JAX that hold for this thread decide how many workers there are.
        places = _places(shape, bytes_each, len(devices_of(self.settings["devices"])))

        def slabs() -> Iterator[_Slab]:
            for place in places:
                cells, parts = tuple(cut.stop - cut.start for cut in place), []
                for leaf, array, split in zip(varying, arrays, splits, strict=True):
                    # By name an array may lack dimensions of the cells, or have them with length one.
                    sides = zip(array.shape[:split], place[len(shape) - split :], strict=True)
                    part = array[tuple(np.s_[:] if size == 1 else cut for size, cut in sides)]
                    parts.append(self.stacked(leaf, part, cells))
                rest = iter(parts)
                leaves = [next(rest) if leaf.varies else leaf.shared for leaf in self.inputs]
                yield _Slab(place, *self.of_cells(leaves))

        return shape, slabs()

    def _fit_slab(self, slab: _Slab, most: int | None = None) -> tuple[Fit, list[tuple[_Output, np.ndarray]]]:
        """Its fits, and what functions return of them, or of the first `most`."""
        settings, results = self.settings, []
        if settings["devices"] is None:
            settings = settings | {"devices": threads_of_dask_worker()}
        with _engine, jax.enable_x64(self.x64), silent():
            fits = fit_batch(self.model, **slab.arguments, **settings)[:most]
            for name, function in self.functions.items():
                for output, numbers in _outputs_of(name, function(fits), len(fits)):
                    too_few = (fits.status_code == Status.TOO_FEW_OBSERVATIONS).reshape(-1, *(1,) * len(output.shape))
                    results.append((output, np.where(too_few, np.nan, numbers)))
        return fits, results


def _places(shape: tuple[int, ...], bytes_each: int, num_workers: int) -> Iterator[tuple[slice, ...]]:
    """Parts of the cells, of nearly the same size: whole along the last axes, single along the first."""
    workers = max(LEAST_WORKERS, num_workers)
    most = max(1, min(CELLS_EACH * workers, BYTES_EACH * workers // max(bytes_each, 1)))
    axis = next((k for k in range(len(shape)) if math.prod(shape[k + 1 :]) <= most), 0)
    if not shape:
        yield ()
        return
    rest = tuple(slice(0, size) for size in shape[axis + 1 :])
    count = -(-shape[axis] * math.prod(shape[axis + 1 :]) // most)
    step = -(-shape[axis] // count)
    for first in np.ndindex(shape[:axis]):
        for at in range(0, shape[axis], step):
            yield (*(slice(k, k + 1) for k in first), slice(at, min(at + step, shape[axis])), *rest)


def _missing(leaf: Any, num_axes: int) -> Any:
    """Where an observation lacks an entry, (n,) or (B, n) as the array has them; None of numbers that cannot be missing."""
    if np.asarray(leaf).dtype.kind != "f":
        return None
    places = np.isnan(leaf)
    return places.any(axis=tuple(range(num_axes, places.ndim))) if places.ndim > num_axes else places


def _filled(leaf: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The array with the observation before in place of those with a missing entry: weighed by zero, but inside the support."""
    if places.ndim == 1:
        return with_row_before(leaf, places)
    rows = np.flatnonzero(places.any(axis=1))
    leaf = leaf.copy(order="K")
    leaf[rows] = with_row_before(leaf[rows], places[rows])
    return leaf


def outputs_of_fits(names: Sequence[str], number: Any, kinds: tuple[str, ...]) -> list[_Output]:
    """The variables that every result has, in the order of `_numbers_of`; `number` is the dtype of estimates."""
    q, precise = len(names), jax.dtypes.canonicalize_dtype(np.float64)
    outputs = [_Output("estimate", (PARAMETER,), (q,), number, np.nan)]
    for kind in kinds:
        suffix = "" if kind == kinds[0] else f"_{kind}"
        outputs.append(_Output(f"standard_error{suffix}", (PARAMETER,), (q,), precise, np.nan))
        outputs.append(_Output(f"covariance{suffix}", (PARAMETER, PARAMETER_2), (q, q), precise, np.nan))
    return [
        *outputs,
        _Output("log_likelihood", (), (), number, np.nan),
        _Output("num_observations", (), (), number, 0),
        _Output("decrement", (), (), number, np.nan),
        _Output("num_steps", (), (), np.int32, 0),
        _Output("status", (), (), np.int8, int(Status.TOO_FEW_OBSERVATIONS)),
    ]


def _numbers_of(fits: Fit) -> list[Any]:
    """Their numbers, of many fits; no estimate where there were too few observations for one."""
    estimate, log_likelihood, decrement = (
        np.array(part) for part in (fits.layout.join(on_host(fits.values)), fits.log_likelihood, fits.decrement)
    )
    too_few = fits.status_code == Status.TOO_FEW_OBSERVATIONS
    for part in (estimate, log_likelihood, decrement):
        part[too_few] = np.nan
    numbers = [estimate]
    for kind in fits.kinds:
        matrix = fits._computed(covariances.covariance, kind)
        with np.errstate(invalid="ignore"):
            numbers += [covariances.root_diagonal(matrix), matrix]
    return [*numbers, log_likelihood, fits.num_observations, decrement, fits.num_steps, fits.status_code]


def _outputs_of(name: str, result: Any, count: int) -> list[tuple[_Output, np.ndarray]]:
    """What a function returned of so many fits, in variables."""
    is_record = type(result).__module__.startswith("fisher_jax.")
    parts = {suffix: getattr(result, part) for part, suffix in PARTS.items() if hasattr(result, part)}
    if isinstance(result, Fit) or (is_record and not parts):
        raise TypeError(
            f"functions[{name!r}] returned {kind_of(result)}, which has no numbers for each fit. Return "
            "arrays with a first axis over the fits."
        )
    if is_record and "" in parts and hasattr(result, "value") and hasattr(result, "estimate"):
        parts[""] = result.estimate  # of a profile, whose `value` is the curve
    outputs = []
    for suffix, part in (parts if is_record else {"": result}).items():
        for path, leaf in jax.tree_util.tree_flatten_with_path(part)[0]:
            try:
                numbers = np.asarray(leaf)
            except (TypeError, ValueError) as error:
                raise TypeError(f"functions[{name!r}] returned {shown(leaf)}; expected arrays of numbers.") from error
            if numbers.dtype.kind not in "biuf" or numbers.shape[:1] != (count,):
                raise ValueError(
                    f"functions[{name!r}] returned an array of shape {numbers.shape} and dtype {numbers.dtype} for {count} fits; "
                    "expected numbers with a first axis over the fits."
                )
            key = "_" + path_name(path).replace(".", "_") if path else ""
            dims, labels = _dimensions(name, f"{name}{key}", suffix, result if is_record else None, numbers.shape[1:])
            dtype = numbers.dtype if numbers.dtype.kind == "f" else np.dtype(np.float64)
            output = _Output(f"{name}{key}{suffix}", dims, numbers.shape[1:], dtype, np.nan, labels)
            outputs.append((output, numbers))
    return outputs


def _dimensions(
    name: str, whole: str, suffix: str, record: Any, shape: tuple[int, ...]
) -> tuple[tuple[str, ...], tuple[tuple[str, Any], ...]]:
    """Names for the axes of a function's result, and labels along them where its record has some."""
    dims = [f"{whole}_dim_{k}" for k in range(len(shape))]
    labels: list[tuple[str, Any]] = []
    if record is not None and shape:
        for attribute, word in (("periods", "period"), ("names", PARAMETER)):
            along = getattr(record, attribute, ())
            if len(along) == shape[0] and not labels:
                dims[0] = f"{name}_{word}"
                labels.append((dims[0], tuple(along)))
        if suffix == PARTS["interval"]:
            dims[-1] = f"{name}_end"
            labels.append((dims[-1], ("lower", "upper")))
    return tuple(dims), tuple(labels)


def coordinates_of(leaves: list[Leaf], axes: Axes, reserved: list[str]) -> Any:
    """The coordinates of the cells: those of the data that have no other dimension, where they do not contradict each other."""
    coords: Any = None
    for leaf in leaves:
        if leaf.role != "data":
            continue
        others = [name for name in leaf.array.dims if name not in axes.cells]
        along = [name for name, coord in leaf.array.coords.items() if set(coord.dims) & set(others)]
        mine = leaf.array.drop_vars(along).isel(dict.fromkeys(others, 0), drop=True).coords
        coords = mine if coords is None else coords.merge(mine).coords
    reserved_names = [name for name in (*axes.cells, *coords) if name in reserved]
    if reserved_names:
        raise ValueError(
            f"data have a dimension or coordinate {reserved_names[0]!r}, which is a name in the result. Rename it, by .rename."
        )
    return coords


def _arrays_of(variables: list[Any], axes: Axes) -> list[Any]:
    """Their arrays, with an axis of length one for each dimension of the cells that they lack."""
    return [
        variable.data[(*(np.s_[:] if name in variable.dims else None for name in axes.cells), ...)]
        for variable in variables
    ]


def _lazily(cells: _Cells, variables: list[Any], axes: Axes) -> tuple[list[_Output], list[Any]]:
    """The results of Dask-backed arrays, which are computed a block at a time when they are asked for."""
    xr = require("xarray", "xarray")
    if cells.of_functions is None:
        # As if chunks were those of the results: a block of each array at the same cells.
        chunks = xr.Dataset(dict(enumerate(variables))).unify_chunks().chunksizes
        divided = [name for name in axes.cells if name in chunks]
        edges = {name: np.cumsum([0, *chunks[name]]) for name in divided}
        for numbers in np.ndindex(*(len(chunks[name]) for name in divided)):
            cut = {name: slice(*edges[name][k : k + 2]) for name, k in zip(divided, numbers, strict=True)}
            block = [part.isel(cut, missing_dims="ignore").compute() for part in variables]
            of_functions = cells.learn(_arrays_of(block, axes))
            if of_functions is not None:
                cells = replace(cells, of_functions=of_functions)
                break
        else:
            raise ValueError(NO_DATA)
    outputs = [*cells.outputs, *(cells.of_functions or ())]
    sizes = {name: size for output in outputs for name, size in zip(output.dims, output.shape, strict=True)}
    results = xr.apply_ufunc(
        cells,
        *variables,
        input_core_dims=[[name for name in variable.dims if name not in axes.cells] for variable in variables],
        output_core_dims=[output.dims for output in outputs],
        dask="parallelized",
        output_dtypes=[output.dtype for output in outputs],
        dask_gufunc_kwargs={"output_sizes": sizes},
    )
    order = [(*axes.cells, *output.dims) for output in outputs]
    return outputs, [result.transpose(*dims).data for result, dims in zip(results, order, strict=True)]


# Attributes of the facts of a fit, by the conventions for climate and forecast data (CF); `flags` makes those of codes.
FACTS_BY_CF: dict[str, dict[str, Any]] = {
    "log_likelihood": {"long_name": "log-likelihood in nats, total over the observations", UNITS: "1"},
    "num_observations": {"long_name": "number of observations, or sum of their weights", UNITS: "1"},
    "decrement": {"long_name": "distance to the maximum in standard errors", UNITS: "1"},
    "num_steps": {"long_name": "steps of the optimiser", UNITS: "1"},
    "status": {"long_name": "how the fit ended"},
    "attempt": {"long_name": "where the fit started"},
}
STATUS_LABELS = {int(status): status.label for status in Status}


def flags(labels: Mapping[int, str]) -> dict[str, Any]:
    """The attributes that give the meaning of codes."""
    meanings = " ".join(label.replace(" ", "_") for label in labels.values())
    return {"flag_values": np.array(list(labels), np.int8), "flag_meanings": meanings}


def as_dataset(
    outputs: list[_Output],
    results: list[Any],
    cells: tuple[Hashable, ...],
    coords: Any,
    names: Sequence[str],
    kinds: tuple[str, ...],
) -> Any:
    """The Dataset, each variable with its attributes."""
    xr = require("xarray", "xarray")
    descriptions = FACTS_BY_CF | {"estimate": {"long_name": "maximum-likelihood estimate"}}
    descriptions["status"] = descriptions["status"] | flags(STATUS_LABELS)
    for kind in kinds:
        suffix = "" if kind == kinds[0] else f"_{kind}"
        for name, what in (("standard_error", "standard error"), ("covariance", "covariance")):
            long_name = f"{what} of the estimate, by the {covariances.DESCRIPTIONS[kind]}"
            descriptions[f"{name}{suffix}"] = {"long_name": long_name, "kind": kind}
    variables = {
        output.name: ((*cells, *output.dims), result, descriptions.get(output.name, {}))
        for output, result in zip(outputs, results, strict=True)
    }
    labels: dict[str, Any] = {PARAMETER: names}
    if kinds:
        labels[PARAMETER_2] = names
    for output in outputs:
        labels |= dict(output.labels)
    return xr.Dataset(variables, coords=coords).assign_coords(
        {name: (name, _label(along)) for name, along in labels.items()}
    )


def _label(along: Sequence[Any]) -> np.ndarray:
    """Labels as an array; text as objects, since Zarr has no specification for text of fixed length."""
    return np.array(along, object if isinstance(along[0], str) else None)


def attributes_of(data: PyTree, leaves: Sequence[Leaf]) -> dict[str, Any]:
    """The attributes of the data, as far as they hold of fits too."""
    source = data if hasattr(data, "data_vars") else next(leaf.array for leaf in leaves if leaf.role == "data")
    return {name: value for name, value in source.attrs.items() if name not in OF_VALUES}


def units_of(
    model: Model, layout: Layout, values: Values, outline: tuple[PyTree, PyTree], leaves: Sequence[Leaf]
) -> list[str] | None:
    """The units of the parameters, empty where they do not follow from those of data and covariates; None if these have none."""
    leaves = [leaf for leaf in leaves if leaf.role in ("data", "given")]
    if not any(UNITS in leaf.attributes for leaf in leaves):
        return None
    names: list[str | None] = []  # of the units, None for one that is unknown
    groups = []
    for leaf in leaves:
        unit = str(leaf.attributes.get(UNITS, "?")).strip()
        is_code = unit == "?" and getattr(leaf.array, "dtype", np.dtype(float)).kind in "biu"
        if unit in NO_UNIT or is_code:
            groups.append(-1)
        elif unit in names:
            groups.append(names.index(unit))
        else:
            groups.append(len(names))
            names.append(None if unit == "?" or " since " in unit else unit)
    powers = powers_of_parameters(model, layout, values, *outline, tuple(groups))
    units = []
    for column in powers.T:
        determined = [
            power == 0 if unit is None else np.isfinite(power) for unit, power in zip(names, column, strict=True)
        ]
        factors = [
            unit if power == 1 else f"{unit}{int(power)}" if unit.isalpha() else f"({unit}){int(power)}"
            for unit, power in sorted(zip(names, column, strict=True), key=lambda pair: -pair[1])
            if unit is not None and np.isfinite(power) and power != 0
        ]
        units.append((" ".join(factors) or "1") if all(determined) else "")
    return units
