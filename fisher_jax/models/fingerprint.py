"""Fingerprints: a model and its settings as a flat table of plain values that can be stored and compared, without addresses.

A function is identified by its code, the values that it closes over, its defaults and the names that it uses of its module; an
array by a hash of its bytes; a library by its name, since its version stands for the rest. What cannot be identified is marked
`UNKNOWN`. Used to share compiled programs among functions that are made anew (`models.programs`), and to check that an interrupted
run of `fit_stream` is continued with the same model.
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
# Attributes with names that begin so store what was compiled for an object, and are no part of its fingerprint.
PROGRAMS = "_fisher_jax_programs"
PLAIN = (str, int, float, bool, type(None))
_OF_EVERY_CLASS = vars(type("", (), {})).keys()  # its module, its docstring
_INSTALLED = ("site-packages", "dist-packages")
_DEEPEST = 40
# Bytes of the arrays of one function: beyond, to hash them in search of an equal function costs more than it saves, and the shared
# programs would store too much.
LARGE = 2**16

Fingerprint = dict[str, Any]  # a plain value, or a digest, for each part of a function or a value, by name

# With the code of a function, which IPython's %autoreload replaces in place.
_contents: weakref.WeakKeyDictionary[Any, tuple[Any, tuple[str | None, Fingerprint]]] = weakref.WeakKeyDictionary()


class _Seen(dict[int, tuple[str, Any]]):
    """By the address of a function or an object, the row in which it came first; and the bytes that may still be hashed.

    The object is stored with it, so that its address is not used again while the table is made.
    """

    def __init__(self, *, to_share: bool, in_depth: bool) -> None:
        self.to_share, self.in_depth, self.left = to_share, in_depth, LARGE if to_share else math.inf


def fingerprint(value: Any, name: str, *, to_share: bool = False, in_depth: bool = False) -> Fingerprint:
    """The table of `value`, each row's name beginning with `name`.

    Where a function's programs are to be shared (`to_share`), more is unknown: arrays beyond `LARGE`, and empty lists, dicts and
    sets, which may be caches that fill when it is called. With `in_depth` less is: classes of the user's are identified by all that
    they define, and data frames and other objects of libraries by what pickle takes of them.
    """
    table: Fingerprint = {}
    _add(value, name, table, _Seen(to_share=to_share, in_depth=in_depth), 0)
    return table


def content_of(function: Any) -> tuple[str | None, Fingerprint]:
    """A hash of a function's fingerprint at its first use, which functions that do the same share, and that fingerprint.

    The hash is None where a part is unknown. What a function closes over counts as fixed from its first use, as for `jax.jit`;
    its code does not.
    """
    code = getattr(function, "__code__", None)
    try:
        code_then, content = _contents.get(function, (None, None))
    except TypeError:  # it has no hash, or takes no weak reference
        return None, {}
    if content is None or code is not code_then:
        table = fingerprint(function, "", to_share=True)
        content = None if unknown(table) else digest(json.dumps(table, sort_keys=True).encode()), table
        _contents[function] = code, content
    return content


def unknown(table: Fingerprint) -> list[str]:
    """The names of the rows that are unknown."""
    return sorted(name for name, value in table.items() if isinstance(value, str) and value.startswith(UNKNOWN))


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def of_array(array: Any) -> str:
    """The dtype, shape and hash of an array."""
    if isinstance(array, jax.Array) and jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    array = np.asarray(np.ma.filled(array) if isinstance(array, np.ma.MaskedArray) else array)
    if array.dtype.hasobject:
        return f"{UNKNOWN}: an array of objects"
    return f"{array.dtype.str} {array.shape} {digest(np.ascontiguousarray(array).tobytes())}"


def _add(value: Any, name: str, table: Fingerprint, seen: _Seen, depth: int) -> None:
    """Add the rows of one value and its parts."""
    if depth > _DEEPEST:
        table[name] = f"{UNKNOWN}: nested too deeply"
    elif isinstance(value, PLAIN):
        # Infinities, NaN and subclasses of the plain types would not come back from JSON as they are.
        is_json = type(value) in PLAIN and (not isinstance(value, float) or math.isfinite(value))
        table[name] = value if is_json else f"{type(value).__qualname__} {value!r}"
    elif isinstance(value, jax.core.Tracer):
        table[name] = f"{UNKNOWN}: traced"
    elif seen.in_depth and isinstance(value, np.ndarray) and value.dtype.hasobject:
        _add(value.tolist(), name, table, seen, depth + 1)
    elif isinstance(value, np.ndarray | np.generic | jax.Array):
        seen.left -= value.nbytes
        table[name] = of_array(value) if seen.left >= 0 else f"{UNKNOWN}: an array of {value.nbytes} bytes"
    elif isinstance(value, bytes | bytearray) and len(value) > 64:
        table[name] = f"{type(value).__name__} {len(value)} {digest(bytes(value))}"
    elif isinstance(value, bytes | bytearray | complex | slice | range | np.dtype | type(...)):
        table[name] = f"{type(value).__name__} {value!r}"
    elif seen.to_share and isinstance(value, list | dict | set) and not value:
        table[name] = f"{UNKNOWN}: an empty {type(value).__name__}"
    elif isinstance(value, frozenset | set) and all(isinstance(entry, PLAIN) for entry in value):
        table[name] = f"{type(value).__name__} {sorted(map(repr, value))}"
    elif isinstance(value, types.ModuleType | type) and (
        not seen.in_depth or isinstance(value, types.ModuleType) or _is_library(value)
    ):
        table[name] = _name_of(value) if _is_library(value) else f"{UNKNOWN}: {_name_of(value)}, but for its name"
    elif isinstance(value, np.ufunc) or (
        isinstance(value, types.BuiltinFunctionType) and isinstance(value.__self__, types.ModuleType | type | None)
    ):  # a function of a module or a class; a bound method of an object is not
        table[name] = _name_of(value)
    elif id(value) in seen:
        table[name] = f"as {seen[id(value)][0]}"
    else:
        if not isinstance(value, dict | tuple | list):
            seen[id(value)] = (name, value)
        for end, part in _parts(value, table, name, in_depth=seen.in_depth):
            _add(part, f"{name}{end}", table, seen, depth + 1)


def _parts(value: Any, table: Fingerprint, name: str, *, in_depth: bool) -> list[tuple[str, Any]]:
    """The parts of a value, each with the end of its row's name; the row of the value itself is added to the table."""
    if isinstance(value, types.CodeType):
        compiled = (
            value.co_code,
            value.co_names,
            value.co_varnames,
            value.co_freevars,
            value.co_flags,
            value.co_argcount,
        )
        table[f"{name} code"] = digest(repr((*compiled, value.co_kwonlyargcount, value.co_exceptiontable)).encode())
        constants = value.co_consts[1:] if _has_docstring(value) else value.co_consts
        is_inner = [isinstance(constant, types.CodeType) for constant in constants]
        return [
            (f" inner {k} {constant.co_name}" if inner else f" constant {k}", constant)
            for k, (constant, inner) in enumerate(zip(constants, is_inner, strict=True))
        ]
    if isinstance(value, types.MethodType):
        table[name] = "method"
        return [(" function", value.__func__), (" object", value.__self__)]
    if isinstance(value, types.BuiltinFunctionType):
        table[name] = f"method {value.__name__}"
        return [(" object", value.__self__)]
    if isinstance(value, functools.partial):
        table[name] = "partial"
        keywords = [(" keywords", value.keywords)] if value.keywords else []
        return [(" function", value.func), (" arguments", value.args), *keywords]
    if isinstance(value, types.FunctionType):
        return _parts_of_function(value, table, name)
    if callable(value) and hasattr(value, "__wrapped__") and _is_library(type(value)):  # jax.jit and its like
        table[name] = f"wrapped by {_name_of(type(value))}"
        rules = [(f" {rule}", getattr(value, rule, None)) for rule in ("jvp", "fwd", "bwd")]
        return [(" function", value.__wrapped__), *(rule for rule in rules if callable(rule[1]))]
    if isinstance(value, dict):
        table[name] = f"{type(value).__name__} of {len(value)}"
        return [(f"[{key!r}]", part) for key, part in value.items()]
    if isinstance(value, tuple | list):
        table[name] = f"{type(value).__qualname__} of {len(value)}"
        fields = getattr(value, "_fields", None)
        return [(f".{fields[k]}" if fields is not None else f"[{k}]", part) for k, part in enumerate(value)]
    if isinstance(value, type):
        table[name] = _name_of(value)
        defined = sorted(vars(value).keys() - _OF_EVERY_CLASS)
        bases = [(f" base {k}", base) for k, base in enumerate(value.__bases__)]
        return bases + [(f".{key}", vars(value)[key]) for key in defined]
    if in_depth and isinstance(value, property | functools.cached_property):
        return [(" function", value.fget if isinstance(value, property) else value.func)]
    if in_depth and (reduced := _reduced(value)) is not None:
        table[name] = _name_of(type(value))
        return reduced
    return _parts_of_object(value, table, name, in_depth=in_depth)


