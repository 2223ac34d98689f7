"""Calls made at random with wrong arguments, and how many of them end in an error that is not fisher_jax's own.

A program of its own, run by `test_wrong_calls.py`: the tests' run-time checks of types would hide what a user meets.
`python tests/wrong_calls.py 25` prints, as JSON, how many of 25 calls of each entry point were bad, and examples.
"""

import functools
import inspect
import json
import pathlib
import random
import re
import sys
import tempfile
import traceback
import warnings
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.scipy.stats import norm

import fisher_jax as fj

PACKAGE = str(pathlib.Path(fj.__file__).parent)
Y = np.random.default_rng(0).normal(size=12)
X = np.linspace(0.0, 1.0, 12)
START = {"loc": 0.0, "scale": 1.0}
KEY = jax.random.key(0)


def density(params, y):
    return norm.logpdf(y, params["loc"], params["scale"])


MODEL = fj.Model(density, constraints={"scale": fj.positive}, sample=fj.families.normal.sample)
STRAIGHT = fj.linked(fj.families.normal, lambda p, z: {"loc": p["a"] + p["b"] * z, "scale": jnp.ones(())})


@functools.cache
def fitted():
    return fj.fit(MODEL, START, Y)


@functools.cache
def line():
    return fj.fit(STRAIGHT, {"a": 0.0, "b": 1.0}, Y, given=X)


@functools.cache
def pairs():
    def predictor(params, effects, z):
        return {"loc": params["a"] + z + effects, "scale": 1.0}

    model = fj.mixed(fj.families.normal, predictor, 0.0)
    shifted = Y.reshape(6, 2) + np.array([[-3.0], [1.0], [2.0], [-1.0], [0.0], [1.0]])
    return fj.fit(model, {"a": 0.0, "sd": 1.0}, shifted, given=X.reshape(6, 2))


@functools.cache
def null():
    return fj.fit(fj.Model(density, constraints={"scale": fj.positive, "loc": fj.fixed}), START, Y)


@functools.cache
def excesses():
    return fj.fit(fj.families.exponential, {"rate": 1.0}, np.abs(Y))


@functools.cache
def mixed_fit():
    return fj.fit(fj.mixture(fj.families.normal, 2, ordered="loc", shared="scale"), None, Y)


@functools.cache
def several():
    return fj.fit_batch(MODEL, START, np.stack([Y, 2 * Y]))


class Broken:
    """A bijector that returns nothing."""

    def forward(self, free):
        return None

    def inverse(self, value):
        return None


@functools.cache
def folder():
    return tempfile.mkdtemp()


def first(params):
    return params["loc"]


def constrained(constraints, params):
    """What a constraint meets: a model's checks and those of a point."""
    return fj.log_likelihood(fj.Model(density, constraints=constraints), params, Y)


