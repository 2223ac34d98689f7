"""Fisher information from draws, with control variates from the Bartlett identities, its error, and tests of regularity.

Each draw gives a score s and, where wanted, a Hessian H. The controls [s, vech(s sᵀ + H)] have mean zero in a regular model.
What is averaged is the target vech(−H) less what the controls explain of it, with coefficients regressed on other draws.
Draws come in pairs: half the difference of a pair has the variance of its mean, whatever row of covariates they belong to.

Controls are products, so that their tails are heavy even where the scores' are not: with extreme values of shape ξ < 0 the
score is as 1/w near the end of the support, w its distance, and a power k of it has a mean only for ξ > −1/k. There s sᵀ + H
has a mean for ξ > −½, but a variance only for ξ > −¼. What has not been drawn yet then shows in no standard error. But
all controls go with the same power of w, so that what remains of one after regression on others has a variance again. Both
the estimate and the tests of the zero means rest on that.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from fisher_jax.blocks import CHUNK_ENTRIES
from fisher_jax.information.draw_pairs import drawing, num_pairs, num_rows, terms_per_draw, unit_terms
from fisher_jax.information.expectations import SCRAMBLINGS, MonteCarlo, QuasiMonteCarlo
from fisher_jax.information.regularity import NEGLIGIBLE, Regularity, tail_exponent, z_values
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.moments import sum_of_products
from fisher_jax.numerics import linalg
from fisher_jax.numerics.differentiate import each_at, each_score_at

PIECES = 64  # independent pieces of error from independent draws
PILOT = 1024  # pairs from which the scale of the controls is estimated
FOLDS = 4  # parts of the draws, each with coefficients from the others
GUARD_LEVEL = 1e-9  # of the test that all means are zero; a kink has a z of the order of √draws, far beyond it

# Of 1 + leverage in the weights of a regression. Least squares proper leaves what it cannot explain to the few draws far
# out: with extreme values of shape 0.23 the residuals' kurtosis is three million, and the errors of any lesser number of
# draws show too little. With weights they lie in the bulk, where their spread can be seen. For a mixture of two normals one
# deviation apart, ±1.96 errors of 2000 draws cover 72 % at a power of 0, 77 % at 1, 88 % at 2 and 93 % at 3; but there the
# weights of 10 000 draws with heavy tails are beyond what their products can hold.
LEVERAGE_POWER = 2

# How many more times the variance from the coefficients' own noise is counted, where the error consists of nothing else;
# less in proportion to its fraction. To first order it is negligible. Where it is not, the coefficients hang on a few draws
# far out, which the folds share, so that their jackknife gives too little: for extreme values of shape −0.3 and 2000 draws
# the coverage is 74 % without this, 96 % with it; for the mixture above 88 and 95 %.
MORE_NOISE = 24.0

# Times the error of a mean, up to which that of the mean adjusted for the other controls counts as no worse. A kink that is
# masked by the noise of the adjustment still counts.
NO_WORSE = 2.0
ORDINARY = 2.0  # |z| up to which a mean is not adjusted: there is nothing to explain


class Sums(NamedTuple):
    """Sums over pairs of draws, of r controls and m targets."""

    means: Float[Array, "f r+m"]  # of the pairs' means, by fold
    pieces: Float[Array, "k r+m"]  # of half the pairs' differences, by piece
    squares: Float[Array, " r"]  # of half the differences, squared
    cubes: Float[Array, " r"]  # of the draws' controls, cubed
    sizes: Float[Array, " r"]  # of what the controls are the sum of, in absolute value
    basis: Float[Array, "r r"]  # in which the controls of `gram` are taken
    start: Float[Array, "r m"]  # coefficients already taken out of the targets, zero where there is no regression
    gram: Float[Array, "f 1+r 1+r+x"]  # weighted products by fold, of half differences and for one row of means
    largest: Float[Array, "q t"]  # the largest absolute scores
    not_finite: Int[Array, ""]


class Expected(NamedTuple):
    """A sampled matrix per observation, its pieces of error, and what the zero means looked like."""

    matrix: Float[Array, "q q"]
    errors: Float[Array, "k q q"]
    regularity: Regularity


def by_draws(
    model: Model, layout: Layout, values: Values, expectation: MonteCarlo | QuasiMonteCarlo, given: PyTree
) -> Expected:
    """The information of one observation, or of one term of a series, on average over the rows of `given`."""
    q, pairs = layout.num_free, num_pairs(model, expectation, given)
    regress = expectation.estimator == "bartlett"
    needed = 6 * (1 + q + q * (q + 1) // 2)  # several draws for each coefficient
    if regress and 2 * pairs < needed:
        raise ValueError(
            f'estimator="bartlett" needs at least {needed} draws for {q} parameters, got {2 * pairs}. Give more, or '
            'use estimator="outer".'
        )
    sums = sum_over_draws(model, layout, values, expectation, given)
    regularity = assess_regularity(sums, pairs)
    target, pieces = combine(sums, coefficients(sums), pairs)
    if regress:
        instead = combine(sums, fixed_coefficients(sums, expectation.fallback or "outer"), pairs)
        both = zip((target, pieces), instead, strict=True)
        target, pieces = (jnp.where(regularity.zero_means, a, b) for a, b in both)
    terms = terms_per_draw(model, layout, values, expectation, given)
    matrix, pieces = square(target, q) / terms, square(pieces, q) / terms
    if regress and expectation.fallback is None:
        missing = regularity.missing
        matrix, pieces = jnp.where(missing, jnp.nan, matrix), jnp.where(missing[None], jnp.nan, pieces)
    return Expected(matrix, pieces, regularity)


def sum_over_draws(model: Model, layout: Layout, values: Values, expectation: Any, given: PyTree) -> Sums:
    """Sums over all pairs of draws, a chunk at a time."""
    theta = layout.unconstrain(values)
    draw = drawing(model, layout.constrain(theta, values), given, expectation)
    terms = unit_terms(model, layout, values, given is not None)
    pairs = num_pairs(model, expectation, given)
    num_pieces = PIECES if isinstance(expectation, MonteCarlo) else SCRAMBLINGS // 2
    q = theta.shape[0]
    width = q if expectation.estimator == "outer" else q + q * (q + 1) // 2
    # Pairs taken at once: a multiple of the pieces, so that each piece gets as many of a chunk, and no more than there are.
    blocks, most = -(-pairs // num_pieces), max(1, CHUNK_ENTRIES // (num_pieces * 2 * (width + 2 * q * q)))
    chunk = num_pieces * -(-blocks // -(-blocks // most))
    # The largest scores, from which the tail is estimated: two in a hundred; none where that would be too few.
    num_largest = 0 if 2 * pairs < 2000 else min(2 * pairs // 50, 256) + 1

    def evaluate(number: Array) -> _Evaluated:
        return _evaluate(terms, theta, draw(number), expectation.estimator)

    basis, start = _choose_basis(evaluate, pairs, regress=expectation.estimator == "bartlett")

    def of_chunk(k: Array) -> Sums:
        number = k * chunk + jnp.arange(chunk)
        draws, one_row = evaluate(jnp.minimum(number, pairs - 1)), num_rows(model, given) == 1
        return _accumulate(draws, number < pairs, basis, start, num_pieces, num_largest, one_row=one_row)

    def body(k: Array, total: Sums) -> Sums:
        new = of_chunk(k)
        largest = _largest(jnp.concatenate([total.largest, new.largest], axis=1), num_largest)
        return jax.tree.map(jnp.add, total, new)._replace(largest=largest, basis=basis, start=new.start)

    if pairs <= chunk:
        return of_chunk(jnp.array(0))
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), jax.eval_shape(of_chunk, jnp.array(0)))
    return jax.lax.fori_loop(0, -(-pairs // chunk), body, zeros)


class _Evaluated(NamedTuple):
    """Of each draw: controls, targets, the absolute size of what controls are sums of, and absolute scores."""

    controls: Float[Array, "c r"]
    targets: Float[Array, "c m"]
    sizes: Float[Array, "c r"]
    scores: Float[Array, "c q"]


def _evaluate(terms: Any, theta: Float[Array, " q"], rows: PyTree, estimator: str) -> _Evaluated:
    upper = np.triu_indices(theta.shape[0])
    if estimator == "outer":
        s = each_score_at(terms, theta, rows)
        return _Evaluated(s, s[:, upper[0]] * s[:, upper[1]], jnp.abs(s), jnp.abs(s))
    s, hessian = each_at(terms, theta, rows)
    outer, bend = s[:, upper[0]] * s[:, upper[1]], hessian[:, upper[0], upper[1]]
    controls = jnp.concatenate([s, outer + bend], axis=1)
    sizes = jnp.concatenate([jnp.abs(s), jnp.abs(outer) + jnp.abs(bend)], axis=1)
    return _Evaluated(controls, -bend, sizes, jnp.abs(s))


def _accumulate(
    draws: _Evaluated,
    valid: Bool[Array, " c"],
    basis: Float[Array, "r r"],
    start: Float[Array, "r m"] | None,
    num_pieces: int,
    num_largest: int,
    *,
    one_row: bool,
) -> Sums:
    """The sums over one chunk; pairs that are not valid are left out."""
    r, targets = draws.controls.shape[1], draws.targets
    if start is not None:
        targets = targets - jnp.matmul(draws.controls, start, precision="highest")
    both = jnp.concatenate([draws.controls, targets], axis=1).reshape(2, valid.shape[0], -1)
    finite = jnp.all(jnp.isfinite(both), axis=2)
    both = jnp.where(valid[None, :, None], both, 0.0)
    half, mean = 0.5 * (both[0] - both[1]), 0.5 * (both[0] + both[1])
    num_regressed = r if start is None else half.shape[1]
    if one_row:  # draw by draw: in a half difference the noise of one member has the weight of the other
        first, second = (_weighted_products(0.5**0.5 * draw[:, :num_regressed], valid, basis) for draw in both)
        gram = first + second
    else:
        gram = _weighted_products(half[:, :num_regressed], jnp.zeros_like(valid), basis)
    of_both = jnp.tile(valid, 2)[:, None]
    scores = jnp.where(of_both, draws.scores, 0.0).T
    scores = jnp.pad(scores, ((0, 0), (0, max(0, num_largest - scores.shape[1]))))
    return Sums(
        means=jnp.sum(mean.reshape(-1, FOLDS, mean.shape[1]), axis=0),
        pieces=jnp.sum(half.reshape(-1, num_pieces, half.shape[1]), axis=0),
        squares=jnp.sum(half[:, :r] ** 2, axis=0),
        cubes=jnp.sum(both[:, :, :r] ** 3, axis=(0, 1)),
        sizes=jnp.sum(jnp.where(of_both, draws.sizes, 0.0), axis=0),
        basis=basis,
        start=jnp.zeros((r, targets.shape[1]), half.dtype) if start is None else start,
        gram=gram,
        largest=_largest(scores, num_largest),
        not_finite=jnp.sum(valid[None, :] & ~finite),
    )


def _choose_basis(
    evaluate: Callable[[Int[Array, " c"]], _Evaluated], pairs: int, *, regress: bool
) -> tuple[Float[Array, "r r"], Float[Array, "r m"] | None]:
    """A basis in which the controls are about uncorrelated and of unit variance, and first coefficients of the targets.

    From some pairs spread over all rows. A control is left out that is rounding only, as s² + H of a parameter that
    is linear in the density, or that those before it explain: scores come first, whose tails are lighter. So a rare value of
    y that the pilot has not seen moves no coefficient (a Poisson variable of rate 0.01, whose s² + H is a multiple of s up to
    y = 1). The first coefficients keep full exponential families exact to rounding under whatever weights follow. Any basis
    and any first coefficients are right: the regression on all draws makes up for them.
    """
    count = min(pairs, PILOT)
    pilot = evaluate(jnp.asarray(np.arange(count) * pairs // count))
    half = 0.5 * (pilot.controls[:count] - pilot.controls[count:])
    rounding = 1e3 * jnp.finfo(half.dtype).eps * jnp.mean(pilot.sizes, axis=0)
    basis = _orthonormal_combinations(sum_of_products(half, half) / count, rounding**2)
    if not regress:
        return basis, None
    controls = jnp.matmul(half, basis.T, precision="highest")
    targets = 0.5 * (pilot.targets[:count] - pilot.targets[count:])

    def refine(_: Any, solution: Array) -> Array:  # the basis is orthonormal but for its rounding
        left_over = targets - jnp.matmul(controls, solution, precision="highest")
        return solution + sum_of_products(controls, left_over) / count

    solution = jax.lax.fori_loop(0, 3, refine, jnp.zeros((basis.shape[0], targets.shape[1]), half.dtype))
    return basis, jnp.matmul(basis.T, solution, precision="highest")


def _orthonormal_combinations(gram: Float[Array, "r r"], least: Float[Array, " r"]) -> Float[Array, "r r"]:
    """Combinations, one a row, that are orthonormal in the inner product `gram`; zero where a row is dependent on those above.

    Gram and Schmidt's, each done twice, which is enough.
    """
    r = gram.shape[0]
    identity, pivot = jnp.eye(r, dtype=gram.dtype), linalg.singular_pivot(r, gram.dtype)

    def orthogonal(basis: Array, row: Array) -> Array:
        return row - linalg.product(basis.T, linalg.product(basis, linalg.product(gram, row)))

    def step(k: Array, basis: Array) -> Array:
        row = orthogonal(basis, orthogonal(basis, identity[k]))
        variance = linalg.product(row, linalg.product(gram, row))
        adds = (gram[k, k] > least[k]) & (variance > pivot * gram[k, k])
        return basis.at[k].set(jnp.where(adds, row / jnp.sqrt(jnp.where(adds, variance, 1.0)), 0.0))

    return jax.lax.fori_loop(0, r, step, jnp.zeros_like(gram))


def _weighted_products(
    rows: Float[Array, "c x"], constant: Bool[Array, " c"], basis: Float[Array, "r r"]
) -> Float[Array, "f 1+r 1+x"]:
    """Sums by fold of products of a constant and the controls, in the basis, with all that there is in a row.

    A row counts by a power of one more than its leverage, in units of the mean leverage, up to where the products of the
    heaviest with its own entries would drown the digits of the others.
    """
    r = basis.shape[0]
    controls = jnp.matmul(rows[:, :r], basis.T, precision="highest")
    leverage = jnp.minimum(jnp.mean(controls**2, axis=1, keepdims=True), float(jnp.finfo(rows.dtype).eps) ** -0.2)
    weights = (1.0 + leverage) ** LEVERAGE_POWER
    rows = jnp.concatenate([constant.astype(rows.dtype)[:, None], controls, rows[:, r:]], axis=1)
    left, right = (part.reshape(-1, FOLDS, part.shape[1]) for part in (weights * rows[:, : 1 + r], rows))
    return jnp.einsum("afr,afx->frx", left, right, precision="highest")


def combine(sums: Sums, coefficients: Float[Array, "f r m"] | None, pairs: int) -> tuple[Array, Array]:
    """Mean of targets − controls · coefficients, each fold with its own, and the pieces of its error."""
    r = sums.squares.shape[0]
    if coefficients is None:
        return jnp.sum(sums.means[:, r:], axis=0) / pairs, sums.pieces[:, r:] / pairs
    return _subtract_explained(sums, sums.means[:, r:], sums.pieces[:, r:], coefficients, pairs)


def _subtract_explained(
    sums: Sums,
    means: Float[Array, "f m"],
    pieces: Float[Array, "k m"],
    coefficients: Float[Array, "f r m"],
    pairs: int,
) -> tuple[Array, Array]:
    r = sums.squares.shape[0]
    folds = np.arange(pieces.shape[0]) % FOLDS
    means = means - jnp.einsum("fr,frm->fm", sums.means[:, :r], coefficients, precision="highest")
    pieces = pieces - jnp.einsum("kr,krm->km", sums.pieces[:, :r], coefficients[folds], precision="highest")
    # The pieces of the draws hold the coefficients' own noise once. But draws that move the coefficients of the other folds
    # are drawn with residuals of their own, and the two errors may go together: the jackknife over folds.
    moved = coefficients - jnp.mean(coefficients, axis=0, keepdims=True)
    total = jnp.sum(sums.means[:, :r], axis=0)
    noise = ((FOLDS - 1) / FOLDS) ** 0.5 * jnp.einsum("r,frm->fm", total, moved, precision="highest")
    of_draws, of_noise = (jnp.sum(part**2, axis=0) for part in (pieces, noise))
    variance = of_draws + of_noise
    fraction = of_noise / jnp.where(variance > 0, variance, 1.0)
    pieces = jnp.concatenate([pieces, noise * jnp.sqrt(1.0 + MORE_NOISE * fraction)[None]])
    return jnp.sum(means, axis=0) / pairs, pieces / pairs


def coefficients(sums: Sums) -> Float[Array, "f r m"] | None:
    """Regression of targets on controls for each fold, on the pairs of the others; `None` where the targets are not regressed.

    Any coefficients leave the estimate unbiased, so a little is added to the diagonal where controls are dependent, and its
    effect taken out again by iterating (Tikhonov).
    """
    products, right = _normal_equations(sums)
    if not right.shape[2]:
        return None
    solution = jax.vmap(_solve_damped)(products, right)
    return jnp.einsum("sr,fsm->frm", sums.basis, solution, precision="highest")


def _normal_equations(sums: Sums) -> tuple[Float[Array, "f r r"], Float[Array, "f r x"]]:
    """Weighted products of the controls, in the basis, with themselves and with the targets, on the pairs of the other folds.

    Between rows of covariates the targets differ in mean, which is no noise, so that only differences within a row count;
    where there is one row, the pairs' means carry as much information again, and there is a constant.
    """
    r = sums.basis.shape[0]
    rest = jnp.sum(sums.gram, axis=0, keepdims=True) - sums.gram
    size = jnp.maximum(rest[:, 0, 0], 1.0)  # of the constant, zero where there is none
    rest = rest[:, 1:, 1:] - rest[:, 1:, :1] * rest[:, :1, 1:] / size[:, None, None]
    return rest[:, :, :r], rest[:, :, r:]


def _solve_damped(products: Float[Array, "r r"], right: Float[Array, "r m"]) -> Float[Array, "r m"]:
    """`products`⁻¹ `right`, zero for controls that are left out."""
    r = products.shape[0]
    diagonal = jnp.diagonal(products)
    alive = diagonal > 0
    little = 1e3 * r * float(jnp.finfo(products.dtype).eps)
    factor = linalg.factorize(products + jnp.diag(jnp.where(alive, little * diagonal, 1.0)))

    def refine(_: Any, solution: Array) -> Array:
        left_over = right - jnp.matmul(products, solution, precision="highest")
        return solution + linalg.solve(factor, left_over)

    solution = jax.lax.fori_loop(0, 4, refine, jnp.zeros_like(right))
    return jnp.where(alive[:, None] & factor.definite, solution, 0.0)


def fixed_coefficients(sums: Sums, kind: str) -> Float[Array, "f r m"]:
    """Coefficients, where there was a regression, with which `combine` averages s sᵀ or −H."""
    r, m = sums.start.shape
    total = np.concatenate([np.zeros((r - m, m)), -np.eye(m)]) if kind == "outer" else np.zeros((r, m))
    return jnp.broadcast_to(jnp.asarray(total, sums.start.dtype) - sums.start, (FOLDS, r, m))


def assess_regularity(sums: Sums, pairs: int) -> Regularity:
    """z-values of the zero means, for scrambled points as if they were draws, and the tails of the scores."""
    from scipy.special import stdtrit

    r, q = sums.squares.shape[0], sums.largest.shape[0]
    mean, error = control_means(sums, pairs)
    z = adjust_large(z_values(mean, error), error, sums, pairs)
    equality, effect = jnp.full((2, q, q), jnp.nan, z.dtype)
    if r > q:
        # √(E[sᵢ²] E[sⱼ²]) by the draws, in units of which a deviation from the information equality is measured.
        controls = jnp.sum(sums.means[:, :r], axis=0)
        targets = jnp.sum(sums.means[:, r:], axis=0) + jnp.matmul(controls, sums.start, precision="highest")
        size = jnp.sqrt(jnp.diagonal(square(controls[q:] + targets, q)) / pairs)
        equality, effect = square(z[q:], q), square(mean[q:], q) / (size[:, None] * size[None, :])
    return Regularity(
        score_z=z[:q],
        equality_z=equality,
        effect=effect,
        tail=tail_exponent(sums.largest),
        mass=jnp.ones((), z.dtype),
        num_not_finite=sums.not_finite.astype(jnp.int32),
        # |t| that the largest of r values exceeds with this probability at most (Bonferroni).
        limit=float(-stdtrit(pairs, GUARD_LEVEL / (2 * r))),
        negligible=NEGLIGIBLE,
        num_largest=max(sums.largest.shape[1] - 1, 0),
    )


def adjust_large(z: Float[Array, " r"], error: Float[Array, " r"], sums: Sums, pairs: int) -> Float[Array, " r"]:
    """The z-value of each control's mean or, if that is large, of its mean adjusted for the others where this is closer to zero.

    If all means are zero, so is that of a control less what the others explain of it. It is free of the tail that they
    have in common, which may make the z-value of one alone large (beyond −6.5 for four data sets of ten, with extreme
    values of shape −0.3 and 2000 draws). A mean that is not zero shows in both, unless the adjustment costs precision.
    """
    r = sums.squares.shape[0]
    products, _ = _normal_equations(sums)
    inverse = jax.vmap(_solve_damped)(products, jnp.broadcast_to(jnp.eye(r, dtype=products.dtype), products.shape))
    inverse = jnp.einsum("ri,frs,sj->fij", sums.basis, inverse, sums.basis, precision="highest")
    diagonal = jnp.diagonal(inverse, axis1=1, axis2=2)[:, None, :]
    some = diagonal > 0
    others = jnp.where(some, -inverse / jnp.where(some, diagonal, 1.0), -jnp.eye(r, dtype=z.dtype))
    zeros = jnp.zeros_like(sums.means[:, :r]), jnp.zeros_like(sums.pieces[:, :r])
    mean, pieces = _subtract_explained(sums, *zeros, others, pairs)
    adjusted_error = jnp.sqrt(jnp.sum(pieces**2, axis=0) + rounding(sums, pairs) ** 2)
    adjusted = z_values(mean, adjusted_error)
    size = jnp.abs(z)
    better = (size > ORDINARY) & (jnp.abs(adjusted) < size) & (adjusted_error < NO_WORSE * error)
    return jnp.where(better, adjusted, z)


def control_means(
    sums: Sums, pairs: int, *, pieces_only: bool = False
) -> tuple[Float[Array, " r"], Float[Array, " r"]]:
    """Mean of each control and its standard error, which rounding keeps from zero."""
    r = sums.squares.shape[0]
    mean = jnp.sum(sums.means[:, :r], axis=0) / pairs
    squares = jnp.sum(sums.pieces[:, :r] ** 2, axis=0) if pieces_only else sums.squares
    return mean, jnp.sqrt(squares / float(pairs) ** 2 + rounding(sums, pairs) ** 2)


def control_skewness(sums: Sums, pairs: int) -> Float[Array, " r"]:
    """Skewness of the mean of each control, were its expectation zero; zero where cubes overflow."""
    r = sums.squares.shape[0]
    squares = 4.0 * sums.squares + 2.0 * jnp.sum(sums.means[:, :r], axis=0) ** 2 / pairs
    some = (squares > 0) & jnp.isfinite(sums.cubes)
    size = jnp.where(some, squares, 1.0)
    return jnp.where(some, sums.cubes, 0.0) / size / jnp.sqrt(size)


def rounding(sums: Sums, pairs: int) -> Float[Array, " r"]:
    """How far from zero rounding may keep the mean of each control."""
    return 1e3 * float(jnp.finfo(sums.sizes.dtype).eps) * sums.sizes / (2 * pairs)


def _largest(values: Float[Array, "q c"], count: int) -> Float[Array, "q t"]:
    """The largest of each row, sought in float32, for which XLA need not sort the whole row."""
    index = jax.lax.top_k(values.astype(jnp.float32), count)[1]
    return jnp.take_along_axis(values, index, axis=1)


def square(entries: Float[Array, "*b m"], q: int) -> Float[Array, "*b q q"]:
    """The symmetric matrix of its upper triangle."""
    index = np.zeros((q, q), int)
    index[np.triu_indices(q)] = np.arange(entries.shape[-1])
    return entries[..., np.maximum(index, index.T)]
