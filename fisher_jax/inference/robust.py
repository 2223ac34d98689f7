"""`robust`: a fit whose sandwich has another middle, for data that are clustered, serial or sampled."""

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fisher_jax.errors import entry_point, warn
from fisher_jax.fitting.covariance import precise
from fisher_jax.fitting.each import check_fit, with_data
from fisher_jax.fitting.result import Fit
from fisher_jax.inference import meat
from fisher_jax.inference.clusters import cluster_codes
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.likelihood import Likelihood, likelihood, scores_at
from fisher_jax.models.model import Model
from fisher_jax.numerics import linalg

CORRECTIONS = {
    "none": "no small-sample factor",
    "n/(n-1)": "factor n/(n − 1)",
    "n/(n-p)": "factor n/(n − p)",
    "G/(G-1)": "factor G/(G − 1)",
    "G/(G-1) (n-1)/(n-p)": "factor G/(G − 1) × (n − 1)/(n − p)",
}


@entry_point
def robust(
    fit: Any, *, clusters: Any = None, lags: Any = None, weights: Any = "frequency", correction: Any = None
) -> Any:
    """The same fit whose covariance of kind "sandwich" is J⁻¹ K J⁻¹ with another estimate K of the score's variance.

    Nothing is refitted: estimates, likelihood and the other kinds of covariance stay as they are, and whatever takes
    ``kind="sandwich"`` uses the new one and names it.

    Parameters
    ----------
    fit : Fit
        As `fit` or `fit_batch` returned it, since the scores are taken again from its data.
    clusters : array (n,), or a tuple of two, optional
        A label for every observation, numbers or text: observations of one cluster may depend on each other. Two arrays allow
        for dependence in either of two ways (Cameron, Gelbach and Miller). For a `dependent` model, a label for each term.
    lags : int, optional
        Newey and West's estimate for observations in the order of time, equally spaced, with Bartlett's kernel up to so many
        lags. The fourth root of n is a common choice. A weight of zero leaves a gap.
    weights : {"frequency", "sampling"}
        What the weights of the fit mean. A frequency weight says that there were so many equal observations, K = Σ w s sᵀ; a
        sampling weight that one observation stands for so many in the population, K = Σ w² s sᵀ.
    correction : {"none", "n/(n-1)", "n/(n-p)", "G/(G-1)", "G/(G-1) (n-1)/(n-p)"}, optional
        The factor on the covariance, G being the number of clusters and p that of free parameters. Default "G/(G-1)" with
        clusters, each way of clusters with its own, and "none" otherwise.

    Returns
    -------
    Fit
        Where the covariance is not positive semi-definite, as two ways of clusters may have it, that is said by a `FitWarning`
        and in reports, and nothing is mended: a negative variance has a standard error NaN. So it has, with a `FitWarning`,
        where the small-sample factor does not exist.

    Raises
    ------
    ValueError, TypeError
        If labels do not fit the data, all are the same, clusters and lags come together, or the fit does not know its data.

    Notes
    -----
    What others do: Stata's maximum-likelihood commands multiply by n/(n − 1) for ``vce(robust)`` and by G/(G − 1) for
    ``vce(cluster)``; its ``regress`` by n/(n − p) and by G/(G − 1) (n − 1)/(n − p). statsmodels multiplies by none for HC0, by
    n/(n − p) for HC1 of linear models only (of likelihoods it is HC0 again), by G/(G − 1) (n − 1)/(n − p) for clusters unless
    told ``use_correction=False``, and by none for HAC.

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
    >>> fit = fj.fit(fj.families.gamma, {"shape": 1.0, "rate": 1.0}, y)
    >>> by_ship = fj.robust(fit, clusters=ship)
    >>> print(f'{fit.standard_errors("sandwich")["rate"]:.3f} {by_ship.standard_errors("sandwich")["rate"]:.3f}')
    0.368 0.265
    >>> print(by_ship.describe("sandwich"))
    sandwich by 3 clusters, factor G/(G − 1)
    """
    check_fit(fit)
    if fit.curvature is None:
        raise ValueError("the curvature was not kept. Fit again with fit_batch(…, covariances=('observed',)).")
    how, labels = _checked(fit, clusters, lags, weights, correction)
    middle, plain, indefinite = with_data(fit, how, shared=labels)
    said = how.describe()
    lost = ~np.all(np.isfinite(np.asarray(middle)), axis=(-2, -1)) & np.asarray(fit.converged)
    if np.any(lost):
        share = f" in {int(np.sum(lost))} of {np.size(lost)} fits" if np.ndim(lost) else ""
        warn(
            f"there is no such covariance{share}, and its entries are NaN: {how.describe()}, needs more than one "
            "cluster that counts, and more observations than parameters where p is in it."
        )
    if np.any(indefinite):
        share = f" in {int(np.sum(indefinite))} of {np.size(indefinite)} fits" if np.ndim(indefinite) else ""
        said += f"; not positive semi-definite{share}"
        warn(
            f"the covariance is not positive semi-definite{share}: differences of estimates by cluster can be so, "
            "most with few clusters. Some combinations of parameters have a negative variance; the larger of the one-way "
            "covariances is a safe choice."
        )
    if "sandwich" in fit.kinds:
        return replace(fit, meat=middle, robust=said)
    return replace(fit, meat=middle, outer_product=plain, robust=said, kinds=(*fit.kinds, "sandwich"))


