"""Arrays that users pass: other byte orders, masks and data frames become arrays of numbers; anything else raises by its name.

Every function with array arguments calls `as_array` once. A plain array of numpy or JAX is returned as it is.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from fisher_jax.errors import is_key, to_numpy

Name = Callable[[], str]  # of an argument or of a part of it, for an error: made only when one is raised
LEAVE_OUT = "Leave these rows out."


def as_array(leaf: Any, name: Name) -> Any:
    """An array of numbers as JAX will hold it without loss, of JAX or numpy.

    It is a masked array only where entries are masked; the caller decides what a mask means and must not drop it.

    Raises
    ------
    TypeError, ValueError
        For text and other values that are not numbers, missing ones included, and for integers that JAX would truncate.
    """
    array = leaf if isinstance(leaf, jax.Array) or type(leaf) is np.ndarray else _from_other(leaf, name)
    dtype = array.dtype
    if is_key(array):
        raise TypeError(f"{name()} holds a key of jax.random; expected arrays of numbers.")
    if dtype.kind == "c":  # JAX would drop the imaginary parts
        raise TypeError(
            f"{name()}: complex numbers ({dtype}), where real ones are expected. Give their real and imaginary parts, as in "
            '{"real": y.real, "imag": y.imag}.'
        )
    if isinstance(leaf, jax.Array):
        return leaf
    if not _is_number(dtype):
        raise TypeError(_describe_other(leaf, array, name()))
    if not dtype.isnative:  # FITS, GRIB and netCDF files hold the other byte order, which JAX does not know
        array = array.astype(dtype.newbyteorder("="))
    if dtype.kind == "f" and dtype.itemsize > 8:  # numpy's longdouble, of which JAX has none
        array = array.astype(np.float64)
    if dtype.kind in "iu":
        narrow = jax.dtypes.canonicalize_dtype(array.dtype)
        if narrow != array.dtype and array.size > 0:
            least, greatest = array.min(), array.max()
            if greatest > np.iinfo(narrow).max or least < np.iinfo(narrow).min:
                raise ValueError(
                    f"{name()}: integers from {least} to {greatest} do not fit {narrow}, which is what JAX holds them in unless "
                    "x64 is enabled. Enable it, or give them as floating numbers."
                )
    return array


def check_unmasked(array: Any, name: Name, remedy: str) -> None:
    """Raise where entries are masked; `remedy` names what to give in place of them."""
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
        where = np.argwhere(np.ma.getmaskarray(array))
        first = f", the first at [{', '.join(map(str, where[0]))}]" if array.ndim else ""
        raise ValueError(f"{name()}: {len(where)} of {array.size} entries are masked{first}. {remedy}")


def as_unmasked_array(leaf: Any, name: Name, remedy: str) -> Any:
    """An array of numbers for an argument in which a mask has no meaning."""
    array = as_array(leaf, name)
    check_unmasked(array, name, remedy)
    return array


def as_weights(weights: Any, name: str) -> Any:
    """Weights as an array; a mask is an error."""
    return as_unmasked_array(weights, lambda: name, "Give an observation that is to be left out weight zero.")


def as_labels(labels: Any, name: str) -> np.ndarray:
    """Labels of observations, numbers or text, as an array; raise where one is masked, NaN, NaT, None or NA."""
    remedy = "Give every observation a label."
    check_unmasked(labels, lambda: name, remedy)
    labels = to_numpy(labels, name)

    def is_missing(label: Any) -> bool:
        try:
            return label is None or bool(label != label)
        except (TypeError, ValueError):  # the truth of pandas' NA is undefined
            return True

    # NaN and NaT are not equal to themselves.
    flat = labels.ravel()
    missing = np.array([is_missing(label) for label in flat]) if flat.dtype == object else flat != flat
    if np.any(missing):
        first = int(np.argmax(missing))
        text = "NaN" if isinstance(flat[first], float | np.floating) else str(flat[first])
        raise ValueError(f"{name}[{first}] is {text}. {remedy}")
    return labels


def _from_other(leaf: Any, name: Name) -> Any:
    """The array in a masked array, a scalar, a data frame or a column of one, or a subclass of numpy's."""
    if isinstance(leaf, np.ma.MaskedArray):
        return leaf if np.ma.is_masked(leaf) else np.asarray(leaf)  # readers mask entries also where none is missing
    array = np.asarray(leaf)
    columns = getattr(leaf, "column_names", getattr(leaf, "columns", None))  # of Arrow; of pandas and polars
    if not _is_number(array.dtype) and columns is not None:
        arrays = []
        for label in list(columns):
            column = np.asarray(leaf[label])
            if not _is_number(column.dtype):
                raise TypeError(_describe_other(leaf[label], column, f"{name()}, column {label!r}"))
            if column.ndim != 1:
                raise ValueError(f"{name()}: there are several columns {label!r}. Give each a name of its own.")
            arrays.append(column.astype(float))
        return np.stack(arrays, axis=1)  # columns of numbers and of truth values, for example, have no common dtype
    return array


