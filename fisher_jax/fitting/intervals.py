"""Confidence intervals from an estimate and its standard errors."""

import math
import statistics
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Float

from fisher_jax.errors import check_choice, check_level
from fisher_jax.fitting.covariance import standard_errors
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.numerics.array_namespace import AnyArray, namespace

Scale = Literal["unconstrained", "natural"]
IntervalMethod = Literal["wald", "profile"]


def check_interval(level: Any, method: str) -> None:
    """Raise for an invalid level and a method that does not exist."""
    check_choice(method, ("wald", "profile"), "method")
    check_level(level)


def wald(fit: Any, kind: str, level: Any, scale: Scale, require_maximum: bool = True) -> Float[AnyArray, "*b q 2"]:
    """Wald intervals of the q entries by a kind of covariance; see `wald_of`."""
    return wald_of(fit, standard_errors(fit, kind, require_maximum), level, scale)


def wald_of(fit: Any, errors: Float[AnyArray, "*b q"], level: Any, scale: Scale) -> Float[AnyArray, "*b q 2"]:
    """Wald intervals of the q entries, made on each parameter's unconstrained scale and mapped back, or symmetric.

    On the unconstrained scale the interval of θ is g⁻¹(g(θ̂) ± z g′(θ̂) SE), with g the constraint's own scale, so that it
    cannot leave the parameter's range.
    """
    theta = fit.layout.join(fit.values).astype(errors.dtype)
    xp, batch = namespace(theta, errors, level), theta.shape[:-1]
    reach = normal_quantile(0.5 * (1 + xp.asarray(level, errors.dtype))) * errors
    if scale == "natural":
        return xp.stack([theta - reach, theta + reach], axis=-1)
    parts, start = [], 0
    for _, leaf in fit.layout.free_leaves:
        shape = batch + leaf.shape
        value, half_width = (row[..., start : start + leaf.size].reshape(shape) for row in (theta, reach))
        ends = leaf.constraint.bounds(value, half_width)
        parts.append(xp.stack([end.reshape((*batch, leaf.size)) for end in ends], axis=-1))
        start += leaf.size
    return xp.concatenate(parts, axis=-2) if parts else xp.zeros((*batch, 0, 2), errors.dtype)


def zero_test(
    estimate: Any, errors: Any, edges: Float[np.ndarray, "q 2"] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """z = θ̂ / SE and the two-sided normal p-value of θ = 0; NaN where zero is not inside the range of the parameter."""
    with np.errstate(all="ignore"):
        z = np.asarray(estimate, float) / np.asarray(errors, float)
        if edges is not None:
            z = np.where((edges[:, 0] < 0) & (edges[:, 1] > 0), z, np.nan)
        return z, two_sided(z)


def two_sided(z: AnyArray) -> AnyArray:
    """The two-sided p-value of a standard normal z, 2 Φ(−|z|), which keeps its digits where it is small."""
    scaled = abs(z) / math.sqrt(2.0)
    if namespace(z) is np:  # by the standard library, as `normal_quantile`
        return np.vectorize(math.erfc, otypes=[float])(scaled)
    return jax.scipy.special.erfc(scaled)


def normal_quantile(probability: Any) -> Any:
    """Φ⁻¹, of the standard library where the probability is known: scipy.special takes as long to import as half of JAX."""
    if namespace(probability) is np:
        return np.vectorize(statistics.NormalDist().inv_cdf, otypes=[float])(probability)
    return jax.scipy.special.ndtri(probability)


def as_leaves(layout: Layout, values: Values, ends: Float[AnyArray, "*b q 2"]) -> Values:
    """Both ends for each entry of θ as array leaves of the parameters; those of fixed ones are their value."""
    start, xp, batch = 0, namespace(values, ends), ends.shape[:-2]
    result = [
        xp.stack([value, value], axis=-1) if leaf.is_fixed else None
        for leaf, value in zip(layout.leaves, values, strict=True)
    ]
    for i, leaf in layout.free_leaves:
        result[i] = ends[..., start : start + leaf.size, :].reshape((*batch, *leaf.shape, 2))
        start += leaf.size
    return result
