"""One step of the natural gradient: solved for, bounded in divergence, and judged by the loss it leads to."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from fisher_jax.numerics import linalg

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


def initial_state(damping: Float[Array, ""]) -> NaturalGradientState:
    """Before the first update, of which nothing is known."""
    whole, none = jnp.zeros((), jnp.int32), jnp.zeros_like(damping)
    unknown, no = jnp.full_like(damping, jnp.nan), jnp.array(False)
    return NaturalGradientState(whole, damping, whole, unknown, no, whole, none, none + 1, unknown, no)


class Direction(NamedTuple):
    """d with (M + λI) d = g, about; gᵀd and dᵀd."""

    value: PyTree
    slope: Float[Array, ""]
    square: Float[Array, ""]
    num_products: Any
    residual: Float[Array, ""]
    solved: Bool[Array, ""]


def by_products(information: Any, gradient: PyTree, damping: Array, tolerance: Any, most: Any) -> Direction:
    found = information.solve(gradient, damping, tolerance=tolerance, max_steps=most)
    # The gradient of a module has None in the place of what is no array, and so has the update.
    arrays = [leaf for leaf in jax.tree.leaves(found.value) if hasattr(leaf, "dtype")]
    value = jax.tree.unflatten(jax.tree.structure(gradient), arrays)
    held = lambda slope, value: jnp.where(value == 0, 0.0, slope)  # noqa: E731  (what is fixed may have any slope, even NaN)
    slope = _dot(jax.tree.map(held, gradient, value), value)
    return Direction(value, slope, _dot(value, value), found.num_steps, found.residual, found.converged)


def by_matrix(curvature: Float[Array, "p p"], gradient: PyTree, damping: Array) -> Direction:
    flat, restore = ravel_pytree(gradient)
    factor = linalg.factorise(curvature + damping * jnp.eye(flat.shape[0], dtype=flat.dtype))
    direction = jnp.where(factor.definite, linalg.solve(factor, flat), jnp.nan)
    residual = jnp.where(factor.definite, 0.0, jnp.nan).astype(flat.dtype)
    return Direction(
        restore(direction), _dot(flat, direction), _dot(direction, direction), 0, residual, factor.definite
    )


def bounded(
    found: Direction, rate: Any, damping: Array, largest: Any
) -> tuple[PyTree, Float[Array, ""], Float[Array, ""]]:
    """The step −α c d, its divergence, and c.

    What conjugate gradients leave over is orthogonal to d, however early they stop, so dᵀMd = gᵀd − λ dᵀd needs no product. In
    float32 and ill-conditioned that holds to some thousandths.
    """
    curvature = jnp.maximum(found.slope - damping * found.square, 0.0)
    divergence = 0.5 * rate**2 * curvature
    shortening = jnp.ones_like(divergence)
    if largest is not None:
        shortening = jnp.sqrt(jnp.where(divergence > largest, largest / divergence, 1.0))
    step = jax.tree.map(lambda leaf: (-(rate * shortening) * leaf).astype(leaf.dtype), found.value)
    return step, shortening**2 * divergence, shortening


def judged(
    step: PyTree, state: NaturalGradientState, before: Any, after: Any, predicted: Array
) -> tuple[PyTree, NaturalGradientState]:
    """The step if it does not raise the loss, and the damping by how well the decrease was predicted."""
    gain = before - after
    drowned = jnp.abs(predicted) <= 8 * jnp.finfo(predicted.dtype).eps * jnp.abs(before)  # in the rounding of the loss
    ratio = gain / jnp.where(predicted > 0, predicted, jnp.nan)
    taken = jnp.isfinite(after) & jnp.isfinite(predicted) & ((gain >= 0) | drowned)
    factor = jnp.where(ratio > WELL, SHRINK, jnp.where((ratio < BADLY) | (predicted < 0), GROW, 1.0))
    factor = jnp.where(taken, jnp.where(drowned, 1.0, factor), AFTER_REJECTION)
    least = jnp.finfo(state.damping.dtype).tiny ** 0.5  # from zero no factor would lead back
    return jax.tree.map(lambda leaf: jnp.where(taken, leaf, 0.0), step), state._replace(
        damping=jnp.clip(factor * state.damping, least, 1 / least).astype(state.damping.dtype),
        divergence=jnp.where(taken, state.divergence, 0.0),
        reduction_ratio=ratio.astype(state.damping.dtype),
        rejected=~taken,
    )


def _dot(a: PyTree, b: PyTree) -> Float[Array, ""]:
    """Element by element, which no device does in less than full precision."""
    parts = jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum(x * y), a, b))
    return jnp.sum(jnp.stack(parts))
