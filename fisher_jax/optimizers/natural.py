"""The natural gradient: steepest descent in the metric that the information is, for few parameters or for many."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from fisher_jax.errors import entry_point
from fisher_jax.models.parameters import layout_of
from fisher_jax.optimizers.natural_step import (
    NaturalGradientState,
    bounded,
    by_matrix,
    by_products,
    initial_state,
    judged,
)
from fisher_jax.optimizers.newton import Objective

MetricKind = Literal["expected", "empirical"]


@entry_point
def natural_gradient(
    learning_rate: Any = 1.0,
    *,
    kind: Any = "expected",
    damping: Any = 0.0,
    adaptive: bool = False,
    largest_divergence: Any = None,
    tolerance: Any = 1e-3,
    max_products: Any = 50,
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
        Where M is known by its products only: the norm of the residual, by that of g, at which conjugate gradients stop.
    max_products : int
        And how many products they may take.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        Its update takes the gradient of the loss to be minimised, and one keyword for the information:
        ``objective(params, kind) -> Evaluation``, which `fisher_jax.fit` supplies, for a matrix that is factorised; or
        ``information=``, an `InformationOperator` made at the parameters and the batch at hand, for a solve by conjugate
        gradients. For `adaptive`, also ``value_fn(params)``, the same loss, and ``value=`` if it is known.

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
    one of descent; the state says how far it came. With a matrix that cannot be factorised the updates are NaN, or with
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
    given = (learning_rate, kind, damping, adaptive, largest_divergence, tolerance, max_products)
    settings = [_plain(setting) for setting in given]
    _check(*settings)
    traced = any(isinstance(setting, jax.core.Tracer) for setting in settings)
    return (_made if traced else _natural)(*settings)


def _made(
    learning_rate: Any,
    kind: MetricKind,
    damping: Any,
    adaptive: bool,
    largest_divergence: Any,
    tolerance: Any,
    max_products: Any,
) -> optax.GradientTransformationExtraArgs:
    def init(params: PyTree) -> NaturalGradientState:
        return initial_state(jnp.full((), damping, layout_of(params, ())[0].dtype))

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
            _check_information(information, kind)
            found = by_products(information, updates, state.damping, tolerance, max_products)
        elif objective is not None:
            found = by_matrix(objective(params, kind).information, updates, state.damping)
        else:
            raise TypeError(
                "natural_gradient: update needs objective= (fisher_jax.fit supplies it) or information=, an "
                "information_operator made at these parameters."
            )
        dtype = state.damping.dtype
        rate = jnp.asarray(learning_rate(state.num_updates) if callable(learning_rate) else learning_rate, dtype)
        step, divergence, shortening = bounded(found, rate, state.damping, largest_divergence)
        state = state._replace(
            num_updates=state.num_updates + 1,
            num_products=jnp.asarray(found.num_products, jnp.int32),
            residual=found.residual,
            solved=found.solved,
            num_unsolved=state.num_unsolved + ~found.solved,
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
        predicted = rate * shortening * found.slope - divergence
        return judged(step, state, before, value_fn(optax.apply_updates(params, step)), predicted)

    return optax.GradientTransformationExtraArgs(init, update)


_natural = functools.cache(_made)  # the same settings are the same optimiser, for which nothing is compiled anew


def _plain(setting: Any) -> Any:
    """An array's only number, which can be hashed."""
    known = isinstance(setting, jax.Array | np.ndarray) and not isinstance(setting, jax.core.Tracer)
    return setting.item() if known and setting.size == 1 else setting


def _check(
    learning_rate: Any, kind: Any, damping: Any, adaptive: Any, largest: Any, tolerance: Any, max_products: Any
) -> None:
    if kind not in ("expected", "empirical"):
        instead = ' With kind="observed" it would be Newton\'s method: see newton.' if kind == "observed" else ""
        raise ValueError(f'natural_gradient: kind={kind!r} is no metric; choose "expected" or "empirical".{instead}')
    learning_rate = 1.0 if callable(learning_rate) else _number("learning_rate", learning_rate, 1.0)
    damping = _number("damping", damping, 1.0)
    largest = None if largest is None else _number("largest_divergence", largest, 1.0)
    tolerance = _number("tolerance", tolerance, 0.5)
    if not learning_rate > 0:
        raise ValueError(f"learning_rate={learning_rate} must be positive, or an optax schedule. 1 is the whole step.")
    if not damping >= 0:
        raise ValueError(f"damping={damping} must not be negative: it is added to the diagonal.")
    if adaptive and not damping > 0:
        raise ValueError(
            "adaptive=True multiplies the damping, so it must start positive, got damping=0.0. Give "
            "damping=1e-3 or so, in the information's units."
        )
    if largest is not None and not largest > 0:
        raise ValueError(f"largest_divergence={largest} must be positive: it is a bound in nats.")
    if not 0 < tolerance < 1:
        raise ValueError(
            f"tolerance={tolerance} must lie between 0 and 1: it is the share of the gradient that a solve "
            "may leave over."
        )
    if not isinstance(max_products, int | np.integer) or max_products < 1:
        raise ValueError(f"max_products={max_products!r} must be a whole number, at least 1.")


def _number(name: str, setting: Any, unknown: float) -> Any:
    """The setting, which must be a number; in place of one that `optax.inject_hyperparams` traces, one that will do."""
    if isinstance(setting, jax.core.Tracer):
        return unknown
    if not isinstance(setting, int | float | np.number):
        raise TypeError(f"{name}={setting!r} must be a number.")
    return setting


def _check_information(information: Any, kind: str) -> None:
    if not hasattr(information, "solve"):
        raise TypeError(
            f"natural_gradient: information must be an information_operator, got {type(information).__name__}. A matrix goes "
            "with objective=."
        )
    found = getattr(information, "kind", kind)
    if found != kind:
        raise ValueError(
            f'natural_gradient: the operator is of kind "{found}", the optimiser of kind "{kind}". Make both the same: '
            f'natural_gradient(kind="…") names what the steps are taken with.'
        )
