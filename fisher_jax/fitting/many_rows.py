"""One fit with many rows: the rows are dealt to lanes that all have the same parameters, and their sums are added up at the end.

The row program of a batch in its one kernel, a thread for each core; what depends on the data alone is computed once for a fit.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fisher_jax.fitting import cpu, workers
from fisher_jax.fitting import row_program as row_programs
from fisher_jax.fitting.cpu import LEAST_LANES
from fisher_jax.fitting.row_program import Leaves, Plan
from fisher_jax.models.dataset import Dataset, pad_dataset
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import Layout, Values
from fisher_jax.models.prior import counts_once, once_derivatives
from fisher_jax.models.programs import jit_with_model, programs_of
from fisher_jax.numerics.differentiate import matrices_of_triangles
from fisher_jax.numerics.expansion import CannotExpand
from fisher_jax.optimizers.newton import Evaluation, Kind

SIXTEENTHS = 4  # bits to which a number of rows is rounded up, so that one more of them seldom compiles anew


_counted_once = functools.partial(jit_with_model, static_argnums=(0, 1), level=0)(once_derivatives)


class Rows:
    """A data set dealt to the lanes of all cores, for evaluations at any parameters."""

    def __init__(self, model: Model, layout: Layout, values: Values, dataset: Dataset) -> None:
        self.layout = layout
        fixed = [value for value, leaf in zip(values, layout.leaves, strict=True) if leaf.is_fixed]
        rows = np.shape(jax.tree.leaves(dataset.data)[0])[0]
        self.num_workers = workers.num_cores()
        each = -(-rows // (self.num_workers * LEAST_LANES))
        coarse = max(0, each.bit_length() - SIXTEENTHS - 1)
        each = (-(-each >> coarse)) << coarse
        total = self.num_workers * LEAST_LANES * each

        padded = pad_dataset(dataset, total, layout.dtype)
        leaves, treedef = jax.tree.flatten(padded.parts)
        parts = [leaf.reshape(self.num_workers, LEAST_LANES, each, *leaf.shape[1:]) for leaf in leaves]
        differs = (False,) * len(fixed) + (True,) * len(parts)
        self.plan = Plan(model, layout, None, treedef, len(fixed), differs, each)
        self.shared: Leaves = fixed
        self.varying = [[part[k] for part in parts] for k in range(self.num_workers)]
        self.columns: dict[Kind, list[Any]] = {}
        self.once: Callable[[np.ndarray], Any] | None = None
        if counts_once(model, dataset):
            on_device = jax.tree.map(jnp.asarray, dataset)
            self.once = lambda u: jax.device_get(_counted_once(model, layout, values, on_device, u))

    def evaluate(self, u: np.ndarray, kind: Kind) -> Evaluation:
        """The log-likelihood at u, with arrays (p,) and (p, p) of numpy.

        Raises
        ------
        CannotExpand
            Where the density has no row program.
        """
        prepare, evaluate = programs_of_lanes(self.plan, kind, self.varying[0], self.shared)
        if kind not in self.columns:
            self.columns[kind] = [prepare(varying, self.shared) for varying in self.varying]
        parts: list[Any] = [None] * self.num_workers

        def work(k: int) -> None:
            parts[k] = jax.device_get(evaluate(u, *self.columns[kind][k]))

        workers.run(work, range(self.num_workers), workers.num_threads())
        value, rounding, gradient, triangle = (np.concatenate(part, axis=-1) for part in zip(*parts, strict=True))
        dtype, p = self.layout.dtype, len(u)
        once_value, once_gradient, *once = (0.0,) * 4 if self.once is None else self.once(u)
        once_information = once[1] if kind == "empirical" else once[0]
        value = np.append(value, dtype.type(once_value))
        total = math.fsum(value) if np.all(np.isfinite(value)) else float(np.sum(value))
        high = dtype.type(total)
        (matrix,) = matrices_of_triangles(triangle.sum(axis=-1)[None], p)
        finite = math.isfinite(total)
        low = dtype.type((total - float(high)) + float(np.sum(rounding, dtype=float)) if finite else 0.0)
        return Evaluation(high, gradient.sum(axis=-1) + once_gradient, matrix + once_information, low)


def programs_of_lanes(
    plan: Plan, kind: Kind, varying: Leaves, shared: Leaves
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The programs that bring rows in lanes into columns, and that evaluate them, compiled for arrays of these shapes.

    The second returns for each lane the value and what rounding took from it, (L,), the gradient (p, L) and the information's upper
    triangle (p (p + 1) / 2, L).

    Raises
    ------
    CannotExpand
        Where the density has no row program.
    """
    shapes = tuple((np.shape(leaf), str(leaf.dtype)) for leaf in [*varying, *shared])
    key = ("many rows", jax.config.read("jax_enable_x64"), plan.layout, plan.treedef, kind, shapes)
    programs = programs_of(plan.model)
    if key in programs:
        if isinstance(programs[key], CannotExpand):
            raise programs[key].again()
        return programs[key]
    try:
        rows = row_programs.rows_of(plan, kind, varying, shared)
    except CannotExpand as error:
        programs[key] = error.again()
        raise
    like = lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), jax.dtypes.canonicalize_dtype(leaf.dtype))  # noqa: E731

    def prepare(varying: Leaves, shared: Leaves) -> tuple[Leaves, Leaves]:
        data, common = row_programs.columns_of_chunk(plan, rows, varying, shared)
        return common, [jnp.moveaxis(leaf, 0, -1) for leaf in data]

    def evaluate(u: Array, common: Leaves, columns: Leaves) -> tuple[Array, ...]:
        def run(u: Array, common: Leaves, columns: Leaves) -> tuple[Array, ...]:
            each = [jnp.broadcast_to(u[i], (LEAST_LANES,)) for i in range(len(u))]
            at = row_programs.evaluate_columns(plan, rows, common, each, columns)
            return at.value, at.rounding, jnp.stack(at.gradient), jnp.stack(list(at.information.values()))

        return cpu.one_kernel(run)(u, common, columns)

    arguments = [like(leaf) for leaf in varying], [like(leaf) for leaf in shared]
    u = jax.ShapeDtypeStruct((plan.layout.num_free,), plan.layout.dtype)
    options = cpu.COMPILER_OPTIONS
    first = jax.jit(prepare, compiler_options=options)
    columns = jax.eval_shape(prepare, *arguments)
    compiled = jax.jit(evaluate, compiler_options=options).lower(u, *columns).compile()
    programs[key] = first.lower(*arguments).compile(), compiled
    return programs[key]