# Each entry point with arguments that are right. Those that are most expensive to get right come with few replicates.
RIGHT = {
    "constraints": lambda: (constrained, {"constraints": {"scale": fj.positive}, "params": START}),
    "interval": lambda: (fj.interval, {"low": 0.0, "high": 1.0}),
    "MonteCarlo": lambda: (fj.MonteCarlo, {"key": KEY, "num_samples": 8, "estimator": "outer", "fallback": None}),
    "Quadrature": lambda: (fj.Quadrature, {"lower": 0.0, "upper": 1.0, "order": 16, "points": (0.5,)}),
    "by_group": lambda: (fj.by_group, {"table": {"clinic": [1, 1, 2], "y": np.arange(3.0)}, "by": "clinic"}),
    "marginal": lambda: (
        fj.marginal,
        {"joint": lambda params, b, y: norm.logpdf(y, params + b) + norm.logpdf(b), "effects": 0.0, "nodes": 3}
        | dict.fromkeys(("sample", "constraints", "initial", "names")),
    ),
    "mixed": lambda: (
        fj.mixed,
        {
            "family": fj.families.normal,
            "predictor": lambda p, b, z: {"loc": p["a"] + b * z, "scale": 1.0},
            "effects": 0.0,
        }
        | {"correlated": False, "nodes": 1, "constraints": {"a": fj.positive}, "initial": None, "names": None},
    ),
    "mixture": lambda: (
        fj.mixture,
        {"components": fj.families.normal, "number": 2, "ordered": "loc", "shared": ("scale",)}
        | dict.fromkeys(("weights", "constraints", "initial")),
    ),
    "joint": lambda: (fj.joint, {"models": {"a": fj.families.normal, "b": MODEL}, "shared": "loc"}),
    "joint_fit": lambda: (
        fj.joint_fit,
        {"models": {"a": MODEL, "b": MODEL}, "start": START, "data": {"a": Y, "b": Y}, "shared": ("loc", "scale")}
        | {"missing": "raise"}
        | dict.fromkeys(("given", "weights", "optimizer", "tolerance", "max_steps", "starts", "key")),
    ),
    "from_distribution": lambda: (
        fj.from_distribution,
        {"make": lambda params: params, "parameters": None, "example": None, "constraints": {"scale": fj.positive}}
        | {"discrete": None, "initial": None},
    ),
    "component_probabilities": lambda: (fj.component_probabilities, {"fit": mixed_fit()}),
    "fit": lambda: (
        fj.fit,
        {"model": MODEL, "start": START, "data": Y}
        | {"missing": "raise"}
        | dict.fromkeys(("given", "weights", "optimizer", "tolerance", "max_steps", "starts", "key")),
    ),
    "formula": lambda: (
        fj.formula,
        {"text": "y ~ x", "family": fj.families.normal, "frame": {"x": X, "y": Y}, "weights": None, "offset": None}
        | {"exposure": None, "event": None, "links": None, "missing": "raise", "scale": "~ x"},
    ),
    "fit_batch": lambda: (
        fj.fit_batch,
        {"model": MODEL, "start": START, "data": np.stack([Y, Y])}
        | {"start_axis": None, "data_axis": 0, "optimizer": None, "tolerance": None, "max_steps": None}
        | {"covariances": ("observed",), "retry": True, "float64_finish": False, "engine": None, "devices": 1}
        | {"num_lanes": None, "given": None, "given_axis": None, "weights": None, "weights_axis": 0, "progress": False}
        | {"by": None},
    ),
    "fit_stream": lambda: (
        fj.fit_stream,
        {"model": MODEL, "start": START, "source": np.stack([Y, Y])}
        | {"sink": pathlib.Path(tempfile.mkdtemp(dir=folder())) / "results.zarr", "start_axis": None}
        | {"covariances": ("observed",), "retry": True, "float64_finish": False, "devices": 1, "block": None}
        | {"sink_format": None, "overwrite": False, "given": None, "weights": None, "tolerance": None}
        | {"part": (0, 2), "dim": None, "entry_dims": ()},
    ),
    "fit_stream of labelled arrays": lambda: (
        fj.fit_stream,
        {"model": MODEL, "start": START, "source": xr.DataArray(np.stack([Y, Y]), dims=("site", "day")), "dim": "day"}
        | {"sink": pathlib.Path(tempfile.mkdtemp(dir=folder())) / "results.zarr", "part": None, "devices": 1}
        | {"entry_dims": (), "given": None, "weights": None, "block": None},
    ),
    "log_likelihood": lambda: (
        fj.log_likelihood,
        {"model": MODEL, "params": START, "data": Y, "given": None, "weights": None},
    ),
    "fisher_information": lambda: (
        fj.fisher_information,
        {"model": fj.families.normal, "params": START, "expectation": None, "given": None},
    ),
    "information_operator": lambda: (
        fj.information_operator,
        {"model": MODEL, "params": START, "expectation": None, "kind": "observed", "data": Y}
        | {"given": None, "weights": None},
    ),
    "fit with an auxiliary measurement": lambda: (
        fj.fit,
        {"model": fj.with_auxiliary(MODEL, lambda params, m: norm.logpdf(m, params["scale"], 1.0)), "start": START}
        | {"data": (Y, 1.0), "given": None, "weights": None},
    ),
    "with_auxiliary": lambda: (fj.with_auxiliary, {"model": MODEL, "log_density": density, "sample": None}),
    "with_distribution_function": lambda: (
        fj.with_distribution_function,
        {"model": MODEL, "support": None, "nodes": 65},
    ),
    "censored": lambda: (fj.censored, {"model": fj.families.normal, "low": 0.0, "high": "end"}),
    "truncated": lambda: (fj.truncated, {"model": fj.families.normal, "low": 0.0, "high": "end"}),
    "zero_inflated": lambda: (fj.zero_inflated, {"model": fj.families.poisson}),
    "hurdle": lambda: (fj.hurdle, {"model": fj.families.gamma}),
    "binned": lambda: (
        fj.binned,
        {"model": fj.families.normal, "edges": [0.0, 1.0, 2.0], "extended": False, "total": 3},
    ),
    "delta_method": lambda: (
        fj.delta_method,
        {"fit": fitted(), "function": first, "kind": None, "level": 0.95},
    ),
    "predict": lambda: (
        fj.predict,
        {"fit": line(), "new": X, "what": "mean", "kind": None, "level": 0.95, "scale": "unconstrained"}
        | {"effects": "predicted", "groups": None, "new_axis": None, "model": None},
    ),
    "predict of a mixed model": lambda: (
        fj.predict,
        {"fit": pairs(), "new": X.reshape(6, 2), "what": "mean", "kind": None, "level": 0.95, "scale": "unconstrained"}
        | {"effects": "predicted", "groups": np.arange(6), "new_axis": None, "model": None},
    ),
    "predicted_effects": lambda: (
        fj.predicted_effects,
        {"fit": pairs(), "kind": None, "level": 0.95, "labels": list("abcdef")},
    ),
    "check_laplace": lambda: (
        fj.check_laplace,
        {"fit": pairs(), "kind": None, "nodes": 3, "key": KEY, "num_draws": 20},
    ),
    "contrast": lambda: (
        fj.predict(line()).contrast,
        {"other": "pairs", "ratio": False, "names": None},
    ),
    "predictive_distribution": lambda: (
        fj.predictive_distribution,
        {"fit": line(), "new": X[:2], "kind": None, "level": 0.95, "method": "likelihood", "num_points": 16}
        | {"replicates": None, "model": None},
    ),
    "intervals of observations": lambda: (
        fj.predictive_distribution(line(), X[:2], method="plug-in").intervals,
        {"level": 0.9},
    ),
    "predictive_scores": lambda: (
        fj.predictive_scores,
        {"fit": line(), "rule": "log", "data": Y, "given": X, "weights": None, "clusters": None, "level": None}
        | {"model": None},
    ),
    "compare scores": lambda: (
        fj.predictive_scores(line(), "log").compare,
        {"other": fj.predictive_scores(line(), "log"), "lags": 0},
    ),
    "cross_validation": lambda: (
        fj.cross_validation,
        {"model": STRAIGHT, "start": {"a": 0.0, "b": 1.0}, "data": Y, "given": X, "weights": None, "rule": "log"}
        | {"level": None, "folds": 3, "key": KEY, "clusters": None, "missing": "raise", "devices": None}
        | {"progress": False},
    ),
    "marginal_effects": lambda: (
        fj.marginal_effects,
        {"fit": line(), "new": None, "variables": None, "what": "mean", "at": "overall", "method": "dydx"}
        | {"dummy": False, "weights": None, "kind": None, "level": 0.95, "new_axis": None, "model": None},
    ),
    "wald_test": lambda: (fj.wald_test, {"fit": fitted(), "restriction": {"loc": 0.0}, "kind": None}),
    "score_test": lambda: (
        fj.score_test,
        {"null_fit": null(), "freed": "loc", "candidates": None, "enters": None, "kind": None},
    ),
    "likelihood_ratio_test": lambda: (
        fj.likelihood_ratio_test,
        {"fit": fitted(), "null": {"loc": 0.0}, "num_on_boundary": None},
    ),
    "profile_likelihood": lambda: (
        fj.profile_likelihood,
        {"fit": fitted(), "function": None, "level": 0.95, "parameters": "loc"},
    ),
    "profile_region": lambda: (
        fj.profile_region,
        {"fit": fitted(), "pair": ("loc", "scale"), "level": 0.95, "joint": True, "num_points": 8},
    ),
    "return_levels": lambda: (
        fj.return_levels,
        {"fit": excesses(), "periods": [2.0, 10.0], "given": None, "threshold": 0.0, "rate": 1.0, "rate_error": 0.0}
        | {"kind": None, "level": 0.95, "method": "delta", "replicates": None},
    ),
    "quantile_comparison": lambda: (
        fj.quantile_comparison,
        {
            "fit": excesses(),
            "scale": None,
            "envelope": "order statistics",
            "key": None,
            "num_replicates": 20,
            "level": 0.95,
        },
    ),
    "residuals": lambda: (fj.residuals, {"fit": excesses(), "kind": "quantile", "key": KEY}),
    "goodness_of_fit": lambda: (
        fj.goodness_of_fit,
        {"fit": excesses(), "statistic": "anderson_darling", "key": KEY, "num_replicates": 19, "num_bins": None}
        | {"alternative": None, "devices": 1},
    ),
    "confidence_intervals": lambda: (
        fitted().confidence_intervals,
        {"kind": None, "level": 0.95, "method": "wald", "scale": "unconstrained"},
    ),
    "robust": lambda: (
        fj.robust,
        {"fit": fitted(), "clusters": None, "lags": None, "weights": "frequency", "correction": None},
    ),
    "bootstrap": lambda: (
        fj.bootstrap,
        {"fit": fitted(), "key": KEY, "num_replicates": 3, "method": "nonparametric", "clusters": None}
        | {"block_length": None, "acceleration": "infinitesimal", "devices": 1, "progress": False},
    ),
    "identifiability": lambda: (fj.identifiability, {"fit": fitted(), "function": None, "kind": "observed"}),
    "optimal_design": lambda: (
        fj.optimal_design,
        {"model": STRAIGHT, "params": {"a": 0.0, "b": 1.0}, "candidates": X, "region": None, "criterion": "D"}
        | {"function": None, "expectation": None, "params_axis": None, "efficiency": 0.9},
    ),
    "sample_size": lambda: (
        fj.sample_size,
        {"model": fj.families.normal, "params": START, "power": 0.8, "hypothesis": {"loc": 0.5}}
        | {"standard_error": None, "level": 0.05, "function": None, "given": None, "expectation": None, "key": None}
        | {"num_replicates": 3},
    ),
    "cramer_rao_bound": lambda: (
        fj.cramer_rao_bound,
        {"model": fj.families.normal, "params": START, "expectation": None, "num_observations": 9}
        | {"function": None, "bias": None, "given": None},
    ),
    "sampling_distribution": lambda: (
        fj.sampling_distribution,
        {"model": fj.families.normal, "params": START, "key": KEY, "num_observations": 5, "num_replicates": 3}
        | {"given": None, "estimator": None, "expectation": None},
    ),
}

