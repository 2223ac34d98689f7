"""`zero_inflated` and `hurdle`: models in which zero has a probability of its own.

    zero-inflated    P(0) = π + (1 − π) p₀,    (1 − π) p(y) elsewhere
    hurdle           P(0) = ζ,                 (1 − ζ) p(y) / (1 − p₀) elsewhere

with the base model's p and p₀ = p(0), which is zero where y is continuous. The information of both follows from that of the base,
I, and its score at zero, s₀:

    zero-inflated    θθ (1 − π) (I − π p₀ s₀ s₀ᵀ / P₀),    πθ p₀ s₀ / P₀,    ππ (1 − p₀) / ((1 − π) P₀),    P₀ = P(0)
    hurdle           θθ (1 − ζ) (I / (1 − p₀) − p₀ s₀ s₀ᵀ / (1 − p₀)²),    ζθ 0,    ζζ 1 / (ζ (1 − ζ))
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from fisher_jax.combinators.censored import is_censored, keep_outermost
from fisher_jax.combinators.combined import Density, Part, as_floats, base_of, combined, within_link
from fisher_jax.errors import entry_point, shown
from fisher_jax.families.common import Family
from fisher_jax.models.constraints import Fixed, unit_interval
from fisher_jax.models.linked import LinkedModel
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import in_key_order, key_order
from fisher_jax.models.probabilities import larger_from_smaller
from fisher_jax.numerics.array_namespace import namespace, on_host
from fisher_jax.numerics.stable_functions import log_complement

INFLATION, ZERO = "inflation", "zero_probability"
LEAST_START = 0.05  # a probability of zero starts between this and one minus this


class _WithZero(Part):
    """A function of a model with a probability of zero beside the parameters of the base."""

    name = ""

    def parts(self, params: PyTree) -> tuple[PyTree, Array]:
        """The parameters of the base, and the probability."""
        if not isinstance(params, dict) or self.name not in params:
            raise ValueError(
                f"params are {shown(params)}; expected a dictionary of the model's parameters and {self.name!r}."
            )
        others = {name: value for name, value in params.items() if name != self.name}
        return in_key_order(others, key_order(others)), jnp.asarray(params[self.name])

    def at_zero(self, theta: PyTree, *z: PyTree) -> Array:
        """log p₀ of the base, −∞ where y is continuous."""
        if not self.base.discrete:
            return jnp.asarray(-jnp.inf)
        return self.of_base("log_density", theta, *as_floats(theta, 0.0), z=z)


# Zero-inflated --------------------------------------------------------------------------------------------------------


class _Inflated(_WithZero):
    name = INFLATION


class _InflatedDensity(_Inflated, Density):
    combinator = "zero_inflated"

    @property
    def how_to_draw(self) -> str:
        return self.base.how_to_draw

    def __call__(self, params: PyTree, y: ArrayLike, *z: PyTree) -> Array:
        (y,), (theta, inflation) = as_floats(params, y), self.parts(params)
        value = self.of_base("log_density", theta, y, z=z)
        is_zero = y == 0
        # Of y > 0 the density may underflow, and the logarithm of what it stands for is not used.
        at_zero = jnp.log(inflation + (1.0 - inflation) * jnp.exp(jnp.where(is_zero, value, 0.0)))
        valid = (inflation >= 0) & (inflation <= 1)
        return jnp.where(valid, jnp.where(is_zero, at_zero, jnp.log1p(-inflation) + value), jnp.nan)

    def log_probability(self, params: PyTree, low: Any, high: Any, *z: PyTree) -> Array:
        theta, inflation = self.parts(params)
        value = jnp.log1p(-inflation) + super().log_probability(theta, low, high, *z)
        holds_zero = (low < 0) & (high >= 0)
        with_zero = jnp.log(inflation + jnp.exp(jnp.where(holds_zero, value, 0.0)))
        return jnp.where(holds_zero, with_zero, value)

    def explain(self, params: PyTree, y: PyTree, *z: PyTree) -> str:
        return self.base.explain(self.parts(params)[0], y, *z)


class _InflatedTails(_Inflated):
    """log F and log S: S(y) = (1 − π) S_base(y) from zero on, F(y) = (1 − π) F_base(y) below."""

    def both(self, params: PyTree, y: ArrayLike, *z: PyTree) -> tuple[Array, Array]:
        (y,), (theta, inflation) = as_floats(params, y), self.parts(params)
        below, above = self.base_tails(theta, y, *z)
        log_base = jnp.log1p(-inflation)
        from_zero = y >= 0
        cdf = jnp.where(
            from_zero,
            jnp.log(inflation + (1.0 - inflation) * jnp.exp(jnp.where(from_zero, below, 0.0))),
            log_base + below,
        )
        lower = jnp.where(from_zero, 0.0, log_base + below)
        survival = jnp.where(from_zero, log_base + above, log_complement(lower))
        return larger_from_smaller(cdf, survival)


class _InflatedLogCdf(_InflatedTails):
    def __call__(self, params: PyTree, y: ArrayLike, *z: PyTree) -> Array:
        return self.both(params, y, *z)[0]


class _InflatedLogSurvival(_InflatedTails):
    def __call__(self, params: PyTree, y: ArrayLike, *z: PyTree) -> Array:
        return self.both(params, y, *z)[1]


class _InflatedSample(_Inflated):
    def __call__(self, key: Array, params: PyTree, *z: PyTree) -> Array:
        theta, inflation = self.parts(params)
        for_zero, for_count = jax.random.split(key)
        y = self.of_base("sample", for_count, theta, z=z)
        replaced = jax.random.uniform(for_zero, (), jnp.result_type(float, inflation)) < inflation
        return jnp.where(replaced, jnp.zeros_like(y), y)


class _InflatedQuantile(_Inflated):
    def __call__(self, uniform: ArrayLike, params: PyTree, *z: PyTree) -> Array:
        theta, inflation = self.parts(params)
        level = (jnp.asarray(uniform) - inflation) / (1.0 - inflation)
        is_above = level > 0
        y = self.of_base("quantile", jnp.where(is_above, level, 0.5), theta, z=z)
        return jnp.where(is_above, y, jnp.zeros_like(y))


class _InflatedMean(_Inflated):
    def __call__(self, params: PyTree, *z: PyTree) -> Array:
        theta, inflation = self.parts(params)
        return (1.0 - inflation) * self.of_base("mean", theta, z=z)


class _InflatedInformation(_Inflated):
    def __call__(self, params: PyTree) -> dict[str, dict[str, Array]]:
        theta, inflation = self.parts(params)
        matrix, score, log_zero = _at_zero(self, theta)
        base_zero = jnp.exp(log_zero)
        zero = inflation + (1.0 - inflation) * base_zero
        ratio = base_zero / zero
        result = {
            row: {
                column: (1.0 - inflation) * (matrix[row][column] - inflation * ratio * score[row] * score[column])
                for column in matrix
            }
            | {INFLATION: ratio * score[row]}
            for row in matrix
        }
        result[INFLATION] = {column: ratio * score[column] for column in matrix}
        result[INFLATION][INFLATION] = -jnp.expm1(log_zero) / ((1.0 - inflation) * zero)
        return result


def _at_zero(part: _WithZero, theta: PyTree) -> tuple[dict[str, dict[str, Array]], dict[str, Array], Array]:
    """The base's information, its score at zero (zero for known constants), and log p₀."""
    matrix = part.of_base("information", theta)
    log_zero, score = jax.value_and_grad(part.at_zero)(dict(zip(theta, as_floats(theta, *theta.values()), strict=True)))
    constants = {path[0] for path, c in part.base.declarations.constraints if path and isinstance(c, Fixed)}
    return matrix, {name: jnp.zeros(()) if name in constants else score[name] for name in matrix}, log_zero


