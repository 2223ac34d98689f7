"""The record of a bootstrap: its replicates, and what they say of the estimate and of functions of it."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from fisher_jax.errors import check_level, entry_point, require, warn
from fisher_jax.fitting.functions import OfParameters, Output, linearised, outline
from fisher_jax.fitting.result import Fit
from fisher_jax.fitting.status import Status
from fisher_jax.inference import bootstrap_intervals
from fisher_jax.models.programs import ById
from fisher_jax.reporting import Report, Reported, Table, number

INTERVALS = ("percentile", "basic", "bca")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class Bootstrap(Reported):
    """Replicates of an estimate. It prints as a table.

    Attributes
    ----------
    fit : Fit
        The fit whose data were replicated.
    fits : Fit
        The fits of the replicates, those that failed included.
    influence : array (g, p) or None
        Derivative of the unconstrained estimate with respect to the weight of each observation or cluster.
    copies : array (g,) or None
        How many equal observations each stands for.
    left_out : Fit or None
        The fits with each left out, where the exact jackknife was asked for.
    description : str
        How the replicates were drawn.
    """

    fit: Fit
    fits: Fit
    influence: Any
    copies: Any
    left_out: Fit | None
    description: str

    @property
    def params(self) -> PyTree:
        """The replicates' estimates, a pytree like the fit's whose leaves have a leading axis B; see `kept`."""
        return self.fits.params

    @property
    def kept(self) -> Bool[np.ndarray, " b"]:
        """Which replicates converged; only these enter any figure."""
        return self.fits.converged

    @property
    def num_failed(self) -> int:
        """How many replicates are left out."""
        return int(np.sum(~self.kept))

    @property
    def notes(self) -> list[str]:
        """Which fits failed, and what became of them; empty where none did."""
        said = {
            "the replicates' fits": (self.fits, "every figure"),
            "the fits with one left out": (self.left_out, "the acceleration"),
        }
        return [
            f"of {name} failed: {failures(fits)} of {len(fits)}. They are left out of {what}."
            for name, (fits, what) in said.items()
            if fits is not None and failures(fits)
        ]

    @entry_point
    def replicates(self, function: Any = None) -> Float[np.ndarray, "r k"]:
        """The parameters, or the numbers of a function of them, at every kept replicate, in one row each."""
        self._output(function)  # refuses what is no function of params
        return np.asarray(_evaluated(_hashable(function), self.fits))[self.kept]

    @entry_point
    def standard_errors(self, function: Any = None) -> PyTree:
        """Standard deviation over the replicates: a pytree like `params`, or as the function returns it."""
        return self._arranged(self._moments(function)[1], function, fill=0.0)

    @entry_point
    def bias(self, function: Any = None) -> PyTree:
        """Mean of the replicates less the estimate, as for `standard_errors`."""
        return self._arranged(self._moments(function)[0], function, fill=0.0)

    @entry_point
    def covariance(self, function: Any = None) -> Float[np.ndarray, "k k"]:
        """Covariance matrix over the replicates, in the order of `fit.names` or of the function's numbers."""
        drawn = self.replicates(function)
        off = drawn - self._moments(function)[0] - self._estimate(function)
        return off.T @ off / max(len(drawn) - 1, 1)

    def _moments(self, function: Any) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
        """Bias and standard errors; NaN of fewer than two replicates."""
        drawn, estimate = self.replicates(function), self._estimate(function)
        if len(drawn) < 2:
            return np.full_like(estimate, np.nan), np.full_like(estimate, np.nan)
        return np.mean(drawn, axis=0) - estimate, np.std(drawn, axis=0, ddof=1)

    @entry_point
    def confidence_intervals(self, level: Any = 0.95, method: str = "percentile", function: Any = None) -> PyTree:
        """Intervals: leaves like those of `params`, or of what the function returns, with a last axis of two.

        Parameters
        ----------
        level : float
            Coverage aimed at.
        method : {"percentile", "basic", "bca"}
            Quantiles of the replicates; these reflected about the estimate; or quantiles corrected for bias and skewness.
        function : callable, optional
            ``function(params)`` returns a number, an array or a pytree of them.

        Returns
        -------
        pytree
            NaN of fewer than two replicates; and, with a `FitWarning`, where all replicates lie on one side of the estimate,
            or the acceleration is so large that it turns the interval over, and BCa does not exist.
        """
        check_level(level)
        if method not in INTERVALS:
            raise ValueError(f"method={method!r} is unknown; choose from {', '.join(map(repr, INTERVALS))}.")
        return self._arranged(self.flat_intervals(level, method, function), function, trailing=1)

    @entry_point
    def flat_intervals(
        self, level: Any = 0.95, method: str = "percentile", function: Any = None
    ) -> Float[np.ndarray, "k 2"]:
        """The intervals in one column, in the order of `fit.names` or of the function's numbers."""
        drawn, estimate = self.replicates(function), self._estimate(function)
        if len(drawn) < 2:
            return np.full((len(estimate), 2), np.nan)
        if method == "percentile":
            return bootstrap_intervals.percentile(drawn, level)
        if method == "basic":
            return bootstrap_intervals.basic(drawn, estimate, level)
        found = bootstrap_intervals.bca(drawn, estimate, self._acceleration(function), level)
        if np.any(np.isnan(found)):
            warn(
                "BCa does not exist where all replicates lie on one side of the estimate, or a few "
                "observations have nearly all the influence."
            )
        return found

    def _acceleration(self, function: Any) -> Float[np.ndarray, " k"]:
        if self.left_out is not None:
            kept = self.left_out.converged
            values = np.asarray(_evaluated(_hashable(function), self.left_out))[kept]
            copies = None if self.copies is None else self.copies[kept]
            return bootstrap_intervals.jackknife_acceleration(values, copies)
        if self.influence is None:
            raise ValueError(
                'confidence_intervals: method="bca" needs the influence of observations by themselves, which blocks do not '
                'have. Use "percentile" or "basic".'
            )
        jacobian = np.asarray(_linearised(_hashable(function), self.fit))
        return bootstrap_intervals.acceleration(np.asarray(self.influence) @ jacobian.T, self.copies)

    def _estimate(self, function: Any) -> Float[np.ndarray, " k"]:
        return np.asarray(_value(_hashable(function), self.fit))

    def _output(self, function: Any) -> Output | None:
        return None if function is None else outline(function, self.fit, "function")

    def _arranged(self, flat: np.ndarray, function: Any, trailing: int = 0, fill: float | None = None) -> PyTree:
        """Numbers in one row laid out as the parameters or as the function returns them."""
        output, layout = self._output(function), self.fit.layout
        if output is not None:
            return output.arranged(flat, trailing=trailing)
        leaves, start = [], 0
        for leaf, value in zip(layout.leaves, self.fit.values, strict=True):
            extra = flat.shape[1:]
            if leaf.is_fixed:
                held = np.asarray(value, float) if fill is None else np.full(leaf.shape, fill)
                leaves.append(np.broadcast_to(held.reshape(leaf.shape + (1,) * len(extra)), leaf.shape + extra))
            else:
                leaves.append(flat[start : start + leaf.size].reshape(leaf.shape + extra))
                start += leaf.size
        return layout.assemble(leaves)

    @entry_point
    def summary(self, level: Any = 0.95, method: str = "percentile", function: Any = None) -> Report:
        """A table of estimate, bias, standard error and interval."""
        check_level(level)
        output = self._output(function)
        names = self.fit.names if output is None else output.names
        estimate, (bias, errors) = self._estimate(function), self._moments(function)
        ends = self.flat_intervals(level, method, function)
        percent = f"{100 * level:g} %"
        titles = ("parameter", "estimate", "bias", "std. error", f"lower {percent}", f"upper {percent}")
        rows = [
            (name, *map(number, (value, b, e, *pair)))
            for name, value, b, e, pair in zip(names, estimate, bias, errors, ends, strict=True)
        ]
        facts = [("Replicates", f"{len(self.fits)}, {self.description}"), ("Intervals", method)]
        return Report("Bootstrap", facts, [Table(titles, rows)], self.notes)

    @entry_point
    def to_frame(self) -> Any:
        """The kept replicates as a pandas DataFrame, a column for each parameter (needs the extra `frames`)."""
        pd = require("pandas", "frames")
        return pd.DataFrame(self.replicates(), columns=list(self.fit.names))