# What a message calls an argument where that is better than its name: a parameter has one of its own.
ALIASES = {"parameter", "hypothesis", "hypothesised", "restriction", "fit", "fits", "loc", "scale"}

# What a user may hand over by mistake. Masks, frames, byte orders and complex numbers of data are tried in another place.
WRONG = [
    lambda: None,
    lambda: True,
    lambda: -1,
    lambda: 0,
    lambda: 3,
    lambda: 2.5,
    lambda: -0.5,
    lambda: float("nan"),
    lambda: float("inf"),
    lambda: 1 + 2j,
    lambda: "loc",
    lambda: "positive",
    lambda: "loc = 0",
    lambda: "",
    lambda: b"scale",
    lambda: (),
    lambda: [],
    lambda: {},
    lambda: [1.0, "a"],
    lambda: ["loc", "scale"],
    lambda: ("loc", None),
    lambda: (0.0, None),
    lambda: (0, 1),
    lambda: {"loc": "a"},
    lambda: {"lco": 0.0, "scale": 1.0},
    lambda: {"loc": 0.0},
    lambda: {"loc": [0.0, 1.0], "scale": 1.0},
    lambda: {"loc": 0.0, "scale": -1.0},
    lambda: {"loc": 0.0, "scale": None},
    lambda: {"loc": 0.0, "scale": np.ones((2, 2))},
    lambda: {"loc": 0, "scale": np.int64(1)},
    lambda: {"loc": 0.0, 1: 1.0},
    lambda: {"scale": 1 + 1j},
    lambda: {"scale": fj.positive, "loc": "fixed"},
    lambda: {"loc": fj.simplex},
    lambda: {"loc": (0, 1)},
    lambda: {"loc": object},
    lambda: {1, 2},
    lambda: object(),
    lambda: object,
    lambda: dict,
    lambda: Ellipsis,
    lambda: slice(3),
    lambda: range(3),
    lambda: (k for k in range(3)),
    lambda: iter([1.0]),
    lambda: sys,
    lambda: ValueError("no"),
    lambda: np.float64(0.3),
    lambda: np.int32(4),
    lambda: np.bool_(True),
    lambda: np.array(0.3),
    lambda: np.array([]),
    lambda: np.ones(3),
    lambda: np.ones((12, 2)),
    lambda: np.ones((2, 2, 2)),
    lambda: np.arange(12),
    lambda: np.array(["a", "b"]),
    lambda: np.array([1.0, None], object),
    lambda: np.array([1 + 1j, 2]),
    lambda: np.array(["2020-01-01"], "datetime64[D]"),
    lambda: np.zeros((), [("a", float)]),
    lambda: jnp.zeros(3),
    lambda: jnp.ones((2, 3), jnp.float32),
    lambda: jnp.array(2, jnp.uint32),
    lambda: jax.ShapeDtypeStruct((3,), float),
    lambda: jax.random.key(1),
    lambda: jax.random.split(jax.random.key(1)),
    lambda: jax.random.PRNGKey(1),
    lambda: np.random.default_rng(0),
    lambda: float,
    lambda: lambda: 0.0,
    lambda: lambda params: None,
    lambda: lambda params: "loc",
    lambda: lambda params: params["lco"],
    lambda: lambda params: params,
    lambda: lambda params: np.log(params["scale"]),
    lambda: lambda params: params["loc"] if params["scale"] > 0 else 0.0,
    lambda: lambda params: 1,
    lambda: lambda params, y: y,
    lambda: lambda params, y: jnp.zeros(3),
    lambda: lambda params, y, z: 0.0,
    lambda: lambda *args: object(),
    lambda: density,
    lambda: MODEL,
    lambda: fj.Model,
    lambda: STRAIGHT,
    lambda: fitted(),
    lambda: jax.tree.map(jnp.asarray, fitted()),
    lambda: several(),
    lambda: fj.families.poisson,
    lambda: fj.Model(density, sample=lambda key, params: jnp.zeros(3), information=lambda params: jnp.eye(3)),
    lambda: fj.Model(density, sample=lambda key: 0.0, initial=lambda: START),
    lambda: fj.dependent(lambda params, y: density(params, y)[:-1]),
    lambda: Broken(),
    lambda: {"scale": Broken()},
    lambda: fj.positive,
    lambda: fj.simplex,
    lambda: [fj.positive],
    lambda: fj.interval(0, 1),
    lambda: fj.families,
    lambda: fj.optimizers.newton,
    lambda: fj.optimizers.newton(),
    lambda: fj.Enumeration(np.arange(3)),
    lambda: fj.Quadrature(0.0, 1.0, 16),
    lambda: fj.MonteCarlo(KEY, 8, "outer"),
    lambda: "newton",
    lambda: "exact",
    lambda: "expected",
    lambda: 95,
    lambda: "95%",
    lambda: "/no/such/file.npy",
    lambda: pathlib.Path("results.npy"),
]


