"""`sample_size`: how many observations a wanted standard error or power takes, from the information alone."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from fisher_jax.errors import check_count, check_pytree, entry_point, is_number, shown
from fisher_jax.fitting.fit import fit_batch
from fisher_jax.fitting.functions import in_one_row, named_within
from fisher_jax.information import Covariance
from fisher_jax.information.bound import bound_of
from fisher_jax.models.model import as_model, flatten_parameters
from fisher_jax.models.parameters import Layout
from fisher_jax.moments import Estimate
from fisher_jax.numerics import linalg
from fisher_jax.simulation.experiment import data_sets_of, experiment_of
from fisher_jax.simulation.sample_size_aims import Aim, Power, Precision
from fisher_jax.simulation.sample_size_record import SampleSize

_MOST = 1e12  # observations


@entry_point
def sample_size(
    model: Any,
    params: PyTree,
    *,
    standard_error: Any = None,
    power: Any = None,
    hypothesis: PyTree = None,
    level: Any = 0.05,
    function: Any = None,
    given: PyTree = None,
    expectation: Any = None,
    key: Any = None,
    num_replicates: Any = 2000,
) -> SampleSize:
    """The number of observations at which a standard error, or the power of Wald's test, is what is wanted.

    Parameters
    ----------
    model, params, given, expectation
        As for `fisher_information`; params are those that are believed true.
    standard_error : number or pytree
        The largest standard errors that are wanted, of the parameters or of what `function` returns: one number for all, or
        a pytree of numbers, in which what is absent, `None` or NaN is free. Or give `power`.
    power : float
        The wanted probability that Wald's test rejects `hypothesis` if params are true.
    hypothesis : pytree
        The values that are tested, of parameters or of what `function` returns, as in ``{"shape": 1.0}``; several are tested
        together. As in `wald_test` `None`, NaN and what is absent are not tested.
    level : float
        Size of the test.
    function : callable, optional
        ``function(params)`` returns a number, an array or a pytree of them.
    key : jax.random.key, optional
        Check the answer: draw data sets of that n, fit them, and see. Needs a sampler.
    num_replicates : int
        How many data sets for that.

    Returns
    -------
    SampleSize
        It prints as a report. With `given` n counts observations spread evenly over its rows.

    Raises
    ------
    ValueError, TypeError
        If not exactly one of `standard_error` and `power` is asked for, a name is unknown, what is tested is true, entries
        that are tested follow from each other (all of a simplex, say), or the information is singular.

    Notes
    -----
    Standard errors fall as 1/√n, n = Σ_jj / se² with Σ = I⁻¹; under the alternative Wald's statistic is noncentral χ² with
    noncentrality n δᵀ Σ⁻¹ δ, δ = θ less the hypothesised values. Both are limits: where n comes out small, give a key.

    References
    ----------
    Wald, A. (1943), Trans. Amer. Math. Soc. 54, 426-482; van der Vaart, A. W. (1998), Asymptotic Statistics, chapter 16.

    Examples
    --------
    >>> import fisher_jax as fj, jax
    >>> found = fj.sample_size(fj.families.exponential, {"rate": 2.0}, standard_error=0.1)
    >>> found.num_observations
    400
    >>> print(fj.sample_size(fj.families.exponential, {"rate": 2.0}, power=0.8, hypothesis={"rate": 1.5}).num_observations)
    126
    """
    if (standard_error is None) == (power is None) or (power is None) != (hypothesis is None):
        raise ValueError("give either standard_error, or power together with the hypothesis that is tested.")
    bound = bound_of(model, params, expectation, 1, function, None, given)
    values = _values(model, params, function)
    if standard_error is not None:
        aim: Aim = Precision(*_entries(standard_error, bound.names, "standard_error"))
    else:
        if not (is_number(power) and is_number(level) and 0 < level < power < 1):
            raise ValueError(f"power={shown(power)} and level={shown(level)} must obey 0 < level < power < 1.")
        where, wanted = _entries(hypothesis, bound.names, "hypothesis")
        aim = Power(where, wanted, float(power), float(level), values[list(where)] - wanted)
        _check_independent(bound, where)
    matrix = np.asarray(bound.matrix, float)
    exact = aim.needed(matrix)
    if not exact < _MOST:
        raise ValueError(
            f"no n below {_MOST:g} is enough ({exact:.3g}): is what is tested true at params, or the standard error "
            "zero?"
        )
    rows = 1 if given is None else _num_rows(model, params, given)
    n = max(1, math.ceil(exact * (1 - 1e-6) / rows)) * rows  # float32 may come out a little above a whole number
    result = functools.partial(
        SampleSize,
        num_observations=n,
        exact=exact,
        exact_error=_error(aim, matrix, bound),
        names=tuple(bound.names[k] for k in aim.where),
        standard_error=np.sqrt(np.diagonal(matrix)[list(aim.where)] / n),
        power=aim.power_at(n, matrix),
        aim=aim.words(bound.names),
        route=bound.route.partition("from: ")[2],
    )
    if key is None:
        return result(simulated=None, num_replicates=0, num_failed=0)
    count = check_count(num_replicates, 2, "num_replicates")
    check_count(n, 1, "num_observations")  # of what is simulated; the answer itself may be any number
    simulated, failed = _simulated(aim, model, params, function, given, n, key, count)
    return result(simulated=simulated, num_replicates=count, num_failed=failed)


def _simulated(
    aim: Aim, model: Any, params: PyTree, function: Any, given: PyTree, n: int, key: Any, count: int
) -> tuple[Estimate, int]:
    """What was aimed at, from data sets of n observations, and of how many the fit failed."""
    experiment = experiment_of(model, params, given, n)
    rows, failed = [], 0
    for data in data_sets_of(experiment, key, count):
        fits = fit_batch(experiment.model, experiment.params, data, given=experiment.given, covariances=("observed",))
        values = np.asarray(jax.vmap(_evaluated(experiment.layout, function))(fits.values), float)
        rows.append(aim.seen(fits, values, function))
        failed += int(np.sum(~fits.converged))
    return aim.judged(np.concatenate(rows), count), failed


def _evaluated(layout: Layout, function: Any) -> Callable[[Any], Any]:
    return layout.join if function is None else lambda values: in_one_row(function(layout.assemble(values)))


def _values(model: Any, params: PyTree, function: Any) -> np.ndarray:
    """θ, or g(θ)."""
    layout, values = flatten_parameters(as_model(model), params)
    return np.asarray(_evaluated(layout, function)(values), float)


def _num_rows(model: Any, params: PyTree, given: PyTree) -> int:
    return 1 if as_model(model).is_dependent else jax.tree.leaves(given)[0].shape[0]


def _error(aim: Aim, matrix: np.ndarray, bound: Covariance) -> float:
    """Of n, to first order, by what each piece of the bound's error changes it by."""
    if bound.errors is None:
        return 0.0
    base = aim.needed(matrix)
    moved = [aim.needed(matrix + piece) - base for piece in np.asarray(bound.errors, float)]
    return float(np.sqrt(np.sum(np.square(moved))))


