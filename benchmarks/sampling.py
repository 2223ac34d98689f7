"""10 000 gamma samples of 100: drawn, fitted, compared with the bound and the normal, and coverage; beside scipy in a loop.

``python benchmarks/sampling.py [--replicates N]``. Wall and CPU seconds, the first call (with compilation) and the best of
three warm ones. Set JAX_NUM_CPU_DEVICES=2 to fit on two cores. `scipy.stats.gamma.fit` knows the gamma's likelihood equations
(location held at zero), `scipy.optimize.minimize` is given what a model here is given, the log-density. Both only fit, and are
timed on fewer data sets and scaled.
"""

import argparse
import time

import harness
import jax

jax.config.update("jax_enable_x64", True)
import numpy as np

import fisher_jax as fj
from fisher_jax.simulation import experiment as simulated

TRUTH = {"shape": 2.0, "rate": 1.0}
N = 100


def lap(call):
    """Wall and CPU seconds, and the result."""
    begun = time.process_time()
    wall, result = harness.stopwatch(call)
    return wall, time.process_time() - begun, result


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicates", type=int, default=10_000)
    count = parser.parse_args().replicates
    model, key = fj.families.gamma, jax.random.key(0)
    settings = {"num_observations": N, "num_replicates": count}
    experiment = simulated.make_experiment(model, TRUTH, None, N)
    draws = list(simulated.draw_blocks(experiment, key, count))
    data = np.concatenate(draws)
    calls = {
        "drawing": lambda: list(simulated.draw_blocks(experiment, key, count)),
        "fitting": lambda: fj.fit_batch(model, TRUTH, data, covariances=()),
        "sampling_distribution, printed": lambda: str(fj.sampling_distribution(model, TRUTH, key, **settings)),
        "coverage, Wald, printed": lambda: str(fj.coverage(model, TRUTH, key, kinds="wald", **settings)),
        "coverage, Wald and profile": lambda: fj.coverage(model, TRUTH, key, **settings),
    }
    warm, rows = {}, []
    for name, call in calls.items():
        first = lap(call)
        warm[name] = min((lap(call) for _ in range(3)), key=lambda times: times[0])
        rows.append([name, *(f"{seconds:.2f}" for seconds in (first[0], *warm[name][:2]))])
    printed = [warm["sampling_distribution, printed"], warm["coverage, Wald, printed"]]
    both = (f"{sum(part[k] for part in printed):.2f}" for k in (0, 1))
    rows.append(["bound, normality and coverage", "-", *both])
    title = f"{count} data sets of {N}, {jax.local_device_count()} device(s)"
    harness.table(title, ["first, s", "warm, s", "CPU, s"], rows + rows_of_scipy(data[:200], count))
    print(*(part[2] for part in printed), sep="\n")


def rows_of_scipy(some, count):
    from scipy.optimize import minimize
    from scipy.stats import gamma

    def by_density(y):
        result = minimize(lambda u: -np.sum(gamma.logpdf(y, np.exp(u[0]), scale=np.exp(-u[1]))), [np.log(2.0), 0.0])
        return result.x, result.hess_inv

    rows = []
    for label, fit in {"stats.gamma.fit": lambda y: gamma.fit(y, floc=0), "optimize.minimize": by_density}.items():
        fit(some[0])
        seconds = lap(lambda fit=fit: [fit(y) for y in some])[:2]
        rows.append([f"scipy.{label} in a loop, scaled", "-", *(f"{count / len(some) * s:.2f}" for s in seconds)])
    return rows


if __name__ == "__main__":
    main()
