"""`likelihood_ratio_test`: how much log-likelihood does a restriction cost?

The statistic 2 (ℓ(θ̂) − ℓ(θ̂₀)) is chi-squared under a regular null (Wilks). Two failures of regularity are detected: a null on
the boundary of a parameter's range, where the distribution is a mixture of chi-squareds (Self and Liang), and parameters
without information under the null, where it is neither (Davies; see `unidentified.py`). The parametric bootstrap is valid for
both: data are drawn from the null at its estimate, both models are fitted to each, and the statistic is ranked among theirs.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from fisher_jax.errors import FitWarning, check_count, check_key, entry_point, warn
from fisher_jax.fitting.fit import fit_batch
from fisher_jax.fitting.map_fits import BLOCK, check_fit, with_data
from fisher_jax.fitting.result import Fit, Origin, join_fits, origin_of
from fisher_jax.fitting.several_starts import stacked_starts
from fisher_jax.fitting.status import ROUNDING_LIMIT, Status
from fisher_jax.inference.comparison import check_same_integrals, same_data
from fisher_jax.inference.hypothesis import (
    Hypothesis,
    HypothesisTest,
    chi_squared_test,
    free_positions,
    read_restriction,
    statements_of,
)
from fisher_jax.inference.replicates import draw_data
from fisher_jax.inference.restricted_fits import fit_under, refit
from fisher_jax.inference.unidentified import find_unidentified, values_of_null, values_under
from fisher_jax.models.constraints import Interval
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.drawing import check_sampler
from fisher_jax.models.likelihood import likelihood, terms_at
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.numerics.array_namespace import AnyArray, is_traced, namespace, on_host
from fisher_jax.reporting import in_fits

TEST = "Likelihood-ratio test"
FEWEST = 19  # data sets by which a bootstrap's p-value can be 5 %
SHORT_OF_EDGE = 1e-4  # by which a fit that runs to a boundary may stay below the supremum there, in the statistic


@entry_point
def likelihood_ratio_test(
    fit: Fit,
    null: Fit | str | Callable[[PyTree], PyTree] | PyTree,
    *,
    num_on_boundary: int | None = None,
    key: Array | None = None,
    num_replicates: int = 999,
    starts: PyTree = None,
) -> HypothesisTest:
    """Test a null hypothesis by twice the difference of maximised log-likelihoods: 2 (ℓ(θ̂) − ℓ(θ̂₀)).

    Parameters
    ----------
    fit : Fit
        The fit without the restriction.
    null : Fit, str or sequence of str, pytree or callable
        The fit of the restricted model to the same data. Or hypothesised values as for `wald_test`, as text, by structure or by
        name, as in ``"shape = 1"`` or ``{"shape": 1.0}``: the model is then fitted again with these fixed, from the estimates of
        the others, by `newton`. Or linear restrictions between parameters as text, as ``"a = 2 b"``, or ``restriction(params)``, a
        number or any pytree of arrays, zero under the null hypothesis: the model is then fitted again under it, from the
        estimates, by the method of multipliers.
    num_on_boundary : int, optional
        How many of the restrictions put a parameter on the edge of its range (a variance or a mixture's weight of zero).
        Default: counted from the constraints and the hypothesised values.
    key : jax.random.key, optional
        With a key the p-value is that of the parametric bootstrap: data are drawn from the model under the null at its
        estimate, by `sample`, and both models fitted to each.
    num_replicates : int
        Data sets drawn.
    starts : pytree, optional
        Starting parameters of the larger model, stacked along a leading axis, from each of which it is fitted to every data set
        drawn, beside the estimate; the highest of its maxima counts. With parameters that have no meaning under the null they
        must cover their range, as those of `fit` itself should; else the bootstrap's statistics are too small.

    Returns
    -------
    HypothesisTest
        Chi-squared with the difference of the numbers of free parameters. With one parameter on the boundary `mixture_p_value`
        is the valid one; with more, both are too large or too small, with a note. Where the null leaves parameters without
        information (the position of a signal whose strength is zero) there is no p-value, with a note and a `FitWarning` that
        name them; the bootstrap has one.

    Raises
    ------
    ValueError, TypeError
        If the fits are of different data, the null has not fewer free parameters, or the hypothesis is invalid.

    Notes
    -----
    Sizes of a nominal 5 % test, one parameter of four families (`benchmarks/calibration.txt`): 5.5 to 6.6 % at n = 25,
    5.6 to 5.9 at 50, 4.5 to 5.2 at 500.

    That the models are nested is not checked; only the numbers of parameters and the data are compared. A null that fits better
    than the alternative means that the alternative is not at its maximum: p is NaN, the statistic negative, with a `FitWarning`.
    A statistic below zero by no more than rounding and the fit's decrement explain is set to zero. A fit that has not converged
    gets a note and a `FitWarning`. In float32 the difference is summed over observations where the fits have their data.

    Of a model with latent effects the null may be a fit with fewer effects, or to the rows without groups. Its variances are zero
    under the null: with one of them, with its covariances or without, the statistic is a mixture of two chi-squareds (Stram and
    Lee, cases 1 to 3), for many groups; with few the probability of zero is above a half and the p-value too large (Crainiceanu
    and Ruppert). With several variances at zero the law is not known in closed form: use the bootstrap.

    Parameters without information under the null are detected from the scores of `fit`'s model at the null's parameters,
    matched by name; not under a transformation, nor where another null model has other names.

    The bootstrap's p-value is (1 + number of statistics at least as large) / (1 + number of data sets), which is exact where
    the null fixes all parameters.

    References
    ----------
    Wilks, S. S. (1938), Ann. Math. Statist. 9, 60-62; Self, S. G. and Liang, K.-Y. (1987), J. Amer. Statist. Assoc. 82,
    605-610, cases 5 and 6; Stram, D. O. and Lee, J. W. (1994), Biometrics 50, 1171-1177; Crainiceanu, C. M. and Ruppert, D.
    (2004), J. R. Stat. Soc. B 66, 165-185; Davies, R. B. (1977), Biometrika 64, 247-254, and (1987), Biometrika 74, 33-43, for
    parameters without information under the null; Davison, A. C. and Hinkley, D. V. (1997), Bootstrap Methods and their
    Application, eq. (4.11).

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> y = jnp.array([1.0, 2.0, 3.0, 6.0])
    >>> fit = fj.fit(fj.families.weibull, {"shape": 1.0, "scale": 1.0}, y)
    >>> test = fj.likelihood_ratio_test(fit, "shape = 1")
    >>> print(f"{test.statistic:.3f} {test.p_value:.3f}")
    1.477 0.224
    """
    check_fit(fit)
    if key is not None:  # checked before the null is fitted, which may take long
        if fit.has_batch:
            raise TypeError("the bootstrap takes one fit, which it makes a batch of. Take each of yours, as fits[3].")
        check_key(key)
        num_replicates = check_count(num_replicates, FEWEST, "num_replicates")
        if not isinstance(null, Fit) and isinstance(fit.origin, Origin):
            check_sampler(fit.origin.model, fit.origin.dataset.given)
    under = _fit_null(fit, null)
    freedom, edge = under.freedom, under.num_on_boundary
    if num_on_boundary is not None:
        is_whole = isinstance(num_on_boundary, int | np.integer) and not isinstance(num_on_boundary, bool)
        if not is_whole or not 0 <= num_on_boundary <= freedom:
            raise ValueError(f"num_on_boundary={num_on_boundary!r} must be a whole number from 0 to {freedom}.")
        edge = int(num_on_boundary)

    # Both log-likelihoods of no observations are zero; their difference must not pass for a null that fits as well.
    n, gain = on_host((fit.num_observations, under.gain))
    raw = 2.0 * namespace(n).where(n > 0, gain, np.nan)
    precision = jax.dtypes.canonicalize_dtype(raw.dtype)
    is_short = (raw < 0) & (raw >= -_shortfall(fit, precision))
    statistic: Any = namespace(raw).where(is_short, 0.0, raw).astype(precision)
    if not isinstance(raw, np.ndarray):  # a batch lives on the host
        statistic = jnp.asarray(statistic)

    notes: list[str] = []
    if not is_traced(fit) and np.any(worse := np.asarray(statistic) < 0):
        excess = float(np.max(-0.5 * np.asarray(statistic)[worse]))
        notes.append(
            f"the null fits better than the alternative{in_fits(worse)}, by up to {excess:.3g} in log-likelihood: the alternative "
            "is not at its maximum. Fit it again from the null's estimate; there is no p-value until then."
        )
        warn(notes[-1])
    unidentified, consequence = np.zeros(np.shape(statistic), bool), ""
    if under.values is not None and not _lacks_only_what_is_at_ends(fit.layout, under):
        unidentified, consequence = find_unidentified(fit, under.values)
    notes += fit._irregularity()
    if fit.robust:
        notes.append(
            f"the fit has a robust covariance ({fit.robust}), of which a likelihood ratio takes no account: it is chi-squared "
            'only if the likelihood is right as it stands. Use wald_test with kind="sandwich".'
        )
    if edge and key is None and not np.any(unidentified):
        notes.append(
            f"under the null one parameter lies on the boundary of its range, where the statistic is not chi-squared with "
            f"{freedom} but an even mixture of {freedom - 1} and {freedom} degrees of freedom: the p-value of the mixture is "
            "the one to use, provided that the others lie inside. The plain one is too large."
            if edge == 1
            else f"under the null {edge} parameters lie on the boundary of their range: the statistic is a mixture of "
            "chi-squared distributions whose weights depend on the information. The p-value is too large; use the parametric "
            "bootstrap, likelihood_ratio_test(…, key=jax.random.key(0))."
        )
    if not is_traced(fit) and (failures := _failures(fit, under.fit, edge, unidentified)):
        notes += failures
        warn(" ".join(failures))
    if under.violated is not None and np.any(under.violated):
        notes.append(
            f"no parameters were found at which the restriction holds{in_fits(under.violated)}, or there is no covariance to "
            "judge that by: there is no statistic. Write the model under the hypothesis, fit it, and give that fit."
        )
        warn(notes[-1])

    if key is not None:
        return _bootstrap(fit, null, under, statistic, notes, key, num_replicates, starts)
    if not np.any(unidentified):
        return chi_squared_test(statistic, freedom, TEST, under.hypothesis, "", tuple(notes), num_on_boundary=edge)
    notes.append(
        f"under the null the data {consequence}{in_fits(unidentified)}, so that the statistic is neither chi-squared nor a "
        "mixture of chi-squareds, and there is no p-value (Davies 1977, 1987). Use the parametric bootstrap: "
        "likelihood_ratio_test(…, key=jax.random.key(0)), with `starts` that cover the range of these parameters."
    )
    warn(notes[-1])
    test = chi_squared_test(statistic, freedom, TEST, under.hypothesis, "", tuple(notes), num_on_boundary=edge)
    where = np.where if isinstance(statistic, np.ndarray) else jnp.where
    p_values = [None if p is None else where(unidentified, np.nan, p) for p in (test.p_value, test.mixture_p_value)]
    distribution = "not chi-squared" if np.all(unidentified) else "chi-squared where all parameters have information"
    return replace(test, p_value=p_values[0], mixture_p_value=p_values[1], distribution=distribution)


class _Null(NamedTuple):
    """The null model at its maximum, of one fit or of each of many."""

    gain: Any  # log-likelihood of the alternative above it; NaN where the restriction does not hold
    freedom: int  # fewer parameters
    hypothesis: tuple[str, ...]
    fit: Fit | None  # None where every parameter is fixed
    values: Values | None  # the larger model's parameters there, None where they cannot be determined
    num_on_boundary: int = 0
    violated: Any = None  # where no parameters were found at which the restriction holds


def _fit_null(fit: Fit, null: Any) -> _Null:
    """The null as a fit, as a restriction or as hypothesised values."""
    layout, traced = fit.layout, is_traced(fit)
    if isinstance(null, Fit):
        if fit.has_batch != null.has_batch:
            raise TypeError("one of the two holds many fits, the other is a single one. Give two of a kind.")
        if not fit.num_parameters > null.num_parameters:
            raise ValueError(
                f"the null fit has {null.num_parameters} free parameters and the other {fit.num_parameters}, so the "
                "null is not nested in it. Give the larger model first."
            )
        traced = traced or is_traced(null)
        if not traced and not same_data(fit, null):
            raise ValueError(
                "the two fits are of different data. Likelihoods can be compared only of the same observations: fit "
                "both models to these, the ones with missing covariates left out of both."
            )
        check_same_integrals(fit, null, "the larger model", "the null")
        values = None if traced or fit.origin is None else values_of_null(fit, null)
        freedom = fit.num_parameters - null.num_parameters
        edge = max(
            _num_fixed_at_ends(layout, null), _num_at_ends(layout, values), _num_effects(fit) - _num_effects(null)
        )
        return _Null(_gain(fit, null), freedom, ("the restricted model",), null, values, min(edge, freedom))
    null = read_restriction(layout, null)
    if not isinstance(null, Hypothesis):
        under = fit_under(fit, null)
        gain = _gain(fit, under.fit)
        gain = namespace(gain).where(under.holds, gain, np.nan)
        values = None if traced else under.fit.params["params"]
        hypothesis = statements_of(null, under.names)
        return _Null(gain, len(hypothesis), hypothesis, under.fit, values, violated=~under.holds)
    restricted: Fit | None = None
    if len(free_positions(layout, null)) == len(layout.names):  # no parameter is left to be fitted
        gain = with_data(fit, _gain_over_point, (null.values,))
        freedom = fit.num_parameters
    else:
        restricted = refit(fit, null)
        gain, freedom = _gain(fit, restricted), fit.num_parameters - restricted.num_parameters
    constraints = [layout.leaves[i].constraint for i, _ in null.where]
    edge = sum(float(x) in _ends(constraint) for x, constraint in zip(null.values, constraints, strict=True))
    values = None if traced else values_under(fit, null, restricted)
    return _Null(gain, freedom, null.statements, restricted, values, edge)


def _num_fixed_at_ends(layout: Layout, null: Fit) -> int:
    """How many parameters that the null fixes and the other model estimates lie at an end of their range, in every fit."""
    free = {leaf.name: leaf for _, leaf in layout.free_leaves}
    counts = np.zeros(jnp.shape(null.log_likelihood), int)
    for leaf, value in zip(null.layout.leaves, null.values, strict=True):
        if leaf.is_fixed and leaf.name in free and not isinstance(value, jax.core.Tracer):
            at_end = np.isin(np.asarray(value, float), _ends(free[leaf.name].constraint))
            counts = counts + at_end.reshape((*counts.shape, -1)).sum(axis=-1)
    return int(np.min(counts)) if counts.size else 0


def _num_at_ends(layout: Layout, values: Values | None) -> int:
    """How many estimated parameters lie at an end of their range at these values, in every fit; a null without them is there."""
    if values is None:
        return 0
    theta = np.asarray(layout.join(values), float)
    return int(np.min(np.sum(theta[..., :, None] == layout.edges(), axis=(-2, -1))))


def _lacks_only_what_is_at_ends(layout: Layout, under: _Null) -> bool:
    """Whether each parameter that the null lacks is at an end of its range, such as a variance at zero.

    All others are then estimated by the null as well, and have information, since it has a certified maximum.
    """
    is_certified = under.fit is not None and bool(np.all(under.fit.converged))
    return is_certified and _num_at_ends(layout, under.values) == under.freedom


def _num_effects(fit: Fit) -> int:
    """How many variances of latent effects a fit of a mixed model has, each zero where another model has not its effect.

    Their covariances vanish with them, and lie inside their range: with one variance on the boundary the law is the mixture of two
    also where it is an entry of a covariance matrix (Stram and Lee 1994, case 3).
    """
    return 0 if fit.origin is None else fit.origin.model.num_effects


def _ends(constraint: Any) -> list[float]:
    return [constraint.low, constraint.high] if isinstance(constraint, Interval) else []


def _gain(fit: Fit, null: Fit) -> Any:
    """ℓ(θ̂) − ℓ(θ̂₀), from the differences of the terms, in float64, where a log-likelihood in float32 is too coarse."""
    has_data = isinstance(fit.origin, Origin) and isinstance(null.origin, Origin) and fit.free.size
    if not has_data or fit.layout.dtype != np.float32:
        at_maximum, at_null = on_host((fit.penalized_log_likelihood, null.penalized_log_likelihood))
        return at_maximum - at_null

    def difference(fit: Fit, null: Fit) -> Any:
        terms, null_terms = (np.asarray(with_data(each, _terms), np.float64) for each in (fit, null))
        if terms.shape == null_terms.shape:
            return np.sum(terms - null_terms, axis=-1)
        return np.sum(terms, axis=-1) - np.sum(null_terms, axis=-1)  # one has rows where the other has weights

    precision = _in_double(fit.layout).dtype
    if not fit.has_batch:
        return jnp.asarray(difference(fit, null), precision)
    blocks = [slice(start, start + BLOCK) for start in range(0, len(fit), BLOCK)]
    return np.concatenate([difference(fit[block], null[block]) for block in blocks]).astype(precision)


def _terms(fit: Fit, model: Model, dataset: Dataset) -> Array:
    layout = _in_double(fit.layout)
    return terms_at(likelihood(model, layout, fit.values, dataset), fit.free.astype(layout.dtype))


def _gain_over_point(fit: Fit, model: Model, dataset: Dataset, theta: Array) -> Array:
    """ℓ(θ̂) − ℓ(θ₀) of a hypothesis that fixes all parameters."""
    natural = _in_double(fit.layout).natural()
    target = likelihood(model, natural, fit.values, dataset)
    estimate = fit.layout.join(fit.layout.constrained_values(fit.free, fit.values)).astype(natural.dtype)
    return jnp.sum(terms_at(target, estimate) - terms_at(target, theta.astype(natural.dtype)))


def _in_double(layout: Layout) -> Layout:
    """In float64 where x64 is enabled."""
    return replace(layout, dtype=jax.dtypes.canonicalize_dtype(np.float64))


def _shortfall(fit: Fit, precision: Any) -> AnyArray:
    """Upper bound on how far the statistic lies below its value at the exact maximum: by rounding, decrement, or an edge."""
    value, decrement, status = on_host((fit.log_likelihood, fit.decrement, fit.status_code))
    xp = namespace(value)
    rounding = 1e3 * jnp.finfo(precision).eps * (1.0 + xp.abs(value))
    least = ROUNDING_LIMIT if fit.layout.dtype == np.float32 else 0.0
    decrement = xp.maximum(xp.where(xp.isfinite(decrement), decrement, 0.0), least)
    # By its quadratic approximation ℓ is ½ decrement² below its maximum, the statistic decrement²; twice that for safety.
    stopped = xp.where(status == Status.BOUNDARY, SHORT_OF_EDGE, 2.0 * decrement**2)
    return rounding + stopped


def _failures(fit: Fit, null: Fit | None, edge: int, unidentified: np.ndarray) -> list[str]:
    """Notes on fits that did not converge.

    An alternative that ran to the boundary on which the null lies is as expected, and so is a null that moved along parameters
    without information under it, where all points are as likely.
    """
    notes = []
    for label, each in (("alternative", fit), ("null", null)):
        if each is None or np.all(each.converged):
            continue
        status = np.asarray(each.status_code)
        at_edge = (label == "alternative" and edge > 0) & (status == Status.BOUNDARY)
        on_ridge = (label == "null") & unidentified & np.isin(status, (Status.SINGULAR_INFORMATION, Status.BOUNDARY))
        failed = ~np.asarray(each.converged) & ~at_edge & ~on_ridge
        if not np.any(failed):
            continue
        if each.has_batch:
            notes.append(
                f"{int(np.sum(failed))} fits of the {label} did not converge; their results are not to be relied on."
            )
            continue
        notes.append(
            f"the fit of the {label} ended with status {each.status.label}, so the test is not to be relied on."
        )
        if each.status == Status.BOUNDARY:
            notes[-1] += " At the boundary of a parameter's range the statistic need not be chi-squared."
    return notes


def _bootstrap(
    fit: Fit, null: Any, under: _Null, statistic: Any, notes: list[str], key: Any, count: int, starts: Any
) -> HypothesisTest:
    """The rank of the statistic among those of data drawn under the null."""
    origin = origin_of(fit)
    if under.values is not None and origin.model.sample is not None:
        source = origin, fit.layout, under.values
    elif isinstance(null, Fit):
        source = origin_of(null), null.layout, null.values
    else:
        source = origin, fit.layout, fit.values  # it has no sampler, which is an error
    if isinstance(null, Fit) and null.origin is not None:
        forms: list[Any] = [
            jax.tree.structure((each.dataset.data, each.dataset.given)) for each in (origin, null.origin)
        ]
        if forms[0] != forms[1]:
            raise ValueError(
                f"the bootstrap fits both models to the same draws, and these take data of other forms: {forms[0]} and {forms[1]}. "
                "Give the null as values, as 'sd.group = 0', or write it for data of the same form."
            )
    by_leaf = [] if starts is None else stacked_starts(fit.layout, fit.values, starts)
    other_starts = [fit.layout.assemble(list(leaves)) for leaves in zip(*by_leaf, strict=True)]
    settings: dict[str, Any] = {"weights_axis": None, "covariances": ("observed",)}
    parts: list[Any] = []
    for drawn in draw_data(*source, key, count):
        fits = fit_batch(origin.model, fit.params, **drawn, **settings)
        for start in other_starts:
            others = fit_batch(origin.model, start, **drawn, **settings)
            higher = others.log_likelihood > np.where(np.isnan(fits.log_likelihood), -np.inf, fits.log_likelihood)
            both = join_fits([fits, others], np.arange(len(fits)) + len(fits) * higher)
            fits = replace(both, origin=fits.origin)
        if isinstance(null, Fit):
            parts.append(2.0 * _gain(fits, fit_batch(origin_of(null).model, null.params, **drawn, **settings)))
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FitWarning)  # of fits that failed, which are counted below
                parts.append(2.0 * _fit_null(fits, null).gain)
    statistics = np.concatenate(parts)[:count]
    statistics = statistics[np.isfinite(statistics)]
    num = len(statistics)
    if num < count:
        notes.append(f"{count - num} of the {count} data sets drawn have no statistic, and are left out.")
    # The null is part of the larger model, whose highest maximum cannot lie below it: the statistic is at least zero.
    # One that agrees to rounding counts as equal.
    observed = float(statistic)
    num_as_large = int(np.sum(np.maximum(statistics, 0.0) >= observed - SHORT_OF_EDGE * min(1.0, observed)))
    p_value = np.asarray(np.nan if np.isnan(observed) or num < FEWEST else (1 + num_as_large) / (1 + num))
    distribution = f"by parametric bootstrap, {num} data sets"
    return HypothesisTest(
        statistic, p_value, None, under.freedom, TEST, under.hypothesis, "", tuple(notes), distribution
    )
