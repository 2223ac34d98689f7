"""Both sides of the profiles of many functions of the parameters at once, from the model and its data."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from fisher_jax.blocks import CHUNK_ENTRIES
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.likelihood import Likelihood, likelihood
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.programs import jit_with_model
from fisher_jax.numerics import linalg
from fisher_jax.numerics.array_namespace import AnyArray, on_host
from fisher_jax.profile.path import End, Path, follow

SIDES = (-1.0, 1.0)
_SPAN = 3.0  # on a logarithmic or logistic scale
_ENTRIES_AT_ONCE = 2**24  # of the scores that all lanes hold together
_FEW_ENTRIES = 2**15  # observations times parameters up to which a profile takes milliseconds, however it is compiled
_BATCH_ENTRIES = 2**18  # observations times lanes in a block of many fits


class Sides(NamedTuple):
    """Profiles of m functions, below and above, as `profile.Path` holds them with axes (m, 2) in front.

    `values` and `ends` are in the function's own unit; `codes` are those of `End`; `reached` is where an end that is no
    cut-off was left, and `fallen` by how much the profile had fallen there.
    """

    estimates: Float[np.ndarray, " m"]
    errors: Float[np.ndarray, " m"]
    ends: Float[np.ndarray, "m 2"]
    codes: Int[np.ndarray, "m 2"]
    reached: Float[np.ndarray, "m 2"]
    fallen: Float[np.ndarray, "m 2"]
    singular: Any
    values: Float[np.ndarray, "m 2 k"]
    drops: Float[np.ndarray, "m 2 k"]
    frees: Float[np.ndarray, "m 2 k p"]


def cut_of(level: Any) -> float:
    """By how many nats the profile may fall: half the quantile of χ² with one degree of freedom."""
    from scipy.special import ndtri

    return 0.5 * float(ndtri(0.5 * (1.0 + float(level)))) ** 2


def profile_sides(
    model: Model,
    layout: Layout,
    function: Callable[[PyTree], Array] | None,
    values: Values,
    dataset: Dataset,
    free: Float[AnyArray, " p"],
    curvature: Float[AnyArray, "p p"],
    columns: np.ndarray,
    level: Any,
) -> Sides:
    """The profiles, from the estimate u, of the numbers in `columns` of a function of params, or of θ where it is None.

    The function returns an array (k,), and is hashable, as it is compiled once for each.
    """
    rows = jax.tree.leaves(dataset.data)[0].shape[0]
    at_once = max(1, _ENTRIES_AT_ONCE // (2 * min(rows * layout.num_free, CHUNK_ENTRIES)))
    profiles = _profiles_of_few if rows * layout.num_free <= _FEW_ENTRIES else _profiles
    parts = [
        jax.device_get(
            profiles(
                model,
                layout,
                function,
                values,
                dataset,
                free,
                curvature,
                columns[k : k + at_once],
                cut_of(level),
            )
        )
        for k in range(0, len(columns), at_once)
    ]
    found, estimates, errors, ends, points = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    edges = layout.edges()[columns] if function is None else np.array(SIDES) * np.full((len(columns), 2), np.inf)
    return _sides(found, estimates, errors, ends, points, edges)


def profile_ends(
    model: Model, dataset: Dataset, layout: Layout, fit: tuple[Values, Any, Any], level: Any
) -> Float[np.ndarray, "*b q 2"]:
    """Ends of the profile intervals of all entries of θ, of one fit or of many in blocks. `fit` is values, u and curvature."""
    if dataset.size is None:
        columns = np.arange(len(layout.names))
        return profile_sides(model, layout, None, fit[0], dataset, fit[1], fit[2], columns, level).ends
    edges, count = layout.edges(), dataset.size
    leaves = zip(jax.tree.leaves(dataset.parts), dataset.differs, strict=True)
    rows = max((int(np.prod(np.shape(leaf)[1:2])) for leaf, own in leaves if own), default=1)
    size = min(count, max(1, _BATCH_ENTRIES // (2 * len(edges) * rows)))
    if count == 0:
        return np.zeros((0, *edges.shape))
    parts, host = [], on_host(fit)
    for start in range(0, count, size):
        block = np.minimum(np.arange(start, start + size), count - 1)
        fits = jax.tree.map(lambda leaf, block=block: leaf[block], host)
        parts.append(jax.device_get(_ends_of_each(model, layout, dataset.take(block), fits, cut_of(level))))
    codes, ends = (np.concatenate(part)[:count] for part in zip(*parts, strict=True))
    return np.select([codes == End.CUT_OFF, codes == End.NEVER_FALLS], [ends, edges[None]], np.nan).astype(ends.dtype)


@functools.partial(jit_with_model, static_argnums=(0, 1))
def _ends_of_each(
    model: Model, layout: Layout, datasets: Dataset, fits: tuple[Values, Array, Array], cut: Any
) -> tuple[Int[Array, "r q 2"], Float[Array, "r q 2"]]:
    def one(parts: tuple[Any, Any, Any], fit: tuple[Values, Array, Array]) -> tuple[Array, Array]:
        values, free, curvature = fit
        target = likelihood(model, layout, values, Dataset(*parts))
        path, _, _, ends, _ = lanes(target, layout, None, values, free, curvature, np.arange(len(layout.names)), cut)
        return path.end, ends

    return jax.vmap(one, in_axes=(datasets.axes, 0))(datasets.parts, fits)


def _sides(
    found: Any, estimates: np.ndarray, errors: np.ndarray, ends: np.ndarray, points: np.ndarray, edges: np.ndarray
) -> Sides:
    last = np.maximum(np.sum(np.isfinite(found.drops), axis=-1) - 1, 0)[..., None]
    reached = np.take_along_axis(points, last, -1)[..., 0]
    known = [found.end == End.CUT_OFF, found.end == End.NEVER_FALLS, found.end == End.EDGE]
    return Sides(
        estimates=estimates,
        errors=errors,
        ends=np.select(known, [ends, edges, reached], np.nan).astype(ends.dtype),
        codes=found.end,
        reached=reached,
        fallen=np.take_along_axis(found.drops, last, -1)[..., 0],
        singular=found.singular,
        values=points,
        drops=found.drops,
        frees=found.frees,
    )


def _at_estimate(
    model: Model,
    layout: Layout,
    function: Callable[[PyTree], Array] | None,
    values: Values,
    dataset: Dataset,
    free: Float[AnyArray, " p"],
    curvature: Float[AnyArray, "p p"],
    columns: Any,
    cut: Any,
) -> tuple[Path, Array, Array, Array, Array]:
    """Paths (m, 2), estimates and standard errors (m,), ends (m, 2) and the function at every point (m, 2, k)."""
    target = likelihood(model, layout, values, dataset)
    return lanes(target, layout, function, values, free, curvature, columns, cut)


_profiles_of_few = jit_with_model(_at_estimate, static_argnums=(0, 1, 2), level=0)
_profiles = jit_with_model(_at_estimate, static_argnums=(0, 1, 2), level=1)


def lanes(
    target: Likelihood,
    layout: Layout,
    function: Callable[[PyTree], Array] | None,
    values: Values,
    free: Float[AnyArray, " p"],
    curvature: Float[AnyArray, "p p"],
    columns: Any,
    cut: Any,
) -> tuple[Path, Array, Array, Array, Array]:
    """The profiles of one data set, every side of every function a lane of its own."""
    diagonal = jnp.abs(jnp.diagonal(curvature))
    units = 1.0 / jnp.sqrt(jnp.where((diagonal > 0) & jnp.isfinite(diagonal), diagonal, 1.0))
    inverse, constrained = linalg.inverse(curvature), jnp.array(layout.restricted)

    def natural(column: Array, u: Array) -> Array:
        if function is not None:
            return function(layout.constrain(u, values)).astype(layout.dtype)[column]
        return layout.join(layout.constrained_values(u, values))[column]

    def followed(column: Array, u: Array) -> Array:
        return natural(column, u) if function is not None else layout.coordinates(u)[column]

    spans = jnp.where(jnp.any(np.isfinite(layout.edges()), axis=1), _SPAN, jnp.inf)

    def one(column: Array) -> tuple[Path, Array, Array, Array, Array]:
        span = spans[column] if function is None else jnp.nan

        def side(sign: Array) -> Path:
            return follow(target, lambda u: followed(column, u), span, constrained, free, units, sign, cut)

        path = jax.vmap(side)(jnp.array(SIDES, layout.dtype))
        estimate, slopes = jax.value_and_grad(lambda u: natural(column, u))(free)
        error = jnp.sqrt(jnp.sum(slopes * jnp.sum(inverse * slopes[None, :], axis=1)))
        ends = path.end_value if function is not None else jax.vmap(lambda u: natural(column, u))(path.end_free)
        points = jax.vmap(jax.vmap(lambda u: natural(column, u)))(path.frees)
        return path, estimate, error, ends, points

    return jax.vmap(one)(jnp.asarray(columns))
