"""Models with latent effects: values of R, exact derivatives, closed forms, true statuses, clear errors."""

import copy
import functools
import gc
import itertools
import pickle
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest
import scipy.integrate
import scipy.stats
from data_sets import cbpp_fit
from helpers import compiled_programs, normal_derivatives, some_of
from jax.scipy.special import gammaln
from jax.scipy.stats import norm, poisson
from jax.scipy.stats import t as student_t

import fisher_jax as fj
from fisher_jax import Status
from fisher_jax.models.programs import SAME_SUMS, programs_of

# A published case: `cbpp` by lme4 and glmmTMB ---------------------------------------------------------------------------

# nodes: estimates and standard errors of R, and the log-likelihood with all constants. Laplace is glmmTMB's, whose last is log sd;
# lme4's, by 25 nodes, leaves out the constant −41.97835377 in what its `logLik` returns.
CBPP_IN_R = {
    1: (
        [-1.3985325, -0.99233229, -1.1286713, -1.5803137, -0.44275947],
        [0.23247205, 0.30664249, 0.32663781, 0.4274366, 0.27802104],
        -92.02628186,
    ),
    25: (
        [-1.3992304, -0.99140367, -1.1278195, -1.5794707, np.log(0.647518479)],
        [0.23351156, 0.30676794, 0.32676829, 0.42759444, np.nan],
        -91.98336904,
    ),
}


@pytest.fixture(scope="module")
def check_of_cbpp():
    """Laplace's fit and its check, which fits again with 25 nodes."""
    fit = cbpp_fit(1)
    return fit, fj.check_laplace(fit, nodes=25)


@pytest.mark.exhaustive
def test_nodes_move_the_fit_to_cbpp_by_as_much_as_lme4_differs_from_glmmtmb(check_of_cbpp):
    _, check = check_of_cbpp
    (laplace, errors, _), (quadrature, *_) = ([np.array(x) for x in numbers] for numbers in CBPP_IN_R.values())
    assert check.passed
    # The last is a standard deviation here, and its logarithm there.
    of_sd = np.exp(laplace[-1])
    moves = np.append(quadrature[:-1] - laplace[:-1], np.exp(quadrature[-1]) - of_sd)
    np.testing.assert_allclose(check.shift, moves / np.append(errors[:-1], errors[-1] * of_sd), atol=2e-4)
    assert "Laplace's approximation is enough for these data: by 25 nodes no estimate moves" in str(check)
    assert "by more than 0.029" in str(check)
    with pytest.raises(ValueError, match="nodes=25, but the fit has 25 nodes already"):
        fj.check_laplace(check.refit, nodes=25)


@pytest.mark.exhaustive  # `test_mixed_formula.py` has the same numbers in every run
@pytest.mark.parametrize("nodes", CBPP_IN_R)
def test_cbpp_is_that_of_glmmtmb_by_laplace_and_of_lme4_by_quadrature(check_of_cbpp, nodes):
    estimates, errors, log_likelihood = CBPP_IN_R[nodes]
    fit = {1: check_of_cbpp[0], 25: check_of_cbpp[1].refit}[nodes]
    assert fit.status is Status.CONVERGED
    sd, own_errors = float(fit.params["sd"]["herd"]), fit.standard_errors()
    ours = np.array([*fit.params["beta"], np.log(sd)])
    ours_errors = np.array([*own_errors["beta"], own_errors["sd"]["herd"] / sd])
    assert np.max(np.abs(ours - estimates) / ours_errors) < 1e-4
    has_error = np.isfinite(errors)
    np.testing.assert_allclose(ours_errors[has_error], np.array(errors)[has_error], rtol=1e-4)
    assert abs(fit.log_likelihood - log_likelihood) < 1e-6


# Derivatives through the mode -------------------------------------------------------------------------------------------


def predictor_of(theta, b, z):
    basis = jnp.stack([jnp.ones_like(z), z, z**2])[: len(b)]
    scales = jnp.exp(theta[1]) * jnp.array([1.0, 0.7, 0.5])[: len(b)]
    return theta[0] + jnp.sum(scales[:, None] * b[:, None] * basis, axis=0)


def poisson_joint(theta, b, y, z):
    eta = predictor_of(theta, b, z)
    return jnp.sum(y * eta - jnp.exp(eta)) + jnp.sum(norm.logpdf(b))


def binomial_joint(theta, b, y, z):
    eta = predictor_of(theta, b, z)
    return jnp.sum(y * eta - 5.0 * jnp.logaddexp(0.0, eta)) + jnp.sum(norm.logpdf(b))


def gamma_joint(theta, b, y, z):
    shape, eta = jnp.exp(theta[2]), predictor_of(theta, b, z)
    terms = (shape - 1) * jnp.log(y) - y * shape * jnp.exp(-eta) + shape * (jnp.log(shape) - eta) - gammaln(shape)
    return jnp.sum(terms) + jnp.sum(norm.logpdf(b))


def negative_binomial_joint(theta, b, y, z):
    size, eta = jnp.exp(theta[2]), predictor_of(theta, b, z)
    log_total = jnp.logaddexp(theta[2], eta)
    terms = gammaln(y + size) - gammaln(size) + size * (theta[2] - log_total) + y * (eta - log_total)
    return jnp.sum(terms) + jnp.sum(norm.logpdf(b))


