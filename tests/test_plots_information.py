"""Figures of information matrices: entries, ellipses, standard errors and their errors."""

import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.colors
import numpy as np
import pytest
from jax.scipy.stats import norm

import fisher_jax as fj

mpl.use("Agg")
import matplotlib.pyplot as plt

from fisher_jax.plots import information_ellipses, information_heat_map
from fisher_jax.reporting import with_error

NAMES = ("loc", "scale", "skew")
MATRIX = jnp.array([[4.0, 1.0, 0.5], [1.0, 1.0, -0.3], [0.5, -0.3, 2.0]])
EXACT = fj.Information(MATRIX, NAMES, "exact")


def pieces(k=6, size=0.03, q=3):
    raw = size * np.random.default_rng(4).standard_normal((k, q, q))
    return jnp.asarray(raw + np.swapaxes(raw, 1, 2))


SAMPLED = replace(EXACT, errors=pieces(), route="sampled", num_samples=200)


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def written(axes):
    return [text.get_text() for text in axes.texts]


def solid_and_dashed(axes):
    lines = [line for line in axes.lines if len(line.get_xdata()) > 1]
    return [[line for line in lines if line.get_linestyle() == style] for style in ("-", "--")]


def reach(line):
    return np.ptp(line.get_xdata()) / 2, np.ptp(line.get_ydata()) / 2


def drawn(axes):
    """As a reader sees it: draws, so that a warning of matplotlib's is an error here."""
    axes.figure.canvas.draw()
    return axes


# Heat map


def test_a_heat_map_is_scaled_to_unit_diagonal_unless_it_is_asked_raw():
    scaled, raw = drawn(information_heat_map(EXACT)), drawn(information_heat_map(EXACT, scaled=False))
    size = np.sqrt(np.diagonal(MATRIX))
    np.testing.assert_allclose(scaled.images[0].get_array(), MATRIX / np.outer(size, size), rtol=1e-12)
    np.testing.assert_allclose(raw.images[0].get_array(), MATRIX, rtol=1e-12)
    assert scaled.images[0].get_clim() == (-1, 1)
    assert raw.images[0].get_clim() == (-4, 4)
    assert written(scaled) == ["1", "0.5", "0.177", "0.5", "1", "-0.212", "0.177", "-0.212", "1"]
    assert written(raw)[:3] == ["4", "1", "0.5"]
    assert scaled.images[0].colorbar.ax.get_ylabel() == "information scaled to unit diagonal"
    assert raw.images[0].colorbar.ax.get_ylabel() == "information, nats per product of units"


def test_the_names_stand_on_both_axes_and_the_route_above():
    axes = drawn(information_heat_map(replace(EXACT, route="a route told at length " * 5)))
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == list(NAMES)
    title = axes.get_title()
    assert title.startswith("Information, a route told")
    assert max(map(len, title.splitlines())) <= 60


def test_sampled_entries_are_written_with_their_standard_errors():
    raw = written(information_heat_map(SAMPLED, scaled=False))
    error = np.asarray(SAMPLED.entry_errors)
    assert raw == [
        with_error(v, e).replace(" ", "\n", 1) for v, e in zip(np.ravel(MATRIX), np.ravel(error), strict=True)
    ]
    assert all("\n± 0." in text for text in raw)


def test_a_scaled_entry_has_the_error_of_a_correlation_and_the_diagonal_has_none():
    """By realisations: nothing in common with the linearisation that is drawn."""
    texts = np.reshape(written(information_heat_map(SAMPLED)), (3, 3))
    assert list(np.diagonal(texts)) == ["1", "1", "1"]
    weights = np.random.default_rng(0).standard_normal((20_000, 6))
    drawn_matrices = np.asarray(MATRIX) + np.einsum("rk,kij->rij", weights, np.asarray(SAMPLED.errors))
    size = np.sqrt(np.diagonal(drawn_matrices, axis1=1, axis2=2))
    spread = np.std(drawn_matrices / size[:, :, None] / size[:, None, :], axis=0)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert float(texts[i, j].split("± ")[1]) == pytest.approx(spread[i, j], rel=0.1)


