"""Return levels, and quantiles of the data beside those of the model: Coles's numbers, and the tables and figures made of them."""

import functools

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
import scipy.stats
from data_sets import PORT_PIRIE
from scipy.optimize import minimize_scalar

import fisher_jax as fj

mpl.use("Agg")
import matplotlib.pyplot as plt

RNG = np.random.default_rng(7)
EXCESSES = RNG.exponential(2.0, 50)
X = np.linspace(0.0, 1.0, 30)
TREND = 1.0 + 2.0 * X + RNG.gumbel(size=30)


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


@functools.cache
def gev_fit():
    return fj.fit(fj.families.gev, None, PORT_PIRIE)


@functools.cache
def gumbel_fit():
    return fj.fit(fj.families.gumbel, None, PORT_PIRIE)


def line(params, z):
    return {"loc": params["a"] + params["b"] * z, "scale": params["scale"]}


TRENDING = fj.linked(fj.families.gumbel, line, constraints={"scale": fj.positive})


@functools.cache
def trend_fit():
    return fj.fit(TRENDING, {"a": 1.0, "b": 1.0, "scale": 1.0}, TREND, given=X)


def test_levels_and_symmetric_intervals_of_port_pirie_are_those_of_coles():
    """Coles (2001), section 3.4.1: 10 and 100 years."""
    found = fj.return_levels(gev_fit(), [10, 100])
    np.testing.assert_allclose(gev_fit().log_likelihood, 4.34, atol=5e-3)
    np.testing.assert_allclose(found.value, [4.30, 4.69], atol=5e-3)
    np.testing.assert_allclose(found.interval, [[4.19, 4.41], [4.38, 5.00]], atol=6e-3)


@pytest.mark.exhaustive
def test_profile_intervals_of_port_pirie_are_those_of_coles():
    """Read from his figures 3.2 and 3.3: [4.21, 4.45] and [4.50, 5.27]."""
    found = fj.return_levels(gev_fit(), [10, 100], method="profile")
    np.testing.assert_allclose(found.interval, [[4.21, 4.45], [4.50, 5.27]], atol=1.2e-2)


def test_a_profile_interval_of_a_level_ends_where_scipy_says():
    (level,) = fj.return_levels(gumbel_fit(), 100.0, method="profile").interval
    cut = 1.920729410347062

    def drop(level):
        def loss(scale):
            loc = level + scale * np.log(-np.log(0.99))
            return -scipy.stats.gumbel_r.logpdf(PORT_PIRIE, loc, scale).sum()

        return gumbel_fit().log_likelihood + minimize_scalar(loss, bounds=(0.1, 0.4), options={"xatol": 1e-12}).fun

    np.testing.assert_allclose([drop(end) for end in level], cut, rtol=1e-8)


def test_excesses_of_a_threshold_add_it_and_the_error_of_their_rate():
    """The exponential: z = u + log(λT) / θ, by Coles (2001) eqs (4.12), (4.14) and (4.15) at shape zero."""
    fit = fj.fit(fj.families.exponential, {"rate": 1.0}, EXCESSES)
    rate, theta, errors = 2.5, 1 / EXCESSES.mean(), 2.5 / np.sqrt(50)
    found = fj.return_levels(fit, [1, 20.0], threshold=30.0, rate=rate, rate_error=errors)
    log = np.log(rate * np.array([1, 20.0]))
    np.testing.assert_allclose(found.value, 30.0 + log / theta, rtol=1e-9)
    # var θ̂ = θ²/n, ∂z/∂θ = −log / θ², ∂z/∂λ = 1 / (θ λ)
    variance = (log / theta) ** 2 / 50 + (errors / (theta * rate)) ** 2
    np.testing.assert_allclose(found.standard_error, np.sqrt(variance), rtol=1e-7)
    text = str(found)
    assert "2.5 ± 0.354 in a unit of the period" in text
    assert "Threshold     30" in text
    assert "2.5, taken as known, in a unit" in str(fj.return_levels(fit, [1, 20.0], threshold=30.0, rate=rate))


