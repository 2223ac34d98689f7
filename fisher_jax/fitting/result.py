"""`Fit`: the result of one fit or of many, and what follows from it without the data."""

import functools
import operator
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from fisher_jax.errors import FitError, check_choice, entry_point, require, warn
from fisher_jax.fitting import covariance as covariances
from fisher_jax.fitting import intervals
from fisher_jax.fitting.covariance import KINDS, CovarianceKind
from fisher_jax.fitting.intervals import IntervalMethod, Scale, zero_test
from fisher_jax.fitting.normal_approximation import NormalApproximation
from fisher_jax.fitting.status import ROUNDING_LIMIT, Status
from fisher_jax.fitting.summary import (
    AT_EDGE,
    ATTEMPTS,
    FIXED,
    Row,
    batch_report,
    edge_in_words,
    entries_at_edge,
    escaping,
    fit_report,
    weakest,
)
from fisher_jax.information import Information
from fisher_jax.models.dataset import Dataset, parts_of, rows_of_parts
from fisher_jax.models.likelihood import gradient_at, likelihood
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.prior import counts_once, describe_prior, is_of_expected, log_prior
from fisher_jax.models.programs import jit_with_model
from fisher_jax.models.travel import check_precision
from fisher_jax.numerics.array_namespace import AnyArray, is_traced, namespace, on_host
from fisher_jax.numerics.differentiate import each_at
from fisher_jax.optimizers.newton import Kind
from fisher_jax.reporting import Report

if TYPE_CHECKING:
    import pandas as pd

NO_MAXIMUM = (
    "There are no standard errors, intervals and Wald tests of a point that is no certified maximum: they are NaN. "
    "covariance(require_maximum=False) gives the inverse information there all the same."
)
IRREGULAR = (
    "The Fisher information of the model is not finite at the estimate, as that of an extreme-value distribution with a shape "
    "of -1/2 or less: the estimate is not asymptotically normal there, and standard errors, Wald intervals and chi-squared "
    "tests have no theory to rest on (Smith 1985, Biometrika 72, 67-90). sampling_distribution shows how it varies."
)
NOT_IN_MEMORY = (
    "needs the data in memory, but those of this fit are in {where}. Of such a fit there are covariances of every kind, Wald "
    "intervals and tests, and for data read in blocks robust by clusters, profile_likelihood and influence. For the rest fit a "
    "part of the rows as arrays, or all where they fit into memory."
)
FACTS = ("log_likelihood", "decrement", "num_steps", "num_observations", "status", "attempt")
BLOCK = 2**14  # fits that a method works on at once, so that what it holds meanwhile stays small


class Origin(NamedTuple):
    """The model and the data of fits, for what needs them: profiles, clusters, influence, the bootstrap."""

    model: Model
    dataset: Dataset


@dataclass(frozen=True, eq=False)
class SourceOrigin:
    """In place of `Origin`, the model and the rows of a fit whose data are not in memory.

    Attributes
    ----------
    model : Model
    rows : RowSource or None
        What the data are read from; None where they lie on several devices.
    description : str
        Where the data are, in words.
    num_rows, num_blocks, num_passes : int
        How many rows there are, in how many blocks they were read, and how often.
    strength : tuple, or None
        That of the model's prior, as in `Dataset`.
    """

    model: Model
    rows: Any
    description: str
    num_rows: int
    num_blocks: int
    num_passes: int
    strength: tuple[Any, ...] | None = None

    @property
    def dataset(self) -> Dataset:
        """Raises: there is no data set in memory."""
        raise ValueError(NOT_IN_MEMORY.format(where=self.description))


class Optimum(NamedTuple):
    """A local maximum: the parameters there, its log-likelihood in nats, and from how many starts it was reached."""

    params: PyTree
    log_likelihood: float
    num_starts: int


