"""The profile likelihood of two numbers, followed from the estimate along rays to where it has fallen by a given amount.

With x = L⁻¹ (ψ − ψ̂), L Lᵀ the covariance of the two numbers ψ at the estimate, a ray of angle φ is x = t (cos φ, sin φ), t ≥ 0:
t is followed as one function of the parameters is, while the number across the ray, −x₁ sin φ + x₂ cos φ, is held at zero. For
a quadratic likelihood the profile is −t²/2 on every ray.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fisher_jax.blocks import CHUNK_ENTRIES
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.likelihood import gradient_at, likelihood, terms_at
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.programs import jit_with_model
from fisher_jax.numerics import linalg
from fisher_jax.profile.path import follow
from fisher_jax.profile.restricted import look
from fisher_jax.profile.sides import ENTRIES_AT_ONCE, SPAN, Function, Maximum


class Pair(NamedTuple):
    """Two numbers at the estimate, on the scale on which rays are straight: values, derivatives with respect to u, covariance."""

    values: Float[Any, " 2"]
    slopes: Float[Any, "2 p"]
    covariance: Float[Any, "2 2"]


class Rays(NamedTuple):
    """The rays, each to its end.

    `radius` is t at the end, `numbers` are the two numbers there in the user's unit, `free` is u, `normal` the gradient of ℓ_p
    with respect to x. `reached` and `fallen` are the two numbers and ℓ̂ − ℓ_p at the last point of the path, where `last` is u.
    """

    radius: Float[Any, " k"]
    numbers: Float[Any, "k 2"]
    free: Float[Any, "k p"]
    normal: Float[Any, "k 2"]
    code: Int[Any, " k"]
    reached: Float[Any, "k 2"]
    fallen: Float[Any, " k"]
    last: Float[Any, "k p"]
    singular: Bool[Any, " k"]


def numbers_at(
    layout: Layout, values: Values, function: Function | None, columns: Any, free: Float[Array, " p"], scale: bool
) -> Float[Array, " 2"]:
    """Both numbers at u: those of a function of params, or entries of θ; on the scales of their constraints if `scale`."""
    if function is not None:
        return function(layout.constrain(free, values)).astype(layout.dtype)
    if scale:  # on which a parameter has no edge
        return layout.coordinates(free)[columns]
    return layout.join(layout.constrained_values(free, values))[columns]


@functools.partial(jax.jit, static_argnums=(0, 1))
def pair_at(layout: Layout, function: Function | None, maximum: Maximum, columns: Any) -> Pair:
    """The two numbers at the estimate."""
    values, free, curvature = maximum

    def of_free(free: Float[Array, " p"]) -> Float[Array, " 2"]:
        return numbers_at(layout, values, function, columns, free, scale=True)

    slopes = jax.jacfwd(of_free)(free)
    half = jnp.matmul(slopes, linalg.inverse(curvature), precision="highest")
    return Pair(of_free(free), slopes, jnp.matmul(half, slopes.T, precision="highest"))


def follow_rays(
    model: Model,
    dataset: Dataset,
    layout: Layout,
    maximum: Maximum,
    function: Function | None,
    columns: Int[np.ndarray, " 2"],
    center: Float[np.ndarray, " 2"],
    root: Float[np.ndarray, "2 2"],
    angles: Float[np.ndarray, " k"],
    *,
    cut: float,
    most: int,
) -> Rays:
    """The rays of these angles, `most` at once or as many as memory allows: always as many, so that one program serves all."""
    rows = jax.tree.leaves(dataset.data)[0].shape[0]
    at_once = max(1, min(most, ENTRIES_AT_ONCE // min(rows * layout.num_free, CHUNK_ENTRIES)))
    parts = []
    for start in range(0, len(angles), at_once):
        some = angles[np.minimum(np.arange(start, start + at_once), len(angles) - 1)]
        arguments = dataset, maximum, columns, center, root, some.astype(layout.dtype), cut
        parts.append(jax.device_get(_rays(model, layout, function, *arguments)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(angles)], *parts)


@functools.partial(jit_with_model, static_argnums=(0, 1, 2), level=0)
def _rays(
    model: Model,
    layout: Layout,
    function: Function | None,
    dataset: Dataset,
    maximum: Maximum,
    columns: Int[Array, " 2"],
    center: Float[Array, " 2"],
    root: Float[Array, "2 2"],
    angles: Float[Array, " k"],
    cut: Any,
) -> Rays:
    values, free, curvature = maximum
    target = likelihood(model, layout, values, dataset)
    best = terms_at(target, free)
    diagonal = jnp.abs(jnp.diagonal(curvature))
    units = 1.0 / jnp.sqrt(jnp.where((diagonal > 0) & jnp.isfinite(diagonal), diagonal, 1.0))
    constrained = jnp.array(layout.unitless)
    bounded = jnp.any(np.isfinite(layout.edges()), axis=1)[columns] if function is None else None

    def standardized(free: Float[Array, " p"]) -> Float[Array, " 2"]:
        x = numbers_at(layout, values, function, columns, free, scale=True) - center
        first = x[0] / root[0, 0]
        return jnp.stack([first, (x[1] - root[1, 0] * first) / root[1, 1]])

    def shown(free: Float[Array, " p"]) -> Float[Array, " 2"]:
        return numbers_at(layout, values, function, columns, free, scale=False)

    def of_ray(angle: Float[Array, ""]) -> Rays:
        along = jnp.stack([jnp.cos(angle), jnp.sin(angle)])
        across = jnp.stack([-along[1], along[0]])

        def evaluate(free: Float[Array, " p"]) -> Any:
            return look(
                target,
                lambda u: jnp.sum(along * standardized(u)),
                best,
                units,
                constrained,
                free,
                held=lambda u: jnp.sum(across * standardized(u)),
            )

        # How far along the ray both numbers have moved by much, whatever the likelihood; never where one has no such scale.
        span = jnp.asarray(jnp.nan, layout.dtype)
        if bounded is not None:
            speed = jnp.abs(jnp.sum(root * along[None, :], axis=1))
            span = jnp.max(jnp.where(bounded, SPAN / speed, jnp.where(speed > 1e-6 * root[1, 1], jnp.inf, 0.0)))
        path = follow(evaluate, free, jnp.ones((), layout.dtype), cut, span)
        end = path.end_free
        _, gradient = gradient_at(target, end)
        slopes = units[None, :] * jax.jacfwd(standardized)(end)
        # ∇ℓ is a combination of the two gradients at a restricted maximum: its coefficients, by their normal equations.
        products = linalg.product(slopes, slopes.T)
        rise = jnp.sum(slopes * (units * gradient)[None, :], axis=1)
        normal = linalg.solve(linalg.factorize(products), rise)
        number = jnp.maximum(jnp.sum(jnp.isfinite(path.drops)) - 1, 0)
        last = path.frees[number]
        return Rays(
            radius=path.end_value,
            numbers=shown(end),
            free=end,
            normal=normal,
            code=path.end,
            reached=shown(last),
            fallen=path.drops[number],
            last=last,
            singular=path.singular,
        )

    return jax.vmap(of_ray)(angles)
