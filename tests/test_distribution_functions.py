"""Distribution functions of the families against mpmath with 40 digits: values in both tails, two derivatives, quantiles.

`ROWS` has one or more rows for each family: parameters, values of y inside the support, and a reference in mpmath that returns
log P(Y ≤ y) and log P(Y > y). References are written from the definition, not from the formula under test.
"""

import functools
import itertools
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

import fisher_jax as fj
from fisher_jax import families

mp.mp.dps = 40
TINY = -60.0  # log of a probability from which on the looser tolerance holds, 1e-26


class Row(NamedTuple):
    family: str
    params: dict[str, Any]
    y: tuple[float, ...]  # inside the support, in both tails
    reference: Callable[..., tuple[Any, Any]]  # (y, **params) of mpmath -> log P(Y ≤ y), log P(Y > y)
    below: tuple[float, ...] = (-np.inf,)  # where P(Y ≤ y) is zero
    above: tuple[float, ...] = (np.inf,)  # where P(Y > y) is zero
    tails: tuple[float, float] = (1e-300, 1.0 - 2.0**-53)  # the outermost uniform numbers whose quantiles are tested
    stored: bool = False  # whether the reference takes so long that its derivatives are read from a file


# References -----------------------------------------------------------------------------------------------------------


def logs(lower, upper):
    """The logarithms of two probabilities that sum to one, that of the larger from the smaller one; −inf of zero."""
    if lower > upper:
        return logs(upper, lower)[::-1]
    return (mp.log(lower) if lower > 0 else mp.mpf("-inf")), mp.log1p(-lower)


def listed(chances, y):
    """Of a discrete distribution with these chances of 0, 1, …, K − 1."""
    cut = int(mp.floor(y)) + 1
    return logs(mp.fsum(chances[:cut]) / mp.fsum(chances), mp.fsum(chances[cut:]) / mp.fsum(chances))


def integrated(density, low, y, high):
    """From a density by quadrature, each tail by itself; `low` and `high` may be infinite."""
    return logs(mp.quad(density, [low, y]), mp.quad(density, [y, high]))


def of_hazard(h):
    """Of a distribution with P(Y > y) = e^{−h}."""
    return logs(-mp.expm1(-h), mp.exp(-h))[0], -h


def normal(y, loc, scale):
    z = (y - loc) / scale
    return logs(mp.ncdf(z), mp.ncdf(-z))


def quadrature(density, unit, parts):
    """log P of both sides by quadrature, whose errors are relative to the unit, not to one."""
    return logs(*(unit * mp.quad(lambda t: density(t) / unit, part) for part in parts))


def skew_normal(y, loc, scale, shape):
    z = (y - loc) / scale

    def density(t):
        return 2 * mp.npdf(t) * mp.ncdf(shape * t)

    # Beyond a distance of 16 there is less than e^−128 of either tail; the density bends sharply at zero.
    bends = (-mp.mpf("0.2"), mp.mpf(0), mp.mpf("0.2"))
    parts = [sorted({z, z + 3 * s, z + 16 * s, *(t for t in bends if 0 < s * (t - z) < 16)}) for s in (-1, 1)]
    return quadrature(density, density(z), parts)


def logistic(y, loc, scale):
    z = (y - loc) / scale
    return logs(1 / (1 + mp.exp(-z)), 1 / (1 + mp.exp(z)))


def laplace(y, loc, scale):
    small = mp.exp(-abs(y - loc) / scale) / 2
    return logs(small, 1 - small) if y < loc else logs(1 - small, small)


def cauchy(y, loc, scale):
    with mp.workdps(150):  # for differences at a distance of 1e31
        z = (y - loc) / scale
        return logs(*(mp.atan2(1, x) / mp.pi for x in (-z, z)))


def gev(y, loc, scale, shape=None):
    z = (y - loc) / scale
    t = mp.exp(-z) if shape is None else (1 + shape * z) ** (-1 / shape)
    return of_hazard(t)[::-1]


