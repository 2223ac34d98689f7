"""`information_operator`: the information matrices as products with a vector, for more parameters than p × p can hold.

The matrix is a mean of summands s sᵀ, Jᵀ I_η J or −H over observations or draws, and is never formed. Each product passes
through the rows again, a chunk at a time, so that memory grows neither with the number of observations nor with that of draws:
s sᵀ v is one forward pass along v, then one back; −H v is the forward derivative of the gradient (Pearlmutter 1994).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from fisher_jax.blocks import CHUNK_ENTRIES, in_chunks
from fisher_jax.errors import check_choice, check_count, check_pytrees, entry_point
from fisher_jax.information import krylov
from fisher_jax.information.closed_form import as_matrix, has_closed_form
from fisher_jax.information.derivatives import ROUTES, check_arguments
from fisher_jax.information.draw_pairs import Drawing, drawing, num_pairs, num_rows, terms_per_draw, unit_terms
from fisher_jax.information.expectations import SCRAMBLINGS, MonteCarlo, QuasiMonteCarlo
from fisher_jax.information.fisher_information import describe
from fisher_jax.information.krylov import Product, Solution
from fisher_jax.information.monte_carlo import PIECES
from fisher_jax.models.auxiliary import check_without_auxiliary
from fisher_jax.models.constraints import fixed
from fisher_jax.models.dataset import Dataset, check_given
from fisher_jax.models.likelihood import likelihood, terms_of, total_weight
from fisher_jax.models.model import Model, as_model, flatten_parameters
from fisher_jax.models.parameters import Layout, Leaf, Values
from fisher_jax.models.programs import jit_with_model
from fisher_jax.moments import Estimate
from fisher_jax.numerics.differentiate import weigh

ROWS_AT_ONCE = 4096  # log-densities in one product, of which memory holds what their computation passes through
ONE_BY_ONE_ABOVE = 4096  # parameters above which scores are squared one row at a time, where XLA never writes them out
Kind = Literal["expected", "empirical", "observed"]
Terms = Callable[[Float[Array, " p"], PyTree], Float[Array, " c"]]
Diagonal = Callable[[PyTree, Any], Values]
_FROM_SPREAD = ", since the error is from their spread"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class InformationOperator:
    """An information matrix M, per observation, as a function from a vector to its product; see `information_operator`.

    Attributes
    ----------
    kind : {"expected", "empirical", "observed"}
        Which of the three matrices it is.
    route : str
        How it is computed, in words.
    num_parameters : int
        p, the number of entries that are not held `fixed`.
    num_samples : int
        Draws behind a sampled expectation, over all rows of `given`; 0 where there are none.

    Notes
    -----
    Vectors are pytrees like `params`. Leaves that the model holds `fixed` are no part of the matrix: they are ignored in a
    vector and zero in a result. Other constraints play no part, as in `fisher_information`.

    A sampled operator is the matrix of these particular draws, the same in every product; the errors of its diagonal and
    trace show how far those may be from the expectation's. The tests of regularity that `fisher_information` makes on the way
    are not made here.

    The operator is a pytree: it may be an argument of a jitted function, and made inside one.
    """

    model: Model = field(metadata={"static": True}, repr=False)
    layout: Layout = field(metadata={"static": True}, repr=False)
    kind: Kind = field(metadata={"static": True})
    values: Values = field(repr=False)
    dataset: Dataset = field(repr=False)
    expectation: Any = field(default=None, repr=False)

    @property
    def _parts(self) -> tuple[Any, ...]:
        """The operator as arguments of compiled code: JAX's caches would hold the model of a pytree with it."""
        return self.model, self.layout, self.kind, (self.values, self.dataset, self.expectation)

    @property
    def num_parameters(self) -> int:
        """p, the number of entries that are not held `fixed`."""
        return self.layout.num_free

    @property
    def num_samples(self) -> int:
        """Draws behind a sampled expectation, over all rows of `given`."""
        if self.expectation is None:
            return 0
        return self.expectation.num_samples * num_rows(self.model, self.dataset.given)

    @property
    def route(self) -> str:
        """How it is computed, in words."""
        if self.kind != "expected":
            return ROUTES[self.kind]
        if self.expectation is None:
            return "expected: closed form of the family, Jᵀ I_η J"
        average = "s sᵀ" if self.expectation.estimator == "outer" else "−H"
        return f"expected: {describe(self.expectation)}, mean of {average}"

    @entry_point
    def product(self, vector: PyTree) -> PyTree:
        """M v.

        Parameters
        ----------
        vector : pytree
            v, like `params`.

        Returns
        -------
        pytree
            Like `params`.

        Notes
        -----
        Costs about one and a half to two gradients of the log-likelihood for products of scores and linked models, up to
        three for a Hessian, and the drawing where there are draws. ``operator @ v`` is the same; `jax.vmap` takes several v.

        References
        ----------
        Pearlmutter, B. A. (1994), Neural Computation 6, 147-160; Schraudolph, N. N. (2002), Neural Computation 14, 1723-1738.
        """
        return self.layout.assemble(_product(*self._parts, self._blocks(vector)))

    def __matmul__(self, vector: PyTree) -> PyTree:
        return self.product(vector)

    @entry_point
    def diagonal(self, key: Array | None = None, num_probes: int = 32) -> Estimate:
        """The diagonal of M, with its standard error.

        Parameters
        ----------
        key : PRNG key, optional
            For the probes, where the matrix is made of Hessians; otherwise not used.
        num_probes : int
            Vectors of random signs z, whose z ∘ M z are averaged, at least 2; as many products.

        Returns
        -------
        Estimate
            `value` and `standard_error`, each a pytree like `params`.

        Raises
        ------
        ValueError
            If probes are needed and `key` is missing.

        Notes
        -----
        Exact, as a sum of squares by row, for the empirical Fisher and for linked models: the error is zero. For a sampled
        mean of s sᵀ it is that of the draws; for the observed information that of the probes; for a sampled mean of −H that
        of draws and probes together. The squares take one gradient for each row or draw, so they are slower than a product.

        References
        ----------
        Bekas, C., Kokiopoulou, E. and Saad, Y. (2007), Applied Numerical Mathematics 57, 1214-1229.
        """
        return Estimate(*map(self.layout.assemble, self._estimate("diagonal", key, num_probes)))

    @entry_point
    def trace(self, key: Array | None = None, num_probes: int = 32) -> Estimate:
        """The trace of M, with its standard error.

        Parameters
        ----------
        key, num_probes
            As for `diagonal`.

        Returns
        -------
        Estimate
            `value` and `standard_error`, scalars, exact and inexact where `diagonal` is.

        References
        ----------
        Hutchinson, M. F. (1990), Commun. Statist. Simul. Comput. 19, 433-450.
        """
        return self._estimate("trace", key, num_probes)

    @entry_point
    def log_determinant(
        self, key: Array, *, damping: float | Array = 0.0, num_probes: int = 16, num_steps: int = 32
    ) -> Estimate:
        """log det(M + damping · I), by stochastic Lanczos quadrature.

        Parameters
        ----------
        key : PRNG key
            For the probes.
        damping : float
            Added to the diagonal. Zero needs M positive definite.
        num_probes : int
            Vectors of random signs, at least 2.
        num_steps : int
            Lanczos steps from each; as many products.

        Returns
        -------
        Estimate
            Scalars. The standard error joins that over the probes and, below p steps, the change since half the steps, so
            that too few steps show. The error of draws is not in it. NaN where M + damping · I proves not positive definite.

        Notes
        -----
        It depends on the parameters' units, and on `damping` more than on anything else where the rank r of M is below p,
        as it is with fewer rows than parameters: (p − r) log(damping) is then the largest part. Compare values of one damping
        only. Holds num_steps vectors of length p, for one probe at a time.

        References
        ----------
        Ubaru, S., Chen, J. and Saad, Y. (2017), SIAM J. Matrix Anal. Appl. 38, 1075-1099, algorithm 1.
        """
        check_count(num_probes, 2, "num_probes", _FROM_SPREAD)
        check_count(num_steps, 1, "num_steps")
        return _log_determinant(*self._parts, key, damping, num_probes, num_steps)

    @entry_point
    def solve(
        self, vector: PyTree, damping: float | Array = 0.0, *, tolerance: float | Array = 1e-5, max_steps: int = 1000
    ) -> Solution:
        """x with (M + damping · I) x = v, by conjugate gradients.

        Parameters
        ----------
        vector : pytree
            v, like `params`.
        damping : float
            Added to the diagonal, as a singular or indefinite M needs it.
        tolerance : float
            Norm of the residual, divided by that of v, at which to stop. In float32 keep it above 1e-6.
        max_steps : int
            Products at most.

        Returns
        -------
        Solution
            With the residual, computed afresh, and whether it is within the tolerance.

        Notes
        -----
        Stops, `converged` being false, at the first direction without positive curvature: M + damping · I is not positive
        definite then, and the value is where the search stood. With v a score per observation, the solution is the natural
        gradient (expected) or the Newton step (observed).

        References
        ----------
        Hestenes, M. R. and Stiefel, E. (1952), J. Res. Natl. Bur. Stand. 49, 409-436, eq. (3:1).
        """
        solution = _solve(*self._parts, self._blocks(vector), damping, tolerance, max_steps)
        return solution._replace(value=self.layout.assemble(solution.value))

    def _estimate(self, method: str, key: Any, num_probes: int) -> Estimate:
        needs_probes = self.kind == "observed" or getattr(self.expectation, "estimator", "") == "hessian"
        if not needs_probes:
            return _diagonal(*self._parts, None, 0, method == "trace")
        if key is None:
            raise ValueError(
                f"the matrix is made of Hessians ({self.route}), so its {method} is estimated "
                "with random probes. Give key=jax.random.key(…)."
            )
        check_count(num_probes, 2, "num_probes", _FROM_SPREAD)
        return _diagonal(*self._parts, key, num_probes, method == "trace")

    def _blocks(self, vector: PyTree) -> Values:
        """The leaves of a vector like params, zero for those held fixed."""
        expected = "expected a pytree like params, each leaf of its parameter's shape"
        try:
            blocks = self.layout.blocks(vector)
        except ValueError as error:
            raise ValueError(f"{expected}, but {error}.") from error
        for i, leaf in self.layout.free_leaves:
            if jnp.shape(blocks[i]) != leaf.shape:
                raise ValueError(
                    f"{expected}, but `{leaf.name}` has shape {jnp.shape(blocks[i])} in place of {leaf.shape}. For several "
                    "vectors at once use jax.vmap."
                )
        return [0.0 if leaf.is_fixed else blocks[i] for i, leaf in enumerate(self.layout.leaves)]


