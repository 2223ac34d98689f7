"""Functions made anew: those that do the same share what was compiled, others are named in one warning."""

import functools
import marshal
import pickle
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import compiled_programs
from jax.scipy.stats import norm

import fisher_jax as fj
from fisher_jax.models.fingerprint import LARGE, content_of
from fisher_jax.models.programs import MANY, MAX_SHARED, _shared, programs_of

Y = np.random.default_rng(1).normal(2.0, 1.5, 30)
START = {"loc": 0.0, "log_scale": 0.0}


def by_value(function):
    """A copy as cloudpickle makes it in a worker: code of its own, and a namespace of its own with what the code names."""
    code = marshal.loads(marshal.dumps(function.__code__))
    named = {name: function.__globals__[name] for name in code.co_names if name in function.__globals__}
    return types.FunctionType(code, named, function.__name__, function.__defaults__, function.__closure__)


def log_density(params, y):
    return norm.logpdf(y, params["loc"], jnp.exp(params["log_scale"]))


def sample(key, params):
    return params["loc"] + jnp.exp(params["log_scale"]) * jax.random.normal(key)


def shifted(shift):
    return lambda params, y: norm.logpdf(y - jnp.sum(shift), params["loc"], jnp.exp(params["log_scale"]))


def location_of(model):
    return float(fj.fit(model, START, Y).params["loc"])


ENTRY_POINTS = {
    "fit": lambda model: fj.fit(model, START, Y),
    "fit_batch": lambda model: fj.fit_batch(model, START, Y.reshape(3, 10)),
    "log_likelihood": lambda model: fj.log_likelihood(model, START, Y),
    "score": lambda model: fj.score(model, START, Y),
    "observed_information": lambda model: fj.observed_information(model, START, Y),
    "empirical_fisher": lambda model: fj.empirical_fisher(model, START, Y),
    "fisher_information": lambda model: fj.fisher_information(
        fj.Model(model, sample=lambda key, params: sample(key, params)),
        START,
        fj.MonteCarlo(jax.random.key(0), 100),
    ),
}


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_lambdas_made_anew_in_a_loop_compile_nothing_new(name):
    with compiled_programs() as compiled:
        for turn in range(MANY + 1):
            ENTRY_POINTS[name](lambda params, y: log_density(params, y))
            if turn == 0:
                compiled.clear()
    assert compiled == []


def test_equal_values_closed_over_compile_nothing_and_others_keep_their_own():
    expected = {shift: np.mean(Y) - 2 * shift for shift in (0.25, 0.5)}
    for shift, location in expected.items():
        np.testing.assert_allclose(location_of(shifted(np.full(2, shift))), location, rtol=1e-6)
    with compiled_programs() as compiled:
        for shift, location in expected.items():
            np.testing.assert_allclose(location_of(shifted(np.full(2, shift))), location, rtol=1e-6)
    assert compiled == []


def test_a_model_sent_to_workers_by_value_compiles_once_for_all_tasks():
    def task():
        model = fj.Model(by_value(log_density), sample=by_value(sample), constraints={"loc": fj.interval(-50.0, 50.0)})
        fit = fj.fit(model, START, Y)
        fj.bootstrap(fit, jax.random.key(0), 8, method="parametric")
        return float(fit.params["loc"])

    first = task()
    with compiled_programs() as compiled:
        assert [task() for _ in range(3)] == [first] * 3
    assert compiled == []


def test_a_fitted_method_and_its_object_are_pickled_without_programs():
    fj.fit(MEASURED.log_density, 0.0, Y)
    again = pickle.loads(pickle.dumps(MEASURED))
    np.testing.assert_allclose(fj.fit(again.log_density, 0.0, Y).params, np.mean(Y), rtol=1e-6)


class Measured:
    def log_density(self, params, y):
        return norm.logpdf(y, params)


MEASURED = Measured()


def test_fresh_closures_over_arrays_warn_once_and_name_the_cause():
    turns = {"small": 2, "large": LARGE}
    for kind, size in turns.items():

        def made(z):
            return lambda params, y: norm.logpdf(y - z[0], params["loc"], jnp.exp(params["log_scale"]))

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for turn in range(MANY + 3):
                fj.log_likelihood(made(jnp.full(size, turn / 8.0)), START, Y)
        if kind == "small":
            (warning,) = caught
            said = str(warning.message)
            assert f"made anew {MANY} times" in said
            assert "they differ in closure z. Pass what differs to one function, by given=" in said
        else:
            assert caught == []  # said already of this place


def scaled_by_first_of(table):
    return lambda params, y: norm.logpdf(y * jnp.asarray(table)[0], params["loc"])