@dataclass(frozen=True, eq=False, repr=False)
class Fit:
    """Maximum-likelihood fits, one or many: the estimates, how far to trust them, and what their uncertainty needs.

    Many fits, made by `fit_batch` or by `jax.vmap` of `fit`, have a leading axis of length B in every array, called *b below,
    and so have the results of all methods. They have a length, and ``fits[3]`` is one `Fit`, ``fits[mask]`` and ``fits[10:20]``
    are many. A fit that failed keeps its numbers, so look at `status` or `converged` first.

    Attributes
    ----------
    values : list of arrays
        The array leaves of `params`.
    log_likelihood : array (*b)
        ℓ at the estimate in nats, total over the data.
    status_code : integer array (*b)
        The code of the `Status`.
    num_steps : integer array (*b)
        Updates that the optimiser made after looking at the start, those it took back included; in a batch those of the attempt
        that gave the result, with those of a finish in float64.
    decrement : array (*b)
        sqrt(gᵀ J⁻¹ g) with total gradient g and observed curvature J: the distance to the maximum in standard errors;
        infinite where J is not positive definite.
    num_observations : array (*b)
        n: the number of log-density terms, or the sum of the weights.
    free : array (*b, p)
        The estimate on the unconstrained scale, u.
    curvature, outer_product : arrays (*b, p, p), or None where no kind in `kinds` needs them
        −∇²ℓ and Σ wᵢ sᵢ sᵢᵀ with respect to u, totals.
    expected : array (*b, q, q) or None
        n I(θ) in the user's parametrisation where the model has a closed form.
    suspect : integer array (*b)
        Index of the first observation whose log-density or score is not finite; −1 where there is none.
    last_step : array (*b, p)
        The last full Newton step in u: where a fit that ran to infinity was heading.
    attempt : integer array (*b)
        Which attempt of `fit_batch` gave the result: 0 as asked, 1 stronger damping, 2 another start, 3 float64.
    kinds : tuple of str
        The kinds of covariance that can be computed from it.
    engine : str
        How the fit was run: "host" and "rows" (steps on the host), "source" and "devices" (the same, over rows that are read in
        blocks or lie on several devices), "loop", "kernel", "arrays", "lock-step"; empty after a transformation.
    origin : Origin, SourceOrigin or None
        The model and the data, or where they are read from. No part of the pytree: None once the fit has passed through a
        transformation; and None where the data sets came as a list.
    optima : tuple of Optimum
        Of a fit from several starts: every certified maximum that was reached, the highest first. No part of the pytree.
    num_masked : integer array (*b), or None where nothing is masked
        How many rows are left out because one of their entries is masked or missing.
    log_prior, prior : array (*b) or None, and str
        Of a penalised fit, the log-density of the prior at the estimate, in nats, and the prior in words. `log_likelihood` and the
        information criteria are without it; the curvature, the decrement and the status are with it.
    labels : array (B,), or None
        The labels of the groups that ``fit_batch(…, by=…)`` fitted; one label of one of them. No part of the pytree.
    meat, robust : array (*b, p, p) or None, and str
        `robust`'s estimate of the covariance of the total score, in place of `outer_product`, and its description.

    Notes
    -----
    A pytree: a function that returns a fit can be jitted and vmapped. Numbers of a finished fit are computed by numpy and
    compile nothing; under a transformation the same formulas are traced.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> from jax.scipy.stats import poisson
    >>> fit = fj.fit(lambda rate, y: poisson.logpmf(y, rate), 1.0, jnp.array([2, 4, 3]))
    >>> fit.status
    <Status.CONVERGED: 0>
    >>> print(f"{fit.params:.3f} ± {fit.standard_errors():.3f}")
    3.000 ± 1.000

    Many at once:

    >>> counts = jnp.array([[2, 4, 3], [0, 1, 2]])
    >>> fits = fj.fit_batch(lambda rate, y: poisson.logpmf(y, rate), 1.0, counts)
    >>> print(fits.params.round(3), fits.standard_errors().round(3), fits.converged)
    [3. 1.] [1.    0.577] [ True  True]
    """

    values: Values
    log_likelihood: Float[AnyArray, "*b"]
    status_code: Int[AnyArray, "*b"]
    num_steps: Int[AnyArray, "*b"]
    decrement: Float[AnyArray, "*b"]
    num_observations: Float[AnyArray, "*b"]
    free: Float[AnyArray, "*b p"]
    curvature: Float[AnyArray, "*b p p"] | None
    outer_product: Float[AnyArray, "*b p p"] | None
    expected: Float[AnyArray, "*b q q"] | None
    suspect: Int[AnyArray, "*b"]
    last_step: Float[AnyArray, "*b p"]
    attempt: Int[AnyArray, "*b"]
    layout: Layout
    kinds: tuple[str, ...] = KINDS
    engine: str = ""
    origin: Origin | SourceOrigin | None = None
    optima: tuple[Optimum, ...] = ()
    meat: Float[AnyArray, "*b p p"] | None = None
    robust: str = ""
    num_masked: Int[AnyArray, "*b"] | None = None
    log_prior: Float[AnyArray, "*b"] | None = None
    prior: str = ""
    labels: Any = None

    @property
    def has_batch(self) -> bool:
        """Whether these are many fits, with a leading axis."""
        return bool(np.ndim(self.status_code))

    def __len__(self) -> int:
        if not self.has_batch:
            raise TypeError("this is one fit, without a batch axis, and has no length.")
        return len(self.status_code)

    def __bool__(self) -> bool:
        return True  # or Python would ask for the length

    def __getitem__(self, index: Any) -> "Fit":
        if not self.has_batch:
            raise TypeError("this is one fit, without a batch axis, and cannot be indexed.")
        if isinstance(index, str):
            places = np.flatnonzero(np.zeros(0) if self.labels is None else self.labels.astype(str) == index)
            if len(places) != 1:
                raise IndexError(f"fits[{index!r}]: there is no group of this label. `labels` lists them.")
            index = int(places[0])
        if isinstance(index, bool):
            raise IndexError(f"fits[{index}]: give a number, a slice, or an array of numbers or of truths (B,).")
        one = not isinstance(index, slice) and np.ndim(index) == 0
        if one:
            index = operator.index(index)
            if not -len(self) <= index < len(self):
                raise IndexError(f"fits[{index}]: there are {len(self)} fits.")
        else:
            index = index if isinstance(index, slice) else np.asarray(index)
        labels = None if self.labels is None else self.labels[index]
        fits = replace(jax.tree.map(lambda leaf: leaf[index], on_host(self)), engine=self.engine, labels=labels)
        if self.origin is None:
            return fits
        dataset = self.origin.dataset
        return replace(fits, origin=Origin(self.origin.model, dataset.one(index) if one else dataset.take(index)))

    def __iter__(self) -> Iterator["Fit"]:
        return (self[k] for k in range(len(self)))

    @property
    def params(self) -> PyTree:
        """The estimate, a pytree like the starting parameters."""
        return self.layout.assemble(self.values)

    @property
    def penalized_log_likelihood(self) -> Float[AnyArray, "*b"]:
        """What was maximised, in nats: the log-likelihood and the log-density of the prior, if there is one."""
        return self.log_likelihood if self.log_prior is None else self.log_likelihood + self.log_prior

    @property
    def status(self) -> Any:
        """The `Status`; under a transformation, or of many fits, the array of codes."""
        if is_traced(self.status_code):
            return self.status_code
        return np.asarray(self.status_code) if self.has_batch else Status(int(self.status_code))

    @property
    def converged(self) -> Any:
        """Whether the estimate is a certified local maximum; of many fits an array (B,) of truths."""
        status = self.status
        return status.converged if isinstance(status, Status) else status <= Status.CONVERGED_TO_ROUNDING

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the q estimated entries in the order of rows and columns of every matrix, that of the start."""
        return self.layout.names

    @property
    def num_parameters(self) -> int:
        """p: the number of free parameters, constraints taken into account."""
        return self.layout.num_free

    @entry_point
    def part(self, name: str) -> "Fit":
        """Of the fit of a joint model, the same estimate and covariance beside the model and the data of one part.

        For what looks at rows: `predict`, `residuals`, `predictive_scores`. What fits again takes the joint fit.

        Examples
        --------
        >>> import fisher_jax as fj
        >>> models = {"old": fj.families.normal, "new": fj.families.normal}
        >>> fit = fj.joint_fit(models, None, {"old": [4.0, 7.0, 5.5, 6.5], "new": [5.1, 5.3, 5.2]}, shared="loc")
        >>> print(f"{fj.predict(fit.part('new')).estimate[0]:.2f}")
        5.20
        """
        origin = origin_of(self)
        if not origin.model.parts:
            raise ValueError("the fit is of one data set, and parts are those of a model made by joint.")
        check_choice(name, tuple(origin.model.parts), "name")
        if self.has_batch:
            raise ValueError("a part is that of one fit. Take one by fits[k].part(…).")
        parts = dict(zip(origin.model.parts, parts_of(*origin, origin.dataset.weights), strict=True))
        model, dataset = parts[name]
        count = rows_of_parts(origin.model, origin.dataset.data)[name]
        total = count if dataset.weights is None else np.sum(dataset.weights)
        return replace(self, origin=Origin(model, dataset), num_observations=np.asarray(total, self.layout.dtype))

    @entry_point
    def covariance(
        self, kind: CovarianceKind | None = None, *, require_maximum: bool = True, labels: bool = False
    ) -> "Float[AnyArray, '*b q q'] | pd.DataFrame":
        """Covariance matrix of the estimate, in the user's own parametrisation.

        Parameters
        ----------
        kind : {"observed", "expected", "empirical", "sandwich"}, optional
            Inverse of minus the Hessian; of n times the Fisher information; of the summed outer products of scores; or
            White's robust H⁻¹ (Σ s sᵀ) H⁻¹, without a small-sample factor; see `robust` for other middles. By default what the
            fit was asked for: "sandwich" if it was made by `robust`, else the first of `kinds`, "observed" for `fit`. Of a
            penalised fit the Hessian is that of the penalised log-likelihood, and the Fisher information has that of the prior
            added (not for `priors.jeffreys`); the scores are those of observations.
        require_maximum : bool
            Give NaN where the fit did not converge, since an inverse information is a covariance at a maximum only. False
            gives it wherever the fit ended.
        labels : bool
            Of one fit, give a pandas DataFrame with the names on both axes (needs the extra `frames`).

        Returns
        -------
        array (*b, q, q), or DataFrame
            In the order of `names`; float64 where x64 is enabled. Singular where a constraint ties entries together (a
            simplex). NaN where the fit did not converge, or the information is not positive definite or not finite.

        Warns
        -----
        FitWarning
            Why there is none; and where the model's Fisher information is not finite at the estimate (if the fit has it), so
            that the estimate is not asymptotically normal.

        Raises
        ------
        ValueError
            If the kind is unknown or not in `kinds`, or is "expected" and the model has no closed form of its information.
        """
        kind = self._check(kind)
        matrix = self._computed(covariances.covariance, kind, require_maximum)
        self._warn(kind, matrix.diagonal(axis1=-2, axis2=-1))
        return self._with_names(matrix) if labels else matrix

    @entry_point
    def standard_errors(self, kind: CovarianceKind | None = None, *, require_maximum: bool = True) -> PyTree:
        """Standard errors, a pytree like `params`; zero for `fixed` parameters. Arguments as for `covariance`."""
        kind = self._check(kind)
        errors = self._computed(covariances.standard_errors, kind, require_maximum)
        self._warn(kind, errors)
        return self.layout.assemble(self.layout.split(errors, 0.0))

    @entry_point
    def correlation(
        self, kind: CovarianceKind | None = None, *, require_maximum: bool = True, labels: bool = False
    ) -> "Float[AnyArray, '*b q q'] | pd.DataFrame":
        """Correlation matrix of the estimate, in the order of `names`. Arguments as for `covariance`."""
        kind = self._check(kind)
        matrix = self._computed(covariances.correlation, kind, require_maximum)
        self._warn(kind, matrix.diagonal(axis1=-2, axis2=-1))
        return self._with_names(matrix) if labels else matrix

    @entry_point
    def confidence_intervals(
        self,
        kind: CovarianceKind | None = None,
        *,
        level: float | Array = 0.95,
        method: IntervalMethod = "wald",
        scale: Scale = "unconstrained",
        require_maximum: bool = True,
    ) -> PyTree:
        """Confidence intervals: a pytree like `params` whose leaves gain a last axis of two, lower and upper.

        Parameters
        ----------
        kind : str, optional
            The covariance of Wald intervals, as for `covariance`.
        level : float
            Coverage aimed at, between 0 and 1.
        method : {"wald", "profile"}
            From the standard errors, or from the profile likelihood of each entry (see `profile_likelihood`, which gives more).
        scale : {"unconstrained", "natural"}
            Wald intervals are made on the scale of the constraint (such as the logarithm of a positive parameter) and mapped
            back, so that they stay within the range; ``"natural"`` gives the symmetric textbook interval.
        require_maximum : bool
            As for `covariance`: Wald intervals of a fit that did not converge are NaN. Profiles are followed from wherever it
            ended.

        Returns
        -------
        pytree
            `fixed` parameters have both ends at their value.

        Raises
        ------
        ValueError
            If an argument is none of those listed.
        """
        intervals.check_interval(level, method)
        check_choice(scale, ("unconstrained", "natural"), "scale")
        if method == "profile" and (kind is not None or scale != "unconstrained"):
            raise ValueError('method="profile" needs no covariance and no scale; leave `kind` and `scale` out.')
        kind = self._check("observed" if method == "profile" else kind)
        self._warn(kind)
        ends = self._ends(kind, level, method, scale, require_maximum)
        return self.layout.assemble(intervals.as_leaves(self.layout, on_host(self.values), ends))

    @entry_point
    def normal_approximation(self, kind: CovarianceKind | None = None) -> NormalApproximation:
        """The normal distribution about the estimate, of one fit or of many, to draw parameters from; `kind` as for `covariance`.

        It is normal on the unconstrained scale, so that draws obey the constraints. Of a penalised fit it approximates the
        posterior. Errors in the approximation are of order 1/√n; near an edge of the range it is poor.

        Examples
        --------
        >>> import fisher_jax as fj, jax
        >>> fit = fj.fit(fj.families.weibull, None, [1.0, 2.0, 3.0, 6.0])
        >>> draws = fit.normal_approximation().sample(jax.random.key(0), 1000)
        >>> print(draws["shape"].shape, bool((draws["shape"] > 0).all()))
        (1000,) True
        """
        kind = self._check(kind)
        self._warn(kind)
        if is_traced(self):
            raise TypeError("the draws are made on the host, so not under jit, vmap or grad. Call it outside.")
        host = on_host(self)
        covariance = np.asarray(covariances.free_covariance(host, kind))
        return NormalApproximation(np.asarray(host.free), covariance, kind, self.layout, host.values)

    @entry_point
    def information(self, kind: Kind | None = None) -> Information:
        """The information per observation at the estimate, in the user's parametrisation, as an `Information`.

        `kind` is one of "observed", "expected" and "empirical"; the sandwich is a covariance and no information. By default the
        first of these in `kinds`. Of many fits the matrix is (B, q, q): `jax.vmap` the methods of the result over it.

        Raises
        ------
        ValueError
            If the kind is another, or constraints tie entries together, so that no matrix (q, q) exists.

        Notes
        -----
        Of a penalised fit it contains minus the Hessian of the log-prior, divided by n; `observed_information` does not.
        """
        if kind == "sandwich":
            raise ValueError('kind="sandwich" is a covariance, not an information. Use covariance("sandwich").')
        default = next((other for other in self.kinds if other != "sandwich"), "observed")
        checked = self._check(default if kind is None else kind)
        if len(self.names) != self.num_parameters:
            raise ValueError(
                f"a constraint leaves {self.num_parameters} free parameters among {len(self.names)} entries, so "
                "their information has no matrix in these entries. Use covariance, or the functions of the module."
            )
        if self.has_batch:
            self._warn()
        route = f"{checked}: from the fit, divided by the number of observations"
        return Information(self._computed(covariances.information, checked), self.names, route)

    @entry_point
    def aic(self) -> Float[AnyArray, "*b"]:
        """Akaike's information criterion 2p − 2ℓ; NaN where there are no observations."""
        n, log_likelihood = on_host((self.num_observations, self.log_likelihood))
        return 2.0 * namespace(n).where(n > 0, self.num_parameters, np.nan) - 2.0 * log_likelihood

    @property
    def _sample_size(self) -> Any:
        """The n of information criteria: observations, or rows where all are one observation."""
        if self.has_batch or self.origin is None or self.origin.model.with_modes is None or is_traced(self):
            return self.num_observations
        rows = self.origin.model.count_rows(*self.origin.dataset.parts) if float(self.num_observations) == 1 else None
        return self.num_observations if rows is None else np.asarray(rows)

    @entry_point
    def bic(self) -> Float[AnyArray, "*b"]:
        """Schwarz's Bayesian information criterion p log n − 2ℓ; NaN where n is below two.

        Where all rows are one observation, as with crossed effects, n is the number of rows, which a loaded fit does not know.
        """
        n, log_likelihood = on_host((self._sample_size, self.log_likelihood))
        xp = namespace(n)
        return self.num_parameters * xp.log(xp.where(n > 1, n, np.nan)) - 2.0 * log_likelihood

    @entry_point
    def aicc(self) -> Float[AnyArray, "*b"]:
        """AIC with the correction for few observations, 2p n / (n − p − 1) − 2ℓ, n as for `bic`; NaN where n ≤ p + 1.

        References
        ----------
        Hurvich, C. M. and Tsai, C.-L. (1989), Biometrika 76, 297-307.
        """
        n, log_likelihood = on_host((self._sample_size, self.log_likelihood))
        xp, left = namespace(n), n - self.num_parameters - 1
        penalty = xp.where(left > 0, 2.0 * self.num_parameters * n / xp.where(left > 0, left, 1.0), np.nan)
        return penalty - 2.0 * log_likelihood

    @entry_point
    def tic(self) -> Float[AnyArray, "*b"]:
        """Takeuchi's information criterion 2 tr(J⁻¹K) − 2ℓ, K = Σ s sᵀ, for a model that need not be right.

        References
        ----------
        Takeuchi, K. (1976), Suri-Kagaku 153, 12-18; Burnham, K. P. and Anderson, D. R. (2002), Model Selection and Multimodel
        Inference, eq. (2.4).
        """
        self._check("sandwich")
        self._warn()
        return self._computed(covariances.takeuchi)

    def describe(self, kind: str) -> str:
        """A kind of covariance in words, as `summary` prints it."""
        return self.robust if kind == "sandwich" and self.robust else covariances.DESCRIPTIONS[kind]

    @entry_point
    def diagnosis(self) -> str:
        """The status in full: its meaning, which observation or direction is to blame, likely causes, what to try."""
        self._check_single()
        status, culprit = self.status, self._culprit()
        text = f"{status.label.capitalize()}: {status.meaning}"
        text += f" ({culprit})." if culprit else "."
        text += f" Likely causes: {status.causes}." if status.causes else ""
        return text + (f" Try: {status.remedy}." if status.remedy else "")

    @entry_point
    def raise_if_failed(self) -> "Fit":
        """Return the fit if it converged; raise `FitError` otherwise, with the diagnosis, of many that of the first failed."""
        if not self.has_batch:
            self._check_single()
            if not self.converged:
                raise FitError(self.diagnosis())
            return self
        failed = np.flatnonzero(~np.asarray(self.converged))
        if len(failed):
            named = ", ".join(map(str, failed[:10])) + (", …" if len(failed) > 10 else "")
            raise FitError(
                f"{len(failed)} of {len(self)} fits did not converge: {named}. Of {failed[0]}: {self[failed[0]].diagnosis()}"
            )
        return self

    @entry_point
    def summary(
        self, kind: CovarianceKind | None = None, *, level: float = 0.95, method: IntervalMethod = "wald"
    ) -> Report:
        """A report to print: estimates, standard errors, intervals, status, decrement, and which covariance was used.

        In a notebook it shows as a table. Its columns are those of `to_frame`. `kind`, that of the standard errors, `level` and
        `method` as for `confidence_intervals`. Of many fits the report states how many ended how, the spread of steps, decrements
        and estimates, and which failed; it has no intervals.
        """
        intervals.check_interval(level, method)
        if self.has_batch:
            host = replace(on_host(self), labels=self.labels)
            return batch_report(host, *self._errors_and_doubts(kind))
        self._check_single()
        kind = self._check(kind)
        rows, conditional = self._rows(kind, level, method)
        doubts = self._doubts(kind)
        if conditional:
            doubts = (*(doubt for doubt in doubts if doubt is not NO_MAXIMUM), conditional)
        return fit_report(self, kind, rows, level, method, doubts)

    @entry_point
    def to_columns(self, kind: CovarianceKind | Literal[""] | None = None) -> dict[str, np.ndarray]:
        """Of many fits, one array (B,) for each estimate, each standard error (`name standard error`) and each fact.

        With `labels` these come first, as `group`. The facts are log_likelihood, decrement, num_steps, num_observations, status and
        attempt. A parameter that has the name of one is called `parameter name`. With ``kind=""`` there are no standard errors.
        Where a fit ended with a parameter at the edge of its range, and the others at a maximum given that, the errors of the
        others are conditional on it, with a warning.
        """
        if not self.has_batch:
            raise ValueError("this is one fit. Use to_frame.")
        theta = np.asarray(self.layout.join(on_host(self.values)))
        labels = [f"parameter {name}" if name in FACTS else name for name in self.names]
        columns = {label: theta[:, k] for k, label in enumerate(labels)}
        if self.labels is not None:
            columns = {"group": np.asarray(self.labels), **columns}
        if kind != "":
            used, errors, doubts = self._errors_and_doubts(kind)
            if errors is not None:
                errors, conditional = self._errors_in_columns(used)
                doubts = (*doubts, conditional) if conditional else doubts
            if doubts:
                warn(" ".join(doubts))
            if errors is not None:
                columns |= {f"{label} standard error": errors[:, k] for k, label in enumerate(labels)}
        return columns | {fact: np.asarray(getattr(self, fact)) for fact in FACTS}

    @entry_point
    def to_frame(
        self, kind: CovarianceKind | None = None, *, level: float = 0.95, method: IntervalMethod = "wald"
    ) -> "pd.DataFrame":
        """Estimates, standard errors and intervals as a pandas DataFrame (needs the extra `frames`).

        Of one fit a row for each name; of many a row for each fit, with the columns of `to_columns`, the status in words, and
        for each name `name z`, `name p_value`, `name lower` and `name upper`. z is the estimate divided by its standard error and
        the p-value, two-sided, that of the hypothesis that the parameter is zero; both are NaN where zero is not inside the
        parameter's range, as for a scale. Where a fit ended with a parameter at the edge of its range, the errors of the others
        are conditional on it, with a warning. Arguments as for `confidence_intervals`.
        """
        pd = require("pandas", "frames")
        intervals.check_interval(level, method)
        if not self.has_batch:
            self._check_single()
            kind = self._check(kind)
            rows, conditional = self._rows(kind, level, method)
            if conditional:
                warn(f"not to be relied on. {self.diagnosis()} {conditional[0].upper()}{conditional[1:]}")
            else:
                self._warn(kind)
            return pd.DataFrame(rows, columns=list(Row._fields)).set_index("name")
        columns = self.to_columns(kind)
        if self.kinds:
            kind = self._check(kind)
            theta = np.asarray(self.layout.join(on_host(self.values)))
            errors, _ = self._errors_in_columns(kind)
            if method == "wald":
                ends = intervals.wald_of(on_host(self), errors, level, "unconstrained")
            else:
                ends = self._ends(kind, level, method, "unconstrained")
            z, p_values = zero_test(theta, errors, self.layout.edges())
            for k, name in enumerate(self.names):
                columns |= {f"{name} z": z[:, k], f"{name} p_value": p_values[:, k]}
                columns |= {f"{name} lower": ends[:, k, 0], f"{name} upper": ends[:, k, 1]}
        frame = pd.DataFrame(columns)
        frame = frame if self.labels is None else frame.set_index("group")
        labels = {int(status): status.label for status in Status}
        return frame.assign(
            status=frame["status"].map(labels).astype("category"),
            attempt=pd.Categorical.from_codes(frame["attempt"], ATTEMPTS),
        )

    @entry_point
    def to_parquet(self, path: str | os.PathLike[str], kind: CovarianceKind | Literal[""] | None = None) -> None:
        """Write the columns of `to_columns` to a Parquet file (needs the extra `stream`)."""
        pa, parquet = require("pyarrow", "stream"), require("pyarrow.parquet", "stream")
        parquet.write_table(pa.table(self.to_columns(kind)), path)

    @entry_point
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fit to a file without pickle, arrays and JSON in one .npz; `fisher_jax.load` reads it.

        The model and the data are not saved, so that what needs them (profiles, `robust`, the bootstrap) cannot be asked of the
        fit that is read. Constraints by another library's bijectors cannot be saved.
        """
        from fisher_jax.fitting.saving import save

        save(self, path)

    def __repr__(self) -> str:
        if is_traced(self) or np.ndim(self.status_code) > 1 or not (self.kinds or self.has_batch):
            return f"Fit({', '.join(self.names)}; status_code={self.status_code})"
        return str(self.summary())

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    def _computed(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(fit, *arguments)`, by numpy where no number is traced, and of many fits a block at a time."""
        leaves = jax.tree.leaves((self, arguments))
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return function(self, *arguments)
        fit = on_host(self) if any(isinstance(leaf, jax.Array) for leaf in leaves) else self
        with np.errstate(all="ignore"):  # NaN and infinities are what a status explains
            if not self.has_batch or len(self) <= BLOCK:
                return function(fit, *arguments)
            parts = [function(fit[start : start + BLOCK], *arguments) for start in range(0, len(self), BLOCK)]
        return np.concatenate(parts)

    def _errors_and_doubts(self, kind: str | None) -> tuple[str, np.ndarray | None, tuple[str, ...]]:
        """Of many fits the kind meant, the standard errors (B, q), and what is in doubt about those of converged fits.

        The kind is empty where `kinds` is and none is given. There is no warning: the status stands beside the numbers.
        """
        if kind is None and not self.kinds:
            return "", None, ()
        kind = self._check(kind)
        doubts = tuple(doubt for doubt in self._doubts(kind) if doubt is not NO_MAXIMUM)
        return kind, self._computed(covariances.standard_errors, kind), doubts

    def _errors_in_columns(self, kind: str) -> tuple[np.ndarray, str]:
        """Of many fits the standard errors (B, q), and a sentence where some are conditional on a parameter at its edge."""
        errors, edge = np.array(self._computed(covariances.standard_errors, kind)), self._edge()
        rows = np.flatnonzero(np.any(edge, axis=-1))
        if not len(rows):
            return errors, ""
        errors[rows], _, exist = covariances.errors_given_edge(on_host(self[rows]), kind, edge[rows])
        return errors, (
            f"in {int(np.sum(exist))} of {len(self)} fits, which ended with a parameter at the edge of its range, standard errors, "
            "tests and Wald intervals of the others are conditional on that, as if it were known there."
        )

    def _rows(self, kind: str, level: Any, method: str = "wald") -> tuple[list[Row], str]:
        """A row for each parameter, and a sentence where standard errors are conditional on a parameter at its edge."""
        values, at_edge, conditional = on_host(self.values), np.zeros(len(self.names), bool), False
        errors = self._computed(covariances.standard_errors, kind)
        if np.any(edge := self._edge()):
            errors, at_edge, exist = covariances.errors_given_edge(on_host(self), kind, edge)
            conditional = bool(exist)
        if not conditional or method == "profile":
            ends = self._ends(kind, level, method, "unconstrained")
        else:
            ends = intervals.wald_of(on_host(self), errors, level, "unconstrained")
        theta = np.asarray(self.layout.join(values))
        tests = zero_test(theta, errors, self.layout.edges())
        numbers = iter(np.column_stack([theta, errors, *tests, ends]))
        marks = iter(at_edge)
        rows = []
        for leaf, value in ((self.layout.leaves[i], values[i]) for i in self.layout.order):
            for name, x in zip(leaf.entry_names, np.ravel(value), strict=True):
                if leaf.is_fixed:
                    rows.append(Row(name + FIXED, float(x), *[np.nan] * 5))
                else:
                    rows.append(Row(name + AT_EDGE if next(marks) else name, *map(float, next(numbers))))
        if not conditional:
            return rows, ""
        return rows, (
            "standard errors, tests and Wald intervals of the other parameters are conditional on "
            f"{edge_in_words(self.layout, edge, at_edge)}, as if it were known there. The covariance has none of them."
        )

    def _edge(self) -> Bool[np.ndarray, "*b p"]:
        """Which entries of u are at the edge of their range, in fits that ended there with the others at a maximum given these."""
        none = np.zeros(np.shape(self.free), bool)
        if self.origin is None or self.curvature is None:
            return none
        curvature = np.asarray(self.curvature, np.float64)
        edge = entries_at_edge(curvature, self.layout)
        ended = (np.asarray(self.status_code) == Status.BOUNDARY) & np.isfinite(curvature).all(axis=(-2, -1))
        ended &= np.any(edge, axis=-1) & ~np.all(edge, axis=-1)
        if not np.any(ended):
            return none
        if isinstance(self.origin, SourceOrigin):
            return none  # not looked for, since it would take another pass
        if self.has_batch:
            from fisher_jax.fitting.map_fits import with_data

            gradient = np.zeros(none.shape)
            gradient[ended] = with_data(self[ended], _gradient_of)
        else:
            model, dataset = self.origin
            gradient = np.asarray(_gradient(model, self.layout, self.values, dataset, self.free))
        # As for a fit that converged to rounding: the limit at which the distance to the maximum no longer matters.
        with np.errstate(all="ignore"):
            inverse = np.asarray(covariances.inverse_of_rest(curvature, edge))
            squared = np.einsum("...i,...ij,...j->...", gradient, inverse, gradient)
        return edge & (ended & (squared < ROUNDING_LIMIT**2))[..., None]

    def _with_names(self, matrix: Any) -> Any:
        """A matrix over the parameters with their names."""
        if np.ndim(matrix) != 2 or is_traced(matrix):
            raise ValueError(
                "labels=True gives the matrix of one fit whose numbers are known. Take one of a batch by fits[i]."
            )
        return require("pandas", "frames").DataFrame(
            np.asarray(matrix), index=list(self.names), columns=list(self.names)
        )

    def _ends(
        self, kind: str, level: Any, method: str, scale: str, require_maximum: bool = True
    ) -> Float[AnyArray, "*b q 2"]:
        if method == "wald":
            return self._computed(intervals.wald, kind, level, scale, require_maximum)
        from fisher_jax.fitting.passes import passes_of
        from fisher_jax.profile.sides import profile_ends, profile_sides_by_passes

        maximum, passes = (self.values, self.free, self.curvature), passes_of(self)
        if passes is not None:
            columns = np.arange(len(self.names))
            ends = profile_sides_by_passes(passes, self.layout, maximum, None, columns, level).ends
        else:
            ends = profile_ends(*origin_of(self), self.layout, maximum, level)
        missing = np.any(np.isnan(ends), axis=-1)
        if np.any(missing):
            if self.has_batch:
                where, which = f"in {int(np.sum(np.any(missing, axis=-1)))} of {len(self)} fits", "fits[k]"
            else:
                where, which = f"for {', '.join(self.names[k] for k in np.flatnonzero(missing))}", "fit"
            warn(f"an end is NaN {where}; print fisher_jax.profile_likelihood({which}) to see why.")
        return ends

    def _culprit(self) -> str:
        """Which observation, parameter or direction the status is about, in words; empty where there is none."""
        status = self.status
        if status in (Status.BAD_START, Status.NOT_FINITE):
            if int(self.suspect) >= 0:
                return f"first at {self._suspect_in_words()}"
            if not isinstance(self.origin, Origin) or self.origin.model.is_dependent:
                return ""
            # Value and slope are finite, so it must be the second derivative of some log-density.
            model, dataset = self.origin
            bad = np.flatnonzero(_curvature_not_finite(model, self.layout, self.values, dataset, self.free))
            words = f"the second derivatives are not finite at {len(bad)} observations, the first of them number "
            return f"{words}{bad[0]}" if len(bad) else ""
        if status == Status.BOUNDARY:
            return f"direction: {escaping(self.curvature, self.free, self.last_step, self.layout)}"
        if status in (Status.SINGULAR_INFORMATION, Status.INDEFINITE):
            return f"direction: {weakest(self.curvature, self.free, self.layout)}"
        if status == Status.TOO_FEW_OBSERVATIONS:
            return f"{float(self.num_observations):g} observations, {self.num_parameters} free parameters"
        return ""

    def _suspect_in_words(self) -> str:
        """The term at which the log-density is not finite, and what the model knows about it."""
        number = int(self.suspect)
        if not isinstance(self.origin, Origin):
            return f"observation {number}"
        model, dataset = self.origin
        # The terms of the parts of a joint model are one after the other; what counts once comes last.
        parts = zip(model.parts, parts_of(model, dataset, None), strict=True)
        pieces = [(name, *part) for name, part in parts] or [("", model, dataset)]
        lengths = [len(np.atleast_1d(jax.tree.leaves(piece[-1].data)[0])) for piece in pieces]
        if counts_once(model, dataset) and number >= sum(lengths):
            return "the auxiliary measurement or the prior"
        k = 0
        while k < len(pieces) - 1 and number >= lengths[k]:
            number, k = number - lengths[k], k + 1
        name, of_part, rows = pieces[k]
        text = f"observation {number}" + (f" of {name!r}" if name else "")
        if of_part.is_dependent:
            return text
        row = [part for part in (rows.data, rows.given) if part is not None]
        reason = of_part.explain(self.params, *jax.tree.map(lambda leaf: leaf[number], row))
        return f"{text}, {reason}" if reason else text

    def _check(self, kind: str | None) -> CovarianceKind:
        """The kind of covariance meant; raise where it does not exist or is not in `kinds`."""
        if kind is None:
            kind = "sandwich" if self.robust else (*self.kinds, "observed")[0]
        if isinstance(kind, str) and kind in KINDS and kind not in self.kinds:
            kinds = ", ".join(map(repr, self.kinds)) or "none"
            raise ValueError(
                f"kind={kind!r} was not kept ({kinds} was). Fit again with fit_batch(…, covariances=({kind!r},))."
            )
        covariances.check_kind(kind, has_expected=self.expected is not None)
        if kind in ("empirical", "sandwich"):
            covariances.check_several(self.num_observations)
        return cast(CovarianceKind, kind)

    def _check_single(self) -> None:
        if not isinstance(self.status, Status):
            raise ValueError(
                "needs one fit whose values are known, but this one is inside a transformation or has a batch "
                "axis. Call it outside; take one of a batch by fits[i]."
            )

    def _doubts(self, kind: str, errors: Any = None) -> tuple[str, ...]:
        """Why there is no covariance of a kind, or no theory behind it, in sentences; empty where there is no doubt."""
        converged = np.atleast_1d(self.converged)
        doubts = (*(() if np.all(converged) else (NO_MAXIMUM,)), *self._irregularity())
        errors = self._computed(covariances.standard_errors, kind) if errors is None else errors
        if is_traced(errors):  # by the data, where the status is known: a derivative of the errors
            return doubts
        missing = np.any(np.isnan(np.atleast_2d(errors)), axis=-1) & converged
        if not np.any(missing):
            return doubts
        where = f" in {int(np.sum(missing))} of {missing.size} fits" if self.has_batch else ""
        fit = self[int(np.argmax(missing))] if self.has_batch else self
        if kind == "sandwich":
            reason = (
                "a variance is negative or not finite, as differences of estimates by two ways of clusters may be, or a "
                "small-sample factor does not exist"
            )
        else:
            matrix = covariances.free_information(on_host(fit), kind)
            reason = f"the {kind} information is not finite at the estimate"
            if np.all(np.isfinite(matrix)):
                direction = weakest(matrix, fit.free, fit.layout)
                reason = f"the {kind} information is singular (direction: {direction})"
        return (*doubts, f"There are no standard errors by kind={kind!r}{where}: {reason}.")

    def _irregularity(self) -> tuple[str, ...]:
        """A sentence if the information is not finite at the estimate; empty where it is, or is not available."""
        if self.expected is None or is_traced(self.expected):
            return ()
        irregular = ~np.all(np.isfinite(np.asarray(self.expected)), axis=(-2, -1)) & np.asarray(self.converged)
        if not np.any(irregular):
            return ()
        return (f"In {int(np.sum(irregular))} of {irregular.size} fits: {IRREGULAR}" if self.has_batch else IRREGULAR,)

    def _warn(self, kind: str | None = None, errors: Any = None) -> None:
        """Warn where a fit whose numbers are not traced failed, or where its covariance of a kind is in doubt.

        `errors` are NaN where standard errors of that kind are, where these have been computed already.
        """
        if is_traced(self.status_code):
            return
        doubts = self._irregularity() if kind is None else self._doubts(kind, errors)
        if not np.all(self.converged):
            failed = int(np.sum(~np.asarray(self.converged)))
            text = (
                f"{failed} of {np.size(self.status_code)} fits did not converge, and their results are not to be relied on. See "
                "`converged`, `status` and `summary()`."
            )
            doubts = (text if self.has_batch else f"not to be relied on. {self.diagnosis()}", *doubts)
        if doubts:
            warn(f"{' '.join(doubts)}")


