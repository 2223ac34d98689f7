"""`predictive_distribution`: the distribution of new observations, and intervals for these, as far as the parameters are known.

With θ̂ in place of the parameters the distribution of a new observation is too narrow: limits at its quantiles are exceeded more
often than stated, by an amount of order 1/n. Two remedies:

- Average the model over the values that the parameters may have, weighted by their likelihood, and by the prior where the model
  has one. Without, that is the Bayesian predictive distribution with a flat prior for the unconstrained u. Of location-scale
  models, with u the logarithm of the scale, its intervals have their level exactly (Severini, Mukerjee and Ghosh 2002): those of a
  normal regression are Student's. Points u_d are drawn from a t distribution about û and weighted by the ratio of the likelihood to
  its density (importance sampling).
- Simulate how often a limit is exceeded where the estimate is the truth, and move it until that is right: `CalibratedRow`.
"""

import functools
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from fisher_jax.blocks import map_blocks, vmap_in_blocks
from fisher_jax.errors import (
    call_user,
    check_choice,
    check_count,
    check_key,
    check_level,
    entry_point,
    require,
    shown,
    to_numpy,
    warn,
)
from fisher_jax.fitting import covariance as covariances
from fisher_jax.fitting.covariance import CovarianceKind
from fisher_jax.fitting.map_fits import check_fit
from fisher_jax.fitting.padding import class_size
from fisher_jax.fitting.result import Fit, origin_of
from fisher_jax.inference.bootstrap import Bootstrap
from fisher_jax.inference.predicted_rows import Rows, check_no_effects, model_or_given, rows_of
from fisher_jax.inference.row_distributions import CalibratedRow, MixtureOfRow, RowDistribution, check_distribution
from fisher_jax.models.dataset import Dataset, as_unmasked_arrays
from fisher_jax.models.drawing import check_sampler
from fisher_jax.models.likelihood import likelihood, terms_at
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.programs import jit_with_model
from fisher_jax.numerics.array_namespace import is_traced, on_host
from fisher_jax.reporting import Report, Reported, ReportTable, percent

PredictiveMethod = Literal["likelihood", "normal", "bootstrap", "plug-in"]
DEGREES_OF_FREEDOM = 5.0  # of the t distribution of the points: heavier tails than a likelihood that is skewed
FEW_POINTS = 100  # an effective number below which quantiles in the tails rest on a few points
SHOWN = 30  # rows of a report
ENTRIES = 2**21  # points times rows in memory at once


