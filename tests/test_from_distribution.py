"""Distributions of other libraries as models: forty of NumPyro against scipy, other libraries' conventions, bad input."""

import functools
import pickle
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from helpers import some_of
from scipy import special, stats

import fisher_jax as fj

C, U, D = "positive", "real", "count"
GRID = {
    "positive": np.array([0.05, 0.4, 1.0, 2.5, 7.0]),
    "real": np.array([-3.0, -0.4, 0.0, 1.3, 6.0]),
    "unit": np.array([0.02, 0.3, 0.5, 0.77, 0.98]),
    "count": np.array([0.0, 1.0, 2.0, 5.0, 9.0]),
    "binary": np.array([0.0, 1.0]),
    "trials": np.array([0.0, 1.0, 4.0, 9.0]),
    "positive count": np.array([1.0, 2.0, 3.0, 6.0, 9.0]),
    "above two": np.array([2.1, 2.5, 3.0, 4.0, 9.0]),
    "angle": np.array([-3.0, -1.0, 0.0, 1.3, 3.0]),
    "one to four": np.array([1.1, 1.5, 2.0, 3.0, 3.9]),
}
OUTSIDE = {
    "positive": [-1.0],
    "real": [],
    "unit": [-0.1, 1.1],
    "count": [-1.0, 0.5],
    "binary": [-1.0, 0.5, 2.0],
    "trials": [-1.0, 0.5, 10.0],
    "positive count": [-1.0, 0.5],
    "above two": [1.9],
    "angle": [-4.0, 4.0],
    "one to four": [0.9, 4.1],
}


class Case(NamedTuple):
    """A distribution, its parameters, the same in scipy, its support, and what is not estimated in the fit."""

    make: Any
    params: dict[str, float]
    scipy: Any
    support: str
    fixed: tuple[str, ...] = ()
    parameters: tuple[str, ...] | None = None


def zero_inflated(pmf, p):
    return lambda y: np.log(np.where(y == 0, p, 0.0) + (1 - p) * pmf(y))


def beta_negative_binomial(y, a, b, n):
    return (
        special.betaln(a + y, b + n)
        - special.betaln(a, b)
        + special.gammaln(n + y)
        - special.gammaln(n)
        - special.gammaln(y + 1)
    )


def asymmetric_laplace(y, loc, scale, k):
    z = (y - loc) / scale
    return -np.log(scale * (k + 1 / k)) - np.where(z < 0, -z / k, z * k)


