"""A function of small arrays becomes straight-line arithmetic on its single entries: the row program.

1. The function (differentiated by the caller) is traced once into a jaxpr and flattened (`jaxprs.flatten`).
2. Every array is a numpy object array of `Entry`. Shape operations move entries and leave no equations behind; products of
   matrices, factorisations and unrolled loops become sums and products. The same operation on the same operands is one entry
   (hash-consing). Constants are folded by numpy.
3. Operations that are slow in a CPU kernel or unknown to Triton are written out by `special.elementary`.
4. Equations that no output needs are dropped.

0 * x is zero only if x is finite, so folding it could hide a NaN of the value. It is not folded wherever one of the `exact`
outputs (the value) depends on it, and folded elsewhere, where zeros are structure: one-hot tangents and the zeros of
constant matrices.

The file in order: programs (`Program`, `split`); entries and arithmetic on them (`Scalars`); rules for single entries (`_ENTRIES`,
`_UNCHANGED`); rules for arrays (`_ARRAYS`); rules for loops and choices (`_LOOPS`); the interpreter (`expand`). A rule is found by
the name of the primitive in these four tables; a primitive in none of them raises `CannotExpand` with that name. To support a
primitive, add a row to one of them.
"""

import functools
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jaxlib
import numpy as np
from jax import lax
from jax.extend import core

from fisher_jax.numerics import special
from fisher_jax.numerics.jaxprs import Flat, Step, flatten, scan_counts, scan_needs

MAX_ENTRIES, MAX_LENGTH, MAX_MATRIX, MAX_EQUATIONS = 1024, 64, 8, 6000
MAX_TABLE = 2**16  # entries of a constant array

_LIBRARIES = tuple(os.path.dirname(os.path.abspath(f)) + os.sep for f in (jax.__file__, jaxlib.__file__))  # noqa: PTH100, PTH120


class CannotExpand(NotImplementedError):  # noqa: N818  # it describes the function; the engine then takes arrays
    """The function uses `what`, which has no form on single entries, at the user's line `place`, if there is one."""

    def __init__(self, what: str, place: str = ""):
        super().__init__(f"{what} has no form for single entries" + (f", at {place}" if place else ""))
        self.what, self.place = what, place

    def again(self) -> "CannotExpand":
        """A copy to store or raise again: an exception that was raised refers to its frames, and through them to the model."""
        return CannotExpand(self.what, self.place)


# --- programs -------------------------------------------------------------------------------------------------------


class Equation(NamedTuple):
    """`result` = `primitive`(`operands`): operands are numbers of earlier results or inputs, or numpy scalars."""

    primitive: core.Primitive
    params: dict[str, Any]
    operands: tuple[Any, ...]
    result: int
    dtype: np.dtype


@dataclass(frozen=True, eq=False)
class Program:
    """Elementwise operations on single entries, in order.

    `inputs` are, for each argument, the numbers of its entries (leaves in pytree order, each in C order); `outputs` are
    numbers, or numpy scalars where an output is constant.
    """

    equations: tuple[Equation, ...]
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[Any, ...]

    @property
    def num_equations(self) -> int:
        return len(self.equations)

    def __call__(self, *entries: Sequence[Any]) -> list[Any]:
        """The output entries, from one list of entries for each argument; entries may have any shapes that broadcast.

        Results of operations on entries of shape () alone have shape () as well.
        """
        values: dict[int, Any] = {}
        for numbers, given in zip(self.inputs, entries, strict=True):
            values.update(zip(numbers, given, strict=True))
        for primitive, params, operands, result, _ in self.equations:
            arrays = [values[o] if type(o) is int else _literal(o) for o in operands]
            shapes = {a.shape for a in arrays}
            shapes.discard(())
            if primitive is lax.select_n_p:
                # cases must have one shape, the condition that shape or ()
                shape = np.broadcast_shapes(*shapes)
                condition, *cases = arrays
                if condition.shape not in ((), shape):
                    condition = _broadcast(condition, shape)
                arrays = [condition, *(_broadcast(a, shape) for a in cases)]
            elif len(shapes) > 1:
                shape = np.broadcast_shapes(*shapes)
                arrays = [a if a.shape == () else _broadcast(a, shape) for a in arrays]
            values[result] = primitive.bind(*arrays, **params)
        return [values[o] if type(o) is int else o for o in self.outputs]


def _literal(x: Any) -> Any:
    """A constant. An unsigned one with the highest bit set is a difference: JAX 0.12 cannot write it down for Triton."""
    if x.dtype.kind == "u" and x > np.iinfo(x.dtype).max // 2:
        return lax.sub(x.dtype.type(0), ~x + x.dtype.type(1))
    return x


def _broadcast(x: Any, shape: tuple[int, ...]) -> Any:
    if x.shape == shape:
        return x
    return (
        lax.full(shape, np.asarray(x))
        if isinstance(x, np.generic)
        else lax.broadcast_in_dim(x, shape, range(len(shape) - x.ndim, len(shape)))
    )


# Operations that cost several products. Only these are worth taking out of the rows.
COSTLY = frozenset(
    {
        *("div", "rem", "sqrt", "rsqrt", "cbrt", "pow", "exp", "exp2", "expm1", "log", "log1p", "logistic"),
        *("sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh"),
        *("erf", "erfc", "erf_inv", "lgamma", "digamma", "bessel_i0e", "bessel_i1e"),
    }
)


def split(program: Program, argument: int, *, products: bool = False) -> tuple[Program, Program]:
    """(first, rest): `first` computes what depends on one argument alone, `rest` takes its outputs as one more argument, the last.

    `first` takes that argument's entries only. Its outputs are the values that are costly, or follow from costly ones, and that
    equations with other inputs, or the outputs, use. Cheap values are computed again in `rest`: the compiler can simplify a
    product with a constant where it is used. So are comparisons, since storing them would take arrays of bytes. With `products` a
    product of two values counts as costly.
    """
    of_argument, costly = set(program.inputs[argument]), set()
    for equation in program.equations:
        numbers = [o for o in equation.operands if type(o) is int]
        if all(o in of_argument for o in numbers):
            of_argument.add(equation.result)
            name = equation.primitive.name
            if name in COSTLY or (products and name == "mul" and len(numbers) > 1) or any(o in costly for o in numbers):
                costly.add(equation.result)
    needed = {o for o in program.outputs if type(o) is int}
    moved: set[int] = set()
    rest = []
    for equation in reversed(program.equations):
        if equation.result not in needed:
            continue
        if equation.result in costly and equation.dtype.kind == "f":
            moved.add(equation.result)
            continue
        rest.append(equation)
        needed.update(o for o in equation.operands if type(o) is int)
    outputs = tuple(sorted(moved))
    first = Program(used(program.equations, outputs), (program.inputs[argument],), outputs)
    return first, Program(tuple(reversed(rest)), (*program.inputs, outputs), program.outputs)


