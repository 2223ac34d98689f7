"""Residuals and goodness of fit: closed forms, scipy and statsmodels; published critical values; size, power; errors; figures."""

import functools
import warnings
from dataclasses import replace

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
import scipy.special
import scipy.stats as st
import statsmodels.api as sm
from families_registry import FAMILIES
from helpers import some_of
from jax.scipy.stats import norm

import fisher_jax as fj
from fisher_jax.checking import distances
from fisher_jax.checking.frequencies import bins_of, frequencies
from fisher_jax.checking.integral_transform import Transform, integral_transform
from fisher_jax.checking.variances import UNIT_DEVIANCES, VARIANCES
from fisher_jax.fitting.result import Origin

mpl.use("Agg")
import matplotlib.pyplot as plt

KEY = jax.random.key(5)
RNG = np.random.default_rng(3)
N = 50
WEIBULL = RNG.weibull(1.7, (200, N))
LOGNORMAL = RNG.lognormal(0.0, 1.0, (200, N))
X = np.linspace(0.0, 1.0, 40)
COUNTS = RNG.poisson(np.exp(0.3 + 1.2 * X)).astype(float)


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


@pytest.fixture
def rng():
    """The same numbers in a test whatever tests ran before it."""
    return np.random.default_rng(11)


def geometric_log_survival(params, y):
    return jnp.maximum(jnp.floor(y) + 1.0, 0.0) * jnp.log1p(-params["p"])


# Failures before the first success: in scipy nbinom(1, p). Closed forms compile in no time.
GEOMETRIC = fj.Model(
    lambda params, y: jnp.log(params["p"]) + y * jnp.log1p(-params["p"]),
    sample=lambda key, params: jnp.floor(-jax.random.exponential(key) / jnp.log1p(-params["p"])),
    constraints={"p": (0, 1)},
    mean=lambda params: 1 / params["p"] - 1,
    log_cdf=lambda params, y: jnp.where(y < 0, -jnp.inf, jnp.log(-jnp.expm1(geometric_log_survival(params, y)))),
    log_survival=geometric_log_survival,
    discrete=True,
)
NORMAL = fj.Model(
    fj.families.normal.log_density,
    sample=fj.families.normal.sample,
    constraints={"scale": fj.positive},
    initial=fj.families.normal.initial,
    log_cdf=lambda p, y: norm.logcdf(y, p["loc"], p["scale"]),
    log_survival=lambda p, y: norm.logsf(y, p["loc"], p["scale"]),
)


@functools.cache
def counts():
    return fj.fit(GEOMETRIC, {"p": 0.5}, COUNTS)


@functools.cache
def durations():
    return fj.fit_batch(fj.families.weibull, None, WEIBULL)


# --- residuals ----------------------------------------------------------------------------------------------------------


def test_quantile_residuals_of_a_normal_sample_are_standardized_values_however_far(rng):
    y = np.append(rng.normal(size=30), [40.0, -40.0])
    tails = {"log_cdf": NORMAL.log_cdf, "log_survival": NORMAL.log_survival}
    known = fj.Model(NORMAL.log_density, constraints={"scale": fj.fixed}, **tails)
    fit = fj.fit(known, {"loc": 0.0, "scale": 1.0}, y)
    found = fj.residuals(fit)
    np.testing.assert_allclose(found.values, y - fit.params["loc"], rtol=1e-12)
    assert not found.is_randomized
    assert found.values.max() > 38.0
    assert "standard normal" in str(found)


def test_quantile_residuals_of_counts_lie_between_those_of_both_sides_of_the_jump():
    found, other = (fj.residuals(counts(), key=jax.random.key(k)).values for k in (0, 1))
    law = st.nbinom(1, float(counts().params["p"]))
    low, high = st.norm.ppf(law.cdf(COUNTS - 1)), st.norm.ppf(law.cdf(COUNTS))
    assert np.all((low < found) & (found < high) & (low < other) & (other < high))
    assert np.all(found != other)
    np.testing.assert_array_equal(found, fj.residuals(counts(), key=jax.random.key(0)).values)
    with pytest.raises(
        ValueError, match=r"residuals: quantile residuals of counts are drawn\. Give key=jax\.random\.key\(0\)"
    ):
        fj.residuals(counts())


def test_the_upper_tail_of_a_count_has_all_digits():
    """P(Y > y) = (1 − p)^{y + 1} far beyond where the distribution function rounds to one."""
    fit = fj.fit(GEOMETRIC, {"p": 0.5}, np.append(np.repeat([0.0, 1.0, 2.0], 200), 300.0))
    slope = np.log1p(-float(fit.params["p"]))
    transform = integral_transform(fit)
    np.testing.assert_allclose(transform.log_above_high[[0, -1]], slope * np.array([1.0, 301.0]), rtol=1e-12)
    np.testing.assert_allclose(transform.log_above_low[[0, -1]], slope * np.array([0.0, 300.0]), rtol=1e-12, atol=1e-14)
    assert fj.residuals(fit, key=KEY).values[-1] > 15.0


