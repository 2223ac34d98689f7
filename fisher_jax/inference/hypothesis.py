"""Hypotheses about parameters, written by structure or by name, and the record of a test of one."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree
from scipy.special import chdtrc  # scipy.stats takes as long to import as half of JAX

from fisher_jax.errors import check_pytree, shown
from fisher_jax.fitting.parameter_functions import name_within
from fisher_jax.models.constraints import Fixed, Interval, Simplex, Unconstrained
from fisher_jax.models.parameter_names import LinearCombinations, all_entries, all_names, is_text, read_restrictions
from fisher_jax.models.parameters import Layout
from fisher_jax.reporting import Report, Reported, listed, number, probability


@dataclass(frozen=True)
class Hypothesis:
    """Which entries of the array leaves of params have which values under the null hypothesis.

    `where` has a pair for each entry: the leaf's index in `Layout.leaves`, and the entry's in the raveled leaf. `texts` are the
    statements of a hypothesis that was given as text, as they were written.
    """

    names: tuple[str, ...]
    where: tuple[tuple[int, int], ...]
    values: np.ndarray
    texts: tuple[str, ...] = ()

    @property
    def statements(self) -> tuple[str, ...]:
        """`shape = 4.5` for each."""
        return self.texts or tuple(f"{name} = {value:g}" for name, value in zip(self.names, self.values, strict=True))

    def entries_of(self, leaf: int) -> dict[int, float]:
        """The restricted entries of one leaf, with their values."""
        return {k: float(v) for (i, k), v in zip(self.where, self.values, strict=True) if i == leaf}


def read_restriction(layout: Layout, given: Any) -> Hypothesis | Callable[[PyTree], PyTree]:
    """A null hypothesis as entries at values, or as a function of params that is zero under it."""
    if not is_text(given):
        return given if callable(given) else read_hypothesis(layout, given)
    combinations = read_restrictions(layout, given, "the hypothesis")
    values = combinations.entry_values()
    if values is None:
        return combinations
    hypothesis = read_hypothesis(layout, {layout.names[k]: value for k, value in values.items()})
    texts = dict(zip((layout.names[k] for k in values), combinations.names, strict=True))
    return replace(hypothesis, texts=tuple(texts[name] for name in hypothesis.names))


def statements_of(function: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    """What a function of params that is zero states about its numbers: a hypothesis as it was written, or `name = 0` for each."""
    return function.names if isinstance(function, LinearCombinations) else tuple(f"{name} = 0" for name in names)


def read_hypothesis(layout: Layout, values: PyTree) -> Hypothesis:
    """The entries named in a pytree of hypothesised values; `None`, NaN and what is absent are not restricted.

    The tree is shaped like params or a part of it; a key may also be an entry's name as reports print it, as `beta[1]`.
    """
    check_pytree(values, "the hypothesis")
    if jax.tree_util.all_leaves([values]) and "params" not in {leaf.name for leaf in layout.leaves}:
        raise TypeError(
            f"the hypothesis is {shown(values)}. Write it as text, as '{(*layout.names, 'scale')[0]} = 0', or names and values as "
            f"a dictionary, as {{{(*layout.names, 'scale')[0]!r}: 0.0}}, or give a function of params that is zero under it."
        )
    by_name: dict[str, tuple[int, int | None]] = {leaf.name: (i, None) for i, leaf in enumerate(layout.leaves)}
    index = all_names(layout)
    entries = all_entries(layout)
    by_name |= {name: entries[at[0]] for name, at in index.positions.items() if len(at) == 1 and name not in by_name}
    restricted: dict[tuple[int, int], float] = {}
    for path, value in jax.tree_util.tree_flatten_with_path(values)[0]:
        if callable(value):  # a function inside an Equinox module
            continue
        name = name_within("params", path)
        if name not in by_name:
            names = ", ".join(f"`{leaf.name}`" for leaf in layout.leaves)
            raise ValueError(
                f"the hypothesis names `{name}`, but the parameters are {names}."
                f"{index.hint(name) or ' Spell it as in summary().'}"
            )
        i, k = by_name[name]
        flat = _check_values(layout, i, k, value, name)
        restricted |= {(i, j if k is None else k): float(x) for j, x in enumerate(flat) if not np.isnan(x)}
    if not restricted:
        raise ValueError("the hypothesis restricts nothing: every value is None or NaN.")
    where = tuple(sorted(restricted))
    entry_names = tuple(layout.leaves[i].entry_names[k] for i, k in where)
    return Hypothesis(entry_names, where, np.array([restricted[entry] for entry in where]))


def _check_values(layout: Layout, i: int, k: int | None, value: Any, name: str) -> np.ndarray:
    """The hypothesised values of a leaf, or of its entry k, in one row; raise where its constraint excludes them."""
    if isinstance(value, jax.core.Tracer):
        raise TypeError(f"the value of `{name}` must be known now, but is traced. Give numbers.")
    value = np.asarray(value)
    shape = layout.leaves[i].shape if k is None else ()
    if value.dtype.kind not in "iuf" or value.shape not in ((), shape):
        raise ValueError(
            f"the hypothesised value of `{name}` must be a number or an array of shape {shape}, "
            f"got {value.dtype} of shape {value.shape}."
        )
    flat = np.broadcast_to(value, shape).ravel().astype(float)
    constraint = layout.leaves[i].constraint
    if isinstance(constraint, Interval):  # its ends belong to a hypothesis: a variance of zero
        if np.any((flat < constraint.low) | (flat > constraint.high)):
            raise ValueError(f"`{name}` is {constraint.description}, and cannot be {value}.")
    elif not isinstance(constraint, Unconstrained | Fixed) and k is None and not np.any(np.isnan(flat)):
        whole = flat.reshape(shape)
        if isinstance(constraint, Simplex):  # to six digits, as people write thirds; and entries may be zero
            inside = np.all(whole >= 0) and np.allclose(whole.sum(axis=-1), 1.0, rtol=0.0, atol=1e-6)
        else:
            inside = constraint.contains(whole)
        if not inside:
            raise ValueError(f"`{name}` is {constraint.description}, and cannot be {value.tolist()}.")
    return flat


def free_positions(layout: Layout, hypothesis: Hypothesis) -> tuple[int, ...]:
    """Where the restricted entries are in θ; raise for those that the fit kept `fixed`."""
    starts, start = {}, 0
    for i, leaf in layout.free_leaves:
        starts[i], start = start, start + leaf.size
    for name, (i, _) in zip(hypothesis.names, hypothesis.where, strict=True):
        if i not in starts:
            raise ValueError(
                f"`{name}` was held fixed in this fit, so it was not estimated and cannot be tested with it. "
                "Fit without `fixed`, or use score_test, which needs the null fit only."
            )
    return tuple(starts[i] + k for i, k in hypothesis.where)


@dataclass(frozen=True, repr=False)
class HypothesisTest(Reported):
    """A test of a null hypothesis: its statistic, chi-squared under the null, and the p-value.

    Attributes
    ----------
    statistic : array
        A scalar, or one number for each fit of a batch or each candidate; NaN where it does not exist.
    p_value : array
        The probability under the null of a statistic at least as large, by the chi-squared distribution or that of
        `distribution`; NaN where it is unknown.
    mixture_p_value : array or None
        For one parameter on the boundary of its range under the null: that of the mixture of two chi-squared distributions
        which is the null distribution there.
    degrees_of_freedom : int
        How many restrictions the null hypothesis makes.
    test : str
        The name of the test.
    hypothesis : tuple of str
        The null hypothesis, one text for each restriction.
    covariance : str
        Which information or covariance was used, in words; empty where none was.
    notes : tuple of str
        Conditions of the test that do not hold here, in sentences.
    distribution : str
        Where the p-value comes from, in words, if not from the chi-squared distribution.
    """

    statistic: Any
    p_value: Any
    mixture_p_value: Any
    degrees_of_freedom: int
    test: str
    hypothesis: tuple[str, ...]
    covariance: str
    notes: tuple[str, ...] = ()
    distribution: str = ""

    def summary(self) -> Report:
        """The hypothesis, the statistic and the p-value; of many tests how many reject, and the smallest p-value."""
        if isinstance(self.statistic, jax.core.Tracer):
            return Report(f"{self.test} of {listed(self.hypothesis)}")
        degrees = f"{self.degrees_of_freedom} degree{'s' * (self.degrees_of_freedom != 1)}"
        distribution = self.distribution or f"chi-squared with {degrees} of freedom"
        mixture = f"½ χ² with {self.degrees_of_freedom - 1} and ½ χ² with {degrees} of freedom"
        facts = [("Null hypothesis", listed(self.hypothesis))]
        if jnp.ndim(self.statistic):
            p = np.ravel(np.asarray(self.p_value if self.mixture_p_value is None else self.mixture_p_value))
            missing = int(np.sum(np.isnan(p)))
            law = distribution if self.distribution or self.mixture_p_value is None else mixture
            facts += [("Tests", str(p.size)), ("Distribution", law)]
            facts += [("p-value", f"below {level:g} in {int(np.sum(p < level))}") for level in (0.05, 0.001)]
            if missing < p.size:
                facts.append(("Smallest p-value", f"{probability(np.nanmin(p))}, of number {int(np.nanargmin(p))}"))
            if missing:
                facts.append(("Without a statistic", str(missing)))
        else:
            facts += [
                ("Statistic", f"{number(self.statistic)}, {distribution}"),
                ("p-value", probability(self.p_value)),
            ]
            if self.mixture_p_value is not None:
                facts.append(("p-value of the mixture", f"{probability(self.mixture_p_value)}, {mixture}"))
        if self.covariance:
            facts.append(("Covariance", self.covariance))
        return Report(self.test, facts, notes=self.notes)


jax.tree_util.register_dataclass(
    HypothesisTest,
    ["statistic", "p_value", "mixture_p_value"],
    ["degrees_of_freedom", "test", "hypothesis", "covariance", "notes", "distribution"],
)


def chi_squared_test(
    statistic: Any,
    degrees_of_freedom: int,
    test: str,
    hypothesis: tuple[str, ...],
    covariance: str = "",
    notes: tuple[str, ...] = (),
    *,
    num_on_boundary: int = 0,
) -> HypothesisTest:
    """The record of a test whose statistic is chi-squared; with the mixture's p-value for one parameter on a boundary."""
    p_value = survival(statistic, degrees_of_freedom)
    mixture = 0.5 * (p_value + survival(statistic, degrees_of_freedom - 1)) if num_on_boundary == 1 else None
    if isinstance(statistic, np.ndarray):  # of a batch, which lives on the host
        p_value, mixture = jax.tree.map(np.asarray, (p_value, mixture))
    return HypothesisTest(statistic, p_value, mixture, degrees_of_freedom, test, hypothesis, covariance, notes)


def survival(statistic: Any, degrees_of_freedom: int) -> Array:
    """P(χ² ≥ statistic); with no degree of freedom all mass is at zero. NaN for a negative statistic."""
    statistic = jnp.asarray(statistic)
    if not isinstance(statistic, jax.core.Tracer):
        # By scipy: JAX would compile its series, for some tenths of a second for each shape.
        values = np.asarray(statistic, np.float64)
        p_value = chdtrc(degrees_of_freedom, np.maximum(values, 0.0)) if degrees_of_freedom else 1.0 * (values == 0)
        return jnp.asarray(np.where(values >= 0, p_value, np.nan), statistic.dtype)
    if degrees_of_freedom == 0:
        return jnp.where(statistic > 0, 0.0, jnp.where(statistic == 0, 1.0, jnp.nan))
    safe = jnp.where(statistic >= 0, statistic, 0.0)  # or the derivative of gammaincc would be NaN
    return jnp.where(statistic >= 0, jax.scipy.special.gammaincc(0.5 * degrees_of_freedom, 0.5 * safe), jnp.nan)
