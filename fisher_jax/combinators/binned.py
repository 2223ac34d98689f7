"""`binned`: histograms, of which the counts in bins are known and not the values.

    log p(n) = log N! + Σₖ (nₖ log qₖ − log nₖ!)        given their total N: multinomial
    log p(n) = Σₖ (nₖ log(ν qₖ) − ν qₖ − log nₖ!)       with the expected total ν as a parameter: the extended likelihood

with qₖ = P(edgeₖ < Y ≤ edgeₖ₊₁) / P(edge₀ < Y ≤ edge_K), the probability of a bin among those that are counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from fisher_jax.combinators.censored import is_censored
from fisher_jax.combinators.combined import Density, Part, as_floats, base_of, combined, within_link
from fisher_jax.errors import check_count, check_flag, entry_point, shown, to_numpy
from fisher_jax.families.common import not_a_count
from fisher_jax.models.constraints import positive
from fisher_jax.models.linked import LinkedModel
from fisher_jax.models.model import Model, check_distribution
from fisher_jax.models.probabilities import log_between

TOTAL = "total"


@dataclass(frozen=True)
class _Histogram(Part):
    """A function of counts in bins."""

    edges: tuple[float, ...]
    extended: bool
    total: int | None

    def log_probabilities(self, params: PyTree, *z: PyTree) -> Float[Array, " k"]:
        """log q of each bin."""
        (edges,) = as_floats(params, np.asarray(self.edges))
        cdf, survival = jax.vmap(lambda edge: self.base_tails(params, edge, *z))(edges)
        if cdf.shape != edges.shape:
            raise ValueError(
                f"the distribution function of the binned model must be a number at each edge, but at all {len(edges)} has shape "
                f"{cdf.shape}. Its parameters are those of one value."
            )
        each = log_between(cdf[:-1], survival[:-1], cdf[1:], survival[1:])
        return each - log_between(cdf[0], survival[0], cdf[-1], survival[-1])

    def expected(self, params: PyTree) -> Array:
        """The expected total."""
        if not isinstance(params, dict) or TOTAL not in params:
            raise ValueError(
                f"params are {shown(params)}; expected a dictionary of the model's parameters and {TOTAL!r}."
            )
        return jnp.asarray(params[TOTAL])


class _BinnedDensity(_Histogram, Density):
    combinator = "binned"

    def describe(self) -> str:
        options = (", extended=True" if self.extended else "") + ("" if self.total is None else f", total={self.total}")
        return f"binned({self.base!r}, {len(self.edges)} edges{options})"

    def __call__(self, params: PyTree, y: ArrayLike, *z: PyTree) -> Array:
        if jnp.shape(y) != (len(self.edges) - 1,):
            raise ValueError(
                f"an observation of a binned model is the counts of {len(self.edges) - 1} bins, but has shape {jnp.shape(y)}. Data "
                "are (n, bins): write counts[None] for one histogram."
            )
        (y,) = as_floats(params, y)
        log_q = self.log_probabilities(params, *z)
        some = y > 0
        terms = jnp.where(some, y * jnp.where(some, log_q, 0.0), 0.0) - gammaln(jnp.maximum(y, 0.0) + 1.0)
        count = jnp.sum(y)
        if self.extended:
            expected = self.expected(params)
            value = jnp.sum(terms) + jnp.where(count > 0, count * jnp.log(expected), 0.0) - expected
        else:
            value = jnp.sum(terms) + gammaln(jnp.maximum(count, 0.0) + 1.0)
        outside = jnp.any(not_a_count(y))
        if self.total is not None:
            outside |= count != self.total
        return jnp.where(outside, -jnp.inf, value)

    @property
    def how_to_draw(self) -> str:
        return "How many values a histogram holds must be known: give binned(…, total=…), or extended=True."

    @property
    def numbers_in_row(self) -> int:
        return len(self.edges) - 1

    def explain(self, params: PyTree, y: PyTree, *z: PyTree) -> str:
        counts = np.asarray(y, float)
        wrong = np.flatnonzero((counts < 0) | (counts > np.floor(counts)))
        if len(wrong):
            return f"whose bin {wrong[0]} holds {counts[wrong[0]]:g}, which is no count"
        if self.total is not None and counts.sum() != self.total:
            return f"whose counts add up to {counts.sum():g}, and not to total={self.total}"
        empty = np.flatnonzero((counts > 0) & (np.asarray(self.log_probabilities(params, *z)) == -np.inf))
        return f"whose bin {empty[0]} has counts, and no probability at these parameters" if len(empty) else ""

    def check_data(self, data: PyTree, given: PyTree) -> None:
        """Raise where data are not counts of these bins."""
        shape: tuple[int, ...] = np.shape(data) if not isinstance(data, dict | list | tuple) else ()
        if len(shape) != 2 or shape[1] != len(self.edges) - 1:
            raise ValueError(
                f"data is {shown(data)}; expected counts in {len(self.edges) - 1} bins, (n, {len(self.edges) - 1}) of n "
                "histograms: write counts[None] for one."
            )


class _BinnedSample(_Histogram):
    def __call__(self, key: Array, params: PyTree, *z: PyTree) -> Float[Array, " k"]:
        q = jnp.exp(self.log_probabilities(params, *z))
        if self.extended:
            return jax.random.poisson(key, self.expected(params) * q).astype(q.dtype)
        return jax.random.multinomial(key, jnp.asarray(self.total, q.dtype), q)


class _BinnedMean(_Histogram):
    def __call__(self, params: PyTree, *z: PyTree) -> Float[Array, " k"]:
        total: Any = self.expected(params) if self.extended else self.total
        return total * jnp.exp(self.log_probabilities(params, *z))


class _BinnedInitial(_Histogram):
    """The base's `initial` of the middles of bins, each as often as it was counted, and the mean total."""

    def __call__(self, data: Any, *given: PyTree) -> PyTree:
        counts = np.asarray(data, float).sum(axis=0)
        edges = np.asarray(self.edges)
        finite = np.isfinite(edges)
        low, high = np.where(finite, edges, np.nan)[:-1], np.where(finite, edges, np.nan)[1:]
        middles = np.where(np.isnan(low), high, np.where(np.isnan(high), low, 0.5 * (low + high)))
        # A family's start takes no weights: some hundred values in the proportions of the counts. Those that are negative or
        # missing have no part in a start, which changes no data; the status of the fit names them.
        share = np.clip(np.nan_to_num(counts), 0.0, None)
        repeats = np.rint(512.0 * share / max(share.sum(), 1.0)).astype(int)
        start = self.base.initial(np.repeat(middles, repeats) if repeats.any() else middles, *given)  # type: ignore[misc]
        if not self.extended:
            return start
        total = np.asarray(data, float).sum(axis=-1).mean()
        return {**start, TOTAL: max(total, 0.5)}