class _InflatedInitial(_Inflated):
    """The base's `initial` of the observations that are not zero, and the zeros that it does not explain."""

    def __call__(self, data: PyTree, *given: PyTree) -> PyTree:
        theta, share = _start(self, data, *given)
        xp = namespace(share)
        expected = xp.exp(xp.asarray(self.at_zero(theta)))
        inflation = xp.clip((share - expected) / xp.maximum(1.0 - expected, 1e-3), LEAST_START, 1.0 - LEAST_START)
        return {**theta, INFLATION: inflation}


def _start(part: _WithZero, data: PyTree, *given: PyTree) -> tuple[PyTree, Any]:
    """The base's start for what is not zero, and the proportion of zeros."""
    y = on_host(data)
    xp = namespace(y)
    is_zero = xp.asarray(y) == 0
    others = xp.where(is_zero & ~xp.all(is_zero), xp.nan, y)  # a family's start leaves out what is not a number
    return part.base.initial(others, *given), is_zero.mean()  # type: ignore[misc]


@entry_point
def zero_inflated(model: Model) -> Model:
    """A model of counts some of which are replaced by zero: P(0) = π + (1 − π) p(0; θ), and (1 − π) p(y; θ) elsewhere.

    Parameters
    ----------
    model : Model
        Of whole numbers (`discrete`): a family such as `poisson`, `negative_binomial` or `binomial`, or a `linked` model.

    Returns
    -------
    Model
        With the parameter `inflation` π, a probability, besides those of the base; a family where `model` is one. It has what the
        base has of sampler, distribution, survival and quantile functions, mean, starting values; and the information in closed
        form where the base is a family that has it.

    Raises
    ------
    TypeError, ValueError
        If the model is not `discrete`, is dependent or has an auxiliary measurement, or has a parameter `inflation` already.

    Notes
    -----
    In a formula `inflation="~ x"` makes the log-odds of π depend on covariates; by hand that is
    ``linked(zero_inflated(family), predictor)`` with a predictor that returns `inflation` too. Of a linked model, as of any other,
    `inflation` is one number for all.

    Where there are fewer zeros than the base predicts, the likelihood falls with π, and the fit ends with the boundary status.
    `families.zero_inflated_poisson` is the same as ``zero_inflated(families.poisson)``, with its formulas written out.

    References
    ----------
    Lambert, D. (1992), Zero-inflated Poisson regression, with an application to defects in manufacturing, Technometrics 34, 1-14.

    Examples
    --------
    >>> import fisher_jax as fj, numpy as np
    >>> counts = np.repeat([0, 1, 2, 3, 4], [30, 6, 10, 8, 6])
    >>> fit = fj.fit(fj.zero_inflated(fj.families.poisson), None, counts)
    >>> print(f"{fit.params['rate']:.4f} {fit.params['inflation']:.4f}")
    2.1908 0.4370
    """
    model = base_of(model, "zero_inflated")
    if not model.discrete:
        raise ValueError(
            f"{model!r} is not of whole numbers, and has no zeros of its own that could be distinguished. Write "
            "hurdle(model), or Model(…, discrete=True) for whole numbers."
        )
    _check_counts(model)
    if is_censored(model):
        return keep_outermost(model, zero_inflated)
    if isinstance(model, LinkedModel):
        return within_link(model, zero_inflated, added={INFLATION: unit_interval}, initial=None)
    has_tails = model.log_cdf is not None or model.log_survival is not None
    return combined(
        _InflatedDensity(model),
        added={INFLATION: unit_interval},
        sample=None if model.sample is None else _InflatedSample(model),
        initial=None if model.initial is None else _InflatedInitial(model),
        information=_InflatedInformation(model) if _has_information(model) else None,
        quantile=None if model.quantile is None else _InflatedQuantile(model),
        log_cdf=_InflatedLogCdf(model) if has_tails else None,
        log_survival=_InflatedLogSurvival(model) if has_tails else None,
        mean=None if model.mean is None else _InflatedMean(model),
        support=_SupportWithZero(model) if callable(model.support) else _support_with_zero(model.support),
        discrete=True,
    )


