"""The Fisher information of a model, by whichever route there is to the expectation."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.errors import check_pytrees, entry_point, warn
from fisher_jax.information.closed_form import has_closed_form, total_expected
from fisher_jax.information.draws import are_few, num_rows
from fisher_jax.information.exact import by_nodes
from fisher_jax.information.expectations import Enumeration, Expectation, MonteCarlo, Quadrature, QuasiMonteCarlo
from fisher_jax.information.record import Information
from fisher_jax.information.regularity import Regularity
from fisher_jax.information.sampled import Sampled, by_draws
from fisher_jax.models.dataset import check_given
from fisher_jax.models.model import Model, as_model, check_start, flatten_parameters
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.programs import jit_with_model
from fisher_jax.numerics.array_namespace import on_host


class InformationWarning(UserWarning):
    """A Fisher information was asked for where the model is not regular, or the expectation was not taken well.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp, warnings
    >>> some = fj.Enumeration(jnp.array([0.0, 1.0]))  # of the values 0, 1, 2, …
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     _ = fj.fisher_information(fj.families.poisson, {"rate": 4.0}, some)
    >>> caught[0].category.__name__
    'InformationWarning'
    """


@entry_point
def fisher_information(model: Any, params: PyTree, expectation: Any = None, *, given: PyTree = None) -> Information:
    """Fisher information I(θ) = E_θ[s sᵀ] = −E_θ[H], expected under the model, per observation.

    Parameters
    ----------
    model : Model or callable
        A model; a bare log-density will do for `Quadrature` and `Enumeration`.
    params : pytree
        The parameters θ.
    expectation : MonteCarlo, QuasiMonteCarlo, Quadrature, Enumeration or None
        How the expectation is taken. `None` is the closed form: the model's own `information`, or Jᵀ I_η J of a `linked`
        model whose family has one.
    given : pytree, optional
        Covariates with a leading axis of length n; the result is the average over their rows. Each row gets the
        expectation's number of draws, and draws of its own.

    Returns
    -------
    Information
        With the route named, errors where it is sampled, and in `regularity` what the zero means of the score and of
        s sᵀ + H looked like. Leaves that the model holds `fixed` are left out; other constraints play no part. For a
        `dependent` model: per term of a series, so that the sampler's length counts.

    Raises
    ------
    ValueError
        If there is no route: the message says what to supply.

    Warns
    -----
    InformationWarning
        If the draws or nodes contradict the model's regularity: the two definitions differ then, or there is no finite
        information. The matrix by ``"bartlett"`` is then E[s sᵀ] with its own error, which is the information at a kink too,
        and NaN in the rows and columns of parameters without an information: where the mean score is not zero, because the
        support depends on the parameter, or the score has no variance. Under a transformation look at `regularity`.

    Notes
    -----
    Works under `jax.jit`, and `jax.vmap` over parameters. Memory is that of a chunk, whatever the number of draws and rows.
    `jax.grad` is that of closed forms, linked models and exact expectations. Draws are held fixed under it, so that it is not
    the derivative of a sampled expectation, and by ``"bartlett"`` it may be NaN.

    References
    ----------
    Lehmann, E. L. and Casella, G. (1998), Theory of Point Estimation, 2nd ed., eq. (2.5.9) and lemma 2.5.3. The control
    variates are Bartlett's identities, Bartlett, M. S. (1953), Biometrika 40, 12-19.

    Examples
    --------
    >>> import fisher_jax as fj, jax
    >>> params = {"df": 4.0, "loc": 0.0, "scale": 2.0}
    >>> exact = fj.fisher_information(fj.families.student_t, params)
    >>> exact.route
    'expected: closed form'
    >>> sampled = fj.fisher_information(fj.families.student_t, params, fj.MonteCarlo(jax.random.key(0), 1000))
    >>> sampled.route
    'expected: Monte Carlo, −H with the Bartlett identities as control variates'
    >>> print(abs(sampled.matrix - exact.matrix).max() < 1e-4)
    True
    """
    model, layout, values, given = at_door(model, params, given)
    if expectation is None:
        _check_closed_form(model)
        matrix = _closed_form(model, layout, values, given)
        return Information(matrix, layout.names, f"expected: {_closed_form_route(model)}")
    return taken(model, layout.natural(), layout.names, values, expectation, given)


def at_door(model: Any, params: PyTree, given: PyTree) -> tuple[Model, Layout, Values, PyTree]:
    """Check a user's arguments, where there are no data."""
    model = as_model(model)
    check_pytrees(given=given)
    layout, values = flatten_parameters(model, params)
    if layout.num_free == 0:
        raise ValueError("every parameter is fixed, so that there is nothing to be informed of.")
    check_start(layout, values)
    return model, layout, values, check_given(model, given)