def student_joint(theta, b, y, z):
    return jnp.sum(student_t.logpdf(y, 3.0, predictor_of(theta, b, z), jnp.exp(theta[2]))) + jnp.sum(norm.logpdf(b))


def concentration_joint(theta, b, y, z):  # one compartment, a dose by mouth at time 0, measured at the times z
    both = jnp.exp(theta[1]) * jnp.append(b, jnp.zeros(2 - len(b)))
    absorption, elimination = jnp.exp(0.5 + both[1]), jnp.exp(theta[0] - 1.5 + both[0])
    curve = absorption / (absorption - elimination) * (jnp.exp(-elimination * z) - jnp.exp(-absorption * z))
    return jnp.sum(norm.logpdf(y, curve, jnp.exp(theta[2] - 1.5))) + jnp.sum(norm.logpdf(b))


X = np.linspace(-1.0, 1.0, 5)
COUNTS = np.array([2.0, 1.0, 4.0, 3.0, 5.0])
HOURS = np.array([0.1, 0.5, 1.0, 2.0, 4.0])

# joint, effects, nodes, theta (none is at a maximum), y, z
DIFFERENTIATED = {
    "Poisson": (poisson_joint, 1, 1, [0.8, -0.3], COUNTS, X),
    "binomial, two effects": (binomial_joint, 2, 1, [-0.4, 0.1], COUNTS, X),
    "binomial, quadrature": (binomial_joint, 1, 5, [0.9, -0.4], COUNTS, X),
    "gamma, quadrature": (gamma_joint, 1, 5, [0.9, -0.4, 0.5], COUNTS, X),
    "negative binomial, three effects": (negative_binomial_joint, 3, 1, [1.0, -0.5, 0.3], COUNTS, X),
    "Student-t, not log-concave": (student_joint, 1, 1, [0.2, -0.2, 0.1], np.array([-4.0, 0.3, 0.1, 1.2, 2.5]), X),
    "concentration, two effects, quadrature": (
        concentration_joint,
        2,
        5,
        [-0.1, -1.2, 0.0],
        np.array([0.1, 0.6, 0.8, 0.6, 0.5]),
        HOURS,
    ),
}


def marginal_anew(joint, q, nodes):
    """log p(y; θ) at many points, (k,): Newton's method from zeros at each of them, and the formula of the integral."""
    x, w = np.polynomial.hermite.hermgauss(nodes)
    grid = np.array(list(itertools.product(x, repeat=q)))
    log_weights = np.array([sum(each) for each in itertools.product(np.log(w) + x**2, repeat=q)])

    # Without what makes sums differ from run to run.
    @functools.partial(jax.jit, compiler_options=SAME_SUMS)
    @jax.vmap
    def value(theta, y, z):
        def f(b):
            return joint(theta, b, y, z)

        def step(_, b):
            values, vectors = jnp.linalg.eigh(-jax.hessian(f)(b))
            move = vectors @ (vectors.T @ jax.grad(f)(b) / jnp.maximum(jnp.abs(values), 0.3))
            return b + move / jnp.maximum(1.0, jnp.linalg.norm(move))

        b = jax.lax.fori_loop(0, 60, step, jnp.zeros(q))
        lower = jnp.linalg.cholesky(-jax.hessian(f)(b))
        points = b[None] + np.sqrt(2.0) * jnp.linalg.solve(lower.T, grid.T).T
        total = jax.nn.logsumexp(jax.vmap(f)(points) + log_weights)
        return total - jnp.sum(jnp.log(jnp.diag(lower))) + q / 2 * np.log(2.0)

    return value


def richardson():
    """Weights of a first derivative, of order eight, and the offsets at which they belong, in steps."""
    rows = [{sign * 2.0**-k: sign * 2.0 ** (k - 1) for sign in (1, -1)} for k in range(4)]
    for order in range(1, 4):
        rows = [
            {at: (4**order * finer.get(at, 0.0) - coarser.get(at, 0.0)) / (4**order - 1) for at in coarser | finer}
            for coarser, finer in itertools.pairwise(rows)
        ]
    return np.array(list(rows[0])), np.array(list(rows[0].values()))


OFFSETS, WEIGHTS = richardson()


def gradient_by_differences(values, x, step):
    x = np.asarray(x, float)
    points = [x + step * offset * axis for axis in np.eye(len(x)) for offset in OFFSETS]
    return np.asarray(values(np.array(points))).reshape(len(x), -1) @ WEIGHTS / step


def hessian_by_differences(values, x, step):
    x, p, axes = np.asarray(x, float), len(x), np.eye(len(x))
    points = [x + step * (a * i + b * j) for i in axes for j in axes for a in OFFSETS for b in OFFSETS]
    values = np.asarray(values(np.array(points))).reshape(p, p, len(OFFSETS), -1)
    return np.einsum("ijab,a,b->ij", values, WEIGHTS, WEIGHTS) / step**2


# What takes a compilation for each density: some in every run, the others by `make exhaustive`.
SOME = some_of(DIFFERENTIATED, "binomial, two effects", "Student-t, not log-concave")


