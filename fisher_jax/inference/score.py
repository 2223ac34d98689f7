"""`score_test`: would a parameter that was held, or a covariate that was left out, improve the fit? Of the null fit alone."""

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fisher_jax.errors import check_choice, entry_point, names_in, shown, warn
from fisher_jax.fitting.covariance import KINDS
from fisher_jax.fitting.each import check_fit, with_data
from fisher_jax.fitting.maximization import scoring_of
from fisher_jax.fitting.result import Fit, origin_of
from fisher_jax.inference.candidates import candidate_statistics
from fisher_jax.inference.record import HypothesisTest, chi_squared_test
from fisher_jax.inference.score_statistic import Nuisance, Tested, score_statistic
from fisher_jax.information import has_closed_form
from fisher_jax.models.constraints import Unconstrained
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.likelihood import derivatives_at, gradient_at, likelihood, outer_product_at
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Leaf

INFORMATION = {
    "observed": "observed information at the null estimate",
    "expected": "expected (Fisher) information at the null estimate",
    "empirical": "outer product of scores at the null estimate",
    "sandwich": "robust variance of the score at the null estimate, no small-sample factor",
}


@entry_point
def score_test(
    null_fit: Any, freed: Any = None, *, candidates: Any = None, enters: Any = None, kind: str | None = None
) -> HypothesisTest:
    """Rao's score test: S = gᵀ V⁻¹ g, with g the slope of ℓ along what the null holds and V its variance given the nuisance.

    Nothing is fitted beside the null. Either parameters that it holds `fixed` are freed, or covariates that it does not have
    are tested one by one, thousands in one pass.

    Parameters
    ----------
    null_fit : Fit
        The fit under the null hypothesis, as `fit` or `fit_batch` returned it.
    freed : str or tuple of str, optional
        The parameters to be tested, by name, among those held `fixed`; also single entries, as `beta[1]`. Default all of them.
    candidates : array (n, K) or (n, K, m), optional
        K covariates, each tested by itself for an effect of zero; or K groups of m covariates each, such as the indicators of
        m + 1 classes.
    enters : str or callable, optional
        Where a candidate enters. For a `linked` model the name of the family's parameter, needed if it has several: the
        effect adds to the logarithm of a positive one, the logit of a probability, and to the number itself otherwise. For
        any other model ``enters(params, y, offset)`` or ``enters(params, y, z, offset)``: the log-density with `offset` added
        where the covariate would.
    kind : {"expected", "observed", "empirical", "sandwich"}, optional
        The information that gives V: under the model, minus the Hessian, the outer product of scores; or the robust V, for a
        model that need not be right. Default "expected" where there is a closed form and "observed" otherwise.

    Returns
    -------
    HypothesisTest
        Chi-squared; of candidates the statistic is (K,), of many fits it has a leading axis B. NaN where V is not positive
        definite: where a candidate follows from what the model has already, or the observed information is indefinite.

    Raises
    ------
    ValueError, TypeError
        If nothing is held that could be freed, candidates do not fit the data or the model, or there is no route to the kind:
        none to "sandwich" for a fit with the covariance of `robust`.

    Notes
    -----
    Sizes of a nominal 5 % test, one parameter of four families (`benchmarks/calibration.py`): 3.8 to 5.0 % at n = 25,
    4.2 to 5.3 at 50, 4.5 to 5.3 at 500.

    With the expected information it is the same in every parametrisation; with the observed one it is not. Candidates need for
    each observation the derivatives along the offset once, and then K n (p + 2) multiplications and no iteration.

    References
    ----------
    Rao, C. R. (1948), Proc. Camb. Phil. Soc. 44, 50-57; Boos, D. D. (1992), Am. Statistician 46, 327-333, eq. (7).

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> y = jnp.array([1.0, 2.0, 3.0, 6.0])
    >>> gamma = fj.families.gamma
    >>> exponential = fj.Model(gamma.log_density, constraints={"shape": fj.fixed, "rate": fj.positive})
    >>> null = fj.fit(exponential, {"shape": 1.0, "rate": 1.0}, y)
    >>> test = fj.score_test(null, "shape")
    >>> print(f"{test.statistic:.3f} {test.p_value:.3f}")
    0.870 0.351
    """
    check_fit(null_fit)
    if candidates is not None and freed is not None:
        raise ValueError("freed and candidates are two tests; ask for them one after the other.")
    if candidates is None and enters is not None:
        raise ValueError("enters says where candidates enter, but there are none. Give candidates=.")
    closed = has_closed_form(origin_of(null_fit).model) and not callable(enters)
    kind = _checked_kind(kind, closed, enters)
    if kind == "sandwich" and (said := null_fit.robust):
        raise ValueError(
            f'this fit has a robust covariance ({said}), but the score test has kind="sandwich" for independent '
            "observations only. Give the fit as it was before `robust`, or fit the larger model and use wald_test."
        )
    null_fit._warn()
    if candidates is not None:
        statistic, freedom = candidate_statistics(null_fit, candidates, enters, kind)
        words: tuple[str, ...] = ("each candidate's effect = 0" if freedom == 1 else "each group's effects = 0",)
    else:
        tested = _chosen(null_fit, freed)
        statistic, freedom, words = (with_data(null_fit, replace(tested, kind=kind)), len(tested.names), tested.words)
    _warn_of_none(np.asarray(statistic), candidates is not None)
    return chi_squared_test(statistic, freedom, "Score test", words, INFORMATION[kind])


