"""`check_laplace`: whether the approximation of the integral over latent effects matters for a fit.

By more nodes: the same data are fitted again with adaptive quadrature, and the estimates compared in standard errors.

By simulation (Thygesen et al. 2017): over data drawn from the model at θ̂ the score of the exact likelihood has mean zero. That of
an approximation has a mean μ, and the estimate a bias of about J⁻¹ μ. The mean of R data sets is tested by Hotelling's
T² = R μ̂ᵀ C⁻¹ μ̂, C being the covariance of their scores: (R − p) T² / (p (R − 1)) has the F distribution with p and R − p degrees of
freedom, and T² that of χ² with p as R grows.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from fisher_jax.blocks import map_blocks
from fisher_jax.errors import check_count, check_key, entry_point
from fisher_jax.fitting.covariance import CovarianceKind, precise, root_diagonal, transform_covariance
from fisher_jax.fitting.map_fits import check_fit
from fisher_jax.fitting.result import Fit, origin_of
from fisher_jax.fitting.status import Status
from fisher_jax.inference.restricted_fits import fit_again
from fisher_jax.latent import effects
from fisher_jax.latent.marginal import MOST_DIMENSIONS, MarginalModel
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.drawing import check_sampler, draw_data_sets
from fisher_jax.models.likelihood import likelihood, scores_at
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.programs import jit_with_model
from fisher_jax.numerics import linalg
from fisher_jax.reporting import Report, Reported, ReportTable, listed, number, probability, with_error

NEGLIGIBLE = (
    0.1  # standard errors: a shift below it changes no conclusion, and the coverage of a 95 % interval by 0.1 %
)
GROUPS_AT_ONCE = 2**13  # of drawn data sets


@dataclass(frozen=True, repr=False)
class LaplaceCheck(Reported):
    """How far the approximation of an integral over latent effects moves a fit. It prints as a report.

    Attributes
    ----------
    estimate, standard_errors : arrays (*b, q)
        Of the fit; errors are NaN where it has none, and zero for a parameter at its edge.
    refit : Fit or None
        The fit by more nodes; None where there are too many effects for a quadrature.
    shift : array (*b, q) or None
        How far the estimate moves by more nodes, in standard errors; NaN where one of the two fits failed, or a parameter is at its
        edge.
    log_likelihood : array (*b, 2) or None
        Of the estimate, as approximated by the fit and by more nodes, in nats.
    decrement : array (*b) or None
        How far the estimate is from the maximum by more nodes, in standard errors, estimated from its score: √(gᵀ J⁻¹ g).
    bias, bias_error : arrays (q,) or None
        The bias of the estimate that the mean of the score over drawn data sets implies, in standard errors, and its Monte Carlo
        error; None without draws.
    statistic, p_value : float or None
        Hotelling's T² of the hypothesis that this mean is zero, and its p-value.
    num_draws, num_failed : int
        How many data sets were drawn, and of how many the score is not known, since a mode was not found. They are left out.
    nodes : tuple of int
        Of the fit and of the refit.
    names : tuple of str
        The parameters.
    """

    estimate: Any
    standard_errors: Any
    refit: Fit | None
    shift: Any
    log_likelihood: Any
    decrement: Any
    bias: Any
    bias_error: Any
    statistic: Any
    p_value: Any
    num_draws: int
    num_failed: int
    nodes: tuple[int, int]
    names: tuple[str, ...]

    @property
    def passed(self) -> Any:
        """Whether no estimate is known to be off by more than a tenth of a standard error; of many fits an array of truths.

        A shift counts as it is, and a bias by draws as far as it exceeds two of its errors. False where a shift is not known.
        """
        passed = np.ones(np.shape(self.estimate)[:-1], bool)
        if self.shift is not None:
            passed &= np.max(self._counted(np.abs(self.shift)), axis=-1, initial=0.0) <= NEGLIGIBLE
        if self.bias is not None:
            passed &= bool(np.max(self._counted(np.abs(self.bias) - 2 * self.bias_error), initial=0.0) <= NEGLIGIBLE)
        return passed if passed.ndim else bool(passed)

    def _counted(self, array: Any) -> Any:
        """Zero for a parameter at its edge, which has no error to compare with."""
        return np.where(self.standard_errors == 0, 0.0, array)

    def summary(self) -> Report:
        """The estimates by both approximations, the implied bias, and what follows from them; of many fits how many pass."""
        title = f"Check of the integral over latent effects, by {_approximation(self.nodes[0])}"
        if np.ndim(self.estimate) != 1:
            passed = np.asarray(self.passed)
            facts = [(f"Not moved by {NEGLIGIBLE:g} standard errors", f"{int(passed.sum())} of {len(passed)} fits")]
            return Report(f"{title}, of {len(passed)} fits", facts)
        columns, cells = ["parameter", "estimate", "std. error"], [self.names, self.estimate, self.standard_errors]
        facts = []
        if self.refit is not None:
            columns += [f"{self.nodes[1]} nodes", "shift in std. errors"]
            cells += [np.asarray(self.refit.layout.join(self.refit.values)), self.shift]
            at, by_nodes = self.log_likelihood
            facts += [
                ("Log-likelihood", f"{number(at)}; by {self.nodes[1]} nodes {number(by_nodes)} at the same estimate"),
                ("Score by more nodes", f"{number(self.decrement)} standard errors from zero"),
                ("Fit by more nodes", self.refit.status.label),
            ]
        if self.bias is not None:
            columns.append("bias in std. errors")
            cells.append([with_error(*pair) for pair in zip(self.bias, self.bias_error, strict=True)])
            text = f"p = {probability(self.p_value)}, T² = {number(self.statistic)}, {self.num_draws} data sets"
            facts.append(("Mean score of draws is zero", text))
        return Report(
            title, facts, [ReportTable(tuple(columns), list(zip(*cells, strict=True)))], self._interpretation()
        )

    def _interpretation(self) -> list[str]:
        approximation, sentences = _approximation(self.nodes[0]), []
        if self.shift is not None:
            shift = self._counted(np.abs(self.shift))
            if np.any(np.isnan(shift)):
                sentences.append(f"Nothing follows: the fit, or that by {self.nodes[1]} nodes, has not converged.")
            elif np.max(shift, initial=0.0) > NEGLIGIBLE:
                moved = listed([f"`{name}`" for name, far in zip(self.names, shift > NEGLIGIBLE, strict=True) if far])
                sentences.append(
                    f"{approximation} is not enough for these data: by {self.nodes[1]} nodes {moved} moves by more than "
                    f"{NEGLIGIBLE:g} standard errors, at most by {np.max(shift):.2g}. Fit with nodes={self.nodes[1]}, and "
                    "check that fit with more."
                )
            else:
                sentences.append(
                    f"{approximation} is enough for these data: by {self.nodes[1]} nodes no estimate moves by more than "
                    f"{np.max(shift, initial=0.0):.2g} standard errors."
                )
        if self.bias is not None:
            at_least = self._counted(np.abs(self.bias) - 2 * self.bias_error)
            largest = f"{np.max(self._counted(np.abs(self.bias)), initial=0.0):.2g}"
            error = f"{np.max(self._counted(self.bias_error), initial=0.0):.2g}"
            if np.any(np.isnan(at_least)):
                sentences.append("The bias is not known: the fit has no covariance, or too few scores were found.")
            elif np.max(at_least, initial=0.0) > NEGLIGIBLE:
                biased = listed(
                    [f"`{name}`" for name, far in zip(self.names, at_least > NEGLIGIBLE, strict=True) if far]
                )
                sentences.append(
                    f"The mean score of data drawn at the estimate is not zero: {approximation} biases {biased}, by up to "
                    f"{largest} standard errors. (Or the sampler is not that of the joint density.)"
                )
            elif self.p_value < 0.01:
                sentences.append(
                    f"The mean score of data drawn at the estimate is not zero, but implies a bias of {largest} ± {error} standard "
                    f"errors at most, which is not shown to exceed {NEGLIGIBLE:g}."
                )
            else:
                sentences.append(
                    f"The mean score of data drawn at the estimate shows no bias, to {error} standard errors."
                )
        if self.num_failed:
            sentences.append(
                f"{self.num_failed} of {self.num_draws} data sets are left out: a mode of their effects was not found."
            )
        return sentences


def _approximation(nodes: int) -> str:
    return "Laplace's approximation" if nodes == 1 else f"quadrature with {nodes} nodes"


class _ByDraws(NamedTuple):
    """By drawn data sets: the bias in standard errors, its Monte Carlo error, T², its p-value, how many are left out."""

    bias: Any = None
    bias_error: Any = None
    statistic: Any = None
    p_value: Any = None
    num_failed: int = 0


@entry_point
def check_laplace(
    fit: Fit,
    *,
    kind: CovarianceKind | None = None,
    nodes: int = 9,
    key: Array | None = None,
    num_draws: int = 1000,
) -> LaplaceCheck:
    """Check whether the approximation of the integral over latent effects is enough: by a fit with more nodes, and by draws.

    Parameters
    ----------
    fit : Fit
        Of a model made by `marginal` or `mixed`, as `fit` or `fit_batch` returned it. Many fits are checked without draws.
    kind : {"observed", "expected", "empirical", "sandwich"}, optional
        The covariance that shifts are compared with, as for `Fit.covariance`.
    nodes : int
        Nodes along each axis of the second fit, more than those of the first. For more than three effects there is no second
        fit, and a key must be given.
    key : jax.random.key, optional
        For the check by draws, which is left out without it. The model needs a sampler; one made by `mixed` has that of its
        family.
    num_draws : int
        Data sets drawn from the model at the estimate, each with the groups and covariates of the data. The Monte Carlo error of
        a bias is about 1/√num_draws standard errors.

    Returns
    -------
    LaplaceCheck
        `shift` and `bias` in standard errors, `p_value`, `passed`, and `refit`, the fit with more nodes.

    Raises
    ------
    TypeError, ValueError
        If the model has no latent effects, the fit has as many nodes already, or there is nothing to check with: no key and more
        than three effects.

    Warns
    -----
    FitWarning
        If the fit failed: nothing can then be concluded. With a standard deviation at zero the other parameters are compared
        given that.

    Notes
    -----
    Laplace's approximation is poor where a group holds little information about its effects and these vary much: binary data in
    small groups, above all. The two checks differ in what they show: a fit with more nodes how far the approximation moves this
    estimate, draws how far it moves estimates on average over data from the fitted model. Draws need no quadrature, so that they
    serve any number of effects; they also fail where the sampler is not that of the joint density. Only draws show a second mode
    of the joint density that lies apart: with any number of nodes a quadrature sees the surroundings of one mode.

    References
    ----------
    Thygesen, U. H., Albertsen, C. M., Berg, C. W., Kristensen, K. and Nielsen, A. (2017), Validation of ecological state space
    models using the Laplace approximation, Environ. Ecol. Stat. 24, 317-339, section 2.3. Joe, H. (2008), Accuracy of Laplace
    approximation for discrete response mixed models, Comput. Stat. Data Anal. 52, 5066-5074.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> from jax.scipy.stats import norm
    >>> def joint(params, b, y):  # of Poisson counts, without the term log y!
    ...     log_rate = params["mean"] + params["sd"] * b
    ...     return jnp.sum(y * log_rate - jnp.exp(log_rate)) + norm.logpdf(b)
    >>> model = fj.marginal(joint, 0.0, constraints={"sd": fj.positive})
    >>> pairs = jnp.array([[3, 4], [0, 1], [7, 9], [2, 1], [5, 2], [1, 0]])
    >>> check = fj.check_laplace(fj.fit(model, {"mean": 0.0, "sd": 1.0}, pairs))
    >>> print(f"{check.passed}, the standard deviation moves by {check.shift[1]:.2f} standard errors")
    True, the standard deviation moves by 0.02 standard errors
    """
    check_fit(fit)
    model, dataset = origin_of(fit)
    effects.check_marginal(model)
    assert isinstance(model, MarginalModel)
    nodes_of_fit, q = model.integral.nodes, len(model.integral.start)
    nodes = check_count(nodes, 2, "nodes")
    num_draws = check_count(num_draws, 2, "num_draws")
    which = fit._check(kind)
    has_quadrature = q <= MOST_DIMENSIONS
    if has_quadrature and nodes <= nodes_of_fit:
        raise ValueError(f"nodes={nodes}, but the fit has {nodes_of_fit} nodes already. Give more than these.")
    if key is not None:
        check_key(key)
        if fit.has_batch:
            raise ValueError(
                "draws are for one fit. Leave key out, or check one of the fits: check_laplace(fits[0], …)."
            )
        check_sampler(model, dataset.given)
        fit._check("observed")
        if num_draws <= fit.num_parameters + 1:
            raise ValueError(
                f"num_draws={num_draws}: {fit.num_parameters} parameters need at least {fit.num_parameters + 2}."
            )
    elif not has_quadrature:
        raise ValueError(
            f"the model has {q} effects, and a quadrature is for up to {MOST_DIMENSIONS}. Give key=jax.random.key(0) for the check "
            "by draws."
        )
    matrix, _ = effects.free_covariance(fit, which)
    jacobian = np.asarray(fit.layout.jacobian(fit.free))
    errors = np.asarray(root_diagonal(transform_covariance(jacobian, matrix)))
    estimate = np.asarray(fit.layout.join(fit.values)).astype(errors.dtype)
    refit, shift, log_likelihood, decrement = None, None, None, None
    if has_quadrature:
        finer = replace(model, log_density=replace(model.integral, nodes=nodes))
        at_estimate = fit_again(fit, finer, fit.params, max_steps=0, **({"retry": False} if fit.has_batch else {}))
        refit = fit_again(fit, finer, fit.params)
        moved = np.asarray(refit.layout.join(refit.values)) - estimate
        # At an edge both fits end there, and the others are compared.
        ended = np.asarray(refit.converged) | (np.asarray(refit.status_code) == Status.BOUNDARY)
        with np.errstate(all="ignore"):
            shift = np.where(ended[..., None] & (errors > 0), moved / errors, np.nan)
        log_likelihood = np.stack([np.asarray(fit.log_likelihood), np.asarray(at_estimate.log_likelihood)], axis=-1)
        decrement = np.asarray(at_estimate.decrement)
    by_draws = _ByDraws() if key is None else _check_by_draws(fit, model, dataset, key, num_draws, matrix, errors)
    return LaplaceCheck(
        estimate=estimate,
        standard_errors=errors,
        refit=refit,
        shift=shift,
        log_likelihood=log_likelihood,
        decrement=decrement,
        **by_draws._asdict(),
        num_draws=num_draws if key is not None else 0,
        nodes=(nodes_of_fit, nodes),
        names=fit.names,
    )


def _check_by_draws(
    fit: Fit,
    model: MarginalModel,
    dataset: Dataset,
    key: Array,
    num_draws: int,
    covariance: Float[np.ndarray, "p p"],
    errors: Float[np.ndarray, " q"],
) -> _ByDraws:
    """The scores of drawn data sets at the parameters that they were drawn at, and what their mean implies."""
    num_groups = len(jax.tree.leaves(dataset.data)[0])
    weights = None if dataset.weights is None else jnp.asarray(dataset.weights)

    def of_block(numbers: np.ndarray) -> Any:
        arrays = fit.values, fit.free, dataset.given, weights
        return _scores_of_draws(model, fit.layout, num_groups, *arrays, key, jnp.asarray(numbers))

    size = max(1, min(num_draws, GROUPS_AT_ONCE // num_groups))
    scores = precise(map_blocks(of_block, num_draws, size))
    valid = np.all(np.isfinite(scores), axis=1)
    scores = scores[valid]
    # Of an entry at its edge, which has no variance, the score implies nothing.
    inner = np.flatnonzero(np.diagonal(covariance) != 0)
    count, p = len(scores), len(inner)
    if count < p + 2:
        missing = np.full(len(errors), np.nan)
        return _ByDraws(missing, missing, np.nan, np.nan, int(np.sum(~valid)))
    mean, spread = np.mean(scores, axis=0), np.atleast_2d(np.cov(scores, rowvar=False))
    block = spread[np.ix_(inner, inner)]
    statistic = count * mean[inner] @ np.asarray(linalg.inverse(block)) @ mean[inner]
    from scipy.special import fdtrc  # takes as long to import as half of JAX

    p_value = float(fdtrc(p, count - p, (count - p) / (p * (count - 1)) * statistic))
    # The estimate solves the equation of scores: it moves by J⁻¹ of their mean, whichever errors it is compared with.
    inverse = np.zeros_like(spread)
    curvature = precise(np.asarray(fit.curvature))[np.ix_(inner, inner)]
    inverse[np.ix_(inner, inner)] = np.asarray(linalg.inverse(curvature))
    reach = precise(np.asarray(fit.layout.jacobian(fit.free))) @ inverse
    with np.errstate(all="ignore"):
        bias = reach @ mean / errors
        bias_error = np.sqrt(np.diagonal(reach @ spread @ reach.T) / count) / errors
    return _ByDraws(bias, bias_error, float(statistic), p_value, int(np.sum(~valid)))


@functools.partial(jit_with_model, static_argnums=(0, 1, 2), level=1)
def _scores_of_draws(
    model: Model,
    layout: Layout,
    num_groups: int,
    values: Values,
    free: Float[Array, " p"],
    given: PyTree,
    weights: Float[Array, " G"] | None,
    key: Array,
    numbers: Int[Array, " r"],
) -> Float[Array, "r p"]:
    """The total scores of drawn data sets with these numbers at the parameters that they were drawn at."""
    drawn = draw_data_sets(model, layout, values, given, num_groups, key, numbers)
    rows = len(numbers) * num_groups
    flat, repeated = (
        jax.tree.map(lambda leaf: jnp.reshape(leaf, (rows, *leaf.shape[2:])), drawn),
        jax.tree.map(lambda leaf: jnp.tile(jnp.asarray(leaf), (len(numbers),) + (1,) * (leaf.ndim - 1)), given),
    )
    scores = scores_at(likelihood(model, layout, values, Dataset(flat, repeated)), free)
    scores = scores.reshape((len(numbers), num_groups, -1))
    if weights is not None:
        w = weights[None, :, None].astype(scores.dtype)
        scores = jnp.where(w == 0, 0.0, w * scores)
    return jnp.sum(scores, axis=1)
