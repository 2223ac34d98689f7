"""Returns: GARCH(1, 1) without a mean, n = 1000, float64, both fitters beginning with the sample's variance."""

import warnings

import common
import jax
import jax.numpy as jnp
import numpy as np

import fisher_jax as fj

LENGTH = 1000
TRUTH = {"omega": 0.05, "alpha": 0.08, "beta": 0.88}
NAMES = tuple(TRUTH)
MOST = 10_000


def terms(params, y):
    def step(variance, y):
        following = params["omega"] + params["alpha"] * y**2 + params["beta"] * variance
        return following, -0.5 * (jnp.log(2.0 * jnp.pi * variance) + y**2 / variance)

    before = jnp.mean(y**2)
    first = params["omega"] + (params["alpha"] + params["beta"]) * before
    return jax.lax.scan(step, first, y)[1]


MODEL = fj.dependent(terms, constraints={"omega": fj.positive, "alpha": fj.unit_interval, "beta": fj.unit_interval})


def returns(size, seed=5):
    noise = np.random.default_rng(seed).normal(size=(LENGTH + 500, size))
    variance, found = np.full(size, 1.25), []
    for shock in noise:
        y = np.sqrt(variance) * shock
        found.append(y)
        variance = TRUTH["omega"] + TRUTH["alpha"] * y**2 + TRUTH["beta"] * variance
    return np.stack(found[500:], axis=1)


def starts(y):
    return {"omega": 0.1 * np.mean(y**2, axis=1), "alpha": np.full(len(y), 0.1), "beta": np.full(len(y), 0.8)}


def columns(params):
    return np.stack([np.asarray(params[name]) for name in NAMES], axis=1)


def fit(y, start=None):
    return fj.fit_batch(MODEL, starts(y) if start is None else start, y, params_axis=0)


def by_arch(y, options):
    from arch import arch_model

    def one(y):
        model = arch_model(y, mean="Zero", vol="GARCH", p=1, q=1, rescale=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return model.fit(disp="off", backcast=np.mean(y**2), options=options).params.to_numpy()

    return lambda size: np.array([one(row) for row in y[:size]])


def main(arguments):
    y = returns(min(arguments.fits, MOST))
    cold = common.cost_by_size(lambda size: fit(y[:size]), len(y), arguments.laps)
    same = {name: np.full(len(y), value) for name, value in TRUTH.items()}
    truth = common.reference(lambda start: fit(y, start), (None, same), columns)
    ours = "fit_batch"
    contenders = [common.Contender(ours, lambda size: columns(fit(y[:size]).params), len(y), cold=cold)]
    if common.optional("arch"):
        goal = common.share(contenders[0].call(min(len(y), 1000)), truth)
        contenders.append(common.Contender("arch, as shipped", by_arch(y, None), min(len(y), 100)))
        tight = (1e-8, 1e-10, 1e-12)
        contenders.append(
            common.tightened("arch", lambda t: by_arch(y, {"ftol": t, "maxiter": 1000}), tight, goal, truth, min(len(y), 100))
        )  # fmt: skip
    common.table("GARCH(1, 1), n = 1000", common.compare(contenders, truth, arguments.laps), ours)
