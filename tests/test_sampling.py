"""Estimates, scores and intervals from many data sets are what theory says, and where theory fails the records say so."""

import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st
from families_registry import FAMILIES
from helpers import some_of
from jax.scipy.stats import norm

import fisher_jax as fj
from fisher_jax import blocks, families
from fisher_jax.fitting.status import Status
from fisher_jax.simulation import normality

KEY = jax.random.key(11)
RATE = {"rate": 2.0}
uniform = fj.Model(
    lambda p, y: jnp.where((y > 0) & (y < p["upper"]), -jnp.log(p["upper"]), -jnp.inf),
    sample=lambda key, p: p["upper"] * jax.random.uniform(key),
    constraints={"upper": fj.positive},
)
by_variance = fj.Model(
    lambda p, y: norm.logpdf(y, p["loc"], jnp.sqrt(p["variance"])),
    sample=lambda key, p: p["loc"] + jnp.sqrt(p["variance"]) * jax.random.normal(key),
    constraints={"variance": fj.positive},
    information=lambda p: jnp.diag(jnp.stack([1 / p["variance"], 0.5 / p["variance"] ** 2])),
)
laplace = fj.Model(families.laplace.log_density, sample=families.laplace.sample, constraints={"scale": fj.fixed})


def maximum(y):
    return {"upper": y.max()}


def median(y):
    return {"loc": jnp.median(y), "scale": 1.5}


def reciprocal_mean(y):
    return {"rate": 1 / jnp.mean(y)}


def within(value, error, exact, limit=4.0):
    np.testing.assert_array_less(np.abs(np.asarray(value) - exact), limit * np.asarray(error) + 1e-12)


TEN = [
    "beta",
    "gamma",
    "gumbel",
    "inverse_gaussian",
    "logistic",
    "lognormal",
    "negative_binomial",
    "normal",
    "von_mises",
    "weibull",
]


@pytest.mark.parametrize("name", some_of(TEN, "gumbel"))
def test_a_thousand_observations_have_the_asymptotic_covariance_and_distances(name):
    family = FAMILIES[name]
    found = fj.sampling_distribution(
        family.model, family.points[0], jax.random.key(6), num_observations=1000, num_replicates=2000
    )
    assert found.num_failed == 0
    assert found.information.route == "expected: closed form"
    assert found.covariance_test.p_value > 1e-3, found
    assert found.joint_normality.p_value > 0.01, found
    within(*found.joint_efficiency, 1.0)
    within(found.bias.value, found.bias.standard_error + found.predicted_bias_error, found.predicted_bias)


@functools.cache
def of_variance():
    truth = {"loc": 0.7, "variance": 4.0}
    return fj.sampling_distribution(by_variance, truth, KEY, num_observations=10, num_replicates=20_000)


def test_the_variance_of_ten_normal_observations_has_its_known_bias_and_variance():
    found = of_variance()
    assert found.names == ("loc", "variance")
    within(found.bias.value, found.bias.standard_error, np.array([0.0, -4.0 / 10]))
    variances = 10 * np.diagonal([4.0 / 10, 2 * 9 / 100 * 16.0] * np.eye(2))
    within(np.diagonal(found.covariance), np.diagonal(found.covariance_error), variances)
    within(found.covariance[0, 1], found.covariance_error[0, 1], 0.0)  # Basu: they are independent
    within(found.predicted_bias, found.predicted_bias_error, np.array([0.0, -4.0 / 10]))
    within(found.skewness.value[1], found.skewness.standard_error[1], np.sqrt(8 / 9))  # of χ² with 9 degrees of freedom
    assert found.covariance_test.p_value < 1e-6  # which is not the limit's: 0.9 and not 1 times the bound
    assert found.marginal_normality.p_value[0] > 1e-3
    assert found.marginal_normality.p_value[1] < 1e-6
    assert "0.4" in str(found)
    assert "variance" in found._repr_html_()


def test_monte_carlo_errors_are_those_seen_when_all_is_repeated():
    draws = np.random.default_rng(0).gamma(4.0, 1 / 8.0, (400, 250, 1))
    moments = [normality.moments(vectors) for vectors in draws]
    for which in (0, 1):
        values = np.array([np.ravel(found[which].value)[0] for found in moments])
        errors = np.array([np.ravel(found[which].standard_error)[0] for found in moments])
        assert 0.85 < errors.mean() / values.std() < 1.1


