"""`Fit` is one class for one fit and for many: one formula, no program, copies, files."""

import copy
import multiprocessing
import pickle
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import batch_of
from jax.scipy.stats import norm

import fisher_jax as fj
from fisher_jax.families import weibull
from fisher_jax.models.dataset import Dataset

KINDS = ("observed", "expected", "empirical", "sandwich")
RNG = np.random.default_rng(31)
DATA = RNG.gamma(4.0, 0.5, (5, 30))
START = {"shape": 1.0, "scale": 1.0}


class Line(NamedTuple):
    slope: np.ndarray
    scale: float


def line_density(params, y, z):
    return norm.logpdf(y, z @ params.slope, params.scale)


LINE = fj.Model(line_density, constraints=Line(None, fj.positive))
DESIGN = RNG.normal(size=(40, 2))


def constrained_density(params, y):
    """Every constraint at once; what the parameters mean does not matter here."""
    target = jnp.concatenate([params["simplex"], params["ordered"], jnp.ravel(params["matrix"])])
    return -0.5 * jnp.sum((y - target) ** 2)


CONSTRAINED = fj.Model(
    constrained_density, constraints={"simplex": fj.simplex, "ordered": fj.ordered, "matrix": fj.positive_definite}
)
CONSTRAINED_START = {"simplex": np.full(3, 1 / 3), "ordered": np.array([0.0, 1.0]), "matrix": np.eye(2)}
CONSTRAINED_DATA = np.array([0.2, 0.3, 0.5, -1.0, 2.0, 2.0, 0.3, 0.3, 1.0]) + 0.1 * RNG.normal(size=(3, 25, 9))


@pytest.fixture(scope="module")
def weibulls():
    return fj.fit_batch(weibull, START, DATA, covariances=KINDS)


@pytest.fixture(scope="module")
def constrained():
    return batch_of(*(fj.fit(CONSTRAINED, CONSTRAINED_START, y) for y in CONSTRAINED_DATA))


def assert_trees_close(received, expected, **settings):
    assert jax.tree.structure(received) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **settings), received, expected)


def row(tree, k):
    return jax.tree.map(lambda leaf: leaf[k], tree)


@pytest.mark.parametrize("kind", KINDS)
def test_each_of_many_is_row_i_of_the_methods_of_all(weibulls, kind):
    for k in range(3):
        one = weibulls[k]
        assert_trees_close(one.covariance(kind), weibulls.covariance(kind)[k], rtol=1e-13)
        assert_trees_close(one.standard_errors(kind), row(weibulls.standard_errors(kind), k), rtol=1e-13)
        assert_trees_close(one.correlation(kind), weibulls.correlation(kind)[k], rtol=1e-13)
        for how in ({"level": 0.9}, {"scale": "natural"}):
            found = row(weibulls.confidence_intervals(kind, **how), k)
            assert_trees_close(one.confidence_intervals(kind, **how), found, rtol=1e-13)
        if kind != "sandwich":
            np.testing.assert_allclose(one.information(kind).matrix, weibulls.information(kind).matrix[k], rtol=1e-13)
    for name in ("aic", "bic", "aicc", "tic"):
        np.testing.assert_allclose(getattr(weibulls[2], name)(), getattr(weibulls, name)()[2], rtol=1e-13)


def test_the_same_formulas_serve_every_constraint_and_the_traced_fit(constrained):
    assert constrained.converged.all()
    # Jitted, since vmap alone would compile each operation for itself.
    for kind in ("observed", "sandwich"):
        formulas = lambda fits, kind=kind: (fits.covariance(kind), fits.confidence_intervals(kind))  # noqa: E731
        traced, mapped = jax.jit(lambda fits, f=formulas: (f(fits), jax.vmap(f)(fits)))(constrained)
        known = (constrained.covariance(kind), constrained.confidence_intervals(kind))
        assert_trees_close(traced, known, rtol=1e-9, atol=1e-12)
        assert_trees_close(mapped, known, rtol=1e-9, atol=1e-12)
        one = (constrained[1].covariance(kind), constrained[1].confidence_intervals(kind))
        assert_trees_close(one, row(known, 1), rtol=1e-12, atol=1e-15)


def test_a_fit_mapped_by_vmap_has_the_methods_of_fit_batch(weibulls):
    # Jitted; `test_contracts.py` has such fits by vmap alone.
    nested = jax.jit(jax.vmap(jax.vmap(lambda y: fj.fit(weibull, START, y))))(DATA.reshape(1, 5, 30))
    mapped = nested[0]
    assert mapped.has_batch
    assert len(mapped) == 5
    assert_trees_close(mapped.standard_errors(), weibulls.standard_errors(), rtol=1e-6)
    assert_trees_close(mapped[3].params, weibulls[3].params, rtol=1e-6)
    assert "5 converged (100 %)" in str(mapped.summary())
    assert nested.covariance().shape == (1, 5, 2, 2)
    np.testing.assert_allclose(nested.covariance()[0, 2], weibulls.covariance()[2], rtol=1e-6)


