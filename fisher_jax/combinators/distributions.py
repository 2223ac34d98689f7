"""`from_distribution`: a distribution of another library, anything with `log_prob` and `sample`, as a model.

Nothing of NumPyro, distrax, FlowJAX, distreqx or TensorFlow Probability is imported. What a distribution declares of itself is read
where it has it: `arg_constraints`, `support`, `mean`, `cdf` or `log_cdf`, `icdf` or `quantile`. Libraries leave checks of values to
the user where JAX compiles, so that a scale below zero or an observation outside the support gives a number as any other; here the
first gives NaN and the second −inf.
"""

import functools
import importlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from fisher_jax.errors import check_flag, entry_point, is_number, kind_of, names_in, shown
from fisher_jax.models.constraints import (
    Constraint,
    Foreign,
    Ordered,
    fixed,
    interval,
    ordered,
    positive,
    positive_definite,
    simplex,
)
from fisher_jax.models.model import Model

_VALIDATE = "validate_args"  # an argument of NumPyro's constructors; functions that take it stand for a class
# By the name of the type, without case and underscores. The others are read from their bounds.
_CONSTRAINTS: dict[str, Constraint | None] = {
    "real": None,
    "realvector": None,
    "realmatrix": None,
    "dependent": None,
    "dependentproperty": None,
    "simplex": simplex,
    "orderedvector": ordered,
    "positiveorderedvector": Ordered(positive),
    "positivedefinite": positive_definite,
}


class DistributionModel(Model):
    """A model made by `from_distribution`."""

    def made_from(self) -> tuple[str, tuple[Any, ...]]:
        """What makes the distribution."""
        return "from_distribution", (self.log_density.source.make,)

    def facts(self, params: PyTree) -> list[tuple[str, str]]:
        """Which distribution it is."""
        source = self.log_density.source
        made = _class_of(source.make)
        return [("Distribution", f"{made.__module__.split('.')[0]} {made.__name__}")] if source.is_constructor else []


@dataclass(frozen=True)
class _Source:
    """What makes the distribution: a constructor of its parameters by name, or a function of params (and z)."""

    make: Callable[..., Any]
    is_constructor: bool

    def __call__(self, params: PyTree, *z: PyTree) -> Any:
        if not self.is_constructor:
            made = self.make(params, *z)
        elif not isinstance(params, Mapping):
            raise TypeError(f"params must be a dictionary of the distribution's arguments, got {kind_of(params)}.")
        elif z:
            raise ValueError(
                "the distribution has parameters and no covariates. Give from_distribution a function of both, "
                "lambda params, z: …, that returns a distribution."
            )
        else:
            made = self.make(**params)
        if not callable(getattr(made, "log_prob", None)):
            raise TypeError(f"make returned {kind_of(made)}, which has no method log_prob; expected a distribution.")
        return made


@dataclass(frozen=True)
class _OfDistribution:
    """One of the functions of a distribution. Equal where what makes it is."""

    source: _Source

    @property
    def user_function(self) -> Any:
        """Where its programs are stored; see `models.programs.owner_of`."""
        return self.source.make

    @property
    def made_with(self) -> tuple[bool]:
        """What else it is made of."""
        return (self.source.is_constructor,)

    @property
    def takes_covariates(self) -> bool:
        """Whether covariates are of any use to it; see `combinators.parts`."""
        return not self.source.is_constructor


class _LogDensity(_OfDistribution):
    def __call__(self, params: PyTree, y: PyTree, *z: PyTree) -> Array:
        made = self.source(params, *z)
        support = getattr(made, "support", None)
        if not callable(support):
            return _where_valid(made, made.log_prob(y))
        y = jnp.asarray(y)
        missing = jnp.any(jnp.isnan(y)) if jnp.issubdtype(y.dtype, jnp.floating) else jnp.zeros((), bool)
        inside = jnp.all(support(y))
        usable = y
        if hasattr(support, "feasible_like"):
            # Where y is not inside a point that is, so that derivatives are finite there.
            usable = jnp.where(inside, y, jnp.asarray(support.feasible_like(y)).astype(y.dtype))
        if getattr(support, "is_discrete", False):
            usable = usable.astype(int)  # a category is an index
        value = jnp.where(missing, jnp.nan, jnp.where(inside, made.log_prob(usable), -jnp.inf))
        return _where_valid(made, value)


class _Sample(_OfDistribution):
    def __call__(self, key: Array, params: PyTree, *z: PyTree) -> PyTree:
        sample = self.source(params, *z).sample
        return sample(seed=key) if "seed" in inspect.signature(sample).parameters else sample(key)


