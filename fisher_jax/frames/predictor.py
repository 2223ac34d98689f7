"""The predictor of a formula: from a table to covariates, and from covariates and coefficients to the parameters of a family."""

import re
import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from fisher_jax.errors import require
from fisher_jax.fitting.groups import Groups, groups_of
from fisher_jax.frames.links import links_of
from fisher_jax.models.fingerprint import digest
from fisher_jax.reporting import listed
from fisher_jax.tables import Table, as_numbers, describe_missing, frame_of, suggestion

EFFECTS = "effects"  # the name under which covariates hold the columns that multiply effects
IN_PLACE_OF = {  # functions of formulas of R
    "offset": "An offset is an argument: formula(…, offset='t').",
    "cbind": "The response of families.binomial is the number of successes, and the trials an argument: formula(…, trials='n').",
    "Surv": "The response is the time, and whether it is that of an event an argument: formula(…, event='died'); of an "
    "interval the upper end, formula('low ~ x', …, upper='high').",
    "factor": "Write C(…).",
}
_COLORS = re.compile(r"\x1b\[[0-9;]*m|[⧛⧚]")


@dataclass(frozen=True)
class LinearPredictors:
    """What a log-density needs of a predictor: which parameters have a linear predictor, and by which link.

    It is what compiled programs are stored with, so that formulas with the same links share them. The linear predictor is written
    ``z @ coefficients``, which the engine recognises.

    Attributes
    ----------
    links : tuple of (str, str)
        The parameters with a formula, each with its link.
    scalars : tuple of str
        Parameters that are estimated, or held, as one number.
    columns : tuple of str
        Parameters that the family takes as known, with a value for each observation.
    has_offset : bool
        Whether `z` has an offset of the first linear predictor.
    """

    links: tuple[tuple[str, str], ...]
    scalars: tuple[str, ...]
    columns: tuple[str, ...]
    has_offset: bool

    def __call__(self, params: dict[str, Any], z: dict[str, Any]) -> dict[str, Any]:
        predicted: dict[str, Any] = {}
        for k, (name, link) in enumerate(self.links):
            eta = z[name] @ params[name]
            if k == 0 and self.has_offset:
                eta = eta + z["offset"]
            if name == "logits":
                # The first category is the one that the others are compared with.
                predicted[name] = jnp.concatenate([jnp.zeros(1, eta.dtype), eta])
            else:
                predicted[name] = links_of(name)[link].inverse(eta)
        return predicted | {name: params[name] for name in self.scalars} | {name: z[name] for name in self.columns}