@pytest.mark.parametrize("name", SOME)
def test_derivatives_are_those_of_the_marginal_whose_mode_is_found_anew_at_each_point(name):
    joint, q, nodes, theta, y, z = DIFFERENTIATED[name]
    theta, density = np.array(theta), fj.marginal(joint, np.zeros(q), nodes=nodes).log_density
    anew, most = marginal_anew(joint, q, nodes), len(theta) ** 2 * len(OFFSETS) ** 2

    def at_parameters(points):  # filled up to as many as a Hessian takes, for one program
        filled = np.concatenate([points, np.tile(points[:1], (most - len(points), 1))])
        return anew(filled, *(np.tile(part, (most, 1)) for part in (y, z)))[: len(points)]

    @jax.jit
    def derivatives(theta, y, z):
        given = density.with_mode(theta, y, z)  # as a fit gives it

        def gradient_and_value(theta):
            value, gradient = jax.value_and_grad(density)(theta, given, z)
            return gradient, (gradient, value)

        return jax.jacfwd(gradient_and_value, has_aux=True)(theta)

    hessian, (gradient, value) = derivatives(theta, y, z)
    np.testing.assert_allclose(value, at_parameters(theta[None])[0], rtol=1e-12)
    np.testing.assert_allclose(gradient, gradient_by_differences(at_parameters, theta, 0.05), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(hessian, hessian_by_differences(at_parameters, theta, 0.1), rtol=1e-6, atol=1e-6)


def test_every_mode_of_differentiation_gives_the_same_second_derivatives_by_parameters_data_and_covariates():
    joint, q, nodes, theta, y, z = DIFFERENTIATED["binomial, quadrature"]
    y, z = y[:2], z[:2]
    density, anew = fj.marginal(joint, np.zeros(q), nodes=nodes).log_density, marginal_anew(joint, q, nodes)
    sizes = np.cumsum([len(theta), len(y)])
    point = np.concatenate([theta, y, z])

    def at(point):
        return density(*jnp.split(point, sizes))

    def forward(f):
        return lambda u: jax.jvp(f, (u,), (1.0,))[1]

    @jax.jit
    def by_modes(direction):  # along one, since under vmap the search takes long to trace
        def along(u):
            return at(point + u * direction)

        return [forward(forward(along))(0.0), forward(jax.grad(along))(0.0), jax.grad(forward(along))(0.0)]

    hessian = hessian_by_differences(lambda points: anew(*np.split(points, sizes, axis=1)), point, 0.05)
    for direction in np.random.default_rng(1).normal(size=(8, len(point))):
        np.testing.assert_allclose(by_modes(direction), direction @ hessian @ direction, rtol=1e-6, atol=1e-6)


def test_third_derivatives_are_exact_where_the_density_finds_its_mode():
    joint, q, nodes, theta, y, z = DIFFERENTIATED["Poisson"]
    theta = np.array(theta)
    density, anew = fj.marginal(joint, np.zeros(q), nodes=nodes).log_density, marginal_anew(joint, q, nodes)

    direction = np.array([1.0, -1.0])

    def along(u):
        return density(theta + u * direction, y, z)

    def anew_along(points):
        return anew(theta + points[:, None] * direction, *(np.tile(part, (len(points), 1)) for part in (y, z)))

    offsets = np.sum(np.meshgrid(OFFSETS, OFFSETS, OFFSETS, indexing="ij"), axis=0)
    values = np.asarray(anew_along(0.2 * offsets.ravel())).reshape(offsets.shape)
    expected = np.einsum("ijk,i,j,k->", values, WEIGHTS, WEIGHTS, WEIGHTS) / 0.2**3
    third = jax.jit(jax.jacfwd(jax.jacfwd(jax.grad(along))))(0.0)
    np.testing.assert_allclose(third, expected, rtol=1e-6)


# The search for the mode ------------------------------------------------------------------------------------------------


def log_concave_joint(params, b, y):
    eta = params["mean"] + params["sd"] * b
    by_kind = y["count"] * eta - y["poisson"] * jnp.exp(eta) - y["trials"] * jnp.logaddexp(0.0, eta)
    return by_kind + norm.logpdf(b)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_mode_of_a_log_concave_density_is_certified_however_far_it_is(dtype):
    integral = fj.marginal(log_concave_joint, 0.0).integral
    counts = {"Poisson": (0, 1, 10, 1e4, 1e6), "binomial": (0, 10)}
    cases = np.array(
        [
            (count, kind == "Poisson", (kind == "binomial") * max(trials, 1), mean, sd)
            for kind in counts
            for count in counts[kind]
            for trials in ((count, 1e3) if kind == "binomial" else (0,))  # all of them succeed, or none, or some
            for mean in (-20.0, -5.0, 0.0, 5.0)
            for sd in (1e-8, 1e-2, 1.0, 5.0, 100.0)
        ],
        dtype,
    )
    count, is_poisson, trials, mean, sd = cases.T

    @jax.jit
    @jax.vmap
    def search(params, y):
        mode = integral.mode(params, y)
        return mode, jax.grad(integral.of_effects(params, y))(mode.effects)

    mode, slope = search({"mean": mean, "sd": sd}, {"count": count, "poisson": is_poisson, "trials": trials})
    assert cases[~mode.certified].tolist() == []
    distance = np.abs(slope[:, 0]) / np.sqrt(mode.information[:, 0, 0])
    assert np.max(distance) < (
        1e-6 if dtype == np.float64 else 0.1
    )  # standard errors; what rounding leaves of the slope


KINDS = ("one mode", "mode at infinity", "kink", "two modes")


def odd_joint(params, b, y):
    spread = 1.0 - params**2  # of the first kind only: from ±1 on it has no mode
    kinds = jnp.stack(
        [-0.5 * spread * b**2, -jnp.exp(-b), -jnp.abs(b) - 0.1 * (b - 0.3) ** 2, -((b**2 - 4.0) ** 2) / 8.0]
    )
    return jnp.sum(y * kinds) - 50.0 * (params - 0.5) ** 2


ODD = fj.marginal(odd_joint, 0.0)
ONLY = dict(zip(KINDS, np.eye(4), strict=True))


def test_a_density_without_a_regular_mode_is_nan_and_never_silently_wrong():
    of_each = jax.jit(jax.vmap(lambda y: (ODD.log_density(0.2, y), ODD.integral.mode(0.2, y).status)))
    values, statuses = of_each(np.stack(list(ONLY.values())))
    expected = 0.5 * np.log(2 * np.pi / (1 - 0.2**2)) - 50 * 0.3**2
    np.testing.assert_allclose(values[0], expected, rtol=1e-13)
    assert np.all(np.isnan(values[1:]))
    assert [Status(int(status)) for status in statuses] == [
        Status.CONVERGED,
        Status.BOUNDARY,
        Status.STALLED,
        Status.INDEFINITE,  # zero lies between the two modes
    ]


def test_a_group_whose_mode_is_not_found_at_the_start_is_named():
    groups = np.stack([ONLY["one mode"]] * 2 + [ONLY["kink"]] + [ONLY["one mode"]])
    fit = fj.fit(ODD, 0.2, groups)
    assert fit.status is Status.BAD_START
    expected = (
        "observation 2, where the mode of the latent effects was not found (stalled: joint may have a kink in an effect"
    )
    assert expected in fit.diagnosis()


def test_a_trial_point_without_a_mode_shortens_the_step():
    start, slope, curvature = -0.9, -0.9 / 0.19 + 140.0, 100.0 - 1.81 / 0.19**2
    assert start + slope / curvature > 1.0  # Newton's first step
    fit = fj.fit(ODD, start, np.stack([ONLY["one mode"]] * 4))
    assert fit.status is Status.CONVERGED
    slope = 4 * (fit.params / (1 - fit.params**2) - 100 * (fit.params - 0.5))
    assert abs(slope) < 1e-5


# A linear mixed model, whose integral is known --------------------------------------------------------------------------

RNG = np.random.default_rng(5)
DAYS = np.tile(np.arange(5.0) - 2.0, (7, 1)) + 0.1 * RNG.normal(size=(7, 5))
REACTIONS = (2.0 + RNG.normal(size=(7, 1))) + (0.5 + 0.6 * RNG.normal(size=(7, 1))) * DAYS + RNG.normal(size=(7, 5))


def line(params, effects, z):
    mean = params["beta"][0] + effects["intercept"] + (params["beta"][1] + effects["slope"]) * z
    return {"loc": mean, "scale": params["sigma"]}


@pytest.mark.exhaustive  # in every run test_mixed_formula.py has such a fit, test_crossed.py its derivatives
def test_a_linear_mixed_model_with_correlated_effects_is_the_multivariate_normal():
    model = fj.mixed(
        fj.families.normal,
        line,
        {"intercept": 0.0, "slope": 0.0},
        correlated=True,
        constraints={"sigma": fj.positive},
    )
    start = {"beta": np.zeros(2), "sigma": 1.0, "covariance": np.eye(2)}
    fit = fj.fit(model, start, REACTIONS, given=DAYS)
    assert fit.status is Status.CONVERGED
    beta, sigma, covariance = (fit.params[name] for name in ("beta", "sigma", "covariance"))
    # By β, σ and the three entries of the covariance matrix, on which the variance of a group depends linearly.
    value, gradient, hessian = 0.0, np.zeros(6), np.zeros((6, 6))
    for y, z in zip(REACTIONS, DAYS, strict=True):
        design = np.stack([np.ones(5), z], axis=1)
        entries = [np.outer(a, b) for a, b in itertools.combinations_with_replacement(design.T, 2)]
        slopes = np.stack(
            [*np.zeros((2, 5, 5)), 2 * sigma * np.eye(5), entries[0], entries[1] + entries[1].T, entries[2]]
        )
        bends = np.stack([*np.zeros((2, 5, 5)), 2 * np.eye(5), *np.zeros((3, 5, 5))])
        variance = design @ covariance @ design.T + sigma**2 * np.eye(5)
        of_mean = np.concatenate([design.T, np.zeros((4, 5))])
        parts = normal_derivatives(y - design @ beta, of_mean, variance, slopes, bends)
        value, gradient, hessian = (sum(pair) for pair in zip((value, gradient, hessian), parts, strict=True))
    np.testing.assert_allclose(fit.log_likelihood, value, rtol=1e-12)
    step = np.linalg.solve(-hessian, gradient)
    np.testing.assert_allclose(step / np.sqrt(np.diag(np.linalg.inv(-hessian))), 0.0, atol=1e-7)
    assert fit.names == ("beta[0]", "beta[1]", "sigma", *(f"covariance[{i},{j}]" for i in range(2) for j in range(2)))
    twice = [0, 1, 2, 3, 4, 4, 5]  # the covariance is two entries of the matrix
    np.testing.assert_allclose(fit.covariance(), np.linalg.inv(-hessian)[twice][:, twice], rtol=1e-7, atol=1e-9)


def test_the_expected_information_of_a_linear_mixed_model_is_the_closed_form():
    def parallel(params, effects, z):
        return {"loc": params["beta"][0] + params["beta"][1] * z + effects["intercept"], "scale": params["sigma"]}

    model = fj.mixed(fj.families.normal, parallel, {"intercept": 0.0})
    z = DAYS[0]
    design, same = np.stack([np.ones_like(z), z], axis=1), np.ones((5, 5))
    mean = design @ np.array([2.0, 0.5])
    covariance = 0.9**2 * same + 0.8**2 * np.eye(5)
    # The Hessian is a quadratic polynomial of y, so its mean over these points is its expectation.
    root = np.sqrt(5.0) * np.linalg.cholesky(covariance).T
    points = np.concatenate([mean + root, mean - root])

    def of_vector(theta, y):
        return model.log_density({"beta": theta[:2], "sigma": theta[2], "sd": {"intercept": theta[3]}}, y, z)

    theta = np.array([2.0, 0.5, 0.8, 0.9])
    ours = -jax.jit(lambda y: jnp.mean(jax.vmap(lambda y: jax.jacfwd(jax.grad(of_vector))(theta, y))(y), axis=0))(
        points
    )
    inverse = np.linalg.inv(covariance)
    slopes = [2 * 0.8 * np.eye(5), 2 * 0.9 * same]
    expected = np.zeros((4, 4))
    expected[:2, :2] = design.T @ inverse @ design
    expected[2:, 2:] = [[0.5 * np.trace(inverse @ a @ inverse @ b) for a in slopes] for b in slopes]
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-10)


