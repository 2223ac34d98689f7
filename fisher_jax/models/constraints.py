"""Constraints: bijections between a constrained parameter and the unconstrained numbers that the optimiser moves.

A constraint applies to one leaf of `params`. It is a frozen record whose methods are `forward` (unconstrained to
constrained), `inverse` (back), `jacobian` (the derivative of `forward` in closed form), `contains` (is this value strictly
inside?), `bounds` (an interval about a value that stays inside), `free_shape` (of the unconstrained numbers), `unitless` (which of
these are logarithms or logits), `edges` (the ends of its range) and `coordinate` (the scale on which an entry is profiled).
Values may have leading axes, those of many fits, except in `contains`; for an array of numpy they return one of numpy. A foreign
bijector needs only `forward` and `inverse`; see `as_constraint`.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fisher_jax.errors import call_user, entry_point, is_number, kind_of, shown
from fisher_jax.numerics.array_namespace import AnyArray, namespace
from fisher_jax.numerics.linalg import product


@runtime_checkable
class Bijector(Protocol):
    """The methods that a foreign bijector needs; those of distrax and TensorFlow Probability have them."""

    def forward(self, free: Any, /) -> Any: ...

    def inverse(self, value: Any, /) -> Any: ...


class Constraint:
    """Base class of the constraints: what the methods mean, as they are for an unconstrained parameter."""

    description = "finite"
    restricts = True

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Raise: `positive()` and `fixed(2.0)` are easily written."""
        raise TypeError(
            "a constraint is not called: constraints={'scale': fj.positive}. A parameter that is `fixed` has the value that it has "
            "in start."
        )

    def free_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the unconstrained numbers of a value of this shape; `ValueError` if no value has it."""
        return shape

    def unitless(self, free_shape: tuple[int, ...]) -> np.ndarray:
        """Which unconstrained numbers are logarithms or logits, which have no unit: a distance of three is large in all of them."""
        return np.full(free_shape, self.restricts)

    def forward(self, free: Float[AnyArray, "..."]) -> Float[AnyArray, "..."]:
        """The constrained value of unconstrained numbers."""
        return free

    def jacobian(self, free: Float[AnyArray, "..."], ndim: int) -> Float[AnyArray, "*b q p"]:
        """The derivative of the raveled value by the raveled unconstrained numbers, which have `ndim` axes."""
        return _diagonal(namespace(free).ones_like(free), ndim)

    def inverse(self, value: Float[AnyArray, "..."]) -> Float[AnyArray, "..."]:
        """The unconstrained numbers of a constrained value."""
        return value

    def contains(self, value: Any) -> Any:
        """Whether the value lies strictly inside the constraint."""
        return namespace(value).all(namespace(value).isfinite(value))

    def bounds(self, value: Float[AnyArray, "..."], half_width: Float[AnyArray, "..."]) -> tuple[AnyArray, AnyArray]:
        """Ends of an interval with this half-width on the natural scale, transformed so that it cannot leave the range."""
        return value - half_width, value + half_width

    def coordinate(self, free: Float[AnyArray, "..."]) -> Float[AnyArray, "..."]:
        """An increasing transform of each entry to the whole real line, if the constraint has one; else the value itself."""
        return self.forward(free)

    def edges(self, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """The ends of the range of each entry of a value of this shape, below and above."""
        return np.full(shape, -np.inf), np.full(shape, np.inf)


@dataclass(frozen=True)
class Unconstrained(Constraint):
    """The whole real line: for `None`, or where a parameter is not mentioned."""

    restricts = False


@dataclass(frozen=True)
class Interval(Constraint):
    """Every entry strictly between `low` and `high`, either of which may be infinite.

    The unconstrained scale is log(θ − low) or −log(high − θ) for one finite end, the logit of (θ − low)/(high − low) for
    two. Wald intervals are made on that scale.
    """

    low: float
    high: float

    @property
    def description(self) -> str:  # type: ignore[override]
        if (self.low, self.high) == (0.0, math.inf):
            return "positive"
        return f"strictly between {self.low:g} and {self.high:g}"

    def forward(self, free: Float[AnyArray, "..."]) -> Float[AnyArray, "..."]:
        xp = namespace(free)
        if math.isinf(self.high):
            return self.low + xp.exp(free)
        if math.isinf(self.low):
            return self.high - xp.exp(-free)
        return self.low + (self.high - self.low) * _sigmoid(free)

    def jacobian(self, free: Float[AnyArray, "..."], ndim: int) -> Float[AnyArray, "*b q p"]:
        xp = namespace(free)
        if math.isinf(self.high):
            return _diagonal(xp.exp(free), ndim)
        if math.isinf(self.low):
            return _diagonal(xp.exp(-free), ndim)
        return _diagonal((self.high - self.low) * _sigmoid(free) * _sigmoid(-free), ndim)

    def inverse(self, value: Float[AnyArray, "..."]) -> Float[AnyArray, "..."]:
        xp = namespace(value)
        if math.isinf(self.high):
            return xp.log(value - self.low)
        if math.isinf(self.low):
            return -xp.log(self.high - value)
        return xp.log(value - self.low) - xp.log(self.high - value)

    def contains(self, value: Any) -> Any:
        xp = namespace(value)
        return xp.all((value > self.low) & (value < self.high) & xp.isfinite(value))

    def bounds(self, value: Float[AnyArray, "..."], half_width: Float[AnyArray, "..."]) -> tuple[AnyArray, AnyArray]:
        below, above = value - self.low, self.high - value
        if math.isinf(self.high):
            slope = below
        elif math.isinf(self.low):
            slope = above
        else:
            slope = below * above / (self.high - self.low)
        free, step = self.inverse(value), half_width / slope
        return self.forward(free - step), self.forward(free + step)

    def coordinate(self, free: Float[AnyArray, "..."]) -> Float[AnyArray, "..."]:
        return free

    def edges(self, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        return np.full(shape, self.low), np.full(shape, self.high)


@dataclass(frozen=True)
class Ordered(Constraint):
    """Strictly increasing along the last axis: the first entry, then the logarithms of the increments.

    Entries that also lie in an interval increase on the unconstrained scale of that interval, which is an increasing transform: of
    positive ones the free numbers are log θ₁ and the logarithms of the increments of log θ. Each entry alone has the range, and so
    the intervals, of one that is not ordered.
    """

    within: Interval | Unconstrained = Unconstrained()

    @property
    def description(self) -> str:  # type: ignore[override]
        ordered = "strictly increasing along its last axis"
        return f"{self.within.description} and {ordered}" if self.within.restricts else ordered

    def free_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        _check_rank(shape, "ordered")
        return shape

    def unitless(self, free_shape: tuple[int, ...]) -> np.ndarray:
        return np.broadcast_to((np.arange(free_shape[-1]) > 0) | self.within.restricts, free_shape)

    def forward(self, free: Float[AnyArray, "*b k"]) -> Float[AnyArray, "*b k"]:
        xp = namespace(free)
        increments = xp.concatenate([free[..., :1], xp.exp(free[..., 1:])], axis=-1)
        return self.within.forward(xp.cumsum(increments, axis=-1))

    def jacobian(self, free: Float[AnyArray, "*b k"], ndim: int) -> Float[AnyArray, "*b q p"]:
        xp, k = namespace(free), free.shape[-1]
        slopes = xp.concatenate([xp.ones_like(free[..., :1]), xp.exp(free[..., 1:])], axis=-1)
        block = xp.broadcast_to(slopes[..., None, :], (*free.shape, k))
        block = xp.where(np.broadcast_to(np.tri(k, dtype=bool), block.shape), block, 0.0)
        if self.within.restricts:  # times the slope of each entry on the scale where they increase
            places = xp.cumsum(xp.concatenate([free[..., :1], slopes[..., 1:]], axis=-1), axis=-1)
            entries = xp.diagonal(self.within.jacobian(places, 1), axis1=-2, axis2=-1)
            block = entries[..., :, None] * block
        return _block_diagonal(block, ndim - 1)

    def inverse(self, value: Float[AnyArray, "*b k"]) -> Float[AnyArray, "*b k"]:
        xp, places = namespace(value), self.within.inverse(value)
        return xp.concatenate([places[..., :1], xp.log(xp.diff(places, axis=-1))], axis=-1)

    def contains(self, value: Any) -> Any:
        xp = namespace(value)
        return self.within.contains(value) & xp.all(xp.diff(value, axis=-1) > 0)

    def bounds(self, value: Float[AnyArray, "*b k"], half_width: Float[AnyArray, "*b k"]) -> tuple[AnyArray, AnyArray]:
        return self.within.bounds(value, half_width)

    def coordinate(self, free: Float[AnyArray, "*b k"]) -> Float[AnyArray, "*b k"]:
        return self.within.inverse(self.forward(free))

    def edges(self, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        return self.within.edges(shape)


@dataclass(frozen=True)
class Simplex(Constraint):
    """Positive along the last axis with sum one: K entries, of which K − 1 are free.

    The isometric log-ratio (Egozcue et al. 2003, Math. Geol. 35, 279-300), in which no entry is singled out. Intervals
    of an entry are made on its logit.
    """

    description = "positive and summing to one along its last axis"

    def free_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        _check_rank(shape, "simplex")
        return (*shape[:-1], shape[-1] - 1)

    def forward(self, free: Float[AnyArray, "*b j"]) -> Float[AnyArray, "*b k"]:
        logits = _times(free, _contrasts(free.shape[-1] + 1))
        if namespace(logits) is jnp:
            return jax.nn.softmax(logits, axis=-1)
        odds = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
        return odds / np.sum(odds, axis=-1, keepdims=True)

    def jacobian(self, free: Float[AnyArray, "*b j"], ndim: int) -> Float[AnyArray, "*b q p"]:
        # ∂ softmax(z)ᵢ / ∂zₖ = sᵢ (δᵢₖ − sₖ), and the logits z are linear in u.
        slopes, value = _contrasts(free.shape[-1] + 1).T.astype(free.dtype), self.forward(free)
        centred = slopes.reshape((1,) * (free.ndim - 1) + slopes.shape) - _times(value, slopes)[..., None, :]
        return _block_diagonal(value[..., :, None] * centred, ndim - 1)

    def inverse(self, value: Float[AnyArray, "*b k"]) -> Float[AnyArray, "*b j"]:
        return _times(namespace(value).log(value), _contrasts(value.shape[-1]).T)

    def contains(self, value: Any) -> Any:
        xp = namespace(value)
        allowed = 8 * value.shape[-1] * jnp.finfo(value.dtype).eps
        return xp.all(value > 0) & xp.all(xp.abs(xp.sum(value, axis=-1) - 1) <= allowed)

    def bounds(self, value: Float[AnyArray, "*b k"], half_width: Float[AnyArray, "*b k"]) -> tuple[AnyArray, AnyArray]:
        return unit_interval.bounds(value, half_width)

    def coordinate(self, free: Float[AnyArray, "*b j"]) -> Float[AnyArray, "*b k"]:
        return unit_interval.inverse(self.forward(free))

    def edges(self, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        return unit_interval.edges(shape)


@dataclass(frozen=True)
class PositiveDefinite(Constraint):
    """A symmetric positive definite d × d matrix: its Cholesky factor with the logarithm of the diagonal, row by row.

    Intervals of a diagonal entry are made on its logarithm, those of the others are symmetric.
    """

    description = "symmetric positive definite"

    def free_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) != 2 or shape[0] != shape[1]:
            raise ValueError(
                f"positive_definite: expected a square matrix, got shape {shape}. Give each matrix a leaf of its own."
            )
        return (shape[0] * (shape[0] + 1) // 2,)

    def unitless(self, free_shape: tuple[int, ...]) -> np.ndarray:
        rows, columns = np.tril_indices(_num_rows(free_shape[-1]))
        return rows == columns

    def forward(self, free: Float[AnyArray, "*b k"]) -> Float[AnyArray, "*b d d"]:
        lower = _cholesky_factor(free)
        return product(lower, lower.mT)

    def jacobian(self, free: Float[AnyArray, "*b k"], ndim: int) -> Float[AnyArray, "*b q k"]:
        # ∂Σ/∂L_rc = E_rc Lᵀ + L E_rcᵀ: row r and column r of Σ change by column c of L; ∂L_rr/∂u = L_rr.
        xp, lower = namespace(free), _cholesky_factor(free)
        d = lower.shape[-1]
        rows, columns = np.tril_indices(d)
        at_row = np.eye(d, dtype=free.dtype)[rows].reshape((1,) * (free.ndim - 1) + (len(rows), d))
        along = lower.mT[..., columns, :]
        inner = xp.where(np.broadcast_to(rows == columns, free.shape), lower[..., rows, columns], 1.0)
        along = along * inner[..., :, None]
        change = at_row[..., :, None] * along[..., None, :]
        change = change + change.mT
        return change.reshape((*free.shape, d * d)).mT

    def inverse(self, value: Float[AnyArray, "*b d d"]) -> Float[AnyArray, "*b k"]:
        xp, d = namespace(value), value.shape[-1]
        if xp is np:  # where JAX returns NaN, numpy raises for all
            definite = (np.linalg.eigvalsh(value)[..., :1] > 0)[..., None]
            lower = np.linalg.cholesky(np.where(definite, value, np.eye(d, dtype=value.dtype)))
            lower = np.where(definite, lower, np.nan).astype(value.dtype)
        else:
            lower = jnp.linalg.cholesky(value)
        rows, columns = np.tril_indices(d)
        free = lower[..., rows, columns]
        on_diagonal = np.broadcast_to(rows == columns, free.shape)
        return xp.where(on_diagonal, xp.log(xp.where(on_diagonal, free, 1.0)), free)

    def contains(self, value: Any) -> Any:
        xp = namespace(value)
        allowed = 8 * jnp.finfo(value.dtype).eps * xp.max(xp.abs(value))
        symmetric = xp.all(xp.abs(value - value.T) <= allowed) & xp.all(xp.isfinite(value))
        return symmetric & (xp.linalg.eigvalsh(xp.where(symmetric, value, 0.0))[0] > 0)

    def bounds(
        self, value: Float[AnyArray, "*b d d"], half_width: Float[AnyArray, "*b d d"]
    ) -> tuple[AnyArray, AnyArray]:
        xp = namespace(value, half_width)
        low, high = super().bounds(value, half_width)
        on_diagonal = np.broadcast_to(np.eye(value.shape[-1], dtype=bool), value.shape)
        log_low, log_high = positive.bounds(xp.where(on_diagonal, value, 1.0), half_width)
        return xp.where(on_diagonal, log_low, low), xp.where(on_diagonal, log_high, high)

    def coordinate(self, free: Float[AnyArray, "*b k"]) -> Float[AnyArray, "*b d d"]:
        value, xp = self.forward(free), namespace(free)
        on_diagonal = np.broadcast_to(np.eye(value.shape[-1], dtype=bool), value.shape)
        return xp.where(on_diagonal, xp.log(xp.where(on_diagonal, value, 1.0)), value)

    def edges(self, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        return np.where(np.eye(shape[0], dtype=bool), 0.0, -np.inf), np.full(shape, np.inf)


@dataclass(frozen=True)
class Fixed(Constraint):
    """Fixed at its starting value: not estimated, not counted, absent from every matrix."""

    description = "fixed"


@dataclass(frozen=True, eq=False)
class Foreign(Constraint):
    """A bijector of another library. Intervals are symmetric on the natural scale, since its range is unknown."""

    bijector: Bijector
    description = "in the range of the given bijector"

    def __hash__(self) -> int:
        return id(self.bijector)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Foreign) and other.bijector is self.bijector

    def _call(self, direction: str, value: Any) -> Array:
        name = f"{direction} of the bijector {type(self.bijector).__name__}"
        result = call_user(getattr(self.bijector, direction), (jnp.asarray(value),), name)
        if not isinstance(result, jax.Array | np.ndarray):
            raise TypeError(f"constraints: {name} must return an array but returned {kind_of(result)}.")
        return jnp.asarray(result)

    def free_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return jax.eval_shape(
            self.inverse, jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(np.float64))
        ).shape

    def forward(self, free: Float[AnyArray, "..."]) -> Float[AnyArray, "..."]:
        return namespace(free).asarray(self._call("forward", free))

    def jacobian(self, free: Float[AnyArray, "..."], ndim: int) -> Float[AnyArray, "*b q p"]:
        leading, shape = free.shape[: free.ndim - ndim], free.shape[free.ndim - ndim :]

        def raveled(flat: Array) -> Array:
            return jnp.ravel(self._call("forward", flat.reshape(shape)))

        flat = jnp.asarray(free).reshape((math.prod(leading), math.prod(shape)))
        slopes = jax.vmap(jax.jacfwd(raveled))(flat)
        return namespace(free).asarray(slopes.reshape((*leading, *slopes.shape[1:])))

    def inverse(self, value: Float[AnyArray, "..."]) -> Float[AnyArray, "..."]:
        return namespace(value).asarray(self._call("inverse", value))

    def contains(self, value: Any) -> Any:
        value = jnp.asarray(value)
        free = self.inverse(value)
        back = self.forward(free)
        close = jnp.abs(back - value) <= jnp.sqrt(jnp.finfo(value.dtype).eps) * (1 + jnp.abs(value))
        return jnp.all(jnp.isfinite(free)) & jnp.all(close)


def as_constraint(given: Any) -> Constraint | None:
    """The constraint that a user's object stands for; `None` where the object is a container of constraints.

    `None` means unconstrained. Anything with callable `forward` and `inverse` is taken as a bijector from the
    unconstrained to the constrained value.
    """
    if given is None:
        return Unconstrained()
    if isinstance(given, Constraint):
        return given
    return Foreign(given) if isinstance(given, Bijector) and not isinstance(given, type) else None


@entry_point
def interval(low: float | int | None, high: float | int | None) -> Interval | Unconstrained:
    """The constraint low < θ < high. None, or an infinite end, leaves that side without a bound.

    Parameters
    ----------
    low, high : float or None
        Ends of the open interval, in the parameter's own unit.

    Returns
    -------
    Interval, or Unconstrained without a finite end
        A constraint to be used in `Model(constraints=…)`, where the tuple ``(low, high)`` may stand for it.

    Raises
    ------
    ValueError, TypeError
        If `low` is not below `high`, an end is NaN or no number, or a range holds no finite value.

    Examples
    --------
    >>> import fisher_jax as fj
    >>> fj.interval(-1, 1)
    Interval(low=-1.0, high=1.0)
    >>> fj.interval(0, None) == fj.positive
    True
    """
    for name, end in (("low", low), ("high", high)):
        if end is not None and not is_number(end):
            raise TypeError(f"{name}={shown(end)} must be a number, or None where there is no bound.")
    lowest = -math.inf if low is None else float(low)
    highest = math.inf if high is None else float(high)
    if not lowest < highest:
        raise ValueError(f"expected low < high, got interval({lowest:g}, {highest:g}).")
    return Unconstrained() if math.isinf(lowest) and math.isinf(highest) else Interval(lowest, highest)


@dataclass(frozen=True)
class Bounds:
    """An interval that was written as a tuple of its ends; `Unconstrained` without a finite one."""

    constraint: Constraint

    @property
    def restricts(self) -> bool:
        return self.constraint.restricts


def is_bounds(given: Any) -> bool:
    """Whether this is a tuple of two numbers, or of a number and None.

    Two Nones are a tuple of two unconstrained parameters, or bounds that bound nothing, which is the same.
    """
    if type(given) is not tuple or len(given) != 2 or all(end is None for end in given):
        return False
    return all(end is None or is_number(end) for end in given)


def _sigmoid(free: Any) -> Any:
    """1/(1 + e^−u), without overflow in numpy."""
    return jax.nn.sigmoid(free) if namespace(free) is jnp else np.exp(-np.logaddexp(np.zeros_like(free), -free))


def _contrasts(k: int) -> Float[np.ndarray, "j k"]:
    """Orthonormal rows, each summing to zero (Helmert)."""
    i, j = np.arange(1, k)[:, None], np.arange(k)[None, :]
    rows = np.where(j < i, 1.0, np.where(j == i, -1.0 * i, 0.0))
    return rows / np.sqrt(i * (i + 1.0))


def _times(vectors: Float[AnyArray, "*b j"], matrix: Float[np.ndarray, "j k"]) -> Float[AnyArray, "*b k"]:
    """Each vector times a matrix of the vectors' own precision."""
    return product(vectors, matrix.astype(vectors.dtype))


