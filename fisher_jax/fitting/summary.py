"""The reports a person reads, on one fit and on many, and what they say of a failure."""

import html
import math
import textwrap
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fisher_jax.fitting.status import Status
from fisher_jax.models.parameters import Layout
from fisher_jax.numerics import linalg

ATTEMPTS = ("as asked", "stronger damping", "another start", "float64")
QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)


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
    doubts: tuple[str, ...] = ()
    num_masked: int = 0

    @property
    def aic(self) -> float:
        """Akaike's information criterion; NaN where there are no observations."""
        return 2 * self.num_parameters - 2 * self.log_likelihood if self.num_observations > 0 else math.nan

    @property
    def bic(self) -> float:
        """Schwarz's Bayesian information criterion; NaN where there are no observations."""
        penalty = math.log(self.num_observations) if self.num_observations > 0 else math.nan
        return self.num_parameters * penalty - 2 * self.log_likelihood

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What stands above the table, as pairs of label and value."""
        return [
            ("Status", f"{self.status.label}, {self.num_steps} steps in {self.precision}"),
            ("Distance to the maximum", self._distance()),
            ("Observations", f"{self.num_observations:g}, free parameters {self.num_parameters}"),
            *([("Masked", f"{self.num_masked} rows, left out by weight zero")] if self.num_masked else []),
            ("Log-likelihood", f"{self.log_likelihood:.6f}, AIC {self.aic:.4f}, BIC {self.bic:.4f}"),
            ("Covariance", self.covariance),
            *([("Intervals", self.intervals)] if self.intervals else []),
        ]

    def _distance(self) -> str:
        if self.status == Status.BOUNDARY:
            return "no maximum was found"
        if self.status == Status.BAD_START:
            return "unknown, the log-density is not finite at the start"
        if self.status == Status.NOT_FINITE:
            return "unknown, the gradient or the curvature is not finite"
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
        """Why the numbers are not to be relied on; empty for a fit that converged and whose standard errors exist."""
        failure = () if self.status.converged else (f"NOT TO BE RELIED ON. {diagnose(self.status, self.culprit)}",)
        return " ".join(failure + self.doubts)

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


@dataclass(frozen=True)
class BatchSummary:
    """How a batch ended. `str` gives text; a notebook shows tables.

    `statuses` counts each status that occurred and `attempts` the attempts that gave the results; `spread` holds for
    each row's name its quantiles over the fits, those of the estimates over the converged ones; `worst` the index of the
    first fit that failed with each status, with what is known of it; `doubts` what is to be known of the standard errors.
    """

    num_fits: int
    statuses: dict[str, int]
    attempts: dict[str, int]
    spread: dict[str, tuple[float, ...]]
    worst: list[tuple[int, str]]
    facts: list[tuple[str, str]]
    doubts: tuple[str, ...] = ()

    def __str__(self) -> str:
        width = max(len(label) for label, _ in self.facts)
        lines = ["Maximum-likelihood fits"]
        lines += [f"  {label:<{width}}  {value}" for label, value in self.facts]
        name_width = max([len(name) for name in self.spread] + [8])
        lines += ["", "  " + " " * name_width + "".join(f"{title:>13}" for title in _titles())]
        lines += [
            f"  {name:<{name_width}}" + "".join(f"{number:>13.6g}" for number in numbers)
            for name, numbers in self.spread.items()
        ]
        if self.worst:
            lines += ["", "  Failed, the first of each kind:"]
            lines += [f"  {index:>8}  {said}" for index, said in self.worst]
        for doubt in self.doubts:
            lines += ["", *_wrapped(doubt)]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        facts = "".join(
            f"<tr><th>{html.escape(label)}</th><td>{html.escape(value)}</td></tr>" for label, value in self.facts
        )
        titles = "".join(f"<th>{title}</th>" for title in ("", *_titles()))
        spread = "".join(
            f"<tr><th>{html.escape(name)}</th>" + "".join(f"<td>{number:.6g}</td>" for number in numbers) + "</tr>"
            for name, numbers in self.spread.items()
        )
        worst = "".join(f"<tr><th>{index}</th><td>{html.escape(said)}</td></tr>" for index, said in self.worst)
        caption = "<caption>Failed, the first of each kind</caption>"
        return (
            f"<table><caption>Maximum-likelihood fits</caption><tbody>{facts}</tbody></table>"
            f"<table><thead><tr>{titles}</tr></thead><tbody>{spread}</tbody></table>"
            + (f"<table>{caption}<tbody>{worst}</tbody></table>" if worst else "")
            + "".join(f"<p>{html.escape(doubt)}</p>" for doubt in self.doubts)
        )


def _titles() -> list[str]:
    named = {0.0: "least", 0.5: "median", 1.0: "greatest"}
    return [named.get(q, f"{100 * q:g} %") for q in QUANTILES]


def batch_summary(fits: Any, kind: str, errors: np.ndarray | None, doubts: tuple[str, ...]) -> BatchSummary:
    """The report on many fits, with the standard errors (B, q) where they are known."""
    status, attempt = fits.status_code, fits.attempt
    statuses = {known.label: int(np.sum(status == known)) for known in Status if np.any(status == known)}
    attempts = {name: int(np.sum(attempt == k)) for k, name in enumerate(ATTEMPTS) if np.any(attempt == k)}
    facts = [
        ("Fits", f"{len(status)}, each with {fits.num_parameters} free parameters, in {fits.free.dtype}"),
        *(
            ("Status", f"{count} {label} ({100 * count / max(len(status), 1):.4g} %)")
            for label, count in statuses.items()
        ),
        *(("Attempt", f"{count} by {name}") for name, count in attempts.items() if name != ATTEMPTS[0]),
        *_masked(fits.num_masked),
        ("Covariance", fits.describe(kind) if kind else "none kept"),
        *([("Engine", fits.engine)] if fits.engine else []),
    ]
    return BatchSummary(len(status), statuses, attempts, _spread(fits, errors), _worst(fits, status), facts, doubts)


def _masked(num_masked: np.ndarray | None) -> list[tuple[str, str]]:
    if num_masked is None or not np.any(num_masked):
        return []
    sets = int(np.sum(num_masked > 0))
    return [("Masked", f"{int(np.sum(num_masked))} rows of {sets} data sets, left out by weight zero")]


def _spread(fits: Any, errors: np.ndarray | None) -> dict[str, tuple[float, ...]]:
    """Quantiles over the fits, those of the estimates over the converged ones."""
    converged = fits.converged
    theta = fits.layout.join(fits.values)[converged]
    rows: dict[str, Any] = {"steps": fits.num_steps, "decrement": fits.decrement[converged]}
    for k, name in enumerate(fits.names):
        rows[name] = theta[:, k]
        if errors is not None:
            rows[f"{name} std. error"] = errors[converged, k]
    return {name: _quantiles(numbers) for name, numbers in rows.items()}


def _quantiles(numbers: np.ndarray) -> tuple[float, ...]:
    known = numbers[~np.isnan(numbers)]
    return tuple(float(q) for q in np.quantile(known, QUANTILES)) if len(known) else (float("nan"),) * len(QUANTILES)


def _worst(fits: Any, status: np.ndarray) -> list[tuple[int, str]]:
    firsts = [int(np.argmax(status == code)) for code in np.unique(status) if not Status(int(code)).converged]
    return [(first, fits[first].diagnosis().split(" Likely causes")[0]) for first in firsts]


def weakest(curvature: Any, free: Any, layout: Layout) -> str:
    """The direction in which the curvature is least, as a change of the user's parameters."""
    if unknown := _unknown(curvature):
        return unknown
    jacobian = layout.jacobian(np.asarray(free))
    return linalg.weak_directions(np.asarray(curvature), layout.names, jacobian=jacobian)[0][1]


def escaping(curvature: Any, free: Any, last_step: Any, layout: Layout, faint_below: float) -> str:
    """What runs away: the constrained parameters left without information, else where the last step was heading."""
    if unknown := _unknown(curvature):
        return unknown
    diagonal, names = np.abs(np.diagonal(np.asarray(curvature, np.float64))), layout.free_names
    faint = [k for k, limited in enumerate(layout.restricted) if limited and diagonal[k] < faint_below]
    if faint:
        return ", ".join(names[k] for k in faint)
    step = np.asarray(last_step, np.float64)
    if not np.any(step):
        return names[int(np.argmax(np.where(layout.restricted, np.abs(np.asarray(free)), 0.0)))]
    return linalg.describe_direction(step, names)


def _unknown(curvature: Any) -> str:
    if curvature is None:
        return "unknown, since the curvature was not kept"
    return "" if np.all(np.isfinite(np.asarray(curvature))) else "unknown, since the curvature is not finite"
