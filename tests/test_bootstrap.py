"""The bootstrap: replicates that are what they should be, intervals as others make them, failures that are said."""

import functools
import itertools
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import compiled_programs, some_of
from jax.scipy.stats import norm

import fisher_jax as fj
from fisher_jax.inference.bootstrap import bca_intervals
from fisher_jax.inference.replicates import Scheme, draw_counts
from fisher_jax.plots import bootstrap_histogram

KEY = jax.random.key(5)
RNG = np.random.default_rng(2)
WAITS = RNG.exponential(0.5, 40)
CLUSTERS = np.repeat(np.arange(8), 5)


def exponential(rate, y):
    return jnp.log(rate) - rate * y


MODEL = fj.Model(exponential, sample=lambda key, rate: jax.random.exponential(key) / rate, constraints=fj.positive)


@functools.cache
def fitted():
    return fj.fit(MODEL, 1.0, WAITS)


@functools.cache
def nonparametric():
    return fj.bootstrap(fitted(), KEY, 2000)


@functools.cache
def by_jackknife():
    return fj.bootstrap(fitted(), KEY, 2000, acceleration="jackknife")


def within(received, expected, count, errors=4.0):
    """A standard deviation over `count` replicates, within so many of its own standard errors."""
    assert abs(received / expected - 1) < errors / np.sqrt(2 * count)


def test_counts_are_those_of_explicit_resampling():
    """Weights and rows drawn anew are the same samples: the estimate is one over the mean of either."""
    found = nonparametric()
    counts = np.asarray(draw_counts(Scheme(np.arange(40)), KEY, np.arange(2000)))
    assert np.all(counts.sum(axis=1) == 40)
    resamples = np.stack([np.repeat(WAITS, row.astype(int)) for row in counts])
    np.testing.assert_allclose(found.params, 1 / resamples.mean(axis=1), rtol=1e-7)


def test_numbers_of_units_that_are_near_each_other_share_a_program():
    draw_counts(Scheme(np.arange(90)), KEY, np.arange(20))
    with compiled_programs() as compiled:
        counts = draw_counts(Scheme(np.arange(85)), KEY, np.arange(20))
    assert not compiled
    assert counts.shape == (20, 85)
    assert np.all(counts.sum(axis=1) == 85)


def test_replicates_come_from_the_key_alone():
    found = nonparametric()
    fewer = fj.bootstrap(fitted(), KEY, 50, devices=1)
    np.testing.assert_allclose(fewer.params, found.params[:50], rtol=1e-9)
    other = fj.bootstrap(fitted(), jax.random.key(6), 50)
    assert np.all(other.params != found.params[:50])


def test_standard_errors_agree_with_theory():
    """To first order λ̂ varies as λ² times the mean: with the sample's own variance, or with the model's."""
    rate = 1 / WAITS.mean()
    each_25_times = fj.fit(MODEL, 1.0, WAITS, weights=np.full(40, 25.0))  # n = 1000: first order holds
    nearly = fj.bootstrap(each_25_times, KEY, 2000)
    within(nearly.standard_errors(), rate**2 * WAITS.std() / np.sqrt(1000), 2000)
    drawn = fj.bootstrap(fitted(), KEY, 2000, method="parametric")
    # the exact law: λ̂ is λ n / Gamma(n), so that E λ̂ = λ n/(n−1) and var λ̂ = (λ n)²/((n−1)²(n−2))
    within(drawn.standard_errors(), rate * 40 / 39 / np.sqrt(38), 2000, errors=5.0)
    assert abs(drawn.bias() - rate / 39) < 4 * drawn.standard_errors() / np.sqrt(2000)
    np.testing.assert_allclose(drawn.covariance()[0, 0], drawn.standard_errors() ** 2)


@pytest.mark.exhaustive
def test_frequency_weights_stand_for_equal_observations():
    values, counts = np.array([0.2, 0.5, 1.0]), np.array([10, 6, 4])
    weighted = fj.bootstrap(fj.fit(MODEL, 1.0, values, weights=counts), KEY, 500, acceleration="jackknife")
    in_full = fj.bootstrap(fj.fit(MODEL, 1.0, np.repeat(values, counts)), KEY, 500, acceleration="jackknife")
    np.testing.assert_allclose(weighted.params, in_full.params, rtol=1e-7)
    bca = [b.confidence_intervals(0.9, "bca") for b in (weighted, in_full)]
    np.testing.assert_allclose(bca[0], bca[1], rtol=1e-6)
    drawn = fj.bootstrap(fj.fit(MODEL, 1.0, values, weights=counts), KEY, 20, method="parametric")
    assert drawn.fits.num_observations.tolist() == [20.0] * 20


