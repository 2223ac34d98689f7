"""Counts of genes: a negative binomial regression each, 50 samples, 3 coefficients and log size, the design shared.

pydeseq2 goes between coefficients at a given dispersion and the dispersion at given means, once; repeated, it comes nearer to
the joint maximum. Its trend over genes and its shrinkage are left out, as are those of R's glmGamPoi, which R times itself.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

import harness
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln

import fisher_jax as fj

SAMPLES = 50


def predictor(params, z):
    return {"mean": jnp.exp(jnp.sum(z * params["beta"])), "size": jnp.exp(params["log_size"])}


def log_density(params, y, z):
    log_mean, log_size = jnp.sum(z * params["beta"]), params["log_size"]
    size = jnp.exp(log_size)
    log_total = jnp.logaddexp(log_mean, log_size)
    coefficient = gammaln(y + size) - gammaln(size) - gammaln(y + 1.0)
    return coefficient + y * (log_mean - log_total) + size * (log_size - log_total)


def problems(genes):
    draw = np.random.default_rng(3)
    design = np.stack([np.ones(SAMPLES), np.arange(SAMPLES) % 2, draw.normal(size=SAMPLES)], axis=1)
    beta = np.stack([draw.normal(4.0, 1.0, genes), draw.normal(0, 0.5, genes), draw.normal(0, 0.3, genes)], axis=1)
    log_size = draw.normal(np.log(4.0), 0.7, genes)
    mean, gamma = np.exp(beta @ design.T), np.exp(log_size)[:, None]
    counts = draw.poisson(draw.gamma(gamma, mean / gamma)).astype(np.float64)
    truth = {"beta": beta, "log_size": log_size}
    start = starts(counts, design)
    log_likelihood = harness.total(log_density)
    models = {"linked": fj.linked(fj.families.negative_binomial, predictor), "user-written": fj.Model(log_density)}
    return {row: harness.Problem(model, log_likelihood, start, counts, truth, design) for row, model in models.items()}


def starts(counts, design):
    """Least squares on log(y + ½), and the size by moments of what is left."""
    beta = np.linalg.lstsq(design, np.log(counts + 0.5).T, rcond=None)[0].T
    mean = np.exp(beta @ design.T)
    excess = np.mean(((counts - mean) ** 2 - mean) / mean**2, axis=1)
    return {"beta": beta, "log_size": -np.log(np.clip(excess, 0.01, 10.0))}


def pydeseq2(problem, rounds):
    from pydeseq2.default_inference import DefaultInference

    inference = DefaultInference(n_cpus=harness.CORES)
    factors, design = np.ones(SAMPLES), problem.given

    def call(size):
        y = np.ascontiguousarray(problem.data[:size].T.astype(int))
        dispersions = np.exp(-problem.start["log_size"][:size])
        for _ in range(rounds):
            mean = inference.irls(y, factors, design, dispersions, 0.5, 1e-8)[1]
            dispersions = inference.alpha_mle(y, design, mean, dispersions, 1e-8, 100.0, None, cr_reg=False)[0]
        beta = inference.irls(y, factors, design, dispersions, 0.5, 1e-8)[0]
        return np.column_stack([beta, -np.log(dispersions)])

    return harness.timed(lambda size: harness.quietly(call, size))


GLM_GAM_POI = """
args <- commandArgs(TRUE)
y <- as.matrix(read.csv(args[1], header = FALSE)); design <- as.matrix(read.csv(args[2], header = FALSE))
colnames(design) <- c("one", "group", "slope")
spent <- system.time(found <- glmGamPoi::glm_gp(y, design, size_factors = FALSE, overdispersion = TRUE,
  overdispersion_shrinkage = FALSE, do_cox_reid_adjustment = FALSE))[["elapsed"]]
write.table(cbind(found$Beta, -log(found$overdispersions)), args[3], sep = ",", row.names = FALSE, col.names = FALSE)
cat(spent)
"""


def glm_gam_poi(problem):
    def measure(size):
        with tempfile.TemporaryDirectory() as folder:
            paths = [str(Path(folder) / name) for name in ("counts", "design", "estimates")]
            np.savetxt(paths[0], problem.data[:size], fmt="%d", delimiter=",")
            np.savetxt(paths[1], problem.given, delimiter=",")
            run = subprocess.run(["Rscript", "-e", GLM_GAM_POI, *paths], capture_output=True, text=True, check=True)
            return float(run.stdout), np.loadtxt(paths[2], delimiter=",")

    return measure


def peers(problems, truths, goal):
    from statsmodels.discrete.discrete_model import NegativeBinomial

    problem, truth = problems["linked"], truths["linked"]

    def by_statsmodels(y):
        estimates = NegativeBinomial(y, problem.given).fit(disp=0, maxiter=500).params
        return [*estimates[:3], -np.log(estimates[3])]

    size = len(problem.data)
    one_by_one = harness.timed(harness.one_by_one(by_statsmodels, problem.data))
    contenders = [harness.Contender("statsmodels NegativeBinomial", one_by_one, min(size, 200), truth)]
    if harness.optional("pydeseq2"):
        contenders += [
            harness.Contender(f"pydeseq2, {said}", pydeseq2(problem, rounds), min(size, 1000), truth)
            for said, rounds in (("one round", 1), ("four rounds", 4))
        ]
    if shutil.which("Rscript"):
        contenders.append(harness.Contender("R glmGamPoi", glm_gam_poi(problem), min(size, 10_000), truth))
    else:
        print("glmGamPoi: left out, no Rscript")
    return contenders


QUESTIONS = {
    "counts": harness.Question(
        "negative binomial regression, n = 50, 4 parameters",
        problems,
        [
            ("linked", "first version: linked", 4.0),
            ("user-written", "first version: user-written", 10.0),
            ("user-written", "first version: linked", 4.0),
        ],
        peers,
        most=20_000,
        first_most=5_000,
    )
}
