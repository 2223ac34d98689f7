"""Both sides of the profiles of many functions of the parameters at once, from the model and its data."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from fisher_jax.blocks import CHUNK_ENTRIES, map_blocks
from fisher_jax.fitting.maximization import evaluation_on_host
from fisher_jax.fitting.passes import Passes
from fisher_jax.models.constraints import Interval, Unconstrained
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.likelihood import likelihood, terms_at
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.programs import jit_with_model
from fisher_jax.numerics import linalg
from fisher_jax.numerics.array_namespace import AnyArray, namespace, on_host
from fisher_jax.optimizers.newton import Evaluation
from fisher_jax.profile.path import End, Path, Walk, advance, begin, finish, follow, is_running
from fisher_jax.profile.restricted import Bends, bends_of, look, point_at

SPAN = 3.0  # on a logarithmic or logistic scale
FEW_PROFILES = 32  # of a batch, up to which they are followed one by one in numpy: each takes hundredths of a second
ENTRIES_AT_ONCE = 2**24  # of the scores of all lanes together
_FEW_ENTRIES = 2**15  # observations times parameters up to which a profile takes milliseconds, however it is compiled
_BATCH_ENTRIES = 2**18  # observations times lanes in a block of many fits

# Of params, the numbers in one row; hashable, since it is compiled once for each.
Function = Callable[[PyTree], Float[Array, " k"]]
Maximum = tuple[Values, Any, Any]  # values, u and curvature of a fit, or of each of many


class Sides(NamedTuple):
    """Profiles of m functions, below and above the estimate.

    `values` and `ends` are in the unit of the function; `codes` are those of `End`; `reached` is the last point of a side, and
    `fallen` by how much the profile had fallen there. `drops` and `frees` are those of `Path`.
    """

    estimates: Float[Any, " m"]
    errors: Float[Any, " m"]
    ends: Float[Any, "m 2"]
    codes: Int[Any, "m 2"]
    reached: Float[Any, "m 2"]
    fallen: Float[Any, "m 2"]
    singular: Any
    values: Float[Any, "m 2 k"]
    drops: Float[Any, "m 2 k"]
    frees: Float[Any, "m 2 k p"]


def cut_of(level: Any) -> float:
    """By how many nats the profile may fall: half the quantile of χ² with one degree of freedom."""
    from scipy.special import ndtri

    return 0.5 * float(ndtri(0.5 * (1.0 + float(level)))) ** 2


def profile_sides(
    model: Model,
    dataset: Dataset,
    layout: Layout,
    maximum: Maximum,
    function: Function | None,
    columns: Int[np.ndarray, " m"],
    level: Any,
) -> Sides:
    """The profiles, from the estimate, of the numbers in `columns` of a function of params, or of θ where it is None."""
    one = evaluation_on_host(model, layout, maximum[0], dataset)
    if one is not None:
        return _follow_on_host(_one_by_one(one), model, layout, maximum, function, columns, level)
    rows = jax.tree.leaves(dataset.data)[0].shape[0]
    at_once = max(1, ENTRIES_AT_ONCE // (2 * min(rows * layout.num_free, CHUNK_ENTRIES)))
    profiles = _profiles_of_few if rows * layout.num_free <= _FEW_ENTRIES else _profiles
    parts = []
    for k in range(0, len(columns), at_once):
        some = columns[k : k + at_once]
        parts.append(jax.device_get(profiles(model, layout, function, dataset, maximum, some, cut_of(level))))
    sides = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    return sides._replace(ends=_ends_of(sides, layout, function, columns))


def profile_sides_of_each(
    model: Model,
    datasets: Dataset,
    layout: Layout,
    maxima: Maximum,
    function: Function | None,
    columns: Int[np.ndarray, " m"],
    level: Any,
) -> Sides:
    """The same of each of many fits and its own data, with a leading axis in every array; all of them in memory at once."""
    host, count = on_host(maxima), datasets.size or 0
    if count * len(columns) <= FEW_PROFILES:
        alone = [(datasets.one(k), jax.tree.map(lambda leaf, k=k: leaf[k], host)) for k in range(count)]
        evaluations = [evaluation_on_host(model, layout, maximum[0], dataset) for dataset, maximum in alone]
        if all(evaluations):
            each = [
                _follow_on_host(_one_by_one(evaluation), model, layout, maximum, function, columns, level)  # type: ignore[arg-type]
                for evaluation, (_, maximum) in zip(evaluations, alone, strict=True)
            ]
            return jax.tree.map(lambda *leaves: np.stack(leaves), *each)

    def of_block(rows: np.ndarray) -> Any:
        maxima = jax.tree.map(lambda leaf: leaf[rows], host)
        return _sides_of_each(model, layout, function, datasets.take(rows), maxima, columns, cut_of(level))

    sides = map_blocks(of_block, count, _size_of_block(datasets, len(columns)))
    return sides._replace(ends=_ends_of(sides, layout, function, columns))


def _ends_of(
    sides: Sides, layout: Layout, function: Function | None, columns: Int[np.ndarray, " m"]
) -> Float[np.ndarray, "*b m 2"]:
    """The ends at the cut-off; the edge of the range where the profile never falls so far, NaN where the end was not reached."""
    edges = layout.edges()[columns] if function is None else np.array([-np.inf, np.inf]) + np.zeros((len(columns), 2))
    cases = [sides.codes == code for code in (End.CUT_OFF, End.NEVER_FALLS, End.EDGE)]
    edges = np.broadcast_to(edges, sides.codes.shape)
    return np.select(cases, [sides.ends, edges, sides.reached], np.nan).astype(sides.ends.dtype)


def _size_of_block(datasets: Dataset, num_functions: int) -> int:
    """How many of many fits are profiled at once."""
    leaves = zip(jax.tree.leaves(datasets.parts), datasets.differs, strict=True)
    rows = max((int(np.prod(np.shape(leaf)[1:2])) for leaf, differs in leaves if differs), default=1)
    return min(datasets.size or 0, max(1, _BATCH_ENTRIES // (2 * num_functions * rows)))


def profile_ends(
    model: Model, dataset: Dataset, layout: Layout, maximum: Maximum, level: Any
) -> Float[np.ndarray, "*b q 2"]:
    """Ends of the profile intervals of all entries of θ, of one fit or of many in blocks."""
    edges, count = layout.edges(), dataset.size
    columns = np.arange(len(edges))
    if count is None:
        return profile_sides(model, dataset, layout, maximum, None, columns, level).ends
    if count == 0:
        return np.zeros((0, *edges.shape))
    if count * len(columns) <= FEW_PROFILES:
        return profile_sides_of_each(model, dataset, layout, maximum, None, columns, level).ends
    host = on_host(maximum)

    def of_block(rows: np.ndarray) -> Any:
        maxima = jax.tree.map(lambda leaf: leaf[rows], host)
        return _ends_of_each(model, layout, dataset.take(rows), maxima, cut_of(level))

    codes, ends = map_blocks(of_block, count, _size_of_block(dataset, len(edges)))
    return np.select([codes == End.CUT_OFF, codes == End.NEVER_FALLS], [ends, edges[None]], np.nan).astype(ends.dtype)


@functools.partial(jit_with_model, static_argnums=(0, 1), level=1)
def _ends_of_each(
    model: Model, layout: Layout, datasets: Dataset, maxima: Maximum, cut: Any
) -> tuple[Int[Array, "r q 2"], Float[Array, "r q 2"]]:
    sides = _sides_of_each(model, layout, None, datasets, maxima, np.arange(len(layout.names)), cut)
    return sides.codes, sides.ends


@functools.partial(jit_with_model, static_argnums=(0, 1, 2), level=1)
def _sides_of_each(
    model: Model,
    layout: Layout,
    function: Function | None,
    datasets: Dataset,
    maxima: Maximum,
    columns: Int[Array, " m"],
    cut: Any,
) -> Sides:
    def of_one(parts: tuple[Any, ...], maximum: Maximum) -> Sides:
        return _follow_sides(model, layout, function, Dataset(*parts), maximum, columns, cut)

    return jax.vmap(of_one, in_axes=(datasets.axes_with_strength, 0))(datasets.with_strength, maxima)


def _follow_sides(
    model: Model, layout: Layout, function: Function | None, dataset: Dataset, maximum: Maximum, columns: Any, cut: Any
) -> Sides:
    """The profiles of one data set, a lane for every side of every function. `ends` are those at the cut-off, where reached."""
    values, free, curvature = maximum
    target = likelihood(model, layout, values, dataset)
    best = terms_at(target, free)
    spans = jnp.asarray(_spans(layout))

    def of_side(column: Array, sign: Array) -> Path:
        restriction = functools.partial(_followed, layout, function, values, column)
        evaluate = functools.partial(look, target, restriction, best, _units(curvature), jnp.array(layout.unitless))
        return follow(evaluate, free, sign, cut, spans[column] if function is None else jnp.nan)

    # One level of `vmap`, for each takes several passes over the loops in a density.
    columns = jnp.asarray(columns)
    signs = jnp.tile(jnp.array([-1.0, 1.0], layout.dtype), len(columns))
    paths = jax.vmap(of_side)(jnp.repeat(columns, 2), signs)
    return _sides_of_paths(layout, function, maximum, columns, paths)


def _units(curvature: Float[AnyArray, "p p"]) -> Float[AnyArray, " p"]:
    """Units of u: the standard errors that its entries have if the others do not move."""
    xp = namespace(curvature)
    diagonal = abs(xp.diagonal(curvature))
    return 1.0 / xp.sqrt(xp.where((diagonal > 0) & xp.isfinite(diagonal), diagonal, 1.0))


def _spans(layout: Layout) -> Float[np.ndarray, " m"]:
    """A large change of each parameter; see `follow`."""
    return np.where(np.any(np.isfinite(layout.edges()), axis=1), SPAN, np.inf)


def _number(
    layout: Layout, function: Function | None, values: Values, column: Array, u: Float[Array, " p"]
) -> Float[Array, ""]:
    """One of the numbers of a function, or an entry of θ."""
    if function is not None:
        return function(layout.constrain(u, values)).astype(layout.dtype)[column]
    return layout.join(layout.constrained_values(u, values))[column]


def _followed(
    layout: Layout, function: Function | None, values: Values, column: Array, u: Float[Array, " p"]
) -> Float[Array, ""]:
    """The same on the scale on which it is followed: a parameter on that of its constraint, on which it has no edge."""
    return layout.coordinates(u)[column] if function is None else _number(layout, function, values, column, u)


def _sides_of_paths(
    layout: Layout, function: Function | None, maximum: Maximum, columns: Int[Array, " m"], paths: Path
) -> Sides:
    """The record of the paths of both sides of each function, one after the other."""
    values, free, curvature = maximum
    inverse = linalg.inverse(curvature)

    def of_column(column: Array, paths: Path) -> Sides:
        number = functools.partial(_number, layout, function, values, column)
        estimate, slopes = jax.value_and_grad(number)(free)
        points = jax.vmap(jax.vmap(number))(paths.frees)
        at_end = jax.vmap(number)(paths.end_free)
        last = jnp.maximum(jnp.sum(jnp.isfinite(paths.drops), axis=-1) - 1, 0)[:, None]
        return Sides(
            estimates=estimate,
            errors=jnp.sqrt(jnp.sum(slopes * jnp.sum(inverse * slopes[None, :], axis=1))),
            ends=at_end if function is None else paths.end_value,
            codes=paths.end,
            reached=jnp.take_along_axis(points, last, axis=-1)[:, 0],
            fallen=jnp.take_along_axis(paths.drops, last, axis=-1)[:, 0],
            singular=paths.singular,
            values=points,
            drops=paths.drops,
            frees=paths.frees,
        )

    of_columns = jax.tree.map(lambda leaf: leaf.reshape(len(columns), 2, *leaf.shape[1:]), paths)
    return jax.vmap(of_column)(columns, of_columns)


def profile_sides_by_passes(
    passes: Passes,
    layout: Layout,
    maximum: Maximum,
    function: Function | None,
    columns: Int[np.ndarray, " m"],
    level: Any,
) -> Sides:
    """`profile_sides` for rows that are read in blocks: each pass over them evaluates the next point of every side under way."""

    def evaluate(points: list[np.ndarray]) -> list[Evaluation]:
        return passes.evaluate(layout, maximum[0], points, "observed")

    return _follow_on_host(evaluate, passes.model, layout, maximum, function, columns, level)


def _one_by_one(evaluation: Callable[[np.ndarray], Evaluation]) -> Callable[[list[np.ndarray]], list[Evaluation]]:
    """An evaluation of several points by one of a single point."""
    return lambda points: [evaluation(u) for u in points]


def _follow_on_host(
    evaluate: Callable[[list[np.ndarray]], list[Evaluation]],
    model: Model,
    layout: Layout,
    maximum: Maximum,
    function: Function | None,
    columns: Int[np.ndarray, " m"],
    level: Any,
) -> Sides:
    """The profiles by steps in numpy: `evaluate` gives the log-likelihood, its gradient and information at some points."""
    columns, values = np.asarray(columns), [np.asarray(value) for value in maximum[0]]
    free, curvature = np.asarray(maximum[1]), np.asarray(maximum[2])
    units, unitless, dtype = _units(curvature), np.array(layout.unitless), layout.dtype
    cut, sides = dtype.type(cut_of(level)), np.tile(np.array([-1.0, 1.0], dtype), len(columns))
    of_lanes = np.repeat(columns, 2)
    spans = np.full(len(sides), np.nan, dtype) if function is not None else _spans(layout)[of_lanes].astype(dtype)
    (best,) = evaluate([free])
    evaluations, running = [best] * len(sides), np.ones(len(sides), bool)
    trials, walks = np.tile(free, (len(sides), 1)), list[Walk]()
    with np.errstate(all="ignore"):  # what is not finite ends a side, with its reason
        while running.any():
            bends = _bends_of_lanes(model, layout, function, values, of_lanes, trials)
            for k in np.flatnonzero(running):
                at, trial = evaluations[k], trials[k].copy()  # which the walk keeps
                drop = (best.value - at.value) + (best.rounding - at.rounding)
                rounding = 2 * np.finfo(dtype).eps * abs(at.value)
                of_side = tuple(part[k] for part in bends)
                point = point_at(at.gradient, at.information, drop, rounding, of_side, units, unitless, trial)
                if k == len(walks):
                    walks.append(begin(point, free))
                walks[k] = advance(walks[k], point, sides[k], cut, spans[k])
                trials[k], running[k] = walks[k].trial, is_running(walks[k])
            under_way = np.flatnonzero(running)
            if len(under_way):
                for k, at in zip(under_way, evaluate([trials[k] for k in under_way]), strict=True):
                    evaluations[k] = at
        ended = [finish(walk, side, cut) for walk, side in zip(walks, sides, strict=True)]
        paths = jax.tree.map(lambda *leaves: np.stack(leaves), *ended)
        whole = values, free, curvature
        found = (
            _sides_of_parameters(layout, whole, columns, paths)
            if function is None
            else jax.device_get(_sides_of_function(model, layout, function, whole, columns, paths))
        )
    return found._replace(ends=_ends_of(found, layout, function, columns))


def _bends_of_lanes(
    model: Model, layout: Layout, function: Function | None, values: Values, columns: np.ndarray, frees: np.ndarray
) -> Bends:
    """What is followed in each lane, with its derivatives."""
    if function is not None or not all(
        isinstance(leaf.constraint, Interval | Unconstrained) for _, leaf in layout.free_leaves
    ):
        return jax.device_get(_bends(model, layout, function, values, columns, frees))
    lanes, p = np.arange(len(columns)), frees.shape[1]
    # On the scale of such a constraint a parameter is an entry of u.
    return frees[lanes, columns], np.eye(p, dtype=frees.dtype)[columns], np.zeros((len(columns), p, p), frees.dtype)


@functools.partial(jit_with_model, static_argnums=(0, 1, 2), level=0)
def _bends(
    model: Model, layout: Layout, function: Function | None, values: Values, columns: Int[Array, " l"], frees: Array
) -> Bends:
    def of_lane(column: Array, free: Array) -> Bends:
        return bends_of(functools.partial(_followed, layout, function, values, column), free)

    return jax.vmap(of_lane)(columns, frees)


def _sides_of_parameters(layout: Layout, maximum: Maximum, columns: Int[np.ndarray, " m"], paths: Path) -> Sides:
    """`_sides_of_paths` for parameters, in numpy."""
    values, free, curvature = maximum
    paths = jax.tree.map(lambda leaf: leaf.reshape(len(columns), 2, *leaf.shape[1:]), paths)

    def theta(u: np.ndarray) -> np.ndarray:
        return np.asarray(layout.join(layout.constrained_values(u, values)))

    def of_each(numbers: np.ndarray) -> np.ndarray:
        """The entry of θ that is followed, of θ at points of each column."""
        return np.stack([numbers[k, ..., column] for k, column in enumerate(columns)])

    slopes = np.asarray(layout.jacobian(free))[columns]
    points, last = of_each(theta(paths.frees)), np.maximum(np.isfinite(paths.drops).sum(-1) - 1, 0)[..., None]
    return Sides(
        estimates=theta(free)[columns],
        errors=np.sqrt(np.sum(slopes * (slopes @ linalg.inverse(curvature)), axis=1)),
        ends=of_each(theta(paths.end_free)),
        codes=paths.end,
        reached=np.take_along_axis(points, last, axis=-1)[..., 0],
        fallen=np.take_along_axis(paths.drops, last, axis=-1)[..., 0],
        singular=paths.singular,
        values=points,
        drops=paths.drops,
        frees=paths.frees,
    )


@functools.partial(jit_with_model, static_argnums=(0, 1, 2), level=0)
def _sides_of_function(
    model: Model, layout: Layout, function: Function, maximum: Maximum, columns: Int[Array, " m"], paths: Path
) -> Sides:
    return _sides_of_paths(layout, function, maximum, columns, paths)


_profiles_of_few = jit_with_model(_follow_sides, static_argnums=(0, 1, 2), level=0)
_profiles = jit_with_model(_follow_sides, static_argnums=(0, 1, 2), level=1)
