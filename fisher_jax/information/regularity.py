"""Whether a model is regular at a point: the zero means that the theory promises, tested on the way to an expectation."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

MASS_TOLERANCE = 1e-6  # by which probabilities may miss one
HEAVIEST_TAIL = 0.6  # estimated tail exponent of a score above which its variance is called infinite; it is from ½ on


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Regularity:
    """What was found when E[s] = 0 and E[s sᵀ + H] = 0 were tested, which every regular model obeys.

    Attributes
    ----------
    score_z : array (q,)
        Mean score of each parameter, in standard errors of that mean; for an exact route, in units of what its rounding and
        truncation may be.
    equality_z : array (q, q)
        The same for the mean of s sᵀ + H; NaN where it was not computed.
    tail : array (q,)
        Tail exponent of each score (estimated from the largest draws): the score has a variance only if it is below
        ½. NaN where it was not computed.
    mass : scalar array
        What the probabilities add up to for an exact route; one for draws.
    num_not_finite : integer array
        Draws, or nodes, with a log-density or derivative that is not finite.
    limit : float
        |z| above which a mean is called not zero.

    Examples
    --------
    >>> import fisher_jax as fj, jax
    >>> draws = fj.MonteCarlo(jax.random.key(0), 1000)
    >>> found = fj.fisher_information(fj.families.exponential, {"rate": 2.0}, draws)
    >>> bool(found.regularity.regular)
    True
    """

    score_z: Float[Array, "*b q"]
    equality_z: Float[Array, "*b q q"]
    tail: Float[Array, "*b q"]
    mass: Float[Array, "*b"]
    num_not_finite: Int[Array, "*b"]
    limit: float = field(metadata={"static": True})

    @property
    def regular(self) -> Bool[Array, "*b"]:
        """Whether nothing speaks against the model's regularity at this point."""
        return self.zero_means & (jnp.abs(self.mass - 1.0) < MASS_TOLERANCE) & (self.num_not_finite == 0)

    @property
    def zero_means(self) -> Bool[Array, "*b"]:
        """Whether the means that were tested are zero, and the scores have a variance."""
        score = jnp.all(~(jnp.abs(self.score_z) > self.limit), axis=-1)
        equality = jnp.all(~(jnp.abs(self.equality_z) > self.limit), axis=(-2, -1))
        return score & equality & jnp.all(~(self.tail > HEAVIEST_TAIL), axis=-1)

    def describe(self, names: tuple[str, ...]) -> str:
        """What was found, by the names of the parameters; empty where nothing was."""
        found = [
            _count(int(self.num_not_finite)),
            _mass(float(self.mass)),
            _means(np.asarray(self.score_z), names, self.limit, "the score"),
            _pairs(np.asarray(self.equality_z), names, self.limit),
            _tails(np.asarray(self.tail), names),
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


def _means(z: np.ndarray, names: tuple[str, ...], limit: float, what: str) -> str:
    worst = [k for k in np.argsort(-np.abs(z)) if abs(z[k]) > limit]
    if not worst:
        return ""
    said = ", ".join(f"{names[k]} (z = {z[k]:.3g})" for k in worst[:4])
    return (
        f"the mean of {what} is not zero for {said}: the support depends on the parameter, or the sampler is not the "
        "density's"
    )


def _pairs(z: np.ndarray, names: tuple[str, ...], limit: float) -> str:
    pairs = [(i, j) for i in range(len(names)) for j in range(i + 1) if abs(z[i, j]) > limit]
    if not pairs:
        return ""
    pairs.sort(key=lambda pair: -abs(z[pair]))
    said = ", ".join(names[i] if i == j else f"{names[j]} with {names[i]}" for i, j in pairs[:4])
    return (
        f"the mean of s sᵀ + H is not zero for {said} (z = {z[pairs[0]]:.3g}): the density has a kink or a moving edge, so "
        f"that the two definitions of the information differ, or {UNDECIDED}"
    )


UNDECIDED = "the scores' tails are too heavy for draws to tell (Quadrature can)"


def _tails(tail: np.ndarray, names: tuple[str, ...]) -> str:
    worst = [
        f"{name} (tail exponent {value:.2g})" for name, value in zip(names, tail, strict=True) if value > HEAVIEST_TAIL
    ]
    if not worst:
        return ""
    return (
        f"the score of {', '.join(worst[:4])} has so heavy a tail that its variance, the information, may be infinite"
    )
