"""An information matrix as a sum over observations or draws that is never formed: its products, diagonal and trace.

The summands are w s sᵀ, w Jᵀ I_η J or −w H. They are taken a chunk of rows at a time, so that memory grows neither with the
number of observations nor with that of draws.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from fisher_jax.blocks import CHUNK_ENTRIES, in_chunks
from fisher_jax.information.closed_form import as_matrix
from fisher_jax.information.draws import Drawing, drawing, num_pairs, terms_per_draw, unit_terms
from fisher_jax.information.errors import Estimate
from fisher_jax.information.expectations import SCRAMBLINGS, MonteCarlo
from fisher_jax.information.krylov import Product, probed, random_signs
from fisher_jax.information.sampled import PIECES
from fisher_jax.models.constraints import fixed
from fisher_jax.models.likelihood import Likelihood, terms_of
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Leaf, Values
from fisher_jax.numerics.differentiate import weigh

ROWS_AT_ONCE = 4096  # log-densities in one product, of which memory holds what their computation passes through
ONE_BY_ONE_ABOVE = 4096  # parameters above which scores are squared one row at a time, where XLA never writes them out
Weights = Float[Array, " c"]
Terms = Callable[[Float[Array, " p"], PyTree], Float[Array, " c"]]
Diagonal = Callable[[PyTree, Any], Values]


class Rows(NamedTuple):
    """Observations, or covariates: each row a summand."""

    rows: PyTree
    weights: Float[Array, " n"] | None
    num_rows: int
    dtype: Any

    def summed(self, at_once: int, of_chunk: Callable[[PyTree, Any], Any]) -> Any:
        """Σ of_chunk(rows, weights)."""

        def of_part(rows: PyTree, weights: Any) -> tuple[Array, Any]:
            return _nothing(rows), of_chunk(rows, weights)

        return in_chunks(self.rows, self.weights, at_once, of_part, self.dtype)[1]

    def whole(self, at_once: int) -> tuple[PyTree, Any] | None:
        """All rows and weights, where they are no more than may be taken at once."""
        return (self.rows, self.weights) if self.num_rows <= at_once else None


class Draws(NamedTuple):
    """Pairs of draws by number, made anew from their key wherever they are needed."""

    draw: Drawing
    pairs: int
    pieces: int
    dtype: Any

    def take(self, number: Int[Array, " c"]) -> tuple[PyTree, Float[Array, " d"]]:
        """The 2c rows of these pairs; what is numbered beyond the last has no weight."""
        weights = jnp.tile((number < self.pairs).astype(self.dtype), 2)
        return self.draw(jnp.minimum(number, self.pairs - 1)), weights

    def summed(self, at_once: int, of_chunk: Callable[[PyTree, Any], Any]) -> Any:
        """Σ of_chunk(rows, weights)."""
        size = min(max(1, at_once // 2), self.pairs)
        count = -(-self.pairs // size)
        return _looped(count, lambda k: of_chunk(*self.take(k * size + jnp.arange(size))))

    def whole(self, at_once: int) -> tuple[PyTree, Any] | None:
        """All draws, where they are no more than may be taken at once."""
        return self.take(jnp.arange(self.pairs)) if 2 * self.pairs <= at_once else None

    def by_pieces(self, at_once: int, of_chunk: Callable[[PyTree, Any, Array], PyTree]) -> Estimate:
        """Mean per draw of Σ of_chunk(rows, weights, number), with the error that independent pieces of the draws show.

        Half the difference between the members of a piece's pairs has the variance of their mean, whatever row of
        covariates they belong to. `number` is another in each call.
        """
        per_piece = -(-self.pairs // self.pieces)
        size = min(max(1, at_once // 2), per_piece)
        count = -(-per_piece // size)

        def of_piece(piece: Array) -> tuple[PyTree, PyTree]:
            def of_both(k: Array) -> tuple[PyTree, PyTree]:
                number = piece + self.pieces * (k * size + jnp.arange(size))
                both, weights = self.take(number)
                first, second = (jax.tree.map(lambda leaf, part=part: leaf[part], both) for part in _halves(size))
                return (
                    of_chunk(first, weights[:size], 2 * number[0]),
                    of_chunk(second, weights[:size], 2 * number[0] + 1),
                )

            first, second = _looped(count, of_both)
            mean = jax.tree.map(lambda a, b: 0.5 * (a + b), first, second)
            return mean, jax.tree.map(lambda a, b: (0.5 * (a - b)) ** 2, first, second)

        mean, squares = _looped(self.pieces, of_piece)
        error = jax.tree.map(lambda square: jnp.sqrt(square) / self.pairs, squares)
        return Estimate(jax.tree.map(lambda total: total / self.pairs, mean), error)


class Matrix(NamedTuple):
    """A mean of summands.

    `prepare(rows, weights)` is the function from v to their sum's product with it; `diagonal(rows, weights)` their sum's
    diagonal as the leaves of params, `None` where that can only be probed.
    """

    source: Rows | Draws
    prepare: Callable[[PyTree, Any], Product]
    diagonal: Diagonal | None
    at_once: int  # rows in a product
    rows_at_once: int  # rows in a diagonal, each of which takes p numbers or more
    total: Any  # what the sum over all rows is divided by
    theta: Float[Array, " p"]
    layout: Layout


def product_with(matrix: Matrix) -> Product:
    """The function from v to the product, linearised once and for all where one chunk holds everything."""
    everything = matrix.source.whole(matrix.at_once)
    if everything is not None:
        apply = matrix.prepare(*everything)
        return lambda vector: apply(vector) / matrix.total

    def product(vector: Float[Array, " p"]) -> Float[Array, " p"]:
        of_chunk = lambda rows, weights: matrix.prepare(rows, weights)(vector)  # noqa: E731
        return matrix.source.summed(matrix.at_once, of_chunk) / matrix.total

    return product


def estimate(matrix: Matrix, reduce: Callable[[Values], PyTree], key: Any, num_probes: int) -> Estimate:
    """`reduce`, which is linear, of the diagonal: exact for summands at the data that are squares."""
    known = matrix.diagonal
    if isinstance(matrix.source, Draws):
        terms = matrix.total / (2 * matrix.source.pairs)
        found = matrix.source.by_pieces(*_of_draws(matrix, reduce, key, num_probes))
        return jax.tree.map(lambda part: part / terms, found)
    if known is not None:
        total = matrix.source.summed(matrix.rows_at_once, lambda rows, weights: reduce(known(rows, weights)))
        return Estimate(jax.tree.map(lambda part: part / matrix.total, total), jax.tree.map(jnp.zeros_like, total))
    product = product_with(matrix)
    return probed(lambda z: reduce(matrix.layout.split(z * product(z), 0.0)), key, num_probes, matrix.theta)


def _of_draws(matrix: Matrix, reduce: Callable[[Values], PyTree], key: Any, num_probes: int) -> tuple[int, Any]:
    """How many draws to take at once, and what of them to average; probes anew in each chunk, so that their error shows."""
    known = matrix.diagonal
    if known is not None:
        return matrix.rows_at_once, lambda rows, weights, _: reduce(known(rows, weights))

    def of_chunk(rows: PyTree, weights: Weights, number: Array) -> PyTree:
        product = matrix.prepare(rows, weights)
        own = jax.random.fold_in(key, number)

        def of_probe(k: Array) -> Array:
            z = random_signs(jax.random.fold_in(own, k), matrix.theta)
            return z * product(z) / num_probes

        return reduce(matrix.layout.split(_looped(num_probes, of_probe), 0.0))

    return matrix.at_once, of_chunk


def empirical(target: Likelihood, model: Model, layout: Layout, values: Values, has_given: bool) -> Matrix:
    """(1/n) Σ w s sᵀ at the data."""
    theta = layout.unconstrain(values)
    if target.separable:
        make = lambda layout, values: terms_of(model, layout, values, has_given)  # noqa: E731
        diagonal = _squared_scores(make, layout, values)
    else:
        diagonal = _squared_rows(target.terms, theta, layout)
    return _at_data(target, theta, layout, _outer(target.terms, theta), diagonal)


def observed(target: Likelihood, layout: Layout, values: Values) -> Matrix:
    """−(1/n) Σ w H at the data."""
    theta = layout.unconstrain(values)
    return _at_data(target, theta, layout, _curvature(target.terms, theta), None)


def _at_data(target: Likelihood, theta: Float[Array, " p"], layout: Layout, prepare: Any, diagonal: Any) -> Matrix:
    total = target.num_terms if target.weights is None else jnp.sum(target.weights)
    source = Rows(target.rows, target.weights, target.num_terms, theta.dtype)
    at_once, rows_at_once = ROWS_AT_ONCE, _rows_at_once(theta.shape[0])
    if not target.separable:
        at_once = rows_at_once = max(target.num_terms, jax.tree.leaves(target.rows)[0].shape[0])
    return Matrix(source, prepare, diagonal, at_once, rows_at_once, total, theta, layout)


def linked(model: Any, layout: Layout, values: Values, given: PyTree) -> Matrix:
    """(1/n) Σ Jᵀ I_η J over the rows of `given`, or that of one observation."""
    theta = layout.unconstrain(values)
    rows = jnp.zeros((1,)) if given is None else given
    arguments = (lambda row: ()) if given is None else (lambda row: (row,))

    def predict(params: PyTree, row: PyTree) -> Array:
        return model.predict(params, *arguments(row)).astype(theta.dtype)

    def inner(row: PyTree) -> Array:
        family_layout, found = model.family_information(layout.constrain(theta, values), *arguments(row))
        return as_matrix(found, family_layout).astype(theta.dtype)

    def of_all(flat: Array, rows: PyTree) -> Array:
        params = layout.constrain(flat, values)
        return jax.vmap(lambda row: predict(params, row))(rows)

    def prepare(rows: PyTree, weights: Any) -> Product:
        _, push = jax.linearize(lambda flat: of_all(flat, rows), theta)
        pull = jax.linear_transpose(push, theta)
        inners = jax.vmap(inner)(rows)

        def product(vector: Array) -> Array:
            pushed = jnp.einsum("nef,nf->ne", inners, push(vector), precision="highest")
            return pull(weigh(pushed, _cast(weights, theta)))[0]

        return product

    def squares(row: PyTree) -> list[Array]:
        free, filled = _by_leaf(layout, values)
        _, pull = jax.vjp(lambda free: predict(layout.assemble(filled(free)), row), free)
        within = inner(row)
        jacobians = jax.vmap(lambda axis: pull(axis)[0])(jnp.eye(within.shape[0], dtype=theta.dtype))
        return [jnp.sum(part * jnp.tensordot(within, part, 1, precision="highest"), axis=0) for part in jacobians]

    n = jax.tree.leaves(rows)[0].shape[0]
    at_once = _rows_at_once(theta.shape[0] * jax.eval_shape(of_all, theta, rows).shape[1])
    diagonal = _summed(squares, layout)
    return Matrix(Rows(rows, None, n, theta.dtype), prepare, diagonal, ROWS_AT_ONCE, at_once, n, theta, layout)


def sampled(model: Model, layout: Layout, values: Values, expectation: Any, given: PyTree) -> Matrix:
    """The mean of s sᵀ, or of −H, over draws from the model."""
    theta = layout.unconstrain(values)
    pairs = num_pairs(model, expectation, given)
    make = lambda layout, values: unit_terms(model, layout, values, given is not None)  # noqa: E731
    terms = make(layout, values)
    per_draw = terms_per_draw(model, layout, values, expectation, given)
    pieces = min(PIECES, pairs) if isinstance(expectation, MonteCarlo) else SCRAMBLINGS // 2
    draw = drawing(model, layout.constrain(theta, values), given, expectation)
    outer = expectation.estimator == "outer"
    return Matrix(
        Draws(draw, pairs, pieces, theta.dtype),
        (_outer if outer else _curvature)(terms, theta),
        _squared_scores(make, layout, values) if outer else None,
        max(2, ROWS_AT_ONCE // per_draw),
        2 * _rows_at_once(theta.shape[0]),
        2 * pairs * per_draw,
        theta,
        layout,
    )


def _outer(terms: Terms, theta: Float[Array, " p"]) -> Callable[[PyTree, Any], Product]:
    """Σ w s (sᵀ v): forward along v, then back, through one linearisation."""

    def prepare(rows: PyTree, weights: Any) -> Product:
        _, push = jax.linearize(lambda flat: terms(flat, rows), theta)
        pull = jax.linear_transpose(push, theta)
        return lambda vector: pull(weigh(push(vector), _cast(weights, theta)))[0]

    return prepare


def _curvature(terms: Terms, theta: Float[Array, " p"]) -> Callable[[PyTree, Any], Product]:
    """−Σ w H v: the gradient, linearised."""

    def prepare(rows: PyTree, weights: Any) -> Product:
        total = lambda flat: jnp.sum(weigh(terms(flat, rows), _cast(weights, theta)))  # noqa: E731
        _, push = jax.linearize(jax.grad(total), theta)
        return lambda vector: -push(vector)

    return prepare


def _squared_scores(make: Callable[[Layout, Values], Terms], layout: Layout, values: Values) -> Diagonal:
    """Σ w s² by leaf: no score is ever laid out flat, which would cost more than all the rest."""
    free, filled = _by_leaf(layout, values)
    held = _all_fixed(layout)
    nothing = jnp.zeros((0,), layout.dtype)

    def squares(row: PyTree) -> list[Array]:
        rows = jax.tree.map(lambda leaf: leaf[None], row)
        scores = jax.grad(lambda free: make(held, filled(free))(nothing, rows)[0])(free)
        return [score**2 for score in scores]

    return _summed(squares, layout)


def _by_leaf(layout: Layout, values: Values) -> tuple[list[Array], Callable[[list[Array]], Values]]:
    """The free leaves, and the way from others in their place to all leaves."""
    index = [i for i, _ in layout.free_leaves]

    def filled(free: list[Array]) -> Values:
        found = dict(zip(index, free, strict=True))
        return [found.get(i, value) for i, value in enumerate(values)]

    return [jnp.asarray(values[i], layout.dtype) for i in index], filled


def _all_fixed(layout: Layout) -> Layout:
    """The same parameters with none free, so that log-densities are functions of the leaves."""
    leaves = tuple(Leaf(leaf.name, leaf.shape, (0,), fixed) for leaf in layout.leaves)
    return Layout(leaves, layout.dtype, layout.treedef, layout.statics)


def _summed(of_row: Callable[[PyTree], list[Array]], layout: Layout) -> Diagonal:
    """Weighted sums over rows of what each gives for every free leaf."""

    def diagonal(rows: PyTree, weights: Any) -> Values:
        result: Values = [jnp.zeros(leaf.shape, layout.dtype) for leaf in layout.leaves]
        for (i, _), part in zip(layout.free_leaves, jax.vmap(of_row)(rows), strict=True):
            kept = None if weights is None else weights.astype(part.dtype)
            result[i] = jnp.sum(weigh(part, kept), axis=0)
        return result

    return diagonal


def _squared_rows(terms: Terms, theta: Float[Array, " p"], layout: Layout) -> Diagonal:
    """Σ w s² for terms that each need all the data: one pass back for each."""

    def diagonal(rows: PyTree, weights: Any) -> Values:
        value, pull = jax.vjp(lambda flat: terms(flat, rows), theta)
        weights = jnp.ones_like(value) if weights is None else _cast(weights, theta)

        def of_terms(number: Array, weights: Array) -> tuple[Array, Array]:
            basis = (number[:, None] == jnp.arange(value.shape[0])[None, :]).astype(value.dtype)
            scores = jax.vmap(lambda row: pull(row)[0])(basis)
            return _nothing(number), jnp.sum(weigh(scores**2, weights), axis=0)

        at_once = max(1, CHUNK_ENTRIES // (theta.shape[0] + value.shape[0]))
        return layout.split(in_chunks(jnp.arange(value.shape[0]), weights, at_once, of_terms, layout.dtype)[1], 0.0)

    return diagonal


def _looped(count: int, of_index: Callable[[Array], Any]) -> Any:
    """Σ of_index(k) over k < count, one at a time."""
    if count == 1:
        return of_index(jnp.array(0))
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), jax.eval_shape(of_index, jnp.array(0)))
    return jax.lax.fori_loop(0, count, lambda k, total: jax.tree.map(jnp.add, total, of_index(k)), zeros)


def _nothing(rows: PyTree) -> Float[Array, "c 0"]:
    return jnp.zeros((jax.tree.leaves(rows)[0].shape[0], 0))


def _halves(size: int) -> tuple[slice, slice]:
    return slice(0, size), slice(size, 2 * size)


def _rows_at_once(width: int) -> int:
    return 1 if width > ONE_BY_ONE_ABOVE else CHUNK_ENTRIES // max(width, 1)


def _cast(weights: Any, theta: Array) -> Any:
    return None if weights is None else weights.astype(theta.dtype)