def test_a_quantile_function_serves_where_there_is_no_distribution_function():
    fit = durations()[0]
    assert fit.origin.model.quantile is not None
    bare = fj.Model(
        fj.families.weibull.log_density,
        quantile=fj.families.weibull.quantile,
        constraints=fj.families.weibull.constraints,
    )
    other = replace(fit, origin=Origin(bare, fit.origin.dataset))
    shape, scale = (float(fit.params[name]) for name in ("shape", "scale"))
    expected = st.norm.ppf(st.weibull_min.cdf(WEIBULL[0], shape, scale=scale))
    np.testing.assert_allclose(fj.residuals(fit).values, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(fj.residuals(other).values, expected, rtol=1e-6, atol=1e-7)


def test_residuals_of_many_fits_are_those_of_each():
    fits = durations()[:3]
    found = fj.residuals(fits)
    assert found.values.shape == (3, N)
    np.testing.assert_allclose(found.values[2], fj.residuals(fits[2]).values, rtol=1e-12)
    assert found.to_frame().shape[0] == 3 * N
    with pytest.raises(ValueError, match="needs the quantile residuals of one fit"):
        found.quantile_comparison()
    many = fj.fit_batch(GEOMETRIC, {"p": 0.5}, np.stack([COUNTS, COUNTS[::-1]]))
    drawn = fj.residuals(many, key=KEY)
    np.testing.assert_array_equal(drawn.values[1], fj.residuals(many[1], key=jax.random.fold_in(KEY, 1)).values)


def survival(params, y):
    return -params["rate"] * y


def of_event(params, y):
    return jnp.where(y["event"] == 1, jnp.log(params["rate"]), 0.0) - params["rate"] * y["time"]


def of_interval(params, y):
    width = y["high"] - y["low"]
    bounded = (width > 0) & (width < jnp.inf)
    inside = jnp.log(-jnp.expm1(-params["rate"] * jnp.where(bounded, width, 1.0)))
    at_value = jnp.where(width == 0, jnp.log(params["rate"]), 0.0)
    return jnp.where(bounded, inside, at_value) - params["rate"] * y["low"]


EXACT = {"time": of_event, "low": of_interval}


def test_residuals_of_censored_observations_lie_in_what_is_known_of_them():
    times, events = np.array([0.5, 1.0, 2.0, 0.2]), np.array([1.0, 0.0, 1.0, 0.0])
    forms = {
        "time": {"time": times, "event": events},
        "low": {"low": times, "high": np.where(events == 1, times, [0.0, np.inf, 0.0, 0.9])},
    }
    for form, data in forms.items():
        model = fj.Model(EXACT[form], constraints={"rate": fj.positive}, log_survival=survival)
        fit = fj.fit(model, {"rate": 1.0}, data)
        found, u = fj.residuals(fit, key=KEY), st.expon.cdf(times * float(fit.params["rate"]))
        assert found.is_randomized
        np.testing.assert_allclose(found.values[events == 1], st.norm.ppf(u[events == 1]), rtol=1e-9)
        assert np.all(found.values[events == 0] > st.norm.ppf(u[events == 0]))
    assert found.values[3] < st.norm.ppf(st.expon.cdf(0.9 * float(fit.params["rate"])))
    with pytest.raises(ValueError, match="observations that are known to lie in an interval only are drawn"):
        fj.residuals(fit)


class Limited(fj.Model):
    """Durations that are recorded up to 1.5."""

    def known_interval(self, params, y, *z):
        return y, jnp.where(y >= 1.5, jnp.inf, y)


def test_a_value_at_a_limit_of_measurement_stands_for_all_beyond():
    def log_density(params, y):
        return jnp.where(y < 1.5, jnp.log(params["rate"]), 0.0) - params["rate"] * y

    model = Limited(log_density, constraints={"rate": fj.positive}, log_survival=survival)
    fit = fj.fit(model, {"rate": 1.0}, np.array([0.5, 1.5, 0.2, 1.5]))
    transform, rate = integral_transform(fit), float(fit.params["rate"])
    np.testing.assert_allclose(transform.log_above_low, -rate * np.array([0.5, 1.5, 0.2, 1.5]), rtol=1e-12)
    np.testing.assert_array_equal(transform.log_above_high[[1, 3]], -np.inf)
    np.testing.assert_array_equal(transform.is_wide, [False, True, False, True])


class WithAtom(fj.Model):
    atoms = (0.0,)


def test_an_atom_of_a_continuous_model_is_a_jump():
    def log_density(params, y):
        return jnp.where(y == 0, jnp.log(params["p"]), jnp.log1p(-params["p"]) - y)

    model = WithAtom(log_density, constraints={"p": (0, 1)}, log_survival=lambda p, y: jnp.log1p(-p["p"]) - y)
    fit = fj.fit(model, {"p": 0.5}, np.array([0.0, 1.0, 0.0, 2.0]))
    transform = integral_transform(fit)
    np.testing.assert_allclose(
        np.exp(transform.log_low), [0.0, 1 - 0.5 * np.exp(-1), 0.0, 1 - 0.5 * np.exp(-2)], atol=1e-15
    )
    np.testing.assert_array_equal(transform.is_wide, [True, False, True, False])


def series(params, y):
    return norm.logpdf(y[1:], params["phi"] * y[:-1], 1.0)


def test_residuals_of_a_series_are_one_step_ahead(rng):
    y = rng.normal(size=40).cumsum()
    model = fj.dependent(series, log_cdf=lambda p, y: norm.logcdf(y[1:], p["phi"] * y[:-1], 1.0))
    fit = fj.fit(model, {"phi": 0.5}, y)
    np.testing.assert_allclose(fj.residuals(fit).values, y[1:] - fit.params["phi"] * y[:-1], rtol=1e-8)
    np.testing.assert_allclose(fj.quantile_comparison(fit).observed, np.sort(fj.residuals(fit).values), rtol=1e-6)
    with pytest.raises(ValueError, match=r"no conditional distribution function\. Give dependent\(…, log_cdf="):
        fj.residuals(fj.fit(fj.dependent(series), {"phi": 0.5}, y))
    wrong = fj.dependent(series, log_cdf=lambda p, y: norm.logcdf(y, 0.0, 1.0))
    with pytest.raises(ValueError, match=r"a value for each term, of shape \(39,\)"):
        fj.residuals(fj.fit(wrong, {"phi": 0.5}, y))


def mean_of(beta, z):
    return jnp.exp(beta[0] + beta[1] * z)


GLM = {
    "poisson": (lambda b, z: {"rate": mean_of(b, z)}, sm.families.Poisson(), 1.0),
    "gamma": (lambda b, z: {"shape": 2.5, "rate": 2.5 / mean_of(b, z)}, sm.families.Gamma(), 1 / 2.5),
    "negative_binomial": (
        lambda b, z: {"mean": mean_of(b, z), "size": 2.0},
        sm.families.NegativeBinomial(alpha=0.5),
        1.0,
    ),
    "binomial": (
        lambda b, z: {"logit": b[0] + b[1] * z, "trials": 12.0},
        sm.families.Binomial(),
        1.0 / 12,
    ),
}


@pytest.mark.parametrize("name", some_of(list(GLM), "poisson", "binomial"))
def test_deviance_and_pearson_residuals_are_those_of_statsmodels(name):
    predictor, family, scale = GLM[name]
    y = np.minimum(COUNTS + (name == "gamma"), 11.0)
    fit = fj.fit(fj.linked(getattr(fj.families, name), predictor), jnp.array([0.1, 0.2]), y, given=X)
    response = fj.residuals(fit, kind="response")
    mean, unit = response.fitted, 12.0 if name == "binomial" else 1.0
    np.testing.assert_allclose(response.values, y - mean, rtol=1e-12, atol=1e-12)
    deviance, pearson = (fj.residuals(fit, kind=kind).values for kind in ("deviance", "pearson"))
    expected = family.resid_dev(y / unit, mean / unit, scale=1.0) / scale**0.5
    np.testing.assert_allclose(deviance, expected, rtol=1e-7, atol=1e-7)
    standard = (y - mean) / unit / np.sqrt(family.variance(mean / unit) * scale)
    np.testing.assert_allclose(pearson, standard, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in VARIANCES if FAMILIES[name].scipy])
