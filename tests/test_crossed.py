"""Crossed and nested effects: `mixed` with levels=, all rows one observation, against dense closed forms and peers."""

import dataclasses
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import normal_derivatives, some_of
from jax.scipy.stats import norm
from scipy.stats import chi2, multivariate_normal

import fisher_jax as fj
from fisher_jax.latent import many_effects
from fisher_jax.latent.many_effects import Bordered, Derivatives, factorize, find_mode


def grid(*levels):
    """The codes of a design in which every combination occurs once."""
    return [codes.ravel() for codes in np.meshgrid(*map(np.arange, levels), indexing="ij")]


# As the assay of penicillin: 24 plates, a sample of each of three batches on every plate.
RNG = np.random.default_rng(11)
PLATE, SAMPLE = grid(24, 3)
ZONE = (
    23 + 0.85 * RNG.normal(size=24)[PLATE] + 1.9 * RNG.normal(size=3)[SAMPLE] + 0.55 * RNG.normal(size=72)
)  # the diameter in mm
X = RNG.normal(size=72)
TABLE = {"zone": ZONE, "x": X, "plate": PLATE, "sample": SAMPLE}


def zone_predictor(params, effects, z):
    return {"loc": params["mean"] + effects["plate"] + effects["sample"], "scale": params["scale"]}


PENICILLIN = fj.mixed(
    fj.families.normal,
    zone_predictor,
    {"plate": 0.0, "sample": 0.0},
    levels={"plate": 24, "sample": 3},
    constraints={"scale": fj.positive},
)
START = {"mean": 20.0, "sd": {"plate": 1.0, "sample": 1.0}, "scale": 1.0}


SAME_PLATE, SAME_SAMPLE = PLATE[:, None] == PLATE, SAMPLE[:, None] == SAMPLE


def dense_zone(params, y):
    """The log-density in closed form: y of all rows is normal."""
    sd, scale = params["sd"], params["scale"]
    variance = scale**2 * np.eye(72) + sd["plate"] ** 2 * SAME_PLATE + sd["sample"] ** 2 * SAME_SAMPLE
    return multivariate_normal.logpdf(y, np.full(72, params["mean"]), variance)


@functools.cache
def penicillin():
    rows = fj.by_group(TABLE, [])
    return fj.fit(PENICILLIN, START, rows["zone"], given=rows)


def derivatives(density, params, with_modes):
    """Value, gradient and Hessian of a function of parameters, flat; of a marginal model the modes are found once."""
    flat, restore = jax.flatten_util.ravel_pytree(params)

    @jax.jit
    def at(u):
        modes = with_modes(restore(u))
        gradient = jax.value_and_grad(lambda v: density(restore(v), modes))
        (value, slope), push = jax.linearize(gradient, u)
        return value, slope, jax.vmap(push)(jnp.eye(len(u)))[1]

    return np.asarray(flat), at  # as points near it will be, or JAX compiles twice


def test_a_linear_crossed_fit_is_that_of_its_dense_closed_form():
    fit = penicillin()
    assert fit.converged
    assert fit.names == ("mean", "sd.plate", "sd.sample", "scale")
    estimate = np.array([fit.params["mean"], *fit.params["sd"].values(), fit.params["scale"]])
    # V of all 72 rows is a sum of squares of parameters, each times a matrix; that of the mean is zero.
    among = np.stack([np.zeros((72, 72)), SAME_PLATE, SAME_SAMPLE, np.eye(72)])
    of_mean = np.array([[1.0], [0.0], [0.0], [0.0]]) * np.ones(72)
    value, gradient, hessian = normal_derivatives(
        ZONE - estimate[0],
        of_mean,
        np.tensordot(estimate**2, among, 1),
        2 * estimate[:, None, None] * among,
        2 * among,
    )
    np.testing.assert_allclose(fit.log_likelihood, value, rtol=1e-13)
    np.testing.assert_allclose(fit.covariance(), np.linalg.inv(-hessian), rtol=1e-9, atol=1e-13)
    # The maximum of the closed form is one step of Newton's method away.
    np.testing.assert_allclose(np.linalg.solve(hessian, gradient) / estimate, 0.0, atol=1e-9)


