"""Mixtures: the log-density, its functions, maxima from many starts, label switching, degenerate likelihoods, bad input."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm
from scipy import optimize, special, stats

import fisher_jax as fj
from fisher_jax import families
from fisher_jax.models.constraints import Ordered


def bare_normal(params, y):
    return norm.logpdf(y, params["loc"], params["scale"])


RNG = np.random.default_rng(1)
THREE = np.concatenate([RNG.normal(-3, 1, 60), RNG.normal(0, 0.7, 80), RNG.normal(4, 1.5, 60)])
NORMALS = fj.mixture(families.normal, 2, ordered="loc")
PARAMS = {"weights": np.array([0.3, 0.7]), "loc": np.array([-1.0, 2.0]), "scale": np.array([0.5, 1.5])}
NAMED = fj.mixture({"signal": families.normal, "background": families.exponential})
NAMED_PARAMS = {
    "weights": np.array([0.2, 0.8]),
    "signal": {"loc": 3.0, "scale": 0.5},
    "background": {"rate": 0.4},
}


def by_scipy(y):
    return np.log(0.3 * stats.norm(-1, 0.5).pdf(y) + 0.7 * stats.norm(2, 1.5).pdf(y))


def test_the_log_density_is_that_of_scipy_also_where_every_component_underflows():
    y = np.array([-4.0, 0.0, 3.0])
    np.testing.assert_allclose(jax.vmap(NORMALS.log_density, in_axes=(None, 0))(PARAMS, y), by_scipy(y), rtol=1e-12)
    far = np.log(0.7) + stats.norm(2, 1.5).logpdf(400.0)  # exp of it is zero
    np.testing.assert_allclose(NORMALS.log_density(PARAMS, 400.0), far, rtol=1e-14)
    below = NAMED.log_density(NAMED_PARAMS, -0.5)  # where one component has no density
    np.testing.assert_allclose(below, np.log(0.2) + stats.norm(3, 0.5).logpdf(-0.5), rtol=1e-12)


def test_where_no_component_has_density_it_is_minus_infinity_with_finite_derivatives():
    model = fj.mixture({"a": families.exponential, "b": families.gamma})
    params = {"weights": np.array([0.4, 0.6]), "a": {"rate": 1.0}, "b": {"shape": 2.0, "rate": 1.0}}
    value, slope = jax.value_and_grad(model.log_density)(jax.tree.map(jnp.asarray, params), -1.0)
    assert value == -np.inf
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slope))


def test_distribution_survival_mean_support_and_quantile_follow_from_those_of_the_components():
    component = fj.Model(
        families.logistic.log_density,
        log_cdf=lambda p, y: jax.nn.log_sigmoid((y - p["loc"]) / p["scale"]),
        log_survival=lambda p, y: jax.nn.log_sigmoid(-(y - p["loc"]) / p["scale"]),
        quantile=families.logistic.quantile,
        mean=lambda p: p["loc"] + 0.0,
        support=(-np.inf, np.inf),
    )
    model = fj.mixture(component, 2)
    logistics = [stats.logistic(-1, 0.5), stats.logistic(2, 1.5)]

    def cdf(y):
        return 0.3 * logistics[0].cdf(y) + 0.7 * logistics[1].cdf(y)

    for y in (-3.0, 0.4, 60.0):
        np.testing.assert_allclose(model.log_cdf(PARAMS, y), np.log(cdf(y)), rtol=1e-12, atol=1e-15)
        survival = 0.3 * logistics[0].sf(y) + 0.7 * logistics[1].sf(y)
        np.testing.assert_allclose(model.log_survival(PARAMS, y), np.log(survival), rtol=1e-12)
    np.testing.assert_allclose(model.mean(PARAMS), 0.3 * -1 + 0.7 * 2)
    assert model.support == (-np.inf, np.inf)
    quantile = jax.jit(jax.value_and_grad(lambda p, u: model.quantile(u, p)))
    for u in (1e-6, 0.31, 0.999):
        value, slope = quantile(PARAMS, u)
        np.testing.assert_allclose(value, optimize.brentq(lambda y, u=u: cdf(y) - u, -50, 50, xtol=1e-13), rtol=1e-9)
    # ∂q/∂loc₂ = w₂ p₂(q) / p(q)
    density = 0.3 * logistics[0].pdf(value) + 0.7 * logistics[1].pdf(value)
    np.testing.assert_allclose(slope["loc"][1], 0.7 * logistics[1].pdf(value) / density, rtol=1e-9)


@pytest.mark.parametrize(
    ("model", "params", "mean", "below"),
    [
        (NORMALS, PARAMS, 0.3 * -1 + 0.7 * 2, 0.3 * stats.norm(-1, 0.5).cdf(1) + 0.7 * stats.norm(2, 1.5).cdf(1)),
        (NAMED, NAMED_PARAMS, 0.2 * 3 + 0.8 / 0.4, 0.2 * stats.norm(3, 0.5).cdf(1) + 0.8 * -np.expm1(-0.4)),
    ],
    ids=["one model", "by name"],
)
def test_draws_have_the_distribution_of_the_mixture(model, params, mean, below):
    y = np.asarray(
        jax.jit(jax.vmap(model.sample, in_axes=(0, None)))(jax.random.split(jax.random.key(0), 4000), params)
    )
    assert abs(y.mean() - mean) < 4 * y.std() / np.sqrt(len(y))
    assert abs(np.mean(y <= 1.0) - below) < 4 * np.sqrt(below * (1 - below) / len(y))


def expectation_maximization(y, params):
    """One step of the textbook's algorithm for normals, and the log-likelihood before it."""
    joint = np.log(params["weights"]) + stats.norm(params["loc"], params["scale"]).logpdf(y[:, None])
    total = special.logsumexp(joint, axis=1)
    p = np.exp(joint - total[:, None])
    loc = (p * y[:, None]).sum(axis=0) / p.sum(axis=0)
    scale = np.sqrt((p * (y[:, None] - loc) ** 2).sum(axis=0) / p.sum(axis=0))
    return {"weights": p.mean(axis=0), "loc": loc, "scale": scale}, total.sum()