def test_variances_are_those_of_scipy(name):
    family = FAMILIES[name]
    for params in family.points:
        law, params = family.scipy(params), {name: jnp.asarray(value) for name, value in params.items()}
        np.testing.assert_allclose(
            VARIANCES[name](params, jnp.asarray(family.model.mean(params))), law.var(), rtol=1e-6
        )


@pytest.mark.parametrize("name", list(UNIT_DEVIANCES))
def test_unit_deviances_are_twice_the_distance_to_the_saturated_model(name):
    family = getattr(fj.families, name)
    of_mean = {
        "bernoulli": lambda m: {"logit": np.log(m / (1 - m))},
        "binomial": lambda m: {"logit": np.log(m / (9 - m)), "trials": 9.0},
        "exponential": lambda m: {"rate": 1 / m},
        "gamma": lambda m: {"shape": 2.5, "rate": 2.5 / m},
        "geometric": lambda m: {"probability": 1 / m},
        "inverse_gaussian": lambda m: {"mean": m, "shape": 2.0},
        "negative_binomial": lambda m: {"mean": m, "size": 1.5},
        "normal": lambda m: {"loc": m, "scale": 1.5},
        "poisson": lambda m: {"rate": m},
    }[name]
    mean, y = (0.3, 1.0) if name == "bernoulli" else (2.6, 4.0)
    saturated = 0.0 if name == "bernoulli" else family.log_density(of_mean(y), y)
    expected = 2 * (saturated - family.log_density(of_mean(mean), y))
    np.testing.assert_allclose(
        UNIT_DEVIANCES[name](of_mean(mean), jnp.asarray(mean), jnp.asarray(y)), expected, rtol=1e-9
    )


def test_residuals_of_the_right_model_are_standard_normal_and_of_the_wrong_one_not(rng):
    """Poisson counts have less variance than geometric ones: with n = 400 a test at 1 % finds it in every one of 20 samples."""
    p_values = {}
    for name, law in (("right", st.nbinom(1, 0.3)), ("wrong", st.poisson(7 / 3))):
        fits = fj.fit_batch(GEOMETRIC, {"p": 0.5}, law.rvs((20, 400), random_state=rng).astype(float))
        values = fj.residuals(fits, key=KEY).values
        p_values[name] = np.array([st.kstest(row, "norm").pvalue for row in values])
    assert np.mean(p_values["right"] < 0.1) <= 0.25
    assert np.all(p_values["wrong"] < 0.01)


def test_rows_of_weight_zero_have_no_residual_and_others_count_in_the_moments():
    weights = np.ones(N)
    weights[0], weights[1] = 0.0, 3.0
    found = fj.residuals(fj.fit(fj.families.exponential, None, WEIBULL[0], weights=weights))
    assert np.isnan(found.values[0])
    rows = np.append(found.values[1:], [found.values[1]] * 2)
    np.testing.assert_allclose(found.moments()["standard deviation"], rows.std(ddof=1))
    np.testing.assert_allclose(found.moments()["kurtosis"], st.kurtosis(rows, fisher=False))
    np.testing.assert_array_equal(found.quantile_comparison().observed, np.sort(rows))
    assert "Observations  51" in str(found)
    _, means, errors = found.means_of_groups(np.arange(N))  # whose first group holds rows 1 to 7
    np.testing.assert_allclose(
        [means[0], errors[0]], [np.mean(rows[[0, 0, 0, *range(1, 7)]]), st.sem(rows[[0, 0, 0, *range(1, 7)]])]
    )
    drawn = fj.residuals(fj.fit(GEOMETRIC, {"p": 0.5}, COUNTS, weights=np.repeat([1.0, 2.0], 20)), key=KEY)
    with pytest.raises(ValueError, match="each of which has a drawn residual of its own"):
        drawn.quantile_comparison()


