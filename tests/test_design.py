"""Optimal designs: published ones, the equivalence theorem, and the messages where there is none."""

import functools
import warnings

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
from helpers import some_of

import fisher_jax as fj

mpl.use("Agg")
import matplotlib.pyplot as plt

from fisher_jax.plots import design_plot

CENTRED = {"middle": 3.0, "slope": 2.0}
CURVE = {"half": 1.5, "top": 2.0}
DOSES = fj.interval(0, 6)


def logistic(params, z):
    return {"logit": params["slope"] * (z - params["middle"])}


def line(params, z):  # the same in other parameters
    return {"logit": params[0] + params[1] * z}


def michaelis_menten(params, z):
    return {"loc": params["top"] * z / (params["half"] + z), "scale": jnp.ones(())}


def polynomial(params, z):
    return {"loc": jnp.sum(params * z ** jnp.arange(params.shape[0])), "scale": jnp.ones(())}


def emax(params, z):
    return {"loc": params["base"] + params["top"] * z / (params["half"] + z), "scale": jnp.ones(())}


BY_LOGISTIC = fj.linked(fj.families.bernoulli, logistic)
BY_LINE = fj.linked(fj.families.bernoulli, line)
BY_MICHAELIS_MENTEN = fj.linked(fj.families.normal, michaelis_menten, constraints=fj.positive)
BY_POLYNOMIAL = fj.linked(fj.families.normal, polynomial)
BY_EMAX = fj.linked(fj.families.normal, emax)


@functools.cache
def dose_response(criterion="D"):
    function = (lambda p: p["middle"]) if criterion == "c" else None
    return fj.optimal_design(BY_LOGISTIC, CENTRED, region=DOSES, criterion=criterion, function=function)


def assert_design(design, points, weights, atol=1e-5):
    np.testing.assert_allclose(design.points, points, atol=atol)
    np.testing.assert_allclose(design.weights, weights, atol=atol)
    assert design.status == "optimal"
    assert design.efficiency_bound > 1 - 1e-6


def guest(degree):
    """Ends of [−1, 1] and roots of the derivative of the Legendre polynomial: Guest (1958), Ann. Math. Stat. 29, 294-299."""
    return np.sort([-1.0, *np.polynomial.Legendre.basis(degree).deriv().roots(), 1.0])


def chebyshev(degree):
    """E-optimal points and weights: Pukelsheim & Studden (1993), Ann. Stat. 21, 402-415, theorem 2.1."""
    points = -np.cos(np.pi * np.arange(degree + 1) / degree)
    coefficients = np.polynomial.chebyshev.cheb2poly([0.0] * degree + [1.0])
    solved = np.linalg.solve(np.vander(points, increasing=True).T, coefficients)
    return points, (-1.0) ** (degree - np.arange(degree + 1)) * solved / np.sum(coefficients**2)


def test_a_logistic_curve_is_seen_best_from_two_doses():
    """Logit ±1.5434, the root of x tanh(x/2) = 1: Abdelbasit & Plackett (1983), J. Am. Stat. Assoc. 78, 90-98."""
    design = dose_response()
    assert_design(design, [3 - 1.5434046 / 2, 3 + 1.5434046 / 2], [0.5, 0.5], atol=1e-6)
    doses = np.linspace(0, 6, 10_001)
    assert np.max(design.sensitivity(doses)) <= 1 + 1e-8
    np.testing.assert_allclose(design.sensitivity(design.points), 1.0, rtol=1e-8)


def test_the_best_of_many_candidates_is_nearly_that_of_the_region():
    candidates = np.linspace(0, 6, 601)
    design = fj.optimal_design(BY_LOGISTIC, CENTRED, candidates)
    assert design.efficiency_bound > 1 - 1e-8
    assert 1 - 1e-4 < dose_response().efficiency(design) <= 1
    assert set(np.asarray(design.points)) <= set(candidates)
    assert np.max(design.sensitivity(candidates)) == pytest.approx(1.0, abs=1e-8)


