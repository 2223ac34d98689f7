"""How the parameters of a model scale with the units of its data: the powers k in θ_j → c^k θ_j when arrays are multiplied by c.

Measured in another unit, an observation y becomes c y and its density 1/c of what it was: p(c y; c^k θ) = p(y; θ) / c for each
entry of y. Differentiated with respect to log c at c = 1 this is Euler's equation for homogeneous functions,

    y ∂ℓ/∂y + Σ_j k_j θ_j ∂ℓ/∂θ_j = −(number of entries of y),

linear in k, and for a covariate the same with 0 on the right. It holds at every point, if for any k at all: so it is set up at many
points drawn at random, and k is believed only where all equations hold to rounding, with whole numbers.
"""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.models.likelihood import term_of, terms_at_once
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.programs import jit_with_model

NUM_PARAMETERS, NUM_ROWS = 16, 64  # points: so many parameters, and so many observations for each
MOST_ENTRIES = 2**16  # of the data at all points together: a long series is seen with fewer
RESIDUAL = 1e-8  # of an equation, relative to its largest term
WHOLE = 1e-6


def powers_of_parameters(
    model: Model, layout: Layout, values: Values, data: PyTree, given: PyTree, groups: tuple[int, ...]
) -> Float[np.ndarray, "g q"]:
    """The power of each unit in each parameter; NaN where it does not follow.

    `data` and `given` have the shapes and dtypes of one observation, of a dependent model those of a series. `groups` numbers the
    unit that each of their leaves has, the same where they have it in common; −1 for a number without one.
    """
    num_groups = max(groups, default=-1) + 1
    unknown = np.full((num_groups, len(layout.names)), np.nan)
    rng, in_float64 = np.random.default_rng(0), replace(layout, dtype=np.dtype(np.float64))
    leaves, treedef = jax.tree.flatten((data, given))
    entries = NUM_PARAMETERS * sum(int(np.prod(leaf.shape)) for leaf in leaves)
    num_rows = int(np.clip(MOST_ENTRIES // max(entries, 1), 4, NUM_ROWS))
    if model.with_modes is not None:  # a density that is an integral costs too much for this
        return unknown
    with jax.enable_x64(True):
        # Near the start, where parameters are typical; a shape that starts at zero must leave it.
        start = np.asarray(in_float64.unconstrain(values), np.float64)
        start = np.where(np.isfinite(start), start, 0.0)  # where it is not the same for all fits, or made of their data
        free = start + 0.3 * rng.normal(size=(NUM_PARAMETERS, len(start)))
        each = lambda x: np.broadcast_to(np.asarray(x), (NUM_PARAMETERS, *np.shape(x)))  # noqa: E731
        params = in_float64.constrained_values(free, [each(value) for value in values])
        theta = np.concatenate(
            [np.reshape(np.asarray(x, float), (NUM_PARAMETERS, -1)) for x in params] or [free], axis=1
        )
        rows = [_draw(rng, leaf, theta, num_rows, group) for leaf, group in zip(leaves, groups, strict=True)]
        try:
            slopes, sums, term = _slopes(model, in_float64, treedef, groups, params, rows)
        except (
            TypeError,
            ValueError,
            IndexError,
        ):  # of drawn numbers, for example a float for an index; the fit raises what is wrong
            return unknown
    slopes, sums, term = (np.asarray(x).reshape(NUM_PARAMETERS * num_rows, -1) for x in (slopes, sums, term))
    usable = np.all(np.isfinite(np.concatenate([slopes, sums, term], axis=1)), axis=1) & np.any(slopes != 0, axis=1)
    slopes, sums = slopes[usable], sums[usable]
    if len(slopes) < 4 * (slopes.shape[1] + 1):
        return unknown
    # All powers of one unit, those of fixed parameters too; and how far each is determined at all.
    scale = np.abs(slopes).max(axis=1) + np.abs(sums).max(axis=1) + 1.0
    matrix = slopes / scale[:, None]
    length = np.linalg.norm(matrix, axis=0)
    length = np.where(length > 0, length, 1.0)
    _, singular, axes = np.linalg.svd(matrix / length, full_matrices=False)
    ambiguous = np.any(np.abs(axes[singular <= 1e-9 * singular[0]]) > WHOLE, axis=0)
    # Where the entries of θ, in the order of their names, are among those of all leaves.
    starts = np.cumsum([0, *(leaf.size for leaf in layout.leaves)])
    estimated = np.concatenate([starts[i] + np.arange(leaf.size) for i, leaf in layout.free_leaves]).astype(int)
    powers = unknown
    num_entries = [0] * num_groups  # of an observation, which its density is one of
    for leaf, group in zip(jax.tree.leaves(data), groups, strict=False):
        if group >= 0:
            num_entries[group] += int(np.prod(leaf.shape[1:] if model.is_dependent else leaf.shape))
    count = term[usable][0, 1]
    for group, number in enumerate(num_entries):
        right = -(sums[:, group] + number * count) / scale
        solution = np.linalg.lstsq(matrix / length, right, rcond=1e-9)[0] / length
        if np.max(np.abs(matrix @ solution - right)) < RESIDUAL:
            nearest = np.round(solution)
            powers[group] = np.where(ambiguous | (np.abs(solution - nearest) > WHOLE), np.nan, nearest)[estimated]
    return powers


def _draw(rng: np.random.Generator, leaf: Any, theta: np.ndarray, num_rows: int, group: int) -> np.ndarray:
    """Values of a leaf at all points (K, R, …), on the scale of the parameters there, since these show what is typical."""
    shape = (len(theta), num_rows, *leaf.shape)
    kind = np.dtype(leaf.dtype).kind
    if kind == "b":
        return rng.random(shape) < 0.5
    if kind in "iu" and group < 0:  # a code or an index
        return rng.integers(0, 2, shape).astype(leaf.dtype)
    flat = (len(theta), num_rows, int(np.prod(leaf.shape)))
    # Sums of a few parameters, one or a random number of times each: for example a location and some scales from it.
    factors = np.where(rng.random((*flat, theta.shape[1])) < 0.5, 1.0, rng.normal(size=(*flat, theta.shape[1])))
    chosen = factors * (rng.random(factors.shape) < 0.6)
    values = np.einsum("krep,kp->kre", chosen, theta) + np.where(rng.random(flat) < 0.3, rng.normal(size=flat), 0.0)
    positive = np.arange(num_rows)[:, None] % 2 == 1  # half of them, for densities on the half line
    return np.where(positive, np.abs(values), values).reshape(shape)


@functools.partial(jit_with_model, static_argnums=(0, 1, 2, 3), level=0)
def _slopes(
    model: Model, layout: Layout, treedef: Any, groups: tuple[int, ...], values: Values, rows: list[Any]
) -> tuple[Float[Array, "K R q"], Float[Array, "K R g"], Float[Array, "K R 2"]]:
    """θ_j ∂ℓ/∂θ_j, Σ y ∂ℓ/∂y over the arrays of each unit; and ℓ with the number of its terms."""
    moving = [k for k, value in enumerate(values) if jnp.issubdtype(value.dtype, jnp.floating)]
    scaled = [k for k, group in enumerate(groups) if group >= 0]

    def log_density(of_values: Values, of_rows: list[Any], values: Values, rows: list[Any]) -> Any:
        values, rows = list(values), list(rows)
        for k, value in zip(moving, of_values, strict=True):
            values[k] = value
        for k, row in zip(scaled, of_rows, strict=True):
            rows[k] = row
        y, z = jax.tree.unflatten(treedef, rows)
        given = () if z is None else (z,)
        of_row = terms_at_once if model.is_dependent else term_of
        terms = jnp.atleast_1d(of_row(model, layout.assemble(values), y, given))
        return jnp.sum(terms), jnp.float64(len(terms))

    def at(values: Values, rows: list[Any]) -> Any:
        of_values, of_rows = [values[k] for k in moving], [rows[k] for k in scaled]
        (value, count), (by_value, by_row) = jax.value_and_grad(log_density, (0, 1), has_aux=True)(
            of_values, of_rows, values, rows
        )
        slopes = [jnp.zeros(value.size) for value in values]  # a column for every entry, also of integers
        for k, x, slope in zip(moving, of_values, by_value, strict=True):
            slopes[k] = jnp.ravel(x * slope)
        sums = [jnp.zeros(())] * (max(groups, default=-1) + 1)
        for k, x, slope in zip(scaled, of_rows, by_row, strict=True):
            sums[groups[k]] = sums[groups[k]] + jnp.sum(x * slope)
        return jnp.concatenate(slopes), jnp.stack(sums), jnp.stack([value, count])

    return jax.vmap(jax.vmap(at, (None, 0)))(values, rows)
