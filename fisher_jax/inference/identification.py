"""`identifiability`: what the data tell apart, and what they do not."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from fisher_jax.errors import entry_point, shown
from fisher_jax.fitting.each import check_fit, quietly
from fisher_jax.fitting.functions import OfParameters, linearised, outline
from fisher_jax.fitting.result import Fit
from fisher_jax.fitting.status import Status
from fisher_jax.inference.identified import identified, identify
from fisher_jax.inference.wald import Entries
from fisher_jax.models.programs import ById
from fisher_jax.numerics import linalg
from fisher_jax.numerics.array_namespace import is_traced
from fisher_jax.reporting import Report, Reported, Table, number

WEAK = 1e-3  # of an eigenvalue: standard errors along the direction are some thirty times what each parameter's would be alone


@dataclass(frozen=True, repr=False)
class Identifiability(Reported):
    """Which directions of parameter space the data inform about. Arrays are numpy's; of a batch with a leading axis B.

    Attributes
    ----------
    eigenvalues : array (p,)
        Of the information scaled to unit diagonal, ascending; they add up to p, and are all one where no parameter's estimate
        depends on another's. NaN where the information is not finite, or the fit ended at a boundary.
    directions : array (p, q)
        A row for each eigenvalue: how the parameters move together along it, each in its own unit, for a step of one conditional
        standard error (one over the root of a parameter's own information).
    units : array (q,)
        How far each parameter can move with such a step: what makes up a direction is told by `directions / units`.
    direction_names : tuple of str
        The parameters of its columns.
    singular, weak : boolean arrays (p,)
        Which directions have no information to rounding, or less than none; which have little, under a thousandth.
    names : tuple of str
        What `identified` and `standard_errors` are about: the parameters, then the numbers of the function asked about.
    identified : boolean array (k,)
        What does not depend on a singular direction.
    standard_errors : array (k,)
        Of what is identified, by a generalised inverse of the information; NaN for the rest, and where the fit ended neither at a
        maximum nor on a ridge of maxima.
    status : str
        What the fit's status adds to it; empty for a fit that converged, and of a batch.
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
        parts = ("eigenvalues", "directions", "units", "singular", "weak", "identified", "standard_errors")
        taken = {name: getattr(self, name)[index] for name in parts}
        return Identifiability(**taken, direction_names=self.direction_names, names=self.names)

    def _table(self) -> Report:
        if np.any(np.isnan(self.eigenvalues)):
            return Report("Identifiability", [("Information", self.status or "not finite, so nothing can be said")])
        shown = np.flatnonzero(self.singular | self.weak)
        shown = shown if len(shown) else np.arange(min(1, len(self.eigenvalues)))
        labels = np.where(self.singular, "none", np.where(self.weak, "weak", "sound"))
        rows: list[tuple[str, ...]] = [
            (self.describe(int(k)), f"{self.eigenvalues[k]:.2g}", str(labels[k])) for k in shown
        ]
        facts = [
            (
                "Directions",
                f"{len(self.eigenvalues)}, without information {self.singular.sum()}, weak {self.weak.sum()}",
            ),
            ("Eigenvalues", f"{self.eigenvalues[0]:.3g} to {self.eigenvalues[-1]:.3g}, of the scaled information"),
        ]
        return Report(
            "Identifiability", facts, [Table(("direction", "eigenvalue", "information"), rows)], self._notes()
        )

    def _notes(self) -> list[str]:
        notes = []
        if np.any(self.singular):
            notes.append(
                "the data do not tell apart points along a direction without information: moving the parameters together along "
                "it leaves the likelihood as it is, as far as its second derivatives tell."
            )
            errors = zip(self.names, self.identified, self.standard_errors, strict=True)
            known = [f"{name} (standard error {number(error)})" for name, fine, error in errors if fine]
            lost = [name for name, fine in zip(self.names, self.identified, strict=True) if not fine]
            notes.append(f"not identified: {', '.join(lost) or 'nothing that was asked about'}.")
            notes.append(f"still identified: {', '.join(known) or 'no parameter by itself'}.")
        if np.any(self.weak):
            notes.append(
                "along a weak direction standard errors are large and Wald intervals doubtful: use profiles, or say more about "
                "these parameters (a constraint, a value held fixed, other data)."
            )
        notes = notes or ["every direction is well informed about."]
        return [*notes, self.status] if self.status else notes

    def summary(self) -> Report:
        if self.eigenvalues.ndim == 1:
            return self._table()
        unknown = np.isnan(self.eigenvalues).any(axis=-1)
        counts = [
            ("Fits", f"{len(self.eigenvalues)}"),
            ("With a direction without information", f"{int(self.singular.any(axis=-1).sum())}"),
            ("With a weak direction", f"{int(self.weak.any(axis=-1).sum())}"),
            ("Information not finite", f"{int(unknown.sum())}"),
        ]
        return Report("Identifiability", counts, notes=["one fit's by its index, as in identifiability(fits)[0]."])


@entry_point
def identifiability(fit: Any, function: Any = None, *, kind: str = "observed") -> Identifiability:
    """Which combinations of parameters the data inform about, which they do not, and what can be said nevertheless.

    Parameters
    ----------
    fit : Fit
        Also one that ended with status `SINGULAR_INFORMATION`: that is what this is for.
    function : callable, optional
        ``function(params)``: numbers of which to ask whether they are identified though the parameters are not, such as a sum.
    kind : {"observed", "expected", "empirical"}
        The information looked at.

    Returns
    -------
    Identifiability
        Print it; or see `singular`, `weak`, `directions`, `identified`.

    Raises
    ------
    ValueError, TypeError
        If the kind is no information, or was not kept; if the fit is inside a transformation.

    Notes
    -----
    Local, at the estimate: eigenvectors of the information about the unconstrained parameters, scaled to unit diagonal so that
    units do not matter, and carried to the user's parameters: moving these along a direction without information leaves the
    log-likelihood unchanged to second order. A direction is singular where its eigenvalue is under √ε (1.5e-8 in float64), weak
    under 0.001. What is far away, as the exchange of a mixture's components, is not seen.

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
    >>> found = fj.identifiability(fit, lambda params: {"sum": params["a"] + params["b"]})
    >>> print(found.describe(), dict(zip(found.names, found.identified.tolist())))
    +1 a -1 b {'a': False, 'b': False, 'sum': True}
    """
    check_fit(fit)
    if not isinstance(kind, str) or kind not in ("observed", "expected", "empirical"):
        raise ValueError(f'kind={shown(kind)} must be "observed", "expected" or "empirical": an information.')
    if is_traced(fit):
        raise ValueError("needs numbers that are known, but this fit is inside a transformation or has a batch axis.")
    output = None if function is None else outline(function, fit, "function")
    asked = _Gradients(len(fit.names), None if function is None else OfParameters(ById(function)))
    information, gradient = map(np.asarray, quietly(fit, asked, kind))
    found = identify(information, np.dtype(fit.free.dtype))
    holds, errors = identified(found, information, gradient)
    slopes = gradient[..., : len(fit.names), :] / found.scale[..., None, :]
    return Identifiability(
        eigenvalues=found.eigenvalues,
        directions=np.einsum("...jp,...qp->...jq", found.directions, slopes),
        units=linalg.row_lengths(slopes),
        direction_names=fit.names,
        singular=found.singular,
        weak=(found.eigenvalues < WEAK) & ~found.singular,
        names=fit.names + (output.names if output else ()),
        identified=holds,
        standard_errors=np.where(_at_maximum(fit)[..., None], errors, np.nan),
        status=_said_of_status(fit) if not fit.has_batch else "",
    )


def _at_maximum(fit: Fit) -> np.ndarray:
    """Whether there are standard errors of what is identified: a ridge is made of maxima too."""
    return np.asarray(fit.converged | (np.asarray(fit.status_code) == Status.SINGULAR_INFORMATION))


def _said_of_status(fit: Fit) -> str:
    if fit.status == Status.BOUNDARY:
        return f"the fit ran to a boundary ({fit._culprit()}), on the way to which the curvature measures nothing."
    if fit.converged or fit.status == Status.SINGULAR_INFORMATION:
        return ""
    return f"the fit ended with status {fit.status.label}: this is not said of a maximum."


@dataclass(frozen=True)
class _Gradients:
    """The total information about u, and the derivatives of θ and of a function by u."""

    num_entries: int
    function: OfParameters | None

    def __call__(self, fit: Fit, kind: str) -> Any:
        gradient = linearised(Entries(tuple(range(self.num_entries))), fit)[1]
        jacobian = gradient
        if self.function is not None:
            gradient = jnp.concatenate([gradient, linearised(self.function, fit)[1]])
        if kind == "observed":
            return jnp.where(fit.status_code == Status.BOUNDARY, jnp.nan, fit.curvature), gradient  # type: ignore[arg-type]
        if kind == "empirical":
            return fit.outer_product, gradient
        half = jnp.matmul(jacobian.T, fit.expected, precision="highest")  # type: ignore[arg-type]
        return jnp.matmul(half, jacobian, precision="highest"), gradient
