"""The first-order bias of maximum likelihood, by draws, and what these tell of the model's regularity on the way."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fisher_jax.information.draws import are_few, drawing, num_pairs, unit_terms
from fisher_jax.information.expectations import MonteCarlo
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.programs import jit_with_model
from fisher_jax.numerics import linalg
from fisher_jax.simulation.experiment import Experiment

_LEVEL = 1e-7  # at which a zero mean is given up, over all of those tested; kinks are at z of the order of √draws
_CHUNK = 2**13  # draws times p that are worked on at once


@dataclass(frozen=True)
class Expansion:
    """The bias E[θ̂] − θ to order 1/n, (q,) with its Monte Carlo error, and z-values of E[s] = 0 and E[s sᵀ + H] = 0.

    `reason` says why the bias is NaN, where it is.
    """

    bias: Float[np.ndarray, " q"]
    bias_error: Float[np.ndarray, " q"]
    score_z: Float[np.ndarray, " p"]
    equality_z: Float[np.ndarray, " m"]
    limit: float
    reason: str

    @property
    def score_is_centred(self) -> bool:
        """Whether nothing speaks against E[s] = 0."""
        return not np.any(np.abs(self.score_z) > self.limit)

    @property
    def curvature_is_spread(self) -> bool:
        """Whether nothing speaks against E[s sᵀ + H] = 0."""
        return not np.any(np.abs(self.equality_z) > self.limit)

    def notes(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """What was found, in words."""
        pairs = list(zip(*np.triu_indices(len(names)), strict=True))
        worst = [pairs[k] for k in np.argsort(-np.abs(self.equality_z)) if abs(self.equality_z[k]) > self.limit]
        if not worst or not self.score_is_centred:
            return ()
        said = ", ".join(names[i] if i == j else f"{names[i]} with {names[j]}" for i, j in worst[:4])
        return (
            f"the mean of s sᵀ + H is not zero for {said}: the density has a kink, or scores with very heavy tails. The "
            "bound is that of the scores' outer product s sᵀ; the curvature −H would give another, wrong one.",
        )


def expanded(experiment: Experiment, layout: Layout, information: Array, draws: MonteCarlo) -> Expansion:
    """By draws at the experiment's parameters, in the coordinates of `layout`, to which the information belongs."""
    series = experiment.num_observations if experiment.model.is_dependent else 1
    units = experiment.num_observations // series
    inverse = np.asarray(linalg.inverse(np.asarray(information)), float) / series
    definite = np.all(np.isfinite(inverse))
    root = np.linalg.cholesky(inverse) if definite else np.eye(len(inverse))
    moments = _moments_of_few if are_few(experiment.model, layout, draws, experiment.covariates) else _moments
    found = moments(
        experiment.model,
        layout,
        experiment.values,
        experiment.covariates,
        jnp.asarray(root, layout.dtype),
        draws,
    )
    total, squares, pairs = (np.asarray(part, float) for part in found[:3])
    count = 2 * num_pairs(experiment.model, draws, experiment.covariates)
    p = layout.num_free
    mean = total / count
    spread = np.sqrt(np.maximum(squares / count - mean**2, 0.0) / count)
    size = np.sqrt(squares[:p] / count)
    floor = 100 * np.finfo(layout.dtype).eps * np.concatenate([size, np.outer(size, size)[np.triu_indices(p)]])
    z = mean[:-p] / np.hypot(spread[:-p], np.maximum(floor, np.finfo(float).tiny))
    limit = _limit(len(z))
    shift = mean[-p:]
    tangent, bend = (np.asarray(part, float) for part in found[3:])
    bias = (tangent @ inverse @ shift + 0.5 * np.einsum("qij,ij->q", bend, inverse)) / units
    slope = tangent @ inverse / units
    error = np.sqrt(np.maximum(np.einsum("qi,ij,qj->q", slope, _covariance(pairs, shift, count), slope), 0.0))
    regular = not np.any(np.abs(z) > limit)
    reason = "" if definite and regular else _reason(definite)
    nothing = np.full_like(bias, np.nan)
    bias, error = (bias, error) if not reason else (nothing, nothing)
    return Expansion(bias, error, z[:p], z[p:], limit, reason)


def _covariance(products: np.ndarray, mean: np.ndarray, count: int) -> np.ndarray:
    """Of a mean over so many draws, from the sum of their products."""
    return (products / count - np.outer(mean, mean)) / count


def _reason(definite: Any) -> str:
    if not definite:
        return "there is no information that could be inverted"
    return "the model is not regular here, and the expansion does not hold"


def _limit(count: int) -> float:
    from scipy.special import ndtri

    return float(-ndtri(_LEVEL / (2 * max(count, 1))))


def _by_draws(
    model: Model, layout: Layout, values: Values, given: Any, root: Float[Array, "p p"], draws: Any
) -> tuple[Array, Array, Array, Array, Array]:
    """Sums over draws of s, s sᵀ + H and c = ½ ∇ tr(A H) + H A s, their squares, c cᵀ; and ∂θ/∂u, ∂²θ/∂u².

    A = `root` `root`ᵀ. Derivatives go forward only, along the columns of the root, so that whatever can be fitted can be
    expanded; p² passes of the third order for each draw.
    """
    free = layout.unconstrain(values)
    draw = drawing(model, layout.constrain(free, values), given, draws)
    terms = unit_terms(model, layout, values, given is not None)
    upper = np.triu_indices(layout.num_free)

    def one(row: Any) -> Array:
        def value(u: Array) -> Array:
            return jnp.sum(terms(u, jax.tree.map(lambda leaf: leaf[None], row)))

        def along(u: Array, direction: Array) -> Array:
            def slope(u: Array) -> Array:
                return jax.jvp(value, (u,), (direction,))[1]

            return jax.jvp(slope, (u,), (direction,))[1]

        def trace(u: Array) -> Array:
            return jnp.sum(jax.vmap(along, (None, 1))(u, root))

        score, hessian = jax.jacfwd(value)(free), jax.jacfwd(jax.jacfwd(value))(free)
        turned = hessian @ (root @ (root.T @ score))
        product = score[:, None] * score[None, :] + hessian
        return jnp.concatenate([score, product[upper], 0.5 * jax.jacfwd(trace)(free) + turned])

    pairs = num_pairs(model, draws, given)
    chunk = max(1, min(pairs, _CHUNK // max(layout.num_free, 1)))
    p = layout.num_free

    def step(k: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        number = k * chunk + jnp.arange(chunk)
        kept = jnp.tile(number < pairs, 2)[:, None]
        each = jnp.where(kept, jax.vmap(one)(draw(jnp.minimum(number, pairs - 1))), 0.0)
        last = each[:, -p:]
        products = jnp.matmul(last.T, last, precision="highest")
        new = jnp.sum(each, axis=0), jnp.sum(each**2, axis=0), products
        return jax.tree.map(jnp.add, sums, new)

    width = 2 * p + p * (p + 1) // 2
    zeros = jnp.zeros(width, layout.dtype), jnp.zeros(width, layout.dtype), jnp.zeros((p, p), layout.dtype)
    sums = jax.lax.fori_loop(0, -(-pairs // chunk), step, zeros)

    def theta(u: Array) -> Array:
        return layout.join(layout.constrained_values(u, values))

    return *sums, jax.jacfwd(theta)(free), jax.jacfwd(jax.jacfwd(theta))(free)


_moments_of_few = jit_with_model(_by_draws, static_argnums=(0, 1), level=0)
_moments = jit_with_model(_by_draws, static_argnums=(0, 1), level=1)
