"""Many fits at once: each as `fit` would have it, whatever its neighbours, the lanes, the chunks or the devices."""

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import gammaln
from jax.scipy.stats import norm
from scipy import stats

import fisher_jax as fj
from fisher_jax import Status, families

WEIBULL, EXPONENTIAL = families.weibull, families.exponential  # the exponential compiles in half the time
START = {"shape": 1.0, "scale": 1.0}
RNG = np.random.default_rng(20)
DATA = RNG.gamma(4.0, 0.5, (37, 30))


def in_standard_errors(received, expected):
    """The largest distance of the estimates from those of `expected`, in its standard errors."""
    errors = expected.standard_errors()
    distance = jax.tree.map(lambda a, b, error: np.max(np.abs(a - b) / error), received.params, expected.params, errors)
    return max(jax.tree.leaves(distance))


@functools.cache
def reference():
    return fj.fit_batch(WEIBULL, START, DATA, covariances=("observed", "expected", "empirical", "sandwich"))


def test_each_is_the_fit_that_fit_makes():
    fits = reference()
    for k in (0, 17, 36):
        alone = fj.fit(WEIBULL, START, DATA[k])
        assert fits[k].status == alone.status == Status.CONVERGED
        np.testing.assert_allclose(fits[k].free, alone.free, rtol=1e-7)
        np.testing.assert_allclose(fits.log_likelihood[k], alone.log_likelihood, rtol=1e-12)
        assert fits.num_steps[k] == alone.num_steps
        for kind in ("observed", "expected", "empirical", "sandwich"):
            np.testing.assert_allclose(fits.covariance(kind)[k], alone.covariance(kind), rtol=1e-6)
            np.testing.assert_allclose(fits[k].covariance(kind), alone.covariance(kind), rtol=1e-6)
        np.testing.assert_allclose(fits.correlation()[k], alone.correlation(), rtol=1e-6)
        np.testing.assert_allclose(
            fits.confidence_intervals(level=0.9)["scale"][k], alone.confidence_intervals(level=0.9)["scale"], rtol=1e-6
        )
        np.testing.assert_allclose(fits.information().matrix[k], alone.information().matrix, rtol=1e-6)
        np.testing.assert_allclose([fits.aic()[k], fits.bic()[k]], [alone.aic(), alone.bic()], rtol=1e-10)


def assert_identical(fits, others):
    """Every number of the fits, to the last bit."""
    for leaf, other in zip(jax.tree.leaves(fits), jax.tree.leaves(others), strict=True):
        np.testing.assert_array_equal(leaf, other)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_lanes": 80, "engine": "kernel"},
        pytest.param({"num_lanes": 128, "engine": "kernel"}, marks=pytest.mark.exhaustive),
        {"devices": 1, "engine": "kernel"},
        {"devices": 3, "engine": "kernel"},
        {"devices": 3, "engine": "host"},
    ],
    ids=str,
)
def test_the_number_of_lanes_and_of_threads_changes_no_bit(settings):
    data = np.concatenate([DATA, DATA[:, ::-1], 2.0 * DATA, DATA + 1.0])  # more than one chunk and one set of lanes
    plain = fj.fit_batch(WEIBULL, START, data, engine=settings["engine"])
    assert_identical(fj.fit_batch(WEIBULL, START, data, **settings), plain)


@pytest.mark.parametrize("engine", ["kernel", "host"])
def test_the_order_of_the_data_sets_changes_no_bit(engine):
    order = np.random.default_rng(2).permutation(len(DATA))
    run = functools.partial(fj.fit_batch, WEIBULL, START, engine=engine)
    assert_identical(run(DATA[order]), run(DATA)[order])


@pytest.mark.parametrize("engine", ["kernel", "arrays"])
def test_the_ways_of_running_agree_to_rounding(engine):
    fits = fj.fit_batch(WEIBULL, START, DATA, engine=engine)
    assert (fits.engine, reference().engine) == (engine, "host")
    np.testing.assert_array_equal(fits.status, reference().status)
    np.testing.assert_array_equal(fits.num_steps, reference().num_steps)
    assert in_standard_errors(fits, reference()) < 1e-8


