"""What the tests of many models share."""

import contextlib

import jax
import pytest


def some_of(names, *few):
    """Parameters of a test: a few of the names in every run, the others by `make exhaustive`. A name may be a tuple."""
    if strangers := set(few) - set(names):
        raise ValueError(f"some_of: {sorted(strangers)} are none of {list(names)}.")
    return [
        pytest.param(
            *(name if isinstance(name, tuple) else (name,)), marks=() if name in few else pytest.mark.exhaustive
        )
        for name in names
    ]


@contextlib.contextmanager
def compiled_programs():
    """A list with an entry for each program that XLA compiles meanwhile."""
    compiled = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