@dataclass(frozen=True, eq=False)
class Design:
    """The right-hand side of a formula as it was evaluated on a table: terms, levels, and what was estimated for splines and means.

    Attributes
    ----------
    text : str
        The right-hand side.
    spec : formulaic.ModelSpec
    names : tuple of str
        Of the columns of the design matrix.
    variables : tuple of str
        The columns of a table that it needs.
    """

    text: str
    spec: Any
    names: tuple[str, ...]
    variables: tuple[str, ...]

    @classmethod
    def of(
        cls, terms: Any, table: Table, rows: np.ndarray, *, without: str = ""
    ) -> tuple["Design", Float[np.ndarray, "n p"]]:
        """Evaluate terms on rows of a table; the design and its matrix. A column called `without` is left out."""
        formulaic = require("formulaic", "frames")
        variables = tuple(sorted(variables_of(terms)))
        frame = frame_for(table.take(rows), variables, _numeric_variables(terms))
        matrix = _evaluate(
            lambda: formulaic.model_matrix(terms, frame, context={}, output="numpy", na_action="ignore"), str(terms)
        )
        names = tuple(matrix.model_spec.column_names)
        if len(names) == 0:
            raise ValueError(
                "the right-hand side has no term. It needs a constant or a column of the table, besides effects of groups."
            )
        design = cls(str(terms), matrix.model_spec, tuple(name for name in names if name != without), variables)
        return design, design._check(np.asarray(matrix, float))

    @cached_property
    def key(self) -> tuple[Any, ...]:
        """What makes two designs equal: terms, columns, levels and what was estimated."""
        state = repr((self.spec.encoder_state, self.spec.transform_state))
        return self.text, self.names, digest(state.encode())

    @property
    def levels(self) -> dict[str, list[Any]]:
        """The levels of each categorical column, of those that enter as they are."""
        result = {}
        for factor, variables in self.spec.factor_variables.items():
            state = self.spec.encoder_state.get(str(factor), (None, {}))[1]
            for name in (str(variable) for variable in variables if str(variable) in self.variables):
                # `g`, `C(g)` and `C(g, …)`, but not `C(g > 0)`, whose levels are not those of the column.
                if "categories" in state and re.match(
                    rf"`?{re.escape(name)}`?$|C\(`?{re.escape(name)}`?[,)]", str(factor)
                ):
                    result[name] = list(state["categories"])
        return result

    def matrix(self, table: Table) -> Float[np.ndarray, "n p"]:
        """The design matrix of another table; raise for levels that were not there when the design was made."""
        frame = frame_for(table, self.variables, _numeric_variables(self.spec.formula))
        for name, levels in self.levels.items():
            present = list(dict.fromkeys(frame[name].tolist()))
            unseen = [level for level in present if level not in levels]
            if unseen:
                raise ValueError(
                    f"column {name!r} of {table.name} has levels that the fit has not seen: {_listed(unseen)}. It was fitted to "
                    f"{_listed(levels)}."
                )
        for factor, (kind, _) in self.spec.encoder_state.items():
            if kind.value == "numerical" and factor in frame and frame[factor].dtype == object:
                raise TypeError(
                    f"column {factor!r} of {table.name} holds text, but held numbers when the model was fitted."
                )
        matrix = _evaluate(lambda: self.spec.get_model_matrix(frame, context={}), self.text)
        if len(matrix) != len(table):  # from a constant alone the number of rows is not known
            matrix = np.broadcast_to(np.asarray(matrix)[:1], (len(table), np.shape(matrix)[1]))
        return self._check(np.asarray(matrix, float))

    def _check(self, matrix: np.ndarray) -> np.ndarray:
        """The columns that are kept; raise where one is not finite."""
        every = list(self.spec.column_names)
        finite = np.isfinite(matrix)
        if not finite.all():
            column = int(np.argmin(finite.all(axis=0)))
            raise ValueError(
                f"the design column {every[column]!r} is not finite in {int(np.sum(~finite[:, column]))} rows, the first of them "
                f"row {int(np.argmin(finite[:, column]))}: for example a logarithm of zero. Leave these rows out, or write "
                "another term."
            )
        return matrix if len(every) == len(self.names) else matrix[:, [every.index(name) for name in self.names]]