def generalized_pareto(y, scale, shape):
    return of_hazard(mp.log1p(shape * y / scale) / shape)


def inverse_gaussian(y, mean, shape):
    with mp.workdps(120):  # the second tail is a difference
        a, b = (mp.sqrt(shape / y) * (y / mean + sign) for sign in (-1, 1))
        second = mp.exp(2 * shape / mean) * mp.ncdf(-b)
        return logs(mp.ncdf(a) + second, mp.ncdf(-a) - second)


def von_mises(y, loc, concentration):
    def density(t):
        return mp.exp(concentration * (mp.cos(t - loc) - 1))

    turns = (loc - mp.pi, loc, loc + mp.pi)
    ends = [[-mp.pi, *(t for t in turns if -mp.pi < t < y), y], [y, *(t for t in turns if y < t < mp.pi), mp.pi]]
    log_total = mp.log(2 * mp.pi * mp.besseli(0, concentration)) - concentration
    return quadrature(lambda t: density(t) / mp.exp(log_total), density(y) / mp.exp(log_total), ends)


def category(ends, log_cdf):
    """Of a latent variable cut at these ends."""

    def reference(y):
        k = int(mp.floor(y))
        return log_cdf(ends[k]) if k < len(ends) else (mp.mpf(0), mp.mpf("-inf"))

    return reference


def ordered_logit(y, loc, cutpoints):
    return category([c - loc for c in cutpoints], lambda x: logistic(x, 0, 1))(y)


def ordered_probit(y, loc, cutpoints):
    return category([c - loc for c in cutpoints], lambda x: normal(x, 0, 1))(y)


# Rows -----------------------------------------------------------------------------------------------------------------

NORMAL_TAILS = (
    -11.7,
    -3.2,
    -0.4,
    0.0,
    0.9,
    2.8,
    11.6,
)  # of z = (y − loc) / scale; the outermost have probability 1e-31
EXPONENTIAL_TAILS = (-73.0, -3.0, 0.0, 0.4, 4.0, 71.0)
NEGATIVE, OVER = (-np.inf, -1.0, -1e-300, 0.0), (np.inf,)
FROM_ZERO = (-np.inf, -1.0, -0.5)


def shifted(loc, scale, z=NORMAL_TAILS):
    return tuple(loc + scale * x for x in z)


