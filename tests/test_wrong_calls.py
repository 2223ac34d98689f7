"""Wrong calls made at random end in an error of fisher_jax's own, which names the argument."""

import functools
import json
import pathlib
import subprocess
import sys

import pytest

# By itself, since the run-time checks of types in these tests would stand before what a user meets.
PROGRAM = pathlib.Path(__file__).with_name("wrong_calls.py")


@functools.cache
def bad_calls(count):
    """For each entry point, those of `count` calls that ended in an error of JAX's, numpy's or Python's."""
    root = str(PROGRAM.parents[1])
    done = subprocess.run([sys.executable, PROGRAM, str(count)], capture_output=True, text=True, check=True, cwd=root)
    return json.loads(done.stdout)


@pytest.mark.parametrize("count", [15, pytest.param(500, marks=pytest.mark.exhaustive)])
def test_of_wrong_calls_fewer_than_one_in_a_hundred_end_in_an_error_that_names_no_argument(count):
    found = bad_calls(count)
    assert len(found) >= 20
    too_many = [[name, *bad] for name, bad in found.items() if len(bad) >= count / 100]
    assert not too_many, "\n".join(line for lines in too_many for line in lines)
