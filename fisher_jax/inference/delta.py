"""`delta_method`: standard errors and intervals of functions of the parameters, to first order: var g(θ̂) ≈ G V Gᵀ, G = ∂g/∂u."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from fisher_jax.errors import check_level, entry_point, require, warn
from fisher_jax.fitting import covariance as covariances
from fisher_jax.fitting.covariance import CovarianceKind
from fisher_jax.fitting.intervals import zero_test
from fisher_jax.fitting.map_fits import check_fit, of_each
from fisher_jax.fitting.parameter_functions import OfParameters, Output, as_function, linearize, outline
from fisher_jax.fitting.result import Fit
from fisher_jax.fitting.summary import COLUMNS
from fisher_jax.models.parameter_names import LinearCombinations
from fisher_jax.models.programs import ById
from fisher_jax.numerics.array_namespace import is_traced
from fisher_jax.reporting import TEST_FORMATS, Report, Reported, ReportTable, listed, percent

FLAT_BELOW = 1e-3  # first-order standard errors, in units of the second-order change
SHOWN = 30  # rows of a report


@dataclass(frozen=True, repr=False)
class DeltaEstimate(Reported):
    """A function of the parameters at the estimate, and its uncertainty to first order.

    Attributes
    ----------
    flat_value, flat_standard_error : arrays (k,)
        All numbers that the function returned, in one row in the order of `names`, and their standard errors.
    flat_interval : array (k, 2)
        Lower and upper ends, symmetric: value ± z times standard error.
    jacobian : array (k, p)
        Derivatives with respect to the unconstrained parameters.
    free_covariance : array (p, p)
        Covariance of these.
    flat : boolean array (k,)
        Where the gradient is zero at the estimate, or so small that second-order terms are far larger: the first-order
        standard error is then meaningless, however small.
    names : tuple of str
    level : float
        The coverage aimed at by the intervals.
    description : str
        Which covariance was used.
    testable : tuple of bool, or None
        Of numbers given as text, whether zero can be tested: not of a parameter in whose range it is not, as a scale.

    Notes
    -----
    Of many fits every array has a leading axis. `value`, `standard_error` and `interval` are laid out as the function
    returns them.
    """

    flat_value: Any
    flat_standard_error: Any
    flat_interval: Any
    jacobian: Any
    free_covariance: Any
    flat: Any
    output: Output
    level: float
    description: str
    testable: tuple[bool, ...] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The name of every number."""
        return self.output.names

    @property
    def value(self) -> PyTree:
        """What the function returns at the estimate."""
        return self.output.arrange(self.flat_value)

    @property
    def standard_error(self) -> PyTree:
        """First-order standard errors, laid out like `value`."""
        return self.output.arrange(self.flat_standard_error)

    @property
    def interval(self) -> PyTree:
        """Like `value`, with a last axis of two, lower and upper."""
        return self.output.arrange(self.flat_interval, trailing=1)

    @property
    def covariance(self) -> Array:
        """Covariance matrix (k, k) of all numbers, in the order of `names`; computed at each access."""
        jacobian = jnp.asarray(self.jacobian).astype(self.free_covariance.dtype)
        half = jnp.matmul(jacobian, jnp.asarray(self.free_covariance), precision="highest")
        return jnp.matmul(half, jacobian.mT, precision="highest")

    @entry_point
    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each number (needs the extra `frames`); not of a batch."""
        pd = require("pandas", "frames")
        if jnp.ndim(self.flat_value) != 1:
            raise ValueError("this is of a batch. Take the arrays, or frame that of one fit: fits[0].")
        return pd.DataFrame(self._numbers(), columns=list(COLUMNS), index=pd.Index(self.names, name="name"))

    def _numbers(self) -> np.ndarray:
        """Estimates, standard errors, z and p-value of zero, lower and upper ends (k, 6)."""
        errors = np.where(self.flat, np.nan, self.flat_standard_error)
        errors = errors if self.testable is None else np.where(self.testable, errors, np.nan)
        tests = zero_test(self.flat_value, errors)
        return np.column_stack([self.flat_value, self.flat_standard_error, *tests, self.flat_interval])

    def summary(self) -> Report:
        """The first thirty numbers with their standard errors and intervals; of many fits, the shape."""
        if jnp.ndim(self.flat_value) != 1 or isinstance(self.flat_value, jax.core.Tracer):
            return Report(f"Delta method: {', '.join(self.names[:SHOWN])}, of shape {jnp.shape(self.flat_value)}")
        ends = (f"{end} {percent(self.level)}" for end in ("lower", "upper"))
        titles = ("function", "estimate", "std. error", "z", "p-value", *ends)
        rows = [(name, *row) for name, row in zip(self.names, self._numbers(), strict=True)]
        notes = [f"{len(rows) - SHOWN} more are not shown: see to_frame()."] if len(rows) > SHOWN else []
        notes += _flatness(np.asarray(self.flat), self.names)
        table = ReportTable(titles, rows[:SHOWN], keys=COLUMNS, formats=TEST_FORMATS)
        return Report("Delta method", [("Covariance", self.description)], [table], notes)


_STATIC = ("output", "level", "description", "testable")
jax.tree_util.register_dataclass(
    DeltaEstimate, [f.name for f in fields(DeltaEstimate) if f.name not in _STATIC], list(_STATIC)
)


def _flatness(flat: Bool[np.ndarray, " k"], names: tuple[str, ...]) -> list[str]:
    """A note on numbers whose gradient vanishes; none where there are none."""
    if not np.any(flat):
        return []
    functions = listed([f"`{name}`" for name, is_flat in zip(names, flat, strict=True) if is_flat], 4)
    return [
        f"the gradient of {functions} is zero at the estimate: its first-order variance is 0 and no measure of its "
        "uncertainty, which second-order terms determine. Use a profile or the bootstrap."
    ]


@entry_point
def delta_method(
    fit: Fit,
    function: str | Sequence[str] | Callable[[PyTree], PyTree],
    *,
    kind: CovarianceKind | None = None,
    level: float = 0.95,
) -> DeltaEstimate:
    """The value of any function of the parameters at the estimate, its standard error and interval: var g(θ̂) ≈ G V Gᵀ.

    Parameters
    ----------
    fit : Fit
        Of a batch, every result gains the leading axis B.
    function : callable, or str or sequence of str
        ``function(params)``: a number, an array of any shape, or a pytree of them, in terms of jax.numpy. Predictions over a
        grid of covariates are ``lambda params: jax.vmap(lambda z: predict(params, z))(grid)``. Or parameters by name, and linear
        combinations of them: ``"scale"``, ``"a - b"``, ``["beta[1]", "0.5 (a + b)"]``; see `wald_test`.
    kind : {"observed", "expected", "empirical", "sandwich"}, optional
        The covariance V, as for `Fit.covariance`.
    level : float
        Coverage aimed at by the intervals.

    Returns
    -------
    DeltaEstimate
        With `value`, `standard_error` and `interval` laid out as the function returns its numbers, and the `covariance` of
        all of them. NaN, with a `FitWarning`, where the covariance is NaN.

    Raises
    ------
    ValueError, TypeError
        If the function returns nothing or something that is not floating, or the covariance was not kept.

    Notes
    -----
    Valid as far as the function is linear over a few standard errors. Intervals are symmetric and may leave the range of a
    positive quantity: take the logarithm as the function and the exponential of its ends. Where the gradient is zero at the
    estimate (a square at zero, a product of two zeros) the first-order variance is zero and meaningless; the second derivatives
    along two directions detect this, and `flat`, the report and a `FitWarning` name the numbers concerned.

    Cost: p passes of the function forward. A function equal to one given before is not compiled anew.

    References
    ----------
    van der Vaart, A. W. (1998), Asymptotic Statistics, theorem 3.1.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> y = jnp.array([1.0, 2.0, 3.0, 6.0])
    >>> fit = fj.fit(fj.families.weibull, {"shape": 1.0, "scale": 1.0}, y)
    >>> median = fj.delta_method(fit, lambda params: params["scale"] * jnp.log(2.0) ** (1.0 / params["shape"]))
    >>> print(f"{median.value:.3f} ± {median.standard_error:.3f}")
    2.730 ± 0.948
    >>> print(fj.delta_method(fit, "scale - 2 shape").names)
    ('scale - 2 shape',)
    """
    check_fit(fit)
    check_level(level)
    which, function = fit._check(kind), as_function(function, fit, "function")
    output = outline(function, fit, "function")
    value, errors, ends, jacobian, free, flat = of_each(fit, _Delta(OfParameters(ById(function))), which, level)
    testable = None
    if isinstance(function, LinearCombinations):
        edges = fit.layout.edges()
        is_inside = (edges[:, 0] < 0) & (edges[:, 1] > 0)
        # A combination of several parameters may be any number, as far as is known here.
        testable = tuple(
            bool(np.count_nonzero(row) > 1 or constant != 0 or is_inside[np.flatnonzero(row)[0]])
            for row, constant in zip(function.rows, function.constants, strict=True)
        )
    result = DeltaEstimate(value, errors, ends, jacobian, free, flat, output, level, fit.describe(which), testable)
    if not is_traced(fit):
        anywhere = np.any(np.asarray(flat).reshape(-1, len(output.names)), axis=0)
        for note in _flatness(anywhere, output.names):
            warn(note)
    return result


@dataclass(frozen=True)
class _Delta:
    """The delta method of one fit, compiled once for each function."""

    function: OfParameters

    def __call__(self, fit: Fit, kind: str, level: Any) -> tuple[Any, ...]:
        value, jacobian = linearize(self.function, fit)
        free = covariances.free_covariance(fit, kind)
        value = value.astype(free.dtype)
        variance = jnp.sum(jnp.matmul(jacobian.astype(free.dtype), free, precision="highest") * jacobian, axis=1)
        errors = jnp.sqrt(variance)
        reach = jax.scipy.special.ndtri(0.5 * (1 + jnp.asarray(level, free.dtype))) * errors
        ends = jnp.stack([value - reach, value + reach], axis=-1)

        # A gradient is called zero where the second-order change |½ dᵀHd| over a standard error is far larger than the
        # first-order one. Two random directions d: one that is special, such as an axis, misses a product of two zeros.
        def second_order(direction: Float[Array, " p"]) -> Float[Array, " k"]:
            def slope(free: Array) -> Array:
                return jax.jvp(lambda u: self.function(fit, u), (free,), (direction,))[1]

            return 0.5 * jnp.abs(jax.jvp(slope, (fit.free,), (direction,))[1])

        spread = covariances.root_diagonal(free).astype(fit.free.dtype)
        generator = np.random.default_rng(0)
        directions = [spread * generator.normal(size=spread.shape).astype(fit.free.dtype) for _ in range(2)]
        second = jnp.maximum(*map(second_order, directions)).astype(errors.dtype)
        return value, errors, ends, jacobian, free, (second > 0) & (errors <= FLAT_BELOW * second)