@entry_point
def information_operator(
    model: Model | Callable[..., Any],
    params: PyTree,
    expectation: MonteCarlo | QuasiMonteCarlo | None = None,
    *,
    kind: Kind | None = None,
    data: PyTree = None,
    given: PyTree = None,
    weights: PyTree = None,
) -> InformationOperator:
    """An information matrix, per observation, as products with a vector, never p × p: for 10⁵ or 10⁶ parameters.

    Parameters
    ----------
    model : Model or callable
        A model, or a log-density of one observation.
    params : pytree
        The parameters θ, any pytree of floating arrays.
    expectation : MonteCarlo or QuasiMonteCarlo, optional
        For the expected information: how it is sampled, with estimator ``"outer"`` or ``"hessian"``. `None` is Jᵀ I_η J of a
        `linked` model whose family has a closed form, exact.
    kind : {"expected", "empirical", "observed"}, optional
        ``"expected"`` is that of `fisher_information`, and meant where there are no data; ``"empirical"`` is that of
        `empirical_fisher`, ``"observed"`` that of `observed_information`, both at `data`.
    data : pytree, optional
        The observations, each leaf with a leading axis of length n.
    given : pytree, optional
        Covariates with a leading axis. For the expected information the average is over their rows, and each row has
        draws of its own.
    weights : array (n,), optional
        Frequency weights of the observations; n is then their sum.

    Returns
    -------
    InformationOperator
        With `product` (or ``@``), `diagonal`, `trace`, `log_determinant` and `solve`.

    Raises
    ------
    ValueError, TypeError
        If the arguments do not fit together, or there is no method to compute the expectation: the message names what to supply.

    Notes
    -----
    Rows and draws are taken in chunks, draws made anew from their key each time: memory is that of a chunk and of a few
    vectors, whatever n and the number of draws. A `dependent` model's data are not cut.

    Control variates, which ``"bartlett"`` uses, are p × p numbers for each draw, so there are none here. Where −H and s sᵀ
    differ in noise, ``"hessian"`` has the less of it for exponential families, ``"outer"`` for heavy tails.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> from jax.scipy.stats import norm
    >>> def log_density(params, y, x):
    ...     return norm.logpdf(y, x @ params["beta"], 2.0)
    >>> x = jnp.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
    >>> operator = information_operator(
    ...     log_density, {"beta": jnp.zeros(2)}, kind="observed", data=jnp.array([1.0, 2.0, 4.0]), given=x
    ... )
    >>> operator.route
    'observed: minus the mean Hessian at the data'
    >>> print((operator @ {"beta": jnp.array([12.0, 0.0])})["beta"])
    [3. 3.]
    >>> found = operator.solve({"beta": jnp.array([6.0, 8.0])})
    >>> print([f"{entry:.2f}" for entry in found.value["beta"]], found.num_steps, found.converged)
    ['12.00', '12.00'] 2 True
    """
    if kind is None and data is not None:
        raise ValueError(
            'data came without kind=. Say which matrix: kind="empirical" for the mean outer product of the scores, '
            'kind="observed" for minus the mean Hessian. The expected information takes no data.'
        )
    if kind is not None:
        check_choice(kind, ("expected", "empirical", "observed"), "kind")
    if kind in (None, "expected"):
        if data is not None or weights is not None:
            raise ValueError(
                f"the expected information takes no {'data' if data is not None else 'weights'}, since y is "
                'averaged over. Give covariates as given=, or choose kind="empirical" or kind="observed".'
            )
        return _expected_operator(model, params, expectation, given)
    if data is None:
        raise ValueError(f"kind={kind!r} is a matrix at the data, and data is None. Give data=.")
    if expectation is not None:
        raise ValueError(
            f"kind={kind!r} takes no expectation, got {type(expectation).__name__}. Leave it out, or choose "
            'kind="expected" without data.'
        )
    model, layout, values, dataset = check_arguments(model, params, data, given, weights)
    check_without_auxiliary(model, "a sum over observations")
    return InformationOperator(model, layout, kind, *_on_device((values, dataset)))


