"""`integral_transform`: the probability integral transform, which all of checking rests on.

Under the model u = F(Y; θ, z) is uniform, whatever the covariates, so that observations of different distributions are compared on
one scale (Rosenblatt 1952); for dependent data u_t = F(y_t | y_1, …, y_{t−1}) is, and these are independent. An observation stands
for an interval of u: from P(Y < y) to P(Y ≤ y) where the distribution has a jump at y, from F(time) to 1 where y is known only to
exceed a time. Its ends are kept as log u and log(1 − u), since a residual far in a tail needs the digits of the smaller.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.errors import call_user
from fisher_jax.fitting.map_fits import with_data
from fisher_jax.fitting.result import Fit, origin_of
from fisher_jax.inference.row_distributions import check_distribution, log_tails_of, logit_by_inversion
from fisher_jax.latent.grouped import Grouped
from fisher_jax.models.auxiliary import without_auxiliary
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.model import Model
from fisher_jax.numerics.stable_functions import log_complement

_EQUAL = 1e-3  # of logit u: by inversion of the quantile function a wider step is a jump of F


class Transform(NamedTuple):
    """The interval of u that each observation stands for, (*b, n): log u and log(1 − u) at its lower and its upper end.

    The ends are equal where the distribution is continuous. NaN where an observation does not count.
    """

    log_low: Any
    log_high: Any
    log_above_low: Any
    log_above_high: Any

    @property
    def is_wide(self) -> Any:
        """Which observations stand for more than one number."""
        with np.errstate(invalid="ignore"):
            return (self.log_low < self.log_high) | (self.log_above_high < self.log_above_low)

    def at(self, position: Any) -> tuple[Float[np.ndarray, "*b n"], Float[np.ndarray, "*b n"]]:
        """log u and log(1 − u) at a position in each interval, from 0 at its lower end to 1 at its upper end.

        Both are logarithms of sums of positive terms, so that neither tail loses digits.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            before, after = np.log1p(-np.asarray(position)), np.log(position)
            log_u = np.logaddexp(before + self.log_low, after + self.log_high)
            log_above = np.logaddexp(before + self.log_above_low, after + self.log_above_high)
        return np.where(self.is_wide, log_u, self.log_low), np.where(self.is_wide, log_above, self.log_above_low)

    def logits(self) -> Float[np.ndarray, "*b n"]:
        """logit u in the middle of each interval."""
        log_u, log_above = self.at(0.5)
        with np.errstate(invalid="ignore"):
            return log_u - log_above


def integral_transform(fit: Fit) -> Transform:
    """The transform of the data of a fit, or of each of many, at its estimate; NaN for rows of weight zero."""
    model, dataset = origin_of(fit)
    check_transform(model, dataset)
    ends = with_data(fit, _OfFit())
    weights = None if dataset.weights is None else np.asarray(dataset.weights)
    counts = True if weights is None else weights > 0
    return Transform(*(np.where(counts, np.asarray(end, float), np.nan) for end in ends))


def check_transform(model: Model, dataset: Dataset) -> None:
    """Raise where the model has no distribution function by which the data could be transformed."""
    of_rows, _ = without_auxiliary(model, dataset.data)
    if of_rows.log_cdf is not None or of_rows.log_survival is not None:
        return
    if isinstance(dataset.data, Grouped) or of_rows.with_modes is not None:
        raise ValueError(
            "the observations are groups of rows with latent effects in common, which have no distribution function of one number. "
            "predicted_effects and check_laplace look at such a fit."
        )
    if of_rows.parts:
        raise ValueError(
            f"the model is a joint one. Take a part of the fit, as in fit.part({next(iter(of_rows.parts))!r})."
        )
    if of_rows.is_dependent:
        raise ValueError(
            "the model has no conditional distribution function. Give dependent(…, log_cdf=function of params and data): "
            "log P(Y_t ≤ y_t given the values before), one for each term."
        )
    if of_rows.parts:
        raise ValueError(
            "the observations of a joint model are of several kinds. Fit the model of each part by itself."
        )
    check_distribution(of_rows)


@dataclass(frozen=True)
class _OfFit:
    """The transform of one fit and its data, for `map_fits.with_data`."""

    def __call__(self, fit: Fit, model: Model, dataset: Dataset) -> Transform:
        params, given = fit.layout.assemble(fit.values), () if dataset.given is None else (dataset.given,)
        model, data = without_auxiliary(model, dataset.data)
        if model.is_dependent:
            return _of_series(model, params, data, given)
        return jax.vmap(lambda y, *z: _of_observation(model, params, y, z, fit.layout.dtype))(data, *given)


