"""Many latent effects: the mode by a damped Newton method on matrices with a large block-diagonal part, and the integral there.

Of b in q dimensions f(b; θ) is maximised with H = −∇²f a matrix

    H = [[A, B], [Bᵀ, D]],   A block-diagonal, k blocks of s × s, D dense, m × m,

whose first part is eliminated: with W = A⁻¹ B and S = D − Bᵀ W, log det H = log det A + log det S, and solutions cost k s m² + m³
and not (k s + m)³. A dense matrix has k = 0, a block-diagonal one m = 0.

The search steps by (H + λ diag)⁻¹ ∇f. Its λ is zero where steps succeed, is raised where one does not raise f or the matrix is not
positive definite, and lowered again. It ends with a certificate: H positive definite and the decrement √(∇fᵀ H⁻¹ ∇f) below the
tolerance.

Derivatives by θ go through the mode as in `marginal.py`. The log-determinant is differentiated without its factorisation. With H₀
the matrix at the mode, a constant whose factors are known, and Δ = H(b; θ) − H₀,

    log det H = log det H₀ + tr(H₀⁻¹ Δ) − ½ tr((H₀⁻¹ Δ)²) + O(Δ³),

where Δ is rounding error at the point of evaluation, so that the value and the first two derivatives are exact.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from fisher_jax.blocks import vmap_in_blocks
from fisher_jax.fitting.maximization import default_tolerance
from fisher_jax.fitting.status import Status
from fisher_jax.latent.marginal import Integral, WithMode
from fisher_jax.numerics import linalg

BATCH = 16  # rows of a dense Hessian at once
STEPS = 200  # of a search; from a start of zeros six are usual
LEAST_DAMPING = 1e-3  # of the diagonal; below, a step is Newton's
MOST_DAMPING = 1e12  # above, a step moves nothing
ROUNDING = 100.0  # tolerances: so near, a search that no step improves has ended at the rounding error of f


class Bordered(NamedTuple):
    """A symmetric matrix [[A, B], [Bᵀ, D]] whose first part A is block-diagonal."""

    blocks: Float[Array, "k s s"]
    border: Float[Array, "k s m"]
    rest: Float[Array, "m m"]

    @property
    def diagonal(self) -> Float[Array, " q"]:
        blocks = jnp.diagonal(self.blocks, axis1=-2, axis2=-1)
        return jnp.concatenate([blocks.reshape(-1), jnp.diagonal(self.rest)])

    def plus_diagonal(self, diagonal: Float[Array, " q"]) -> "Bordered":
        k, s, _ = self.blocks.shape
        first, last = diagonal[: k * s].reshape(k, s), diagonal[k * s :]
        return Bordered(self.blocks + jax.vmap(jnp.diag)(first), self.border, self.rest + jnp.diag(last))

    def to_dense(self) -> Float[Array, "q q"]:
        k, s, m = self.border.shape
        numbers = jnp.arange(k)
        corner = jnp.zeros((k, s, k, s), self.rest.dtype).at[numbers, :, numbers, :].set(self.blocks)
        border = self.border.reshape(k * s, m)
        return jnp.block([[corner.reshape(k * s, k * s), border], [border.T, self.rest]])


class Factors(NamedTuple):
    """What a bordered matrix is solved with: A⁻¹, W = A⁻¹ B and S⁻¹; its log-determinant; whether it is positive definite."""

    blocks: Float[Array, "k s s"]
    coupling: Float[Array, "k s m"]
    rest: Float[Array, "m m"]
    log_det: Float[Array, ""]
    definite: Bool[Array, ""]

    def solve(self, right: Float[Array, " q"]) -> Float[Array, " q"]:
        """H⁻¹ `right`."""
        k, s, _ = self.blocks.shape
        first, last = right[: k * s].reshape(k, s), right[k * s :]
        last = _product("ij,j->i", self.rest, last - _product("ksm,ks->m", self.coupling, first))
        first = _product("kij,kj->ki", self.blocks, first) - _product("ksm,m->ks", self.coupling, last)
        return jnp.concatenate([first.reshape(-1), last])

    def log_det_near(self, change: Bordered) -> Float[Array, ""]:
        """log det (H + Δ) to the second order in Δ.

        With the triangular U = [[I, W], [0, I]], H = Uᵀ diag(A, S) U, so that H⁻¹ Δ has the traces of diag(A, S)⁻¹ U⁻ᵀ Δ U⁻¹.
        """
        to_border = change.border - _product("kij,kjm->kim", change.blocks, self.coupling)
        cross = _product("ksm,ksn->mn", self.coupling, change.border + to_border)
        to_rest = change.rest - 0.5 * (cross + cross.T)
        of_blocks = _product("kij,kjl->kil", self.blocks, change.blocks)
        of_rest = _product("ij,jl->il", self.rest, to_rest)
        between = _product("kij,kjm->kim", self.blocks, to_border)
        first = jnp.sum(jnp.trace(of_blocks, axis1=-2, axis2=-1)) + jnp.trace(of_rest)
        second = jnp.sum(of_blocks * of_blocks.mT) + jnp.sum(of_rest * of_rest.T)
        second += 2.0 * jnp.sum(between * _product("kim,mn->kin", to_border, self.rest))
        return self.log_det + first - 0.5 * second


def _product(subscripts: str, *arrays: Array) -> Array:
    return jnp.einsum(subscripts, *arrays, precision="highest")


def factorize(matrix: Bordered) -> Factors:
    """The factors of a bordered matrix. Not to be differentiated: see `Factors.log_det_near`."""
    blocks = linalg.inverse(matrix.blocks)
    coupling = _product("kij,kjm->kim", blocks, matrix.border)
    rest, log_det_rest, definite = _invert_dense(matrix.rest - _product("ksm,ksn->mn", matrix.border, coupling))
    log_det = (
        jnp.sum(linalg.log_determinant(matrix.blocks)) + log_det_rest
    )  # NaN where a block is not positive definite
    return Factors(blocks, coupling, rest, log_det, definite & jnp.isfinite(log_det))


def _invert_dense(matrix: Float[Array, "m m"]) -> tuple[Float[Array, "m m"], Float[Array, ""], Bool[Array, ""]]:
    """The inverse and the log-determinant of a dense matrix, and whether it is positive definite."""
    m = matrix.shape[-1]
    if m == 0:
        return matrix, jnp.zeros((), matrix.dtype), jnp.ones((), bool)
    if m <= linalg.UNROLLED:
        log_det = linalg.log_determinant(matrix)
        return linalg.inverse(matrix), log_det, jnp.isfinite(log_det)
    return _invert_by_lapack(matrix)


@jax.custom_batching.custom_vmap
def _invert_by_lapack(matrix: Float[Array, "m m"]) -> tuple[Float[Array, "m m"], Float[Array, ""], Bool[Array, ""]]:
    """One matrix at a time, in a batch too: XLA's batched triangular solves are slow, and can deadlock (see `numerics.linalg`)."""
    m = matrix.shape[-1]
    scaled, scale = linalg.to_unit_diagonal(matrix)
    lower = jnp.linalg.cholesky(scaled, symmetrize_input=False)
    half = jax.lax.linalg.triangular_solve(lower, jnp.eye(m, dtype=matrix.dtype), left_side=True, lower=True)
    half = half / scale[None]
    pivots = jnp.diagonal(lower)
    definite = jnp.all(pivots**2 > linalg.singular_pivot(m, matrix.dtype))  # false where LAPACK gave NaN
    return linalg.product(half.T, half), 2.0 * jnp.sum(jnp.log(pivots) + jnp.log(scale)), definite


