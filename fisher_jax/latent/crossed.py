"""Crossed and nested effects: factors whose levels meet in any way, all rows one group; what `mixed` makes with ``levels=``.

Row i depends on the effects of its own level of each factor, r numbers in all, so that

    H = I + Σᵢ Zᵢᵀ Cᵢ Zᵢ,   Cᵢ (r, r) minus the Hessian of row i's log-density in its own effects.

The Cᵢ come from the derivatives of one row, for all rows at once, and are added up into H. Levels of one factor never share a row:
the blocks of the factor with which it costs least are eliminated first (see `many_effects.py`), and the others are dense.

Restricted maximum likelihood integrates the coefficients β of a linear predictor, too, over a flat prior: they are p more numbers
on which every row depends, in the dense part, without the identity. For a normal response with mean X β + Z b it is exact:

    ∫ N(y; X β, V) dβ = N(y; X β̂, V) (2π)^{p/2} det(Xᵀ V⁻¹ X)^{−1/2},   β̂ the estimate by generalised least squares,

the likelihood of error contrasts (Harville 1974) but for the constant ½ log det(Xᵀ X).
"""

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from fisher_jax.errors import check_count, kind_of, shown
from fisher_jax.families.location_scale import normal
from fisher_jax.families.positive import lognormal
from fisher_jax.fitting.status import Status
from fisher_jax.latent.grouped import Grouped
from fisher_jax.latent.many_effects import Bordered, Derivatives, IntegralOfMany
from fisher_jax.latent.marginal import MarginalModel, effects_in, layout_of_effects
from fisher_jax.latent.mixed import (
    COVARIANCE,
    SD,
    MixedDensity,
    MixedSample,
    check_rows_drawn_once,
    check_spread,
    describe_covariance,
    merge_constraints,
    rows_of,
    scale_effects,
)
from fisher_jax.models.constraints import positive, positive_definite
from fisher_jax.models.linked import log_density_of
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Declarations, EntryNames, Layout, layout_of, names_by_path
from fisher_jax.models.programs import UserFunction
from fisher_jax.numerics.array_namespace import AnyArray
from fisher_jax.numerics.differentiate import first_order, second_order, upper_triangle
from fisher_jax.numerics.jaxprs import flatten
from fisher_jax.reporting import listed


class Factor(NamedTuple):
    """A grouping factor: its name in the covariates, how many levels it has, and the effects of one level."""

    name: str
    levels: int
    layout: Layout
    is_correlated: bool

    @property
    def size(self) -> int:
        """How many effects a level has."""
        return self.layout.num_free

    @property
    def spread_name(self) -> str:
        """Under which name the parameters hold the distribution of the effects, by factor."""
        return COVARIANCE if self.is_correlated else SD

    def scale(self, params: PyTree, b: Float[Array, "*l s"]) -> PyTree:
        """The effects of levels on the scale of the predictor."""
        return scale_effects(b, params[self.spread_name][self.name], self.layout, correlated=self.is_correlated)

    def check_parameters(self, params: PyTree) -> None:
        """Raise where the distribution of the effects is missing or does not fit them."""
        of = self.spread_name
        if not isinstance(params, dict) or not isinstance(params.get(of), dict) or self.name not in params[of]:
            what = "covariance matrix (q, q)" if self.is_correlated else "standard deviations"
            raise ValueError(
                f"params must be a dictionary with the {what} of each factor's effects under {of!r}, as in "
                f"{{'beta': …, {of!r}: {{{self.name!r}: …}}}}."
            )
        place = f"params[{of!r}][{self.name!r}]"
        check_spread(params[of][self.name], self.layout, place, correlated=self.is_correlated)

    def codes(self, z: PyTree, weights: Array | None = None) -> Int[AnyArray, "*b n"]:
        """The level of each row; raise where the covariates do not hold it."""
        if not isinstance(z, dict):
            raise TypeError(
                f"given is {kind_of(z)}; a model with levels= takes a table, or a dictionary with the codes of the levels "
                f"under {self.name!r}."
            )
        if self.name not in z:
            raise ValueError(
                f"given has no column {self.name!r}, which holds the level of each row, a whole number from 0 to "
                f"{self.levels - 1}. It has {', '.join(map(str, z)) or 'none'}."
            )
        codes = z[self.name]
        if np.dtype(codes.dtype).kind not in "iu":
            raise TypeError(
                f"given {self.name!r} has dtype {codes.dtype}; expected the number of each row's level, whole numbers from 0 to "
                f"{self.levels - 1} in an integer array. numpy.unique(…, return_inverse=True) makes them of labels."
            )
        return codes

    def describe_outside(self, codes: np.ndarray) -> str:
        """The first row of a level that does not exist, in words; empty where there is none."""
        outside = np.flatnonzero((codes < 0) | (codes >= self.levels))
        if not len(outside):
            return ""
        return (
            f"{self.name!r} is {codes[outside[0]]} in row {outside[0]}; its {self.levels} levels are numbered from 0 to "
            f"{self.levels - 1}"
        )


