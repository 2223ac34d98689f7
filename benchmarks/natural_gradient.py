"""The natural gradient on a network, against Adam and gradient descent, each at its best setting by steps and by time.

A surface with noise, 2000 points, learnt by tanh layers of 48 and 48, float32, in minibatches of 500 inside one `lax.scan`. The
loss is minus the log-density by observation, in nats, less that of the noise alone; it is looked at on all rows after every
step, in a run of its own that is not timed. Then one product with each information against one gradient of the same rows:
inside a jitted function, called from Python as ``operator @ vector``, and as one of those of a solve.
"""

import functools
import itertools
import sys
import time

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax

import fisher_jax as fj
from fisher_jax.optimizers.natural import natural_gradient

ROWS, BATCH, NOISE = 2000, 500, 0.1
GOALS = (1.0, 0.5, 0.2)  # nats above the noise
RATES = {"adam": (0.003, 0.01, 0.03, 0.1), "gradient descent": (1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 3e-2)}
PRODUCTS = (5, 10, 20, 40, 80, 160)
STEPS = {"adam": 2500, "gradient descent": 6000, "natural gradient": 120}


def network(params, x):
    *hidden, last = (params[name] for name in sorted(params))
    for layer in hidden:
        x = jnp.tanh(x @ layer["weight"] + layer["bias"])
    return (x @ last["weight"] + last["bias"])[..., 0]


MODEL = fj.linked(fj.families.normal, lambda params, x: {"loc": network(params, x), "scale": jnp.float32(NOISE)})


def problem():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (ROWS, 2))
    y = np.sin(4 * x[:, 0] + 2 * np.sin(3 * x[:, 1])) * np.cos(3 * x[:, 1]) + NOISE * rng.normal(size=ROWS)
    params = {
        f"layer {k}": {
            "weight": jnp.asarray(rng.normal(size=(a, b)) / a**0.5, jnp.float32),
            "bias": jnp.zeros(b, jnp.float32),
        }
        for k, (a, b) in enumerate(itertools.pairwise((2, 48, 48, 1)))
    }
    return params, jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)


PARAMS, X, Y = problem()


def loss(params, x, y):
    return 0.5 * jnp.mean(((y - network(params, x)) / NOISE) ** 2)


def linked(params, x, y, key):
    return fj.information_operator(MODEL, params, given=x)


def sampled(params, x, y, key):
    return fj.information_operator(MODEL, params, fj.MonteCarlo(key, 2, "outer"), given=x)


def empirical(params, x, y, key):
    return fj.information_operator(MODEL, params, kind="empirical", data=y, given=x)


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def train(optimizer, information, count, watched):
    """As many steps; the loss on all rows after each, if it is watched."""

    def step(carry, k):
        params, state = carry
        rows = jax.random.randint(jax.random.fold_in(jax.random.key(1), k), (BATCH,), 0, ROWS)
        x, y = X[rows], Y[rows]
        value, gradient = jax.value_and_grad(loss)(params, x, y)
        extra = {}
        if information is not None:
            operator = information(params, x, y, jax.random.fold_in(jax.random.key(2), k))
            extra = {"information": operator, "value": value, "value_fn": lambda params: loss(params, x, y)}
        updates, state = optimizer.update(gradient, state, params, **extra)
        params = optax.apply_updates(params, updates)
        return (params, state), loss(params, X, Y) if watched else 0.0

    carry = (PARAMS, optimizer.init(PARAMS))
    if watched:
        return jax.lax.scan(step, carry, jnp.arange(watched))[1]
    return jax.lax.fori_loop(0, count, lambda k, carry: step(carry, k)[0], carry)[0]


def seconds(optimizer, information, count):
    """Processor time of so many steps, compiled before, the median of three runs."""
    calls = {"train": lambda: train(optimizer, information, count, 0)}
    return harness.medians(harness.take_turns(calls, 3, clock=time.process_time))["train"]


def runs(optimizers, information, steps, goal):
    """Of each setting that reaches the goal: the number of steps, the processor time, and its name."""
    for name, optimizer in optimizers.items():
        losses = watched(optimizer, information, steps)
        if np.any(losses <= goal):
            count = int(np.argmax(losses <= goal)) + 1
            yield count, seconds(optimizer, information, count), name


@functools.cache
def watched(optimizer, information, steps):
    return np.asarray(train(optimizer, information, 0, steps)) - 0.5


def compare(steps_divided_by=1):
    kinds = {"linked": linked, "sampled": sampled, "empirical": empirical}
    contenders = {
        "adam": ({f"rate {rate:g}": optax.adam(rate) for rate in RATES["adam"]}, None),
        "gradient descent": ({f"rate {rate:g}": optax.sgd(rate) for rate in RATES["gradient descent"]}, None),
    }
    for name, information in kinds.items():
        kind = "empirical" if name == "empirical" else "expected"
        settings = {"damping": 0.1, "adaptive": True}
        natural = {f"{m} products": natural_gradient(kind=kind, max_products=m, **settings) for m in PRODUCTS}
        contenders[f"natural gradient, {name}"] = (natural, information)
    rows = []
    for (name, (optimizers, information)), goal in itertools.product(contenders.items(), GOALS):
        reached = list(runs(optimizers, information, STEPS[name.split(",")[0]] // steps_divided_by, goal))
        cells = ["-"] * 6
        if reached:
            fewest, quickest = min(reached), min(reached, key=lambda run: run[1])
            cells = [cell for n, spent, setting in (fewest, quickest) for cell in (str(n), f"{spent:.3f}", setting)]
        rows.append([name, f"{goal:g}", *cells])
    header = ["nats", "fewest steps", "seconds", "setting", "least time, steps", "seconds", "setting"]
    harness.table("a network to within nats of the noise", header, rows)


def products(turns):
    """Products in gradients of as many log-densities, all jitted and side by side."""
    gradient = jax.jit(jax.grad(lambda params: loss(params, X, Y)))
    vector, key = gradient(PARAMS), jax.random.key(0)
    few, many = 1, 31
    runs = {"gradient": lambda: gradient(PARAMS)}
    for make in (linked, sampled, empirical):
        operator = make(PARAMS, X, Y, key)
        runs[make.__name__] = functools.partial(jax.jit(lambda operator, vector: operator @ vector), operator, vector)
        runs[f"{make.__name__} @"] = functools.partial(operator.product, vector)
        for count in (few, many):
            solve = functools.partial(operator.solve, vector, 1e-3, tolerance=0.0, max_steps=count)
            assert solve().num_steps == count
            runs[f"{make.__name__} {count}"] = solve
    # Five calls a lap: the clock of processor time is coarse.
    calls = {name: functools.partial(lambda run: [run() for _ in range(5)], run) for name, run in runs.items()}
    laps = harness.take_turns(calls, turns, clock=time.process_time)
    seconds = {name: spent / 5 for name, spent in harness.medians(laps).items()}
    rows = []
    for make, draws in ((linked, 1), (sampled, 2), (empirical, 1)):
        name, unit = make.__name__, draws * seconds["gradient"]
        inside = (seconds[f"{name} {many}"] - seconds[f"{name} {few}"]) / (many - few)
        rows.append([name, *(f"{s / unit:.2f}" for s in (seconds[name], seconds[f"{name} @"], inside))])
    title = f"a product in gradients of {ROWS} rows, {1e3 * seconds['gradient']:.2f} ms of processor time each"
    harness.table(title, ["jitted", "from Python", "one of those of a solve"], rows)


if __name__ == "__main__":
    is_quick = "--quick" in sys.argv
    compare(60 if is_quick else 1)
    products(2 if is_quick else 40)
