"""The two identities of Bartlett, tested on a model at given parameters: E[s] = 0 and Cov(s) = −E[H].

By draws each mean that should be zero is divided by its standard error, and the largest |t| of all is judged by the Šidák
bound of its p-value. An exact expectation leaves nothing to chance: a mean may differ from zero by what rounding and truncation
leave of it, and by no more.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from fisher_jax.errors import entry_point
from fisher_jax.information import monte_carlo as sampled
from fisher_jax.information import quadrature as exact
from fisher_jax.information.draw_pairs import are_few, num_pairs
from fisher_jax.information.expectations import Expectation, MonteCarlo, Quadrature, QuasiMonteCarlo
from fisher_jax.information.fisher_information import check_expectation, check_point, describe
from fisher_jax.information.matrix import propagate, standard_errors_of_entries
from fisher_jax.information.regularity import MASS_TOLERANCE, TAILS_TOO_HEAVY, Regularity, z_values
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.programs import jit_with_model
from fisher_jax.moments import covariance_of_moments
from fisher_jax.numerics import linalg
from fisher_jax.reporting import Report, Reported, ReportTable, probability

SCORE_MEAN, INFORMATION_EQUALITY = "E[s] = 0", "Cov(s) = −E[H]"


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class Check(Reported):
    """The result of testing one of Bartlett's identities at given parameters. It prints as a report.

    Attributes
    ----------
    mean, standard_error : arrays
        What should be zero, by parameter (q,) or by entry (q, q), and its error; for an exact expectation that of rounding
        and truncation.
    z : array
        `mean` in units of `standard_error`; for independent draws with their skewness taken out (Hall 1992). Where it is
        beyond 2 and the mean adjusted for the other means that should be zero is closer to zero and as precise, the z-value of
        that: it is free of the heavy tail that they have in common.
    p_value : scalar array
        Probability of so large a z somewhere if the identity holds (Šidák); for an exact expectation one or zero. By draws,
        entries whose two definitions differ by less than `regularity.negligible` of the information do not count.
    passed : boolean array
        Whether p is above `level`, every log-density finite, the information not singular, and no tail of a score so heavy
        that its variance may be infinite.
    score_mean, outer, minus_hessian : arrays (q,), (q, q) and (q, q)
        E[s], E[s sᵀ] and −E[H], side by side; the last is NaN where no Hessian was computed.
    singular : boolean array
        Whether E[s sᵀ] is singular to rounding, so that some direction has no information; false in a check of the score's mean.
    regularity : Regularity
        The same tests as `fisher_information` makes them, with the tails of the scores.
    names, identity, route, level
        The parameters, what was tested, by which expectation, and below which p it fails.

    Notes
    -----
    A function that returns a check can be jitted and vmapped.
    """

    mean: Float[Array, "..."]
    standard_error: Float[Array, "..."]
    z: Float[Array, "..."]
    p_value: Float[Array, "*b"]
    passed: Bool[Array, "*b"]
    score_mean: Float[Array, "*b q"]
    outer: Float[Array, "*b q q"]
    minus_hessian: Float[Array, "*b q q"]
    singular: Bool[Array, "*b"]
    regularity: Regularity
    names: tuple[str, ...] = field(metadata={"static": True})
    identity: str = field(metadata={"static": True})
    route: str = field(metadata={"static": True})
    level: float = field(metadata={"static": True})

    def summary(self) -> Report:
        """The identity entry by entry, the p-value and its interpretation; only `passed` where it is traced or a batch."""
        if isinstance(self.p_value, jax.core.Tracer) or np.ndim(self.p_value):
            return Report(f"Check of {self.identity}", [("Passed", str(self.passed))])
        rows: list[tuple[Any, ...]]
        if self.identity == SCORE_MEAN:
            columns: tuple[str, ...] = ("parameter", "E[s]", "std. error", "z")
            rows = list(zip(self.names, self.mean, self.standard_error, self.z, strict=True))
        else:
            columns = ("entry", "Cov(s)", "−E[H]", "difference", "std. error", "z")
            covariance = np.asarray(covariance_of_moments(self.score_mean, self.outer))
            parts = (covariance, self.minus_hessian, self.mean, self.standard_error, self.z)
            rows = [
                (self.names[i] if i == j else f"{self.names[i]}, {self.names[j]}", *(part[i, j] for part in parts))
                for i, j in zip(*np.triu_indices(len(self.names)), strict=True)
            ]
        facts = [("By", self.route)]
        if self.regularity.limit != 1.0:
            facts.append(("p-value", f"{probability(self.p_value)} for the largest |z| of {len(rows)}"))
        title = f"Check of {self.identity}: {'passed' if self.passed else 'FAILED'}"
        return Report(title, facts, [ReportTable(columns, rows)], self._interpretation())

    def _interpretation(self) -> list[str]:
        of_score, failed, sentences = self.identity == SCORE_MEAN, not float(self.p_value) > self.level, []
        if failed and of_score:
            sentences.append(
                "The mean of the score is not zero: the support depends on a parameter, the density is not normalised, or the "
                "sampler is not the density's. The covariance of the estimate need not be an inverse information here."
            )
        elif failed:
            sentences.append(
                "The two definitions of the Fisher information differ: the density has a kink in a parameter, or its support "
                "depends on one. Neither inverse is a bound without further thought."
                + (f" Or {TAILS_TOO_HEAVY}." if self.regularity.limit != 1.0 else "")
            )
        if bool(self.singular):
            _, direction = linalg.weak_directions(np.asarray(self.outer), self.names)[0]
            sentences.append(
                f"The information is singular along {direction}: the data do not identify these parameters."
            )
        # The zero means have been judged above, at the level of this check: without a limit, only the rest is described.
        if others := replace(self.regularity, limit=np.inf).describe(self.names):
            sentences.append(f"{others}.")
        about = (
            "the score averages to zero" if of_score else "the covariance of the score equals minus the mean Hessian"
        )
        return sentences or [f"No evidence against it: {about} under the model."]


@entry_point
def check_score_mean(
    model: Model | Callable[..., Any],
    params: PyTree,
    expectation: Expectation,
    *,
    given: PyTree = None,
    level: float = 0.01,
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
    >>> check = fj.check_score_mean(fj.families.exponential, {"rate": 1.0}, fj.MonteCarlo(jax.random.key(0), 10_000))
    >>> bool(check.passed)
    True
    """
    return _check(SCORE_MEAN, model, params, expectation, given, level)


