"""Starting values from the data: moments and quantiles that are finite, and inside the constraints, whatever the data are.

A family's `initial(y)` returns the estimates of a method that needs no iteration: the maximum itself where that is explicit,
moments, and quantiles where moments need not exist. The likelihood is then maximised from there, so that what counts is that the
start is never invalid: observations outside the support or not finite are left out (they get their status from the fit, which
names them), a spread that is zero or rounding error is replaced by the size of the observations, and results are clipped to the
range of their dtype. Data that are known are summarised by numpy, for which nothing is compiled, traced ones by jax.numpy.
Weights do not enter.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from fisher_jax.numerics.array_namespace import AnyArray, namespace, on_host

Initial = Callable[[PyTree], dict[str, Any]]
ROUNDING = 16.0  # in units of the dtype's eps: a relative spread below is no spread


def starting_values(initial: Initial) -> Initial:
    """Decorate an `initial`: known data come as arrays of numpy, overflow is no warning, products keep all their digits."""

    @functools.wraps(initial)
    def start(y: PyTree) -> dict[str, Any]:
        # Vectors are divided by numbers for each of their entries, which a user may have forbidden.
        allowed = jax.numpy_rank_promotion("allow")
        with np.errstate(all="ignore"), jax.default_matmul_precision("highest"), allowed:
            return initial(on_host(y))

    return start


def positive(y: AnyArray) -> AnyArray:
    return y > 0


def not_negative(y: AnyArray) -> AnyArray:
    return y >= 0


def between_zero_and_one(y: AnyArray) -> AnyArray:
    return (y > 0) & (y < 1)


def zero_or_one(y: AnyArray) -> AnyArray:
    return (y == 0) | (y == 1)


class Sample:
    """Observations (n,) or (n, d) and their summaries over the first axis, of those inside the support only.

    Attributes
    ----------
    y : array
        The observations as floating numbers, ½ where they are left out, which every support here contains or borders on.
    inside : array (n,)
        Which are counted; all where none is inside the support.
    size : number
        How many that are.
    xp : module
        numpy or jax.numpy.
    """

    def __init__(self, y: AnyArray, support: Callable[[AnyArray], AnyArray] = np.isfinite) -> None:
        self.xp = namespace(y)
        self.dtype = np.dtype(jnp.promote_types(jnp.result_type(float, y), jnp.float32))
        self.eps = ROUNDING * float(jnp.finfo(self.dtype).eps)
        self.tiny, self.huge = float(jnp.finfo(self.dtype).tiny), 0.25 * float(jnp.finfo(self.dtype).max)
        y = self.xp.asarray(y, self.dtype)
        if not len(y):
            y = self.xp.full((1, *y.shape[1:]), 0.5, self.dtype)
        inside = self.xp.isfinite(y) if support is np.isfinite else self.xp.isfinite(y) & support(y)
        inside = inside.all(axis=tuple(range(1, y.ndim)))
        self.y = self.xp.where(self._rows(inside, y), y, self.xp.asarray(0.5, self.dtype))
        self.inside = inside | ~inside.any()
        self.size = self.inside.sum().astype(self.dtype)

    def _rows(self, inside: AnyArray, values: AnyArray) -> AnyArray:
        return inside.reshape(inside.shape + (1,) * (values.ndim - inside.ndim))

    def of(self, values: AnyArray) -> "Sample":
        """The same observations transformed."""
        result = object.__new__(Sample)
        result.__dict__.update(self.__dict__, y=values)
        return result

    @property
    def unit(self) -> AnyArray:
        """The largest absolute observation, or one where all are zero. Squares of ratios to it do not overflow."""
        largest = self.xp.max(self.xp.where(self._rows(self.inside, self.y), self.xp.abs(self.y), 0.0), axis=0)
        return self.xp.where(largest > 0, largest, 1.0)

    def mean(self, values: AnyArray | None = None) -> AnyArray:
        """The mean of the observations, or of values that belong to them."""
        if values is not None:
            return self.of(values).mean()
        counted = self.xp.where(self._rows(self.inside, self.y), self.y / self.unit, 0.0)
        return self.unit * (counted.sum(axis=0) / self.size)

    def spread(self, value: AnyArray, otherwise: AnyArray | float | None = None) -> AnyArray:
        """A measure of spread; where it is zero or rounding error `otherwise`, by default the size of the observations."""
        fallback = self.unit if otherwise is None else self.xp.asarray(otherwise, self.dtype)
        return self.positive(self.xp.where(value > self.eps * self.unit, value, fallback))

    def moments(self, otherwise: AnyArray | float | None = None) -> tuple[AnyArray, AnyArray]:
        """The mean, and the standard deviation as `spread` makes it."""
        mean, unit = self.mean(), self.unit
        return mean, self.spread(unit * self.xp.sqrt(self.mean(((self.y - mean) / unit) ** 2)), otherwise)

    def quantiles(self, *probabilities: float) -> list[AnyArray]:
        """Quantiles, interpolated linearly."""
        ordered = self.xp.sort(self.xp.where(self.inside, self.y, self.xp.inf))  # what is left out comes last
        result = []
        for probability in probabilities:
            place = probability * (self.size - 1.0)
            low = self.xp.floor(place)
            high, weight = self.xp.minimum(low + 1.0, self.size - 1.0), place - low
            below, above = (self.xp.take(ordered, at.astype(int)) for at in (low, high))
            result.append((1.0 - weight) * below + weight * above)
        return result

    def extremes(self) -> tuple[AnyArray, AnyArray]:
        """The smallest and the largest observation."""
        low, high = (self.xp.where(self.inside, self.y, sign * self.xp.inf) for sign in (1.0, -1.0))
        return low.min(), high.max()

    def positive(self, value: AnyArray) -> AnyArray:
        """The value, strictly inside the positive numbers of the dtype."""
        return self.xp.clip(value, self.tiny, self.huge)

    def params(self, **values: Any) -> dict[str, Any]:
        """The starting values in the dtype of the data, none of them infinite."""
        return {
            name: self.xp.clip(self.xp.asarray(value, self.dtype), -self.huge, self.huge)
            for name, value in values.items()
        }