@dataclass(frozen=True, eq=False)
class EffectDesign:
    """The effects that the rows of a group share: the columns of the table that make the groups, and the designs of the effects.

    Attributes
    ----------
    factor : tuple of str
        The columns whose values together make the groups.
    designs : tuple of Design
        One for each term of the formula; each of their columns has one effect in every group.
    correlated : bool
        Whether the effects have a covariance matrix, or are independent.
    levels : tuple
        Where there are several factors, the labels of the groups, whose numbers are covariates; else empty.
    """

    factor: tuple[str, ...]
    designs: tuple[Design, ...]
    correlated: bool
    levels: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        """Of the factor, as formulas write it."""
        return ":".join(self.factor)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the effects: of the columns of the designs."""
        return tuple(name for design in self.designs for name in design.names)

    @cached_property
    def key(self) -> tuple[Any, ...]:
        """What makes two of them equal."""
        return self.factor, tuple(design.key for design in self.designs), self.correlated, self.levels

    def matrix(self, table: Table) -> Float[np.ndarray, "n q"]:
        """The columns that multiply the effects, for the rows of a table."""
        return np.concatenate([design.matrix(table) for design in self.designs], axis=1)

    def codes(self, table: Table) -> Int[np.ndarray, " n"]:
        """The number of the level of each row of a table; raise for levels that were not there when the design was made."""
        groups, numbers = groups_of_rows(self.factor, table), {level: k for k, level in enumerate(self.levels)}
        unseen = [level for level in groups.labels.tolist() if level not in numbers]
        if unseen:
            raise ValueError(
                f"the factor {self.name} has levels in {table.name} that the fit has not seen: {_listed(unseen)}. It was fitted to "
                f"{_listed(self.levels)}."
            )
        codes = np.empty(len(table), np.int32)
        for level, rows in zip(groups.labels.tolist(), groups.rows, strict=True):
            codes[rows] = numbers[level]
        return codes


@dataclass(frozen=True)
class Constant:
    """What enters beside the linear predictors without a coefficient: an offset, an exposure, a number of trials.

    `source` is the name of its column, or None where it came as an array, which another table cannot give.
    """

    role: str
    source: str | None

    def values(self, table: Table) -> Float[np.ndarray, " n"]:
        """The column of a table."""
        if self.source is None:
            raise ValueError(
                f"{self.role} was given as an array, which {table.name} does not have. Fit with {self.role}= the name of a column."
            )
        return table.numbers(self.source, f", which is the {self.role}")


@dataclass(frozen=True, eq=False)
class Predictor:
    """The predictor of a model that `formula` makes. Equal to another where formulas, levels and links are.

    Attributes
    ----------
    map : LinearPredictors
        From coefficients and covariates to the parameters of the family.
    designs : tuple of Design
        In the order of the links in `map`.
    constants : tuple of Constant
        The offset, the exposure, and the family's parameters that are columns, as a number of trials.
    levels : tuple
        The categories of the response, where its family has categories; else empty.
    effects : tuple of EffectDesign
        One for each factor whose groups have effects. They are added to the first linear predictor, as an offset is.
    """

    map: LinearPredictors
    designs: tuple[Design, ...]
    constants: tuple[Constant, ...] = ()
    levels: tuple[Any, ...] = field(default=())
    effects: tuple[EffectDesign, ...] = field(default=())

    @property
    def user_function(self) -> LinearPredictors:
        """What its programs are stored with; see `models.programs.owner_of`."""
        return self.map

    @property
    def made_with(self) -> tuple[Any, ...]:
        """What else a program depends on: the names of effects."""
        return tuple((design.name, design.names) for design in self.effects)

    def __call__(self, params: PyTree, *arguments: PyTree) -> dict[str, Array]:
        """The family's parameters for one row: of (params, z), or of (params, effects, z) where there are effects."""
        *effects, z = arguments
        if not effects:
            return self.map(params, z)
        parts = [
            z[EFFECTS][design.name] @ jnp.stack([effects[0][design.name][name] for name in design.names])
            for design in self.effects
        ]
        return self.map(params, z | {"offset": sum(parts, z.get("offset", 0.0))})

    @property
    def _key(self) -> tuple[Any, ...]:
        keys = *(design.key for design in self.designs), *(design.key for design in self.effects)
        return self.map, keys, self.constants, self.levels

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Predictor) and self._key == other._key

    @property
    def variables(self) -> list[str]:
        """The columns that a table of covariates must have."""
        every = (*self.designs, *(design for effects in self.effects for design in effects.designs))
        names = {name for design in every for name in design.variables}
        names |= {name for effects in self.effects if effects.levels for name in effects.factor}
        return sorted(names | {part.source for part in self.constants if isinstance(part.source, str)})

    def covariates(self, table: Any, name: str = "the table") -> dict[str, Any]:
        """The covariates, as `given=` takes them, of a table of pandas, polars or pyarrow, or a dictionary of columns.

        Of a formula with effects those of each row, which are not in groups.

        Raises
        ------
        ValueError
            Where a column or a value is missing, or a categorical column has a level that was not there when the formula was made.
        """
        view = table if isinstance(table, Table) else Table(frame_of(table, name), name)
        absent = [variable for variable in self.variables if variable not in view.names]
        if absent:
            raise ValueError(f"{name} lacks the column {_listed(absent)}. {suggestion(absent[0], view.names)}")
        places = view.missing(self.variables)
        if places:
            raise ValueError(describe_missing(places, name, len(view)))
        pairs = zip(self.map.links, self.designs, strict=True)
        matrices = {parameter: design.matrix(view) for (parameter, _), design in pairs}
        constants = {part.role: part.values(view) for part in self.constants}
        covariates: dict[str, Any] = matrices | constant_covariates(constants, np.arange(len(view)))
        codes = {design.name: design.codes(view) for design in self.effects if design.levels}
        return covariates | effect_covariates({design.name: design.matrix(view) for design in self.effects}) | codes


