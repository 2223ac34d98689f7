"""Fits of many data sets in (n, L) arrays by XLA, lanes last: for what has no row program, and for many parameters.

A density of one observation is mapped over lanes inside and over rows outside, so that sums over rows run over the first
axis and vectorise over lanes. A `dependent` model keeps its recursion, with states of shape (L,).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.fitting.row_program import Leaves, Plan
from fisher_jax.information import total_expected
from fisher_jax.information.scoring import row_of_scoring
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.likelihood import term_of, terms_at_once
from fisher_jax.models.prior import is_of_expected, once_derivatives
from fisher_jax.numerics import batched_linalg as lanes
from fisher_jax.numerics.differentiate import second_order, upper_triangle
from fisher_jax.numerics.expansion import CannotExpand, expand
from fisher_jax.numerics.jaxprs import flatten
from fisher_jax.numerics.linear_predictors import linear_predictors
from fisher_jax.optimizers.newton import Evaluation, Kind

Rows = Float[Array, "n L"]


# What XLA calls a library for, which it cannot do in a kernel of several operations.
LIBRARY_CALLS = {
    "cholesky",
    "eigh",
    "geqrf",
    "householder_product",
    "lu",
    "qr",
    "svd",
    "triangular_solve",
    "tridiagonal_solve",
}
LIBRARY_CALLS |= {"custom_call", "ffi_call", "fft", "sort"}


def columns_of_chunk(plan: Plan, varying: Leaves) -> Leaves:
    """The arrays of a chunk that the lanes hold in columns."""
    varying_fixed, varying_rows = plan.split(varying, varying=True)
    return [*varying_fixed, *varying_rows]


def evaluation(plan: Plan, kind: Kind, varying: Leaves, shared: Leaves) -> Callable[[lanes.Vector, Leaves], Evaluation]:
    """The evaluation of L columns; of `varying` only shapes matter."""
    varying_fixed, varying_rows = plan.split(varying, varying=True)
    shared_leaves, count = plan.split(shared, varying=False), len(varying_fixed)
    if kind == "observed" and plan.layout.num_free > lanes.UNROLLED and not plan.model.is_dependent:
        by_products = _by_products(plan, (varying_fixed, varying_rows), shared_leaves)
        if by_products is not None:
            return lambda u, columns: _with_once(
                plan,
                kind,
                u,
                (columns[:count], columns[count:]),
                shared_leaves,
                by_products(u, columns[:count], columns[count:]),
            )

    return lambda u, columns: evaluate_lanes(plan, kind, u, (columns[:count], columns[count:]), shared_leaves)


def has_loops(plan: Plan, varying: Leaves, shared: Leaves) -> bool:
    """Whether a model of few parameters has loops inside, and nothing hinders that it runs in one kernel.

    A dependent model may loop over its rows; a marginal one searches for modes.
    """
    may_loop = plan.model.is_dependent or plan.model.with_modes is not None
    if not may_loop or plan.layout.num_free > lanes.UNROLLED:
        return False
    (varying_fixed, varying_rows), (shared_fixed, shared_rows) = (
        plan.split(varying, varying=True),
        plan.split(shared, varying=False),
    )
    like = lambda leaf, drop: jax.ShapeDtypeStruct(leaf.shape[drop:], leaf.dtype)  # noqa: E731
    # Of one row and one lane: a density that searches for modes takes seconds to trace, and twice as long under two vmaps.
    row = 0 if plan.model.is_dependent else 1

    def terms(u: Array, varying: tuple[Leaves, Leaves], shared: tuple[Leaves, Leaves]) -> Array:
        y, z, _ = plan.observations(varying[1], shared[1])
        params = plan.layout.constrain(u, plan.values(plan.fixed(varying[0], shared[0])))
        evaluate = terms_at_once if plan.model.is_dependent else term_of
        return evaluate(plan.model, params, y, () if z is None else (z,))

    shapes = (
        jax.ShapeDtypeStruct((plan.layout.num_free,), plan.layout.dtype),
        ([like(x, 1) for x in varying_fixed], [like(x, 1 + row) for x in varying_rows]),
        ([like(x, 0) for x in shared_fixed], [like(x, row) for x in shared_rows]),
    )
    used = flatten(jax.make_jaxpr(terms)(*shapes)).primitives()
    return not used.isdisjoint({"scan", "while"}) and used.isdisjoint(LIBRARY_CALLS)


def _by_products(
    plan: Plan, varying: tuple[Leaves, Leaves], shared: tuple[Leaves, Leaves]
) -> Callable[[Array, Leaves, Leaves], Evaluation] | None:
    """An evaluation of many parameters that enter through few linear predictors; None where they do not.

    With x = x₀ + C u the gradient is Cᵀ s and the information Cᵀ W C, with s and W the derivatives in x of each row. Where C is
    made of what all data sets share, all three are products of matrices, and the products of C's columns are made once.
    """
    layout, (varying_fixed, varying_rows), (shared_fixed, shared_rows) = plan.layout, varying, shared
    like = lambda leaf, drop: jax.ShapeDtypeStruct(leaf.shape[drop:], leaf.dtype)  # noqa: E731
    shapes = [
        [like(x, 1) for x in varying_fixed],
        [like(x, 2) for x in varying_rows],
        [like(x, 0) for x in shared_fixed],
    ]
    shapes.append([like(x, 1) for x in shared_rows])
    leaves, treedef = jax.tree.flatten(tuple(shapes))

    def term(u: Array, *data: Any) -> Array:
        varying_fixed, varying_row, shared_fixed, shared_row = jax.tree.unflatten(treedef, data)
        y, z, _ = plan.observations(varying_row, shared_row)
        params = layout.constrain(u, plan.values(plan.fixed(varying_fixed, shared_fixed)))
        return term_of(plan.model, params, y, () if z is None else (z,)).astype(layout.dtype)

    p, dtype = layout.num_free, layout.dtype
    num_varying = len(varying_fixed) + len(varying_rows)
    shape, of_shared = jax.ShapeDtypeStruct((p,), dtype), [k >= num_varying for k in range(len(leaves))]
    predictors = linear_predictors(term, shape, leaves, of_shared)
    common = predictors is not None
    predictors = predictors or linear_predictors(term, shape, leaves)
    if predictors is None or predictors.count > lanes.UNROLLED:
        return None
    m = predictors.count
    # The few derivatives of a row in elementary operations, where they have such a form.
    try:
        scalars = [jax.ShapeDtypeStruct((), dtype)] * m
        program = expand(
            lambda x, data: second_order(lambda x: predictors.outer(jnp.stack(x), *data), x), scalars, leaves
        )
    except CannotExpand:
        program = None
    zero, (rows, columns) = jnp.zeros((p,), dtype), np.triu_indices(p)
    pairs = upper_triangle(m)
    if common:
        any_varying = [jnp.zeros(x.shape, x.dtype) for x in jax.tree.leaves(shapes[:2])]
        over_rows = lambda f: jax.vmap(lambda row: f(zero, *any_varying, *shared_fixed, *row))(shared_rows)  # noqa: E731
        slopes, offsets = (
            over_rows(f).astype(dtype) for f in (predictors.coefficients, predictors.inner)
        )  # (n, m, p), (n, m)
        # A row that is not finite must not reach the products, where zero times NaN is NaN: its predictors show it instead,
        # and a weight of zero silences those.
        finite = jnp.all(jnp.isfinite(slopes), axis=(1, 2)) & jnp.all(jnp.isfinite(offsets), axis=1)
        slopes = jnp.where(finite[:, None, None], slopes, 0)
        offsets = jnp.where(finite[:, None], offsets, jnp.nan)
        pair = lambda k, j: slopes[:, k, rows] * slopes[:, j, columns]  # noqa: E731
        # (p (p + 1) / 2, n m (m + 1) / 2): all pairs of predictors side by side make one product
        products = jnp.concatenate([pair(k, j) + (pair(j, k) if j != k else 0) for k, j in pairs]).T
        all_slopes = jnp.concatenate([slopes[:, k] for k in range(m)]).T  # (p, n m)

    def evaluate(u: Array, varying_fixed: Leaves, varying_rows: Leaves) -> Evaluation:
        def of_each(f: Callable[..., Array], first: Array, axis: int | None) -> Array:
            """f(first, *data) for every row and lane; the result ends in (…, L) after the axis of rows."""
            one = lambda x, of, o, s: f(x, *of, *o, *shared_fixed, *s)  # noqa: E731
            over_lanes = jax.vmap(one, in_axes=(-1, -1, -1, None), out_axes=-1)
            return jax.vmap(over_lanes, in_axes=(axis, None, 0, 0))(first, varying_fixed, varying_rows, shared_rows)

        weights = plan.observations(varying_rows, shared_rows)[2]
        if weights is not None:
            weights = jnp.where(weights >= 0, weights, jnp.nan).astype(dtype)
            weights = weights if plan.differs[-1] else weights[:, None]
        # (n, m, L)
        x = (
            jnp.tensordot(slopes, u, 1, precision="highest") + offsets[:, :, None]
            if common
            else of_each(predictors.inner, u, None).astype(dtype)
        )
        if program is None:
            outer = lambda x: of_each(predictors.outer, jnp.stack(x, axis=1), 0)  # noqa: E731
            value, score, curvature = second_order(outer, [x[:, k] for k in range(m)])
        else:
            per_lane = [_entries(leaf, leaf.ndim - 1, 0) for leaf in varying_fixed]
            per_lane += [_entries(leaf, leaf.ndim - 2, 1) for leaf in varying_rows]
            per_lane += [_entries(leaf, leaf.ndim, 0) for leaf in shared_fixed]
            per_lane += [_entries(leaf[..., None], leaf.ndim - 1, 1) for leaf in shared_rows]
            entries = program([x[:, k] for k in range(m)], [e for leaf in per_lane for e in leaf])
            value, *rest = (jnp.broadcast_to(e, x[:, 0].shape) for e in entries)
            score, curvature = rest[:m], rest[m:]
        value, score = weigh_rows(value, weights), [weigh_rows(s, weights) for s in score]
        curvature = [weigh_rows(c, weights) for c in curvature]
        if common:
            gradient = jnp.matmul(all_slopes, jnp.concatenate(score), precision="highest")
            triangle = jnp.matmul(products, jnp.concatenate(curvature), precision="highest")
            place = np.zeros((p, p), int)
            place[rows, columns] = place[columns, rows] = np.arange(len(rows))
            matrix = triangle[place]
        else:

            def add_row(r: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
                row = lambda leaves: [leaf[r] for leaf in leaves]  # noqa: E731
                one = lambda of, o: predictors.coefficients(zero, *of, *o, *shared_fixed, *row(shared_rows))  # noqa: E731
                c = jax.vmap(one, in_axes=-1, out_axes=-1)(varying_fixed, row(varying_rows)).astype(dtype)  # (m, p, L)
                if weights is not None:  # zero times NaN is NaN
                    c = jnp.where(weights[r][None, None] == 0, 0, c)
                gradient, matrix = sums
                for k, s in enumerate(score):
                    gradient = gradient + s[r][None] * c[k]
                    for j in range(m):
                        weight = curvature[pairs.index((min(k, j), max(k, j)))][r]
                        matrix = matrix + c[k][:, None] * (weight[None] * c[j])[None]
                return gradient, matrix

            gradient, matrix = jax.lax.fori_loop(
                0, plan.num_terms, add_row, (jnp.zeros_like(u), jnp.zeros((p, *u.shape), dtype))
            )
        total = jnp.sum(value, axis=0)
        return Evaluation(total, gradient, matrix, rounding=jnp.zeros_like(total))

    return evaluate


def _entries(leaf: Array, count: int, start: int) -> list[Array]:
    """The entries of a leaf along `count` axes from `start` on."""
    axes = leaf.shape[start : start + count]
    flat = leaf.reshape(*leaf.shape[:start], -1, *leaf.shape[start + count :])
    return [jnp.take(flat, k, axis=start) for k in range(int(np.prod(axes)))]


def evaluate_lanes(
    plan: Plan, kind: Kind, u: lanes.Vector, varying: tuple[Leaves, Leaves], shared: tuple[Leaves, Leaves]
) -> Evaluation:
    """Log-likelihood, gradient and information of L data sets.

    `varying` and `shared` are (fixed parameters, data); arrays of `varying` end in the axis of lanes.
    """
    weights = plan.observations(varying[1], shared[1])[2]
    if weights is not None:
        weights = jnp.where(weights >= 0, weights, jnp.nan).astype(plan.layout.dtype)
        weights = weights if plan.differs[-1] else weights[:, None]
    array = lanes.to_array(u)
    terms = _terms(plan, varying, shared, weights, modes_at=array)
    if kind == "observed" and plan.model.with_modes is not None:
        # Such a density is a long program, which the derivatives entry by entry would repeat for each parameter.
        value, gradient, matrix = _by_column(terms, array, weights, plan)
        gradient, information = lanes.vector(gradient), lanes.matrix(matrix)
    elif kind == "observed":
        value, gradient, information = (_by_entry if isinstance(u, list) else _by_column)(terms, u, weights, plan)
    elif kind == "expected" and plan.model.information is None:
        value, gradient, matrix = _scoring(plan, array, varying, shared, weights)
        gradient, information = lanes.vector(gradient), lanes.matrix(matrix)
    else:
        axes = jnp.eye(len(array), dtype=array.dtype)[:, :, None] * jnp.ones_like(array)[None]
        value, push = jax.linearize(terms, array)
        slopes = jax.lax.map(push, axes)  # (p, n, L)
        if weights is not None:  # those of a dependent model are in its terms already
            slopes = jnp.where(weights == 0, 0, slopes / weights if plan.model.is_dependent else slopes)
        weighted = jax.vmap(lambda slope: weigh_rows(slope, weights))(slopes)
        gradient = lanes.vector(jnp.sum(weighted, axis=1))
        if kind == "empirical":
            matrix = jax.lax.map(lambda column: jnp.sum(column[None] * slopes, axis=1), weighted)
        else:
            matrix = _closed_form(plan, array, varying, shared)
        value = value if plan.model.is_dependent else weigh_rows(value, weights)
        information = lanes.matrix(matrix)
    value = jnp.sum(value, axis=0)
    at = Evaluation(value, gradient, information, rounding=jnp.zeros_like(value))
    return _with_once(plan, kind, u, varying, shared, at)


def _with_once(
    plan: Plan,
    kind: Kind,
    u: lanes.Vector,
    varying: tuple[Leaves, Leaves],
    shared: tuple[Leaves, Leaves],
    at: Evaluation,
) -> Evaluation:
    """The evaluation with the term that counts once, where the model has one."""
    if plan.model.auxiliary is None and plan.num_strengths is None:
        return at

    def one(u: Array, varying_fixed: Leaves, varying_rows: Leaves) -> tuple[Array, Array, Array]:
        fixed = plan.fixed(varying_fixed, shared[0])
        dataset = Dataset(*plan.observations(varying_rows, shared[1]), plan.strength(fixed))
        value, slope, information, variance = once_derivatives(plan.model, plan.layout, plan.values(fixed), dataset, u)
        if kind == "expected" and is_of_expected(plan.model):
            information = jnp.zeros_like(information)
        return value, slope, variance if kind == "empirical" else information

    value, slope, information = jax.vmap(one, in_axes=-1, out_axes=-1)(lanes.to_array(u), *varying)
    return Evaluation(
        at.value + value,
        lanes.vector(lanes.to_array(at.gradient) + slope),
        lanes.matrix(lanes.matrix_to_array(at.information) + information),
        at.rounding,
    )


def weigh_rows(rows: Rows, weights: Array | None) -> Rows:
    """Weighted rows (n, L); a weight of zero silences even NaN."""
    return rows if weights is None else jnp.where(weights == 0, 0, weights * rows)


def _terms(
    plan: Plan,
    varying: tuple[Leaves, Leaves],
    shared: tuple[Leaves, Leaves],
    weights: Array | None,
    *,
    modes_at: Array | None = None,
) -> Callable[[Array], Rows]:
    """The log-densities (n, L) as a function of u, (p, L) or with an entry for each row (p, n, L).

    Those of a dependent model are weighted: its rows have no parameters of their own. Of a marginal model the modes are those at
    `modes_at`, near which the function is valid.
    """

    def params_of(u: Array, varying_fixed: Leaves) -> PyTree:
        return plan.layout.constrain(u, plan.values(plan.fixed(varying_fixed, shared[0])))

    def with_modes(u: Array, varying_fixed: Leaves, varying_rows: Leaves, shared_rows: Leaves) -> PyTree:
        y, z, _ = plan.observations(varying_rows, shared_rows)
        return plan.model.with_modes(params_of(u, varying_fixed), y, *(() if z is None else (z,)))  # type: ignore[misc]

    def some(u: Array, varying_fixed: Leaves, varying_rows: Leaves, shared_rows: Leaves, y_with_modes: Any) -> Array:
        y, z, _ = plan.observations(varying_rows, shared_rows)
        evaluate = terms_at_once if plan.model.is_dependent else term_of
        z = () if z is None else (z,)
        y = y if y_with_modes is None else y_with_modes
        return evaluate(plan.model, params_of(u, varying_fixed), y, z).astype(plan.layout.dtype)

    y_with_modes = None
    if plan.model.with_modes is not None and modes_at is not None:
        find = jax.vmap(jax.vmap(with_modes, in_axes=(-1, -1, -1, None), out_axes=-1), in_axes=(None, None, 0, 0))
        y_with_modes = find(modes_at, *varying, shared[1])
    over_lanes = jax.vmap(some, in_axes=(-1, -1, -1, None, -1), out_axes=-1)
    if plan.model.is_dependent:
        return lambda u: weigh_rows(over_lanes(u, *varying, shared[1], None), weights)
    by_row = jax.vmap(over_lanes, in_axes=(1, None, 0, 0, 0))
    alike = jax.vmap(over_lanes, in_axes=(None, None, 0, 0, 0))
    return lambda u: (by_row if u.ndim == 3 else alike)(u, *varying, shared[1], y_with_modes)


def _by_entry(
    terms: Callable[[Array], Rows], u: list[Array], weights: Array | None, plan: Plan
) -> tuple[Rows, lanes.Vector, lanes.Matrix]:
    """Second derivatives entry by entry of the upper triangle."""
    if plan.model.is_dependent:
        return _by_directions(terms, jnp.stack(u))
    if weights is not None:
        # Each row has parameters of its own, so that what a row of weight zero gives, NaN perhaps, can be left out of the sums.
        u = [jnp.broadcast_to(x, (weights.shape[0], *x.shape)) for x in u]
    value, gradient, information = second_order(lambda u: terms(jnp.stack(u)), u)
    total = lambda x: jnp.sum(weigh_rows(x, weights), axis=0) if x.ndim == 2 else x  # noqa: E731
    keys = upper_triangle(len(u))
    matrix = {key: total(entry) for key, entry in zip(keys, information, strict=True)}
    return weigh_rows(value, weights), [total(slope) for slope in gradient], matrix


def _by_directions(terms: Callable[[Array], Rows], u: Float[Array, "p L"]) -> tuple[Rows, lanes.Vector, lanes.Matrix]:
    """The same in one pass over the rows for all entries, so that a recursion is run once."""

    def along_each(function: Callable[[Array], Any], u: Array, value_axes: Any) -> Any:
        """The function's value, and its slopes along each parameter with an axis over them first."""
        axes = jnp.broadcast_to(jnp.eye(len(u), dtype=u.dtype)[:, :, None], (len(u), *u.shape))
        return jax.vmap(lambda axis: jax.jvp(function, (u,), (axis,)), out_axes=(value_axes, 0))(axes)

    (value, slopes), (_, bends) = along_each(lambda u: along_each(terms, u, None), u, (None, None))
    return value, lanes.vector(jnp.sum(slopes, axis=1)), lanes.matrix(-jnp.sum(bends, axis=2))


