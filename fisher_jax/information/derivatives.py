"""Log-likelihood, score, Hessian and the information matrices at the data: derivatives of a model at given parameters and data."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.errors import check_pytrees, entry_point
from fisher_jax.information.matrix import Information
from fisher_jax.models.dataset import Dataset, check_dataset, pad_dataset
from fisher_jax.models.likelihood import (
    Likelihood,
    derivatives_at,
    gradient_at,
    likelihood,
    outer_product_at,
    scores_at,
    terms_at,
    total_weight,
)
from fisher_jax.models.model import Model, as_model, flatten_parameters
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.programs import jit_with_model
from fisher_jax.numerics.differentiate import weigh
from fisher_jax.numerics.exact_sums import Sums
from fisher_jax.sources import RowSource, check_rows_alone, is_source

ROWS_IN_A_BLOCK = 2**16
ROUTES = {
    "observed": "observed: minus the mean Hessian at the data",
    "empirical": "empirical: mean outer product of the scores at the data",
}


def check_arguments(
    model: Any, params: PyTree, data: PyTree, given: PyTree, weights: Any
) -> tuple[Model, Layout, Values, Dataset]:
    """Check the arguments of a function of parameters and data. The layout is the natural one, so that flat means θ."""
    if is_source(data, given, weights):
        raise TypeError(
            "takes arrays in memory. Of data read in blocks there are log_likelihood, score, hessian, observed_information and "
            "empirical_fisher."
        )
    model = as_model(model)
    check_pytrees(data=data, given=given, weights=weights)
    layout, values = flatten_parameters(model, params)
    return model, layout.natural(), values, check_dataset(model, data, given, weights)


def jit_at_data(function: Callable[..., Any]) -> Callable[..., Any]:
    """Jit a function of (target, θ, layout), where the log-likelihood `target` is built when that is traced."""

    @functools.partial(jit_with_model, static_argnums=(0, 1))
    def run(model: Model, layout: Layout, values: Values, dataset: Dataset, *extra: Any) -> Any:
        target = likelihood(model, layout, values, dataset)
        return function(target, layout.unconstrain(values), layout, *extra)

    return run


_log_likelihood = jit_at_data(lambda target, theta, layout: jnp.sum(terms_at(target, theta)))
_score = jit_at_data(lambda target, theta, layout: layout.split(gradient_at(target, theta)[1], 0.0))
_scores = jit_at_data(lambda target, theta, layout: layout.split(weigh(scores_at(target, theta), target.weights), 0.0))
_hessian = jit_at_data(lambda target, theta, layout: -derivatives_at(target, theta).curvature)
_observed = jit_at_data(lambda target, theta, layout: derivatives_at(target, theta).curvature / total_weight(target))
_empirical = jit_at_data(lambda target, theta, layout: outer_product_at(target, theta)[1] / total_weight(target))


_outer_product = jit_at_data(lambda target, theta, layout: outer_product_at(target, theta)[1])


def _of_source(function: Callable[..., Any], model: Any, params: PyTree, data: Any, given: Any, weights: Any) -> Any:
    """A total over rows that are read in blocks, with the layout, and the sum of the weights; None where the data are in memory.

    The last block is filled up by rows of weight zero, so that one program serves all.
    """
    if not is_source(data, given, weights):
        return None
    model = as_model(model)
    check_rows_alone(model)
    layout, values = flatten_parameters(model, params)
    layout, total_weight, treedef = layout.natural(), Sums(), None
    sums: list[Sums] = []
    for parts in RowSource(data, given, weights, "raise").blocks(ROWS_IN_A_BLOCK):
        dataset = pad_dataset(check_dataset(model, *parts), ROWS_IN_A_BLOCK, layout.dtype)
        leaves, treedef = jax.tree.flatten(function(model, layout, values, dataset))
        sums = sums or [Sums() for _ in leaves]
        for total, leaf in zip(sums, leaves, strict=True):
            total.add(leaf)
        total_weight.add(dataset.weights)
    totals = [jnp.asarray(total.high + total.low, layout.dtype) for total in sums]
    weight = np.sum(total_weight.high + total_weight.low)
    return jax.tree.unflatten(treedef, totals), layout, jnp.asarray(weight, layout.dtype)


@jit_at_data
def _product_with(target: Likelihood, theta: Array, layout: Layout, vector: Values) -> Values:
    push = jax.jvp(lambda flat: gradient_at(target, flat)[1], (theta,), (layout.join(vector),))[1]
    return layout.split(push, 0.0)


@entry_point
def log_likelihood(
    model: Model | Callable[..., Any], params: PyTree, data: PyTree, *, given: PyTree = None, weights: PyTree = None
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
        zero; what comes from pandas must have the same index everywhere. Or a source that is read in blocks, as for `fit`.
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
    if (total := _of_source(_log_likelihood, model, params, data, given, weights)) is not None:
        return total[0]
    return _log_likelihood(*check_arguments(model, params, data, given, weights))


@entry_point
def score(
    model: Model | Callable[..., Any], params: PyTree, data: PyTree, *, given: PyTree = None, weights: PyTree = None
) -> PyTree:
    """Score ∇ℓ(θ), total over the data: a pytree like `params`.

    Parameters
    ----------
    model, params, data, given, weights
        As for `log_likelihood`.

    Returns
    -------
    pytree
        ∂ℓ/∂θ in the user's own parametrisation, each leaf of its parameter's shape, in nats per unit of the parameter.
        Leaves that the model holds `fixed` are zero. Other constraints play no part: on a simplex, for example, the entries are
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
    if (total := _of_source(_score, model, params, data, given, weights)) is not None:
        return total[1].assemble(total[0])
    arguments = check_arguments(model, params, data, given, weights)
    return arguments[1].assemble(_score(*arguments))


