"""Resampling as weights: how often each term of a likelihood comes in a replicate, from a key and the replicate's number."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


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


def resampled_counts(scheme: Scheme, key: Array, number: Int[Array, ""]) -> Float[Array, " g"]:
    """How often each unit comes in one replicate."""
    num_draws = -(-scheme.total // scheme.length)
    starts = jax.random.randint(jax.random.fold_in(key, number), (num_draws,), 0, scheme.num_starts)
    if scheme.copies is not None:
        starts = jnp.searchsorted(jnp.cumsum(jnp.asarray(scheme.copies)), starts, side="right")
    runs = (starts[:, None] + jnp.arange(scheme.length)[None, :]).reshape(-1)[: scheme.total] % scheme.num_units
    return jnp.zeros((scheme.num_units,), int).at[runs].add(1).astype(float)
