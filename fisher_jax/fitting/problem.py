"""From a model and its data to the problem in u that is maximised, with what is known of it in closed form."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fisher_jax.information import Scoring, has_closed_form, scoring_at, total_expected
from fisher_jax.models.likelihood import Likelihood, gradient_at, likelihood
from fisher_jax.models.model import Model, Sample
from fisher_jax.models.parameters import Layout, Values

Expected = Callable[[Float[Array, " p"]], tuple[Float[Array, " n"], Float[Array, " p"], Float[Array, "p p"]]]


class Problem(NamedTuple):
    """What is maximised: a likelihood of a flat vector, where to start, and what is known about it.

    `restricted` says of each entry of u whether a constraint made it. `expected` gives the terms, their gradient and the
    expected information at once, where there is a closed form.
    """

    likelihood: Likelihood
    start: Float[Array, " p"]
    restricted: tuple[bool, ...]
    num_observed: Int[Array, ""]
    expected: Expected | None


def problem_of(
    model: Model, layout: Layout, values: Values, sample: Sample, start: Float[Array, " p"], caller: str
) -> Problem:
    """What is to be maximised, in u. A start that is NaN lies outside its constraint."""
    target = likelihood(model, layout, values, sample, caller)
    scoring = functools.partial(scoring_of, model, layout, values, sample, target)
    return Problem(
        target,
        start,
        tuple(bool(r) for r in layout.restricted),
        num_observed(target),
        scoring if has_closed_form(model) else None,
    )


def checked_start(layout: Layout, values: Values) -> Float[Array, " p"]:
    """u at the start; NaN where a start known only at run time lies outside its constraint."""
    inside = jnp.all(jnp.stack([jnp.asarray(test) for test in layout.contains(values)]))
    return jnp.where(inside, layout.unconstrain(values), jnp.nan)


def num_observations(target: Likelihood, layout: Layout) -> Array:
    """n: the number of terms, or the sum of their weights."""
    if target.weights is None:
        return jnp.asarray(target.num_terms, layout.dtype)
    return jnp.sum(target.weights)


def num_observed(target: Likelihood) -> Array:
    """How many observations there are, whatever their weight."""
    if target.weights is None:
        return jnp.asarray(target.num_terms)
    return jnp.sum(target.weights > 0)


def total_information(model: Model, layout: Layout, values: Values, sample: Sample, target: Likelihood) -> Array | None:
    """n I(θ) by the model's closed form, where it has one."""
    if not has_closed_form(model):
        return None
    return total_expected(model, layout, values, sample.given, num_observations(target, layout), target.weights)


def scoring_of(
    model: Model, layout: Layout, values: Values, sample: Sample, target: Likelihood, free: Float[Array, " p"]
) -> Scoring:
    """What Fisher scoring needs at u: of a linked model in one pass, of another its gradient and Dᵀ n I D."""
    if model.information is None:
        return scoring_at(model, layout, values, target, sample.given is not None, free)  # type: ignore[arg-type]
    terms, gradient = gradient_at(target, free)
    expected = total_information(model, layout, layout.constrained_values(free, values), sample, target)
    jacobian = layout.jacobian(free, values)
    with jax.default_matmul_precision("highest"):
        return Scoring(terms, gradient, jacobian.T @ expected @ jacobian)  # type: ignore[operator]
