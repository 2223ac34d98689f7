"""An optimal design: the sensitivity function, its bound, and the points of the design with their weights."""

from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import PyTree

from fisher_jax.design import Design
from fisher_jax.errors import entry_point
from fisher_jax.plots.canvas import check_result, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@entry_point
def design_plot(design: Design, points: PyTree = None, *, label: str = "z", axes: "Axes | None" = None) -> "Axes":
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
        If this is not a design, or its points or those to draw are not numbers in one row.
    ImportError
        If matplotlib is not installed.

    Notes
    -----
    A design is optimal if and only if the curve stays at or below one: the equivalence theorem. It touches one at the points.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> def line(params, z):
    ...     return {"loc": params["a"] + params["b"] * z, "scale": jnp.ones(())}
    >>> model = fj.linked(fj.families.normal, line)
    >>> design = fj.optimal_design(model, {"a": 0.0, "b": 1.0}, jnp.array([-1.0, 0.0, 1.0]))
    >>> axes = fj.plots.design_plot(design)
    >>> axes.get_ylabel()
    'sensitivity'
    """
    check_result(design, Design, "fisher_jax.optimal_design")
    leaves, structure = jax.tree.flatten(design.points)
    if len(leaves) != 1 or np.ndim(leaves[0]) != 1:
        raise ValueError(
            f"the design's points have {len(leaves)} coordinates of shapes {[np.shape(leaf) for leaf in leaves]}; "
            "only one can be drawn along an axis. Plot design.sensitivity(…) along a line of your choice."
        )
    support = np.asarray(leaves[0], float)
    if points is None:
        margin = 0.15 * (np.ptp(support) or max(1.0, abs(float(support[0]))))
        points = np.linspace(np.min(support) - margin, np.max(support) + margin, 401)
    grid = np.asarray(points, float)
    if grid.ndim != 1 or not len(grid):
        raise ValueError(f"points must be numbers in one row, got shape {grid.shape}.")
    (panel,) = panels(axes, 1, (5.6, 3.4))
    curve, at_points = (design.sensitivity(jax.tree.unflatten(structure, [where])) for where in (grid, support))
    panel.plot(grid, curve, color="tab:blue", linewidth=1.8, label="sensitivity", zorder=3)
    panel.axhline(1.0, color="0.3", linewidth=0.9, linestyle=":", label="bound")
    panel.plot(support, at_points, "o", color="tab:red", markersize=6, label="points", zorder=4)
    panel.set(xlabel=label, ylabel="sensitivity", ylim=(0, 1.3 * max(1.0, np.max(curve), np.max(at_points))))
    # The weights have an axis of their own. At an optimal design a weight of one, all observations, is as high as the bound.
    twin = panel.twinx()
    twin.bar(support, np.asarray(design.weights), width=0.012 * (np.ptp(grid) or 1.0), color="tab:red", alpha=0.35)
    twin.set(ylim=(0, 1.3), ylabel="weight")
    twin.spines["right"].set_visible(True)
    panel.set_zorder(twin.get_zorder() + 1)  # the curve before the bars, whose axis was made later
    panel.patch.set_visible(False)
    panel.legend(fontsize="x-small", frameon=False, loc="upper center", ncols=3)
    return panel
