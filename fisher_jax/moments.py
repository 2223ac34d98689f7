"""Means and covariances with their standard errors, streamed: computed from parts of the rows, merged in any order.

Deviations are taken from the mean, never as the difference of two large numbers, so that a mean of 1e8 beside a standard
deviation of one costs no digits. E[XXᵀ] − E[X]E[X]ᵀ is used only where it is safe, for means near zero as those of scores.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
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
    """Moments of rows x of length q: enough for mean and covariance matrix and the standard errors of both.

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
    def empty(cls, length: int, dtype: DTypeLike = float) -> "RunningMoments":
        """Of no rows: where a stream starts."""
        square = jnp.zeros((length, length), dtype)
        return cls(jnp.zeros((), dtype), jnp.zeros((length,), dtype), square, square, square)

    @classmethod
    def of(cls, rows: ArrayLike, weights: ArrayLike | None = None) -> "RunningMoments":
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
        if weights is None:
            return _of_rows(rows, jnp.ones(rows.shape[:1], rows.dtype))
        return _of_rows(rows, jnp.asarray(as_weights(weights, "RunningMoments: weights")).astype(rows.dtype))

    @jax.jit
    def merge(self, other: "RunningMoments") -> "RunningMoments":
        """Of both sets of rows together; up to rounding, neither order nor grouping matters."""
        count = self.num_rows + other.num_rows
        size = jnp.where(count > 0, count, 1.0)
        between = other.mean - self.mean
        # From either mean to the common one. Differences of the means, not of what was rounded to a common mean.
        shift, shift_of_other = between * (other.num_rows / size), -between * (self.num_rows / size)
        sums = [a + b for a, b in zip(self._about(shift), other._about(shift_of_other), strict=True)]
        return RunningMoments(count, self.mean + shift, *sums)

    def _about(self, shift: Float[Array, " q"]) -> tuple[Array, Array, Array]:
        """Sums of powers of d about the point that lies `shift` beyond the mean."""
        row, column, n = -shift[None, :], -shift[:, None], self.num_rows
        squares = jnp.diagonal(self.products)
        products = self.products + n * column * row
        cubes = self.cubes + row * squares[:, None] + 2 * column * self.products + n * column**2 * row
        fourths = self.fourths + 2 * row * self.cubes + 2 * column * self.cubes.T
        fourths = fourths + row**2 * squares[:, None] + 4 * column * row * self.products + column**2 * squares[None, :]
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
        squares = jnp.diagonal(centred)
        variance = column**2 * squares[None, :] + row**2 * squares[:, None] + 2 * column * row * centred
        variance = variance + 2 * column * cubes.T + 2 * row * cubes + fourths - centred**2
        return Estimate(centred + column * row, jnp.sqrt(jnp.maximum(variance, 0.0) / jnp.where(n > 1, n - 1, jnp.nan)))


def covariance_of_sums(num_rows: Any, products: Any, fourths: Any, xp: Any = jnp) -> Estimate:
    """`RunningMoments.covariance` from its parts: by `jax.numpy`, or by numpy, which compiles nothing."""
    divisor = xp.where(num_rows > 1, num_rows - 1, xp.nan)
    matrix = products / divisor
    variances = xp.diagonal(matrix)
    variance = fourths / num_rows - ((num_rows - 2) * matrix**2 - variances[:, None] * variances[None, :]) / divisor
    return Estimate(matrix, xp.sqrt(xp.maximum(variance, 0.0) / num_rows))


