"""Constraints: bijections that respect their range, and covariances that do not depend on them."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import some_of
from jax.scipy.special import gammaln
from jax.scipy.stats import multivariate_normal, norm

import fisher_jax as fj
from fisher_jax.models.constraints import Interval, Ordered

RNG = np.random.default_rng(3)


class Cube:
    """A foreign bijector, element by element."""

    def forward(self, free):
        return free**3

    def inverse(self, value):
        return jnp.cbrt(value)


VALUES = {
    "positive": (fj.positive, np.array([0.2, 1.0, 30.0])),
    "unit_interval": (fj.unit_interval, np.array([0.01, 0.5, 0.9])),
    "interval": (fj.interval(-2, 5), np.array([-1.9, 1.5, 4.0])),
    "above": (fj.interval(3, np.inf), np.array([3.5, 4.0, 100.0])),
    "below": (fj.interval(-np.inf, 3), np.array([2.5, 2.0, -100.0])),
    "ordered": (fj.ordered, np.array([-1.0, 0.0, 5.0])),
    "ordered and positive": (Ordered(fj.positive), np.array([0.2, 1.0, 7.0])),
    "ordered in an interval": (Ordered(fj.interval(-2, 5)), np.array([-1.9, 1.5, 4.0])),
    "simplex": (fj.simplex, np.array([0.2, 0.3, 0.5])),
    "simplex, centre": (fj.simplex, np.array([0.25, 0.25, 0.25, 0.25])),
    "positive_definite": (fj.positive_definite, np.array([[2.0, 0.5], [0.5, 1.0]])),
    "positive_definite, identity": (fj.positive_definite, np.eye(3)),
}


@pytest.mark.parametrize("name", VALUES)
def test_forward_undoes_inverse(name):
    constraint, value = VALUES[name]
    np.testing.assert_allclose(constraint.forward(constraint.inverse(jnp.asarray(value))), value, rtol=1e-12)


@pytest.mark.parametrize("name", VALUES)
def test_any_unconstrained_point_lands_inside(name):
    constraint, value = VALUES[name]
    free = constraint.inverse(jnp.asarray(value))
    for seed in range(20):
        inside = constraint.forward(free + jax.random.normal(jax.random.key(seed), free.shape))
        assert constraint.contains(inside)
        assert constraint.contains(np.asarray(inside))


@pytest.mark.parametrize("name", VALUES)
def test_interval_bounds_stay_inside_and_enclose_the_value(name):
    constraint, value = VALUES[name]
    low, high = constraint.bounds(jnp.asarray(value), jnp.full(value.shape, 0.3))
    assert np.all(low < value)
    assert np.all(value < high)
    if isinstance(constraint, Interval):
        assert constraint.contains(low)
        assert constraint.contains(high)


# Models and shapes that several tests share, so that each is compiled once.
CATEGORICAL = fj.Model(lambda p, y: jnp.log(p["w"][y]), constraints={"w": fj.simplex})
COVARIANCE = fj.Model(lambda p, y: multivariate_normal.logpdf(y, jnp.zeros(2), p), constraints=fj.positive_definite)


def test_a_simplex_has_one_free_coordinate_less_and_a_positive_definite_matrix_only_its_triangle():
    fit = fj.fit(CATEGORICAL, {"w": np.full(3, 1 / 3)}, RNG.integers(0, 3, 50))
    assert fit.num_parameters == 2
    assert len(fit.names) == 3


# A model, its start, data; each maximum has a closed form or lies well inside the constraint.


def two_sigmas(params, y):
    return norm.logpdf(y, params["loc"], params["scale"])


def beta_mean(params, y):
    """Written out: the second derivative of JAX 0.11's own is zero where both shapes are equal."""
    a, b = params["mean"] * 5.0, (1.0 - params["mean"]) * 5.0
    return (a - 1.0) * jnp.log(y) + (b - 1.0) * jnp.log1p(-y) + gammaln(5.0) - gammaln(a) - gammaln(b)


