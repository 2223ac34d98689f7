"""`wald_test`: are the estimates compatible with restrictions on them?"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fisher_jax.errors import entry_point, warn
from fisher_jax.fitting import covariance as covariances
from fisher_jax.fitting.each import check_fit, of_each
from fisher_jax.fitting.functions import OfParameters, linearised, outline
from fisher_jax.fitting.result import Fit
from fisher_jax.inference.hypothesis import free_positions, hypothesised
from fisher_jax.inference.record import HypothesisTest, chi_squared_test
from fisher_jax.models.programs import ById
from fisher_jax.numerics import linalg
from fisher_jax.numerics.array_namespace import is_traced


@entry_point
def wald_test(fit: Fit, restriction: Any, kind: str | None = None) -> HypothesisTest:
    """Test restrictions h(θ) = 0 from the estimate alone: W = h(θ̂)ᵀ (H V Hᵀ)⁻¹ h(θ̂), H = ∂h/∂θ.

    Parameters
    ----------
    fit : Fit
        The fit without the restrictions.
    restriction : callable or pytree
        ``restriction(params)``, a number or any pytree of arrays, zero under the null hypothesis: a linear one is
        ``lambda params: R @ params["beta"] - r``. Or the hypothesised values, shaped like params or a part of it, where `None`,
        NaN and what is absent are not tested, or by name: ``{"shape": 1.0}``, ``{"beta[2]": 0.0}``.
    kind : {"observed", "expected", "empirical", "sandwich"}, optional
        The covariance V, as for `Fit.covariance`.

    Returns
    -------
    HypothesisTest
        Chi-squared with as many degrees of freedom as there are restrictions. NaN where the covariance is, or where H V Hᵀ
        is not positive definite; a `FitWarning` says so.

    Raises
    ------
    ValueError, TypeError
        If restrictions depend on each other (H has not full rank), name no parameter, or are not floating numbers.

    Notes
    -----
    Sizes of a nominal 5 % test, one parameter of four families (`benchmarks/calibration.py`): 2.4 to 6.7 % at n = 25,
    4.6 to 6.2 at 50, 4.5 to 5.1 at 500.

    Not the same in every parametrisation: shape = 1 and log shape = 0 give different W, unlike the likelihood-ratio test. It
    does not hold where the null is on the boundary of the range (a variance of zero).

    References
    ----------
    Wald, A. (1943), Trans. Amer. Math. Soc. 54, 426-482; Lehmann, E. L. and Romano, J. P. (2005), Testing Statistical
    Hypotheses, 3rd ed., eq. (12.71).

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> y = jnp.array([1.0, 2.0, 3.0, 6.0])
    >>> fit = fj.fit(fj.families.gamma, {"shape": 1.0, "rate": 1.0}, y)
    >>> test = fj.wald_test(fit, {"shape": 1.0})
    >>> print(f"{test.statistic:.3f} {test.p_value:.3f}")
    0.860 0.354
    >>> print(fj.wald_test(fit, lambda params: params["shape"] / params["rate"] - 2.0).hypothesis)
    ('restriction = 0',)
    """
    check_fit(fit)
    kind = fit._check(kind)
    numbers: tuple[Any, ...] = ()
    if callable(restriction):
        output = outline(restriction, fit, "restriction")
        names, words = output.names, tuple(f"{name} = 0" for name in output.names)
        test = WaldStatistic(OfParameters(ById(restriction)))
    else:
        hypothesis = hypothesised(fit.layout, restriction)
        names, words = hypothesis.names, hypothesis.words
        test, numbers = WaldStatistic(Entries(free_positions(fit.layout, hypothesis))), (hypothesis.values,)
    statistic, slopes, spread = of_each(fit, test, kind, *numbers)
    if not is_traced(fit):
        check_rank(np.asarray(slopes), names)
        _warn_of_none(fit, np.asarray(statistic), np.asarray(spread))
    return chi_squared_test(statistic, len(names), "Wald test", words, fit.describe(kind))


@dataclass(frozen=True)
class Entries:
    """Some entries of θ, as a function of u."""

    positions: tuple[int, ...]

    def __call__(self, fit: Fit, free: Float[Array, " p"]) -> Float[Array, " k"]:
        return fit.layout.join(fit.layout.constrained_values(free, fit.values))[np.array(self.positions)]


@dataclass(frozen=True)
class WaldStatistic:
    """W of one fit, the derivatives of its restrictions and their variances, compiled once for each restriction."""

    restriction: Any

    def __call__(self, fit: Fit, kind: str, *values: Array) -> tuple[Array, Array, Array]:
        found, slopes = linearised(self.restriction, fit)
        free = covariances.free_covariance(fit, kind)
        away = found.astype(free.dtype) - (jnp.asarray(values[0], free.dtype) if values else 0.0)
        variance = covariances.carried(slopes, free)
        factor = linalg.factorise(variance)
        squared = jnp.sum(linalg.solve_lower(factor, away) ** 2)
        scale = jnp.sqrt(jnp.abs(jnp.diagonal(free)))
        return jnp.where(factor.definite, squared, jnp.nan), slopes * scale.astype(slopes.dtype)[None, :], variance


def check_rank(slopes: Float[np.ndarray, "*b k p"], names: tuple[str, ...]) -> None:
    """Refuse restrictions of which one follows from the others, wherever that can be judged, in every fit."""
    known = slopes.reshape((-1, *slopes.shape[-2:]))
    known = known[np.all(np.isfinite(known), axis=(1, 2))]
    if not len(known):
        return
    length = np.linalg.norm(known, axis=2, keepdims=True)
    rows = known / np.where(length > 0, length, 1.0)
    left, sizes, _ = np.linalg.svd(rows)
    sizes = np.pad(sizes, ((0, 0), (0, len(names) - sizes.shape[1])))
    dependent = sizes[:, -1] <= np.finfo(slopes.dtype).eps ** (2 / 3)
    if not np.all(dependent):
        return
    direction = left[0][:, -1] / np.where(length[0, :, 0] > 0, length[0, :, 0], 1.0)
    said = linalg.describe_direction(direction, names)
    raise ValueError(
        f"the restrictions are not independent at the estimate: the derivative of {said} is zero. "
        "Leave out what follows from the others, and what does not depend on an estimated parameter."
    )


def _warn_of_none(fit: Any, statistic: np.ndarray, variance: np.ndarray) -> None:
    """Say where a covariance that is there gives no statistic."""
    none = np.isnan(statistic) & np.all(np.isfinite(variance), axis=(-2, -1))
    if np.any(none):
        many = f" in {int(np.sum(none))} of {none.size} fits" if none.ndim else ""
        warn(
            f"the covariance of the restrictions is not positive definite{many}, so there is no statistic. A "
            "sandwich with fewer clusters than restrictions, or with two ways of clusters, can be so; test fewer at once."
        )
