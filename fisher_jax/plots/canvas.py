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
