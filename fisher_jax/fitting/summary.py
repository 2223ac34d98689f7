"""The reports on one fit and on many, and the directions of parameters that they name."""

import itertools
import math
from typing import Any, NamedTuple

import numpy as np

from fisher_jax.fitting.status import EDGE_INFORMATION, Status
from fisher_jax.models.constraints import PositiveDefinite
from fisher_jax.models.dataset import rows_of_parts
from fisher_jax.models.parameters import Layout
from fisher_jax.numerics import linalg
from fisher_jax.reporting import TEST_FORMATS, Report, ReportTable, listed, percent

ATTEMPTS = ("as asked", "stronger damping", "another start", "float64")
QUANTILES = {"least": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "greatest": 1.0}
NO_DISTANCE = {
    Status.BOUNDARY: "no maximum was found",
    Status.BAD_START: "unknown, the log-density is not finite at the start",
    Status.NOT_FINITE: "unknown, the gradient or the curvature is not finite",
}


ENDS = ("lower", "upper")
FIXED, AT_EDGE = " (fixed)", " (at its edge)"  # remarks after the name of a parameter


class Row(NamedTuple):
    """One line of a coefficient table; the numbers after the estimate are NaN for a fixed parameter.

    z is the estimate divided by its standard error, and the p-value, two-sided, is that of the hypothesis that the parameter is
    zero; both are NaN where zero is not inside the parameter's range.
    """

    name: str
    estimate: float
    standard_error: float
    z: float
    p_value: float
    lower: float
    upper: float

    @property
    def parameter(self) -> str:
        """The name without the remark that it is fixed or at its edge."""
        return self.name.removesuffix(FIXED).removesuffix(AT_EDGE)


COLUMNS = Row._fields[1:]


def fit_report(fit: Any, kind: str, rows: list[Row], level: Any, method: str, doubts: tuple[str, ...]) -> Report:
    """The report on one fit; `doubts` are sentences on its standard errors.

    z and the p-value are those of the hypothesis that a parameter is zero; they are dashes where zero is not inside its range.
    """
    distance = f"{float(fit.decrement):.1e} standard errors (decrement)"
    if not math.isfinite(float(fit.decrement)):
        distance = "unknown, the curvature is not positive definite"
    bic = "" if math.isnan(float(fit.bic())) else f", BIC {float(fit.bic()):.4f}"
    n, num_masked = float(fit.num_observations), 0 if fit.num_masked is None else int(fit.num_masked)
    source, penalty = [], []
    if hasattr(fit.origin, "num_passes"):  # data that are not in memory
        blocks = f"{fit.origin.num_blocks} block{'' if fit.origin.num_blocks == 1 else 's'}"
        rows_in = f"{fit.origin.num_rows} rows in {fit.origin.description}"
        source = [("Data", f"{rows_in}, {blocks}, {fit.origin.num_passes} passes")]
    if fit.prior:
        maximised = f"{float(fit.penalized_log_likelihood):.6f}"
        penalty = [("Prior", fit.prior), ("Penalised log-likelihood", maximised)]
    facts = [
        ("Status", f"{fit.status.label}, {int(fit.num_steps)} steps in {fit.free.dtype}"),
        ("Distance to the maximum", NO_DISTANCE.get(fit.status, distance)),
        ("Observations", f"{n:g}{_of_groups(fit)}, free parameters {fit.num_parameters}"),
        *(fit.origin.model.facts(fit.params) if fit.origin is not None else []),
        *source,
        *([("Missing", f"{num_masked} row{'' if num_masked == 1 else 's'}, left out")] if num_masked else []),
        ("Log-likelihood", f"{float(fit.log_likelihood):.6f}, AIC {float(fit.aic()):.4f}{bic}"),
        *penalty,
        ("Covariance", fit.describe(kind)),
        *([("Intervals", "by profile likelihood")] if method == "profile" else []),
    ]
    columns = ["parameter", "estimate", "std. error", "z", "p-value", *(f"{end} {percent(level)}" for end in ENDS)]
    # Where zero is a value of no parameter there is nothing to test.
    shown = [k for k in range(len(columns)) if k not in (3, 4) or not all(math.isnan(row.z) for row in rows)]
    table = ReportTable(
        tuple(columns[k] for k in shown),
        [tuple(row[k] for k in shown) for row in rows],
        keys=tuple(Row._fields[k] for k in shown[1:]),
        formats=TEST_FORMATS,
    )
    notes = () if fit.status.converged else (f"NOT TO BE RELIED ON. {fit.diagnosis()}",)
    title = "Penalised maximum-likelihood fit" if fit.prior else "Maximum-likelihood fit"
    return Report(title, facts, [table], (*notes, *doubts))


def _of_groups(fit: Any) -> str:
    """What the observations of a model with latent effects or of several data sets are, in words; empty for other models."""
    if fit.origin is None or (fit.origin.model.with_modes is None and not fit.origin.model.parts):
        return ""
    if fit.origin.model.parts:
        data, _, weights = fit.origin.dataset.parts
        rows = rows_of_parts(fit.origin.model, data)
        ends = np.cumsum([0, *rows.values()])
        counts = rows.values() if weights is None else [np.sum(weights[a:b]) for a, b in itertools.pairwise(ends)]
        return f" ({', '.join(f'{name} {count:g}' for name, count in zip(rows, counts, strict=True))})"
    rows = fit.origin.model.count_rows(*fit.origin.dataset.parts)
    groups = " group" if float(fit.num_observations) == 1 else " groups"
    return groups if rows is None else f"{groups}, {rows:g} row{'' if rows == 1 else 's'}"


