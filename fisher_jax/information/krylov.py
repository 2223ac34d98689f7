"""Solves, log-determinants and averages over random probes from products with a symmetric matrix A alone.

Conjugate gradients (Hestenes and Stiefel 1952) minimise ½ xᵀ A x − bᵀ x along directions that are orthogonal in A. Lanczos'
recursion builds a tridiagonal T = Qᵀ A Q on the Krylov space of a probe z; zᵀ log(A) z is then a Gauss quadrature with the
eigenvalues of T as nodes (Ubaru, Chen and Saad 2017), and its mean over probes of random signs is log det A.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from fisher_jax.moments import Estimate, RunningMean

Product = Callable[[Float[Array, " p"]], Float[Array, " p"]]


class Solution(NamedTuple):
    """The result of a solve by conjugate gradients.

    Attributes
    ----------
    value : pytree
        The solution, like `params`; leaves held `fixed` are zero.
    residual : scalar array
        Norm of b − A x, computed again from the solution, divided by the norm of the right-hand side b.
    num_steps : integer array
        Products with A that were needed.
    converged : boolean array
        Whether the residual is within the tolerance, and no direction without positive curvature was met.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> operator = fj.information_operator(fj.families.poisson, {"rate": 4.0}, kind="observed", data=jnp.array([3.0, 5.0]))
    >>> solution = operator.solve({"rate": 1.0})
    >>> print(round(float(solution.value["rate"]), 3), solution.converged)
    4.0 True
    """

    value: PyTree
    residual: Float[Array, ""]
    num_steps: Int[Array, ""]
    converged: Bool[Array, ""]


class _Search(NamedTuple):
    """State of conjugate gradients. `positive` is false from the first direction without positive curvature on."""

    x: Float[Array, " p"]
    rest: Float[Array, " p"]  # b − A x
    direction: Float[Array, " p"]
    square: Float[Array, ""]  # of the norm of `rest`
    num_steps: Int[Array, ""]
    positive: Bool[Array, ""]
    done: Bool[Array, ""]  # `rest` has been computed again from x


def conjugate_gradients(product: Product, b: Float[Array, " p"], tolerance: Any, max_steps: Any) -> Solution:
    """Solve A x = b for A positive definite; stops, not converged, where it meets a direction of no positive curvature.

    The last trip of the loop takes no step but computes b − A x from x. A product of its own after the loop would
    be compiled once more, and its norm fused with sums inside the product, which jaxlib 0.10.2 gets wrong on CPUs (jax issue
    39103).
    """
    largest = jnp.max(jnp.abs(b), initial=0.0)  # of which the squares may neither overflow nor vanish in float32
    scale = jnp.where(largest > 0, largest, 1.0)
    b = b / scale
    whole = _dot(b, b)

    def trip(search: _Search) -> _Search:
        last = ~(search.positive & (search.square > tolerance**2 * whole) & (search.num_steps < max_steps))
        image = product(jnp.where(last, search.x, search.direction))
        curvature = _dot(search.direction, image)
        positive = curvature > 0
        length = jnp.where(positive & ~last, search.square / jnp.where(positive, curvature, 1.0), 0.0)
        rest = jnp.where(last, b - image, search.rest - length * image)
        square = _dot(rest, rest)
        return _Search(
            search.x + length * search.direction,
            rest,
            rest + square / jnp.where(last, 1.0, search.square) * search.direction,
            square,
            search.num_steps + ~last,
            search.positive & (positive | last),
            last,
        )

    start = _Search(jnp.zeros_like(b), b, b, whole, jnp.zeros((), jnp.int32), jnp.ones((), bool), jnp.zeros((), bool))
    end = jax.lax.while_loop(lambda search: ~search.done, trip, start)
    residual = jnp.sqrt(end.square / jnp.where(whole > 0, whole, 1.0))
    return Solution(scale * end.x, residual, end.num_steps, end.positive & (residual <= tolerance))


def average_over_probes(
    of_probe: Callable[[Float[Array, " p"]], PyTree], key: Array, num_probes: int, like: Float[Array, " p"]
) -> Estimate:
    """Mean of `of_probe(z)` over probes z of random signs, and its standard error, holding one probe at a time."""

    def step(k: Array, mean: RunningMean) -> RunningMean:
        return mean.include(of_probe(random_signs(jax.random.fold_in(key, k), like)))

    return jax.lax.fori_loop(0, num_probes, step, RunningMean.empty(jax.eval_shape(of_probe, like))).average()


def random_signs(key: Array, like: Float[Array, " p"]) -> Float[Array, " p"]:
    """A probe z with E[z zᵀ] = I and no variance on its diagonal (Rademacher)."""
    return jax.random.rademacher(key, like.shape, like.dtype)


def log_determinant(
    product: Product, key: Array, num_probes: int, num_steps: int, like: Float[Array, " p"]
) -> Estimate:
    """log det A by stochastic Lanczos quadrature, with the error of the probes and the change since half the steps."""
    p = like.shape[0]
    if p == 0:
        return Estimate(jnp.zeros((), like.dtype), jnp.zeros((), like.dtype))
    steps = min(num_steps, p)

    def of_probe(k: Array) -> tuple[Array, Array]:
        return _lanczos(product, random_signs(jax.random.fold_in(key, k), like), steps)

    diagonal, beside = jax.lax.map(of_probe, jnp.arange(num_probes))
    estimates = p * jax.vmap(_quadrature)(diagonal, beside)
    variance = jnp.var(estimates, ddof=1) / num_probes
    truncation = jnp.zeros((), like.dtype)
    if steps < p:
        half = max(1, steps // 2)
        truncation = jnp.mean(p * jax.vmap(_quadrature)(diagonal[:, :half], beside[:, :half]) - estimates)
    return Estimate(jnp.mean(estimates), jnp.sqrt(variance + truncation**2))


def _quadrature(diagonal: Float[Array, " m"], beside: Float[Array, " m"]) -> Float[Array, ""]:
    """e₁ᵀ log(T) e₁ of a tridiagonal T: nodes are its eigenvalues, weights the first entries of its eigenvectors, squared."""
    off = jnp.diag(beside[:-1], 1)
    nodes, vectors = jnp.linalg.eigh(jnp.diag(diagonal) + off + off.T)
    return jnp.sum(vectors[0] ** 2 * jnp.log(nodes))


def _lanczos(
    product: Product, start: Float[Array, " p"], num_steps: int
) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
    """The tridiagonal matrix of A on the Krylov space of `start`: its diagonal and what lies beside it.

    Each vector is made orthogonal to all before it, twice. Where the space is exhausted, what remains of the tridiagonal
    matrix is cut off (zero beside it) and filled with its first entry, which then has no weight.
    """
    q = start / jnp.sqrt(_dot(start, start))
    zeros = jnp.zeros((num_steps,), start.dtype)
    basis = jnp.zeros((num_steps, start.shape[0]), start.dtype)
    little = 100.0 * jnp.finfo(start.dtype).eps

    def step(k: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        q, alive, size, basis, diagonal, beside = carry
        basis = jax.lax.dynamic_update_index_in_dim(basis, q, k, axis=0)
        image = product(q)
        along = _dot(q, image)
        rest = _orthogonal(_orthogonal(image, basis), basis)
        norm = jnp.sqrt(_dot(rest, rest))
        size = jnp.maximum(size, jnp.abs(along) + norm)
        diagonal = diagonal.at[k].set(jnp.where(alive, along, diagonal[0]))
        alive = alive & ~(norm <= little * size)
        beside = beside.at[k].set(jnp.where(alive, norm, 0.0))
        q = jnp.where(alive, rest / jnp.where(alive, norm, 1.0), 0.0)
        return q, alive, size, basis, diagonal, beside

    carry = (q, jnp.ones((), bool), jnp.zeros((), start.dtype), basis, zeros, zeros)
    return jax.lax.fori_loop(0, num_steps, step, carry)[-2:]


def _orthogonal(vector: Float[Array, " p"], basis: Float[Array, "m p"]) -> Float[Array, " p"]:
    inside = jnp.einsum("mp,p->m", basis, vector, precision="highest")
    return vector - jnp.einsum("m,mp->p", inside, basis, precision="highest")


def _dot(a: Float[Array, " p"], b: Float[Array, " p"]) -> Float[Array, ""]:
    return jnp.dot(a, b, precision="highest")