def _diagonal(slopes: Float[AnyArray, "..."], ndim: int) -> Float[AnyArray, "*b p p"]:
    """The Jacobian of a transformation entry by entry."""
    leading, size = slopes.shape[: slopes.ndim - ndim], math.prod(slopes.shape[slopes.ndim - ndim :])
    column = slopes.reshape((*leading, size, 1))
    return namespace(slopes).where(np.broadcast_to(np.eye(size, dtype=bool), (*leading, size, size)), column, 0.0)


def _block_diagonal(blocks: Float[AnyArray, "..."], ndim: int) -> Float[AnyArray, "*b q p"]:
    """The Jacobian of a transformation row by row, from those (…, k, j) of the rows, which fill `ndim` axes."""
    leading, (k, j) = blocks.shape[: blocks.ndim - 2 - ndim], blocks.shape[-2:]
    m = math.prod(blocks.shape[blocks.ndim - 2 - ndim : -2])
    same = np.eye(m, dtype=bool)[:, None, :, None]
    whole = namespace(blocks).where(
        np.broadcast_to(same, (*leading, m, k, m, j)), blocks.reshape((*leading, m, k, 1, j)), 0.0
    )
    return whole.reshape((*leading, m * k, m * j))


def _num_rows(num_free: int) -> int:
    """d, of the lower triangle with d (d + 1) / 2 entries."""
    return (math.isqrt(8 * num_free + 1) - 1) // 2


def _cholesky_factor(free: Float[AnyArray, "*b k"]) -> Float[AnyArray, "*b d d"]:
    """L with its rows in `free`, the diagonal as logarithms."""
    xp, d = namespace(free), _num_rows(free.shape[-1])
    rows, columns = np.tril_indices(d)
    on_diagonal = np.broadcast_to(rows == columns, free.shape)
    entries = xp.where(on_diagonal, xp.exp(xp.where(on_diagonal, free, 0.0)), free)
    place = np.zeros((d, d), int)
    place[rows, columns] = np.arange(len(rows))
    whole = entries[..., place]
    return xp.where(np.broadcast_to(np.tri(d, dtype=bool), whole.shape), whole, 0.0)


def _check_rank(shape: tuple[int, ...], name: str) -> None:
    if not shape:
        raise ValueError(f"{name}: expected an array of at least 1 axis, got a value of shape {shape}.")


positive = Interval(0.0, math.inf)
unit_interval = Interval(0.0, 1.0)
ordered = Ordered()
simplex = Simplex()
positive_definite = PositiveDefinite()
fixed = Fixed()
