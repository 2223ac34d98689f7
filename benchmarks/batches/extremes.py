"""Annual maxima: GEV, n = 50, float64, by the density a user would write and by the family, with covariances.

The peers of JAX start where we do, work on (loc, log scale, shape) and stop on the gradient, at the loosest tolerance that
makes them as accurate as we are; they get every core and the best of several chunk sizes. None of them gives a covariance.
"""

import functools

import common
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

import fisher_jax as fj

NAMES = ("loc", "scale", "shape")
TRUTH, OBSERVATIONS = {"loc": 10.0, "scale": 2.0, "shape": 0.1}, 50
TOLERANCES = (3e-2, 1e-2, 1e-3, 1e-4)  # of the norm of the total log-likelihood's gradient
CHUNKS = (16, 64, 256)
MOST_STEPS = 200


def log_density(params, y):
    loc, scale, shape = (params[name] for name in NAMES)
    inside = 1.0 + shape * (y - loc) / scale
    possible = inside > 0
    log_t = -jnp.log(jnp.where(possible, inside, 1.0)) / shape
    return jnp.where(possible, -jnp.log(scale) + (shape + 1.0) * log_t - jnp.exp(log_t), -jnp.inf)


BY_HAND = fj.Model(log_density, constraints={"scale": fj.positive})


def maxima(size, seed=2):
    uniform = np.random.default_rng(seed).uniform(size=(size, OBSERVATIONS))
    return TRUTH["loc"] + TRUTH["scale"] * ((-np.log(uniform)) ** -TRUTH["shape"] - 1.0) / TRUTH["shape"]


def starts(y):
    """Gumbel's moments, and the shape that hydrologists expect."""
    scale = np.std(y, axis=1) * np.sqrt(6.0) / np.pi
    return {"loc": np.mean(y, axis=1) - np.euler_gamma * scale, "scale": scale, "shape": np.full(len(y), 0.1)}


def columns(params):
    return np.stack([np.asarray(params[name]) for name in NAMES], axis=1)


def fit(model, y, start=None, **options):
    return fj.fit_batch(model, starts(y) if start is None else start, y, params_axis=0, **options)


def truth_of(y):
    same = {name: np.full(len(y), value) for name, value in TRUTH.items()}
    return common.reference(lambda start: fit(fj.families.gev, y, start), (None, same), columns)


def with_covariances(model, y):
    """Estimates, with the covariance matrices made too."""
    fits = fit(model, y)
    common.quietly(fits.covariance)
    return columns(fits.params)


def loss(u, y):
    params = {"loc": u[0], "scale": jnp.exp(u[1]), "shape": u[2]}
    return -jnp.mean(jax.vmap(log_density, (None, 0))(params, y))


def optax_lbfgs(tolerance, u, y):
    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(lambda u: loss(u, y))

    def step(carry):
        u, state = carry
        value, grad = value_and_grad(u, state=state)
        updates, state = solver.update(
            grad, state, u, value=value, grad=grad, value_fn=lambda u: loss(u, y)
        )  # fmt: skip
        return optax.apply_updates(u, updates), state

    def goes_on(carry):
        state = carry[1]
        count, grad = optax.tree.get(state, "count"), optax.tree.get(state, "grad")
        return (count == 0) | (count < MOST_STEPS) & (jnp.linalg.norm(grad) * len(y) >= tolerance)

    return jax.lax.while_loop(goes_on, step, (u, solver.init(u)))[0]


def jaxopt_solver(name, jaxopt, tolerance, u, y):
    solver = getattr(jaxopt, name)(loss, maxiter=MOST_STEPS, tol=tolerance / len(y))
    return solver.run(u, y).params


def mapped(solve, y, chunk):
    """A peer in lock-step over chunks, the cores each with half of them."""
    mesh = Mesh(np.array(jax.local_devices()), ("fits",))
    one = PartitionSpec("fits")
    body = functools.partial(jax.lax.map, lambda row: jax.vmap(solve)(*row))
    run = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=(one,), out_specs=one, check_vma=False))

    def call(size):
        first = y[:size]
        start = starts(first)
        u = np.stack([start["loc"], np.log(start["scale"]), start["shape"]], axis=1)
        step = chunk * mesh.size
        rows = -(-size // step) * step
        cut = [leaf[np.minimum(np.arange(rows), size - 1)].reshape(-1, chunk, leaf.shape[1]) for leaf in (u, first)]
        found = np.asarray(run(tuple(cut))).reshape(rows, -1)[:size]
        return np.stack([found[:, 0], np.exp(found[:, 1]), found[:, 2]], axis=1)

    return call


def best_chunk(solve, y, size):
    """The chunk size with the best rate on some, each compiled first."""

    def cost(chunk):
        call = mapped(solve, y, chunk)
        call(size)
        return common.timed(call, size)[0]

    return min((chunk for chunk in CHUNKS if chunk <= size), key=cost)


def in_lock_step(name, solve, y, truth, goal, target):
    some = min(len(y), 2048)
    chunk = best_chunk(functools.partial(solve, TOLERANCES[1]), y, some)

    def make(tolerance):
        return mapped(functools.partial(solve, tolerance), y, chunk)

    return common.tightened(f"{name}, {chunk} at a time", make, TOLERANCES, goal, truth, len(y), target)


def scipy_fit(y):
    from scipy.stats import genextreme

    def call(size):
        found = np.array([genextreme.fit(row) for row in y[:size]])
        return np.stack([found[:, 1], found[:, 2], -found[:, 0]], axis=1)

    return call


def main(arguments):
    y = maxima(10**6 if arguments.million else arguments.fits)
    cold = common.cost_by_size(lambda size: fit(BY_HAND, y[:size]), len(y), arguments.laps)
    y = y[: arguments.fits]
    truth, size = truth_of(y), len(y)
    ours = "fit_batch, covariances kept"
    contenders = [
        common.Contender(ours, lambda size: columns(fit(BY_HAND, y[:size]).params), size, cold=cold),
        common.Contender("… and every covariance matrix made", lambda size: with_covariances(BY_HAND, y[:size]), size),
        common.Contender("fit_batch, families.gev", lambda size: columns(fit(fj.families.gev, y[:size]).params), size),
    ]
    goal = common.share(contenders[0].call(min(size, common.SOME)), truth)
    contenders.append(in_lock_step("optax.lbfgs", optax_lbfgs, y, truth, goal, 8.0))
    jaxopt = common.optional("jaxopt")
    for name in ("BFGS", "LBFGS") if jaxopt else ():
        solve = functools.partial(jaxopt_solver, name, jaxopt)
        contenders.append(in_lock_step(f"jaxopt.{name}", solve, y, truth, goal, None))
    contenders.append(common.Contender("scipy.stats.genextreme.fit", scipy_fit(y), min(size, 300), 200.0))
    common.table("GEV, n = 50", common.compare(contenders, truth, arguments.laps), ours)