def test_a_d_optimal_design_is_the_same_in_other_parameters():
    other = fj.optimal_design(BY_LINE, jnp.array([-6.0, 2.0]), region=DOSES)
    np.testing.assert_allclose(other.points, dose_response().points, atol=1e-6)
    assert other.value == pytest.approx(
        float(dose_response().value) * 2, rel=1e-9
    )  # |∂(a, b)/∂(middle, slope)| = 2² / 2⁰


def test_the_middle_of_a_logistic_curve_is_seen_best_from_there_alone():
    """The one-point design at the median dose: Ford, Torsney & Wu (1992), J. R. Stat. Soc. B 54, 569-583."""
    design = dose_response("c")
    assert_design(design, [3.0], [1.0])
    assert design.value == pytest.approx(1 / (0.25 * 4), rel=1e-6)
    np.testing.assert_allclose(design.covariance(50).matrix, [[1 / 50]], rtol=1e-6)
    assert jnp.linalg.eigvalsh(design.information.matrix)[0] < 1e-9
    assert np.max(design.sensitivity(np.linspace(0, 6, 1001))) < 1 + 1e-6


def test_michaelis_menten_is_seen_best_from_the_end_and_one_point_inside():
    """z_max and z_max K / (2 K + z_max): Duggleby (1979), J. Theor. Biol. 81, 671-684; Rasch (1990)."""
    design = fj.optimal_design(BY_MICHAELIS_MENTEN, CURVE, region=fj.interval(0, 10))
    assert_design(design, [15 / 13, 10.0], [0.5, 0.5], atol=1e-6)


def test_an_emax_curve_is_seen_best_from_three_doses():
    """0, d K / (2 K + d) and d: Dette, Kiss, Bevanda & Bretz (2010), Biometrika 97, 513-518; for K weights ¼, ½, ¼."""
    params = {"base": 0.0, "top": 1.0, "half": 25.0}
    doses = [0.0, 2500 / 150, 100.0]
    assert_design(fj.optimal_design(BY_EMAX, params, region=fj.interval(0, 100)), doses, [1 / 3] * 3, atol=1e-4)
    for_half = fj.optimal_design(
        BY_EMAX, params, region=fj.interval(0, 100), criterion="c", function=lambda p: {"ED50": p["half"]}
    )
    assert_design(for_half, doses, [0.25, 0.5, 0.25], atol=1e-4)
    assert for_half.names == ("ED50",)


@pytest.mark.parametrize("degree", some_of([1, 2, 3, 4, 5, 6], 4))
def test_polynomials_are_seen_best_from_guests_points(degree):
    design = fj.optimal_design(BY_POLYNOMIAL, jnp.zeros(degree + 1), region=fj.interval(-1, 1))
    assert_design(design, guest(degree), np.full(degree + 1, 1 / (degree + 1)))


@pytest.mark.parametrize("degree", some_of([2, 3, 4, 5, 6], 4))
def test_the_largest_variance_of_coefficients_is_least_at_chebyshevs_points(degree):
    design = fj.optimal_design(BY_POLYNOMIAL, jnp.zeros(degree + 1), region=fj.interval(-1, 1), criterion="E")
    assert_design(design, *chebyshev(degree))


@pytest.mark.parametrize(("criterion", "weights"), [("A", [0.25, 0.5, 0.25]), ("E", [0.2, 0.6, 0.2])])
def test_a_parabola_is_seen_best_by_other_criteria_with_other_weights(criterion, weights):
    """Pukelsheim (1993), Optimal Design of Experiments, chapter 9."""
    design = fj.optimal_design(BY_POLYNOMIAL, jnp.zeros(3), region=fj.interval(-1, 1), criterion=criterion)
    assert_design(design, [-1.0, 0.0, 1.0], weights)