class _LogCdf(_OfDistribution):
    def __call__(self, params: PyTree, y: PyTree, *z: PyTree) -> Float[Array, ""]:
        made = self.source(params, *z)
        y, below, above = _place(made, y)
        value = made.log_cdf(y) if callable(getattr(made, "log_cdf", None)) else _log(made.cdf(y))
        return _where_valid(made, jnp.where(below, -jnp.inf, jnp.where(above, 0.0, value)))


class _LogSurvival(_OfDistribution):
    def __call__(self, params: PyTree, y: PyTree, *z: PyTree) -> Float[Array, ""]:
        made = self.source(params, *z)
        y, below, above = _place(made, y)
        if callable(getattr(made, "log_survival_function", None)):
            value = made.log_survival_function(y)
        else:
            # 1 − F has an error of F's last digit: where that is more than half of its digits there is no number.
            survival = 1.0 - made.cdf(y)
            enough = survival > jnp.finfo(survival.dtype).eps ** 0.5
            value = jnp.where(enough, jnp.log(jnp.where(enough, survival, 1.0)), jnp.nan)
        return _where_valid(made, jnp.where(below, 0.0, jnp.where(above, -jnp.inf, value)))


class _Quantile(_OfDistribution):
    def __call__(self, uniform: ArrayLike, params: PyTree, *z: PyTree) -> Array:
        made = self.source(params, *z)
        return _where_valid(made, made.icdf(uniform) if hasattr(made, "icdf") else made.quantile(uniform))


class _Mean(_OfDistribution):
    def __call__(self, params: PyTree, *z: PyTree) -> Array:
        mean = self.source(params, *z).mean
        return jnp.asarray(mean() if callable(mean) else mean)


class _Support(_OfDistribution):
    def __call__(self, params: PyTree, *z: PyTree) -> tuple[Any, Any]:
        return _ends(self.source(params, *z))


@dataclass(frozen=True)
class _Bijection:
    """The bijection to a constraint of NumPyro that this library has none of its own for."""

    constraint: Any

    def _transform(self) -> Any:
        library = type(self.constraint).__module__.split(".")[0]
        return importlib.import_module(f"{library}.distributions").biject_to(self.constraint)

    def forward(self, free: Any) -> Any:
        return self._transform()(free)

    def inverse(self, value: Any) -> Any:
        return self._transform().inv(value)


def _class_of(make: Any) -> Any:
    """A class, or a function in place of one, without the arguments that `functools.partial` fixes."""
    return make.func if isinstance(make, functools.partial) else make


def _where_valid(made: Any, value: Array) -> Array:
    """The value, NaN where an argument of the distribution violates its constraint."""
    for name, constraint in getattr(made, "arg_constraints", {}).items():
        # Those of vectors and matrices, an eigenvalue for each row, cost more than the density.
        depends = "dependent" in type(constraint).__name__.lower() and not hasattr(constraint, "base_constraint")
        is_number_wise = callable(constraint) and not depends and getattr(constraint, "event_dim", 0) == 0
        argument = getattr(made, name, None) if is_number_wise else None
        if argument is not None:
            value = jnp.where(jnp.all(constraint(jnp.asarray(argument))), value, jnp.nan)
    return value


def _place(made: Any, y: PyTree) -> tuple[Array, Array, Array]:
    """y as the distribution function takes it, and whether it lies below or above the support; inside where it does not."""
    low, high = _ends(made)
    is_discrete = getattr(getattr(made, "support", None), "is_discrete", False)
    y = jnp.asarray(y, float) if not jnp.issubdtype(jnp.result_type(y), jnp.floating) else jnp.asarray(y)
    y = jnp.floor(y) if is_discrete else y
    below, above = y < low, y >= high
    outside = below | above
    inner = jnp.where(jnp.isfinite(low), low, jnp.where(jnp.isfinite(high), high - 1.0, 0.0))
    middle = jnp.where(
        jnp.isfinite(low) & jnp.isfinite(high), 0.5 * (low + high), inner + (0.0 if is_discrete else 1.0)
    )
    return jnp.where(outside, middle, y), below, above


def _ends(made: Any) -> tuple[Any, Any]:
    """The ends of the support, infinite where it has none."""
    support = getattr(made, "support", None)
    if type(support).__name__.strip("_").lower() == "boolean":
        return 0.0, 1.0
    low, high = getattr(support, "lower_bound", -math.inf), getattr(support, "upper_bound", math.inf)
    return jnp.asarray(low, float), jnp.asarray(high, float)


def _log(probability: Array) -> Array:
    is_positive = probability > 0
    return jnp.where(is_positive, jnp.log(jnp.where(is_positive, probability, 1.0)), -jnp.inf)