def _expected_operator(model: Any, params: PyTree, expectation: Any, given: PyTree) -> InformationOperator:
    model = as_model(model)
    check_without_auxiliary(model, "an expectation")
    check_pytrees(given=given)
    layout, values = flatten_parameters(model, params)
    given = check_given(model, given)
    if expectation is None:
        if model.information is not None:
            raise ValueError(
                "the model has its information in closed form, which is p × p as it comes. Use fisher_information, "
                "whose matrix can be multiplied, or give an expectation."
            )
        if not has_closed_form(model):
            raise ValueError(
                "no method to compute the expectation: the model is not linked to a family with a closed form. Give "
                'MonteCarlo(key, num_samples, "outer") if it has a sampler, or write it with fisher_jax.linked; '
                'kind="empirical" and kind="observed" need data instead.'
            )
    else:
        if not isinstance(expectation, MonteCarlo | QuasiMonteCarlo):
            raise TypeError(
                f"expectation must be MonteCarlo or QuasiMonteCarlo, got {type(expectation).__name__}. For few "
                "parameters fisher_information takes the others."
            )
        if expectation.estimator == "bartlett":
            raise ValueError(
                'estimator="bartlett" needs control variates, p × p numbers for each draw. Choose estimator="outer", '
                'the mean of s sᵀ, or estimator="hessian", that of −H; for few parameters fisher_information takes it.'
            )
        drawing(model, params, given, expectation)  # raises for a model without sampler or quantile function
    values, dataset = _on_device((values, Dataset(None, given)))
    return InformationOperator(model, layout.natural(), "expected", values, dataset, expectation)


