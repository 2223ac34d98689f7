"""One fit whose rows are read in blocks: each step is one pass over them, and no more than some blocks are in memory.

A block is cut into pieces of a number of rows that goes with the size of a row alone. Cores take the pieces of a block in turn, by
the row program in its one kernel (`many_rows`), by products of matrices (`linear_rows`) or by the derivatives of XLA; what they
return is added up in the order of the rows, without rounding errors: each sum is a pair, of which the second number holds what
rounding took from the first (Knuth 1997, The Art of Computer Programming 2, section 4.2.2, theorem B). So neither the size of a
block nor the number of cores changes any digit. The last piece is filled up by rows of weight zero, so that nothing compiles twice.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.errors import require
from fisher_jax.fitting import workers
from fisher_jax.fitting.cpu import LEAST_LANES
from fisher_jax.fitting.linear_rows import evaluate_by_predictors
from fisher_jax.fitting.many_rows import programs_of_lanes
from fisher_jax.fitting.maximization import (
    PriorTerm,
    evaluate,
    first_not_finite,
    make_problem,
    stages_of,
    step_on_host,
    total_information,
)
from fisher_jax.fitting.result import Fit, SourceOrigin, with_log_prior
from fisher_jax.fitting.row_program import Plan
from fisher_jax.information import has_closed_form
from fisher_jax.models.dataset import Dataset, check_dataset, pad_dataset
from fisher_jax.models.likelihood import likelihood, outer_product_at
from fisher_jax.models.model import Model, starting_parameters
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.programs import jit_with_model
from fisher_jax.numerics.differentiate import matrices_of_triangles, upper_triangle
from fisher_jax.numerics.exact_sums import Sums
from fisher_jax.numerics.expansion import CannotExpand
from fisher_jax.numerics.linalg import UNROLLED
from fisher_jax.optimizers.newton import Evaluation, Kind, Newton, State
from fisher_jax.sources import RowSource, check_rows_alone

BYTES_IN_A_PIECE = 2**22
MOST_ROWS_IN_A_PIECE = 2**14
PIECES_IN_A_BLOCK = 8
# Parameters: above, products of matrices are used where there are linear predictors. With so few a row program takes
# half the time for a pass, and above it takes seconds to compile, twice.
FEW = 6
# Above, the row program takes longer to compile than passes take by XLA. Outer products are taken once.
EXPANDED_UP_TO = 12


@functools.partial(jit_with_model, static_argnums=(0, 1, 2), single_threaded=True)
def _evaluate_piece(
    model: Model, layout: Layout, kind: Kind, values: Values, dataset: Dataset, u: Float[Array, " p"]
) -> Evaluation:
    """The log-likelihood of some rows by the derivatives of XLA."""
    return evaluate(make_problem(model, layout, values, dataset, u), kind, u)


@functools.partial(jit_with_model, static_argnums=(0, 1), level=0)
def _suspect_in_piece(model: Model, layout: Layout, values: Values, dataset: Dataset, u: Float[Array, " p"]) -> Array:
    """The first row whose log-density or score is not finite; −1 where there is none."""
    target = likelihood(model, layout, values, dataset)
    return first_not_finite(target, u, outer_product_at(target, u)[0])


@functools.partial(jit_with_model, static_argnums=(0, 1), level=1)
def _expected_of_piece(model: Model, layout: Layout, values: Values, dataset: Dataset) -> Array | None:
    """n I(θ) of the rows, at the parameters `values`."""
    return total_information(model, layout, values, dataset, likelihood(model, layout, values, dataset))


class Passes:
    """The rows of a source, for sums over them at any parameters, each by one pass.

    `num_rows`, `num_blocks`, `num_observations` (the sum of the weights), `num_observed` (rows of nonzero weight) and `num_masked`
    are those of the last pass; `num_passes` counts them.
    """

    def __init__(
        self, model: Model, rows: RowSource, strength: tuple[Any, ...] | None = None, *, progress: bool = False
    ) -> None:
        check_rows_alone(model)
        self.model, self.rows, self.strength, self.progress = model, rows, strength, progress
        self.label = ""
        self.num_passes = self.num_rows = self.num_blocks = self.num_observed = self.num_masked = 0
        self.num_observations = 0.0
        self._way: dict[tuple[Layout, Kind], str] = {}
        leaves = jax.tree.leaves(next(rows.blocks(1)))
        row_bytes = max(1, sum(np.asarray(leaf).nbytes for leaf in leaves))
        each = max(1, min(MOST_ROWS_IN_A_PIECE, BYTES_IN_A_PIECE // row_bytes) // LEAST_LANES)
        self.rows_in_a_lane = 1 << each.bit_length() - 1
        self.rows_in_a_piece = LEAST_LANES * self.rows_in_a_lane
        self.rows_in_a_block = PIECES_IN_A_BLOCK * self.rows_in_a_piece

    @property
    def arguments_by_name(self) -> dict[str, Any]:
        """The rows and the strength of the prior as arguments of `fit`."""
        return self.rows.arguments_by_name | {"strength": self.strength[0] if self.strength else None}

    def first_block(self) -> Dataset:
        """The first rows."""
        return check_dataset(self.model, *next(self.rows.blocks(self.rows_in_a_block)))

    def over(self, work: Callable[[Dataset], Any], dtype: Any) -> Iterator[tuple[int, int, Any]]:
        """One pass: `work(piece)` for every piece, in order, with the number of its first row and how many rows it has.

        Cores work on the pieces of one block at a time.
        """
        self.num_passes += 1
        start = num_blocks = num_observed = num_masked = 0
        total_weight = Sums()
        num_workers = workers.num_threads() if workers.platform() == "cpu" else 1
        size = self.rows_in_a_piece
        with self._bar() as advance:
            for parts in self.rows.blocks(self.rows_in_a_block):
                block = check_dataset(self.model, *parts)
                count = len(jax.tree.leaves(block.data)[0])
                num_pieces = -(-count // size)
                padded = pad_dataset(block, num_pieces * size, dtype)
                results: list[Any] = [None] * num_pieces

                def of_piece(k: int, padded: Dataset = padded, results: list[Any] = results) -> None:
                    piece = jax.tree.map(lambda leaf: leaf[k * size : (k + 1) * size], padded.parts)
                    results[k] = work(Dataset(*piece))

                workers.run(of_piece, range(num_pieces), num_workers)
                num_blocks += 1
                num_observed += count if block.weights is None else int(np.count_nonzero(block.weights))
                num_masked += 0 if block.num_masked is None else int(block.num_masked)
                for k in range(num_pieces):
                    total_weight.add(padded.weights[None, k * size : (k + 1) * size])
                for k, result in enumerate(results):
                    yield start + k * size, min(size, count - k * size), result
                start += count
                advance(count)
        if not start:
            raise ValueError("the source holds no row.")
        self.num_rows, self.num_blocks = start, num_blocks
        self.num_observed, self.num_masked = num_observed, num_masked
        self.num_observations = total_weight.totals()[0][0]

    @contextlib.contextmanager
    def _bar(self) -> Iterator[Callable[[int], Any]]:
        """A function that takes how many rows are done, and shows them where `progress` is."""
        if not self.progress:
            yield lambda count: None
            return
        total = self.num_rows or self.rows.length
        title = f"pass {self.num_passes}{self.label}"
        with require("tqdm.auto", "progress").tqdm(total=total, unit=" rows", unit_scale=True, desc=title) as bar:
            yield bar.update

    def evaluate(
        self,
        layout: Layout,
        values: Values,
        points: Iterable[Any],
        kind: Kind,
        beside: Callable[[int, Dataset, list[tuple[Array, ...]]], Any] | None = None,
    ) -> list[Evaluation]:
        """The log-likelihood at each of some points u, with arrays (p,) and (p, p) of numpy, by one pass; with the prior, if any.

        `beside(start, piece, results)` is called for each piece in order, with what its program returned.
        """
        p, dtype = layout.num_free, layout.dtype
        points = [np.asarray(point, dtype) for point in points]
        sums = [Sums() for _ in points]
        fixed = [value for value, leaf in zip(values, layout.leaves, strict=True) if leaf.is_fixed]

        def in_lanes(piece: Dataset) -> list[Any]:
            leaves, treedef = jax.tree.flatten(piece.parts)
            varying = [leaf.reshape(LEAST_LANES, self.rows_in_a_lane, *leaf.shape[1:]) for leaf in leaves]
            differs = (False,) * len(fixed) + (True,) * len(leaves)
            plan = Plan(self.model, layout, None, treedef, len(fixed), differs, self.rows_in_a_lane)
            prepare, run = programs_of_lanes(plan, kind, varying, fixed)
            columns = prepare(varying, fixed)
            return [jax.device_get(run(point, *columns)) for point in points]

        def as_lane(at: Evaluation) -> tuple[Any, ...]:
            value, gradient, information, rounding = jax.device_get(tuple(at))
            triangle = np.array([information[i, j] for i, j in upper_triangle(p)])
            return value[None], rounding[None], gradient[:, None], triangle[:, None]

        def by_predictors(piece: Dataset) -> list[Any]:
            return [as_lane(evaluate_by_predictors(self.model, layout, values, piece, point)[kind]) for point in points]

        def by_arrays(piece: Dataset) -> list[Any]:
            return [as_lane(_evaluate_piece(self.model, layout, kind, values, piece, point)) for point in points]

        ways: dict[str, Callable[[Dataset], Any]] = {
            "lanes": in_lanes,
            "predictors": by_predictors,
            "arrays": by_arrays,
        }
        if (layout, kind) not in self._way:  # compiled by one thread, before all need it
            self._way[layout, kind] = "arrays"
            if workers.platform() == "cpu":
                first = pad_dataset(self.first_block(), self.rows_in_a_block, dtype)
                piece = Dataset(*jax.tree.map(lambda leaf: leaf[: self.rows_in_a_piece], first.parts))
                self._way[layout, kind] = self._way_of(layout, kind, values, piece, ways)
        work = ways[self._way[layout, kind]]

        def of_piece(piece: Dataset) -> tuple[Dataset | None, list[Any]]:
            return piece if beside else None, work(piece)

        for start, _, (piece, results) in self.over(of_piece, dtype):
            for each, (value, rounding, gradient, triangle) in zip(sums, results, strict=True):
                stacked = np.concatenate([value[None], gradient, triangle])
                remainder = np.zeros(stacked.shape)
                remainder[0] = rounding
                each.add(stacked, remainder)
            if beside:
                beside(start, piece, results)
        evaluations = []
        for each in sums:
            (value, rest), *others = each.totals()
            high = dtype.type(value)
            entries = np.array([total for total, _ in others], dtype)
            (matrix,) = matrices_of_triangles(entries[None, p:], p)
            evaluations.append(Evaluation(high, entries[:p], matrix, dtype.type((value - float(high)) + rest)))
        if self.strength is None:
            return evaluations
        prior = PriorTerm(self.model, layout, values, self.strength)
        return [prior.added_to(at, kind, point) for at, point in zip(evaluations, points, strict=True)]

    def _way_of(
        self, layout: Layout, kind: Kind, values: Values, piece: Dataset, ways: dict[str, Callable[[Dataset], Any]]
    ) -> str:
        """How pieces are evaluated on a CPU, by what compiles and runs for the shortest time together."""
        p = layout.num_free
        if kind != "expected" and p > FEW:
            u = np.asarray(layout.unconstrain(values))
            if evaluate_by_predictors(self.model, layout, values, piece, u) is not None:
                return "predictors"
        if p <= (UNROLLED if kind == "empirical" else EXPANDED_UP_TO):
            with contextlib.suppress(CannotExpand):
                ways["lanes"](piece)
                return "lanes"
        return "arrays"

    def step(self, layout: Layout, values: Values, kind: Kind, u: np.ndarray, *, whole: bool = False) -> dict[str, Any]:
        """What `step_on_host` asks of an evaluation; with `whole` also the outer product of scores, and what is counted."""
        if not whole:
            (at,) = self.evaluate(layout, values, [u], kind)
            return {
                "value": at.value,
                "rounding": at.rounding,
                "gradient": at.gradient,
                "information": at.information,
            }
        suspect, expected = -1, Sums()
        estimate = layout.constrained_values(u, values)
        has_expected = has_closed_form(self.model)
        last: Dataset | None = None

        def beside(start: int, piece: Dataset, results: list[Any]) -> None:
            nonlocal suspect, last
            last = piece
            if suspect < 0 and not all(np.all(np.isfinite(array)) for array in results[0]):
                row = int(_suspect_in_piece(self.model, layout, values, piece, u))
                suspect = start + row if row >= 0 else -1
            if has_expected and piece.given is not None:
                expected.add(np.asarray(_expected_of_piece(self.model, layout, estimate, piece)))

        (at,) = self.evaluate(layout, values, [u], "empirical", beside)
        matrix = None
        if has_expected and self.rows.has_given:
            matrix = np.asarray(expected.high + expected.low, layout.dtype)
        elif has_expected:  # n times that of one row
            assert last is not None
            one = replace(last, weights=np.eye(1, self.rows_in_a_piece, dtype=layout.dtype)[0])
            matrix = self.num_observations * np.asarray(_expected_of_piece(self.model, layout, estimate, one))
        if self.strength is not None:
            matrix = PriorTerm(self.model, layout, values, self.strength).added_to_expected(matrix, u)
        return {
            "outer_product": at.information,
            "expected": matrix,
            "suspect": np.array(suspect, np.int32),
            "num_observations": np.asarray(self.num_observations, layout.dtype),
            "num_observed": self.num_observed,
        }


def passes_of(fit: Fit) -> Passes | None:
    """The rows that a fit read from its source, for more passes over them; None of other fits."""
    if isinstance(fit.origin, SourceOrigin) and isinstance(fit.origin.rows, RowSource):
        return Passes(fit.origin.model, fit.origin.rows, fit.origin.strength)
    return None


def check_newton(optimizer: Any, starts: Any) -> None:
    """Raise for what steps by passes over the data cannot do."""
    if not isinstance(optimizer, Newton):
        raise TypeError(
            "data that are read in blocks, or lie on several devices, are fitted by newton(), fisher_scoring() or bhhh(), whose "
            f"every step is one pass over the data; the optimizer is {type(optimizer).__name__}."
        )
    if starts is not None:
        raise ValueError(
            "starts= needs the data in memory. Fit from each start by itself, and compare their log_likelihood."
        )


def start_of_source(passes: Passes, start: PyTree) -> PyTree:
    """The start given, or what the model's `initial` makes of the first block."""
    if start is not None:
        return start
    first = passes.first_block()
    return starting_parameters(passes.model, None, first.data, first.given)


def fit_by_passes(
    passes: Passes, layout: Layout, optimizer: Newton, values: Values, tolerance: Any, max_steps: int
) -> Fit:
    """The fit, by one pass for each step and one more for the outer product of scores."""
    optimizers = stages_of(optimizer, passes.model)
    values = [np.asarray(value) for value in values]
    calls = [functools.partial(passes.step, layout, values, step.kind) for step in optimizers]

    def watch(state: State) -> None:
        value = float(state.at.value)
        passes.label = f", step {int(state.count)}, log-likelihood {value:.6f}, decrement {float(state.decrement):.1e}"

    fit = step_on_host(layout, layout, optimizers, calls, values, tolerance, max_steps, watch=watch)
    counts = passes.num_rows, passes.num_blocks, passes.num_passes
    origin = SourceOrigin(passes.model, passes.rows, passes.rows.describe(), *counts, passes.strength)
    num_masked = np.asarray(passes.num_masked) if passes.num_masked else None
    fit = replace(fit, engine="source", origin=origin, num_masked=num_masked)
    return with_log_prior(fit, passes.model, Dataset(None, strength=passes.strength))
