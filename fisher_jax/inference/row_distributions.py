"""The predictive distribution of one observation: distribution function, quantiles, density, mean, and its continuous ranked score.

A mixture over points θ_d with weights w_d, one point being the model itself at an estimate:

- G(y) = Σ w_d F(y; θ_d), with F by the model's `log_cdf` and `log_survival`, or by inversion of its `quantile`;
- G⁻¹ by bisection between the least and the largest of the F⁻¹(level; θ_d), between which it lies. Floating numbers are bisected in
  the order of their bits, so that neither a scale nor a bracket is needed and the result is exact to rounding.

Or a calibrated distribution (Beran 1990; Fonseca, Giummolè and Vidoni 2014), G(y) = C(F(y; θ̂)) with C(a) the mean of
F(F⁻¹(a; θ*); θ̂) over replicates θ* of the estimate: how often the limits F⁻¹(a; θ̂) are kept where θ̂ is the truth.

The continuous ranked probability score is ∫ (G(x) − 1{x ≥ y})² dx (Gneiting and Raftery 2007, section 4.2).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.errors import call_user
from fisher_jax.models.likelihood import term_of
from fisher_jax.models.model import Model
from fisher_jax.numerics.stable_functions import log_complement

PLACES = (
    1e-5,
    2e-3,
    0.03,
    0.2,
    0.5,
    0.8,
    0.97,
    0.998,
    1 - 1e-5,
)  # levels of the quantiles where pieces of a quadrature begin
NODES, COARSE_NODES = 16, 10  # of the quadrature in each of its pieces, and of the rule with which it is compared
AGREEMENT = 1e-3  # relative: a quadrature that differs more from the coarse one has not converged


# --- one number from a model ------------------------------------------------------------------------------------------


def check_distribution(model: Model) -> None:
    """Raise where a model has no distribution function in any form."""
    if model.log_cdf is None and model.log_survival is None and model.quantile is None:
        raise ValueError(
            "the model has neither a distribution function nor quantiles. Give Model(…, log_cdf=function of params and y), or "
            "quantile=function of a number and params; or take a family that has them."
        )


def has_known_intervals(model: Model, params: PyTree, data: PyTree, given: PyTree) -> bool:
    """Whether observations stand for intervals in which values are known to lie, as those at a limit of measurement do."""
    first = [jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), tree) for tree in (data, given) if tree is not None]
    return jax.eval_shape(model.known_interval, params, *first) is not None


def quantile_of(model: Model, params: PyTree, level: Any, z: tuple[PyTree, ...], dtype: Any) -> Float[Array, ""]:
    """F⁻¹(level; θ), a number."""
    value = jnp.asarray(call_user(model.quantile, (level, params, *z), "quantile"))  # type: ignore[arg-type]
    if value.shape != ():
        raise ValueError(
            f"quantile(uniform, params) must return a scalar for one number, but returned shape {value.shape}: an observation must "
            "be one number here."
        )
    return value.astype(dtype)


def log_tails_of(model: Model, params: PyTree, y: Array, z: tuple[PyTree, ...]) -> tuple[Array, Array]:
    """log P(Y ≤ y) and log P(Y > y), each with its own digits where the model has both functions."""
    if model.log_cdf is None and model.log_survival is None:
        logit = logit_by_inversion(model, params, y, z)
        return jax.nn.log_sigmoid(logit), jax.nn.log_sigmoid(-logit)

    def number(function: Any, name: str) -> Any:
        value = None if function is None else jnp.asarray(call_user(function, (params, y, *z), name))
        if value is not None and value.shape != ():
            raise ValueError(f"{name}(params, y) must return a scalar, but returned shape {value.shape}.")
        return None if value is None else value.astype(y.dtype)

    log_cdf, log_survival = number(model.log_cdf, "log_cdf"), number(model.log_survival, "log_survival")
    log_cdf = log_complement(log_survival) if log_cdf is None else log_cdf
    return log_cdf, log_complement(log_cdf) if log_survival is None else log_survival


def tails_of(model: Model, params: PyTree, y: Array, z: tuple[PyTree, ...]) -> tuple[Array, Array]:
    """P(Y ≤ y) and P(Y > y)."""
    below, above = log_tails_of(model, params, y, z)
    return jnp.exp(below), jnp.exp(above)


def logit_by_inversion(
    model: Model, params: PyTree, y: Array, z: tuple[PyTree, ...], *, below: bool = False
) -> Float[Array, ""]:
    """logit P(Y ≤ y), or of P(Y < y) if `below`, from the quantile function by bisection; ±∞ where y is outside of its values."""
    widest = -2.0 * jnp.log(jnp.finfo(y.dtype).eps)  # beyond it u is 0 or 1 to rounding

    def quantile(logit: Any) -> Float[Array, ""]:
        return quantile_of(model, params, jax.nn.sigmoid(jnp.asarray(logit, y.dtype)), z, y.dtype)

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = 0.5 * (low + high)
        inside = quantile(middle) < y if below else quantile(middle) <= y
        return jnp.where(inside, middle, low), jnp.where(inside, high, middle)

    low, high = jax.lax.fori_loop(0, 64, halve, (-widest, widest))
    logit = jnp.where(low == -widest, -jnp.inf, jnp.where(high == widest, jnp.inf, 0.5 * (low + high)))
    return jnp.where(jnp.isnan(y) | jnp.isnan(quantile(0.0)), jnp.nan, logit)


# --- bisection --------------------------------------------------------------------------------------------------------


def first_reaching(reaches: Callable[[Array], Array], low: Array, high: Array, *, whole: bool) -> Float[Array, ""]:
    """The least number in [low, high] from which on `reaches` is true, which it is at `high`; of whole numbers if `whole`."""
    dtype = low.dtype
    if whole:

        def halve_whole(ends: tuple[Array, Array]) -> tuple[Array, Array]:
            place = jnp.floor(0.5 * ends[0] + 0.5 * ends[1])
            reached = reaches(place)
            return jnp.where(reached, ends[0], place), jnp.where(reached, place, ends[1])

        start = jnp.floor(low) - 1.0, jnp.ceil(high)
        return jax.lax.while_loop(lambda ends: ends[1] - ends[0] > 1.0, halve_whole, start)[1]

    # The bits of a positive number, read as a whole number, grow with it; those of a negative one are mirrored.
    integers, unit = (jnp.int64, 2**12) if dtype == jnp.float64 else (jnp.int32, 4)  # 1e-12 and 5e-7, relative
    least = jnp.iinfo(integers).min

    def mirror(bits: Array) -> Array:
        return jnp.where(bits >= 0, bits, least - bits)

    def value(place: Array) -> Array:
        return jax.lax.bitcast_convert_type(mirror(place), dtype)

    def halve(ends: tuple[Array, Array]) -> tuple[Array, Array]:
        place = (ends[0] >> 1) + (ends[1] >> 1) + (ends[0] & ends[1] & 1)  # which does not overflow
        reached = reaches(value(place))
        return jnp.where(reached, ends[0], place), jnp.where(reached, place, ends[1])

    def is_wide(ends: tuple[Array, Array]) -> Array:
        return (ends[1] >> 1) - (ends[0] >> 1) > unit // 2

    first, last = (mirror(jax.lax.bitcast_convert_type(end, integers)) for end in (low, high))
    return value(jax.lax.while_loop(is_wide, halve, (first - 1, last))[1])


# --- distributions of one row -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MixtureOfRow:
    """The mixture over points for one row of covariates; made where it is traced.

    `params` has a leading axis over the d points, `log_weights` (d,) are the logarithms of their weights, and `z` is (covariates,)
    or empty.
    """

    model: Model
    params: PyTree
    log_weights: Float[Array, " d"]
    z: tuple[PyTree, ...]

    def _mean(self, function: Callable[[PyTree], Any]) -> Any:
        """Weighted means over the points; a point of weight zero does not count, whatever its number."""
        weights = jnp.exp(self.log_weights)
        numbers = jax.vmap(function)(self.params)
        return jax.tree.map(lambda x: jnp.sum(jnp.where(weights == 0, 0.0, weights * x)), numbers)

    def tails(self, y: Array) -> tuple[Array, Array]:
        """G(y) and 1 − G(y)."""
        return self._mean(lambda params: tails_of(self.model, params, y, self.z))

    def log_density(self, y: PyTree) -> Float[Array, ""]:
        """log Σ w_d p(y; θ_d)."""
        terms = jax.vmap(lambda params: term_of(self.model, params, y, self.z))(self.params)
        counted = self.log_weights != -jnp.inf
        return jax.scipy.special.logsumexp(jnp.where(counted, self.log_weights + terms, -jnp.inf))

    def mean(self) -> Float[Array, ""]:
        """The mean of y."""
        return self._mean(lambda params: jnp.asarray(call_user(self.model.mean, (params, *self.z), "mean")))  # type: ignore[arg-type]

    def quantile(self, level: Array) -> Float[Array, ""]:
        """The least y with G(y) ≥ level."""
        dtype, model = self.log_weights.dtype, self.model
        missing = jnp.any(jnp.isnan(self.log_weights))
        if model.quantile is not None:
            each = jax.vmap(lambda params: quantile_of(model, params, level, self.z, dtype))(self.params)
            if each.shape[0] == 1:  # whole numbers of a failed fit would not be NaN by themselves
                return jnp.where(missing, jnp.nan, each[0])
            counted = self.log_weights > -jnp.inf
            low = jnp.min(each, where=counted, initial=jnp.inf)
            high = jnp.max(each, where=counted, initial=-jnp.inf)
        else:
            low, high = self._support()
        missing = missing | jnp.isnan(low) | jnp.isnan(high)
        # Whole numbers beyond this have gaps of more than one.
        largest = jnp.asarray(2.0 / jnp.finfo(dtype).eps if model.discrete else jnp.finfo(dtype).max, dtype)
        low, high = jnp.clip(low, -largest, largest), jnp.clip(high, -largest, largest)

        def reaches(y: Array) -> Array:
            below, above = self.tails(y)
            return jnp.where(level > 0.5, above <= 1.0 - level, below >= level)

        return jnp.where(missing, jnp.nan, first_reaching(reaches, low, high, whole=model.discrete))

    def _support(self) -> tuple[Array, Array]:
        """The ends of the range of y, over all points."""
        dtype, support = self.log_weights.dtype, self.model.support
        if not callable(support):
            low, high = (-jnp.inf, jnp.inf) if support is None else support
            return jnp.asarray(low, dtype), jnp.asarray(high, dtype)
        ends = jax.vmap(
            lambda params: [jnp.asarray(end, dtype) for end in call_user(support, (params, *self.z), "support")]
        )(self.params)
        return jnp.min(ends[0]), jnp.max(ends[1])


@dataclass(frozen=True)
class CalibratedRow:
    """The calibrated distribution of one row: `params` are the replicates, `center` the estimate."""

    model: Model
    params: PyTree
    center: PyTree
    z: tuple[PyTree, ...]
    dtype: Any

    def _coverage(self, level: Array) -> tuple[Array, Array]:
        """C(level) and 1 − C(level)."""

        def of_replicate(params: PyTree) -> tuple[Array, Array]:
            return tails_of(self.model, self.center, quantile_of(self.model, params, level, self.z, self.dtype), self.z)

        return jax.tree.map(jnp.mean, jax.vmap(of_replicate)(self.params))

    def tails(self, y: Array) -> tuple[Array, Array]:
        """G(y) and 1 − G(y)."""
        smallest = jnp.finfo(self.dtype).eps / 2
        return self._coverage(jnp.clip(tails_of(self.model, self.center, y, self.z)[0], smallest, 1.0 - smallest))

    def quantile(self, level: Array) -> Float[Array, ""]:
        """F⁻¹(a; θ̂) with C(a) = level, by bisection of logit a."""
        widest = -jnp.log(jnp.finfo(self.dtype).eps)

        def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = ends
            middle = 0.5 * (low + high)
            below, above = self._coverage(jax.nn.sigmoid(middle))
            reached = jnp.where(level > 0.5, above <= 1.0 - level, below >= level)
            return jnp.where(reached, low, middle), jnp.where(reached, middle, high)

        low, high = jax.lax.fori_loop(0, 50, halve, (-widest, widest))
        return quantile_of(self.model, self.center, jax.nn.sigmoid(0.5 * (low + high)), self.z, self.dtype)


RowDistribution = MixtureOfRow | CalibratedRow


# --- the continuous ranked probability score --------------------------------------------------------------------------


@functools.cache
def _nodes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss and Legendre's nodes and weights on (0, 1)."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return 0.5 * (nodes + 1.0), 0.5 * weights


def crps_by_quadrature(row: MixtureOfRow, y: Array) -> Float[Array, ""]:
    """CRPS of a continuous distribution, ∫ (G(x) − 1{x ≥ y})² dx; NaN where two rules do not agree.

    Pieces go from y, from quantiles, and from values at which G jumps, to the middle between neighbours and to the ends. From a
    place c they are x = c ± s (exp(k v) − 1) over v in (0, 1), with the distance s to the nearest other place: they resolve the
    bulk of the distribution, each of several separate parts of it, and a long tail.
    """
    dtype = y.dtype
    tail = jnp.finfo(dtype).eps / 2
    levels = jnp.asarray([tail, *PLACES, 1.0 - tail], dtype)
    low, *quantiles, high = jax.vmap(row.quantile)(levels)
    observed, y = y, jnp.clip(y, low, high)  # beyond, the integrand is one
    atoms = [jnp.clip(jnp.asarray(atom, dtype), low, high) for atom in row.model.atoms]
    places = jnp.sort(jnp.stack([y, *quantiles, *atoms]))
    gaps = jnp.diff(places, prepend=low, append=high)
    positive = jnp.where(gaps > 0, gaps, jnp.inf)  # several quantiles may be one atom
    nearest = jnp.minimum(positive[:-1], positive[1:])
    # To the middle between neighbours, and to the ends.
    share = jnp.full_like(gaps, 0.5).at[jnp.array([0, -1])].set(1.0)
    reach = jnp.concatenate([-(share * gaps)[:-1], (share * gaps)[1:]])
    begin, scale = jnp.concatenate([places, places]), jnp.concatenate([nearest, nearest])
    scale = jnp.where(jnp.isfinite(scale), scale, 1.0)[:, None]
    rate = jnp.log1p(jnp.abs(reach)[:, None] / scale)

    def integral(count: int) -> Float[Array, ""]:
        nodes, weights = (jnp.asarray(array, dtype)[None] for array in _nodes(count))
        x = begin[:, None] + jnp.sign(reach)[:, None] * scale * jnp.expm1(rate * nodes)
        below, above = jax.vmap(row.tails)(x.reshape(-1))
        squares = jnp.where(x.reshape(-1) < y, below, above) ** 2
        return jnp.sum((weights * scale * rate * jnp.exp(rate * nodes)).reshape(-1) * squares)

    whole, coarse = integral(NODES), integral(COARSE_NODES)
    # What lies beyond the last quantiles where a tail is so long that it matters: some multiple of this.
    beyond = tail**2 * (high - low)
    converged = (jnp.abs(whole - coarse) <= AGREEMENT * whole) & (beyond <= 0.01 * AGREEMENT * whole)
    return jnp.where(converged, whole, jnp.nan) + jnp.abs(observed - y)


def crps_by_sum(row: MixtureOfRow, y: Array, low: Array, high: Array, width: int) -> Float[Array, ""]:
    """CRPS of whole numbers, Σ (G(k) − 1{k ≥ y})² over k in [low, high], outside which G is 0 or 1 to rounding."""
    k = low + jnp.arange(width, dtype=y.dtype)
    probabilities = jax.vmap(lambda value: jnp.exp(row.log_density(value)))(k)
    cumulative = jnp.cumsum(probabilities)
    inside = jnp.sum(jnp.where(k <= high, (cumulative - (k >= y)) ** 2, 0.0))
    # An observation outside adds one for each whole number between.
    return inside + jnp.maximum(low - y, 0.0) + jnp.maximum(y - high - 1.0, 0.0)
