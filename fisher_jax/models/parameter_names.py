"""Entries of the parameters by their names, and linear combinations and restrictions of them written as text.

A name stands for an entry (`scale`, `beta[2]`), or for all entries of an array or of a container (`beta`, `layers[1]`). Names may
hold any character, as those that formulas make: `C(region)[T.b]`, `x:z`. So a text is not cut into words first: where a name may
stand, the longest of all names that fits is taken. Backticks about a name mark where it ends. The grammar, which is that of
linear hypotheses in R's `car` and in patsy:

    hypothesis := sum ("=" sum)+          a = b = 0 makes two restrictions
    sum        := ["-"] product (("+" | "-") product)*
    product    := factor (["*"] factor | "/" factor)*
    factor     := number | name | "(" sum ")"

Texts are read by this grammar and never evaluated as code.
"""

import difflib
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.errors import names_in, shown
from fisher_jax.models.parameters import Layout
from fisher_jax.reporting import listed

_NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_WORD = re.compile(r"[^\s,=+*/<>]+")
HELD_FIXED = "was held fixed in this fit, so it was not estimated"
AS_FUNCTION = "Give it as a function of params, as lambda params: …"


@dataclass(frozen=True)
class NameIndex:
    """The names of numbers in a row, and what else stands for some of them."""

    entries: tuple[str, ...]
    aliases: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @functools.cached_property
    def positions(self) -> dict[str, tuple[int, ...]]:
        """Where the entries are that each name stands for."""
        of_containers: dict[str, list[int]] = {}
        for k, entry in enumerate(self.entries):
            for name in _containers(entry):
                of_containers.setdefault(name, []).append(k)
        by_entry = {name: (k,) for k, name in enumerate(self.entries)}
        return {name: tuple(at) for name, at in of_containers.items()} | dict(self.aliases) | by_entry

    @functools.cached_property
    def longest_first(self) -> tuple[str, ...]:
        return tuple(sorted(self.positions, key=len, reverse=True))

    def find(self, name: str, argument: str) -> tuple[int, ...]:
        """The entries that a name stands for; raise where it stands for none."""
        if name not in self.positions:
            raise ValueError(
                f"{argument}: no entry is named {name!r}; there are {listed(self.entries)}.{self.hint(name)}"
            )
        return self.positions[name]

    def hint(self, name: str) -> str:
        """The name that was meant, as far as that can be guessed, as a sentence."""
        names = [*self.entries, *(alias for alias, _ in self.aliases)]
        by_case = {other.lower(): other for other in names}
        close = difflib.get_close_matches(name.lower(), by_case, 1)
        return f" Did you mean `{by_case[close[0]]}`?" if close else ""

    def choose(self, names: Any, argument: str = "names") -> list[int]:
        """The entries of one name or several, all of them where none is given; raise where an entry is named twice."""
        if names is None:
            return list(range(len(self.entries)))
        positions = [k for name in names_in(names) for k in self.find(name, argument)]
        if not positions or len(set(positions)) < len(positions):
            raise ValueError(
                f"{argument}={shown(names)}; expected one or more different names out of {listed(self.entries)}."
            )
        return positions


def _containers(entry: str) -> list[str]:
    """What an entry is in, from its name: `layers[1].weight[0,2]` is in `layers`, `layers[1]` and `layers[1].weight`."""
    containers, depth = [], 0
    for k, character in enumerate(entry):
        if depth == 0 and k and (character == "." or (character == "[" and entry.find("]", k) > 0)):
            containers.append(entry[:k])
        depth += {"[": 1, "(": 1, "]": -1, ")": -1}.get(character, 0)
    return containers


def all_entries(layout: Layout) -> list[tuple[int, int]]:
    """Every entry of the array leaves, fixed or not, in the user's order: the leaf's index, and the entry's in it."""
    return [(i, k) for i in layout.order for k in range(layout.leaves[i].size)]


@functools.lru_cache(maxsize=256)
def all_names(layout: Layout) -> NameIndex:
    """The names of `all_entries`. An entry that the user gave a name to has that of its index too."""
    names: list[str] = []
    aliases: dict[str, tuple[int, ...]] = {}
    for leaf in (layout.leaves[i] for i in layout.order):
        at = range(len(names), len(names) + leaf.size)
        if leaf.shape:
            indices = np.ndindex(leaf.shape)
            aliases |= {f"{leaf.name}[{','.join(map(str, i))}]": (k,) for i, k in zip(indices, at, strict=True)}
        aliases[leaf.name] = tuple(at)
        names += leaf.entry_names
    return NameIndex(tuple(names), tuple(aliases.items()))