def test_a_batch_may_be_cut_anywhere():
    for rows in (slice(0, 1), slice(1, 20), slice(20, 37)):
        part, whole = fj.fit_batch(WEIBULL, START, DATA[rows]), reference()[rows]
        np.testing.assert_array_equal(part.status, whole.status)
        assert in_standard_errors(part, whole) < 1e-6


def test_batches_of_any_length_are_compiled_once():
    traced = []

    def log_density(params, y):
        traced.append(1)
        return jnp.log(params["rate"]) - params["rate"] * y

    model = fj.Model(log_density, constraints={"rate": fj.positive})
    fj.fit_batch(model, {"rate": 1.0}, DATA)
    count = len(traced)
    for size in (1, 2, 36):
        fits = fj.fit_batch(model, {"rate": 0.7}, DATA[:size], tolerance=1e-6, max_steps=150)
        assert fits.converged.all()
    # the first data set is looked at outside the program, to check shapes at the door
    assert len(traced) == count


POISON = {
    "not a number": (np.nan, Status.BAD_START),
    "infinite": (np.inf, Status.BAD_START),
    "outside the support": (-1.0, Status.BAD_START),
    "zero": (0.0, Status.BAD_START),
    "constant": (2.0, Status.BOUNDARY),
}


@pytest.mark.parametrize(("engine", "devices"), [("kernel", None), ("kernel", 3), ("host", None)])
def test_poison_in_some_data_sets_reaches_no_other(engine, devices):
    data = np.repeat(DATA, 3, axis=0)
    bad = np.arange(5) * 20 + 3
    poisoned = data.copy()
    for row, (value, _) in zip(bad, POISON.values(), strict=True):
        poisoned[row] = value
    poisoned[110, 4] = 1e300  # a huge outlier
    clean, fits = (fj.fit_batch(WEIBULL, START, sets, devices=devices, engine=engine) for sets in (data, poisoned))
    assert [Status(code) for code in fits.status[bad]] == [status for _, status in POISON.values()]
    good = np.setdiff1d(np.arange(len(data)), [*bad, 110])
    np.testing.assert_array_equal(fits.status[good], clean.status[good])
    np.testing.assert_array_equal(fits.free[good], clean.free[good])
    np.testing.assert_array_equal(fits[good].covariance(), clean[good].covariance())
    assert fits.attempt[good].max() == 0


def test_an_observation_to_blame_is_named():
    data = DATA.copy()
    data[5, 11] = np.nan
    fits = fj.fit_batch(WEIBULL, START, data)
    assert "first at observation 11" in fits[5].diagnosis()
    assert "first at observation 11" in " ".join(str(fits.summary()).split())
    with pytest.raises(fj.FitError, match=r"1 of 37 fits did not converge: 5\. Of 5: Bad start"):
        fits.raise_if_failed()
    assert reference().raise_if_failed() is reference()


def endless(params, y):
    """For data sets marked so, a log-likelihood that rises for ever: they never converge."""
    return jnp.where(y[0] > 0, norm.logpdf(y[1], params, 1.0), params)


def test_what_never_converges_is_retried_reported_and_holds_up_no_other():
    data = np.stack([np.ones((40, 25)), RNG.normal(size=(40, 25))], axis=-1)
    data[7, :, 0] = -1.0
    fits = fj.fit_batch(endless, 0.3, data, engine="kernel")
    assert fits.status[7] == Status.STEP_LIMIT
    assert fits.converged[np.arange(40) != 7].all()
    plain = fj.fit_batch(endless, 0.3, data, retry=False, engine="kernel")
    np.testing.assert_array_equal(fits.params, plain.params)  # without success the first end stands
    assert fits.attempt.max() == 0


def saddle(params, y):
    return -((params["a"] ** 2 - y) ** 2) - params["b"] ** 2


