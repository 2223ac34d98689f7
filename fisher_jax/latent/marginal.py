"""`marginal`: a model whose log-density is an integral over latent effects.

Of one group with observations y, effects b of dimension q and joint density p(y, b; θ),

    log p(y; θ) = log ∫ exp f(b; θ) db,   f(b; θ) = log p(y, b; θ).

The mode b* of f is found by Newton's method in a trust region (`mode.py`). With H = −∇²_b f at the mode, Laplace's
approximation is

    f(b*) − ½ log det H + ½ q log 2π,

and adaptive Gauss-Hermite quadrature puts k^q nodes at b* + √2 L⁻ᵀ x, H = L Lᵀ; one node is Laplace's.

Derivatives must go through the mode, which depends on θ. The search runs without derivatives, and its result b₀ takes two steps

    b ← b + H₀⁻¹ ∇_b f(b; θ),

H₀ being fixed at the mode. They do not move it where θ is, but each makes one more order of its derivatives right: at a distance δ
from there, a step leaves O(δᵏ⁺¹) of an error O(δᵏ). After the first b has the slope of b*(θ), by the implicit function theorem,
after the second its curvature, and the value has exact first and second derivatives, in forward and in reverse mode. (One step
gives an exact gradient and a wrong Hessian.) A fit gives the mode, found once where it differentiates, and two steps are taken. A
density that is called by itself finds its mode and takes three, since bias corrections and derivatives of a covariance are of the
third order. The third step takes a fifth more time to compile and to run.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.errors import check_count, check_function, check_pytrees, entry_point, kind_of, shown
from fisher_jax.fitting.status import Status
from fisher_jax.latent.grouped import Grouped
from fisher_jax.latent.mode import Mode, find_mode
from fisher_jax.models.model import Model, check_arity
from fisher_jax.models.parameters import EntryNames, Layout, layout_of
from fisher_jax.models.programs import UserFunction, call_differentiable
from fisher_jax.numerics import linalg
from fisher_jax.numerics.differentiate import by_entry
from fisher_jax.numerics.jaxprs import flatten

MOST_NODES = 100  # up to which numpy's have been tested
MOST_DIMENSIONS = 3  # of a quadrature: with nine nodes 729 points
WITHOUT_MODE = {  # what a joint density is likely to lack
    Status.STEP_LIMIT: "joint may rise without end; does it hold the log-density of the effects?",
    Status.SINGULAR_INFORMATION: "joint may not depend on an effect; does it hold the log-density of each?",
    Status.STALLED: "joint may have a kink in an effect, as abs has, or no maximum",
    Status.INDEFINITE: "the search ended between modes; give other numbers in effects, from which it starts",
}


class WithMode(NamedTuple):
    """The observations of one group, and the mode of its effects at the parameters where the density is evaluated."""

    observations: PyTree
    mode: Mode


class MarginalModel(Model):
    """A model made by `marginal`: an observation is a group, its log-density an integral over the effects of the group."""

    def made_from(self) -> tuple[str, tuple[Any, ...]]:
        """The joint density of a group and its effects."""
        return "marginal", (self.integral.joint,)

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
        """From (params, y, z) of one group to y with the mode of its effects; see `Model.with_modes`."""
        return self.integral.with_mode

    @property
    def num_latent(self) -> int:  # type: ignore[override]
        """How many effects a group has."""
        return len(self.integral.start)

    @property
    def effect_names(self) -> EntryNames:
        """Names of the entries of vectors among the effects, where they have names."""
        return ()

    def effects_of(self, params: PyTree, b: Float[Array, " q"]) -> PyTree:
        """The effects that the flat b stands for, as the joint density takes them."""
        return effects_in(self.integral.layout, b)

    def count_rows(self, data: PyTree, given: PyTree, weights: Any) -> float | None:
        """How many rows the groups have, where `by_group` has made them."""
        grouped = next((part for part in (given, data) if isinstance(part, Grouped)), None)
        if grouped is None:
            return None
        lengths = np.sum(np.asarray(grouped.weights), axis=-1)
        return float(np.sum(lengths if weights is None else lengths * np.asarray(weights)))

    def facts(self, params: PyTree) -> list[tuple[str, str]]:
        """How the effects are integrated."""
        integral = self.integral
        q, nodes = len(integral.start), integral.nodes
        by = "Laplace's approximation" if nodes == 1 else f"quadrature at {nodes**q} points"
        algebra = f" ({self.algebra})" if q > MOST_DIMENSIONS else ""
        return [("Latent effects", f"{q} of each group, by {by}{algebra}")]

    def explain(self, params: PyTree, y: PyTree, *z: PyTree) -> str:
        """Why the log-density of a group is not finite, in words."""
        mode = jax.jit(self.integral.mode)(params, y, *z)
        status = Status(int(mode.status))
        if status.converged:
            return ""
        cause = WITHOUT_MODE.get(status, "")
        return f"where the mode of the latent effects was not found ({status.label}{cause and f': {cause}'})"


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

    def of_effects(self, params: PyTree, y: PyTree, *z: PyTree) -> Callable[[Float[Array, " q"]], Float[Array, ""]]:
        """f(b) = log p(y, b; θ) of one group as a function of the flat effects."""
        check_arity(self.joint, ("params", "effects", "y", "z")[: 3 + len(z)], "joint")

        def f(b: Float[Array, " q"]) -> Float[Array, ""]:
            value = call_differentiable(self.joint, (params, effects_in(self.layout, b), y, *z), "joint")
            if not isinstance(value, bool | int | float | np.generic | np.ndarray | jax.Array):
                raise TypeError(
                    f"joint must return the log-density of a group, a number, but returned {kind_of(value)}."
                )
            if jnp.shape(value) != ():
                raise ValueError(
                    f"joint(params, effects, {'y, z' if z else 'y'}) must return a scalar for ONE group, the sum over its rows and "
                    f"effects, but returned shape {jnp.shape(value)}."
                )
            return jnp.asarray(value, b.dtype)

        return f

    def mode(self, params: PyTree, y: PyTree, *z: PyTree, begin: Float[Array, " q"] | None = None) -> Mode:
        """The mode of the effects of one group, without derivatives; see `Model.with_modes`."""
        start, params, y, z = self._prepare_search(params, y, z, begin)
        return find_mode(jax.jit(self.of_effects(params, y, *z)), start)

    def _prepare_search(
        self, params: PyTree, y: PyTree, z: tuple[PyTree, ...], begin: Float[Array, " q"] | None
    ) -> tuple[Float[Array, " q"], PyTree, PyTree, tuple[PyTree, ...]]:
        """The start of a search in the dtype of the parameters, and what these and the observations are without derivatives."""
        params, y, z = jax.tree.map(_without_derivative, (params, y, z))
        # Parameters may hold functions besides numbers.
        numbers = [leaf for leaf in jax.tree.leaves(params) if hasattr(leaf, "dtype") or isinstance(leaf, int | float)]
        dtypes = [leaf.dtype for leaf in map(jnp.asarray, numbers) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        dtype = jnp.result_type(*dtypes) if dtypes else jnp.asarray(0.0).dtype
        self._check_weights(params, y, z)
        start = jnp.asarray(self.start, dtype)
        return start if begin is None else jnp.where(jnp.isnan(begin), start, begin), params, y, z

    def _check_weights(self, params: PyTree, y: PyTree, z: tuple[PyTree, ...]) -> None:
        """Raise where rows that only fill up a group would count, since the joint density does not depend on their weights."""
        parts, treedef = jax.tree.flatten((y, z), is_leaf=lambda part: isinstance(part, Grouped))
        filled = [k for k, part in enumerate(parts) if isinstance(part, Grouped) and part.is_filled]
        if not filled:
            return

        def of_weights(weights: list[Array]) -> Array:
            of_part = dict(zip(filled, weights, strict=True))
            weighted = [part.with_weights(of_part[k]) if k in of_part else part for k, part in enumerate(parts)]
            y, z = jax.tree.unflatten(treedef, weighted)
            return self.of_effects(params, y, *z)(jnp.asarray(self.start))

        if not flatten(jax.make_jaxpr(of_weights)([parts[k].weights for k in filled]), keep_rules=True).uses_inputs():
            raise ValueError(
                "joint does not use the weights of the groups, so that rows which only fill up a group would count. Sum over the "
                "rows by y.total(terms), y being what by_group made, or multiply the terms by y.weights."
            )

    def with_mode(self, params: PyTree, y: PyTree, *z: PyTree, begin: Float[Array, " q"] | None = None) -> WithMode:
        """The observations of one group with the mode of its effects."""
        return WithMode(y, self.mode(params, y, *z, begin=begin))

    def __call__(self, params: PyTree, y: PyTree, *z: PyTree) -> Float[Array, ""]:
        num_steps = 2 if isinstance(y, WithMode) else 3
        y, mode = y if isinstance(y, WithMode) else self.with_mode(params, y, *z)
        # Traced once for all its uses below.
        f = jax.jit(self.of_effects(params, y, *z))
        mode = jax.lax.stop_gradient(mode)
        b, information = mode.effects, mode.information
        factor, gradient = linalg.factorize(information), jax.grad(f)
        if len(b) == 1:  # of one effect forward derivatives are the shorter program

            def gradient(b: Float[Array, " q"]) -> Float[Array, " q"]:
                return jax.jvp(f, (b,), (jnp.ones_like(b),))[1][None]

        # Derivatives by the data, too, go through these steps.
        for _ in range(num_steps):
            b = b + linalg.solve(factor, gradient(b))
        if len(b) == 1:
            (at_mode,), _, information = by_entry(lambda b: f(b)[None], b, None)
        else:
            at_mode, information = f(b), -jax.jacfwd(jax.jacfwd(f) if len(b) <= 3 else gradient)(b)
        value = _integrate(f, at_mode, b, information, self.nodes)
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
        group's rows come next, the same number in each. Where groups differ in size `by_group` fills them up, and `joint` gets a
        `Grouped`: the rows of the group are ``y.rows``, and ``y.total(terms)`` is the sum over them.

    Raises
    ------
    TypeError, ValueError
        If `joint` is not callable, there is no effect, or a quadrature has more than three dimensions.

    Notes
    -----
    The effects are found anew for each group at each parameter, by the step of `fit`, and derivatives by θ go through them
    exactly to the third order, of more than eight effects to the second. A fit needs the second; derivatives of its covariance
    are of the third. Where the search for a mode ends without a certificate the log-density is NaN: a fit then takes a shorter
    step, or ends with the status "bad start" or "not finite" and names the group.

    One mode is found, that to which the search leads from `effects` or, in the steps of a single fit, from the mode of the step
    before. Where the joint density has others it is that mode's contribution that counts. More nodes tell where modes overlap;
    where they lie apart, a fit with other numbers in `effects`, and the draws of `check_laplace`.

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
    >>> from jax.scipy.stats import norm
    >>> def joint(params, b, y):  # of Poisson counts, without the term log y!
    ...     log_rate = params["mean"] + params["sd"] * b
    ...     return jnp.sum(y * log_rate - jnp.exp(log_rate)) + norm.logpdf(b)
    >>> model = fj.marginal(joint, 0.0, nodes=9, constraints={"sd": fj.positive})
    >>> pairs = jnp.array([[3, 4], [0, 1], [7, 9], [2, 1], [5, 2], [1, 0]])
    >>> fit = fj.fit(model, {"mean": 0.0, "sd": 1.0}, pairs)
    >>> print(f"{fit.params['mean']:.2f} {fit.params['sd']:.2f} {fit.converged}")
    0.74 0.84 True
    """
    check_function(joint, "joint", "params, effects and y")
    nodes = check_count(nodes, 1, "nodes")
    if nodes > MOST_NODES:
        raise ValueError(f"nodes={nodes} must be at most {MOST_NODES}; 25 are enough for nearly any density.")
    layout, start = layout_of_effects(effects)
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


