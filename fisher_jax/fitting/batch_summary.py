"""The report on many fits, made from plain arrays."""

import html
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from fisher_jax.fitting.fitted import Fit
from fisher_jax.fitting.status import Status

QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
WORST = 5


@dataclass(frozen=True)
class BatchSummary:
    """How a batch ended. `str` gives text; a notebook shows tables.

    `statuses` counts each status that occurred and `attempts` the attempts that gave the results; `spread` holds for
    each row's name its quantiles over the fits, those of the estimates over the converged ones; `worst` the indices of the
    fits that failed, the first few of each status, with what is known of them.
    """

    num_fits: int
    statuses: dict[str, int]
    attempts: dict[str, int]
    spread: dict[str, tuple[float, ...]]
    worst: list[tuple[int, str]]
    facts: list[tuple[str, str]]

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
        )


def _titles() -> list[str]:
    named = {0.0: "least", 0.5: "median", 1.0: "greatest"}
    return [named.get(q, f"{100 * q:g} %") for q in QUANTILES]


def summarise(
    fits: Fit,
    attempt: np.ndarray,
    attempts: tuple[str, ...],
    utilisation: float,
    kind: str,
    errors: np.ndarray | None,
) -> BatchSummary:
    """The summary of a batch: its records, which attempt gave each, and the standard errors (B, q) where they are known."""
    status = np.asarray(fits.status_code)
    statuses = {known.label: int(np.sum(status == known)) for known in Status if np.any(status == known)}
    tried = {name: int(np.sum(attempt == k)) for k, name in enumerate(attempts) if np.any(attempt == k)}
    converged = status <= Status.CONVERGED_TO_ROUNDING
    facts = [
        ("Fits", f"{len(status)}, each with {fits.num_parameters} free parameters, in {fits.free.dtype}"),
        *(
            ("Status", f"{count} {label} ({100 * count / max(len(status), 1):.4g} %)")
            for label, count in statuses.items()
        ),
        *(("Attempt", f"{count} by {name}") for name, count in tried.items() if name != attempts[0]),
        ("Covariance", fits.describe(kind) if kind else "none kept"),
        ("Lanes at work", f"{100 * utilisation:.1f} % of the time"),
    ]
    return BatchSummary(len(status), statuses, tried, _spread(fits, converged, errors), _worst(fits, status), facts)


def _spread(fits: Fit, converged: np.ndarray, errors: np.ndarray | None) -> dict[str, tuple[float, ...]]:
    theta = np.asarray(jax.vmap(fits.layout.join)(fits.values))[converged]
    rows: dict[str, Any] = {"steps": fits.num_steps, "decrement": np.asarray(fits.decrement)[converged]}
    for k, name in enumerate(fits.names):
        rows[name] = theta[:, k]
        if errors is not None:
            rows[f"{name} std. error"] = errors[converged, k]
    return {name: _quantiles(numbers) for name, numbers in rows.items()}


def _quantiles(numbers: np.ndarray) -> tuple[float, ...]:
    known = numbers[~np.isnan(numbers)]
    return tuple(float(q) for q in np.quantile(known, QUANTILES)) if len(known) else (float("nan"),) * len(QUANTILES)


def _worst(fits: Fit, status: np.ndarray) -> list[tuple[int, str]]:
    found = []
    for code in np.unique(status):
        if not Status(int(code)).converged:
            for index in np.flatnonzero(status == code)[:WORST]:
                one = jax.tree.map(lambda leaf, index=index: np.asarray(leaf[index]), fits)
                found.append((int(index), one.diagnosis().split(" Likely causes")[0]))
    return found
