"""`with_auxiliary`: a model beside which something else was measured once, a term of the log-likelihood that counts once.

    ℓ(θ) = Σᵢ wᵢ log p(yᵢ; θ) + log q(m; θ)

with the auxiliary measurement m: the calibration of a nuisance parameter, a number of events. The rows are those of the model, as
they would be without it; the term is added where sums over rows are. One measurement does not show its own spread: where the scores
of the rows are summed as s sᵀ, the term enters by −∇² log q in the user's parameters, an estimate of the variance of its score.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from fisher_jax.errors import call_user, check_function, entry_point, kind_of
from fisher_jax.models.fingerprint import content_of
from fisher_jax.models.model import Model, as_model, check_arity
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.programs import ById, UserFunction, call_differentiable


class Observed(NamedTuple):
    """The data of a model with an auxiliary measurement, as they are stored: the measurement stands beside each row.

    So every leaf has the axis of rows, and what selects, pads and weights rows needs to know nothing of it.
    """

    observations: PyTree
    measured: PyTree

    @property
    def holds_data(self) -> bool:
        """Unlike the results of this library, which are no data."""
        return True


class AuxiliaryModel(Model):
    """A model made by `with_auxiliary`. Its rows are those of `base`, with the measurement beside them."""

    def made_from(self) -> tuple[str, tuple[Any, ...]]:
        """The model and the density of the measurement."""
        return "with_auxiliary", (self.base, self.auxiliary)

    @property
    def base(self) -> Model:
        """The model without the term."""
        return self.log_density.base

    @property
    def numbers_in_row(self) -> int:
        """As many as an observation of the base."""
        return self.base.numbers_in_row

    def explain(self, params: PyTree, y: Observed, *z: PyTree) -> str:
        """What the base knows of the observation."""
        return self.base.explain(params, y.observations, *z)

    def check_data(self, data: Observed, given: PyTree) -> None:
        """What the base checks of its observations."""
        self.base.check_data(data.observations, given)

    @property
    def auxiliary(self) -> UserFunction:
        """The log-density of the measurement."""
        return self.log_density.auxiliary

    @property
    def draw_auxiliary(self) -> UserFunction | None:
        """The sampler of the measurement."""
        return self.log_density.draw


@dataclass(frozen=True)
class _OfRows:
    """One of the base model's functions, for rows with the measurement beside them. Equal where the models are."""

    base: Model
    auxiliary: UserFunction
    draw: UserFunction | None

    @property
    def user_function(self) -> UserFunction:
        """Where its programs are stored; see `models.programs.owner_of`."""
        return self.base.log_density

    @property
    def made_with(self) -> tuple[Any, ...]:
        """What else it is made of."""
        return (content_of(self.auxiliary)[0] or ById(self.auxiliary),)


class _LogDensity(_OfRows):
    def __call__(self, params: PyTree, y: Observed, *z: PyTree) -> Array:
        check_arity(self.base.log_density, ("params", "y", *("z",) * len(z)), "log_density")
        return self.base.log_density(params, y.observations, *z)


class _Sample(_OfRows):
    def __call__(self, key: Array, params: PyTree, *z: PyTree) -> Observed:
        of_row, of_measurement = jax.random.split(key)
        measured = call_user(self.draw, (of_measurement, params), "sample of the auxiliary measurement")  # type: ignore[arg-type]
        return Observed(self.base.sample(of_row, params, *z), jax.tree.map(jnp.asarray, measured))  # type: ignore[misc]


class _Initial(_OfRows):
    def __call__(self, data: Observed, *given: PyTree) -> PyTree:
        return self.base.initial(data.observations, *given)  # type: ignore[misc]


