"""`with_distribution_function`: the distribution function of a density of a single number, by quadrature or summation.

Each side of y is integrated outward from y. With x = y ± unit eˢ (towards an end at infinity) or x = y ± (distance to the end) /
(1 + e^{−s}), an integrand that is analytic falls off exponentially at both ends of s, whatever its scale is, and the trapezoidal
rule converges exponentially (Trefethen, L. N. and Weideman, J. A. C. 2014, The exponentially convergent trapezoidal rule, SIAM
Review 56, 385-458): the error of a rule is about the square of that of every second node. Nodes move with y, so that derivatives
of the sum are those under the integral and at its ends.
"""

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, PyTree

from fisher_jax.errors import check_count, entry_point
from fisher_jax.models.model import Model, as_model
from fisher_jax.models.programs import UserFunction, call_differentiable, jit_with_model
from fisher_jax.numerics.array_namespace import is_traced
from fisher_jax.numerics.inversion import invert

ACCURACY = 1e-8  # the estimated relative error above which a probability is not a number
NORMALISATION = 1e-6  # how far the two sides may be from one together
_REACH = 40.0  # s goes from −_REACH to _REACH: over 17 powers of ten to either side of the unit
_NEGLIGIBLE = 80.0  # a term is left out where its logarithm is less than the largest by this


@dataclass(frozen=True)
class _Tail:
    """log P(Y ≤ y), or log P(Y > y) of the upper one. Equal where the models are."""

    model: Model
    nodes: int
    upper: bool

    @property
    def user_function(self) -> Any:
        """Where its programs are stored; see `models.programs.owner_of`."""
        return self.model.log_density

    @property
    def made_with(self) -> tuple[Any, ...]:
        """What else it is made of."""
        return self.model.declarations, self.model.function_keys, self.model.discrete, self.nodes, self.upper

    def ends(self, params: PyTree, *z: PyTree) -> tuple[Any, Any]:
        """The ends of the support."""
        support: Any = self.model.support
        if callable(support):
            support = support(params, *z)
        return (-math.inf, math.inf) if support is None else support

    def __call__(self, params: PyTree, y: PyTree, *z: PyTree) -> Array:
        if is_traced(params, y, z):
            return self.evaluate(params, y, *z)
        return _compiled_tail(self.model, self.nodes, self.upper, params, y, *z)

    def evaluate(self, params: PyTree, y: PyTree, *z: PyTree) -> Array:
        """Its value, as a part of a program."""
        if jnp.shape(y) != ():
            raise ValueError(
                f"a distribution function is that of a single number, but y has shape {jnp.shape(y)}. Give the density of a "
                "single number, or use the log-density alone."
            )
        dtype = jnp.result_type(float, *jax.tree.leaves(params))
        y, low, high = (jnp.asarray(x, dtype) for x in (y, *self.ends(params, *z)))
        point = jnp.floor(y) if self.model.discrete else y
        # A count may be the lower end itself.
        below = (point < low) | (point == -jnp.inf) if self.model.discrete else point <= low
        above = point >= high
        inner = jnp.where(jnp.isfinite(low), jnp.where(jnp.isfinite(high), 0.5 * (low + high), low + 1.0), high - 1.0)
        inner = jnp.where(jnp.isfinite(inner), inner, 0.0)
        inner = jnp.clip(jnp.floor(inner), low, high) if self.model.discrete else inner
        point = jnp.where(below | above, inner, point)

        def log_density(x: Array) -> Array:
            return call_differentiable(self.model.log_density, (params, x, *z), "log_density")

        by = _summed if self.model.discrete else integrated
        value = _chosen(*by(log_density, point, low, high, self.nodes), upper=self.upper)
        impossible, certain = (above, below) if self.upper else (below, above)
        value = jnp.where(impossible, -jnp.inf, jnp.where(certain, 0.0, value))
        return jnp.where(jnp.isnan(y), jnp.nan, value)


@functools.partial(jit_with_model, static_argnums=(0, 1, 2), level=0)
def _compiled_tail(model: Model, nodes: int, upper: bool, params: PyTree, y: PyTree, *z: PyTree) -> Array:
    return _Tail(model, nodes, upper).evaluate(params, y, *z)


