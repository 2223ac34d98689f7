"""`mixed`: a family whose parameters depend on covariates and on normal effects that the rows of a group share."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.errors import check_count, check_flag, check_function, entry_point, kind_of
from fisher_jax.latent.grouped import Grouped
from fisher_jax.latent.marginal import MarginalModel, cholesky, effects_in, layout_of_effects, marginal
from fisher_jax.models.constraints import positive, positive_definite
from fisher_jax.models.linked import call_predictor, log_density_of
from fisher_jax.models.model import Model, check_arity, check_without_prior
from fisher_jax.models.parameters import Layout
from fisher_jax.models.programs import UserFunction
from fisher_jax.numerics.array_namespace import AnyArray

if TYPE_CHECKING:
    from fisher_jax.latent.crossed import CrossedModel

SD, COVARIANCE = "sd", "covariance"  # the names under which the parameters hold the distribution of the effects


class MixedModel(MarginalModel):
    """A model made by `mixed`."""

    def made_from(self) -> tuple[str, tuple[Any, ...]]:
        """The family and the predictor."""
        return "mixed", (self.joint.family, self.joint.predictor)

    @property
    def joint(self) -> "MixedDensity":
        """The joint density of a group's rows and its effects, standardised."""
        return self.integral.joint  # type: ignore[return-value]

    @property
    def num_effects(self) -> int:
        """How many effects a group has, each with a variance of its own."""
        return self.joint.layout.num_free

    def count_rows(self, data: PyTree, given: PyTree, weights: Any) -> float | None:
        """How many rows the groups have."""
        rows = super().count_rows(data, given, weights)
        if rows is not None:
            return rows
        groups, length = np.shape(jax.tree.leaves(data)[0])[:2]
        return float(length * (groups if weights is None else np.sum(np.asarray(weights))))

    def check_parameters(self, params: PyTree) -> None:
        """Raise where the distribution of the effects is missing or does not fit them."""
        self.joint.check_parameters(params)

    def check_draws(self, given: PyTree) -> None:
        """Raise where a row stands for several."""
        check_rows_drawn_once(given)

    def effects_of(self, params: PyTree, b: Float[Array, " q"]) -> PyTree:
        """The effects on the scale of the predictor."""
        return self.joint.effects_of(params, b)

    def facts(self, params: PyTree) -> list[tuple[str, str]]:
        """How the effects are integrated; of correlated effects the standard deviations and the correlations."""
        facts = super().facts(params)
        if self.joint.correlated:
            facts += describe_covariance(params[COVARIANCE], self.joint.layout.names)
        return facts


def describe_covariance(covariance: Float[AnyArray, "q q"], names: Sequence[str]) -> list[tuple[str, str]]:
    """Standard deviations and correlations of effects in words, for a report."""
    covariance = np.asarray(covariance)
    deviations = np.sqrt(np.diagonal(covariance))
    with np.errstate(all="ignore"):  # of effects without variance there is no correlation
        correlations = covariance / np.outer(deviations, deviations)
    each = [f"{name} {deviation:.5g}" for name, deviation in zip(names, deviations, strict=True)]
    pairs = [f"{names[j]} and {names[i]} {correlations[i, j]:.4f}" for i in range(len(names)) for j in range(i)]
    return [("Standard deviations", ", ".join(each)), *([("Correlations", ", ".join(pairs))] if pairs else [])]


