"""Annual maxima: GEV, n = 50, float64, by the density that a user would write, covariances kept.

The peers of JAX start where we do, work on (loc, log scale, shape) and stop on the gradient, at the loosest tolerance that
makes them as accurate as we are; once all fits at once, and once in the best of several chunks on a thread for each core.
None of them gives a covariance. The evaluation written by hand in C is what its time would allow with as many steps as ours.
"""

import ctypes
import functools
import subprocess
import tempfile
import time
from pathlib import Path

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax

import fisher_jax as fj

OURS = "fit_batch, a plain density"
TRUTH, OBSERVATIONS = {"loc": 10.0, "scale": 2.0, "shape": 0.1}, 50
TOLERANCES = (3e-2, 1e-2, 1e-3, 1e-4)  # of the norm of the total log-likelihood's gradient
CHUNKS = (16, 64, 256)
MOST_STEPS = 200


def log_density(params, y):
    loc, scale, shape = params["loc"], params["scale"], params["shape"]
    inside = 1.0 + shape * (y - loc) / scale
    possible = inside > 0
    log_t = -jnp.log(jnp.where(possible, inside, 1.0)) / shape
    return jnp.where(possible, -jnp.log(scale) + (shape + 1.0) * log_t - jnp.exp(log_t), -jnp.inf)


BY_HAND = fj.Model(log_density, constraints={"scale": fj.positive})


def maxima(shape, seed=2):
    uniform = np.random.default_rng(seed).uniform(size=shape)
    return TRUTH["loc"] + TRUTH["scale"] * ((-np.log(uniform)) ** -TRUTH["shape"] - 1.0) / TRUTH["shape"]


def starts(y):
    """Gumbel's moments, and the shape that hydrologists expect."""
    scale = np.std(y, axis=-1) * np.sqrt(6.0) / np.pi
    return {"loc": np.mean(y, axis=-1) - np.euler_gamma * scale, "scale": scale, "shape": np.full(y.shape[:-1], 0.1)}


def problems(size):
    y = maxima((size, OBSERVATIONS))
    truth = {name: np.full(size, value) for name, value in TRUTH.items()}
    log_likelihood = harness.total(log_density)
    return {
        row: harness.Problem(model, log_likelihood, starts(y), y, truth)
        for row, model in {OURS: BY_HAND, "fit_batch, families.gev": fj.families.gev}.items()
    }


def loss(u, y):
    params = {"loc": u[0], "scale": jnp.exp(u[1]), "shape": u[2]}
    return -jnp.mean(jax.vmap(log_density, (None, 0))(params, y))


def optax_lbfgs(tolerance, u, y):
    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(lambda u: loss(u, y))

    def step(carry):
        u, state = carry
        value, grad = value_and_grad(u, state=state)
        updates, state = solver.update(grad, state, u, value=value, grad=grad, value_fn=lambda u: loss(u, y))
        return optax.apply_updates(u, updates), state

    def goes_on(carry):
        count, grad = (optax.tree.get(carry[1], name) for name in ("count", "grad"))
        return (count == 0) | (count < MOST_STEPS) & (jnp.linalg.norm(grad) * len(y) >= tolerance)

    return jax.lax.while_loop(goes_on, step, (u, solver.init(u)))[0]


def jaxopt_bfgs(jaxopt, tolerance, u, y):
    return jaxopt.BFGS(loss, maxiter=MOST_STEPS, tol=tolerance / len(y)).run(u, y).params