CASES = {
    "AsymmetricLaplace": Case(
        dist.AsymmetricLaplace,
        {"loc": 0.3, "scale": 1.2, "asymmetry": 1.5},
        lambda y: asymmetric_laplace(y, 0.3, 1.2, 1.5),
        "real",
        ("loc",),  # where the density has a kink
    ),
    "Bernoulli": Case(dist.Bernoulli, {"probs": 0.3}, stats.bernoulli(0.3), "binary", parameters=("probs",)),
    "BernoulliLogits": Case(dist.BernoulliLogits, {"logits": -0.4}, stats.bernoulli(special.expit(-0.4)), "binary"),
    "BernoulliProbs": Case(dist.BernoulliProbs, {"probs": 0.7}, stats.bernoulli(0.7), "binary"),
    "Beta": Case(dist.Beta, {"concentration1": 2.0, "concentration0": 3.5}, stats.beta(2.0, 3.5), "unit"),
    "BetaBinomial": Case(
        dist.BetaBinomial,
        {"concentration1": 2.0, "concentration0": 3.0, "total_count": 9},
        stats.betabinom(9, 2.0, 3.0),
        "trials",
        ("total_count",),
    ),
    "BetaNegativeBinomial": Case(
        dist.BetaNegativeBinomial,
        {"concentration1": 4.0, "concentration0": 3.0, "n": 2.5},
        lambda y: beta_negative_binomial(y, 4.0, 3.0, 2.5),
        "count",
        ("n",),
    ),
    "BetaProportion": Case(dist.BetaProportion, {"mean": 0.3, "concentration": 6.0}, stats.beta(1.8, 4.2), "unit"),
    "Binomial": Case(
        dist.Binomial,
        {"total_count": 9, "logits": 0.4},
        stats.binom(9, special.expit(0.4)),
        "trials",
        ("total_count",),
        ("total_count", "logits"),
    ),
    "BinomialProbs": Case(
        dist.BinomialProbs, {"probs": 0.4, "total_count": 9}, stats.binom(9, 0.4), "trials", ("total_count",)
    ),
    "Cauchy": Case(dist.Cauchy, {"loc": 0.5, "scale": 1.5}, stats.cauchy(0.5, 1.5), "real"),
    "Chi2": Case(dist.Chi2, {"df": 3.5}, stats.chi2(3.5), "positive"),
    "Dagum": Case(
        dist.Dagum, {"concentration": 1.3, "sharpness": 3.0, "scale": 2.0}, stats.burr(3.0, 1.3, scale=2.0), "positive"
    ),
    "DiscreteUniform": Case(
        dist.DiscreteUniform, {"low": 0, "high": 9}, stats.randint(0, 10), "trials", ("low", "high")
    ),
    "Exponential": Case(dist.Exponential, {"rate": 1.7}, stats.expon(scale=1 / 1.7), "positive"),
    "Gamma": Case(dist.Gamma, {"concentration": 2.2, "rate": 1.3}, stats.gamma(2.2, scale=1 / 1.3), "positive"),
    "GammaPoisson": Case(dist.GammaPoisson, {"concentration": 2.2, "rate": 0.6}, stats.nbinom(2.2, 0.6 / 1.6), "count"),
    "Geometric": Case(dist.Geometric, {"probs": 0.35}, stats.geom(0.35, loc=-1), "count", parameters=("probs",)),
    "Gompertz": Case(dist.Gompertz, {"concentration": 0.8, "rate": 0.5}, stats.gompertz(0.8, scale=2.0), "positive"),
    "Gumbel": Case(dist.Gumbel, {"loc": 0.3, "scale": 1.4}, stats.gumbel_r(0.3, 1.4), "real"),
    "HalfCauchy": Case(dist.HalfCauchy, {"scale": 1.4}, stats.halfcauchy(scale=1.4), "positive"),
    "HalfNormal": Case(dist.HalfNormal, {"scale": 2.4}, stats.halfnorm(scale=2.4), "positive"),
    "InverseGamma": Case(
        dist.InverseGamma, {"concentration": 2.5, "rate": 3.0}, stats.invgamma(2.5, scale=3.0), "positive"
    ),
    "Kumaraswamy": Case(
        dist.Kumaraswamy,
        {"concentration1": 2.0, "concentration0": 3.0},
        lambda y: np.log(6.0 * y * (1 - y**2) ** 2),
        "unit",
    ),
    "Laplace": Case(dist.Laplace, {"loc": 0.5, "scale": 1.5}, stats.laplace(0.5, 1.5), "real", ("loc",)),
    "Levy": Case(dist.Levy, {"loc": 2.0, "scale": 1.5}, stats.levy(2.0, 1.5), "above two", ("loc",)),
    "LogNormal": Case(dist.LogNormal, {"loc": 0.4, "scale": 0.8}, stats.lognorm(0.8, scale=np.exp(0.4)), "positive"),
    "LogUniform": Case(
        dist.LogUniform, {"low": 1.0, "high": 4.0}, stats.loguniform(1.0, 4.0), "one to four", ("low", "high")
    ),
    "Logistic": Case(dist.Logistic, {"loc": 0.5, "scale": 1.5}, stats.logistic(0.5, 1.5), "real"),
    "NegativeBinomial2": Case(
        dist.NegativeBinomial2, {"mean": 3.0, "concentration": 2.0}, stats.nbinom(2.0, 0.4), "count"
    ),
    "NegativeBinomialProbs": Case(
        dist.NegativeBinomialProbs,
        {"total_count": 3.5, "probs": 0.4},
        stats.nbinom(3.5, 0.6),
        "count",
        ("total_count",),
    ),
    "Normal": Case(dist.Normal, {"loc": 0.5, "scale": 1.5}, stats.norm(0.5, 1.5), "real"),
    "Pareto": Case(dist.Pareto, {"scale": 2.0, "alpha": 2.5}, stats.pareto(2.5, scale=2.0), "above two", ("scale",)),
    "Poisson": Case(dist.Poisson, {"rate": 3.2}, stats.poisson(3.2), "count"),
    "SoftLaplace": Case(dist.SoftLaplace, {"loc": 0.5, "scale": 1.5}, stats.hypsecant(0.5, 1.5), "real"),
    "StudentT": Case(dist.StudentT, {"df": 4.0, "loc": 0.5, "scale": 1.5}, stats.t(4.0, 0.5, 1.5), "real", ("df",)),
    "Uniform": Case(dist.Uniform, {"low": 1.0, "high": 4.0}, stats.uniform(1.0, 3.0), "one to four", ("low", "high")),
    "VonMises": Case(dist.VonMises, {"loc": 0.5, "concentration": 1.5}, stats.vonmises(1.5, 0.5), "angle"),
    "Weibull": Case(dist.Weibull, {"scale": 2.0, "concentration": 1.7}, stats.weibull_min(1.7, scale=2.0), "positive"),
    "ZeroInflatedPoisson": Case(
        dist.ZeroInflatedPoisson, {"gate": 0.3, "rate": 3.2}, zero_inflated(stats.poisson(3.2).pmf, 0.3), "count"
    ),
}
assert len(CASES) == 40


