"""Sums over rows, with what depends on the parameters alone taken out of them; and the part of a sum that is constant.

A derivative of one row is a sum of chains of products, ((x a) b) c with x of the row and a, b, c of the parameters. Written as
x (a b c) the bracket is computed once an evaluation, and where a whole output is such a chain it multiplies the sum over the rows.
An output that is a sum of few chains becomes several sums over rows. So a value is represented as a sum of products, each with a
coefficient of the parameters, and computed only where another operation than a sum or a product needs it.

Rounding sets limits. Products that differ by constants only are added before they are multiplied, since c s - c s² would lose
the digits that s (1 - s) has where s is nearly one. Only derivatives are rewritten. The value itself, and the conditions of
choices, are computed as the user wrote them, and what they are computed from stays whole: a difference y - mu, or a product
(y - mu) / sigma, whose square is of order one where the squares of its factors may underflow and overflow. Coefficients are not
taken out of a choice between cases, since that of the case that is not chosen may be infinite.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fisher_jax.numerics.expansion import COSTLY, Equation, Program, operation, used

MOST_PRODUCTS = 6  # of a value that is represented as their sum
MOST_SUMS = 2  # for each output, where outputs are cut into several

Powers = tuple[tuple[int, int], ...]  # (number of a value, exponent), sorted


class Product(NamedTuple):
    """`literal` times powers of values of the parameters times values of the row, `base` (numbers, sorted; empty for one)."""

    literal: Any
    factors: Powers
    base: tuple[int, ...]


SumOfProducts = tuple[Product, ...]


class RowSums(NamedTuple):
    """Outputs as sums over rows: output k is the sum of `rows` output i times `coefficients` output j, over (i, j) of `pairs[k]`.

    `coefficients` takes the entries of the parameters only.
    """

    rows: Program
    coefficients: Program
    pairs: tuple[tuple[tuple[int, int], ...], ...]


def sum_over_rows(program: Program, argument: int, exact: int, uncut: int, dtype: Any) -> RowSums:
    """The outputs of a program, all of one dtype, as sums over rows, with what depends on one argument alone outside of them.

    The first `exact` outputs are computed as they are, the first `uncut` are not cut into several sums.
    """
    rewriting, one = _Rewriting(program, argument, exact), np.dtype(dtype).type(1)
    rows: list[Any] = list(program.outputs[:exact])
    coefficients: list[Any] = [one] * exact
    pairs: list[tuple[tuple[int, int], ...]] = [((k, k),) for k in range(exact)]
    places: dict[Any, int] = {}
    with np.errstate(all="ignore"):  # of constants
        for equation in program.equations:
            rewriting.add(equation)
        sums = [rewriting.sum_of(o, dtype) if type(o) is int else None for o in program.outputs]
        # Each sum costs an addition a row, so outputs are cut only where few bases result.
        num_bases = len({product.base for products in sums[uncut:] for product in products or ()})
        is_cut = num_bases <= MOST_SUMS * len(sums[uncut:])
        for k in range(exact, len(sums)):
            output, products = program.outputs[k], sums[k]
            if products is None:
                parts = [(output, one)]
            else:
                products = rewriting.add_alike(products) if is_cut and k >= uncut else rewriting.as_product(products)
                parts = [rewriting.base_and_coefficient(product) for product in products]
            pair = []
            for base, coefficient in parts:
                place = places.setdefault((type(base), base), len(rows))
                rows += [base] if place == len(rows) else []
                pair.append((place, len(coefficients)))
                coefficients.append(coefficient)
            pairs.append(tuple(pair))
    equations, inputs = tuple(rewriting.equations), program.inputs
    return RowSums(
        Program(used(equations, rows), inputs, tuple(rows)),
        Program(used(equations, coefficients), (inputs[argument],), tuple(coefficients)),
        tuple(pairs),
    )


def split_off_constant(program: Program) -> tuple[Program, Program | None]:
    """The program without what is costly and of the data alone in its first output, a sum; and that constant, if there is any.

    The constant takes the entries of all arguments but the first, which are the parameters.
    """
    splitting = _ConstantSplitting(program)
    varying, constant = splitting.split(program.outputs[0])
    if varying is None or constant is None:
        return program, None
    equations, outputs = (*program.equations, *splitting.equations), (varying, *program.outputs[1:])
    return (
        Program(used(equations, outputs), program.inputs, outputs),
        Program(used(equations, [constant]), program.inputs[1:], (constant,)),
    )


class _NewEquations:
    """Equations that are written in place of a program's or after them, with numbers of their own."""

    def __init__(self, program: Program) -> None:
        self.equations: list[Equation] = []
        inputs = (number for numbers in program.inputs for number in numbers)
        self.next_number = 1 + max([*inputs, *(equation.result for equation in program.equations)])

    def write(self, equation: Equation) -> int:
        """Write an equation with a new number for its result."""
        self.equations.append(equation._replace(result=self.next_number))
        self.next_number += 1
        return self.next_number - 1