@jax.jit
def _of_rows(rows: Float[Array, "n q"], weights: Float[Array, " n"]) -> RunningMoments:
    rows = jnp.where((weights == 0)[:, None], 0.0, rows)
    count = jnp.sum(weights)
    size = jnp.where(count > 0, count, 1.0)
    average = lambda x: jnp.sum(weights[:, None] * x, axis=0) / size  # noqa: E731
    # Three steps to the mean, each to what the last left over: from a counted row, which is near it, then to its own rounding.
    origin = rows[jnp.argmax(weights > 0)]
    mean = average(rows - origin[None, :])
    deviations = rows - origin[None, :] - mean[None, :]
    left_over = average(deviations)
    deviations = deviations - left_over[None, :]
    weighted, squares = weights[:, None] * deviations, weights[:, None] * deviations**2
    pairs = ((weighted, deviations), (squares, deviations), (squares, deviations**2))
    return RunningMoments(count, origin + mean + left_over, *(sum_of_products(*pair) for pair in pairs))


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
        step = jax.tree.map(jnp.subtract, value, self.mean)
        mean = jax.tree.map(lambda mean, step: mean + step / count.astype(step.dtype), self.mean, step)
        fraction = self.num_values / count
        squares = jax.tree.map(lambda sum_, step: sum_ + fraction.astype(step.dtype) * step**2, self.squares, step)
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


def covariance_of_moments(mean: ArrayLike, second_moment: ArrayLike) -> Float[Array, "q q"]:
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
def moments(x: ArrayLike, *, weights: ArrayLike | None = None) -> RunningMoments:
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
    >>> sums = moments(jnp.array([[1.0], [2.0], [6.0], [7.0]]))
    >>> print(sums.mean, sums.second_moment().value)
    [4.] [[22.5]]
    """
    return _sum_in_blocks(_check_rows(x), weights)


@entry_point
def covariance(x: ArrayLike, y: ArrayLike, *, weights: ArrayLike | None = None) -> Estimate:
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
    >>> estimate = covariance(jnp.array([1.0, 2.0, 3.0, 6.0]), jnp.array([2.0, 2.0, 3.0, 5.0]))
    >>> print(f"{estimate.value:.3f} ± {estimate.standard_error:.3f}")
    3.000 ± 1.357
    """
    left, right = (_check_rows(part, name, vectors=True) for part, name in ((x, "x"), (y, "y")))
    if left.shape[0] != right.shape[0]:
        raise ValueError(
            f"x has {left.shape[0]} rows and y {right.shape[0]}; expected one row of each for every observation."
        )
    q = left.shape[1]
    joint = _sum_in_blocks(jnp.concatenate([left, right], axis=1), weights).covariance()
    shape = jnp.shape(x)[1:] + jnp.shape(y)[1:]
    return Estimate(*(part[:q, q:].reshape(shape) for part in joint))


@entry_point
def covariance_matrix(x: ArrayLike, *, weights: ArrayLike | None = None) -> Estimate:
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
    return _sum_in_blocks(_check_rows(x), weights).covariance()


def _check_rows(x: Any, name: str = "x", *, vectors: bool = False) -> Array:
    """Observations as a floating matrix, one a row; raise for another shape."""
    rows = jnp.asarray(as_unmasked_array(x, lambda: name, LEAVE_OUT))
    rows = rows[:, None] if vectors and rows.ndim == 1 else rows
    if rows.ndim != 2:
        expected = "(n,) or (n, q)" if vectors else "(n, q), one observation a row"
        raise ValueError(f"{name} has shape {jnp.shape(x)}, expected {expected}.")
    return rows.astype(jnp.result_type(rows.dtype, jnp.float32))


def _sum_in_blocks(rows: Float[Array, "n q"], weights: Any) -> RunningMoments:
    n = rows.shape[0]
    weights = jnp.ones((n,)) if weights is None else jnp.asarray(as_weights(weights, "weights"))
    if weights.shape != (n,):
        raise ValueError(f"weights has shape {weights.shape}, expected ({n},), one for each row.")
    return _merge_blocks(rows, weights.astype(rows.dtype))


@jax.jit
def _merge_blocks(rows: Float[Array, "n q"], weights: Float[Array, " n"]) -> RunningMoments:
    whole = len(rows) - len(rows) % ROWS_AT_ONCE if len(rows) > ROWS_AT_ONCE else 0
    last = RunningMoments.of(rows[whole:], weights[whole:])
    if not whole:
        return last
    blocks = rows[:whole].reshape(-1, ROWS_AT_ONCE, rows.shape[1]), weights[:whole].reshape(-1, ROWS_AT_ONCE)
    step = lambda total, block: (total.merge(RunningMoments.of(*block)), None)  # noqa: E731
    return jax.lax.scan(step, last, blocks)[0]
