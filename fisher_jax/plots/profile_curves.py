"""Profile likelihoods as curves, with the straight lines that Wald's approximation would make of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from fisher_jax.errors import entry_point
from fisher_jax.plots.canvas import pyplot, wanted_names
from fisher_jax.profile.profile_likelihood import Profile
from fisher_jax.profile.sides import cut_of

_WIDE = 50.0  # positive values that differ by such a factor are drawn on a logarithmic axis
_HARDLY = 0.05  # of the signed root, from point to point
_SCALES = {"signed_root": "signed root", "log_likelihood": "profile − maximum, in nats"}


@entry_point
def profile_curves(
    profile: Any, names: str | Sequence[str] | None = None, *, scale: str = "signed_root", axes: Any = None
) -> Any:
    """Draw profile likelihoods with their cut-off and interval, and Wald's approximation beside them.

    Parameters
    ----------
    profile : Profile
        As `fisher_jax.profile_likelihood` returned it.
    names : str or sequence of str, optional
        Which of `profile.names` to draw; by default all, a panel each.
    scale : {"signed_root", "log_likelihood"}
        r = sign(c − ĉ) √(2(ℓ̂ − ℓ_p(c))), in which Wald's approximation is a straight line and the cut-off lies at ±z; or
        ℓ_p(c) − ℓ̂ in nats, in which it is a parabola.
    axes : matplotlib Axes or array of them, optional
        Where to draw; by default a new figure.

    Returns
    -------
    array of matplotlib Axes
        One for each name, in the function's own unit.

    Raises
    ------
    ValueError, TypeError
        If this is no profile, a name or the scale is unknown, or there are too few axes.
    ImportError
        If matplotlib is not installed.

    Notes
    -----
    The curve is a monotone cubic of r through the points that were followed, which are marked; those farther than half as far
    again as the cut-off are left out. Where an end is infinite the curve levels out and is cut off. Positive values that differ
    by a factor of fifty or more are drawn on a logarithmic axis.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> from fisher_jax.plots import profile_curves
    >>> fit = fj.fit(fj.families.poisson, {"rate": 1.0}, jnp.array([2.0, 4.0, 3.0]))
    >>> axes = profile_curves(fj.profile_likelihood(fit))
    >>> axes[0].get_xlabel()
    'rate'
    """
    figures = pyplot()
    if not isinstance(profile, Profile):
        raise TypeError(f"expected a Profile, got {type(profile).__name__}. Give fisher_jax.profile_likelihood(fit).")
    if scale not in _SCALES:
        raise ValueError(f"scale={scale!r} is unknown; choose from {', '.join(map(repr, _SCALES))}.")
    chosen = _rows(profile, names)
    if axes is None:
        columns = min(3, len(chosen))
        rows = -(-len(chosen) // columns)
        size = (3.6 * columns, 3.0 * rows)
        axes = figures.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)[1].ravel()
        for spare in axes[len(chosen) :]:
            spare.remove()
        axes = axes[: len(chosen)]
    axes = np.ravel(np.asarray(axes, dtype=object))
    if len(axes) != len(chosen):
        raise ValueError(f"{len(chosen)} curves need as many axes, got {len(axes)}.")
    for panel, row in zip(axes, chosen, strict=True):
        _draw(panel, profile, row, scale)
    axes[0].legend(fontsize="x-small", frameon=False)
    return axes


def _rows(profile: Any, names: str | Sequence[str] | None) -> list[int]:
    return [profile.names.index(name) for name in wanted_names(profile.names, names, "profile")]


def _draw(panel: Any, profile: Any, row: int, scale: str) -> None:
    end = float(np.sqrt(2 * cut_of(profile.level)))
    value, root = _shown(np.asarray(profile.value[row], float), np.asarray(profile.signed_root[row], float), 1.5 * end)
    wide = len(value) > 1 and value[0] > 0 and value[-1] > _WIDE * value[0]
    grid, curve = _smooth(np.log(value) if wide else value, root)
    grid = np.exp(grid) if wide else grid
    nats = scale == "log_likelihood"
    if not len(grid):
        panel.set(xlabel=profile.names[row], ylabel=_SCALES[scale])
        return
    panel.plot(grid, _scaled(curve, nats), color="tab:blue", linewidth=1.8, label="profile", zorder=3)
    inside = (value >= grid[0]) & (value <= grid[-1])
    points = {"color": "tab:blue", "marker": "o", "markersize": 3.5, "linestyle": "none", "zorder": 3}
    panel.plot(value[inside], _scaled(root[inside], nats), **points)
    centre, error = float(profile.estimate[row]), float(profile.standard_error[row])
    if np.isfinite(error) and error > 0:
        straight = (grid - centre) / error
        near = np.abs(straight) < 1.5 * end
        panel.plot(
            grid[near], _scaled(straight[near], nats), color="tab:red", linestyle="--", linewidth=1.2, label="Wald"
        )
    cut = {"color": "0.4", "linewidth": 0.8, "linestyle": ":"}
    for level in [-cut_of(profile.level)] if nats else [-end, end]:
        panel.axhline(level, **cut, label=f"{100 * profile.level:g} %" if level < 0 else None)
    for limit in (profile.lower[row], profile.upper[row]):
        if np.isfinite(limit) and grid[0] <= limit <= grid[-1]:
            panel.axvline(float(limit), color="tab:blue", linewidth=0.8, linestyle="-", alpha=0.5)
    panel.set(xlabel=profile.names[row], ylabel=_SCALES[scale], xscale="log" if wide else "linear")


def _scaled(root: Float[np.ndarray, " n"], nats: bool) -> Float[np.ndarray, " n"]:
    return -0.5 * root**2 if nats else root


def _shown(
    value: Float[np.ndarray, " k"], root: Float[np.ndarray, " k"], farthest: float
) -> tuple[Float[np.ndarray, " j"], Float[np.ndarray, " j"]]:
    """The points to draw: those of finite value within reach."""
    used = np.isfinite(value) & np.isfinite(root) & (np.abs(root) <= farthest)
    value, root = value[used], root[used]
    distinct = np.diff(value, prepend=-np.inf) > 0
    return value[distinct], root[distinct]


def _smooth(
    value: Float[np.ndarray, " j"], root: Float[np.ndarray, " j"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """The curve through the points; of a long way on which it hardly falls, half as far as it falls elsewhere."""
    from scipy.interpolate import PchipInterpolator

    if len(value) < 2:
        return value, root
    low, high = value[0], value[-1]
    steep = np.flatnonzero(np.abs(np.diff(root)) > _HARDLY)
    if len(steep):
        span = value[steep[-1] + 1] - value[steep[0]]
        low, high = max(low, value[steep[0]] - 0.5 * span), min(high, value[steep[-1] + 1] + 0.5 * span)
    grid = np.linspace(low, high, 201)
    return grid, PchipInterpolator(value, root)(grid)
