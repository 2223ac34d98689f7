"""`bootstrap`: how an estimate varies from sample to sample, shown by fits of replicates of the data.

The nonparametric bootstrap replaces the unknown distribution by the observed one, the parametric bootstrap by the model at the
estimate; blocks of consecutive observations keep the dependence of a series (Künsch 1989). Intervals from replicates θ*_b are, with
quantiles q at (1 ∓ level)/2 (Efron and Tibshirani 1993, sections 13 and 14):

- percentile: q of θ*;
- basic: 2θ̂ − q, the percentile interval reflected about the estimate;
- BCa: quantiles at Φ(z₀ + (z₀ + z)/(1 − a(z₀ + z))), with z₀ = Φ⁻¹ of the fraction of replicates below the estimate, which corrects
  the median, and the acceleration a = Σ L³ / (6 (Σ L²)^{3/2}) of the influences L, which corrects the skewness.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from fisher_jax.errors import check_choice, check_count, check_flag, check_key, check_level, entry_point, require, warn
from fisher_jax.fitting.intervals import as_leaves
from fisher_jax.fitting.map_fits import check_fit, with_data
from fisher_jax.fitting.parameter_functions import OfParameters, Output, as_function, linearize, outline
from fisher_jax.fitting.result import Fit, origin_of
from fisher_jax.fitting.status import Status
from fisher_jax.inference.influence import influence_of_units
from fisher_jax.inference.replicates import (
    failures,
    num_units_of,
    refit_drawn,
    refit_each,
    refit_left_out,
    refit_left_out_of_each,
    refit_resampled,
    scheme_of,
    schemes_of,
)
from fisher_jax.models.auxiliary import AuxiliaryModel
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.model import Model
from fisher_jax.models.programs import ById
from fisher_jax.numerics.array_namespace import AnyArray
from fisher_jax.reporting import Report, Reported, ReportTable, in_fits, percent

METHODS = ("nonparametric", "parametric", "block", "circular block")
ACCELERATIONS = ("infinitesimal", "jackknife")
INTERVALS = ("percentile", "basic", "bca")

# Of params, or text that names parameters; None stands for all of them.
Function = str | Sequence[str] | Callable[[PyTree], PyTree] | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class Bootstrap(Reported):
    """Replicates of an estimate. It prints as a table.

    That of many fits has their leading axis F in every result, and ``len(replicates)``, ``replicates[3]`` and
    ``replicates[10:20]`` are as of a `Fit`. Results of a fit that did not converge are NaN.

    Attributes
    ----------
    fit : Fit
        The fit, or the fits, whose data were replicated.
    fits : Fit
        The fits of the replicates, those that failed included; of many fits those of the first, then of the second, and so on.
    unit_of : array (n,) or None
        The observation or cluster, from 0, to which each term of the log-likelihood belongs; None where these have no influence by
        themselves.
    copies : array (g,) or None
        How many equal observations each stands for.
    left_out : Fit or None
        The fits with each of these left out, of the jackknife's acceleration; in the order of `fits`.
    description : str
        How the replicates were drawn.
    """

    fit: Fit
    fits: Fit
    unit_of: Any
    copies: Any
    left_out: Fit | None
    description: str

    @functools.cached_property
    def influence(self) -> Float[np.ndarray, "*f g p"] | None:
        """Derivative of the unconstrained estimate with respect to the weight of each observation or cluster, for BCa intervals."""
        if self.unit_of is None:
            return None
        of_units = _InfluenceOfUnits(num_units_of(self.unit_of), self.copies is None)
        if self.fit.has_batch:
            return np.asarray(with_data(self.fit, of_units, (self.unit_of,)))
        return np.asarray(of_units(self.fit, *origin_of(self.fit), self.unit_of))

    @property
    def num_replicates(self) -> int:
        """B: how many replicates there are of each fit."""
        return len(self.fits) // (max(len(self.fit), 1) if self.fit.has_batch else 1)

    def __len__(self) -> int:
        return len(self.fit)

    def __bool__(self) -> bool:
        return True  # or Python would ask for the length

    def __getitem__(self, index: Any) -> "Bootstrap":
        fit = self.fit[index]  # which checks the index
        places = np.atleast_1d(np.arange(len(self))[index])

        def of_each(fits: Fit | None) -> Fit | None:
            if fits is None:
                return None
            count = len(fits) // len(self)
            return fits[(places[:, None] * count + np.arange(count)[None, :]).ravel()]

        copies = None if self.copies is None else np.asarray(self.copies)[index]
        return Bootstrap(fit, of_each(self.fits), self.unit_of, copies, of_each(self.left_out), self.description)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator["Bootstrap"]:
        return (self[k] for k in range(len(self)))

    @property
    def params(self) -> PyTree:
        """The replicates' estimates, a pytree like the fit's whose leaves have an axis B after those of the fits; see `valid`."""
        return self.fits.layout.assemble([self._of_each_fit(value) for value in self.fits.values])

    @property
    def valid(self) -> Bool[np.ndarray, "*f b"]:
        """Which replicates converged; only these enter any number."""
        return self._of_each_fit(self.fits.converged)

    @property
    def num_failed(self) -> Any:
        """How many replicates are left out: a number, or an array (F,) of them."""
        failed = np.sum(~self.valid, axis=-1)
        return failed if self.fit.has_batch else int(failed)

    def _of_each_fit(self, array: Any) -> Any:
        """An array with a leading axis over all replicates, with one over the fits before it where there are many."""
        return array.reshape(len(self.fit), -1, *array.shape[1:]) if self.fit.has_batch else array

    @property
    def notes(self) -> list[str]:
        """How many fits failed, by status, and what they are left out of; empty where none did."""
        fits, notes = self.fits, []
        if self.fit.has_batch and not np.all(self.fit.converged):
            converged = np.asarray(self.fit.converged)
            notes.append(f"{int(np.sum(~converged))} of {len(self)} fits did not converge and have no replicates.")
            fits = fits[np.repeat(converged, self.num_replicates)]
        groups = [(fits, "the replicates' fits", "every figure")]
        if self.left_out is not None:
            groups.append((self.left_out, "the fits with one left out", "the acceleration"))
        notes += [
            f"of {name} failed: {failures(fits)} of {len(fits)}. They are left out of {result}."
            for fits, name, result in groups
            if failures(fits)
        ]
        if np.any(np.asarray(fits.status_code) == Status.BOUNDARY):
            notes.append(
                "Those at a boundary had a parameter at the edge of its range, as a variance at zero: without them the "
                "distribution of its estimate is cut off there. profile_likelihood gives an interval that reaches to the edge."
            )
        return notes

    @entry_point
    def replicates(self, function: Function = None) -> Float[np.ndarray, "*f r k"]:
        """The parameters, or the numbers of a function of them, at every replicate that converged, in one row each.

        Of many fits all replicates (F, B, k), with NaN for those that did not converge.
        """
        rows = self._rows(function)
        return np.where(self.valid[..., None], rows, np.nan) if self.fit.has_batch else rows[self.valid]

    def _rows(self, function: Any) -> Float[np.ndarray, "*f b k"]:
        self._output(function)  # raises for what is no function of params
        return self._of_each_fit(np.asarray(_evaluate(self._of_fit(function), self.fits)))

    @entry_point
    def standard_errors(self, function: Function = None) -> PyTree:
        """Standard deviation over the replicates: a pytree like `params`, or as the function returns it."""
        return self._arrange(self._moments(function)[1], function)

    @entry_point
    def bias(self, function: Function = None) -> PyTree:
        """Mean of the replicates less the estimate, as for `standard_errors`."""
        return self._arrange(self._moments(function)[0], function)

    @entry_point
    def covariance(self, function: Function = None) -> Float[np.ndarray, "*f k k"]:
        """Covariance matrix over the replicates, in the order of `fit.names` or of the function's numbers."""
        return self._map(_covariance, function)

    def _map(self, of_one: Callable[..., np.ndarray], function: Any, *arrays: Any) -> np.ndarray:
        """`of_one(rows of replicates that converged, estimate, …)` of the fit, or of each."""
        rows, valid, estimate = self._rows(function), self.valid, self._estimate(function)
        if not self.fit.has_batch:
            return of_one(rows[valid], estimate, *arrays)
        if not len(self):
            raise ValueError("there are no fits in this batch.")
        each = zip(rows, valid, estimate, *arrays, strict=True)
        return np.stack([of_one(rows[valid], *others) for rows, valid, *others in each])

    def _moments(self, function: Any) -> tuple[Float[np.ndarray, "*f k"], Float[np.ndarray, "*f k"]]:
        """Bias and standard errors; NaN of fewer than two replicates."""
        both = self._map(_bias_and_errors, function)
        return both[..., 0, :], both[..., 1, :]

    @entry_point
    def confidence_intervals(
        self, level: float = 0.95, method: str = "percentile", function: Function = None
    ) -> PyTree:
        """Intervals: leaves like those of `params`, or of what the function returns, with a last axis of two.

        Parameters
        ----------
        level : float
            Coverage aimed at.
        method : {"percentile", "basic", "bca"}
            Quantiles of the replicates; these reflected about the estimate; or quantiles corrected for bias and skewness.
        function : callable, or str or sequence of str, optional
            ``function(params)`` returns a number, an array or a pytree of them. Or parameters by name, and linear combinations of
            them, as for `delta_method`.

        Returns
        -------
        pytree
            NaN of fewer than two replicates; and, with a `FitWarning`, where all replicates lie on one side of the estimate,
            or the acceleration is so large that the interval would run backwards: BCa does not exist there.
        """
        return self._arrange(self.flat_intervals(level, method, function), function, trailing=1)

    @entry_point
    def flat_intervals(
        self, level: float = 0.95, method: str = "percentile", function: Function = None
    ) -> Float[np.ndarray, "*f k 2"]:
        """The intervals in one column, in the order of `fit.names` or of the function's numbers."""
        check_level(level)
        check_choice(method, INTERVALS, "method")
        if method != "bca":
            return self._map(functools.partial(_quantile_intervals, level=float(level), method=method), function)
        acceleration = self._acceleration(function)
        ends = self._map(functools.partial(bca_intervals, level=float(level)), function, acceleration)
        missing = np.any(np.isnan(ends), axis=(-2, -1)) & (np.sum(self.valid, axis=-1) >= 2)
        if np.any(missing):
            warn(
                f"BCa does not exist{in_fits(missing)} where all replicates lie on one side of the estimate, or a few "
                "observations have nearly all the influence."
            )
        return ends

    def _acceleration(self, function: Any) -> Float[np.ndarray, "*f k"]:
        """Σ L³ / (6 (Σ L²)^{3/2}), each influence counted as often as it has copies; zero where none has any."""
        if self.left_out is None and self.influence is None:
            raise ValueError(
                'method="bca" needs the influence of observations by themselves, which blocks and data with an auxiliary '
                "measurement do not have. "
                'Use "percentile" or "basic".'
            )
        if self.left_out is not None:
            estimates = self._of_each_fit(np.asarray(_evaluate(self._of_fit(function), self.left_out)))
            converged = self._of_each_fit(self.left_out.converged)
            if not self.fit.has_batch:
                return _jackknife_acceleration(estimates, converged, self.copies)
            copies = [None] * len(self) if self.copies is None else self.copies
            return np.stack([_jackknife_acceleration(*one) for one in zip(estimates, converged, copies, strict=True)])
        slopes = np.asarray(_differentiate(self._of_fit(function), self.fit))
        influence = np.asarray(self.influence) @ np.swapaxes(slopes, -1, -2)
        if not self.fit.has_batch:
            return _acceleration_of(influence, self.copies)
        copies = [None] * len(self) if self.copies is None else self.copies
        return np.stack([_acceleration_of(*one) for one in zip(influence, copies, strict=True)])

    def _estimate(self, function: Function) -> Float[np.ndarray, "*f k"]:
        return np.asarray(_evaluate(self._of_fit(function), self.fit))

    def _output(self, function: Any) -> Output | None:
        return None if function is None else outline(as_function(function, self.fit, "function"), self.fit, "function")

    def _of_fit(self, function: Function) -> "OfFit":
        """The numbers of a function of params, as a function of a fit and u that is hashable: it is compiled once."""
        function = as_function(function, self.fit, "function")
        return _all_parameters if function is None else OfParameters(ById(function))

    def _arrange(self, flat: Float[np.ndarray, "..."], function: Function, *, trailing: int = 0) -> PyTree:
        """Numbers, or intervals with a trailing axis, laid out as the parameters or as the function returns them."""
        output, layout = self._output(function), self.fit.layout
        if output is not None:
            return output.arrange(flat, trailing=trailing)
        if not trailing:  # of a fixed parameter bias and standard error are zero, and both ends its value
            return layout.assemble(layout.split(flat, 0.0))
        return layout.assemble(as_leaves(layout, [np.asarray(value) for value in self.fit.values], flat))

    @entry_point
    def summary(self, level: float = 0.95, method: str = "percentile", function: Function = None) -> Report:
        """A table of estimate, bias, standard error and interval; of many fits of their medians."""
        output = self._output(function)
        names = self.fit.names if output is None else output.names
        ends = self.flat_intervals(level, method, function)
        columns = [self._estimate(function), *self._moments(function), ends[..., 0], ends[..., 1]]
        numbers, caption = np.stack(columns, axis=-1), ""
        facts = [("Replicates", f"{self.num_replicates}, {self.description}"), ("Intervals", method)]
        if self.fit.has_batch:
            caption = "medians over the fits that converged"
            facts.insert(0, ("Fits", f"{len(self)}, each with as many replicates"))
            converged = np.asarray(self.fit.converged)
            numbers = np.median(numbers[converged], axis=0) if np.any(converged) else np.full(numbers.shape[1:], np.nan)
        titles = (
            "parameter",
            "estimate",
            "bias",
            "std. error",
            *(f"{end} {percent(float(level))}" for end in ("lower", "upper")),
        )
        rows = [(name, *row) for name, row in zip(names, numbers, strict=True)]
        return Report("Bootstrap", facts, [ReportTable(titles, rows, caption)], self.notes)

    @entry_point
    def to_frame(self) -> Any:
        """The replicates that converged as a pandas DataFrame, a column for each parameter (needs the extra `frames`).

        Of many fits its index is `fit` and `replicate`.
        """
        pd = require("pandas", "frames")
        names = list(self.fit.names)
        if not self.fit.has_batch:
            return pd.DataFrame(self.replicates(), columns=names)
        valid = self.valid
        index = pd.MultiIndex.from_arrays(np.nonzero(valid), names=["fit", "replicate"])
        return pd.DataFrame(self._rows(None)[valid], columns=names, index=index)