def test_densities_of_many_data_sets_are_those_of_each():
    rows = {"plate": PLATE, "sample": SAMPLE}
    of_each = jax.jit(jax.vmap(lambda y: PENICILLIN.log_density(penicillin().params, y, rows)))
    up, same = of_each(np.stack([ZONE + 1.0, ZONE]))
    np.testing.assert_allclose(same, penicillin().log_likelihood, rtol=1e-12)
    np.testing.assert_allclose(up, dense_zone(penicillin().params, ZONE + 1.0), rtol=1e-12)


@pytest.mark.exhaustive
def test_a_batch_of_crossed_fits_is_that_of_each():
    rows = fj.by_group({name: TABLE[name] for name in ("plate", "sample")}, [])
    fits = fj.fit_batch(PENICILLIN, START, jnp.stack([ZONE, ZONE + 1.0])[:, None], given=rows)
    assert np.all(fits.converged)
    np.testing.assert_allclose(fits.log_likelihood, penicillin().log_likelihood, rtol=1e-12)
    np.testing.assert_allclose(fits.params["mean"], penicillin().params["mean"] + np.arange(2.0), rtol=1e-9)
    np.testing.assert_allclose(
        fits[1].standard_errors()["sd"]["sample"], penicillin().standard_errors()["sd"]["sample"]
    )


def test_a_linear_crossed_fit_is_that_of_statsmodels():
    """MixedLM of statsmodels 0.15, "plate" and "sample" as variance components of one group, reml=False."""
    fit = penicillin()
    np.testing.assert_allclose(fit.log_likelihood, -85.58274269882887, rtol=1e-11)
    np.testing.assert_allclose(fit.params["mean"], 21.05272822, rtol=1e-9)
    np.testing.assert_allclose(fit.params["sd"]["plate"], 0.68793755, rtol=1e-5)
    np.testing.assert_allclose(fit.params["sd"]["sample"], 1.10700003, rtol=1e-5)
    np.testing.assert_allclose(fit.params["scale"], 0.54515258, rtol=1e-5)
    np.testing.assert_allclose(fit.standard_errors()["mean"], 0.65751788, rtol=1e-5)


def restricted_model(family=fj.families.normal, predictor=zone_predictor, reml=None, **options):
    options = {"levels": {"plate": 24, "sample": 3}, "constraints": {"scale": fj.positive}} | options
    reml = {"mean": 0.0} if reml is None else reml
    return fj.mixed(family, predictor, {"plate": 0.0, "sample": 0.0}, reml=reml, **options)


@functools.cache
def restricted():
    rows = fj.by_group(TABLE, [])
    return fj.fit(restricted_model(), {name: START[name] for name in ("sd", "scale")}, rows["zone"], given=rows)


def test_restricted_maximum_likelihood_is_that_of_statsmodels():
    """MixedLM of statsmodels 0.15, "plate" and "sample" as variance components of one group, reml=True."""
    fit, effects = restricted(), fj.predicted_effects(restricted())
    assert fit.names == ("sd.plate", "sd.sample", "scale")
    np.testing.assert_allclose(fit.log_likelihood, -84.99600417755434, rtol=1e-11)
    np.testing.assert_allclose(fit.params["sd"]["plate"], 0.68894933, rtol=1e-5)
    np.testing.assert_allclose(fit.params["sd"]["sample"], 1.34764171, rtol=1e-5)
    np.testing.assert_allclose(fit.params["scale"], 0.54509600, rtol=1e-5)
    np.testing.assert_allclose(effects.estimate["mean"], [21.05272822], rtol=1e-9)
    np.testing.assert_allclose(effects.standard_errors()["mean"], [0.79327380], rtol=1e-5)
    # Given the variances the error is that of generalised least squares, which lme4 prints.
    sd = fit.params["sd"]
    variance = fit.params["scale"] ** 2 * np.eye(72) + sd["plate"] ** 2 * SAME_PLATE + sd["sample"] ** 2 * SAME_SAMPLE
    precision = np.linalg.inv(variance)
    np.testing.assert_allclose(effects.standard_errors(conditional=True)["mean"], [precision.sum() ** -0.5], rtol=1e-9)


