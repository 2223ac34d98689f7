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

FEW_PRODUCTS = 2**18  # of scores that are summed, up to which sums take less than a tenth of a second, however compiled
Drawing = Callable[[Int[Array, " c"]], PyTree]


def unit_terms(
    model: Model, layout: Layout, values: Values, has_given: bool
) -> Callable[[Float[Array, " p"], PyTree], Float[Array, " c"]]:
    """Log-densities of several draws: of one observation each, or for dependent data of a whole series, in all its terms."""
    terms = terms_of(model, layout, values, has_given)
    if not model.is_dependent:
        return terms
    return lambda flat, rows: jax.vmap(lambda row: jnp.sum(terms(flat, row)))(rows)


def are_few(model: Model, layout: Layout, draws: Any, given: PyTree) -> bool:
    """Whether computing with these draws takes less time than compiling for them would."""
    return not model.is_dependent and draws.num_samples * num_rows(model, given) * layout.num_free**2 <= FEW_PRODUCTS


def num_rows(model: Model, given: PyTree) -> int:
    """How many rows of covariates an average is over; a series has its covariates whole."""
    return 1 if given is None or model.is_dependent else jax.tree.leaves(given)[0].shape[0]


def num_pairs(model: Model, expectation: Any, given: PyTree) -> int:
    """Pairs of draws over all rows; raises where their numbers would overflow."""
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
    per_row = expectation.num_samples // 2
    draw = _independent_draw if isinstance(expectation, MonteCarlo) else _scrambled_draw
    draw_member = draw(model, params, expectation)

    def draw_pairs(number: Int[Array, " c"]) -> PyTree:
        number = jnp.concatenate([number, number])
        second = jnp.arange(number.shape[0]) >= number.shape[0] // 2
        if given is None:
            return jax.lax.stop_gradient(jax.vmap(draw_member)(number, second))
        if model.is_dependent:
            z = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (number.shape[0], *leaf.shape)), given)
        else:
            z = jax.tree.map(lambda leaf: jnp.asarray(leaf)[number // per_row], given)
        return jax.lax.stop_gradient(jax.vmap(draw_member)(number, second, z)), z

    return draw_pairs


def _independent_draw(model: Model, params: PyTree, expectation: MonteCarlo) -> Callable[..., PyTree]:
    if model.sample is None:
        raise ValueError(
            f"MonteCarlo draws from the model, which has no sampler. {model.how_to_draw} Quadrature and Enumeration need none."
        )

    def draw(number: Array, second: Array, *z: PyTree) -> PyTree:
        key = jax.random.fold_in(expectation.key, 2 * number + second)
        return call_user(model.sample, (key, params, *z), "sample")  # type: ignore[arg-type]

    return draw


def _scrambled_draw(model: Model, params: PyTree, expectation: QuasiMonteCarlo) -> Callable[..., PyTree]:
    if model.quantile is None:
        raise ValueError(
            "QuasiMonteCarlo needs the inverse of the distribution function. Give Model(…, quantile=function("
            "uniform, params)), or use MonteCarlo."
        )
    per_row, pairs = expectation.num_samples // 2, SCRAMBLINGS // 2
    points = jnp.asarray(_sobol(per_row // pairs, expectation.dimension or 1))
    dtype = jnp.zeros(()).dtype  # JAX's default precision, which may hold fewer digits than the 32 bits of a point
    num_bits = min(32, jnp.finfo(dtype).nmant)

    def draw(number: Array, second: Array, *z: PyTree) -> PyTree:
        row, within = number // per_row, number % per_row
        scrambling = row * SCRAMBLINGS + 2 * (within % pairs) + second
        seeds = jax.random.bits(jax.random.fold_in(expectation.key, scrambling), points.shape[1:], jnp.uint32)
        bits = _scramble(points[within // pairs], seeds)
        uniform = ((bits >> (32 - num_bits)).astype(dtype) + 0.5) / 2.0**num_bits  # strictly between 0 and 1
        return call_user(
            model.quantile,  # type: ignore[arg-type]
            (uniform if expectation.dimension else uniform[0], params, *z),
            "quantile",
        )

    return draw


@functools.lru_cache(maxsize=16)
def _sobol(count: int, dimension: int) -> np.ndarray:
    """The first points of the Sobol sequence as 32-bit integers (count, dimension), made on the host."""
    from scipy.stats import qmc

    points = qmc.Sobol(dimension, scramble=False).random_base2(max(count - 1, 0).bit_length())[:count]
    return (points * 2.0**32).astype(np.uint32)


def _scramble(points: Array, seeds: Array) -> Array:
    """Owen's nested uniform scrambling in base 2: each digit is flipped by a hash of the seed and of the digits before it.

    With the digits reversed, x ^ (x · even) changes each by lower ones only, which are those before it.
    """
    reversed_bits = _reverse(points) + seeds
    for multiplier in (0x6C50B47C, 0xB82F1E52, 0xC7AFE638, 0x8D22F6E6):  # Burley (2020), listing 1
        reversed_bits = reversed_bits ^ (reversed_bits * jnp.uint32(multiplier))
    return _reverse(reversed_bits)


def _reverse(bits: Array) -> Array:
    for shift, mask in ((1, 0x55555555), (2, 0x33333333), (4, 0x0F0F0F0F), (8, 0x00FF00FF), (16, 0x0000FFFF)):
        low = jnp.uint32(mask)
        bits = ((bits >> shift) & low) | ((bits & low) << shift)
    return bits
