"""The worked examples of CONTRIBUTING.md run, and compute what they say."""

import functools
import pathlib
import pydoc
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats as st

import fisher_jax as fj
from fisher_jax import families

TEXT = (pathlib.Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()
Y = np.array([0.4, 1.1, 2.3, 0.9, 1.7, 3.1])


@functools.cache
def example(title):
    """What the code of the section defines."""
    section = TEXT.split(f"## {title}\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.S)
    defined = {"__name__": "example"}
    exec(compile(code, f"CONTRIBUTING.md, {title}", "exec"), defined)
    return defined


def test_the_walk_from_fit_to_the_density_passes_the_files_that_it_names_and_no_other():
    walk = TEXT.split("## From `fit` to the density and back\n")[1].split("\nOther places")[0]
    steps, helpers = walk.split("\nLike functions of JAX")
    named = [re.search(r"`(\w+/\w+\.py)`", step)[1] for step in re.split(r"^\d\. ", steps, flags=re.M)[1:]]
    assert len(named) == len(set(named)) == 8
    package, passed = pathlib.Path(fj.__file__).parent, set()

    def log_density(params, y):
        frame = sys._getframe(1)
        while frame is not None:
            path = pathlib.Path(frame.f_code.co_filename)
            if path.is_relative_to(package):
                passed.add(path.relative_to(package).as_posix())
            frame = frame.f_back
        return -0.5 * ((y - params["loc"]) / params["scale"]) ** 2 - jnp.log(params["scale"])

    fit = fj.fit(fj.Model(log_density, constraints={"scale": fj.positive}), {"loc": 1.0, "scale": 1.0}, Y)
    assert fit.engine == "host"
    of_helpers = set(re.findall(r"`(?:fisher_jax/)?((?:\w+/)?\w+\.py)`", helpers))
    assert passed <= {*named, *of_helpers}
    assert {"fitting/fit.py", "fitting/maximization.py", "models/likelihood.py", "models/programs.py"} <= passed


def test_every_kind_of_addition_has_a_worked_example():
    titles = re.findall(r"^## (To add .*)$", TEXT, re.M)
    with_code = [title for title in titles if "```python" in TEXT.split(f"## {title}\n")[1].split("\n## ")[0]]
    assert with_code == [
        "To add an optimiser", "To add a family", "To add an information method", "To add a test statistic", "To add a plot"
    ]  # fmt: skip


def test_the_family_is_scipys_and_starts_at_the_maximum():
    maxwell = example("To add a family")["maxwell"]
    density = jax.vmap(maxwell.log_density, in_axes=(None, 0))
    np.testing.assert_allclose(density({"scale": 1.7}, Y), st.maxwell(scale=1.7).logpdf(Y), rtol=1e-12)
    assert np.isneginf(maxwell.log_density({"scale": 1.7}, -1.0))
    assert repr(maxwell) == "families.maxwell(scale)"
    np.testing.assert_allclose(maxwell.mean({"scale": 1.7}), st.maxwell(scale=1.7).mean(), rtol=1e-12)
    assert "scipy.stats.maxwell(scale=scale)" in pydoc.render_doc(maxwell)
    fit = fj.fit(maxwell, None, Y)
    assert fit.converged
    assert fit.num_steps == 1
    np.testing.assert_allclose(fit.params["scale"], np.sqrt(np.mean(Y**2) / 3), rtol=1e-12)
    np.testing.assert_allclose(fit.standard_errors("expected")["scale"], fit.params["scale"] / 6, rtol=1e-12)
    draws = jax.vmap(maxwell.sample, in_axes=(0, None))(jax.random.split(jax.random.key(0), 2000), {"scale": 1.7})
    assert st.kstest(np.asarray(draws), st.maxwell(scale=1.7).cdf).pvalue > 0.001


def test_the_optimiser_ends_at_the_maximum():
    optimizer = example("To add an optimiser")["diagonal_scaling"]
    assert optimizer(rate=0.5) is optimizer(rate=0.5)
    assert isinstance(optimizer(), optax.GradientTransformationExtraArgs)
    fit = fj.fit(families.normal, {"loc": 1.0, "scale": 2.0}, Y, optimizer=optimizer())
    assert fit.converged
    np.testing.assert_allclose(fit.params["loc"], Y.mean(), rtol=1e-6)
    np.testing.assert_allclose(fit.params["scale"], Y.std(), rtol=1e-6)


def test_the_information_method_is_right_within_its_errors():
    method = example("To add an information method")["importance_information"]
    params = {"shape": 2.0, "scale": 1.5}
    information = method(families.weibull, params, {"shape": 1.8, "scale": 1.7}, jax.random.key(1))
    exact = fj.fisher_information(families.weibull, params)
    assert information.names == exact.names
    np.testing.assert_array_less(np.abs(information.matrix - exact.matrix), 4 * information.errors[0])
    np.testing.assert_array_less(information.errors[0], 0.1 * np.max(exact.matrix))
    with pytest.raises(ValueError, match="the model has no sampler"):
        method(fj.Model(families.weibull.log_density), params, params, jax.random.key(1))


def test_the_test_statistic_is_the_one_computed_by_hand():
    counts = jnp.array([2.0, 4.0, 3.0, 7.0])
    test = example("To add a test statistic")["gradient_test"](fj.fit(families.poisson, None, counts), {"rate": 3.0})
    np.testing.assert_allclose(test.statistic, 4 * (4.0 - 3.0) ** 2 / 3.0, rtol=1e-12)
    np.testing.assert_allclose(test.p_value, st.chi2(1).sf(4 / 3), rtol=1e-12)
    assert "rate = 3" in str(test)


def test_the_plot_shows_the_data_and_the_quantiles_of_the_fit():
    plt = pytest.importorskip("matplotlib.pyplot")
    fit = fj.fit(families.exponential, None, Y)
    axes = example("To add a plot")["distribution_plot"](fit)
    data, model = axes.lines
    np.testing.assert_array_equal(data.get_xdata(), np.sort(Y))
    levels = (np.arange(6) + 0.5) / 6
    np.testing.assert_allclose(model.get_xdata(), st.expon(scale=Y.mean()).ppf(levels), rtol=1e-12)
    plt.close("all")


def test_every_module_that_contributing_names_exists():
    root = pathlib.Path(__file__).parent.parent
    package = root / "fisher_jax"
    for name in set(re.findall(r"`([\w/]+\.py)`", TEXT)):
        places = [root / name, package / name, *(folder / name for folder in package.iterdir() if folder.is_dir())]
        assert any(place.exists() for place in places), f"{name} is nowhere"
