"""What a model and its settings are, as a flat table of plain values that can be kept and compared: never by address.

A function is known by its code, the values that it closes over, its defaults and what it names of its own module; an array by
its bytes; a library by its name, for its version stands for the rest. What cannot be known so is said to be unknown.
"""

import functools
import hashlib
import inspect
import json
import math
import sys
import types
import weakref
from pathlib import Path
from typing import Any

import jax
import numpy as np

UNKNOWN = "not fingerprinted"
PROGRAMS = "_fisher_jax_programs"  # under names that begin so an object keeps what was compiled for it, no part of it
PLAIN = (str, int, float, bool, type(None))
_INSTALLED = ("site-packages", "dist-packages")
_DEEPEST = 40
LARGE = (
    2**16
)  # bytes of the arrays of one function: beyond, looking for an equal one costs more than is won, and keeps too much

Table = dict[str, Any]

_contents: weakref.WeakKeyDictionary[Any, tuple[str | None, Table]] = weakref.WeakKeyDictionary()


class _Seen(dict[int, tuple[str, Any]]):
    """Where a function or an object was met first, by its address, which it keeps while it is held here; and the bytes to come."""

    def __init__(self, *, to_share: bool) -> None:
        self.to_share, self.left = to_share, LARGE if to_share else math.inf


def fingerprint(value: Any, name: str, *, to_share: bool = False) -> Table:
    """The table of `value`, each row's name beginning with `name`.

    Where a function's programs are to be shared, more is unknown: arrays beyond `LARGE`, and empty lists, dicts and sets, which are
    there to be filled when it is called.
    """
    table: Table = {}
    _add(value, name, table, _Seen(to_share=to_share), 0)
    return table


def content_of(function: Any) -> tuple[str | None, Table]:
    """What a function was at its first use, as a key that functions share which do the same, and the table that it was made of.

    None where that cannot be known. What a function closes over counts as fixed from its first use, as it does for `jax.jit`.
    """
    try:
        known = _contents.get(function)
    except TypeError:  # what has no hash or takes no weak reference
        return None, {}
    if known is None:
        table = fingerprint(function, "", to_share=True)
        known = None if unknown(table) else digest(json.dumps(table, sort_keys=True).encode()), table
        _contents[function] = known
    return known


def unknown(table: Table) -> list[str]:
    """The rows that say no more than that they could not be known."""
    return sorted(name for name, value in table.items() if isinstance(value, str) and value.startswith(UNKNOWN))


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def of_array(array: Any) -> str:
    """Its dtype, shape and content."""
    if isinstance(array, jax.Array) and jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    array = np.asarray(np.ma.filled(array) if isinstance(array, np.ma.MaskedArray) else array)
    if array.dtype.hasobject:
        return f"{UNKNOWN}: an array of objects"
    return f"{array.dtype.str} {array.shape} {digest(np.ascontiguousarray(array).tobytes())}"


def _add(value: Any, name: str, table: Table, seen: _Seen, depth: int) -> None:
    """Add the rows of one value."""
    if depth > _DEEPEST:
        table[name] = f"{UNKNOWN}: nested too deeply"
    elif isinstance(value, PLAIN):
        table[name] = value if _is_json(value) else f"{type(value).__qualname__} {value!r}"
    elif isinstance(value, jax.core.Tracer):
        table[name] = f"{UNKNOWN}: traced"
    elif isinstance(value, np.ndarray | np.generic | jax.Array):
        seen.left -= value.nbytes
        table[name] = of_array(value) if seen.left >= 0 else f"{UNKNOWN}: an array of {value.nbytes} bytes"
    elif isinstance(value, bytes | complex | slice | range | np.dtype | type(...)):
        table[name] = f"{type(value).__name__} {value!r}"
    elif seen.to_share and isinstance(value, list | dict | set) and not value:
        table[name] = f"{UNKNOWN}: an empty {type(value).__name__}"
    elif isinstance(value, frozenset | set) and all(isinstance(entry, PLAIN) for entry in value):
        table[name] = f"{type(value).__name__} {sorted(map(repr, value))}"
    elif isinstance(value, types.ModuleType | type):
        table[name] = _named(value) if _is_library(value) else f"{UNKNOWN}: {_named(value)}, but for its name"
    elif isinstance(value, np.ufunc) or (isinstance(value, types.BuiltinFunctionType) and not _is_bound(value)):
        table[name] = _named(value)
    elif id(value) in seen:
        table[name] = f"as {seen[id(value)][0]}"
    else:
        if not isinstance(value, dict | tuple | list):
            seen[id(value)] = (name, value)
        for part, inside in _parts(value, table, name):
            _add(inside, f"{name}{part}", table, seen, depth + 1)


def _is_json(value: Any) -> bool:
    """Whether JSON gives it back as it is."""
    return type(value) in PLAIN and (not isinstance(value, float) or math.isfinite(value))