# Fits of counts in clinics ----------------------------------------------------------------------------------------------

PATIENTS = np.array([[3, 4, 6], [0, 1, 1], [7, 9, 15], [2, 1, 4], [5, 2, 8], [1, 0, 2]], float)
WEEK = np.broadcast_to(np.arange(3.0), PATIENTS.shape)
CLINIC_START = {"mean": 0.0, "slope": 0.0, "sd": {"clinic": 1.0}}


def clinic_predictor(params, effects, z):
    return {"rate": jnp.exp(params["mean"] + params["slope"] * z + effects["clinic"])}


CLINICS = fj.mixed(fj.families.poisson, clinic_predictor, {"clinic": 0.0})


def clinic_fit(data=PATIENTS, start=CLINIC_START, model=CLINICS, **settings):
    return fj.fit(model, start, data, given=WEEK, **settings)


def numbers_of(fit):
    return fit.layout.flatten(fit.params)


def test_a_standard_deviation_whose_best_value_is_zero_ends_at_the_boundary_with_the_errors_of_the_others():
    alike = np.tile([2.0, 3.0, 5.0], (6, 1))
    fit = clinic_fit(alike)
    assert fit.status is Status.BOUNDARY
    assert "sd.clinic" in fit.diagnosis()
    assert fit.params["sd"]["clinic"] < 1e-3
    # Those of the regression without effects.
    design = np.column_stack([np.ones(18), WEEK.ravel()])
    rate = np.exp(design @ np.array([fit.params["mean"], fit.params["slope"]]))
    np.testing.assert_allclose(design.T @ (alike.ravel() - rate), 0.0, atol=1e-4)
    expected = np.sqrt(np.diag(np.linalg.inv(design.T @ (rate[:, None] * design))))
    with pytest.warns(fj.FitWarning, match="conditional on `sd.clinic` at the edge"):
        errors = fit.to_frame().iloc[:, 1]
    np.testing.assert_allclose(errors[:2], expected, rtol=1e-4)
    assert np.isnan(errors.iloc[2])