def test_joint_tests_have_their_size_however_few_the_rows():
    draws = np.random.default_rng(0).normal(size=(1500, 25, 5))
    tests = [normality.hotelling(rows, np.zeros((0, 5))) for rows in draws]
    within(np.mean([test.p_value < 0.05 for test in tests]), np.sqrt(0.05 * 0.95 / 1500), 0.05)
    doubled = normality.hotelling(draws[0][:, [0, 0]], np.zeros((0, 2)))
    assert doubled.degrees_of_freedom == 1
    assert normality.hotelling(np.zeros((9, 2)), np.zeros((0, 2))).p_value == 1.0


FIRST_DISTRIBUTION = """
import jax
import fisher_jax as fj
from helpers import compiled_programs

key = jax.random.key(11)
model = fj.Model(lambda loc, y: -0.5 * (y - loc) ** 2, sample=lambda key, loc: loc + jax.random.normal(key))
with compiled_programs() as compiled:
    text = str(fj.sampling_distribution(model, 0.0, key, num_observations=9, num_replicates=32))
print(len(compiled))
"""


def test_a_first_sampling_distribution_compiles_few_programs():
    tests = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(pathlib.Path(__file__).parent)])}
    done = subprocess.run(
        [sys.executable, "-c", FIRST_DISTRIBUTION], env=tests, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) <= 14  # of which four are large: drawing, fitting, the information, the bias


def test_draws_do_not_depend_on_the_chunk_or_on_how_many_there_are(monkeypatch):
    run = functools.partial(fj.sampling_distribution, families.exponential, RATE, KEY, num_observations=7)
    whole = run(num_replicates=50)
    monkeypatch.setattr(blocks, "HOST_ENTRIES", 7 * 20)
    np.testing.assert_array_equal(run(num_replicates=50).estimates, whole.estimates)
    np.testing.assert_array_equal(run(num_replicates=30).estimates, whole.estimates[:30])
    assert len(np.unique(whole.estimates)) == 50
    other = fj.sampling_distribution(
        families.exponential, RATE, jax.random.key(1), num_observations=7, num_replicates=50
    )
    assert not np.any(np.isin(other.estimates, whole.estimates))


def test_the_exponential_rate_has_the_moments_of_an_inverse_gamma():
    found = fj.sampling_distribution(families.exponential, RATE, KEY, num_observations=16, num_replicates=20_000)
    mean, variance = 2 * 16 / 15, 4 * 256 / (225 * 14)
    within(found.bias.value, found.bias.standard_error, mean - 2)
    within(found.standard_deviation.value, found.standard_deviation.standard_error, np.sqrt(variance))
    within(found.efficiency.value, found.efficiency.standard_error, 4 / 16 / variance)
    within(found.predicted_bias, found.predicted_bias_error, 2 / 16)  # the first term of 2/15
    frame = found.to_frame()
    assert frame.loc["rate", "bias"] == found.bias.value[0]


def test_the_maximum_of_uniform_observations_has_no_bound_and_the_rate_of_one_over_n():
    found = fj.convergence_rate(
        uniform, {"upper": 3.0}, KEY, num_observations=(20, 320), num_replicates=4000, estimator=maximum
    )
    for n, one in zip((20, 320), found.distributions, strict=True):
        assert np.isnan(one.asymptotic_covariance).all()
        assert "no Cramér-Rao bound" in str(one)
        within(one.bias.value, one.bias.standard_error, -3.0 / (n + 1))
        within(
            one.standard_deviation.value, one.standard_deviation.standard_error, 3 * np.sqrt(n / (n + 1) ** 2 / (n + 2))
        )
        assert np.sqrt(np.var(one.standardized[:, 0], ddof=1)) == pytest.approx(1.0)
        assert np.isnan(one.joint_normality.p_value)
        assert np.isnan(
            one.marginal_normality.p_value
        ).all()  # against an estimated standard deviation it would be another
    exact = np.log(np.array([n / (n + 1) ** 2 / (n + 2) for n in (20, 320)])) / 2
    within(found.rate[0], found.rate_error[0], np.diff(exact)[0] / np.log(16))
    assert found.rate[0] < -0.9
    assert "-0.9" in str(found)
    assert len(found.to_frame()) == 2


@pytest.mark.filterwarnings("ignore::fisher_jax.FitWarning")
def test_fits_of_uniform_observations_end_in_words():
    found = fj.sampling_distribution(uniform, {"upper": 3.0}, KEY, num_observations=20, num_replicates=40)
    assert found.num_failed == 40
    assert found.failures == {Status.STALLED: 40}
    assert np.isnan(found.covariance).all()
    text = " ".join(str(found).split())
    assert "40 failed (40 stalled)" in text
    assert "None of the replicates converged" in text
    assert "an edge of the support that moves" in text