def _is_number(dtype: Any) -> bool:
    """Whether JAX has numbers of this dtype: numpy's, or the short floating ones (bfloat16, …), whose kind numpy calls void."""
    short = dtype.kind == "V" and dtype.names is None and jax.dtypes.issubdtype(dtype, np.number)
    return dtype.kind in "biuf" or short


def _describe_other(given: Any, array: Any, name: str) -> str:
    """The message for an array that is not of numbers."""
    if array.dtype.names is not None:
        first = array.dtype.names[0]
        return (
            f"{name}: a table of records with the fields {', '.join(array.dtype.names)}, where arrays of numbers were expected. "
            f"Give its columns, as in {{{first!r}: table[{first!r}]}}."
        )
    if getattr(getattr(given, "dtype", None), "kind", "O") in "biuf":  # a type of pandas' own that can be missing
        return f"{name}: holds missing values (NA). Leave these rows out, or fill them in and give them weight zero."
    return (
        f"{name}: expected arrays of numbers, got {type(given).__name__} of dtype {getattr(given, 'dtype', array.dtype)}. "
        "Encode text and categories as numbers first."
    )


class Labels(NamedTuple):
    """The labels that pandas gives to one axis of an array."""

    name: str  # of the argument
    role: tuple[str, str]  # the labels of what; and whether they are an index or columns
    index: Any


def labels_of(leaf: Any) -> tuple[Any, ...]:
    """The labels of each axis of a frame or column of pandas; none of anything else, polars' and Arrow's, which have none."""
    pandas = sys.modules.get("pandas")
    if pandas is None or type(leaf) is np.ndarray:
        return ()
    frame: Any = getattr(pandas, "DataFrame", ())  # a thread may be importing it
    column: Any = getattr(pandas, "Series", ())
    if isinstance(leaf, frame):
        return leaf.index, leaf.columns
    return (leaf.index,) if isinstance(leaf, column) else ()


def check_same_labels(labels: list[Labels]) -> None:
    """Raise where pandas gives the same axis other labels in one argument than in another.

    Rows are taken in their order, not by their labels. Those of another number are left to the checks of shapes.
    """
    firsts: dict[tuple[str, str], Labels] = {}
    for each in labels:
        first = firsts.setdefault(each.role, each)
        if len(each.index) != len(first.index) or each.index.equals(first.index):
            continue
        same, different = (
            0,
            len(each.index),
        )  # bisection: the first `same` labels are equal, the first `different` are not
        while different - same > 1:
            middle = (same + different) // 2
            if each.index[:middle].equals(first.index[:middle]):
                same = middle
            else:
                different = middle
        what, kind = each.role
        raise ValueError(
            f"{first.name} and {each.name} have different {kind} labels for the {what}, first at position {same}: "
            f"{first.index[same]} in {first.name}, {each.index[same]} in {each.name}. Put them in one order, by .loc or "
            ".reindex; or, if they belong together as they stand, give arrays, by .to_numpy()."
        )
