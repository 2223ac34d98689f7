"""Models that travel between processes: the copies of a model that reach a process are one object there.

Dask, Ray and joblib pickle a model anew with each task. If each copy were an object of its own, a worker would compile in each
task what `fingerprint.content_of` cannot identify: a density that closes over a large array or over an object of the user's.

So a model is given a name when it is pickled first, and a process that has a model of that name takes it in place of the copy;
the process that sent it does so too, when results come back. The name is random, so that two models never share one, and ends in a
digest of all that its functions use: where a value is replaced, or changed in place, between two tasks (a constant of a notebook),
another model is sent; and a model that has changed since it got its name does not stand for it any longer.
"""

import json
import threading
import uuid
import weakref
from collections import OrderedDict
from typing import Any

import jax

from fisher_jax.models.fingerprint import digest, fingerprint

MAX_ARRIVED = 32  # models that stay, with their programs, when the task is over that they came with

_present: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
_arrived: OrderedDict[str, Any] = OrderedDict()  # the last used at the end
_lock = threading.RLock()  # reentrant, since a model may be freed, and its functions with it, while it is held


def name_of(model: Any) -> str:
    """The name by which other processes know this model, as it is now; one that arrived here has that of its sender."""
    content = _content(model)
    if model.__dict__.get("_content_at_arrival") == content:
        return str(model.__dict__["_name_of_sender"])
    number = model.__dict__.setdefault("_number", uuid.uuid4().hex)
    precision = "float64" if jax.config.read("jax_enable_x64") else "float32"
    name = f"{number} {content} {precision}"
    with _lock:
        _present[name] = model
    return name


def arrive(kind: type, name: str) -> Any:
    """The model of this name, if it has not changed since, or an empty one that `__setstate__` of a model fills."""
    with _lock:
        model = _present.get(name)
        if name in _arrived:
            _arrived.move_to_end(name)
    if model is None or not _is_still(model, name):
        model = object.__new__(kind)
        model.__dict__["_name_of_sender"] = name
    return model


def stay(model: Any) -> None:
    """Have later copies of a model that has arrived, and is complete, give way to it."""
    model.__dict__["_content_at_arrival"] = _content(model)
    name = model.__dict__["_name_of_sender"]
    with _lock:
        present = _present.get(name)
        if present is None or not _is_still(present, name):
            _present[name] = model
        _arrived[name] = _present[name]
        while len(_arrived) > MAX_ARRIVED:
            _arrived.popitem(last=False)


def check_precision(model: Any) -> None:
    """Raise where a model comes from a process that computes in float64, and this one does not."""
    if model.__dict__.get("_name_of_sender", "").endswith("float64") and not jax.config.read("jax_enable_x64"):
        raise ValueError(
            "this model was sent by a process that computes in float64, but here jax_enable_x64 is not set, and the results "
            "would be float32. Start each worker with JAX_ENABLE_X64=1 in its environment; or, where float32 is meant, send the "
            "model from a process without x64."
        )


def _content(model: Any) -> str:
    """A digest of all that the functions of a model use, as it is now."""
    return digest(json.dumps(fingerprint(model.__getstate__(), "", in_depth=True), sort_keys=True).encode())


def _is_still(model: Any, name: str) -> bool:
    """Whether a model is as it was when it got this name: here, or where it came from, whose digest may be another."""
    here = model.__dict__.get("_name_of_sender") != name
    return _content(model) == (name.split()[1] if here else model.__dict__["_content_at_arrival"])