def test_many_fits_have_a_length_and_one_has_none(weibulls):
    assert [one.status for one in weibulls] == [fj.Status.CONVERGED] * 5
    assert len(weibulls[1:3]) == 2
    assert len(weibulls[np.array([True, False, True, False, False])]) == 2
    np.testing.assert_array_equal(weibulls[[4, 0]].params["scale"], weibulls.params["scale"][[4, 0]])
    np.testing.assert_array_equal(weibulls[[4, 0]].origin.dataset.data, DATA[[4, 0]])
    np.testing.assert_array_equal(weibulls[-1].origin.dataset.data, DATA[4])
    assert not weibulls[0].has_batch
    assert bool(weibulls[0])
    with pytest.raises(TypeError, match="has no length"):
        len(weibulls[0])


def test_numbers_and_reports_of_a_finished_fit_compile_nothing(weibulls, constrained):
    fit, fits = fj.fit(weibull, START, DATA[0]), constrained
    compiled = []

    def listen(event, duration, **_):
        if "compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for one in (fit, weibulls, fits, weibulls[1]):
            str(one.summary(level=0.9))
            repr(one)
            one._repr_html_()
            one.standard_errors()
            one.correlation()
            one.confidence_intervals()
            one.confidence_intervals(scale="natural")
            one.aic(), one.bic(), one.aicc()
            one.to_frame()
        for kind in KINDS:
            fit.covariance(kind)
        fit.tic()
        fit.information()
        fits.to_columns()
        assert compiled == []
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_what_runs_on_the_host_is_in_float64_for_a_fit_in_float32():
    fit = fj.fit(weibull, jax.tree.map(np.float32, START), DATA[0].astype(np.float32))
    assert fit.free.dtype == np.float32
    assert fit.covariance().dtype == np.float64


def test_many_fits_are_worked_on_in_blocks(weibulls, monkeypatch):
    whole = weibulls.confidence_intervals("sandwich")
    monkeypatch.setattr("fisher_jax.fitting.result.BLOCK", 2)
    assert_trees_close(weibulls.confidence_intervals("sandwich"), whole, rtol=0)


