"""Families of choices: yes or no, how many of a known number, which of several."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.scipy.special import digamma
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from fisher_jax.families.common import (
    Family,
    Nested,
    Params,
    Scalar,
    exceeds,
    floats,
    guess_of_count,
    not_a_count,
    of_category,
    outside_support,
    quantile_of_count,
    symmetric,
    tails_of_count,
)
from fisher_jax.families.starts import Sample, starting_values, zero_or_one
from fisher_jax.models.constraints import fixed, positive, unit_interval
from fisher_jax.numerics.autodiff_modes import differentiable_both_ways
from fisher_jax.numerics.incomplete_beta import log_beta_tails
from fisher_jax.numerics.stable_functions import (
    HALF_LOG_TWO_PI,
    log_sigmoid,
    one_minus_sigmoid,
    sigmoid,
    stirling_error,
    times_log_ratio,
)
from fisher_jax.numerics.tails import Tails, both_tails

# Bernoulli ------------------------------------------------------------------------------------------------------------


def bernoulli_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Bernoulli: y = 1 with probability p, else y = 0.

    log p(y) = y · logit − log(1 + e^{logit}).

    - `logit`: real, log(p / (1 − p)).

    Mean p.
    Information p (1 − p).
    In scipy: `scipy.stats.bernoulli(expit(logit))`.
    Start: the maximum, with half an observation added to each side: with ones only, or none, it lies at infinity.
    """
    y, logit = floats(y, params["logit"])
    outside = (y < 0) | (y > 1) | ((y > 0) & (y < 1))
    sign = 2.0 * jnp.where(outside, 0.0, y) - 1.0  # one log-sigmoid for both values, which never overflows
    return outside_support(outside, log_sigmoid(sign * logit))


def bernoulli_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    logit = floats(params["logit"])[0]
    return exceeds(uniform, one_minus_sigmoid(logit), sigmoid(logit)).astype(logit.dtype)


def bernoulli_log_cdf(params: Params, y: ArrayLike) -> Scalar:
    y, logit = floats(y, params["logit"])
    return of_category(y, 2, lambda _: log_sigmoid(-logit), upper=False)


def bernoulli_log_survival(params: Params, y: ArrayLike) -> Scalar:
    y, logit = floats(y, params["logit"])
    return of_category(y, 2, lambda _: log_sigmoid(logit), upper=True)


def bernoulli_information(params: Params) -> Nested:
    logit = floats(params["logit"])[0]
    return symmetric(("logit",), sigmoid(logit) * one_minus_sigmoid(logit))


def bernoulli_mean(params: Params) -> Scalar:
    return sigmoid(floats(params["logit"])[0])


@starting_values
def bernoulli_initial(y: ArrayLike) -> dict[str, Any]:
    s = Sample(y, zero_or_one)
    ones = s.mean() * s.size
    return s.params(logit=s.xp.log(ones + 0.5) - s.xp.log(s.size - ones + 0.5))


bernoulli = Family(
    bernoulli_log_density,
    ("logit",),
    quantile=bernoulli_quantile,
    initial=bernoulli_initial,
    information=bernoulli_information,
    log_cdf=bernoulli_log_cdf,
    log_survival=bernoulli_log_survival,
    mean=bernoulli_mean,
    support=(0.0, 1.0),
    discrete=True,
)


# Binomial -------------------------------------------------------------------------------------------------------------


def _ways_at_their_mode(y: Array, trials: Array) -> Scalar:
    """log C(n, y) + y log(y/n) + (n − y) log((n − y)/n), which is 0 at both ends."""
    edge = (y == 0) | (y == trials)
    y, trials = jnp.where(edge, 1.0, y), jnp.where(edge, 2.0, trials)
    rest = trials - y
    value = 0.5 * (jnp.log(trials) - jnp.log(y) - jnp.log(rest)) - HALF_LOG_TWO_PI
    return jnp.where(edge, 0.0, value + stirling_error(trials) - stirling_error(y) - stirling_error(rest))


