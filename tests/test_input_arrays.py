"""What users hand over: masks, byte orders, complex numbers, integers, data frames and their indices, at every entry point."""

import re
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from helpers import some_of
from jax.scipy.stats import norm

import fisher_jax as fj
from fisher_jax.fitting.batch import check_starts
from fisher_jax.models.dataset import Dataset, check_dataset, check_datasets
from fisher_jax.models.model import flatten_parameters

RNG = np.random.default_rng(3)
Z = RNG.normal(size=12)
Y = 1.0 + 0.5 * Z + RNG.normal(size=12)
WEIGHTS = np.where(np.isin(np.arange(12), (2, 7)), 0.0, 1.0)
START = {"at_zero": 0.0, "slope": 0.0}
UNDER = {"a fill value": -999.0, "NaN": np.nan, "infinity": np.inf}


def line(params, y, z):
    return norm.logpdf(y, params["at_zero"] + params["slope"] * z, 1.0)


LINE = fj.Model(line)
FLAT = fj.Model(line, constraints={"slope": fj.fixed})


def fitted(start, y, z, weights):
    return fj.fit(LINE, start, y, given=z, weights=weights)


def stacked(part):
    return None if part is None else part[None]


def streamed(start, y, z, weights):
    with tempfile.TemporaryDirectory() as folder:
        result = fj.fit_stream(
            LINE, start, stacked(y), f"{folder}/fits.zarr", given=stacked(z), given_axis=0, weights=stacked(weights)
        )
        return result.to_columns()


def operator(start, y, z, weights):
    found = fj.information_operator(LINE, start, kind="observed", data=y, given=z, weights=weights)
    return found @ jax.tree.map(jnp.ones_like, START)


# What takes data, as a function of parameters, data, covariates and weights.
ENTRIES = {
    "fit": lambda *a: fitted(*a).to_frame().to_numpy(),
    "fit_batch": lambda p, y, z, w: fj.fit_batch(
        LINE, p, stacked(y), given=stacked(z), given_axis=0, weights=stacked(w)
    ).to_columns(),
    "fit_batch of a list": lambda p, y, z, w: fj.fit_batch(
        LINE, p, [y], given=[z], weights=None if w is None else [w]
    ).to_columns(),
    "fit_stream": streamed,
    "log_likelihood": lambda p, y, z, w: fj.log_likelihood(LINE, p, y, given=z, weights=w),
    "score": lambda p, y, z, w: fj.score(LINE, p, y, given=z, weights=w),
    "hessian": lambda p, y, z, w: fj.hessian(LINE, p, y, given=z, weights=w),
    "observed_information": lambda p, y, z, w: fj.observed_information(LINE, p, y, given=z, weights=w).matrix,
    "empirical_fisher": lambda p, y, z, w: fj.empirical_fisher(LINE, p, y, given=z, weights=w).matrix,
    "information_operator": operator,
    "wald_test": lambda *a: fj.wald_test(fitted(*a), {"slope": 0.0}).p_value,
    "likelihood_ratio_test": lambda *a: fj.likelihood_ratio_test(fitted(*a), {"slope": 0.0}).p_value,
    "score_test": lambda p, y, z, w: fj.score_test(fj.fit(FLAT, p, y, given=z, weights=w), "slope").p_value,
    "bootstrap": lambda *a: fj.bootstrap(fitted(*a), jax.random.key(0), 20).replicates(),
}
WITH_DATA = [name for name in ENTRIES if not name.endswith("_test") and name != "bootstrap"]  # the others take fits


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12)


def masked(array, under=np.nan, rows=(2, 7)):
    mask = np.isin(np.arange(len(array)), rows)
    return np.ma.array(np.where(mask, under, array), mask=mask)


@pytest.mark.parametrize("name", some_of(ENTRIES, *WITH_DATA))
def test_a_masked_row_has_weight_zero(name):
    assert_same(ENTRIES[name](START, masked(Y), Z, None), ENTRIES[name](START, Y, Z, WEIGHTS))


