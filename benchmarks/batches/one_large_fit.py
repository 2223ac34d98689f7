"""One fit with 10⁶ rows: GEV, float64, a plain density; nanoseconds a row for value, gradient and Hessian.

A step of `fit` is the difference of two fits with different limits of steps, from the same start, divided by the difference of
the steps that they made: compilation, certificate and report fall out.
"""

import statistics

import extremes
import harness
import jax
import jax.numpy as jnp

import fisher_jax as fj

LIMITS = (2, 12)


def run(settings):
    rows = 20_000 if settings.quick else 1_000_000
    y = jnp.asarray(extremes.maxima((rows,)))
    # Far enough from the maximum that a fit makes all of its steps.
    start = {"loc": jnp.asarray(-40.0), "scale": jnp.asarray(60.0), "shape": jnp.asarray(0.01)}

    def fit(limit):
        result = harness.quietly(lambda: fj.fit(extremes.BY_HAND, start, y, max_steps=limit))
        return int(jax.block_until_ready(result.num_steps))

    def at_rows(u, y):
        params = {"loc": u[0], "scale": u[1], "shape": u[2]}
        return jnp.sum(jax.vmap(extremes.log_density, (None, 0))(params, y))

    plain = jax.jit(lambda u, y: (*jax.value_and_grad(at_rows)(u, y), jax.hessian(at_rows)(u, y)))
    u = jnp.array([10.0, 2.0, 0.1])
    few, many, by_jax, whole = [], [], [], []
    for lap in range(settings.laps + 1):
        steps = []
        for limit, seconds in zip(LIMITS, (few, many), strict=True):
            spent, made = harness.timed(fit)(limit)
            steps.append(made)
            seconds += [spent] * (lap > 0)  # the first lap compiles
        whole += [harness.timed(lambda: fit(None))()[0]] * (lap > 0)
        by_jax += [harness.timed(lambda: jax.block_until_ready(plain(u, y)))()[0]] * (lap > 0)
    step = (statistics.median(many) - statistics.median(few)) / max(steps[1] - steps[0], 1)
    last = statistics.median(whole)
    made = fit(None)
    seconds = {
        f"fisher_jax.fit, a step ({steps[0]} and {steps[1]} made)": (step, "15"),
        f"fisher_jax.fit, all of it divided by {made} steps": (last / made, ""),
        "jax.hessian of the vmapped sum, with value and gradient": (statistics.median(by_jax), ""),
    }
    table = [[name, f"{1e9 * spent / rows:.1f}", asked] for name, (spent, asked) in seconds.items()]
    harness.table(f"one GEV fit, {rows} rows", ["ns a row", "asked: below"], table)


QUESTIONS = {"one-large-fit": run}
