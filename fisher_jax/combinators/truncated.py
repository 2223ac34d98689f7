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
    Limited,
    Part,
    as_floats,
    base_of,
    check_limits,
    combined,
    names_of_limits,
    within_link,
)
from fisher_jax.errors import entry_point
from fisher_jax.models.distribution_function import integrated
from fisher_jax.models.linked import LinkedModel
from fisher_jax.models.model import Model, check_distribution
from fisher_jax.models.probabilities import larger_from_smaller, log_sum
from fisher_jax.numerics.inversion import invert_level
from fisher_jax.numerics.stable_functions import log_complement

NODES = 513  # of a quadrature, on each side of the median; half of them are not enough for a normal tail
MOST_COUNTS = 4096


class _Windowed(Limited):
    """A function of a model made from `base` by a window."""

    def between(self, params: PyTree, low: Any, high: Any, *z: PyTree) -> Array:
        """log P(low < Y ≤ high) of the base model."""
        return self.base.log_probability(params, low, high, *self.covariates(z))

    def log_window(self, params: PyTree, *z: PyTree) -> Array:
        """log P(low < Y ≤ high) of the base model and this window."""
        low, high = self.limits(params)
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
        (y,), (low, high) = as_floats(params, y), self.limits(params)
        inside = self.contains(y, low, high)
        window = self.log_window(params, *z)
        # Nothing is divided by the probability of a window that has none.
        value = self.of_base("log_density", params, y, z=z) - jnp.where(window > -jnp.inf, window, jnp.nan)
        return jnp.where(inside | jnp.isnan(window), value, jnp.where(jnp.isnan(y), jnp.nan, -jnp.inf))

    def contains(self, y: Any, low: Any, high: Any) -> Any:
        """Whether y lies in the window, to which the lower limit belongs where nothing has its probability."""
        return ((y > low) if self.base.discrete else (y >= low)) & (y <= high)

    def log_probability(self, params: PyTree, low: Any, high: Any, *z: PyTree) -> Array:
        first, last = self.limits(params)
        begin, end = jnp.maximum(low, first), jnp.minimum(high, last)
        # An interval outside the window is empty; one whose ends are in the wrong order stays so.
        begin = jnp.where(low > high, low, jnp.minimum(begin, end))
        end = jnp.where(low > high, high, end)
        return self.between(params, begin, end, *z) - self.between(params, first, last, *z)

    def explain(self, params: PyTree, y: PyTree, *z: PyTree) -> str:
        """That an observation lies outside the window."""
        low, high = (float(limit) for limit in self.limits(params))
        if not low < high:
            return f"whose window ({low:g}, {high:g}] is empty"
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
    """log F(y) and log S(y) within the window."""
    low, high = part.limits(params)
    (y,) = as_floats(params, y)
    place = jnp.clip(y, low, high)
    whole = part.between(params, low, high, *z)
    below, above = part.between(params, low, place, *z), part.between(params, place, high, *z)
    return larger_from_smaller(below - whole, above - whole)


@dataclass(frozen=True)
class _Tail(Part):
    """log F of the base model, or log S where `upper`."""

    upper: bool

    def __call__(self, params: PyTree, y: ArrayLike, *z: PyTree) -> Array:
        return self.base_tails(params, y, *z)[int(self.upper)]


class _Quantile(_Windowed):
    """The y at which the base has the level F(low) + u P(window), of which both logarithms are given: F(low) may round to one."""

    def __call__(self, uniform: ArrayLike, params: PyTree, *z: PyTree) -> Array:
        low, high = self.limits(params)
        (uniform,) = as_floats(params, uniform)
        whole, lower, higher = self.between(params, low, high, *z), _Tail(self.base, False), _Tail(self.base, True)
        level = log_sum(lower(params, low, *z), jnp.log(uniform) + whole)
        rest = log_sum(higher(params, high, *z), jnp.log1p(-uniform) + whole)
        first, last = _Support(self.base, self.low, self.high)(params, *z)
        discrete = self.base.discrete
        return invert_level(lower, higher, level, rest, params, *z, low=first, high=last, discrete=discrete)


