"""Coverage of nominal 95 % intervals and size of nominal 5 % tests, by simulation.

``python benchmarks/calibration.py [--fits N] [--bootstraps M] [--tests K]``. Each fraction has its Monte Carlo standard error
beside it. Fits without an interval (at a boundary, say) count as not covering, and their number is printed. BCa intervals are of
999 replicates each, so of fewer data sets. The tests are of one parameter at its true value, and of the fit.
"""

import argparse
import dataclasses
import time
import warnings

import harness
import jax

jax.config.update("jax_enable_x64", True)
import numpy as np
import scipy.stats

import fisher_jax as fj

SIZES = (20, 50, 200)
TEST_SIZES = (25, 50, 100, 500)
REPLICATES = 999
COVARIANCES = ("observed", "sandwich")


def logistic(params, z):
    return {"logit": params["intercept"] + params["slope"] * z}


# The model, the truth, the parameter that is tested
MODELS = {
    "gamma": (fj.families.gamma, {"rate": 1.0, "shape": 2.0}, "shape"),
    "logistic": (fj.linked(fj.families.bernoulli, logistic), {"intercept": -0.3, "slope": 1.0}, "slope"),
    "GEV": (fj.families.gev, {"loc": 10.0, "scale": 2.0, "shape": 0.1}, "shape"),
    "negative binomial": (fj.families.negative_binomial, {"mean": 5.0, "size": 2.0}, "size"),
}


def design(name, n):
    return np.linspace(-1.5, 1.5, n) if name == "logistic" else None


def draw(name, n, size, seed):
    """Data sets (size, n) from the model at the truth, and covariates if there are any."""
    model, truth, _ = MODELS[name]
    given = design(name, n)
    keys = jax.random.split(jax.random.key(seed), (size, n))
    if given is None:
        return np.asarray(jax.vmap(jax.vmap(lambda key: model.sample(key, truth)))(keys)), given
    each = jax.vmap(lambda key, z: model.sample(key, truth, z))
    return np.asarray(jax.vmap(each, (0, None))(keys, given)), given


def percentage(hits):
    """`94.6 ± 0.3`, in per cent."""
    p = np.mean(hits)
    return f"{100 * p:5.1f} ± {100 * np.sqrt(max(p * (1 - p), 1e-9) / len(hits)):.1f}"


def coverage(arguments):
    for name, (model, truth, _) in MODELS.items():
        for n in SIZES:  # one by one, since the design of the logistic regression is another for each
            result = fj.coverage(
                model,
                truth,
                jax.random.key(1),
                num_observations=n,
                num_replicates=arguments.fits,
                kinds=("wald", "profile", "bca"),
                given=design(name, n),
                num_bootstraps=REPLICATES,
                num_bootstrapped=arguments.bootstraps,
            )
            print(f"\n{name}. {result}", flush=True)


def sizes(arguments):
    rows = []
    for name, (model, truth, tested) in MODELS.items():
        null = dataclasses.replace(model, constraints={**(model.constraints or {}), tested: fj.fixed})
        for n in TEST_SIZES:
            data, given = draw(name, n, arguments.fits, seed=2)
            fits, nulls = (fj.fit_batch(m, truth, data, given=given, covariances=COVARIANCES) for m in (model, null))
            both = fits.converged & nulls.converged
            tests = (
                fj.wald_test(fits, {tested: truth[tested]}),
                fj.likelihood_ratio_test(fits, nulls),
                fj.score_test(nulls, tested),
            )
            fractions = [percentage(test.p_value[both] < 0.05) for test in tests]
            rows.append([name, str(n), tested, *fractions, f"{100 * np.mean(both):.1f} %"])
    title = "size of nominal 5 % tests, % of the data sets where both fits converged"
    harness.table(title, ["n", "parameter", "Wald", "ratio", "score", "both converged"], rows)


def information_matrix(arguments):
    rows = []
    for name, (model, truth, _) in MODELS.items():
        data, given = draw(name, 50, arguments.bootstraps, seed=3)
        fits = fj.fit_batch(model, truth, data, given=given, covariances=COVARIANCES)
        converged = np.flatnonzero(fits.converged).tolist()
        tests = [fj.information_matrix_test(fits[k], jax.random.key(k), REPLICATES // 5) for k in converged]
        rows.append([name, percentage([float(test.p_value) < 0.05 for test in tests]), str(len(tests))])
    title = f"size of the information-matrix test at a nominal 5 %, n = 50, {REPLICATES // 5} replicates each"
    harness.table(title, ["%", "data sets"], rows)


def goodness_of_fit(arguments):
    """The bootstrap's and that of a Kolmogorov-Smirnov test by tables for a known distribution."""
    statistics = ["kolmogorov_smirnov", "anderson_darling", "cramer_von_mises", "chi_square"]
    rows = []
    for name in ("gamma", "GEV", "negative binomial"):
        model, truth, _ = MODELS[name]
        data, _ = draw(name, 50, arguments.tests, seed=4)
        fits = fj.fit_batch(model, truth, data, covariances=())
        tests = fj.goodness_of_fit(fits, statistics, key=jax.random.key(5), num_replicates=REPLICATES // 5)
        tested = ~np.isnan(tests.p_value[:, 0])
        naive = scipy.stats.kstwo.sf(tests.value[tested, 0], 50)
        fractions = [percentage(p_values <= 0.05) for p_values in (*tests.p_value[tested].T, naive)]
        failed = 100 * np.mean(tests.num_failed[tested]) / tests.num_replicates
        rows.append([name, *fractions, str(int(np.sum(tested))), f"{failed:.2f} %"])
    title = f"size of tests of fit at a nominal 5 %, n = 50, {REPLICATES // 5} replicates each"
    names = ["Kolmogorov-Smirnov", "Anderson-Darling", "Cramér-von Mises", "χ²", "naive K-S"]
    harness.table(title, [*names, "data sets", "replicates failed"], rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fits", type=int, default=4000, help="data sets behind each fraction")
    parser.add_argument("--bootstraps", type=int, default=400, help="data sets behind each fraction of BCa")
    parser.add_argument("--tests", type=int, default=1000, help="data sets behind each fraction of tests of fit")
    arguments = parser.parse_args()
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fj.FitWarning)  # the tables count what these would say
        coverage(arguments)
        sizes(arguments)
        information_matrix(arguments)
        goodness_of_fit(arguments)
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
