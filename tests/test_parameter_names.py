"""Parameters by their names, linear hypotheses as text, and bounds as tuples.

Reference numbers of the linear model: statsmodels 0.15.0, `GLM.fit(scale=…)` with the maximum-likelihood estimate of the scale,
`wald_test(text, use_f=False, scalar=True)` and `t_test(text)`, where its names are const, x_z and g_b.
"""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import batch_of
from jax.scipy.stats import norm

import fisher_jax as fj
from fisher_jax.models.parameter_names import all_names, choose_estimated, read_combinations, read_restrictions
from fisher_jax.models.parameters import layout_of

ODD = {
    "C(region)[T.b]": 1.0,
    "C(region)[T.c]": 1.0,
    "size": {"Intercept": 1.0, "x:z": 2.0},
    "beta": np.zeros(3),
    "a": 1.0,
    "b": 1.0,
    "np.log(x)": 1.0,
    "a - b": 0.0,
    "(Intercept)": 1.0,
    "2nd": 1.0,
    "held": 3.0,
}
LAYOUT = layout_of(ODD, fj.Model(lambda params, y: y, constraints={"held": fj.fixed}).declarations)[0]


def linear_log_density(params, y, z):
    return norm.logpdf(y, params["const"] + params["x:z"] * z[0] + params["C(g)[T.b]"] * z[1], params["scale"])


@functools.cache
def linear():
    """A linear model whose covariates have names as formulas make them."""
    k = np.arange(12.0)
    z = np.stack([np.sin(k), k % 2], axis=1)
    y = 1.0 + 0.5 * z[:, 0] - 0.3 * z[:, 1] + 0.4 * np.cos(3 * k)
    model = fj.Model(linear_log_density, constraints={"scale": (0, None)})
    start = {"const": 0.0, "x:z": 0.0, "C(g)[T.b]": 0.0, "scale": 1.0}
    return fj.fit(model, start, y, given=z, tolerance=1e-11)


