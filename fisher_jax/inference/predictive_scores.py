"""`predictive_scores`: how good predictive distributions were, observation by observation, by scoring rules. Lower is better.

A rule S(G, y) is proper if its expectation is least where G is the distribution that y comes from: whoever predicts another one
loses by it (Gneiting and Raftery 2007). With g the density and q the quantile function of G:

- log: −log g(y), in nats;
- crps: ∫ (G(x) − 1{x ≥ y})² dx, in the unit of y; for a point prediction it is the absolute error;
- brier: (g(1) − y)² of y = 0 or 1;
- pinball: (y − q)(level − 1{y < q}), of the quantile at a level;
- interval: u − l + 2/α (l − y)⁺ + 2/α (y − u)⁺, of the equal-tailed interval of probability level = 1 − α;
- squared error: (y − mean)².
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from fisher_jax.blocks import map_blocks
from fisher_jax.errors import (
    call_user,
    check_choice,
    check_count,
    check_function,
    check_level,
    entry_point,
    kind_of,
    require,
)
from fisher_jax.fitting.padding import class_size
from fisher_jax.fitting.result import Fit, origin_of
from fisher_jax.inference.predicted_rows import Rows, check_no_effects, model_or_given, rows_of
from fisher_jax.inference.predictive_distribution import (
    ENTRIES,
    PredictiveDistribution,
    map_rows,
    mixture_of_row,
)
from fisher_jax.inference.robust import cluster_codes
from fisher_jax.inference.row_distributions import (
    NODES,
    PLACES,
    check_distribution,
    crps_by_quadrature,
    crps_by_sum,
    has_known_intervals,
)
from fisher_jax.models.auxiliary import without_auxiliary
from fisher_jax.models.dataset import check_dataset
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.programs import ById, jit_with_model
from fisher_jax.numerics.array_namespace import is_traced, on_host
from fisher_jax.reporting import TEST_FORMATS, Report, Reported, ReportTable, percent

RULES = ("log", "crps", "brier", "pinball", "interval", "squared error")
TITLES = {"log": "log score, in nats", "crps": "continuous ranked probability score", "brier": "Brier score"}
WIDEST = 2**20  # whole numbers over which a score is summed up
ScoringRule = str | Callable[..., Any]


# --- the records ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class PredictiveScores(Reported):
    """Scores of n predictions, of which lower ones are better; printed as their mean.

    Attributes
    ----------
    values : array (n,)
        The score of each observation; NaN where there is no prediction or no number.
    weights : array (n,) or None
        How many equal observations each stands for. One of weight zero does not count, whatever its score.
    clusters : integer array (n,) or None
        Which cluster each observation belongs to: those of one may depend on each other.
    rule : str
        The rule in words.
    notes : tuple of str
        What limits the result.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> y = jnp.array([1.0, 2.0, 3.0, 4.0, 5.0, 7.0])
    >>> fit = fj.fit(fj.families.normal, None, y)
    >>> scores = fj.predictive_scores(fit, "crps", jnp.array([2.0, 6.0]))
    >>> print(scores.values.round(3), round(scores.mean, 3))
    [0.992 1.45 ] 1.221
    """

    values: np.ndarray
    weights: np.ndarray | None
    clusters: np.ndarray | None
    rule: str
    notes: tuple[str, ...] = ()

    @property
    def num_observations(self) -> float:
        """n, or the sum of the weights."""
        return float(len(self.values) if self.weights is None else np.sum(self.weights))

    @property
    def total(self) -> float:
        """The sum over the observations, weighted."""
        return float(np.sum(self._weighted(self.values)))

    @property
    def mean(self) -> float:
        """The mean over the observations, weighted."""
        return self.total / self.num_observations

    @property
    def standard_error(self) -> float:
        """Standard error of the mean, from the spread over observations, or over clusters; NaN of fewer than two.

        It is that of independent scores: how much the mean would vary over other observations under the same predictions.
        """
        return self._error_of(self.values - self.mean, 0)[0]

    @entry_point
    def compare(self, other: "PredictiveScores", *, lags: int = 0) -> "ScoreDifference":
        """The mean difference from other scores of the same observations, less than zero where these are better.

        Parameters
        ----------
        other : PredictiveScores
            By the same rule, of the same observations in the same order.
        lags : int
            For observations in the order of time: up to how many steps apart scores may be correlated, of forecasts h steps ahead
            h − 1 at least; the variance is then Newey and West's.

        Returns
        -------
        ScoreDifference
            With its standard error, interval, and a p-value by Student's t.

        Notes
        -----
        The differences of single observations are taken as a sample of independent ones (or clusters; or a stationary series with
        `lags`) with a finite variance, and the predictions as given: the p-value is for the predictions, not for the models that
        made them, whose estimates vary too. Under cross-validation the folds share most of their data, so that the error is as a
        rule too small (Bengio and Grandvalet 2004). Nested models that are both right have differences near zero whose distribution
        is not normal.

        References
        ----------
        Diebold, F. X. and Mariano, R. S. (1995), Comparing predictive accuracy, J. Bus. Econ. Statist. 13, 253-263; Newey, W. K.
        and West, K. D. (1987), Econometrica 55, 703-708; Bengio, Y. and Grandvalet, Y. (2004), J. Mach. Learn. Res. 5, 1089-1105.
        """
        if not isinstance(other, PredictiveScores):
            raise TypeError(f"other is {kind_of(other)}; expected what predictive_scores or cross_validation returns.")
        check_count(lags, 0, "lags", entries=0)
        if len(self.values) != len(other.values) or self.rule != other.rule:
            raise ValueError(
                f"{len(self.values)} scores ({self.rule}) and {len(other.values)} ({other.rule}) are not of the same observations "
                "by the same rule."
            )
        if not _same(self.weights, other.weights) or not _same(self.clusters, other.clusters):
            raise ValueError("the scores have other weights or clusters. Give both the same.")
        if lags and (self.clusters is not None or self.weights is not None):
            raise ValueError("lags are for observations in the order of time, without clusters or weights.")
        self._check_like(other)
        with np.errstate(invalid="ignore"):  # of two infinite scores
            differences = self.values - other.values
        mean = float(np.sum(self._weighted(differences)) / self.num_observations)
        error, freedom = self._error_of(differences - mean, int(lags))
        return ScoreDifference(mean, error, freedom, differences, self.rule, int(lags))

    def _check_like(self, other: "PredictiveScores") -> None:
        """Raise where two sets of scores cannot be compared; those of folds ask for the same folds."""

    def _weighted(self, values: np.ndarray) -> np.ndarray:
        return values if self.weights is None else np.where(self.weights == 0, 0.0, self.weights * values)

    def _error_of(self, deviations: np.ndarray, lags: int) -> tuple[float, int]:
        """The standard error of a mean whose deviations are these, and its degrees of freedom."""
        total = self.num_observations
        if self.clusters is not None:
            sums = np.bincount(self.clusters, self._weighted(deviations))
            count = len(np.unique(self.clusters if self.weights is None else self.clusters[self.weights > 0]))
            factor, squares = count / (count - 1) if count > 1 else math.nan, float(np.sum(sums**2))
        else:
            count = int(total)
            factor = total / (total - 1) if total > 1 else math.nan
            squares = float(np.sum(self._weighted(deviations**2)))
            for lag in range(1, min(lags, len(deviations) - 1) + 1):
                product = float(np.sum(deviations[lag:] * deviations[:-lag]))
                squares += 2.0 * (1.0 - lag / (lags + 1)) * product
        return math.sqrt(factor * squares) / total if total > 0 else math.nan, count - 1

    @entry_point
    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each observation (needs the extra `frames`)."""
        return require("pandas", "frames").DataFrame(self._columns()).rename_axis("observation")

    def _columns(self) -> dict[str, np.ndarray]:
        columns = {"score": self.values}
        columns |= {} if self.weights is None else {"weight": self.weights}
        return columns | ({} if self.clusters is None else {"cluster": self.clusters})

    def _facts(self) -> list[tuple[str, str]]:
        facts = [("Rule", f"{self.rule}; lower is better"), ("Observations", f"{self.num_observations:g}")]
        if self.clusters is not None:
            facts.append(("Clusters", f"{len(np.unique(self.clusters))}"))
        return facts

    def summary(self) -> Report:
        """The mean score with its standard error, and the total."""
        table = ReportTable(
            ("", "mean", "std. error", "total"), [("score", self.mean, self.standard_error, self.total)]
        )
        return Report(self._title, self._facts(), [table], self.notes)

    _title = "Predictive scores"