def test_of_a_covariance_the_scaled_heat_map_is_the_correlation():
    inverse = SAMPLED.inverse()
    axes = drawn(information_heat_map(inverse))
    np.testing.assert_allclose(axes.images[0].get_array(), correlation(inverse))
    assert axes.images[0].colorbar.ax.get_ylabel() == "correlation"
    assert axes.get_title() == "Covariance, inverse of: sampled"


def correlation(covariance):
    size = np.sqrt(np.diagonal(covariance.matrix))
    return np.asarray(covariance.matrix) / size[:, None] / size[None, :]


@pytest.mark.parametrize(("q", "texts", "named"), [(12, 144, 12), (13, 0, 13), (90, 0, 30)])
def test_large_matrices_are_drawn_without_numbers_and_with_some_of_the_names(q, texts, named):
    large = fj.Information(jnp.eye(q), tuple(f"w[{k}]" for k in range(q)), "exact")
    axes = drawn(information_heat_map(large))
    assert len(axes.texts) == texts
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(labels) == named
    assert labels[-1] == large.names[int(axes.get_yticks()[-1])]


def test_what_is_not_finite_is_grey_and_what_exceeds_one_has_arrows():
    odd = replace(EXACT, matrix=MATRIX.at[0, 1].set(jnp.nan).at[0, 2].set(30.0).at[2, 0].set(30.0))
    axes = drawn(information_heat_map(odd))
    assert written(axes)[1] == "-"
    grey = axes.images[0].get_cmap()(np.ma.masked_all(1))[0]
    np.testing.assert_allclose(grey, mpl.colors.to_rgba("0.8"))
    assert axes.images[0].colorbar.extend == "both"
    assert drawn(information_heat_map(EXACT)).images[0].colorbar.extend == "neither"


def test_a_zero_matrix_can_be_drawn():
    zero = replace(EXACT, matrix=jnp.zeros((3, 3)))
    for scaled in (True, False):
        assert written(drawn(information_heat_map(zero, scaled=scaled))) == ["0"] * 9


def test_pictures_are_drawn_where_they_are_asked_to_be():
    axes = plt.figure().subplots()
    grid = plt.figure().subplots(3, 3)
    open_before = plt.get_fignums()
    assert information_heat_map(EXACT, axes=axes) is axes
    assert information_ellipses(EXACT, axes=grid)[2, 0] is grid[2, 0]
    assert plt.get_fignums() == open_before


# Ellipses


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_an_ellipse_reaches_as_many_standard_errors_as_its_level_says(level):
    axes = information_ellipses(EXACT, num_observations=50, level=level)
    drawn(axes[0, 0])
    radius = np.sqrt(-2 * np.log1p(-level))
    unknown = np.asarray(EXACT.standard_errors(50).value)
    for i, j in ((1, 0), (2, 0), (2, 1)):
        (solid,), (dashed,) = solid_and_dashed(axes[i, j])
        known = np.sqrt(np.diagonal(np.linalg.inv(50 * np.asarray(MATRIX)[np.ix_([j, i], [j, i])])))
        np.testing.assert_allclose(reach(solid), radius * unknown[[j, i]], rtol=1e-3)
        np.testing.assert_allclose(reach(dashed), radius * known, rtol=1e-3)


def test_every_point_of_an_ellipse_has_the_same_drop_in_nats():
    axes = information_ellipses(EXACT, center=[5.0, -1.0, 2.0], num_observations=7, names=["skew", "loc"])
    (solid,), (dashed,) = solid_and_dashed(axes[1, 0])
    for line, pair in ((solid, EXACT.marginal(["skew", "loc"])), (dashed, EXACT.fix("scale"))):
        order = [pair.names.index(name) for name in ("skew", "loc")]
        total = 7 * np.asarray(pair.matrix)[np.ix_(order, order)]
        d = line.get_xydata() - [2.0, 5.0]
        np.testing.assert_allclose(0.5 * np.einsum("ni,ij,nj->n", d, total, d), -np.log(0.05), rtol=1e-9)