@pytest.mark.parametrize("under", UNDER)
def test_what_lies_under_a_mask_does_not_reach_the_numbers(under):
    kept = WEIGHTS > 0
    expected = fitted(START, Y[kept], Z[kept], None)
    for y, z in (
        (masked(Y, UNDER[under]), Z),
        (Y, masked(Z, UNDER[under])),
        (masked(Y, UNDER[under], 2), masked(Z, UNDER[under], 7)),
    ):
        fit = fitted(START, y, z, None)
        assert_same(fit.params, expected.params)
        assert_same(fit.covariance(), expected.covariance())
        assert fit.num_observations == 10
        assert fit.num_masked == 2


def test_each_data_set_of_a_batch_has_its_own_masked_rows_and_the_reports_count_them():
    y = np.ma.stack([masked(Y, rows=()), masked(Y, rows=(2, 7)), masked(Y, rows=(0, 1, 11))])
    z = masked(Z, rows=7)
    fits = fj.fit_batch(LINE, START, y, given=z)
    assert fits.num_masked.tolist() == [1, 2, 4]
    for k, left_out in enumerate([(7,), (2, 7), (0, 1, 7, 11)]):
        kept = ~np.isin(np.arange(12), left_out)
        assert_same(fits[k].params, fitted(START, Y[kept], Z[kept], None).params)
    assert "7 rows of 3 data sets, left out" in str(fits.summary())
    assert "2 rows, left out" in str(fits[1].summary())
    listed = fj.fit_batch(LINE, START, list(y), given=[z] * 3)
    assert listed.num_masked.tolist() == [1, 2, 4]
    assert_same(listed.params, fits.params)


def test_weights_and_masks_go_together_and_a_masked_column_leaves_out_the_row():
    def two(params, y):
        return line(params, y[0], y[1])

    both = np.ma.array(np.column_stack([Y, Z]), mask=np.zeros((12, 2), bool))
    both[2, 0] = both[7, 1] = np.ma.masked
    weights = np.arange(1.0, 13.0)
    assert_same(
        fj.score(two, START, both, weights=weights),
        fj.score(two, START, np.column_stack([Y, Z]), weights=weights * WEIGHTS),
    )


def test_the_models_own_start_does_not_see_what_lies_under_a_mask():
    seen = []
    model = fj.Model(line, initial=lambda y, z: seen.append((y, z)) or START)
    fj.fit(model, None, masked(Y), given=Z)
    fj.fit_batch(model, None, [masked(Y, np.inf, (0, 1))], given=[Z], max_steps=0)
    np.testing.assert_array_equal(seen[0][0], Y[[0, 1, 1, 3, 4, 5, 6, 6, 8, 9, 10, 11]])
    np.testing.assert_array_equal(seen[1][0], Y[[2, 2, *range(2, 12)]])
    whole = check_datasets(model, np.ma.stack([masked(Y), masked(Y, np.inf, (0, 1))]), Z, None, (0, None, 0), 0)
    np.testing.assert_array_equal(whole.data, [seen[0][0], seen[1][0]])


def test_a_mask_under_which_nothing_lies_changes_nothing():
    dataset = check_dataset(LINE, np.ma.array(Y, mask=np.zeros(12, bool)), Z, None)
    assert dataset.weights is None
    assert type(dataset.data) is np.ndarray


def test_data_sets_that_are_masked_altogether_have_no_observations_whatever_lies_under():
    y = np.ma.array([Y, np.full(12, -999.0), np.full(12, np.nan)], mask=[np.zeros(12), np.ones(12), np.ones(12)])
    fits = fj.fit_batch(LINE, START, y, given=Z)
    assert fits.status.tolist() == [fj.Status.CONVERGED, *[fj.Status.TOO_FEW_OBSERVATIONS] * 2]


def autoregression(params, y):
    return norm.logpdf(y[1:], params * y[:-1], 1.0)


