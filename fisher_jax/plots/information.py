"""Information matrices as heat maps, and as the ellipses in which an efficient estimate falls."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, PyTree

from fisher_jax.errors import check_level, entry_point, is_number, shown
from fisher_jax.information.matrix import Covariance, Information, propagate, standard_errors_of_entries
from fisher_jax.models.parameters import layout_of
from fisher_jax.numerics import linalg
from fisher_jax.plots.canvas import check_result, choose, ellipse, panels, pyplot
from fisher_jax.reporting import listed, percent, with_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_WRITTEN = 12  # rows of a heat map whose entries are written out
MOST_NAMED = 40  # names along an axis of a heat map
MOST_PANELS = 8  # parameters in a grid of ellipses without `names`
BAND = 2.0  # half-width of the bands around sampled ellipses, in standard errors


@entry_point
def information_heat_map(
    information: Information | Covariance, *, scaled: bool = True, axes: "Axes | None" = None
) -> "Axes":
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
        If it is neither, or its entries have no values yet (under `jax.jit` and the like).
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
    >>> from jax.scipy.stats import norm
    >>> def log_density(params, y):
    ...     return norm.logpdf(y, params["loc"], params["scale"])
    >>> y = jnp.array([1.0, 2.0, 3.0, 6.0])
    >>> axes = fj.plots.information_heat_map(fj.observed_information(log_density, {"loc": 2.0, "scale": 2.0}, y))
    >>> [text.get_text() for text in axes.texts]
    ['1', '0.649', '0.649', '1']
    """
    _check_record(information, (Information, Covariance))
    names, matrix, errors = information.names, information.matrix, information.errors
    quantity = "information, nats per product of units" if isinstance(information, Information) else "covariance"
    if scaled:
        matrix, errors = propagate(_at_unit_diagonal, matrix, errors)
        quantity = "information scaled to unit diagonal" if isinstance(information, Information) else "correlation"
    uncertainty = np.array(standard_errors_of_entries(matrix, errors), float)
    if scaled:
        np.fill_diagonal(uncertainty, 0.0)  # a one whatever was drawn, but for rounding
    values = np.asarray(matrix, float)
    largest = float(np.max(np.abs(values), initial=0.0, where=np.isfinite(values)))
    limit = 1.0 if scaled else largest or 1.0

    side = float(np.clip(2.4 + 0.75 * len(names), 3.6, 9.0))
    (panel,) = panels(axes, 1, (side + 1.0, side))
    colors = pyplot().get_cmap("RdBu_r").with_extremes(bad="0.8")
    image = panel.imshow(np.ma.masked_invalid(values), cmap=colors, vmin=-limit, vmax=limit)
    extend = "both" if largest > limit * (1 + 1e-3) else "neither"
    panel.figure.colorbar(image, ax=panel, label=quantity, extend=extend)
    for i, j in np.ndindex(values.shape) if len(names) <= MOST_WRITTEN else ():
        value, error = values[i, j], uncertainty[i, j]
        if scaled and not error:
            value = np.round(value, 3) + 0.0  # not to write minus zero
        color = "white" if abs(value) > 0.65 * limit else "black"
        text = _with_error(value, error).replace(" ± ", "\n± ")
        panel.text(j, i, text, ha="center", va="center", color=color, fontsize="small")
    # Names below the matrix are turned where they would run into each other; of many names, evenly spaced ones are written.
    places = np.arange(0, len(names), -(-len(names) // MOST_NAMED) or 1)
    labels = [names[k] for k in places]
    size = "small" if len(names) <= MOST_WRITTEN else float(np.clip(180 / len(labels), 5.0, 8.0))
    is_upright = len(names) > MOST_WRITTEN or max(map(len, labels), default=0) > 7
    panel.set_xticks(places, labels, fontsize=size, rotation=90 if is_upright else 0)
    panel.set_yticks(places, labels, fontsize=size)
    panel.set_title(textwrap.fill(f"{type(information).__name__}, {information.route}", 60), fontsize="small")
    return panel


def _at_unit_diagonal(matrix: Any) -> Any:
    return linalg.to_unit_diagonal(matrix)[0]


@entry_point
def information_ellipses(
    information: Information,
    names: str | Sequence[str] | None = None,
    *,
    center: PyTree = None,
    num_observations: float = 1,
    level: float = 0.95,
    others: Sequence[Information] | None = None,
    labels: Sequence[str] | None = None,
    axes: "Axes | Sequence[Axes] | np.ndarray | None" = None,
) -> np.ndarray:
    """Ellipses {d : ½ dᵀ M d = −log(1 − level)} of each pair of parameters, with M their total information.

    They show how far from the truth an efficient estimate from n observations falls: the solid ellipse where all parameters
    are estimated, so that M⁻¹ is a block of (n I)⁻¹, the dashed one where those outside the pair are known, so that M is a
    block of n I. On the diagonal stand the standard errors, and the normal densities of both kinds.

    Parameters
    ----------
    information : Information
        Per observation, of q parameters.
    names : str or sequence of str, optional
        Parameter entries, or names of whole leaves, to draw; by default all, of which there may be 8.
    center : pytree like params, or vector (q,), optional
        Where the ellipses lie; a vector goes by the order of `information.names`. By default they lie at zero, and the axes
        are deviations.
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
        If it is not an `Information`, or its entries have no values yet (under `jax.jit` and the like).
    ValueError
        If a matrix has a batch axis or is not positive definite, there are more than 8 parameters and no `names`, the
        names or the center do not fit the information, the others are about other parameters, or the level or n is invalid.
    ImportError
        If matplotlib is not installed.

    Notes
    -----
    An ellipse reaches SE · √(−2 log(1 − level)) either way along each axis, 2.45 SE at 95 %, since it holds two parameters
    at once; an interval for one reaches 1.96 SE. Around the ellipse of a sampled information lies a light band of ±2
    standard errors of its radius in each direction, to first order as everywhere in the record. If it reaches inwards to
    the center, there were too few draws to conclude anything. The densities are drawn with the same height.

    The picture holds for the Fisher information at the truth, or for consistent estimates of it at the maximum. For the
    empirical information under a wrong model it shows no sampling distribution.

    References
    ----------
    van der Vaart, A. W. (1998), Asymptotic Statistics, theorem 5.39.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> from jax.scipy.stats import norm
    >>> def log_density(params, y):
    ...     return norm.logpdf(y, params["loc"], params["scale"])
    >>> params, y = {"loc": 2.0, "scale": 2.0}, jnp.array([1.0, 2.0, 3.0, 6.0])
    >>> observed, empirical = (f(log_density, params, y) for f in (fj.observed_information, fj.empirical_fisher))
    >>> axes = fj.plots.information_ellipses(
    ...     observed, center=params, num_observations=4, others=[empirical], labels=["H", "OPG"]
    ... )
    >>> [text.get_text() for text in axes[0, 0].texts]
    ['SE 1.31426', 'SE 1.77889']
    """
    check_level(level)
    if not (is_number(num_observations) and 0 < num_observations < np.inf):
        raise ValueError(f"num_observations={shown(num_observations)} must be positive.")
    records = [information, *([others] if isinstance(others, Information) else others or [])]
    for record in records:
        _check_record(record, (Information,))
        if set(record.names) != set(information.names):
            raise ValueError(
                f"the information is on {listed(information.names)}, but one of the others on {listed(record.names)}. "
                "They must be about the same parameters: use fix or marginal first."
            )
    labels = [record.route for record in records] if labels is None else labels
    if isinstance(labels, str) or len(labels) != len(records):
        raise ValueError(f"labels={labels!r}; expected {len(records)}, for the information and the others.")
    q = len(information.names)
    if names is None and q > MOST_PANELS:
        raise ValueError(
            f"{q} parameters make {q * (q - 1) // 2} pairs. Choose some by names=[…] out of {listed(information.names)}; "
            "the others count as unknown (solid) or known (dashed)."
        )
    chosen = choose(information.names, names)
    middle = np.zeros(q) if center is None else _center(center, information.names)
    layers = [
        _layer(float(num_observations) * record, label, f"C{k}", information.names)
        for k, (record, label) in enumerate(zip(records, labels, strict=True))
    ]

    m = len(chosen)
    side = 2.1 + 0.9 / m if m > 1 else 4.0
    all_axes = panels(axes, m * m, (side, side), columns=m).reshape(m, m)
    # Room for the widest ellipse, and for two standard errors where the level is low, with their bands.
    reach = [
        errors + np.minimum(BAND * spreads, errors) for errors, spreads in (layer.standard_errors() for layer in layers)
    ]
    reach = 1.15 * max(np.sqrt(-2 * np.log1p(-level)), 2.0) * np.max(reach, axis=0)
    deviation = " − estimate" if center is None else ""
    titles = [f"{information.names[k]}{deviation}" for k in chosen]
    titles = [title if len(title) < 19 else title.replace(deviation, f"\n{deviation[1:]}") for title in titles]
    for i, j in np.ndindex(m, m):
        panel, (row, column) = all_axes[i, j], (chosen[i], chosen[j])
        if j > i:
            panel.set_axis_off()
            continue
        for k, layer in enumerate(layers):
            if i == j:
                _draw_density(panel, layer, middle[row], row, reach[row], line=len(layers) - 1 - k)
            else:
                _draw_ellipses(panel, layer, middle[[column, row]], [column, row], level)
        panel.set_xlim(middle[column] - reach[column], middle[column] + reach[column])
        panel.locator_params(nbins=4)
        panel.tick_params(labelsize="small", labelbottom=i == m - 1, labelleft=0 == j < i, left=i != j)
        if i == j:
            panel.set(ylim=(0, 1.15), yticks=[])
        else:
            panel.plot(middle[column], middle[row], marker="+", color="black", zorder=4)
            panel.set_ylim(middle[row] - reach[row], middle[row] + reach[row])
        if j == 0 < i:
            panel.set_ylabel(titles[i])
        if i == m - 1:
            panel.set_xlabel(titles[j])
            panel.tick_params(axis="x", rotation=45)
    all_axes[0, 0].figure.align_labels(all_axes.ravel())
    _add_legend(all_axes, layers, level, has_others=q > 1)
    return all_axes


class _Layer(NamedTuple):
    """A total information and its inverse, each with its independent pieces of error, in float64 and one order of names."""

    label: str
    color: str
    information: Float[np.ndarray, "q q"]
    information_errors: Float[np.ndarray, "k q q"]
    covariance: Float[np.ndarray, "q q"]
    covariance_errors: Float[np.ndarray, "k q q"]

    def standard_errors(self) -> tuple[Float[np.ndarray, " q"], Float[np.ndarray, " q"]]:
        """Of each parameter, the others unknown, and their own errors by the delta method."""
        value = np.sqrt(np.diagonal(self.covariance))
        pieces = np.diagonal(self.covariance_errors, axis1=1, axis2=2) / (2 * value)
        return value, np.sqrt(np.sum(pieces**2, axis=0))


def _layer(record: Information, label: str, color: str, names: tuple[str, ...]) -> _Layer:
    try:
        inverse = record.inverse()
    except ValueError as error:
        raise ValueError(f"there are no ellipses of {label!r}. {error}") from error
    order = [record.names.index(name) for name in names]
    none = np.zeros((0, len(names), len(names)))
    parts = (record.matrix, record.errors, inverse.matrix, inverse.errors)
    return _Layer(
        label, color, *(none if part is None else np.asarray(part, float)[..., order, :][..., order] for part in parts)
    )


def _draw_ellipses(axes: Any, layer: _Layer, middle: Any, pair: list[int], level: float) -> None:
    """The ellipse where the others are unknown, that where they are known if there are others, and their bands."""
    block = np.ix_(range(len(layer.information_errors)), pair, pair)
    covariance, errors = layer.covariance[np.ix_(pair, pair)], layer.covariance_errors[block]
    conditional = np.linalg.inv(layer.information[np.ix_(pair, pair)])
    cases = [
        (covariance, errors, "-"),
        (conditional, conditional @ layer.information_errors[block] @ conditional, "--"),
    ]
    for covariance, errors, style in cases if len(layer.information) > 2 else cases[:1]:
        points = ellipse(covariance, level)
        if len(errors):
            # A change E of Σ moves a point d of {d : dᵀ Σ⁻¹ d = r²} outwards by the fraction ½ dᵀ Σ⁻¹ E Σ⁻¹ d / dᵀ Σ⁻¹ d of its
            # distance from the center, to first order.
            dual = np.linalg.solve(covariance, points)
            change = 0.5 * np.einsum("ia,kij,ja->ka", dual, errors, dual) / np.sum(points * dual, axis=0)
            relative = BAND * np.sqrt(np.sum(change**2, axis=0))
            inner, outer = np.maximum(1 - relative, 0) * points, (1 + relative) * points
            ring = middle[:, None] + np.concatenate([outer, inner[:, ::-1]], axis=1)
            axes.fill(*ring, color=layer.color, alpha=0.2, linewidth=0, zorder=1)
        axes.plot(*(middle[:, None] + points), style, color=layer.color, linewidth=1.4, zorder=3)


def _draw_density(axes: Any, layer: _Layer, middle: float, k: int, reach: float, line: int) -> None:
    """Normal densities of one height, and above them the standard error in words."""
    value, error = (numbers[k] for numbers in layer.standard_errors())
    deviation = np.linspace(-reach, reach, 201)
    axes.plot(middle + deviation, np.exp(-0.5 * (deviation / value) ** 2), color=layer.color, linewidth=1.4)
    if len(layer.information) > 1:
        conditional = np.exp(-0.5 * deviation**2 * layer.information[k, k])
        axes.plot(middle + deviation, conditional, color=layer.color, linewidth=1.4, linestyle="--")
    above = {"xycoords": "axes fraction", "xytext": (0, 3 + 12 * line), "textcoords": "offset points", "ha": "center"}
    axes.annotate(f"SE {_with_error(value, error)}", (0.5, 1.0), color=layer.color, fontsize="small", **above)


def _add_legend(axes: Any, layers: list[_Layer], level: float, *, has_others: bool) -> None:
    """In the empty corner above the diagonal, or below a single panel."""
    corner, m = axes[0, -1], len(axes)
    texts = [textwrap.fill(layer.label, 24 if m == 2 else 40) for layer in layers]
    handles = [corner.plot([], [], color=layer.color, label=text)[0] for layer, text in zip(layers, texts, strict=True)]
    if has_others:
        size = f", {percent(level)}" if m > 1 else ""
        handles += corner.plot([], [], color="0.4", label=f"others unknown{size}")
        handles += corner.plot([], [], color="0.4", linestyle="--", label=f"others known{size}")
    if m > 1 and any(len(layer.information_errors) for layer in layers):
        handles += corner.fill([], [], color="0.4", alpha=0.2, linewidth=0, label=f"ellipse ± {BAND:g} errors")
    if m > 1:
        corner.legend(handles=handles, loc="upper right", fontsize="small", frameon=False).set_in_layout(False)
    else:
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.25)}
        corner.legend(handles=handles, fontsize="small", frameon=False, **below)


def _with_error(value: Any, error: Any) -> str:
    return with_error(value, error if error > 0 else None)


def _check_record(record: Any, kinds: tuple[type, ...]) -> None:
    """One matrix whose numbers have values."""
    check_result(record, kinds, "fisher_jax.fisher_information or another information function")
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


def _center(center: PyTree, names: tuple[str, ...]) -> Float[np.ndarray, " q"]:
    """The numbers of a pytree in the order of the names; a vector has that order."""
    layout, _ = layout_of(center)
    values = np.asarray(layout.flatten(center), float)
    if set(names) <= set(layout.names):
        return values[[layout.names.index(name) for name in names]]
    is_vector = type(center) in (list, tuple) or np.ndim(center) == 1
    if is_vector and values.shape == (len(names),):
        return values
    raise ValueError(
        f"the information is on {listed(names)}, but center has {listed(layout.names)}. "
        "Give the parameters themselves, or one number for each name in this order."
    )
