"""Published data sets, and the models fitted to them.

The data are those small enough to print and those that statsmodels ships; `PROBLEMS` names what is fitted to them.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln, log_ndtr, polygamma
from jax.scipy.stats import gamma, norm, poisson

import fisher_jax as fj


def _stored(name: str) -> np.ndarray:
    """The columns of a table in `data`, whose first line says what they are."""
    return np.loadtxt(Path(__file__).parents[1] / "data" / f"{name}.csv", delimiter=",", unpack=True)


def _rows(text: str, columns: int) -> np.ndarray:
    """The columns of a table printed row after row."""
    return np.array(text.split(), float).reshape(-1, columns).T


BEEF_SERVINGS, BEEF_COUNTS = _stored("beef_servings")
EC50_CONCENTRATION, EC50_COUNTS = _stored("ec50")
BEETLE_DOSE, BEETLE_EXPOSED, BEETLE_DIED = _stored("beetles")

# Contagious bovine pleuropneumonia (Lesnoff et al. 2004; `cbpp` of R's lme4): herd, new cases, animals, period.
CBPP = dict(zip(("herd", "incidence", "size", "period"), _stored("cbpp").astype(int), strict=True))

# Germination of Orobanche seeds (Crowder 1978): seeds, germinated, dilution (0: 1/1, 1: 1/25, 2: 1/625).
OROBANCHE_SEEDS, OROBANCHE_GERMINATED, OROBANCHE_DILUTION = _rows(
    """43 2 0  51 9 0  44 5 0  71 16 0  24 2 0  7 0 0
    19 17 1  56 43 1  87 79 1  55 50 1  10 9 1
    13 11 2  62 47 2  104 90 2  51 46 2  11 9 2""",
    columns=3,
)

# Ovarian cancer (R, survival::ovarian): days, died, ecog.ps, rx.
OVARIAN_DAYS, OVARIAN_DIED, OVARIAN_ECOG, OVARIAN_RX = _rows(
    """59 1 1 1  115 1 1 1  156 1 2 1  421 0 1 2  431 1 1 1  448 0 2 1  464 1 2 2  475 1 2 2  477 0 1 1  563 1 2 2
    638 1 2 1  744 0 1 2  769 0 2 2  770 0 1 2  803 0 1 1  855 0 2 1  1040 0 2 1  1106 0 1 1  1129 0 1 2
    1206 0 1 2  1227 0 2 2  268 1 2 1  329 1 1 1  353 1 2 2  365 1 1 2  377 0 1 2""",
    columns=4,
)


def _with_constant(columns: np.ndarray) -> np.ndarray:
    return np.column_stack([columns, np.ones(len(columns))])


def as_stata_stores(columns: np.ndarray) -> np.ndarray:
    """Rounded to float32, Stata's default storage; its arithmetic is in float64."""
    return columns.astype(np.float32).astype(float)


@functools.cache
def spector() -> tuple[np.ndarray, np.ndarray]:
    """Grade improved, and gpa, tuce, psi, const."""
    from statsmodels.datasets import spector

    data = spector.load_pandas()
    return data.endog.to_numpy(float), _with_constant(data.exog.to_numpy(float))


@functools.cache
def randhie() -> tuple[np.ndarray, np.ndarray]:
    """Visits to a doctor, and nine covariates with const last."""
    from statsmodels.datasets import randhie

    data = randhie.load_pandas()
    return data.endog.to_numpy(float), _with_constant(data.exog.to_numpy(float))


