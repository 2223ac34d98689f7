"""Fits under a restriction: entries of the parameters at given values, or functions of the parameters equal to zero.

Given values leave a model of the other entries, which is fitted as any model. A restriction h(θ) = 0 is met by the method of
multipliers (Nocedal and Wright 2006, Numerical Optimization, 2nd ed., framework 17.3): each round is a fit of

    ℓ(θ) + λᵀh(θ) − ½ρ|h(θ)|²,

after which λ ← λ − ρ h, eq. (17.39), takes over what the penalty exerted, and ρ grows where h did not shrink enough. h is divided
by its standard errors at the estimate, so that one ρ suits every restriction: the penalty is then ρ times as stiff as the
likelihood.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from fisher_jax.fitting.fit import fit, fit_batch
from fisher_jax.fitting.map_fits import of_each
from fisher_jax.fitting.parameter_functions import OfParameters, numbers_of, outline
from fisher_jax.fitting.passes import passes_of
from fisher_jax.fitting.result import Fit, model_of, origin_of
from fisher_jax.inference.hypothesis import Hypothesis
from fisher_jax.inference.wald import WaldStatistic, check_rank
from fisher_jax.models.auxiliary import AuxiliaryModel, add_auxiliary
from fisher_jax.models.constraints import Interval, Unconstrained, fixed
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.model import DependentModel, Model
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.prior import describe_prior, log_prior, takes_strength, with_prior
from fisher_jax.models.programs import ById

_STIFFNESS = 100.0  # ρ at first: a round then leaves about a hundredth of h
_MOST_ROUNDS = 30


def fit_again(full: Fit, model: Model, params: PyTree, **options: Any) -> Fit:
    """Another model fitted to the data of a fit, or to those of a batch with starts for each; with options of `fit`."""
    if (passes := passes_of(full)) is not None:
        return fit(model, params, **passes.arguments_by_name, **options)
    dataset = origin_of(full).dataset
    data, given, weights = dataset.parts
    if dataset.strength:
        options = options | {"strength": dataset.strength_given}
    if not full.has_batch:
        return fit(model, params, data, given=given, weights=weights, **options)
    axes = dict(zip(("data_axis", "given_axis", "weights_axis"), dataset.axes, strict=True))
    return fit_batch(model, params, data, given=given, weights=weights, start_axis=0, covariances=(), **axes, **options)


# Entries at given values.


@dataclass(frozen=True)
class _WithValues:
    """A model's log-density with its parameters in two parts, those estimated and those at given values, by leaf."""

    function: ById
    layout: Layout
    entries: tuple[tuple[int, ...], ...]  # of each leaf, those at given values, in order

    @property
    def user_function(self) -> Any:
        """With this its programs are kept, since this record is made anew for each test."""
        return self.function.function

    @property
    def made_with(self) -> tuple[Any, ...]:
        """What distinguishes it from others of the same user's function."""
        return self.layout, self.entries

    @property
    def has_both_modes(self) -> bool:
        """Whether JAX differentiates it either way, so that this need not be found out."""
        return getattr(self.function.function, "has_both_modes", False)

    def of(self, function: Any) -> "_WithValues":
        """Another function of the old parameters as one of the two parts."""
        return replace(self, function=ById(function))

    def __call__(self, parts: dict[str, list[Any]], *arguments: PyTree, **options: Any) -> Any:
        values = []
        for leaf, entries, free, given in zip(
            self.layout.leaves, self.entries, parts["estimated"], parts["given"], strict=True
        ):
            if free is None or given is None:  # the leaf is in one part
                values.append(jnp.reshape(given if free is None else free, leaf.shape))
            else:
                order = np.argsort([*(k for k in range(leaf.size) if k not in entries), *entries])
                values.append(jnp.concatenate([free, given.astype(free.dtype)])[order].reshape(leaf.shape))
        return self.function.function(self.layout.assemble(values), *arguments, **options)