@_invert_by_lapack.def_vmap
def _(size: int, is_batched: list[bool], matrices: Float[Array, "b m m"]) -> tuple[Any, Any]:
    if size == 1:  # all rows of a table as one group
        return jax.tree.map(lambda leaf: leaf[None], _invert_by_lapack(matrices[0])), (True, True, True)
    return jax.lax.map(_invert_by_lapack, matrices), (True, True, True)


class Derivatives(NamedTuple):
    """f at a point: its value, gradient and H = −∇²f."""

    value: Float[Array, ""]
    gradient: Float[Array, " q"]
    matrix: Bordered


class Mode(NamedTuple):
    """A maximum of f over the effects b, flat: where, H and its factors there, and how the search ended (`Status`)."""

    effects: Float[Array, " q"]
    matrix: Bordered
    factors: Factors
    status: Int[Array, ""]

    @property
    def certified(self) -> Array:
        """Whether it is a maximum at which H is positive definite."""
        return self.status <= 1  # CONVERGED and CONVERGED_TO_ROUNDING

    @property
    def information(self) -> Float[Array, "q q"]:
        """H as a dense matrix."""
        return self.matrix.to_dense()


class _Search(NamedTuple):
    # The best point so far.
    point: Float[Array, " q"]
    at: Derivatives
    # λ diag, the step from there with it, and how many points were evaluated.
    damping: Float[Array, ""]
    damped: Float[Array, " q"]
    step: Float[Array, " q"]
    definite: Bool[Array, ""]
    num_points: Int[Array, ""]
    # Whether an undamped step is shorter than the tolerance.
    ended: Bool[Array, ""]


