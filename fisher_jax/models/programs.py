"""Compiled programs of a model: where they are stored, when two functions share them, and how they are compiled.

`jax.jit` stores its programs, with all static arguments, in caches that live as long as the process; a density that closes over a
large array would stay with them. Here programs are stored with the user's function (in its `__dict__`), so that they are freed
with it. Functions that are made anew with the same code and values (a lambda in a loop, a model that a worker unpickles) share the
programs of the first, as far as `fingerprint.content_of` can identify them.
"""

import contextlib
import functools
import gc
import inspect
import os
import threading
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import jax

from fisher_jax.errors import call_user, warn
from fisher_jax.models.fingerprint import PROGRAMS, Fingerprint, content_of, unknown
from fisher_jax.numerics.array_namespace import is_traced
from fisher_jax.numerics.autodiff_modes import in_both_modes

UserFunction = Callable[..., Any]
MAX_SHARED = 32  # functions whose programs outlive them; each some megabytes
MANY = 4  # functions made at one place before a warning: two or three are models to compare


# XLA's fusions with YNNPACK, which JAX 0.11 turned on, race: sums in a mapped function differ from run to run, by much now and then
# (seen with jaxlib 0.11.2 and 0.12.0 in a quadrature over five thousand groups; never without them).
SAME_SUMS = {"xla_cpu_experimental_ynn_fusion_type": ""}


class ById:
    """A function compared by equality where it has one (two partials may be equal), else by identity."""

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


class Programs(dict[Any, Any]):
    """Compiled programs, which stay in this process when the object that stores them is copied or pickled."""

    def __reduce__(self) -> Any:
        return type(None), ()

    def __deepcopy__(self, memo: Any) -> None:
        return None


_shared: OrderedDict[str, Programs] = OrderedDict()  # by content of the function, the last used at the end
_last_made: dict[
    tuple[str, int, str], tuple[int, Fingerprint]
] = {}  # by place in the user's code: how many, and the last one's content
_lock = threading.RLock()  # reentrant, since a warning may run code of the user's
_traced = threading.local()  # a weak reference to the model of the program that is called


def owner_of(function: Any) -> tuple[Any, tuple[Any, ...]]:
    """The user's function or object behind a function, with which programs are stored, and what else the function is made of.

    For a bound method it is the object, for a wrapper of this library, which is made anew at each call, its `user_function`.
    """
    if inspect.ismethod(function):
        return function.__self__, (function.__func__,)
    if not hasattr(function, "user_function"):
        return function, ()
    owner, rest = owner_of(function.user_function)
    return owner, (type(function), *function.made_with, *rest)


def programs_of(model: Any) -> dict[Any, Any]:
    """The programs compiled for the density of a `Model`, stored with the user's function or object.

    Models with the same density, information and prior share them, whatever their constraints: the keys contain the layout. A
    callable that takes no attributes stores nothing; its `Model` does. Neither keys nor programs may refer to the function or the
    model: in a cycle of references all that the function closes over waits for a garbage collection, which may come late.
    """
    owner, _ = owner_of(model.log_density)
    holder = owner if hasattr(owner, "__dict__") and not isinstance(owner, type) else model
    # Keys with a function in them must not be in a table that other functions share: it would keep that function alive.
    refers_to_functions = any(isinstance(key, ById) for key in model.function_keys)
    name = f"{PROGRAMS}_alone" if refers_to_functions else PROGRAMS
    code = getattr(owner, "__code__", None)
    with _lock:
        made_of: Programs = holder.__dict__.get(f"{PROGRAMS}_made_of") or Programs(code=code)
        if made_of["code"] is not code:  # replaced in place, as IPython's %autoreload does
            for stale in (PROGRAMS, f"{PROGRAMS}_alone"):
                holder.__dict__.pop(stale, None)
            made_of = Programs(code=code)
        holder.__dict__[f"{PROGRAMS}_made_of"] = made_of
        programs: Programs | None = holder.__dict__.get(name)
        if programs is None:  # or what a copy of it left here
            programs = holder.__dict__[name] = Programs() if refers_to_functions else _shared_programs(owner)
    return programs.setdefault((type(model), *model.keys_of_fit), {})


