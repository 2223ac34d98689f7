"""Effects in formulas: published mixed models from any table, closed forms, quadrature, groups of any size and order, bad input."""

import copy
import dataclasses
import itertools
import pickle
import warnings

import data_sets
import jax
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.integrate
import scipy.stats
import statsmodels.formula.api as smf
from scipy.special import gammaln

import fisher_jax as fj
from fisher_jax import families
from fisher_jax.fitting.result import Origin
from fisher_jax.frames.effect_terms import split_effects

CBPP = pd.DataFrame(data_sets.CBPP)
WITH_CATEGORIES = CBPP.assign(herd=CBPP["herd"].map("{:02d}".format).astype("category"))
CBPP_FORMULA = ("incidence ~ C(period) + (1 | herd)", families.binomial)


def cbpp(table=CBPP, text=CBPP_FORMULA[0], **options):
    return fj.formula(text, families.binomial, table, trials="size", **options)


def same_arrays(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module")
def cbpp_fit():
    return cbpp().fit()


def test_cbpp_has_the_laplace_estimates_and_errors_of_glmmtmb(cbpp_fit):
    estimates = [-1.3985325, -0.99233229, -1.1286713, -1.5803137, np.exp(-0.44275947)]
    errors = np.array([0.23247205, 0.30664249, 0.32663781, 0.4274366, 0.27802104 * estimates[-1]])
    frame = cbpp_fit.to_frame()
    assert cbpp_fit.converged
    assert list(frame.index) == [
        "Intercept", "C(period)[T.2]", "C(period)[T.3]", "C(period)[T.4]", "sd[Intercept | herd]",
    ]  # fmt: skip
    assert np.all(np.abs(frame["estimate"] - estimates) < 1e-4 * errors)
    np.testing.assert_allclose(frame["standard_error"], errors, rtol=1e-4)
    np.testing.assert_allclose(cbpp_fit.log_likelihood, -92.02628186, atol=1e-6)


def test_cbpp_has_the_quadrature_of_lme4():
    """The log-likelihood by 25 nodes at the estimates of lme4, which leaves out the constant −41.97835377."""
    mixed = cbpp(nodes=25)
    params = {"logit": [-1.3992304, -0.99140367, -1.1278195, -1.5794707], "sd": {"herd": {"Intercept": 0.647518479}}}
    params = jax.tree.map(np.asarray, params, is_leaf=lambda leaf: isinstance(leaf, list | float))
    value = fj.log_likelihood(mixed.model, params, mixed.data, given=mixed.given)
    np.testing.assert_allclose(value, -91.98336904, atol=1e-6)


TABLES = {
    "polars": lambda: pl.from_pandas(CBPP),
    "polars with categories": lambda: pl.from_pandas(WITH_CATEGORIES),
    "pyarrow": lambda: pa.Table.from_pandas(CBPP),
    "pyarrow with a dictionary": lambda: pa.Table.from_pandas(WITH_CATEGORIES),
    "a dictionary of lists": lambda: CBPP.to_dict("list"),
    "an index of labels": lambda: CBPP.set_index(np.arange(100, 156)),
    "text": lambda: CBPP.assign(herd=CBPP["herd"].map("{:02d}".format)),
    "whole numbers as floats": lambda: CBPP.astype(float),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_every_kind_of_table_gives_the_same_groups(name):
    ours, other = cbpp(), cbpp(TABLES[name]())
    same_arrays((ours.data, ours.given, ours.start), (other.data, other.given, other.start))
    assert [float(label) for label in other.given.labels] == list(range(1, 16))


def test_rows_in_another_order_make_the_same_groups():
    ours, other = cbpp(), cbpp(CBPP.sample(frac=1.0, random_state=5))
    for one, another in zip(_rows_of_groups(ours), _rows_of_groups(other), strict=True):
        np.testing.assert_array_equal(np.sort(one, axis=0), np.sort(another, axis=0))


def _rows_of_groups(formula):
    """Of each group the response, the design and the trials of its rows."""
    given, counts = formula.given.rows, formula.given.weights
    for k, count in enumerate(counts.sum(axis=1).astype(int)):
        yield np.column_stack([formula.data[k], given["logit"][k], given["trials"][k]])[:count] @ 10.0 ** np.arange(6)


def test_a_formula_prints_its_effects_and_counts_rows_and_groups(cbpp_fit):
    assert cbpp_fit.num_observations == 15
    text = str(cbpp())
    assert "Observations  56 rows in 15 groups of herd" in text
    assert any(line.split() == ["effects", "|", "herd", "1", "Intercept"] for line in text.splitlines())


def test_labels_of_groups_and_the_table_stay_with_the_fit(cbpp_fit):
    again = pickle.loads(pickle.dumps(cbpp_fit))
    np.testing.assert_array_equal(again.origin.dataset.column("herd"), np.arange(1, 16))
    model = cbpp().model
    assert model == copy.deepcopy(model) == again.origin.model
    assert model != cbpp(text="incidence ~ C(period) + (1 + C(period) || herd)").model


def test_clusters_are_columns_that_are_the_same_within_groups(cbpp_fit):
    with pytest.raises(ValueError, match=r"robust: column 'size' .* has several values in 1[0-9] of 15 groups"):
        fj.robust(cbpp_fit, clusters="size")


def test_a_wald_test_of_a_variance_of_zero_warns(cbpp_fit):
    with pytest.warns(
        fj.FitWarning, match=r"puts `sd.Intercept . herd.` on the boundary of its range.*likelihood_ratio_test"
    ):
        test = fj.wald_test(cbpp_fit, "sd[Intercept | herd] = 0")
    assert "boundary" in str(test)


def test_rows_that_stand_for_several_are_not_drawn_as_one(cbpp_fit):
    """What is drawn for such a row would count twice, and replicates would vary by too much."""
    model, dataset = cbpp_fit.origin
    given = dataset.given.with_weights(2.0 * np.asarray(dataset.given.weights))
    fit = dataclasses.replace(cbpp_fit, origin=Origin(model, dataclasses.replace(dataset, given=given)))
    for draw in (
        lambda: fj.bootstrap(fit, jax.random.key(0), 10, method="parametric"),
        lambda: fj.likelihood_ratio_test(fit, "sd[Intercept | herd] = 0", key=jax.random.key(0)),
        lambda: fj.check_laplace(fit, key=jax.random.key(0)),
        lambda: fj.fisher_information(model, fit.params, fj.MonteCarlo(jax.random.key(0), 10), given=given),
        lambda: fj.check_score_mean(model, fit.params, fj.MonteCarlo(jax.random.key(0), 10), given=given),
    ):
        with pytest.raises(ValueError, match=r"rows have weights such as 2.*in the table once for each time"):
            draw()


# Linear mixed models --------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(3)
SIZES = RNG.integers(2, 9, 30)
SUBJECT = np.repeat(np.arange(30), SIZES)
X = RNG.normal(size=len(SUBJECT))
EFFECTS = RNG.normal(size=(30, 2)) @ np.array([[1.5, 0.4], [0.0, 0.7]])
LINEAR = pd.DataFrame(
    {
        "y": 10 + 2 * X + EFFECTS[SUBJECT, 0] + EFFECTS[SUBJECT, 1] * X + RNG.normal(size=len(X)),
        "x": X,
        "subject": [f"s{k}" for k in SUBJECT],
        "half": np.where(np.arange(len(X)) % 2 == 0, "a", "b"),
        "w": RNG.integers(1, 3, len(X)),
        "shift": RNG.normal(size=len(X)),
    }
).sample(frac=1.0, random_state=1)


@pytest.fixture(scope="module")
def linear_fit():
    return fj.formula("y ~ x + (x | subject)", families.normal, LINEAR).fit()


def test_correlated_slopes_are_those_of_statsmodels(linear_fit):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of optimisers that it tries in turn
        expected = smf.mixedlm("y ~ x", LINEAR, groups=LINEAR["subject"], re_formula="~ x").fit(reml=False)
    errors, params = linear_fit.standard_errors(), linear_fit.params
    assert linear_fit.converged
    np.testing.assert_allclose(linear_fit.log_likelihood, expected.llf, atol=1e-6)
    assert np.all(np.abs(params["loc"] - expected.fe_params) < 1e-4 * errors["loc"])
    assert np.abs(params["scale"] - expected.scale**0.5) < 1e-4 * errors["scale"]
    assert np.all(np.abs(params["covariance"] - expected.cov_re) < 1e-4 * errors["covariance"])


def test_correlated_effects_print_their_variances_standard_deviations_and_correlation(linear_fit):
    variances = linear_fit.params["covariance"]
    assert linear_fit.names[3:] == (
        "variance[Intercept | subject]",
        "covariance[Intercept, x | subject]",
        "covariance[x, Intercept | subject]",
        "variance[x | subject]",
    )
    text = " ".join(str(linear_fit).split())
    deviations = np.sqrt(np.diagonal(variances))
    assert f"subject.Intercept {deviations[0]:.5g}, subject.x {deviations[1]:.5g}" in text
    assert f"subject.Intercept and subject.x {variances[0, 1] / np.prod(deviations):.4f}" in text


def marginal_of_normal(table, offset, fixed, columns, covariance, scale):
    """The closed form: y of each group is normal with covariance Z Σ Zᵀ + scale² I."""
    total = 0.0
    for _, rows in table.groupby("group"):
        design, z = fixed(rows), columns(rows)
        mean = offset(rows) + design @ np.array([9.0, 1.5])[: design.shape[1]]
        spread = z @ covariance @ z.T + scale**2 * np.eye(len(rows))
        total += scipy.stats.multivariate_normal.logpdf(rows["y"], mean, spread)
    return total


ONE = lambda rows: np.ones((len(rows), 1))  # noqa: E731
LINE = lambda rows: np.column_stack([np.ones(len(rows)), rows["x"]])  # noqa: E731
HALVES = lambda rows: np.column_stack([rows["half"] == half for half in "ab"]).astype(float)  # noqa: E731
CURVE = lambda rows: np.exp(rows[["x"]].to_numpy())  # noqa: E731
NONE = lambda rows: 0.0  # noqa: E731
# The effects, the fixed part, the columns that multiply effects, the covariance at which the density is compared, and options.
CLOSED = {
    "independent slopes": ("x + (1 + x || group)", LINE, LINE, [[1.69, 0.0], [0.0, 0.49]], {}),
    "correlated slopes": ("(x | group) + x", LINE, LINE, [[1.69, 0.5], [0.5, 0.49]], {}),
    "categories": ("(0 + half | group)", ONE, HALVES, [[1.69, 0.5], [0.5, 0.49]], {}),
    "a function": ("x + (0 + np.exp(x) | group)", LINE, CURVE, [[0.49]], {"offset": "shift", "weights": "w"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CLOSED)
def test_normal_effects_have_the_closed_form(name):
    text, fixed, columns, covariance, options = CLOSED[name]
    table, covariance = LINEAR.rename(columns={"subject": "group"}), np.array(covariance)
    mixed = fj.formula(f"y ~ {text}", families.normal, table, **options)
    params = {"loc": np.array([9.0, 1.5])[: mixed.start["loc"].size], "scale": np.array(1.2)}
    if "covariance" in mixed.start:
        params["covariance"] = covariance
    else:
        deviations = np.sqrt(np.diagonal(covariance))
        params["sd"] = {"group": dict(zip(mixed.start["sd"]["group"], map(np.asarray, deviations), strict=True))}
    rows = table.loc[np.repeat(table.index, table["w"])] if "weights" in options else table
    offset = (lambda rows: rows["shift"].to_numpy()) if "offset" in options else NONE
    expected = marginal_of_normal(rows, offset, fixed, columns, covariance, 1.2)
    value = fj.log_likelihood(mixed.model, params, mixed.data, given=mixed.given)
    np.testing.assert_allclose(value, expected, rtol=1e-11)


def test_crossed_normal_effects_have_the_closed_form_and_levels_by_name():
    """y = X β + effects of subjects + correlated effects of blocks + noise, all rows jointly normal."""
    table = LINEAR.assign(block=np.arange(len(LINEAR)) % 5)
    mixed = fj.formula("y ~ x + (1 | subject) + (x | block)", families.normal, table)
    covariance = np.array([[1.0, 0.3], [0.3, 0.8]])
    params = {"loc": np.array([9.0, 1.5]), "scale": np.array(1.2), "covariance": {"block": covariance}}
    params["sd"] = {"subject": {"Intercept": np.array(0.9)}}
    design = LINE(table)
    same = {name: np.equal.outer(table[name].to_numpy(), table[name].to_numpy()) for name in ("subject", "block")}
    spread = 0.81 * same["subject"] + same["block"] * (design @ covariance @ design.T) + 1.44 * np.eye(len(table))
    expected = scipy.stats.multivariate_normal.logpdf(table["y"], design @ params["loc"], spread)
    value = fj.log_likelihood(mixed.model, params, mixed.data, given=mixed.given)
    np.testing.assert_allclose(value, expected, rtol=1e-11)
    new = {"x": [0.5, 0.5], "subject": ["s3", "s10"], "block": [4, 0]}
    covariates = mixed.predictor.covariates(new)
    assert covariates["block"].tolist() == [4, 0]
    assert [sorted(set(table["subject"]))[k] for k in covariates["subject"]] == ["s3", "s10"]
    with pytest.raises(ValueError, match="the factor subject has levels in the table that the fit has not seen: 's77'"):
        mixed.predictor.covariates({**new, "subject": ["s3", "s77"]})
    assert f"{len(table)} rows in 30 groups of subject, 5 groups of block" in str(mixed)


def test_a_slash_is_two_factors_of_which_one_is_nested():
    ours, other = (
        fj.formula(f"y ~ x + {text}", families.normal, LINEAR)
        for text in ("(1 | half/subject)", "(1 | half) + (1 | half:subject)")
    )
    same_arrays((ours.data, ours.given, ours.start), (other.data, other.given, other.start))
    assert ours.model == other.model
    codes = ours.given.rows["half:subject"][0]
    assert len(set(codes.tolist())) == len(set(LINEAR["half"] + LINEAR["subject"]))


def test_two_bars_are_two_terms():
    ours, other = (
        fj.formula(f"y ~ x + {text}", families.normal, LINEAR)
        for text in ("(x || subject)", "(1 | subject) + (0 + x | subject)")
    )
    same_arrays((ours.data, ours.given, ours.start), (other.data, other.given, other.start))
    assert ours.model.declarations == other.model.declarations


def test_combinations_of_columns_are_groups():
    """`g:h` are the groups of both columns, told apart by their labels."""
    mixed = fj.formula("y ~ x + (1 | subject:half)", families.normal, LINEAR)
    expected = sorted(set(LINEAR["subject"] + ", " + LINEAR["half"]))
    assert mixed.given.labels.tolist() == expected
    together = LINEAR.assign(both=LINEAR["subject"] + ", " + LINEAR["half"])
    other = fj.formula("y ~ x + (1 | both)", families.normal, together)
    same_arrays((mixed.data, mixed.given.rows["loc"]), (other.data, other.given.rows["loc"]))
    assert list(mixed.start["sd"]) == ["subject:half"]


def test_the_start_of_effects_has_the_units_of_the_response_and_the_covariates():
    ours = fj.formula("y ~ x + (x || subject)", families.normal, LINEAR).start["sd"]["subject"]
    scaled = LINEAR.assign(y=1000 * LINEAR["y"], x=LINEAR["x"] / 50)
    other = fj.formula("y ~ x + (x || subject)", families.normal, scaled).start["sd"]["subject"]
    np.testing.assert_allclose(other["Intercept"], 1000 * ours["Intercept"])
    np.testing.assert_allclose(other["x"], 50_000 * ours["x"])


# Other families, by adaptive quadrature of scipy ----------------------------------------------------------------------

SMALL = pd.DataFrame(
    {
        "y": RNG.negative_binomial(3, 0.4, 18),
        "x": RNG.normal(size=18),
        "time": RNG.uniform(0.5, 2.0, 18),
        "event": RNG.integers(0, 2, 18),
        "clinic": RNG.permutation(np.repeat(list("abcde"), [1, 3, 3, 5, 6])),
    }
)


# Written out, since scipy's distributions would take most of the time of the quadratures.
def terms_of_counts(rows, eta):
    """Negative binomial of size 2.5."""
    y, mean = rows["y"], np.exp(eta) * rows["time"]
    ways = gammaln(y + 2.5) - gammaln(2.5) - gammaln(y + 1.0)
    return ways + y * np.log(mean / (2.5 + mean)) - 2.5 * np.log1p(mean / 2.5)


def terms_of_times(rows, eta):
    """Weibull of shape 2.5: log S, with the logarithm of the hazard where the event was seen."""
    log_hazard = np.log(2.5) + 1.5 * np.log(rows["time"]) - 2.5 * eta
    return rows["event"] * log_hazard - (rows["time"] * np.exp(-eta)) ** 2.5


QUADRATURE = {
    "counts with an exposure": ("y", families.negative_binomial, "mean", "size", {"exposure": "time"}, terms_of_counts),
    "censored times": ("time", families.weibull, "scale", "shape", {"event": "event"}, terms_of_times),
}


@pytest.mark.parametrize("name", QUADRATURE)
def test_effects_of_other_families_are_integrated_out(name):
    response, family, main, other, options, terms = QUADRATURE[name]
    mixed = fj.formula(f"{response} ~ x + (1 | clinic)", family, SMALL, nodes=25, **options)
    deviation, total = 0.8, 0.0
    params = {main: np.array([0.3, -0.4]), other: np.array(2.5), "sd": {"clinic": {"Intercept": np.array(deviation)}}}
    for _, group in SMALL.groupby("clinic"):
        rows = {column: group[column].to_numpy() for column in ("y", "x", "time", "event")}

        def density(b, rows=rows):
            log_normal = -0.5 * (b / deviation) ** 2 - np.log(deviation * np.sqrt(2 * np.pi))
            return np.exp(np.sum(terms(rows, 0.3 - 0.4 * rows["x"] + b)) + log_normal)

        total += np.log(scipy.integrate.quad(density, -8, 8, epsabs=0, epsrel=1e-11, limit=200)[0])
    value = fj.log_likelihood(mixed.model, params, mixed.data, given=mixed.given)
    np.testing.assert_allclose(value, total, rtol=1e-8)


COUNTS = pd.DataFrame(
    [
        (gene, f"{gene}{k}", x)
        for gene, size in (("a", 7), ("b", 6), ("c", 7))
        for k in range(size)
        for x in RNG.normal(size=RNG.integers(2, 6))
    ],
    columns=["gene", "subject", "x"],
)
LEVELS = COUNTS.groupby("subject")["x"].transform(lambda x: RNG.normal(scale=0.8))
COUNTS["y"] = RNG.negative_binomial(4, 4 / (4 + np.exp(2.0 + 0.3 * COUNTS["x"] + LEVELS)))
COUNTS_FORMULA = "y ~ x + (1 | subject)"


def counts_by_gene(family):
    """With one row left out, whose covariate is missing."""
    return fj.formula(COUNTS_FORMULA, family, COUNTS.assign(x=COUNTS["x"].where(COUNTS.index != 2)), missing="drop")


def test_each_data_set_of_a_batch_has_its_own_groups(monkeypatch):
    """The log-likelihoods are those of a formula of each data set alone, whatever fills up groups and data sets."""
    calls = {}

    def fit_batch(*arguments, **options):
        calls.update(options, arguments=arguments)
        raise InterruptedError

    monkeypatch.setattr(fj.frames.formula, "fit_batch", fit_batch)
    with pytest.raises(InterruptedError):
        counts_by_gene(families.poisson).fit_batch(by="gene")
    model, start, data = calls["arguments"]
    np.testing.assert_array_equal(calls["weights"], [[1] * 7, [1] * 6 + [0], [1] * 7])
    given = jax.tree.map(lambda leaf: leaf[1], calls["given"])
    ours = fj.log_likelihood(model, start, data[1], given=given, weights=calls["weights"][1])
    alone = fj.formula(COUNTS_FORMULA, families.poisson, COUNTS[COUNTS["gene"] == "b"])
    np.testing.assert_allclose(ours, fj.log_likelihood(alone.model, start, alone.data, given=alone.given), rtol=1e-12)
    np.testing.assert_array_equal(given.weights.sum(axis=1)[:6], alone.given.weights.sum(axis=1))
    assert calls["given"].weights[0].sum() == (COUNTS["gene"] == "a").sum() - 1


OF_COUNTS = {"poisson": ("Intercept", "x"), "negative_binomial": ("Intercept", "x", "size")}


@pytest.mark.exhaustive  # in every run the arguments of `fit_batch` above, and a batch of latent effects in `test_latent.py`
@pytest.mark.parametrize("name", OF_COUNTS)
def test_a_batch_of_counts_with_effects_ends_at_maxima(name):
    family = getattr(families, name)
    fits = counts_by_gene(family).fit_batch(by="gene")
    assert fits.labels.tolist() == ["a", "b", "c"]
    assert fits.num_observations.tolist() == [7, 6, 7]
    assert fits.num_masked.tolist() == [1, 0, 0]
    one = fits["b"]
    assert one.converged
    assert one.names == (*OF_COUNTS[name], "sd[Intercept | subject]")
    alone = fj.formula(COUNTS_FORMULA, family, COUNTS[COUNTS["gene"] == "b"])
    at = [fj.log_likelihood(alone.model, params, alone.data, given=alone.given) for params in _moved(one.params)]
    np.testing.assert_allclose(at[0], one.log_likelihood, rtol=1e-10)
    assert max(at[1:]) < at[0]
    np.testing.assert_array_equal(one.origin.dataset.column("subject")[:6], [f"b{k}" for k in range(6)])


def _moved(params):
    """Parameters, and each of them moved up and down by a little."""
    leaves, treedef = jax.tree.flatten(params)
    yield params
    for k, leaf in enumerate(leaves):
        for entry, factor in itertools.product(np.ndindex(np.shape(leaf)), (0.98, 1.02)):
            moved = np.array(leaf)
            moved[entry] *= factor
            yield jax.tree.unflatten(treedef, [*leaves[:k], moved, *leaves[k + 1 :]])


# What is read and what is not -----------------------------------------------------------------------------------------

READ = {
    "y ~ x + (1 | g)": ("y ~ x", [("1", ("g",), True)]),
    "y ~ (1|g)": ("y ~ 1", [("1", ("g",), True)]),
    "y ~ (1 | g) + 0 + x": ("y ~ 0 + x", [("1", ("g",), True)]),
    "y ~ (1|g) + (1|h) - 1 + x": ("y ~ 1 - 1 + x", [("1", ("g",), True), ("1", ("h",), True)]),
    "y ~ x + (1 | g/h) + z": ("y ~ x + z", [("1", ("g",), True), ("1", ("g", "h"), True)]),
    "y ~ x + (1 | a / `b c`/d)": ("y ~ x", [("1", ("a",), True), ("1", ("a", "b c"), True), ("1", ("a", "b c", "d"), True)]),
    "y ~ x + (0 + np.log(x) || g:h)": ("y ~ x", [("0 + np.log(x)", ("g", "h"), False)]),
    "I(a | b) ~ C(x, Treatment('|')) + (x + (z + w) | g)": ("I(a | b) ~ C(x, Treatment('|'))", [("x + (z + w)", ("g",), True)]),
    "y ~ I(x | z)": ("y ~ I(x | z)", []),
}  # fmt: skip


@pytest.mark.parametrize("text", READ)
def test_terms_of_effects_are_split_off(text):
    rest, terms = split_effects(text, "formula")
    assert "".join(rest.split()) == "".join(READ[text][0].split())
    assert [(term.columns, term.factor, term.correlated) for term in terms] == READ[text][1]


def made(text="y ~ x + (1 | clinic)", family=families.poisson, table=SMALL, **options):
    return lambda: fj.formula(text, family, table, **options)


NB = families.negative_binomial
HALF = np.arange(18) % 2
HOLES = SMALL.assign(clinic=SMALL["clinic"].where(SMALL.index > 1))
BAD = {
    "a bar without parentheses": (made("y ~ x | clinic"), "has a bar outside parentheses.*are written .1 . g."),
    "effects of the response": (made("(y | clinic) ~ x"), "has a bar in its response"),
    "a product with effects": (made("y ~ x:(1 | clinic)"), r"the effects \(1 . clinic\) are a term by themselves, joined"),
    "effects taken away": (made("y ~ x - (1 | clinic)"), "a term by themselves"),
    "no plus": (made("y ~ x (1 | clinic)"), "a term by themselves"),
    "parentheses in parentheses": (made("y ~ (x + (1 | clinic))"), "a bar in parentheses within parentheses"),
    "two bars": (made("y ~ (1 | clinic | x)"), "has several bars; expected one"),
    "three bars": (made("y ~ (1 ||| clinic)"), "has several bars"),
    "no columns": (made("y ~ ( | clinic)"), "has nothing on the left of its bar"),
    "no groups": (made("y ~ (1 | )"), "has nothing on the right of its bar"),
    "a function of groups": (made("y ~ (1 | C(clinic))"), "has the groups 'C.clinic.'; expected the name of a column"),
    "a product of groups": (made("y ~ (1 | clinic * x)"), "expected the name of a column, or names joined by : or /"),
    "a parenthesis not closed": (made("y ~ x + (1 | clinic"), "has a '.' that is not closed"),
    "a parenthesis not opened": (made("y ~ x + 1 | clinic)"), "has a '.' that closes nothing"),
    "a response in a term": (made("y ~ (y ~ x | clinic)"), "the left of the bar in .* must be one right-hand side"),
    "no effect": (made("y ~ x + (0 | clinic)"), "the left of the bar in .0 . clinic. has no column"),
    "an unknown factor": (made("y ~ x + (1 | clinc)"), "no column 'clinc', by which .* makes groups. Did you mean 'clinic'"),
    "an unknown column": (made("y ~ x + (xx | clinic)"), "no column 'xx'. Did you mean 'x'"),
    "an unknown function": (made("y ~ x + (mine(x) | clinic)"), "know no function 'mine'"),
    "an offset as in R": (made("y ~ x + offset(time) + (1 | clinic)"), "no function 'offset'. An offset is an argument"),
    "trials as in R": (made("cbind(y, x) ~ 1 + (1 | clinic)"), "no function 'cbind'. .* the trials an argument"),
    "effects only": (made("y ~ 0 + (1 | clinic)"), "has no term. It needs a constant or a column of the table, besides effects"),
    "missing groups": (made(table=HOLES), "missing values in 2 of 18 rows: 2 in 'clinic'"),
    "an effect twice": (made("y ~ (1 | clinic) + (x | clinic)"), "the effect `Intercept` is twice in"),
    "two blocks": (made("y ~ (x | clinic) + (0 + time | clinic)"), "effects of the same groups are all correlated, in one term"),
    "one group": (made(table=SMALL.assign(clinic="a")), "all rows are in one group of clinic, .a.; the effects .* need"),
    "groups of several types": (made(table=SMALL.assign(clinic=[1, "a"] * 9)), "the column 'clinic' has values of several types"),
    "effects of another parameter": (made(family=NB, size="~ (1 | clinic)"), "the formula of size has effects.*that of `mean`"),
    "effects of categories": (made("clinic ~ x + (1 | event)", families.categorical), "a linear predictor for each category"),
    "nodes without effects": (made("y ~ x", nodes=5), "nodes=5 is the number of points .* has no effects"),
    "nodes that are none": (made(nodes=0), "nodes=0 must be a whole number, at least 1"),
    "nodes in many dimensions": (made("y ~ (0 + clinic || event)", nodes=3), "nodes=3 with 5 effects"),
    "negative weights": (made(weights=np.where(np.arange(18) == 3, -1.0, 1.0)), "finite and not negative; of row 3 it is -1"),
    "nodes of several factors": (made("y ~ x + (1 | clinic) + (1 | event)", nodes=3), "nodes=3 points for each.*clinic, event"),
    "a factor named as a covariate": (made("y ~ (1 | clinic) + (1 | rate)", table=SMALL.assign(rate=HALF)), "Rename the column"),
    "restricted without effects": (made("y ~ x", families.normal, reml=True), "reml=True is for formulas with effects"),
    "a restricted likelihood of counts": (made(reml=True), "reml= with families.poisson.*is for families.normal"),
    "nodes of a restricted likelihood": (made(family=families.normal, nodes=3, reml=True), "the integral is exact without more"),
    "reml as text": (made(family=families.normal, reml="yes"), "reml='yes' must be True or False"),
    "batches of several factors": (lambda: made("y ~ x + (1 | clinic) + (1 | event)")().fit_batch("x"), "are fitted one by one"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_with_what_to_do(name):
    act, words = BAD[name]
    with pytest.raises((ValueError, TypeError), match=words):
        act()


def test_coefficients_of_a_restricted_likelihood_are_no_parameters_of_the_fit():
    restricted = fj.formula("time ~ x + (1 + x | clinic)", families.normal, SMALL, reml=True)
    assert set(restricted.start) == {"scale", "covariance"}
    assert np.shape(restricted.start["covariance"]["clinic"]) == (2, 2)
    assert restricted.model.integrated == ("Intercept", "x")
    assert "dense 2" in restricted.model.algebra


def test_rows_without_a_group_are_left_out_on_request():
    some = fj.formula("y ~ x + (1 | clinic)", families.poisson, HOLES, missing="drop")
    assert some.num_dropped == 2
    assert some.given.weights.sum() == 16
    assert "16 rows in" in str(some)
    assert "2 left out with missing values" in str(some)


def test_the_predictor_makes_the_covariates_of_rows_of_another_table():
    predictor = cbpp().predictor
    assert predictor.effects[0].factor == ("herd",)
    covariates = predictor.covariates({"period": [2, 4], "size": [10, 20]})
    np.testing.assert_array_equal(covariates["logit"], [[1, 1, 0, 0], [1, 0, 0, 1]])
    np.testing.assert_array_equal(covariates["effects"]["herd"], [[1.0], [1.0]])
    slopes = fj.formula("y ~ 1 + (x | clinic)", families.poisson, SMALL).predictor
    with pytest.raises(TypeError, match="column 'x' of the table holds text, but held numbers"):
        slopes.covariates(SMALL.assign(x="one"))