def used(equations: Sequence[Equation], outputs: Iterable[Any]) -> tuple[Equation, ...]:
    """The equations that some outputs need, in their order."""
    needed, result = {o for o in outputs if type(o) is int}, []
    for equation in reversed(equations):
        if equation.result in needed:
            result.append(equation)
            needed.update(o for o in equation.operands if type(o) is int)
    return tuple(reversed(result))


# --- entries and arithmetic on them ---------------------------------------------------------------------------------


class Entry:
    """One number of an array: a constant with a numpy scalar as `value`, or the result `number` of an equation, or an input."""

    __slots__ = ("dtype", "number", "origin", "value")

    def __init__(self, number: int, dtype: np.dtype, value: np.generic | None = None, origin: Any = None):
        self.number, self.dtype, self.value, self.origin = number, dtype, value, origin


Array = np.ndarray  # of Entry


def _objects(shape: Sequence[int], entries: Iterable[Entry]) -> Array:
    """An object array; numpy never looks into the entries."""
    out = np.empty(math.prod(shape), object)
    for k, entry in enumerate(entries):
        out[k] = entry
    return out.reshape(tuple(shape))


def _wrap(x: Any) -> Array:
    """An object array, where numpy gave the entry itself in place of an array of shape ()."""
    return x if isinstance(x, np.ndarray) else _objects((), [x])


@functools.cache
def operation(name: str, kind: str) -> tuple[core.Primitive, dict[str, Any]]:
    """A primitive with its parameters, as this version of JAX has them, from tracing the function of `lax` that binds it."""
    value = {"f": np.float32(1), "b": np.bool_(True), "i": np.int32(1), "u": np.uint32(1)}[kind]
    equation = jax.make_jaxpr(getattr(lax, name))(*[value] * (2 if name in _BINARY else 1)).eqns[0]
    return equation.primitive, equation.params


_BINARY = frozenset(
    {"add", "sub", "mul", "div", "max", "min", "bitwise_and", "bitwise_or", "eq", "ne", "lt", "le", "gt", "ge"}
)
_COMMUTATIVE = frozenset({"add", "mul", "max", "min", "and", "or", "eq", "ne"})
_TO_BOOL = frozenset({"eq", "ne", "lt", "le", "gt", "ge", "is_finite"})
_NUMPY: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative, "abs": np.abs, "sign": np.sign,
    "div": lambda x, y: x / y if x.dtype.kind == "f" else np.trunc(x / y).astype(x.dtype), "rem": np.fmod,
    "max": np.maximum, "min": np.minimum, "floor": np.floor, "ceil": np.ceil, "nextafter": np.nextafter,
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert, "is_finite": np.isfinite,
    "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x), "cbrt": np.cbrt, "pow": np.power,
    "exp": np.exp, "exp2": np.exp2, "expm1": np.expm1, "log": np.log, "log1p": np.log1p,
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "sin": np.sin, "cos": np.cos, "tan": np.tan, "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "atan2": np.arctan2,
    "sinh": np.sinh, "cosh": np.cosh, "tanh": np.tanh, "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh,
}  # fmt: skip


def _method(name: str) -> Callable[..., Entry]:
    """A method of `Scalars` that applies the operation of `jax.lax` with this name to entries."""
    return lambda scalars, *operands: scalars._apply(name, *operands)