def test_a_saddle_is_left_by_another_start_and_marked():
    data = np.abs(RNG.normal(4.0, 0.1, (6, 20)))
    start = {"a": np.array([0.0, 1.0, 1.0, 0.0, 1.0, 1.0]), "b": np.zeros(6)}
    fits = fj.fit_batch(saddle, start, data, start_axis=0)
    assert fits.converged.all()
    np.testing.assert_allclose(np.abs(fits.params["a"]), np.sqrt(data.mean(axis=1)), rtol=1e-8)
    np.testing.assert_array_equal(fits.attempt, [2, 0, 0, 2, 0, 0])
    left = fj.fit_batch(saddle, start, data, start_axis=0, retry=False)
    assert left.status[0] == Status.INDEFINITE


def test_another_start_is_the_models_own_where_it_has_one():
    model = fj.Model(saddle, initial=lambda y: {"a": jnp.sqrt(jnp.mean(y)), "b": jnp.zeros(())})
    data = np.abs(RNG.normal(4.0, 0.1, (3, 20)))
    start = {"a": np.array([0.0, 1.0, np.nan]), "b": np.zeros(3)}
    for kinds in ((), ("observed",)):
        fits = fj.fit_batch(model, start, data, start_axis=0, covariances=kinds)
        assert fits.converged.all()
        np.testing.assert_array_equal(fits.attempt, [2, 0, 2])


def test_the_optimisers_own_damping_is_kept():
    cautious = fj.optimizers.newton(first_radius=0.01)
    fits = fj.fit_batch(EXPONENTIAL, {"rate": 1.0}, DATA[:4], optimizer=cautious)
    assert fits.num_steps[2] == fj.fit(EXPONENTIAL, {"rate": 1.0}, DATA[2], optimizer=cautious).num_steps
    assert fits.num_steps[2] != fj.fit_batch(EXPONENTIAL, {"rate": 1.0}, DATA[:4]).num_steps[2]


def test_rows_without_a_data_set_are_never_made_up():
    """Idle lanes step through a data set that is there: of zeros this density would never end."""

    def doublings(params, y):
        count = jax.lax.while_loop(lambda c: c[0] < 8.0, lambda c: (2 * c[0], c[1] + 1.0), (y, 0.0))[1]
        return norm.logpdf(count, params, 1.0)

    fits = fj.fit_batch(doublings, 0.0, RNG.uniform(0.1, 4.0, (3, 12)))
    assert fits.converged.all()


def test_an_empty_selection_is_a_batch_of_nothing():
    none = reference()[~reference().converged]
    assert none.covariance().shape == (0, 2, 2)
    assert none.confidence_intervals()["scale"].shape == (0, 2)
    assert len(none.to_frame()) == 0
    assert "0, each with 2 free parameters" in str(none.summary())


def test_many_starts_on_one_data_set():
    starts = {"rate": np.array([0.5, 1.0, 4.0])}
    fits = fj.fit_batch(EXPONENTIAL, starts, DATA[0], start_axis=0, data_axis=None)
    np.testing.assert_allclose(fits.params["rate"], 1 / DATA[0].mean(), rtol=1e-6)


def test_parameters_named_like_columns_keep_their_own():
    fits = fj.fit_batch(lambda p, y: norm.logpdf(y, p["status"], 1.0), {"status": 0.0}, DATA[:2])
    np.testing.assert_allclose(fits.to_columns()["parameter status"], DATA[:2].mean(axis=1))
    np.testing.assert_array_equal(fits.to_columns()["status"], 0)


def poisson_regression(beta, y, z):
    return y * (z @ beta) - jnp.exp(z @ beta)


def test_axes_are_those_of_vmap():
    design = RNG.normal(size=(30, 2))
    y, weights = RNG.poisson(np.exp(design @ [0.3, -0.2]), (8, 30)), RNG.integers(0, 3, (8, 30))
    shared = fj.fit_batch(poisson_regression, jnp.zeros(2), y, given=design, weights=weights[3], weights_axis=None)
    axes = {"start_axis": 1, "data_axis": 1, "given_axis": 0, "weights_axis": 1}
    designs, starts = RNG.normal(size=(8, 30, 2)), jnp.zeros((2, 8))
    each = fj.fit_batch(poisson_regression, starts, y.T, given=designs, weights=weights.T, **axes)
    for fits, design_of, weights_of in (
        (shared, np.repeat(design[None], 8, 0), np.repeat(weights[3][None], 8, 0)),
        (each, designs, weights),
    ):
        assert fits.params.shape == (8, 2)
        np.testing.assert_array_equal(fits.num_observations, weights_of.sum(axis=1))
        for k in range(8):
            z, w = design_of[k], weights_of[k]
            mean = np.exp(z @ fits.params[k])
            score, information = z.T @ (w * (y[k] - mean)), (z.T * w * mean) @ z
            np.testing.assert_allclose(np.linalg.solve(information, score), 0.0, atol=1e-7)