def test_a_large_array_closed_over_is_named_too():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(MANY):
            fj.log_likelihood(scaled_by_first_of(np.ones(LARGE)), {"loc": 0.0}, Y)
    assert ["closure table" in str(warning.message) for warning in caught] == [True]


def test_a_few_models_to_compare_do_not_warn():
    def polynomial(degree):
        return lambda params, y: norm.logpdf(y, params["loc"] ** degree)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for degree in range(1, MANY):
            fj.log_likelihood(polynomial(degree), {"loc": 0.0}, Y)


def factor_one(params, y):
    return FACTOR * norm.logpdf(y, params)


FACTOR = 1.0


def closed_over(factor):
    return lambda params, y: factor * norm.logpdf(y, params)


def with_default(factor):
    def density(params, y, factor=factor):
        return factor * norm.logpdf(y, params)

    return density


def by_first(held):
    return lambda params, y: held[0] * norm.logpdf(y, params)


def by_field(held):
    return lambda params, y: held.factor * norm.logpdf(y, params)


def by_call(get):
    return lambda params, y: get("factor") * norm.logpdf(y, params)


def by_type(held):
    return lambda params, y: (2.0 if held is True else 1.0) * norm.logpdf(y, params)


def mapped(one):
    return lambda params, y: jax.vmap(one, (None, 0))(params, y[None])[0]


def module_with(factor):
    module = types.ModuleType("settings_of_the_user")
    module.factor = factor
    return module


def with_attribute(factor):
    def density(params, y):
        return density.factor * norm.logpdf(y, params)

    density.factor = factor
    return density


# Densities that read a factor of 1 or 2 from somewhere: what cannot be compared must not be shared.
PLACES = {
    "closure": closed_over,
    "default": with_default,
    "global": lambda factor: types.FunctionType(factor_one.__code__, globals() | {"FACTOR": factor}),
    "list": lambda factor: by_first([factor]),
    "array": lambda factor: by_first(np.array([factor])),
    "array of JAX": lambda factor: by_first(jnp.array([factor])),
    "function inside": lambda factor: by_call(lambda _: factor),
    "class": lambda factor: by_field(type("Settings", (), {"factor": factor})),
    "object": lambda factor: by_field(types.SimpleNamespace(factor=factor)),
    "module": lambda factor: by_field(module_with(factor)),
    "bound method": lambda factor: by_call({"factor": factor}.get),
    "attribute": lambda factor: with_attribute(factor),
    "partial": lambda factor: functools.partial(lambda held, params, y: held * norm.logpdf(y, params), factor),
    "jitted": lambda factor: jax.jit(closed_over(factor)),
    "mapped": lambda factor: mapped(closed_over(factor)),
    "type of a number": lambda factor: by_type(True if factor == 2.0 else 1),
}


@pytest.mark.parametrize("place", PLACES)
def test_functions_that_differ_anywhere_are_never_taken_for_each_other(place):
    once, twice = (float(fj.log_likelihood(PLACES[place](factor), 0.5, Y)) for factor in (1.0, 2.0))
    np.testing.assert_allclose([once, twice], np.sum(norm.logpdf(Y, 0.5)) * np.array([1.0, 2.0]), rtol=1e-6)


def test_what_is_kept_of_functions_that_are_gone_is_bounded():
    for number in range(MAX_SHARED + 3):
        programs_of(fj.Model(shifted(float(number))))
    assert len(_shared) <= MAX_SHARED
    assert content_of(shifted(np.zeros(LARGE)))[0] is None


def test_code_that_is_replaced_in_place_is_compiled_anew():  # as IPython's %autoreload does where a file has changed
    def density(params, y):
        return norm.logpdf(y, params["loc"], 1.0)

    def edited(params, y):
        return norm.logpdf(y, params["loc"] + 1.0, 1.0)

    def results():
        fits = fj.fit_batch(model, {"loc": 0.0}, Y.reshape(3, 10))
        total = fj.log_likelihood(model, {"loc": 0.0}, Y)
        return [float(fj.fit(model, {"loc": 0.0}, Y).params["loc"]), *np.asarray(fits.params["loc"]), float(total)]

    model = fj.Model(density)
    expected = np.array(results())
    expected[:4] -= 1.0
    expected[4] = np.sum(norm.logpdf(Y, 1.0, 1.0))
    density.__code__ = edited.__code__
    np.testing.assert_allclose(results(), expected, rtol=1e-6)
    density.__dict__ = edited.__dict__
    np.testing.assert_allclose(results(), expected, rtol=1e-6)