@dataclass(frozen=True, repr=False)
class ScoreDifference(Reported):
    """The mean difference of two sets of scores of the same observations: less than zero where the first is better.

    Attributes
    ----------
    mean, standard_error : float
        In the unit of the score, for one observation.
    degrees_of_freedom : int
        Of Student's t: the number of observations, or of clusters, less one.
    differences : array (n,)
        Of each observation.
    rule : str
    lags : int
        As given.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> y = jnp.array([0.3, 1.2, 0.1, 2.7, 0.9, 4.0])
    >>> fits = [fj.fit(family, None, y) for family in (fj.families.exponential, fj.families.normal)]
    >>> new = jnp.array([0.5, 0.2, 3.1, 1.4])
    >>> first, second = (fj.predictive_scores(fit, "log", new) for fit in fits)
    >>> difference = first.compare(second)
    >>> print(f"{difference.mean:.2f} ± {difference.standard_error:.2f}")
    -0.32 ± 0.39
    """

    mean: float
    standard_error: float
    degrees_of_freedom: int
    differences: np.ndarray
    rule: str
    lags: int

    @property
    def statistic(self) -> float:
        """Student's t: the mean divided by its standard error."""
        return self.mean / self.standard_error if self.standard_error > 0 else math.nan

    @property
    def p_value(self) -> float:
        """Two-sided p-value of no difference in expectation, by Student's t."""
        from scipy.special import stdtr

        return float(2.0 * stdtr(self.degrees_of_freedom, -abs(self.statistic)))

    @entry_point
    def interval(self, level: float = 0.95) -> Float[np.ndarray, " 2"]:
        """The interval of the expected difference, by Student's t."""
        check_level(level)
        from scipy.special import stdtrit

        reach = stdtrit(self.degrees_of_freedom, 0.5 * (1.0 + level)) * self.standard_error
        return np.array([self.mean - reach, self.mean + reach])

    def summary(self) -> Report:
        """The mean with its standard error, t, p-value and interval."""
        facts = [("Rule", f"{self.rule}; less than zero: the first is better")]
        if self.lags:
            facts.append(("Correlation", f"up to {self.lags} steps"))
        ends = (f"{end} {percent(0.95)}" for end in ("lower", "upper"))
        titles = ("", "mean", "std. error", "t", "p-value", *ends)
        row = ("difference", self.mean, self.standard_error, self.statistic, self.p_value, *self.interval())
        return Report("Difference of scores", facts, [ReportTable(titles, [row], formats=TEST_FORMATS)])