@pytest.mark.exhaustive
def test_a_regular_model_has_the_rate_of_one_over_root_n():
    found = fj.convergence_rate(
        families.exponential, RATE, KEY, num_observations=(50, 800), num_replicates=4000, estimator=reciprocal_mean
    )
    exact = [2 * n / (n - 1) / np.sqrt(n - 2) for n in (50, 800)]
    within(found.rate[0], found.rate_error[0], np.log(exact[1] / exact[0]) / np.log(16))
    within(found.standard_deviation[:, 0], found.standard_deviation_error[:, 0], exact)
    np.testing.assert_allclose(found.asymptotic_standard_deviation[:, 0], [2 / np.sqrt(50), 2 / np.sqrt(800)])


def test_the_laplace_locations_bound_is_that_of_the_scores():
    found = fj.sampling_distribution(
        laplace, {"loc": 0.3, "scale": 1.5}, KEY, num_observations=201, num_replicates=4000, estimator=median
    )
    assert found.information.route == "expected: Monte Carlo, mean of s sᵀ, since the Bartlett identities fail"
    assert "curvature −H would give another" in " ".join(str(found).split())
    within(found.asymptotic_covariance, found.bound.entry_errors, 2.25)
    exact = exact_variance_of_the_median(201)
    within(found.covariance[0, 0], found.covariance_error[0, 0], 201 * 2.25 * exact)
    assert found.efficiency.value[0] < 1
    assert np.isnan(found.predicted_bias).all()


def exact_variance_of_the_median(n):
    """Of standard Laplace observations, n odd: by the Beta distribution of the middle order statistic."""
    u = (np.arange(400_000) + 0.5) / 400_000
    return np.mean(st.laplace.ppf(st.beta.ppf(u, (n + 1) / 2, (n + 1) / 2)) ** 2)


@pytest.mark.exhaustive
def test_on_a_simplex_estimates_are_unbiased_and_normal_in_two_directions():
    chances = np.array([0.2, 0.3, 0.5])
    model = fj.Model(
        lambda p, y: jnp.log(p[y]),
        sample=lambda key, p: jax.random.choice(key, 3, p=p),
        constraints=fj.simplex,
    )
    found = fj.sampling_distribution(model, chances, KEY, num_observations=400, num_replicates=3000)
    multinomial = np.diag(chances) - np.outer(chances, chances)
    np.testing.assert_allclose(found.asymptotic_covariance, multinomial, atol=1e-10)
    within(found.covariance, found.covariance_error, multinomial)
    within(found.predicted_bias, found.predicted_bias_error, 0.0)  # the free coordinates' own are not zero
    assert (found.rank, found.whitened.shape[1]) == (2, 2)
    assert found.covariance_test.degrees_of_freedom == 3
    assert found.covariance_test.p_value > 1e-3
    assert not found.notes


def logistic(params, z):
    return {"logit": params["intercept"] + params["slope"] * z}


@pytest.mark.exhaustive
def test_a_design_is_kept_fixed_and_repeated():
    model, truth = fj.linked(families.bernoulli, logistic), {"intercept": -0.3, "slope": 1.0}
    rows = np.linspace(-1.5, 1.5, 60)
    run = functools.partial(fj.sampling_distribution, model, truth, KEY, given=rows, num_replicates=1000)
    once, fourfold = run(), run(num_observations=240)
    assert (once.num_observations, fourfold.num_observations) == (60, 240)
    chances = 1 / (1 + np.exp(0.3 - rows))
    columns = np.stack([np.ones(60), rows], axis=1)
    information = columns.T @ (columns * (chances * (1 - chances))[:, None]) / 60
    for found in (once, fourfold):
        np.testing.assert_allclose(found.information.matrix, information, rtol=1e-10)
        within(found.bias.value, found.bias.standard_error + found.predicted_bias_error, found.predicted_bias, limit=6)
    np.testing.assert_allclose(once.predicted_bias, 4 * fourfold.predicted_bias, rtol=1e-10)
    assert fourfold.covariance_test.p_value > 1e-4


def autoregression(length):
    def sample(key, params):
        shocks = params["scale"] * jax.random.normal(key, (length + 1,))
        first = shocks[0] / jnp.sqrt(1 - params["phi"] ** 2)
        step = lambda y, shock: (params["phi"] * y + shock,) * 2  # noqa: E731
        return jnp.concatenate([first[None], jax.lax.scan(step, first, shocks[1:])[1]])

    return fj.dependent(
        lambda params, y: norm.logpdf(y[1:], params["phi"] * y[:-1], params["scale"]),
        sample=sample,
        constraints={"scale": fj.positive},
    )


