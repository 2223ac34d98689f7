"""`bootstrap`: how an estimate varies from sample to sample, seen by fitting replicates of the data."""

from typing import Any

import numpy as np

from fisher_jax.errors import check_choice, check_count, check_flag, check_key, entry_point, shown, warn
from fisher_jax.fitting import workers
from fisher_jax.fitting.each import check_fit
from fisher_jax.fitting.result import Fit, Origin, origin_of
from fisher_jax.inference.bootstrap_record import Bootstrap
from fisher_jax.inference.clusters import cluster_codes
from fisher_jax.inference.replicates import each_left_out, refit_drawn, refit_weighted, resampled_weights, whole_weights
from fisher_jax.inference.resampling import Scheme, of_blocks, of_units
from fisher_jax.inference.unit_influence import unit_influence

METHODS = ("nonparametric", "parametric", "block", "circular block")
ACCELERATIONS = ("infinitesimal", "jackknife")


@entry_point
def bootstrap(
    fit: Any,
    key: Any,
    num_replicates: Any = 2000,
    *,
    method: str = "nonparametric",
    clusters: Any = None,
    block_length: Any = None,
    acceleration: str = "infinitesimal",
    devices: Any = None,
    progress: bool = False,
) -> Bootstrap:
    """Fit many replicates of the data, each as `fit` would from the estimate, all in one batch.

    Parameters
    ----------
    fit : Fit
        As `fit` returned it; it must have converged.
    key : jax.random.key
        The same key gives the same replicates, whatever the number of lanes.
    num_replicates : int
        B.
    method : {"nonparametric", "parametric", "block", "circular block"}
        Observations (or clusters) drawn with replacement; data drawn from the model at the estimate by its `sample`, for the
        same covariates; or blocks of consecutive observations, for data that depend on each other, which begin anywhere
        (and go round the end, if circular). For a `dependent` model a block is one of its terms, each with its own past.
    clusters : array (n,), optional
        Which cluster each observation belongs to: whole clusters are drawn.
    block_length : int, optional
        Length of the blocks, needed by "block" and "circular block".
    acceleration : {"infinitesimal", "jackknife"}
        What BCa intervals take as the influence of each observation or cluster: the derivative of the estimate with respect
        to its weight, or what leaving it out changes, by a fit for each.
    devices, progress
        As for `fit_batch`.

    Returns
    -------
    Bootstrap
        The replicates, with standard errors, bias, covariance and intervals of parameters and of functions of them.
        Replicates whose fit failed are counted, said, and left out of these.

    Raises
    ------
    ValueError, TypeError
        If the fit did not converge or has lost its data, or the arguments do not fit together.

    Notes
    -----
    All but "parametric" keep the data as they are and draw how often each observation counts, so that only weights (B, n)
    are held, a chunk at a time. Frequency weights of the fit are taken as so many equal observations, and must be whole
    numbers.

    The nonparametric bootstrap is for independent observations or clusters, and is refused for a `dependent` model. The
    parametric one needs `sample`; that of a dependent model must draw the whole series, ``sample(key, params)``. No bootstrap
    is right where the estimate lies on the boundary of its range.

    References
    ----------
    Efron, B. and Tibshirani, R. (1993), An Introduction to the Bootstrap, eqs (6.6), (14.10), (14.14), (14.15);
    Künsch, H. (1989), Ann. Statist. 17, 1217-1241, section 2, for blocks.

    Examples
    --------
    >>> import fisher_jax as fj, jax
    >>> y = fj.families.exponential.sample
    >>> data = jax.vmap(lambda key: y(key, {"rate": 2.0}))(jax.random.split(jax.random.key(1), 40))
    >>> fit = fj.fit(fj.families.exponential, {"rate": 1.0}, data)
    >>> replicates = fj.bootstrap(fit, jax.random.key(2), 500)
    >>> replicates.params["rate"].shape, replicates.confidence_intervals(0.9, "bca")["rate"].shape
    ((500,), (2,))
    """
    check_fit(fit)
    if fit.has_batch:
        raise TypeError("takes one fit, which it makes a batch of. Take each of yours by itself, as fits[3].")
    origin = origin_of(fit)
    check_key(key)
    check_flag(progress, "progress")
    _check(fit, num_replicates, method, block_length, acceleration)
    count, settings = int(num_replicates), {"covariances": (), "devices": devices, "progress": progress}
    scheme, weights = _scheme(fit, origin, method, clusters, block_length)

    def refits() -> Fit:
        if method == "parametric":
            return refit_drawn(fit, origin, key, count, **settings)
        return refit_weighted(fit, origin, resampled_weights(scheme, weights, key, count), **settings)

    def influence_of_units() -> np.ndarray | None:
        if "block" in method or (origin.model.is_dependent and origin.dataset.weights is not None):
            return None
        known = (origin.model, fit.layout, fit.values, origin.dataset, fit.free, fit.curvature)
        return np.asarray(unit_influence(*known, scheme.unit_of, scheme.num_units, weights))

    fits, influence = workers.side_by_side(refits, influence_of_units)
    left_out = None
    if acceleration == "jackknife":
        units = each_left_out(scheme.num_units, scheme.unit_of, origin.dataset.weights, scheme.copies is not None)
        left_out = refit_weighted(fit, origin, units, **settings)
    found = Bootstrap(fit, fits, influence, scheme.copies, left_out, _described(method, clusters, block_length, scheme))
    if found.notes:
        warn(f"{' '.join(found.notes)}")
    return found