class _ConstantSplitting(_NewEquations):
    """Splits a value into a varying part and a constant one; `None` stands for zero.

    Only a constant that is costly is split off: a bare y stays in its difference from a parameter.
    """

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self.equation_of = {equation.result: equation for equation in program.equations}
        self.varying, self.costly = set(program.inputs[0]), set[int]()
        for equation in program.equations:
            numbers = [o for o in equation.operands if type(o) is int]
            if any(o in self.varying for o in numbers):
                self.varying.add(equation.result)
            elif equation.primitive.name in COSTLY or any(o in self.costly for o in numbers):
                self.costly.add(equation.result)

    def split(self, value: Any) -> tuple[Any, Any]:
        if type(value) is not int or value not in self.equation_of:
            return value, None
        equation = self.equation_of[value]
        if value not in self.varying:
            return (None, value) if value in self.costly and equation.dtype.kind == "f" else (value, None)
        name, operands, zero = equation.primitive.name, equation.operands, equation.dtype.type(0)
        of_data = [type(o) is not int or o not in self.varying for o in operands]
        if name in ("add", "sub", "neg"):
            varying, constant = (self._add(equation, *parts) for parts in zip(*map(self.split, operands), strict=True))
            return (value, None) if constant is None else (varying, constant)
        if name == "mul" and any(of_data):
            x, y = operands if of_data[0] else reversed(operands)
            varying, constant = self.split(y)
            if constant is not None:
                product = None if varying is None else self._apply(equation, x, varying)
                return product, self._apply(equation, x, constant)
        if name == "select_n" and len(operands) == 3 and of_data[0]:
            condition, *cases = operands
            parts = [self.split(case) for case in cases]
            if any(constant is not None for _, constant in parts):
                of_varying, of_constant = ([zero if x is None else x for x in of] for of in zip(*parts, strict=True))
                return self._apply(equation, condition, *of_varying), self._apply(equation, condition, *of_constant)
        return value, None

    def _add(self, equation: Equation, *operands: Any) -> Any:
        """An addition, a subtraction or a change of sign of parts."""
        if all(o is None for o in operands):
            return None
        if operands[-1] is None:
            return operands[0]
        if operands[0] is None and equation.primitive.name == "add":
            return operands[1]
        return self._apply(equation, *(equation.dtype.type(0) if o is None else o for o in operands))

    def _apply(self, equation: Equation, *operands: Any) -> int:
        return self.write(equation._replace(operands=operands))