class Scalars:
    """The arithmetic: makes entries, folds constants, merges equal operations.

    `portable` is as in `expand`; `fold_zeros` is whether 0 * x is folded, which the interpreter sets for each equation.
    """

    def __init__(self, portable: bool) -> None:
        self.portable = portable
        self.entries: list[Entry] = []
        self.fold_zeros = False
        self._made: dict[Any, Entry] = {}

    def _new(self, *args: Any) -> Entry:
        entry = Entry(len(self.entries), *args)
        self.entries.append(entry)
        if len(self.entries) > 20 * MAX_EQUATIONS:
            raise CannotExpand("a function of too many equations")
        return entry

    def variable(self, dtype: Any) -> Entry:
        return self._new(np.dtype(dtype))

    def constant(self, value: Any, dtype: Any = None) -> Entry:
        value = np.asarray(value, dtype)[()]
        key = value.dtype, value.tobytes()
        entry = self._made.get(key)
        if entry is None:
            entry = self._made[key] = self._new(value.dtype, value)
        return entry

    def constants(self, value: Any) -> Array:
        value = np.asarray(value)
        return _objects(value.shape, map(self.constant, value.ravel()))

    def emit(self, primitive: core.Primitive, params: dict[str, Any], *operands: Entry, dtype: Any = None) -> Entry:
        """The result of an elementwise primitive."""
        name = primitive.name
        if name in ("max", "min") and operands[0].dtype == bool:  # Triton has none for truth values
            return (self.either if name == "max" else self.both)(*operands)
        if dtype is None:
            dtype = np.dtype(bool) if name in _TO_BOOL else operands[0].dtype
        if all(o.value is not None for o in operands) and name in _NUMPY:
            with np.errstate(all="ignore"):
                return self.constant(_NUMPY[name](*(o.value for o in operands)), dtype)
        simpler = self._simplify(name, operands)
        if simpler is not None:
            return simpler
        numbers = [o.number for o in operands]
        if name in _COMMUTATIVE:
            numbers.sort()
        key = (name, tuple(params.items()) if params else (), *numbers)
        entry = self._made.get(key)
        if entry is None:
            entry = self._new(dtype, None, (primitive, params, operands))
            if self.portable and name in ("max", "min") and dtype.kind == "f":
                # Those of Triton return the other operand for NaN.
                for operand in (o for o in operands if o.value is None):
                    entry = self.select(self.compare("ne", operand, operand), operand, entry)
            self._made[key] = entry
        return entry

    def _simplify(self, name: str, operands: tuple[Entry, ...]) -> Entry | None:
        """A simpler entry with the same value, for NaN and infinities as well; and 0 for 0 * x where that may be folded.

        Changes of sign move outwards, where they meet others and cancel.
        """
        x, minus_x = operands[0], _negated(operands[0])
        if name == "neg":
            return minus_x
        if name == "abs" and minus_x is not None:
            return self.abs(minus_x)
        if len(operands) != 2:
            return None
        y, minus_y = operands[1], _negated(operands[1])
        a, b = x.value, y.value
        if name == "mul":
            if self.fold_zeros and (a == 0 or b == 0):
                return self.constant(0, x.dtype)
            for constant, other, minus_other in ((a, y, minus_y), (b, x, minus_x)):
                if constant is not None:
                    if constant == 1:
                        return other
                    if constant == -1:
                        return self.neg(other)
                    if minus_other is not None:
                        return self.mul(self.constant(np.negative(constant)), minus_other)
            for minus_factor, other in ((minus_x, y), (minus_y, x)):
                if minus_factor is not None:
                    return self.neg(self.mul(minus_factor, other))
        elif name == "add":
            if a == 0:
                return y
            if b == 0:
                return x
            if minus_y is not None:
                return self.sub(x, minus_y)
            if minus_x is not None:
                return self.sub(y, minus_x)
        elif name == "sub":
            if b == 0:
                return x
            if a == 0:
                return self.neg(y)
            if minus_y is not None:
                return self.add(x, minus_y)
            if minus_x is not None:
                return self.neg(self.add(minus_x, y))
        elif name == "div":
            if b == 1:
                return x
            if self.fold_zeros and a == 0:
                return x
            if minus_x is not None:
                return self.neg(self.div(minus_x, y))
            if self.fold_zeros and a != 1 and x.dtype.kind == "f":
                # derivatives divide by the same again and again, and a division costs as much as sixteen products
                return self.mul(x, self.div(self.constant(1, x.dtype), y))
        elif name in ("and", "or") and x.dtype == bool:
            if x is y:
                return x
            for constant, other, itself in ((a, y, x), (b, x, y)):
                if constant is not None:
                    return other if bool(constant) == (name == "and") else itself
        elif name in ("max", "min") and x is y:
            return x
        return None

    def _apply(self, name: str, *operands: Entry) -> Entry:
        primitive, params = operation(name, operands[0].dtype.kind)
        return self.emit(primitive, params, *operands)

    add, sub, mul, div = _method("add"), _method("sub"), _method("mul"), _method("div")
    max, min, both, either = _method("max"), _method("min"), _method("bitwise_and"), _method("bitwise_or")
    neg, abs, sqrt, floor, exp = _method("neg"), _method("abs"), _method("sqrt"), _method("floor"), _method("exp")
    negate = _method("bitwise_not")

    def compare(self, name: str, x: Entry, y: Entry) -> Entry:
        return self._apply(name, x, y)

    def above(self, x: Entry, y: Entry) -> Entry:
        """x > y in the order that puts NaN last."""
        above = self.compare("gt", x, y)
        if x.dtype.kind != "f":
            return above
        return self.either(above, self.both(self.compare("ne", x, x), self.compare("eq", y, y)))

    def select(self, condition: Entry, yes: Entry, no: Entry) -> Entry:
        if condition.value is not None:
            return yes if condition.value else no
        if yes is no:
            return yes
        if condition.origin is not None and condition.origin[0].name == "not":
            return self.select(condition.origin[2][0], no, yes)
        return self.emit(lax.select_n_p, {}, condition, no, yes, dtype=yes.dtype)

    def convert(self, x: Entry, dtype: Any) -> Entry:
        dtype = np.dtype(dtype)
        if x.dtype == dtype:
            return x
        if x.value is not None:
            return self.constant(x.value.astype(dtype))
        primitive, params = _conversion(x.dtype, dtype)
        return self.emit(primitive, params, x, dtype=dtype)

    def dot(self, xs: Iterable[Entry], ys: Iterable[Entry], dtype: Any) -> Entry:
        return functools.reduce(self.add, map(self.mul, xs, ys), self.constant(0, dtype))

    def program(self, inputs: Sequence[Sequence[Entry]], outputs: Sequence[Entry]) -> Program:
        """What the outputs need, in order of creation."""

        def reference(entry: Entry) -> Any:
            return entry.number if entry.value is None else entry.value

        equations = [
            Equation(e.origin[0], e.origin[1], tuple(map(reference, e.origin[2])), e.number, e.dtype)
            for e in self.entries
            if e.origin is not None
        ]
        results = tuple(map(reference, outputs))
        return Program(used(equations, results), tuple(tuple(e.number for e in of) for of in inputs), results)


def _negated(entry: Entry) -> Entry | None:
    """-x of an entry that is the change of sign of another; None for others."""
    return entry.origin[2][0] if entry.origin is not None and entry.origin[0].name == "neg" else None


@functools.cache
def _conversion(old: np.dtype, new: np.dtype) -> tuple[core.Primitive, dict[str, Any]]:
    equation = jax.make_jaxpr(lambda x: lax.convert_element_type(x, new))(jax.ShapeDtypeStruct((), old)).eqns[0]
    return equation.primitive, equation.params


# --- rules for single entries: (scalars, entries, params) -> entry --------------------------------------------------


def _integer_pow(s: Scalars, x: Entry, *, y: int) -> Entry:
    one = s.constant(1, x.dtype)
    if y < 0:
        return _integer_pow(s, s.div(one, x), y=-y) if s.fold_zeros else s.div(one, _integer_pow(s, x, y=-y))
    result, power = one, x
    while y:
        if y & 1:
            result = s.mul(result, power)
        y >>= 1
        if y:
            power = s.mul(power, power)
    return result