ROWS = [
    Row("normal", {"loc": 0.7, "scale": 1.3}, shifted(0.7, 1.3), normal),
    Row("normal", {"loc": -31.0, "scale": 0.2}, shifted(-31.0, 0.2, (-38.0, -20.0, -0.7, 0.7, 8.5, 37.0)), normal),
    Row(
        "skew_normal",
        {"loc": 0.7, "scale": 1.3, "shape": 2.1},
        shifted(0.7, 1.3, (-4.9, -1.2, -0.3, 0.2, 2.0, 11.6)),
        skew_normal,
        stored=True,
    ),
    Row(
        "skew_normal", {"loc": 0.0, "scale": 1.0, "shape": -0.4}, (-11.6, -2.0, 0.3, 1.7, 8.0), skew_normal, stored=True
    ),
    Row(
        "skew_normal",
        {"loc": 0.0, "scale": 1.0, "shape": 40.0},
        (-0.2, -0.01, 0.01, 0.5, 11.0),
        skew_normal,
        stored=True,
    ),
    Row("logistic", {"loc": 0.7, "scale": 1.3}, shifted(0.7, 1.3, EXPONENTIAL_TAILS), logistic),
    Row("laplace", {"loc": 0.7, "scale": 1.3}, shifted(0.7, 1.3, (-73.0, -3.0, 0.1, 0.4, 4.0, 71.0)), laplace),
    Row("cauchy", {"loc": 0.7, "scale": 1.3}, (-1e31, -4.0, 0.7, 1.0, 9.0, 1e30), cauchy),
    Row("gumbel", {"loc": 0.7, "scale": 1.3}, shifted(0.7, 1.3, (-4.3, -1.0, 0.0, 2.0, 71.0)), gev),
    Row(
        *("gev", {"loc": 0.7, "scale": 1.3, "shape": 0.23}, shifted(0.7, 1.3, (-2.73, -1.0, 0.1, 2.0, 5e7)), gev),
        below=(-np.inf, -9.0, -4.96),
    ),
    Row(
        *("gev", {"loc": -3.0, "scale": 0.4, "shape": -0.31}, shifted(-3.0, 0.4, (-9.0, -1.0, 0.1, 2.0, 3.22)), gev),
        above=(np.inf, 9.0, -1.7),
    ),
    Row("gev", {"loc": 0.0, "scale": 1.0, "shape": -1e-6}, (-4.3, -1.0, 0.1, 2.0, 71.0), gev),
    Row(
        *("generalized_pareto", {"scale": 1.3, "shape": 0.37}, (1e-31, 0.01, 1.0, 5.0, 4e11), generalized_pareto),
        below=NEGATIVE,
    ),
    Row(
        *("generalized_pareto", {"scale": 0.4, "shape": -0.28}, (1e-31, 0.01, 0.3, 1.0, 1.42), generalized_pareto),
        *(NEGATIVE, (np.inf, 1.5, 1.43)),
    ),
    Row(
        "lognormal",
        {"loc": 0.7, "scale": 1.3},
        tuple(np.exp(shifted(0.7, 1.3))),
        lambda y, **p: normal(mp.log(y), **p),
        NEGATIVE,
    ),
    Row("exponential", {"rate": 1.7}, (1e-31, 0.01, 0.4, 2.0, 41.0), lambda y, rate: of_hazard(rate * y), NEGATIVE),
    Row(
        *("weibull", {"shape": 1.8, "scale": 2.3}, (1e-17, 0.5, 2.0, 4.0, 25.0)),
        *(lambda y, shape, scale: of_hazard((y / scale) ** shape), NEGATIVE),
    ),
    Row(
        *("log_logistic", {"scale": 2.3, "shape": 1.8}, (2e-17, 0.5, 2.0, 4.0, 2e17)),
        *(lambda y, shape, scale: logistic(mp.log(y / scale), 0, 1 / shape), NEGATIVE),
    ),
    Row(
        "rayleigh",
        {"scale": 1.7},
        (1e-15, 0.5, 2.0, 4.0, 20.0),
        lambda y, scale: of_hazard((y / scale) ** 2 / 2),
        NEGATIVE,
    ),
    Row(
        *("half_normal", {"scale": 1.7}, (1e-30, 0.5, 2.0, 4.0, 20.0)),
        *(lambda y, scale: logs(mp.erf(y / scale / mp.sqrt(2)), mp.erfc(y / scale / mp.sqrt(2))), NEGATIVE),
    ),
    Row(
        *("pareto", {"shape": 1.7, "minimum": 0.6}, (0.6000000001, 0.61, 1.0, 5.0, 1e18)),
        *(lambda y, shape, minimum: of_hazard(shape * mp.log(y / minimum)), (-np.inf, 0.0, 0.5), OVER, (1e-12, 1.0)),
    ),
    Row("inverse_gaussian", {"mean": 1.6, "shape": 2.9}, (0.02, 0.5, 1.6, 3.0, 124.0), inverse_gaussian, NEGATIVE),
    Row("inverse_gaussian", {"mean": 0.7, "shape": 0.3}, (0.002, 0.1, 0.6, 3.0, 229.0), inverse_gaussian, NEGATIVE),
    Row("inverse_gaussian", {"mean": 50.0, "shape": 0.05}, (4e-4, 0.1, 49.0, 51.0, 7e6), inverse_gaussian, NEGATIVE),
    Row(
        *("von_mises", {"loc": 0.7, "concentration": 1.9}, (-3.1, -2.0, 0.0, 0.7, 2.5, 3.1), von_mises),
        *((-np.inf, -4.0), (np.inf, 3.2), (1e-12, 1.0 - 1e-12), True),
    ),
    Row(
        *("von_mises", {"loc": -0.2, "concentration": 36.0}, (-3.1, -2.0, -0.3, 0.2, 2.5, 3.1), von_mises),
        *((-np.inf, -4.0), (np.inf, 3.2), (1e-12, 1.0 - 1e-12), True),
    ),
    Row(
        *("von_mises", {"loc": 3.0, "concentration": 36.0}, (-3.1, -2.0, -0.3, 2.5, 3.1), von_mises),
        *((-np.inf, -4.0), (np.inf, 3.2), (1e-12, 1.0 - 1e-12), True),
    ),
    Row(
        *("bernoulli", {"logit": 0.7}, (0.0, 0.5), lambda y, logit: listed([1, mp.exp(logit)], y)),
        *(FROM_ZERO, (1.0, 1.5, np.inf)),
    ),
    Row(
        *("bernoulli", {"logit": -71.0}, (0.0,), lambda y, logit: listed([1, mp.exp(logit)], y)),
        *(FROM_ZERO, (1.0, 1.5, np.inf)),
    ),
    Row(
        *(
            "categorical",
            {"logits": (0.2, -0.7, 1.1)},
            (0.0, 1.0, 1.5),
            lambda y, logits: listed([mp.exp(x) for x in logits], y),
        ),
        *(FROM_ZERO, (2.0, 2.5, np.inf)),
    ),
    Row(
        *(
            "categorical",
            {"logits": (0.0, 80.0, -2.0)},
            (0.0, 1.0),
            lambda y, logits: listed([mp.exp(x) for x in logits], y),
        ),
        *(FROM_ZERO, (2.0, np.inf)),
    ),
    Row(
        "ordered_logit",
        {"loc": 0.4, "cutpoints": (-0.7, 1.9)},
        (0.0, 0.5, 1.0),
        ordered_logit,
        FROM_ZERO,
        (2.0, 2.5, np.inf),
    ),
    Row("ordered_logit", {"loc": 70.0, "cutpoints": (-0.7, 1.9)}, (0.0, 1.0), ordered_logit, FROM_ZERO, (2.0, np.inf)),
    Row(
        "ordered_probit",
        {"loc": 0.4, "cutpoints": (-0.7, 1.9)},
        (0.0, 0.5, 1.0),
        ordered_probit,
        FROM_ZERO,
        (2.0, 2.5, np.inf),
    ),
    Row(
        "ordered_probit", {"loc": -11.0, "cutpoints": (-0.7, 1.9)}, (0.0, 1.0), ordered_probit, FROM_ZERO, (2.0, np.inf)
    ),
    Row(
        *("geometric", {"probability": 0.3}, (1.0, 2.0, 3.5, 10.0, 200.0)),
        *(lambda y, probability: of_hazard(-mp.floor(y) * mp.log1p(-probability)), (-np.inf, -1.0, 0.0, 0.9)),
    ),
    Row(
        *("geometric", {"probability": 1e-4}, (1.0, 2.0, 3.5)),
        *(lambda y, probability: of_hazard(-mp.floor(y) * mp.log1p(-probability)), (-np.inf, -1.0, 0.0, 0.9)),
    ),
]

