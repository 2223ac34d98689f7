"""Means and covariances with their standard errors, streamed: computed from parts of the rows, merged in any order.

Deviations are taken from the mean, never as the difference of two large numbers, so that a mean of 1e8 beside a standard
deviation of one costs no digits. What E[XXᵀ] − E[X]E[X]ᵀ is safe for, a mean near zero as that of a score, it is used for.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from fisher_jax.errors import entry_point
from fisher_jax.input_arrays import LEAVE_OUT, as_unmasked_array, as_weights

__all__ = [
    "Estimate",
    "RunningMean",
    "RunningMoments",
    "covariance",
    "covariance_matrix",
    "covariance_of_moments",
    "moments",
]


class Estimate(NamedTuple):
    """A number, an array or a pytree of them, and its standard error of the same shape, zero where it is exact.

    Examples
    --------
    >>> import fisher_jax as fj
    >>> information = fj.fisher_information(fj.families.poisson, {"rate": 4.0})
    >>> value, error = information.standard_errors(num_observations=100)
    >>> print(value, error)
    [0.2] [0.]
    """

    value: Any
    standard_error: Any


class RunningMoments(NamedTuple):
    """What has been seen of rows x of length q, enough for mean and covariance matrix and the standard errors of both.

    Attributes
    ----------
    num_rows : scalar array
        n, the number of rows, or the sum of their weights.
    mean : array (q,)
        Of the rows.
    products : array (q, q)
        Σ dᵢ dⱼ over the rows, with d = x − mean.
    cubes : array (q, q)
        Σ dᵢ² dⱼ.
    fourths : array (q, q)
        Σ dᵢ² dⱼ².

    Notes
    -----
    A pytree of fixed size, so that it may be carried through `jax.lax.scan`, vmapped, and added over devices by `merge`.

    References
    ----------
    Chan, T. F., Golub, G. H. and LeVeque, R. J. (1983), American Statistician 37, 242-247; Pébay, P. (2008), Sandia report
    SAND2008-6212, for the higher moments.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from fisher_jax.moments import RunningMoments
    >>> x = jnp.array([[1.0, 2.0], [3.0, 2.0], [5.0, 8.0]])
    >>> whole = RunningMoments.of(x[:2]).merge(RunningMoments.of(x[2:]))
    >>> print(whole.covariance().value)
    [[ 4.  6.]
     [ 6. 12.]]
    """

    num_rows: Float[Array, ""]
    mean: Float[Array, " q"]
    products: Float[Array, "q q"]
    cubes: Float[Array, "q q"]
    fourths: Float[Array, "q q"]

    @classmethod
    def empty(cls, length: int, dtype: Any = float) -> "RunningMoments":
        """Of no rows: where a stream starts."""
        square = jnp.zeros((length, length), dtype)
        return cls(jnp.zeros((), dtype), jnp.zeros((length,), dtype), square, square, square)

    @classmethod
    def of(cls, rows: Any, weights: Any = None) -> "RunningMoments":
        """Of rows (n, q), held at once.

        Parameters
        ----------
        rows : array (n, q)
            Observations, draws or replicates.
        weights : array (n,), optional
            Frequency weights; booleans leave out what is false. A row of weight zero may hold NaN, any other makes NaN.
        """
        rows = jnp.asarray(as_unmasked_array(rows, lambda: "RunningMoments: rows", LEAVE_OUT))
        rows = rows.astype(jnp.result_type(rows.dtype, jnp.float32))
        if rows.shape[0] == 0:
            return cls.empty(rows.shape[1], rows.dtype)
        weights = (
            jnp.ones(rows.shape[:1], rows.dtype) if weights is None else as_weights(weights, "RunningMoments: weights")
        )
        weights = jnp.asarray(weights).astype(rows.dtype)
        return _of(rows, weights)

    @jax.jit
    def merge(self, other: "RunningMoments") -> "RunningMoments":
        """Of both sets of rows together; up to rounding, neither order nor grouping matters."""
        count = self.num_rows + other.num_rows
        size = jnp.where(count > 0, count, 1.0)
        between = other.mean - self.mean
        mean = self.mean + between * (other.num_rows / size)
        # From either's own mean to the common one. Differences of the means, not of what was rounded to a common mean.
        sides = (self._about(between * (other.num_rows / size)), other._about(-between * (self.num_rows / size)))
        return RunningMoments(count, mean, *(a + b for a, b in zip(*sides, strict=True)))

    def _about(self, shift: Float[Array, " q"]) -> tuple[Array, Array, Array]:
        """Sums of powers of d about the point that lies `shift` beyond the mean."""
        e = -shift
        row, column, n = e[None, :], e[:, None], self.num_rows
        own = jnp.diagonal(self.products)
        products = self.products + n * column * row
        cubes = self.cubes + row * own[:, None] + 2 * column * self.products + n * column**2 * row
        fourths = self.fourths + 2 * row * self.cubes + 2 * column * self.cubes.T
        fourths = fourths + row**2 * own[:, None] + 4 * column * row * self.products + column**2 * own[None, :]
        return products, cubes, fourths + n * column**2 * row**2

    def average(self) -> Estimate:
        """E[X]: the mean (q,) and its standard error."""
        return Estimate(self.mean, jnp.sqrt(jnp.diagonal(self.covariance().value) / self.num_rows))

    @jax.jit
    def covariance(self) -> Estimate:
        """The covariance matrix K (q, q), divisor n − 1, and the standard error of each entry whatever the distribution.

        Var(Kᵢⱼ) = E[dᵢ²dⱼ²]/n − (n − 2)/(n(n − 1)) Kᵢⱼ² + Kᵢᵢ Kⱼⱼ/(n(n − 1)), with the moments of the rows. NaN for one row.
        """
        return covariance_of_sums(self.num_rows, self.products, self.fourths)

    @jax.jit
    def second_moment(self) -> Estimate:
        """E[XXᵀ] about zero (q, q), and the standard error of each entry."""
        n, row, column = self.num_rows, self.mean[None, :], self.mean[:, None]
        centred, cubes, fourths = (part / n for part in (self.products, self.cubes, self.fourths))
        own = jnp.diagonal(centred)
        variance = column**2 * own[None, :] + row**2 * own[:, None] + 2 * column * row * centred
        variance = variance + 2 * column * cubes.T + 2 * row * cubes + fourths - centred**2
        return Estimate(centred + column * row, jnp.sqrt(jnp.maximum(variance, 0.0) / jnp.where(n > 1, n - 1, jnp.nan)))


def covariance_of_sums(num_rows: Any, products: Any, fourths: Any, xp: Any = jnp) -> Estimate:
    """`RunningMoments.covariance` from its parts: by `jax.numpy`, or by numpy, which compiles nothing."""
    rest = xp.where(num_rows > 1, num_rows - 1, xp.nan)
    matrix = products / rest
    own = xp.diagonal(matrix)
    variance = fourths / num_rows - ((num_rows - 2) * matrix**2 - own[:, None] * own[None, :]) / rest
    return Estimate(matrix, xp.sqrt(xp.maximum(variance, 0.0) / num_rows))


@jax.jit
def _of(rows: Float[Array, "n q"], weights: Float[Array, " n"]) -> RunningMoments:
    rows = jnp.where((weights == 0)[:, None], 0.0, rows)
    count = jnp.sum(weights)
    size = jnp.where(count > 0, count, 1.0)
    average = lambda x: jnp.sum(weights[:, None] * x, axis=0) / size  # noqa: E731
    origin = rows[jnp.argmax(weights > 0)]
    mean = average(rows - origin[None, :])
    off = rows - origin[None, :] - mean[None, :]
    left_over = average(off)  # what rounding kept from being zero
    off = off - left_over[None, :]
    weighted, squares = weights[:, None] * off, weights[:, None] * off**2
    products, cubes, fourths = (
        sum_of_products(weighted, off),
        sum_of_products(squares, off),
        sum_of_products(squares, off**2),
    )
    return RunningMoments(count, origin + mean + left_over, products, cubes, fourths)


class RunningMean(NamedTuple):
    """Mean and spread of a pytree of arrays, entry by entry, from values that come one at a time.

    References
    ----------
    Welford, B. P. (1962), Technometrics 4, 419-420.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from fisher_jax.moments import RunningMean
    >>> running = RunningMean.empty(jnp.zeros(()))
    >>> for x in (1.0, 2.0, 6.0):
    ...     running = running.include(jnp.asarray(x))
    >>> print(f"{running.average().value:.2f} ± {running.average().standard_error:.2f}")
    3.00 ± 1.53
    """

    num_values: Float[Array, ""]
    mean: PyTree
    squares: PyTree

    @classmethod
    def empty(cls, like: PyTree) -> "RunningMean":
        """Of no values of these shapes and types."""
        zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
        return cls(jnp.zeros(()), zero, zero)

    def include(self, value: PyTree) -> "RunningMean":
        """With one more value."""
        count = self.num_values + 1
        off = jax.tree.map(jnp.subtract, value, self.mean)
        mean = jax.tree.map(lambda mean, off: mean + off / count.astype(off.dtype), self.mean, off)
        share = self.num_values / count
        squares = jax.tree.map(lambda sum_, off: sum_ + share.astype(off.dtype) * off**2, self.squares, off)
        return RunningMean(count, mean, squares)

    def average(self) -> Estimate:
        """The mean and its standard error, NaN from a single value."""
        n = self.num_values
        divisor = n * jnp.where(n > 1, n - 1, jnp.nan)
        return Estimate(self.mean, jax.tree.map(lambda sum_: jnp.sqrt(sum_ / divisor.astype(sum_.dtype)), self.squares))


def sum_of_products(x: Float[Array, "n q"], y: Float[Array, "n r"]) -> Float[Array, "q r"]:
    """Σ xᵢ yᵢᵀ over the rows, in full precision on every device."""
    return jnp.einsum("nq,nr->qr", x, y, precision="highest")


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
