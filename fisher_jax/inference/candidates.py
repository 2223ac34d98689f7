"""Covariates that a model does not have, each tested by the score along it: derivatives once, then products of matrices."""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.errors import call_user, to_numpy
from fisher_jax.fitting.each import with_data
from fisher_jax.fitting.maximization import scoring_of
from fisher_jax.fitting.result import Fit, origin_of
from fisher_jax.inference.score import score_statistic
from fisher_jax.inference.score_statistic import Nuisance, Tested
from fisher_jax.information.closed_form import predicted
from fisher_jax.input_arrays import check_unmasked
from fisher_jax.models.constraints import Interval, Unconstrained
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.likelihood import derivatives_at, gradient_at, likelihood, outer_product_at, scores_at
from fisher_jax.models.linked import LinkedModel
from fisher_jax.models.model import Model, check_arity
from fisher_jax.models.parameters import Leaf, layout_of
from fisher_jax.models.programs import ById

ENTRIES = 2**24  # entries of candidates worked on at once


class Rows(NamedTuple):
    """For each observation, weighted: the slope along an offset, minus the second derivative, and that with each of u."""

    slope: Float[Array, " n"]
    bend: Float[Array, " n"]
    cross: Float[Array, "n p"]
    square: Float[Array, " n"]  # w slope²
    cross_square: Float[Array, "n p"]  # w slope × scores
    counted: Array


def candidate_statistics(fit: Any, candidates: Any, enters: Any, kind: str) -> tuple[Any, int]:
    """The statistics (K,) of all candidates, with a leading axis for a batch, and their degrees of freedom."""
    check_unmasked(candidates, lambda: "candidates", "Fill in what is missing, or leave the candidate out.")
    columns = to_numpy(candidates, "candidates")
    if columns.ndim not in (2, 3) or columns.dtype.kind not in "biuf" or not columns.size:
        raise ValueError(
            f"candidates has dtype {columns.dtype} and shape {columns.shape}; expected numbers (n, K), one "
            "column for each candidate, or (n, K, m) for groups of m."
        )
    columns = columns[:, :, None] if columns.ndim == 2 else columns
    model = origin_of(fit).model
    if model.is_dependent:
        raise ValueError(
            "candidates need a log-density of one observation, and the terms of a dependent model may each "
            "depend on all of a covariate. Put the covariate in the model with an effect held fixed at zero, and free it."
        )
    where = _where(model, enters)
    nuisance, rows, off = with_data(fit, _Derivatives(where, kind))
    farthest = np.nanmax(np.append(off, 0.0))  # a fit that failed may have none
    if farthest > 1e-2:
        raise ValueError(
            f"enters(…, offset=0.0) is not the model's own log-density: their scores differ by up to "
            f"{farthest:.2g} of their size. Write it as the model's log-density, with offset added to its linear predictor."
        )
    if rows.slope.shape[-1] != len(columns):
        raise ValueError(f"candidates has {len(columns)} rows, but the data have {rows.slope.shape[-1]}.")
    dtype = nuisance.gradient.dtype
    if not fit.has_batch:
        return jnp.asarray(_in_blocks(nuisance, rows, columns, kind, dtype)), columns.shape[2]
    found = []
    for b in range(len(fit)):
        one, own = jax.tree.map(lambda leaf, b=b: leaf[b], (nuisance, rows))
        found.append(_in_blocks(one, own, columns, kind, dtype))
    return np.stack(found), columns.shape[2]