def _checked_kind(kind: Any, closed: bool, enters: Any) -> str:
    if kind is None:
        return "expected" if closed else "observed"
    check_choice(kind, KINDS, "kind")
    if kind == "expected" and not closed:
        reason = (
            "of a function the expectation is not known" if callable(enters) else "this model has no closed form of it"
        )
        raise ValueError(f'kind="expected" needs the Fisher information, and {reason}. Choose another kind.')
    return kind


@dataclass(frozen=True)
class _Freed:
    """The statistic of one null fit and its data, for entries of fixed leaves; compiled once for each choice."""

    layout: Layout  # in which the leaves are free
    names: tuple[str, ...]
    words: tuple[str, ...]
    positions: tuple[int, ...]  # of the tested entries in its u
    others: tuple[int, ...]  # of the estimated ones
    kind: str = ""

    def __call__(self, fit: Fit, model: Model, dataset: Dataset) -> Float[Array, ""]:
        target = likelihood(model, self.layout, fit.values, dataset)
        free = self.layout.unconstrain(fit.values).at[np.array(self.others)].set(fit.free)
        middle = None
        if self.kind == "observed":
            _, gradient, matrix = derivatives_at(target, free)
        else:
            gradient = gradient_at(target, free)[1]
            if self.kind == "expected":
                matrix = scoring_of(model, self.layout, fit.values, dataset, target, free).information
            elif self.kind == "empirical":
                matrix = outer_product_at(target, free)[1]
            else:
                matrix, middle = derivatives_at(target, free).curvature, outer_product_at(target, free)[1]
        return self._statistic(gradient, matrix, middle)

    def _statistic(self, gradient: Array, matrix: Array, middle: Array | None) -> Float[Array, ""]:
        psi, nuisance = np.array(self.positions), np.array(self.others)

        def block(of: Array | None, rows: np.ndarray, columns: np.ndarray) -> Any:
            return None if of is None else of[np.ix_(rows, columns)]

        return score_statistic(
            Nuisance(gradient[nuisance], matrix[np.ix_(nuisance, nuisance)], block(middle, nuisance, nuisance)),
            Tested(
                gradient[psi],
                matrix[np.ix_(psi, psi)],
                matrix[np.ix_(psi, nuisance)],
                block(middle, psi, psi),
                block(middle, psi, nuisance),
            ),
        )


def _chosen(fit: Any, freed: Any) -> _Freed:
    """Which entries of fixed leaves are tested, and a layout in which those leaves are free."""
    layout, values = fit.layout, fit.values
    ahead = jnp.ndim(fit.status_code)
    held = [
        i
        for i, leaf in enumerate(layout.leaves)
        if leaf.is_fixed and jnp.issubdtype(jnp.result_type(values[i]), jnp.floating)
    ]
    asked = _asked(freed, layout, held)
    opened = {i for i, _ in asked}
    leaves = tuple(_opened(leaf) if i in opened else leaf for i, leaf in enumerate(layout.leaves))
    layout = Layout(leaves, layout.dtype, layout.treedef, layout.statics)
    positions, others, names, words, start = [], [], [], [], 0
    for i, leaf in layout.free_leaves:
        for k in range(leaf.free_size):
            if i not in opened:
                others.append(start + k)
            elif (i, k) in asked:
                positions.append(start + k)
                names.append(leaf.entry_names[k])
                at = np.unique(np.reshape(np.asarray(values[i]), (*np.shape(values[i])[:ahead], -1))[..., k])
                words.append(f"{names[-1]} = {at[0]:g}" if len(at) == 1 else f"{names[-1]} as held")
        start += leaf.free_size
    return _Freed(layout, tuple(names), tuple(words), tuple(positions), tuple(others))


def _opened(leaf: Leaf) -> Leaf:
    return Leaf(leaf.name, leaf.shape, leaf.shape, Unconstrained())


def _asked(freed: Any, layout: Layout, held: list[int]) -> set[tuple[int, int]]:
    """Pairs of a leaf and an entry in it."""
    entries = {name: (i, k) for i in held for k, name in enumerate(layout.leaves[i].entry_names)}
    whole = {layout.leaves[i].name: i for i in held}
    if not entries:
        raise ValueError(
            "this fit holds no parameter fixed, so there is nothing to free. Fit the null with fisher_jax.fixed for "
            "what is to be tested, or give candidates=."
        )
    names = list(whole) if freed is None else names_in(freed)
    if not names:
        raise ValueError(f"freed={shown(freed)} must be a parameter's name or several of them; leave it out for all.")
    found: set[tuple[int, int]] = set()
    for name in names:
        if name in whole:
            found |= {(whole[name], k) for k in range(layout.leaves[whole[name]].size)}
        elif name in entries:
            found.add(entries[name])
        else:
            known = ", ".join(f"`{leaf}`" for leaf in whole)
            raise ValueError(f"freed names {name!r}, but what this fit holds fixed is {known}.")
    return found


def _warn_of_none(statistic: np.ndarray, of_candidates: bool) -> None:
    none = np.isnan(statistic)
    if not np.any(none):
        return
    many = f"{int(np.sum(none))} of {none.size} tests have" if none.ndim else "there is"
    why = "a candidate follows from what the model has already, or has NaN; or " if of_candidates else ""
    warn(
        f"{many} no statistic: {why}the information is singular, not finite or indefinite (which that of "
        'kind="empirical" never is).'
    )
