"""`truncated`: only values inside a window are observed, and those outside leave no trace.

    log p(y) − log P(low < Y ≤ high)    for low < y ≤ high

A censored observation of such a model contributes P(its interval within the window) / P(window).
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from fisher_jax.combinators.censored import is_censored, keep_outermost
from fisher_jax.combinators.combined import (
    Density,
    Limit,
    Part,
    as_floats,
    base_of,
    check_limits,
    combined,
    limit_of,
    names_of_limits,
    takes_covariates,
    within_link,
)
from fisher_jax.errors import entry_point
from fisher_jax.models.linked import LinkedModel
from fisher_jax.models.model import Model, check_distribution
from fisher_jax.models.probabilities import LOG_HALF, log_sum, log_tails
from fisher_jax.numerics.stable_functions import log_complement

NEAR_ONE = 0.99  # a level above which quantiles are found from the survival function: 1 − u has lost digits
DOUBLINGS, HALVINGS = 64, 64


@dataclass(frozen=True)
class _Windowed(Part):
    """A function of a model made from `base` by a window."""

    low: Limit
    high: Limit

    def window(self, params: PyTree) -> tuple[Any, Any]:
        """The limits as numbers."""
        return limit_of(self.low, params, -jnp.inf), limit_of(self.high, params, jnp.inf)

    def between(self, params: PyTree, low: Any, high: Any, *z: PyTree) -> Array:
        """log P(low < Y ≤ high) of the base model."""
        return self.base.log_probability(params, low, high, *(z if takes_covariates(self.base) else ()))

    def log_window(self, params: PyTree, *z: PyTree) -> Array:
        """log P(low < Y ≤ high) of the base model and this window."""
        low, high = self.window(params)
        support = self.base.support
        if self.base.discrete and isinstance(support, tuple) and self.low == support[0] and self.high is None:
            # Counts without the first, as a rule zero: a density in place of a distribution function, which for some families
            # is an incomplete beta or gamma function, a hundred times as long a program.
            (first,) = as_floats(params, low)
            return log_complement(self.of_base("log_density", params, first, z=z))
        return self.between(params, low, high, *z)


class _Truncated(_Windowed, Density):
    combinator = "truncated"

    def __call__(self, params: PyTree, y: ArrayLike, *z: PyTree) -> Array:
        (y,), (low, high) = as_floats(params, y), self.window(params)
        inside = self.contains(y, low, high)
        value = self.of_base("log_density", params, y, z=z) - self.log_window(params, *z)
        return jnp.where(inside, value, jnp.where(jnp.isnan(y), jnp.nan, -jnp.inf))

    def contains(self, y: Any, low: Any, high: Any) -> Any:
        """Whether y lies in the window, to which the lower limit belongs where nothing has its probability."""
        return ((y > low) if self.base.discrete else (y >= low)) & (y <= high)

    def log_probability(self, params: PyTree, low: Any, high: Any, *z: PyTree) -> Array:
        first, last = self.window(params)
        begin, end = jnp.maximum(low, first), jnp.minimum(high, last)
        # An interval outside the window is empty; one whose ends are in the wrong order stays so.
        begin = jnp.where(low > high, low, jnp.minimum(begin, end))
        end = jnp.where(low > high, high, end)
        return self.between(params, begin, end, *z) - self.between(params, first, last, *z)

    def explain(self, params: PyTree, y: PyTree, *z: PyTree) -> str:
        """That an observation lies outside the window."""
        low, high = (float(limit) for limit in self.window(params))
        value = np.asarray(y)
        if value.ndim == 0 and not np.isnan(value) and not self.contains(value, low, high):
            return f"which is {float(value):g}, outside the window ({low:g}, {high:g}] of what can be observed"
        return self.base.explain(params, y, *z)


class _LogCdf(_Windowed):
    def __call__(self, params: PyTree, y: ArrayLike, *z: PyTree) -> Array:
        return _log_tails(self, params, y, *z)[0]


class _LogSurvival(_Windowed):
    def __call__(self, params: PyTree, y: ArrayLike, *z: PyTree) -> Array:
        return _log_tails(self, params, y, *z)[1]


def _log_tails(part: _Windowed, params: PyTree, y: ArrayLike, *z: PyTree) -> tuple[Array, Array]:
    """log F(y) and log S(y) within the window; the larger of the two from the smaller, so that it is exact near zero."""
    low, high = part.window(params)
    (y,) = as_floats(params, y)
    place = jnp.clip(y, low, high)
    whole = part.between(params, low, high, *z)
    below, above = part.between(params, low, place, *z) - whole, part.between(params, place, high, *z) - whole
    is_low = below < LOG_HALF
    survival = jnp.where(is_low, log_complement(jnp.where(is_low, below, -1.0)), above)
    cdf = jnp.where(is_low, below, log_complement(jnp.where(is_low, -1.0, above)))
    return cdf, survival


class _Quantile(_Windowed):
    """The base's quantile of the level F(low) + u P(window); in its upper tail by bisection of the survival function.

    There F(low) rounds to one. The derivative is that of a step of Newton's method at the solution.
    """

    def __call__(self, uniform: ArrayLike, params: PyTree, *z: PyTree) -> Array:
        low, high = self.window(params)
        (uniform,) = as_floats(params, uniform)
        whole = self.between(params, low, high, *z)
        covariates = z if takes_covariates(self.base) else ()
        tails = self.base.log_cdf, self.base.log_survival
        below = log_sum(log_tails(*tails, params, low, *covariates)[0], jnp.log(uniform) + whole)
        above = log_sum(log_tails(*tails, params, high, *covariates)[1], jnp.log1p(-uniform) + whole)
        direct = self.of_base("quantile", jnp.clip(jnp.exp(below), 0.0, NEAR_ONE), params, z=z)
        return jnp.clip(jnp.where(below < jnp.log(NEAR_ONE), direct, self._far(above, direct, params, z)), low, high)

    def _far(self, target: Array, begin: Array, params: PyTree, z: tuple[PyTree, ...]) -> Array:
        """The y beyond `begin` with log S(y) = target."""
        covariates = z if takes_covariates(self.base) else ()

        def survival(params: PyTree, y: Array) -> Array:
            return log_tails(self.base.log_cdf, self.base.log_survival, params, y, *covariates)[1]

        held, goal, first = jax.lax.stop_gradient((params, target, begin))
        middle = jax.lax.stop_gradient(self.of_base("quantile", jnp.full_like(first, 0.5), params, z=z))

        def widen(_: Any, width: Array) -> Array:
            return jnp.where(survival(held, first + width) > goal, 2.0 * width, width)

        def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            center = 0.5 * ends[0] + 0.5 * ends[1]
            is_beyond = survival(held, center) <= goal
            return jnp.where(is_beyond, ends[0], center), jnp.where(is_beyond, center, ends[1])

        width = jax.lax.fori_loop(0, DOUBLINGS, widen, jnp.maximum(first - middle, 1e-3 * (1.0 + jnp.abs(first))))
        found = jax.lax.stop_gradient(jax.lax.fori_loop(0, HALVINGS, halve, (first, first + width))[1])
        if self.base.discrete:
            return jnp.floor(found)
        slope = self.of_base("log_density", held, found, z=z) - survival(held, found)  # −∂ log S / ∂y, as a logarithm
        step = (survival(params, found) - target) / jnp.exp(jax.lax.stop_gradient(slope))
        return found + step - jax.lax.stop_gradient(step)


class _Sample(_Quantile):
    """A draw by inversion."""

    def __call__(self, key: Array, params: PyTree, *z: PyTree) -> Array:  # type: ignore[override]
        dtype = jnp.result_type(float, *jax.tree.leaves(params))
        uniform = jax.random.uniform(key, (), dtype, minval=jnp.finfo(dtype).tiny)
        return super().__call__(uniform, params, *z)


class _Support(_Windowed):
    def __call__(self, params: PyTree, *z: PyTree) -> tuple[Any, Any]:
        support: Any = self.base.support
        ends = (-jnp.inf, jnp.inf) if support is None else support
        if callable(support):
            ends = self.of_base("support", params, z=z)
        low, high = self.window(params)
        return jnp.maximum(ends[0], low), jnp.minimum(ends[1], high)


@entry_point
def truncated(model: Model, low: float | str | None = None, high: float | str | None = None) -> Model:
    """A model of observations that are seen only where they lie in a window: p(y; θ) / P(low < Y ≤ high; θ) inside, zero outside.

    Parameters
    ----------
    model : Model
        A family, a `linked` model, a `censored` one, or any model with `log_cdf` or `log_survival`.
    low, high : float or str, optional
        The window (low, high]; without one of them it has no limit on that side. A name is that of a known constant among the
        parameters, as `trials` of a binomial, for windows that differ between observations (delayed entry, a flux limit at each
        distance): a column in a formula, an entry of `given` of a linked model.

    Returns
    -------
    Model
        A family where `model` is one. Its distribution, survival and quantile functions, support and draws are those of what is
        observed. It has no mean.

    Raises
    ------
    TypeError, ValueError
        If the model has neither `log_cdf` nor `log_survival`, is dependent or has an auxiliary measurement; for limits that are no
        numbers or names, or in the wrong order.

    Notes
    -----
    An observation outside the window has log-density −∞, and the diagnosis of the fit names it. Of a discrete model `low` itself
    lies outside, so that ``truncated(families.poisson, low=0)`` is the zero-truncated Poisson distribution; of others it may be
    observed.

    ``truncated(censored(model), …)`` and ``censored(truncated(model, …))`` are the same: an observation that is censored to an
    interval contributes P(interval ∩ window) / P(window). The window of a linked model is that of its family.

    Parameters that shift the distribution out of the window and back are hardly told apart by what is left of it: of a normal
    distribution that is cut above its mean the likelihood may rise without end towards an exponential one, and a fit ends with the
    boundary status.

    Examples
    --------
    >>> import fisher_jax as fj, numpy as np
    >>> counts = np.repeat([1, 2, 3, 4], [20, 12, 5, 3])
    >>> fit = fj.fit(fj.truncated(fj.families.poisson, low=0), None, counts)
    >>> print(f"{fit.params['rate']:.4f}")
    1.2829

    Durations that were seen only if they exceeded the time of entry, which differs:

    >>> model = fj.linked(
    ...     fj.truncated(fj.families.exponential, low="entry"), lambda params, z: {"rate": params["rate"], "entry": z["entry"]}
    ... )
    >>> given = {"entry": np.array([0.0, 1.0, 2.0, 1.0])}
    >>> fit = fj.fit(model, {"rate": 1.0}, np.array([1.0, 3.0, 5.0, 2.0]), given=given)
    >>> print(f"{fit.params['rate']:.4f}")  # the number divided by the total time after entry
    0.5714
    """
    model, (low, high) = base_of(model, "truncated"), check_limits(low, high)
    if isinstance(model, LinkedModel):
        return within_link(
            model, lambda family: truncated(family, low, high), limits=(low, high), initial=model.initial
        )
    if is_censored(model):
        return keep_outermost(model, lambda base: truncated(base, low, high))
    check_distribution(model, "truncated")
    arguments = model, low, high
    has_names = isinstance(low, str) or isinstance(high, str)
    return combined(
        _Truncated(*arguments),
        added=names_of_limits(low, high),
        sample=None if model.quantile is None else _Sample(*arguments),
        quantile=None if model.quantile is None else _Quantile(*arguments),
        initial=model.initial,
        log_cdf=_LogCdf(*arguments),
        log_survival=_LogSurvival(*arguments),
        support=_Support(*arguments) if has_names or callable(model.support) else _fixed_support(model, low, high),
        discrete=model.discrete,
    )


def _fixed_support(model: Model, low: Any, high: Any) -> tuple[float, float]:
    """The part of the support in the window."""
    support: Any = model.support
    first, last = (-np.inf, np.inf) if support is None else support
    ends = max(first, -np.inf if low is None else low), min(last, np.inf if high is None else high)
    if not ends[0] < ends[1]:
        raise ValueError(
            f"the window ({low}, {high}] holds nothing of the support of {model!r}, ({first:g}, {last:g})."
        )
    return ends