def _same(first: np.ndarray | None, second: np.ndarray | None) -> bool:
    return (first is None) == (second is None) and (first is None or np.array_equal(first, second))  # type: ignore[arg-type]


# --- rules ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """A scoring rule, hashable: one by its name, or a user's function of params, y (and z)."""

    name: str
    function: ById | None = None
    level: float | None = None

    @property
    def title(self) -> str:
        """The rule in words."""
        if self.name == "pinball":
            return f"pinball score of the {percent(self.level)} quantile"  # type: ignore[arg-type]
        if self.name == "interval":
            return f"score of {percent(self.level)} intervals"  # type: ignore[arg-type]
        return TITLES.get(self.name, self.name)


def read_rule(rule: Any, level: Any, model: Model) -> Rule:
    """The rule meant; raise where it does not exist, or the model lacks what it needs."""
    needs_level = isinstance(rule, str) and rule in ("pinball", "interval")
    if needs_level and level is None:
        raise ValueError(f"rule={rule!r} needs a level: that of the quantile, or the probability of the interval.")
    if level is not None:
        if not needs_level:
            raise ValueError(f'level={level} is for the rules "pinball" and "interval". Leave it out.')
        check_level(level)
    if callable(rule):
        check_function(rule, "rule", "params and y")
        name = getattr(rule, "__name__", "function")
        return Rule("function" if name == "<lambda>" else str(name), ById(rule))
    check_choice(rule, RULES, "rule", " Or give a function of params and y (and covariates).")
    if rule in ("crps", "pinball", "interval"):
        check_distribution(model)
    if rule == "squared error" and model.mean is None:
        raise ValueError('rule="squared error" needs the mean. Give Model(…, mean=function of params).')
    return Rule(rule, None, None if level is None else float(level))


