"""What the user brings: one log-density, and what is known beside it."""

import functools
import inspect
import threading
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from fisher_jax.errors import call_user, check_function, entry_point, kind_of, warn
from fisher_jax.models.fingerprint import PROGRAMS, content_of, unknown
from fisher_jax.models.fingerprint import Table as Contents
from fisher_jax.models.parameters import Layout, Table, Values, constraint_table, layout_of
from fisher_jax.numerics.array_namespace import is_traced
from fisher_jax.numerics.autodiff_modes import in_both_modes

UserFunction = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Model:
    """A statistical model: a log-density for one observation, and optionally what else is known of it.

    A function ``log_density(params, y)`` returns log p(y; θ) in nats, or ``log_density(params, y, z)`` log p(y given z; θ),
    for one observation: a scalar. Every function of fisher_jax takes the bare function where it takes a `Model`.

    Parameters
    ----------
    log_density : callable
        The log-density of one observation.
    sample : callable, optional
        ``sample(key, params)`` or ``sample(key, params, z)``: one draw of y.
    constraints : pytree of constraints, optional
        Shaped like `params` or a prefix of it; a missing key or `None` means unconstrained.
    initial : callable, optional
        ``initial(data)`` or ``initial(data, given)``: starting parameters, used where a fit is given ``params=None``.
    information : callable, optional
        ``information(params)`` or ``information(params, z)``: the Fisher information of one observation in closed form, as
        a (q, q) array in the order of the flattened parameters (JAX sorts the keys of a dictionary), or as a nested
        pytree as `jax.hessian` returns it, in which no order can be mistaken.
    quantile : callable, optional
        ``quantile(uniform, params)`` or ``quantile(uniform, params, z)``: the y that a number in (0, 1) stands for, the inverse
        of the distribution function; what `QuasiMonteCarlo` draws with. Where y takes several numbers, `uniform` is a vector.

    Raises
    ------
    TypeError
        If `log_density` is not callable, or a constraint is not one.

    Notes
    -----
    Two models are equal when they hold the same functions and constraints; what was compiled for one serves the other.
    So do functions that are made anew with the same code and values, up to 64 KiB of arrays: a lambda in a loop, a model sent to
    another process. One that closes over another array at each turn compiles anew, with a warning: hand it over as `given`.

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

    is_dependent = False

    @entry_point
    def __post_init__(self) -> None:
        if not callable(self.log_density) or isinstance(self.log_density, type):
            raise TypeError(
                f"Model: expected a function log_density(params, y), got {kind_of(self.log_density)}. "
                "Write the log-density of one observation as a function."
            )
        functions = (self.log_density, self.sample, self.initial, self.information, self.quantile)
        arguments = ("a key and params", "data", "params", "a uniform number and params")
        for name, function, of in zip(
            ("sample", "initial", "information", "quantile"), functions[1:], arguments, strict=True
        ):
            if function is not None:
                check_function(function, name, of)
        key = (type(self), *(ById(f) for f in functions), constraint_table(self.constraints))
        object.__setattr__(self, "_key", key)
        object.__setattr__(self, "_hash", hash(key))

    @property
    def constraint_table(self) -> Table:
        """The constraints by path, hashable."""
        return self._key[-1]  # type: ignore[attr-defined]

    @functools.cached_property
    def _parts(self) -> tuple[Any, ...]:
        """What its functions are, in the keys of what is compiled for it.

        That is kept with the owner of its density, so that keys leave out what the owner owns.
        """
        owner, _ = owner_of(self.log_density)
        functions = (self.log_density, self.sample, self.initial, self.information, self.quantile)
        made_of = (owner_of(f) for f in functions)
        return tuple(
            rest if own is owner else None if f is None else content_of(f)[0] or ById(f)
            for f, (own, rest) in zip(functions, made_of, strict=True)
        )

    @functools.cached_property
    def _program_key(self) -> tuple[Any, ...]:
        return type(self), *self._parts, self.constraint_table

    def __getstate__(self) -> dict[str, Any]:
        """Without the key: functions are hashed by identity, which a copy or another process does not share."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)
        self.__post_init__()

    def __hash__(self) -> int:
        return self._hash  # type: ignore[attr-defined]

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Model) and self._key == other._key)  # type: ignore[attr-defined]


class DependentModel(Model):
    """A model made by `dependent`: its `log_density` takes all the data at once and returns one term for each time."""

    is_dependent = True


class ById:
    """A function compared by what it is: equal functions first, then identity where equality is not to be had."""

    def __init__(self, function: Any) -> None:
        self.function = function
        try:
            self.hash = hash(function)
        except TypeError:  # an Equinox module with arrays inside
            self.hash = id(function)

    def __reduce__(self) -> tuple[Any, ...]:
        return ById, (self.function,)

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ById) or self.hash != other.hash:
            return False
        return self.function is other.function or (self.hash != id(self.function) and self.function == other.function)


