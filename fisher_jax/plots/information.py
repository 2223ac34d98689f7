"""Information matrices as heat maps, and as the ellipses in which an efficient estimate falls."""

import textwrap
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, PyTree

from fisher_jax.errors import check_level, entry_point
from fisher_jax.information.matrix import Covariance, Information, propagate, standard_errors_of_entries
from fisher_jax.models.parameters import layout_of
from fisher_jax.numerics import linalg
from fisher_jax.plots.canvas import listed, number, pyplot
from fisher_jax.plots.region import Region, region_of

MOST_WRITTEN = 12  # rows of a heat map whose entries are written out
MOST_NAMED = 40  # names along an axis of a heat map
MOST_PANELS = 8  # parameters in a grid of ellipses that nobody chose
BAND = 2.0  # half-width of the bands around sampled ellipses, in standard errors


@entry_point
def information_heat_map(information: Information | Covariance, *, scaled: bool = True, axes: Any = None) -> Any:
    """The entries of an information or covariance matrix as colours, Mᵢⱼ/√(Mᵢᵢ Mⱼⱼ) or as they are.

    Parameters
    ----------
    information : Information or Covariance
        One matrix (q, q). Of a `Covariance` the scaled entries are the correlations.
    scaled : bool
        Whether to scale to unit diagonal, which does away with the units of the parameters. The colours then run from −1
        to 1; otherwise as far either way as the largest entry.
    axes : matplotlib Axes, optional
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib Axes
        With the names on both axes and the route above. Up to 12 parameters, each entry is written out, where it has an
        error with its standard error (of the scaled entry, if scaled).

    Raises
    ------
    TypeError
        If it is no such record, or its entries are not known yet (under `jax.jit` and the like).
    ValueError
        If the matrix has a batch axis.
    ImportError
        If matplotlib is not installed.

    Notes
    -----
    Entries that are not finite are grey. Scaled entries off the diagonal lie within ±1 if the matrix is positive definite;
    where some lie beyond, the colour bar ends in arrows. A zero on the diagonal is left as it is. With more than 40
    parameters only some of the names are written.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> from fisher_jax.plots import information_heat_map
    >>> from jax.scipy.stats import norm
    >>> def log_density(params, y):
    ...     return norm.logpdf(y, params["loc"], params["scale"])
    >>> y = jnp.array([1.0, 2.0, 3.0, 6.0])
    >>> axes = information_heat_map(fj.observed_information(log_density, {"loc": 2.0, "scale": 2.0}, y))
    >>> [text.get_text() for text in axes.texts]
    ['1', '0.649', '0.649', '1']
    """
    figures = pyplot()
    _check_record(information, (Information, Covariance))
    matrix, errors = information.matrix, information.errors
    if scaled:
        matrix, errors = propagate(lambda m: linalg.to_unit_diagonal(m)[0], matrix, errors)
    uncertainty = np.array(standard_errors_of_entries(matrix, errors), float)
    if scaled:
        np.fill_diagonal(uncertainty, 0.0)  # a one whatever was drawn; only rounding says otherwise
    values, names = np.asarray(matrix, float), information.names
    largest = float(np.max(np.abs(values), initial=0.0, where=np.isfinite(values)))
    limit = 1.0 if scaled else largest or 1.0

    if axes is None:
        side = float(np.clip(2.4 + 0.75 * len(names), 3.6, 9.0))
        axes = figures.subplots(figsize=(side + 1.0, side), layout="constrained")[1]
    colours = figures.get_cmap("RdBu_r").with_extremes(bad="0.8")
    image = axes.imshow(np.ma.masked_invalid(values), cmap=colours, vmin=-limit, vmax=limit)
    extend = "both" if largest > limit * (1 + 1e-3) else "neither"
    axes.figure.colorbar(image, ax=axes, label=_quantity(information, scaled), extend=extend)
    if len(names) <= MOST_WRITTEN:
        _write_entries(axes, values, uncertainty, limit, decimals=3 if scaled else None)
    _write_names(axes, names)
    title = f"{type(information).__name__}, {information.route}"
    axes.set_title(textwrap.fill(title, 60), fontsize="small")
    return axes


