"""Fisher information from draws, with control variates from the Bartlett identities, its error, and tests of regularity.

Each draw gives a score s and, where wanted, a Hessian H. The controls [s, vech(s sᵀ + H)] have mean zero in a regular model.
What is averaged is the target vech(−H) less what the controls explain of it, with coefficients regressed on other draws.
Draws come in pairs: half the difference of a pair has the variance of its mean, whatever row of covariates they belong to.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from fisher_jax.blocks import CHUNK_ENTRIES
from fisher_jax.expectation import SCRAMBLINGS, MonteCarlo, QuasiMonteCarlo
from fisher_jax.information.draws import drawing, num_pairs, num_rows, terms_per_draw, unit_terms
from fisher_jax.information.regularity import Regularity
from fisher_jax.information.tails import tail_exponent
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.moments.running import sum_of_products
from fisher_jax.numerics import linalg
from fisher_jax.numerics.differentiate import each_at, each_score_at

PIECES = 64  # independent pieces of error from independent draws
PILOT = 1024  # pairs that tell the scale of the controls
FOLDS = 4  # parts of the draws, each with coefficients from the others
GUARD_LEVEL = 1e-9  # at which a zero mean is given up, over all of those tested; a kink is at z of the order of √draws


class Moments(NamedTuple):
    """Sums over pairs of draws, of r controls and m targets."""

    means: Float[Array, "f r+m"]  # of the pairs' means, by fold
    pieces: Float[Array, "k r+m"]  # of half the pairs' differences, by piece
    squares: Float[Array, " r"]  # of half the differences, squared
    cubes: Float[Array, " r"]  # of the draws' controls, cubed
    sizes: Float[Array, " r"]  # of what the controls are the sum of, in absolute value
    basis: Float[Array, "r r"]  # in which the controls of `gram` are taken, empty where there is no regression
    gram: Float[Array, "f 1+r 1+r+m"]  # weighted products by fold, of half differences and for one row of means
    largest: Float[Array, "q t"]  # the largest absolute scores
    not_finite: Int[Array, ""]


class Sampled(NamedTuple):
    """A sampled matrix per observation, its pieces of error, and what the zero means looked like."""

    matrix: Float[Array, "q q"]
    errors: Float[Array, "k q q"]
    regularity: Regularity


def by_draws(
    model: Model, layout: Layout, values: Values, expectation: MonteCarlo | QuasiMonteCarlo, given: PyTree, caller: str
) -> Sampled:
    """The information of one observation, or of one term of a series, on average over the rows of `given`."""
    q = layout.num_free
    pairs = num_pairs(model, expectation, given, caller)
    if expectation.estimator == "bartlett":
        check_enough(pairs, q, caller)
    found = moments(model, layout, values, expectation, given, caller)
    regularity = judge(found, q, pairs, GUARD_LEVEL)
    if expectation.estimator == "bartlett":
        explained = combine(found, coefficients(found), pairs)
        instead = _instead(found, expectation.fallback, q, pairs)
        target, pieces = (jnp.where(regularity.zero_means, a, b) for a, b in zip(explained, instead, strict=True))
    else:
        target, pieces = combine(found, None, pairs)
    terms = terms_per_draw(model, layout, values, expectation, given, caller)
    return Sampled(square(target, q) / terms, square(pieces, q) / terms, regularity)


def moments(model: Model, layout: Layout, values: Values, expectation: Any, given: PyTree, caller: str) -> Moments:
    """Run over all pairs of draws, a chunk at a time."""
    theta = layout.unconstrain(values)
    draw = drawing(model, layout.constrain(theta, values), given, expectation, caller)
    terms = unit_terms(model, layout, values, given is not None, caller)
    rows_of_given, pairs = num_rows(model, given), num_pairs(model, expectation, given, caller)
    groups = PIECES if isinstance(expectation, MonteCarlo) else SCRAMBLINGS // 2
    q = theta.shape[0]
    width = q if expectation.estimator == "outer" else q + q * (q + 1) // 2
    chunk = _chunk_size(pairs, groups, 2 * (width + 2 * q * q))

    def each(number: Array) -> _Each:
        return _each(terms, theta, draw(number), expectation.estimator)

    basis = _pilot_basis(each, pairs) if expectation.estimator == "bartlett" else jnp.zeros((0, 0), theta.dtype)

    def of_chunk(k: Array) -> Moments:
        number = k * chunk + jnp.arange(chunk)
        drawn = each(jnp.minimum(number, pairs - 1))
        return _accumulate(drawn, number < pairs, basis, groups, 2 * pairs, one_row=rows_of_given == 1)

    def body(k: Array, total: Moments) -> Moments:
        new = of_chunk(k)
        largest = _largest(jnp.concatenate([total.largest, new.largest], axis=1), new.largest.shape[1])
        return jax.tree.map(jnp.add, total, new)._replace(largest=largest, basis=basis)

    shapes = jax.eval_shape(of_chunk, jnp.array(0))
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    count = -(-pairs // chunk)
    return of_chunk(jnp.array(0)) if count == 1 else jax.lax.fori_loop(0, count, body, zeros)


class _Each(NamedTuple):
    """Of each draw: controls, targets, the absolute size of what controls are sums of, and absolute scores."""

    controls: Float[Array, "c r"]
    targets: Float[Array, "c m"]
    sizes: Float[Array, "c r"]
    scores: Float[Array, "c q"]


def _each(terms: Any, theta: Float[Array, " q"], rows: PyTree, estimator: str) -> _Each:
    q = theta.shape[0]
    upper = np.triu_indices(q)
    if estimator == "outer":
        s = each_score_at(terms, theta, rows)
        return _Each(s, s[:, upper[0]] * s[:, upper[1]], jnp.abs(s), jnp.abs(s))
    s, hessian = each_at(terms, theta, rows)
    outer, bend = s[:, upper[0]] * s[:, upper[1]], hessian[:, upper[0], upper[1]]
    controls = jnp.concatenate([s, outer + bend], axis=1)
    sizes = jnp.concatenate([jnp.abs(s), jnp.abs(outer) + jnp.abs(bend)], axis=1)
    return _Each(controls, -bend, sizes, jnp.abs(s))


def _accumulate(
    each: _Each, valid: Bool[Array, " c"], basis: Float[Array, "b b"], groups: int, num_draws: int, *, one_row: bool
) -> Moments:
    r = each.controls.shape[1]
    both = jnp.concatenate([each.controls, each.targets], axis=1).reshape(2, valid.shape[0], -1)
    finite = jnp.all(jnp.isfinite(both), axis=2)
    both = jnp.where(valid[None, :, None], both, 0.0)
    half, mean = 0.5 * (both[0] - both[1]), 0.5 * (both[0] + both[1])
    gram = jnp.zeros((FOLDS, 1, 1 + half.shape[1]), half.dtype)
    if basis.shape[0]:
        gram = _products(half, jnp.zeros_like(valid), basis)
        gram = gram + (_products(mean, valid, basis) if one_row else 0.0)
    masked = jnp.where(jnp.tile(valid, 2)[:, None], each.scores, 0.0)
    kept = _num_largest(num_draws)
    return Moments(
        means=jnp.sum(mean.reshape(-1, FOLDS, mean.shape[1]), axis=0),
        pieces=jnp.sum(half.reshape(-1, groups, half.shape[1]), axis=0),
        squares=jnp.sum(half[:, :r] ** 2, axis=0),
        cubes=jnp.sum(both[:, :, :r] ** 3, axis=(0, 1)),
        sizes=jnp.sum(jnp.where(jnp.tile(valid, 2)[:, None], each.sizes, 0.0), axis=0),
        basis=basis,
        gram=gram,
        largest=_largest(_padded(masked.T, kept), kept),
        not_finite=jnp.sum(valid[None, :] & ~finite),
    )


def _pilot_basis(each: Callable[[Int[Array, " c"]], _Each], pairs: int) -> Float[Array, "r r"]:
    """A basis in which the controls are about uncorrelated and of unit variance, from some pairs spread over all rows.

    Controls can be so nearly dependent (Student's t with many degrees of freedom) that the squares of what tells them apart
    drown in rounding. In this basis they do not. A control that is nothing but rounding, as s² + H of a parameter that is
    linear in the density, is left out. Any basis is right.
    """
    count = min(pairs, PILOT)
    pilot = each(jnp.asarray(np.arange(count) * pairs // count))
    half = 0.5 * (pilot.controls[:count] - pilot.controls[count:])
    rounding = 1e3 * jnp.finfo(half.dtype).eps * jnp.mean(pilot.sizes, axis=0)
    gram = sum_of_products(half, half) / count
    diagonal = jnp.diagonal(gram)
    alive = diagonal > rounding**2
    both = alive[:, None] & alive[None, :]
    raised = jnp.diag(jnp.where(alive, jnp.finfo(gram.dtype).eps ** 0.5 * diagonal, 1.0))
    factor = linalg.factorise(jnp.where(both, gram, 0.0) + raised)
    identity = jnp.eye(gram.shape[0], dtype=gram.dtype)
    return jnp.where(both, jnp.where(factor.definite, linalg.solve_lower(factor, identity), identity), 0.0)


def _little(gram: Float[Array, "r x"]) -> float:
    """What may be added to a unit diagonal to make it definite."""
    return 1e3 * gram.shape[0] * float(jnp.finfo(gram.dtype).eps)


def _products(
    rows: Float[Array, "c x"], constant: Bool[Array, " c"], basis: Float[Array, "r r"]
) -> Float[Array, "f 1+r 1+x"]:
    """Sums by fold of products of a constant and the controls, in the basis, with all that there is in a row.

    A row counts by one more than its leverage, in units of the mean leverage. Least squares proper would leave what it cannot
    explain to the few draws far out: with extreme values of shape 0.23 the residuals' kurtosis is three million, so that the
    errors of any lesser number of draws say too little. Weighted, they are right, and the estimate is the less noisy.
    """
    r = basis.shape[0]
    controls = jnp.matmul(rows[:, :r], basis.T, precision="highest")
    weights = 1.0 + jnp.mean(controls**2, axis=1, keepdims=True)
    rows = jnp.concatenate([constant.astype(rows.dtype)[:, None], controls, rows[:, r:]], axis=1)
    left, right = (part.reshape(-1, FOLDS, part.shape[1]) for part in (weights * rows[:, : 1 + r], rows))
    return jnp.einsum("afr,afx->frx", left, right, precision="highest")


def combine(found: Moments, coefficients: Float[Array, "f r m"] | None, pairs: int) -> tuple[Array, Array]:
    """Mean of targets − controls · coefficients, each fold with its own, and the pieces of its error."""
    r = found.squares.shape[0]
    means, pieces = found.means[:, r:], found.pieces[:, r:]
    if coefficients is not None:
        folds = np.arange(pieces.shape[0]) % FOLDS
        means = means - jnp.einsum("fr,frm->fm", found.means[:, :r], coefficients, precision="highest")
        pieces = pieces - jnp.einsum("kr,krm->km", found.pieces[:, :r], coefficients[folds], precision="highest")
        pieces = jnp.concatenate([pieces, _of_coefficients(found.means[:, :r], coefficients)])
    return jnp.sum(means, axis=0) / pairs, pieces / pairs


def _of_coefficients(controls: Float[Array, "f r"], coefficients: Float[Array, "f r m"]) -> Float[Array, "f m"]:
    """Pieces of error from the coefficients' own noise, by the jackknife over folds.

    The pieces of the draws hold it once. But draws that move the coefficients of the other folds are drawn with residuals of
    their own, and the two errors may go together, which can double what the noise contributes.
    """
    moved = coefficients - jnp.mean(coefficients, axis=0, keepdims=True)
    total = jnp.sum(controls, axis=0)
    return ((FOLDS - 1) / FOLDS) ** 0.5 * jnp.einsum("r,frm->fm", total, moved, precision="highest")


def coefficients(found: Moments) -> Float[Array, "f r m"]:
    """Regression of targets on controls for each fold, on the pairs of the others.

    Between rows of covariates the targets differ in mean, which is no noise, so that only differences within a row count;
    where there is one row, the pairs' means tell as much again, and there is a constant. Any coefficients leave the estimate
    unbiased, so a little is added to the diagonal where controls are dependent, and its effect taken out again by iterating
    (Tikhonov).
    """
    basis, r = found.basis, found.basis.shape[0]
    rest = jnp.sum(found.gram, axis=0, keepdims=True) - found.gram
    size = jnp.maximum(rest[:, 0, 0], 1.0)  # of the constant, zero where there is none
    rest = rest[:, 1:, 1:] - rest[:, 1:, :1] * rest[:, :1, 1:] / size[:, None, None]

    def solve(gram: Array) -> Array:
        # No closer to unit diagonal than by its largest entry: what the basis left small is rounding.
        gram = gram / jnp.max(jnp.diagonal(gram))
        products, right = gram[:, :r], gram[:, r:]
        factor = linalg.factorise(products + _little(products) * jnp.eye(r, dtype=gram.dtype))

        def refine(_: Any, solution: Array) -> Array:
            left_over = right - jnp.matmul(products, solution, precision="highest")
            return solution + linalg.solve(factor, left_over)

        solution = jax.lax.fori_loop(0, 4, refine, jnp.zeros_like(right))
        return jnp.matmul(basis.T, solution, precision="highest")

    return jax.vmap(solve)(rest)


def _instead(found: Moments, fallback: str | None, q: int, pairs: int) -> tuple[Array, Array]:
    """What stands where the zero means fail: the plain estimator that was asked for, or NaN."""
    m = q * (q + 1) // 2
    plain = {
        "outer": np.concatenate([np.zeros((q, m)), -np.eye(m)]),
        "hessian": np.zeros((q + m, m)),
        None: np.full((q + m, m), np.nan),
    }[fallback]
    return combine(found, jnp.asarray(np.broadcast_to(plain, (FOLDS, q + m, m)), found.means.dtype), pairs)


def judge(found: Moments, q: int, pairs: int, level: float) -> Regularity:
    """z-values of the zero means, for scrambled points as if they were draws, and the tails of the scores."""
    r = found.squares.shape[0]
    mean, error = control_means(found, pairs)
    z = jnp.where(mean == 0, 0.0, mean / jnp.where(error > 0, error, 1.0))
    upper = np.triu_indices(q)
    equality = jnp.full((q, q), jnp.nan, z.dtype)
    if r > q:
        equality = equality.at[upper].set(z[q:]).at[upper[1], upper[0]].set(z[q:])
    return Regularity(
        score_z=z[:q],
        equality_z=equality,
        tail=tail_exponent(found.largest),
        mass=jnp.ones((), z.dtype),
        num_not_finite=found.not_finite.astype(jnp.int32),
        limit=critical_value(level, r, pairs),
    )


def control_means(
    found: Moments, pairs: int, *, pieces_only: bool = False
) -> tuple[Float[Array, " r"], Float[Array, " r"]]:
    """Mean of each control and its standard error, which rounding keeps from zero."""
    r = found.squares.shape[0]
    mean = jnp.sum(found.means[:, :r], axis=0) / pairs
    squares = jnp.sum(found.pieces[:, :r] ** 2, axis=0) if pieces_only else found.squares
    return mean, jnp.sqrt(squares / float(pairs) ** 2 + rounding(found, pairs) ** 2)


def control_skewness(found: Moments, pairs: int) -> Float[Array, " r"]:
    """Skewness of the mean of each control, were its expectation zero; zero where cubes overflow."""
    r = found.squares.shape[0]
    squares = 4.0 * found.squares + 2.0 * jnp.sum(found.means[:, :r], axis=0) ** 2 / pairs
    some = (squares > 0) & jnp.isfinite(found.cubes)
    size = jnp.where(some, squares, 1.0)
    return jnp.where(some, found.cubes, 0.0) / size / jnp.sqrt(size)


def rounding(found: Moments, pairs: int) -> Float[Array, " r"]:
    """How far from zero rounding may keep the mean of each control."""
    return 1e3 * float(jnp.finfo(found.sizes.dtype).eps) * found.sizes / (2 * pairs)


def critical_value(level: float, count: int, freedom: int) -> float:
    """|t| that the largest of `count` values exceeds with probability `level` at most (Bonferroni)."""
    from scipy.special import stdtrit

    return float(-stdtrit(freedom, level / (2 * max(count, 1))))


def check_enough(pairs: int, q: int, caller: str) -> None:
    """Refuse a regression on too few draws."""
    needed = 6 * (1 + q + q * (q + 1) // 2)
    if 2 * pairs < needed:
        raise ValueError(
            f'{caller}: estimator="bartlett" needs at least {needed} draws for {q} parameters, got {2 * pairs}. Give more, or '
            'use estimator="outer".'
        )


def _chunk_size(pairs: int, groups: int, width: int) -> int:
    """Pairs taken at once: a multiple of the pieces of error, no more than there are."""
    blocks, most = -(-pairs // groups), max(1, CHUNK_ENTRIES // (groups * width))
    return groups * -(-blocks // -(-blocks // most))


def _num_largest(num_draws: int) -> int:
    """How many of the largest scores are looked at: two in a hundred; none where that is too few to tell."""
    return 0 if num_draws < 2000 else min(num_draws // 50, 256) + 1


def _largest(values: Float[Array, "q c"], count: int) -> Float[Array, "q t"]:
    """The largest of each row, found in float32, for which XLA need not sort the whole row."""
    index = jax.lax.top_k(values.astype(jnp.float32), count)[1]
    return jnp.take_along_axis(values, index, axis=1)


def _padded(values: Float[Array, "q c"], least: int) -> Float[Array, "q d"]:
    return jnp.pad(values, ((0, 0), (0, max(0, least - values.shape[1]))))


def square(entries: Float[Array, "*b m"], q: int) -> Float[Array, "*b q q"]:
    """The symmetric matrix of its upper triangle."""
    index = np.zeros((q, q), int)
    index[np.triu_indices(q)] = np.arange(entries.shape[-1])
    return entries[..., np.maximum(index, index.T)]