@pytest.mark.parametrize("method", ["percentile", "basic", "bca"])
def test_intervals_are_scipys_on_the_same_replicates(method):
    found = by_jackknife()
    same = types.SimpleNamespace(bootstrap_distribution=np.asarray(found.params), standard_error=0.0)
    theirs = scipy.stats.bootstrap(
        (WAITS,),
        lambda y, axis: 1 / np.mean(y, axis=axis),
        n_resamples=0,
        bootstrap_result=same,
        method=method,
        confidence_level=0.9,
        vectorized=True,
    ).confidence_interval
    np.testing.assert_allclose(found.confidence_intervals(0.9, method), theirs, rtol=1e-6)
    squared = found.confidence_intervals(0.9, method, lambda rate: {"squared": rate**2})
    assert squared["squared"].shape == (2,)
    if method == "percentile":  # it alone follows a monotone function; the jackknife's acceleration does not quite
        np.testing.assert_allclose(squared["squared"], np.square(theirs), rtol=1e-3)


def test_the_infinitesimal_jackknife_has_nearly_the_same_acceleration():
    """By hand: the influence on λ̂ = 1/ȳ is −λ²(y − ȳ), so that a = −Σ(y−ȳ)³ / (6 (Σ(y−ȳ)²)^{3/2})."""
    off = WAITS - WAITS.mean()
    expected = -np.sum(off**3) / (6 * np.sum(off**2) ** 1.5)
    np.testing.assert_allclose(nonparametric()._acceleration(None), [expected], rtol=1e-6)
    infinitesimal = nonparametric().confidence_intervals(0.95, "bca")
    exact = by_jackknife().confidence_intervals(0.95, "bca")
    np.testing.assert_allclose(infinitesimal, exact, rtol=0.02)


def test_clusters_are_drawn_whole():
    found = fj.bootstrap(fitted(), KEY, 2000, clusters=[f"c{k}" for k in CLUSTERS])
    scheme = Scheme(CLUSTERS)
    weights = np.asarray(draw_counts(scheme, KEY, np.arange(2000)))[:, CLUSTERS]
    np.testing.assert_allclose(found.params, weights.sum(axis=1) / (weights @ WAITS), rtol=1e-7)
    assert "nonparametric, 8 clusters" in str(found)
    off = np.add.reduceat(WAITS - WAITS.mean(), np.arange(0, 40, 5))
    expected = -np.sum(off**3) / (6 * np.sum(off**2) ** 1.5)
    np.testing.assert_allclose(found._acceleration(None), [expected], rtol=1e-6)


def test_blocks_are_consecutive_and_of_their_length():
    moving = np.asarray(draw_counts(Scheme(np.arange(12), length=4), KEY, np.arange(3000)))
    circular = np.asarray(draw_counts(Scheme(np.arange(12), length=4, circular=True), KEY, np.arange(3000)))
    assert np.all(moving.sum(axis=1) == 12)
    # three blocks begin at one of nine places, and the third term lies in those that begin at the first three
    np.testing.assert_allclose(moving.mean(axis=0)[[0, 2, 5]], [3 / 9, 9 / 9, 12 / 9], atol=0.06)
    np.testing.assert_allclose(circular.mean(axis=0), 1.0, atol=0.06)
    one = np.asarray(draw_counts(Scheme(np.arange(12), length=11), KEY, np.arange(50)))
    assert set(one.sum(axis=1)) == {12.0}


def terms(phi, y):
    return norm.logpdf(y[1:], phi * y[:-1], 1.0)


def series(key, phi):
    return jax.lax.scan(lambda y, e: (phi * y + e,) * 2, 0.0, jax.random.normal(key, (200,)))[1]


SERIES = np.asarray(series(jax.random.key(1), 0.6))


def test_a_series_is_drawn_in_blocks_or_from_the_model():
    fit = fj.fit(fj.dependent(terms, sample=series), 0.0, SERIES)
    blocks = fj.bootstrap(fit, KEY, 400, method="block", block_length=10)
    for found in (blocks, fj.bootstrap(fit, KEY, 400, method="parametric")):
        assert found.valid.all()
        assert found.standard_errors() == pytest.approx(float(fit.standard_errors()), rel=0.25)
    assert "blocks of 10" in str(blocks)
    with pytest.raises(ValueError, match="influence of observations by themselves, which blocks and data"):
        blocks.confidence_intervals(0.9, "bca")


PROBABILITY = fj.Model(lambda p, y: jnp.where(y > 0, jnp.log(p), jnp.log1p(-p)), constraints=fj.unit_interval)