def test_where_the_largest_eigenvalue_is_double_the_bound_holds_with_a_mixture():
    design = fj.optimal_design(BY_LINE, jnp.array([0.0, 1.0]), region=fj.interval(-5, 5), criterion="E")
    assert_design(design, [-1.0, 1.0], [0.5, 0.5], atol=1e-4)
    assert np.ptp(np.linalg.eigvalsh(design.information.matrix)) < 1e-5


def test_some_coefficients_are_seen_without_the_others():
    """The slope at zero of a quartic needs four points only, those of T₃: Pukelsheim (1993), chapter 9."""
    design = fj.optimal_design(
        BY_POLYNOMIAL, jnp.zeros(5), region=fj.interval(-1, 1), criterion="c", function=lambda p: p[1]
    )
    assert_design(design, [-1.0, -0.5, 0.5, 1.0], np.array([1, 8, 8, 1]) / 18)
    assert design.value == pytest.approx(9.0, rel=1e-6)


def test_a_surface_of_second_order_over_a_square():
    """Weights .1458, .0802 and .0962 of corners, edges and centre: Atkinson & Donev (1992), chapter 11."""

    def surface(params, z):
        terms = jnp.stack([jnp.ones(()), z[0], z[1], z[0] * z[1], z[0] ** 2, z[1] ** 2])
        return {"loc": params @ terms, "scale": jnp.ones(())}

    model = fj.linked(fj.families.normal, surface)
    design = fj.optimal_design(model, jnp.zeros(6), region=[fj.interval(-1, 1)] * 2)
    lattice = np.stack(np.meshgrid([-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0], indexing="ij"), -1).reshape(-1, 2)
    assert design.efficiency_bound > 1 - 1e-6
    near = np.max(np.abs(np.asarray(design.points)[:, None] - lattice[None]), axis=-1)
    np.testing.assert_allclose(np.min(near, axis=1), 0.0, atol=1e-4)
    by_kind = np.sum(np.abs(lattice), axis=1)[np.argmin(near, axis=1)]
    for kind, weight in ((0, 0.0962), (1, 0.0802), (2, 0.1458)):
        np.testing.assert_allclose(np.asarray(design.weights)[by_kind == kind], weight, atol=6e-5)


def test_the_bound_holds_for_every_other_design():
    rng = np.random.default_rng(0)
    for criterion in "DAEc":
        design = dose_response(criterion)
        for _ in range(10):
            points, weights = rng.uniform(0, 6, 4), rng.dirichlet(np.ones(4))
            assert design.efficiency(points, weights) <= 1 / design.efficiency_bound + 1e-9


def test_the_sensitivity_is_what_a_little_more_weight_gains():
    """The derivative of the log-criterion towards a point, by differences: −(gain − 1)."""
    point, step = np.array([2.0]), 1e-6
    for criterion in "DA":
        design = dose_response(criterion)
        weights = np.append((1 - step) * design.weights, step)
        moved = design.efficiency(np.append(design.points, point), weights)
        assert np.log(moved) / step == pytest.approx(design.sensitivity(point)[0] - 1, abs=1e-5)


def test_a_model_without_closed_form_is_designed_by_enumeration_or_quadrature():
    def density(params, y, z):
        logit = logistic(params, z)["logit"]
        return y * jax.nn.log_sigmoid(logit) + (1 - y) * jax.nn.log_sigmoid(-logit)

    values = fj.Enumeration(jnp.array([0.0, 1.0]))
    design = fj.optimal_design(density, CENTRED, region=DOSES, expectation=values)
    np.testing.assert_allclose(design.points, dose_response().points, atol=1e-6)
    assert "enumeration of 2 values" in design.information.route

    def around(width, order):
        return fj.Quadrature(lambda p, z: p * z - width, lambda p, z: p * z + width, order)

    def normal(params, y, z):
        return jax.scipy.stats.norm.logpdf(y, params * z, 1.0)

    by_quadrature = fj.optimal_design(normal, 1.0, np.array([0.5, 1.0, 2.0]), expectation=around(9.0, 200))
    np.testing.assert_allclose(by_quadrature.points, [2.0])
    np.testing.assert_allclose(by_quadrature.value, 0.25, rtol=1e-9)
    with pytest.warns(
        fj.InformationWarning, match="optimal_design: not to be relied on: the probabilities add up to 0.68"
    ):
        fj.optimal_design(normal, 1.0, np.array([0.5, 1.0, 2.0]), expectation=around(1.0, 200))


