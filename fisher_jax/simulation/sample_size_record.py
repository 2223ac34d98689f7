"""The record of a sample size, with what was seen of it by simulation."""

from dataclasses import dataclass
from typing import Any

from fisher_jax.moments import Estimate
from fisher_jax.reporting import Report, Reported, Table, number
from fisher_jax.simulation.normality import with_error


@dataclass(frozen=True, repr=False)
class SampleSize(Reported):
    """The number of observations at which a wanted standard error or power is reached. It prints as a report.

    Attributes
    ----------
    num_observations : int
        n, rounded up; with `given`, to whole repetitions of its rows.
    exact, exact_error : float
        Before it was rounded, and its error where the information is sampled.
    names : tuple of str
        What a standard error is wanted of, or what is tested.
    standard_error : array (k,)
        Their standard errors at n, by theory.
    power : float or None
        The power of Wald's test at n, by theory; None where none was asked for.
    simulated : Estimate or None
        The same from data sets drawn and fitted: the standard deviations (k,), or the share of tests that reject, with
        Monte Carlo error.
    num_replicates, num_failed : int
        How many data sets were drawn for that, and of how many the fit failed: left out of standard deviations, and counted
        as not rejecting.
    aim : str
    route : str
        How the information was come by.
    """

    num_observations: int
    exact: float
    exact_error: float
    names: tuple[str, ...]
    standard_error: Any
    power: Any
    simulated: Estimate | None
    num_replicates: int
    num_failed: int
    aim: str
    route: str

    def summary(self) -> Report:
        facts = [
            ("Wanted", self.aim),
            ("Observations", f"{self.num_observations}, from {with_error(self.exact, self.exact_error)}"),
            ("By", self.route),
        ]
        if self.power is not None:
            facts.append(("Power", number(self.power)))
        if self.power is not None and self.simulated is not None:
            facts.append(("Power, simulated", with_error(*self.simulated)))
        if self.simulated is not None:
            failed = f", of which {self.num_failed} failed" if self.num_failed else ""
            facts.append(("Data sets drawn", f"{self.num_replicates}{failed}"))
        by_simulation = self.power is None and self.simulated is not None
        rows = []
        for k, name in enumerate(self.names):
            cells = [number(self.standard_error[k])]
            if by_simulation:
                cells.append(with_error(self.simulated.value[k], self.simulated.standard_error[k]))  # type: ignore[union-attr]
            rows.append((name, *cells))
        titles = ("name", "standard error", *(("simulated",) if by_simulation else ()))
        return Report("Sample size", facts, [Table(titles, rows)])
