"""Newton's method, Fisher scoring and BHHH: whole methods that accept or reject their own steps."""

import functools
from typing import Any

import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from fisher_jax.optimizers.damped import (
    CurvatureKind,
    DampedState,
    NewtonState,
    Objective,
    advance,
    initial_state,
    propose,
    with_terms,
)


def newton(*, damping: float = 1e-3) -> optax.GradientTransformationExtraArgs:
    """Newton's method with Levenberg-Marquardt damping, one evaluation per update.

    Parameters
    ----------
    damping : float
        Initial λ: λ times the largest diagonal met of late is added to the curvature.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        Its update needs the keyword `objective`, called as ``objective(params, "observed") -> Evaluation``. The first update
        evaluates at the start and does not move; each later one evaluates once, at its trial point, and either moves
        there or stays. The parameters given must be those that the last update led to. The first update gives the state
        room for the objective's terms, so make it before a `jax.lax.scan` or `while_loop`.

    Notes
    -----
    λ follows Nielsen's rule; it multiplies a slowly forgotten maximum of the curvature's diagonal. Where the curvature is
    not positive definite, λ is raised within the step until the sum is. Within a tenth of a standard error of the minimum
    the step is undamped, hence quadratic convergence. The `updates` passed in are not used. To combine an
    information-scaled direction with optax's own pieces (schedules, clipping, momentum) use `scale_by_information`.

    References
    ----------
    Nielsen, H. B. (1999), Damping parameter in Marquardt's method, IMM-REP-1999-05, eq. (2.4).

    Examples
    --------
    >>> import jax.numpy as jnp, optax
    >>> from fisher_jax.optimizers import Evaluation, newton
    >>> def objective(x, kind):
    ...     return Evaluation(jnp.sum((x - 3.0) ** 2), 2 * (x - 3.0), 2 * jnp.eye(1))
    >>> optimizer, x = newton(), jnp.zeros(1)
    >>> state = optimizer.init(x)
    >>> for _ in range(8):
    ...     updates, state = optimizer.update(x, state, x, objective=objective)
    ...     x = optax.apply_updates(x, updates)
    >>> print(f"{x[0]:.4f}")
    3.0000
    """
    return _damped("observed", damping)


def fisher_scoring(*, damping: float = 1e-3) -> optax.GradientTransformationExtraArgs:
    """Fisher scoring: `newton` with the expected information for the curvature.

    Parameters
    ----------
    damping : float
        As for `newton`.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        As for `newton`; the objective is called with kind ``"expected"``. `fisher_jax.fit` can supply it for a model that
        has an `information`.

    Notes
    -----
    The expected information is positive semi-definite wherever it exists, so that the direction is always uphill;
    convergence is linear, quadratic only where expected and observed information agree.

    Examples
    --------
    >>> import fisher_jax as fj
    >>> optimizer = fj.optimizers.fisher_scoring()
    """
    return _damped("expected", damping)


def bhhh(*, damping: float = 1e-3) -> optax.GradientTransformationExtraArgs:
    """Berndt, Hall, Hall and Hausman's method: `newton` with the sum of the scores' outer products for the curvature.

    Parameters
    ----------
    damping : float
        As for `newton`.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        As for `newton`; the objective is called with kind ``"empirical"``.

    Notes
    -----
    Needs first derivatives only. Convergence is linear, the faster the larger n and the better the model fits.

    References
    ----------
    Berndt, E., Hall, B., Hall, R. and Hausman, J. (1974), Ann. Econ. Soc. Meas. 3, 653-665.

    Examples
    --------
    >>> import fisher_jax as fj
    >>> optimizer = fj.optimizers.bhhh()
    """
    return _damped("empirical", damping)


@functools.cache
def _damped(kind: CurvatureKind, damping: float) -> optax.GradientTransformationExtraArgs:
    if not damping > 0:
        raise ValueError(f"damping: expected a positive number, got {damping}. The default is 1e-3.")

    def init(params: PyTree) -> DampedState:
        flat, _ = ravel_pytree(params)
        state = initial_state(flat, params, damping)
        return NewtonState(*state) if kind == "observed" else state

    def update(
        updates: PyTree, state: DampedState, params: PyTree = None, *, objective: Objective, **extra: Any
    ) -> tuple[PyTree, DampedState]:
        flat, restore = ravel_pytree(params)
        state = with_terms(state, lambda: objective(params, kind))
        trial = propose(state, flat)
        step = jnp.where(state.num_updates == 0, 0.0, trial.step)
        reached = objective(restore(flat + step), kind)
        unchanged = jnp.all(jnp.abs(step) <= jnp.finfo(flat.dtype).eps * jnp.abs(flat))
        taken, state = advance(state, trial, reached, restore, unchanged)
        return restore(jnp.where(taken, step, 0.0)), state

    return optax.GradientTransformationExtraArgs(init, update)
