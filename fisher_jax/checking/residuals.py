"""`residuals`: what a fitted model leaves unexplained of each observation.

Quantile residuals (Dunn and Smyth 1996) are r = Φ⁻¹(u) with u = F(y; θ̂, z): standard normal under the model, whatever the family
and the covariates, but for the estimation of θ. Where y stands for an interval of u, a jump of F at a count, all above F(time) of a
censored duration, u is drawn uniformly from it, so that r is standard normal there, too. For dependent data F is that of y_t given
the values before, and the residuals are independent.
"""

import functools
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.checking.integral_transform import integral_transform
from fisher_jax.checking.quantile_comparison import QuantileComparison, beta_envelope, standard_quantile
from fisher_jax.checking.variances import UNIT_DEVIANCES, VARIANCES, family_at, name_of_family
from fisher_jax.errors import call_user, check_choice, check_key, check_level, entry_point, require
from fisher_jax.fitting.map_fits import check_fit, with_data
from fisher_jax.fitting.result import Fit, origin_of
from fisher_jax.inference.replicates import whole_weights
from fisher_jax.inference.row_distributions import has_known_intervals
from fisher_jax.latent.grouped import Grouped
from fisher_jax.models.auxiliary import without_auxiliary
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.model import Model
from fisher_jax.reporting import Report, Reported, ReportTable, number

ResidualKind = Literal["quantile", "deviance", "pearson", "response"]


