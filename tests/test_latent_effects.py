"""Predicted effects and their errors, predictions of mixed models, and the check of Laplace's approximation."""

import copy
import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import fisher_jax as fj
from fisher_jax.fitting.result import Origin
from fisher_jax.models.dataset import Dataset

# Mixed model of growth: known to be exact, since everything is normal.
# The effects are not in the order of the alphabet.
SD, SCALE = {"intercept": 0.8, "gain": 0.4}, 0.5
SIZES = (3, 5, 2, 4, 5, 1)
NAMES = ("ash", "beech", "elm", "fir", "oak", "yew")
X = np.concatenate([np.linspace(-1.0, 1.0, size) if size > 1 else [0.5] for size in SIZES])
GROUP = np.repeat(np.arange(6), SIZES)
NOISE = np.random.default_rng(7)
EFFECTS = NOISE.normal(size=(6, 2)) * np.array([0.8, 0.4])
Y = 2.0 + 0.7 * X + EFFECTS[GROUP, 0] + EFFECTS[GROUP, 1] * X + 0.5 * NOISE.normal(size=len(X))
TREES = fj.by_group({"tree": np.array(NAMES)[GROUP], "height": Y, "x": X}, "tree")


def growth(params, effects, z):
    loc = params["beta"][0] + params["beta"][1] * z + effects["intercept"] + effects["gain"] * z
    return {"loc": loc, "scale": params["scale"]}


@pytest.fixture(scope="module")
def known():
    """Variances known, as in Henderson's equations."""
    zeros, constraints = {"intercept": 0.0, "gain": 0.0}, {"sd": fj.fixed, "scale": fj.fixed}
    model = fj.mixed(fj.families.normal, growth, zeros, constraints=constraints)
    start = {"beta": np.zeros(2), "sd": SD, "scale": SCALE}
    return fj.fit(model, start, TREES["height"], given=TREES["x"])


def henderson(sd=SD, scale=SCALE):
    """The solution of the mixed-model equations and the inverse of their matrix; coefficients, then the effects of each group."""
    z = np.zeros((len(X), 12))
    z[np.arange(len(X)), 2 * GROUP], z[np.arange(len(X)), 2 * GROUP + 1] = 1.0, X
    design = np.column_stack([np.ones(len(X)), X, z])
    matrix = design.T @ design / scale**2
    matrix[2:, 2:] += np.diag(np.tile([sd["intercept"] ** -2, sd["gain"] ** -2], 6))
    inverse = np.linalg.inv(matrix)
    return inverse @ design.T @ Y / scale**2, inverse, design


def test_effects_of_a_linear_model_with_known_variances_are_henderson_s_predictions_with_their_errors(known):
    effects = fj.predicted_effects(known)
    solution, inverse, _ = henderson()
    np.testing.assert_allclose(effects.value, solution[2:].reshape(6, 2), atol=1e-10)
    blocks = np.stack([inverse[2 + 2 * g : 4 + 2 * g, 2 + 2 * g : 4 + 2 * g] for g in range(6)])
    np.testing.assert_allclose(effects.covariance(), blocks, rtol=1e-9)
    np.testing.assert_allclose(effects.standard_errors()["gain"] ** 2, blocks[:, 1, 1], rtol=1e-9)


def test_the_conditional_covariance_leaves_out_the_uncertainty_of_the_parameters(known):
    effects = fj.predicted_effects(known)
    for g in range(6):
        z = np.column_stack([np.ones(SIZES[g]), X[g == GROUP]])
        inverse = np.linalg.inv(z.T @ z / SCALE**2 + np.diag([SD["intercept"] ** -2, SD["gain"] ** -2]))
        np.testing.assert_allclose(effects.covariance(conditional=True)[g], inverse, rtol=1e-9, atol=1e-15)
    assert np.all(effects.standard_errors()["intercept"] > effects.standard_errors(conditional=True)["intercept"])


