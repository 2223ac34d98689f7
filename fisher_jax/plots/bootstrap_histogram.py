"""The replicates of a bootstrap as histograms, with estimate, interval and the normal curve of Wald's approximation."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fisher_jax.errors import entry_point
from fisher_jax.inference.bootstrap import Bootstrap
from fisher_jax.plots.canvas import row_of_panels, wanted_names


@entry_point
def bootstrap_histogram(
    bootstrap: Any,
    names: str | Sequence[str] | None = None,
    *,
    level: float = 0.95,
    method: str = "percentile",
    axes: Any = None,
) -> Any:
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
        One for each name. Densities, so that areas are one; replicates that failed are left out, as the title says.

    Raises
    ------
    ValueError, TypeError
        If this is no bootstrap, a name is unknown, there are too few axes, or fewer than two replicates converged.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import fisher_jax as fj, jax, jax.numpy as jnp
    >>> from fisher_jax.plots import bootstrap_histogram
    >>> fit = fj.fit(fj.families.poisson, {"rate": 1.0}, jnp.array([2.0, 4.0, 3.0, 7.0, 1.0]))
    >>> axes = bootstrap_histogram(fj.bootstrap(fit, jax.random.key(0), 200))
    >>> axes[0].get_xlabel()
    'rate'
    """
    if not isinstance(bootstrap, Bootstrap):
        raise TypeError(f"expected a Bootstrap, got {type(bootstrap).__name__}. Give fisher_jax.bootstrap(fit, key).")
    every = bootstrap.fit.names
    wanted = wanted_names(every, names, "estimated entry")
    axes = row_of_panels(axes, len(wanted), (3.6, 3.0), what="histograms")
    drawn = bootstrap.replicates()
    if len(drawn) < 2:
        raise ValueError(
            f"{len(drawn)} of {len(bootstrap.kept)} replicates converged, which make no histogram. Print the "
            "bootstrap to see how the others ended."
        )
    layout = bootstrap.fit.layout
    estimates, errors = (np.asarray(layout.flatten(tree), float) for tree in _wald(bootstrap.fit))
    ends = np.asarray(bootstrap.flat_intervals(level, method), float)
    for panel, name in zip(axes, wanted, strict=True):
        k = every.index(name)
        _draw(panel, drawn[:, k], estimates[k], errors[k], ends[k], f"{100 * level:g} % {method}")
        panel.set(xlabel=name, ylabel="density")
    axes[0].legend(fontsize="x-small", frameon=False)
    if bootstrap.num_failed:
        axes[0].set_title(
            f"{bootstrap.num_failed} of {len(bootstrap.kept)} failed and are left out", fontsize="x-small"
        )
    return axes


def _wald(fit: Any) -> tuple[Any, Any]:
    return fit.params, fit.standard_errors()


def _draw(panel: Any, drawn: np.ndarray, estimate: float, error: float, ends: np.ndarray, label: str) -> None:
    bins = max(10, min(60, int(np.sqrt(len(drawn)))))  # whatever the tails: by their spread there may be millions
    panel.hist(drawn, bins=bins, density=True, color="tab:blue", alpha=0.5, label="replicates")
    grid = np.linspace(min(drawn.min(), estimate - 3 * error), max(drawn.max(), estimate + 3 * error), 201)
    normal = np.exp(-0.5 * ((grid - estimate) / error) ** 2) / (error * np.sqrt(2 * np.pi))
    panel.plot(grid, normal, color="tab:red", linestyle="--", linewidth=1.2, label="Wald")
    panel.axvline(estimate, color="black", linewidth=1.0, label="estimate")
    for k, end in enumerate(ends):
        panel.axvline(end, color="tab:blue", linewidth=1.0, linestyle=":", label=label if k == 0 else None)
