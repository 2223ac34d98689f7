"""How heavy the tail of a distribution is, from its largest draws."""

import jax.numpy as jnp
from jaxtyping import Array, Float

LEAST_DISTINCT = 0.75  # share of different values below which the draws are of a lattice, and no tail can be told


def tail_exponent(largest: Float[Array, "q t"]) -> Float[Array, " q"]:
    """Exponent γ of a tail P(X > x) ~ x^(−1/γ) for each row, about 0 for light tails; NaN where it cannot be told.

    The moment estimator, which unlike Hill's does not take an exponential tail for a heavy one. Moments of order 1/γ and
    above are infinite.

    References
    ----------
    Dekkers, A. L. M., Einmahl, J. H. J. and de Haan, L. (1989), Ann. Statist. 17, 1833-1855, eq. (1.7).
    """
    if largest.shape[1] < 2:
        return jnp.full(largest.shape[:1], jnp.nan, largest.dtype)
    least = largest[:, -1:]
    told = least[:, 0] > 0
    logs = jnp.log(jnp.where(told[:, None], largest, 1.0)) - jnp.log(jnp.where(told[:, None], least, 1.0))
    distinct = jnp.mean(logs[:, :-1] - logs[:, 1:] > 1e-6, axis=1)
    first, second = jnp.mean(logs[:, :-1], axis=1), jnp.mean(logs[:, :-1] ** 2, axis=1)
    told = told & (distinct >= LEAST_DISTINCT) & (second > first**2)
    ratio = jnp.where(told, first**2 / jnp.where(told, second, 1.0), 0.5)
    return jnp.where(told, first + 1.0 - 0.5 / (1.0 - ratio), jnp.nan)
