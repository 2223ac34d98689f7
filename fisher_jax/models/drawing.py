"""Data sets drawn from a model at given parameters. The k-th is the same whatever block it is drawn in."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from fisher_jax.blocks import vmap_in_blocks
from fisher_jax.errors import call_user
from fisher_jax.models.auxiliary import AuxiliaryModel, same_in_every_row
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.programs import jit_with_model

_DRAWS_AT_ONCE = 2**14  # under vmap a rejection sampler runs as long as the slowest draw


def check_sampler(model: Model, given: PyTree) -> None:
    """Raise where the model has no sampler, or none for these covariates."""
    if isinstance(model, AuxiliaryModel) and model.base.sample is not None and model.draw_auxiliary is None:
        raise ValueError(
            "draws from the model, and its auxiliary measurement has no sampler. Give with_auxiliary(…, sample=function(key, "
            "params)), one draw of it."
        )
    if model.sample is None:
        raise ValueError(f"draws from the model, which has no sampler. {model.how_to_draw}")
    model.check_draws(given)


def draw_measured(
    model: AuxiliaryModel, layout: Layout, values: Values, key: Array, numbers: Int[np.ndarray, " r"]
) -> PyTree:
    """Auxiliary measurements (R, …) with these numbers, beside other draws with the same key."""
    params, key = layout.assemble(values), jax.random.fold_in(key, 2**32 - 2)

    def draw(number: Array) -> PyTree:
        drawn = call_user(
            model.draw_auxiliary,  # type: ignore[arg-type]
            (jax.random.fold_in(key, number), params),
            "sample of the auxiliary measurement",
        )
        return jax.tree.map(jnp.asarray, drawn)

    return jax.device_get(jax.vmap(draw)(jnp.asarray(numbers)))


@functools.partial(jit_with_model, static_argnums=(0, 1, 4), level=1)
def draw_data_sets(
    model: Model, layout: Layout, values: Values, given: PyTree, rows: int, key: Array, numbers: Int[Array, " r"]
) -> PyTree:
    """The data sets (R, n, …) with these numbers, each from its key `fold_in(key, number)`; series (R, …) of a dependent model."""
    params = layout.assemble(values)
    covariates = () if given is None else (given,)

    def draw(key: Array, *z: PyTree) -> PyTree:
        return call_user(model.sample, (key, params, *z), "sample")  # type: ignore[arg-type]

    def draw_data_set(number: Array) -> PyTree:
        key_of_set = jax.random.fold_in(key, number)
        if model.is_dependent:
            return draw(key_of_set, *covariates)
        drawn = jax.vmap(draw)(jax.random.split(key_of_set, rows), *covariates)
        return drawn if model.auxiliary is None else same_in_every_row(drawn)

    return vmap_in_blocks(draw_data_set, numbers, _DRAWS_AT_ONCE // max(rows, 1))