IDS = [f"{row.family}-{k}" for k, row in enumerate(ROWS)]


# What is tested -------------------------------------------------------------------------------------------------------


def is_discrete(row):
    return getattr(families, row.family).discrete


def entries(params):
    """The keys of the single numbers in the parameters: (name, place), place None for a number."""
    return [(k, i) for k, v in params.items() for i in (range(len(v)) if np.ndim(v) else [None])]


def rebuild(params, numbers, stack):
    """Parameters like these from their single numbers."""
    parts = iter(numbers)
    return {k: stack([next(parts) for _ in v]) if np.ndim(v) else next(parts) for k, v in params.items()}


def flat(params):
    return np.concatenate([np.ravel(v) for v in params.values()])


@functools.cache
def compiled(name, dtype=float):
    """Values (2,), gradients (2, q) and Hessians (2, q, q) of both functions in (y, parameters), for several rows at once."""
    family = getattr(families, name)
    example = next(row.params for row in ROWS if row.family == name)

    def both(x):
        params = rebuild(example, x[1:], jnp.stack)
        return jnp.stack([family.log_cdf(params, x[0]), family.log_survival(params, x[0])])

    def slopes(x):
        slope, value = jax.jacfwd(lambda x: (both(x),) * 2, has_aux=True)(x)
        return slope, (value, slope)

    def at(x):
        hessian, (value, slope) = jax.jacfwd(slopes, has_aux=True)(x)
        return value, slope, hessian

    return jax.jit(jax.vmap(at))