def _chosen(value: Float[Array, "2"], right: Bool[Array, "2"], *, upper: bool) -> Array:
    """One of two probabilities, the larger from the smaller; NaN where they are not known to be right."""
    (lower, higher), (lower_right, higher_right) = value, right
    half = -math.log(2.0)
    by_lower = lower_right & jnp.where(higher_right, lower <= higher, lower < half)
    by_higher = higher_right & jnp.where(lower_right, higher < lower, higher < half)
    complete = jnp.abs(jnp.expm1(jnp.logaddexp(lower, higher))) < NORMALISATION
    valid = jnp.where(lower_right & higher_right, complete, by_lower | by_higher)
    itself, direct, other = (higher, by_higher, lower) if upper else (lower, by_lower, higher)
    from_other = jnp.log1p(-jnp.exp(jnp.where(direct | (other >= 0), -1.0, other)))
    return jnp.where(valid, jnp.where(direct, itself, from_other), jnp.nan)


def _log_sums(
    log_density: Any, x: Float[Array, "2 n"], log_weights: Array, counted: Array, inside: Array
) -> tuple[Float[Array, "2"], Float[Array, "2 n"]]:
    """log Σ weight · density of either side over the nodes that are counted, and the logarithms of the terms.

    Terms that are negligible have a node inside in their place: the derivatives of a density need not be finite far out.
    """

    def log_terms(x: Array) -> Array:
        return jax.vmap(log_density)(x.ravel()).reshape(x.shape) + log_weights

    terms = lax.stop_gradient(jnp.where(counted, log_terms(lax.stop_gradient(jnp.where(counted, x, inside))), -jnp.inf))
    largest = jnp.max(terms, axis=1, keepdims=True)
    largest = jnp.where(jnp.isfinite(largest), largest, 0.0)
    relevant = terms > largest - _NEGLIGIBLE
    each = log_terms(jnp.where(relevant, x, inside)) - largest
    total = jnp.sum(jnp.where(relevant, jnp.exp(jnp.where(relevant, each, 0.0)), 0.0), axis=1)
    some = jnp.any(relevant, axis=1)
    value = jnp.where(some, largest[:, 0] + jnp.log(jnp.where(some, total, 1.0)), -jnp.inf)
    return jnp.where(jnp.any(jnp.isnan(terms), axis=1), jnp.nan, value), terms


def integrated(
    log_density: Any, y: Array, low: Array, high: Array, nodes: int
) -> tuple[Float[Array, "2"], Bool[Array, "2"]]:
    """The logarithms of the integrals of a density over both sides of y, and whether each is right by its estimated error."""
    s = jnp.asarray(np.linspace(-_REACH, _REACH, nodes), y.dtype)[None, :]
    log_step = math.log(2.0 * _REACH / (nodes - 1))
    # The scale on which the density changes at y; where it is unknown, one.
    at, slope = lax.stop_gradient(y), jax.grad(log_density)
    rate, bend = jax.jvp(slope, (at,), (jnp.ones_like(at),))
    rate = lax.stop_gradient(rate * rate + jnp.abs(bend))
    usable = jnp.isfinite(rate) & (rate > 0)
    log_distance = s - 0.5 * jnp.log(jnp.where(usable, rate, 1.0))
    sign, end = jnp.asarray([[-1.0], [1.0]], y.dtype), jnp.stack([low, high])[:, None]
    bounded = jnp.isfinite(end)
    width = jnp.where(bounded, sign * (jnp.where(bounded, end, 0.0) - y), 1.0)
    x = y + sign * jnp.where(bounded, width * jax.nn.sigmoid(s), jnp.exp(log_distance))
    jacobian = jnp.log(width) + jax.nn.log_sigmoid(s) + jax.nn.log_sigmoid(-s)
    log_weights = jnp.where(bounded, jacobian, log_distance) + log_step
    value, terms = _log_sums(log_density, x, log_weights, jnp.isfinite(x) & (sign * (end - x) > 0), y)
    fine, coarse = (jax.scipy.special.logsumexp(part, axis=1) for part in (terms, terms[:, ::2] + math.log(2.0)))
    # Nothing may remain beyond the outermost nodes either.
    cut = jnp.maximum(terms[:, 0], terms[:, -1]) > fine + math.log(ACCURACY)
    empty = fine == -jnp.inf
    error = jnp.where(empty, 0.0, jnp.expm1(jnp.where(empty, 0.0, coarse - fine)) ** 2)
    return value, (error < ACCURACY) & ~cut