@pytest.mark.parametrize(
    ("text", "rows", "constants", "statements"),
    [
        ("a = 1", [{"a": 1}], [1], ["a = 1"]),
        ("a + 2 b = 0", [{"a": 1, "b": 2}], [0], ["a + 2 b = 0"]),
        ("a = b = 0", [{"a": 1, "b": -1}, {"b": 1}], [0, 0], ["a = b", "b = 0"]),
        ("2*a - 0.5*(a+b)/2 = 1e-3", [{"a": 1.75, "b": -0.25}], [1e-3], ["2*a - 0.5*(a+b)/2 = 1e-3"]),
        ("3 = -a + 2 * -b", [{"a": 1, "b": 2}], [-3], ["3 = -a + 2 * -b"]),
        ("beta = 0", [{f"beta[{k}]": 1} for k in range(3)], [0, 0, 0], [f"beta[{k}] = 0" for k in range(3)]),
        ("beta[1] - beta[2] = 0.5, a == 1", [{"beta[1]": 1, "beta[2]": -1}, {"a": 1}], [0.5, 1], None),
        (["a = 1", "b = 2"], [{"a": 1}, {"b": 1}], [1, 2], ["a = 1", "b = 2"]),
        ("C(region) = 0", [{"C(region)[T.b]": 1}, {"C(region)[T.c]": 1}], [0, 0], None),
        ("C(region)[T.b] = C(region)[T.c]", [{"C(region)[T.b]": 1, "C(region)[T.c]": -1}], [0], None),
        ("size.x:z = 1 + size.Intercept", [{"size.x:z": 1, "size.Intercept": -1}], [1], None),
        ("np.log(x) = -2", [{"np.log(x)": 1}], [-2], None),
        ("(Intercept) - 2(a + b) = 3", [{"(Intercept)": 1, "a": -2, "b": -2}], [3], None),
        ("a - b = 0", [{"a - b": 1}], [0], None),
        ("`a` - `b` = 0", [{"a": 1, "b": -1}], [0], None),
        ("2 2nd = 1", [{"2nd": 2}], [1], None),
    ],
)
def test_a_text_is_read_as_its_linear_restrictions(text, rows, constants, statements):
    found = read_restrictions(LAYOUT, text, "the hypothesis")
    named = [{LAYOUT.names[k]: x for k, x in enumerate(row) if x} for row in found.rows]
    # A restriction is the same times any number.
    for row, c, expected_row, expected in zip(named, found.constants, rows, constants, strict=True):
        factor = next(iter(row.values())) / expected_row[next(iter(row))]
        assert row == pytest.approx({name: factor * x for name, x in expected_row.items()})
        assert c == pytest.approx(factor * expected)
    assert statements is None or found.names == tuple(statements)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "gamma = 1",
            r"in 'gamma = 1' no parameter is named 'gamma'; there are .*\. Write the name of an odd parameter",
        ),
        ("siez.Intercept = 0", "Did you mean `size.Intercept`"),
        ("beta[3] = 0", r"no parameter is named 'beta\[3\]'"),
        ("ab = 1", "no parameter is named 'ab'"),
        ("a*b = 1", "parameters are multiplied, which is not linear in them. Give it as a function of params"),
        ("a^2 = 1", "there is a power, which is not linear"),
        ("a**2 = 1", "there is a power, which is not linear"),
        ("1/a = 2", "a parameter divides, which is not linear"),
        ("log(a) = 0", r"no parameter is named 'log\(a\)'.*A function of parameters is not linear in them"),
        ("a", "an equals sign is missing. Write 'a = 0'"),
        ("a =", "a number or a name is missing at the end"),
        ("= 1", "a number or a name is missing before '='"),
        ("a = 1,", "a number or a name is missing at the end"),
        ("a > 1", "there is an inequality; the tests are of equalities"),
        ("a = 1; b = 2", "';' cannot stand there"),
        ("a/0 = 1", "something is divided by zero"),
        ("(a = 1", "a bracket is not closed"),
        ("`a = 1", "a backtick has no partner"),
        ("a - a = 0", "`a - a = 0` restricts nothing"),
        ("1 = 1", "restricts nothing"),
        ("beta = size", "arrays of 3 and 2 entries do not go together"),
        ("a = 1, a = 2", "the restrictions `a = 1`, `a = 2` contradict each other"),
        ("a = 1, 2 a = 2", "`2 a = 2` follows from `a = 1`. Leave it out"),
        ("a = b = 0, a = 0", "`a = 0` follows from `a = b`, `b = 0`"),
        ("held = 3", "`held` was held fixed in this fit"),
        (" ", "the hypothesis=' ' is empty"),
    ],
)
def test_a_text_that_states_no_linear_restriction_says_why(text, words):
    with pytest.raises(ValueError, match=words):
        read_restrictions(LAYOUT, text, "the hypothesis")


def test_names_stand_for_entries_arrays_and_containers():
    def named(names):
        return [LAYOUT.names[k] for k in choose_estimated(LAYOUT, names, "names")]

    assert named("beta[2]") == ["beta[2]"]
    assert named("beta") == ["beta[0]", "beta[1]", "beta[2]"]
    assert named(["size", "C(region)[T.b]"]) == ["size.Intercept", "size.x:z", "C(region)[T.b]"]
    assert named("np.log(x)") == ["np.log(x)"]
    with pytest.raises(ValueError, match="names: `held` is fixed, not estimated"):
        named("held")
    assert all_names(LAYOUT).hint("Beta[1]") == " Did you mean `beta[1]`?"
    assert read_combinations(LAYOUT, "2 beta", "function").names == ("2 beta[0]", "2 beta[1]", "2 beta[2]")


def test_entries_that_have_names_are_named_by_them_and_by_their_index():
    model = fj.Model(
        lambda params, y: y, constraints={"scale": fj.fixed}, names={"beta": ("const", "age", "x:z"), "scale": ("s",)}
    )
    # Written in another order than JAX's, with what is fixed between.
    layout = layout_of({"beta": np.zeros(3), "scale": np.ones(1), "a": 0.0}, model.declarations)[0]
    assert layout.names == ("const", "age", "x:z", "a")
    for text, row in {
        "age = 1": (0, 1, 0, 0),
        "beta[1] = 1": (0, 1, 0, 0),
        "a - 2 x:z = 1": (0, 0, -2, 1),
    }.items():
        np.testing.assert_array_equal(read_restrictions(layout, text, "the hypothesis").rows, [row])
    assert read_restrictions(layout, "beta = 0", "the hypothesis").names == ("const = 0", "age = 0", "x:z = 0")
    assert choose_estimated(layout, ["a", "beta[0]"], "names") == [3, 0]
    with pytest.raises(ValueError, match="`s` was held fixed in this fit"):
        read_restrictions(layout, "scale = 1", "the hypothesis")


