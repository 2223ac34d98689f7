"""One report for every result: facts, tables and notes, as text, HTML and LaTeX, and its first table as a data frame."""

import abc
import html
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fisher_jax.errors import require

LINE = 100  # characters in a line of notes


@dataclass(frozen=True)
class ReportTable:
    """Rows whose first cell is a name and whose others are numbers or texts, under the headings `columns`.

    Attributes
    ----------
    columns : tuple of str
        Headings; the first is that of the names.
    rows : sequence of tuple
        Numbers are printed by `number`; what needs other digits comes as text.
    caption : str
        A line above the table.
    foot : sequence of tuple
        Rows set apart below the others.
    keys : tuple of str
        Names of the columns after the first in a data frame, where the headings are not these.
    formats : dict of str to function
        For columns whose numbers are printed otherwise, by heading: the text of a number.
    """

    columns: tuple[str, ...]
    rows: Sequence[tuple[Any, ...]]
    caption: str = ""
    foot: Sequence[tuple[Any, ...]] = ()
    keys: tuple[str, ...] = ()
    formats: Mapping[str, Callable[[Any], str]] = field(default_factory=dict)

    def to_frame(self) -> Any:
        """The rows, not the foot, as a pandas DataFrame whose index is their names (needs the extra `frames`)."""
        pd = require("pandas", "frames")
        keys = self.keys or self.columns[1:]
        columns = {key: [row[k + 1] for row in self.rows] for k, key in enumerate(keys)}
        return pd.DataFrame(columns, index=[row[0] for row in self.rows])

    def to_latex(self) -> str:
        """A LaTeX tabular with the rules of booktabs."""

        def line(cells: Sequence[str]) -> str:
            return " & ".join(map(_latex, cells)) + r" \\"

        alignment = "l" + "r" * (len(self.columns) - 1)
        lines = [rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", line(self.columns), r"\midrule"]
        lines += [line(row) for row in self._texts(self.rows)]
        if self.foot:
            lines += [r"\midrule", *(line(row) for row in self._texts(self.foot))]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])

    def lines(self) -> list[str]:
        """The table as lines of text, names to the left and cells to the right."""
        rows = [self.columns, *self._texts(self.rows), *self._texts(self.foot)]
        widths = [max(len(row[k]) for row in rows) for k in range(len(self.columns))]
        lines = [self.caption] if self.caption else []
        for name, *cells in rows:
            padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
            lines.append("  ".join([name.ljust(widths[0]), *padded]).rstrip())
        return lines

    def _repr_html_(self) -> str:
        caption = f"<caption>{html.escape(self.caption)}</caption>" if self.caption else ""
        head = "".join(f"<th>{html.escape(title)}</th>" for title in self.columns)
        body = "".join(
            f"<tr><th>{html.escape(name)}</th>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
            for name, *cells in [*self._texts(self.rows), *self._texts(self.foot)]
        )
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _texts(self, rows: Sequence[tuple[Any, ...]]) -> list[list[str]]:
        formats = [self.formats.get(column, number) for column in self.columns]
        return [
            [cell if isinstance(cell, str) else text(cell) for cell, text in zip(row, formats, strict=True)]
            for row in rows
        ]


@dataclass(frozen=True, repr=False)
class Report:
    """What is printed of a result. `str` gives text; a notebook shows tables.

    Attributes
    ----------
    title : str
    facts : sequence of (label, text)
        Above the tables.
    tables : sequence of ReportTable
        The first is the one that `to_frame` and `to_latex` give.
    notes : sequence of str
        Sentences below the tables.
    """

    title: str
    facts: Sequence[tuple[str, str]] = ()
    tables: Sequence[ReportTable] = ()
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        width = max((len(label) for label, _ in self.facts), default=0)
        lines = [self.title, *(f"  {label:<{width}}  {text}" for label, text in self.facts)]
        for table in self.tables:
            lines += ["", *(f"  {line}" for line in table.lines())]
        for note in self.notes:
            lines += ["", *textwrap.wrap(_sentence(note), LINE, initial_indent="  ", subsequent_indent="  ")]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        facts = "".join(f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>" for a, b in self.facts)
        parts = [f"<p>{html.escape(self.title)}</p>", f"<table><tbody>{facts}</tbody></table>" if facts else ""]
        parts += [table._repr_html_() for table in self.tables]
        parts += [f"<p>{html.escape(_sentence(note))}</p>" for note in self.notes]
        return "".join(parts)

    def to_frame(self) -> Any:
        """The first table as a pandas DataFrame (needs the extra `frames`)."""
        return self.tables[0].to_frame()

    def to_latex(self) -> str:
        """The first table as a LaTeX tabular with the rules of booktabs."""
        return self.tables[0].to_latex()


class Reported(abc.ABC):
    """A result that prints as its report, in a terminal and in a notebook."""

    @abc.abstractmethod
    def summary(self) -> Report:
        """What is printed of it."""

    def __str__(self) -> str:
        return str(self.summary())

    def __repr__(self) -> str:
        return str(self.summary())

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()


def matrix_table(matrix: Any, errors: Any, names: Sequence[str], most: int = 12) -> ReportTable:
    """The first rows and columns of a named matrix, as `value ± error` where any entry has an error."""
    matrix, errors = np.asarray(matrix), None if errors is None or not np.any(errors) else np.asarray(errors)
    shown = tuple(names[:most])
    rows = [
        (name, *(with_error(matrix[i, j], None if errors is None else errors[i, j]) for j in range(len(shown))))
        for i, name in enumerate(shown)
    ]
    caption = f"the first {most} of {len(names)} parameters are shown" if len(names) > most else ""
    return ReportTable(("", *shown), rows, caption)


def number(x: Any) -> str:
    """Six significant digits; a dash for what is not a number."""
    return "-" if math.isnan(float(x)) else f"{float(x):.6g}"


def with_error(value: Any, error: Any = None) -> str:
    """`0.4990 ± 0.0012`: the error to two digits and the value to the same decimals; without an error the number alone."""
    error = 0.0 if error is None else float(error)
    if math.isnan(float(value)) or not error > 0:
        return number(value)
    decimals = 1 - math.floor(math.log10(float(f"{error:.1e}"))) if math.isfinite(error) else -1
    if not 0 <= decimals <= 7 or abs(float(value)) >= 1e6:
        return f"{number(value)} ± {error:.2g}"
    return f"{float(value):.{decimals}f} ± {error:.{decimals}f}"


def probability(p: Any) -> str:
    """A p-value in four digits; a dash for what is not a number."""
    return "-" if math.isnan(float(p)) else f"{float(p):.4g}"


def z_statistic(z: Any) -> str:
    """A z-statistic in three decimals; a dash for what is not a number."""
    return "-" if math.isnan(float(z)) else f"{float(z):.3f}"


TEST_FORMATS = {
    "z": z_statistic,
    "t": z_statistic,
    "p-value": probability,
}  # of the columns that test whether a number is zero


def percent(level: float) -> str:
    """A level as a percentage."""
    return f"{100 * level:g} %"


def in_fits(affected: Any) -> str:
    """` in 3 of 10 fits`, from an array of truths; empty for one fit, whose truth has no axis."""
    return f" in {int(np.sum(affected))} of {np.size(affected)} fits" if np.ndim(affected) else ""


def listed(names: Sequence[str], most: int = 6) -> str:
    """Names separated by commas, the first few where there are many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _sentence(note: str) -> str:
    return note[:1].upper() + note[1:]


def _latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)