@entry_point
def dependent(
    terms: UserFunction,
    *,
    sample: UserFunction | None = None,
    constraints: PyTree = None,
    initial: UserFunction | None = None,
    information: UserFunction | None = None,
) -> Model:
    """A model of dependent data from its conditional log-densities log p(y_t | y_1, …, y_{t−1}).

    Parameters
    ----------
    terms : callable
        ``terms(params, data)`` or ``terms(params, data, given)``: the conditional log-densities in nats, shape (n,), for all
        of the data. A likelihood conditional on the first m values returns n − m terms; the number of observations
        is the number of terms.
    sample, constraints, initial, information
        As for `Model`; `information(params)` or `information(params, given)` is that of one term on average, all of `given`
        at once.

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
    return DependentModel(terms, sample=sample, constraints=constraints, initial=initial, information=information)


class Programs(dict[Any, Any]):
    """Compiled programs, which stay in this process when what holds them is copied or pickled."""

    def __reduce__(self) -> Any:
        return type(None), ()

    def __deepcopy__(self, memo: Any) -> None:
        return None


def owner_of(function: Any) -> tuple[Any, tuple[Any, ...]]:
    """The user's function or object that a function is made of, and what else it is made of.

    A bound method is one of its object, and a wrapper of ours, made anew at each call, is one of its `user_function`.
    """
    if inspect.ismethod(function):
        return function.__self__, (function.__func__,)
    if not hasattr(function, "user_function"):
        return function, ()
    owner, rest = owner_of(function.user_function)
    return owner, (type(function), *function.made_with, *rest)


def programs_of(model: Model) -> dict[Any, Any]:
    """Where what was compiled for a density is kept: with the user's function or object, so that both go together.

    Models that hold the same density and information share it, whatever their constraints: keys name the layout. A callable that
    takes no attributes keeps nothing beyond its `Model`. Neither keys nor programs may hold the function or the model: in a cycle
    of references all that the function closes over waits for a garbage collection, which may come late.
    """
    owner, _ = owner_of(model.log_density)
    holder = owner if hasattr(owner, "__dict__") and not isinstance(owner, type) else model
    # Keys that hold a function go with the density, and not with what is shared, which would keep that function.
    alone = any(isinstance(part, ById) for part in model._parts)
    name = f"{PROGRAMS}_alone" if alone else PROGRAMS
    with _lock:
        programs: Programs | None = holder.__dict__.get(name)
        if programs is None:  # or what a copy of it left here
            programs = holder.__dict__[name] = Programs() if alone else _programs_like(owner)
    return programs.setdefault((type(model), model._parts[0], model._parts[3]), {})


def _programs_like(function: Any) -> Programs:
    """What was compiled for a function that did the same, if that is still known, or nothing yet.

    A lambda written anew in a loop, and a model that a task of joblib or Dask unpickles, are new functions at each turn. What was
    compiled for the last of them outlives them, as far as it closes over little.
    """
    key, table = content_of(function)
    if key is not None and key in _last_used:
        _last_used.move_to_end(key)
        return _last_used[key]
    programs = Programs()
    if key is not None:
        _last_used[key] = programs
        if len(_last_used) > NUM_KEPT:
            _last_used.popitem(last=False)
    if isinstance(function, types.FunctionType):
        _warn_of_many(function, table)
    return programs


def _warn_of_many(function: types.FunctionType, table: Contents) -> None:
    """Warn, once for each place in the user's code, where function after function comes from it and each compiles anew."""
    place = function.__code__.co_filename, function.__code__.co_firstlineno, function.__qualname__
    number, last = _made_at.get(place, (0, {}))
    _made_at[place] = number + 1, table
    if number + 1 != MANY:
        return
    differ = [row for row in table if table[row] != last.get(row) or row in unknown(table)]
    names = dict.fromkeys(" ".join(row.split()[:2]).removesuffix(" methods") for row in differ)
    warn(
        f"fisher_jax: {function.__qualname__} ({place[0]}, line {place[1]}) has been made anew {MANY} times, and each of these "
        f"functions is compiled anew: they differ in {', '.join(names) or 'their code'}. Hand what differs to one function, by "
        "given= or as a fixed parameter; or make the function once and use it again.",
        UserWarning,
    )


NUM_KEPT = 32  # functions whose programs are kept when they are gone; each some megabytes
MANY = 4  # two or three functions of one place are models to compare
_last_used: OrderedDict[str, Programs] = OrderedDict()
_made_at: dict[tuple[str, int, str], tuple[int, Contents]] = {}
_lock = threading.RLock()  # a warning may run code of the user's
_traced = threading.local()  # a weak reference to the model of the program that is called


def quick(level: int) -> dict[str, Any]:
    """Compiler options for what runs for less time than it compiles; a later JAX may not know them."""
    return {"xla_backend_optimization_level": level, "xla_cpu_use_fusion_emitters": False}


@functools.cache
def quick_options(level: int) -> dict[str, Any] | None:
    """The options of `quick`; None where this JAX or device does not know them.

    Of a dozen programs that draw and differentiate, level 1 took 0.45 of the default's time to compile and as long to run, level 0
    took 0.3 of it and four times as long to run.
    """
    options = quick(level)
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options=options)
    except jax.errors.JaxRuntimeError:
        return None
    return options