def binomial_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Binomial: y = 0, …, n successes in n trials, each of probability p.

    log p(y) = log C(n, y) + y · logit − n log(1 + e^{logit}), computed in saddle-point form.

    - `logit`: real, log(p / (1 − p)).
    - `trials` n: a positive integer, a known constant that is not estimated.

    Mean n p.
    Information n p (1 − p) of `logit`.
    In scipy: `scipy.stats.binom(trials, expit(logit))`.
    No `initial`: the data do not determine `trials`, so give params, as {"logit": 0.0, "trials": 12.0}.
    """
    y, logit, trials = floats(y, params["logit"], params["trials"])
    outside = not_a_count(y) | (y > trials)
    return outside_support(outside, _binomial(jnp.where(outside, 0.0, y), logit, trials))


@jax.custom_jvp
def _binomial(y: Array, logit: Array, trials: Array) -> Scalar:
    missing, log_trials = -_beyond_mean(y, logit, trials), jnp.log(trials)
    terms = times_log_ratio(y, missing, log_trials + log_sigmoid(logit)) + times_log_ratio(
        trials - y, -missing, log_trials + log_sigmoid(-logit)
    )
    return terms + _ways_at_their_mode(y, trials)


@functools.partial(_binomial.defjvp, symbolic_zeros=True)
def _binomial_along(primals: tuple[Array, ...], tangents: tuple[Any, ...]) -> tuple[Array, Any]:
    y, logit, trials = primals
    along_y, along_logit, along_trials = tangents
    moved = jnp.zeros_like(logit)
    if not isinstance(along_logit, SymbolicZero):
        moved = _beyond_mean(y, logit, trials) * along_logit
    if not isinstance(along_y, SymbolicZero):
        moved = moved + (logit + digamma(trials - y + 1.0) - digamma(y + 1.0)) * along_y
    if not isinstance(along_trials, SymbolicZero):
        by_trials = log_sigmoid(-logit) + digamma(trials + 1.0) - digamma(trials - y + 1.0)
        moved = moved + by_trials * along_trials
    return _binomial(y, logit, trials), moved


def _beyond_mean(y: Array, logit: Array, trials: Array) -> Scalar:
    """y − n p, which is the slope by the logit, from the smaller of p and 1 − p."""
    return jnp.where(logit < 0, y - trials * sigmoid(logit), trials * one_minus_sigmoid(logit) - (trials - y))


def binomial_tails(params: Params, y: ArrayLike) -> Tails:
    _, logit, trials = floats(y, params["logit"], params["trials"])
    number = jnp.maximum(trials, 1.0)
    # P(Y ≤ k) = I_{1−p}(n − k, k + 1)
    return tails_of_count(y, lambda k: log_beta_tails(number - k, k + 1.0, -logit), logit.dtype, trials)


def binomial_log_cdf(params: Params, y: ArrayLike) -> Scalar:
    return binomial_tails(params, y)[0]


def binomial_log_survival(params: Params, y: ArrayLike) -> Scalar:
    return binomial_tails(params, y)[1]


def binomial_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    uniform, logit, trials = floats(uniform, params["logit"], params["trials"])
    success, failure = sigmoid(logit), one_minus_sigmoid(logit)
    deviation = jnp.sqrt(trials * (success * failure))
    return quantile_of_count(
        binomial_tails,
        uniform,
        {"logit": logit, "trials": trials},
        guess_of_count(uniform, trials * success, deviation, (failure - success) / jnp.maximum(deviation, 1e-3)),
        trials,
    )


def binomial_sample(key: Array, params: Params) -> Scalar:
    logit, trials = floats(params["logit"], params["trials"])
    # Of the rarer outcome: a probability near one would be rounded to one.
    fewer = jax.random.binomial(key, trials, sigmoid(-jnp.abs(logit)), (), logit.dtype)
    return jnp.where(logit < 0, fewer, trials - fewer)


def binomial_information(params: Params) -> Nested:
    logit, trials = floats(params["logit"], params["trials"])
    entry = trials * sigmoid(logit) * one_minus_sigmoid(logit)
    return symmetric(("logit",), entry, constants=("trials",))


def binomial_mean(params: Params) -> Scalar:
    logit, trials = floats(params["logit"], params["trials"])
    return trials * sigmoid(logit)


def up_to_trials(params: Params) -> tuple[float, Scalar]:
    return 0.0, floats(params["trials"])[0]


binomial = Family(
    binomial_log_density,
    ("logit", "trials"),
    sample=binomial_sample,
    quantile=binomial_quantile,
    constraints={"trials": fixed},
    information=binomial_information,
    log_cdf=binomial_log_cdf,
    log_survival=binomial_log_survival,
    mean=binomial_mean,
    support=up_to_trials,
    discrete=True,
)


# Beta-binomial --------------------------------------------------------------------------------------------------------


def beta_binomial_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Beta-binomial: y = 0, …, n successes in n trials whose probability is itself Beta(a, b), a = p c and b = (1 − p) c.

    log p(y) = log C(n, y) + log B(a + y, b + n − y) − log B(a, b), computed in saddle-point form: exact in the binomial limit
    c → ∞. The variance is n p (1 − p) (c + n) / (c + 1).

    - `probability` p: between 0 and 1, the mean of the trials' probability.
    - `concentration` c: positive; a + b of the beta distribution.
    - `trials` n: a positive integer, a known constant that is not estimated.

    Mean n p.
    Information: no closed form; enumerate 0, …, n.
    In scipy: `scipy.stats.betabinom(trials, probability * concentration, (1 - probability) * concentration)`.
    No `initial`: the data do not determine `trials`, so give params.
    """
    y, p, c, trials = floats(y, params["probability"], params["concentration"], params["trials"])
    outside = not_a_count(y) | (y > trials)
    y = jnp.where(outside, 0.0, y)
    a, b, rest = p * c, (1.0 - p) * c, trials - y
    difference = c * (trials * p - y) / (c + trials)  # n (a + y) / (c + n) − y
    shrunk = jnp.log(trials) - jnp.log(c + trials)
    terms = times_log_ratio(y, difference, shrunk + jnp.log(a + y))
    terms = terms + times_log_ratio(rest, -difference, shrunk + jnp.log(b + rest))
    k, base = jnp.stack([y, rest, trials]), jnp.stack([a, b, c])
    rising = (base - 0.5) * jnp.log1p(k / base) + stirling_error(base + k) - stirling_error(base)
    return outside_support(outside, terms + rising[0] + rising[1] - rising[2] + _ways_at_their_mode(y, trials))


