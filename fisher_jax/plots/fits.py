"""Pictures of fits side by side, and of what single observations do to one."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fisher_jax.errors import check_level, entry_point
from fisher_jax.inference.influence import FAR, Influence
from fisher_jax.inference.samples import named_fits
from fisher_jax.plots.canvas import listed, pyplot

_APART = 0.6  # of a row, shared by the fits in it


@entry_point
def coefficient_plot(
    fits: Any = None,
    /,
    *,
    names: Sequence[str] | None = None,
    kind: str | None = None,
    level: float = 0.95,
    reference: float | None = 0.0,
    axes: Any = None,
    **named: Any,
) -> Any:
    """Estimates with their Wald intervals, a row for each parameter and a colour for each fit.

    Parameters
    ----------
    fits : Fit or dict of str to Fit, optional
        One fit, or several by name; several may be given as keywords instead.
    names : sequence of str, optional
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
        If a name is in none of the fits, or something is no fit.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> from fisher_jax.plots import coefficient_plot
    >>> y = jnp.array([1.0, 2.0, 4.0])
    >>> fit = fj.fit(fj.families.gamma, {"shape": 1.0, "rate": 1.0}, y)
    >>> axes = coefficient_plot(fit)
    >>> [label.get_text() for label in axes.get_yticklabels()]
    ['rate', 'shape']
    """
    figures = pyplot()
    check_level(level)
    one = fits is not None and not isinstance(fits, dict)
    every = named_fits({"fit": fits} if one else fits, named)
    kinds = {name: fit._check(kind) for name, fit in every.items()}
    tables = {name: {row.name: row for row in fit._rows(kinds[name], level)} for name, fit in every.items()}
    known = list(dict.fromkeys(row for table in tables.values() for row in table if not row.endswith(" (fixed)")))
    shown = known if names is None else list(names)
    if strangers := [name for name in shown if name not in known]:
        raise ValueError(f"names lists {listed(strangers)}, but the fits estimate {listed(known)}.")
    if not shown:
        raise ValueError(f"there is nothing to draw: got {len(every)} fits and no name of a parameter.")
    if axes is None:
        height = 1.2 + 0.3 * len(shown) * max(len(every), 1)
        axes = figures.subplots(figsize=(6.4, height), layout="constrained")[1]
    offsets = _APART * ((np.arange(len(every)) + 0.5) / len(every) - 0.5)
    for number, ((name, table), offset) in enumerate(zip(tables.items(), offsets, strict=True)):
        _draw_fit(axes, [table.get(row) for row in shown], offset, f"C{number}", name)
    if reference is not None:
        axes.axvline(reference, color="0.6", linewidth=1, zorder=0)
    axes.set_yticks(range(len(shown)), shown)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlabel(f"estimate and {100 * level:g} % interval ({', '.join(dict.fromkeys(kinds.values()))})")
    if len(every) > 1:
        axes.legend()
    return axes


def _draw_fit(axes: Any, rows: list[Any], offset: float, colour: str, label: str) -> None:
    """Its estimates, one to a row; what has no interval is left open."""
    for place, row in enumerate(rows):
        if row is None:
            continue
        bounded = np.isfinite(row.lower) and np.isfinite(row.upper)
        if bounded:
            axes.plot([row.lower, row.upper], [place + offset] * 2, color=colour, linewidth=2)
        face = colour if bounded else "none"
        axes.plot(row.estimate, place + offset, "o", color=colour, markerfacecolor=face)
    axes.plot([], [], "o-", color=colour, linewidth=2, label=label)


@entry_point
def influence_plot(
    influence: Influence, *, count: int = 5, labels: Sequence[str] | None = None, axes: Any = None
) -> Any:
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
        If this is no influence, that of a batch, or labels are not one for each observation.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> from fisher_jax.plots import influence_plot
    >>> fit = fj.fit(fj.families.normal, {"loc": 0.0, "scale": 1.0}, jnp.array([1.0, 2.0, 3.0, 4.0, 15.0]))
    >>> axes = influence_plot(fj.influence(fit), count=1)
    >>> [text.get_text() for text in axes.texts]
    ['4']
    """
    figures = pyplot()
    if not isinstance(influence, Influence):
        raise TypeError(f"expected an Influence, got {type(influence).__name__}. Give fj.influence(fit).")
    distances = influence.distances
    if distances.ndim != 1:
        raise ValueError(f"this is of a batch of {len(distances)} fits. Give that of one: fj.influence(fits[0]).")
    if labels is not None and len(labels) != len(distances):
        raise ValueError(f"{len(labels)} labels for {len(distances)} observations.")
    axes = figures.subplots(figsize=(6.4, 3.6), layout="constrained")[1] if axes is None else axes
    lost = np.isnan(distances)
    top = 1.1 * max(float(np.max(distances[~lost], initial=0.0)), FAR)
    heights, places = np.where(lost, top, distances), np.arange(len(distances))
    axes.vlines(places[~lost], 0.0, heights[~lost], color="C0", linewidth=1)
    axes.plot(places[~lost], heights[~lost], "o", color="C0", markersize=3)
    axes.plot(places[lost], heights[lost], "x", color="C3")
    axes.axhline(FAR, color="0.6", linestyle="--", linewidth=1)
    for k in influence.most_influential(count).tolist():
        text = str(k) if labels is None else str(labels[k])
        axes.annotate(text, (k, heights[k]), xytext=(4, 2), textcoords="offset points", fontsize="small")
    axes.set_ylim(0.0, 1.08 * top)
    axes.set_xlabel("observation left out")
    axes.set_ylabel("the estimate would move by\n(standard errors)")
    return axes