@entry_point
def information_ellipses(
    information: Information,
    centre: PyTree = None,
    *,
    names: Sequence[str] | None = None,
    num_observations: Any = 1,
    level: float = 0.95,
    others: Sequence[Information] | None = None,
    labels: Sequence[str] | None = None,
    axes: Any = None,
) -> Any:
    """Ellipses {d : ½ dᵀ M d = −log(1 − level)} of each pair of parameters, with M their total information.

    They tell how far from the truth an efficient estimate falls from n observations: the solid ellipse where all parameters
    are estimated, so that M⁻¹ is a block of (n I)⁻¹, the dashed one where those outside the pair are known, so that M is a
    block of n I. On the diagonal stand the standard errors, and the normal densities of both kinds.

    Parameters
    ----------
    information : Information
        Per observation, of q parameters.
    centre : pytree like params, or vector (q,), optional
        Where the ellipses lie; a vector goes by the order of `information.names`. By default they lie at zero, and the axes
        are deviations.
    names : strings, optional
        Parameter entries, or names of whole leaves, to draw; by default all, of which there may be 8.
    num_observations : number
        n.
    level : float
        Probability that the estimate of two parameters falls in their ellipse: χ² with two degrees of freedom.
    others : sequence of Information, optional
        Further ones per observation on the same parameters, drawn in other colours.
    labels : strings, optional
        What the legend calls the information and the others; by default their routes.
    axes : array (m, m) of matplotlib Axes, optional
        Where to draw m parameters; by default a new figure.

    Returns
    -------
    array (m, m) of matplotlib Axes
        Row and column by parameter. Those above the diagonal are switched off, and the last of the first row has the
        legend. With one parameter, there is its density only.

    Raises
    ------
    TypeError
        If it is no `Information`, or its entries are not known yet (under `jax.jit` and the like).
    ValueError
        If a matrix has a batch axis or is not positive definite, there are more than 8 parameters and no `names`, the
        names or the centre do not fit the information, the others are about other parameters, or level or n is no such.
    ImportError
        If matplotlib is not installed.

    Notes
    -----
    An ellipse reaches SE · √(−2 log(1 − level)) either way along each axis, 2.45 SE at 95 %, since it holds two parameters
    at once; an interval for one reaches 1.96 SE. Around the ellipse of a sampled information lies a light band of ±2
    standard errors of its radius in each direction, to first order as everywhere in the record. If it reaches inwards to
    the centre, there were too few draws to say anything. The densities are drawn with the same height.

    The picture holds for the Fisher information at the truth, or for consistent estimates of it at the maximum. For the
    empirical information under a wrong model it shows no sampling distribution.

    References
    ----------
    van der Vaart, A. W. (1998), Asymptotic Statistics, theorem 5.39.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> from fisher_jax.plots import information_ellipses
    >>> from jax.scipy.stats import norm
    >>> def log_density(params, y):
    ...     return norm.logpdf(y, params["loc"], params["scale"])
    >>> params, y = {"loc": 2.0, "scale": 2.0}, jnp.array([1.0, 2.0, 3.0, 6.0])
    >>> observed, empirical = (f(log_density, params, y) for f in (fj.observed_information, fj.empirical_fisher))
    >>> axes = information_ellipses(observed, params, num_observations=4, others=[empirical], labels=["H", "OPG"])
    >>> [text.get_text() for text in axes[0, 0].texts]
    ['SE 1.31', 'SE 1.78']
    """
    figures = pyplot()
    check_level(level)
    _check_record(information, (Information,))
    records = [information, *([others] if isinstance(others, Information) else others or [])]
    said = _labels(records, labels)
    kept = _chosen(information.names, names)
    middle = _centre(centre, information.names)[kept]
    regions = [
        region_of(record, label, information.names, num_observations)
        for record, label in zip(records, said, strict=True)
    ]
    shown = [information.names[k] for k in kept]
    axes = _grid(figures, axes, len(kept))
    reach = 1.15 * max(_radius(level), 2.0) * _largest_errors(regions)[kept]
    for i, row in enumerate(kept):
        for j, column in enumerate(kept[:i]):
            for k, found in enumerate(regions):
                _draw_pair(axes[i, j], found, middle[[j, i]], [column, row], level, f"C{k}")
            axes[i, j].plot(middle[j], middle[i], marker="+", color="black", zorder=4)
            axes[i, j].set_ylim(middle[i] - reach[i], middle[i] + reach[i])
        for k, found in enumerate(regions):
            _draw_density(axes[i, i], found, middle[i], row, reach[i], f"C{k}", line=len(regions) - 1 - k)
    _finish(axes, shown, middle, reach, is_centred=centre is not None)
    _legend(axes, regions, level, several=len(information.names) > 1)
    return axes