def refit(full: Fit, hypothesis: Hypothesis) -> Fit:
    """The fit, or the fits of a batch, with entries at their hypothesised values; from the estimates of the others."""
    model, layout, batched = model_of(full), full.layout, full.has_batch
    inside = dict(zip((i for i, _ in layout.free_leaves), layout.contains(full.values), strict=True))
    parts: dict[str, list[Any]] = {"estimated": [], "given": []}
    constraints: dict[str, list[Any]] = {"estimated": [], "given": []}
    all_entries = []
    for i, leaf in enumerate(layout.leaves):
        value, entries = np.asarray(full.values[i]), hypothesis.entries_of(i)
        all_entries.append(tuple(entries))
        if 0 < len(entries) < leaf.size and not isinstance(leaf.constraint, Interval | Unconstrained):
            raise ValueError(
                f"`{leaf.name}` is {leaf.constraint.description}, so some of its entries cannot be held while the "
                "others move. Write the model under the hypothesis, fit it, and give that fit."
            )
        if not batched and not entries and i in inside and not inside[i]:
            raise ValueError(
                f"the estimate of `{leaf.name}`, {value}, is not inside its range, so the restricted model has no start. "
                "Write the model under the hypothesis, fit it, and give that fit."
            )
        numbers = np.array(list(entries.values()), layout.dtype)
        numbers = np.broadcast_to(numbers, (len(value), len(numbers))) if batched else numbers
        free: np.ndarray | None = value
        given: np.ndarray | None = None
        if leaf.is_fixed or len(entries) == leaf.size:
            free, given = None, value if leaf.is_fixed else numbers.reshape(value.shape)
        elif entries:
            flat = value.reshape((*value.shape[: int(batched)], -1))
            free, given = np.delete(flat, list(entries), axis=-1), numbers
        parts["estimated"].append(free)
        parts["given"].append(given)
        constraints["estimated"].append(None if free is None else leaf.constraint)
        constraints["given"].append(None if given is None else fixed)
    restricted = _remake(
        model, lambda function: _WithValues(ById(function), layout, tuple(all_entries)), constraints=constraints
    )
    return fit_again(full, restricted, parts)


class _MarginalInParts(Model):
    """A model with latent effects in other parameters, whose modes are found at the old ones that these stand for."""

    @property
    def with_modes(self) -> Any:
        """From (parts, y, z) of a group to y with the mode of its effects."""
        density = self.log_density
        return density.of(density.function.function.with_mode)

    @property
    def num_latent(self) -> int:  # type: ignore[override]
        """How many effects a group has."""
        return len(self.log_density.function.function.start)


def _remake(
    model: Model, wrap: Callable[[Any], Any], penalize: Callable[[Any], Any] | None = None, *, constraints: PyTree
) -> Model:
    """The model in other parameters, by what makes a function of these of one of the old; the terms of rows may have another."""
    rows = wrap if penalize is None else penalize
    prior = None if model.prior is None else _PriorInParts(model, wrap(_params))
    if isinstance(model, AuxiliaryModel):
        base = Model(rows(model.base.log_density), constraints=constraints)
        return with_prior(add_auxiliary(base, wrap(model.auxiliary), None), prior)
    remade = DependentModel if model.is_dependent else Model if model.with_modes is None else _MarginalInParts
    return remade(rows(model.log_density), constraints=constraints, prior=prior)


def _params(params: PyTree) -> PyTree:
    return params


@dataclass(frozen=True)
class _PriorInParts:
    """A model's prior as a function of other parameters, which `params_of` turns into the old ones."""

    model: Model
    params_of: Any

    @property
    def user_function(self) -> Any:
        """With this its programs are kept."""
        return self.model.log_density

    @property
    def made_with(self) -> tuple[Any, ...]:
        """What distinguishes it from others of the same user's function."""
        return self.model, self.params_of

    @property
    def takes_strength(self) -> bool:
        """Whether the prior does."""
        return takes_strength(self.model.prior)  # type: ignore[arg-type]

    @property
    def is_of_expected(self) -> bool:
        """Whether the prior is, in whose parts the information is not known."""
        return False

    @property
    def description(self) -> str:
        """The prior in words."""
        return describe_prior(self.model.prior)

    def __call__(self, parts: PyTree, *strength: Any) -> Array:
        raise NotImplementedError("it is asked for by of_data")

    def of_data(self, model: Model, layout: Layout, values: Values, dataset: Dataset, *strength: Any) -> Array:
        """The prior at the old parameters."""
        old = self.params_of.layout
        return log_prior(self.model, old, old.blocks(self.params_of(layout.assemble(values))), dataset)


# Functions of the parameters equal to zero.


class UnderRestriction(NamedTuple):
    """The fit under the restrictions, their length there in standard errors for each fit, and their names."""

    fit: Fit
    away: Float[np.ndarray, "*b"]
    names: tuple[str, ...]

    @property
    def holds(self) -> Bool[np.ndarray, "*b"]:
        """Whether the restrictions hold at the end, up to rounding."""
        return np.asarray(self.away <= 100 * _tolerance(self.fit.layout))


