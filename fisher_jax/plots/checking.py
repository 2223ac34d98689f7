"""Residuals over what they could depend on, worm plots, rootograms and histograms of the probability integral transform."""

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from fisher_jax.checking.frequencies import calibration, frequencies
from fisher_jax.checking.quantile_comparison import QuantileComparison, quantile_comparison
from fisher_jax.checking.residuals import Residuals
from fisher_jax.errors import check_choice, check_count, check_level, entry_point, to_numpy
from fisher_jax.fitting.result import Fit
from fisher_jax.plots.canvas import check_result, panels
from fisher_jax.reporting import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Style = Literal["hanging", "standing"]


@entry_point
def residual_plot(
    residuals: Residuals, against: Any = None, *, label: str | None = None, axes: "Axes | None" = None
) -> "Axes":
    """Draw residuals over the fitted means or a covariate, with the means of groups of neighbours and their standard errors.

    Under the model the means of quantile residuals are zero, wherever they are.

    Parameters
    ----------
    residuals : Residuals
        Of one fit, as `fisher_jax.residuals` returned them.
    against : array (n,), optional
        Over what; by default over the fitted means, where the model knows them, and else over the number of the observation.
    label : str, optional
        Of the horizontal axis; by default the name of a pandas or polars column.
    axes : matplotlib Axes, optional
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib Axes
        Dashed lines, of quantile residuals, have 95 % of them between them.

    Raises
    ------
    ValueError, TypeError
        If these are no residuals or those of many fits, or `against` has another length.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> fit = fj.fit(fj.families.exponential, {"rate": 1.0}, jnp.array([1.0, 2.0, 0.3, 0.1]))
    >>> fj.plots.residual_plot(fj.residuals(fit), jnp.arange(4.0), label="time").get_xlabel()
    'time'
    """
    check_result(residuals, Residuals, "fisher_jax.residuals")
    if residuals.has_batch:
        raise ValueError(f"these are of {len(residuals.values)} fits. Give those of one: fj.residuals(fits[3]).")
    values = residuals.values
    if against is None and residuals.fitted is not None and np.ptp(residuals.fitted) > 0:
        against, label = residuals.fitted, label or "fitted mean"
    elif against is None:
        against, label = np.arange(len(values)), label or "observation"
    label = label or getattr(against, "name", None) or ""
    places = to_numpy(against, "against")
    if places.shape != values.shape or places.dtype.kind not in "iufb":
        raise ValueError(
            f"against must be {len(values)} numbers, one for each residual, but is {places.dtype} of shape {places.shape}."
        )
    centres, means, errors = residuals.means_of_groups(places)
    (panel,) = panels(axes, 1, (5.4, 3.6))
    panel.axhline(0.0, color="0.6", linewidth=1)
    if residuals.kind == "quantile":
        for line in (-1.959964, 1.959964):
            panel.axhline(line, color="0.6", linewidth=1, linestyle="--")
    panel.plot(places, values, "o", color="black", markersize=2.5, alpha=0.6)
    panel.errorbar(
        centres, means, errors, color="tab:red", marker="o", markersize=4, linewidth=1.4, label="group means"
    )
    panel.set(xlabel=label, ylabel=f"{residuals.kind} residual")
    panel.legend(fontsize="x-small", frameon=False)
    return panel


@entry_point
def worm(comparison: QuantileComparison | Residuals | Fit, *, axes: "Axes | None" = None) -> "Axes":
    """Draw a worm plot: how far ordered residuals lie above the normal quantiles that are expected of them, with the envelope.

    It is the quantile-quantile plot of quantile residuals with its diagonal turned level. A worm above or below zero shows a wrong
    mean, a slope a wrong variance, a parabola a wrong skewness, an S wrong tails.

    Parameters
    ----------
    comparison : Residuals, QuantileComparison or Fit
        As `fisher_jax.residuals` or `fisher_jax.quantile_comparison` returned it; of a fit it is the comparison on the normal
        scale.
    axes : matplotlib Axes, optional
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib Axes
        Observations outside the envelope are drawn in another colour.

    Raises
    ------
    ValueError, TypeError
        If this is none of these, or as `fisher_jax.quantile_comparison`.
    ImportError
        If matplotlib is not installed.

    References
    ----------
    van Buuren, S. and Fredriks, M. (2001), Worm plot: a simple diagnostic device for modelling growth reference curves, Statistics
    in Medicine 20, 1259-1277.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> fit = fj.fit(fj.families.exponential, {"rate": 1.0}, jnp.array([1.0, 2.0, 0.3, 0.1]))
    >>> fj.plots.worm(fj.residuals(fit)).get_ylabel()
    'observed − expected'
    """
    kinds = (QuantileComparison, Residuals, Fit)
    check_result(comparison, kinds, "fisher_jax.residuals, fisher_jax.quantile_comparison or fisher_jax.fit")
    if isinstance(comparison, Residuals):
        comparison = comparison.quantile_comparison()
    elif isinstance(comparison, Fit):
        comparison = quantile_comparison(comparison, scale="normal")
    (panel,) = panels(axes, 1, (4.8, 3.4))
    expected, outside = comparison.expected, comparison.outside
    band = comparison.lower - expected, comparison.upper - expected
    panel.fill_between(
        expected, *band, color="tab:blue", alpha=0.18, linewidth=0, label=f"{percent(comparison.level)} each"
    )
    panel.axhline(0.0, color="tab:blue", linewidth=1.2)
    for which, color, label in ((~outside, "black", "observations"), (outside, "tab:red", "outside")):
        if np.any(which):
            height = (comparison.observed - expected)[which]
            panel.plot(expected[which], height, "o", color=color, markersize=3, label=label, zorder=3)
    where = "" if comparison.scale == "data" else f" ({comparison.scale} scale)"
    panel.set(xlabel=f"expected by the model{where}", ylabel="observed − expected")
    panel.legend(fontsize="x-small", frameon=False)
    return panel