def _summed(
    log_density: Any, y: Array, low: Array, high: Array, terms: int
) -> tuple[Float[Array, "2"], Bool[Array, "2"]]:
    """The logarithms of the sums over counts up to y and above, and whether the last term of each is negligible."""
    k = jnp.arange(terms, dtype=y.dtype)
    x = jnp.stack([y - k, y + 1.0 + k])
    value, each = _log_sums(log_density, x, jnp.zeros_like(x), (x >= low) & (x <= high), y)
    return value, each[:, -1] + math.log(terms) < value + math.log(ACCURACY)


@dataclass(frozen=True)
class _Quantile:
    """The least y whose probability reaches a uniform number. Equal where the models are."""

    lower: _Tail
    higher: _Tail

    @property
    def user_function(self) -> Any:
        """Where its programs are stored; see `models.programs.owner_of`."""
        return self.lower.user_function

    @property
    def made_with(self) -> tuple[Any, ...]:
        """What else it is made of."""
        return self.lower.made_with

    def __call__(self, uniform: ArrayLike, params: PyTree, *z: PyTree) -> Array:
        if is_traced(uniform, params, z):
            return self.evaluate(uniform, params, *z)
        return _compiled_quantile(self.lower.model, self.lower.nodes, uniform, params, *z)

    def evaluate(self, uniform: ArrayLike, params: PyTree, *z: PyTree) -> Array:
        """The quantile, as a part of a program."""
        low, high = self.lower.ends(params, *z)
        discrete = self.lower.model.discrete
        return invert(self.lower, self.higher, uniform, params, *z, low=low, high=high, discrete=discrete)


@functools.partial(jit_with_model, static_argnums=(0, 1), level=0)
def _compiled_quantile(model: Model, nodes: int, uniform: ArrayLike, params: PyTree, *z: PyTree) -> Array:
    return _Quantile(*(_Tail(model, nodes, upper) for upper in (False, True))).evaluate(uniform, params, *z)


@entry_point
def with_distribution_function(
    model: Model | UserFunction, *, support: tuple[float, float] | UserFunction | None = None, nodes: int = 513
) -> Model:
    """A model with `log_cdf`, `log_survival` and `quantile` from its log-density of a single number.

    log P(Y ≤ y) is that of an integral of the density from the lower end of the support to y, log P(Y > y) of one from y to the
    upper end, each accurate where it is small; of a discrete model they are sums.

    Parameters
    ----------
    model : Model or callable
        A model of single numbers y, or its log-density, which must be normalised. What the model has of the three functions is
        kept.
    support : pair of numbers, or callable, optional
        The ends of the interval that y lies in, as for `Model`; by default those of the model, or the whole line. A density that
        jumps to zero inside these, or has a kink there, is not integrated accurately.
    nodes : int
        Nodes of the quadrature on each side of y, at least 65; of a discrete model how many counts are summed on each side.

    Returns
    -------
    Model
        The same model with these functions and its support. They can be differentiated twice, in y and in the parameters.

    Raises
    ------
    ValueError
        If the model is of dependent data, or `nodes` is less than 65.

    Notes
    -----
    A probability is NaN where it is not known to a relative error of 1e-8: where a rule of half as many nodes disagrees, or both
    sides do not sum to one within 1e-6 (a density that is not normalised, or a peak so narrow beside its distance from y that
    nodes miss it). Where y lies so far out that only the nearer side can be integrated, the other is one minus it.

    A call takes four times `nodes` evaluations of the density; a quantile, by bisection, 64 such calls. Families have their own
    distribution functions, which are faster and accurate to rounding.

    Examples
    --------
    A density of which nothing else is known, hyperbolic secant:

    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> def log_density(params, y):
    ...     z = 0.5 * jnp.pi * (y - params["loc"])
    ...     return -jnp.logaddexp(z, -z)
    >>> model = fj.with_distribution_function(log_density)
    >>> print(f"{jnp.exp(model.log_cdf({'loc': 0.0}, -1.0)):.4f}")
    0.1305
    >>> print(f"{model.quantile(0.75, {'loc': 0.0}):.4f}")
    0.5611
    """
    model = as_model(model)
    check_count(nodes, 65, "nodes")
    if model.is_dependent:
        raise ValueError(
            "the terms of a dependent model are densities of one value given those before, of all data at once. Give the density "
            "of one observation."
        )
    base = model if support is None else dataclasses.replace(model, support=support)
    lower, higher = (_Tail(base, nodes | 1, upper) for upper in (False, True))
    return dataclasses.replace(
        base,
        log_cdf=base.log_cdf or lower,
        log_survival=base.log_survival or higher,
        quantile=base.quantile or _Quantile(lower, higher),
    )
