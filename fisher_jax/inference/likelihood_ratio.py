"""`likelihood_ratio_test`: how much likelihood does a restriction cost?"""

import warnings
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fisher_jax.errors import FitWarning, check_count, check_key, entry_point, warn
from fisher_jax.fitting.each import check_fit, with_data
from fisher_jax.fitting.fit import fit_batch
from fisher_jax.fitting.result import Fit, joined_fits, origin_of
from fisher_jax.fitting.starts import stacked_starts
from fisher_jax.fitting.status import ROUNDING_LIMIT, Status
from fisher_jax.inference.gained import gained_over, gained_over_point
from fisher_jax.inference.hypothesis import Hypothesis, free_positions, hypothesised
from fisher_jax.inference.record import HypothesisTest, chi_squared_test
from fisher_jax.inference.replicates import drawn_data
from fisher_jax.inference.restricted import refit
from fisher_jax.inference.samples import same_data
from fisher_jax.inference.under_restriction import fit_under
from fisher_jax.inference.unidentified import unidentified, values_of_null, values_under
from fisher_jax.models.constraints import Interval
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.numerics.namespace import is_traced, namespace, on_host

TEST = "Likelihood-ratio test"
FEWEST = 19  # data sets by which a bootstrap's p-value can be 5 %
SHORT_OF_EDGE = 1e-4  # by which a fit that runs to a boundary may stay below the supremum there, in the statistic


