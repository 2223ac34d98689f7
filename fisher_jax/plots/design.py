"""A design as a picture: what an observation at each point would add, the bound on it, and the points with their weights."""

from typing import Any

import jax
import numpy as np

from fisher_jax.design import Design
from fisher_jax.errors import entry_point
from fisher_jax.plots.canvas import pyplot

_MARGIN = 0.15  # of the range of the points, where no grid is given


@entry_point
def design_plot(design: Any, points: Any = None, *, label: str = "z", axes: Any = None) -> Any:
    """Draw the sensitivity function of a design of one covariate, its bound of one, and the points with their weights.

    Parameters
    ----------
    design : Design
        As `fisher_jax.optimal_design` returned it, its points numbers.
    points : array (k,), optional
        Where to evaluate the sensitivity, in the order to be drawn; by default from a little before the first point of the
        design to a little after its last.
    label : str
        What the covariate is called.
    axes : matplotlib Axes, optional
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib Axes
        With the sensitivity, and a twin for the weights.

    Raises
    ------
    TypeError, ValueError
        If this is no design, or its points or those to draw are not numbers in one row.
    ImportError
        If matplotlib is not installed.

    Notes
    -----
    A design is optimal if and only if the curve stays at or below one: the equivalence theorem. It touches one at the points.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> from fisher_jax.plots import design_plot
    >>> def line(params, z):
    ...     return {"loc": params["a"] + params["b"] * z, "scale": jnp.ones(())}
    >>> model = fj.linked(fj.families.normal, line)
    >>> design = fj.optimal_design(model, {"a": 0.0, "b": 1.0}, jnp.array([-1.0, 0.0, 1.0]))
    >>> axes = design_plot(design)
    >>> axes.get_ylabel()
    'sensitivity'
    """
    figures = pyplot()
    if not isinstance(design, Design):
        raise TypeError(f"expected a Design, got {type(design).__name__}. Give fisher_jax.optimal_design(…).")
    leaves = jax.tree.leaves(design.points)
    if len(leaves) != 1 or np.ndim(leaves[0]) != 1:
        raise ValueError(
            f"the design's points have {len(leaves)} coordinates of shapes {[np.shape(leaf) for leaf in leaves]}; "
            "only one can be drawn along an axis. Plot design.sensitivity(…) along a line of your choice."
        )
    support = np.asarray(leaves[0], float)
    grid = _grid(support) if points is None else np.asarray(points, float)
    if grid.ndim != 1 or not len(grid):
        raise ValueError(f"points must be numbers in one row, got shape {grid.shape}.")
    if axes is None:
        axes = figures.subplots(figsize=(5.6, 3.4), layout="constrained")[1]
    structure = jax.tree.structure(design.points)

    def sensitivity(where: np.ndarray) -> np.ndarray:
        return design.sensitivity(jax.tree.unflatten(structure, [where]))

    curve, at_points = sensitivity(grid), sensitivity(support)
    axes.plot(grid, curve, color="tab:blue", linewidth=1.8, label="sensitivity", zorder=3)
    axes.axhline(1.0, color="0.3", linewidth=0.9, linestyle=":", label="bound")
    axes.plot(support, at_points, "o", color="tab:red", markersize=6, label="points", zorder=4)
    axes.set(xlabel=label, ylabel="sensitivity", ylim=(0, 1.3 * max(1.0, np.max(curve), np.max(at_points))))
    _weights(axes, design, support, float(np.ptp(grid)))
    axes.legend(fontsize="x-small", frameon=False, loc="upper center", ncols=3)
    return axes


def _grid(support: np.ndarray) -> np.ndarray:
    span = np.ptp(support) or max(1.0, abs(float(support[0])))
    return np.linspace(np.min(support) - _MARGIN * span, np.max(support) + _MARGIN * span, 401)


def _weights(axes: Any, design: Design, support: np.ndarray, span: float) -> None:
    """Bars for the weights behind the curve, on their own axis, the full height being all observations."""
    twin = axes.twinx()
    twin.bar(support, np.asarray(design.weights), width=0.012 * (span or 1.0), color="tab:red", alpha=0.35)
    twin.set(ylim=(0, 1.3), ylabel="weight")
    twin.spines["right"].set_visible(True)
    axes.set_zorder(twin.get_zorder() + 1)
    axes.patch.set_visible(False)
