"""`censored`: observations of which only an interval is known.

log p(y) where the value y is known,    log P(low < Y ≤ high) where it is known to lie in between
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from fisher_jax.combinators.combined import (
    Density,
    Limit,
    Limited,
    Part,
    as_floats,
    base_of,
    check_limits,
    combined,
    names_of_limits,
    within_link,
)
from fisher_jax.errors import entry_point, shown
from fisher_jax.models.linked import LinkedModel
from fisher_jax.models.model import Model, check_distribution
from fisher_jax.numerics.array_namespace import is_traced, namespace, on_host

ENDS, DURATION = {"low", "high"}, {"time", "event"}
FORMS = (
    '{"low": …, "high": …}, equal where the value is known and infinite where an end is not, or {"time": …, "event": …}, event 1 '
    "where the value is known and 0 where it is known to be larger"
)

PLAIN = "Plain numbers are observations where the limits of measurement are known, censored(…, low=…, high=…)."


def _ends(data: dict[str, Any]) -> tuple[Any, Any]:
    """The ends of the interval of each observation, equal where its value is known."""
    if set(data) == DURATION:
        time, event = data["time"], data["event"]
        xp = namespace(time, event)
        return time, xp.where(event == 1, time, xp.where(event == 0, xp.inf, xp.nan))
    if set(data) == ENDS:
        return data["low"], data["high"]
    raise ValueError(f"censored observations have {', '.join(map(repr, sorted(data)))}; expected {FORMS}.")


class _Censored(Limited, Density):
    """The log-density of a value that is known, and the log-probability of an interval where that is known only."""

    combinator = "censored"

    def __call__(self, params: PyTree, y: PyTree, *z: PyTree) -> Array:
        if not isinstance(y, dict):
            return self._of_value(params, y, *z)
        if set(y) == DURATION:
            # One evaluation of one tail, where an interval takes four.
            time, event = as_floats(params, y["time"], y["event"])
            exact = self.of_base("log_density", params, time, z=z)
            return jnp.where(event == 1, exact, jnp.where(event == 0, self._beyond(params, time, *z), jnp.nan))
        low, high = as_floats(params, *_ends(y))
        is_exact = low == high
        # Where the value is not known the density is not used; at an end of the interval its derivatives are finite.
        exact = self.of_base("log_density", params, _finite(low, high), z=z)
        between = super().log_probability(params, low, high, *z)
        return jnp.where(is_exact & jnp.isfinite(low), exact, between)

    def _beyond(self, params: PyTree, y: Array, *z: PyTree) -> Array:
        """log P(Y > y)."""
        if self.base.log_survival is not None:
            return self.of_base("log_survival", params, y, z=z)
        return super().log_probability(params, y, jnp.inf, *z)

    def _of_value(self, params: PyTree, y: Any, *z: PyTree) -> Array:
        """Of a number, which stands for all beyond a limit where it has reached that."""
        if self.low is None and self.high is None:
            raise ValueError(f"censored observations are {FORMS}, but y is a plain number. {PLAIN}")
        y, low, high = as_floats(params, y, *self.limits(params))
        is_below, is_above = y <= low, y >= high
        # P(Y ≥ high): of whole numbers those from the next one on
        beyond = jnp.ceil(high) - 1.0 if self.base.discrete else high
        inside = jnp.where(is_below | is_above, _finite(low, high), y)
        value = self.of_base("log_density", params, inside, z=z)
        ends = (jnp.where(is_below, -jnp.inf, beyond), jnp.where(is_below, low, jnp.inf))
        outside = super().log_probability(params, *ends, *z)
        # Limits that are given by observation are known here only; one that is missing is not one that there is not.
        return jnp.where(low < high, jnp.where(is_below | is_above, outside, value), jnp.nan)

    def known_interval(self, params: PyTree, y: PyTree, *z: PyTree) -> tuple[Any, Any] | None:
        """Where there are limits, those of a number at or beyond one; other forms of data hold them."""
        if isinstance(y, dict):
            return None
        y, low, high = as_floats(params, y, *self.limits(params))
        beyond = jnp.ceil(high) - 1.0 if self.base.discrete else high
        is_below, is_above = y <= low, y >= high
        return (
            jnp.where(is_below, -jnp.inf, jnp.where(is_above, beyond, y)),
            jnp.where(is_below, low, jnp.where(is_above, jnp.inf, y)),
        )

    @property
    def how_to_draw(self) -> str:
        if self.low is None and self.high is None:
            return (
                "The data show which observations are censored, and not how those would have been that are not. Give the limits, "
                "censored(…, low=…, high=…), numbers or known constants of each observation."
            )
        return self.base.how_to_draw

    def explain(self, params: PyTree, y: PyTree, *z: PyTree) -> str:
        """What is wrong with an interval."""
        if not isinstance(y, dict):
            low, high = (float(limit) for limit in self.limits(params))
            if not low < high:
                return (
                    f"whose limits of measurement are {low:g} and {high:g}, of which the first must be below the second"
                )
            return self.base.explain(params, y, *z)
        low, high = (float(end) for end in _ends(y))
        if low == high:
            return self.base.explain(params, low, *z)
        if np.isnan(low) or np.isnan(high):
            return "of which an end of the interval is not a number" if set(y) == ENDS else "whose event is not 0 or 1"
        if low > high:
            return f"whose interval begins at {low:g} and ends at {high:g}, below"
        return f"whose interval ({low:g}, {high:g}] has no probability at these parameters"

    def check_data(self, data: PyTree, given: PyTree) -> None:
        """Raise for another form than those of censored observations, and for ends in the wrong order."""
        if not isinstance(data, dict):
            if self.low is None and self.high is None:
                raise ValueError(f"data is {shown(data)}; expected {FORMS}. {PLAIN}")
            return
        low, high = _ends(data)
        if is_traced((low, high)):
            return
        if "event" in data:
            event = np.asarray(data["event"])
            if not np.all((event == 0) | (event == 1) | np.isnan(event)):
                wrong = np.argwhere(~((event == 0) | (event == 1) | np.isnan(event)))[0]
                raise ValueError(
                    f"event must be 0 or 1 (1 where the value is known, 0 where it is larger); in row {wrong[0]} it is "
                    f"{event[tuple(wrong)]:g}."
                )
            return
        ends = np.asarray(low, float), np.asarray(high, float)
        if np.any(ends[0] > ends[1]):
            row = np.argwhere(ends[0] > ends[1])[0]
            raise ValueError(
                f"the interval of observation {row[0]} begins at {ends[0][tuple(row)]:g} and ends at {ends[1][tuple(row)]:g}; "
                "low must not exceed high."
            )


class _Sample(Limited):
    """A draw of the base model, moved to the limit that it lies beyond."""

    def __call__(self, key: Array, params: PyTree, *z: PyTree) -> Array:
        y = self.of_base("sample", key, params, z=z)
        return jnp.clip(y, *self.limits(params))


class _Initial(Part):
    """The base's `initial` of the values, the middles of bounded intervals and the ends of others."""

    def __call__(self, data: PyTree, *given: PyTree) -> PyTree:
        if not isinstance(data, dict):
            return self.base.initial(data, *given)  # type: ignore[misc]
        return self.base.initial(middles(*on_host(_ends(data))), *given)  # type: ignore[misc]


