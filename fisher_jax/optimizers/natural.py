"""The natural gradient: steepest descent in the metric that the information is, for few parameters or for many.

At parameters θ with gradient g of the loss and information M an update

1. solves (M + λI) d = g, by a Cholesky factor of a matrix, or by conjugate gradients where M is known by its products;
2. takes the step δ = −α c d, where c ≤ 1 bounds the divergence ½ δᵀMδ, to second order the Kullback-Leibler divergence that the
   step moves by. dᵀMd = gᵀd − λ dᵀd needs no further product;
3. if `adaptive`, compares the decrease of the loss with that of the quadratic model, α c gᵀd − ½ δᵀMδ, and changes λ by
   Levenberg's and Marquardt's rule (Martens and Sutskever 2012).
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from fisher_jax.errors import entry_point
from fisher_jax.models.parameters import layout_of
from fisher_jax.numerics import linalg
from fisher_jax.optimizers.newton import Objective

MetricKind = Literal["expected", "empirical"]

SHRINK, GROW = 2 / 3, 3 / 2  # what the damping is multiplied by after a step that was predicted well, or badly
AFTER_REJECTION = 4.0
WELL, BADLY = 0.75, 0.25  # reduction ratios


class NaturalGradientState(NamedTuple):
    """State of `natural_gradient`: what the next step needs, and what the last one was.

    Attributes
    ----------
    num_updates : integer array
        Updates so far, for the learning rate's schedule.
    damping : scalar array
        λ of the next update.
    num_products : integer array
        Products that the last solve took by conjugate gradients; 0 for a solve by factorising.
    residual : scalar array
        Norm of the residual of the last solve, divided by the norm of the gradient; NaN where the matrix could not be factorised.
    solved : boolean array
        Whether that is within the tolerance.
    num_unsolved : integer array
        Updates so far whose solve was not within the tolerance. Their direction is still one of descent.
    divergence : scalar array
        ½ δᵀ M δ of the last step, about the Kullback-Leibler divergence it moves by: in nats for each observation where M is
        per observation, in nats for all where it is a total.
    shortening : scalar array
        What the bound on the divergence multiplied the last step by, at most 1.
    reduction_ratio : scalar array
        Decrease of the loss divided by the decrease that the quadratic model predicted, at the last update; NaN where it
        was not computed.
    rejected : boolean array
        Whether the last step was not taken, since it would have raised the loss or made it not finite.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> state = fj.optimizers.natural_gradient(damping=0.01).init(jnp.zeros(3))
    >>> print(f"{state.num_updates} updates, damping {state.damping:.2f}, {state.num_unsolved} unsolved")
    0 updates, damping 0.01, 0 unsolved
    """

    num_updates: Int[Array, ""]
    damping: Float[Array, ""]
    num_products: Int[Array, ""]
    residual: Float[Array, ""]
    solved: Bool[Array, ""]
    num_unsolved: Int[Array, ""]
    divergence: Float[Array, ""]
    shortening: Float[Array, ""]
    reduction_ratio: Float[Array, ""]
    rejected: Bool[Array, ""]


@entry_point
def natural_gradient(
    learning_rate: float | Array | optax.Schedule = 1.0,
    *,
    kind: MetricKind = "expected",
    damping: float | Array = 0.0,
    adaptive: bool = False,
    largest_divergence: float | Array | None = None,
    tolerance: float | Array = 1e-3,
    max_products: int = 50,
) -> optax.GradientTransformationExtraArgs:
    """Natural gradient descent: θ ← θ − α (M + λI)⁻¹ g, with M the information of the model at θ and g the loss's gradient.

    Parameters
    ----------
    learning_rate : float, or optax schedule
        α. 1 is the step that the quadratic model gᵀδ + ½ δᵀ(M + λI)δ asks for.
    kind : {"expected", "empirical"}
        Which M: the Fisher information, or the mean outer product of the scores at the data, which is no metric of the model
        and agrees with it only where the model fits.
    damping : float
        λ ≥ 0, in the information's own units. A singular M, as that of most networks, needs some.
    adaptive : bool
        Whether λ follows the reduction ratio, decrease of the loss divided by the decrease predicted: below ¼ it grows by
        3/2, above ¾ it shrinks by 2/3. A step that would raise the loss by more than rounding is not taken, and λ grows
        by 4. Costs an evaluation of the loss for each update, and needs `value_fn`.
    largest_divergence : float, optional
        A trust region: the step is shortened until ½ δᵀMδ, to second order the Kullback-Leibler divergence between the models
        before and after it, is at most this, in nats.
    tolerance : float
        Where M is known by its products only: the norm of the residual, divided by that of g, at which conjugate gradients stop.
    max_products : int
        And how many products they may take.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        Its update takes the gradient of the loss to be minimised, and one keyword for the information:
        ``objective(params, kind) -> Evaluation``, which `fisher_jax.fit` supplies, for a matrix that is factorised; or
        ``information=``, an `InformationOperator` made at the parameters and the batch at hand, for a solve by conjugate
        gradients. For `adaptive`, also ``value_fn(params)``, the same loss, and optionally its ``value=``.

    Raises
    ------
    ValueError, TypeError
        If a setting is out of range, no information is given, or it is of another kind.

    Notes
    -----
    Units. An objective gives totals over the data, so λ and the divergence are totals. An operator is per observation and goes
    with the gradient of the mean loss, minus log-density by observation.

    With λ = 0 and a small α the path is the same in every parametrisation of a model: M changes with it as the gradient
    does. The bound on the divergence keeps that, λ does not.

    Three operators: Jᵀ I_η J of a `linked` model, exact; a mean over labels that the model draws itself (`MonteCarlo` with
    estimator ``"outer"``, and another key each time); ``kind="empirical"`` at the data's own labels. Each product costs one to
    two gradients, and the gradient is followed by as many as the solve takes. A direction from a truncated solve is still
    one of descent; the state records how far it came. With a matrix that cannot be factorised the updates are NaN, or with
    `adaptive` the step is not taken and λ grows.

    For momentum, chain with ``optax.trace``; not with `adaptive`, which judges the step as it leaves here.

    References
    ----------
    Amari, S. (1998), Neural Computation 10, 251-276, theorem 1. Martens, J. and Sutskever, I. (2012), Training deep and
    recurrent networks with Hessian-free optimization, in Neural Networks: Tricks of the Trade, 2nd ed., on λ. Schulman, J. et
    al. (2015), Trust region policy optimization, ICML, appendix C on the step.

    Examples
    --------
    >>> import fisher_jax as fj, jax, jax.numpy as jnp, optax
    >>> model = fj.linked(fj.families.poisson, lambda w, x: {"rate": jnp.exp(x @ w)})
    >>> x, y = jnp.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]]), jnp.array([1.0, 2.0, 6.0])
    >>> loss = lambda w: -fj.log_likelihood(model, w, y, given=x) / 3
    >>> optimizer, w = fj.optimizers.natural_gradient(largest_divergence=0.5), jnp.zeros(2)
    >>> state = optimizer.init(w)
    >>> for _ in range(8):
    ...     information = fj.information_operator(model, w, given=x)
    ...     updates, state = optimizer.update(jax.grad(loss)(w), state, w, information=information)
    ...     w = optax.apply_updates(w, updates)
    >>> print(f"{w[0]:.4f} {w[1]:.4f}, {state.num_products} products")
    -0.1392 0.9545, 2 products
    """
    settings: dict[str, Any] = {
        "learning_rate": learning_rate,
        "kind": kind,
        "damping": damping,
        "adaptive": adaptive,
        "largest_divergence": largest_divergence,
        "tolerance": tolerance,
        "max_products": max_products,
    }
    for name, setting in settings.items():
        if (
            isinstance(setting, jax.Array | np.ndarray)
            and not isinstance(setting, jax.core.Tracer)
            and setting.size == 1
        ):
            settings[name] = setting.item()  # a number can be hashed, an array cannot
    _check(**settings)
    traced = any(isinstance(setting, jax.core.Tracer) for setting in settings.values())
    return (_transformation if traced else _cached)(**settings)


def _transformation(
    learning_rate: Any,
    kind: MetricKind,
    damping: Any,
    adaptive: bool,
    largest_divergence: Any,
    tolerance: Any,
    max_products: Any,
) -> optax.GradientTransformationExtraArgs:
    def init(params: PyTree) -> NaturalGradientState:
        start = jnp.full((), damping, layout_of(params)[0].dtype)
        whole, zero, no = jnp.zeros((), jnp.int32), jnp.zeros_like(start), jnp.array(False)
        nan = jnp.full_like(start, jnp.nan)
        return NaturalGradientState(whole, start, whole, nan, no, whole, zero, zero + 1, nan, no)

    def update(
        updates: PyTree,
        state: NaturalGradientState,
        params: PyTree = None,
        *,
        objective: Objective | None = None,
        information: Any = None,
        value: Any = None,
        value_fn: Callable[[PyTree], Any] | None = None,
        **extra: Any,
    ) -> tuple[PyTree, NaturalGradientState]:
        if information is not None:
            direction = _solve_by_products(information, kind, updates, state.damping, tolerance, max_products)
        elif objective is not None:
            direction = _solve_by_factor(objective(params, kind).information, updates, state.damping)
        else:
            raise TypeError(
                "natural_gradient: update needs objective= (fisher_jax.fit supplies it) or information=, an "
                "information_operator made at these parameters."
            )
        dtype = state.damping.dtype
        rate = jnp.asarray(learning_rate(state.num_updates) if callable(learning_rate) else learning_rate, dtype)
        # The residual of conjugate gradients is orthogonal to d, however early they stop, so dᵀMd = gᵀd − λ dᵀd needs no
        # product. In float32 and ill-conditioned that holds to some thousandths.
        curvature = jnp.maximum(direction.slope - state.damping * direction.square, 0.0)
        divergence = 0.5 * rate**2 * curvature
        shortening = jnp.ones_like(divergence)
        if largest_divergence is not None:
            shortening = jnp.sqrt(jnp.where(divergence > largest_divergence, largest_divergence / divergence, 1.0))
        step = jax.tree.map(lambda leaf: (-(rate * shortening) * leaf).astype(leaf.dtype), direction.value)
        divergence = shortening**2 * divergence
        state = state._replace(
            num_updates=state.num_updates + 1,
            num_products=jnp.asarray(direction.num_products, jnp.int32),
            residual=direction.residual,
            solved=direction.solved,
            num_unsolved=state.num_unsolved + ~direction.solved,
            divergence=divergence,
            shortening=shortening,
        )
        if not adaptive:
            return step, state
        if value_fn is None or params is None:
            raise TypeError(
                "natural_gradient: adaptive=True compares losses before and after the step, so update needs the parameters, "
                "and value_fn=, the loss as a function of them."
            )
        before = value_fn(params) if value is None else value
        predicted = rate * shortening * direction.slope - divergence
        return _accept_or_reject(step, state, before, value_fn(optax.apply_updates(params, step)), predicted)

    return optax.GradientTransformationExtraArgs(init, update)


_cached = functools.cache(_transformation)  # equal settings are the same optimiser, for which nothing is compiled anew


class _Direction(NamedTuple):
    """d with (M + λI) d = g, about; gᵀd and dᵀd."""

    value: PyTree
    slope: Float[Array, ""]
    square: Float[Array, ""]
    num_products: Any
    residual: Float[Array, ""]
    solved: Bool[Array, ""]


def _solve_by_products(
    information: Any, kind: str, gradient: PyTree, damping: Array, tolerance: Any, max_products: Any
) -> _Direction:
    """By conjugate gradients."""
    if not hasattr(information, "solve"):
        raise TypeError(
            f"natural_gradient: information must be an information_operator, got {type(information).__name__}. A matrix goes "
            "with objective=."
        )
    if getattr(information, "kind", kind) != kind:
        raise ValueError(
            f'natural_gradient: the operator is of kind "{information.kind}", the optimiser of kind "{kind}". Make both the '
            'same: natural_gradient(kind="…") names what the steps are taken with.'
        )
    solution = information.solve(gradient, damping, tolerance=tolerance, max_steps=max_products)
    # The gradient of a module has None in the place of what is no array, and so has the update.
    arrays = [leaf for leaf in jax.tree.leaves(solution.value) if hasattr(leaf, "dtype")]
    value = jax.tree.unflatten(jax.tree.structure(gradient), arrays)
    # What is fixed may have any slope, even NaN.
    slope = _dot(jax.tree.map(lambda slope, value: jnp.where(value == 0, 0.0, slope), gradient, value), value)
    return _Direction(value, slope, _dot(value, value), solution.num_steps, solution.residual, solution.converged)


def _solve_by_factor(curvature: Float[Array, "p p"], gradient: PyTree, damping: Array) -> _Direction:
    """By Cholesky's factor; NaN where the damped matrix is not positive definite."""
    flat, restore = ravel_pytree(gradient)
    factor = linalg.factorize(curvature + damping * jnp.eye(flat.shape[0], dtype=flat.dtype))
    direction = jnp.where(factor.definite, linalg.solve(factor, flat), jnp.nan)
    residual = jnp.where(factor.definite, 0.0, jnp.nan).astype(flat.dtype)
    return _Direction(
        restore(direction), _dot(flat, direction), _dot(direction, direction), 0, residual, factor.definite
    )