def test_failed_replicates_are_counted_said_and_left_out():
    """Of two successes in three, many resamples are all alike: their probability runs to an edge."""
    fit = fj.fit(PROBABILITY, 0.5, np.array([1.0, 1.0, 0.0]))
    with pytest.warns(fj.FitWarning, match=r"replicates' fits failed: \d+ boundary of 200"):
        found = fj.bootstrap(fit, KEY, 200)
    counts = np.asarray(draw_counts(Scheme(np.arange(3)), KEY, np.arange(200)))
    alike = (counts[:, 2] == 0) | (counts[:, 2] == 3)
    assert found.num_failed == alike.sum() > 20
    assert found.fits.status[alike].tolist() == [fj.Status.BOUNDARY] * int(alike.sum())
    assert len(found.replicates()) == 200 - found.num_failed
    assert f"{found.num_failed} boundary of 200. They are left out of every figure." in str(found)
    assert np.isfinite(found.standard_errors())


def test_an_unknown_kind_of_interval_is_an_error_wherever_it_is_given():
    replicates = fj.bootstrap(fitted(), KEY, 50)
    for function in (replicates.confidence_intervals, replicates.flat_intervals, replicates.summary):
        with pytest.raises(ValueError, match=f"Bootstrap.{function.__name__}: method='foo' is unknown"):
            function(method="foo")


def test_of_too_few_replicates_nothing_is_said():
    """Of one success in two, half of the resamples are all alike."""
    fit = fj.fit(PROBABILITY, 0.5, np.array([1.0, 0.0]))
    left = {}
    for seed in range(20):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", fj.FitWarning)
            found = fj.bootstrap(fit, jax.random.key(seed), 2)
        left[len(found.replicates())] = found
    for count in (0, 1):
        found = left[count]
        assert str(found).splitlines()[5].split() == ["params", "0.5", "-", "-", "-", "-"]
        for method in ("percentile", "basic", "bca"):
            assert np.isnan(found.confidence_intervals(0.9, method)).all()
        assert np.isnan([found.standard_errors(), found.bias()]).all()
        with pytest.raises(ValueError, match=f"{count} of 2 replicates converged, which make no histogram"):
            bootstrap_histogram(found)
    with pytest.raises(TypeError, match="function must be a function of params, got float"):
        left[2].confidence_intervals(0.9, "percentile", 0.5)
    np.testing.assert_array_equal(
        left[2].confidence_intervals(0.9, "percentile", "2 params"), 2 * left[2].confidence_intervals(0.9)
    )
    assert left[2].covariance() == pytest.approx(float(left[2].standard_errors()) ** 2)


def test_a_bca_interval_that_would_run_backwards_does_not_exist():
    drawn = np.random.default_rng(0).normal(size=(200, 2))
    found = bca_intervals(drawn, np.zeros(2), np.array([0.1, 0.6]), 0.95)
    assert found[0, 0] < found[0, 1]
    assert np.isnan(found[1]).all()


def test_an_observation_of_weight_zero_is_not_left_out_a_second_time():
    data, weights = np.append(WAITS, [5.0, np.nan]), np.append(np.ones(len(WAITS)), [0.0, 0.0])
    found = fj.bootstrap(fj.fit(MODEL, 1.0, data, weights=weights), KEY, 50, acceleration="jackknife")
    assert found.left_out.converged.all()
    assert found._acceleration(None) == pytest.approx(by_jackknife()._acceleration(None), rel=1e-6)


def test_a_replicate_of_clusters_without_weight_is_no_fit():
    weights = (CLUSTERS == 0).astype(float)  # one cluster counts; with probability (7/8)⁸ it is not drawn
    fit = fj.fit(MODEL, 1.0, np.where(weights > 0, WAITS, np.nan), weights=weights)
    with pytest.warns(fj.FitWarning, match="replicates' fits failed: .* too few observations"):
        found = fj.bootstrap(fit, KEY, 2000, clusters=CLUSTERS)
    assert (found.fits.status[~found.valid] == fj.Status.TOO_FEW_OBSERVATIONS).all()
    assert found.num_failed == (found.fits.num_observations == 0).sum()
    assert abs(found.num_failed / 2000 - (7 / 8) ** 8) < 4 * np.sqrt(0.34 * 0.66 / 2000)


def test_the_report_reads_so_and_fixed_parameters_stay():
    model = fj.Model(
        lambda p, y: exponential(p["rate"], y) + 0 * p["held"], constraints={"rate": fj.positive, "held": fj.fixed}
    )
    found = fj.bootstrap(fj.fit(model, {"rate": 1.0, "held": 3.0}, WAITS), KEY, 50)
    lines = str(found).splitlines()
    assert lines[:3] == ["Bootstrap", "  Replicates  50, nonparametric", "  Intervals   percentile"]
    assert lines[4].split() == [
        "parameter",
        "estimate",
        "bias",
        "std.",
        "error",
        "lower",
        "95",
        "%",
        "upper",
        "95",
        "%",
    ]
    assert len(lines) == 6
    assert found.standard_errors()["held"] == 0
    assert found.confidence_intervals()["held"].tolist() == [3.0, 3.0]
    assert found.to_frame().shape == (50, 1)
    assert "<td>50, nonparametric</td>" in found._repr_html_()
    np.testing.assert_allclose(found.params["rate"], nonparametric().params[:50], rtol=1e-9)


