"""`with_prior`: a model with a prior, a term of the parameters alone that a fit adds to the log-likelihood, once.

    ℓ(θ) + log π(θ; λ)

with the strength λ an argument of the fit. A data set carries the strength where the prior is to be counted
(`Dataset.strength`), so that what computes the log-likelihood of the model itself leaves the prior out.
"""

import inspect
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fisher_jax.errors import check_function, entry_point, is_number, kind_of, shown
from fisher_jax.models.auxiliary import auxiliary_derivatives, first_row
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.model import Model, as_model
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.programs import UserFunction, call_differentiable


@entry_point
def with_prior(model: Model, prior: UserFunction | None) -> Model:
    """The model with a prior or penalty, in place of the one that it had; with None without one.

    For models that are made by a function, such as `linked`, `mixed`, and the families; ``Model(…, prior=)`` is the same.

    Parameters
    ----------
    model : Model or callable
        A model, or a bare log-density.
    prior : callable, or None
        ``prior(params)`` or ``prior(params, strength)``, in nats; see `Model`. Ready ones are in `fisher_jax.priors`.

    Returns
    -------
    Model
        Of the same kind. Its fits maximise the penalised log-likelihood.

    Examples
    --------
    >>> import fisher_jax as fj
    >>> shrunk = fj.with_prior(fj.families.weibull, fj.priors.normal({"shape": (1.0, 0.2)}))
    >>> fit = fj.fit(shrunk, None, [3.1, 4.0, 3.5, 3.7, 4.4])
    >>> print(fit.converged, f"{fit.log_prior:.2f}")
    True 0.34
    """
    model = as_model(model)
    if prior is not None:
        check_function(prior, "prior", "params")
    return replace(model, prior=prior)


def takes_strength(prior: UserFunction) -> bool:
    """Whether a prior is a function of parameters and a strength."""
    takes = getattr(prior, "takes_strength", None)
    if takes is not None:
        return bool(takes)
    try:
        parameters = list(inspect.signature(prior).parameters.values())
    except (TypeError, ValueError):  # without a signature
        return False
    # A second argument with a default is a constant of the prior's, unless it is called so.
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len([p for p in positional if p.default is p.empty]) > 1 or any(p.name == "strength" for p in positional[1:])


def check_strength(model: Model, strength: Any, size: int | None = None) -> tuple[Any, ...] | None:
    """The strength as a `Dataset` carries it; raise where it does not suit the prior. `size` is the number of data sets."""
    if model.prior is None:
        if strength is not None:
            raise ValueError(
                f"strength={shown(strength)} is that of a prior, and the model has none. Give Model(…, prior=function of params "
                "and strength), or with_prior(model, priors.ridge(…))."
            )
        return None
    if not takes_strength(model.prior):
        if strength is not None:
            raise ValueError(
                f"strength={shown(strength)}, but the prior is a function of params alone. Write it as prior(params, strength)."
            )
        return ()
    if strength is None:
        raise ValueError(
            "the prior is a function of params and strength. Give the fit strength=, a number"
            + (", or one for each data set." if size is not None else ".")
        )
    if isinstance(strength, jax.Array):
        if strength.dtype == bool or jnp.iscomplexobj(strength):
            raise TypeError(f"strength must be real numbers, got an array of {strength.dtype}.")
    else:
        if not is_number(strength) and not isinstance(strength, np.ndarray | list | tuple):
            raise TypeError(
                f"strength must be a number, or in fit_batch one for each data set, got {kind_of(strength)}."
            )
        strength = np.asarray(strength)
        if strength.dtype.kind not in "fiu":
            raise TypeError(f"strength={shown(strength)} must be numbers.")
        strength = strength.astype(jax.dtypes.canonicalize_dtype(float))
    if jnp.shape(strength) not in ((), *(() if size is None else ((size,),))):
        expected = "one number" if size is None else f"one number, or one for each of the {size} data sets"
        raise ValueError(f"strength has shape {jnp.shape(strength)}; expected {expected}.")
    if not isinstance(strength, jax.core.Tracer):
        host = np.asarray(strength)
        if not np.all(np.isfinite(host) & (host >= 0)):
            raise ValueError(f"strength={shown(strength)} must be finite and not negative.")
    return (strength,)


def log_prior(model: Model, layout: Layout, values: Values, dataset: Dataset) -> Float[Array, ""]:
    """The prior at parameters given by their leaves, checked to be a floating scalar; it must be counted in the data set."""
    prior: Any = model.prior
    strength = tuple(jnp.asarray(number, layout.dtype) for number in dataset.strength or ())
    if hasattr(prior, "of_data"):
        return prior.of_data(model, layout, values, dataset, *strength).astype(layout.dtype)
    value = call_differentiable(prior, (layout.assemble(values), *strength), "prior")
    if not hasattr(value, "dtype") or jnp.shape(value) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        what = f"shape {jnp.shape(value)}, {value.dtype}" if hasattr(value, "dtype") else kind_of(value)
        raise ValueError(
            f"the prior must return one floating number, the log-density of all parameters, but returned {what}. Sum those of "
            "several."
        )
    return value.astype(layout.dtype)


def prior_derivatives(
    model: Model, layout: Layout, values: Values, dataset: Dataset, free: Float[Array, " p"]
) -> tuple[Float[Array, ""], Float[Array, " p"], Float[Array, "p p"]]:
    """The prior at u, its gradient and minus its Hessian."""

    def at(free: Float[Array, " p"]) -> Float[Array, ""]:
        return log_prior(model, layout, layout.constrained_values(free, values), dataset)

    value, slope = jax.value_and_grad(at)(free)
    return value, slope, -jax.jacfwd(jax.grad(at))(free)


def is_of_expected(model: Model) -> bool:
    """Whether the covariance of fits with this prior is the inverse of the expected information, without the prior."""
    return bool(getattr(model.prior, "is_of_expected", False))


def describe_prior(prior: Any) -> str:
    """A prior in words, as a report prints it."""
    words = getattr(prior, "description", None)
    if words is not None:
        return str(words)
    return f"{getattr(prior, '__name__', type(prior).__name__)}(params{', strength' if takes_strength(prior) else ''})"


def once_derivatives(
    model: Model, layout: Layout, values: Values, dataset: Dataset, free: Float[Array, " p"]
) -> tuple[Float[Array, ""], Float[Array, " p"], Float[Array, "p p"], Float[Array, "p p"]]:
    """What counts once at u, an auxiliary measurement and a prior: value, gradient, minus the Hessian, variance of the score.

    A prior is no observation: its score has no variance.
    """
    zero = jnp.zeros((), layout.dtype)
    matrix = jnp.zeros((free.shape[0],) * 2, layout.dtype)
    total = (zero, jnp.zeros_like(free), matrix, matrix)
    if model.auxiliary is not None:
        measured = first_row(jax.tree.map(jnp.asarray, dataset.data.measured))
        total = auxiliary_derivatives(model, layout, values, measured, free)
    if dataset.strength is not None:
        value, slope, information = prior_derivatives(model, layout, values, dataset, free)
        total = total[0] + value, total[1] + slope, total[2] + information, total[3]
    return total


def counts_once(model: Model, dataset: Dataset) -> bool:
    """Whether the log-likelihood has a term that counts once."""
    return model.auxiliary is not None or dataset.strength is not None