CANDIDATE = np.ma.array(np.ones((12, 1)), mask=np.eye(12, 1))
MASKED_WHERE_IT_MEANS_NOTHING = {
    "weights": (lambda: fitted(START, Y, Z, masked(np.ones(12))), "fit: weights: 2 of 12 entries are masked, the first at .2.. Give.*weight zero"),
    "weights of a batch": (lambda: fj.fit_batch(LINE, START, Y[None], given=Z, weights=masked(np.ones(12))[None]), "fit_batch: weights: 2 of 12 entries are masked"),
    "parameters": (lambda: fitted(START | {"slope": np.ma.masked_all(())}, Y, Z, None), "fit: parameter `slope`: 1 of 1 entries are masked. Give a number"),
    "starts of a batch": (lambda: fj.fit_batch(LINE, START | {"slope": np.ma.masked_all(1)}, Y[None], given=Z, start_axis={"at_zero": None, "slope": 0}), "fit_batch: parameter `slope`: 1 of 1"),
    "a series": (lambda: fj.fit(fj.dependent(autoregression), 0.0, masked(Y)), "fit: the data are masked, and the model is `dependent`"),
    "a series in a batch": (lambda: fj.fit_batch(fj.dependent(autoregression), 0.0, [masked(Y)]), "fit_batch: the data are masked, and the model is `dependent`"),
    "covariates without weights": (lambda: fj.fisher_information(fj.linked(fj.families.normal, lambda p, z: {"loc": p * z, "scale": 1.0}), 0.0, given=masked(Z)), "fisher_information: given: 2 of 12 entries are masked.*Leave these rows out"),
    "all values": (lambda: fj.Enumeration(np.ma.array([0, 1], mask=[0, 1])), "Enumeration: values: 1 of 2 entries"),
    "candidates": (lambda: fj.score_test(fitted(START, Y, Z, None), candidates=CANDIDATE, enters=lambda p, y, z, o: line(p, y - o, z)), "score_test: candidates: 1 of 12 entries"),
    "clusters": (lambda: fj.robust(fitted(START, Y, Z, None), clusters=np.ma.array(np.arange(12), mask=np.eye(12)[3])), "robust: clusters: 1 of 12 entries"),
    "rows of moments": (lambda: fj.moments.moments(masked(Y)[:, None]), "moments: x: 2 of 12 entries"),
    "weights of moments": (lambda: fj.moments.moments(Y[:, None], weights=masked(Y)), "moments: weights: 2 of 12 entries"),
}  # fmt: skip


@pytest.mark.parametrize("name", MASKED_WHERE_IT_MEANS_NOTHING)
def test_a_mask_is_an_error_where_it_cannot_mean_weight_zero(name):
    act, words = MASKED_WHERE_IT_MEANS_NOTHING[name]
    with pytest.raises(ValueError, match=words):
        act()


@pytest.mark.parametrize("name", some_of(ENTRIES, *WITH_DATA))
def test_numbers_in_the_other_byte_order_are_the_same_numbers(name):
    start = {key: np.array(value, ">f8") for key, value in START.items()}
    swapped = (part.astype(part.dtype.newbyteorder(">")) for part in (Y, Z, WEIGHTS))
    assert_same(ENTRIES[name](start, *swapped), ENTRIES[name](START, Y, Z, WEIGHTS))


def test_long_doubles_are_rounded_to_what_jax_holds():
    assert_same(*(fj.score(LINE, START, y, given=Z) for y in (Y.astype(np.longdouble), Y)))


@pytest.mark.parametrize("name", WITH_DATA)
def test_complex_numbers_are_refused_before_their_imaginary_part_is_lost(name):
    for k, argument in enumerate(("data", "given", "weights")):
        given = [part + 1j if i == k else part for i, part in enumerate((Y, Z, WEIGHTS))]
        with pytest.raises(
            TypeError, match=rf"{argument}.*: complex numbers \(complex128\).*Give their real and imaginary parts"
        ):
            ENTRIES[name](START, *given)
    with pytest.raises(TypeError, match="parameter `slope` has dtype complex128; parameters are real numbers"):
        ENTRIES[name](START | {"slope": np.array(1j)}, Y, Z, WEIGHTS)