@dataclass(frozen=True, repr=False, eq=False)
class Residuals(Reported):
    """Residuals of each observation. They print as their moments.

    Attributes
    ----------
    values : array (n,), or (B, n) of many fits
        NaN for observations of weight zero, and where the distribution function is not a number.
    fitted : array like `values`, or None
        The mean of each observation under the fitted model; None where the model does not know it.
    weights : array (n,) or (B, n), or None
        The weights of the fit, frequencies. An observation that counts three times has one residual.
    kind : str
    is_randomized : bool
        Whether some were drawn from an interval; then another key gives others.
    """

    values: np.ndarray
    fitted: np.ndarray | None
    weights: np.ndarray | None
    kind: ResidualKind
    is_randomized: bool

    @property
    def has_batch(self) -> bool:
        """Whether these are of many fits."""
        return self.values.ndim == 2

    @entry_point
    def moments(self) -> dict[str, Any]:
        """Mean, standard deviation, skewness and kurtosis (3 of a normal distribution) of the residuals of each fit."""
        weights = np.where(np.isnan(self.values), 0.0, 1.0 if self.weights is None else self.weights)
        total = weights.sum(axis=-1)
        values = np.where(weights > 0, self.values, 0.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.sum(weights * values, axis=-1) / total
            centred = values - mean[..., None]
            second, third, fourth = (np.sum(weights * centred**k, axis=-1) / total for k in (2, 3, 4))
            deviation = np.sqrt(second * total / (total - 1))
            shape = {"skewness": third / second**1.5, "kurtosis": fourth / second**2}
        return {"mean": mean, "standard deviation": deviation, **shape}

    @entry_point
    def means_of_groups(self, against: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Means of the residuals of one fit in groups of neighbours, with their standard errors.

        Parameters
        ----------
        against : array (n,)
            By which the residuals are ordered, and cut into about √n groups of as many rows, at most twenty.

        Returns
        -------
        three arrays (g,)
            The means of `against` and of the residuals in each group, weighted as the fit was, and the standard errors of the
            latter.
        """
        if self.has_batch:
            raise ValueError(f"these are of {len(self.values)} fits. Take those of one: residuals(fits[3]).")
        rows = np.flatnonzero(~np.isnan(self.values))
        places, values = np.asarray(against, float)[rows], self.values[rows]
        weights = np.ones(len(rows)) if self.weights is None else self.weights[rows]
        means = []
        for k in np.array_split(np.argsort(places, kind="stable"), max(1, min(20, int(len(rows) ** 0.5)))):
            if (total := weights[k].sum()) > 1:
                place, mean = (np.average(part[k], weights=weights[k]) for part in (places, values))
                variance = np.sum(weights[k] * (values[k] - mean) ** 2) / (total - 1)
                means.append((place, mean, (variance / total) ** 0.5))
        return tuple(np.array(means).reshape(-1, 3).T)  # type: ignore[return-value]

    def summary(self) -> Report:
        """How many residuals there are, of what kind, and their moments; of many fits the medians of these."""
        counted = (
            np.ones(self.values.shape) if self.weights is None else np.broadcast_to(self.weights, self.values.shape)
        )
        n = np.unique(counted.sum(axis=-1))
        kind = f"{self.kind}, randomized" if self.is_randomized else self.kind
        facts = [("Observations", " to ".join(f"{end:g}" for end in dict.fromkeys((n[0], n[-1])))), ("Kind", kind)]
        caption = ""
        if self.has_batch:
            facts.insert(0, ("Fits", str(len(self.values))))
            caption = "medians over the fits"
        normal = (0.0, 1.0, 0.0, 3.0)
        rows = []
        for (name, value), expected in zip(self.moments().items(), normal, strict=True):
            middle = float(np.nanmedian(value)) if np.any(~np.isnan(value)) else np.nan
            rows.append((name, middle, expected) if self.kind == "quantile" else (name, middle))
        columns = ("", "residuals", "standard normal") if self.kind == "quantile" else ("", "residuals")
        notes = []
        if num_missing := int(np.sum(np.isnan(self.values) & (counted > 0))):
            notes.append(f"{num_missing} residuals are not numbers, and are left out.")
        if not self.has_batch:
            finite = self.values[~np.isnan(self.values)]
            if len(finite):
                places = int(np.nanargmin(self.values)), int(np.nanargmax(self.values))
                least, greatest = (f"{number(self.values[k])} (observation {k})" for k in places)
                notes.append(f"the least is {least}, the greatest {greatest}.")
        return Report("Residuals", facts, [ReportTable(columns, rows, caption)], notes)

    @entry_point
    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each observation, of many fits for each fit and observation (extra `frames`)."""
        pd = require("pandas", "frames")
        columns = {"residual": self.values.ravel()}
        if self.fitted is not None:
            columns["fitted"] = self.fitted.ravel()
        if not self.has_batch:
            return pd.DataFrame(columns).rename_axis("observation")
        index = pd.MultiIndex.from_product([range(size) for size in self.values.shape], names=["fit", "observation"])
        return pd.DataFrame(columns, index=index)

    @entry_point
    def quantile_comparison(self, level: float = 0.95) -> QuantileComparison:
        """The residuals in order, beside the quantiles of the standard normal distribution, with an envelope.

        Parameters
        ----------
        level : float
            The probability with which each ordered residual lies inside the envelope, one by one, if θ̂ were the truth.

        Returns
        -------
        QuantileComparison
            `fisher_jax.plots.quantiles` and `fisher_jax.plots.worm` draw it.

        Raises
        ------
        ValueError
            If these are of many fits, or no quantile residuals: others have no common distribution. If weights are not whole
            numbers; or, of residuals that are drawn, greater than one: each of several equal observations has its own.
        """
        check_level(level)
        if self.has_batch or self.kind != "quantile":
            raise ValueError("needs the quantile residuals of one fit: residuals(fit), or residuals(fits[3], key=…).")
        rows = np.flatnonzero(~np.isnan(self.values))
        if self.weights is not None:
            times = whole_weights(self.weights)
            if self.is_randomized and times.max() > 1:
                raise ValueError(
                    "a weight stands for several equal observations, each of which has a drawn residual of its own, but here they "
                    "have one. Repeat the rows in place of weights, or give quantile_comparison(fit)."
                )
            rows = np.repeat(rows, times[rows])
        order = rows[np.argsort(self.values[rows], kind="stable")]
        n = len(order)
        positions = np.arange(1, n + 1) / (n + 1)
        expected = standard_quantile(np.log(positions) - np.log1p(-positions), "normal")
        lower, upper = standard_quantile(beta_envelope(n, level), "normal")
        observed = self.values[order]
        return QuantileComparison(expected, observed, lower, upper, order, "normal", float(level), "order statistics")


@entry_point
def residuals(fit: Fit, *, kind: ResidualKind = "quantile", key: Array | None = None) -> Residuals:
    """Residuals of each observation under a fitted model: by its distribution function, deviance, variance or mean.

    Parameters
    ----------
    fit : Fit
        With its data; or many, as `fit_batch` returned them.
    kind : {"quantile", "deviance", "pearson", "response"}
        Φ⁻¹(F(y; θ̂, z)), standard normal under the model; ± the square root of the unit deviance 2 (log p(y; saturated) − log p(y)),
        with the sign of y − μ; (y − μ) / √V, V the variance of y; or y − μ, in the unit of y, μ the mean of y. All at the estimate.
    key : jax.random.key, optional
        Needed by quantile residuals of counts and of censored observations, which are drawn. Of many fits those of the k-th are
        drawn with ``jax.random.fold_in(key, k)``.

    Returns
    -------
    Residuals
        It prints as the moments. `fisher_jax.plots.residuals` draws them over the fitted means or a covariate, `plots.quantiles`
        and `plots.worm` over normal quantiles.

    Raises
    ------
    ValueError, TypeError
        If the model lacks what the kind needs: a distribution function (`log_cdf`, or else `quantile`), a mean, or a family whose
        variance or deviance is known.

    Notes
    -----
    Quantile residuals are accurate to the last digits in both tails where the model has `log_cdf` and `log_survival`. With only one
    of them the other tail ends where F rounds to 0 or 1 (at 8.2 in float64) and is infinite beyond; with only a quantile function F
    is its inverse by bisection. Those of a `dependent` model are one step ahead: it needs ``log_cdf=`` of its terms.

    They are standard normal if the parameters are the true ones; at the estimate they are somewhat too regular, of which
    `goodness_of_fit` takes account. Deviance and Pearson residuals are near normal where the mean of a count is not small.
    Deviance residuals are known for normal, gamma, exponential, inverse Gaussian, Poisson, negative binomial, geometric, Bernoulli
    and binomial families.

    References
    ----------
    Dunn, P. K. and Smyth, G. K. (1996), Randomized quantile residuals, J. Comput. Graph. Statist. 5, 236-244; McCullagh, P. and
    Nelder, J. A. (1989), Generalized Linear Models, 2nd ed., section 2.4.

    Examples
    --------
    >>> import fisher_jax as fj, jax, jax.numpy as jnp
    >>> fit = fj.fit(fj.families.exponential, {"rate": 1.0}, jnp.array([1.0, 2.0, 0.3, 0.1]))
    >>> print(fj.residuals(fit).values.round(2))
    [ 0.5   1.31 -0.53 -1.22]
    >>> print(fj.residuals(fit, kind="pearson").values.round(2))
    [ 0.18  1.35 -0.65 -0.88]
    """
    from scipy.special import ndtri_exp

    check_fit(fit)
    check_choice(kind, get_args(ResidualKind), "kind")
    if key is not None:
        check_key(key)
    model, dataset = origin_of(fit)
    fit._warn()
    weights = None if dataset.weights is None else np.asarray(dataset.weights, float)
    if kind != "quantile":
        fitted, values = (np.asarray(part, float) for part in with_data(fit, MeanResiduals(kind)))
        if weights is not None:
            values = np.where(weights > 0, values, np.nan)
        return Residuals(values, fitted, weights, kind, False)
    transform = integral_transform(fit)
    is_wide = bool(np.any(transform.is_wide))
    if is_wide and key is None:
        reason = "counts" if model.discrete else "observations that are known to lie in an interval only"
        raise ValueError(f"quantile residuals of {reason} are drawn. Give key=jax.random.key(0).")
    position: Any = 0.5
    if is_wide:  # where u lies in the interval of each observation
        shape = transform.log_low.shape
        keys: Any = key
        if fit.has_batch:
            keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(keys, jnp.arange(shape[0]))
        above_zero = jnp.finfo(jax.dtypes.canonicalize_dtype(float)).tiny
        draw = functools.partial(jax.random.uniform, shape=shape[-1:], minval=above_zero)
        position = np.asarray(jax.vmap(draw)(keys) if fit.has_batch else draw(keys), float)
    log_u, log_above = transform.at(position)
    # From the smaller of u and 1 − u, which has the digits.
    values = np.where(log_u < log_above, ndtri_exp(log_u), -ndtri_exp(log_above))
    means = np.asarray(with_data(fit, Means()), float) if _has_means(fit) else None
    return Residuals(values, means, weights, kind, is_wide)


def _has_means(fit: Fit) -> bool:
    """Whether the model has a mean for each observation that is one number."""
    model, dataset = origin_of(fit)
    if model.is_dependent or model.mean is None or isinstance(dataset.data, Grouped):
        return False
    one, given = fit, dataset.given
    if fit.has_batch:
        one, given = fit[0], dataset.one(0).given
    z = () if given is None else (jax.tree.map(lambda leaf: leaf[0], given),)
    mean = jax.eval_shape(lambda: call_user(model.mean, (one.params, *z), "mean"))  # type: ignore[arg-type]
    return jax.tree_util.all_leaves([mean]) and mean.shape == ()  # that of a category is a vector


def mean_at(model: Model, params: PyTree, z: tuple[PyTree, ...]) -> Array:
    """The mean of an observation, a scalar."""
    mean = call_user(model.mean, (params, *z), "mean")  # type: ignore[arg-type]
    if not jax.tree_util.all_leaves([mean]) or jnp.shape(mean) != ():
        raise ValueError("the mean of an observation must be one number here, and this model's is not.")
    return jnp.asarray(mean)


@dataclass(frozen=True)
class Means:
    """The mean of each observation of a fit, for `map_fits.with_data`."""

    def __call__(self, fit: Fit, model: Model, dataset: Dataset) -> Float[Array, " n"]:
        params, given = fit.layout.assemble(fit.values), () if dataset.given is None else (dataset.given,)
        model, _ = without_auxiliary(model, dataset.data)
        n = jax.tree.leaves(dataset.data)[0].shape[0]
        return jax.vmap(lambda row, *z: mean_at(model, params, z))(jnp.arange(n), *given)


@dataclass(frozen=True)
class MeanResiduals:
    """The mean of each observation of a fit, and its residual of a kind about it, for `map_fits.with_data`.

    `name` is that of what needs them, in messages.
    """

    kind: str
    name: str = ""

    def __call__(self, fit: Fit, model: Model, dataset: Dataset) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        params, given = fit.layout.assemble(fit.values), () if dataset.given is None else (dataset.given,)
        model, data = without_auxiliary(model, dataset.data)
        check_mean_residuals(model, params, data, dataset.given, self.kind, self.name or f'kind="{self.kind}"')
        family = name_of_family(model)

        def of_one(y: PyTree, *z: PyTree) -> tuple[Array, Array]:
            mean = mean_at(model, params, z)
            (y,) = jax.tree.leaves(y)
            difference = jnp.asarray(y, mean.dtype) - mean
            if self.kind == "response":
                return mean, difference
            of_family = family_at(model, params, z)[1]
            if self.kind == "pearson":
                return mean, difference / jnp.sqrt(VARIANCES[family](of_family, mean))
            deviance = UNIT_DEVIANCES[family](of_family, mean, jnp.asarray(y, mean.dtype))
            # It vanishes at y = μ, where rounding may leave it negative.
            return mean, jnp.sign(difference) * jnp.sqrt(jnp.maximum(deviance, 0.0))

        return jax.vmap(of_one)(data, *given)


def check_mean_residuals(model: Model, params: PyTree, data: PyTree, given: PyTree, kind: str, name: str) -> None:
    """Raise where a model has no residuals about its mean of a kind, which `name` needs."""
    if model.is_dependent or isinstance(data, Grouped) or model.parts or model.mean is None:
        raise ValueError(
            f"{name} needs the mean of each observation, which this model does not have. Give Model(…, mean=function of params), "
            "or take quantile residuals, which need a distribution function."
        )
    leaves = jax.tree.leaves(data)
    if len(leaves) != 1 or jnp.ndim(leaves[0]) != 1 or has_known_intervals(model, params, data, given):
        raise ValueError(
            f"{name} is of observations that are one number each, which is known. Quantile residuals are of censored ones, too."
        )
    tables: dict[str, dict[str, Any]] = {"pearson": VARIANCES, "deviance": UNIT_DEVIANCES}
    of_families = tables.get(kind)
    if of_families is not None and name_of_family(model) not in of_families:
        of_what = "variance" if kind == "pearson" else "saturated model"
        raise ValueError(
            f"{name} needs the {of_what} of a family, which is known of {', '.join(of_families)}. Quantile residuals need a "
            "distribution function only."
        )
