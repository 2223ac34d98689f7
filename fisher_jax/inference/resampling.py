"""Resampling as weights: how often each term of a likelihood comes in a replicate, from a key and the replicate's number."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fisher_jax.models.programs import quick_options


class Scheme(NamedTuple):
    """What is drawn with replacement: `num_draws` times one of the runs of `length` units that start at one of `num_starts`.

    `unit_of` is the unit (from 0) of each term, `copies` how many equal ones each unit stands for, `num_units` how many
    units there are; a run goes on at the first unit after the last. `total` is how many units a replicate has.
    """

    unit_of: Int[np.ndarray, " n"]
    copies: Int[np.ndarray, " g"] | None
    num_units: int
    num_starts: int
    length: int
    total: int


def of_units(unit_of: np.ndarray, copies: np.ndarray | None) -> Scheme:
    """Units drawn one by one: observations, or clusters of them."""
    num_units = int(unit_of.max()) + 1 if len(unit_of) else 0
    total = num_units if copies is None else int(copies.sum())
    return Scheme(unit_of, copies, num_units, total, 1, total)


def of_blocks(num_terms: int, length: int, *, circular: bool) -> Scheme:
    """Blocks of consecutive terms, which may go round the end if `circular`."""
    starts = num_terms if circular else num_terms - length + 1
    return Scheme(np.arange(num_terms), None, num_terms, starts, length, num_terms)


def resampled_counts(scheme: Scheme, key: Any, numbers: Int[np.ndarray, " r"]) -> Float[Array, "r g"]:
    """How often each unit comes in each of these replicates; a replicate depends on the key and its own number only."""
    fixed = (scheme.num_units, scheme.num_starts, scheme.length, scheme.total)
    return _compiled_counts()(fixed, scheme.copies, key, numbers)


def _counts(fixed: tuple[int, int, int, int], copies: Any, key: Any, numbers: Int[Array, " r"]) -> Float[Array, "r g"]:
    num_units, num_starts, length, total = fixed

    def one(number: Array) -> Array:
        starts = jax.random.randint(jax.random.fold_in(key, number), (-(-total // length),), 0, num_starts)
        if copies is not None:
            starts = jnp.searchsorted(jnp.cumsum(copies), starts, side="right")
        runs = (starts[:, None] + jnp.arange(length)[None, :]).reshape(-1)[:total] % num_units
        return jnp.zeros((num_units,), int).at[runs].add(1).astype(float)

    return jax.vmap(one)(numbers)


@functools.cache
def _compiled_counts() -> Any:  # not when imported, as the options ask JAX for its device
    return jax.jit(_counts, static_argnums=0, compiler_options=quick_options(1))
