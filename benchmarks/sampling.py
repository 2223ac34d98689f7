"""10 000 gamma samples of 100: drawn, fitted, compared with the bound and the normal, and coverage; beside scipy in a loop.

``python benchmarks/sampling.py [--replicates N]``. Wall and CPU seconds, the first call (with compilation) and the best of
three warm ones. Set JAX_NUM_CPU_DEVICES=2 to fit on two cores. `scipy.stats.gamma.fit` knows the gamma's likelihood equations
(location held at zero), `scipy.optimize.minimize` is given what a model here is given, the log-density. Both only fit, and are
timed on fewer data sets and scaled.
"""

import argparse
import time

import jax

jax.config.update("jax_enable_x64", True)
import numpy as np

import fisher_jax as fj
from fisher_jax.simulation import experiment as simulated

TRUTH = {"shape": 2.0, "rate": 1.0}
N = 100


def timed(call):
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def report(label, call):
    first = timed(call)
    warm = min((timed(call) for _ in range(3)), key=lambda times: times[0])
    print(f"{label:<44}{first[0]:>8.2f}{warm[0]:>8.2f}{warm[1]:>8.2f}", flush=True)
    return warm


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicates", type=int, default=10_000)
    count = parser.parse_args().replicates
    model, key = fj.families.gamma, jax.random.key(0)
    settings = {"num_observations": N, "num_replicates": count}
    experiment = simulated.make_experiment(model, TRUTH, None, N)
    print(f"{count} data sets of {N}, {jax.local_device_count()} device(s)")
    print(f"{'seconds':<44}{'first':>8}{'warm':>8}{'CPU':>8}")
    draws = report("drawing", lambda: list(simulated.draw_blocks(experiment, key, count)))
    data = np.concatenate(draws[2])
    report("fitting", lambda: fj.fit_batch(model, TRUTH, data, covariances=()))
    whole = report(
        "sampling_distribution, printed", lambda: str(fj.sampling_distribution(model, TRUTH, key, **settings))
    )
    covered = report("coverage, Wald, printed", lambda: str(fj.coverage(model, TRUTH, key, kinds="wald", **settings)))
    report("coverage, Wald and profile", lambda: fj.coverage(model, TRUTH, key, **settings))
    print(f"{'bound, normality and coverage':<44}{'':>8}{whole[0] + covered[0]:>8.2f}{whole[1] + covered[1]:>8.2f}")
    by_scipy(data[:200], count)
    print(whole[2])
    print(covered[2])


def by_scipy(some, count):
    from scipy.optimize import minimize
    from scipy.stats import gamma

    def general(y):
        found = minimize(lambda u: -np.sum(gamma.logpdf(y, np.exp(u[0]), scale=np.exp(-u[1]))), [np.log(2.0), 0.0])
        return found.x, found.hess_inv

    for label, fit in {"stats.gamma.fit": lambda y: gamma.fit(y, floc=0), "optimize.minimize": general}.items():
        fit(some[0])
        wall, cpu, _ = timed(lambda fit=fit: [fit(y) for y in some])
        factor = count / len(some)
        print(f"{f'scipy.{label} in a loop, scaled':<44}{'':>8}{wall * factor:>8.2f}{cpu * factor:>8.2f}")


if __name__ == "__main__":
    main()