def _round(s: Scalars, x: Entry, *, rounding_method: Any) -> Entry:
    one, half = s.constant(1, x.dtype), s.constant(0.5, x.dtype)
    if int(rounding_method) == 0:  # halves away from zero
        magnitude = s.abs(x)
        low = s.floor(magnitude)
        near = s.select(s.compare("ge", s.sub(magnitude, low), half), s.add(low, one), low)
        return s.select(s.compare("lt", x, s.constant(0, x.dtype)), s.neg(near), near)
    low = s.floor(x)
    rest, half_low = s.sub(x, low), s.mul(low, half)
    odd = s.compare("ne", half_low, s.floor(half_low))
    up = s.either(s.compare("gt", rest, half), s.both(s.compare("eq", rest, half), odd))
    return s.select(up, s.add(low, one), low)


def _choose(s: Scalars, which: Entry, *cases: Entry) -> Entry:
    if which.value is not None:
        return cases[min(max(int(which.value), 0), len(cases) - 1)]
    if which.dtype == bool:
        return s.select(which, cases[1], cases[0])
    result = cases[-1]
    for k in reversed(range(len(cases) - 1)):
        result = s.select(s.compare("le", which, s.constant(k, which.dtype)), cases[k], result)
    return result


_ENTRIES: dict[str, Callable[..., Entry]] = {
    "add_any": lambda s, x, y: s.add(x, y),
    "square": lambda s, x, **_: s.mul(x, x),
    "one_minus_square": lambda s, x, **_: s.mul(s.sub(s.constant(1, x.dtype), x), s.add(s.constant(1, x.dtype), x)),
    "integer_pow": _integer_pow,
    "is_finite": lambda s, x: s.compare("lt", s.abs(x), s.constant(np.inf, x.dtype)),
    "round": _round,
    "lt_to": lambda s, x, y: s.above(y, x),
    "le_to": lambda s, x, y: s.negate(s.above(x, y)),
    "convert_element_type": lambda s, x, *, new_dtype, **_: s.convert(x, new_dtype),
    "select_n": _choose,
    "clamp": lambda s, low, x, high: s.min(s.max(x, low), high),
    **dict.fromkeys(["stop_gradient", "copy", "copy_p", "pvary"], lambda s, x, **_: x),
    "bitcast_convert_type": lambda s, x, *, new_dtype: (
        s.constant(x.value.view(new_dtype))
        if x.value is not None
        else s.emit(lax.bitcast_convert_type_p, {"new_dtype": np.dtype(new_dtype)}, x, dtype=np.dtype(new_dtype))
    ),
}

# Element-wise primitives that remain as they are where `special.elementary` has no form for them.
_UNCHANGED = frozenset(
    {
        *("add", "sub", "mul", "div", "rem", "neg", "abs", "sign", "max", "min", "ceil", "floor", "nextafter"),
        *(
            "and",
            "or",
            "xor",
            "not",
            "shift_left",
            "shift_right_arithmetic",
            "shift_right_logical",
            "population_count",
            "clz",
        ),
        *("eq", "ne", "lt", "le", "gt", "ge", "reduce_precision"),
        *("sqrt", "rsqrt", "cbrt", "pow", "exp", "exp2", "expm1", "log", "log1p", "logistic"),
        *("sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh"),
        *("erf", "erfc", "erf_inv", "lgamma", "digamma", "bessel_i0e", "bessel_i1e"),
    }
)

# --- rules for arrays: (scalars, arrays, params) -> array or list of arrays -----------------------------------------


def _each(function: Callable[..., Entry], *arrays: Array) -> Array:
    """`function` of entries, over arrays that broadcast."""
    shape = np.broadcast_shapes(*(a.shape for a in arrays)) if len({a.shape for a in arrays}) > 1 else arrays[0].shape
    if not shape:
        return _objects((), [function(*(a.item() for a in arrays))])
    columns = [(a if a.shape == shape else np.broadcast_to(a, shape)).ravel() for a in arrays]
    return _objects(shape, [function(*entries) for entries in zip(*columns, strict=True)])


def _broadcast_in_dim(
    s: Scalars, x: Array, *_: Any, shape: tuple[int, ...], broadcast_dimensions: Any, **__: Any
) -> Array:
    expanded = [1] * len(shape)
    for size, d in zip(x.shape, broadcast_dimensions, strict=True):
        expanded[d] = size
    return np.broadcast_to(x.reshape(expanded), shape)


def _pad(s: Scalars, x: Array, value: Array, *, padding_config: Any) -> Array:
    for axis, (low, high, inner) in enumerate(padding_config):
        size = x.shape[axis]
        length = low + high + size + max(size - 1, 0) * inner
        moved = np.moveaxis(x, axis, 0)
        out = np.empty((length, *moved.shape[1:]), object)
        out[...] = value.item()
        for k in range(size):
            at = low + k * (inner + 1)
            if 0 <= at < length:
                out[at] = moved[k]
        x = np.moveaxis(out, 0, axis)
    return x


def _reduction(combine: Callable[..., Entry], empty: Any) -> Callable[..., Array]:
    def rule(s: Scalars, x: Array, *, axes: Any, dtype: Any = None, **_: Any) -> Array:
        rest = [d for d in range(x.ndim) if d not in axes]
        shape = tuple(x.shape[d] for d in rest)
        flat = x.transpose(*rest, *axes).reshape(math.prod(shape), math.prod(x.shape[d] for d in axes))
        if not flat.shape[-1]:
            return s.constants(np.full(shape, empty, dtype))
        return _objects(shape, [functools.reduce(functools.partial(combine, s), row) for row in flat])

    return rule


def _cumulative(combine: Callable[..., Entry]) -> Callable[..., Array]:
    def rule(s: Scalars, x: Array, *, axis: int, reverse: bool) -> Array:
        rows = [_wrap(row) for row in np.moveaxis(x, axis, 0)]
        parts = list(
            itertools.accumulate(
                rows[::-1] if reverse else rows, lambda a, b: _each(functools.partial(combine, s), a, b)
            )
        )
        return np.moveaxis(np.stack(parts[::-1] if reverse else parts), 0, axis)

    return rule


def _log_add(s: Scalars, x: Entry, y: Entry) -> Entry:
    high, difference = s.max(x, y), s.neg(s.abs(s.sub(x, y)))
    same = s.compare("eq", x, y)  # of infinities, whose difference is not a number
    shrunk = s.exp(s.select(same, s.constant(0, x.dtype), difference))
    return s.add(high, _written_out(s, special.log1p, shrunk))


