"""The maximum of a likelihood where functions of the parameters are zero, by multipliers: of one fit or of a batch."""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from fisher_jax.fitting.each import of_each
from fisher_jax.fitting.functions import OfParameters, numbers_of, outline
from fisher_jax.fitting.result import origin_of
from fisher_jax.inference.restricted import fit_again
from fisher_jax.inference.wald import WaldStatistic, check_rank
from fisher_jax.models.constraints import fixed
from fisher_jax.models.model import DependentModel, Model
from fisher_jax.models.parameters import Layout
from fisher_jax.models.programs import ById

_STIFFNESS = 100.0  # of the penalty, for restrictions in standard errors: a round leaves a hundredth or so
_MOST_ROUNDS = 30


class UnderRestriction(NamedTuple):
    """The fit with the restrictions, how far each fit is from them at its end in standard errors, and their names."""

    fit: Any
    away: Any
    names: tuple[str, ...]

    @property
    def holds(self) -> Any:
        """Whether the restrictions hold at the end, to what rounding allows."""
        return np.asarray(self.away <= 100 * _tolerance(self.fit.layout))


@dataclass(frozen=True)
class _Penalised:
    """A model's log-density, and its share of λᵀh − ½ρ|h|², h being the restrictions divided by their standard errors."""

    function: ById
    restriction: ById
    layout: Layout

    def __call__(self, parts: dict[str, Any], *arguments: PyTree) -> Array:
        params = self.layout.assemble(parts["params"])
        away = _away(self.restriction, self.layout, parts)
        penalty = jnp.sum(parts["multiplier"] * away) - 0.5 * parts["stiffness"] * jnp.sum(away**2)
        return self.function.function(params, *arguments) + penalty / parts["total"]


def _away(restriction: ById, layout: Layout, parts: dict[str, Any]) -> Array:
    """The restrictions in standard errors."""
    found = numbers_of(restriction.function, layout.assemble(parts["params"]))
    return jnp.matmul(parts["scale"], found, precision="highest")


def fit_under(full: Any, restriction: Any) -> UnderRestriction:
    """Fit again where `restriction(params)` is zero, from the estimates without it.

    The method of multipliers: each round is a fit of the penalised likelihood, after which λ takes over what the penalty
    held. The restrictions are taken in their standard errors at the estimate, so that one stiffness suits all.

    References
    ----------
    Nocedal, J. and Wright, S. J. (2006), Numerical Optimization, 2nd ed., framework 17.3 and eq. (17.39).
    """
    names = outline(restriction, full, "restriction").names
    _, slopes, variance = of_each(full, WaldStatistic(OfParameters(ById(restriction))), "observed")
    check_rank(np.asarray(slopes), names)
    model = _penalised(full, restriction)
    parts = _parts(full, _inverse_root(np.asarray(variance)))
    last: Any = np.inf
    for _ in range(_MOST_ROUNDS):
        found = fit_again(full, model, parts)
        parts = found.params
        away = np.asarray(_distances(ById(restriction), full.layout, parts, full.has_batch))
        size = np.linalg.norm(away, axis=-1)
        if not np.any((size > _tolerance(full.layout)) & np.isfinite(size)):
            break
        stiffness = np.asarray(parts["stiffness"])
        multiplier = np.asarray(parts["multiplier"]) - stiffness[..., None] * away
        parts = parts | {
            "multiplier": multiplier.astype(full.layout.dtype),
            "stiffness": np.where(size > 0.25 * last, 10 * stiffness, stiffness).astype(full.layout.dtype),
        }
        last = size
    return UnderRestriction(found, size, names)


def _tolerance(layout: Layout) -> float:
    """Standard errors within which a restriction holds."""
    return float(jnp.finfo(layout.dtype).eps ** 0.5)


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def _distances(restriction: ById, layout: Layout, parts: Any, batched: bool) -> Array:
    """The restrictions of a fit, or of each of a batch, in standard errors."""

    def one(parts: Any) -> Array:
        return _away(restriction, layout, parts)

    return (jax.vmap(one) if batched else one)(parts)


def _inverse_root(variance: np.ndarray) -> np.ndarray:
    """The L⁻¹ of variance = L Lᵀ; NaN where it is not positive definite."""
    known = np.all(np.isfinite(variance), axis=(-2, -1))
    filled = np.where(known[..., None, None], variance, np.eye(variance.shape[-1]))
    definite = np.linalg.eigvalsh(filled)[..., 0] > 0
    root = np.linalg.cholesky(np.where(definite[..., None, None], filled, np.eye(variance.shape[-1])))
    return np.where((known & definite)[..., None, None], np.linalg.inv(root), np.nan)


def _penalised(full: Any, restriction: Any) -> Model:
    model = origin_of(full).model
    layout = full.layout
    constraints = {
        "params": [leaf.constraint for leaf in layout.leaves],
        **dict.fromkeys(("multiplier", "scale", "stiffness", "total"), fixed),
    }
    kind = DependentModel if model.is_dependent else Model
    return kind(_Penalised(ById(model.log_density), ById(restriction), layout), constraints=constraints)


def _parts(full: Any, scale: np.ndarray) -> dict[str, Any]:
    """Where the first round starts: no multipliers yet."""
    ahead, dtype = scale.shape[:-2], full.layout.dtype
    return {
        "params": [np.asarray(value) for value in full.values],
        "multiplier": np.zeros(scale.shape[:-1], dtype),
        "scale": scale.astype(dtype),
        "stiffness": np.full(ahead, _STIFFNESS, dtype),
        "total": np.broadcast_to(np.asarray(full.num_observations, dtype), ahead),
    }