def test_nan_in_the_data_of_a_group_names_the_group():
    spoiled = PATIENTS.copy()
    spoiled[4, 1] = np.nan
    fit = clinic_fit(spoiled)
    assert fit.status is Status.BAD_START
    assert "observation 4, where the mode of the latent effects was not found" in fit.diagnosis()


def test_a_group_of_weight_zero_counts_as_one_less_whatever_its_data():
    spoiled = PATIENTS.copy()
    spoiled[4, 1] = np.nan
    weights = np.array([1.0, 1.0, 2.0, 1.0, 0.0, 1.0])
    fit = clinic_fit(spoiled, weights=weights)
    again = fj.fit(CLINICS, CLINIC_START, PATIENTS[[0, 1, 2, 2, 3, 5]], given=WEEK)
    assert fit.status is again.status is Status.CONVERGED
    np.testing.assert_allclose(numbers_of(fit), numbers_of(again), rtol=1e-9)
    masked = np.ma.array(PATIENTS, mask=np.broadcast_to(np.arange(6)[:, None] == 4, PATIENTS.shape))
    one_less = fj.fit(CLINICS, CLINIC_START, PATIENTS[[0, 1, 2, 3, 5]], given=WEEK[:5])
    np.testing.assert_allclose(numbers_of(clinic_fit(masked)), numbers_of(one_less), rtol=1e-9)


