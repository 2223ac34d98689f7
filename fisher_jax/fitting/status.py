"""How a maximisation ended: one code, what it means, its likely causes and what to try next.

`certify` in `maximization.py` chooses it by the thresholds here.
"""

import enum
from typing import NamedTuple

ROUNDING_LIMIT = 0.01  # standard errors: a rounding floor further out than this is no success
EDGE_INFORMATION = 1e-2  # information on a constrained parameter's own scale below which nothing is left to estimate
EDGE_DISTANCE = 3.0  # how far it must have moved on that scale to count as running away
ROUNDING_UNITS = 4.0  # ε |ℓ|: below this two log-likelihoods cannot be told apart
FAR_AWAY = 20.0  # and how far outward counts as running away in any case, unless it converges there


class Status(enum.IntEnum):
    """How a maximisation ended. `CONVERGED` and `CONVERGED_TO_ROUNDING` are the two successes.

    A `Fit` made under `jax.vmap` or `jax.jit` carries the codes as an integer array; compare
    them with members of this class, as in `fits.status == Status.CONVERGED`.

    Examples
    --------
    >>> from fisher_jax import Status
    >>> Status.CONVERGED.converged, Status.STALLED.converged
    (True, False)
    >>> print(Status.BAD_START.meaning)
    the log-density is not finite at the starting parameters
    """

    CONVERGED = 0
    CONVERGED_TO_ROUNDING = 1
    STEP_LIMIT = 2
    STALLED = 3
    BOUNDARY = 4
    SINGULAR_INFORMATION = 5
    INDEFINITE = 6
    BAD_START = 7
    NOT_FINITE = 8
    TOO_FEW_OBSERVATIONS = 9

    def __str__(self) -> str:
        return self.label

    __format__ = enum.Enum.__format__

    @property
    def converged(self) -> bool:
        """Whether the estimate is a certified local maximum."""
        return self in (Status.CONVERGED, Status.CONVERGED_TO_ROUNDING)

    @property
    def label(self) -> str:
        """The status in words, as reports print it."""
        return self.name.lower().replace("_", " ")

    @property
    def meaning(self) -> str:
        """What this status means."""
        return _TABLE[self].meaning

    @property
    def causes(self) -> str:
        """The likely causes; empty for a success."""
        return _TABLE[self].causes

    @property
    def remedy(self) -> str:
        """What to try next; empty for a success."""
        return _TABLE[self].remedy


class _Entry(NamedTuple):
    meaning: str
    causes: str
    remedy: str


_TABLE = {
    Status.CONVERGED: _Entry(
        "a local maximum: the decrement is below the tolerance and the curvature is positive definite", "", ""
    ),
    Status.CONVERGED_TO_ROUNDING: _Entry(
        "a local maximum as nearly as this precision can show: no step improves the log-likelihood by more than its "
        "rounding error, and the curvature is positive definite; the decrement, too, is computed in this precision",
        "rounding in the log-density, or a tolerance below what the precision allows",
        "float64, or a log-density that cancels less, if the last digits matter",
    ),
    Status.STEP_LIMIT: _Entry(
        "the steps ran out before the maximum was certified",
        "a distant start, a first-order optimiser that needs more steps, a tolerance below its reach, or a log-likelihood "
        "without an upper bound",
        "raise max_steps, start nearer, or fit again from these parameters",
    ),
    Status.STALLED: _Entry(
        "no step improves the log-likelihood although its gradient is not zero",
        "a kink (abs, where, a quantile), an edge of the support that moves with the parameters (where the log-likelihood may "
        "have no upper bound, as an extreme-value distribution's with a shape below -1), a discontinuity, too little precision, "
        "a start so far off that the log-density is all rounding, or a learning rate that has faded",
        "smooth the log-density or reparametrise, use float64, start nearer; if the maximum is at a kink or an edge of the "
        "support, covariances from curvature do not apply",
    ),
    Status.BOUNDARY: _Entry(
        "a parameter runs to the edge of its range, or to infinity, and the log-likelihood keeps rising on the way",
        "a variance or weight whose best value is zero, degrees of freedom whose best value is infinite, a sample "
        "without variation, or perfect separation",
        "fix the parameter at its edge and compare the log-likelihoods, choose a simpler model, or add prior "
        "information; Wald standard errors do not apply here",
    ),
    Status.SINGULAR_INFORMATION: _Entry(
        "the gradient is zero but the curvature is singular: some combination of the parameters cannot be estimated",
        "identical or collinear columns, two parameters that enter only as a product or a sum, equal mixture "
        "components, or one parameter too many; in float32 also a column whose spread is small beside its mean",
        "remove or fix one parameter of the named direction; in float32, centre the columns or use float64",
    ),
    Status.INDEFINITE: _Entry(
        "the gradient is zero but the curvature is indefinite: a saddle point, not a maximum",
        "a symmetric start (equal mixture components, zero coefficients of a product)",
        "start from another point that breaks the symmetry",
    ),
    Status.BAD_START: _Entry(
        "the log-density is not finite at the starting parameters",
        "an observation outside the support, NaN or infinity in the data, starting parameters that overflow or lie outside "
        "their constraint, or a negative weight",
        "look at the named observation, or start elsewhere",
    ),
    Status.NOT_FINITE: _Entry(
        "the log-density is finite at these parameters but its gradient or curvature is not, or the optimiser stepped to "
        "where they are not",
        "jnp.where around a branch whose derivative is not finite, sqrt or a power at zero, norm of a zero vector, an "
        "observation at the very edge of the support; a learning rate that is too large",
        "make the unused branch of each jnp.where safe as well (put a second jnp.where on its argument), or take shorter "
        "steps",
    ),
    Status.TOO_FEW_OBSERVATIONS: _Entry(
        "there are fewer observations than free parameters",
        "too small a sample, or weights that leave too few observations",
        "fix some parameters, or collect more data",
    ),
}
