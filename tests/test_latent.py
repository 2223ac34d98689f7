"""Models with latent effects: values of R, exact derivatives, closed forms, true statuses, clear errors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data_sets import CBPP_ANIMALS, CBPP_CASES, CBPP_HERD, CBPP_PERIOD
from jax.scipy.special import gammaln
from jax.scipy.stats import norm
from jax.scipy.stats import t as student_t

import fisher_jax as fj
from fisher_jax import Status

# A published case: `cbpp` by lme4 and glmmTMB ---------------------------------------------------------------------------

HERDS = fj.by_group({"herd": CBPP_HERD, "cases": CBPP_CASES, "animals": CBPP_ANIMALS, "period": CBPP_PERIOD}, "herd")


def cbpp_predictor(params, effects, z):
    period = jnp.where(z["period"] == jnp.arange(1, 5), 1.0, 0.0).at[0].set(1.0)  # the first is the reference
    return {"logit": jnp.sum(period * params["beta"]) + effects["herd"], "trials": z["animals"]}


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


@pytest.mark.parametrize("nodes", CBPP_IN_R)
def test_cbpp_is_that_of_glmmtmb_by_laplace_and_of_lme4_by_quadrature(nodes):
    estimates, errors, log_likelihood = CBPP_IN_R[nodes]
    model = fj.mixed(fj.families.binomial, cbpp_predictor, {"herd": 0.0}, nodes=nodes)
    start = {"beta": np.zeros(4), "sd": {"herd": 1.0}}
    fit = fj.fit(model, start, HERDS["cases"], given=HERDS[["animals", "period"]])
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

    @jax.jit
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


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_derivatives_are_those_of_the_marginal_whose_mode_is_found_anew_at_each_point(name):
    joint, q, nodes, theta, y, z = DIFFERENTIATED[name]
    theta, density = np.array(theta), fj.marginal(joint, np.zeros(q), nodes=nodes).log_density
    anew = marginal_anew(joint, q, nodes)

    def at_parameters(points):
        return anew(points, *(np.tile(part, (len(points), 1)) for part in (y, z)))

    @jax.jit
    def derivatives(theta, y, z):
        given = density.with_mode(theta, y, z)  # as a fit gives it
        return (
            density(theta, y, z),
            jax.grad(density)(theta, y, z),
            jax.jacfwd(jax.grad(lambda theta: density(theta, given, z)))(theta),
        )

    value, gradient, hessian = derivatives(theta, y, z)
    np.testing.assert_allclose(value, at_parameters(theta[None])[0], rtol=1e-12)
    np.testing.assert_allclose(gradient, gradient_by_differences(at_parameters, theta, 0.05), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(hessian, hessian_by_differences(at_parameters, theta, 0.1), rtol=1e-6, atol=1e-6)


def test_every_mode_of_differentiation_gives_the_same_second_derivatives_by_parameters_data_and_covariates():
    joint, q, nodes, theta, y, z = DIFFERENTIATED["gamma, quadrature"]
    density, anew = fj.marginal(joint, np.zeros(q), nodes=nodes).log_density, marginal_anew(joint, q, nodes)
    sizes = np.cumsum([len(theta), len(y)])
    point = np.concatenate([theta, y, z])

    def at(point):
        return density(*jnp.split(point, sizes))

    by_modes = jax.jit(
        lambda x: (jax.jacfwd(jax.jacfwd(at))(x), jax.jacfwd(jax.grad(at))(x), jax.jacrev(jax.jacfwd(at))(x))
    )
    expected = hessian_by_differences(lambda points: anew(*np.split(points, sizes, axis=1)), point, 0.05)
    for hessian in by_modes(point):
        np.testing.assert_allclose(hessian, expected, rtol=1e-6, atol=1e-6)


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
        return integral.mode(params, y), jax.grad(integral.of_effects(params, y))(integral.mode(params, y).effects)

    mode, slope = search({"mean": mean, "sd": sd}, {"count": count, "poisson": is_poisson, "trials": trials})
    assert cases[~mode.certified].tolist() == []
    distance = np.abs(slope[:, 0]) / np.sqrt(mode.information[:, 0, 0])
    assert np.max(distance) < (
        1e-6 if dtype == np.float64 else 0.1
    )  # standard errors; what rounding leaves of the slope