def drawn(name, count):
    """`count` calls of an entry point, each with one or two arguments wrong, or a name that there is not."""
    dice = random.Random(zlib.crc32(name.encode()))
    for _ in range(count):
        function, arguments = RIGHT[name]()
        for argument in dice.sample(sorted(arguments), dice.choice((1, 1, 1, 2)) if len(arguments) > 1 else 1):
            arguments[argument] = dice.choice(WRONG)()
        fate = dice.random()
        if isinstance(function, type) or function is constrained:
            pass  # Python's own error for a call of a class will do
        elif fate < 0.02:
            arguments["levels"] = 0.9
        elif fate < 0.04:
            del arguments[dice.choice(sorted(arguments))]
        yield function, arguments


def is_own(error, names):
    """Whether an error comes from a `raise` of fisher_jax's and names an argument."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    text = str(error)
    return (
        last.filename.startswith(PACKAGE)
        and last.line.startswith("raise")
        and any(re.search(rf"\b{name}\b", text, re.I) for name in names)
    )


def bad_calls(name, count):
    """The calls that ended in an error of another kind: what was wrong, and the error."""
    bad = []
    for function, arguments in drawn(name, count):
        right = RIGHT[name]()[1]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                function(**arguments)
        except Exception as error:
            names = set(inspect.signature(function).parameters) | set(right) | ALIASES
            if not is_own(error, names):
                wrong = {k: repr(v)[:60] for k, v in arguments.items() if v is not right.get(k)}
                where = traceback.extract_tb(error.__traceback__)
                mine = [f"{pathlib.Path(f.filename).name}:{f.lineno}" for f in where if PACKAGE in f.filename]
                bad.append(f"{wrong}: {type(error).__name__}: {str(error)[:200]} [{' '.join(mine[-3:])}]")
    return bad


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_traceback_filtering", "off")
    chosen = sys.argv[2:] or list(RIGHT)
    print(json.dumps({name: bad_calls(name, int(sys.argv[1])) for name in chosen}))
