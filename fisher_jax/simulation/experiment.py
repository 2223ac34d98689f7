"""Data sets drawn from a model at given parameters, a block at a time: the k-th is the same whatever the block."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.blocks import blocks_of
from fisher_jax.errors import check_count, check_key, check_pytrees
from fisher_jax.information.draw_pairs import terms_per_draw
from fisher_jax.information.expectations import MonteCarlo
from fisher_jax.information.fisher_information import check_point
from fisher_jax.models.drawing import check_sampler, draw_data_sets
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Values


@dataclass(frozen=True)
class Experiment:
    """A model at its parameters, and the number of observations and the covariates of each data set.

    `num_observations` counts terms of the log-likelihood. `given` has a row for each of them, or belongs to a whole series;
    `covariates` are its rows before they were repeated.
    """

    model: Model
    layout: Layout
    values: Values
    given: PyTree
    covariates: PyTree
    num_observations: int

    @property
    def params(self) -> PyTree:
        """The parameters that the data are drawn at."""
        return self.layout.assemble(self.values)

    @property
    def truth(self) -> Float[np.ndarray, " q"]:
        """The same as θ."""
        return np.asarray(self.layout.join(self.values), float)


def make_experiment(model: Any, params: PyTree, given: PyTree, num_observations: Any) -> Experiment:
    """Check the arguments; repeat the rows of `given` as whole copies up to the number of observations."""
    check_pytrees(params=params, given=given)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((params, given))):
        raise TypeError("runs on the host and cannot be called under jit, vmap or grad. Call it outside.")
    model, layout, values, given = check_point(model, params, given)
    check_sampler(model, given)
    if model.is_dependent:
        # The sampler alone decides how long a series is.
        n = terms_per_draw(model, layout, values, MonteCarlo(jax.random.key(0), 2), given)
        if num_observations is not None and check_count(num_observations, 1, "num_observations") != n:
            raise ValueError(
                f"num_observations={num_observations}, but the sampler of this dependent model draws series of {n} terms. "
                "Leave it out, or give a sampler that draws longer ones."
            )
        return Experiment(model, layout, values, given, given, n)
    rows = None if given is None else jax.tree.leaves(given)[0].shape[0]
    if num_observations is None and rows is not None:
        return Experiment(model, layout, values, given, given, rows)
    n = check_count(num_observations, 1, "num_observations")
    if rows is None or n == rows:
        return Experiment(model, layout, values, given, given, n)
    if n % rows:
        raise ValueError(
            f"num_observations={n} is not a multiple of the {rows} rows of given, which are the design that is "
            f"repeated. Give {rows} or a multiple, or other rows."
        )
    repeated = jax.tree.map(lambda leaf: np.tile(np.asarray(leaf), (n // rows,) + (1,) * (leaf.ndim - 1)), given)
    return Experiment(model, layout, values, repeated, given, n)


def check_sizes(num_observations: Any) -> tuple[int | None, ...]:
    """One number of observations or several, as a tuple; None stands for the number of rows of `given`."""
    if num_observations is None:
        return (None,)
    sizes = np.ravel(np.asarray(num_observations, dtype=object))
    if not len(sizes):
        raise ValueError("num_observations is empty; give one number or several.")
    return tuple(check_count(size, 1, "num_observations") for size in sizes)


def draw_blocks(experiment: Experiment, key: Any, num_replicates: int) -> Iterator[PyTree]:
    """All data sets in blocks, each leaf (c, n, …) or for series (c, …), as numpy arrays."""
    check_key(key)
    rows = 0 if experiment.model.is_dependent else experiment.num_observations
    draw = functools.partial(
        draw_data_sets, experiment.model, experiment.layout, experiment.values, experiment.given, rows, key
    )
    shapes = jax.tree.leaves(jax.eval_shape(draw, jax.ShapeDtypeStruct((1,), np.int32)))
    for numbers in blocks_of(num_replicates, sum(int(np.prod(leaf.shape)) for leaf in shapes)):
        # The last block is drawn in full, so that one program serves all of them.
        remaining = num_replicates - int(numbers[0])
        yield jax.tree.map(lambda leaf, remaining=remaining: np.asarray(leaf[:remaining]), draw(numbers))


def key_for_other_draws(key: Any) -> Array:
    """A key for all other draws (of the information, of a bootstrap), which no data set has."""
    return jax.random.fold_in(key, 2**32 - 1)