def _parts_of_function(function: types.FunctionType, table: Fingerprint, name: str) -> list[tuple[str, Any]]:
    code = function.__code__
    parts: list[tuple[str, Any]] = [("", code)]
    parts += [(" defaults", function.__defaults__)] if function.__defaults__ else []
    parts += [(" keyword defaults", function.__kwdefaults__)] if function.__kwdefaults__ else []
    for variable, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            parts.append((f" closure {variable}", cell.cell_contents))
        except ValueError:  # named before it has a value
            table[f"{name} closure {variable}"] = "empty"
    attributes = {
        key: part for key, part in vars(function).copy().items() if not key.startswith((PROGRAMS, "__wrapped__"))
    }
    parts += [(f".{key}", part) for key, part in sorted(attributes.items())]
    if not _is_of_library(function.__module__ or "", code.co_filename):  # else the version stands for the names it uses
        named = sorted(_names(code) & function.__globals__.keys())
        parts += [(f" global {variable}", function.__globals__[variable]) for variable in named]
        for variable in sorted(_names(code) - function.__globals__.keys()):
            module = sys.modules.get(variable)
            if module is not None and not _is_library(module):  # imported inside
                table[f"{name} import {variable}"] = f"{UNKNOWN}: {_name_of(module)}, but for its name"
    return parts


