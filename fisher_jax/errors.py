"""Errors and warnings of fits, the checks of arguments that all entry points share, and errors in user functions."""

import contextlib
import functools
import importlib
import inspect
import linecache
import operator
import os
import pathlib
import sys
import sysconfig
import threading
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from types import ModuleType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])
Record = TypeVar("Record", bound=type)

PACKAGE = str(pathlib.Path(__file__).parent) + os.sep
# The last line of a traceback outside these folders is the user's.
_OTHERS = (PACKAGE, "<frozen", *{sysconfig.get_path(name) + os.sep for name in ("stdlib", "purelib", "platlib")})


def require(module: str, extra: str) -> ModuleType:
    """Import an optional module; the error names the extra of fisher_jax that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'this needs {module}: pip install "fisher_jax[{extra}]".') from error


class FitWarning(UserWarning):
    """A result is less certain than it looks: the status of the fit does not support it, or an approximation is poor.

    Examples
    --------
    >>> import fisher_jax as fj, warnings
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", fj.FitWarning)  # stop at the first
    """


class FitError(RuntimeError):
    """Raised by `Fit.raise_if_failed`; the message is that of the status.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> fit = fj.fit(fj.families.poisson, {"rate": 1.0}, jnp.array([2.0, 4.0, 3.0]), max_steps=0)
    >>> try:
    ...     fit.raise_if_failed()
    ... except fj.FitError as error:
    ...     print(str(error)[:10])
    Step limit
    """


_calls = threading.local()


def calls_under_way() -> list[str]:
    """The names of the public functions under way in this thread, the one that the user called first."""
    return _calls.__dict__.setdefault("names", [])


def entry_point(function: Function) -> Function:
    """Decorate a public function or method: errors in its arguments, and its warnings, begin with its name.

    Only the function that the user called is named, not those that it calls in turn. A call that does not match the signature
    raises with the names of all arguments.
    """
    signature = inspect.signature(function)
    parameters = {name: p for name, p in signature.parameters.items() if name not in ("self", "cls")}
    positional = [name for name, p in parameters.items() if p.kind is not p.KEYWORD_ONLY]
    named = [name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    name = function.__qualname__.removesuffix(".__post_init__").removesuffix(".__init__")
    is_method = "self" in signature.parameters and name == function.__qualname__

    def describe_mismatch(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> str:
        """How a call does not match the signature; empty where it does."""
        try:
            signature.bind(*arguments, **keywords)
        except TypeError as error:
            count = len(arguments) - (len(signature.parameters) - len(parameters))
            unknown = [key for key in keywords if key not in parameters]
            text = f"there is no argument {unknown[0]!r}." if unknown else f"{error}."
            if count > len(positional):
                first = arguments[len(arguments) - count + len(positional)]
                after = f": after {positional[-1]} came {shown(first)}" if positional else ""
                hint = f" Give it by name, as {named[0]}=…." if named else ""
                if {"given", "weights"} <= set(named):
                    hint = " Covariates are passed as given=…, weights as weights=…."
                text = f"{count} arguments came by position, of {len(positional)}{after}.{hint}"
            return f"{text} It takes {', '.join(parameters)}."
        return ""

    @functools.wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        names = calls_under_way()
        # Of the object's own class, where a method is inherited.
        called = f"{type(arguments[0]).__name__}.{function.__name__}" if is_method and arguments else name
        names.append(called)
        try:
            return function(*arguments, **keywords)
        except (TypeError, ValueError, ImportError, RuntimeError, OSError) as error:
            if isinstance(error, TypeError) and (text := describe_mismatch(arguments, keywords)):
                raise TypeError(f"{called}: {text}") from None
            is_fit_error = isinstance(error, FitError)  # its message is that of the status
            if len(names) == 1 and not is_fit_error and _is_ours(error):
                error.args = (f"{called}: {error}",)
                if isinstance(error, ImportError):
                    error.msg = error.args[0]  # its text, which is kept beside its arguments
            raise
        finally:
            names.pop()

    return call  # type: ignore[return-value]


def made_by_users(record: Record) -> Record:
    """Decorate a class of records that users make: its construction is an `entry_point`."""
    record.__init__ = entry_point(record.__init__)  # type: ignore[misc]
    return record


def _is_ours(error: BaseException) -> bool:
    """Whether an error was raised by a check of fisher_jax itself, whose message is complete; not by JAX or the user's code."""
    line = traceback.extract_tb(error.__traceback__)[-1]
    return line.filename.startswith(PACKAGE) and (line.line or "").startswith("raise")


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Without this library's warnings in this thread, where a status stands beside every number that one would be about."""
    before, _calls.silent = getattr(_calls, "silent", False), True
    try:
        yield
    finally:
        _calls.silent = before