def _on_device(tree: PyTree) -> PyTree:
    """Arrays put where they are used once, not in every product."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, tree)


def _jit_of_matrix(function: Callable[..., Any], *, static_argnums: tuple[int, ...] = ()) -> Callable[..., Any]:
    """Jit a function of (matrix, layout, …), called with the parts of the operator, from which the matrix is made when traced."""

    @functools.partial(jit_with_model, static_argnums=(0, 1, 2, *static_argnums))
    def run(model: Model, layout: Layout, kind: Kind, arrays: tuple[Any, ...], *arguments: Any) -> Any:
        return function(_matrix(model, layout, kind, arrays), layout, *arguments)

    return run


@_jit_of_matrix
def _product(matrix: "Matrix", layout: Layout, vector: Values) -> Values:
    return layout.split(_product_with(matrix)(layout.join(vector)), 0.0)


@functools.partial(_jit_of_matrix, static_argnums=(5, 6))
def _diagonal(matrix: "Matrix", layout: Layout, key: Any, num_probes: int, trace: bool) -> Estimate:
    """The diagonal or the trace: exact for squares summed at the data, otherwise with the error of draws or probes."""
    squares, source = matrix.diagonal, matrix.source

    def reduce(diagonal: Values) -> Any:
        return sum(jnp.sum(leaf) for leaf in diagonal) if trace else diagonal

    if isinstance(source, Draws):

        def of_chunk(rows: PyTree, weights: Any, number: Array) -> PyTree:
            if squares is not None:
                return reduce(squares(rows, weights))
            # Other probes in each chunk, so that the pieces of the draws show the probes' error too.
            product, chunk_key = matrix.prepare(rows, weights), jax.random.fold_in(key, number)
            probe = lambda k: krylov.random_signs(jax.random.fold_in(chunk_key, k), matrix.theta)  # noqa: E731
            total = _sum_over(num_probes, lambda k: (z := probe(k)) * product(z) / num_probes)
            return reduce(layout.split(total, 0.0))

        result = source.by_pieces(matrix.at_once if squares is None else matrix.rows_at_once, of_chunk)
        return jax.tree.map(lambda part: part / (matrix.total / (2 * source.pairs)), result)
    if squares is not None:
        total = source.sum_of(matrix.rows_at_once, lambda rows, weights: reduce(squares(rows, weights)))
        return Estimate(jax.tree.map(lambda part: part / matrix.total, total), jax.tree.map(jnp.zeros_like, total))
    product = _product_with(matrix)
    probed = lambda z: reduce(layout.split(z * product(z), 0.0))  # noqa: E731
    return krylov.average_over_probes(probed, key, num_probes, matrix.theta)


@functools.partial(_jit_of_matrix, static_argnums=(6, 7))
def _log_determinant(
    matrix: "Matrix", layout: Layout, key: Array, damping: Any, num_probes: int, num_steps: int
) -> Estimate:
    return krylov.log_determinant(_product_with(matrix, damping), key, num_probes, num_steps, matrix.theta)


@_jit_of_matrix
def _solve(matrix: "Matrix", layout: Layout, vector: Values, damping: Any, tolerance: Any, max_steps: Any) -> Solution:
    product = _product_with(matrix, damping)
    solution = krylov.conjugate_gradients(product, layout.join(vector), tolerance, max_steps)
    return solution._replace(value=layout.split(solution.value, 0.0))


# The rows that the summands are over.


class Rows(NamedTuple):
    """Observations, or covariates: each row a summand."""

    rows: PyTree
    weights: Float[Array, " n"] | None
    num_rows: int
    dtype: Any

    def sum_of(self, at_once: int, of_chunk: Callable[[PyTree, Any], Any]) -> Any:
        """Σ of_chunk(rows, weights)."""
        return _sum_in_chunks(self.rows, self.weights, at_once, of_chunk, self.dtype)

    def whole(self, at_once: int) -> tuple[PyTree, Any] | None:
        """All rows and weights, where they are no more than may be taken at once."""
        return (self.rows, self.weights) if self.num_rows <= at_once else None


class Draws(NamedTuple):
    """Pairs of draws by number, made again from their key wherever they are needed."""

    draw: Drawing
    pairs: int
    pieces: int
    dtype: Any

    def take(self, number: Int[Array, " c"]) -> tuple[PyTree, Float[Array, " d"]]:
        """The 2c rows of these pairs; what is numbered beyond the last has no weight."""
        weights = jnp.tile((number < self.pairs).astype(self.dtype), 2)
        return self.draw(jnp.minimum(number, self.pairs - 1)), weights

    def sum_of(self, at_once: int, of_chunk: Callable[[PyTree, Any], Any]) -> Any:
        """Σ of_chunk(rows, weights)."""
        size = min(max(1, at_once // 2), self.pairs)
        return _sum_over(-(-self.pairs // size), lambda k: of_chunk(*self.take(k * size + jnp.arange(size))))

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

        def of_piece(piece: Array) -> tuple[PyTree, PyTree]:
            def of_both(k: Array) -> list[PyTree]:
                number = piece + self.pieces * (k * size + jnp.arange(size))
                both, weights = self.take(number)
                members = [jax.tree.map(lambda leaf, h=h: leaf[h * size : (h + 1) * size], both) for h in (0, 1)]
                return [of_chunk(member, weights[:size], 2 * number[0] + h) for h, member in enumerate(members)]

            first, second = _sum_over(-(-per_piece // size), of_both)
            mean = jax.tree.map(lambda a, b: 0.5 * (a + b), first, second)
            return mean, jax.tree.map(lambda a, b: (0.5 * (a - b)) ** 2, first, second)

        mean, squares = _sum_over(self.pieces, of_piece)
        error = jax.tree.map(lambda square: jnp.sqrt(square) / self.pairs, squares)
        return Estimate(jax.tree.map(lambda total: total / self.pairs, mean), error)


def _sum_over(count: int, of_index: Callable[[Array], Any]) -> Any:
    """Σ of_index(k) over k < count, one at a time."""
    if count == 1:
        return of_index(jnp.array(0))
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), jax.eval_shape(of_index, jnp.array(0)))
    return jax.lax.fori_loop(0, count, lambda k, total: jax.tree.map(jnp.add, total, of_index(k)), zeros)


def _sum_in_chunks(rows: PyTree, weights: Any, at_once: int, of_chunk: Callable[[PyTree, Any], Any], dtype: Any) -> Any:
    """Σ of_chunk(rows, weights) over chunks of rows."""

    def of_part(rows: PyTree, weights: Any) -> tuple[Array, Any]:
        return jnp.zeros((jax.tree.leaves(rows)[0].shape[0], 0)), of_chunk(rows, weights)

    return in_chunks(rows, weights, at_once, of_part, dtype)[1]


# The summands.


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


def _matrix(model: Model, layout: Layout, kind: Kind, arrays: tuple[Any, ...]) -> Matrix:
    """The mean that the operator stands for; called where jitted code is traced."""
    values, dataset, expectation = arrays
    if kind != "expected":
        return _at_data(model, layout, kind, values, dataset)
    if expectation is None:
        return _of_linked(model, layout, values, dataset.given)
    return _of_draws(model, layout, values, expectation, dataset.given)


def _product_with(matrix: Matrix, damping: Any = None) -> Product:
    """The function from v to (M + damping · I) v, linearised once and for all where one chunk holds everything."""
    everything = matrix.source.whole(matrix.at_once)
    if everything is not None:
        apply = matrix.prepare(*everything)
    else:

        def apply(vector: Float[Array, " p"]) -> Float[Array, " p"]:
            return matrix.source.sum_of(matrix.at_once, lambda rows, weights: matrix.prepare(rows, weights)(vector))

    if damping is None:
        return lambda vector: apply(vector) / matrix.total
    damping = jnp.asarray(damping, matrix.theta.dtype)
    return lambda vector: apply(vector) / matrix.total + damping * vector


def _at_data(model: Model, layout: Layout, kind: Kind, values: Values, dataset: Dataset) -> Matrix:
    """(1/n) Σ w s sᵀ, or −(1/n) Σ w H."""
    theta = layout.unconstrain(values)
    target = likelihood(model, layout, values, dataset)
    source = Rows(target.rows, target.weights, target.num_terms, theta.dtype)
    at_once, rows_at_once = ROWS_AT_ONCE, _rows_at_once(theta.shape[0])
    if not target.separable:  # the terms of a series need all the data
        at_once = rows_at_once = max(target.num_terms, jax.tree.leaves(target.rows)[0].shape[0])
    prepare, diagonal = _curvature(target.terms, theta), None
    if kind == "empirical":
        prepare = _outer(target.terms, theta)
        diagonal = _squared_scores_of_series(target.terms, theta, layout)
        if target.separable:
            make = lambda layout, values: terms_of(model, layout, values, dataset.given is not None)  # noqa: E731
            diagonal = _squared_scores(make, layout, values)
    return Matrix(source, prepare, diagonal, at_once, rows_at_once, total_weight(target), theta)


def _of_linked(model: Any, layout: Layout, values: Values, given: PyTree) -> Matrix:
    """(1/n) Σ Jᵀ I_η J over the rows of `given`, or that of one observation."""
    theta = layout.unconstrain(values)
    rows = jnp.zeros((1,)) if given is None else given
    arguments = (lambda row: ()) if given is None else (lambda row: (row,))

    def predict(params: PyTree, row: PyTree) -> Array:
        return model.predict(params, *arguments(row)).astype(theta.dtype)

    def inner(row: PyTree) -> Array:
        family_layout, information = model.family_information(layout.constrain(theta, values), *arguments(row))
        return as_matrix(information, family_layout).astype(theta.dtype)

    def of_all(flat: Array, rows: PyTree) -> Array:
        params = layout.constrain(flat, values)
        return jax.vmap(lambda row: predict(params, row))(rows)

    def prepare(rows: PyTree, weights: Any) -> Product:
        _, push = jax.linearize(lambda flat: of_all(flat, rows), theta)
        pull = jax.linear_transpose(push, theta)
        inners = jax.vmap(inner)(rows)
        return lambda v: pull(weigh(jnp.einsum("nef,nf->ne", inners, push(v), precision="highest"), weights))[0]

    def squares(row: PyTree) -> list[Array]:
        free, fill = _free_leaves(layout, values)
        _, pull = jax.vjp(lambda free: predict(layout.assemble(fill(free)), row), free)
        within = inner(row)
        jacobians = jax.vmap(lambda axis: pull(axis)[0])(jnp.eye(within.shape[0], dtype=theta.dtype))
        return [jnp.sum(part * jnp.tensordot(within, part, 1, precision="highest"), axis=0) for part in jacobians]

    n = jax.tree.leaves(rows)[0].shape[0]
    rows_at_once = _rows_at_once(theta.shape[0] * jax.eval_shape(of_all, theta, rows).shape[1])
    source = Rows(rows, None, n, theta.dtype)
    return Matrix(source, prepare, _sum_by_leaf(squares, layout), ROWS_AT_ONCE, rows_at_once, n, theta)


def _of_draws(model: Model, layout: Layout, values: Values, expectation: Any, given: PyTree) -> Matrix:
    """The mean of s sᵀ, or of −H, over draws from the model."""
    model.check_draws(given)
    theta = layout.unconstrain(values)
    pairs = num_pairs(model, expectation, given)
    make = lambda layout, values: unit_terms(model, layout, values, given is not None)  # noqa: E731
    per_draw = terms_per_draw(model, layout, values, expectation, given)
    pieces = min(PIECES, pairs) if isinstance(expectation, MonteCarlo) else SCRAMBLINGS // 2
    draw = drawing(model, layout.constrain(theta, values), given, expectation)
    outer = expectation.estimator == "outer"
    return Matrix(
        Draws(draw, pairs, pieces, theta.dtype),
        (_outer if outer else _curvature)(make(layout, values), theta),
        _squared_scores(make, layout, values) if outer else None,
        max(2, ROWS_AT_ONCE // per_draw),
        2 * _rows_at_once(theta.shape[0]),
        2 * pairs * per_draw,
        theta,
    )


def _rows_at_once(width: int) -> int:
    return 1 if width > ONE_BY_ONE_ABOVE else CHUNK_ENTRIES // max(width, 1)


def _outer(terms: Terms, theta: Float[Array, " p"]) -> Callable[[PyTree, Any], Product]:
    """Σ w s (sᵀ v): forward along v, then back, through one linearisation."""

    def prepare(rows: PyTree, weights: Any) -> Product:
        _, push = jax.linearize(lambda flat: terms(flat, rows), theta)
        pull = jax.linear_transpose(push, theta)
        return lambda vector: pull(weigh(push(vector), weights))[0]

    return prepare


def _curvature(terms: Terms, theta: Float[Array, " p"]) -> Callable[[PyTree, Any], Product]:
    """−Σ w H v: the gradient, linearised."""

    def prepare(rows: PyTree, weights: Any) -> Product:
        _, push = jax.linearize(jax.grad(lambda flat: jnp.sum(weigh(terms(flat, rows), weights))), theta)
        return lambda vector: -push(vector)

    return prepare


def _squared_scores(make: Callable[[Layout, Values], Terms], layout: Layout, values: Values) -> Diagonal:
    """Σ w s² by leaf: no score is ever laid out flat, which would cost more than all the rest."""
    free, fill = _free_leaves(layout, values)
    # With every leaf held fixed, log-densities are functions of the leaves, and the flat vector is empty.
    of_leaves = replace(layout, leaves=tuple(Leaf(leaf.name, leaf.shape, (0,), fixed) for leaf in layout.leaves))

    def squares(row: PyTree) -> list[Array]:
        rows = jax.tree.map(lambda leaf: leaf[None], row)
        empty = jnp.zeros((0,), layout.dtype)
        return [score**2 for score in jax.grad(lambda free: make(of_leaves, fill(free))(empty, rows)[0])(free)]

    return _sum_by_leaf(squares, layout)


def _free_leaves(layout: Layout, values: Values) -> tuple[list[Array], Callable[[list[Array]], Values]]:
    """The free leaves, and the function that puts others in their place among all leaves."""
    index = [i for i, _ in layout.free_leaves]

    def fill(free: list[Array]) -> Values:
        replaced = dict(zip(index, free, strict=True))
        return [replaced.get(i, value) for i, value in enumerate(values)]

    return [jnp.asarray(values[i], layout.dtype) for i in index], fill


def _sum_by_leaf(of_row: Callable[[PyTree], list[Array]], layout: Layout) -> Diagonal:
    """Weighted sums over rows of what each gives for every free leaf."""

    def diagonal(rows: PyTree, weights: Any) -> Values:
        result: Values = [jnp.zeros(leaf.shape, layout.dtype) for leaf in layout.leaves]
        for (i, _), part in zip(layout.free_leaves, jax.vmap(of_row)(rows), strict=True):
            result[i] = jnp.sum(weigh(part, weights), axis=0)
        return result

    return diagonal


def _squared_scores_of_series(terms: Terms, theta: Float[Array, " p"], layout: Layout) -> Diagonal:
    """Σ w s² for terms that each need all the data: one pass back for each."""

    def diagonal(rows: PyTree, weights: Any) -> Values:
        value, pull = jax.vjp(lambda flat: terms(flat, rows), theta)
        n = value.shape[0]

        def of_terms(number: Array, weights: Any) -> Array:
            basis = (number[:, None] == jnp.arange(n)[None, :]).astype(value.dtype)
            return jnp.sum(weigh(jax.vmap(lambda row: pull(row)[0])(basis) ** 2, weights), axis=0)

        at_once = max(1, CHUNK_ENTRIES // (theta.shape[0] + n))
        return layout.split(_sum_in_chunks(jnp.arange(n), weights, at_once, of_terms, layout.dtype), 0.0)

    return diagonal