STATSMODELS = {
    "x:z = 0.5": (0.3682243740475994, 0.5439737307622607, 1),
    "const = 1.5 x:z": (34.705523876757766, 3.835417447918227e-09, 1),
    "const + 2 x:z = 2.25": (0.13642055232049183, 0.7118657215480817, 1),
    "const = 2 x:z = 1.25": (9.044387008818147, 0.010865164724043325, 2),
    "const - 2 x:z = 0.3, C(g)[T.b] = -0.75": (0.5558302615048186, 0.7573610954531821, 2),
    "0.5*(const + x:z) = -C(g)[T.b]": (1.0172902420076053, 0.3131626347832323, 1),
}


@pytest.mark.parametrize("text", STATSMODELS)
def test_linear_hypotheses_are_those_of_statsmodels(text):
    statistic, p_value, freedom = STATSMODELS[text]
    found = fj.wald_test(linear(), text)
    np.testing.assert_allclose(found.statistic, statistic, rtol=1e-8)
    np.testing.assert_allclose(found.p_value, p_value, rtol=1e-8)
    assert found.degrees_of_freedom == freedom


def test_the_delta_method_of_a_text_is_the_t_test_of_statsmodels():
    found = fj.delta_method(linear(), ["const - 2 x:z", "C(g)[T.b]"])
    np.testing.assert_allclose(found.value, [0.3346648878544416, -0.8049750793106807], rtol=1e-8)
    np.testing.assert_allclose(found.standard_error, [0.11938417248779284, 0.07387351745033127], rtol=1e-8)
    assert found.names == ("const - 2 x:z", "C(g)[T.b]")
    assert np.shape(fj.delta_method(linear(), "x:z").value) == ()


def test_the_delta_method_tests_zero_where_the_report_of_the_fit_does():
    frame = fj.delta_method(linear(), ["const", "scale", "2 scale", "const - scale"]).to_frame()
    assert np.isnan(frame["z"]).tolist() == [False, True, True, False]
    assert np.all(frame["standard_error"] > 0)


def test_a_hypothesis_is_reported_as_it_was_written():
    found = fj.wald_test(linear(), "const  = 1,x:z=C(g)[T.b]")
    assert found.hypothesis == ("const = 1", "x:z=C(g)[T.b]")
    assert "const = 1, x:z=C(g)[T.b]" in str(found)
    assert fj.likelihood_ratio_test(linear(), "x:z = 0.5, 2 scale = 1").hypothesis == ("2 scale = 1", "x:z = 0.5")


def test_a_likelihood_ratio_of_a_text_is_that_of_the_values():
    by_text = fj.likelihood_ratio_test(linear(), "x:z = 0.25, const = 1")
    by_values = fj.likelihood_ratio_test(linear(), {"x:z": 0.25, "const": 1.0})
    np.testing.assert_array_equal(by_text.statistic, by_values.statistic)


@pytest.mark.exhaustive
def test_a_likelihood_ratio_of_parameters_tied_by_a_text_is_that_of_the_function():
    by_text = fj.likelihood_ratio_test(linear(), "x:z = 2 C(g)[T.b]")
    by_function = fj.likelihood_ratio_test(linear(), lambda params: params["x:z"] - 2 * params["C(g)[T.b]"])
    np.testing.assert_allclose(by_text.statistic, by_function.statistic, rtol=1e-9)
    assert by_text.hypothesis == ("x:z = 2 C(g)[T.b]",)


def test_a_hypothesis_on_the_edge_of_a_range_is_that_of_its_value_and_beyond_it_an_error():
    with pytest.raises(ValueError, match=r"`scale` is positive, and cannot be -1\.0"):
        fj.wald_test(linear(), "scale = -1")