@entry_point
def bootstrap(
    fit: Fit,
    key: Array,
    num_replicates: int = 2000,
    *,
    method: str = "nonparametric",
    clusters: Any = None,
    block_length: int | None = None,
    acceleration: str = "infinitesimal",
    devices: int | Sequence[jax.Device] | None = None,
    progress: bool = False,
) -> Bootstrap:
    """Fit many replicates of the data, each as `fit` would from the estimate, all in one batch.

    Parameters
    ----------
    fit : Fit
        As `fit` returned it; it must have converged. Or many, as `fit_batch` returned them: those that did not converge have no
        replicates, and their results are NaN.
    key : jax.random.key
        The same key draws the same samples, whatever the number of lanes; their estimates agree to rounding, since early calls in a
        process may run by another engine (see `fit_batch`). Of many fits the k-th is replicated with
        ``jax.random.fold_in(key, k)``, as it would be by itself with that key.
    num_replicates : int
        B, for each fit.
    method : {"nonparametric", "parametric", "block", "circular block"}
        Observations (or clusters) drawn with replacement; data drawn from the model at the estimate by its `sample`, for the
        same covariates; or blocks of consecutive observations, for data that depend on each other, which begin anywhere
        (and go round the end, if circular). For a `dependent` model a block is one of its terms, each with its own past.
    clusters : array (n,) or str, optional
        Which cluster each observation belongs to, the same in all fits, or the name of a column of the table that the fit comes
        from: whole clusters are drawn.
    block_length : int, optional
        Length of the blocks, needed by "block" and "circular block".
    acceleration : {"infinitesimal", "jackknife"}
        What BCa intervals take as the influence of each observation or cluster: the derivative of the estimate with respect
        to its weight, or what leaving it out changes, by a fit for each.
    devices, progress
        As for `fit_batch`.

    Returns
    -------
    Bootstrap
        The replicates, with standard errors, bias, covariance and intervals of parameters and of functions of them.
        Replicates whose fit failed are counted, reported with a `FitWarning`, and left out of these.

    Raises
    ------
    ValueError, TypeError
        If the fit did not converge or was made without its data, or the arguments do not fit together.

    Notes
    -----
    All but "parametric" keep the data as they are and draw how often each observation counts, so that only weights (B, n)
    are in memory, a chunk at a time; of many fits the replicates of some at a time are one batch. Frequency weights of the fit
    are taken as so many equal observations, and must be whole numbers.

    The nonparametric bootstrap is for independent observations or clusters, not for a `dependent` model. The parametric one
    needs `sample`; that of a dependent model must draw the whole series, ``sample(key, params)``. No bootstrap
    is right where the estimate lies on the boundary of its range.

    References
    ----------
    Efron, B. and Tibshirani, R. (1993), An Introduction to the Bootstrap, eqs (6.6), (14.10), (14.14), (14.15);
    Künsch, H. (1989), Ann. Statist. 17, 1217-1241, section 2, for blocks.

    Examples
    --------
    >>> import fisher_jax as fj, jax
    >>> y = fj.families.exponential.sample
    >>> data = jax.vmap(lambda key: y(key, {"rate": 2.0}))(jax.random.split(jax.random.key(1), 40))
    >>> fit = fj.fit(fj.families.exponential, {"rate": 1.0}, data)
    >>> replicates = fj.bootstrap(fit, jax.random.key(2), 500)
    >>> replicates.params["rate"].shape, replicates.confidence_intervals(0.9, "bca")["rate"].shape
    ((500,), (2,))
    """
    check_fit(fit)
    origin = origin_of(fit)
    check_key(key)
    check_flag(progress, "progress")
    check_choice(method, METHODS, "method")
    check_choice(acceleration, ACCELERATIONS, "acceleration")
    entries = max(fit.num_parameters, 1) * (max(len(fit), 1) if fit.has_batch else 1)
    count = check_count(num_replicates, 2, "num_replicates", entries=entries)
    if fit.has_batch and not np.any(fit.converged):
        raise ValueError("there is no fit in this batch that converged. See its `status` and `summary()`.")
    if not fit.has_batch and not fit.converged:
        raise ValueError(f"needs a fit that converged, for it starts each replicate there. {fit.diagnosis()}")
    fit._check("observed")
    if ("block" in method) != (block_length is not None):
        raise ValueError(
            f'block_length={block_length!r} with method={method!r}; give a length with "block" or "circular block", '
            "and with no other."
        )
    if "block" in method and acceleration == "jackknife":
        raise ValueError('acceleration="jackknife" leaves out observations one by one, which blocks do not allow.')
    if isinstance(origin.model, AuxiliaryModel):
        if origin.model.draw_auxiliary is None:
            raise ValueError(
                "the auxiliary measurement must be drawn anew for each replicate, or they would vary too little. Give "
                "with_auxiliary(…, sample=function(key, params)), one draw of it."
            )
        if acceleration == "jackknife":
            raise ValueError('acceleration="jackknife" leaves out observations, and the auxiliary measurement is none.')
    settings = {"covariances": (), "devices": devices, "progress": progress}
    # Blocks are not drawn term by term, the weight of a term of a series is not a count, and an auxiliary measurement has a part in
    # the spread that no observation has.
    has_influence = not (
        "block" in method
        or isinstance(origin.model, AuxiliaryModel)
        or (origin.model.is_dependent and origin.dataset.weights is not None)
    )
    description = method if block_length is None else f"{method}s of {block_length}"
    if fit.has_batch:
        many = method, clusters, block_length, count, acceleration
        fits, unit_of, copies, left_out = _replicate_many(fit, key, *many, settings)
    else:
        scheme = scheme_of(fit, origin, method, clusters, block_length)

        if method == "parametric":
            fits = refit_drawn(fit, origin, key, count, **settings)
        else:
            fits = refit_resampled(fit, origin, scheme, key, count, **settings)
        left_out = refit_left_out(fit, origin, scheme, **settings) if acceleration == "jackknife" else None
        unit_of, copies = scheme.unit_of, scheme.copies
    if clusters is not None:
        description = f"nonparametric, {num_units_of(unit_of)} clusters"
    replicates = Bootstrap(fit, fits, unit_of if has_influence else None, copies, left_out, description)
    if replicates.notes:
        warn(" ".join(replicates.notes))
    return replicates


