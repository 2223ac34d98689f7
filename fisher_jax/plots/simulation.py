"""Simulated estimates, scores and intervals beside asymptotic theory: their distributions, and how they change with n."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fisher_jax.errors import check_level, entry_point
from fisher_jax.plots.canvas import MARKERS, check_result, choose, ellipse, panels
from fisher_jax.reporting import listed, percent, with_error
from fisher_jax.simulation.convergence_rate import ConvergenceRate
from fisher_jax.simulation.coverage import Coverage
from fisher_jax.simulation.sampling_distribution import SamplingDistribution
from fisher_jax.simulation.score_distribution import ScoreDistribution

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@entry_point
def standardized_histograms(
    distribution: SamplingDistribution | ScoreDistribution,
    names: str | Sequence[str] | None = None,
    *,
    axes: "Axes | Sequence[Axes] | np.ndarray | None" = None,
    color: str = "tab:blue",
) -> np.ndarray:
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
        One for each name. Densities, so that areas are one; the title has the Kolmogorov-Smirnov distance. Without an
        asymptotic standard deviation the unit is that of the replicates, and no curve is drawn.

    Raises
    ------
    ValueError, TypeError
        If this is not a distribution, a name is unknown, there are too few axes, or fewer than two replicates count.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import fisher_jax as fj, jax
    >>> distribution = fj.score_distribution(
    ...     fj.families.exponential, {"rate": 2.0}, jax.random.key(0), num_observations=20, num_replicates=500
    ... )
    >>> axes = fj.plots.standardized_histograms(distribution)
    >>> axes[0].get_ylabel()
    'density'
    """
    entries = _choose(distribution, names)
    all_axes = panels(axes, len(entries), (3.6, 3.0))
    has_theory = np.isfinite(np.diagonal(distribution.asymptotic_covariance))
    distances = np.asarray(distribution.marginal_normality.statistic)
    deviation = "estimate − truth" if isinstance(distribution, SamplingDistribution) else "score"
    for panel, k in zip(all_axes, entries, strict=True):
        values = distribution.standardized[:, k]
        bins = max(10, min(80, int(2 * len(values) ** (1 / 3))))  # the rule of Rice
        panel.hist(values, bins=bins, density=True, color=color, alpha=0.5)
        title, unit = f"n = {distribution.num_observations}", "standard deviations of the replicates"
        if has_theory[k]:
            grid = np.linspace(min(values.min(), -3.5), max(values.max(), 3.5), 201)
            curve = np.exp(-0.5 * grid**2) / np.sqrt(2 * np.pi)
            panel.plot(grid, curve, color="black", linewidth=1.2, label="N(0, 1)")
            title, unit = f"{title}, distance {distances[k]:.2g}", "asymptotic standard deviations"
        panel.set_title(title, fontsize="small")
        panel.set(xlabel=f"{distribution.names[k]}: {deviation}, in\n{unit}", ylabel="density")
    if np.any(has_theory[entries]):
        all_axes[-1].legend(fontsize="x-small", frameon=False)
    return all_axes