def test_predictions_for_known_groups_have_henderson_s_errors_within_and_between_groups(known):
    prediction = fj.predict(known, what="loc")
    solution, inverse, design = henderson()
    np.testing.assert_allclose(prediction.estimate, design @ solution, atol=1e-10)
    np.testing.assert_allclose(prediction.covariance(), design @ inverse @ design.T, rtol=1e-8, atol=1e-12)
    assert list(prediction.labels[:4]) == ["ash, 0", "ash, 1", "ash, 2", "beech, 0"]
    difference = prediction.contrast(np.eye(len(X))[0] - np.eye(len(X))[3])
    row = design[0] - design[3]
    np.testing.assert_allclose(difference.standard_errors(), [np.sqrt(row @ inverse @ row)], rtol=1e-8)


def test_effects_print_as_a_table_with_the_labels_of_by_group(known):
    effects = fj.predicted_effects(known, level=0.9)
    text = str(effects)
    for part in ("Predicted effects: intercept, gain", "beech gain", "given parameters", "lower 90 %"):
        assert part in text
    frame = effects.to_frame()
    assert frame.index.names == ["group", "effect"]
    assert frame.loc[("elm", "gain"), "estimate"] == effects.estimate["gain"][2]
    ranked = effects.ranked("intercept")
    assert list(ranked.labels) == [NAMES[k] for k in np.argsort(-effects.estimate["intercept"])]
    np.testing.assert_array_equal(ranked.estimate["intercept"], np.sort(effects.estimate["intercept"])[::-1])
    ends = effects.prediction_intervals(level=0.9)["gain"]
    assert frame["upper"].to_numpy()[1] == ends[0, 1]
    width = norm.ppf(0.95) * effects.standard_errors()["gain"]
    np.testing.assert_allclose(ends[:, 1] - effects.estimate["gain"], width, rtol=1e-6)


def test_labels_may_be_given_and_effects_survive_a_copy_and_pickle(known):
    effects = fj.predicted_effects(known, labels=[10, 20, 30, 40, 50, 60])
    for again in (copy.deepcopy(effects), pickle.loads(pickle.dumps(effects))):
        assert str(again) == str(effects)
    with pytest.raises(ValueError, match=r"labels has shape \(2,\); expected \(6,\)"):
        fj.predicted_effects(known, labels=["a", "b"])
    with pytest.raises(ValueError, match="same label twice"):
        fj.predicted_effects(known, labels=["a"] * 6)


def test_a_fit_without_effects_or_without_data_has_none_to_predict(known):
    plain = fj.fit(fj.families.poisson, {"rate": 1.0}, jnp.array([2.0, 4.0]))
    with pytest.raises(TypeError, match="has no latent effects"):
        fj.predicted_effects(plain)
    with pytest.raises(TypeError, match="has no latent effects"):
        fj.check_laplace(plain)
    with pytest.raises(ValueError, match="effects and groups are for models made by mixed"):
        fj.predict(plain, effects="zero")
    with pytest.raises(ValueError, match="no longer has"):
        fj.predicted_effects(jax.tree.map(jnp.asarray, known))


# Counts in clinics, whose Laplace approximation is not exact.
WEEK = np.broadcast_to(np.linspace(-1.0, 1.0, 5), (20, 5)).copy()


def clinics(params, effects, z):
    return {"rate": jnp.exp(params["mean"] + params["slope"] * z + effects["clinic"])}


COUNTS = fj.mixed(fj.families.poisson, clinics, {"clinic": 0.0})
START = {"mean": 0.5, "slope": 0.3, "sd": {"clinic": 0.7}}


def draw_counts(seed, groups=20):
    rng = np.random.default_rng(seed)
    effects = 0.7 * rng.normal(size=groups)
    return effects, rng.poisson(np.exp(0.5 + 0.3 * WEEK[:groups] + effects[:, None]))


@pytest.fixture(scope="module")
def many():
    truths, counts = map(np.stack, zip(*map(draw_counts, range(30)), strict=True))
    return truths, counts, [fj.fit(COUNTS, START, data, given=WEEK) for data in counts]


