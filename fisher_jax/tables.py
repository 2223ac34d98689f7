"""Tables of pandas, polars and Arrow, by narwhals: their columns as arrays, what is missing in them, some of their rows.

A missing value is a null (`None`, `NA`, `NaT`) of any column, and a NaN of a column of floating numbers: pandas makes no
difference.
"""

import difflib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fisher_jax.errors import kind_of, require, to_numpy

LIBRARIES = ("pandas", "polars", "pyarrow", "modin", "cudf", "dask", "duckdb", "ibis", "pyspark", "narwhals")
MISSING = ("raise", "drop")


def is_table(value: Any) -> bool:
    """Whether a value is a table of named columns of one of these libraries."""
    module = type(value).__module__.partition(".")[0]
    return module in LIBRARIES and any(hasattr(type(value), name) for name in ("columns", "column_names"))


def is_column(value: Any) -> bool:
    """Whether a value is one column of such a table."""
    return type(value).__module__.partition(".")[0] in LIBRARIES and type(value).__name__ in ("Series", "ChunkedArray")


class Table:
    """A table whose columns are read by name, and the rows of it that are used.

    Parameters
    ----------
    native : table
        Of pandas, polars or pyarrow.
    name : str
        What it is called in errors.
    rows : integer array, optional
        Which rows, in this order; all by default. With several axes, those of many data sets: `column` then has their shape.
    """

    def __init__(self, native: Any, name: str, rows: np.ndarray | None = None) -> None:
        self.native, self.name, self.rows = native, name, rows
        self._frame = as_narwhals(native, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.native, self.name, self.rows)

    @property
    def names(self) -> list[Any]:  # text, but for tables of pandas whose columns have no names
        return list(self._frame.columns)

    def __len__(self) -> int:
        return len(self._frame) if self.rows is None else len(self.rows)

    def take(self, rows: Any) -> "Table":
        """Some of its rows, or of the data sets that these belong to, by a slice, an index or an array."""
        numbers = np.arange(len(self._frame)) if self.rows is None else self.rows
        return type(self)(self.native, self.name, numbers[rows])

    def to_native(self) -> Any:
        """The rows that are used, as a table of its own library."""
        return self.native if self.rows is None else self._frame[self.rows].to_native()

    def replace(self, columns: Mapping[str, Any]) -> "Table":
        """The rows that are used with these columns in place of its own: an array, or one value for all rows."""
        nw = require("narwhals.stable.v2", "frames")
        frame = self._frame if self.rows is None else self._frame[self.rows]
        for name, values in columns.items():
            if isinstance(values, np.ndarray):
                column = nw.new_series(name, values, backend=frame.implementation)
            else:
                column = nw.lit(values).cast(frame.schema[name])
            frame = frame.with_columns(column.alias(name))
        return Table(frame.to_native(), self.name)

    def without(self, names: Sequence[str]) -> Any:
        """The table, of its own library, without some columns."""
        return self._frame.drop([name for name in names if name in self._frame.columns]).to_native()

    def series(self, name: Any, purpose: str = "") -> Any:
        """The whole column of a name, of narwhals; raise with the closest name where there is none."""
        if name not in self._frame.columns:
            raise ValueError(f"{self.name} has no column {name!r}{purpose}. {suggestion(name, self.names)}")
        return self._frame.get_column(name)

    def column(self, name: Any, purpose: str = "") -> np.ndarray:
        """A column as an array of numpy, text as objects, of the rows that are used."""
        values = self.series(name, purpose).to_numpy()
        return values if self.rows is None else values[self.rows]

    def numbers(self, name: Any, purpose: str = "") -> np.ndarray:
        """A column of numbers, without missing values, as floating numbers."""
        values = as_numbers(self.series(name, purpose), f"column {name!r} of {self.name}").astype(float)
        return values if self.rows is None else values[self.rows]

    def levels(self, name: Any) -> list[Any]:
        """The levels of a column that occur in the rows that are used, in their order; empty for times and the like."""
        nw = require("narwhals.stable.v2", "frames")
        series = self.series(name)
        series = series if self.rows is None else series[self.rows]
        present = series.unique().drop_nulls().to_list()
        is_categorical = series.dtype == nw.Categorical
        if series.dtype == nw.Enum or (is_categorical and series.implementation.is_pandas_like()):
            return [level for level in series.cat.get_categories().to_list() if level in present]
        # As in a formula, categories of other libraries are sorted: their order is that of appearance.
        is_ordered = is_categorical or series.dtype.is_numeric() or series.dtype in (nw.String, nw.Boolean, nw.Object)
        return sorted(present) if is_ordered else []

    def missing(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """For each column that has missing values in the rows used, where these are."""
        result = {}
        for name in names:
            places = missing_in(self.series(name))
            places = places if self.rows is None else places[self.rows]
            if places.any():
                result[name] = places
        return result


class TableOfGroups(Table):
    """A table whose rows are in groups, each an observation: `rows` is (…, G, m), a group's last row again where it has fewer."""

    def column(self, name: Any, purpose: str = "") -> np.ndarray:
        """A column that is the same in all rows of a group, of which each has one value; raise for any other."""
        values = super().column(name, purpose)
        if places := self.missing([name]):
            raise ValueError(describe_missing(places, self.name, values.size))
        differs = (values != values[..., :1]).any(axis=-1)
        if differs.any():
            raise ValueError(
                f"column {name!r} of {self.name} has several values in {int(differs.sum())} of {differs.size} groups, but a group "
                "is one observation of this model. Give a column that is the same in all rows of a group."
            )
        return values[..., 0]


def frame_of(value: Any, name: str) -> Any:
    """A table as it is, and a dictionary of columns as one of pandas; raise for anything else."""
    if is_table(value):
        return value
    if not isinstance(value, dict) or not value:
        kind = "an empty dictionary" if isinstance(value, dict) else kind_of(value)
        raise TypeError(f"{name} is {kind}; expected a table of pandas, polars or pyarrow, or a dictionary of columns.")
    columns = {key: np.atleast_1d(to_numpy(column, f"{name} {key!r}")) for key, column in value.items()}
    shapes = {column.shape for column in columns.values()}
    if len(shapes) > 1 or len(next(iter(shapes))) != 1:
        listed = ", ".join(f"{key}: {column.shape}" for key, column in columns.items())
        raise ValueError(f"the columns of {name} have the shapes {listed}; expected (n,) for each.")
    return require("pandas", "frames").DataFrame(columns)


def as_narwhals(table: Any, name: str) -> Any:
    """The table as narwhals reads it; raise where two columns share a name, or it is not in memory."""
    if hasattr(table, "collect") and not hasattr(table, "to_numpy"):
        raise TypeError(
            f"{name} is {type(table).__module__.partition('.')[0]}'s {type(table).__name__}, which is not in memory. "
            "Collect it first."
        )
    labels = [str(label) for label in getattr(table, "column_names", getattr(table, "columns", ()))]
    repeated = sorted({label for label in labels if labels.count(label) > 1}) if len(set(labels)) < len(labels) else []
    if repeated:
        raise ValueError(f"{name}: there are several columns {repeated[0]!r}. Give each a name of its own.")
    if not is_table(table):
        raise TypeError(f"{name} is {kind_of(table)}; expected a table of pandas, polars or pyarrow.")
    nw = require("narwhals.stable.v2", "frames")
    if type(table).__name__ == "RecordBatch":
        table = sys.modules["pyarrow"].Table.from_batches([table])
    try:
        return nw.from_native(table, eager_only=True)
    except TypeError as error:
        raise TypeError(
            f"{name} is {type(table).__module__.partition('.')[0]}'s {type(table).__name__}, which is not a table in memory. "
            "Collect it first, into pandas, polars or pyarrow."
        ) from error


def missing_in(series: Any) -> np.ndarray:
    """Which entries of a column are missing."""
    missing = np.array(series.is_null().to_numpy(), bool)
    if series.dtype.is_float():
        missing |= np.array(series.is_nan().fill_null(True).to_numpy(), bool)
    return missing


def as_numbers(series: Any, name: str) -> np.ndarray:
    """A column of numbers or of truth values as an array; missing values are NaN. Raise for text, categories and times."""
    nw = require("narwhals.stable.v2", "frames")
    dtype = series.dtype
    if dtype.is_numeric() or dtype == nw.Boolean:
        missing = missing_in(series)
        if missing.any():
            filled = series.fill_null(False if dtype == nw.Boolean else 0).cast(nw.Float64)
            return np.where(missing, np.nan, np.asarray(filled.to_numpy(), float))
        series = series if dtype.is_integer() or dtype.is_float() or dtype == nw.Boolean else series.cast(nw.Float64)
        values = np.asarray(series.to_numpy())
        return values.astype(bool) if dtype == nw.Boolean else values
    if dtype.is_temporal():
        what = f"times ({dtype}), where numbers are expected. Give numbers, as the days since a date"
    else:
        what = (
            f"no numbers ({dtype}). Leave the column out, or encode it: fisher_jax.formula('y ~ C(x)', …) does so with text "
            "and categories, and .astype(float) with numbers in a column of objects"
        )
    raise TypeError(f"{name} holds {what}.")


def as_columns(table: Any, name: str, missing: str = "raise") -> dict[str, Any]:
    """The columns of a table of numbers by their names.

    Parameters
    ----------
    table : table
        Of pandas, polars or pyarrow.
    name : str
        Of the argument, for errors.
    missing : {"raise", "drop", "keep"}
        Where values are missing: an error that counts them; masked entries; or NaN.

    Raises
    ------
    TypeError, ValueError
        For a column that holds no numbers, two columns of one name, and missing values.
    """
    view = Table(table, name)
    for label in view.names:
        if not isinstance(label, str):
            raise TypeError(
                f"{name} has a column named {label!r}, which is no text. A table is taken by the names of its columns: name them, "
                "or give a matrix, by .to_numpy()."
            )
    columns: dict[str, Any] = {
        label: as_numbers(view.series(label), f"{name}, column {label!r},") for label in view.names
    }
    places = {} if missing == "keep" else view.missing(view.names)
    if places and missing == "raise":
        raise ValueError(describe_missing(places, name, len(view)))
    for label, where in places.items():
        columns[label] = np.ma.array(np.where(where, 0, columns[label]), mask=where)
    return columns


def as_column(column: Any, name: str, missing: str = "raise") -> Any:
    """One column of numbers as an array; `missing` as for `as_columns`."""
    nw = require("narwhals.stable.v2", "frames")
    series = nw.from_native(column, series_only=True)
    values = as_numbers(series, name)
    places = missing_in(series)
    if missing == "keep" or not places.any():
        return values
    if missing == "raise":
        raise ValueError(describe_missing({"": places}, name, len(values)))
    return np.ma.array(np.where(places, 0, values), mask=places)


def describe_missing(places: dict[str, np.ndarray], name: str, size: int) -> str:
    """The message that counts missing values by column."""
    rows = int(np.sum(np.any(list(places.values()), axis=0)))
    if list(places) == [""]:
        values = "1 missing value" if rows == 1 else f"{rows} missing values"
        return f"{name} has {values} of {size}. {LEAVE_OUT}"
    counts = ", ".join(f"{int(where.sum())} in {column!r}" for column, where in places.items())
    return f"{name} has missing values in {rows} of {size} rows: {counts}. {LEAVE_OUT}"


LEAVE_OUT = 'Leave these rows out, by missing="drop" where the function takes it, or fill them in.'


def suggestion(name: Any, names: Sequence[str]) -> str:
    """`Did you mean 'age'?`, or the names that there are."""
    close = difflib.get_close_matches(str(name), [str(other) for other in names], 1, 0.6)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"It has {', '.join(map(str, names[:20]))}{', …' if len(names) > 20 else ''}."