class _Sample(_Quantile):
    """A draw by inversion."""

    def __call__(self, key: Array, params: PyTree, *z: PyTree) -> Array:  # type: ignore[override]
        dtype = jnp.result_type(float, *jax.tree.leaves(params))
        uniform = jax.random.uniform(key, (), dtype, minval=jnp.finfo(dtype).tiny)
        return super().__call__(uniform, params, *z)


class _Mean(_Quantile):
    """The median m + ∫ S(y) dy above it − ∫ F(y) dy below it, by quadrature; NaN where that is not accurate, as of no mean."""

    def __call__(self, params: PyTree, *z: PyTree) -> Array:  # type: ignore[override]
        # The derivatives of the two integrals by m cancel.
        middle = jax.lax.stop_gradient(super().__call__(0.5, params, *z))
        low, high = as_floats(params, *_Support(self.base, self.low, self.high)(params, *z))

        def log_tail(y: Array) -> Array:
            return jnp.where(y < middle, *_log_tails(self, params, y, *z))

        (below, above), is_right = integrated(log_tail, middle, low, high, NODES)
        return jnp.where(jnp.all(is_right), middle + jnp.exp(above) - jnp.exp(below), jnp.nan)


class _MeanOfCounts(_Windowed):
    """From the sum of y p(y) over the window, or that of the whole without what lies below it, whichever has an end."""

    def values(self) -> np.ndarray | None:
        """The counts that are summed; None where they are not known, or too many."""
        support = self.base.support
        first = support[0] if isinstance(support, tuple) else -np.inf
        if isinstance(self.high, float):
            ends = max(first, np.floor(self.low) + 1.0 if isinstance(self.low, float) else first), np.floor(self.high)
        else:
            ends = first, np.floor(self.low) if isinstance(self.low, float) else first - 1.0
        is_short = not isinstance(self.low, str) and not isinstance(self.high, str) and ends[1] - ends[0] < MOST_COUNTS
        return np.arange(ends[0], ends[1] + 1.0) if is_short and np.isfinite(ends[0]) else None

    def __call__(self, params: PyTree, *z: PyTree) -> Array:
        (y,) = as_floats(params, self.values())
        total = jnp.sum(y * jnp.exp(jax.vmap(lambda y: self.of_base("log_density", params, y, z=z))(y)))
        inside = total if self.high is not None else self.of_base("mean", params, z=z) - total
        return inside * jnp.exp(-self.between(params, *self.limits(params), *z))


def _mean(model: Model, low: Any, high: Any) -> Any:
    if not model.discrete:
        return _Mean(model, low, high)
    mean = _MeanOfCounts(model, low, high)
    return mean if mean.values() is not None and (high is not None or model.mean is not None) else None


class _Support(_Windowed):
    def __call__(self, params: PyTree, *z: PyTree) -> tuple[Any, Any]:
        support: Any = self.base.support
        ends = (-jnp.inf, jnp.inf) if support is None else support
        if callable(support):
            ends = self.of_base("support", params, z=z)
        low, high = self.limits(params)
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
        A family where `model` is one. Its distribution, survival and quantile functions, mean, support and draws are those of what
        is observed. The mean is by quadrature, NaN where that is not accurate; of counts by a sum, where the window or what lies
        below it holds few values and limits are numbers (else there is none).

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

    Observations from one tail determine the parameters poorly. Of a normal distribution with a window above its mean the likelihood
    may have no maximum: it increases as `loc` goes to −∞ and `scale` to ∞, towards that of an exponential distribution, and the fit
    ends with the boundary status.

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
        sample=_Sample(*arguments),
        quantile=_Quantile(*arguments),
        mean=_mean(*arguments),
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
