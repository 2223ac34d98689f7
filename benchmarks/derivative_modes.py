"""Where the crossing lies between a forward pass for each entry of the Hessian and one for each row over reverse mode.

Value, gradient and Hessian of the same log-likelihood by both, in one run, compiled and run apart. The settings that this
decides are `FORWARD_UP_TO` and `CHUNK_ENTRIES` in `fisher_jax/models/likelihood.py`.
"""

import argparse
import time

import jax

jax.config.update("jax_enable_x64", True)

import harness
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
    compiling = time.perf_counter() - start
    return compiling, harness.medians(harness.take_turns({"run": lambda: run(jnp.asarray(point), rows)}, 15))["run"]


def modes(sizes):
    table = []
    for n in sizes:
        for name, density, point, rows in cases(n):
            (compiling, entry), (compiling_rows, row) = (times(density, point, rows, n, up_to) for up_to in (99, 0))
            numbers = (1e9 * entry / n, 1e9 * row / n, entry / row, compiling, compiling_rows)
            table.append([name, str(len(point)), str(n), *(f"{number:.2f}" for number in numbers)])
    header = ["p", "n", "by entry, ns/row", "by row, ns/row", "ratio", "compiling, s", "by row"]
    harness.table("value, gradient and Hessian", header, table)


def chunks(n):
    sizes = (15, 17, 19, 21, 40)
    table = []
    for name, density, point, rows in cases(n):
        if name in ("gamma", "gev") or (name == "logistic" and len(point) in (3, 8)):
            laps = [times(density, point, rows, n, 3, 2**k)[1] for k in sizes]
            table.append([name, str(len(point)), str(n), *(f"{1e3 * lap:.1f}" for lap in laps)])
    header = ["p", "n", *("all" if k == 40 else f"2^{k}" for k in sizes)]
    harness.table("ms by rows × parameters at once", header, table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[250, 8000])
    parser.add_argument("--chunks", action="store_true", help="the sizes of chunks too, of 50 times as many rows")
    arguments = parser.parse_args()
    modes(arguments.rows)
    if arguments.chunks:
        chunks(50 * arguments.rows[-1])