class Rows(NamedTuple):
    """The rows of all levels: data, covariates and weights, and the level of each row by factor."""

    y: PyTree
    z: PyTree
    weights: Float[Array, " n"] | None
    codes: tuple[Int[Array, " n"], ...]


@dataclass(frozen=True)
class CrossedDensity(MixedDensity):
    """log p(y, b; θ) of all rows: given the effects of their levels, and b standard normal.

    Flat, b holds the effects level by level, factor by factor, the factor that is eliminated first.
    """

    factors: tuple[Factor, ...]
    coefficients: Layout | None = None  # those integrated, a dictionary
    entry_names: EntryNames = ()  # of vectors among them

    @property
    def made_with(self) -> tuple[Any, ...]:
        return *super().made_with, self.factors, self.coefficients, self.entry_names

    @property
    def num_random(self) -> int:
        """How many effects there are of all levels."""
        return sum(factor.levels * factor.size for factor in self.factors)

    @property
    def num_coefficients(self) -> int:
        """How many coefficients are integrated."""
        return 0 if self.coefficients is None else self.coefficients.num_free

    def by_level(self, b: Float[Array, " q"]) -> list[Float[Array, "levels size"]]:
        """The flat effects as one matrix for each factor."""
        ends = np.cumsum([factor.levels * factor.size for factor in self.factors])
        parts = jnp.split(b, ends)[:-1]
        return [part.reshape(factor.levels, factor.size) for part, factor in zip(parts, self.factors, strict=True)]

    def effects_of(self, params: PyTree, b: Float[Array, " q"]) -> PyTree:
        """Coefficients that are integrated, and the effects of all levels as the predictor takes them, with an axis over levels."""
        return self._restored(b[self.num_random :]) | self._scaled(params, self.by_level(b))

    def _restored(self, coefficients: Float[Array, "*l p"]) -> dict[str, PyTree]:
        """The coefficients integrated, by their names."""
        return {} if self.coefficients is None else effects_in(self.coefficients, coefficients)

    def _scaled(self, params: PyTree, parts: list[Float[Array, "*l s"]]) -> dict[str, PyTree]:
        return {factor.name: factor.scale(params, b) for factor, b in zip(self.factors, parts, strict=True)}

    def rows(self, y: PyTree, z: tuple[PyTree, ...]) -> Rows:
        """The rows with the levels that they belong to."""
        if not z:
            raise ValueError("a model with levels= needs given=, which holds the level of each row by factor.")
        y, (z,), weights = jax.tree.map(jnp.asarray, rows_of(y, z))
        return Rows(y, z, weights, tuple(factor.codes(z).astype(jnp.int32) for factor in self.factors))

    def places(self, rows: Rows) -> list[Int[Array, " n"]]:
        """Where each of the r effects of a row is in the flat b."""
        places, start = [], 0
        for factor, codes in zip(self.factors, rows.codes, strict=True):
            places += [start + codes * factor.size + k for k in range(factor.size)]
            start += factor.levels * factor.size
        return places + [jnp.full_like(rows.codes[0], start + k) for k in range(self.num_coefficients)]

    def terms(self, params: PyTree, rows: Rows, own: list[Float[Array, " n"]]) -> Float[Array, " n"]:
        """The weighted log-density of each row, given its own effects b."""
        predicted = jax.vmap(lambda own, z: self.predict_from(params, own, z))(own, rows.z)
        terms = jax.vmap(functools.partial(log_density_of, self.family))(predicted, rows.y)
        terms = jnp.asarray(terms, own[0].dtype)
        return terms if rows.weights is None else jnp.where(rows.weights == 0, 0, rows.weights * terms)

    def predict_from(self, params: PyTree, own: list[Float[Array, ""]], z: PyTree) -> dict[str, Any]:
        """The family's parameters for one row, given its own effects b and the coefficients."""
        starts = np.cumsum([0, *(factor.size for factor in self.factors)])
        effects = self._scaled(params, [jnp.stack(own[i:j]) for i, j in itertools.pairwise(starts)])
        if self.coefficients is not None:
            params = params | self._restored(jnp.stack(own[starts[-1] :]))
        return self.predict(params, effects, z)

    def check_linear(self, params: PyTree, rows: Rows) -> None:
        """Raise where the integral over coefficients would not be exact: where derivatives of a row's location depend on them."""
        if self.coefficients is None:
            return
        row = jax.tree.map(lambda leaf: leaf[0], rows.z)
        own = [jnp.zeros(())] * (sum(factor.size for factor in self.factors) + self.num_coefficients)

        def of_row(own: list[Array]) -> tuple[Any, Any]:
            predicted = self.predict_from(params, own, row)
            return jax.jacfwd(lambda own: self.predict_from(params, own, row)["loc"])(own), predicted["scale"]

        if flatten(jax.make_jaxpr(of_row)(own), keep_rules=True).uses_inputs():
            raise ValueError(
                "reml= integrates coefficients exactly where `loc` is linear in them and in the effects, and `scale` does not "
                "depend on them. The predictor is not of this kind: leave reml= out, for maximum likelihood."
            )

    def log_density_of_effects(self, rows: Rows, b: Float[Array, " q"]) -> Float[Array, ""]:
        """log p(b); not a number where a row is of a level that does not exist."""
        b = b[: self.num_random]
        value = -0.5 * (b @ b) - 0.5 * len(b) * math.log(2 * math.pi)
        for factor, codes in zip(self.factors, rows.codes, strict=True):
            value = jnp.where(jnp.any((codes < 0) | (codes >= factor.levels)), jnp.nan, value)
        return value

    def __call__(self, params: PyTree, b: Float[Array, " q"], y: PyTree, *z: PyTree) -> Float[Array, ""]:
        rows = self.rows(y, z)
        own = [b[place] for place in self.places(rows)]
        return jnp.sum(self.terms(params, rows, own)) + self.log_density_of_effects(rows, b)


