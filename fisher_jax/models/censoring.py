"""Right-censored observations: an event at a time, or none up to it."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from fisher_jax.models.model import Model


@dataclass(frozen=True)
class _RightCensored:
    """log p(time) where event is 1, log P(Y > time) where it is 0. Equal where the models are."""

    model: Model

    @property
    def user_function(self) -> Any:
        """Where its programs are stored; see `models.programs.owner_of`."""
        return self.model.log_density

    @property
    def made_with(self) -> tuple[Any, ...]:
        """What else it is made of."""
        return self.model.declarations, self.model.function_keys

    def __call__(self, params: PyTree, y: dict[str, Array], *z: PyTree) -> Array:
        if not isinstance(y, dict):
            raise ValueError(
                "right-censored observations are not drawn: the model has no distribution of censoring times."
            )
        time, event = y["time"], y["event"]
        survival: Any = self.model.log_survival
        at_event, after = self.model.log_density(params, time, *z), survival(params, time, *z)
        return jnp.where(event == 1, at_event, jnp.where(event == 0, after, jnp.nan))


@dataclass(frozen=True)
class _Initial:
    """The model's `initial` of all times, as if each ended with an event."""

    model: Model

    def __call__(self, y: dict[str, Any], *given: PyTree) -> PyTree:
        return self.model.initial(y["time"], *given)  # type: ignore[misc]


def right_censored(model: Model) -> Model:
    """The model of {"time": …, "event": …}: event 1 where y is known to be `time`, 0 where it is known to exceed it.

    Mean, quantiles and support are those of y itself, censored or not, which is what a prediction is about.
    """
    if model.log_survival is None:
        raise ValueError(
            f"{model!r} has no log_survival, of which censored observations need the value. Give Model(…, log_survival=function of "
            "params and y), or take a family that has it: exponential, weibull, lognormal, normal, logistic, gumbel."
        )
    initial = None if model.initial is None else _Initial(model)
    return Model(
        _RightCensored(model),
        constraints=model.constraints,
        initial=initial,
        quantile=model.quantile,
        mean=model.mean,
        support=model.support,
    )
