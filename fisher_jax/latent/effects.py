"""`predicted_effects`: the latent effects of each group at the estimate, with errors that contain the uncertainty of the estimate.

With b*(u) the mode of the effects of a group given its data and the parameters, H = −∇²_b log p(y, b; u) there, and V the
covariance of û, the error of the prediction is that of b about its mode, of covariance H⁻¹ given the parameters, and that of the
mode as the parameters are estimated:

    Var(b*(û) − b) ≈ H⁻¹ + (∂b*/∂u) V (∂b*/∂u)ᵀ,   ∂b*/∂u = H⁻¹ ∂²_{b u} log p(y, b; u),

the second by the implicit function theorem. Of a linear mixed model with known variances this is Henderson's prediction error. An
effect on another scale, e = e(u, b), has E H⁻¹ Eᵀ + (de/du) V (de/du)ᵀ with E = ∂e/∂b and de/du = ∂e/∂u + E ∂b*/∂u.
"""

import functools
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from fisher_jax.errors import check_choice, check_level, entry_point, require, warn
from fisher_jax.fitting import covariance as covariances
from fisher_jax.fitting.covariance import CovarianceKind, precise
from fisher_jax.fitting.intervals import as_leaves, normal_quantile
from fisher_jax.fitting.map_fits import check_fit, with_data
from fisher_jax.fitting.result import Fit, origin_of
from fisher_jax.fitting.summary import edge_in_words
from fisher_jax.input_arrays import as_labels
from fisher_jax.latent.marginal import MarginalModel
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Declarations, Layout, layout_of
from fisher_jax.models.programs import jit_with_model
from fisher_jax.numerics import linalg
from fisher_jax.numerics.array_namespace import AnyArray, on_host
from fisher_jax.reporting import Report, Reported, ReportTable, listed, percent

SHOWN = 30  # rows of a report


# --- modes of all groups and their derivatives ------------------------------------------------------------------------


class Modes(NamedTuple):
    """The modes b of the effects of G groups at the estimate, flat, and the effects e that they stand for."""

    modes: Float[AnyArray, "*b G q"]
    slopes: Float[AnyArray, "*b G q p"]  # ∂b*/∂u
    covariances: Float[AnyArray, "*b G q q"]  # H⁻¹, of b given the parameters
    certified: Bool[AnyArray, "*b G"]
    effects: Float[AnyArray, "*b G q"]
    partials: Float[AnyArray, "*b G q p"]  # ∂e/∂u at fixed b
    loadings: Float[AnyArray, "*b G q q"]  # ∂e/∂b


@functools.partial(jit_with_model, static_argnums=(1,), level=1)
def modes_at(fit: Fit, model: Model, dataset: Dataset) -> Modes:
    """Of one fit the modes of all groups, each given its own data."""
    assert isinstance(model, MarginalModel)
    integral = model.integral

    def of_group(y: PyTree, *z: PyTree) -> Modes:
        mode = integral.mode(fit.params, y, *z)
        b, factor = mode.effects, linalg.factorize(mode.information)

        def stepped(free: Float[Array, " p"]) -> Float[Array, " q"]:
            # One Newton step with the information held fixed: it has the first derivative of the mode.
            f = integral.of_effects(fit.layout.constrain(free, fit.values), y, *z)
            return b + linalg.solve(factor, jax.grad(f)(b))

        def effects(free: Float[Array, " p"], b: Float[Array, " q"]) -> Float[Array, " q"]:
            effects = model.effects_of(fit.layout.constrain(free, fit.values), b)
            return layout_of(effects)[0].flatten(effects)

        partials, loadings = jax.jacfwd(effects, (0, 1))(fit.free, b)
        inverse = linalg.inverse(mode.information)
        slopes = jax.jacfwd(stepped)(fit.free)
        return Modes(b, slopes, inverse, mode.certified, effects(fit.free, b), partials, loadings)

    rows = (dataset.data,) if dataset.given is None else (dataset.data, dataset.given)
    return jax.vmap(of_group)(*rows)


