"""The record of a fit: the estimate, its certificate, and all that is said of them without the data."""

import functools
import warnings
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from fisher_jax.errors import FitError, FitWarning, require
from fisher_jax.fitting import covariance as covariances
from fisher_jax.fitting import criteria, direction, intervals
from fisher_jax.fitting.program import EDGE_INFORMATION
from fisher_jax.fitting.status import Status
from fisher_jax.fitting.summary import Row, Summary, diagnose, with_fixed
from fisher_jax.information import Information
from fisher_jax.models.model import Model, Sample
from fisher_jax.models.parameters import Layout, Values

if TYPE_CHECKING:
    AnyArray = Array
else:
    AnyArray = Array | np.ndarray  # numpy's in a batch, which lives on the host


class Origin(NamedTuple):
    """What a fit was made from, for what cannot do without the data: profiles, clusters, influence, the bootstrap."""

    model: Model
    sample: Sample


@dataclass(frozen=True)
class Fit:
    """A maximum-likelihood fit: the estimate, how far it can be trusted, and what its uncertainty needs.

    Attributes
    ----------
    values : list of arrays
        The array leaves of `params`.
    log_likelihood : scalar array
        ℓ at the estimate in nats, total over the data.
    status_code : integer array
        The code of the `Status`.
    num_steps : integer array
        Updates that the optimiser made after looking at the start, those it took back included.
    decrement : scalar array
        sqrt(gᵀ J⁻¹ g) with total gradient g and observed curvature J: the distance to the maximum in standard errors;
        infinite where J is not positive definite.
    num_observations : scalar array
        n: the number of log-density terms, or the sum of the weights.
    free : array (p,)
        The estimate on the unconstrained scale, u.
    curvature, outer_product : arrays (p, p)
        −∇²ℓ and Σ wᵢ sᵢ sᵢᵀ with respect to u, totals.
    expected : array (q, q) or None
        n I(θ) in the user's parametrisation where the model has a closed form.
    suspect : integer array
        Index of the first observation whose log-density or score is not finite; −1 where there is none.
    last_step : array (p,)
        The last full Newton step in u: where a fit that ran to infinity was heading.
    origin : Origin or None
        The model and the data. No part of the pytree: None once the fit has passed through a transformation.
    meat, robust : array (p, p) or None, and str
        What `robust` put into the middle of the sandwich in place of `outer_product`, and what it is, in words.

    Notes
    -----
    A pytree: a function that returns a fit can be jitted and vmapped, and then every array gains the leading axis. Call the
    methods of such a fit under `jax.vmap`, as in ``jax.vmap(lambda fit: fit.standard_errors())(fits)``.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> from jax.scipy.stats import poisson
    >>> fit = fj.fit(lambda rate, y: poisson.logpmf(y, rate), 1.0, jnp.array([2, 4, 3]))
    >>> fit.status
    <Status.CONVERGED: 0>
    >>> print(f"{fit.params:.3f} ± {fit.standard_errors():.3f}")
    3.000 ± 1.000
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
    layout: Layout = field(repr=False)
    origin: Origin | None = field(default=None, repr=False)
    meat: Float[AnyArray, "*b p p"] | None = None
    robust: str = ""

    @property
    def params(self) -> PyTree:
        """The estimate, a pytree like the starting parameters."""
        return self.layout.assemble(self.values)

    @property
    def status(self) -> Any:
        """The `Status`; under a transformation, or with a batch axis, the array of codes."""
        code = self.status_code
        return code if isinstance(code, jax.core.Tracer) or jnp.ndim(code) else Status(int(code))

    @property
    def converged(self) -> Any:
        """Whether the estimate is a certified local maximum; an array where the status is one."""
        status = self.status
        return status.converged if isinstance(status, Status) else status <= Status.CONVERGED_TO_ROUNDING

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the q estimated entries, in the order of rows and columns of every matrix."""
        return self.layout.names

    @property
    def num_parameters(self) -> int:
        """p: the number of free parameters, constraints taken into account."""
        return self.layout.num_free

    def covariance(self, kind: str = "observed") -> Float[Array, "q q"]:
        """Covariance matrix of the estimate, in the user's own parametrisation.

        Parameters
        ----------
        kind : {"observed", "expected", "empirical", "sandwich"}
            Inverse of minus the Hessian; of n times the Fisher information; of the summed outer products of scores; or
            White's robust H⁻¹ (Σ s sᵀ) H⁻¹, without a small-sample factor; see `robust` for other middles.

        Returns
        -------
        array (q, q)
            In the order of `names`; float64 where x64 is enabled. Singular where a constraint ties entries together (a
            simplex). NaN where the information is not positive definite or the status is `BOUNDARY`; a `FitWarning` then
            says why.

        Raises
        ------
        ValueError
            If the kind is unknown, or "expected" is asked of a model without a route to it.
        """
        self._check(kind, "covariance")
        self._warn("covariance")
        return _uncertainty(self, kind)[0]

    def standard_errors(self, kind: str = "observed") -> PyTree:
        """Standard errors, a pytree like `params`; zero for parameters held `fixed`. `kind` as for `covariance`."""
        self._check(kind, "standard_errors")
        self._warn("standard_errors")
        return self.layout.assemble(_uncertainty(self, kind)[1])

    def correlation(self, kind: str = "observed") -> Float[Array, "q q"]:
        """Correlation matrix of the estimate, in the order of `names`. `kind` as for `covariance`."""
        self._check(kind, "correlation")
        self._warn("correlation")
        return covariances.correlation(_uncertainty(self, kind)[0])

    def confidence_intervals(
        self,
        level: Any = 0.95,
        method: str = "wald",
        *,
        kind: str = "observed",
        scale: str = "unconstrained",
    ) -> PyTree:
        """Confidence intervals: a pytree like `params` whose leaves gain a last axis of two, lower and upper.

        Parameters
        ----------
        level : float
            Coverage aimed at, between 0 and 1.
        method : {"wald", "profile"}
            From the standard errors, or from the profile likelihood of each entry (see `profile_likelihood`, which tells more).
            A kind of covariance is accepted here too and means a Wald interval of that kind.
        kind : str
            The covariance, as for `covariance`.
        scale : {"unconstrained", "natural"}
            Wald intervals are made on the scale of the constraint (the logarithm of a positive parameter, say) and mapped
            back, so that they stay within the range; ``"natural"`` gives the symmetric textbook interval.

        Returns
        -------
        pytree
            Parameters held `fixed` have both ends at their value.

        Raises
        ------
        ValueError
            If an argument is none of those listed.
        """
        caller = "confidence_intervals"
        method, kind = intervals.check_method(level, method, kind, scale, caller)
        self._check(kind, caller)
        self._warn(caller)
        if method == "profile":
            ends = self._profile_ends(level, caller)
            return self.layout.assemble(intervals.as_leaves(self.layout, self.values, jnp.asarray(ends)))
        return self.layout.assemble(_intervals(self, kind, scale, level))

    def information(self, kind: str = "observed") -> Information:
        """The information per observation at the estimate, in the user's parametrisation, as an `Information`.

        `kind` is one of "observed", "expected" and "empirical"; the sandwich is a covariance and no information.

        Raises
        ------
        ValueError
            If the kind is another, or constraints tie entries together, so that no matrix (q, q) exists.
        """
        if kind == "sandwich":
            raise ValueError(
                'information: kind="sandwich" is a covariance, not an information. Use covariance("sandwich").'
            )
        self._check(kind, "information")
        if len(self.names) != self.num_parameters:
            raise ValueError(
                f"information: a constraint leaves {self.num_parameters} free parameters among {len(self.names)} entries, so "
                "their information has no matrix in these entries. Use covariance, or the functions of the module."
            )
        matrix = _information(self, kind)
        route = f"{kind}: from the fit, divided by the number of observations"
        return Information(matrix, self.names, route)

    def aic(self) -> Float[Array, ""]:
        """Akaike's information criterion 2p − 2ℓ."""
        return 2.0 * self.num_parameters - 2.0 * self.log_likelihood

    def bic(self) -> Float[Array, ""]:
        """Schwarz's Bayesian information criterion p log n − 2ℓ."""
        return self.num_parameters * jnp.log(self.num_observations) - 2.0 * self.log_likelihood

    def aicc(self) -> Float[Array, ""]:
        """AIC with the correction for few observations, 2p n / (n − p − 1) − 2ℓ; NaN where n ≤ p + 1."""
        return criteria.aicc(self.log_likelihood, self.num_parameters, self.num_observations)

    def tic(self) -> Float[Array, ""]:
        """Takeuchi's information criterion 2 tr(J⁻¹K) − 2ℓ, K = Σ s sᵀ, for a model that need not be right."""
        self._check("sandwich", "tic")
        self._warn("tic")
        return _takeuchi(self)

    def describe(self, kind: str) -> str:
        """A kind of covariance in words, as `summary` says it."""
        return self.robust if kind == "sandwich" and self.robust else covariances.DESCRIPTIONS[kind]

    def diagnosis(self) -> str:
        """The status in full: what is known, which observation or direction is to blame, likely causes, what to try."""
        self._check_single("diagnosis")
        return diagnose(self.status, self._culprit())

    def raise_if_failed(self) -> "Fit":
        """Return the fit if it converged; raise `FitError` with the diagnosis otherwise."""
        self._check_single("raise_if_failed")
        if not self.converged:
            raise FitError(self.diagnosis())
        return self

    def summary(self, kind: str = "observed", level: Any = 0.95, method: str = "wald") -> Summary:
        """A report to print: estimates, standard errors, intervals, status, decrement, and which covariance was used.

        In a notebook it shows as a table. `kind`, that of the standard errors, `level` and `method` as for
        `confidence_intervals`.
        """
        self._check_single("summary")
        self._check(kind, "summary")
        intervals.check_interval(level, method, "summary")
        return Summary(
            rows=self._rows(kind, level, method, "summary"),
            status=self.status,
            culprit=self._culprit(),
            log_likelihood=float(self.log_likelihood),
            num_observations=float(self.num_observations),
            num_parameters=self.num_parameters,
            num_steps=int(self.num_steps),
            decrement=float(self.decrement),
            precision=str(self.free.dtype),
            covariance=self.describe(kind),
            level=level,
            intervals="" if method == "wald" else "by profile likelihood",
        )

    def to_frame(self, kind: str = "observed", level: Any = 0.95, method: str = "wald") -> Any:
        """Estimates, standard errors and intervals as a pandas DataFrame by name (needs the extra `frames`)."""
        pd = require("pandas", "frames", "to_frame")
        self._check_single("to_frame")
        self._check(kind, "to_frame")
        intervals.check_interval(level, method, "to_frame")
        self._warn("to_frame")
        rows = self._rows(kind, level, method, "to_frame")
        return pd.DataFrame(rows, columns=list(Row._fields)).set_index("name")

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    def _rows(self, kind: str, level: float | int, method: str = "wald", caller: str = "") -> list[Row]:
        columns = np.array(_table(self, kind, level))
        if method == "profile":
            columns[:, 2:] = self._profile_ends(level, caller)
        free = [Row(name, *map(float, numbers)) for name, numbers in zip(self.names, columns, strict=True)]
        return with_fixed(free, self.layout, self.values)

    def _profile_ends(self, level: Any, caller: str) -> Float[np.ndarray, "q 2"]:
        from fisher_jax.uncertainty.profile_sides import profile_ends

        known = (self.values, self.free, self.curvature)
        ends, unknown = profile_ends(*origin_of(self, caller), self.layout, known, level)
        if unknown:
            warnings.warn(f"{caller}: {unknown}", FitWarning, stacklevel=3)
        return ends

    def _culprit(self) -> str:
        """Which observation, parameter or direction the status is about, in words; empty where there is none."""
        status = self.status
        if status in (Status.BAD_START, Status.NOT_FINITE) and int(self.suspect) >= 0:
            return f"first at observation {int(self.suspect)}"
        if status == Status.BOUNDARY:
            found = direction.escaping(self.curvature, self.free, self.last_step, self.layout, EDGE_INFORMATION)
            return f"direction: {found}"
        if status in (Status.SINGULAR_INFORMATION, Status.INDEFINITE):
            return f"direction: {direction.weakest(self.curvature, self.layout)}"
        if status == Status.TOO_FEW_OBSERVATIONS:
            return f"{float(self.num_observations):g} observations, {self.num_parameters} free parameters"
        return ""

    def _check(self, kind: str, caller: str) -> None:
        batched = self.curvature is None or self.outer_product is None
        covariances.check_kind(kind, has_expected=self.expected is not None or batched, caller=caller)
        needed = {"observed": (self.curvature,), "empirical": (self.outer_product,), "expected": (self.expected,)}
        middle = self.outer_product if self.meat is None else self.meat
        if any(matrix is None for matrix in needed.get(kind, (self.curvature, middle))):
            raise ValueError(
                f"{caller}: kind={kind!r} was not kept. Fit again with fit_batch(…, covariances=({kind!r},))."
            )
        if jnp.ndim(self.status_code):
            raise ValueError(
                f"{caller}: this fit has a batch axis of shape {jnp.shape(self.status_code)}. "
                f"Map the method over it: jax.vmap(lambda fit: fit.{caller}(…))(fits)."
            )

    def _check_single(self, caller: str) -> None:
        if not isinstance(self.status, Status):
            raise ValueError(
                f"{caller}: needs one fit whose values are known, but this one is inside a transformation or has a batch "
                "axis. Call it outside; take one of a batch by jax.tree.map(lambda leaf: leaf[i], fits)."
            )

    def _warn(self, caller: str, stacklevel: int = 3) -> None:
        status = self.status
        if isinstance(status, Status) and not status.converged:
            warnings.warn(f"{caller}: not to be relied on. {self.diagnosis()}", FitWarning, stacklevel=stacklevel)