def _check_record(record: Any, kinds: tuple[type, ...]) -> None:
    is_record = isinstance(record, kinds)
    if not is_record:
        expected = " or a ".join(f"fisher_jax.{kind.__name__}" for kind in kinds)
        raise TypeError(f"expected a {expected}, but got {type(record).__name__}.")
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((record.matrix, record.errors))):
        raise TypeError(
            f"the matrix has no numbers yet, because it is being traced. Return the {type(record).__name__} "
            "from jit, vmap or grad and draw it outside."
        )
    if np.ndim(record.matrix) != 2:
        raise ValueError(
            f"draws one matrix, but this one has shape {np.shape(record.matrix)}. "
            "Take one of the batch by jax.tree.map(lambda leaf: leaf[i], information)."
        )


def _quantity(record: Information | Covariance, scaled: bool) -> str:
    if isinstance(record, Covariance):
        return "correlation" if scaled else "covariance"
    return "information scaled to unit diagonal" if scaled else "information, nats per product of units"


def _write_entries(axes: Any, values: Any, uncertainty: Any, limit: float, decimals: int | None) -> None:
    """Each entry with its error; where it has none, to as many decimals at most."""
    for i, j in np.ndindex(*values.shape):
        value = values[i, j]
        if decimals is not None and not uncertainty[i, j]:
            value = np.round(value, decimals) + 0.0  # not to write minus zero
        colour = "white" if abs(value) > 0.65 * limit else "black"
        style = {"ha": "center", "va": "center", "color": colour, "fontsize": "small"}
        axes.text(j, i, number(value, uncertainty[i, j], between="\n"), **style)


