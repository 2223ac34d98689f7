"""`linked`: a family whose parameters are functions of covariates and of other parameters: regressions, curves, images."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from fisher_jax.errors import check_function, entry_point, kind_of
from fisher_jax.models.model import Model, check_without_prior
from fisher_jax.models.parameters import Layout, layout_of
from fisher_jax.models.programs import UserFunction, call_differentiable


class LinkedModel(Model):
    """A model made by `linked`: its information is Jᵀ I_η J, where the family has I_η in closed form."""

    def made_from(self) -> tuple[str, tuple[Any, ...]]:
        """The family and the predictor."""
        return "linked", (self.family, self.log_density.predictor)

    @property
    def family(self) -> Model:
        """The family whose parameters η are predicted."""
        return self.log_density.family

    @property
    def atoms(self) -> tuple[float, ...]:
        """Those of the family."""
        return self.family.atoms

    def known_interval(self, params: PyTree, y: PyTree, *z: PyTree) -> tuple[Any, Any] | None:
        """That of the family."""
        return self.family.known_interval(self.log_density.predict(params, *z), y)

    def predict(self, params: PyTree, *z: PyTree) -> Float[Array, " e"]:
        """The family's free parameters η for one observation, flat."""
        return self.log_density.layout(params, *z)[1]

    def log_probability(self, params: PyTree, low: Any, high: Any, *z: PyTree) -> Array:
        """log P(low < Y ≤ high), by the family."""
        return self.family.log_probability(self.log_density.predict(params, *z), low, high)

    @property
    def how_to_draw(self) -> str:
        """What to give so that the family has a sampler."""
        return self.family.how_to_draw

    @property
    def numbers_in_row(self) -> int:
        """As many as an observation of the family."""
        return self.family.numbers_in_row

    def explain(self, params: PyTree, y: PyTree, *z: PyTree) -> str:
        """What the family knows of the observation."""
        return self.family.explain(self.log_density.predict(params, *z), y)

    def check_data(self, data: PyTree, given: PyTree) -> None:
        """What the family checks of its observations."""
        self.family.check_data(data, None)

    def family_information(self, params: PyTree, *z: PyTree) -> tuple[Layout, Any]:
        """The layout of η and what the family's closed form returns at it, for one observation."""
        layout, _, predicted = self.log_density.layout(params, *z)
        return layout, self.family.information(predicted)  # type: ignore[misc]


def call_predictor(predictor: UserFunction, arguments: tuple[Any, ...]) -> dict[str, Any]:
    """What a user's predictor returns: a family's parameters for one observation; raise where it is no dictionary."""
    predicted = call_differentiable(predictor, arguments, "predictor")
    if not isinstance(predicted, dict):
        raise TypeError(
            f"the predictor must return a dictionary of the family's parameters, as in {{'rate': …}}, but returned "
            f"{kind_of(predicted)}."
        )
    return predicted


def log_density_of(family: Model, predicted: dict[str, Any], y: PyTree) -> Array:
    """The family's log-density of one observation at predicted parameters; raise where one is missing."""
    try:
        return family.log_density(predicted, y)
    except KeyError as error:
        raise ValueError(
            f"the family needs the parameter {error}, but the predictor returned {', '.join(sorted(map(str, predicted)))}."
        ) from error


@dataclass(frozen=True)
class _Linked:
    """One of a family's functions, with its parameters predicted. Equal where family and predictor are."""

    family: Model
    predictor: UserFunction

    @property
    def user_function(self) -> UserFunction:
        """Where its programs are stored; see `models.programs.owner_of`."""
        return self.predictor

    @property
    def made_with(self) -> tuple[Model]:
        """What else it is made of."""
        return (self.family,)

    def predict(self, params: PyTree, *z: PyTree) -> dict[str, Any]:
        """η as a dictionary, as the family takes it."""
        return call_predictor(self.predictor, (params, *z))