@pytest.mark.exhaustive
def test_a_series_is_drawn_whole_and_its_bias_is_the_known_one():
    truth = {"phi": 0.6, "scale": 1.3}
    found = fj.sampling_distribution(autoregression(80), truth, KEY, num_replicates=3000)
    assert found.num_observations == 80
    within(np.asarray(found.bound.matrix), found.bound.entry_errors + 2e-3, np.diag([1 - 0.36, 1.69 / 2]))
    within(
        found.predicted_bias[0], found.predicted_bias_error[0] + 1e-3, -2 * 0.6 / 80
    )  # Marriott & Pope 1954, mean known
    within(found.bias.value, found.bias.standard_error + found.predicted_bias_error, found.predicted_bias)


def test_singular_information_is_named_and_gives_no_bound():
    model = fj.Model(
        lambda p, y: norm.logpdf(y, p["a"] + p["b"], 1.0),
        sample=lambda key, p: p["a"] + p["b"] + jax.random.normal(key),
    )
    halves = lambda y: {"a": jnp.mean(y) / 2, "b": jnp.mean(y) / 2}  # noqa: E731
    found = fj.sampling_distribution(
        model, {"a": 1.0, "b": 1.0}, KEY, num_observations=5, num_replicates=50, estimator=halves
    )
    scores = fj.score_distribution(model, {"a": 1.0, "b": 1.0}, KEY, num_observations=5, num_replicates=50)
    assert np.isnan(scores.joint_normality.p_value)
    assert "singular along" in str(scores)
    assert "singular along" in str(found)
    assert np.isnan(found.asymptotic_covariance).all()
    assert np.isnan(found.joint_efficiency.value)
    assert np.isfinite(found.covariance).all()


def test_one_observation_is_too_few_and_the_record_says_so():
    with pytest.warns(fj.FitWarning, match="none of the 4 replicates converged.*too few observations"):
        found = fj.sampling_distribution(
            families.gumbel, FAMILIES["gumbel"].points[0], KEY, num_observations=1, num_replicates=4
        )
    assert found.failures == {Status.TOO_FEW_OBSERVATIONS: 4}
    assert np.isnan(found.mean).all()
    assert "4 too few observations" in str(found)


def test_parameters_held_fixed_are_left_out_and_float32_will_do():
    with jax.enable_x64(False):
        truth = {"shape": 2.5, "minimum": 1.2}
        found = fj.sampling_distribution(families.pareto, truth, KEY, num_observations=400, num_replicates=1000)
    assert found.names == ("shape",)
    np.testing.assert_allclose(found.asymptotic_covariance, 2.5**2, rtol=1e-5)
    assert found.covariance_test.p_value > 1e-3
    again = jax.tree.unflatten(*reversed(jax.tree.flatten(found)))
    np.testing.assert_array_equal(again.covariance, found.covariance)


def test_scores_have_mean_zero_the_informations_covariance_and_a_skewness_that_falls():
    found = fj.score_distribution(families.exponential, RATE, KEY, num_observations=16, num_replicates=20_000)
    assert found.mean_test.p_value > 1e-3
    assert found.covariance_test.p_value > 1e-3
    within(found.skewness.value, found.skewness.standard_error, -2 / np.sqrt(16))
    assert found.marginal_normality.p_value[0] < 1e-6  # that far from normal are sixteen
    gumbel = fj.score_distribution(
        families.gumbel, FAMILIES["gumbel"].points[0], KEY, num_observations=1000, num_replicates=2000
    )
    assert gumbel.mean_test.p_value > 1e-3
    assert gumbel.covariance_test.p_value > 1e-3
    assert gumbel.joint_normality.p_value > 0.01
    assert "Distances against χ² (2 df)" in str(gumbel)


def test_the_score_of_the_uniform_is_off_without_any_spread():
    found = fj.score_distribution(uniform, {"upper": 2.0}, KEY, num_observations=9, num_replicates=20)
    np.testing.assert_allclose(found.vectors, -1.5)  # −√n/θ
    assert found.mean_test.p_value == 0.0
    assert "the mean of the score is not zero" in str(found)


Z = st.norm.ppf(0.975)


def exact_coverage(kind, n):
    """Of the rate of n exponential observations: G = λ Σ y is gamma with shape n."""
    low, high = {
        "wald": (n * np.exp(-Z / np.sqrt(n)), n * np.exp(Z / np.sqrt(n))),
        "wald natural": (n - Z * np.sqrt(n), n + Z * np.sqrt(n)),
        "profile": deviance_ends(n),
    }[kind]
    return st.gamma.cdf(high, n) - st.gamma.cdf(max(low, 0.0), n)


