"""The log-likelihood around a fit, with the ellipse that stands for it."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.errors import check_count, check_level, entry_point
from fisher_jax.information.derivatives import at_door, hessian
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.likelihood import likelihood, terms_at
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.programs import jit_with_model
from fisher_jax.plots.canvas import listed, pyplot

FURTHER_OUT = (10.0, 30.0, 100.0, 300.0)  # nats below the estimate, drawn as contours beside those of the levels
PATH_COLOURS = ("tab:orange", "tab:green", "tab:purple", "tab:brown", "tab:pink", "tab:olive")
MOST_DOTS = 40  # steps, above which a path is drawn without


@entry_point
def likelihood_surface(
    fit: Any,
    model: Any,
    data: PyTree,
    names: Sequence[str],
    *,
    given: PyTree = None,
    weights: Any = None,
    level: float = 0.95,
    path: Sequence[PyTree] | Mapping[str, Sequence[PyTree]] | None = None,
    extent: float = 4.0,
    num_points: int = 81,
    axes: Any = None,
) -> Any:
    """Contours of ℓ(θ) − ℓ(θ̂) in nats, total over the data, over two parameters, with the Wald ellipse beside them.

    The ellipse is {θ : ½ (θ − θ̂)ᵀ J (θ − θ̂) = −log(1 − level)}, with J the total observed information of the two. The
    contour of the same drop is drawn heavily: where the two part, the quadratic approximation behind Wald's standard
    errors is poor.

    Parameters
    ----------
    fit : Fit
        One fit. If it did not converge, what it reached is marked with its status and no ellipse is drawn.
    model, data, given, weights
        Those of the fit.
    names : two strings
        The entries on the horizontal and vertical axis, out of `fit.names`. The others are held at the estimate.
    level : float
        Probability of the ellipse and of the heavy contour by the χ² distribution of two degrees of freedom.
    path : sequence of pytrees like params, or dictionary of such, optional
        What the optimiser went through, from the start on; of several optimisers, by their names. Drawn as far as it lies in
        the window.
    extent : float
        Half-width of the window in conditional standard errors (the other parameters held): those of J⁻¹, or
        1/√|Jᵢᵢ| for a fit that did not converge.
    num_points : int
        Points along each axis of the grid.
    axes : matplotlib Axes, optional
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib Axes
        In the user's parametrisation and units.

    Raises
    ------
    ValueError
        If the fit has a batch axis or belongs to other data, a name is unknown, an entry cannot be moved by itself
        (that of a simplex), or its curvature is zero or not finite.
    ImportError
        If matplotlib is not installed.

    Notes
    -----
    In a model of just these two entries J⁻¹ is `fit.covariance()`. In a larger one it is smaller: contours at fixed
    others are comparable with the conditional ellipse only, and the legend says so. Outside a constraint, and where the
    log-density is not finite, the picture is blank. Costs num_points² evaluations of ℓ, num_points at a time.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> from fisher_jax.plots import likelihood_surface
    >>> from jax.scipy.stats import norm
    >>> def log_density(params, y):
    ...     return norm.logpdf(y, params["loc"], params["scale"])
    >>> model = fj.Model(log_density, constraints={"scale": fj.positive})
    >>> y = jnp.array([1.0, 2.0, 3.0, 6.0])
    >>> fit = fj.fit(model, {"loc": 0.0, "scale": 1.0}, y)
    >>> axes = likelihood_surface(fit, model, y, ["loc", "scale"], num_points=21)
    >>> axes.get_xlabel(), axes.get_ylabel()
    ('loc', 'scale')
    """
    figures = pyplot()
    check_level(level)
    num_points = check_count(num_points, 2, "num_points")
    check_count(num_points, 2, "num_points", entries=num_points)
    columns = _columns(fit, names)
    model, natural, values, dataset = at_door(model, fit.params, data, given, weights)
    centre = np.asarray(fit.layout.flatten(fit.params), float)[list(columns)]
    every = -np.asarray(hessian(model, fit.params, data, given=given, weights=weights), float)
    curvature = every[np.ix_(columns, columns)]
    half = extent * _half_widths(curvature, names, certified=bool(fit.converged))
    x, y = np.linspace(centre - half, centre + half, num_points).T
    grid = jnp.asarray(np.stack(np.meshgrid(x, y), axis=-1))
    surface, at_estimate = _surface(model, fit.layout, natural, columns, values, dataset, grid)
    _check_same(fit, at_estimate)

    axes = figures.subplots(figsize=(6.4, 4.8), layout="constrained")[1] if axes is None else axes
    _draw_contours(axes, x, y, np.asarray(surface, float), level)
    if path is not None:
        paths = path if isinstance(path, Mapping) else {"optimiser's path": path}
        for (name, points), colour in zip(paths.items(), itertools.cycle(PATH_COLOURS)):
            together = jax.tree.map(lambda *leaves: np.stack(leaves), *points)
            _draw_path(axes, name, np.asarray(jax.vmap(fit.layout.flatten)(together))[:, columns], colour)
    if fit.converged:
        _draw_ellipse(axes, centre, curvature, level, conditional=len(fit.names) > 2)
    label = "estimate" if fit.converged else f"where the fit ended: {fit.status.label}"
    axes.plot(*centre, marker="o", markersize=6, color="black", linestyle="none", label=label, zorder=4)
    axes.set(xlabel=names[0], ylabel=names[1], xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    above = {"loc": "lower left", "bbox_to_anchor": (0, 1.01), "borderaxespad": 0, "ncols": 2, "columnspacing": 1.0}
    axes.legend(fontsize="x-small", frameon=False, **above)
    return axes


def _columns(fit: Any, names: Sequence[str]) -> tuple[int, int]:
    """Where the two names stand in θ."""
    if jnp.ndim(fit.log_likelihood):
        raise ValueError(
            f"draws one fit, but this one has a batch axis of shape {jnp.shape(fit.log_likelihood)}. "
            "Take one of the batch by jax.tree.map(lambda leaf: leaf[i], fits)."
        )
    if isinstance(names, str) or len(names) != 2 or names[0] == names[1]:
        raise ValueError(f"names={names!r}; expected two different ones out of {listed(fit.names)}.")
    tied = [n for _, leaf in fit.layout.free_leaves if leaf.free_size != leaf.size for n in leaf.entry_names]
    for name in names:
        if name not in fit.names:
            raise ValueError(f"no estimated entry is named {name!r}; there are {listed(fit.names)}.")
        if name in tied:
            raise ValueError(
                f"the constraint of {name!r} ties it to other entries, so it cannot move while "
                "they are held. Choose another, or write the model in parameters that vary freely."
            )
    return fit.names.index(names[0]), fit.names.index(names[1])


def _half_widths(curvature: Float[np.ndarray, "2 2"], names: Sequence[str], certified: bool) -> Float[np.ndarray, "2"]:
    """One standard error of each of two parameters; of each alone where together they have none."""
    diagonal = np.abs(np.diagonal(curvature))
    for name, entry in zip(names, diagonal, strict=True):
        if not (np.isfinite(entry) and entry > 0):
            raise ValueError(
                f"the log-likelihood has curvature {entry:g} along {name!r}, so no window can be chosen. "
                "See fit.diagnosis()."
            )
    return np.sqrt(np.diagonal(np.linalg.inv(curvature)) if certified else 1 / diagonal)


@functools.partial(jit_with_model, static_argnums=(0, 1, 2, 3))
def _surface(
    model: Model,
    layout: Layout,
    natural: Layout,
    columns: tuple[int, int],
    values: Values,
    dataset: Dataset,
    grid: Float[Array, "m m 2"],
) -> tuple[Float[Array, "m m"], Float[Array, ""]]:
    """ℓ − ℓ̂ on the grid, NaN outside the constraints, and ℓ̂. Differences are summed, which float32 survives."""
    target = likelihood(model, natural, values, dataset)
    estimate = natural.unconstrain(values)
    best = terms_at(target, estimate)

    def at(point: Float[Array, "2"]) -> Float[Array, ""]:
        theta = estimate.at[jnp.array(columns)].set(point.astype(estimate.dtype))
        inside = layout.contains(layout.blocks(natural.constrain(theta, values)))
        return jnp.where(jnp.all(jnp.stack(inside)), jnp.sum(terms_at(target, theta) - best), jnp.nan)

    return jax.lax.map(jax.vmap(at), grid), jnp.sum(best)


def _check_same(fit: Any, log_likelihood: Any) -> None:
    found, expected = float(log_likelihood), float(fit.log_likelihood)
    if not np.isclose(found, expected, rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"the log-likelihood at the estimate is {found:.6g} here but {expected:.6g} in the fit. "
            "Give the model, data, given and weights of the fit."
        )


def _draw_contours(axes: Any, x: Any, y: Any, surface: Float[np.ndarray, "m m"], level: float) -> None:
    """The drop of `level` heavily, the others lightly and labelled."""
    shown, heavy = np.ma.masked_invalid(surface), float(np.log1p(-level))
    levels = _contour_levels(heavy, shown.min(), shown.max())
    if not levels:
        return
    style = {"colors": "tab:blue", "linestyles": "solid", "linewidths": [2.2 if z == heavy else 0.8 for z in levels]}
    lines = axes.contour(x, y, shown, levels=levels, zorder=2, **style)
    labelled = [z for z in levels if z != heavy]
    axes.clabel(lines, levels=labelled, fmt=lambda z: f"{z:+.3g}".replace("-", "−"), fontsize="x-small")
    difference = r"$\ell - \hat{\ell}$"
    axes.plot([], [], color="tab:blue", linewidth=0.8, label=f"{difference} in nats")
    if heavy in levels:
        label = f"{difference} = −{-heavy:.2f} (χ², {100 * level:g} %)"
        axes.plot([], [], color="tab:blue", linewidth=2.2, label=label)


def _contour_levels(heavy: float, low: float, high: float) -> list[float]:
    """Drops in the picture's range, in nats; gains of the same sizes too, which a saddle or a second mode has."""
    fixed = [float(np.log(0.5)), float(np.log(0.01)), *(-drop for drop in FURTHER_OUT)]
    drops = [heavy, *(drop for drop in fixed if abs(drop / heavy - 1) > 0.05)]
    return sorted(z for drop in drops for z in (drop, -drop) if low < z < high)