@pytest.mark.parametrize("name", WITH_DATA)
def test_integer_arrays_among_the_parameters_are_taken_like_pythons_integers(name):
    expected = ENTRIES[name](START, Y, Z, WEIGHTS)
    for zero in (np.int64(0), np.array(0, np.int32), jnp.array(0)):
        assert_same(ENTRIES[name](START | {"slope": zero}, Y, Z, WEIGHTS), expected)


def test_starts_of_integers_are_starts():
    starts = {"at_zero": np.arange(3), "slope": np.zeros(3, int)}
    y, z, weights = (np.stack([part] * 3) for part in (Y, Z, WEIGHTS))
    assert fj.fit_batch(LINE, starts, y, given=z, weights=weights, given_axis=0, start_axis=0).converged.all()


def test_an_integer_makes_the_precision_the_default_one_unless_it_is_fixed():
    mixed = {"at_zero": np.float32(0), "slope": np.int64(0)}
    assert flatten_parameters(LINE, mixed)[0].dtype == np.float64
    layout, values = flatten_parameters(FLAT, mixed)
    assert layout.dtype == np.float32
    assert values[1].dtype == np.int64


ORDER = np.argsort(Y)


@pytest.mark.parametrize("name", [name for name in WITH_DATA if name != "fit_stream"])
def test_pandas_indices_that_differ_are_an_error_that_shows_the_first_difference(name):
    entry = ENTRIES[name] if name != "fit_batch" else frames_in_a_batch
    y, z, w = (pd.Series(part, index=np.arange(100, 112)) for part in (Y, Z, WEIGHTS))
    with pytest.raises(
        ValueError,
        match=rf"data.* and given.* have different index labels for the observations, first at position 0: {100 + ORDER[0]} in data.*, 100 in given",
    ):
        entry(START, y.iloc[ORDER], z, None)
    with pytest.raises(
        ValueError,
        match=r"data.* and weights.* have different index labels.*position 5: 105 in data.*, 106 in weights.*to_numpy",
    ):
        entry(START, y, z, w.iloc[[0, 1, 2, 3, 4, 6, 5, 7, 8, 9, 10, 11]])
    assert_same(
        entry(START, *(part.iloc[ORDER] for part in (y, z, w))),
        ENTRIES[name](START, Y[ORDER], Z[ORDER], WEIGHTS[ORDER]),
    )


def frames_in_a_batch(start, y, z, w):
    """One data set in the one column of a frame."""
    y, w = (None if part is None else part.to_frame("site") for part in (y, w))
    z = z.to_frame("site")
    return fj.fit_batch(LINE, start, y, given=z, weights=w, data_axis=1, given_axis=1, weights_axis=1).to_columns()


def test_data_sets_have_labels_too():
    sites = pd.DataFrame([Y, Y], index=["a", "b"])
    weights = pd.DataFrame(np.ones((2, 12)), index=["b", "a"])
    with pytest.raises(
        ValueError,
        match="data and weights have different index labels for the data sets, first at position 0: a in data, b in weights",
    ):
        fj.fit_batch(LINE, START, sites, given=Z, weights=weights)
    dates = weights.rename(columns={3: 99}).set_axis(["a", "b"])
    with pytest.raises(ValueError, match="different column labels for the observations, first at position 3"):
        fj.fit_batch(LINE, START, sites, given=Z, weights=dates)
    mixed = {"site": sites, "arrow": pa.table({str(k): [0.0, 0.0] for k in range(12)})}  # which has no labels
    with pytest.raises(ValueError, match="data site and weights have different index labels for the data sets"):
        check_datasets(LINE, mixed, Z, weights, (0, None, 0), 0)
    # Of the names of columns and the index of rows nothing is known.
    check_datasets(LINE, sites, pd.Series(Z, index=dates.columns), None, (0, None, 0), 0)


def test_a_stream_takes_no_labels(tmp_path):
    words = r"source is a DataFrame of pandas, whose index a stream does not look at. Give arrays, by .to_numpy\(\)"
    with pytest.raises(TypeError, match=words):
        fj.fit_stream(LINE, START, pd.DataFrame([Y]), tmp_path / "fits.zarr", given=Z)


