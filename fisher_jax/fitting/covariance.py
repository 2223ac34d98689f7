"""Covariance of the estimate by each definition: from the total matrices in u of a `Fit` to the user's parameters.

Those of constrained parameters θ are made by the delta method, with the Jacobian D = ∂θ/∂u of the constraints.

A fit's arrays may have leading axes, those of many fits, and be of numpy, which then computes.
"""

from typing import Any, Literal, get_args

import jax
import numpy as np
from jaxtyping import Float

from fisher_jax.errors import shown
from fisher_jax.fitting.status import Status
from fisher_jax.numerics import linalg
from fisher_jax.numerics.array_namespace import AnyArray, is_traced, namespace

CovarianceKind = Literal["observed", "expected", "empirical", "sandwich"]
KINDS: tuple[CovarianceKind, ...] = get_args(CovarianceKind)

DESCRIPTIONS = {
    "observed": "inverse observed information, (minus Hessian)⁻¹",
    "expected": "inverse expected (Fisher) information",
    "empirical": "inverse empirical Fisher, (outer product of scores)⁻¹",
    "sandwich": "sandwich H⁻¹ (outer product of scores) H⁻¹, no small-sample factor",
}


def check_kind(kind: Any, *, has_expected: bool) -> None:
    """Raise for a kind that does not exist, or that this fit cannot give."""
    if not isinstance(kind, str) or kind not in KINDS:
        hint = " Profile intervals are a method, method='profile'."
        if not isinstance(kind, str):
            hint = " A level is given by its name, as in level=0.9."
        elif kind != "profile":
            hint = ""
        raise ValueError(f"kind={shown(kind)} is unknown; choose from {', '.join(map(repr, KINDS))}.{hint}")
    if kind == "expected" and not has_expected:
        raise ValueError(
            'kind="expected" needs the Fisher information under the model, and this model has no closed form of it. '
            "Fit a Model(…, information=…) with its closed form, or choose another kind."
        )


def check_several(num_observations: Any) -> None:
    """Raise where all data are one observation: its score is zero at the maximum, and holds no information on how scores vary."""
    if not is_traced(num_observations) and np.all(np.asarray(num_observations) == 1):
        raise ValueError(
            "the data are one observation (of a model with crossed effects all rows are one), and how its score varies cannot be "
            "estimated from it: there is no sandwich or empirical information. Use the observed information, or the parametric "
            "bootstrap."
        )


def precise(array: Any) -> AnyArray:
    """The array in float64 where x64 is enabled."""
    return array.astype(jax.dtypes.canonicalize_dtype(np.float64))


def free_information(fit: Any, kind: str) -> Float[AnyArray, "*b p p"]:
    """The total information about u whose inverse is the covariance of û, by its definition."""
    if kind == "expected":  # that about θ, which D = ∂θ/∂u carries to u
        jacobian = precise(fit.layout.jacobian(fit.free))
        return linalg.product(linalg.product(jacobian.mT, precise(fit.expected)), jacobian)
    return precise(fit.outer_product if kind == "empirical" else fit.curvature)


def free_covariance(fit: Any, kind: str, require_maximum: bool = True) -> Float[AnyArray, "*b p p"]:
    """Covariance of û. Only the matrices that the kind needs are used.

    NaN where the matrix to be inverted is not positive definite; and, if `require_maximum`, where no maximum was certified, since
    the asymptotic covariance is that of a maximum.

    References
    ----------
    White, H. (1982), Econometrica 50, 1-25, theorem 3.2, for the sandwich.
    """
    if kind == "sandwich":
        bread = linalg.inverse(precise(fit.curvature))
        middle = precise(fit.outer_product if fit.meat is None else fit.meat)
        matrix = linalg.product(linalg.product(bread, middle), bread)
    else:
        matrix = linalg.inverse(free_information(fit, kind))
    failed = (fit.status_code > Status.CONVERGED_TO_ROUNDING) & require_maximum
    return namespace(matrix, failed).where(failed[..., None, None], np.nan, matrix)


def covariance(fit: Any, kind: str, require_maximum: bool = True) -> Float[AnyArray, "*b q q"]:
    """Covariance D V Dᵀ of the q entries of θ̂, constrained ones too, with D = ∂θ/∂u and V the covariance of û."""
    return transform_covariance(fit.layout.jacobian(fit.free), free_covariance(fit, kind, require_maximum))


def transform_covariance(
    jacobian: Float[AnyArray, "*b k p"], free: Float[AnyArray, "*b p p"]
) -> Float[AnyArray, "*b k k"]:
    """Covariance G V Gᵀ of what depends on û with derivative G, symmetric to the last bit."""
    jacobian = jacobian.astype(free.dtype)
    whole = linalg.product(linalg.product(jacobian, free), jacobian.mT)
    return 0.5 * (whole + whole.mT)