def jit_with_model(
    function: Callable[..., Any], *, static_argnums: tuple[int, ...], level: int | None = None
) -> Callable[..., Any]:
    """`jax.jit` for a function one of whose static arguments is `model`, with which its programs are kept.

    JAX's caches hold static arguments, and so all that a density closes over, until the process ends. Here these make the key of a
    program that is kept by `programs_of`, and the program takes the model from its caller where it is traced. With a `level` it is
    compiled by the `quick_options` of that level, unless it is a part of a larger program.
    """
    place = list(inspect.signature(function).parameters).index("model")

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        model = arguments[place]
        static = {k: arguments[k] for k in static_argnums if k != place}
        arrays = [array for k, array in enumerate(arguments) if k not in static_argnums]
        quick = level is not None and not is_traced(arrays)
        key = function, model._program_key, quick, *static.items()
        programs = programs_of(model)
        if key not in programs:

            @functools.wraps(function)
            def traced(*arrays: Any) -> Any:
                known, rest = static | {place: _traced.model()}, iter(arrays)
                return function(*(known[k] if k in known else next(rest) for k in range(len(known) + len(arrays))))

            programs[key] = jax.jit(traced, compiler_options=quick_options(level) if quick else None)
        _traced.model = weakref.ref(model)
        return programs[key](*arrays)

    return call


def as_model(model: Any) -> Model:
    """The model meant by a `Model` or a bare log-density."""
    if isinstance(model, Model):
        return model
    if callable(model) and not isinstance(model, type):
        return Model(model)
    raise TypeError(f"expected a fisher_jax.Model or a function log_density(params, y), got {kind_of(model)}.")


def call_density(function: UserFunction, arguments: tuple[Any, ...], name: str) -> Any:
    """Call the user's function; where its argument list is what does not fit, say how it is called."""
    check_arity(function, ("params", "y", "z")[: len(arguments)], name)
    value = call_differentiable(function, arguments, name)
    if not isinstance(value, bool | int | float | complex | np.generic | np.ndarray | jax.Array):
        raise TypeError(f"{name} must return an array but returned {kind_of(value)}.")
    return value


def call_differentiable(function: UserFunction, arguments: tuple[Any, ...], name: str) -> Any:
    """What a function of the user's returns, ready for either mode of differentiation; see `numerics.autodiff_modes`.

    What is found of its modes is kept with it, as its programs are.
    """
    owner, rest = owner_of(function)
    kept: dict[Any, Any] = {}
    if hasattr(owner, "__dict__") and not isinstance(owner, type):
        kept = owner.__dict__.setdefault("_fisher_jax_programs", Programs()).setdefault(("modes", *rest), {})

    def ready(*arguments: Any) -> Any:
        return in_both_modes(function, arguments, kept)(*arguments)

    return call_user(ready, arguments, name)


def check_arity(function: UserFunction, names: tuple[str, ...], name: str) -> None:
    """Refuse a user's function that cannot be called with arguments of these names, the covariates' being `z`."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # built-in functions have none
        return
    try:
        signature.bind(*range(len(names)))
    except TypeError:
        hint = "given= hands it the covariates as last argument." if "z" in names else "Pass its covariates as given=."
        raise TypeError(f"{name} takes {signature}, but is called as {name}({', '.join(names)}). {hint}") from None


def check_floating(value: Any, name: str) -> Array:
    value = jnp.asarray(value)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(
            f"{name} must return a floating number in nats but returned dtype {value.dtype}. "
            "Does it compare or round where it should compute?"
        )
    return value


def shapes_of(tree: PyTree) -> str:
    shapes = [str(jnp.shape(leaf)) for leaf in jax.tree.leaves(tree)]
    return shapes[0] if len(shapes) == 1 else f"({', '.join(shapes)})"


def starting_parameters(model: Model, params: PyTree, data: PyTree, given: PyTree) -> PyTree:
    """`params`, or what the model's own `initial` makes of the data."""
    if params is not None:
        return params
    if model.initial is None:
        raise ValueError(
            "params is None and the model has no `initial`. "
            "Give starting parameters, or Model(…, initial=function of the data)."
        )
    return call_user(model.initial, (data,) if given is None else (data, given), "initial")


def check_start(layout: Layout, values: Values, which: str = "") -> None:
    """Refuse, by name, starting values outside their constraint. Values known only when run are left to the status."""
    for (i, leaf), inside in zip(layout.free_leaves, layout.contains(values), strict=True):
        if not isinstance(inside, jax.core.Tracer) and not inside:
            raise ValueError(
                f"{which}parameter `{leaf.name}` starts at {np.asarray(values[i])}, but must be "
                f"{leaf.constraint.description}. Start strictly inside."
            )


def flatten_parameters(model: Model, params: PyTree) -> tuple[Layout, Values]:
    """The layout of the user's parameters under the model's constraints, and their array leaves."""
    return layout_of(params, model.constraint_table)
