"""Return levels over the period, and quantiles of the data beside those of the model."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PyTree

from fisher_jax.checking.integral_transform import integral_transform
from fisher_jax.checking.quantile_comparison import (
    QuantileComparison,
    observations_of,
    quantile_comparison,
    quantiles_at,
    with_rows_for_weights,
)
from fisher_jax.checking.residuals import Residuals
from fisher_jax.errors import entry_point
from fisher_jax.fitting.covariance import CovarianceKind
from fisher_jax.fitting.result import Fit, Origin
from fisher_jax.inference.bootstrap import Bootstrap
from fisher_jax.inference.return_levels import Method
from fisher_jax.inference.return_levels import return_levels as levels_of
from fisher_jax.plots.canvas import check_result, panels
from fisher_jax.reporting import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@entry_point
def return_levels(
    fit: Fit,
    periods: ArrayLike | None = None,
    *,
    given: PyTree = None,
    threshold: float = 0.0,
    rate: float = 1.0,
    rate_error: float = 0.0,
    kind: CovarianceKind | None = None,
    level: float = 0.95,
    method: Method = "delta",
    replicates: Bootstrap | None = None,
    axes: "Axes | None" = None,
) -> "Axes":
    """Draw return levels over the period with their band, and the observations at their plotting positions.

    Parameters
    ----------
    fit : Fit
        One fit, with its data.
    periods : array, optional
        At which levels are computed; by default forty, twelve for profiles, from just above the time between two observations to
        ten times the length of the record.
    given, threshold, rate, rate_error, kind, level, method, replicates
        As for `fisher_jax.return_levels`.
    axes : matplotlib Axes, optional
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib Axes
        The period is on a logarithmic axis. The i-th of n ordered observations stands at the period (n + 1) / ((n + 1 − i) λ). Of
        a model with covariates each is first moved to those of `given`: to the quantile there that it is at its own.

    Raises
    ------
    ValueError, TypeError
        As `fisher_jax.return_levels`.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> fit = fj.fit(fj.families.gumbel, None, jnp.array([4.03, 3.83, 3.65, 3.88, 4.01, 4.08, 4.18, 3.8]))
    >>> fj.plots.return_levels(fit).get_xlabel()
    'return period'
    """
    check_result(fit, Fit, "fisher_jax.fit")
    if fit.has_batch:
        raise TypeError(f"this is of {len(fit)} fits. Give one, as fits[3].")
    settings: dict[str, Any] = {"given": given, "threshold": threshold, "rate": rate, "rate_error": rate_error}
    settings |= {"kind": kind, "level": level, "method": method, "replicates": replicates}
    if periods is None:  # the arguments are checked before the periods are computed from them
        levels_of(
            fit,
            2.0 / rate if isinstance(rate, int | float) and rate > 0 else 2.0,
            **settings | {"method": "delta", "replicates": None},
        )
        longest = 10.0 * max(float(fit.num_observations), 2.0) / rate
        periods = np.geomspace(1.05 / rate, longest, 12 if method == "profile" else 40)
    levels = levels_of(fit, periods, **settings)
    model, dataset = with_rows_for_weights(fit)
    observed = observations_of(dataset)
    label = "observations"
    if given is not None:
        logits = integral_transform(replace(fit, origin=Origin(model, dataset))).logits()
        observed = np.asarray(quantiles_at(model, fit.layout, fit.values, logits, given), float)
        label = "observations, moved to these covariates"
    n = len(observed)
    order = np.argsort(levels.periods)
    times, value, interval = levels.periods[order], levels.value[order], levels.interval[order]

    (panel,) = panels(axes, 1, (5.4, 3.8))
    panel.plot(times, value, color="tab:blue", linewidth=1.8, label="return level", zorder=3)
    panel.fill_between(
        times, *interval.T, color="tab:blue", alpha=0.18, linewidth=0, label=f"{percent(level)}, {method}"
    )
    positions = (n + 1) / ((n + 1 - np.arange(1, n + 1)) * rate)
    panel.plot(positions, np.sort(observed) + threshold, "o", color="black", markersize=3, label=label, zorder=4)
    panel.set_xscale("log")
    panel.set(xlabel="return period", ylabel="level", xlim=(times[0], times[-1]))
    panel.legend(fontsize="x-small", frameon=False, loc="upper left")
    return panel


@entry_point
def quantiles(comparison: QuantileComparison | Residuals | Fit, *, axes: "Axes | None" = None) -> "Axes":
    """Draw a quantile-quantile plot: ordered observations over the quantiles that the fitted model expects, with the envelope.

    Parameters
    ----------
    comparison : QuantileComparison, Residuals or Fit
        As `fisher_jax.quantile_comparison` returned it, or a fit, for that without further arguments; or quantile residuals as
        `fisher_jax.residuals` returned them, over normal quantiles.
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

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> fit = fj.fit(fj.families.exponential, {"rate": 1.0}, jnp.array([1.0, 2.0, 0.3, 0.1]))
    >>> fj.plots.quantiles(fit).get_ylabel()
    'observed'
    """
    kinds = (QuantileComparison, Residuals, Fit)
    check_result(comparison, kinds, "fisher_jax.quantile_comparison, fisher_jax.residuals or fisher_jax.fit")
    if isinstance(comparison, Residuals):
        comparison = comparison.quantile_comparison()
    elif isinstance(comparison, Fit):
        comparison = quantile_comparison(comparison)
    (panel,) = panels(axes, 1, (4.4, 4.2))
    expected, observed, outside = comparison.expected, comparison.observed, comparison.outside
    panel.fill_between(
        expected,
        comparison.lower,
        comparison.upper,
        color="tab:blue",
        alpha=0.18,
        linewidth=0,
        label=f"{percent(comparison.level)} each",
    )
    panel.plot(expected[[0, -1]], expected[[0, -1]], color="tab:blue", linewidth=1.2)
    for which, color, label in ((~outside, "black", "observations"), (outside, "tab:red", "outside")):
        if np.any(which):
            panel.plot(expected[which], observed[which], "o", color=color, markersize=3, label=label, zorder=3)
    where = "" if comparison.scale == "data" else f" ({comparison.scale} scale)"
    panel.set(xlabel=f"expected by the model{where}", ylabel=f"observed{where}")
    panel.legend(fontsize="x-small", frameon=False, loc="upper left")
    return panel