def conditional_on_edge(fit: Any, kind: str, edge: np.ndarray) -> Float[AnyArray, "*b q q"]:
    """Covariance of the q entries given those entries of u that `edge` (*b, p) marks, whose rows and columns are zero."""
    return transform_covariance(fit.layout.jacobian(fit.free), free_conditional_on_edge(fit, kind, edge))


def free_conditional_on_edge(fit: Any, kind: str, edge: np.ndarray) -> Float[AnyArray, "*b p p"]:
    """Covariance of û given those of its entries that `edge` (*b, p) marks, whose rows and columns are zero."""
    if kind == "sandwich":
        bread = inverse_of_rest(fit.curvature, edge)
        middle = np.asarray(precise(fit.outer_product if fit.meat is None else fit.meat))
        # Not 0 × NaN, of an outer product that is not finite at the edge.
        middle = np.where(edge[..., :, None] | edge[..., None, :], 0.0, middle)
        return linalg.product(linalg.product(bread, middle), bread)
    return inverse_of_rest(free_information(fit, kind), edge)


def errors_given_edge(fit: Any, kind: str, edge: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Standard errors (*b, q) given what `edge` marks, which parameters that is (*b, q), and whether there are any (*b).

    They are NaN for what is marked; and for all where an information that is not finite at the edge leaves none for the others.
    """
    jacobian = np.asarray(fit.layout.jacobian(fit.free))
    at_edge = np.any((jacobian != 0) & edge[..., None, :], axis=-1)
    errors = np.asarray(root_diagonal(conditional_on_edge(fit, kind, edge)))
    exist = np.asarray(np.all(np.isfinite(errors) | at_edge, axis=-1))  # of one fit a scalar otherwise
    return np.where(at_edge | ~exist[..., None], np.nan, errors), at_edge, exist


def inverse_of_rest(matrix: Any, edge: np.ndarray) -> Float[AnyArray, "*b p p"]:
    """The inverse of the rows and columns that `edge` does not mark, and zero in those that it does."""
    marked = edge[..., :, None] | edge[..., None, :]
    unit = np.eye(edge.shape[-1])
    inverse = linalg.inverse(np.where(marked, unit, np.asarray(precise(np.asarray(matrix)))))
    return np.where(marked, 0.0, inverse)


def standard_errors(fit: Any, kind: str, require_maximum: bool = True) -> Float[AnyArray, "*b q"]:
    """Standard errors of the q entries."""
    return root_diagonal(covariance(fit, kind, require_maximum))


def root_diagonal(covariance: Float[AnyArray, "*b q q"]) -> Float[AnyArray, "*b q"]:
    """Standard errors from a covariance matrix."""
    xp = namespace(covariance)
    return xp.sqrt(xp.diagonal(covariance, axis1=-2, axis2=-1))


def correlation(fit: Any, kind: str, require_maximum: bool = True) -> Float[AnyArray, "*b q q"]:
    """Correlation matrix of the q entries; NaN in the row and column of a parameter without variance."""
    matrix = covariance(fit, kind, require_maximum)
    errors = root_diagonal(matrix)
    scaled = matrix / errors[..., :, None] / errors[..., None, :]
    on_diagonal = np.broadcast_to(np.eye(errors.shape[-1], dtype=bool), scaled.shape)
    return namespace(scaled).where(on_diagonal & (errors > 0)[..., :, None], 1.0, scaled)


def information(fit: Any, kind: str) -> Float[AnyArray, "*b q q"]:
    """The information per observation about the q entries."""
    n = precise(fit.num_observations)[..., None, None]
    if kind == "expected":
        return precise(fit.expected) / n
    jacobian = precise(fit.layout.jacobian(fit.free))
    total = precise(fit.curvature if kind == "observed" else fit.outer_product)
    xp = namespace(jacobian, total)
    if xp is np:  # where JAX returns what is not finite, numpy raises for all
        singular = np.linalg.slogdet(jacobian)[0] == 0
        jacobian = np.where(singular[..., None, None], np.nan, jacobian)
    half = xp.linalg.solve(jacobian.mT, total)
    return xp.linalg.solve(jacobian.mT, half.mT).mT / n


def takeuchi(fit: Any) -> Float[AnyArray, "*b"]:
    """TIC = 2 tr(J⁻¹K) − 2ℓ, the same in every parametrisation; NaN where no maximum was certified."""
    products = linalg.inverse(precise(fit.curvature)) * precise(fit.outer_product)
    xp = namespace(products, fit.log_likelihood)
    whole = 2.0 * xp.sum(products, axis=(-2, -1)) - 2.0 * fit.log_likelihood
    return xp.where(fit.status_code > Status.CONVERGED_TO_ROUNDING, np.nan, whole)