def layout_of_effects(effects: PyTree) -> tuple[Layout, tuple[float, ...]]:
    """The layout of a pytree of effects, and its numbers."""
    check_pytrees(effects=effects)
    expected = "expected numbers that name the effects and start the search for their mode, as {'intercept': 0.0}"
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(effects) if not isinstance(leaf, jax.core.Tracer)]
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(effects)):
        raise TypeError(f"effects is traced; {expected}, known when the model is made.")
    if sum(leaf.size for leaf in leaves) == 0:
        raise ValueError(f"effects={shown(effects)} holds no number; {expected}.")
    if any(leaf.dtype.kind not in "iuf" for leaf in leaves):
        raise TypeError(f"effects={shown(effects)}; {expected}.")
    if not all(np.all(np.isfinite(leaf)) for leaf in leaves):
        raise ValueError(f"effects={shown(effects)} is not finite; {expected}.")
    layout, values = layout_of(effects)
    return layout, tuple(np.asarray(layout.join(values), float).tolist())


def effects_in(layout: Layout, b: Float[Array, "*l q"]) -> PyTree:
    """The effects that the flat b holds, as a pytree."""
    return layout.constrain(b, [None] * len(layout.leaves))


def _without_derivative(leaf: Any) -> Any:
    return jax.lax.stop_gradient(leaf) if hasattr(leaf, "dtype") else leaf


