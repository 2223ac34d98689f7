"""Asymptotic theory of maximum likelihood, from the model alone: the information, the Cramér-Rao bound, the bias to order 1/n.

√n(θ̂ − θ) tends to N(0, I⁻¹), and E[θ̂] − θ = b/n + o(1/n) with, in coordinates u of the parameters,

    b = I⁻¹ E[½ ∇ tr(A H) + H A s],    A = I⁻¹ held fixed,    and for θ(u)    b_θ = (∂θ/∂u) b + ½ Σᵢⱼ (∂²θ/∂uᵢ∂uⱼ) Aᵢⱼ.

Both need E[s] = 0 and E[s sᵀ + H] = 0. Draws that give the expectation above test these identities too. Where the first fails
(the support depends on θ) there is no bound; where the second fails (a kink) the bound is that of E[s sᵀ], and no bias is
predicted.

Source: Cox, D. R. and Snell, E. J. (1968), J. R. Statist. Soc. B 30, 248-275, eq. (20); van der Vaart, A. W. (1998),
Asymptotic Statistics, theorem 5.39.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.blocks import in_chunks
from fisher_jax.information import Covariance, Information, fisher_information
from fisher_jax.information.closed_form import has_closed_form
from fisher_jax.information.cramer_rao import closed_form_in_free
from fisher_jax.information.draw_pairs import are_few, drawing, num_pairs, num_rows, unit_terms
from fisher_jax.information.expectations import Expectation, MonteCarlo
from fisher_jax.information.fisher_information import expected_information
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.programs import jit_with_model
from fisher_jax.moments import Estimate
from fisher_jax.numerics import linalg
from fisher_jax.numerics.array_namespace import on_host
from fisher_jax.simulation.experiment import Experiment

DRAWS = 20_000  # give the third digit
MIN_DRAWS = 4000  # in all, whatever the number of rows
SERIES_TERMS = 2_000_000  # terms of all series that are drawn, beyond which long series get fewer draws
MAX_CONTROLLED = 20  # parameters; the control variates of "bartlett" number p²/2 and take twelve times as many draws
TEST_LEVEL = 1e-7  # of the tests of zero means, all together: at a kink z grows as √draws, far beyond any such limit
ROWS_AT_ONCE = 2**13  # draws times p

NO_BOUND = (
    "there is no Cramér-Rao bound: the mean of the score is not zero, so that the support depends on a parameter, or the "
    "sampler does not draw from the density."
)


@dataclass(frozen=True)
class Prediction:
    """What asymptotic theory predicts at an experiment's parameters.

    Attributes
    ----------
    information : Information
        Per observation; about the unconstrained coordinates where constraints tie entries together. NaN where there is none.
    bound : Covariance
        (q, q), for one observation: the asymptotic covariance of √n(θ̂ − θ). NaN where there is none.
    bias : Estimate
        E[θ̂] − θ to order 1/n, (q,), with its Monte Carlo error. NaN where the expansion does not hold.
    no_bias : str
        Why it does not hold; empty where it does.
    notes : tuple of str
        Which conditions of the theory fail.
    """

    information: Information
    bound: Covariance
    bias: Estimate
    no_bias: str
    notes: tuple[str, ...]


def predict(experiment: Experiment, expectation: Expectation | None, key: Array) -> Prediction:
    """The information by closed form, by the expectation given, or by draws; draws test the conditions in any case."""
    from scipy.special import ndtri

    layout = coordinates(experiment.layout)
    information, notes = information_of(experiment, layout, expectation, jax.random.fold_in(key, 0))
    names, p = information.names, layout.num_free
    bias, z = _expand(experiment, layout, information.matrix, _choose_draws(experiment, jax.random.fold_in(key, 1), 2))

    # Bonferroni's limit for all means that are tested.
    limit = float(-ndtri(TEST_LEVEL / (2 * max(len(z), 1))))
    mean_is_zero = not np.any(np.abs(z[:p]) > limit)
    regularity = information.regularity
    contradicted = regularity is not None and bool(np.any(on_host(regularity).off_center))
    no_bias = ""
    if not np.all(np.isfinite(linalg.inverse(np.asarray(information.matrix)))):
        no_bias = "the information cannot be inverted"
    elif np.any(np.abs(z) > limit):
        no_bias = "the model is not regular here, and the expansion does not hold"

    order = np.argsort(-np.abs(z[p:]))
    pairs = list(zip(*np.triu_indices(p), strict=True))
    unequal = [pairs[k] for k in order if abs(z[p + k]) > limit]
    if unequal and mean_is_zero:
        entries = ", ".join(names[i] if i == j else f"{names[i]} with {names[j]}" for i, j in unequal[:4])
        notes = (
            f"the mean of s sᵀ + H is not zero for {entries}: the density has a kink, or scores with very heavy tails. The "
            "bound is that of the scores' outer product s sᵀ; the curvature −H would give another, wrong one.",
        )
    if not mean_is_zero or contradicted:
        missing = jnp.full_like(information.matrix, jnp.nan)
        information, notes = replace(information, matrix=missing, errors=None, route="none"), (NO_BOUND,)
    elif note := describe_singular(information):
        notes = (note, *notes)

    # In numpy, so that nothing is compiled. The derivative of an inverse A⁻¹ along dA is −A⁻¹ dA A⁻¹.
    inverse = linalg.inverse(np.asarray(information.matrix))
    tangent = np.asarray(layout.jacobian(layout.unconstrain([np.asarray(value) for value in experiment.values])))
    errors = information.errors
    if errors is not None:
        errors = jnp.asarray(-tangent @ inverse @ np.asarray(errors) @ inverse @ tangent.T)
    bound = Covariance(
        jnp.asarray(tangent @ inverse @ tangent.T),
        experiment.layout.names,
        f"inverse of: {information.route}",
        errors,
        information.num_samples,
    )
    if no_bias:
        bias = Estimate(*np.full((2, len(bias.value)), np.nan))
    return Prediction(information, bound, bias, no_bias, notes)


def coordinates(layout: Layout) -> Layout:
    """θ itself, or the unconstrained coordinates where constraints tie its entries together."""
    return layout.natural() if len(layout.names) == layout.num_free else layout


def information_of(
    experiment: Experiment, layout: Layout, expectation: Expectation | None, key: Array
) -> tuple[Information, tuple[str, ...]]:
    """The information about `layout`, and what its draws or nodes show against it."""
    model, values, covariates = experiment.model, experiment.values, experiment.covariates
    tied = len(experiment.layout.names) != experiment.layout.num_free
    if expectation is None and has_closed_form(model):
        if tied:
            return closed_form_in_free(model, experiment.params, experiment.layout, values, covariates), ()
        return fisher_information(model, experiment.params, given=covariates), ()
    if expectation is None:
        expectation = _choose_draws(experiment, key, layout.num_free)
    names = experiment.layout.free_names if tied else experiment.layout.names
    # Without a warning: what is wrong goes into the notes of the result.
    information = expected_information(model, layout, names, values, expectation, covariates, warns=False)
    diagnosis = information.diagnosis()
    return information, (f"of the information: {diagnosis.rstrip('.?')}.",) if diagnosis else ()


def describe_singular(information: Information) -> str:
    """Why the information has no inverse; empty where it has one."""
    matrix = np.asarray(information.matrix)
    if not np.all(np.isfinite(matrix)):
        return "the information is not finite, so that there is no Cramér-Rao bound of the usual kind."
    if np.all(np.isfinite(linalg.inverse(matrix))):
        return ""
    _, direction = linalg.weak_directions(matrix, information.names)[0]
    return (
        f"the information is singular along {direction}: no estimate of it has the usual rate, and there is no bound."
    )


def _choose_draws(experiment: Experiment, key: Array, num_parameters: int) -> MonteCarlo:
    """Enough draws for the third digit, over all rows of `given`, or fewer of long series."""
    rows = num_rows(experiment.model, experiment.covariates)
    draws = DRAWS if not experiment.model.is_dependent else SERIES_TERMS // experiment.num_observations
    least = max(MIN_DRAWS, 12 * (1 + num_parameters + num_parameters * (num_parameters + 1) // 2))
    per_row = -(-min(max(draws, least), DRAWS) // rows)
    per_row += per_row % 2  # they come in pairs
    if num_parameters > MAX_CONTROLLED:
        return MonteCarlo(key, per_row, "outer")
    return MonteCarlo(key, per_row, fallback="outer")


def _expand(
    experiment: Experiment, layout: Layout, information: Array, draws: MonteCarlo
) -> tuple[Estimate, Float[np.ndarray, " m"]]:
    """The bias to order 1/n with its error, and z-values of E[s] = 0 and E[s sᵀ + H] = 0 (upper triangle)."""
    model, p = experiment.model, layout.num_free
    # A draw of a dependent model is a whole series; its scores and Hessians are totals, and so must be the information.
    terms = experiment.num_observations if model.is_dependent else 1
    n = experiment.num_observations // terms
    inverse = np.asarray(linalg.inverse(np.asarray(information)), float) / terms
    root = np.linalg.cholesky(inverse) if np.all(np.isfinite(inverse)) else np.eye(p)
    sum_over = _sum_over_few_draws if are_few(model, layout, draws, experiment.covariates) else _sum_over_many_draws
    sums = sum_over(model, layout, experiment.values, experiment.covariates, jnp.asarray(root, layout.dtype), draws)
    total, squares, products, slope, curvature = (np.asarray(part, float) for part in sums)
    count = 2 * num_pairs(model, draws, experiment.covariates)
    mean = total / count

    error = np.sqrt(np.maximum(squares / count - mean**2, 0.0) / count)
    size = np.sqrt(squares[:p] / count)
    # Means that are zero to rounding, as of a score that does not vary, are not tested against a spread of zero.
    rounding = 100 * np.finfo(layout.dtype).eps * np.concatenate([size, np.outer(size, size)[np.triu_indices(p)]])
    z = mean[:-p] / np.hypot(error[:-p], np.maximum(rounding, np.finfo(float).tiny))

    shift = mean[-p:]
    bias = (slope @ inverse @ shift + 0.5 * np.einsum("qij,ij->q", curvature, inverse)) / n
    covariance = (products / count - np.outer(shift, shift)) / count
    gradient = slope @ inverse / n
    variance = np.einsum("qi,ij,qj->q", gradient, covariance, gradient)
    return Estimate(bias, np.sqrt(np.maximum(variance, 0.0))), z


def _sum_over_draws(
    model: Model, layout: Layout, values: Values, given: PyTree, root: Float[Array, "p p"], draws: MonteCarlo
) -> tuple[Array, Array, Array, Array, Array]:
    """Sums over draws of s, s sᵀ + H and c = ½ ∇ tr(A H) + H A s, their squares, c cᵀ; and ∂θ/∂u, ∂²θ/∂u².

    A = `root` `root`ᵀ. Derivatives are taken in forward mode, along the columns of the root, so that whatever can be fitted
    can be expanded; p² passes of the third order for each draw.
    """
    free, p = layout.unconstrain(values), layout.num_free
    draw = drawing(model, layout.constrain(free, values), given, draws)
    terms = unit_terms(model, layout, values, given is not None)
    upper = np.triu_indices(p)

    def expand(row: PyTree) -> Array:
        def value(u: Array) -> Array:
            return jnp.sum(terms(u, jax.tree.map(lambda leaf: leaf[None], row)))

        def second(u: Array, direction: Array) -> Array:
            def first(u: Array) -> Array:
                return jax.jvp(value, (u,), (direction,))[1]

            return jax.jvp(first, (u,), (direction,))[1]

        def trace(u: Array) -> Array:  # tr(A H) = Σ rᵀ H r over the columns r of the root
            return jnp.sum(jax.vmap(second, (None, 1))(u, root))

        score, hessian = jax.jacfwd(value)(free), jax.jacfwd(jax.jacfwd(value))(free)
        equality = score[:, None] * score[None, :] + hessian
        correction = 0.5 * jax.jacfwd(trace)(free) + hessian @ (root @ (root.T @ score))
        return jnp.concatenate([score, equality[upper], correction])

    def sum_chunk(numbers: Array, weights: Array | None) -> tuple[Array, tuple[Array, Array, Array]]:
        rows = jax.vmap(expand)(draw(numbers))
        if weights is not None:
            rows = jnp.where(jnp.tile(weights > 0, 2)[:, None], rows, 0.0)
        last = rows[:, -p:]
        products = jnp.matmul(last.T, last, precision="highest")
        return jnp.zeros((len(numbers), 0)), (jnp.sum(rows, axis=0), jnp.sum(rows**2, axis=0), products)

    numbers = jnp.arange(num_pairs(model, draws, given))
    sums = in_chunks(numbers, None, max(1, ROWS_AT_ONCE // max(p, 1)), sum_chunk, layout.dtype)[1]

    def theta(u: Array) -> Array:
        return layout.join(layout.constrained_values(u, values))

    return *sums, jax.jacfwd(theta)(free), jax.jacfwd(jax.jacfwd(theta))(free)


# What takes longer to compile than to compute is compiled with less optimisation.
_sum_over_few_draws = jit_with_model(_sum_over_draws, static_argnums=(0, 1), level=0)
_sum_over_many_draws = jit_with_model(_sum_over_draws, static_argnums=(0, 1), level=1)
