"""Information-scaled steps as optax transformations.

optax minimises: what it calls a loss is minus the log-likelihood. What these need beyond optax's own loop is one
keyword-only extra argument: `objective`, a function from the parameters (and the kind of curvature) to an
`Evaluation`, which `fisher_jax.fit` supplies. For more parameters than a matrix can hold `natural_gradient` takes
`information` in its place, an operator.
"""

import importlib
from typing import TYPE_CHECKING, Any

from fisher_jax.optimizers.newton import Evaluation, bhhh, fisher_scoring, newton

if TYPE_CHECKING:
    from fisher_jax.optimizers.natural import NaturalGradientState, natural_gradient
    from fisher_jax.optimizers.scaled import scale_by_information

# These need optax, which takes as long to import as the rest of fisher_jax.
_DEFINED_IN = {"NaturalGradientState": "natural", "natural_gradient": "natural", "scale_by_information": "scaled"}

__all__ = [
    "Evaluation",
    "NaturalGradientState",
    "bhhh",
    "fisher_scoring",
    "natural_gradient",
    "newton",
    "scale_by_information",
]


def __getattr__(name: str) -> Any:
    if name not in _DEFINED_IN:
        raise AttributeError(f"module 'fisher_jax.optimizers' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fisher_jax.optimizers.{_DEFINED_IN[name]}"), name)