def _replicate_many(
    fits: Fit,
    key: Array,
    method: str,
    clusters: Any,
    block_length: Any,
    count: int,
    acceleration: str,
    settings: dict[str, Any],
) -> tuple[Fit, Int[np.ndarray, " n"], Any, Fit | None]:
    """Of many fits: their replicates, the unit of each term, copies, and fits with one left out.

    Those that did not converge are passed over; in their place are fits of their status whose numbers are NaN.
    """
    schemes = schemes_of(fits, method, clusters, block_length)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jax.numpy.arange(len(fits)))
    converged = np.flatnonzero(np.asarray(fits.converged))
    some, its_schemes = fits[converged], schemes.take(converged)

    def filled(part: Fit | None) -> Fit | None:
        """With places for the fits that were passed over."""
        if part is None or len(converged) == len(fits):
            return part
        each = len(part) // len(converged)
        rows = (converged[:, None] * each + np.arange(each)[None, :]).ravel()

        def with_places(leaf: Any) -> np.ndarray:
            leaf = np.asarray(leaf)
            whole = np.full((len(fits) * each, *leaf.shape[1:]), np.nan if leaf.dtype.kind == "f" else 0, leaf.dtype)
            whole[rows] = leaf
            return whole

        whole = jax.tree.map(with_places, part)
        status = np.repeat(np.asarray(fits.status_code), each)
        status[rows] = np.asarray(part.status_code)
        return replace(whole, status_code=status, engine=part.engine)

    replicates = refit_each(some, its_schemes, keys[converged], count, method, **settings)
    left_out = refit_left_out_of_each(some, its_schemes, **settings) if acceleration == "jackknife" else None
    whole = filled(replicates)
    assert whole is not None
    return whole, schemes.shared.unit_of, schemes.copies, filled(left_out)


