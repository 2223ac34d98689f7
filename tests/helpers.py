"""What the tests of many models share."""

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
