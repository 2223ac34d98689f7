"""A statistical model: the user's log-density, and optionally its sampler, constraints, start, information, quantiles and mean."""

import copy
import functools
import inspect
from dataclasses import dataclass, field, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from fisher_jax.errors import call_user, check_function, entry_point, is_number, kind_of, made_by_users, shown
from fisher_jax.models import travel
from fisher_jax.models.fingerprint import content_of
from fisher_jax.models.parameters import Declarations, Layout, Values, constraints_by_path, layout_of, names_by_path
from fisher_jax.models.probabilities import log_between, log_tails
from fisher_jax.models.programs import ById, UserFunction, owner_of

_SETTINGS = ("constraints", "initial", "prior", "names")  # about the parameters, of a model made from others too
# The functions that a model may have besides its log-density, and what each is a function of.
_FUNCTIONS = {
    "sample": "a key and params",
    "initial": "data",
    "information": "params",
    "quantile": "a uniform number and params",
    "log_cdf": "params and y",
    "log_survival": "params and y",
    "mean": "params",
    "prior": "params",
}


@made_by_users
@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A statistical model: a log-density for one observation, and optionally further functions of the same distribution.

    A function ``log_density(params, y)`` returns log p(y; θ) in nats, or ``log_density(params, y, z)`` log p(y given z; θ),
    for one observation: a scalar. Every function of fisher_jax takes the bare function where it takes a `Model`.

    Parameters
    ----------
    log_density : callable
        The log-density of one observation.
    sample : callable, optional
        ``sample(key, params)`` or ``sample(key, params, z)``: one draw of y.
    constraints : pytree of constraints, optional
        Shaped like `params` or a prefix of it; a missing key or `None` means unconstrained. A tuple of two numbers, or of a
        number and `None`, is an `interval`: ``{"p": (0, 1), "rate": (0, None)}``. Any other tuple is a tree of constraints, for
        parameters in a tuple or list; for these a tuple of numbers could be either, and is an error.
    initial : callable, optional
        ``initial(data)`` or ``initial(data, given)``: starting parameters, used where ``start=None``.
    information : callable, optional
        ``information(params)`` or ``information(params, z)``: the Fisher information of one observation in closed form, as
        a (q, q) array in the order in which JAX flattens the parameters (the keys of a dictionary sorted, however they were
        written), or as a nested pytree as `jax.hessian` returns it, in which no order can be mistaken.
    quantile : callable, optional
        ``quantile(uniform, params)`` or ``quantile(uniform, params, z)``: the y that a number in (0, 1) stands for, the inverse
        of the distribution function; what `QuasiMonteCarlo` draws with. Where y takes several numbers, `uniform` is a vector.
    log_cdf : callable, optional
        ``log_cdf(params, y)`` or ``log_cdf(params, y, z)``: log P(Y ≤ y; θ), for every real y: −inf below the support and 0 above
        it. Of a count y need not be a whole number.
    log_survival : callable, optional
        ``log_survival(params, y)`` or ``log_survival(params, y, z)``: log P(Y > y; θ), what an observation contributes of which it
        is known only that it exceeds y. It is accurate where P is tiny, where log(1 − exp(log_cdf)) is not.
    mean : callable, optional
        ``mean(params)`` or ``mean(params, z)``: the mean of y, shaped like y; what `predict` gives by default. (Of a category that
        is coded by numbers, whose mean has no meaning, the probabilities of all.) NaN or infinite where there is none.
    support : pair of numbers, or callable, optional
        The ends of the interval that y lies in, (0, inf) for a count or a duration; a function of params (and z) where they depend
        on a known constant. The intervals of predicted means and quantiles then stay inside.
    discrete : bool
        Whether y is a whole number with P(Y = y) = exp(log_density), so that the distribution function jumps there.
    prior : callable, optional
        ``prior(params)`` or ``prior(params, strength)``: a log-density in nats of the parameters as the user writes them, or a
        penalty, which a fit adds to the log-likelihood once; see `fisher_jax.priors`. The strength is an argument of the fit.
        `log_likelihood`, `score` and their kin are without it.
    names : pytree of sequences of str, optional
        Names for the entries of vectors, shaped like `params` or a part of it, as in ``{"beta": ("intercept", "age")}``. Reports
        and matrices then show `age` in place of `beta[1]`, and a parameter can be named by it.

    Raises
    ------
    TypeError
        If `log_density` is not callable, a constraint is not one, or `support` is no pair of numbers.

    Notes
    -----
    Two models are equal when they hold the same functions and constraints; what was compiled for one serves the other.
    So do functions that are made anew with the same code and values, up to 64 KiB of arrays: a lambda in a loop, a model sent to
    another process. A function that closes over another array at each turn compiles anew, with a warning: pass it as `given`.

    The density must be written with jax.numpy (`jnp.where` in place of `if`), and is differentiated twice: forward only up to
    three parameters, forward over reverse above. One that allows a single mode (`jax.custom_vjp` and `odeint` reverse,
    `jax.lax.while_loop` forward) is differentiated in that, at some cost.

    Examples
    --------
    >>> import fisher_jax as fj
    >>> from jax.scipy.stats import norm
    >>> model = fj.Model(lambda params, y: norm.logpdf(y, params["loc"], params["scale"]), constraints={"scale": fj.positive})
    >>> model.constraints
    {'scale': Interval(low=0.0, high=inf)}
    """

    log_density: Any
    sample: UserFunction | None = field(default=None, kw_only=True)
    constraints: PyTree = field(default=None, kw_only=True)
    initial: UserFunction | None = field(default=None, kw_only=True)
    information: UserFunction | None = field(default=None, kw_only=True)
    quantile: UserFunction | None = field(default=None, kw_only=True)
    log_cdf: UserFunction | None = field(default=None, kw_only=True)
    log_survival: UserFunction | None = field(default=None, kw_only=True)
    mean: UserFunction | None = field(default=None, kw_only=True)
    support: tuple[float, float] | UserFunction | None = field(default=None, kw_only=True)
    prior: UserFunction | None = field(default=None, kw_only=True)
    discrete: bool = field(default=False, kw_only=True)
    names: PyTree = field(default=None, kw_only=True)

    is_dependent = False
    num_latent = 0  # latent effects of a term, in a model made by `marginal`
    is_costly = False  # whether an evaluation takes so long that nothing is gained by compiling the steps of a fit, too

    def made_from(self) -> tuple[str, tuple[Any, ...]]:
        """The public function that made this model, and of which functions and models, as `repr` shows it."""
        return "Model", (self.log_density,)

    def __repr__(self) -> str:
        maker, parts = self.made_from()
        settings = ((setting.name, getattr(self, setting.name), setting.default) for setting in fields(Model)[1:])
        # What follows from the parts has a `user_function`, and what follows from a family stands in the family.
        given = [
            f"{name}={in_short(value)}"
            for name, value, default in settings
            if value is not default and not hasattr(value, "user_function") and (maker == "Model" or name in _SETTINGS)
        ]
        return f"{maker}({', '.join([*map(in_short, parts), *given])})"

    @property
    def with_modes(self) -> UserFunction | None:
        """Of a model made by `marginal`: from (params, y, z) to y with the mode of its latent effects at these parameters.

        Where the density is differentiated, the modes are found once before, and their search is not differentiated. With
        ``begin=``, effects (q,), it begins there, where they are numbers.
        """
        return None

    def count_rows(self, data: PyTree, given: PyTree, weights: Any) -> float | None:
        """How many rows there are in all observations, where each is a group of rows; None of other models, or if unknown."""
        return None

    def log_probability(self, params: PyTree, low: Any, high: Any, *z: PyTree) -> Array:
        """log P(low < Y ≤ high; θ) of a model with a distribution function; the ends may be infinite.

        −∞ where the interval is empty, or its probability is below the rounding of the functions; NaN where low > high.
        """
        cdf_low, survival_low = log_tails(self.log_cdf, self.log_survival, params, low, *z)
        cdf_high, survival_high = log_tails(self.log_cdf, self.log_survival, params, high, *z)
        return jnp.where(low > high, jnp.nan, log_between(cdf_low, survival_low, cdf_high, survival_high))

    def check_parameters(self, params: PyTree) -> None:
        """Raise where parameters lack what the model needs of them; of a bare density nothing is known."""

    def explain(self, params: PyTree, y: PyTree, *z: PyTree) -> str:
        """Why the log-density of an observation is not finite, in words; empty where the model does not know."""
        return ""

    def facts(self, params: PyTree) -> list[tuple[str, str]]:
        """What the report of a fit states about a model of this kind beside what it states about all: titles with their texts."""
        return []

    def check_data(self, data: PyTree, given: PyTree) -> None:
        """Raise where data or covariates, as arrays, do not have the form or the values that the model takes; called once."""

    def check_draws(self, given: PyTree) -> None:
        """Raise where a draw given these covariates would not be one of the data that the log-density counts."""

    @property
    def how_to_draw(self) -> str:
        """What to give so that a model without a sampler has one, in words."""
        return "Give Model(…, sample=function(key, params)), one draw of y."

    @property
    def numbers_in_row(self) -> int:
        """How many numbers an observation holds that each inform about the parameters, as the bins of a histogram; else one."""
        return 1

    @property
    def atoms(self) -> tuple[float, ...]:
        """Of a model that is not `discrete`, the values at which its distribution function jumps, by exp(log_density) there."""
        return ()

    def known_interval(self, params: PyTree, y: PyTree, *z: PyTree) -> tuple[Any, Any] | None:
        """The ends of the interval (low, high] in which an observation is known to lie, equal where its value is known.

        None of a model whose observations are the values themselves.
        """
        return None

    @property
    def num_effects(self) -> int:
        """How many latent effects a group has of which each has a variance of its own; zero of other models."""
        return 0

    @property
    def integrated(self) -> tuple[str, ...]:
        """The coefficients over which a restricted likelihood is integrated, by name; none of other models."""
        return ()

    @property
    def parts(self) -> "dict[str, Model]":
        """Of a model made by `joint`, whose data are a dictionary by part, that of a row of each part; none of other models."""
        return {}

    @property
    def auxiliary(self) -> UserFunction | None:
        """The log-density of what was measured beside the observations, of a model made by `with_auxiliary`."""
        return None

    @entry_point
    def __post_init__(self) -> None:
        if not callable(self.log_density) or isinstance(self.log_density, type):
            raise TypeError(
                f"expected a function log_density(params, y), got {kind_of(self.log_density)}. "
                "Write the log-density of one observation as a function."
            )
        for name, of in _FUNCTIONS.items():
            if getattr(self, name) is not None:
                check_function(getattr(self, name), name, of)
        if self.support is not None and not callable(self.support):
            ends = self.support if isinstance(self.support, tuple) else ()
            if len(ends) != 2 or not all(map(is_number, ends)) or not ends[0] < ends[1]:
                raise TypeError(
                    f"support={shown(self.support)} must be a pair of numbers, the lower end first, as in (0, math.inf), or a "
                    "function of params that returns one."
                )
        if not isinstance(self.discrete, bool):
            raise TypeError(f"discrete={shown(self.discrete)} must be True, for whole numbers, or False.")
        declared = Declarations(constraints_by_path(self.constraints), names_by_path(self.names))
        functions = (f if isinstance(f, tuple) else ById(f) for f in self._functions)
        key = (type(self), *functions, self.discrete, declared)
        object.__setattr__(self, "_key", key)
        object.__setattr__(self, "_hash", hash(key))

    @property
    def _functions(self) -> tuple[Any, ...]:
        """The log-density and the others, and the support, which may be a pair of numbers."""
        return self.log_density, *(getattr(self, name) for name in _FUNCTIONS), self.support

    @property
    def declarations(self) -> Declarations:
        """Constraints and names of entries by path, hashable."""
        return self._key[-1]  # type: ignore[attr-defined]

    @functools.cached_property
    def function_keys(self) -> tuple[Any, ...]:
        """Its functions and its support as keys of compiled programs, which are stored with the owner of the density."""
        return self.keys_beside(owner_of(self.log_density)[0])

    def keys_beside(self, owner: Any) -> tuple[Any, ...]:
        """Its functions and its support as keys of programs that are stored with `owner`.

        A key must not refer to that owner: it would never be freed.
        """
        keys: list[Any] = []
        for function in self._functions:
            if isinstance(function, tuple):  # the ends of a support
                keys.append(function)
                continue
            its_owner, rest = owner_of(function)
            if its_owner is owner:
                keys.append(rest)
            else:
                keys.append(None if function is None else content_of(function)[0] or ById(function))
        return tuple(keys)

    @functools.cached_property
    def keys_of_fit(self) -> tuple[Any, ...]:
        """Of `function_keys` those of what has a part in a fit: the log-density, the information and the prior."""
        of_each = dict(zip(("log_density", *_FUNCTIONS), self.function_keys, strict=False))
        return of_each["log_density"], of_each["information"], of_each["prior"]

    @functools.cached_property
    def program_key(self) -> tuple[Any, ...]:
        """What a compiled program depends on of the model."""
        return type(self), *self.function_keys, self.discrete, self.declarations

    def __reduce__(self) -> tuple[Any, ...]:
        """By name and state; a process that has the model of this name does without the state."""
        return travel.arrive, (type(self), travel.name_of(self)), self.__getstate__()

    def __getstate__(self) -> dict[str, Any]:
        """Without the key: functions are hashed by identity, which another process does not share."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_key" in self.__dict__:  # it was here already
            return
        for name, value in state.items():
            object.__setattr__(self, name, value)
        self.__post_init__()
        travel.stay(self)

    def __copy__(self) -> "Model":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Model":
        """Itself, since functions are not copied; but an object of the user's that is called as a function is."""
        state = self.__getstate__()
        copied = {name: copy.deepcopy(value, memo) for name, value in state.items()}
        if all(value is state[name] or not callable(value) for name, value in copied.items()):
            return self
        other = object.__new__(type(self))
        for name, value in copied.items():
            object.__setattr__(other, name, value)
        other.__post_init__()
        return other

    def __hash__(self) -> int:
        return self._hash  # type: ignore[attr-defined]

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Model) and self._key == other._key)  # type: ignore[attr-defined]