@dataclass(frozen=True)
class _InfluenceOfUnits:
    """`influence_of_units` of one fit and its data, of which many are mapped; weights multiply where they are no `copies`."""

    num_units: int
    is_weighted: bool

    def __call__(self, fit: Fit, model: Model, dataset: Dataset, unit_of: Int[AnyArray, " n"]) -> Float[Array, "g p"]:
        weights = dataset.weights if self.is_weighted else None
        return influence_of_units(model, self.num_units, fit, dataset, unit_of, weights)


def _covariance(rows: Float[np.ndarray, "r k"], _: Float[np.ndarray, " k"]) -> Float[np.ndarray, "k k"]:
    if len(rows) < 2:
        return np.full((rows.shape[1],) * 2, np.nan)
    deviations = rows - np.mean(rows, axis=0)
    return deviations.T @ deviations / (len(rows) - 1)


def _bias_and_errors(rows: Float[np.ndarray, "r k"], estimate: Float[np.ndarray, " k"]) -> Float[np.ndarray, "2 k"]:
    if len(rows) < 2:
        return np.full((2, len(estimate)), np.nan)
    return np.stack([np.mean(rows, axis=0) - estimate, np.std(rows, axis=0, ddof=1)])


def _quantile_intervals(
    rows: Float[np.ndarray, "r k"], estimate: Float[np.ndarray, " k"], *, level: float, method: str
) -> Float[np.ndarray, "k 2"]:
    """Percentile intervals, or basic ones: these reflected about the estimate."""
    if len(rows) < 2:
        return np.full((len(estimate), 2), np.nan)
    tail = 0.5 * (1.0 - level)
    ends = np.quantile(rows, [tail, 1.0 - tail], axis=0).T
    return ends if method == "percentile" else 2.0 * estimate[:, None] - ends[:, ::-1]


