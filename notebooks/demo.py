"""Three fits to real data, their reports, and one picture: what `make demo` runs."""

from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")

import numpy as np
from jax.scipy.special import gammaln
from jax.scipy.stats import gamma, norm

import fisher_jax as fj

DATA = Path(__file__).parents[1] / "data"


def main() -> None:
    """Run the three examples."""
    custom_density()
    regression()
    time_series()


def headline(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}")


# 1. A density of one's own -------------------------------------------------------------------------------------------


def serving(params, y):
    """Log-density of one serving y in grams: gamma with shape and rate (1/g)."""
    return gamma.logpdf(y, params["shape"], scale=1 / params["rate"])


def custom_density() -> None:
    headline("1. A density of one's own: ground beef servings in grams, gamma")
    servings, counts = np.loadtxt(DATA / "beef_servings.csv", delimiter=",", unpack=True)
    y = np.repeat(servings, counts.astype(int))
    model = fj.Model(serving, constraints={"shape": fj.positive, "rate": fj.positive})
    start = {"shape": 2.0, "rate": 0.06}
    fit = fj.fit(model, start, y)
    print(fit.summary())
    path = [fj.fit(model, start, y, max_steps=k).params for k in range(int(fit.num_steps) + 1)]
    draw(fit, path)


def draw(fit, path) -> None:
    axes = fj.plots.likelihood_surface(fit, ["shape", "rate"], path=path, extent=8.0, num_points=161)
    axes.set(xlabel="shape", ylabel="rate (1/g)")
    target = Path("demo.png").resolve()
    axes.figure.savefig(target, dpi=150)
    print(f"\nThe log-likelihood around this estimate is drawn in {target}")


# 2. A regression -----------------------------------------------------------------------------------------------------


def visits(params, y, z):
    """Log-probability of y visits to a doctor: negative binomial with log-linear mean, variance μ + μ²/size."""
    log_mean = params["const"] + sum(params["beta"][name] * z[name] for name in z)
    size = params["size"]
    log_total = jnp.logaddexp(jnp.log(size), log_mean)
    log_choose = gammaln(y + size) - gammaln(size) - gammaln(y + 1)
    return log_choose + size * (jnp.log(size) - log_total) + y * (log_mean - log_total)


def regression() -> None:
    headline("2. A regression: visits to a doctor in the RAND health insurance experiment, negative binomial")
    from statsmodels.datasets import randhie

    table = randhie.load_pandas()
    y, given = table.endog.to_numpy(float), {name: table.exog[name].to_numpy(float) for name in table.exog}
    model = fj.Model(visits, constraints={"size": fj.positive})
    start = {"beta": dict.fromkeys(given, 0.0), "const": np.log(y.mean()), "size": 1.0}
    fit = fj.fit(model, start, y, given=given)
    print(fit.summary("sandwich"))
    model_based = fit.layout.flatten(fit.standard_errors())
    ratios = fit.layout.flatten(fit.standard_errors("sandwich")) / model_based
    print(f"\n  These robust standard errors are {ratios.min():.2f} to {ratios.max():.2f} times those of the inverse")
    print("  observed information, which takes the model at its word.")


# 3. A time series ----------------------------------------------------------------------------------------------------


def variances(params, squares, before):
    """h_t = ω + α e²_{t−1} + β h_{t−1}; `before` stands for both e² and h before the first day."""
    alpha, beta, _ = params["weights"]

    def step(h, square):
        h = params["omega"] + alpha * square + beta * h
        return h, h

    lagged = jnp.concatenate([before[None], squares[:-1]])
    return jax.lax.scan(step, before, lagged)[1]


def garch(params, y):
    """Log-density of each day's return given those before it."""
    squares = (y - params["mean"]) ** 2
    before = jnp.mean((y - jnp.mean(y)) ** 2)
    return norm.logpdf(y, params["mean"], jnp.sqrt(variances(params, squares, before)))


def time_series() -> None:
    headline("3. A time series: daily returns of the S&P 500 in per cent, 1999-2018, GARCH(1,1)")
    from arch.data import sp500

    y = 100 * np.diff(np.log(sp500.load()["Adj Close"].to_numpy()))
    # Stationarity is α + β < 1: α, β and what is left of one lie on a simplex.
    model = fj.dependent(garch, constraints={"omega": fj.positive, "weights": fj.simplex})
    fit = fj.fit(model, {"mean": 0.05, "omega": 0.02, "weights": jnp.array([0.10, 0.85, 0.05])}, y)
    print(fit.summary("sandwich"))
    print("\n  weights are alpha, beta and 1 - alpha - beta. Returns are not normal, so the sandwich")
    print("  (Bollerslev & Wooldridge 1992, Econometric Rev. 11, 143-172) is the covariance to report.")


if __name__ == "__main__":
    main()