def test_deviance_residuals_of_large_counts_have_their_digits_in_single_precision():
    """y log(y/μ) and y − μ cancel: written out, their difference is off by one at a million in float32."""
    y, mean = np.float32([1_001_000, 999_500, 1_000_000]), np.full(3, 1_000_000, np.float32)
    found = UNIT_DEVIANCES["poisson"]({}, jnp.asarray(mean), jnp.asarray(y))
    distance = y.astype(float) - mean
    exact = 2 * (y.astype(float) * np.log1p(distance / mean) - distance)
    np.testing.assert_allclose(found, exact, rtol=1e-2, atol=1e-3)


# --- distances ------------------------------------------------------------------------------------------------------------


def points(u):
    return Transform(np.log(u), np.log(u), np.log1p(-u), np.log1p(-u))


def test_distances_of_points_are_those_of_scipy_and_of_the_general_form(rng):
    u = rng.uniform(size=(3, 40)) ** 1.3
    found = [distance(points(u)) for distance in (distances.kolmogorov_smirnov, distances.cramer_von_mises)]
    np.testing.assert_allclose(found[0], [st.kstest(row, "uniform").statistic for row in u], rtol=1e-12)
    np.testing.assert_allclose(found[1], [st.cramervonmises(row, "uniform").statistic for row in u], rtol=1e-12)
    i, s = np.arange(1, 41), np.sort(u)
    anderson = -40 - np.mean((2 * i - 1) * (np.log(s) + np.log1p(-s[:, ::-1])), axis=1)
    np.testing.assert_allclose(distances.anderson_darling(points(u)), anderson, rtol=1e-12)
    general = distances._Deviations(points(u))
    np.testing.assert_allclose([general.greatest(), general.integral()], found, rtol=1e-10)
    np.testing.assert_allclose(general.weighted_integral(), anderson, rtol=1e-10)


def test_distances_of_counts_are_those_of_their_integrals(rng):
    y, rate = rng.poisson(2.0, (2, 30)), 2.3
    y[0, 0] = 14  # far in the tail
    with np.errstate(divide="ignore"):
        transform = Transform(
            st.poisson.logcdf(y - 1, rate),
            st.poisson.logcdf(y, rate),
            st.poisson.logsf(y - 1, rate),
            st.poisson.logsf(y, rate),
        )
    logits = np.linspace(-35.0, 35.0, 700_001)
    grid = scipy.special.expit(logits)
    low, high = st.poisson.cdf(y - 1, rate), st.poisson.cdf(y, rate)
    for k in range(2):
        ends = np.unique(np.append(low[k], high[k]))
        mean = np.mean(np.clip((ends[:, None] - low[k]) / (high[k] - low[k]), 0, 1), axis=1)
        deviation = np.interp(grid, np.concatenate([[0], ends, [1]]), np.concatenate([[0], mean, [1]])) - grid
        squares = 30 * deviation**2  # the integrals over logit u, since du = u (1 − u) d logit u
        integral, weighted = np.trapezoid(squares * grid * (1 - grid), logits), np.trapezoid(squares, logits)
        np.testing.assert_allclose(distances.cramer_von_mises(transform)[k], integral, rtol=1e-6)
        np.testing.assert_allclose(distances.anderson_darling(transform)[k], weighted, rtol=1e-6)
        values = np.arange(20)
        classical = np.abs(np.mean(y[k][:, None] <= values, axis=0) - st.poisson.cdf(values, rate)).max()
        np.testing.assert_allclose(distances.kolmogorov_smirnov(transform)[k], classical, rtol=1e-9)
        inside = np.diff(
            np.interp([0, 0.25, 0.5, 0.75, 1], np.concatenate([[0], ends, [1]]), np.concatenate([[0], mean, [1]]))
        )
        np.testing.assert_allclose(distances.counts_in_bins(transform, 4)[k], 30 * inside, rtol=1e-6)


def test_rows_that_do_not_count_change_no_distance(rng):
    u = rng.uniform(size=(1, 12))
    more = np.concatenate([u, np.full((1, 5), np.nan)], axis=1)
    for distance in (distances.kolmogorov_smirnov, distances.cramer_von_mises, distances.anderson_darling):
        np.testing.assert_allclose(distance(points(more)), distance(points(u)), rtol=1e-12)
    general, other = distances._Deviations(points(more)), distances._Deviations(points(u))
    np.testing.assert_allclose(general.weighted_integral(), other.weighted_integral(), rtol=1e-12)
    np.testing.assert_allclose(distances.counts_in_bins(points(more), 3), distances.counts_in_bins(points(u), 3))


# --- goodness of fit ------------------------------------------------------------------------------------------------------


