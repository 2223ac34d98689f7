"""The information matrices at the data: minus the mean Hessian, and the mean outer product of the scores."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from fisher_jax.errors import entry_point
from fisher_jax.information.derivatives import at_door, jitted
from fisher_jax.information.record import Information
from fisher_jax.models.likelihood import Likelihood, derivatives_at, outer_product_at
from fisher_jax.models.parameters import Layout


@entry_point
def observed_information(
    model: Any, params: PyTree, data: PyTree, *, given: PyTree = None, weights: Any = None
) -> Information:
    """Observed information −(1/n) ∇²ℓ(θ) at the data, per observation.

    Parameters
    ----------
    model, params, data, given, weights
        As for `log_likelihood`. n is the number of observations, or the sum of the weights.

    Returns
    -------
    Information
        Symmetric, but positive definite only near a maximum. Leaves that the model holds `fixed` are left out; other
        constraints play no part.

    Raises
    ------
    ValueError, TypeError
        As for `log_likelihood`.

    References
    ----------
    Efron, B. and Hinkley, D. V. (1978), Biometrika 65, 457-487, eq. (1.3).

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> from jax.scipy.stats import poisson
    >>> found = fj.observed_information(lambda rate, y: poisson.logpmf(y, rate), 2.0, jnp.array([1, 3]))
    >>> print(found.matrix)
    [[0.5]]
    """
    arguments = at_door(model, params, data, given, weights)
    matrix = _observed(*arguments)
    return Information(matrix, arguments[1].names, "observed: minus the mean Hessian at the data")


@entry_point
def empirical_fisher(
    model: Any, params: PyTree, data: PyTree, *, given: PyTree = None, weights: Any = None
) -> Information:
    """Empirical Fisher (1/n) Σ sᵢ sᵢᵀ at the data, per observation: the outer product of gradients, OPG, BHHH.

    Parameters
    ----------
    model, params, data, given, weights
        As for `log_likelihood`. n is the number of observations, or the sum of the weights.

    Returns
    -------
    Information
        Positive semi-definite. It estimates the Fisher information only if the model is right and θ is near the truth.

    Raises
    ------
    ValueError, TypeError
        As for `log_likelihood`.

    References
    ----------
    Berndt, E., Hall, B., Hall, R. and Hausman, J. (1974), Ann. Econ. Soc. Meas. 3, 653-665, eq. (3.5).

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> from jax.scipy.stats import poisson
    >>> found = fj.empirical_fisher(lambda rate, y: poisson.logpmf(y, rate), 2.0, jnp.array([1, 3]))
    >>> print(found.matrix)
    [[0.25]]
    """
    arguments = at_door(model, params, data, given, weights)
    matrix = _empirical(*arguments)
    route = "empirical: mean outer product of the scores at the data"
    return Information(matrix, arguments[1].names, route)


def _count(target: Likelihood) -> Any:
    return target.num_terms if target.weights is None else jnp.sum(target.weights)


@jitted
def _observed(target: Likelihood, theta: Array, layout: Layout) -> Array:
    return derivatives_at(target, theta).curvature / _count(target)


@jitted
def _empirical(target: Likelihood, theta: Array, layout: Layout) -> Array:
    return outer_product_at(target, theta)[1] / _count(target)