def _shared_programs(function: Any) -> Programs:
    """The programs of an earlier function with the same content, or new ones.

    The last `MAX_SHARED` are stored here, by content, so that they outlive a function that is made anew at each turn of a loop.
    Where functions of one place in the user's code differ at each turn, each compiles anew: one warning names what differs.
    """
    content, table = content_of(function)
    if content is not None and content in _shared:
        _shared.move_to_end(content)
        return _shared[content]
    programs = Programs()
    if content is not None:
        _shared[content] = programs
        if len(_shared) > MAX_SHARED:
            _shared.popitem(last=False)
    if isinstance(function, types.FunctionType):
        place = function.__code__.co_filename, function.__code__.co_firstlineno, function.__qualname__
        number, last = _last_made.get(place, (0, {}))
        _last_made[place] = number + 1, table
        if number + 1 == MANY:
            different = [row for row in table if table[row] != last.get(row) or row in unknown(table)]
            names = dict.fromkeys(" ".join(row.split()[:2]).removesuffix(" methods") for row in different)
            warn(
                f"{function.__qualname__} ({place[0]}, line {place[1]}) has been made anew {MANY} times, and each "
                f"of these functions is compiled anew: they differ in {', '.join(names) or 'their code'}. Pass what differs to "
                "one function, by given= or as a fixed parameter; or make the function once and use it again.",
                UserWarning,
            )
    return programs


def quick(level: int | None) -> dict[str, Any]:
    """Compiler options for a program that runs for less time than it compiles; with None for any. A later JAX may not know them.

    What XLA_FLAGS says of them stands, for an option of a program would go before it.
    """
    if level is None:
        return SAME_SUMS
    # A compile option of JAX 0.10 only, whose emitters are the slower to compile.
    emitters = {"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else {}
    options: dict[str, Any] = {"xla_backend_optimization_level": level, **emitters}
    flags = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in options.items() if name not in flags} | SAME_SUMS


@functools.cache
def quick_options(level: int | None) -> dict[str, Any] | None:
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


_making = 0  # programs that are being made
_collected_before = True


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Without Python's garbage collector while a program is traced and compiled; then it is as it was before.

    For every 700 new objects it would look at the young ones, and now and then at all. JAX makes millions, few of them garbage that
    only the collector finds: a fifth to a fourth of the time of a first fit with latent effects went there.
    """
    global _making, _collected_before
    with _lock:
        if _making == 0:
            _collected_before = gc.isenabled()
            gc.disable()
        _making += 1
    try:
        yield
    finally:
        with _lock:
            _making -= 1
            if _making == 0 and _collected_before:
                gc.enable()


def jit_with_model(
    function: Callable[..., Any],
    *,
    static_argnums: tuple[int, ...],
    level: int | None = None,
    single_threaded: bool = False,
) -> Callable[..., Any]:
    """`jax.jit` for a function one of whose static arguments is `model`, with which its programs are stored.

    The static arguments are the key of a program in `programs_of(model)`. The program itself must not refer to the model (see
    there), so it takes the model from its caller where it is traced. It is compiled by the `quick_options` of its `level`, unless
    it is a part of a larger program. What is called by a thread for each core is `single_threaded`: it then neither waits for XLA's
    threads nor depends on their number.
    """
    place = list(inspect.signature(function).parameters).index("model")

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        model = arguments[place]
        static = {k: arguments[k] for k in static_argnums if k != place}
        arrays = [array for k, array in enumerate(arguments) if k not in static_argnums]
        is_whole = not is_traced(arrays)
        key = function, model.program_key, is_whole, *static.items()
        programs = programs_of(model)
        if key not in programs:

            @functools.wraps(function)
            def traced(*arrays: Any) -> Any:
                fixed, rest = static | {place: _traced.model()}, iter(arrays)
                return function(*(fixed[k] if k in fixed else next(rest) for k in range(len(fixed) + len(arrays))))

            options = quick_options(level) if is_whole else None
            if options is not None and single_threaded:
                options = options | {"xla_cpu_multi_thread_eigen": False}
            programs[key] = jax.jit(traced, compiler_options=options)
            _traced.model = weakref.ref(model)
            with collection_paused():
                return programs[key](*arrays)
        _traced.model = weakref.ref(model)
        return programs[key](*arrays)

    return call


def call_differentiable(function: UserFunction, arguments: tuple[Any, ...], name: str) -> Any:
    """Call a function of the user's so that JAX can differentiate it in either mode; see `numerics.autodiff_modes`.

    The modes that it has by itself are stored with it, as its programs are. To find them it is traced several times, which a
    function of this library that `has_both_modes` need not be.
    """
    if getattr(function, "has_both_modes", False):
        return call_user(function, arguments, name)
    owner, rest = owner_of(function)
    modes: dict[Any, Any] = {}
    if hasattr(owner, "__dict__") and not isinstance(owner, type):
        with _lock:
            if owner.__dict__.get(PROGRAMS) is None:  # or what a copy of it left here
                owner.__dict__[PROGRAMS] = Programs()
            modes = owner.__dict__[PROGRAMS].setdefault(("modes", *rest), {})
    return call_user(lambda *arguments: in_both_modes(function, arguments, modes)(*arguments), arguments, name)