def middles(low: Any, high: Any) -> Any:
    """The middles of bounded intervals and the ends of others; NaN of those without an end."""
    xp = namespace(low, high)
    has_low, has_high = xp.isfinite(low), xp.isfinite(high)
    middle = 0.5 * xp.where(has_low, low, 0.0) + 0.5 * xp.where(has_high, high, 0.0)
    end = xp.where(has_low, low, xp.where(has_high, high, xp.nan))
    return xp.where(has_low & has_high, middle, end)


def _finite(low: Any, high: Any) -> Any:
    """One of the ends of an interval that is finite, where one is."""
    return jnp.where(jnp.isfinite(low), low, jnp.where(jnp.isfinite(high), high, 1.0))


def keep_outermost(model: Model, combine: Callable[[Model], Model]) -> Model:
    """Another combinator of a censored model: the censored model of what it makes of the values."""
    inner = model.log_density
    return censored(combine(inner.base), inner.low, inner.high)


def is_censored(model: Model) -> bool:
    """Whether a model is made by `censored`."""
    return isinstance(model.log_density, _Censored)


def limits_of(model: Model) -> tuple[Limit, Limit] | None:
    """The limits of a censored model, or of one with a censored family; None of others."""
    family = model.family if isinstance(model, LinkedModel) else model
    return (family.log_density.low, family.log_density.high) if is_censored(family) else None