def _by_column(
    terms: Callable[[Array], Rows], u: Float[Array, "p L"], weights: Array | None, plan: Plan
) -> tuple[Rows, lanes.Vector, lanes.Matrix]:
    """The gradient linearised once, then pushed along each axis."""
    each_row = None if plan.model.is_dependent else weights

    def gradient_and_terms(u: Array) -> tuple[Array, Rows]:
        if each_row is not None:
            u = jnp.broadcast_to(u[:, None], (len(u), each_row.shape[0], u.shape[1]))
        value, pull = jax.vjp(terms, u)
        (slopes,) = pull(jnp.ones_like(value))
        if each_row is not None:
            slopes = jnp.sum(jax.vmap(lambda slope: weigh_rows(slope, weights))(slopes), axis=1)
            value = weigh_rows(value, weights)
        return slopes, value

    (gradient, value), push = jax.linearize(gradient_and_terms, u)
    axes = jnp.eye(len(u), dtype=u.dtype)[:, :, None] * jnp.ones_like(u)[None]
    matrix = jax.lax.map(lambda axis: -push(axis)[0], axes)
    return value, gradient, 0.5 * (matrix + jnp.swapaxes(matrix, 0, 1))


def _scoring(
    plan: Plan,
    u: Float[Array, "p L"],
    varying: tuple[Leaves, Leaves],
    shared: tuple[Leaves, Leaves],
    weights: Array | None,
) -> tuple[Rows, Float[Array, "p L"], Float[Array, "p p L"]]:
    """Terms, gradient and expected information of a linked model."""

    def row(u: Array, varying_fixed: Leaves, varying_row: Leaves, shared_row: Leaves) -> Any:
        y, z, _ = plan.observations(varying_row, shared_row)
        values = plan.values(plan.fixed(varying_fixed, shared[0]))
        return row_of_scoring(plan.model, plan.layout, values, u, y, () if z is None else (z,))

    over_lanes = jax.vmap(row, in_axes=(-1, -1, -1, None), out_axes=-1)
    rows = jax.vmap(over_lanes, in_axes=(None, None, 0, 0))(u, *varying, shared[1])

    def total(x: Array) -> Array:
        if weights is not None:
            row_weights = weights.reshape(weights.shape[0], *(1,) * (x.ndim - 2), weights.shape[1])
            x = jnp.where(row_weights == 0, 0, row_weights * x)
        return jnp.sum(x, axis=0)

    return weigh_rows(rows[0], weights), total(rows[1]), total(rows[2])


def _closed_form(
    plan: Plan, u: Float[Array, "p L"], varying: tuple[Leaves, Leaves], shared: tuple[Leaves, Leaves]
) -> Float[Array, "p p L"]:
    """Dᵀ n I(θ) D by the model's own closed form."""

    def one(u: Array, varying_fixed: Leaves, varying_rows: Leaves) -> Array:
        layout, values = plan.layout, plan.values(plan.fixed(varying_fixed, shared[0]))
        _, given, weights = plan.observations(varying_rows, shared[1])
        count = plan.num_terms if weights is None else jnp.sum(weights)
        expected = total_expected(plan.model, layout, layout.constrained_values(u, values), given, count, weights)
        jacobian = layout.jacobian(u)
        return jnp.matmul(jnp.matmul(jacobian.T, expected, precision="highest"), jacobian, precision="highest")

    return jax.vmap(one, in_axes=-1, out_axes=-1)(u, *varying)