def evaluate(row, y, dtype=float):
    """The same at several y of one row. All rows of a family and numbers of y up to 16 share one compilation."""
    x = np.concatenate([np.asarray(y)[:, None], np.broadcast_to(flat(row.params), (len(y), flat(row.params).size))], 1)
    padded = np.resize(x, (16, x.shape[1])).astype(dtype)
    return [np.asarray(part)[: len(y)] for part in compiled(row.family)(padded)]


def reference(row, *numbers):
    y, *numbers = numbers
    return row.reference(y, **rebuild(row.params, numbers, list))


def differentiate(function, x, digits=70, distance=20):
    """Values, first and second derivatives of both sides, by differences over 1e-20 of x in 70 digits, more where x is small."""
    digits += int(2 * max(0, -mp.log10(abs(x) or 1)))
    with mp.workdps(digits):
        step = (abs(x) or 1) * mp.mpf(10) ** -distance
        here, up, down = function(x), function(x + step), function(x - step)
        rises, falls = ([p - q for p, q in zip(*pair, strict=True)] for pair in ((up, here), (here, down)))
        first = [(rise + fall) / (2 * step) for rise, fall in zip(rises, falls, strict=True)]
        second = [(rise - fall) / step**2 for rise, fall in zip(rises, falls, strict=True)]
    return here, first, second


STORED = pathlib.Path(__file__).with_name("distribution_functions.json")


def key(row):
    return repr((row.family, row.params, row.y))


@functools.cache
def stored():
    return json.loads(STORED.read_text())


def store():
    """Compute what is stored anew: `PYTHONPATH=. python tests/test_distribution_functions.py`."""
    numbers = {key(row): [part.tolist() for part in compute(row)] for row in ROWS if row.stored}
    STORED.write_text(json.dumps(numbers, indent=1))


def expected(index):
    """Reference values, gradients and second derivatives along each parameter, of a row."""
    row = ROWS[index]
    return [np.array(part) for part in stored()[key(row)]] if row.stored else compute(row)


def compute(row):
    values, slopes, curvatures = [], [], []
    for y in row.y:
        x = [mp.mpf(float(v)) for v in (y, *flat(row.params))]
        values.append(reference(row, *x))
        slope, curvature = [], []
        for k in range(len(x)):
            if k == 0 and is_discrete(row):
                slope.append((mp.mpf(0), mp.mpf(0)))
                curvature.append((mp.mpf(0), mp.mpf(0)))
                continue

            _, first, second = differentiate(
                lambda t, k=k, x=x: reference(row, *x[:k], t, *x[k + 1 :]), x[k], *((45, 12) if row.stored else ())
            )
            slope.append(first)
            curvature.append(second)
        slopes.append(slope)
        curvatures.append(curvature)
    numbers = (
        np.array([[float(v) for v in np.ravel(part)] for part in parts]) for parts in (values, slopes, curvatures)
    )
    first, second, third = numbers
    n = len(row.y)
    return first, second.reshape(n, -1, 2).swapaxes(1, 2), third.reshape(n, -1, 2).swapaxes(1, 2)