def test_the_kind_is_what_the_fit_was_asked_for(weibulls):
    fit = fj.fit(weibull, START, DATA[0])
    np.testing.assert_array_equal(fit.covariance(), fit.covariance("observed"))
    by_cluster = fj.robust(fit, clusters=np.arange(30) // 3)
    np.testing.assert_array_equal(by_cluster.covariance(), by_cluster.covariance("sandwich"))
    assert "10 clusters" in str(by_cluster.summary())
    assert "10 clusters" in str(by_cluster)
    ratio = fj.delta_method(by_cluster, lambda p: p["scale"] / p["shape"])
    assert "10 clusters" in ratio.description
    assert "10 clusters" in fj.wald_test(by_cluster, {"shape": 1.0}).covariance
    assert "10 clusters" in str(fj.coefficient_table(weibull=by_cluster))
    kept = fj.fit_batch(weibull, START, DATA, covariances=("empirical", "observed"))
    np.testing.assert_array_equal(kept.covariance(), kept.covariance("empirical"))
    many = fj.robust(kept, clusters=np.arange(30) // 3)
    assert many.kinds == ("empirical", "observed", "sandwich")
    np.testing.assert_allclose(many.covariance()[0], by_cluster.covariance(), rtol=1e-6)


def test_frames_of_one_and_of_many_hold_the_same_numbers(weibulls):
    many, one = weibulls.to_frame("sandwich", level=0.9), weibulls[2].to_frame("sandwich", level=0.9)
    for column, label in (("lower", "shape lower"), ("standard_error", "shape standard error")):
        np.testing.assert_allclose(one.loc["shape", column], many.loc[2, label], rtol=1e-12)


def of_one_row(fit):
    return fit.standard_errors()["scale"], fit.origin.model == weibull


def test_fits_models_and_informations_survive_copies_and_pickle(weibulls):
    fit = fj.fit(weibull, START, DATA[0])
    for duplicate in (copy.deepcopy(fit), pickle.loads(pickle.dumps(fit))):
        assert jax.tree.structure(duplicate) == jax.tree.structure(fit)
        assert duplicate.origin.model == weibull
        np.testing.assert_array_equal(duplicate.covariance("sandwich"), fit.covariance("sandwich"))
        assert_trees_close(fj.robust(duplicate).standard_errors(), fj.robust(fit).standard_errors(), rtol=1e-12)
    many = pickle.loads(pickle.dumps(weibulls))
    np.testing.assert_array_equal(many.covariance(), weibulls.covariance())
    information = pickle.loads(pickle.dumps(fit.information()))
    np.testing.assert_array_equal(information.matrix, fit.information().matrix)
    for name in dir(fj.families):
        if isinstance(model := getattr(fj.families, name), fj.Model):
            assert pickle.loads(pickle.dumps(model)) == model == copy.deepcopy(model), name
    linked = fj.linked(fj.families.poisson, np.exp)
    assert pickle.loads(pickle.dumps(linked)) == linked
    assert hash(copy.deepcopy(linked)) == hash(linked)


class Shifted:
    """A density that is an object, which its owner may change."""

    def __init__(self, shift):
        self.shift = shift

    def __call__(self, params, y):
        return -params["a"] * (y - self.shift) ** 2


def test_a_deep_copy_of_a_model_has_its_own_objects():
    model = fj.Model(Shifted(0.0))
    duplicate = copy.deepcopy(model)
    duplicate.log_density.shift = 1.0
    assert model.log_density.shift == 0.0
    assert duplicate != model


def test_a_fit_of_other_pytrees_survives_pickle():
    y = DESIGN @ [1.0, -1.0] + RNG.normal(size=40)
    fit = fj.fit(LINE, Line(np.zeros(2), 1.0), y, given=DESIGN)
    duplicate = pickle.loads(pickle.dumps(fit))
    assert isinstance(duplicate.params, Line)
    assert duplicate.layout == fit.layout
    assert_trees_close(duplicate.standard_errors(), fit.standard_errors(), rtol=1e-14)


def test_fits_cross_to_other_processes(weibulls, monkeypatch):
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.map(of_one_row, [weibulls[0], weibulls[1]])
    np.testing.assert_allclose([error for error, _ in found], weibulls.standard_errors()["scale"][:2], rtol=1e-12)
    assert all(same for _, same in found)


def test_fits_are_saved_and_read_without_pickle(weibulls, constrained, tmp_path):
    single = fj.robust(fj.fit(weibull, START, DATA[0]), clusters=np.arange(30) // 3)
    for fits in (weibulls, constrained, single):
        fits.save(tmp_path / "fits")
        loaded = fj.load(tmp_path / "fits")
        assert loaded.origin is None
        assert loaded.layout == fits.layout
        assert (loaded.kinds, loaded.robust) == (fits.kinds, fits.robust)
        assert_trees_close(loaded.params, jax.tree.map(np.asarray, fits.params), rtol=0)
        assert_trees_close(loaded.confidence_intervals(), fits.confidence_intervals(), rtol=1e-14)
        assert str(loaded.summary()) == str(fits.summary())
    with pytest.raises(ValueError, match="needs the data"):
        fj.robust(loaded)


def test_other_pytrees_and_what_is_no_array_are_read_with_like(tmp_path):
    y = DESIGN @ [1.0, -1.0] + RNG.normal(size=40)
    start = Line(np.zeros(2), 1.0)
    fit = fj.fit(LINE, start, y, given=DESIGN)
    fit.save(tmp_path / "line.npz")
    with pytest.raises(ValueError, match=r"load: the parameters were a pytree.*load\(path, like=params\)"):
        fj.load(tmp_path / "line.npz")
    with pytest.raises(
        ValueError, match=r"load: the arrays of like have shapes \[\(3,\), \(\)\], but the fit's are slope"
    ):
        fj.load(tmp_path / "line.npz", like=Line(np.zeros(3), 1.0))
    loaded = fj.load(tmp_path / "line.npz", like=start)
    assert loaded.layout == fit.layout
    assert_trees_close(loaded.standard_errors(), fit.standard_errors(), rtol=1e-14)
    np.savez(tmp_path / "other.npz", a=np.zeros(2))
    with pytest.raises(ValueError, match="holds no fit"):
        fj.load(tmp_path / "other.npz")


def test_a_dataset_knows_what_differs_and_gives_one():
    many = Dataset({"y": DATA, "z": np.arange(30)}, size=5, differs=(True, False))
    assert many.axes == ({"y": 0, "z": None}, None, None)
    assert many.take([1, 3]).size == 2
    assert many.one(2).size is None
    np.testing.assert_array_equal(many.one(2).data["y"], DATA[2])
    np.testing.assert_array_equal(many.one(2).data["z"], np.arange(30))
    means = jax.jit(jax.vmap(lambda parts: jnp.mean(parts[0]["y"]), in_axes=(many.axes,)))(many.parts)
    np.testing.assert_allclose(means, DATA.mean(axis=1))
    assert jax.tree.map(lambda leaf: leaf, many).differs == many.differs
