"""Returns: GARCH(1, 1) without a mean, n = 500, float64, both fitters beginning with the sample's variance."""

import harness
import jax
import jax.numpy as jnp
import numpy as np

import fisher_jax as fj

LENGTH = 500
TRUTH = {"alpha": 0.08, "beta": 0.88, "omega": 0.05}


def terms(params, y):
    def step(variance, y):
        following = params["omega"] + params["alpha"] * y**2 + params["beta"] * variance
        return following, -0.5 * (jnp.log(2.0 * jnp.pi * variance) + y**2 / variance)

    before = jnp.mean(y**2)
    first = params["omega"] + (params["alpha"] + params["beta"]) * before
    return jax.lax.scan(step, first, y)[1]


def log_likelihood(params, y, given):
    return jnp.sum(terms(params, y))


def problems(size):
    noise = np.random.default_rng(5).normal(size=(LENGTH + 500, size))
    variance, series = np.full(size, 1.25), []
    for shock in noise:
        y = np.sqrt(variance) * shock
        series.append(y)
        variance = TRUTH["omega"] + TRUTH["alpha"] * y**2 + TRUTH["beta"] * variance
    y = np.stack(series[500:], axis=1)  # the first 500 forget how it began
    start = {"alpha": np.full(size, 0.1), "beta": np.full(size, 0.8), "omega": 0.1 * np.mean(y**2, axis=1)}
    truth = {name: np.full(size, value) for name, value in TRUTH.items()}
    constraints = {"alpha": fj.unit_interval, "beta": fj.unit_interval, "omega": fj.positive}
    model = fj.dependent(terms, constraints=constraints)
    return {"fit_batch": harness.Problem(model, log_likelihood, start, y, truth)}


def peers(problems, truths, goal):
    if not harness.optional("arch"):
        return []
    from arch import arch_model

    problem, truth = problems["fit_batch"], truths["fit_batch"]

    def by_arch(options):
        def fit(y):
            model = arch_model(y, mean="Zero", vol="GARCH", p=1, q=1, rescale=False)
            omega, alpha, beta = model.fit(disp="off", backcast=np.mean(y**2), options=options).params
            return alpha, beta, omega

        return harness.one_by_one(fit, problem.data)

    def tight(tolerance):
        return by_arch({"ftol": tolerance, "maxiter": 1000})

    size = min(len(problem.data), 100)
    return [
        harness.Contender("arch, as shipped", harness.timed(by_arch(None)), size, truth),
        harness.tightened("arch", tight, (1e-8, 1e-10, 1e-12), goal, truth, size),
    ]


QUESTIONS = {
    "volatility": harness.Question(
        "GARCH(1, 1), n = 500",
        problems,
        [("fit_batch", "first version: fit_batch", 8.0)],
        peers,
        most=10_000,
        first_most=1_000,
    )
}
