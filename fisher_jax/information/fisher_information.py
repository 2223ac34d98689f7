"""The Fisher information of a model, by a closed form, draws, scrambled points, quadrature or enumeration."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.errors import check_pytrees, entry_point, warn
from fisher_jax.information.closed_form import has_closed_form, total_expected
from fisher_jax.information.draw_pairs import are_few, num_rows
from fisher_jax.information.expectations import Enumeration, Expectation, MonteCarlo, Quadrature
from fisher_jax.information.matrix import Information
from fisher_jax.information.monte_carlo import by_draws
from fisher_jax.information.quadrature import by_nodes
from fisher_jax.information.regularity import Regularity
from fisher_jax.models.auxiliary import check_without_auxiliary
from fisher_jax.models.dataset import check_given
from fisher_jax.models.model import Model, as_model, check_start, flatten_parameters
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.programs import jit_with_model
from fisher_jax.numerics.array_namespace import is_traced, on_host

FALLEN_BACK = ", since the Bartlett identities fail"
_AVERAGES = {
    "bartlett": "−H with the Bartlett identities as control variates",
    "outer": "mean of s sᵀ",
    "hessian": "mean of −H",
}


class InformationWarning(UserWarning):
    """The model is not regular where its Fisher information was computed, or the expectation is inaccurate.

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
def fisher_information(
    model: Model | Callable[..., Any], params: PyTree, expectation: Expectation | None = None, *, given: PyTree = None
) -> Information:
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
        If there is no method to compute the expectation: the message names what to supply.

    Warns
    -----
    InformationWarning
        If the draws or nodes contradict the model's regularity: the two definitions differ then, or there is no finite
        information. The matrix by ``"bartlett"`` is then E[s sᵀ] with its own error, which is the information at a kink too,
        and NaN in the rows and columns of parameters whose information does not exist: where the mean score is not zero, because
        the support depends on the parameter, or the score has no variance. Under a transformation look at `regularity`.

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
    >>> exact = fj.fisher_information(fj.families.exponential, {"rate": 2.0})
    >>> exact.route
    'expected: closed form'
    >>> draws = fj.MonteCarlo(jax.random.key(0), 1000)
    >>> sampled = fj.fisher_information(fj.families.exponential, {"rate": 2.0}, draws)
    >>> sampled.route
    'expected: Monte Carlo, −H with the Bartlett identities as control variates'
    >>> print(abs(sampled.matrix - exact.matrix).max() < 1e-4)
    True
    """
    model, layout, values, given = check_point(model, params, given)
    if expectation is not None:
        return expected_information(model, layout.natural(), layout.names, values, expectation, given)
    if not has_closed_form(model):
        raise ValueError(
            "no method to compute the expectation: the model has no information in closed form. Give an expectation: "
            "MonteCarlo(key, num_samples) if the model has a sampler, Quadrature(lower, upper) for a continuous scalar y, "
            "Enumeration(values) for a discrete one; or Model(…, information=function of params); or a linked model. "
            "observed_information and empirical_fisher need data instead."
        )
    route = "closed form" if model.information is not None else "closed form of the family, Jᵀ I_η J"
    return Information(_closed_form(model, layout, values, given), layout.names, f"expected: {route}")


def check_point(model: Any, params: PyTree, given: PyTree) -> tuple[Model, Layout, Values, PyTree]:
    """Check the model, parameters and covariates of a function that takes no data."""
    model = as_model(model)
    check_without_auxiliary(model, "an expectation")
    check_pytrees(given=given)
    layout, values = flatten_parameters(model, params)
    if layout.num_free == 0:
        raise ValueError("every parameter is fixed, so that there is no parameter to have information about.")
    check_start(layout, values)
    return model, layout, values, check_given(model, given)


def check_expectation(expectation: Any, hint: str = "") -> None:
    """Raise unless it is one of the four expectations."""
    if not isinstance(expectation, Expectation):
        raise TypeError(
            f"expectation must be MonteCarlo, QuasiMonteCarlo, Quadrature or Enumeration, "
            f"got {type(expectation).__name__}.{hint}"
        )


def expected_information(
    model: Model,
    layout: Layout,
    names: tuple[str, ...],
    values: Values,
    expectation: Any,
    given: PyTree,
    *,
    warns: bool = True,
) -> Information:
    """The information about u in `layout`, whose entries have these names; warns of what its tests of regularity find."""
    check_expectation(expectation)
    num_samples = 0
    if isinstance(expectation, Quadrature | Enumeration):
        compute = _by_quadrature if isinstance(expectation, Quadrature) else _by_enumeration
    else:
        model.check_draws(given)
        # Few draws take less time than XLA's full optimisation of the program.
        compute = _by_few_draws if are_few(model, layout, expectation, given) else _by_draws
        num_samples = expectation.num_samples * num_rows(model, given)
    matrix, errors, regularity = compute(model, layout, values, expectation, given)
    result = Information(matrix, names, _route(expectation, regularity), errors, num_samples, regularity)
    if warns and _was_tested(regularity) and (problems := result.diagnosis()):
        text = f"not to be relied on: {problems}."
        if np.any(on_host(regularity).missing & np.isnan(np.asarray(matrix))):
            text += (
                ' Entries that do not exist are NaN; estimator="outer" or "hessian", or fallback=, gives an average.'
            )
        elif FALLEN_BACK in result.route:
            text += f" The result is another average of the same draws, with its own error: {result.route}."
        warn(text, InformationWarning)
    return result


_by_quadrature = jit_with_model(by_nodes, static_argnums=(0, 1, 3))
_by_enumeration = jit_with_model(by_nodes, static_argnums=(0, 1))
_by_few_draws = jit_with_model(by_draws, static_argnums=(0, 1), level=0)
_by_draws = jit_with_model(by_draws, static_argnums=(0, 1), level=1)


@functools.partial(jit_with_model, static_argnums=(0, 1))
def _closed_form(model: Model, layout: Layout, values: Values, given: PyTree) -> Float[Array, "q q"]:
    return total_expected(model, layout, values, given, 1.0, None) / num_rows(model, given)


def _was_tested(regularity: Regularity) -> bool:
    """Whether the tests of one matrix have been run: neither traced nor a batch."""
    return not is_traced(regularity.score_z) and jnp.ndim(regularity.score_z) == 1


def _route(expectation: Any, regularity: Regularity) -> str:
    """How the information was computed; under a transformation both averages that it may be."""
    if isinstance(expectation, Enumeration | Quadrature):
        return f"expected: s sᵀ by {describe(expectation)}"
    by = f"expected: {describe(expectation)}, "
    average = _AVERAGES[expectation.estimator]
    if expectation.estimator != "bartlett":
        return by + average
    fallback = _AVERAGES[expectation.fallback or "outer"]
    if not _was_tested(regularity):
        return f"{by}{average}, or {fallback} where those fail"
    return by + (average if on_host(regularity).zero_means else f"{fallback}{FALLEN_BACK}")


def describe(expectation: Any) -> str:
    """How an expectation is taken, in words."""
    if isinstance(expectation, Enumeration):
        return f"enumeration of {jax.tree.leaves(expectation.values)[0].shape[0]} values"
    if isinstance(expectation, Quadrature):
        return f"quadrature of order {expectation.order}"
    return "Monte Carlo" if isinstance(expectation, MonteCarlo) else "quasi-Monte Carlo"