def _accept_or_reject(
    step: PyTree, state: NaturalGradientState, before: Any, after: Any, predicted: Array
) -> tuple[PyTree, NaturalGradientState]:
    """The step if it does not raise the loss, else zero; and the damping by how well the decrease was predicted."""
    gain = before - after
    # A predicted decrease below the rounding of the loss cannot be judged: the step is taken and the damping stays.
    indistinct = jnp.abs(predicted) <= 8 * jnp.finfo(predicted.dtype).eps * jnp.abs(before)
    ratio = gain / jnp.where(predicted > 0, predicted, jnp.nan)
    accepted = jnp.isfinite(after) & jnp.isfinite(predicted) & ((gain >= 0) | indistinct)
    factor = jnp.where(ratio > WELL, SHRINK, jnp.where((ratio < BADLY) | (predicted < 0), GROW, 1.0))
    factor = jnp.where(accepted, jnp.where(indistinct, 1.0, factor), AFTER_REJECTION)
    least = jnp.finfo(state.damping.dtype).tiny ** 0.5  # from zero no factor would lead back
    return jax.tree.map(lambda leaf: jnp.where(accepted, leaf, 0.0), step), state._replace(
        damping=jnp.clip(factor * state.damping, least, 1 / least).astype(state.damping.dtype),
        divergence=jnp.where(accepted, state.divergence, 0.0),
        reduction_ratio=ratio.astype(state.damping.dtype),
        rejected=~accepted,
    )