def test_a_design_for_several_parameter_values_spreads_and_holds_its_bound():
    params = {"middle": np.array([1.5, 3.0, 4.5]), "slope": np.full(3, 4.0)}
    design = fj.optimal_design(BY_LOGISTIC, params, region=DOSES, params_axis=0)
    assert design.efficiency_bound > 1 - 1e-6
    assert len(design.weights) > 2
    assert np.max(design.sensitivity(np.linspace(0, 6, 2001))) < 1 + 1e-6
    assert design.information.matrix.shape == (3, 2, 2)
    assert design.efficiency(dose_response()) < 0.7  # that for the middle value alone
    one = fj.optimal_design(
        BY_LOGISTIC, {"middle": np.full(3, 3.0), "slope": np.full(3, 2.0)}, region=DOSES, params_axis=0
    )
    np.testing.assert_allclose(one.points, dose_response().points, atol=1e-6)


def test_parameters_that_are_fixed_are_known_and_those_on_a_simplex_are_fewer():
    held = fj.linked(fj.families.bernoulli, logistic, constraints={"slope": fj.fixed})
    design = fj.optimal_design(held, CENTRED, region=DOSES)
    assert_design(design, [3.0], [1.0])
    assert design.names == ("middle",)

    def shares(params, z):
        return {"rate": 1.0 + 10 * jnp.dot(params, jnp.eye(3)[z])}

    model = fj.linked(fj.families.poisson, shares, constraints=fj.simplex)
    of_shares = fj.optimal_design(model, jnp.full(3, 1 / 3), np.arange(3), criterion="A")
    np.testing.assert_allclose(of_shares.weights, 1 / 3, atol=1e-6)
    assert of_shares.covariance(10).matrix.shape == (3, 3)
    np.testing.assert_allclose(jnp.sum(of_shares.covariance(10).matrix, axis=0), 0.0, atol=1e-9)
    assert fj.optimal_design(model, jnp.full(3, 1 / 3), np.arange(3)).information.matrix.shape == (2, 2)


def test_points_may_be_a_pytree():
    def predict(params, z):
        return {"rate": z["exposure"] * jnp.exp(params["a"] + params["b"] * z["x"])}

    model = fj.linked(fj.families.poisson, predict)
    design = fj.optimal_design(
        model, {"a": 0.0, "b": 1.0}, region={"exposure": fj.interval(0.5, 2), "x": fj.interval(-4, 1)}
    )
    np.testing.assert_allclose(design.points["exposure"], 2.0)  # more is better
    np.testing.assert_allclose(design.points["x"], [-1.0, 1.0], atol=1e-5)  # 2 apart: Minkin (1987), JASA 82, 1098-1103
    assert "exposure" in str(design)
    assert "<td>0.500000</td>" in design._repr_html_()


def test_units_make_no_difference():
    params = jnp.array([-1000.0, 1e-6])
    far = fj.optimal_design(BY_LINE, params, region=fj.interval(9.9e8, 1.01e9))
    np.testing.assert_allclose(1e-6 * np.asarray(far.points) - 1000, [-1.5434046, 1.5434046], atol=1e-4)
    assert far.efficiency_bound > 1 - 1e-6


