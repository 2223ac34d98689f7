"""What every family needs around its mathematics: `Family`, one floating dtype, the edge of the support, nested information."""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import ndtri
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from fisher_jax.models.model import Model, in_short
from fisher_jax.numerics.tails import Tails, least_count

Params = Mapping[str, Any]
Scalar = Float[Array, ""]
Nested = dict[str, dict[str, Array]]  # a matrix over parameters, as `jax.hessian` nests it


@dataclass(frozen=True, eq=False, repr=False)
class Family(Model):
    """A `Model` that knows the names of its parameters. Its docstring is that of its log-density, which `help` then shows.

    Where it has a quantile function and no `sample`, it draws by inversion.
    """

    parameters: tuple[str, ...]
    # The parameter that a formula with a response describes, by default the first; None where y is a vector.
    main: str | None = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        if self.sample is None and self.quantile is not None:
            object.__setattr__(self, "sample", ByInversion(self.quantile))
        # pydoc and IPython show a docstring of the instance where it has one, and that of its class otherwise
        object.__setattr__(self, "__doc__", self.log_density.__doc__)
        object.__setattr__(self, "main", self.parameters[0] if self.main == "" else self.main)
        super().__post_init__()

    @property
    def name(self) -> str:
        """The name, as in `fisher_jax.families`."""
        return str(self.log_density.__name__.removesuffix("_log_density"))

    def __repr__(self) -> str:
        text = f"families.{self.name}({', '.join(self.parameters)})"
        return text if self.prior is None else f"with_prior({text}, {in_short(self.prior)})"


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


def before_support(before: Array, log_survival: Scalar) -> Scalar:
    """log P(Y > y), zero below the support; as in `outside_support`, it is computed with a y inside."""
    return jnp.where(before, 0.0, log_survival)


def of_category(y: Array, number: int, log_probability: Callable[[Array], Scalar], *, upper: bool) -> Scalar:
    """log P(Y ≤ y), or with `upper` log P(Y > y), of categories 0, …, number − 1, from a function of 0, …, number − 2."""
    first, last = y < 0, y >= number - 1
    inside = log_probability(jnp.where(first | last | jnp.isnan(y), 0.0, jnp.floor(y)))
    impossible, certain = (last, first) if upper else (first, last)
    value = jnp.where(impossible, -jnp.inf, jnp.where(certain, 0.0, inside))
    return jnp.where(jnp.isnan(y), jnp.nan, value)


def exceeds(uniform: ArrayLike, lower: Array, upper: Array) -> Array:
    """Whether a uniform number exceeds probabilities P(Y ≤ y), given with P(Y > y), so that none is lost near one."""
    u = floats(uniform)[0].astype(lower.dtype)
    return jnp.where(u < 0.5, u > lower, upper > 1.0 - u)


def tails_of_count(
    y: ArrayLike, tails: Callable[[Array], Tails], dtype: DTypeLike, largest: ArrayLike = math.inf
) -> Tails:
    """log P(Y ≤ y) and log P(Y > y) for any y, of a count from 0 to `largest`; `tails` has them at counts below that."""
    count = jnp.floor(jnp.asarray(y, dtype))
    below, above = count < 0, count >= largest
    lower, upper = tails(jnp.where(below | above, 0.0, count))
    return (
        jnp.where(below, -jnp.inf, jnp.where(above, 0.0, lower)),
        jnp.where(below, 0.0, jnp.where(above, -jnp.inf, upper)),
    )


def guess_of_count(uniform: Array, mean: Array, deviation: Array, skewness: Array) -> Scalar:
    """Where a search for the quantile of a count may start: Cornish and Fisher's expansion to the skewness."""
    limits = jnp.finfo(mean.dtype)
    z = ndtri(jnp.clip(uniform, limits.tiny, 1.0 - limits.epsneg))
    return mean + deviation * (z + skewness * (z * z - 1.0) / 6.0)


def quantile_of_count(
    tails: Callable[[Params, Array], Tails], uniform: Array, params: Params, guess: Array, largest: ArrayLike = math.inf
) -> Scalar:
    """The least count whose distribution function reaches the uniform number, which does not move with small changes of params."""
    constants = lax.stop_gradient((uniform, params, guess, largest))
    uniform, params, guess, largest = constants
    return least_count(functools.partial(tails, params), uniform, guess, largest)


def open_uniform(key: Array, dtype: DTypeLike) -> Scalar:
    """One number strictly between 0 and 1."""
    return jax.random.uniform(key, (), dtype, minval=jnp.finfo(dtype).tiny)


@dataclass(frozen=True)
class ByInversion:
    """The sampler that a quantile function makes of uniform numbers, as a function that can be pickled and compared."""

    quantile: Callable[[Any, Params], Any]

    def __call__(self, key: Array, params: Params) -> Any:
        return self.quantile(open_uniform(key, dtype_of(params)), params)


def symmetric(names: tuple[str, ...], *upper: ArrayLike, constants: tuple[str, ...] = ()) -> Nested:
    """A symmetric matrix of scalars from its upper triangle, row by row, as a dictionary of dictionaries.

    It has a row and a column of zeros for each parameter that is a known constant: such a parameter has no score.
    """
    every = (*names, *constants)
    result: Nested = {row: {column: jnp.zeros(()) for column in every} for row in every}
    entries = iter(floats(*upper))
    for i, row in enumerate(names):
        for column in names[i:]:
            result[row][column] = result[column][row] = next(entries)
    return result


@dataclass(frozen=True)
class OverSquare:
    """Information that is a matrix of constants divided by the square of the last of its parameters, a scale as a rule.

    A class, so that it can be pickled and compared.
    """

    names: tuple[str, ...]
    upper: tuple[float, ...]
    constants: tuple[str, ...] = field(default=(), kw_only=True)

    def __call__(self, params: Params) -> Nested:
        inverse_square = 1.0 / floats(params[self.names[-1]])[0] ** 2
        # A literal zero for parameters without common information: of a scale that is not finite it would be NaN.
        entries = (constant * inverse_square if constant else 0.0 for constant in self.upper)
        return symmetric(self.names, *entries, constants=self.constants)