# log B(a, b) as NumPyro and `jax.scipy.special.betaln` compute it is off by some 1e-6 there.
APPROXIMATE = ("BetaBinomial", "BetaNegativeBinomial", "GammaPoisson", "NegativeBinomial2", "NegativeBinomialProbs")


def model_of(name):
    case = CASES[name]
    constraints = dict.fromkeys(case.fixed, fj.fixed) or None
    return fj.from_distribution(case.make, parameters=case.parameters, constraints=constraints)


def log_density_of(case):
    if callable(case.scipy):
        return case.scipy
    return case.scipy.logpmf if hasattr(case.scipy.dist, "logpmf") else case.scipy.logpdf


@pytest.mark.parametrize("name", CASES)
def test_the_log_density_is_that_of_scipy_and_minus_infinity_outside_the_support(name):
    case, model = CASES[name], model_of(name)
    # Always as many, so that an operation is compiled once for all forty.
    inside, outside = (
        np.resize(GRID[case.support], 5),
        np.append(np.resize([*OUTSIDE[case.support], np.nan], 3), np.nan),
    )
    values = np.asarray(jax.vmap(model.log_density, in_axes=(None, 0))(case.params, np.concatenate([inside, outside])))
    rtol = 1e-6 if name in APPROXIMATE else 2e-10
    np.testing.assert_allclose(values[:5], log_density_of(case)(inside), rtol=rtol, atol=1e-12)
    np.testing.assert_array_equal(values[5:], np.where(np.isnan(outside), np.nan, -np.inf))
    assert model.discrete == (case.support in ("count", "binary", "trials", "positive count"))


@pytest.mark.parametrize("name", CASES)
def test_a_constraint_is_read_for_each_parameter_that_is_not_any_real_number(name):
    case, model = CASES[name], model_of(name)
    unbounded = {"loc", "logits"}
    declared = {path[:1] for path, _ in model.declarations.constraints}
    assert declared >= {(name,) for name in case.params if name not in unbounded}


# Fitted by the library's own distribution, and the estimate compared with that of our family or of scipy's likelihood.
FITS = [name for name, case in CASES.items() if len(case.fixed) < len(case.params)]
FEW = ("Weibull", "ZeroInflatedPoisson", "Pareto")


