"""The row program: log-density, gradient and information of ONE observation as arithmetic on single numbers.

The derivatives of one row are taken by plain JAX, expanded to scalars and split by what they depend on. What depends on the
parameters only is done once an evaluation, what depends on the data only once a chunk of data sets, the rest for each row.
Sums over rows are accumulators of shape (L,), one entry for each lane, so that no (n, L) array ever exists.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from fisher_jax.errors import call_user
from fisher_jax.information import as_matrix
from fisher_jax.information.scoring import row_of_scoring
from fisher_jax.models.likelihood import sum_with_rounding, term_of
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, merge
from fisher_jax.numerics.differentiate import first_order, second_order, upper_triangle
from fisher_jax.numerics.expansion import Program, expand, split
from fisher_jax.numerics.linear_predictors import Predictors, linear_predictors
from fisher_jax.numerics.row_sums import split_off_constant, sum_over_rows
from fisher_jax.optimizers.newton import Evaluation, Kind

Scalars = list[Any]
Leaves = list[Any]
PREDICTORS_FROM = 4  # parameters; below, to differentiate in a linear predictor and carry it through saves nothing


@dataclass(frozen=True)
class Plan:
    """A model, its parameters, its optimiser, and how fixed parameters and data lie in one flat list. Hashable.

    The list holds `num_fixed` numbers that rows share: the fixed leaves of the parameters, and behind them the strength of a prior,
    `num_strengths` of them, none or one, or None where no prior counts. Then come those of (data, given, weights), which `treedef`
    puts together; `differs` states of each whether it has an axis over the data sets, or is what all share. `num_terms` is the
    number of log-densities of a data set, `num_lanes` how many are fitted side by side.
    """

    model: Model
    layout: Layout
    optimizer: Any
    treedef: Any
    num_fixed: int
    differs: tuple[bool, ...]
    num_terms: int
    num_lanes: int = 64
    num_strengths: int | None = None

    @property
    def has_weights(self) -> bool:
        """Whether there are weights, by which the terms that count may differ among the data sets."""
        return jax.tree.unflatten(self.treedef, [True] * self.treedef.num_leaves)[2] is not None

    def split(self, leaves: Leaves, *, varying: bool) -> tuple[Leaves, Leaves]:
        """Of the leaves that differ (`varying`), or of those that are shared: the fixed parameters, and the data."""
        numbers = [i for i, differs in enumerate(self.differs) if differs == varying]
        cut = sum(i < self.num_fixed for i in numbers)
        return leaves[:cut], leaves[cut:]

    def fixed(self, varying: Leaves, shared: Leaves) -> Leaves:
        """All fixed parameters in order, and the strength of a prior."""
        return merge(self.differs[: self.num_fixed], varying, shared)

    def values(self, fixed: Leaves) -> Leaves:
        """The parameters' leaves: the fixed ones as given, None for those that follow from u."""
        given = iter(fixed)
        return [next(given) if leaf.is_fixed else None for leaf in self.layout.leaves]

    def strength(self, fixed: Leaves) -> tuple[Any, ...] | None:
        """The strength of a prior, as a `Dataset` carries it, of what `fixed` returned."""
        return None if self.num_strengths is None else tuple(fixed[len(fixed) - self.num_strengths :])

    def observations(self, varying: Leaves, shared: Leaves) -> tuple[PyTree, PyTree, Any]:
        """Data, covariates and weights."""
        return jax.tree.unflatten(self.treedef, merge(self.differs[self.num_fixed :], varying, shared))


