"""`predict`: what a fitted model predicts for rows of covariates, with standard errors and intervals by the delta method.

A prediction of row z is m(θ̂, z), m the mean of y given z, a parameter of its family, a quantile or any function of them. To first
order its variance is J V Jᵀ with J = ∂m/∂u and V the covariance of û; rows share û, so that the covariance of two of them is
J_a V J_bᵀ. The J of all rows are kept, which are as many numbers as a design matrix has. Averages, differences and ratios of
predictions are linear in them and need no further pass over the model.

A mixed model predicts a row given effects: those of its group, at their mode b*, none, or all that there may be, averaged. At the
mode the prediction m(û, b*) errs by (∂m/∂u + ∂m/∂b ∂b*/∂u)(û − u) and by ∂m/∂b times the error of b* given the parameters, which
is independent of û and of covariance H⁻¹ (see `latent/effects.py`). So the b of all groups stand beside u, with their H⁻¹ beside V,
and what is written above holds as it is.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from fisher_jax.blocks import map_blocks
from fisher_jax.errors import (
    check_choice,
    check_count,
    check_flag,
    check_function,
    check_level,
    check_pytrees,
    entry_point,
    is_number,
    names_in,
    require,
    shown,
    to_numpy,
    warn,
)
from fisher_jax.fitting import covariance as covariances
from fisher_jax.fitting.covariance import CovarianceKind, precise
from fisher_jax.fitting.intervals import Scale, normal_quantile, two_sided
from fisher_jax.fitting.map_fits import check_fit
from fisher_jax.fitting.padding import class_size
from fisher_jax.fitting.parameter_functions import Output, in_one_row, outline
from fisher_jax.fitting.result import Fit, origin_of
from fisher_jax.frames.predictor import Predictor
from fisher_jax.input_arrays import as_labels, as_unmasked_array, labels_of
from fisher_jax.latent import effects as latent
from fisher_jax.latent.grouped import Grouped
from fisher_jax.latent.marginal import MOST_DIMENSIONS, MarginalModel
from fisher_jax.latent.mixed import MixedDensity, MixedModel
from fisher_jax.models.constraints import Interval
from fisher_jax.models.dataset import as_unmasked_arrays, axis_first, axis_of_each, check_given, common_size, first_of
from fisher_jax.models.linked import LinkedModel, linked
from fisher_jax.models.model import Model, as_model, check_quantile, flatten_parameters
from fisher_jax.models.parameters import Layout, Values, path_name
from fisher_jax.models.programs import ById, call_differentiable, jit_with_model
from fisher_jax.numerics.array_namespace import AnyArray, is_traced, namespace, on_host
from fisher_jax.reporting import TEST_FORMATS, Report, Reported, listed, percent
from fisher_jax.reporting import Table as ReportTable
from fisher_jax.tables import Table, frame_of, is_table

ENTRIES = 2**21  # rows times numbers times parameters in memory at once
SHOWN = 30  # rows of a report
TITLES = {"estimate": "estimate", "standard_error": "std. error", "z": "z", "p_value": "p-value"}
What = str | float | Callable[..., PyTree]
AtEffects = Literal["predicted", "average", "zero"]
AVERAGED_AT = (51, 21, 11)  # points along each axis of one, two and three effects, over which a prediction is averaged
MOST_COLUMNS = (
    2048  # effects of all groups, up to which predictions for some groups have columns for all and can be compared
)


# --- what is predicted of one row -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quantity:
    """What is predicted of one row of covariates, hashable: "mean", "quantile", "function", or a parameter by its name."""

    what: str
    function: ById | None = None
    range: tuple[float, float] | None = None  # in place of that of the model

    def __call__(self, model: Model, layout: Layout, params: PyTree, z: tuple[PyTree, ...], level: Any) -> PyTree:
        """Its numbers, as the model or the user's function returns them."""
        if self.function is not None:
            arguments = (model.log_density.predict(params, *z),) if isinstance(model, LinkedModel) else (params, *z)
            return call_differentiable(self.function.function, arguments, "what")
        if self.what == "mean":
            return call_differentiable(model.mean, (params, *z), "mean")  # type: ignore[arg-type]
        if self.what == "quantile":
            return call_differentiable(model.quantile, (level, params, *z), "quantile")  # type: ignore[arg-type]
        return self._parameter(model, layout, params, z)[0]

    def ends(self, model: Model, layout: Layout, params: PyTree, z: tuple[PyTree, ...]) -> tuple[Any, Any]:
        """The ends of the range that its numbers lie in, −∞ and ∞ where none is known."""
        if self.range is not None:
            return self.range
        if self.what in ("mean", "quantile"):
            support = model.support
            if callable(support):
                support = call_differentiable(support, (params, *z), "support")
            return (-math.inf, math.inf) if support is None else support
        if self.what == "function":
            return -math.inf, math.inf
        constraint = self._parameter(model, layout, params, z)[1]
        return (constraint.low, constraint.high) if isinstance(constraint, Interval) else (-math.inf, math.inf)

    def _parameter(self, model: Model, layout: Layout, params: PyTree, z: tuple[PyTree, ...]) -> tuple[PyTree, Any]:
        """A parameter by its name, that of a linked model's family or that of any other model, and its constraint."""
        if isinstance(model, LinkedModel):
            params = model.log_density.predict(params, *z)
            layout, _ = flatten_parameters(model.family, params)
        leaves = {leaf.name: (block, leaf) for block, leaf in zip(layout.blocks(params), layout.leaves, strict=True)}
        entries = {
            name: (jnp.ravel(block)[k], leaf)
            for block, leaf in leaves.values()
            for k, name in enumerate(leaf.entry_names)
        }
        parameters = entries | leaves
        if self.what not in parameters:
            choices = ", ".join(map(repr, (*(("mean",) if model.mean is not None else ()), *leaves)))
            raise ValueError(
                f"what={self.what!r} is none of {choices}. Give one of these, a number between 0 and 1 for a quantile, or a "
                "function."
            )
        value, leaf = parameters[self.what]
        return value, leaf.constraint


@dataclass(frozen=True)
class Averaged:
    """The mean of a quantity over the effects of a new group, by Gauss-Hermite quadrature; its rows are those of covariates."""

    quantity: Quantity
    num_effects: int

    @property
    def what(self) -> str:
        """As that of the quantity."""
        return self.quantity.what

    @property
    def function(self) -> ById | None:
        """As that of the quantity."""
        return self.quantity.function

    def __call__(self, model: Model, layout: Layout, params: PyTree, z: tuple[PyTree, ...], level: Any) -> PyTree:
        """Its numbers."""
        q = self.num_effects
        points, weights = np.polynomial.hermite_e.hermegauss(AVERAGED_AT[q - 1])  # of exp(−x²/2)
        grid = np.stack(np.meshgrid(*[points] * q, indexing="ij"), axis=-1).reshape(-1, q)
        products = np.prod(np.meshgrid(*[weights / weights.sum()] * q, indexing="ij"), axis=0).ravel()
        values = jax.vmap(lambda b: self.quantity(model, layout, params, ((b, *z),), level))(
            jnp.asarray(grid, layout.dtype)
        )
        return jax.tree.map(lambda value: jnp.tensordot(jnp.asarray(products, value.dtype), value, 1), values)

    def ends(self, model: Model, layout: Layout, params: PyTree, z: tuple[PyTree, ...]) -> tuple[Any, Any]:
        """The ends of the range of the quantity, which is that of its mean."""
        return self.quantity.ends(model, layout, params, ((jnp.zeros(self.num_effects, layout.dtype), *z),))


