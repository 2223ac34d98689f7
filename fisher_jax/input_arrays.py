"""What users hand over as arrays of numbers: other byte orders, masks, data frames; and what is none of that, by its name.

Everything that takes arrays of a user's passes through `as_array`, once. A plain array of numpy or JAX passes as it is.
"""

import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

Name = Callable[[], str]  # of an argument or of a part of it, as an error calls it
LEAVE_OUT = "Leave these rows out."


def as_array(leaf: Any, name: Name) -> Any:
    """An array of numbers as JAX will hold it without loss, of JAX or numpy.

    It is a masked array only where entries are masked: what that means is for the caller to know, who must not drop the mask.

    Raises
    ------
    TypeError, ValueError
        For text and other things that are no numbers, missing ones included, and for integers that JAX would cut off.
    """
    known = isinstance(leaf, jax.Array)
    array = leaf if known or type(leaf) is np.ndarray else _from_another(leaf, name)
    dtype = array.dtype
    if dtype.kind == "c":  # whatever is real of it would be taken, and the rest lost
        raise TypeError(
            f"{name()}: complex numbers ({dtype}), where real ones are expected. Give their real and imaginary parts, as in "
            '{"real": y.real, "imag": y.imag}.'
        )
    if known:
        return leaf
    if not _is_number(dtype):
        raise TypeError(_no_numbers(leaf, array, name()))
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
    """Raise where entries are masked; `remedy` says what to give in place of them."""
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
        where = np.argwhere(np.ma.getmaskarray(array))
        first = f", the first at [{', '.join(map(str, where[0]))}]" if array.ndim else ""
        raise ValueError(f"{name()}: {len(where)} of {array.size} entries are masked{first}. {remedy}")


def as_unmasked_array(leaf: Any, name: Name, remedy: str) -> Any:
    """An array of numbers where a mask can mean nothing."""
    array = as_array(leaf, name)
    check_unmasked(array, name, remedy)
    return array


def as_weights(weights: Any, name: str) -> Any:
    """Weights as an array; a mask is an error."""
    return as_unmasked_array(weights, lambda: name, "Give an observation that is to be left out weight zero.")


def _from_another(leaf: Any, name: Name) -> Any:
    """The array of what is no plain array: a masked one, a scalar, a frame or a column of one, a subclass of numpy's."""
    if isinstance(leaf, np.ma.MaskedArray):
        return leaf if np.ma.is_masked(leaf) else np.asarray(leaf)  # readers mask entries also where none is missing
    array = np.asarray(leaf)
    if not _is_number(array.dtype) and (columns := _columns(leaf)) is not None:
        arrays = []
        for label in columns:
            column = np.asarray(leaf[label])
            if not _is_number(column.dtype):
                raise TypeError(_no_numbers(leaf[label], column, f"{name()}, column {label!r}"))
            if column.ndim != 1:
                raise ValueError(f"{name()}: there are several columns {label!r}. Give each a name of its own.")
            arrays.append(column.astype(float))
        return np.stack(arrays, axis=1)  # of numbers and of truths, say, which have no common type
    return array


def _columns(leaf: Any) -> Iterable[Any] | None:
    """The names of the columns of a frame, pandas', polars' or Arrow's; None for anything else."""
    names = getattr(leaf, "column_names", getattr(leaf, "columns", None))
    return None if names is None else list(names)


def _is_number(dtype: Any) -> bool:
    """Whether JAX has such numbers: numpy's own kinds, or the short floating ones, which numpy calls void."""
    short = dtype.kind == "V" and dtype.names is None and jax.dtypes.issubdtype(dtype, np.number)
    return dtype.kind in "biuf" or short


def _no_numbers(given: Any, array: Any, name: str) -> str:
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
    """The labels that pandas gives to one axis of an array: whose they are, what they stand for, and themselves."""

    name: str
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
        same, different = 0, len(each.index)  # so long a beginning is the same, and so long a one is not
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
