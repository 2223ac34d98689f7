"""Maximum-likelihood fits: `fit`, of one data set, and `fit_batch`, of many."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np
from jaxtyping import Array, PyTree

from fisher_jax.errors import check_choice, check_count, check_flag, check_pytrees, entry_point, is_number, shown
from fisher_jax.fitting import workers
from fisher_jax.fitting.batch import (
    Options,
    check_something_estimated,
    check_starts,
    fit_all,
    has_float64,
    make_starts,
    num_starts,
    take_starts,
)
from fisher_jax.fitting.compiled_loop import fit_by_loop, fit_function
from fisher_jax.fitting.covariance import KINDS
from fisher_jax.fitting.cpu import LEAST_LANES
from fisher_jax.fitting.engine import ENGINES
from fisher_jax.fitting.groups import split_groups, take_labels
from fisher_jax.fitting.maximization import (
    NO_EXPECTED,
    ClosesOverTraced,
    default_steps,
    default_tolerance,
    fit_on_host,
)
from fisher_jax.fitting.padding import check_list, each_initial, is_ragged, size_classes
from fisher_jax.fitting.passes import Passes, check_newton, fit_by_passes, start_of_source
from fisher_jax.fitting.result import Fit, Origin, join_fits, with_log_prior
from fisher_jax.fitting.several_starts import fit_from_starts
from fisher_jax.fitting.sharded import fit_sharded, is_sharded, sharded_rows
from fisher_jax.information import has_closed_form
from fisher_jax.models.dataset import check_dataset, check_datasets, check_labels
from fisher_jax.models.model import Model, as_model, check_start, flatten_parameters, starting_parameters
from fisher_jax.models.parameters import Values, as_parameters, typed
from fisher_jax.models.prior import check_strength, is_of_expected
from fisher_jax.numerics.array_namespace import is_traced
from fisher_jax.optimizers import newton
from fisher_jax.optimizers.newton import Newton
from fisher_jax.sources import RowSource, is_source
from fisher_jax.tables import MISSING

if TYPE_CHECKING:
    import optax  # not at run time, since it takes as long to import as the rest

LARGEST_TOLERANCE = Newton().near_below  # a maximum is certified by a near step


@entry_point
def fit(
    model: Model | Callable[..., Any],
    start: PyTree,
    data: PyTree,
    *,
    given: PyTree = None,
    weights: PyTree = None,
    strength: float | Array | None = None,
    missing: Literal["raise", "drop"] = "raise",
    optimizer: "optax.GradientTransformation | Newton | None" = None,
    tolerance: float | Array | None = None,
    max_steps: float | int | Array | None = None,
    starts: int | PyTree = None,
    key: Array | None = None,
    progress: bool = False,
) -> Fit:
    """Fit a model by maximum likelihood: maximise ℓ(θ) = Σ wᵢ log p(yᵢ; θ) over the constrained parameters.

    Parameters
    ----------
    model : Model or callable
        A model, or a bare log-density ``log_density(params, y)``, or ``log_density(params, y, z)`` with `given`.
    start : pytree, or None
        Starting values, strictly inside their constraints; `None` uses the model's `initial`. Their dtype is the precision
        of the fit: float32 only if every leaf is; Python numbers take JAX's default (float64 where x64 is enabled). Reports,
        `names` and matrices have the parameters in the order in which a dictionary is written. An argument of a function under
        `jit` or `vmap` has its keys sorted by JAX.
    data : pytree
        The observations, each leaf with a leading axis of length n. A table of pandas, polars or pyarrow becomes a dictionary of
        its columns, ``{"height": array, …}``, and a column an array. Rows are taken in their order: what comes from pandas must
        have the same index in `data`, `given` and `weights`. A row with an entry that is masked (`numpy.ma`), here or in `given`,
        gets weight zero; `summary` counts them.

        More rows than memory holds are read in blocks from a source: a path to .npy, .zarr or Parquet, a Zarr array or group,
        `sources.parquet(path, columns)` or `sources.chunks(…)`. `given` and `weights` are then sources too, read in step, or arrays
        in memory. Arrays that lie on several devices, split along their leading axis, stay there.
    given : pytree, optional
        Covariates with the same leading axis; a table becomes a dictionary of its columns.
    weights : array (n,), optional
        Frequency weights: an observation of weight w counts as w equal ones, zero leaves it out, whatever it holds.
    strength : float, optional
        Of a model whose prior is a function of params and a strength, that strength, not negative; see `Model` and `priors`.
    missing : {"raise", "drop"}
        Where a value is missing in a table or one of its columns (a null, NaN or NaT): raise an error that counts them by column,
        or leave the row out, as a masked one. NaN in a plain array is a number like another, which the status shows. A Parquet
        file counts as a table.
    optimizer : optax.GradientTransformation, optional
        Default `optimizers.newton()`. Any optax transformation will do; make it once and pass the same object again,
        since a new one compiles anew.
    tolerance : float, optional
        Stop when the decrement is below this many standard errors (of the weighted sample, if there are weights), at most
        0.1; default √ε, 1.5e-8 in float64 and 3.5e-4 in float32. For an optax transformation the decrement is computed every 25
        steps.
    max_steps : int, optional
        Default 1 000, or 10 000 for an optimiser that is not one of fisher_jax's.
    starts : int, or pytree, optional
        Fit from several starts and return the fit with the highest log-likelihood among the certified ones; its
        `optima` are all maxima that were found. A number: `start`, and others drawn about it on the unconstrained scale,
        normal with a standard deviation of one, or of |u| where that is larger and no constraint applies. Or starting
        parameters, each leaf with a leading axis over the starts.
    key : jax.random.key, optional
        What a number of starts is drawn with.
    progress : bool
        Where the data come from a source, show a bar for each pass over them, with the log-likelihood and the decrement (needs the
        extra `progress`).

    Returns
    -------
    Fit
        However the fit ended: see its `status`, which comes from the decrement and the definiteness of the observed
        curvature at the end, whichever optimiser was used.

    Raises
    ------
    ValueError, TypeError
        If the arguments do not fit together, or a start lies outside its constraint. Numerical trouble never raises.

    Notes
    -----
    Compiled once for each density, optimiser and set of shapes; starts, data, tolerance and max_steps are free to change, and up
    to some ten thousand rows the number of observations and which parameters are fixed as well. Cost: some ten evaluations of
    ℓ, its gradient and Hessian. Near the maximum the step is Newton's; see `optimizers.newton`. Constraints are obeyed by
    maximising over unconstrained u; the covariance is that of θ.

    With a source each step is one pass over the data, and one more computes the outer product of the scores. Sums keep their
    rounding errors: the result depends on neither the size of blocks nor the number of cores. Two blocks are in memory, one being
    read while the other is evaluated. ``start=None`` takes the model's `initial` of the first block. Where such a fit ends with a
    parameter at the edge of its range, there are no standard errors of the others conditional on that.

    A fit is a function of the data, covariates, weights and fixed parameters: `jax.jvp` and `jax.grad` through it, and through its
    covariances, give the derivatives of the maximum by the implicit function theorem, NaN where the fit is not certified.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> from jax.scipy.stats import norm
    >>> def log_density(params, y):
    ...     return norm.logpdf(y, params["loc"], params["scale"])
    >>> model = fj.Model(log_density, constraints={"scale": fj.positive})
    >>> fit = fj.fit(model, {"loc": 0.0, "scale": 1.0}, jnp.array([1.0, 2.0, 3.0, 6.0]))
    >>> print(f"{fit.params['loc']:.2f} {fit.params['scale']:.2f} {fit.converged}")
    3.00 1.87 True
    """
    model = as_model(model)
    passes = rows = None
    checked = check_strength(model, strength)
    if getattr(model.prior, "needs_data", False) and (is_source(data, given, weights) or is_sharded(data)):
        raise ValueError(
            "the prior is made of the information of all rows at once, and the data are read in blocks or lie on several devices. "
            "Give them as arrays in memory, or the model another prior."
        )
    if is_source(data, given, weights):
        check_flag(progress, "progress")
        check_choice(missing, MISSING, "missing")
        passes = Passes(model, RowSource(data, given, weights, missing), checked, progress=progress)
        params = start_of_source(passes, start)
    elif is_sharded(data):
        if start is None:
            raise ValueError("start=None needs the data in one place, but they lie on several devices. Give a start.")
        rows, params = sharded_rows(model, data, given, weights), start
    else:
        check_pytrees(data=data, given=given, weights=weights)
        dataset = replace(check_dataset(model, data, given, weights, missing), strength=checked)
        params = starting_parameters(model, start, dataset.data, dataset.given)
    if passes is None and progress is not False:
        raise ValueError(f"progress={shown(progress)} is for data from a source, which are read in passes.")
    layout, values = flatten_parameters(model, params)
    check_something_estimated(layout)
    check_start(layout, values)
    if tolerance is None:
        tolerance = default_tolerance(layout.dtype)
    check_stopping(tolerance, max_steps)
    optimizer = newton() if optimizer is None else optimizer
    check_optimizer(optimizer)
    if max_steps is None:
        max_steps = default_steps(optimizer)
    values = typed(layout, values)
    if passes is not None:
        check_newton(optimizer, starts)
        if is_traced(values, tolerance, max_steps, checked):
            raise TypeError("a source is read on the host, so not under jit, vmap or grad. Call it outside.")
        return fit_by_passes(passes, layout, optimizer, values, tolerance, int(max_steps))
    if rows is not None:
        check_newton(optimizer, starts)
        return fit_sharded(rows, model, layout, optimizer, values, checked, tolerance, int(max_steps))

    def fit_at(values: Values) -> Fit:
        """By steps on the host or, where that is the better way, by a compiled loop; may raise `ClosesOverTraced`."""
        arguments = model, layout, optimizer, values, dataset, tolerance, int(max_steps)
        on_host = fit_on_host(*arguments) if isinstance(optimizer, Newton) else None
        return fit_by_loop(*arguments) if on_host is None else on_host

    if starts is not None:
        if is_traced(values, dataset, tolerance, max_steps, starts):
            raise TypeError(
                "several starts are compared on the host, so not under jit, vmap or grad. Map fit over them."
            )
        best = fit_from_starts(
            fit_at, model, layout, values, dataset, optimizer, tolerance, int(max_steps), starts, key
        )
        return with_log_prior(
            replace(best, origin=Origin(model, dataset), num_masked=dataset.num_masked), model, dataset
        )
    traced = is_traced(values, dataset, tolerance, max_steps)
    if not traced:
        try:
            result = fit_at(values)
        except ClosesOverTraced:
            traced = True
    if traced:
        # One program; operation by operation, vmap and grad without jit would compile more than a hundred.
        result = jax.jit(fit_function(model, layout, optimizer))(values, dataset, tolerance, max_steps)
        return with_log_prior(replace(result, num_masked=dataset.num_masked), model, dataset)
    return with_log_prior(replace(result, origin=Origin(model, dataset), num_masked=dataset.num_masked), model, dataset)


@entry_point
def fit_batch(
    model: Model | Callable[..., Any],
    start: PyTree,
    data: PyTree,
    *,
    given: PyTree = None,
    weights: PyTree = None,
    by: Any = None,
    start_axis: PyTree = None,
    data_axis: PyTree = 0,
    given_axis: PyTree = None,
    weights_axis: int | None = 0,
    strength: float | Array | np.ndarray | Sequence[float] | None = None,
    optimizer: "optax.GradientTransformation | Newton | None" = None,
    tolerance: float | None = None,
    max_steps: int | None = None,
    covariances: str | Sequence[str] = ("observed",),
    retry: bool = True,
    float64_finish: bool = False,
    engine: Literal["compiled", "kernel", "arrays", "host"] | None = None,
    devices: int | Sequence[jax.Device] | None = None,
    num_lanes: int | None = None,
    progress: bool = False,
) -> Fit:
    """Fit a model to many data sets at once, each as `fit` would, none waiting for another.

    Parameters
    ----------
    model : Model or callable
        As for `fit`.
    start : pytree, or None
        Starting values, one for all; one for each with `start_axis`; or `None` for what the model's `initial` makes of each.
    data : pytree, or list
        The observations of all data sets, each leaf with an axis over the data sets: (B, n, …) by default. Data sets of
        different lengths come as a list, one entry for each, and so do `given` and `weights` if they differ; several arrays of
        one data set are therefore a tuple or a dictionary. They are filled up to a few sizes by their last row, with weight
        zero: a term of a `dependent` model must not look ahead. A row with a masked entry gets weight zero in its data set, as
        for `fit`.
    given : pytree, optional
        Covariates, one set for all data sets unless `given_axis` is given.
    weights : array, optional
        Frequency weights (B, n), or (n,) with ``weights_axis=None``. A weight of zero leaves an observation out.
    by : str, sequence of str, or array (n,), optional
        Fit each group of rows: the name of a column of the table that is `data` or `given`, several names, or labels. Data,
        covariates and weights are then those of `fit`, (n, …) altogether; the fits come in the order of the labels, which the
        result keeps as `labels`. Groups may have any lengths; start has no axis over them. The column itself is not passed to the
        density. What several groups need in memory is theirs filled up to the longest; where the lengths differ so much that this
        would be more than four times the table, the result does not keep the data.
    start_axis, data_axis, given_axis, weights_axis : int, None, or pytree of them
        The axis over data sets in each, as in `jax.vmap`: a pytree prefix; `None` for what all share.
    strength : float or array (B,), optional
        Of the model's prior, as for `fit`; one for all data sets or one for each. Fits of one data set by
        several strengths, a path, have ``data_axis=None``.
    optimizer, tolerance, max_steps
        As for `fit`.
    covariances : tuple of {"observed", "expected", "empirical", "sandwich"}
        The kinds of covariance that the result can give; each stores one or two p × p matrices for every fit. ``()`` keeps none.
        With the prior `priors.jeffreys` "expected" is always among them, and first.
    retry : bool
        Try again what ended at the step limit, stalled, at a saddle, not finite or with a bad start: first within a
        trust radius a hundred times smaller; then from another start (the model's `initial` if it has one and that was not the
        start, else two conditional standard errors off where it ended); then in float64, if it was not and x64 is enabled. The
        first success counts, and `attempt` is its number; without any, the first attempt's end stands.
    float64_finish : bool
        Take up fits made in float32 again in float64 from where they ended (needs x64): those that converged, whose status is
        then that of float64, and those that stalled or ran out of steps, if they then converge (`attempt` is then 3). Results
        are float64, and `num_steps` counts both.
    engine : {"compiled", "kernel", "arrays", "host"}, optional
        How the fits are run. "kernel": whole fits in one kernel of a CPU or a GPU, rows one by one, for up to 8 parameters;
        "arrays": in arrays of rows × fits; "compiled": the first where the density allows it, else the second; "host": by numpy's
        steps around a compiled evaluation, on a CPU, which compiles in tenths of a second where the others take seconds, and then
        runs several times slower, tens of times with long data or a fit that needs many steps. By default the first batches of
        up to 16 384 data sets (128 of a model with latent effects, 512 of one with more than 8 parameters) run by "host", until
        that has cost about as much as compiling would; then, and for larger ones, it is "compiled". Results agree to rounding,
        and `Fit.engine` names what was taken; ask for one where bits must not depend on earlier calls. Optimisers of optax have
        a way of their own, "lock-step", whatever is asked for.
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
        With a batch axis: one status for each data set; a fit that fails does not affect the others.

    Raises
    ------
    ValueError, TypeError
        If the arguments do not fit together, or a start for all lies outside its constraint.

    Notes
    -----
    The step is that of `fit`. Sums over rows are taken in another order, which changes the last digits. In float32 these decide
    the status of a fit at the limit of what that precision distinguishes: one near the edge of its model (a negative binomial of
    Poisson data), or with hardly any information about a parameter, may have another status than by itself.

    In compiled loops a fit that has ended makes room for the next, so that none waits for another; on the host the fits of some
    hundred data sets wait for the last of them. No result depends on the number of threads or lanes, or, by the same engine, on the
    other data sets. Compiled once for each density, optimiser, number of observations and of lanes; the number of data sets is
    free. Not to be called under `jit` or `vmap`; `jax.vmap` of `fit` is, in lock-step.

    Examples
    --------
    >>> import fisher_jax as fj, jax
    >>> data = 4.0 + 2.0 * jax.random.gumbel(jax.random.key(1), (500, 80))
    >>> fits = fj.fit_batch(fj.families.gumbel, {"loc": 0.0, "scale": 1.0}, data)
    >>> print(fits.converged.all(), fits.params["scale"].shape, fits.standard_errors()["scale"].shape)
    True (500,) (500,)
    """
    model = as_model(model)
    if model.parts and (by is not None or is_ragged(data)):
        raise ValueError(
            "a joint model is fitted to many data sets of the same sizes: give each part of data an axis over them, and leave by= "
            "and lists out."
        )
    if by is not None:
        if (start_axis, data_axis, given_axis, weights_axis) != (None, 0, None, 0):
            raise ValueError(
                "by= makes the axes over the data sets: leave start_axis, data_axis, given_axis and weights_axis out."
            )
        return _fit_groups(
            model,
            start,
            {"data": data, "given": given, "weights": weights},
            by,
            strength=strength,
            optimizer=optimizer,
            tolerance=tolerance,
            max_steps=max_steps,
            covariances=covariances,
            retry=retry,
            float64_finish=float64_finish,
            engine=engine,
            devices=devices,
            num_lanes=num_lanes,
            progress=progress,
        )
    if is_source(data, given, weights):
        raise TypeError(
            "many data sets that are read in blocks are fitted by fit_stream(model, start, source, sink). fit takes a source "
            "of the rows of one data set."
        )
    check_pytrees(start=start, data=data, given=given, weights=weights)
    if any(
        isinstance(leaf, jax.core.Tracer)
        for leaf in jax.tree.leaves((start, data, given, weights, tolerance, max_steps))
    ):
        raise TypeError(
            "runs on the host and cannot be called under jit, vmap or grad. Call it outside, or use jax.vmap of fit."
        )
    options = batch_options(
        model,
        optimizer=optimizer,
        tolerance=tolerance,
        max_steps=max_steps,
        covariances=covariances,
        retry=retry,
        float64_finish=float64_finish,
        engine=engine,
        devices=devices,
        num_lanes=num_lanes,
        progress=progress,
    )
    start = as_parameters(start)
    finish = functools.partial(fit_all, options, retry=retry, float64_finish=float64_finish)
    if not is_ragged(data):
        axes = (data_axis, given_axis, weights_axis)
        size = num_starts(start, start_axis) or (0 if np.ndim(strength) == 0 else len(strength))  # type: ignore[arg-type]
        dataset = check_datasets(model, data, given, weights, axes, size)
        dataset = replace(dataset, strength=check_strength(model, strength, dataset.size))
        check_starts(model, start, start_axis, dataset.one(0), dataset.size or 0)
        fits = finish(make_starts(model, start, start_axis, dataset))
        return with_log_prior(
            replace(fits, origin=Origin(model, dataset), num_masked=dataset.num_masked), model, dataset
        )
    if data_axis != 0 or weights_axis != 0 or (given_axis is not None and not (given_axis == 0 and is_ragged(given))):
        raise ValueError(
            "a list of data sets has no axes over them: leave data_axis, given_axis and weights_axis out. "
            "What differs among them is a list too."
        )
    if not data:
        raise ValueError("data is an empty list; there are no data sets.")
    datasets = check_list(model, data, given, weights)
    if start is None:
        start, start_axis = each_initial(model, datasets), 0
    check_starts(model, start, start_axis, datasets.one(0), len(data))
    # Each class of sizes by itself, and the fits in the order of the data sets.
    parts, order = [], []
    checked = check_strength(model, strength, len(data))
    for rows, dataset in size_classes(model, take_starts(start, start_axis, 0), datasets):
        if checked is not None:
            dataset = replace(dataset, strength=tuple(x[rows] if np.ndim(x) else x for x in checked))
        fits = finish(make_starts(model, take_starts(start, start_axis, rows), start_axis, dataset))
        parts.append(with_log_prior(replace(fits, num_masked=dataset.num_masked), model, dataset))
        order.append(rows)
    return join_fits(parts, np.argsort(np.concatenate(order)))


def _fit_groups(model: Model, start: PyTree, parts: dict[str, Any], by: Any, **options: Any) -> Fit:
    """The fits of groups of rows, with their labels."""
    check_labels(parts | {"by": by}, (None,) * 4)
    groups, parts, table = take_labels(by, parts)
    as_list = model.is_dependent or not groups.is_padded
    data, given, weights, given_axis = split_groups(groups, *parts.values(), as_list=as_list)
    start_axis = None
    if start is None and not as_list:  # of each group as it is, without what fills it up
        lists = split_groups(groups, parts["data"], parts["given"], None, as_list=True)[:2]
        start, start_axis = each_initial(model, check_list(model, *lists, None)), 0
    fits = fit_batch(
        model, start, data, given=given, weights=weights, given_axis=given_axis, start_axis=start_axis, **options
    )
    origin = fits.origin
    if origin is not None and table is not None:
        origin = Origin(model, replace(origin.dataset, table=table.take(groups.padded())))
    return replace(fits, origin=origin, labels=groups.labels)


def batch_options(
    model: Model,
    *,
    optimizer: Any,
    tolerance: Any,
    max_steps: Any,
    covariances: Any,
    retry: Any,
    float64_finish: Any,
    engine: Any,
    devices: Any,
    num_lanes: Any,
    progress: Any = False,
) -> Options:
    """The checked settings of `fit_batch`; raise where one is invalid."""
    optimizer = newton() if optimizer is None else optimizer
    check_optimizer(optimizer)
    if isinstance(optimizer, Newton) and optimizer.kind == "expected" and not has_closed_form(model):
        raise ValueError(NO_EXPECTED)
    check_stopping(tolerance, max_steps)
    kinds = check_kinds(covariances, model)
    if is_of_expected(model) and "expected" not in kinds and kinds and has_closed_form(model):
        kinds = ("expected", *kinds)  # the covariance of such fits
    for name, flag in (("retry", retry), ("float64_finish", float64_finish), ("progress", progress)):
        check_flag(flag, name)
    if float64_finish and not has_float64():
        raise ValueError("float64_finish needs float64: switch JAX's option jax_enable_x64 on at the start.")
    whole = isinstance(num_lanes, int | np.integer) and not isinstance(num_lanes, bool)
    if num_lanes is not None:
        if not whole or num_lanes < LEAST_LANES or num_lanes % 16:
            raise ValueError(f"num_lanes={shown(num_lanes)} must be a multiple of 16, at least {LEAST_LANES}.")
        num_lanes = check_count(num_lanes, LEAST_LANES, "num_lanes")
    if engine is not None:
        check_choice(engine, ENGINES, "engine", " Leave it out for the one that suits the model.")
        if engine == "host" and num_lanes is not None:
            raise ValueError(f'num_lanes={num_lanes} is not for engine="host", which steps all fits at once.')
    where = workers.devices_of(devices)
    return Options(model, optimizer, tolerance, max_steps, kinds, num_lanes, engine, where, progress)


def check_optimizer(optimizer: Any) -> None:
    """Raise for what is not an optax transformation."""
    if isinstance(optimizer, type) or not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(f"optimizer must be an optax transformation such as optax.lbfgs(), got {shown(optimizer)}.")


def check_stopping(tolerance: Any, max_steps: Any) -> None:
    """Raise for a tolerance that cannot be certified, or an invalid number of steps."""
    if tolerance is not None and not isinstance(tolerance, jax.core.Tracer):
        if not is_number(tolerance):
            raise TypeError(f"tolerance={shown(tolerance)} must be a number, a distance in standard errors.")
        if not 0 < tolerance <= LARGEST_TOLERANCE:
            raise ValueError(
                f"tolerance={tolerance} must be positive and at most {LARGEST_TOLERANCE}: "
                "it is a distance in standard errors."
            )
    if max_steps is None or isinstance(max_steps, jax.core.Tracer):
        return
    if not is_number(max_steps) or not 0 <= max_steps < 2**31 or int(max_steps) != max_steps:
        raise ValueError(f"max_steps={shown(max_steps)} must be a whole number from 0 to 2**31 - 1.")


def check_kinds(kinds: Any, model: Model) -> tuple[str, ...]:
    """The kinds of covariance to be computed; raise for an unknown one."""
    if not isinstance(kinds, str | tuple | list):
        raise TypeError(f"covariances={shown(kinds)} must be a tuple of kinds, as in ('observed', 'sandwich').")
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    for kind in kinds:
        check_choice(kind, KINDS, "covariances")
    if "expected" in kinds and not has_closed_form(model):
        raise ValueError(
            'covariances="expected" needs the Fisher information, but the model has no closed form of it. '
            "Give Model(…, information=…), or choose another kind."
        )
    return kinds