def assert_close(received, right, tolerance, beside):
    """Relative errors, of numbers that are small beside others of the same point relative to these times 1e-4."""
    error = np.abs(received - right)
    limit = tolerance * (np.abs(right) + 1e-4 * beside)
    assert np.all(np.isfinite(received))
    assert np.all((error <= limit) | (error < 1e-290)), (received, right, error / np.maximum(np.abs(right), 1e-300))


@pytest.mark.parametrize("index", range(len(ROWS)), ids=IDS)
def test_both_probabilities_and_their_derivatives_are_those_of_forty_digits(index):
    row = ROWS[index]
    value, slope, hessian = evaluate(row, row.y)
    right, right_slope, right_curvature = expected(index)
    # The error of a logarithm is the relative error of the probability.
    limit = np.where(right > TINY, 1e-12, 1e-10)
    assert np.all((np.abs(value - right) <= limit) | (value == right)), (value, right, value - right)
    held = np.isfinite(right)
    beside = np.max(np.abs(right_slope), axis=2, keepdims=True)
    assert_close(np.where(held[:, :, None], slope, right_slope), right_slope, 1e-10, beside)
    beside = beside**2 + 1e-2 * beside  # second derivatives may cancel
    curvature = np.diagonal(hessian, axis1=2, axis2=3)
    beside = beside + np.max(np.abs(right_curvature), axis=2, keepdims=True)
    assert_close(np.where(held[:, :, None], curvature, right_curvature), right_curvature, 1e-8, beside)
    np.testing.assert_allclose(hessian, hessian.swapaxes(2, 3), rtol=1e-9, atol=1e-9 * np.max(np.abs(hessian)))


@pytest.mark.parametrize("index", range(len(ROWS)), ids=IDS)
def test_outside_the_support_probabilities_are_zero_and_one_and_derivatives_finite(index):
    row = ROWS[index]
    for outside, zero in ((row.below, 0), (row.above, 1)):
        value, slope, hessian = evaluate(row, outside)
        np.testing.assert_array_equal(value[:, zero], -np.inf)
        np.testing.assert_array_equal(value[:, 1 - zero], 0.0)
        finite = np.isfinite(outside)
        assert np.all(np.isfinite(slope[finite]))
        assert np.all(np.isfinite(hessian[finite]))
    assert np.all(np.isnan(evaluate(row, [np.nan])[0]))


# Of families that share their functions in float32, normal tails, powers and exponentials, some in every run.
IN_EVERY_RUN = ("normal", "generalized_pareto", "gev", "inverse_gaussian", "ordered_logit", "geometric")


@pytest.mark.parametrize(
    "index",
    [
        pytest.param(k, id=IDS[k], marks=() if row.family in IN_EVERY_RUN else pytest.mark.exhaustive)
        for k, row in enumerate(ROWS)
    ],
)
def test_float32_is_right_to_its_rounding(index):
    row = ROWS[index]
    rounded = [np.asarray(v, np.float32).astype(float) for v in (row.y, flat(row.params))]
    params = rebuild(row.params, rounded[1], np.array)
    double = evaluate(row._replace(params=params), rounded[0])
    value, slope, hessian = evaluate(row._replace(params=params), rounded[0], np.float32)
    assert value.dtype == np.float32
    # a rounding error of z is one of z d log P / dz in the logarithm
    np.testing.assert_allclose(value, double[0], rtol=2e-6, atol=1e-5)
    assert np.all(np.isfinite(slope[np.abs(double[1]) < 1e36]))
    # Second derivatives of log P have the square of P in their denominators, which float32 cannot hold below 1e-19.
    assert np.all(np.isfinite(hessian[(double[0] > -40.0)]))


LEVELS = (1e-300, 1e-30, 1e-12, 0.03, 0.5, 0.5000001, 0.97, 1.0 - 1e-12, 1.0 - 2.0**-53)


@functools.cache
def compiled_quantile(name):
    return jax.jit(jax.vmap(getattr(families, name).quantile, in_axes=(0, None)))