@entry_point
def censored(model: Model, low: float | str | None = None, high: float | str | None = None) -> Model:
    """A model of observations of which some are known to lie in an interval only: right-, left- and interval-censored.

    ℓ(θ) = Σ log p(yᵢ; θ) over those whose value is known + Σ log P(lowᵢ < Y ≤ highᵢ; θ) over the others.

    Parameters
    ----------
    model : Model
        Of the values: a family, a `linked` model (its covariates come in as before), or any model with `log_cdf` or
        `log_survival`.
    low, high : float or str, optional
        The limits of measurement: a value at or beyond a limit is recorded as that limit (the Tobit model, detection limits). For
        limits that differ between observations give a name, that of a known constant among the parameters, as `trials` of a
        binomial: a column in a formula, an entry of `given` of a linked model.

    Returns
    -------
    Model
        A family where `model` is one. With `low` or `high` it has a sampler. Its quantiles, mean, support, distribution and
        survival functions are those of the values, censored or not, which is what a prediction is about.

    Raises
    ------
    TypeError, ValueError
        If the model has neither `log_cdf` nor `log_survival`, is dependent or has an auxiliary measurement; for limits that are no
        numbers or names, or in the wrong order. For data: ends in the wrong order, events that are neither 0 nor 1.

    Notes
    -----
    The data show which observations are censored, in one of three forms:

    - ``{"low": …, "high": …}``: the value lies in (low, high]; it is known where low = high, larger than `low` where `high` is
      infinite, and at most `high` where `low` is −∞. Both infinite carry no information, and add zero.
    - ``{"time": …, "event": …}``: the value is `time` where `event` is 1, and larger where it is 0, as survival data are written.
    - with `low` or `high`, plain numbers y: y ≤ low means that the value is at most `low`, y ≥ high that it is at least `high`.

    Of a discrete model low = high is P(Y = low), and (3, 5] holds 4 and 5; "from 4 to 5" is written {"low": 3, "high": 5}. "At
    least 4" is (3, ∞].

    Censoring is taken to be noninformative: given the covariates, the limits or times at which an observation would be censored do
    not depend on its value. Without `low` and `high` the data do not show at which limits the known values would have been
    censored, so that there is no sampler: the bootstrap by draws, Fisher information and coverage raise. Give the limits where they
    are known.

    Limits of an observation that are missing, or in the wrong order, make its log-density NaN, and the diagnosis of the fit names
    it.

    Examples
    --------
    Times of which the second and the fourth are known to be larger:

    >>> import fisher_jax as fj, numpy as np
    >>> data = {"time": np.array([2.0, 3.0, 5.0, 6.0]), "event": np.array([1, 0, 1, 0])}
    >>> fit = fj.fit(fj.censored(fj.families.exponential), None, data)
    >>> print(f"{fit.params['rate']:.4f}")  # events divided by the total time
    0.1250

    A measurement that shows nothing below 1:

    >>> limited = fj.censored(fj.families.logistic, low=1.0)
    >>> fit = fj.fit(limited, None, np.array([1.0, 1.0, 2.0, 1.5, 3.0, 1.0]))
    >>> print(f"{fit.params['loc']:.3f} {fit.params['scale']:.3f}")
    1.110 0.774
    """
    model, (low, high) = base_of(model, "censored"), check_limits(low, high)
    if isinstance(model, LinkedModel):
        initial = None if model.initial is None else _Initial(model)
        return within_link(model, lambda family: censored(family, low, high), limits=(low, high), initial=initial)
    check_distribution(model, "censored")
    if is_censored(model):
        raise ValueError(f"{model!r} is censored already.")
    has_limits = low is not None or high is not None
    return combined(
        _Censored(model, low, high),
        added=names_of_limits(low, high),
        sample=_Sample(model, low, high) if has_limits and model.sample is not None else None,
        initial=None if model.initial is None else _Initial(model),
        quantile=model.quantile,
        log_cdf=model.log_cdf,
        log_survival=model.log_survival,
        mean=model.mean,
        support=model.support,
        discrete=model.discrete,
    )