@entry_point
def rootogram(fit: Fit, *, style: Style = "hanging", axes: "Axes | None" = None) -> "Axes":
    """Draw the frequencies of counts, as bars, and those expected by the fitted model, as a line, on a square-root scale.

    On that scale a deviation of a given height is about as significant for rare values as for frequent ones.

    Parameters
    ----------
    fit : Fit
        One fit of a model of counts (`discrete`) that has a distribution function; with covariates, too, whose expected frequencies
        are summed over the observations.
    style : {"hanging", "standing"}
        Bars hang from the expected frequencies, so that they reach above or below zero where the model is off, or stand on zero.
    axes : matplotlib Axes, optional
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib Axes
        Frequencies are numbers of observations.

    Raises
    ------
    ValueError, TypeError
        If this is no fit of counts, or the counts have more than 200 values.
    ImportError
        If matplotlib is not installed.

    References
    ----------
    Kleiber, C. and Zeileis, A. (2016), Visualizing count data regressions using rootograms, The American Statistician 70, 296-303.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> model = fj.families.geometric
    >>> fit = fj.fit(model, None, jnp.array([1.0, 2.0, 1.0, 1.0, 3.0]))
    >>> fj.plots.rootogram(fit).get_ylabel()
    '√frequency'
    """
    check_result(fit, Fit, "fisher_jax.fit")
    check_choice(style, get_args(Style), "style")
    counted = frequencies(fit)
    observed, expected = np.sqrt(counted.observed), np.sqrt(counted.expected)
    bottom = expected - observed if style == "hanging" else np.zeros_like(expected)
    (panel,) = panels(axes, 1, (5.4, 3.6))
    panel.bar(counted.values, observed, 0.9, bottom=bottom, color="0.7", edgecolor="0.4", label="observed")
    panel.plot(counted.values, expected, "o-", color="tab:red", markersize=3.5, linewidth=1.4, label="expected")
    panel.axhline(0.0, color="black", linewidth=1)
    panel.set(xlabel="count", ylabel="√frequency")
    panel.legend(fontsize="x-small", frameon=False)
    return panel


@entry_point
def calibration_histogram(fit: Fit, *, num_bins: int = 10, level: float = 0.95, axes: "Axes | None" = None) -> "Axes":
    """Draw the histogram of u = F(y; θ̂, z), which is flat if the model is right, with a band for each bar.

    A hump in the middle shows that the distributions of the model are too wide, a U that they are too narrow, a slope that they are
    biased.

    Parameters
    ----------
    fit : Fit
        One fit of a model that has a distribution function. A count stands for its whole jump of F, from P(Y < y) to P(Y ≤ y), and
        adds to each bar the fraction of the jump that lies in it.
    num_bins : int
        How many bars.
    level : float
        The probability with which each bar by itself ends inside the band, as if θ̂ were the truth, by quantiles of the binomial
        distribution. For counts the bars vary less, so that the band is too wide.
    axes : matplotlib Axes, optional
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib Axes
        Densities: heights about one.

    Raises
    ------
    ValueError, TypeError
        If this is no single fit, or its model has no distribution function.
    ImportError
        If matplotlib is not installed.

    References
    ----------
    Czado, C., Gneiting, T. and Held, L. (2009), Predictive model assessment for count data, Biometrics 65, 1254-1261.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> fit = fj.fit(fj.families.exponential, {"rate": 1.0}, jnp.array([1.0, 2.0, 0.3, 0.1]))
    >>> fj.plots.calibration_histogram(fit, num_bins=2).get_xlabel()
    'probability integral transform'
    """
    check_result(fit, Fit, "fisher_jax.fit")
    check_level(level)
    heights, lower, upper = calibration(fit, check_count(num_bins, 2, "num_bins"), level)
    (panel,) = panels(axes, 1, (4.8, 3.4))
    width = 1 / num_bins
    panel.bar((np.arange(num_bins) + 0.5) * width, heights, width, color="0.75", edgecolor="0.4")
    panel.axhspan(lower, upper, color="tab:blue", alpha=0.18, linewidth=0, label=f"{percent(level)} each")
    panel.axhline(1.0, color="tab:blue", linewidth=1.2)
    panel.set(xlabel="probability integral transform", ylabel="density", xlim=(0, 1))
    panel.legend(fontsize="x-small", frameon=False)
    return panel