def _parts(value: Any, table: Table, name: str) -> list[tuple[str, Any]]:
    """What a value consists of, with the row of the value itself."""
    if isinstance(value, types.CodeType):
        return _parts_of_code(value, table, name)
    if isinstance(value, types.MethodType):
        table[name] = "method"
        return [(" function", value.__func__), (" object", value.__self__)]
    if isinstance(value, types.BuiltinFunctionType):
        table[name] = f"method {value.__name__}"
        return [(" object", value.__self__)]
    if isinstance(value, functools.partial):
        table[name] = "partial"
        return [(" function", value.func), (" arguments", value.args), (" keywords", value.keywords)]
    if isinstance(value, types.FunctionType):
        return _parts_of_function(value, table, name)
    if callable(value) and hasattr(value, "__wrapped__") and _is_library(type(value)):  # jax.jit and its like
        table[name] = f"wrapped by {_named(type(value))}"
        rules = [(f" {rule}", getattr(value, rule, None)) for rule in ("jvp", "fwd", "bwd")]
        return [(" function", value.__wrapped__), *(rule for rule in rules if callable(rule[1]))]
    if isinstance(value, dict):
        table[name] = f"{type(value).__name__} of {len(value)}"
        return [(f"[{key!r}]", inside) for key, inside in value.items()]
    if isinstance(value, tuple | list):
        table[name] = f"{type(value).__qualname__} of {len(value)}"
        keys = [f".{field}" for field in value._fields] if hasattr(value, "_fields") else _numbered(value)
        return list(zip(keys, value, strict=True))
    return _parts_of_object(value, table, name)


def _parts_of_function(function: types.FunctionType, table: Table, name: str) -> list[tuple[str, Any]]:
    code = function.__code__
    parts: list[tuple[str, Any]] = [("", code)]
    parts += [(" defaults", function.__defaults__)] if function.__defaults__ else []
    parts += [(" keyword defaults", function.__kwdefaults__)] if function.__kwdefaults__ else []
    for variable, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            parts.append((f" closure {variable}", cell.cell_contents))
        except ValueError:  # named before it has a value
            table[f"{name} closure {variable}"] = "empty"
    own = {key: part for key, part in vars(function).items() if not key.startswith((PROGRAMS, "__wrapped__"))}
    parts += [(f".{key}", part) for key, part in sorted(own.items())]
    if not _is_installed(function):
        named = sorted(_names(code) & function.__globals__.keys())
        parts += [(f" global {variable}", function.__globals__[variable]) for variable in named]
        for variable in sorted(_names(code) - function.__globals__.keys()):
            module = sys.modules.get(variable)
            if module is not None and not _is_library(module):  # imported inside
                table[f"{name} import {variable}"] = f"{UNKNOWN}: {_named(module)}, but for its name"
    return parts


def _parts_of_code(code: types.CodeType, table: Table, name: str) -> list[tuple[str, Any]]:
    said = (code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_flags, code.co_argcount)
    table[f"{name} code"] = digest(repr((*said, code.co_kwonlyargcount, code.co_exceptiontable)).encode())
    constants = code.co_consts[1:] if _has_docstring(code) else code.co_consts
    parts: list[tuple[str, Any]] = []
    for k, constant in enumerate(constants):
        inner = isinstance(constant, types.CodeType)
        parts.append((f" inner {k} {constant.co_name}" if inner else f" constant {k}", constant))
    return parts


def _parts_of_object(value: Any, table: Table, name: str) -> list[tuple[str, Any]]:
    """A record or an object with fields: its class and those."""
    call = type(value).__call__ if callable(value) else None
    kept = (
        {key: part for key, part in vars(value).items() if not key.startswith(PROGRAMS)}
        if hasattr(value, "__dict__")
        else None
    )
    fields = getattr(type(value), "__dataclass_fields__", None)
    if fields is not None:
        kept = (kept or {}) | {field: getattr(value, field) for field in fields if hasattr(value, field)}
    if kept is None or (not kept and not isinstance(call, types.FunctionType) and fields is None):
        table[name] = f"{UNKNOWN}: {_named(type(value))}"
        return []
    table[name] = _named(type(value))
    if not _is_library(type(value)):
        table[f"{name} methods"] = f"{UNKNOWN}: those of {_named(type(value))}, but for its call"
    parts = [(f".{field}", inside) for field, inside in sorted(kept.items())]
    return parts + ([(" call", call)] if isinstance(call, types.FunctionType) else [])


def _has_docstring(code: types.CodeType) -> bool:
    if sys.version_info >= (3, 14):
        return bool(code.co_flags & inspect.CO_HAS_DOCSTRING)
    return bool(code.co_consts) and isinstance(code.co_consts[0], str)  # no constant of the code's own comes first


def _names(code: types.CodeType) -> set[str]:
    """All names that a function's code and the code inside it look up."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _names(constant)
    return found


def _is_installed(function: types.FunctionType) -> bool:
    """Whether it comes with a library, whose version stands for what it names."""
    return _is_of_library(function.__module__ or "", function.__code__.co_filename)


def _is_library(value: types.ModuleType | type) -> bool:
    """Whether a module or a class comes with a library."""
    module = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
    return _is_of_library(module, getattr(sys.modules.get(module), "__file__", None) or "")


def _is_of_library(module: str, path: str) -> bool:
    top = module.partition(".")[0]
    return (
        top in sys.stdlib_module_names or top == "fisher_jax" or any(place in Path(path).parts for place in _INSTALLED)
    )


def _is_bound(function: types.BuiltinFunctionType) -> bool:
    """Whether it is a method of an object, and not a function of a module."""
    return not isinstance(function.__self__, types.ModuleType | type | None)


def _named(value: Any) -> str:
    if isinstance(value, types.ModuleType):
        return f"module {value.__name__}"
    module = inspect.getmodule(type(value) if isinstance(value, np.ufunc) else value)
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", type(value).__name__)
    return f"{module.__name__ if module else 'builtins'}.{name}"


def _numbered(values: Any) -> list[str]:
    return [f"[{k}]" for k in range(len(values))]
