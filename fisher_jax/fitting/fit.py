"""The front door: `fit`."""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from fisher_jax.fitting.covariance import KINDS
from fisher_jax.fitting.problem import Problem, checked_start, num_observations, problem_of, total_information
from fisher_jax.fitting.program import Solution, default_tolerance, maximise
from fisher_jax.fitting.result import Fit, Origin
from fisher_jax.models.dataset import Dataset, check_dataset
from fisher_jax.models.likelihood import Likelihood, outer_product_at, terms_at
from fisher_jax.models.model import Model, as_model, check_start, flatten_parameters, starting_parameters
from fisher_jax.models.parameters import Layout, Values, typed
from fisher_jax.optimizers import newton
from fisher_jax.optimizers.newton import Newton

NEWTON_STEPS = 1000  # a curved valley takes hundreds (NIST: Bennett5, MGH17)
FOREIGN_STEPS = 10_000
LARGEST_TOLERANCE = Newton().near_below  # a maximum is certified by a near step


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
        The observations, each leaf with a leading axis of length n.
    given : pytree, optional
        Covariates with the same leading axis.
    weights : array (n,), optional
        Frequency weights: an observation of weight w counts as w equal ones, zero leaves it out.
    optimizer : optax.GradientTransformation, optional
        Default `optimizers.newton()`. Any optax transformation will do; make it once and pass the same object again,
        since a new one compiles anew.
    tolerance : float, optional
        Stop when the decrement is below this many standard errors (of the weighted sample, if there are weights), at most
        0.1; default √ε, 1.5e-8 in float64 and 3.5e-4 in float32. Another's optimiser is looked at every 25 steps.
    max_steps : int, optional
        Default 1 000, or 10 000 for an optimiser that is not one of fisher_jax's.

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
    Compiled once for each model, optimiser and set of shapes; starts, data, tolerance and max_steps are free to change.
    Cost: some ten evaluations of ℓ, its gradient and Hessian. Near the maximum the step is Newton's; see
    `optimizers.newton`. Constraints are obeyed by maximising over unconstrained u; the covariance is that of θ.

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
    model = as_model(model, "fit")
    dataset = check_dataset(model, data, given, weights, "fit")
    params = starting_parameters(model, params, dataset.data, dataset.given, "fit")
    layout, values = flatten_parameters(model, params, "fit")
    if layout.num_free == 0:
        raise ValueError("fit: every parameter is fixed, so there is nothing to estimate. Use log_likelihood.")
    check_start(layout, values, "fit")
    if tolerance is None:
        tolerance = default_tolerance(layout.dtype)
    check_stopping(tolerance, max_steps, "fit")
    optimizer = newton() if optimizer is None else optimizer
    check_optimizer(optimizer, "fit")
    if max_steps is None:
        max_steps = default_steps(optimizer)
    found = _fit(model, layout, optimizer, typed(layout, values), dataset, tolerance, max_steps)
    inside = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((found, dataset)))
    return found if inside else replace(found, origin=Origin(model, dataset))


def check_optimizer(optimizer: Any, caller: str) -> None:
    """Refuse what is no optax transformation."""
    if isinstance(optimizer, type) or not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(
            f"{caller}: optimizer must be an optax transformation such as optax.lbfgs(), got {optimizer!r}."
        )


def check_stopping(tolerance: Any, max_steps: Any, caller: str) -> None:
    """Refuse a tolerance that cannot be certified, and a number of steps that is none."""
    known = tolerance is not None and not isinstance(tolerance, jax.core.Tracer)
    if known and not 0 < tolerance <= LARGEST_TOLERANCE:
        raise ValueError(
            f"{caller}: tolerance={tolerance} must be positive and at most {LARGEST_TOLERANCE}: "
            "it is a distance in standard errors."
        )
    if max_steps is None or isinstance(max_steps, jax.core.Tracer):
        return
    if int(max_steps) != max_steps or not 0 <= max_steps < 2**31:
        raise ValueError(f"{caller}: max_steps={max_steps} must be a whole number from 0 to 2**31 - 1.")


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _fit(
    model: Model,
    layout: Layout,
    optimizer: Any,
    values: Values,
    dataset: Dataset,
    tolerance: Any,
    max_steps: Any,
) -> Fit:
    values, dataset = _without_derivatives((values, dataset))
    problem = problem_of(model, layout, values, dataset, checked_start(layout, values), "fit")
    found = maximise(problem, optimizer, jnp.asarray(tolerance, layout.dtype), jnp.asarray(max_steps, jnp.int32))
    return record(model, layout, values, dataset, problem, found, KINDS)


def record(
    model: Model,
    layout: Layout,
    values: Values,
    dataset: Dataset,
    problem: Problem,
    found: Solution,
    kinds: tuple[str, ...],
) -> Fit:
    """What is kept of a solution: what the covariances of these kinds need, so that they need no data.

    Which observation is to blame is looked for where the scores are taken anyhow.
    """
    target, started = problem.likelihood, jnp.all(jnp.isfinite(problem.start))
    reached = layout.constrained_values(found.free, values)
    estimate = [jnp.where(started, new, old) for new, old in zip(reached, values, strict=True)]
    suspect, outer_product = jnp.int32(-1), None
    if {"empirical", "sandwich"} & set(kinds):
        finite_scores, outer_product = outer_product_at(target, found.free)
        suspect = unsound_at(target, found.free, finite_scores)
    return Fit(
        values=estimate,
        log_likelihood=found.log_likelihood,
        status_code=found.status,
        num_steps=found.num_steps,
        decrement=found.decrement,
        num_observations=num_observations(target, layout),
        free=found.free,
        curvature=found.curvature if {"observed", "sandwich"} & set(kinds) else None,
        outer_product=outer_product,
        expected=total_information(model, layout, estimate, dataset, target) if "expected" in kinds else None,
        suspect=suspect,
        last_step=found.last_step,
        attempt=jnp.zeros((), jnp.int8),
        layout=layout,
        kinds=tuple(kind for kind in KINDS if kind in kinds),
    )


def unsound_at(target: Likelihood, free: Float[Array, " p"], finite_scores: Bool[Array, " n"]) -> Int[Array, ""]:
    """Index of the first observation whose log-density or score is not finite; −1 where there is none, or no start."""
    sound = finite_scores & jnp.isfinite(terms_at(target, free))
    started = jnp.all(jnp.isfinite(free))
    return jnp.where(jnp.all(sound) | ~started, -1, jnp.argmin(sound)).astype(jnp.int32)


@jax.custom_jvp
def _without_derivatives(inputs: Any) -> Any:
    return inputs


@_without_derivatives.defjvp
def _refuse_derivatives(inputs: Any, tangents: Any) -> Any:
    raise TypeError(
        "fit: a fit cannot be differentiated: its steps are accepted or rejected, and their derivative is not that of the "
        "maximum. Use the implicit function theorem with hessian and score at the estimate, or stop_gradient what goes in."
    )


def default_steps(optimizer: Any) -> int:
    """How many steps an optimiser may take where the user does not say."""
    return NEWTON_STEPS if isinstance(optimizer, Newton) else FOREIGN_STEPS