@dataclass(frozen=True)
class _Middle:
    """How the middle is made; called with one fit, its model and its data, compiled once for each."""

    groups: tuple[int, ...]
    lags: int | None
    sampling: bool
    correction: str

    def describe(self) -> str:
        """In words."""
        factor = CORRECTIONS[self.correction]
        kind = "Σ w² s sᵀ of sampling weights" if self.sampling else "outer product of scores"
        if self.lags is not None:
            return f"Newey-West sandwich, Bartlett's kernel with {self.lags} lags, {factor}"
        if len(self.groups) == 1:
            return f"sandwich by {self.groups[0]} clusters, {factor}"
        if self.groups:
            return f"sandwich by two ways of clusters ({self.groups[0]} and {self.groups[1]}), {factor} of each"
        return f"sandwich H⁻¹ ({kind}) H⁻¹, {factor}"

    def __call__(self, fit: Fit, model: Model, dataset: Dataset, *labels: Array) -> tuple[Array, Array, Array]:
        target = likelihood(model, fit.layout, fit.values, dataset)
        for given in labels:
            if given.shape != (target.num_terms,):
                raise ValueError(
                    f"clusters has {given.shape[0]} labels, but the likelihood has {target.num_terms} terms. "
                    "Give one label for each."
                )
        scores = scores_at(target, fit.free)
        middle = self._middle(fit, target, scores, labels)
        plain = meat.by_observation(scores, target.weights, sampling=False)
        return middle, plain, _is_indefinite(middle, scores.dtype) if len(labels) > 1 else jnp.array(False)

    def _middle(self, fit: Fit, target: Likelihood, scores: Array, labels: tuple[Array, ...]) -> Array:
        counted = jnp.ones((target.num_terms,), bool) if target.weights is None else target.weights > 0
        n = jnp.sum(counted) if self.sampling else fit.num_observations
        n, p = n.astype(fit.free.dtype), fit.layout.num_free
        if self.lags is not None:
            if self.lags >= target.num_terms:
                raise ValueError(f"lags={self.lags} must be below the number of terms, {target.num_terms}.")
            return self._factor(n, p) * meat.by_time(scores, target.weights, self.lags)
        if not self.groups:
            return self._factor(n, p) * meat.by_observation(scores, target.weights, sampling=self.sampling)
        parts = []
        for given, num in zip(labels, self.groups, strict=True):
            counts = meat.num_clusters(counted, given, num)
            parts.append(self._factor(n, p, counts) * meat.by_cluster(scores, target.weights, given, num))
        return parts[0] if len(parts) == 1 else parts[0] + parts[1] - parts[2]

    def _factor(self, n: Array, p: int, clusters: Any = None) -> Array:
        n = precise(n)
        by_cluster = n if clusters is None else clusters / jnp.where(clusters > 1, clusters - 1.0, jnp.nan)
        factors: dict[str, Array] = {
            "none": jnp.ones_like(n),
            "n/(n-1)": n / (n - 1.0),
            "n/(n-p)": n / jnp.where(n > p, n - p, jnp.nan),
            "G/(G-1)": by_cluster,
            "G/(G-1) (n-1)/(n-p)": by_cluster * (n - 1.0) / jnp.where(n > p, n - p, jnp.nan),
        }
        return factors[self.correction]


