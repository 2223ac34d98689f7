"""Expected information by draws: the error of each entry by estimator at equal draws, and at equal wall time.

Errors are about a closed form, or a sum or integral good to 1e-10, and are mean squares over repetitions with keys of their
own; the gain of an entry is the mean square error of the outer product over that of the estimator. All estimators of a model
take turns in one process, called as a user calls them, so that their times meet the same machine. The error² of a mean of
draws falls as one over their number, so that the gain at equal wall time is the gain times the ratio of the times; for two
models that is checked by giving the outer product as many draws as take the time of the control variates.

Gains are printed for the worst and the best entry of the whole matrix and for the worst on its diagonal; over 200 repetitions
each is known to about a fifth. A mixture's entries between parameters of different components have Hᵢⱼ = −sᵢsⱼ, so that the
control of the entry itself is zero: what the best of all coefficients could gain there is printed below the table.
"""

import argparse
import functools
import itertools
import warnings
from typing import Any, NamedTuple

import jax

jax.config.update("jax_enable_x64", True)

import harness
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

import fisher_jax as fj
from fisher_jax import families

DRAWS, POINTS = 10_000, 8_192
ROUNDING = 1e-10  # root mean square error, in units of √(Iᵢᵢ Iⱼⱼ), below which an entry is called exact


def mixture_log_density(params, y):
    first = jnp.log(params["weight"]) + norm.logpdf(y, params["loc_1"], params["scale_1"])
    second = jnp.log1p(-params["weight"]) + norm.logpdf(y, params["loc_2"], params["scale_2"])
    return jnp.logaddexp(first, second)


def mixture_sample(key, params):
    which, where = jax.random.split(key)
    component = jnp.where(jax.random.uniform(which) < params["weight"], 1, 2)
    loc, scale = (jnp.where(component == 1, params[f"{name}_1"], params[f"{name}_2"]) for name in ("loc", "scale"))
    return loc + scale * jax.random.normal(where)


mixture = fj.Model(mixture_log_density, sample=mixture_sample)
NEAR = {"weight": 0.4, "loc_1": -1.0, "scale_1": 0.7, "loc_2": 1.5, "scale_2": 1.2}
APART = {"weight": 0.4, "loc_1": -2.0, "scale_1": 1.0, "loc_2": 3.0, "scale_2": 1.5}
LINE = fj.Quadrature(-np.inf, np.inf, order=800)


class Case(NamedTuple):
    model: Any
    params: dict[str, float]
    entry: str  # the parameter whose own entry is named in the table
    reference: Any = None  # None for the closed form
    target: float = np.inf  # gain of "bartlett" at equal draws, infinite for exact
    at_equal_time: float = np.inf


CASES = {
    "gamma": Case(families.gamma, {"shape": 2.7, "rate": 1.4}, "shape"),
    "von Mises": Case(families.von_mises, {"loc": 0.7, "concentration": 1.9}, "concentration"),
    "Student-t": Case(families.student_t, {"df": 3.4, "loc": 0.7, "scale": 1.3}, "df"),
    "negative binomial": Case(
        families.negative_binomial, {"mean": 2.7, "size": 1.6}, "size", fj.Enumeration(np.arange(500)), 100, 20
    ),
    "Weibull": Case(families.weibull, {"shape": 1.8, "scale": 2.3}, "shape", None, 100, 20),
    "GEV": Case(families.gev, {"loc": 0.7, "scale": 1.3, "shape": 0.2}, "shape", None, 100, 20),
    "mixture, near": Case(mixture, NEAR, "weight", LINE, 100, 20),
    "mixture, apart": Case(mixture, APART, "weight", LINE, 100, 20),
    "logistic": Case(families.logistic, {"loc": 0.7, "scale": 1.3}, "scale", None, 0, 0),
    "skew normal": Case(families.skew_normal, {"loc": 0.7, "scale": 1.3, "shape": 2.1}, "shape", LINE, 0, 0),
}


def reference(case):
    """The matrix to be wrong about, and √(Iᵢᵢ Iⱼⱼ)."""
    information = fj.fisher_information(case.model, case.params, case.reference)
    matrix = np.asarray(information.matrix)
    unit = np.sqrt(np.outer(np.diag(matrix), np.diag(matrix)))
    assert np.all(np.asarray(information.entry_errors) < ROUNDING * unit), information
    return matrix, unit, information.names.index(case.entry)


def by(estimator, key, draws=DRAWS):
    if estimator == "outer, Sobol":
        return fj.QuasiMonteCarlo(key, POINTS, "outer")
    return fj.MonteCarlo(key, draws, estimator)


def matrix_of(case, expectation):
    return fj.fisher_information(case.model, case.params, expectation).matrix.block_until_ready()


def measure(case, contenders, repetitions):
    """Squared errors (repetitions, q, q) and median seconds of {name: key -> expectation}, in turns that rotate."""
    matrix, unit, _ = reference(case)
    errors, laps = ({name: [] for name in contenders} for _ in range(2))
    for expectation in contenders.values():
        matrix_of(case, expectation(jax.random.key(0)))
    order = itertools.cycle(list(itertools.permutations(contenders)))
    for key in jax.random.split(jax.random.key(1), repetitions):
        for name in next(order):
            seconds, estimate = harness.stopwatch(lambda name=name, key=key: matrix_of(case, contenders[name](key)))
            laps[name].append(seconds)
            errors[name].append(((np.asarray(estimate) - matrix) / unit) ** 2)
    return {name: np.array(values) for name, values in errors.items()}, harness.medians(laps)


