"""What stands in the middle of a sandwich: estimates of the variance of the total score, from the scores. Totals."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fisher_jax.fitting.covariance import precise
from fisher_jax.numerics.differentiate import weigh

Scores = Float[Array, "n p"]


def by_observation(scores: Scores, weights: Float[Array, " n"] | None, *, sampling: bool) -> Float[Array, "p p"]:
    """Σ w s sᵀ for frequency weights, Σ w² s sᵀ for sampling weights.

    References
    ----------
    White, H. (1982), Econometrica 50, 1-25; Wooldridge, J. M. (2010), Econometric Analysis, 2nd ed., eq. (19.12).
    """
    weighted = precise(weigh(scores, weights))
    other = weighted if sampling or weights is None else precise(weigh(scores, jnp.sign(weights)))
    return _product(weighted, other)


def by_cluster(scores: Scores, weights: Float[Array, " n"] | None, labels: Int[Array, " n"], num: int) -> Array:
    """Σ_g S_g S_gᵀ with S_g = Σ w s over the cluster; `labels` are 0 to num − 1.

    References
    ----------
    Liang, K.-Y. and Zeger, S. L. (1986), Biometrika 73, 13-22, theorem 2.
    """
    totals = jax.ops.segment_sum(precise(weigh(scores, weights)), labels, num_segments=num)
    return _product(totals, totals)


def by_time(scores: Scores, weights: Float[Array, " n"] | None, lags: int) -> Float[Array, "p p"]:
    """Γ₀ + Σ_l (1 − l/(L+1)) (Γ_l + Γ_lᵀ), l up to L = `lags`: the autocovariances of w s with Bartlett's kernel.

    It is the mean over the L + 1 shifts of the outer products of sums over windows of so many terms: never indefinite.

    References
    ----------
    Newey, W. K. and West, K. D. (1987), Econometrica 55, 703-708, eq. (5).
    """
    weighted = precise(weigh(scores, weights))
    padded = jnp.pad(weighted, ((lags, lags), (0, 0)))
    windows = jax.lax.reduce_window(padded, jnp.zeros((), padded.dtype), jax.lax.add, (lags + 1, 1), (1, 1), "valid")
    return _product(windows, windows) / (lags + 1)


def num_clusters(counted: Bool[Array, " n"], labels: Int[Array, " n"], num: int) -> Int[Array, ""]:
    """How many clusters have an observation that counts."""
    return jnp.sum(jax.ops.segment_max(counted.astype(jnp.int32), labels, num_segments=num) > 0)


def _product(left: Float[Array, "m p"], right: Float[Array, "m p"]) -> Float[Array, "p p"]:
    product = jnp.einsum("mp,mq->pq", left, right, precision="highest")
    return 0.5 * (product + product.T)