def _entries(wanted: PyTree, names: tuple[str, ...], what: str) -> tuple[tuple[int, ...], np.ndarray]:
    """Which entries a user's number or pytree of numbers is about, and the numbers."""
    check_pytree(wanted, what)
    if is_number(wanted):
        found = dict.fromkeys(range(len(names)), float(wanted))
    else:
        found = {}
        for path, leaf in jax.tree_util.tree_flatten_with_path(wanted)[0]:
            found |= _of_leaf(path, leaf, names, what)
    found = {k: value for k, value in found.items() if not np.isnan(value)}
    if unknown := [names[k] for k, value in found.items() if np.isinf(value)]:
        raise ValueError(f"{what} of {', '.join(unknown)} is infinite. Leave it out, or write None or NaN.")
    if not found:
        raise ValueError(f"{what} names nothing; there are {', '.join(names)}.")
    if what == "standard_error" and min(found.values()) <= 0:
        raise ValueError(f"standard_error must be positive, got {min(found.values()):g}.")
    where = tuple(sorted(found))
    return where, np.array([found[k] for k in where])


def _check_independent(bound: Covariance, where: tuple[int, ...]) -> None:
    """Refuse to test what follows from the rest: it would be a degree of freedom too many."""
    block = np.asarray(bound.matrix)[np.ix_(where, where)]
    spread = np.sqrt(np.diagonal(block))
    scale = np.where(spread > 0, spread, 1.0)
    values, directions = np.linalg.eigh(block / scale[:, None] / scale[None, :])
    if not values[0] > np.finfo(block.dtype).eps ** (2 / 3):
        names = tuple(bound.names[k] for k in where)
        said = linalg.describe_direction(directions[:, 0] / scale, names, 1 / scale)
        raise ValueError(
            f"what is tested is not independent: {said} is known without any data. Leave out of the hypothesis "
            "what follows from the rest."
        )


def _of_leaf(path: Any, leaf: Any, names: tuple[str, ...], what: str) -> dict[int, float]:
    for root in ("params", "function"):
        name = named_within(root, path)
        here = [k for k, own in enumerate(names) if own == name or own.startswith((f"{name}[", f"{name}."))]
        numbers = np.ravel(np.asarray(leaf))
        if here and len(numbers) in (1, len(here)) and numbers.dtype.kind in "iuf":
            return dict(zip(here, np.broadcast_to(numbers.astype(float), len(here)).tolist(), strict=True))
    raise ValueError(
        f"{what} names `{named_within('params', path)}` with {np.size(leaf)} numbers; there are {', '.join(names)}. "
        "Name these, with a number each."
    )
