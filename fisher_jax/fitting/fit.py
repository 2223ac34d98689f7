"""The front door: `fit`."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from fisher_jax.errors import check_pytrees, entry_point, is_number, shown
from fisher_jax.fitting import host
from fisher_jax.fitting.covariance import KINDS
from fisher_jax.fitting.problem import (
    Problem,
    checked_start,
    num_observations,
    problem_of,
    total_information,
    unsound_at,
)
from fisher_jax.fitting.program import Solution, default_tolerance, maximise
from fisher_jax.fitting.result import ARRAYS, Fit, Origin
from fisher_jax.fitting.status import Status
from fisher_jax.models.dataset import Dataset, check_dataset
from fisher_jax.models.likelihood import derivatives_at, gradient_at, likelihood, outer_product_at
from fisher_jax.models.model import Model, as_model, check_start, flatten_parameters, starting_parameters
from fisher_jax.models.parameters import Layout, Values, typed
from fisher_jax.models.programs import jit_with_model
from fisher_jax.numerics import linalg
from fisher_jax.numerics.array_namespace import is_traced
from fisher_jax.optimizers import newton
from fisher_jax.optimizers.newton import Newton

NEWTON_STEPS = 1000  # a curved valley takes hundreds (NIST: Bennett5, MGH17)
FOREIGN_STEPS = 10_000
LARGEST_TOLERANCE = Newton().near_below  # a maximum is certified by a near step


@entry_point
def fit(
    model: Any,
    params: PyTree,
    data: PyTree,
    *,
    given: PyTree = None,
    weights: Any = None,
    optimizer: Any = None,
    tolerance: float | Array | None = None,
    max_steps: float | int | Array | None = None,
    starts: Any = None,
    key: Any = None,
) -> Fit:
    """Fit a model by maximum likelihood: maximise ℓ(θ) = Σ wᵢ log p(yᵢ; θ) over the constrained parameters.

    Parameters
    ----------
    model : Model or callable
        A model, or a bare log-density ``log_density(params, y)``, or ``log_density(params, y, z)`` with `given`.
    params : pytree, or None
        Starting values, strictly inside their constraints; `None` uses the model's `initial`. Their dtype is the precision
        of the fit: float32 only if every leaf is; Python numbers take JAX's default (float64 where x64 is enabled).
    data : pytree
        The observations, each leaf with a leading axis of length n. Rows are taken in their order: what comes from pandas must
        have the same index in `data`, `given` and `weights`. A row with an entry that is masked (`numpy.ma`), here or in `given`,
        gets weight zero; `summary` says how many these are.
    given : pytree, optional
        Covariates with the same leading axis. A data frame counts as a matrix, its columns side by side.
    weights : array (n,), optional
        Frequency weights: an observation of weight w counts as w equal ones, zero leaves it out, whatever it holds.
    optimizer : optax.GradientTransformation, optional
        Default `optimizers.newton()`. Any optax transformation will do; make it once and pass the same object again,
        since a new one compiles anew.
    tolerance : float, optional
        Stop when the decrement is below this many standard errors (of the weighted sample, if there are weights), at most
        0.1; default √ε, 1.5e-8 in float64 and 3.5e-4 in float32. Another's optimiser is looked at every 25 steps.
    max_steps : int, optional
        Default 1 000, or 10 000 for an optimiser that is not one of fisher_jax's.
    starts : int, or pytree, optional
        Fit from several starts at once and return the fit with the highest log-likelihood among the certified ones; its
        `optima` are all maxima that were found. A number: `params`, and others drawn about it on the unconstrained scale,
        normal with a standard deviation of one, or of |u| where that is larger and no constraint applies. Or starting
        parameters, each leaf with a leading axis over the starts.
    key : jax.random.key, optional
        What a number of starts is drawn with.

    Returns
    -------
    Fit
        Whatever happened; `status` says what. The status comes from the decrement and the definiteness of the observed
        curvature at the end, whichever optimiser was used.

    Raises
    ------
    ValueError, TypeError
        If the arguments do not fit together, or a start lies outside its constraint. Numerical trouble never raises.

    Notes
    -----
    Compiled once for each density, optimiser and set of shapes; starts, data, tolerance and max_steps are free to change, and up
    to some ten thousand rows the number of observations and which parameters are fixed as well. Cost: some ten evaluations of
    ℓ, its gradient and Hessian. Near the maximum the step is Newton's; see `optimizers.newton`. Constraints are obeyed by
    maximising over unconstrained u; the covariance is that of θ.

    A fit is a function of the data, covariates, weights and fixed parameters: `jax.jvp` and `jax.grad` through it, and through its
    covariances, give the derivatives of the maximum by the implicit function theorem, NaN where the fit is not certified.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> from jax.scipy.stats import norm
    >>> def log_density(params, y):
    ...     return norm.logpdf(y, params["loc"], params["scale"])
    >>> model = fj.Model(log_density, constraints={"scale": fj.positive})
    >>> fit = fj.fit(model, {"loc": 0.0, "scale": 1.0}, jnp.array([1.0, 2.0, 3.0, 6.0]))
    >>> print(f"{fit.params['loc']:.2f} {fit.params['scale']:.2f} {fit.converged}")
    3.00 1.87 True
    """
    model = as_model(model)
    check_pytrees(data=data, given=given, weights=weights)
    dataset = check_dataset(model, data, given, weights)
    params = starting_parameters(model, params, dataset.data, dataset.given)
    layout, values = flatten_parameters(model, params)
    if layout.num_free == 0:
        raise ValueError("every parameter is fixed, so there is nothing to estimate. Use log_likelihood.")
    check_start(layout, values)
    if tolerance is None:
        tolerance = default_tolerance(layout.dtype)
    check_stopping(tolerance, max_steps)
    optimizer = newton() if optimizer is None else optimizer
    check_optimizer(optimizer)
    if max_steps is None:
        max_steps = default_steps(optimizer)
    values = typed(layout, values)
    if starts is not None:
        if is_traced(values, dataset, tolerance, max_steps, starts):
            raise TypeError(
                "several starts are compared on the host, so not under jit, vmap or grad. Map fit over them."
            )
        from fisher_jax.fitting.optima import fit_from_starts

        best = fit_from_starts(model, layout, values, dataset, optimizer, tolerance, int(max_steps), starts, key)
        return replace(best, origin=Origin(model, dataset), num_masked=dataset.num_masked)
    traced = is_traced(values, dataset, tolerance, max_steps)
    found: Fit | None = None
    if isinstance(optimizer, Newton) and not traced:
        try:
            found = host.fit(model, layout, optimizer, values, dataset, tolerance, int(max_steps))
        except host.ClosesOverTraced:
            traced = True
    if traced:
        found = fit_function(model, layout, optimizer)(values, dataset, tolerance, max_steps)
        return replace(found, num_masked=dataset.num_masked)
    if found is None:
        packed = _loop(model, layout, optimizer, values, dataset, tolerance, max_steps)
        found = replace(packed.unpack(), engine="loop")
    return replace(found, origin=Origin(model, dataset), num_masked=dataset.num_masked)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["vectors"], meta_fields=["treedef", "places"])
@dataclass(frozen=True)
class _Packed:
    """A pytree of small arrays as one vector for each dtype: on its way to the host each array takes as long as a small fit."""

    vectors: dict[str, Any]
    treedef: Any
    places: tuple[tuple[str, int, tuple[int, ...]], ...]  # dtype, first entry and shape of each leaf

    @classmethod
    def of(cls, tree: PyTree) -> "_Packed":
        leaves, treedef = jax.tree.flatten(tree)
        parts: dict[str, list[Array]] = {}
        places = []
        for leaf in map(jnp.asarray, leaves):
            part = parts.setdefault(str(leaf.dtype), [])
            places.append((str(leaf.dtype), sum(other.size for other in part), leaf.shape))
            part.append(leaf.reshape(-1))
        return cls({dtype: jnp.concatenate(part) for dtype, part in parts.items()}, treedef, tuple(places))

    def unpack(self) -> PyTree:
        """The pytree, with arrays of numpy."""
        vectors = {dtype: np.asarray(vector) for dtype, vector in self.vectors.items()}
        leaves = [vectors[d][at : at + math.prod(shape)].reshape(shape) for d, at, shape in self.places]
        return jax.tree.unflatten(self.treedef, leaves)


@functools.partial(jit_with_model, static_argnums=(0, 1, 2), level=1)
def _loop(
    model: Model, layout: Layout, optimizer: Any, values: Values, dataset: Dataset, tolerance: Any, max_steps: Any
) -> _Packed:
    return _Packed.of(
        fit_function(model, layout, optimizer, differentiable=False)(values, dataset, tolerance, max_steps)
    )


def check_optimizer(optimizer: Any) -> None:
    """Raise for what is not an optax transformation."""
    if isinstance(optimizer, type) or not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(f"optimizer must be an optax transformation such as optax.lbfgs(), got {shown(optimizer)}.")


def check_stopping(tolerance: Any, max_steps: Any) -> None:
    """Raise for a tolerance that cannot be certified, or an invalid number of steps."""
    if tolerance is not None and not isinstance(tolerance, jax.core.Tracer):
        if not is_number(tolerance):
            raise TypeError(f"tolerance={shown(tolerance)} must be a number, a distance in standard errors.")
        if not 0 < tolerance <= LARGEST_TOLERANCE:
            raise ValueError(
                f"tolerance={tolerance} must be positive and at most {LARGEST_TOLERANCE}: "
                "it is a distance in standard errors."
            )
    if max_steps is None or isinstance(max_steps, jax.core.Tracer):
        return
    if not is_number(max_steps) or not 0 <= max_steps < 2**31 or int(max_steps) != max_steps:
        raise ValueError(f"max_steps={shown(max_steps)} must be a whole number from 0 to 2**31 - 1.")


def fit_function(model: Model, layout: Layout, optimizer: Any, *, differentiable: bool = True) -> Callable[..., Fit]:
    """A fit as a function of (values, dataset, tolerance, max_steps), to be jitted, mapped and differentiated.

    Its derivatives are those of the maximum, by the implicit function theorem: at ∇ℓ(u; x) = 0 with J = −∇²ℓ the estimate moves
    with the data and fixed parameters x as du = J⁻¹ (∂∇ℓ/∂x) dx, and everything else of a fit as a function of (u, x). They are
    NaN where the fit is not certified. JAX's caches would keep a rule for them, and the model with it, for as long as the process
    lives, so what is only ever called with numbers is made without (`differentiable`).
    """

    def run(values: Values, dataset: Dataset, tolerance: Any, max_steps: Any) -> dict[str, Any]:
        problem = problem_of(model, layout, values, dataset, checked_start(layout, values))
        found = maximise(problem, optimizer, jnp.asarray(tolerance, layout.dtype), jnp.asarray(max_steps, jnp.int32))
        fit = record(model, layout, values, dataset, problem, found, KINDS)
        return {name: getattr(fit, name) for name in ARRAYS}

    if not differentiable:
        return lambda *arguments: Fit(**run(*arguments), layout=layout, kinds=KINDS)
    run = jax.custom_jvp(run)

    @run.defjvp
    def derivative(primals: Any, tangents: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        values, dataset, *_ = primals
        arrays = run(*primals)
        fit = Fit(**arrays, layout=layout, kinds=KINDS)
        along = tangents[:2]

        def gradient(values: Values, dataset: Dataset) -> Array:
            return gradient_at(likelihood(model, layout, values, dataset), fit.free)[1]

        def described(u: Array, values: Values, dataset: Dataset) -> dict[str, Any]:
            target = likelihood(model, layout, values, dataset)
            terms, _, curvature = derivatives_at(target, u)
            estimate = layout.constrained_values(u, values)
            return {
                "values": [x for x, leaf in zip(estimate, layout.leaves, strict=True) if not leaf.is_fixed],
                "log_likelihood": jnp.sum(terms),
                "num_observations": num_observations(target, layout),
                "free": u,
                "curvature": curvature,
                "outer_product": outer_product_at(target, u)[1],
                "expected": total_information(model, layout, estimate, dataset, target),
            }

        _, cross = jax.jvp(gradient, (values, dataset), along)
        certified = jnp.where(fit.status_code <= Status.CONVERGED_TO_ROUNDING, 1.0, jnp.nan).astype(cross.dtype)
        step = certified * linalg.solve(linalg.factorise(fit.curvature), cross)
        _, found = jax.jvp(described, (fit.free, values, dataset), (step, *along))
        estimated = iter(found.pop("values"))
        zero = jax.tree.map(_no_tangent, arrays)
        values = [old if leaf.is_fixed else next(estimated) for old, leaf in zip(along[0], layout.leaves, strict=True)]
        return arrays, {**zero, "values": values, **found}

    return lambda *arguments: Fit(**run(*arguments), layout=layout, kinds=KINDS)


def _no_tangent(leaf: Any) -> Any:
    floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    return jnp.zeros_like(leaf) if floating else np.zeros(jnp.shape(leaf), jax.dtypes.float0)


def record(
    model: Model,
    layout: Layout,
    values: Values,
    dataset: Dataset,
    problem: Problem,
    found: Solution,
    kinds: tuple[str, ...],
) -> Fit:
    """What is kept of a solution: what the covariances of these kinds need, so that they need no data.

    The first observation whose score is not finite is searched for only where the scores are taken for a covariance.
    """
    target, started = problem.likelihood, jnp.all(jnp.isfinite(problem.start))
    reached = layout.constrained_values(found.free, values)
    estimate = [jnp.where(started, new, old) for new, old in zip(reached, values, strict=True)]
    suspect, outer_product = jnp.int32(-1), None
    if {"empirical", "sandwich"} & set(kinds):
        finite_scores, outer_product = outer_product_at(target, found.free)
        suspect = unsound_at(target, found.free, finite_scores)
    return Fit(
        values=estimate,
        log_likelihood=found.log_likelihood,
        status_code=found.status,
        num_steps=found.num_steps,
        decrement=found.decrement,
        num_observations=num_observations(target, layout),
        free=found.free,
        curvature=found.curvature if {"observed", "sandwich"} & set(kinds) else None,
        outer_product=outer_product,
        expected=total_information(model, layout, estimate, dataset, target) if "expected" in kinds else None,
        suspect=suspect,
        last_step=found.last_step,
        attempt=jnp.zeros((), jnp.int8),
        layout=layout,
        kinds=tuple(kind for kind in KINDS if kind in kinds),
    )


def default_steps(optimizer: Any) -> int:
    """How many steps an optimiser may take where the user does not say."""
    return NEWTON_STEPS if isinstance(optimizer, Newton) else FOREIGN_STEPS