jax.tree_util.register_dataclass(
    Fit,
    data_fields=[field.name for field in fields(Fit) if field.name not in ("layout", "origin", "robust")],
    meta_fields=["layout", "robust"],
    drop_fields=["origin"],
)


def origin_of(fit: Fit, caller: str) -> Origin:
    """What the fit was made from; refused where it is not known."""
    if fit.origin is None:
        raise ValueError(
            f"{caller}: needs the data, which this fit has lost on its way through a transformation (jit, vmap, tree.map). "
            "Use a fit as `fit` returned it."
        )
    return fit.origin


def flat_uncertainty(fit: Fit, kind: str) -> tuple[Float[Array, "q q"], Float[Array, " q"]]:
    """Covariance matrix and standard errors of the q entries; NaN at a boundary."""
    jacobian = fit.layout.jacobian(fit.free, fit.values)
    matrix = covariances.carried(jacobian, flat_covariance(fit, kind))
    return matrix, covariances.standard_errors(matrix)


def flat_covariance(fit: Fit, kind: str) -> Float[Array, "p p"]:
    """Covariance matrix of û; NaN at a boundary, since curvature on the way out measures nothing."""
    jacobian = fit.layout.jacobian(fit.free, fit.values)
    middle = fit.meat if kind == "sandwich" and fit.meat is not None else fit.outer_product
    matrix = covariances.free_covariance(kind, jacobian, fit.curvature, middle, fit.expected)
    return jnp.where(fit.status_code == Status.BOUNDARY, jnp.nan, matrix)