def modes_of_fit(fit: Fit) -> Modes:
    """The modes of all groups of one fit or many, as numpy arrays."""
    model, dataset = origin_of(fit)
    parts = with_data(fit, modes_at) if fit.has_batch else modes_at(fit, model, dataset)
    return Modes(*(np.asarray(part) for part in parts))


def effects_layout(fit: Fit, model: MarginalModel) -> Layout:
    """Names and shapes of the effects of one group."""
    params = (fit[0] if fit.has_batch else fit).params
    effects = model.effects_of(params, jnp.zeros(len(model.integral.start), fit.layout.dtype))
    # As it comes, for `jax.tree.map` would put its keys in another order than that of the modes.
    return layout_of(effects, Declarations((), model.effect_names))[0]


def names_of_effects(layout: Layout) -> tuple[str, ...]:
    """A name for each effect; those of a bare number or array are `effect`, `effect[0]`, …"""
    if jax.tree_util.treedef_is_leaf(layout.treedef):
        return tuple(name.replace("params", "effect", 1) for name in layout.names)
    return layout.names


def check_marginal(model: Model) -> None:
    """Raise for a model without latent effects."""
    if not isinstance(model, MarginalModel):
        raise TypeError(
            "the model of this fit has no latent effects: it was not made by marginal or mixed, and there is nothing to predict "
            "for its groups."
        )


def labels_of_groups(fit: Fit, count: int, labels: Any = None) -> np.ndarray | None:
    """The labels of the groups of a fit: those given, else those of its data; None where there are none."""
    if labels is None:
        return None if fit.origin is None else fit.origin.dataset.group_labels
    labels = as_labels(labels, "labels")
    if labels.shape != (count,):
        raise ValueError(
            f"labels has shape {labels.shape}; expected ({count},), one for each group in the order of the data."
        )
    if len(set(labels.tolist())) < count:
        raise ValueError("labels has the same label twice. Each group needs its own.")
    return labels


def free_covariance(fit: Fit, kind: str) -> tuple[np.ndarray, str]:
    """The covariance of û, and how it was made; for a fit at an edge given what is there, with a warning.

    Where there is none it is NaN, also with a warning.
    """
    edge = fit._edge()
    if not np.any(edge):
        fit._warn(kind)
        return np.asarray(fit._computed(covariances.free_covariance, kind)), fit.describe(kind)
    if fit.has_batch:
        rows = np.any(edge, axis=-1)
        matrix = np.array(fit._computed(covariances.free_covariance, kind))
        matrix[rows] = covariances.free_conditional_on_edge(on_host(fit[rows]), kind, edge[rows])
        given = f"the parameters at their edge in {np.sum(rows)} of {len(rows)} fits"
    else:
        at_edge = np.any(np.asarray(fit.layout.jacobian(fit.free))[:, edge] != 0, axis=1)
        matrix, given = covariances.free_conditional_on_edge(fit, kind, edge), edge_in_words(fit.layout, edge, at_edge)
    warn(f"the errors are conditional on {given}, as if known there.")
    return np.asarray(matrix), f"{fit.describe(kind)}, given {given}"