@entry_point
def joint_ellipses(
    distribution: SamplingDistribution | ScoreDistribution,
    names: Sequence[str] | None = None,
    *,
    levels: Sequence[float] = (0.5, 0.95),
    axes: "Axes | None" = None,
) -> "Axes":
    """Draw the replicates of two entries with the ellipses that hold a given fraction of them in theory.

    Parameters
    ----------
    distribution : SamplingDistribution or ScoreDistribution
        As `fisher_jax.sampling_distribution` or `fisher_jax.score_distribution` returned it.
    names : sequence of two str, optional
        Which entries, the horizontal one first; by default the first two.
    levels : sequence of float
        Asymptotic probabilities of the ellipses.
    axes : matplotlib Axes, optional
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib Axes
        The legend has the fraction of the replicates in each ellipse, with its Monte Carlo error. Of many replicates the first
        3000 are drawn; all are counted.

    Raises
    ------
    ValueError, TypeError
        If this is not a distribution, a name is unknown, there are not two, or the asymptotic covariance is missing or
        singular.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import fisher_jax as fj, jax
    >>> distribution = fj.score_distribution(
    ...     fj.families.normal, {"loc": 2.0, "scale": 1.0}, jax.random.key(0), num_observations=5, num_replicates=500
    ... )
    >>> fj.plots.joint_ellipses(distribution).get_xlabel()
    'loc: score'
    """
    pair = _choose(distribution, names)
    pair = pair[:2] if names is None else pair
    if len(pair) != 2:
        raise ValueError(f"an ellipse is of two entries, got {len(pair)}. Name two of {listed(distribution.names)}.")
    for level in levels:
        check_level(level)
    names = [distribution.names[k] for k in pair]
    covariance = distribution.asymptotic_covariance[np.ix_(pair, pair)]
    if not np.all(np.isfinite(covariance)):
        raise ValueError(f"there is no asymptotic covariance of {listed(names)}, so that there are no ellipses.")
    if np.linalg.det(covariance) <= 1e-6 * np.prod(np.diagonal(covariance)):
        raise ValueError(f"{listed(names)} determine each other, so that their ellipses have no area.")
    (panel,) = panels(axes, 1, (4.2, 3.8))
    scale, center, suffix = 1.0, np.zeros((2, 1)), ": score"
    if isinstance(distribution, SamplingDistribution):  # vectors are √n (estimate − truth)
        scale, center, suffix = distribution.num_observations**-0.5, np.asarray(distribution.truth)[pair, None], ""
    vectors = distribution.vectors[:, pair]
    points = center + scale * vectors[:3000].T
    panel.plot(*points, ".", color="tab:blue", markersize=3, alpha=0.3, markeredgewidth=0, zorder=1)
    half_squares = 0.5 * np.sum(vectors * np.linalg.solve(covariance, vectors.T).T, axis=1)
    count = len(vectors)
    for level, style in zip(levels, ("-", "--", ":", "-.") * len(levels), strict=False):
        p = np.mean(half_squares < -np.log1p(-level))
        error = np.sqrt(max(p * (1 - p), 1 / count) / count)
        label = f"{percent(level)}: {with_error(100 * p, 100 * error)} %"
        panel.plot(*(center + scale * ellipse(covariance, level)), style, color="black", linewidth=1.2, label=label)
    panel.set(xlabel=names[0] + suffix, ylabel=names[1] + suffix)
    panel.set_title(f"n = {distribution.num_observations}", fontsize="small")
    panel.legend(fontsize="x-small", frameon=False, title="asymptotic: simulated", title_fontsize="x-small")
    return panel


def _choose(distribution: Any, names: Any) -> list[int]:
    check_result(distribution, (SamplingDistribution, ScoreDistribution), "fisher_jax.sampling_distribution")
    if len(distribution.vectors) < 2:
        raise ValueError("fewer than two replicates count. Print the distribution to see how the others ended.")
    return choose(distribution.names, names)


@entry_point
def convergence_curves(
    rate: ConvergenceRate,
    names: str | Sequence[str] | None = None,
    *,
    relative: bool = False,
    axes: "Axes | None" = None,
) -> "Axes":
    """Draw standard deviations of estimates over n, with those of asymptotic theory and the exponent that was estimated.

    Parameters
    ----------
    rate : ConvergenceRate
        As `fisher_jax.convergence_rate` returned it.
    names : str or sequence of str, optional
        Which parameters; by default all, in one panel.
    relative : bool
        Draw n times the variance divided by the bound, which tends to one, in place of the standard deviation.
    axes : matplotlib Axes, optional
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib Axes
        Bars are two Monte Carlo standard errors. Without an asymptotic standard deviation, a dotted line has the estimated
        exponent.

    Raises
    ------
    ValueError, TypeError
        If this is not a rate, a name is unknown, or `relative` is set without a bound.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import fisher_jax as fj, jax
    >>> rate = fj.convergence_rate(
    ...     fj.families.exponential, {"rate": 2.0}, jax.random.key(0), num_observations=(20, 40), num_replicates=500,
    ...     estimator=lambda y: {"rate": 1 / y.mean()},
    ... )
    >>> fj.plots.convergence_curves(rate).get_yscale()
    'log'
    """
    check_result(rate, ConvergenceRate, "fisher_jax.convergence_rate")
    entries = choose(rate.names, names)
    (panel,) = panels(axes, 1, (4.8, 3.4))
    n = np.array(rate.num_observations, float)
    has_theory = np.all(np.isfinite(rate.asymptotic_standard_deviation), axis=0)
    for j, (k, shift) in enumerate(zip(entries, _shifts(len(entries), 0.03), strict=True)):
        value, error, theory = (
            x[:, k]
            for x in (rate.standard_deviation, rate.standard_deviation_error, rate.asymptotic_standard_deviation)
        )
        color, label = f"C{j % 10}", rate.names[k]
        if relative:
            if not np.any(np.isfinite(theory)):
                raise ValueError(f"there is no bound for {label!r} to be relative to; leave relative out.")
            value, error = (value / theory) ** 2, 2 * value * error / theory**2  # the delta method
        else:
            label = f"{label}: nᵃ, a = {with_error(rate.rate[k], rate.rate_error[k])}"
        style = {"fmt": MARKERS[j % len(MARKERS)], "capsize": 2, "markersize": 4}
        panel.errorbar(n * shift, value, 2 * error, color=color, label=label, **style)
        if not relative and has_theory[k]:
            panel.plot(n, theory, color=color, linewidth=1.0)
        elif not relative and np.isfinite(rate.rate[k]):
            panel.plot(n, value[-1] * (n / n[-1]) ** rate.rate[k], color=color, linestyle=":", linewidth=1.0)
    _set_sizes(panel, n)
    if relative:
        panel.axhline(1.0, color="black", linewidth=1.0, label="bound")
        panel.set_ylabel("variance / Cramér-Rao bound")
    else:
        panel.set(yscale="log", ylabel="standard deviation of the estimate")
        if np.any(np.isfinite(rate.asymptotic_standard_deviation)):
            panel.plot([], [], color="black", linewidth=1.0, label="asymptotic, a = −½")
    panel.legend(fontsize="x-small", frameon=False)
    return panel