@pytest.fixture(scope="module")
def three():
    """The fit of three normals from the library's own start."""
    return fj.fit(fj.mixture(families.normal, 3, ordered="loc"), None, THREE)


def test_three_normals_have_a_maximum_that_expectation_maximization_leaves_unchanged(three):
    assert three.converged
    stepped, total = expectation_maximization(THREE, three.params)
    np.testing.assert_allclose(three.log_likelihood, total, rtol=1e-12)
    for name, value in three.params.items():
        np.testing.assert_allclose(stepped[name], value, rtol=1e-8)
    # That of the groups that were drawn, not of another three.
    np.testing.assert_allclose(three.params["loc"], [-3, 0, 4], atol=0.7)


@pytest.mark.exhaustive
def test_a_hundred_times_sixty_four_starts_find_the_same_maximum_of_three_normals(three):
    for seed in range(100):
        fit = fj.fit(three.origin.model, None, THREE, starts=64, key=jax.random.key(seed))
        np.testing.assert_allclose(fit.log_likelihood, three.log_likelihood, rtol=1e-10)
        np.testing.assert_allclose(fit.params["loc"], three.params["loc"], rtol=1e-6)


def test_eight_starts_find_the_same_maximum_whatever_the_key():
    y = np.concatenate([RNG.poisson(1.0, 30), RNG.poisson(9.0, 20)])
    model = fj.mixture(families.poisson, 2, ordered="rate")
    fits = [fj.fit(model, None, y, starts=8, key=jax.random.key(seed)) for seed in range(2)]
    np.testing.assert_allclose(fits[1].log_likelihood, fits[0].log_likelihood, rtol=1e-12)
    np.testing.assert_allclose(fits[1].params["rate"], fits[0].params["rate"], rtol=1e-6)


def test_component_probabilities_are_those_of_bayes_theorem(three):
    p = three.params
    joint = p["weights"] * stats.norm(p["loc"], p["scale"]).pdf(THREE[:, None])
    np.testing.assert_allclose(
        fj.component_probabilities(three), joint / joint.sum(axis=1, keepdims=True), rtol=1e-9, atol=1e-300
    )
    with pytest.raises(TypeError, match="component_probabilities: fit is of a Family, which has no components"):
        fj.component_probabilities(fj.fit(families.exponential, None, [1.0, 2.0, 4.0]))


def test_without_an_order_the_components_keep_the_places_of_the_start():
    y = np.concatenate([RNG.poisson(1.0, 60), RNG.poisson(9.0, 40)])
    fit = fj.fit(fj.mixture(families.poisson, 2), {"weights": np.array([0.5, 0.5]), "rate": np.array([8.0, 1.0])}, y)
    assert fit.converged
    np.testing.assert_allclose(fit.params["rate"], [9.0, 1.0], rtol=0.3)


