"""Whether a model is regular at a point: the zero means of Bartlett's identities, and the tails of the scores.

E[s] = 0 and E[s sᵀ + H] = 0 in every regular model. Both are tested with the draws or nodes that an expectation is taken by.
A score has a variance, which is the information, only if its tail exponent is below ½.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fisher_jax.numerics.array_namespace import AnyArray, namespace, on_host

MASS_TOLERANCE = 1e-6  # by which probabilities may miss one

# Fraction of different values below which the draws are taken for those of a lattice, and no tail is estimated.
LEAST_DISTINCT = 0.75

# Standard errors above ½ of an estimated tail exponent, from which on the variance of a score is called infinite: one
# percent one-sided. It is infinite from ½ on.
TOO_HEAVY = 2.33

# Of √(Iᵢᵢ Iⱼⱼ), below which a mean of s sᵀ + H by draws counts as zero whatever its z-value: it moves no standard error by
# more than one percent. A sum of rare and large terms can be so far off before any of them is drawn, with no error to show.
NEGLIGIBLE = 0.02

TAILS_TOO_HEAVY = "the scores' tails are too heavy for draws to tell (Quadrature can)"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Regularity:
    """Tests of E[s] = 0 and E[s sᵀ + H] = 0, which hold in every regular model.

    Attributes
    ----------
    score_z : array (q,)
        Mean score of each parameter, in standard errors of that mean. For draws, where it is beyond 2, the mean is adjusted
        for the other means that should be zero, if that is closer to zero and as precise. For an exact expectation, in units
        of its error by rounding and truncation.
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
    With heavy tails draws are less informative. Where a power k of the score has no mean, its average over draws settles
    nowhere: with extreme values of shape ξ < 0 that is so for ξ ≤ −1/k. The information is finite for ξ > −½, but for ξ ≤ −¼
    neither s sᵀ nor H has a variance. There and near there the test is of what is left of s sᵀ + H after regression on the
    other zero means, which has one. `Quadrature` needs no such care.

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
        """Whether the tests find no evidence against the model's regularity at this point."""
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
        """Which scores have so heavy a tail that their variance is infinite, as far as draws can show.

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
        """The evidence against regularity, by the names of the parameters; empty where there is none."""
        self = on_host(self)
        parts = []
        if self.num_not_finite:
            parts.append(
                f"{int(self.num_not_finite)} draws or nodes have a log-density or derivative that is not finite: does the "
                "sampler draw outside the support, or a derivative overflow?"
            )
        if not abs(self.mass - 1.0) < MASS_TOLERANCE:  # nor where it is NaN
            parts.append(
                f"the probabilities add up to {float(self.mass):.8g}, not 1: list more values, widen the limits, raise the "
                "order, put `points` where the density is steep, or normalise the density"
            )
        if worst := [k for k in np.argsort(-np.abs(self.score_z)) if self.off_center[k]]:
            entries = ", ".join(f"{names[k]} (z = {self.score_z[k]:.3g})" for k in worst[:4])
            parts.append(
                f"the mean of the score is not zero for {entries}: the support depends on the parameter, or the sampler is "
                "not the density's"
            )
        if pairs := [(i, j) for i in range(len(names)) for j in range(i + 1) if self.unequal[i, j]]:
            pairs.sort(key=lambda pair: -abs(self.equality_z[pair]))
            entries = ", ".join(names[i] if i == j else f"{names[j]} with {names[i]}" for i, j in pairs[:4])
            effect, z = self.effect[pairs[0]], self.equality_z[pairs[0]]
            parts.append(
                f"the mean of s sᵀ + H is not zero for {entries} ({effect:.2g} of the information, z = {z:.3g}): the density "
                "has a kink or a moving edge, so that the two definitions of the information differ, or "
                f"{TAILS_TOO_HEAVY}"
            )
        if heavy := [f"{names[k]} (tail exponent {self.tail[k]:.2g})" for k in np.flatnonzero(self.heavy)]:
            parts.append(
                f"the score of {', '.join(heavy[:4])} has so heavy a tail that its variance, the information, is infinite"
            )
        return "; ".join(parts)


def z_values(mean: Float[Array, "..."], error: Float[Array, "..."]) -> Float[Array, "..."]:
    """Means in standard errors: zero for a mean that is exactly zero, whatever its error."""
    return jnp.where(mean == 0, 0.0, mean / jnp.where(error > 0, error, 1.0))


def tail_exponent(largest: Float[Array, "q t"]) -> Float[Array, " q"]:
    """Exponent γ of a tail P(X > x) ~ x^(−1/γ) for each row, about 0 for light tails; NaN where none can be estimated.

    The moment estimator, which unlike Hill's does not take an exponential tail for a heavy one. Moments of order 1/γ and
    above are infinite.

    References
    ----------
    Dekkers, A. L. M., Einmahl, J. H. J. and de Haan, L. (1989), Ann. Statist. 17, 1833-1855, eq. (1.7).
    """
    if largest.shape[1] < 2:
        return jnp.full(largest.shape[:1], jnp.nan, largest.dtype)
    least = largest[:, -1:]
    usable = least[:, 0] > 0
    logs = jnp.log(jnp.where(usable[:, None], largest, 1.0)) - jnp.log(jnp.where(usable[:, None], least, 1.0))
    distinct = jnp.mean(logs[:, :-1] - logs[:, 1:] > 1e-6, axis=1)
    first, second = jnp.mean(logs[:, :-1], axis=1), jnp.mean(logs[:, :-1] ** 2, axis=1)
    usable = usable & (distinct >= LEAST_DISTINCT) & (second > first**2)
    ratio = jnp.where(usable, first**2 / jnp.where(usable, second, 1.0), 0.5)
    return jnp.where(usable, first + 1.0 - 0.5 / (1.0 - ratio), jnp.nan)