def test_the_uncertainty_of_estimated_variances_enters_by_the_slope_of_the_mode(many):
    """The modes by bisection, and their derivatives by differences of these."""
    _, counts, fits = many
    fit = fits[0]
    theta = np.array([fit.params["mean"], fit.params["slope"], fit.params["sd"]["clinic"]])

    def modes(theta):
        low, high = np.full(20, -10.0), np.full(20, 10.0)
        for _ in range(60):
            e = 0.5 * (low + high)
            rates = np.exp(theta[0] + theta[1] * WEEK + e[:, None])
            slope = np.sum(counts[0] - rates, axis=1) - e / theta[2] ** 2
            low, high = np.where(slope > 0, e, low), np.where(slope > 0, high, e)
        return e

    rates = np.exp(theta[0] + theta[1] * WEEK + modes(theta)[:, None])
    conditional = 1.0 / (rates.sum(axis=1) + theta[2] ** -2)
    slopes = np.stack([(modes(theta + h) - modes(theta - h)) / 2e-5 for h in 1e-5 * np.eye(3)], axis=-1)
    effects = fj.predicted_effects(fit)
    np.testing.assert_allclose(effects.estimate["clinic"], modes(theta), atol=1e-8)
    np.testing.assert_allclose(effects.covariance(conditional=True)[:, 0, 0], conditional, rtol=1e-7)
    expected = conditional + np.sum(slopes @ fit.covariance() * slopes, axis=1)
    np.testing.assert_allclose(effects.covariance()[:, 0, 0], expected, rtol=1e-6)
    assert fit.names == ("mean", "slope", "sd.clinic")


def test_another_kind_of_covariance_enters_beside_that_given_the_parameters(many):
    effects = {kind: fj.predicted_effects(many[2][0], kind=kind) for kind in ("observed", "sandwich")}
    given = [each.covariance(conditional=True) for each in effects.values()]
    np.testing.assert_array_equal(*given)
    assert not np.allclose(effects["observed"].covariance(), effects["sandwich"].covariance(), rtol=1e-3)
    assert "sandwich" in str(effects["sandwich"])


def test_intervals_cover_the_effects_and_those_given_the_parameters_do_so_less(many):
    truths, _, fits = many
    assert all(fit.converged for fit in fits)
    covered = {}
    for conditional in (False, True):
        ends = [fj.predicted_effects(fit).prediction_intervals(conditional=conditional)["clinic"] for fit in fits]
        ends = np.stack(ends)
        covered[conditional] = np.mean((ends[..., 0] < truths) & (truths < ends[..., 1]))
    # 600 effects, the twenty of a data set with the same estimate: Monte Carlo error 0.012.
    assert 0.92 < covered[False] < 0.965
    assert covered[True] < covered[False] - 0.02


def test_effects_of_many_fits_are_those_of_each(many):
    _, counts, fits = many
    dataset = Dataset(counts[:3], WEEK, size=3, differs=(True, False))
    batch = dataclasses.replace(
        jax.tree.map(lambda *leaves: np.stack(leaves), *fits[:3]), origin=Origin(COUNTS, dataset)
    )
    effects = fj.predicted_effects(batch)
    assert effects.estimate["clinic"].shape == (3, 20)
    for k in range(3):
        one = fj.predicted_effects(fits[k])
        np.testing.assert_allclose(effects.value[k], one.value, atol=1e-10)
        np.testing.assert_allclose(effects[k].covariance(), one.covariance(), rtol=1e-8)
    with pytest.raises(ValueError, match="many fits"):
        effects.to_frame()
    for at in ("predicted", "average"):
        rows, groups = np.array([0.0, 1.0, 0.0]), [4, 4, 7] if at == "predicted" else None
        whole = fj.predict(batch, rows, effects=at, groups=groups)
        each = [fj.predict(fit, rows, effects=at, groups=groups) for fit in fits[:3]]
        np.testing.assert_allclose(whole.estimate, np.stack([one.estimate for one in each]), rtol=1e-10)
        np.testing.assert_allclose(whole.covariance(), np.stack([one.covariance() for one in each]), rtol=1e-8)