def _arg_extreme(sign: int) -> Callable[..., Array]:
    def rule(s: Scalars, x: Array, *, axes: Any, index_dtype: Any, **_: Any) -> Array:
        def better(new: Entry, old: Entry) -> Entry:  # the first of equals; NaN before all
            ordered = s.compare("gt" if sign > 0 else "lt", new, old)
            if new.dtype.kind != "f":
                return ordered
            return s.either(
                s.both(ordered, s.compare("eq", old, old)), s.both(s.compare("ne", new, new), s.compare("eq", old, old))
            )

        rows = [_wrap(row) for row in np.moveaxis(x, axes[0], 0)]
        best, where = rows[0], _objects(rows[0].shape, [s.constant(0, index_dtype)] * rows[0].size)
        for k in range(1, len(rows)):
            chosen, here = _each(better, rows[k], best), s.constant(k, index_dtype)
            best = _each(s.select, chosen, rows[k], best)
            where = _each(lambda c, w, here=here: s.select(c, here, w), chosen, where)
        return where

    return rule


def _dot_general(s: Scalars, x: Array, y: Array, *, dimension_numbers: Any, dtype: Any, **_: Any) -> Array:
    (xc, yc), (xb, yb) = dimension_numbers
    x_free = [d for d in range(x.ndim) if d not in (*xc, *xb)]
    y_free = [d for d in range(y.ndim) if d not in (*yc, *yb)]
    batch, left, right = ([x.shape[d] for d in xb], [x.shape[d] for d in x_free], [y.shape[d] for d in y_free])
    inner = math.prod(x.shape[d] for d in xc)
    x = x.transpose(*xb, *x_free, *xc).reshape(*batch, math.prod(left), inner)
    y = y.transpose(*yb, *y_free, *yc).reshape(*batch, math.prod(right), inner)
    x, y = (_each(lambda e: s.convert(e, dtype), a) for a in (x, y))
    entries = [s.dot(a, b, dtype) for k in np.ndindex(*batch) for a in x[k] for b in y[k]]
    return _objects((*batch, *left, *right), entries)


def _by_matrix(function: Callable[..., Any]) -> Callable[..., Any]:
    """A rule for (..., n, m) arrays from one for (n, m) that returns a tuple."""

    def rule(s: Scalars, *arrays: Array, **params: Any) -> list[Array]:
        batch = arrays[0].shape[:-2]
        if max(arrays[0].shape[-2:]) > MAX_MATRIX:
            raise CannotExpand(f"a matrix of more than {MAX_MATRIX} rows")
        parts = [function(s, *(a[b] for a in arrays), **params) for b in np.ndindex(*batch)]
        return [np.stack(column).reshape(*batch, *column[0].shape) for column in zip(*parts, strict=True)]

    return rule


def _cholesky(s: Scalars, a: Array, **_: Any) -> tuple[Array]:
    """Of the lower triangle; all NaN where a pivot is not positive, as JAX has it."""
    n, dtype = len(a), a[0, 0].dtype
    zero, one = s.constant(0, dtype), s.constant(1, dtype)
    out, definite = _objects((n, n), [zero] * (n * n)), s.constant(True)
    for j in range(n):
        pivot = s.sub(a[j, j], s.dot(out[j, :j], out[j, :j], dtype))
        definite = s.both(definite, s.compare("gt", pivot, zero))
        out[j, j] = s.sqrt(pivot)
        inverse = s.div(one, out[j, j])
        for i in range(j + 1, n):
            out[i, j] = s.mul(s.sub(a[i, j], s.dot(out[i, :j], out[j, :j], dtype)), inverse)
    for i in range(n):
        for j in range(i + 1):
            out[i, j] = s.select(definite, out[i, j], s.constant(np.nan, dtype))
    return (out,)


def _triangular_solve(
    s: Scalars, a: Array, b: Array, *, left_side: bool, lower: bool, transpose_a: bool, unit_diagonal: bool, **_: Any
) -> tuple[Array]:
    if not left_side:  # the transposed system
        a, b, transpose_a = a, b.T, not transpose_a
    a, lower = (a.T, not lower) if transpose_a else (a, lower)
    n, dtype = len(a), a[0, 0].dtype
    one = s.constant(1, dtype)
    inverse = [one if unit_diagonal else s.div(one, a[i, i]) for i in range(n)]
    x = np.empty(b.shape, object)
    for i in range(n) if lower else reversed(range(n)):
        solved = slice(0, i) if lower else slice(i + 1, n)
        for k in range(b.shape[1]):
            x[i, k] = s.mul(s.sub(b[i, k], s.dot(a[i, solved], x[solved, k], dtype)), inverse[i])
    return (x if left_side else x.T,)


def _lu(s: Scalars, a: Array, **_: Any) -> tuple[Array, Array, Array]:
    """With rows exchanged by select, for each lane its own pivots."""
    a, n = a.copy(), len(a)
    if a.shape[0] != a.shape[1]:
        raise CannotExpand("LU of a matrix that is not square")
    one = s.constant(1, a[0, 0].dtype)
    indices = [s.constant(k, np.int32) for k in range(n)]
    pivots, order = [], list(indices)
    for j in range(n):
        best, pivot = s.abs(a[j, j]), indices[j]
        for i in range(j + 1, n):
            size = s.abs(a[i, j])
            better = s.compare("gt", size, best)
            best, pivot = s.select(better, size, best), s.select(better, indices[i], pivot)
        pivots.append(pivot)
        for i in range(j + 1, n):
            swap = s.compare("eq", pivot, indices[i])
            order[i], order[j] = s.select(swap, order[j], order[i]), s.select(swap, order[i], order[j])
            for k in range(n):
                a[i, k], a[j, k] = s.select(swap, a[j, k], a[i, k]), s.select(swap, a[i, k], a[j, k])
        inverse = s.div(one, a[j, j])
        for i in range(j + 1, n):
            a[i, j] = s.mul(a[i, j], inverse)
            for k in range(j + 1, n):
                a[i, k] = s.sub(a[i, k], s.mul(a[i, j], a[j, k]))
    return a, _objects((n,), pivots), _objects((n,), order)