@dataclass(frozen=True)
class MixedDensity:
    """log p(y, b; θ) of a group: its rows given the effects L b, and b standard normal."""

    family: Model
    predictor: UserFunction
    layout: Layout  # of the effects
    correlated: bool

    @property
    def user_function(self) -> UserFunction:
        """Where its programs are stored; see `models.programs.owner_of`."""
        return self.predictor

    @property
    def made_with(self) -> tuple[Any, ...]:
        """What else it is made of."""
        return self.family, self.layout, self.correlated

    def check_parameters(self, params: PyTree) -> None:
        """Raise where the distribution of the effects is missing or does not fit them."""
        name = COVARIANCE if self.correlated else SD
        if not isinstance(params, dict) or name not in params:
            what = "covariance matrix (q, q)" if self.correlated else "standard deviations, shaped like them"
            raise ValueError(
                f"params must be a dictionary with the effects' {what} under {name!r}, as in {{'beta': …, {name!r}: …}}."
            )
        check_spread(params[name], self.layout, f"params[{name!r}]", correlated=self.correlated)

    def effects_of(self, params: PyTree, b: Float[Array, " q"]) -> PyTree:
        """L b: the effects as the predictor takes them."""
        spread = params[COVARIANCE if self.correlated else SD]
        return scale_effects(b, spread, self.layout, correlated=self.correlated)

    def predict(self, params: PyTree, effects: PyTree, *z: PyTree) -> dict[str, Any]:
        """The family's parameters for one row."""
        check_arity(self.predictor, ("params", "effects", "z")[: 2 + len(z)], "predictor")
        return call_predictor(self.predictor, (params, effects, *z))

    def __call__(self, params: PyTree, b: Float[Array, " q"], y: PyTree, *z: PyTree) -> Float[Array, ""]:
        effects = self.effects_of(params, b)
        y, z, weights = rows_of(y, z)

        def of_row(y: PyTree, *z: PyTree) -> Float[Array, ""]:
            return log_density_of(self.family, self.predict(params, effects, *z), y)

        terms = jax.vmap(of_row)(y, *z)
        if weights is not None:
            terms = jnp.where(weights == 0, 0, weights * terms)
        return jnp.sum(terms) + jnp.sum(jax.scipy.stats.norm.logpdf(b))


@dataclass(frozen=True)
class MixedSample:
    """One draw of the effects, and of y in each row given them. Equal where the densities are."""

    density: MixedDensity

    @property
    def user_function(self) -> UserFunction:
        """Where its programs are stored; see `models.programs.owner_of`."""
        return self.density.predictor

    @property
    def made_with(self) -> tuple[Any, ...]:
        """What else it is made of."""
        return self.density.made_with

    def __call__(self, key: Array, params: PyTree, *z: PyTree) -> PyTree:
        if not z:
            raise ValueError(
                "draws from a mixed model need given=, the covariates of each row, which tell how many rows a group has."
            )
        _, z, _ = rows_of(None, z)
        key, key_of_effects = jax.random.split(key)
        of_effects = jax.tree.leaves(params[COVARIANCE if self.density.correlated else SD])
        b = jax.random.normal(key_of_effects, (self.density.layout.num_free,), jnp.result_type(*of_effects))
        effects = self.density.effects_of(params, b)
        keys = jax.random.split(key, len(jax.tree.leaves(z)[0]))

        def draw(key: Array, *z: PyTree) -> PyTree:
            return self.density.family.sample(key, self.density.predict(params, effects, *z))  # type: ignore[misc]

        return jax.vmap(draw)(keys, *z)


def check_spread(spread: PyTree, layout: Layout, place: str, *, correlated: bool) -> None:
    """Raise where standard deviations or a covariance matrix, which params hold at `place`, do not fit the effects."""
    shapes, q = jax.tree.map(jnp.shape, spread), layout.num_free
    expected = (q, q) if correlated else layout.assemble([leaf.shape for leaf in layout.leaves])
    if shapes != expected:
        each = "a row for each effect" if correlated else "a standard deviation for each effect, by its name"
        raise ValueError(f"{place} has shape {shapes}; expected {expected}, {each}.")


def scale_effects(b: Float[Array, "*l q"], spread: PyTree, layout: Layout, *, correlated: bool) -> PyTree:
    """Effects as the predictor takes them: standard normal b times standard deviations, or the Cholesky factor of a covariance."""
    if correlated:
        lower, _ = cholesky(spread)
        columns = [sum(lower[i, j] * b[..., j] for j in range(i + 1)) for i in range(b.shape[-1])]
        effects = jnp.stack(columns, axis=-1)
    else:
        effects = b * jnp.broadcast_to(layout.flatten(spread).astype(b.dtype), b.shape)
    return effects_in(layout, effects)


