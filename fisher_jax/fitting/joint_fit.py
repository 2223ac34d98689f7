"""`joint_fit`: one fit of several data sets that share parameters."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Array, PyTree

from fisher_jax.combinators.joint import joint
from fisher_jax.errors import entry_point
from fisher_jax.fitting.fit import fit
from fisher_jax.fitting.result import Fit
from fisher_jax.models.model import Model
from fisher_jax.optimizers.newton import Newton

if TYPE_CHECKING:
    import optax


@entry_point
def joint_fit(
    models: Mapping[str, Model],
    start: PyTree,
    data: Mapping[str, PyTree],
    *,
    shared: str | Sequence[str] | Mapping[str, Sequence[str]] = (),
    given: Mapping[str, PyTree] | None = None,
    weights: PyTree = None,
    missing: Literal["raise", "drop"] = "raise",
    optimizer: "optax.GradientTransformation | Newton | None" = None,
    tolerance: float | Array | None = None,
    max_steps: float | int | Array | None = None,
    starts: int | PyTree = None,
    key: Array | None = None,
) -> Fit:
    """Fit several data sets, with a model and a number of rows each, that share parameters: ``fit(joint(models, shared), …)``.

    Parameters
    ----------
    models : dictionary of models
        The model of each data set.
    start : pytree, or None
        The shared parameters, and under the name of each part its own: ``{"mu": …, "a": {…}, "b": {…}}``. None takes the models'
        `initial`; a shared parameter then starts at the mean of its starts, weighted by the numbers of rows.
    data : dictionary
        The observations of each part, as `fit` takes them.
    shared : str, sequence of str, or dictionary
        Parameters that all parts have in common; or each with the parts that take it, ``{"mu": ("a", "b")}``.
    given, weights : dictionary, optional
        Covariates and frequency weights of the parts that have them. Weights may also be one array, of one part after the other.
    missing, optimizer, tolerance, max_steps, starts, key
        As for `fit`.

    Returns
    -------
    Fit
        With everything that a `Fit` offers; see `joint` for what holds of several data sets. The report has the number of rows of
        each.

    Raises
    ------
    ValueError, TypeError
        If the parts of the arguments do not fit together, or a start lies outside its constraint.

    Examples
    --------
    A signal in one channel over a background that another measures, with a common rate of background:

    >>> import fisher_jax as fj, jax.numpy as jnp
    >>> from jax.scipy.stats import poisson
    >>> channel = fj.Model(
    ...     lambda p, y: poisson.logpmf(y, p["background"] + p["signal"]), constraints={"background": (0, None)}
    ... )
    >>> control = fj.Model(lambda p, y: poisson.logpmf(y, p["background"]), constraints={"background": (0, None)})
    >>> fit = fj.joint_fit(
    ...     {"channel": channel, "control": control},
    ...     {"background": 5.0, "channel": {"signal": 1.0}},
    ...     {"channel": [9.0, 12.0], "control": [4.0, 6.0, 5.0, 5.0]},
    ...     shared="background",
    ... )
    >>> print(f"{fit.params['channel']['signal']:.2f} ± {fit.standard_errors()['channel']['signal']:.2f}")
    5.50 ± 2.55
    """
    options: dict[str, Any] = {"missing": missing, "optimizer": optimizer, "tolerance": tolerance}
    options |= {"max_steps": max_steps, "starts": starts, "key": key}
    return fit(joint(models, shared), start, data, given=given, weights=weights, **options)
