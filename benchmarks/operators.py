"""Products with an information matrix that is never formed, and the dense ones, each against what it has to be measured by.

The log-densities of a network, float32: one product by the operator against one gradient of the same total by `jax.grad`,
jitted, over the same pytree. A dense Hessian at p = 1000 against `jax.hessian`. The empirical Fisher of a logistic regression
against the one product of an n × p matrix with itself that it cannot do without. Ratios are medians over
turns in one process.
"""

import functools
import itertools
import pathlib
import statistics
import subprocess
import sys

import harness
import jax
import numpy as np

if "--double" in sys.argv:
    jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.scipy.stats import norm

import fisher_jax as fj
from fisher_jax.information.operator import information_operator

RNG = np.random.default_rng(0)


def compare(title, contenders, count):
    """A table of the median ratio of each to the first; returns the ratios."""
    seconds = harness.take_turns(contenders, count)
    reference, first = next(iter(seconds.items()))
    ratios = {
        name: statistics.median(a / b for a, b in zip(laps, first, strict=True)) for name, laps in seconds.items()
    }
    rows = [[name, f"{ratio:.2f}"] for name, ratio in ratios.items() if name != reference]
    harness.table(f"{title}; {reference} {1e3 * statistics.median(first):.1f} ms", [f"in {reference}s"], rows)
    return ratios


def logits(params, x):
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["weight"] + layer["bias"])
    return x @ params[-1]["weight"] + params[-1]["bias"]


def network(params, y, x):
    return jax.nn.log_softmax(logits(params, x))[y]


def products(sizes, n):
    """One product with each matrix; the rows are one chunk, as they are for the gradient."""
    params = [
        {"weight": jnp.asarray(RNG.normal(size=(a, b)) / np.sqrt(a), jnp.float32), "bias": jnp.zeros(b, jnp.float32)}
        for a, b in itertools.pairwise(sizes)
    ]
    x = jnp.asarray(RNG.normal(size=(n, sizes[0])), jnp.float32)
    y = jnp.asarray(RNG.integers(0, sizes[-1], n))
    categorical = fj.Model(
        lambda eta, y: jax.nn.log_softmax(eta["logits"])[y],
        information=lambda eta: (
            jnp.diag(jax.nn.softmax(eta["logits"]))
            - jnp.outer(jax.nn.softmax(eta["logits"]), jax.nn.softmax(eta["logits"]))
        ),
    )
    linked = fj.linked(categorical, lambda params, z: {"logits": logits(params, z)})
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(jax.vmap(network, (None, 0, 0))(params, y, x))))
    operators = {
        "empirical": information_operator(network, params, kind="empirical", data=y, given=x),
        "expected, linked": information_operator(linked, params, given=x),
        "observed": information_operator(network, params, kind="observed", data=y, given=x),
    }
    vector = gradient(params)
    contenders = {"gradient": functools.partial(gradient, params)} | {
        f"product, {name}": functools.partial(operator.product, vector) for name, operator in operators.items()
    }
    p = operators["empirical"].num_parameters
    what = f"network {'-'.join(map(str, sizes))}, p = {p}, n = {n}"
    compare(what, contenders, 30)
    diagonals = {"gradient": contenders["gradient"], "exact diagonal, empirical": operators["empirical"].diagonal}
    compare(what, diagonals, 3)


def dense_hessian():
    """A small network and a regression through a nonlinearity, all rows at once for `jax.hessian`."""
    n = 1000
    x, y = jnp.asarray(RNG.normal(size=(n, 30))), jnp.asarray(RNG.integers(0, 4, n))
    params = [
        {"weight": jnp.asarray(RNG.normal(size=(a, b)) / np.sqrt(a)), "bias": jnp.zeros(b)}
        for a, b in itertools.pairwise((30, 22, 12, 4))
    ]
    compare_hessians("small network", network, params, y, x)
    p = 1000
    x, y = jnp.asarray(RNG.normal(size=(n, p)) / np.sqrt(p)), jnp.asarray(RNG.normal(size=n))
    density = lambda beta, y, x: norm.logpdf(y, jnp.tanh(x @ beta), 1.0)  # noqa: E731
    compare_hessians("regression", density, jnp.asarray(RNG.normal(size=p)), y, x)


def compare_hessians(what, density, params, y, x):
    flat, restore = ravel_pytree(params)
    total = lambda flat: jnp.sum(jax.vmap(density, (None, 0, 0))(restore(flat), y, x))  # noqa: E731
    bare = jax.jit(jax.hessian(total))
    contenders = {"jax.hessian": lambda: bare(flat), "fj.hessian": lambda: fj.hessian(density, params, y, given=x)}
    ratios = compare(f"dense Hessian, {what}, p = {flat.shape[0]}, n = {len(x)}", contenders, 5)
    print(f"that is {1 / ratios['fj.hessian']:.1f} times faster")


def logistic(beta, y, x):
    eta = jnp.dot(x, beta)
    return y * eta - jnp.logaddexp(0.0, eta)


def outer_products():
    """Against the BLAS product of scores that are there already with a copy of themselves, by numpy.

    The copy, since numpy would see a matrix times its own transpose and compute half of it (syrk); that is the second row.
    """
    n, p = 400_000, 64
    x = jnp.asarray(RNG.normal(size=(n, p)))
    y = jnp.asarray((RNG.uniform(size=n) < 0.5).astype(float))
    beta = jnp.zeros(p)
    scores = np.asarray(x) * (np.asarray(y) - 0.5)[:, None]
    copy = scores.copy()
    contenders = {
        "gemm": lambda: scores.T @ copy,
        "numpy's syrk": lambda: scores.T @ scores,
        "fj.empirical_fisher": lambda: fj.empirical_fisher(logistic, beta, y, given=x).matrix,
    }
    compare(f"empirical Fisher, n = {n}, p = {p}, float64", contenders, 15)


def memory():
    """Growth of the process's peak over the run (Linux), and what the compiler says it takes, by the size of the scores."""
    n, p = 400_000, 64
    x = jnp.asarray(RNG.normal(size=(n, p)))
    y, beta = jnp.ones(n), jnp.zeros(p)
    compiled = jax.jit(lambda x, y: fj.empirical_fisher(logistic, beta, y, given=x).matrix).lower(x, y).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    jax.block_until_ready(fj.empirical_fisher(logistic, beta, y[:9000], given=x[:9000]).matrix)
    jax.block_until_ready((x, y))
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from the memory in use now
    before = harness.memory("VmHWM")
    jax.block_until_ready(fj.empirical_fisher(logistic, beta, y, given=x).matrix)
    growth = (harness.memory("VmHWM") - before) / x.nbytes
    row = ["growth of the peak", f"{growth:.3f}", f"{temporary / x.nbytes:.3f}"]
    title = f"memory of it, in n × p matrices of {x.nbytes / 1e6:.0f} MB"
    harness.table(title, ["compiling included", "temporaries as compiled"], [row])


def products_of_networks():
    for sizes in ((64, 256, 256, 10), (784, 120, 10), (64, 180, 180, 180, 180, 10)):
        products(sizes, 3000)


PARTS = {
    "products": products_of_networks,
    "dense_hessian": dense_hessian,
    "outer_products": outer_products,
    "memory": memory,
}


if __name__ == "__main__":
    if sys.argv[1:]:
        PARTS[sys.argv[1]]()
    else:
        for part in PARTS:
            double = [] if part == "products" else ["--double"]
            subprocess.run([sys.executable, __file__, part, *double], check=True)
