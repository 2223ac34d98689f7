"""The row program: log-density, gradient and information of ONE observation as arithmetic on single numbers.

The derivatives of one row are taken by plain JAX, expanded to scalars and split by what they depend on. What depends on the
parameters only is done once an evaluation, what depends on the data only once a chunk of data sets, the rest for each row.
Sums over rows are accumulators of shape (L,), one entry for each lane, so that no (n, L) array ever exists.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from fisher_jax.information import as_matrix
from fisher_jax.information.scoring import row_of_scoring
from fisher_jax.models.likelihood import term_of
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout
from fisher_jax.numerics.affine import Predictors, linear_predictors
from fisher_jax.numerics.differentiate import first_order, second_order, upper_triangle
from fisher_jax.numerics.expansion import Program, expand, split
from fisher_jax.optimizers.newton import Evaluation, Kind

Scalars = list[Any]


PREDICTORS_FROM = 4  # parameters; below, to differentiate in a linear predictor and carry it through saves nothing


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
            return term_of(model, layout.constrain(jnp.stack(u), values), y, given, "fit").astype(layout.dtype)

        if kind == "expected":
            if model.information is None:
                value, gradient, matrix = row_of_scoring(model, layout, values, jnp.stack(u), y, given)
            else:
                value, gradient = first_order(term, u)
                jacobian = layout.jacobian(jnp.stack(u))
                closed = model.information(layout.constrain(jnp.stack(u), values), *given)
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

    `once` takes (u, fixed values); `own` and `shared` take the entries of a row that belong to one data set and to all of
    them; `rest` takes all of these and what the three parts return.
    """

    once: Program
    own: Program
    shared: Program
    rest: Program
    num_parameters: int
    dtype: Any

    def evaluate(
        self, u: Scalars, fixed: Scalars, num_rows: int, row_at: Callable[[Array], tuple[Scalars, ...]]
    ) -> Evaluation:
        """Log-likelihood, gradient and information of L data sets, each entry (L,).

        `row_at(r)` returns the entries of row r: (own, shared, what `own` made of them, what `shared` made of them).
        """
        p, zero = self.num_parameters, jnp.zeros_like(u[0])
        parameters = [*u, *fixed]
        once = [jnp.asarray(value) for value in self.once(parameters)]

        def add_row(carry: tuple[Array, tuple[Any, ...]]) -> tuple[Array, tuple[Any, ...]]:
            r, sums = carry
            own, shared, own_parts, shared_parts = row_at(r)
            term, *derivatives = self.rest(parameters, own, shared, once, own_parts, shared_parts)
            # Two-sum (Knuth 1997, The Art of Computer Programming 2, section 4.2.2, theorem B): `low` keeps what rounding
            # takes from the sum, without which float32 cannot tell two points near the maximum apart.
            high, low, *others = sums
            total = high + term
            part = total - high
            low = low + ((high - (total - part)) + (term - part))
            return r + 1, (total, low, *(a + b for a, b in zip(others, derivatives, strict=True)))

        # Not a fori_loop, which becomes a scan, whose body is a function that is called, and its results copied, for each row.
        start = jnp.int32(0), (zero,) * (2 + p + p * (p + 1) // 2)
        _, sums = jax.lax.while_loop(lambda carry: carry[0] < num_rows, add_row, start)
        information = dict(zip(upper_triangle(p), sums[2 + p :], strict=True))
        return Evaluation(sums[0], list(sums[2 : 2 + p]), information, rounding=sums[1])


def row_program(
    model: Model,
    layout: Layout,
    kind: Kind,
    fixed: list[Any],
    own: Any,
    shared: Any,
    row_from: Callable[[Any, Any], tuple[PyTree, PyTree, Any]],
    values_from: Callable[[list[Any]], list[Any]],
) -> RowProgram:
    """Differentiate, expand and split one row. `fixed`, `own` and `shared` are shapes of the fixed values and of one row.

    `row_from` puts (y, z, weight) together from own and shared entries, `values_from` the parameters' leaves from the fixed ones.

    Raises
    ------
    CannotExpand
        Where the density uses what has no form on single numbers.
    """
    leaves, treedef = jax.tree.flatten((fixed, own, shared))

    def value(u: Array, *data: Any) -> Array:
        fixed, own, shared = jax.tree.unflatten(treedef, data)
        y, z, _ = row_from(own, shared)
        params = layout.constrain(u, values_from(fixed))
        return term_of(model, params, y, () if z is None else (z,), "fit").astype(layout.dtype)

    predictors = None
    if layout.num_free >= PREDICTORS_FROM and kind != "expected":
        predictors = linear_predictors(value, jax.ShapeDtypeStruct((layout.num_free,), layout.dtype), leaves)
    row = derivatives_of_row(model, layout, kind, predictors)

    def flat_row(parameters: tuple[Scalars, list[Any]], own: Any, shared: Any) -> Any:
        u, fixed = parameters
        return row(u, values_from(fixed), *row_from(own, shared), jax.tree.leaves((fixed, own, shared)))

    u = [jax.ShapeDtypeStruct((), layout.dtype)] * layout.num_free
    whole = expand(flat_row, (u, fixed), own, shared)
    once, whole = split(whole, 0)
    own_parts, whole = split(whole, 1)
    shared_parts, whole = split(whole, 2)
    return RowProgram(once, own_parts, shared_parts, whole, layout.num_free, np.dtype(layout.dtype))
