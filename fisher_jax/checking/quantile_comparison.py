"""`quantile_comparison`: ordered observations beside the quantiles that the fitted model expects of them, with an envelope.

Under the model u = F(y; θ) is uniform, whatever the covariates, so that observations with different covariates are compared on one
standard scale (Coles 2001, section 6.2.3: Gumbel for extreme values, exponential for excesses).
"""

import functools
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.checking.integral_transform import check_transform, integral_transform
from fisher_jax.errors import check_choice, check_count, check_key, check_level, entry_point, require
from fisher_jax.fitting.map_fits import check_fit
from fisher_jax.fitting.result import Fit, Origin, origin_of
from fisher_jax.inference.replicates import refits_of_drawn, whole_weights
from fisher_jax.inference.row_distributions import quantile_of
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.model import Model, check_quantile
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.programs import jit_with_model
from fisher_jax.reporting import Report, Reported, ReportTable, percent

ComparisonScale = Literal["data", "gumbel", "exponential", "normal", "uniform"]
Envelope = Literal["order statistics", "simulated"]
_SCALE_OF_FAMILY: dict[str, ComparisonScale] = {
    "gev": "gumbel",
    "gumbel": "gumbel",
    "generalized_pareto": "exponential",
    "exponential": "exponential",
    "weibull": "exponential",
}
_SHOWN = 5  # rows of a report at each end