@dataclass(frozen=True, repr=False)
class PredictiveDistribution(Reported):
    """The distribution of a new observation for each of m rows of covariates; printed as a table of quantiles.

    Attributes
    ----------
    model : Model
    layout, values, free : Layout, list of arrays, array (d, p)
        The points θ_d, on the unconstrained scale; one point is the estimate itself.
    log_weights : array (d,)
        Logarithms of their weights, which add up to one.
    center : array (p,)
        The estimate û.
    rows : Rows
        The covariates.
    method : str
        As given.
    level : float
        The probability aimed at by the intervals of the report.
    description : str
        Where the points come from.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> y = jnp.array([4.1, 5.2, 3.9, 4.4, 5.0, 4.7, 4.2, 5.3])
    >>> fit = fj.fit(fj.families.normal, None, y)
    >>> new = fj.predictive_distribution(fit)
    >>> print(new.intervals(0.9).round(1), new.cdf(5.5).round(2))
    [[3.5 5.7]] [0.92]
    """

    model: Model
    layout: Layout
    values: Values
    free: np.ndarray
    log_weights: np.ndarray
    center: np.ndarray
    rows: Rows
    method: str
    level: float
    description: str

    @property
    def effective_points(self) -> float:
        """1/Σ w²: how many points of equal weight would give as little noise; 1 for the estimate by itself."""
        return float(1.0 / np.sum(np.exp(2.0 * self.log_weights)))

    def __len__(self) -> int:
        return self.rows.count

    def __bool__(self) -> bool:
        return True  # or Python would ask for the length

    @entry_point
    def quantiles(self, levels: ArrayLike) -> Float[np.ndarray, "m *k"]:
        """Quantiles of the new observations at one level (m,) or at several (m, k), each strictly between 0 and 1.

        Of whole numbers the least y with P(Y ≤ y) ≥ level.
        """
        array = to_numpy(levels, "levels")
        if array.ndim > 1 or array.dtype.kind not in "iuf" or not np.all((array > 0) & (array < 1)):
            raise ValueError(f"levels={shown(levels)} must be a number strictly between 0 and 1, or several.")
        flat = np.atleast_1d(array).astype(self.free.dtype)

        def of_rows(given: PyTree) -> Array:
            return _quantiles(self.model, self.layout, *self._points, given, flat)

        return self._over_rows(of_rows)[:, 0] if array.ndim == 0 else self._over_rows(of_rows)

    @entry_point
    def intervals(self, level: float | None = None) -> Float[np.ndarray, "m 2"]:
        """Equal-tailed prediction intervals (m, 2) of one new observation in each row.

        Of whole numbers both ends belong to the interval, whose probability is then `level` or more.
        """
        level = self.level if level is None else level
        check_level(level)
        tail = 0.5 * (1.0 - float(level))
        return self.quantiles(np.array([tail, 1.0 - tail]))

    @entry_point
    def cdf(self, y: ArrayLike) -> Float[np.ndarray, " m"]:
        """P(Y ≤ y) of each row, for one y or one for each row (m,); without covariates for any number of them."""
        array = to_numpy(y, "y")
        count = len(array) if self.rows.given is None and array.ndim == 1 else self.rows.count
        if array.dtype.kind not in "biuf" or array.shape not in ((), (count,)):
            raise ValueError(f"y={shown(y)} must be a number, or an array ({count},) with one for each row.")
        array = np.broadcast_to(array, (count,)).astype(self.free.dtype)
        arguments = self.model, self.layout, *self._points
        return np.asarray(
            map_blocks(lambda index: _tails(*arguments, self.rows.take(index), array[index]), count, self._block)
        )[:, 0]

    @entry_point
    def log_density(self, y: PyTree) -> Float[np.ndarray, " m"]:
        """log Σ w_d p(y; θ_d) of one observation for each row, a pytree (m, …); without covariates of any number of them."""
        if self.method == "bootstrap":
            raise ValueError('method="bootstrap" gives limits and no density. Use method="likelihood".')
        y = as_unmasked_arrays(y, "y")
        counts = {len(leaf) if np.ndim(leaf) else 0 for leaf in jax.tree.leaves(y)}
        count = counts.pop() if len(counts) == 1 else 0
        if not count or (self.rows.given is not None and count != self.rows.count):
            raise ValueError(f"y must have a leading axis with one observation for each of {self.rows.count} rows.")
        arguments = self.model, self.layout, self.values, self.free, self.log_weights
        return np.asarray(
            map_blocks(
                lambda index: _log_densities(
                    *arguments, self.rows.take(index), jax.tree.map(lambda leaf: np.asarray(leaf)[index], y)
                ),
                count,
                self._block,
            )
        )

    @entry_point
    def mean(self) -> Float[np.ndarray, " m"]:
        """The mean of a new observation in each row."""
        if self.model.mean is None:
            raise ValueError("the model has no mean. Give Model(…, mean=function of params).")
        if self.method == "bootstrap":
            raise ValueError('method="bootstrap" gives limits and no mean. Use method="likelihood".')
        return self._over_rows(lambda given: _means(self.model, self.layout, *self._points[1:4], given))

    @entry_point
    def sample(self, key: Array, num_samples: int = 1000) -> PyTree:
        """Draws (s, m, …) of new observations in all rows, which share the parameters of a draw.

        A function of several new observations (their sum, the largest) has its total uncertainty over the draws.
        """
        check_key(key)
        count = check_count(num_samples, 1, "num_samples", entries=self.rows.count)
        check_sampler(self.model, self.rows.given)
        if self.method == "bootstrap":
            raise ValueError('method="bootstrap" gives limits of one observation at a time. Use method="likelihood".')
        return jax.device_get(
            _draws(self.model, self.layout, count, *self._points[1:4], self.rows.given, self.rows.count, key)
        )

    @property
    def row_labels(self) -> Any:
        """Labels of the rows, such as the index of a pandas table; else their numbers."""
        return range(self.rows.count) if self.rows.labels is None else self.rows.labels

    @entry_point
    def to_frame(self, level: float | None = None) -> Any:
        """A pandas DataFrame with the median and the ends of the interval of each row (needs the extra `frames`)."""
        pd = require("pandas", "frames")
        level = self.level if level is None else level
        check_level(level)
        columns = dict(zip(("median", "lower", "upper"), self._median_and_ends(level).T, strict=True))
        return pd.DataFrame(columns, index=pd.Index(self.row_labels, name="row"))

    def _median_and_ends(self, level: float) -> Float[np.ndarray, "m 3"]:
        tail = 0.5 * (1.0 - float(level))
        return self.quantiles(np.array([0.5, tail, 1.0 - tail]))

    def summary(self) -> Report:
        """The first thirty rows with their median and interval."""
        count = self.rows.count
        few = PredictiveDistribution(**{**vars(self), "rows": Rows(self.rows.take(slice(0, SHOWN)), self.rows.differs)})
        numbers = few._median_and_ends(self.level)
        titles = ("row", "median", *(f"{end} {percent(self.level)}" for end in ("lower", "upper")))
        rows = [(str(name), *row) for name, row in zip(self.row_labels, numbers, strict=False)]
        notes = [f"{count - SHOWN} more are not shown: see to_frame()."] if count > SHOWN else []
        table = ReportTable(titles, rows, keys=("median", "lower", "upper"))
        return Report("Prediction of new observations", [("Parameters", self.description)], [table], notes)

    @property
    def _points(self) -> tuple[bool, Values, Any, Any, Any]:
        """The arguments of the programs below that stand for the distribution."""
        return self.method == "bootstrap", self.values, self.free, self.log_weights, self.center

    @property
    def _block(self) -> int:
        """How many rows are taken at once."""
        return max(1, min(ENTRIES // len(self.free), class_size(self.rows.count)))

    def _over_rows(self, of_rows: Any) -> np.ndarray:
        return np.asarray(map_blocks(lambda index: of_rows(self.rows.take(index)), self.rows.count, self._block))


@entry_point
def predictive_distribution(
    fit: Fit,
    new: PyTree = None,
    *,
    kind: CovarianceKind | None = None,
    level: float = 0.95,
    method: PredictiveMethod = "likelihood",
    num_points: int = 4096,
    replicates: Bootstrap | None = None,
    model: Model | None = None,
) -> PredictiveDistribution:
    """The distribution of new observations at rows of covariates, and prediction intervals that allow for estimated parameters.

    `predict` is for what is estimated (a mean, a parameter, a quantile), whose error shrinks with the data; this is for an
    observation, whose own variation comes on top.

    Parameters
    ----------
    fit : Fit
        One fit, of a model whose observations are numbers and that has `log_cdf`, `log_survival` or `quantile`.
    new : pytree of arrays, or a table, optional
        Covariates, as for `predict`: by default the rows of the fit. A model without covariates has one row.
    kind : {"observed", "expected", "empirical", "sandwich"}, optional
        The covariance of ``method="normal"``, as for `Fit.covariance`; no other method takes one.
    level : float
        Probability of the intervals in reports.
    method : {"likelihood", "normal", "bootstrap", "plug-in"}
        "likelihood": the average of the model over the parameters, weighted by their likelihood, and by the prior where the model
        has one. "normal": the average over the normal approximation N(û, V) of the estimate on the unconstrained scale.
        "bootstrap": limits that are calibrated by `replicates` of the estimate, of continuous observations. "plug-in": the model at
        the estimate, as if that were the truth.
    num_points : int
        d, the points of a mixture: Sobol points, always the same. With 4096 the probability beyond a 95 % limit is right to some
        percent of itself.
    replicates : Bootstrap, optional
        Of this fit, by ``bootstrap(fit, key, method="parametric")``.
    model : Model, optional
        Needed where the fit no longer has its model.

    Returns
    -------
    PredictiveDistribution
        With `intervals()`, `quantiles()`, `cdf()`, `log_density()`, `mean()`, `sample()` and `to_frame()`. All are NaN where the
        fit did not converge, with a `FitWarning`.

    Raises
    ------
    ValueError, TypeError
        If the model has none of the functions needed, or the arguments do not fit together.

    Warns
    -----
    FitWarning
        If the fit failed; and if the weights of "likelihood" are worth fewer than a hundred points, as where the likelihood is far
        from normal or there are dozens of parameters.

    Notes
    -----
    How often such an interval contains the new observation, at nominal 95 % in a straight line with normal errors and n = 12:
    "plug-in" 87 %, "normal" 91 %, "likelihood" and "bootstrap" 95 %. "likelihood" is exact for location-scale models whose scale is
    declared positive, linear regressions among them; elsewhere the error of one-sided limits is of order 1/n, as that of "plug-in",
    but as a rule far smaller. "bootstrap", with replicates from the parametric bootstrap, leaves an error of smaller order, beside
    the noise of B replicates, in the tail probability some 1/√B of it. "normal" takes over the bias of estimated scales, and is for
    fits without data, or with a covariance of their own.

    All take the model as right. A covariance that is robust against a wrong variance does not repair the distribution of an
    observation: `predictive_scores` and `cross_validation` show how good it is. New observations are independent of those that were
    fitted, given the covariates. Intervals hold for one observation each; for functions of several take `sample`.

    Limits of whole numbers are whole numbers. Their probability is at least the level under the distribution that is predicted.

    Cost: d evaluations of the distribution function for each row and step of a bisection, of which there are some fifty; and of
    "likelihood" d evaluations of the log-likelihood.

    References
    ----------
    Severini, T. A., Mukerjee, R. and Ghosh, M. (2002), On an exact probability matching property of right-invariant priors,
    Biometrika 89, 952-957; Beran, R. (1990), Calibrating prediction regions, J. Amer. Statist. Assoc. 85, 715-723; Fonseca, G.,
    Giummolè, F. and Vidoni, P. (2014), Calibrating predictive distributions, J. Stat. Comput. Simul. 84, 373-383.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> model = fj.linked(fj.families.normal, lambda p, x: {"loc": p["a"] + p["b"] * x, "scale": p["scale"]},
    ...                   constraints={"scale": fj.positive})
    >>> x, y = jnp.arange(6.0), jnp.array([1.1, 1.9, 3.2, 3.7, 5.4, 5.8])
    >>> fit = fj.fit(model, {"a": 0.0, "b": 1.0, "scale": 1.0}, y, given=x)
    >>> new = jnp.array([2.5, 8.0])
    >>> print(fj.predictive_distribution(fit, new, method="plug-in").intervals(0.9).round(1))
    [[3.1 3.9]
     [8.5 9.3]]
    >>> print(fj.predictive_distribution(fit, new).intervals(0.9).round(1))
    [[ 2.8  4.2]
     [ 7.9 10. ]]
    """
    check_fit(fit)
    check_level(level)
    check_choice(method, get_args(PredictiveMethod), "method")
    if fit.has_batch or is_traced(fit):
        raise TypeError(
            "takes one fit whose numbers are known. Take one of yours, as fits[3], outside of transformations."
        )
    model = model_or_given(fit, model)
    check_no_effects(model)
    check_distribution(model)
    if (method == "bootstrap") != (replicates is not None):
        raise ValueError(
            'method="bootstrap" needs replicates=bootstrap(fit, key, method="parametric"), and no other takes them.'
        )
    if kind is not None and method != "normal":
        raise ValueError(f'kind={kind!r} is for method="normal", not {method!r}. Leave it out.')
    count = check_count(num_points, 16, "num_points", entries=fit.num_parameters + 2)
    rows = rows_of(fit, model, new, None)
    dtype, center = fit.layout.dtype, np.asarray(fit.free)
    which = fit._check(kind) if method == "normal" else "observed"
    fit._warn(which if method == "normal" else None)
    free, log_weights, description = center[None], np.zeros(1), "the estimate, as if it were the truth"
    if method == "bootstrap":
        free, description = _replicates_of(fit, model, replicates)
        log_weights = np.full(len(free), -np.log(len(free)))
    elif not fit.converged:
        free, description = np.full((1, len(center)), np.nan), f"none: {fit.status.label}"
    elif method == "normal":
        free, log_weights = normal_points(center, fit._computed(covariances.free_covariance, which), count)
        description = f"normal approximation, {fit.describe(which)}"
    elif method == "likelihood":
        free, log_weights = likelihood_points(fit, count)
        description = f"weighted by their likelihood, {count} points"
    result = PredictiveDistribution(
        *(model, fit.layout, on_host(fit.values), free.astype(dtype), log_weights.astype(dtype), center.astype(dtype)),
        *(rows, method, float(level), description),
    )
    if method == "likelihood" and fit.converged and not result.effective_points >= min(FEW_POINTS, count / 2):
        warn(
            f"the likelihood is far from normal: {count} points weigh as much as {result.effective_points:.0f}. Give more "
            'num_points, or use method="bootstrap".'
        )
    return result


def _replicates_of(fit: Fit, model: Model, replicates: Any) -> tuple[np.ndarray, str]:
    """The replicates of u that converged, and where they are from."""
    if not isinstance(replicates, Bootstrap):
        raise TypeError(f"replicates={shown(replicates)} must be what fisher_jax.bootstrap returns.")
    if replicates.fit.has_batch or not np.array_equal(replicates.fit.free, fit.free, equal_nan=True):
        raise ValueError("replicates are those of another fit. Give bootstrap(fit, …) of this one.")
    if model.quantile is None or model.discrete:
        raise ValueError(
            'method="bootstrap" calibrates the limits of continuous observations by the model\'s quantile function. Use '
            'method="likelihood".'
        )
    free = np.asarray(replicates.fits.free)[replicates.valid]
    if len(free) < 2:
        raise ValueError("fewer than two of the replicates converged.")
    return free, f"calibrated by {len(free)} replicates, {replicates.description}"


def _standard_points(count: int, dimension: int, degrees_of_freedom: float | None = None) -> np.ndarray:
    """Points (count, dimension) of the standard normal distribution, or of a t distribution.

    Scrambled Sobol points, always the same: an interval does not change from call to call.
    """
    from scipy.special import chdtri, ndtri
    from scipy.stats import qmc

    dimensions = dimension + (degrees_of_freedom is not None)
    points = qmc.Sobol(dimensions, seed=0).random_base2((count - 1).bit_length())[:count]
    points = np.clip(points, 2.0**-54, 1.0 - 2.0**-53)
    standard = ndtri(points[:, :dimension])
    if degrees_of_freedom is not None:
        standard *= np.sqrt(degrees_of_freedom / chdtri(degrees_of_freedom, points[:, dimension:]))
    return standard


def _cholesky(covariance: np.ndarray) -> np.ndarray:
    """The lower factor; NaN where there is none."""
    try:
        return np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        return np.full_like(covariance, np.nan)


def normal_points(center: np.ndarray, covariance: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of N(û, V) and their log-weights, all equal."""
    standard = _standard_points(count, len(center))
    return center + standard @ _cholesky(covariance).T, np.full(count, -np.log(count))


def likelihood_points(fit: Fit, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of a t distribution about û, and the logarithms of weights by which they are those of the likelihood."""
    model, dataset = origin_of(fit)
    center, p = np.asarray(fit.free), fit.num_parameters
    covariance = np.asarray(fit._computed(covariances.free_covariance, fit._check("observed")))
    standard = _standard_points(count, p, DEGREES_OF_FREEDOM)
    free = center + standard @ _cholesky(covariance).T
    log_proposal = -0.5 * (DEGREES_OF_FREEDOM + p) * np.log1p(np.sum(standard**2, axis=1) / DEGREES_OF_FREEDOM)
    log_likelihoods = np.asarray(
        _log_likelihoods(model, fit.layout, fit.values, dataset, free.astype(fit.layout.dtype)), np.float64
    )
    # A point at which the likelihood is not a number lies outside of what the model can have: it does not count.
    log_weights = np.where(np.isnan(log_likelihoods), -np.inf, log_likelihoods) - log_proposal
    log_weights -= np.max(log_weights)
    return free, log_weights - np.log(np.sum(np.exp(log_weights)))


@functools.partial(jit_with_model, static_argnums=(0, 1), level=1)
def _log_likelihoods(
    model: Model, layout: Layout, values: Values, dataset: Dataset, free: Float[Array, "d p"]
) -> Float[Array, " d"]:
    target = likelihood(model, layout, values, dataset)
    return vmap_in_blocks(lambda u: jnp.sum(terms_at(target, u)), free, ENTRIES // max(1, target.num_terms))


# --- programs over rows -----------------------------------------------------------------------------------------------


def mixture_of_row(
    model: Model, layout: Layout, values: Values, free: Any, log_weights: Any, z: tuple[PyTree, ...]
) -> MixtureOfRow:
    """The mixture for one row; NaN where a point is."""
    params = jax.vmap(lambda u: layout.constrain(u, values))(free)
    log_weights = jnp.where(jnp.any(jnp.isnan(free)), jnp.nan, log_weights)
    return MixtureOfRow(model, params, log_weights, z)


def _row(
    model: Model, layout: Layout, calibrated: bool, values: Values, free: Any, log_weights: Any, center: Any, z: Any
) -> RowDistribution:
    if not calibrated:
        return mixture_of_row(model, layout, values, free, log_weights, z)
    params = jax.vmap(lambda u: layout.constrain(u, values))(free)
    return CalibratedRow(model, params, layout.constrain(center, values), z, layout.dtype)


def map_rows(function: Any, given: PyTree, *each: PyTree, count: int | None = None) -> Any:
    """`function(z, *each)` of every row, z being (covariates,) or empty; of `count` rows where there is nothing else to count."""
    if given is None:
        return jax.vmap(lambda *each: function((), *each), axis_size=count)(*each)
    return jax.vmap(lambda z, *each: function((z,), *each))(given, *each)


@functools.partial(jit_with_model, static_argnums=(0, 1, 2), level=1)
def _quantiles(
    model: Model,
    layout: Layout,
    calibrated: bool,
    values: Any,
    free: Any,
    log_weights: Any,
    center: Any,
    given: PyTree,
    levels: Any,
) -> Float[Array, "m k"]:
    def of_row(z: tuple[PyTree, ...]) -> Float[Array, " k"]:
        return jax.vmap(_row(model, layout, calibrated, values, free, log_weights, center, z).quantile)(levels)

    return map_rows(of_row, given, count=1)


@functools.partial(jit_with_model, static_argnums=(0, 1, 2), level=1)
def _tails(
    model: Model,
    layout: Layout,
    calibrated: bool,
    values: Any,
    free: Any,
    log_weights: Any,
    center: Any,
    given: PyTree,
    y: Any,
) -> Float[Array, "m 2"]:
    def of_row(z: tuple[PyTree, ...], y: Array) -> Float[Array, " 2"]:
        return jnp.stack(_row(model, layout, calibrated, values, free, log_weights, center, z).tails(y))

    return map_rows(of_row, given, y)


@functools.partial(jit_with_model, static_argnums=(0, 1), level=1)
def _log_densities(
    model: Model, layout: Layout, values: Any, free: Any, log_weights: Any, given: PyTree, y: PyTree
) -> Float[Array, " m"]:
    return map_rows(lambda z, y: mixture_of_row(model, layout, values, free, log_weights, z).log_density(y), given, y)


@functools.partial(jit_with_model, static_argnums=(0, 1), level=1)
def _means(model: Model, layout: Layout, values: Any, free: Any, log_weights: Any, given: PyTree) -> Float[Array, " m"]:
    return map_rows(lambda z: mixture_of_row(model, layout, values, free, log_weights, z).mean(), given, count=1)


@functools.partial(jit_with_model, static_argnums=(0, 1, 2, 7), level=1)
def _draws(
    model: Model,
    layout: Layout,
    count: int,
    values: Any,
    free: Any,
    log_weights: Any,
    given: PyTree,
    rows: int,
    key: Array,
) -> PyTree:
    # A point is found by bisection of the cumulative weights: `jax.random.categorical` would draw a number for each of them.
    cumulative = jnp.cumsum(jnp.exp(log_weights))

    def draw(key: Array) -> PyTree:
        point, noise = jax.random.split(key)
        level = cumulative[-1] * jax.random.uniform(point, dtype=cumulative.dtype)
        params = layout.constrain(free[jnp.searchsorted(cumulative, level, side="right")], values)

        def of_row(z: tuple[PyTree, ...], key: Array) -> PyTree:
            return call_user(model.sample, (key, params, *z), "sample")  # type: ignore[arg-type]

        return map_rows(of_row, given, jax.random.split(noise, rows))

    return vmap_in_blocks(draw, jax.random.split(key, count), 2**14 // rows)