@dataclass(frozen=True)
class CrossedSample(MixedSample):
    """One draw of the effects of all levels, and of y in each row given them. Equal where the densities are.

    Coefficients that are integrated are where their search starts: the distribution of error contrasts does not depend on them.
    """

    density: CrossedDensity
    coefficients: tuple[float, ...] = ()

    @property
    def made_with(self) -> tuple[Any, ...]:
        return *super().made_with, self.coefficients

    def __call__(self, key: Array, params: PyTree, *z: PyTree) -> PyTree:
        density = self.density
        rows = density.rows(None, z)
        key, key_of_effects = jax.random.split(key)
        dtypes = [jnp.result_type(leaf) for name in (SD, COVARIANCE) for leaf in jax.tree.leaves(params.get(name))]
        b = jax.random.normal(key_of_effects, (density.num_random,), jnp.result_type(*dtypes))
        b = jnp.concatenate([b, jnp.asarray(self.coefficients, b.dtype)])
        own = [b[place] for place in density.places(rows)]

        def draw(key: Array, own: list[Array], z: PyTree) -> PyTree:
            return density.family.sample(key, density.predict_from(params, own, z))  # type: ignore[misc]

        return jax.vmap(draw)(jax.random.split(key, len(rows.codes[0])), own, rows.z)