def with_log_prior(fit: Fit, model: Model, dataset: Dataset) -> Fit:
    """A fit whose log-likelihood is what was maximised, with that divided into the log-likelihood and the prior.

    Where the covariance is that of the expected information, this kind comes first.
    """
    if dataset.strength is None:
        return fit
    prior: Any
    if not fit.has_batch and is_traced(fit, dataset):
        prior = log_prior(model, fit.layout, fit.values, dataset)
    elif not fit.has_batch:
        prior = np.asarray(_prior_at(model, fit.layout, fit.values, dataset))
    else:
        from fisher_jax.fitting.map_fits import with_data

        prior = with_data(replace(fit, origin=Origin(model, dataset)), _prior_of)
    kinds = fit.kinds
    if is_of_expected(model) and "expected" in kinds:
        kinds = ("expected", *(kind for kind in kinds if kind != "expected"))
    strengths = [f"{float(x):.6g}" for x in dataset.strength if not np.ndim(x) and not is_traced(x)]
    words = describe_prior(model.prior) + "".join(f", strength {x}" for x in strengths)
    return replace(fit, log_likelihood=fit.log_likelihood - prior, log_prior=prior, prior=words, kinds=kinds)


_prior_at = functools.partial(jit_with_model, static_argnums=(0, 1), level=0)(log_prior)


