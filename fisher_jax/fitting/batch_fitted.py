"""The record of many fits: every name of `Fit` with a leading axis, one for each data set."""

import functools
import operator
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from fisher_jax.errors import FitError, FitWarning, require
from fisher_jax.fitting import covariance as covariances
from fisher_jax.fitting import criteria, fitted, intervals
from fisher_jax.fitting.batch_summary import BatchSummary, summarise
from fisher_jax.fitting.data_sets import DataSets
from fisher_jax.fitting.fitted import Fit, Origin
from fisher_jax.fitting.status import Status
from fisher_jax.information import Information
from fisher_jax.models.model import Model

ATTEMPTS = ("as asked", "stronger damping", "another start", "float64")
FACTS = ("log_likelihood", "decrement", "num_steps", "num_observations", "status", "attempt")
BLOCK = 4096  # fits that a method works on at once


class BatchOrigin(NamedTuple):
    """What the fits of a batch were made from; each one's own data by `sets.sample`."""

    model: Model
    sets: DataSets


@dataclass(frozen=True)
class BatchFit:
    """Many maximum-likelihood fits, each with a fate of its own. Arrays are numpy's, with a leading axis of length B.

    Attributes
    ----------
    fits : Fit
        All records in one, each array with a leading axis.
    attempt : integer array (B,)
        Which attempt gave the result, an index into `ATTEMPTS`: as asked, stronger damping, another start, float64.
    utilisation : float
        The part of the lanes' time that was spent on data sets.
    kinds : tuple of str
        The kinds of covariance that `fit_batch` was asked to keep.
    origin : BatchOrigin or None
        The model and the data sets. No part of the pytree; None after a transformation and of a list of data sets.

    Notes
    -----
    ``fits[3]`` is one `Fit`; ``fits[mask]`` and ``fits[10:20]`` are batches. A fit that failed keeps its numbers, so look at
    `status` or `converged` first; those at a boundary have NaN for standard errors, as in `Fit`.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> from jax.scipy.stats import poisson
    >>> counts = jnp.array([[2, 4, 3], [0, 1, 2]])
    >>> fits = fj.fit_batch(lambda rate, y: poisson.logpmf(y, rate), 1.0, counts)
    >>> print(fits.params.round(3), fits.standard_errors().round(3), fits.converged)
    [3. 1.] [1.    0.577] [ True  True]
    """

    fits: Fit
    attempt: Any
    utilisation: Any
    kinds: tuple[str, ...]
    origin: BatchOrigin | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.fits.status_code)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, bool):
            raise IndexError(f"fits[{index}]: give a number, a slice, or an array of numbers or of truths (B,).")
        if not isinstance(index, slice) and jnp.ndim(index) == 0:
            index = operator.index(index)
            if not -len(self) <= index < len(self):
                raise IndexError(f"fits[{index}]: there are {len(self)} fits.")
            one = jax.tree.map(lambda leaf: jnp.asarray(leaf[index]), self.fits)
            return replace(one, origin=self.origin and Origin(self.origin.model, self.origin.sets.sample(index)))
        some = jax.tree.map(lambda leaf: leaf[index], self.fits)
        origin = self.origin and self.origin._replace(sets=self.origin.sets.take(index))
        return replace(self, fits=some, attempt=self.attempt[index], origin=origin)

    def __iter__(self) -> Iterator[Fit]:
        return (self[k] for k in range(len(self)))

    @property
    def params(self) -> PyTree:
        """The estimates, a pytree like the starting parameters; each leaf has a leading axis B."""
        return self.fits.params

    @property
    def status(self) -> np.ndarray:
        """The codes (B,); compare them with members of `Status`."""
        return np.asarray(self.fits.status_code)

    @property
    def converged(self) -> np.ndarray:
        """Whether each estimate is a certified local maximum, (B,)."""
        return self.status <= Status.CONVERGED_TO_ROUNDING

    @property
    def log_likelihood(self) -> np.ndarray:
        """ℓ at each estimate in nats, total over its data, (B,)."""
        return np.asarray(self.fits.log_likelihood)

    @property
    def decrement(self) -> np.ndarray:
        """Each one's distance to its maximum in standard errors, (B,)."""
        return np.asarray(self.fits.decrement)

    @property
    def num_steps(self) -> np.ndarray:
        """Steps of the attempt that gave each result, with those of a finish in float64, (B,)."""
        return np.asarray(self.fits.num_steps)

    @property
    def num_observations(self) -> np.ndarray:
        """n of each, or the sum of its weights, (B,)."""
        return np.asarray(self.fits.num_observations)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the q estimated entries, in the order of rows and columns of every matrix."""
        return self.fits.names

    @property
    def num_parameters(self) -> int:
        """p: the number of free parameters of each fit."""
        return self.fits.num_parameters

    def covariance(self, kind: str = "observed") -> np.ndarray:
        """Covariance matrices (B, q, q) in the user's parametrisation; `kind` as for `Fit.covariance`.

        It must be one that `fit_batch` kept: name it in its `covariances`.
        """
        return self._of_each(_covariance, kind, "covariance")

    def standard_errors(self, kind: str = "observed") -> PyTree:
        """Standard errors, a pytree like `params`; zero for parameters held `fixed`."""
        return self.fits.layout.assemble(self._of_each(_standard_errors, kind, "standard_errors"))

    def correlation(self, kind: str = "observed") -> np.ndarray:
        """Correlation matrices (B, q, q), in the order of `names`."""
        return self._of_each(_correlation, kind, "correlation")

    def confidence_intervals(
        self, level: Any = 0.95, method: str = "wald", *, kind: str = "observed", scale: str = "unconstrained"
    ) -> PyTree:
        """Intervals: a pytree like `params` whose leaves gain a last axis of two. Arguments as for `Fit`."""
        method, kind = intervals.check_method(level, method, kind, scale, "confidence_intervals")
        if method == "profile":
            return self._profile_intervals(level, "confidence_intervals")
        found = self._of_each(_INTERVALS[scale], kind, "confidence_intervals", float(level))
        return self.fits.layout.assemble(found)

    def _profile_intervals(self, level: Any, caller: str) -> PyTree:
        from fisher_jax.uncertainty.profile_sides import profile_ends_of_each

        self._check("observed", caller)
        self._warn(caller, 4)
        model, sets = batch_origin_of(self, caller)
        fits, layout = self.fits, self.fits.layout
        known = (fits.values, fits.free, fits.curvature)
        rebuild = (sets.mapped, sets.treedef)
        ends = profile_ends_of_each(model, layout, rebuild, sets.own[1:], sets.shared, known, level, caller)
        unknown = int(np.sum(np.any(np.isnan(ends), axis=(1, 2))))
        if unknown:
            warnings.warn(
                f"{caller}: an end is NaN in {unknown} of {len(self)} fits; print fisher_jax.profile_likelihood(fits[k]) to "
                "see why.",
                FitWarning,
                stacklevel=3,
            )
        leaves = jax.vmap(lambda values, ends: intervals.as_leaves(layout, values, ends))(
            fits.values, jnp.asarray(ends)
        )
        return layout.assemble([np.asarray(leaf) for leaf in leaves])

    def information(self, kind: str = "observed") -> Information:
        """The informations per observation, an `Information` whose matrix is (B, q, q): `jax.vmap` its methods over it."""
        matrices = self._of_each(_information, kind, "information")
        return replace(self[0].information(kind), matrix=jnp.asarray(matrices))

    def aic(self) -> np.ndarray:
        """Akaike's information criterion 2p − 2ℓ, (B,)."""
        return 2.0 * self.num_parameters - 2.0 * self.log_likelihood

    def bic(self) -> np.ndarray:
        """Schwarz's Bayesian information criterion p log n − 2ℓ, (B,)."""
        return self.num_parameters * np.log(self.num_observations) - 2.0 * self.log_likelihood

    def aicc(self) -> np.ndarray:
        """AIC with the correction for few observations, 2p n / (n − p − 1) − 2ℓ, (B,); NaN where n ≤ p + 1."""
        return np.asarray(criteria.aicc(self.log_likelihood, self.num_parameters, self.num_observations))

    def tic(self) -> np.ndarray:
        """Takeuchi's information criterion 2 tr(J⁻¹K) − 2ℓ, (B,); needs the kind "sandwich"."""
        return self._of_each(_tic, "sandwich", "tic")

    def raise_if_failed(self) -> "BatchFit":
        """Return the batch if all converged; raise `FitError` naming those that did not, with the first one's diagnosis."""
        failed = np.flatnonzero(~self.converged)
        if not len(failed):
            return self
        named = ", ".join(map(str, failed[:10])) + (", …" if len(failed) > 10 else "")
        raise FitError(
            f"{len(failed)} of {len(self)} fits did not converge: {named}. Of {failed[0]}: {self[failed[0]].diagnosis()}"
        )

    def summary(self, kind: str | None = None) -> BatchSummary:
        """A report to print: how many ended how, the spread of steps, decrements and estimates, and the worst."""
        kind = (self.kinds[0] if self.kinds else "") if kind is None else kind
        errors = None
        if kind:
            errors = root_diagonals(matrices(self, kind, "summary"))
        return summarise(self.fits, self.attempt, ATTEMPTS, float(self.utilisation), kind, errors)

    def to_columns(self, kind: str | None = None) -> dict[str, np.ndarray]:
        """One array (B,) for each estimate, each standard error (`name standard error`) and each of `FACTS`.

        A parameter that has the name of a fact is called `parameter name`.
        """
        kind = (self.kinds[0] if self.kinds else "") if kind is None else kind
        theta = np.asarray(jax.vmap(self.fits.layout.join)(self.fits.values))
        labels = [f"parameter {name}" if name in FACTS else name for name in self.names]
        columns = {label: theta[:, k] for k, label in enumerate(labels)}
        if kind:
            errors = root_diagonals(matrices(self, kind, "to_columns"))
            columns |= {f"{label} standard error": errors[:, k] for k, label in enumerate(labels)}
        return columns | {fact: np.asarray(getattr(self, fact)) for fact in FACTS}

    def to_frame(self, kind: str | None = None) -> Any:
        """A pandas DataFrame with a row for each fit and the columns of `to_columns`, the status in words."""
        pd = require("pandas", "frames", "to_frame")
        frame = pd.DataFrame(self.to_columns(kind))
        labels = {int(status): status.label for status in Status}
        return frame.assign(
            status=frame["status"].map(labels).astype("category"),
            attempt=pd.Categorical.from_codes(frame["attempt"], ATTEMPTS),
        )

    def to_parquet(self, path: Any, kind: str | None = None) -> None:
        """Write the columns of `to_columns` to a Parquet file (needs the extra `stream`)."""
        pa, parquet = require("pyarrow", "stream", "to_parquet"), require("pyarrow.parquet", "stream", "to_parquet")
        parquet.write_table(pa.table(self.to_columns(kind)), path)

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    def _of_each(
        self,
        function: Callable[..., Any],
        kind: str,
        caller: str,
        *numbers: Any,
        warn: bool = True,
        stacklevel: int = 3,
    ) -> Any:
        self._check(kind, caller)
        if warn:
            self._warn(caller, stacklevel + 1)
        blocks = [_block(self.fits, start) for start in range(0, max(len(self), 1), BLOCK)]
        done = [jax.device_get(_mapped(function, kind, block, numbers)) for block, _ in blocks]
        parts = [jax.tree.map(lambda a, n=n: a[:n], part) for part, (_, n) in zip(done, blocks, strict=True)]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    def _warn(self, caller: str, stacklevel: int = 3) -> None:
        failed = int(np.sum(~self.converged))
        if failed:
            warnings.warn(
                f"{caller}: {failed} of {len(self)} fits did not converge, and theirs is not to be relied on. "
                "See `converged`, `status` and `summary()`.",
                FitWarning,
                stacklevel=stacklevel,
            )

    def _check(self, kind: str, caller: str) -> None:
        if kind in covariances.KINDS and kind not in self.kinds:
            kept = ", ".join(map(repr, self.kinds)) or "none"
            raise ValueError(
                f"{caller}: kind={kind!r} was not kept ({kept} was). Fit again with fit_batch(…, covariances=({kind!r},))."
            )
        covariances.check_kind(kind, has_expected=self.fits.expected is not None, caller=caller)


