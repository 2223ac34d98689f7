"""The Cramér-Rao bound: for the parameters, for functions of them, for biased estimators."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from fisher_jax.errors import call_user, check_function, entry_point, is_number, shown
from fisher_jax.information import Covariance, Information, fisher_information
from fisher_jax.information.errors import carried
from fisher_jax.information.expected import at_door, taken
from fisher_jax.information.inverse import check_invertible
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Values, layout_of
from fisher_jax.numerics import linalg


@entry_point
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
    check_number(num_observations)
    return bound_of(model, params, expectation, num_observations, function, bias, given)


def bound_of(
    model: Any, params: PyTree, expectation: Any, num_observations: Any, function: Any, bias: Any, given: PyTree
) -> Covariance:
    """The bound itself, for whoever calls."""
    model, layout, values, given = at_door(model, params, given)
    if expectation is None:
        information = closed_form_in_free(model, params, layout, values, given)
    else:
        information = taken(model, layout, layout.free_names, values, expectation, given)
    names, slope = slope_of(layout, values, function, bias)
    half = slope @ layout.jacobian(layout.unconstrain(values))
    matrix, errors = carried(
        lambda matrix: half @ linalg.inverse(matrix) @ half.T / num_observations, information.matrix, information.errors
    )
    check_invertible(information.matrix, matrix, information.names)
    said = "n" if isinstance(num_observations, jax.core.Tracer) else f"{float(num_observations):g}"
    route = f"Cramér-Rao bound for {said} observations from: {information.route}"
    return Covariance(matrix, names, route, errors, information.num_samples)


def closed_form_in_free(model: Model, params: PyTree, layout: Layout, values: Values, given: PyTree) -> Information:
    """The information about u: on a simplex, say, only there do the identities hold that it rests on."""
    found = fisher_information(model, params, given=given)
    tangent = layout.jacobian(layout.unconstrain(values))
    return replace(found, matrix=tangent.T @ found.matrix @ tangent, names=layout.free_names)


def check_number(num_observations: Any) -> None:
    """Refuse a number of observations that is none."""
    if isinstance(num_observations, jax.core.Tracer):
        return
    if not is_number(num_observations) or not num_observations > 0:
        raise ValueError(f"num_observations={shown(num_observations)} must be positive.")


def slope_of(layout: Layout, values: Values, function: Any, bias: Any) -> tuple[tuple[str, ...], Float[Array, "r q"]]:
    """What g's entries are called, and G + B."""
    natural = layout.natural()
    theta = natural.unconstrain(values)
    if function is None:
        target, names = natural, natural.names
        slope = jnp.eye(theta.shape[0], dtype=theta.dtype)
    else:
        check_function(function, "function")
        found = call_user(function, (natural.constrain(theta, values),), "function")
        target = layout_of(found, ())[0]
        names = tuple("function" + name.removeprefix("params") if _bare(name) else name for name in target.names)
        slope = jax.jacfwd(lambda theta: target.flatten(function(natural.constrain(theta, values))))(theta)
    if bias is not None:
        check_function(bias, "bias")
        _check_like(target, names, call_user(bias, (natural.constrain(theta, values),), "bias"))
        slope = slope + jax.jacfwd(lambda theta: target.flatten(bias(natural.constrain(theta, values))))(theta)
    return names, slope


def _check_like(target: Layout, names: tuple[str, ...], bias: PyTree) -> None:
    """Refuse a bias of another structure than what it is the bias of."""
    found = layout_of(bias, ())[0]
    same = found.treedef == target.treedef
    if not same or [leaf.shape for leaf in found.leaves] != [leaf.shape for leaf in target.leaves]:
        raise ValueError(
            f"bias(params) returned {', '.join(found.names)}, but it is to be the bias of {', '.join(names)}: "
            "give it the same structure and shapes."
        )


def _bare(name: str) -> bool:
    """Whether an entry has no name of its own, since what holds it is an array and no dictionary."""
    return name == "params" or name.startswith("params[")