def test_a_fixed_standard_deviation_stays_and_its_other_parameters_are_estimated_given_it():
    model = fj.mixed(fj.families.poisson, clinic_predictor, {"clinic": 0.0}, constraints={"sd": {"clinic": fj.fixed}})
    free = clinic_fit()
    fit = clinic_fit(start=free.params, model=model)
    assert fit.names == ("mean", "slope")
    np.testing.assert_allclose(fit.params["slope"], free.params["slope"], rtol=1e-7)
    assert fit.params["sd"] == free.params["sd"]


def test_a_constraint_of_one_standard_deviation_leaves_the_others_positive():
    model = fj.mixed(
        fj.families.normal, line, {"intercept": 0.0, "slope": 0.0}, constraints={"sd": {"slope": fj.fixed}}
    )
    assert model.constraints == {"sd": {"intercept": fj.positive, "slope": fj.fixed}}


def test_models_are_copied_pickled_and_made_anew_and_compile_nothing():
    groups = np.stack([ONLY["one mode"]] * 4)

    def anew():
        return fj.marginal(lambda params, b, y: -0.5 * b**2 - (params + b - y) ** 2, 0.0)

    def fit_all():
        models = copy.deepcopy(ODD), pickle.loads(pickle.dumps(ODD))
        assert {float(fj.fit(model, 0.2, groups).params) for model in models} == {expected}
        np.testing.assert_allclose([fj.fit(anew(), 0.2, np.arange(3.0)).params for _ in range(2)], 1.0, rtol=1e-8)
        for model in copy.deepcopy(CLINICS), pickle.loads(pickle.dumps(CLINICS)):
            np.testing.assert_array_equal(numbers_of(clinic_fit(model=model)), numbers_of(clinic_fit()))

    expected = float(fj.fit(ODD, 0.2, groups).params)
    fit_all()
    with compiled_programs() as compiled:
        fit_all()
    assert compiled == []


def test_mixed_models_made_anew_share_their_programs():
    def anew():
        return fj.mixed(fj.families.poisson, lambda params, effects, z: {"rate": effects["clinic"]}, {"clinic": 0.0})

    assert programs_of(anew()) is programs_of(anew())


def test_a_fit_is_saved_and_loaded_with_its_groups(tmp_path):
    fit = clinic_fit()
    fit.save(tmp_path / "fit")
    again = fj.load(tmp_path / "fit")
    np.testing.assert_array_equal(numbers_of(again), numbers_of(fit))
    assert again.status is fit.status
    np.testing.assert_array_equal(again.covariance(), fit.covariance())


def test_what_a_joint_density_closes_over_is_freed_with_its_model():
    def fit_and_forget():
        shift = np.zeros(3)

        def joint(params, b, y):
            return shift[0] - 0.5 * b**2 - (params + b - y) ** 2

        fj.fit(fj.marginal(joint, 0.0), 0.2, np.arange(3.0))
        return weakref.ref(shift), weakref.ref(joint)

    references = fit_and_forget()
    gc.collect()
    assert [reference() for reference in references] == [None, None]


MANY_FITS = {
    "fit_batch": lambda batch: fj.fit_batch(ODD, 0.2, batch),
    "vmap": lambda batch: jax.jit(jax.vmap(lambda y: fj.fit(ODD, 0.2, y)))(batch),
}


@pytest.mark.parametrize("way", some_of(MANY_FITS, "fit_batch"))
def test_many_fits_at_once_are_those_of_each_data_set(way):
    batch = np.stack([[ONLY["one mode"]] * 4, [2.0 * ONLY["one mode"]] * 4, [ONLY["one mode"]] * 3 + [ONLY["kink"]]])
    fits, alone = MANY_FITS[way](batch), [fj.fit(ODD, 0.2, y) for y in batch]
    assert [fit.status for fit in alone] == [Status.CONVERGED, Status.CONVERGED, Status.BAD_START]
    assert list(fits.status) == [fit.status for fit in alone]
    np.testing.assert_allclose(fits.params[:2], [fit.params for fit in alone[:2]], rtol=1e-8)
    np.testing.assert_allclose(np.ravel(fits.curvature[:2]), np.ravel([fit.curvature for fit in alone[:2]]), rtol=1e-8)


@pytest.mark.exhaustive
def test_the_derivative_of_a_curvature_through_a_fit_is_that_of_fits_of_displaced_data():
    groups, pull = np.stack([ONLY["one mode"]] * 4), ONLY["mode at infinity"]

    def curvature(u):
        return fj.fit(ODD, 0.2, groups + (1.0 + u) * pull[None]).curvature[0, 0]

    slope = jax.jit(jax.grad(curvature))(0.0)
    expected = gradient_by_differences(lambda points: [curvature(float(u[0])) for u in points], [0.0], 0.05)
    np.testing.assert_allclose(slope, expected[0], rtol=1e-7)