jax.tree_util.register_dataclass(
    BatchFit, data_fields=["fits", "attempt", "utilisation"], meta_fields=["kinds"], drop_fields=["origin"]
)


def batch_origin_of(fits: BatchFit, caller: str) -> BatchOrigin:
    """What the fits were made from; refused where it is not known."""
    if fits.origin is None:
        raise ValueError(
            f"{caller}: needs the data, which this batch does not have: it was made from a list of data sets, or went through "
            "a transformation. Fit data sets of one length together, or take each by itself."
        )
    return fits.origin


def joined_fits(parts: list[BatchFit], order: np.ndarray) -> BatchFit:
    """Several batches in one, in the order given."""
    fits = jax.tree.map(lambda *leaves: np.concatenate(leaves)[order], *(part.fits for part in parts))
    attempt = np.concatenate([part.attempt for part in parts])[order]
    utilisation = np.average([part.utilisation for part in parts], weights=[len(part) for part in parts])
    return BatchFit(fits, attempt, utilisation, parts[0].kinds)


def matrices(fits: BatchFit, kind: str, caller: str) -> np.ndarray:
    """Covariances (B, q, q) for where the status stands beside them: without a warning of fits that failed."""
    return fits._of_each(_covariance, kind, caller, warn=False)


def root_diagonals(matrices: np.ndarray) -> np.ndarray:
    """Standard errors (B, q) of covariances (B, q, q)."""
    return np.sqrt(np.diagonal(matrices, axis1=1, axis2=2))