def _sort(s: Scalars, *arrays: Array, dimension: int, num_keys: int, **_: Any) -> list[Array]:
    """Stable, by exchanges of neighbours; NaN last."""
    if num_keys != 1:
        raise CannotExpand("a sort by several keys")
    rows = [[_wrap(row) for row in np.moveaxis(a, dimension, 0)] for a in arrays]
    for end in range(len(rows[0]) - 1, 0, -1):
        for i in range(end):
            swap = _each(s.above, rows[0][i], rows[0][i + 1])
            for r in rows:
                r[i], r[i + 1] = _each(s.select, swap, r[i + 1], r[i]), _each(s.select, swap, r[i], r[i + 1])
    return [np.moveaxis(np.stack(r), 0, dimension) for r in rows]


# Indices. A constant one picks an entry while expanding; one that lanes differ in becomes a select among all values it can have.


def _spots(s: Scalars, starts: Sequence[Entry], limits: Sequence[int]) -> Iterator[tuple[tuple[int, ...], Entry]]:
    """The possible tuples of starts, clipped to 0 … limit, each with the condition for it."""
    choices = []
    for start, limit in zip(starts, limits, strict=True):
        if start.value is not None:
            choices.append([(min(max(int(start.value), 0), limit), s.constant(True))])
        elif not limit:
            choices.append([(0, s.constant(True))])
        else:
            names = ["le", *["eq"] * (limit - 1), "ge"]
            choices.append([(c, s.compare(n, start, s.constant(c, start.dtype))) for c, n in enumerate(names)])
    if math.prod(map(len, choices)) > MAX_ENTRIES:
        raise CannotExpand("an index that can be in too many places")
    for combination in itertools.product(*choices):
        yield tuple(c for c, _ in combination), functools.reduce(s.both, (e for _, e in combination), s.constant(True))


def _within(s: Scalars, starts: Sequence[Entry], limits: Sequence[int]) -> Entry:
    """Whether all starts are in 0 … limit."""
    checks = [s.compare("ge", e, s.constant(0, e.dtype)) for e in starts]
    checks += [s.compare("le", e, s.constant(m, e.dtype)) for e, m in zip(starts, limits, strict=True)]
    return functools.reduce(s.both, checks, s.constant(True))


def _read(s: Scalars, x: Array, base: Any, dims: Any, spots: list[tuple[tuple[int, ...], Entry]]) -> Entry:
    """The entry of x at `base` moved by the starts along some axes."""

    def at(spot: tuple[int, ...]) -> Entry:
        place = list(base)
        for d, start in zip(dims, spot, strict=True):
            place[d] += start
        return x[tuple(place)]

    result = at(spots[0][0])
    for spot, condition in spots[1:]:
        result = s.select(condition, at(spot), result)
    return result


def _dynamic_slice(s: Scalars, x: Array, *starts: Array, slice_sizes: Any) -> Array:
    limits = [n - size for n, size in zip(x.shape, slice_sizes, strict=True)]
    spots = list(_spots(s, [e.item() for e in starts], limits))
    return _objects(slice_sizes, [_read(s, x, o, range(x.ndim), spots) for o in np.ndindex(*slice_sizes)])


def _gather(
    s: Scalars,
    x: Array,
    indices: Array,
    *,
    dimension_numbers: Any,
    slice_sizes: Any,
    mode: Any,
    fill_value: Any,
    shape: Any,
    **_: Any,
) -> Array:
    dn = dimension_numbers
    window = [d for d in range(x.ndim) if d not in (*dn.collapsed_slice_dims, *dn.operand_batching_dims)]
    limits = [x.shape[d] - slice_sizes[d] for d in dn.start_index_map]
    out = np.empty(shape, object)
    spots_of: dict[tuple[int, ...], Any] = {}
    fill = fill_value
    if fill is None and x.size:  # what JAX reads where an index is out of bounds
        dtype = x.flat[0].dtype
        limit = {"i": "min", "u": "max"}.get(dtype.kind)
        fill = getattr(np.iinfo(dtype), limit) if limit else np.nan if dtype.kind == "f" else True
    for o in np.ndindex(*shape):
        batch = tuple(i for d, i in enumerate(o) if d not in dn.offset_dims)
        base = [0] * x.ndim
        for d, w in zip(window, dn.offset_dims, strict=True):
            base[d] = o[w]
        for d, b in zip(dn.operand_batching_dims, dn.start_indices_batching_dims, strict=True):
            base[d] = batch[b]
        starts = list(indices[batch])
        if batch not in spots_of:
            spots_of[batch] = list(_spots(s, starts, limits))
        entry = _read(s, x, base, dn.start_index_map, spots_of[batch])
        if "FILL" in str(mode):
            entry = s.select(_within(s, starts, limits), entry, s.constant(fill, entry.dtype))
        out[o] = entry
    return out


def _scatter(combine: Callable[..., Entry]) -> Callable[..., Array]:
    def rule(
        s: Scalars, x: Array, indices: Array, updates: Array, *, dimension_numbers: Any, mode: Any, **_: Any
    ) -> Array:
        dn, out = dimension_numbers, x.copy()
        window = [d for d in range(x.ndim) if d not in (*dn.inserted_window_dims, *dn.operand_batching_dims)]
        dims = dn.scatter_dims_to_operand_dims
        sizes = {d: updates.shape[w] for d, w in zip(window, dn.update_window_dims, strict=True)}
        limits = [x.shape[d] - sizes.get(d, 1) for d in dims]
        for u in np.ndindex(*updates.shape):
            batch = tuple(i for d, i in enumerate(u) if d not in dn.update_window_dims)
            base = [0] * x.ndim
            for d, w in zip(window, dn.update_window_dims, strict=True):
                base[d] = u[w]
            for d, b in zip(dn.operand_batching_dims, dn.scatter_indices_batching_dims, strict=True):
                base[d] = batch[b]
            starts = list(indices[batch])
            allowed = s.constant(True) if "CLIP" in str(mode) else _within(s, starts, limits)
            for spot, condition in _spots(s, starts, limits):
                at = list(base)
                for d, start in zip(dims, spot, strict=True):
                    at[d] += start
                old = out[tuple(at)]
                out[tuple(at)] = s.select(s.both(condition, allowed), combine(s, old, updates[u]), old)
        return out

    return rule


