"""What draws say of regular and irregular models, over many seeds: how often they are flagged, and how far errors are true."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import some_of
from jax.scipy.special import gammaln
from jax.scipy.stats import norm

import fisher_jax as fj
from fisher_jax import families

SEEDS = 200
# What a true rate of 1 % in 200 seeds exceeds once in a thousand times, and of 99 % falls short of.
MOST = 8
LOC_SCALE = {"loc": 0.7, "scale": 1.3}


def mixture_of_two(log_density, draw, *names):
    """Of two components with the parameters `names`, one entry each for either, and a weight for the first."""

    def component(p, k):
        return {name: p[name][k] for name in names}

    def of_both(p, y):
        first = log_density(component(p, 0), y) + jnp.log(p["weight"])
        return jnp.logaddexp(first, log_density(component(p, 1), y) + jnp.log1p(-p["weight"]))

    def sample(key, p):
        which, within = jax.random.split(key)
        k = (jax.random.uniform(which) > p["weight"]).astype(int)
        return draw(within, component(p, k))

    return fj.Model(of_both, sample=sample)


NORMALS = mixture_of_two(
    lambda p, y: norm.logpdf(y, p["loc"], p["scale"]),
    lambda key, p: p["loc"] + p["scale"] * jax.random.normal(key),
    "loc",
    "scale",
)
GUMBELS = mixture_of_two(
    families.gumbel.log_density, lambda key, p: p["loc"] + p["scale"] * jax.random.gumbel(key), "loc", "scale"
)
POISSONS = mixture_of_two(
    lambda p, y: y * jnp.log(p["rate"]) - p["rate"] - gammaln(y + 1.0),
    lambda key, p: jax.random.poisson(key, p["rate"]).astype(float),
    "rate",
)
EXPONENTIALS = mixture_of_two(
    lambda p, y: jnp.log(p["rate"]) - p["rate"] * y, lambda key, p: jax.random.exponential(key) / p["rate"], "rate"
)


def arrivals(key, p):
    """A Poisson number by the times between arrivals, for a rate at which more than six in a unit of time have chance 2e-18."""
    return jnp.sum(jnp.cumsum(jax.random.exponential(key, (6,))) < p["rate"]).astype(float)


class Case(NamedTuple):
    model: Any
    point: Any
    exact: Any = None  # the expectation that gives the information, `None` for the closed form


def of_components(model, weight, cuts, **entries):
    return Case(
        model,
        {name: np.array(pair) for name, pair in entries.items()} | {"weight": weight},
        fj.Quadrature(-np.inf, np.inf, 800, points=cuts),
    )


REGULAR = {
    "normal": Case(families.normal, LOC_SCALE),
    "gamma": Case(families.gamma, {"shape": 2.7, "rate": 1.4}),
    "poisson": Case(families.poisson, {"rate": 3.7}),
    "poisson of rate 0.01": Case(
        fj.Model(families.poisson.log_density, sample=arrivals, information=families.poisson.information),
        {"rate": 0.01},
    ),
    "bernoulli": Case(families.bernoulli, {"logit": -2.9}),
    "weibull": Case(families.weibull, {"shape": 1.8, "scale": 2.3}),
    "logistic": Case(families.logistic, LOC_SCALE),
    "cauchy": Case(families.cauchy, LOC_SCALE),
    "student t": Case(families.student_t, LOC_SCALE | {"df": 3.4}),
    "skew-normal": Case(
        families.skew_normal, LOC_SCALE | {"shape": 2.1}, fj.Quadrature(-np.inf, np.inf, 400, points=(0.7,))
    ),
    "gumbel": Case(families.gumbel, LOC_SCALE),
    "gev 0.2": Case(families.gev, LOC_SCALE | {"shape": 0.2}),
    "gev −0.2": Case(families.gev, LOC_SCALE | {"shape": -0.2}),
    "gev −0.3": Case(families.gev, LOC_SCALE | {"shape": -0.3}),  # neither s sᵀ nor H has a variance
    "gpd 0.2": Case(families.generalized_pareto, {"scale": 1.3, "shape": 0.2}),
    "gpd −0.28": Case(families.generalized_pareto, {"scale": 0.4, "shape": -0.28}),
    "negative binomial": Case(families.negative_binomial, {"mean": 2.7, "size": 1.6}),
    "beta-binomial": Case(
        families.beta_binomial,
        {"probability": 0.3, "concentration": 2.4, "trials": 12.0},
        fj.Enumeration(np.arange(13)),
    ),
    "zero-inflated poisson": Case(families.zero_inflated_poisson, {"inflation": 0.1, "rate": 14.0}),
    "normals apart": of_components(NORMALS, 0.35, (-1.0, 2.0), loc=[-1.0, 2.0], scale=[0.8, 1.3]),
    "normals close": of_components(NORMALS, 0.4, (0.0, 1.0), loc=[0.0, 1.0], scale=[1.0, 1.2]),
    "gumbels apart": of_components(GUMBELS, 0.4, (-3.0, 0.0, 3.0, 8.0), loc=[0.0, 8.0], scale=[1.0, 1.5]),
    "gumbels close": of_components(GUMBELS, 0.4, (-3.0, 0.0, 3.0, 8.0), loc=[0.0, 2.0], scale=[1.0, 1.5]),
    "poissons": Case(POISSONS, {"rate": np.array([2.0, 7.0]), "weight": 0.4}, fj.Enumeration(np.arange(80.0))),
    "exponentials": Case(EXPONENTIALS, {"rate": np.array([0.5, 3.0]), "weight": 0.4}, fj.Quadrature(0.0, np.inf, 600)),
}


def edge(t, y):
    return jnp.where((y > 0) & (y < t), -jnp.log(t), -jnp.inf)


def from_threshold(p, y):
    return jnp.where(y >= p["loc"], jnp.log(p["rate"]) - p["rate"] * (y - p["loc"]), -jnp.inf)


INNER = 1.0 - np.exp(-1.0)  # of the density below, with its mass: within one scale of zero
MASS = INNER + np.exp(-1.0) / 3.0


def kinked(p, y):
    """|y| / scale is exponential of rate 1 up to 1, and of rate 3 beyond: a kink that the scale moves."""
    u = jnp.abs(y) / p["scale"]
    return -jnp.log(2.0 * MASS * p["scale"]) - jnp.where(u < 1.0, u, 3.0 * u - 2.0)


def draw_kinked(key, p):
    u = jax.random.uniform(key, minval=-1.0, maxval=1.0)
    mass = MASS * jnp.abs(u)
    inner = -jnp.log1p(-jnp.minimum(mass, INNER))
    outer = 1.0 - jnp.log1p(-3.0 * np.e * jnp.maximum(mass - INNER, 0.0)) / 3.0
    return p["scale"] * jnp.sign(u) * jnp.where(mass < INNER, inner, outer)


def partly_laplace(p, y):
    first = jnp.log(0.2) - jnp.abs(y - p["loc"]) - jnp.log(2.0)
    return jnp.logaddexp(first, jnp.log(0.8) + norm.logpdf(y, p["loc"], p["scale"]))


def draw_partly_laplace(key, p):
    which, first, second = jax.random.split(key, 3)
    smooth = p["scale"] * jax.random.normal(second)
    return p["loc"] + jnp.where(jax.random.uniform(which) < 0.2, jax.random.laplace(first), smooth)


IRREGULAR = {
    "uniform on (0, θ)": Case(fj.Model(edge, sample=lambda key, t: t * jax.random.uniform(key)), 2.0),
    "exponential from a threshold": Case(
        fj.Model(from_threshold, sample=lambda key, p: p["loc"] + jax.random.exponential(key) / p["rate"]),
        {"loc": 0.5, "rate": 1.7},
    ),
    "laplace": Case(families.laplace, LOC_SCALE),
    "a kink that the scale moves": Case(fj.Model(kinked, sample=draw_kinked), {"scale": 1.3}),
    "one fifth laplace": Case(fj.Model(partly_laplace, sample=draw_partly_laplace), LOC_SCALE),
    "skew-normal without skew": Case(families.skew_normal, LOC_SCALE | {"shape": 0.0}),
}


def over_seeds(case, number, *which):
    """Of the information by draws with its error, whether it is flagged, and whether the two checks fail, these for each seed."""

    @jax.jit
    def run(keys):
        def once(key):
            expectation = fj.MonteCarlo(key, number)
            found = fj.fisher_information(case.model, case.point, expectation)
            center = fj.check_score_mean(case.model, case.point, expectation)
            equality = fj.check_information_equality(case.model, case.point, expectation)
            computed = {
                "matrix": found.matrix,
                "error": found.entry_errors,
                "flagged": ~found.regularity.regular,
                "score": ~center.passed,
                "equality": ~equality.passed,
            }
            return {name: computed[name] for name in which}  # XLA leaves out the rest

        return jax.lax.map(once, keys, batch_size=20)

    return jax.tree.map(np.asarray, run(jax.random.split(jax.random.key(7), SEEDS)))


def coverage(found, exact):
    """For each entry that is not exact to rounding, how often the interval of ±1.96 errors covers it."""
    upper = np.triu_indices(len(exact))
    size = np.sqrt(np.diagonal(exact))
    off = np.abs(found["matrix"] - exact)
    inexact = (np.nanmax(off, axis=0) / np.outer(size, size))[upper] > 1e-10
    return np.mean(off < 1.96 * found["error"], axis=0)[upper][inexact]


def assert_regular(name, number):
    case = REGULAR[name]
    found = over_seeds(case, number, "matrix", "error", "flagged", "score", "equality")
    assert np.isfinite(found["matrix"]).all(axis=(1, 2)).sum() >= SEEDS - 2
    assert found["flagged"].sum() <= 4
    assert found["score"].sum() <= MOST
    assert found["equality"].sum() <= (15 if name in TAILS else MOST)  # one in twenty, as documented
    covered = coverage(found, np.asarray(fj.fisher_information(case.model, case.point, case.exact)))
    if covered.size:
        assert covered.mean() > 0.92  # 95 % less two standard errors from 200 seeds
        assert covered.min() > (
            0.82 if name in TAILS else 0.88
        )  # single entries: the documented 83 and 90 %, less noise


TAILS = {"gev −0.2", "gev −0.3", "gpd −0.28"}  # an end of the support that the score has a power of the distance from


@pytest.mark.parametrize("name", some_of(REGULAR, "poisson of rate 0.01"))
def test_regular_models_are_not_flagged_and_errors_of_few_draws_cover(name):
    assert_regular(name, 2000)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", REGULAR)
def test_regular_models_are_not_flagged_and_errors_of_many_draws_cover(name):
    assert_regular(name, 10_000)


@pytest.mark.parametrize("name", some_of(IRREGULAR, "a kink that the scale moves"))
def test_irregular_models_are_flagged_in_all_but_one_of_a_hundred(name):
    found = over_seeds(IRREGULAR[name], 2000, "flagged", "equality")
    if name != "skew-normal without skew":  # which is singular; both means are zero there
        assert found["flagged"].mean() > 0.99
    assert found["equality"].mean() > 0.99