def takeuchi(fit: Fit) -> Float[Array, ""]:
    """TIC; NaN at a boundary."""
    found = criteria.tic(fit.log_likelihood, fit.curvature, fit.outer_product)  # type: ignore[arg-type]
    return jnp.where(fit.status_code == Status.BOUNDARY, jnp.nan, found)


_takeuchi = jax.jit(takeuchi)


@functools.partial(jax.jit, static_argnums=1)
def _uncertainty(fit: Fit, kind: str) -> tuple[Float[Array, "q q"], Values]:
    matrix, errors = flat_uncertainty(fit, kind)
    return matrix, fit.layout.split(errors, 0.0)


@functools.partial(jax.jit, static_argnums=1)
def _table(fit: Fit, kind: str, level: Any) -> Float[Array, "q 4"]:
    """Estimate, standard error and both ends of the interval, a row for each name."""
    _, errors = flat_uncertainty(fit, kind)
    theta = fit.layout.join(fit.values).astype(errors.dtype)
    ends = intervals.wald(fit.layout, theta, errors, level, "unconstrained")
    return jnp.concatenate([theta[:, None], errors[:, None], ends], axis=1)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _intervals(fit: Fit, kind: str, scale: Any, level: Any) -> Values:
    return interval_leaves(fit, kind, scale, level)


def interval_leaves(fit: Fit, kind: str, scale: Any, level: Any) -> Values:
    """Wald intervals as array leaves of the parameters, each with a last axis of two."""
    _, errors = flat_uncertainty(fit, kind)
    theta = fit.layout.join(fit.values).astype(errors.dtype)
    return intervals.as_leaves(fit.layout, fit.values, intervals.wald(fit.layout, theta, errors, level, scale))


@functools.partial(jax.jit, static_argnums=1)
def _information(fit: Fit, kind: str) -> Float[Array, "q q"]:
    if kind == "expected":
        return covariances.precise(fit.expected) / fit.num_observations  # type: ignore[arg-type]
    jacobian = covariances.precise(fit.layout.jacobian(fit.free, fit.values))
    total = covariances.precise(fit.curvature if kind == "observed" else fit.outer_product)  # type: ignore[arg-type]
    half = jnp.linalg.solve(jacobian.T, total)
    return jnp.linalg.solve(jacobian.T, half.T).T / fit.num_observations
