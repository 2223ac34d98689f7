"""Log-likelihood, score, scores, Hessian and products with it: what a user asks of a model at given parameters and data."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from fisher_jax.errors import check_pytrees, entry_point
from fisher_jax.models.dataset import Dataset, check_dataset
from fisher_jax.models.likelihood import Likelihood, derivatives_at, gradient_at, likelihood, scores_at, terms_at
from fisher_jax.models.model import Model, as_model, flatten_parameters
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.programs import jit_with_model
from fisher_jax.numerics.differentiate import weigh


def at_door(
    model: Any, params: PyTree, data: PyTree, given: PyTree, weights: Any
) -> tuple[Model, Layout, Values, Dataset]:
    """Check a user's arguments; the layout is the natural one, so that flat means θ."""
    model = as_model(model)
    check_pytrees(data=data, given=given, weights=weights)
    layout, values = flatten_parameters(model, params)
    return model, layout.natural(), values, check_dataset(model, data, given, weights)


def jitted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Jit a function of (target, θ, layout), with the problem built where it is traced."""

    @functools.partial(jit_with_model, static_argnums=(0, 1))
    def run(model: Model, layout: Layout, values: Values, dataset: Dataset, *extra: Any) -> Any:
        target = likelihood(model, layout, values, dataset)
        return function(target, layout.unconstrain(values), layout, *extra)

    return functools.wraps(function)(run)


@jitted
def _log_likelihood(target: Likelihood, theta: Array, layout: Layout) -> Array:
    return jnp.sum(terms_at(target, theta))


@jitted
def _score(target: Likelihood, theta: Array, layout: Layout) -> Values:
    return layout.split(gradient_at(target, theta)[1], 0.0)


@jitted
def _scores(target: Likelihood, theta: Array, layout: Layout) -> Values:
    return layout.split(weigh(scores_at(target, theta), target.weights), 0.0)


@jitted
def _hessian(target: Likelihood, theta: Array, layout: Layout) -> Array:
    return -derivatives_at(target, theta).curvature


@jitted
def _product_with(target: Likelihood, theta: Array, layout: Layout, vector: Values) -> Values:
    push = jax.jvp(lambda flat: gradient_at(target, flat)[1], (theta,), (layout.join(vector),))[1]
    return layout.split(push, 0.0)


@entry_point
def log_likelihood(
    model: Any, params: PyTree, data: PyTree, *, given: PyTree = None, weights: Any = None
) -> Float[Array, ""]:
    """Log-likelihood ℓ(θ) = Σ wᵢ log p(yᵢ; θ), in nats, total over the data.

    Parameters
    ----------
    model : Model or callable
        A model, or a log-density of one observation.
    params : pytree
        The parameters θ, any pytree of floating arrays.
    data : pytree
        The observations, each leaf with a leading axis of length n. Rows with a masked entry, here or in `given`, get weight
        zero; what comes from pandas must have the same index everywhere.
    given : pytree, optional
        Covariates with the same leading axis, handed to the log-density as its third argument.
    weights : array (n,), optional
        Frequency weights: an observation of weight w counts as w equal ones. Zero leaves it out, whatever it holds.

    Returns
    -------
    scalar array
        The total, in the floating dtype of `params`; not finite where the log-density is not.

    Raises
    ------
    ValueError, TypeError
        If the log-density does not return one floating scalar per observation, or the arguments do not fit together.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> from jax.scipy.stats import norm
    >>> def log_density(params, y):
    ...     return norm.logpdf(y, params["loc"], params["scale"])
    >>> print(f"{fj.log_likelihood(log_density, {'loc': 0.0, 'scale': 1.0}, jnp.array([1.0, 2.0])):.4f}")
    -4.3379
    """
    return _log_likelihood(*at_door(model, params, data, given, weights))


@entry_point
def score(model: Any, params: PyTree, data: PyTree, *, given: PyTree = None, weights: Any = None) -> PyTree:
    """Score ∇ℓ(θ), total over the data: a pytree like `params`.

    Parameters
    ----------
    model, params, data, given, weights
        As for `log_likelihood`.

    Returns
    -------
    pytree
        ∂ℓ/∂θ in the user's own parametrisation, each leaf of its parameter's shape, in nats per unit of the parameter.
        Leaves that the model holds `fixed` are zero. Other constraints play no part: on a simplex, say, the entries are
        differentiated as if they were free.

    Raises
    ------
    ValueError, TypeError
        As for `log_likelihood`.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> from jax.scipy.stats import norm
    >>> def log_density(params, y):
    ...     return norm.logpdf(y, params["loc"], 1.0)
    >>> print(fj.score(log_density, {"loc": 0.0}, jnp.array([1.0, 2.0]))["loc"])
    3.0
    """
    arguments = at_door(model, params, data, given, weights)
    return arguments[1].assemble(_score(*arguments))


@entry_point
def scores(model: Any, params: PyTree, data: PyTree, *, given: PyTree = None, weights: Any = None) -> PyTree:
    """Score of each observation: a pytree like `params` whose leaves have a leading axis of length n.

    Parameters
    ----------
    model, params, data, given, weights
        As for `log_likelihood`.

    Returns
    -------
    pytree
        wᵢ ∂log p(yᵢ; θ)/∂θ; their sum is `score`. Leaves that the model holds `fixed` are zero.

    Raises
    ------
    ValueError, TypeError
        As for `log_likelihood`.

    Notes
    -----
    The result itself has n × q numbers; for sums of products of scores use `empirical_fisher`, which does not hold them.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> from jax.scipy.stats import norm
    >>> def log_density(params, y):
    ...     return norm.logpdf(y, params["loc"], 1.0)
    >>> print(fj.scores(log_density, {"loc": 0.0}, jnp.array([1.0, 2.0]))["loc"])
    [1. 2.]
    """
    arguments = at_door(model, params, data, given, weights)
    return arguments[1].assemble(_scores(*arguments))


@entry_point
def hessian(
    model: Any, params: PyTree, data: PyTree, *, given: PyTree = None, weights: Any = None
) -> Float[Array, "q q"]:
    """Hessian ∇²ℓ(θ), total over the data, as one symmetric matrix.

    Parameters
    ----------
    model, params, data, given, weights
        As for `log_likelihood`.

    Returns
    -------
    array (q, q)
        Second derivatives in the user's own parametrisation, in the order of the flattened parameters, which JAX takes
        by sorted key in a dictionary. `observed_information(…).names` lists it. Leaves held `fixed` are absent.

    Raises
    ------
    ValueError, TypeError
        As for `log_likelihood`.

    Notes
    -----
    Up to three parameters each entry costs one nested forward pass; above, each row costs about two gradients. Memory is a
    chunk of rows times q, whatever n.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> from jax.scipy.stats import norm
    >>> def log_density(params, y):
    ...     return norm.logpdf(y, params["loc"], 1.0)
    >>> print(fj.hessian(log_density, {"loc": 0.0}, jnp.array([1.0, 2.0])))
    [[-2.]]
    """
    return _hessian(*at_door(model, params, data, given, weights))


@entry_point
def hessian_vector_product(
    model: Any, params: PyTree, data: PyTree, vector: PyTree = None, *, given: PyTree = None, weights: Any = None
) -> Any:
    """Product ∇²ℓ(θ) v, total over the data, without forming the Hessian.

    Parameters
    ----------
    model, params, data, given, weights
        As for `log_likelihood`.
    vector : pytree, optional
        v, a pytree like `params`. Left out, the result is the function of v, for use in an iterative solver.

    Returns
    -------
    pytree, or callable
        The product, like `params`, leaves held `fixed` being zero; or the function from v to it.

    Raises
    ------
    ValueError, TypeError
        As for `log_likelihood`.

    Notes
    -----
    One product costs about two gradients, forward over reverse.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> from jax.scipy.stats import norm
    >>> def log_density(params, y):
    ...     return norm.logpdf(y, params["loc"], 1.0)
    >>> product = fj.hessian_vector_product(log_density, {"loc": 0.0}, jnp.array([1.0, 2.0]))
    >>> print(product({"loc": 3.0})["loc"])
    -6.0
    """
    arguments = at_door(model, params, data, given, weights)
    layout = arguments[1]

    def product(vector: PyTree) -> PyTree:
        """∇²ℓ(θ) v."""
        return layout.assemble(_product_with(*arguments, layout.blocks(vector)))

    return product if vector is None else product(vector)