@dataclass(frozen=True)
class CrossedIntegral(IntegralOfMany):
    """log ∫ exp(joint) over the effects of all levels, with one factor eliminated."""

    joint: CrossedDensity

    @property
    def algebra(self) -> str:
        """How H is solved, in words."""
        first, *others = self.joint.factors
        dense = sum(factor.levels * factor.size for factor in others) + self.joint.num_coefficients
        return f"block-diagonal {first.levels} × {first.size}" + (f", dense {dense}" if dense else "")

    def derivatives(self, params: PyTree, y: PyTree, *z: PyTree) -> Callable[[Array], Derivatives]:
        """f, its gradient and H, as a function of the flat effects."""
        joint, rows = self.joint, self.joint.rows(y, z)
        joint.check_linear(params, rows)
        places = joint.places(rows)
        k, s, r = joint.factors[0].levels, joint.factors[0].size, len(places)
        m = len(self.start) - k * s
        codes = rows.codes[0]
        # The entry of [blocks, border, rest], flat, to which each pair of effects of a row adds.
        columns = [place - k * s for place in places[s:]]
        entries = [(i, j, (codes * s + i) * s + j) for i in range(s) for j in range(s)]
        entries += [(i, s + j, k * s * s + (codes * s + i) * m + c) for i in range(s) for j, c in enumerate(columns)]
        entries += [
            (s + i, s + j, k * s * (s + m) + a * m + c) for i, a in enumerate(columns) for j, c in enumerate(columns)
        ]
        into = jnp.concatenate([entry for _, _, entry in entries])
        number = {pair: i for i, pair in enumerate(upper_triangle(r))}
        pairs = [number[min(i, j), max(i, j)] for i, j, _ in entries]

        def at(b: Float[Array, " q"]) -> Derivatives:
            terms, slopes, bends = second_order(
                lambda own: joint.terms(params, rows, own), [b[place] for place in places]
            )
            sums = jnp.zeros(k * s * (s + m) + m * m, b.dtype).at[into].add(jnp.concatenate([bends[n] for n in pairs]))
            blocks, border, rest = jnp.split(sums, [k * s * s, k * s * (s + m)])
            matrix = Bordered(blocks.reshape(k, s, s), border.reshape(k, s, m), rest.reshape(m, m))
            value = jnp.sum(terms) + joint.log_density_of_effects(rows, b)
            prior = self._prior(b.dtype)
            return Derivatives(value, _add_up(places, slopes, -prior * b), matrix.plus_diagonal(prior))

        return at

    def gradient(self, params: PyTree, y: PyTree, *z: PyTree) -> Callable[[Array], Float[Array, " q"]]:
        """∇f, as a function of the flat effects."""
        joint, rows = self.joint, self.joint.rows(y, z)
        places = joint.places(rows)

        def at(b: Float[Array, " q"]) -> Float[Array, " q"]:
            _, slopes = first_order(lambda own: joint.terms(params, rows, own), [b[place] for place in places])
            return _add_up(places, slopes, -self._prior(b.dtype) * b)

        return at

    def _prior(self, dtype: Any) -> Float[Array, " q"]:
        """The information of the prior: one of each effect, zero of coefficients."""
        return jnp.concatenate([jnp.ones(self.joint.num_random, dtype), jnp.zeros(self.joint.num_coefficients, dtype)])


def _add_up(places: list[Array], slopes: list[Array], start: Float[Array, " q"]) -> Float[Array, " q"]:
    """The slopes by each row's own effects, added to those by all effects."""
    return start.at[jnp.concatenate(places)].add(jnp.concatenate(slopes))