def by_columns(params, y, z):
    return norm.logpdf(y, z @ params, 1.0)


COLUMNS = pd.DataFrame({"one": np.ones(12), "z": Z})


def by_name(params, y, z):
    return norm.logpdf(y, params[0] * z["one"] + params[1] * z["z"], 1.0)


TABLES = {
    "pandas": (pd.Series(Y), COLUMNS),
    "polars": (pl.Series(Y), pl.from_pandas(COLUMNS)),
    "pyarrow": (pa.chunked_array([Y]), pa.table({"one": np.ones(12), "z": Z})),
    "truths": (pd.Series(Y), COLUMNS.assign(one=True)),
    "integers that may be missing": (pd.Series(Y), COLUMNS.assign(one=pd.array([1] * 12, dtype="Int64"))),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_a_dictionary_of_its_columns(name):
    y, table = TABLES[name]
    expected = fj.score(by_name, np.zeros(2), Y, given={"one": np.ones(12), "z": Z})
    assert_same(fj.score(by_name, np.zeros(2), y, given=table), expected)


def test_tables_are_data_as_well_as_covariates_and_shared_by_many_data_sets():
    def of_columns(params, y):
        return by_name(params, y["y"], y)

    expected = fj.score(by_name, np.zeros(2), Y, given=COLUMNS)
    assert_same(fj.score(of_columns, np.zeros(2), COLUMNS.assign(y=Y)), expected)
    fits = fj.fit_batch(by_name, np.zeros(2), np.stack([Y, 2 * Y]), given=COLUMNS)
    assert_same(fits[0].params, fj.fit(by_name, np.zeros(2), Y, given=COLUMNS).params)


NO_NUMBERS = "holds no numbers .String.. Leave the column out, or encode it: fisher_jax.formula"
UNUSABLE = {
    "a column of text": (lambda: COLUMNS.assign(city="Bern"), f"fit: given, column 'city', {NO_NUMBERS}"),
    "a column of Arrow's": (lambda: pa.table({"one": np.ones(12), "city": ["Bern"] * 12}), f"fit: given, column 'city', {NO_NUMBERS}"),
    "categories": (lambda: COLUMNS.assign(city=pd.Categorical(["Bern"] * 12)), "column 'city', holds no numbers .Categorical"),
    "objects": (lambda: COLUMNS.assign(z=COLUMNS["z"].astype(object)), "column 'z', holds no numbers .Object.*astype.float"),
    "times": (lambda: COLUMNS.assign(day=pd.Timestamp("2020-01-01")), "column 'day', holds times .*as the days since a date"),
    "two of one name": (lambda: pd.DataFrame(np.ones((12, 2)), columns=["z", "z"]), "given: there are several columns 'z'"),
    "columns without names": (lambda: pd.DataFrame(np.ones((12, 2))), "given has a column named 0, which is no text.*to_numpy"),
    "a lazy table": (lambda: pl.from_pandas(COLUMNS).lazy(), "given is polars's LazyFrame, which is not in memory. Collect it"),
    "one of several": (lambda: {"z": Z, "city": pd.Series(["Bern"] * 12)}, "fit: given city holds no numbers .String"),
    "records": (lambda: np.zeros(12, [("flux", ">f4"), ("error", ">f4")]), "fit: given: a table of records with the fields flux, error.*Give its columns, as in {'flux': table"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_holds_no_numbers_is_named(name):
    act, words = UNUSABLE[name]
    with pytest.raises((TypeError, ValueError), match=words):
        fj.fit(by_columns, np.zeros(2), Y, given=act())


HOLES = {
    "truths": (lambda: COLUMNS.assign(dry=pd.array([True, None] * 6, dtype="boolean")), "given has missing values in 6 of 12 rows: 6 in 'dry'"),
    "several": (lambda: pl.DataFrame({"one": [None, *np.ones(11)], "z": [np.nan, np.nan, *Z[2:]]}), "given has missing values in 2 of 12 rows: 1 in 'one', 2 in 'z'"),
    "Arrow": (lambda: pa.table({"one": [None, *np.ones(11)], "z": Z}), "given has missing values in 1 of 12 rows: 1 in 'one'"),
    "a column": (lambda: {"one": Z, "z": pd.Series([np.nan, *Z[1:]])}, "given z has 1 missing value of 12"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOLES)
def test_missing_values_of_a_table_are_counted_by_column(name):
    act, words = HOLES[name]
    with pytest.raises(ValueError, match=f'fit: {words}.*Leave these rows out, by missing="drop"'):
        fj.fit(by_name, np.zeros(2), Y, given=act())


def test_missing_values_are_left_out_on_request_as_masked_ones_are():
    table = pl.DataFrame({"one": np.ones(12), "z": [None, *Z[1:]]})
    fit = fj.fit(by_name, np.zeros(2), pd.Series(Y).mask(np.arange(12) == 4), given=table, missing="drop")
    kept = ~np.isin(np.arange(12), (0, 4))
    assert_same(fit.params, fj.fit(by_name, np.zeros(2), Y[kept], given=COLUMNS[kept]).params)
    assert fit.num_masked == 2
    with pytest.raises(ValueError, match="missing='dorp' is unknown"):
        fj.fit(by_name, np.zeros(2), Y, given=table, missing="dorp")


def test_missing_values_in_one_of_many_data_sets_are_left_to_its_status():
    sites = pd.DataFrame([Y, np.where(np.arange(12) == 3, np.nan, Y)])
    start = {"at_zero": 0.0, "slope": 0.0}
    assert fj.fit_batch(LINE, start, sites, given=Z).converged.tolist() == [True, False]
    assert fj.fit_batch(LINE, start, [sites.loc[0], sites.loc[1]], given=[Z, Z]).converged.tolist() == [True, False]


def test_a_density_is_told_whether_it_is_given_an_array_or_a_table():
    words = r"log_density raised TypeError at line \d+ of test_input_arrays.py.*string indexing.*'one'.*give a table, or a dictionary"
    with pytest.raises(TypeError, match=words):
        fj.fit(by_name, np.zeros(2), Y, given=COLUMNS.to_numpy())
    with pytest.raises(
        TypeError, match=r"A table is passed on as a dictionary of its columns.*to_numpy\(\) makes a matrix"
    ):
        fj.fit(by_columns, np.zeros(2), Y, given=COLUMNS)


def test_starts_in_a_stack_without_their_axis_are_no_parameters_of_one_fit():
    many = np.random.default_rng(0).normal(size=(50_000, 3))
    starts = {"loc": np.zeros(50_000), "scale": np.ones(50_000)}
    model = fj.Model(lambda p, y: norm.logpdf(y, p["loc"], p["scale"]), constraints={"scale": fj.positive})
    with pytest.raises(
        ValueError, match=r"arrays of shape \(50000,\), \(50000,\), and there are 50000 data sets.*Give start_axis=0"
    ):
        fj.fit_batch(model, starts, many)
    with pytest.raises(ValueError, match=re.escape("Give start_axis={'loc': 0, 'scale': None}")):
        fj.fit_batch(model, starts | {"scale": 1.0}, many)
    with pytest.raises(ValueError, match=r"there are 3 data sets.*Give start_axis=0"):
        fj.fit_batch(model, {"loc": np.zeros(3), "scale": np.ones(3)}, [Y, Y[:5], Y[:7]])


def test_parameters_as_many_as_there_are_data_sets_are_still_parameters():
    check_starts(fj.Model(by_columns), np.zeros(2), None, Dataset(Y, COLUMNS.to_numpy()), 2)


def test_plain_arrays_pass_untouched():
    y, z, w = Y[None], Z, WEIGHTS[None]
    one = check_dataset(LINE, Y, Z, WEIGHTS)
    assert one.data is Y
    assert one.given is Z
    assert one.weights is WEIGHTS
    many = check_datasets(LINE, y, z, w, (0, None, 0), 0)
    assert np.shares_memory(many.data, y)
    assert many.given is z
    assert np.shares_memory(many.weights, w)
    device = jnp.asarray(Y)
    assert check_dataset(LINE, device, Z, None).data is device
