"""Formulas: published regressions by name from any table, parameters with formulas of their own, groups, censoring, bad input."""

import copy
import functools
import math
import pickle
from typing import NamedTuple

import jax
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.stats
import statsmodels.formula.api as smf
from data_sets import OVARIAN_DAYS, OVARIAN_DIED, OVARIAN_ECOG, OVARIAN_RX, _stored
from helpers import some_of
from statsmodels.datasets import anes96, fair, grunfeld, randhie, spector

import fisher_jax as fj
from fisher_jax import families

TABLES = {"pandas": lambda frame: frame, "polars": pl.from_pandas, "pyarrow": pa.Table.from_pandas}


@functools.cache
def _table(name):
    """Tables that statsmodels ships, the large ones thinned; the whole RAND is in test_oracles."""
    if name == "affairs":
        frame = fair.load_pandas().data.iloc[::20]
        return frame.assign(affair=(frame["affairs"] > 0).astype(float))
    if name == "anes96, three parties":
        frame = anes96.load_pandas().data
        return frame[frame["PID"] < 3]
    source = {"spector": spector, "randhie": randhie, "anes96": anes96, "grunfeld": grunfeld}[name]
    return source.load_pandas().data.iloc[:: 30 if name == "randhie" else 1]


class Problem(NamedTuple):
    """A formula, and the function of statsmodels that fits it by maximum likelihood."""

    formula: str
    family: fj.Model
    table: str
    reference: str
    link: str | None = None


PROBLEMS = {
    "Spector, logit": Problem("GRADE ~ GPA + TUCE + PSI", families.bernoulli, "spector", "logit"),
    "Spector, probit": Problem("GRADE ~ GPA + TUCE + PSI", families.bernoulli, "spector", "probit", "probit"),
    "RAND, Poisson": Problem("mdvis ~ lncoins + idp + lpi + physlm + disea", families.poisson, "randhie", "poisson"),
    "RAND, negative binomial": Problem("mdvis ~ idp + disea", families.negative_binomial, "randhie", "negativebinomial"),
    "affairs": Problem("affair ~ C(occupation) + rate_marriage + age", families.bernoulli, "affairs", "logit"),
    "anes96, multinomial": Problem("PID ~ selfLR", families.categorical, "anes96, three parties", "mnlogit"),
}  # fmt: skip


