"""The two identities of Bartlett, tested on a model at given parameters: E[s] = 0 and Cov(s) = −E[H]."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.errors import entry_point
from fisher_jax.information import exact, sampled
from fisher_jax.information.bartlett_record import Check
from fisher_jax.information.draws import num_pairs
from fisher_jax.information.errors import carried, spread
from fisher_jax.information.expectations import MonteCarlo, Quadrature, QuasiMonteCarlo
from fisher_jax.information.expected import at_door, check_expectation, describe
from fisher_jax.information.regularity import MASS_TOLERANCE, Regularity, in_errors
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.programs import jit_with_model
from fisher_jax.moments import covariance_of_moments
from fisher_jax.numerics import linalg

SCORE_MEAN, INFORMATION_EQUALITY = "E[s] = 0", "Cov(s) = −E[H]"


@entry_point
def check_score_mean(
    model: Any, params: PyTree, expectation: Any, *, given: PyTree = None, level: float | int = 0.01
) -> Check:
    """Test E_θ[s] = 0: the score has mean zero under the model's own distribution.

    Parameters
    ----------
    model, params, expectation, given
        As for `fisher_information`; some expectation is needed. The estimator named in it plays no part.
    level : float
        Below which p-value the check fails.

    Returns
    -------
    Check
        With z by parameter (q,).

    Notes
    -----
    It fails where the support depends on a parameter (the uniform distribution on (0, θ)), where the density is not
    normalised, and where the sampler is not the density's.

    References
    ----------
    Lehmann, E. L. and Casella, G. (1998), Theory of Point Estimation, 2nd ed., eq. (2.5.8).

    Examples
    --------
    >>> import fisher_jax as fj, jax
    >>> check = fj.check_score_mean(fj.families.gamma, {"shape": 2.0, "rate": 1.0}, fj.MonteCarlo(jax.random.key(0), 10_000))
    >>> bool(check.passed)
    True
    """
    return _check(SCORE_MEAN, model, params, expectation, given, level)


@entry_point
def check_information_equality(
    model: Any, params: PyTree, expectation: Any, *, given: PyTree = None, level: float | int = 0.01
) -> Check:
    """Test Cov_θ(s) = −E_θ[H]: the two definitions of the Fisher information agree.

    Parameters
    ----------
    model, params, expectation, given
        As for `fisher_information`; some expectation is needed. The estimator named in it plays no part.
    level : float
        Below which p-value the check fails.

    Returns
    -------
    Check
        With z by entry (q, q). Cov(s) is E[s sᵀ] − E[s] E[s]ᵀ; `score_mean`, `outer` and `minus_hessian` hold the pieces.

    Notes
    -----
    It fails where the density has a kink in a parameter (Laplace's location), where the support depends on one, where
    the information is singular (a skew-normal without skew) and, as far as draws can tell, where it is infinite
    (generalised extreme values with shape below −½). For shapes between −½ and −¼ neither s sᵀ nor H has a variance, and z
    is mostly that of a combination that has one; about one in twenty checks by few draws fails there.

    References
    ----------
    Lehmann, E. L. and Casella, G. (1998), Theory of Point Estimation, 2nd ed., lemma 2.5.3.

    Examples
    --------
    >>> import fisher_jax as fj, jax
    >>> draws = fj.MonteCarlo(jax.random.key(0), 10_000)
    >>> check = fj.check_information_equality(fj.families.laplace, {"loc": 0.0, "scale": 1.0}, draws)
    >>> bool(check.passed)
    False
    """
    return _check(INFORMATION_EQUALITY, model, params, expectation, given, level)


def _check(identity: str, model: Any, params: PyTree, expectation: Any, given: PyTree, level: Any) -> Check:
    check_expectation(expectation, " A closed form would have nothing to test.")
    if not 0 < level < 1:
        raise ValueError(f"level={level} must lie between 0 and 1: it is the p-value below which the check fails.")
    model, layout, values, given = at_door(model, params, given)
    if isinstance(expectation, MonteCarlo | QuasiMonteCarlo):
        expectation = replace(expectation, estimator="outer" if identity == SCORE_MEAN else "hessian", fallback=None)
        return _check_by_draws(model, layout.natural(), values, expectation, given, identity, level)
    if isinstance(expectation, Quadrature):
        return _check_by_quadrature(model, layout.natural(), values, expectation, given, identity, level)
    return _check_by_enumeration(model, layout.natural(), values, expectation, given, identity, level)


def _by_draws(
    model: Model, layout: Layout, values: Values, expectation: Any, given: PyTree, identity: str, level: Any
) -> Check:
    q = layout.num_free
    pairs = num_pairs(model, expectation, given)
    quasi = isinstance(expectation, QuasiMonteCarlo)
    found = sampled.moments(model, layout, values, expectation, given)
    mean, error = sampled.control_means(found, pairs, pieces_only=quasi)
    target = sampled.square(sampled.combine(found, None, pairs)[0], q)
    what = _What(
        score_mean=mean[:q],
        outer=target if identity == SCORE_MEAN else sampled.square(mean[q:], q) + target,
        minus_hessian=jnp.full_like(target, jnp.nan) if identity == SCORE_MEAN else target,
        regularity=sampled.judge(found, q, pairs, sampled.GUARD_LEVEL),
    )
    num_pieces = min(pairs, found.pieces.shape[0])
    freedom = num_pieces if quasi or identity != SCORE_MEAN else pairs
    if identity != SCORE_MEAN:
        upper = np.triu_indices(q)
        left, of_left = _covariance_plus_hessian(found, mean, pairs, q)
        mean, error = jnp.concatenate([mean[:q], left[upper]]), jnp.concatenate([error[:q], of_left[upper]])
    skewness = jnp.zeros_like(mean) if quasi else sampled.control_skewness(found, pairs)
    z = sampled.or_adjusted(_without_skewness(in_errors(mean, error), skewness), error, found, pairs)
    if identity == SCORE_MEAN:
        return _judge(what, mean, error, z, freedom, layout, identity, describe(expectation), level)
    left, error, z = (sampled.square(part[q:], q) for part in (mean, error, z))
    return _judge(what, left, error, z, freedom, layout, identity, describe(expectation), level)


def _covariance_plus_hessian(
    found: sampled.Moments, mean: Float[Array, " r"], pairs: int, q: int
) -> tuple[Float[Array, "q q"], Float[Array, "q q"]]:
    """Cov(s) + E[H] = E[s sᵀ + H] − E[s] E[s]ᵀ, and its error to first order."""

    def left(moments: Array) -> Array:
        return covariance_of_moments(moments[:q], sampled.square(moments[q:], q))

    found_left, pieces = carried(left, mean, found.pieces[:, : mean.shape[0]] / pairs)
    floor = sampled.square(sampled.rounding(found, pairs)[q:], q)
    return found_left, jnp.sqrt(spread(pieces, like=found_left, ndim=2) ** 2 + floor**2)


def _by_nodes(
    model: Model, layout: Layout, values: Values, expectation: Any, given: PyTree, identity: str, level: Any
) -> Check:
    found, mass = exact.moments(model, layout, values, expectation, given)
    what = _What(found.score, found.outer, -found.hessian, exact.judge(found, mass))
    mean, error = found.score, exact.tolerances(found)[0]
    if identity != SCORE_MEAN:
        mean = covariance_of_moments(found.score, found.outer) + found.hessian
        error = exact.tolerances(found)[1]
    return _judge(what, mean, error, in_errors(mean, error), None, layout, identity, describe(expectation), level)


_check_by_draws = jit_with_model(_by_draws, static_argnums=(0, 1, 5, 6))
_check_by_quadrature = jit_with_model(_by_nodes, static_argnums=(0, 1, 3, 5, 6))
_check_by_enumeration = jit_with_model(_by_nodes, static_argnums=(0, 1, 5, 6))


class _What(NamedTuple):
    """The expectations themselves, and the tests made with them for `fisher_information`."""

    score_mean: Array
    outer: Array
    minus_hessian: Array
    regularity: Regularity


def _judge(
    what: _What,
    mean: Array,
    error: Array,
    z: Array,
    freedom: int | None,
    layout: Layout,
    identity: str,
    route: str,
    level: Any,
) -> Check:
    """The p-value over all z, and what else speaks against the identity."""
    regularity = what.regularity
    size = jnp.abs(z)
    if z.ndim == 2:
        size = jnp.where(jnp.abs(regularity.effect) > regularity.negligible, size, 0.0)[np.triu_indices(z.shape[0])]
    p_value = _joint_p_value(jnp.max(size), size.shape[0], freedom)
    singular = jnp.array(False) if z.ndim == 1 else ~linalg.factorise(what.outer).definite
    sound = (regularity.num_not_finite == 0) & (jnp.abs(regularity.mass - 1.0) < MASS_TOLERANCE)
    return Check(
        mean=mean,
        standard_error=error,
        z=z,
        p_value=p_value,
        passed=(p_value > level) & sound & ~singular & ~jnp.any(regularity.heavy),
        score_mean=what.score_mean,
        outer=what.outer,
        minus_hessian=what.minus_hessian,
        singular=singular,
        regularity=regularity,
        names=layout.names,
        identity=identity,
        route=route,
        level=level,
    )


def _without_skewness(z: Array, skewness: Array) -> Array:
    """A z-value of a mean with this skewness, by the increasing cubic that takes the skewness out to first order.

    The spread that a skewed sample shows goes up and down with its mean, so that z is skewed the other way, and more.

    References
    ----------
    Hall, P. (1992), J. R. Statist. Soc. B 54, 221-228: g(z) = z + γz²/3 + γ²z³/27 + γ/6, γ = skewness.
    """
    return z + skewness * z**2 / 3.0 + skewness**2 * z**3 / 27.0 + skewness / 6.0


def _joint_p_value(largest: Float[Array, ""], count: int, freedom: int | None) -> Float[Array, ""]:
    """Probability that the largest of `count` |t| is so large (Šidák); one or zero where there is no chance in it."""
    if freedom is None:
        return jnp.where(largest <= 1.0, 1.0, 0.0)
    ratio = freedom / (freedom + jnp.where(jnp.isfinite(largest), largest, 0.0) ** 2)
    single = jax.scipy.special.betainc(0.5 * freedom, 0.5, ratio)
    return jnp.where(jnp.isfinite(largest), -jnp.expm1(count * jnp.log1p(-single)), 0.0)
