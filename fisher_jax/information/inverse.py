"""The inverse of an information matrix, as the record of a covariance or a bound on one."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from fisher_jax.errors import entry_point
from fisher_jax.information.errors import Estimate, estimated, spread
from fisher_jax.information.tables import as_frame, as_html, as_text
from fisher_jax.numerics import linalg
from fisher_jax.numerics.array_namespace import AnyArray


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Covariance:
    """A covariance matrix that information allows, with its error, its names and how it was computed.

    Attributes
    ----------
    matrix : array (r, r)
        For one observation, or for as many as `route` says, in the units of the named quantities.
    names : tuple of str
        What rows and columns belong to.
    route : str
        How it was computed, in words, corrections for bias included.
    errors : array (k, r, r) or None
        Independent errors carried over from a sampled information, as in `Information`; `None` where it is exact.
    num_samples : int
        Draws behind it; 0 where none were drawn.

    Examples
    --------
    >>> import fisher_jax as fj
    >>> information = fj.fisher_information(fj.families.normal, {"loc": 0.0, "scale": 2.0})
    >>> print(information.inverse().matrix.round(4))
    [[4. 0.]
     [0. 2.]]
    """

    matrix: Float[AnyArray, "*b r r"]
    names: tuple[str, ...] = field(metadata={"static": True})
    route: str = field(metadata={"static": True})
    errors: Float[AnyArray, "*b k r r"] | None = None
    num_samples: int = field(default=0, metadata={"static": True})

    @property
    def standard_error(self) -> Float[AnyArray, "*b r r"]:
        """Of each entry (r, r), zero where the route is exact."""
        return spread(self.errors, like=self.matrix, ndim=2)

    @entry_point
    def standard_errors(self, num_observations: Any = 1) -> Estimate:
        """Square roots (r,) of the diagonal divided by n, each with its own error."""
        if jnp.ndim(self.matrix) != 2:
            raise ValueError(
                f"Covariance.standard_errors: this record has a batch axis, its matrix the shape {jnp.shape(self.matrix)}. "
                "Map over it with jax.vmap."
            )
        return estimated(lambda m: jnp.sqrt(jnp.diagonal(m) / num_observations), self.matrix, self.errors, ndim=1)

    @entry_point
    def to_frame(self) -> Any:
        """The matrix as a pandas DataFrame with the names on both axes (needs the extra `frames`)."""
        return as_frame(self.matrix, self.names)

    def __str__(self) -> str:
        return as_text(f"Covariance, {self.route}", self.matrix, self.standard_error, self.names)

    def _repr_html_(self) -> str:
        return as_html(f"Covariance, {self.route}", self.matrix, self.standard_error, self.names)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.matrix, dtype=dtype, copy=copy)


def check_invertible(matrix: AnyArray, inverse: AnyArray, names: tuple[str, ...]) -> None:
    """Say why there is no inverse; under a transformation, where nothing can be raised, it is all NaN."""
    if isinstance(inverse, jax.core.Tracer) or not np.isnan(np.asarray(inverse)).any():
        return
    if not np.isfinite(np.asarray(matrix)).all():
        raise ValueError(
            "Information.inverse: the matrix is not finite. Its `diagnosis()` says what was found when it was computed."
        )
    value, direction = linalg.weak_directions(np.asarray(matrix), names)[0]
    raise ValueError(
        f"Information.inverse: the matrix is not positive definite (smallest eigenvalue {value:.3g} at unit "
        f"diagonal) along {direction}. Fix one of these parameters, or add what is known "
        "of them as another Information."
    )
