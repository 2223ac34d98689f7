"""`marginal_effects`: how a prediction changes with each covariate, averaged over the rows or at their means.

The effect of x on the prediction m(θ, z) is the derivative ∂m/∂z · ∂z/∂x. The first factor is differentiated by JAX. For arrays
the second picks a column; for a table it is the change of the whole row of the design with the column of the table, by central
differences in float64, so that x enters by its total derivative where it is in several terms (x, x², x times another). A column
that is a category or a truth value, which has no derivative, has discrete changes between its levels. Standard errors are those of
the delta method, with the second derivatives ∂²m/∂u∂z by JAX (Greene, W. H., Econometric Analysis, 7th ed., section 17.3.2).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from fisher_jax.errors import check_choice, check_flag, check_level, entry_point, names_in, shown
from fisher_jax.fitting import covariance as covariances
from fisher_jax.fitting.covariance import CovarianceKind
from fisher_jax.fitting.map_fits import check_fit
from fisher_jax.fitting.parameter_functions import in_one_row, name_within
from fisher_jax.fitting.result import Fit, Origin
from fisher_jax.frames.predictor import Predictor
from fisher_jax.inference.predicted_rows import (
    Quantity,
    Rows,
    What,
    as_table,
    check_no_effects,
    linearize_rows,
    model_or_given,
    outline_of,
    predictor_of,
    read_what,
    rows_of,
    table_of_fit,
    without_steps,
)
from fisher_jax.inference.prediction import Effects, check_row_weights
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout
from fisher_jax.numerics.array_namespace import namespace
from fisher_jax.reporting import listed
from fisher_jax.tables import Table

Method = Literal["dydx", "eyex", "dyex", "eydx"]
At = Literal["overall", "mean", "rows"]
METHODS = {"dydx": "dy/dx", "eyex": "d log y / d log x", "dyex": "dy / d log x", "eydx": "d log y / dx"}
PLACES = {"overall": "average {}", "mean": "{} at the means", "rows": "{} of each row"}
STEP = float(np.finfo(float).eps) ** (1 / 3)  # that of central differences, relative


# --- the effect in one row --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slope:
    """The derivative of a quantity along a direction of the covariates; its rows are (covariates, direction, x)."""

    quantity: Quantity
    method: str

    def __call__(self, model: Model, layout: Layout, params: PyTree, z: tuple[PyTree, ...], level: Any) -> Array:
        row, direction, x = z[0]
        leaves, treedef = jax.tree.flatten(row)
        moving = [k for k, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]

        def numbers(values: list[Array]) -> Array:
            moved = dict(zip(moving, values, strict=True))
            there = jax.tree.unflatten(treedef, [moved.get(k, leaf) for k, leaf in enumerate(leaves)])
            return in_one_row(self.quantity(model, layout, params, (there,), level))

        value, slope = jax.jvp(numbers, ([leaves[k] for k in moving],), (direction,))
        slope = slope * x if self.method.endswith("ex") else slope
        return slope / value if self.method.startswith("ey") else slope

    def ends(self, *_: Any) -> tuple[float, float]:
        """An effect may be any number."""
        return -np.inf, np.inf


@dataclass(frozen=True)
class Change:
    """The difference of a quantity, or of its logarithm, between two rows of covariates."""

    quantity: Quantity
    method: str

    def __call__(self, model: Model, layout: Layout, params: PyTree, z: tuple[PyTree, ...], level: Any) -> Array:
        to, start = (in_one_row(self.quantity(model, layout, params, (row,), level)) for row in z[0])
        return jnp.log(to) - jnp.log(start) if self.method == "eydx" else to - start

    def ends(self, *_: Any) -> tuple[float, float]:
        """An effect may be any number."""
        return -np.inf, np.inf


# --- the variables ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variable:
    """A covariate, or a change of one, and the rows that `Slope` or `Change` takes for it."""

    label: str
    rows: Rows
    is_change: bool


def _variables_of_arrays(
    rows: Rows, fitted: Rows, names: list[str] | None, dummy: bool, weights: Any, at: str
) -> list[Variable]:
    """The columns of the covariates. Constant ones are left out unless they are named."""
    leaves, treedef = jax.tree.flatten(rows.given)
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(rows.given)[0]]
    of_fit = jax.tree.leaves(fitted.given)
    columns: dict[str, tuple[int, tuple[int, ...]]] = {}
    varying = []
    for k, (path, leaf, differs) in enumerate(zip(paths, leaves, rows.differs, strict=True)):
        root = name_within("given", path)
        for index in np.ndindex(np.shape(leaf)[1 + differs :]):
            name = f"{root}[{','.join(map(str, index))}]" if index else root
            columns[name] = k, index
            place: Any = (..., *index)
            column = np.asarray(of_fit[k])[place]
            if np.max(column) > np.min(column):
                varying.append(name)
    chosen = _choose(names, columns, varying)
    if at == "mean":
        leaves = [_mean(leaf, differs, weights) for leaf, differs in zip(leaves, rows.differs, strict=True)]
    result = []
    for name in chosen:
        k, index = columns[name]
        differs = rows.differs[k]
        place = (..., *index)
        values = np.asarray(of_fit[k])[place]
        row = list(leaves)
        row[k] = np.array(leaves[k], np.result_type(leaves[k].dtype, np.float32))
        if (dummy and np.isin(values, (0, 1)).all()) or of_fit[k].dtype == bool:
            ends = []
            for level in (1.0, 0.0):
                moved = np.array(row[k])
                moved[place] = level
                moved = moved.astype(bool) if of_fit[k].dtype == bool and at != "mean" else moved
                ends.append(jax.tree.unflatten(treedef, [*row[:k], moved, *row[k + 1 :]]))
            result.append(Variable(f"{name}: 1 − 0", Rows(tuple(ends), rows.differs * 2, rows.weights), True))
            continue
        moving = [j for j, leaf in enumerate(row) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        direction = [np.broadcast_to(np.zeros((), row[j].dtype), np.shape(row[j])) for j in moving]
        unit = np.zeros(np.shape(row[k]), row[k].dtype)
        unit[place] = 1.0
        direction[moving.index(k)] = unit
        moves = tuple(rows.differs[j] for j in moving)
        given = (jax.tree.unflatten(treedef, row), direction, row[k][place])
        result.append(Variable(name, Rows(given, (*rows.differs, *moves, differs), rows.weights), False))
    return result


def _choose(names: list[str] | None, every: Iterable[str], default: list[str]) -> list[str]:
    """The variables of these names, or the default ones; raise for a name that there is not."""
    if names is None:
        if not default:
            raise ValueError("there is no covariate that varies. Name the variables: variables=[…].")
        return default
    if unknown := [name for name in names if name not in every]:
        raise ValueError(
            f"variables names {listed([repr(name) for name in unknown])}, but the covariates are "
            f"{listed([repr(name) for name in every], 12)}."
        )
    return names


def _mean(leaf: Any, differs: bool, weights: Any) -> np.ndarray:
    """The weighted mean over rows of an array of covariates, one row in their place."""
    leaf = np.asarray(leaf)
    axis = int(differs)
    w = np.asarray(weights, float)
    if w.ndim == 2 and not differs:
        raise ValueError(
            'at="mean" needs weights that all fits share where they share the covariates. Take each by itself: fits[k].'
        )
    w = w.reshape((*((1,) * (axis + 1 - w.ndim)), *w.shape, *(1,) * (leaf.ndim - axis - 1)))
    mean = np.sum(np.where(w == 0, 0.0, w * leaf), axis=axis, keepdims=True) / np.sum(w, axis=axis, keepdims=True)
    return mean.astype(np.result_type(leaf.dtype, np.float32))


def _variables_of_table(
    table: Table, predictor: Predictor, names: list[str] | None, dummy: bool, weights: np.ndarray, at: str
) -> list[Variable]:
    """The columns of a table that enter its design: numbers with their derivative, categories with their changes.

    Offsets and exposures, which have no coefficient, are variables only where they are named.
    """

    def design(columns: dict[str, Any]) -> PyTree:
        """The covariates with these columns in place."""
        return jax.tree.map(lambda leaf: np.asarray(leaf, float), predictor.covariates(table.replace(columns)))

    columns = table.names
    _choose(names, columns, columns)
    used = [name for name in columns if name in predictor.variables]
    candidates = used if names is None or at == "mean" else [name for name in names if name in used]
    slopes: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}  # the numbers of a column, the steps up and down
    levels: dict[str, list[Any]] = {}
    for name in candidates:
        x = table.numbers(name) if table.series(name).dtype.is_numeric() else None
        if x is not None and not (dummy and np.isin(x, (0, 1)).all()):
            # Steps that suit each row: of its own size, but no larger than the spread and not far smaller.
            spread = np.std(x[np.isfinite(x)]) if np.any(np.isfinite(x)) else 0.0
            size = np.clip(np.abs(x), 0.01 * spread, spread) if spread > 0 else np.maximum(np.abs(x), 1.0)
            steps = _steps(design, name, x, STEP * size)
            if steps is not None:
                if _differ(design({name: x + steps[0]}), design({name: x - steps[1]})):
                    slopes[name] = x, *steps
                continue
        of_column = table.levels(name)
        if any(_differ(design({name: of_column[0]}), design({name: level})) for level in of_column[1:]):
            levels[name] = of_column
    entering = [name for name in columns if name in slopes or name in levels]
    if unused := [name for name in names or () if name not in entering]:
        raise ValueError(
            f"variables names {listed([repr(name) for name in unused])}, which the model does not depend on. The columns to "
            f"choose from: {listed([repr(name) for name in used if name not in unused], 12)}."
        )
    # At the means: numbers at theirs, categories by the mean of what the design has for them, their frequencies.
    means = (
        {name: np.full(len(x), np.average(x, weights=weights)) for name, (x, *_) in slopes.items()}
        if at == "mean"
        else {}
    )

    def rows(*designs: PyTree) -> Rows:
        given = designs
        if at == "mean":
            given = tuple(jax.tree.map(lambda leaf: _mean(leaf, False, weights), design) for design in designs)
        return Rows(given, (False,) * len(jax.tree.leaves(given)), None)

    base = design(means)
    result = []
    without_coefficient = [part.source for part in predictor.constants]
    for name in _choose(names, columns, [name for name in entering if name not in without_coefficient]):
        if name in levels:
            first, *others = levels[name]
            start = design(means | {name: first})
            for level in others:
                to = design(means | {name: level})
                result.append(Variable(f"{name}: {_word(level)} − {_word(first)}", rows(to, start), True))
            continue
        x, up, down = slopes[name]
        x = means.get(name, x)
        upper, lower = x + up, x - down
        high, low = (design(means | {name: end}) for end in (upper, lower))
        width = upper - lower  # as rounded

        def slope(above: np.ndarray, below: np.ndarray, width: np.ndarray = width) -> np.ndarray:
            return (above - below) / width.reshape((-1, *(1,) * (above.ndim - 1)))

        direction = jax.tree.leaves(jax.tree.map(slope, high, low))
        result.append(Variable(name, rows(base, direction, x), False))
    return result


def _steps(
    design: Callable[[dict[str, Any]], PyTree], name: str, x: np.ndarray, step: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """The steps up and down from the numbers of a column; None where the formula takes these for categories.

    A spline is not defined beyond the knots at its ends: there the steps end at the greatest and the least of the numbers.
    """

    def is_defined(values: np.ndarray) -> bool:
        try:
            design({name: values})
        except ValueError:
            return False
        return True

    steps = []
    for sign, end in ((1.0, np.max(x)), (-1.0, np.min(x))):
        # The end itself is left out by a little, which rounding would pass.
        each = step if is_defined(x + sign * step) else np.minimum(step, (1.0 - 1e-8) * np.abs(end - x))
        if not is_defined(x + sign * each):
            return None
        steps.append(each)
    return (steps[0], steps[1]) if np.all(steps[0] + steps[1] > 0) else None


def _word(level: Any) -> str:
    """A level in a label: 1 and not 1.0."""
    return f"{level:g}" if isinstance(level, float) else str(level)


def _differ(first: PyTree, second: PyTree) -> bool:
    """Whether two designs differ anywhere."""
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return not all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)


# --- marginal_effects -------------------------------------------------------------------------------------------------


@entry_point
def marginal_effects(
    fit: Fit,
    new: PyTree = None,
    variables: str | Sequence[str] | None = None,
    *,
    what: What = "mean",
    at: At = "overall",
    method: Method = "dydx",
    dummy: bool = False,
    weights: Any = None,
    kind: CovarianceKind | None = None,
    level: float = 0.95,
    new_axis: PyTree = None,
    model: Model | None = None,
) -> Effects:
    """How the mean, or another prediction, changes with each covariate: ∂m/∂x averaged over rows or at their means.

    Parameters
    ----------
    fit : Fit
        Of many fits, every result gains their leading axis.
    new : pytree of arrays, or a table, optional
        The rows, as for `predict`; by default those of the fit. For a model from a formula the table, whose columns are the
        variables.
    variables : str or sequence of str, optional
        Columns of the table, or of the covariates as they are named in messages: "given[1]" the second column of a matrix, "x" and
        "x[0]" in a dictionary. By default all that enter and vary.
    what : "mean", str, float or callable
        What is predicted, as for `predict`.
    at : {"overall", "mean", "rows"}
        Averaged over the rows; at one row whose covariates are the means; or for every row. At the means a category counts by the
        frequencies of its levels, and x² by the square of the mean of x.
    method : {"dydx", "eyex", "dyex", "eydx"}
        The derivative, or an elasticity: d log m / d log x, d m / d log x, d log m / d x.
    dummy : bool
        Whether a column of zeros and ones has a discrete change from 0 to 1 in place of a derivative. Columns of truth values and
        categories always have: each level less the first.
    weights : array (m,), optional
        Weights of the rows; by default those of the fit where the rows are its own, else equal ones.
    kind, level
        As for `predict`: a fit made by ``robust(fit, clusters=…)`` has clustered errors.
    new_axis, model
        As for `predict`.

    Returns
    -------
    Effects
        A row for each variable or change, with standard errors, z, p-values and intervals. NaN where the fit failed, with a
        `FitWarning`.

    Raises
    ------
    ValueError, TypeError
        If a variable is unknown or does not enter, if the model came from a formula and no table is given, if rows have covariates
        that are missing, or an elasticity with respect to a category is asked for.

    Notes
    -----
    The covariates are taken as given: that the rows are themselves a sample is not in the standard errors. An average effect is
    causal only if the covariates are as good as randomly assigned.

    For ``at="overall"`` and ``"mean"`` the same as ``get_margeff`` of statsmodels where each covariate is in one term;
    that takes the terms for separate covariates, where here a covariate in several (x, x²) has its total derivative.

    Cost: two times p passes of the predictor over all rows, for each variable.

    References
    ----------
    Greene, W. H. (2012), Econometric Analysis, 7th ed., section 17.3.2, eqs (17-19) to (17-21).

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> model = fj.linked(fj.families.bernoulli, lambda beta, x: {"logit": beta[0] + beta[1] * x})
    >>> x, y = jnp.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), jnp.array([0, 0, 1, 0, 1, 1])
    >>> effects = fj.marginal_effects(fj.fit(model, jnp.zeros(2), y, given=x))
    >>> print(effects.estimate.round(3), effects.standard_errors().round(3))
    [0.159] [0.022]
    """
    check_fit(fit)
    check_level(level)
    check_choice(at, tuple(PLACES), "at", " A table of rows is given as `new`.")
    check_choice(method, tuple(METHODS), "method")
    check_flag(dummy, "dummy")
    names = None if variables is None else names_in(variables)
    if names == [] or (names is not None and len(set(names)) < len(names)):
        raise TypeError(f"variables={shown(variables)} must be a name or a sequence of different names.")
    model = model_or_given(fit, model)
    check_no_effects(model)
    quantity, quantile_level, name = read_what(what, model)
    which = fit._check(kind)
    predictor = predictor_of(model)
    rows = rows_of(fit, model, new, new_axis)
    table = table_of_fit(fit) if new is None else as_table(model, fit, new)
    if predictor is not None and table is None:
        raise ValueError(
            "the model came from a formula, and its variables are columns of a table, which this fit does not have. Give the "
            "table as new: marginal_effects(fit, table)."
        )
    if rows.given is None:
        raise ValueError("the model has no covariates, so that there are no effects of them.")
    for leaf in jax.tree.leaves(rows.given):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and np.any(np.isnan(np.asarray(leaf))):
            raise ValueError("new has covariates that are NaN, over which there is no average. Leave these rows out.")
    if weights is not None:
        weights = check_row_weights(weights, rows.count)
    row_weights = rows.weights if weights is None else weights
    row_weights = np.ones(rows.count) if row_weights is None else row_weights
    output = outline_of(fit, model, quantity, rows, quantile_level, name)

    if predictor is not None and table is not None:
        of_variables = _variables_of_table(table, predictor, names, dummy, row_weights, at)
    else:
        fitted = rows if not isinstance(fit.origin, Origin) else rows_of(fit, model, None, None)
        of_variables = _variables_of_arrays(rows, fitted, names, dummy, row_weights, at)
    if method.endswith("ex") and (changes := [v.label for v in of_variables if v.is_change]):
        raise ValueError(
            f"method={method!r}: {listed(changes)} is a discrete change, which has no elasticity. Name the others: variables=[…]."
        )
    fit._warn(which)
    parts = []
    for variable in of_variables:
        function = (Change if variable.is_change else Slope)(quantity, method)
        averaged = row_weights if at == "overall" else None
        parts.append(linearize_rows(fit, model, function, variable.rows, quantile_level, len(output.names), averaged))
    xp = namespace(parts)
    value, jacobian, ends = (
        xp.concatenate(part, axis=-a) for part, a in zip(zip(*parts, strict=True), (2, 3, 2), strict=True)
    )
    if quantity.what == "quantile":
        jacobian = without_steps(jacobian, value)
    labels = [variable.label for variable in of_variables]
    if at == "rows":
        each = range(rows.count) if rows.labels is None else rows.labels
        labels = [f"{label}, {row}" for label in labels for row in each]
    covariance = fit._computed(covariances.free_covariance, which)
    return Effects(
        *(value, jacobian, ends, fit.free, covariance, None, output, level, fit.describe(which)),
        labels=tuple(labels),
        heading=PLACES[at].format(METHODS[method]),
    )