def test_a_score_test_of_a_text_wants_the_values_that_the_fit_keeps():
    dataset = linear().origin.dataset
    model = fj.Model(linear_log_density, constraints={"scale": (0, None), "x:z": fj.fixed, "const": fj.fixed})
    null = fj.fit(model, linear().params | {"x:z": 0.25, "const": 1.0}, dataset.data, given=dataset.given)
    both = fj.score_test(null, "x:z = 0.25, const = 1", kind="empirical")
    np.testing.assert_array_equal(both.statistic, fj.score_test(null, kind="empirical").statistic)
    assert set(both.hypothesis) == {"const = 1", "x:z = 0.25"}
    one, by_name = (fj.score_test(null, freed, kind="empirical").statistic for freed in ("x:z = 0.25", "x:z"))
    np.testing.assert_array_equal(one, by_name)
    for text, words in {
        "const = 0": "gives `const` the value 0, but this fit keeps it at 1. Fit the model under the hypothesis",
        "scale = 1": "`scale` is estimated in this fit, which is to be the fit under the hypothesis",
        "const = x:z": "ties parameters to each other. The score test is of values",
        "beta = 1": "no parameter is named 'beta'",
    }.items():
        with pytest.raises(ValueError, match=words):
            fj.score_test(null, text)


@pytest.mark.exhaustive
def test_the_profile_of_a_linear_combination_is_the_image_of_that_of_the_parameter():
    fit = fj.fit(fj.families.poisson, {"rate": 1.0}, jnp.array([2.0, 4.0, 3.0]))
    image = fj.profile_likelihood(fit, "1 - 2 rate")
    np.testing.assert_allclose(image.interval[0], 1 - 2 * fj.profile_likelihood(fit).interval[0, ::-1], rtol=1e-7)
    assert image.names == ("1 - 2 rate",)


def test_many_fits_are_tested_by_text_as_each_by_itself():
    data = jnp.arange(1.0, 9.0), jnp.arange(1.0, 9.0) ** 1.5
    fits = batch_of(*(fj.fit(fj.families.normal, {"loc": 0.0, "scale": 1.0}, y) for y in data))
    found = fj.wald_test(fits, "loc = 2 scale")
    for k in range(2):
        np.testing.assert_allclose(found.statistic[k], fj.wald_test(fits[k], "loc = 2 scale").statistic, rtol=1e-9)
    assert fj.delta_method(fits, "loc - scale").value.shape == (2,)


def test_bounds_as_tuples_are_intervals():
    model = fj.Model(
        linear_log_density, constraints={"scale": (0, None), "const": (None, 2), "x:z": (-1, 1), "C(g)[T.b]": None}
    )
    written = fj.Model(
        linear_log_density,
        constraints={"scale": fj.positive, "const": fj.interval(None, 2), "x:z": fj.interval(-1, 1)},
    )
    layouts = [layout_of(linear().params, each.declarations)[0] for each in (model, written)]
    assert layouts[0] == layouts[1]
    assert fj.interval(None, None) == fj.interval(-np.inf, np.inf) == layout_of(1.0)[0].leaves[0].constraint


def test_a_tuple_of_bounds_for_a_tuple_of_parameters_is_a_tree():
    table = fj.Model(lambda params, y: y, constraints=((0, None), (None, 1), (None, None))).declarations
    constraints = [leaf.constraint for leaf in layout_of((1.0, 0.0, 0.0), table)[0].leaves]
    assert constraints[:2] == [fj.positive, fj.interval(None, 1)]
    assert not constraints[2].restricts


def test_a_sample_size_takes_the_hypothesis_as_text():
    params, exponential = {"rate": 2.0}, fj.families.exponential
    by_text = fj.sample_size(exponential, params, power=0.8, hypothesis="2 rate = 3")
    assert (
        by_text.num_observations
        == fj.sample_size(exponential, params, power=0.8, hypothesis={"rate": 1.5}).num_observations
    )
    with pytest.raises(ValueError, match="ties parameters to each other"):
        fj.sample_size(fj.families.gamma, {"shape": 1.0, "rate": 2.0}, power=0.8, hypothesis="shape = rate")
    with pytest.raises(ValueError, match="names parameters, but the test is of function"):
        fj.sample_size(exponential, params, power=0.8, hypothesis="rate = 1", function=lambda params: params["rate"])