@entry_point
def binned(
    model: Model, edges: ArrayLike | Sequence[float], *, extended: bool = False, total: int | None = None
) -> Model:
    """A model of histograms: the counts of values of `model` in bins, multinomial, or Poisson with an expected total.

    Parameters
    ----------
    model : Model
        Of the values: a family, a `linked` model, or any model with `log_cdf` or `log_survival`.
    edges : array (K + 1,)
        The ends of the K bins, increasing; the outer ones may be infinite. A value at an edge belongs to the bin below.
    extended : bool
        Whether the number of values is Poisson, with the parameter `total`, its expectation, besides those of the model.
    total : int, optional
        The number of values in each histogram where that is known before: a multinomial model needs it to draw histograms.

    Returns
    -------
    Model
        An observation is one histogram, an array (K,) of counts, so that data are (n, K): ``counts[None]`` where there is one. With
        a sampler and a mean where the total is known or a parameter.

    Raises
    ------
    TypeError, ValueError
        If the model has neither `log_cdf` nor `log_survival`, is dependent or has an auxiliary measurement; for edges that do not
        increase, `total` beside ``extended=True``; for data of another shape.

    Notes
    -----
    Values outside the edges are not counted, and probabilities are those among the values inside. `total` is the expected number
    inside, too.

    The same likelihood, up to a constant, has ``censored(model)``, truncated to the outer edges, of the bins as intervals with the
    counts for weights. There an observation is one value, so that its outer products and BIC count values; here they count
    histograms, and a single one has neither.

    References
    ----------
    Barlow, R. (1990), Nucl. Instrum. Methods A 297, 496-506, for the extended likelihood.

    Examples
    --------
    >>> import fisher_jax as fj, numpy as np
    >>> counts = np.array([[11.0, 25.0, 18.0, 6.0]])
    >>> model = fj.binned(fj.families.logistic, [-2.0, -1.0, 0.0, 1.0, 2.0], extended=True)
    >>> fit = fj.fit(model, None, counts)
    >>> print({name: round(float(value), 3) for name, value in fit.params.items()})
    {'loc': -0.252, 'scale': 0.606, 'total': 60.0}
    """
    model = base_of(model, "binned")
    check_flag(extended, "extended")
    if total is not None:
        check_count(total, 0, "total")
        if extended:
            raise ValueError(f"total={total} is known, and extended=True estimates it. Give one of them.")
    array = to_numpy(edges, "edges")
    if array.ndim != 1 or len(array) < 3 or array.dtype.kind not in "iuf" or not np.all(np.diff(array) > 0):
        raise ValueError(
            f"edges is {shown(edges)}; expected increasing numbers (K + 1,), the ends of two bins or more."
        )
    ends = tuple(array.astype(float).tolist())
    added = {TOTAL: positive} if extended else {}
    if isinstance(model, LinkedModel):
        return within_link(model, lambda family: binned(family, ends, extended=extended, total=total), added=added)
    if is_censored(model):
        raise ValueError(
            f"{model!r} is censored, and counts in bins are so by themselves. Give the model of the values."
        )
    check_distribution(model, "binned")
    arguments = model, ends, bool(extended), total
    has_total = extended or total is not None
    return combined(
        _BinnedDensity(*arguments),
        added=added,
        sample=_BinnedSample(*arguments) if has_total else None,
        mean=_BinnedMean(*arguments) if has_total else None,
        initial=None if model.initial is None else _BinnedInitial(*arguments),
    )
