"""The log-likelihood around its maximum, beside the quadratic approximation on which Wald's standard errors rest.

Along one parameter, over two, or as a profile in which the others are at their best for each value. All show ℓ(θ) − ℓ(θ̂) in
nats, or its signed root r = sign(θ − θ̂) √(2(ℓ(θ̂) − ℓ(θ))), in which the quadratic approximation is a straight line.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree
from scipy.special import ndtri

from fisher_jax.errors import check_choice, check_count, check_level, entry_point
from fisher_jax.fitting.result import Fit, origin_of
from fisher_jax.information.derivatives import hessian
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.likelihood import likelihood, terms_at
from fisher_jax.models.model import Model
from fisher_jax.models.parameter_names import choose_estimated
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.programs import jit_with_model
from fisher_jax.plots.canvas import check_result, choose, ellipse, panels
from fisher_jax.profile.profile_likelihood import Profile
from fisher_jax.profile.profile_region import ProfileRegion
from fisher_jax.reporting import listed, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCALES = {"signed_root": "signed root", "log_likelihood": "profile − maximum, in nats"}
PATH_COLORS = ("tab:orange", "tab:green", "tab:purple", "tab:brown", "tab:pink", "tab:olive")


@entry_point
def likelihood_surface(
    fit: Fit,
    names: Sequence[str] | None = None,
    *,
    level: float = 0.95,
    path: Sequence[PyTree] | Mapping[str, Sequence[PyTree]] | None = None,
    extent: float = 4.0,
    num_points: int = 81,
    axes: "Axes | None" = None,
) -> "Axes":
    """Contours of ℓ(θ) − ℓ(θ̂) in nats, total over the data, over two parameters, with the Wald ellipse beside them.

    The ellipse is {θ : ½ (θ − θ̂)ᵀ J (θ − θ̂) = −log(1 − level)}, with J the total observed information of the two. The
    contour of the same drop is drawn heavily: where the two part, the quadratic approximation behind Wald's standard
    errors is poor.

    Parameters
    ----------
    fit : Fit
        One fit. If it did not converge, what it reached is marked with its status and no ellipse is drawn.
    names : two strings, optional
        The entries on the horizontal and vertical axis, out of `fit.names`; by default the first two. The others are held
        at the estimate.
    level : float
        Probability of the ellipse and of the heavy contour by the χ² distribution of two degrees of freedom.
    path : sequence of pytrees like params, or dictionary of such, optional
        The iterates of the optimiser, from the start on; of several optimisers, by their names. Drawn as far as it lies in
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
    ValueError, TypeError
        If this is not one fit with its data, a name is unknown, an entry cannot be moved by itself (that of a simplex), or
        its curvature is zero or not finite.
    ImportError
        If matplotlib is not installed.

    Notes
    -----
    In a model of just these two entries J⁻¹ is `fit.covariance()`. In a larger one it is smaller: contours at fixed
    others are comparable with the conditional ellipse only, and the legend names it. Outside a constraint, and where the
    log-density is not finite, the picture is blank. Costs num_points² evaluations of ℓ, num_points at a time.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> fit = fj.fit(fj.families.normal, {"loc": 0.0, "scale": 1.0}, jnp.array([1.0, 2.0, 3.0, 6.0]))
    >>> axes = fj.plots.likelihood_surface(fit, ["loc", "scale"], num_points=21)
    >>> axes.get_xlabel(), axes.get_ylabel()
    ('loc', 'scale')
    """
    check_result(fit, Fit, "fisher_jax.fit")
    fit._check_single()
    check_level(level)
    check_count(num_points, 2, "num_points", entries=check_count(num_points, 2, "num_points", entries=0))
    pair = choose_estimated(fit.layout, fit.names[:2] if names is None else names, "names")
    if len(pair) != 2:
        raise ValueError(f"names={names!r}; expected two different ones out of {listed(fit.names)}.")
    names = [fit.names[k] for k in pair]
    tied = {name for _, leaf in fit.layout.free_leaves if leaf.free_size != leaf.size for name in leaf.entry_names}
    if tied := tied.intersection(names):
        raise ValueError(
            f"the constraint of {listed(sorted(tied))} ties it to other entries, so it cannot move while they are held. "
            "Choose another, or write the model in parameters that vary freely."
        )

    model, dataset = origin_of(fit)
    center = np.asarray(fit.layout.flatten(fit.params), float)[pair]
    every = hessian(model, fit.params, dataset.data, given=dataset.given, weights=dataset.weights)
    information = -np.asarray(every, float)[np.ix_(pair, pair)]
    curvature = np.abs(np.diagonal(information))
    for name, entry in zip(names, curvature, strict=True):
        if not (np.isfinite(entry) and entry > 0):
            raise ValueError(
                f"the log-likelihood has curvature {entry:g} along {name!r}, so no window can be chosen. "
                "See fit.diagnosis()."
            )
    # Away from a maximum J need not be positive definite, but each entry has a curvature of some size.
    half = extent * np.sqrt(np.diagonal(np.linalg.inv(information)) if fit.converged else 1 / curvature)
    x, y = np.linspace(center - half, center + half, num_points).T
    surface = _differences(fit, pair, np.stack(np.meshgrid(x, y), axis=-1))

    (panel,) = panels(axes, 1, (6.4, 4.8))
    _draw_contours(panel, x, y, surface, level)
    paths = path if isinstance(path, Mapping) else {} if path is None else {"optimiser's path": path}
    for (name, iterates), color in zip(paths.items(), itertools.cycle(PATH_COLORS)):
        points = np.array([fit.layout.flatten(params) for params in iterates], float)[:, pair]
        marker = "o" if len(points) <= 40 else ""  # more dots would merge into a thick line
        label = f"{name}, {len(points) - 1} steps"
        panel.plot(*points.T, color=color, linewidth=1.4, marker=marker, markersize=4, label=label, zorder=3)
        panel.plot(*points[0], color=color, marker="o", markersize=8, fillstyle="none", zorder=3)
    if fit.converged:
        points = center[:, None] + ellipse(np.linalg.inv(information), level)
        label = f"Wald ellipse, {percent(level)}" + (", others held" if len(fit.names) > 2 else "")
        panel.plot(*points, color="tab:red", linestyle="--", linewidth=1.6, label=label, zorder=3)
    label = "estimate" if fit.converged else f"where the fit ended: {fit.status.label}"
    panel.plot(*center, marker="o", markersize=6, color="black", linestyle="none", label=label, zorder=4)
    panel.set(xlabel=names[0], ylabel=names[1], xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    above = {"loc": "lower left", "bbox_to_anchor": (0, 1.01), "borderaxespad": 0, "ncols": 2, "columnspacing": 1.0}
    panel.legend(fontsize="x-small", frameon=False, **above)
    return panel


def _draw_contours(axes: Any, x: Any, y: Any, surface: Float[np.ndarray, "m m"], level: float) -> None:
    """The drop of `level` heavily, others lightly and labelled."""
    shown, heavy = np.ma.masked_invalid(surface), float(np.log1p(-level))
    # Likelihood ratios of 1/2 and 1/100, then far drops. A saddle or a second mode has gains of the same sizes.
    light = [float(np.log(0.5)), float(np.log(0.01)), -10.0, -30.0, -100.0, -300.0]
    drops = [heavy, *(drop for drop in light if abs(drop / heavy - 1) > 0.05)]
    levels = sorted(z for drop in drops for z in (drop, -drop) if shown.min() < z < shown.max())
    if not levels:
        return
    widths = [2.2 if z == heavy else 0.8 for z in levels]
    lines = axes.contour(x, y, shown, levels, colors="tab:blue", linestyles="solid", linewidths=widths, zorder=2)
    axes.clabel(lines, [z for z in levels if z != heavy], fmt=lambda z: f"{z:+.3g}", fontsize="x-small")
    difference = r"$\ell - \hat{\ell}$"
    axes.plot([], [], color="tab:blue", linewidth=0.8, label=f"{difference} in nats")
    if heavy in levels:
        label = f"{difference} = {heavy:.2f} (χ², {percent(level)})"
        axes.plot([], [], color="tab:blue", linewidth=2.2, label=label)


def _differences(fit: Fit, columns: list[int], points: Float[np.ndarray, "a b c"]) -> Float[np.ndarray, "a b"]:
    """ℓ(θ) − ℓ(θ̂) with some entries of θ at each point and the others at the estimate; NaN where it is not finite."""
    model, dataset = origin_of(fit)
    differences = _differences_inside(model, fit.layout, tuple(columns), fit.values, dataset, jnp.asarray(points))
    return np.where(np.isfinite(differences), np.asarray(differences, float), np.nan)


@functools.partial(jit_with_model, static_argnums=(0, 1, 2))
def _differences_inside(
    model: Model,
    layout: Layout,
    columns: tuple[int, ...],
    values: Values,
    dataset: Dataset,
    points: Float[Array, "a b c"],
) -> Float[Array, "a b"]:
    """The same, NaN outside the constraints. Differences of terms are summed, which keeps their digits in float32."""
    natural = layout.natural()
    target = likelihood(model, natural, values, dataset)
    estimate = natural.unconstrain(values)
    best = terms_at(target, estimate)

    def at(point: Float[Array, " c"]) -> Float[Array, ""]:
        theta = estimate.at[jnp.array(columns)].set(point.astype(estimate.dtype))
        inside = layout.contains(layout.blocks(natural.constrain(theta, values)))
        return jnp.where(jnp.all(jnp.stack(inside)), jnp.sum(terms_at(target, theta) - best), jnp.nan)

    return jax.lax.map(jax.vmap(at), points)


@entry_point
def quadratic_approximation(
    fits: Fit | Sequence[Fit], name: str | None = None, *, reach: float = 4.0, axes: "Axes | None" = None
) -> "Axes":
    """Draw log-likelihoods along one parameter beside the parabola −½ x², each in its own standard errors.

    Parameters
    ----------
    fits : Fit or sequence of Fit
        Fits to more and more data, as `fisher_jax.fit` returned them.
    name : str, optional
        The entry that is moved, the others held at their estimates; by default the first.
    reach : float
        How far, in the standard errors that the entry has where the others are known.
    axes : matplotlib Axes, optional
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib Axes
        The curvature at the top is the observed information by construction: what is to be seen is how far out it holds. A
        positive parameter is left out where it would be negative.

    Raises
    ------
    ValueError, TypeError
        If these are not fits, the name is unknown, or a fit has no data or did not converge.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> fit = fj.fit(fj.families.exponential, {"rate": 1.0}, jnp.array([1.0, 2.0, 0.3, 0.1]))
    >>> fj.plots.quadratic_approximation(fit).get_ylabel()
    'log-likelihood − maximum (nats)'
    """
    every: list[Any] = list(fits) if isinstance(fits, list | tuple) else [fits]
    if not every:
        raise ValueError("got no fit.")
    for fit in every:
        check_result(fit, Fit, "fisher_jax.fit")
        if not fit.converged:
            raise ValueError(f"needs fits that converged. {fit.diagnosis()}")
    name = every[0].names[0] if name is None else name
    (panel,) = panels(axes, 1, (4.8, 3.4))
    grid = np.linspace(-reach, reach, 161)
    for k, fit in enumerate(every):
        if len(columns := choose_estimated(fit.layout, name, "names")) > 1:
            raise ValueError(f"{name!r} has several entries. Give one of {listed([fit.names[j] for j in columns])}.")
        (column,) = columns
        information = float(np.asarray(fit.information().matrix)[column, column] * fit.num_observations)
        center = np.asarray(fit.layout.flatten(fit.params), float)[column]
        heights = _differences(fit, columns, (center + grid / np.sqrt(information))[None, :, None])[0]
        shade = 0.25 + 0.75 * (k + 1) / len(every)
        panel.plot(grid, heights, color="tab:blue", alpha=shade, label=f"n = {fit.num_observations:g}")
    panel.plot(grid, -0.5 * grid**2, color="tab:red", linestyle="--", linewidth=1.2, label="−½ x², the information")
    panel.set(ylim=(-0.6 * reach**2, 0.03 * reach**2), ylabel="log-likelihood − maximum (nats)")
    panel.set_xlabel(f"{name} − estimate, in standard errors")
    panel.legend(fontsize="x-small", frameon=False)
    return panel


@entry_point
def profile_curves(
    profile: Profile,
    names: str | Sequence[str] | None = None,
    *,
    scale: str = "signed_root",
    axes: "Axes | Sequence[Axes] | np.ndarray | None" = None,
) -> np.ndarray:
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
        If this is not a profile, a name or the scale is unknown, or there are too few axes.
    ImportError
        If matplotlib is not installed.

    Notes
    -----
    The curve is a monotone cubic of r through the points that were computed, which are marked; those farther than half as far
    again as the cut-off are left out. Where an end is infinite the curve levels out and is cut off. Positive values that differ
    by a factor of fifty or more are drawn on a logarithmic axis.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> fit = fj.fit(fj.families.poisson, {"rate": 1.0}, jnp.array([2.0, 4.0, 3.0]))
    >>> axes = fj.plots.profile_curves(fj.profile_likelihood(fit))
    >>> axes[0].get_xlabel()
    'rate'
    """
    check_result(profile, Profile, "fisher_jax.profile_likelihood")
    if profile.fit.has_batch:
        raise ValueError(f"this is of {len(profile)} fits. Give that of one, as profile[3].")
    check_choice(scale, SCALES, "scale")
    rows = choose(profile.names, names)
    all_axes = panels(axes, len(rows), (3.6, 3.0), columns=3)
    for panel, row in zip(all_axes, rows, strict=True):
        _draw_profile(panel, profile, row, scale)
    all_axes[0].legend(fontsize="x-small", frameon=False)
    return all_axes