# --- the record -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class PredictedEffects(Reported):
    """The predicted effects of each group with their errors. It prints as a table.

    Those of many fits have a leading axis B in every array, and ``effects[3]`` are those of one.

    Attributes
    ----------
    value : array (*b, G, q)
        The effects at their mode, flat; `estimate` has them as a pytree. NaN of a group of weight zero, or whose mode was not
        found.
    conditional_covariance : array (*b, G, q, q)
        The covariance of a group's effects given its data, if the parameters were known.
    total_covariance : array (*b, G, q, q)
        The covariance of the error of prediction, with the uncertainty of the parameters.
    layout : Layout
        Names and shapes of the effects of one group.
    level : float
        The coverage aimed at by the intervals of the reports.
    description : str
        Which covariance of the parameters was used.
    labels : array (G,) or None
        The labels of the groups; no part of the pytree.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> def predictor(params, effects):
    ...     return {"loc": params["mean"] + effects["batch"], "scale": params["scale"]}
    >>> model = fj.mixed(fj.families.normal, predictor, {"batch": 0.0}, constraints={"scale": fj.positive})
    >>> yields = jnp.array([[15.4, 15.2, 15.9], [14.1, 14.6, 14.0], [16.3, 16.9, 16.0], [15.0, 15.8, 15.1]])
    >>> fit = fj.fit(model, {"mean": 15.0, "scale": 1.0, "sd": {"batch": 1.0}}, yields)
    >>> effects = fj.predicted_effects(fit, labels=["A", "B", "C", "D"])
    >>> print(effects.ranked().labels, effects.ranked().estimate["batch"].round(2))
    ['C' 'A' 'D' 'B'] [ 0.95  0.13 -0.05 -1.02]
    """

    value: Any
    conditional_covariance: Any
    total_covariance: Any
    layout: Layout
    level: float
    description: str
    labels: Any = field(default=None, compare=False)

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each effect of a group, in the order of the last axis."""
        return names_of_effects(self.layout)

    @property
    def group_labels(self) -> Any:
        """Labels of the groups: those given or of the data, else 0, 1, …"""
        return np.arange(np.shape(self.value)[-2]) if self.labels is None else self.labels

    @property
    def estimate(self) -> PyTree:
        """The effects, a pytree like those of one group whose leaves gain the axis of the groups (*b, G)."""
        return self.layout.assemble(self.layout.split(self.value, np.nan))

    def __len__(self) -> int:
        return int(np.shape(self.value)[0])

    def __getitem__(self, index: Any) -> "PredictedEffects":
        if np.ndim(self.value) == 2:
            raise TypeError("these are the effects of one fit. Take the arrays, or to_frame().")
        arrays = (np.asarray(part)[index] for part in (self.value, self.conditional_covariance, self.total_covariance))
        value, conditional, total = arrays
        return replace(self, value=value, conditional_covariance=conditional, total_covariance=total)

    @entry_point
    def covariance(self, *, conditional: bool = False) -> Float[np.ndarray, "*b G q q"]:
        """Covariance of the errors of prediction of each group's effects, in the order of `names`.

        Parameters
        ----------
        conditional : bool
            That given the parameters, as if they were known.
        """
        return self.conditional_covariance if conditional else self.total_covariance

    @entry_point
    def standard_errors(self, *, conditional: bool = False) -> PyTree:
        """Standard errors of prediction, laid out like `estimate`. Arguments as for `covariance`."""
        return self.layout.assemble(self.layout.split(self._errors(conditional), np.nan))

    @entry_point
    def prediction_intervals(self, *, level: float | None = None, conditional: bool = False) -> PyTree:
        """Intervals for the effects, estimate ± z times the error, laid out like `estimate` with a last axis of two.

        Parameters
        ----------
        level : float, optional
            Coverage aimed at, on average over groups; by default that given to `predicted_effects`.
        conditional : bool
            As if the parameters were known.
        """
        ends = self._intervals(level, conditional)
        return self.layout.assemble(as_leaves(self.layout, [self.value] * len(self.layout.leaves), ends))

    def _errors(self, conditional: bool = False) -> Float[np.ndarray, "*b G q"]:
        with np.errstate(invalid="ignore"):
            return covariances.root_diagonal(self.conditional_covariance if conditional else self.total_covariance)

    def _intervals(self, level: float | None, conditional: bool = False) -> Float[np.ndarray, "*b G q 2"]:
        level = self.level if level is None else level
        check_level(level)
        reach = normal_quantile(np.asarray(0.5 * (1 + level))) * self._errors(conditional)
        return np.stack([self.value - reach, self.value + reach], axis=-1)

    @entry_point
    def ranked(self, effect: str | None = None) -> "PredictedEffects":
        """The groups in the order of one effect, the largest first: what a caterpillar plot shows. Of one fit.

        Parameters
        ----------
        effect : str, optional
            Its name; may be left out where there is one effect only.
        """
        if np.ndim(self.value) != 2:
            raise ValueError("these are the effects of many fits. Rank those of one: effects[0].")
        if effect is None and len(self.names) == 1:
            effect = self.names[0]
        check_choice(effect, self.names, "effect")
        order = np.argsort(-self.value[:, self.names.index(effect)], kind="stable")  # NaN last
        return replace(
            self,
            value=self.value[order],
            conditional_covariance=self.conditional_covariance[order],
            total_covariance=self.total_covariance[order],
            labels=np.asarray(self.group_labels)[order],
        )

    @entry_point
    def to_frame(self, *, level: float | None = None) -> Any:
        """A pandas DataFrame with a row for each group, or for each group and effect (needs the extra `frames`); of one fit."""
        pd = require("pandas", "frames")
        if np.ndim(self.value) != 2:
            raise ValueError("these are the effects of many fits. Take the arrays, or frame those of one: effects[0].")
        index = pd.Index(self.group_labels, name="group")
        if len(self.value) == 1 and self.labels is None:  # one observation that holds all effects
            index = pd.Index(self.names, name="effect")
        elif len(self.names) > 1:
            index = pd.MultiIndex.from_product([index, self.names], names=["group", "effect"])
        return pd.DataFrame(self._columns(level), index=index)

    def _columns(self, level: float | None) -> dict[str, np.ndarray]:
        ends = self._intervals(level).reshape(-1, 2)
        return {
            "estimate": np.ravel(self.value),
            "standard_error": np.ravel(self._errors()),
            "conditional_error": np.ravel(self._errors(conditional=True)),
            "lower": ends[:, 0],
            "upper": ends[:, 1],
        }

    def summary(self) -> Report:
        """The first thirty rows; of many fits, the shape."""
        title = f"Predicted effects: {listed(self.names, 4)}"
        if np.ndim(self.value) != 2:
            return Report(f"{title}, of shape {np.shape(self.value)}")
        num_groups, q = np.shape(self.value)
        groups = min(num_groups, max(1, SHOWN // q))
        shown_ = min(groups * q, SHOWN)
        columns = self._columns(None)
        titles = {"estimate": "estimate", "standard_error": "std. error", "conditional_error": "given parameters"}
        headings = ("group", *(titles.get(key, f"{key} {percent(self.level)}") for key in columns))
        labels = [str(label) for label in np.asarray(self.group_labels)[:groups]]
        names = labels if q == 1 else [f"{label} {name}" for label in labels for name in self.names]
        if num_groups == 1 and self.labels is None:
            headings, names = ("effect", *headings[1:]), list(self.names)
        cells = list(zip(names[:shown_], *(column[:shown_] for column in columns.values()), strict=True))
        facts = [("Groups", f"{num_groups}"), ("Covariance of the parameters", self.description)]
        hidden = num_groups * q - shown_
        notes = [f"{hidden} more are not shown: see to_frame()."] if hidden else []
        missing = int(np.sum(np.any(np.isnan(self.value), axis=-1)))
        if missing:
            notes.append(f"{missing} groups have no prediction: their weight is zero, or their mode was not found.")
        return Report(title, facts, [ReportTable(headings, cells, keys=tuple(columns))], notes)


jax.tree_util.register_dataclass(
    PredictedEffects,
    ["value", "conditional_covariance", "total_covariance"],
    ["layout", "level", "description"],
    drop_fields=["labels"],
)


# --- predicted_effects ------------------------------------------------------------------------------------------------


@entry_point
def predicted_effects(
    fit: Fit, *, kind: CovarianceKind | None = None, level: float = 0.95, labels: Any = None
) -> PredictedEffects:
    """Predict the latent effects of each group of a fit by their mode, with errors that contain those of the parameters.

    The error of prediction has the covariance H⁻¹ + (∂b*/∂θ) V (∂b*/∂θ)ᵀ, with H the information about the effects at their mode
    b* and V the covariance of the estimate. For a mixed model the effects are those that its predictor takes.

    Parameters
    ----------
    fit : Fit
        Of a model made by `marginal` or `mixed`, one or many fits, as `fit` or `fit_batch` returned it.
    kind : {"observed", "expected", "empirical", "sandwich"}, optional
        The covariance V, as for `Fit.covariance`.
    level : float
        Coverage aimed at by the intervals.
    labels : array (G,), optional
        Labels of the groups; by default those of `by_group`, where the fit was made of what it returned.

    Returns
    -------
    PredictedEffects
        `estimate`, `standard_errors()`, `covariance()`, `prediction_intervals()`, `ranked()` and `to_frame()`, the groups in the
        order of the data. Errors are NaN where the fit failed; given the parameters they are there all the same.

    Raises
    ------
    TypeError, ValueError
        If the model has no latent effects, the fit no longer has its data, or labels do not match the groups.

    Warns
    -----
    FitWarning
        Where a fit failed; and where a standard deviation is at zero: the errors are then conditional on it, and the effects zero.

    Notes
    -----
    For a linear mixed model these are the best linear unbiased predictions. Their intervals cover the effects on average over
    groups, not for each group: effects are drawn towards zero. Elsewhere the effects given the data are taken as normal about
    their mode, as in Laplace's approximation, and their mode is not their mean. With few groups the errors are too small, since
    the estimate's own are.

    Cost: one search for the mode and p + q forward passes for each group.

    References
    ----------
    Kass, R. E. and Steffey, D. (1989), Approximate Bayesian inference in conditionally independent hierarchical models, JASA 84,
    717-726, eq. (3.7). Kristensen, K. et al. (2016), TMB: automatic differentiation and Laplace approximation, J. Stat. Softw.
    70(5), section 2.3. Henderson, C. R. (1975), Best linear unbiased estimation and prediction under a selection model, Biometrics
    31, 423-447.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> def predictor(params, effects):
    ...     return {"loc": params["mean"] + effects["batch"], "scale": params["scale"]}
    >>> model = fj.mixed(fj.families.normal, predictor, {"batch": 0.0}, constraints={"scale": fj.positive})
    >>> yields = jnp.array([[15.4, 15.2, 15.9], [14.1, 14.6, 14.0], [16.3, 16.9, 16.0], [15.0, 15.8, 15.1]])
    >>> fit = fj.fit(model, {"mean": 15.0, "scale": 1.0, "sd": {"batch": 1.0}}, yields)
    >>> effects = fj.predicted_effects(fit)
    >>> print(effects.estimate["batch"].round(2), effects.standard_errors()["batch"].round(2))
    [ 0.13 -1.02  0.95 -0.05] [0.41 0.42 0.42 0.41]
    """
    check_fit(fit)
    check_level(level)
    model, dataset = origin_of(fit)
    check_marginal(model)
    assert isinstance(model, MarginalModel)
    which = fit._check(kind)
    modes = modes_of_fit(fit)
    value = precise(modes.effects)
    labels = labels_of_groups(fit, value.shape[-2], labels)
    matrix, description = free_covariance(fit, which)
    loadings = precise(modes.loadings)
    conditional = covariances.transform_covariance(loadings, precise(modes.covariances))
    slopes = precise(modes.partials) + np.matmul(loadings, precise(modes.slopes))
    of_each = np.broadcast_to(matrix[..., None, :, :], (*value.shape[:-1], *matrix.shape[-2:]))
    total = conditional + covariances.transform_covariance(slopes, of_each)
    has_mode = modes.certified if dataset.weights is None else modes.certified & (np.asarray(dataset.weights) > 0)
    value = np.where(has_mode[..., None], value, np.nan)
    conditional, total = (np.where(has_mode[..., None, None], part, np.nan) for part in (conditional, total))
    layout = effects_layout(fit, model)
    return PredictedEffects(value, conditional, total, layout, level, description, labels)
