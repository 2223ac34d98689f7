"""The maximum of a likelihood under one restriction g(u) = c: how far a point is from it, and how it moves with c.

At such a maximum ∇ℓ = λ ∇g. As c moves, the profile log-likelihood ℓ_p(c) has the slope λ, and its second derivative and the
path's tangent du/dc follow from one system of linear equations in the curvature K = −∇²ℓ + λ ∇²g. That system is solved on the
directions in which g does not move, which a reflection splits off, so that K itself need not be positive definite.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fisher_jax.models.likelihood import Derivatives, Likelihood, derivatives_at
from fisher_jax.numerics import linalg

_FAINT = 1e-2  # information on a parameter's own scale below which nothing is left to tell it by

Restriction = Callable[[Float[Array, " p"]], Float[Array, ""]]


class Point(NamedTuple):
    """A point near the path of restricted maxima.

    `drop` is ℓ̂ − ℓ, `value` is g, `slope` and `bend` are the first two derivatives of ℓ_p (exact on the path). `inward` is
    Newton's step to the path at constant g, `distance` its length in standard errors, `tangent` is du/dg along the path.
    `stiffness` is what −bend would be with all else held. `definite` says whether the point is near a maximum and no
    saddle, `singular` whether some of what is not held cannot be told there. `leap` takes parameters that lie far out
    towards an edge, where nothing is left to tell them by, back to where something is, in the direction uphill.
    """

    free: Float[Array, " p"]
    drop: Float[Array, ""]
    rounding: Float[Array, ""]
    value: Float[Array, ""]
    slope: Float[Array, ""]
    bend: Float[Array, ""]
    stiffness: Float[Array, ""]
    inward: Float[Array, " p"]
    tangent: Float[Array, " p"]
    leap: Float[Array, " p"]
    distance: Float[Array, ""]
    definite: Bool[Array, ""]
    singular: Bool[Array, ""]
    finite: Bool[Array, ""]


def look(
    target: Likelihood,
    restriction: Restriction,
    best: Float[Array, " n"],
    units: Float[Array, " p"],
    constrained: Bool[Array, " p"],
    free: Float[Array, " p"],
) -> Point:
    """What is known at u. `best` are the terms at the maximum, `units` make the entries of u comparable.

    `constrained` says of each entry of u whether a constraint made it.
    """
    found = derivatives_at(target, free)
    value, slopes = jax.value_and_grad(restriction)(free)
    direction = units * slopes
    length = jnp.sqrt(jnp.sum(direction**2))
    reflect, sign = _reflection(direction, length)
    gradient = reflect(units * found.gradient)
    slope = sign * gradient[0] / length
    curvature = found.curvature + slope * jax.hessian(restriction)(free)
    curvature = reflect(reflect(units[:, None] * curvature * units[None, :]).T)
    factor, definite, singular = _factorise(curvature[1:, 1:])
    half = linalg.solve_lower(factor, gradient[1:])
    mixed = linalg.solve_lower(factor, curvature[1:, 0])
    along = jnp.concatenate([jnp.ones((1,), free.dtype), -linalg.solve(factor, curvature[1:, 0])])
    across = jnp.concatenate([jnp.zeros((1,), free.dtype), linalg.solve(factor, gradient[1:])])
    drop = jnp.sum(best - found.terms)
    bend = -(curvature[0, 0] - jnp.sum(mixed**2)) / length**2
    return Point(
        free=free,
        drop=drop,
        rounding=2 * jnp.finfo(free.dtype).eps * jnp.sum(jnp.abs(found.terms)),
        value=value,
        slope=slope,
        bend=bend,
        stiffness=curvature[0, 0] / length**2,
        inward=units * reflect(across),
        tangent=units * reflect(along) * (sign / length),
        leap=jnp.where(constrained & (jnp.abs(direction) < 0.5 * length), _leap(found), 0.0),
        distance=jnp.sqrt(jnp.sum(half**2)),
        definite=definite,
        singular=singular,
        finite=jnp.isfinite(drop) & jnp.isfinite(bend) & jnp.isfinite(slope) & jnp.isfinite(value),
    )


def _leap(found: Derivatives) -> Float[Array, " p"]:
    """On a logarithmic scale information fades as e^{−|u|} towards an edge: as far back as makes it about a tenth."""
    left = jnp.abs(jnp.diagonal(found.curvature))
    faint = (left < _FAINT) & (left > 0) & jnp.isfinite(found.gradient)
    return jnp.where(faint, jnp.sign(found.gradient) * jnp.log(10 * _FAINT / jnp.where(faint, left, 1.0)), 0.0)


def _reflection(
    direction: Float[Array, " p"], length: Float[Array, ""]
) -> tuple[Callable[[Float[Array, "p *k"]], Float[Array, "p *k"]], Float[Array, ""]]:
    """Householder's reflection that takes the direction to the first axis, and the sign with which it does."""
    sign = jnp.where(direction[0] > 0, -1.0, 1.0).astype(direction.dtype)
    mirror = (direction / length).at[0].add(-sign)
    twice = 2.0 / jnp.sum(mirror**2)

    def reflect(right: Array) -> Array:
        mirrored = mirror.reshape((-1,) + (1,) * (right.ndim - 1))
        return right - twice * mirrored * jnp.sum(mirrored * right, axis=0)[None]

    return reflect, sign


def _factorise(curvature: Float[Array, "r r"]) -> tuple[linalg.Factor, Bool[Array, ""], Bool[Array, ""]]:
    """The factor of the curvature, with as little added to its diagonal as makes it positive definite.

    Whether next to nothing sufficed, and whether it was needed.
    """
    scaled, scale = linalg.to_unit_diagonal(curvature)
    sums = jnp.sum(jnp.abs(scaled), axis=1) - jnp.abs(jnp.diagonal(scaled))
    lowest = jnp.min(jnp.diagonal(scaled) - sums, initial=1.0)
    little = 100 * linalg.singular_pivot(curvature.shape[0], curvature.dtype)
    added = jnp.stack([jnp.zeros_like(lowest), jnp.full_like(lowest, little), 1e-3 + 1.01 * jnp.maximum(-lowest, 0.0)])
    factors = jax.vmap(lambda extra: linalg.factorise(curvature + jnp.diag(extra * scale**2)))(added)
    first = jnp.argmax(factors.definite)
    chosen = jax.tree.map(lambda rungs: rungs[first], factors)
    return chosen, jnp.any(factors.definite[:2]), ~factors.definite[0]
