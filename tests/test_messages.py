"""Bad input: what is said, by whom, and what to do about it."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from jax.scipy.stats import norm
from registry import MODELS

import fisher_jax as fj
from fisher_jax.errors import check_count, require
from fisher_jax.optimizers.natural import natural_gradient

Y = np.random.default_rng(0).normal(size=30)
START = {"loc": 0.0, "scale": 1.0}
KEY = jax.random.key(0)
DRAWS = fj.MonteCarlo(KEY, 100)


def density(params, y):
    return norm.logpdf(y, params["loc"], params["scale"])


def _natural_update(optimizer=None, **extra):
    optimizer = natural_gradient() if optimizer is None else optimizer
    params = {name: jnp.asarray(value) for name, value in START.items()}
    return optimizer.update(params, optimizer.init(params), params, **extra)


def scipy_density(params, y):
    return scipy.stats.norm.logpdf(y, params["loc"], params["scale"])


class NumpyBijector:
    def forward(self, free):
        return np.exp(free)

    def inverse(self, value):
        return np.log(value)


def branching_density(params, y):
    if params["scale"] > 0:
        return density(params, y)
    return -jnp.inf


def bound(**constraints):
    return fj.Model(density, constraints=constraints)


@functools.cache
def straight():
    return fj.linked(fj.families.normal, lambda p, z: {"loc": p[0] + p[1] * z, "scale": jnp.ones(())})


def designed(*candidates, **settings):
    return fj.optimal_design(straight(), jnp.zeros(2), *candidates, **settings)


MISUSE = {
    "function of the whole data set": (
        lambda: fj.fit(lambda p, y: norm.logpdf(y, p, 1.0), 0.0, np.zeros((10, 3))),
        ValueError,
        r"fit: log_density\(params, y\) must return a scalar for ONE observation but returned shape \(3,\) for y of shape "
        r"\(3,\).*fisher_jax.dependent",
    ),
    "numpy in a density": (lambda: fj.fit(lambda p, y: -np.exp(p["loc"]) * y, START, Y), TypeError, r"fit: log_density leaves jax.numpy at line \d+ of test_messages.py, `\"numpy in a density.*jax.numpy in place of numpy"),
    "scipy in a density": (lambda: fj.log_likelihood(scipy_density, START, Y), TypeError, r"log_likelihood: log_density leaves jax.numpy at line \d+ of test_messages.py, `return scipy.stats.norm.logpdf.*jax.scipy.stats in place of scipy.stats"),
    "scipy alone": (lambda: fj.fit(scipy.stats.poisson.logpmf, 1.0, Y), TypeError, "fit: log_density leaves jax.numpy. .*jax.scipy.stats in place"),
    "if in a density": (lambda: fj.fit_batch(branching_density, START, np.stack([Y, Y])), TypeError, r"log_density leaves jax.numpy at line \d+ of test_messages.py, `if params\[.scale.\] > 0:`.*jnp.where in place of `if`"),
    "math in a density": (lambda: fj.fit(lambda p, y: -math.exp(p) * y, 1.0, Y), TypeError, r"log_density leaves jax.numpy at line .*place of numpy, math and float\(\)"),
    "numpy in a series": (lambda: fj.fit(fj.dependent(lambda p, y: np.log(p) * y), 1.0, Y), TypeError, "fit: terms leaves jax.numpy at line"),
    "numpy in a predictor": (lambda: fj.fit(fj.linked(fj.families.poisson, lambda p, z: {"rate": np.exp(p * z)}), 1.0, Y, given=Y), TypeError, "fit: predictor leaves jax.numpy at line"),
    "numpy in a sampler": (lambda: fj.sampling_distribution(fj.Model(density, sample=lambda key, p: np.random.default_rng(0).normal(p["loc"])), START, KEY, num_observations=3, num_replicates=2), TypeError, "sample leaves jax.numpy at line"),
    "numpy in a function": (lambda: fj.delta_method(fitted(), lambda p: np.log(p["scale"])), TypeError, "delta_method: function leaves jax.numpy at line"),
    "shapes that do not fit": (lambda: fj.fit(lambda p, y: jnp.sum(p["loc"] * jnp.ones(3) * y), START, np.ones((9, 2))), TypeError, r"fit: log_density raised TypeError at line \d+ of test_messages.py.*It was called with {'loc': \(\), 'scale': \(\)}, \(2,\)"),
    "misspelt parameter": (lambda: fj.fit(density, {"loc": 0.0, "sigma": 1.0}, Y), ValueError, r"fit: log_density raised KeyError at line \d+ of test_messages.py.*: 'scale'. It was called with {'loc'.*'sigma'"),
    "misspelt parameter of a family": (lambda: fj.log_likelihood(fj.Model(fj.families.normal.log_density), {"mean": 0.0, "scale": 1.0}, Y), ValueError, "log_likelihood: log_density raised KeyError: 'loc'. It was called with {'mean'"),
    "covariates by position": (lambda: fj.fit(density, START, Y, Y), TypeError, r"fit: 4 arguments came by position, of 3: after data came an array of shape \(30,\). Covariates are passed as given=…, weights as weights=…"),
    "unknown argument": (lambda: fj.fit(density, START, Y, weight=Y), TypeError, "fit: there is no argument 'weight'. It takes model, start, data, given, weights"),
    "missing argument": (lambda: fj.fit_batch(density, START), TypeError, "fit_batch: missing a required argument: 'data'. It takes model"),
    "unknown argument of a method": (lambda: fitted().confidence_intervals(levels=0.9), TypeError, "confidence_intervals: there is no argument 'levels'. It takes kind, level, method, scale"),
    "range as a list": (lambda: fj.Model(density, constraints={"scale": [0, 1]}), TypeError, r"the constraint of `scale\[0\]` is 0.*A range is written as a tuple, \(low, high\)"),
    "positional weights of a batch": (lambda: fj.fit_batch(density, START, Y[None], Y), TypeError, r"fit_batch: 4 arguments came by position, of 3: after data came an array of shape \(30,\). Covariates are passed as given=…"),
    "positional covariates of a log-likelihood": (lambda: fj.log_likelihood(density, START, Y, Y), TypeError, "log_likelihood: 4 arguments.* Covariates are passed as given=…, weights as weights=…"),
    "positional level": (lambda: fj.delta_method(fitted(), "loc", 0.9), TypeError, "delta_method: 3 arguments came by position, of 2: after function came 0.9. Give it by name, as kind=…"),
    "profile of an unknown name": (lambda: fj.profile_likelihood(fitted(), "scala"), ValueError, "profile_likelihood: function: in 'scala' no parameter is named 'scala'; there are loc, scale. Did you mean `scale`"),
    "hypothesis as text": (lambda: fj.wald_test(fitted(), "locus = 0"), ValueError, "wald_test: the hypothesis: in 'locus = 0' no parameter is named 'locus'; there are loc, scale. Did you mean `loc`"),
    "fit in place of params": (lambda: fj.fit(density, fitted(), Y), TypeError, "fit: params is Fit; expected arrays.*Did you mean its `params`"),
    "keys of two types": (lambda: fj.fit(density, {"loc": 0.0, 1: 1.0}, Y), TypeError, "fit: params is no pytree that JAX can flatten.*keys of each dictionary one type"),
    "integer density": (lambda: fj.fit(lambda p, y: jnp.int32(1), 0.0, Y), TypeError, "floating number in nats.*int32"),
    "density that returns nothing": (lambda: fj.fit(lambda p, y: None, 0.0, Y), TypeError, "returned NoneType"),
    "density that wants covariates": (
        lambda: fj.fit(lambda p, y, x: 0.0, 0.0, Y),
        TypeError,
        r"takes \(p, y, x\), but is called as log_density\(params, y\). Pass its covariates as given=",
    ),
    "density without covariates": (lambda: fj.fit(density, START, Y, given=Y), TypeError, r"called as log_density\(params, y, z\)"),
    "no function": (lambda: fj.fit("normal", START, Y), TypeError, "fit: expected a fisher_jax.Model or a function.*got str"),
    "Model of no function": (lambda: fj.Model(3.0), TypeError, "^Model: expected a function.*got float"),
    "Model with a misspelt setting": (lambda: fj.Model(density, constraint={}), TypeError, "^Model: there is no argument 'constraint'. It takes log_density, sample, constraints"),
    "constraint that is called": (lambda: fj.fixed(3.0), TypeError, "a constraint is not called: constraints=.*has the value that it has in start"),
    "draws by another name": (lambda: fj.MonteCarlo(KEY, num_draws=200), TypeError, "^MonteCarlo: there is no argument 'num_draws'. It takes key, num_samples"),
    "key in place of data": (lambda: fj.fit(density, START, jax.random.split(KEY, 30)), TypeError, "fit: data holds a key of jax.random; expected arrays of numbers"),
    "nodes without an end": (lambda: fj.Quadrature(0.0), TypeError, "^Quadrature: missing a required argument: 'upper'"),
    "terms summed": (
        lambda: fj.fit(fj.dependent(lambda p, y: jnp.sum(norm.logpdf(y, p, 1.0))), 0.0, Y),
        ValueError,
        r"one for each time, shape \(n,\), but returned shape \(\).*Do not sum them",
    ),
    "start outside": (lambda: fj.fit(bound(scale=fj.positive), {"loc": 0.0, "scale": -2.0}, Y), ValueError, "fit: parameter `scale` starts at -2.0, but must be positive"),
    "start at the edge": (lambda: fj.fit(bound(scale=fj.positive), {"loc": 0.0, "scale": 0.0}, Y), ValueError, "`scale` starts at 0.0, but must be positive"),
    "start not finite": (lambda: fj.fit(bound(), {"loc": np.nan, "scale": 1.0}, Y), ValueError, "`loc` starts at nan"),
    "start outside an interval": (lambda: fj.fit(bound(loc=fj.interval(-1, 1)), {"loc": 3.0, "scale": 1.0}, Y), ValueError, "strictly between -1 and 1"),
    "start not ordered": (lambda: fj.fit(fj.Model(lambda p, y: 0.0, constraints=fj.ordered), np.array([1.0, 0.0]), Y), ValueError, "strictly increasing"),
    "start not on the simplex": (lambda: fj.fit(fj.Model(lambda p, y: 0.0, constraints=fj.simplex), np.array([0.5, 0.4]), Y), ValueError, "summing to one"),
    "start not positive definite": (lambda: fj.fit(fj.Model(lambda p, y: 0.0, constraints=fj.positive_definite), np.array([[1.0, 2.0], [2.0, 1.0]]), Y), ValueError, "symmetric positive definite"),
    "simplex of a scalar": (lambda: fj.fit(bound(loc=fj.simplex), START, Y), ValueError, r"`loc` of shape \(\): simplex: expected an array"),
    "matrix constraint on a vector": (lambda: fj.fit(fj.Model(lambda p, y: 0.0, constraints=fj.positive_definite), np.ones(3), Y), ValueError, "expected a square matrix"),
    "misspelt constraint": (lambda: fj.fit(bound(scael=fj.positive), START, Y), ValueError, r"constraints name `scael`, but params has `loc`, `scale`"),
    "bijector in numpy": (lambda: fj.fit(bound(scale=NumpyBijector()), START, Y), TypeError, r"inverse of the bijector NumpyBijector leaves jax.numpy at line \d+ of test_messages.py, `return np.log"),
    "no constraint": (lambda: fj.Model(density, constraints={"scale": "positive"}), TypeError, "the constraint of `scale` is 'positive'"),
    "empty interval": (lambda: fj.interval(2, 1), ValueError, r"low < high.*interval\(2, 1\)"),
    "interval of two texts": (lambda: fj.interval("0", None), TypeError, "interval: low='0' must be a number, or None where there is no bound"),
    "bounds the wrong way round": (lambda: fj.Model(density, constraints={"scale": (1, 0)}), ValueError, r"Model: the bounds of `scale` are \(1, 0\); expected \(low, high\), low < high"),
    "bounds that could be a tree": (lambda: fj.fit(fj.Model(density, constraints={"scale": (0, 1)}), {"loc": 0.0, "scale": [0.1, 0.2]}, Y), ValueError, "constraint of `scale` is a tuple of numbers, and its parameters are in a sequence: bounds for all of them, or one each"),
    "complex parameters": (lambda: fj.fit(lambda p, y: 0.0, np.array([1j, 2]), Y), TypeError, "`params` has dtype complex128; parameters are real numbers"),
    "boolean": (lambda: fj.fit(lambda p, y: 0.0, {"a": True}, Y), TypeError, "`a` has dtype bool"),
    "no parameters": (lambda: fj.fit(density, {}, Y), ValueError, "params holds no array"),
    "all fixed": (lambda: fj.fit(bound(loc=fj.fixed, scale=fj.fixed), START, Y), ValueError, "every parameter is fixed"),
    "no start": (lambda: fj.fit(density, None, Y), ValueError, "start is None and the model has no `initial`"),
    "no data": (lambda: fj.fit(density, START, {}), ValueError, "data holds no array"),
    "no observations": (lambda: fj.fit(density, START, np.zeros(0)), ValueError, "data has no rows"),
    "scalar data": (lambda: fj.fit(density, START, 3.0), ValueError, "data is a scalar; expected a leading axis"),
    "text": (lambda: fj.fit(density, START, np.array(["a", "b"])), TypeError, "expected arrays of numbers"),
    "lengths differ": (lambda: fj.fit(lambda p, y, x: 0.0, 0.0, Y, given=Y[:-1]), ValueError, r"leading axes of data and given differ \(data: 30, given: 29\)"),
    "weights of another length": (lambda: fj.fit(density, START, Y, weights=np.ones(3)), ValueError, r"weights has shape \(3,\), expected \(30,\)"),
    "negative weights": (lambda: fj.fit(density, START, Y, weights=-np.ones(30)), ValueError, r"weights\[0\] is -1.0"),
    "NaN weights": (lambda: fj.fit(density, START, Y, weights=np.full(30, np.nan)), ValueError, "weights must be finite"),
    "tolerance": (lambda: fj.fit(density, START, Y, tolerance=0.0), ValueError, "tolerance=0.0 must be positive"),
    "max_steps": (lambda: fj.fit(density, START, Y, max_steps=-1), ValueError, "max_steps=-1 must be a whole number from 0"),
    "step length that is none": (lambda: natural_gradient(-0.1), ValueError, "natural_gradient: learning_rate=-0.1 must be positive, or an optax schedule"),
    "step length in words": (lambda: natural_gradient("whole"), TypeError, "natural_gradient: learning_rate='whole' must be a number"),
    "observed information for a metric": (lambda: natural_gradient(kind="observed"), ValueError, "natural_gradient: kind='observed' is no metric.*see newton"),
    "negative damping": (lambda: natural_gradient(damping=-1.0), ValueError, "natural_gradient: damping=-1.0 must not be negative"),
    "adaptive damping from zero": (lambda: natural_gradient(adaptive=True), ValueError, "natural_gradient: adaptive=True multiplies the damping.*Give damping=1e-3"),
    "bound on the divergence": (lambda: natural_gradient(largest_divergence=0.0), ValueError, "natural_gradient: largest_divergence=0.0 must be positive"),
    "tolerance of a solve": (lambda: natural_gradient(tolerance=1.0), ValueError, "natural_gradient: tolerance=1.0 must lie between 0 and 1"),
    "no products": (lambda: natural_gradient(max_products=0), ValueError, "natural_gradient: max_products=0 must be a whole number"),
    "no information": (lambda: _natural_update(), TypeError, "natural_gradient: update needs objective=.*or information="),
    "information that cannot be solved with": (lambda: _natural_update(information=np.eye(2)), TypeError, "natural_gradient: information must be an information_operator, got ndarray"),
    "information of another kind": (
        lambda: _natural_update(information=fj.information_operator(density, START, kind="empirical", data=Y)),
        ValueError,
        'natural_gradient: the operator is of kind "empirical", the optimiser of kind "expected"',
    ),
    "losses to compare": (
        lambda: _natural_update(
            natural_gradient(kind="empirical", damping=1.0, adaptive=True),
            information=fj.information_operator(density, START, kind="empirical", data=Y),
        ),
        TypeError,
        "natural_gradient: adaptive=True compares losses before and after.*and value_fn=",
    ),
    "rows of one and the other": (lambda: fj.moments.covariance(Y, Y[1:]), ValueError, "covariance: x has 30 rows and y 29"),
    "rows that are none": (lambda: fj.moments.covariance_matrix(Y), ValueError, r"covariance_matrix: x has shape \(30,\), expected \(n, q\)"),
    "weights of other rows": (lambda: fj.moments.moments(Y[:, None], weights=np.ones(3)), ValueError, r"moments: weights has shape \(3,\), expected \(30,\)"),
    "tolerance that certifies nothing": (lambda: fj.fit(density, START, Y, tolerance=10.0), ValueError, "tolerance=10.0 must be positive and at most 0.1"),
    "max_steps past int32": (lambda: fj.fit(density, START, Y, max_steps=2**31), ValueError, "must be a whole number from 0 to"),
    "max_steps in halves": (lambda: fj.fit(density, START, Y, max_steps=2.5), ValueError, "max_steps=2.5 must be a whole number"),
    "optimiser by name": (lambda: fj.fit(density, START, Y, optimizer="adam"), TypeError, "optimizer must be an optax transformation such as optax.lbfgs.., got 'adam'"),
    "optimiser not called": (lambda: fj.fit(density, START, Y, optimizer=optax.adam), TypeError, "must be an optax transformation"),
    "newton in a chain": (lambda: fj.fit(density, START, Y, optimizer=optax.chain(fj.optimizers.newton(), optax.scale(0.5))), ValueError, "whole optimisers.*scale_by_information"),
    "integers that do not fit": (lambda: large_integers(), ValueError, "integers from 3000000000 to 4000000000 do not fit int32.*Enable it"),
    "a method for a kind": (lambda: fitted().confidence_intervals("profile"), ValueError, "kind='profile' is unknown.*method='profile'"),
    "unknown covariance": (lambda: fitted().covariance("robust"), ValueError, "kind='robust' is unknown; choose from 'observed'"),
    "expected without a route": (lambda: fitted().standard_errors("expected"), ValueError, 'kind="expected" needs the Fisher information'),
    "sandwich as information": (lambda: fitted().information("sandwich"), ValueError, "is a covariance, not an information"),
    "information on a simplex": (lambda: on_simplex().information(), ValueError, "leaves 1 free parameters among 2 entries"),
    "level": (lambda: fitted().confidence_intervals(level=95), ValueError, "level=95 must lie strictly between 0 and 1"),
    "level in words": (lambda: fitted().confidence_intervals(level="95%"), TypeError, "level='95%' must be a number strictly between 0 and 1"),
    "levels": (lambda: fitted().confidence_intervals(level=np.array([0.9, 0.95])), TypeError, "level=an array of shape .2,. must be a number"),
    "delta of nothing": (lambda: fj.delta_method(fitted(), lambda p: p["loc"][None][:0]), TypeError, "must return a number, an array or a pytree of them, but returned nothing"),
    "nothing freed": (lambda: fj.score_test(held(), ()), ValueError, r"score_test: freed=\(\) must be a parameter's name or several"),
    "a number freed": (lambda: fj.score_test(held(), 5), ValueError, "score_test: freed=5 must be a parameter's name"),
    "no candidates": (lambda: fj.score_test(by_rate(), candidates=np.ones((30, 0))), ValueError, r"shape \(30, 0\); expected numbers \(n, K\)"),
    "unknown interval": (lambda: fitted().confidence_intervals(level=0.9, method="exact"), ValueError, "method='exact' is unknown"),
    "unknown scale": (lambda: fitted().confidence_intervals(scale="log"), ValueError, "scale='log' is unknown"),
    "profile interval of a covariance": (lambda: fitted().confidence_intervals(level=0.9, method="profile", kind="sandwich"), ValueError, 'method="profile" needs no covariance and no scale'),
    "profile interval without the data": (lambda: jax.tree.map(jnp.asarray, fitted()).confidence_intervals(level=0.9, method="profile"), ValueError, "confidence_intervals: needs the data, which this fit no longer has"),
    "profile of no fit": (lambda: fj.profile_likelihood(START), TypeError, "profile_likelihood: expected a Fit, got dict"),
    "profile of a stranger": (lambda: fj.profile_likelihood(fitted(), parameters=["loc", "shape"]), ValueError, "parameters: no entry is named 'shape'; there are loc, scale"),
    "profile of none": (lambda: fj.profile_likelihood(fitted(), parameters=[]), ValueError, r"parameters=\[\]; expected one or more different names out of loc, scale"),
    "profile of two kinds": (lambda: fj.profile_likelihood(fitted(), lambda p: p["loc"], parameters="loc"), ValueError, "give a function or the names of parameters, not both"),
    "profile of a number": (lambda: fj.profile_likelihood(fitted(), 3.0), TypeError, "function must be a function of params, got float"),
    "profile at a level": (lambda: fj.profile_likelihood(fitted(), level=95), ValueError, "profile_likelihood: level=95 must lie strictly between 0 and 1"),
    "design of nowhere": (lambda: designed(), ValueError, "optimal_design: give either candidates, the points to choose among, or region="),
    "design over two things": (lambda: designed([0.0, 1.0], region=fj.interval(0, 1)), ValueError, "optimal_design: give either candidates"),
    "design by an unknown criterion": (lambda: designed([0.0, 1.0], criterion="G"), ValueError, "criterion='G' is unknown; choose from 'D', 'A', 'E', 'c'"),
    "design for an unnamed function": (lambda: designed([0.0, 1.0], criterion="c"), ValueError, 'criterion="c" needs function=, the one number'),
    "design for two functions": (lambda: designed([0.0, 1.0], criterion="c", function=lambda p: p), ValueError, 'criterion="c" is for one number, but function returns 2: '),
    "design for a number": (lambda: designed([0.0, 1.0], function=3.0), TypeError, "optimal_design: function must be a function of params, got float"),
    "design for the same twice": (lambda: designed([0.0, 1.0], function=lambda p: {"a": p[0], "b": 2 * p[0]}), ValueError, "the determinant of the covariance of a, b is zero whatever the design"),
    "design for a constant": (lambda: designed([0.0, 1.0], criterion="c", function=lambda p: 0.0 * p[0]), ValueError, "the derivatives of function with respect to the parameters are zero or not finite"),
    "design without points": (lambda: designed(np.zeros(0)), ValueError, "optimal_design: candidates holds no points. Give the values of z"),
    "design of too few points": (lambda: designed([1.0]), ValueError, r"the points do not identify params\[.\]: all of them together hold no information along"),
    "design of points that are not finite": (lambda: designed([0.0, np.nan, 1.0]), ValueError, "information of one observation is not finite at 1 of 3 points, the first of them number 1"),
    "design over half a line": (lambda: designed(region=fj.positive), ValueError, "expected intervals with two finite ends"),
    "design over numbers": (lambda: designed(region=(0, 1)), ValueError, "region holds 0; expected intervals"),
    "design more than optimal": (lambda: designed([0.0, 1.0], efficiency=1.5), ValueError, "efficiency=1.5 must lie between 0 and 1"),
    "design by two criteria": (lambda: designed([0.0, 1.0], criterion=["D", "A"]), ValueError, "criterion=\\['D', 'A'\\] is unknown"),
    "design of an efficiency in words": (lambda: designed([0.0, 1.0], efficiency="high"), ValueError, "efficiency='high' must lie between 0 and 1"),
    "design without a route": (lambda: fj.optimal_design(density, START, [0.0, 1.0]), ValueError, "the model has no information in closed form. Give an expectation"),
    "design by draws": (lambda: designed([0.0, 1.0], expectation=DRAWS), ValueError, "MonteCarlo leaves an error in every information"),
    "design of a series": (lambda: fj.optimal_design(fj.dependent(lambda p, y: y), 1.0, [0.0]), ValueError, "a dependent model has no information per observation"),
    "design along another axis": (lambda: designed([0.0, 1.0], params_axis=1), ValueError, "params_axis=1 must be 0, or None"),
    "design along no axis": (lambda: fj.optimal_design(straight(), {"a": 1.0, "b": np.ones(3)}, [0.0], params_axis=0), ValueError, "params_axis=0 needs leaves with one common leading axis"),
    "design of what is all known": (lambda: fj.optimal_design(fj.linked(fj.families.poisson, lambda p, z: {"rate": p * z}, constraints=fj.fixed), 1.0, [1.0]), ValueError, "optimal_design: every parameter is fixed"),
    "design under jit": (lambda: jax.jit(lambda p: fj.optimal_design(straight(), p, [0.0, 1.0]).value)(jnp.ones(2)), TypeError, "optimal_design: params is traced; designs are searched for on the host"),
    "design in half observations": (lambda: designed([0.0, 1.0]).round(2.5), ValueError, "Design.round: num_observations=2.5 must be a whole number, at least 2, the number of points"),
    "design with fewer observations than points": (lambda: designed([0.0, 1.0]).round(1), ValueError, "num_observations=1 must be a whole number, at least 2"),
    "efficiency of other weights": (lambda: designed([0.0, 1.0]).efficiency([0.0, 1.0], [1.0]), ValueError, r"Design.efficiency: weights has shape \(1,\), expected \(2,\)"),
    "efficiency of negative weights": (lambda: designed([0.0, 1.0]).efficiency([0.0, 1.0], [1.0, -1.0]), ValueError, "Design.efficiency: weights must be finite, not negative"),
    "bootstrap of an unknown kind": (lambda: fj.bootstrap(fitted(), KEY, method="wild"), ValueError, "bootstrap: method='wild' is unknown; choose from 'nonparametric'"),
    "bootstrap of an unknown acceleration": (lambda: fj.bootstrap(fitted(), KEY, acceleration="none"), ValueError, 'acceleration=.none. is unknown; choose from .infinitesimal., .jackknife.'),
    "bootstrap once": (lambda: fj.bootstrap(fitted(), KEY, 1), ValueError, "num_replicates=1 must be a whole number, at least 2"),
    "bootstrap of a failed fit": (lambda: fj.bootstrap(fj.fit(bound(scale=fj.positive), START, Y, max_steps=1), KEY), ValueError, "bootstrap: needs a fit that converged.*Step limit"),
    "bootstrap without the data": (lambda: fj.bootstrap(jax.tree.map(jnp.asarray, fitted()), KEY), ValueError, "bootstrap: needs the data, which this fit no longer has"),
    "bootstrap of a number for a key": (lambda: fj.bootstrap(fitted(), 3), TypeError, r"bootstrap: key is int; expected one key, as jax.random.key\(3\)"),
    "bootstrap of many keys": (lambda: fj.bootstrap(fitted(), jax.random.split(KEY, 3)), TypeError, "bootstrap: key is .*expected one key"),
    "bootstrap of a fit without curvature": (lambda: fj.bootstrap(bare(), KEY), ValueError, r"bootstrap: kind='observed' was not kept \(none was\). Fit again with fit_batch\(…, covariances=\('observed',\)\)"),
    "profile of a fit without curvature": (lambda: fj.profile_likelihood(bare()), ValueError, "profile_likelihood: kind='observed' was not kept"),
    "information-matrix test of a fit without scores": (lambda: fj.information_matrix_test(bare("observed"), KEY), ValueError, "information_matrix_test: kind='sandwich' was not kept"),
    "bootstrap of blocks without length": (lambda: fj.bootstrap(fitted(), KEY, method="block"), ValueError, 'block_length=None with method=.block.; give a length with "block"'),
    "bootstrap with a length for nothing": (lambda: fj.bootstrap(fitted(), KEY, block_length=3), ValueError, "block_length=3 with method='nonparametric'"),
    "bootstrap of one block": (lambda: fj.bootstrap(fitted(), KEY, method="block", block_length=30), ValueError, "block_length=30 must be a whole number from 1 to 29"),
    "bootstrap of blocks by jackknife": (lambda: fj.bootstrap(fitted(), KEY, method="block", block_length=3, acceleration="jackknife"), ValueError, "leaves out observations one by one, which blocks do not allow"),
    "bootstrap of other clusters": (lambda: fj.bootstrap(fitted(), KEY, clusters=[1, 2]), ValueError, r"clusters has shape \(2,\), expected \(30,\)"),
    "bootstrap of one cluster": (lambda: fj.bootstrap(fitted(), KEY, clusters=np.zeros(30)), ValueError, "bootstrap: all observations are in one cluster"),
    "parametric bootstrap of clusters": (lambda: fj.bootstrap(fitted(), KEY, clusters=np.arange(30), method="parametric"), ValueError, 'clusters are drawn by method="nonparametric"'),
    "parametric bootstrap without sampler": (lambda: fj.bootstrap(fitted(), KEY, method="parametric"), ValueError, r"bootstrap: draws from the model, which has no sampler. Give Model\(…, sample="),
    "parametric bootstrap of pairs": (lambda: fj.bootstrap(fj.fit(fj.Model(density, sample=lambda key, p: jnp.zeros(2), constraints={"scale": fj.positive}), START, Y), KEY, 9, method="parametric"), ValueError, r"leaves of shape \[\(30, 2\)\], the data \[\(30,\)\]"),
    "bootstrap of halves": (lambda: fj.bootstrap(fj.fit(bound(scale=fj.positive), START, Y, weights=np.full(30, 1.5)), KEY), ValueError, r"must be whole numbers here; weights\[0\] is not"),
    "bootstrap of a series one by one": (lambda: fj.bootstrap(fj.fit(fj.dependent(lambda p, y: norm.logpdf(y[1:], p * y[:-1], 1.0)), 0.1, Y), KEY), ValueError, 'the terms of a dependent model cannot be drawn one by one. Use method="block"'),
    "bootstrap interval of an unknown kind": (lambda: fj.bootstrap(fitted(), KEY, 9).confidence_intervals(0.9, "abc"), ValueError, "method='abc' is unknown; choose from 'percentile', 'basic', 'bca'"),
    "information-matrix test of few draws": (lambda: fj.information_matrix_test(fitted(), KEY, 9), ValueError, "num_replicates=9 must be a whole number, at least 99"),
    "information-matrix test of a failed fit": (lambda: fj.information_matrix_test(fj.fit(bound(scale=fj.positive), START, Y, max_steps=1), KEY), ValueError, "information_matrix_test: needs a fit that converged"),
    "information-matrix test of a batch": (lambda: fj.information_matrix_test(fj.fit_batch(bound(scale=fj.positive), START, np.stack([Y, 2 * Y])), KEY), TypeError, "takes one fit, which it makes a batch of"),
    "information-matrix test without sampler": (lambda: fj.information_matrix_test(fitted(), KEY), ValueError, "information_matrix_test: draws from the model, which has no sampler"),
    "Fisher information without a route": (lambda: fj.fisher_information(density, START), ValueError, r"no method to compute the expectation.*Model\(…, information="),
    "closed form without covariates": (lambda: fj.fisher_information(fj.families.gamma, {"shape": 1.0, "rate": 1.0}, given=Y), TypeError, r"information takes .* but is called as information\(params, z\). given= passes it the covariates"),
    "predictor that wants covariates": (lambda: fj.fisher_information(fj.linked(fj.families.poisson, lambda p, z: {"rate": p}), 1.0), TypeError, r"predictor takes \(p, z\), but is called as predictor\(params\). Pass its covariates as given="),
    "batch of two sizes": (lambda: fj.fit_batch(density, START, np.ones((4, 5)), weights=np.ones((3, 5))), ValueError, r"number of data sets differs \(data: 4, weights: 3\)"),
    "batch that is none": (lambda: fj.fit_batch(density, START, Y, data_axis=None), ValueError, "every axis is None, so there is one data set only. Use fit"),
    "batch without that axis": (lambda: fj.fit_batch(density, START, np.ones((4, 5)), data_axis=2), ValueError, r"shape \(4, 5\) has no axis 2 over the data sets"),
    "batch with one scalar start along an axis": (lambda: fj.fit_batch(density, START, np.ones((4, 5)), start_axis=1), ValueError, r"fit_batch: start loc has shape \(\), which has no axis 1 over data sets"),
    "batch with an axis for nothing": (lambda: fj.fit_batch(density, START, np.ones((4, 5)), start_axis={"location": 0}), ValueError, "start_axis={'location': 0} does not fit start"),
    "batch of no data sets": (lambda: fj.fit_batch(density, START, np.ones((0, 5))), ValueError, r"no data sets \(an axis of length 0\)"),
    "batch with starts for others": (lambda: fj.fit_batch(density, {"loc": np.zeros(3), "scale": 1.0}, np.ones((4, 5)), start_axis={"loc": 0, "scale": None}), ValueError, "values for 3 data sets, but there are 4"),
    "batch start outside": (lambda: fj.fit_batch(bound(scale=fj.positive), {"loc": 0.0, "scale": -2.0}, np.ones((4, 5))), ValueError, "fit_batch: parameter `scale` starts at -2.0"),
    "batch of unknown covariances": (lambda: fj.fit_batch(density, START, np.ones((4, 5)), covariances=("robust",)), ValueError, "covariances='robust' is unknown; choose from 'observed'"),
    "batch without closed form": (lambda: fj.fit_batch(density, START, np.ones((4, 5)), covariances="expected"), ValueError, "no closed form of it"),
    "batch without lanes": (lambda: fj.fit_batch(density, START, np.ones((4, 5)), num_lanes=0), ValueError, "num_lanes=0 must be a multiple of 16"),
    "batch under jit": (lambda: jax.jit(lambda y: fj.fit_batch(density, START, y).params)(np.ones((4, 5))), TypeError, "runs on the host and cannot be called under jit"),
    "ragged weights": (lambda: fj.fit_batch(density, START, [Y, Y[:3]], weights=np.ones((2, 5))), ValueError, "data is a list of 2 data sets, so weights must be a list of 2 too.*got ndarray"),
    "ragged weights of one": (lambda: fj.fit_batch(density, START, [Y, Y[:3]], weights=[np.ones(len(Y)), np.ones(2)]), ValueError, r"weights\[1\] has shape \(2,\), expected \(3,\)"),
    "ragged leaves": (lambda: fj.fit_batch(density, START, [(Y, Y[:2])]), ValueError, r"data\[0\] holds arrays of shapes .*need the same leading axis"),
    "ragged covariates": (lambda: fj.fit_batch(lambda p, y, z: norm.logpdf(y, p * z, 1.0), 0.0, [Y, Y[:3]], given=[Y, Y[:2]]), ValueError, r"given\[1\] has 2 rows, but data\[1\] has 3"),
    "ragged covariates that are no list": (lambda: fj.fit_batch(lambda p, y, z: norm.logpdf(y, p * z, 1.0), 0.0, [Y, Y[:3]], given=Y), ValueError, "so given must be a list of 2 too"),
    "ragged with axes": (lambda: fj.fit_batch(density, START, [Y, Y[:3]], data_axis=1), ValueError, "a list of data sets has no axes over them"),
    "ragged starts": (lambda: fj.fit_batch(density, {"loc": np.zeros(3), "scale": np.ones(3)}, [Y, Y[:3]], start_axis=0), ValueError, "values for 3 data sets, but there are 2"),
    "ragged shapes": (lambda: fj.fit_batch(lambda p, y: norm.logpdf(y[0], p, 1.0), 0.0, [np.ones((3, 2)), np.ones((3, 4))]), ValueError, "must be alike but for their number of observations"),
    "batch of one data set": (lambda: fj.fit_batch(density, START, Y), ValueError, r"data of shape \(30,\) needs an axis over the data sets and one over the observations"),
    "batch of no kinds": (lambda: fj.fit_batch(density, START, np.ones((4, 5)), covariances=None), TypeError, "covariances=None must be a tuple of kinds"),
    "batch with axes in words": (lambda: fj.fit_batch(density, START, np.ones((4, 5)), data_axis="0"), TypeError, "data_axis='0' must be a whole number"),
    "batch on a device": (lambda: fj.fit_batch(density, START, np.ones((4, 5)), devices="all"), TypeError, "devices='all' must be a number of threads"),
    "batch with an initial that is not traced": (lambda: fj.fit_batch(fj.Model(density, initial=lambda y: {"loc": float(jnp.mean(y)), "scale": 1.0}), None, np.ones((4, 5))), TypeError, "initial leaves jax.numpy at line .* of test_messages.py.*in place of numpy, math and float"),
    "ragged and empty": (lambda: fj.fit_batch(density, START, []), ValueError, "data is an empty list"),
    "unknown expectation": (lambda: fj.fisher_information(MODELS["normal"].model, START, "exact"), TypeError, "expectation must be MonteCarlo, QuasiMonteCarlo, Quadrature or Enumeration, got str"),
    "draws without a sampler": (lambda: fj.fisher_information(density, START, DRAWS), ValueError, r"which has no sampler. Give Model\(…, sample="),
    "points without a quantile": (lambda: fj.fisher_information(density, START, fj.QuasiMonteCarlo(KEY, 256)), ValueError, r"inverse of the distribution function. Give Model\(…, quantile="),
    "odd number of draws": (lambda: fj.MonteCarlo(KEY, 101), ValueError, "num_samples=101 must be an even whole number"),
    "points that do not divide": (lambda: fj.QuasiMonteCarlo(KEY, 1000), ValueError, "num_samples=1000 must be a multiple of 256"),
    "unknown estimator": (lambda: fj.MonteCarlo(KEY, 100, "opg"), ValueError, 'estimator=.opg. is unknown; choose from .bartlett.'),
    "fallback from nothing": (lambda: fj.MonteCarlo(KEY, 100, "outer", fallback="hessian"), ValueError, 'only "bartlett" falls back'),
    "too few draws": (lambda: fj.fisher_information(fj.families.normal, START, fj.MonteCarlo(KEY, 20)), ValueError, "needs at least 36 draws for 2 parameters, got 20"),
    "quadrature backwards": (lambda: fj.Quadrature(1.0, 0.0), ValueError, "lower < points < upper.*got lower=1.0"),
    "quadrature of few nodes": (lambda: fj.Quadrature(0.0, 1.0, 3), ValueError, "Quadrature: order=3 must be a whole number, at least 16 nodes"),
    "quadrature of a series": (lambda: fj.fisher_information(fj.dependent(lambda p, y: y[1:] * p), 1.0, fj.Quadrature(0.0, 1.0)), ValueError, "a dependent model draws a whole series"),
    "linked to nothing": (lambda: fj.linked(density, lambda p, z: {"rate": p}), TypeError, "linked: family must be a Model such as families.poisson, got function"),
    "predictor of a number": (lambda: fj.fisher_information(fj.linked(fj.families.poisson, lambda p: p), 1.0), TypeError, "predictor must return a dictionary.*but returned"),
    "predictor of another name": (lambda: fj.log_likelihood(fj.linked(fj.families.poisson, lambda p: {"mean": p}), 1.0, np.array([1, 2])), ValueError, "family needs the parameter 'rate', but the predictor returned mean"),
    "information of other parameters": (lambda: record() + record("a", "b"), ValueError, "cannot add the information on `a`, `b` to that on `loc`, `scale`"),
    "marginal of nobody": (lambda: record().marginal("lcoation"), ValueError, "Information.marginal: names: no entry is named 'lcoation'; there are loc, scale"),
    "fixed twice": (lambda: record().fix(["loc", "loc"]), ValueError, "expected one or more different names"),
    "reparametrised into others": (lambda: record().reparametrize(lambda p: {"loc": p["m"]}, {"m": 1.0}), ValueError, "gives `loc`, but the information is about.*`scale` is missing"),
    "bias of another shape": (lambda: fj.cramer_rao_bound(fj.families.normal, START, num_observations=9, bias=lambda p: p["loc"]), ValueError, "bias of loc, scale: give it the same structure"),
    "bound for nobody": (lambda: fj.cramer_rao_bound(fj.families.normal, START, num_observations=0), ValueError, "num_observations=0 must be positive"),
    "information outside": (lambda: fj.fisher_information(fj.families.normal, {"loc": 0.0, "scale": -1.0}), ValueError, "`scale` starts at -1.0, but must be positive"),
    "everything fixed": (lambda: fj.fisher_information(fj.Model(density, constraints=fj.fixed), START, DRAWS), ValueError, "every parameter is fixed"),
    "values of two lengths": (lambda: fj.Enumeration({"a": [0, 1], "b": [1, 2, 3]}), ValueError, "one leading axis"),
    "points in no dimension": (lambda: fj.QuasiMonteCarlo(KEY, 256, dimension=0), ValueError, "dimension=0 must be a whole number"),
    "inverse of a batch": (lambda: records().inverse(), ValueError, r"Information.inverse: this record has a batch axis.*jax.vmap"),
    "trace of a batch": (lambda: records().trace(), ValueError, "has a batch axis"),
    "record times a vector": (lambda: jnp.ones(2) * record(), TypeError, "only a number of observations"),
    "marginal without a nuisance's information": (lambda: fj.Information(jnp.diag(jnp.array([1.0, 0.0])), ("a", "b"), "made up").marginal("a"), ValueError, "not positive definite.*along .*b"),
    "check of a closed form": (lambda: fj.check_score_mean(fj.families.normal, START, None), TypeError, "got NoneType. A closed form would have nothing to test"),
    "level of a check": (lambda: fj.check_score_mean(fj.families.normal, START, DRAWS, level=5), ValueError, "level=5 must lie between 0 and 1"),
    "rows of covariates without a length": (lambda: fj.fisher_information(fj.linked(fj.families.poisson, lambda p, z: {"rate": p}), 1.0, given=3.0), ValueError, "given is a scalar; expected a leading axis"),
    "information of a wrong shape": (lambda: fj.fisher_information(fj.Model(density, information=lambda p: jnp.eye(3)), START), ValueError, r"expected shape \(2, 2\) for the parameters loc, scale, got \(3, 3\)"),
    "information nested wrongly": (lambda: fj.fisher_information(fj.Model(density, information=lambda p: {"loc": 1.0}), START), ValueError, "nested like params in params"),
    "singular information": (lambda: fj.observed_information(lambda p, y: norm.logpdf(y, p["a"] + p["b"], 1.0), {"a": 0.0, "b": 0.0}, Y).inverse(), ValueError, r"not positive definite .* along \+1 a -1 b"),
    "delta method of a number": (lambda: fj.delta_method(fitted(), 3.0), TypeError, "delta_method: function must be a function of params, got float"),
    "delta method of nothing": (lambda: fj.delta_method(fitted(), lambda p: None), TypeError, "must return a number, an array or a pytree of them, but returned nothing"),
    "delta method of a comparison": (lambda: fj.delta_method(fitted(), lambda p: p["loc"] > 0), TypeError, "must return floating numbers but returned dtype bool"),
    "delta method of no fit": (lambda: fj.delta_method(START, lambda p: p), TypeError, "delta_method: expected a Fit, got dict"),
    "delta method at a level": (lambda: fj.delta_method(fitted(), lambda p: p, level=95), ValueError, "delta_method: level=95 must lie strictly"),
    "Wald test of a stranger": (lambda: fj.wald_test(fitted(), {"locus": 0.0}), ValueError, "wald_test: the hypothesis names `locus`, but the parameters are `loc`, `scale`"),
    "Wald test of nothing": (lambda: fj.wald_test(fitted(), {"loc": None}), ValueError, "the hypothesis restricts nothing"),
    "Wald test of two values": (lambda: fj.wald_test(fitted(), {"loc": np.zeros(2)}), ValueError, r"value of `loc` must be a number or an array of shape \(\), got float64 of shape \(2,\)"),
    "Wald test of a traced value": (lambda: jax.jit(lambda x: fj.wald_test(fitted(), {"loc": x}))(0.0), TypeError, "value of `loc` must be known now, but is traced"),
    "Wald test out of range": (lambda: fj.wald_test(fitted(), {"scale": -1.0}), ValueError, "`scale` is positive, and cannot be -1.0"),
    "Wald test twice over": (lambda: fj.wald_test(fitted(), lambda p: (p["loc"], 2 * p["loc"])), ValueError, r"not independent at the estimate: the derivative of \+1 restriction\[0\] -0.5 restriction\[1\] is zero"),
    "Wald test of a constant": (lambda: fj.wald_test(fitted(), lambda p: 0.0 * p["loc"]), ValueError, r"the derivative of \+1 restriction is zero"),
    "Wald test of a fixed parameter": (lambda: fj.wald_test(held(), {"scale": 1.0}), ValueError, "`scale` was held fixed in this fit.*use score_test"),
    "Wald test of an unknown kind": (lambda: fj.wald_test(fitted(), {"loc": 0.0}, kind="robust"), ValueError, "wald_test: kind='robust' is unknown"),
    "likelihood ratio of dependent restrictions": (lambda: fj.likelihood_ratio_test(fitted(), lambda p: [p["loc"], 2 * p["loc"]]), ValueError, "likelihood_ratio_test: the restrictions are not independent at the estimate"),
    "likelihood ratio of a restriction in whole numbers": (lambda: fj.likelihood_ratio_test(fitted(), lambda p: p["loc"] > 0), TypeError, "restriction must return floating numbers but returned dtype bool"),
    "likelihood ratio the wrong way round": (lambda: fj.likelihood_ratio_test(held(), fitted()), ValueError, "the null fit has 2 free parameters and the other 1.*larger model first"),
    "likelihood ratio of other data": (lambda: fj.likelihood_ratio_test(fitted(), held(2 * Y)), ValueError, "the two fits are of different data"),
    "likelihood ratio of another number of data": (lambda: fj.likelihood_ratio_test(fitted(), held(Y[:-1])), ValueError, "the two fits are of different data"),
    "likelihood ratio of part of a simplex": (lambda: fj.likelihood_ratio_test(on_simplex(), {"params[0]": 0.5}), ValueError, "some of its entries cannot be held while the others move"),
    "likelihood ratio far beyond the boundary": (lambda: fj.likelihood_ratio_test(fitted(), held(), num_on_boundary=2), ValueError, "num_on_boundary=2 must be a whole number from 0 to 1"),
    "likelihood ratio without the data": (lambda: fj.likelihood_ratio_test(jax.tree.map(jnp.asarray, fitted()), {"loc": 0.0}), ValueError, "likelihood_ratio_test: needs the data, which this fit no longer has"),
    "score test of nothing held": (lambda: fj.score_test(fitted()), ValueError, "score_test: this fit holds no parameter fixed"),
    "score test of a stranger": (lambda: fj.score_test(held(), "loc"), ValueError, "freed names 'loc', but what this fit holds fixed is `scale`"),
    "score test of two things": (lambda: fj.score_test(held(), "scale", candidates=np.ones((30, 1))), ValueError, "freed and candidates are two tests"),
    "score test that enters without candidates": (lambda: fj.score_test(held(), enters="rate"), ValueError, "enters defines where candidates enter, but there are none"),
    "score test without a route": (lambda: fj.score_test(held(), kind="expected"), ValueError, 'kind="expected" needs the Fisher information, and this model has no closed form'),
    "score test of an unknown kind": (lambda: fj.score_test(held(), kind="robust"), ValueError, "score_test: kind='robust' is unknown"),
    "candidates into the unknown": (lambda: fj.score_test(fitted(), candidates=np.ones((30, 1))), ValueError, r"how candidates enter this model is not known. Give enters=function\(params, y, z, offset\)"),
    "candidates in a row": (lambda: fj.score_test(fitted(), candidates=np.ones(30)), ValueError, r"shape \(30,\); expected numbers \(n, K\)"),
    "candidates of another length": (lambda: fj.score_test(fitted(), candidates=np.ones((9, 1)), enters=shifted), ValueError, "candidates has 9 rows, but the data have 30"),
    "candidates of another model": (lambda: fj.score_test(fitted(), candidates=np.ones((30, 1)), enters=lambda p, y, offset: density(p, 2 * y + offset)), ValueError, "is not the log-density of the model: their scores differ"),
    "candidates with other arguments": (lambda: fj.score_test(fitted(), candidates=np.ones((30, 1)), enters=lambda p, y: 0.0), TypeError, r"enters takes \(p, y\), but is called as enters\(params, y, offset\)"),
    "candidates by number": (lambda: fj.score_test(by_rate(), candidates=np.ones((30, 1)), enters=3), TypeError, "enters must be a parameter's name or a function, got int"),
    "candidates for another parameter": (lambda: fj.score_test(by_rate(), candidates=np.ones((30, 1)), enters="mean"), ValueError, "enters='mean' names none of the family's parameters, which are rate"),
    "robust in two ways": (lambda: fj.robust(fitted(), clusters=np.arange(30) // 3, lags=2), ValueError, "clusters and lags are two answers to one question"),
    "robust weights": (lambda: fj.robust(fitted(), weights=np.ones(30)), ValueError, r"weights=an array of shape \(30,\) is unknown; choose from 'frequency', 'sampling'"),
    "robust factor": (lambda: fj.robust(fitted(), correction="G/(G-1)"), ValueError, r"correction='G/\(G-1\)' is unknown; choose from 'none', 'n/\(n-1\)', 'n/\(n-p\)'. G needs clusters."),
    "robust with half a lag": (lambda: fj.robust(fitted(), lags=0.5), ValueError, "lags=0.5 must be a whole number, at least 0"),
    "robust with all lags": (lambda: fj.robust(fitted(), lags=30), ValueError, "lags=30 must be below the number of terms, 30"),
    "robust times twice there": (lambda: fj.robust(weighted(), lags=1), ValueError, "frequency weights 0 or 1, for none is there twice"),
    "clusters of another length": (lambda: fj.robust(fitted(), clusters=[1, 2]), ValueError, "clusters has 2 labels, but the likelihood has 30 terms"),
    "one cluster": (lambda: fj.robust(fitted(), clusters=np.zeros(30)), ValueError, "all observations are in one cluster"),
    "cluster without a name": (lambda: fj.robust(fitted(), clusters=np.append(np.arange(29.0), np.nan)), ValueError, r"clusters\[29\] is NaN"),
    "cluster that is None": (lambda: fj.robust(fitted(), clusters=["a", None] * 15), ValueError, r"robust: clusters\[1\] is None. Give every observation a label"),
    "cluster that is NaN among text": (lambda: fj.robust(fitted(), clusters=np.array(["a", "b", np.nan] * 10, object)), ValueError, r"robust: clusters\[2\] is NaN"),
    "cluster that is no time": (lambda: fj.robust(fitted(), clusters=np.array(["2001", "NaT", "2002"] * 10, "datetime64[Y]")), ValueError, r"robust: clusters\[1\] is NaT"),
    "clusters of two types": (lambda: fj.robust(fitted(), clusters=np.array(["a", 1, 2] * 10, object)), TypeError, "robust: clusters has labels of the types int, str, which have no order"),
    "bootstrap of a cluster without a name": (lambda: fj.bootstrap(fitted(), KEY, clusters=np.append(np.arange(29.0), np.nan)), ValueError, r"bootstrap: clusters\[29\] is NaN"),
    "clusters in three ways": (lambda: fj.robust(fitted(), clusters=(Y, Y, Y)), ValueError, "clusters is a tuple of 3"),
    "clusters in two lengths": (lambda: fj.robust(fitted(), clusters=(np.arange(30), np.arange(29))), ValueError, "two arrays of clusters have lengths 30 and 29"),
    "clusters in a table": (lambda: fj.robust(fitted(), clusters=np.ones((30, 2))), ValueError, r"clusters has shape \(30, 2\); expected \(n,\)"),
    "identifiability of a sandwich": (lambda: fj.identifiability(fitted(), kind="sandwich"), ValueError, 'kind=.sandwich. must be "observed", "expected" or "empirical"'),
    "comparison of one": (lambda: fj.compare(only=fitted()), ValueError, "compare: got 1 fit; give at least two"),
    "comparison of other data": (lambda: fj.compare(a=fitted(), b=held(Y[:-1])), ValueError, "'a' and 'b' are fits of different data .30 and 29 observations."),
    "comparison by luck": (lambda: fj.compare(a=fitted(), b=held(), criterion="luck"), ValueError, "criterion='luck' is unknown; choose from 'aic', 'aicc', 'bic', 'tic'"),
    "comparison of no names": (lambda: fj.compare([fitted()]), TypeError, "compare: expected fits by name"),
    "comparison of no fit": (lambda: fj.compare(a=fitted(), b=3), TypeError, "compare: 'b' is no Fit but int"),
    "comparison of a name twice": (lambda: fj.compare({"a": fitted()}, a=held()), ValueError, "the name 'a' is given twice"),
    "sampling without sampler": (lambda: fj.sampling_distribution(bound(scale=fj.positive), START, KEY, num_observations=9), ValueError, "sampling_distribution: draws from the model, which has no sampler"),
    "sampling once": (lambda: sampled(num_replicates=1), ValueError, "num_replicates=1 must be a whole number, at least 2"),
    "sampling of nothing": (lambda: sampled(num_observations=0), ValueError, "num_observations=0 must be a whole number, at least 1"),
    "sampling of no n": (lambda: sampled(num_observations=None), ValueError, "num_observations=None must be a whole number"),
    "sampling of a number for a key": (lambda: fj.sampling_distribution(fj.families.normal, START, 3, num_observations=9), TypeError, r"key is int; expected one key, as jax.random.key\(3\)"),
    "sampling under jit": (lambda: jax.jit(lambda s: sampled(params={"loc": 0.0, "scale": s}))(1.0), TypeError, "sampling_distribution: runs on the host"),
    "sampling of part of a design": (lambda: fj.sampling_distribution(fj.linked(fj.families.poisson, lambda p, z: {"rate": p * z}), 1.0, KEY, given=np.ones(4), num_observations=6), ValueError, "num_observations=6 is not a multiple of the 4 rows of given"),
    "sampling of another series": (lambda: fj.sampling_distribution(series(), 0.0, KEY, num_observations=6), ValueError, "num_observations=6, but the sampler of this dependent model draws series of 5 terms"),
    "estimator of no function": (lambda: sampled(estimator="median"), TypeError, "estimator must be a function of a data set that returns parameters, got str"),
    "estimator of other parameters": (lambda: sampled(estimator=lambda y: {"loc": y.mean()}), ValueError, r"estimator returned .*, but the parameters are loc \(\), scale \(\)"),
    "estimator out of JAX": (lambda: sampled(estimator=lambda y: {"loc": float(y[0]), "scale": 1.0}), TypeError, "sampling_distribution: estimator leaves jax.numpy"),
    "scores without sampler": (lambda: fj.score_distribution(density, START, KEY, num_observations=9), ValueError, "score_distribution: draws from the model, which has no sampler"),
    "rate of one n": (lambda: fj.convergence_rate(fj.families.normal, START, KEY, num_observations=(9, 9)), ValueError, "convergence_rate: num_observations=.9, 9. must be at least two different numbers"),
    "rate of a number for a key": (lambda: fj.convergence_rate(fj.families.normal, START, 3, num_observations=(9, 18)), TypeError, "convergence_rate: key is int"),
    "coverage of a number for a key": (lambda: fj.coverage(fj.families.normal, START, 3, num_observations=(9, 18)), TypeError, "coverage: key is int"),
    "rate of no n": (lambda: fj.convergence_rate(fj.families.normal, START, KEY, num_observations=()), ValueError, "convergence_rate: num_observations is empty"),
    "coverage of an unknown kind": (lambda: fj.coverage(fj.families.normal, START, KEY, num_observations=9, kinds=("wald", "exact")), ValueError, "coverage: kinds names 'exact'; choose from 'wald', 'profile'"),
    "coverage of no kind": (lambda: fj.coverage(fj.families.normal, START, KEY, num_observations=9, kinds=()), ValueError, "must be one or more different kinds"),
    "coverage by what is not there": (lambda: fj.coverage(drawable(), START, KEY, num_observations=9, kinds="expected"), ValueError, 'kinds names "expected", but the model has no closed form'),
    "coverage at a level": (lambda: fj.coverage(fj.families.normal, START, KEY, num_observations=9, level=95), ValueError, "coverage: level=95 must lie strictly between 0 and 1"),
    "sample size for nothing": (lambda: fj.sample_size(fj.families.normal, START), ValueError, "sample_size: give either standard_error, or power together with the hypothesis"),
    "sample size for power of nothing": (lambda: fj.sample_size(fj.families.normal, START, power=0.8), ValueError, "power together with the hypothesis"),
    "sample size for a stranger": (lambda: fj.sample_size(fj.families.normal, START, standard_error={"mean": 0.1}), ValueError, "standard_error names `mean` with 1 numbers; there are loc, scale"),
    "sample size for no error": (lambda: fj.sample_size(fj.families.normal, START, standard_error=0.0), ValueError, "standard_error must be positive, got 0"),
    "sample size for less power than level": (lambda: fj.sample_size(fj.families.normal, START, power=0.01, hypothesis={"loc": 1.0}), ValueError, "must obey 0 < level < power < 1"),
    "sample size for a power in words": (lambda: fj.sample_size(fj.families.normal, START, power="0.8", hypothesis={"loc": 1.0}), ValueError, "power='0.8' and level=0.05 must obey"),
    "sample size for infinity": (lambda: fj.sample_size(fj.families.normal, START, standard_error={"loc": np.inf, "scale": 0.1}), ValueError, "sample_size: standard_error of loc is infinite"),
    "sample size for the same twice": (lambda: fj.sample_size(fj.families.normal, START, power=0.8, hypothesis={"a": 1.0, "b": 2.0}, function=lambda p: {"a": p["loc"], "b": 2 * p["loc"]}), ValueError, r"the tested entries are not independent: .* is determined without any data"),
    "efficiency of points without information": (lambda: designed([0.0, 1.0]).efficiency([0.0, np.nan]), ValueError, "Design.efficiency: the information of one observation is not finite at point 1"),
    "sample size against the truth": (lambda: fj.sample_size(fj.families.normal, START, power=0.8, hypothesis={"loc": 0.0}), ValueError, "is the hypothesis true at params"),
    "sample size without a route": (lambda: fj.sample_size(density, START, standard_error=0.1), ValueError, "no method to compute the expectation"),
    "table of nothing": (lambda: fj.coefficient_table(), ValueError, "coefficient_table: got no fit"),
    "diagnosis of a batch": (lambda: batch().diagnosis(), ValueError, r"diagnosis: needs one fit.*take one of a batch by fits\[i\]"),
    "length of one fit": (lambda: len(fitted()), TypeError, "this is one fit, without a batch axis, and has no length"),
    "index into one fit": (lambda: fitted()[0], TypeError, "this is one fit, without a batch axis, and cannot be indexed"),
    "columns of one fit": (lambda: fitted().to_columns(), ValueError, "to_columns: this is one fit. Use to_frame"),
}  # fmt: skip


def record(*names):
    return fj.Information(jnp.eye(2), names or ("loc", "scale"), "made up")


def records():
    return jax.vmap(lambda rate: fj.fisher_information(fj.families.poisson, {"rate": rate}))(jnp.array([1.0, 2.0]))


def large_integers():
    with jax.enable_x64(False):
        fj.fit(density, START, np.array([3_000_000_000, 4_000_000_000]))


@functools.cache
def fitted():
    return fj.fit(bound(scale=fj.positive), START, Y)


def held(y=Y):  # compiled once
    return fj.fit(bound(scale=fj.fixed), START, y)


def weighted():
    return fj.fit(bound(scale=fj.positive), START, Y, weights=np.full(30, 2.0))


def shifted(params, y, offset):
    return density(params, y - offset)


def by_rate():
    model = fj.linked(fj.families.poisson, lambda rate: {"rate": rate}, constraints=fj.positive)
    return fj.fit(model, 1.0, np.arange(30.0))


def on_simplex():
    return fj.fit(
        fj.Model(lambda p, y: jnp.log(p[y]), constraints=fj.simplex), np.array([0.4, 0.6]), np.array([0, 1, 1])
    )


@functools.cache
def batch():
    return fj.fit_batch(bound(scale=fj.positive), START, np.stack([Y, 2 * Y]))


def sampled(*, params=START, num_observations=9, **settings):
    return fj.sampling_distribution(fj.families.normal, params, KEY, num_observations=num_observations, **settings)


def series():
    return fj.dependent(lambda p, y: norm.logpdf(y, p, 1.0), sample=lambda key, p: p + jax.random.normal(key, (5,)))


def drawable():
    return fj.Model(density, sample=fj.families.normal.sample, constraints={"scale": fj.positive})


def bare(*kept):
    return fj.fit_batch(bound(scale=fj.positive), START, np.stack([Y, 2 * Y]), covariances=kept)[0]


@pytest.mark.parametrize("name", MISUSE)
def test_misuse_is_refused_in_the_users_terms(name):
    act, error, words = MISUSE[name]
    with pytest.raises(error, match=words):
        act()


def test_observations_whose_second_derivatives_are_not_finite_are_counted_and_the_first_named():
    cdf = jax.custom_jvp(lambda x: norm.cdf(x))  # JAX 0.12 has a slope whose own slope is finite at −∞
    cdf.defjvps(lambda along, value, x: along * jnp.exp(-0.5 * x * x) / np.sqrt(2 * np.pi))

    def ordinal(params, y, x):  # at −∞ the values and slopes are right, and ∞ · 0 is not
        cuts = jnp.stack([-jnp.inf, -1.0, params["cut"], 3.0])
        return jnp.log(cdf(cuts[y + 1] - params["slope"] * x) - cdf(cuts[y] - params["slope"] * x))

    y = np.array([1, 1, 2, 0, 1, 2, 0, 1])
    start = {"cut": 1.0, "slope": 0.0}
    found = "the second derivatives are not finite at 2 observations, the first of them number 3"
    assert found in fj.fit(ordinal, start, y, given=np.linspace(-1, 1, 8)).diagnosis()
    assert found in fj.fit_batch(ordinal, start, np.stack([y, y]), given=np.linspace(-1, 1, 8))[1].diagnosis()


def test_the_natural_gradient_steps_through_a_module_that_holds_a_function():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Module:
        rate: jax.Array
        link: Callable

    module, optimizer = Module(jnp.array(1.0), jnp.exp), natural_gradient()
    model = fj.linked(fj.families.poisson, lambda module: {"rate": module.link(module.rate)})
    gradient = Module(jnp.array(0.5), None)  # as Equinox's filter_grad has it
    step, state = optimizer.update(
        gradient, optimizer.init(module), module, information=fj.information_operator(model, module)
    )
    np.testing.assert_allclose(step.rate, -0.5 / np.exp(1.0), rtol=1e-6)
    assert step.link is None
    assert state.solved


HUGE = 10**12
COUNTS = {
    "bootstrap num_replicates": lambda: fj.bootstrap(fitted(), KEY, HUGE),
    "information_matrix_test num_replicates": lambda: fj.information_matrix_test(fitted(), KEY, HUGE),
    "sampling_distribution num_replicates": lambda: sampled(num_replicates=HUGE),
    "sampling_distribution num_observations": lambda: sampled(num_observations=HUGE),
    "score_distribution num_replicates": lambda: fj.score_distribution(fj.families.normal, START, KEY, num_observations=9, num_replicates=HUGE),
    "coverage num_replicates": lambda: covered(num_replicates=HUGE),
    "coverage num_observations": lambda: covered(num_observations=(9, HUGE)),
    "coverage num_bootstraps": lambda: covered(num_bootstraps=HUGE),
    "convergence_rate num_replicates": lambda: fj.convergence_rate(fj.families.normal, START, KEY, num_observations=(9, 18), num_replicates=HUGE),
    "convergence_rate num_observations": lambda: fj.convergence_rate(fj.families.normal, START, KEY, num_observations=(9, HUGE)),
    "sample_size num_replicates": lambda: fj.sample_size(fj.families.normal, START, standard_error={"loc": 0.1}, key=KEY, num_replicates=HUGE),
    "sample_size num_observations": lambda: fj.sample_size(fj.families.normal, START, standard_error={"loc": 2e-6}, key=KEY),
    "MonteCarlo num_samples": lambda: fj.MonteCarlo(KEY, HUGE),
    "QuasiMonteCarlo num_samples": lambda: fj.QuasiMonteCarlo(KEY, 256 * HUGE),
    "Quadrature order": lambda: fj.Quadrature(0.0, 1.0, HUGE),
    "diagonal num_probes": lambda: by_products().diagonal(KEY, HUGE),
    "trace num_probes": lambda: by_products().trace(KEY, HUGE),
    "log_determinant num_probes": lambda: by_products().log_determinant(KEY, num_probes=HUGE),
    "log_determinant num_steps": lambda: by_products().log_determinant(KEY, num_steps=HUGE),
    "fit starts": lambda: fj.fit(density, START, Y, starts=HUGE, key=KEY),
    "fit max_steps": lambda: fj.fit(density, START, Y, max_steps=HUGE),
    "fit_batch max_steps": lambda: fj.fit_batch(density, START, Y[None], max_steps=HUGE),
    "fit_batch num_lanes": lambda: fj.fit_batch(density, START, Y[None], num_lanes=HUGE),
    "fit_batch devices": lambda: fj.fit_batch(density, START, Y[None], devices=HUGE),
    "fit_stream block": lambda: fj.fit_stream(density, START, Y[None], "fits.zarr", block=HUGE),
    "likelihood_surface num_points": lambda: fj.plots.likelihood_surface(fitted(), num_points=10**6),
}  # fmt: skip


def covered(*, num_observations=9, num_replicates=20, **settings):
    return fj.coverage(
        fj.families.normal, START, KEY, num_observations=num_observations, num_replicates=num_replicates, **settings
    )


def by_products():
    return fj.information_operator(density, START, kind="observed", data=Y)


@pytest.mark.parametrize("name", COUNTS)
def test_a_count_beyond_what_memory_can_hold_is_refused_with_the_number(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argument = name.split()[1]
    with pytest.raises(ValueError, match=rf"{argument}=\d{{7,}} (needs \d.* GB at least|must be .* to 2\*\*31)"):
        COUNTS[name]()
    assert not list(tmp_path.iterdir())


def test_the_largest_count_that_a_message_names_is_accepted():
    with pytest.raises(ValueError, match="Give n of at most") as refused:
        check_count(10**15, 1, "n", entries=3)
    most = int(re.search(r"at most (\d+)", str(refused.value))[1])
    assert check_count(most, 1, "n", entries=3) == most
    with pytest.raises(ValueError, match="at least, and this machine has"):
        check_count(most + 1, 1, "n", entries=3)


def test_standard_errors_of_a_failed_fit_come_with_a_warning_that_says_why():
    failed = fj.fit(bound(scale=fj.positive), START, Y, max_steps=1)
    with pytest.warns(fj.FitWarning, match="standard_errors: not to be relied on. Step limit.*Try: raise max_steps"):
        failed.standard_errors()
    with pytest.warns(fj.FitWarning, match="confidence_intervals"):
        failed.confidence_intervals()


def test_a_missing_extra_is_named_with_the_way_to_get_it():
    with pytest.raises(ImportError, match=r'this needs nopandas: pip install "fisher_jax\[frames\]"'):
        require("nopandas", "frames")


def test_raise_if_failed_returns_a_good_fit_and_raises_for_a_bad_one():
    good = fitted()
    assert good.raise_if_failed() is good
    with pytest.raises(fj.FitError, match="Step limit"):
        fj.fit(bound(scale=fj.positive), START, Y, max_steps=1).raise_if_failed()


def test_a_model_shows_what_it_is_made_of_in_one_line():
    def rate(params, z):
        return {"rate": jnp.exp(params["beta"] @ z)}

    def joint(params, effects, y):
        return density(params, y - effects["shift"])

    normal, poisson = fj.families.normal, fj.families.poisson
    assert repr(fj.Model(density)) == "Model(density)"
    assert repr(fj.Model(density, sample=rate, support=(0.0, 9.0), discrete=True)) == (
        "Model(density, sample=rate, support=(0.0, 9.0), discrete=True)"
    )
    assert repr(fj.linked(poisson, rate)) == "linked(families.poisson(rate), rate)"
    assert repr(fj.truncated(fj.linked(poisson, rate), low=0)) == (
        "linked(truncated(families.poisson(rate), low=0.0), rate)"
    )
    assert repr(fj.marginal(joint, {"shift": 0.0})) == "marginal(joint)"
    assert repr(fj.mixture(normal, 2)).startswith("mixture(families.normal(loc, scale), 2, constraints={'weights'")
    assert repr(fj.with_prior(poisson, density)) == "with_prior(families.poisson(rate), density)"


def test_the_report_reads_so():
    y = np.array([1.0, 2.0, 3.0, 6.0])
    text = str(fj.fit(bound(scale=fj.positive), START, y).summary())
    lines = [line.rstrip() for line in text.splitlines()]
    assert lines[0] == "Maximum-likelihood fit"
    assert lines[1].startswith("  Status                   converged, ")
    assert lines[1].endswith(" steps in float64")
    assert lines[3:5] == [
        "  Observations             4, free parameters 2",
        "  Log-likelihood           -8.181280, AIC 20.3626, BIC 19.1351",
    ]
    assert lines[5] == "  Covariance               inverse observed information, (minus Hessian)⁻¹"
    assert lines[7:] == [
        "  parameter  estimate  std. error      z   p-value  lower 95 %  upper 95 %",
        "  loc               3    0.935414  3.207  0.001341     1.16662     4.83338",
        "  scale       1.87083    0.661438      -         -    0.935597     3.74093",
    ]


def test_the_report_of_a_failed_fit_warns_and_says_what_to_try():
    text = str(fj.fit(bound(scale=fj.positive), START, Y, max_steps=1).summary("sandwich"))
    assert "NOT TO BE RELIED ON. Step limit" in text
    assert "sandwich" in text
    assert "<p>NOT TO BE RELIED ON" in fj.fit(bound(scale=fj.positive), START, Y, max_steps=1)._repr_html_()


def test_the_report_shows_in_a_notebook_and_as_a_frame():
    fit = fitted()
    page = fit.summary()._repr_html_()
    assert page.count("<tr>") == 5 + 1 + 2
    frame = fit.to_frame(level=0.9)
    assert list(frame.index) == ["loc", "scale"]
    assert list(frame.columns) == ["estimate", "standard_error", "z", "p_value", "lower", "upper"]
    np.testing.assert_allclose(
        frame.loc["loc", "p_value"], 2 * scipy.stats.norm.sf(abs(frame.loc["loc", "z"])), rtol=1e-12
    )
    assert frame.loc["scale", ["z", "p_value"]].isna().all()  # no scale is zero
    np.testing.assert_allclose(frame.loc["scale", "standard_error"], fit.standard_errors()["scale"], rtol=1e-12)
    matrix = fit.information().to_frame()
    np.testing.assert_allclose(matrix.loc["loc", "scale"], np.asarray(fit.information())[0, 1])
