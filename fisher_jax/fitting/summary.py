"""The reports a person reads, made from plain numbers."""

import html
import math
import textwrap
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fisher_jax.fitting.status import Status
from fisher_jax.models.parameters import Layout


class Row(NamedTuple):
    """One line of a coefficient table; the numbers after the estimate are NaN for a fixed parameter."""

    name: str
    estimate: float
    standard_error: float
    lower: float
    upper: float


def with_fixed(free: list[Row], layout: Layout, values: list[Any]) -> list[Row]:
    """The rows of all parameters in order: the estimated ones as given, the fixed ones with their value only."""
    rows, given = [], iter(free)
    for leaf, value in zip(layout.leaves, values, strict=True):
        if leaf.is_fixed:
            flat = np.ravel(np.asarray(value))
            rows += [
                Row(f"{name} (fixed)", float(x), *[math.nan] * 3)
                for name, x in zip(leaf.entry_names, flat, strict=True)
            ]
        else:
            rows += [next(given) for _ in leaf.entry_names]
    return rows


def diagnose(status: Status, culprit: str) -> str:
    """The status in full sentences: meaning, culprit, likely causes, what to try."""
    text = f"{status.label.capitalize()}: {status.meaning}"
    text += f" ({culprit})." if culprit else "."
    if status.causes:
        text += f" Likely causes: {status.causes}."
    if status.remedy:
        text += f" Try: {status.remedy}."
    return text


@dataclass(frozen=True)
class Summary:
    """A fit report. `str` gives text; a notebook shows a table."""

    rows: list[Row]
    status: Status
    culprit: str
    log_likelihood: float
    num_observations: float
    num_parameters: int
    num_steps: int
    decrement: float
    precision: str
    covariance: str
    level: float
    intervals: str = ""

    @property
    def aic(self) -> float:
        """Akaike's information criterion."""
        return 2 * self.num_parameters - 2 * self.log_likelihood

    @property
    def bic(self) -> float:
        """Schwarz's Bayesian information criterion."""
        return self.num_parameters * math.log(self.num_observations) - 2 * self.log_likelihood

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What stands above the table, as pairs of label and value."""
        return [
            ("Status", f"{self.status.label}, {self.num_steps} steps in {self.precision}"),
            ("Distance to the maximum", self._distance()),
            ("Observations", f"{self.num_observations:g}, free parameters {self.num_parameters}"),
            ("Log-likelihood", f"{self.log_likelihood:.6f}, AIC {self.aic:.4f}, BIC {self.bic:.4f}"),
            ("Covariance", self.covariance),
            *([("Intervals", self.intervals)] if self.intervals else []),
        ]

    def _distance(self) -> str:
        if self.status == Status.BOUNDARY:
            return "no maximum was found"
        if not math.isfinite(self.decrement):
            return "unknown, the curvature is not positive definite"
        return f"{self.decrement:.1e} standard errors (decrement)"

    @property
    def header(self) -> tuple[str, str, str, str]:
        """Column titles of the table after the name."""
        percent = f"{100 * self.level:g} %"
        return ("estimate", "std. error", f"lower {percent}", f"upper {percent}")

    @property
    def warning(self) -> str:
        """Why the numbers are not to be relied on; empty for a fit that converged."""
        if self.status.converged:
            return ""
        return f"NOT TO BE RELIED ON. {diagnose(self.status, self.culprit)}"

    def __str__(self) -> str:
        width = max(len(label) for label, _ in self.facts)
        lines = ["Maximum-likelihood fit"]
        lines += [f"  {label:<{width}}  {value}" for label, value in self.facts]
        lines += ["", *self._table()]
        if self.warning:
            lines += ["", *_wrapped(self.warning)]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)

    def _table(self) -> list[str]:
        name_width = max([len(row.name) for row in self.rows] + [9])
        table = [f"  {'parameter':<{name_width}}" + "".join(f"{title:>14}" for title in self.header)]
        for row in self.rows:
            table.append(f"  {row.name:<{name_width}}" + "".join(f"{_number(x):>14}" for x in row[1:]))
        return table

    def _repr_html_(self) -> str:
        facts = "".join(
            f"<tr><th>{html.escape(label)}</th><td>{html.escape(value)}</td></tr>" for label, value in self.facts
        )
        titles = "".join(f"<th>{html.escape(title)}</th>" for title in ("parameter", *self.header))
        body = "".join(
            f"<tr><th>{html.escape(row.name)}</th>" + "".join(f"<td>{_number(x)}</td>" for x in row[1:]) + "</tr>"
            for row in self.rows
        )
        warning = f"<p><b>{html.escape(self.warning)}</b></p>" if self.warning else ""
        return (
            f"<table><caption>Maximum-likelihood fit</caption><tbody>{facts}</tbody></table>"
            f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>{warning}"
        )


def _number(x: float) -> str:
    return "-" if math.isnan(x) else f"{x:.6g}"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent="  ", subsequent_indent="  ")