def in_short(part: Any) -> str:
    """A part of a model as text: a function by its name."""
    if isinstance(part, Model | dict):
        return repr(part)
    return getattr(part, "__name__", None) or shown(part)


class DependentModel(Model):
    """A model made by `dependent`: its `log_density` takes all the data at once and returns one term for each time."""

    is_dependent = True

    def made_from(self) -> tuple[str, tuple[Any, ...]]:
        """The function of the terms."""
        return "dependent", (self.log_density,)


@entry_point
def dependent(
    terms: UserFunction,
    *,
    sample: UserFunction | None = None,
    constraints: PyTree = None,
    initial: UserFunction | None = None,
    information: UserFunction | None = None,
    log_cdf: UserFunction | None = None,
    log_survival: UserFunction | None = None,
    discrete: bool = False,
    names: PyTree = None,
) -> Model:
    """A model of dependent data from its conditional log-densities log p(y_t | y_1, …, y_{t−1}).

    Parameters
    ----------
    terms : callable
        ``terms(params, data)`` or ``terms(params, data, given)``: the conditional log-densities in nats, shape (n,), for all
        of the data. A likelihood conditional on the first m values returns n − m terms; the number of observations
        is the number of terms.
    sample, constraints, initial, information, names
        As for `Model`; `information(params)` or `information(params, given)` is that of one term on average, all of `given`
        at once.
    log_cdf, log_survival : callable, optional
        ``log_cdf(params, data)`` or ``log_cdf(params, data, given)``: log P(Y_t ≤ y_t | y_1, …, y_{t−1}), shape (n,), a value for
        each term; and log P(Y_t > y_t | …), which is accurate in the upper tail. `residuals` and `goodness_of_fit` need one of
        them.
    discrete : bool
        Whether each y_t is a whole number, with P(Y_t = y_t | …) = exp(term).

    Returns
    -------
    Model
        A model that every function of fisher_jax takes.

    Notes
    -----
    The scores of the terms are martingale differences if the model is right, so that their outer products estimate the
    information as they do for independent data. Terms are never cut into chunks, since each may need all that went before.

    Examples
    --------
    An autoregression of order one, conditional on the first value:

    >>> import fisher_jax as fj
    >>> from jax.scipy.stats import norm
    >>> model = fj.dependent(
    ...     lambda params, y: norm.logpdf(y[1:], params["phi"] * y[:-1], params["scale"]),
    ...     constraints={"scale": fj.positive},
    ... )
    """
    return DependentModel(
        terms,
        sample=sample,
        constraints=constraints,
        initial=initial,
        information=information,
        log_cdf=log_cdf,
        log_survival=log_survival,
        discrete=discrete,
        names=names,
    )