def taken(
    model: Model,
    layout: Layout,
    names: tuple[str, ...],
    values: Values,
    expectation: Any,
    given: PyTree,
    *,
    warns: bool = True,
) -> Information:
    """The information about u in `layout`, whose entries have these names, by an expectation; warns of what it met."""
    check_expectation(expectation)
    found = by_expectation(model, layout, values, expectation, given)
    per_row = expectation.num_samples if isinstance(expectation, MonteCarlo | QuasiMonteCarlo) else 0
    number = per_row * num_rows(model, given)
    result = Information(
        found.matrix, names, route_of(expectation, found.regularity), found.errors, number, found.regularity
    )
    if warns:
        _warn(result)
    return result


def check_expectation(expectation: Any, hint: str = "") -> None:
    """Refuse what is no way to take an expectation."""
    if not isinstance(expectation, Expectation):
        raise TypeError(
            f"expectation must be MonteCarlo, QuasiMonteCarlo, Quadrature or Enumeration, "
            f"got {type(expectation).__name__}.{hint}"
        )


def by_expectation(model: Model, layout: Layout, values: Values, expectation: Any, given: PyTree) -> Sampled:
    """Compiled once for each model, set of shapes and kind of expectation."""
    if isinstance(expectation, Quadrature):
        return _by_quadrature(model, layout, values, expectation, given)
    if isinstance(expectation, Enumeration):
        return _by_enumeration(model, layout, values, expectation, given)
    by = _by_few_draws if are_few(model, layout, expectation, given) else _by_draws
    return by(model, layout, values, expectation, given)


_by_quadrature = jit_with_model(by_nodes, static_argnums=(0, 1, 3))
_by_enumeration = jit_with_model(by_nodes, static_argnums=(0, 1))
_by_few_draws = jit_with_model(by_draws, static_argnums=(0, 1), level=0)
_by_draws = jit_with_model(by_draws, static_argnums=(0, 1), level=1)


@functools.partial(jit_with_model, static_argnums=(0, 1))
def _closed_form(model: Model, layout: Layout, values: Values, given: PyTree) -> Float[Array, "q q"]:
    return total_expected(model, layout, values, given, 1.0, None) / num_rows(model, given)


def _check_closed_form(model: Model) -> None:
    if not has_closed_form(model):
        raise ValueError(
            "no route to the expectation: the model has no information in closed form. Give an expectation: "
            "MonteCarlo(key, num_samples) if the model has a sampler, Quadrature(lower, upper) for a continuous scalar y, "
            "Enumeration(values) for a discrete one; or Model(…, information=function of params); or a linked model. "
            "observed_information and empirical_fisher need data instead."
        )


def _closed_form_route(model: Model) -> str:
    return "closed form" if model.information is not None else "closed form of the family, Jᵀ I_η J"


_AVERAGED = {
    "bartlett": "−H with the Bartlett identities as control variates",
    "outer": "mean of s sᵀ",
    "hessian": "mean of −H",
}
_FALLEN_BACK = ", since the Bartlett identities fail"


def route_of(expectation: Any, regularity: Regularity) -> str:
    """The route in words: the one that was taken, or under a transformation both that may have been."""
    if isinstance(expectation, Enumeration | Quadrature):
        return f"expected: s sᵀ by {describe(expectation)}"
    by = f"expected: {describe(expectation)}, "
    if expectation.estimator != "bartlett":
        return by + _AVERAGED[expectation.estimator]
    controlled, instead = _AVERAGED["bartlett"], _AVERAGED[expectation.fallback or "outer"]
    if isinstance(regularity.score_z, jax.core.Tracer) or jnp.ndim(regularity.score_z) != 1:
        return f"{by}{controlled}, or {instead} where those fail"
    return by + (controlled if on_host(regularity).zero_means else f"{instead}{_FALLEN_BACK}")


def describe(expectation: Any) -> str:
    """How the expectation was taken, in words."""
    if isinstance(expectation, Enumeration):
        return f"enumeration of {jax.tree.leaves(expectation.values)[0].shape[0]} values"
    if isinstance(expectation, Quadrature):
        return f"quadrature of order {expectation.order}"
    return "Monte Carlo" if isinstance(expectation, MonteCarlo) else "quasi-Monte Carlo"


def _warn(result: Information) -> None:
    """Say on the host what speaks against a result."""
    regularity = result.regularity
    if regularity is None or isinstance(regularity.score_z, jax.core.Tracer) or jnp.ndim(regularity.score_z) != 1:
        return
    if found := result.diagnosis():
        message = f"not to be relied on: {found}."
        if np.any(on_host(regularity).missing & np.isnan(np.asarray(result.matrix))):
            message += ' Entries without an information are NaN; estimator="outer" or "hessian", or fallback=, gives an average.'
        elif _FALLEN_BACK in result.route:
            message += f" The result is another average of the same draws, with its own error: {result.route}."
        warn(message, InformationWarning)
