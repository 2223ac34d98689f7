"""Log-densities as people write them: `DENSITIES[name]` is a `Density`; `REFUSED` are those that cannot expand."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy import special as jsp
from jax.scipy.stats import norm


class Density(NamedTuple):
    log_density: Callable[[Any, Any, Any], Any]
    draw: Callable[[np.random.Generator], tuple[Any, Any, Any]]  # params, y, z of one observation
    reverse: bool = False  # custom_vjp has no forward mode of first order


def negative_binomial(p, y, z):
    eta, size = z @ p["beta"], jnp.exp(p["log_size"])
    total = jnp.log(size + jnp.exp(eta))
    log_chance = size * (p["log_size"] - total) + y * (eta - total)
    return jsp.gammaln(y + size) - jsp.gammaln(size) - jsp.gammaln(y + 1) + log_chance


def spots(p, y, z):
    rate = jnp.exp(p[1] - 0.5 * ((z[0] - p[3]) ** 2 + (z[1] - p[4]) ** 2) * jnp.exp(-2 * p[2])) + jnp.exp(p[0])
    return y * jnp.log(rate) - rate


def gev(p, y, z):
    shape = jnp.where(jnp.abs(p["shape"]) < 1e-6, 1e-6, p["shape"])
    t = 1 + shape * (y - p["loc"]) * jnp.exp(-p["log_scale"])
    log_t = jnp.log(jnp.where(t > 0, t, 1.0))
    return jnp.where(t > 0, -p["log_scale"] - (1 + 1 / shape) * log_t - jnp.exp(-log_t / shape), -jnp.inf)


def logistic(beta, y, z):
    return y * (z @ beta) - jnp.logaddexp(0.0, z @ beta)


def mixture(p, y, z):
    return jsp.logsumexp(jax.nn.log_softmax(p["weights"]) + norm.logpdf(y, p["means"], jnp.exp(p["log_scales"])))


def factored_normal(p, y, z):
    """Three dimensions, the factor by scatter."""
    low = jnp.zeros((3, 3), y.dtype).at[np.tril_indices(3)].set(p["factor"])
    low = jnp.where(jnp.eye(3, dtype=bool), jnp.exp(low), low)
    half = jax.scipy.linalg.solve_triangular(low, y - p["loc"], lower=True)
    return -0.5 * half @ half - jnp.sum(jnp.log(jnp.diagonal(low)))


def cholesky_normal(p, y, z):
    low = jnp.linalg.cholesky(p["covariance"])
    half = jax.scipy.linalg.solve_triangular(low, y, lower=True)
    return -0.5 * half @ half - jnp.sum(jnp.log(jnp.diagonal(low)))


def solved_normal(p, y, z):
    """LU with pivots."""
    low = jnp.zeros((3, 3)).at[np.diag_indices(3)].set(jnp.exp(p["d"])).at[np.tril_indices(3, -1)].set(p["o"])
    covariance = low @ low.T
    return -0.5 * y @ jnp.linalg.solve(covariance, y) - 0.5 * jnp.linalg.slogdet(covariance)[1]


def ordered_probit(p, y, z):
    cuts, eta = jnp.cumsum(jnp.concatenate([p["first"][None], jnp.exp(p["gaps"])])), z @ p["beta"]
    edges = jnp.concatenate([jnp.array([-jnp.inf]), cuts, jnp.array([jnp.inf])])
    above, below = jnp.where(y == 3, 40.0, edges[y + 1] - eta), jnp.where(y == 0, -40.0, edges[y] - eta)
    return jnp.log(jsp.ndtr(above) - jsp.ndtr(below))


def garch(p, y, z):
    omega, alpha, beta = jnp.exp(p["omega"]), jax.nn.sigmoid(p["alpha"]), jax.nn.sigmoid(p["beta"])

    def step(variance, e):
        return omega + alpha * e * e + beta * variance, -0.5 * (jnp.log(variance) + e * e / variance)

    return jnp.sum(lax.scan(step, omega, y - p["mean"])[1])


def loop(p, y, z):
    return -0.5 * (y - lax.fori_loop(0, 4, lambda i, a: a * 0.5 + p["a"][i] * z[i], 0.0)) ** 2


def switch(p, y, z):
    a = p["a"]
    branches = [lambda: -0.5 * (y - a[0]) ** 2, lambda: -jnp.abs(y - a[1]), lambda: a[2] * y - jnp.exp(a[2])]
    return lax.switch(z, branches)


def condition(p, y, z):
    return lax.cond(y > 0, lambda: -y * jnp.exp(p["a"][0]) + p["a"][0], lambda: p["a"][1] * y)


def groups(p, y, z):
    return -0.5 * (y - p["effect"][z]) ** 2 * jnp.exp(-2 * p["log_scale"]) - p["log_scale"]


def placed(p, y, z):
    return -0.5 * jnp.sum((y - jnp.zeros(3).at[z].set(p["a"][0]).at[1].add(p["a"][1])) ** 2)


@jax.custom_vjp
def cube(x):
    return x**3


cube.defvjp(lambda x: (x**3, x), lambda x, t: (3 * x * x * t,))


def with_its_own_rule(p, y, z):
    return -(cube(y - p["a"][0]) ** 2) + p["a"][1]


def gammas(p, y, z):
    a, b = jnp.exp(p["a"][0]), jnp.exp(p["a"][1])
    return jsp.xlogy(a, y) + jsp.xlog1py(b, -y) - jsp.betaln(a, b) + jsp.digamma(a) + jsp.polygamma(1, b)


def errors(p, y, z):
    a, b = jnp.exp(p["a"][0]), jnp.exp(p["a"][1])
    tails = jsp.log_ndtr(-a - 3 * b) + jsp.erfc(a) + jsp.ndtri(0.2 + 0.1 * y * jnp.tanh(a)) + jsp.erfinv(0.5 * y)
    return tails + jnp.log(jsp.i0e(a)) + jsp.entr(y * b) + jnp.sinc(a) + jnp.hypot(a, b) + a**b + jnp.arctan2(a, b)


def ordered(p, y, z):
    a, s = p["a"], jnp.sort(p["a"])
    sums = jnp.prod(a) + jnp.cumsum(a)[1] + lax.cumlogsumexp(a)[2] + jnp.median(a)
    return -jnp.abs(y - s[1]) * jnp.exp(s[2] - s[0]) + jnp.max(a) * jnp.argmin(a) + sums


def interpolated(p, y, z):
    return -0.5 * (y - jnp.interp(z, jnp.array([0.0, 1.0, 2.0, 3.0]), p["a"])) ** 2


def polynomial(p, y, z):
    a = p["a"]
    return (
        -(jnp.polyval(a, y) ** 2) - jnp.linalg.norm(a) - jnp.einsum("i,ij,j", a, np.eye(3), a) + jnp.vdot(a, a) ** 0.5
    )


def mapped(p, y, z):
    return -jnp.sum(jax.vmap(lambda a, b: (a - b) ** 2)(p["a"], z)) + y * p["a"][0]


def _vector(size, y=lambda rng: rng.normal(), z=lambda rng: 0.0):
    return lambda rng: ({"a": rng.normal(0, 0.5, size)}, y(rng), z(rng))


def _matrix(rng):
    m = rng.normal(size=(3, 3))
    return m @ m.T + np.eye(3)


def _unit(rng):
    return rng.uniform(0.1, 0.9)


DENSITIES = {
    "negative_binomial": Density(
        negative_binomial,
        lambda rng: (
            {"beta": np.array([rng.uniform(1, 4), *rng.normal(0, 0.5, 2)]), "log_size": rng.uniform(0, 2)},
            float(rng.poisson(20)),
            np.array([1.0, rng.integers(0, 2), rng.normal()]),
        ),
    ),
    "spots": Density(
        spots,
        lambda rng: (np.array([1.0, 3.0, 0.2, *rng.normal(0, 0.3, 2)]), float(rng.poisson(9)), rng.uniform(-3, 3, 2)),
    ),
    "gev": Density(
        gev,
        lambda rng: (
            {"loc": rng.normal(), "log_scale": rng.normal(0, 0.3), "shape": rng.normal(0, 0.2)},
            rng.gumbel(),
            0.0,
        ),
    ),
    "logistic": Density(logistic, lambda rng: (rng.normal(size=5), float(rng.integers(0, 2)), rng.normal(size=5))),
    "mixture": Density(
        mixture,
        lambda rng: (
            {"weights": rng.normal(size=2), "means": rng.normal(0, 3, 2), "log_scales": rng.normal(0, 0.3, 2)},
            rng.normal(0, 3),
            0.0,
        ),
    ),
    "factored_normal": Density(
        factored_normal,
        lambda rng: ({"factor": rng.normal(0, 0.5, 6), "loc": rng.normal(size=3)}, rng.normal(size=3), 0.0),
    ),
    "cholesky_normal": Density(cholesky_normal, lambda rng: ({"covariance": _matrix(rng)}, rng.normal(size=3), 0.0)),
    "solved_normal": Density(
        solved_normal,
        lambda rng: ({"d": rng.normal(0, 0.3, 3), "o": rng.normal(size=3)}, rng.normal(size=3), 0.0),
    ),
    "ordered_probit": Density(
        ordered_probit,
        lambda rng: (
            {"first": rng.normal(-1), "gaps": rng.normal(0, 0.3, 2), "beta": rng.normal(0, 0.5, 2)},
            int(rng.integers(0, 4)),
            rng.normal(size=2),
        ),
    ),
    "garch": Density(
        garch,
        lambda rng: (
            {k: rng.normal(m, 0.2) for k, m in {"omega": -1, "alpha": -2, "beta": 0, "mean": 0}.items()},
            rng.normal(size=5),
            0.0,
        ),
    ),
    "loop": Density(loop, _vector(4, z=lambda rng: rng.normal(size=4))),
    "switch": Density(switch, _vector(3, z=lambda rng: int(rng.integers(0, 3)))),
    "condition": Density(condition, _vector(2)),
    "groups": Density(
        groups,
        lambda rng: ({"effect": rng.normal(size=6), "log_scale": rng.normal()}, rng.normal(), int(rng.integers(0, 6))),
    ),
    "placed": Density(placed, _vector(2, lambda rng: rng.normal(size=3), lambda rng: int(rng.integers(0, 3)))),
    "with_its_own_rule": Density(with_its_own_rule, _vector(2), reverse=True),
    "gammas": Density(gammas, _vector(2, _unit)),
    "errors": Density(errors, _vector(2, _unit)),
    "ordered": Density(ordered, _vector(3)),
    "interpolated": Density(interpolated, _vector(4, z=lambda rng: rng.uniform(0, 3))),
    "polynomial": Density(polynomial, _vector(3)),
    "mapped": Density(mapped, _vector(3, z=lambda rng: rng.normal(size=3))),
}


def incomplete_beta(p, y, z):
    return jnp.log(jsp.betainc(2.0, 3.0, y * jax.nn.sigmoid(p["a"][0])))


def eigenvalues(p, y, z):
    return -jnp.sum(jnp.linalg.eigvalsh(jnp.outer(p["a"], p["a"]))) + y


def fourier(p, y, z):
    return jnp.abs(jnp.fft.rfft(p["a"])[0]) + y


def newton(p, y, z):
    target = p["a"][0] ** 2 + 1
    return lax.while_loop(lambda s: jnp.abs(s * s - target) > 1e-6, lambda s: 0.5 * (s + target / s), 1.0) + y


def orthogonal(p, y, z):
    return -jnp.sum(jnp.linalg.qr(jnp.outer(p["a"], p["a"]) + jnp.eye(4))[1]) + y


def long_scan(p, y, z):
    return lax.scan(lambda s, _: (jnp.sin(s), None), p["a"][0], None, length=65)[0] * y


def large_matrix(p, y, z):
    return jnp.sum(jnp.linalg.cholesky(jnp.eye(9) * jnp.exp(p["a"][0]))) * y


REFUSED = {
    incomplete_beta: "regularized_incomplete_beta",
    eigenvalues: "eigh",
    fourier: "fft",
    newton: "a while loop whose number of steps depends",
    orthogonal: "qr",
    long_scan: "a scan of 65 steps",
    large_matrix: "a matrix of more than 8 rows",
}