def warn(text: str, category: type[Warning] = FitWarning) -> None:
    """Warn with the name of the public function that the user called, at the line that called it."""
    if getattr(_calls, "silent", False):
        return
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGE):
        level, frame = level + 1, frame.f_back
    names = calls_under_way()
    warnings.warn(f"{names[0]}: {text}" if names else text, category, stacklevel=level)


# --- checks of arguments: each raises with the argument's name, what came and what is expected -----------------------


def check_count(number: Any, least: int, name: str, which_is: str = "", *, entries: int = 1) -> int:
    """A whole number from `least` on (`which_is` explains what that is) of things that take `entries` numbers of memory each.

    Raises where they cannot fit the memory of this machine; with `entries` = 0 nothing is stored. What a computation needs besides
    is not counted: this catches counts that can never end, not those that merely take long.
    """
    try:
        count = operator.index(number)
    except TypeError:
        count = least - 1
    if count < least or isinstance(number, bool):
        raise ValueError(f"{name}={shown(number)} must be a whole number, at least {least}{which_is}.")
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows; then more than any machine has that is not a cluster
        memory = 2**42
    needed = 8 * entries * count  # in float32 half as much, with as much again for intermediate results
    if needed > memory:
        raise ValueError(
            f"{name}={count} needs {needed / 1e9:.3g} GB at least, and this machine has {memory / 1e9:.3g} GB of "
            f"memory. Give {name} of at most {memory // (8 * entries)}, and far fewer for a result in reasonable time."
        )
    return count


def check_level(level: Any) -> None:
    """A confidence level is a number strictly between 0 and 1."""
    if isinstance(level, jax.core.Tracer):
        return
    if not is_number(level):
        raise TypeError(f"level={shown(level)} must be a number strictly between 0 and 1, as 0.95 for 95 %.")
    if not 0 < level < 1:
        raise ValueError(f"level={level} must lie strictly between 0 and 1, as 0.95 for 95 %.")


def check_key(key: Any) -> None:
    """One key of JAX's random numbers."""
    # A raw key has 2 or 4 numbers, by the implementation.
    raw = isinstance(key, jax.Array | np.ndarray) and key.dtype == np.uint32 and key.shape in ((2,), (4,))
    if not raw and not (is_key(key) and key.ndim == 0):
        seed = key if isinstance(key, int) else 0
        raise TypeError(f"key is {type(key).__name__}; expected one key, as jax.random.key({seed}) makes it.")


def check_choice(value: Any, choices: Collection[str], name: str, hint: str = "") -> None:
    """One of several words."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}={shown(value)} is unknown; choose from {', '.join(map(repr, choices))}.{hint}")


def check_flag(value: Any, name: str) -> None:
    """True or False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}={shown(value)} must be True or False.")


def check_function(function: Any, name: str, of: str = "params") -> None:
    """Raise unless it is callable; `of` names its arguments in the message."""
    if not callable(function) or isinstance(function, type):
        raise TypeError(f"{name} must be a function of {of}, got {kind_of(function)}.")


