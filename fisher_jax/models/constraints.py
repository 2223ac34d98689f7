"""Bijections between a constrained parameter and the unconstrained numbers that the optimiser moves.

A constraint applies to one leaf of `params`. It is a frozen record with four methods: `forward` (unconstrained to
constrained), `inverse` (back), `contains` (is this value strictly inside?) and `bounds` (an interval about a value that
stays inside). A foreign bijector needs only `forward` and `inverse`; see `as_constraint`.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@runtime_checkable
class Bijector(Protocol):
    """What a foreign bijector must offer; distrax and TensorFlow Probability do."""

    def forward(self, free: Any, /) -> Any: ...

    def inverse(self, value: Any, /) -> Any: ...


class Constraint:
    """Base of the constraints: the methods' meaning, and what is true of an unconstrained parameter."""

    description = "finite"
    restricts = True

    def forward(self, free: Float[Array, "..."]) -> Float[Array, "..."]:
        """The constrained value of unconstrained numbers."""
        return free

    def inverse(self, value: Float[Array, "..."]) -> Float[Array, "..."]:
        """The unconstrained numbers of a constrained value."""
        return value

    def contains(self, value: Any) -> Any:
        """Whether the value lies strictly inside the constraint."""
        return _namespace(value).all(_namespace(value).isfinite(value))

    def bounds(self, value: Float[Array, "..."], half_width: Float[Array, "..."]) -> tuple[Array, Array]:
        """Ends of an interval of natural half-width `half_width`, made on a scale on which it cannot leave the range."""
        return value - half_width, value + half_width

    def coordinate(self, free: Float[Array, "..."]) -> Float[Array, "..."]:
        """Each entry, increasing, on a scale of its own that has no ends, where the constraint knows one."""
        return self.forward(free)

    def edges(self, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """What each entry of a value of this shape cannot pass, below and above."""
        return np.full(shape, -np.inf), np.full(shape, np.inf)


@dataclass(frozen=True)
class Unconstrained(Constraint):
    """The whole real line: what `None`, or no mention, means."""

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

    def forward(self, free: Float[Array, "..."]) -> Float[Array, "..."]:
        if math.isinf(self.high):
            return self.low + jnp.exp(free)
        if math.isinf(self.low):
            return self.high - jnp.exp(-free)
        return self.low + (self.high - self.low) * jax.nn.sigmoid(free)

    def inverse(self, value: Float[Array, "..."]) -> Float[Array, "..."]:
        if math.isinf(self.high):
            return jnp.log(value - self.low)
        if math.isinf(self.low):
            return -jnp.log(self.high - value)
        return jnp.log(value - self.low) - jnp.log(self.high - value)

    def contains(self, value: Any) -> Any:
        xp = _namespace(value)
        return xp.all((value > self.low) & (value < self.high) & xp.isfinite(value))

    def bounds(self, value: Float[Array, "..."], half_width: Float[Array, "..."]) -> tuple[Array, Array]:
        below, above = value - self.low, self.high - value
        if math.isinf(self.high):
            slope = below
        elif math.isinf(self.low):
            slope = above
        else:
            slope = below * above / (self.high - self.low)
        free, step = self.inverse(value), half_width / slope
        return self.forward(free - step), self.forward(free + step)

    def coordinate(self, free: Float[Array, "..."]) -> Float[Array, "..."]:
        return free

    def edges(self, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        return np.full(shape, self.low), np.full(shape, self.high)


@dataclass(frozen=True)
class Ordered(Constraint):
    """Strictly increasing along the last axis: the first entry, then the logarithms of the increments.

    Each entry alone may be any real number, so its interval is the symmetric one.
    """

    description = "strictly increasing along its last axis"

    def forward(self, free: Float[Array, "*b k"]) -> Float[Array, "*b k"]:
        steps = jnp.concatenate([free[..., :1], jnp.exp(free[..., 1:])], axis=-1)
        return jnp.cumsum(steps, axis=-1)

    def inverse(self, value: Float[Array, "..."]) -> Float[Array, "*b k"]:
        _check_rank(value, 1, "ordered")
        return jnp.concatenate([value[..., :1], jnp.log(jnp.diff(value, axis=-1))], axis=-1)

    def contains(self, value: Any) -> Any:
        xp = _namespace(value)
        return xp.all(xp.isfinite(value)) & xp.all(xp.diff(value, axis=-1) > 0)


@dataclass(frozen=True)
class Simplex(Constraint):
    """Positive along the last axis and summing to one: K entries, K − 1 free.

    The isometric log-ratio (Egozcue et al. 2003, Math. Geol. 35, 279-300), in which no entry is singled out. Intervals
    of an entry are made on its logit.
    """

    description = "positive and summing to one along its last axis"

    def forward(self, free: Float[Array, "*b j"]) -> Float[Array, "*b k"]:
        return jax.nn.softmax(free @ _contrasts(free.shape[-1] + 1).astype(free.dtype), axis=-1)

    def inverse(self, value: Float[Array, "..."]) -> Float[Array, "*b j"]:
        _check_rank(value, 1, "simplex")
        return jnp.log(value) @ _contrasts(value.shape[-1]).astype(value.dtype).T

    def contains(self, value: Any) -> Any:
        xp = _namespace(value)
        allowed = 8 * value.shape[-1] * jnp.finfo(value.dtype).eps
        return xp.all(value > 0) & xp.all(xp.abs(xp.sum(value, axis=-1) - 1) <= allowed)

    def bounds(self, value: Float[Array, "*b k"], half_width: Float[Array, "*b k"]) -> tuple[Array, Array]:
        return unit_interval.bounds(value, half_width)

    def coordinate(self, free: Float[Array, "*b j"]) -> Float[Array, "*b k"]:
        return unit_interval.inverse(self.forward(free))

    def edges(self, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        return unit_interval.edges(shape)


@dataclass(frozen=True)
class PositiveDefinite(Constraint):
    """A symmetric positive definite d × d matrix: its Cholesky factor with the logarithm of the diagonal, row by row.

    Intervals of a diagonal entry are made on its logarithm, those of the others are symmetric.
    """

    description = "symmetric positive definite"

    def forward(self, free: Float[Array, " k"]) -> Float[Array, "d d"]:
        d = (math.isqrt(8 * free.shape[-1] + 1) - 1) // 2
        lower = jnp.zeros((d, d), free.dtype).at[jnp.tril_indices(d)].set(free)
        diagonal = jnp.diagonal(lower)
        lower = lower + jnp.diag(jnp.exp(diagonal) - diagonal)
        return jnp.einsum("ik,jk->ij", lower, lower, precision="highest")

    def inverse(self, value: Float[Array, "..."]) -> Float[Array, " k"]:
        if value.ndim != 2 or value.shape[0] != value.shape[1]:
            raise ValueError(
                f"positive_definite: expected a square matrix, got shape {value.shape}. "
                "Give each matrix a leaf of its own."
            )
        lower = jnp.linalg.cholesky(value)
        diagonal = jnp.diagonal(lower)
        lower = lower + jnp.diag(jnp.log(diagonal) - diagonal)
        return lower[jnp.tril_indices(value.shape[0])]

    def contains(self, value: Any) -> Any:
        xp = _namespace(value)
        allowed = 8 * jnp.finfo(value.dtype).eps * xp.max(xp.abs(value))
        symmetric = xp.all(xp.abs(value - value.T) <= allowed) & xp.all(xp.isfinite(value))
        return symmetric & (xp.linalg.eigvalsh(xp.where(symmetric, value, 0.0))[0] > 0)

    def bounds(self, value: Float[Array, "d d"], half_width: Float[Array, "d d"]) -> tuple[Array, Array]:
        low, high = super().bounds(value, half_width)
        on_diagonal = jnp.eye(value.shape[0], dtype=bool)
        safe = jnp.where(on_diagonal, value, 1.0)
        log_low, log_high = positive.bounds(safe, half_width)
        return jnp.where(on_diagonal, log_low, low), jnp.where(on_diagonal, log_high, high)

    def coordinate(self, free: Float[Array, " k"]) -> Float[Array, "d d"]:
        value = self.forward(free)
        on_diagonal = jnp.eye(value.shape[0], dtype=bool)
        return jnp.where(on_diagonal, jnp.log(jnp.where(on_diagonal, value, 1.0)), value)

    def edges(self, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        return np.where(np.eye(shape[0], dtype=bool), 0.0, -np.inf), np.full(shape, np.inf)


@dataclass(frozen=True)
class Fixed(Constraint):
    """Held at its starting value: not estimated, not counted, absent from every matrix."""

    description = "fixed"


@dataclass(frozen=True, eq=False)
class Foreign(Constraint):
    """Somebody else's bijector. Intervals are symmetric on the natural scale, for want of knowing its range."""

    bijector: Bijector
    description = "in the range of the given bijector"

    def __hash__(self) -> int:
        return id(self.bijector)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Foreign) and other.bijector is self.bijector

    def forward(self, free: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.asarray(self.bijector.forward(free))

    def inverse(self, value: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.asarray(self.bijector.inverse(value))

    def contains(self, value: Any) -> Any:
        value = jnp.asarray(value)
        free = self.inverse(value)
        back = self.forward(free)
        close = jnp.abs(back - value) <= jnp.sqrt(jnp.finfo(value.dtype).eps) * (1 + jnp.abs(value))
        return jnp.all(jnp.isfinite(free)) & jnp.all(close)


def as_constraint(given: Any) -> Constraint | None:
    """The constraint meant by a user's object; `None` where the object is a container to look into.

    `None` means unconstrained. Anything with callable `forward` and `inverse` is taken as a bijector from the
    unconstrained to the constrained value.
    """
    if given is None:
        return Unconstrained()
    if isinstance(given, Constraint):
        return given
    return Foreign(given) if isinstance(given, Bijector) and not isinstance(given, type) else None


def interval(low: float | int, high: float | int) -> Interval:
    """The constraint low < θ < high. Either end may be infinite, not both.

    Parameters
    ----------
    low, high : float
        Ends of the open interval, in the parameter's own unit.

    Returns
    -------
    Interval
        A constraint to be used in `Model(constraints=…)`.

    Raises
    ------
    ValueError
        If `low` is not below `high`, an end is NaN, or both are infinite.

    Examples
    --------
    >>> import fisher_jax as fj
    >>> fj.interval(-1, 1)
    Interval(low=-1.0, high=1.0)
    """
    low, high = float(low), float(high)
    if not low < high or (math.isinf(low) and math.isinf(high)):
        raise ValueError(
            f"interval: expected low < high with at least one finite end, got interval({low:g}, {high:g}). "
            "Leave a parameter out of `constraints` if it may take any value."
        )
    return Interval(low, high)


def _namespace(value: Any) -> Any:
    """numpy for values known now, so that a check at the door costs nothing; jax.numpy under a transformation."""
    return np if isinstance(value, np.ndarray) else jnp


def _contrasts(k: int) -> Float[Array, "j k"]:
    """Orthonormal rows, each summing to zero (Helmert)."""
    i, j = jnp.arange(1, k)[:, None], jnp.arange(k)[None, :]
    rows = jnp.where(j < i, 1.0, jnp.where(j == i, -1.0 * i, 0.0))
    return rows / jnp.sqrt(i * (i + 1.0))


def _check_rank(value: Array, rank: int, name: str) -> None:
    if value.ndim < rank:
        raise ValueError(f"{name}: expected an array of at least {rank} axis, got a value of shape {value.shape}.")


positive = Interval(0.0, math.inf)
unit_interval = Interval(0.0, 1.0)
ordered = Ordered()
simplex = Simplex()
positive_definite = PositiveDefinite()
fixed = Fixed()
