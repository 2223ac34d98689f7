"""Latent effects: a mixed model for each of thousands of genes, its rate beside statsmodels' and the coverage of its intervals.

Each gene has 20 subjects with 10 cells: negative binomial counts with a normal effect of the subject on the logarithm of the mean,
one covariate that differs between the cells of a subject and one that differs between subjects only. statsmodels has no negative
binomial with effects, so rates are compared on Poisson counts, both with the same data; its `fit_map` maximises a posterior over
effects and parameters jointly, `fit_vb` approximates it, each in one process. Coverage is of 95 % intervals, by Wald and by the
likelihood ratio at the truth, which is that of the profile interval. Of what 20 subjects tell (the covariate between them, the
standard deviation) maximum likelihood itself falls short.
"""

import argparse
import pathlib
import statistics
import time

import harness
import jax

jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp
import numpy as np
from scipy.stats import chi2

import fisher_jax as fj

CBPP = pathlib.Path(__file__).parents[1] / "data" / "cbpp.csv"
SUBJECTS, CELLS = 20, 10
TRUTH = {"constant": 0.5, "within": 0.3, "between": -0.4, "size": 4.0, "sd": 0.5}


def design(rng):
    within = rng.normal(size=(SUBJECTS, CELLS))
    between = np.broadcast_to(rng.normal(size=(SUBJECTS, 1)), within.shape)
    return {"within": within, "between": between}


def draw(rng, z, genes, size):
    """Counts (genes, subjects, cells); Poisson without a size."""
    effects = rng.normal(scale=TRUTH["sd"], size=(genes, SUBJECTS, 1))
    slopes = TRUTH["constant"] + TRUTH["within"] * z["within"] + TRUTH["between"] * z["between"]
    mean = np.exp(slopes + effects)
    return rng.poisson(mean if size is None else rng.gamma(size, mean / size)).astype(float)


def linear(params, effects, z):
    slopes = params["constant"] + params["within"] * z["within"] + params["between"] * z["between"]
    return jnp.exp(slopes + effects["subject"])


def negative_binomial(**fixed):
    predict = lambda params, effects, z: {"mean": linear(params, effects, z), "size": params["size"]}  # noqa: E731
    constraints = {"size": fj.positive} | dict.fromkeys(fixed, fj.fixed)
    return fj.mixed(fj.families.negative_binomial, predict, {"subject": 0.0}, constraints=constraints)


def start(**fixed):
    effects = {"sd": {"subject": fixed.pop("sd", 0.5)}}
    return {"constant": 0.0, "within": 0.0, "between": 0.0, "size": 2.0} | fixed | effects


def coverage_table(genes):
    rng = np.random.default_rng(3)
    z = design(rng)
    counts = draw(rng, z, genes, TRUTH["size"])
    fits = fj.fit_batch(negative_binomial(), start(), counts, given=z)
    converged = np.asarray(fits.converged)
    at_edge = np.asarray(fits.status) == fj.Status.BOUNDARY
    print(f"\n{genes} genes: {converged.mean():.2%} converged, {at_edge.mean():.2%} at an edge")
    intervals = fits.confidence_intervals()
    rows = []
    for name in ("within", "between", "sd"):
        value = TRUTH[name]
        low, high = np.moveaxis(np.asarray(intervals["sd"]["subject"] if name == "sd" else intervals[name]), -1, 0)
        has_interval = np.isfinite(low) & np.isfinite(high)
        by_wald = np.mean((low <= value) & (value <= high), where=has_interval)
        fixed = {"sd": {"subject": fj.fixed}} if name == "sd" else {name: fj.fixed}
        model = negative_binomial(**fixed)
        restricted = fj.fit_batch(model, start(**{name: value}), counts, given=z)
        ratio = 2 * (np.asarray(fits.log_likelihood) - np.asarray(restricted.log_likelihood))
        by_ratio = np.mean(ratio <= chi2.ppf(0.95, 1))
        error = np.sqrt(0.95 * 0.05 / genes)
        rows.append([name, f"{by_wald:.2%}", f"{has_interval.mean():.2%}", f"{by_ratio:.2%}", f"{error:.2%}"])
    harness.table("coverage of 95 %", ["Wald", "with an interval", "profile", "Monte Carlo error"], rows)