def to_numpy(value: Any, name: str) -> np.ndarray:
    """A value as an array of numpy; raise for what has no form as one."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} is {shown(value)}; expected an array ({str(error).rstrip('.')}).") from error


def check_pytrees(**trees: Any) -> None:
    """Pytrees of arrays, by the names of the arguments; results of this library are pytrees too, and raise."""
    for name, tree in trees.items():
        check_pytree(tree, name)
        is_result = type(tree).__module__.startswith("fisher_jax.") and not getattr(tree, "holds_data", False)
        if is_result and not jax.tree_util.all_leaves([tree]):
            hint = " Did you mean its `params`?" if hasattr(tree, "params") else ""
            raise TypeError(f"{name} is {kind_of(tree)}; expected arrays, or a pytree of them.{hint}")
        if any(is_key(leaf) for leaf in jax.tree.leaves(tree)):
            raise TypeError(f"{name} holds a key of jax.random; expected arrays of numbers.")


def check_pytree(tree: Any, name: str) -> None:
    """A pytree that JAX can flatten: keys of a dictionary are sorted, so they must be of one type."""
    try:
        jax.tree.flatten(tree)
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise TypeError(
            f"{name} is no pytree that JAX can flatten ({reason}). Give the keys of each dictionary one type, for example text."
        ) from error


def names_in(names: Any) -> list[str]:
    """The names in one name or a sequence of names; an empty list for anything else."""
    if isinstance(names, str):
        return [names]
    if isinstance(names, list | tuple | set) or (isinstance(names, np.ndarray) and names.ndim):
        return list(names) if all(isinstance(name, str) for name in names) else []
    return []


def is_key(value: Any) -> bool:
    """Whether a value is an array of JAX's typed keys."""
    return isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)


def is_number(value: Any) -> bool:
    """Whether a value is one real number, neither traced nor a truth value."""
    if isinstance(value, bool | np.bool_ | jax.core.Tracer):
        return False
    if isinstance(value, int | float | np.integer | np.floating):
        return True
    # The dtype of a key of JAX has no `kind`.
    return isinstance(value, np.ndarray | jax.Array) and value.ndim == 0 and getattr(value.dtype, "kind", "O") in "iuf"


def kind_of(value: Any) -> str:
    """The type of a value, for a message; a class is named as one, not as its metaclass."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def shown(value: Any) -> str:
    """A value in a message: an array by its shape, a value with a long text by its type."""
    if isinstance(value, np.ndarray | jax.Array) and value.ndim:
        return f"an array of shape {value.shape}"
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else f"an object of type {type(value).__name__}"


# --- errors in the user's functions ------------------------------------------------------------------------------------

_TRACER_ERRORS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


def call_user(function: Callable[..., Any], arguments: Sequence[Any], name: str) -> Any:
    """Call a function of the user's. An error in it names its line, and the shapes of its arguments.

    Where JAX traces the function its arguments have no values, which numpy, scipy and Python's `if` need: the error explains it.
    """
    try:
        return function(*arguments)
    except _TRACER_ERRORS as error:
        raise TypeError(
            f"{name} leaves jax.numpy{_line_of(error)}. JAX calls it with parameters and data whose numbers are not "
            "known yet, to differentiate and compile it. Write jax.numpy in place of numpy, math and float(), "
            "jax.scipy.stats in place of scipy.stats, and jnp.where in place of `if`."
        ) from None
    except (KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
        if _is_ours(error) or isinstance(error, jax.errors.UnexpectedTracerError):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
        shapes = jax.tree.map(
            lambda leaf: jnp.shape(leaf) if hasattr(leaf, "shape") else type(leaf).__name__, arguments
        )
        hint = ""
        if "string indexing" in reason:
            hint = " It takes a column by its name, but was given an array: give a table, or a dictionary of arrays."
        elif any(isinstance(argument, dict) for argument in arguments[1:]):
            hint = " A table is passed on as a dictionary of its columns, a row at a time; .to_numpy() makes a matrix of it."
        raise kind(
            f"{name} raised {type(error).__name__}{_line_of(error)}: {reason}. It was called with "
            f"{', '.join(map(str, shapes))}.{hint}"
        ) from error


def _line_of(error: BaseException) -> str:
    """Where in the user's code an error arose: the last line outside fisher_jax, JAX and the standard library."""
    lines = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_OTHERS)]
    if not lines:
        return ""
    text = (lines[-1].line or linecache.getline(lines[-1].filename, lines[-1].lineno or 0)).strip()
    text = text if len(text) <= 100 else f"{text[:99]}…"
    return f" at line {lines[-1].lineno} of {pathlib.Path(lines[-1].filename).name}" + (f", `{text}`" if text else "")