class CrossedModel(MarginalModel):
    """A model made by `mixed` with ``levels=``: all rows are one observation."""

    def made_from(self) -> tuple[str, tuple[Any, ...]]:
        """The family and the predictor."""
        return "mixed", (self.joint.family, self.joint.predictor)

    @property
    def joint(self) -> CrossedDensity:
        """The joint density of the rows and the effects, standardised."""
        return self.integral.joint  # type: ignore[return-value]

    def check_draws(self, given: PyTree) -> None:
        """Raise where a row stands for several."""
        check_rows_drawn_once(given)

    def effects_of(self, params: PyTree, b: Float[Array, " q"]) -> PyTree:
        """The effects of all levels on the scale of the predictor, each with an axis over the levels."""
        return self.joint.effects_of(params, b)

    @property
    def num_effects(self) -> int:
        """How many effects a level has, over all factors, each with a variance of its own."""
        return sum(factor.size for factor in self.joint.factors)

    @property
    def effect_names(self) -> EntryNames:
        """Names of the entries of coefficients that are integrated."""
        return self.joint.entry_names

    @property
    def integrated(self) -> tuple[str, ...]:
        """The coefficients that are integrated, as in restricted maximum likelihood."""
        return () if self.joint.coefficients is None else self.joint.coefficients.names

    def count_rows(self, data: PyTree, given: PyTree, weights: Any) -> float | None:
        """How many rows there are."""
        rows = super().count_rows(data, given, weights)
        return float(np.shape(jax.tree.leaves(data)[0])[1]) if rows is None else rows

    def facts(self, params: PyTree) -> list[tuple[str, str]]:
        """How the effects are integrated; standard deviations and correlations of correlated ones; integrated coefficients."""
        facts = super().facts(params)
        facts += [
            fact
            for factor in self.joint.factors
            if factor.is_correlated
            for fact in describe_covariance(
                params[COVARIANCE][factor.name], [f"{factor.name}.{name}" for name in factor.layout.names]
            )
        ]
        if self.integrated:
            names = listed([f"`{name}`" for name in self.integrated], 4)
            facts.append(("Restricted likelihood", f"integrated over {names}; their estimates: predicted_effects(fit)"))
        return facts

    def explain(self, params: PyTree, y: PyTree, *z: PyTree) -> str:
        """Why the log-density is not finite, in words."""
        rows = self.joint.rows(y, z)
        for factor, codes in zip(self.joint.factors, rows.codes, strict=True):
            if words := factor.describe_outside(np.asarray(codes)):
                return f"where given {words}"
        if self.integrated and Status(int(jax.jit(self.integral.mode)(params, y, *z).status)) == Status.INDEFINITE:
            return "where the rows do not identify the coefficients: columns depend linearly on each other"
        return super().explain(params, y, *z)

    def check_data(self, data: PyTree, given: PyTree) -> None:
        """Raise where a row is of a level that does not exist."""
        if given is None:
            raise ValueError("a model with levels= needs given=, which holds the level of each row by factor.")
        rows = given.rows if isinstance(given, Grouped) else given
        for factor in self.joint.factors:
            codes = factor.codes(rows)
            if np.ndim(codes) != 2:
                raise ValueError(
                    f"given {factor.name!r} has shape {np.shape(codes)}; expected (1, n), one observation that holds all rows. "
                    "by_group(table, []) makes one."
                )
            if isinstance(codes, jax.core.Tracer):
                continue
            if words := factor.describe_outside(np.asarray(codes)[0]):
                raise ValueError(f"given {words}.")

    def check_parameters(self, params: PyTree) -> None:
        """Raise where the distribution of a factor's effects is missing or does not fit them."""
        for factor in self.joint.factors:
            factor.check_parameters(params)


