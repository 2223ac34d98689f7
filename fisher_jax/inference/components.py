"""`component_probabilities`: from which component of a mixture each observation comes, as probabilities."""

from dataclasses import dataclass

import jax
from jaxtyping import Array, Float

from fisher_jax.combinators.mixture import MixtureModel
from fisher_jax.errors import entry_point, kind_of
from fisher_jax.fitting.map_fits import check_fit, with_data
from fisher_jax.fitting.result import Fit, origin_of
from fisher_jax.models.dataset import Dataset
from fisher_jax.models.model import Model
from fisher_jax.numerics.array_namespace import AnyArray


@dataclass(frozen=True)
class _Probabilities:
    """The probabilities of one fit and its data, of which many are mapped."""

    def __call__(self, fit: Fit, model: Model, dataset: Dataset) -> Float[Array, "n k"]:
        params = fit.params
        rows = (dataset.data,) if dataset.given is None else (dataset.data, dataset.given)
        joint = jax.vmap(lambda y, *z: model.log_joint(params, y, *z))(*rows)  # type: ignore[attr-defined]
        return jax.nn.softmax(joint, axis=-1)


@entry_point
def component_probabilities(fit: Fit) -> Float[AnyArray, "*b n k"]:
    """The probability that each observation comes from each component, given its value: wₖ pₖ(yᵢ) / Σⱼ wⱼ pⱼ(yᵢ).

    Parameters
    ----------
    fit : Fit
        One or many, of a model made by `mixture`, with its data.

    Returns
    -------
    array (*b, n, K)
        At the estimate, in the order of the components; each row sums to one. NaN where an observation is impossible under every
        component. Its uncertainty from that of the parameters is not in it; `delta_method` has it of a function of params.

    Raises
    ------
    TypeError, ValueError
        If the fit is none of a mixture, or does not have its data.

    References
    ----------
    McLachlan, G. and Peel, D. (2000), Finite Mixture Models, section 1.15.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> model = fj.mixture(fj.families.normal, 2, ordered="loc", shared="scale")
    >>> fit = fj.fit(model, None, jnp.array([0.0, 0.4, -0.3, 4.0, 4.2, 3.5, 2.2]))
    >>> print(f"{fj.component_probabilities(fit)[-1, 1]:.2f}")  # that 2.2 comes from the second component
    0.98
    """
    check_fit(fit)
    model = origin_of(fit).model
    if not isinstance(model, MixtureModel):
        raise TypeError(f"fit is of a {kind_of(model)}, which has no components. Fit a model made by mixture.")
    return with_data(fit, _Probabilities())
