"""The front door: `fit`."""

from dataclasses import replace
from typing import Any

import jax
from jaxtyping import Array, PyTree

from fisher_jax.errors import check_pytrees, entry_point, is_number, shown
from fisher_jax.fitting.loop import fit_by_loop, fit_function
from fisher_jax.fitting.maximization import ClosesOverTraced, default_steps, default_tolerance, fit_on_host
from fisher_jax.fitting.result import Fit, Origin
from fisher_jax.models.dataset import check_dataset
from fisher_jax.models.model import (
    as_model,
    check_start,
    flatten_parameters,
    starting_parameters,
)
from fisher_jax.models.parameters import typed
from fisher_jax.numerics.namespace import is_traced
from fisher_jax.optimizers import newton
from fisher_jax.optimizers.newton import Newton

NEWTON_STEPS = 1000  # a curved valley takes hundreds (NIST: Bennett5, MGH17)
FOREIGN_STEPS = 10_000
LARGEST_TOLERANCE = Newton().near_below  # a maximum is certified by a near step


@entry_point
def fit(
    model: Any,
    params: PyTree,
    data: PyTree,
    *,
    given: PyTree = None,
    weights: Any = None,
    optimizer: Any = None,
    tolerance: float | Array | None = None,
    max_steps: float | int | Array | None = None,
    starts: Any = None,
    key: Any = None,
) -> Fit:
    """Fit a model by maximum likelihood: maximise ℓ(θ) = Σ wᵢ log p(yᵢ; θ) over the constrained parameters.

    Parameters
    ----------
    model : Model or callable
        A model, or a bare log-density ``log_density(params, y)``, or ``log_density(params, y, z)`` with `given`.
    params : pytree, or None
        Starting values, strictly inside their constraints; `None` uses the model's `initial`. Their dtype is the precision
        of the fit: float32 only if every leaf is; Python numbers take JAX's default (float64 where x64 is enabled).
    data : pytree
        The observations, each leaf with a leading axis of length n. Rows are taken in their order: what comes from pandas must
        have the same index in `data`, `given` and `weights`. A row with an entry that is masked (`numpy.ma`), here or in `given`,
        gets weight zero; `summary` says how many these are.
    given : pytree, optional
        Covariates with the same leading axis. A data frame counts as a matrix, its columns side by side.
    weights : array (n,), optional
        Frequency weights: an observation of weight w counts as w equal ones, zero leaves it out, whatever it holds.
    optimizer : optax.GradientTransformation, optional
        Default `optimizers.newton()`. Any optax transformation will do; make it once and pass the same object again,
        since a new one compiles anew.
    tolerance : float, optional
        Stop when the decrement is below this many standard errors (of the weighted sample, if there are weights), at most
        0.1; default √ε, 1.5e-8 in float64 and 3.5e-4 in float32. Another's optimiser is looked at every 25 steps.
    max_steps : int, optional
        Default 1 000, or 10 000 for an optimiser that is not one of fisher_jax's.
    starts : int, or pytree, optional
        Fit from several starts at once and return the fit with the highest log-likelihood among the certified ones; its
        `optima` are all maxima that were found. A number: `params`, and others drawn about it on the unconstrained scale,
        normal with a standard deviation of one, or of |u| where that is larger and no constraint applies. Or starting
        parameters, each leaf with a leading axis over the starts.
    key : jax.random.key, optional
        What a number of starts is drawn with.

    Returns
    -------
    Fit
        Whatever happened; `status` says what. The status comes from the decrement and the definiteness of the observed
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
    check_pytrees(data=data, given=given, weights=weights)
    dataset = check_dataset(model, data, given, weights)
    params = starting_parameters(model, params, dataset.data, dataset.given)
    layout, values = flatten_parameters(model, params)
    if layout.num_free == 0:
        raise ValueError("every parameter is fixed, so there is nothing to estimate. Use log_likelihood.")
    check_start(layout, values)
    if tolerance is None:
        tolerance = default_tolerance(layout.dtype)
    check_stopping(tolerance, max_steps)
    optimizer = newton() if optimizer is None else optimizer
    check_optimizer(optimizer)
    if max_steps is None:
        max_steps = default_steps(optimizer)
    values = typed(layout, values)
    if starts is not None:
        if is_traced(values, dataset, tolerance, max_steps, starts):
            raise TypeError(
                "several starts are compared on the host, so not under jit, vmap or grad. Map fit over them."
            )
        from fisher_jax.fitting.optima import fit_from_starts

        best = fit_from_starts(model, layout, values, dataset, optimizer, tolerance, int(max_steps), starts, key)
        return replace(best, origin=Origin(model, dataset), num_masked=dataset.num_masked)
    traced = is_traced(values, dataset, tolerance, max_steps)
    found: Fit | None = None
    if isinstance(optimizer, Newton) and not traced:
        try:
            found = fit_on_host(model, layout, optimizer, values, dataset, tolerance, int(max_steps))
        except ClosesOverTraced:
            traced = True
    if traced:
        found = fit_function(model, layout, optimizer)(values, dataset, tolerance, max_steps)
        return replace(found, num_masked=dataset.num_masked)
    if found is None:
        found = fit_by_loop(model, layout, optimizer, values, dataset, tolerance, max_steps)
    return replace(found, origin=Origin(model, dataset), num_masked=dataset.num_masked)


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
