"""A named matrix as text, as an HTML table and as a pandas DataFrame."""

import html
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from fisher_jax.errors import require
from fisher_jax.numerics.array_namespace import AnyArray

MOST = 12  # rows and columns shown


def as_frame(matrix: Float[AnyArray, "q q"], names: tuple[str, ...]) -> Any:
    """A pandas DataFrame with the names on both axes."""
    pd = require("pandas", "frames")
    return pd.DataFrame(np.asarray(matrix), index=list(names), columns=list(names))


def as_text(title: str, matrix: Any, errors: Any, names: tuple[str, ...]) -> str:
    """Title and entries `value ± error` in columns."""
    if _shapeless(matrix):
        return f"{title}: {names}, {matrix}"
    cells = [["", *names[:MOST]], *_rows(matrix, errors, names)]
    widths = [max(len(row[j]) for row in cells) for j in range(len(cells[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join([title, *("  " + line for line in lines), *_cut(names)])


def as_html(title: str, matrix: Any, errors: Any, names: tuple[str, ...]) -> str:
    """The same as a table for a notebook."""
    if _shapeless(matrix):
        return html.escape(f"{title}: {names}, {matrix}")
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("", *names[:MOST]))
    body = "".join(
        f"<tr><th>{html.escape(row[0])}</th>" + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>"
        for row in _rows(matrix, errors, names)
    )
    note = "".join(f"<br>{line}" for line in _cut(names))
    return f"<table><caption>{html.escape(title)}{note}</caption><tr>{head}</tr>{body}</table>"


def _shapeless(matrix: Any) -> bool:
    """Whether there is no one matrix of numbers to show."""
    return isinstance(matrix, jax.core.Tracer) or np.ndim(matrix) != 2


def _rows(matrix: Any, errors: Any, names: tuple[str, ...]) -> list[list[str]]:
    matrix, errors = np.asarray(matrix), np.asarray(errors)
    exact = not np.any(errors)
    return [
        [name, *(_entry(matrix[i, j], None if exact else errors[i, j]) for j in range(min(len(names), MOST)))]
        for i, name in enumerate(names[:MOST])
    ]


def _entry(value: float, error: float | None) -> str:
    return f"{value:.6g}" if error is None else f"{value:.6g} ± {error:.2g}"


def _cut(names: tuple[str, ...]) -> list[str]:
    return [f"the first {MOST} of {len(names)} parameters are shown"] if len(names) > MOST else []