def derivatives_of_row(model: Model, layout: Layout, kind: Kind, predictors: Predictors | None) -> Callable[..., Any]:
    """A function of (u, fixed values, y, z, weight, data) for one row: weighted term, gradient and information.

    u is a list of p scalars, the information its upper triangle; z and the weight may be None; `data` is what `predictors` were
    found with. A weight of zero silences even a NaN: that row is not there.
    """

    def row(u: Scalars, values: list[Any], y: PyTree, z: PyTree, weight: Any, data: list[Any]) -> tuple[Any, Any, Any]:
        given, pairs = () if z is None else (z,), upper_triangle(len(u))
        value: Any
        gradient: Any
        information: Any

        def term(u: Scalars) -> Array:
            return term_of(model, layout.constrain(jnp.stack(u), values), y, given).astype(layout.dtype)

        if kind == "expected":
            if model.information is None:
                value, gradient, matrix = row_of_scoring(model, layout, values, jnp.stack(u), y, given)
            else:
                value, gradient = first_order(term, u)
                jacobian = layout.jacobian(jnp.stack(u))
                params = layout.constrain(jnp.stack(u), values)
                closed = call_user(model.information, (params, *given), "information")
                matrix = jacobian.T @ as_matrix(closed, layout.natural()).astype(layout.dtype) @ jacobian
            gradient, information = [gradient[i] for i in range(len(u))], [matrix[i, j] for i, j in pairs]
        elif predictors is None:
            value, gradient, information = (second_order if kind == "observed" else _scores_only)(term, u)
        else:
            x, slopes = predictors.inner(jnp.stack(u), *data), predictors.coefficients(jnp.stack(u), *data)
            value, score, weights = (second_order if kind == "observed" else _scores_only)(
                lambda x: predictors.outer(jnp.stack(x), *data), [x[k] for k in range(predictors.count)]
            )
            gradient = [sum(s * slopes[k, i] for k, s in enumerate(score)) for i in range(len(u))]
            inner = dict(zip(upper_triangle(predictors.count), weights or [], strict=kind == "observed"))
            information = [
                sum(
                    w * (slopes[k, i] * slopes[m, j] + (slopes[m, i] * slopes[k, j] if k != m else 0))
                    for (k, m), w in inner.items()
                )
                for i, j in pairs
            ]
        if kind == "empirical":
            information = [gradient[i] * gradient[j] for i, j in pairs]
        # A density may compute in a higher precision than that of its parameters.
        value, gradient, information = jax.tree.map(lambda x: x.astype(layout.dtype), (value, gradient, information))
        if weight is None:
            return value, gradient, information
        # Negative weights known only when run are as bad as NaN, which the status then reports.
        weight = jnp.where(weight >= 0, weight, jnp.nan).astype(layout.dtype)
        return jax.tree.map(lambda x: jnp.where(weight == 0, 0, weight * x), (value, gradient, information))

    return row


def _scores_only(terms: Callable[[Scalars], Array], u: Scalars) -> tuple[Array, Scalars, None]:
    return *first_order(terms, u), None


@dataclass(frozen=True)
class RowProgram:
    """The expanded row, in four parts by what they depend on.

    `once` takes (u, fixed values); `varying` and `shared` take the entries of a row that belong to one data set and to all of
    them; `rest` takes all of these and what the three parts return. Its outputs are summed over rows. Term, gradient and
    information are sums of those times `coefficients`, which take (u, fixed values): `pairs` has the numbers of both. The
    terms lack what the parameters do not enter, `constant`, where that is costly: it takes varying and shared entries.
    """

    once: Program
    varying: Program
    shared: Program
    rest: Program
    coefficients: Program
    pairs: tuple[tuple[tuple[int, int], ...], ...]
    constant: Program | None
    num_parameters: int
    dtype: Any

    def evaluate(
        self,
        u: Scalars,
        fixed: Scalars,
        num_rows: int,
        rows_at: Callable[[Any, int], list[tuple[Scalars, ...]]],
        constant: Any,
        rows_at_once: int = 1,
    ) -> Evaluation:
        """Log-likelihood, gradient and information of L data sets, each entry (L,).

        `constant` is the sum over their rows of what the terms lack, as a sum and what rounding took from it.

        `rows_at(r, count)` returns, for each of `count` rows from r on, its varying and shared entries and what the programs
        `varying` and `shared` made of them; behind the last row those of any row. Rows taken several at once are added in the same
        order, and while one waits for its data another is worked on.
        """
        p, zero = self.num_parameters, jnp.zeros_like(u[0])
        parameters = [*u, *fixed]
        once = [jnp.asarray(value) for value in self.once(parameters)]

        def add_row(sums: tuple[Any, ...], row: tuple[Scalars, ...]) -> tuple[Any, ...]:
            varying, shared, varying_parts, shared_parts = row
            term, *derivatives = self.rest(parameters, varying, shared, once, varying_parts, shared_parts)
            # Two-sum (Knuth 1997, The Art of Computer Programming 2, section 4.2.2, theorem B): `low` keeps what rounding
            # takes from the sum, without which float32 cannot distinguish two points near the maximum.
            high, low, *others = sums
            total = high + term
            part = total - high
            low = low + ((high - (total - part)) + (term - part))
            return (total, low, *(a + b for a, b in zip(others, derivatives, strict=True)))

        def add_rows(carry: tuple[Array, tuple[Any, ...]]) -> tuple[Array, tuple[Any, ...]]:
            (r, sums), rest = carry, num_rows % rows_at_once
            for k, row in enumerate(rows_at(r, rows_at_once)):
                with_row = add_row(sums, row)
                if k < rest or rest == 0:
                    sums = with_row
                else:  # behind the last row the last stands again
                    sums = tuple(jnp.where(r + k < num_rows, new, old) for new, old in zip(with_row, sums, strict=True))
            return r + rows_at_once, sums

        # Not a fori_loop, which becomes a scan, whose body is a function that is called, and its results copied, for each row.
        start = (
            jnp.int32(0),
            (*((zero, zero) if constant is None else constant), *(zero,) * (len(self.rest.outputs) - 1)),
        )
        _, (value, rounding, *sums) = jax.lax.while_loop(lambda carry: carry[0] < num_rows, add_rows, start)
        coefficients = self.coefficients(parameters)

        def product(i: int, j: int) -> Array:
            coefficient = coefficients[j]
            return (
                sums[i - 1] if isinstance(coefficient, np.generic) and coefficient == 1 else coefficient * sums[i - 1]
            )

        derivatives = [functools.reduce(jnp.add, (product(i, j) for i, j in of)) for of in self.pairs[1:]]
        return Evaluation(value, derivatives[:p], dict(zip(upper_triangle(p), derivatives[p:], strict=True)), rounding)