def test_restricted_likelihoods_of_other_coefficients_are_not_compared():
    with pytest.raises(
        ValueError, match=r"'ml' is integrated over none and that of 'reml' over `mean`.*cannot be compared"
    ):
        fj.compare(ml=penicillin(), reml=restricted())
    with pytest.raises(ValueError, match="restricted likelihoods of models with other coefficients"):
        fj.likelihood_ratio_test(penicillin(), restricted())
    without_model = dataclasses.replace(penicillin(), origin=None)
    np.testing.assert_array_equal(fj.compare(one=penicillin(), again=without_model).difference, 0.0)
    assert "integrated over `mean`; their estimates: predicted_effects(fit)" in repr(restricted())


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"family": fj.families.student_t}, ValueError, "student_t.*is for families.normal"),
        ({"levels": None}, ValueError, "reml= needs levels="),
        ({"reml": 0.0}, TypeError, "reml is 0.0; expected a dictionary"),
        ({"reml": {"plate": 0.0}}, ValueError, "reml names 'plate'"),
        ({"reml": {"mean": np.nan}}, ValueError, "not finite"),
        ({"names": {"mean": ("a", "b")}}, ValueError, "names of `mean` has 2 names"),
    ],
)
def test_wrong_coefficients_to_integrate_raise(options, error, match):
    with pytest.raises(error, match=match):
        restricted_model(**options)


@pytest.mark.parametrize(
    "predictor",
    [
        lambda p, e, z: {"loc": jnp.exp(p["mean"]) + e["plate"] + e["sample"], "scale": p["scale"]},
        lambda p, e, z: {"loc": p["mean"] * (1 + e["plate"]) + e["sample"], "scale": p["scale"]},
        lambda p, e, z: {"loc": p["mean"] + e["plate"] + e["sample"], "scale": p["scale"] + 0.1 * p["mean"] ** 2},
    ],
)
def test_coefficients_are_integrated_of_linear_predictors_only(predictor):
    density = restricted_model(predictor=predictor).log_density
    with pytest.raises(ValueError, match="exactly where `loc` is linear"):
        jax.eval_shape(density, {"sd": START["sd"], "scale": 1.0}, ZONE, {"plate": PLATE, "sample": SAMPLE})


def test_coefficients_that_rows_do_not_identify_are_explained():
    def predictor(params, effects, z):
        return {"loc": params["beta"][0] + params["beta"][1] + effects["plate"], "scale": params["scale"]}

    model = fj.mixed(fj.families.normal, predictor, {"plate": 0.0}, levels={"plate": 24}, reml={"beta": np.zeros(2)})
    words = model.explain({"sd": {"plate": 1.0}, "scale": 1.0}, jnp.asarray(ZONE), {"plate": jnp.asarray(PLATE)})
    assert words == "where the rows do not identify the coefficients: columns depend linearly on each other"


def test_each_effect_of_a_factor_has_a_variance_that_a_test_may_set_to_zero():
    assert PENICILLIN.num_effects == 2


def test_models_made_anew_are_equal():
    again = [restricted_model() for _ in range(2)]
    assert again[0].log_density == again[1].log_density
    assert again[0].sample == again[1].sample


def test_correlated_slopes_of_one_factor_have_the_derivatives_of_the_closed_form():
    def predictor(params, effects, z):
        slope = effects["sample"]["intercept"] + effects["sample"]["slope"] * z["x"]
        return {"loc": params["mean"] + slope, "scale": params["scale"]}

    effects = {"sample": {"intercept": 0.0, "slope": 0.0}}
    model = fj.mixed(fj.families.normal, predictor, effects, levels={"sample": 3}, correlated=["sample"])

    def params_of(u):  # a covariance matrix is a symmetric one, in its derivatives too
        sample = jnp.array([[u["var"], u["cov"]], [u["cov"], 0.5]])
        return {"mean": u["mean"], "scale": u["scale"], "covariance": {"sample": sample}}

    u = {"mean": 22.0, "scale": 0.6, "var": 1.5, "cov": -0.3}
    rows = {"x": X, "sample": SAMPLE}
    flat, here = derivatives(
        lambda u, y: model.log_density(params_of(u), y, rows), u, lambda u: model.with_modes(params_of(u), ZONE, rows)
    )
    assert model.algebra == "block-diagonal 3 × 2"
    # In the order of the flat vector: covariance of intercept and slope, mean, scale, variance of intercepts.
    ones, nothing = np.ones(72), np.zeros((72, 72))
    of_covariance = (np.outer(ones, X) + np.outer(X, ones)) * SAME_SAMPLE
    among = (1.5 * np.outer(ones, ones) + 0.5 * np.outer(X, X)) * SAME_SAMPLE - 0.3 * of_covariance
    closed = normal_derivatives(
        ZONE - 22.0,
        np.array([[0.0], [1.0], [0.0], [0.0]]) * ones,
        0.36 * np.eye(72) + among,
        np.stack([of_covariance, nothing, 1.2 * np.eye(72), 1.0 * SAME_SAMPLE]),
        np.stack([nothing, nothing, 2.0 * np.eye(72), nothing]),
    )
    for ours, theirs in zip(here(flat), closed, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)


