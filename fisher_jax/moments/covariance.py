"""The covariance of two sets of rows, the matrix K of one, and both by way of the moments about zero."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fisher_jax.decoding import LEAVE_OUT, as_unmasked_array, as_weights
from fisher_jax.errors import entry_point
from fisher_jax.moments.running import Estimate, RunningMoments

ROWS_AT_ONCE = 4096


def covariance_of_moments(mean: Any, second_moment: Any) -> Float[Array, "q q"]:
    """Cov(X) = E[XXᵀ] − E[X]E[X]ᵀ, from the moments about zero.

    Parameters
    ----------
    mean : array (q,)
        E[X].
    second_moment : array (q, q)
        E[XXᵀ].

    Returns
    -------
    array (q, q)
        The covariance matrix.

    Notes
    -----
    For moments that are known, by closed form or by quadrature, and for means that are near zero beside the standard
    deviation, as those of scores. Otherwise the difference cancels: with a mean m and a standard deviation s it loses
    2 log₁₀(m/s) digits. From rows use `covariance_matrix`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from fisher_jax.moments import covariance_of_moments
    >>> print(covariance_of_moments(jnp.array([1.0, 2.0]), jnp.array([[2.0, 2.0], [2.0, 5.0]])))
    [[1. 0.]
     [0. 1.]]
    """
    mean = jnp.asarray(mean)
    return jnp.asarray(second_moment) - mean[:, None] * mean[None, :]


@entry_point
def moments(x: Any, *, weights: Any = None) -> RunningMoments:
    """The moments of rows, a few thousand at a time: no more memory than the rows themselves and q × q.

    Parameters
    ----------
    x : array (n, q)
        Observations, draws or replicates, one a row.
    weights : array (n,), optional
        Frequency weights, or booleans; a row of weight zero is not there, whatever it holds.

    Returns
    -------
    RunningMoments
        With `average`, `covariance` and `second_moment`, each with standard errors, and `merge`.

    Raises
    ------
    ValueError
        If x is not a matrix, or the weights are not one for each row.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from fisher_jax.moments import moments
    >>> found = moments(jnp.array([[1.0], [2.0], [6.0], [7.0]]))
    >>> print(found.mean, found.second_moment().value)
    [4.] [[22.5]]
    """
    return _streamed(_rows(x), weights)


@entry_point
def covariance(x: Any, y: Any, *, weights: Any = None) -> Estimate:
    """Cov(X, Y) from rows of both, divisor n − 1, with the standard error of each entry.

    Parameters
    ----------
    x : array (n,) or (n, q)
        Observations of X.
    y : array (n,) or (n, r)
        Observations of Y, made together with those of X.
    weights : array (n,), optional
        Frequency weights, or booleans.

    Returns
    -------
    Estimate
        `value` and `standard_error` of shape (q, r), without the axis of what came as a vector: a scalar for two vectors.
        NaN from a single row.

    Raises
    ------
    ValueError
        If the numbers of rows differ.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from fisher_jax.moments import covariance
    >>> found = covariance(jnp.array([1.0, 2.0, 3.0, 6.0]), jnp.array([2.0, 2.0, 3.0, 5.0]))
    >>> print(f"{found.value:.3f} ± {found.standard_error:.3f}")
    3.000 ± 1.357
    """
    left, right = (_rows(part, name, vectors=True) for part, name in ((x, "x"), (y, "y")))
    if left.shape[0] != right.shape[0]:
        raise ValueError(
            f"x has {left.shape[0]} rows and y {right.shape[0]}; expected one row of each for every observation."
        )
    q = left.shape[1]
    found = _streamed(jnp.concatenate([left, right], axis=1), weights).covariance()
    shape = jnp.shape(x)[1:] + jnp.shape(y)[1:]
    return Estimate(*(part[:q, q:].reshape(shape) for part in found))


@entry_point
def covariance_matrix(x: Any, *, weights: Any = None) -> Estimate:
    """The covariance matrix K = E[(X − E[X])(X − E[X])ᵀ] from rows, divisor n − 1, with the standard error of each entry.

    Parameters
    ----------
    x : array (n, q)
        Observations of X.
    weights : array (n,), optional
        Frequency weights, or booleans.

    Returns
    -------
    Estimate
        `value` and `standard_error` (q, q), whatever the distribution, as long as it has fourth moments.

    Raises
    ------
    ValueError
        If x is not a matrix.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from fisher_jax.moments import covariance_matrix
    >>> print(covariance_matrix(jnp.array([[1.0, 2.0], [3.0, 2.0], [5.0, 8.0]])).value)
    [[ 4.  6.]
     [ 6. 12.]]
    """
    return _streamed(_rows(x), weights).covariance()


def _rows(x: Any, name: str = "x", *, vectors: bool = False) -> Array:
    rows = jnp.asarray(as_unmasked_array(x, lambda: name, LEAVE_OUT))
    if vectors and rows.ndim == 1:
        rows = rows[:, None]
    if rows.ndim != 2:
        expected = "(n,) or (n, q)" if vectors else "(n, q), one observation a row"
        raise ValueError(f"{name} has shape {jnp.shape(x)}, expected {expected}.")
    return rows.astype(jnp.result_type(rows.dtype, jnp.float32))


def _streamed(rows: Float[Array, "n q"], weights: Any) -> RunningMoments:
    return _summed(rows, None if weights is None else as_weights(weights, "weights"))


@jax.jit
def _summed(rows: Float[Array, "n q"], weights: Any) -> RunningMoments:
    n = rows.shape[0]
    weights = jnp.ones((n,), rows.dtype) if weights is None else jnp.asarray(weights).astype(rows.dtype)
    if weights.shape != (n,):
        raise ValueError(f"weights has shape {weights.shape}, expected ({n},), one for each row.")
    whole = n - n % ROWS_AT_ONCE if n > ROWS_AT_ONCE else 0
    last = RunningMoments.of(rows[whole:], weights[whole:])
    if not whole:
        return last
    parts = rows[:whole].reshape(-1, ROWS_AT_ONCE, rows.shape[1]), weights[:whole].reshape(-1, ROWS_AT_ONCE)
    step = lambda total, part: (total.merge(RunningMoments.of(*part)), None)  # noqa: E731
    return jax.lax.scan(step, last, parts)[0]
