"""`sample_size`: how many observations a target standard error or power takes, from the information alone."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.errors import FitWarning, check_count, check_pytree, entry_point, is_number, shown
from fisher_jax.fitting.fit import fit_batch
from fisher_jax.fitting.parameter_functions import in_one_row, name_within
from fisher_jax.fitting.result import Fit
from fisher_jax.inference.wald import wald_test
from fisher_jax.information import Covariance
from fisher_jax.information.cramer_rao import cramer_rao_bound
from fisher_jax.information.expectations import Expectation
from fisher_jax.models.model import Model, as_model, flatten_parameters
from fisher_jax.models.parameter_names import is_text, read_restrictions
from fisher_jax.models.parameters import Values
from fisher_jax.moments import Estimate
from fisher_jax.numerics import linalg
from fisher_jax.numerics.array_namespace import AnyArray
from fisher_jax.reporting import Report, Reported, ReportTable, number, with_error
from fisher_jax.simulation.experiment import draw_blocks, make_experiment
from fisher_jax.simulation.normality import moments, standard_deviations

MAX_OBSERVATIONS = 1e12


@dataclass(frozen=True, repr=False)
class SampleSize(Reported):
    """The number of observations at which a standard error or power reaches its target. It prints as a report.

    Attributes
    ----------
    num_observations : int
        n, rounded up; with `given`, to whole repetitions of its rows.
    exact, exact_error : float
        n before it was rounded, and its error where the information is sampled.
    names : tuple of str
        The entries whose standard error has a target, or that are tested.
    standard_error : array (k,)
        Their asymptotic standard errors at n.
    power : float or None
        The asymptotic power of Wald's test at n; None where the target is a standard error.
    simulated : Estimate or None
        The same from data sets drawn and fitted: the standard deviations (k,), or the fraction of tests that reject, with
        Monte Carlo error.
    num_replicates, num_failed : int
        The number of these data sets, and of those whose fit failed: left out of standard deviations, and counted as not
        rejecting.
    target : str
    route : str
        How the information was computed.
    """

    num_observations: int
    exact: float
    exact_error: float
    names: tuple[str, ...]
    standard_error: Any
    power: float | None
    simulated: Estimate | None
    num_replicates: int
    num_failed: int
    target: str
    route: str

    def summary(self) -> Report:
        facts = [
            ("Target", self.target),
            ("Observations", f"{self.num_observations}, from {with_error(self.exact, self.exact_error)}"),
            ("Information", self.route),
        ]
        headings = ["name", "standard error"]
        rows = [[name, number(error)] for name, error in zip(self.names, self.standard_error, strict=True)]
        if self.power is not None:
            facts.append(("Power", number(self.power)))
        if self.simulated is not None:
            if self.power is not None:
                facts.append(("Power, simulated", with_error(*self.simulated)))
            else:
                headings.append("simulated")
                rows = [[*row, with_error(*pair)] for row, *pair in zip(rows, *self.simulated, strict=True)]
            failed = f", of which {self.num_failed} failed" if self.num_failed else ""
            facts.append(("Data sets drawn", f"{self.num_replicates}{failed}"))
        return Report("Sample size", facts, [ReportTable(tuple(headings), [tuple(row) for row in rows])])


@entry_point
def sample_size(
    model: Model | Callable[..., Any],
    params: PyTree,
    *,
    standard_error: PyTree = None,
    power: float | None = None,
    hypothesis: PyTree = None,
    level: float = 0.05,
    function: Callable[[PyTree], PyTree] | None = None,
    given: PyTree = None,
    expectation: Expectation | None = None,
    key: Array | None = None,
    num_replicates: int = 2000,
) -> SampleSize:
    """The number of observations at which a standard error, or the power of Wald's test, reaches a target.

    Parameters
    ----------
    model, params, given, expectation
        As for `fisher_information`; params are those that are believed true.
    standard_error : number or pytree
        The largest admissible standard errors, of the parameters or of what `function` returns: one number for all, or a
        pytree of numbers, in which entries that are absent, `None` or NaN have no limit. Or give `power`.
    power : float
        The target: the probability that Wald's test rejects `hypothesis` if params are true.
    hypothesis : pytree, or str or sequence of str
        The values that are tested, of parameters or of what `function` returns, as in ``{"shape": 1.0}``; several are tested
        together. As in `wald_test`, entries that are `None`, NaN or absent are not tested, and values of parameters may be
        given as text, ``"shape = 1"``.
    level : float
        Size of the test.
    function : callable, optional
        ``function(params)`` returns a number, an array or a pytree of them.
    key : jax.random.key, optional
        Check the answer by drawing data sets of that n and fitting them. Needs a sampler.
    num_replicates : int
        The number of these data sets.

    Returns
    -------
    SampleSize
        It prints as a report. With `given` n counts observations spread evenly over its rows.

    Raises
    ------
    ValueError, TypeError
        If not exactly one of `standard_error` and `power` is given, a name is unknown, the hypothesis is true at params, one
        tested entry is determined by the others (such as all of a simplex), or the information is singular.

    Notes
    -----
    Standard errors fall as 1/√n, n = Σ_jj / se² with Σ = I⁻¹; under the alternative Wald's statistic is noncentral χ² with
    noncentrality n δᵀ Σ⁻¹ δ, δ = θ less the hypothesised values. Both hold in the limit
    of large n: where n comes out small, give a key.

    References
    ----------
    Wald, A. (1943), Trans. Amer. Math. Soc. 54, 426-482; van der Vaart, A. W. (1998), Asymptotic Statistics, chapter 16.

    Examples
    --------
    >>> import fisher_jax as fj, jax
    >>> size = fj.sample_size(fj.families.exponential, {"rate": 2.0}, standard_error=0.1)
    >>> size.num_observations
    400
    >>> print(fj.sample_size(fj.families.exponential, {"rate": 2.0}, power=0.8, hypothesis="rate = 1.5").num_observations)
    126
    """
    if (standard_error is None) == (power is None) or (power is None) != (hypothesis is None):
        raise ValueError("give either standard_error, or power together with the hypothesis that is tested.")
    bound = cramer_rao_bound(model, params, expectation, num_observations=1, function=function, given=given)
    layout, values = flatten_parameters(as_model(model), params)

    def estimand(values: Values) -> AnyArray:
        return layout.join(values) if function is None else in_one_row(function(layout.assemble(values)))

    target: _Precision | _Power
    if power is None:
        target = _Precision(*_entries(standard_error, bound.names, "standard_error"))
    else:
        if not (is_number(power) and is_number(level) and 0 < level < power < 1):
            raise ValueError(f"power={shown(power)} and level={shown(level)} must obey 0 < level < power < 1.")
        if is_text(hypothesis):
            if function is not None:
                raise ValueError(
                    f"hypothesis={hypothesis!r} names parameters, but the test is of function. Give the function's values under it."
                )
            at = read_restrictions(layout, hypothesis, "hypothesis").entry_values()
            if at is None:
                raise ValueError(
                    f"hypothesis={hypothesis!r} ties parameters to each other. Give what is zero under it as function, and "
                    "hypothesis=0."
                )
            hypothesis = {layout.names[k]: value for k, value in at.items()}
        where, tested = _entries(hypothesis, bound.names, "hypothesis")
        _check_independent(bound, where)
        difference = np.asarray(estimand(values), float)[where] - tested
        target = _Power(where, tested, difference, float(power), float(level), function)
    covariance = np.asarray(bound.matrix, float)
    exact = target.required(covariance)
    if not exact < MAX_OBSERVATIONS:
        raise ValueError(
            f"no n below {MAX_OBSERVATIONS:g} is enough ({exact:.3g}): is the hypothesis true at params, or the standard "
            "error zero?"
        )
    # To first order, by how much each independent error of the covariance changes n.
    errors = np.asarray([] if bound.errors is None else bound.errors, float)
    changes = [target.required(covariance + error) - exact for error in errors]
    rows = 1 if given is None or as_model(model).is_dependent else jax.tree.leaves(given)[0].shape[0]
    n = max(1, math.ceil(exact * (1 - 1e-6) / rows)) * rows  # float32 may come out a little above a whole number

    simulated, count, failed = None, 0, 0
    if key is not None:
        count = check_count(num_replicates, 2, "num_replicates")
        check_count(n, 1, "num_observations")  # of what is simulated; the answer itself may be any number
        experiment, observed = make_experiment(model, params, given, n), []
        for data in draw_blocks(experiment, key, count):
            fits = fit_batch(
                experiment.model, experiment.params, data, given=experiment.given, covariances=("observed",)
            )
            observed.append(target.observe(fits, np.asarray(jax.vmap(estimand)(fits.values), float)))
            failed += int(np.sum(~fits.converged))
        simulated = target.summarize(np.concatenate(observed), count)
    return SampleSize(
        num_observations=n,
        exact=exact,
        exact_error=float(np.sqrt(np.sum(np.square(changes)))),
        names=tuple(bound.names[k] for k in target.where),
        standard_error=np.sqrt(np.diagonal(covariance)[target.where] / n),
        power=target.power_at(n, covariance) if isinstance(target, _Power) else None,
        simulated=simulated,
        num_replicates=count,
        num_failed=failed,
        target=target.describe(bound.names),
        route=bound.route.partition("from: ")[2],
    )


@dataclass(frozen=True)
class _Precision:
    """Largest admissible standard errors of the entries `where`."""

    where: list[int]
    errors: Float[np.ndarray, " k"]

    def required(self, covariance: Float[np.ndarray, "q q"]) -> float:
        """The number of observations, given the covariance for one: n = max Σ_jj / se_j²."""
        with np.errstate(divide="ignore"):  # the square of a tiny target is zero
            return float(np.max(np.diagonal(covariance)[self.where] / self.errors**2))

    def describe(self, names: tuple[str, ...]) -> str:
        entries = [f"{names[k]} ± {value:g}" for k, value in zip(self.where, self.errors, strict=True)]
        return f"standard error of {', '.join(entries)}"

    def observe(self, fits: Fit, values: Float[np.ndarray, "c q"]) -> np.ndarray:
        """The estimates of the fits that converged."""
        return values[:, self.where][fits.converged]

    def summarize(self, rows: np.ndarray, count: int) -> Estimate:
        """Their standard deviations."""
        return standard_deviations(moments(rows)[1])


@dataclass(frozen=True)
class _Power:
    """Power of Wald's test that the entries `where` have the values `tested`, from which they differ by `difference`."""

    where: list[int]
    tested: Float[np.ndarray, " k"]
    difference: Float[np.ndarray, " k"]
    power: float
    level: float
    function: Callable[[PyTree], PyTree] | None

    def required(self, covariance: Float[np.ndarray, "q q"]) -> float:
        """The number of observations, given the covariance for one, at which the power is reached."""
        from scipy.optimize import brentq

        each = self._noncentrality(covariance)
        if not each > 0:
            return math.inf
        high = 10.0
        while self._rejection(high) < self.power:
            high *= 2
        return float(brentq(lambda x: self._rejection(x) - self.power, 0.0, high, xtol=1e-10)) / each

    def power_at(self, n: int, covariance: Float[np.ndarray, "q q"]) -> float:
        return self._rejection(n * self._noncentrality(covariance))

    def _noncentrality(self, covariance: Float[np.ndarray, "q q"]) -> float:
        """δᵀ Σ⁻¹ δ, of one observation."""
        block = covariance[np.ix_(self.where, self.where)]
        return float(self.difference @ np.linalg.solve(block, self.difference))

    def _rejection(self, noncentrality: float) -> float:
        """The probability that a noncentral χ² exceeds the quantile of the central one."""
        from scipy.stats import chi2, ncx2

        df = len(self.where)
        return float(ncx2.sf(chi2.isf(self.level, df), df, noncentrality)) if noncentrality > 0 else self.level

    def describe(self, names: tuple[str, ...]) -> str:
        entries = ", ".join(f"{names[k]} = {value:g}" for k, value in zip(self.where, self.tested, strict=True))
        return f"power {self.power:g} of Wald's test of {entries} at level {self.level:g}"

    def observe(self, fits: Fit, values: Float[np.ndarray, "c q"]) -> np.ndarray:
        """Which tests reject."""
        restriction: Any = {fits.names[k]: value for k, value in zip(self.where, self.tested, strict=True)}
        if self.function is not None:
            function = self.function
            restriction = lambda params: in_one_row(function(params))[np.array(self.where)] - jnp.asarray(self.tested)  # noqa: E731
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FitWarning)  # failed fits are counted
            p_values = np.asarray(wald_test(fits, restriction).p_value)
        return (p_values < self.level) & fits.converged

    def summarize(self, rows: np.ndarray, count: int) -> Estimate:
        """The fraction of tests that reject; its error is not zero even where all of them do."""
        smoothed = (np.sum(rows) + 1) / (count + 2)
        return Estimate(float(np.mean(rows)), float(np.sqrt(smoothed * (1 - smoothed) / count)))