@entry_point
def likelihood_ratio_test(
    fit: Any, null: Any, *, num_on_boundary: Any = None, key: Any = None, num_replicates: Any = 999, starts: Any = None
) -> HypothesisTest:
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
    key : jax.random.key, optional
        With a key the p-value is that of the parametric bootstrap: data are drawn from the model under the null at its
        estimate, by `sample`, and both models fitted to each.
    num_replicates : int
        Data sets drawn.
    starts : pytree, optional
        Starting parameters of the larger model, stacked along a leading axis, from each of which it is fitted to every data set
        drawn, beside the estimate; the highest of its maxima counts. With parameters that have no meaning under the null they
        must cover their range, as those of `fit` itself should, or the bootstrap's statistics are too small.

    Returns
    -------
    HypothesisTest
        Chi-squared with the difference of the numbers of free parameters. With one parameter on the boundary `mixture_p_value`
        is the one that holds; with more, both are too large or too small and a note says so. Where the null leaves parameters
        without information (the position of a signal whose strength is zero) there is no p-value, a note names them, and a
        `FitWarning` says so; the bootstrap has one.

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

    Whether parameters are without information under the null is told from the scores of `fit`'s model with the null's
    parameters, by name; it cannot be told under a transformation, nor where those of another null model do not name them.

    The bootstrap's p-value is (1 + number of statistics at least as large) / (1 + number of data sets), which with all
    parameters known under the null has exactly its nominal size.

    References
    ----------
    Wilks, S. S. (1938), Ann. Math. Statist. 9, 60-62; Self, S. G. and Liang, K.-Y. (1987), J. Amer. Statist. Assoc. 82,
    605-610, cases 5 and 6; Davies, R. B. (1977), Biometrika 64, 247-254, and (1987), Biometrika 74, 33-43, for parameters
    without information under the null; Davison, A. C. and Hinkley, D. V. (1997), Bootstrap Methods and their Application,
    eq. (4.11).

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> y = jnp.array([1.0, 2.0, 3.0, 6.0])
    >>> fit = fj.fit(fj.families.gamma, {"shape": 1.0, "rate": 1.0}, y)
    >>> test = fj.likelihood_ratio_test(fit, {"shape": 1.0})
    >>> print(f"{test.statistic:.3f} {test.p_value:.3f}")
    1.621 0.203
    """
    check_fit(fit)
    found = _against(fit, null)
    edge, freedom = found.edge, found.freedom
    # Zero is what both log-likelihoods of no observations are: a difference that says nothing, and must not pass for a fit as good.
    n, gained = on_host((fit.num_observations, found.gained))
    gained = namespace(n).where(n > 0, gained, np.nan)
    if num_on_boundary is not None:
        edge = _checked_number(num_on_boundary, freedom)
    statistic, notes = _statistic(fit, gained)
    lost, said = (np.zeros(np.shape(statistic), bool), "") if found.values is None else unidentified(fit, found.values)
    notes += (
        fit._irregularity()
        + _robust_notes(fit)
        + (() if np.any(lost) or key is not None else _boundary_notes(edge, freedom))
        + (_status_notes(fit, found, edge, lost) if not is_traced(fit) else ())
        + _unmet_notes(found.unmet)
    )
    if key is not None:
        return _bootstrapped(fit, null, found, statistic, notes, (key, num_replicates, starts))
    if np.any(lost):
        notes += (_lost_note(lost, said),)
        warn(f"{notes[-1]}")
    test = chi_squared_test(statistic, freedom, TEST, found.words, "", notes, num_on_boundary=edge)
    if not np.any(lost):
        return test
    keep = (np if isinstance(statistic, np.ndarray) else jnp).where
    p_values = [None if p is None else keep(lost, np.nan, p) for p in (test.p_value, test.mixture_p_value)]
    distribution = "not chi-squared" if np.all(lost) else "chi-squared where all parameters have information"
    return replace(test, p_value=p_values[0], mixture_p_value=p_values[1], distribution=distribution)


class _Against(NamedTuple):
    """What a null hypothesis costs: the log-likelihood gained over it, and how it was come by.

    `null` is its fit, None where nothing is left to be fitted; `values` are the larger model's parameters there, None where
    these cannot be told; `unmet` says where a restriction does not hold; `edge` counts parameters on a boundary.
    """

    gained: Any
    freedom: int
    words: tuple[str, ...]
    null: Fit | None
    values: Values | None
    unmet: Any = None
    edge: int = 0


def _against(fit: Fit, null: Any) -> _Against:
    """The cost of a null hypothesis of any kind, of one fit or of each of many."""
    layout, known = fit.layout, not is_traced(fit)
    if isinstance(null, Fit):
        _check_pair(fit, null)
        freedom = fit.num_parameters - null.num_parameters
        known = known and fit.origin is not None and not is_traced(null)
        values = values_of_null(fit, null) if known else None
        return _Against(
            gained_over(fit, null), freedom, ("the restricted model",), null, values, edge=_fixed_on_edge(layout, null)
        )
    if callable(null):
        under = fit_under(fit, null)
        unmet, words = ~under.holds, tuple(f"{name} = 0" for name in under.names)
        gained = gained_over(fit, under.fit)
        gained = (np if isinstance(gained, np.ndarray) else jnp).where(unmet, np.nan, gained)
        return _Against(
            gained, len(under.names), words, under.fit, under.fit.params["params"] if known else None, unmet
        )
    hypothesis = hypothesised(layout, null)
    positions = free_positions(layout, hypothesis)
    edge = _on_edge(layout, hypothesis)
    if len(positions) == len(layout.names):  # nothing is left to be fitted
        gained, restricted = with_data(fit, gained_over_point, (hypothesis.values,)), None
        freedom = fit.num_parameters
    else:
        restricted = refit(fit, hypothesis)
        gained, freedom = gained_over(fit, restricted), fit.num_parameters - restricted.num_parameters
    values = values_under(fit, hypothesis, restricted) if known else None
    return _Against(gained, freedom, hypothesis.words, restricted, values, edge=edge)


def _lost_note(lost: np.ndarray, said: str) -> str:
    which = f" in {int(np.sum(lost))} of {lost.size} fits" if lost.ndim else ""
    return (
        f"under the null the data {said}{which}, so that the statistic is neither chi-squared nor a "
        "mixture of chi-squareds, and there is no p-value (Davies 1977, 1987). Use the parametric bootstrap: "
        "likelihood_ratio_test(…, key=jax.random.key(0)), with `starts` that cover the range of these parameters."
    )


def _bootstrapped(
    fit: Fit, null: Any, found: _Against, statistic: Any, notes: tuple[str, ...], draws: tuple[Any, Any, Any]
) -> HypothesisTest:
    """The place of the statistic among those of data drawn under the null."""
    key, count, starts = draws
    if fit.has_batch:
        raise TypeError("the bootstrap takes one fit, which it makes a batch of. Take each of yours, as fits[3].")
    check_key(key)
    count = check_count(count, FEWEST, "num_replicates")
    origin = origin_of(fit)
    if found.values is not None and origin.model.sample is not None:
        source = origin, fit.layout, found.values
    elif isinstance(null, Fit):
        source = origin_of(null), null.layout, null.values
    else:
        source = origin, fit.layout, fit.values  # has no sampler: the error says so
    blocks = [] if starts is None else stacked_starts(fit.layout, fit.values, starts)
    stacked = [fit.layout.assemble(list(leaves)) for leaves in zip(*blocks, strict=True)]
    settings: dict[str, Any] = {"weights_axis": None, "covariances": ("observed",)}
    statistics: list[Any] = []
    for drawn in drawn_data(*source, key, count):
        fits = fit_batch(origin.model, fit.params, **drawn, **settings)
        for start in stacked:
            others = fit_batch(origin.model, start, **drawn, **settings)
            higher = others.log_likelihood > np.where(np.isnan(fits.log_likelihood), -np.inf, fits.log_likelihood)
            both = joined_fits([fits, others], np.arange(len(fits)) + len(fits) * higher)
            fits = replace(both, origin=fits.origin)
        if isinstance(null, Fit):
            under = fit_batch(origin_of(null).model, null.params, **drawn, **settings)
            statistics.append(2.0 * gained_over(fits, under))
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FitWarning)  # of fits that failed, which are counted below
                statistics.append(2.0 * _against(fits, null).gained)
    made = np.concatenate(statistics)[:count]
    made = made[np.isfinite(made)]
    if len(made) < count:
        notes += (f"{count - len(made)} of the {count} data sets drawn have no statistic, and are left out.",)
    # The null is part of the larger model, which no maximum below it can be the highest of: the statistic is at least zero.
    # One that agrees to rounding counts as equal.
    observed = float(statistic)
    as_large = int(np.sum(np.maximum(made, 0.0) >= observed - SHORT_OF_EDGE * min(1.0, observed)))
    p_value = np.nan if np.isnan(observed) or len(made) < FEWEST else (1 + as_large) / (1 + len(made))
    distribution = f"by parametric bootstrap, {len(made)} data sets"
    return HypothesisTest(
        statistic, np.asarray(p_value), None, found.freedom, TEST, found.words, "", notes, distribution
    )


def _checked_number(number: Any, freedom: int) -> int:
    whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
    if not whole or not 0 <= number <= freedom:
        raise ValueError(f"num_on_boundary={number!r} must be a whole number from 0 to {freedom}.")
    return int(number)


def _check_pair(fit: Any, null: Any) -> None:
    """Refuse fits that cannot be compared."""
    if fit.has_batch != null.has_batch:
        raise TypeError("one of the two holds many fits, the other is a single one. Give two of a kind.")
    if not fit.num_parameters > null.num_parameters:
        raise ValueError(
            f"the null fit has {null.num_parameters} free parameters and the other {fit.num_parameters}, so the "
            "null is not nested in it. Give the larger model first."
        )
    if not is_traced(fit) and not is_traced(null) and not same_data(fit, null):
        raise ValueError(
            "the two fits are of different data. Likelihoods can be compared only of the same observations: fit "
            "both models to these, the ones with missing covariates left out of both."
        )


def _statistic(fit: Any, gained: Any) -> tuple[Any, tuple[str, ...]]:
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
            warn(f"{notes[0]}")
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


def _unmet_notes(unmet: Any) -> tuple[str, ...]:
    """Where no parameters were found that obey a restriction."""
    if unmet is None or not np.any(unmet):
        return ()
    which = f" for {int(np.sum(unmet))} of {unmet.size} fits" if np.ndim(unmet) else ""
    note = (
        f"no parameters were found at which the restriction holds{which}, or there is no covariance to judge that by: "
        "there is no statistic. Write the model under the hypothesis, fit it, and give that fit."
    )
    warn(f"{note}")
    return (note,)


def _status_notes(fit: Any, against: _Against, edge: int, lost: np.ndarray) -> tuple[str, ...]:
    """What the statuses of the two fits mean for the test.

    Nothing at a boundary that the null is known to lie on, and nothing where the null's fit went along parameters without
    information under it: all these points are as likely.
    """
    notes = []
    null = against.null
    for label, found in (("alternative", fit), *([("null", null)] if null is not None else [])):
        if not found.has_batch:
            expected = label == "alternative" and edge and found.status == Status.BOUNDARY
            adrift = found.status in (Status.SINGULAR_INFORMATION, Status.BOUNDARY)
            on_ridge = label == "null" and bool(lost) and adrift
            if not found.converged and not expected and not on_ridge:
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
        warn(f"{' '.join(notes)}")
    return tuple(notes)
