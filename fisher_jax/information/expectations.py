"""How an expectation under the model is taken: by draws, by scrambled points, by quadrature, by listing all values.

These records hold the settings only; `fisher_information`, `check_score_mean` and their like take the expectation.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from fisher_jax.errors import check_choice, check_count, is_number, made_by_users, shown, to_numpy
from fisher_jax.models.dataset import as_unmasked_arrays

ESTIMATORS = ("bartlett", "outer", "hessian")
SCRAMBLINGS = 256  # independent ones of the same points, whose differences give the errors


@jax.tree_util.register_dataclass
@made_by_users
@dataclass(frozen=True)
class MonteCarlo:
    """Independent draws from the model's own `sample`.

    Parameters
    ----------
    key : PRNG key
        As made by `jax.random.key`. The same key gives the same draws, whatever the chunks they are taken in.
    num_samples : int
        Draws for each row of `given`, or in all where there is none. Even, since errors come from pairs of draws.
    estimator : {"bartlett", "outer", "hessian"}
        ``"outer"`` averages s sᵀ, ``"hessian"`` averages −H. ``"bartlett"`` averages −H with the draws' s and s sᵀ + H as
        control variates: both have mean zero in a regular model (the Bartlett identities), so what they explain of −H is
        taken out. The coefficients come from other draws than those they are used on, so that no bias results.
    fallback : {"outer", "hessian"}, optional
        What ``"bartlett"`` gives instead where the draws contradict those zero means, in all entries. Without it s sᵀ, but
        NaN for parameters that have no information.

    Notes
    -----
    Exact to rounding, at any number of draws, for full exponential families in any parametrisation, and for Student's t if all
    of its parameters are free: the controls of one that is `fixed` are missing. The errors of ``"bartlett"``
    rest on draws far out, which few draws do not have: for mixtures and extreme values their interval of ±1.96 errors covers
    between 94 and 99 % from 2000 draws on, single entries 83 % where the support has an end and 90 % elsewhere; with fewer
    draws less. `Quadrature` is a check on them.
    Needs a Hessian for each draw, and at least 6 (1 + q + q (q + 1) / 2) draws; above some thirty parameters use ``"outer"``.

    Examples
    --------
    >>> import fisher_jax as fj, jax
    >>> draws = fj.MonteCarlo(jax.random.key(0), 1000)
    >>> information = fj.fisher_information(fj.families.exponential, {"rate": 2.0}, draws)
    >>> information.num_samples
    1000
    """

    key: Array
    num_samples: int = field(metadata={"static": True})
    estimator: str = field(default="bartlett", metadata={"static": True})
    fallback: str | None = field(default=None, metadata={"static": True}, kw_only=True)

    def __post_init__(self) -> None:
        _check_draws(self)


@jax.tree_util.register_dataclass
@made_by_users
@dataclass(frozen=True)
class QuasiMonteCarlo:
    """Scrambled Sobol points through the model's `quantile` function: less noise than draws where y is smooth in them.

    Parameters
    ----------
    key : PRNG key
        Scrambles the points.
    num_samples : int
        Points for each row of `given`, a multiple of 256: 256 independent scramblings of num_samples / 256 points, best a power
        of two. The errors come from the differences between scramblings.
    estimator, fallback
        As for `MonteCarlo`.
    dimension : int, optional
        Length of the vector of uniform numbers that `quantile` takes; left out, it takes a scalar.

    Notes
    -----
    Worth it from some tens of thousands of points on; below, the scramblings hold too few points each.

    References
    ----------
    Owen, A. B. (1995), Randomly permuted (t,m,s)-nets; Burley, B. (2020), Practical hash-based Owen scrambling, J. Comput.
    Graph. Tech. 9(4), 1-20.

    Examples
    --------
    >>> import fisher_jax as fj, jax
    >>> points = fj.QuasiMonteCarlo(jax.random.key(0), 1024)
    >>> information = fj.fisher_information(fj.families.exponential, {"rate": 2.0}, points)
    >>> information.num_samples
    1024
    """

    key: Array
    num_samples: int = field(metadata={"static": True})
    estimator: str = field(default="bartlett", metadata={"static": True})
    fallback: str | None = field(default=None, metadata={"static": True}, kw_only=True)
    dimension: int | None = field(default=None, metadata={"static": True}, kw_only=True)

    def __post_init__(self) -> None:
        _check_draws(self)
        if self.dimension is not None:
            check_count(self.dimension, 1, "dimension", ", or None", entries=0)
        if self.num_samples % SCRAMBLINGS:
            raise ValueError(
                f"num_samples={self.num_samples} must be a multiple of {SCRAMBLINGS}, which is the number of "
                "independent scramblings that the errors come from."
            )


@made_by_users
@dataclass(frozen=True)
class Quadrature:
    """Numerical integration over a scalar y by the double-exponential rule, exact to rounding for smooth densities.

    Parameters
    ----------
    lower, upper : float, or callable
        Ends of the support, infinite ones included, or functions of params (and z) that return them. Where the density is
        concentrated far from zero or on another scale than one, give finite ends or `points`.
    order : int
        Nodes in each piece, at least 16.
    points : sequence of floats, or callable
        Where to cut the interval into pieces: at kinks, jumps and peaks of the density; or a function of params (and z) that
        returns them, increasing.

    Notes
    -----
    The rule bears singularities at the ends of the pieces. The result's `errors` hold the change since half the order.

    References
    ----------
    Takahasi, H. and Mori, M. (1974), Publ. RIMS 9, 721-741.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> rule = fj.Quadrature(0.0, jnp.inf)
    >>> print(fj.fisher_information(fj.families.exponential, {"rate": 2.0}, rule).matrix.round(4))
    [[0.25]]
    """

    lower: float | Callable[..., Any]
    upper: float | Callable[..., Any]
    order: int = 200
    points: tuple[float, ...] | Callable[..., Any] = ()

    def __post_init__(self) -> None:
        check_count(self.order, 16, "order", " nodes")
        for name in ("lower", "upper"):
            end = getattr(self, name)
            if not (callable(end) or is_number(end)):
                raise TypeError(f"{name}={shown(end)} must be a number, or a function of params.")
            if not callable(end):
                object.__setattr__(self, name, float(end))
        if not callable(self.points):
            points = to_numpy(self.points, "points")
            if points.ndim != 1 or (points.size and points.dtype.kind not in "iuf"):
                raise TypeError(f"points={shown(self.points)} must be a sequence of numbers, or a function of params.")
            object.__setattr__(self, "points", tuple(points.astype(float).tolist()))
        cuts = () if callable(self.points) else self.points
        ends = [end for end in (self.lower, *cuts, self.upper) if not callable(end)]
        if any(not low < high for low, high in itertools.pairwise(ends)):
            raise ValueError(
                f"expected lower < points < upper, increasing, got lower={self.lower}, points={self.points}, "
                f"upper={self.upper}."
            )


@jax.tree_util.register_dataclass
@made_by_users
@dataclass(frozen=True)
class Enumeration:
    """All values that y can take, or all that matter, listed.

    Parameters
    ----------
    values : pytree
        Observations with a leading axis, as `data` elsewhere: every value once. Of an infinite support give as many as
        leave less than 1e-6 of the probability out; the result lacks what is left out, and a warning is given if it is more.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> found = fj.fisher_information(fj.families.bernoulli, {"logit": 0.0}, fj.Enumeration(jnp.array([0, 1])))
    >>> print(found.matrix)
    [[0.25]]
    """

    values: PyTree

    def __post_init__(self) -> None:
        if all(isinstance(leaf, int | float | np.ndarray | jax.Array) for leaf in jax.tree.leaves(self.values)):
            values = as_unmasked_arrays(self.values, "values")
            lengths = {leaf.shape[0] if leaf.ndim else None for leaf in jax.tree.leaves(values)}
            if len(lengths) != 1 or None in lengths:
                raise ValueError(
                    "values need one leading axis, of the same length in every leaf, got shapes "
                    f"{[leaf.shape for leaf in jax.tree.leaves(values)]}."
                )
            object.__setattr__(self, "values", values)


Expectation = MonteCarlo | QuasiMonteCarlo | Quadrature | Enumeration


def _check_draws(draws: MonteCarlo | QuasiMonteCarlo) -> None:
    """Check what draws and scrambled points have in common."""
    number, estimator, fallback = (
        check_count(draws.num_samples, 2, "num_samples", entries=0),
        draws.estimator,
        draws.fallback,
    )
    if number % 2:
        raise ValueError(f"num_samples={number} must be an even whole number: errors come from pairs of draws.")
    object.__setattr__(draws, "num_samples", check_count(number, 2, "num_samples"))
    check_choice(estimator, ESTIMATORS, "estimator")
    falls_back = estimator == "bartlett" and isinstance(fallback, str) and fallback in ("outer", "hessian")
    if fallback is not None and not falls_back:
        raise ValueError(
            f'fallback={shown(fallback)} with estimator={estimator!r}: only "bartlett" falls back, to "outer" or "hessian".'
        )