def test_nested_factors_are_levels_of_the_combination():
    site, of_site = np.repeat(np.arange(3), 8), np.tile(np.repeat(np.arange(4), 2), 3)
    plot = 4 * site + of_site
    y = RNG.normal(size=3)[site] + RNG.normal(size=12)[plot] + RNG.normal(size=24)

    def predictor(params, effects, z):
        return {"loc": effects["site"] + effects["plot"], "scale": params["scale"]}

    levels = {"site": 3, "plot": 12}
    model = fj.mixed(fj.families.normal, predictor, {"site": 0.0, "plot": 0.0}, levels=levels)

    def dense(params):
        same = params["site"] ** 2 * (site[:, None] == site) + params["plot"] ** 2 * (plot[:, None] == plot)
        return multivariate_normal.logpdf(y, np.zeros(24), params["scale"] ** 2 * np.eye(24) + same)

    params = {"sd": {"site": 0.9, "plot": 0.8}, "scale": 1.1}
    value = jax.jit(model.log_density)(params, y, {"site": site, "plot": plot})
    assert model.algebra == "block-diagonal 12 × 1, dense 3"
    np.testing.assert_allclose(value, dense({"site": 0.9, "plot": 0.8, "scale": 1.1}), rtol=1e-13)


# Not normal: 30 plates × 4 samples, and a covariate.
PLATE_30, SAMPLE_4 = grid(30, 4)
X_120 = RNG.normal(size=120)
ETA = 0.5 + 0.3 * X_120 + 0.7 * RNG.normal(size=30)[PLATE_30] + 0.6 * RNG.normal(size=4)[SAMPLE_4]
ROWS = {"x": X_120, "plate": PLATE_30, "sample": SAMPLE_4}
LEVELS = {"plate": 30, "sample": 4}


def eta_of(params, effects, z):
    return params["mean"] + 0.3 * z["x"] + effects["plate"] + effects["sample"]


def crossed(family, predictor):
    return fj.mixed(family, predictor, {"plate": 0.0, "sample": 0.0}, levels=LEVELS)


FAMILIES = {
    "poisson": (
        fj.families.poisson,
        lambda p, e, z: {"rate": jnp.exp(eta_of(p, e, z))},
        RNG.poisson(np.exp(ETA)).astype(float),
    ),
    "bernoulli": (
        fj.families.bernoulli,
        lambda p, e, z: {"logit": eta_of(p, e, z)},
        (RNG.uniform(size=120) < 1 / (1 + np.exp(-ETA))).astype(float),
    ),
    # Whose log-density is not concave in the effects.
    "student_t": (
        fj.families.student_t,
        lambda p, e, z: {"loc": eta_of(p, e, z), "scale": 0.3, "df": 4.0},
        ETA + 0.3 * RNG.standard_t(4, size=120),
    ),
}
PARAMS = {"mean": 0.4, "sd": {"plate": 0.6, "sample": 0.5}}