def row_program(
    model: Model,
    layout: Layout,
    kind: Kind,
    fixed: list[Any],
    varying: Any,
    shared: Any,
    row_from: Callable[[Any, Any], tuple[PyTree, PyTree, Any]],
    values_from: Callable[[list[Any]], list[Any]],
    *,
    portable: bool,
) -> RowProgram:
    """Differentiate, expand and split one row. `fixed`, `varying` and `shared` are shapes of the fixed values and of one row.

    `row_from` makes (y, z, weight) of varying and shared entries, `values_from` the leaves of the parameters of the fixed ones.

    Raises
    ------
    CannotExpand
        Where the density uses what has no form on single numbers.
    """
    leaves, treedef = jax.tree.flatten((fixed, varying, shared))

    def value(u: Array, *data: Any) -> Array:
        fixed, varying, shared = jax.tree.unflatten(treedef, data)
        y, z, _ = row_from(varying, shared)
        params = layout.constrain(u, values_from(fixed))
        return term_of(model, params, y, () if z is None else (z,)).astype(layout.dtype)

    predictors = None
    if layout.num_free >= PREDICTORS_FROM and kind != "expected":
        predictors = linear_predictors(value, jax.ShapeDtypeStruct((layout.num_free,), layout.dtype), leaves)
    row = derivatives_of_row(model, layout, kind, predictors)

    def flat_row(parameters: tuple[Scalars, list[Any]], varying: Any, shared: Any) -> Any:
        u, fixed = parameters
        return row(u, values_from(fixed), *row_from(varying, shared), jax.tree.leaves((fixed, varying, shared)))

    u = [jax.ShapeDtypeStruct((), layout.dtype)] * layout.num_free
    whole = expand(flat_row, (u, fixed), varying, shared, portable=portable)
    whole, constant = split_off_constant(whole)
    # Scores' outer products cancel where scores do: cut, they would lose digits.
    uncut = len(whole.outputs) if kind == "empirical" else 1 + layout.num_free
    whole, coefficients, pairs = sum_over_rows(whole, 0, 1, uncut, layout.dtype)
    once, whole = split(whole, 0, products=True)
    varying_parts, whole = split(whole, 1)
    shared_parts, whole = split(whole, 2)
    return RowProgram(
        once, varying_parts, shared_parts, whole, coefficients, pairs, constant, layout.num_free, np.dtype(layout.dtype)
    )