NORMALS = RNG.normal(3.0, 2.0, 80)
SYMMETRIC = np.concatenate([NORMALS[:40] - 3.0, 3.0 - NORMALS[:40]])
PAIRS = RNG.normal(size=(88, 2)) @ np.array([[1.0, 0.4], [0.0, 0.8]])
QUARTER = PAIRS[:22]
SPHERICAL = np.concatenate([QUARTER, QUARTER[:, ::-1], QUARTER * [1, -1], QUARTER[:, ::-1] * [1, -1]])
UNITS = RNG.beta(2.0, 3.0, 70)

SEPARATE = {  # constraints that leave as many free coordinates as entries: an unconstrained fit can be compared
    "positive": (two_sigmas, {"scale": fj.positive}, {"loc": 2.0, "scale": 1.5}, NORMALS),
    "positive, symmetric data": (two_sigmas, {"scale": fj.positive}, {"loc": 0.1, "scale": 1.5}, SYMMETRIC),
    "interval": (
        two_sigmas,
        {"loc": fj.interval(-5, 8), "scale": fj.interval(0.5, np.inf)},
        {"loc": 2.0, "scale": 1.5},
        NORMALS,
    ),
    "foreign": (two_sigmas, {"scale": Cube()}, {"loc": 2.0, "scale": 1.5}, NORMALS),
    "unit_interval": (beta_mean, {"mean": fj.unit_interval}, {"mean": 0.3}, UNITS),
    "unit_interval, centre": (
        beta_mean,
        {"mean": fj.unit_interval},
        {"mean": 0.3},
        np.concatenate([UNITS[:35], 1.0 - UNITS[:35]]),
    ),
    "ordered": (
        lambda p, y: norm.logpdf(y[0], p["loc"][0], 1.0) + norm.logpdf(y[1], p["loc"][1], 2.0),
        {"loc": fj.ordered},
        {"loc": np.array([-1.0, 1.0])},
        PAIRS + np.array([0.0, 2.0]),
    ),
}


@pytest.mark.parametrize("name", some_of(SEPARATE, "positive", "interval"))
def test_a_constraint_changes_neither_estimate_nor_any_covariance(name):
    density, constraints, start, data = SEPARATE[name]
    bound = fj.fit(fj.Model(density, constraints=constraints), start, data)
    free = fj.fit(density, bound.params, data)
    assert bound.converged
    assert free.converged
    np.testing.assert_allclose(
        free.layout.flatten(bound.params), free.layout.flatten(free.params), rtol=1e-7, atol=1e-10
    )
    for kind in ("observed", "empirical", "sandwich"):
        np.testing.assert_allclose(bound.covariance(kind), free.covariance(kind), rtol=1e-6, atol=1e-10)


TIED = {  # constraints that tie entries together: the covariance of the free ones in closed form
    "simplex": (np.array([0] * 10 + [1] * 25 + [2] * 15), 3),
    "simplex, symmetric": (np.repeat(np.arange(4), 20), 4),
}


