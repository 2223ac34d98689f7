"""`likelihood_ratio_test`: how much likelihood does a restriction cost?"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fisher_jax.errors import entry_point, warn
from fisher_jax.fitting.program import ROUNDING_LIMIT
from fisher_jax.fitting.result import Fit
from fisher_jax.fitting.status import Status
from fisher_jax.inference.each import check_fit, with_data
from fisher_jax.inference.gained import gained_over, gained_over_point
from fisher_jax.inference.hypothesis import Hypothesis, free_positions, hypothesised
from fisher_jax.inference.record import HypothesisTest, chi_squared_test
from fisher_jax.inference.restricted import refit
from fisher_jax.inference.samples import same_data
from fisher_jax.inference.under_restriction import fit_under
from fisher_jax.models.constraints import Interval
from fisher_jax.models.parameters import Layout
from fisher_jax.numerics.namespace import is_traced, namespace, on_host

TEST = "Likelihood-ratio test"
SHORT_OF_EDGE = 1e-4  # by which a fit that runs to a boundary may stay below the supremum there, in the statistic


@entry_point
def likelihood_ratio_test(fit: Any, null: Any, *, num_on_boundary: Any = None) -> HypothesisTest:
    """Test a null hypothesis by twice the log-likelihood that it costs: 2 (ℓ(θ̂) − ℓ(θ̂₀)).

    Parameters
    ----------
    fit : Fit
        The fit without the restriction.
    null : Fit, pytree or callable
        The fit of the restricted model to the same data. Or hypothesised values as for `wald_test`, by structure or by name, as
        in ``{"shape": 1.0}``: the model is then fitted again with these held, from the estimates of the others, by `newton`.
        Or ``restriction(params)``, a number or any pytree of arrays, zero under the null hypothesis: the model is then fitted
        again under it, from the estimates, by the method of multipliers.
    num_on_boundary : int, optional
        How many of the restrictions put a parameter on the edge of its range (a variance or a mixture's weight of zero).
        Default: as many as can be told from the constraints and the hypothesised values.

    Returns
    -------
    HypothesisTest
        Chi-squared with the difference of the numbers of free parameters. With one parameter on the boundary `mixture_p_value`
        is the one that holds; with more, both are too large or too small and a note says so.

    Raises
    ------
    ValueError, TypeError
        If the fits are of different data, the null has not fewer free parameters, or the hypothesis is none.

    Notes
    -----
    Sizes of a nominal 5 % test, one parameter of four families (`benchmarks/calibration.txt`): 5.5 to 6.6 % at n = 25,
    5.6 to 5.9 at 50, 4.5 to 5.2 at 500.

    That the models are nested is for the caller to know; only the numbers of parameters and the data are compared. A null that
    fits better than the alternative means that the alternative is not at its maximum: p is NaN, the statistic negative, and a
    `FitWarning` says so. Below zero by no more than rounding and the fit's decrement explain, it is zero. Where either fit has
    not converged, that is said too. In float32 the difference is summed by observations where the data are known.

    References
    ----------
    Wilks, S. S. (1938), Ann. Math. Statist. 9, 60-62; Self, S. G. and Liang, K.-Y. (1987), J. Amer. Statist. Assoc. 82,
    605-610, cases 5 and 6.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> y = jnp.array([1.0, 2.0, 3.0, 6.0])
    >>> fit = fj.fit(fj.families.gamma, {"shape": 1.0, "rate": 1.0}, y)
    >>> test = fj.likelihood_ratio_test(fit, {"shape": 1.0})
    >>> print(f"{test.statistic:.3f} {test.p_value:.3f}")
    1.621 0.203
    """
    caller = "likelihood_ratio_test"
    check_fit(fit, caller)
    words: tuple[str, ...] = ("the restricted model",)
    layout, unmet, edge = fit.layout, None, 0
    if isinstance(null, Fit):
        _check_pair(fit, null, caller)
        edge = _fixed_on_edge(layout, null)
        gained, freedom = gained_over(fit, null), fit.num_parameters - null.num_parameters
    elif callable(null):
        under = fit_under(fit, null, caller)
        null, freedom, unmet = under.fit, len(under.names), ~under.holds
        words = tuple(f"{name} = 0" for name in under.names)
        gained = gained_over(fit, null)
        gained = (np if isinstance(gained, np.ndarray) else jnp).where(unmet, np.nan, gained)
    else:
        hypothesis = hypothesised(layout, null, caller)
        positions = free_positions(layout, hypothesis, caller)
        words, edge = hypothesis.words, _on_edge(layout, hypothesis)
        if len(positions) == len(layout.names):  # nothing is left to be fitted
            null, freedom = None, fit.num_parameters
            gained = with_data(fit, gained_over_point, caller, (hypothesis.values,))
        else:
            null = refit(fit, hypothesis, caller)
            gained, freedom = gained_over(fit, null), fit.num_parameters - null.num_parameters
    # Zero is what both log-likelihoods of no observations are: a difference that says nothing, and must not pass for a fit as good.
    n, gained = on_host((fit.num_observations, gained))
    gained = namespace(n).where(n > 0, gained, np.nan)
    if num_on_boundary is not None:
        edge = _checked_number(num_on_boundary, freedom, caller)
    statistic, notes = _statistic(fit, gained, caller)
    notes += (
        _robust_notes(fit)
        + _boundary_notes(edge, freedom)
        + (_status_notes(fit, null, edge, caller) if not is_traced(fit) else ())
        + _unmet_notes(unmet, caller)
    )
    return chi_squared_test(statistic, freedom, TEST, words, "", notes, num_on_boundary=edge)


def _checked_number(number: Any, freedom: int, caller: str) -> int:
    whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
    if not whole or not 0 <= number <= freedom:
        raise ValueError(f"{caller}: num_on_boundary={number!r} must be a whole number from 0 to {freedom}.")
    return int(number)


def _check_pair(fit: Any, null: Any, caller: str) -> None:
    """Refuse fits that cannot be compared."""
    if fit.has_batch != null.has_batch:
        raise TypeError(f"{caller}: one of the two holds many fits, the other is a single one. Give two of a kind.")
    if not fit.num_parameters > null.num_parameters:
        raise ValueError(
            f"{caller}: the null fit has {null.num_parameters} free parameters and the other {fit.num_parameters}, so the "
            "null is not nested in it. Give the larger model first."
        )
    if not is_traced(fit) and not is_traced(null) and not same_data(fit, null):
        raise ValueError(
            f"{caller}: the two fits are of different data. Likelihoods can be compared only of the same observations: fit "
            "both models to these, the ones with missing covariates left out of both."
        )


def _statistic(fit: Any, gained: Any, caller: str) -> tuple[Any, tuple[str, ...]]:
    """The statistic, zero where it is negative by rounding, and a note where it is more negative than that."""
    raw = 2.0 * gained
    host = isinstance(raw, np.ndarray)
    statistic = jnp.where((raw < 0) & (raw >= -_shortfall(fit, jnp.asarray(raw).dtype)), 0.0, raw)
    notes: tuple[str, ...] = ()
    if not is_traced(fit):
        worse = np.asarray(statistic) < 0
        if np.any(worse):
            which = f" in {int(np.sum(worse))} of {worse.size} fits" if worse.ndim else ""
            most = float(np.max(-0.5 * np.asarray(statistic)[worse]))
            notes = (
                f"the null fits better than the alternative{which}, by up to {most:.3g} in log-likelihood: the alternative is "
                "not at its maximum. Fit it again from the null's estimate; there is no p-value until then.",
            )
            warn(f"{caller}: {notes[0]}")
    return (np.asarray(statistic) if host else statistic), notes


def _shortfall(fit: Fit, precision: Any) -> Array:
    """How much the statistic may lack since the fit stopped where it did: by rounding, its decrement, or before an edge."""
    rounding = 1e3 * jnp.finfo(precision).eps * (1.0 + jnp.abs(fit.log_likelihood))
    least = ROUNDING_LIMIT if fit.layout.dtype == np.float32 else 0.0
    decrement = jnp.maximum(jnp.where(jnp.isfinite(fit.decrement), fit.decrement, 0.0), least)
    stopped = jnp.where(fit.status_code == Status.BOUNDARY, SHORT_OF_EDGE, 2.0 * decrement**2)
    return rounding + stopped


def _on_edge(layout: Layout, hypothesis: Hypothesis) -> int:
    """How many hypothesised values lie at an end of their parameter's range."""
    ends = [_ends(layout.leaves[i].constraint) for i, _ in hypothesis.where]
    return sum(float(value) in end for value, end in zip(hypothesis.values, ends, strict=True))


def _fixed_on_edge(layout: Layout, null: Fit) -> int:
    """How many parameters that the null holds fixed and the other estimates lie at an end of their range, in every fit."""
    free = {leaf.name: leaf for _, leaf in layout.free_leaves}
    counts = np.zeros(jnp.shape(null.log_likelihood), int)
    for leaf, value in zip(null.layout.leaves, null.values, strict=True):
        if leaf.is_fixed and leaf.name in free and not isinstance(value, jax.core.Tracer):
            at_end = np.isin(np.asarray(value, float), _ends(free[leaf.name].constraint))
            counts = counts + at_end.reshape((*counts.shape, -1)).sum(axis=-1)
    return int(np.min(counts)) if counts.size else 0


def _ends(constraint: Any) -> list[float]:
    return [constraint.low, constraint.high] if isinstance(constraint, Interval) else []


def _robust_notes(fit: Fit) -> tuple[str, ...]:
    if not fit.robust:
        return ()
    return (
        f"the fit has a robust covariance ({fit.robust}), of which a likelihood ratio takes no account: it is chi-squared only "
        'if the likelihood is right as it stands. Use wald_test with kind="sandwich".',
    )


def _boundary_notes(edge: int, freedom: int) -> tuple[str, ...]:
    if edge == 0:
        return ()
    if edge == 1:
        return (
            f"under the null one parameter lies on the boundary of its range, where the statistic is not chi-squared with "
            f"{freedom} but an even mixture of {freedom - 1} and {freedom} degrees of freedom: the p-value of the mixture is "
            "the one to use, provided that the others lie inside. The plain one is too large.",
        )
    return (
        f"under the null {edge} parameters lie on the boundary of their range: the statistic is a mixture of chi-squared "
        "distributions whose weights depend on the information. The p-value is too large; use a parametric bootstrap.",
    )


def _unmet_notes(unmet: Any, caller: str) -> tuple[str, ...]:
    """Where no parameters were found that obey a restriction."""
    if unmet is None or not np.any(unmet):
        return ()
    which = f" for {int(np.sum(unmet))} of {unmet.size} fits" if np.ndim(unmet) else ""
    note = (
        f"no parameters were found at which the restriction holds{which}, or there is no covariance to judge that by: "
        "there is no statistic. Write the model under the hypothesis, fit it, and give that fit."
    )
    warn(f"{caller}: {note}")
    return (note,)


def _status_notes(fit: Any, null: Any, edge: int, caller: str) -> tuple[str, ...]:
    """What the statuses of the two fits mean for the test; at a boundary that the null is known to lie on, nothing."""
    notes = []
    for label, found in (("alternative", fit), *([("null", null)] if null is not None else [])):
        if not found.has_batch:
            expected = label == "alternative" and edge and found.status == Status.BOUNDARY
            if not found.converged and not expected:
                notes.append(
                    f"the fit of the {label} ended with status {found.status.label}, so the test is not to be relied on."
                )
                if found.status == Status.BOUNDARY:
                    notes[-1] += " At the boundary of a parameter's range the statistic need not be chi-squared."
        elif not np.all(found.converged):
            notes.append(
                f"{int(np.sum(~found.converged))} fits of the {label} did not converge; theirs is not to be relied on."
            )
    if notes:
        warn(f"{caller}: {' '.join(notes)}")
    return tuple(notes)
