"""Effects in formulas: terms such as `(1 + x | g)`, which are split off before formulaic reads the rest, since it knows no bars.

The left of a bar is a formula of its own; its columns each have an effect in every group. The right names the columns of the table
whose values make the groups: `g`, `g:h` for the combinations of two, and `g/h` for `g` and `g:h` in two terms.
"""

import re
from typing import Any, NamedTuple

HIDDEN = "."  # in place of what is not looked at: text, calls, brackets


class EffectTerm(NamedTuple):
    """One term of effects: `text` as written, the formula of its columns, the factor, and whether the effects are correlated.

    `factor` are the columns of the table whose values together make the groups.
    """

    text: str
    columns: str
    factor: tuple[str, ...]
    correlated: bool

    @property
    def factor_name(self) -> str:
        """The columns of the factor joined by colons, as in a formula."""
        return ":".join(self.factor)


def split_effects(formula: Any, what: str) -> tuple[Any, tuple[EffectTerm, ...]]:
    """A formula without its terms of effects, and these; raise where a bar is not in a term that can be read.

    What is no text is left as it is, for the error of `parse`.
    """
    if not isinstance(formula, str) or "|" not in formula:
        return formula, ()
    text, mask = formula, _mask(formula, what)
    if "|" not in mask:  # one in a call, as in I(a | b), is Python's
        return text, ()
    if "|" in mask[: mask.find("~") + 1]:
        raise ValueError(f"{what} {text!r} has a bar in its response; effects are terms of the right-hand side.")
    places = _parentheses(mask)
    outside = list(mask)
    for start, stop in places:
        outside[start:stop] = HIDDEN * (stop - start)
    if "|" in outside:
        raise ValueError(
            f"{what} {text!r} has a bar outside parentheses. Effects that the rows of a group share are written (1 | g)."
        )
    terms = []
    for start, stop in reversed(places):
        if "|" not in mask[start:stop]:
            continue
        term, term_mask = text[start:stop], mask[start:stop]
        (before, after), (mask_before, mask_after) = ((whole[:start], whole[stop:]) for whole in (text, mask))
        operators = mask_before.rstrip()[-1:], mask_after.lstrip()[:1]
        if operators[0] not in ("", "~", "+") or operators[1] not in ("", "+", "-"):
            raise ValueError(
                f"{what} {formula!r}: the effects {term} are a term by themselves, joined to others by +. For the product of x and "
                "an effect write (0 + x | g)."
            )
        terms.append(_read(term, term_mask))
        # What is left must mean the same to formulaic: one + beside the term goes with it, or the implied constant stays.
        if operators[0] == "+":
            before, mask_before = (part.rstrip()[:-1].rstrip() for part in (before, mask_before))
            between = " " if operators[1] else ""
        elif operators[1] == "+":
            after, mask_after = (part.lstrip()[1:].lstrip() for part in (after, mask_after))
            between = ""
        else:
            between = "1"
        text, mask = before + between + after.lstrip(), mask_before + between + mask_after.lstrip()
    return text, tuple(each for read in reversed(terms) for each in read)


def _mask(text: str, what: str) -> str:
    """The text with dots for what is in quotes, backticks, brackets and calls, so that operators that are left are formulas'."""
    masked, quote = list(text), ""
    open_brackets: list[tuple[str, bool]] = []
    for k, character in enumerate(text):
        hidden = bool(quote) or any(is_hidden for _, is_hidden in open_brackets)
        if quote:
            quote = "" if character == quote and text[k - 1] != "\\" else quote
        elif character in "'\"`":
            quote, hidden = character, True
        elif character in "([{":
            is_call = k > 0 and (text[k - 1].isalnum() or text[k - 1] in "_`)]")
            hidden = hidden or character != "(" or is_call
            open_brackets.append((character, hidden))
        elif character in ")]}":
            if not open_brackets or open_brackets[-1][0] + character not in ("()", "[]", "{}"):
                raise ValueError(f"{what} {text!r} has a {character!r} that closes nothing.")
            hidden = open_brackets.pop()[1]
        if hidden:
            masked[k] = HIDDEN
    if quote or open_brackets:
        raise ValueError(f"{what} {text!r} has a {(quote or open_brackets[-1][0])!r} that is not closed.")
    return "".join(masked)


def _parentheses(mask: str) -> list[tuple[int, int]]:
    """The outermost pairs of parentheses, each from its first to after its last character."""
    places, depth, start = [], 0, 0
    for k, character in enumerate(mask):
        if character == "(":
            start, depth = (k if depth == 0 else start), depth + 1
        elif character == ")":
            depth -= 1
            if depth == 0:
                places.append((start, k + 1))
    return places


def _read(text: str, mask: str) -> list[EffectTerm]:
    """The terms that one pair of parentheses stands for: one for each factor."""
    inner = list(mask[1:-1])
    for start, stop in _parentheses(mask[1:-1]):
        if "|" in inner[start:stop]:
            raise ValueError(
                f"{text} has a bar in parentheses within parentheses. Write each term of effects by itself, as in "
                "(1 | g) + (1 | h)."
            )
        inner[start:stop] = HIDDEN * (stop - start)
    bars = list(re.finditer(r"\|+", "".join(inner)))
    if len(bars) > 1 or len(bars[0].group()) > 2:
        raise ValueError(f"{text} has several bars; expected one, (1 + x | g), or two together, (1 + x || g).")
    columns, grouping = text[1 : 1 + bars[0].start()].strip(), text[1 + bars[0].end() : -1].strip()
    if not columns or not grouping:
        side = "left" if not columns else "right"
        raise ValueError(f"{text} has nothing on the {side} of its bar; expected (columns | groups), as in (1 | g).")
    correlated = bars[0].group() == "|"
    return [EffectTerm(text, columns, factor, correlated) for factor in _factors(grouping, text)]


def _factors(grouping: str, text: str) -> list[tuple[str, ...]]:
    """The factors of the right of a bar: `a/b` has a and a:b."""
    parts = re.split(r"([:/])", re.sub(r"\s*([:/])\s*", r"\1", grouping)) if "`" not in grouping else None
    if parts is None:  # names in backticks may hold anything
        parts = re.findall(r"`[^`]+`|[:/]|[^`:/\s]+", grouping)
    names, operators = parts[::2], parts[1::2]
    is_name = all(re.fullmatch(r"`[^`]+`|[^\W\d][\w.]*", name) for name in names)
    if not is_name or len(names) != len(operators) + 1 or not set(operators) <= {":", "/"}:
        raise ValueError(
            f"{text} has the groups {grouping!r}; expected the name of a column, or names joined by : or /. Compute the "
            "column first."
        )
    factors: list[tuple[str, ...]] = []
    columns: tuple[str, ...] = (names[0].strip("`"),)
    for operator, name in zip(operators, names[1:], strict=True):
        if operator == "/":
            factors.append(columns)
        columns = (*columns, name.strip("`"))
    return [*factors, columns]
