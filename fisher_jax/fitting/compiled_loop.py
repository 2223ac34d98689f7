"""One maximisation as one compiled loop, for `jit`, `vmap` and `grad`, and for fits after the first.

The step is that of `optimizers.newton`; any other optax transformation goes through `optimizers.optax_adapter`.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fisher_jax.fitting.covariance import KINDS
from fisher_jax.fitting.maximization import (
    HAND_OVER,
    Problem,
    Solution,
    certify,
    evaluate,
    first_not_finite,
    is_within,
    make_problem,
    next_start,
    start_at,
    total_information,
)
from fisher_jax.fitting.result import Fit
from fisher_jax.fitting.status import Status
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.likelihood import (
    at_modes,
    derivatives_at,
    gradient_at,
    likelihood,
    outer_product_at,
    terms_at,
    total_weight,
)
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.programs import jit_with_model
from fisher_jax.numerics import batched_linalg as lanes
from fisher_jax.numerics import linalg
from fisher_jax.optimizers.newton import Evaluation, Kind, Newton, advance, begin, trial


def maximize(problem: Problem, optimizer: Any, tolerance: Float[Array, ""], max_steps: Int[Array, ""]) -> Solution:
    """Run the optimiser from the start until it ends, and certify where that is."""

    def in_lanes(kind: Kind, u: Float[Array, " p"]) -> Evaluation:
        """The evaluation with vectors and matrices in the form of `numerics.batched_linalg`."""
        at = evaluate(problem, kind, u)
        return at._replace(gradient=lanes.vector(at.gradient), information=lanes.matrix(at.information))

    observed = functools.partial(in_lanes, "observed")

    def trip(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        """One evaluation and one step, by the optimiser's information, and in the end by the observed one."""
        state, steps_before, by_observed, _ = carry
        point = lanes.to_array(trial(state))
        if optimizer.kind == "observed":
            reached, aim = observed(point), tolerance
        else:
            reached = jax.lax.cond(by_observed, observed, functools.partial(in_lanes, optimizer.kind), point)
            aim = jnp.where(by_observed, tolerance, HAND_OVER)
        state, ended = advance(optimizer, state, reached, aim, 1.0, problem.restricted)
        steps = steps_before + state.count
        ended = ended | (steps >= max_steps)
        # Wherever scoring ends, near the maximum or for want of a step that gains, the observed information takes over and judges.
        hand_over = ~by_observed & (ended | is_within(state, HAND_OVER))
        point = lanes.select(hand_over, next_start(state, HAND_OVER), state.point)
        state = state._replace(point=point, count=jnp.where(hand_over, -1, state.count))  # a count of −1: begun afresh
        return state, jnp.where(hand_over, steps, steps_before), by_observed | hand_over, ended & by_observed

    broken: Any = False
    if isinstance(optimizer, Newton):
        by_observed, no = jnp.array(optimizer.kind == "observed"), jnp.array(False)
        begun = begin(lanes.vector(problem.start)), jnp.zeros((), jnp.int32), by_observed, no
        state, steps_before, *_ = jax.lax.while_loop(lambda carry: ~carry[3], trip, begun)
        num_steps = steps_before + jnp.maximum(state.count, 0)
    else:
        from fisher_jax.optimizers import optax_adapter  # here, since it imports optax, which takes long

        state, num_steps, broken = optax_adapter.maximize(
            optimizer,
            problem.start,
            lambda u: -jnp.sum(terms_at(problem.likelihood, u)),
            lambda u, kind: evaluate(problem, kind, u),
            jax.jit(observed),  # traced once for the loop and for the certificate
            tolerance,
            max_steps,
        )
    status = certify(
        state,
        lanes.vector(problem.start),
        problem.num_observed,
        tolerance,
        max_steps,
        problem.restricted,
        num_steps=num_steps,
        broken=broken,
    )
    last_step = jnp.where(jnp.isfinite(state.drift), lanes.to_array(state.step), 0.0)
    value, curvature = state.at.value + state.at.rounding, lanes.matrix_to_array(state.at.information)
    return Solution(lanes.to_array(state.point), value, curvature, last_step, state.decrement, num_steps, status)