def _prior_of(fit: Fit, model: Model, dataset: Dataset) -> Float[Array, ""]:
    return log_prior(model, fit.layout, fit.values, dataset)


@functools.partial(jit_with_model, static_argnums=(0, 1), level=0)
def _gradient(model: Model, layout: Layout, values: Values, dataset: Dataset, free: Any) -> Float[Array, " p"]:
    """The gradient of the log-likelihood with respect to u."""
    return gradient_at(likelihood(model, layout, values, dataset), free)[1]


def _gradient_of(fit: Fit, model: Model, dataset: Dataset) -> Float[Array, " p"]:
    """The same of a fit, for `map_fits.with_data`."""
    return gradient_at(likelihood(model, fit.layout, fit.values, dataset), fit.free)[1]


@functools.partial(jit_with_model, static_argnums=(0, 1), level=0)
def _curvature_not_finite(model: Model, layout: Layout, values: Values, dataset: Dataset, free: Any) -> Any:
    """For each term of nonzero weight, whether its Hessian is not finite."""
    target = likelihood(model, layout, values, dataset)
    hessians = each_at(target.terms, free, target.rows)[1]
    finite = jnp.all(jnp.isfinite(hessians), axis=(1, 2))
    return ~finite if target.weights is None else ~finite & (target.weights > 0)


