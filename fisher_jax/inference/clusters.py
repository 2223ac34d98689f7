"""Labels of clusters as whole numbers, checked at the door."""

from typing import Any

import numpy as np
from jaxtyping import Int

from fisher_jax.errors import to_numpy
from fisher_jax.input_arrays import check_unmasked


def cluster_codes(labels: Any) -> Int[np.ndarray, " n"]:
    """Labels, numbers or text, as codes from 0 on; refused where one is missing or all are the same."""
    check_unmasked(labels, lambda: "clusters", "Give every observation a label.")
    labels = to_numpy(labels, "clusters")
    if labels.ndim != 1 or labels.size == 0:
        raise ValueError(f"clusters has shape {labels.shape}; expected (n,), one label for each observation.")
    if labels.dtype == object:
        missing = np.array([label is None or _is_unequal_to_itself(label) for label in labels])
    else:
        missing = labels != labels  # NaN, and a time that is none
    if np.any(missing):
        first = int(np.argmax(missing))
        raise ValueError(f"clusters[{first}] is {_said(labels[first])}. Give every observation a label.")
    try:
        codes = np.unique(labels, return_inverse=True)[1].reshape(-1)
    except TypeError as error:
        kinds = sorted({type(label).__name__ for label in labels})
        raise TypeError(
            f"clusters has labels of the types {', '.join(kinds)}, which have no order. Give all of one type."
        ) from error
    if codes.max() == 0:
        raise ValueError("all observations are in one cluster, so nothing tells how clusters vary.")
    return codes


def _is_unequal_to_itself(label: Any) -> bool:
    try:
        return bool(label != label)
    except (TypeError, ValueError):  # pandas' NA cannot be asked
        return True


def _said(label: Any) -> str:
    return "NaN" if isinstance(label, float | np.floating) else str(label)
