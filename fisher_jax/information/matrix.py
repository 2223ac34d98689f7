"""Information and covariance matrices with their names and errors, and what is computed from them.

A sampled matrix M comes with independent pieces of error E₁ … E_k: Σ E_k[i,j] E_k[l,m] over k estimates the covariance of
M[i,j] and M[l,m]. A differentiable function of M has the pieces that its derivative makes of them. This is the delta method
without the covariance of all pairs of entries, which has q⁴ numbers.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.errors import entry_point, require
from fisher_jax.information.regularity import Regularity
from fisher_jax.models.parameter_names import NameIndex
from fisher_jax.models.parameters import layout_of
from fisher_jax.moments import Estimate
from fisher_jax.numerics import linalg
from fisher_jax.numerics.array_namespace import AnyArray, is_traced, namespace, on_host
from fisher_jax.reporting import Report, Reported, matrix_table

Pieces = Float[AnyArray, "..."] | None  # None where there is no error


def propagate(function: Callable[..., AnyArray], matrix: AnyArray, errors: Pieces, *settings: Any) -> tuple[Any, Any]:
    """`function(matrix, *settings)` and its pieces of error, to first order.

    A function that is defined once, with settings that can be hashed, is compiled once; a lambda would be at each call.
    """
    if errors is not None:
        return _value_and_pieces(function, matrix, errors, settings)
    if is_traced(matrix):
        return function(matrix, *settings), None
    # By numpy: JAX would compile a program for each of the many small operations of an inverse.
    return jnp.asarray(function(np.asarray(matrix), *settings)), None


@functools.partial(jax.jit, static_argnames=("function", "settings"))
def _value_and_pieces(function: Callable[..., Any], matrix: Any, errors: Any, settings: tuple[Any, ...]) -> Any:
    value, push = jax.linearize(lambda m: function(m, *settings), matrix)
    return value, jax.vmap(push)(errors)


def estimate(function: Callable[..., AnyArray], matrix: AnyArray, errors: Pieces) -> Estimate:
    """`function(matrix)` and its standard error, the root sum of squares of its pieces of error."""
    value, pieces = propagate(function, matrix, errors)
    return Estimate(value, jnp.zeros_like(value) if pieces is None else root_sum_of_squares(pieces, axis=0))


def standard_errors_of_entries(matrix: AnyArray, errors: Pieces) -> AnyArray:
    """The standard error of each entry of a matrix, or of each matrix of a batch."""
    return jnp.zeros_like(matrix) if errors is None else root_sum_of_squares(errors, axis=-3)


def root_sum_of_squares(pieces: AnyArray, axis: int) -> AnyArray:
    """The standard error that independent pieces of error make."""
    pieces = on_host(pieces)
    return jnp.asarray(namespace(pieces).sqrt((pieces**2).sum(axis=axis)))


@dataclass(frozen=True, repr=False)
class NamedMatrix(Reported):
    """What `Information` and `Covariance` have in common."""

    _title: ClassVar[str]

    matrix: Float[AnyArray, "*b q q"]
    names: tuple[str, ...] = field(metadata={"static": True})
    route: str = field(metadata={"static": True})
    errors: Float[AnyArray, "*b k q q"] | None = None
    num_samples: int = field(default=0, metadata={"static": True})

    @property
    def entry_errors(self) -> Float[AnyArray, "*b q q"]:
        """The standard error of each entry (q, q), zero where the route is exact."""
        return standard_errors_of_entries(self.matrix, self.errors)

    @entry_point
    def summary(self) -> Report:
        """The matrix with its standard errors; only its shape where it is traced or a batch."""
        title = f"{self._title}, {self.route}"
        if isinstance(self.matrix, jax.core.Tracer) or jnp.ndim(self.matrix) != 2:
            return Report(title, [("Names", ", ".join(self.names)), ("Shape", str(jnp.shape(self.matrix)))])
        return Report(title, tables=[matrix_table(self.matrix, self.entry_errors, self.names)])

    @entry_point
    def to_frame(self) -> Any:
        """The matrix as a pandas DataFrame with the names on both axes (needs the extra `frames`)."""
        self._check_single()
        names = list(self.names)
        return require("pandas", "frames").DataFrame(np.asarray(self.matrix), index=names, columns=names)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.matrix, dtype=dtype, copy=copy)

    def _check_single(self) -> None:
        if jnp.ndim(self.matrix) != 2:
            raise ValueError(
                f"this record has a batch axis, its matrix the shape {jnp.shape(self.matrix)}. Map over it: "
                "jax.vmap(lambda record: …)(records)."
            )


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class Covariance(NamedMatrix):
    """A covariance matrix computed from an information, with its error, its names and how it was computed.

    Attributes
    ----------
    matrix : array (r, r)
        For one observation, or for as many as `route` states, in the units of the named quantities.
    names : tuple of str
        What rows and columns belong to, in their order: that in which params were written, sorted where JAX has mapped over them.
    route : str
        How it was computed, in words, corrections for bias included.
    errors : array (k, r, r) or None
        Independent errors carried over from a sampled information, as in `Information`; `None` where it is exact.
    num_samples : int
        Draws behind it; 0 where none were drawn.

    Examples
    --------
    >>> import fisher_jax as fj
    >>> information = fj.fisher_information(fj.families.normal, {"loc": 0.0, "scale": 2.0})
    >>> print(information.inverse().matrix.round(4))
    [[4. 0.]
     [0. 2.]]
    """

    _title = "Covariance"

    @entry_point
    def standard_errors(self, num_observations: float | Array = 1) -> Estimate:
        """Square roots (r,) of the diagonal divided by n, each with its own error."""
        self._check_single()
        value, error = estimate(_roots_of_diagonal, self.matrix, self.errors)
        root = namespace(num_observations).asarray(num_observations, value.dtype) ** 0.5
        return Estimate(value / root, error / root)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class Information(NamedMatrix):
    """An information matrix, per observation, with its error, its names and how it was computed.

    Attributes
    ----------
    matrix : array (q, q)
        Symmetric, in nats per product of the parameters' units, in the user's own parametrisation.
    names : tuple of str
        The parameter entries that rows and columns belong to.
    route : str
        How it was computed, in words.
    errors : array (k, q, q) or None
        Independent errors of the matrix, whose squares add up to the variance of each entry and whose products add up to the
        covariance of any two; `None` where the route is exact. For quadrature one: the change since half the order.
    num_samples : int
        Draws behind a sampled expectation, over all rows of `given`; 0 where none were drawn.
    regularity : Regularity or None
        Tests of the zero means of the score and of s sᵀ + H by the same draws or nodes; `None` where there were none.

    Notes
    -----
    What is derived from the matrix (inverse, standard errors, log-determinant, trace, another parametrisation) carries the
    errors along to first order. Information adds over independent observations: ``100 * a + 20 * b`` is that of 100
    observations of one kind and 20 of another, and a prior is added as the information it holds.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> from jax.scipy.stats import norm
    >>> def log_density(params, y):
    ...     return norm.logpdf(y, params["loc"], 2.0)
    >>> found = fj.observed_information(log_density, {"loc": 0.0}, jnp.array([1.0, 2.0, 4.0]))
    >>> found.names, found.route
    (('loc',), 'observed: minus the mean Hessian at the data')
    >>> print(found.matrix)
    [[0.25]]
    """

    regularity: Regularity | None = None

    _title = "Information per observation"

    @property
    def condition_number(self) -> Float[AnyArray, ""]:
        """Largest by smallest eigenvalue of the matrix scaled to unit diagonal, which no choice of units changes."""
        self._check_single()
        values = jnp.linalg.eigvalsh(linalg.to_unit_diagonal(self.matrix)[0])
        return jnp.where(values[0] > 0, values[-1] / values[0], jnp.inf)

    @entry_point
    def weak_directions(self, below: float = 1e-2) -> list[str]:
        """Directions with almost no information, by name, the weakest first.

        Those whose eigenvalue is under `below` when the matrix is scaled to unit diagonal; in `inverse` they make the
        variances large.
        """
        self._check_single()
        directions = linalg.weak_directions(np.asarray(self.matrix), self.names, below)
        return [f"{direction} (eigenvalue {value:.3g})" for value, direction in directions]

    @entry_point
    def inverse(self, *, bias_correction: bool = False) -> Covariance:
        """The inverse: the Cramér-Rao bound for one observation, if this is the Fisher information.

        Parameters
        ----------
        bias_correction : bool
            Take out the first-order bias E[Î⁻¹] − I⁻¹ ≈ I⁻¹ E[Δ I⁻¹ Δ] I⁻¹ of the inverse of a sampled matrix, Δ = Î − I,
            which is upward whatever the distribution. The route states that it was done. The errors are those without it; it
            can overshoot where they are not small.

        Raises
        ------
        ValueError
            If the matrix is not positive definite; the message names the weakest direction. Under a transformation, where
            nothing can be raised, the result is all NaN instead.
        """
        self._check_single()
        matrix, errors = propagate(linalg.inverse, self.matrix, self.errors)
        check_invertible(self.matrix, matrix, self.names)
        route = f"inverse of: {self.route}"
        if bias_correction and self.errors is not None:
            # Σ I⁻¹ E_k I⁻¹ E_k I⁻¹ over the pieces E_k estimates I⁻¹ E[Δ I⁻¹ Δ] I⁻¹.
            halves = jnp.einsum("ij,kjl->kil", matrix, self.errors)
            matrix = matrix - jnp.einsum("kij,kjl,lm->im", halves, halves, matrix)
            route += "; first-order bias of the inverse taken out"
        return Covariance(matrix, self.names, route, errors, self.num_samples)

    @entry_point
    def standard_errors(self, num_observations: float | Array = 1) -> Estimate:
        """Standard errors (q,) of an efficient estimate from n observations, √(I⁻¹ᵢᵢ / n), each with its own error."""
        return self.inverse().standard_errors(num_observations)

    @entry_point
    def log_determinant(self) -> Estimate:
        """log det I with its error; NaN where I is not positive definite. Differentiable: the criterion of D-optimal design."""
        self._check_single()
        return estimate(linalg.log_determinant, self.matrix, self.errors)

    @entry_point
    def trace(self) -> Estimate:
        """The sum of the diagonal with its error."""
        self._check_single()
        return estimate(jnp.trace, self.matrix, self.errors)

    @entry_point
    def marginal(self, names: Sequence[str] | str) -> "Information":
        """Information on some parameters when the others are unknown: I_aa − I_ab I_bb⁻¹ I_ba.

        Parameters
        ----------
        names : strings
            Entries of `names`, or the name of a whole leaf such as ``"beta"``. All of the others are nuisance parameters.
        """
        chosen, others = self._positions(names)
        if not len(others):
            return self._select(chosen, self.route)
        nuisance = tuple(self.names[k] for k in others)

        parts = tuple(map(int, chosen)), tuple(map(int, others))
        matrix, errors = propagate(_schur_complement, self.matrix, self.errors, *parts)
        route = f"{self.route}; {', '.join(nuisance)} unknown"
        names = tuple(self.names[k] for k in chosen)
        result = replace(self, matrix=matrix, errors=errors, names=names, route=route, regularity=None)
        check_invertible(on_host(self.matrix)[np.ix_(others, others)], result.matrix, nuisance)
        return result

    @entry_point
    def fix(self, names: Sequence[str] | str) -> "Information":
        """Information on the remaining parameters when those of `names` are known: their rows and columns are left out."""
        chosen, others = self._positions(names)
        return self._select(others, f"{self.route}; {', '.join(self.names[k] for k in chosen)} known")

    @entry_point
    def reparametrize(self, function: Callable[[PyTree], PyTree], params: PyTree) -> "Information":
        """The same information in other parameters φ: Jᵀ I J with J = ∂θ/∂φ.

        Parameters
        ----------
        function : callable
            θ = function(φ): from the new parameters to the old, a pytree with the old ones' names.
        params : pytree
            The new parameters φ at the point where function(φ) is the θ of this information.

        Raises
        ------
        ValueError
            If what function returns lacks one of `names`.

        References
        ----------
        Lehmann, E. L. and Casella, G. (1998), Theory of Point Estimation, 2nd ed., eq. (2.5.11).

        Examples
        --------
        >>> import fisher_jax as fj, jax.numpy as jnp
        >>> rate = fj.fisher_information(fj.families.poisson, {"rate": 4.0})
        >>> log_rate = rate.reparametrize(lambda p: {"rate": jnp.exp(p["log_rate"])}, {"log_rate": jnp.log(4.0)})
        >>> print(log_rate.names, log_rate.matrix)
        ('log_rate',) [[4.]]
        """
        self._check_single()
        new, values = layout_of(params)
        old, _ = layout_of(function(new.assemble([jnp.asarray(v, new.dtype) for v in values])))
        if missing := set(self.names) - set(old.names):
            raise ValueError(
                f"function(params) gives {_quoted(old.names)}, but the information is about "
                f"{_quoted(self.names)}; {_quoted(sorted(missing))} is missing. It must return the old parameters."
            )
        order = np.array([old.names.index(name) for name in self.names])
        flat = new.unconstrain(values)
        jacobian = on_host(jax.jacfwd(lambda u: old.flatten(function(new.constrain(u, values)))[order])(flat))
        return self._map(lambda m: jacobian.T @ m @ jacobian, new.names, f"{self.route}; in other parameters")

    def __add__(self, other: "Information") -> "Information":
        """Information of both sources together. Names are matched; their errors must come from different keys."""
        if not isinstance(other, Information):
            return NotImplemented
        self._check_single()
        other._check_single()
        if set(other.names) != set(self.names):
            raise ValueError(
                f"Information: cannot add the information on {_quoted(other.names)} to that on {_quoted(self.names)}. "
                "Both must be about the same parameters: use fix, marginal or reparametrize first, or zeros."
            )
        other = other._select(np.array([other.names.index(name) for name in self.names]), other.route)
        # Pieces from different keys are independent, so that they stand side by side.
        errors = [part for part in (self.errors, other.errors) if part is not None]
        return replace(
            self,
            matrix=self.matrix + other.matrix,
            errors=jnp.concatenate(errors) if errors else None,
            route=f"({self.route}) + ({other.route})",
            num_samples=self.num_samples + other.num_samples,
            regularity=None,
        )

    def __mul__(self, factor: Any) -> "Information":
        """The information of so many observations."""
        if isinstance(factor, Information) or jnp.ndim(factor):
            raise TypeError("Information: only a number of observations, a scalar, can multiply it.")
        errors = None if self.errors is None else factor * self.errors
        count = "factor" if isinstance(factor, jax.core.Tracer) else f"{float(factor):g}"
        return replace(self, matrix=factor * self.matrix, errors=errors, route=f"{count} × ({self.route})")

    __rmul__ = __mul__

    @entry_point
    def diagnosis(self) -> str:
        """The evidence against the regularity that the matrix rests on; empty where there is none, or nothing was tested."""
        self._check_single()
        return "" if self.regularity is None else self.regularity.describe(self.names)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **settings: Any) -> Any:
        """numpy's numbers multiply the record as Python's do; any other function takes its matrix."""
        if ufunc is np.multiply and method == "__call__":
            return self * (inputs[1] if inputs[0] is self else inputs[0])
        return getattr(ufunc, method)(*(np.asarray(x) if x is self else x for x in inputs), **settings)

    def _map(self, function: Callable[[AnyArray], AnyArray], names: tuple[str, ...], route: str) -> "Information":
        """The information whose matrix is this linear `function` of this one; its regularity was not tested."""
        matrix, errors = on_host((self.matrix, self.errors))
        mapped = [None if part is None else jnp.asarray(function(part)) for part in (matrix, errors)]
        return replace(self, matrix=mapped[0], errors=mapped[1], names=names, route=route, regularity=None)

    def _select(self, rows: np.ndarray, route: str) -> "Information":
        return self._map(lambda m: m[..., rows[:, None], rows], tuple(self.names[k] for k in rows), route)

    def _positions(self, names: Sequence[str] | str) -> tuple[np.ndarray, np.ndarray]:
        """Where the named entries stand, or all entries of a named leaf; and where the others do."""
        self._check_single()
        positions = NameIndex(self.names).choose([] if names is None else names)
        return np.array(positions), np.setdiff1d(np.arange(len(self.names)), positions)


def _roots_of_diagonal(matrix: AnyArray) -> AnyArray:
    xp = namespace(matrix)
    return xp.sqrt(xp.diagonal(matrix))


def _schur_complement(matrix: AnyArray, chosen: tuple[int, ...], others: tuple[int, ...]) -> AnyArray:
    across = matrix[np.ix_(chosen, others)]
    return matrix[np.ix_(chosen, chosen)] - across @ linalg.inverse(matrix[np.ix_(others, others)]) @ across.T


def check_invertible(matrix: AnyArray, inverse: AnyArray, names: tuple[str, ...]) -> None:
    """Raise where an information has no inverse; under a transformation, where nothing can be raised, that is all NaN."""
    if isinstance(inverse, jax.core.Tracer) or not np.isnan(np.asarray(inverse)).any():
        return
    if not np.isfinite(np.asarray(matrix)).all():
        raise ValueError("the matrix is not finite. Its `diagnosis()` gives the reason.")
    eigenvalue, direction = linalg.weak_directions(np.asarray(matrix), names)[0]
    raise ValueError(
        f"the matrix is not positive definite (smallest eigenvalue {eigenvalue:.3g} at unit diagonal) along {direction}. "
        "Fix one of these parameters, or add prior knowledge of them as another Information."
    )


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
