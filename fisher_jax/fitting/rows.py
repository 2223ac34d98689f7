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
from fisher_jax.numerics.differentiate import first_order, second_order, upper_triangle
from fisher_jax.numerics.expansion import Program, expand, split
from fisher_jax.optimizers.newton import Kind, Evaluation

Scalars = list[Any]


def derivatives_of_row(model: Model, layout: Layout, kind: Kind, has_given: bool) -> Callable[..., Any]:
    """A function of (u, fixed values, y, z, weight) for one row: weighted term, gradient and upper triangle of the information.

    u is a list of p scalars; z and the weight may be None. A weight of zero silences even a NaN: that row is not there.
    """

    def row(u: Scalars, values: list[Any], y: PyTree, z: PyTree, weight: Any) -> tuple[Any, Scalars, Scalars]:
        given = (z,) if has_given else ()

        def term(u: Scalars) -> Array:
            return term_of(model, layout.constrain(jnp.stack(u), values), y, given, "fit").astype(layout.dtype)

        if kind == "expected" and model.information is None:
            value, gradient, information = row_of_scoring(model, layout, values, jnp.stack(u), y, given)
            gradient = [gradient[i] for i in range(len(u))]
            information = [information[i, j] for i, j in upper_triangle(len(u))]
        elif kind == "observed":
            value, gradient, information = second_order(term, u)
        else:
            value, gradient = first_order(term, u)
            if kind == "empirical":
                information = [gradient[i] * gradient[j] for i, j in upper_triangle(len(u))]
            else:
                jacobian = layout.jacobian(jnp.stack(u), values)
                params = layout.constrain(jnp.stack(u), values)
                closed = as_matrix(model.information(params, *given), layout.natural()).astype(layout.dtype)
                matrix = jacobian.T @ closed @ jacobian
                information = [matrix[i, j] for i, j in upper_triangle(len(u))]
        if weight is None:
            return value, gradient, information
        # Negative weights known only when run are as bad as NaN, which the status then reports.
        weight = jnp.where(weight >= 0, weight, jnp.nan).astype(layout.dtype)
        return jax.tree.map(lambda x: jnp.where(weight == 0, 0, weight * x), (value, gradient, information))

    return row


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

        def add_row(r: Array, sums: tuple[Any, ...]) -> tuple[Any, ...]:
            own, shared, own_parts, shared_parts = row_at(r)
            term, *derivatives = self.rest(parameters, own, shared, once, own_parts, shared_parts)
            # Two-sum (Knuth 1997, The Art of Computer Programming 2, section 4.2.2, theorem B): `low` keeps what rounding
            # takes from the sum, without which float32 cannot tell two points near the maximum apart.
            high, low, *others = sums
            total = high + term
            part = total - high
            low = low + ((high - (total - part)) + (term - part))
            return (total, low, *(a + b for a, b in zip(others, derivatives, strict=True)))

        sums = jax.lax.fori_loop(0, num_rows, add_row, (zero,) * (2 + p + p * (p + 1) // 2))
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

    def flat_row(parameters: tuple[Scalars, list[Any]], own: Any, shared: Any) -> Any:
        u, fixed = parameters
        y, z, weight = row_from(own, shared)
        row = derivatives_of_row(model, layout, kind, z is not None)
        return row(u, values_from(fixed), y, z, weight)

    u = [jax.ShapeDtypeStruct((), layout.dtype)] * layout.num_free
    whole = expand(flat_row, (u, fixed), own, shared)
    once, whole = split(whole, 0)
    own_parts, whole = split(whole, 1)
    shared_parts, whole = split(whole, 2)
    return RowProgram(once, own_parts, shared_parts, whole, layout.num_free, np.dtype(layout.dtype))