@entry_point
def scores(
    model: Model | Callable[..., Any], params: PyTree, data: PyTree, *, given: PyTree = None, weights: PyTree = None
) -> PyTree:
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
    arguments = check_arguments(model, params, data, given, weights)
    return arguments[1].assemble(_scores(*arguments))


@entry_point
def hessian(
    model: Model | Callable[..., Any], params: PyTree, data: PyTree, *, given: PyTree = None, weights: PyTree = None
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
    if (total := _of_source(_hessian, model, params, data, given, weights)) is not None:
        return total[0]
    return _hessian(*check_arguments(model, params, data, given, weights))


@entry_point
def hessian_vector_product(
    model: Model | Callable[..., Any],
    params: PyTree,
    data: PyTree,
    vector: PyTree = None,
    *,
    given: PyTree = None,
    weights: PyTree = None,
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
    arguments = check_arguments(model, params, data, given, weights)
    layout = arguments[1]

    def product(vector: PyTree) -> PyTree:
        """∇²ℓ(θ) v."""
        return layout.assemble(_product_with(*arguments, layout.blocks(vector)))

    return product if vector is None else product(vector)


@entry_point
def observed_information(
    model: Model | Callable[..., Any], params: PyTree, data: PyTree, *, given: PyTree = None, weights: PyTree = None
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
    if (total := _of_source(_hessian, model, params, data, given, weights)) is not None:
        return Information(-total[0] / total[2], total[1].names, ROUTES["observed"])
    arguments = check_arguments(model, params, data, given, weights)
    return Information(_observed(*arguments), arguments[1].names, ROUTES["observed"])


@entry_point
def empirical_fisher(
    model: Model | Callable[..., Any], params: PyTree, data: PyTree, *, given: PyTree = None, weights: PyTree = None
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
    if (total := _of_source(_outer_product, model, params, data, given, weights)) is not None:
        return Information(total[0] / total[2], total[1].names, ROUTES["empirical"])
    arguments = check_arguments(model, params, data, given, weights)
    return Information(_empirical(*arguments), arguments[1].names, ROUTES["empirical"])