def test_the_diagonal_has_standard_errors_and_densities_of_both_kinds():
    axes = information_ellipses(SAMPLED, num_observations=50)
    value, error = SAMPLED.standard_errors(50)
    for k in range(3):
        assert written(axes[k, k]) == [f"SE {with_error(value[k], error[k])}"]
        assert "±" in written(axes[k, k])[0]
        (unknown,), (known,) = solid_and_dashed(axes[k, k])
        for line, wanted in ((unknown, value[k]), (known, 1 / np.sqrt(50 * MATRIX[k, k]))):
            x, y = line.get_data()
            inside = (y > 1e-3) & (y < 0.999)
            np.testing.assert_allclose(np.abs(x[inside]) / np.sqrt(-2 * np.log(y[inside])), wanted, rtol=1e-6)


def test_the_band_is_as_wide_as_realisations_of_the_matrix_spread():
    """Along each ray, the distance of the ellipse of a redrawn matrix spreads as the band says."""
    small = replace(SAMPLED, errors=0.1 * SAMPLED.errors)
    weights = np.random.default_rng(1).standard_normal((4000, 6))
    redrawn = np.asarray(MATRIX) + np.einsum("rk,kij->rij", weights, np.asarray(small.errors))
    inverses = np.linalg.inv(redrawn)
    axes = information_ellipses(small)[2, 0]
    (solid,), (dashed,) = solid_and_dashed(axes)
    pair = np.ix_(range(len(redrawn)), [0, 2], [0, 2])
    radius = np.sqrt(-2 * np.log(0.05))
    for line, patch, matrices in (
        (solid, axes.patches[0], np.linalg.inv(inverses[pair])),
        (dashed, axes.patches[1], redrawn[pair]),
    ):
        points = line.get_xydata()
        outer = patch.get_xy()[: len(points)]
        spread = (np.linalg.norm(outer, axis=1) / np.linalg.norm(points, axis=1) - 1) / 2  # the band is two errors wide
        distance = radius / np.sqrt(np.einsum("ni,rij,nj->rn", points, matrices, points))
        np.testing.assert_allclose(np.std(distance, axis=0), spread, rtol=0.05)


def test_sampled_information_has_bands_and_exact_information_has_none():
    exact, sampled = information_ellipses(EXACT), information_ellipses(SAMPLED)
    assert not exact[1, 0].patches
    assert len(sampled[1, 0].patches) == 2
    said = [text.get_text() for text in drawn(sampled[0, 2]).get_legend().get_texts()]
    assert said == ["sampled", "others unknown, 95 %", "others known, 95 %", "ellipse ± 2 errors"]
    outer = sampled[1, 0].patches[0].get_xy()
    (solid,), _ = solid_and_dashed(sampled[1, 0])
    assert np.ptp(outer[:, 0]) > np.ptp(solid.get_xdata())
    for side, limit in zip((0, 1), (sampled[1, 0].get_xlim(), sampled[1, 0].get_ylim()), strict=True):
        assert limit[0] < outer[:, side].min()
        assert outer[:, side].max() < limit[1]


def test_a_band_wider_than_its_ellipse_ends_at_the_centre():
    noisy = replace(EXACT, errors=pieces(size=1.0))
    ring = information_ellipses(noisy, center=[1.0, 2.0, 3.0])[1, 0].patches[0].get_xy()
    drawn(plt.gcf().axes[0])
    assert np.min(np.hypot(*(ring - [1.0, 2.0]).T)) == 0