def _check_counts(model: Model) -> None:
    """Raise for whole numbers some of which are negative: probabilities are counted from zero on."""
    if model.discrete and isinstance(model.support, tuple) and model.support[0] < 0:
        raise ValueError(
            f"{model!r} has values below zero (its support begins at {model.support[0]:g}), and the model is that of counts. Give "
            "one of counts, with support=(0, math.inf)."
        )


def _has_information(model: Model) -> bool:
    """Whether the information is known in closed form, by the names of the parameters."""
    return isinstance(model, Family) and model.information is not None


class _SupportWithZero(_WithZero):
    """The base's support, with zero."""

    def __call__(self, params: PyTree, *z: PyTree) -> tuple[Any, Any]:
        low, high = self.of_base("support", params, z=z)
        return jnp.minimum(low, 0.0), jnp.maximum(high, 0.0)


def _support_with_zero(support: Any) -> Any:
    return None if support is None else (min(support[0], 0.0), max(support[1], 0.0))


# Hurdle ---------------------------------------------------------------------------------------------------------------


class _Hurdle(_WithZero):
    name = ZERO

    def log_rest(self, theta: PyTree, *z: PyTree) -> Array:
        """log(1 − p₀) of the base."""
        if not self.base.discrete:
            return jnp.zeros(())
        at_zero = self.at_zero(theta, *z)
        never = at_zero == -jnp.inf
        return jnp.where(never, 0.0, log_complement(jnp.where(never, -1.0, at_zero)))