_BLOCK = 32  # terms of a sum that are computed at once


def _log_sum_downwards(a: Array, b: Array, k: Array, trials: Array) -> Scalar:
    """log(Σ p(j), j = 0 … k) − log p(k), by the ratios p(j − 1) / p(j) of neighbours, until what is left is below rounding.

    Where p is largest at its ends (a, b < 1), it changes like a power of j there, and nothing is left out.
    """

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        top, log_term, total = state
        return (top >= 1) & (
            log_term + jnp.log(jnp.maximum(top, 1.0)) > jnp.log(0.1 * jnp.finfo(total.dtype).eps * total)
        )

    def add(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        top, log_term, total = state
        j = top - jnp.arange(_BLOCK, dtype=top.dtype)
        some = j >= 1
        j = jnp.where(some, j, 1.0)
        steps = jnp.log(j) - jnp.log(trials - j + 1.0) + jnp.log(b + trials - j) - jnp.log(a + j - 1.0)
        terms = log_term + jnp.cumsum(jnp.where(some, steps, 0.0))
        return top - _BLOCK, terms[-1], total + jnp.sum(jnp.where(some, jnp.exp(terms), 0.0))

    one = jnp.ones_like(a)
    return jnp.log(lax.while_loop(unfinished, add, (k, jnp.zeros_like(a), one))[2])


def beta_binomial_tails(params: Params, y: ArrayLike) -> Tails:
    """By sums over counts, of the smaller tail: their number is up to `trials`, and about ten standard deviations in the body."""
    _, p, c, trials = floats(y, params["probability"], params["concentration"], params["trials"])
    number = jnp.maximum(trials, 1.0)

    def tails(k: Array) -> Tails:
        is_lower = k <= number * p
        a, b = jnp.where(is_lower, p, 1.0 - p) * c, jnp.where(is_lower, 1.0 - p, p) * c
        last = jnp.where(is_lower, k, number - k - 1.0)  # of the successes, or of the failures that Y > k leaves
        end = {"probability": jnp.where(is_lower, p, 1.0 - p), "concentration": c, "trials": number}
        log_sum = differentiable_both_ways(_log_sum_downwards)(a, b, last, number)
        return both_tails(beta_binomial_log_density(end, last) + log_sum, is_lower)

    return tails_of_count(y, tails, p.dtype, trials)


def beta_binomial_log_cdf(params: Params, y: ArrayLike) -> Scalar:
    return beta_binomial_tails(params, y)[0]


def beta_binomial_log_survival(params: Params, y: ArrayLike) -> Scalar:
    return beta_binomial_tails(params, y)[1]


def beta_binomial_quantile(uniform: ArrayLike, params: Params) -> Scalar:
    uniform, p, c, trials = floats(uniform, params["probability"], params["concentration"], params["trials"])
    deviation = jnp.sqrt(trials * p * (1.0 - p) * ((c + trials) / (c + 1.0)))
    return quantile_of_count(
        beta_binomial_tails,
        uniform,
        {"probability": p, "concentration": c, "trials": trials},
        guess_of_count(uniform, trials * p, deviation, jnp.zeros_like(p)),
        trials,
    )


def beta_binomial_sample(key: Array, params: Params) -> Scalar:
    p, c, trials = floats(params["probability"], params["concentration"], params["trials"])
    for_probability, for_count = jax.random.split(key)
    # Logarithms of gamma draws: with small a and b the draws themselves underflow, both of them at times.
    log_a, log_b = jax.random.loggamma(for_probability, jnp.stack([p * c, (1.0 - p) * c]), (2,), p.dtype)
    return binomial_sample(for_count, {"logit": log_a - log_b, "trials": trials})


def beta_binomial_mean(params: Params) -> Scalar:
    probability, trials = floats(params["probability"], params["trials"])
    return trials * probability


beta_binomial = Family(
    beta_binomial_log_density,
    ("probability", "concentration", "trials"),
    sample=beta_binomial_sample,
    quantile=beta_binomial_quantile,
    constraints={"probability": unit_interval, "concentration": positive, "trials": fixed},
    log_cdf=beta_binomial_log_cdf,
    log_survival=beta_binomial_log_survival,
    mean=beta_binomial_mean,
    support=up_to_trials,
    discrete=True,
)


# Categorical ----------------------------------------------------------------------------------------------------------


def categorical_log_density(params: Params, y: ArrayLike) -> Scalar:
    """Categorical: y = 0, …, K − 1 is one of K categories.

    log p(y) = log softmax(logits)_y.

    - `logits`: real, shape (K,), known up to a number added to all of them.

    Mean p (K,), that of the K indicators of y, since the numbers of categories have no scale.
    Information diag(p) − p pᵀ, of rank K − 1: fit with one logit held at a value, by `linked` or a density of your own.
    In scipy: the component y of `scipy.special.log_softmax(logits)`.
    No `initial`: the data do not determine K, so give params.
    """
    position, logits = floats(y, params["logits"])
    number = logits.shape[0]
    outside = not_a_count(position) | (position > number - 1)
    chosen = jnp.arange(number) == position
    value = jnp.sum(jnp.where(chosen, jax.nn.log_softmax(logits), 0.0))
    return outside_support(outside, jnp.where(jnp.isnan(position), jnp.nan, value))


def categorical_quantile(uniform: ArrayLike, params: Params) -> Int[Array, ""]:
    p = jax.nn.softmax(floats(params["logits"])[0])
    lower, upper = jnp.cumsum(p), jnp.cumsum(p[::-1])[::-1]
    return jnp.sum(exceeds(uniform, lower[:-1], upper[1:]))


def _log_share(logits: Array, chosen: Array) -> Scalar:
    """The logarithm of the chosen terms of Σ e^{logits}, of which there is at least one."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.where(chosen, logits, -jnp.inf)))
    largest = jnp.where(jnp.isfinite(largest), largest, 0.0)
    return largest + jnp.log(jnp.sum(jnp.where(chosen, jnp.exp(jnp.where(chosen, logits, largest) - largest), 0.0)))


def _categorical(params: Params, y: ArrayLike, *, upper: bool) -> Scalar:
    y, logits = floats(y, params["logits"])
    number, places = logits.shape[0], jnp.arange(logits.shape[0])

    def log_probability(cut: Array) -> Scalar:
        chosen = places > cut if upper else places <= cut
        share, rest = _log_share(logits, chosen), _log_share(logits, ~chosen)
        return -jnp.logaddexp(0.0, rest - share)

    return of_category(y, number, log_probability, upper=upper)


def categorical_log_cdf(params: Params, y: ArrayLike) -> Scalar:
    return _categorical(params, y, upper=False)


def categorical_log_survival(params: Params, y: ArrayLike) -> Scalar:
    return _categorical(params, y, upper=True)


def categorical_sample(key: Array, params: Params) -> Int[Array, ""]:
    return jax.random.categorical(key, floats(params["logits"])[0])


def categorical_information(params: Params) -> Nested:
    p = jax.nn.softmax(floats(params["logits"])[0])
    return {"logits": {"logits": jnp.diag(p) - p[:, None] * p[None, :]}}


def categorical_mean(params: Params) -> Float[Array, " k"]:
    return jax.nn.softmax(floats(params["logits"])[0])


categorical = Family(
    categorical_log_density,
    ("logits",),
    sample=categorical_sample,
    quantile=categorical_quantile,
    information=categorical_information,
    log_cdf=categorical_log_cdf,
    log_survival=categorical_log_survival,
    mean=categorical_mean,
    support=(0.0, 1.0),
    discrete=True,
)
