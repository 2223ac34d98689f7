"""Where the crossing lies between a forward pass for each entry of the Hessian and one for each row over reverse mode.

Value, gradient and Hessian of the same log-likelihood by both, in one run, compiled and run apart. The settings that this
decides are `FORWARD_UP_TO` and `CHUNK_ENTRIES` in `fisher_jax/models/likelihood.py`.
"""

import statistics
import sys
import time

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jax.scipy.stats import gamma, norm

from fisher_jax.models import likelihood as likelihoods
from fisher_jax.models.likelihood import Likelihood

RNG = np.random.default_rng(0)


def gev(u, y):
    t = jnp.log(1 + u[2] * (y - u[0]) * jnp.exp(-u[1])) / u[2]
    return -u[1] - (1 + u[2]) * t - jnp.exp(-t)


def mixture(u, y):
    k = (u.shape[0] + 1) // 3
    weights = jax.nn.log_softmax(jnp.concatenate([u[: k - 1], jnp.zeros(1)]))
    return logsumexp(weights + norm.logpdf(y, u[k - 1 : 2 * k - 1], jnp.exp(u[2 * k - 1 :])))


def logistic(u, row):
    eta = row[0] @ u
    return row[1] * eta - jnp.logaddexp(0.0, eta)


def cases(n):
    """Name, log-density of one row, point, rows."""
    y = RNG.gamma(3.0, 1.0, n)
    yield "gamma", lambda u, y: gamma.logpdf(y, jnp.exp(u[0]), scale=jnp.exp(-u[1])), np.zeros(2), y
    yield "gev", gev, np.array([2.0, 0.3, 0.1]), y
    for k in (2, 3):
        yield "mixture", mixture, np.concatenate([np.zeros(k - 1), np.arange(1.0 * k), np.zeros(k)]), y
    for p in (1, 2, 3, 4, 5, 6, 8):
        rows = (RNG.normal(size=(n, p)) / np.sqrt(p), (RNG.uniform(size=n) < 0.5).astype(float))
        yield "logistic", logistic, np.zeros(p), rows


def times(density, point, rows, n, forward_up_to, chunk=2**40):
    """Seconds to compile, and median seconds to run."""
    likelihoods.FORWARD_UP_TO, likelihoods.CHUNK_ENTRIES = forward_up_to, chunk

    def evaluate(u, rows):
        terms = lambda u, rows: jax.vmap(density, (None, 0))(u, rows)  # noqa: E731
        return likelihoods.derivatives_at(Likelihood(terms, rows, None, n, True), u)

    start = time.perf_counter()
    run = jax.jit(evaluate).lower(jnp.asarray(point), rows).compile()
    compiling, laps = time.perf_counter() - start, []
    for _ in range(15):
        start = time.perf_counter()
        jax.block_until_ready(run(jnp.asarray(point), rows))
        laps.append(time.perf_counter() - start)
    return compiling, statistics.median(laps)


def modes():
    print(
        f"{'density':<10}{'p':>3}{'n':>7}{'by entry, ns/row':>18}{'by row, ns/row':>16}{'ratio':>8}{'compile, s':>14}"
    )
    for n in (250, 8000):
        for name, density, point, rows in cases(n):
            entry, row = times(density, point, rows, n, 99), times(density, point, rows, n, 0)
            print(
                f"{name:<10}{len(point):>3}{n:>7}{1e9 * entry[1] / n:>18.1f}{1e9 * row[1] / n:>16.1f}"
                f"{entry[1] / row[1]:>8.2f}{entry[0]:>8.2f}{row[0]:>6.2f}"
            )


def chunks():
    print(f"\n{'density':<10}{'p':>3}{'n':>9}  median ms with 2^k rows x parameters at once: k =")
    sizes = (15, 17, 19, 21, 40)
    print(" " * 24 + "".join(f"{'all' if k == 40 else k:>9}" for k in sizes))
    n = 400_000
    for name, density, point, rows in (
        case for case in cases(n) if case[0] in ("gamma", "gev") or len(case[2]) in (3, 8)
    ):
        if name != "mixture":
            laps = [times(density, point, rows, n, 3, 2**k)[1] for k in sizes]
            print(f"{name:<10}{len(point):>3}{n:>9}  " + "".join(f"{1e3 * lap:>9.1f}" for lap in laps))


if __name__ == "__main__":
    modes()
    if "--chunks" in sys.argv:
        chunks()
