"""What depends on the parameters alone is taken out of products with data, and out of sums over rows.

A derivative of one row is a sum of chains of products, ((x a) b) c with x of the row and a, b, c of the parameters. Written as
x (a b c) the bracket is computed once an evaluation. Where a whole output is such a chain, the bracket multiplies the sum over
the rows; and where it is a sum of few chains, each is summed over the rows by itself. So a value is kept as a sum of terms,
each with a coefficient of the parameters, and worked out only where something other than sums and products needs it.

Only derivatives are written anew: the value itself, and what decides between cases, are computed as the user wrote them, and a
difference such as y - mu stays one value. Coefficients are not taken through a choice between cases: the case that is not taken
may have infinite ones.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fisher_jax.numerics.expansion import Equation, Program, operation, used

MOST_TERMS = 6  # of a value that is not worked out
MOST_SUMS = 2  # for each output, where these are cut into several


class Term(NamedTuple):
    """`literal` times values of the parameters times values of the row: numbers of values, sorted. An empty base is one."""

    literal: Any
    factors: tuple[int, ...]
    base: tuple[int, ...]


Terms = tuple[Term, ...]


class Sums(NamedTuple):
    """Outputs as sums over rows: output k is the sum of `rows` output i times `coefficients` output j, over (i, j) of `pairs[k]`.

    `coefficients` takes the entries of the parameters only.
    """

    rows: Program
    coefficients: Program
    pairs: tuple[tuple[tuple[int, int], ...], ...]


def summed_by_rows(program: Program, argument: int, exact: int, whole: int) -> Sums:
    """The outputs of a program as sums over rows, with what depends on one argument alone outside.

    The first `exact` outputs are computed as they are, the first `whole` not cut into several sums.
    """
    work, one = _Work(program, argument, exact), np.float64(1)
    rows: list[Any] = list(program.outputs[:exact])
    coefficients: list[Any] = [one] * exact
    pairs: list[tuple[tuple[int, int], ...]] = [((k, k),) for k in range(exact)]
    places: dict[Any, int] = {}
    with np.errstate(all="ignore"):  # of constants
        for equation in program.equations:
            work.add(equation)
        found = [work.of(o, work.dtypes.get(o, np.float64)) if type(o) is int else None for o in program.outputs]
        apart = len({term.base for terms in found[whole:] for term in terms or ()}) <= MOST_SUMS * len(found[whole:])
        for k, (output, terms) in enumerate(zip(program.outputs, found, strict=True)):
            if k < exact:
                continue
            if terms is not None:
                terms = work.joined(terms) if apart and k >= whole else work.one_term(terms)
            pair = []
            for base, coefficient in [(output, one)] if terms is None else map(work.apart, terms):
                place = places.setdefault((type(base), base), len(rows))
                rows += [base] if place == len(rows) else []
                pair.append((place, len(coefficients)))
                coefficients.append(coefficient)
            pairs.append(tuple(pair))
    equations, inputs = tuple(work.equations), program.inputs
    return Sums(
        Program(used(equations, rows), inputs, tuple(rows)),
        Program(used(equations, coefficients), (inputs[argument],), tuple(coefficients)),
        tuple(pairs),
    )


def without_constant(program: Program, costly: Callable[[Program], bool]) -> tuple[Program, Program | None]:
    """(program, constant): the first output is that of before less `constant`, which the parameters do not enter.

    `constant` takes the entries of the other arguments; it is `None`, and nothing changes, unless `costly(constant)`.
    """
    work = _Constant(program)
    varies, constant = work.parts(program.outputs[0])
    if varies is None or constant is None:
        return program, None
    equations, (_, *data) = (*program.equations, *work.equations), program.inputs
    alone = Program(used(equations, [constant]), tuple(data), (constant,))
    if not costly(alone):
        return program, None
    outputs = (varies, *program.outputs[1:])
    return Program(used(equations, outputs), program.inputs, outputs), alone


class _Constant:
    """A value as the sum of a part that the parameters enter and one that they do not; `None` stands for zero."""

    def __init__(self, program: Program) -> None:
        self.of = {equation.result: equation for equation in program.equations}
        self.equations: list[Equation] = []
        self.varies = set(program.inputs[0])
        for equation in program.equations:
            if any(o in self.varies for o in equation.operands if type(o) is int):
                self.varies.add(equation.result)
        self.free = 1 + max([*(number for numbers in program.inputs for number in numbers), *self.of])

    def parts(self, value: Any) -> tuple[Any, Any]:
        if type(value) is not int:
            return value, None  # a number costs nothing where it is
        if value not in self.varies:
            return None, value
        equation = self.of.get(value)
        name, operands = (equation.primitive.name, equation.operands) if equation else ("", ())
        if equation is None or equation.dtype.kind != "f":
            return value, None
        if name in ("add", "sub", "neg"):
            both = zip(*map(self.parts, operands), strict=True)
            varies, constant = (self._combined(equation, *pair) for pair in both)
            return (varies, constant) if constant is not None else (value, None)
        if name == "mul":
            x, y = operands if operands[0] not in self.varies else reversed(operands)
            varies, constant = self.parts(y) if x not in self.varies else (value, None)
            if constant is None:
                return value, None
            return self._emit(equation, x, varies), self._emit(equation, x, constant)
        if name == "select_n" and len(operands) == 3:
            return self._chosen(value, equation, *operands)
        return value, None

    def _chosen(self, value: Any, equation: Equation, condition: Any, *cases: Any) -> tuple[Any, Any]:
        """Where the data choose, either part; where the parameters do, a case that is not finite stays so whatever is added."""
        parts = [self.parts(case) for case in cases]
        if all(constant is None for _, constant in parts):
            return value, None
        zero = equation.dtype.type(0)
        filled = [[zero if x is None else x for x in pair] for pair in zip(*parts, strict=True)]
        if condition not in self.varies:
            return self._emit(equation, condition, *filled[0]), self._emit(equation, condition, *filled[1])
        for k, case in enumerate(cases):
            if type(case) is not int and not np.isfinite(case):
                return self._emit(equation, condition, *filled[0]), parts[1 - k][1]
        return value, None

    def _combined(self, equation: Equation, *operands: Any) -> Any:
        if all(o is None for o in operands):
            return None
        if equation.primitive.name == "add" and None in operands:
            return operands[0] if operands[1] is None else operands[1]
        if equation.primitive.name == "sub" and operands[1] is None:
            return operands[0]
        zero = equation.dtype.type(0)
        return self._emit(equation, *(zero if o is None else o for o in operands))

    def _emit(self, equation: Equation, *operands: Any) -> int:
        self.equations.append(equation._replace(operands=operands, result=self.free))
        self.free += 1
        return self.free - 1


class _Work:
    """The equations written so far, and what they stand for."""

    def __init__(self, program: Program, argument: int, exact: int) -> None:
        self.equations: list[Equation] = []
        self.dtypes = {equation.result: equation.dtype for equation in program.equations}
        self.free = 1 + max([*(number for numbers in program.inputs for number in numbers), *self.dtypes])
        self.alone = set(program.inputs[argument])  # values of the parameters alone
        self.as_written = _as_written(program, exact)
        self.terms: dict[int, Terms] = {}  # what a value is, where that is more than a number
        self.made: dict[Any, int] = {}  # results by operation and operands
        self.bases: dict[tuple[int, ...], int] = {}  # products of values of the row

    def of(self, operand: Any, dtype: Any) -> Terms:
        if type(operand) is not int:
            return (Term(operand, (), ()),)
        if operand in self.terms:
            return self.terms[operand]
        one = np.dtype(dtype).type(1)
        return (Term(one, (operand,), ()) if operand in self.alone else Term(one, (), (operand,)),)

    def add(self, equation: Equation) -> None:
        """An equation of before."""
        primitive, params, operands, result, dtype = equation
        rule = _RULES.get(primitive.name)
        if all(type(o) is not int or o in self.alone for o in operands):
            self.alone.add(result)
            self.keep(equation)
        elif result in self.as_written or rule is None:
            values = operands if result in self.as_written else [self.number(self.of(o, dtype)) for o in operands]
            self.keep(Equation(primitive, params, tuple(values), result, dtype))
            if primitive.name == "mul" and dtype.kind == "f":
                x, y = (self.of(o, dtype) for o in operands)
                if len(x) == len(y) == 1:
                    (found,) = self.terms[result] = _mul(self, equation, x, y)
                    if found.literal == 1 and not found.factors:
                        self.bases.setdefault(found.base, result)
                    self.made.setdefault((found,), result)
        else:
            self.terms[result] = rule(self, equation, *(self.of(o, dtype) for o in operands))

    def keep(self, equation: Equation) -> None:
        self.equations.append(equation)
        self.made.setdefault(_key(equation.primitive.name, equation.operands), equation.result)

    def emit(self, name: str, dtype: np.dtype, *operands: Any, of: Any = None) -> int:
        """The number of an operation's result, made once; `of` is (primitive, params), where they are at hand."""
        key = _key(name, operands)
        if key not in self.made:
            primitive, params = of or operation(name, "f")
            if all(type(o) is not int or o in self.alone for o in operands):
                self.alone.add(self.free)
            self.dtypes[self.free] = dtype
            self.keep(Equation(primitive, params, operands, self.free, dtype))
            self.free += 1
        return self.made[key]

    def apart(self, term: Term) -> tuple[Any, Any]:
        """The number of the base, and that of its coefficient, or constants."""
        dtype = term.literal.dtype
        return self.base(term.base, dtype) if term.base else dtype.type(1), self.number((term._replace(base=()),))

    def one_term(self, terms: Terms) -> Terms:
        """The same as one term, the factors that all have outside."""
        if len(terms) == 1:
            return terms
        dtype = terms[0].literal.dtype
        common = terms[0].factors
        for term in terms[1:]:
            common = tuple(sorted((Counter(common) & Counter(term.factors)).elements()))
        size = abs(terms[0].literal)
        literal = size if all(abs(t.literal) == size and t.base for t in terms) and 0 < size < np.inf else dtype.type(1)
        left = [t._replace(literal=t.literal / literal, factors=_without(t.factors, common)) for t in terms]
        negative = [t.literal < 0 and bool(t.factors or t.base) for t in left]
        if all(negative):
            literal, negative = -literal, [False] * len(left)
            left = [t._replace(literal=-t.literal) for t in left]
        left.sort(key=lambda t: t.literal < 0 and bool(t.factors or t.base))  # one that is added comes first
        total = self.number(left[:1])
        for term in left[1:]:
            below = term.literal < 0 and bool(term.factors or term.base)
            number = self.number([term._replace(literal=abs(term.literal)) if below else term])
            total = self.emit("sub" if below else "add", dtype, total, number)
        return (Term(literal, common, (total,)),)

    def number(self, terms: Sequence[Term]) -> Any:
        """The number of the value itself, worked out, or a constant."""
        terms = self.one_term(tuple(terms))
        ((literal, factors, base),) = terms
        if not factors and not base:
            return literal
        if terms not in self.made:
            dtype, number = literal.dtype, None  # of the product so far
            for factor in factors:
                number = factor if number is None else self.emit("mul", dtype, number, factor)
            if literal != 1:
                number = literal if number is None else self.emit("mul", dtype, literal, number)
            if base:
                values = self.base(base, dtype)
                number = values if number is None else self.emit("mul", dtype, number, values)
            self.made[terms] = number  # type: ignore[assignment]  # there is a factor or a base
        return self.made[terms]

    def base(self, values: tuple[int, ...], dtype: np.dtype) -> int:
        """The number of a product of values of the row, from the largest part of it that has been made."""
        if len(values) == 1:
            return values[0]
        if values not in self.bases:
            wanted = Counter(values)
            parts = [part for part in self.bases if len(part) < len(values) and Counter(part) <= wanted]
            part = max(parts, key=len, default=values[:1])
            left = tuple(sorted((wanted - Counter(part)).elements()))
            self.bases[values] = self.emit("mul", dtype, self.base(part, dtype), self.base(left, dtype))
        return self.bases[values]

    def joined(self, terms: Sequence[Term]) -> Terms:
        """Terms of one base as one term."""
        by_base: dict[tuple[int, ...], list[Term]] = {}
        for term in terms:
            by_base.setdefault(term.base, []).append(term)
        joined = []
        for base, alike in by_base.items():
            while len(alike) > 1:
                x, y = alike.pop(), alike.pop()
                dtype = x.literal.dtype
                if x.factors == y.factors:
                    alike.append(x._replace(literal=x.literal + y.literal))
                else:
                    numbers = [self.number((z._replace(base=()),)) for z in (x, y)]
                    alike.append(Term(dtype.type(1), (self.emit("add", dtype, *numbers),), base))
            joined += alike
        return tuple(joined)