def check_distribution(model: Model, what: str) -> None:
    """Raise where the model has neither a distribution nor a survival function, which `what` needs."""
    if model.log_cdf is None and model.log_survival is None:
        raise ValueError(
            f"{model!r} has neither log_cdf nor log_survival, which {what} needs. Give Model(…, log_cdf=function of params and y), "
            "or take a family that has it."
        )


def check_without_prior(model: Model, made: str) -> None:
    """Raise where a model that another is made of has a prior, which would be lost: it is of the parameters of the whole."""
    if model.prior is not None:
        raise ValueError(
            f"a model has a prior, which counts once and belongs to the whole. Write with_prior({made}(…), prior) in place of "
            f"{made}(with_prior(…))."
        )


def check_quantile(model: Model) -> None:
    """Raise where the model has no quantile function."""
    if model.quantile is None:
        raise ValueError(
            "the model has no quantile function. Give Model(…, quantile=function of a number and params), or take a family that "
            "has one."
        )


def check_distribution_function(model: Model) -> None:
    """Raise where the model has no distribution function, both tails of it."""
    if model.log_cdf is None or model.log_survival is None:
        raise ValueError(
            f"{model!r} has no distribution function: it needs log_cdf and log_survival. Give Model(…, log_cdf=…, "
            "log_survival=…), functions of params and y, or with_distribution_function(model), which integrates the density of a "
            "single number, or take a family that has them."
        )


