"""Whether a model is regular at a point: the zero means that the theory promises, tested on the way to an expectation."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fisher_jax.numerics.array_namespace import AnyArray, namespace, on_host

MASS_TOLERANCE = 1e-6  # by which probabilities may miss one

# Standard errors above ½ of an estimated tail exponent, from which on the variance of a score is called infinite: one
# percent one-sided. It is infinite from ½ on.
TOO_HEAVY = 2.33

# Of √(Iᵢᵢ Iⱼⱼ), below which a mean of s sᵀ + H by draws counts as zero whatever its z-value: it moves no standard error by
# more than one percent. A sum of rare and large terms can be so far off before any of them is drawn, with no error to show.
NEGLIGIBLE = 0.02


def in_errors(mean: Float[Array, "..."], error: Float[Array, "..."]) -> Float[Array, "..."]:
    """z-values: zero for a mean that is exactly zero, whatever its error."""
    return jnp.where(mean == 0, 0.0, mean / jnp.where(error > 0, error, 1.0))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Regularity:
    """What was found when E[s] = 0 and E[s sᵀ + H] = 0 were tested, which every regular model obeys.

    Attributes
    ----------
    score_z : array (q,)
        Mean score of each parameter, in standard errors of that mean; for draws beyond 2, of the mean adjusted for the
        other means that should be zero, where this is closer to zero and as precise; for an exact route, in units of what
        its rounding and truncation may be.
    equality_z : array (q, q)
        The same for the mean of s sᵀ + H; NaN where it was not computed.
    effect : array (q, q)
        The mean of s sᵀ + H itself, divided by √(E[sᵢ²] E[sⱼ²]): by which fraction the two definitions of the information
        differ. NaN where it was not computed.
    tail : array (q,)
        Tail exponent of each score (estimated from the largest draws): the score has a variance only if it is below
        ½. NaN where it was not computed.
    mass : scalar array
        What the probabilities add up to for an exact route; one for draws.
    num_not_finite : integer array
        Draws, or nodes, with a log-density or derivative that is not finite.
    limit : float
        |z| above which a mean is called not zero.
    negligible : float
        |effect| up to which a mean of s sᵀ + H counts as zero all the same.
    num_largest : int
        Of the largest draws that the tail exponents were estimated from; zero for none.

    Notes
    -----
    With heavy tails draws tell less. Where a power k of the score has no mean, the k-th power of few draws says nothing of it:
    with extreme values of shape ξ < 0 that is so for ξ ≤ −1/k. The information is finite for ξ > −½, but for ξ ≤ −¼ neither
    s sᵀ nor H has a variance. There and near there the test is of what is left of s sᵀ + H after regression on the other
    zero means, which has one. `Quadrature` needs no such care.

    References
    ----------
    Bahadur, R. R. and Savage, L. J. (1956), Ann. Math. Statist. 27, 1115-1122: no test of a mean has a level without an
    assumption on the tails. Dekkers, Einmahl and de Haan (1989), for the tail exponent.

    Examples
    --------
    >>> import fisher_jax as fj, jax
    >>> draws = fj.MonteCarlo(jax.random.key(0), 1000)
    >>> found = fj.fisher_information(fj.families.exponential, {"rate": 2.0}, draws)
    >>> bool(found.regularity.regular)
    True
    """

    score_z: Float[AnyArray, "*b q"]
    equality_z: Float[AnyArray, "*b q q"]
    effect: Float[AnyArray, "*b q q"]
    tail: Float[AnyArray, "*b q"]
    mass: Float[AnyArray, "*b"]
    num_not_finite: Int[AnyArray, "*b"]
    limit: float = field(metadata={"static": True})
    negligible: float = field(default=0.0, metadata={"static": True})
    num_largest: int = field(default=0, metadata={"static": True})

    @property
    def _xp(self) -> Any:
        return namespace(self.score_z)

    @property
    def regular(self) -> Bool[AnyArray, "*b"]:
        """Whether nothing speaks against the model's regularity at this point."""
        return self.zero_means & (self._xp.abs(self.mass - 1.0) < MASS_TOLERANCE) & (self.num_not_finite == 0)

    @property
    def zero_means(self) -> Bool[AnyArray, "*b"]:
        """Whether the means that were tested are zero, and the scores have a variance."""
        return ~(self._xp.any(self.off_center | self.heavy, axis=-1) | self._xp.any(self.unequal, axis=(-2, -1)))

    @property
    def off_center(self) -> Bool[AnyArray, "*b q"]:
        """Of which parameters the mean score is not zero."""
        return self._xp.abs(self.score_z) > self.limit

    @property
    def unequal(self) -> Bool[AnyArray, "*b q q"]:
        """In which entries E[s sᵀ] and −E[H] differ."""
        return (self._xp.abs(self.equality_z) > self.limit) & (self._xp.abs(self.effect) > self.negligible)

    @property
    def heavy(self) -> Bool[AnyArray, "*b q"]:
        """Which scores have so heavy a tail that their variance is infinite, as far as draws can tell.

        The standard error of the exponent γ from k draws is √((1 + γ²)/k) (Dekkers, Einmahl and de Haan 1989, theorem 3.1).
        """
        return self.tail > 0.5 + TOO_HEAVY * self._xp.sqrt((1.0 + self.tail**2) / max(self.num_largest, 1))

    @property
    def missing(self) -> Bool[AnyArray, "*b q q"]:
        """Entries of an information that does not exist: of a score whose mean is not zero, or whose variance is infinite.

        A kink is no reason: E[s sᵀ] is the information there.
        """
        without = self.off_center | self.heavy
        return without[..., :, None] | without[..., None, :]

    def describe(self, names: tuple[str, ...]) -> str:
        """What was found, by the names of the parameters; empty where nothing was."""
        self = on_host(self)
        found = [
            _count(int(self.num_not_finite)),
            _mass(float(self.mass)),
            _means(self.score_z, self.off_center, names),
            _pairs(self.equality_z, self.effect, self.unequal, names),
            _tails(self.tail, self.heavy, names),
        ]
        return "; ".join(part for part in found if part)