def test_levels_of_a_formula_are_those_at_a_row_of_its_table():
    fit = fj.formula("y ~ x", fj.families.gumbel, {"y": TREND, "x": X}).fit()
    found = fj.return_levels(fit, 50.0, given={"x": 0.5})
    reference = fj.return_levels(fit, 50.0, given={"loc": np.array([1.0, 0.5])})
    by_hand = fj.return_levels(trend_fit(), 50.0, given=0.5)
    np.testing.assert_array_equal(found.value, reference.value)
    np.testing.assert_allclose(found.value, by_hand.value, rtol=1e-6)
    np.testing.assert_allclose(found.standard_error, by_hand.standard_error, rtol=1e-6)
    with pytest.raises(ValueError, match=r"return_levels: given has 2 rows; the levels are those of one"):
        fj.return_levels(fit, 50.0, given={"x": [0.0, 1.0]})
    with pytest.raises(ValueError, match=r"return_levels: the table lacks the column 'x'"):
        fj.return_levels(fit, 50.0, given={"z": 0.5})


def test_levels_of_a_model_with_covariates_are_those_at_the_covariates_given():
    found = fj.return_levels(trend_fit(), 50.0, given=0.5)
    p = trend_fit().params
    expected = p["a"] + 0.5 * p["b"] - p["scale"] * np.log(-np.log(0.98))
    np.testing.assert_allclose(found.value, [expected], rtol=1e-9)
    with pytest.raises(ValueError, match=r"return_levels: the fit has covariates. Give those of one observation"):
        fj.return_levels(trend_fit(), 50.0)
    with pytest.raises(ValueError, match=r"return_levels: the fit has no covariates. Leave given out"):
        fj.return_levels(gumbel_fit(), 50.0, given=0.5)


def test_levels_of_many_fits_are_those_of_each():
    fits = fj.fit_batch(fj.families.gumbel, None, np.stack([PORT_PIRIE, PORT_PIRIE + 1.0]))
    found = fj.return_levels(fits, [10, 100])
    one = fj.return_levels(gumbel_fit(), [10, 100])
    np.testing.assert_allclose(found.value, [one.value, one.value + 1.0], rtol=1e-6)
    np.testing.assert_allclose(found.interval[0], one.interval, rtol=1e-6)
    assert found.to_frame().index.names == ["fit", "period"]
    assert "Fits       2" in str(found)


def test_levels_with_replicates_have_their_quantiles():
    replicates = fj.bootstrap(gumbel_fit(), jax.random.key(1), 100)
    found = fj.return_levels(gumbel_fit(), [10, 100], method="bootstrap", replicates=replicates)
    scale, loc = replicates.params["scale"], replicates.params["loc"]
    levels = loc - scale * np.log(-np.log(1 - 1 / 100))
    np.testing.assert_allclose(found.interval[1], np.quantile(levels, [0.025, 0.975]), rtol=1e-9)
    np.testing.assert_allclose(found.standard_error[1], np.std(levels, ddof=1), rtol=1e-9)
    assert "percentiles of 100 replicates, nonparametric" in str(found)


def no_quantile(params, y):
    return -0.5 * (y - params) ** 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"periods": 1.0}, ValueError, "periods=1.0 must be finite and longer than 1/rate = 1"),
        ({"periods": [10.0, np.nan]}, ValueError, "must be finite and longer"),
        ({"periods": "ten"}, TypeError, "periods='ten' must be one number or several"),
        ({"periods": []}, TypeError, "must be one number or several"),
        ({"rate": 0.0}, ValueError, "rate=0 must be positive"),
        ({"rate": "one"}, TypeError, "rate='one' must be a finite number"),
        ({"threshold": None}, TypeError, "threshold=None must be a finite number"),
        ({"method": "wald"}, ValueError, "method='wald' is unknown; choose from 'delta', 'profile', 'bootstrap'"),
        ({"method": "bootstrap"}, ValueError, r'needs replicates=bootstrap\(fit, key\)'),
        ({"method": "profile", "rate_error": 0.1}, ValueError, "takes neither kind nor rate_error"),
        ({"level": 95}, ValueError, "level=95 must lie strictly between 0 and 1"),
    ],
)  # fmt: skip
def test_wrong_arguments_of_levels_are_errors_that_say_what_is_expected(arguments, error, message):
    with pytest.raises(error, match=f"return_levels: .*{message}"):
        fj.return_levels(gumbel_fit(), **{"periods": 10.0} | arguments)


