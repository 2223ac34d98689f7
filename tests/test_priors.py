"""Priors and penalties: what they add to, and what they leave as it was."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from jax.scipy.stats import norm

import fisher_jax as fj
from fisher_jax import priors
from fisher_jax.fitting.passes import passes_of


def logit(beta, z):
    return {"logit": z @ beta["beta"]}


NAMES = {"beta": ("Intercept", "NV", "PI", "EH")}
LOGISTIC = fj.linked(fj.families.bernoulli, logit, names=NAMES)
START = {"beta": np.zeros(4)}


@pytest.fixture(scope="module")
def endometrial():
    rows = np.loadtxt(pathlib.Path(__file__).parents[1] / "data" / "endometrial.csv", delimiter=",")
    x = np.column_stack([np.ones(len(rows)), rows[:, :3]])
    return rows[:, 3].astype(int), x


@pytest.fixture(scope="module")
def firth(endometrial):
    y, x = endometrial
    return fj.fit(fj.with_prior(LOGISTIC, priors.jeffreys()), START, y, given=x)


@pytest.fixture(scope="module")
def scaled(endometrial):
    y, x = endometrial
    return y, np.column_stack([x[:, 0], (x[:, 1:] - x[:, 1:].mean(0)) / x[:, 1:].std(0)])


RIDGE = fj.with_prior(LOGISTIC, priors.ridge("NV", "PI", "EH"))


def test_separated_data_end_at_infinity_and_the_culprit_is_named(endometrial):
    y, x = endometrial
    fit = fj.fit(LOGISTIC, START, y, given=x)
    assert fit.status == fj.Status.BOUNDARY
    assert "NV" in fit.diagnosis()


def test_firths_estimates_and_errors_are_those_of_r(firth):
    """brglm2 2021: endometrial cancer of Heinze and Schemper (2002)."""
    estimates, errors = [3.7745597, 2.9292734, -0.03475176, -2.6041639], [1.4886917, 1.5507637, 0.039578147, 0.77601764]
    np.testing.assert_allclose(firth.params["beta"], estimates, rtol=1e-6)
    np.testing.assert_allclose(firth.standard_errors()["beta"], errors, rtol=1e-6)
    text = str(firth.summary())
    assert "Penalised" in text
    assert "Jeffreys" in text
    assert "inverse expected" in text


def test_the_penalty_is_half_the_log_determinant_of_the_expected_information(firth, endometrial):
    y, x = endometrial
    p = 1 / (1 + np.exp(-x @ firth.params["beta"]))
    information = (x * (p * (1 - p))[:, None]).T @ x
    np.testing.assert_allclose(firth.log_prior, 0.5 * np.linalg.slogdet(information)[1], rtol=1e-12)
    np.testing.assert_allclose(firth.log_likelihood, np.sum(np.log(np.where(y == 1, p, 1 - p))), rtol=1e-12)
    np.testing.assert_allclose(firth.aic(), 8 - 2 * firth.log_likelihood, rtol=1e-12)


def test_profile_intervals_are_of_the_penalised_likelihood(firth):
    """Heinze and Schemper (2002), table 2, by logistf: NV 0.6097 to 7.8546."""
    intervals = firth.confidence_intervals(method="profile")["beta"]
    np.testing.assert_allclose(intervals[1], [0.60973, 7.85463], rtol=1e-5)


def test_the_penalised_likelihood_ratio_is_that_of_the_fit_with_a_coefficient_held(firth, endometrial):
    """The penalty of the restricted fit is that of all coefficients, as in logistf."""
    y, x = endometrial

    def penalised(rest):
        beta = np.insert(rest, 1, 0.0)
        p = 1 / (1 + np.exp(-x @ beta))
        information = (x * (p * (1 - p))[:, None]).T @ x
        return -np.sum(np.log(np.where(y == 1, p, 1 - p))) - 0.5 * np.linalg.slogdet(information)[1]

    best = scipy.optimize.minimize(penalised, [3.0, 0.0, -2.0], method="BFGS", options={"gtol": 1e-9})
    test = fj.likelihood_ratio_test(firth, "NV = 0")
    np.testing.assert_allclose(test.statistic, 2 * (firth.penalized_log_likelihood + best.fun), rtol=1e-6)


@pytest.mark.parametrize("c", [0.1, 10.0])
def test_ridge_is_scikit_learns(scaled, c):
    from sklearn.linear_model import LogisticRegression

    y, x = scaled
    theirs = LogisticRegression(C=c, tol=1e-14, max_iter=10_000, solver="newton-cholesky").fit(x[:, 1:], y)
    fit = fj.fit(RIDGE, START, y, given=x, strength=1 / c)
    np.testing.assert_allclose(fit.params["beta"], [*theirs.intercept_, *theirs.coef_[0]], rtol=1e-7, atol=1e-9)


def test_firth_in_a_batch_is_where_his_score_is_zero(endometrial):
    """Firth, D. (1993), Biometrika 80: to each residual hᵢ (½ − pᵢ) is added, with hᵢ its leverage."""
    y, x = endometrial[0], endometrial[1][:, [0, 2]]
    model = fj.with_prior(fj.linked(fj.families.bernoulli, logit), priors.jeffreys())
    kinds = ("observed", "expected")
    fits = fj.fit_batch(model, {"beta": np.zeros(2)}, np.stack([y, 1 - y]), given=x, covariances=kinds)
    for k, response in enumerate((y, 1 - y)):
        p = 1 / (1 + np.exp(-x @ fits.params["beta"][k]))
        covariance = np.linalg.inv((x * (p * (1 - p))[:, None]).T @ x)
        leverage = np.einsum("ni,ij,nj->n", x, covariance, x) * p * (1 - p)
        np.testing.assert_allclose(covariance @ x.T @ (response - p + leverage * (0.5 - p)), 0.0, atol=1e-8)
        np.testing.assert_allclose(fits.standard_errors()["beta"][k], np.sqrt(np.diag(covariance)), rtol=1e-7)
    np.testing.assert_allclose(fits.params["beta"][1], -fits.params["beta"][0], rtol=1e-8)


def gauss(params, y):
    return norm.logpdf(y, params["mu"], 2.0)


def test_a_normal_mean_has_the_posterior_of_textbooks():
    y = np.array([3.0, 4.0, 6.0])
    fit = fj.fit(fj.Model(gauss, prior=priors.normal({"mu": (1.0, 0.5)})), {"mu": 0.0}, y)
    precision = len(y) / 4 + 1 / 0.25
    np.testing.assert_allclose(fit.params["mu"], (y.sum() / 4 + 1.0 / 0.25) / precision, rtol=1e-14)
    np.testing.assert_allclose(fit.standard_errors()["mu"], precision**-0.5, rtol=1e-12)
    np.testing.assert_allclose(fit.log_prior, norm.logpdf(fit.params["mu"], 1.0, 0.5), rtol=1e-12)
    np.testing.assert_allclose(fit.log_likelihood, norm.logpdf(y, fit.params["mu"], 2.0).sum(), rtol=1e-14)
    # The functions of the model itself are without the prior.
    np.testing.assert_allclose(fj.log_likelihood(fit.origin.model, fit.params, y), fit.log_likelihood, rtol=1e-14)
    np.testing.assert_allclose(fj.observed_information(fit.origin.model, fit.params, y).matrix, [[0.25]], rtol=1e-12)
    # The sandwich has the prior in its bread, and not in its middle.
    middle = np.sum(((y - fit.params["mu"]) / 4) ** 2)
    np.testing.assert_allclose(fit.covariance("sandwich"), [[middle / precision**2]], rtol=1e-12)


RIDGE_OF_MEAN = fj.Model(gauss, prior=priors.ridge("mu"))


def test_a_path_of_strengths_is_one_batch():
    y, strengths = np.array([3.0, 4.0, 6.0]), np.array([10.0, 1.0, 0.1])
    path = fj.fit_batch(RIDGE_OF_MEAN, {"mu": 0.0}, y, data_axis=None, strength=strengths)
    precision = 3 / 4 + strengths
    mu = y.sum() / 4 / precision
    np.testing.assert_allclose(path.params["mu"], mu, rtol=1e-9)
    np.testing.assert_allclose(path.log_prior, -strengths * mu**2 / 2, rtol=1e-9)
    np.testing.assert_allclose(path.log_likelihood, scipy.stats.norm.logpdf(y, mu[:, None], 2.0).sum(axis=1), rtol=1e-9)
    np.testing.assert_allclose(path.standard_errors()["mu"], precision**-0.5, rtol=1e-7)
    np.testing.assert_allclose(path[1].penalized_log_likelihood, path.log_likelihood[1] + path.log_prior[1], rtol=1e-12)
    # A fit of the batch keeps its strength.
    test = fj.likelihood_ratio_test(path[1], {"mu": 1.0})
    np.testing.assert_allclose(test.statistic, precision[1] * (mu[1] - 1.0) ** 2, rtol=1e-8)


def test_an_estimate_is_a_differentiable_function_of_the_strength():
    y = jnp.array([3.0, 4.0, 6.0])

    def estimate(strength):
        fit = fj.fit(RIDGE_OF_MEAN, {"mu": 0.0}, y, strength=strength)
        return fit.params["mu"], fit.log_prior

    (mu, log_prior), slopes = jax.jit(lambda strength: jax.jvp(estimate, (strength,), (1.0,)))(1.0)
    precision = 3 / 4 + 1.0
    np.testing.assert_allclose(mu, y.sum() / 4 / precision, rtol=1e-12)
    np.testing.assert_allclose(slopes[0], -mu / precision, rtol=1e-10)
    np.testing.assert_allclose(slopes[1], -0.5 * mu**2 + mu**2 / precision, rtol=1e-10)
    assert log_prior == pytest.approx(-0.5 * mu**2)


def test_priors_add_and_describe_themselves():
    def mine(params, strength):
        return -strength * params["scale"]

    total = priors.normal({"mu": (0.0, 2.0)}) + priors.half_normal({"scale": 3.0}) + mine
    params = {"mu": 1.0, "scale": 0.7}
    expected = norm.logpdf(1.0, 0.0, 2.0) + np.log(2) + norm.logpdf(0.7, 0.0, 3.0) - 0.5 * 0.7
    assert float(total(params, 0.5)) == pytest.approx(float(expected), rel=1e-6)
    model = fj.Model(lambda p, y: norm.logpdf(y, p["mu"], p["scale"]), constraints={"scale": fj.positive}, prior=total)
    y = np.array([3.0, 4.0, 6.0])
    fit = fj.fit(model, {"mu": 0.0, "scale": 1.0}, y, strength=0.5)

    def loss(theta):
        mu, scale = theta
        prior = norm.logpdf(mu, 0, 2) + norm.logpdf(scale, 0, 3) - 0.5 * scale
        return -float(norm.logpdf(y, mu, scale).sum() + prior)

    best = scipy.optimize.minimize(loss, [2.0, 2.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
    np.testing.assert_allclose([fit.params["mu"], fit.params["scale"]], best.x, rtol=1e-6)
    text = str(fit.summary())
    assert "mu ~ normal(0, 2) + scale ~ half-normal(3) + mine(params, strength), strength 0.5" in text


def test_a_bootstrap_keeps_the_prior():
    y = np.array([3.0, 4.0, 6.0, 5.0])
    fit = fj.fit(fj.Model(gauss, prior=priors.ridge("mu")), {"mu": 0.0}, y, strength=4.0)
    replicates = fj.bootstrap(fit, key=jax.random.key(0), num_replicates=64)
    spread = y.std() * 2 / 4 / 5.0  # of the mean, shrunk by 1/5
    assert np.std(replicates.fits.params["mu"]) == pytest.approx(spread, rel=0.3)
    assert np.mean(replicates.fits.params["mu"]) == pytest.approx(float(fit.params["mu"]), abs=4 * spread / 8)


def test_a_model_with_latent_effects_takes_a_prior():
    rng = np.random.default_rng(2)
    y = 0.5 + 0.8 * rng.normal(size=(12, 1)) + rng.normal(size=(12, 4))
    predictor = lambda p, b, z: {"loc": p["constant"] + b["group"], "scale": 1.0}  # noqa: E731
    model = fj.mixed(fj.families.normal, predictor, {"group": 0.0})
    start = {"constant": 0.0, "sd": {"group": 0.5}}
    z = {"x": np.zeros_like(y)}
    fit = fj.fit(fj.with_prior(model, priors.normal({"constant": (0.0, 0.01)})), start, y, given=z)
    assert fit.converged
    assert abs(float(fit.params["constant"])) < 0.02

    def value(
        constant, sd
    ):  # in closed form: the rows of a group are normal, with the variance of its effect in common
        return scipy.stats.multivariate_normal.logpdf(y, np.full(4, constant), np.eye(4) + sd**2).sum()

    constant, sd = float(fit.params["constant"]), float(fit.params["sd"]["group"])
    np.testing.assert_allclose(value(constant, sd), fit.log_likelihood, rtol=1e-10)
    # The slope of the log-likelihood is that of the prior turned round, and by the standard deviation there is none.
    slopes = [(value(constant + h, sd + k) - value(constant - h, sd - k)) / 2e-4 for h, k in ((1e-4, 0.0), (0.0, 1e-4))]
    np.testing.assert_allclose(slopes, [constant / 0.01**2, 0.0], rtol=1e-5, atol=1e-4)


def test_draws_of_the_normal_approximation_have_its_moments_and_obey_the_constraints():
    y = np.array([1.0, 2.0, 3.0, 6.0, 4.0, 2.5])
    fit = fj.fit(fj.families.weibull, None, y)
    draws = fit.normal_approximation().sample(jax.random.key(0), 20_000)
    logs = np.log(np.stack([draws["shape"], draws["scale"]]))
    estimate = np.array([fit.params["shape"], fit.params["scale"]])
    np.testing.assert_allclose(logs.mean(axis=1), np.log(estimate), atol=0.02)
    expected = fit.covariance() / np.outer(estimate, estimate)
    np.testing.assert_allclose(np.cov(logs), expected, rtol=0.05)
    assert draws["shape"].min() > 0
    many = fj.fit_batch(fj.families.exponential, None, np.stack([y, 2 * y]))
    drawn = many.normal_approximation().sample(jax.random.key(0), 5)
    assert drawn["rate"].shape == (2, 5)


@pytest.mark.filterwarnings("ignore")  # ArviZ warns of its own future
def test_draws_as_arviz_holds_them():
    fit = fj.fit(fj.Model(gauss, prior=priors.ridge("mu")), {"mu": 0.0}, np.array([3.0, 4.0]), strength=1.0)
    data = fit.normal_approximation().to_inference_data(jax.random.key(0), 50)
    assert data.posterior["mu"].shape == (1, 50)


PENALIZED = fj.with_prior(fj.families.exponential, priors.half_normal({"rate": 2.0}) + priors.ridge("rate"))
EIGHT = np.array([1.0, 2.0, 3.0, 6.0, 4.0, 2.5, 3.5, 0.5])


def penalized_log_likelihood(rate):
    """With a strength of 2, but for a constant."""
    return 8 * np.log(rate) - rate * EIGHT.sum() - 0.5 * (1 / 2.0**2 + 2.0) * rate**2


@functools.cache
def penalized():
    return fj.fit(PENALIZED, {"rate": 1.0}, EIGHT, strength=2.0)


@functools.cache
def penalized_profile():
    """Its maximum and the ends of the interval, where it has fallen by half the quantile of chi-squared."""
    total, kappa = EIGHT.sum(), 1 / 2.0**2 + 2.0
    rate = (np.sqrt(total**2 + 32 * kappa) - total) / (2 * kappa)
    cut = penalized_log_likelihood(rate) - 0.5 * scipy.stats.chi2.ppf(0.95, 1)
    ends = [
        scipy.optimize.brentq(lambda r: penalized_log_likelihood(r) - cut, *sorted((rate, far))) for far in (0.01, 5)
    ]
    return rate, ends


def test_a_prior_of_rows_that_are_read_in_blocks_counts_once():
    memory, rows = penalized(), fj.sources.chunks([EIGHT[:3], EIGHT[3:]])
    source = fj.fit(PENALIZED, {"rate": 1.0}, rows, strength=2.0)
    assert source.converged
    for name in ("log_likelihood", "log_prior"):
        np.testing.assert_allclose(getattr(source, name), getattr(memory, name), rtol=1e-13)
    assert str(source.prior) == str(memory.prior)
    for kind in ("observed", "expected", "sandwich"):
        np.testing.assert_allclose(source.covariance(kind), memory.covariance(kind), rtol=1e-7)
    rate, ends = penalized_profile()
    np.testing.assert_allclose(source.params["rate"], rate, rtol=1e-9)
    np.testing.assert_allclose(fj.profile_likelihood(source, "rate").interval, [ends], rtol=1e-7)
    assert passes_of(source).arguments_by_name["strength"] == 2.0  # with which a test of the likelihood fits the null


def test_a_profile_goes_on_with_the_strength_from_a_fit_that_stopped_too_early():
    fit = fj.fit(PENALIZED, {"rate": 50.0}, EIGHT, strength=2.0, max_steps=2)
    assert fit.status == fj.Status.STEP_LIMIT
    with pytest.warns(fj.FitWarning):
        profile = fj.profile_likelihood(fit, "rate")
    np.testing.assert_allclose(profile.interval, [penalized_profile()[1]], rtol=1e-6)


def test_a_prior_stays_beside_an_auxiliary_measurement():
    model = fj.with_auxiliary(
        fj.Model(gauss, prior=priors.normal({"mu": (1.0, 0.5)})), lambda p, m: norm.logpdf(m, p["mu"], 0.1)
    )
    y = np.array([3.0, 4.0, 6.0])
    fit = fj.fit(model, {"mu": 0.0}, (y, 2.0))
    precision = 3 / 4 + 4.0 + 100.0
    np.testing.assert_allclose(fit.params["mu"], (y.sum() / 4 + 4.0 + 200.0) / precision, rtol=1e-12)


def test_priors_of_one_density_share_no_program():
    y = np.array([3.0, 4.0, 6.0])
    wide, narrow = (fj.Model(gauss, prior=priors.normal({"mu": (0.0, sd)})) for sd in (3.0, 0.1))
    fits = [fj.fit(model, {"mu": 0.0}, y) for model in (wide, narrow, fj.Model(gauss))]
    precisions = 3 / 4 + np.array([1 / 9, 100.0, 0.0])
    np.testing.assert_allclose([fit.params["mu"] for fit in fits], y.sum() / 4 / precisions, rtol=1e-12)
    batch = fj.fit_batch(narrow, {"mu": 0.0}, np.stack([y, y]))
    np.testing.assert_allclose(batch.params["mu"], [fits[1].params["mu"]] * 2, rtol=1e-10)


def test_a_prior_may_make_up_for_observations_that_are_too_few():
    def line(params, y, z):
        return norm.logpdf(y, params["beta"] @ z, 1.0)

    model = fj.Model(line, prior=priors.ridge())
    x = np.array([[1.0, 2.0, 0.5]])
    fit = fj.fit(model, {"beta": np.zeros(3)}, np.array([2.0]), given=x, strength=0.1)
    assert fit.converged
    np.testing.assert_allclose(fit.params["beta"], np.linalg.solve(x.T @ x + 0.1 * np.eye(3), x[0] * 2.0), rtol=1e-9)


def test_a_prior_that_is_not_finite_at_the_start_is_the_culprit():
    def prior(params):
        return jnp.log(params["mu"])

    fit = fj.fit(fj.Model(gauss, prior=prior), {"mu": -1.0}, np.array([3.0, 4.0]))
    assert fit.status == fj.Status.BAD_START
    assert "prior" in fit.diagnosis()


Y = np.array([3.0, 4.0])
WITH_STRENGTH = fj.Model(gauss, prior=priors.ridge("mu"))
WITHOUT = fj.Model(gauss, prior=priors.normal({"mu": (0.0, 1.0)}))
BAD = {
    "no prior": (lambda: fj.fit(gauss, {"mu": 0.0}, Y, strength=1.0), "the model has none"),
    "no strength": (lambda: fj.fit(WITH_STRENGTH, {"mu": 0.0}, Y), "Give the fit strength="),
    "none taken": (lambda: fj.fit(WITHOUT, {"mu": 0.0}, Y, strength=1.0), "a function of params alone"),
    "negative": (lambda: fj.fit(WITH_STRENGTH, {"mu": 0.0}, Y, strength=-1.0), "not negative"),
    "NaN": (lambda: fj.fit(WITH_STRENGTH, {"mu": 0.0}, Y, strength=np.nan), "finite"),
    "text": (lambda: fj.fit(WITH_STRENGTH, {"mu": 0.0}, Y, strength="strong"), "must be a number"),
    "truth": (lambda: fj.fit(WITH_STRENGTH, {"mu": 0.0}, Y, strength=jnp.array(True)), "real numbers"),
    "shape": (lambda: fj.fit(WITH_STRENGTH, {"mu": 0.0}, Y, strength=[1.0, 2.0]), "expected one number"),
    "sizes": (
        lambda: fj.fit_batch(WITH_STRENGTH, {"mu": 0.0}, np.ones((3, 2)), strength=[1.0, 2.0]),
        "one for each of the 3 data sets",
    ),
    "unknown name": (
        lambda: fj.fit(fj.with_prior(gauss, priors.normal({"mean": (0.0, 1.0)})), {"mu": 0.0}, Y),
        "no entry is named 'mean'",
    ),
    "no information": (
        lambda: fj.fit(fj.with_prior(gauss, priors.jeffreys()), {"mu": 0.0}, Y),
        "in closed form, which this one lacks",
    ),
    "no function": (lambda: fj.with_prior(gauss, 3.0), "prior"),
    "a vector": (lambda: fj.fit(fj.Model(gauss, prior=lambda p: jnp.ones(2)), {"mu": 0.0}, Y), "one floating number"),
    "sd": (lambda: priors.normal({"mu": (0.0, -1.0)}), "must be positive"),
    "no pair": (lambda: priors.normal({"mu": 1.0}), "a pair"),
    "no dictionary": (lambda: priors.half_normal(1.0), "expected a dictionary"),
    "strength of ridge": (lambda: priors.ridge(1.0), "The strength is an argument of fit"),
    "Jeffreys of a source": (
        lambda: fj.fit(
            fj.with_prior(fj.families.poisson, priors.jeffreys() + priors.half_normal({"rate": 9.0})),
            {"rate": 1.0},
            fj.sources.chunks([Y]),
        ),
        "of all rows at once",
    ),
    "a prior inside censored": (
        lambda: fj.censored(fj.with_prior(fj.families.weibull, priors.half_normal({"shape": 1.0}))),
        r"Write with_prior\(censored",
    ),
    "a prior inside linked": (
        lambda: fj.linked(fj.with_prior(fj.families.poisson, priors.ridge()), lambda p: {"rate": p}),
        r"Write with_prior\(linked",
    ),
    "a prior inside mixture": (
        lambda: fj.mixture(fj.with_prior(fj.families.poisson, priors.ridge()), 2),
        r"Write with_prior\(mixture",
    ),
    "a prior inside joint": (
        lambda: fj.joint({"a": fj.families.poisson, "b": fj.with_prior(fj.families.poisson, priors.ridge())}),
        r"Write with_prior\(joint",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_has_a_message(case):
    call, words = BAD[case]
    with pytest.raises((TypeError, ValueError), match=words):
        call()