def score_rows(
    model: Model,
    layout: Layout,
    values: Values,
    free: np.ndarray,
    log_weights: np.ndarray,
    rows: Rows,
    y: PyTree,
    rule: Rule,
    *,
    by_row: bool = False,
) -> Float[np.ndarray, " n"]:
    """The scores of all rows under one mixture of points (d, p), or `by_row` each under a point of its own (n, p)."""
    leaves = jax.tree.leaves(y)
    count, dtype = len(leaves[0]), np.dtype(layout.dtype)
    if rule.name in RULES and rule.function is None and rule.name != "log":
        if len(leaves) != 1 or np.ndim(leaves[0]) != 1:
            shapes = ", ".join(str(np.shape(leaf)) for leaf in leaves)
            raise ValueError(
                f"rule={rule.name!r} is for observations that are one number, but these have shape {shapes}."
            )
        first = None if rows.given is None else rows.take(np.zeros(1, int))
        params = jax.eval_shape(lambda: layout.constrain(free[0], values))
        if has_known_intervals(model, params, y, first):
            raise ValueError(
                f"rule={rule.name!r} compares with values, and an observation of a censored model at a limit stands for all "
                'beyond. Use "log".'
            )
        y = np.asarray(leaves[0], dtype)
        if model.discrete and np.any(y != np.floor(y)):
            raise ValueError(f"rule={rule.name!r} is for whole numbers here, but y is {y[y != np.floor(y)][0]:g}.")
    settings = model, layout, by_row, values, log_weights.astype(dtype)

    def mapped(function: Callable[..., Any], entries: int, *each: Any) -> Any:
        """A program over all rows, so many at a time that their entries fit."""
        points = 1 if by_row else len(free)
        size = max(1, min(ENTRIES // (points * entries), class_size(count)))

        def of_block(index: np.ndarray) -> Any:
            given = rows.take(index)
            selected = jax.tree.map(lambda leaf: np.asarray(leaf)[index], (y, *each))
            return function(free[index] if by_row else free, given, selected)

        return map_blocks(of_block, count, size)

    if rule.name == "brier" and rule.function is None:
        _check_binary(model, y, mapped, settings)
    if rule.name == "crps" and model.discrete and rule.function is None:
        ends = mapped(lambda free, given, each: _ends(*settings, free, given, each[0]), 1)
        extent = np.max(np.where(np.isfinite(ends[:, 1] - ends[:, 0]), ends[:, 1] - ends[:, 0], 0.0))
        if extent >= WIDEST:
            raise ValueError(
                f'the distributions extend over {extent:.3g} whole numbers, too many to sum over. Use "log".'
            )
        width = class_size(int(extent) + 1)
        return mapped(lambda free, given, each: _crps_of_counts(*settings, width, free, given, each), width, *ends.T)
    entries = 2 * (len(PLACES) + 1 + len(model.atoms)) * NODES if rule.name == "crps" else 1
    return mapped(lambda free, given, each: _scores(*settings, rule, free, given, each[0]), entries)


def _check_binary(model: Model, y: np.ndarray, mapped: Any, settings: Any) -> None:
    """Raise where observations are not 0 and 1, or are not all that the model gives probability."""
    if not np.all((y == 0) | (y == 1)):
        raise ValueError('rule="brier" is for observations that are 0 or 1.')
    both = [
        mapped(lambda free, given, each, y=y: _scores(*settings, Rule("log"), free, given, y + 0 * each[0]), 1)
        for y in (0, 1)
    ]
    total = np.exp(-both[0]) + np.exp(-both[1])
    if not np.all(np.isnan(total) | (np.abs(total - 1.0) < 1e-4)):
        raise ValueError(
            'rule="brier" is for models of 0 and 1, whose probabilities add up to one. Use "crps" or "log".'
        )


def _over_rows(
    of_row: Callable[..., Array], settings: tuple[Any, ...], free: Any, given: PyTree, each: tuple[PyTree, ...]
) -> Float[Array, "n *k"]:
    """`of_row(distribution, z, *each)` of all rows."""
    model, layout, by_row, values, log_weights = settings
    if by_row:
        return map_rows(
            lambda z, free, *each: of_row(mixture_of_row(model, layout, values, free[None], log_weights, z), *each),
            given,
            free,
            *each,
        )
    return map_rows(
        lambda z, *each: of_row(mixture_of_row(model, layout, values, free, log_weights, z), *each), given, *each
    )


@functools.partial(jit_with_model, static_argnums=(0, 1, 2, 5), level=1)
def _scores(
    model: Model,
    layout: Layout,
    by_row: bool,
    values: Any,
    log_weights: Any,
    rule: Rule,
    free: Any,
    given: PyTree,
    y: PyTree,
) -> Float[Array, " n"]:
    def of_row(row: Any, y: PyTree) -> Float[Array, ""]:
        if rule.function is not None:
            params = jax.tree.map(lambda leaf: leaf[0], row.params)
            score = call_user(rule.function.function, (params, y, *row.z), "rule")
            if not isinstance(score, bool | int | float | complex | np.generic | np.ndarray | jax.Array):
                raise TypeError(f"rule must return a floating number, but returned {kind_of(score)}.")
            score = jnp.asarray(score)
            if score.shape != () or not jnp.issubdtype(score.dtype, jnp.floating):
                raise TypeError(
                    f"rule must return a floating number, but returned shape {score.shape} of {score.dtype}."
                )
            return score
        if rule.name == "log":
            return -row.log_density(y)
        if rule.name == "crps":
            return crps_by_quadrature(row, y)
        if rule.name == "brier":
            return (jnp.exp(row.log_density(jnp.ones_like(y))) - y) ** 2
        if rule.name == "squared error":
            return (row.mean() - y) ** 2
        level = jnp.asarray(rule.level, y.dtype)
        if rule.name == "pinball":
            q = row.quantile(level)
            return (y - q) * (level - (y < q))
        tail = 0.5 * (1.0 - level)
        low, high = row.quantile(tail), row.quantile(1.0 - tail)
        return high - low + (jnp.maximum(low - y, 0.0) + jnp.maximum(y - high, 0.0)) / tail

    return _over_rows(of_row, (model, layout, by_row, values, log_weights), free, given, (y,))


@functools.partial(jit_with_model, static_argnums=(0, 1, 2), level=1)
def _ends(
    model: Model, layout: Layout, by_row: bool, values: Any, log_weights: Any, free: Any, given: PyTree, y: Any
) -> Float[Array, "n 2"]:
    """Outside these ends a distribution of whole numbers is 0 or 1 to rounding, once it is squared."""
    tail = jnp.asarray(jnp.finfo(layout.dtype).eps ** 0.6, layout.dtype)

    def of_row(row: Any, y: Array) -> Float[Array, " 2"]:
        return jnp.stack([row.quantile(tail), row.quantile(1.0 - tail)])

    return _over_rows(of_row, (model, layout, by_row, values, log_weights), free, given, (y,))


@functools.partial(jit_with_model, static_argnums=(0, 1, 2, 5), level=1)
def _crps_of_counts(
    model: Model,
    layout: Layout,
    by_row: bool,
    values: Any,
    log_weights: Any,
    width: int,
    free: Any,
    given: PyTree,
    each: tuple[Any, Any, Any],
) -> Float[Array, " n"]:
    def of_row(row: Any, y: Array, low: Array, high: Array) -> Float[Array, ""]:
        return crps_by_sum(row, y, low, high, width)

    return _over_rows(of_row, (model, layout, by_row, values, log_weights), free, given, each)


# --- predictive_scores ------------------------------------------------------------------------------------------------


@entry_point
def predictive_scores(
    fit: Fit | PredictiveDistribution,
    rule: ScoringRule = "log",
    data: PyTree = None,
    *,
    given: PyTree = None,
    weights: PyTree = None,
    clusters: Any = None,
    level: float | None = None,
    model: Model | None = None,
) -> PredictiveScores:
    """Score what a fitted model predicts against observations, by a proper scoring rule. Lower is better.

    Parameters
    ----------
    fit : Fit or PredictiveDistribution
        A fit predicts with its estimate as if it were the truth; `predictive_distribution` allows for the uncertainty of the
        parameters, and has its rows of covariates.
    rule : str or callable
        "log": −log density, in nats. "crps": the continuous ranked probability score, in the unit of y. "brier": (p − y)² of 0
        and 1. "pinball": of the quantile at `level`. "interval": of the equal-tailed interval of probability `level`. "squared
        error": (y − mean)². Or, for a fit, ``rule(params, y)`` or ``rule(params, y, z)``, the score of one observation, lower for
        the better.
    data : pytree, optional
        The observations (n, …). By default those of the fit, which were also used to fit it: such scores are too good, by about p/n
        for the log score; see `cross_validation`.
    given : pytree or table, optional
        Their covariates, as `new` of `predict`.
    weights : array (n,), optional
        Frequency weights.
    clusters : array (n,), optional
        Labels of observations that may depend on each other, for standard errors.
    level : float, optional
        For "pinball" and "interval".
    model : Model, optional
        Needed where the fit no longer has its model.

    Returns
    -------
    PredictiveScores
        `values` (n,), with `mean`, `standard_error`, `total`, and `compare(other)` for the difference from another model's.

    Raises
    ------
    ValueError, TypeError
        If the rule does not exist or the model lacks what it needs, or the arguments do not fit together.

    Notes
    -----
    The CRPS of a continuous distribution is an integral by quadrature, to 1e-9 where the density is smooth and has one mode, to
    1e-6 with several far apart; NaN where two rules differ by more than a thousandth, as with jumps that the model does not
    declare, or the tails are so long that it may be infinite, as those of a generalized Pareto distribution of shape near 2. That
    of whole numbers is a sum over all of them, up to 2^20, between the quantiles at 4e-10 and 1 − 4e-10.

    The log score is the only one that looks at the density at y alone. It punishes observations in the far tail most; CRPS and the
    others are bounded by the distance of y. Densities of y and of log y have log scores that cannot be compared.

    References
    ----------
    Gneiting, T. and Raftery, A. E. (2007), Strictly proper scoring rules, prediction, and estimation, J. Amer. Statist. Assoc. 102,
    359-378.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> y = jnp.array([0.3, 1.2, 0.1, 2.7, 0.9, 4.0])
    >>> fit = fj.fit(fj.families.exponential, None, y)
    >>> new = jnp.array([0.5, 0.2, 3.1, 1.4])
    >>> scores = fj.predictive_scores(fit, "log", new)
    >>> print(f"{scores.mean:.3f} ± {scores.standard_error:.3f}")
    1.275 ± 0.425
    >>> print(fj.predictive_scores(fit, "interval", new, level=0.8).values.round(2))
    [3.37 3.37 3.37 3.37]
    """
    if isinstance(fit, PredictiveDistribution):
        distribution = fit
        if given is not None or model is not None:
            raise ValueError("a predictive distribution has its covariates and its model. Leave given and model out.")
        if data is None:
            raise ValueError("data is missing: give the observations, one for each row of the predictive distribution.")
        if distribution.method == "bootstrap":
            raise ValueError('method="bootstrap" gives limits only. Use method="likelihood".')
        if callable(rule):
            raise TypeError("a function of params scores a fit, not a predictive distribution. Give the fit.")
        model, rows, layout, values = distribution.model, distribution.rows, distribution.layout, distribution.values
        free, log_weights = distribution.free, distribution.log_weights
    elif isinstance(fit, Fit):
        if fit.has_batch or is_traced(fit):
            raise TypeError("takes one fit whose numbers are known. Take one of yours, as fits[3].")
        model = model_or_given(fit, model)
        check_no_effects(model)
        if data is None and given is not None:
            raise ValueError("given has the covariates of other observations. Give these, too, as data.")
        if data is None:
            whole, dataset = origin_of(fit)
            data = without_auxiliary(whole, dataset.data)[1]
            weights = dataset.weights if weights is None else weights
            rows = Rows(dataset.given, (False,) * len(jax.tree.leaves(dataset.given)))
        else:
            if given is None and fit.origin is not None and origin_of(fit).dataset.given is not None:
                raise ValueError("the fit has covariates. Give those of the observations: given=….")
            rows = rows_of(fit, model, given, None, "given")
        fit._warn()
        layout, values, log_weights = fit.layout, on_host(fit.values), np.zeros(1)
        free = np.where(fit.converged, np.asarray(fit.free)[None], np.nan)
    else:
        raise TypeError(f"expected a Fit or what predictive_distribution returns, got {kind_of(fit)}.")
    read = read_rule(rule, level, model)
    arrays = check_dataset(model, data, None, weights)
    count = len(jax.tree.leaves(arrays.data)[0])
    if rows.given is not None and rows.count != count:
        raise ValueError(f"data has {count} observations, and given {rows.count} rows of covariates.")
    codes = None if clusters is None else clusters_of(clusters, count)
    scores = score_rows(model, layout, values, free, log_weights, rows, arrays.data, read)
    weights = None if arrays.weights is None else np.asarray(arrays.weights)
    return PredictiveScores(scores, weights, codes, read.title)


def clusters_of(clusters: Any, count: int) -> Int[np.ndarray, " n"]:
    """Codes of the clusters of so many observations."""
    codes = cluster_codes(clusters)
    if len(codes) != count:
        raise ValueError(f"clusters has shape ({len(codes)},), expected ({count},), one label for each observation.")
    return codes