@entry_point
def with_auxiliary(model: Model, log_density: UserFunction, *, sample: UserFunction | None = None) -> Model:
    """A model with an auxiliary measurement m: ℓ(θ) = Σᵢ wᵢ log p(yᵢ; θ) + log q(m; θ), with the second term once.

    A nuisance parameter that a calibration gives as m ± s has ``norm.logpdf(m, params["nuisance"], s)`` for q (the constraint
    term of particle physics); a Poisson number of events has ``poisson.logpmf(m, expected(params))``, which makes the likelihood
    the extended one. The data are then the pair ``(y, m)``.

    Parameters
    ----------
    model : Model or callable
        The model of the observations, with the constraints of all parameters, also of those that only m depends on.
    log_density : callable
        ``log_density(params, measured)``: log q in nats, a scalar. Several measurements are a pytree, and their log-densities are
        summed.
    sample : callable, optional
        ``sample(key, params)``: one draw of m, for the bootstrap and other draws of data sets.

    Returns
    -------
    Model
        To be fitted to the data ``(y, m)``, m a number, an array or a pytree of them: ``fit(model, start, (y, m))``. For many data
        sets m has the axis over them, ``(B,)`` beside ``(B, n)``, or is shared with ``data_axis=(0, None)``; in a list each entry
        is such a pair.

    Raises
    ------
    TypeError, ValueError
        If an argument is no function, or the model is `dependent` (whose terms can be added to) or has a measurement already.

    Notes
    -----
    What follows from it:

    - The observed information is the sum of that of the rows and −∇² log q, and so is ``covariance()``: that of θ̂ when y and m are
      drawn anew. Profiles and the tests take the term along.
    - One measurement does not show its own spread, and where it alone determines a parameter its score at the estimate is zero
      whatever its error. So the middle of the sandwich, and of `robust` however its observations are clustered, is
      Σ wᵢ sᵢ sᵢᵀ − ∇² log q, the second derivatives being those in the user's parameters: the rows are taken as they vary, the
      measurement as q describes it. The same is ``"empirical"``. There is no ``"expected"`` information, and no Fisher
      information per observation.
    - n, in BIC and elsewhere, is that of the observations; weights and clusters are theirs, and weights leave the term alone.
    - The bootstrap draws m anew by `sample` beside the rows, resampled or drawn (the unconditional ensemble); without `sample` it
      raises, for with m as it is the replicates vary too little. A number of events is drawn anew while the rows stay as many as
      there are, which is right to first order.
    - In `fit_batch` the fits run in arrays; see `engine`.

    References
    ----------
    Barlow, R. (1990), Nucl. Instrum. Methods A 297, 496-506, for the extended likelihood; Cranmer, K. (2015), Practical Statistics
    for the LHC, arXiv:1503.07622, sections 2.2 and 2.4, for auxiliary measurements and their ensemble.

    Examples
    --------
    A rate times an efficiency, which a calibration gives as 0.8 ± 0.1:

    >>> import fisher_jax as fj, jax, jax.numpy as jnp
    >>> from jax.scipy.stats import norm, poisson
    >>> def log_density(params, y):
    ...     return poisson.logpmf(y, params["rate"] * params["efficiency"])
    >>> model = fj.with_auxiliary(
    ...     fj.Model(log_density, constraints={"rate": (0, None), "efficiency": (0, None)}),
    ...     lambda params, measured: norm.logpdf(measured, params["efficiency"], 0.1),
    ...     sample=lambda key, params: params["efficiency"] + 0.1 * jax.random.normal(key),
    ... )
    >>> counts = jnp.array([8.0, 12.0, 10.0, 10.0])
    >>> fit = fj.fit(model, {"rate": 10.0, "efficiency": 1.0}, (counts, 0.8))
    >>> print(f"{fit.params['rate']:.2f} ± {fit.standard_errors()['rate']:.3f}")
    12.50 ± 2.519
    """
    model = as_model(model)
    check_function(log_density, "log_density", "params and what was measured")
    if sample is not None:
        check_function(sample, "sample", "a key and params")
    if model.is_dependent:
        raise ValueError("the model is dependent. Add the measurement's log-density to its terms, as one term more.")
    if isinstance(model, AuxiliaryModel):
        raise ValueError(
            "the model has an auxiliary measurement already. Put both in one function, with measured a pair or a dictionary."
        )
    return add_auxiliary(model, log_density, sample)


