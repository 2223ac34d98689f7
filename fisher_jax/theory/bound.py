"""The Cramér-Rao bound: for the parameters, for functions of them, for biased estimators."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from fisher_jax import linalg
from fisher_jax.information import Covariance, fisher_information
from fisher_jax.information.errors import carried
from fisher_jax.information.inverse import check_invertible
from fisher_jax.model import as_model, flatten_parameters
from fisher_jax.parameters import Layout, Values, layout_of


def cramer_rao_bound(
    model: Any,
    params: PyTree,
    expectation: Any = None,
    *,
    num_observations: Any,
    function: Any = None,
    bias: Any = None,
    given: PyTree = None,
) -> Covariance:
    """The least covariance that an estimator can have: (G + B) (n I)⁻¹ (G + B)ᵀ, with G = ∂g/∂θ and B = ∂b/∂θ.

    Parameters
    ----------
    model, params, expectation, given
        As for `fisher_information`.
    num_observations : int
        n. With `given`, the bound is for n observations spread over its rows evenly.
    function : callable, optional
        g(params), any differentiable function, an array or a pytree; by default the parameters themselves.
    bias : callable, optional
        b(params) = E[ĝ] − g(θ), of the same structure as g. Without it the bound is that of unbiased estimators. The mean
        squared error of a biased one is at least the bound plus b bᵀ.

    Returns
    -------
    Covariance
        (r, r), by the names of what g returns, with its error where the information is sampled. Where constraints tie
        parameters together (a simplex, a symmetric matrix) the bound is that of estimators that obey them.

    Raises
    ------
    ValueError
        If the information is singular, naming the direction: there is no unbiased estimator along it of finite variance.

    References
    ----------
    Lehmann, E. L. and Casella, G. (1998), Theory of Point Estimation, 2nd ed., theorem 2.6.6. Under constraints: Stoica, P.
    and Ng, B. C. (1998), IEEE Signal Process. Lett. 5, 177-179, eq. (8).

    Examples
    --------
    >>> import fisher_jax as fj
    >>> bound = fj.cramer_rao_bound(fj.families.exponential, {"rate": 2.0}, num_observations=100)
    >>> print(bound.matrix)
    [[0.04]]
    >>> mean = fj.cramer_rao_bound(
    ...     fj.families.exponential, {"rate": 2.0}, num_observations=100, function=lambda p: {"mean": 1 / p["rate"]}
    ... )
    >>> print(mean.names, mean.matrix)
    ('mean',) [[0.0025]]
    """
    model = as_model(model, "cramer_rao_bound")
    information = fisher_information(model, params, expectation, given=given)
    layout, values = flatten_parameters(model, params, "cramer_rao_bound")
    names, slope = _slope(layout, values, function, bias)
    free = layout.unconstrain(values)
    tangent = layout.jacobian(free, values)

    def bound(matrix: Array) -> Array:
        inner = linalg.inverse(tangent.T @ matrix @ tangent)
        half = slope @ tangent
        return half @ inner @ half.T / num_observations

    matrix, errors = carried(bound, information.matrix, information.errors)
    if len(information.names) == layout.num_free:
        check_invertible(information.matrix, matrix, information.names)
    said = num_observations if isinstance(num_observations, int) else "n"
    route = f"Cramér-Rao bound for {said} observations from: {information.route}"
    return Covariance(matrix, names, route, errors, information.num_samples)


def _slope(layout: Layout, values: Values, function: Any, bias: Any) -> tuple[tuple[str, ...], Float[Array, "r q"]]:
    """What g's entries are called, and G + B."""
    natural = layout.natural()
    theta = natural.unconstrain(values)
    if function is None:
        target, names = natural, natural.names
        slope = jnp.eye(theta.shape[0], dtype=theta.dtype)
    else:
        target = layout_of(function(natural.constrain(theta, values)), (), "cramer_rao_bound: function")[0]
        names = tuple("function" + name.removeprefix("params") if _bare(name) else name for name in target.names)
        slope = jax.jacfwd(lambda theta: target.flatten(function(natural.constrain(theta, values))))(theta)
    if bias is not None:
        slope = slope + jax.jacfwd(lambda theta: target.flatten(bias(natural.constrain(theta, values))))(theta)
    return names, slope


def _bare(name: str) -> bool:
    """Whether an entry has no name of its own, since what holds it is an array and no dictionary."""
    return name == "params" or name.startswith("params[")