def gains(errors, name):
    """Of each entry (q, q), infinite where the remaining error is rounding."""
    plain, left = errors["outer"].mean(0), errors[name].mean(0)
    return np.where(left < ROUNDING**2, np.inf, plain / left)


def written(gain):
    return "exact" if gain == np.inf else f"{gain:.1e}" if gain >= 1e5 else f"{gain:.3g}"


def verdict(measured, target):
    if target == 0:
        return "none set"
    return f"{'exact' if target == np.inf else f'≥ {target:g}'}: {'met' if measured >= target else '**missed**'}"


def rows(name, case, repetitions):
    estimators = ["outer", "hessian", "bartlett"] + (["outer, Sobol"] if case.model.quantile else [])
    errors, seconds = measure(case, {e: lambda key, e=e: by(e, key) for e in estimators}, repetitions)
    *_, entry = reference(case)
    for estimator in estimators:
        gain, faster = gains(errors, estimator), seconds["outer"] / seconds[estimator]
        values = [
            gain[entry, entry],
            np.diag(gain).min(),
            gain.min(),
            gain.max(),
            faster * gain.min(),
            faster * gain.max(),
        ]
        ours = estimator == "bartlett"
        yield [
            *(name, estimator, case.entry, *map(written, values[:4])),
            verdict(values[2], case.target) if ours else "",
            *(f"{1e3 * seconds[estimator]:.1f}", *map(written, values[4:])),
            verdict(values[4], case.at_equal_time) if ours else "",
        ]


HEAD = (
    *("estimator", "entry", "gain of it", "worst of diagonal", "worst entry", "best entry", "target"),
    *("ms", "worst, equal time", "best, equal time", "target"),
)


def at_equal_time(name, case, repetitions):
    """The outer product with as many draws as take the time of the control variates."""
    draws = DRAWS
    contenders = {"bartlett": lambda key: by("bartlett", key), "outer": lambda key: by("outer", key, draws)}
    for _ in range(2):
        seconds = time_of(case, contenders)
        draws = 2 * int(0.5 * draws * seconds["bartlett"] / seconds["outer"])
    errors, seconds = measure(case, contenders, repetitions)
    gain = gains(errors, "bartlett")
    print(
        f"{name}: outer with {draws} draws in {1e3 * seconds['outer']:.1f} ms, bartlett with {DRAWS} in "
        f"{1e3 * seconds['bartlett']:.1f} ms; error² lower {written(gain.min())} times (worst entry) to {written(gain.max())} times"
    )


def time_of(case, contenders):
    key = jax.random.key(0)
    calls = {name: functools.partial(matrix_of, case, expectation(key)) for name, expectation in contenders.items()}
    return harness.medians(harness.take_turns(calls, 10, warm=2))


def best_possible(name, params):
    """What the controls s and s sᵀ + H can gain with the best of all coefficients, by integrals over a fine grid."""
    names = sorted(params)
    theta, y = jnp.array([params[k] for k in names]), jnp.linspace(-40.0, 40.0, 20_001)
    density = lambda u, y: mixture_log_density(dict(zip(names, u, strict=True)), y)  # noqa: E731
    value, s, hessian = (
        np.asarray(jax.vmap(f, (None, 0))(theta, y)) for f in (density, jax.grad(density), jax.hessian(density))
    )
    root = np.sqrt(np.exp(value) * (y[1] - y[0]))[:, None]
    i, j = np.triu_indices(len(names))
    outer, bend = s[:, i] * s[:, j], hessian[:, i, j]
    controls = root * np.concatenate([s, outer + bend], axis=1)
    noise = root * (outer - np.sum(root**2 * outer, axis=0))
    controls = controls / np.maximum(np.linalg.norm(controls, axis=0), 1e-8)
    left = noise - controls @ np.linalg.lstsq(controls, noise, rcond=1e-12)[0]
    gain = np.sum(noise**2, axis=0) / np.sum(left**2, axis=0)
    few = ", ".join(f"{names[i[k]]} with {names[j[k]]} {gain[k]:.3g}" for k in np.argsort(gain)[:4])
    print(
        f"{name}: best coefficients gain {gain[i == j].min():.3g} or more on the diagonal; {np.sum(gain < 100)} of {len(gain)} "
        f"entries less than 100, least {few}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=200)
    repetitions = parser.parse_args().repetitions
    warnings.simplefilter("ignore", fj.InformationWarning)
    title = f"gains over the outer product, {DRAWS} draws ({POINTS} Sobol points), {repetitions} repetitions"
    harness.table(title, HEAD, [row for name, case in CASES.items() for row in rows(name, case, repetitions)])
    print("\nAs many draws as take the same time:")
    for name in ("Weibull", "mixture, near"):
        at_equal_time(name, CASES[name], repetitions)
    print("\nWhat these controls can do for the mixtures:")
    best_possible("mixture, near", NEAR)
    best_possible("mixture, apart", APART)


if __name__ == "__main__":
    main()
