"""Data drawn from a model at given parameters: the k-th data set is the same in whatever block it is drawn."""

import functools

import jax
from jaxtyping import Array, Int, PyTree

from fisher_jax.errors import call_user
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.programs import jit_with_model

_DRAWS_AT_ONCE = 2**14  # a sampler that rejects waits for the slowest of them


def check_sampler(model: Model) -> None:
    """Raise where the model has no sampler."""
    if model.sample is None:
        raise ValueError(
            "draws from the model, which has no sampler. Give Model(…, sample=function(key, params)), one draw of y."
        )


@functools.partial(jit_with_model, static_argnums=(0, 1, 4), level=1)
def draw_data_sets(
    model: Model, layout: Layout, values: Values, given: PyTree, rows: int, key: Array, numbers: Int[Array, " r"]
) -> PyTree:
    """Data sets (R, n, …) with these numbers, each from a key of its own; series (R, …) from a dependent model."""
    params = layout.assemble(values)
    also = () if given is None else (given,)

    def from_key(key: Array, *z: PyTree) -> PyTree:
        return call_user(model.sample, (key, params, *z), "sample")  # type: ignore[arg-type]

    def one(number: Array) -> PyTree:
        own_key = jax.random.fold_in(key, number)
        if model.is_dependent:
            return from_key(own_key, *also)
        return jax.vmap(from_key)(jax.random.split(own_key, rows), *also)

    return jax.lax.map(one, numbers, batch_size=max(1, min(numbers.shape[0], _DRAWS_AT_ONCE // max(rows, 1))))