def add_auxiliary(model: Model, auxiliary: UserFunction, draw: UserFunction | None) -> AuxiliaryModel:
    """The model with the term, where the arguments are known to be right."""
    parts = model, auxiliary, draw
    return AuxiliaryModel(
        _LogDensity(*parts),
        sample=None if model.sample is None or draw is None else _Sample(*parts),
        initial=None if model.initial is None else _Initial(*parts),
        constraints=model.constraints,
        names=model.names,
        prior=model.prior,
    )


def without_auxiliary(model: Model, data: PyTree) -> tuple[Model, PyTree]:
    """The model and the data of the rows, without an auxiliary measurement."""
    return (model.base, data.observations) if isinstance(model, AuxiliaryModel) else (model, data)


def auxiliary_term(model: Model, params: PyTree, measured: PyTree) -> Array:
    """The log-density of the measurement, checked to be a floating scalar."""
    function: Any = model.auxiliary
    check_arity(function, ("params", "measured"), "the log-density of the auxiliary measurement")
    value = call_differentiable(function, (params, measured), "the log-density of the auxiliary measurement")
    if not hasattr(value, "dtype") or jnp.shape(value) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        what = f"shape {jnp.shape(value)}, {value.dtype}" if hasattr(value, "dtype") else kind_of(value)
        raise ValueError(
            f"the log-density of the auxiliary measurement must return one floating number, but returned {what}. Sum the "
            "log-densities of several measurements."
        )
    return value


def auxiliary_derivatives(
    model: Model, layout: Layout, values: Values, measured: PyTree, free: Float[Array, " p"]
) -> tuple[Float[Array, ""], Float[Array, " p"], Float[Array, "p p"], Float[Array, "p p"]]:
    """The log-density of the measurement at u, its gradient, minus its Hessian, and the variance of its score.

    The variance is that of −∇² log q with respect to the user's parameters, Jᵀ (−∇²) J. Minus the Hessian with respect to u has
    also the slope times the curvature of the constraints, so that a sandwich made of it would depend on how parameters are
    constrained, where the slope is not zero.
    """

    def term(params: PyTree) -> Float[Array, ""]:
        return auxiliary_term(model, params, measured).astype(layout.dtype)

    def at(free: Float[Array, " p"]) -> Float[Array, ""]:
        return term(layout.constrain(free, values))

    point, push = jax.linearize(lambda free: layout.constrained_values(free, values), free)

    def at_linear(step: Float[Array, " p"]) -> Float[Array, ""]:
        moved = [
            value if leaf.is_fixed else value + change
            for leaf, value, change in zip(layout.leaves, point, push(step), strict=True)
        ]
        return term(layout.assemble(moved))

    value, slope = jax.value_and_grad(at)(free)
    return value, slope, -jax.jacfwd(jax.grad(at))(free), -jax.jacfwd(jax.grad(at_linear))(jnp.zeros_like(free))


def first_row(measured: PyTree) -> PyTree:
    """The measurement, which is the same beside every row."""
    return jax.tree.map(lambda leaf: leaf[0], measured)


def same_in_every_row(drawn: Observed) -> Observed:
    """Rows that were drawn each with a measurement of its own, with that of the first."""
    measured = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), drawn.measured)
    return Observed(drawn.observations, measured)


def check_without_auxiliary(model: Model, what: str) -> None:
    """Raise where there is an auxiliary measurement, which has no part in quantities of one observation."""
    if isinstance(model, AuxiliaryModel):
        raise ValueError(
            f"the model has an auxiliary measurement, which counts once, and {what} is about one observation. Give the model "
            "without it, or see the covariance of a fit and its bootstrap."
        )
