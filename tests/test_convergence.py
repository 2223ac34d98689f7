"""A thousand data sets each, from distant starts: what converges, and what is said of the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data_sets import PROBLEMS
from helpers import some_of
from jax.scipy.special import gammaln
from jax.scipy.stats import gamma, norm, poisson
from jax.scipy.stats import t as student_t

import fisher_jax as fj
from fisher_jax import Status
from fisher_jax.models.model import flatten_parameters

POSITIVE = fj.positive


def normal(params, y):
    return norm.logpdf(y, params["loc"], jnp.exp(params["log_scale"]))


def negative_binomial(params, y):
    mean, size = params["mean"], params["size"]
    counts = gammaln(y + size) - gammaln(size) - gammaln(y + 1.0)
    return counts + size * jnp.log(size / (size + mean)) + y * jnp.log(mean / (size + mean))


def mixture(params, y):
    first, second = (norm.logpdf(y, params["loc"][k], params["scale"][k]) for k in (0, 1))
    return jnp.logaddexp(jnp.log(params["weight"]) + first, jnp.log1p(-params["weight"]) + second)


def gev(params, y):
    shape, inside = params["shape"], 1.0 + params["shape"] * (y - params["loc"]) / params["scale"]
    t = jnp.log(jnp.where(inside > 0, inside, 1.0)) / shape
    return jnp.where(inside > 0, -jnp.log(params["scale"]) - (1.0 + shape) * t - jnp.exp(-t), -jnp.inf)


def mixture_sample(rng, size):
    first = rng.uniform(size=size) < 0.4
    return np.where(first, rng.normal(0.0, 1.0, size), rng.normal(3.0, 0.7, size))


# model, truth, and how to draw from it
CASES = {
    "student_t": (
        fj.Model(
            lambda p, y: student_t.logpdf(y, p["df"], p["loc"], p["scale"]),
            constraints={"df": POSITIVE, "scale": POSITIVE},
        ),
        {"df": 4.0, "loc": 1.0, "scale": 2.0},
        lambda rng: 1.0 + 2.0 * rng.standard_t(4, (1000, 200)),
    ),
    "gamma": (
        fj.Model(
            lambda p, y: gamma.logpdf(y, p["shape"], scale=1.0 / p["rate"]),
            constraints={"shape": POSITIVE, "rate": POSITIVE},
        ),
        {"shape": 2.5, "rate": 0.7},
        lambda rng: rng.gamma(2.5, 1 / 0.7, (1000, 50)),
    ),
    "negative_binomial": (
        fj.Model(negative_binomial, constraints={"mean": POSITIVE, "size": POSITIVE}),
        {"mean": 4.0, "size": 1.6},
        lambda rng: rng.negative_binomial(1.6, 1.6 / 5.6, (1000, 100)),
    ),
    "mixture": (
        fj.Model(mixture, constraints={"weight": fj.unit_interval, "scale": POSITIVE}),
        {"weight": 0.4, "loc": jnp.array([0.0, 3.0]), "scale": jnp.array([1.0, 0.7])},
        lambda rng: mixture_sample(rng, (1000, 300)),
    ),
    "gev": (
        fj.Model(gev, constraints={"scale": POSITIVE}),
        {"loc": 10.0, "scale": 2.0, "shape": 0.1},
        lambda rng: 10.0 + 2.0 * ((-np.log(rng.uniform(size=(1000, 100)))) ** -0.1 - 1.0) / 0.1,
    ),
}


def ten_standard_errors_away(model, truth, sample, count):
    """Starts in random directions on the unconstrained scale, by the covariance of the first sample's fit."""
    layout, values = flatten_parameters(model, truth)
    spread = np.linalg.cholesky(np.linalg.inv(np.asarray(fj.fit(model, truth, sample).curvature)))
    directions = np.random.default_rng(2).normal(size=(count, layout.num_free))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    free = np.asarray(layout.unconstrain(values))[None, :] + 10.0 * directions @ spread.T
    return jax.jit(jax.vmap(lambda u: layout.constrain(u, values)))(jnp.asarray(free))


# One program for all starts, and for near and far. What vmap makes of a fit without jit is a claim of test_contracts.py.
fit_normals = jax.jit(jax.vmap(lambda start, y: fj.fit(normal, start, y), in_axes=(None, 0)))


def fit_each(case, starts, samples):
    """A fit from each start to each sample, by one program for all, which tries nothing again."""
    return fj.fit_batch(CASES[case][0], starts, samples, start_axis=0, retry=False)


@pytest.mark.parametrize("start", [(0.0, 0.0), (1.0, 1.0), (10.0, -3.0), (100.0, -5.0), (-50.0, 5.0)])
def test_every_normal_fit_converges_from_every_start(start):
    samples = np.random.default_rng(1).normal(3.0, 2.0, (1000, 50))
    fits = fit_normals({"loc": start[0], "log_scale": start[1]}, samples)
    assert np.all(fits.status == Status.CONVERGED)
    np.testing.assert_allclose(fits.params["loc"], samples.mean(axis=1), rtol=1e-8)
    np.testing.assert_allclose(fits.params["log_scale"], np.log(samples.std(axis=1)), rtol=1e-8)
    assert np.max(fits.num_steps) <= 29


def from_afar(case, count):
    """Samples, starts ten standard errors away, and the fits."""
    model, truth, draw = CASES[case]
    samples = draw(np.random.default_rng(5))[:count]
    starts = ten_standard_errors_away(model, truth, samples[0], count)
    return samples, starts, fit_each(case, starts, samples)


FAR = [("student_t", 200), *((case, 1000) for case in CASES)]


