"""The maximum of a likelihood under one restriction g(u) = c: how far a point is from it, and how it moves with c.

At such a maximum ∇ℓ = λ ∇g. As c moves, the profile log-likelihood ℓ_p(c) has the slope λ, and its second derivative and the
path's tangent du/dc follow from one system of linear equations in the curvature K = −∇²ℓ + λ ∇²g. That system is solved on the
directions in which g does not move, which a reflection splits off, so that K itself need not be positive definite.

A second function h may be held at zero on the way. Then ∇ℓ = λ ∇g + μ ∇h, K = −∇²ℓ + λ ∇²g + μ ∇²h, and a second reflection
splits off the direction in which h moves: with R the triangle of the two, (units ∇g, units ∇h) = Q R.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from fisher_jax.models.likelihood import Likelihood, derivatives_at
from fisher_jax.numerics import linalg
from fisher_jax.numerics.array_namespace import AnyArray, namespace

_FAINT = 1e-2  # information on a parameter's own scale below which the data hardly determine it

Restriction = Callable[[Float[Array, " p"]], Float[Array, ""]]
Bends = tuple[Any, Any, Any]  # of a function at a point: its value, its slopes (p,) and its Hessian (p, p)


class Point(NamedTuple):
    """A point near the path of restricted maxima.

    `drop` is ℓ̂ − ℓ, `rounding` its rounding error, `value` is g, `slope` and `bend` are the first two derivatives of ℓ_p (exact
    on the path). `inward` is Newton's step to the path at constant g, `distance` its length in standard errors, `tangent` is
    du/dg along the path. `stiffness` is what −bend would be if no other parameter moved. `definite` means that the point is near
    a maximum and no saddle, `singular` that the data do not determine some of the other parameters there. `leap` takes
    parameters that lie far out towards an edge, where there is no information on them, uphill to where there is some.
    """

    free: Float[AnyArray, " p"]
    drop: Float[AnyArray, ""]
    rounding: Float[AnyArray, ""]
    value: Float[AnyArray, ""]
    slope: Float[AnyArray, ""]
    bend: Float[AnyArray, ""]
    stiffness: Float[AnyArray, ""]
    inward: Float[AnyArray, " p"]
    tangent: Float[AnyArray, " p"]
    leap: Float[AnyArray, " p"]
    distance: Float[AnyArray, ""]
    definite: Bool[AnyArray, ""]
    singular: Bool[AnyArray, ""]
    finite: Bool[AnyArray, ""]


def look(
    target: Likelihood,
    restriction: Restriction,
    best: Float[Array, " n"],
    units: Float[Array, " p"],
    constrained: Bool[Array, " p"],
    free: Float[Array, " p"],
    held: Restriction | None = None,
) -> Point:
    """The point at u. `best` are the terms at the maximum, `units` make the entries of u comparable.

    `constrained` is true for each entry of u that a constraint puts on a logarithmic or similar scale. `held` is h, which is to
    be zero; `drop` is then that at h = 0, to first order.
    """
    at = derivatives_at(target, free)
    rounding = 2 * jnp.finfo(free.dtype).eps * jnp.sum(jnp.abs(at.terms))
    drop = jnp.sum(best - at.terms)
    of_held = None if held is None else bends_of(held, free)
    return point_at(
        at.gradient, at.curvature, drop, rounding, bends_of(restriction, free), units, constrained, free, of_held
    )


def bends_of(function: Restriction, free: Float[Array, " p"]) -> Bends:
    """A function at u with its first and second derivatives."""
    value, slopes = jax.value_and_grad(function)(free)
    return value, slopes, jax.hessian(function)(free)


def point_at(
    gradient: Float[AnyArray, " p"],
    curvature: Float[AnyArray, "p p"],
    drop: Float[AnyArray, ""],
    rounding: Float[AnyArray, ""],
    restriction: Bends,
    units: Float[AnyArray, " p"],
    constrained: Bool[AnyArray, " p"],
    free: Float[AnyArray, " p"],
    held: Bends | None = None,
) -> Point:
    """The same from the gradient of ℓ and minus its Hessian at u, what it has fallen by, and the rounding error of that.

    `restriction` and `held` are values and derivatives there. In numpy where these arrays are.
    """
    xp = namespace(gradient, free)
    slope_of_all, diagonal = gradient, abs(xp.diagonal(curvature))
    value, slopes, bends = restriction
    direction = units * slopes
    # With R' y = (change of g, change of h): y in the unit change of g along the path, and in the step back to h = 0.
    first, corner = _mirror(direction, 0)
    mirrors, along, back = [first], [1.0 / corner], [0 * corner]
    if held is not None:
        off, slopes_held, bends_held = held
        direction_held = _reflect([first], units * slopes_held)
        second, corner_held = _mirror(direction_held, 1)
        mirrors.append(second)
        along.append(-direction_held[0] / (corner * corner_held))
        back.append(-off / corner_held)
    k = len(mirrors)  # directions that are split off

    gradient = _reflect(mirrors, units * gradient)
    if held is None:
        slope = gradient[0] / corner  # λ
    else:
        multiplier = gradient[1] / corner_held  # μ
        slope = (gradient[0] - direction_held[0] * multiplier) / corner
        curvature = curvature + multiplier * bends_held
        drop = drop + multiplier * off
    curvature = curvature + slope * bends
    curvature = _reflect(mirrors, _reflect(mirrors, units[:, None] * curvature * units[None, :]).T)
    factor, definite, singular = _factorise(curvature[k:, k:])

    # Newton's step within the level set of g, and how the maximum in it moves as g does.
    y_along, y_back = xp.stack(along), xp.stack(back)
    uphill = gradient[k:]
    if held is not None:
        uphill = uphill - (curvature[k:, :k] * y_back[None, :]).sum(axis=1)
    mixed = (curvature[k:, :k] * y_along[None, :]).sum(axis=1)
    across = xp.concatenate([y_back, linalg.solve(factor, uphill)])
    tangent = xp.concatenate([y_along, -linalg.solve(factor, mixed)])
    stiffness = (y_along[:, None] * curvature[:k, :k] * y_along[None, :]).sum()
    bend = -(stiffness - (linalg.solve_lower(factor, mixed) ** 2).sum())  # the Schur complement

    # On a logarithmic scale information fades as e^{−|u|} towards an edge: leap as far back as makes it about a tenth.
    faint = (diagonal < _FAINT) & (diagonal > 0) & xp.isfinite(slope_of_all)
    leap = xp.where(faint, xp.sign(slope_of_all) * xp.log(10 * _FAINT / xp.where(faint, diagonal, 1.0)), 0.0)
    # Not along g itself, or h, which are to stay where they are.
    moves = abs(direction) >= 0.5 * abs(corner)
    if held is not None:
        length_held = xp.sqrt(((units * slopes_held) ** 2).sum())
        moves = moves | (abs(units * slopes_held) >= 0.5 * length_held)
    return Point(
        free=free,
        drop=drop,
        rounding=rounding,
        value=value,
        slope=slope,
        bend=bend,
        stiffness=stiffness,
        inward=units * _reflect(mirrors, across, back=True),
        tangent=units * _reflect(mirrors, tangent, back=True),
        leap=xp.where(constrained & ~moves, leap, 0.0),
        # The units are standard errors, with the others held: so far as h is from zero, in those.
        distance=xp.sqrt((linalg.solve_lower(factor, uphill) ** 2).sum() + (y_back**2).sum()),
        definite=definite,
        singular=singular,
        finite=xp.isfinite(drop) & xp.isfinite(bend) & xp.isfinite(slope) & xp.isfinite(value),
    )


def _mirror(direction: Float[AnyArray, " p"], axis: int) -> tuple[Float[AnyArray, " p"], Float[AnyArray, ""]]:
    """The normal of the reflection that takes what `direction` has from this axis on to the axis, and how long that is there.

    Householder's, with the sign that avoids cancellation.
    """
    xp, places = namespace(direction), np.arange(len(direction))
    direction = direction * (places >= axis)
    length = xp.sqrt((direction**2).sum())
    sign = xp.where(direction[axis] > 0, -1.0, 1.0).astype(direction.dtype)
    return direction / length - sign * (places == axis), sign * length


def _reflect(
    mirrors: list[Float[AnyArray, " p"]], right: Float[AnyArray, "p *k"], *, back: bool = False
) -> Float[AnyArray, "p *k"]:
    """Apply the reflections one after the other; `back` from the last to the first, which is their inverse."""
    for mirror in reversed(mirrors) if back else mirrors:
        normal = mirror.reshape((-1,) + (1,) * (right.ndim - 1))
        right = right - (2.0 / (mirror**2).sum()) * normal * (normal * right).sum(axis=0)[None]
    return right


def _factorise(curvature: Float[AnyArray, "r r"]) -> tuple[linalg.Factor, Bool[AnyArray, ""], Bool[AnyArray, ""]]:
    """The factor of the curvature, with as little added to its diagonal as makes it positive definite.

    Whether a rounding error sufficed, and whether anything was needed.
    """
    scaled, scale = linalg.to_unit_diagonal(curvature)
    # Gershgorin's circles bound the lowest eigenvalue from below.
    xp = namespace(scaled)
    sums = abs(scaled).sum(axis=1) - abs(xp.diagonal(scaled))
    lowest = xp.min(xp.diagonal(scaled) - sums, initial=1.0)
    little = 100 * linalg.singular_pivot(curvature.shape[0], curvature.dtype)
    more = 1e-3 + 1.01 * xp.maximum(-lowest, 0.0)
    if xp is np:
        number, factor = 0, linalg.factorize(curvature)
        while not factor.definite and number < 2:
            number += 1
            factor = linalg.factorize(curvature + np.diag((little, more)[number - 1] * scale**2))
        return factor, factor.definite & (number < 2), np.bool_(number > 0)
    added = jnp.stack([jnp.zeros_like(lowest), jnp.full_like(lowest, little), more])
    factors = jax.vmap(lambda extra: linalg.factorize(curvature + jnp.diag(extra * scale**2)))(added)
    first = jnp.argmax(factors.definite)
    chosen = jax.tree.map(lambda rungs: rungs[first], factors)
    return chosen, jnp.any(factors.definite[:2]), ~factors.definite[0]