def _block(fits: Fit, start: int) -> tuple[Fit, int]:
    """A block of fits of one size, its last filled up with the first of it, and how many there are."""
    part = jax.tree.map(lambda leaf: leaf[start : start + BLOCK], fits)
    count = len(part.status_code)
    if count == 0:
        return jax.tree.map(lambda leaf: np.zeros((BLOCK, *leaf.shape[1:]), leaf.dtype), part), 0
    return jax.tree.map(lambda leaf: leaf[np.where(np.arange(BLOCK) < count, np.arange(BLOCK), 0)], part), count


@functools.partial(jax.jit, static_argnums=(0, 1))
def _mapped(function: Callable[..., Any], kind: str, fits: Fit, numbers: tuple[Any, ...]) -> Any:
    """The method of one fit mapped over a block, compiled once for each kind."""
    return jax.vmap(lambda fit: function(fit, kind, *numbers))(fits)


def _covariance(fit: Fit, kind: str) -> Any:
    return fitted.flat_uncertainty(fit, kind)[0]


def _standard_errors(fit: Fit, kind: str) -> Any:
    return fit.layout.split(fitted.flat_uncertainty(fit, kind)[1], 0.0)


def _correlation(fit: Fit, kind: str) -> Any:
    return covariances.correlation(fitted.flat_uncertainty(fit, kind)[0])


def _within_range(fit: Fit, kind: str, level: Any) -> Any:
    return fitted.interval_leaves(fit, kind, "unconstrained", level)


def _symmetric(fit: Fit, kind: str, level: Any) -> Any:
    return fitted.interval_leaves(fit, kind, "natural", level)


_INTERVALS = {"unconstrained": _within_range, "natural": _symmetric}


def _tic(fit: Fit, kind: str) -> Any:
    return fitted.takeuchi(fit)


def _information(fit: Fit, kind: str) -> Any:
    return fit.information(kind).matrix