def _entries(target: PyTree, names: tuple[str, ...], argument: str) -> tuple[list[int], Float[np.ndarray, " k"]]:
    """Which entries a user's number or pytree of numbers refers to, and the numbers."""
    check_pytree(target, argument)
    if is_number(target):
        values = dict.fromkeys(range(len(names)), float(target))
    else:
        values = {}
        for path, leaf in jax.tree_util.tree_flatten_with_path(target)[0]:
            numbers = np.ravel(np.asarray(leaf))
            for root in ("params", "function"):
                name = name_within(root, path)
                where = [k for k, each in enumerate(names) if each == name or each.startswith((f"{name}[", f"{name}."))]
                if where and len(numbers) in (1, len(where)) and numbers.dtype.kind in "iuf":
                    values |= zip(where, np.broadcast_to(numbers.astype(float), len(where)).tolist(), strict=True)
                    break
            else:
                raise ValueError(
                    f"{argument} names `{name_within('params', path)}` with {np.size(leaf)} numbers; there are "
                    f"{', '.join(names)}. Name these, with a number each."
                )
    values = {k: value for k, value in sorted(values.items()) if not np.isnan(value)}
    if infinite := [names[k] for k, value in values.items() if np.isinf(value)]:
        raise ValueError(f"{argument} of {', '.join(infinite)} is infinite. Leave it out, or write None or NaN.")
    if not values:
        raise ValueError(f"{argument} names no entry; there are {', '.join(names)}.")
    if argument == "standard_error" and min(values.values()) <= 0:
        raise ValueError(f"standard_error must be positive, got {min(values.values()):g}.")
    return list(values), np.array(list(values.values()))


def _check_independent(bound: Covariance, where: list[int]) -> None:
    """Raise where one tested entry is determined by the others, which would be a degree of freedom too many."""
    block = np.asarray(bound.matrix)[np.ix_(where, where)]
    deviation = np.sqrt(np.diagonal(block))
    scale = np.where(deviation > 0, deviation, 1.0)
    values, directions = np.linalg.eigh(block / scale[:, None] / scale[None, :])
    if not values[0] > np.finfo(block.dtype).eps ** (2 / 3):
        names = tuple(bound.names[k] for k in where)
        direction = linalg.describe_direction(directions[:, 0] / scale, names, 1 / scale)
        raise ValueError(
            f"the tested entries are not independent: {direction} is determined without any data. Leave out of the "
            "hypothesis what follows from the rest."
        )