def _draw_path(axes: Any, name: str, points: Float[np.ndarray, "k 2"], colour: str) -> None:
    """A dot for each step, as long as they can be told apart."""
    marker = "o" if len(points) <= MOST_DOTS else ""
    label = f"{name}, {len(points) - 1} steps"
    axes.plot(*points.T, color=colour, linewidth=1.4, marker=marker, markersize=4, label=label, zorder=3)
    axes.plot(*points[0], color=colour, marker="o", markersize=8, fillstyle="none", zorder=3)


def _draw_ellipse(axes: Any, centre: Any, curvature: Float[np.ndarray, "2 2"], level: float, conditional: bool) -> None:
    """Points L⁻ᵀ r e(φ) about the centre, with J = L Lᵀ and ½ r² the drop in nats at the level."""
    angle = np.linspace(0, 2 * np.pi, 200)
    circle = np.sqrt(-2 * np.log1p(-level)) * np.stack([np.cos(angle), np.sin(angle)])
    points = centre[:, None] + np.linalg.solve(np.linalg.cholesky(curvature).T, circle)
    label = f"Wald ellipse, {100 * level:g} %" + (", others held" if conditional else "")
    axes.plot(*points, color="tab:red", linestyle="--", linewidth=1.6, label=label, zorder=3)