def _draw_profile(panel: Any, profile: Profile, row: int, scale: str) -> None:
    from scipy.interpolate import PchipInterpolator

    def scaled(root: Any) -> Any:
        return -0.5 * root**2 if scale == "log_likelihood" else root

    panel.set(xlabel=profile.names[row], ylabel=SCALES[scale])
    cut = float(ndtri(0.5 + 0.5 * profile.level))  # of the signed root, ±√χ²₁(level)
    value, root = np.asarray(profile.value[row], float), np.asarray(profile.signed_root[row], float)
    near = np.isfinite(value) & np.isfinite(root) & (np.abs(root) <= 1.5 * cut)
    value, root = value[near], root[near]
    distinct = np.diff(value, prepend=-np.inf) > 0  # the interpolation needs increasing values
    value, root = value[distinct], root[distinct]
    if not len(value):
        return
    is_wide = value[0] > 0 and value[-1] > 50.0 * value[0]
    place, back = (np.log(value), np.exp) if is_wide else (value, np.asarray)
    grid, curve = place, root
    if len(value) > 1:
        low, high = place[0], place[-1]
        # Where r hardly changes from point to point, the profile has levelled out, often for a long way: of that, half as
        # much is drawn on each side as of the part where it falls.
        steep = np.flatnonzero(np.abs(np.diff(root)) > 0.05)
        if len(steep):
            first, last = place[steep[0]], place[steep[-1] + 1]
            low, high = max(low, first - 0.5 * (last - first)), min(high, last + 0.5 * (last - first))
        grid = np.linspace(low, high, 201)
        curve = PchipInterpolator(place, root)(grid)
    grid = back(grid)
    panel.plot(grid, scaled(curve), color="tab:blue", linewidth=1.8, label="profile", zorder=3)
    inside = (value >= grid[0]) & (value <= grid[-1])
    panel.plot(value[inside], scaled(root[inside]), "o", color="tab:blue", markersize=3.5, zorder=3)
    estimate, error = float(profile.estimate[row]), float(profile.standard_error[row])
    if np.isfinite(error) and error > 0:
        straight = (grid - estimate) / error
        near = np.abs(straight) < 1.5 * cut
        wald = {"color": "tab:red", "linestyle": "--", "linewidth": 1.2, "label": "Wald"}
        panel.plot(grid[near], scaled(straight[near]), **wald)
    for height, label in ((scaled(-cut), percent(profile.level)), (scaled(cut), None)):
        panel.axhline(height, color="0.4", linewidth=0.8, linestyle=":", label=label)
    slack = 1e-3 * (grid[-1] - grid[0])  # the outermost point is the end of the interval but for rounding
    for limit in (profile.lower[row], profile.upper[row]):
        if np.isfinite(limit) and grid[0] - slack <= limit <= grid[-1] + slack:
            panel.axvline(float(limit), color="tab:blue", linewidth=0.8, linestyle="-", alpha=0.5)
    if is_wide:
        panel.set_xscale("log")


