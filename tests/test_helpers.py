"""The helpers of the tests do what they say."""

import jax.numpy as jnp
import pytest
import typechecking
from beartype.roar import BeartypeCallHintViolation
from helpers import some_of

import fisher_jax as fj
from fisher_jax.numerics import linalg


def test_some_run_always_and_the_others_when_all_is_asked_for():
    marked = {param.values: [mark.name for mark in param.marks] for param in some_of(["a", ("b", 2)], "a")}
    assert marked == {("a",): [], ("b", 2): ["exhaustive"]}
    with pytest.raises(ValueError, match=r"\['c'\] are none of"):
        some_of(["a", "b"], "c")


def test_shapes_that_disagree_raise_and_axes_are_named_anew_at_each_call():
    with pytest.raises(BeartypeCallHintViolation, match="factorize"):
        linalg.factorize(jnp.ones((2, 3)))
    for p in (2, 3):
        assert linalg.factorize(jnp.eye(p)).definite


def test_a_function_made_inside_another_is_checked_the_first_time():
    def make():
        def double(x: int) -> int:
            return 2 * x

        return typechecking.check(double)

    with pytest.raises(BeartypeCallHintViolation, match="double"):
        make()("one")
    assert make()("one") == "oneone"


def test_fields_of_records_are_checked_and_public_functions_check_their_arguments_themselves():
    with pytest.raises(BeartypeCallHintViolation, match="names"):
        fj.Information(jnp.eye(2), "ab", "made up")
    with pytest.raises((TypeError, ValueError), match="fit: expected"):
        fj.fit("no model", 1.0, [1.0])