def test_the_mean_of_a_new_group_is_that_of_the_lognormal_and_the_typical_group_has_effects_of_zero(many):
    fit = many[2][0]
    new = np.array([-0.5, 2.0])
    variance = fit.params["sd"]["clinic"] ** 2
    at_zero = np.exp(fit.params["mean"] + fit.params["slope"] * new)
    zero, average = (fj.predict(fit, new, effects=effects) for effects in ("zero", "average"))
    np.testing.assert_allclose(zero.estimate, at_zero, rtol=1e-10)
    np.testing.assert_allclose(average.estimate, at_zero * np.exp(0.5 * variance), rtol=1e-10)
    # d log of it by (mean, slope, sd) is (1, z, sd).
    gradient = np.stack([np.ones(2), new, np.full(2, np.sqrt(variance))], axis=1)
    errors = average.estimate * np.sqrt(np.sum(gradient @ fit.covariance() * gradient, axis=1))
    np.testing.assert_allclose(average.standard_errors(), errors, rtol=1e-8)
    assert np.all(average.confidence_intervals() > 0.0)


def test_new_rows_of_known_groups_are_predicted_at_their_effects(many):
    fit = many[2][0]
    effects = fj.predicted_effects(fit).estimate["clinic"]
    rows = fj.predict(fit, np.array([0.0, 1.0, 0.0]), "rate", groups=[4, 4, 7])
    linear = fit.params["mean"] + fit.params["slope"] * np.array([0.0, 1.0, 0.0]) + effects[[4, 4, 7]]
    np.testing.assert_allclose(rows.estimate, np.exp(linear), rtol=1e-8)
    in_groups = fj.predict(fit, np.array([[0.0, 1.0], [0.0, 1.0]]), "rate", groups=[4, 7])
    np.testing.assert_allclose(in_groups.estimate[[0, 1, 2]], rows.estimate, rtol=1e-8)
    # Of the same fit, they may be compared although they are of different groups.
    other = fj.predict(fit, np.array([0.0]), "rate", groups=[7])
    contrast = fj.predict(fit, np.array([0.0]), "rate", groups=[4]).contrast(other)
    whole = rows.covariance()
    expected = np.sqrt(whole[0, 0] + whole[2, 2] - 2.0 * whole[0, 2])
    np.testing.assert_allclose(contrast.standard_errors(), [expected], rtol=1e-8)


def test_predictions_by_label_take_a_table_in_groups(known):
    new = fj.by_group({"tree": np.array(["oak", "ash", "oak"]), "x": np.array([0.2, 0.1, 0.4])}, "tree")["x"]
    prediction = fj.predict(known, new, "loc")
    effects = fj.predicted_effects(known).estimate
    beta = known.params["beta"]
    for k, (group, x) in enumerate([(0, 0.1), (4, 0.2), (4, 0.4)]):
        expected = beta[0] + beta[1] * x + effects["intercept"][group] + effects["gain"][group] * x
        assert prediction.estimate[k] == pytest.approx(expected, rel=1e-9)
    assert list(prediction.labels) == ["ash, 0", "oak, 0", "oak, 1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": ["oak", "palm"]}, r"groups has 'palm', which the fit does not have: the labels .* 'ash', 'beech'"),
        ({}, r"new has 2 rows, and the fit 6 groups; which group a row belongs to is not known"),
        ({"groups": ["oak"]}, r"groups has shape \(1,\); expected \(2,\), one label for each row"),
        ({"effects": "typical"}, r"effects='typical' is unknown; choose from 'predicted', 'average', 'zero'"),
        ({"what": 0.5, "effects": "average"}, r"the average of quantiles over effects is no quantile"),
        ({"what": "shape", "groups": ["oak", "ash"]}, r"what='shape' is none of 'mean', 'loc', 'scale'"),
        ({"new": {"x": np.zeros(2)}, "effects": "zero"}, r"new .* expected covariates as the fit has them"),
        ({"new": None, "groups": ["oak"]}, r"groups are those of the rows of new"),
    ],
)
def test_wrong_predictions_of_a_mixed_model_raise(known, arguments, message):
    with pytest.raises(ValueError, match=message):
        fj.predict(known, **{"new": np.zeros(2)} | arguments)


def test_a_quantile_of_a_known_group_is_that_of_its_family(known):
    prediction = fj.predict(known, np.array([0.3]), 0.9, groups=["fir"])
    location = fj.predict(known, np.array([0.3]), "loc", groups=["fir"])
    np.testing.assert_allclose(prediction.estimate, location.estimate + SCALE * norm.ppf(0.9), rtol=1e-6)
    np.testing.assert_allclose(prediction.standard_errors(), location.standard_errors(), rtol=1e-6)


