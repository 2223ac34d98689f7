"""One gamma fit with standard errors: from process start to printed report, and again when warm, against other tools.

All tools fit the same 254 servings in the same run. scipy.stats reports no standard errors; statsmodels differentiates
numerically. The warm figure is the median over repeated calls of fit and standard errors, results waited for.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import time

SERVINGS = pathlib.Path(__file__).parents[1] / "data" / "beef_servings.csv"


def servings():
    import numpy as np

    grams, counts = np.loadtxt(SERVINGS, delimiter=",", unpack=True)
    return np.repeat(grams, counts.astype(int))


def fisher_jax():
    import jax

    jax.config.update("jax_enable_x64", True)
    from jax.scipy.stats import gamma

    import fisher_jax as fj

    y = servings()
    model = fj.Model(
        lambda params, y: gamma.logpdf(y, params["shape"], scale=1 / params["rate"]),
        constraints={"shape": fj.positive, "rate": fj.positive},
    )
    start = {"shape": 1.0, "rate": 1.0}
    str(fj.fit(model, start, y).summary())

    def again():
        fit = fj.fit(model, start, y)
        return jax.block_until_ready((fit.params, fit.standard_errors()))

    yield again
    params, errors = again()
    yield [float(params["shape"]), float(errors["shape"])]


def statsmodels():
    import warnings

    import numpy as np
    from scipy.stats import gamma
    from statsmodels.base.model import GenericLikelihoodModel

    warnings.simplefilter("ignore")
    y = servings()

    class Gamma(GenericLikelihoodModel):
        def loglikeobs(self, params):
            return gamma.logpdf(self.endog, params[0], scale=1 / params[1])

    def again():
        # From (1, 1) its search ends far away, so it is given a start close by.
        return Gamma(y, exog=np.ones((len(y), 1)), extra_params_names=["rate"]).fit(
            start_params=[3.0, 0.04], method="bfgs", disp=False
        )

    str(again().summary())
    yield again
    result = again()
    yield [float(result.params[0]), float(result.bse[0])]


def scipy():
    from scipy.stats import gamma

    y = servings()

    def again():
        return gamma.fit(y, floc=0)

    again()
    yield again
    yield [float(again()[0]), None]


TOOLS = {"fisher_jax": fisher_jax, "statsmodels": statsmodels, "scipy": scipy}


def measure(name):
    """In this process: time the warm call, and print its median with the estimates."""
    steps = TOOLS[name]()
    again = next(steps)
    ready = time.time()
    for _ in range(5):
        again()
    times = []
    while len(times) < 10 or (sum(times) < 1.0 and len(times) < 300):
        start = time.perf_counter()
        again()
        times.append(time.perf_counter() - start)
    print(json.dumps({"ready": ready, "warm": statistics.median(times), "estimates": next(steps)}))


def main():
    """Each tool in processes of its own, in turn, so that a slow moment of the machine meets them all."""
    import harness

    results = {name: [] for name in TOOLS}
    for _ in range(5):
        for name in TOOLS:
            start = time.time()
            run = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=True)
            result = json.loads(run.stdout)
            results[name].append((result["ready"] - start, result["warm"], result["estimates"]))
    rows = []
    for name, laps in results.items():
        cold, warm = (statistics.median(lap[k] for lap in laps) for k in (0, 1))
        shape, error = laps[0][2]
        estimate = f"{shape:.6f} ({error:.6f})" if error else f"{shape:.6f} (none)"
        rows.append([name, f"{cold:.2f} s", f"{1e3 * warm:.2f} ms", estimate])
    harness.table("one gamma fit, n = 254", ["process start to report", "warm, with SEs", "shape (SE)"], rows)


if __name__ == "__main__":
    measure(sys.argv[1]) if len(sys.argv) > 1 else main()
