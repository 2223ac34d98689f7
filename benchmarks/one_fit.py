"""One gamma fit with standard errors: from process start to printed report, and again when warm, against other tools.

All tools fit the same 254 servings in the same run. scipy.stats reports no standard errors; statsmodels differentiates
numerically. The warm figure is the median over repeated calls of fit and standard errors, results waited for.
"""

import json
import statistics
import subprocess
import sys
import time

SERVINGS = {
    10: 1, 11.5: 1, 17: 1, 20: 8, 24: 2, 25: 7, 25.5: 2, 26: 1, 30: 6, 32: 1, 40: 18, 44: 1, 50: 49, 51: 11, 52.5: 1, 60: 6,
    64: 1, 65: 1, 70: 3, 75: 5, 79: 3, 80: 54, 90: 1, 100: 19, 105: 13, 115: 2, 117: 1, 120: 1, 125: 1, 130: 26, 150: 3,
    160: 1, 200: 3,
}  # fmt: skip
SERVINGS_IN_FULL = [weight for weight, count in SERVINGS.items() for _ in range(count)]


def fisher_jax():
    import jax

    jax.config.update("jax_enable_x64", True)
    import numpy as np
    from jax.scipy.stats import gamma

    import fisher_jax as fj

    y = np.array(SERVINGS_IN_FULL)
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
    y = np.array(SERVINGS_IN_FULL)

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
    import numpy as np
    from scipy.stats import gamma

    y = np.array(SERVINGS_IN_FULL)

    def again():
        return gamma.fit(y, floc=0)

    again()
    yield again
    yield [float(again()[0]), None]


TOOLS = {"fisher_jax": fisher_jax, "statsmodels": statsmodels, "scipy": scipy}


def measure(name):
    """In this process: time the warm call, and say what was found."""
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
    print(json.dumps({"ready": ready, "warm": statistics.median(times), "found": next(steps)}))


def main():
    """Each tool in processes of its own, in turn, so that a slow moment of the machine meets them all."""
    results = {name: [] for name in TOOLS}
    for _ in range(5):
        for name in TOOLS:
            start = time.time()
            run = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=True)
            found = json.loads(run.stdout)
            results[name].append((found["ready"] - start, found["warm"], found["found"]))
    print(f"{'one gamma fit, n = 254':<24}{'process start to report':>26}{'warm, with SEs':>18}   shape (SE)")
    for name, rows in results.items():
        cold, warm = (statistics.median(row[k] for row in rows) for k in (0, 1))
        shape, error = rows[0][2]
        said = f"{shape:.6f} ({error:.6f})" if error else f"{shape:.6f} (none)"
        print(f"{name:<24}{cold:>24.2f} s{1e3 * warm:>15.2f} ms   {said}")


if __name__ == "__main__":
    measure(sys.argv[1]) if len(sys.argv) > 1 else main()