def rows_of(y: PyTree, z: tuple[PyTree, ...]) -> tuple[PyTree, tuple[PyTree, ...], Array | None]:
    """The rows of a group, of data and covariates, and how often each counts; None where each counts once."""
    grouped = [isinstance(part, Grouped) for part in (y, *z)]
    if grouped[0] and z and not grouped[1]:
        raise TypeError(
            "data is grouped and given is not, so that draws of data would not know which rows only fill up a group. Take both "
            "from by_group."
        )
    weights = next((part.weights for part in (*z, y) if isinstance(part, Grouped)), None)
    y, *rest = (part.rows if isinstance(part, Grouped) else part for part in (y, *z))
    shapes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves((y, rest, weights))}
    if len(shapes) > 1 or () in shapes:
        of_data, *of_given = (jax.tree.map(jnp.shape, part) for part in (y, *rest))
        raise ValueError(
            f"a group has data of shape {of_data}{f' and given of {of_given[0]}' if of_given else ''}; expected arrays (m, …) "
            "with the same number m of rows, of G groups (G, m, …). fisher_jax.by_group makes them of a long table."
        )
    return y, tuple(rest), weights


def check_rows_drawn_once(given: PyTree) -> None:
    """Raise where a row of a mixed model stands for several equal ones: a draw of it would be one that is counted as often."""
    for part in jax.tree.leaves(given, is_leaf=lambda part: isinstance(part, Grouped)):
        if isinstance(part, Grouped) and not isinstance(part.weights, jax.core.Tracer):
            weights = np.asarray(part.weights)
            if not np.all(np.isin(weights, (0, 1))):
                first = weights[~np.isin(weights, (0, 1))][0]
                raise ValueError(
                    f"draws from the model, in which rows have weights such as {first:g}: what is drawn for a row would count as "
                    "often, as no sample of several rows does. Put such a row in the table once for each time, without weights."
                )