@entry_point
def check_information_equality(
    model: Model | Callable[..., Any],
    params: PyTree,
    expectation: Expectation,
    *,
    given: PyTree = None,
    level: float = 0.01,
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
    the information is singular (a skew-normal without skew) and, as far as draws can show, where it is infinite
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
    model, layout, values, given = check_point(model, params, given)
    compute, layout = _compute_by_rule if isinstance(expectation, Quadrature) else _compute, layout.natural()
    if isinstance(expectation, MonteCarlo | QuasiMonteCarlo):
        expectation = replace(expectation, estimator="outer" if identity == SCORE_MEAN else "hessian", fallback=None)
        model.check_draws(given)
        compute = _compute_by_few_draws if are_few(model, layout, expectation, given) else _compute
    return compute(model, layout, values, expectation, given, identity, level)


def _evaluate(
    model: Model, layout: Layout, values: Values, expectation: Any, given: PyTree, identity: str, level: Any
) -> Check:
    """The p-value over all z, and whatever else decides if the check is passed."""
    by = _by_draws if isinstance(expectation, MonteCarlo | QuasiMonteCarlo) else _by_nodes
    expectations, mean, error, z, degrees_of_freedom = by(
        model, layout, values, expectation, given, identity == SCORE_MEAN
    )
    regularity, size, singular = expectations["regularity"], jnp.abs(z), jnp.array(False)
    if identity == INFORMATION_EQUALITY:
        size = jnp.where(jnp.abs(regularity.effect) > regularity.negligible, size, 0.0)[np.triu_indices(z.shape[0])]
        singular = ~linalg.factorize(expectations["outer"]).definite
    largest, count = jnp.max(size), size.shape[0]
    if degrees_of_freedom is None:  # an exact expectation: z counts what rounding and truncation may leave
        p_value = jnp.where(largest <= 1.0, 1.0, 0.0)
    else:
        # P(|t| > largest) of one by the incomplete beta function, of the largest of `count` by Šidák's bound.
        ratio = degrees_of_freedom / (degrees_of_freedom + jnp.where(jnp.isfinite(largest), largest, 0.0) ** 2)
        single = jax.scipy.special.betainc(0.5 * degrees_of_freedom, 0.5, ratio)
        p_value = jnp.where(jnp.isfinite(largest), -jnp.expm1(count * jnp.log1p(-single)), 0.0)
    sound = (regularity.num_not_finite == 0) & (jnp.abs(regularity.mass - 1.0) < MASS_TOLERANCE)
    return Check(
        mean=mean,
        standard_error=error,
        z=z,
        p_value=p_value,
        passed=(p_value > level) & sound & ~singular & ~jnp.any(regularity.heavy),
        singular=singular,
        **expectations,
        names=layout.names,
        identity=identity,
        route=describe(expectation),
        level=level,
    )


_compute = jit_with_model(_evaluate, static_argnums=(0, 1, 5, 6), level=1)
_compute_by_few_draws = jit_with_model(_evaluate, static_argnums=(0, 1, 5, 6), level=0)
_compute_by_rule = jit_with_model(_evaluate, static_argnums=(0, 1, 3, 5, 6), level=1)  # whose ends may be functions

# Either way to the expectations E[s], E[s sᵀ] and −E[H], the means that should be zero, their errors and z-values, and the
# degrees of freedom of t, None where there is no chance in z.
_Evidence = tuple[dict[str, Any], Array, Array, Array, int | None]


def _by_draws(
    model: Model, layout: Layout, values: Values, expectation: Any, given: PyTree, of_score: bool
) -> _Evidence:
    q, pairs = layout.num_free, num_pairs(model, expectation, given)
    quasi = isinstance(expectation, QuasiMonteCarlo)
    sums = sampled.sum_over_draws(model, layout, values, expectation, given)
    mean, error = sampled.control_means(sums, pairs, pieces_only=quasi)
    target = sampled.square(sampled.combine(sums, None, pairs)[0], q)
    score_mean, outer = mean[:q], target if of_score else sampled.square(mean[q:], q) + target
    if not of_score:
        # Cov(s) + E[H] = E[s sᵀ + H] − E[s] E[s]ᵀ, with the errors of both to first order, and what rounding leaves.
        difference, pieces = propagate(
            lambda means: covariance_of_moments(means[:q], sampled.square(means[q:], q)),
            mean,
            sums.pieces[:, : mean.shape[0]] / pairs,
        )
        floor = sampled.square(sampled.rounding(sums, pairs)[q:], q)
        of_difference = jnp.sqrt(standard_errors_of_entries(difference, pieces) ** 2 + floor**2)
        upper = np.triu_indices(q)
        mean = jnp.concatenate([score_mean, difference[upper]])
        error = jnp.concatenate([error[:q], of_difference[upper]])
    z = z_values(mean, error)
    if not quasi:
        # The standard error that a skewed sample shows goes up and down with its mean, so that z is skewed the other way,
        # and more. This increasing cubic takes the skewness γ out to first order: g(z) = z + γz²/3 + γ²z³/27 + γ/6 of
        # Hall, P. (1992), J. R. Statist. Soc. B 54, 221-228.
        skewness = sampled.control_skewness(sums, pairs)
        z = z + skewness * z**2 / 3.0 + skewness**2 * z**3 / 27.0 + skewness / 6.0
    z = sampled.adjust_large(z, error, sums, pairs)
    # Squares over all pairs are known of the controls themselves; scrambled points, and what a function of means has for an
    # error, have that of the pieces only, and so t with as many degrees of freedom.
    num_pieces = min(pairs, sums.pieces.shape[0])
    degrees_of_freedom = num_pieces if quasi or not of_score else pairs
    if not of_score:
        mean, error, z = (sampled.square(part[q:], q) for part in (mean, error, z))
    expectations = {
        "score_mean": score_mean,
        "outer": outer,
        "minus_hessian": jnp.full_like(target, jnp.nan) if of_score else target,
        "regularity": sampled.assess_regularity(sums, pairs),
    }
    return expectations, mean, error, z, degrees_of_freedom


def _by_nodes(
    model: Model, layout: Layout, values: Values, expectation: Any, given: PyTree, of_score: bool
) -> _Evidence:
    averages, mass = exact.average(model, layout, values, expectation, given)
    expectations = {
        "score_mean": averages.score,
        "outer": averages.outer,
        "minus_hessian": -averages.hessian,
        "regularity": exact.assess_regularity(averages, mass),
    }
    difference = covariance_of_moments(averages.score, averages.outer) + averages.hessian
    means, errors = (averages.score, difference), exact.tolerances(averages)
    mean, error = (means[0], errors[0]) if of_score else (means[1], errors[1])
    return expectations, mean, error, z_values(mean, error), None
