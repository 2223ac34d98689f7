"""Links: functions from a linear predictor η to a parameter of a family, and back.

The parameter `logit` of a family of choices is log(p / (1 − p)); a link of it is one of the probability p, put in those terms so
that no digit is lost where p is near zero or one.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.special  # scipy.stats takes as long to import as half of JAX
from jax.scipy.special import log_ndtr, ndtr
from jaxtyping import Array, Float

from fisher_jax.models.constraints import Constraint, Interval, Unconstrained
from fisher_jax.numerics.stable_functions import sigmoid


class Link(NamedTuple):
    """The parameter of a linear predictor, and the linear predictor of one value of the parameter."""

    inverse: Callable[[Float[Array, "*b"]], Float[Array, "*b"]]
    forward: Callable[[float], float]


def _cloglog_to_logit(eta: Any) -> Any:
    # p = 1 − exp(−e^η): log p − log(1 − p), with log(1 − p) = −e^η
    rate = jnp.exp(eta)
    return jnp.log(-jnp.expm1(-rate)) + rate


# Of a parameter as it is.
LINKS = {
    "identity": Link(lambda eta: eta, lambda value: value),
    "log": Link(jnp.exp, math.log),
    "sqrt": Link(lambda eta: eta * eta, math.sqrt),
    "inverse": Link(lambda eta: 1.0 / eta, lambda value: 1.0 / value),
    "inverse_squared": Link(lambda eta: 1.0 / jnp.sqrt(eta), lambda value: value**-2),
    "logit": Link(sigmoid, scipy.special.logit),
    "probit": Link(ndtr, scipy.special.ndtri),
    "cloglog": Link(lambda eta: -jnp.expm1(-jnp.exp(eta)), lambda value: math.log(-math.log1p(-value))),
    "loglog": Link(lambda eta: jnp.exp(-jnp.exp(-eta)), lambda value: -math.log(-math.log(value))),
    "cauchit": Link(lambda eta: 0.5 + jnp.arctan(eta) / math.pi, lambda value: math.tan(math.pi * (value - 0.5))),
}

# Of a probability whose logit is the parameter.
LINKS_OF_LOGIT = {
    "logit": Link(lambda eta: eta, lambda logit: logit),
    "probit": Link(
        lambda eta: log_ndtr(eta) - log_ndtr(-eta), lambda logit: scipy.special.ndtri(scipy.special.expit(logit))
    ),
    "cloglog": Link(_cloglog_to_logit, lambda logit: math.log(np.logaddexp(0.0, logit))),
    "loglog": Link(lambda eta: -_cloglog_to_logit(-eta), lambda logit: -math.log(np.logaddexp(0.0, -logit))),
    "cauchit": Link(
        lambda eta: jnp.log(0.5 + jnp.arctan(eta) / math.pi) - jnp.log(0.5 - jnp.arctan(eta) / math.pi),
        lambda logit: math.tan(math.pi * (scipy.special.expit(logit) - 0.5)),
    ),
    "log": Link(lambda eta: eta - jnp.log(-jnp.expm1(eta)), lambda logit: -float(np.logaddexp(0.0, -logit))),
    "identity": Link(lambda eta: jnp.log(eta) - jnp.log1p(-eta), scipy.special.expit),
}


def links_of(parameter: str) -> dict[str, Link]:
    """The links that a parameter of a family may have."""
    return LINKS_OF_LOGIT if parameter == "logit" else LINKS


def default_link(parameter: str, constraint: Constraint | None) -> str:
    """The link whose parameters are those that the constraint allows."""
    if parameter == "logit" or constraint == Interval(0.0, 1.0):
        return "logit"
    if constraint == Interval(0.0, math.inf):
        return "log"
    if constraint is None or isinstance(constraint, Unconstrained):
        return "identity"
    raise ValueError(
        f"the parameter `{parameter}` is {constraint.description}, for which there is no link. Write a predictor for "
        "fisher_jax.linked."
    )
