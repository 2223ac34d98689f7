"""From a model and its data to the problem in u that is maximised, with what is known of it in closed form."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fisher_jax.information import Scoring, has_closed_form, scoring_at, total_expected
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.likelihood import Likelihood, gradient_at, likelihood, terms_at
from fisher_jax.models.model import Model
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


def problem_of(model: Model, layout: Layout, values: Values, dataset: Dataset, start: Float[Array, " p"]) -> Problem:
    """What is to be maximised, in u. A start that is NaN lies outside its constraint."""
    target = likelihood(model, layout, values, dataset)
    scoring = functools.partial(scoring_of, model, layout, values, dataset, target)
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
    """How many observations there are, whatever their weight; an invalid one, NaN by now, is there as well."""
    if target.weights is None:
        return jnp.asarray(target.num_terms)
    return jnp.sum(target.weights != 0)


def total_information(
    model: Model, layout: Layout, values: Values, dataset: Dataset, target: Likelihood
) -> Array | None:
    """n I(θ) by the model's closed form, where it has one."""
    if not has_closed_form(model):
        return None
    return total_expected(model, layout, values, dataset.given, num_observations(target, layout), target.weights)


def scoring_of(
    model: Model, layout: Layout, values: Values, dataset: Dataset, target: Likelihood, free: Float[Array, " p"]
) -> Scoring:
    """What Fisher scoring needs at u: of a linked model in one pass, of another its gradient and Dᵀ n I D."""
    if model.information is None:
        return scoring_at(model, layout, values, target, dataset.given is not None, free)  # type: ignore[arg-type]
    terms, gradient = gradient_at(target, free)
    expected = total_information(model, layout, layout.constrained_values(free, values), dataset, target)
    jacobian = layout.jacobian(free)
    with jax.default_matmul_precision("highest"):
        return Scoring(terms, gradient, jacobian.T @ expected @ jacobian)


def unsound_at(target: Likelihood, free: Float[Array, " p"], finite_scores: Bool[Array, " n"]) -> Int[Array, ""]:
    """Index of the first observation whose log-density or score is not finite; −1 where there is none, or no start."""
    sound = finite_scores & jnp.isfinite(terms_at(target, free))
    started = jnp.all(jnp.isfinite(free))
    return jnp.where(jnp.all(sound) | ~started, -1, jnp.argmin(sound)).astype(jnp.int32)
