"""Every family with two points that no symmetry favours, scipy's distribution, and where to integrate or what to list.

`FAMILIES[name]` is a `Family`. Its `scipy(params)` is what the family's own docstring says. Its `nodes(params)` is, by `kind`:
for "continuous" ones (lower, upper) of the support, either of which may be infinite, with `cuts(params)` the points between where
an integral should be cut (kinks, jumps, peaks); for "discrete" ones the values to list, which leave out less than 1e-15 of any
second moment of the score; `None` for others.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.special
import scipy.stats
import scipy.stats as st

from fisher_jax import families


class Family(NamedTuple):
    model: Any
    points: tuple[dict[str, Any], dict[str, Any]]
    scipy: Callable[[dict[str, Any]], Any] | None  # params -> frozen distribution
    kind: str
    support: str
    nodes: Callable[[dict[str, Any]], Any] | None
    cuts: Callable[[dict[str, Any]], tuple[float, ...]] = lambda params: ()
    closed_form: bool = True


def at_loc(params):
    return (params["loc"],)


def real(params):
    return (-np.inf, np.inf)


def positive(params):
    return (0.0, np.inf)


def unit(params):
    return (0.0, 1.0)


def listed(last):
    return lambda params: np.arange(last + 1)


def up_to_trials(params):
    return np.arange(int(params["trials"]) + 1)


def gev_support(params):
    end = params["loc"] - params["scale"] / params["shape"]
    return (end, np.inf) if params["shape"] > 0 else (-np.inf, end)


def _zero_inflated(p):
    counts = np.arange(200)
    chances = (1 - p["inflation"]) * st.poisson(p["rate"]).pmf(counts)
    chances[0] += p["inflation"]
    return st.rv_discrete(values=(counts, chances / chances.sum()))


def documented(name):
    """scipy's distribution as the family's docstring states it, as a function of the parameters."""
    (call,) = re.findall(r"In scipy: `(scipy\.stats\.\w+\(.*\))`", getattr(families, name).__doc__)
    return lambda params: eval(call, {"scipy": scipy, "exp": np.exp, "expit": scipy.special.expit, **params})


def family(
    name, first, second, kind, support, nodes=None, cuts=lambda params: (), closed_form=True, *, scipy=documented
):
    distribution = documented(name) if scipy is documented else scipy
    return name, Family(getattr(families, name), (first, second), distribution, kind, support, nodes, cuts, closed_form)


FAMILIES: dict[str, Family] = dict(
    [
        family(
            "normal",
            {"loc": 0.7, "scale": 1.3},
            {"loc": -31.0, "scale": 0.2},
            "continuous",
            "real",
            real,
            at_loc,
        ),
        family(
            "skew_normal",
            {"loc": 0.7, "scale": 1.3, "shape": 2.1},
            {"loc": -3.0, "scale": 0.4, "shape": -4.0},
            "continuous",
            "real",
            real,
            at_loc,
            False,
        ),
        family(
            "logistic",
            {"loc": 0.7, "scale": 1.3},
            {"loc": -31.0, "scale": 0.2},
            "continuous",
            "real",
            real,
            at_loc,
        ),
        family(
            "laplace",
            {"loc": 0.7, "scale": 1.3},
            {"loc": -31.0, "scale": 0.2},
            "continuous",
            "real",
            real,
            at_loc,
        ),
        family(
            "cauchy",
            {"loc": 0.7, "scale": 1.3},
            {"loc": -31.0, "scale": 0.2},
            "continuous",
            "real",
            real,
            at_loc,
        ),
        family(
            "student_t",
            {"df": 3.4, "loc": 0.7, "scale": 1.3},
            {"df": 21.0, "loc": -4.0, "scale": 0.2},
            "continuous",
            "real",
            real,
            at_loc,
        ),
        family(
            "gumbel",
            {"loc": 0.7, "scale": 1.3},
            {"loc": -31.0, "scale": 0.2},
            "continuous",
            "real",
            real,
            at_loc,
        ),
        family(
            "gev",
            {"loc": 0.7, "scale": 1.3, "shape": 0.23},
            {"loc": -3.0, "scale": 0.4, "shape": -0.31},
            "continuous",
            "real with an end",
            gev_support,
            at_loc,
        ),
        family(
            "generalized_pareto",
            {"scale": 1.3, "shape": 0.37},
            {"scale": 0.4, "shape": -0.28},
            "continuous",
            "not negative",
            lambda p: (0.0, np.inf if p["shape"] > 0 else -p["scale"] / p["shape"]),
        ),
        family(
            "lognormal",
            {"loc": 0.7, "scale": 1.3},
            {"loc": -2.0, "scale": 0.2},
            "continuous",
            "positive",
            positive,
        ),
        family(
            "gamma",
            {"shape": 2.7, "rate": 1.4},
            {"shape": 0.6, "rate": 0.03},
            "continuous",
            "positive",
            positive,
        ),
        family(
            "exponential",
            {"rate": 1.7},
            {"rate": 0.02},
            "continuous",
            "not negative",
            positive,
        ),
        family(
            "weibull",
            {"shape": 1.8, "scale": 2.3},
            {"shape": 0.7, "scale": 40.0},
            "continuous",
            "positive",
            positive,
        ),
        family(
            "log_logistic",
            {"scale": 2.3, "shape": 1.8},
            {"scale": 40.0, "shape": 4.7},
            "continuous",
            "positive",
            positive,
        ),
        family(
            "rayleigh",
            {"scale": 1.7},
            {"scale": 0.02},
            "continuous",
            "positive",
            positive,
        ),
        family(
            "half_normal",
            {"scale": 1.7},
            {"scale": 0.02},
            "continuous",
            "not negative",
            positive,
        ),
        family(
            "pareto",
            {"shape": 1.7, "minimum": 0.6},
            {"shape": 4.5, "minimum": 30.0},
            "continuous",
            "from minimum on",
            lambda p: (p["minimum"], np.inf),
        ),
        family(
            "inverse_gaussian",
            {"mean": 1.6, "shape": 2.9},
            {"mean": 0.7, "shape": 0.3},
            "continuous",
            "positive",
            positive,
        ),
        family(
            "beta",
            {"a": 2.6, "b": 1.4},
            {"a": 0.7, "b": 5.5},
            "continuous",
            "unit interval",
            unit,
        ),
        family(
            "von_mises",
            {"loc": 0.7, "concentration": 1.9},
            {"loc": -1.2, "concentration": 33.0},
            "continuous",
            "angle",
            lambda p: (p["loc"] - np.pi, p["loc"] + np.pi),
            at_loc,
        ),
        family("bernoulli", {"logit": 0.7}, {"logit": -2.9}, "discrete", "0 or 1", lambda p: np.arange(2)),
        family(
            "binomial",
            {"logit": 0.7, "trials": 12.0},
            {"logit": -2.9, "trials": 47.0},
            "discrete",
            "0 to trials",
            up_to_trials,
        ),
        family(
            "beta_binomial",
            {"probability": 0.3, "concentration": 2.4, "trials": 12.0},
            {"probability": 0.85, "concentration": 30.0, "trials": 47.0},
            "discrete",
            "0 to trials",
            up_to_trials,
            closed_form=False,
        ),
        family(
            "geometric",
            {"probability": 0.3},
            {"probability": 0.85},
            "discrete",
            "counts from 1",
            lambda p: np.arange(1, 251),
        ),
        family(
            "poisson",
            {"rate": 3.7},
            {"rate": 31.0},
            "discrete",
            "counts",
            listed(150),
        ),
        family(
            "zero_inflated_poisson",
            {"inflation": 0.3, "rate": 2.2},
            {"inflation": 0.1, "rate": 14.0},
            "discrete",
            "counts",
            listed(150),
            scipy=_zero_inflated,
        ),
        family(
            "negative_binomial",
            {"mean": 2.7, "size": 1.6},
            {"mean": 6.1, "size": 19.0},
            "discrete",
            "counts",
            listed(250),
        ),
        family(
            "categorical",
            {"logits": np.array([0.2, -0.7, 1.1])},
            {"logits": np.array([0.0, 3.0, -2.0])},
            "discrete",
            "0 to K - 1",
            lambda p: np.arange(3),
            scipy=None,
        ),
        family(
            "ordered_logit",
            {"loc": 0.4, "cutpoints": np.array([-0.7, 1.9])},
            {"loc": -2.0, "cutpoints": np.array([-3.0, 1.5])},
            "discrete",
            "0 to K - 1",
            lambda p: np.arange(3),
            scipy=None,
        ),
        family(
            "ordered_probit",
            {"loc": 0.4, "cutpoints": np.array([-0.7, 1.9])},
            {"loc": -2.0, "cutpoints": np.array([-3.0, 1.5])},
            "discrete",
            "0 to K - 1",
            lambda p: np.arange(3),
            scipy=None,
        ),
        family(
            "dirichlet",
            {"concentration": np.array([1.2, 3.4, 0.7])},
            {"concentration": np.array([9.0, 2.5, 20.0])},
            "multivariate",
            "simplex",
        ),
        family(
            "multivariate_normal",
            {"loc": np.array([0.7, -1.2]), "covariance": np.array([[1.3, 0.4], [0.4, 0.6]])},
            {"loc": np.array([-3.0, 8.0]), "covariance": np.array([[0.2, -0.5], [-0.5, 4.0]])},
            "multivariate",
            "vectors",
        ),
        family(
            "censored_exponential",
            {"rate": 1.7, "limit": 0.5},
            {"rate": 0.02, "limit": 90.0},
            "multivariate",
            "time and event",
            scipy=None,
        ),
    ]
)

# Of what these are made the others are made, too, or densities of `densities.py` are: where each takes long to compile, the
# others are in the exhaustive run.
OF_DIFFERENT_PARTS = ("normal", "skew_normal", "student_t", "gev", "inverse_gaussian", "von_mises")
OF_DIFFERENT_PARTS += ("poisson", "geometric", "categorical", "ordered_logit", "censored_exponential")
