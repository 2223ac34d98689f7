"""Whether a sink may be written to, what an earlier run has finished in it, and whether this one would do the same."""

import sys
from typing import Any

import jax
import numpy as np

from fisher_jax._version import __version__
from fisher_jax.models.fingerprint import Table, fingerprint, unknown
from fisher_jax.models.model import Model
from fisher_jax.stream.inputs import Inputs
from fisher_jax.stream.ledger import check_same, discard, is_blank, remove_partial
from fisher_jax.stream.sink import Sink


def manifest_of(model: Model, inputs: Inputs, settings: dict[str, Any], size: int) -> dict[str, Any]:
    """All that the results depend on, as plain values."""
    table: Table = {
        "fisher_jax": __version__,
        "jax": jax.__version__,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "x64": jax.dtypes.canonicalize_dtype(np.float64) == np.float64,
        "block": size,
        "model": type(model).__name__,
    }
    for name in ("log_density", "constraints", "initial", "information"):
        table |= fingerprint(getattr(model, name), name)
    for name, value in settings.items():
        table |= fingerprint(value, name)
    table |= inputs.fingerprint()
    return {"format": 1, "settings": table, "not fingerprinted": unknown(table)}


def check_place(target: Sink, *, overwrite: bool) -> None:
    """Refuse a place that holds something else."""
    path = target.path
    if not path.exists() or is_blank(path) or target.ledger.manifest is not None:
        return
    raise ValueError(
        f"{path} exists, but is no sink that fit_stream wrote{' in this format' if path.is_dir() else ''}"
        f"{', so overwrite=True will not remove it' if overwrite else ''}. Give another path, or remove it yourself."
    )


def finished_blocks(target: Sink, manifest: dict[str, Any]) -> list[dict[str, int]]:
    """What an earlier run has finished, if it did as this one is to do."""
    was = target.ledger.manifest
    if was is None:
        return []
    check_same(was, manifest, target.path)
    return target.ledger.finished()


def begin(target: Sink, manifest: dict[str, Any], *, overwrite: bool) -> None:
    """Make the sink ready for the first block that this run writes."""
    if overwrite:
        discard(target.path)
    if target.ledger.manifest is None:
        target.ledger.begin(manifest)
    remove_partial(target.path)
