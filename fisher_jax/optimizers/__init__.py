"""Information-scaled steps as optax transformations.

optax minimises: what it calls a loss is minus the log-likelihood. What these need beyond optax's own loop is one
keyword-only extra argument: `objective`, a function from the parameters (and the kind of curvature wanted) to an
`Evaluation`, which `fisher_jax.fit` supplies. For more parameters than a matrix can hold `natural_gradient` takes
`information` in its place, an operator.
"""

from fisher_jax.optimizers.natural import natural_gradient
from fisher_jax.optimizers.natural_step import NaturalGradientState
from fisher_jax.optimizers.newton import Evaluation, Newton, bhhh, fisher_scoring, newton
from fisher_jax.optimizers.scaled import scale_by_information

__all__ = [
    "Evaluation",
    "NaturalGradientState",
    "Newton",
    "bhhh",
    "fisher_scoring",
    "natural_gradient",
    "newton",
    "scale_by_information",
]
