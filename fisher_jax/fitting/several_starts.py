"""One data set fitted from several starts, and its optima.

From few starts the fits are made one after the other, as `fit` makes each: its programs compile in a third of the time of that of
many lanes, up to half a minute for a mixture. Where the fits will take longer than that, they run in lanes.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from fisher_jax.errors import check_count, check_key, check_pytree
from fisher_jax.fitting import workers
from fisher_jax.fitting.batch import Options, Starts, fit_all
from fisher_jax.fitting.covariance import KINDS
from fisher_jax.fitting.maximization import ClosesOverTraced
from fisher_jax.fitting.result import Fit, Optimum
from fisher_jax.information import has_closed_form
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.model import Model, check_start
from fisher_jax.models.parameters import Layout, Values, as_parameters

FEW = 200  # starts
COMPILING = 20.0  # seconds, about what the program of many lanes takes
SAME = 0.01  # standard errors: maxima nearer than that are one


def fit_from_starts(
    fit_at: Callable[[Values], Fit],
    model: Model,
    layout: Layout,
    values: Values,
    dataset: Dataset,
    optimizer: Any,
    tolerance: Any,
    max_steps: int,
    starts: Any,
    key: Any,
) -> Fit:
    """The best of the fits from several starts, with all optima in its `optima`; `fit_at` makes one of them."""
    free = _starts(layout, values, starts, key)
    each = None
    if workers.platform() == "cpu" and len(free) <= FEW:
        each = _one_by_one(fit_at, [layout.constrained_values(row, values) for row in free])
    if each is not None:
        fits = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
    else:
        # As the fits of a batch that share their data.
        leaves = jax.tree.leaves(dataset.parts)
        shared = Dataset(*dataset.with_strength, size=len(free), differs=(False,) * len(leaves))
        kinds = tuple(kind for kind in KINDS if kind != "expected" or has_closed_form(model))
        options = Options(model, optimizer, tolerance, max_steps, kinds, devices=workers.devices_of(None))
        begin = Starts(layout, free, values, (False,) * len(values), shared)
        fits = fit_all(options, begin, retry=False, float64_finish=False)
    certified = np.flatnonzero(fits.converged)
    order = certified[np.argsort(-fits.log_likelihood[certified], kind="stable")]
    optima: list[list[int]] = []
    for row in order:
        for group in optima:
            apart = fits.free[row] - fits.free[group[0]]
            if apart @ np.asarray(fits.curvature)[group[0]] @ apart < SAME**2:
                group.append(int(row))
                break
        else:
            optima.append([int(row)])
    likelihoods = np.where(np.isfinite(fits.log_likelihood), fits.log_likelihood, -np.inf)
    best = (fits if each is None else each)[int(order[0]) if len(order) else int(np.argmax(likelihoods))]
    reached = tuple(Optimum(fits[g[0]].params, float(fits.log_likelihood[g[0]]), len(g)) for g in optima)
    return replace(best, optima=reached)


def _one_by_one(fit_at: Callable[[Values], Fit], starts: Sequence[Values]) -> list[Fit] | None:
    """The fits from each start; None where lanes are the only way, or will be the shorter wait."""
    fits: list[Fit] = []
    seconds: list[float] = []  # of the fits by the loop, which the first has compiled
    for start in starts:
        begun = time.perf_counter()
        try:
            fits.append(fit_at(start))
        except ClosesOverTraced:
            return None
        if fits[-1].engine == "loop":
            seconds.append(time.perf_counter() - begun)
        if len(seconds) > 4 and (len(starts) - len(fits)) * np.mean(seconds[1:]) > COMPILING:
            return None
    return fits


def _starts(layout: Layout, values: Values, starts: Any, key: Any) -> np.ndarray:
    """The starts on the unconstrained scale (k, p)."""
    if isinstance(starts, int | np.integer):
        check_count(starts, 1, "starts", ", or stacked starting parameters", entries=layout.num_free)
        if key is not None:
            check_key(key)
        else:
            raise ValueError("starts are drawn with a key. Give key=jax.random.key(0), or stacked starting parameters.")
        first = np.asarray(layout.unconstrain([np.asarray(value) for value in values]))
        spread = np.where(layout.unitless, 1.0, np.maximum(1.0, np.abs(first)))
        drawn = np.asarray(jax.random.normal(key, (int(starts), len(first)), layout.dtype))
        drawn = first + spread.astype(layout.dtype) * drawn
        drawn[0] = first
        return drawn
    return np.asarray(layout.unconstrain(stacked_starts(layout, values, starts)))


def stacked_starts(layout: Layout, values: Values, starts: PyTree) -> Values:
    """Check starting parameters with a leading axis over the starts, and return their leaves."""
    check_pytree(starts, "starts")
    starts = as_parameters(starts)
    try:
        blocks = [np.asarray(block, layout.dtype) for block in layout.blocks(starts)]
    except (TypeError, ValueError) as error:
        raise ValueError(f"starts must be starting parameters like start with a leading axis: {error}") from error
    sizes = {block.shape[0] if block.ndim else -1 for block in blocks}
    if (
        len(sizes) != 1
        or not min(sizes) > 0
        or any(b.shape[1:] != leaf.shape for b, leaf in zip(blocks, layout.leaves, strict=True))
    ):
        raise ValueError(
            f"starts has leaves of shapes {[block.shape for block in blocks]}; expected those of start, "
            f"{[leaf.shape for leaf in layout.leaves]}, each with one more leading axis of the same length."
        )
    for block, value, leaf in zip(blocks, values, layout.leaves, strict=True):
        if leaf.is_fixed and not np.all(block == np.asarray(value)):
            raise ValueError(f"`{leaf.name}` is fixed, so all starts must hold its value in start.")
    for row in range(sizes.pop()):
        check_start(layout, [block[row] for block in blocks], f"start {row}, ")
    return blocks