def test_an_ordered_parameter_keeps_its_range():
    constraint = fj.mixture(families.poisson, 3, ordered="rate").constraints["rate"]
    assert constraint == Ordered(fj.positive)
    value = np.array([0.2, 1.0, 7.0])
    free = constraint.inverse(value)
    np.testing.assert_allclose(constraint.forward(free), value, rtol=1e-14)
    np.testing.assert_allclose(
        constraint.jacobian(free, 1), jax.jacfwd(constraint.forward)(jnp.asarray(free)), rtol=1e-12
    )
    assert constraint.contains(value)
    assert not constraint.contains(-value[::-1])
    assert np.all(constraint.bounds(value, np.full(3, 5.0))[0] > 0)
    np.testing.assert_array_equal(constraint.edges((3,))[0], 0.0)


@pytest.mark.parametrize("start", [1e-3, 0.05])  # of which the one ends at the step limit, the other at the boundary
def test_a_component_that_shrinks_to_a_point_is_no_converged_fit(start):
    y = THREE[:80]
    params = {"weights": np.array([0.02, 0.98]), "loc": np.array([y.min(), 0.0]), "scale": np.array([start, 3.0])}
    fit = fj.fit(NORMALS, params, y)
    assert not fit.converged
    assert fit.status in (fj.Status.BOUNDARY, fj.Status.STEP_LIMIT)


def test_a_shared_scale_is_one_number():
    model = fj.mixture(families.normal, 2, ordered="loc", shared="scale")
    fit = fj.fit(model, None, THREE)
    assert fit.converged
    assert np.shape(fit.params["scale"]) == ()

    def loss(t):
        w = special.expit(t[0])
        joint = [
            np.log(w) + stats.norm(t[1], np.exp(t[3])).logpdf(THREE),
            np.log1p(-w) + stats.norm(t[2], np.exp(t[3])).logpdf(THREE),
        ]
        return -np.sum(np.logaddexp(*joint))

    best = optimize.minimize(loss, [0.0, -1.0, 4.0, 0.0], method="BFGS")
    np.testing.assert_allclose(fit.log_likelihood, -best.fun, rtol=1e-9)


def log_odds(gamma, x):
    return jnp.stack([0.0 * x, gamma["intercept"] + gamma["slope"] * x])


def test_weights_may_depend_on_covariates_and_components_may_take_them():
    x = RNG.uniform(-1, 1, 250)
    second = RNG.uniform(size=250) < special.expit(0.5 + 2.0 * x)
    y = np.where(second, RNG.normal(3 + x, 0.5), RNG.normal(0, 0.5, 250))
    line = fj.linked(
        families.normal, lambda p, x: {"loc": p["a"] + p["b"] * x, "scale": p["s"]}, constraints={"s": fj.positive}
    )
    model = fj.mixture({"flat": families.normal, "line": line}, weights=log_odds)
    start = {
        "weights": {"intercept": 0.0, "slope": 0.0},
        "flat": {"loc": 0.5, "scale": 1.0},
        "line": {"a": 2.0, "b": 0.0, "s": 1.0},
    }
    fit = fj.fit(model, start, y, given=x)
    assert fit.converged

    def loss(t):
        w = special.expit(t[0] + t[1] * x)
        parts = (
            np.log1p(-w) + stats.norm(t[2], np.exp(t[3])).logpdf(y),
            np.log(w) + stats.norm(t[4] + t[5] * x, np.exp(t[6])).logpdf(y),
        )
        return -np.sum(np.logaddexp(*parts))

    best = optimize.minimize(loss, [0.5, 2.0, 0.0, -0.7, 3.0, 1.0, -0.7], method="BFGS")
    np.testing.assert_allclose(fit.log_likelihood, -best.fun, rtol=1e-9)
    probabilities = fj.component_probabilities(fit)
    assert np.mean((probabilities[:, 1] > 0.5) == second) > 0.97


def test_starts_come_from_groups_of_the_data_in_the_order_of_the_constraint():
    start = fj.mixture(families.normal, 3, ordered="loc").initial(THREE)
    assert np.all(np.diff(start["loc"]) > 0)
    np.testing.assert_allclose(start["weights"], 1 / 3)
    start = fj.mixture(families.normal, 2, ordered="scale").initial(THREE)
    assert np.all(np.diff(start["scale"]) > 0)
    same = fj.mixture(families.poisson, 3, ordered="rate").initial(np.ones(9))
    assert np.all(np.diff(same["rate"]) > 0)
    assert NAMED.initial(np.abs(THREE)).keys() == {"weights", "signal", "background"}


