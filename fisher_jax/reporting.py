"""What the reports on a fit have in common: facts, a table and notes, as text and for a notebook."""

import abc
import html
import math
import textwrap
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Table:
    """A title, facts as pairs of label and value, a table of cells whose first column is names, and notes below."""

    title: str
    facts: list[tuple[str, str]]
    titles: tuple[str, ...] = ()
    rows: list[tuple[str, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        width = max((len(label) for label, _ in self.facts), default=0)
        lines = [self.title, *(f"  {label:<{width}}  {value}" for label, value in self.facts)]
        if self.rows:
            cells = [self.titles, *self.rows]
            widths = [max(len(row[j]) for row in cells) for j in range(len(self.titles))]
            lines += ["", *("  " + _line(row, widths) for row in cells)]
        for note in self.notes:
            lines += ["", *_wrapped(note)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        facts = "".join(f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>" for a, b in self.facts)
        found = f"<table><caption>{html.escape(self.title)}</caption><tbody>{facts}</tbody></table>"
        if self.rows:
            head = "".join(f"<th>{html.escape(title)}</th>" for title in self.titles)
            body = "".join(
                f"<tr><th>{html.escape(row[0])}</th>" + "".join(f"<td>{html.escape(x)}</td>" for x in row[1:]) + "</tr>"
                for row in self.rows
            )
            found += f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return found + "".join(f"<p>{html.escape(note[:1].upper() + note[1:])}</p>" for note in self.notes)


class Printed(abc.ABC):
    """A record that reads as its report, in a terminal and in a notebook."""

    @abc.abstractmethod
    def _report(self) -> Table | str:
        """A table, or a line where there is nothing to tabulate."""

    def __str__(self) -> str:
        return str(self._report())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        report = self._report()
        return html.escape(report) if isinstance(report, str) else report._repr_html_()


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
    return "  ".join(cells).rstrip()


def _wrapped(note: str) -> list[str]:
    return textwrap.wrap(note[:1].upper() + note[1:], 100, initial_indent="  ", subsequent_indent="  ")


def number(x: Any) -> str:
    """A number in six digits; a dash where there is none."""
    return "-" if math.isnan(float(x)) else f"{float(x):.6g}"


def _latex(text: str) -> str:
    """A name as LaTeX prints it."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)


def tabular(titles: tuple[str, ...], rows: list[tuple[str, ...]], foot: list[tuple[str, ...]] | None = None) -> str:
    """A LaTeX tabular of texts."""

    def line(cells: tuple[str, ...]) -> str:
        return " & ".join(_latex(cell) for cell in cells) + r" \\"

    body = [line(row) for row in rows] + ([r"\midrule", *map(line, foot)] if foot else [])
    head = [rf"\begin{{tabular}}{{l{'r' * (len(titles) - 1)}}}", r"\toprule", line(titles), r"\midrule"]
    return "\n".join([*head, *body, r"\bottomrule", r"\end{tabular}"])