@functools.lru_cache(maxsize=256)
def estimated_entries(layout: Layout) -> tuple[int, ...]:
    """For each of `all_entries` its place in θ; −1 where it is fixed."""
    places: list[int] = []
    count = 0
    for i, _ in all_entries(layout):
        places.append(-1 if layout.leaves[i].is_fixed else count)
        count += not layout.leaves[i].is_fixed
    return tuple(places)


def choose_estimated(layout: Layout, names: Any, argument: str) -> list[int]:
    """The places in θ of the entries of one name or several, of all without a name; raise for what is not estimated."""
    if names is None:
        return list(range(len(layout.names)))
    index, places = all_names(layout), estimated_entries(layout)
    chosen = index.choose(names, argument)
    if fixed := [index.entries[k] for k in chosen if places[k] < 0]:
        raise ValueError(f"{argument}: `{fixed[0]}` is fixed, not estimated; there are {listed(layout.names)}.")
    return [places[k] for k in chosen]


# Texts.


def is_text(value: Any) -> bool:
    """Whether this is a text, or a sequence of texts."""
    return isinstance(value, str) or (isinstance(value, list | tuple) and bool(value) and bool(names_in(value)))


@dataclass(frozen=True)
class LinearCombinations:
    """A function of params: R θ − r, from a text or several. Two of the same texts and parameters are equal.

    `rows` are those of R over the entries of θ, `constants` are r; `names` has a text for each row. `shape` is () for a single
    number.
    """

    layout: Layout
    rows: tuple[tuple[float, ...], ...]
    constants: tuple[float, ...]
    names: tuple[str, ...]
    shape: tuple[int, ...]

    def __call__(self, params: PyTree) -> Float[Array, "*k"]:
        theta = self.layout.flatten(params)
        matrix, constants = (jnp.asarray(part, theta.dtype) for part in (self.rows, self.constants))
        return (jnp.matmul(matrix, theta, precision="highest") - constants).reshape(self.shape)

    @property
    def entry_places(self) -> tuple[int, ...] | None:
        """The places in θ of the entries, where each row is one of them as it is; else None."""
        matrix = np.array(self.rows)
        plain = np.all(np.sum(matrix == 1, axis=1) == 1) and np.count_nonzero(matrix) == len(matrix)
        return tuple(np.argmax(matrix, axis=1).tolist()) if plain and not any(self.constants) else None

    def entry_values(self) -> dict[int, float] | None:
        """The values that R θ = r gives to entries of θ, by place; None where a row combines several."""
        matrix = np.array(self.rows)
        if np.any(np.count_nonzero(matrix, axis=1) != 1):
            return None
        places = np.argmax(matrix != 0, axis=1)
        return {int(k): float(c / row[k]) for k, row, c in zip(places, matrix, self.constants, strict=True)}


def read_combinations(layout: Layout, text: str | Sequence[str], argument: str) -> LinearCombinations:
    """The linear combinations of estimated parameters that texts name: `scale`, `beta`, `a - 2 b`."""
    forms = []
    for part in [text] if isinstance(text, str) else text:
        reader = _Reader(layout, part, argument)
        form = reader.read_sum()
        if reader.position < len(part):
            reader.fail(
                f"{part[reader.position]!r} cannot stand there", " Give the names of parameters, or a sum of them."
            )
        if not form.coefficients.any():
            reader.fail("there is no parameter in it")
        forms += [(form, reader.labels(form, 0, len(part)))]
    shape = forms[0][0].shape if isinstance(text, str) else (sum(len(labels) for _, labels in forms),)
    return _stack(layout, [form for form, _ in forms], [name for _, labels in forms for name in labels], shape)


def read_restrictions(
    layout: Layout, text: str | Sequence[str], argument: str, not_free: str = HELD_FIXED
) -> LinearCombinations:
    """The linear restrictions R θ = r that texts state: `scale = 1`, `a + 2 b = 0`, `a = b = 0, c = 1`.

    Raises where they follow from each other or contradict each other. `not_free` explains why a parameter that is fixed in this
    layout cannot be restricted.
    """
    forms: list[_Form] = []
    statements: list[str] = []
    for part in [text] if isinstance(text, str) else text:
        reader = _Reader(layout, part, argument, not_free)
        for form, labels in reader.read_hypotheses():
            forms.append(form)
            statements += labels
    result = _stack(layout, forms, statements, (len(statements),))
    # Rows of one size, so that the rank does not depend on how a restriction is multiplied out.
    sizes = np.max(np.abs(result.rows), axis=1, keepdims=True)
    matrix, constants = np.array(result.rows) / sizes, np.array(result.constants)[:, None] / sizes
    constants = constants / max(1.0, float(np.max(np.abs(constants))))
    if np.linalg.matrix_rank(matrix) < len(matrix):
        consistent = np.linalg.matrix_rank(np.hstack([matrix, constants])) < len(matrix)
        # Which one is superfluous: the first that does not raise the rank.
        k = next(k for k in range(len(matrix)) if np.linalg.matrix_rank(matrix[: k + 1]) <= k)
        others = listed([f"`{statement}`" for statement in statements[:k]])
        raise ValueError(
            f"{argument}: `{statements[k]}` follows from {others}. Leave it out."
            if consistent
            else f"{argument}: the restrictions {listed([f'`{s}`' for s in statements])} contradict each other."
        )
    return result