def test_starts_may_come_from_the_model():
    fits = fj.fit_batch(WEIBULL, None, DATA)
    assert in_standard_errors(fits, reference()) < 1e-6
    assert fits.num_steps.max() < reference().num_steps.min()


def test_a_start_outside_its_constraint_is_that_data_sets_own_trouble():
    start = {"shape": np.ones(37), "scale": np.where(np.arange(37) == 4, -1.0, 1.0)}
    fits = fj.fit_batch(dataclasses.replace(WEIBULL, initial=None), start, DATA, start_axis=0)
    assert [k for k in range(37) if fits.status[k] == Status.BAD_START] == [4]
    retried = fj.fit_batch(WEIBULL, start, DATA, start_axis=0)  # from the start that the family makes of the data
    assert np.all(retried.converged)
    assert np.flatnonzero(retried.attempt).tolist() == [4]


def test_lists_hold_data_sets_of_different_lengths():
    lengths = np.append([0, 1, 32], RNG.integers(2, 33, 22))
    data = [RNG.gamma(4.0, 0.5, n) for n in lengths]
    fits = fj.fit_batch(WEIBULL, START, data)
    np.testing.assert_array_equal(fits.num_observations, lengths)
    few = lengths < 2
    assert np.all(fits.status[few] == Status.TOO_FEW_OBSERVATIONS)
    for k in np.flatnonzero(lengths > 24)[:3]:  # of one size class, like the rows of DATA
        alone = fj.fit(WEIBULL, START, data[k])
        np.testing.assert_allclose(fits[k].free, alone.free, rtol=1e-6)
        np.testing.assert_allclose(fits.log_likelihood[k], alone.log_likelihood, rtol=1e-10)


def test_starts_of_a_list_come_from_each_data_set_as_it_is():
    model = fj.Model(
        EXPONENTIAL.log_density,
        constraints=EXPONENTIAL.constraints,
        initial=lambda y: {"rate": jnp.mean(y)},
    )
    data = [np.array([1.0, 2.0, 9.0]), RNG.gamma(4.0, 0.5, 24)]
    fits = fj.fit_batch(model, None, data, max_steps=0, retry=False)
    np.testing.assert_allclose(fits.params["rate"], [4.0, data[1].mean()])


def autoregression(params, y):
    return norm.logpdf(y[1:], params["phi"] * y[:-1], jnp.exp(params["log_scale"]))


def test_series_of_different_lengths_keep_their_own_terms():
    data = [RNG.normal(size=n) for n in (12, 30, 19)]
    weights = [np.ones(n - 1) for n in (12, 30, 19)]
    weights[1][3] = 0.0
    fits = fj.fit_batch(fj.dependent(autoregression), {"phi": 0.0, "log_scale": 0.0}, data, weights=weights)
    for k, (y, w) in enumerate(zip(data, weights, strict=True)):  # least squares
        phi = np.sum(w * y[1:] * y[:-1]) / np.sum(w * y[:-1] ** 2)
        scale = np.sqrt(np.sum(w * (y[1:] - phi * y[:-1]) ** 2) / np.sum(w))
        np.testing.assert_allclose(fits[k].free, [phi, np.log(scale)], rtol=1e-6, atol=1e-9)
        assert fits.num_observations[k] == w.sum()