def _jackknife_acceleration(
    estimates: Float[np.ndarray, "g k"], converged: Bool[np.ndarray, " g"], copies: Int[np.ndarray, " g"] | None
) -> Float[np.ndarray, " k"]:
    """The influence is the mean of the estimates with one left out, less each."""
    estimates, copies = estimates[converged], None if copies is None else copies[converged]
    if not len(estimates):
        return np.full(estimates.shape[1], np.nan)
    return _acceleration_of(np.average(estimates, axis=0, weights=copies) - estimates, copies)


def _acceleration_of(
    influence: Float[np.ndarray, "g k"], copies: Int[np.ndarray, " g"] | None
) -> Float[np.ndarray, " k"]:
    copies = np.ones(len(influence), int) if copies is None else copies
    squares, cubes = copies @ influence**2, copies @ influence**3
    return np.where(squares > 0, cubes / (6.0 * np.where(squares > 0, squares, 1.0) ** 1.5), 0.0)


def bca_intervals(
    replicates: Float[np.ndarray, "r k"],
    estimate: Float[np.ndarray, " k"],
    acceleration: Float[np.ndarray, " k"],
    level: float,
) -> Float[np.ndarray, "k 2"]:
    """Bias-corrected and accelerated intervals of each column.

    NaN of fewer than two replicates, where z₀ is infinite, or where 1 − a(z₀ + z) is not positive, past which the quantiles
    run backwards.
    """
    if len(replicates) < 2:
        return np.full((len(estimate), 2), np.nan)
    from scipy.special import ndtr, ndtri  # takes as long to import as half of JAX

    z = ndtri(0.5 * (1.0 + np.array([-1.0, 1.0]) * float(level)))
    ends = np.full((len(estimate), 2), np.nan)
    for k, value in enumerate(estimate):
        column = replicates[:, k]
        # Replicates equal to the estimate count half: of discrete data many are.
        bias = ndtri(0.5 * (np.mean(column < value) + np.mean(column <= value)))
        shifted = bias + z
        if np.isfinite(bias) and np.all(acceleration[k] * shifted < 1.0):
            ends[k] = np.quantile(column, ndtr(bias + shifted / (1.0 - acceleration[k] * shifted)))
    return ends


OfFit = Callable[[Fit, Float[Array, " p"]], Float[Array, " k"]]


def _all_parameters(fit: Fit, free: Float[Array, " p"]) -> Float[Array, " q"]:
    return fit.layout.join(fit.layout.constrained_values(free, fit.values))


@functools.partial(jax.jit, static_argnums=0)
def _evaluate(function: OfFit, fit: Fit) -> Float[Array, "*b k"]:
    """Of one fit or of many."""
    if fit.has_batch:
        return jax.vmap(lambda fit: function(fit, fit.free))(fit)
    return function(fit, fit.free)


@functools.partial(jax.jit, static_argnums=0)
def _differentiate(function: OfFit, fit: Fit) -> Float[Array, "*b k p"]:
    def of_one(fit: Fit) -> Float[Array, "k p"]:
        return linearize(function, fit)[1]

    return (jax.vmap(of_one) if fit.has_batch else of_one)(fit)