def test_a_model_without_a_quantile_function_is_told_how_to_get_one():
    fit = fj.fit(no_quantile, 0.0, np.array([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"the model has no quantile function\. Give Model"):
        fj.return_levels(fit, periods=10)
    with pytest.raises(ValueError, match=r"has neither a distribution function nor quantiles\. Give Model"):
        fj.quantile_comparison(fit)


def test_a_discrete_model_has_no_levels():
    fit = fj.fit(fj.families.bernoulli, None, np.array([1.0, 0.0, 1.0, 1.0]))
    with pytest.raises(ValueError, match="return_levels: a level does not move with the parameters at all"):
        fj.return_levels(fit, 10)


def test_quantiles_of_a_fit_that_did_not_converge_warn():
    fit = fj.fit(fj.families.exponential, {"rate": 1.0}, np.full(5, np.nan))
    with pytest.warns(fj.FitWarning, match="quantile_comparison: not to be relied on"):
        assert np.isnan(fj.quantile_comparison(fit).observed).all()


# Quantiles.


def test_quantiles_of_one_distribution_are_those_at_the_plotting_positions():
    found = fj.quantile_comparison(gumbel_fit())
    n, p = len(PORT_PIRIE), gumbel_fit().params
    positions = np.arange(1, n + 1) / (n + 1)
    law = scipy.stats.gumbel_r(p["loc"], p["scale"])
    np.testing.assert_allclose(found.expected, law.ppf(positions), rtol=1e-9)
    np.testing.assert_array_equal(found.observed, np.sort(PORT_PIRIE))
    np.testing.assert_array_equal(PORT_PIRIE[found.order], found.observed)
    k = np.arange(1, n + 1)
    np.testing.assert_allclose(found.lower, law.ppf(scipy.stats.beta.ppf(0.025, k, n + 1 - k)), rtol=1e-7)
    np.testing.assert_allclose(found.upper, law.ppf(scipy.stats.beta.ppf(0.975, k, n + 1 - k)), rtol=1e-7)
    assert "0; 3.25 are expected" in str(found)
    assert len(found.to_frame()) == n


def test_with_covariates_residuals_are_on_the_standard_scale():
    """Coles (2001), section 6.2.3: z̃ = (y − loc) / scale of a Gumbel model."""
    found = fj.quantile_comparison(trend_fit())
    p = trend_fit().params
    residuals = (TREND - p["a"] - p["b"] * X) / p["scale"]
    assert found.scale == "gumbel"
    np.testing.assert_allclose(found.observed, np.sort(residuals), rtol=1e-7)
    np.testing.assert_allclose(found.expected, scipy.stats.gumbel_r.ppf(np.arange(1, 31) / 31), rtol=1e-9)
    u = scipy.stats.gumbel_r.cdf(np.sort(residuals))
    laws = {"normal": scipy.stats.norm, "exponential": scipy.stats.expon, "uniform": scipy.stats.uniform}
    for scale, law in laws.items():
        other = fj.quantile_comparison(trend_fit(), scale=scale)
        np.testing.assert_allclose(other.observed, law.ppf(u), rtol=1e-6)
        np.testing.assert_array_equal(other.order, found.order)
    with pytest.raises(ValueError, match='quantile_comparison: scale="data" needs observations of one distribution'):
        fj.quantile_comparison(trend_fit(), scale="data")


def test_observations_far_in_a_tail_keep_their_digits():
    y = np.append(EXCESSES, [1e-9, 60.0])
    fit = fj.fit(fj.families.exponential, {"rate": 1.0}, y)
    found = fj.quantile_comparison(fit, scale="exponential")
    np.testing.assert_allclose(found.observed[[0, -1]], np.array([1e-9, 60.0]) / y.mean(), rtol=1e-6)


def test_the_simulated_envelope_is_narrower_since_the_fit_follows_the_data():
    fit = fj.fit(fj.families.exponential, {"rate": 1.0}, EXCESSES)
    found = fj.quantile_comparison(fit, envelope="simulated", key=jax.random.key(0), num_replicates=400)
    plain = fj.quantile_comparison(fit)
    widths = (found.upper - found.lower) / (plain.upper - plain.lower)
    assert 0.5 < np.median(widths) < 0.95
    assert np.all(found.lower < found.upper)
    again = fj.quantile_comparison(fit, envelope="simulated", key=jax.random.key(0), num_replicates=400)
    np.testing.assert_array_equal(again.lower, found.lower)
    assert "400 simulated data sets, fitted again" in str(found)
    with pytest.raises(TypeError, match="key is NoneType; expected one key"):
        fj.quantile_comparison(fit, envelope="simulated")


def test_whole_weights_are_equal_observations_and_zero_leaves_out():
    weights = np.ones(50)
    weights[:3], weights[3] = 0.0, 2.0
    fit = fj.fit(fj.families.exponential, {"rate": 1.0}, EXCESSES, weights=weights)
    rows = np.repeat(EXCESSES, weights.astype(int))
    np.testing.assert_array_equal(fj.quantile_comparison(fit).observed, np.sort(rows))


def test_what_has_no_order_or_is_of_many_fits_is_an_error():
    fits = fj.fit_batch(fj.families.gumbel, None, np.stack([PORT_PIRIE, PORT_PIRIE + 1.0]))
    for function in (fj.quantile_comparison, fj.plots.return_levels):
        with pytest.raises(TypeError, match=r"fits\[3\]"):
            function(fits)
    model = fj.Model(lambda p, y: -0.5 * jnp.sum((y - p) ** 2), quantile=lambda u, p: u + p)
    with pytest.raises(ValueError, match=r"an observation must be one number, but the data have shape \(4, 2\)"):
        fj.quantile_comparison(fj.fit(model, 0.0, np.arange(8.0).reshape(4, 2)))


# Figures.


def test_the_return_level_plot_has_the_levels_and_the_observations_at_their_positions():
    axes = fj.plots.return_levels(gumbel_fit(), [2, 10, 100])
    curve, points = axes.lines
    expected = fj.return_levels(gumbel_fit(), [2, 10, 100])
    np.testing.assert_allclose(curve.get_ydata(), expected.value)
    band = axes.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose([band[:, 1].min(), band[:, 1].max()], [expected.interval.min(), expected.interval.max()])
    np.testing.assert_allclose(points.get_xdata(), 66 / (66 - np.arange(1, 66)))
    np.testing.assert_array_equal(points.get_ydata(), np.sort(PORT_PIRIE))
    assert axes.get_xscale() == "log"


def test_observations_with_covariates_are_moved_to_those_of_the_plot():
    axes = fj.plots.return_levels(trend_fit(), given=1.0)
    moved = TREND + trend_fit().params["b"] * (1.0 - X)
    np.testing.assert_allclose(axes.lines[1].get_ydata(), np.sort(moved), rtol=1e-7)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["return level", "95 %, delta", "observations, moved to these covariates"]


def test_the_quantile_plot_has_the_observations_and_marks_those_outside():
    y = np.append(EXCESSES, 60.0)
    comparison = fj.quantile_comparison(fj.fit(fj.families.exponential, {"rate": 1.0}, y))
    axes = fj.plots.quantiles(comparison)
    inside, outside = (line.get_xydata() for line in axes.lines[1:])
    assert len(inside) + len(outside) == 51
    assert outside[-1, 1] == 60.0
    assert axes.get_xlabel() == "expected by the model"
    with pytest.raises(TypeError, match="expected QuantileComparison or Residuals or Fit, got str"):
        fj.plots.quantiles("fit")
