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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from fisher_jax.errors import check_choice, check_count, check_flag, check_key, check_level, entry_point, require, warn
from fisher_jax.fitting import workers
from fisher_jax.fitting.intervals import as_leaves
from fisher_jax.fitting.map_fits import check_fit
from fisher_jax.fitting.parameter_functions import OfParameters, Output, as_function, linearize, outline
from fisher_jax.fitting.result import Fit, origin_of
from fisher_jax.inference.influence import influence_of_units
from fisher_jax.inference.replicates import failures, refit_drawn, refit_left_out, refit_resampled, scheme_of
from fisher_jax.models.auxiliary import AuxiliaryModel
from fisher_jax.models.programs import ById
from fisher_jax.reporting import Report, Reported, Table, percent

METHODS = ("nonparametric", "parametric", "block", "circular block")
ACCELERATIONS = ("infinitesimal", "jackknife")
INTERVALS = ("percentile", "basic", "bca")

# Of params, or text that names parameters; None stands for all of them.
Function = str | Sequence[str] | Callable[[PyTree], PyTree] | None


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
        The fits with each of these left out, of the jackknife's acceleration.
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
        """The replicates' estimates, a pytree like the fit's whose leaves have a leading axis B; see `valid`."""
        return self.fits.params

    @property
    def valid(self) -> Bool[np.ndarray, " b"]:
        """Which replicates converged; only these enter any number."""
        return self.fits.converged

    @property
    def num_failed(self) -> int:
        """How many replicates are left out."""
        return int(np.sum(~self.valid))

    @property
    def notes(self) -> list[str]:
        """How many fits failed, by status, and what they are left out of; empty where none did."""
        groups = [(self.fits, "the replicates' fits", "every figure")]
        if self.left_out is not None:
            groups.append((self.left_out, "the fits with one left out", "the acceleration"))
        return [
            f"of {name} failed: {failures(fits)} of {len(fits)}. They are left out of {result}."
            for fits, name, result in groups
            if failures(fits)
        ]

    @entry_point
    def replicates(self, function: Function = None) -> Float[np.ndarray, "r k"]:
        """The parameters, or the numbers of a function of them, at every replicate that converged, in one row each."""
        self._output(function)  # raises for what is no function of params
        return np.asarray(_evaluate(self._of_fit(function), self.fits))[self.valid]

    @entry_point
    def standard_errors(self, function: Function = None) -> PyTree:
        """Standard deviation over the replicates: a pytree like `params`, or as the function returns it."""
        return self._arrange(self._moments(function)[1], function)

    @entry_point
    def bias(self, function: Function = None) -> PyTree:
        """Mean of the replicates less the estimate, as for `standard_errors`."""
        return self._arrange(self._moments(function)[0], function)

    @entry_point
    def covariance(self, function: Function = None) -> Float[np.ndarray, "k k"]:
        """Covariance matrix over the replicates, in the order of `fit.names` or of the function's numbers."""
        rows = self.replicates(function)
        if len(rows) < 2:
            return np.full((rows.shape[1],) * 2, np.nan)
        deviations = rows - np.mean(rows, axis=0)
        return deviations.T @ deviations / (len(rows) - 1)

    def _moments(self, function: Function) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
        """Bias and standard errors; NaN of fewer than two replicates."""
        rows, estimate = self.replicates(function), self._estimate(function)
        if len(rows) < 2:
            return np.full_like(estimate, np.nan), np.full_like(estimate, np.nan)
        return np.mean(rows, axis=0) - estimate, np.std(rows, axis=0, ddof=1)

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
        return self._arrange(self.flat_intervals(level, method, function), function)

    @entry_point
    def flat_intervals(
        self, level: float = 0.95, method: str = "percentile", function: Function = None
    ) -> Float[np.ndarray, "k 2"]:
        """The intervals in one column, in the order of `fit.names` or of the function's numbers."""
        check_level(level)
        check_choice(method, INTERVALS, "method")
        rows, estimate = self.replicates(function), self._estimate(function)
        if len(rows) < 2:
            return np.full((len(estimate), 2), np.nan)
        if method == "bca":
            ends = bca_intervals(rows, estimate, self._acceleration(function), float(level))
            if np.any(np.isnan(ends)):
                warn(
                    "BCa does not exist where all replicates lie on one side of the estimate, or a few "
                    "observations have nearly all the influence."
                )
            return ends
        tail = 0.5 * (1.0 - float(level))
        ends = np.quantile(rows, [tail, 1.0 - tail], axis=0).T
        return ends if method == "percentile" else 2.0 * estimate[:, None] - ends[:, ::-1]

    def _acceleration(self, function: Function) -> Float[np.ndarray, " k"]:
        """Σ L³ / (6 (Σ L²)^{3/2}), each influence counted as often as it has copies; zero where none has any."""
        copies = self.copies
        if self.left_out is not None:  # the jackknife: the mean of the estimates with one left out, less each
            converged = self.left_out.converged
            estimates = np.asarray(_evaluate(self._of_fit(function), self.left_out))[converged]
            copies = None if copies is None else copies[converged]
            influence = np.average(estimates, axis=0, weights=copies) - estimates
        elif self.influence is None:
            raise ValueError(
                'method="bca" needs the influence of observations by themselves, which blocks and data with an auxiliary '
                "measurement do not have. "
                'Use "percentile" or "basic".'
            )
        else:
            influence = np.asarray(self.influence) @ np.asarray(_differentiate(self._of_fit(function), self.fit)).T
        copies = np.ones(len(influence)) if copies is None else copies
        squares, cubes = copies @ influence**2, copies @ influence**3
        return np.where(squares > 0, cubes / (6.0 * np.where(squares > 0, squares, 1.0) ** 1.5), 0.0)

    def _estimate(self, function: Function) -> Float[np.ndarray, " k"]:
        return np.asarray(_evaluate(self._of_fit(function), self.fit))

    def _output(self, function: Any) -> Output | None:
        return None if function is None else outline(as_function(function, self.fit, "function"), self.fit, "function")

    def _of_fit(self, function: Function) -> "OfFit":
        return _of_fit(as_function(function, self.fit, "function"))

    def _arrange(self, flat: Float[np.ndarray, "k *ends"], function: Function) -> PyTree:
        """Numbers, or intervals, in one column laid out as the parameters or as the function returns them."""
        output, layout = self._output(function), self.fit.layout
        if output is not None:
            return output.arrange(flat, trailing=flat.ndim - 1)
        if flat.ndim == 1:  # of a fixed parameter bias and standard error are zero, and both ends its value
            return layout.assemble(layout.split(flat, 0.0))
        return layout.assemble(as_leaves(layout, [np.asarray(value) for value in self.fit.values], flat))

    @entry_point
    def summary(self, level: float = 0.95, method: str = "percentile", function: Function = None) -> Report:
        """A table of estimate, bias, standard error and interval."""
        output = self._output(function)
        names = self.fit.names if output is None else output.names
        ends = self.flat_intervals(level, method, function)
        numbers = np.column_stack([self._estimate(function), *self._moments(function), ends])
        titles = (
            "parameter",
            "estimate",
            "bias",
            "std. error",
            *(f"{end} {percent(float(level))}" for end in ("lower", "upper")),
        )
        facts = [("Replicates", f"{len(self.fits)}, {self.description}"), ("Intervals", method)]
        rows = [(name, *row) for name, row in zip(names, numbers, strict=True)]
        return Report("Bootstrap", facts, [Table(titles, rows)], self.notes)

    @entry_point
    def to_frame(self) -> Any:
        """The replicates that converged as a pandas DataFrame, a column for each parameter (needs the extra `frames`)."""
        return require("pandas", "frames").DataFrame(self.replicates(), columns=list(self.fit.names))


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
    devices: Any = None,
    progress: bool = False,
) -> Bootstrap:
    """Fit many replicates of the data, each as `fit` would from the estimate, all in one batch.

    Parameters
    ----------
    fit : Fit
        As `fit` returned it; it must have converged.
    key : jax.random.key
        The same key gives the same replicates, whatever the number of lanes.
    num_replicates : int
        B.
    method : {"nonparametric", "parametric", "block", "circular block"}
        Observations (or clusters) drawn with replacement; data drawn from the model at the estimate by its `sample`, for the
        same covariates; or blocks of consecutive observations, for data that depend on each other, which begin anywhere
        (and go round the end, if circular). For a `dependent` model a block is one of its terms, each with its own past.
    clusters : array (n,), optional
        Which cluster each observation belongs to: whole clusters are drawn.
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
    are in memory, a chunk at a time. Frequency weights of the fit are taken as so many equal observations, and must be whole
    numbers.

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
    if fit.has_batch:
        raise TypeError("takes one fit, which it makes a batch of. Take each of yours by itself, as fits[3].")
    origin = origin_of(fit)
    check_key(key)
    check_flag(progress, "progress")
    check_choice(method, METHODS, "method")
    check_choice(acceleration, ACCELERATIONS, "acceleration")
    count = check_count(num_replicates, 2, "num_replicates", entries=fit.num_parameters)
    if not fit.converged:
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
    scheme = scheme_of(fit, origin, method, clusters, block_length)
    settings = {"covariances": (), "devices": devices, "progress": progress}

    def refits() -> Fit:
        if method == "parametric":
            return refit_drawn(fit, origin, key, count, **settings)
        return refit_resampled(fit, origin, scheme, key, count, **settings)

    def influence() -> Float[np.ndarray, "g p"] | None:
        # Blocks are not drawn term by term, the weight of a term of a series is not a count, and an auxiliary measurement has a
        # part in the spread that no observation has.
        if (
            "block" in method
            or isinstance(origin.model, AuxiliaryModel)
            or (origin.model.is_dependent and origin.dataset.weights is not None)
        ):
            return None
        units = scheme.num_units, fit, origin.dataset, scheme.unit_of, scheme.weights
        return np.asarray(influence_of_units(origin.model, *units))

    # One compiles its program while the other runs.
    fits, influences = workers.side_by_side(refits, influence)
    left_out = None
    if acceleration == "jackknife":
        left_out = refit_left_out(fit, origin, scheme, **settings)
    description = method if block_length is None else f"{method}s of {block_length}"
    if clusters is not None:
        description = f"nonparametric, {scheme.num_units} clusters"
    replicates = Bootstrap(fit, fits, influences, scheme.copies, left_out, description)
    if replicates.notes:
        warn(" ".join(replicates.notes))
    return replicates


def bca_intervals(
    replicates: Float[np.ndarray, "r k"],
    estimate: Float[np.ndarray, " k"],
    acceleration: Float[np.ndarray, " k"],
    level: float,
) -> Float[np.ndarray, "k 2"]:
    """Bias-corrected and accelerated intervals of each column.

    NaN where z₀ is infinite, or where 1 − a(z₀ + z) is not positive, past which the quantiles run backwards.
    """
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


def _of_fit(function: Function) -> OfFit:
    """The numbers of a function of params, as a function of a fit and u that is hashable: it is compiled once."""
    return _all_parameters if function is None else OfParameters(ById(function))


@functools.partial(jax.jit, static_argnums=0)
def _evaluate(function: OfFit, fit: Fit) -> Float[Array, "*b k"]:
    """Of one fit or of many."""
    if fit.has_batch:
        return jax.vmap(lambda fit: function(fit, fit.free))(fit)
    return function(fit, fit.free)


@functools.partial(jax.jit, static_argnums=0)
def _differentiate(function: OfFit, fit: Fit) -> Float[Array, "k p"]:
    return linearize(function, fit)[1]