def _reduced(value: Any) -> list[tuple[str, Any]] | None:
    """The parts that pickle takes of an object of a library, which leave out what it has computed since; None without them."""
    if not _is_library(type(value)) or _is_ours(type(value)):
        return None
    try:
        reduced = value.__reduce_ex__(4)
    except Exception:  # a lock, a generator, an open file
        return None
    if isinstance(reduced, str):
        return [(" name", reduced)]
    maker, arguments, state, *iterators = (*reduced, None, None, None)[:5]
    if isinstance(state, dict):
        state = {key: part for key, part in state.items() if not str(key).startswith(PROGRAMS)}
    items = [(f" items {k}", list(those)) for k, those in enumerate(iterators) if those is not None]
    return [(" maker", maker), (" arguments", arguments), (" state", state), *items]


def _parts_of_object(value: Any, table: Fingerprint, name: str, *, in_depth: bool) -> list[tuple[str, Any]]:
    """A record or an object with fields: its class and those."""
    kind = type(value)
    call = kind.__call__ if callable(value) else None
    fields = getattr(kind, "__dataclass_fields__", None)
    parts: dict[str, Any] | None = None
    if _is_ours(kind) and kind.__getstate__ is not object.__getstate__:  # a model, whose hash differs among processes
        parts = value.__getstate__()
    elif hasattr(value, "__dict__"):
        parts = {key: part for key, part in vars(value).copy().items() if not key.startswith(PROGRAMS)}
    if fields is not None:
        parts = (parts or {}) | {field: getattr(value, field) for field in fields if hasattr(value, field)}
    if in_depth and parts is not None:
        parts = {
            key: part
            for key, part in parts.items()
            if not isinstance(getattr(kind, key, None), functools.cached_property)
        }
    if in_depth and not _is_library(kind):
        state = object.__getstate__(value)
        parts = (parts or {}) | (state[1] if isinstance(state, tuple) else {}) | {" class": kind}
    if parts is None or (not parts and not isinstance(call, types.FunctionType) and fields is None):
        table[name] = f"{UNKNOWN}: {_name_of(kind)}"
        return []
    table[name] = _name_of(kind)
    if not _is_library(kind) and not in_depth:
        table[f"{name} methods"] = f"{UNKNOWN}: those of {_name_of(kind)}, but for its call"
    rows = [(f".{field}", part) for field, part in sorted(parts.items())]
    return rows + ([(" call", call)] if isinstance(call, types.FunctionType) else [])


def _has_docstring(code: types.CodeType) -> bool:
    if sys.version_info >= (3, 14):
        return bool(code.co_flags & inspect.CO_HAS_DOCSTRING)
    return bool(code.co_consts) and isinstance(code.co_consts[0], str)  # no other constant can come first


def _names(code: types.CodeType) -> set[str]:
    """All names that a function's code and the code inside it look up."""
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*inner)


def _is_ours(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "fisher_jax"


def _is_library(value: types.ModuleType | type) -> bool:
    """Whether a module or a class comes with a library."""
    module = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
    return _is_of_library(module, getattr(sys.modules.get(module), "__file__", None) or "")


def _is_of_library(module: str, path: str) -> bool:
    top = module.partition(".")[0]
    if top == "__main__":  # the user's, whatever program it runs in: a worker of Dask, a test
        return False
    return (
        top in sys.stdlib_module_names or top == "fisher_jax" or any(place in Path(path).parts for place in _INSTALLED)
    )


def _name_of(value: Any) -> str:
    if isinstance(value, types.ModuleType):
        return f"module {value.__name__}"
    module = inspect.getmodule(type(value) if isinstance(value, np.ufunc) else value)
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", type(value).__name__)
    return f"{module.__name__ if module else 'builtins'}.{name}"