@entry_point
def coverage_curves(
    coverage: Coverage,
    names: str | Sequence[str] | None = None,
    *,
    axes: "Axes | Sequence[Axes] | np.ndarray | None" = None,
) -> np.ndarray:
    """Draw the coverage probability of each kind of interval over n, with the nominal level.

    Parameters
    ----------
    coverage : Coverage
        As `fisher_jax.coverage` returned it.
    names : str or sequence of str, optional
        Which parameters; by default all, a panel each.
    axes : matplotlib Axes or array of them, optional
        Where to draw; by default a new figure.

    Returns
    -------
    array of matplotlib Axes
        One for each name; bars are two Monte Carlo standard errors. Data sets without an interval count as not covering.

    Raises
    ------
    ValueError, TypeError
        If this is not a coverage, a name is unknown, or there are too few axes.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import fisher_jax as fj, jax
    >>> coverage = fj.coverage(
    ...     fj.families.exponential, {"rate": 2.0}, jax.random.key(0), num_observations=(5, 20), num_replicates=500, kinds="wald"
    ... )
    >>> fj.plots.coverage_curves(coverage)[0].get_title()
    'rate'
    """
    check_result(coverage, Coverage, "fisher_jax.coverage")
    entries = choose(coverage.names, names)
    all_axes = panels(axes, len(entries), (3.8, 3.2), sharey=True)
    n, kinds = np.array(coverage.num_observations, float), coverage.kinds
    for panel, j in zip(all_axes, entries, strict=True):
        panel.axhline(100 * coverage.level, color="black", linewidth=1.0)
        for k, (kind, shift) in enumerate(zip(kinds, _shifts(len(kinds), 0.05), strict=True)):
            value, error = 100 * coverage.probability[:, k, j], 200 * coverage.probability_error[:, k, j]
            style = {"fmt": f"{MARKERS[k % len(MARKERS)]}-", "capsize": 2, "markersize": 4, "linewidth": 0.8}
            panel.errorbar(n * shift, value, error, label=kind, **style)
        _set_sizes(panel, n)
        panel.set_title(coverage.names[j])
    all_axes[0].set_ylabel("coverage (%)")
    all_axes[-1].legend(fontsize="x-small", frameon=False)
    return all_axes


def _shifts(count: int, width: float) -> np.ndarray:
    """Factors of n by which the error bars of several curves are set side by side."""
    return np.geomspace(1 - width, 1 + width, count) if count > 1 else np.ones(1)


def _set_sizes(axes: Any, n: np.ndarray) -> None:
    """Numbers of observations along a logarithmic axis, each with a tick."""
    axes.set(xscale="log", xlabel="observations n")
    axes.set_xticks(n, [f"{x:g}" for x in n])
    axes.minorticks_off()
