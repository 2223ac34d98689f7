"""Every status is reached by a case that deserves it, and its message says what to look at."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import some_of
from jax.scipy.stats import norm

import fisher_jax as fj
from fisher_jax import Status
from fisher_jax.fitting.summary import edge_in_words, escaping
from fisher_jax.models.model import flatten_parameters


def normal(params, y):
    return norm.logpdf(y, params["loc"], params["scale"])


NORMAL = fj.Model(normal, constraints={"scale": fj.positive})
START = {"loc": 0.0, "scale": 1.0}
SAMPLE = np.random.default_rng(0).normal(3.0, 2.0, 50)


def logistic(beta, y, x):
    eta = jnp.dot(x, beta)
    return y * eta - jnp.logaddexp(0.0, eta)


def design(n=60, columns=3, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, columns))
    x[:, 0] = 1.0
    return x, (rng.uniform(size=n) < 1 / (1 + np.exp(-x[:, 1]))).astype(float)


def student(params, y):
    df, z = params["df"], (y - params["loc"]) / params["scale"]
    constant = jax.scipy.special.gammaln((df + 1) / 2) - jax.scipy.special.gammaln(df / 2) - 0.5 * jnp.log(df * jnp.pi)
    return constant - jnp.log(params["scale"]) - (df + 1) / 2 * jnp.log1p(z**2 / df)


@jax.jit
def fitted_each(starts, samples):
    """A fit of the normal for each start and sample, by one program."""
    return jax.vmap(lambda start, y: fj.fit(NORMAL, start, y))(starts, samples)


def mixture(params, y):
    first = jnp.log(params["weight"]) + norm.logpdf(y, params["loc"][0], 1.0)
    second = jnp.log1p(-params["weight"]) + norm.logpdf(y, params["loc"][1], 1.0)
    return jnp.logaddexp(first, second)


def test_converged_means_within_the_tolerance_and_positive_definite():
    fit = fj.fit(NORMAL, START, SAMPLE)
    assert fit.status is Status.CONVERGED
    assert fit.converged
    assert fit.decrement < 1.5e-8
    assert np.all(np.linalg.eigvalsh(fit.curvature) > 0)
    np.testing.assert_allclose(fit.params["loc"], SAMPLE.mean(), rtol=1e-8)
    np.testing.assert_allclose(fit.params["scale"], SAMPLE.std(), rtol=1e-8)


def test_a_tolerance_below_the_precision_ends_converged_to_rounding():
    fit = fj.fit(NORMAL, START, SAMPLE, tolerance=1e-30)
    assert fit.status is Status.CONVERGED_TO_ROUNDING
    assert fit.converged
    assert fit.decrement < 1e-10


def test_rounding_in_the_log_density_ends_converged_to_rounding():
    def coarse(params, y):
        return (normal(params, y) + 1e9) - 1e9

    fit = fj.fit(fj.Model(coarse, constraints=NORMAL.constraints), START, SAMPLE)
    assert fit.status in (Status.CONVERGED, Status.CONVERGED_TO_ROUNDING)
    np.testing.assert_allclose(fit.params["loc"], SAMPLE.mean(), atol=0.01 * SAMPLE.std() / 50**0.5)


def test_too_few_steps_is_a_step_limit():
    fit = fj.fit(NORMAL, START, SAMPLE, max_steps=2)
    assert fit.status is Status.STEP_LIMIT
    assert fit.num_steps == 2
    assert not fit.converged


def test_no_steps_at_all_reports_the_start():
    fit = fj.fit(NORMAL, START, SAMPLE, max_steps=0)
    assert fit.status is Status.STEP_LIMIT
    assert fit.num_steps == 0
    assert fit.params["loc"] == 0.0


def test_more_steps_from_where_a_fit_stopped_lead_to_the_same_estimate():
    part = fj.fit(NORMAL, START, SAMPLE, max_steps=2)
    whole = fj.fit(NORMAL, jax.tree.map(float, part.params), SAMPLE)
    assert whole.status is Status.CONVERGED
    np.testing.assert_allclose(whole.params["scale"], SAMPLE.std(), rtol=1e-9)


def test_starting_at_the_maximum_is_certified_and_not_just_believed():
    fit = fj.fit(NORMAL, {"loc": SAMPLE.mean(), "scale": SAMPLE.std()}, SAMPLE)
    assert fit.status is Status.CONVERGED
    assert fit.num_steps <= 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_observation_that_is_not_finite_is_a_bad_start_and_is_named(bad):
    sample = SAMPLE.copy()
    sample[17] = bad
    fit = fj.fit(NORMAL, START, sample)
    assert fit.status is Status.BAD_START
    assert fit.suspect == 17
    with pytest.raises(fj.FitError, match=r"not finite at the starting parameters \(first at observation 17\)"):
        fit.raise_if_failed()


def test_an_observation_outside_the_support_is_a_bad_start():
    model = fj.Model(lambda rate, y: jnp.where(y >= 0, jnp.log(rate) - rate * y, -jnp.inf), constraints=fj.positive)
    fit = fj.fit(model, 1.0, np.array([1.0, 2.0, -3.0, 1.0]))
    assert fit.status is Status.BAD_START
    assert fit.suspect == 2
    assert not np.isfinite(fit.decrement)


def test_a_gradient_that_is_not_finite_is_named():
    def distance(loc, y):  # its derivative at y = loc is 0/0
        return -jnp.sqrt((y - loc) ** 2)

    fit = fj.fit(distance, 2.0, np.array([1.0, 4.0, 2.0, 3.0]))
    assert fit.status is Status.NOT_FINITE
    assert fit.suspect == 2
    assert "norm of a zero vector" in fit.diagnosis()


def test_fewer_observations_than_parameters_is_said():
    fit = fj.fit(NORMAL, START, SAMPLE[:1])
    assert fit.status is Status.TOO_FEW_OBSERVATIONS
    assert "1 observations, 2 free parameters" in fit.diagnosis()


def test_weights_that_leave_too_few_observations_are_said():
    fit = fj.fit(NORMAL, START, SAMPLE, weights=np.eye(50)[3])
    assert fit.status is Status.TOO_FEW_OBSERVATIONS


def everything(fit):
    """All that a fit says of itself, and its criteria."""
    return [*jax.tree.leaves(fit), fit.aic(), fit.bic(), fit.aicc(), str(fit.summary())]


@pytest.mark.parametrize("way", some_of(["fit", "fit_batch", "list", "vmap"], "fit", "fit_batch"))
def test_a_cell_whose_weights_are_all_zero_is_no_fit_whatever_lies_under_them(way):
    # Above three parameters derivatives are taken in reverse, in which a weight of zero does not silence NaN.
    x, y = design(columns=4)
    none = np.zeros_like(y)

    def fitted(y):
        if way == "fit":
            return fj.fit(logistic, np.zeros(4), y, given=x, weights=none)
        if way == "fit_batch":
            return fj.fit_batch(logistic, np.zeros(4), y[None], given=x, weights=none[None])[0]
        if way == "list":
            return fj.fit_batch(logistic, np.zeros(4), [y], given=[x], weights=[none])[0]
        return jax.tree.map(
            lambda leaf: leaf[0], jax.vmap(lambda y: fj.fit(logistic, np.zeros(4), y, given=x, weights=none))(y[None])
        )

    fit = fitted(y)
    assert fit.status is Status.TOO_FEW_OBSERVATIONS
    assert np.isnan([fit.aic(), fit.bic(), fit.aicc()]).all()
    assert "(0 observations, 4 free parameters)" in " ".join(str(fit.summary()).split())
    assert fit.params.tolist() == [0.0] * 4
    for under in (np.nan, np.inf, -999.0):
        for one, other in zip(everything(fitted(np.full_like(y, under))), everything(fit), strict=True):
            np.testing.assert_array_equal(one, other)


def test_identical_columns_are_singular_and_the_direction_is_named():
    x, y = design()
    fit = fj.fit(logistic, np.zeros(4), y, given=np.column_stack([x, x[:, 1]]))
    assert fit.status is Status.SINGULAR_INFORMATION
    assert "params[1]" in fit.diagnosis()
    assert "params[3]" in fit.diagnosis()
    assert "params[0]" not in fit.diagnosis()
    with pytest.warns(fj.FitWarning, match=r"singular.*direction"):
        assert np.isnan(fit.covariance()).all()


def test_two_parameters_that_enter_as_a_product_are_singular():
    model = fj.Model(
        lambda p, y: norm.logpdf(y, 0.0, p["a"] * p["b"]), constraints={"a": fj.positive, "b": fj.positive}
    )
    fit = fj.fit(model, {"a": 1.0, "b": 2.0}, SAMPLE)
    assert fit.status is Status.SINGULAR_INFORMATION
    assert f"+1 a -{fit.params['b'] / fit.params['a']:.4g} b" in fit.diagnosis()


def two_levels(params, y, z):
    return norm.logpdf(y, params["const"] + params["no"] * z[0] + params["yes"] * z[1], 1.0)


def in_shares(params, y):
    """Three outcomes, the first of which has two shares."""
    shares = params["shares"]
    return jnp.log(jnp.where(y == 0, shares[0] + shares[2], jnp.where(y == 1, shares[1], shares[3])))


LEVELS = np.random.default_rng(0).uniform(size=60) < 0.25
ENTERED_TWICE = {
    "a factor with all its levels": (two_levels, {"const": 0.0, "no": 0.0, "yes": 0.0}, LEVELS + SAMPLE.repeat(2)[:60],
                                     np.column_stack([~LEVELS, LEVELS]).astype(float)),
    "levels in a unit of their own": (two_levels, {"const": 0.0, "no": 0.0, "yes": 0.0}, LEVELS + SAMPLE.repeat(2)[:60],
                                      np.column_stack([1e-6 * ~LEVELS, 1e3 * LEVELS])),
    "positive factors of a product": (
        fj.Model(lambda p, y: norm.logpdf(y, 0.0, p["a"] * p["b"]), constraints={"a": fj.positive, "b": fj.positive}),
        {"a": 1.0, "b": 20.0}, SAMPLE, None),
    "shares of a simplex": (
        fj.Model(in_shares, constraints={"shares": fj.simplex}), {"shares": np.full(4, 0.25)},
        np.random.default_rng(2).integers(0, 3, 50).astype(float), None),
}  # fmt: skip


@pytest.mark.parametrize("name", ENTERED_TWICE)
def test_moving_along_the_printed_direction_leaves_the_log_likelihood_unchanged_to_second_order(name):
    model, start, data, given = ENTERED_TWICE[name]
    fit = fj.fit(model, start, data, given=given)
    assert fit.status is Status.SINGULAR_INFORMATION
    names, theta = fit.names, np.asarray(fit.layout.join(fit.values), float)
    printed = re.search(r"direction: ([^)]+)\)", fit.diagnosis()).group(1)
    assert printed == fj.identifiability(fit).describe()
    terms = printed.split()
    direction = np.zeros(len(names))
    for size, entry in zip(terms[::2], terms[1::2], strict=True):
        direction[names.index(entry)] = float(size)

    def change(step):
        ends = [fit.layout.assemble(fit.layout.split(theta + sign * step, 0.0)) for sign in (1, -1)]
        up, down = (float(fj.log_likelihood(model, end, data, given=given) - fit.log_likelihood) for end in ends)
        return abs(up - down), abs(up + down)

    step = 1e-3 * direction / np.max(np.abs(direction) / np.maximum(np.abs(theta), 1e-3))
    alone = max(change(np.where(np.arange(len(names)) == k, step, 0.0))[1] for k in np.flatnonzero(direction))
    first, second = change(step)
    assert second < 1e-4 * alone
    assert first < 1e-4 * alone


def test_a_ridge_of_maxima_is_singular_and_a_saddle_with_an_empty_diagonal_is_not():
    def product(p, y):
        return norm.logpdf(y, p["a"] * p["b"], 1.0)

    sample = np.array([1.0, 2.0, 3.0])
    for start in ({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 0.5}):
        assert fj.fit(product, start, sample).status is Status.SINGULAR_INFORMATION
        assert fj.fit(product, start, sample, tolerance=1e-12).status is Status.SINGULAR_INFORMATION
    assert fj.fit(product, {"a": 0.0, "b": 0.0}, sample).status is Status.INDEFINITE


def test_perfect_separation_is_a_boundary_and_never_converges():
    x, _ = design()
    fit = fj.fit(logistic, np.zeros(3), (x[:, 1] > 0).astype(float), given=x)
    assert fit.status is Status.BOUNDARY
    assert "infinity" in fit.diagnosis()
    assert "+1 params[1]" in fit.diagnosis()
    assert fit.num_steps < 40


def test_quasi_separation_is_a_boundary_too():
    x, y = design()
    x[:, 2] = (np.arange(60) < 20).astype(float)
    y[:20] = 1.0
    fit = fj.fit(logistic, np.zeros(3), y, given=x)
    assert fit.status is Status.BOUNDARY
    assert "+1 params[2]" in fit.diagnosis()


@pytest.mark.parametrize("level", [0.0, 5.0, 3.1, -1e6])
def test_a_sample_without_variation_is_a_boundary(level):
    fit = fj.fit(NORMAL, {"loc": 1.0, "scale": 1.0}, np.full(50, level))
    if level == 0.0 and fit.status is Status.STEP_LIMIT:
        return  # loc and scale go to zero together for ever, unless rounding makes loc zero, as in some versions of XLA
    assert fit.status is Status.BOUNDARY
    assert "scale" in fit.diagnosis()


LIGHT_TAILED = np.linspace(-1.7, 1.7, 60)  # its tails are lighter than the normal's


@functools.cache
def student_of_light_tails():
    model = fj.Model(student, constraints={"df": fj.positive, "scale": fj.positive})
    return fj.fit(model, {"df": 5.0, "loc": 0.0, "scale": 1.0}, LIGHT_TAILED)


def test_infinite_degrees_of_freedom_are_a_boundary():
    fit = student_of_light_tails()
    assert fit.status is Status.BOUNDARY
    assert "df" in fit.diagnosis()
    # At the edge the model is the normal, and its errors are those of the other parameters given the edge.
    normal = fj.fit(NORMAL, {"loc": 0.0, "scale": 1.0}, LIGHT_TAILED)
    assert "conditional on `df` at the edge" in " ".join(str(fit).split())
    with pytest.warns(fj.FitWarning, match="conditional on `df` at the edge"):
        frame = fit.to_frame()
    assert list(frame.index) == ["df (at its edge)", "loc", "scale"]
    assert frame.loc["df (at its edge)", "standard_error":].isna().all()
    for kind in ("observed", "sandwich"):
        np.testing.assert_allclose(
            fit.summary(kind).to_frame().iloc[1:].astype(float),
            normal.to_frame(kind).astype(float),
            rtol=1e-3,
            atol=1e-6,
        )
    with pytest.warns(fj.FitWarning, match="no standard errors"):
        assert np.isnan(fit.standard_errors()["loc"])  # what gives numbers alone cannot label them


def test_errors_at_an_edge_are_given_only_where_the_others_are_at_their_maximum():
    fit = student_of_light_tails()
    moved = dataclasses.replace(fit, free=fit.free + np.array([0.0, 0.3, 0.0]))
    for other in (moved, dataclasses.replace(fit, origin=None)):
        assert "conditional" not in str(other)
        assert other.summary().to_frame()["standard_error"].isna().all()
    without = dataclasses.replace(fit, outer_product=np.full_like(fit.outer_product, np.nan)).summary("sandwich")
    assert without.to_frame()["standard_error"].isna().all()
    assert "conditional" not in str(without)
    assert "There are no standard errors" in " ".join(str(without).split())


def test_a_variance_component_whose_best_value_is_zero_is_a_boundary():
    model = fj.Model(lambda p, y: norm.logpdf(y, 0.0, jnp.sqrt(1.0 + p["extra"])), constraints={"extra": fj.positive})
    fit = fj.fit(model, {"extra": 1.0}, 0.1 * SAMPLE)
    assert fit.status is Status.BOUNDARY


def test_a_mixture_weight_that_runs_to_its_edge_is_a_boundary():
    model = fj.Model(mixture, constraints={"weight": fj.unit_interval})
    sample = np.random.default_rng(1).normal(0.0, 0.8, 200)
    fit = fj.fit(model, {"weight": 0.5, "loc": jnp.array([0.0, 8.0])}, sample)
    assert fit.status is not Status.CONVERGED or 0.0 < fit.params["weight"] < 0.999


def test_a_saddle_point_is_indefinite():
    sample = np.random.default_rng(0).normal(size=200) + np.where(np.arange(200) < 100, -3.0, 3.0)
    model = fj.Model(lambda loc, y: mixture({"weight": 0.5, "loc": loc}, y))
    fit = fj.fit(model, np.full(2, sample.mean()), sample)
    assert fit.status is Status.INDEFINITE
    assert fj.fit(model, np.array([-0.1, 0.1]), sample).status is Status.CONVERGED


def kinked(loc, y, smooth):
    return -10.0 * jnp.abs(y - loc) - smooth * (y - loc) ** 2


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.exhaustive) for seed in range(1, 5))])
@pytest.mark.parametrize("smooth", [0.0, 0.1])
def test_a_kink_at_the_maximum_never_converges(seed, smooth):
    sample = np.random.default_rng(seed).normal(size=51)
    fit = fj.fit(kinked, 0.7, sample, given=np.full(51, smooth))
    assert fit.status in (Status.STALLED, Status.SINGULAR_INFORMATION)
    if smooth:
        assert fit.status is Status.STALLED
        assert "kink" in fit.diagnosis()


def test_a_degenerate_maximum_is_singular():
    fit = fj.fit(lambda theta, y: -((theta - y) ** 4), 3.0, np.full(20, 1.0))
    assert fit.status is Status.SINGULAR_INFORMATION


def test_a_start_outside_its_constraint_known_only_at_run_time_is_a_bad_start_blames_no_observation_and_is_kept():
    fits = fitted_each({"loc": np.zeros(2), "scale": np.array([1.0, -1.0])}, np.stack([SAMPLE, SAMPLE]))
    assert fits.status.tolist() == [Status.CONVERGED, Status.BAD_START]
    fit = jax.tree.map(lambda leaf: leaf[1], fits)
    assert fit.suspect == -1
    assert fit.params["scale"] == -1.0
    assert "outside their constraint" in fit.diagnosis()


def test_negative_weights_known_only_at_run_time_are_a_bad_start():
    model = fj.Model(lambda rate, y: jnp.log(rate) - rate * y, constraints=fj.positive)
    fit = jax.jit(lambda w: fj.fit(model, 1.0, np.abs(SAMPLE), weights=w))(-jnp.ones(50))
    assert fit.status is Status.BAD_START


def test_a_row_may_hold_many_observations_and_the_certificate_outranks_the_count():
    together = fj.Model(lambda p, y: jnp.sum(normal(p, y)), constraints=NORMAL.constraints)
    fit = fj.fit(together, START, SAMPLE[None, :])
    assert fit.status is Status.CONVERGED
    np.testing.assert_allclose(fit.params["loc"], SAMPLE.mean(), rtol=1e-8)


def test_a_boundary_has_no_standard_errors_under_vmap_either():
    fits = fitted_each({"loc": np.ones(2), "scale": np.ones(2)}, np.stack([SAMPLE, np.full(50, 5.0)]))
    errors = jax.jit(jax.vmap(lambda fit: fit.standard_errors()))(fits)["loc"]
    assert np.isfinite(errors[0])
    assert np.isnan(errors[1])


@pytest.mark.parametrize("status", Status)
def test_every_status_has_a_meaning_and_every_failure_a_remedy(status):
    assert status.meaning
    assert status.converged or (status.causes and status.remedy)
    assert f"{status}" == str(status) == status.label


def test_steps_that_ran_out_far_from_the_start_are_a_step_limit_and_not_a_boundary():
    """An entry off the diagonal of a Cholesky factor, of far data, has little information on its way and no boundary."""
    data = 1e4 * np.random.default_rng(0).normal(size=(100, 2))

    def centred(covariance, y):
        (a, b), (_, c) = covariance
        determinant = a * c - b**2
        return -0.5 * (c * y[0] ** 2 - 2 * b * y[0] * y[1] + a * y[1] ** 2) / determinant - 0.5 * jnp.log(determinant)

    model = fj.Model(centred, constraints=fj.positive_definite)
    short = fj.fit(model, np.eye(2), data, max_steps=12)
    assert short.status is Status.STEP_LIMIT
    whole = fj.fit(model, np.eye(2), data)
    assert whole.status is Status.CONVERGED
    assert whole.num_steps < 40  # each step of that entry was cut to seven of its units, as if it were a logarithm
    np.testing.assert_allclose(whole.params, data.T @ data / 100, rtol=1e-6)


def test_a_scale_still_on_its_way_when_the_steps_run_out_is_a_step_limit():
    data = 1e12 * np.random.default_rng(0).normal(size=50)
    fit = fj.fit(fj.families.normal, {"loc": 0.0, "scale": 1e-3}, data, max_steps=48)
    assert fit.params["scale"] > 1e7
    assert fit.status is Status.STEP_LIMIT


FAILURES = {
    Status.BAD_START: (
        "the log-density is not finite at the start",
        {"data": np.where(np.arange(50) == 17, np.nan, SAMPLE)},
    ),
    Status.STEP_LIMIT: (r"\de[+-]\d\d standard errors \(decrement\)", {"data": SAMPLE, "max_steps": 2}),
}


@pytest.mark.parametrize("status", FAILURES)
def test_a_point_that_is_no_maximum_has_no_uncertainty_unless_asked_for_and_says_the_true_reason(status):
    distance, settings = FAILURES[status]
    fit = fj.fit(NORMAL, START, **settings)
    assert fit.status is status
    report = str(fit.summary())
    assert re.search(f"Distance to the maximum  .*{distance}", report)
    assert "no certified maximum" in " ".join(report.split())
    asked = {
        "standard_errors": lambda: fit.standard_errors()["loc"],
        "confidence_intervals": lambda: fit.confidence_intervals()["loc"],
        "covariance": fit.covariance,
        "to_frame": lambda: fit.to_frame()["standard_error"],
        "wald_test": lambda: fj.wald_test(fit, {"loc": 0.0}).p_value,
        "delta_method": lambda: fj.delta_method(fit, lambda p: p["loc"]).standard_error,
        "tic": fit.tic,
    }
    for name, ask in asked.items():
        with pytest.warns(fj.FitWarning, match=f"{name}: not to be relied on. {status.label.capitalize()}"):
            assert np.all(np.isnan(ask()))
    if status is Status.STEP_LIMIT:
        with pytest.warns(fj.FitWarning, match="Step limit"):
            there = fit.covariance(require_maximum=False)
        step = np.linalg.inv(np.asarray(fit.curvature, float))[0, 0]  # `loc` has no constraint
        np.testing.assert_allclose(there[0, 0], step, rtol=1e-12)


def test_in_a_batch_only_the_fits_that_failed_have_no_standard_errors():
    fits = fj.fit_batch(NORMAL, START, np.stack([SAMPLE, np.full(50, np.nan), SAMPLE + 1.0, np.full(50, np.inf)]))
    with pytest.warns(fj.FitWarning, match="2 of 4 fits did not converge"):
        errors = fits.standard_errors()["loc"]
    np.testing.assert_array_equal(np.isnan(errors), [False, True, False, True])
    assert [note[:6] for note in fits.summary().notes] == ["Fit 1,"]  # the first of each kind


def extremes(uniform, shape):
    """Quantiles of the generalised extreme-value distribution with location zero and scale one."""
    return ((-np.log(uniform)) ** -shape - 1.0) / shape


def test_an_extreme_value_shape_beyond_minus_one_half_warns_of_the_theory_that_fails_there():
    data = extremes((np.arange(50) + 0.5) / 50, -0.72)  # as many as below, for the same program
    fit = fj.fit(fj.families.gev, {"loc": 0.0, "scale": 1.0, "shape": -0.1}, data)
    assert fit.converged
    assert -1.0 < fit.params["shape"] < -0.5
    with pytest.warns(fj.FitWarning, match="not asymptotically normal"):
        assert np.isfinite(fit.standard_errors()["shape"])
    with pytest.warns(fj.FitWarning, match="the expected information is not finite at the estimate"):
        assert np.isnan(fit.standard_errors("expected")["shape"])
    assert "not asymptotically normal" in " ".join(str(fit.summary()).split())
    with pytest.warns(fj.FitWarning, match="not asymptotically normal"):
        fj.wald_test(fit, {"loc": 0.0})


@pytest.mark.parametrize("seed", some_of(range(3), 0))
def test_an_unbounded_extreme_value_likelihood_stalls_at_an_edge_of_the_support(seed):
    """Beyond a shape of -1 the likelihood rises without bound as the upper end comes down to the greatest observation."""
    uniform = np.random.default_rng(0).uniform(size=(60, 50))[[3, 4, 41][seed]]
    data = extremes(uniform, -1.3)
    fit = fj.fit(fj.families.gev, {"loc": 0.0, "scale": 1.0, "shape": 0.1 if seed < 2 else -0.3}, data)
    assert fit.status in (Status.STALLED, Status.STEP_LIMIT)
    assert "upper bound" in fit.diagnosis()


def test_a_singular_empirical_information_is_warned_of_with_its_direction():
    """Three parameters, two observations that differ: Σ s sᵀ has rank two, while the curvature is positive definite."""
    z = np.repeat(np.eye(3), [1, 1, 2], axis=0)
    y = np.array([1.0, 3.0, 2.0, 2.0])
    fit = fj.fit(lambda beta, y, z: norm.logpdf(y, z @ beta, 1.0), np.zeros(3), y, given=z)
    assert fit.converged
    with pytest.warns(fj.FitWarning, match=r"standard_errors: .*empirical information is singular \(direction: "):
        assert np.all(np.isnan(fit.standard_errors("empirical")))


def test_a_covariance_matrix_at_its_edge_is_called_singular():
    """Effects that are perfectly correlated: no variance is zero, and none is held at a value."""
    constraints = {"covariance": fj.positive_definite, "scale": fj.positive}
    layout, _ = flatten_parameters(fj.Model(normal, constraints=constraints), {"covariance": np.eye(2), "scale": 1.0})
    curvature, edge = np.diag([1.0, 1.0, 0.0, 1.0]), np.array([False, False, True, False])
    at_edge = np.array([False, False, False, True, False])
    assert escaping(curvature, np.zeros(4), np.zeros(4), layout) == "covariance towards a singular matrix"
    assert edge_in_words(layout, edge, at_edge) == "`covariance` as a singular matrix at the edge"
