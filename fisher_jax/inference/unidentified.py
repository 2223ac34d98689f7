"""Parameters about which the data say nothing once a null hypothesis holds: the position of a signal without strength.

The scores of the larger model are looked at with the parameters of the null. Where those of a parameter all vanish, or where
scores become linearly dependent that are not so at the estimate, the information is singular under the null, and twice the
log-likelihood that the restriction costs is neither chi-squared nor a mixture of chi-squareds.

References
----------
Davies, R. B. (1977), Biometrika 64, 247-254; (1987), Biometrika 74, 33-43.
"""

import itertools
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from fisher_jax.fitting.each import with_data
from fisher_jax.fitting.result import Fit
from fisher_jax.inference.hypothesis import Hypothesis
from fisher_jax.models.constraints import Interval
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.likelihood import likelihood, outer_product_at, terms_at
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Values
from fisher_jax.numerics.linalg import to_unit_diagonal

VANISHED = 0.75  # power of ε, of a sum of squared scores beside that at the estimate: a restriction may hold to √ε only
DEPENDENT = 0.5  # power of ε under which an eigenvalue at unit diagonal is none
LOADS = 0.05  # part of a direction without information that names a parameter
SAME = 1e-8  # relative difference of log-likelihoods up to which two points are of the same density


def values_under(full: Fit, hypothesis: Hypothesis, null: Fit | None) -> Values:
    """The parameters under hypothesised values, as leaves of the larger model's: those of its restricted fit, and these."""
    batch = np.shape(full.status_code)
    result = []
    for i, (leaf, value) in enumerate(zip(full.layout.leaves, full.values, strict=True)):
        held = hypothesis.entries_of(i)
        flat = np.array(value).reshape((*batch, leaf.size))
        estimated = None if null is None else null.params["estimated"][i]
        if estimated is not None:
            others = [k for k in range(leaf.size) if k not in held]
            flat[..., others] = np.asarray(estimated).reshape((*batch, len(others)))
        for k, number in held.items():
            flat[..., k] = number
        result.append(flat.reshape(np.shape(value)))
    return result


def values_of_null(full: Fit, null: Fit) -> Values | None:
    """The larger model's parameters at which it is the null; None where that cannot be told.

    What the null model does not have is sought at an end of its range: the strength of a signal at zero, say, whatever else
    the signal has. The log-likelihood tells whether that is the null.
    """
    known = {leaf.name: value for leaf, value in zip(null.layout.leaves, null.values, strict=True)}
    values = [
        known[leaf.name] if leaf.name in known and np.shape(known[leaf.name]) == np.shape(value) else value
        for leaf, value in zip(full.layout.leaves, full.values, strict=True)
    ]
    absent = [i for i, leaf in enumerate(full.layout.leaves) if leaf.name not in known]
    if not absent:
        return values
    if full.origin is None:
        return None
    for i, end in itertools.product(absent, (0, 1)):
        constraint = full.layout.leaves[i].constraint
        edge = (constraint.low, constraint.high)[end] if isinstance(constraint, Interval) else np.inf
        if np.isfinite(edge):
            tried = [np.full_like(value, edge) if k == i else value for k, value in enumerate(values)]
            reached, _ = with_data(replace(full, values=tried), _at_values)
            if np.allclose(reached, null.log_likelihood, rtol=SAME, atol=0.0):
                return tried
    return None


def unidentified(full: Fit, values: Values) -> tuple[Bool[np.ndarray, "*b"], str]:
    """Of a fit or of each of many, whether some parameters have no information at these values though they have at the
    estimate; and what the data do not do then, in words that name them.

    Entries at an end of their range are left out, since their own scores decide nothing there; they are moved inside by
    next to nothing, for at the very end derivatives need not be finite.
    """
    natural = full.layout.natural()
    theta, there = (np.asarray(natural.join(each), float) for each in (full.values, values))
    _, at_estimate = map(np.asarray, with_data(full, _at_values))
    inside = ~np.any(there[..., :, None] == full.layout.edges(), axis=-1)
    eps, away = np.finfo(full.layout.dtype).eps, theta - there
    least = np.maximum(eps**2 * np.abs(away), 2 * eps * np.abs(there))
    within = np.where(inside, there, there + np.sign(away) * least)
    moved = natural.constrained_values(within.astype(full.layout.dtype), full.values)
    _, at_null = map(np.asarray, with_data(replace(full, values=moved), _at_values))
    before, after = (np.diagonal(each, axis1=-2, axis2=-1) for each in (at_estimate, at_null))
    tiny = eps**VANISHED
    # Also relative to the parameters' sizes, or a scale that is far larger under the null would seem to have vanished.
    sizes = np.maximum(theta**2, there**2)
    gone = inside & (before > 0) & (after <= tiny * before) & (after * sizes <= tiny * before * theta**2)
    counted = inside & ~gone
    apart, directions = _dependent(at_null, counted, full.layout.dtype)
    dependent_before, _ = _dependent(at_estimate, counted, full.layout.dtype)
    apart &= ~np.any(dependent_before, axis=-1, keepdims=True)
    mixed = np.any(apart[..., :, None] & (np.abs(directions) > LOADS), axis=-2)
    lost = np.asarray(np.any(gone | mixed, axis=-1))
    columns = np.asarray(np.atleast_2d(gone if np.any(gone) else mixed).any(axis=0))
    names = ", ".join(name for name, found in zip(full.names, columns, strict=True) if found)
    return lost, f"say nothing of {names}" if np.any(gone) else f"do not tell apart {names}"


def _dependent(
    squares: Float[np.ndarray, "*b q q"], counted: Bool[np.ndarray, "*b q"], dtype: np.dtype
) -> tuple[Bool[np.ndarray, "*b q"], Float[np.ndarray, "*b q q"]]:
    """Which eigenvalues of the sums of squared scores are none, and the eigenvectors in rows; of the entries that count."""
    both = counted[..., :, None] & counted[..., None, :]
    scaled, _ = to_unit_diagonal(np.where(both & np.isfinite(squares), squares, np.eye(squares.shape[-1])))
    eigenvalues, vectors = np.linalg.eigh(scaled)
    return eigenvalues < np.finfo(dtype).eps ** DEPENDENT, np.swapaxes(vectors, -1, -2)


def _at_values(fit: Fit, model: Model, dataset: Dataset) -> tuple[Array, Array]:
    """The log-likelihood and Σ w s sᵀ with respect to θ, at the values of a fit."""
    layout = fit.layout.natural()
    target = likelihood(model, layout, fit.values, dataset)
    theta = layout.join(fit.values)
    return jnp.sum(terms_at(target, theta)), outer_product_at(target, theta)[1]
