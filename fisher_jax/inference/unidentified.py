"""Parameters without information under a null hypothesis, such as the position of a signal whose strength is zero.

The scores of the larger model are evaluated at the parameters of the null. Where those of a parameter all vanish, or where
scores become linearly dependent that are not so at the estimate, the information is singular under the null, and the
likelihood-ratio statistic is neither chi-squared nor a mixture of chi-squareds.

References
----------
Davies, R. B. (1977), Biometrika 64, 247-254; (1987), Biometrika 74, 33-43.
"""

import itertools
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from fisher_jax.fitting.map_fits import with_data
from fisher_jax.fitting.passes import passes_of
from fisher_jax.fitting.result import Fit
from fisher_jax.inference.hypothesis import Hypothesis
from fisher_jax.inference.identifiability import decompose
from fisher_jax.models.constraints import Interval
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.likelihood import likelihood, outer_product_at, terms_at
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Values

VANISHED = (
    0.75  # power of ε, of a sum of squared scores divided by that at the estimate: a restriction may hold to √ε only
)
LOADS = 0.05  # a direction without information names the parameters whose entries are above this
SAME = 1e-8  # relative difference of log-likelihoods up to which two points are of the same density


def values_under(full: Fit, hypothesis: Hypothesis, null: Fit | None) -> Values:
    """The larger model's leaves under hypothesised values: these, and the estimates of its restricted fit."""
    batch = np.shape(full.status_code)
    result = []
    for i, (leaf, value) in enumerate(zip(full.layout.leaves, full.values, strict=True)):
        restricted = hypothesis.entries_of(i)
        flat = np.array(value).reshape((*batch, leaf.size))
        estimated = None if null is None else null.params["estimated"][i]
        if estimated is not None:
            others = [k for k in range(leaf.size) if k not in restricted]
            flat[..., others] = np.asarray(estimated).reshape((*batch, len(others)))
        for k, x in restricted.items():
            flat[..., k] = x
        result.append(flat.reshape(np.shape(value)))
    return result


def values_of_null(full: Fit, null: Fit) -> Values | None:
    """The larger model's parameters at which it is the null; None where they cannot be found.

    Those that the null model does not have are tried at the ends of their ranges: the strength of a signal at zero, for
    instance, whatever the signal's other parameters. Such a point is the null if it has the null's log-likelihood.
    """
    of_null = {leaf.name: value for leaf, value in zip(null.layout.leaves, null.values, strict=True)}
    values = [
        of_null[leaf.name] if leaf.name in of_null and np.shape(of_null[leaf.name]) == np.shape(value) else value
        for leaf, value in zip(full.layout.leaves, full.values, strict=True)
    ]
    absent = [i for i, leaf in enumerate(full.layout.leaves) if leaf.name not in of_null]
    if not absent:
        return values
    if full.origin is None:
        return None
    for i, end in itertools.product(absent, ("low", "high")):
        constraint = full.layout.leaves[i].constraint
        edge = getattr(constraint, end) if isinstance(constraint, Interval) else np.inf
        if np.isfinite(edge):
            trial = [np.full_like(value, edge) if k == i else value for k, value in enumerate(values)]
            log_likelihood = _log_likelihood_at(replace(full, values=trial))
            if np.allclose(log_likelihood, null.log_likelihood, rtol=SAME, atol=0.0):
                return trial
    return None


def find_unidentified(full: Fit, values: Values) -> tuple[Bool[np.ndarray, "*b"], str]:
    """Whether some parameters have no information at these values though they have at the estimate, of a fit or of each of many.

    Also a predicate of which "the data" is the subject, with the names of the parameters. One observation, as of crossed effects,
    does not show it: its score vanishes at a maximum.
    """
    if np.all(np.asarray(full.num_observations) <= 1):
        return np.zeros(np.shape(full.status_code), bool), ""
    natural = full.layout.natural()
    theta, at_null = (np.asarray(natural.join(each), float) for each in (full.values, values))
    # Entries at an end of their range are left out: the null fixes them there, whatever their scores.
    inside = ~np.any(at_null[..., :, None] == full.layout.edges(), axis=-1)
    # They are moved inside by a few roundings, since derivatives need not be finite at the end.
    eps, away = np.finfo(full.layout.dtype).eps, theta - at_null
    least = np.maximum(eps**2 * np.abs(away), 2 * eps * np.abs(at_null))
    moved = np.where(inside, at_null, at_null + np.sign(away) * least).astype(full.layout.dtype)
    moved_values = natural.constrained_values(moved, full.values)
    (_, squares), (_, squares_null) = (_at(fit) for fit in (full, replace(full, values=moved_values)))
    before, after = (np.diagonal(np.asarray(each), axis1=-2, axis2=-1) for each in (squares, squares_null))
    tiny = eps**VANISHED
    # Also relative to the parameters' sizes, or a scale that is far larger under the null would seem to have vanished.
    sizes = np.maximum(theta**2, at_null**2)
    vanished = inside & (before > 0) & (after <= tiny * before) & (after * sizes <= tiny * before * theta**2)

    # Of the others, the directions along which scores become dependent; none if they are so at the estimate already.
    rest = inside & ~vanished
    both, unit = rest[..., :, None] & rest[..., None, :], np.eye(rest.shape[-1])
    dependent_before, dependent = (
        decompose(np.where(both & np.isfinite(each), each, unit), full.layout.dtype) for each in (squares, squares_null)
    )
    appeared = dependent.singular & ~np.any(dependent_before.singular, axis=-1, keepdims=True)
    mixed = np.any(appeared[..., :, None] & (np.abs(dependent.directions) > LOADS), axis=-2)
    named = np.asarray(np.atleast_2d(vanished if np.any(vanished) else mixed).any(axis=0))
    names = ", ".join(name for name, is_named in zip(full.names, named, strict=True) if is_named)
    affected = np.asarray(np.any(vanished | mixed, axis=-1))
    return affected, f"have no information about {names}" if np.any(vanished) else f"do not identify {names} separately"


def _log_likelihood_at(fit: Fit) -> Any:
    """Without scores: those of crossed effects take a hundred times as long to compile."""
    return with_data(fit, _log_likelihood_at_values) if passes_of(fit) is None else _at(fit)[0]


def _log_likelihood_at_values(fit: Fit, model: Model, dataset: Dataset) -> Array:
    layout = fit.layout.natural()
    return jnp.sum(terms_at(likelihood(model, layout, fit.values, dataset), layout.join(fit.values)))


def _at(fit: Fit) -> tuple[Any, Any]:
    """`_at_values`, wherever the data are."""
    passes = passes_of(fit)
    if passes is None:
        return with_data(fit, _at_values)
    layout = fit.layout.natural()
    (at,) = passes.evaluate(layout, fit.values, [layout.join(fit.values)], "empirical")
    return at.value, at.information


def _at_values(fit: Fit, model: Model, dataset: Dataset) -> tuple[Array, Array]:
    """The log-likelihood and Σ w s sᵀ with respect to θ, at the values of a fit."""
    layout = fit.layout.natural()
    target = likelihood(model, layout, fit.values, dataset)
    theta = layout.join(fit.values)
    return jnp.sum(terms_at(target, theta)), outer_product_at(target, theta)[1]
