"""The information matrices, all per observation, and the record that carries them."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax import linalg
from fisher_jax.derivatives import at_door, jitted
from fisher_jax.differentiate import derivatives_at, outer_product_at, weigh
from fisher_jax.extras import require
from fisher_jax.model import Likelihood, Model, as_model, flatten_parameters
from fisher_jax.parameters import Layout, Values


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Information:
    """An information matrix, per observation, with its error, its names and how it was computed.

    Attributes
    ----------
    matrix : array (q, q)
        Symmetric, in nats per product of the parameters' units, in the user's own parametrisation.
    standard_error : array (q, q)
        Of each entry, zero where the route is exact.
    names : tuple of str
        The parameter entries that rows and columns belong to.
    route : str
        How it was computed, in words.
    num_samples : int
        Draws behind a sampled expectation; 0 where none were drawn.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> from jax.scipy.stats import norm
    >>> def log_density(params, y):
    ...     return norm.logpdf(y, params["loc"], 2.0)
    >>> found = fj.observed_information(log_density, {"loc": 0.0}, jnp.array([1.0, 2.0, 4.0]))
    >>> found.names, found.route
    (('loc',), 'observed: minus the mean Hessian at the data')
    >>> print(found.matrix)
    [[0.25]]
    """

    matrix: Float[Array, "q q"]
    standard_error: Float[Array, "q q"]
    names: tuple[str, ...] = field(metadata={"static": True})
    route: str = field(metadata={"static": True})
    num_samples: int = field(default=0, metadata={"static": True})

    def inverse(self) -> Float[Array, "q q"]:
        """The inverse matrix (q, q): the Cramér-Rao bound for one observation, if this is the Fisher information.

        Raises
        ------
        ValueError
            If the matrix is not positive definite; the message names the weakest direction. Under a transformation, where
            nothing can be raised, the result is all NaN instead.
        """
        inverse = linalg.inverse(self.matrix)
        if not isinstance(inverse, jax.core.Tracer) and np.isnan(np.asarray(inverse)).any():
            value, direction = linalg.weakest_direction(np.asarray(self.matrix))
            raise ValueError(
                f"Information.inverse: the matrix is not positive definite (smallest eigenvalue {value:.3g} at unit "
                f"diagonal) along {describe_direction(direction, self.names)}. Fix one of these parameters."
            )
        return inverse

    def to_frame(self) -> Any:
        """The matrix as a pandas DataFrame with the names on both axes (needs the extra `frames`)."""
        pd = require("pandas", "frames", "Information.to_frame")
        return pd.DataFrame(np.asarray(self.matrix), index=list(self.names), columns=list(self.names))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.matrix, dtype=dtype, copy=copy)


def describe_direction(direction: np.ndarray, names: tuple[str, ...], most: int = 4) -> str:
    """`+1 a −0.98 b`: the parameters that make up a direction, the largest first."""
    order = [k for k in np.argsort(-np.abs(direction), kind="stable") if abs(direction[k]) >= 0.05]
    said = " ".join(f"{direction[k]:+.2g} {names[k]}" for k in order[:most])
    return said + (f" and {len(order) - most} more" if len(order) > most else "")


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
    arguments = at_door(model, params, data, given, weights, "observed_information")
    matrix = _observed(*arguments, "observed_information")
    return Information(
        matrix, jnp.zeros_like(matrix), arguments[1].names, "observed: minus the mean Hessian at the data"
    )


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
    arguments = at_door(model, params, data, given, weights, "empirical_fisher")
    matrix = _empirical(*arguments, "empirical_fisher")
    route = "empirical: mean outer product of the scores at the data"
    return Information(matrix, jnp.zeros_like(matrix), arguments[1].names, route)


def fisher_information(model: Any, params: PyTree, expectation: Any = None, *, given: PyTree = None) -> Information:
    """Fisher information I(θ) = E[s sᵀ] = −E[H] under the model, per observation.

    Parameters
    ----------
    model : Model
        A model with an `information` in closed form.
    params : pytree
        The parameters θ.
    expectation : None
        How the expectation is taken; `None`, the model's own closed form, is the one route so far.
    given : pytree, optional
        Covariates with a leading axis of length n; the result is the average over their rows.

    Returns
    -------
    Information
        With the route named. Leaves that the model holds `fixed` are left out.

    Raises
    ------
    ValueError
        If there is no route: the message says what to supply.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> from jax.scipy.stats import poisson
    >>> model = fj.Model(lambda rate, y: poisson.logpmf(y, rate), information=lambda rate: 1 / rate)
    >>> print(fj.fisher_information(model, 2.0).matrix)
    [[0.5]]
    """
    model = as_model(model, "fisher_information")
    if expectation is not None or model.information is None:
        lack = "the model has no `information` in closed form"
        if expectation is not None:
            lack = f"expectation={expectation!r} is not a known way to take the expectation"
        raise ValueError(
            f"fisher_information: no route to the expectation: {lack}. Give Model(…, information=function of params), the "
            "Fisher information of one observation, or use observed_information or empirical_fisher, which need data."
        )
    layout, values = flatten_parameters(model, params, "fisher_information")
    matrix = _closed_form(model, layout, values, given)
    return Information(matrix, jnp.zeros_like(matrix), layout.names, "expected: the model's closed form")


def total_expected(
    model: Model, layout: Layout, params: PyTree, given: PyTree, num_observations: Any, weights: Any
) -> Float[Array, "q q"]:
    """n I(θ): the closed form summed over the covariates' rows, or times n where there are none."""
    if given is None:
        return num_observations * as_matrix(model.information(params), layout)  # type: ignore[misc]
    matrices = jax.vmap(lambda z: as_matrix(model.information(params, z), layout))(given)  # type: ignore[misc]
    return jnp.sum(weigh(matrices, weights), axis=0)


def as_matrix(information: Any, layout: Layout) -> Float[Array, "q q"]:
    """A user's closed form as one matrix: an array (q, q), or nested like params in params, over the free leaves."""
    q = len(layout.names)
    if isinstance(information, jax.Array | np.ndarray | float | int):
        matrix = jnp.asarray(information, layout.dtype)
        if matrix.size == q * q and matrix.ndim in (0, 2):
            return matrix.reshape(q, q)
        raise ValueError(
            f"information: expected shape {(q, q)} for the parameters {', '.join(layout.names)}, got {matrix.shape}. "
            "Return it in this order, or nested like jax.hessian's result."
        )
    try:
        rows = [layout.blocks(row) for row in layout.blocks(information)]
    except ValueError as error:
        raise ValueError(
            f"information: expected an array {(q, q)} or a pytree nested like params in params, got {information!r}: {error}"
        ) from error
    free = layout.free_leaves
    parts = [
        [jnp.asarray(rows[i][j], layout.dtype).reshape(row.size, column.size) for j, column in free] for i, row in free
    ]
    return jnp.block(parts)


def _count(target: Likelihood) -> Any:
    return target.num_terms if target.weights is None else jnp.sum(target.weights)


@jitted
def _observed(target: Likelihood, theta: Array, layout: Layout) -> Array:
    return derivatives_at(target, theta).curvature / _count(target)


@jitted
def _empirical(target: Likelihood, theta: Array, layout: Layout) -> Array:
    return outer_product_at(target, theta)[1] / _count(target)


def _closed_form(model: Model, layout: Layout, values: Values, given: PyTree) -> Array:
    params = layout.assemble([jnp.asarray(value, layout.dtype) for value in values])
    rows = 1 if given is None else jax.tree.leaves(given)[0].shape[0]
    return total_expected(model, layout, params, given, 1, None) / rows