class _HurdleDensity(_Hurdle, Density):
    combinator = "hurdle"

    @property
    def atoms(self) -> tuple[float, ...]:
        """Zero, which has a probability of its own."""
        return () if self.base.discrete else (0.0,)

    def __call__(self, params: PyTree, y: ArrayLike, *z: PyTree) -> Array:
        theta, zero = self.parts(params)
        (y,) = as_floats(theta, y)
        is_zero = y == 0
        value = self.of_base("log_density", theta, jnp.where(is_zero, 1.0, y), z=z) - self.log_rest(theta, *z)
        valid = (zero >= 0) & (zero <= 1)
        return jnp.where(valid, jnp.where(is_zero, jnp.log(zero), jnp.log1p(-zero) + value), jnp.nan)

    def log_probability(self, params: PyTree, low: Any, high: Any, *z: PyTree) -> Array:
        theta, zero = self.parts(params)
        holds_zero = (low < 0) & (high >= 0)
        begin = jnp.where(holds_zero & self.base.discrete, 0.0, low)
        value = jnp.log1p(-zero) + super().log_probability(theta, begin, high, *z) - self.log_rest(theta, *z)
        with_zero = jnp.log(zero + jnp.exp(jnp.where(holds_zero, value, 0.0)))
        return jnp.where(holds_zero, with_zero, value)

    def explain(self, params: PyTree, y: PyTree, *z: PyTree) -> str:
        return self.base.explain(self.parts(params)[0], y, *z)


class _HurdleTails(_Hurdle):
    """log F and log S: S(y) = (1 − ζ) S_base(y) / (1 − p₀) from zero on, F(y) = (1 − ζ) F_base(y) below."""

    def both(self, params: PyTree, y: ArrayLike, *z: PyTree) -> tuple[Array, Array]:
        (y,), (theta, zero) = as_floats(params, y), self.parts(params)
        below, above = self.base_tails(theta, y, *z)
        log_positive = jnp.log1p(-zero)
        from_zero = y >= 0
        upper = jnp.where(from_zero, log_positive + above - self.log_rest(theta, *z), 0.0)
        lower = jnp.where(from_zero, 0.0, log_positive + below)
        cdf = jnp.where(from_zero, log_complement(upper), lower)
        survival = jnp.where(from_zero, upper, log_complement(lower))
        return cdf, survival


class _HurdleLogCdf(_HurdleTails):
    def __call__(self, params: PyTree, y: ArrayLike, *z: PyTree) -> Array:
        return self.both(params, y, *z)[0]


class _HurdleLogSurvival(_HurdleTails):
    def __call__(self, params: PyTree, y: ArrayLike, *z: PyTree) -> Array:
        return self.both(params, y, *z)[1]


class _HurdleQuantile(_Hurdle):
    def __call__(self, uniform: ArrayLike, params: PyTree, *z: PyTree) -> Array:
        theta, zero = self.parts(params)
        level = (jnp.asarray(uniform) - zero) / (1.0 - zero)
        is_above = level > 0
        rest = jnp.exp(self.log_rest(theta, *z))
        level = 1.0 - rest + rest * jnp.where(is_above, level, 0.5)
        y = self.of_base("quantile", level, theta, z=z)
        if self.base.discrete:
            y = jnp.maximum(y, 1.0)  # where the level rounds to p₀
        return jnp.where(is_above, y, jnp.zeros_like(y))


class _HurdleSample(_HurdleQuantile):
    """A draw by inversion."""

    def __call__(self, key: Array, params: PyTree, *z: PyTree) -> Array:  # type: ignore[override]
        dtype = jnp.result_type(float, *jax.tree.leaves(params))
        return super().__call__(jax.random.uniform(key, (), dtype, minval=jnp.finfo(dtype).tiny), params, *z)


class _ContinuousHurdleSample(_Hurdle):
    def __call__(self, key: Array, params: PyTree, *z: PyTree) -> Array:
        theta, zero = self.parts(params)
        for_zero, for_rest = jax.random.split(key)
        y = self.of_base("sample", for_rest, theta, z=z)
        is_zero = jax.random.uniform(for_zero, (), jnp.result_type(float, zero)) < zero
        return jnp.where(is_zero, jnp.zeros_like(y), y)


