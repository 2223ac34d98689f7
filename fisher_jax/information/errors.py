"""Errors of a sampled matrix as a few independent pieces, carried through anything computed from it.

A sampled matrix M comes with pieces E₁ … E_k such that Σ E_k[i,j] E_k[l,m] estimates the covariance of M[i,j] and M[l,m].
A differentiable function of M has the pieces that its derivative makes of them: the delta method, without ever holding the
covariance of all pairs of entries.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from fisher_jax.moments import Estimate
from fisher_jax.numerics.array_namespace import AnyArray

__all__ = ["Estimate", "Pieces", "carried", "estimated", "spread"]

Pieces = Float[AnyArray, "k ..."] | None  # None where there is no error


def carried(function: Callable[[AnyArray], AnyArray], matrix: AnyArray, errors: Pieces) -> tuple[Any, Any]:
    """`function(matrix)`, and its pieces of error to first order."""
    if errors is None:
        return function(matrix), None
    value, push = jax.linearize(function, matrix)
    return value, jax.vmap(push)(errors)


def estimated(function: Callable[[AnyArray], AnyArray], matrix: AnyArray, errors: Pieces, *, ndim: int) -> Estimate:
    """`function(matrix)`, of so many axes, with its standard error."""
    value, pieces = carried(function, matrix, errors)
    return Estimate(value, spread(pieces, like=value, ndim=ndim))


def spread(errors: Any, *, like: AnyArray, ndim: int) -> AnyArray:
    """Standard errors of a quantity of `ndim` axes: the root sum of squares over its pieces."""
    if errors is None:
        return jnp.zeros_like(like)
    return jnp.sqrt(jnp.sum(errors**2, axis=errors.ndim - ndim - 1))
