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

from fisher_jax.models.likelihood import Likelihood, derivatives_at
from fisher_jax.numerics import linalg

_FAINT = 1e-2  # information on a parameter's own scale below which the data hardly determine it

Restriction = Callable[[Float[Array, " p"]], Float[Array, ""]]


class Point(NamedTuple):
    """A point near the path of restricted maxima.

    `drop` is ℓ̂ − ℓ, `rounding` its rounding error, `value` is g, `slope` and `bend` are the first two derivatives of ℓ_p (exact
    on the path). `inward` is Newton's step to the path at constant g, `distance` its length in standard errors, `tangent` is
    du/dg along the path. `stiffness` is what −bend would be if no other parameter moved. `definite` means that the point is near
    a maximum and no saddle, `singular` that the data do not determine some of the other parameters there. `leap` takes
    parameters that lie far out towards an edge, where there is no information on them, uphill to where there is some.
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
    """The point at u. `best` are the terms at the maximum, `units` make the entries of u comparable.

    `constrained` is true for each entry of u that a constraint puts on a logarithmic or similar scale.
    """
    at = derivatives_at(target, free)
    value, slopes = jax.value_and_grad(restriction)(free)
    direction = units * slopes
    length = jnp.sqrt(jnp.sum(direction**2))

    # Householder's reflection takes ∇g to the first axis, with the sign that avoids cancellation. The other axes are the
    # directions in which g does not move.
    sign = jnp.where(direction[0] > 0, -1.0, 1.0).astype(direction.dtype)
    mirror = (direction / length).at[0].add(-sign)
    twice = 2.0 / jnp.sum(mirror**2)

    def reflect(right: Float[Array, "p *k"]) -> Float[Array, "p *k"]:
        mirrored = mirror.reshape((-1,) + (1,) * (right.ndim - 1))
        return right - twice * mirrored * jnp.sum(mirrored * right, axis=0)[None]

    gradient = reflect(units * at.gradient)
    slope = sign * gradient[0] / length  # λ
    curvature = at.curvature + slope * jax.hessian(restriction)(free)
    curvature = reflect(reflect(units[:, None] * curvature * units[None, :]).T)
    factor, definite, singular = _factorise(curvature[1:, 1:])
    # Newton's step within the level set of g, and how the maximum in it moves as g does.
    across = jnp.concatenate([jnp.zeros((1,), free.dtype), linalg.solve(factor, gradient[1:])])
    along = jnp.concatenate([jnp.ones((1,), free.dtype), -linalg.solve(factor, curvature[1:, 0])])
    half = linalg.solve_lower(factor, gradient[1:])
    mixed = linalg.solve_lower(factor, curvature[1:, 0])
    bend = -(curvature[0, 0] - jnp.sum(mixed**2)) / length**2  # the Schur complement
    drop = jnp.sum(best - at.terms)

    # On a logarithmic scale information fades as e^{−|u|} towards an edge: leap as far back as makes it about a tenth.
    left = jnp.abs(jnp.diagonal(at.curvature))
    faint = (left < _FAINT) & (left > 0) & jnp.isfinite(at.gradient)
    leap = jnp.where(faint, jnp.sign(at.gradient) * jnp.log(10 * _FAINT / jnp.where(faint, left, 1.0)), 0.0)
    return Point(
        free=free,
        drop=drop,
        rounding=2 * jnp.finfo(free.dtype).eps * jnp.sum(jnp.abs(at.terms)),
        value=value,
        slope=slope,
        bend=bend,
        stiffness=curvature[0, 0] / length**2,
        inward=units * reflect(across),
        tangent=units * reflect(along) * (sign / length),
        # Not along g itself, which is to stay where it is.
        leap=jnp.where(constrained & (jnp.abs(direction) < 0.5 * length), leap, 0.0),
        distance=jnp.sqrt(jnp.sum(half**2)),
        definite=definite,
        singular=singular,
        finite=jnp.isfinite(drop) & jnp.isfinite(bend) & jnp.isfinite(slope) & jnp.isfinite(value),
    )


def _factorise(curvature: Float[Array, "r r"]) -> tuple[linalg.Factor, Bool[Array, ""], Bool[Array, ""]]:
    """The factor of the curvature, with as little added to its diagonal as makes it positive definite.

    Whether a rounding error sufficed, and whether anything was needed.
    """
    scaled, scale = linalg.to_unit_diagonal(curvature)
    # Gershgorin's circles bound the lowest eigenvalue from below.
    sums = jnp.sum(jnp.abs(scaled), axis=1) - jnp.abs(jnp.diagonal(scaled))
    lowest = jnp.min(jnp.diagonal(scaled) - sums, initial=1.0)
    little = 100 * linalg.singular_pivot(curvature.shape[0], curvature.dtype)
    added = jnp.stack([jnp.zeros_like(lowest), jnp.full_like(lowest, little), 1e-3 + 1.01 * jnp.maximum(-lowest, 0.0)])
    factors = jax.vmap(lambda extra: linalg.factorize(curvature + jnp.diag(extra * scale**2)))(added)
    first = jnp.argmax(factors.definite)
    chosen = jax.tree.map(lambda rungs: rungs[first], factors)
    return chosen, jnp.any(factors.definite[:2]), ~factors.definite[0]