@pytest.mark.parametrize("name", some_of(FITS, *FEW))
def test_a_fit_maximises_the_likelihood_of_scipy_near_the_truth(name):
    case, model = CASES[name], model_of(name)
    keys = jax.random.split(jax.random.key(3), 400)
    data = np.asarray(jax.jit(jax.vmap(lambda key: model.sample(key, case.params)))(keys), float)
    fit = fj.fit(model, case.params, data)
    assert fit.converged
    rtol = 1e-6 if name in APPROXIMATE else 1e-9
    np.testing.assert_allclose(fit.log_likelihood, likelihood_of(name, fit.params, data), rtol=rtol)
    # Within five standard errors of the truth, which for 37 distributions happens by chance once in ten thousand.
    errors = jax.tree.leaves(fit.standard_errors())
    for estimate, truth, error in zip(
        jax.tree.leaves(fit.params), jax.tree.leaves(dict(case.params)), errors, strict=True
    ):
        assert abs(estimate - truth) <= 5.0 * error


def likelihood_of(name, params, data):
    """The log-likelihood at the estimate, by our family where it has the same parameters, else by scipy's at these."""
    case = CASES[name]
    p = {key: float(value) for key, value in params.items()}
    at = {
        "Gamma": lambda: stats.gamma(p["concentration"], scale=1 / p["rate"]).logpdf(data),
        "NegativeBinomial2": lambda: stats.nbinom(
            p["concentration"], p["concentration"] / (p["concentration"] + p["mean"])
        ).logpmf(data),
        "BetaBinomial": lambda: stats.betabinom(9, p["concentration1"], p["concentration0"]).logpmf(data),
        "Weibull": lambda: stats.weibull_min(p["concentration"], scale=p["scale"]).logpdf(data),
        "VonMises": lambda: stats.vonmises(p["concentration"], p["loc"]).logpdf(data),
        "ZeroInflatedPoisson": lambda: zero_inflated(stats.poisson(p["rate"]).pmf, p["gate"])(data),
        "Bernoulli": lambda: stats.bernoulli(np.mean(data)).logpmf(data),  # its maximum is the mean
        "Pareto": lambda: stats.pareto(p["alpha"], scale=2.0).logpdf(data),
        "StudentT": lambda: stats.t(4.0, p["loc"], p["scale"]).logpdf(data),
    }
    if name in at:
        return np.sum(at[name]())
    return np.sum(np.asarray(jax.vmap(case.make(**params).log_prob)(data)))


def test_the_distribution_function_mean_and_quantile_are_those_of_the_distribution():
    model, params = fj.from_distribution(dist.Gamma), {"concentration": 2.2, "rate": 1.3}
    scipy = stats.gamma(2.2, scale=1 / 1.3)
    y = np.array([-1.0, 0.3, 2.0, 5.0])
    cdf = jax.vmap(model.log_cdf, in_axes=(None, 0))(params, y)
    np.testing.assert_allclose(cdf, scipy.logcdf(y), rtol=1e-9)
    survival = jax.vmap(model.log_survival, in_axes=(None, 0))(params, y)
    np.testing.assert_allclose(survival, scipy.logsf(y), rtol=1e-9, atol=1e-15)
    assert np.isnan(model.log_survival(params, 40.0))  # 1 − F has no digit left: no wrong number
    np.testing.assert_allclose(model.mean(params), scipy.mean(), rtol=1e-12)
    assert model.support == (0.0, np.inf)
    normal = fj.from_distribution(dist.Normal)
    np.testing.assert_allclose(
        normal.quantile(0.975, {"loc": 1.0, "scale": 2.0}), stats.norm(1, 2).ppf(0.975), rtol=1e-12
    )
    counts = fj.from_distribution(dist.Poisson)
    np.testing.assert_allclose(counts.log_cdf({"rate": 3.0}, 2.7), stats.poisson(3.0).logcdf(2), rtol=1e-12)
    assert counts.log_cdf({"rate": 3.0}, -0.5) == -np.inf
    assert counts.quantile is None  # which NumPyro does not have


