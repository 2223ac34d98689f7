"""The mode of a function of latent effects: Newton's method in a trust region, with a certificate."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fisher_jax.fitting.maximization import certify, default_tolerance
from fisher_jax.numerics import batched_linalg as lanes
from fisher_jax.numerics.differentiate import FORWARD_UP_TO, by_entry, by_row
from fisher_jax.optimizers.newton import Evaluation, Newton, advance, begin, trial

MODE_STEPS = 200  # of a search; from a start of zeros five are usual


class Mode(NamedTuple):
    """A maximum of f over the effects b, flat: where, the information −∇²f there, and how the search ended (`Status`)."""

    effects: Float[Array, " q"]
    information: Float[Array, "q q"]
    status: Int[Array, ""]

    @property
    def certified(self) -> Array:
        """Whether it is a maximum at which the information is positive definite."""
        return self.status <= 1  # CONVERGED and CONVERGED_TO_ROUNDING


def find_mode(f: Callable[[Float[Array, " q"]], Float[Array, ""]], start: Float[Array, " q"]) -> Mode:
    """Maximise f from a start. Nothing is differentiated through the search."""
    tolerance = jnp.asarray(default_tolerance(start.dtype), start.dtype)
    derivatives = by_entry if len(start) <= FORWARD_UP_TO else by_row

    def evaluate(point: lanes.Vector) -> Evaluation:
        terms, gradient, information = derivatives(lambda b: f(b)[None], lanes.to_array(point), None)
        return Evaluation(terms[0], lanes.vector(gradient), lanes.matrix(information), jnp.zeros_like(terms[0]))

    def step(carry: tuple[Any, Any]) -> tuple[Any, Any]:
        state, _ = carry
        return advance(Newton(), state, evaluate(trial(state)), tolerance)

    begun = lanes.vector(start)
    state, _ = jax.lax.while_loop(
        lambda carry: ~carry[1] & (carry[0].count < MODE_STEPS), step, (begin(begun), jnp.zeros((), bool))
    )
    status = certify(state, begun, len(start), tolerance, MODE_STEPS, ())
    return Mode(lanes.to_array(state.point), lanes.matrix_to_array(state.at.information), status)