@pytest.mark.parametrize("name", some_of(FAMILIES, "bernoulli"))
def test_second_derivatives_go_through_the_mode(name):
    family, predictor, y = FAMILIES[name]
    model = crossed(family, predictor)
    flat, at = derivatives(
        lambda p, modes: model.log_density(p, modes, ROWS), PARAMS, lambda p: model.with_modes(p, y, ROWS)
    )
    _, gradient, hessian = at(flat)

    def differences(which, step=1e-3):
        """Fourth-order differences of what is optimised anew at each point."""
        g = lambda u: at(u)[which]  # noqa: E731
        axes = step * np.eye(len(flat))
        return np.stack(
            [(8 * (g(flat + e) - g(flat - e)) - (g(flat + 2 * e) - g(flat - 2 * e))) / (12 * step) for e in axes]
        )

    np.testing.assert_allclose(gradient, differences(0), rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(hessian, differences(1), rtol=1e-6, atol=1e-6)


BERNOULLI, Y_120 = crossed(*FAMILIES["bernoulli"][:2]), FAMILIES["bernoulli"][2]
density_of_bernoulli = jax.jit(BERNOULLI.log_density)


def test_a_fit_of_one_observation_with_more_parameters_converges():
    assert penicillin().status == fj.Status.CONVERGED
    assert penicillin().num_observations == 1
    assert np.all(np.isfinite(penicillin().covariance()))


@pytest.mark.exhaustive
def test_a_fit_of_a_density_that_is_not_normal_converges():
    fit = fj.fit(BERNOULLI, PARAMS, Y_120[None], given=fj.by_group(ROWS, []))
    assert fit.status == fj.Status.CONVERGED
    assert np.all(np.isfinite(fit.covariance()))


def test_a_factor_without_variance_ends_at_the_boundary():
    centred = ZONE.reshape(24, 3) - ZONE.reshape(24, 3).mean(axis=0)  # the same mean of every sample
    rows = fj.by_group(TABLE | {"zone": centred.ravel()}, [])
    fit = fj.fit(PENICILLIN, START, rows["zone"], given=rows)
    assert fit.status == fj.Status.BOUNDARY
    assert fit.params["sd"]["sample"] < 1e-2
    assert "direction: sd.sample" in fit.diagnosis()


def test_a_factor_less_is_a_null_of_the_same_data_whose_variance_is_zero():
    """One factor is fitted by groups; two are one observation."""
    model = fj.mixed(
        fj.families.normal,
        lambda params, effects, z: {"loc": params["mean"] + effects["sample"], "scale": params["scale"]},
        {"sample": 0.0},
        constraints={"scale": fj.positive},
    )
    rows = fj.by_group({"zone": ZONE, "plate": PLATE}, SAMPLE)
    null = fj.fit(model, {"mean": 20.0, "sd": {"sample": 1.0}, "scale": 1.0}, rows["zone"], given=rows)
    test = fj.likelihood_ratio_test(penicillin(), null)
    statistic = 2 * float(penicillin().log_likelihood - null.log_likelihood)
    np.testing.assert_allclose(test.statistic, statistic, rtol=1e-8)
    np.testing.assert_allclose(test.mixture_p_value, 0.5 * chi2.sf(statistic, 1), rtol=1e-6)
    assert "no information" not in str(test)  # since the score of one observation vanishes at every maximum
    others = fj.by_group({"zone": ZONE[::-1] + np.arange(72), "plate": PLATE}, SAMPLE)
    with pytest.raises(ValueError, match="the two fits are of different data"):
        fj.likelihood_ratio_test(penicillin(), fj.fit(model, null.params, others["zone"], given=others))


def test_criteria_of_one_observation_count_its_rows_and_without_them_there_are_none():
    fit = penicillin()
    np.testing.assert_allclose(fit.bic(), 4 * np.log(72) - 2 * float(fit.log_likelihood))
    np.testing.assert_allclose(fit.aicc(), 8 * 72 / 67 - 2 * float(fit.log_likelihood))
    assert np.isnan(dataclasses.replace(fit, origin=None).bic())
    assert "BIC" not in str(dataclasses.replace(fit, origin=None))


def test_one_observation_has_no_sandwich():
    for kind in ("sandwich", "empirical"):
        with pytest.raises(ValueError, match=r"one observation .* crossed effects all rows are one"):
            penicillin().standard_errors(kind)
    with pytest.raises(ValueError, match="one observation"):
        fj.robust(penicillin())


def test_a_fit_and_its_model_survive_pickling():
    again = pickle.loads(pickle.dumps(penicillin()))
    assert again.params["mean"] == penicillin().params["mean"]


def test_effects_come_by_factor_and_level():
    fit = penicillin()
    mode = jax.jit(PENICILLIN.integral.mode)(fit.params, ZONE, {"plate": PLATE, "sample": SAMPLE})
    effects = PENICILLIN.effects_of(fit.params, mode.effects)
    sd, scale = fit.params["sd"], fit.params["scale"]
    # Best linear unbiased predictions in closed form.
    plate, sample = np.eye(24)[PLATE], np.eye(3)[SAMPLE]
    variance = scale**2 * np.eye(72) + sd["plate"] ** 2 * plate @ plate.T + sd["sample"] ** 2 * sample @ sample.T
    residuals = np.linalg.solve(variance, ZONE - fit.params["mean"])
    np.testing.assert_allclose(effects["plate"], sd["plate"] ** 2 * plate.T @ residuals, atol=1e-8)
    np.testing.assert_allclose(effects["sample"], sd["sample"] ** 2 * sample.T @ residuals, atol=1e-8)
    # The information is that of all effects, dense.
    both = np.hstack([plate * sd["plate"], sample * sd["sample"]])
    np.testing.assert_allclose(mode.information, np.eye(27) + both.T @ both / scale**2, atol=1e-8)


def test_rows_of_weight_zero_do_not_count():
    weights = jnp.r_[jnp.ones(120), 0.0]
    longer = {name: np.append(column, column[-1]) for name, column in ROWS.items()}
    b = np.linspace(-1, 1, 34)
    z = fj.Grouped(longer, weights)
    joint = jax.jit(BERNOULLI.joint)
    with_row = joint(PARAMS, b, fj.Grouped(np.append(Y_120, np.nan), weights), z)
    np.testing.assert_allclose(with_row, joint(PARAMS, b, Y_120, ROWS), rtol=1e-13)


def test_draws_share_the_effects_of_their_levels():
    params = {"mean": 0.0, "sd": {"plate": 2.0, "sample": 1.0}, "scale": 1e-9}
    y = jax.jit(PENICILLIN.sample)(jax.random.key(0), params, {"plate": PLATE, "sample": SAMPLE}).reshape(24, 3)
    # Without noise, plates and samples add up.
    np.testing.assert_allclose(y - y[:1] - y[:, :1] + y[0, 0], 0, atol=1e-7)
    assert np.std(y[:, 0]) > 0.5
    assert np.std(y[0]) > 0.1


def test_it_works_in_float32():
    narrow = lambda x: jnp.asarray(x, jnp.float32 if np.asarray(x).dtype.kind == "f" else None)  # noqa: E731
    value = density_of_bernoulli(*jax.tree.map(narrow, (PARAMS, Y_120, ROWS)))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, density_of_bernoulli(PARAMS, Y_120, ROWS), rtol=1e-5)