# Many fits.

MANY = np.stack([WAITS, RNG.exponential(2.0, 40), np.full(40, np.nan), RNG.exponential(1.0, 40)])
YEARS = np.ones((4, 40))
YEARS[1, ::4] = 0.0  # missing
YEARS[3, 0] = 3.0


@functools.cache
def many(weighted):
    return fj.fit_batch(MODEL, 1.0, MANY, weights=YEARS if weighted else None)


@pytest.mark.parametrize(
    ("method", "weighted"),  # the first of them is compared with each fit below as well
    some_of(
        list(itertools.product(["nonparametric", "parametric"], [False, True])),
        ("nonparametric", True),
        ("parametric", False),
        ("parametric", True),
    ),
)
def test_each_fit_of_a_batch_has_the_replicates_that_it_has_by_itself(method, weighted):
    fits = many(weighted)
    with pytest.warns(fj.FitWarning, match="bootstrap: 1 of 4 fits did not converge and have no replicates"):
        found = fj.bootstrap(fits, KEY, 50, method=method)
    for k in (1, 3):
        alone = fj.bootstrap(fits[k], jax.random.fold_in(KEY, k), 50, method=method)
        np.testing.assert_allclose(found.params[k], alone.params, rtol=1e-9)
        np.testing.assert_allclose(found.standard_errors()[k], alone.standard_errors(), rtol=1e-8)
        for way in ("percentile", "basic", "bca"):
            ends = alone.confidence_intervals(0.8, way, jnp.log)
            np.testing.assert_allclose(found.confidence_intervals(0.8, way, jnp.log)[k], ends, rtol=1e-7)
            np.testing.assert_allclose(found[k].confidence_intervals(0.8, way, jnp.log), ends, rtol=1e-7)
    assert not found.valid[2].any()
    assert np.isnan(found.standard_errors()[2])
    assert found.num_failed.tolist() == [0, 0, 50, 0]


def test_clusters_blocks_and_the_jackknife_of_each_fit_of_a_batch():
    fits = many(False)[np.array([0, 1, 3])]
    for settings in ({"clusters": CLUSTERS}, {"method": "block", "block_length": 5}, {"acceleration": "jackknife"}):
        found = fj.bootstrap(fits, KEY, 50, **settings)
        alone = fj.bootstrap(fits[1], jax.random.fold_in(KEY, 1), 50, **settings)
        np.testing.assert_allclose(found.params[1], alone.params, rtol=1e-9)
        way = "percentile" if "method" in settings else "bca"
        np.testing.assert_allclose(found.flat_intervals(0.8, way)[1], alone.flat_intervals(0.8, way), rtol=1e-7)
        assert found.description == alone.description


def test_replicates_of_many_fits_do_not_depend_on_how_many_are_in_memory(monkeypatch):
    fits = many(True)[np.array([0, 1, 3])]
    for method in ("nonparametric", "parametric"):
        whole = fj.bootstrap(fits, KEY, 50, method=method)
        for entries in (5000, 100):  # two fits at once; one by one
            monkeypatch.setattr("fisher_jax.inference.replicates.HOST_ENTRIES", entries)
            np.testing.assert_allclose(fj.bootstrap(fits, KEY, 50, method=method).params, whole.params, rtol=1e-12)
        monkeypatch.undo()


def test_a_bootstrap_of_many_fits_indexes_prints_and_frames():
    fits = many(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fj.FitWarning)
        found = fj.bootstrap(fits, KEY, 50)
    assert len(found) == 4
    assert found.num_replicates == 50
    assert len(found[1:3]) == 2
    assert [one.params.shape for one in found] == [(50,)] * 4
    assert found.replicates().shape == (4, 50, 1)
    assert found.covariance().shape == (4, 1, 1)
    text = str(found)
    for part in (
        "Fits        4, each with as many replicates",
        "medians over the fits that converged",
        "1 of 4 fits did",
    ):
        assert part in text
    frame = found.to_frame()
    assert frame.index.names == ["fit", "replicate"]
    assert len(frame) == 150
    np.testing.assert_allclose(frame.loc[3, "params"], found.params[3], rtol=1e-14)
    with pytest.raises(ValueError, match=r"this is of 4 fits. Give that of one, as bootstrap\[3\]"):
        bootstrap_histogram(found)
    with pytest.raises(ValueError, match="bootstrap: there is no fit in this batch that converged"):
        fj.bootstrap(fits[2:3], KEY, 50)