def with_sample_deviation(distance):
    """A distance to the normal distribution with the standard deviation of n − 1, of which tables are."""

    def statistic(params, y):
        n, i = len(y), jnp.arange(1, len(y) + 1)
        z = jnp.sort(y - params["loc"]) / (params["scale"] * jnp.sqrt(n / (n - 1)))
        u, above = norm.cdf(z), norm.cdf(-z)
        if distance == "D":
            return jnp.max(jnp.maximum(i / n - u, u - (i - 1) / n))
        if distance == "W":
            return 1 / (12 * n) + jnp.sum((u - (2 * i - 1) / (2 * n)) ** 2)
        return -n - jnp.mean((2 * i - 1) * (jnp.log(u) + jnp.log(above[::-1])))

    return statistic


# Of a normal distribution by Molin and Abdi (1998), New tables and numerical approximation for the Kolmogorov-Smirnov/
# Lillierfors/Van Soest's test of normality; Stephens's A² and W² by D'Agostino and Stephens (1986), tables 4.7 and 4.14.
LILLIEFORS = {10: 0.2616, 20: 0.1920, 30: 0.1590}


@pytest.mark.parametrize("n", some_of([10, 20, 30], 20))
def test_critical_values_of_a_normal_sample_are_those_of_lilliefors_and_stephens(n, rng):
    """With 20 000 replicates the quantiles have errors of 0.6, 1 and 1 %."""
    fit = fj.fit(NORMAL, None, rng.normal(size=n))
    statistics = {name: with_sample_deviation(name) for name in "DWA"}
    found = fj.goodness_of_fit(fit, statistics, key=KEY, num_replicates=20_000).critical_values(0.05)
    expected = [LILLIEFORS[n], 0.126 / (1 + 0.5 / n), 0.752 / (1 + 0.75 / n + 2.25 / n**2)]
    np.testing.assert_allclose(found / expected, 1.0, atol=0.025)


@pytest.mark.parametrize("n", some_of([10, 20, 30], 20))
def test_critical_values_of_an_exponential_sample_are_those_of_stephens(n, rng):
    fit = fj.fit(fj.families.exponential, None, rng.exponential(size=n))
    names = ["kolmogorov_smirnov", "cramer_von_mises", "anderson_darling"]
    found = fj.goodness_of_fit(fit, names, key=KEY, num_replicates=20_000)
    distance = 0.2 / n + 1.094 / (np.sqrt(n) + 0.26 + 0.5 / np.sqrt(n))
    expected = [distance, 0.224 / (1 + 0.16 / n), 1.321 / (1 + 0.6 / n)]
    np.testing.assert_allclose(found.critical_values(0.05) / expected, 1.0, atol=0.025)


# Of Cramér-von Mises and Anderson-Darling, by numpy's own maximum-likelihood fits of 200 000 samples, with errors of 0.3 %.
# Stephens's formula, 0.124 and 0.757 over 1 + 0.2/√n, lies 1.6 to 2.9 % below them.
OF_GUMBEL = {10: [0.11997, 0.72602], 50: [0.12251, 0.74916]}


@pytest.mark.exhaustive
@pytest.mark.parametrize("n", OF_GUMBEL)
def test_critical_values_of_a_gumbel_sample_are_those_of_a_simulation_by_hand(n, rng):
    fit = fj.fit(fj.families.gumbel, None, rng.gumbel(size=n))
    found = fj.goodness_of_fit(fit, ["cramer_von_mises", "anderson_darling"], key=KEY, num_replicates=20_000)
    np.testing.assert_allclose(found.critical_values(0.05) / OF_GUMBEL[n], 1.0, atol=0.025)
    stephens = np.array([0.124, 0.757]) / (1 + 0.2 / np.sqrt(n))
    np.testing.assert_allclose(found.critical_values(0.05) / stephens, 1.0, atol=0.045)


DISTANCES = ["kolmogorov_smirnov", "anderson_darling", "cramer_von_mises", "chi_square"]


def test_the_size_is_nominal_and_the_power_is_that_of_stephens_test():
    """Weibull samples of 50, of which a naive Kolmogorov-Smirnov test rejects none; and lognormal ones taken for Weibull."""
    found = fj.goodness_of_fit(durations(), DISTANCES, key=KEY, num_replicates=99)
    assert found.p_value.shape == (200, 4)
    rejected = np.mean(found.p_value <= 0.05, axis=0)
    assert np.all(np.abs(rejected - 0.05) < 3 * np.sqrt(0.05 * 0.95 / 200))
    naive = st.kstwo.sf(found.value[:, 0], N)
    assert np.mean(naive <= 0.05) <= 0.005
    # The p-values of a right model are uniform, those of a wrong one small.
    assert st.kstest(found.p_value[:, 1], "uniform").pvalue > 0.01
    wrong = fj.goodness_of_fit(
        fj.fit_batch(fj.families.weibull, None, LOGNORMAL), DISTANCES, key=KEY, num_replicates=99
    )
    power = dict(zip(DISTANCES, np.mean(wrong.p_value <= 0.05, axis=0), strict=True))
    assert (
        power["anderson_darling"] > power["cramer_von_mises"] > power["kolmogorov_smirnov"] > power["chi_square"] > 0.1
    )
    assert 0.5 < power["anderson_darling"] < 0.85
    one = fj.goodness_of_fit(durations()[3], DISTANCES, key=jax.random.fold_in(KEY, 3), num_replicates=99)
    np.testing.assert_allclose(one.replicates, found.replicates[3], rtol=1e-6)
    np.testing.assert_array_equal(one.p_value, found.p_value[3])
    assert "200, each with its replicates" in str(found)
    assert len(found.to_frame()) == 800


