"""The building block: updates multiplied by an inverse information, for chains of optax's own pieces."""

from typing import Any

import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from fisher_jax.errors import entry_point
from fisher_jax.numerics import linalg
from fisher_jax.optimizers.newton import Kind, Objective


@entry_point
def scale_by_information(kind: Kind = "observed", *, damping: float = 0.0) -> optax.GradientTransformationExtraArgs:
    """Multiply the incoming updates by the inverse information at the current parameters.

    Parameters
    ----------
    kind : {"observed", "expected", "empirical"}
        Which curvature the objective is asked for.
    damping : float
        λ ≥ 0: λ times the curvature's diagonal is added before inverting.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        Its update needs the keyword `objective` as in `newton`. Where the damped curvature is not positive definite the
        updates become NaN: damp more, or use ``"expected"`` or ``"empirical"``.

    Notes
    -----
    A building block: follow it by ``optax.scale(-1.0)`` or ``optax.scale_by_learning_rate(schedule)`` to descend. By itself it
    guards against nothing; `newton` is the robust method.

    Examples
    --------
    >>> import fisher_jax as fj, optax
    >>> optimizer = optax.chain(
    ...     fj.optimizers.scale_by_information("empirical", damping=0.01),
    ...     optax.scale_by_learning_rate(optax.linear_schedule(0.1, 1.0, 10)),
    ... )
    """

    def init(params: PyTree) -> optax.EmptyState:
        return optax.EmptyState()

    def update(
        updates: PyTree, state: optax.EmptyState, params: PyTree = None, *, objective: Objective, **extra: Any
    ) -> tuple[PyTree, optax.EmptyState]:
        curvature = objective(params, kind).information
        flat, restore = ravel_pytree(updates)
        factor = linalg.factorize(curvature + damping * jnp.diag(jnp.diagonal(curvature)))
        return restore(jnp.where(factor.definite, linalg.solve(factor, flat), jnp.nan)), state

    return optax.GradientTransformationExtraArgs(init, update)