def _write_names(axes: Any, names: tuple[str, ...]) -> None:
    """Names on both axes, upright below where they would run into each other; every so many of very many."""
    places = np.arange(0, len(names), -(-len(names) // MOST_NAMED) or 1)
    chosen = [names[k] for k in places]
    size = "small" if len(names) <= MOST_WRITTEN else float(np.clip(180 / len(chosen), 5.0, 8.0))
    upright = len(names) > MOST_WRITTEN or max(map(len, chosen), default=0) > 7
    axes.set_xticks(places, chosen, fontsize=size, rotation=90 if upright else 0)
    axes.set_yticks(places, chosen, fontsize=size)


def _labels(records: list[Information], labels: Sequence[str] | None) -> list[str]:
    for record in records[1:]:
        _check_record(record, (Information,))
        if set(record.names) != set(records[0].names):
            raise ValueError(
                f"the information is on {listed(records[0].names)}, but one of the others on "
                f"{listed(record.names)}. They must be about the same parameters: use fix or marginal first."
            )
    if labels is None:
        return [record.route for record in records]
    if isinstance(labels, str) or len(labels) != len(records):
        raise ValueError(f"labels={labels!r}; expected {len(records)}, for the information and the others.")
    return list(labels)


def _chosen(own: tuple[str, ...], names: Sequence[str] | None) -> list[int]:
    """Where the names to draw stand; a leaf's name stands for all its entries."""
    if names is None:
        if len(own) > MOST_PANELS:
            raise ValueError(
                f"{len(own)} parameters make {len(own) * (len(own) - 1) // 2} pairs. Choose some by "
                f"names=[…] out of {listed(own[:MOST_PANELS])}, …; the others count as unknown (solid) or known (dashed)."
            )
        return list(range(len(own)))
    kept: list[int] = []
    for name in [names] if isinstance(names, str) else names:
        here = [k for k, entry in enumerate(own) if entry == name or entry.startswith((f"{name}[", f"{name}."))]
        if not here:
            raise ValueError(f"no parameter is named {name!r}; there are {listed(own)}.")
        kept += here
    if not kept or len(kept) != len(set(kept)):
        raise ValueError(f"names={names!r}; expected one or more different names.")
    return kept


def _centre(centre: PyTree, names: tuple[str, ...]) -> Float[np.ndarray, " q"]:
    if centre is None:
        return np.zeros(len(names))
    layout, _ = layout_of(centre, ())
    values = np.asarray(layout.flatten(centre), float)
    if set(names) <= set(layout.names):
        return values[[layout.names.index(name) for name in names]]
    is_vector = type(centre) in (list, tuple) or np.ndim(centre) == 1
    if is_vector and values.shape == (len(names),):
        return values
    raise ValueError(
        f"the information is on {listed(names)}, but centre has {listed(layout.names)}. "
        "Give the parameters themselves, or one number for each name in this order."
    )


def _radius(level: float) -> float:
    return float(np.sqrt(-2 * np.log1p(-level)))


def _largest_errors(regions: list[Region]) -> Float[np.ndarray, " q"]:
    """Per parameter, the largest standard error of all regions, with what its own error adds."""
    every = [found.standard_errors() for found in regions]
    return np.max([value + np.minimum(BAND * error, value) for value, error in every], axis=0)


def _grid(figures: Any, axes: Any, m: int) -> Any:
    if axes is None:
        side = 2.1 * m + 0.9 if m > 1 else 4.0
        return figures.subplots(m, m, figsize=(side, side), layout="constrained", squeeze=False)[1]
    axes = np.atleast_2d(np.asarray(axes, object))
    if axes.shape != (m, m):
        raise ValueError(f"axes of shape {axes.shape} for {m} parameters; expected ({m}, {m}).")
    return axes


def _draw_pair(axes: Any, found: Region, middle: Any, pair: list[int], level: float, colour: str) -> None:
    """The ellipse where the others are unknown, that where they are known if there are others, and their bands."""
    for known in (False, True) if len(found.matrix) > 2 else (False,):
        points, share = found.ellipse(pair, _radius(level), known=known)
        if len(found.errors):
            inner, outer = np.maximum(1 - BAND * share, 0) * points, (1 + BAND * share) * points
            ring = middle[:, None] + np.concatenate([outer, inner[:, ::-1]], axis=1)
            axes.fill(*ring, color=colour, alpha=0.2, linewidth=0, zorder=1)
        axes.plot(*(middle[:, None] + points), color=colour, linewidth=1.4, linestyle="--" if known else "-", zorder=3)


def _draw_density(axes: Any, found: Region, middle: float, k: int, reach: float, colour: str, line: int) -> None:
    """Normal densities of one height, and above them the standard error in words."""
    value, error = found.standard_errors()
    deviation = np.linspace(-reach, reach, 201)
    axes.plot(middle + deviation, np.exp(-0.5 * (deviation / value[k]) ** 2), color=colour, linewidth=1.4)
    if len(found.matrix) > 1:
        known = np.exp(-0.5 * deviation**2 * found.matrix[k, k])
        axes.plot(middle + deviation, known, color=colour, linewidth=1.4, linestyle="--")
    above = {"xycoords": "axes fraction", "xytext": (0, 3 + 12 * line), "textcoords": "offset points", "ha": "center"}
    axes.annotate(f"SE {number(value[k], error[k])}", (0.5, 1.0), color=colour, fontsize="small", **above)


def _finish(axes: Any, names: list[str], middle: Any, reach: Any, *, is_centred: bool) -> None:
    """Limits, names on the outer edges, and nothing above the diagonal."""
    titles = names if is_centred else [f"{name}{' ' if len(name) < 8 else chr(10)}− estimate" for name in names]
    for i, j in np.ndindex(*axes.shape):
        panel, last = axes[i, j], i == len(names) - 1
        if j > i:
            panel.set_axis_off()
            continue
        panel.set_xlim(middle[j] - reach[j], middle[j] + reach[j])
        panel.locator_params(nbins=4)
        panel.tick_params(labelsize="small", labelbottom=last, labelleft=0 == j < i, left=i != j)
        if last:
            panel.set_xlabel(titles[j])
            panel.tick_params(axis="x", rotation=45)
        if i == j:
            panel.set_ylim(0, 1.15)
            panel.set_yticks([])
        elif j == 0:
            panel.set_ylabel(titles[i])
    axes[0, 0].figure.align_labels(axes.ravel())


def _legend(axes: Any, regions: list[Region], level: float, *, several: bool) -> None:
    corner, m = axes[0, -1], len(axes)
    said = [textwrap.fill(found.label, 24 if m == 2 else 40) for found in regions]
    handles = [corner.plot([], [], color=f"C{k}", label=label)[0] for k, label in enumerate(said)]
    if several:
        size = f", {100 * level:g} %" if m > 1 else ""
        handles += corner.plot([], [], color="0.4", label=f"others unknown{size}")
        handles += corner.plot([], [], color="0.4", linestyle="--", label=f"others known{size}")
    if m > 1 and any(len(found.errors) for found in regions):
        handles += corner.fill([], [], color="0.4", alpha=0.2, linewidth=0, label=f"ellipse ± {BAND:g} errors")
    if m > 1:
        corner.legend(handles=handles, loc="upper right", fontsize="small", frameon=False).set_in_layout(False)
    else:
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.25)}
        corner.legend(handles=handles, fontsize="small", frameon=False, **below)