def _dynamic_update_slice(s: Scalars, x: Array, update: Array, *starts: Array) -> Array:
    out: Any = x.copy()
    limits = [n - size for n, size in zip(x.shape, update.shape, strict=True)]
    for spot, condition in _spots(s, [e.item() for e in starts], limits):
        for u in np.ndindex(*update.shape):
            at = tuple(a + b for a, b in zip(spot, u, strict=True))
            out[at] = s.select(condition, update.item(u), out[at])
    return out


def _polynomial(s: Scalars, x: Array, *coefficients: Array, **_: Any) -> Array:
    def horner(x: Entry, *a: Entry) -> Entry:
        return functools.reduce(lambda value, c: s.add(s.mul(value, x), c), a[-2::-1], a[-1])

    return _each(horner, *np.broadcast_arrays(x, *coefficients))


def _iota(s: Scalars, *, dtype: Any, shape: Any, dimension: int, **_: Any) -> Array:
    return s.constants(np.indices(shape, dtype)[dimension])


def _polygamma(s: Scalars, order: Array, x: Array) -> Array:
    orders = {e.value for e in order.ravel()}
    if not orders <= set(range(special.MAX_POLYGAMMA + 1)) or len(orders) != 1:
        raise CannotExpand(f"polygamma of an order that is not a constant from 0 to {special.MAX_POLYGAMMA}")
    return _each(functools.partial(_written_out, s, special.polygamma(int(orders.pop()))), x)


def _platform_index(s: Scalars, *, platforms: Any) -> Array:
    if None not in platforms:
        raise CannotExpand("a function that differs between devices")
    return s.constants(np.int32(platforms.index(None)))


_ARRAYS: dict[str, Callable[..., Any]] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "reshape": lambda s, x, *, new_sizes, **_: x.reshape(new_sizes),
    "squeeze": lambda s, x, *, dimensions: x.squeeze(tuple(dimensions)),
    "expand_dims": lambda s, x, *, dimensions: np.expand_dims(x, dimensions),
    "transpose": lambda s, x, *, permutation: x.transpose(permutation),
    "concatenate": lambda s, *xs, dimension: np.concatenate(xs, dimension),
    "stack": lambda s, *xs, axis: np.stack(xs, axis),
    "unstack": lambda s, x, *, axis, **_: [_wrap(part) for part in np.moveaxis(x, axis, 0)],
    "slice": lambda s, x, *, start_indices, limit_indices, strides: x[
        tuple(map(slice, start_indices, limit_indices, strides or [None] * x.ndim))
    ],
    "rev": lambda s, x, *, dimensions: np.flip(x, dimensions),
    "pad": _pad,
    "split": lambda s, x, *, sizes, axis: np.split(x, np.cumsum(sizes)[:-1], axis),
    "iota": _iota,
    "optimization_barrier": lambda s, *xs: list(xs),
    "polynomial": _polynomial,
    "polygamma": _polygamma,
    "empty2": lambda s, *, dtype, **_: s.constants(np.zeros((), dtype)),  # the uninitialised array that a loop fills
    "reduce_sum": _reduction(Scalars.add, 0),
    "reduce_prod": _reduction(Scalars.mul, 1),
    "reduce_max": _reduction(Scalars.max, -np.inf),
    "reduce_min": _reduction(Scalars.min, np.inf),
    "reduce_and": _reduction(Scalars.both, True),
    "reduce_or": _reduction(Scalars.either, False),
    "argmax": _arg_extreme(1),
    "argmin": _arg_extreme(-1),
    "cumsum": _cumulative(Scalars.add),
    "cumprod": _cumulative(Scalars.mul),
    "cummax": _cumulative(Scalars.max),
    "cummin": _cumulative(Scalars.min),
    "cumlogsumexp": _cumulative(_log_add),
    "dot_general": _dot_general,
    "cholesky": _by_matrix(_cholesky),
    "triangular_solve": _by_matrix(_triangular_solve),
    "lu": _by_matrix(_lu),
    "sort": _sort,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    "scatter": _scatter(lambda s, old, new: new),
    "scatter-add": _scatter(Scalars.add),
    "scatter_add": _scatter(Scalars.add),
    "scatter-mul": _scatter(Scalars.mul),
    "scatter_mul": _scatter(Scalars.mul),
    "platform_index": _platform_index,
}
_NEEDS_DTYPE = frozenset({"dot_general", *(name for name in _ARRAYS if name.startswith("reduce_"))})

# --- rules for loops and choices: (scalars, step, arrays, which results are exact) -> arrays -------------------------


def _scan(s: Scalars, step: Step, arrays: list[Array], exact: list[bool]) -> list[Array]:
    params = step.equation.params
    length, (consts, num_carry) = params["length"], scan_counts(step.equation)
    if length > MAX_LENGTH:
        raise CannotExpand(f"a scan of {length} steps (at most {MAX_LENGTH} are unrolled)")
    (flat,), mask = step.inner, scan_needs(step, exact)[0]
    fixed, carry, xs = (
        arrays[:consts],
        arrays[consts : consts + num_carry],
        arrays[consts + num_carry :],
    )
    rows: list[Any] = [None] * length
    for k in reversed(range(length)) if params["reverse"] else range(length):
        results = _evaluate(s, flat, [*fixed, *carry, *(_wrap(x[k]) for x in xs)], mask)
        carry, rows[k] = results[:num_carry], results[num_carry:]
    if not length:
        return [*carry, *(_objects(v.aval.shape, []) for v in step.equation.outvars[num_carry:])]
    return [*carry, *(np.stack(column) for column in zip(*rows, strict=True))]


def _while(s: Scalars, step: Step, arrays: list[Array], exact: list[bool]) -> list[Array]:
    """Unrolled, where the condition is constant at every step: a counter up to a constant."""
    params = step.equation.params
    c, b = params["cond_nconsts"], params["body_nconsts"]
    condition, body = step.inner
    carry, mask = arrays[c + b :], [any(exact)] * len(body.outputs)
    for _ in range(MAX_LENGTH + 1):
        holds = _evaluate(s, condition, [*arrays[:c], *carry], [True])[0].item().value
        if holds is None:
            raise CannotExpand("a while loop whose number of steps depends on data or parameters")
        if not holds:
            return carry
        carry = _evaluate(s, body, [*arrays[c : c + b], *carry], mask)
    raise CannotExpand(f"a while loop of more than {MAX_LENGTH} steps")


