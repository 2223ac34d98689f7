"""`score_test`: would a parameter that the null keeps fixed, or a covariate that it lacks, improve the fit?

Let λ be the p nuisance parameters, estimated under the null, and ψ the k tested ones. With the slope C = J_λλ⁻¹ J_λψ of the
tested on the nuisance scores, the effective score is g_ψ − Cᵀ g_λ. Its variance is J_ψψ − J_ψλ C by the model, and
K_ψψ − Cᵀ K_λψ − K_ψλ C + Cᵀ K_λλ C, with K = Σ s sᵀ, where the model need not be right. S is its squared length in this
variance. A candidate covariate x enters by an offset xᵢψ of observation i, so that all its scores and second derivatives are
those along the offset, which are computed once for all candidates, times xᵢ.

References
----------
Rao, C. R. (1948), Proc. Camb. Phil. Soc. 44, 50-57; Boos, D. D. (1992), Am. Statistician 46, 327-333, eq. (7).
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, PyTree

from fisher_jax.blocks import blocks_of
from fisher_jax.errors import call_user, check_choice, entry_point, names_in, shown, to_numpy, warn
from fisher_jax.fitting.covariance import KINDS, CovarianceKind, precise
from fisher_jax.fitting.map_fits import check_fit, with_data
from fisher_jax.fitting.maximization import scoring_of
from fisher_jax.fitting.result import Fit, model_of
from fisher_jax.inference.hypothesis import HypothesisTest, chi_squared_test
from fisher_jax.information import Scoring, has_closed_form
from fisher_jax.information.closed_form import predicted
from fisher_jax.input_arrays import check_unmasked
from fisher_jax.models.constraints import Fixed, Interval, Unconstrained
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.likelihood import (
    Likelihood,
    derivatives_at,
    gradient_at,
    likelihood,
    outer_product_at,
    scores_at,
)
from fisher_jax.models.linked import LinkedModel
from fisher_jax.models.model import Model, check_arity
from fisher_jax.models.parameter_names import all_names, choose_estimated, read_restrictions
from fisher_jax.models.parameters import Layout, Leaf, layout_of
from fisher_jax.models.programs import ById
from fisher_jax.numerics import linalg
from fisher_jax.reporting import listed

# What is left of the variance of a score when the nuisance scores explain all of it is rounding: some thousand ε.
ROUNDING = 1e4
# A function `enters` is the model's log-density if its scores agree to this part of their size.
SAME_SCORES = 1e-2
NO_STATISTIC = 1e-20  # below which a statistic may be zero because all scores are

INFORMATION = {
    "observed": "observed information at the null estimate",
    "expected": "expected (Fisher) information at the null estimate",
    "empirical": "outer product of scores at the null estimate",
    "sandwich": "robust variance of the score at the null estimate, no small-sample factor",
}


@entry_point
def score_test(
    null_fit: Fit,
    freed: str | Sequence[str] | None = None,
    *,
    candidates: ArrayLike | None = None,
    enters: str | Callable[..., Array] | None = None,
    kind: CovarianceKind | None = None,
) -> HypothesisTest:
    """Rao's score test: S = gᵀ V⁻¹ g, with g the score of the restricted parameters and V its variance given the others.

    Only the null model is fitted. Either parameters that it keeps `fixed` are tested, or covariates that it does not have, each
    by itself, thousands in one pass.

    Parameters
    ----------
    null_fit : Fit
        The fit under the null hypothesis, as `fit` or `fit_batch` returned it.
    freed : str or tuple of str, optional
        The parameters to be tested, by name, among those kept `fixed`; also single entries, as `beta[1]`. Default all of them.
        Or the hypothesis as text, ``"shape = 1"``, ``"a = 0, b = 0"``, whose values must be those that the fit keeps.
    candidates : array (n, K) or (n, K, m), optional
        K covariates, each tested by itself for an effect of zero; or K groups of m covariates each, such as the indicators of
        m + 1 classes.
    enters : str or callable, optional
        Where a candidate enters. For a `linked` model the name of the family's parameter, needed if it has several: the
        effect adds to the logarithm of a positive one, the logit of a probability, and to the number itself otherwise. For
        any other model ``enters(params, y, offset)`` or ``enters(params, y, z, offset)``: the log-density with `offset` added
        where the covariate would.
    kind : {"expected", "observed", "empirical", "sandwich"}, optional
        The information that gives V: under the model, minus the Hessian, the outer product of scores; or the robust V, valid
        also for a misspecified model. Default "expected" where there is a closed form and "observed" otherwise.

    Returns
    -------
    HypothesisTest
        Chi-squared; of candidates the statistic is (K,), of many fits it has a leading axis B. NaN where V is not positive
        definite: where a candidate is a linear combination of the model's covariates, or the observed information is indefinite;
        and where the score of a tested parameter is zero for every observation, as that of a standard deviation of latent effects
        at zero: `likelihood_ratio_test` tests it.

    Raises
    ------
    ValueError, TypeError
        If the fit keeps no parameter fixed, candidates do not match the data or the model, or the kind is not available:
        "sandwich" is not for a fit with the covariance of `robust`.

    Notes
    -----
    Sizes of a nominal 5 % test, one parameter of four families (`benchmarks/calibration.py`): 3.8 to 5.0 % at n = 25,
    4.2 to 5.3 at 50, 4.5 to 5.3 at 500.

    With the expected information S is the same in every parametrisation; with the observed one it is not. Candidates need the
    derivatives of each observation along the offset once, and then K n (p + 2) multiplications and no iteration.

    References
    ----------
    Rao, C. R. (1948), Proc. Camb. Phil. Soc. 44, 50-57; Boos, D. D. (1992), Am. Statistician 46, 327-333, eq. (7).

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> y = jnp.array([1.0, 2.0, 3.0, 6.0])
    >>> weibull = fj.families.weibull
    >>> exponential = fj.Model(weibull.log_density, constraints={"shape": fj.fixed, "scale": fj.positive})
    >>> null = fj.fit(exponential, {"shape": 1.0, "scale": 1.0}, y)
    >>> test = fj.score_test(null, "shape = 1")
    >>> print(f"{test.statistic:.3f} {test.p_value:.3f}")
    1.116 0.291
    """
    check_fit(null_fit)
    if candidates is not None and freed is not None:
        raise ValueError("freed and candidates are two tests; give one of them.")
    if candidates is None and enters is not None:
        raise ValueError("enters defines where candidates enter, but there are none. Give candidates=.")
    has_expected = has_closed_form(model_of(null_fit)) and not callable(enters)
    if kind is None:
        kind = "expected" if has_expected else "observed"
    check_choice(kind, KINDS, "kind")
    if kind == "expected" and not has_expected:
        reason = (
            "of a function the expectation is not known" if callable(enters) else "this model has no closed form of it"
        )
        raise ValueError(f'kind="expected" needs the Fisher information, and {reason}. Choose another kind.')
    if kind == "sandwich" and null_fit.robust:
        raise ValueError(
            f'this fit has a robust covariance ({null_fit.robust}), but the score test has kind="sandwich" for independent '
            "observations only. Give the fit as it was before `robust`, or fit the larger model and use wald_test."
        )
    null_fit._warn()
    if candidates is None:
        tested, hypothesis = _tested_entries(null_fit, freed, kind)
        statistic, freedom, reason = with_data(null_fit, tested), len(hypothesis), ""
        if np.any(vanishing := _scores_vanish(null_fit, tested, statistic)):
            statistic = jnp.where(vanishing, jnp.nan, statistic)
            reason = "the score vanishes for every observation, whose density is even in the parameter there; or "
    else:
        statistic, freedom = _candidate_statistics(null_fit, candidates, enters, kind)
        hypothesis = ("each candidate's effect = 0" if freedom == 1 else "each group's effects = 0",)
        reason = "a candidate follows from what the model has already, or has NaN; or "
    missing = np.isnan(np.asarray(statistic))
    if np.any(missing):
        number = f"{int(np.sum(missing))} of {missing.size} tests have" if missing.ndim else "there is"
        warn(
            f"{number} no statistic: {reason}the information is singular, not finite or indefinite (which that of "
            'kind="empirical" never is).'
        )
    return chi_squared_test(statistic, freedom, "Score test", hypothesis, INFORMATION[kind])


class Blocks(NamedTuple):
    """A symmetric matrix of nuisance and tested parameters."""

    nuisance: Float[Array, "p p"]
    cross: Float[Array, "k p"]
    tested: Float[Array, "k k"]


def score_statistic(
    gradient: tuple[Float[Array, " p"], Float[Array, " k"]], information: Blocks, outer_product: Blocks | None
) -> Float[Array, ""]:
    """Squared length of the effective score in its variance, which is the robust one where an outer product is given.

    NaN where the variance or the information about the nuisance parameters is not positive definite.
    """
    factor = linalg.factorize(precise(information.nuisance))
    cross = precise(information.cross)
    slope = linalg.solve(factor, cross.T)
    effective = precise(gradient[1]) - linalg.product(slope.T, precise(gradient[0]))
    if outer_product is None:
        whole = precise(information.tested)
        variance = whole - linalg.product(cross, slope)
    else:
        whole, mixed = precise(outer_product.tested), linalg.product(precise(outer_product.cross), slope)
        squared = linalg.product(slope.T, linalg.product(precise(outer_product.nuisance), slope))
        variance = whole - mixed - mixed.T + squared
    floor = ROUNDING * jnp.finfo(gradient[1].dtype).eps * jnp.abs(jnp.diagonal(whole))
    root = linalg.factorize(0.5 * (variance + variance.T))
    exists = factor.definite & root.definite & jnp.all(jnp.diagonal(variance) > floor)
    return jnp.where(exists, jnp.sum(linalg.solve_lower(root, effective) ** 2), jnp.nan)


def _totals(
    kind: str, target: Likelihood, free: Float[Array, " p"], scoring: Callable[[], Scoring]
) -> tuple[Array, Array, Array | None]:
    """The score, the information of a kind and, for the robust variance, the outer product of scores: totals in u."""
    outer_product = outer_product_at(target, free)[1] if kind in ("empirical", "sandwich") else None
    if kind == "empirical":
        return gradient_at(target, free)[1], outer_product, None  # type: ignore[return-value]
    if kind == "expected":
        _, gradient, information = scoring()
        return gradient, information, None
    derivatives = derivatives_at(target, free)
    return derivatives.gradient, derivatives.curvature, outer_product


# Parameters that the null keeps fixed.


@dataclass(frozen=True)
class _TestedEntries:
    """The statistic of one null fit and its data, for entries of fixed leaves; compiled once for each choice."""

    kind: str
    layout: Layout  # in which these leaves are free
    tested: tuple[int, ...]  # positions in its u
    nuisance: tuple[int, ...]

    def __call__(self, fit: Fit, model: Model, dataset: Dataset) -> Float[Array, ""]:
        tested, nuisance = np.array(self.tested, int), np.array(self.nuisance, int)
        target = likelihood(model, self.layout, fit.values, dataset)
        free = self.layout.unconstrain(fit.values).at[nuisance].set(fit.free)
        gradient, information, outer_product = _totals(
            self.kind, target, free, lambda: scoring_of(model, self.layout, fit.values, dataset, target, free)
        )

        def blocks(matrix: Array) -> Blocks:
            pairs = (nuisance, nuisance), (tested, nuisance), (tested, tested)
            return Blocks(*(matrix[np.ix_(rows, columns)] for rows, columns in pairs))

        return score_statistic(
            (gradient[nuisance], gradient[tested]),
            blocks(information),
            None if outer_product is None else blocks(outer_product),
        )


def _scores_vanish(fit: Fit, tested: _TestedEntries, statistic: Any) -> Bool[np.ndarray, "*b"]:
    """Where a statistic is zero or missing because no observation has a score, as at a standard deviation of effects of zero.

    A density of b σ with b symmetric has no slope in σ at zero. That implies nothing about the variance σ², which may have one.
    """
    suspects = np.asarray(
        ~(np.asarray(statistic) >= NO_STATISTIC)
    )  # NaN, too, by an information that is negative there
    if not np.any(suspects):
        return suspects
    squares = np.asarray(with_data(fit, _SquaredScores(tested.layout, tested.tested, tested.nuisance)))
    return np.asarray(suspects & np.any(squares == 0, axis=-1))


@dataclass(frozen=True)
class _SquaredScores:
    """The sum of squared scores of each tested entry, of one null fit and its data."""

    layout: Layout
    tested: tuple[int, ...]
    nuisance: tuple[int, ...]

    def __call__(self, fit: Fit, model: Model, dataset: Dataset) -> Float[Array, " k"]:
        target = likelihood(model, self.layout, fit.values, dataset)
        free = self.layout.unconstrain(fit.values).at[np.array(self.nuisance, int)].set(fit.free)
        return jnp.diagonal(outer_product_at(target, free)[1])[np.array(self.tested, int)]


def _tested_entries(fit: Fit, freed: Any, kind: str) -> tuple[_TestedEntries, tuple[str, ...]]:
    """Which entries of fixed leaves are tested, and the hypothesis, a text for each."""
    layout, values = fit.layout, fit.values
    is_floating = [jnp.issubdtype(jnp.result_type(value), jnp.floating) for value in values]
    fixed = {leaf.name: i for i, leaf in enumerate(layout.leaves) if leaf.is_fixed and is_floating[i]}
    if not fixed:
        raise ValueError(
            "this fit holds no parameter fixed, so there is none to test. Fit the null with fisher_jax.fixed for "
            "what is to be tested, or give candidates=."
        )
    # The layout in which what is fixed is free and the rest is not: its θ is what can be tested.
    of_fixed = replace(
        layout,
        leaves=tuple(
            replace(leaf, free_shape=leaf.shape, constraint=Unconstrained())
            if i in fixed.values()
            else replace(leaf, free_shape=(0,), constraint=Fixed())
            for i, leaf in enumerate(layout.leaves)
        ),
    )
    where = [(i, k) for i, leaf in of_fixed.free_leaves for k in range(leaf.size)]
    names = list(fixed) if freed is None else names_in(freed)
    if not names:
        raise ValueError(f"freed={shown(freed)} must be a parameter's name or several of them; leave it out for all.")
    if any("=" in name and name not in all_names(of_fixed).positions for name in names):
        as_written = {where[k]: text for k, text in _values_of_fixed(fit, of_fixed, freed).items()}
        chosen = set(as_written)
    else:
        as_written, chosen = {}, set()
        for name in names:
            try:
                chosen |= {where[k] for k in choose_estimated(of_fixed, name, "freed")}
            except ValueError:
                choices = ", ".join(f"`{leaf}`" for leaf in fixed)
                raise ValueError(f"freed names {name!r}, but what this fit holds fixed is {choices}.") from None
    freed_leaves = {i for i, _ in chosen}
    layout = replace(
        layout,
        leaves=tuple(
            replace(leaf, free_shape=leaf.shape, constraint=Unconstrained()) if i in freed_leaves else leaf
            for i, leaf in enumerate(layout.leaves)
        ),
    )
    tested, nuisance, hypothesis, start = [], [], [], 0
    for i, leaf in layout.free_leaves:
        for k in range(leaf.free_size):
            if i not in freed_leaves:
                nuisance.append(start + k)
            elif (i, k) in chosen:  # other entries of the leaf stay fixed
                tested.append(start + k)
                at = np.unique(np.reshape(np.asarray(values[i]), (-1, leaf.size))[:, k])  # of all fits of a batch
                statement = f"{leaf.entry_names[k]} = {at[0]:g}" if len(at) == 1 else f"{leaf.entry_names[k]} as held"
                hypothesis.append(as_written.get((i, k), statement))
        start += leaf.free_size
    return _TestedEntries(kind, layout, tuple(tested), tuple(nuisance)), tuple(hypothesis)


def _values_of_fixed(fit: Fit, of_fixed: Layout, text: Any) -> dict[int, str]:
    """The places in the θ of `of_fixed` that a hypothesis names, each with its text; raise where the fit keeps other values."""
    hypothesis = read_restrictions(
        of_fixed, text, "the hypothesis", "is estimated in this fit, which is to be the fit under the hypothesis"
    )
    values = hypothesis.entry_values()
    if values is None:
        raise ValueError(
            f"the hypothesis {listed(hypothesis.names)} ties parameters to each other. The score test is of values that the fit "
            "keeps fixed; use likelihood_ratio_test or wald_test with the fit without the restriction."
        )
    theta = np.asarray(of_fixed.join(fit.values))
    for k, value in values.items():
        if not np.allclose(theta[..., k], value, rtol=1e-6, atol=0.0):
            raise ValueError(
                f"the hypothesis gives `{of_fixed.names[k]}` the value {value:g}, but this fit keeps it at "
                f"{np.ravel(theta[..., k])[0]:g}. Fit the model under the hypothesis."
            )
    return dict(zip(values, hypothesis.names, strict=True))


# Covariates that the null does not have.


class Rows(NamedTuple):
    """For each observation, times its weight: derivatives along an offset, of which those along a candidate are multiples."""

    slope: Float[Array, " n"]
    information: Float[Array, " n"]
    cross: Float[Array, "n p"]  # of the information, with u
    square: Float[Array, " n"]  # slope²
    cross_square: Float[Array, "n p"]  # slope times the scores
    counts: Array  # whether the weight is positive


def _candidate_statistics(fit: Fit, candidates: Any, enters: Any, kind: str) -> tuple[Any, int]:
    """The statistics (K,) of all candidates, with a leading axis for a batch, and their degrees of freedom."""
    check_unmasked(candidates, lambda: "candidates", "Fill in what is missing, or leave the candidate out.")
    columns = to_numpy(candidates, "candidates")
    if columns.ndim not in (2, 3) or columns.dtype.kind not in "biuf" or not columns.size:
        raise ValueError(
            f"candidates has dtype {columns.dtype} and shape {columns.shape}; expected numbers (n, K), one "
            "column for each candidate, or (n, K, m) for groups of m."
        )
    columns = columns[:, :, None] if columns.ndim == 2 else columns
    n, count, degrees = columns.shape
    model = model_of(fit)
    if model.is_dependent:
        raise ValueError(
            "candidates need a log-density of one observation, and the terms of a dependent model may each "
            "depend on all of a covariate. Put the covariate in the model with an effect held fixed at zero, and free it."
        )
    totals, rows, difference = with_data(fit, _Derivatives(_offset(model, enters), kind))
    largest = np.nanmax(np.append(difference, 0.0))  # that of a fit that failed may be NaN
    if largest > SAME_SCORES:
        raise ValueError(
            f"enters(…, offset=0.0) is not the log-density of the model: their scores differ by up to "
            f"{largest:.2g} of their size. Write it as the model's log-density, with offset added to its linear predictor."
        )
    if rows.slope.shape[-1] != n:
        raise ValueError(f"candidates has {n} rows, but the data have {rows.slope.shape[-1]}.")

    def statistics(totals: Any, rows: Rows) -> np.ndarray:
        parts = []
        for numbers in blocks_of(count, n * degrees):
            block = columns[:, np.minimum(numbers, count - 1)].astype(rows.slope.dtype)
            parts.append(np.asarray(_statistics(totals, rows, block)))
        return np.concatenate(parts)[:count]

    if not fit.has_batch:
        return jnp.asarray(statistics(totals, rows)), degrees
    of_each = (jax.tree.map(lambda leaf, b=b: leaf[b], (totals, rows)) for b in range(len(fit)))
    return np.stack([statistics(*one) for one in of_each]), degrees


@jax.jit
def _statistics(
    totals: tuple[Array, Array, Array | None], rows: Rows, columns: Float[Array, "n K m"]
) -> Float[Array, " K"]:
    columns = jnp.where(rows.counts[:, None, None], columns, 0.0)  # NaN too where it does not count
    product = functools.partial(jnp.einsum, precision="highest")

    def blocks(nuisance: Array, cross: Array, tested: Array) -> Blocks:
        of_columns = product("nkm,nkl,n->kml", columns, columns, tested)
        return Blocks(nuisance, product("nkm,np->kmp", columns, cross), of_columns)

    gradient, information, outer_product = totals
    arguments = (
        (gradient, product("nkm,n->km", columns, rows.slope)),
        blocks(information, rows.cross, rows.information),
        None if outer_product is None else blocks(outer_product, rows.cross_square, rows.square),
    )
    shared = Blocks(None, 0, 0)  # type: ignore[arg-type]  # all candidates have the same nuisance parameters
    return jax.vmap(score_statistic, in_axes=((None, 0), shared, None if outer_product is None else shared))(*arguments)


@dataclass(frozen=True)
class _Derivatives:
    """What all candidates share, of one fit and its data: the totals of the nuisance parameters, and the rows.

    Also by how much the scores of the density with the offset differ from the model's, in units of each one's root mean square.
    """

    offset: Any
    kind: str

    def __call__(
        self, fit: Fit, model: Model, dataset: Dataset
    ) -> tuple[tuple[Array, Array, Array | None], Rows, Array]:
        target = likelihood(model, fit.layout, fit.values, dataset)
        weights = jnp.ones((target.num_terms,), fit.free.dtype) if target.weights is None else target.weights
        given = () if dataset.given is None else (dataset.given,)
        y, *z = target.rows if given else (target.rows,)

        def shifted(free: Array, offset: Array, y: PyTree, *z: PyTree) -> Array:
            value = self.offset(model, fit.layout.constrain(free, fit.values), offset, y, *z)
            return jnp.asarray(value, free.dtype)

        def derivatives(y: PyTree, *z: PyTree) -> tuple[Array, ...]:
            zero = jnp.zeros((), fit.free.dtype)

            def gradient(offset: Array) -> tuple[Array, Array]:
                return jax.grad(shifted, argnums=(0, 1))(fit.free, offset, y, *z)

            (score, slope), (cross, second) = jax.jvp(gradient, (zero,), (zero + 1.0,))
            return score, slope, -cross, -second

        at_zero, slope, cross, information = jax.vmap(derivatives)(y, *z)
        scores, counts = scores_at(target, fit.free), weights > 0
        counted = counts[:, None]
        size = jnp.sqrt(jnp.mean(jnp.where(counted, scores, 0.0) ** 2, axis=0))
        difference = jnp.max(jnp.where(counted, jnp.abs(at_zero - scores), 0.0), axis=0)
        square, cross_square = slope**2, slope[:, None] * scores
        if self.kind == "expected":
            cross, information = self._expected(fit, model, given, target.num_terms)
        elif self.kind == "empirical":
            cross, information = cross_square, square
        w = weights[:, None]
        rows = Rows(weights * slope, weights * information, w * cross, weights * square, w * cross_square, counts)
        rows = jax.tree.map(  # a weight of zero silences even NaN
            lambda part: jnp.where(jnp.expand_dims(counts, range(1, part.ndim)), part, jnp.zeros_like(part)), rows
        )
        totals = _totals(
            self.kind, target, fit.free, lambda: scoring_of(model, fit.layout, fit.values, dataset, target, fit.free)
        )
        return totals, rows, jnp.max(difference / jnp.where(size > 0, size, 1.0))

    def _expected(self, fit: Fit, model: Any, given: tuple[PyTree, ...], n: int) -> tuple[Array, Array]:
        """Second derivatives replaced by their expectations: those of the family, through the predictor."""
        jacobian = fit.layout.jacobian(fit.free)

        def of_row(*z: PyTree) -> tuple[Array, Array]:
            along, inner = predicted(model, fit.layout, fit.values, z)
            position, steepness = self.offset.steepness(model, fit.params, *z)
            row = steepness * inner[position]
            return linalg.product(linalg.product(row, along), jacobian), steepness * row[position]

        if given:
            return jax.vmap(of_row)(*given)
        return jax.tree.map(lambda part: jnp.broadcast_to(part, (n, *part.shape)), of_row())


def _offset(model: Model, enters: Any) -> Any:
    """The log-density with an offset that adds where `enters` specifies."""
    if callable(enters):
        return _ByFunction(ById(enters))
    if not isinstance(model, LinkedModel):
        raise ValueError(
            "how candidates enter this model is not known. Give enters=function(params, y, z, offset), its log-"
            "density with offset added to the linear predictor; or write the model with fisher_jax.linked."
        )
    if enters is not None and not isinstance(enters, str):
        raise TypeError(f"enters must be a parameter's name or a function, got {type(enters).__name__}.")
    return _InFamily(enters)


@dataclass(frozen=True)
class _InFamily:
    """The offset adds to one of the family's parameters, its only one if no name is given, on the scale of its constraint."""

    name: str | None

    def __call__(self, model: LinkedModel, params: PyTree, offset: Array, y: PyTree, *z: PyTree) -> Array:
        family_params, _, leaf, value = self._parameter(model, params, z)
        return model.family.log_density(family_params | {leaf.name: leaf.constraint.forward(value + offset)}, y)

    def steepness(self, model: LinkedModel, params: PyTree, *z: PyTree) -> tuple[int, Array]:
        """The parameter's place among the family's, and its derivative with respect to the offset."""
        _, position, leaf, value = self._parameter(model, params, z)
        return position, jax.grad(leaf.constraint.forward)(value)

    def _parameter(self, model: LinkedModel, params: PyTree, z: tuple[PyTree, ...]) -> tuple[dict, int, Leaf, Array]:
        """All parameters of the family, the place of the one that the offset adds to, and its leaf and unconstrained value."""
        family_params = dict(model.log_density.predict(params, *z))
        layout = layout_of(family_params, model.family.declarations)[0]
        leaves = {leaf.name: leaf for _, leaf in layout.free_leaves}
        names, name = ", ".join(leaves), self.name
        if name is None:
            name = next(iter(leaves), None)
            if len(leaves) > 1:
                raise ValueError(
                    f"the family has the parameters {names}. Say on which the candidates act, as in enters={name!r}."
                )
        if name not in leaves:
            raise ValueError(f"enters={name!r} names none of the family's parameters, which are {names}.")
        leaf = leaves[name]
        if leaf.shape != () or not isinstance(leaf.constraint, Interval | Unconstrained):
            raise ValueError(
                f"`{name}` of shape {leaf.shape} is no number to which an effect adds; give `enters` as a function."
            )
        value = leaf.constraint.inverse(jnp.asarray(family_params[name]))
        return family_params, layout.names.index(name), leaf, value


@dataclass(frozen=True)
class _ByFunction:
    """A log-density with an offset that the user wrote."""

    function: ById

    def __call__(self, model: Model, params: PyTree, offset: Array, y: PyTree, *z: PyTree) -> Array:
        names = ("params", "y", *(("z",) if z else ()), "offset")
        check_arity(self.function.function, names, "enters")
        return call_user(self.function.function, (params, y, *z, offset), "enters")
