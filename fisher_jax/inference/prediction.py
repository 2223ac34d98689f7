"""`predict`: what a fitted model predicts for rows of covariates, with standard errors and intervals by the delta method.

A prediction of row z is m(θ̂, z), m the mean of y given z, a parameter of its family, a quantile or any function of them. To first
order its variance is J V Jᵀ with J = ∂m/∂u and V the covariance of û; rows share û, so that the covariance of two of them is
J_a V J_bᵀ. The J of all rows are kept, which are as many numbers as a design matrix has. Averages, differences and ratios of
predictions are linear in them and need no further pass over the model.

Rows and their derivatives come from `predicted_rows.py`, and from `mixed_prediction.py` those of mixed models.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from fisher_jax.errors import (
    check_choice,
    check_count,
    check_flag,
    check_level,
    entry_point,
    names_in,
    require,
    shown,
    to_numpy,
)
from fisher_jax.fitting import covariance as covariances
from fisher_jax.fitting.covariance import CovarianceKind
from fisher_jax.fitting.intervals import Scale, normal_quantile, two_sided
from fisher_jax.fitting.map_fits import check_fit
from fisher_jax.fitting.parameter_functions import Output
from fisher_jax.fitting.result import Fit
from fisher_jax.inference.mixed_prediction import predict_mixed
from fisher_jax.inference.predicted_rows import (
    What,
    average_rows,
    check_no_effects,
    linearize_rows,
    model_or_given,
    outline_of,
    read_what,
    rows_of,
    without_steps,
)
from fisher_jax.input_arrays import as_unmasked_array
from fisher_jax.latent.mixed import MixedModel
from fisher_jax.models.constraints import Interval
from fisher_jax.models.model import Model
from fisher_jax.numerics.array_namespace import AnyArray, is_traced, namespace
from fisher_jax.reporting import TEST_FORMATS, Report, Reported, ReportTable, listed, percent

SHOWN = 30  # rows of a report
TITLES = {"estimate": "estimate", "standard_error": "std. error", "z": "z", "p_value": "p-value"}
AtEffects = Literal["predicted", "average", "zero"]


# --- the records ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Prediction(Reported):
    """Predictions of m rows, with standard errors and intervals to first order; printed as a table.

    Attributes
    ----------
    value : array (*b, m, k)
        The k numbers predicted of each row; of many fits with their axis before. `estimate` has them in the shape in which the
        model returns them.
    jacobian : array (*b, m, k, p)
        Their derivatives with respect to the unconstrained parameters u.
    ends : array (*b, m, 2)
        The ends of the range that they lie in, 0 and 1 for a probability; infinite where none is known.
    free, free_covariance : arrays (*b, p) and (*b, p, p)
        The estimate of u, and its covariance.
    weights : array (m,) or (*b, m), or None
        Weights of the rows in `average`: those of the fit where the rows are its own.
    output : Output
        Names and shapes of the k numbers.
    level : float
        The coverage aimed at by the intervals of the reports.
    description : str
        Which covariance was used.
    labels : sequence or None
        Labels of the rows, such as the index of a pandas table; no part of the pytree.

    Notes
    -----
    The intervals are for what is predicted (a mean, a probability), not for a new observation, whose own variation comes on top:
    see `predictive_distribution`.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> model = fj.linked(fj.families.poisson, lambda beta, x: {"rate": jnp.exp(beta[0] + beta[1] * x)})
    >>> x, y = jnp.array([0.0, 1.0, 2.0, 3.0]), jnp.array([1.0, 2.0, 5.0, 9.0])
    >>> prediction = fj.predict(fj.fit(model, jnp.zeros(2), y, given=x), jnp.array([1.0, 2.0]))
    >>> print(prediction.estimate.round(2), prediction.standard_errors().round(2))
    [2.17 4.49] [0.91 1.14]
    >>> print(prediction.contrast(jnp.array([-1.0, 1.0])).estimate.round(2))
    [2.32]
    """

    value: Any
    jacobian: Any
    ends: Any
    free: Any
    free_covariance: Any
    weights: Any
    output: Output
    level: float
    description: str
    labels: Any = field(default=None, compare=False)

    def __len__(self) -> int:
        return int(np.shape(self.value)[-2])

    @property
    def estimate(self) -> PyTree:
        """What is predicted, (*b, m) for one number of each row, (*b, m, …) for arrays."""
        return self.output.arrange(self.value)

    @functools.cached_property
    def _errors(self) -> AnyArray:
        """Standard errors (*b, m, k)."""
        xp = namespace(self.jacobian, self.free_covariance)
        jacobian = self.jacobian.astype(self.free_covariance.dtype)
        # One matrix product for all rows, and not one for each.
        rows = jacobian.reshape((*jacobian.shape[:-3], -1, jacobian.shape[-1]))
        with np.errstate(invalid="ignore"), jax.default_matmul_precision("highest"):
            variance = xp.sum(xp.matmul(rows, self.free_covariance) * rows, axis=-1)
            return xp.sqrt(variance).reshape(self.value.shape)

    @entry_point
    def standard_errors(self) -> PyTree:
        """Standard errors, laid out like `estimate`."""
        return self.output.arrange(self._errors)

    @entry_point
    def covariance(self) -> Float[AnyArray, "*b r r"]:
        """Covariance matrix of all numbers, row by row: r = m k. Made when it is asked for, and not kept.

        Raises
        ------
        ValueError
            If it cannot fit the memory of this machine. Contrasts and averages do not need it.
        """
        count = check_count(
            self.value.shape[-1] * len(self), 1, "the number of rows", entries=self.value.shape[-1] * len(self)
        )
        rows = self.jacobian.reshape((*self.jacobian.shape[:-3], count, self.jacobian.shape[-1]))
        return covariances.transform_covariance(rows, self.free_covariance)

    @entry_point
    def confidence_intervals(self, *, level: float | None = None, scale: Scale = "unconstrained") -> PyTree:
        """Confidence intervals, laid out like `estimate` with a last axis of two, lower and upper.

        Parameters
        ----------
        level : float, optional
            Coverage aimed at; by default that given to `predict`.
        scale : {"unconstrained", "natural"}
            Made on the scale of the range that the number lies in, the logarithm of a rate and the logit of a probability, and
            mapped back, so that they stay inside; or symmetric about the estimate.
        """
        return self.output.arrange(self._intervals(level, scale), trailing=1)

    def _intervals(self, level: float | None, scale: str = "unconstrained") -> AnyArray:
        """Intervals (*b, m, k, 2)."""
        level = self.level if level is None else level
        check_level(level)
        check_choice(scale, ("unconstrained", "natural"), "scale")
        errors = self._errors
        xp = namespace(errors, self.value)
        reach = normal_quantile(0.5 * (1 + xp.asarray(level, errors.dtype))) * errors
        value = self.value.astype(errors.dtype)
        if scale == "natural":
            return xp.stack([value - reach, value + reach], axis=-1)
        ends = self.ends.astype(errors.dtype)
        return xp.stack(_intervals_within(xp, value, reach, ends[..., 0, None], ends[..., 1, None]), axis=-1)

    # --- averages and contrasts -------------------------------------------------------------------------------------------

    @entry_point
    def average(self, weights: Any = None) -> "Prediction":
        """The mean of the predictions over the rows, as a `Prediction` of one row.

        Parameters
        ----------
        weights : array (m,), optional
            Weights of the rows, not negative; by default those of the fit where the rows are its own, else equal ones.

        Returns
        -------
        Prediction
            Its standard error is that of the mean over these rows: that they may be a sample of others is not in it.
        """
        weights = check_row_weights(weights, len(self)) if weights is not None else self.weights
        weights = np.ones(len(self)) if weights is None else weights
        value, jacobian, ends = average_rows((self.value, self.jacobian, self.ends), weights)
        return replace(self, value=value, jacobian=jacobian, ends=ends, weights=None, labels=("average",))

    @entry_point
    def contrast(self, other: Any = "pairs", *, ratio: bool = False, names: Sequence[str] | None = None) -> "Effects":
        """Differences or ratios of predictions, whose covariance is taken into account.

        Parameters
        ----------
        other : Prediction, array (m,) or (c, m), or "pairs"
            Another prediction by the same fit, which is subtracted row by row (or one row from all); weights of the rows, for the
            weighted sum of the predictions (weights that sum to zero are a contrast, in the strict sense); or all pairs of rows,
            each less a later one.
        ratio : bool
            Ratios in place of differences: the prediction divided by the other, and with weights the product of their powers. The
            interval and the test are those of the logarithm.
        names : sequence of str, optional
            Names of the contrasts.

        Returns
        -------
        Effects
            With z and p-values of the hypothesis that a difference is 0 or a ratio 1, not adjusted for the number of contrasts.

        Raises
        ------
        ValueError, TypeError
            If the other prediction is of another fit or has other rows, or the weights do not fit the rows.
        """
        check_flag(ratio, "ratio")
        value, jacobian = self.value, self.jacobian
        xp = namespace(value, jacobian)
        if ratio:
            with np.errstate(all="ignore"):
                jacobian = jacobian / value[..., None]
                value = xp.where(value > 0, xp.log(xp.where(value > 0, value, 1.0)), xp.nan)
        if isinstance(other, Prediction):
            labels = self._check_same_fit(other)
            theirs, their_jacobian = other.value, other.jacobian
            if ratio:
                with np.errstate(all="ignore"):
                    their_jacobian = their_jacobian / theirs[..., None]
                    theirs = xp.where(theirs > 0, xp.log(xp.where(theirs > 0, theirs, 1.0)), xp.nan)
            value, jacobian = value - theirs, jacobian - their_jacobian
        elif isinstance(other, str):
            check_choice(other, ("pairs",), "other", " Or give another Prediction, or weights.")
            m, p = len(self), jacobian.shape[-1]
            check_count(m * (m - 1) // 2, 1, "the number of pairs", " and needs two rows", entries=p)
            first, second = np.triu_indices(m, 1)
            rows = self.row_labels
            labels = tuple(f"{rows[i]} {'/' if ratio else '−'} {rows[j]}" for i, j in zip(first, second, strict=True))
            value = value[..., first, :] - value[..., second, :]
            jacobian = jacobian[..., first, :, :] - jacobian[..., second, :, :]
        else:
            weights = _check_contrast_weights(other, len(self))
            labels = tuple(f"contrast {k}" for k in range(len(weights))) if len(weights) > 1 else ("contrast",)
            used = np.any(weights != 0, axis=0)  # a row that does not enter may be NaN
            value = xp.einsum("cm,...mk->...ck", weights[:, used], value[..., used, :])
            jacobian = xp.einsum("cm,...mkp->...ckp", weights[:, used], jacobian[..., used, :, :])
        if names is not None:
            labels = tuple(names_in(names))
            if len(labels) != value.shape[-2]:
                raise ValueError(
                    f"names={shown(names)}: there are {value.shape[-2]} contrasts, each of which needs a name."
                )
        ends = xp.broadcast_to(xp.asarray([-math.inf, math.inf]), (*value.shape[:-1], 2))
        if ratio:
            value = xp.exp(value)
            jacobian, ends = jacobian * value[..., None], xp.broadcast_to(xp.asarray([0.0, math.inf]), ends.shape)
        return Effects(
            *(value, jacobian, ends, self.free, self.free_covariance, None),
            *(self.output, self.level, self.description),
            labels=labels,
            heading="ratio" if ratio else "contrast",
            null=1.0 if ratio else 0.0,
        )

    def _check_same_fit(self, other: "Prediction") -> Any:
        """The labels of a contrast of two predictions; raise where their covariance is not known, or rows do not match."""
        mine, theirs = (self.free, self.free_covariance), (other.free, other.free_covariance)
        if not is_traced(mine, theirs):
            # Both: fits of two responses with one design may have the same covariance and yet be independent.
            same = all(np.array_equal(*arrays, equal_nan=True) for arrays in zip(mine, theirs, strict=True))
            if not same or self.description != other.description:
                raise ValueError(
                    "the two predictions are by different fits, or with different kinds of covariance: the covariance between "
                    "them is unknown. Predict both by one fit, with the same kind=."
                )
        if self.output.shapes != other.output.shapes:
            raise ValueError(
                f"the two predictions have other numbers in a row ({self.output.shapes} and {other.output.shapes})."
            )
        if len(other) not in (1, len(self)) and len(self) != 1:
            raise ValueError(f"the predictions have {len(self)} and {len(other)} rows; give as many, or one.")
        return self.labels if len(self) >= len(other) else other.labels

    # --- reports ----------------------------------------------------------------------------------------------------------

    @property
    def row_labels(self) -> Any:
        """Labels of the rows: those of a table, else 0, 1, …"""
        return range(len(self)) if self.labels is None else self.labels

    @entry_point
    def to_frame(self, *, level: float | None = None) -> Any:
        """A pandas DataFrame with a row for each number, and the index of the table predicted (needs the extra `frames`)."""
        pd = require("pandas", "frames")
        if np.ndim(self.value) != 2:
            raise ValueError("this is of a batch. Take the arrays, or predict by one fit: fits[0].")
        index = pd.Index(self.row_labels)
        if self.value.shape[-1] > 1:
            index = pd.MultiIndex.from_product([index, self.output.names], names=[index.name, None])
        return pd.DataFrame(self._columns(level), index=index)

    def _columns(self, level: float | None) -> dict[str, np.ndarray]:
        """The columns of a table, of one fit."""
        ends = self._intervals(level).reshape(-1, 2)
        columns = {"estimate": np.ravel(self.value), "standard_error": np.ravel(self._errors)}
        return columns | {"lower": ends[:, 0], "upper": ends[:, 1]}

    @property
    def _heading(self) -> str:
        return "row"

    @property
    def _title(self) -> str:
        names = self.output.names
        return f"Predictions: {names[0] if len(names) == 1 else listed(names, 4)}"

    def summary(self) -> Report:
        """The first thirty rows with their standard errors and intervals; of many fits, the shape."""
        if np.ndim(self.value) != 2 or is_traced(self.value):
            return Report(f"{self._title}, of shape {np.shape(self.value)}")
        count, k = self.value.size, self.value.shape[1]
        rows = -(-SHOWN // k)
        labels = list(self.row_labels[:rows])
        shown_ = replace(self, value=self.value[:rows], jacobian=self.jacobian[:rows], ends=self.ends[:rows])
        columns = shown_._columns(None)
        titles = [TITLES.get(key, f"{key} {percent(self.level)}") for key in columns]
        names = [str(a) if k == 1 else f"{a} {b}" for a in labels for b in self.output.names]
        cells = list(zip(names, *columns.values(), strict=True))
        table = ReportTable((self._heading, *titles), cells, keys=tuple(columns), formats=TEST_FORMATS)
        notes = [f"{count - len(names)} more are not shown: see to_frame()."] if count > len(names) else []
        return Report(self._title, [("Covariance", self.description)], [table], notes)


@dataclass(frozen=True, repr=False)
class Effects(Prediction):
    """Differences, ratios and slopes of predictions, with z and p-values; printed as a table.

    Attributes
    ----------
    value, jacobian, ends, free, free_covariance, weights, output, level, description, labels
        As in `Prediction`, with a row for each effect.
    heading : str
        What a row is, in reports.
    null : float
        The value under the hypothesis that is tested: 0, or 1 for a ratio, of which the logarithm is tested.

    Notes
    -----
    p-values are two-sided and not adjusted for the number of effects.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> model = fj.linked(fj.families.poisson, lambda beta, x: {"rate": jnp.exp(beta[0] + beta[1] * x)})
    >>> x, y = jnp.array([0.0, 1.0, 2.0, 3.0]), jnp.array([1.0, 2.0, 5.0, 9.0])
    >>> fit = fj.fit(model, jnp.zeros(2), y, given=x)
    >>> ratio = fj.predict(fit, jnp.array([2.0])).contrast(fj.predict(fit, jnp.array([1.0])), ratio=True)
    >>> print(f"{ratio.estimate[0]:.3f}, p = {ratio.p_values()[0]:.3f}")
    2.066, p = 0.006
    """

    heading: str = "contrast"
    null: float = 0.0

    @entry_point
    def z_values(self) -> PyTree:
        """The difference from `null` divided by its standard error, of logarithms for ratios; laid out like `estimate`."""
        return self.output.arrange(self._z)

    @entry_point
    def p_values(self) -> PyTree:
        """Two-sided p-values of the hypothesis that the effect is `null`, laid out like `estimate`."""
        return self.output.arrange(self._p)

    @property
    def _z(self) -> AnyArray:
        xp = namespace(self.value, self._errors)
        with np.errstate(all="ignore"):
            if self.null == 1.0:
                return xp.log(self.value) * self.value / self._errors
            return (self.value - self.null) / self._errors

    @property
    def _p(self) -> AnyArray:
        return two_sided(self._z)

    @property
    def _heading(self) -> str:
        return self.heading

    @property
    def _title(self) -> str:
        kind = {"contrast": "Contrasts", "ratio": "Ratios"}.get(self.heading, "Marginal effects")
        names = self.output.names
        return f"{kind}: {names[0] if len(names) == 1 else listed(names, 4)}"

    def _columns(self, level: float | None) -> dict[str, np.ndarray]:
        columns = super()._columns(level)
        ends = {key: columns.pop(key) for key in ("lower", "upper")}
        return columns | {"z": np.ravel(self._z), "p_value": np.ravel(self._p)} | ends

    def summary(self) -> Report:
        """The first thirty effects with standard errors, z, p-values and intervals; of many fits, the shape."""
        report = super().summary()
        if not report.tables or self.value.size < 2:
            return report
        return replace(
            report, notes=[*report.notes, "p-values and intervals are not adjusted for the number of effects."]
        )


_STATIC = ("output", "level", "description", "heading", "null")
for _record in (Prediction, Effects):
    _names = [each.name for each in fields(_record) if each.name != "labels"]
    jax.tree_util.register_dataclass(
        _record, [n for n in _names if n not in _STATIC], [n for n in _names if n in _STATIC], drop_fields=["labels"]
    )


@np.errstate(all="ignore")
def _intervals_within(xp: Any, value: Any, reach: Any, low: Any, high: Any) -> list[Any]:
    """Lower and upper ends on the scale log(v − low), −log(high − v) or the logit of both, mapped back; symmetric without ends.

    With g that scale they are g⁻¹(g(v) ± reach · g′(v)), as `Interval.bounds` makes them for one range. A number whose error is
    below its rounding, as that of a probability which is rounded to one, is its own interval.
    """
    below, above = value - low, high - value
    has_low, has_high = xp.isfinite(low), xp.isfinite(high)
    both = has_low & has_high
    width = xp.where(both, high - low, 1.0)
    exact = reach <= jnp.finfo(value.dtype).eps * abs(value)
    slope = xp.where(both, below * above / width, xp.where(has_low, below, above))
    step = xp.where(exact, 0.0, reach / xp.where(exact, 1.0, slope))
    result = []
    for sign in (-1.0, 1.0):
        odds = xp.exp(sign * step)  # by which below / above is multiplied
        within = low + width * (below * odds / (above + below * odds))
        end = xp.where(both, within, xp.where(has_low, low + below * odds, high - above / odds))
        end = xp.where(has_low | has_high, end, value + sign * reach)
        result.append(xp.where(exact, value, end))
    return result


def check_row_weights(weights: Any, count: int) -> np.ndarray:
    """Weights of the rows in an average."""
    array = as_unmasked_array(
        to_numpy(weights, "weights"), lambda: "weights", "Give a row that is to be left out weight zero."
    )
    if np.shape(array) != (count,):
        raise ValueError(f"weights has shape {np.shape(array)}, expected ({count},), one for each row.")
    array = np.asarray(array, float)
    if not np.all(np.isfinite(array) & (array >= 0)) or not np.any(array > 0):
        raise ValueError("weights must be finite and not negative, and some of them positive.")
    return array


def _check_contrast_weights(weights: Any, count: int) -> np.ndarray:
    """The weights of contrasts (c, m)."""
    if weights is None or callable(weights) or isinstance(weights, dict | set):
        raise TypeError(f'other={shown(weights)} must be another Prediction, weights of the {count} rows, or "pairs".')
    array = np.asarray(as_unmasked_array(to_numpy(weights, "other"), lambda: "other", "Give each row a weight."), float)
    if array.ndim not in (1, 2) or array.shape[-1] != count or array.size == 0:
        raise ValueError(
            f"other has shape {array.shape}, expected ({count},) or (c, {count}): a weight for each row of each contrast."
        )
    if not np.all(np.isfinite(array)):
        raise ValueError("other: weights of contrasts must be finite.")
    return np.atleast_2d(array)


# --- predict ----------------------------------------------------------------------------------------------------------


@entry_point
def predict(
    fit: Fit,
    new: PyTree = None,
    what: What = "mean",
    *,
    kind: CovarianceKind | None = None,
    level: float = 0.95,
    scale: Scale | Interval = "unconstrained",
    effects: AtEffects = "predicted",
    groups: Any = None,
    new_axis: PyTree = None,
    model: Model | None = None,
) -> Prediction:
    """Predict the mean, a parameter, a quantile or any function of rows of covariates, with standard errors: var m(θ̂, z) ≈ J V Jᵀ.

    Parameters
    ----------
    fit : Fit
        Of many fits, every result gains their leading axis.
    new : pytree of arrays, or a table, optional
        Covariates as the `given` of the fit: arrays with a leading axis of length m, offsets and exposures among them. For a model
        from a formula a table (pandas, polars, Arrow, a dictionary) with the formula's columns, whose transformations and levels
        are those of the fit. By default the rows of the fit. A model without covariates has one prediction.
    what : "mean", str, float or callable
        "mean", the mean of y; the name of a parameter of the family, as "scale"; a number between 0 and 1, that quantile of y; or a
        function that returns a number or a pytree of arrays: of the dictionary of the family's parameters for a `linked` model, of
        params (and z) for any other.
    kind : {"observed", "expected", "empirical", "sandwich"}, optional
        The covariance V, as for `Fit.covariance`: by default that of the fit, which `robust` makes robust or clustered.
    level : float
        Coverage aimed at by the intervals.
    scale : {"unconstrained", "natural"} or a constraint
        Intervals are made on the scale of the range of what is predicted and mapped back, so that they stay inside: the
        logarithm of what is positive, the logit of a probability. The range of a parameter is its constraint, that of a mean
        or quantile the model's `support`, that of a function the whole line unless an interval is given, as
        `fisher_jax.positive`. "natural" makes symmetric intervals.
    effects : {"predicted", "average", "zero"}
        Of a model made by `mixed`. "predicted": at the predicted effects of the group that a row belongs to, with their errors.
        "average": the mean over the effects of a new group, by quadrature, in up to three effects; not for quantiles. "zero": for
        a group whose effects are zero.
    groups : array, optional
        Of a mixed model, for `new` and predicted effects: the label of the group of each row, or of each group of rows; numbers
        from 0 where the fit has no labels. By default those of `new` where it comes from `by_group`, or is the table of a formula,
        which names the column; else `new` must have the groups of the fit in their order.
    new_axis : int, None or pytree of them
        For many fits that each have rows of their own: the axis of `new` over the fits.
    model : Model, optional
        Needed where the fit no longer has its model, as one that was loaded from a file.

    Returns
    -------
    Prediction
        `estimate` (m,), with `standard_errors()`, `confidence_intervals()`, `covariance()`, `average()`, `contrast()` and
        `to_frame()`. Standard errors are NaN where the fit failed, with a `FitWarning`, and for quantiles of discrete
        distributions, which do not move with the parameters but jump.

    Raises
    ------
    ValueError, TypeError
        If the rows do not have the covariates of the fit, `what` names nothing, or the model has no mean or no quantile function.

    Warns
    -----
    FitWarning
        Where a fit failed, or rows have covariates that are NaN: what depends on these is NaN.

    Notes
    -----
    Valid as far as the prediction is linear in the parameters over a few standard errors, on the scale of its interval. The
    interval is one for the mean (or parameter, quantile), not for a new observation. For a log or logit link the intervals are
    those of the linear predictor mapped back, as statsmodels' ``get_prediction`` gives them; for a probit link, of which the logit
    is taken here, they differ in the second order.

    Of a mixed model `new` has rows (m, …), or rows in groups (G, m, …), or is what `by_group` returns; the predictions are one for
    each row, without those that fill up groups. Predicted effects are drawn towards zero: their intervals cover on average over
    groups, not for each group. A mean at predicted effects is that given the effects at their mode.

    Cost: p passes of the predictor forward over all rows, in blocks; m p numbers are kept. Other rows, levels and fits of
    the model compile nothing, up to the size class of m.

    References
    ----------
    van der Vaart, A. W. (1998), Asymptotic Statistics, theorem 3.1; McCullagh, P. and Nelder, J. A. (1989), Generalized Linear
    Models, 2nd ed., section 12.5.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> model = fj.linked(fj.families.bernoulli, lambda beta, x: {"logit": beta[0] + beta[1] * x})
    >>> x, y = jnp.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), jnp.array([0, 0, 1, 0, 1, 1])
    >>> fit = fj.fit(model, jnp.zeros(2), y, given=x)
    >>> print(fj.predict(fit, jnp.array([1.0, 4.0])).confidence_intervals(level=0.9).round(2))
    [[0.01 0.75]
     [0.25 0.99]]
    """
    check_fit(fit)
    check_level(level)
    model = model_or_given(fit, model)
    range_ = None
    if isinstance(scale, Interval):
        range_ = (scale.low, scale.high)
    else:
        check_choice(scale, ("unconstrained", "natural"), "scale", " Or give a constraint, as fisher_jax.positive.")
        range_ = (-math.inf, math.inf) if scale == "natural" else None
    which = fit._check(kind)
    check_choice(effects, ("predicted", "average", "zero"), "effects")
    if isinstance(model, MixedModel):
        if new_axis is not None:
            raise ValueError(
                "new_axis is not for mixed models: many fits share the rows of new. Predict by each of them."
            )
        arrays, output, description, labels = predict_mixed(fit, model, new, what, groups, effects, which, range_)
        return Prediction(*arrays, output, level, description, labels=labels)
    check_no_effects(model)
    if groups is not None or effects != "predicted":
        raise ValueError("effects and groups are for models made by mixed; this one has no effects. Leave them out.")
    quantity, quantile_level, name = read_what(what, model, range_)
    rows = rows_of(fit, model, new, new_axis)
    output = outline_of(fit, model, quantity, rows, quantile_level, name)
    fit._warn(which)
    value, jacobian, ends = linearize_rows(fit, model, quantity, rows, quantile_level, len(output.names))
    if quantity.what == "quantile":
        jacobian = without_steps(jacobian, value)
    covariance = fit._computed(covariances.free_covariance, which)
    return Prediction(
        *(value, jacobian, ends, fit.free, covariance, rows.weights, output, level, fit.describe(which)),
        labels=rows.labels,
    )
