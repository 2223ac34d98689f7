"""The front door: `fit`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from fisher_jax.differentiate import outer_product_at
from fisher_jax.fitted import Fit
from fisher_jax.information import has_closed_form, total_expected
from fisher_jax.model import (
    Likelihood,
    Model,
    Sample,
    as_model,
    check_sample,
    check_start,
    flatten_parameters,
    likelihood,
    starting_parameters,
)
from fisher_jax.optimizers import UNDAMPED_BELOW, DampedState, newton
from fisher_jax.parameters import Layout, Values
from fisher_jax.solve import Problem, default_tolerance, maximise

NEWTON_STEPS = 200
FOREIGN_STEPS = 10_000


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
        Default 200, or 10 000 for an optimiser that is not one of fisher_jax's.

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
    sample = check_sample(model, data, given, weights, "fit")
    params = starting_parameters(model, params, sample, "fit")
    layout, values = flatten_parameters(model, params, "fit")
    if layout.num_free == 0:
        raise ValueError("fit: every parameter is fixed, so there is nothing to estimate. Use log_likelihood.")
    check_start(layout, values, "fit")
    if tolerance is None:
        tolerance = default_tolerance(layout.dtype)
    check_stopping(tolerance, max_steps)
    optimizer = newton() if optimizer is None else optimizer
    if isinstance(optimizer, type) or not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(f"fit: optimizer must be an optax transformation such as optax.lbfgs(), got {optimizer!r}.")
    if max_steps is None:
        max_steps = default_steps(optimizer, layout)
    return _fit(model, layout, optimizer, values, sample, tolerance, max_steps)


def check_stopping(tolerance: Any, max_steps: Any) -> None:
    """Refuse a tolerance that cannot be certified, and a number of steps that is none."""
    if not isinstance(tolerance, jax.core.Tracer) and not 0 < tolerance <= UNDAMPED_BELOW:
        raise ValueError(
            f"fit: tolerance={tolerance} must be positive and at most {UNDAMPED_BELOW}: it is a distance in standard errors."
        )
    if max_steps is None or isinstance(max_steps, jax.core.Tracer):
        return
    if int(max_steps) != max_steps or not 0 <= max_steps < 2**31:
        raise ValueError(f"fit: max_steps={max_steps} must be a whole number from 0 to 2**31 - 1.")


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _fit(
    model: Model,
    layout: Layout,
    optimizer: Any,
    values: Values,
    sample: Sample,
    tolerance: Any,
    max_steps: Any,
) -> Fit:
    values, sample = _without_derivatives((values, sample))
    target = likelihood(model, layout, values, sample, "fit")
    start = _checked_start(layout, values)
    problem = Problem(
        target,
        start,
        jnp.array(layout.restricted),
        _num_observed(target),
        functools.partial(_expected_in_free, model, layout, values, sample, target) if has_closed_form(model) else None,
    )
    found = maximise(problem, optimizer, jnp.asarray(tolerance, layout.dtype), jnp.asarray(max_steps, jnp.int32))
    finite_scores, outer_product = outer_product_at(target, found.free)
    started = jnp.all(jnp.isfinite(start))
    reached = layout.constrained_values(found.free, values)
    estimate = [jnp.where(started, new, old) for new, old in zip(reached, values, strict=True)]
    sound = jnp.isfinite(found.terms) & finite_scores
    return Fit(
        values=estimate,
        log_likelihood=jnp.sum(found.terms),
        status_code=found.status,
        num_steps=found.num_steps,
        decrement=found.decrement,
        num_observations=_num_observations(target, layout),
        free=found.free,
        curvature=found.curvature,
        outer_product=outer_product,
        expected=_expected(model, layout, estimate, sample, target),
        suspect=jnp.where(jnp.all(sound) | ~started, -1, jnp.argmin(sound)).astype(jnp.int32),
        last_step=found.last_step,
        layout=layout,
    )


@jax.custom_jvp
def _without_derivatives(inputs: Any) -> Any:
    return inputs


@_without_derivatives.defjvp
def _refuse_derivatives(inputs: Any, tangents: Any) -> Any:
    raise TypeError(
        "fit: a fit cannot be differentiated: its steps are accepted or rejected, and their derivative is not that of the "
        "maximum. Use the implicit function theorem with hessian and score at the estimate, or stop_gradient what goes in."
    )


@functools.lru_cache(maxsize=256)
def default_steps(optimizer: Any, layout: Layout) -> int:
    """How many steps an optimiser may take where the user does not say."""
    state = jax.eval_shape(optimizer.init, jax.ShapeDtypeStruct((layout.num_free,), layout.dtype))
    return NEWTON_STEPS if isinstance(state, DampedState) else FOREIGN_STEPS


def _checked_start(layout: Layout, values: Values) -> Float[Array, " p"]:
    """u at the start; NaN where a start known only at run time lies outside its constraint."""
    inside = jnp.all(jnp.stack([jnp.asarray(test) for test in layout.contains(values)]))
    return jnp.where(inside, layout.unconstrain(values), jnp.nan)


def _num_observations(target: Likelihood, layout: Layout) -> Array:
    if target.weights is None:
        return jnp.asarray(target.num_terms, layout.dtype)
    return jnp.sum(target.weights)


def _num_observed(target: Likelihood) -> Array:
    """How many observations there are, whatever their weight."""
    if target.weights is None:
        return jnp.asarray(target.num_terms)
    return jnp.sum(target.weights > 0)


def _expected(model: Model, layout: Layout, values: Values, sample: Sample, target: Likelihood) -> Array | None:
    if not has_closed_form(model):
        return None
    return total_expected(model, layout, values, sample.given, _num_observations(target, layout), target.weights)


def _expected_in_free(
    model: Model, layout: Layout, values: Values, sample: Sample, target: Likelihood, free: Float[Array, " p"]
) -> Float[Array, "p p"]:
    """n I in the unconstrained parametrisation: Dᵀ I D."""
    expected = _expected(model, layout, layout.constrained_values(free, values), sample, target)
    jacobian = layout.jacobian(free, values)
    with jax.default_matmul_precision("highest"):
        return jacobian.T @ expected @ jacobian  # type: ignore[operator]