def _check(fit: Fit, num_replicates: Any, method: str, block_length: Any, acceleration: str) -> None:
    check_choice(method, METHODS, "method")
    check_choice(acceleration, ACCELERATIONS, "acceleration")
    check_count(num_replicates, 2, "num_replicates", entries=fit.num_parameters)
    if not fit.converged:
        raise ValueError(f"needs a fit that converged, for it starts each replicate there. {fit.diagnosis()}")
    fit._check("observed")
    if ("block" in method) != (block_length is not None):
        raise ValueError(
            f'block_length={shown(block_length)} with method={method!r}; give a length with "block" or "circular block", '
            "and with no other."
        )
    if "block" in method and acceleration == "jackknife":
        raise ValueError('acceleration="jackknife" leaves out observations one by one, which blocks do not allow.')


def _scheme(fit: Fit, origin: Origin, method: str, clusters: Any, block_length: Any) -> tuple[Scheme, Any]:
    """What is drawn, and the weights that multiply it."""
    model, dataset = origin
    num_terms = int(fit.num_observations) if dataset.weights is None else len(dataset.weights)
    if clusters is not None:
        if method != "nonparametric":
            raise ValueError(f'clusters are drawn by method="nonparametric", not {method!r}.')
        if np.shape(clusters) != (num_terms,):
            raise ValueError(
                f"clusters has shape {np.shape(clusters)}, expected ({num_terms},), one label for each observation."
            )
        return of_units(cluster_codes(clusters), None), dataset.weights
    if "block" in method:
        whole = isinstance(block_length, int | np.integer) and not isinstance(block_length, bool)
        if not whole or not 1 <= block_length < num_terms:
            raise ValueError(
                f"block_length={shown(block_length)} must be a whole number from 1 to {num_terms - 1}, less than the "
                "number of observations."
            )
        return of_blocks(num_terms, int(block_length), circular="circular" in method), dataset.weights
    if model.is_dependent and method == "nonparametric":
        raise ValueError(
            'the terms of a dependent model cannot be drawn one by one. Use method="block" with block_length, or '
            '"parametric" if the model can draw a series.'
        )
    copies = None if dataset.weights is None else whole_weights(dataset.weights)
    return of_units(np.arange(num_terms), copies), None


def _described(method: str, clusters: Any, block_length: Any, scheme: Scheme) -> str:
    if clusters is not None:
        return f"nonparametric, {scheme.num_units} clusters"
    return method if block_length is None else f"{method}s of {block_length}"