def _is_indefinite(middle: Array, dtype: Any) -> Array:
    """Whether a negative eigenvalue is more than rounding of scores of this precision."""
    scaled, _ = linalg.to_unit_diagonal(middle)
    known = jnp.all(jnp.isfinite(scaled))
    values = jnp.linalg.eigvalsh(jnp.where(known, scaled, jnp.eye(len(scaled), dtype=scaled.dtype)))
    return values[0] < -100.0 * len(scaled) * jnp.finfo(dtype).eps


def _checked(fit: Any, clusters: Any, lags: Any, weights: Any, correction: Any) -> tuple[_Middle, tuple[Array, ...]]:
    """How the middle is to be made, and the codes of the clusters."""
    if clusters is not None and lags is not None:
        raise ValueError("clusters and lags are two answers to one question; give one of them.")
    if not isinstance(weights, str) or weights not in ("frequency", "sampling"):
        raise ValueError(
            f'weights={_short(weights)} must be "frequency" or "sampling": what the weights given to `fit` mean.'
        )
    if correction is None:
        correction = "none" if clusters is None else "G/(G-1)"
    if not isinstance(correction, str) or correction not in CORRECTIONS or (clusters is None and "G" in correction):
        known = ", ".join(repr(name) for name in CORRECTIONS if clusters is not None or "G" not in name)
        raise ValueError(f"correction={_short(correction)} is none of {known}.")
    if lags is not None:
        whole = isinstance(lags, int | np.integer) and not isinstance(lags, bool)
        if not whole or lags < 0:
            raise ValueError(f"lags={_short(lags)} must be a whole number, at least 0.")
        _check_times(fit, weights)
    codes, groups = _codes(clusters)
    return _Middle(groups, None if lags is None else int(lags), weights == "sampling", correction), codes


def _check_times(fit: Any, weights: str) -> None:
    """A time cannot be there twice."""
    given = fit.origin and fit.origin.dataset.weights
    if weights == "frequency" and given is not None and not np.all(np.isin(np.asarray(given), (0.0, 1.0))):
        raise ValueError(
            "observations in the order of time have frequency weights 0 or 1, for none is there twice. "
            'Give weights="sampling" if that is what they are.'
        )


def _codes(clusters: Any) -> tuple[tuple[Array, ...], tuple[int, ...]]:
    """For each way of clusters, and for both together, labels from 0 on and how many there are."""
    if clusters is None:
        return (), ()
    ways = clusters if isinstance(clusters, tuple) else (clusters,)
    if not 1 <= len(ways) <= 2:
        raise ValueError(f"clusters is a tuple of {len(ways)}; give an array of labels, or a tuple of two arrays.")
    codes = [cluster_codes(way) for way in ways]
    if len(codes) == 2:
        if codes[0].shape != codes[1].shape:
            raise ValueError(f"the two arrays of clusters have lengths {len(codes[0])} and {len(codes[1])}.")
        codes.append(cluster_codes(codes[0] * (codes[1].max() + 1) + codes[1]))
    return tuple(jnp.asarray(code, jnp.int32) for code in codes), tuple(int(code.max()) + 1 for code in codes)


def _short(given: Any) -> str:
    return repr(given) if np.ndim(given) == 0 else f"an array of shape {np.shape(given)}"
