"""What is predicted of rows of covariates: a quantity of each row, its value and its derivatives with respect to the parameters."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.blocks import map_blocks
from fisher_jax.errors import check_function, check_pytrees, is_number, shown, warn
from fisher_jax.fitting.padding import class_size
from fisher_jax.fitting.parameter_functions import Output, in_one_row, outline
from fisher_jax.fitting.result import Fit, Origin, model_of, origin_of
from fisher_jax.frames.predictor import Predictor
from fisher_jax.input_arrays import labels_of
from fisher_jax.latent.marginal import MarginalModel
from fisher_jax.models.auxiliary import AuxiliaryModel
from fisher_jax.models.constraints import Interval
from fisher_jax.models.dataset import as_unmasked_arrays, axis_first, axis_of_each, check_given, common_size, first_of
from fisher_jax.models.linked import LinkedModel
from fisher_jax.models.model import Model, as_model, check_quantile, flatten_parameters
from fisher_jax.models.parameters import Layout, Values, path_name
from fisher_jax.models.programs import ById, call_differentiable, jit_with_model
from fisher_jax.numerics.array_namespace import AnyArray, is_traced, namespace, on_host
from fisher_jax.reporting import listed
from fisher_jax.tables import Table, frame_of, is_table

ENTRIES = 2**21  # rows times numbers times parameters in memory at once
What = str | float | Callable[..., PyTree]


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

    `given` is None where the model takes none, and there is one row. Of many fits `differs` states for each leaf whether it has
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
        selected = [
            leaf[:, rows] if differs else leaf[rows] for leaf, differs in zip(leaves, self.differs, strict=True)
        ]
        return jax.tree.unflatten(treedef, selected)

    def of_fits(self, index: Any) -> PyTree:
        """The rows of some of many fits."""
        leaves, treedef = jax.tree.flatten(self.given)
        selected = [leaf[index] if differs else leaf for leaf, differs in zip(leaves, self.differs, strict=True)]
        return jax.tree.unflatten(treedef, selected)


def model_or_given(fit: Fit, model: Any) -> Model:
    """The model of the rows of a fit, or the one given where the fit no longer has it."""
    if model is None and fit.origin is None:
        raise ValueError(
            "the fit no longer has its model: transformations (jit, vmap, tree.map), files and lists of data sets leave it out. "
            "Give it: model=…."
        )
    model = model_of(fit) if model is None else as_model(model)
    if model.parts:
        raise ValueError(
            f"the model is a joint one. Take a part of the fit, as in fit.part({next(iter(model.parts))!r})."
        )
    if model.is_dependent:
        raise ValueError(
            "the model is `dependent`: its prediction for a time depends on the times before, not on one row. Write the prediction "
            "as a function of params and use delta_method."
        )
    return model.base if isinstance(model, AuxiliaryModel) else model


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


def as_table(model: Model, fit: Fit, new: Any, name: str = "new") -> Table | None:
    """The table meant by `new` where the model came from a formula: a table, or a dictionary of its columns; else None."""
    if predictor_of(model) is None or not (is_table(new) or isinstance(new, dict)):
        return None
    given = fit.origin.dataset.given if isinstance(fit.origin, Origin) else None
    if isinstance(new, dict) and isinstance(given, dict) and given.keys() == new.keys():
        return None  # arrays as the fit has them
    return Table(frame_of(new, name), name)


def table_of_fit(fit: Fit) -> Table | None:
    """The table that a fit of a formula comes from, with the rows that were used; None where it does not have one."""
    table = fit.origin.dataset.table if isinstance(fit.origin, Origin) else None
    return None if table is None or np.ndim(table.rows) > 1 else table


def rows_of(fit: Fit, model: Model, new: Any, new_axis: Any, name: str = "new") -> Rows:
    """The rows to predict, checked against those of the fit where it has them."""
    dataset = fit.origin.dataset if isinstance(fit.origin, Origin) else None
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
        raise ValueError(f"{name} was given, but the model was fitted without covariates. Leave {name} out.")
    check_pytrees(**{name: new})
    predictor, table = predictor_of(model), as_table(model, fit, new, name)
    labels = next((each[0] for leaf in jax.tree.leaves(new) if (each := labels_of(leaf))), None)
    if predictor is not None and table is not None:
        new = predictor.covariates(table, name)
    if not fit.has_batch or new_axis is None:
        if new_axis is not None:
            raise ValueError("new_axis is for many fits that each have rows of their own; this is one fit.")
        new = check_given(model, new, name)
        differs = (False,) * len(jax.tree.leaves(new))
        first = new
    else:
        new = as_unmasked_arrays(new, name)
        marks = axis_of_each(new, new_axis, "new")
        size = common_size({"new": (new, marks)})
        new = axis_first(new, marks)
        differs = tuple(mark.number is not None for mark in jax.tree.leaves(marks))
        if size and size != len(fit):
            raise ValueError(f"new has rows for {size} fits, but there are {len(fit)}.")
        first = check_given(model, first_of(new, marks), "new")
    if dataset is not None:
        hint = " The model came from a formula: give a table with its columns." if predictor is not None else ""
        check_like_the_fit(dataset.one(0).given if fit.has_batch else dataset.given, first, hint, name)
    rows = Rows(new, differs, None, labels)
    warn_of_missing(rows, name)
    return rows


def check_like_the_fit(given: PyTree, new: PyTree, hint: str, argument: str = "new") -> None:
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
            f"{argument} {' and '.join(parts) or 'is another pytree'}: expected covariates as the fit has them, "
            f"{_shapes(given)}, but got {_shapes(new)}.{hint}"
        )
    for name, leaf in expected.items():
        if np.shape(leaf)[1:] != np.shape(came[name])[1:]:
            raise ValueError(
                f"{argument}{'' if name == 'params' else f' {name}'} has shape {np.shape(came[name])}; expected {_shapes(leaf)}, "
                "as the covariates of the fit."
            )


def _shapes(tree: PyTree) -> str:
    """A pytree of rows with the shapes of its arrays, m being the number of rows."""

    def shape_of(leaf: Any) -> str:
        rest = np.shape(leaf)[1:]
        return f"(m, {', '.join(map(str, rest))})" if rest else "(m,)"

    return str(jax.tree.map(shape_of, tree)).replace("'(", "(").replace(")'", ")")


def warn_of_missing(rows: Rows, name: str = "new") -> None:
    """Warn of rows in which a covariate is NaN."""
    missing = np.zeros(rows.count, bool)
    for leaf, differs in zip(jax.tree.leaves(rows.given), rows.differs, strict=True):
        if is_traced(leaf) or not jnp.issubdtype(leaf.dtype, jnp.floating):
            continue
        is_nan = np.isnan(np.asarray(leaf))
        missing |= is_nan.any(axis=tuple(k for k in range(is_nan.ndim) if k != int(differs)))
    if np.any(missing):
        warn(
            f"{int(missing.sum())} of {len(missing)} rows of {name} have a covariate that is NaN, the first of them row "
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


def outline_of(fit: Fit, model: Model, function: Any, rows: Rows, level: float, name: str) -> Output:
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
