"""Confidence intervals from an estimate and its standard errors."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fisher_jax.fitting.covariance import KINDS
from fisher_jax.models.parameters import Layout, Values

Scale = Literal["unconstrained", "natural"]


def check_level(level: Any, caller: str) -> None:
    """A confidence level is a number strictly between 0 and 1."""
    if isinstance(level, jax.core.Tracer):
        return
    if np.ndim(level) or np.asarray(level).dtype.kind not in "iuf":
        raise TypeError(f"{caller}: level={level!r} must be a number strictly between 0 and 1, as 0.95 for 95 %.")
    if not 0 < level < 1:
        raise ValueError(f"{caller}: level={level} must lie strictly between 0 and 1, as 0.95 for 95 %.")


def check_method(level: Any, method: str, kind: str, scale: str, caller: str) -> tuple[str, str]:
    """The method and the kind of covariance meant, where a kind may stand for the method; what is unknown is refused."""
    if method in KINDS:
        method, kind = "wald", method
    check_interval(level, method, caller)
    if method == "profile" and (kind, scale) != ("observed", "unconstrained"):
        raise ValueError(f'{caller}: method="profile" needs no covariance and no scale; leave `kind` and `scale` out.')
    if scale not in ("unconstrained", "natural"):
        raise ValueError(f'{caller}: scale={scale!r} is unknown; choose "unconstrained" or "natural".')
    return method, kind


def check_interval(level: Any, method: str, caller: str) -> None:
    """Refuse a level that is none and a method that does not exist."""
    if method not in ("wald", "profile"):
        raise ValueError(f'{caller}: method={method!r} is unknown; choose "wald" or "profile".')
    check_level(level, caller)


def wald(
    layout: Layout, theta: Float[Array, " q"], errors: Float[Array, " q"], level: Any, scale: Scale
) -> Float[Array, "q 2"]:
    """Wald intervals, made on each parameter's unconstrained scale and mapped back, or symmetric on the natural one.

    On the unconstrained scale the interval of θ is g⁻¹(g(θ̂) ± z g′(θ̂) SE), with g the constraint's own scale, so that it
    cannot leave the parameter's range.
    """
    z = jax.scipy.special.ndtri(0.5 * (1 + jnp.asarray(level, errors.dtype)))
    if scale == "natural":
        return jnp.stack([theta - z * errors, theta + z * errors], axis=-1)
    parts, start = [], 0
    for _, leaf in layout.free_leaves:
        here = slice(start, start + leaf.size)
        value, half_width = theta[here].reshape(leaf.shape), (z * errors[here]).reshape(leaf.shape)
        low, high = leaf.constraint.bounds(value, half_width)
        parts.append(jnp.stack([low.reshape(-1), high.reshape(-1)], axis=-1))
        start += leaf.size
    return jnp.concatenate(parts) if parts else jnp.zeros((0, 2), errors.dtype)


def as_leaves(layout: Layout, values: Values, ends: Float[Array, "q 2"]) -> Values:
    """Both ends for each entry of θ as array leaves of the parameters; those of fixed ones are their value."""
    start, result = 0, []
    for leaf, value in zip(layout.leaves, values, strict=True):
        if leaf.is_fixed:
            result.append(jnp.stack([value, value], axis=-1))
        else:
            result.append(ends[start : start + leaf.size].reshape((*leaf.shape, 2)))
            start += leaf.size
    return result