def batch_report(fits: Any, kind: str, errors: np.ndarray | None, doubts: tuple[str, ...]) -> Report:
    """The report on many fits, with the standard errors (B, q) where there are any.

    It counts statuses and attempts. Its table holds quantiles over the fits, those of estimates over the converged ones; its notes
    name the first fit that failed with each status.
    """
    status, count = fits.status_code, len(fits.status_code)
    facts = [("Fits", f"{count}, each with {fits.num_parameters} free parameters, in {fits.free.dtype}")]
    for code in np.unique(status):
        number = int(np.sum(status == code))
        facts.append(("Status", f"{number} {Status(int(code)).label} ({100 * number / count:.4g} %)"))
    for k, name in enumerate(ATTEMPTS):
        if k and np.any(fits.attempt == k):
            facts.append(("Attempt", f"{int(np.sum(fits.attempt == k))} by {name}"))
    if fits.num_masked is not None and np.any(fits.num_masked):
        sets = int(np.sum(fits.num_masked > 0))
        facts.append(("Missing", f"{int(np.sum(fits.num_masked))} rows of {sets} data sets, left out"))
    if fits.prior:
        facts.append(("Prior", fits.prior))
    facts.append(("Covariance", fits.describe(kind) if kind else "none kept"))

    converged = fits.converged
    theta = fits.layout.join(fits.values)[converged]
    columns: dict[str, Any] = {"steps": fits.num_steps, "decrement": fits.decrement[converged]}
    for k, name in enumerate(fits.names):
        columns[name] = theta[:, k]
        if errors is not None:
            columns[f"{name} std. error"] = errors[converged, k]
    quantiles = list(QUANTILES.values())
    rows = []
    for name, numbers in columns.items():
        numbers = numbers[~np.isnan(numbers)]
        rows.append((name, *(np.quantile(numbers, quantiles) if len(numbers) else np.full(len(quantiles), np.nan))))

    notes = []
    for code in np.unique(status):
        if not Status(int(code)).converged:
            first = int(np.argmax(status == code))
            diagnosis = fits[first].diagnosis().split(" Likely causes")[0]
            label = "" if fits.labels is None else f" ({fits.labels[first]})"
            notes.append(f"Fit {first}{label}, the first with its status: {diagnosis}")
    title = "Penalised maximum-likelihood fits" if fits.prior else "Maximum-likelihood fits"
    return Report(title, facts, [ReportTable(("", *QUANTILES), rows)], (*notes, *doubts))


def weakest(curvature: Any, free: Any, layout: Layout) -> str:
    """The direction in which the curvature is least, as a change of the user's parameters."""
    if unknown := _unknown(curvature):
        return unknown
    jacobian = layout.jacobian(np.asarray(free))
    return linalg.weak_directions(np.asarray(curvature), layout.names, jacobian=jacobian)[0][1]


def entries_at_edge(curvature: Any, layout: Layout) -> np.ndarray:
    """Which entries of u are left without information on the scale of their constraint, as at the edge of their range."""
    diagonal = np.diagonal(np.asarray(curvature, np.float64), axis1=-2, axis2=-1)
    return np.array(layout.unitless, bool) & (np.abs(diagonal) < EDGE_INFORMATION)


def escaping(curvature: Any, free: Any, last_step: Any, layout: Layout) -> str:
    """What runs away: the constrained parameters left without information, else where the last step was heading."""
    if unknown := _unknown(curvature):
        return unknown
    names, faint = layout.free_names, entries_at_edge(curvature, layout)
    if faint.any():
        parts, start = [], 0
        for _, leaf in layout.free_leaves:
            marked = start + np.flatnonzero(faint[start : start + leaf.free_size])
            start += leaf.free_size
            if isinstance(leaf.constraint, PositiveDefinite):  # its entries have no edge, the matrix has
                parts += [f"{leaf.name} towards a singular matrix"] if len(marked) else []
            else:
                parts += [names[k] for k in marked]
        return ", ".join(parts)
    step = np.asarray(last_step, np.float64)
    if not np.any(step):
        return names[int(np.argmax(np.where(layout.unitless, np.abs(np.asarray(free)), 0.0)))]
    return linalg.describe_direction(step, names)


def edge_in_words(layout: Layout, edge: np.ndarray, at_edge: np.ndarray) -> str:
    """What is at the edge of its range where entries `edge` of u are, and with them `at_edge` of θ."""
    parts, start, first = [], 0, 0
    for _, leaf in layout.free_leaves:
        marks, entries = edge[start : start + leaf.free_size], at_edge[first : first + leaf.size]
        start, first = start + leaf.free_size, first + leaf.size
        if isinstance(leaf.constraint, PositiveDefinite):
            parts += [f"`{leaf.name}` as a singular matrix"] if np.any(marks) else []
        else:
            parts += [f"`{name}`" for name, mark in zip(leaf.entry_names, entries, strict=True) if mark]
    return f"{listed(parts)} at the edge"


def _unknown(curvature: Any) -> str:
    if curvature is None:
        return "unknown, since the curvature was not kept"
    return "" if np.all(np.isfinite(np.asarray(curvature))) else "unknown, since the curvature is not finite"
