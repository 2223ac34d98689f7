"""An auxiliary measurement: a term of the log-likelihood that counts once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm, poisson, uniform

import fisher_jax as fj

ERROR = 0.3  # of the measurement of nu
Y = np.random.default_rng(0).normal(3.0, 1.0, size=50)
START = {"mu": 0.0, "nu": 0.0}


def log_density(params, y):
    return norm.logpdf(y, params["mu"] + params["nu"], 1.0)


def draw(key, params):
    return params["mu"] + params["nu"] + jax.random.normal(key)


def measurement(params, measured):
    return norm.logpdf(measured, params["nu"], ERROR)


def draw_measurement(key, params):
    return params["nu"] + ERROR * jax.random.normal(key)


SHIFTED = fj.with_auxiliary(fj.Model(log_density, sample=draw), measurement, sample=draw_measurement)


@functools.cache
def fitted():
    return fj.fit(SHIFTED, START, (Y, 0.7))


@functools.cache
def batch():
    rng = np.random.default_rng(1)
    data = rng.normal(3.0, 1.0, size=(4, 50)), np.linspace(0.5, 1.0, 4)
    return fj.fit_batch(SHIFTED, START, data, covariances=("observed", "sandwich"))


def covariance(variance_of_mean):
    """Of mu = mean of y − m and nu = m."""
    return np.array([[variance_of_mean + ERROR**2, -(ERROR**2)], [-(ERROR**2), ERROR**2]])


def test_two_normals_have_the_covariance_of_their_difference():
    fit = fitted()
    assert fit.converged
    np.testing.assert_allclose([fit.params["mu"], fit.params["nu"]], [Y.mean() - 0.7, 0.7], rtol=1e-12)
    np.testing.assert_allclose(fit.covariance(), covariance(1 / 50), rtol=1e-12)


def test_the_log_likelihood_has_the_term_once_and_n_is_that_of_the_observations():
    fit, rows = fitted(), np.sum(norm.logpdf(Y, Y.mean(), 1.0))
    expected = rows + norm.logpdf(0.7, 0.7, ERROR)
    np.testing.assert_allclose(fit.log_likelihood, expected, rtol=1e-12)
    np.testing.assert_allclose(fj.log_likelihood(SHIFTED, fit.params, (Y, 0.7)), expected, rtol=1e-12)
    assert fit.num_observations == 50
    np.testing.assert_allclose(fit.bic(), 2 * np.log(50) - 2 * expected, rtol=1e-12)


@pytest.mark.parametrize("of", ["fit", "robust", "batch"])
def test_the_sandwich_takes_the_rows_as_they_vary_and_the_measurement_as_its_model_says(of):
    # The score of the measurement is zero at the estimate: its square says nothing of its variance.
    if of == "batch":
        y, found = batch().origin.dataset.data.observations[2], batch().covariance("sandwich")[2]
    else:
        y, found = Y, fitted().covariance("sandwich") if of == "fit" else fj.robust(fitted()).covariance()
    np.testing.assert_allclose(found, covariance(np.var(y) / 50), rtol=1e-10)


def test_clusters_are_those_of_the_observations():
    clusters = np.arange(50) // 5
    sums = (Y - Y.mean()).reshape(10, 5).sum(axis=1)
    found = fj.robust(fitted(), clusters=clusters, correction="none").covariance()
    np.testing.assert_allclose(found, covariance(np.sum(sums**2) / 50**2), rtol=1e-10)


def test_a_batch_is_its_fits_each_with_its_own_measurement():
    fits = batch()
    assert fits.engine == "host"
    for k in range(len(fits)):
        y, measured = (leaf[k] for leaf in fits.origin.dataset.data)
        one = fj.fit(SHIFTED, START, (y, measured[0]))
        np.testing.assert_allclose(fits.params["mu"][k], one.params["mu"], rtol=1e-10)
        np.testing.assert_allclose(fits.log_likelihood[k], one.log_likelihood, rtol=1e-12)
        np.testing.assert_allclose(fits.covariance()[k], one.covariance(), rtol=1e-10)


@pytest.mark.exhaustive
def test_many_rows_take_the_term_along():
    many = fj.fit(SHIFTED, START, (np.tile(Y, 400), 0.7))
    assert many.engine == "rows"
    np.testing.assert_allclose([many.params["mu"], many.params["nu"]], [Y.mean() - 0.7, 0.7], rtol=1e-10)
    np.testing.assert_allclose(many.covariance(), covariance(1 / 20_000), rtol=1e-10)
    np.testing.assert_allclose(many.covariance("sandwich"), covariance(np.var(Y) / 20_000), rtol=1e-9)
    rows = 400 * np.sum(norm.logpdf(Y, Y.mean(), 1.0))
    np.testing.assert_allclose(many.log_likelihood, rows + norm.logpdf(0.7, 0.7, ERROR), rtol=1e-12)


def test_a_measurement_may_be_shared_and_data_sets_of_different_lengths_have_their_own():
    y = batch().origin.dataset.data.observations
    shared = fj.fit_batch(SHIFTED, START, (y, 0.6), data_axis=(0, None))
    np.testing.assert_allclose(shared.params["nu"], 0.6, rtol=1e-12)
    ragged = fj.fit_batch(SHIFTED, START, [(y[0], 0.5), (y[1, :40], 0.6)])
    np.testing.assert_allclose(ragged.params["mu"], [y[0].mean() - 0.5, y[1, :40].mean() - 0.6])
    np.testing.assert_array_equal(ragged.num_observations, [50, 40])


def test_weights_are_those_of_the_observations_and_leave_the_term_alone():
    weights = np.arange(50) % 3
    weighted = fj.fit(SHIFTED, START, (Y, 0.7), weights=weights)
    repeated = fj.fit(SHIFTED, START, (np.repeat(Y, weights), 0.7))
    np.testing.assert_allclose(weighted.log_likelihood, repeated.log_likelihood, rtol=1e-12)
    for kind in ("observed", "sandwich"):
        np.testing.assert_allclose(weighted.covariance(kind), repeated.covariance(kind), rtol=1e-10)


@pytest.mark.parametrize("method", ["nonparametric", "parametric"])
def test_the_bootstrap_draws_the_measurement_anew(method):
    replicates = fj.bootstrap(fitted(), jax.random.key(0), 1000, method=method)
    expected = covariance((np.var(Y) if method == "nonparametric" else 1.0) / 50)
    # A variance over 1000 replicates has a relative error of √(2/1000) = 0.045.
    np.testing.assert_allclose(np.diag(replicates.covariance()), np.diag(expected), rtol=0.18)
    with pytest.raises(ValueError, match="which blocks and data with an auxiliary measurement do not have"):
        replicates.confidence_intervals(0.9, "bca")


def test_tests_take_the_term_along():
    # Everything is normal, so that the three tests agree.
    expected = (Y.mean() - 0.7 - 2.0) ** 2 / (1 / 50 + ERROR**2)
    np.testing.assert_allclose(fj.wald_test(fitted(), "mu = 2").statistic, expected, rtol=1e-10)
    np.testing.assert_allclose(fj.likelihood_ratio_test(fitted(), "mu = 2").statistic, expected, rtol=1e-9)
    null = fj.with_auxiliary(fj.Model(log_density, constraints={"mu": fj.fixed}), measurement)
    null_fit = fj.fit(null, {"mu": 2.0, "nu": 0.0}, (Y, 0.7))
    np.testing.assert_allclose(fj.score_test(null_fit, "mu = 2").statistic, expected, rtol=1e-9)


@pytest.mark.exhaustive
def test_a_restriction_between_parameters_keeps_the_term():
    tied = fj.likelihood_ratio_test(fitted(), "mu = 2 nu")
    np.testing.assert_allclose(tied.statistic, fj.wald_test(fitted(), "mu = 2 nu").statistic, rtol=1e-8)


@pytest.mark.exhaustive
def test_the_estimate_is_differentiable_by_the_measurement():
    def mu(measured):
        return fj.fit(SHIFTED, START, (jnp.asarray(Y), measured)).params["mu"]

    np.testing.assert_allclose(jax.grad(mu)(0.7), -1.0, rtol=1e-8)


def mass_log_density(params, y):
    signal, background = params["signal"], params["background"]
    peak = jnp.exp(norm.logpdf(y, 5.0 + params["shift"], 0.5))
    flat = jnp.exp(uniform.logpdf(y, 0.0, 10.0))
    return jnp.log((signal * peak + background * flat) / (signal + background))


def mass_terms(params, measured):
    events = poisson.logpmf(measured["events"], params["signal"] + params["background"])
    return events + norm.logpdf(measured["shift"], params["shift"], 0.08)


def test_an_extended_likelihood_with_a_constrained_nuisance_is_that_of_iminuit():
    """iminuit 2.33.0, Migrad, Hesse and Minos with strategy 2 on −log L = s + b − Σ log(s N(y) + b/10) − log N(0.05; shift, 0.08).

    The covariance is that of Newton's method on the same function in float64, with which Hesse's agrees to 1e-5.
    """
    k = np.arange(60)
    y = np.concatenate([5.0 + 0.5 * np.sin(1.7 * k[:40] ** 2), 10.0 * ((k * 0.618033988749895) % 1.0)])
    bounds = {"signal": (0, None), "background": (0, None)}
    model = fj.with_auxiliary(fj.Model(mass_log_density, constraints=bounds), mass_terms)
    measured = {"events": len(y), "shift": 0.05}
    fit = fj.fit(model, {"signal": 30.0, "background": 60.0, "shift": 0.0}, (y, measured), tolerance=1e-10)
    order = [fit.names.index(name) for name in ("signal", "background", "shift")]
    estimates = np.array([float(fit.params[name]) for name in ("signal", "background", "shift")])
    np.testing.assert_allclose(estimates, [43.67049005781646, 56.32955164761178, 0.03322782357310886], rtol=1e-6)
    by_newton = [
        [58.05834169004398, -14.387875033707632, -0.0004299324084458755],
        [-14.387875033707632, 70.71740837737127, 0.000429932408445879],
        [-0.0004299324084458755, 0.000429932408445879, 0.003642741860920038],
    ]
    np.testing.assert_allclose(fit.covariance()[np.ix_(order, order)], by_newton, rtol=1e-8)
    one_sigma = 0.6826894921370859
    profile = fj.profile_likelihood(fit, ["signal", "shift"], level=one_sigma)
    assert profile.names == ("signal", "shift")
    minos = [[-7.297721161731136, 7.950974865894447], [-0.060354108579286664, 0.06039887245199623]]
    np.testing.assert_allclose(profile.interval - profile.estimate[:, None], minos, rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: fj.fit(SHIFTED, START, Y),
            TypeError,
            r"data is an array of shape \(50,\); a model with an auxiliary measurement",
        ),
        (
            lambda: fj.fit(SHIFTED, START, (0.7, Y)),
            ValueError,
            r"the observations in data have shape \(\); expected an axis",
        ),
        (lambda: fj.fit(SHIFTED, START, (Y, "0.7")), TypeError, "data measured: .*numbers are expected|data measured"),
        (
            lambda: fj.fit_batch(SHIFTED, START, (np.stack([Y, Y]), 0.7)),
            ValueError,
            "shared? has axis None|all share has axis None",
        ),
        (
            lambda: fj.fit_batch(SHIFTED, START, (np.stack([Y, Y]), np.ones(3))),
            ValueError,
            "number of data sets differs",
        ),
        (
            lambda: fj.fit(fj.with_auxiliary(log_density, lambda params, m: m - params["nu"]), START, (Y, np.ones(2))),
            ValueError,
            r"the log-density of the auxiliary measurement must return one floating number, but returned shape \(2,\)",
        ),
        (
            lambda: fj.fit(fj.with_auxiliary(log_density, lambda params: 0.0), START, (Y, 0.7)),
            TypeError,
            "the log-density of the auxiliary measurement takes .params., but is called as",
        ),
        (lambda: fj.with_auxiliary(SHIFTED, measurement), ValueError, "has an auxiliary measurement already"),
        (lambda: fj.with_auxiliary(fj.dependent(log_density), measurement), ValueError, "the model is dependent"),
        (
            lambda: fj.with_auxiliary(log_density, 3.0),
            TypeError,
            "with_auxiliary: log_density must be a function of params and",
        ),
        (
            lambda: fj.bootstrap(
                fj.fit(fj.with_auxiliary(log_density, measurement), START, (Y, 0.7)), jax.random.key(0), 20
            ),
            ValueError,
            "the auxiliary measurement must be drawn anew for each replicate",
        ),
        (
            lambda: fj.bootstrap(fitted(), jax.random.key(0), 20, acceleration="jackknife"),
            ValueError,
            "leaves out observations, and the auxiliary measurement is none",
        ),
        (
            lambda: fj.fisher_information(SHIFTED, START),
            ValueError,
            "the model has an auxiliary measurement, which counts once",
        ),
        (
            lambda: fj.information_operator(SHIFTED, START, data=(Y, 0.7), kind="observed"),
            ValueError,
            "which counts once, and a sum over",
        ),
        (
            lambda: fj.fit_batch(SHIFTED, START, batch().origin.dataset.data, engine="kernel"),
            ValueError,
            'engine="kernel" is for models without an auxiliary measurement',
        ),
    ],
)
def test_misuse_of_an_auxiliary_measurement_says_what_to_do(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_fit_whose_measurement_is_not_finite_says_that_it_is_the_measurement():
    fit = fj.fit(SHIFTED, START, (Y, np.nan))
    assert fit.status == fj.Status.BAD_START
    assert "first at the auxiliary measurement" in fit.diagnosis()
    assert not fj.fit_batch(SHIFTED, START, (np.stack([Y, Y]), np.array([0.7, np.nan]))).converged[1]


def test_errors_do_not_depend_on_the_constraint_where_rows_and_measurement_disagree():
    y, measured = jnp.array([2.0, 3.0, 4.0, 3.0]), 0.8  # the slope of the term at the estimate is not zero
    kinds = ("sandwich", "empirical")

    def model(constraints):
        rows = fj.Model(lambda p, y: norm.logpdf(y, p["mean"], 1.0), constraints=constraints)
        return fj.with_auxiliary(rows, lambda p, measured: norm.logpdf(measured, p["mean"], 0.5))

    plain, positive = model(None), model({"mean": fj.positive})
    settings = {"data_axis": (0, None), "covariances": kinds}
    many = fj.fit_batch(positive, {"mean": 1.0}, (jnp.stack([y, y]), measured), **settings)
    fits = [*(fj.fit(each, {"mean": 1.0}, (y, measured)) for each in (plain, positive)), *many]
    # Σ (yᵢ − θ̂)² + 4, with θ̂ = 1.9, by the sum of both informations, 8
    meat = float(jnp.sum((y - 1.9) ** 2)) + 4.0
    for kind, expected in zip(kinds, (np.sqrt(meat) / 8.0, 1.0 / np.sqrt(meat)), strict=True):
        np.testing.assert_allclose([fit.standard_errors(kind)["mean"] for fit in fits], expected, rtol=1e-6)