def _integrate(
    f: Callable[[Array], Array],
    at_mode: Float[Array, ""],
    mode: Float[Array, " q"],
    information: Float[Array, "q q"],
    nodes: int,
) -> Float[Array, ""]:
    """log ∫ exp f by Gauss-Hermite quadrature at `nodes` points along each axis, about a mode of f and with its value there."""
    q = len(mode)
    if q > MOST_DIMENSIONS:
        return at_mode - 0.5 * _log_determinant(information) + 0.5 * q * math.log(2 * math.pi)
    lower, log_det = cholesky(information)
    if nodes == 1:
        return at_mode - 0.5 * log_det + 0.5 * q * math.log(2 * math.pi)
    points, weights = np.polynomial.hermite.hermgauss(nodes)
    log_weights = np.log(weights) + points**2
    grid = np.stack(np.meshgrid(*[points] * q, indexing="ij"), axis=-1).reshape(-1, q)
    log_weights = np.sum(np.meshgrid(*[log_weights] * q, indexing="ij"), axis=0).reshape(-1)
    offsets = jax.vmap(lambda x: _solve_transposed(lower, x))(math.sqrt(2) * grid.astype(mode.dtype))
    values = jax.vmap(f)(mode[None] + offsets) + log_weights.astype(mode.dtype)
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