@entry_point
def from_distribution(
    make: Callable[..., Any],
    *,
    parameters: str | Sequence[str] | None = None,
    example: PyTree = None,
    constraints: PyTree = None,
    discrete: bool | None = None,
    initial: Callable[..., Any] | None = None,
) -> Model:
    """A model of a distribution of NumPyro, distrax, FlowJAX, distreqx or TensorFlow Probability, or of any like theirs.

    Parameters
    ----------
    make : class or callable
        A class such as ``numpyro.distributions.Gamma``, or a function of NumPyro's that stands for several, such as ``Bernoulli``:
        the parameters are then a dictionary of its arguments, ``{"concentration": …, "rate": …}``, but for those that
        `functools.partial` fixes. Or a function of your own, ``make(params)`` or ``make(params, z)``, that returns a
        distribution: a regression, a flow, a distribution with constants.
        What it returns has a method `log_prob`; `sample` takes a key, or `seed=`.
    parameters : str or sequence of str, optional
        Of a class, the arguments that params hold. Needed where some exclude each other, as `probs` and `logits`; by default all
        that the class has constraints for.
    example : pytree, optional
        Parameters of the right shapes, at which the distribution is made once to see what it has: support, distribution function,
        quantiles, mean. For a class ½ for each parameter is tried; a function of your own has none of these without it.
    constraints : pytree, optional
        As for `Model`. Those of a class with `arg_constraints` are read from these, a whole number being `fixed`, and replaced
        where this names the same parameter; of other distributions they are all that there are.
    discrete : bool, optional
        Whether y is a whole number; by default that of the support, False where that is not known.
    initial : callable, optional
        Starting values, as for `Model`.

    Returns
    -------
    Model
        The log-density is −inf outside the support, where the distribution has one that can be called, and NaN where an argument
        that is a number violates its own constraint (both are what the status of a fit names). `log_cdf` is as accurate as the
        distribution's own; `log_survival`, where only a `cdf` is there, is log(1 − cdf), NaN where fewer than half of its digits
        are left. What the distribution does not have is None.

    Raises
    ------
    TypeError, ValueError
        If `make` is no class or function, or it is not known which arguments the parameters are.

    Notes
    -----
    What the library computes inaccurately is as inaccurate here: NumPyro's log-densities with a beta function in them are off by
    some 1e-6.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> import numpyro.distributions as dist
    >>> model = fj.from_distribution(dist.Gamma)
    >>> fit = fj.fit(model, {"concentration": 1.0, "rate": 1.0}, jnp.array([1.0, 2.0, 2.5, 4.0]))
    >>> print(f"{fit.params['concentration']:.3f} {fit.params['rate']:.3f}")
    4.468 1.881

    A regression, with a function of params and covariates:

    >>> model = fj.from_distribution(lambda beta, x: dist.Poisson(jnp.exp(x @ beta)), discrete=True)
    """
    if hasattr(make, "log_prob") and not isinstance(make, type):
        raise TypeError(
            f"make is a distribution already, {kind_of(make)}. Give its class, or a function of params that returns it."
        )
    if not callable(make):
        raise TypeError(f"make must be a class or a function that returns a distribution, got {kind_of(make)}.")
    if isinstance(make, type) and not callable(getattr(make, "log_prob", None)):
        raise TypeError(f"make is {kind_of(make)}, which has no method log_prob; expected a distribution.")
    if discrete is not None:
        check_flag(discrete, "discrete")
    try:
        arguments = dict(inspect.signature(make).parameters)
    except (TypeError, ValueError):  # some written in C have none
        arguments = {}
    of_class = _class_of(make)
    is_constructor = isinstance(of_class, type) or _VALIDATE in arguments
    if parameters is not None and not is_constructor:
        raise ValueError(
            f"parameters={shown(parameters)} are arguments of a class; a function of your own takes params as they are."
        )
    names: tuple[str, ...] = ()
    if is_constructor:
        names = _parameters(make, arguments, parameters)
    source = _Source(make, is_constructor)
    made, values = _example(source, names, example)
    # The constraints that a class declares of its parameters, as those of this library.
    declared = getattr(of_class if isinstance(of_class, type) else made, "arg_constraints", None)
    of_names = (
        {name: _constraint_from(declared[name]) for name in names if name in declared}
        if isinstance(declared, Mapping)
        else {}
    )
    read = {name: constraint for name, constraint in of_names.items() if constraint is not None}
    if read and constraints is not None and not isinstance(constraints, Mapping):
        raise TypeError(f"constraints={shown(constraints)} must be a dictionary by the names of the parameters.")
    support = getattr(made, "support", None)
    if discrete is None:
        discrete = _is_discrete(support) or _is_discrete(getattr(of_class, "support", None))
    has = functools.partial(_has, source, values, bool(discrete))
    is_scalar = made is not None and tuple(getattr(made, "event_shape", ())) == ()
    has_cdf = is_scalar and has(_LogCdf)
    return DistributionModel(
        _LogDensity(source),
        sample=_Sample(source) if made is None or callable(getattr(made, "sample", None)) else None,
        log_cdf=_LogCdf(source) if has_cdf else None,
        log_survival=_LogSurvival(source) if has_cdf and has(_LogSurvival) else None,
        quantile=_Quantile(source) if is_scalar and has(_Quantile) else None,
        mean=_Mean(source) if has(_Mean) else None,
        support=_static_support(of_class, source, made) if is_scalar and support is not None else None,
        discrete=bool(discrete),
        constraints=(read | dict(constraints or {})) if read else constraints,
        initial=initial,
    )


