"""`Fit.normal_approximation`: the estimate as the mean of a normal distribution of the parameters, to draw from.

It is normal on the unconstrained scale, so that draws obey the constraints: u ~ N(û, V) with V the covariance of û. Without a prior
it stands for the sampling distribution of the estimate; with one for the posterior near its mode.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.errors import check_count, check_key, entry_point, require
from fisher_jax.models.parameters import Layout, Values


@dataclass(frozen=True, eq=False)
class NormalApproximation:
    """Parameters that are normal on the unconstrained scale, of one fit or of many. Made by `Fit.normal_approximation`.

    Attributes
    ----------
    mean : array (*b, p)
        û, the estimate on the unconstrained scale.
    covariance : array (*b, p, p)
        That of û; NaN where the fit did not converge or its information is singular.
    kind : str
        Of the covariance, as `Fit.covariance` takes it.
    """

    mean: Float[np.ndarray, "*b p"]
    covariance: Float[np.ndarray, "*b p p"]
    kind: str
    layout: Layout
    values: Values

    def __repr__(self) -> str:
        of_many = f" of {len(self.mean)} fits" if self.mean.ndim > 1 else ""
        return f"NormalApproximation{of_many} ({self.mean.shape[-1]} parameters, {self.kind} covariance)"

    @entry_point
    def sample(self, key: Array, num_draws: int) -> PyTree:
        """Draws of the parameters: like `params`, with an axis of `num_draws` first in each leaf; of many fits (B, num_draws, …).

        Parameters that were held fixed have their value in every draw. NaN where there is no covariance.
        """
        check_key(key)
        num_draws = check_count(num_draws, 1, "num_draws")
        root = jnp.asarray(_root(self.covariance), jax.dtypes.canonicalize_dtype(np.float64))
        normal = jax.random.normal(key, (*self.mean.shape[:-1], num_draws, self.mean.shape[-1]), root.dtype)
        free = self.mean[..., None, :] + jnp.einsum("...ij,...dj->...di", root, normal, precision="highest")
        batch = free.shape[:-1]
        new = self.layout.constrained_values(free.astype(self.layout.dtype), self.values)
        drawn = []
        for leaf, value, old in zip(self.layout.leaves, new, self.values, strict=True):
            if leaf.is_fixed:
                old = jnp.asarray(old)
                value = old[:, None] if self.mean.ndim > 1 else old
            drawn.append(jnp.broadcast_to(value, (*batch, *leaf.shape)))
        return self.layout.assemble(drawn)

    @entry_point
    def to_inference_data(self, key: Array, num_draws: int = 1000) -> Any:
        """Draws as ArviZ holds those of a posterior, in one chain (needs the extra `arviz`); of one fit.

        The variables have the names of the parameters; those that were held fixed are left out.
        """
        arviz = require("arviz", "arviz")
        if self.mean.ndim > 1:
            raise ValueError("these are many fits. Take one: fits[i].normal_approximation().")
        blocks = self.layout.blocks(self.sample(key, num_draws))
        posterior = {
            leaf.name or "params": np.asarray(block)[None]
            for leaf, block in zip(self.layout.leaves, blocks, strict=True)
            if not leaf.is_fixed
        }
        try:
            return arviz.from_dict(posterior=posterior)
        except TypeError:  # from version 1 on
            return arviz.from_dict({"posterior": posterior})


def _root(covariance: Float[np.ndarray, "*b p p"]) -> Float[np.ndarray, "*b p p"]:
    """A matrix R with R Rᵀ the covariance; NaN where it is not positive definite."""
    good = np.isfinite(covariance).all(axis=(-2, -1), keepdims=True)
    filled = np.where(good, covariance, np.eye(covariance.shape[-1]))
    scale = np.sqrt(np.diagonal(filled, axis1=-2, axis2=-1))
    values, vectors = np.linalg.eigh(filled / (scale[..., :, None] * scale[..., None, :]))
    positive = np.all(values > 0, axis=-1, keepdims=True)[..., None]
    with np.errstate(invalid="ignore"):
        root = scale[..., :, None] * vectors * np.sqrt(values)[..., None, :]
    return np.where(good & positive, root, np.nan)