def in_lock_step(solve, y, chunk):
    """A vmapped peer: all fits at once, or with a `chunk` so many at a time, each core with its part of them."""
    at_once = jax.jit(jax.vmap(solve))
    in_chunks = jax.jit(lambda *arrays: jax.lax.map(lambda rows: jax.vmap(solve)(*rows), arrays))

    def part(u, y):
        rows = np.minimum(np.arange(-(-len(y) // chunk) * chunk), len(y) - 1)  # the last one repeated, to whole chunks
        u_chunks, y_chunks = (array[rows].reshape(-1, chunk, array.shape[1]) for array in (u, y))
        return np.asarray(in_chunks(u_chunks, y_chunks)).reshape(-1, 3)[: len(y)]

    def call(size):
        start = starts(y[:size])
        u = np.stack([start["loc"], np.log(start["scale"]), start["shape"]], axis=1)
        u = np.asarray(at_once(u, y[:size])) if chunk is None else harness.in_threads(part, u, y[:size])
        return np.stack([u[:, 0], np.exp(u[:, 1]), u[:, 2]], axis=1)

    return call


def best_chunk(solve, y):
    def seconds(chunk):
        measure = harness.timed(in_lock_step(solve, y, chunk))
        measure(len(y))  # compiles
        return measure(len(y))[0]

    return min(CHUNKS, key=seconds)


def evaluation_in_c(problem, truth):
    """Seconds that the evaluations of all fits would take with the C code, at the estimates."""
    source = Path(__file__).with_name("gev_by_hand.c")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gev_by_hand.so"
        flags = ["-O3", "-march=native", "-ffast-math", "-fopenmp", "-shared", "-fPIC"]
        subprocess.run(["gcc", *flags, str(source), "-o", str(path), "-lm"], check=True)
        evaluate = ctypes.CDLL(str(path)).vgh
    steps = float(np.mean(problem.first(harness.SOME).fit().num_steps))
    u = np.where(np.isfinite(truth.estimates), truth.estimates, list(TRUTH.values()))
    u = np.stack([u[:, 0], np.log(u[:, 1]), u[:, 2]], axis=1)
    value, gradient, hessian = np.empty(len(u)), np.empty((len(u), 3)), np.empty((len(u), 3, 3))

    def measure(size):
        y = np.ascontiguousarray(problem.data[:size])
        arrays = (u[:size].copy(), y, value, gradient, hessian)
        pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in arrays]
        start = time.perf_counter()
        evaluate(*pointers, ctypes.c_long(size), ctypes.c_long(y.shape[1]))
        return (time.perf_counter() - start) * steps, None

    return harness.Contender(f"C by hand, {steps:.1f} evaluations a fit", measure, len(problem.data), truth)


def peers(problems, truths, goal):
    from scipy.stats import genextreme

    problem, truth = problems[OURS], truths[OURS]
    y, size = problem.data, len(problem.data)
    jaxopt = harness.optional("jaxopt")
    solvers = {"optax.lbfgs": optax_lbfgs} | ({"jaxopt.BFGS": functools.partial(jaxopt_bfgs, jaxopt)} if jaxopt else {})
    contenders = []
    for name, solver in solvers.items():
        best = best_chunk(functools.partial(solver, TOLERANCES[1]), y[: harness.SOME])
        for said, chunk in (("at once", None), (f"in chunks of {best}, a thread a core", best)):

            def make(tolerance, solver=solver, chunk=chunk):
                return in_lock_step(functools.partial(solver, tolerance), y, chunk)

            contenders.append(harness.tightened(f"{name} {said}", make, TOLERANCES, goal, truth, size))

    def by_scipy(y):
        negative_shape, loc, scale = genextreme.fit(y)
        return loc, scale, -negative_shape

    one_by_one = harness.timed(harness.one_by_one(by_scipy, y))
    contenders.append(harness.Contender("scipy.stats.genextreme.fit", one_by_one, min(size, 200), truth))
    return [*contenders, evaluation_in_c(problem, truth)]


QUESTIONS = {
    "extremes": harness.Question(
        "GEV, n = 50, float64, covariances kept",
        problems,
        [
            (OURS, "optax.lbfgs at once", 14.0),
            (OURS, "optax.lbfgs in chunks", 6.0),
            (OURS, "jaxopt.BFGS in chunks", 4.0),
            (OURS, "C by hand", 1 / 3),
        ],
        peers,
    )
}
