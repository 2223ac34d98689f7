"""What figures share: axes to draw on, the entries that are drawn, ellipses. matplotlib is imported when a figure is drawn."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from fisher_jax.errors import kind_of, require
from fisher_jax.models.parameter_names import NameIndex

MARKERS = "os^Dv<>p"  # of curves in one panel, which can then be distinguished without colour


def pyplot() -> Any:
    """matplotlib.pyplot (needs the extra `plots`)."""
    return require("matplotlib.pyplot", "plots")


def panels(
    axes: Any, count: int, size: tuple[float, float], *, columns: int | None = None, sharey: bool = False
) -> Any:
    """An array of `count` axes: those given, or new ones of that size each in inches, side by side in so many columns."""
    if axes is None:
        columns = min(count, columns or count)
        rows = -(-count // columns)
        whole = (columns * size[0], rows * size[1])
        grid = pyplot().subplots(rows, columns, figsize=whole, sharey=sharey, layout="constrained", squeeze=False)[1]
        for spare in grid.ravel()[count:]:
            spare.remove()
        return grid.ravel()[:count]
    axes = np.ravel(np.asarray(axes, dtype=object))
    if len(axes) != count:
        raise ValueError(f"{count} panels need as many axes, got {len(axes)}.")
    return axes


def check_result(result: Any, kinds: type | tuple[type, ...], source: str) -> None:
    """A result of one of the kinds that can be drawn, as the function `source` returns it."""
    if not isinstance(result, kinds):
        expected = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
        raise TypeError(f"expected {expected}, got {kind_of(result)}. Give what {source} returns.")


def choose(available: Sequence[str], names: Any) -> list[int]:
    """Positions of the entries to draw, all of them without `names`; the name of an array stands for its entries."""
    return NameIndex(tuple(available)).choose(names)


def ellipse(covariance: Float[np.ndarray, "2 2"], level: float) -> Float[np.ndarray, "2 n"]:
    """Points d = r L e(φ), L Lᵀ = Σ, where ½ dᵀ Σ⁻¹ d = −log(1 − level): a normal vector lies inside with that probability."""
    angle = np.linspace(0, 2 * np.pi, 361)
    radius = np.sqrt(-2 * np.log1p(-level))  # the quantile of χ² with two degrees of freedom is −2 log(1 − level)
    return radius * np.linalg.cholesky(covariance) @ np.stack([np.cos(angle), np.sin(angle)])
