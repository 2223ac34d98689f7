"""What depends on the parameters alone is taken out of products with data, and out of sums over rows.

A derivative of one row is a sum of chains of products, ((x a) b) c with x of the row and a, b, c of the parameters. Written as
x (a b c) the bracket is computed once an evaluation. Where a whole output is such a chain, the bracket multiplies the sum over
the rows; and where it is a sum of few chains, each is summed over the rows by itself. So a value is kept as a sum of terms,
each with a coefficient of the parameters, and worked out only where something other than sums and products needs it. Terms that
differ by constants only are added before they are multiplied: c s - c s² would lose what s (1 - s) has where s is nearly one.

Only derivatives are written anew. The value itself, and what decides between cases, are computed as the user wrote them, and
what they are computed from stays whole: a difference y - mu, or a product (y - mu) / sigma, whose square is of order one where
those of its factors may be too small and too large for a float. Coefficients are not taken through a choice between cases, of
which the one that is not taken may have infinite ones.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fisher_jax.numerics.expansion import COSTLY, Equation, Program, operation, used

MOST_TERMS = 6  # of a value that is not worked out
MOST_SUMS = 2  # for each output, where these are cut into several


class Term(NamedTuple):
    """`literal` times powers of values of the parameters, (number, exponent), times values of the row, numbers, both sorted.

    An empty base is one.
    """

    literal: Any
    factors: tuple[tuple[int, int], ...]
    base: tuple[int, ...]


Terms = tuple[Term, ...]


class Sums(NamedTuple):
    """Outputs as sums over rows: output k is the sum of `rows` output i times `coefficients` output j, over (i, j) of `pairs[k]`.

    `coefficients` takes the entries of the parameters only.
    """

    rows: Program
    coefficients: Program
    pairs: tuple[tuple[tuple[int, int], ...], ...]


def summed_by_rows(program: Program, argument: int, exact: int, whole: int, dtype: Any) -> Sums:
    """The outputs of a program, all of one dtype, as sums over rows, with what depends on one argument alone outside.

    The first `exact` outputs are computed as they are, the first `whole` not cut into several sums.
    """
    work, one = _Work(program, argument, exact), np.dtype(dtype).type(1)
    rows: list[Any] = list(program.outputs[:exact])
    coefficients: list[Any] = [one] * exact
    pairs: list[tuple[tuple[int, int], ...]] = [((k, k),) for k in range(exact)]
    places: dict[Any, int] = {}
    with np.errstate(all="ignore"):  # of constants
        for equation in program.equations:
            work.add(equation)
        found = [work.of(o, dtype) if type(o) is int else None for o in program.outputs]
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


def without_constant(program: Program) -> tuple[Program, Program | None]:
    """The program with what is costly and of the data alone taken from its first output, a sum; and that part, if there is one.

    The part takes the entries of all arguments but the first, which are the parameters.
    """
    work = _Constant(program)
    varies, constant = work.parts(program.outputs[0])
    if varies is None or constant is None:
        return program, None
    equations, outputs = (*program.equations, *work.equations), (varies, *program.outputs[1:])
    return (
        Program(used(equations, outputs), program.inputs, outputs),
        Program(used(equations, [constant]), program.inputs[1:], (constant,)),
    )


class _Constant:
    """A value as the sum of a part that stays and one that is taken; `None` stands for zero.

    Only what is costly is taken: a bare y stays where it is, in its difference from a parameter.
    """

    def __init__(self, program: Program) -> None:
        self.of = {equation.result: equation for equation in program.equations}
        self.equations: list[Equation] = []
        self.varies, self.costly = set(program.inputs[0]), set[int]()
        for equation in program.equations:
            numbers = [o for o in equation.operands if type(o) is int]
            if any(o in self.varies for o in numbers):
                self.varies.add(equation.result)
            elif equation.primitive.name in COSTLY or any(o in self.costly for o in numbers):
                self.costly.add(equation.result)
        self.free = 1 + max([*(number for numbers in program.inputs for number in numbers), *self.of])

    def parts(self, value: Any) -> tuple[Any, Any]:
        if type(value) is not int or value not in self.of:
            return value, None
        equation = self.of[value]
        if value not in self.varies:
            return (None, value) if value in self.costly and equation.dtype.kind == "f" else (value, None)
        name, operands = equation.primitive.name, equation.operands
        if name in ("add", "sub", "neg"):
            stays, taken = (self._sum(equation, *pair) for pair in zip(*map(self.parts, operands), strict=True))
            return (value, None) if taken is None else (stays, taken)
        if name == "mul" and any(self._of_data(o) for o in operands):
            x, y = operands if self._of_data(operands[0]) else reversed(operands)
            stays, taken = self.parts(y)
            if taken is not None:
                return None if stays is None else self._emit(equation, x, stays), self._emit(equation, x, taken)
        if name == "select_n" and len(operands) == 3 and self._of_data(operands[0]):
            condition, *cases = operands
            pairs = list(zip(*map(self.parts, cases), strict=True))
            if any(taken is not None for taken in pairs[1]):
                zero = equation.dtype.type(0)
                filled = [[zero if x is None else x for x in pair] for pair in pairs]
                return self._emit(equation, condition, *filled[0]), self._emit(equation, condition, *filled[1])
        return value, None

    def _of_data(self, operand: Any) -> bool:
        return type(operand) is not int or operand not in self.varies

    def _sum(self, equation: Equation, *operands: Any) -> Any:
        """What an addition, a difference or a change of sign makes of parts."""
        if all(o is None for o in operands):
            return None
        if operands[-1] is None:
            return operands[0]
        if operands[0] is None and equation.primitive.name == "add":
            return operands[1]
        return self._emit(equation, *(equation.dtype.type(0) if o is None else o for o in operands))

    def _emit(self, equation: Equation, *operands: Any) -> int:
        self.equations.append(equation._replace(operands=operands, result=self.free))
        self.free += 1
        return self.free - 1


class _Work:
    """The equations written so far, and what they stand for."""

    def __init__(self, program: Program, argument: int, exact: int) -> None:
        self.equations: list[Equation] = []
        self.free = 1 + max(
            [*(n for numbers in program.inputs for n in numbers), *(e.result for e in program.equations)]
        )
        self.alone = set(program.inputs[argument])  # values of the parameters alone
        self.as_written = _as_written(program, exact)
        self.terms: dict[int, Terms] = {}  # what a value is, where that is more than a number
        self.made: dict[Any, Any] = {}  # results by operation and operands, or by term
        self.bases: dict[tuple[int, ...], int] = {}  # products of values of the row
        self.kept: list[tuple[Term, int]] = []  # products as written of parameters and data, with their numbers

    def of(self, operand: Any, dtype: Any) -> Terms:
        if type(operand) is not int:
            return (Term(operand, (), ()),)
        if operand in self.terms:
            return self.terms[operand]
        one = np.dtype(dtype).type(1)
        return (Term(one, ((operand, 1),), ()) if operand in self.alone else Term(one, (), (operand,)),)

    def add(self, equation: Equation) -> None:
        """An equation of before."""
        primitive, params, operands, result, dtype = equation
        rule = _RULES.get(primitive.name)
        alone = all(type(o) is not int or o in self.alone for o in operands)
        if alone or result in self.as_written or rule is None:
            of_before = alone or result in self.as_written
            values = operands if of_before else tuple(self.number(self.of(o, dtype)) for o in operands)
            self.keep(Equation(primitive, params, values, result, dtype))
            if alone:
                self.alone.add(result)
            if dtype.kind == "f" and primitive.name in ("mul", "div", "neg"):
                self._known(equation, alone=alone)
        else:
            self.terms[result] = rule(self, equation, *(self.of(o, dtype) for o in operands))

    def _known(self, equation: Equation, *, alone: bool) -> None:
        """What a product as written consists of. One of parameters and data stays whole, and is found again in others."""
        operands = [self.of(o, equation.dtype) for o in equation.operands]
        if any(len(terms) != 1 for terms in operands) or (equation.primitive.name == "div" and operands[1][0].base):
            return
        (found,) = _RULES[equation.primitive.name](self, equation, *operands)
        self.made.setdefault((found,), equation.result)
        if alone or not found.factors:
            self.terms[equation.result] = (found,)
            if found.literal == 1 and not alone:
                self.bases.setdefault(found.base, equation.result)
        else:
            self.kept.insert(0, (found, equation.result))  # the last, of which others are no parts, first

    def folded(self, term: Term) -> Term:
        """With products as written in place of what they consist of."""
        literal, factors, base = term
        for (number, some, others), result in self.kept:
            while _within(some, factors) and not Counter(others) - Counter(base):
                literal, factors = literal / number, _powers(factors, some, -1)
                base = tuple(sorted((*(Counter(base) - Counter(others)).elements(), result)))
        return Term(literal, factors, base)

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
            self.keep(Equation(primitive, params, operands, self.free, dtype))
            self.free += 1
        return self.made[key]

    def apart(self, term: Term) -> tuple[Any, Any]:
        """The number of the base, and that of its coefficient, or constants."""
        dtype = term.literal.dtype
        return self.base(term.base, dtype) if term.base else dtype.type(1), self.number((term._replace(base=()),))

    def one_term(self, terms: Terms) -> Terms:
        """The same as one term: what all have stands outside, the factors and values of the row, 1 - s in s - s²."""
        if len(terms) == 1:
            return terms
        dtype, size = terms[0].literal.dtype, abs(terms[0].literal)
        powers, base = dict(terms[0].factors), Counter(terms[0].base)
        for term in terms[1:]:
            its = dict(term.factors)
            powers = {n: min(e, its.get(n, 0), key=abs) for n, e in powers.items() if e * its.get(n, 0) > 0}
            base &= Counter(term.base)
        factors, literal = tuple(sorted(powers.items())), dtype.type(1)
        if all(term.base for term in terms) and 0 < size < np.inf:
            literal = size
        left = [
            Term(
                t.literal / literal, _powers(t.factors, factors, -1), tuple(sorted((Counter(t.base) - base).elements()))
            )
            for t in terms
        ]

        def below(term: Term) -> bool:
            return bool(term.literal < 0 and (term.factors or term.base))

        if all(below(t) for t in left):
            literal, left = -literal, [t._replace(literal=-t.literal) for t in left]
        first, *others = sorted(left, key=below)  # one to begin with, from which others are taken
        total = self.number((first,))
        for term in others:
            number = self.number((term._replace(literal=abs(term.literal)) if below(term) else term,))
            total = self.emit("sub" if below(term) else "add", dtype, total, number)
        return (self.folded(Term(literal, factors, tuple(sorted((*base.elements(), total))))),)

    def number(self, terms: Terms) -> Any:
        """The number of the value itself, worked out, or a constant."""
        terms = self.one_term(terms)
        ((literal, factors, base),) = terms
        if not factors and not base:
            return literal
        if terms not in self.made:
            dtype = literal.dtype
            number = None if literal == 1 else literal
            if factors and (literal != 1 or base):
                alone = self.number((Term(dtype.type(1), factors, ()),))
                number = alone if number is None else self.emit("mul", dtype, number, alone)
            elif factors:
                above = self._product([n for n, e in factors for _ in range(e)], dtype)
                below = self._product([n for n, e in factors for _ in range(-e)], dtype)
                number = (
                    above
                    if below is None
                    else self.emit("div", dtype, dtype.type(1) if above is None else above, below)
                )
            if base:
                values = self.base(base, dtype)
                number = values if number is None else self.emit("mul", dtype, number, values)
            self.made[terms] = number
        return self.made[terms]

    def _product(self, numbers: Sequence[int], dtype: np.dtype) -> Any:
        product = None
        for number in numbers:
            product = number if product is None else self.emit("mul", dtype, product, number)
        return product

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
                    alike.append(Term(dtype.type(1), ((self.emit("add", dtype, *numbers), 1),), base))
            joined += alike
        return tuple(joined)


def _powers(x: tuple[tuple[int, int], ...], y: tuple[tuple[int, int], ...], times: int) -> tuple[tuple[int, int], ...]:
    """x times y to a power."""
    powers = dict(x)
    for number, exponent in y:
        powers[number] = powers.get(number, 0) + times * exponent
    return tuple(sorted((number, exponent) for number, exponent in powers.items() if exponent))


def _within(some: tuple[tuple[int, int], ...], factors: tuple[tuple[int, int], ...]) -> bool:
    """Whether all of `some` is there to be taken out."""
    powers = dict(factors)
    return all(powers.get(number, 0) * exponent >= exponent * exponent for number, exponent in some)


def _key(name: str, operands: Sequence[Any]) -> tuple[Any, ...]:
    keys = [(0, o, "") if type(o) is int else (1, repr(o), str(o.dtype)) for o in operands]
    return name, *(sorted(keys) if name in ("add", "mul") else keys)


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
    """A sum whose terms differ by constants only is one value before it is multiplied: s - s² may be zero, and c s - c s² not."""
    x, y = (z if len({t.factors for t in z}) > 1 else work.one_term(z) for z in (x, y))
    if len(x) > 1 and len(y) > 1:
        y = work.one_term(y)
    return tuple(
        work.folded(Term(a.literal * b.literal, _powers(a.factors, b.factors, 1), tuple(sorted(a.base + b.base))))
        for a in x
        for b in y
    )


def _neg(work: _Work, equation: Equation, x: Terms) -> Terms:
    return tuple(term._replace(literal=-term.literal) for term in x)


def _sub(work: _Work, equation: Equation, x: Terms, y: Terms) -> Terms:
    return _add(work, equation, x, _neg(work, equation, y))


def _add(work: _Work, equation: Equation, x: Terms, y: Terms) -> Terms:
    """Products stay apart, so that they may meet their like; a sum of other values is one value of the row."""
    terms = work.joined((*x, *y))
    apart = all(term.base and (term.factors or len(term.base) > 1) for term in terms)
    return terms if apart and len(terms) <= MOST_TERMS else work.one_term(terms)


def _div(work: _Work, equation: Equation, x: Terms, y: Terms) -> Terms:
    """By one term of the parameters: its powers turn about. By data: times a reciprocal that is there, or a quotient."""
    dtype, one = equation.dtype, equation.dtype.type(1)
    if len(y) == 1 and not y[0].base:
        (below,) = y
        turned = _powers((), below.factors, -1)
        return _mul(
            work, equation, tuple(t._replace(literal=t.literal / below.literal) for t in x), (Term(one, turned, ()),)
        )
    number, (term,) = work.number(y), work.one_term(x)
    if not term.base or _key("div", (one, number)) in work.made:
        return _mul(work, equation, (term,), (Term(one, (), (work.emit("div", dtype, one, number),)),))
    return (term._replace(base=(work.emit("div", dtype, work.base(term.base, dtype), number),)),)


def _select(work: _Work, equation: Equation, *operands: Terms) -> Terms:
    condition, cases = equation.operands[0], [work.one_term(case)[0] for case in operands[1:]]
    same = all(case.base and case[:2] == cases[0][:2] for case in cases)
    values = [work.base(case.base, equation.dtype) if same else work.number((case,)) for case in cases]
    chosen = work.emit("select_n", equation.dtype, condition, *values, of=equation[:2])
    return (Term(*(cases[0][:2] if same else (equation.dtype.type(1), ())), (chosen,)),)


_RULES: dict[str, Any] = {"mul": _mul, "neg": _neg, "add": _add, "sub": _sub, "div": _div, "select_n": _select}