def _dot(a: PyTree, b: PyTree) -> Float[Array, ""]:
    """Element by element, which no device does in less than full precision."""
    parts = jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum(x * y), a, b))
    return jnp.sum(jnp.stack(parts))


def _check(
    learning_rate: Any,
    kind: Any,
    damping: Any,
    adaptive: Any,
    largest_divergence: Any,
    tolerance: Any,
    max_products: Any,
) -> None:
    """Raise for settings out of range; those that `optax.inject_hyperparams` traces are taken as they come."""
    if kind not in ("expected", "empirical"):
        instead = ' With kind="observed" it would be Newton\'s method: see newton.' if kind == "observed" else ""
        raise ValueError(f'natural_gradient: kind={kind!r} is no metric; choose "expected" or "empirical".{instead}')

    def is_within(name: str, setting: Any, holds: Callable[[Any], bool]) -> bool:
        if isinstance(setting, jax.core.Tracer):
            return True
        if not isinstance(setting, int | float | np.number):
            raise TypeError(f"{name}={setting!r} must be a number.")
        return holds(setting)

    if not callable(learning_rate) and not is_within("learning_rate", learning_rate, lambda x: x > 0):
        raise ValueError(f"learning_rate={learning_rate} must be positive, or an optax schedule. 1 is the whole step.")
    if not is_within("damping", damping, lambda x: x >= 0):
        raise ValueError(f"damping={damping} must not be negative: it is added to the diagonal.")
    if adaptive and not is_within("damping", damping, lambda x: x > 0):
        raise ValueError(
            "adaptive=True multiplies the damping, so it must start positive, got damping=0.0. Give "
            "damping=1e-3 or so, in the information's units."
        )
    if largest_divergence is not None and not is_within("largest_divergence", largest_divergence, lambda x: x > 0):
        raise ValueError(f"largest_divergence={largest_divergence} must be positive: it is a bound in nats.")
    if not is_within("tolerance", tolerance, lambda x: 0 < x < 1):
        raise ValueError(
            f"tolerance={tolerance} must lie between 0 and 1: it is the fraction of the gradient that a solve "
            "may leave over."
        )
    if not isinstance(max_products, int | np.integer) or max_products < 1:
        raise ValueError(f"max_products={max_products!r} must be a whole number, at least 1.")
