"""How estimates, intervals and likelihoods come to obey the theory as the number of observations grows."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fisher_jax.errors import entry_point
from fisher_jax.fitting.result import Fit, origin_of
from fisher_jax.information.derivatives import log_likelihood
from fisher_jax.plots.canvas import number, pyplot, row_of_panels, wanted_names
from fisher_jax.simulation.convergence_rate import ConvergenceRate
from fisher_jax.simulation.coverage import Coverage

_MARKERS = "os^Dv<>p"


@entry_point
def convergence_curves(
    rate: Any, names: str | Sequence[str] | None = None, *, relative: bool = False, axes: Any = None
) -> Any:
    """Draw standard deviations of estimates over n, with the asymptotic ones and the estimated exponent.

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
        Bars are two Monte Carlo standard errors. Without a bound, a dotted line has the estimated exponent.

    Raises
    ------
    ValueError, TypeError
        If this is no rate, a name is unknown, or `relative` is asked for without a bound.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import fisher_jax as fj, jax
    >>> from fisher_jax.plots import convergence_curves
    >>> found = fj.convergence_rate(
    ...     fj.families.exponential, {"rate": 2.0}, jax.random.key(0), num_observations=(10, 40), num_replicates=200,
    ...     estimator=lambda y: {"rate": 1 / y.mean()},
    ... )
    >>> convergence_curves(found).get_yscale()
    'log'
    """
    if not isinstance(rate, ConvergenceRate):
        raise TypeError(f"expected a ConvergenceRate, got {type(rate).__name__}.")
    wanted = wanted_names(rate.names, names)
    axes = _axes(axes, (4.8, 3.4))
    n = np.array(rate.num_observations, float)
    shifts = np.geomspace(0.97, 1.03, len(wanted)) if len(wanted) > 1 else np.ones(1)
    for j, (name, shift) in enumerate(zip(wanted, shifts, strict=True)):
        k = rate.names.index(name)
        value, error = rate.standard_deviation[:, k], rate.standard_deviation_error[:, k]
        asymptotic, color = rate.asymptotic_standard_deviation[:, k], f"C{j % 10}"
        if relative:
            if not np.any(np.isfinite(asymptotic)):
                raise ValueError(f"there is no bound for `{name}` to be relative to; leave relative out.")
            value, error = (value / asymptotic) ** 2, 2 * value * error / asymptotic**2
        label = name if relative else f"{name}: nᵃ, a = {number(rate.rate[k], rate.rate_error[k])}"
        axes.errorbar(
            n * shift, value, 2 * error, fmt=_MARKERS[j % 8], color=color, capsize=2, markersize=4, label=label
        )
        if not relative and np.all(np.isfinite(asymptotic)):
            axes.plot(n, asymptotic, color=color, linewidth=1.0)
        elif not relative and np.isfinite(rate.rate[k]):
            axes.plot(n, value[-1] * (n / n[-1]) ** rate.rate[k], color=color, linestyle=":", linewidth=1.0)
    axes.set_xscale("log")
    _ticks(axes, n)
    if relative:
        axes.axhline(1.0, color="black", linewidth=1.0, label="bound")
        axes.set(xlabel="observations n", ylabel="variance / Cramér-Rao bound")
    else:
        axes.set_yscale("log")
        if np.any(np.isfinite(rate.asymptotic_standard_deviation)):
            axes.plot([], [], color="black", linewidth=1.0, label="asymptotic, a = −½")
        axes.set(xlabel="observations n", ylabel="standard deviation of the estimate")
    axes.legend(fontsize="x-small", frameon=False)
    return axes


@entry_point
def coverage_curves(coverage: Any, names: str | Sequence[str] | None = None, *, axes: Any = None) -> Any:
    """Draw the actual coverage of each kind of interval over n, with the nominal level.

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
        If this is no coverage, a name is unknown, or there are too few axes.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import fisher_jax as fj, jax
    >>> from fisher_jax.plots import coverage_curves
    >>> found = fj.coverage(
    ...     fj.families.exponential, {"rate": 2.0}, jax.random.key(0), num_observations=(5, 20), num_replicates=99, kinds="wald"
    ... )
    >>> coverage_curves(found)[0].get_title()
    'rate'
    """
    if not isinstance(coverage, Coverage):
        raise TypeError(f"expected a Coverage, got {type(coverage).__name__}.")
    wanted = wanted_names(coverage.names, names)
    panels = row_of_panels(axes, len(wanted), (3.8, 3.2), sharey=True)
    n = np.array(coverage.num_observations, float)
    shifts = np.geomspace(0.95, 1.05, len(coverage.kinds)) if len(coverage.kinds) > 1 else np.ones(1)
    for panel, name in zip(panels, wanted, strict=True):
        j = coverage.names.index(name)
        panel.axhline(100 * coverage.level, color="black", linewidth=1.0)
        for k, (kind, shift) in enumerate(zip(coverage.kinds, shifts, strict=True)):
            value, error = 100 * coverage.probability[:, k, j], 200 * coverage.probability_error[:, k, j]
            style = f"{_MARKERS[k % 8]}-"
            panel.errorbar(n * shift, value, error, fmt=style, capsize=2, markersize=4, linewidth=0.8, label=kind)
        panel.set_xscale("log")
        _ticks(panel, n)
        panel.set(xlabel="observations n", title=name)
    panels[0].set_ylabel("coverage (%)")
    panels[-1].legend(fontsize="x-small", frameon=False)
    return panels


@entry_point
def quadratic_approximation(fits: Any, name: str | None = None, *, reach: float = 4.0, axes: Any = None) -> Any:
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
        If these are no fits, the name is unknown, or a fit has lost its data or did not converge.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> from fisher_jax.plots import quadratic_approximation
    >>> fit = fj.fit(fj.families.exponential, {"rate": 1.0}, jnp.array([1.0, 2.0, 0.3, 0.1]))
    >>> quadratic_approximation(fit).get_ylabel()
    'log-likelihood − maximum (nats)'
    """
    every = list(fits) if isinstance(fits, list | tuple) else [fits]
    for fit in every:
        if not isinstance(fit, Fit):
            raise TypeError(f"expected a Fit or several, got {type(fit).__name__}.")
        if not fit.converged:
            raise ValueError(f"needs fits that converged. {fit.diagnosis()}")
    if not every:
        raise ValueError("got no fit.")
    name = every[0].names[0] if name is None else name
    axes = _axes(axes, (4.8, 3.4))
    grid = np.linspace(-reach, reach, 161)
    for k, fit in enumerate(every):
        shade = 0.25 + 0.75 * (k + 1) / len(every)
        axes.plot(grid, _slice(fit, name, grid), color="tab:blue", alpha=shade, label=f"n = {fit.num_observations:g}")
    axes.plot(grid, -0.5 * grid**2, color="tab:red", linestyle="--", linewidth=1.2, label="−½ x², the information")
    axes.set(ylim=(-0.6 * reach**2, 0.03 * reach**2), ylabel="log-likelihood − maximum (nats)")
    axes.set_xlabel(f"{name} − estimate, in standard errors")
    axes.legend(fontsize="x-small", frameon=False)
    return axes