def _count(num_not_finite: int) -> str:
    if not num_not_finite:
        return ""
    return (
        f"{num_not_finite} draws or nodes have a log-density or derivative that is not finite: does the sampler draw outside "
        "the support, or a derivative overflow?"
    )


def _mass(mass: float) -> str:
    if abs(mass - 1.0) < MASS_TOLERANCE:
        return ""
    return (
        f"the probabilities add up to {mass:.8g}, not 1: list more values, widen the limits, raise the order, put `points` "
        "where the density is steep, or normalise the density"
    )


def _means(z: np.ndarray, off_center: np.ndarray, names: tuple[str, ...]) -> str:
    worst = [k for k in np.argsort(-np.abs(z)) if off_center[k]]
    if not worst:
        return ""
    said = ", ".join(f"{names[k]} (z = {z[k]:.3g})" for k in worst[:4])
    return (
        f"the mean of the score is not zero for {said}: the support depends on the parameter, or the sampler is not the "
        "density's"
    )


def _pairs(z: np.ndarray, effect: np.ndarray, unequal: np.ndarray, names: tuple[str, ...]) -> str:
    pairs = [(i, j) for i in range(len(names)) for j in range(i + 1) if unequal[i, j]]
    if not pairs:
        return ""
    pairs.sort(key=lambda pair: -abs(z[pair]))
    said = ", ".join(names[i] if i == j else f"{names[j]} with {names[i]}" for i, j in pairs[:4])
    return (
        f"the mean of s sᵀ + H is not zero for {said} ({effect[pairs[0]]:.2g} of the information, z = {z[pairs[0]]:.3g}): the "
        f"density has a kink or a moving edge, so that the two definitions of the information differ, or {UNDECIDED}"
    )


UNDECIDED = "the scores' tails are too heavy for draws to tell (Quadrature can)"


def _tails(tail: np.ndarray, heavy: np.ndarray, names: tuple[str, ...]) -> str:
    worst = [f"{names[k]} (tail exponent {tail[k]:.2g})" for k in np.flatnonzero(heavy)]
    if not worst:
        return ""
    return f"the score of {', '.join(worst[:4])} has so heavy a tail that its variance, the information, is infinite"