def _tolerance(layout: Layout) -> float:
    """Standard errors within which a restriction holds: half the digits, for h is squared in the penalty."""
    return float(jnp.finfo(layout.dtype).eps ** 0.5)


@dataclass(frozen=True)
class _Penalized:
    """A model's log-density and the penalty λᵀh − ½ρ|h|² divided by the number of observations, so that it adds up to one."""

    function: ById
    restriction: ById
    layout: Layout

    def of(self, function: Any) -> "_AtParams":
        """Another function of the old parameters as one of the same parts, without the penalty."""
        return _AtParams(ById(function), self.layout)

    def __call__(self, parts: dict[str, Any], *arguments: PyTree) -> Array:
        away = _standardized(self.restriction, self.layout, parts)
        penalty = jnp.sum(parts["multiplier"] * away) - 0.5 * parts["stiffness"] * jnp.sum(away**2)
        return self.function.function(self.layout.assemble(parts["params"]), *arguments) + penalty / parts["total"]


@dataclass(frozen=True)
class _AtParams:
    """A function of a model's parameters, of the same parts."""

    function: ById
    layout: Layout

    def __call__(self, parts: dict[str, Any], *arguments: PyTree, **options: Any) -> Any:
        return self.function.function(self.layout.assemble(parts["params"]), *arguments, **options)


def _standardized(restriction: ById, layout: Layout, parts: dict[str, Any]) -> Float[Array, " k"]:
    """The restrictions in standard errors, L⁻¹ h with L Lᵀ their covariance at the estimate."""
    numbers = numbers_of(restriction.function, layout.assemble(parts["params"]))
    return jnp.matmul(parts["scale"], numbers, precision="highest")


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def _standardized_of_each(
    restriction: ById, layout: Layout, parts: dict[str, Any], batched: bool
) -> Float[Array, "*b k"]:
    function = functools.partial(_standardized, restriction, layout)
    return (jax.vmap(function) if batched else function)(parts)


def fit_under(full: Fit, restriction: Any) -> UnderRestriction:
    """Fit again where `restriction(params)` is zero, from the estimates without it, by the method of multipliers."""
    names = outline(restriction, full, "restriction").names
    model, layout, by_id = model_of(full), full.layout, ById(restriction)
    _, slopes, variance = of_each(full, WaldStatistic(OfParameters(by_id)), "observed")
    check_rank(np.asarray(slopes), names)

    # L⁻¹ of variance = L Lᵀ; NaN where that is not positive definite, so that this fit fails and the others go on.
    identity, variance = np.eye(len(names)), np.asarray(variance)
    finite = np.all(np.isfinite(variance), axis=(-2, -1))[..., None, None]
    variance = np.where(finite, variance, identity)
    definite = np.linalg.eigvalsh(variance)[..., :1, None] > 0
    root = np.linalg.cholesky(np.where(definite, variance, identity))
    scale = np.where(finite & definite, np.linalg.inv(root), np.nan)

    batch, dtype = scale.shape[:-2], layout.dtype
    parts: dict[str, Any] = {
        "params": [np.asarray(value) for value in full.values],
        "multiplier": np.zeros(scale.shape[:-1], dtype),
        "scale": scale.astype(dtype),
        "stiffness": np.full(batch, _STIFFNESS, dtype),
        "total": np.broadcast_to(np.asarray(full.num_observations, dtype), batch),
    }
    # λ, ρ and the rest are fixed parameters, not constants of the density: one program serves every round.
    constraints = dict.fromkeys(parts, fixed) | {"params": [leaf.constraint for leaf in layout.leaves]}
    penalized = _remake(
        model,
        lambda function: _AtParams(ById(function), layout),
        lambda function: _Penalized(ById(function), by_id, layout),
        constraints=constraints,
    )
    last: Any = np.inf
    for _ in range(_MOST_ROUNDS):
        under = fit_again(full, penalized, parts)
        parts = under.params
        away = np.asarray(_standardized_of_each(by_id, layout, parts, full.has_batch))
        length = np.linalg.norm(away, axis=-1)
        if not np.any((length > _tolerance(layout)) & np.isfinite(length)):
            break
        stiffness, multiplier = np.asarray(parts["stiffness"]), np.asarray(parts["multiplier"])
        parts = parts | {
            "multiplier": (multiplier - stiffness[..., None] * away).astype(dtype),
            "stiffness": np.where(length > 0.25 * last, 10 * stiffness, stiffness).astype(dtype),
        }
        last = length
    return UnderRestriction(under, length, names)