# --- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        (None, ValueError, "needs given="),
        (Y_120[None], TypeError, "given is ndarray"),
        ({"x": X_120, "plate": PLATE_30}, ValueError, "no column 'sample'.* 0 to 3. It has plate, x"),
        (ROWS | {"plate": PLATE_30 * 1.0}, TypeError, "'plate' has dtype float64.*return_inverse"),
        (
            ROWS | {"plate": PLATE_30 + 1},
            ValueError,
            "'plate' is 30 in row 116; its 30 levels are numbered from 0 to 29",
        ),
        (ROWS | {"sample": SAMPLE_4 - 1}, ValueError, "'sample' is -1 in row 0"),
    ],
)
def test_levels_that_do_not_exist_raise(given, error, match):
    given = {name: column[None] for name, column in given.items()} if isinstance(given, dict) else given
    with pytest.raises(error, match=match):
        fj.fit(BERNOULLI, PARAMS, Y_120[None], given=given)


def test_rows_without_an_axis_of_one_observation_raise():
    with pytest.raises(ValueError, match=r"shape \(120,\).*by_group\(table, \[\]\)"):
        fj.fit(BERNOULLI, PARAMS, Y_120, given=ROWS)


def test_a_level_known_only_when_compiled_code_runs_is_explained():
    z = jax.tree.map(jnp.asarray, ROWS | {"plate": PLATE_30 + 1})
    assert np.isnan(density_of_bernoulli(PARAMS, Y_120, z))
    assert "'plate' is 30 in row 116" in BERNOULLI.explain(PARAMS, Y_120, z)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"effects": 0.0}, TypeError, "dictionary of grouping factors"),
        ({"levels": {"plate": 30}}, ValueError, "levels=.*plate, sample"),
        ({"levels": {"plate": 30, "sample": 0}}, ValueError, r"levels\['sample'\]=0 must be a whole number"),
        ({"levels": {"plate": 30, "sample": 10**9}}, ValueError, "memory"),
        ({"correlated": ["batch"]}, ValueError, "correlated names 'batch'"),
        ({"nodes": 5}, ValueError, "nodes=5 with levels="),
        ({"effects": {"plate": {}, "sample": 0.0}}, ValueError, r"effects\['plate'\] holds no number"),
    ],
)
def test_wrong_factors_raise(arguments, error, match):
    effects = arguments.pop("effects", {"plate": 0.0, "sample": 0.0})
    with pytest.raises(error, match=match):
        fj.mixed(fj.families.poisson, FAMILIES["poisson"][1], effects, **{"levels": LEVELS} | arguments)