@dataclass(frozen=True, repr=False)
class QuantileComparison(Reported):
    """Ordered observations and the quantiles that the model expects of them. It prints as a table.

    Attributes
    ----------
    expected : array (n,)
        The model's quantiles at i/(n + 1), increasing.
    observed : array (n,)
        The observations on the same scale, increasing.
    lower, upper : arrays (n,)
        The envelope: between these each lies with probability `level` if the model is right, one by one.
    order : integer array (n,)
        The row of the data that each observation comes from.
    scale : str
        "data", or the standard distribution on whose scale both are.
    level : float
    envelope : str
        How the envelope was made.
    """

    expected: np.ndarray
    observed: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    order: np.ndarray
    scale: str
    level: float
    envelope: str

    @property
    def outside(self) -> np.ndarray:
        """Which of the ordered observations lie outside the envelope, as truths (n,)."""
        return (self.observed < self.lower) | (self.observed > self.upper)

    def summary(self) -> Report:
        """How many observations lie outside, and the least and greatest of them."""
        n, count = len(self.observed), int(np.sum(self.outside))
        facts = [
            (
                "Observations",
                f"{n}, on the scale of the {'data' if self.scale == 'data' else f'{self.scale} distribution'}",
            ),
            ("Envelope", f"{percent(self.level)} for each observation by itself, by {self.envelope}"),
            ("Outside", f"{count}; {(1 - self.level) * n:.3g} are expected"),
        ]
        shown = range(n) if n <= 2 * _SHOWN else [*range(_SHOWN), *range(n - _SHOWN, n)]
        columns = self.observed, self.expected, self.lower, self.upper
        rows = [(f"{k + 1}", *(column[k] for column in columns)) for k in shown]
        return Report("Quantiles", facts, [ReportTable(("rank", "observed", "expected", "lower", "upper"), rows)])

    @entry_point
    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each observation in increasing order (needs the extra `frames`)."""
        pd = require("pandas", "frames")
        columns = {name: getattr(self, name) for name in ("observed", "expected", "lower", "upper")}
        return pd.DataFrame(columns | {"row": self.order, "outside": self.outside}).rename_axis("rank")


@entry_point
def quantile_comparison(
    fit: Fit,
    *,
    scale: ComparisonScale | None = None,
    envelope: Envelope = "order statistics",
    key: Array | None = None,
    num_replicates: int = 200,
    level: float = 0.95,
) -> QuantileComparison:
    """Ordered observations beside the quantiles that the fitted model expects of them, as a quantile-quantile plot shows them.

    Parameters
    ----------
    fit : Fit
        One fit, with its data, of a model that has a distribution function, `log_cdf` or else `quantile`, and whose observations
        are numbers.
    scale : {"data", "gumbel", "exponential", "normal", "uniform"}, optional
        On which both are compared. By default "data", which needs `quantile`, where there are no covariates. Else F(yᵢ; θ̂, zᵢ)
        is taken to a standard distribution: "gumbel" for `families.gev` and `gumbel`, "exponential" for `generalized_pareto`,
        `exponential` and `weibull`, "normal" for others.
    envelope : {"order statistics", "simulated"}
        The distribution of uniform order statistics, Beta(i, n + 1 − i), as if θ̂ were the truth: somewhat too wide in the middle,
        since the fit follows the data. Or quantiles over data sets drawn from the fitted model, each fitted again.
    key : jax.random.key, optional
        Of the simulation.
    num_replicates : int
        How many data sets are simulated.
    level : float
        The probability with which each ordered observation lies inside, one by one.

    Returns
    -------
    QuantileComparison
        Prints as a table. `fisher_jax.plots.quantiles` draws it.

    Raises
    ------
    ValueError, TypeError
        If the model has no distribution function, or an argument is none of those described.

    Notes
    -----
    Plotting positions are i/(n + 1). Whole-number weights are so many equal observations. Of a discrete distribution u is taken
    in the middle of its step; the points then lie on steps themselves.

    References
    ----------
    Coles, S. (2001), An Introduction to Statistical Modeling of Extreme Values, sections 2.6.7 and 6.2.3; Atkinson, A. C. (1985),
    Plots, Transformations and Regression, section 4.2, for simulated envelopes.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> fit = fj.fit(fj.families.exponential, {"rate": 1.0}, jnp.array([1.0, 2.0, 0.3, 0.1]))
    >>> comparison = fj.quantile_comparison(fit)
    >>> print(comparison.expected.round(3), comparison.outside.sum())
    [0.19  0.434 0.779 1.368] 0
    """
    check_fit(fit)
    if fit.has_batch:
        raise TypeError("takes one fit. Take one of yours, as fits[3].")
    check_level(level)
    check_choice(envelope, get_args(Envelope), "envelope")
    origin = with_rows_for_weights(fit)
    model, dataset = origin
    check_transform(model, dataset)
    fit._warn()
    fit = replace(fit, origin=origin)
    y: Any = None if model.is_dependent else observations_of(dataset)
    logits = integral_transform(fit).logits()
    n = len(logits)  # of a series the number of its terms
    if scale is None:
        family = getattr(model, "family", model)
        has_quantile = model.quantile is not None
        scale = (
            "data"
            if dataset.given is None and has_quantile
            else _SCALE_OF_FAMILY.get(getattr(family, "name", ""), "normal")
        )
    check_choice(scale, get_args(ComparisonScale), "scale")
    if scale == "data":
        check_quantile(model)
    if scale == "data" and dataset.given is not None:
        raise ValueError(
            'scale="data" needs observations of one distribution, and these have covariates. Choose from '
            f"{', '.join(map(repr, get_args(ComparisonScale)[1:]))}, or leave it out."
        )

    def on_scale(logits: Float[np.ndarray, "..."], scale: ComparisonScale = scale) -> Float[np.ndarray, "..."]:
        if scale == "data":
            flat = quantiles_at(model, fit.layout, fit.values, np.ravel(logits), None)
            return np.asarray(flat, float).reshape(np.shape(logits))
        return standard_quantile(logits, scale)

    positions = np.arange(1, n + 1) / (n + 1)
    expected = on_scale(np.log(positions / (1 - positions)))
    order = np.argsort(y if scale == "data" else logits, kind="stable")
    observed = y[order] if scale == "data" else on_scale(logits[order])
    tails = 0.5 * (1 + np.array([-1.0, 1.0]) * float(level))
    words: str = envelope
    if envelope == "simulated":
        check_key(key)
        count = check_count(num_replicates, 20, "num_replicates", entries=n)
        sorted_logits, num_failed = _simulate(fit, key, count)
        ends = on_scale(np.quantile(sorted_logits, tails, axis=0))
        words = f"{count} simulated data sets, fitted again" + (f" ({num_failed} failed)" if num_failed else "")
    else:
        ends = on_scale(beta_envelope(n, level))
    return QuantileComparison(expected, observed, ends[0], ends[1], order, scale, float(level), words)


def with_rows_for_weights(fit: Fit) -> Origin:
    """Model and data of a fit, each row as often as its weight; raise for weights that are not whole numbers."""
    model, dataset = origin_of(fit)
    if dataset.weights is None or model.is_dependent:
        return Origin(model, dataset)
    rows = np.repeat(np.arange(len(dataset.weights)), whole_weights(dataset.weights))
    data, given = jax.tree.map(lambda leaf: np.asarray(leaf)[rows], (dataset.data, dataset.given))
    return Origin(model, Dataset(data, given, strength=dataset.strength))


def observations_of(dataset: Dataset) -> Float[np.ndarray, " n"]:
    """The observations, where each is one number."""
    leaves = jax.tree.leaves(dataset.data)
    if len(leaves) != 1 or np.ndim(leaves[0]) != 1:
        shapes = ", ".join(str(np.shape(leaf)) for leaf in leaves)
        raise ValueError(f"an observation must be one number, but the data have shape {shapes}: they have no order.")
    return np.asarray(leaves[0], float)


def standard_quantile(logits: Float[np.ndarray, "..."], scale: str) -> Float[np.ndarray, "..."]:
    """The quantile of a standard distribution at u, from logit u."""
    from scipy.special import expit, ndtri

    if scale == "uniform":
        return expit(logits)
    if scale == "exponential":  # −log(1 − u)
        return np.logaddexp(0.0, logits)
    if scale == "gumbel":  # −log(−log u)
        return -np.log(np.logaddexp(0.0, -logits))
    return np.where(logits < 0, ndtri(expit(logits)), -ndtri(expit(-logits)))


def beta_envelope(n: int, level: float) -> Float[np.ndarray, "2 n"]:
    """logit u between which each of n ordered uniform numbers lies with this probability: quantiles of Beta(i, n + 1 − i)."""
    from scipy.special import betaincinv

    rank, tails = np.arange(1, n + 1), 0.5 * (1 + np.array([-1.0, 1.0]) * float(level))
    # By symmetry the distance from one of the upper tail's quantiles is that of the lower tail's from zero, with all digits.
    near_zero = [betaincinv(rank, n + 1 - rank, tail) for tail in tails]
    near_one = [betaincinv(n + 1 - rank, rank, 1 - tail) for tail in tails]
    return np.log(np.array(near_zero)) - np.log(np.array(near_one))


@functools.partial(jit_with_model, static_argnums=(0, 1), level=0)
def quantiles_at(
    model: Model, layout: Layout, values: Values, logits: Float[Array, " k"], z: PyTree
) -> Float[Array, " k"]:
    """The model's quantiles at u for one set of covariates, from logit u."""
    params, given, dtype = layout.assemble(values), () if z is None else (z,), layout.dtype
    levels = jax.nn.sigmoid(jnp.asarray(logits, dtype))
    return jax.vmap(lambda level: quantile_of(model, params, level, given, dtype))(levels)


def _simulate(fit: Fit, key: Any, count: int) -> tuple[Float[np.ndarray, "r n"], int]:
    """logit F of data sets drawn from the fitted model, each under its own fit and in order; and how many fits failed."""
    rows, failed = [], 0
    for fits in refits_of_drawn(fit, origin_of(fit), key, count, covariances=()):
        failed += int(np.sum(~fits.converged))
        rows.append(np.sort(integral_transform(fits).logits()[fits.converged], axis=1))
    logits = np.concatenate(rows)
    if not len(logits):
        raise ValueError('none of the simulated data sets could be fitted. Use envelope="order statistics".')
    return logits, failed