def _key(name: str, operands: Sequence[Any]) -> tuple[Any, ...]:
    keys = [(0, o, "") if type(o) is int else (1, repr(o), str(o.dtype)) for o in operands]
    return name, *(sorted(keys) if name in ("add", "mul") else keys)


def _without(x: tuple[int, ...], y: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted((Counter(x) - Counter(y)).elements()))


def _as_written(program: Program, exact: int) -> set[int]:
    """The values of which the exact outputs are made, and anything but floating numbers."""
    needed = {o for o in program.outputs[:exact] if type(o) is int}
    for equation in reversed(program.equations):
        if equation.result in needed or equation.dtype.kind != "f":
            needed.update(o for o in (equation.result, *equation.operands) if type(o) is int)
        elif equation.primitive.name == "select_n":
            needed.update(o for o in equation.operands[:1] if type(o) is int)
    return needed


# --- rules: (work, equation, operands) -> the result, all of them sums of terms ------------------------------------------


def _mul(work: _Work, equation: Equation, x: Terms, y: Terms) -> Terms:
    if len(x) > 1 and len(y) > 1:
        y = work.one_term(y)
    return tuple(
        Term(a.literal * b.literal, tuple(sorted(a.factors + b.factors)), tuple(sorted(a.base + b.base)))
        for a in x
        for b in y
    )