def constant_covariates(parts: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    """The columns beside the designs: offset and exposure as one offset, the others as they are. `rows` are named in errors."""
    result = {role: values for role, values in parts.items() if role not in ("offset", "exposure")}
    offset = parts.get("offset")
    if "exposure" in parts:
        is_positive = parts["exposure"] > 0
        if not np.all(is_positive):
            raise ValueError(
                f"the exposure must be positive; in row {rows[np.argmin(is_positive)]} it is not. Leave such rows out."
            )
        offset = np.log(parts["exposure"]) + (0.0 if offset is None else offset)
    return result if offset is None else result | {"offset": offset}


def effect_covariates(matrices: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The columns that multiply effects, by factor, as covariates hold them; none without effects."""
    return {EFFECTS: matrices} if matrices else {}


def groups_of_rows(factor: tuple[str, ...], table: Table) -> Groups:
    """The groups that the columns of a factor make of the rows of a table."""
    try:
        return groups_of([table.column(name) for name in factor])
    except TypeError as error:
        raise TypeError(
            f"the column {listed([repr(name) for name in factor])} has values of several types, which have no order. "
            "Make text of them, by .astype(str)."
        ) from error


def frame_for(table: Table, names: Collection[str], as_floats: Collection[str] = ()) -> Any:
    """The pandas frame that formulaic evaluates terms on: numbers, truths, text, and categories without those that do not occur.

    Whole numbers keep their type, in which levels are printed, but for the columns `as_floats`.
    """
    pd, nw = require("pandas", "frames"), require("narwhals.stable.v2", "frames")
    columns: dict[str, Any] = {}
    for name in sorted(names):
        series = table.series(name)
        dtype = series.dtype
        is_number = dtype.is_numeric() or dtype == nw.Boolean
        values = as_numbers(series, f"column {name!r} of {table.name}") if is_number else series.to_numpy()
        values = values if table.rows is None else values[table.rows]
        if dtype == nw.Enum or (dtype == nw.Categorical and series.implementation.is_pandas_like()):
            # An order that the user has given; that of Arrow's dictionaries is the order of appearance.
            present = set(values.tolist())
            categories = [level for level in series.cat.get_categories().to_list() if level in present]
            columns[name] = pd.Series(pd.Categorical(values, categories=categories))
        elif dtype.is_temporal():
            raise TypeError(
                f"column {name!r} of {table.name} holds times ({dtype}). Make numbers of them, as the days since a date, or text."
            )
        elif is_number:
            is_integer = dtype.is_integer() and name not in as_floats
            columns[name] = pd.Series(values.astype(np.int64 if is_integer else bool if dtype == nw.Boolean else float))
        elif dtype == nw.Object:
            kinds = sorted({type(value).__name__ for value in values})
            raise TypeError(
                f"column {name!r} of {table.name} holds objects ({', '.join(kinds[:4])}), neither numbers nor text. Convert it, by "
                ".astype(float) or .astype(str)."
            )
        else:
            columns[name] = pd.Series(np.asarray(values, object), dtype=object)
    return pd.DataFrame(columns, index=range(len(table)))


def _evaluate(function: Any, text: str) -> Any:
    """Call formulaic; its errors and warnings become errors that name the formula."""
    errors = require("formulaic.errors", "frames")
    # What is not finite is looked for in the result.
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("error", errors.DataMismatchWarning)
        try:
            return function()
        except (errors.FormulaicError, errors.DataMismatchWarning) as error:
            reason = " ".join(_COLORS.sub("", str(error)).split())
            raise ValueError(f"the formula {text!r} cannot be evaluated: {reason}") from error


def parse(text: Any, what: str) -> Any:
    """A formula as formulaic reads it; raise for one that is not written as one."""
    formulaic, errors = require("formulaic", "frames"), require("formulaic.errors", "frames")
    if not isinstance(text, str):
        raise TypeError(f"{what} is {text!r}; expected a formula as text, such as 'y ~ x'.")
    try:
        return formulaic.Formula(text)
    except errors.FormulaicError as error:
        reason = " ".join(_COLORS.sub("", str(error)).split())
        raise ValueError(f"{what} {text!r} is not a formula: {reason}") from error


def _numeric_variables(terms: Any) -> set[str]:
    """The columns that no term takes for categories by `C`: powers of whole numbers would overflow in silence."""
    factors = [factor for term in terms for factor in term.factors]
    return _variables_of(factors) - _variables_of(factor for factor in factors if factor.expr.startswith("C("))


def variables_of(terms: Any) -> set[str]:
    """The columns of a table that terms need; raise for a function that formulas do not know.

    formulaic's own `required_variables` leaves out those that enter by `center`, `bs` and their like alone.
    """
    return _variables_of(factor for term in terms for factor in term.factors)


def _variables_of(factors: Iterable[Any]) -> set[str]:
    variables, transforms = require("formulaic.utils.variables", "frames"), require("formulaic.transforms", "frames")
    names: set[str] = set()
    for factor in factors:
        if factor.eval_method.value == "lookup":
            names.add(factor.expr)
        if factor.eval_method.value != "python":
            continue
        for variable in variables.get_required_variables(factor.expr):
            root = str(variable.root)
            if root in transforms.TRANSFORMS:
                continue
            if "." not in variable and {role.value for role in variable.roles} == {"callable"}:
                instead = IN_PLACE_OF.get(
                    root,
                    "They know those of numpy, as np.log, and C, I, bs, poly, center, scale. Compute the column first.",
                )
                raise ValueError(f"formulas know no function {root!r}. {instead}")
            names.add(root)
    return names


def _listed(values: Sequence[Any]) -> str:
    """Levels or names as Python writes them, the first eight."""
    return listed([repr(getattr(value, "item", lambda value=value: value)()) for value in values], 8)