def test_others_are_laid_over_in_other_colours_whatever_the_order_of_their_names():
    order = [2, 0, 1]
    turned = fj.Information(
        4 * MATRIX[np.ix_(order, order)], tuple(NAMES[k] for k in order), "four times", errors=pieces()
    )
    axes = information_ellipses(EXACT, others=[turned], labels=["once", "four times"])
    first, second = solid_and_dashed(axes[1, 0])[0]
    assert [first.get_color(), second.get_color()] == ["C0", "C1"]
    np.testing.assert_allclose(second.get_xydata(), first.get_xydata() / 2, atol=1e-9)
    assert written(axes[0, 0])[0] == f"SE {EXACT.standard_errors().value[0]:.6g}"
    assert "±" in written(axes[0, 0])[1]
    said = [text.get_text() for text in axes[0, 2].get_legend().get_texts()]
    assert said[:2] == ["once", "four times"]


def test_a_single_other_need_not_be_in_a_list():
    axes = information_ellipses(EXACT, others=EXACT)
    assert len(solid_and_dashed(axes[1, 0])[0]) == 2


def test_two_parameters_have_no_others_to_know_in_their_pair():
    axes = information_ellipses(EXACT.fix("skew"))
    drawn(axes[0, 0])
    solid, dashed = solid_and_dashed(axes[1, 0])
    assert (len(solid), len(dashed)) == (1, 0)
    assert len(solid_and_dashed(axes[0, 0])[1]) == 1
    assert not axes[0, 1].axison


def test_one_parameter_has_its_density_only():
    (panel,) = information_ellipses(EXACT.fix(["scale", "skew"]), num_observations=4).ravel()
    drawn(panel)
    assert written(panel) == ["SE 0.25"]
    assert [len(lines) for lines in solid_and_dashed(panel)] == [1, 0]
    assert panel.get_xlabel() == "loc − estimate"


def test_a_centre_moves_the_ellipses_and_renames_the_axes():
    apart = information_ellipses(EXACT)
    assert apart[2, 0].get_xlabel() == "loc − estimate"
    assert apart[1, 0].get_ylabel() == "scale − estimate"
    centre = {"scale": 20.0, "skew": 30.0, "unused": 1.0, "loc": 10.0}
    for given in (centre, jnp.array([10.0, 20.0, 30.0]), [10.0, 20.0, 30.0]):
        axes = information_ellipses(EXACT, center=given)
        assert (axes[2, 0].get_xlabel(), axes[2, 0].get_ylabel()) == ("loc", "skew")
        middle = solid_and_dashed(axes[2, 1])[0][0].get_xydata()[:-1].mean(axis=0)
        np.testing.assert_allclose(middle, [20.0, 30.0], atol=1e-9)
        assert np.mean(axes[2, 1].get_xlim()) == pytest.approx(20.0)
        assert np.mean(axes[2, 1].get_ylim()) == pytest.approx(30.0)


def test_a_leaf_s_name_draws_all_its_entries():
    four = fj.Information(jnp.eye(4), ("beta[0]", "beta[1]", "beta.b", "betas"), "exact")
    axes = information_ellipses(four, names="beta")
    assert [panel.get_xlabel() for panel in axes[-1]] == [f"{name} − estimate" for name in four.names[:3]]
    assert information_ellipses(four, names=["betas", "beta[1]"])[1, 0].get_xlabel() == "betas − estimate"


def test_the_observed_and_the_empirical_information_of_one_model_can_be_compared():
    def log_density(params, y):
        return norm.logpdf(y, params["loc"], params["scale"])

    params, y = {"loc": 2.0, "scale": 2.0}, jnp.array([1.0, 2.0, 3.0, 6.0])
    observed, empirical = (f(log_density, params, y) for f in (fj.observed_information, fj.empirical_fisher))
    axes = information_ellipses(observed, center=params, num_observations=4, others=[empirical])
    scores = np.array([[-0.25, 0.0, 0.25, 1.0], [-0.375, -0.5, -0.375, 1.5]])
    curvature = np.array([[1.0, 1.0], [1.0, 2.375]])  # of the four together, by hand
    errors = [np.sqrt(np.linalg.inv(total)[0, 0]) for total in (curvature, scores @ scores.T)]
    assert written(axes[0, 0]) == [f"SE {error:.6g}" for error in errors]
    said = [text.get_text().replace("\n", " ") for text in drawn(axes[0, 1]).get_legend().get_texts()]
    assert said[:2] == [observed.route, empirical.route]