def test_float32_is_enough_for_the_points():
    params = {"middle": jnp.float32(3.0), "slope": jnp.float32(2.0)}
    design = fj.optimal_design(BY_LOGISTIC, params, region=DOSES)
    assert design.points.dtype == jnp.float32
    np.testing.assert_allclose(design.points, dose_response().points, atol=1e-3)
    assert design.efficiency_bound > 1 - 2e-5


def test_whole_numbers_of_observations():
    """Pukelsheim & Rieder (1992): weights and counts that sum, none zero, monotone in n."""
    design = dose_response()
    np.testing.assert_array_equal(design.round(2), [1, 1])
    assert sorted(design.round(7)) == [3, 4]
    shares = np.array([0.57, 0.29, 0.093, 0.047])
    other = jax.tree.unflatten(jax.tree.structure(design), [jnp.arange(4.0), shares, *jax.tree.leaves(design)[2:]])
    before = other.round(4)
    for n in range(5, 60):
        counts = other.round(n)
        assert counts.sum() == n
        assert np.all(counts >= before)
        assert np.max((counts - 1) / shares) <= np.min(counts / shares) + 1e-9  # theorem 2: no exchange does better
        before = counts


def test_a_design_reads_so():
    lines = str(dose_response()).splitlines()
    assert lines[0] == "Optimal design"
    assert lines[1] == "  Criterion   D-optimal: the determinant of the covariance"
    assert lines[4] == "  Efficiency  at least 0.999999, by the equivalence theorem"
    assert lines[6:] == [
        "  point       z    weight",
        "  0      2.2283  0.500000",
        "  1      3.7717  0.500000",
    ]
    assert jax.tree.unflatten(jax.tree.structure(dose_response()), jax.tree.leaves(dose_response())).weights.shape == (
        2,
    )


def test_a_design_that_does_not_identify_the_estimand_has_no_efficiency():
    assert dose_response().efficiency([3.0]) == 0.0
    assert dose_response("c").efficiency([3.0]) == pytest.approx(1.0, rel=1e-6)
    assert dose_response("c").efficiency([1.0]) == 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        single = fj.optimal_design(BY_LOGISTIC, CENTRED, [3.0], criterion="c", function=lambda p: p["middle"])
    assert single.efficiency_bound == pytest.approx(1.0)


def test_an_efficiency_that_was_not_reached_is_reported():
    with pytest.warns(fj.FitWarning, match=r"optimal_design: the efficiency is proved to be at least .* only"):
        design = fj.optimal_design(
            BY_LOGISTIC,
            {"middle": jnp.float32(3.0), "slope": jnp.float32(2.0)},
            region=DOSES,
            criterion="A",
            efficiency=1 - 1e-9,
        )
    assert "asked for" in design.status
    assert str(design).startswith("Design\n")


@pytest.fixture
def closed():
    yield
    plt.close("all")


@pytest.mark.usefixtures("closed")
def test_the_picture_shows_the_sensitivity_under_its_bound_and_the_points():
    design = dose_response()
    axes = design_plot(design, np.linspace(0, 6, 101), label="dose")
    axes.figure.canvas.draw()
    curve = next(drawn for drawn in axes.lines if drawn.get_label() == "sensitivity")
    np.testing.assert_allclose(curve.get_ydata(), design.sensitivity(np.linspace(0, 6, 101)))
    assert axes.get_xlabel() == "dose"
    bound = next(drawn for drawn in axes.lines if drawn.get_label() == "bound")
    np.testing.assert_allclose(bound.get_ydata(), 1.0)
    assert sum(patch.get_height() for twin in axes.figure.axes[1:] for patch in twin.patches) == pytest.approx(1.0)
    assert design_plot(design, axes=plt.subplots()[1]).get_xlabel() == "z"
    with pytest.raises(TypeError, match="design_plot: expected Design, got dict"):
        design_plot({}, np.arange(3.0))
    with pytest.raises(ValueError, match="design_plot: points must be numbers in one row"):
        design_plot(design, np.ones((3, 2)))