def rates(genes, of_peer, laps):
    rng = np.random.default_rng(4)
    z = design(rng)
    counts = draw(rng, z, genes, None)
    poisson = fj.mixed(
        fj.families.poisson, lambda params, effects, z: {"rate": linear(params, effects, z)}, {"subject": 0.0}
    )
    begin = {name: value for name, value in start().items() if name != "size"}
    with_size = negative_binomial()
    calls = {
        "fisher_jax, Poisson": lambda: fj.fit_batch(poisson, begin, counts, given=z).log_likelihood,
        "fisher_jax, negative binomial": lambda: fj.fit_batch(with_size, start(), counts, given=z).log_likelihood,
    }
    done = dict.fromkeys(calls, genes)
    if harness.optional("statsmodels"):
        from statsmodels.genmod.bayes_mixed_glm import PoissonBayesMixedGLM

        exog = np.stack([np.ones(SUBJECTS * CELLS), z["within"].ravel(), z["between"].ravel()], axis=1)
        of_subject = np.repeat(np.eye(SUBJECTS), CELLS, axis=0)

        def peer(method):
            def one(y):
                return getattr(PoissonBayesMixedGLM(y.ravel(), exog, of_subject, np.zeros(SUBJECTS, int)), method)()

            return lambda: [harness.quietly(one, y) for y in counts[:of_peer]]

        calls |= {f"statsmodels, {method}": peer(method) for method in ("fit_map", "fit_vb")}
        done |= {f"statsmodels, {method}": of_peer for method in ("fit_map", "fit_vb")}
    first = {}
    for name, call in calls.items():
        first[name], _ = harness.stopwatch(call)
    seconds = harness.medians(harness.take_turns(calls, laps, warm=0))
    rate = {name: done[name] / seconds[name] for name in calls}
    ours = rate["fisher_jax, Poisson"]
    rows = [[name, f"{rate[name]:.3g}", f"{ours / rate[name]:.3g}", f"{first[name]:.1f}"] for name in calls]
    harness.table("200 rows, 20 effects a fit", ["fits/s", "Poisson rate / this", "first call, s"], rows)


def one_fit():
    """lme4's cbpp from a formula: the first report, warm fits that step on the host, and later ones in one program."""
    columns = np.loadtxt(CBPP, delimiter=",", unpack=True)
    table = dict(zip(("herd", "cases", "animals", "quarter"), columns.astype(int), strict=True))
    formula = lambda: fj.formula("cases ~ C(quarter) + (1 | herd)", fj.families.binomial, table, trials="animals")  # noqa: E731
    seconds, _ = harness.stopwatch(lambda: str(formula().fit().summary()))
    rows, again = [["formula, fit and report, first", f"{seconds:.1f}"]], formula()
    warm = lambda: statistics.median(harness.stopwatch(again.fit)[0] for _ in range(20))  # noqa: E731
    rows.append(["fit, warm", f"{warm():.4f}"])
    start = time.perf_counter()
    while time.perf_counter() - start < 15:  # somewhere in here the whole loop is compiled
        again.fit()
    rows.append(["the same, later", f"{warm():.4f}"])
    harness.table("cbpp", ["seconds"], rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--genes", type=int, default=5000)
    parser.add_argument("--of-peer", type=int, default=10, help="genes that statsmodels fits")
    parser.add_argument("--laps", type=int, default=3)
    settings = parser.parse_args()
    one_fit()
    rates(settings.genes, settings.of_peer, settings.laps)
    coverage_table(settings.genes)