def read_what(what: Any, model: Model, range_: tuple[float, float] | None = None) -> tuple[Quantity, float, str]:
    """The quantity meant, the level of a quantile (else ½), and its name in reports."""
    if callable(what):
        check_function(what, "what", "params and covariates")
        name = getattr(what, "__name__", "function")
        return Quantity("function", ById(what), range_), 0.5, "function" if name == "<lambda>" else str(name)
    if is_number(what):
        if not 0 < what < 1:
            raise ValueError(f"what={what}: a quantile has a level strictly between 0 and 1, as 0.9.")
        check_quantile(model)
        return Quantity("quantile", None, range_), float(what), f"quantile {float(what):g}"
    if not isinstance(what, str):
        raise TypeError(
            f'what={shown(what)} must be "mean", the name of a parameter, a number between 0 and 1 for a quantile, or a function.'
        )
    if what == "mean" and model.mean is None:
        whose = "the family" if isinstance(model, LinkedModel) else "the model"
        raise ValueError(
            f'what="mean": {whose} has no mean. Give Model(…, mean=function of params); or as `what` the name of a parameter, or '
            "a function."
        )
    return Quantity(what, None, range_), 0.5, what


# --- rows of covariates -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """Covariates of m rows as arrays: those of a fit, or new ones.

    `given` is None where the model takes none, and there is one row. Of many fits `differs` tells for each leaf whether it has
    an axis over the fits before that of the rows. `weights` (m,) or (B, m) are those of the fit.
    """

    given: PyTree
    differs: tuple[bool, ...]
    weights: Any = None
    labels: Any = None

    @property
    def count(self) -> int:
        """m, the number of rows."""
        leaves = jax.tree.leaves(self.given)
        return int(np.shape(leaves[0])[int(self.differs[0])]) if leaves else 1

    def take(self, rows: Any) -> PyTree:
        """Some of the rows."""
        leaves, treedef = jax.tree.flatten(self.given)
        taken = [leaf[:, rows] if differs else leaf[rows] for leaf, differs in zip(leaves, self.differs, strict=True)]
        return jax.tree.unflatten(treedef, taken)

    def of_fits(self, index: Any) -> PyTree:
        """The rows of some of many fits."""
        leaves, treedef = jax.tree.flatten(self.given)
        taken = [leaf[index] if differs else leaf for leaf, differs in zip(leaves, self.differs, strict=True)]
        return jax.tree.unflatten(treedef, taken)


def model_of(fit: Fit, model: Any) -> Model:
    """The model of a fit, or the one given where the fit no longer has it."""
    if model is None and fit.origin is None:
        raise ValueError(
            "the fit no longer has its model: transformations (jit, vmap, tree.map), files and lists of data sets leave it out. "
            "Give it: model=…."
        )
    model = origin_of(fit).model if model is None else as_model(model)
    if model.is_dependent:
        raise ValueError(
            "the model is `dependent`: what it says of a time depends on the times before, not on one row. Write the prediction "
            "as a function of params and use delta_method."
        )
    return model


def check_no_effects(model: Model) -> None:
    """Raise for a model whose rows are groups with latent effects, of which nothing can be predicted row by row."""
    if isinstance(model, MarginalModel):
        raise ValueError(
            "the model has latent effects, and what a row of a group is given them is not known: predict knows it for models "
            "made by mixed whose observations are groups. See predicted_effects for the effects, and delta_method for functions of "
            "params."
        )


def predictor_of(model: Model) -> Predictor | None:
    """The predictor that makes covariates of a table, where the model came from a formula."""
    predictor = model.log_density.predictor if isinstance(model, LinkedModel) else None
    return predictor if isinstance(predictor, Predictor) else None


def as_table(model: Model, fit: Fit, new: Any) -> Table | None:
    """The table meant by `new` where the model came from a formula: a table, or a dictionary of its columns; else None."""
    if predictor_of(model) is None or not (is_table(new) or isinstance(new, dict)):
        return None
    given = None if fit.origin is None else fit.origin.dataset.given
    if isinstance(new, dict) and isinstance(given, dict) and given.keys() == new.keys():
        return None  # arrays as the fit has them
    return Table(frame_of(new, "new"), "new")


def table_of_fit(fit: Fit) -> Table | None:
    """The table that a fit of a formula comes from, with the rows that were used; None where it does not have one."""
    table = None if fit.origin is None else fit.origin.dataset.table
    return None if table is None or np.ndim(table.rows) > 1 else table


def rows_of(fit: Fit, model: Model, new: Any, new_axis: Any) -> Rows:
    """The rows to predict, checked against those of the fit where it has them."""
    dataset = None if fit.origin is None else fit.origin.dataset
    if new is None:
        if dataset is None:
            origin_of(fit)
        assert dataset is not None
        num_data = len(jax.tree.leaves(dataset.data))
        num_given = len(jax.tree.leaves(dataset.given))
        differs = dataset.differs[num_data : num_data + num_given] or (False,) * num_given
        if dataset.num_masked is not None and np.any(dataset.num_masked):
            warn(
                f"{int(np.sum(dataset.num_masked))} rows have masked entries and weight zero: in their place stand the covariates "
                "of the row before, and predictions for them mean nothing."
            )
        table = table_of_fit(fit)
        labels = None if table is None else next(iter(labels_of(table.to_native())), None)
        return Rows(dataset.given, differs, dataset.weights if num_given else None, labels)
    if dataset is not None and dataset.given is None:
        raise ValueError("new was given, but the model was fitted without covariates. Leave new out.")
    check_pytrees(new=new)
    predictor, table = predictor_of(model), as_table(model, fit, new)
    labels = next((each[0] for leaf in jax.tree.leaves(new) if (each := labels_of(leaf))), None)
    if predictor is not None and table is not None:
        new = predictor.covariates(table, "new")
    if not fit.has_batch or new_axis is None:
        if new_axis is not None:
            raise ValueError("new_axis is for many fits that each have rows of their own; this is one fit.")
        new = check_given(model, new, "new")
        differs = (False,) * len(jax.tree.leaves(new))
        first = new
    else:
        new = as_unmasked_arrays(new, "new")
        marks = axis_of_each(new, new_axis, "new")
        size = common_size({"new": (new, marks)})
        new = axis_first(new, marks)
        differs = tuple(mark.number is not None for mark in jax.tree.leaves(marks))
        if size and size != len(fit):
            raise ValueError(f"new has rows for {size} fits, but there are {len(fit)}.")
        first = check_given(model, first_of(new, marks), "new")
    if dataset is not None:
        hint = " The model came from a formula: give a table with its columns." if predictor is not None else ""
        _check_like_the_fit(dataset.one(0).given if fit.has_batch else dataset.given, first, hint)
    rows = Rows(new, differs, None, labels)
    _warn_of_missing(rows)
    return rows


def _check_like_the_fit(given: PyTree, new: PyTree, hint: str) -> None:
    """Raise where new rows have other arrays, or arrays of other shapes, than the covariates of the fit."""
    expected, came = (
        {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]} for tree in (given, new)
    )
    if jax.tree.structure(given) != jax.tree.structure(new):  # type: ignore[operator]
        parts = []
        if "params" not in expected | came:  # as an array by itself is called
            missing = [f"`{name}`" for name in expected if name not in came]
            unknown = [f"`{name}`" for name in came if name not in expected]
            parts += [f"lacks {listed(missing)}"] if missing else []
            parts += [f"has {listed(unknown)}, which the fit does not"] if unknown else []
        raise ValueError(
            f"new {' and '.join(parts) or 'is another pytree'}: expected covariates as the fit has them, "
            f"{_shapes(given)}, but got {_shapes(new)}.{hint}"
        )
    for name, leaf in expected.items():
        if np.shape(leaf)[1:] != np.shape(came[name])[1:]:
            raise ValueError(
                f"new{'' if name == 'params' else f' {name}'} has shape {np.shape(came[name])}; expected {_shapes(leaf)}, as the "
                "covariates of the fit."
            )


def _shapes(tree: PyTree) -> str:
    """A pytree of rows with the shapes of its arrays, m being the number of rows."""

    def shape_of(leaf: Any) -> str:
        rest = np.shape(leaf)[1:]
        return f"(m, {', '.join(map(str, rest))})" if rest else "(m,)"

    return str(jax.tree.map(shape_of, tree)).replace("'(", "(").replace(")'", ")")


def _warn_of_missing(rows: Rows) -> None:
    """Warn of rows in which a covariate is NaN."""
    missing = np.zeros(rows.count, bool)
    for leaf, differs in zip(jax.tree.leaves(rows.given), rows.differs, strict=True):
        if is_traced(leaf) or not jnp.issubdtype(leaf.dtype, jnp.floating):
            continue
        is_nan = np.isnan(np.asarray(leaf))
        missing |= is_nan.any(axis=tuple(k for k in range(is_nan.ndim) if k != int(differs)))
    if np.any(missing):
        warn(
            f"{int(missing.sum())} of {len(missing)} rows of new have a covariate that is NaN, the first of them row "
            f"{int(np.argmax(missing))}. What depends on it is NaN."
        )


# --- values and derivatives of all rows -------------------------------------------------------------------------------


@functools.partial(jit_with_model, static_argnums=(0, 1, 2, 3), level=1)
def _linearize(
    function: Any, model: Model, layout: Layout, differs: Any, values: Values, free: Any, given: PyTree, level: Any
) -> tuple[Array, Array, Array]:
    """Values (*b, m, k) of all rows, their derivatives with respect to u (*b, m, k, p), and ends of their ranges (*b, m, 2)."""

    def of_fit(values: Values, free: Float[Array, " p"], given: PyTree) -> tuple[Array, Array, Array]:
        def of_row(free: Float[Array, " p"], row: PyTree) -> tuple[Array, Array]:
            params = layout.constrain(free, values)
            z = () if row is None else (row,)
            numbers = in_one_row(function(model, layout, params, z, level)).astype(free.dtype)
            ends = [jnp.asarray(end, free.dtype) for end in function.ends(model, layout, params, z)]
            return numbers, jax.lax.stop_gradient(jnp.stack(ends))

        def of_rows(free: Float[Array, " p"]) -> tuple[Array, Array]:
            leaves = jax.tree.leaves(given)
            return jax.vmap(of_row, (None, 0), axis_size=len(leaves[0]) if leaves else 1)(free, given)

        value, push, ends = jax.linearize(of_rows, free, has_aux=True)
        return value, jax.vmap(push, out_axes=-1)(jnp.eye(len(free), dtype=free.dtype)), ends

    with jax.default_matmul_precision("highest"):
        if free.ndim == 1:
            return of_fit(values, free, given)
        axes = jax.tree.unflatten(jax.tree.structure(given), [0 if differ else None for differ in differs])
        return jax.vmap(of_fit, (0, 0, axes))(values, free, given)


def linearize_rows(
    fit: Fit, model: Model, function: Any, rows: Rows, level: float, k: int, weights: Any = None
) -> tuple[AnyArray, AnyArray, AnyArray]:
    """Values, derivatives and ends of ranges of all rows, in blocks; or with weights (m,) or (B, m) their weighted means."""
    m, p = rows.count, fit.free.shape[-1]
    level_ = np.asarray(level, fit.free.dtype)

    def of(values: Values, free: Any, given: PyTree) -> tuple[Any, Any, Any]:
        return _linearize(function, model, fit.layout, rows.differs, values, free, given, level_)

    if is_traced(fit, rows.given):
        parts = of(fit.values, fit.free, rows.given)
        return parts if weights is None else average_rows(parts, weights)
    values, free = on_host((fit.values, fit.free))
    if fit.has_batch:
        at_once = ENTRIES // max(1, m * k * p)
        if at_once < 1:  # the rows of each fit in blocks
            each = []
            for i in range(len(fit)):
                rows_of_fit = Rows(rows.of_fits(i), (False,) * len(rows.differs))
                w = weights[i] if np.ndim(weights) == 2 else weights
                each.append(linearize_rows(fit[i], model, function, rows_of_fit, level, k, w))
            return tuple(np.stack(part) for part in zip(*each, strict=True))  # type: ignore[return-value]

        def of_fits(index: np.ndarray) -> Any:
            parts = of([value[index] for value in values], free[index], rows.of_fits(index))
            if weights is None:
                return parts
            return average_rows(jax.device_get(parts), weights[index] if np.ndim(weights) == 2 else weights)

        return map_blocks(of_fits, len(fit), min(at_once, class_size(len(fit))))
    size = max(1, min(ENTRIES // max(1, k * p), class_size(m)))
    if weights is None:
        return map_blocks(lambda index: of(values, free, rows.take(index)), m, size)
    shares = np.asarray(weights, float) / np.sum(weights)
    total: Any = (0.0, 0.0, 0.0)
    for start in range(0, m, size):
        index = np.arange(start, start + size)  # the last row again where the block is longer
        parts = jax.device_get(of(values, free, rows.take(np.minimum(index, m - 1))))
        added = _weighted_sum(parts, np.where(index < m, shares[np.minimum(index, m - 1)], 0.0))
        total = tuple(a + b for a, b in zip(total, added, strict=True))
    return total


def average_rows(parts: tuple[Any, Any, Any], weights: Any) -> tuple[Any, Any, Any]:
    """Weighted means over rows of values (*b, m, k), derivatives (*b, m, k, p) and ends (*b, m, 2), with one row left."""
    xp = namespace(weights)
    weights = xp.asarray(weights)
    return _weighted_sum(parts, weights / xp.sum(weights, axis=-1, keepdims=True))


def _weighted_sum(parts: tuple[Any, Any, Any], shares: Any) -> tuple[Any, Any, Any]:
    def of(array: Any, axis: int) -> Any:
        xp = namespace(array, shares)
        w = shares.reshape((*shares.shape, *(1,) * (-1 - axis)))
        w = xp.broadcast_to(w, (*(1,) * (array.ndim - w.ndim), *w.shape))
        return xp.sum(
            xp.where(w == 0, 0.0, w * array), axis=axis, keepdims=True
        )  # an end at infinity has no product with 0

    value, jacobian, ends = parts
    with np.errstate(invalid="ignore"):
        return of(value, -2), of(jacobian, -3), of(ends, -2)


# --- the records ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Prediction(Reported):
    """Predictions of m rows, with standard errors and intervals to first order; printed as a table.

    Attributes
    ----------
    value : array (*b, m, k)
        The k numbers predicted of each row; of many fits with their axis before. `estimate` has them in the shape in which the
        model returns them.
    jacobian : array (*b, m, k, p)
        Their derivatives with respect to the unconstrained parameters u.
    ends : array (*b, m, 2)
        The ends of the range that they lie in, 0 and 1 for a probability; infinite where none is known.
    free, free_covariance : arrays (*b, p) and (*b, p, p)
        The estimate of u, and its covariance.
    weights : array (m,) or (*b, m), or None
        Weights of the rows in `average`: those of the fit where the rows are its own.
    output : Output
        Names and shapes of the k numbers.
    level : float
        The coverage aimed at by the intervals of the reports.
    description : str
        Which covariance was used.
    labels : sequence or None
        Labels of the rows, the index of a pandas table say; no part of the pytree.

    Notes
    -----
    The intervals are for what is predicted (a mean, a probability), not for a new observation, whose own variation comes on top.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> model = fj.linked(fj.families.poisson, lambda beta, x: {"rate": jnp.exp(beta[0] + beta[1] * x)})
    >>> x, y = jnp.array([0.0, 1.0, 2.0, 3.0]), jnp.array([1.0, 2.0, 5.0, 9.0])
    >>> prediction = fj.predict(fj.fit(model, jnp.zeros(2), y, given=x), jnp.array([1.0, 2.0]))
    >>> print(prediction.estimate.round(2), prediction.standard_errors().round(2))
    [2.17 4.49] [0.91 1.14]
    >>> print(prediction.contrast(jnp.array([-1.0, 1.0])).estimate.round(2))
    [2.32]
    """

    value: Any
    jacobian: Any
    ends: Any
    free: Any
    free_covariance: Any
    weights: Any
    output: Output
    level: float
    description: str
    labels: Any = field(default=None, compare=False)

    def __len__(self) -> int:
        return int(np.shape(self.value)[-2])

    @property
    def estimate(self) -> PyTree:
        """What is predicted, (*b, m) for one number of each row, (*b, m, …) for arrays."""
        return self.output.arrange(self.value)

    @functools.cached_property
    def _errors(self) -> AnyArray:
        """Standard errors (*b, m, k)."""
        xp = namespace(self.jacobian, self.free_covariance)
        jacobian = self.jacobian.astype(self.free_covariance.dtype)
        # One matrix product for all rows, and not one for each.
        rows = jacobian.reshape((*jacobian.shape[:-3], -1, jacobian.shape[-1]))
        with np.errstate(invalid="ignore"), jax.default_matmul_precision("highest"):
            variance = xp.sum(xp.matmul(rows, self.free_covariance) * rows, axis=-1)
            return xp.sqrt(variance).reshape(self.value.shape)

    @entry_point
    def standard_errors(self) -> PyTree:
        """Standard errors, laid out like `estimate`."""
        return self.output.arrange(self._errors)

    @entry_point
    def covariance(self) -> Float[AnyArray, "*b r r"]:
        """Covariance matrix of all numbers, row by row: r = m k. Made when it is asked for, and not kept.

        Raises
        ------
        ValueError
            If it cannot fit the memory of this machine. Contrasts and averages do not need it.
        """
        count = check_count(
            self.value.shape[-1] * len(self), 1, "the number of rows", entries=self.value.shape[-1] * len(self)
        )
        rows = self.jacobian.reshape((*self.jacobian.shape[:-3], count, self.jacobian.shape[-1]))
        return covariances.transform_covariance(rows, self.free_covariance)

    @entry_point
    def confidence_intervals(self, *, level: float | None = None, scale: Scale = "unconstrained") -> PyTree:
        """Confidence intervals, laid out like `estimate` with a last axis of two, lower and upper.

        Parameters
        ----------
        level : float, optional
            Coverage aimed at; by default that given to `predict`.
        scale : {"unconstrained", "natural"}
            Made on the scale of the range that the number lies in, the logarithm of a rate and the logit of a probability, and
            mapped back, so that they stay inside; or symmetric about the estimate.
        """
        return self.output.arrange(self._intervals(level, scale), trailing=1)

    def _intervals(self, level: float | None, scale: str = "unconstrained") -> AnyArray:
        """Intervals (*b, m, k, 2)."""
        level = self.level if level is None else level
        check_level(level)
        check_choice(scale, ("unconstrained", "natural"), "scale")
        errors = self._errors
        xp = namespace(errors, self.value)
        reach = normal_quantile(0.5 * (1 + xp.asarray(level, errors.dtype))) * errors
        value = self.value.astype(errors.dtype)
        if scale == "natural":
            return xp.stack([value - reach, value + reach], axis=-1)
        ends = self.ends.astype(errors.dtype)
        return xp.stack(_intervals_within(xp, value, reach, ends[..., 0, None], ends[..., 1, None]), axis=-1)

    # --- averages and contrasts -------------------------------------------------------------------------------------------

    @entry_point
    def average(self, weights: Any = None) -> "Prediction":
        """The mean of the predictions over the rows, as a `Prediction` of one row.

        Parameters
        ----------
        weights : array (m,), optional
            Weights of the rows, not negative; by default those of the fit where the rows are its own, else equal ones.

        Returns
        -------
        Prediction
            Its standard error is that of the mean over these rows: that they may be a sample of others is not in it.
        """
        weights = check_row_weights(weights, len(self)) if weights is not None else self.weights
        weights = np.ones(len(self)) if weights is None else weights
        value, jacobian, ends = average_rows((self.value, self.jacobian, self.ends), weights)
        return replace(self, value=value, jacobian=jacobian, ends=ends, weights=None, labels=("average",))

    @entry_point
    def contrast(self, other: Any = "pairs", *, ratio: bool = False, names: Sequence[str] | None = None) -> "Effects":
        """Differences or ratios of predictions, whose covariance is taken into account.

        Parameters
        ----------
        other : Prediction, array (m,) or (c, m), or "pairs"
            Another prediction by the same fit, which is subtracted row by row (or one row from all); weights of the rows, for the
            weighted sum of the predictions (weights that sum to zero are a contrast, in the strict sense); or all pairs of rows,
            each less a later one.
        ratio : bool
            Ratios in place of differences: the prediction divided by the other, and with weights the product of their powers. The
            interval and the test are those of the logarithm.
        names : sequence of str, optional
            Names of the contrasts.

        Returns
        -------
        Effects
            With z and p-values of the hypothesis that a difference is 0 or a ratio 1, not adjusted for the number of contrasts.

        Raises
        ------
        ValueError, TypeError
            If the other prediction is of another fit or has other rows, or the weights do not fit the rows.
        """
        check_flag(ratio, "ratio")
        value, jacobian = self.value, self.jacobian
        xp = namespace(value, jacobian)
        if ratio:
            with np.errstate(all="ignore"):
                jacobian = jacobian / value[..., None]
                value = xp.where(value > 0, xp.log(xp.where(value > 0, value, 1.0)), xp.nan)
        if isinstance(other, Prediction):
            labels = self._check_same_fit(other)
            theirs, their_jacobian = other.value, other.jacobian
            if ratio:
                with np.errstate(all="ignore"):
                    their_jacobian = their_jacobian / theirs[..., None]
                    theirs = xp.where(theirs > 0, xp.log(xp.where(theirs > 0, theirs, 1.0)), xp.nan)
            value, jacobian = value - theirs, jacobian - their_jacobian
        elif isinstance(other, str):
            check_choice(other, ("pairs",), "other", " Or give another Prediction, or weights.")
            m, p = len(self), jacobian.shape[-1]
            check_count(m * (m - 1) // 2, 1, "the number of pairs", " and needs two rows", entries=p)
            first, second = np.triu_indices(m, 1)
            rows = self.row_labels
            labels = tuple(f"{rows[i]} {'/' if ratio else '−'} {rows[j]}" for i, j in zip(first, second, strict=True))
            value = value[..., first, :] - value[..., second, :]
            jacobian = jacobian[..., first, :, :] - jacobian[..., second, :, :]
        else:
            weights = _check_contrast_weights(other, len(self))
            labels = tuple(f"contrast {k}" for k in range(len(weights))) if len(weights) > 1 else ("contrast",)
            used = np.any(weights != 0, axis=0)  # a row that does not enter may be NaN
            value = xp.einsum("cm,...mk->...ck", weights[:, used], value[..., used, :])
            jacobian = xp.einsum("cm,...mkp->...ckp", weights[:, used], jacobian[..., used, :, :])
        if names is not None:
            labels = tuple(names_in(names))
            if len(labels) != value.shape[-2]:
                raise ValueError(
                    f"names={shown(names)}: there are {value.shape[-2]} contrasts, each of which needs a name."
                )
        ends = xp.broadcast_to(xp.asarray([-math.inf, math.inf]), (*value.shape[:-1], 2))
        if ratio:
            value = xp.exp(value)
            jacobian, ends = jacobian * value[..., None], xp.broadcast_to(xp.asarray([0.0, math.inf]), ends.shape)
        return Effects(
            *(value, jacobian, ends, self.free, self.free_covariance, None),
            *(self.output, self.level, self.description),
            labels=labels,
            heading="ratio" if ratio else "contrast",
            null=1.0 if ratio else 0.0,
        )

    def _check_same_fit(self, other: "Prediction") -> Any:
        """The labels of a contrast of two predictions; raise where their covariance is not known, or rows do not match."""
        mine, theirs = (self.free, self.free_covariance), (other.free, other.free_covariance)
        if not is_traced(mine, theirs):
            # Both: fits of two responses with one design may have the same covariance and yet be independent.
            same = all(np.array_equal(*arrays, equal_nan=True) for arrays in zip(mine, theirs, strict=True))
            if not same or self.description != other.description:
                raise ValueError(
                    "the two predictions are by different fits, or with different kinds of covariance: the covariance between "
                    "them is unknown. Predict both by one fit, with the same kind=."
                )
        if self.output.shapes != other.output.shapes:
            raise ValueError(
                f"the two predictions have other numbers in a row ({self.output.shapes} and {other.output.shapes})."
            )
        if len(other) not in (1, len(self)) and len(self) != 1:
            raise ValueError(f"the predictions have {len(self)} and {len(other)} rows; give as many, or one.")
        return self.labels if len(self) >= len(other) else other.labels

    # --- reports ----------------------------------------------------------------------------------------------------------

    @property
    def row_labels(self) -> Any:
        """Labels of the rows: those of a table, else 0, 1, …"""
        return range(len(self)) if self.labels is None else self.labels

    @entry_point
    def to_frame(self, *, level: float | None = None) -> Any:
        """A pandas DataFrame with a row for each number, and the index of the table predicted (needs the extra `frames`)."""
        pd = require("pandas", "frames")
        if np.ndim(self.value) != 2:
            raise ValueError("this is of a batch. Take the arrays, or predict by one fit: fits[0].")
        index = pd.Index(self.row_labels)
        if self.value.shape[-1] > 1:
            index = pd.MultiIndex.from_product([index, self.output.names], names=[index.name, None])
        return pd.DataFrame(self._columns(level), index=index)

    def _columns(self, level: float | None) -> dict[str, np.ndarray]:
        """The columns of a table, of one fit."""
        ends = self._intervals(level).reshape(-1, 2)
        columns = {"estimate": np.ravel(self.value), "standard_error": np.ravel(self._errors)}
        return columns | {"lower": ends[:, 0], "upper": ends[:, 1]}

    @property
    def _heading(self) -> str:
        return "row"

    @property
    def _title(self) -> str:
        names = self.output.names
        return f"Predictions: {names[0] if len(names) == 1 else listed(names, 4)}"

    def summary(self) -> Report:
        """The first thirty rows with their standard errors and intervals; of many fits, the shape."""
        if np.ndim(self.value) != 2 or is_traced(self.value):
            return Report(f"{self._title}, of shape {np.shape(self.value)}")
        count, k = self.value.size, self.value.shape[1]
        rows = -(-SHOWN // k)
        labels = list(self.row_labels[:rows])
        shown_ = replace(self, value=self.value[:rows], jacobian=self.jacobian[:rows], ends=self.ends[:rows])
        columns = shown_._columns(None)
        titles = [TITLES.get(key, f"{key} {percent(self.level)}") for key in columns]
        names = [str(a) if k == 1 else f"{a} {b}" for a in labels for b in self.output.names]
        cells = list(zip(names, *columns.values(), strict=True))
        table = ReportTable((self._heading, *titles), cells, keys=tuple(columns), formats=TEST_FORMATS)
        notes = [f"{count - len(names)} more are not shown: see to_frame()."] if count > len(names) else []
        return Report(self._title, [("Covariance", self.description)], [table], notes)


@dataclass(frozen=True, repr=False)
class Effects(Prediction):
    """Differences, ratios and slopes of predictions, with z and p-values; printed as a table.

    Attributes
    ----------
    value, jacobian, ends, free, free_covariance, weights, output, level, description, labels
        As in `Prediction`, with a row for each effect.
    heading : str
        What a row is, in reports.
    null : float
        The value under the hypothesis that is tested: 0, or 1 for a ratio, of which the logarithm is tested.

    Notes
    -----
    p-values are two-sided and not adjusted for the number of effects.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> model = fj.linked(fj.families.poisson, lambda beta, x: {"rate": jnp.exp(beta[0] + beta[1] * x)})
    >>> x, y = jnp.array([0.0, 1.0, 2.0, 3.0]), jnp.array([1.0, 2.0, 5.0, 9.0])
    >>> fit = fj.fit(model, jnp.zeros(2), y, given=x)
    >>> ratio = fj.predict(fit, jnp.array([2.0])).contrast(fj.predict(fit, jnp.array([1.0])), ratio=True)
    >>> print(f"{ratio.estimate[0]:.3f}, p = {ratio.p_values()[0]:.3f}")
    2.066, p = 0.006
    """

    heading: str = "contrast"
    null: float = 0.0

    @entry_point
    def z_values(self) -> PyTree:
        """The difference from `null` divided by its standard error, of logarithms for ratios; laid out like `estimate`."""
        return self.output.arrange(self._z)

    @entry_point
    def p_values(self) -> PyTree:
        """Two-sided p-values of the hypothesis that the effect is `null`, laid out like `estimate`."""
        return self.output.arrange(self._p)

    @property
    def _z(self) -> AnyArray:
        xp = namespace(self.value, self._errors)
        with np.errstate(all="ignore"):
            if self.null == 1.0:
                return xp.log(self.value) * self.value / self._errors
            return (self.value - self.null) / self._errors

    @property
    def _p(self) -> AnyArray:
        return two_sided(self._z)

    @property
    def _heading(self) -> str:
        return self.heading

    @property
    def _title(self) -> str:
        kind = {"contrast": "Contrasts", "ratio": "Ratios"}.get(self.heading, "Marginal effects")
        names = self.output.names
        return f"{kind}: {names[0] if len(names) == 1 else listed(names, 4)}"

    def _columns(self, level: float | None) -> dict[str, np.ndarray]:
        columns = super()._columns(level)
        ends = {key: columns.pop(key) for key in ("lower", "upper")}
        return columns | {"z": np.ravel(self._z), "p_value": np.ravel(self._p)} | ends

    def summary(self) -> Report:
        """The first thirty effects with standard errors, z, p-values and intervals; of many fits, the shape."""
        report = super().summary()
        if not report.tables or self.value.size < 2:
            return report
        return replace(
            report, notes=[*report.notes, "p-values and intervals are not adjusted for the number of effects."]
        )


_STATIC = ("output", "level", "description", "heading", "null")
for _record in (Prediction, Effects):
    _names = [each.name for each in fields(_record) if each.name != "labels"]
    jax.tree_util.register_dataclass(
        _record, [n for n in _names if n not in _STATIC], [n for n in _names if n in _STATIC], drop_fields=["labels"]
    )


@np.errstate(all="ignore")
def _intervals_within(xp: Any, value: Any, reach: Any, low: Any, high: Any) -> list[Any]:
    """Lower and upper ends on the scale log(v − low), −log(high − v) or the logit of both, mapped back; symmetric without ends.

    With g that scale they are g⁻¹(g(v) ± reach · g′(v)), as `Interval.bounds` makes them for one range. A number whose error is
    below its rounding, as that of a probability which is rounded to one, is its own interval.
    """
    below, above = value - low, high - value
    has_low, has_high = xp.isfinite(low), xp.isfinite(high)
    both = has_low & has_high
    width = xp.where(both, high - low, 1.0)
    exact = reach <= jnp.finfo(value.dtype).eps * abs(value)
    slope = xp.where(both, below * above / width, xp.where(has_low, below, above))
    step = xp.where(exact, 0.0, reach / xp.where(exact, 1.0, slope))
    result = []
    for sign in (-1.0, 1.0):
        odds = xp.exp(sign * step)  # by which below / above is multiplied
        within = low + width * (below * odds / (above + below * odds))
        end = xp.where(both, within, xp.where(has_low, low + below * odds, high - above / odds))
        end = xp.where(has_low | has_high, end, value + sign * reach)
        result.append(xp.where(exact, value, end))
    return result


def check_row_weights(weights: Any, count: int) -> np.ndarray:
    """Weights of the rows in an average."""
    array = as_unmasked_array(
        to_numpy(weights, "weights"), lambda: "weights", "Give a row that is to be left out weight zero."
    )
    if np.shape(array) != (count,):
        raise ValueError(f"weights has shape {np.shape(array)}, expected ({count},), one for each row.")
    array = np.asarray(array, float)
    if not np.all(np.isfinite(array) & (array >= 0)) or not np.any(array > 0):
        raise ValueError("weights must be finite and not negative, and some of them positive.")
    return array


def _check_contrast_weights(weights: Any, count: int) -> np.ndarray:
    """The weights of contrasts (c, m)."""
    if weights is None or callable(weights) or isinstance(weights, dict | set):
        raise TypeError(f'other={shown(weights)} must be another Prediction, weights of the {count} rows, or "pairs".')
    array = np.asarray(as_unmasked_array(to_numpy(weights, "other"), lambda: "other", "Give each row a weight."), float)
    if array.ndim not in (1, 2) or array.shape[-1] != count or array.size == 0:
        raise ValueError(
            f"other has shape {array.shape}, expected ({count},) or (c, {count}): a weight for each row of each contrast."
        )
    if not np.all(np.isfinite(array)):
        raise ValueError("other: weights of contrasts must be finite.")
    return np.atleast_2d(array)


# --- mixed models: rows given effects ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class GivenEffects:
    """The predictor of a mixed model as one of rows (b, z), or (b,), with the effects that b stands for."""

    joint: MixedDensity

    @property
    def user_function(self) -> Any:
        """Where its programs are stored; see `models.programs.owner_of`."""
        return self.joint

    @property
    def made_with(self) -> tuple[Any, ...]:
        """What else it is made of."""
        return ()

    def __call__(self, params: PyTree, row: tuple[PyTree, ...]) -> dict[str, Any]:
        b, *z = row
        return self.joint.predict(params, self.joint.effects_of(params, b), *z)


@dataclass(frozen=True)
class GroupRows:
    """Rows of covariates z (R, …) of a mixed model, None where it takes none, and the group of each among those of the fit.

    `group` is None where groups do not matter, or are not those of the fit.
    """

    z: PyTree
    group: Int[np.ndarray, " R"] | None
    weights: Any = None
    labels: Any = None

    @property
    def count(self) -> int:
        """R."""
        leaves = jax.tree.leaves(self.z)
        return len(leaves[0]) if leaves else (1 if self.group is None else len(self.group))

    def given(self, b: Float[AnyArray, "R q"]) -> Rows:
        """The rows beside the effects."""
        given = (b,) if self.z is None else (b, self.z)
        return Rows(given, (False,) * len(jax.tree.leaves(given)), self.weights, self.labels)


def group_rows(fit: Fit, model: MixedModel, new: Any, groups: Any, at: str) -> GroupRows:
    """The rows to predict, and the groups that they belong to."""
    dataset = None if fit.origin is None else fit.origin.dataset
    labels = None if dataset is None else dataset.group_labels
    num_groups = 0 if dataset is None else len(jax.tree.leaves(dataset.data)[0])
    own = _ungrouped(dataset.given, dataset.data) if dataset is not None else None
    if new is None:
        if dataset is None:
            origin_of(fit)
        if groups is not None:
            raise ValueError("groups are those of the rows of new. Leave it out for the rows of the fit, or give new.")
        assert dataset is not None
        assert own is not None
        names = np.arange(num_groups) if labels is None else labels
        if own.rows is None:
            if at != "predicted":
                return GroupRows(None, None)
            return GroupRows(None, np.arange(num_groups), dataset.weights, names)
        weights = None if dataset.weights is None and own.weights is None else own.weights_of_rows(dataset.weights)
        return GroupRows(own.rows, own.group, weights, own.labels(names))
    if own is not None and own.rows is None:
        raise ValueError("new was given, but the model was fitted without covariates. Leave new out.")
    table = predictor = None
    if isinstance(model.joint.predictor, Predictor):
        predictor = model.joint.predictor
        # A dictionary of columns, unless it has the arrays that the fit has.
        is_arrays = (
            own is not None and isinstance(own.rows, dict) and isinstance(new, dict) and own.rows.keys() == new.keys()
        )
        if is_table(new) or (isinstance(new, dict) and not is_arrays):
            table = Table(frame_of(new, "new"), "new")
    if not isinstance(new, Grouped):
        check_pytrees(new=new)
    row_labels = next((each[0] for leaf in jax.tree.leaves(new) if (each := labels_of(leaf))), None)
    if table is not None and predictor is not None:
        new = predictor.covariates(table, "new")
        factor: Any = next((effect.factor for effect in getattr(predictor, "effects", ())), None)
        if groups is None and factor is not None and at == "predicted":
            columns = [np.asarray(table.series(name, ", which has the groups").to_numpy()) for name in factor]
            groups = (
                columns[0] if len(columns) == 1 else [", ".join(map(str, row)) for row in zip(*columns, strict=True)]
            )
    own_labels = new.labels if isinstance(new, Grouped) else None
    rows = _ungrouped(check_given(model, new, "new"), None, depth_of=None if own is None else own.rows)
    if own is not None:
        hint = " Rows may stand in groups, with one axis more." + (
            " The model came from a formula: give a table with its columns." if predictor is not None else ""
        )
        _check_like_the_fit(own.rows, rows.rows, hint)
    result = GroupRows(rows.rows, None, None, row_labels if rows.group is None else None)
    _warn_of_missing(result.given(jnp.zeros((result.count, 1))))
    if at != "predicted":
        return replace(result, labels=result.labels if rows.group is None else rows.labels(own_labels))
    if dataset is None:
        origin_of(fit)
    if groups is None:
        groups = own_labels
    elsewhere = 'For groups that the fit has no data of give effects="average" or effects="zero".'
    if groups is None:
        if rows.group is None or rows.num_groups != num_groups:
            raise ValueError(
                f"new has {result.count} rows, and the fit {num_groups} groups; which group a row belongs to is not known. Give "
                f"groups=, the label of each. {elsewhere}"
            )
        return replace(result, group=rows.group, labels=rows.labels(labels))
    expected = result.count if rows.group is None else rows.num_groups
    groups = as_labels(groups, "groups")
    if groups.shape != (expected,):
        unit = "row" if rows.group is None else "group"
        raise ValueError(f"groups has shape {groups.shape}; expected ({expected},), one label for each {unit} of new.")
    known = (np.arange(num_groups) if labels is None else labels).tolist()
    place = {label: k for k, label in enumerate(known)}
    unknown = [shown(label) for label in dict.fromkeys(groups.tolist()) if label not in place]
    if unknown:
        what = "labels" if labels is not None else "numbers, since it was not made from by_group,"
        raise ValueError(
            f"groups has {listed(unknown)}, which the fit does not have: the {what} of its groups are "
            f"{listed([shown(label) for label in known])}. {elsewhere}"
        )
    positions = np.array([place[label] for label in groups.tolist()], int)
    if rows.group is None:
        return replace(result, group=positions)
    return replace(result, group=positions[rows.group], labels=rows.labels(groups))


@dataclass(frozen=True)
class Ungrouped:
    """Rows (R, …), the number of the group of each, and its number in the group; None for rows that do not stand in groups."""

    rows: PyTree
    group: Int[np.ndarray, " R"] | None
    within: Int[np.ndarray, " R"] | None
    weights: Float[np.ndarray, " R"] | None
    num_groups: int

    def weights_of_rows(self, of_groups: Any) -> Float[np.ndarray, " R"]:
        """The weight of each row, its own times that of its group."""
        weights = np.ones(len(self.group)) if self.weights is None else self.weights  # type: ignore[arg-type]
        return weights if of_groups is None else weights * np.asarray(of_groups)[self.group]

    def labels(self, names: Any) -> list[str]:
        """A label for each row, that of its group and its number there."""
        names = np.arange(self.num_groups) if names is None else names
        return [f"{names[g]}, {k}" for g, k in zip(self.group, self.within, strict=True)]  # type: ignore[arg-type]


def _ungrouped(tree: PyTree, data: PyTree, depth_of: PyTree = None) -> Ungrouped:
    """The rows of covariates in groups, without those that fill up; `data` may know which these are.

    Rows that have as many axes as those of `depth_of` do not stand in groups.
    """
    grouped = next((part for part in (tree, data) if isinstance(part, Grouped)), None)
    rows = tree.rows if isinstance(tree, Grouped) else tree
    leaves = jax.tree.leaves(rows)
    if not leaves:
        return Ungrouped(None, None, None, None, 0)
    like = jax.tree.leaves(depth_of)
    if grouped is None and data is None and (not like or np.ndim(leaves[0]) <= np.ndim(like[0])):
        return Ungrouped(rows, None, None, None, 0)
    shape = np.shape(leaves[0])[:2]
    if any(np.shape(leaf)[:2] != shape for leaf in leaves) or len(shape) < 2:
        raise ValueError(f"new has rows in groups of several shapes: {[np.shape(leaf) for leaf in leaves]}.")
    weights = np.ones(shape) if grouped is None else np.asarray(grouped.weights)
    group, within = np.nonzero(weights > 0)
    rows = jax.tree.map(lambda leaf: leaf[group, within], rows)
    return Ungrouped(rows, group, within, None if grouped is None else weights[group, within], shape[0])


def predict_mixed(
    fit: Fit,
    model: MixedModel,
    new: Any,
    what: Any,
    groups: Any,
    at: str,
    kind: str,
    level: float,
    range_: tuple[float, float] | None,
) -> "Prediction":
    """The predictions of a mixed model at predicted effects, averaged over effects, or at effects of zero; see `predict`."""
    q = model.joint.layout.num_free
    conditional = linked(model.joint.family, GivenEffects(model.joint))
    quantity, quantile_level, name = read_what(what, conditional, range_)
    function: Any = quantity
    if at == "average":
        if quantity.what == "quantile":
            raise ValueError(
                'the average of quantiles over effects is no quantile of anything. Give effects="zero" for the quantile of a group '
                'with effects of zero, or effects="predicted".'
            )
        if q > MOST_DIMENSIONS:
            raise ValueError(
                f"the model has {q} effects, and an average over them is a quadrature in up to {MOST_DIMENSIONS}. Give "
                'effects="zero".'
            )
        function = Averaged(quantity, q)
    covariance, description = latent.free_covariance(fit, kind)
    if fit.has_batch and not len(fit):
        raise ValueError("there are no fits in this batch.")
    if at == "predicted":
        description += ", with the errors of the predicted effects"
    output: Output | None = None
    parts = []
    # Data sets may have other groups and rows, so that many fits are predicted one by one, by the same programs.
    for one, its_covariance in zip(fit, covariance, strict=True) if fit.has_batch else [(fit, covariance)]:
        rows, modes, group = _rows_given_effects(one, model, new, groups, at)
        if output is None:
            output = outline_of(one, conditional, function, rows, quantile_level, name)
        numbers = linearize_rows(one, conditional, function, rows, quantile_level, len(output.names))
        value, jacobian, ends = map(np.asarray, numbers)
        if quantity.what == "quantile":
            jacobian = without_steps(jacobian, value)
        free = np.asarray(one.free)
        if modes is not None:
            by_effects = _by_effects_of_rows(one, conditional, function, rows, quantile_level, jacobian.shape[-2], q)
            free, its_covariance, jacobian = _beside_effects(free, its_covariance, jacobian, by_effects, modes, group)
        arrays = value, jacobian, ends, free, its_covariance, rows.weights
        parts.append(Prediction(*arrays, output, level, description, labels=rows.labels))
    if not fit.has_batch:
        return parts[0]
    if len({part.value.shape for part in parts}) != 1:
        raise ValueError(
            "the data sets of these fits have other numbers of rows, so that their predictions make no array. Predict by each: "
            "predict(fits[0], …)."
        )
    return replace(jax.tree.map(lambda *leaves: np.stack(leaves), *parts), labels=parts[0].labels)


def _rows_given_effects(
    fit: Fit, model: MixedModel, new: Any, groups: Any, at: str
) -> tuple[Rows, "latent.Modes | None", Any]:
    """The rows of one fit beside their effects; where these are predicted, the modes of all groups and the group of each row.

    The mode of a group of weight zero, or that was not found, is NaN.
    """
    rows = group_rows(fit, model, new, groups, at)
    q, dtype = model.joint.layout.num_free, fit.layout.dtype
    if at == "average":
        return Rows(rows.z, (False,) * len(jax.tree.leaves(rows.z)), rows.weights, rows.labels), None, None
    if at == "zero":
        return rows.given(np.zeros((rows.count, q), dtype)), None, None
    modes = latent.modes_of_fit(fit)
    weights = origin_of(fit).dataset.weights
    known = modes.certified if weights is None else modes.certified & (np.asarray(weights) > 0)
    modes = modes._replace(
        modes=np.where(known[:, None], modes.modes, np.nan).astype(dtype),
        # Zero, since the errors of all other rows have a product with them.
        covariances=np.where(known[:, None, None], modes.covariances, 0.0),
    )
    return rows.given(modes.modes[rows.group]), modes, rows.group


def _by_effects_of_rows(
    fit: Fit, model: Model, function: Any, rows: Rows, level: float, k: int, q: int
) -> Float[np.ndarray, "m k q"]:
    """The derivatives of the numbers of all rows with respect to the effects b of their groups, in blocks."""
    size = max(1, min(ENTRIES // max(1, k * (fit.free.shape[-1] + q)), class_size(rows.count)))
    level_ = np.asarray(level, fit.layout.dtype)

    def of_block(index: np.ndarray) -> Any:
        return _by_effects(function, model, fit.layout, fit.values, fit.free, rows.take(index), level_)

    return np.asarray(precise(map_blocks(of_block, rows.count, size)))


def _beside_effects(
    free: np.ndarray,
    covariance: Float[np.ndarray, "p p"],
    jacobian: Float[np.ndarray, "m k p"],
    by_effects: Float[np.ndarray, "m k q"],
    modes: "latent.Modes",
    group: Int[np.ndarray, " m"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """u with the effects b of the groups beside it, the covariance of both, and the derivatives of the rows with respect to both.

    There are columns for the effects of all groups, so that predictions for different groups can be compared; where these are very
    many, for the groups of these rows.
    """
    (m, k, p), q, num_groups = jacobian.shape, by_effects.shape[-1], len(modes.modes)
    columns = np.arange(num_groups) if num_groups * q <= MOST_COLUMNS else np.unique(group)
    width = p + q * len(columns)
    check_count(m, 1, "the number of rows", " (fewer groups at a time take less)", entries=k * width)
    whole = np.zeros((m, k, width), by_effects.dtype)
    whole[..., :p] = precise(jacobian) + np.einsum("mkq,mqp->mkp", by_effects, precise(modes.slopes)[group])
    place = p + q * np.searchsorted(columns, group)
    matrix = np.zeros((width, width), by_effects.dtype)
    matrix[:p, :p] = covariance
    for j in range(q):
        whole[np.arange(m), :, place + j] = by_effects[..., j]
        for i in range(q):
            starts = p + q * np.arange(len(columns))
            matrix[starts + i, starts + j] = modes.covariances[columns, i, j]
    return np.concatenate([free, modes.modes[columns].ravel()]), matrix, whole


@functools.partial(jit_with_model, static_argnums=(0, 1, 2), level=1)
def _by_effects(
    function: Quantity, model: Model, layout: Layout, values: Values, free: Any, given: PyTree, level: Any
) -> Float[Array, "m k q"]:
    """The derivatives of the numbers of all rows (b, z) with respect to b."""
    params = layout.constrain(free, values)

    def of_row(row: tuple[PyTree, ...]) -> Array:
        def numbers(b: Float[Array, " q"]) -> Float[Array, " k"]:
            return in_one_row(function(model, layout, params, ((b, *row[1:]),), level)).astype(free.dtype)

        return jax.jacfwd(numbers)(row[0])

    return jax.vmap(of_row)(given)


# --- predict ----------------------------------------------------------------------------------------------------------


@entry_point
def predict(
    fit: Fit,
    new: Any = None,
    what: What = "mean",
    *,
    kind: CovarianceKind | None = None,
    level: float = 0.95,
    scale: Scale | Interval = "unconstrained",
    effects: AtEffects = "predicted",
    groups: Any = None,
    new_axis: Any = None,
    model: Any = None,
) -> Prediction:
    """Predict the mean, a parameter, a quantile or any function of rows of covariates, with standard errors: var m(θ̂, z) ≈ J V Jᵀ.

    Parameters
    ----------
    fit : Fit
        Of many fits, every result gains their leading axis.
    new : pytree of arrays, or a table, optional
        Covariates as the `given` of the fit: arrays with a leading axis of length m, offsets and exposures among them. For a model
        from a formula a table (pandas, polars, Arrow, a dictionary) with the formula's columns, whose transformations and levels
        are those of the fit. By default the rows of the fit. A model without covariates has one prediction.
    what : "mean", str, float or callable
        "mean", the mean of y; the name of a parameter of the family, as "scale"; a number between 0 and 1, that quantile of y; or a
        function that returns a number or a pytree of arrays: of the dictionary of the family's parameters for a `linked` model, of
        params (and z) for any other.
    kind : {"observed", "expected", "empirical", "sandwich"}, optional
        The covariance V, as for `Fit.covariance`: by default that of the fit, which `robust` makes robust or clustered.
    level : float
        Coverage aimed at by the intervals.
    scale : {"unconstrained", "natural"} or a constraint
        Intervals are made on the scale of the range of what is predicted and mapped back, so that they stay inside: the
        logarithm of what is positive, the logit of a probability. The range of a parameter is its constraint, that of a mean
        or quantile the model's `support`, that of a function the whole line unless an interval is given, as
        `fisher_jax.positive`. "natural" makes symmetric intervals.
    effects : {"predicted", "average", "zero"}
        Of a model made by `mixed`. "predicted": at the predicted effects of the group that a row belongs to, with their errors.
        "average": the mean over the effects of a new group, by quadrature, in up to three effects; not for quantiles. "zero": for
        a group whose effects are zero.
    groups : array, optional
        Of a mixed model, for `new` and predicted effects: the label of the group of each row, or of each group of rows; numbers
        from 0 where the fit has no labels. By default those of `new` where it comes from `by_group`, or is the table of a formula,
        which names the column; else `new` must have the groups of the fit in their order.
    new_axis : int, None or pytree of them
        For many fits that each have rows of their own: the axis of `new` over the fits.
    model : Model, optional
        Needed where the fit no longer has its model, as one that was loaded from a file.

    Returns
    -------
    Prediction
        `estimate` (m,), with `standard_errors()`, `confidence_intervals()`, `covariance()`, `average()`, `contrast()` and
        `to_frame()`. Standard errors are NaN where the fit failed, with a `FitWarning`, and for quantiles of discrete
        distributions, which do not move with the parameters but jump.

    Raises
    ------
    ValueError, TypeError
        If the rows do not have the covariates of the fit, `what` names nothing, or the model has no mean or no quantile function.

    Warns
    -----
    FitWarning
        Where a fit failed, or rows have covariates that are NaN: what depends on these is NaN.

    Notes
    -----
    Valid as far as the prediction is linear in the parameters over a few standard errors, on the scale of its interval. The
    interval is one for the mean (or parameter, quantile), not for a new observation. For a log or logit link the intervals are
    those of the linear predictor mapped back, as statsmodels' ``get_prediction`` gives them; for a probit link, of which the logit
    is taken here, they differ in the second order.

    Of a mixed model `new` has rows (m, …), or rows in groups (G, m, …), or is what `by_group` returns; the predictions are one for
    each row, without those that fill up groups. Predicted effects are drawn towards zero: their intervals cover on average over
    groups, not for each group. A mean at predicted effects is that given the effects at their mode.

    Cost: p passes of the predictor forward over all rows, in blocks; m p numbers are kept. Other rows, levels and fits of
    the model compile nothing, up to the size class of m.

    References
    ----------
    van der Vaart, A. W. (1998), Asymptotic Statistics, theorem 3.1; McCullagh, P. and Nelder, J. A. (1989), Generalized Linear
    Models, 2nd ed., section 12.5.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> model = fj.linked(fj.families.bernoulli, lambda beta, x: {"logit": beta[0] + beta[1] * x})
    >>> x, y = jnp.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), jnp.array([0, 0, 1, 0, 1, 1])
    >>> fit = fj.fit(model, jnp.zeros(2), y, given=x)
    >>> print(fj.predict(fit, jnp.array([1.0, 4.0])).confidence_intervals(level=0.9).round(2))
    [[0.01 0.75]
     [0.25 0.99]]
    """
    check_fit(fit)
    check_level(level)
    model = model_of(fit, model)
    range_ = None
    if isinstance(scale, Interval):
        range_ = (scale.low, scale.high)
    else:
        check_choice(scale, ("unconstrained", "natural"), "scale", " Or give a constraint, as fisher_jax.positive.")
        range_ = (-math.inf, math.inf) if scale == "natural" else None
    which = fit._check(kind)
    check_choice(effects, ("predicted", "average", "zero"), "effects")
    if isinstance(model, MixedModel):
        if new_axis is not None:
            raise ValueError(
                "new_axis is not for mixed models: many fits share the rows of new. Predict by each of them."
            )
        return predict_mixed(fit, model, new, what, groups, effects, which, level, range_)
    check_no_effects(model)
    if groups is not None or effects != "predicted":
        raise ValueError("effects and groups are for models made by mixed; this one has no effects. Leave them out.")
    quantity, quantile_level, name = read_what(what, model, range_)
    rows = rows_of(fit, model, new, new_axis)
    output = outline_of(fit, model, quantity, rows, quantile_level, name)
    fit._warn(which)
    value, jacobian, ends = linearize_rows(fit, model, quantity, rows, quantile_level, len(output.names))
    if quantity.what == "quantile":
        jacobian = without_steps(jacobian, value)
    covariance = fit._computed(covariances.free_covariance, which)
    return Prediction(
        *(value, jacobian, ends, fit.free, covariance, rows.weights, output, level, fit.describe(which)),
        labels=rows.labels,
    )


def outline_of(fit: Fit, model: Model, function: Quantity | Averaged, rows: Rows, level: float, name: str) -> Output:
    """The names and shapes of the numbers of one row, learnt without running anything."""
    first = jax.tree.map(
        lambda leaf, differs: jax.ShapeDtypeStruct(
            np.shape(leaf)[1 + differs :], jax.dtypes.canonicalize_dtype(leaf.dtype)
        ),
        rows.given,
        jax.tree.unflatten(jax.tree.structure(rows.given), [int(differs) for differs in rows.differs]),
    )

    def of_params(params: PyTree) -> PyTree:
        # As zeros, which are traced with the parameters: only shapes are asked for.
        z = () if first is None else (jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), first),)
        return function(model, fit.layout, params, z, jnp.asarray(level))

    output = outline(of_params, fit, "what" if function.function is not None else name)
    predictor = predictor_of(model)
    levels = () if predictor is None else predictor.levels
    if function.what == "mean" and len(levels) == len(output.names) > 1:  # of the categories of a formula's response
        return replace(output, names=tuple(f"{name}[{level}]" for level in levels))
    if function.function is None:
        return output
    # Errors in the user's function name the argument, reports the function.
    names = (name + each.removeprefix("what") if each.split("[")[0] == "what" else each for each in output.names)
    return replace(output, names=tuple(names))


def without_steps(jacobian: AnyArray, value: AnyArray) -> AnyArray:
    """The derivatives of quantiles, NaN with a warning where all are zero: a step function has no first-order error."""
    if is_traced(jacobian):
        return jnp.where(jnp.all(jacobian == 0, axis=-1, keepdims=True), jnp.nan, jacobian)
    flat = np.all(jacobian == 0, axis=-1) & np.isfinite(value)
    if np.any(flat):
        warn(
            "the quantile does not move with the parameters, as that of a discrete distribution, which jumps: there are no "
            f"standard errors for {int(flat.sum())} of {flat.size} predictions. Use the bootstrap."
        )
    return np.where(flat[..., None], np.nan, jacobian)
