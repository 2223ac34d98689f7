"""Data sets drawn from a model at given parameters, a chunk at a time: the t-th is the same whatever the chunk."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from fisher_jax.blocks import blocks_of
from fisher_jax.errors import check_count, check_key, check_pytrees
from fisher_jax.information.draws import terms_per_draw
from fisher_jax.information.expectations import MonteCarlo
from fisher_jax.information.expected import check_point
from fisher_jax.models.drawing import check_sampler, draw_data_sets
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Values


@dataclass(frozen=True)
class Experiment:
    """What is drawn from: a model at its parameters, and how many observations with which covariates a data set has.

    `num_observations` are terms of the log-likelihood; `given` has a row for each of them, or is that of a whole series;
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
    def truth(self) -> np.ndarray:
        """The same as θ, (q,)."""
        return np.asarray(self.layout.join(self.values), float)


def experiment_of(model: Any, params: PyTree, given: PyTree, num_observations: Any) -> Experiment:
    """Check what is to be drawn from; the rows of `given` are repeated whole times where more observations are asked for."""
    check_pytrees(params=params, given=given)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((params, given))):
        raise TypeError("runs on the host and cannot be called under jit, vmap or grad. Call it outside.")
    model, layout, values, given = check_point(model, params, given)
    check_sampler(model)
    if model.is_dependent:
        return Experiment(model, layout, values, given, given, _terms(model, layout, values, given, num_observations))
    rows = None if given is None else jax.tree.leaves(given)[0].shape[0]
    if num_observations is None and rows is not None:
        return Experiment(model, layout, values, given, given, rows)
    n = check_count(num_observations, 1, "num_observations")
    if rows is not None and n % rows:
        raise ValueError(
            f"num_observations={n} is no multiple of the {rows} rows of given, which are the design that is "
            f"repeated. Give {rows} or a multiple, or other rows."
        )
    return Experiment(model, layout, values, _repeated(given, 1 if rows is None else n // rows), given, n)


def _repeated(given: PyTree, times: int) -> PyTree:
    if times == 1:
        return given
    return jax.tree.map(lambda leaf: np.tile(np.asarray(leaf), (times,) + (1,) * (leaf.ndim - 1)), given)


def _terms(model: Model, layout: Layout, values: Values, given: PyTree, wanted: Any) -> int:
    """How long a series the sampler of a dependent model draws."""
    n = terms_per_draw(model, layout, values, MonteCarlo(jax.random.key(0), 2), given)
    if wanted is not None and check_count(wanted, 1, "num_observations") != n:
        raise ValueError(
            f"num_observations={wanted}, but the sampler of this dependent model draws series of {n} terms. Leave it "
            "out, or give a sampler that draws longer ones."
        )
    return n


def check_numbers(numbers: Any) -> tuple[Any, ...]:
    """One number of observations, or several."""
    if numbers is None:
        return (None,)
    found = tuple(np.ravel(np.asarray(numbers, dtype=object)))
    if not found:
        raise ValueError("num_observations is empty; give one number or several.")
    return tuple(check_count(number, 1, "num_observations") for number in found)


def data_sets_of(experiment: Experiment, key: Any, num_replicates: int) -> Iterator[PyTree]:
    """All data sets in chunks, each leaf (c, n, …) or for series (c, …), as numpy arrays."""
    check_key(key)
    rows = 0 if experiment.model.is_dependent else experiment.num_observations
    drawn = functools.partial(
        draw_data_sets, experiment.model, experiment.layout, experiment.values, experiment.given, rows, key
    )
    one = jax.eval_shape(drawn, jax.ShapeDtypeStruct((1,), np.int32))
    for numbers in blocks_of(num_replicates, sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(one))):
        left = num_replicates - int(numbers[0])
        yield jax.tree.map(lambda leaf, left=left: np.asarray(leaf[:left]), drawn(numbers))