class _LogDensity(_Linked):
    def __call__(self, params: PyTree, y: PyTree, *z: PyTree) -> Array:
        return log_density_of(self.family, self.predict(params, *z), y)

    def layout(self, params: PyTree, *z: PyTree) -> tuple[Layout, Float[Array, " e"], dict[str, Any]]:
        """The layout of η, η flat, and η as a dictionary."""
        # In JAX's order, so that η flat is what `jax.tree.leaves` gives.
        predicted = jax.tree.map(lambda eta: eta, self.predict(params, *z))
        layout, values = layout_of(predicted, self.family.declarations)
        return layout.natural(), layout.join([jnp.asarray(value) for value in values]), predicted


class _Sample(_Linked):
    def __call__(self, key: Array, params: PyTree, *z: PyTree) -> PyTree:
        return self.family.sample(key, self.predict(params, *z))  # type: ignore[misc]


class _Quantile(_Linked):
    def __call__(self, uniform: Array, params: PyTree, *z: PyTree) -> PyTree:
        return self.family.quantile(uniform, self.predict(params, *z))  # type: ignore[misc]


class _LogCdf(_Linked):
    def __call__(self, params: PyTree, y: PyTree, *z: PyTree) -> Array:
        return self.family.log_cdf(self.predict(params, *z), y)  # type: ignore[misc]


class _LogSurvival(_Linked):
    def __call__(self, params: PyTree, y: PyTree, *z: PyTree) -> Array:
        return self.family.log_survival(self.predict(params, *z), y)  # type: ignore[misc]


class _Mean(_Linked):
    def __call__(self, params: PyTree, *z: PyTree) -> PyTree:
        return self.family.mean(self.predict(params, *z))  # type: ignore[misc]


class _Support(_Linked):
    def __call__(self, params: PyTree, *z: PyTree) -> tuple[Any, Any]:
        return self.family.support(self.predict(params, *z))  # type: ignore[operator,misc]


@entry_point
def linked(
    family: Model,
    predictor: UserFunction,
    *,
    constraints: PyTree = None,
    initial: UserFunction | None = None,
    names: PyTree = None,
) -> Model:
    """A model in which a family's parameters η are functions of the user's parameters θ and covariates z.

    Its Fisher information is Jᵀ I_η J with J = ∂η/∂θ: exact, positive semi-definite, without draws or second derivatives.

    Parameters
    ----------
    family : Model
        One of `fisher_jax.families`, or any model whose params are a dictionary. For the exact information it needs its
        closed form.
    predictor : callable
        ``predictor(params, z)``, or ``predictor(params)`` where there are no covariates: the dictionary of the family's
        parameters for one observation, those that the family holds fixed (a number of trials) included.
    constraints, initial, names
        Of the user's parameters, as for `Model`. The family's own constraints are not enforced: choose a predictor that
        satisfies them, for example an exponential for a rate.

    Returns
    -------
    Model
        With the family's sampler, its distribution, survival and quantile functions, mean and support, where it has them.

    Raises
    ------
    TypeError
        If the family is no model.

    References
    ----------
    Lehmann, E. L. and Casella, G. (1998), Theory of Point Estimation, 2nd ed., eq. (2.6.16).

    Examples
    --------
    A Poisson regression; an image is the same with the pixels' coordinates for z and a point-spread function inside.

    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> model = fj.linked(fj.families.poisson, lambda beta, z: {"rate": jnp.exp(z @ beta)})
    >>> design = jnp.array([[1.0, 0.0], [1.0, 1.0]])
    >>> print(fj.fisher_information(model, jnp.zeros(2), given=design).matrix)
    [[1.  0.5]
     [0.5 0.5]]
    """
    if not isinstance(family, Model):
        raise TypeError(f"family must be a Model such as families.poisson, got {type(family).__name__}.")
    check_function(predictor, "predictor", "params (and z)")
    check_without_prior(family, "linked")
    return LinkedModel(
        _LogDensity(family, predictor),
        sample=None if family.sample is None else _Sample(family, predictor),
        quantile=None if family.quantile is None else _Quantile(family, predictor),
        log_cdf=None if family.log_cdf is None else _LogCdf(family, predictor),
        log_survival=None if family.log_survival is None else _LogSurvival(family, predictor),
        mean=None if family.mean is None else _Mean(family, predictor),
        support=_Support(family, predictor) if callable(family.support) else family.support,
        discrete=family.discrete,
        constraints=constraints,
        initial=initial,
        names=names,
    )
