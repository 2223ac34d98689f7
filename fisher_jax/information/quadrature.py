"""Fisher information by exact expectation: over all values of a discrete y, or by quadrature over a scalar one.

The integral over a piece of the line is the trapezoidal rule in t after y = tanh(½π sinh t) or its like, where the integrand
falls off double-exponentially whatever it does at the ends (Takahasi and Mori 1974). Every second node is the rule of half the
order, whose difference from the whole is the error.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.blocks import CHUNK_ENTRIES, in_chunks
from fisher_jax.information.draw_pairs import num_rows
from fisher_jax.information.expectations import Enumeration, Quadrature
from fisher_jax.information.monte_carlo import Expected
from fisher_jax.information.regularity import Regularity
from fisher_jax.models.likelihood import terms_of
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.numerics.differentiate import each_at

ZERO_MEAN = 1e-6  # times the parameters' scale: how far from zero an exact mean may be by rounding and truncation


class Averages(NamedTuple):
    """Expectations of one observation: 1, s, s sᵀ, H, and s sᵀ by every second node; and the count of nodes not finite."""

    mass: Float[Array, ""]
    score: Float[Array, " q"]
    outer: Float[Array, "q q"]
    hessian: Float[Array, "q q"]
    coarse: Float[Array, "q q"]
    not_finite: Array


def by_nodes(
    model: Model, layout: Layout, values: Values, expectation: Quadrature | Enumeration, given: PyTree
) -> Expected:
    """E[s sᵀ] of one observation on average over the rows of `given`, with the change since half the order as its error."""
    averages, mass = average(model, layout, values, expectation, given)
    q = layout.num_free
    errors = (averages.outer - averages.coarse)[None] if isinstance(expectation, Quadrature) else jnp.zeros((0, q, q))
    matrix, errors = (0.5 * (part + part.mT) for part in (averages.outer, errors))
    return Expected(matrix, errors, assess_regularity(averages, mass))


def average(
    model: Model, layout: Layout, values: Values, expectation: Any, given: PyTree
) -> tuple[Averages, Float[Array, ""]]:
    """Averages over the rows of `given`, and the total probability that is farthest from one among them."""
    if model.is_dependent:
        raise ValueError(
            f"{type(expectation).__name__} lists the values of one observation, but a dependent model draws a whole "
            "series at once. Use MonteCarlo."
        )
    theta = layout.unconstrain(values)
    terms = terms_of(model, layout, values, given is not None)

    def at_covariates(*z: PyTree) -> Averages:
        params = jax.lax.stop_gradient(layout.constrain(theta, values))
        nodes, weights = _nodes(expectation, params, z, layout.dtype)
        if z:
            copies = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (weights.shape[0], *jnp.shape(leaf))), z[0])
            nodes = (nodes, copies)
        return _sums_over_nodes(terms, theta, nodes, weights)

    if given is None:
        sums = at_covariates()
        return sums, sums.mass

    def of_chunk(rows: PyTree, weights: Array | None) -> tuple[Array, Averages]:
        each = jax.vmap(at_covariates)(rows)
        counts = jnp.ones(each.mass.shape) if weights is None else weights
        return each.mass, jax.tree.map(lambda part: jnp.tensordot(counts.astype(part.dtype), part, 1), each)

    if isinstance(expectation, Enumeration):
        num_nodes = jax.tree.leaves(expectation.values)[0].shape[0]
    else:
        num_nodes = expectation.order * (1 if callable(expectation.points) else len(expectation.points) + 1)
    at_once = max(1, CHUNK_ENTRIES // (num_nodes * layout.num_free**2))
    masses, total = in_chunks(jax.tree.map(jnp.asarray, given), None, at_once, of_chunk, layout.dtype)
    mean = jax.tree.map(lambda part: part / num_rows(model, given), total)
    return mean, masses[jnp.argmax(jnp.abs(masses - 1.0))]


def _sums_over_nodes(terms: Any, theta: Float[Array, " q"], rows: PyTree, weights: Float[Array, " c"]) -> Averages:
    """Sums over the nodes. A node of probability zero is left out, whatever its derivatives."""
    probability = weights * jnp.exp(terms(theta, rows))
    s, hessian = each_at(terms, theta, rows)
    counted = probability != 0
    finite = jnp.isfinite(probability) & jnp.all(jnp.isfinite(s), 1) & jnp.all(jnp.isfinite(hessian), (1, 2))
    s = jnp.where(counted[:, None], s, 0.0)
    hessian = jnp.where(counted[:, None, None], hessian, 0.0)
    outer = jnp.einsum("c,ci,cj->ij", probability, s, s, precision="highest")
    return Averages(
        mass=jnp.sum(probability),
        score=jnp.sum(probability[:, None] * s, axis=0),
        outer=outer,
        hessian=jnp.sum(probability[:, None, None] * hessian, axis=0),
        coarse=2.0 * jnp.einsum("c,ci,cj->ij", probability[::2], s[::2], s[::2], precision="highest"),
        not_finite=jnp.sum(counted & ~finite),
    )


def tolerances(averages: Averages) -> tuple[Float[Array, " q"], Float[Array, "q q"]]:
    """What rounding and truncation may leave of the mean score, and of the mean of s sᵀ + H."""
    diagonal = jnp.abs(jnp.diagonal(averages.outer))
    scale = jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1.0))
    small = max(ZERO_MEAN, 1e4 * float(jnp.finfo(scale.dtype).eps))
    return small * scale, small * scale[:, None] * scale[None, :]


def assess_regularity(averages: Averages, mass: Float[Array, ""]) -> Regularity:
    """The zero means in units of what rounding and truncation may leave of them."""
    of_score, of_matrix = tolerances(averages)
    size = jnp.sqrt(jnp.diagonal(averages.outer))
    return Regularity(
        score_z=averages.score / of_score,
        equality_z=(averages.outer + averages.hessian) / of_matrix,
        effect=(averages.outer + averages.hessian) / (size[:, None] * size[None, :]),
        tail=jnp.full_like(of_score, jnp.nan),
        mass=mass,
        num_not_finite=averages.not_finite.astype(jnp.int32),
        limit=1.0,
    )


def _nodes(expectation: Any, params: PyTree, z: tuple[PyTree, ...], dtype: Any) -> tuple[PyTree, Float[Array, " c"]]:
    if isinstance(expectation, Enumeration):
        values = jax.tree.map(jnp.asarray, expectation.values)
        return values, jnp.ones((jax.tree.leaves(values)[0].shape[0],), dtype)
    points = expectation.points(params, *z) if callable(expectation.points) else expectation.points
    cuts = [expectation.lower, *points, expectation.upper]
    ends = [jnp.asarray(end(params, *z) if callable(end) else end, dtype) for end in cuts]
    pieces = [_double_exponential(low, high, expectation.order, dtype) for low, high in itertools.pairwise(ends)]
    return tuple(jnp.concatenate(parts) for parts in zip(*pieces, strict=True))  # type: ignore[return-value]


def _double_exponential(
    low: Float[Array, ""], high: Float[Array, ""], order: int, dtype: Any
) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
    """Nodes and weights of ∫ f from low to high, either of which may be infinite, known only when run."""
    count = order + 1 - order % 2  # odd, so that every second node is the rule of half the order
    reach = 5.0 if jnp.finfo(dtype).bits == 64 else 3.8  # to within e^∓117 of an end, or e^∓35 in float32
    t = (np.arange(count) - 0.5 * (count - 1)) * (2 * reach / (count - 1))
    step = jnp.asarray(t[1] - t[0], dtype)
    u = jnp.asarray(0.5 * np.pi * np.sinh(t), dtype)
    slope = step * jnp.asarray(0.5 * np.pi * np.cosh(t), dtype)
    finite_low, finite_high = jnp.isfinite(low), jnp.isfinite(high)
    near, far = jnp.where(finite_low, low, 0.0), jnp.where(finite_high, high, 0.0)
    width, tail = far - near, jax.nn.sigmoid(-2.0 * jnp.abs(u))
    inside = jnp.where(u < 0, near + width * tail, far - width * tail)
    inside_weight = 2.0 * width * tail * (1.0 - tail) * slope
    growth = jnp.exp(u)
    choices = [finite_low & finite_high, finite_low, finite_high]
    nodes = jnp.select(choices, [inside, near + growth, far - growth], jnp.sinh(u))
    weights = jnp.select(choices, [inside_weight, growth * slope, growth * slope], jnp.cosh(u) * slope)
    return nodes, weights
