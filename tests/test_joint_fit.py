"""Several data sets that share parameters: the fit, its covariances, tests, replicates, reports, and bad input."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

import fisher_jax as fj
from fisher_jax import families

RNG = np.random.default_rng(3)
A, B, X = RNG.normal(2, 1, 40), RNG.normal(2, 3, 25), RNG.normal(size=30)
C = RNG.poisson(np.exp(0.2 + 0.5 * X)).astype(float)


def rate(params, x):
    return {"rate": jnp.exp(0.1 * params["loc"] + params["slope"] * x)}


MODELS = {"a": families.normal, "b": families.normal, "c": fj.linked(families.poisson, rate)}
START = {"loc": 1.0, "a": {"scale": 1.0}, "b": {"scale": 2.0}, "c": {"slope": 0.1}}
DATA, GIVEN = {"a": A, "b": B, "c": C}, {"c": X}


def terms(theta):
    loc, log_a, log_b, slope = theta
    return np.concatenate(
        [
            stats.norm.logpdf(A, loc, np.exp(log_a)),
            stats.norm.logpdf(B, loc, np.exp(log_b)),
            stats.poisson.logpmf(C, np.exp(0.1 * loc + slope * X)),
        ]
    )


def differences(function, theta, step=1e-5):
    axes = step * np.eye(len(theta))
    return np.stack([(function(theta + axis) - function(theta - axis)) / (2 * step) for axis in axes], axis=-1)


@pytest.fixture(scope="module")
def fit():
    return fj.joint_fit(MODELS, START, DATA, shared="loc", given=GIVEN)


@pytest.fixture(scope="module")
def theta(fit):
    p = fit.params
    return np.array([p["loc"], np.log(p["a"]["scale"]), np.log(p["b"]["scale"]), p["c"]["slope"]])


def test_the_fit_maximises_the_sum_of_the_log_likelihoods(fit, theta):
    assert fit.converged
    np.testing.assert_allclose(fit.log_likelihood, terms(theta).sum(), rtol=1e-12)
    best = optimize.minimize(lambda t: -terms(t).sum(), [1.0, 0.0, 1.0, 0.0], method="BFGS")
    np.testing.assert_allclose(fit.log_likelihood, -best.fun, rtol=1e-10)
    np.testing.assert_allclose(theta, best.x, atol=1e-4)


def test_observed_and_robust_covariances_have_the_rows_of_all_parts(fit, theta):
    scores = differences(terms, theta)
    information = -differences(lambda t: differences(lambda t: terms(t).sum(), t, 1e-4), theta, 1e-4)
    scale = np.diag([1.0, np.exp(theta[1]), np.exp(theta[2]), 1.0])  # from log scales to scales
    inverse = np.linalg.inv(information)
    np.testing.assert_allclose(fit.covariance(), scale @ inverse @ scale, rtol=1e-4, atol=1e-8)
    sandwich = inverse @ scores.T @ scores @ inverse
    np.testing.assert_allclose(fit.covariance("sandwich"), scale @ sandwich @ scale, rtol=1e-4, atol=1e-8)


def test_the_report_counts_the_rows_of_each_part(fit):
    text = str(fit)
    assert "Observations             95 (a 40, b 25, c 30), free parameters 4" in text
    assert "Shared                   loc by a, b, c" in text
    assert fit.names == ("loc", "a.scale", "b.scale", "c.slope")


def test_tests_of_a_shared_parameter_agree_with_fits_without_it(fit, theta):
    restricted = optimize.minimize(lambda t: -terms([2.5, *t]).sum(), theta[1:], method="BFGS")
    test = fj.likelihood_ratio_test(fit, "loc = 2.5")
    np.testing.assert_allclose(test.statistic, 2 * (terms(theta).sum() + restricted.fun), rtol=1e-5)


@pytest.fixture(scope="module")
def rates():
    """Two rates that have nothing in common."""
    models = {"a": families.exponential, "b": families.exponential}
    return fj.joint_fit(models, None, {"a": np.exp(A), "b": np.exp(B)})


def test_the_bootstrap_resamples_within_each_part(rates):
    replicates = fj.bootstrap(rates, jax.random.key(0), 200)
    # Each mean varies as that of its own rows, whatever those of the other.
    for name, y in (("a", np.exp(A)), ("b", np.exp(B))):
        means = 1.0 / replicates.params[name]["rate"]
        np.testing.assert_allclose(np.std(means), np.std(y) / np.sqrt(len(y)), rtol=0.2)
    assert abs(np.corrcoef(replicates.params["a"]["rate"], replicates.params["b"]["rate"])[0, 1]) < 0.2
    with pytest.raises(ValueError, match="blocks of consecutive rows would run from one part"):
        fj.bootstrap(rates, jax.random.key(0), 20, method="block", block_length=3)


@pytest.mark.exhaustive
def test_the_parametric_bootstrap_draws_as_many_rows_of_each_part(rates):
    drawn = fj.bootstrap(rates, jax.random.key(0), 200, method="parametric")
    for name, count in (("a", len(A)), ("b", len(B))):
        ratio = drawn.params[name]["rate"] / rates.params[name]["rate"]
        np.testing.assert_allclose(np.std(ratio), 1 / np.sqrt(count), rtol=0.3)


def test_a_data_set_drawn_from_a_joint_model_has_the_rows_of_each_part(rates):
    given = {"a": np.zeros((40, 0)), "b": np.zeros((25, 0))}
    drawn = rates.origin.model.sample(jax.random.key(0), rates.params, given)
    assert {name: y.shape for name, y in drawn.items()} == {"a": (40,), "b": (25,)}


def test_weights_are_those_of_each_part_and_zero_leaves_a_row_out_whatever_it_holds():
    models = {"a": families.exponential, "b": families.exponential}
    y = {"a": np.array([1.0, 2.0, -5.0]), "b": np.array([0.5, 1.5])}  # −5 is outside the support
    fit = fj.joint_fit(models, {"rate": 1.0}, y, shared="rate", weights={"a": [1.0, 2.0, 0.0]})
    assert fit.converged
    np.testing.assert_allclose(fit.params["rate"], 5.0 / 7.0, rtol=1e-8)
    np.testing.assert_allclose(fit.num_observations, 5.0)
    again = fj.joint_fit(models, {"rate": 1.0}, y, shared="rate", weights=[1.0, 2.0, 0.0, 1.0, 1.0])
    np.testing.assert_allclose(again.log_likelihood, fit.log_likelihood, rtol=1e-14)


def test_a_part_of_a_fit_predicts_its_rows_with_the_covariance_of_the_joint_fit(fit, theta):
    prediction = fj.predict(fit.part("c"))
    mean = np.exp(0.1 * theta[0] + theta[3] * X)
    np.testing.assert_allclose(prediction.estimate, mean, rtol=1e-10)
    slopes = mean[:, None] * np.stack([np.full(30, 0.1), np.zeros(30), np.zeros(30), X], axis=1)
    errors = np.sqrt(np.einsum("ni,ij,nj->n", slopes, fit.covariance(), slopes))
    np.testing.assert_allclose(prediction.standard_errors(), errors, rtol=1e-8)
    residuals = fj.residuals(fit.part("b"))
    np.testing.assert_allclose(residuals.values, (B - theta[0]) / np.exp(theta[2]), rtol=1e-7)
    with pytest.raises(ValueError, match="a part of a joint fit, 'b', is predicted"):
        fj.bootstrap(fit.part("b"), jax.random.key(0), 20)
    with pytest.raises(ValueError, match=r"Take a part of the fit, as in fit.part\('a'\)"):
        fj.predict(fit)


def test_an_observation_without_density_is_named_with_its_part():
    models = {"a": families.exponential, "b": fj.truncated(families.exponential, low=0.5)}
    y = {"a": np.array([1.0, 2.0]), "b": np.array([0.7, 1.0, 3.0, 0.2])}
    fit = fj.joint_fit(models, {"rate": 1.0}, y, shared="rate")
    assert "observation 3 of 'b', which is 0.2, outside the window (0.5, inf]" in fit.diagnosis()
    prior = fj.with_prior(fj.joint(models, "rate"), lambda params: jnp.log(params["rate"] - 2.0))
    fit = fj.fit(prior, {"rate": 1.0}, {"a": y["a"], "b": y["b"][:3]})
    assert "first at the auxiliary measurement or the prior" in fit.diagnosis()


def test_two_histograms_have_as_many_observations_as_bins():
    edges, counts = np.linspace(-2.0, 2.0, 5), np.array([[5.0, 25, 24, 6]])
    models = {"a": fj.binned(families.logistic, edges, extended=True), "b": fj.binned(families.logistic, edges)}
    fit = fj.joint_fit(models, None, {"a": counts, "b": counts}, shared=("loc", "scale"))
    assert fit.status == fj.Status.CONVERGED  # of three parameters and two histograms

    def loss(theta):
        q = np.diff(stats.logistic.cdf(edges, theta[0], np.exp(theta[1])))
        return -counts[0] @ np.log(q / q.sum())

    best = optimize.minimize(loss, [0.0, -1.0], method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-13})
    np.testing.assert_allclose([fit.params["loc"], np.log(fit.params["scale"])], best.x, rtol=1e-6)
    np.testing.assert_allclose(fit.params["a"]["total"], counts.sum(), rtol=1e-8)
    with pytest.raises(ValueError, match="expected counts in 4 bins"):
        fj.joint_fit(models, None, {"a": counts, "b": counts[0]}, shared=("loc", "scale"))


def test_rows_that_are_masked_are_left_out_of_their_part():
    models = {"a": families.exponential, "b": fj.linked(families.exponential, lambda p, z: {"rate": p["rate"] * z})}
    y = {"a": np.ma.array([1.0, 2.0, 9.0], mask=[0, 0, 1]), "b": np.array([0.5, 1.5, 7.0])}
    fit = fj.joint_fit(
        models, {"rate": 1.0}, y, shared="rate", given={"b": np.ma.array([1.0, 2.0, 1.0], mask=[0, 0, 1])}
    )
    np.testing.assert_allclose(fit.params["rate"], 4.0 / (1.0 + 2.0 + 0.5 + 3.0), rtol=1e-8)
    assert fit.num_masked == 2
    assert fit.num_observations == 4
    table = pytest.importorskip("pandas").DataFrame({"y": [1.0, np.nan, 2.0]})
    dropped = fj.joint_fit({"a": models["a"]}, None, {"a": table["y"]}, missing="drop")
    np.testing.assert_allclose(dropped.params["a"]["rate"], 2.0 / 3.0, rtol=1e-8)


def test_many_joint_data_sets_are_fitted_as_each_by_itself():
    model = fj.joint({"a": families.poisson, "b": families.poisson}, {"rate": ("a", "b")})
    counts = RNG.poisson(3.0, (2, 12)), RNG.poisson(3.0, 7)
    fits = fj.fit_batch(model, None, {"a": counts[0], "b": counts[1]}, data_axis={"a": 0, "b": None})
    assert np.all(fits.converged)
    expected = [(row.sum() + counts[1].sum()) / 19 for row in counts[0]]
    np.testing.assert_allclose(fits.params["rate"], expected, rtol=1e-8)


def test_joint_models_of_the_same_parts_are_equal_and_travel(fit):
    model = fj.joint(MODELS, "loc")
    assert model == fit.origin.model
    assert model != fj.joint(MODELS, {"loc": ("a", "b")})
    assert pickle.loads(pickle.dumps(model)) == model
    assert fj.log_likelihood(model, fit.params, DATA, given=GIVEN) == pytest.approx(
        float(fit.log_likelihood), rel=1e-14
    )


positive_loc = fj.Model(families.normal.log_density, constraints={"loc": fj.positive})
unit_loc = fj.Model(families.normal.log_density, constraints={"loc": fj.unit_interval})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": families.normal}, "must be a dictionary of models"),
        ({"models": {}}, "must be a dictionary of models"),
        ({"models": MODELS, "shared": 3}, "shared=3 must be the name of a parameter"),
        ({"models": MODELS, "shared": "a"}, "'a' is taken by.*has another name than the parts"),
        ({"models": MODELS, "shared": {"loc": ("a", "z")}}, "parts that are among 'a', 'b', 'c'"),
        ({"models": {"a": positive_loc, "b": unit_loc}, "shared": "loc"}, "different constraints.*in 'a'.*in 'b'"),
        ({"models": {"a": fj.dependent(lambda p, y: y * p)}}, "is dependent, has latent effects"),
    ],
)
def test_bad_arguments_of_joint_raise(arguments, message):
    with pytest.raises((TypeError, ValueError), match=f"joint: .*{message}"):
        fj.joint(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": A}, "data of a joint model is a dictionary by its parts, 'a', 'b', 'c'; got ndarray"),
        ({"data": {"a": A, "b": B}}, "data lacks the part 'c'"),
        ({"data": DATA | {"d": A}}, "got dict with 'a', 'b', 'c', 'd'"),
        ({"given": {"c": X[:5]}}, "leading axes of data and given differ .data c: 30, given c: 5"),
        ({"weights": {"a": np.ones(3)}}, r"weights a has shape \(3,\), expected 40"),
        ({"weights": np.ones(3)}, r"weights has shape \(3,\), expected \(95,\)"),
        ({"start": {"a": {"scale": 1.0}}}, "lack the shared parameter 'loc'"),
        ({"start": START | {"slope": 1.0}}, "has 'slope', which is neither a part"),
        ({"start": START | {"a": 1.0}}, "parameters of part 'a' must be a dictionary"),
    ],
)
def test_bad_calls_of_joint_fit_raise(change, message):
    arguments = {"models": MODELS, "start": START, "data": DATA, "shared": "loc", "given": GIVEN} | change
    with pytest.raises((TypeError, ValueError), match=message):
        fj.joint_fit(**arguments)