def deviance_ends(n):
    from scipy.optimize import brentq

    deviance = lambda g: 2 * (g - n - n * np.log(g / n)) - Z**2  # noqa: E731
    return brentq(deviance, 1e-9, n), brentq(deviance, n, 20 * n)


def test_coverage_and_length_are_the_exact_ones():
    kinds = ("wald", "wald natural")
    found = fj.coverage(families.exponential, RATE, KEY, num_observations=(5, 16), num_replicates=4000, kinds=kinds)
    for i, n in enumerate((5, 16)):
        for k, kind in enumerate(kinds):
            within(found.probability[i, k, 0], found.probability_error[i, k, 0], exact_coverage(kind, n))
        mean = 2.0 * n / (n - 1)
        within(found.length[i, 1, 0], found.length_error[i, 1, 0], 2 * Z / np.sqrt(n) * mean)
        within(found.length[i, 0, 0], found.length_error[i, 0, 0], 2 * np.sinh(Z / np.sqrt(n)) * mean)
    profile = fj.coverage(families.exponential, RATE, KEY, num_observations=5, num_replicates=4000, kinds="profile")
    within(profile.probability[0, 0, 0], profile.probability_error[0, 0, 0], exact_coverage("profile", 5))
    assert found.probability_error[0, 0, 0] == pytest.approx(np.sqrt(0.05 * 0.95 / 4000), rel=0.5)
    assert not found.num_without.any()
    assert found.to_frame().shape == (4, 7)
    assert "Coverage of nominal 95 % intervals" in str(found)
    assert "<table>" in found._repr_html_()


@pytest.mark.exhaustive
def test_data_sets_without_an_interval_are_counted_and_do_not_cover():
    truth = {"logit": 1.0}
    found = fj.coverage(
        families.bernoulli, truth, KEY, num_observations=6, num_replicates=2000, kinds=("wald", "percentile"),
        num_bootstraps=20, num_bootstrapped=2,
    )  # fmt: skip
    p = 1 / (1 + np.exp(-1.0))
    chance = p**6 + (1 - p) ** 6
    within(found.num_without[0, 0, 0] / 2000, np.sqrt(chance * (1 - chance) / 2000), chance)
    assert found.probability[0, 0, 0] <= 1 - found.num_without[0, 0, 0] / 2000
    assert found.num_data_sets.tolist() == [[2000, 2]]
    assert "counted as not covering" in str(found)


def test_sample_sizes_are_the_textbooks():
    assert fj.sample_size(families.exponential, RATE, standard_error={"rate": 0.1}).num_observations == 400
    assert fj.sample_size(families.exponential, RATE, standard_error=jnp.array(0.1)).num_observations == 400
    one = fj.Model(
        lambda p, y: norm.logpdf(y, p["loc"], 2.0),
        sample=lambda key, p: p["loc"] + 2.0 * jax.random.normal(key),
        information=lambda p: jnp.array([[0.25]]),
    )
    found = fj.sample_size(one, {"loc": 1.0}, power=0.8, hypothesis={"loc": 0.0}, key=KEY, num_replicates=3000)
    exact = (st.norm.ppf(0.975) + st.norm.ppf(0.8)) ** 2 * 4.0
    assert found.exact == pytest.approx(exact, rel=1e-4)  # but for the other tail
    assert found.num_observations == 32
    assert found.power == pytest.approx(st.norm.cdf(np.sqrt(32) / 2 - Z), abs=1e-4)
    within(*found.simulated, found.power)
    assert "Power, simulated" in str(found)


@pytest.mark.exhaustive
def test_sample_sizes_for_functions_and_designs_are_reached():
    truth = {"rate": 0.5}
    mean = lambda p: {"mean": 1 / p["rate"]}  # noqa: E731
    found = fj.sample_size(
        families.exponential, truth, standard_error={"mean": 0.1}, function=mean, key=KEY, num_replicates=3000
    )
    assert found.num_observations == 400
    assert found.names == ("mean",)
    within(*found.simulated, 0.1)
    model, rows = fj.linked(families.bernoulli, logistic), np.linspace(-1.5, 1.5, 60)
    design = fj.sample_size(model, {"intercept": -0.3, "slope": 1.0}, standard_error={"slope": 0.3}, given=rows)
    assert design.num_observations % 60 == 0
    assert design.num_observations - 60 < design.exact <= design.num_observations
    sampled = fj.sample_size(
        families.exponential, RATE, standard_error=0.1, expectation=fj.MonteCarlo(KEY, 4000, "outer")
    )
    within(sampled.exact, sampled.exact_error, 400.0)
    assert sampled.exact_error > 0
