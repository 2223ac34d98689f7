"""`robust`: a fit whose sandwich J⁻¹ K J⁻¹ has another middle K, for data that are clustered, serial or sampled.

K estimates the variance of the total score Σ wᵢ sᵢ, from the scores at the estimate (totals, not divided by n):

- independent observations: Σ w s sᵀ for frequency weights, Σ w² s sᵀ for sampling weights (White 1982; Wooldridge 2010, Econometric
  Analysis, 2nd ed., eq. (19.12));
- clusters: Σ_g S_g S_gᵀ with S_g = Σ w s over cluster g (Liang and Zeger 1986, theorem 2); for two ways of clusters that of the one
  plus that of the other less that of both together (Cameron, Gelbach and Miller 2011, eq. (2.11));
- time: Γ₀ + Σ_l (1 − l/(L+1)) (Γ_l + Γ_lᵀ) over lags l up to L, with Γ_l the autocovariances of w s (Newey and West 1987, eq. (5)).

Each is multiplied by a factor for small samples.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fisher_jax.errors import check_choice, check_count, entry_point, warn
from fisher_jax.fitting.covariance import check_several, precise
from fisher_jax.fitting.map_fits import check_fit, with_data
from fisher_jax.fitting.passes import Passes, passes_of
from fisher_jax.fitting.result import Fit, origin_of
from fisher_jax.input_arrays import as_labels
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.likelihood import likelihood, scores_at, variance_of_once
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.programs import jit_with_model
from fisher_jax.numerics import linalg
from fisher_jax.numerics.array_namespace import AnyArray, namespace
from fisher_jax.numerics.differentiate import weigh
from fisher_jax.reporting import in_fits


def _ratio(a: AnyArray, b: Any, c: Any) -> AnyArray:
    """a / (b − c); NaN where this is not positive, and no factor exists."""
    return a / namespace(b, c).where(b > c, b - c, np.nan)


# Of each factor, its words in reports and its value for n observations, p parameters and g clusters.
CORRECTIONS: dict[str, tuple[str, Callable[[AnyArray, int, AnyArray], AnyArray]]] = {
    "none": ("no small-sample factor", lambda n, p, g: namespace(n).ones_like(n)),
    "n/(n-1)": ("factor n/(n − 1)", lambda n, p, g: n / (n - 1.0)),
    "n/(n-p)": ("factor n/(n − p)", lambda n, p, g: _ratio(n, n, p)),
    "G/(G-1)": ("factor G/(G − 1)", lambda n, p, g: _ratio(g, g, 1.0)),
    "G/(G-1) (n-1)/(n-p)": (
        "factor G/(G − 1) × (n − 1)/(n − p)",
        lambda n, p, g: _ratio(_ratio(g, g, 1.0) * (n - 1.0), n, p),
    ),
}


@entry_point
def robust(
    fit: Fit,
    *,
    clusters: Any = None,
    lags: int | None = None,
    weights: str = "frequency",
    correction: str | None = None,
) -> Fit:
    """The same fit whose covariance of kind "sandwich" is J⁻¹ K J⁻¹ with another estimate K of the score's variance.

    Nothing is refitted: estimates, likelihood and the other kinds of covariance stay as they are, and whatever takes
    ``kind="sandwich"`` uses the new one and names it.

    Parameters
    ----------
    fit : Fit
        As `fit` or `fit_batch` returned it, since the scores are taken again from its data.
    clusters : array (n,), or str, or a tuple of two, optional
        A label for every observation, numbers or text: observations of one cluster may depend on each other. Two arrays allow
        for dependence in either of two ways (Cameron, Gelbach and Miller). For a `dependent` model, a label for each term. A text
        is the name of a column of the table that was fitted, by `formula` or as `data` or `given`. Many fits share the labels,
        but for a column of fits by group.
    lags : int, optional
        Newey and West's estimate for observations in the order of time, equally spaced, with Bartlett's kernel up to so many
        lags. The fourth root of n is a common choice. A weight of zero leaves a gap.
    weights : {"frequency", "sampling"}
        What the weights of the fit mean. A frequency weight means that there were so many equal observations, K = Σ w s sᵀ; a
        sampling weight that one observation stands for so many in the population, K = Σ w² s sᵀ.
    correction : {"none", "n/(n-1)", "n/(n-p)", "G/(G-1)", "G/(G-1) (n-1)/(n-p)"}, optional
        The factor on the covariance, G being the number of clusters and p that of free parameters. Default "G/(G-1)" with
        clusters, with the G of each way of clusters, and "none" otherwise.

    Returns
    -------
    Fit
        Where the covariance is not positive semi-definite, which happens with two ways of clusters, a `FitWarning` and the
        reports state it, and the matrix stays as it is: a negative variance has a standard error NaN. Where the small-sample
        factor does not exist, the covariance is NaN, with a `FitWarning`.

    Raises
    ------
    ValueError, TypeError
        If labels do not fit the data, all are the same, clusters and lags come together, or the fit was made without its data.

    Notes
    -----
    What others do: Stata's maximum-likelihood commands multiply by n/(n − 1) for ``vce(robust)`` and by G/(G − 1) for
    ``vce(cluster)``; its ``regress`` by n/(n − p) and by G/(G − 1) (n − 1)/(n − p). statsmodels multiplies by none for HC0, by
    n/(n − p) for HC1 of linear models only (of likelihoods it is HC0 again), by G/(G − 1) (n − 1)/(n − p) for clusters unless
    given ``use_correction=False``, and by none for HAC.

    With two ways of clusters some take the smaller G for both. n is the number of terms, or the sum of frequency weights.
    Clusters of weight zero do not count. With few clusters (under some forty) standard errors are too small whatever the
    factor, and as many restrictions as there are clusters cannot be tested at once.

    References
    ----------
    White, H. (1982), Econometrica 50, 1-25, theorem 3.2; Liang, K.-Y. and Zeger, S. L. (1986), Biometrika 73, 13-22; Newey,
    W. K. and West, K. D. (1987), Econometrica 55, 703-708, eq. (5); Cameron, A. C., Gelbach, J. B. and Miller, D. L. (2011), J.
    Bus. Econ. Statist. 29, 238-249, eq. (2.11).

    Examples
    --------
    >>> import fisher_jax as fj, numpy as np
    >>> y, ship = np.array([1.0, 2.0, 3.0, 6.0, 4.0, 5.0]), ["a", "a", "b", "b", "c", "c"]
    >>> fit = fj.fit(fj.families.weibull, {"shape": 1.0, "scale": 1.0}, y)
    >>> by_ship = fj.robust(fit, clusters=ship)
    >>> print(f'{fit.standard_errors("sandwich")["scale"]:.3f} {by_ship.standard_errors("sandwich")["scale"]:.3f}')
    0.774 1.105
    >>> print(by_ship.describe("sandwich"))
    sandwich by 3 clusters, factor G/(G − 1)
    """
    check_fit(fit)
    if fit.curvature is None:
        raise ValueError("the curvature was not kept. Fit again with fit_batch(…, covariances=('observed',)).")
    check_several(fit.num_observations)
    if clusters is not None and lags is not None:
        raise ValueError("clusters and lags are two answers to one question; give one of them.")
    check_choice(weights, ("frequency", "sampling"), "weights", " They are what the weights given to `fit` mean.")
    correction = correction if correction is not None else "none" if clusters is None else "G/(G-1)"
    choices = [name for name in CORRECTIONS if clusters is not None or "G" not in name]
    check_choice(correction, choices, "correction", "" if clusters is not None else " G needs clusters.")
    passes = passes_of(fit)
    if lags is not None:
        lags = check_count(lags, 0, "lags", entries=0)
        if passes is not None:
            raise ValueError("lags= needs observations and those before them in memory. Clusters are read in blocks.")
        frequencies = fit.origin and fit.origin.dataset.weights
        # A time is observed once: an observation counted twice would be correlated with itself at lag zero only.
        if weights == "frequency" and frequencies is not None and not np.isin(np.asarray(frequencies), (0, 1)).all():
            raise ValueError(
                "observations in the order of time have frequency weights 0 or 1, for none is there twice. "
                'Give weights="sampling" if that is what they are.'
            )
    codes = _codes_of_ways(_labels(fit, clusters), by_group=fit.has_batch and clusters is not None)
    groups = tuple(int(code.max()) + 1 for code in codes)
    meat = _Meat(groups, lags, weights == "sampling", correction)
    labels = tuple(jnp.asarray(code, jnp.int32) for code in codes)
    of_each = any(way.ndim == 2 for way in labels)
    if passes is not None:
        middle, outer_product, indefinite = meat.by_passes(fit, passes, codes)
    else:
        middle, outer_product, indefinite = with_data(fit, meat, () if of_each else labels, labels if of_each else ())

    description = meat.describe(of_each)
    undefined = ~np.all(np.isfinite(np.asarray(middle)), axis=(-2, -1)) & np.asarray(fit.converged)
    if np.any(undefined):
        warn(
            f"there is no such covariance{in_fits(undefined)}, and its entries are NaN: {description}, needs more than one "
            "cluster that counts, and more observations than parameters where p is in it."
        )
    if np.any(indefinite):
        which = in_fits(indefinite)
        description += f"; not positive semi-definite{which}"
        warn(
            f"the covariance is not positive semi-definite{which}: differences of estimates by cluster can be so, "
            "most with few clusters. Some combinations of parameters have a negative variance; the larger of the one-way "
            "covariances is a safe choice."
        )
    if "sandwich" in fit.kinds:
        return replace(fit, meat=middle, robust=description)
    # The outer product is what TIC and the kind "empirical" take.
    return replace(fit, meat=middle, outer_product=outer_product, robust=description, kinds=(*fit.kinds, "sandwich"))


@dataclass(frozen=True)
class _Meat:
    """Which K to estimate; called with one fit, its model and its data, and compiled once for each that is not equal.

    `groups` is the number of clusters of each way, and with two ways that of both together.
    """

    groups: tuple[int, ...]
    lags: int | None
    sampling: bool
    correction: str

    def describe(self, of_each: bool) -> str:
        """K in words; with `of_each` every fit has clusters of its own, whose number is not that of all."""
        factor = CORRECTIONS[self.correction][0]
        if self.lags is not None:
            return f"Newey-West sandwich, Bartlett's kernel with {self.lags} lags, {factor}"
        if len(self.groups) == 1:
            clusters = "the clusters of each fit" if of_each else f"{self.groups[0]} clusters"
            return f"sandwich by {clusters}, {factor}"
        if self.groups:
            numbers = "of each fit" if of_each else f"({self.groups[0]} and {self.groups[1]})"
            return f"sandwich by two ways of clusters {numbers}, {factor} of each"
        kind = "Σ w² s sᵀ of sampling weights" if self.sampling else "outer product of scores"
        return f"sandwich H⁻¹ ({kind}) H⁻¹, {factor}"

    def __call__(
        self, fit: Fit, model: Model, dataset: Dataset, *labels: Int[Array, " n"]
    ) -> tuple[Float[Array, "p p"], Float[Array, "p p"], Bool[Array, ""]]:
        """K, the plain outer product of the scores, and whether K is indefinite by more than rounding."""
        target = likelihood(model, fit.layout, fit.values, dataset)
        weights, num_terms = target.weights, target.num_terms
        for way in labels:
            if way.shape != (num_terms,):
                raise ValueError(
                    f"clusters has {len(way)} labels, but the likelihood has {num_terms} terms. Give one label for each."
                )
        if self.lags is not None and self.lags >= num_terms:
            raise ValueError(f"lags={self.lags} must be below the number of terms, {num_terms}.")
        scores = scores_at(target, fit.free)
        # Products and sums in float64 where it is enabled: with float32 scores their errors would add up.
        weighted = precise(weigh(scores, weights))
        outer_product = _product(weighted, weighted if weights is None else precise(weigh(scores, jnp.sign(weights))))

        counted = jnp.ones((num_terms,), bool) if weights is None else weights > 0
        n = jnp.sum(counted) if self.sampling else fit.num_observations
        n, p = precise(n.astype(fit.free.dtype)), fit.layout.num_free
        factor = CORRECTIONS[self.correction][1]
        if self.lags is not None:
            # Bartlett's kernel is the mean over L + 1 shifts of windows of L + 1 terms of the outer products of their sums. In
            # this form K cannot become indefinite by rounding.
            window = self.lags + 1
            padded = jnp.pad(weighted, ((self.lags, self.lags), (0, 0)))
            sums = jax.lax.reduce_window(padded, jnp.zeros((), padded.dtype), jax.lax.add, (window, 1), (1, 1), "valid")
            middle = factor(n, p, n) * (_product(sums, sums) / window)
        elif self.groups:
            parts = []
            for way, num in zip(labels, self.groups, strict=True):
                totals = jax.ops.segment_sum(weighted, way, num_segments=num)
                # A cluster of which all weights are zero is not there.
                present = jnp.sum(jax.ops.segment_max(counted.astype(jnp.int32), way, num_segments=num) > 0)
                parts.append(factor(n, p, present) * _product(totals, totals))
            middle = parts[0] if len(parts) == 1 else parts[0] + parts[1] - parts[2]
        else:
            middle = factor(n, p, n) * (_product(weighted, weighted) if self.sampling else outer_product)
        # What counts once is by itself, whatever the clusters, and known by its model only.
        once = precise(variance_of_once(target, fit.free))
        middle, outer_product = middle + once, outer_product + once
        return middle, outer_product, _is_indefinite(middle, scores.dtype) if len(labels) > 1 else jnp.array(False)

    def by_passes(
        self, fit: Fit, passes: Passes, codes: list[Int[np.ndarray, " n"]]
    ) -> tuple[Float[Array, "p p"], Float[Array, "p p"], Bool[Array, ""]]:
        """The same by one pass over rows that are read in blocks: the scores of each cluster are added up as they come."""
        p, num_rows = fit.layout.num_free, fit.origin.num_rows  # type: ignore[union-attr]
        for way in codes:
            if way.shape != (num_rows,):
                raise ValueError(
                    f"clusters has {len(way)} labels, but the source has {num_rows} rows. Give one label for each."
                )
        plain, sampled, num_counted = np.zeros((p, p)), np.zeros((p, p)), 0
        totals = [np.zeros((num, p)) for num in self.groups]
        present = [np.zeros(num, bool) for num in self.groups]

        def scores_of(piece: Dataset) -> tuple[np.ndarray, np.ndarray]:
            return np.asarray(_scores_of_piece(passes.model, fit.layout, fit.values, piece, fit.free)), piece.weights

        for start, count, (scores, weights) in passes.over(scores_of, fit.layout.dtype):
            weights = np.asarray(weights[:count, None], np.float64)
            counted = np.where(weights == 0, 0.0, scores[:count].astype(np.float64))
            plain += counted.T @ (weights * counted)
            sampled += (weights * counted).T @ (weights * counted)
            num_counted += int(np.sum(weights > 0))
            for way, sums, mark in zip(codes, totals, present, strict=True):
                clusters, places = np.unique(way[start : start + count], return_inverse=True)
                for j in range(p):
                    sums[clusters, j] += np.bincount(places, weights[:, 0] * counted[:, j], len(clusters))
                mark[way[start : start + count][weights[:, 0] > 0]] = True
        factor = CORRECTIONS[self.correction][1]
        n, is_indefinite = np.float64(num_counted if self.sampling else fit.num_observations), np.False_
        if self.groups:
            marks = zip(totals, present, strict=True)
            parts = [factor(n, p, np.float64(np.sum(mark))) * _product(sums, sums) for sums, mark in marks]
            middle = parts[0] if len(parts) == 1 else parts[0] + parts[1] - parts[2]
            if len(parts) > 1:
                is_indefinite = _is_indefinite(middle, fit.layout.dtype)
        else:
            middle = factor(n, p, n) * (sampled if self.sampling else plain)
        return jnp.asarray(middle), jnp.asarray(plain), jnp.asarray(is_indefinite)


@functools.partial(jit_with_model, static_argnums=(0, 1), level=1)
def _scores_of_piece(
    model: Model, layout: Layout, values: Values, dataset: Dataset, free: Float[Array, " p"]
) -> Float[Array, "n p"]:
    return scores_at(likelihood(model, layout, values, dataset), free)


def _is_indefinite(middle: Float[AnyArray, "p p"], dtype: Any) -> Bool[AnyArray, ""]:
    """Whether it has a negative eigenvalue, by more than the rounding of the scores, whatever these are added up in."""
    p, xp = middle.shape[0], namespace(middle)
    scaled, _ = linalg.to_unit_diagonal(middle)
    scaled = xp.where(xp.all(xp.isfinite(scaled)), scaled, xp.eye(p, dtype=scaled.dtype))
    return xp.linalg.eigvalsh(scaled)[0] < -100.0 * p * jnp.finfo(dtype).eps


def _product(left: Float[AnyArray, "m p"], right: Float[AnyArray, "m p"]) -> Float[AnyArray, "p p"]:
    product = linalg.product(left.T, right)
    return 0.5 * (product + product.T)


def _labels(fit: Fit, clusters: Any) -> Any:
    """The labels with those of columns in place of their names."""
    if isinstance(clusters, tuple):
        return tuple(_labels(fit, way) for way in clusters)
    if not isinstance(clusters, str):
        return clusters
    passes = passes_of(fit)
    return origin_of(fit).dataset.column(clusters) if passes is None else passes.rows.column(clusters)


def _codes_of_ways(clusters: Any, *, by_group: bool) -> list[Int[np.ndarray, "*b n"]]:
    """The codes of each way of clusters, and with two ways those of both together."""
    if clusters is None:
        return []
    ways = clusters if isinstance(clusters, tuple) else (clusters,)
    if not 1 <= len(ways) <= 2:
        raise ValueError(f"clusters is a tuple of {len(ways)}; give an array of labels, or a tuple of two arrays.")
    codes = [cluster_codes(way, by_group=by_group) for way in ways]
    if len(codes) == 2:
        if codes[0].shape != codes[1].shape:
            raise ValueError(f"the two arrays of clusters have lengths {codes[0].shape[-1]} and {codes[1].shape[-1]}.")
        codes.append(cluster_codes(codes[0] * (codes[1].max() + 1) + codes[1], by_group=by_group))
    return codes


def cluster_codes(labels: Any, *, by_group: bool = False) -> Int[np.ndarray, "*b n"]:
    """Labels, numbers or text, as codes from 0 on; raise where one is missing or all are the same.

    With `by_group` they may be (B, n), of many data sets, which share the codes.
    """
    labels = as_labels(labels, "clusters")
    if by_group and labels.ndim == 2:
        return cluster_codes(labels.reshape(-1)).reshape(labels.shape)
    if labels.ndim != 1 or labels.size == 0:
        raise ValueError(f"clusters has shape {labels.shape}; expected (n,), one label for each observation.")
    try:
        codes = np.unique(labels, return_inverse=True)[1].reshape(-1)
    except TypeError as error:
        kinds = sorted({type(label).__name__ for label in labels})
        raise TypeError(
            f"clusters has labels of the types {', '.join(kinds)}, which have no order. Give all of one type."
        ) from error
    if codes.max() == 0:
        raise ValueError("all observations are in one cluster, so the variance between clusters cannot be estimated.")
    return codes