_META = ("layout", "kinds", "robust", "prior")
_DROPPED = ("origin", "optima", "engine", "labels")  # what a fit no longer has after a transformation
ARRAYS = tuple(field.name for field in fields(Fit) if field.name not in (*_META, *_DROPPED))
jax.tree_util.register_dataclass(Fit, data_fields=list(ARRAYS), meta_fields=list(_META), drop_fields=list(_DROPPED))


def origin_of(fit: Fit) -> Origin:
    """The model and the data of a fit; raise where it does not have them."""
    if fit.origin is None and fit.has_batch:
        raise ValueError(
            "needs the data, which this batch does not have: it was made from a list of data sets, or went through "
            "a transformation. Fit data sets of one length together, or take each by itself."
        )
    if fit.origin is None:
        raise ValueError(
            "needs the data, which this fit no longer has: a transformation (jit, vmap, tree.map) and a file leave them out. "
            "Use a fit as `fit` returned it."
        )
    if isinstance(fit.origin, SourceOrigin):
        raise ValueError(NOT_IN_MEMORY.format(where=fit.origin.description))
    check_precision(fit.origin.model)
    return fit.origin


def model_of(fit: Fit) -> Model:
    """The model of a fit, wherever its data are; raise where it does not have it."""
    return fit.origin.model if isinstance(fit.origin, SourceOrigin) else origin_of(fit).model


def join_fits(parts: list[Fit], order: np.ndarray) -> Fit:
    """Several batches in one, in the order given."""
    whole = jax.tree.map(lambda *leaves: np.concatenate(leaves)[order], *parts)
    return replace(whole, engine=parts[0].engine)
