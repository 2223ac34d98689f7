"""What the pictures share: matplotlib where it is installed, and how names and numbers are written."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def pyplot() -> Any:
    """matplotlib.pyplot, or word of how to get it."""
    try:
        import matplotlib.pyplot as module
    except ImportError as error:
        raise ImportError('fisher_jax.plots needs matplotlib: pip install "fisher_jax[plots]".') from error
    return module


def wanted_names(every: Sequence[str], names: Any, what: str = "entry") -> list[str]:
    """All names, or those of them that a user asks for; refused where one is unknown."""
    wanted = list(every) if names is None else [names] if isinstance(names, str) else list(names)
    if not wanted:
        raise ValueError("names is empty. Leave it out to draw all.")
    for name in wanted:
        if name not in every:
            raise ValueError(f"no {what} is named {name!r}; there are {listed(every)}.")
    return wanted


def row_of_panels(
    axes: Any, count: int, size: tuple[float, float], *, what: str = "panels", sharey: bool = False
) -> Any:
    """As many axes as are needed, new ones of that size each in a row where none are given."""
    if axes is None:
        whole = (size[0] * count, size[1])
        axes = pyplot().subplots(1, count, figsize=whole, sharey=sharey, layout="constrained", squeeze=False)[1]
    panels = np.ravel(np.asarray(axes, dtype=object))
    if len(panels) != count:
        raise ValueError(f"{count} {what} need as many axes, got {len(panels)}.")
    return panels


def listed(names: Sequence[str]) -> str:
    """Names as an error message says them."""
    return ", ".join(f"`{name}`" for name in names)


def number(value: float, error: float = 0.0, *, between: str = " ") -> str:
    """`0.499`, or with an error `0.499 ± 0.012`: the error to two digits at least and the value to the same decimals."""
    if not (np.isfinite(error) and error > 0):
        return f"{value:.3g}".replace("-", "−")
    decimals = max(1 - int(np.floor(np.log10(float(f"{error:.1e}")))), 0)
    if decimals > 6 or max(abs(value), error) >= 1e6:
        return f"{value:.3g}{between}± {error:.1g}".replace("-", "−")
    return f"{value:.{decimals}f}{between}± {error:.{decimals}f}".replace("-", "−")