@pytest.mark.exhaustive
def test_a_model_of_ten_effects_is_the_multivariate_normal():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(20, 15, 10))
    y = 1.0 + np.sum(z * rng.normal(size=(20, 1, 10)) * 0.7, axis=2) + rng.normal(size=(20, 15)) * 0.5

    def predictor(params, effects, z):
        return {"loc": params["mean"] + jnp.sum(effects["u"] * z), "scale": params["sigma"]}

    model = fj.mixed(fj.families.normal, predictor, {"u": np.zeros(10)}, constraints={"sigma": fj.positive})
    fit = fj.fit(model, {"mean": 0.0, "sigma": 1.0, "sd": {"u": np.ones(10)}}, y, given=z)
    assert fit.status is Status.CONVERGED
    covariance = (z * fit.params["sd"]["u"] ** 2) @ z.swapaxes(1, 2) + fit.params["sigma"] ** 2 * np.eye(15)
    exact = [
        scipy.stats.multivariate_normal.logpdf(*each)
        for each in zip(y, np.full_like(y, fit.params["mean"]), covariance, strict=True)
    ]
    np.testing.assert_allclose(fit.log_likelihood, np.sum(exact), rtol=1e-12)


def test_float32_agrees_within_a_hundredth_of_a_standard_error():
    exact = clinic_fit()
    start = {"mean": np.float32(0.0), "slope": np.float32(0.0), "sd": {"clinic": np.float32(1.0)}}
    coarse = fj.fit(CLINICS, start, PATIENTS.astype(np.float32), given=WEEK.astype(np.float32))
    assert coarse.converged
    assert coarse.free.dtype == np.float32
    errors = exact.layout.flatten(exact.standard_errors())
    assert np.max(np.abs(numbers_of(coarse) - numbers_of(exact)) / errors) < 0.01
    np.testing.assert_allclose(exact.layout.flatten(coarse.standard_errors()), errors, rtol=0.01)


# Groups and misuse ------------------------------------------------------------------------------------------------------


def test_a_group_of_one_row_is_the_integral_over_it_and_rows_that_fill_up_do_not_count():
    model = fj.mixed(fj.families.poisson, clinic_predictor, {"clinic": 0.0}, nodes=25)
    visits = fj.by_group({"clinic": [1, 1, 2], "week": [0.0, 1.0, 2.0], "patients": [3.0, 4.0, 6.0]}, "clinic")
    params = {"mean": 0.4, "slope": 0.3, "sd": {"clinic": 0.8}}
    filled, empty = (
        jax.tree.map(lambda leaf: leaf[1], visits).with_weights(np.array(weights))
        for weights in ([1.0, 0.0], [0.0, 0.0])
    )
    density = jax.jit(lambda z: model.log_density(params, z["patients"], z["week"]))

    def integrand(b):
        return scipy.stats.poisson.pmf(6, np.exp(0.4 + 0.3 * 2.0 + 0.8 * b)) * scipy.stats.norm.pdf(b)

    np.testing.assert_allclose(density(filled), np.log(scipy.integrate.quad(integrand, -12, 12)[0]), rtol=1e-8)
    np.testing.assert_allclose(density(empty), 0.0, atol=1e-13)


def test_groups_are_in_the_order_of_their_labels_and_columns_are_taken_together():
    visits = fj.by_group(
        {"clinic": ["b", "a", "b"], "ward": [1, 1, 1], "x": np.arange(3.0), "y": np.arange(3)}, ["clinic", "ward"]
    )
    assert visits.labels.tolist() == ["a, 1", "b, 1"]
    assert visits["x"].rows.tolist() == [[1.0, 1.0], [0.0, 2.0]]
    assert visits[["x", "y"]].weights.tolist() == [[1.0, 0.0], [1.0, 1.0]]
    assert sorted(visits.rows) == ["x", "y"]
    assert visits.is_filled
    again = pickle.loads(pickle.dumps(visits))
    assert again.labels.tolist() == visits.labels.tolist()
    assert not fj.by_group(np.arange(4.0), np.array([1, 2, 2, 1])).is_filled


def test_a_table_is_grouped_by_its_columns():
    table = pandas.DataFrame({"clinic": ["a", "b", "a"], "week": [0, 1, 2]})
    visits = fj.by_group(table, "clinic")
    assert visits["week"].rows.tolist() == [[0, 2], [1, 1]]
    with pytest.raises(ValueError, match="week"):
        fj.by_group(table.assign(week=[0.0, np.nan, 2.0]), "clinic")


VISITS = fj.by_group({"clinic": [1, 1, 2], "patients": [3.0, 4.0, 6.0]}, "clinic")["patients"]


def rows_joint(params, b, y):
    return jnp.sum(poisson.logpmf(y.rows, jnp.exp(params["mean"] + b))) + norm.logpdf(b)


def many_effects_joint(params, b, y):
    return rows_joint(params, jnp.sum(b), y) - jnp.sum(b**2)


def constant(params, b, y):
    return -(b**2)


def mixed_with(predictor=clinic_predictor, start=CLINIC_START, given=WEEK, data=PATIENTS, **settings):
    model = fj.mixed(fj.families.poisson, predictor, {"clinic": 0.0}, **settings)
    return fj.fit(model, start, data, given=given)