def test_a_standard_deviation_at_zero_gives_effects_of_zero_and_errors_given_it():
    counts = np.tile([[1, 1, 2, 2, 1], [2, 1, 1, 1, 2]], (10, 1))  # less dispersed than Poisson
    fit = fj.fit(COUNTS, START, counts, given=WEEK)
    assert fit.status is fj.Status.BOUNDARY
    with pytest.warns(fj.FitWarning, match=r"conditional on `sd.clinic` at the edge"):
        effects = fj.predicted_effects(fit)
    np.testing.assert_allclose(effects.value, 0.0, atol=1e-6)
    with pytest.warns(fj.FitWarning, match=r"conditional on `sd.clinic` at the edge"):
        prediction = fj.predict(fit, np.array([0.0]), effects="average")
    # As a Poisson regression of all rows: the design is orthogonal, but not the weights exp(slope z).
    means = np.exp(fit.params["mean"] + fit.params["slope"] * WEEK.ravel())
    design = np.column_stack([np.ones(100), WEEK.ravel()])
    error = np.sqrt(np.linalg.inv(design.T @ (means[:, None] * design))[0, 0])
    np.testing.assert_allclose(prediction.standard_errors(), prediction.estimate * error, rtol=1e-5)


def test_errors_of_a_fit_that_failed_are_nan_with_a_warning_and_those_given_the_parameters_are_not(many):
    _, counts, _ = many
    fit = fj.fit(COUNTS, START, counts[0], given=WEEK, max_steps=0)
    with pytest.warns(fj.FitWarning, match="not to be relied on"):
        effects = fj.predicted_effects(fit)
    assert np.all(np.isnan(effects.standard_errors()["clinic"]))
    assert np.all(effects.standard_errors(conditional=True)["clinic"] > 0)


def test_a_group_of_weight_zero_has_no_prediction(many):
    weights = np.ones(20)
    weights[3] = 0.0
    fit = many[2][0]
    dataset = dataclasses.replace(fit.origin.dataset, weights=weights)
    fit = dataclasses.replace(fit, origin=Origin(COUNTS, dataset))
    effects = fj.predicted_effects(fit)
    assert np.flatnonzero(np.isnan(effects.estimate["clinic"])).tolist() == [3]
    assert "1 groups have no prediction" in str(effects)
    assert np.isnan(fj.predict(fit, np.zeros(2), groups=[3, 4]).estimate).tolist() == [True, False]


# The check of the integral.

# Answers of two by each person, who differ much: the groups tell next to nothing of their effects.


@pytest.fixture(scope="module")
def rough():
    rng = np.random.default_rng(1)
    logit = 0.5 + 3.0 * rng.normal(size=400)
    data = (rng.uniform(size=(400, 2)) < 1.0 / (1.0 + np.exp(-logit[:, None]))).astype(float)

    def joint(params, b, y):
        eta = params["mean"] + params["sd"] * b
        return jnp.sum(y * eta - jax.nn.softplus(eta)) + norm.logpdf(b)

    def sample(key, params):
        first, second = jax.random.split(key)
        eta = params["mean"] + params["sd"] * jax.random.normal(first)
        return (jax.random.uniform(second, (2,)) < jax.nn.sigmoid(eta)).astype(float)

    model = fj.marginal(joint, 0.0, constraints={"sd": fj.positive}, sample=sample)
    return fj.fit(model, {"mean": 0.5, "sd": 2.0}, data)


def test_a_laplace_approximation_that_is_visibly_wrong_is_caught_by_nodes_and_by_draws(rough):
    check = fj.check_laplace(rough, nodes=25, key=jax.random.key(0), num_draws=300)
    assert not check.passed
    assert abs(check.shift[1]) > 0.5
    # Both say the same: Laplace's estimate of the standard deviation is off, in the same direction.
    assert check.p_value < 1e-6
    assert np.sign(check.bias[1]) == -np.sign(check.shift[1])
    assert "is not enough for these data: by 25 nodes" in str(check)
    assert "biases `" in str(check)
    assert check.refit.params["sd"] == pytest.approx(rough.params["sd"] + check.shift[1] * check.standard_errors[1])
