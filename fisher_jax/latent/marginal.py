"""`marginal`: a model whose log-density is an integral over latent effects.

Of one group with observations y, effects b of dimension q and joint density p(y, b; θ),

    log p(y; θ) = log ∫ exp f(b; θ) db,   f(b; θ) = log p(y, b; θ).

The mode b* of f is found by Newton's method in a trust region (`mode.py`). With H = −∇²_b f at the mode, Laplace's
approximation is

    f(b*) − ½ log det H + ½ q log 2π,

and adaptive Gauss-Hermite quadrature puts k^q nodes at b* + √2 L⁻ᵀ x, H = L Lᵀ; one node is Laplace's.

Derivatives must go through the mode, which depends on θ. The search runs without derivatives, and its result b₀ takes two steps

    b ← b + H₀⁻¹ ∇_b f(b; θ),

H₀ being fixed at the mode. They do not move it where θ is, but each makes one more order of its derivatives right: after the
first step b has the slope of b*(θ), by the implicit function theorem, after the second its curvature. The value then has exact
first and second derivatives, in forward and in reverse mode. (One step gives an exact gradient and a wrong Hessian.)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.errors import check_count, check_function, entry_point
from fisher_jax.fitting.status import Status
from fisher_jax.latent.mode import Mode, find_mode
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, layout_of
from fisher_jax.models.programs import UserFunction, call_differentiable
from fisher_jax.numerics import linalg

MOST_DIMENSIONS = 3  # of a quadrature: with nine nodes 729 points


class WithMode(NamedTuple):
    """The observations of one group, and the mode of its effects at the parameters where the density is evaluated."""

    observations: PyTree
    mode: Mode


class MarginalModel(Model):
    """A model made by `marginal`: an observation is a group, its log-density an integral over the effects of the group."""

    @property
    def integral(self) -> "Integral":
        """The log-density, which knows the joint density, the effects and the nodes."""
        return self.log_density

    @property
    def is_costly(self) -> bool:  # type: ignore[override]
        """Of many effects."""
        return self.integral.is_costly

    @property
    def algebra(self) -> str:
        """How the matrix of second derivatives in the effects is solved, as in ``dense 40``."""
        return self.integral.algebra

    @property
    def with_modes(self) -> Callable[..., WithMode]:
        """From (params, y, z) of one group to y with the mode of its effects, which derivatives at params then start from."""
        return self.integral.with_mode

    def explain(self, params: PyTree, y: PyTree, *z: PyTree) -> str:
        """Why the log-density of a group is not finite, in words."""
        mode = jax.jit(self.integral.mode)(params, y, *z)
        status = Status(int(mode.status))
        return "" if status.converged else f"where the mode of the latent effects was not found ({status.label})"


@dataclass(frozen=True)
class Integral:
    """log ∫ exp(joint) over the effects: the log-density of a `MarginalModel`."""

    joint: UserFunction
    layout: Layout  # of the effects
    start: tuple[float, ...]  # of the search for the mode, flat
    nodes: int

    has_both_modes = True  # of differentiation: the joint density is called so that it has
    is_costly = False  # see `Model`

    @property
    def user_function(self) -> UserFunction:
        """Where its programs are stored; see `models.programs.owner_of`."""
        return self.joint

    @property
    def made_with(self) -> tuple[Any, ...]:
        """What else it is made of."""
        return self.layout, self.start, self.nodes

    @property
    def algebra(self) -> str:
        """How the matrix of second derivatives in the effects is solved, in words."""
        return f"dense {len(self.start)}"

    @property
    def _values(self) -> list[Any]:
        return [None] * len(self.layout.leaves)

    def of_effects(self, params: PyTree, y: PyTree, *z: PyTree) -> Callable[[Float[Array, " q"]], Float[Array, ""]]:
        """f(b) = log p(y, b; θ) of one group as a function of the flat effects."""

        def f(b: Float[Array, " q"]) -> Float[Array, ""]:
            value = call_differentiable(self.joint, (params, self.layout.constrain(b, self._values), y, *z), "joint")
            if jnp.shape(value) != ():
                raise ValueError(
                    f"joint(params, effects, {'y, z' if z else 'y'}) must return a scalar for ONE group, the sum over its rows and "
                    f"effects, but returned shape {jnp.shape(value)}."
                )
            return jnp.asarray(value, b.dtype)

        return f

    def mode(self, params: PyTree, y: PyTree, *z: PyTree) -> Mode:
        """The mode of the effects of one group, without derivatives."""
        params, y, z = jax.lax.stop_gradient((params, y, z))
        dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(params)]
        dtype = jnp.result_type(*(dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)))
        return find_mode(self.of_effects(params, y, *z), jnp.asarray(self.start, dtype))

    def with_mode(self, params: PyTree, y: PyTree, *z: PyTree) -> WithMode:
        """The observations of one group with the mode of its effects."""
        return WithMode(y, self.mode(params, y, *z))

    def __call__(self, params: PyTree, y: PyTree, *z: PyTree) -> Float[Array, ""]:
        y, mode = y if isinstance(y, WithMode) else self.with_mode(params, y, *z)
        f = self.of_effects(params, y, *z)
        mode = jax.lax.stop_gradient(mode)
        b, information = mode.effects, mode.information
        factor, gradient = linalg.factorize(information), jax.grad(f)
        # Derivatives by the data, too, go through these steps.
        for _ in range(2):
            b = b + linalg.solve(factor, gradient(b))
        hessian = jax.jacfwd(jax.jacfwd(f) if len(b) <= 3 else gradient)(b)
        value = _integrate(f, b, -hessian, self.nodes)
        # The density of a group whose mode is not certified is not known: the fit tries a shorter step, or reports the group.
        return jnp.where(mode.certified, value, jnp.nan)


@entry_point
def marginal(
    joint: UserFunction,
    effects: PyTree,
    *,
    nodes: int = 1,
    sample: UserFunction | None = None,
    constraints: PyTree = None,
    initial: UserFunction | None = None,
    names: PyTree = None,
) -> MarginalModel:
    """A model with latent effects: from the joint density of one group and its effects b, p(y; θ) = ∫ p(y, b; θ) db.

    Parameters
    ----------
    joint : callable
        ``joint(params, effects, y)`` or ``joint(params, effects, y, z)``: log p(y, b; θ) of one group in nats, a scalar: the
        sum over its rows, and the log-density of its effects.
    effects : pytree
        Where the search for the mode of the effects starts, usually zeros; it gives their names and shapes, as in
        ``{"intercept": 0.0, "slope": 0.0}``. `joint` is called with such a pytree.
    nodes : int
        Points of the quadrature along each axis: 1 is Laplace's approximation, 5 to 25 adaptive Gauss-Hermite quadrature, for
        up to three effects. The joint density is evaluated at nodes^q points.
    sample : callable, optional
        ``sample(key, params)`` or ``sample(key, params, z)``: one draw of the effects and, given them, of y, which is returned.
    constraints, initial, names
        Of the parameters, as for `Model`.

    Returns
    -------
    MarginalModel
        A model whose observation is a group: every function of fisher_jax takes it. Arrays have a leading axis over the groups; a
        group's rows come next, the same number in each: `by_group` fills them up.

    Raises
    ------
    TypeError, ValueError
        If `joint` is not callable, there is no effect, or a quadrature has more than three dimensions.

    Notes
    -----
    The effects are found anew for each group at each parameter, by the step of `fit`, and derivatives by θ go through them
    exactly to the second order. Where the search for a mode ends without a certificate the log-density is NaN: a fit then takes
    a shorter step, or ends with the status "bad start" or "not finite" and names the group. Third derivatives are not exact.

    Hundreds of effects are one dense matrix: of q effects the derivatives take q passes over the joint density, and memory for
    some tens of q² numbers. Where rows touch a few effects each, as with crossed factors, `mixed` with ``levels=`` is far faster.

    The observed information, the sandwich, tests and intervals are those of the approximated likelihood. `check_laplace` tells
    how far that is from the exact one.

    References
    ----------
    Tierney, L. and Kadane, J. B. (1986), Accurate approximations for posterior moments and marginal densities, JASA 81, 82-86,
    eq. (2.2). Pinheiro, J. C. and Bates, D. M. (1995), Approximations to the log-likelihood function in the nonlinear
    mixed-effects model, J. Comput. Graph. Stat. 4, 12-35, eq. (6). Kristensen, K. et al. (2016), TMB: automatic differentiation
    and Laplace approximation, J. Stat. Softw. 70(5), eq. (1)-(4).

    Examples
    --------
    Counts in pairs that share a normal effect:

    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> from jax.scipy.stats import norm, poisson
    >>> def joint(params, b, y):
    ...     rate = jnp.exp(params["mean"] + params["sd"] * b)
    ...     return jnp.sum(poisson.logpmf(y, rate)) + norm.logpdf(b)
    >>> model = fj.marginal(joint, 0.0, nodes=9, constraints={"sd": fj.positive})
    >>> pairs = jnp.array([[3, 4], [0, 1], [7, 9], [2, 1], [5, 2], [1, 0]])
    >>> fit = fj.fit(model, {"mean": 0.0, "sd": 1.0}, pairs)
    >>> print(f"{fit.params['mean']:.2f} {fit.params['sd']:.2f} {fit.converged}")
    0.74 0.84 True
    """
    check_function(joint, "joint", "params, effects and y")
    nodes = check_count(nodes, 1, "nodes")
    layout, values = layout_of(effects)
    start = tuple(np.asarray(layout.join(values), float).tolist())
    if not start:
        raise ValueError(
            "effects holds no number. Give where the search for their mode starts, as in {'intercept': 0.0}."
        )
    if nodes > 1 and len(start) > MOST_DIMENSIONS:
        raise ValueError(
            f"nodes={nodes} with {len(start)} effects needs {nodes}^{len(start)} points for each group; a quadrature is for up to "
            f"{MOST_DIMENSIONS} effects. Use nodes=1, Laplace's approximation."
        )
    integral = Integral(joint, layout, start, nodes)
    if len(start) > linalg.UNROLLED:
        from fisher_jax.latent.many_effects import IntegralOfMany  # which extends `Integral`

        integral = IntegralOfMany(joint, layout, start, nodes)
    return MarginalModel(integral, sample=sample, constraints=constraints, initial=initial, names=names)


def _integrate(
    f: Callable[[Array], Array], mode: Float[Array, " q"], information: Float[Array, "q q"], nodes: int
) -> Float[Array, ""]:
    """log ∫ exp f by Gauss-Hermite quadrature at `nodes` points along each axis, about a mode of f."""
    q = len(mode)
    if q > MOST_DIMENSIONS:
        return f(mode) - 0.5 * _log_determinant(information) + 0.5 * q * math.log(2 * math.pi)
    lower, log_det = cholesky(information)
    if nodes == 1:
        return f(mode) - 0.5 * log_det + 0.5 * q * math.log(2 * math.pi)
    points, weights = np.polynomial.hermite.hermgauss(nodes)
    log_weights = np.log(weights) + points**2
    grid = np.stack(np.meshgrid(*[points] * q, indexing="ij"), axis=-1).reshape(-1, q)
    log_weights = np.sum(np.meshgrid(*[log_weights] * q, indexing="ij"), axis=0).reshape(-1)
    offsets = jax.vmap(lambda x: _solve_transposed(lower, x))(math.sqrt(2) * grid.astype(mode.dtype))
    values = jax.vmap(f)(mode + offsets) + log_weights.astype(mode.dtype)
    return jax.nn.logsumexp(values) - 0.5 * log_det + 0.5 * q * math.log(2)


def cholesky(matrix: Float[Array, "q q"]) -> tuple[dict[tuple[int, int], Array], Float[Array, ""]]:
    """L with A = L Lᵀ, as a dictionary of its entries, and log det A; to be differentiated, so without scaling or pivots."""
    q = len(matrix)
    lower: dict[tuple[int, int], Array] = {}
    log_det = jnp.zeros((), matrix.dtype)
    for j in range(q):
        pivot = matrix[j, j] - sum(lower[j, k] ** 2 for k in range(j))
        log_det = log_det + jnp.log(pivot)
        lower[j, j] = jnp.sqrt(pivot)
        for i in range(j + 1, q):
            lower[i, j] = (matrix[i, j] - sum(lower[i, k] * lower[j, k] for k in range(j))) / lower[j, j]
    return lower, log_det


def _solve_transposed(lower: dict[tuple[int, int], Array], right: Float[Array, " q"]) -> Float[Array, " q"]:
    """L⁻ᵀ x."""
    q = len(right)
    solved: dict[int, Array] = {}
    for i in reversed(range(q)):
        solved[i] = (right[i] - sum(lower[k, i] * solved[k] for k in range(i + 1, q))) / lower[i, i]
    return jnp.stack([solved[i] for i in range(q)])


@jax.custom_jvp
def _log_determinant(matrix: Float[Array, "q q"]) -> Float[Array, ""]:
    """log det A, differentiated by tr(A⁻¹ dA): through a loop of a factorisation it would take far longer."""
    return linalg.log_determinant(matrix)


@_log_determinant.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (matrix,), (change,) = primals, tangents
    return _log_determinant(matrix), jnp.sum(_inverse(matrix) * change)


@jax.custom_jvp
def _inverse(matrix: Float[Array, "q q"]) -> Float[Array, "q q"]:
    return linalg.inverse(matrix)


@_inverse.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (matrix,), (change,) = primals, tangents
    inverse = _inverse(matrix)
    return inverse, -linalg.product(linalg.product(inverse, change), inverse)
