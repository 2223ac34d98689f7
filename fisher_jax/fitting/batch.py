"""The front door to many fits: `fit_batch`."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from fisher_jax.errors import check_count, check_flag, check_pytrees, entry_point, shown
from fisher_jax.fitting import engine as engines
from fisher_jax.fitting import workers
from fisher_jax.fitting.covariance import KINDS
from fisher_jax.fitting.cpu import LEAST_LANES
from fisher_jax.fitting.fit import check_optimizer, check_stopping
from fisher_jax.fitting.maximization import NO_EXPECTED
from fisher_jax.fitting.ragged import check_list, each_initial, is_ragged, size_classes
from fisher_jax.fitting.result import Fit, Origin, joined_fits
from fisher_jax.fitting.retries import How, fit_all, has_float64
from fisher_jax.fitting.starts import Starts, check_starts, num_starts, rows_of, starts_of
from fisher_jax.information import has_closed_form
from fisher_jax.models.dataset import check_datasets
from fisher_jax.models.model import Model, as_model
from fisher_jax.models.parameters import as_parameters
from fisher_jax.optimizers import newton
from fisher_jax.optimizers.newton import Newton


@entry_point
def fit_batch(
    model: Any,
    params: PyTree,
    data: PyTree,
    *,
    given: PyTree = None,
    weights: Any = None,
    params_axis: Any = None,
    data_axis: Any = 0,
    given_axis: Any = None,
    weights_axis: Any = 0,
    optimizer: Any = None,
    tolerance: Any = None,
    max_steps: Any = None,
    covariances: Any = ("observed",),
    retry: bool = True,
    float64_finish: bool = False,
    engine: str | None = None,
    devices: Any = None,
    num_lanes: Any = None,
    progress: bool = False,
) -> Fit:
    """Fit a model to many data sets at once, each as `fit` would, none waiting for another.

    Parameters
    ----------
    model : Model or callable
        As for `fit`.
    params : pytree, or None
        Starting values, one for all; one for each with `params_axis`; or `None` for what the model's `initial` makes of each.
    data : pytree, or list
        The observations of all data sets, each leaf with an axis over the data sets: (B, n, …) by default. Data sets of
        different lengths come as a list, one entry for each, and so do `given` and `weights` if they differ; several arrays of
        one data set are therefore a tuple or a dictionary. They are filled up to a few sizes by their last row, with weight
        zero: a term of a `dependent` model must not look ahead. A row with a masked entry gets weight zero in its data set, as
        for `fit`.
    given : pytree, optional
        Covariates, one set for all data sets unless `given_axis` says otherwise.
    weights : array, optional
        Frequency weights (B, n), or (n,) with ``weights_axis=None``. A weight of zero leaves an observation out.
    params_axis, data_axis, given_axis, weights_axis : int, None, or pytree of them
        The axis over data sets in each, as in `jax.vmap`: a pytree prefix; `None` for what all share.
    optimizer, tolerance, max_steps
        As for `fit`.
    covariances : tuple of {"observed", "expected", "empirical", "sandwich"}
        The kinds of covariance to be had from the result; each keeps a p × p matrix or two for every fit. ``()`` keeps none.
    retry : bool
        Take up again what ended at the step limit, stalled, at a saddle, not finite or with a bad start: first with a thousand
        times the damping; then from another start (the model's `initial` if it has one and that was not the start, else two
        conditional standard errors off where it ended); then in float64, if it was not and x64 is enabled. The first success
        counts, and `attempt` tells which it was; without any, the first attempt's end stands.
    float64_finish : bool
        Take up fits made in float32 again in float64 from where they ended (needs x64): those that converged, whose status is
        then that of float64, and those that stalled or ran out of steps, if they then converge (`attempt` says so). Results
        are float64, and `num_steps` counts both.
    engine : {"kernel", "arrays"}, optional
        How the fits are run: whole fits in one kernel of a CPU or a GPU, rows one by one, for up to 8 parameters; or in arrays of
        rows × fits. By default the first where the density allows it. The results agree to rounding, and `Fit.engine` says
        which was taken.
    devices : int, or sequence of jax.Device, optional
        How many threads share the work on a CPU, by default one for each core that the process may use; CPU devices count as
        threads. Elsewhere on which devices the work is done, or on how many: by default on all, or on `jax.default_device`
        where it is set.
    num_lanes : int, optional
        How many fits each worker has under way at once: a multiple of 16, at least 64, which is the default and the fastest on a
        CPU. On a GPU it matters to arrays only, and the default goes with the size of a data set.
    progress : bool
        Show a bar with the rate and the count of each status (needs the extra `progress`).

    Returns
    -------
    Fit
        With a batch axis: one fate for each data set; numerical trouble in one is its own status and touches no other.

    Raises
    ------
    ValueError, TypeError
        If the arguments do not fit together, or a start for all lies outside its constraint.

    Notes
    -----
    The step is that of `fit`. Sums over rows are taken in another order, which changes the last digits. In float32 these decide
    the status of a fit at the limit of what that precision tells apart: one near the edge of its model (a negative binomial of
    Poisson data), or with hardly any information about a parameter, may have another status than by itself.

    A fit that has ended makes room for the next, so that none waits for another, and no result depends on the number of threads
    or lanes, or on the other data sets. Compiled once for each density, optimiser, number of observations and of lanes; the
    number of data sets is free. Not to be called under `jit` or `vmap`; `jax.vmap` of `fit` is, in lock-step.

    Examples
    --------
    >>> import fisher_jax as fj, jax
    >>> draw = lambda key: fj.families.gamma.sample(key, {"shape": 4.0, "rate": 2.0})
    >>> data = jax.vmap(draw)(jax.random.split(jax.random.key(1), 500 * 80)).reshape(500, 80)
    >>> fits = fj.fit_batch(fj.families.gamma, {"shape": 1.0, "rate": 1.0}, data)
    >>> print(fits.converged.all(), fits.params["shape"].shape, fits.standard_errors()["shape"].shape)
    True (500,) (500,)
    """
    model = as_model(model)
    check_pytrees(params=params, data=data, given=given, weights=weights)
    _refuse_tracers((params, data, given, weights, tolerance, max_steps))
    optimizer = newton() if optimizer is None else optimizer
    check_optimizer(optimizer)
    if isinstance(optimizer, Newton) and optimizer.kind == "expected" and not has_closed_form(model):
        raise ValueError(NO_EXPECTED)
    check_stopping(tolerance, max_steps)
    kinds = checked_kinds(covariances, model)
    for name, flag in (("retry", retry), ("float64_finish", float64_finish), ("progress", progress)):
        check_flag(flag, name)
    if float64_finish and not has_float64():
        raise ValueError("float64_finish needs float64: switch JAX's option jax_enable_x64 on at the start.")
    how = How(
        model,
        optimizer,
        tolerance,
        max_steps,
        kinds,
        _checked_lanes(num_lanes),
        _checked_engine(engine),
        workers.devices_of(devices),
        progress,
    )
    params = as_parameters(params)
    axes = (params_axis, data_axis, given_axis, weights_axis)
    finish = functools.partial(fit_all, how, retry=retry, float64_finish=float64_finish)
    if is_ragged(data):
        _refuse_axes(axes, given)
        return _fit_ragged(finish, model, params, params_axis, data, given, weights)
    dataset = check_datasets(model, data, given, weights, axes[1:], num_starts(params, params_axis))
    check_starts(model, params, params_axis, dataset.one(0), dataset.size or 0)
    fits = finish(starts_of(model, params, params_axis, dataset))
    return replace(fits, origin=Origin(model, dataset), num_masked=dataset.num_masked)


def _refuse_axes(axes: tuple[Any, ...], given: PyTree) -> None:
    """Of a list of data sets, what differs is a list too."""
    _, data_axis, given_axis, weights_axis = axes
    if data_axis != 0 or weights_axis != 0 or (given_axis is not None and not (given_axis == 0 and is_ragged(given))):
        raise ValueError(
            "a list of data sets has no axes over them: leave data_axis, given_axis and weights_axis out. "
            "What differs among them is a list too."
        )


def _fit_ragged(
    finish: Callable[[Starts], Fit],
    model: Model,
    params: PyTree,
    params_axis: Any,
    data: list[Any],
    given: PyTree,
    weights: Any,
) -> Fit:
    """Each class of sizes by itself, and the fits in the order of the data sets."""
    if not data:
        raise ValueError("data is an empty list; there are no data sets.")
    datasets = check_list(model, data, given, weights)
    if params is None:
        params, params_axis = each_initial(model, datasets), 0
    check_starts(model, params, params_axis, datasets.one(0), len(data))
    parts, order = [], []
    for rows, dataset in size_classes(model, rows_of(params, params_axis, 0), datasets):
        fits = finish(starts_of(model, rows_of(params, params_axis, rows), params_axis, dataset))
        parts.append(replace(fits, num_masked=dataset.num_masked))
        order.append(rows)
    return joined_fits(parts, np.argsort(np.concatenate(order)))


def _refuse_tracers(trees: Any) -> None:
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees)):
        raise TypeError(
            "runs on the host and cannot be called under jit, vmap or grad. Call it outside, or use jax.vmap of fit."
        )


def checked_kinds(kinds: Any, model: Model) -> tuple[str, ...]:
    """The kinds of covariance to be kept; raise for those that there are not."""
    if not isinstance(kinds, str | tuple | list):
        raise TypeError(f"covariances={shown(kinds)} must be a tuple of kinds, as in ('observed', 'sandwich').")
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    for kind in kinds:
        if not isinstance(kind, str) or kind not in KINDS:
            raise ValueError(f"covariances names {shown(kind)}; choose from {', '.join(map(repr, KINDS))}.")
    if "expected" in kinds and not has_closed_form(model):
        raise ValueError(
            'covariances names "expected", but the model has no closed form of its information. '
            "Give Model(…, information=…), or choose another kind."
        )
    return kinds


def _checked_lanes(num_lanes: Any) -> int | None:
    whole = isinstance(num_lanes, int | np.integer) and not isinstance(num_lanes, bool)
    if num_lanes is not None and (not whole or num_lanes < LEAST_LANES or num_lanes % 16):
        raise ValueError(f"num_lanes={shown(num_lanes)} must be a multiple of 16, at least {LEAST_LANES}.")
    return None if num_lanes is None else check_count(num_lanes, LEAST_LANES, "num_lanes")


def _checked_engine(engine: Any) -> str | None:
    if engine is not None and not (isinstance(engine, str) and engine in engines.ENGINES):
        choices = ", ".join(map(repr, engines.ENGINES))
        raise ValueError(f"engine={shown(engine)} is unknown; choose from {choices}, or leave it out.")
    return engine