@pytest.mark.parametrize("name", [pytest.param("lbfgs", marks=pytest.mark.exhaustive), "fisher_scoring"])
def test_any_optimiser_runs_in_the_lanes(name):
    import optax

    optimizer = optax.lbfgs() if name == "lbfgs" else fj.optimizers.fisher_scoring()
    fits = fj.fit_batch(EXPONENTIAL, {"rate": 1.0}, DATA[:9], optimizer=optimizer, max_steps=500)
    assert fits.converged.all()
    np.testing.assert_allclose(fits.params["rate"], 1 / DATA[:9].mean(axis=1), rtol=1e-3 / np.sqrt(30))


def test_float32_may_be_finished_in_float64():
    start = jax.tree.map(np.float32, START)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fj.FitWarning)
        single = fj.fit_batch(WEIBULL, start, DATA.astype(np.float32))
        double = fj.fit_batch(WEIBULL, start, DATA.astype(np.float32), float64_finish=True)
    assert single.free.dtype == np.float32
    assert double.free.dtype == np.float64
    assert double.converged.all()
    assert in_standard_errors(double, reference()) < 1e-5
    assert np.all(double.num_steps > single.num_steps)
    short = fj.fit_batch(WEIBULL, start, DATA.astype(np.float32), max_steps=6, retry=False, float64_finish=True)
    assert short.converged.all()
    assert np.any(short.attempt == 3)
    wide = fj.fit_batch(WEIBULL, START, DATA, float64_finish=True)
    np.testing.assert_array_equal(wide.num_steps, reference().num_steps)
    assert in_standard_errors(single, reference()) < 1e-2


def test_only_the_covariances_asked_for_are_kept():
    fits = fj.fit_batch(WEIBULL, START, DATA, covariances=())
    assert fits.curvature is None
    assert fits.outer_product is None
    with pytest.raises(ValueError, match=r"kind='observed' was not kept \(none was\)"):
        fits.covariance()
    with pytest.raises(ValueError, match="was not kept"):
        fits[0].covariance()
    assert "none kept" in str(fits.summary())


def test_failed_fits_are_warned_of_once():
    data = DATA.copy()
    data[3] = np.nan
    fits = fj.fit_batch(WEIBULL, START, data)
    with pytest.warns(fj.FitWarning, match="1 of 37 fits did not converge"):
        fits.standard_errors()


def test_a_batch_is_a_pytree_and_a_table():
    fits = reference()
    again = jax.tree.unflatten(jax.tree.structure(fits), jax.tree.leaves(fits))
    assert again.names == fits.names
    frame = fits.to_frame()
    assert list(frame["status"].unique()) == ["converged"]
    np.testing.assert_array_equal(frame["scale"], fits.params["scale"])
    np.testing.assert_array_equal(frame["scale standard error"], fits.standard_errors()["scale"])
    assert len(list(fits[:3])) == 3
    with pytest.raises(IndexError, match="there are 37 fits"):
        fits[37]


