"""What theory promises of an estimate from the model alone: its information, the bound, and whether there is one."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fisher_jax.information import Covariance, Information, fisher_information
from fisher_jax.information.bound import closed_form_in_free
from fisher_jax.information.closed_form import has_closed_form
from fisher_jax.information.draws import num_rows
from fisher_jax.information.expectations import MonteCarlo
from fisher_jax.information.expected import expected_information
from fisher_jax.models.parameters import Layout
from fisher_jax.numerics import linalg
from fisher_jax.numerics.array_namespace import on_host
from fisher_jax.simulation.bias import Expansion, expanded
from fisher_jax.simulation.experiment import Experiment

_MANY = 20  # parameters from which on the control variates of "bartlett" need too many draws
_LEAST = 4000  # draws in all, whatever the number of rows
_SERIES = 2_000_000  # terms of all series drawn


@dataclass(frozen=True)
class Promise:
    """What theory promises at an experiment's parameters.

    Attributes
    ----------
    information : Information
        Per observation; about the free coordinates where constraints tie entries together. NaN where there is none.
    bound : Covariance
        (q, q), for one observation: the covariance of √n(θ̂ − θ) that theory promises. NaN where there is none.
    expansion : Expansion
        The first-order bias, and what the draws behind it tell of the model's regularity.
    notes : tuple of str
        What speaks against any of it, in words.
    """

    information: Information
    bound: Covariance
    expansion: Expansion
    notes: tuple[str, ...]

    @property
    def has_bound(self) -> bool:
        """Whether there is an information, and it can be inverted."""
        return bool(np.all(np.isfinite(np.asarray(self.bound.matrix))))


def promise_of(experiment: Experiment, expectation: Any, key: Any) -> Promise:
    """The information by closed form, by the expectation given, or by draws; tested for regularity by draws in any case."""
    layout = coordinates(experiment.layout)
    found, notes = information_of(experiment, layout, expectation, jax.random.fold_in(key, 0))
    expansion = expanded(experiment, layout, found.matrix, _draws(experiment, jax.random.fold_in(key, 1), 2))
    notes = expansion.notes(found.names) or notes
    if not expansion.score_is_centred or _of_no_mean(found):
        nothing = jnp.full_like(found.matrix, jnp.nan)
        found = replace(found, matrix=nothing, errors=None, route="none")
        notes = (NO_BOUND,)
    elif note := not_invertible(found):
        notes = (note, *notes)
    # In numpy, so that nothing is compiled. The derivative of an inverse A⁻¹ along dA is −A⁻¹ dA A⁻¹.
    inverse = linalg.inverse(np.asarray(found.matrix))
    tangent = np.asarray(layout.jacobian(layout.unconstrain([np.asarray(value) for value in experiment.values])))
    matrix, errors = jnp.asarray(tangent @ inverse @ tangent.T), None
    if found.errors is not None:
        errors = jnp.asarray(-tangent @ inverse @ np.asarray(found.errors) @ inverse @ tangent.T)
    bound = Covariance(matrix, experiment.layout.names, f"inverse of: {found.route}", errors, found.num_samples)
    return Promise(found, bound, expansion, notes)


NO_BOUND = (
    "there is no Cramér-Rao bound: the mean of the score is not zero, so that the support depends on a parameter, or the "
    "sampler is not the density's."
)


def coordinates(layout: Layout) -> Layout:
    """θ itself, or the free coordinates where constraints tie its entries together."""
    return layout.natural() if len(layout.names) == layout.num_free else layout


def information_of(
    experiment: Experiment, layout: Layout, expectation: Any, key: Any
) -> tuple[Information, tuple[str, ...]]:
    tied = len(experiment.layout.names) != experiment.layout.num_free
    names = experiment.layout.free_names if tied else experiment.layout.names
    if expectation is None and has_closed_form(experiment.model):
        if tied:
            return closed_form_in_free(
                experiment.model, experiment.params, experiment.layout, experiment.values, experiment.covariates
            ), ()
        return fisher_information(experiment.model, experiment.params, given=experiment.covariates), ()
    if expectation is None:
        expectation = _draws(experiment, key, layout.num_free)
    model, values, covariates = experiment.model, experiment.values, experiment.covariates
    found = expected_information(model, layout, names, values, expectation, covariates, warns=False)
    said = found.diagnosis()  # goes into the notes
    return found, (f"of the information: {said.rstrip('.?')}.",) if said else ()


def _draws(experiment: Experiment, key: Any, num_parameters: int) -> MonteCarlo:
    """So many draws as give the third digit, over all rows of `given`, or fewer of long series."""
    rows = num_rows(experiment.model, experiment.covariates)
    wanted = 20_000 if not experiment.model.is_dependent else _SERIES // experiment.num_observations
    least = max(_LEAST, 12 * (1 + num_parameters + num_parameters * (num_parameters + 1) // 2))
    each = -(-min(max(wanted, least), 20_000) // rows)
    if num_parameters > _MANY:
        return MonteCarlo(key, each + each % 2, "outer")
    return MonteCarlo(key, each + each % 2, fallback="outer")


def _of_no_mean(found: Information) -> bool:
    """Whether the draws behind it contradict E[s] = 0."""
    return found.regularity is not None and bool(np.any(on_host(found.regularity).off_center))


def not_invertible(found: Information) -> str:
    """Why there is no inverse, in words; empty where there is one."""
    matrix = np.asarray(found.matrix)
    if not np.all(np.isfinite(matrix)):
        return "the information is not finite, so that there is no Cramér-Rao bound of the usual kind."
    if np.all(np.isfinite(linalg.inverse(matrix))):
        return ""
    _, direction = linalg.weak_directions(matrix, found.names)[0]
    return (
        f"the information is singular along {direction}: no estimate of it has the usual rate, and there is no bound."
    )