def fit_function(model: Model, layout: Layout, optimizer: Any, *, differentiable: bool = True) -> Callable[..., Fit]:
    """A fit as a function of (values, dataset, tolerance, max_steps), to be jitted, mapped and differentiated.

    Its derivatives are those of the maximum, by the implicit function theorem: at ∇ℓ(u; x) = 0 with J = −∇²ℓ the estimate moves
    with the data and fixed parameters x as du = J⁻¹ (∂∇ℓ/∂x) dx, and everything else of a fit as a function of (u, x). They are
    NaN where the fit is not certified. JAX's caches would keep a rule for them, and the model with it, for as long as the process
    lives, so what is only ever called with numbers is made without (`differentiable`).
    """

    def at_estimate(u: Array, values: Values, dataset: Dataset) -> dict[str, Any]:
        """The entries of a fit that are differentiable functions of the estimate and the data."""
        # Without modes that are found before: the derivative of the curvature is of the third order (`latent.marginal`).
        target = likelihood(model, layout, values, dataset)._replace(with_modes=None)
        terms, _, curvature = derivatives_at(target, u)
        estimate = layout.constrained_values(u, values)
        return {
            "values": [x for x, leaf in zip(estimate, layout.leaves, strict=True) if not leaf.is_fixed],
            "log_likelihood": jnp.sum(terms),
            "num_observations": jnp.asarray(total_weight(target), layout.dtype),
            "free": u,
            "curvature": curvature,
            "outer_product": outer_product_at(target, u)[1],
            "expected": total_information(model, layout, estimate, dataset, target),
        }

    def run(values: Values, dataset: Dataset, tolerance: Any, max_steps: Any) -> dict[str, Any]:
        problem = make_problem(model, layout, values, dataset, start_at(layout, values))
        tolerance, max_steps = jnp.asarray(tolerance, layout.dtype), jnp.asarray(max_steps, jnp.int32)
        solution = maximize(problem, optimizer, tolerance, max_steps)
        target, started = at_modes(problem.likelihood, solution.free), jnp.all(jnp.isfinite(problem.start))
        reached = layout.constrained_values(solution.free, values)
        estimate = [jnp.where(started, new, old) for new, old in zip(reached, values, strict=True)]
        finite_scores, outer_product = outer_product_at(target, solution.free)
        suspect = first_not_finite(target, solution.free, finite_scores)
        return {
            "values": estimate,
            "log_likelihood": solution.log_likelihood,
            "status_code": solution.status,
            "num_steps": solution.num_steps,
            "decrement": solution.decrement,
            "num_observations": jnp.asarray(total_weight(target), layout.dtype),
            "free": solution.free,
            "curvature": solution.curvature,
            "outer_product": outer_product,
            "expected": total_information(model, layout, estimate, dataset, target),
            "suspect": suspect,
            "last_step": solution.last_step,
            "attempt": jnp.zeros((), jnp.int8),
        }

    if not differentiable:
        return lambda *arguments: Fit(**run(*arguments), layout=layout, kinds=KINDS)
    run = jax.custom_jvp(run)

    @run.defjvp
    def derivative(primals: Any, tangents: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        values, dataset, *_ = primals
        along = tangents[:2]
        fit = run(*primals)

        def gradient(values: Values, dataset: Dataset) -> Array:
            return gradient_at(likelihood(model, layout, values, dataset), fit["free"])[1]

        def no_tangent(leaf: Any) -> Any:
            floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
            return jnp.zeros_like(leaf) if floating else np.zeros(jnp.shape(leaf), jax.dtypes.float0)

        _, cross = jax.jvp(gradient, (values, dataset), along)
        certified = jnp.where(fit["status_code"] <= Status.CONVERGED_TO_ROUNDING, 1.0, jnp.nan).astype(cross.dtype)
        step = certified * linalg.solve(linalg.factorize(fit["curvature"]), cross)
        _, derivatives = jax.jvp(at_estimate, (fit["free"], values, dataset), (step, *along))
        estimated = iter(derivatives.pop("values"))
        values = [old if leaf.is_fixed else next(estimated) for old, leaf in zip(along[0], layout.leaves, strict=True)]
        return fit, {**jax.tree.map(no_tangent, fit), "values": values, **derivatives}

    return lambda *arguments: Fit(**run(*arguments), layout=layout, kinds=KINDS)


def fit_by_loop(
    model: Model, layout: Layout, optimizer: Any, values: Values, dataset: Dataset, tolerance: Any, max_steps: Any
) -> Fit:
    """The fit by a compiled loop, in arrays of numpy."""
    packed = _packed_fit(model, layout, optimizer, values, dataset, tolerance, max_steps)
    vectors = {dtype: np.asarray(vector) for dtype, vector in packed.vectors.items()}
    leaves = [vectors[d][at : at + math.prod(shape)].reshape(shape) for d, at, shape in packed.places]
    fit: Fit = jax.tree.unflatten(packed.treedef, leaves)
    return replace(fit, engine="loop")


@functools.partial(jax.tree_util.register_dataclass, data_fields=["vectors"], meta_fields=["treedef", "places"])
@dataclass(frozen=True)
class _Packed:
    """A pytree of small arrays as one vector for each dtype: on its way to the host each array takes as long as a small fit."""

    vectors: dict[str, Any]
    treedef: Any
    places: tuple[tuple[str, int, tuple[int, ...]], ...]  # dtype, first entry and shape of each leaf


@functools.partial(jit_with_model, static_argnums=(0, 1, 2), level=1)
def _packed_fit(
    model: Model, layout: Layout, optimizer: Any, values: Values, dataset: Dataset, tolerance: Any, max_steps: Any
) -> _Packed:
    function = fit_function(model, layout, optimizer, differentiable=False)
    leaves, treedef = jax.tree.flatten(function(values, dataset, tolerance, max_steps))
    parts: dict[str, list[Array]] = {}
    places = []
    for leaf in map(jnp.asarray, leaves):
        part = parts.setdefault(str(leaf.dtype), [])
        places.append((str(leaf.dtype), sum(other.size for other in part), leaf.shape))
        part.append(leaf.reshape(-1))
    return _Packed({dtype: jnp.concatenate(part) for dtype, part in parts.items()}, treedef, tuple(places))
