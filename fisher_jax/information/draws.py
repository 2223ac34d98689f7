"""Pairs of draws from a model, by number: the t-th pair is the same whatever chunk it is taken in."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from fisher_jax.errors import call_user
from fisher_jax.information.expectations import SCRAMBLINGS, MonteCarlo, QuasiMonteCarlo
from fisher_jax.models.likelihood import terms_of
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Values

Drawing = Callable[[Int[Array, " c"]], PyTree]


def unit_terms(
    model: Model, layout: Layout, values: Values, has_given: bool
) -> Callable[[Float[Array, " p"], PyTree], Float[Array, " c"]]:
    """Log-densities of several draws: of one observation each, or for dependent data of a whole series, in all its terms."""
    terms = terms_of(model, layout, values, has_given)
    if not model.is_dependent:
        return terms
    return lambda flat, rows: jax.vmap(lambda row: jnp.sum(terms(flat, row)))(rows)


FEW_PRODUCTS = 2**18  # of scores that are summed, up to which sums take less than a tenth of a second, however compiled


def are_few(model: Model, layout: Layout, draws: Any, given: PyTree) -> bool:
    """Whether there is less to compute by these draws than to compile."""
    return not model.is_dependent and draws.num_samples * num_rows(model, given) * layout.num_free**2 <= FEW_PRODUCTS


def num_rows(model: Model, given: PyTree) -> int:
    """How many rows of covariates an average is over; a series has its covariates whole."""
    return 1 if given is None or model.is_dependent else jax.tree.leaves(given)[0].shape[0]


def num_pairs(model: Model, expectation: Any, given: PyTree) -> int:
    """Pairs of draws over all rows, refused where their numbers would overflow."""
    rows = num_rows(model, given)
    pairs = rows * (expectation.num_samples // 2)
    if 2 * pairs >= 2**31:
        raise ValueError(
            f"{expectation.num_samples} draws for each of {rows} rows of given are more than 2³¹ in all. Give fewer "
            "draws, or some of the rows."
        )
    return pairs


def terms_per_draw(model: Model, layout: Layout, values: Values, expectation: Any, given: PyTree) -> int:
    """How many log-densities one draw of y makes up: one, or for a series as many as it has terms."""
    if not model.is_dependent:
        return 1
    draw = drawing(model, layout.assemble(values), given, expectation)
    first = jax.eval_shape(lambda: jax.tree.map(lambda leaf: leaf[0], draw(jnp.zeros((1,), int))))
    terms = terms_of(model, layout, values, given is not None)
    return jax.eval_shape(terms, layout.unconstrain(values), first).shape[0]


def drawing(model: Model, params: PyTree, given: PyTree, expectation: Any) -> Drawing:
    """The function from pair numbers (c,) to 2c rows: the first members of the pairs, then the second.

    Pairs are numbered row by row of `given`. A row is y, or (y, z).
    """
    params = jax.lax.stop_gradient(params)
    one = _independent if isinstance(expectation, MonteCarlo) else _scrambled
    draw = one(model, params, expectation)
    per_row = expectation.num_samples // 2

    def pair(number: Int[Array, " c"]) -> PyTree:
        number = jnp.concatenate([number, number])
        second = jnp.arange(number.shape[0]) >= number.shape[0] // 2
        if given is None:
            return jax.lax.stop_gradient(jax.vmap(draw)(number, second))
        if model.is_dependent:
            z = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (number.shape[0], *leaf.shape)), given)
        else:
            z = jax.tree.map(lambda leaf: jnp.asarray(leaf)[number // per_row], given)
        return jax.lax.stop_gradient(jax.vmap(draw)(number, second, z)), z

    return pair


def _independent(model: Model, params: PyTree, expectation: MonteCarlo) -> Callable[..., PyTree]:
    if model.sample is None:
        raise ValueError(
            "MonteCarlo draws from the model, which has no sampler. Give Model(…, sample=function(key, params)), "
            "one draw of y, or use Quadrature or Enumeration."
        )
    sample = model.sample

    def draw(number: Array, second: Array, *z: PyTree) -> PyTree:
        key = jax.random.fold_in(expectation.key, 2 * number + second)
        return call_user(sample, (key, params, *z), "sample")

    return draw


def _scrambled(model: Model, params: PyTree, expectation: QuasiMonteCarlo) -> Callable[..., PyTree]:
    if model.quantile is None:
        raise ValueError(
            "QuasiMonteCarlo needs the inverse of the distribution function. Give Model(…, quantile=function("
            "uniform, params)), or use MonteCarlo."
        )
    quantile = model.quantile
    per_row, pairs = expectation.num_samples // 2, SCRAMBLINGS // 2
    table = jnp.asarray(_sobol(per_row // pairs, expectation.dimension or 1))

    def draw(number: Array, second: Array, *z: PyTree) -> PyTree:
        row, within = number // per_row, number % per_row
        scrambling = row * SCRAMBLINGS + 2 * (within % pairs) + second
        seeds = jax.random.bits(jax.random.fold_in(expectation.key, scrambling), table.shape[1:], jnp.uint32)
        uniform = _to_unit_interval(_scramble(table[within // pairs], seeds))
        uniform = uniform if expectation.dimension else uniform[0]
        return call_user(quantile, (uniform, params, *z), "quantile")

    return draw


@functools.lru_cache(maxsize=16)
def _sobol(count: int, dimension: int) -> np.ndarray:
    """The first points of the Sobol sequence as 32-bit integers (count, dimension), made on the host."""
    from scipy.stats import qmc

    points = qmc.Sobol(dimension, scramble=False).random_base2(max(count - 1, 0).bit_length())[:count]
    return (points * 2.0**32).astype(np.uint32)


def _scramble(points: Array, seeds: Array) -> Array:
    """Owen's nested uniform scrambling in base 2, each digit flipped as a hash of the seed and of those before it."""
    reversed_bits = _reverse(points) + seeds
    for multiplier in (0x6C50B47C, 0xB82F1E52, 0xC7AFE638, 0x8D22F6E6):  # Burley (2020), listing 1
        reversed_bits = reversed_bits ^ (reversed_bits * jnp.uint32(multiplier))
    return _reverse(reversed_bits)


def _reverse(bits: Array) -> Array:
    for shift, mask in ((1, 0x55555555), (2, 0x33333333), (4, 0x0F0F0F0F), (8, 0x00FF00FF), (16, 0x0000FFFF)):
        low = jnp.uint32(mask)
        bits = ((bits >> shift) & low) | ((bits & low) << shift)
    return bits


def _to_unit_interval(bits: Array) -> Array:
    """Strictly between 0 and 1 in JAX's default precision."""
    dtype = jnp.zeros(()).dtype
    kept = min(32, jnp.finfo(dtype).nmant)
    return ((bits >> (32 - kept)).astype(dtype) + 0.5) / 2.0**kept