def test_a_constraint_of_one_factor_leaves_the_others_positive():
    effects, constraints = {"plate": 0.0, "sample": 0.0}, {"sd": {"sample": fj.fixed}}
    model = fj.mixed(fj.families.poisson, FAMILIES["poisson"][1], effects, levels=LEVELS, constraints=constraints)
    assert model.constraints == {"sd": {"plate": fj.positive, "sample": fj.fixed}}


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({"mean": 0.0}, "standard deviations of each factor's effects under 'sd'"),
        ({"mean": 0.0, "sd": {"plate": 1.0}}, "'sd': {'sample': …}"),
        (
            {"mean": 0.0, "sd": {"plate": {"x": 1.0}, "sample": 1.0}},
            r"params\['sd'\]\['plate'\] has shape .*expected \(\)",
        ),
        ({"mean": 0.0, "sd": {"plate": np.ones(2), "sample": 1.0}}, r"params\['sd'\]\['plate'\] has shape \(2,\)"),
    ],
)
def test_parameters_without_the_distribution_of_a_factor_raise(params, match):
    with pytest.raises(ValueError, match=match):
        fj.fit(BERNOULLI, params, Y_120[None], given=fj.by_group(ROWS, []))


def test_all_rows_are_one_group():
    rows = fj.by_group(ROWS, [])
    assert rows.rows["x"].shape == (1, 120)
    assert np.all(rows.weights == 1)
    assert rows.rows["plate"].dtype.kind == "i"
    with pytest.raises(ValueError, match="columns of lengths"):
        fj.by_group({"a": np.ones(3), "b": np.ones(2)}, [])


def test_many_effects_of_any_joint_density_are_dense():
    """A random walk with an error at each of 12 times, whose closed form is normal."""
    times = np.minimum.outer(np.arange(1, 13), np.arange(1, 13))
    y = np.cumsum(np.random.default_rng(2).normal(size=12))

    def joint(params, walk, y):
        steps = jnp.diff(walk, prepend=0.0)
        return jnp.sum(norm.logpdf(y, walk, 0.5)) + jnp.sum(norm.logpdf(steps, 0.0, params["sd"]))

    model = fj.marginal(joint, np.zeros(12))
    assert model.algebra == "dense 12"
    flat, here = derivatives(model.log_density, {"sd": 0.8}, lambda params: model.with_modes(params, y))
    variance = 0.25 * np.eye(12) + 0.64 * times
    closed = normal_derivatives(y, np.zeros((1, 12)), variance, 1.6 * times[None], 2.0 * times[None])
    for ours, theirs in zip(here(flat), closed, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10)


# --- the algebra and the search --------------------------------------------------------------------------------------