def _stack(layout: Layout, forms: list["_Form"], names: list[str], shape: tuple[int, ...]) -> LinearCombinations:
    size = len(layout.names)
    rows = np.concatenate([form.coefficients.reshape(-1, size) for form in forms])
    constants = np.concatenate([0.0 - np.ravel(form.constant) for form in forms])
    return LinearCombinations(layout, tuple(map(tuple, rows.tolist())), tuple(constants.tolist()), tuple(names), shape)


class _Form(NamedTuple):
    """c + Rθ of one number, or of each entry of an array: coefficients (*shape, q) and constant (*shape)."""

    coefficients: np.ndarray
    constant: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.constant.shape

    def plus(self, other: "_Form", sign: float) -> "_Form":
        shape = np.broadcast_shapes(self.shape, other.shape)
        constant = np.broadcast_to(self.constant, shape) + sign * other.constant
        coefficients = np.broadcast_to(self.coefficients, (*shape, self.coefficients.shape[-1]))
        return _Form(coefficients + sign * other.coefficients, np.asarray(constant))

    def times(self, factor: float | np.ndarray) -> "_Form":
        factor = np.asarray(factor)
        return _Form(self.coefficients * factor[..., None], np.asarray(self.constant * factor))


class _Reader:
    """Reads one text from left to right by the grammar above."""

    def __init__(self, layout: Layout, text: Any, argument: str, not_free: str = HELD_FIXED) -> None:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{argument}={text!r} is empty. Write names of parameters, as in 'scale' or 'a - b'.")
        self.layout, self.text, self.argument, self.not_free, self.position = layout, text, argument, not_free, 0
        self.index, self.places = all_names(layout), estimated_entries(layout)
        self.arrays: list[tuple[int, int, tuple[int, ...]]] = []  # where names of several entries stand in the text

    def fail(self, reason: str, hint: str = "") -> NoReturn:
        raise ValueError(f"{self.argument}: in {self.text!r} {reason}.{hint}")

    def skip_blanks(self) -> None:
        while self.position < len(self.text) and self.text[self.position].isspace():
            self.position += 1

    def accept(self, characters: str) -> str:
        """The next character if it is one of these, which is then read; else nothing."""
        self.skip_blanks()
        character = self.text[self.position : self.position + 1]
        if not character or character not in characters:
            return ""
        self.position += 1
        return character

    def read_hypotheses(self) -> list[tuple[_Form, tuple[str, ...]]]:
        """Each restriction as what is to be zero, with its statements."""
        restrictions = []
        while True:
            self.skip_blanks()
            start = self.position
            left, sides = self.read_sum(), 1
            while self.accept("="):
                self.accept("=")  # as in Python's ==
                second = self.position
                right = self.read_sum()
                form = self.combine(left, right, -1.0)
                if not form.coefficients.any(axis=-1).all():
                    statement = self.text[start : self.position].strip()
                    self.fail(f"`{statement}` restricts nothing: no parameter is left in it")
                restrictions.append((form, self.labels(form, start, self.position)))
                left, start, sides = right, second, sides + 1
            if sides == 1:
                if self.accept("<>"):
                    self.fail("there is an inequality; the tests are of equalities", " Write `=`.")
                self.check_stop()
                statement = self.text[start : self.position].strip()
                self.fail("an equals sign is missing", f" Write '{statement} = 0', or the number that is meant.")
            if not self.accept(","):
                break
        self.check_stop()
        return restrictions

    def check_stop(self) -> None:
        """Raise where the text goes on with what cannot be read."""
        self.skip_blanks()
        rest = self.text[self.position :]
        if not rest or rest[0] == ",":
            return
        if rest[0] in "^":
            self.fail("there is a power, which is not linear in the parameters", f" {AS_FUNCTION}")
        self.fail(f"{rest[0]!r} cannot stand there")

    def labels(self, form: _Form, start: int, stop: int) -> tuple[str, ...]:
        """The text from one place to another for each number of a form, arrays replaced by their entries."""
        texts = []
        for k in range(int(np.prod(form.shape))):
            text = self.text[start:stop]
            for first, last, positions in reversed(self.arrays):
                if start <= first and last <= stop:
                    text = text[: first - start] + self.index.entries[positions[k]] + text[last - start :]
            texts.append(" ".join(text.split()))
        return tuple(texts)

    def combine(self, left: _Form, right: _Form, sign: float) -> _Form:
        if left.shape and right.shape and left.shape != right.shape:
            self.fail(f"arrays of {left.shape[0]} and {right.shape[0]} entries do not go together")
        return left.plus(right, sign)

    def read_sum(self) -> _Form:
        total = self.read_product(-1.0 if self.accept("+-") == "-" else 1.0)
        while operator := self.accept("+-"):
            total = self.combine(total, self.read_product(1.0), -1.0 if operator == "-" else 1.0)
        return total

    def read_product(self, sign: float) -> _Form:
        product = self.read_factor().times(sign)
        while True:
            start = self.position
            if operator := self.accept("*/"):
                if self.accept("*"):
                    self.fail("there is a power, which is not linear in the parameters", f" {AS_FUNCTION}")
                factor = self.read_factor()
            elif self.starts_factor():
                operator, factor = "*", self.read_factor()
            else:
                self.position = start
                return product
            if operator == "/":
                if factor.coefficients.any():
                    self.fail("a parameter divides, which is not linear in the parameters", f" {AS_FUNCTION}")
                if np.any(factor.constant == 0):
                    self.fail("something is divided by zero")
                product = product.times(1.0 / factor.constant)
            elif not factor.coefficients.any():
                product = product.times(factor.constant)
            elif not product.coefficients.any():
                product = factor.times(product.constant)
            else:
                self.fail("parameters are multiplied, which is not linear in them", f" {AS_FUNCTION}")

    def starts_factor(self) -> bool:
        self.skip_blanks()
        return self.position < len(self.text) and self.text[self.position] not in "+-*/=,)<>^;!&|~"

    def read_factor(self) -> _Form:
        self.skip_blanks()
        rest = self.text[self.position :]
        if not rest or rest[0] in "=,)<>":
            self.fail("a number or a name is missing" + (f" before {rest[0]!r}" if rest else " at the end"))
        if rest[0] == "`":
            name, closed, _ = rest[1:].partition("`")
            if not closed:
                self.fail("a backtick has no partner")
            if name not in self.index.positions:
                self.unknown(name)
            return self.take_name(name, len(name) + 2)
        for name in self.index.longest_first:
            if rest.startswith(name) and _ends_word(name, rest[len(name) :]) and not _NUMBER.fullmatch(name):
                return self.take_name(name, len(name))
        if number := _NUMBER.match(rest):
            self.position += number.end()
            return self.form({}, float(number.group()))
        if rest[0] in "+-":  # a sign after an operator: 2 * -a
            self.position += 1
            return self.read_factor().times(-1.0 if rest[0] == "-" else 1.0)
        if self.accept("("):
            inner = self.read_sum()
            if not self.accept(")"):
                self.fail("a bracket is not closed")
            return inner
        match = _WORD.match(rest)
        word = match.group() if match else rest[0]
        while word.endswith(")") and word.count(")") > word.count("("):
            word = word[:-1]
        return self.unknown(word)

    def unknown(self, name: str) -> NoReturn:
        if re.match(r"\w+\(", name):
            hint = f"{self.index.hint(name)} A function of parameters is not linear in them. {AS_FUNCTION}"
        else:
            hint = self.index.hint(name) or " Write the name of an odd parameter between backticks."
        self.fail(f"no parameter is named {name!r}; there are {listed(self.index.entries)}", hint)

    def take_name(self, name: str, length: int) -> _Form:
        positions = self.index.positions[name]
        if fixed := [self.index.entries[k] for k in positions if self.places[k] < 0]:
            self.fail(f"`{fixed[0]}` {self.not_free}")
        if len(positions) > 1:
            self.arrays.append((self.position, self.position + length, positions))
        self.position += length
        places = [self.places[k] for k in positions]
        return self.form({(): places[0]} if len(places) == 1 else {(j,): k for j, k in enumerate(places)}, 0.0)

    def form(self, places: dict[tuple[int, ...], int], constant: float) -> _Form:
        shape = () if () in places or not places else (len(places),)
        coefficients = np.zeros((*shape, len(self.layout.names)))
        for index, place in places.items():
            coefficients[(*index, place)] = 1.0
        return _Form(coefficients, np.full(shape, constant))


def _ends_word(name: str, rest: str) -> bool:
    """Whether a name ends here, and is not the beginning of a longer word, of an index or of a call."""
    if not rest:
        return True
    goes_on = all(character.isalnum() or character == "_" for character in (name[-1], rest[0]))
    return rest[0] not in "[(." and not goes_on