def _of_series(model: Model, params: PyTree, data: PyTree, given: tuple[PyTree, ...]) -> Transform:
    """The transform of each term of a dependent model."""
    arguments = params, data, *given
    terms = jnp.asarray(call_user(model.log_density, arguments, "terms"))
    log_cdf, log_survival = (
        None if function is None else jnp.asarray(call_user(function, arguments, name))
        for function, name in ((model.log_cdf, "log_cdf"), (model.log_survival, "log_survival"))
    )
    log_cdf = log_complement(log_survival) if log_cdf is None else log_cdf  # type: ignore[arg-type]
    log_survival = log_complement(log_cdf) if log_survival is None else log_survival
    if log_cdf.shape != terms.shape or log_survival.shape != terms.shape:
        raise ValueError(
            f"log_cdf and log_survival of a dependent model must return a value for each term, of shape {terms.shape}, but "
            f"returned {log_cdf.shape} and {log_survival.shape}."
        )
    if model.discrete:
        return _with_jumps(log_cdf, log_survival, terms)
    return Transform(log_cdf, log_cdf, log_survival, log_survival)


def _of_observation(model: Model, params: PyTree, y: PyTree, z: tuple[PyTree, ...], dtype: Any) -> Transform:
    """The transform of one observation: a number, or one of which an interval is known, as `censored` has it."""
    names = set(y) if isinstance(y, dict) else set()
    ends, exact = model.known_interval(params, y, *z), y
    if ends is not None:
        low, high = (jnp.asarray(end, dtype) for end in ends)
    elif names == {"time", "event"}:
        low = jnp.asarray(y["time"], dtype)
        high = jnp.where(y["event"] == 1, low, jnp.where(y["event"] == 0, jnp.inf, jnp.nan))
        exact = {"time": low, "event": jnp.ones((), dtype)}
    elif names == {"low", "high"}:
        low, high = jnp.asarray(y["low"], dtype), jnp.asarray(y["high"], dtype)
        value = jnp.where(low == high, low, 1.0)
        exact = {"low": value, "high": value}
    else:
        leaves = jax.tree.leaves(y)
        if len(leaves) != 1 or jnp.shape(leaves[0]) != ():
            shapes = ", ".join(str(jnp.shape(leaf)) for leaf in leaves)
            raise ValueError(
                f'an observation must be one number, {{"time": …, "event": …}} or {{"low": …, "high": …}}, but it has shape '
                f"{shapes}: it has no order."
            )
        return of_number(model, params, jnp.asarray(leaves[0], dtype), z)
    # (low, high] of u = F(Y), or the jump at a value that is known.
    at_value = of_number(model, params, jnp.where(low == high, low, 1.0), z, exact)
    below, above = (of_number(model, params, jnp.where(jnp.isfinite(end), end, 1.0), z, exact) for end in (low, high))
    interval = Transform(
        jnp.where(low == -jnp.inf, -jnp.inf, below.log_high),
        jnp.where(high == jnp.inf, 0.0, above.log_high),
        jnp.where(low == -jnp.inf, 0.0, below.log_above_high),
        jnp.where(high == jnp.inf, -jnp.inf, above.log_above_high),
    )
    missing = jnp.where(jnp.isnan(low) | jnp.isnan(high), jnp.nan, 0.0)
    return jax.tree.map(lambda exact, between: jnp.where(low == high, exact, between) + missing, at_value, interval)


def of_number(
    model: Model, params: PyTree, y: Float[Array, ""], z: tuple[PyTree, ...], observation: PyTree = None
) -> Transform:
    """The transform of a number, or of an observation that is known to be this number."""
    if model.log_cdf is None and model.log_survival is None:
        low, high = (logit_by_inversion(model, params, y, z, below=below) for below in (True, False))
        is_jump = high - low >= _EQUAL
        middle = 0.5 * (low + high)
        low, high = jnp.where(is_jump, low, middle), jnp.where(is_jump, high, middle)
        return Transform(*(jax.nn.log_sigmoid(logit) for logit in (low, high, -low, -high)))
    log_cdf, log_survival = log_tails_of(model, params, y, z)
    if not model.discrete and not model.atoms:
        return Transform(log_cdf, log_cdf, log_survival, log_survival)
    observation = y if observation is None else observation
    log_mass = jnp.asarray(call_user(model.log_density, (params, observation, *z), "log_density"))
    if not model.discrete:
        is_atom = functools.reduce(jnp.logical_or, (y == atom for atom in model.atoms))
        log_mass = jnp.where(is_atom, log_mass, -jnp.inf)
    return _with_jumps(log_cdf, log_survival, log_mass)


def _with_jumps(log_cdf: Array, log_survival: Array, log_mass: Array) -> Transform:
    """P(Y < y) = P(Y ≤ y) − P(Y = y), whose rounding is that of the jump, and P(Y ≥ y) = P(Y > y) + P(Y = y)."""
    log_low = log_cdf + log_complement(log_mass - log_cdf)
    return Transform(log_low, log_cdf, jnp.logaddexp(log_survival, log_mass), log_survival)