class _Rewriting(_NewEquations):
    """A program rewritten: its values as sums of products, and the equations that compute them where they are needed."""

    def __init__(self, program: Program, argument: int, exact: int) -> None:
        super().__init__(program)
        self.of_parameters = set(program.inputs[argument])  # values of the parameters alone
        # As written: the values of which the exact outputs and conditions are made, and anything but floating numbers.
        self.as_written = {o for o in program.outputs[:exact] if type(o) is int}
        for equation in reversed(program.equations):
            if equation.result in self.as_written or equation.dtype.kind != "f":
                self.as_written.update(o for o in (equation.result, *equation.operands) if type(o) is int)
            elif equation.primitive.name == "select_n":
                self.as_written.update(o for o in equation.operands[:1] if type(o) is int)
        self.sums: dict[int, SumOfProducts] = {}  # of the values that are more than a number
        self.results: dict[Any, Any] = {}  # numbers by operation and operands, or by sum of products
        self.bases: dict[tuple[int, ...], int] = {}  # numbers of products of values of the row
        self.mixed: list[tuple[Product, int]] = []  # products as written of parameters and data, the last first

    def sum_of(self, operand: Any, dtype: Any) -> SumOfProducts:
        """A constant or the value of a number as a sum of products."""
        if type(operand) is not int:
            return (Product(operand, (), ()),)
        if operand in self.sums:
            return self.sums[operand]
        one = np.dtype(dtype).type(1)
        return (Product(one, ((operand, 1),), ()) if operand in self.of_parameters else Product(one, (), (operand,)),)

    def add(self, equation: Equation) -> None:
        """Take over an equation of the program: as written, or as a sum of products."""
        primitive, params, operands, result, dtype = equation
        rule = _RULES.get(primitive.name)
        of_parameters = self._is_of_parameters(operands)
        is_as_written = of_parameters or result in self.as_written
        if rule is not None and not is_as_written:
            self.sums[result] = rule(self, equation, *(self.sum_of(o, dtype) for o in operands))
            return
        values = operands if is_as_written else tuple(self.number(self.sum_of(o, dtype)) for o in operands)
        self.equations.append(Equation(primitive, params, values, result, dtype))
        self.results.setdefault(_key(primitive.name, values), result)
        if of_parameters:
            self.of_parameters.add(result)
        if dtype.kind != "f" or primitive.name not in ("mul", "div", "neg"):
            return
        # What a product as written consists of, so that it is found again as a part of others.
        sums = [self.sum_of(o, dtype) for o in operands]
        if any(len(products) != 1 for products in sums) or (primitive.name == "div" and sums[1][0].base):
            return
        (product,) = _RULES[primitive.name](self, equation, *sums)
        self.results.setdefault((product,), result)
        if of_parameters or not product.factors:
            self.sums[result] = (product,)
            if product.literal == 1 and not of_parameters:
                self.bases.setdefault(product.base, result)
        else:  # it stays whole; the last, of which others are no parts, comes first
            self.mixed.insert(0, (product, result))

    def _is_of_parameters(self, operands: Sequence[Any]) -> bool:
        return all(type(o) is not int or o in self.of_parameters for o in operands)

    def emit(self, name: str, dtype: np.dtype, *operands: Any, like: Equation | None = None) -> int:
        """The number of an operation's result, computed once; primitive and parameters are those of `like` where it is given."""
        key = _key(name, operands)
        if key not in self.results:
            primitive, params = operation(name, "f") if like is None else like[:2]
            number = self.write(Equation(primitive, params, operands, 0, dtype))
            if self._is_of_parameters(operands):
                self.of_parameters.add(number)
            self.results[key] = number
        return self.results[key]

    def base_and_coefficient(self, product: Product) -> tuple[Any, Any]:
        """The number of a product's base and that of its coefficient, or constants."""
        dtype = product.literal.dtype
        base = self.base(product.base, dtype) if product.base else dtype.type(1)
        return base, self.number((product._replace(base=()),))

    def fold(self, product: Product) -> Product:
        """The product with mixed products as written in place of what they consist of."""
        literal, factors, base = product
        for (number, some, others), result in self.mixed:
            while _contains(factors, some) and not Counter(others) - Counter(base):
                literal, factors = literal / number, _multiply(factors, some, -1)
                base = tuple(sorted((*(Counter(base) - Counter(others)).elements(), result)))
        return Product(literal, factors, base)

    def as_product(self, products: SumOfProducts) -> SumOfProducts:
        """The same as a single product: common factors and values of the row outside, s (1 - s) for s - s²."""
        if len(products) == 1:
            return products
        dtype, size = products[0].literal.dtype, abs(products[0].literal)
        powers, base = dict(products[0].factors), Counter(products[0].base)
        for product in products[1:]:
            its = dict(product.factors)
            powers = {n: min(e, its.get(n, 0), key=abs) for n, e in powers.items() if e * its.get(n, 0) > 0}
            base &= Counter(product.base)
        factors, literal = tuple(sorted(powers.items())), dtype.type(1)
        if all(product.base for product in products) and 0 < size < np.inf:
            literal = size
        left = [
            Product(
                x.literal / literal,
                _multiply(x.factors, factors, -1),
                tuple(sorted((Counter(x.base) - base).elements())),
            )
            for x in products
        ]

        def is_subtracted(product: Product) -> bool:
            return bool(product.literal < 0 and (product.factors or product.base))

        if all(map(is_subtracted, left)):
            literal, left = -literal, [x._replace(literal=-x.literal) for x in left]
        first, *others = sorted(left, key=is_subtracted)  # one that is added comes first
        total = self.number((first,))
        for product in others:
            minus = is_subtracted(product)
            number = self.number((product._replace(literal=abs(product.literal)) if minus else product,))
            total = self.emit("sub" if minus else "add", dtype, total, number)
        return (self.fold(Product(literal, factors, tuple(sorted((*base.elements(), total))))),)

    def number(self, products: SumOfProducts) -> Any:
        """The number of the value itself, or a constant: literal × factors × base."""
        products = self.as_product(products)
        ((literal, factors, base),) = products
        if not factors and not base:
            return literal
        if products not in self.results:
            dtype = literal.dtype
            number = None if literal == 1 else literal
            if factors and (literal != 1 or base):
                number = self._times(number, self.number((Product(dtype.type(1), factors, ()),)), dtype)
            elif factors:
                above, below = None, None
                for n, exponent in factors:
                    for _ in range(exponent):
                        above = self._times(above, n, dtype)
                for n, exponent in factors:
                    for _ in range(-exponent):
                        below = self._times(below, n, dtype)
                number = above
                if below is not None:
                    number = self.emit("div", dtype, dtype.type(1) if above is None else above, below)
            if base:
                number = self._times(number, self.base(base, dtype), dtype)
            self.results[products] = number
        return self.results[products]

    def _times(self, x: Any, y: Any, dtype: np.dtype) -> Any:
        """The number of x y, x being one where it is None."""
        return y if x is None else self.emit("mul", dtype, x, y)

    def base(self, values: tuple[int, ...], dtype: np.dtype) -> int:
        """The number of a product of values of the row, from the largest part of it that is computed already."""
        if len(values) == 1:
            return values[0]
        if values not in self.bases:
            whole = Counter(values)
            parts = [part for part in self.bases if len(part) < len(values) and Counter(part) <= whole]
            part = max(parts, key=len, default=values[:1])
            left = tuple(sorted((whole - Counter(part)).elements()))
            self.bases[values] = self.emit("mul", dtype, self.base(part, dtype), self.base(left, dtype))
        return self.bases[values]

    def add_alike(self, products: Sequence[Product]) -> SumOfProducts:
        """The sum with products of the same base as one: their coefficients are added."""
        by_base: dict[tuple[int, ...], list[Product]] = {}
        for product in products:
            by_base.setdefault(product.base, []).append(product)
        result: list[Product] = []
        for base, alike in by_base.items():
            while len(alike) > 1:
                x, y = alike.pop(), alike.pop()
                dtype = x.literal.dtype
                if x.factors == y.factors:
                    alike.append(x._replace(literal=x.literal + y.literal))
                else:
                    numbers = [self.number((z._replace(base=()),)) for z in (x, y)]
                    alike.append(Product(dtype.type(1), ((self.emit("add", dtype, *numbers), 1),), base))
            result += alike
        return tuple(result)