# Errors

SINGULAR = replace(EXACT, matrix=jnp.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
MANY = fj.Information(jnp.eye(9), tuple(f"w[{k}]" for k in range(9)), "exact")
BATCH = replace(EXACT, matrix=jnp.stack([MATRIX, MATRIX]))
INVALID = [
    (lambda: information_heat_map(MATRIX), TypeError, "information_heat_map: expected Information or Covariance, got"),
    (
        lambda: information_ellipses(EXACT.inverse()),
        TypeError,
        "expected Information, got Covariance",
    ),
    (lambda: information_heat_map(BATCH), ValueError, r"one matrix, but this one has shape \(2, 3, 3\)"),
    (lambda: information_ellipses(BATCH), ValueError, r"information_ellipses: draws one matrix"),
    (lambda: information_ellipses(EXACT, others=[BATCH]), ValueError, "information_ellipses: draws one matrix"),
    (
        lambda: jax.jit(lambda m: information_heat_map(replace(EXACT, matrix=m)) and m)(MATRIX),
        TypeError,
        "heat_map: the matrix has no numbers yet, because it is being traced",
    ),
    (
        lambda: jax.vmap(lambda m: information_ellipses(replace(EXACT, matrix=m)) and m)(BATCH.matrix),
        TypeError,
        "Return the Information from jit, vmap or grad and draw it outside",
    ),
    (lambda: information_ellipses(SINGULAR), ValueError, r"no ellipses of 'exact'.*not positive definite.*loc.*scale"),
    (
        lambda: information_ellipses(EXACT, others=[SINGULAR], labels=["good", "bad"]),
        ValueError,
        "no ellipses of 'bad'",
    ),
    (lambda: information_ellipses(replace(EXACT, matrix=MATRIX * jnp.nan)), ValueError, "the matrix is not finite"),
    (lambda: information_ellipses(MANY), ValueError, r"9 parameters make 36 pairs\. Choose some by names="),
    (
        lambda: information_ellipses(EXACT, names=["shape"]),
        ValueError,
        "no entry is named 'shape'; there are loc, scale, skew",
    ),
    (lambda: information_ellipses(EXACT, names=["loc", "loc"]), ValueError, "one or more different names"),
    (lambda: information_ellipses(EXACT, names=[]), ValueError, "one or more different names"),
    (lambda: information_ellipses(EXACT, others=[MANY]), ValueError, "about the same parameters"),
    (lambda: information_ellipses(EXACT, labels=["a", "b"]), ValueError, r"expected 1, for the information"),
    (lambda: information_ellipses(EXACT, labels="a"), ValueError, "labels='a'"),
    (lambda: information_ellipses(EXACT, level=95), ValueError, "information_ellipses: level=95"),
    (lambda: information_ellipses(EXACT, num_observations=0), ValueError, "num_observations=0 must be positive"),
    (lambda: information_ellipses(EXACT, center={"loc": 1.0}), ValueError, r"center has loc\. Give the parameters"),
    (lambda: information_ellipses(EXACT, center=[1.0, 2.0]), ValueError, "one number for each name in this order"),
    (lambda: information_ellipses(EXACT, axes=plt.subplots()[1]), ValueError, "9 panels need as many axes, got 1"),
]


@pytest.mark.parametrize(("call", "error", "match"), INVALID, ids=[row[2] for row in INVALID])
def test_what_cannot_be_drawn_raises_in_the_user_s_terms(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    for draw in (information_heat_map, information_ellipses):
        name = draw.__name__
        with pytest.raises(
            ImportError, match=rf'{name}: this needs matplotlib.pyplot: pip install "fisher_jax\[plots\]"'
        ):
            draw(EXACT)


def test_plots_is_a_namespace_that_imports_matplotlib_only_to_draw():
    code = "import sys, fisher_jax as fj; fj.plots.information_heat_map; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