@entry_point
def mixed(
    family: Model,
    predictor: UserFunction,
    effects: PyTree,
    *,
    levels: dict[str, int] | None = None,
    correlated: bool | Collection[str] = False,
    reml: PyTree = None,
    nodes: int = 1,
    constraints: PyTree = None,
    initial: UserFunction | None = None,
    names: PyTree = None,
) -> "MixedModel | CrossedModel":
    """A model of groups of rows: a family whose parameters depend on covariates and on normal effects that a group's rows share.

    Parameters
    ----------
    family : Model
        One of `fisher_jax.families`, or any model whose params are a dictionary.
    predictor : callable
        ``predictor(params, effects, z)``, or ``predictor(params, effects)`` where there are no covariates: the dictionary of the
        family's parameters for one row, given the effects of its group.
    effects : pytree
        Zeros that give the effects their names and shapes, as in ``{"intercept": 0.0, "slope": 0.0}``. `predictor` is called
        with such a pytree.
    levels : dict of int, optional
        For nested and crossed effects: the keys of `effects` are then grouping factors, as in ``{"plate": 0.0, "sample":
        {"intercept": 0.0, "slope": 0.0}}``, and `levels` says how many levels each has. All rows are one group. Covariates are a
        table or a dictionary that holds under the name of each factor the number of the row's level, from 0; `predictor` gets
        the effects of the row's own levels. The levels of a nested factor are those of the combination.
    correlated : bool or names of factors
        Independent effects have standard deviations ``params["sd"]``, a pytree shaped like `effects`; correlated ones a
        covariance matrix ``params["covariance"]`` (q, q), in the order of `effects`. With `levels`, ``params["sd"]`` and
        ``params["covariance"]`` are dictionaries by factor, and the factors whose effects are correlated may be named.
    reml : dict, optional
        For restricted maximum likelihood, with `levels` and the normal family: zeros that give the coefficients of the linear
        predictor their names and shapes, as in ``{"beta": numpy.zeros(3)}``. They are integrated over a flat prior, and are
        parameters no longer: `predictor` finds them in `params` as before, `fit.params` holds the standard deviations alone, and
        `predicted_effects` has the estimates of coefficients.
    nodes : int
        Points of the quadrature along each axis, as for `marginal`; 1 is Laplace's approximation, the only one with `levels`.
    constraints, initial, names
        Of the parameters, as for `Model`. Standard deviations are positive and the covariance matrix positive definite without
        being named here.

    Returns
    -------
    MixedModel
        A model whose observation is a group: data, covariates and weights have a leading axis over the groups, and data and
        covariates a second one over the rows of a group. Where groups differ in size both come from `by_group`.

    Raises
    ------
    TypeError, ValueError
        As for `marginal`.

    Notes
    -----
    The effects are L b with b standard normal, L diagonal or the Cholesky factor of the covariance matrix: the likelihood is
    that of normal effects, and is smooth where a standard deviation is zero.

    Restricted likelihoods of models with other coefficients are of other data, as it were, and cannot be compared. They have the
    constant of lme4, nlme and statsmodels, which leave out ½ log det(XᵀX). The errors of coefficients in `predicted_effects`
    contain the uncertainty of the variances, as those of statsmodels; lme4 and nlme print the conditional ones.

    A standard deviation whose best value is zero ends with the status "boundary": the errors of the other parameters are then
    those with it at zero.

    References
    ----------
    Harville, D. A. (1974), Bayesian inference for variance components using only error contrasts, Biometrika 61, 383-385, eq. (2).

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> def predictor(params, effects, z):
    ...     return {"rate": jnp.exp(params["mean"] + params["slope"] * z + effects["clinic"])}
    >>> model = fj.mixed(fj.families.poisson, predictor, {"clinic": 0.0})
    >>> counts = jnp.array([[3, 4, 6], [0, 1, 1], [7, 9, 15], [2, 1, 4], [5, 2, 8], [1, 0, 2]])
    >>> week = jnp.broadcast_to(jnp.arange(3.0), counts.shape)
    >>> fit = fj.fit(model, {"mean": 0.0, "slope": 0.0, "sd": {"clinic": 1.0}}, counts, given=week)
    >>> print(f"{fit.params['slope']:.3f} {fit.params['sd']['clinic']:.3f} {fit.converged}")
    0.390 0.839 True
    """
    if not isinstance(family, Model):
        raise TypeError(f"family is {kind_of(family)}; expected a Model such as families.poisson.")
    check_function(predictor, "predictor", "params and effects (and z)")
    check_without_prior(family, "mixed")
    if constraints is not None and not isinstance(constraints, dict):
        raise TypeError(
            f"constraints is {kind_of(constraints)}; expected a dictionary, as the parameters of a mixed model are."
        )
    if levels is not None:
        if check_count(nodes, 1, "nodes") > 1:
            raise ValueError(
                f"nodes={nodes} with levels= would need a point for each combination. Use nodes=1, Laplace's."
            )
        from fisher_jax.latent.crossed import crossed_model  # which extends this module

        return crossed_model(
            *(family, predictor, effects, levels, correlated),
            **{"constraints": constraints, "initial": initial, "names": names, "reml": reml},
        )
    if reml is not None:
        raise ValueError(
            "reml= needs levels=, for all rows depend on the coefficients that are integrated, and are one group. With one "
            "factor, too: effects={'subject': …} and levels={'subject': 18}."
        )
    check_flag(correlated, "correlated")
    layout, _ = layout_of_effects(effects)
    density = MixedDensity(family, predictor, layout, bool(correlated))
    ranges = {COVARIANCE: positive_definite} if correlated else {SD: jax.tree.map(lambda _: positive, effects)}
    base = marginal(density, np.zeros(layout.num_free, layout.dtype), nodes=nodes)
    return MixedModel(
        base.integral,
        sample=None if family.sample is None else MixedSample(density),
        constraints=merge_constraints(ranges, constraints or {}),
        initial=initial,
        names=names,
    )


def merge_constraints(default: PyTree, given: PyTree) -> PyTree:
    """The constraints given, and the defaults of parameters that are not among them."""
    if not isinstance(default, dict) or not isinstance(given, dict):
        return default if given is None else given
    return {key: merge_constraints(default.get(key), given.get(key)) for key in {**default, **given}}
