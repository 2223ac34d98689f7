"""Replicates beside their limiting normal distribution: histograms of each entry, and clouds of two."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fisher_jax.errors import entry_point
from fisher_jax.plots.canvas import listed, number, pyplot, row_of_panels, wanted_names
from fisher_jax.plots.region import CIRCLE
from fisher_jax.simulation.normality import NormalComparison
from fisher_jax.simulation.sampling_distribution import SamplingDistribution

_MOST_DOTS = 3000


@entry_point
def standardised_histograms(
    distribution: Any, names: str | Sequence[str] | None = None, *, axes: Any = None, color: str = "tab:blue"
) -> Any:
    """Draw each entry of a sampling or score distribution, in asymptotic standard deviations, with the standard normal curve.

    Parameters
    ----------
    distribution : SamplingDistribution or ScoreDistribution
        As `fisher_jax.sampling_distribution` or `fisher_jax.score_distribution` returned it.
    names : str or sequence of str, optional
        Which entries; by default all, a panel each.
    axes : matplotlib Axes or array of them, optional
        Where to draw; by default a new figure.
    color : str
        Of the histogram.

    Returns
    -------
    array of matplotlib Axes
        One for each name. Densities, so that areas are one; the title holds the Kolmogorov-Smirnov distance. Without an
        asymptotic standard deviation the unit is that of the replicates, and no curve is drawn.

    Raises
    ------
    ValueError, TypeError
        If this is no distribution, a name is unknown, there are too few axes, or fewer than two replicates count.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import fisher_jax as fj, jax
    >>> from fisher_jax.plots import standardised_histograms
    >>> found = fj.score_distribution(
    ...     fj.families.exponential, {"rate": 2.0}, jax.random.key(0), num_observations=5, num_replicates=500
    ... )
    >>> axes = standardised_histograms(found)
    >>> axes[0].get_ylabel()
    'density'
    """
    wanted = _checked(distribution, names)
    panels = row_of_panels(axes, len(wanted), (3.6, 3.0))
    asymptotic = np.isfinite(np.diagonal(distribution.asymptotic_covariance))
    distances = np.asarray(distribution.marginal_normality.statistic)
    what = "estimate − truth" if isinstance(distribution, SamplingDistribution) else "score"
    for panel, name in zip(panels, wanted, strict=True):
        k = distribution.names.index(name)
        values = distribution.standardized[:, k]
        unit = "asymptotic standard deviations" if asymptotic[k] else "standard deviations"
        bins = max(10, min(80, int(2 * len(values) ** (1 / 3))))
        panel.hist(values, bins=bins, density=True, color=color, alpha=0.5)
        if asymptotic[k]:
            grid = np.linspace(min(values.min(), -3.5), max(values.max(), 3.5), 201)
            curve = np.exp(-0.5 * grid**2) / np.sqrt(2 * np.pi)
            panel.plot(grid, curve, color="black", linewidth=1.2, label="N(0, 1)")
            panel.set_title(f"n = {distribution.num_observations}, distance {distances[k]:.2g}", fontsize="small")
        else:
            panel.set_title(f"n = {distribution.num_observations}", fontsize="small")
        panel.set(xlabel=f"{name}: {what}, in\n{unit}", ylabel="density")
    if np.any(asymptotic[[distribution.names.index(name) for name in wanted]]):
        panels[-1].legend(fontsize="x-small", frameon=False)
    return panels


@entry_point
def joint_ellipses(
    distribution: Any, names: Sequence[str] | None = None, *, levels: Sequence[float] = (0.5, 0.95), axes: Any = None
) -> Any:
    """Draw the replicates of two entries with the ellipses that contain given fractions of the limiting distribution.

    Parameters
    ----------
    distribution : SamplingDistribution or ScoreDistribution
        As `fisher_jax.sampling_distribution` or `fisher_jax.score_distribution` returned it.
    names : sequence of two str, optional
        Which entries, the horizontal one first; by default the first two.
    levels : sequence of float
        Probabilities of the ellipses.
    axes : matplotlib Axes, optional
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib Axes
        The legend gives the fraction of the replicates in each ellipse, with its Monte Carlo error. Of many replicates the first
        3000 are drawn; all are counted.

    Raises
    ------
    ValueError, TypeError
        If this is no distribution, a name is unknown, there are not two, or the asymptotic covariance is missing or singular.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import fisher_jax as fj, jax
    >>> from fisher_jax.plots import joint_ellipses
    >>> found = fj.score_distribution(
    ...     fj.families.gamma, {"shape": 2.0, "rate": 1.0}, jax.random.key(0), num_observations=5, num_replicates=500
    ... )
    >>> joint_ellipses(found).get_xlabel()
    'rate: score'
    """
    if names is None and isinstance(distribution, NormalComparison):
        names = distribution.names[:2]
    wanted = _checked(distribution, names)
    if len(wanted) != 2:
        raise ValueError(f"an ellipse is of two entries, got {len(wanted)}. Name two of {listed(distribution.names)}.")
    pair = [distribution.names.index(name) for name in wanted]
    covariance = distribution.asymptotic_covariance[np.ix_(pair, pair)]
    if not np.all(np.isfinite(covariance)):
        raise ValueError(f"there is no asymptotic covariance of {listed(wanted)}, so that there are no ellipses.")
    if np.linalg.det(covariance) <= 1e-6 * np.prod(np.diagonal(covariance)):
        raise ValueError(f"{listed(wanted)} determine each other, so that their ellipses have no area.")
    figures = pyplot()
    if axes is None:
        axes = figures.subplots(figsize=(4.2, 3.8), layout="constrained")[1]
    scale, centre = 1.0, np.zeros(2)
    of_estimates = isinstance(distribution, SamplingDistribution)
    if of_estimates:
        scale, centre = 1 / np.sqrt(distribution.num_observations), np.asarray(distribution.truth)[pair]
    vectors = distribution.vectors[:, pair]
    dots = (centre + scale * vectors[:_MOST_DOTS]).T
    axes.plot(*dots, ".", color="tab:blue", markersize=3, alpha=0.3, markeredgewidth=0, zorder=1)
    distances = np.sum(vectors * np.linalg.solve(covariance, vectors.T).T, axis=1)
    lower = np.linalg.cholesky(covariance)
    for level, style in zip(levels, ("-", "--", ":", "-.") * len(levels), strict=False):
        radius = np.sqrt(-2 * np.log1p(-level))  # χ² with two degrees of freedom
        share = np.mean(distances < radius**2)
        label = f"{100 * level:g} %: {_percent(share, len(distances))}"
        axes.plot(
            *(centre[:, None] + scale * radius * lower @ CIRCLE), style, color="black", linewidth=1.2, label=label
        )
    what = ["", ""] if of_estimates else [": score", ": score"]
    axes.set(xlabel=wanted[0] + what[0], ylabel=wanted[1] + what[1])
    axes.set_title(f"n = {distribution.num_observations}", fontsize="small")
    axes.legend(fontsize="x-small", frameon=False, title="asymptotic: replicates", title_fontsize="x-small")
    return axes


def _percent(share: float, count: int) -> str:
    return number(100 * share, 100 * np.sqrt(max(share * (1 - share), 1 / count) / count)) + " %"


def _checked(distribution: Any, names: Any) -> list[str]:
    """The names wanted."""
    if not isinstance(distribution, NormalComparison):
        raise TypeError(f"expected a SamplingDistribution or a ScoreDistribution, got {type(distribution).__name__}.")
    wanted = wanted_names(distribution.names, names)
    if len(distribution.vectors) < 2:
        raise ValueError("fewer than two replicates count. Print the distribution to see how the others ended.")
    return wanted
