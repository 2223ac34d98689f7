"""Counts of genes: a negative binomial regression each, 50 samples, 3 coefficients and log size, the design shared.

pydeseq2 goes between coefficients at a given dispersion and the dispersion at given means, once; repeated, it comes nearer to
the joint maximum. Its trend over genes and its shrinkage are left out.
"""

import pathlib
import shutil
import subprocess
import tempfile
import warnings

import common
import jax.numpy as jnp
import numpy as np

import fisher_jax as fj

SAMPLES = 50


def predictor(params, z):
    return {"mean": jnp.exp(jnp.sum(z * params["beta"])), "size": jnp.exp(params["log_size"])}


MODEL = fj.linked(fj.families.negative_binomial, predictor)


def genes(size, seed=3):
    draw = np.random.default_rng(seed)
    design = np.stack([np.ones(SAMPLES), np.arange(SAMPLES) % 2, draw.normal(size=SAMPLES)], axis=1)
    beta = np.stack([draw.normal(4.0, 1.0, size), draw.normal(0, 0.5, size), draw.normal(0, 0.3, size)], axis=1)
    log_size = draw.normal(np.log(4.0), 0.7, size)
    mean, gamma = np.exp(beta @ design.T), np.exp(log_size)[:, None]
    counts = draw.poisson(draw.gamma(gamma, mean / gamma)).astype(np.int32)
    return counts, design, {"beta": beta, "log_size": log_size}


def starts(counts, design):
    """Least squares on log(y + ½), and the size by moments of what is left."""
    beta = np.linalg.lstsq(design, np.log(counts + 0.5).T, rcond=None)[0].T
    mean = np.exp(beta @ design.T)
    excess = np.mean(((counts - mean) ** 2 - mean) / mean**2, axis=1)
    return {"beta": beta, "log_size": -np.log(np.clip(excess, 0.01, 10.0))}


def columns(params):
    return np.column_stack([params["beta"], params["log_size"]])


def fit(counts, design, start=None, **options):
    start = starts(counts, design) if start is None else start
    return fj.fit_batch(MODEL, start, counts, given=design, params_axis=0, **options)


def statsmodels(counts, design):
    from statsmodels.discrete.discrete_model import NegativeBinomial

    def one(y):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            found = NegativeBinomial(y, design).fit(disp=0, maxiter=500)
            return [*found.params[:3], -np.log(found.params[3])]

    return lambda size: np.array([one(y) for y in counts[:size]])


def pydeseq2(counts, design, rounds):
    from pydeseq2.default_inference import DefaultInference

    inference = DefaultInference(n_cpus=common.CORES)
    factors = np.ones(SAMPLES)

    def call(size):
        y = np.ascontiguousarray(counts[:size].T)
        start = starts(counts[:size], design)
        dispersions = np.exp(-start["log_size"])
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            for _ in range(rounds):
                mean = inference.irls(y, factors, design, dispersions, 0.5, 1e-8)[1]
                dispersions = inference.alpha_mle(y, design, mean, dispersions, 1e-8, 100.0, None, cr_reg=False)[0]
            beta = inference.irls(y, factors, design, dispersions, 0.5, 1e-8)[0]
        return np.column_stack([beta, -np.log(dispersions)])

    return call


GLM_GAM_POI = """
args <- commandArgs(TRUE)
y <- as.matrix(read.csv(args[1], header = FALSE)); design <- as.matrix(read.csv(args[2], header = FALSE))
colnames(design) <- c("one", "group", "slope")
spent <- system.time(found <- glmGamPoi::glm_gp(y, design, size_factors = FALSE, overdispersion = TRUE,
  overdispersion_shrinkage = FALSE, do_cox_reid_adjustment = FALSE))[["elapsed"]]
write.table(cbind(found$Beta, -log(found$overdispersions)), args[3], sep = ",", row.names = FALSE, col.names = FALSE)
cat(spent)
"""


def glm_gam_poi(counts, design, truth):
    """R's fit of the same genes, timed by R itself, without reading and writing."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(pathlib.Path(folder) / name) for name in ("counts", "design", "found")]
        np.savetxt(paths[0], counts, fmt="%d", delimiter=",")
        np.savetxt(paths[1], design, delimiter=",")
        run = subprocess.run(["Rscript", "-e", GLM_GAM_POI, *paths], capture_output=True, text=True, check=False)
        if run.returncode:
            print(f"glmGamPoi: left out, {run.stderr.strip().splitlines()[-1]}")
            return []
        found, spent = np.loadtxt(paths[2], delimiter=","), float(run.stdout)
    rate = common.counted(found, truth).sum() / spent
    return [common.Result("R glmGamPoi", len(counts), common.share(found, truth), spent, rate, None)]


def main(arguments):
    counts, design, made_by = genes(10**6 if arguments.million else arguments.fits)
    cold = common.cost_by_size(lambda size: fit(counts[:size], design), len(counts), arguments.laps)
    counts, made_by = counts[: arguments.fits], {name: part[: arguments.fits] for name, part in made_by.items()}
    truth = common.reference(lambda start: fit(counts, design, start), (None, made_by), columns)
    ours, size = "fit_batch", len(counts)
    contenders = [
        common.Contender(ours, lambda size: columns(fit(counts[:size], design).params), size, cold=cold),
        common.Contender("statsmodels NegativeBinomial", statsmodels(counts, design), min(size, 300), 20.0),
    ]
    if common.optional("pydeseq2"):
        contenders += [
            common.Contender(f"pydeseq2, {said}", pydeseq2(counts, design, rounds), min(size, 1000))
            for said, rounds in (("one round", 1), ("four rounds", 4))
        ]
    results = common.compare(contenders, truth, arguments.laps)
    if shutil.which("Rscript"):
        results += glm_gam_poi(counts[:10_000], design, truth)
    else:
        print("glmGamPoi: left out, no Rscript")
    common.table("negative binomial regression, n = 50 (asked: 15 000 genes/s)", results, ours)