def _neg(work: _Work, equation: Equation, x: Terms) -> Terms:
    return tuple(term._replace(literal=-term.literal) for term in x)


def _sub(work: _Work, equation: Equation, x: Terms, y: Terms) -> Terms:
    return _add(work, equation, x, _neg(work, equation, y))


def _add(work: _Work, equation: Equation, x: Terms, y: Terms) -> Terms:
    """Terms that differ by their coefficients stay apart; where only constants differ, the sum is one value of the row."""
    terms = work.joined((*x, *y))
    apart = all(term.base for term in terms) and len({term.factors for term in terms}) > 1
    return terms if apart and len(terms) <= MOST_TERMS else work.one_term(terms)


def _div(work: _Work, equation: Equation, x: Terms, y: Terms) -> Terms:
    """By parameters: times their reciprocal. By data: times a reciprocal that is there, or a quotient."""
    dtype, below, one = equation.dtype, work.number(y), equation.dtype.type(1)
    if type(below) is not int:
        return tuple(term._replace(literal=term.literal / below) for term in x)
    if below in work.alone:
        return _mul(work, equation, x, (Term(one, (work.emit("div", dtype, one, below),), ()),))
    (term,) = work.one_term(x)
    if not term.base or _key("div", (one, below)) in work.made:
        return _mul(work, equation, (term,), (Term(one, (), (work.emit("div", dtype, one, below),)),))
    return (term._replace(base=(work.emit("div", dtype, work.base(term.base, dtype), below),)),)


def _select(work: _Work, equation: Equation, *operands: Terms) -> Terms:
    condition, cases = equation.operands[0], [work.one_term(case)[0] for case in operands[1:]]
    same = all(case.base and case[:2] == cases[0][:2] for case in cases)
    values = [work.base(case.base, equation.dtype) if same else work.number((case,)) for case in cases]
    chosen = work.emit("select_n", equation.dtype, condition, *values, of=equation[:2])
    return (Term(*(cases[0][:2] if same else (equation.dtype.type(1), ())), (chosen,)),)


_RULES: dict[str, Any] = {"mul": _mul, "neg": _neg, "add": _add, "sub": _sub, "div": _div, "select_n": _select}
