"""The record of a check of theory, and how it reads."""

from dataclasses import dataclass, field, replace

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from fisher_jax.information.regularity import UNDECIDED, Regularity
from fisher_jax.numerics import linalg


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Check:
    """What became of an identity that theory promises, at given parameters.

    Attributes
    ----------
    mean, standard_error : arrays
        What should be zero, by parameter (q,) or by entry (q, q), and its error; for an exact expectation that of rounding
        and truncation.
    z : array
        `mean` in units of `standard_error`; for independent draws with their skewness taken out (Hall 1992). Where it is
        beyond 2 and the mean adjusted for the other means that should be zero is closer to zero and as precise, the z-value of
        that: it is free of the heavy tail that they have in common.
    p_value : scalar array
        Probability of so large a z somewhere if the identity holds (Šidák); for an exact expectation one or zero. By draws,
        entries whose two definitions differ by less than `regularity.negligible` of the information do not count.
    passed : boolean array
        Whether nothing was found: p above `level`, every log-density finite, no score with so heavy a tail that its variance
        may be infinite, and no information that is singular.
    score_mean, outer, minus_hessian : arrays (q,), (q, q) and (q, q)
        E[s], E[s sᵀ] and −E[H], side by side; the last is NaN where no Hessian was asked for.
    singular : boolean array
        Whether E[s sᵀ] is singular to rounding, so that some direction has no information; not asked of the score's mean.
    regularity : Regularity
        The same tests as `fisher_information` makes them, with the tails of the scores.
    names, identity, route, level
        The parameters, what was tested, by which expectation, and below which p it fails.

    Notes
    -----
    `print` gives a reading. A function that returns a check can be jitted and vmapped.
    """

    mean: Float[Array, "..."]
    standard_error: Float[Array, "..."]
    z: Float[Array, "..."]
    p_value: Float[Array, "*b"]
    passed: Bool[Array, "*b"]
    score_mean: Float[Array, "*b q"]
    outer: Float[Array, "*b q q"]
    minus_hessian: Float[Array, "*b q q"]
    singular: Bool[Array, "*b"]
    regularity: Regularity
    names: tuple[str, ...] = field(metadata={"static": True})
    identity: str = field(metadata={"static": True})
    route: str = field(metadata={"static": True})
    level: float = field(metadata={"static": True})

    def __str__(self) -> str:
        if isinstance(self.p_value, jax.core.Tracer) or np.ndim(self.p_value):
            return f"Check of {self.identity}: passed={self.passed}"
        lines = [f"Check of {self.identity}: {'passed' if self.passed else 'FAILED'}", f"  By        {self.route}"]
        rows = self._score_rows() if np.ndim(self.z) == 1 else self._entry_rows()
        widths = [max(len(row[j]) for row in rows) for j in range(len(rows[0]))]
        lines += ["  " + "  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
        if self.regularity.limit != 1.0:
            lines.append(f"  p-value   {float(self.p_value):.3g} for the largest |z| of {len(rows) - 1}")
        return "\n".join([*lines, *(f"  {line}" for line in self._reading())])

    def _score_rows(self) -> list[tuple[str, ...]]:
        numbers = zip(self.names, *map(np.asarray, (self.mean, self.standard_error, self.z)), strict=True)
        return [
            ("parameter", "E[s]", "std. error", "z"),
            *((name, f"{m:.4g}", f"{e:.2g}", f"{z:.3g}") for name, m, e, z in numbers),
        ]

    def _entry_rows(self) -> list[tuple[str, ...]]:
        covariance = np.asarray(self.outer) - np.outer(self.score_mean, self.score_mean)
        rows: list[tuple[str, ...]] = [("entry", "Cov(s)", "−E[H]", "difference", "std. error", "z")]
        for i, j in zip(*np.triu_indices(len(self.names)), strict=True):
            entry = self.names[i] if i == j else f"{self.names[i]}, {self.names[j]}"
            numbers = (covariance[i, j], self.minus_hessian[i, j], self.mean[i, j])
            error, z = self.standard_error[i, j], self.z[i, j]
            rows.append((entry, *(f"{float(x):.5g}" for x in numbers), f"{float(error):.2g}", f"{float(z):.3g}"))
        return rows

    def _reading(self) -> list[str]:
        """What follows, in sentences."""
        found = []
        failed = not float(self.p_value) > self.level
        of_score = np.ndim(self.z) == 1
        if failed and of_score:
            found.append(
                "The mean of the score is not zero: the support depends on a parameter, the density is not normalised, or the "
                "sampler is not the density's. The covariance of the estimate need not be an inverse information here."
            )
        elif failed:
            found.append(
                "The two definitions of the Fisher information differ: the density has a kink in a parameter, or its support "
                "depends on one. Neither inverse is a bound without further thought."
                + (f" Or {UNDECIDED}." if self.regularity.limit != 1.0 else "")
            )
        if bool(self.singular):
            _, direction = linalg.weak_directions(np.asarray(self.outer), self.names)[0]
            found.append(
                f"The information is singular along {direction}: the data cannot tell these parameters apart here."
            )
        other = replace(self.regularity, limit=np.inf).describe(self.names)
        if other:
            found.append(other[0].upper() + other[1:] + ".")
        if not found:
            found.append(
                "Nothing speaks against it: the score averages to zero under the model."
                if of_score
                else "Nothing speaks against it: curvature and spread of the score tell of the same information."
            )
        return found