@pytest.mark.parametrize(("case", "count"), some_of(FAR, FAR[0]))  # with an edge
def test_every_fit_converges_from_ten_standard_errors_away(case, count):
    model = CASES[case][0]
    samples, starts, fits = from_afar(case, count)
    # A start at which an observation lies outside the support is no start; the fit must say so, and name the observation.
    possible = np.isfinite(jax.jit(jax.vmap(lambda start, y: fj.log_likelihood(model, start, y)))(starts, samples))
    assert np.array_equal(fits.status == Status.BAD_START, ~possible)
    assert np.sum(possible) > count / 2
    at_edge = possible & maximum_at_the_edge(case, fits, samples)
    assert np.sum(at_edge) <= 2
    assert np.all(fits.status[possible & ~at_edge] == Status.CONVERGED)
    assert np.all(fits.status[at_edge] == Status.BOUNDARY)
    assert np.all(np.linalg.eigvalsh(fits.curvature[possible & ~at_edge]) > 0)


def maximum_at_the_edge(case, fits, samples):
    """Student-t samples that the normal fits as well as the t at its many degrees of freedom, but for rounding."""
    if case != "student_t":
        return np.zeros(len(samples), bool)
    normal_value = jax.jit(jax.vmap(lambda y: jnp.sum(norm.logpdf(y, jnp.mean(y), jnp.std(y)))))(samples)
    # Each term has the difference of two log-gammas, which are rounded to ε of their size.
    half = fits.params["df"] / 2
    rounding = samples.shape[1] * np.finfo(float).eps * half * np.log(half)
    return np.asarray((half > 5e3) & (normal_value >= fits.log_likelihood - 0.01 - rounding))


def test_the_mixture_ends_in_the_same_place_from_near_and_far():
    samples, starts, far = from_afar("mixture", 100)
    truths = jax.tree.map(lambda value, many: np.full_like(many, value), CASES["mixture"][1], starts)
    near = fit_each("mixture", truths, samples)
    same = np.isclose(near.log_likelihood, far.log_likelihood, rtol=0, atol=1e-8)
    assert np.mean(same) > 0.95  # the others ended in another local maximum, certified as one


# From flat plateaus, and from where the curvature is many orders of magnitude larger than at the maximum.
HARD = {
    "spector, logit": (np.array([-3.5, -6.3, -3.1, 0.2]),),
    "weibull": ({"shape": 20.0, "scale": 1000.0}, {"shape": 5.0, "scale": 0.01}),
    "ovarian": (
        {"intercept": 20.0, "ecog": 0.0, "rx": 0.0, "log_scale": -2.0},
        {"intercept": 0.0, "ecog": 0.0, "rx": 0.0, "log_scale": -2.0},
    ),
    "lognormal": ({"mu": -50.0, "sigma": 1e-3}, {"mu": 100.0, "sigma": 1e-3}),
}


@pytest.mark.parametrize("name", some_of(HARD, "spector, logit", "weibull"))
def test_smooth_likelihoods_are_climbed_from_hopeless_starts(name):
    problem = PROBLEMS[name]()
    usual = fj.fit(problem.model, problem.start, problem.data, given=problem.given)
    for start in HARD[name]:
        far = fj.fit(problem.model, start, problem.data, given=problem.given)
        assert far.status is Status.CONVERGED
        np.testing.assert_allclose(far.log_likelihood, usual.log_likelihood, rtol=1e-10)


LOG_LINEAR = fj.Model(lambda p, y, z: poisson.logpmf(y, jnp.exp(p["level"] + p["slope"] * z)))


@pytest.mark.parametrize("slope", [10.0, 30.0])
def test_a_log_linear_mean_is_found_from_where_it_overflows_all_sense(slope):
    rng = np.random.default_rng(0)
    x = rng.normal(size=300)
    counts = rng.poisson(np.exp(3 + 2 * x))
    far = fj.fit(LOG_LINEAR, {"level": 0.0, "slope": slope}, counts, given=x)
    assert far.status is Status.CONVERGED
    np.testing.assert_allclose(far.params["slope"], 1.99505394, rtol=1e-7)


def test_a_start_far_away_in_both_parameters_is_no_obstacle():
    y = np.random.default_rng(0).normal(3.0, 2.0, 100)
    model = fj.Model(lambda p, y: norm.logpdf(y, p["loc"], p["scale"]), constraints={"scale": POSITIVE})
    for start in ({"loc": 0.0, "scale": 1e-20}, {"loc": 1e8, "scale": 1e-8}):
        fit = fj.fit(model, start, y)
        assert fit.status is Status.CONVERGED
        np.testing.assert_allclose(fit.params["scale"], y.std(), rtol=1e-7)


def test_float32_too_climbs_from_far_away():
    problem = PROBLEMS["lognormal"]()
    for mu in (-50.0, 100.0):
        start = {"mu": np.float32(mu), "sigma": np.float32(1e-3)}
        assert fj.fit(problem.model, start, np.asarray(problem.data, np.float32)).converged


@pytest.mark.parametrize("p", [9, pytest.param(40, marks=pytest.mark.exhaustive)])
def test_a_batch_of_fits_of_many_parameters_ends(p):
    rng = np.random.default_rng(0)
    x, ys = rng.normal(size=(100, p)), rng.normal(size=(300, 100))
    density = lambda b, y, x: norm.logpdf(y, jnp.dot(x, b), 1.0)  # noqa: E731
    fits = jax.jit(jax.vmap(lambda y: fj.fit(density, np.zeros(p), y, given=x)))(ys)
    assert np.all(fits.status == Status.CONVERGED)
    np.testing.assert_allclose(fits.params[7], np.linalg.lstsq(x, ys[7])[0], rtol=1e-8, atol=1e-10)
