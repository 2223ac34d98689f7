"""The Cramér-Rao bound: for the parameters, for functions of them, for biased estimators.

With g the target function and b the bias, G = ∂g/∂θ and B = ∂b/∂θ, the bound is (G + B) (n I)⁻¹ (G + B)ᵀ. Under constraints
that tie entries of θ together I is singular in θ; then everything is taken in the unconstrained u, with T = ∂θ/∂u:
(G + B) T (n Tᵀ I T)⁻¹ Tᵀ (G + B)ᵀ.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from fisher_jax.errors import call_user, check_function, entry_point, is_number, shown
from fisher_jax.information.expectations import Expectation
from fisher_jax.information.fisher_information import check_point, expected_information, fisher_information
from fisher_jax.information.matrix import Covariance, Information, check_invertible, propagate
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Values, layout_of
from fisher_jax.numerics import linalg
from fisher_jax.numerics.array_namespace import on_host


@entry_point
def cramer_rao_bound(
    model: Model | Callable[..., Any],
    params: PyTree,
    expectation: Expectation | None = None,
    *,
    num_observations: int,
    function: Callable[[PyTree], Any] | None = None,
    bias: Callable[[PyTree], Any] | None = None,
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
    is_traced = isinstance(num_observations, jax.core.Tracer)
    if not is_traced and not (is_number(num_observations) and num_observations > 0):
        raise ValueError(f"num_observations={shown(num_observations)} must be positive.")
    model, layout, values, given = check_point(model, params, given)
    if expectation is None:
        information = closed_form_in_free(model, params, layout, values, given)
    else:
        information = expected_information(model, layout, layout.free_names, values, expectation, given)
    names, slope = slope_of(layout, values, function, bias)
    slope_in_free = slope @ layout.jacobian(layout.unconstrain(values))
    inverse, errors = propagate(linalg.inverse, information.matrix, information.errors)
    slope_in_free, inverse, errors = on_host((slope_in_free, inverse, errors))
    count = num_observations if is_traced else float(num_observations)
    matrix, errors = (
        None if part is None else jnp.asarray(slope_in_free @ part @ slope_in_free.T / count)
        for part in (inverse, errors)
    )
    check_invertible(information.matrix, matrix, information.names)
    shown_count = "n" if is_traced else f"{count:g}"
    route = f"Cramér-Rao bound for {shown_count} observations from: {information.route}"
    return Covariance(matrix, names, route, errors, information.num_samples)


def closed_form_in_free(model: Model, params: PyTree, layout: Layout, values: Values, given: PyTree) -> Information:
    """The information about u in closed form: on a simplex, for example, the identities that it rests on hold only there."""
    information = fisher_information(model, params, given=given)
    tangent = layout.jacobian(layout.unconstrain(values))
    return replace(information, matrix=tangent.T @ information.matrix @ tangent, names=layout.free_names)


def slope_of(layout: Layout, values: Values, function: Any, bias: Any) -> tuple[tuple[str, ...], Float[Array, "r q"]]:
    """The names of g's entries, and G + B."""
    natural = layout.natural()
    theta = natural.unconstrain(values)
    params = natural.constrain(theta, values)

    def jacobian(target: Layout, function: Callable[[PyTree], Any]) -> Float[Array, "r q"]:
        return jax.jacfwd(lambda theta: target.flatten(function(natural.constrain(theta, values))))(theta)

    target, names, slope = natural, natural.names, jnp.eye(theta.shape[0], dtype=theta.dtype)
    if function is not None:
        check_function(function, "function")
        target = layout_of(call_user(function, (params,), "function"))[0]
        # An entry of a bare array has no name of its own: params[0] of its layout is called function[0].
        bare = [name == "params" or name.startswith("params[") for name in target.names]
        renamed = ["function" + name.removeprefix("params") for name in target.names]
        names = tuple(b if is_bare else a for a, b, is_bare in zip(target.names, renamed, bare, strict=True))
        slope = jacobian(target, function)
    if bias is not None:
        check_function(bias, "bias")
        returned = layout_of(call_user(bias, (params,), "bias"))[0]
        same_shapes = [leaf.shape for leaf in returned.leaves] == [leaf.shape for leaf in target.leaves]
        if returned.treedef != target.treedef or not same_shapes:
            raise ValueError(
                f"bias(params) returned {', '.join(returned.names)}, but it is to be the bias of {', '.join(names)}: "
                "give it the same structure and shapes."
            )
        slope = slope + jacobian(target, bias)
    return names, slope
