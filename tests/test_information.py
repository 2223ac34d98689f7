"""Fisher information by every route: they agree, their errors are those of their draws, the record does what it says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import compiled_programs, some_of
from jax.scipy.stats import norm
from scipy.special import digamma, polygamma

import fisher_jax as fj
from fisher_jax import families
from fisher_jax.information import monte_carlo as sampled

GAMMA = {"shape": 2.5, "rate": 0.7}
WEIBULL = {"shape": 1.5, "scale": 2.0}
X = np.random.default_rng(3).normal(size=(40, 3)) * [1.0, 0.5, 2.0]
BETA = np.array([0.4, -0.3, 0.2])
TRIALS = np.random.default_rng(4).integers(1, 9, 40)
KEY = jax.random.key(20)


def draws(number=10_000, *arguments, key=0, **settings):
    return fj.MonteCarlo(jax.random.key(key), number, *arguments, **settings)


@functools.cache
def sampled_information(key=0):
    """By one program for all keys."""
    return fj.fisher_information(families.weibull, WEIBULL, draws(2000, "outer", key=key))


def mixture():
    """Five parameters, one of them, the weight, linear in the density."""

    def log_density(p, y):
        first = norm.logpdf(y, p["loc"][0], p["scale"][0]) + jnp.log(p["weight"])
        return jnp.logaddexp(first, norm.logpdf(y, p["loc"][1], p["scale"][1]) + jnp.log1p(-p["weight"]))

    def sample(key, p):
        which, noise = jax.random.split(key)
        k = (jax.random.uniform(which) > p["weight"]).astype(int)
        return p["loc"][k] + p["scale"][k] * jax.random.normal(noise)

    return fj.Model(log_density, sample=sample)


MIXTURE = mixture()
MIXED = {"loc": np.array([-1.0, 2.0]), "scale": np.array([0.8, 1.3]), "weight": 0.35}


# Linked models: Jᵀ I_η J against the expectation taken over y, and against the textbook.

LINKED = {
    "normal mean": (
        lambda b, z: {"loc": z @ b, "scale": 1.3},
        families.normal,
        lambda: fj.Quadrature(lambda b, z: z @ b - 60, lambda b, z: z @ b + 60, points=lambda b, z: (z @ b,)),
    ),
    "normal mean and scale": (
        lambda b, z: {"loc": z[:2] @ b[:2], "scale": jnp.exp(0.3 * z[2] * b[2])},
        families.normal,
        lambda: fj.Quadrature(-np.inf, np.inf, 300),
    ),
    "poisson": (lambda b, z: {"rate": jnp.exp(z @ b)}, families.poisson, lambda: fj.Enumeration(np.arange(120))),
    "gamma": (
        lambda b, z: {"shape": 2.0, "rate": 2.0 / jnp.exp(z @ b)},
        families.gamma,
        lambda: fj.Quadrature(0.0, np.inf),
    ),
    "negative binomial": (
        lambda b, z: {"mean": jnp.exp(z[:2] @ b[:2]), "size": jnp.exp(b[2])},
        families.negative_binomial,
        lambda: fj.Enumeration(np.arange(400)),
    ),
    "student t": (
        lambda b, z: {"df": 4.0, "loc": z[:2] @ b[:2], "scale": jnp.exp(b[2])},
        families.student_t,
        lambda: fj.Quadrature(-np.inf, np.inf, 300),
    ),
}


@pytest.mark.parametrize("name", some_of(LINKED, *(LINKED.keys() - {"negative binomial"})))
def test_linked_information_is_that_of_the_expectation_over_y(name):
    predictor, family, expectation = LINKED[name]
    model = fj.linked(family, predictor)
    exact = fj.fisher_information(model, BETA, given=X)
    taken = fj.fisher_information(model, BETA, expectation(), given=X)
    assert exact.route == "expected: closed form of the family, Jᵀ I_η J"
    assert exact.errors is None
    assert not taken.diagnosis()
    size = np.sqrt(np.diag(exact))
    np.testing.assert_allclose(taken.matrix / np.outer(size, size), exact.matrix / np.outer(size, size), atol=1e-8)


def test_linked_regressions_have_their_textbook_information():
    mean, p = np.exp(X @ BETA), 1 / (1 + np.exp(-X @ BETA))
    poisson = fj.linked(families.poisson, lambda b, z: {"rate": jnp.exp(z @ b)})
    np.testing.assert_allclose(40 * fj.fisher_information(poisson, BETA, given=X).matrix, (X.T * mean) @ X, rtol=1e-12)
    binomial = fj.linked(families.binomial, lambda b, z: {"logit": z["x"] @ b, "trials": z["m"]})
    found = fj.fisher_information(binomial, BETA, given={"x": X, "m": TRIALS})
    np.testing.assert_allclose(40 * found.matrix, (X.T * (TRIALS * p * (1 - p))) @ X, rtol=1e-12)


@pytest.mark.parametrize(
    ("family", "predictor", "theta", "closed"),
    [
        (families.normal, lambda t: {"loc": t, "scale": t}, 1.7, 3 / 1.7**2),
        (families.normal, lambda t: {"loc": t, "scale": jnp.sqrt(t)}, 1.7, 1 / 1.7 + 0.5 / 1.7**2),
        (families.bernoulli, lambda p: {"logit": jnp.log(p) - jnp.log1p(-p)}, 0.2, 1 / (0.2 * 0.8)),
        (
            families.multivariate_normal,
            lambda r: {"loc": jnp.zeros(2), "covariance": jnp.array([[1.0, r], [r, 1.0]])},
            0.6,
            (1 + 0.36) / (1 - 0.36) ** 2,
        ),
    ],
    ids=["N(θ, θ²)", "N(θ, θ)", "bernoulli p", "correlation"],
)
def test_curved_families_of_one_parameter(family, predictor, theta, closed):
    information = fj.fisher_information(fj.linked(family, predictor), theta)
    np.testing.assert_allclose(information.matrix, [[closed]], rtol=1e-12)


@pytest.mark.exhaustive
def test_an_image_is_pixels_with_coordinates_for_covariates():
    pixels = np.stack(np.meshgrid(np.arange(7.0), np.arange(7.0)), -1).reshape(-1, 2)

    def spot(p, at):
        return {"rate": p["background"] + p["photons"] * jnp.exp(-0.5 * jnp.sum((at - p["at"]) ** 2) / 1.3**2) / 10.6}

    model = fj.linked(families.poisson, spot)
    at = {"at": np.array([3.1, 2.8]), "photons": 1000.0, "background": 10.0}
    rate = np.asarray(jax.vmap(lambda z: spot(at, z)["rate"])(pixels))
    slope = np.asarray(jax.vmap(lambda z: jax.grad(lambda u: spot(at | {"at": u}, z)["rate"])(at["at"]))(pixels))
    total = 49 * fj.fisher_information(model, at, given=pixels)
    np.testing.assert_allclose(total.fix(["background", "photons"]), (slope.T / rate) @ slope, rtol=1e-10, atol=1e-9)
    image = np.random.default_rng(0).poisson(rate)
    fit = fj.fit(model, {"at": np.array([3.0, 3.0]), "photons": 800.0, "background": 12.0}, image, given=pixels)
    scored = fj.fit(
        model,
        {"at": np.array([3.0, 3.0]), "photons": 800.0, "background": 12.0},
        image,
        given=pixels,
        optimizer=fj.optimizers.fisher_scoring(),
    )
    assert fit.converged
    assert scored.converged
    np.testing.assert_allclose(scored.params["at"], fit.params["at"], rtol=1e-7)
    expected = np.linalg.inv(49 * np.asarray(fj.fisher_information(model, fit.params, given=pixels)))
    np.testing.assert_allclose(fit.covariance("expected"), expected, rtol=1e-8)


def test_the_log_determinant_of_a_design_can_be_differentiated_by_the_design():
    model = fj.linked(families.poisson, lambda b, z: {"rate": jnp.exp(z @ b)})

    def criterion(design):
        return fj.fisher_information(model, BETA, given=design).log_determinant().value

    gradient = jax.jit(jax.grad(criterion))(X)
    step = np.zeros_like(X)
    step[3, 1] = 1e-6
    slope = (criterion(X + step) - criterion(X - step)) / 2e-6
    np.testing.assert_allclose(gradient[3, 1], slope, rtol=1e-6)


# Draws: what is exact, what the errors say, when they refuse.


T = {"df": 4.0, "loc": 1.0, "scale": 2.0}


def sample_t_of_four(key, p):
    """A normal variable divided by the root of a mean of two exponential ones: in a smaller program than that of any `df`."""
    normal, exponential = jax.random.split(key)
    return (
        p["loc"] + p["scale"] * jax.random.normal(normal) / jnp.mean(jax.random.exponential(exponential, (2,))) ** 0.5
    )


OF_FOUR = {"sample": sample_t_of_four, "constraints": {"df": fj.fixed}}  # without derivatives of log Γ


@pytest.mark.parametrize(
    ("family", "of_model", "point", "number"),
    [
        pytest.param(families.lognormal, {}, {"loc": 0.5, "scale": 0.7}, 200, id="lognormal, few"),
        pytest.param(families.student_t, OF_FOUR, T, 10_000, id="student t, many"),
        pytest.param(families.gamma, {}, GAMMA, 10_000, marks=pytest.mark.exhaustive, id="gamma, many"),
        pytest.param(families.gamma, {}, GAMMA, 200, marks=pytest.mark.exhaustive, id="gamma, few"),
        pytest.param(families.student_t, {}, T, 200, marks=pytest.mark.exhaustive, id="student t, few"),
    ],
)
def test_draws_are_exact_for_exponential_families_and_students_t(family, of_model, point, number):
    closed = fj.fisher_information(family, point)
    if "constraints" in of_model:
        closed = closed.fix("df")
    model = fj.Model(family.log_density, **{"sample": family.sample} | of_model)
    found = fj.fisher_information(model, point, draws(number))
    size = np.sqrt(np.diag(closed))
    assert np.max(np.abs(found.matrix - closed.matrix) / np.outer(size, size)) < 1e-10
    assert found.num_samples == number


def test_the_draws_error_falls_as_one_over_the_root_of_their_number():
    few, many = sampled_information(), fj.fisher_information(families.weibull, WEIBULL, draws(32_000, "outer"))
    ratio = few.entry_errors / many.entry_errors
    assert np.all((ratio > 2.5) & (ratio < 6.5))


def test_errors_are_carried_to_all_that_is_derived():
    at = jax.random.split(KEY, 300)

    @jax.jit
    @jax.vmap
    def derived(key):
        found = fj.fisher_information(families.weibull, WEIBULL, fj.MonteCarlo(key, 2000, "outer"))
        inverse = found.inverse()
        return {
            "inverse": (inverse.matrix, inverse.entry_errors),
            "standard errors": tuple(found.standard_errors(50)),
            "log-determinant": tuple(found.log_determinant()),
            "trace": tuple(found.trace()),
            "marginal": (found.marginal("shape").matrix, found.marginal("shape").entry_errors),
            "sum": ((3 * found + found).matrix, 4 * found.entry_errors),
        }

    for name, (value, error) in derived(at).items():
        told = np.sqrt(np.mean(np.asarray(error) ** 2, axis=0))
        np.testing.assert_allclose(told, np.std(np.asarray(value), axis=0), rtol=0.2, err_msg=name)


@pytest.mark.exhaustive
def test_the_bias_of_the_inverse_is_taken_out_on_request():
    def inverses(key):
        found = fj.fisher_information(families.gamma, GAMMA, fj.MonteCarlo(key, 300, "outer"))
        return found.inverse(), found.inverse(bias_correction=True)

    exact = np.linalg.inv(fj.fisher_information(families.gamma, GAMMA))
    inverted = jax.jit(jax.vmap(inverses))(jax.random.split(KEY, 4000))
    plain, corrected = (np.asarray(one.matrix) for one in inverted)
    error = np.std(plain, axis=0) / np.sqrt(4000)
    assert np.all(np.abs(np.mean(plain, axis=0) - exact) > 5 * error)
    assert np.all(np.abs(np.mean(corrected, axis=0) - exact) < 0.25 * np.abs(np.mean(plain, axis=0) - exact))
    assert ["bias of the inverse taken out" in one.route for one in inverted] == [False, True]


@pytest.mark.exhaustive
def test_covariates_are_averaged_over_and_their_differences_are_no_noise():
    model = fj.linked(families.weibull, lambda b, z: {"shape": jnp.exp(b[2]), "scale": jnp.exp(z[:2] @ b[:2])})
    exact = fj.fisher_information(model, BETA, given=X)
    for estimator in ("bartlett", "outer", "hessian"):
        found = fj.fisher_information(model, BETA, draws(1000, estimator), given=X)
        z = (found.matrix - exact.matrix) / found.entry_errors
        assert found.num_samples == 40_000
        assert np.max(np.abs(z)) < 4, estimator
    bernoulli = fj.linked(families.bernoulli, lambda b, z: {"logit": z @ b})
    exact = fj.fisher_information(bernoulli, BETA, given=X)
    np.testing.assert_allclose(
        fj.fisher_information(bernoulli, BETA, draws(20), given=X).matrix, exact.matrix, rtol=1e-11
    )


def scrambled_beside_drawn(model, point, exact, count):
    """Both estimates agree with the exact information within their errors; returned are the errors of each."""
    errors = {}
    for kind in (fj.MonteCarlo, fj.QuasiMonteCarlo):
        run = jax.jit(jax.vmap(lambda key: fj.fisher_information(model, point, kind(key, count, "outer"))))  # noqa: B023
        found = run(jax.random.split(KEY, 100))
        z = (np.asarray(found.matrix) - np.asarray(exact.matrix)) / found.entry_errors
        assert np.all(np.abs(np.mean(z, axis=0)) < 0.4)  # the differences between scramblings are skewed
        assert np.all(np.abs(np.std(z, axis=0) - 1) < 0.3)
        errors[kind] = np.std(found.matrix, axis=0)
    return errors


def test_scrambled_points_are_less_noisy_than_draws_and_say_so():
    """Of a bounded score, where scrambled points gain much."""
    logistic, point = families.logistic, {"loc": 1.5, "scale": 2.0}
    model = fj.Model(
        logistic.log_density, sample=logistic.sample, quantile=logistic.quantile, constraints={"scale": fj.fixed}
    )
    errors = scrambled_beside_drawn(model, point, fj.fisher_information(logistic, point).fix("scale"), 8192)
    assert np.all(errors[fj.QuasiMonteCarlo] < errors[fj.MonteCarlo] / 10)


@pytest.mark.exhaustive
def test_scrambled_points_gain_less_where_the_score_has_no_bound():
    point = {"shape": 1.5, "scale": 2.0}
    exact = fj.fisher_information(families.weibull, point)
    errors = scrambled_beside_drawn(families.weibull, point, exact, 65_536)
    assert np.all(errors[fj.QuasiMonteCarlo] < errors[fj.MonteCarlo] / 1.5)


@pytest.mark.exhaustive
def test_a_mixture_by_draws_agrees_with_quadrature_and_its_weight_is_linear():
    exact = fj.fisher_information(MIXTURE, MIXED, fj.Quadrature(-np.inf, np.inf, 400, points=(-1.0, 2.0)))
    assert exact.names == ("loc[0]", "loc[1]", "scale[0]", "scale[1]", "weight")
    found = {kind: fj.fisher_information(MIXTURE, MIXED, draws(20_000, kind)) for kind in ("bartlett", "outer")}
    for one in found.values():
        assert np.max(np.abs(one.matrix - exact.matrix) / one.entry_errors) < 4
    gain = (found["outer"].entry_errors / found["bartlett"].entry_errors) ** 2
    assert gain[:4, :4].min() > 10
    assert np.median(gain[:4, :4]) > 100
    check = fj.check_information_equality(MIXTURE, MIXED, draws())
    assert check.passed, check
    assert abs(check.regularity.equality_z[4, 4]) < 1  # s² + H is nothing but rounding


def test_a_series_counts_its_terms():
    phi, length = 0.6, 50

    def sample(key, p):
        def step(before, noise):
            now = p["phi"] * before + noise
            return now, now

        return jax.lax.scan(step, 0.0, jax.random.normal(key, (length,)))[1]

    model = fj.dependent(lambda p, y: norm.logpdf(y[1:], p["phi"] * y[:-1], 1.0), sample=sample)
    variances = np.array([(1 - phi ** (2 * t)) / (1 - phi**2) for t in range(1, length)])
    found = fj.fisher_information(model, {"phi": phi}, draws(4000, "outer"))
    assert abs(found.matrix[0, 0] - variances.mean()) < 4 * found.entry_errors[0, 0]
    assert found.entry_errors[0, 0] < 0.04 * variances.mean()


def uniform(key, theta):
    return theta * jax.random.uniform(key)


UNIFORM = fj.Model(lambda t, y: jnp.where((y > 0) & (y < t), -jnp.log(t), -jnp.inf), sample=uniform)


def test_where_the_score_is_off_centre_there_is_no_information_and_an_average_only_on_request():
    with pytest.warns(fj.InformationWarning, match=r"mean of the score is not zero for params.*support.*are NaN"):
        missing = fj.fisher_information(UNIFORM, 2.0, draws(1000))
    assert np.isnan(missing.matrix).all()
    with pytest.raises(ValueError, match=r"not finite\. Its `diagnosis"):
        missing.inverse()
    with pytest.warns(fj.InformationWarning):  # the other average is that of the Laplace distribution below
        found = fj.fisher_information(UNIFORM, 2.0, draws(1000, fallback="hessian"))
    np.testing.assert_allclose(found.matrix, [[-0.25]], atol=1e-12)  # its curvature is 1/θ² throughout
    assert "since the Bartlett identities fail" in found.route


def test_nan_is_only_for_the_parameter_that_moves_the_edge():
    """An exponential distribution from `loc` on: its rate has the information 1/rate², its threshold none."""

    def log_density(p, y):
        return jnp.where(y >= p["loc"], jnp.log(p["rate"]) - p["rate"] * (y - p["loc"]), -jnp.inf)

    shifted = fj.Model(log_density, sample=lambda key, p: p["loc"] + jax.random.exponential(key) / p["rate"])
    with pytest.warns(fj.InformationWarning, match="mean of the score is not zero for loc"):
        found = fj.fisher_information(shifted, {"loc": 0.5, "rate": 2.0}, draws(2000))
    np.testing.assert_array_equal(np.isnan(found.matrix), [[True, True], [True, False]])
    assert abs(found.matrix[1, 1] - 0.25) < 3 * found.entry_errors[1, 1]


def test_a_kink_is_reported_with_the_information_that_there_is_its_error_and_the_reason():
    laplace = {"loc": 0.3, "scale": 2.0}
    with pytest.warns(
        fj.InformationWarning, match=r"s sᵀ \+ H is not zero for loc \(1 of the information.*kink.*its own error"
    ):
        found = fj.fisher_information(families.laplace, laplace, draws())
    exact = fj.fisher_information(families.laplace, laplace)
    assert found.route == "expected: Monte Carlo, mean of s sᵀ, since the Bartlett identities fail"
    assert np.all(np.abs(found.matrix - exact.matrix) < 4 * found.entry_errors + 1e-12)


def test_one_irregular_point_leaves_those_beside_it_under_vmap_as_they_are():
    """The log-density of a normal distribution, with a kink of this height at its centre that its sampler knows nothing of."""

    def log_density(p, y):
        return norm.logpdf(y, p["loc"], 1.0) - p["kink"] * jnp.abs(y - p["loc"])

    model = fj.Model(
        log_density, sample=lambda key, p: p["loc"] + jax.random.normal(key), constraints={"kink": fj.fixed}
    )
    keys = jax.random.split(KEY, 3)
    kinks = jnp.array([0.0, 0.5, 0.0])
    found = jax.jit(
        jax.vmap(lambda key, kink: fj.fisher_information(model, {"loc": 1.0, "kink": kink}, fj.MonteCarlo(key, 1000)))
    )(keys, kinks)
    found = jax.tree.map(np.asarray, found)
    np.testing.assert_array_equal(found.regularity.regular, [True, False, True])
    assert "where those fail" in found.route
    np.testing.assert_allclose(found.matrix[[0, 2], 0, 0], 1.0, rtol=1e-10)
    assert np.isfinite(found.matrix[1]).all()
    assert found.entry_errors[1, 0, 0] > 0


def test_nothing_left_out_of_an_expectation_goes_unsaid():
    with pytest.warns(fj.InformationWarning, match=r"probabilities add up to 0.9\d+, not 1: list more values"):
        fj.fisher_information(families.poisson, {"rate": 4.0}, fj.Enumeration(np.arange(9)))
    broken = fj.Model(families.gamma.log_density, sample=lambda key, p: jnp.nan * p["rate"])
    with pytest.warns(
        fj.InformationWarning, match="draws or nodes have a log-density or derivative that is not finite"
    ):
        fj.fisher_information(broken, GAMMA, draws(100, "outer"))


def test_results_do_not_depend_on_transformations():
    whole, points = sampled_information(), {"shape": jnp.array([1.5, 3.0]), "scale": jnp.array([2.0, 0.5])}
    mapped = jax.vmap(lambda p: fj.fisher_information(families.weibull, p, draws(2000, "outer")))(points)
    assert (whole.names, mapped.names) == (
        ("shape", "scale"),
        ("scale", "shape"),
    )  # JAX sorts the keys that it maps over
    np.testing.assert_allclose(mapped.matrix[0, ::-1, ::-1], whole.matrix, rtol=1e-8)


def test_results_do_not_depend_on_chunks(monkeypatch):
    expectation, point = draws(3000), {"rate": 2.0}
    family = families.exponential
    whole = fj.fisher_information(family, point, expectation)
    monkeypatch.setattr(sampled, "CHUNK_ENTRIES", 2**12)
    renewed = fj.Model(family.log_density, sample=family.sample, information=lambda p: 0.0)
    cut = fj.fisher_information(renewed, point, expectation)
    np.testing.assert_allclose(cut.matrix, whole.matrix, rtol=1e-6)
    np.testing.assert_allclose(cut.entry_errors, whole.entry_errors, rtol=1e-3, atol=1e-12)


def test_memory_grows_with_neither_draws_nor_rows():
    model = fj.linked(families.poisson, lambda b, z: {"rate": jnp.exp(z @ b)})

    def held(number, rows):
        run = jax.jit(
            lambda key, x: fj.fisher_information(model, BETA, fj.MonteCarlo(key, number, "outer"), given=x).matrix
        )
        return run.lower(KEY, jax.ShapeDtypeStruct((rows, 3), float)).compile().memory_analysis().temp_size_in_bytes

    assert held(10**6, 10) < 1.5 * held(10**5, 10)
    closed = jax.jit(lambda x: fj.fisher_information(model, BETA, given=x).matrix)
    lowered = closed.lower(jax.ShapeDtypeStruct((10**6, 3), float))
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 10**6 * 3 * 8


def test_single_precision_serves_too():
    exact = fj.fisher_information(families.weibull, WEIBULL)
    single = {"shape": jnp.float32(1.5), "scale": jnp.float32(2.0)}
    found = fj.fisher_information(families.weibull, single, draws())
    assert found.matrix.dtype == jnp.float32
    assert not found.diagnosis()
    np.testing.assert_allclose(found.matrix, exact.matrix, rtol=0.01)
    rule = fj.fisher_information(families.weibull, single, fj.Quadrature(0.0, np.inf))
    np.testing.assert_allclose(rule.matrix, exact.matrix, rtol=1e-4)


def test_draws_lower_for_cuda():
    def run(key):
        return fj.fisher_information(families.weibull, WEIBULL, fj.MonteCarlo(key, 2000)).matrix

    assert jax.export.export(jax.jit(run), platforms=["cuda"])(KEY).mlir_module()


def test_many_draws_in_single_precision_and_without_x64():
    with jax.enable_x64(False):
        found = fj.fisher_information(families.exponential, {"rate": 2.0}, draws(400_000, "outer"))
        check = fj.check_score_mean(families.exponential, {"rate": 2.0}, draws(200_000))
    np.testing.assert_allclose(found.matrix, [[0.25]], atol=5 * np.max(found.entry_errors))
    assert check.passed


def test_a_quadrature_too_coarse_says_so_even_of_symmetric_densities():
    coarse = fj.Quadrature(-np.inf, np.inf, order=40)
    with pytest.warns(fj.InformationWarning):
        found = fj.fisher_information(families.logistic, {"loc": 0.0, "scale": 1.0}, coarse)
    exact = fj.fisher_information(families.logistic, {"loc": 0.0, "scale": 1.0})
    off = np.abs(np.diag(found) - np.diag(exact))
    assert np.all(off < 2 * np.diag(found.entry_errors) + 1e-12)
    assert np.max(off) > 1e-6


def test_a_series_with_covariates_and_a_closed_form_counts_its_terms_once():
    z = np.sin(np.arange(40.0))
    series = fj.dependent(
        lambda p, y, z: norm.logpdf(y[1:], p["b"] * z[1:], 1.0),
        sample=lambda key, p, z: p["b"] * z + jax.random.normal(key, z.shape),
        information=lambda p, z: jnp.mean(z[1:] ** 2)[None, None],
    )
    exact = fj.fisher_information(series, {"b": 1.0}, given=z)
    np.testing.assert_allclose(exact.matrix, [[np.mean(z[1:] ** 2)]], rtol=1e-12)
    sampled_too = fj.fisher_information(series, {"b": 1.0}, draws(400), given=z)
    np.testing.assert_allclose(sampled_too.matrix, exact.matrix, rtol=1e-10)


def test_values_may_be_listed_as_python_does():
    found = fj.fisher_information(families.bernoulli, {"logit": 0.3}, fj.Enumeration([0, 1]))
    np.testing.assert_allclose(
        found.matrix, fj.fisher_information(families.bernoulli, {"logit": 0.3}).matrix, rtol=1e-12
    )


# The record.


def gamma_information():
    return fj.fisher_information(families.gamma, GAMMA)


def test_marginal_and_fix_are_the_two_ways_to_look_at_some_parameters():
    root = np.random.default_rng(0).normal(size=(5, 5))
    names = ("loc[0]", "loc[1]", "scale[0]", "scale[1]", "weight")
    full = fj.Information(jnp.asarray(root @ root.T), names, "made up")
    inverse = np.linalg.inv(full)
    kept = [0, 1, 4]
    marginal = full.marginal(["loc", "weight"])
    assert marginal.names == ("loc[0]", "loc[1]", "weight")
    assert "scale[0], scale[1] unknown" in marginal.route
    np.testing.assert_allclose(np.linalg.inv(marginal), inverse[np.ix_(kept, kept)], rtol=1e-9)
    fixed = full.fix("scale")
    assert fixed.names == marginal.names
    np.testing.assert_allclose(fixed.matrix, np.asarray(full)[np.ix_(kept, kept)])
    assert np.all(np.diag(fixed) >= np.diag(marginal))


def test_other_parameters_get_the_information_that_they_have_by_themselves():
    mean_and_shape = {"log_mean": np.log(2.5 / 0.7), "shape": 2.5}
    moved = gamma_information().reparametrize(
        lambda p: {"rate": p["shape"] / jnp.exp(p["log_mean"]), "shape": p["shape"]}, mean_and_shape
    )
    assert moved.names == ("log_mean", "shape")
    np.testing.assert_allclose(moved.matrix, np.diag([2.5, polygamma(1, 2.5) - 1 / 2.5]), atol=1e-12)
    errors = sampled_information().reparametrize(
        lambda p: {"scale": jnp.exp(p["r"]), "shape": p["s"]}, {"r": np.log(2.0), "s": 1.5}
    )
    scale = (sampled_information().names.index("scale"),) * 2
    np.testing.assert_allclose(errors.entry_errors[0, 0], 4.0 * sampled_information().entry_errors[scale], rtol=1e-9)


def test_what_is_derived_from_a_sampled_matrix_is_compiled_once():
    for key, most in ((0, 6), (1, 0)):
        found = sampled_information(key)
        with compiled_programs() as compiled:
            error = np.asarray(found.inverse().standard_errors(50).standard_error)
            assert np.all(np.asarray(found.marginal("shape").entry_errors) > 0)
        assert len(compiled) <= most
        of_map = jax.jit(lambda found: found.standard_errors(50).standard_error)(found)
        np.testing.assert_allclose(error, of_map, rtol=1e-10)


def test_information_adds_by_name_and_counts_observations():
    one = gamma_information()
    prior = fj.Information(jnp.diag(jnp.array([9.0, 4.0])), ("rate", "shape"), "prior")
    total = np.float64(100) * one + prior
    assert isinstance(total, fj.Information)
    np.testing.assert_allclose(total.matrix, 100 * np.asarray(one) + np.diag([4.0, 9.0]))
    assert "prior" in total.route
    a, b = sampled_information(0), sampled_information(1)
    np.testing.assert_allclose((a + b).entry_errors ** 2, a.entry_errors**2 + b.entry_errors**2, rtol=1e-10)
    assert (a + b).num_samples == 4000


def test_a_nearly_singular_information_names_its_weak_direction():
    near = fj.Information(jnp.array([[1.0, 1.0 - 1e-6], [1.0 - 1e-6, 1.0]]), ("a", "b"), "made up")
    assert near.condition_number == pytest.approx(2e6, rel=1e-3)
    assert near.weak_directions() == ["+1 a -1 b (eigenvalue 1e-06)"]
    assert gamma_information().weak_directions() == []
    categorical = fj.fisher_information(families.categorical, {"logits": np.zeros(3)})
    with pytest.raises(ValueError, match=r"not positive definite.*logits\[0\] .*logits\[1\] .*logits\[2\]"):
        categorical.inverse()
    assert np.isnan(categorical.log_determinant().value)


def test_the_record_shows_itself():
    exact, sampled_too = gamma_information(), sampled_information()
    assert "closed form" in str(exact)
    assert "±" not in str(exact)
    assert str(sampled_too).count("±") == 4
    assert sampled_too._repr_html_().count("<td>") == 4
    assert "<th>shape</th>" in sampled_too.inverse()._repr_html_()
    frame = exact.to_frame()
    assert frame.loc["rate", "shape"] == pytest.approx(-1 / 0.7)
    assert exact.inverse().to_frame().shape == (2, 2)
    many = fj.Information(jnp.eye(30), tuple(f"p{k}" for k in range(30)), "made up")
    assert "first 12 of 30" in str(many)


# The Cramér-Rao bound.


def test_the_bound_is_for_parameters_functions_and_biased_estimators():
    bound = fj.cramer_rao_bound(families.gamma, GAMMA, num_observations=50)
    np.testing.assert_allclose(bound.matrix, np.linalg.inv(gamma_information()) / 50, rtol=1e-12)
    mean = fj.cramer_rao_bound(families.gamma, GAMMA, num_observations=50, function=lambda p: p["shape"] / p["rate"])
    assert mean.names == ("function",)
    np.testing.assert_allclose(mean.matrix, [[2.5 / 0.7**2 / 50]], rtol=1e-12)
    shrunk = fj.cramer_rao_bound(
        families.exponential, {"rate": 2.0}, num_observations=10, bias=lambda p: {"rate": -0.2 * p["rate"]}
    )
    np.testing.assert_allclose(shrunk.matrix, [[0.8**2 * 4.0 / 10]], rtol=1e-12)
    exact = fj.cramer_rao_bound(families.weibull, WEIBULL, num_observations=50)
    sampled_too = fj.cramer_rao_bound(families.weibull, WEIBULL, draws(2000, "outer"), num_observations=50)
    assert np.all(np.abs(sampled_too.matrix - exact.matrix) < 4 * sampled_too.entry_errors)
    assert np.all(sampled_too.entry_errors > 0)


def test_the_bound_obeys_constraints_that_tie_parameters_together():
    truth = {"loc": np.array([0.5, -1.0]), "covariance": np.array([[2.0, 0.6], [0.6, 1.0]])}
    bound = fj.cramer_rao_bound(families.multivariate_normal, truth, num_observations=20)
    c = truth["covariance"]
    expected = (np.einsum("ik,jl->ijkl", c, c) + np.einsum("il,jk->ijkl", c, c)).reshape(4, 4) / 20
    by_name = {name: k for k, name in enumerate(bound.names)}
    first = by_name["covariance[0,0]"]
    np.testing.assert_allclose(bound.matrix[first : first + 4, first : first + 4], expected, rtol=1e-9)


def test_the_bound_on_a_simplex_by_any_route():
    truth = {"p": jnp.array([0.2, 0.3, 0.5])}
    model = fj.Model(
        lambda p, y: jnp.log(p["p"])[y],
        sample=lambda key, p: jax.random.categorical(key, jnp.log(p["p"])),
        constraints={"p": fj.simplex},
    )
    exact = (np.diag(truth["p"]) - np.outer(truth["p"], truth["p"])) / 10
    for expectation in (fj.Enumeration(np.arange(3)), draws(2000)):
        compute = functools.partial(fj.cramer_rao_bound, model, expectation=expectation, num_observations=10)
        bound = jax.jit(compute)(truth)
        assert bound.names == ("p[0]", "p[1]", "p[2]")
        np.testing.assert_allclose(bound.matrix, exact, atol=1e-10)


def test_no_estimator_beats_the_bound_and_the_maximum_likelihood_estimate_reaches_it():
    y = np.random.default_rng(0).wald(2.5, 0.7, (400, 500))
    mean = np.mean(y, axis=1)
    shape = 1 / (np.mean(1 / y, axis=1) - 1 / mean)  # the maximum in closed form
    bound = fj.cramer_rao_bound(families.inverse_gaussian, {"mean": 2.5, "shape": 0.7}, num_observations=500)
    spread = np.cov(mean, shape)
    np.testing.assert_allclose(np.diag(spread), np.diag(bound), rtol=4 * np.sqrt(2 / 400))


def test_digamma_is_where_the_score_of_a_gamma_is_zero():
    """An independent word on parametrisation: E[log y] = ψ(shape) − log(rate)."""
    check = fj.check_score_mean(families.gamma, GAMMA, fj.Quadrature(0.0, np.inf))
    assert check.passed
    y = np.exp(digamma(2.5)) / 0.7
    shape = fj.score(families.gamma, GAMMA, np.array([y]))["shape"]
    np.testing.assert_allclose(shape, 0.0, atol=1e-12)
