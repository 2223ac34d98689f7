"""`delta_method`: how sure a function of the parameters is."""

from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from fisher_jax.errors import entry_point, require, warn
from fisher_jax.fitting import covariance as covariances
from fisher_jax.fitting import intervals
from fisher_jax.fitting.each import check_fit, of_each
from fisher_jax.fitting.functions import OfParameters, Output, linearised, outline
from fisher_jax.fitting.result import Fit
from fisher_jax.models.programs import ById
from fisher_jax.numerics.array_namespace import is_traced
from fisher_jax.reporting import Report, Reported, Table, number

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
        Where the gradient is zero at the estimate, or so near to it that second-order terms dwarf what it tells: a
        first-order standard error, however small, then says nothing.
    names : tuple of str
    level : float
        The coverage aimed at by the intervals.
    description : str
        Which covariance was used.

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

    @property
    def names(self) -> tuple[str, ...]:
        """The name of every number."""
        return self.output.names

    @property
    def value(self) -> PyTree:
        """What the function returns at the estimate."""
        return self.output.arranged(self.flat_value)

    @property
    def standard_error(self) -> PyTree:
        """First-order standard errors, laid out like `value`."""
        return self.output.arranged(self.flat_standard_error)

    @property
    def interval(self) -> PyTree:
        """Like `value`, with a last axis of two, lower and upper."""
        return self.output.arranged(self.flat_interval, trailing=1)

    @property
    def covariance(self) -> Array:
        """Covariance matrix (k, k) of all numbers, in the order of `names`; formed when asked for."""
        jacobian = jnp.asarray(self.jacobian).astype(self.free_covariance.dtype)
        half = jnp.matmul(jacobian, jnp.asarray(self.free_covariance), precision="highest")
        return jnp.matmul(half, jacobian.mT, precision="highest")

    @entry_point
    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each number (needs the extra `frames`); not of a batch."""
        pd = require("pandas", "frames")
        if jnp.ndim(self.flat_value) != 1:
            raise ValueError("this is of a batch. Take the arrays, or frame that of one fit: fits[0].")
        return pd.DataFrame(self._columns(), index=pd.Index(self.names, name="name"))

    def _columns(self) -> dict[str, np.ndarray]:
        ends = np.asarray(self.flat_interval)
        columns = {"estimate": self.flat_value, "standard_error": self.flat_standard_error}
        return {name: np.asarray(part) for name, part in columns.items()} | {"lower": ends[:, 0], "upper": ends[:, 1]}

    def _table(self) -> Report:
        percent = f"{100 * self.level:g} %"
        columns = zip(*self._columns().values(), strict=True)
        rows = [(name, *map(number, row)) for name, row in zip(self.names, columns, strict=True)]
        hidden = len(rows) - SHOWN
        notes = [f"{hidden} more are not shown: see to_frame()."] if hidden > 0 else []
        titles = ("function", "estimate", "std. error", f"lower {percent}", f"upper {percent}")
        return Report(
            "Delta method", [("Covariance", self.description)], [Table(titles, rows[:SHOWN])], notes + self._notes()
        )

    def _notes(self) -> list[str]:
        names = [name for name, flat in zip(self.names, np.asarray(self.flat), strict=True) if flat]
        return [flatness(names)] if names else []

    def summary(self) -> Report:
        if jnp.ndim(self.flat_value) != 1 or isinstance(self.flat_value, jax.core.Tracer):
            return Report(f"Delta method: {', '.join(self.names[:SHOWN])}, of shape {jnp.shape(self.flat_value)}")
        return self._table()


_STATIC = ("output", "level", "description")
jax.tree_util.register_dataclass(
    DeltaEstimate, [f.name for f in fields(DeltaEstimate) if f.name not in _STATIC], list(_STATIC)
)


def flatness(names: list[str]) -> str:
    """What is said of numbers whose gradient vanishes."""
    said = ", ".join(f"`{name}`" for name in names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return (
        f"the gradient of {said} is zero at the estimate: its first-order variance is 0 and says nothing of how uncertain "
        "it is, which second-order terms decide. Use a profile or the bootstrap."
    )


@entry_point
def delta_method(function: Any, fit: Any, kind: str | None = None, level: Any = 0.95) -> DeltaEstimate:
    """The value of any function of the parameters at the estimate, its standard error and interval: var g(θ̂) ≈ G V Gᵀ.

    Parameters
    ----------
    function : callable
        ``function(params)``: a number, an array of any shape, or a pytree of them, in terms of jax.numpy. Predictions over a
        grid of covariates are ``lambda params: jax.vmap(lambda z: predict(params, z))(grid)``.
    fit : Fit
        Of a batch, every result gains the leading axis B.
    kind : {"observed", "expected", "empirical", "sandwich"}, optional
        The covariance V, as for `Fit.covariance`.
    level : float
        Coverage aimed at by the intervals.

    Returns
    -------
    DeltaEstimate
        With `value`, `standard_error` and `interval` laid out as the function returns its numbers, and the `covariance` of
        all of them. NaN where the covariance is; a `FitWarning` says why.

    Raises
    ------
    ValueError, TypeError
        If the function returns nothing or something that is not floating, or the covariance was not kept.

    Notes
    -----
    Good as far as the function is straight over a few standard errors. Intervals are symmetric and may leave the range of what
    is positive: ask for the logarithm and take the exponential of its ends. Where the gradient is zero at the estimate (a
    square at zero, a product of two zeros) the first-order variance is zero and meaningless; this is found by the second
    derivative along two directions, and said in `flat`, in print and by a `FitWarning`.

    Cost: p passes of the function forward. A function equal to one given before is not compiled anew.

    References
    ----------
    van der Vaart, A. W. (1998), Asymptotic Statistics, theorem 3.1.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> y = jnp.array([1.0, 2.0, 3.0, 6.0])
    >>> fit = fj.fit(fj.families.gamma, {"shape": 1.0, "rate": 1.0}, y)
    >>> mean = fj.delta_method(lambda params: params["shape"] / params["rate"], fit)
    >>> print(f"{mean.value:.3f} ± {mean.standard_error:.3f}")
    3.000 ± 0.927
    """
    check_fit(fit)
    intervals.check_level(level)
    kind = fit._check(kind)
    output = outline(function, fit, "function")
    one = _Delta(OfParameters(ById(function)))
    value, errors, ends, jacobian, free, flat = of_each(fit, one, kind, level)
    result = DeltaEstimate(value, errors, ends, jacobian, free, flat, output, level, fit.describe(kind))
    if not is_traced(fit):
        somewhere = np.any(np.asarray(flat).reshape(-1, len(output.names)), axis=0)
        if np.any(somewhere):
            warn(f"{flatness([output.names[k] for k in np.flatnonzero(somewhere)])}")
    return result


@dataclass(frozen=True)
class _Delta:
    """The delta method of one fit, compiled once for each function."""

    function: OfParameters

    def __call__(self, fit: Fit, kind: str, level: Any) -> tuple[Any, ...]:
        value, jacobian = linearised(self.function, fit)
        free = covariances.free_covariance(fit, kind)
        value = value.astype(free.dtype)
        variance = jnp.sum(jnp.matmul(jacobian.astype(free.dtype), free, precision="highest") * jacobian, axis=1)
        errors = jnp.sqrt(variance)
        reach = jax.scipy.special.ndtri(0.5 * (1 + jnp.asarray(level, free.dtype))) * errors
        ends = jnp.stack([value - reach, value + reach], axis=-1)
        return value, errors, ends, jacobian, free, self._flat(fit, free, errors)

    def _flat(self, fit: Fit, free: Float[Array, "p p"], errors: Float[Array, " k"]) -> Bool[Array, " k"]:
        """Whether second-order changes over a standard error, along two directions with nothing special, dwarf the first."""
        spread = covariances.root_diagonal(free).astype(fit.free.dtype)
        generator = np.random.default_rng(0)
        bends = [
            self._second(fit, spread * generator.normal(size=spread.shape).astype(fit.free.dtype)) for _ in range(2)
        ]
        second = jnp.maximum(*bends).astype(errors.dtype)
        return (second > 0) & (errors <= FLAT_BELOW * second)

    def _second(self, fit: Fit, direction: Float[Array, " p"]) -> Float[Array, " k"]:
        """|½ dᵀHd| of every number."""

        def slope(free: Array) -> Array:
            return jax.jvp(lambda u: self.function(fit, u), (free,), (direction,))[1]

        return 0.5 * jnp.abs(jax.jvp(slope, (fit.free,), (direction,))[1])