def as_model(model: Any) -> Model:
    """The model meant by a `Model` or a bare log-density."""
    if isinstance(model, Model):
        travel.check_precision(model)
        return model
    if callable(model) and not isinstance(model, type):
        return Model(model)
    raise TypeError(f"expected a fisher_jax.Model or a function log_density(params, y), got {kind_of(model)}.")


def check_arity(function: UserFunction, names: tuple[str, ...], name: str) -> None:
    """Raise where a user's function cannot be called with arguments of these names, the covariates' being `z`."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # built-in functions have none
        return
    try:
        signature.bind(*range(len(names)))
    except TypeError:
        hint = "given= passes it the covariates as last argument." if "z" in names else "Pass its covariates as given=."
        raise TypeError(f"{name} takes {signature}, but is called as {name}({', '.join(names)}). {hint}") from None


def starting_parameters(model: Model, params: PyTree, data: PyTree, given: PyTree) -> PyTree:
    """`params`, or what the model's `initial` returns for the data where they are None."""
    if params is not None:
        return params
    if model.initial is None:
        raise ValueError(
            "start is None and the model has no `initial`. "
            "Give starting parameters, or Model(…, initial=function of the data)."
        )
    return call_user(model.initial, (data,) if given is None else (data, given), "initial")


def check_start(layout: Layout, values: Values, which: str = "") -> None:
    """Raise, by name, where starting values violate their constraint. Traced values are left to the status."""
    for (i, leaf), inside in zip(layout.free_leaves, layout.contains(values), strict=True):
        if not isinstance(inside, jax.core.Tracer) and not inside:
            raise ValueError(
                f"{which}parameter `{leaf.name}` starts at {np.asarray(values[i])}, but must be "
                f"{leaf.constraint.description}. Start strictly inside."
            )


def flatten_parameters(model: Model, params: PyTree) -> tuple[Layout, Values]:
    """The layout of the user's parameters under the model's constraints, and their array leaves."""
    model.check_parameters(params)
    return layout_of(params, model.declarations)