def marginal_with(joint, effects=0.0, data=PATIENTS, **settings):
    return fj.fit(fj.marginal(joint, effects, **settings), {"mean": 0.0}, data)


MISUSES = {
    "filled rows that count": (
        lambda: marginal_with(rows_joint, data=VISITS),
        "does not use the weights of the groups",
    ),
    "and in a compiled joint": (lambda: marginal_with(jax.jit(rows_joint), data=VISITS), "y.total"),
    "and with many effects": (
        lambda: marginal_with(many_effects_joint, np.zeros(9), data=VISITS),
        "weights of the groups",
    ),
    "a vector": (lambda: marginal_with(lambda p, b, y: b + y), r"scalar for ONE group.*returned shape \(3,\)"),
    "no number": (lambda: marginal_with(lambda p, b, y: None), "joint must return the log-density.*returned NoneType"),
    "another arity": (lambda: marginal_with(lambda p, y: 0.0), r"called as joint\(params, effects, y\)"),
    "no effects": (lambda: fj.marginal(constant, {}), r"effects=\{\} holds no number"),
    "an empty effect": (lambda: fj.marginal(constant, np.zeros(0)), "holds no number"),
    "a name for effects": (lambda: fj.marginal(constant, "clinic"), "expected numbers that name the effects"),
    "a truth value": (lambda: fj.marginal(constant, {"a": True}), "expected numbers that name the effects"),
    "NaN": (lambda: fj.marginal(constant, np.nan), "not finite"),
    "traced effects": (lambda: jax.jit(lambda b: fj.marginal(constant, b).integral.start)(0.0), "effects is traced"),
    "too many dimensions": (lambda: fj.marginal(constant, np.zeros(4), nodes=3), r"needs 3\^4 points"),
    "no nodes": (lambda: fj.marginal(constant, 0.0, nodes=0), "nodes=0 must be a whole number"),
    "too many nodes": (lambda: fj.marginal(constant, 0.0, nodes=101), "at most 100"),
    "no standard deviation": (lambda: mixed_with(start={"mean": 0.0, "slope": 0.0}), "standard deviations.*under 'sd'"),
    "no covariance": (lambda: mixed_with(correlated=True), "covariance matrix.*under 'covariance'"),
    "another effect's": (
        lambda: mixed_with(start=CLINIC_START | {"sd": {"herd": 1.0}}),
        r"shape .*herd.*expected .*clinic",
    ),
    "another shape": (lambda: mixed_with(start=CLINIC_START | {"sd": {"clinic": np.ones(2)}}), r"shape .*\(2,\)"),
    "a covariance of another size": (
        lambda: mixed_with(start=CLINIC_START | {"covariance": np.eye(2)}, correlated=True),
        r"shape \(2, 2\); expected \(1, 1\)",
    ),
    "no dictionary": (lambda: mixed_with(lambda p, b, z: b["clinic"]), "must return a dictionary of the family's"),
    "another parameter": (
        lambda: mixed_with(lambda p, b, z: {"mean": 1.0}),
        "needs the parameter 'rate'.*returned mean",
    ),
    "covariates not given": (lambda: mixed_with(given=None), r"called as predictor\(params, effects\)"),
    "groups of different sizes": (lambda: mixed_with(given=WEEK[:, :2]), r"data of shape \(3,\) and given of \(2,\)"),
    "rows without groups": (lambda: mixed_with(data=PATIENTS[:, 0], given=WEEK[:, 0]), "by_group makes them of a long"),
    "data grouped alone": (lambda: mixed_with(data=VISITS, given=WEEK[:2, :2]), "Take both from by_group"),
    "a number for a family": (lambda: fj.mixed(3, clinic_predictor, 0.0), "family is int"),
    "a word for a truth value": (lambda: mixed_with(correlated="yes"), "correlated='yes' must be True or False"),
    "one constraint for all": (lambda: mixed_with(constraints=fj.positive), "expected a dictionary"),
    "draws without covariates": (
        lambda: CLINICS.sample(jax.random.key(0), CLINIC_START),
        "which tell how many rows a group has",
    ),
    "no such column": (
        lambda: fj.by_group({"y": np.ones(2)}, "clinic"),
        "'clinic' is no column of the table, which has y",
    ),
    "labels of another length": (lambda: fj.by_group(np.ones(3), np.ones(2)), "by has 2 labels"),
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_misuse_raises_and_says_what_to_do(misuse):
    call, message = MISUSES[misuse]
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_a_search_begins_where_it_is_told_and_where_that_is_no_number_at_the_effects():
    def joint(params, b, y):
        return jnp.logaddexp(-0.5 * (b - y) ** 2, -0.5 * (b + y) ** 2 + params["tilt"])

    integral = fj.marginal(joint, 1.0).integral
    params = {"tilt": 0.0}
    modes = jax.jit(jax.vmap(lambda begin: integral.mode(params, 3.0, begin=begin)))(
        jnp.array([[2.5], [-2.0], [jnp.nan]])
    )
    assert np.all(modes.certified)
    np.testing.assert_allclose(modes.effects[:, 0], [3.0, -3.0, 3.0], rtol=1e-6)