def test_a_mixture_of_censored_models_knows_which_values_are_limits():
    mixture = fj.mixture(fj.censored(families.normal, low=0.0), 2)
    other = fj.censored(fj.mixture(families.normal, 2), low=0.0)
    y = np.array([0.0, -1.0, 0.7])
    of_each = jax.jit(jax.vmap(lambda y: [model.log_density(PARAMS, y) for model in (mixture, other)]))(y)
    np.testing.assert_allclose(*of_each, rtol=1e-14)
    for value in (0.0, 0.7):
        assert mixture.known_interval(PARAMS, value) == other.known_interval(PARAMS, value)
    assert fj.mixture(fj.hurdle(families.gamma), 2).atoms == (0.0,)
    assert fj.mixture(fj.binned(families.normal, np.arange(5.0)), 2).numbers_in_row == 4


def test_mixtures_of_the_same_parts_are_equal_and_travel():
    assert fj.mixture(families.normal, 2, ordered="loc") == NORMALS
    assert fj.mixture([families.normal, families.normal], ordered="loc") == NORMALS
    assert fj.mixture(families.normal, 3, ordered="loc") != NORMALS
    assert pickle.loads(pickle.dumps(NAMED)) == NAMED
    first = fj.mixture({"a": families.normal, "b": families.laplace})
    assert first.program_key != fj.mixture({"a": families.normal, "b": families.logistic}).program_key


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"components": families.normal}, "number is missing"),
        ({"components": families.normal, "number": 1}, "number=1 must be a whole number, at least 2"),
        ({"components": [families.normal], "number": None}, "list of 1"),
        ({"components": [families.normal, families.cauchy]}, "Give a dictionary"),
        ({"components": {"a": families.normal}}, "names 1; a mixture has two"),
        ({"components": {"weights": families.normal, "b": families.normal}}, "none of them 'weights'"),
        (
            {"components": {"a": families.normal, "b": families.cauchy}, "ordered": "loc"},
            "ordered and shared name a parameter",
        ),
        ({"components": {"a": families.normal, "b": families.poisson}}, "counts and of continuous"),
        ({"components": {"a": fj.censored(families.normal, low=0.0), "b": families.normal}}, "different limits"),
        ({"components": {"a": fj.hurdle(families.gamma), "b": families.gamma}}, "hurdle.mixture"),
        ({"components": families.normal, "number": 2, "ordered": "rate"}, "ordered='rate' is none of.* loc, scale"),
        ({"components": families.normal, "number": 2, "shared": "rate"}, "shared='rate' is none of"),
        ({"components": families.normal, "number": 2, "ordered": "loc", "shared": "loc"}, "shared by all"),
        ({"components": families.normal, "number": 2, "weights": 0.5}, "weights must be a function"),
        ({"components": families.normal, "number": 2, "constraints": {"a": fj.positive}}, "no such function"),
        ({"components": NORMALS, "number": 2}, "without 'weights' in it"),
        ({"components": families.multivariate_normal, "number": 2, "ordered": "covariance"}, "positive definite"),
    ],
)
def test_bad_arguments_raise(arguments, message):
    with pytest.raises((TypeError, ValueError), match=f"mixture: .*{message}"):
        fj.mixture(**arguments)


@pytest.mark.parametrize(
    ("model", "start", "message"),
    [
        (NORMALS, np.ones(3), "a dictionary with .weights. and those"),
        (NORMALS, {"loc": np.zeros(2), "scale": np.ones(2)}, "lack 'weights'"),
        (
            NORMALS,
            PARAMS | {"scale": 1.0},
            r"`scale` of the mixture has shape \(\), expected a leading axis of 2.*shared=",
        ),
        (
            NORMALS,
            PARAMS | {"weights": np.full(3, 1 / 3)},
            r"weights of the mixture have shape \(3,\), expected \(2,\)",
        ),
        (NAMED, PARAMS, "lack 'signal'"),
        (
            fj.mixture(bare_normal, 2, shared="scale"),
            PARAMS,
            r"a number, but that of all 2 together has shape \(2, 2\)",
        ),
    ],
)
def test_bad_starts_raise(model, start, message):
    with pytest.raises((TypeError, ValueError), match=message):
        fj.fit(model, start, np.abs(THREE))