def rows_of(plan: Plan, kind: Kind, varying: Leaves, shared: Leaves, *, portable: bool = False) -> RowProgram:
    """The row program of a plan for data sets with arrays of these shapes, `portable` as `expand` has it.

    Raises
    ------
    CannotExpand
        Where the density uses what has no form on single numbers.
    """

    def like(leaf: Any, drop: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(np.shape(leaf)[drop:], jax.dtypes.canonicalize_dtype(leaf.dtype))

    varying_fixed, varying_rows = plan.split(varying, varying=True)
    shared_fixed, shared_rows = plan.split(shared, varying=False)
    fixed = plan.fixed([like(leaf, 1) for leaf in varying_fixed], [like(leaf, 0) for leaf in shared_fixed])
    rows = [like(leaf, 2) for leaf in varying_rows], [like(leaf, 1) for leaf in shared_rows]
    return row_program(plan.model, plan.layout, kind, fixed, *rows, plan.observations, plan.values, portable=portable)


def read_entries(leaf: Any, r: Any, count: int) -> list[Scalars]:
    """The entries of `count` rows from r on of an array (n, entries, L), or without the axis of lanes."""
    return [[leaf[r + k, j] for j in range(leaf.shape[1])] for k in range(count)]


def columns_of_chunk(
    plan: Plan, rows: RowProgram, varying: Leaves, shared: Leaves, *, lanes_last: bool = False
) -> tuple[Leaves, Leaves]:
    """The arrays of a chunk that the lanes hold in columns, and those that all share, as `evaluate_columns` takes them.

    What depends on the data alone is computed here, for the whole chunk, where XLA works on large arrays. The axis over data sets
    comes first, from where a lane takes the next; or last.
    """
    varying_fixed, varying_rows = plan.split(varying, varying=True)
    shared_fixed, shared_rows = plan.split(shared, varying=False)
    flat_varying = [leaf.reshape(*leaf.shape[:2], -1) for leaf in varying_rows]
    if lanes_last:
        flat_varying, varying_fixed = (
            [jnp.moveaxis(leaf, 0, -1) for leaf in leaves] for leaves in (flat_varying, varying_fixed)
        )
    axis = 1 if lanes_last else 2
    flat_shared = [leaf.reshape(leaf.shape[0], -1) for leaf in shared_rows]
    size = [leaf.shape[-1] if lanes_last else leaf.shape[0] for leaf in (*flat_varying, *varying_fixed)][:1] or [1]
    shape = (plan.num_terms, *size) if lanes_last else (*size, plan.num_terms)
    varying_parts = [
        jnp.expand_dims(jnp.broadcast_to(x, shape), axis) for x in rows.varying(_along(flat_varying, axis))
    ]
    shared_parts = [jnp.broadcast_to(x, (plan.num_terms,))[:, None] for x in rows.shared(_along(flat_shared, 1))]
    constants: Leaves = []
    if rows.constant is not None:
        shared_entries = [x[:, None] if lanes_last else x for x in _along(flat_shared, 1)]
        (constant,) = rows.constant(_along(flat_varying, axis), shared_entries)
        constants = list(jax.vmap(sum_with_rounding, 1 if lanes_last else 0)(jnp.broadcast_to(constant, shape)))
    # One array: each costs when a lane is refilled, and in compiling kernels.
    if len({part.dtype for part in varying_parts}) == 1:
        varying_parts = [jnp.concatenate(varying_parts, axis)]
    if not any(plan.differs):  # one data set from several starts
        shared_parts, constants = [*shared_parts, *constants], []
    return [*flat_varying, *varying_parts, *constants, *varying_fixed], [*flat_shared, *shared_parts, *shared_fixed]


def evaluate_columns(
    plan: Plan,
    rows: RowProgram,
    common: Leaves,
    u: Scalars,
    columns: Leaves,
    *,
    read: Callable[[Any, Any, int], list[Scalars]] = read_entries,
    rows_at_once: int = 1,
) -> Evaluation:
    """Log-likelihood, gradient and information of the data sets in the columns, whose last axis is that of lanes.

    `read(leaf, r, count)` reads the entries of some rows of an array.
    """
    of_data = plan.differs[plan.num_fixed :]
    of_fixed = plan.differs[: plan.num_fixed]
    varying_rows, varying_parts, varying_fixed = _cut(columns, sum(of_data), sum(of_fixed))
    shared_rows, shared_parts, shared_fixed = _cut(common, of_data.count(False), of_fixed.count(False))
    constant = None
    if rows.constant is not None and any(plan.differs):
        *varying_parts, value, rounding = varying_parts
        constant = value[()], rounding[()]
    elif rows.constant is not None:
        *shared_parts, value, rounding = shared_parts
        constant = jnp.broadcast_to(value[0], jnp.shape(u[0])), jnp.broadcast_to(rounding[0], jnp.shape(u[0]))
    fixed = plan.fixed(
        [[leaf[index] for index in np.ndindex(leaf.shape[:-1])] for leaf in varying_fixed],
        [[leaf[index] for index in np.ndindex(leaf.shape)] for leaf in shared_fixed],
    )

    def rows_at(r: Any, count: int) -> list[tuple[Scalars, ...]]:
        groups = [
            [read(leaf, r, count) for leaf in leaves]
            for leaves in (varying_rows, shared_rows, varying_parts, shared_parts)
        ]
        return [tuple([x for leaf in group for x in leaf[k]] for group in groups) for k in range(count)]

    entries = [entry for entries in fixed for entry in entries]
    return rows.evaluate(u, entries, plan.num_terms, rows_at, constant, rows_at_once)


def _cut(leaves: Leaves, first: int, last: int) -> tuple[Leaves, Leaves, Leaves]:
    end = len(leaves) - last
    return leaves[:first], leaves[first:end], leaves[end:]


def _along(leaves: Leaves, axis: int) -> Leaves:
    return [jnp.take(leaf, j, axis) for leaf in leaves for j in range(leaf.shape[axis])]