@functools.cache
def ships() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Accidents; yr_con, op_75_79, const; months of service; ship. Six rows without service are left out."""
    import statsmodels

    path = Path(statsmodels.__file__).parent / "discrete" / "tests" / "results" / "ships.csv"
    table = np.genfromtxt(path, delimiter=",", names=True)
    table = table[np.isfinite(table["service"])]
    design = _with_constant(np.column_stack([table["yr_con"], table["op_75_79"]]))
    return table["accident"], design, table["service"], table["ship"]


class Problem(NamedTuple):
    """Arguments of a fit."""

    model: Any
    start: Any
    data: Any
    given: Any = None


# The models, each on one observation.


def gamma_log_density(params, y):
    return gamma.logpdf(y, params["shape"], scale=1 / params["rate"])


def gamma_information(params):
    shape, rate = params["shape"], params["rate"]
    return {
        "shape": {"shape": polygamma(1, shape), "rate": -1 / rate},
        "rate": {"shape": -1 / rate, "rate": shape / rate**2},
    }


def weibull_log_density(params, y):
    shape, scale = params["shape"], params["scale"]
    log_ratio = jnp.log(y) - jnp.log(scale)
    return jnp.log(shape) + shape * log_ratio - jnp.log(y) - jnp.exp(shape * log_ratio)


def weibull_information(params):
    shape, scale = params["shape"], params["scale"]
    lift = 1 - np.euler_gamma
    mixed = -lift / scale
    return {
        "shape": {"shape": (lift**2 + np.pi**2 / 6) / shape**2, "scale": mixed},
        "scale": {"shape": mixed, "scale": (shape / scale) ** 2},
    }


def lognormal_log_density(params, y):
    return norm.logpdf(jnp.log(y), params["mu"], params["sigma"]) - jnp.log(y)


def hyperbolic_count_log_density(params, y, x):
    return poisson.logpmf(y, params["ymax"] / (1 + x / params["xhalf"]))


def log_binomial_coefficient(n, k):
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)


def log_rising_factorial(a, m):
    """log of a (a + 1) … (a + m − 1); it cancels less than a difference of log-gammas where a is large."""
    i = jnp.arange(128)  # no row has as many seeds
    return jnp.sum(jnp.where(i < m, jnp.log(a + i), 0.0))


def beta_binomial_log_density(params, y, z):
    """One probability and one theta = a + b for all dilutions, or one of either for each."""
    probability = jnp.broadcast_to(params["probability"], (3,))[z["dilution"]]
    theta = jnp.broadcast_to(params["theta"], (3,))[z["dilution"]]
    germinated = log_rising_factorial(probability * theta, y)
    not_germinated = log_rising_factorial((1 - probability) * theta, z["n"] - y)
    return log_binomial_coefficient(z["n"], y) + germinated + not_germinated - log_rising_factorial(theta, z["n"])


def logit_log_probabilities(eta):
    """log p and log(1 − p)."""
    return jax.nn.log_sigmoid(eta), jax.nn.log_sigmoid(-eta)


def probit_log_probabilities(eta):
    return log_ndtr(eta), log_ndtr(-eta)


def cloglog_log_probabilities(eta):
    return jnp.log(-jnp.expm1(-jnp.exp(eta))), -jnp.exp(eta)


def dose_response(log_probabilities):
    """Binomial regression, with the expected information n p′²/(p(1 − p)) x xᵀ."""

    def log_density(beta, y, z):
        log_p, log_q = log_probabilities(z["x"] @ beta)
        return log_binomial_coefficient(z["n"], y) + y * log_p + (z["n"] - y) * log_q

    def information(beta, z):
        eta = z["x"] @ beta
        log_p, log_q = log_probabilities(eta)
        slope = jax.grad(lambda eta: jnp.exp(log_probabilities(eta)[0]))(eta)
        return z["n"] * slope**2 * jnp.exp(-log_p - log_q) * jnp.outer(z["x"], z["x"])

    return fj.Model(log_density, information=information)


def censored_weibull_log_density(params, y, z):
    """Weibull regression of log time: log t = xᵀβ + σ w; a survivor contributes only log P(T > t)."""
    location = params["intercept"] + params["ecog"] * z["ecog"] + params["rx"] * z["rx"]
    w = (y["log_time"] - location) * jnp.exp(-params["log_scale"])
    return y["died"] * (w - params["log_scale"] - y["log_time"]) - jnp.exp(w)


def logit_log_density(beta, y, x):
    return jax.nn.log_sigmoid((2 * y - 1) * (x @ beta))


def probit_log_density(beta, y, x):
    return log_ndtr((2 * y - 1) * (x @ beta))


def poisson_log_density(beta, y, z):
    eta = z["x"] @ beta + z["log_exposure"]
    return y * eta - jnp.exp(eta) - gammaln(y + 1)


def negative_binomial_log_density(y, size, log_odds):
    """Variance/mean = 1 + odds, mean = size × odds."""
    coefficient = gammaln(y + size) - gammaln(size) - gammaln(y + 1)
    return coefficient + y * log_odds - (y + size) * jnp.logaddexp(0.0, log_odds)


def nb2_log_density(params, y, x):
    """Variance μ + α μ²."""
    return negative_binomial_log_density(y, jnp.exp(-params["log_alpha"]), x @ params["beta"] + params["log_alpha"])


def nb1_log_density(params, y, x):
    """Variance μ (1 + α)."""
    return negative_binomial_log_density(y, jnp.exp(x @ params["beta"] - params["log_alpha"]), params["log_alpha"])


# The registry: model, start, data and covariates of each fit.

GAMMA = fj.Model(gamma_log_density, constraints=fj.positive, information=gamma_information)
WEIBULL = fj.Model(weibull_log_density, constraints=fj.positive, information=weibull_information)
LOGNORMAL = fj.Model(lognormal_log_density, constraints={"sigma": fj.positive})
HYPERBOLIC = fj.Model(hyperbolic_count_log_density, constraints=fj.positive)
BETA_BINOMIAL = fj.Model(beta_binomial_log_density, constraints={"probability": fj.unit_interval, "theta": fj.positive})
DOSE_RESPONSES = {
    "logit": dose_response(logit_log_probabilities),
    "probit": dose_response(probit_log_probabilities),
    "cloglog": dose_response(cloglog_log_probabilities),
}
BEEF = np.repeat(BEEF_SERVINGS, BEEF_COUNTS.astype(int))


def _orobanche(probability, theta):
    given = {"n": OROBANCHE_SEEDS, "dilution": OROBANCHE_DILUTION.astype(int)}
    start = {"probability": probability, "theta": theta}
    return Problem(BETA_BINOMIAL, start, OROBANCHE_GERMINATED, given)


def _beetles(link):
    x = np.column_stack([np.ones(8), BEETLE_DOSE])
    given = {"x": x, "n": BEETLE_EXPOSED}
    return Problem(DOSE_RESPONSES[link], np.zeros(2), BEETLE_DIED, given)


def _ovarian():
    start = {"intercept": 0.0, "ecog": 0.0, "rx": 0.0, "log_scale": 0.0}
    data = {"log_time": np.log(OVARIAN_DAYS), "died": OVARIAN_DIED}
    given = {"ecog": OVARIAN_ECOG, "rx": OVARIAN_RX}
    return Problem(censored_weibull_log_density, start, data, given)


def _spector(log_density):
    y, x = spector()
    return Problem(log_density, np.zeros(4), y, as_stata_stores(x))


def _randhie_poisson():
    y, x = randhie()
    given = {"x": as_stata_stores(x), "log_exposure": np.zeros(len(y))}
    return Problem(poisson_log_density, np.zeros(10), y, given)


def _randhie(log_density):
    return Problem(log_density, {"beta": np.zeros(10), "log_alpha": 0.0}, *randhie())


def _ships():
    y, x, service, _ = ships()
    return Problem(poisson_log_density, np.zeros(3), y, {"x": x, "log_exposure": np.log(service)})


PROBLEMS = {
    "gamma": lambda: Problem(GAMMA, {"shape": 1.0, "rate": 1.0}, BEEF),
    "weibull": lambda: Problem(WEIBULL, {"shape": 1.0, "scale": 50.0}, BEEF),
    "lognormal": lambda: Problem(LOGNORMAL, {"mu": 0.0, "sigma": 1.0}, BEEF),
    "ec50": lambda: Problem(HYPERBOLIC, {"ymax": 10.0, "xhalf": 1.0}, EC50_COUNTS, EC50_CONCENTRATION),
    "orobanche": lambda: _orobanche(np.full(3, 0.5), 1.0),
    "orobanche, one probability": lambda: _orobanche(0.5, 1.0),
    "orobanche, a theta each": lambda: _orobanche(np.full(3, 0.5), np.ones(3)),
    "beetles, logit": lambda: _beetles("logit"),
    "beetles, probit": lambda: _beetles("probit"),
    "beetles, cloglog": lambda: _beetles("cloglog"),
    "ovarian": _ovarian,
    "spector, logit": lambda: _spector(logit_log_density),
    "spector, probit": lambda: _spector(probit_log_density),
    "randhie, poisson": _randhie_poisson,
    "randhie, nb2": lambda: _randhie(nb2_log_density),
    "randhie, nb1": lambda: _randhie(nb1_log_density),
    "ships": _ships,
}

# Annual maxima of the sea level at Port Pirie, South Australia, 1923 to 1987, in metres: Coles, S. (2001), An Introduction to
# Statistical Modeling of Extreme Values, example 1.1.
PORT_PIRIE = np.array([
    4.03, 3.83, 3.65, 3.88, 4.01, 4.08, 4.18, 3.8, 4.36, 3.96, 3.98, 4.69, 3.85, 3.96, 3.85, 3.93, 3.75, 3.63, 3.57,
    4.25, 3.97, 4.05, 4.24, 4.22, 3.73, 4.37, 4.06, 3.71, 3.96, 4.06, 4.55, 3.79, 3.89, 4.11, 3.85, 3.86, 3.86, 4.21,
    4.01, 4.11, 4.24, 3.96, 4.21, 3.74, 3.85, 3.88, 3.66, 4.11, 3.71, 4.18, 3.9, 3.78, 3.91, 3.72, 4.0, 3.66, 3.62,
    4.33, 4.55, 3.75, 4.08, 3.9, 3.88, 3.94, 4.33,
])  # fmt: skip

# cbpp with a normal effect of each herd.

HERDS = fj.by_group(CBPP, "herd")


def cbpp_predictor(params, effects, z):
    period = jnp.where(z["period"] == jnp.arange(1, 5), 1.0, 0.0).at[0].set(1.0)  # the first is the reference
    return {"logit": jnp.sum(period * params["beta"]) + effects["herd"], "trials": z["size"]}


@functools.cache
def cbpp_fit(nodes):
    model = fj.mixed(fj.families.binomial, cbpp_predictor, {"herd": 0.0}, nodes=nodes)
    start = {"beta": np.zeros(4), "sd": {"herd": 1.0}}
    return fj.fit(model, start, HERDS["incidence"], given=HERDS[["size", "period"]])