def crossed_model(
    family: Model,
    predictor: UserFunction,
    effects: PyTree,
    levels: Any,
    correlated: Any,
    *,
    constraints: PyTree,
    initial: UserFunction | None,
    names: PyTree,
    reml: Any,
) -> CrossedModel:
    """The model of `mixed` with ``levels=``, whose arguments these are."""
    if not isinstance(effects, dict) or not effects:
        raise TypeError(
            f"effects is {shown(effects)}; with levels= it is a dictionary of grouping factors and the effects of one level of "
            "each, as in {'plate': 0.0, 'sample': {'intercept': 0.0, 'slope': 0.0}}."
        )
    if not isinstance(levels, dict) or set(levels) != set(effects):
        raise ValueError(
            f"levels={shown(levels)} must be a dictionary with the number of levels of each factor in effects, "
            f"{', '.join(map(str, effects))}."
        )
    if isinstance(correlated, bool | np.bool_):
        correlated = tuple(effects) if correlated else ()
    names_correlated = (correlated,) if isinstance(correlated, str) else tuple(correlated)
    if unknown := [name for name in names_correlated if name not in effects]:
        raise ValueError(f"correlated names {unknown[0]!r}, which is no factor in effects: {', '.join(effects)}.")
    factors = []
    for name, of_level in effects.items():
        if not jax.tree.leaves(of_level):
            raise ValueError(f"effects[{name!r}] holds no number. Give one for each effect of a level, as in 0.0.")
        layout, _ = layout_of(of_level)
        count = check_count(levels[name], 1, f"levels[{name!r}]", entries=layout.num_free)
        factors.append(Factor(name, count, layout, name in names_correlated))
    coefficients: Layout | None = None
    starts: tuple[float, ...] = ()
    entry_names: EntryNames = ()
    if reml is not None:
        _check_coefficients(family, reml, effects)
        of_coefficients = {name: names[name] for name in names if name in reml} if isinstance(names, dict) else {}
        names = {name: names[name] for name in names if name not in reml} if of_coefficients else names
        entry_names = names_by_path(of_coefficients)
        coefficients, _ = layout_of(reml, Declarations((), entry_names))
        starts = layout_of_effects(reml)[1]
    size = sum(factor.levels * factor.size for factor in factors) + len(starts)

    def cost(first: Factor) -> int:
        dense = size - first.levels * first.size
        return first.levels * first.size * (first.size**2 + dense**2) + dense**3

    factors.sort(key=cost)
    dense = size - factors[0].levels * factors[0].size
    if dense > len(starts):  # the border and the dense part, each about six times at once
        largest = max(factors[1:], key=lambda factor: factor.levels * factor.size)
        check_count(largest.levels, 1, f"levels[{largest.name!r}]", entries=6 * size * dense // largest.levels)
    layout, _ = layout_of(np.zeros(size))
    density = CrossedDensity(
        family, predictor, layout, bool(names_correlated), tuple(factors), coefficients, entry_names
    )
    own: dict[str, Any] = {}
    if any(not factor.is_correlated for factor in factors):
        own[SD] = {f.name: jax.tree.map(lambda _: positive, effects[f.name]) for f in factors if not f.is_correlated}
    if names_correlated:
        own[COVARIANCE] = dict.fromkeys(names_correlated, positive_definite)
    return CrossedModel(
        CrossedIntegral(density, density.layout, (0.0,) * (size - len(starts)) + starts, 1),
        sample=None if family.sample is None else CrossedSample(density, starts),
        constraints=merge_constraints(own, constraints or {}),
        initial=initial,
        names=names,
    )


def _check_coefficients(family: Model, reml: Any, effects: dict[str, Any]) -> None:
    """Raise where the integral over coefficients is not exact, and where they are not named."""
    if family not in (normal, lognormal):
        raise ValueError(
            f"reml= with {family!r}: restricted maximum likelihood is for families.normal and families.lognormal, where the "
            "integral over coefficients is exact. Leave reml= out, for maximum likelihood."
        )
    if not isinstance(reml, dict):
        raise TypeError(
            f"reml is {shown(reml)}; expected a dictionary of the coefficients that are integrated, zeros of their shapes, as in "
            "{'beta': numpy.zeros(3)}."
        )
    if both := [name for name in reml if name in effects or name in (SD, COVARIANCE)]:
        raise ValueError(f"reml names {both[0]!r}, which is the name of effects or of their distribution. Rename it.")
    layout_of_effects(reml)