def _in_blocks(nuisance: Nuisance, rows: Rows, columns: np.ndarray, kind: str, dtype: Any) -> np.ndarray:
    """Blocks of one size, so that one program serves them."""
    n, count, m = columns.shape
    size = max(1, min(count, ENTRIES // max(1, n * m)))
    parts = []
    for start in range(0, count, size):
        chosen = np.minimum(np.arange(start, start + size), count - 1)
        parts.append(np.asarray(_statistics(nuisance, rows, columns[:, chosen].astype(dtype), kind)))
    return np.concatenate(parts)[:count]


@functools.partial(jax.jit, static_argnums=3)
def _statistics(nuisance: Nuisance, rows: Rows, columns: Float[Array, "n K m"], kind: str) -> Float[Array, " K"]:
    columns = jnp.where(rows.counted[:, None, None], columns, 0.0)
    product = functools.partial(jnp.einsum, precision="highest")
    gradient = product("nkm,n->km", columns, rows.slope)
    square = product("nkm,nkl,n->kml", columns, columns, rows.square) if kind in ("empirical", "sandwich") else None
    cross_square = product("nkm,np->kmp", columns, rows.cross_square) if square is not None else None
    if kind == "empirical":
        tested = Tested(gradient, square, cross_square, None, None)  # type: ignore[arg-type]
    else:
        information = product("nkm,nkl,n->kml", columns, columns, rows.bend)
        tested = Tested(gradient, information, product("nkm,np->kmp", columns, rows.cross), square, cross_square)
    return jax.vmap(lambda one: score_statistic(nuisance, one))(tested)


@dataclass(frozen=True)
class _Derivatives:
    """What all candidates share, of one fit and its data; compiled once for each way to enter."""

    where: Any
    kind: str

    def __call__(self, fit: Fit, model: Model, dataset: Dataset) -> tuple[Nuisance, Rows, Array]:
        target = likelihood(model, fit.layout, fit.values, dataset)
        weights = jnp.ones((target.num_terms,), fit.free.dtype) if target.weights is None else target.weights
        given = () if dataset.given is None else (dataset.given,)
        y, *z = target.rows if given else (target.rows,)

        def shifted(free: Array, offset: Array, y: PyTree, *z: PyTree) -> Array:
            value = self.where(model, fit.layout.constrain(free, fit.values), offset, y, *z)
            return jnp.asarray(value, free.dtype)

        def one(y: PyTree, *z: PyTree) -> tuple[Array, ...]:
            zero = jnp.zeros((), fit.free.dtype)

            def gradient(offset: Array) -> tuple[Array, Array]:
                return jax.grad(shifted, argnums=(0, 1))(fit.free, offset, y, *z)

            (score, slope), (cross, bend) = jax.jvp(gradient, (zero,), (zero + 1.0,))
            return score, slope, -bend, -cross

        shown, slope, bend, cross = jax.vmap(one)(y, *z)
        scores = scores_at(target, fit.free)
        off = _difference(shown, scores, weights)
        if self.kind == "expected":
            bend, cross = self._expected(fit, model, given, target.num_terms)
        rows = Rows(
            weights * slope, weights * bend, weights[:, None] * cross, weights * slope**2,
            (weights * slope)[:, None] * scores, weights > 0,
        )  # fmt: skip
        return self._nuisance(fit, model, dataset, target), jax.tree.map(self._known(weights), rows), off

    def _known(self, weights: Array) -> Any:
        """A weight of zero silences even NaN."""
        return lambda part: jnp.where((weights > 0).reshape((-1,) + (1,) * (part.ndim - 1)), part, jnp.zeros_like(part))

    def _nuisance(self, fit: Fit, model: Model, dataset: Dataset, target: Any) -> Nuisance:
        gradient = gradient_at(target, fit.free)[1]
        if self.kind == "empirical":
            return Nuisance(gradient, outer_product_at(target, fit.free)[1], None)
        if self.kind == "expected":
            inner = scoring_of(model, fit.layout, fit.values, dataset, target, fit.free).information
            return Nuisance(gradient, inner, None)
        middle = outer_product_at(target, fit.free)[1] if self.kind == "sandwich" else None
        return Nuisance(gradient, derivatives_at(target, fit.free).curvature, middle)

    def _expected(self, fit: Fit, model: Any, given: tuple[PyTree, ...], n: int) -> tuple[Array, Array]:
        """Second derivatives replaced by their expectations: those of the family, through the predictor."""
        jacobian = fit.layout.jacobian(fit.free)

        def one(*z: PyTree) -> tuple[Array, Array]:
            along, inner = predicted(model, fit.layout, fit.values, z)
            position, steepness = self.where.steepness(model, fit.params, *z)
            row = steepness * inner[position]
            return steepness * row[position], jnp.matmul(
                jnp.matmul(row, along, precision="highest"), jacobian, precision="highest"
            )

        if given:
            return jax.vmap(one)(*given)
        return jax.tree.map(lambda part: jnp.broadcast_to(part, (n, *part.shape)), one())


def _difference(one: Array, other: Array, weights: Array) -> Array:
    """The largest difference of scores in units of each column's root mean square."""
    counted = (weights > 0)[:, None]
    size = jnp.sqrt(jnp.mean(jnp.where(counted, other, 0.0) ** 2, axis=0))
    apart = jnp.max(jnp.where(counted, jnp.abs(one - other), 0.0), axis=0)
    return jnp.max(apart / jnp.where(size > 0, size, 1.0))


@dataclass(frozen=True)
class _InFamily:
    """The offset adds to one of the family's parameters, its only one if no name is given, on the scale of its constraint."""

    name: str | None

    def __call__(self, model: LinkedModel, params: PyTree, offset: Array, y: PyTree, *z: PyTree) -> Array:
        predicted = dict(model.log_density.predict(params, *z))
        _, leaf = _leaf(model, predicted, self.name)
        moved = leaf.constraint.inverse(jnp.asarray(predicted[leaf.name])) + offset
        return model.family.log_density(predicted | {leaf.name: leaf.constraint.forward(moved)}, y)

    def steepness(self, model: LinkedModel, params: PyTree, *z: PyTree) -> tuple[int, Array]:
        """The parameter's place among the family's, and its derivative by the offset."""
        predicted = model.log_density.predict(params, *z)
        position, leaf = _leaf(model, predicted, self.name)
        value = leaf.constraint.inverse(jnp.asarray(predicted[leaf.name]))
        return position, jax.grad(leaf.constraint.forward)(value)


def _leaf(model: LinkedModel, predicted: PyTree, name: str | None) -> tuple[int, Leaf]:
    layout = layout_of(predicted, model.family.constraint_table)[0]
    free = [leaf for _, leaf in layout.free_leaves]
    known = [leaf.name for leaf in free]
    if name is None and len(known) == 1:
        name = known[0]
    if name is None:
        raise ValueError(
            f"the family has the parameters {', '.join(known)}. Say on which the candidates act, as in "
            f"enters={known[0]!r}."
        )
    if name not in known:
        raise ValueError(f"enters={name!r} names none of the family's parameters, which are {', '.join(known)}.")
    leaf = free[known.index(name)]
    if leaf.shape != () or not isinstance(leaf.constraint, Interval | Unconstrained):
        raise ValueError(
            f"`{name}` of shape {leaf.shape} is no number to which an effect adds; give `enters` as a function."
        )
    return layout.names.index(name), leaf


@dataclass(frozen=True)
class _ByFunction:
    """The user's own log-density with an offset."""

    function: ById

    def __call__(self, model: Model, params: PyTree, offset: Array, y: PyTree, *z: PyTree) -> Array:
        names = ("params", "y", *(("z",) if z else ()), "offset")
        check_arity(self.function.function, names, "enters")
        return call_user(self.function.function, (params, y, *z, offset), "enters")


def _where(model: Model, enters: Any) -> Any:
    if callable(enters):
        return _ByFunction(ById(enters))
    if not isinstance(model, LinkedModel):
        raise ValueError(
            "how candidates enter this model is not known. Give enters=function(params, y, z, offset), its log-"
            "density with offset added to the linear predictor; or write the model with fisher_jax.linked."
        )
    if enters is not None and not isinstance(enters, str):
        raise TypeError(f"enters must be a parameter's name or a function, got {type(enters).__name__}.")
    return _InFamily(enters)
