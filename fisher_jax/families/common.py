"""What every family needs around its mathematics: one floating dtype, the edge of the support, draws, nested information."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

Params = Mapping[str, Any]
Scalar = Float[Array, ""]
Nested = dict[str, dict[str, Array]]  # a matrix over parameters, as `jax.hessian` nests it


def floats(*values: ArrayLike) -> tuple[Array, ...]:
    """The values as arrays of their common floating dtype; integers take the dtype of the floating ones."""
    dtype = jnp.result_type(float, *values)
    return tuple(jnp.asarray(value, dtype) for value in values)


def dtype_of(params: Params) -> DTypeLike:
    """The floating dtype of a family's parameters, which its draws have too."""
    return jnp.result_type(float, *params.values())


def outside_support(outside: Array, log_density: Scalar) -> Scalar:
    """The log-density, −inf outside the support. Give one that was computed with a y inside: else its gradient is NaN."""
    return jnp.where(outside, -jnp.inf, log_density)


def not_a_count(y: Array) -> Array:
    """Whether y is not one of 0, 1, 2, …; false for NaN, whose log-density is NaN."""
    return (y < 0) | (y > jnp.floor(y))


def open_uniform(key: Array, dtype: DTypeLike) -> Scalar:
    """One number strictly between 0 and 1."""
    return jax.random.uniform(key, (), dtype, minval=jnp.finfo(dtype).tiny)


@dataclass(frozen=True)
class by_inversion:  # noqa: N801 - a function that can be pickled and compared
    """The sampler that a quantile function makes of uniform numbers."""

    quantile: Callable[[Any, Params], Any]

    def __call__(self, key: Array, params: Params) -> Any:
        return self.quantile(open_uniform(key, dtype_of(params)), params)


def symmetric(names: tuple[str, ...], *upper: ArrayLike) -> Nested:
    """A symmetric matrix of scalars from its upper triangle, row by row, as a dictionary of dictionaries."""
    entries = iter(floats(*upper))
    result: Nested = {name: {} for name in names}
    for i, row in enumerate(names):
        for column in names[i:]:
            result[row][column] = result[column][row] = next(entries)
    return result


def with_constant(information: Nested, *constants: str) -> Nested:
    """The matrix with a row and column of zeros for each parameter that is a known constant: it has no score."""
    names = (*information, *constants)
    return {row: {column: information.get(row, {}).get(column, jnp.zeros(())) for column in names} for row in names}