def _multiply(x: Powers, y: Powers, exponent: int) -> Powers:
    """x times y to a power."""
    powers = dict(x)
    for number, its in y:
        powers[number] = powers.get(number, 0) + exponent * its
    return tuple(sorted((number, power) for number, power in powers.items() if power))


def _contains(factors: Powers, some: Powers) -> bool:
    """Whether all of `some` can be divided out of the factors, with powers of the same sign."""
    powers = dict(factors)
    return all(powers.get(number, 0) * exponent >= exponent * exponent for number, exponent in some)


def _key(name: str, operands: Sequence[Any]) -> tuple[Any, ...]:
    """An operation by what it computes; a constant by its digits and dtype, so that it is not taken for a number of a value."""
    keys = [(0, o, "") if type(o) is int else (1, repr(o), str(o.dtype)) for o in operands]
    return name, *(sorted(keys) if name in ("add", "mul") else keys)


# --- rules by the name of the primitive: (rewriting, equation, operands) -> result, all of them sums of products ------------


def _mul(rewriting: _Rewriting, equation: Equation, x: SumOfProducts, y: SumOfProducts) -> SumOfProducts:
    """Every product of x times every one of y.

    A sum whose products differ by constants only is computed before: s - s² may be zero where c s - c s² is rounding error. So is
    one of two sums, which otherwise would multiply out.
    """
    x, y = (z if len({product.factors for product in z}) > 1 else rewriting.as_product(z) for z in (x, y))
    if len(x) > 1 and len(y) > 1:
        y = rewriting.as_product(y)
    return tuple(
        rewriting.fold(
            Product(a.literal * b.literal, _multiply(a.factors, b.factors, 1), tuple(sorted(a.base + b.base)))
        )
        for a in x
        for b in y
    )


