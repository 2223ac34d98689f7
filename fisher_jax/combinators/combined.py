"""What models made from one other model share: records of their functions, and models that are families where that one is.

A combinator defines a record for each function of its result, as `linked` does: a frozen dataclass of the other model and of the
settings, so that what it makes is compared, hashed, pickled and compiled once. The record of the log-density also answers what a
`Model` is asked besides: why an observation has no density, whether data have the right form, the probability of an interval.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from fisher_jax.combinators.parts import call_with_covariates, takes
from fisher_jax.errors import is_number, kind_of, shown
from fisher_jax.families.common import Family
from fisher_jax.models.auxiliary import AuxiliaryModel
from fisher_jax.models.constraints import Constraint, fixed
from fisher_jax.models.linked import LinkedModel, linked
from fisher_jax.models.model import Model, as_model, check_without_prior
from fisher_jax.models.parameters import in_key_order, key_order
from fisher_jax.models.probabilities import log_tails
from fisher_jax.models.programs import UserFunction, call_differentiable

Limit = float | str | None


@dataclass(frozen=True)
class Part:
    """A function of a model made from `base`. Equal where the models and the settings are."""

    base: Model

    @property
    def user_function(self) -> UserFunction:
        """Where its programs are stored; see `models.programs.owner_of`."""
        return self.base.log_density

    @property
    def made_with(self) -> tuple[Any, ...]:
        """What else it is made of: the other functions of the base, and the settings."""
        return (self.base.program_key, *(getattr(self, setting.name) for setting in fields(self)[1:]))

    def of_base(self, name: str, *arguments: Any, z: tuple[PyTree, ...] = ()) -> Any:
        """One of the base's functions, with covariates where it takes them."""
        return call_with_covariates(getattr(self.base, name), arguments, z)

    def covariates(self, z: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
        """Those that the base takes: a family takes none."""
        return z if takes(self.base.log_density, 3) else ()

    def base_tails(self, params: PyTree, y: Any, *z: PyTree) -> tuple[Array, Array]:
        """log F(y) and log S(y) of the base."""
        return log_tails(self.base.log_cdf, self.base.log_survival, params, y, *self.covariates(z))


class Density(Part):
    """The log-density of a model made from another, and what else that model provides."""

    combinator: ClassVar[str]  # the name of the function that makes such models

    def describe(self) -> str:
        """The call that makes this model."""
        settings = ((setting.name, getattr(self, setting.name)) for setting in fields(self)[1:])
        shown_settings = [f", {name}={value!r}" for name, value in settings if value is not None]
        return f"{self.combinator}({self.base!r}{''.join(shown_settings)})"

    def log_probability(self, params: PyTree, low: Any, high: Any, *z: PyTree) -> Array:
        """log P(low < Y ≤ high) of the combined model; by default that of the base."""
        return self.base.log_probability(params, low, high, *self.covariates(z))

    @property
    def atoms(self) -> tuple[float, ...]:
        """The values at which the distribution function of a model that is not discrete jumps."""
        return self.base.atoms

    def known_interval(self, params: PyTree, y: PyTree, *z: PyTree) -> tuple[Any, Any] | None:
        """The ends of the interval (low, high] in which an observation is known to lie; None of values themselves."""
        return self.base.known_interval(params, y, *self.covariates(z))

    @property
    def how_to_draw(self) -> str:
        """What to give so that a model without a sampler has one, in words; by default what the base needs."""
        return f"{self.combinator} draws by the quantile function of {self.base!r}, which has none. Give Model(…, quantile=…)."

    @property
    def numbers_in_row(self) -> int:
        """How many numbers an observation holds that each inform about the parameters."""
        return self.base.numbers_in_row

    def explain(self, params: PyTree, y: PyTree, *z: PyTree) -> str:
        """Why the log-density of an observation is not finite, in words."""
        return self.base.explain(params, y, *z)

    def check_data(self, data: PyTree, given: PyTree) -> None:
        """Raise where data do not have the form or the values of the model's observations."""
        self.base.check_data(data, given)


class _Answers:
    """What a model provides, answered by the record of its log-density."""

    log_density: Any

    def log_probability(self, params: PyTree, low: Any, high: Any, *z: PyTree) -> Array:
        """log P(low < Y ≤ high)."""
        return self.log_density.log_probability(params, low, high, *z)

    @property
    def atoms(self) -> tuple[float, ...]:
        """The values at which the distribution function of a model that is not discrete jumps."""
        return self.log_density.atoms

    def known_interval(self, params: PyTree, y: PyTree, *z: PyTree) -> tuple[Any, Any] | None:
        """The ends of the interval (low, high] in which an observation is known to lie; None of values themselves."""
        return self.log_density.known_interval(params, y, *z)

    @property
    def how_to_draw(self) -> str:
        """What to give so that a model without a sampler has one, in words."""
        return self.log_density.how_to_draw

    @property
    def numbers_in_row(self) -> int:
        """How many numbers an observation holds that each inform about the parameters."""
        return self.log_density.numbers_in_row

    def explain(self, params: PyTree, y: PyTree, *z: PyTree) -> str:
        """Why the log-density of an observation is not finite, in words."""
        return self.log_density.explain(params, y, *z)

    def check_data(self, data: PyTree, given: PyTree) -> None:
        """Raise where data do not have the form or the values of the model's observations."""
        self.log_density.check_data(data, given)

    def __repr__(self) -> str:
        return self.log_density.describe()


class CombinedModel(_Answers, Model):
    """A model made from another."""


class CombinedFamily(_Answers, Family):
    """A family made from another: formulas and `linked` take it as they take the ready-made ones."""

    def __post_init__(self) -> None:
        # Unlike a ready-made family it has the sampler that it is given, or none: quantiles may be those of another variable.
        object.__setattr__(self, "__doc__", self.log_density.__doc__)
        Model.__post_init__(self)

    @property
    def name(self) -> str:
        """Those of the combinator and of the family."""
        return f"{self.log_density.combinator}_{self.log_density.base.name}"


def combined(density: Density, *, added: Mapping[str, Constraint] | None = None, **functions: Any) -> Model:
    """The model with this log-density and these functions: a family where its base is one.

    `added` are parameters besides those of the base, with their constraints.
    """
    base, added = density.base, added or {}
    constraints = with_constraints(base, added)
    if isinstance(base, Family):
        return CombinedFamily(density, (*base.parameters, *added), main=base.main, constraints=constraints, **functions)
    return CombinedModel(density, constraints=constraints, names=base.names, **functions)


def with_constraints(base: Model, added: Mapping[str, Constraint]) -> Any:
    """The base's constraints, and those of added parameters."""
    if not added:
        return base.constraints
    if base.constraints is not None and not isinstance(base.constraints, dict):
        raise ValueError(
            f"parameters {', '.join(map(repr, added))} are added to those of {base!r}, whose constraints are "
            f"{kind_of(base.constraints)}. Write the model with params in a dictionary."
        )
    doubled = [name for name in added if name in parameters_of(base)]
    if doubled:
        raise ValueError(f"{base!r} has a parameter {doubled[0]!r} already.")
    return {**(base.constraints or {}), **added}


def parameters_of(base: Model) -> tuple[str, ...]:
    """The names of a model's parameters as far as they are known."""
    if isinstance(base, Family):
        return base.parameters
    return tuple(base.constraints) if isinstance(base.constraints, dict) else ()


def base_of(model: Any, combinator: str) -> Model:
    """The model that is combined; raise for those with more than the log-density of one observation alone."""
    model = as_model(model)
    if model.is_dependent:
        raise ValueError(f"{combinator} is of the density of one observation, and the model is dependent.")
    if isinstance(model, AuxiliaryModel):
        raise ValueError(
            f"the model has an auxiliary measurement, which counts once. Write with_auxiliary({combinator}(…), …) in place of "
            f"{combinator}(with_auxiliary(…))."
        )
    check_without_prior(model, combinator)
    return model


def as_floats(params: PyTree, *values: Any) -> tuple[Array, ...]:
    """The values as arrays of the floating dtype of the parameters and of all of them."""
    dtype = jnp.result_type(float, *jax.tree.leaves(params), *values)
    return tuple(jnp.asarray(value, dtype) for value in values)


# --- limits -----------------------------------------------------------------------------------------------------------


def check_limits(low: Any, high: Any) -> tuple[Limit, Limit]:
    """The limits as Python's numbers, names or None."""
    ends = []
    for name, limit in (("low", low), ("high", high)):
        if limit is not None and not isinstance(limit, str) and not is_number(limit):
            raise TypeError(
                f"{name}={shown(limit)} must be a number, or the name of a known constant among the parameters, for limits that "
                "differ between observations."
            )
        if is_number(limit) and limit != limit:
            raise ValueError(f"{name} is NaN. Leave it out where there is no limit.")
        ends.append(float(limit) if is_number(limit) else limit)
    if isinstance(ends[0], float) and isinstance(ends[1], float) and not ends[0] < ends[1]:
        raise ValueError(f"low={ends[0]:g} must be below high={ends[1]:g}.")
    return ends[0], ends[1]


def names_of_limits(low: Limit, high: Limit) -> dict[str, Constraint]:
    """The known constants that limits are, with their constraint."""
    return {limit: fixed for limit in (low, high) if isinstance(limit, str)}


def limit_of(limit: Limit, params: PyTree, otherwise: float) -> Any:
    """A limit as a number: itself, or the known constant of this name; `otherwise` where there is none."""
    if limit is None:
        return otherwise
    if isinstance(limit, float):
        return limit
    if not isinstance(params, dict) or limit not in params:
        raise ValueError(
            f"the limit {limit!r} names a known constant among the parameters, which are {shown(params)}. Put it there, "
            f"or let the predictor of a linked model return it, as in {{…, {limit!r}: z[{limit!r}]}}."
        )
    return params[limit]


@dataclass(frozen=True)
class Limited(Part):
    """A function of a model made from `base` and two limits."""

    low: Limit
    high: Limit

    def limits(self, params: PyTree) -> tuple[Any, Any]:
        """The limits as numbers, infinite where there is none."""
        return limit_of(self.low, params, -jnp.inf), limit_of(self.high, params, jnp.inf)


@dataclass(frozen=True)
class WithLimits:
    """A predictor that also returns the limits of an observation, which stand among its covariates."""

    predictor: UserFunction
    limits: tuple[str, ...]

    @property
    def user_function(self) -> UserFunction:
        """Where its programs are stored; see `models.programs.owner_of`."""
        return self.predictor

    @property
    def made_with(self) -> tuple[Any, ...]:
        """What else it is made of."""
        return (self.limits,)

    def __call__(self, params: PyTree, *z: PyTree) -> dict[str, Any]:
        predicted = call_differentiable(self.predictor, (params, *z), "predictor")
        covariates = z[0] if z else {}
        for name in self.limits:
            if name not in predicted and (not isinstance(covariates, dict) or name not in covariates):
                raise ValueError(
                    f"the limit {name!r} is neither among the covariates nor returned by the predictor. Give "
                    f"given={{{name!r}: …}}, with a number for each observation."
                )
        return {name: covariates[name] for name in self.limits if name not in predicted} | predicted


@dataclass(frozen=True)
class WithParameter:
    """A predictor that passes a parameter of the combined family on as it is."""

    predictor: UserFunction
    name: str

    @property
    def user_function(self) -> UserFunction:
        """Where its programs are stored; see `models.programs.owner_of`."""
        return self.predictor

    @property
    def made_with(self) -> tuple[Any, ...]:
        """What else it is made of."""
        return (self.name,)

    def __call__(self, params: PyTree, *z: PyTree) -> dict[str, Any]:
        if not isinstance(params, dict) or self.name not in params:
            raise ValueError(f"params lack {self.name!r}: they are a dictionary of the model's parameters and of this.")
        others = {name: value for name, value in params.items() if name != self.name}
        others = in_key_order(others, key_order(others))
        predicted = call_differentiable(self.predictor, (others, *z), "predictor")
        return {**predicted, self.name: params[self.name]}


def within_link(
    model: LinkedModel,
    combine: Callable[[Model], Model],
    *,
    limits: tuple[Limit, ...] = (),
    added: Mapping[str, Constraint] | None = None,
    initial: Any = None,
) -> Model:
    """The linked model whose family is combined: covariates come in by its predictor, as before."""
    predictor = model.log_density.predictor
    names = tuple(limit for limit in limits if isinstance(limit, str))
    if names:
        predictor = WithLimits(predictor, names)
    for name in added or {}:
        predictor = WithParameter(predictor, name)
    return linked(
        combine(model.family),
        predictor,
        constraints=with_constraints(model, added or {}),
        initial=initial,
        names=model.names,
    )