class _HurdleMean(_Hurdle):
    def __call__(self, params: PyTree, *z: PyTree) -> Array:
        theta, zero = self.parts(params)
        return (1.0 - zero) * self.of_base("mean", theta, z=z) * jnp.exp(-self.log_rest(theta, *z))


class _HurdleInformation(_Hurdle):
    def __call__(self, params: PyTree) -> dict[str, dict[str, Array]]:
        theta, zero = self.parts(params)
        if self.base.discrete:
            matrix, score, log_zero = _at_zero(self, theta)
        else:
            matrix, log_zero = self.of_base("information", theta), jnp.asarray(-jnp.inf)
            score = {name: jnp.zeros(()) for name in matrix}
        rest, ratio = -jnp.expm1(log_zero), jnp.exp(log_zero) / jnp.expm1(log_zero) ** 2
        result = {
            row: {
                column: (1.0 - zero) * (matrix[row][column] / rest - ratio * score[row] * score[column])
                for column in matrix
            }
            | {ZERO: jnp.zeros(())}
            for row in matrix
        }
        result[ZERO] = {column: jnp.zeros(()) for column in matrix} | {ZERO: 1.0 / (zero * (1.0 - zero))}
        return result


class _HurdleInitial(_Hurdle):
    """The base's `initial` of the observations that are not zero, and the proportion of zeros."""

    def __call__(self, data: PyTree, *given: PyTree) -> PyTree:
        theta, share = _start(self, data, *given)
        return {**theta, ZERO: namespace(share).clip(share, 0.01, 0.99)}


@entry_point
def hurdle(model: Model) -> Model:
    """A model in which zero has a probability ζ of its own, and other values are those of `model` without zero.

    P(0) = ζ, and (1 − ζ) p(y; θ) / (1 − p(0; θ)) elsewhere. Of a continuous model it is (1 − ζ) p(y; θ): amounts of which some are
    exactly zero (rain, expenses, catches).

    Parameters
    ----------
    model : Model
        Of counts (`discrete`), or of continuous values none of which is zero: `gamma`, `lognormal`; a family or a `linked` model.

    Returns
    -------
    Model
        With the parameter `zero_probability` ζ besides those of the base; a family where `model` is one. It has what the base has
        of sampler, distribution, survival and quantile functions, mean, starting values; and the information in closed form where
        the base is a family that has it.

    Raises
    ------
    TypeError, ValueError
        If the model is dependent, has an auxiliary measurement or a parameter `zero_probability` already.

    Notes
    -----
    Zeros and other values are two independent problems: ζ is estimated by the proportion of zeros, and θ by the other observations.
    In a formula `zero_probability="~ x"` is a logistic regression of being zero. (pscl's `hurdle` is one of being larger than zero,
    with the opposite signs.)

    References
    ----------
    Mullahy, J. (1986), Specification and testing of some modified count data models, J. Econometrics 33, 341-365.

    Examples
    --------
    >>> import fisher_jax as fj, numpy as np
    >>> counts = np.repeat([0, 1, 2, 3, 4], [30, 6, 10, 8, 6])
    >>> fit = fj.fit(fj.hurdle(fj.families.poisson), None, counts)
    >>> print(f"{fit.params['rate']:.3f} {fit.params['zero_probability']:.3f}")
    2.191 0.500
    """
    model = base_of(model, "hurdle")
    _check_counts(model)
    if is_censored(model):
        return keep_outermost(model, hurdle)
    if isinstance(model, LinkedModel):
        return within_link(model, hurdle, added={ZERO: unit_interval}, initial=None)
    has_tails = model.log_cdf is not None or model.log_survival is not None
    ends = model.support
    is_positive = model.discrete or (isinstance(ends, tuple) and ends[0] >= 0)
    sample: Any = None
    if model.discrete:
        sample = None if model.quantile is None else _HurdleSample(model)
    elif model.sample is not None:
        sample = _ContinuousHurdleSample(model)
    return combined(
        _HurdleDensity(model),
        added={ZERO: unit_interval},
        sample=sample,
        initial=None if model.initial is None else _HurdleInitial(model),
        information=_HurdleInformation(model) if _has_information(model) else None,
        quantile=_HurdleQuantile(model) if model.quantile is not None and is_positive else None,
        log_cdf=_HurdleLogCdf(model) if has_tails else None,
        log_survival=_HurdleLogSurvival(model) if has_tails else None,
        mean=None if model.mean is None else _HurdleMean(model),
        support=_SupportWithZero(model) if callable(model.support) else _support_with_zero(model.support),
        discrete=model.discrete,
    )
