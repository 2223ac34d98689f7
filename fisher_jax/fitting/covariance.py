"""Covariance of the estimate by each definition, from the curvature that a fit keeps. Totals in, user's parameters out."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fisher_jax.numerics import linalg

CovarianceKind = Literal["observed", "expected", "empirical", "sandwich"]
KINDS: tuple[str, ...] = get_args(CovarianceKind)

DESCRIPTIONS = {
    "observed": "inverse observed information, (minus Hessian)⁻¹",
    "expected": "inverse expected (Fisher) information",
    "empirical": "inverse empirical Fisher, (outer product of scores)⁻¹",
    "sandwich": "sandwich H⁻¹ (outer product of scores) H⁻¹, no small-sample factor",
}


def check_kind(kind: str, *, has_expected: bool, caller: str) -> None:
    """Refuse a kind that does not exist, or that this fit has no route to."""
    if kind not in KINDS:
        raise ValueError(f"{caller}: kind={kind!r} is unknown; choose from {', '.join(map(repr, KINDS))}.")
    if kind == "expected" and not has_expected:
        raise ValueError(
            f'{caller}: kind="expected" needs the Fisher information under the model, and this model has no route to it. '
            "Fit a Model(…, information=…) with its closed form, or choose another kind."
        )


def precise(array: Array) -> Array:
    """The array in float64 where x64 is enabled."""
    return array.astype(jax.dtypes.canonicalize_dtype(jnp.float64))


def free_covariance(
    kind: str,
    jacobian: Float[Array, "q p"],
    curvature: Float[Array, "p p"] | None,
    outer_product: Float[Array, "p p"] | None,
    expected: Float[Array, "q q"] | None,
) -> Float[Array, "p p"]:
    """Covariance of û, with `outer_product` the middle of the sandwich, and D = ∂θ/∂u for the expected information of θ.

    All NaN where the matrix to be inverted is not positive definite. Only those matrices that the kind needs are looked at.

    References
    ----------
    White, H. (1982), Econometrica 50, 1-25, theorem 3.2, for the sandwich.
    """
    with jax.default_matmul_precision("highest"):
        if kind == "observed":
            return linalg.inverse(precise(curvature))  # type: ignore[arg-type]
        if kind == "empirical":
            return linalg.inverse(precise(outer_product))  # type: ignore[arg-type]
        if kind == "expected":
            jacobian = precise(jacobian)
            return linalg.inverse(jacobian.T @ precise(expected) @ jacobian)  # type: ignore[arg-type]
        bread = linalg.inverse(precise(curvature))  # type: ignore[arg-type]
        return bread @ precise(outer_product) @ bread  # type: ignore[arg-type]


def carried(jacobian: Float[Array, "k p"], free: Float[Array, "p p"]) -> Float[Array, "k k"]:
    """Covariance G V Gᵀ of what depends on û with derivative G, symmetric to the last bit."""
    jacobian = jacobian.astype(free.dtype)
    with jax.default_matmul_precision("highest"):
        result = jacobian @ free @ jacobian.T
    return 0.5 * (result + result.T)


def standard_errors(covariance: Float[Array, "q q"]) -> Float[Array, " q"]:
    """Square roots of the diagonal."""
    return jnp.sqrt(jnp.diagonal(covariance))


def correlation(covariance: Float[Array, "q q"]) -> Float[Array, "q q"]:
    """Correlation matrix; NaN in the row and column of a parameter without variance."""
    errors = standard_errors(covariance)
    scaled = covariance / errors[:, None] / errors[None, :]
    return jnp.where(jnp.eye(errors.shape[0], dtype=bool) & (errors > 0)[:, None], 1.0, scaled)