def test_statistics_of_counts_are_those_of_the_book_and_find_zeros_in_excess(rng):
    y = np.where(rng.uniform(size=100) < 0.4, 0.0, 1.0 + rng.poisson(3.0, 100)).astype(float)
    fit = fj.fit(GEOMETRIC, {"p": 0.5}, y)
    named = ["zeros", "chi_square", "kolmogorov_smirnov"]

    def dispersion(params, y):
        return jnp.sum((y - jnp.mean(y)) ** 2) / (1 / params["p"] - 1) / (len(y) - 1)

    found = fj.goodness_of_fit(fit, [*named, dispersion], key=KEY, num_replicates=199)
    law = st.nbinom(1, 1 / (1 + y.mean()))
    (ends,) = bins_of(fit, np.array([12]))
    observed = np.diff([0, *np.sum(y[:, None] <= ends, axis=0), 100])
    expected = 100 * np.diff([0, *law.cdf(ends), 1])
    assert np.all(expected >= 100 / 12)
    assert len(ends) >= 3
    values = np.arange(20)
    classical = np.abs(np.mean(y[:, None] <= values, axis=0) - law.cdf(values)).max()
    square = np.sum((observed - expected) ** 2 / expected)
    book = [np.sum(y == 0) - 100 * law.pmf(0), square, classical, y.var(ddof=1) / y.mean()]
    np.testing.assert_allclose(found.value, book, rtol=1e-6)
    assert found.statistics == (*named, "dispersion")
    assert found.alternatives == ("two-sided", "greater", "greater", "greater")
    assert np.all(found.p_value[:3] <= 0.05)
    assert "zeros beyond expectation" in str(found)


def test_dispersion_is_pearsons_statistic_over_its_degrees_of_freedom():
    model = fj.linked(fj.families.poisson, lambda b, z: {"rate": mean_of(b, z)})
    fit = fj.fit(model, jnp.zeros(2), COUNTS, given=X)
    found = fj.goodness_of_fit(fit, "dispersion", key=KEY, num_replicates=199)
    glm = sm.GLM(COUNTS, sm.add_constant(X), family=sm.families.Poisson()).fit()
    np.testing.assert_allclose(found.value, glm.pearson_chi2 / glm.df_resid, rtol=1e-7)
    assert abs(found.replicates.mean() - 1.0) < 4 * found.replicates.std() / 199**0.5 + 0.02
    few = np.array([[np.sum(found.replicates >= found.value), np.sum(found.replicates <= found.value)]])
    np.testing.assert_allclose(found.p_value, min(1.0, 2 * (1 + few.min()) / 200))
    np.testing.assert_allclose(found.p_value_error, np.sqrt(found.p_value * (2 - found.p_value) / 200))


def test_replicates_whose_fit_failed_are_left_out_and_counted():
    """Of ten counts with a mean of 0.3 a fourteenth of the samples are zeros only, and the probability goes to one."""
    y = np.array([0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 2.0, 0.0, 0.0, 0.0])
    with pytest.warns(fj.FitWarning, match=r"goodness_of_fit: of the replicates' fits \d+ of 99 failed \("):
        found = fj.goodness_of_fit(fj.fit(GEOMETRIC, {"p": 0.5}, y), "cramer_von_mises", key=KEY, num_replicates=99)
    assert 0 < found.num_failed < 20
    missing = np.isnan(found.replicates[:, 0])
    assert found.num_failed == missing.sum()
    above = np.sum(found.replicates[~missing, 0] >= found.value * (1 - 1e-6))
    np.testing.assert_allclose(found.p_value, (1 + above) / (99 - found.num_failed + 1))
    assert "They are left out" in str(found)


def test_a_series_is_tested_one_step_ahead(rng):
    def sample(key, params):
        def step(y, e):
            y = params["phi"] * y + e
            return y, y

        return jnp.append(0.0, jax.lax.scan(step, jnp.zeros(()), jax.random.normal(key, (59,)))[1])

    model = fj.dependent(series, sample=sample, log_cdf=lambda p, y: norm.logcdf(y[1:], p["phi"] * y[:-1], 1.0))
    y = np.append(0.0, 2.0 * rng.normal(size=59))
    found = fj.goodness_of_fit(fj.fit(model, {"phi": 0.1}, y), "kolmogorov_smirnov", key=KEY, num_replicates=99)
    assert found.replicates.shape == (99, 1)
    assert found.p_value[0] <= 0.02  # of a variance of four where the model has one


def test_a_statistic_exceeds_its_critical_value_where_its_p_value_is_the_level(rng):
    replicates = rng.normal(size=(199, 1))
    for value in np.sort(replicates[:, 0])[[187, 188, 189, 190, 191]] + 1e-9:
        p_value = np.array([(1 + np.sum(replicates >= value)) / 200])
        found = fj.GoodnessOfFit(("t",), np.array([value]), p_value, replicates, ("greater",), 0, ())
        assert (value > found.critical_values(0.05)[0]) == (p_value[0] <= 0.05)


def half_known_log_cdf(params, y):
    return jnp.where(y > 3.0, jnp.nan, norm.logcdf(y, params["loc"], 1.0))


def test_a_statistic_that_is_no_number_has_no_p_value_and_an_infinite_one_is_not_extreme_by_itself():
    model = fj.Model(
        lambda params, y: norm.logpdf(y, params["loc"], 1.0),
        sample=lambda key, params: params["loc"] + jax.random.normal(key),
        log_cdf=half_known_log_cdf,
    )
    fit = fj.fit(model, {"loc": 0.0}, np.array([0.1, -1.0, 0.4, 3.5]))

    def infinite(params, y):
        return jnp.inf + 0.0 * params["loc"]

    with pytest.warns(fj.FitWarning, match="anderson_darling, chi_square of the data is not a number"):
        found = fj.goodness_of_fit(fit, ["anderson_darling", "chi_square", infinite], key=KEY, num_replicates=39)
    np.testing.assert_array_equal(found.p_value, [np.nan, np.nan, 1.0])
    assert "1 residuals are not numbers" in str(fj.residuals(fit))


