"""The helpers of the tests do what they say."""

import pytest
from helpers import some_of


def test_some_run_always_and_the_others_when_all_is_asked_for():
    marked = {param.values: [mark.name for mark in param.marks] for param in some_of(["a", ("b", 2)], "a")}
    assert marked == {("a",): [], ("b", 2): ["exhaustive"]}
    with pytest.raises(ValueError, match=r"\['c'\] are none of"):
        some_of(["a", "b"], "c")