@pytest.mark.parametrize("name", TIED)
def test_a_simplex_has_the_multinomial_covariance(name):
    data, k = TIED[name]
    start = np.arange(1.0, k + 1.0) / np.arange(1.0, k + 1.0).sum()
    fit = fj.fit(CATEGORICAL, {"w": start}, data)
    w = np.bincount(data) / len(data)
    assert fit.status is fj.Status.CONVERGED
    np.testing.assert_allclose(fit.params["w"], w, rtol=1e-8)
    np.testing.assert_allclose(fit.covariance(), (np.diag(w) - np.outer(w, w)) / len(data), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("data", [PAIRS, SPHERICAL], ids=["correlated", "spherical"])
def test_a_positive_definite_matrix_has_the_wishart_covariance(data):
    fit = fj.fit(COVARIANCE, np.eye(2), data)
    n, s = len(data), data.T @ data / len(data)
    expected = [
        [(s[i, k] * s[j, m] + s[i, m] * s[j, k]) / n for k in range(2) for m in range(2)]
        for i in range(2)
        for j in range(2)
    ]
    assert fit.status is fj.Status.CONVERGED
    np.testing.assert_allclose(fit.params, s, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(fit.covariance(), expected, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", [*SEPARATE, "simplex", "positive_definite"])
def test_covariance_is_the_free_one_carried_through_the_jacobian(name):
    if name == "simplex":
        fit = fj.fit(CATEGORICAL, {"w": np.array([0.2, 0.3, 0.5])}, TIED["simplex"][0])
    elif name == "positive_definite":
        fit = fj.fit(COVARIANCE, np.eye(2), PAIRS)
    else:
        density, constraints, start, data = SEPARATE[name]
        fit = fj.fit(fj.Model(density, constraints=constraints), start, data)
    constrain = lambda u: fit.layout.flatten(fit.layout.constrain(u, fit.layout.blocks(fit.params)))  # noqa: E731
    step = 1e-6 * np.eye(len(fit.free))
    jacobian = np.stack([(constrain(fit.free + e) - constrain(fit.free - e)) / 2e-6 for e in step], axis=1)
    np.testing.assert_allclose(
        fit.covariance(), jacobian @ np.linalg.inv(fit.curvature) @ jacobian.T, rtol=1e-6, atol=1e-10
    )


def test_fixed_parameters_stay_count_for_nothing_and_have_no_error():
    model = fj.Model(two_sigmas, constraints={"loc": fj.fixed, "scale": fj.positive})
    fit = fj.fit(model, {"loc": 3.0, "scale": 1.0}, NORMALS)
    assert fit.params["loc"] == 3.0
    assert fit.num_parameters == 1
    assert fit.names == ("scale",)
    assert fit.standard_errors()["loc"] == 0.0
    np.testing.assert_allclose(fit.params["scale"], np.sqrt(np.mean((NORMALS - 3.0) ** 2)), rtol=1e-9)
    assert fit.confidence_intervals()["loc"].tolist() == [3.0, 3.0]
    assert "loc (fixed)" in str(fit.summary())


def test_one_constraint_covers_everything_below_it():
    model = fj.Model(
        lambda p, y: norm.logpdf(y, 0.0, p["a"]["s"] * 1.0) + 0.0 * p["a"]["t"], constraints={"a": fj.positive}
    )
    with pytest.raises(ValueError, match=r"`a.t` starts at -1"):
        fj.fit(model, {"a": {"s": 1.0, "t": -1.0}}, NORMALS)


def test_intervals_are_made_on_the_scale_of_the_constraint_unless_asked_otherwise():
    fit = fj.fit(fj.Model(two_sigmas, constraints={"scale": fj.positive}), {"loc": 2.0, "scale": 1.5}, NORMALS)
    z, scale, error = 1.959963984540054, float(fit.params["scale"]), float(fit.standard_errors()["scale"])
    np.testing.assert_allclose(
        fit.confidence_intervals()["scale"], scale * np.exp(np.array([-z, z]) * error / scale), rtol=1e-12
    )
    np.testing.assert_allclose(
        fit.confidence_intervals(scale="natural")["scale"], scale + np.array([-z, z]) * error, rtol=1e-12
    )


# Order and names.


def regression(**settings):
    return fj.Model(REGRESSION, constraints={"noise": fj.positive}, **settings)


def REGRESSION(params, y, z):  # noqa: N802
    return norm.logpdf(y, z @ params["slopes"], params["noise"])


Z = np.column_stack([np.ones(20), np.linspace(-1.0, 1.0, 20)])
Y = Z @ [1.0, 2.0] + 0.3 * np.sin(np.arange(20.0) ** 2)
WRITTEN = {"slopes": np.zeros(2), "noise": 1.0}
SORTED = {"noise": 1.0, "slopes": np.zeros(2)}


def test_parameters_keep_the_order_in_which_they_were_written(tmp_path):
    fits = [fj.fit(regression(), start, Y, given=Z) for start in (WRITTEN, SORTED)]
    assert [fit.names for fit in fits] == [("slopes[0]", "slopes[1]", "noise"), ("noise", "slopes[0]", "slopes[1]")]
    back = np.array([1, 2, 0])
    for kind in ("observed", "empirical", "sandwich"):
        np.testing.assert_allclose(fits[0].covariance(kind), fits[1].covariance(kind)[back][:, back], rtol=1e-6)
    fit = fits[0]
    fit.save(tmp_path / "fit.npz")
    ragged = fj.fit_batch(regression(), WRITTEN, [Y, Y], given=[Z, Z])
    each = {"slopes": np.zeros((2, 2)), "noise": np.ones(2)}
    starts = fj.fit_batch(regression(), each, np.stack([Y, Y]), given=Z, start_axis=0)
    for other in (fj.load(tmp_path / "fit.npz"), copy.deepcopy(fit), ragged, starts, starts[1]):
        assert list(other.params) == ["slopes", "noise"]
        assert other.names == fit.names
    assert list(fit.standard_errors()) == list(fit.confidence_intervals()) == ["slopes", "noise"]
    for pair, estimate in zip(fit.confidence_intervals()["slopes"], fit.params["slopes"], strict=True):
        assert pair[0] < estimate < pair[1]
    assert list(fj.score(regression(), fit.params, Y, given=Z)) == ["slopes", "noise"]
    rows = [line.split()[0] for line in str(fit).splitlines()[-3:]]
    assert rows == list(fit.names)


def test_dictionaries_within_lists_and_dictionaries_keep_their_order():
    def log_density(params, y):
        return norm.logpdf(y, params["b"][0]["y"] + params["b"][0]["x"], 1.0) - params["a"] ** 2

    fit = fj.fit(log_density, {"b": [{"y": 0.0, "x": 0.0}], "a": 0.5}, Y, max_steps=0)
    assert fit.names == ("b[0].y", "b[0].x", "a")
    assert list(fit.params["b"][0]) == ["y", "x"]


def test_a_closed_form_as_an_array_is_in_the_order_of_jax_however_the_start_was_written():
    model = fj.Model(
        lambda p, y: norm.logpdf(y, p["place"], p["scale"]),
        constraints={"scale": fj.positive},
        information=lambda p: jnp.diag(jnp.array([1.0, 2.0]) / p["scale"] ** 2),  # place, scale
    )
    for start in ({"place": 0.0, "scale": 2.0}, {"scale": 2.0, "place": 0.0}):
        information = fj.fisher_information(model, start)
        assert information.names == tuple(start)
        assert dict(zip(information.names, np.diag(information.matrix), strict=True)) == {"place": 0.25, "scale": 0.5}


def test_entries_have_the_names_that_the_model_gives_them(tmp_path):
    model = regression(names={"slopes": ("intercept", "age")})
    fit = fj.fit(model, WRITTEN, Y, given=Z)
    assert fit.names == ("intercept", "age", "noise")
    assert "age" in str(fit)
    fit.save(tmp_path / "fit.npz")
    assert fj.load(tmp_path / "fit.npz").names == fit.names
    assert fj.wald_test(fit, {"age": 2.0}).hypothesis == ("age = 2",)
    assert model == regression(names={"slopes": ["intercept", "age"]})
    assert model != regression()
    linked = fj.linked(fj.families.poisson, lambda b, z: {"rate": jnp.exp(z @ b)}, names=("intercept", "age"))
    assert fj.fisher_information(linked, np.zeros(2), given=Z).names == ("intercept", "age")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            {"slopes": ("a",)},
            r"names of `slopes` has 1 names, but the parameter has shape \(2,\): give 2, one for each",
        ),
        ({"slope": ("a", "b")}, "names are given for `slope`, but params has `noise`, `slopes`. Spell"),
        ({"slopes": ("a", "a")}, "`a` would name several entries"),
        ({"slopes": ("a", "noise")}, "`noise` would name several entries"),
    ],
)
def test_names_that_do_not_fit_are_an_error(names, message):
    with pytest.raises(ValueError, match=message):
        fj.fit(regression(names=names), WRITTEN, Y, given=Z)


@pytest.mark.parametrize("names", [{"slopes": 3}, {"slopes": "a"}, {"slopes": (1, 2)}])
def test_names_are_sequences_of_text(names):
    with pytest.raises(TypeError, match=r"names of `slopes.* expected the names of its entries"):
        regression(names=names)