def bordered(k, s, m, rng):
    """A positive definite matrix of this shape, and its dense form."""
    factor = rng.normal(size=(k * s + m, k * s + m))
    dense = (factor @ factor.T).reshape(k * s + m, -1)
    keep = np.kron(np.eye(k), np.ones((s, s)))
    dense[: k * s, : k * s] *= keep
    dense += (1 + np.abs(dense).sum(0).max()) * np.eye(k * s + m)
    blocks = np.stack([dense[i * s : (i + 1) * s, i * s : (i + 1) * s] for i in range(k)]) if k else np.zeros((0, s, s))
    matrix = Bordered(*map(jnp.asarray, (blocks, dense[: k * s, k * s :].reshape(k, s, m), dense[k * s :, k * s :])))
    return matrix, dense


@pytest.mark.parametrize("shape", [(5, 1, 3), (4, 2, 12), (3, 3, 0), (0, 1, 11)])
def test_a_bordered_matrix_is_solved_as_the_dense_one(shape):
    rng = np.random.default_rng(0)
    matrix, dense = bordered(*shape, rng)
    right = rng.normal(size=len(dense))

    @jax.jit
    def solve(matrix, right):
        factors = factorize(matrix)
        return factors.definite, factors.log_det, factors.solve(right), matrix.to_dense()

    definite, log_det, solved, as_dense = solve(matrix, right)
    assert definite
    np.testing.assert_allclose(as_dense, dense)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(dense)[1], rtol=1e-13)
    np.testing.assert_allclose(solved, np.linalg.solve(dense, right), rtol=1e-10)


@pytest.mark.parametrize("shape", [(4, 2, 12), (3, 3, 0), (0, 1, 11)])
def test_the_log_determinant_has_its_first_two_derivatives(shape):
    rng = np.random.default_rng(1)
    matrix, dense = bordered(*shape, rng)
    change, dense_change = bordered(*shape, rng)
    ratio = np.linalg.solve(dense, dense_change)

    @jax.jit
    def near(t):
        factors = factorize(matrix)
        return factors.log_det_near(jax.tree.map(lambda x: t * x, change)), factors.log_det

    (below, _), (here, log_det), (above, _) = map(near, (-1.0, 0.0, 1.0))
    np.testing.assert_allclose(here, log_det)
    np.testing.assert_allclose((above - below) / 2, np.trace(ratio), rtol=1e-10)
    np.testing.assert_allclose(above - 2 * here + below, -np.trace(ratio @ ratio), rtol=1e-9)


def searched(f, start):
    """The mode of a function of a few numbers by the search for many."""

    def at(b):
        empty = jnp.zeros((0, 1, len(b)))
        return Derivatives(f(b), jax.grad(f)(b), Bordered(empty[:, :, :1], empty, -jax.hessian(f)(b)))

    return jax.jit(lambda start: find_mode(at, start))(jnp.asarray(start))


def test_the_search_is_damped_where_newtons_step_fails():
    # Newton's method from here diverges: the curvature fades with the distance.
    mode = searched(lambda b: -jnp.sum(jnp.sqrt(1 + b**2)), [3.0, -20.0])
    assert mode.certified
    np.testing.assert_allclose(mode.effects, 0, atol=1e-7)


@pytest.mark.parametrize(
    ("f", "start", "status"),
    [
        (lambda b: jnp.sum(jnp.log(b)), [-1.0, 1.0], fj.Status.BAD_START),
        (lambda b: b[0] ** 2 - b[1] ** 2, [0.0, 1.0], fj.Status.INDEFINITE),
        (lambda b: -jnp.sum(jnp.abs(b - 0.3)), [1.0, 1.0], fj.Status.STALLED),
        (lambda b: jnp.sum(b), [0.0, 0.0], fj.Status.STEP_LIMIT),
    ],
)
def test_a_search_without_a_maximum_says_so(f, start, status):
    assert fj.Status(int(searched(f, start).status)) == status


def test_a_batch_of_dense_matrices_is_inverted_one_by_one():
    matrices = jnp.stack([bordered(0, 1, 11, np.random.default_rng(k))[0].rest for k in range(3)])
    inverse, log_det, definite = jax.vmap(many_effects._invert_dense)(matrices)
    np.testing.assert_allclose(inverse, np.linalg.inv(matrices), rtol=1e-9)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(matrices)[1])
    assert np.all(definite)
