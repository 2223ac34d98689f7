"""`information_operator`: the information matrices as products with a vector, for more parameters than p × p can hold."""

import functools
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from fisher_jax.errors import check_choice, check_count, check_pytrees, entry_point
from fisher_jax.information import krylov, matrix_free
from fisher_jax.information.closed_form import has_closed_form
from fisher_jax.information.derivatives import at_door
from fisher_jax.information.draws import drawing, num_rows
from fisher_jax.information.errors import Estimate
from fisher_jax.information.expectations import MonteCarlo, QuasiMonteCarlo
from fisher_jax.information.krylov import Solution
from fisher_jax.models.dataset import Dataset, check_given
from fisher_jax.models.likelihood import likelihood
from fisher_jax.models.model import Model, as_model, flatten_parameters
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.programs import jit_with_model

Kind = Literal["expected", "empirical", "observed"]
_FROM_SPREAD = ", since the error is from their spread"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class InformationOperator:
    """An information matrix M, per observation, known by its products with a vector; `information_operator` makes it.

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
    trace say how far those may be from the expectation's. The tests of regularity that `fisher_information` makes on the way
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
        """What the matrix is made of, as arguments of compiled code: JAX's caches would hold the model of a pytree with it."""
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
        if self.kind == "empirical":
            return "empirical: mean outer product of the scores at the data"
        if self.kind == "observed":
            return "observed: minus the mean Hessian at the data"
        if self.expectation is None:
            return "expected: closed form of the family, Jᵀ I_η J"
        how = "Monte Carlo" if isinstance(self.expectation, MonteCarlo) else "quasi-Monte Carlo"
        return f"expected: {how}, mean of {'s sᵀ' if self.expectation.estimator == 'outer' else '−H'}"

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
        return self.layout.assemble(_product(*self._parts, self._blocks(vector, "product")))

    def __matmul__(self, vector: PyTree) -> PyTree:
        return self.product(vector)

    @entry_point
    def diagonal(self, key: Any = None, num_probes: int = 32) -> Estimate:
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
        found: Any = self._estimate("diagonal", key, num_probes)
        return Estimate(self.layout.assemble(found.value), self.layout.assemble(found.standard_error))

    @entry_point
    def trace(self, key: Any = None, num_probes: int = 32) -> Estimate:
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
    def log_determinant(self, key: Any, *, damping: Any = 0.0, num_probes: int = 16, num_steps: int = 32) -> Estimate:
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
            that too few steps show. What draws leave open is not in it. NaN where M + damping · I is met as not positive
            definite.

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
    def solve(self, vector: PyTree, damping: Any = 0.0, *, tolerance: Any = 1e-5, max_steps: Any = 1000) -> Solution:
        """x with (M + damping · I) x = v, by conjugate gradients.

        Parameters
        ----------
        vector : pytree
            v, like `params`.
        damping : float
            Added to the diagonal, as a singular or indefinite M needs it.
        tolerance : float
            Norm of the residual by that of v at which to stop. In float32 keep it above 1e-6.
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
        found = _solve(*self._parts, self._blocks(vector, "solve"), damping, tolerance, max_steps)
        return found._replace(value=self.layout.assemble(found.value))

    def _estimate(self, method: str, key: Any, num_probes: int) -> Estimate:
        if not self._probed:
            return _diagonal(*self._parts, None, 0, method == "trace")
        if key is None:
            raise ValueError(
                f"the matrix is made of Hessians ({self.route}), so its {method} is estimated "
                "with random probes. Give key=jax.random.key(…)."
            )
        check_count(num_probes, 2, "num_probes", _FROM_SPREAD)
        return _diagonal(*self._parts, key, num_probes, method == "trace")

    @property
    def _probed(self) -> bool:
        return self.kind == "observed" or (self.expectation is not None and self.expectation.estimator == "hessian")

    def _blocks(self, vector: PyTree, method: str) -> Values:
        expected = "expected a pytree like params, each leaf of its parameter's shape"
        try:
            blocks = self.layout.blocks(vector)
        except ValueError as error:
            raise ValueError(f"InformationOperator.{method}: {expected}, but {error}.") from error
        for i, leaf in self.layout.free_leaves:
            if jnp.shape(blocks[i]) != leaf.shape:
                raise ValueError(
                    f"InformationOperator.{method}: {expected}, but `{leaf.name}` has shape {jnp.shape(blocks[i])} in place "
                    f"of {leaf.shape}. For several vectors at once use jax.vmap."
                )
        return [blocks[i] if not leaf.is_fixed else 0.0 for i, leaf in enumerate(self.layout.leaves)]


@entry_point
def information_operator(
    model: Any,
    params: PyTree,
    expectation: Any = None,
    *,
    kind: Any = None,
    data: PyTree = None,
    given: PyTree = None,
    weights: Any = None,
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
        If the arguments do not fit together, or there is no route to the expectation: the message says what to supply.

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
        return _expected(model, params, expectation, given)
    if data is None:
        raise ValueError(f"kind={kind!r} is a matrix at the data, and data is None. Give data=.")
    if expectation is not None:
        raise ValueError(
            f"kind={kind!r} takes no expectation, got {type(expectation).__name__}. Leave it out, or choose "
            'kind="expected" without data.'
        )
    model, layout, values, dataset = at_door(model, params, data, given, weights)
    return InformationOperator(model, layout, kind, *_on_device((values, dataset)))


def _expected(model: Any, params: PyTree, expectation: Any, given: PyTree) -> InformationOperator:
    model = as_model(model)
    check_pytrees(given=given)
    layout, values = flatten_parameters(model, params)
    given = check_given(model, given)
    if expectation is None:
        _check_linked(model)
    elif not isinstance(expectation, MonteCarlo | QuasiMonteCarlo):
        raise TypeError(
            f"expectation must be MonteCarlo or QuasiMonteCarlo, got {type(expectation).__name__}. For few "
            "parameters fisher_information takes the others."
        )
    elif expectation.estimator == "bartlett":
        raise ValueError(
            'estimator="bartlett" needs control variates, p × p numbers for each draw. Choose estimator="outer", '
            'the mean of s sᵀ, or estimator="hessian", that of −H; for few parameters fisher_information takes it.'
        )
    else:
        drawing(model, params, given, expectation)  # refuses a model that cannot be drawn from
    values, dataset = _on_device((values, Dataset(None, given)))
    return InformationOperator(model, layout.natural(), "expected", values, dataset, expectation)


def _check_linked(model: Model) -> None:
    if model.information is not None:
        raise ValueError(
            "the model has its information in closed form, which is p × p as it comes. Use fisher_information, "
            "whose matrix can be multiplied, or give an expectation."
        )
    if not has_closed_form(model):
        raise ValueError(
            "no route to the expectation: the model is not linked to a family with a closed form. Give "
            'MonteCarlo(key, num_samples, "outer") if it has a sampler, or write it with fisher_jax.linked; '
            'kind="empirical" and kind="observed" need data instead.'
        )


def _on_device(tree: PyTree) -> PyTree:
    """Arrays put where they are used once, not in every product."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, tree)