def quantiles(row, levels):
    padded = np.resize(np.asarray(levels, float), 16)
    params = {k: np.asarray(v, float) for k, v in row.params.items()}
    return np.asarray(compiled_quantile(row.family)(padded, params))[: len(levels)]


@pytest.mark.parametrize("index", [k for k, row in enumerate(ROWS) if row.stored], ids=lambda k: IDS[k])
def test_the_quantile_of_a_stored_probability_is_its_y(index):
    row = ROWS[index]
    right, slopes, _ = expected(index)
    lower = right[:, 0] < right[:, 1]
    levels = np.where(lower, np.exp(right[:, 0]), -np.expm1(right[:, 1]))
    held = levels < 1 - 1e-9
    slope = np.where(lower, slopes[:, 0, 0], slopes[:, 1, 0])
    # A level is rounded, which near one is a relative error of its distance from one.
    rounding = np.where(lower, 1e-15 * (1 - right[:, 0]), 1e-16 * np.exp(-right[:, 1]) + 1e-14)
    error = np.abs(quantiles(row, levels) - row.y)
    assert np.sum(held) >= 3
    assert np.all(error[held] <= (8e-16 * np.abs(row.y) + 4 * rounding / np.abs(slope))[held])
    assert np.all(np.isfinite(quantiles(row, [1e-300, 1 - 2.0**-53])))


@pytest.mark.parametrize(
    "index", [k for k, row in enumerate(ROWS) if not (is_discrete(row) or row.stored)], ids=lambda k: IDS[k]
)
def test_the_quantile_is_where_the_distribution_function_reaches_its_level(index):
    row = ROWS[index]
    levels = [u for u in LEVELS if row.tails[0] <= u <= row.tails[1]]
    for u, q in zip(levels, quantiles(row, levels), strict=True):
        side = int(u > 0.5)
        level = mp.log(mp.mpf(u)) if side == 0 else mp.log(1 - mp.mpf(u))
        x = [mp.mpf(float(v)) for v in (q, *flat(row.params))]
        here, slope, _ = differentiate(lambda t, x=x: reference(row, t, *x[1:]), x[0])
        error, slope = here[side] - level, slope[side]
        # A rounding error of y, or of its distance from a location, is magnified by the slope.
        size = abs(x[0]) + max(map(abs, x[1:]))
        assert abs(error) < 1e-13 * (1 - level) + 4e-16 * size * abs(slope), (u, q, error)


@pytest.mark.parametrize("index", [k for k, row in enumerate(ROWS) if is_discrete(row)], ids=lambda k: IDS[k])
def test_the_quantile_of_a_count_is_the_least_y_whose_probability_reaches_the_level(index):
    row = ROWS[index]
    whole = sorted({float(np.floor(y)) for y in row.y})
    levels, right = [], []
    x = [mp.mpf(float(v)) for v in flat(row.params)]
    for y in whole:
        lower, upper = reference(row, mp.mpf(y), *x)
        at = float(mp.exp(lower)) if lower < -0.7 else float(1 - mp.exp(upper))
        # A rounding error of the logarithm of a probability is magnified by its size.
        step = 2e-15 + 4e-16 * abs(np.log(at))
        for u in (at * (1 - step), at * (1 + step)):
            if 1e-300 < u < 1:
                levels.append(u)
    for u in levels:
        right.append(
            next(y for y in itertools.count(int(whole[0])) if mp.exp(reference(row, mp.mpf(y), *x)[0]) >= mp.mpf(u))
        )
    received = [q for k in range(0, len(levels), 16) for q in quantiles(row, levels[k : k + 16])]
    np.testing.assert_array_equal(received, right)
    assert np.all(np.isfinite(quantiles(row, [1e-300, 5e-324, 1 - 2.0**-53])))


def test_multivariate_families_have_no_distribution_function():
    for name in ("dirichlet", "multivariate_normal"):
        with pytest.raises(ValueError, match="no distribution function"):
            fj.models.model.check_distribution_function(getattr(families, name))


if __name__ == "__main__":
    store()