def failures(fits: Fit) -> str:
    """How many failed, by status, in words; empty where none did."""
    codes, counts = np.unique(fits.status[~fits.converged], return_counts=True)
    return ", ".join(f"{count} {Status(int(code)).label}" for code, count in zip(codes, counts, strict=True))


def _hashable(function: Any) -> OfParameters | None:
    return None if function is None else OfParameters(ById(function))


def _numbers(function: OfParameters | None, fit: Fit, free: Float[Array, " p"]) -> Float[Array, " k"]:
    if function is not None:
        return function(fit, free)
    return fit.layout.join(fit.layout.constrained_values(free, fit.values))


@functools.partial(jax.jit, static_argnums=0)
def _value(function: OfParameters | None, fit: Fit) -> Float[Array, " k"]:
    return _numbers(function, fit, fit.free)


@functools.partial(jax.jit, static_argnums=0)
def _evaluated(function: OfParameters | None, fits: Fit) -> Float[Array, "b k"]:
    return jax.vmap(lambda fit: _numbers(function, fit, fit.free))(fits)


@functools.partial(jax.jit, static_argnums=0)
def _linearised(function: OfParameters | None, fit: Fit) -> Float[Array, "k p"]:
    return linearised(lambda fit, free: _numbers(function, fit, free), fit)[1]