def test_parquet_holds_the_same_table(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    reference().to_parquet(tmp_path / "fits.parquet")
    table = parquet.read_table(tmp_path / "fits.parquet")
    np.testing.assert_array_equal(table["shape"].to_numpy(), reference().params["shape"])


def test_progress_counts_each_status(capsys):
    fj.fit_batch(WEIBULL, START, DATA, progress=True)
    said = capsys.readouterr().err
    assert "37/37" in said
    assert "converged=37" in said


@pytest.mark.exhaustive
def test_every_fate_is_the_same_in_any_number_of_lanes():
    """Good data, poison of every kind and what never converges: 1 to 100 000 lanes, one device and two."""
    size = 600
    uniform = np.random.default_rng(3).uniform(size=(size, 50))
    y = 10.0 + 20.0 * ((-np.log(uniform)) ** -0.1 - 1.0)
    for row, value in zip(range(0, size, 100), (np.nan, np.inf, 1e12, 0.0, -np.inf, 1e300), strict=True):
        y[row, 7] = value
    y[50] = 12.0
    kink = np.zeros((size, 50))
    kink[25::100] = 50.0

    def log_density(params, y):
        return families.gev.log_density(params, y["y"]) - y["kink"] * jnp.abs(params["loc"] - 10.0)

    model = fj.Model(log_density, constraints={"scale": fj.positive})
    start = {"loc": 11.0, "scale": 2.0, "shape": 0.1}
    fit = functools.partial(fj.fit_batch, model, start, {"y": y, "kink": kink})
    whole = fit()
    assert len(np.unique(whole.status)) > 2
    good = whole.converged
    for settings in ({"num_lanes": 80}, {"num_lanes": 256}, {"devices": 1}, {"devices": 5}):
        assert_identical(fit(**settings), whole)
    arrays = fit(engine="arrays")
    np.testing.assert_array_equal(arrays.status, whole.status)
    assert in_standard_errors(arrays[good], whole[good]) < 1e-8


def test_the_result_shares_no_memory_with_what_was_given():
    start = {"loc": np.zeros(4), "log_scale": np.log([1.0, 2.0, 3.0, 4.0])}
    model = fj.Model(
        lambda params, y: norm.logpdf(y, params["loc"], jnp.exp(params["log_scale"])),
        constraints={"log_scale": fj.fixed},
    )
    fits = fj.fit_batch(model, start, np.random.default_rng(2).normal(size=(4, 9)), start_axis=0)
    start["log_scale"][:] = -7.0
    assert fits.params["log_scale"][0] == 0.0
    fits.params["loc"][0] = 1.0
    assert fits.free[0, 0] != 1.0


def test_in_float32_the_statuses_of_a_batch_are_those_of_the_same_fits_one_by_one():
    start, data = jax.tree.map(np.float32, START), DATA.astype(np.float32)
    fits = fj.fit_batch(WEIBULL, start, data, retry=False)
    some = slice(None, None, 4)
    assert fits.status[some].tolist() == [fj.fit(WEIBULL, start, rows).status for rows in data[some]]


def test_in_float32_a_maximum_at_infinity_is_not_called_a_maximum():
    """Degrees of freedom of a million: the log-likelihood differs from the normal's by less than it is rounded."""
    y = np.random.default_rng(12).normal(size=(2000, 30)).astype(np.float32)
    fits = fj.fit_batch(fj.families.student_t, None, y)
    assert np.sum(fits.params["df"] > 1e5) > 500
    assert (fits.status[fits.params["df"] > 1e5] == fj.Status.BOUNDARY).all()


def test_in_float32_the_log_likelihood_keeps_the_digits_that_its_terms_have():
    """What no parameter enters is summed by itself, and may be a thousand times as large as all of it."""

    def poisson(log_rate, y):
        return y * log_rate - jnp.exp(log_rate) - gammaln(y + 1.0)

    def gumbel(loc, y):
        return -(y - loc) - jnp.exp(loc - y) + jnp.log(y)

    rng = np.random.default_rng(0)
    counts = rng.poisson(1e4, (100, 200)).astype(np.float32)
    extremes = (1e3 + rng.gumbel(size=(100, 200))).astype(np.float32)
    y = counts.astype(float)  # at the maximum, in float64
    right = stats.poisson.logpmf(y, y.mean(axis=1, keepdims=True)).sum(axis=1)
    fits = fj.fit_batch(poisson, np.float32(np.log(1e4) - 1e-2), counts, engine="kernel")
    assert np.max(np.abs(fits.log_likelihood - right)) < 1.5
    y = extremes.astype(float)
    loc = 1e3 - np.log(np.mean(np.exp(1e3 - y), axis=1, keepdims=True))
    right = np.sum(-(y - loc) - np.exp(loc - y) + np.log(y), axis=1)
    fits = fj.fit_batch(gumbel, np.float32(1e3 - 0.5), extremes, engine="kernel")
    assert np.max(np.abs(fits.log_likelihood - right)) < 2e-3


def test_a_density_whose_derivative_is_a_parameter_runs_in_float32():
    y = np.zeros((3, 5), np.float32)
    fits = fj.fit_batch(
        lambda p, y: p["b"] * p["c"] - p["b"] ** 2 - p["c"] ** 2 + 0 * y,
        {"b": np.float32(0.5), "c": np.float32(1.0)},
        y,
        engine="kernel",
    )
    assert fits.free.dtype == np.float32
    assert fits.converged.all()
