"""`identifiability`: which combinations of parameters the data determine, and which they do not.

With J the information about u and S = diag(√J_kk), the eigenvectors of S⁻¹ J S⁻¹ are the directions, in units of each
parameter's conditional standard error 1/√J_kk. Those whose eigenvalues are zero to rounding have no information. A function
is identified where its gradient g lies in the range of J, so has no part along these; its variance is then gᵀ J⁺ g.

References
----------
Rothenberg, T. J. (1971), Econometrica 39, 577-591, theorems 1 and 8; Belsley, D. A., Kuh, E. and Welsch, R. E. (1980),
Regression Diagnostics, section 3.2, for the scaling.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, PyTree

from fisher_jax.errors import entry_point, shown
from fisher_jax.fitting.map_fits import check_fit, of_each
from fisher_jax.fitting.parameter_functions import Entries, OfParameters, as_function, linearize, outline
from fisher_jax.fitting.result import Fit
from fisher_jax.fitting.status import Status
from fisher_jax.models.programs import ById
from fisher_jax.numerics import linalg
from fisher_jax.numerics.array_namespace import is_traced
from fisher_jax.reporting import Report, Reported, ReportTable, number

SINGULAR = 0.5  # power of ε under which an eigenvalue at unit diagonal is zero: a fit is no nearer to its maximum
LOADS = 1e-4  # relative length of the part of a gradient along directions without information, above which it depends on them
WEAK = 1e-3  # an eigenvalue: standard errors along the direction are some thirty times what each parameter's would be alone


@dataclass(frozen=True, repr=False)
class Identifiability(Reported):
    """Which directions of parameter space the data identify. Arrays are numpy's; of a batch with a leading axis B.

    Attributes
    ----------
    eigenvalues : array (p,)
        Of the information scaled to unit diagonal, ascending; their sum is p, and all are one where no parameter's estimate
        depends on another's. NaN where the information is not finite, or the fit ended at a boundary.
    directions : array (p, q)
        A row for each eigenvalue: how the parameters move together along it, each in its own unit, for a step of one conditional
        standard error (the inverse root of a parameter's own information).
    units : array (q,)
        How far each parameter can move with such a step; `directions / units` compares the parameters in a direction.
    direction_names : tuple of str
        The parameters of its columns.
    singular, weak : boolean arrays (p,)
        Which directions have no information, to rounding, or negative information; and which have little, under a thousandth.
    names : tuple of str
        What `identified` and `standard_errors` are about: the parameters, then the numbers of the function.
    identified : boolean array (k,)
        Which of them do not depend on a singular direction.
    standard_errors : array (k,)
        Of what is identified, by a generalised inverse of the information; NaN for the rest, and where the fit ended neither at a
        maximum nor on a ridge of maxima.
    status : str
        What the fit's status means for it; empty for a fit that converged, and of a batch.
    """

    eigenvalues: np.ndarray
    directions: np.ndarray
    units: np.ndarray
    direction_names: tuple[str, ...]
    singular: np.ndarray
    weak: np.ndarray
    names: tuple[str, ...]
    identified: np.ndarray
    standard_errors: np.ndarray
    status: str = ""

    @property
    def all_identified(self) -> Any:
        """Whether no direction is singular; an array (B,) of a batch."""
        return ~np.any(self.singular | np.isnan(self.eigenvalues), axis=-1)

    def describe(self, index: int = 0) -> str:
        """One direction in words, the weakest by default: `+1 a -0.98 b`; not of a batch."""
        direction = self.directions[index]
        if np.any(np.isnan(direction)):
            return "unknown, since the information is not finite"
        return linalg.describe_direction(direction, self.direction_names, self.units)

    def __getitem__(self, index: int) -> "Identifiability":
        """That of one fit of a batch."""
        if self.eigenvalues.ndim == 1:
            raise TypeError("Identifiability: this is of one fit, not of a batch.")
        arrays = {name: value[index] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return Identifiability(**arrays, direction_names=self.direction_names, names=self.names)

    def summary(self) -> Report:
        """The directions without or with little information, and what is identified; of a batch, how many fits have such."""
        title, missing = "Identifiability", np.isnan(self.eigenvalues).any(axis=-1)
        if self.eigenvalues.ndim > 1:
            counts = {
                "Fits": len(self.eigenvalues),
                "With a direction without information": self.singular.any(axis=-1).sum(),
                "With a weak direction": self.weak.any(axis=-1).sum(),
                "Information not finite": missing.sum(),
            }
            facts = [(label, str(count)) for label, count in counts.items()]
            return Report(title, facts, notes=["one fit's by its index, as in identifiability(fits)[0]."])
        if missing:
            return Report(title, [("Information", self.status or "not finite, so no direction can be judged")])
        count, singular, weak = len(self.eigenvalues), self.singular, self.weak
        facts = [
            ("Directions", f"{count}, without information {singular.sum()}, weak {weak.sum()}"),
            ("Eigenvalues", f"{self.eigenvalues[0]:.3g} to {self.eigenvalues[-1]:.3g}, of the scaled information"),
        ]
        labels = np.where(singular, "none", np.where(weak, "weak", "sound"))
        listed = [k for k in range(count) if singular[k] or weak[k]] or list(range(count))[:1]
        rows = [(self.describe(k), f"{self.eigenvalues[k]:.2g}", str(labels[k])) for k in listed]
        notes = []
        if np.any(singular):
            identified = [
                f"{name} (standard error {number(error)})"
                for name, is_identified, error in zip(self.names, self.identified, self.standard_errors, strict=True)
                if is_identified
            ]
            others = [
                name for name, is_identified in zip(self.names, self.identified, strict=True) if not is_identified
            ]
            notes += [
                "points along a direction without information have the same likelihood, to second order: the data cannot "
                "distinguish them.",
                f"not identified: {', '.join(others) or 'none of these'}.",
                f"still identified: {', '.join(identified) or 'no parameter by itself'}.",
            ]
        if np.any(weak):
            notes.append(
                "along a weak direction standard errors are large and Wald intervals doubtful: use profiles, or add information "
                "about these parameters (a constraint, a value held fixed, other data)."
            )
        notes = notes or ["there is enough information along every direction."]
        return Report(
            title,
            facts,
            [ReportTable(("direction", "eigenvalue", "information"), rows)],
            notes + [self.status] * bool(self.status),
        )


@entry_point
def identifiability(
    fit: Fit,
    function: str | Sequence[str] | Callable[[PyTree], PyTree] | None = None,
    *,
    kind: Literal["observed", "expected", "empirical"] = "observed",
) -> Identifiability:
    """Which combinations of parameters the data identify, which they do not, and which functions are identified all the same.

    Parameters
    ----------
    fit : Fit
        Above all one that ended with status `SINGULAR_INFORMATION`.
    function : callable, or str or sequence of str, optional
        ``function(params)``: numbers that may be identified though the parameters are not, such as a sum; or linear combinations
        as text, ``"a + b"``.
    kind : {"observed", "expected", "empirical"}
        The information whose directions are taken.

    Returns
    -------
    Identifiability
        Print it; or see `singular`, `weak`, `directions`, `identified`.

    Raises
    ------
    ValueError, TypeError
        If the kind is not an information, or was not kept; if the fit is inside a transformation.

    Notes
    -----
    Local, at the estimate: eigenvectors of the information about the unconstrained parameters, scaled to unit diagonal so that
    units do not matter, and mapped to the user's parameters. Moving these along a direction without information leaves the
    log-likelihood unchanged to second order. A direction is singular where its eigenvalue is under √ε (1.5e-8 in float64), weak
    under 0.001. Distant points of equal likelihood, such as exchanged components of a mixture, are not detected.

    References
    ----------
    Rothenberg, T. J. (1971), Econometrica 39, 577-591, theorem 1; Belsley, D. A., Kuh, E. and Welsch, R. E. (1980), Regression
    Diagnostics, section 3.2.

    Examples
    --------
    Only the sum of two levels is in the data:

    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> from jax.scipy.stats import norm
    >>> log_density = lambda params, y: norm.logpdf(y, params["a"] + params["b"], 1.0)
    >>> fit = fj.fit(log_density, {"a": 0.0, "b": 0.0}, jnp.array([1.0, 2.0, 3.0]))
    >>> report = fj.identifiability(fit, lambda params: {"sum": params["a"] + params["b"]})
    >>> print(report.describe(), dict(zip(report.names, report.identified.tolist())))
    +1 a -1 b {'a': False, 'b': False, 'sum': True}
    """
    check_fit(fit)
    if not isinstance(kind, str) or kind not in ("observed", "expected", "empirical"):
        raise ValueError(f'kind={shown(kind)} must be "observed", "expected" or "empirical": an information.')
    if is_traced(fit):
        raise ValueError("needs numbers that are known, but this fit is inside a transformation or has a batch axis.")
    function = as_function(function, fit, "function")
    function_names = () if function is None else outline(function, fit, "function").names
    of_one = _Gradients(len(fit.names), None if function is None else OfParameters(ById(function)))
    information, gradients = map(np.asarray, of_each(fit, of_one, kind, warns=False))
    decomposition = decompose(information, np.dtype(fit.free.dtype))
    identified, errors = _identify(decomposition, information, gradients)
    # A ridge without information is made of maxima too.
    at_maximum = np.asarray(fit.converged | (np.asarray(fit.status_code) == Status.SINGULAR_INFORMATION))
    slopes = gradients[..., : len(fit.names), :] / decomposition.scale[..., None, :]
    status = ""
    if not fit.has_batch and fit.status == Status.BOUNDARY:
        status = f"the fit ran to a boundary ({fit._culprit()}), where the curvature is no measure of information."
    elif not fit.has_batch and not at_maximum:
        status = f"the fit ended with status {fit.status.label}: this is not about a maximum."
    return Identifiability(
        eigenvalues=decomposition.eigenvalues,
        directions=np.einsum("...jp,...qp->...jq", decomposition.directions, slopes),
        units=linalg.row_lengths(slopes),
        direction_names=fit.names,
        singular=decomposition.singular,
        weak=(decomposition.eigenvalues < WEAK) & ~decomposition.singular,
        names=fit.names + function_names,
        identified=identified,
        standard_errors=np.where(at_maximum[..., None], errors, np.nan),
        status=status,
    )


@dataclass(frozen=True)
class _Gradients:
    """The total information about u, and the derivatives of θ and of a function with respect to u."""

    num_entries: int
    function: OfParameters | None

    def __call__(self, fit: Fit, kind: str) -> Any:
        jacobian = gradients = linearize(Entries(tuple(range(self.num_entries))), fit)[1]
        if self.function is not None:
            gradients = jnp.concatenate([gradients, linearize(self.function, fit)[1]])
        if kind == "observed":  # at a boundary it only measures how far the fit went
            return jnp.where(fit.status_code == Status.BOUNDARY, jnp.nan, fit.curvature), gradients  # type: ignore[arg-type]
        if kind == "empirical":
            return fit.outer_product, gradients
        return linalg.product(linalg.product(jacobian.T, fit.expected), jacobian), gradients


class Decomposition(NamedTuple):
    """Directions of one information matrix, or of each of many with a leading axis."""

    eigenvalues: Float[np.ndarray, "*b p"]  # ascending
    directions: Float[np.ndarray, "*b p p"]  # in rows, in units of each parameter's conditional standard error
    scale: Float[np.ndarray, "*b p"]  # the inverse of these, one where a parameter has no information
    singular: Bool[np.ndarray, "*b p"]


def decompose(information: Float[np.ndarray, "*b p p"], precision: np.typing.DTypeLike) -> Decomposition:
    """Eigenvalues and directions of the information scaled to unit diagonal; NaN where it is not finite."""
    information = np.asarray(information, np.float64)
    finite = np.all(np.isfinite(information), axis=(-2, -1), keepdims=True)
    scaled, scale = linalg.to_unit_diagonal(np.where(finite, information, 0.0))
    values, vectors = np.linalg.eigh(scaled)
    directions = np.where(finite, np.swapaxes(vectors, -1, -2), np.nan)
    eigenvalues = np.where(finite[..., 0], values, np.nan)
    return Decomposition(eigenvalues, directions, scale, eigenvalues < np.finfo(precision).eps ** SINGULAR)


def _identify(
    decomposition: Decomposition, information: Float[np.ndarray, "*b p p"], gradients: Float[np.ndarray, "*b k p"]
) -> tuple[Bool[np.ndarray, "*b k"], Float[np.ndarray, "*b k"]]:
    """Whether functions with these gradients do not depend on the singular directions, and their standard errors then."""
    diagonal = np.diagonal(np.where(np.isfinite(information), information, 0.0), axis1=-2, axis2=-1)
    along = np.einsum("...kp,...jp->...kj", gradients / decomposition.scale[..., None, :], decomposition.directions)
    singular = decomposition.singular[..., None, :]
    total, unidentified = np.sum(along**2, axis=-1), np.sum(np.where(singular, along**2, 0.0), axis=-1)
    # A parameter without any information has no unit in which a slope could be small: any dependence on it counts.
    depends = np.any((diagonal == 0)[..., None, :] & (gradients != 0), axis=-1)
    identified = (unidentified <= LOADS**2 * total) & ~depends
    safe = np.where(singular, 1.0, decomposition.eigenvalues[..., None, :])
    variance = np.sum(np.where(singular, 0.0, along**2 / safe), axis=-1)
    return identified, np.sqrt(np.where(identified, variance, np.nan))
