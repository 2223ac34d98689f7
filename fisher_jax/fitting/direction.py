"""Which direction of parameter space a fit's trouble lies in, in words."""

from typing import Any

import numpy as np

from fisher_jax.models.parameters import Layout
from fisher_jax.numerics import linalg


def weakest(curvature: Any, layout: Layout) -> str:
    """The direction in which the curvature is least, by the names of the parameters."""
    return _unknown(curvature) or linalg.describe_direction(
        linalg.weakest_direction(np.asarray(curvature, np.float64))[1], layout.free_names
    )


def escaping(curvature: Any, free: Any, last_step: Any, layout: Layout, faint_below: float) -> str:
    """What runs away: the constrained parameters left without information, else where the last step was heading."""
    if unknown := _unknown(curvature):
        return unknown
    diagonal, names = np.abs(np.diagonal(np.asarray(curvature, np.float64))), layout.free_names
    faint = [k for k, limited in enumerate(layout.restricted) if limited and diagonal[k] < faint_below]
    if faint:
        return ", ".join(names[k] for k in faint)
    step = np.asarray(last_step, np.float64)
    if not np.any(step):
        return names[int(np.argmax(np.where(layout.restricted, np.abs(np.asarray(free)), 0.0)))]
    return linalg.describe_direction(step / step[np.argmax(np.abs(step))], names)


def _unknown(curvature: Any) -> str:
    if curvature is None:
        return "unknown, since the curvature was not kept"
    return "" if np.all(np.isfinite(np.asarray(curvature))) else "unknown, since the curvature is not finite"
