"""`wald_test`: are the estimates compatible with restrictions on them?"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.errors import entry_point, warn
from fisher_jax.fitting import covariance as covariances
from fisher_jax.fitting.covariance import CovarianceKind
from fisher_jax.fitting.map_fits import check_fit, of_each
from fisher_jax.fitting.parameter_functions import Entries, OfParameters, linearize, outline
from fisher_jax.fitting.result import Fit
from fisher_jax.inference.hypothesis import (
    Hypothesis,
    HypothesisTest,
    chi_squared_test,
    free_positions,
    read_restriction,
    statements_of,
)
from fisher_jax.models.programs import ById
from fisher_jax.numerics import linalg
from fisher_jax.numerics.array_namespace import is_traced
from fisher_jax.reporting import in_fits, listed


@entry_point
def wald_test(
    fit: Fit, restriction: str | Callable[[PyTree], PyTree] | PyTree, *, kind: CovarianceKind | None = None
) -> HypothesisTest:
    """Test restrictions h(θ) = 0 from the estimate alone: W = h(θ̂)ᵀ (H V Hᵀ)⁻¹ h(θ̂), H = ∂h/∂θ.

    Parameters
    ----------
    fit : Fit
        The fit without the restrictions.
    restriction : str or sequence of str, pytree, or callable
        Linear restrictions as text, with the names of `fit.names`: ``"scale = 1"``, ``"a = b"``, ``"a + 2 b = 0, c = 1"``,
        ``"beta[1] - beta[2] = 0.5"``, ``"a = b = 0"``, and ``"beta = 0"`` for all entries of an array. Of several names that fit
        the longest is meant; backticks, as in ``"`a - b` = 0"``, mark a name. Or the hypothesised values, shaped like params or a
        part of it, where `None`, NaN and what is absent are not tested, or by name: ``{"shape": 1.0}``, ``{"beta[2]": 0.0}``. Or
        a function: ``restriction(params)``, a number or any pytree of arrays, zero under the null hypothesis.
    kind : {"observed", "expected", "empirical", "sandwich"}, optional
        The covariance V, as for `Fit.covariance`.

    Returns
    -------
    HypothesisTest
        Chi-squared with as many degrees of freedom as there are restrictions. NaN, with a `FitWarning`, where the covariance
        is NaN or H V Hᵀ is not positive definite.

    Warns
    -----
    FitWarning
        Where hypothesised values are on the boundary of their range, such as a variance of zero, with a note.

    Raises
    ------
    ValueError, TypeError
        If restrictions depend on each other (H has not full rank), name no parameter, are not linear (as text), or are not
        floating numbers.

    Notes
    -----
    Sizes of a nominal 5 % test, one parameter of four families (`benchmarks/calibration.py`): 2.4 to 6.7 % at n = 25,
    4.6 to 6.2 at 50, 4.5 to 5.1 at 500.

    W depends on the parametrisation: shape = 1 and log shape = 0 give different W, unlike the likelihood-ratio test.

    References
    ----------
    Wald, A. (1943), Trans. Amer. Math. Soc. 54, 426-482; Lehmann, E. L. and Romano, J. P. (2005), Testing Statistical
    Hypotheses, 3rd ed., eq. (12.71).

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> y = jnp.array([1.0, 2.0, 3.0, 6.0])
    >>> fit = fj.fit(fj.families.weibull, {"shape": 1.0, "scale": 1.0}, y)
    >>> test = fj.wald_test(fit, "shape = 1")
    >>> print(f"{test.statistic:.3f} {test.p_value:.3f}")
    1.131 0.288
    >>> print(fj.wald_test(fit, "scale = 2 shape").hypothesis)
    ('scale = 2 shape',)
    >>> print(fj.wald_test(fit, lambda params: params["scale"] / params["shape"] - 2.0).hypothesis)
    ('restriction = 0',)
    """
    check_fit(fit)
    which = fit._check(kind)
    restriction = read_restriction(fit.layout, restriction)
    values: tuple[np.ndarray, ...] = ()
    notes: tuple[str, ...] = ()
    if isinstance(restriction, Hypothesis):
        names, statements, values = restriction.names, restriction.statements, (restriction.values,)
        places = free_positions(fit.layout, restriction)
        statistic_of = WaldStatistic(Entries(places))
        at_end = np.any(np.asarray(restriction.values)[:, None] == fit.layout.edges()[np.asarray(places)], axis=-1)
        if np.any(at_end):
            marked = listed([f"`{name}`" for name, mark in zip(names, at_end, strict=True) if mark])
            notes = (
                f"the null puts {marked} on the boundary of its range, where the statistic is not chi-squared and depends on the "
                "scale of the parameter. Use likelihood_ratio_test, and of it the p-value of the mixture.",
            )
            warn(notes[0])
    else:
        names = outline(restriction, fit, "restriction").names
        statements = statements_of(restriction, names)
        statistic_of = WaldStatistic(OfParameters(ById(restriction)))
    statistic, slopes, variance = of_each(fit, statistic_of, which, *values)
    if not is_traced(fit):
        check_rank(np.asarray(slopes), names)
        indefinite = np.isnan(np.asarray(statistic)) & np.all(np.isfinite(np.asarray(variance)), axis=(-2, -1))
        if np.any(indefinite):
            warn(
                f"the covariance of the restrictions is not positive definite{in_fits(indefinite)}, so there is no statistic. A "
                "sandwich with fewer clusters than restrictions, or with two ways of clusters, can be so; test fewer at once."
            )
    return chi_squared_test(statistic, len(names), "Wald test", statements, fit.describe(which), notes)


@dataclass(frozen=True)
class WaldStatistic:
    """W of one fit, the derivatives of its restrictions and their variances, compiled once for each restriction."""

    restriction: Any

    def __call__(self, fit: Fit, kind: str, *values: Array) -> tuple[Array, Array, Array]:
        estimate, slopes = linearize(self.restriction, fit)
        free = covariances.free_covariance(fit, kind)
        away = estimate.astype(free.dtype) - (jnp.asarray(values[0], free.dtype) if values else 0.0)
        variance = covariances.transform_covariance(slopes, free)
        factor = linalg.factorize(variance)
        squared = jnp.sum(linalg.solve_lower(factor, away) ** 2)
        # Slopes per standard error of u, so that their rank does not depend on units.
        scale = jnp.sqrt(jnp.abs(jnp.diagonal(free)))
        return jnp.where(factor.definite, squared, jnp.nan), slopes * scale.astype(slopes.dtype)[None, :], variance


def check_rank(slopes: Float[np.ndarray, "*b k p"], names: tuple[str, ...]) -> None:
    """Raise where one restriction follows from the others in every fit whose slopes are finite."""
    slopes = slopes.reshape((-1, *slopes.shape[-2:]))
    slopes = slopes[np.all(np.isfinite(slopes), axis=(1, 2))]
    if not len(slopes):
        return
    lengths = np.linalg.norm(slopes, axis=2, keepdims=True)
    lengths = np.where(lengths > 0, lengths, 1.0)
    left, sizes, _ = np.linalg.svd(slopes / lengths)
    sizes = np.pad(sizes, ((0, 0), (0, len(names) - sizes.shape[1])))  # more restrictions than parameters
    # ε^(2/3) is far above the rounding of the slopes, and restrictions that agree to more digits are the same.
    if np.any(sizes[:, -1] > np.finfo(slopes.dtype).eps ** (2 / 3)):
        return
    direction = linalg.describe_direction(left[0][:, -1] / lengths[0, :, 0], names)
    raise ValueError(
        f"the restrictions are not independent at the estimate: the derivative of {direction} is zero. "
        "Leave out what follows from the others, and what does not depend on an estimated parameter."
    )
