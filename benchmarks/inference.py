"""Bootstrap and profile likelihoods against the same by a loop over scipy or statsmodels, in the same run.

2000 nonparametric bootstrap replicates of the gamma fit to 254 servings; profile intervals of all parameters of a Poisson
regression, n = 500, p = 15. The peers get good starts, analytic gradients where they take them, and a warm start at each
value of a profile. Cold is the first call, compilation included; warm the median of five more.
"""

import statistics
import sys
import warnings

import harness
import jax

jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp
import numpy as np
import statsmodels.api as sm
from jax.scipy.stats import gamma
from one_fit import servings
from scipy.optimize import brentq, minimize
from scipy.special import digamma, gammaln
from scipy.stats import gamma as scipy_gamma

import fisher_jax as fj

LEVEL_DROP = 1.920729410347062  # half the 95 % quantile of chi-squared with one degree of freedom


def compare(title, ours, peers, describe):
    """Our first and warm calls and one of each peer, and what `describe(result, ours)` writes of each."""
    cold, result = harness.stopwatch(ours)
    warm = statistics.median(harness.stopwatch(ours)[0] for _ in range(5))
    rows = [("fisher_jax, cold", cold, result), ("fisher_jax, warm", warm, result)]
    rows += [(name, *harness.stopwatch(peer)) for name, peer in peers.items()]
    cells = [
        [name, f"{seconds:.3f}", f"{seconds / warm:.0f}", describe(other, result)] for name, seconds, other in rows
    ]
    harness.table(title, ["seconds", "/ warm", ""], cells)


def bootstrap_of_gamma(count=2000):
    y = servings()
    model = fj.Model(
        lambda params, y: gamma.logpdf(y, params["shape"], scale=1 / params["rate"]), constraints=fj.positive
    )
    fit = fj.fit(model, {"shape": 1.0, "rate": 1.0}, y)

    def ours():
        return fj.bootstrap(fit, jax.random.key(1), count).standard_errors()["shape"]

    def loss(log_params, log_sum, total):
        shape, rate = np.exp(log_params)
        value = len(y) * (gammaln(shape) - shape * np.log(rate)) - (shape - 1) * log_sum + rate * total
        slopes = np.array([len(y) * (digamma(shape) - np.log(rate)) - log_sum, total - len(y) * shape / rate])
        return value, slopes * (shape, rate)

    start = np.log([float(fit.params["shape"]), float(fit.params["rate"])])
    rng = np.random.default_rng(1)
    samples = [rng.choice(y, len(y)) for _ in range(count)]

    def by_minimize():
        fits = [minimize(loss, start, (np.log(s).sum(), s.sum()), jac=True, method="BFGS").x for s in samples]
        return np.std(np.exp(fits)[:, 0], ddof=1)

    def by_gamma_fit():
        return np.std([scipy_gamma.fit(s, floc=0)[0] for s in samples], ddof=1)

    def by_density():
        def loss(log_params, s):
            return -np.sum(scipy_gamma.logpdf(s, np.exp(log_params[0]), scale=np.exp(-log_params[1])))

        return np.std([np.exp(minimize(loss, start, (s,), method="BFGS").x[0]) for s in samples], ddof=1)

    peers = {
        "scipy.optimize over a log-density, looped": by_density,
        "scipy.stats.gamma.fit, looped": by_gamma_fit,
        "scipy.optimize, sufficient statistics by hand": by_minimize,
    }
    compare(f"bootstrap, {count} replicates", ours, peers, lambda error, _: f"standard error of shape {error:.4f}")


def profiles_of_regression(n=500, p=15):
    rng = np.random.default_rng(2)
    x = np.column_stack([np.ones(n), rng.normal(size=(n, p - 1))])
    beta = 0.3 * rng.normal(size=p)
    y = rng.poisson(np.exp(x @ beta)).astype(float)

    def log_density(beta, y, x):
        eta = jnp.dot(x, beta)
        return y * eta - jnp.exp(eta) - jax.scipy.special.gammaln(y + 1)

    fit = fj.fit(log_density, np.zeros(p), y, given=x)

    def ours():
        return np.asarray(fit.confidence_intervals(level=0.95, method="profile"))

    def search(fall, center, width):
        """Both ends by Brent's method; the Wald interval's ends, moved out until they bracket."""
        ends = []
        for side in (-1, 1):
            far = 1.2
            while fall(center + side * far * width) < 0:
                far *= 1.5
            ends.append(brentq(fall, center, center + side * far * width, xtol=1e-9))
        return ends

    def by_statsmodels():
        whole = sm.Poisson(y, x).fit(disp=0)
        ends = []
        for j in range(p):
            rest, warm_start = np.delete(x, j, 1), [np.delete(whole.params, j)]

            def fall(c, rest=rest, warm_start=warm_start, j=j):
                restricted = sm.Poisson(y, rest, offset=c * x[:, j]).fit(start_params=warm_start[0], disp=0)
                warm_start[0] = restricted.params
                return whole.llf - restricted.llf - LEVEL_DROP

            ends.append(search(fall, whole.params[j], 1.96 * whole.bse[j]))
        return np.array(ends)

    def by_scipy():
        def loss(b, rest, offset):
            eta = rest @ b + offset
            mean = np.exp(eta)
            return np.sum(mean - y * eta), rest.T @ (mean - y)

        whole = minimize(loss, np.zeros(p), (x, 0.0), jac=True, method="BFGS")
        ends = []
        for j in range(p):
            rest, warm_start = np.delete(x, j, 1), [np.delete(whole.x, j)]

            def fall(c, rest=rest, warm_start=warm_start, j=j):
                restricted = minimize(loss, warm_start[0], (rest, c * x[:, j]), jac=True, method="BFGS")
                warm_start[0] = restricted.x
                return restricted.fun - whole.fun - LEVEL_DROP

            ends.append(search(fall, whole.x[j], 1.96 * np.sqrt(whole.hess_inv[j, j])))
        return np.array(ends)

    def describe(ends, exact):
        return f"first interval {ends[0, 0]:.6f} to {ends[0, 1]:.6f}, farthest {np.max(np.abs(ends - exact)):.0e}"

    peers = {"statsmodels Poisson, looped": by_statsmodels, "scipy.optimize, looped": by_scipy}
    compare(f"profile intervals, {p} parameters, both sides", ours, peers, describe)


def main():
    warnings.simplefilter("ignore")
    bootstrap_of_gamma(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
    profiles_of_regression(p=int(sys.argv[2]) if len(sys.argv) > 2 else 15)


if __name__ == "__main__":
    main()