def regression(params, x):
    return dist.Poisson(jnp.exp(params["intercept"] + params["slope"] * x))


def test_a_function_of_params_and_covariates_is_a_regression():
    x = np.linspace(-1, 1, 40)
    y = np.random.default_rng(2).poisson(np.exp(0.5 + x)).astype(float)
    example = {"intercept": 0.0, "slope": 0.0}
    own = fj.linked(fj.families.poisson, lambda p, x: {"rate": jnp.exp(p["intercept"] + p["slope"] * x)})
    theirs = fj.from_distribution(regression, discrete=True)
    fits = [fj.fit(model, example, y, given=x) for model in (own, theirs)]
    np.testing.assert_allclose(fits[1].log_likelihood, fits[0].log_likelihood, rtol=1e-12)
    np.testing.assert_allclose(fits[1].params["slope"], fits[0].params["slope"], rtol=1e-8)
    assert theirs == fj.from_distribution(regression, discrete=True)
    assert pickle.loads(pickle.dumps(theirs)) == theirs


class _Distrax:
    """The conventions of distrax: `seed=`, log_cdf and log_survival_function, mean as a method, no support."""

    event_shape = ()

    def __init__(self, loc, scale):
        self.loc, self.scale = loc, scale

    def log_prob(self, value):
        return jax.scipy.stats.norm.logpdf(value, self.loc, self.scale)

    def sample(self, *, seed, sample_shape=()):
        return self.loc + self.scale * jax.random.normal(seed, sample_shape)

    def log_cdf(self, value):
        return jax.scipy.stats.norm.logcdf(value, self.loc, self.scale)

    def log_survival_function(self, value):
        return jax.scipy.stats.norm.logsf(value, self.loc, self.scale)

    def quantile(self, probability):
        return self.loc + self.scale * jax.scipy.special.ndtri(probability)

    def mean(self):
        return self.loc


class _Flow:
    """The conventions of FlowJAX and distreqx: a key by position, and nothing else."""

    def __init__(self, rate):
        self.rate = rate

    def log_prob(self, y):
        return jnp.log(self.rate) - self.rate * y

    def sample(self, key, sample_shape=()):
        return jax.random.exponential(key, sample_shape) / self.rate


def test_other_libraries_conventions_are_met():
    params = {"loc": 1.0, "scale": 2.0}
    model = fj.from_distribution(_Distrax, example=params, constraints={"scale": fj.positive})
    np.testing.assert_allclose(model.log_survival(params, 30.0), stats.norm(1, 2).logsf(30.0), rtol=1e-12)
    np.testing.assert_allclose(model.quantile(0.3, params), stats.norm(1, 2).ppf(0.3), rtol=1e-12)
    assert model.mean(params) == 1.0
    assert np.shape(model.sample(jax.random.key(0), params)) == ()
    flow = fj.from_distribution(lambda params: _Flow(jnp.exp(params)))
    assert flow.log_cdf is None
    assert flow.sample(jax.random.key(0), 0.5) > 0
    np.testing.assert_allclose(flow.log_density(0.5, 2.0), 0.5 - 2.0 * np.exp(0.5))


def test_an_argument_that_violates_its_constraint_gives_nan():
    model = fj.from_distribution(lambda params: dist.Normal(params["loc"], params["scale"]))
    density = jax.jit(model.log_density)  # without jit NumPyro raises by itself
    assert np.isnan(density({"loc": 0.0, "scale": -1.0}, 0.3))
    assert np.isfinite(density({"loc": 0.0, "scale": 1.0}, 0.3))
    fit = fj.fit(model, {"loc": 0.0, "scale": -1.0}, np.array([0.1, 0.5, 0.7]))
    assert fit.status == fj.Status.BAD_START


def test_derivatives_outside_the_support_are_finite():
    model = fj.from_distribution(dist.Gamma)
    slope = jax.grad(lambda p: model.log_density(p, -1.0))({"concentration": 2.0, "rate": 1.0})
    assert np.all(np.isfinite(jax.tree.leaves(slope)))