def compare(frame, estimate, error, statistic, p_value, interval):
    """Rows of a coefficient table with statsmodels' arrays of the same coefficients, in the same order."""
    np.testing.assert_allclose(frame["estimate"], estimate, rtol=1e-6)
    np.testing.assert_allclose(frame["standard_error"], error, rtol=1e-6)
    np.testing.assert_allclose(frame["z"], statistic, rtol=1e-6)
    np.testing.assert_allclose(frame["p_value"], p_value, rtol=2e-6, atol=1e-15)
    np.testing.assert_allclose(frame[["lower", "upper"]], interval, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_formula_gives_the_names_estimates_errors_and_intervals_of_statsmodels(name):
    text, family, table, reference, link = PROBLEMS[name]
    fit = fj.formula(text, family, _table(table), links=link).fit()
    expected = getattr(smf, reference)(text, _table(table)).fit(disp=0, method="newton", tol=1e-12)
    assert fit.converged
    np.testing.assert_allclose(fit.log_likelihood, expected.llf, rtol=1e-9)
    frame, names = fit.to_frame(), list(expected.params.index)
    arrays = [expected.params, expected.bse, expected.tvalues, expected.pvalues, expected.conf_int()]
    arrays = [np.asarray(array) for array in arrays]
    if family is families.categorical:
        names = [f"{name}[{k}.0]" for name in names for k in (1, 2)]
        *arrays, interval = arrays
        arrays = [*(np.ravel(array) for array in arrays), interval.reshape(2, -1, 2).swapaxes(0, 1).reshape(-1, 2)]
    if family is families.negative_binomial:  # alpha is one divided by size
        estimate, error = frame.loc["size", ["estimate", "standard_error"]]
        np.testing.assert_allclose([1 / estimate, error / estimate**2], [arrays[0][-1], arrays[1][-1]], rtol=1e-6)
        names, arrays, frame = names[:-1], [array[:-1] for array in arrays], frame.iloc[:-1]
    assert list(frame.index) == names
    compare(frame, *arrays)


# statsmodels 0.15, OrderedModel.from_formula(text, anes96, distr).fit(method="newton", tol=1e-13): log-likelihood, slopes, their
# standard errors, and transform_threshold_params; it takes seconds there.
ORDERED = {
    "ordered_logit": (
        -1527.2021159594349,
        [-0.07725373236044944, 0.9602579360460001],
        [0.018972367047372, 0.05151597498919294],
        [2.0973635619430704, 3.2978491336101126, 3.97183913398175, 4.216806239595245, 4.839878056456275, 5.971460909692573],
    ),
    "ordered_probit": (
        -1536.1570299271357,
        [-0.043746062422276986, 0.5421606048260643],
        [0.011102229457053824, 0.027734638956546157],
        [1.1930721564727143, 1.8741156521230447, 2.263648402321481, 2.4047556060699375, 2.7663998063938244, 3.42231259339306],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", some_of(ORDERED, "ordered_logit"))
def test_ordered_families_have_cutpoints_in_place_of_a_constant(name):
    log_likelihood, slopes, errors, cutpoints = ORDERED[name]
    fit = fj.formula("PID ~ logpopul + selfLR", getattr(families, name), _table("anes96")).fit()
    np.testing.assert_allclose(fit.log_likelihood, log_likelihood, rtol=1e-10)
    np.testing.assert_allclose(fit.params["loc"], slopes, rtol=1e-6)
    np.testing.assert_allclose(fit.standard_errors()["loc"], errors, rtol=1e-6)
    np.testing.assert_allclose(fit.params["cutpoints"], cutpoints, rtol=1e-6)
    assert fit.names[:4] == ("logpopul", "selfLR", "cutpoints[0.0|1.0]", "cutpoints[1.0|2.0]")


@pytest.mark.parametrize("library", ["polars", "pyarrow"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_library_gives_the_same_model_and_the_same_arrays(name, library):
    text, family, table, _, link = PROBLEMS[name]
    ours, other = (
        fj.formula(text, family, make(_table(table)), links=link) for make in (TABLES["pandas"], TABLES[library])
    )
    assert ours.model == other.model
    jax.tree.map(
        np.testing.assert_array_equal, (ours.start, ours.data, ours.given), (other.start, other.data, other.given)
    )


def test_clusters_by_name_are_statsmodels_clusters_but_for_its_factor():
    """statsmodels multiplies the covariance by (n − 1) / (n − p) as well, p without the variance."""
    table = _table("grunfeld")
    groups = {"groups": pd.factorize(table["firm"])[0]}
    expected = smf.ols("invest ~ value + capital", table).fit(cov_type="cluster", cov_kwds=groups)
    fit = fj.formula("invest ~ value + capital", families.normal, table).fit()
    errors = fj.robust(fit, clusters="firm").standard_errors()["loc"]
    np.testing.assert_allclose(errors * np.sqrt((len(table) - 1) / (len(table) - 3)), expected.bse, rtol=1e-8)
    np.testing.assert_allclose(fit.params["loc"], expected.params, rtol=1e-8)
    assert fit.names == ("Intercept", "value", "capital", "scale")
    with pytest.raises(ValueError, match="robust: the table has no column 'frim'"):
        fj.robust(fit, clusters="frim")


def test_a_bootstrap_takes_clusters_by_name():
    fit, key = fj.formula("y ~ 1", families.exponential, COUNTS.assign(y=COUNTS["time"])).fit(), jax.random.key(0)
    draws, again = (fj.bootstrap(fit, key, 20, clusters=of) for of in ("ship", COUNTS["ship"].to_numpy()))
    np.testing.assert_array_equal(draws.replicates(), again.replicates())


RNG = np.random.default_rng(7)
N = 90
COUNTS = pd.DataFrame(
    {
        "gene": RNG.choice(["a", "b", "c"], N, p=[0.5, 0.3, 0.2]),
        "x": RNG.normal(size=N),
        "batch": RNG.choice(["u", "v"], N),
        "ship": RNG.choice(["p", "q", "r", "s"], N),
        "time": RNG.uniform(1.0, 2.0, N),
        "w": RNG.integers(1, 3, N),
    }
)
COUNTS["y"] = RNG.poisson(np.exp(0.6 + 0.4 * COUNTS["x"]))
POISSON = ("y ~ x + batch", families.poisson, COUNTS)


@pytest.fixture(scope="module")
def poisson_formula():
    return fj.formula(*POISSON)


@pytest.fixture(scope="module")
def by_gene(poisson_formula):
    return poisson_formula.fit_batch(by="gene")


def test_a_formula_of_the_scale_has_the_closed_form_of_two_groups():
    """Each group has its own mean and standard deviation; ψ = log ratio of the latter with errors 1/√(2n)."""
    y, g = RNG.normal(size=30), np.repeat(["one", "two"], [18, 12])
    fit = fj.formula("y ~ g", families.normal, {"y": y, "g": g}, scale="~ g").fit()
    one, two = y[:18], y[18:]
    np.testing.assert_allclose(fit.params["loc"], [one.mean(), two.mean() - one.mean()], rtol=1e-8)
    np.testing.assert_allclose(fit.params["scale"], [np.log(one.std()), np.log(two.std() / one.std())], rtol=1e-8)
    errors = fit.standard_errors()
    np.testing.assert_allclose(
        errors["loc"], [one.std() / 18**0.5, np.hypot(one.std() / 18**0.5, two.std() / 12**0.5)], rtol=1e-8
    )
    np.testing.assert_allclose(errors["scale"], [36**-0.5, (1 / 36 + 1 / 24) ** 0.5], rtol=1e-8)
    assert fit.names == ("Intercept", "g[T.two]", "scale[Intercept]", "scale[g[T.two]]")


def test_each_group_is_fitted_as_by_itself_and_keeps_its_label(by_gene):
    alone = fj.formula("y ~ x + batch", families.poisson, COUNTS[COUNTS["gene"] == "b"]).fit()
    assert by_gene.labels.tolist() == ["a", "b", "c"]
    assert by_gene["b"].labels == "b"
    np.testing.assert_allclose(by_gene["b"].params["rate"], alone.params["rate"], rtol=1e-7)
    np.testing.assert_allclose(by_gene["b"].standard_errors()["rate"], alone.standard_errors()["rate"], rtol=1e-7)
    assert by_gene.num_observations.tolist() == COUNTS.groupby("gene").size().tolist()
    assert list(by_gene.to_frame().index) == ["a", "b", "c"]
    assert by_gene.to_columns()["group"].tolist() == ["a", "b", "c"]
    with pytest.raises(IndexError, match="no group of this label"):
        by_gene["z"]


def test_groups_keep_their_data_so_that_clusters_are_found_group_by_group(by_gene):
    together = fj.robust(by_gene, clusters="ship")
    alone = fj.robust(by_gene["c"], clusters="ship").standard_errors()["rate"]
    np.testing.assert_allclose(together.standard_errors()["rate"][2], alone, rtol=1e-8)
    assert together.describe("sandwich").startswith("sandwich by the clusters of each fit, factor")


def test_labels_survive_slices_pickle_and_files(by_gene, tmp_path):
    by_gene.save(tmp_path / "fits.npz")
    for fits in (by_gene[1:], pickle.loads(pickle.dumps(by_gene))[1:], fj.load(tmp_path / "fits.npz")[1:]):
        assert fits.labels.tolist() == ["b", "c"]


def density(params, y, z):
    return jax.scipy.stats.poisson.logpmf(y, jax.numpy.exp(params["a"] + params["b"] * z["x"]))


def test_fit_batch_takes_groups_by_a_column_of_a_table_or_by_labels():
    start = {"a": 0.0, "b": 0.0}
    named = fj.fit_batch(density, start, COUNTS["y"], given=pl.from_pandas(COUNTS[["x", "gene"]]), by="gene")
    labelled = fj.fit_batch(density, start, COUNTS["y"], given=COUNTS[["x"]], by=COUNTS["gene"])
    np.testing.assert_array_equal(named.params["a"], labelled.params["a"])
    rows = (COUNTS["gene"] == "a").to_numpy()
    alone = fj.fit(density, start, COUNTS["y"].to_numpy()[rows], given={"x": COUNTS["x"].to_numpy()[rows]})
    np.testing.assert_allclose(named[0].params["b"], alone.params["b"], rtol=1e-7)


def test_groups_of_very_different_lengths_are_fitted_in_classes(monkeypatch):
    monkeypatch.setattr("fisher_jax.fitting.groups.FILLING", -(10**6))
    fits = fj.fit_batch(families.poisson, None, COUNTS["y"], by=COUNTS["gene"])
    assert fits.origin is None
    np.testing.assert_allclose(fits.params["rate"], COUNTS.groupby("gene")["y"].mean(), rtol=1e-7)


def test_a_group_in_which_a_level_does_not_occur_has_its_status():
    table = COUNTS[(COUNTS["gene"] != "c") | (COUNTS["batch"] == "u")]
    fits = fj.formula("y ~ x + batch", families.poisson, table).fit_batch(by="gene")
    assert fits[:2].converged.all()
    assert fits["c"].status == fj.Status.SINGULAR_INFORMATION
    assert "batch[T.v]" in fits["c"].diagnosis()
    assert "Fit 2 (c)" in str(fits.summary())


def test_groups_are_told_apart_by_their_labels_and_not_by_the_text_of_several():
    table = {"y": np.arange(8.0), "a": ["p, q", "p"] * 4, "b": ["r", "q, r"] * 4}
    with pytest.raises(ValueError, match="different groups with the same label 'p, q, r'"):
        fj.fit_batch(families.normal, None, np.arange(8.0), given=pd.DataFrame(table)[["a", "b"]], by=["a", "b"])
    with pytest.raises(ValueError, match="different groups with the same label"):
        fj.formula("y ~ 1", families.normal, table).fit_batch(["a", "b"])


@pytest.mark.parametrize(
    "by",
    [
        np.array([np.nan, 1.0, 1.0]),
        np.ma.array([1, 1, 1], mask=[True, False, False]),
        np.array(["NaT", "2020-01-01", "2020-01-01"], "datetime64[D]"),
    ],
)
def test_a_group_without_a_label_raises(by):
    with pytest.raises(ValueError, match=r"by.*Give every observation a label"):
        fj.fit_batch(families.normal, None, np.arange(3.0), by=by)


def test_clusters_of_groups_follow_the_order_of_the_fits(by_gene):
    """Whole numbers among objects have one order as numbers and another as text."""
    numbers = {"a": 2, "b": 10, "c": 3}
    table = COUNTS.assign(gene=COUNTS["gene"].map(numbers).astype(object))
    numbered = fj.robust(fj.formula("y ~ x + batch", families.poisson, table).fit_batch(by="gene"), clusters="ship")
    order = [numbered.labels.tolist().index(str(numbers[label])) for label in by_gene.labels]
    np.testing.assert_allclose(numbered.covariance()[order], fj.robust(by_gene, clusters="ship").covariance())


def test_a_design_that_groups_share_is_stored_once():
    table = pd.concat([COUNTS[["time"]].assign(gene=gene) for gene in "ab"])
    fits = fj.formula("time ~ 1", families.exponential, table).fit_batch(by="gene")
    (design,) = jax.tree.leaves(fits.origin.dataset.given)
    assert design.shape == (N, 1)


def test_exposure_offset_and_weights_are_columns():
    plain = fj.formula("y ~ x", families.poisson, COUNTS, exposure="time", weights="w")
    table = COUNTS.loc[np.repeat(np.arange(N), COUNTS["w"])].assign(log_time=lambda t: np.log(t["time"]))
    repeated = fj.formula("y ~ x", families.poisson, table, offset="log_time")
    np.testing.assert_allclose(plain.fit().params["rate"], repeated.fit().params["rate"], rtol=1e-7)
    array = fj.formula("y ~ x", families.poisson, COUNTS, exposure=COUNTS["time"], weights=COUNTS["w"].to_numpy())
    np.testing.assert_array_equal(array.given["offset"], plain.given["offset"])
    with pytest.raises(ValueError, match="exposure was given as an array"):
        array.predictor.covariates(COUNTS)
    with pytest.raises(ValueError, match="the exposure must be positive; in row 1 it is not"):
        plain.predictor.covariates({"x": [0.0, 1.0], "time": [2.0, 0.0]})


def test_a_missing_value_of_an_array_counts_as_one_of_a_column():
    offset = np.where(np.arange(N) == 3, np.nan, 0.5)
    with pytest.raises(ValueError, match="missing values in 1 of 90 rows: 1 in 'offset='"):
        fj.formula("y ~ x", families.poisson, COUNTS, offset=offset)
    some = fj.formula("y ~ x", families.poisson, COUNTS, offset=offset, missing="drop")
    assert (some.num_dropped, len(some.data)) == (1, N - 1)
    np.testing.assert_array_equal(some.given["offset"], 0.5)


def test_a_number_holds_a_parameter_and_a_constant_may_be_a_column():
    held = fj.formula("y ~ x", families.normal, COUNTS, scale=2.0).fit()
    assert held.params["scale"] == 2.0
    assert held.names == ("Intercept", "x")
    table = COUNTS.assign(n=COUNTS["y"] + 1)
    fit = fj.formula("y ~ x", families.binomial, table, trials="n").fit()
    rows = pd.DataFrame({"success": np.repeat(np.tile([1, 0], N), np.stack([table["y"], np.ones(N, int)], 1).ravel())})
    rows["x"] = np.repeat(table["x"].to_numpy(), table["n"])
    np.testing.assert_allclose(fit.params["logit"], smf.logit("success ~ x", rows).fit(disp=0).params, rtol=1e-6)


@functools.cache
def ovarian():
    table = {"days": OVARIAN_DAYS, "died": OVARIAN_DIED, "ecog": OVARIAN_ECOG, "rx": OVARIAN_RX}
    return fj.formula("days ~ ecog + rx", families.weibull, table, event="died", shape="~ 1").fit()


def test_ovarian_cancer_by_a_formula_with_a_censoring_column():
    fit = ovarian()
    # R, survreg; its log scale is minus the log shape
    np.testing.assert_allclose(fit.params["scale"], [6.8966931286, -0.3850425493, 0.5286454963], rtol=1e-9)
    np.testing.assert_allclose(fit.params["shape"], [0.1234418107], rtol=1e-8)
    np.testing.assert_allclose(fit.standard_errors()["scale"], [1.17754722, 0.52700178, 0.52920190], rtol=1e-8)
    np.testing.assert_allclose(fit.standard_errors()["shape"], [0.25221310], rtol=1e-7)
    np.testing.assert_allclose(fit.log_likelihood, -97.08449317, rtol=1e-10)


def test_a_censored_fit_predicts_the_median_and_the_mean_of_the_time_to_the_event():
    shape, new = np.exp(0.1234418107), {"ecog": [1.0, 2.0], "rx": [2.0, 1.0]}
    scale = np.exp(6.8966931286 - 0.3850425493 * np.array(new["ecog"]) + 0.5286454963 * np.array(new["rx"]))
    median = fj.predict(ovarian(), new, 0.5)
    np.testing.assert_allclose(median.estimate, scale * np.log(2.0) ** (1.0 / shape), rtol=1e-8)
    np.testing.assert_allclose(fj.predict(ovarian(), new).estimate, scale * math.gamma(1.0 + 1.0 / shape), rtol=1e-8)
    assert np.all(median.confidence_intervals() > 0.0)


@pytest.mark.exhaustive
def test_rossis_arrests_are_those_of_lifelines():
    """lifelines 0.30.3, WeibullAFTFitter with scipy's BFGS and gtol 3e-9; its rho is the shape."""
    names = ("week", "arrest", "fin", "age", "race", "wexp", "mar", "paro", "prio")
    table = dict(zip(names, _stored("rossi"), strict=True))
    terms = " + ".join(names[2:])
    fit = fj.formula(f"week ~ {terms}", families.weibull, table, event="arrest", shape="~ 1").fit()
    expected = {
        "Intercept": (3.9901347950549853, 0.4190951892285212),
        "fin": (0.27216335959725274, 0.1379619168222777),
        "age": (0.040713798376404584, 0.016003551083755552),
        "race": (-0.22480244356488494, 0.22015888362972783),
        "wexp": (0.10655658853435147, 0.15154096705240944),
        "mar": (0.311273264163755, 0.2733022465892554),
        "paro": (0.05882725258360704, 0.13963823970019637),
        "prio": (-0.06581690465696767, 0.02094057527632092),
        "shape[Intercept]": (0.339108240682857, 0.089026690702472),
    }
    frame = fit.to_frame()
    assert list(frame.index) == list(expected)
    np.testing.assert_allclose(frame[["estimate", "standard_error"]], list(expected.values()), rtol=1e-6)
    np.testing.assert_allclose(fit.log_likelihood, -679.9165639370913, rtol=1e-12)


# Missing values -------------------------------------------------------------------------------------------------------

HOLES = COUNTS.assign(
    x=COUNTS["x"].mask(COUNTS.index == 3), batch=COUNTS["batch"].mask(COUNTS.index.isin([3, 5])), ship=None
)


@pytest.mark.parametrize("library", TABLES)
def test_missing_values_are_counted_by_column_or_left_out_on_request(library):
    table = TABLES[library](HOLES)
    with pytest.raises(
        ValueError, match=r"formula: the table has missing values in 2 of 90 rows: 2 in 'batch', 1 in 'x'"
    ):
        fj.formula("y ~ x + batch", families.poisson, table)
    some = fj.formula("y ~ x + batch", families.poisson, table, missing="drop")
    assert some.num_dropped == 2
    np.testing.assert_array_equal(some.data, COUNTS["y"].drop([3, 5]))


def test_reports_say_how_many_rows_were_left_out():
    fit = fj.formula("y ~ x + batch", families.poisson, HOLES, missing="drop").fit()
    assert fit.num_masked == 2
    assert "Missing                  2 rows, left out" in str(fit)
    whole = fj.fit(density, {"a": 0.0, "b": 0.0}, HOLES["y"], given=HOLES[["x"]], missing="drop")
    assert whole.num_observations == N - 1
    assert "1 row, left out" in str(whole)


def test_each_group_reports_its_rows_left_out_and_one_without_rows_is_named():
    counts = fj.formula("y ~ x + batch", families.poisson, HOLES, missing="drop")
    fits = counts.fit_batch(by="gene")
    expected = [int(HOLES.loc[[3, 5], "gene"].eq(label).sum()) for label in fits.labels]
    np.testing.assert_array_equal(fits.num_masked, expected)
    np.testing.assert_array_equal(counts.fit_batch(by=HOLES["gene"]).num_masked, expected)
    empty = HOLES.assign(x=HOLES["x"].mask(HOLES["gene"] == "a"))
    with pytest.warns(fj.FitWarning, match="1 groups, the first of them 'a', are not fitted: a value is missing"):
        fits = fj.formula("y ~ x + batch", families.poisson, empty, missing="drop").fit_batch(by="gene")
    assert fits.labels.tolist() == ["b", "c"]


# Effects --------------------------------------------------------------------------------------------------------------


def test_a_spline_has_the_marginal_effect_of_the_polynomial_that_it_is():
    """Without inner knots; beyond those at the ends it is not defined."""
    spline, cubic = (
        fj.marginal_effects(fj.formula(f"y ~ {terms}", families.poisson, COUNTS).fit())
        for terms in ("bs(x, df=3)", "x + I(x ** 2) + I(x ** 3)")
    )
    assert spline.labels == ("x",)
    np.testing.assert_allclose(spline.estimate, cubic.estimate, rtol=1e-5)
    np.testing.assert_allclose(spline.standard_errors(), cubic.standard_errors(), rtol=1e-5)


def test_a_category_enters_also_where_its_first_levels_have_one_coefficient():
    effects = fj.marginal_effects(fj.formula("y ~ C(ship == 's')", families.poisson, COUNTS).fit())
    assert effects.labels == ("ship: q − p", "ship: r − p", "ship: s − p")
    means = COUNTS["y"].groupby(COUNTS["ship"] == "s").mean()
    np.testing.assert_allclose(effects.estimate, [0.0, 0.0, means[True] - means[False]], atol=1e-7)


# The predictor --------------------------------------------------------------------------------------------------------


def test_the_predictor_makes_the_covariates_of_other_tables(poisson_formula):
    predictor = poisson_formula.fit().origin.model.log_density.predictor
    np.testing.assert_array_equal(
        predictor.covariates(pl.from_pandas(COUNTS[:7]))["rate"], poisson_formula.given["rate"][:7]
    )
    np.testing.assert_array_equal(predictor.covariates({"x": [0.5], "batch": ["v"]})["rate"], [[1.0, 0.5, 1.0]])
    centred = fj.formula("y ~ center(x) + bs(x, df=4)", families.poisson, COUNTS)
    np.testing.assert_allclose(
        centred.predictor.covariates(COUNTS[20:25])["rate"], centred.given["rate"][20:25], atol=1e-12
    )


def test_powers_of_whole_numbers_do_not_overflow():
    whole = COUNTS.assign(n=np.arange(N) * 10**5)
    counts = fj.formula("y ~ I(n ** 4)", families.poisson, whole)
    expected = whole["n"].to_numpy(float) ** 4
    np.testing.assert_allclose(counts.given["rate"][:, 1], expected)
    np.testing.assert_allclose(counts.predictor.covariates(whole)["rate"][:, 1], expected)


@pytest.mark.parametrize(
    "term", ["C(x > 0)", "C(np.sign(x))", "C(batch == 'v')", "C(ship, contr.sum)", "C(`x`.round())"]
)
def test_categories_that_are_computed_are_computed_of_another_table_too(term):
    counts = fj.formula(f"y ~ {term}", families.poisson, COUNTS)
    np.testing.assert_array_equal(counts.predictor.covariates(COUNTS[:9])["rate"], counts.given["rate"][:9])


def test_a_formula_is_equal_to_its_copies_and_not_to_others(poisson_formula):
    for other in (copy.deepcopy(poisson_formula), pickle.loads(pickle.dumps(poisson_formula)), fj.formula(*POISSON)):
        assert other.model == poisson_formula.model
        assert hash(other.predictor) == hash(poisson_formula.predictor)
    assert fj.formula("y ~ x + ship", families.poisson, COUNTS).model != poisson_formula.model


def test_a_fit_that_was_pickled_predicts_as_before(poisson_formula):
    fit = poisson_formula.fit()
    again, new = pickle.loads(pickle.dumps(fit)), {"x": [0.5], "batch": ["v"]}
    np.testing.assert_array_equal(fj.predict(again, new).estimate, fj.predict(fit, new).estimate)


def test_categories_keep_their_order_without_those_that_do_not_occur():
    table = COUNTS.assign(batch=pd.Categorical(COUNTS["batch"], ["v", "never", "u"]))
    assert fj.formula("y ~ batch", families.poisson, table).predictor.designs[0].names == ("Intercept", "batch[T.u]")
    assert fj.formula("batch ~ x", families.categorical, table).predictor.levels == ("v", "u")


def test_a_formula_prints_links_formulas_and_coefficients(poisson_formula):
    text = str(poisson_formula)
    assert "y ~ x + batch" in text
    assert "Intercept, x, batch[T.v]" in text


def test_single_precision_is_that_of_jax(poisson_formula):
    with jax.enable_x64(False):
        fit = poisson_formula.fit()
    assert fit.free.dtype == np.float32
    np.testing.assert_allclose(fit.params["rate"], poisson_formula.fit().params["rate"], rtol=1e-3, atol=1e-3)


LINKS = ["identity", "log", "sqrt", "inverse", "inverse_squared", "probit", "cloglog", "loglog", "cauchit"]


@pytest.mark.parametrize("link", LINKS)
def test_a_link_is_the_inverse_of_its_inverse(link):
    from fisher_jax.frames.links import LINKS, LINKS_OF_LOGIT

    for value in (0.03, 0.6):
        np.testing.assert_allclose(LINKS[link].inverse(np.float64(LINKS[link].forward(value))), value, rtol=1e-12)
        if link in LINKS_OF_LOGIT:
            logit = float(np.log(value / (1 - value)))
            eta = LINKS_OF_LOGIT[link].forward(logit)
            np.testing.assert_allclose(eta, LINKS[link].forward(value), rtol=1e-12)
            np.testing.assert_allclose(LINKS_OF_LOGIT[link].inverse(np.float64(eta)), logit, rtol=1e-12, atol=1e-14)


SURVIVAL = {
    "exponential": ({"rate": 0.4}, scipy.stats.expon(scale=2.5)),
    "weibull": ({"shape": 1.7, "scale": 2.0}, scipy.stats.weibull_min(c=1.7, scale=2.0)),
    "lognormal": ({"loc": 0.3, "scale": 0.8}, scipy.stats.lognorm(s=0.8, scale=np.exp(0.3))),
    "normal": ({"loc": 0.3, "scale": 0.8}, scipy.stats.norm(0.3, 0.8)),
    "logistic": ({"loc": 0.3, "scale": 0.8}, scipy.stats.logistic(0.3, 0.8)),
    "gumbel": ({"loc": 0.3, "scale": 0.8}, scipy.stats.gumbel_r(0.3, 0.8)),
}


@pytest.mark.parametrize("name", SURVIVAL)
def test_log_survival_is_that_of_scipy_far_into_the_tail(name):
    params, distribution = SURVIVAL[name]
    y = np.array([-1.0, 0.0, 0.1, 1.0, 5.0, 20.0])
    function = getattr(families, name).log_survival
    np.testing.assert_allclose(jax.vmap(function, (None, 0))(params, y), distribution.logsf(y), rtol=1e-10, atol=1e-15)
    slopes = jax.vmap(jax.grad(function), (None, 0))(params, y)
    assert all(np.isfinite(slope).all() for slope in slopes.values())


# Bad input ------------------------------------------------------------------------------------------------------------


def made(text="y ~ x", family=families.poisson, table=COUNTS, **options):
    return lambda: fj.formula(text, family, table, **options)


NB = families.negative_binomial
TWICE = pd.concat([COUNTS, COUNTS[["x"]]], axis=1)
BAD = {
    "an unknown column": (made("y ~ ship + xx"), "no column 'xx'. Did you mean 'x'"),
    "an unknown response": (made("yield ~ x"), "no column 'yield'. It has gene, x, batch"),
    "an unknown function": (made("y ~ myfun(x)"), "know no function 'myfun'"),
    "a parenthesis": (made("y ~ (x + batch"), "is not a formula: Could not find matching"),
    "an unknown column of weights": (made(weights="freq"), "no column 'freq', which weights= names. It has gene, x, batch"),
    "a key for an exposure": (made(exposure=jax.random.split(jax.random.key(0), 12)), "exposure.*holds a key of jax.random"),
    "no response": (made("~ x"), "must have one response and one right-hand side"),
    "two sides": (made("y ~ x | batch"), "has a bar outside parentheses"),
    "no terms": (made("y ~ 0"), "has no term"),
    "a number": (made(3), "formula is 3; expected a formula as text"),
    "a term that is not finite": (made("y ~ np.log(w - 1)"), r"'np.log\(w - 1\)' is not finite in \d+ rows"),
    "objects": (made(table=COUNTS.assign(x=COUNTS["x"].astype(object))), "column 'x' of the table holds objects .float."),
    "dates": (made(table=COUNTS.assign(x=pd.Timestamp("2020-01-01"))), "column 'x' of the table holds times"),
    "duplicate names": (made(table=TWICE), "there are several columns 'x'"),
    "text as response": (made("batch ~ x"), "response 'batch' holds String, but families.poisson.rate. takes numbers"),
    "one category": (made("batch ~ x", families.categorical, COUNTS[COUNTS["batch"] == "u"]), "one category only, 'u'"),
    "a parameter of another family": (made(family=NB, sizes="~ x"), "sizes= is no parameter.*Did you mean 'size'"),
    "a formula of the mean": (made(family=NB, mean="~ x"), "mean= is described by the formula itself"),
    "a formula without ~": (made(family=NB, size="x"), "give a formula, as in size='~ x', or a number"),
    "a formula of cutpoints": (made(family=families.ordered_logit, cutpoints="~ x"), "cutpoints have no formula"),
    "no trials": (made(family=families.binomial), "needs trials: give trials= a number, or the name of a column"),
    "an unknown link": (made(links="logg"), "the link of rate='logg' is unknown; choose from"),
    "a link of nothing": (made(links={"size": "log"}), "links names 'size', which has no formula"),
    "vectors": (made(family=families.dirichlet), "has vectors for observations, which no formula describes"),
    "a density": (made(family=density), "family is function; expected one of fisher_jax.families.*linked"),
    "a matrix": (made(table=np.ones((3, 2))), "frame is ndarray; expected a table of pandas, polars or pyarrow, or a dictionary"),
    "a lazy table": (made(table=pl.from_pandas(COUNTS).lazy()), "LazyFrame, which is not in memory. Collect it first"),
    "columns of other lengths": (made(table={"x": np.ones(3), "y": np.ones(4)}), "columns of frame have the shapes x: .3,., y: .4,."),
    "links that are none": (made(links=3), "links is int; expected the name of a link, or a dictionary"),
    "no rows": (made(table=COUNTS[:0]), "the table has no rows"),
    "no rows left": (made("y ~ x + ship", table=HOLES, missing="drop"), "no row is left: .* 90 in 'ship'"),
    "unknown policy": (made(missing="ignore"), "missing='ignore' is unknown; choose from 'raise', 'drop'"),
    "weights of another index": (made(weights=COUNTS["w"][::-1]), "the table and weights have different index labels"),
    "weights of another length": (made(weights=np.ones(3)), "weights has shape .3,., but the table has 90 rows"),
    "two forms of censoring": (made(family=families.weibull, event="w", upper="w"), "two forms of censored data"),
    "an interval turned round": (made(family=families.poisson, upper=np.full(N, -1.0)), "upper must not be less than the response; in row 0"),
    "events that are not": (made(family=families.weibull, event="w"), "event must be 0 or 1"),
    "censoring without survival": (made(family=fj.binned(families.normal, [0.0, 1.0, 2.0]), event="w"), "binned.* has neither log_cdf nor log_survival"),
    "exposure without log": (made(family=families.normal, exposure="time"), "belongs to a log link.* is 'identity'"),
    "negative exposure": (made(exposure="x"), "the exposure must be positive; in row"),
    "a link without value": (made("y ~ x", families.normal, COUNTS.assign(y=-1.0), links="log"), "'log' of `loc` has no linear predictor"),
    "unknown groups": (lambda: fj.formula(*POISSON).fit_batch(by="gens"), "no column 'gens', by which.*Did you mean 'gene'"),
    "groups without a table": (lambda: fj.fit_batch(density, None, COUNTS["y"].to_numpy(), by="gene"), "neither data nor given is a table"),
    "groups of another length": (lambda: fj.fit_batch(families.poisson, None, COUNTS["y"], by=np.arange(3)), "by has 3 labels"),
    "an offset that is not a number": (made(offset=np.where(np.arange(N) == 4, np.nan, 0.0)), "missing values in 1 of 90 rows: 1 in 'offset='"),
    "an offset that is infinite": (made(offset=np.where(np.arange(N) == 4, np.inf, 0.0)), "offset must be finite; in row 4 it is not"),
    "groups and axes": (lambda: fj.fit_batch(families.poisson, None, COUNTS["y"], by="gene", data_axis=1), "by= makes the axes"),
    "groups of another index": (lambda: fj.fit_batch(families.poisson, None, COUNTS["y"], by=COUNTS["gene"][::-1]), "data and by have different index labels"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_with_what_to_do(name):
    act, words = BAD[name]
    with pytest.raises((ValueError, TypeError), match=words):
        act()


UNSEEN = {
    "a level": (COUNTS.assign(batch="z"), "column 'batch' of the table has levels that the fit has not seen: 'z'. It was fitted to 'u', 'v'"),
    "a column": (COUNTS[["x"]], "the table lacks the column 'batch'"),
    "a value": (HOLES, "missing values in 2 of 90 rows"),
    "text": (COUNTS.assign(x="one"), "column 'x' of the table holds text, but held numbers"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSEEN)
def test_what_another_table_lacks_is_named(name, poisson_formula):
    table, words = UNSEEN[name]
    with pytest.raises((ValueError, TypeError), match=words):
        poisson_formula.predictor.covariates(table)


def test_a_response_outside_the_support_and_collinear_terms_have_their_status():
    negative = fj.formula("y ~ x", families.poisson, COUNTS.assign(y=COUNTS["y"].where(COUNTS.index != 4, -1))).fit()
    assert negative.status == fj.Status.BAD_START
    assert "observation 4" in negative.diagnosis()
    twice = fj.formula("y ~ x + I(2 * x)", families.poisson, COUNTS).fit()
    assert twice.status == fj.Status.SINGULAR_INFORMATION
    assert "x -0.5 I(2 * x)" in twice.diagnosis()