def _matrix(model: Model, layout: Layout, kind: Kind, arrays: tuple[Any, ...]) -> matrix_free.Matrix:
    """The sum that the operator stands for; called where jitted code is traced."""
    values, dataset, expectation = arrays
    if kind == "expected":
        if expectation is None:
            return matrix_free.linked(model, layout, values, dataset.given)
        return matrix_free.sampled(model, layout, values, expectation, dataset.given)
    target = likelihood(model, layout, values, dataset)
    if kind == "observed":
        return matrix_free.observed(target, layout, values)
    return matrix_free.empirical(target, model, layout, values, dataset.given is not None)


@functools.partial(jit_with_model, static_argnums=(0, 1, 2))
def _product(model: Model, layout: Layout, kind: Kind, arrays: tuple[Any, ...], vector: Values) -> Values:
    return layout.split(matrix_free.product_with(_matrix(model, layout, kind, arrays))(layout.join(vector)), 0.0)


@functools.partial(jit_with_model, static_argnums=(0, 1, 2, 5, 6))
def _diagonal(
    model: Model, layout: Layout, kind: Kind, arrays: tuple[Any, ...], key: Any, num_probes: int, trace: bool
) -> Estimate:
    def reduce(diagonal: Values) -> Any:
        return sum(jnp.sum(leaf) for leaf in diagonal) if trace else diagonal

    return matrix_free.estimate(_matrix(model, layout, kind, arrays), reduce, key, num_probes)


@functools.partial(jit_with_model, static_argnums=(0, 1, 2, 6, 7))
def _log_determinant(
    model: Model,
    layout: Layout,
    kind: Kind,
    arrays: tuple[Any, ...],
    key: Array,
    damping: Any,
    num_probes: int,
    num_steps: int,
) -> Estimate:
    matrix = _matrix(model, layout, kind, arrays)
    return krylov.log_determinant(_damped(matrix, damping), key, num_probes, num_steps, matrix.theta)


@functools.partial(jit_with_model, static_argnums=(0, 1, 2))
def _solve(
    model: Model,
    layout: Layout,
    kind: Kind,
    arrays: tuple[Any, ...],
    vector: Values,
    damping: Any,
    tolerance: Any,
    max_steps: Any,
) -> Solution:
    product = _damped(_matrix(model, layout, kind, arrays), damping)
    found = krylov.conjugate_gradients(product, layout.join(vector), tolerance, max_steps)
    return found._replace(value=layout.split(found.value, 0.0))


def _damped(matrix: matrix_free.Matrix, damping: Any) -> krylov.Product:
    product = matrix_free.product_with(matrix)
    damping = jnp.asarray(damping, matrix.theta.dtype)
    return lambda vector: product(vector) + damping * vector