@entry_point
def profile_region(
    regions: ProfileRegion | Sequence[ProfileRegion], *, wald: bool = True, axes: "Axes | None" = None
) -> "Axes":
    """Draw likelihood regions of two numbers, with the ellipses of Wald's approximation for the same cut-offs.

    Parameters
    ----------
    regions : ProfileRegion, or sequence of them
        As `fisher_jax.profile_region` returned them: of several levels, or of several fits, with the same two names.
    wald : bool
        Draw the ellipses {ψ : (ψ − ψ̂)ᵀ V⁻¹ (ψ − ψ̂) = 2 × cut-off}, in the user's unit.
    axes : matplotlib Axes, optional
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib Axes
        Where a boundary is not closed its ends are marked by open circles, and the legend names it. Positive values that differ
        by a factor of fifty or more are drawn on a logarithmic axis. The window ends where a point is a thousand times as
        large as the estimate there, or twenty times as far from it as half of the points are.

    Raises
    ------
    ValueError, TypeError
        If these are not regions of the same two numbers.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> fit = fj.fit(fj.families.normal, {"loc": 0.0, "scale": 1.0}, jnp.array([1.0, 2.0, 3.0, 6.0]))
    >>> regions = [fj.profile_region(fit, ("loc", "scale"), level=level, num_points=16) for level in (0.5, 0.95)]
    >>> axes = fj.plots.profile_region(regions)
    >>> axes.get_xlabel(), axes.get_ylabel()
    ('loc', 'scale')
    """
    every: list[Any] = list(regions) if isinstance(regions, list | tuple) else [regions]
    if not every:
        raise ValueError("got no region.")
    for region in every:
        check_result(region, ProfileRegion, "fisher_jax.profile_region")
    names = every[0].names
    if others := [region.names for region in every if region.names != names]:
        raise ValueError(
            f"regions of {listed(names)} and of {listed(others[0])} have no axes in common. Draw them apart."
        )
    (panel,) = panels(axes, 1, (5.2, 4.4))
    all_points = np.concatenate([np.asarray(region.points, float) for region in every])
    all_points = all_points[np.all(np.isfinite(all_points), axis=1)]
    outlines = []
    for k, region in enumerate(sorted(every, key=lambda region: region.cut)):
        color, estimate = f"C{k}", np.asarray(region.estimate, float)
        label = percent(region.level) + ("" if region.joint else " each") + ("" if region.closed else ", not closed")
        for curve in region.curves:
            panel.plot(*curve.T, color=color, linewidth=1.8, label=label, zorder=3)
            label = "_"  # of a region in several pieces once
            if not region.closed:
                panel.plot(*curve[[0, -1]].T, "o", color=color, markersize=5, fillstyle="none", zorder=3)
        covariance = np.asarray(region.covariance, float)
        if wald and np.all(np.isfinite(covariance)) and np.linalg.det(covariance) > 0:
            # The probability whose quantile of χ² with two degrees of freedom is twice the cut-off.
            outlines.append(estimate[:, None] + ellipse(covariance, float(-np.expm1(-region.cut))))
            panel.plot(*outlines[-1], color=color, linestyle="--", linewidth=1.0, zorder=2, label="_" if k else "Wald")
        panel.plot(*estimate, marker="+", markersize=9, color="black", linestyle="none", zorder=4)
    panel.set(xlabel=names[0], ylabel=names[1])
    for axis, (scale, limits) in enumerate(
        zip((panel.set_xscale, panel.set_yscale), (panel.set_xlim, panel.set_ylim), strict=True)
    ):
        values, center = all_points[:, axis], float(every[0].estimate[axis])
        if not len(values):
            continue
        if values.min() > 0 and values.max() > 50.0 * values.min():
            scale("log")
            limits(max(0.8 * values.min(), 1e-3 * center), min(1.25 * values.max(), 1e3 * center))
            continue
        away = np.abs(values - center)
        values = np.concatenate([values[away <= 20.0 * np.median(away)], *(outline[axis] for outline in outlines)])
        margin = 0.05 * np.ptp(values)
        limits(values.min() - margin, values.max() + margin)
    panel.legend(fontsize="x-small", frameon=False)
    return panel