def test_in_a_batch_of_counts_each_fit_has_its_own_bins_and_zeros():
    data = np.stack([COUNTS, 20.0 * COUNTS, np.zeros(40)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fj.FitWarning)  # of the third, whose probability goes to one
        fits = fj.fit_batch(GEOMETRIC, {"p": 0.5}, data)
        found = fj.goodness_of_fit(fits, ["chi_square", "zeros"], key=KEY, num_replicates=39)
    one = fj.goodness_of_fit(fits[1], ["chi_square", "zeros"], key=jax.random.fold_in(KEY, 1), num_replicates=39)
    np.testing.assert_allclose(found.value[1], one.value, rtol=1e-6)
    np.testing.assert_allclose(found.replicates[1], one.replicates, rtol=1e-6)
    assert np.all(np.isnan(found.p_value[2]))


def test_replicates_of_a_penalized_fit_have_its_weights_and_its_strength():
    model = fj.with_prior(fj.families.exponential, lambda params, strength: -0.5 * strength * params["rate"] ** 2)
    y, weights = np.array([0.4, 1.9, 1.1, 3.0, 0.2]), np.array([2.0, 1.0, 0.0, 3.0, 2.0])
    weighted = fj.fit(model, None, y, weights=weights, strength=4.0)
    repeated = fj.fit(model, None, np.repeat(y, weights.astype(int)), strength=4.0)
    found, same = (
        fj.goodness_of_fit(fit, "cramer_von_mises", key=KEY, num_replicates=39) for fit in (weighted, repeated)
    )
    np.testing.assert_allclose(found.replicates, same.replicates, rtol=1e-5)
    np.testing.assert_array_equal(found.p_value, same.p_value)


def bare(**functions):
    return fj.fit(fj.Model(NORMAL.log_density, **functions), {"loc": 0.0, "scale": 1.0}, X)


FIT = functools.partial(fj.fit, fj.families.exponential, None, WEIBULL[0])
COIN = fj.Model(  # recorded as 1 where it is at least that
    lambda params, y: jnp.where(y == 1, jnp.log(params["p"]), jnp.log1p(-params["p"])),
    constraints={"p": (0, 1)},
    mean=lambda params: params["p"],
    log_cdf=lambda params, y: jnp.where(y < 0, -jnp.inf, jnp.where(y < 1, jnp.log1p(-params["p"]), 0.0)),
    discrete=True,
)


@functools.cache
def top_coded():
    return fj.fit(fj.censored(COIN, high=1.0), {"p": 0.5}, np.array([0.0, 1.0, 1.0]))


WRONG = [
    (lambda: fj.residuals(3), TypeError, "residuals: expected a Fit, got int"),
    (lambda: fj.residuals(FIT(), kind="raw"), ValueError, "kind='raw' is unknown; choose from 'quantile', 'deviance'"),
    (lambda: fj.residuals(FIT(), key=3), TypeError, r"key is int; expected one key, as jax\.random\.key\(3\)"),
    (lambda: fj.residuals(durations()[0], kind="deviance"), ValueError, "needs the saturated model of a family, which is known of"),
    (lambda: fj.residuals(fj.fit(NORMAL, None, X), kind="response"), ValueError, "needs the mean of each observation"),
    (lambda: fj.residuals(top_coded(), kind="response"), ValueError, "observations that are one number each, which is known"),
    (lambda: fj.goodness_of_fit(fj.fit(NORMAL, None, X), "dispersion", key=KEY), ValueError, '"dispersion" needs the mean'),
    (lambda: fj.goodness_of_fit(FIT(), "shapiro", key=KEY), ValueError, "statistic='shapiro' is unknown; choose from"),
    (lambda: fj.goodness_of_fit(FIT(), 3.0, key=KEY), TypeError, "statistic=3.0 must be one of 'kolmogorov_smirnov'"),
    (lambda: fj.goodness_of_fit(FIT(), [], key=KEY), TypeError, r"statistic=\[\] must be one of"),
    (lambda: fj.goodness_of_fit(FIT(), key=KEY, num_replicates=5), ValueError, "num_replicates=5 must be"),
    (lambda: fj.goodness_of_fit(FIT(), key=1), TypeError, "key is int; expected one key"),
    (lambda: fj.goodness_of_fit(FIT(), key=KEY, alternative="upper"), ValueError, "alternative='upper' is unknown"),
    (lambda: fj.goodness_of_fit(FIT(), "zeros", key=KEY), ValueError, '"zeros" is a statistic of independent counts'),
    (lambda: fj.goodness_of_fit(FIT(), ["zeros"] * 2, key=KEY), ValueError, "several statistics have one name"),
    (lambda: fj.goodness_of_fit(bare(), key=KEY), ValueError, "neither a distribution function nor quantiles"),
    (lambda: fj.goodness_of_fit(bare(log_cdf=NORMAL.log_cdf), key=KEY), ValueError, "draws from the model, which has no sampler"),
    (lambda: fj.goodness_of_fit(FIT(max_steps=0), key=KEY), ValueError, "goodness_of_fit: needs a fit that converged"),
    (lambda: fj.plots.residual_plot(FIT()), TypeError, "expected Residuals, got Fit"),
    (lambda: fj.plots.residual_plot(fj.residuals(FIT()), [1.0, 2.0]), ValueError, "against must be 50 numbers"),
    (lambda: fj.plots.rootogram(FIT()), ValueError, "rootogram: needs independent counts"),
    (lambda: fj.plots.rootogram(top_coded()), ValueError, "counts, each of a known value"),
    (lambda: fj.plots.worm(3), TypeError, "expected QuantileComparison or Residuals or Fit, got int"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), WRONG)
def test_wrong_calls_are_errors_that_say_what_is_expected(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --- figures --------------------------------------------------------------------------------------------------------------


def test_the_residual_plot_has_the_residuals_and_the_means_of_neighbours():
    found = fj.residuals(durations()[0])
    axes = fj.plots.residual_plot(found, np.arange(50.0), label="day")
    drawn = next(line for line in axes.lines if len(line.get_xdata()) == 50)
    np.testing.assert_array_equal(drawn.get_ydata(), found.values)
    assert axes.get_xlabel() == "day"
    centres, means, errors = found.means_of_groups(np.arange(50.0))
    np.testing.assert_allclose(means[0], found.values[: int(2 * centres[0]) + 1].mean())
    np.testing.assert_allclose(
        errors[0], found.values[: int(2 * centres[0]) + 1].std(ddof=1) / (2 * centres[0] + 1) ** 0.5
    )
    pearson = fj.residuals(durations()[0], kind="pearson")
    assert fj.plots.residual_plot(pearson).get_xlabel() == "observation"  # the fitted means are all the same


def test_the_worm_is_the_quantile_plot_turned_level():
    found = fj.residuals(durations()[0])
    comparison = found.quantile_comparison()
    np.testing.assert_allclose(comparison.expected, st.norm.ppf(np.arange(1, 51) / 51), rtol=1e-12)
    np.testing.assert_array_equal(comparison.observed, np.sort(found.values))
    inside = ~comparison.outside
    axes = fj.plots.worm(found)
    np.testing.assert_allclose(axes.lines[1].get_ydata(), (comparison.observed - comparison.expected)[inside])
    np.testing.assert_allclose(fj.plots.quantiles(found).lines[1].get_ydata(), comparison.observed[inside])
    same = fj.plots.worm(durations()[0])  # by the comparison of the fit on the normal scale
    np.testing.assert_allclose(same.lines[1].get_ydata(), axes.lines[1].get_ydata(), atol=1e-9)


def test_the_rootogram_hangs_from_the_expected_frequencies():
    found = frequencies(counts())
    p = float(counts().params["p"])
    np.testing.assert_allclose(found.expected, 40 * st.nbinom.pmf(found.values, 1, p), rtol=1e-8)
    np.testing.assert_array_equal(found.observed, [np.sum(value == COUNTS) for value in found.values])
    for style, bottom in (
        ("hanging", np.sqrt(found.expected) - np.sqrt(found.observed)),
        ("standing", 0 * found.values),
    ):
        bars = fj.plots.rootogram(counts(), style=style).patches
        np.testing.assert_allclose([bar.get_y() for bar in bars], bottom, atol=1e-12)
        np.testing.assert_allclose([bar.get_height() for bar in bars], np.sqrt(found.observed))


def test_the_calibration_histogram_has_the_density_of_u():
    fit = durations()[0]
    axes = fj.plots.calibration_histogram(fit, num_bins=5)
    u = st.weibull_min.cdf(WEIBULL[0], float(fit.params["shape"]), scale=float(fit.params["scale"]))
    heights = [bar.get_height() for bar in axes.patches[:5]]
    np.testing.assert_allclose(heights, np.histogram(u, 5, (0, 1))[0] / 10)
    of_counts = [bar.get_height() for bar in fj.plots.calibration_histogram(counts(), num_bins=4).patches[:4]]
    np.testing.assert_allclose(np.sum(of_counts), 4.0)


def test_residuals_of_values_at_a_limit_and_at_zero_are_drawn_from_what_is_known():
    """A Tobit model's y at its limit stands for all below; a hurdle's zero for the whole jump there."""
    rng = np.random.default_rng(4)
    y = np.maximum(rng.logistic(1.0, 2.0, 400), 0.0)
    tobit = fj.fit(fj.censored(fj.families.logistic, low=0.0), {"loc": 1.0, "scale": 2.0}, y)
    transform = integral_transform(tobit)
    at_limit = np.log(st.logistic.cdf(0.0, tobit.params["loc"], tobit.params["scale"]))
    np.testing.assert_allclose(transform.log_high[y == 0], at_limit, rtol=1e-10)
    assert np.all(transform.log_low[y == 0] == -np.inf)
    exact = st.logistic.logcdf(y[y > 0], tobit.params["loc"], tobit.params["scale"])
    np.testing.assert_allclose(transform.log_high[y > 0], exact, rtol=1e-10)
    assert not np.any(transform.is_wide[y > 0])

    skipped = np.where(rng.random(400) < 0.3, 0.0, rng.gamma(2.0, size=400))
    hurdle = fj.fit(fj.hurdle(fj.families.lognormal), None, skipped)
    transform = integral_transform(hurdle)
    assert np.all(transform.log_low[skipped == 0] == -np.inf)
    np.testing.assert_allclose(np.exp(transform.log_high[skipped == 0]), np.mean(skipped == 0), rtol=1e-9)
    assert not np.any(transform.is_wide[skipped > 0])