def _slice(fit: Fit, name: str, grid: np.ndarray) -> np.ndarray:
    """ℓ − ℓ̂ along one entry of θ; NaN out of its range."""
    (k,) = [fit.names.index(each) for each in wanted_names(fit.names, name)]
    model, dataset = origin_of(fit)
    natural = fit.layout.natural()
    theta = np.asarray(natural.unconstrain(fit.values), float)
    curvature = float(np.asarray(fit.information().matrix)[k, k] * fit.num_observations)
    points = np.repeat(theta[None, :], len(grid), axis=0)
    points[:, k] += grid / np.sqrt(curvature)
    inside = np.array(
        [all(map(bool, fit.layout.contains(natural.constrained_values(jnp.asarray(p), fit.values)))) for p in points]
    )
    points[~inside] = theta

    def value(point: Any) -> Any:
        params = natural.constrain(point, fit.values)
        return log_likelihood(model, params, dataset.data, given=dataset.given, weights=dataset.weights)

    found = np.asarray(jax.vmap(value)(jnp.asarray(points, natural.dtype)), float) - float(fit.log_likelihood)
    return np.where(inside & np.isfinite(found), found, np.nan)


def _axes(axes: Any, size: tuple[float, float]) -> Any:
    figures = pyplot()
    return figures.subplots(figsize=size, layout="constrained")[1] if axes is None else axes


def _ticks(axes: Any, n: np.ndarray) -> None:
    axes.set_xticks(n, [f"{x:g}" for x in n])
    axes.minorticks_off()
