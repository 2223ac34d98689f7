"""Priors and penalties for `Model(prior=…)` and `with_prior`: log-densities of the parameters that a fit adds to the likelihood's.

They are functions of the parameters as the user writes them; no Jacobian of a constraint is added. Parameters are named as reports
name them, `"scale"`, `"beta"`, `"beta[2]"`. Priors add: ``normal({"shape": (0, 0.2)}) + ridge("beta")``.

Examples
--------
A logistic regression whose classes are separated, for which maximum likelihood is infinite:

>>> import fisher_jax as fj, jax.numpy as jnp
>>> x, y = jnp.array([[1.0, -2.0], [1.0, -1.0], [1.0, 1.0], [1.0, 2.0]]), jnp.array([0, 0, 1, 1])
>>> model = fj.linked(fj.families.bernoulli, lambda beta, z: {"logit": z @ beta})
>>> fj.fit(model, jnp.zeros(2), y, given=x).converged
False
>>> fit = fj.fit(fj.with_prior(model, fj.priors.jeffreys()), jnp.zeros(2), y, given=x)
>>> print(f"{fit.params[1]:.3f} ± {fit.standard_errors()[1]:.3f}")
1.004 ± 0.903
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from fisher_jax.errors import entry_point, is_number, shown
from fisher_jax.information import has_closed_form, total_expected
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.model import Model
from fisher_jax.models.parameter_names import all_entries, all_names
from fisher_jax.models.parameters import Layout, Values, layout_of
from fisher_jax.models.prior import describe_prior, log_prior, takes_strength
from fisher_jax.models.programs import UserFunction
from fisher_jax.reporting import listed

__all__ = ["half_normal", "jeffreys", "normal", "ridge"]


class Prior:
    """A prior that adds to others, and receives the names of the parameters and the data."""

    takes_strength = False
    is_of_expected = False
    needs_data = False

    def __add__(self, other: Any) -> "Prior":
        if not callable(other):
            return NotImplemented
        return _Sum((self, other))

    def __radd__(self, other: Any) -> "Prior":
        return _Sum((other, self)) if callable(other) else NotImplemented

    @property
    def has_both_modes(self) -> bool:
        """JAX differentiates it either way."""
        return True

    def of_data(self, model: Model, layout: Layout, values: Values, dataset: Dataset, *strength: Any) -> Array:
        """The log-density at parameters given by their leaves, beside the data that they are fitted to."""
        raise NotImplementedError

    def __call__(self, params: PyTree, *strength: Any) -> Array:
        """The log-density at parameters, whose entries have the names of the pytree."""
        layout, values = layout_of(params)
        return self.of_data(Model(_no_density), layout, values, Dataset(None), *strength)


def _no_density(params: PyTree, y: PyTree) -> Array:
    raise ValueError("a prior has no data.")


@dataclass(frozen=True)
class _Sum(Prior):
    """The sum of priors, which share the strength."""

    parts: tuple[UserFunction, ...]

    @property
    def takes_strength(self) -> bool:  # type: ignore[override]
        """Whether any of them does."""
        return any(map(takes_strength, self.parts))

    @property
    def is_of_expected(self) -> bool:  # type: ignore[override]
        """Never: other parts have information of their own."""
        return False

    @property
    def needs_data(self) -> bool:  # type: ignore[override]
        """Whether any of them does."""
        return any(getattr(part, "needs_data", False) for part in self.parts)

    @property
    def description(self) -> str:
        """All of them in words."""
        return " + ".join(map(describe_prior, self.parts))

    def of_data(self, model: Model, layout: Layout, values: Values, dataset: Dataset, *strength: Any) -> Array:
        total: Any = jnp.zeros((), layout.dtype)
        for part in self.parts:
            of_part = strength if takes_strength(part) else ()
            one = replace(model, prior=part)
            total = total + log_prior(one, layout, values, replace(dataset, strength=of_part))
        return total


def _entries(layout: Layout, values: Values, names: tuple[str, ...], argument: str) -> list[Array]:
    """The numbers that each name stands for."""
    where, index = all_entries(layout), all_names(layout)
    flat = [jnp.ravel(jnp.asarray(value)) for value in values]
    chosen = [index.find(name, argument) for name in names]
    return [jnp.stack([flat[where[k][0]][where[k][1]] for k in entries]).astype(layout.dtype) for entries in chosen]


@dataclass(frozen=True)
class _Ridge(Prior):
    names: tuple[str, ...]
    takes_strength = True

    @property
    def description(self) -> str:
        """As a report prints it."""
        return f"ridge penalty of {listed(self.names) if self.names else 'all parameters'}"

    def of_data(self, model: Model, layout: Layout, values: Values, dataset: Dataset, *strength: Any) -> Array:
        (factor,) = strength
        names = self.names or tuple(layout.names)
        squares = [jnp.sum(numbers**2) for numbers in _entries(layout, values, names, "ridge")]
        return -0.5 * factor * sum(squares)


@dataclass(frozen=True)
class _Normal(Prior):
    parameters: tuple[tuple[str, float, float], ...]

    @property
    def description(self) -> str:
        """As a report prints it."""
        return listed([f"{name} ~ normal({mean:g}, {sd:g})" for name, mean, sd in self.parameters])

    def of_data(self, model: Model, layout: Layout, values: Values, dataset: Dataset, *strength: Any) -> Array:
        total: Any = jnp.zeros((), layout.dtype)
        all_numbers = _entries(layout, values, tuple(name for name, *_ in self.parameters), "normal")
        for numbers, (_, mean, sd) in zip(all_numbers, self.parameters, strict=True):
            terms = -0.5 * ((numbers - mean) / sd) ** 2 - math.log(sd) - 0.5 * math.log(2.0 * math.pi)
            total = total + jnp.sum(terms)
        return total


@dataclass(frozen=True)
class _HalfNormal(Prior):
    parameters: tuple[tuple[str, float], ...]

    @property
    def description(self) -> str:
        """As a report prints it."""
        return listed([f"{name} ~ half-normal({scale:g})" for name, scale in self.parameters])

    def of_data(self, model: Model, layout: Layout, values: Values, dataset: Dataset, *strength: Any) -> Array:
        total: Any = jnp.zeros((), layout.dtype)
        all_numbers = _entries(layout, values, tuple(name for name, _ in self.parameters), "half_normal")
        for numbers, (_, scale) in zip(all_numbers, self.parameters, strict=True):
            terms = -0.5 * (numbers / scale) ** 2 - math.log(scale) + 0.5 * math.log(2.0 / math.pi)
            total = total + jnp.sum(jnp.where(numbers < 0, -jnp.inf, terms))
        return total


@dataclass(frozen=True)
class _Jeffreys(Prior):
    is_of_expected = True
    needs_data = True
    description = "Jeffreys, half the log-determinant of the expected information"

    def of_data(
        self, model: Model, layout: Layout, values: Values, dataset: Dataset, *strength: Any
    ) -> Float[Array, ""]:
        if not has_closed_form(model):
            raise ValueError(
                "jeffreys() needs the Fisher information of the model in closed form, which this one lacks. Give Model(…, "
                "information=…), or write the model as linked(family, predictor)."
            )
        if len(layout.names) != layout.num_free:
            raise ValueError(
                f"jeffreys(): a constraint leaves {layout.num_free} free parameters among {len(layout.names)} entries, whose "
                "information is singular. Write the model in free parameters."
            )
        weights = None if dataset.weights is None else jnp.asarray(dataset.weights, layout.dtype)
        count = jax.tree.leaves(dataset.data)[0].shape[0] if weights is None else jnp.sum(weights)
        information = total_expected(model, layout, values, dataset.given, jnp.asarray(count, layout.dtype), weights)
        sign, log_determinant = jnp.linalg.slogdet(information)
        return jnp.where(sign > 0, 0.5 * log_determinant, -jnp.inf)


@entry_point
def ridge(*names: str) -> Prior:
    """The ridge penalty −½ λ Σ θ², summed over the entries of the parameters named, or over all if none is.

    λ is the `strength` of the fit; scikit-learn's ``C`` is 1/λ. Name the slopes: an intercept and a scale are not to be shrunk.
    A penalty is the log-density of a normal prior with mean 0 and variance 1/λ up to a constant.

    Parameters
    ----------
    *names : str
        Names of entries, or of arrays of them, as in ``ridge("beta")``.

    References
    ----------
    Hoerl, A. E. and Kennard, R. W. (1970), Technometrics 12, 55-67.

    Examples
    --------
    A path of strengths for the same data is one batch:

    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> from jax.scipy.stats import norm
    >>> model = fj.Model(lambda params, y: norm.logpdf(y, params["loc"], 1.0), prior=fj.priors.ridge("loc"))
    >>> path = fj.fit_batch(model, {"loc": 0.0}, jnp.array([1.0, 3.0]), data_axis=None, strength=[0.0, 2.0, 6.0])
    >>> print(path.params["loc"].round(6))
    [2.  1.  0.5]
    """
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"ridge({shown(name)}): expected names of parameters. The strength is an argument of fit.")
    return _Ridge(tuple(names))


@entry_point
def normal(parameters: Mapping[str, tuple[float, float]]) -> Prior:
    """Independent normal priors: log N(θ; mean, sd²) for every entry of the parameters named.

    Parameters
    ----------
    parameters : mapping
        From names to pairs (mean, standard deviation), in the units of the parameter, as in ``normal({"shape": (0.0, 0.2)})``.

    Examples
    --------
    >>> import fisher_jax as fj
    >>> prior = fj.priors.normal({"shape": (0.0, 0.5)})
    >>> print(f"{prior({'loc': 3.0, 'shape': 0.0}):.3f}")  # −log(0.5 √(2π))
    -0.226
    """
    checked = []
    for name, pair in _named(parameters, "normal", "{name: (mean, standard deviation)}").items():
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(map(is_number, pair)):
            raise TypeError(
                f"normal: {name!r} has {shown(pair)}; expected a pair (mean, standard deviation) of numbers."
            )
        mean, sd = map(float, pair)
        if not math.isfinite(mean) or not 0 < sd < math.inf:
            raise ValueError(
                f"normal: {name!r} has {shown(pair)}; the standard deviation must be positive, both finite."
            )
        checked.append((name, mean, sd))
    return _Normal(tuple(checked))


@entry_point
def half_normal(parameters: Mapping[str, float]) -> Prior:
    """Independent half-normal priors of parameters that are not negative: log 2 N(θ; 0, scale²) for every entry named.

    Parameters
    ----------
    parameters : mapping
        From names to scales, in the units of the parameter, as in ``half_normal({"sd": 1.0})``.

    Examples
    --------
    >>> import fisher_jax as fj
    >>> prior = fj.priors.half_normal({"sd": 1.0})
    >>> print(f"{prior({'sd': 0.0}):.3f}")  # ½ log(2/π)
    -0.226
    """
    checked = []
    for name, scale in _named(parameters, "half_normal", "{name: scale}").items():
        if not is_number(scale) or not 0 < float(scale) < math.inf:
            raise ValueError(f"half_normal: {name!r} has scale {shown(scale)}; expected a positive number.")
        checked.append((name, float(scale)))
    return _HalfNormal(tuple(checked))


def _named(parameters: Any, function: str, expected: str) -> Mapping[str, Any]:
    if not isinstance(parameters, Mapping) or not parameters or not all(isinstance(name, str) for name in parameters):
        raise TypeError(f"{function}({shown(parameters)}): expected a dictionary {expected} of parameters by name.")
    return parameters


def jeffreys() -> Prior:
    """Jeffreys' prior, ½ log det of the expected information of all observations: Firth's reduction of the bias.

    In an exponential family with its canonical parameters the penalised estimate has a bias of order n⁻² where that of maximum
    likelihood has order n⁻¹, and a logistic regression has finite estimates where its classes are separated. The information is
    that of the parameters as the user writes them, and the estimate depends on this parametrisation; a parameter held fixed has no
    part in it. It needs the closed form: a family, a model made by `linked`, or ``Model(…, information=…)``.

    The covariance of such fits is by default the inverse of the expected information at the estimate, without the prior, as in R's
    brglm2 and logistf: the estimate is asymptotically as good as that of maximum likelihood.

    References
    ----------
    Firth, D. (1993), Biometrika 80, 27-38; Heinze, G. and Schemper, M. (2002), Statistics in Medicine 21, 2409-2419.

    Examples
    --------
    No success in four trials: the penalised estimate adds half a success and half a failure.

    >>> import fisher_jax as fj, jax
    >>> model = fj.with_prior(fj.families.bernoulli, fj.priors.jeffreys())
    >>> fit = fj.fit(model, {"logit": 0.0}, [0, 0, 0, 0])
    >>> print(f"{jax.nn.sigmoid(fit.params['logit']):.3f}")  # 0.5 / 5
    0.100
    """
    return _Jeffreys()
