"""The record of an information matrix: its error, its names, how it was computed, and what can be done with it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from fisher_jax.errors import entry_point
from fisher_jax.information.errors import Estimate, carried, estimated, spread
from fisher_jax.information.inverse import Covariance, check_invertible
from fisher_jax.information.regularity import Regularity
from fisher_jax.information.tables import as_frame, as_html, as_text
from fisher_jax.models.parameters import layout_of
from fisher_jax.numerics import linalg
from fisher_jax.numerics.array_namespace import AnyArray


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Information:
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
        What was found when the zero means of the score and of s sᵀ + H were tested on the way; `None` where they were not.

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

    matrix: Float[AnyArray, "*b q q"]
    names: tuple[str, ...] = field(metadata={"static": True})
    route: str = field(metadata={"static": True})
    errors: Float[AnyArray, "*b k q q"] | None = None
    num_samples: int = field(default=0, metadata={"static": True})
    regularity: Regularity | None = None

    @property
    def standard_error(self) -> Float[AnyArray, "*b q q"]:
        """Of each entry (q, q), zero where the route is exact."""
        return spread(self.errors, like=self.matrix, ndim=2)

    @property
    def condition_number(self) -> Float[AnyArray, ""]:
        """Largest by smallest eigenvalue of the matrix scaled to unit diagonal, which no choice of units changes."""
        self._check_single()
        values = jnp.linalg.eigvalsh(linalg.to_unit_diagonal(self.matrix)[0])
        return jnp.where(values[0] > 0, values[-1] / values[0], jnp.inf)

    @entry_point
    def weak_directions(self, below: float = 1e-2) -> list[str]:
        """Directions with next to no information, by name, the weakest first.

        Those whose eigenvalue is under `below` when the matrix is scaled to unit diagonal; in `inverse` they make the
        variances large.
        """
        self._check_single()
        found = linalg.weak_directions(np.asarray(self.matrix), self.names, below)
        return [f"{direction} (eigenvalue {value:.3g})" for value, direction in found]

    @entry_point
    def inverse(self, *, bias_correction: bool = False) -> Covariance:
        """The inverse: the Cramér-Rao bound for one observation, if this is the Fisher information.

        Parameters
        ----------
        bias_correction : bool
            Take out the first-order bias E[Î⁻¹] − I⁻¹ ≈ I⁻¹ E[Δ I⁻¹ Δ] I⁻¹ of the inverse of a sampled matrix, Δ = Î − I,
            which is upward whatever the distribution. The route says that it was done. The errors are those without it; it
            can overshoot where they are not small.

        Raises
        ------
        ValueError
            If the matrix is not positive definite; the message names the weakest direction. Under a transformation, where
            nothing can be raised, the result is all NaN instead.
        """
        self._check_single()
        matrix, errors = carried(linalg.inverse, self.matrix, self.errors)
        check_invertible(self.matrix, matrix, self.names)
        route = f"inverse of: {self.route}"
        if bias_correction and self.errors is not None:
            halves = jnp.einsum("ij,kjl->kil", matrix, self.errors)
            matrix = matrix - jnp.einsum("kij,kjl,lm->im", halves, halves, matrix)
            route += "; first-order bias of the inverse taken out"
        return Covariance(matrix, self.names, route, errors, self.num_samples)

    @entry_point
    def standard_errors(self, num_observations: Any = 1) -> Estimate:
        """Standard errors (q,) of an efficient estimate from n observations, √(I⁻¹ᵢᵢ / n), each with its own error."""
        return self.inverse().standard_errors(num_observations)

    @entry_point
    def log_determinant(self) -> Estimate:
        """log det I with its error; NaN where I is not positive definite. Differentiable: the criterion of D-optimal design."""
        self._check_single()
        return estimated(linalg.log_determinant, self.matrix, self.errors, ndim=0)

    @entry_point
    def trace(self) -> Estimate:
        """The sum of the diagonal with its error."""
        self._check_single()
        return estimated(jnp.trace, self.matrix, self.errors, ndim=0)

    @entry_point
    def marginal(self, names: Sequence[str] | str) -> "Information":
        """Information on some parameters when the others are unknown: I_aa − I_ab I_bb⁻¹ I_ba.

        Parameters
        ----------
        names : strings
            Entries of `names`, or the name of a whole leaf such as ``"beta"``. All of the others are nuisance parameters.
        """
        self._check_single()
        kept = self._indices(names)
        other = np.setdiff1d(np.arange(len(self.names)), kept)

        def schur(matrix: AnyArray) -> AnyArray:
            across = matrix[np.ix_(kept, other)]
            return matrix[np.ix_(kept, kept)] - across @ linalg.inverse(matrix[np.ix_(other, other)]) @ across.T

        if not len(other):
            return self._take(kept, self.route)
        matrix, errors = carried(schur, self.matrix, self.errors)
        check_invertible(self.matrix[np.ix_(other, other)], matrix, tuple(self.names[k] for k in other))
        others = ", ".join(self.names[k] for k in other)
        return replace(
            self,
            matrix=matrix,
            errors=errors,
            names=tuple(self.names[k] for k in kept),
            route=f"{self.route}; {others} unknown",
            regularity=None,
        )

    @entry_point
    def fix(self, names: Sequence[str] | str) -> "Information":
        """Information on the remaining parameters when those of `names` are known: their rows and columns are left out."""
        self._check_single()
        known = self._indices(names)
        kept = np.setdiff1d(np.arange(len(self.names)), known)
        return self._take(kept, f"{self.route}; {', '.join(self.names[k] for k in known)} known")

    @entry_point
    def reparametrize(self, function: Any, params: PyTree) -> "Information":
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
        new, values = layout_of(params, ())
        old, _ = layout_of(function(new.assemble([jnp.asarray(v, new.dtype) for v in values])), ())
        if missing := set(self.names) - set(old.names):
            raise ValueError(
                f"function(params) gives {_listed(old.names)}, but the information is about "
                f"{_listed(self.names)}; {_listed(sorted(missing))} is missing. It must return the old parameters."
            )
        order = np.array([old.names.index(name) for name in self.names])
        jacobian = jax.jacfwd(lambda u: old.flatten(function(new.constrain(u, values)))[order])(new.unconstrain(values))
        matrix, errors = carried(lambda m: jacobian.T @ m @ jacobian, self.matrix, self.errors)
        route = f"{self.route}; in other parameters"
        return replace(self, matrix=matrix, errors=errors, names=new.names, route=route, regularity=None)

    def __add__(self, other: "Information") -> "Information":
        """Information of both sources together. Names are matched; their errors must come from different keys."""
        if not isinstance(other, Information):
            return NotImplemented
        self._check_single()
        other._check_single()
        if set(other.names) != set(self.names):
            raise ValueError(
                f"Information: cannot add the information on {_listed(other.names)} to that on {_listed(self.names)}. "
                "Both must be about the same parameters: use fix, marginal or reparametrize first, or zeros."
            )
        other = other._take(np.array([other.names.index(name) for name in self.names]), other.route)
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
        said = "factor" if isinstance(factor, jax.core.Tracer) else f"{float(factor):g}"
        return replace(self, matrix=factor * self.matrix, errors=errors, route=f"{said} × ({self.route})")

    __rmul__ = __mul__

    @entry_point
    def diagnosis(self) -> str:
        """What speaks against the matrix, in words; empty where nothing does, or nothing was tested."""
        self._check_single()
        return "" if self.regularity is None else self.regularity.describe(self.names)

    @entry_point
    def to_frame(self) -> Any:
        """The matrix as a pandas DataFrame with the names on both axes (needs the extra `frames`)."""
        self._check_single()
        return as_frame(self.matrix, self.names)

    def __str__(self) -> str:
        return as_text(f"Information per observation, {self.route}", self.matrix, self.standard_error, self.names)

    def _repr_html_(self) -> str:
        return as_html(f"Information per observation, {self.route}", self.matrix, self.standard_error, self.names)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.matrix, dtype=dtype, copy=copy)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **settings: Any) -> Any:
        """numpy's numbers multiply the record as Python's do; any other function takes its matrix."""
        if ufunc is np.multiply and method == "__call__":
            return self * (inputs[1] if inputs[0] is self else inputs[0])
        return getattr(ufunc, method)(*(np.asarray(x) if x is self else x for x in inputs), **settings)

    def _check_single(self) -> None:
        if jnp.ndim(self.matrix) != 2:
            raise ValueError(
                f"this record has a batch axis, its matrix the shape {jnp.shape(self.matrix)}. Map over it: "
                "jax.vmap(lambda information: …)(informations)."
            )

    def _take(self, kept: Any, route: str) -> "Information":
        matrix, errors = carried(lambda m: m[np.ix_(kept, kept)], self.matrix, self.errors)
        names = tuple(self.names[k] for k in kept)
        return replace(self, matrix=matrix, errors=errors, names=names, route=route, regularity=None)

    def _indices(self, names: Sequence[str] | str) -> np.ndarray:
        """Where the named entries, or all entries of a named leaf, stand."""
        found: list[int] = []
        for name in [names] if isinstance(names, str) else names:
            here = [k for k, own in enumerate(self.names) if own == name or own.startswith((f"{name}[", f"{name}."))]
            if not here:
                raise ValueError(f"no parameter is named {name!r}; there are {_listed(self.names)}.")
            found += here
        if len(found) != len(set(found)) or not found:
            raise ValueError(f"names={names!r}; expected one or more different names.")
        return np.array(found)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