def _parameters(make: Any, arguments: dict[str, inspect.Parameter], parameters: Any) -> tuple[str, ...]:
    """The arguments of a constructor that params hold."""
    of_class, name_of_class = _class_of(make), _class_of(make).__name__
    if parameters is not None:
        names = tuple(names_in(parameters))
        unknown = [name for name in names if name not in arguments]
        if unknown or not names:
            raise ValueError(
                f"parameters={shown(parameters)}: {', '.join(map(repr, unknown)) or 'none'} of {name_of_class}, which takes "
                f"{', '.join(arguments)}."
            )
        return names
    declared = getattr(of_class, "arg_constraints", None)
    constrained = declared if isinstance(declared, Mapping) else {}
    fixed_ones = {_VALIDATE, *(make.keywords if isinstance(make, functools.partial) else ())}
    candidates = [name for name in arguments if name in constrained or not isinstance(of_class, type)]
    candidates = [name for name in candidates if name not in fixed_ones]
    excluding = [name for name in candidates if arguments[name].default is None]
    if excluding:
        raise ValueError(
            f"parameters: {name_of_class} takes {', '.join(excluding)}, of which some exclude each other. Say which the "
            f"parameters are, as in parameters={tuple(name for name in candidates if name not in excluding[1:])}."
        )
    return tuple(candidates)


def _example(source: _Source, names: tuple[str, ...], example: PyTree) -> tuple[Any, PyTree]:
    """The distribution at the example, or at some parameters inside their constraints; None where none can be made."""
    if example is not None:
        return source(example), example
    declared = getattr(_class_of(source.make), "arg_constraints", {})
    # Numbers, vectors or matrices; whole ones for a number of trials; increasing, as the ends of an interval are.
    for value in (0.5, 1.0, np.full(2, 0.5), 0.5 * np.eye(2)) if names else ():
        values = {}
        for k, name in enumerate(names):
            feasible = getattr(declared.get(name), "feasible_like", None)
            try:
                values[name] = np.asarray(feasible(np.asarray(value))) if feasible else np.asarray(value) + k
            except Exception:  # whatever a library raises for a shape that is not one of the parameter's
                values[name] = np.asarray(value) + k
        try:
            return source(values), values
        except Exception:  # or for a value
            continue
    return None, None


def _has(source: _Source, values: PyTree, discrete: bool, function: type[_OfDistribution]) -> bool:
    """Whether the distribution has what a function calls: by tracing it, since a base class has methods that raise."""
    if values is None:
        return False
    number = jax.ShapeDtypeStruct((), float)
    of_model: Any = function(source)
    arguments: tuple[Any, ...] = {_Quantile: (number, values), _Mean: (values,)}.get(function, (values, number))
    try:
        jax.eval_shape(of_model, *arguments)
    except Exception:  # whatever a library raises for what it does not have
        return False
    return True


def _is_discrete(support: Any) -> bool:
    try:
        return bool(getattr(support, "is_discrete", False))
    except NotImplementedError:  # a support that depends on the parameters
        return False


def _static_support(make: Any, source: _Source, made: Any) -> Any:
    """The ends of the support: numbers where the class has them, else a function of params."""
    of_class = getattr(make, "support", None)
    if of_class is None or isinstance(of_class, property):
        return _Support(source)
    return tuple(float(end) for end in _ends(made))


def _constraint_from(constraint: Any) -> Constraint | None:
    """The constraint of this library that one of NumPyro's stands for; None for a parameter that may be anything."""
    constraint = getattr(constraint, "base_constraint", constraint)
    name = type(constraint).__name__.replace("_", "").lower()
    if name in _CONSTRAINTS:
        return _CONSTRAINTS[name]
    if _is_discrete(constraint):
        return fixed
    low, high = getattr(constraint, "lower_bound", None), getattr(constraint, "upper_bound", None)
    if (low, high) != (None, None) and all(end is None or is_number(end) for end in (low, high)):
        bounds = interval(low, high)
        return bounds if bounds.restricts else None
    return Foreign(_Bijection(constraint))
