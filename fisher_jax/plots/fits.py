"""Estimates of several fits side by side, the influence of observations, and the replicates of a bootstrap."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fisher_jax.errors import check_level, entry_point
from fisher_jax.fitting.result import Fit
from fisher_jax.inference.bootstrap import Bootstrap
from fisher_jax.inference.comparison import named_fits
from fisher_jax.inference.influence import FAR, Influence
from fisher_jax.models.parameter_names import choose_estimated
from fisher_jax.plots.canvas import check_result, choose, panels
from fisher_jax.reporting import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@entry_point
def coefficient_plot(
    fits: Fit | dict[str, Fit] | None = None,
    /,
    names: str | Sequence[str] | None = None,
    *,
    kind: str | None = None,
    level: float = 0.95,
    reference: float | None = 0.0,
    axes: "Axes | None" = None,
    **named: Fit,
) -> "Axes":
    """Estimates with their Wald intervals, a row for each parameter and a colour for each fit.

    Parameters
    ----------
    fits : Fit or dict of str to Fit, optional
        One fit, or several by name; several may be given as keywords instead.
    names : str or sequence of str, optional
        The parameters to show, top to bottom, since all share one axis; by default all estimated ones.
    kind, level
        As for `Fit.confidence_intervals`.
    reference : float, optional
        Where a vertical line is drawn; `None` for none.
    axes : matplotlib Axes, optional
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib Axes
        In the parameters' own units. Where a fit has no interval, its estimate is an open circle by itself.

    Raises
    ------
    ValueError, TypeError
        If a name is in none of the fits, or something is not a fit.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> fit = fj.fit(fj.families.normal, {"loc": 0.0, "scale": 1.0}, jnp.array([1.0, 2.0, 4.0]))
    >>> axes = fj.plots.coefficient_plot(fit)
    >>> [label.get_text() for label in axes.get_yticklabels()]
    ['loc', 'scale']
    """
    check_level(level)
    every = named_fits(fits if fits is None or isinstance(fits, dict) else {"fit": fits}, named)
    if not every:
        raise ValueError("got no fit to draw.")
    kinds = {name: fit._check(kind) for name, fit in every.items()}
    tables = {name: {row.parameter: row for row in fit._rows(kinds[name], level)[0]} for name, fit in every.items()}
    estimated = list(dict.fromkeys(name for fit in every.values() for name in fit.names))
    rows = [estimated[k] for k in choose(estimated, names)]
    (panel,) = panels(axes, 1, (6.4, 1.2 + 0.3 * len(rows) * len(every)))
    offsets = 0.6 * ((np.arange(len(every)) + 0.5) / len(every) - 0.5)  # the fits share 0.6 of a row's height
    for k, ((name, table), offset) in enumerate(zip(tables.items(), offsets, strict=True)):
        for height, row in ((place + offset, table[row]) for place, row in enumerate(rows) if row in table):
            has_interval = np.isfinite(row.lower) and np.isfinite(row.upper)
            if has_interval:
                panel.plot([row.lower, row.upper], [height] * 2, color=f"C{k}", linewidth=2)
            panel.plot(row.estimate, height, "o", color=f"C{k}", markerfacecolor=f"C{k}" if has_interval else "none")
        panel.plot([], [], "o-", color=f"C{k}", linewidth=2, label=name)
    if reference is not None:
        panel.axvline(reference, color="0.6", linewidth=1, zorder=0)
    panel.set_yticks(range(len(rows)), rows)
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.set_xlabel(f"estimate and {percent(level)} interval ({', '.join(dict.fromkeys(kinds.values()))})")
    if len(every) > 1:
        panel.legend()
    return panel


@entry_point
def influence_plot(
    influence: Influence, *, count: int = 5, labels: Sequence[str] | None = None, axes: "Axes | None" = None
) -> "Axes":
    """How far the estimate would move without each observation, in standard errors.

    Parameters
    ----------
    influence : Influence
        Of one fit, as `fisher_jax.influence` returns it.
    count : int
        How many of the farthest are named.
    labels : sequence of n strings, optional
        Names of the observations; their numbers by default.
    axes : matplotlib Axes, optional
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib Axes
        A dashed line marks half a standard error. A cross at the top is an observation without a step, as the printed
        report explains.

    Raises
    ------
    ValueError, TypeError
        If this is not an influence, is that of a batch, or the labels are not one for each observation.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> fit = fj.fit(fj.families.normal, {"loc": 0.0, "scale": 1.0}, jnp.array([1.0, 2.0, 3.0, 4.0, 15.0]))
    >>> axes = fj.plots.influence_plot(fj.influence(fit), count=1)
    >>> [text.get_text() for text in axes.texts]
    ['4']
    """
    check_result(influence, Influence, "fisher_jax.influence")
    distances = influence.distances
    if distances.ndim != 1:
        raise ValueError(f"this is of a batch of {len(distances)} fits. Give that of one: fj.influence(fits[0]).")
    if labels is not None and len(labels) != len(distances):
        raise ValueError(f"{len(labels)} labels for {len(distances)} observations.")
    (panel,) = panels(axes, 1, (6.4, 3.6))
    # NaN where the fit without the observation has no Newton step; these have no height of their own.
    missing = np.isnan(distances)
    top = 1.1 * max(float(np.max(distances[~missing], initial=0.0)), FAR)
    heights, places = np.where(missing, top, distances), np.arange(len(distances))
    panel.vlines(places[~missing], 0.0, heights[~missing], color="C0", linewidth=1)
    panel.plot(places[~missing], heights[~missing], "o", color="C0", markersize=3)
    panel.plot(places[missing], heights[missing], "x", color="C3")
    panel.axhline(FAR, color="0.6", linestyle="--", linewidth=1)
    for k in influence.most_influential(count).tolist():
        text = str(k) if labels is None else str(labels[k])
        panel.annotate(text, (k, heights[k]), xytext=(4, 2), textcoords="offset points", fontsize="small")
    panel.set_ylim(0.0, 1.08 * top)
    panel.set(xlabel="observation left out", ylabel="the estimate would move by\n(standard errors)")
    return panel


@entry_point
def bootstrap_histogram(
    bootstrap: Bootstrap,
    names: str | Sequence[str] | None = None,
    *,
    level: float = 0.95,
    method: str = "percentile",
    axes: "Axes | Sequence[Axes] | np.ndarray | None" = None,
) -> np.ndarray:
    """Draw the replicates of each parameter with its estimate, its interval, and Wald's normal density.

    Parameters
    ----------
    bootstrap : Bootstrap
        As `fisher_jax.bootstrap` returned it.
    names : str or sequence of str, optional
        Which of the fit's entries to draw; by default all, a panel each.
    level, method : float, str
        Those of the interval, as for `Bootstrap.confidence_intervals`.
    axes : matplotlib Axes or array of them, optional
        Where to draw; by default a new figure.

    Returns
    -------
    array of matplotlib Axes
        One for each name. Densities, so that areas are one; replicates that failed are left out, as the title states.

    Raises
    ------
    ValueError, TypeError
        If this is not a bootstrap, a name is unknown, there are too few axes, or fewer than two replicates converged.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import fisher_jax as fj, jax, jax.numpy as jnp
    >>> fit = fj.fit(fj.families.poisson, {"rate": 1.0}, jnp.array([2.0, 4.0, 3.0, 7.0, 1.0]))
    >>> axes = fj.plots.bootstrap_histogram(fj.bootstrap(fit, jax.random.key(0), 200))
    >>> axes[0].get_xlabel()
    'rate'
    """
    check_result(bootstrap, Bootstrap, "fisher_jax.bootstrap")
    if bootstrap.fit.has_batch:
        raise ValueError(f"this is of {len(bootstrap)} fits. Give that of one, as bootstrap[3].")
    fit, replicates, number = bootstrap.fit, bootstrap.replicates(), len(bootstrap.fits)
    columns = choose_estimated(fit.layout, names, "names")
    if len(replicates) < 2:
        raise ValueError(
            f"{len(replicates)} of {number} replicates converged, which make no histogram. Print the bootstrap to see "
            "how the others ended."
        )
    all_axes = panels(axes, len(columns), (3.6, 3.0))
    estimates, errors = (np.asarray(fit.layout.flatten(tree), float) for tree in (fit.params, fit.standard_errors()))
    intervals = bootstrap.flat_intervals(level, method)
    for panel, k in zip(all_axes, columns, strict=True):
        values, estimate, error = replicates[:, k], estimates[k], errors[k]
        # By the spread of the values, as numpy chooses them, heavy tails would make millions of bins.
        bins = max(10, min(60, int(np.sqrt(len(values)))))
        panel.hist(values, bins=bins, density=True, color="tab:blue", alpha=0.5, label="replicates")
        grid = np.linspace(min(values.min(), estimate - 3 * error), max(values.max(), estimate + 3 * error), 201)
        normal = np.exp(-0.5 * ((grid - estimate) / error) ** 2) / (error * np.sqrt(2 * np.pi))
        panel.plot(grid, normal, color="tab:red", linestyle="--", linewidth=1.2, label="Wald")
        panel.axvline(estimate, color="black", linewidth=1.0, label="estimate")
        for label, end in zip((f"{percent(level)} {method}", None), intervals[k], strict=True):
            panel.axvline(float(end), color="tab:blue", linewidth=1.0, linestyle=":", label=label)
        panel.set(xlabel=fit.names[k], ylabel="density")
    all_axes[0].legend(fontsize="x-small", frameon=False)
    if bootstrap.num_failed:
        all_axes[0].set_title(f"{bootstrap.num_failed} of {number} failed and are left out", fontsize="x-small")
    return all_axes