def find_mode(derivatives: Callable[[Float[Array, " q"]], Derivatives], start: Float[Array, " q"]) -> Mode:
    """Maximise f from a start. Nothing is differentiated through the search."""
    dtype = start.dtype
    tolerance, eps = default_tolerance(dtype), float(jnp.finfo(dtype).eps)

    def evaluate_and_step(search: _Search) -> _Search:
        point, at, damping, damped, step, definite, count, _ = search
        is_first = count == 0
        trial = derivatives(point + step)
        gain = trial.value - at.value
        # A gain below the rounding error of f is measured by the trapezoid of its slopes.
        is_measured = jnp.abs(gain) > 64 * eps * jnp.abs(at.value)
        gain = jnp.where(is_measured, gain, 0.5 * (at.gradient + trial.gradient) @ step)
        predicted = 0.5 * (at.gradient + damped * step) @ step
        is_finite = jnp.isfinite(trial.value) & jnp.all(jnp.isfinite(trial.gradient))
        ratio = jnp.where(definite & is_finite, gain / predicted, -1.0)
        accepted = is_first | (ratio > 1e-4)
        raised = jnp.maximum(8 * damping, LEAST_DAMPING)
        lowered = jnp.where(damping > LEAST_DAMPING, damping / 8, 0.0)
        next_damping = jnp.where(accepted, jnp.where(ratio > 0.25, lowered, damping), raised)
        next_damping = jnp.where(is_first, jnp.where(is_finite, 0.0, MOST_DAMPING), next_damping).astype(dtype)
        point, at = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), (point + step, trial), (point, at))
        # In the units of each effect; at least one, since a curvature may be zero or negative.
        damped = next_damping * jnp.maximum(jnp.abs(at.matrix.diagonal), 1.0)
        factors = factorize(at.matrix.plus_diagonal(damped))
        step = factors.solve(at.gradient)
        ended = (next_damping == 0) & factors.definite & (at.gradient @ step < tolerance**2)
        return _Search(point, at, next_damping, damped, step, factors.definite, count + 1, ended)

    def goes_on(search: _Search) -> Array:
        return ~search.ended & (search.num_points < STEPS) & (search.damping < MOST_DAMPING)

    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(derivatives, start))
    zeros, no = jnp.zeros_like(start), jnp.zeros((), bool)
    begun = _Search(start, nothing, jnp.zeros((), dtype), zeros, zeros, no, jnp.zeros((), jnp.int32), no)
    search = jax.lax.while_loop(goes_on, evaluate_and_step, begun)
    # Where the start is not finite there is nowhere to go.
    is_finite = jnp.isfinite(search.at.value) & jnp.all(jnp.isfinite(search.at.gradient))

    # What is certified is computed where the search ended, whatever it did before.
    factors = factorize(search.at.matrix)
    decrement = jnp.sqrt(jnp.maximum(search.at.gradient @ factors.solve(search.at.gradient), 0.0))
    size = jnp.sqrt(jnp.sum(search.at.gradient**2 / jnp.maximum(jnp.abs(search.at.matrix.diagonal), 1.0)))
    ran_out = search.num_points >= STEPS
    conditions = [
        (~is_finite, Status.BAD_START),
        (factors.definite & (decrement < tolerance), Status.CONVERGED),
        (factors.definite & (decrement < ROUNDING * tolerance) & ~ran_out, Status.CONVERGED_TO_ROUNDING),
        (~factors.definite & (size < tolerance), Status.INDEFINITE),
        (ran_out, Status.STEP_LIMIT),
    ]
    status = jnp.asarray(int(Status.STALLED), jnp.int32)
    for condition, code in reversed(conditions):
        status = jnp.where(condition, int(code), status)
    return Mode(search.point, search.at.matrix, factors, status)


@dataclass(frozen=True)
class IntegralOfMany(Integral):
    """log ∫ exp(joint) over many effects by Laplace's approximation; H is dense here."""

    is_costly = True

    def derivatives(self, params: PyTree, y: PyTree, *z: PyTree) -> Callable[[Array], Derivatives]:
        """f, its gradient and H of one group, as a function of the flat effects."""
        f = self.of_effects(params, y, *z)

        def at(b: Float[Array, " q"]) -> Derivatives:
            (value, gradient), push = jax.linearize(jax.value_and_grad(f), b)
            hessian = vmap_in_blocks(lambda axis: push(axis)[1], jnp.eye(len(b), dtype=b.dtype), BATCH)
            empty = jnp.zeros((0, 1, len(b)), b.dtype)
            return Derivatives(value, gradient, Bordered(empty[:, :, :1], empty, -0.5 * (hessian + hessian.T)))

        return at

    def gradient(self, params: PyTree, y: PyTree, *z: PyTree) -> Callable[[Array], Float[Array, " q"]]:
        """∇f of one group, as a function of the flat effects."""
        return jax.grad(self.of_effects(params, y, *z))

    def mode(  # type: ignore[override]
        self, params: PyTree, y: PyTree, *z: PyTree, begin: Float[Array, " q"] | None = None
    ) -> Mode:
        start, params, y, z = self._prepare_search(params, y, z, begin)
        return find_mode(self.derivatives(params, y, *z), start)

    def __call__(self, params: PyTree, y: PyTree, *z: PyTree) -> Float[Array, ""]:
        y, at = y if isinstance(y, WithMode) else self.with_mode(params, y, *z)
        mode: Mode = jax.lax.stop_gradient(at)  # type: ignore[assignment]
        gradient = self.gradient(params, y, *z)
        b = mode.effects
        for _ in range(2):
            b = b + mode.factors.solve(gradient(b))
        value, _, matrix = self.derivatives(params, y, *z)(b)
        log_det = mode.factors.log_det_near(jax.tree.map(jnp.subtract, matrix, mode.matrix))
        value = value - 0.5 * log_det + 0.5 * len(b) * math.log(2 * math.pi)
        # As for few effects: where the mode is not certified the density is not known.
        return jnp.where(mode.certified, value, jnp.nan)