def test_vectors_and_matrices_have_constraints():
    model = fj.from_distribution(dist.MultivariateNormal, parameters=("loc", "covariance_matrix"))
    y = np.random.default_rng(4).normal(size=(50, 2)) @ np.array([[1.0, 0.3], [0.0, 0.8]])
    fit = fj.fit(model, {"loc": np.zeros(2), "covariance_matrix": np.eye(2)}, y)
    np.testing.assert_allclose(fit.params["covariance_matrix"], np.cov(y.T, bias=True), rtol=1e-7)
    assert fj.from_distribution(dist.Dirichlet).constraints == {"concentration": fj.positive}


@pytest.mark.exhaustive
def test_a_constraint_that_only_the_other_library_has_comes_with_its_bijection():
    y = np.random.default_rng(4).normal(size=(50, 2)) @ np.array([[1.0, 0.3], [0.0, 0.8]])
    factor = fj.from_distribution(dist.MultivariateNormal, parameters=("loc", "scale_tril"))
    lower = np.linalg.cholesky(np.cov(y.T, bias=True))
    fit = fj.fit(factor, {"loc": np.zeros(2), "scale_tril": np.eye(2)}, y)
    np.testing.assert_allclose(fit.params["scale_tril"], lower, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"make": dist.Normal(0.0, 1.0)}, "is a distribution already"),
        ({"make": 3.0}, "must be a class or a function"),
        ({"make": dict}, "no method log_prob"),
        ({"make": dist.Bernoulli}, r"takes probs, logits, of which some exclude each other.*parameters=\('probs',\)"),
        ({"make": dist.MultivariateNormal}, "covariance_matrix, precision_matrix, scale_tril"),
        ({"make": dist.Gamma, "parameters": "shape"}, "'shape' of Gamma, which takes concentration, rate"),
        ({"make": regression, "parameters": "slope"}, "parameters='slope' are arguments of a class"),
        ({"make": dist.Gamma, "discrete": 1}, "discrete=1 must be True or False"),
        ({"make": dist.Gamma, "constraints": fj.positive}, "constraints=.* must be a dictionary"),
    ],
)
def test_bad_arguments_raise(arguments, message):
    with pytest.raises((TypeError, ValueError), match=f"from_distribution: .*{message}"):
        fj.from_distribution(**arguments)


def test_a_distribution_is_a_component_of_a_mixture_beside_one_with_covariates():
    line = fj.linked(fj.families.normal, lambda p, x: {"loc": p["slope"] * x, "scale": 1.0})
    model = fj.mixture({"theirs": fj.from_distribution(dist.Gamma), "line": line})
    params = {"weights": np.array([0.4, 0.6]), "theirs": {"concentration": 2.0, "rate": 1.0}, "line": {"slope": 3.0}}
    expected = np.log(0.4 * stats.gamma(2.0).pdf(1.5) + 0.6 * stats.norm(6.0, 1.0).pdf(1.5))
    np.testing.assert_allclose(model.log_density(params, 1.5, 2.0), expected, rtol=1e-10)


def test_arguments_may_be_fixed_by_a_partial_function():
    model = fj.from_distribution(functools.partial(dist.Gamma, rate=2.0))
    assert model.constraints == {"concentration": fj.positive}
    np.testing.assert_allclose(model.log_density({"concentration": 3.0}, 1.2), stats.gamma(3.0, scale=0.5).logpdf(1.2))


def test_wrong_uses_of_a_model_raise():
    model = fj.from_distribution(dist.Gamma)
    with pytest.raises(ValueError, match="has parameters and no covariates"):
        model.log_density({"concentration": 1.0, "rate": 1.0}, 1.0, 2.0)
    with pytest.raises(TypeError, match="must be a dictionary of the distribution's arguments"):
        model.log_density(np.ones(2), 1.0)
    with pytest.raises(TypeError, match="which has no method log_prob"):
        fj.from_distribution(lambda params: params).log_density(1.0, 2.0)