def _cond(s: Scalars, step: Step, arrays: list[Array], exact: list[bool]) -> list[Array]:
    """All branches and a select, where lanes may differ in the choice."""
    which, branches = arrays[0].item(), step.inner
    if which.value is not None:
        branches = (branches[min(max(int(which.value), 0), len(branches) - 1)],)
    results = [_evaluate(s, branch, arrays[1:], exact) for branch in branches]
    if len(results) == 1:
        return results[0]
    return [_each(lambda *e: _choose(s, which, *e), *cases) for cases in zip(*results, strict=True)]


_LOOPS = {"scan": _scan, "while": _while, "cond": _cond}

# --- the interpreter ------------------------------------------------------------------------------------------------


def _written_out(s: Scalars, form: Callable[..., Any], *entries: Entry) -> Entry:
    """The elementary form of a special function, applied to entries."""
    flat = _form(form, len(entries), entries[0].dtype)
    return _evaluate(s, flat, [_objects((), [e]) for e in entries], [True])[0].item()


@functools.cache
def _form(function: Callable[..., Any], arity: int, dtype: np.dtype) -> Flat:
    return flatten(jax.make_jaxpr(function)(*[jax.ShapeDtypeStruct((), dtype)] * arity))


def _step(s: Scalars, step: Step, arrays: list[Array], exact: list[bool]) -> Any:
    """The results of one equation about arrays."""
    name, primitive, params = step.name, step.equation.primitive, step.equation.params
    if name in _LOOPS:
        return _LOOPS[name](s, step, arrays, exact)
    aval = step.equation.outvars[0].aval
    if name in _ARRAYS:
        more = {"dtype": aval.dtype} if name in _NEEDS_DTYPE else {"shape": aval.shape} if name == "gather" else {}
        return _ARRAYS[name](s, *arrays, **params | more)
    if name in _ENTRIES:
        return _each(functools.partial(_ENTRIES[name], s, **params), *arrays)
    form = special.elementary(name, aval.dtype, s.portable)
    if form is None and name not in _UNCHANGED:
        raise CannotExpand(f"the operation '{name}'")

    def apply(*entries: Entry) -> Entry:
        if form is None or (name in _NUMPY and all(e.value is not None for e in entries)):
            return s.emit(primitive, params, *entries, dtype=np.dtype(aval.dtype))
        return _written_out(s, form, *entries)

    return _each(apply, *arrays)


def _evaluate(s: Scalars, flat: Flat, arrays: Sequence[Array], mask: Sequence[bool]) -> list[Array]:
    """The outputs as arrays of entries. Zeros are not folded in what the masked outputs depend on."""
    env: dict[int, Array] = dict(zip(flat.inputs, arrays, strict=True))
    exact_variables, before = flat.exact(tuple(mask)), s.fold_zeros

    def read(x: Any) -> Array:
        return env[x] if type(x) is int else s.constants(x)

    for step in flat.steps:
        exact = [r in exact_variables for r in step.results]
        if sum(math.prod(v.aval.shape) for v in step.equation.outvars) > MAX_ENTRIES:
            raise CannotExpand(f"an array of more than {MAX_ENTRIES} entries", _place(step.outer))
        if any(np.size(o) > MAX_TABLE for o in step.operands if type(o) is not int):
            raise CannotExpand(f"a constant array of more than {MAX_TABLE} entries", _place(step.outer))
        s.fold_zeros = not any(exact)
        try:
            out = _step(s, step, [read(o) for o in step.operands], exact)
        except CannotExpand as error:
            raise CannotExpand(error.what, _place(step.outer)) from None
        results = map(_wrap, out) if isinstance(out, list | tuple) else [_wrap(out)]
        env.update(zip(step.results, results, strict=True))
    s.fold_zeros = before
    return [read(o) for o in flat.outputs]


def _place(equation: Any) -> str:
    """file:line of the innermost frame outside JAX and this file; empty where the equation records none."""
    frames = getattr(getattr(getattr(equation, "source_info", None), "traceback", None), "frames", None) or ()
    for frame in frames:
        name, line = str(getattr(frame, "file_name", "")), getattr(frame, "line_num", 0)
        if name and not name.startswith((*_LIBRARIES, "<@beartype", __file__)):
            return f"{name}:{line}"
    return ""


def expand(function: Callable[..., Any], *shapes: Any, exact: int | None = 1, portable: bool = False) -> Program:
    """The row program of a function of small arrays.

    Parameters
    ----------
    function : callable
        Plain JAX on pytrees of small arrays, already differentiated.
    *shapes : pytrees of jax.ShapeDtypeStruct
        One for each argument.
    exact : int or None
        The first `exact` leaves of the output (all, if None) give NaN and infinities wherever the function does. In
        the others, taken for derivatives, 0 * x with a constant zero is zero.
    portable : bool
        Write out also what XLA does well on a CPU but Triton has no rule for (erf, erfc), and let maxima and minima return NaN
        where an operand is NaN, which Triton's do not.

    Raises
    ------
    CannotExpand
        Where something has no form on single entries, with the user's line, or where more than 6 000 equations are left.
    """
    closed = jax.make_jaxpr(function)(*shapes)
    flat, s = flatten(closed), Scalars(portable)
    leaves = [[(leaf.shape, np.dtype(leaf.dtype)) for leaf in jax.tree.leaves(shape)] for shape in shapes]
    arrays = [
        [_objects(size, [s.variable(dtype) for _ in range(math.prod(size))]) for size, dtype in of] for of in leaves
    ]
    mask = [exact is None or k < exact for k in range(len(flat.outputs))]
    outputs = _evaluate(s, flat, [a for of in arrays for a in of], mask)
    program = s.program([[e for a in of for e in a.ravel()] for of in arrays], [e for a in outputs for e in a.ravel()])
    if program.num_equations > MAX_EQUATIONS:
        raise CannotExpand(
            f"a function of {program.num_equations} equations (too many equations: at most {MAX_EQUATIONS})"
        )
    return program