def _neg(rewriting: _Rewriting, equation: Equation, x: SumOfProducts) -> SumOfProducts:
    return tuple(product._replace(literal=-product.literal) for product in x)


def _add(rewriting: _Rewriting, equation: Equation, x: SumOfProducts, y: SumOfProducts) -> SumOfProducts:
    """Products stay apart, so that those of one base can be added later; a sum of other values is one value of the row."""
    products = rewriting.add_alike((*x, *y))
    stay_apart = all(product.base and (product.factors or len(product.base) > 1) for product in products)
    return products if stay_apart and len(products) <= MOST_PRODUCTS else rewriting.as_product(products)


def _sub(rewriting: _Rewriting, equation: Equation, x: SumOfProducts, y: SumOfProducts) -> SumOfProducts:
    return _add(rewriting, equation, x, _neg(rewriting, equation, y))


def _div(rewriting: _Rewriting, equation: Equation, x: SumOfProducts, y: SumOfProducts) -> SumOfProducts:
    """Division by a product of parameters inverts the exponents of its factors.

    Division by a value of the row multiplies by its reciprocal if that is computed already or the numerator is of the parameters
    alone; else the quotient with the numerator's base becomes a value of the row.
    """
    dtype, one = equation.dtype, equation.dtype.type(1)
    if len(y) == 1 and not y[0].base:
        (divisor,) = y
        quotients = tuple(product._replace(literal=product.literal / divisor.literal) for product in x)
        return _mul(rewriting, equation, quotients, (Product(one, _multiply((), divisor.factors, -1), ()),))
    number, (product,) = rewriting.number(y), rewriting.as_product(x)
    if not product.base or _key("div", (one, number)) in rewriting.results:
        reciprocal = Product(one, (), (rewriting.emit("div", dtype, one, number),))
        return _mul(rewriting, equation, (product,), (reciprocal,))
    return (product._replace(base=(rewriting.emit("div", dtype, rewriting.base(product.base, dtype), number),)),)


def _select(rewriting: _Rewriting, equation: Equation, *operands: SumOfProducts) -> SumOfProducts:
    """A choice between cases is a value of the row. A coefficient is taken out only if all cases have the same."""
    condition, cases = equation.operands[0], [rewriting.as_product(case)[0] for case in operands[1:]]
    same = all(case.base and case[:2] == cases[0][:2] for case in cases)
    values = [rewriting.base(case.base, equation.dtype) if same else rewriting.number((case,)) for case in cases]
    chosen = rewriting.emit("select_n", equation.dtype, condition, *values, like=equation)
    return (Product(*(cases[0][:2] if same else (equation.dtype.type(1), ())), (chosen,)),)


_RULES: dict[str, Any] = {"mul": _mul, "neg": _neg, "add": _add, "sub": _sub, "div": _div, "select_n": _select}
