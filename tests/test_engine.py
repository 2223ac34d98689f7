"""How batches are run: one kernel, arrays or products of matrices, by several threads; the same results each way."""

import functools
import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import betainc
from jax.scipy.stats import norm

import fisher_jax as fj
from fisher_jax.fitting import cpu, engine, workers
from fisher_jax.models.model import as_model, programs_of

RNG = np.random.default_rng(5)
NORMAL_DATA = RNG.normal(2.0, 3.0, (5, 12))
START = {"loc": 0.0, "log_scale": 0.0}


def new_normal():
    """A new function at each call, which no program was compiled for."""
    return lambda params, y: norm.logpdf(y, params["loc"], jnp.exp(params["log_scale"]))


normal = new_normal()


def logistic(beta, y, z):
    eta = z @ beta
    return y * eta - jnp.logaddexp(0.0, eta)


def autoregression(params, y):
    return norm.logpdf(y[1:], params["phi"] * y[:-1], jnp.exp(params["log_scale"]))


def compiled_for(log_density, what="fit"):
    """What was compiled for a density, of one kind: the (key, program) pairs."""
    return [(key, value) for key, value in programs_of(as_model(log_density, "test")).items() if key[0] == what]


def assert_like_fit(fits, fit_one, numbers):
    """Statuses equal, and estimates within 1e-8 standard errors of what `fit` finds."""
    for k in numbers:
        alone = fit_one(k)
        assert fits[k].status == alone.status
        errors = np.sqrt(np.diag(np.linalg.inv(alone.curvature)))
        assert np.max(np.abs(fits.free[k] - alone.free) / errors) < 1e-8
        np.testing.assert_allclose(fits.log_likelihood[k], alone.log_likelihood, rtol=1e-11)


# --- one kernel -----------------------------------------------------------------------------------------------------


def test_a_batch_is_one_marked_call_and_no_loop_of_xlas():
    fj.fit_batch(normal, START, NORMAL_DATA)
    ((_, program),) = compiled_for(normal)
    entry = program.call.as_text().split("\nENTRY ")[1].split("\n}")[0].splitlines()
    called = [line for line in entry if " call(" in line]
    assert len(called) == 1
    for name, value in cpu.ONE_KERNEL.items():
        assert f'{name}="{value}"' in called[0]
    assert not any(" while(" in line for line in entry)
    assert sum(" fusion(" in line for line in entry) <= 2  # the data's layout, and the condition that never holds


def test_the_marked_call_is_emitted_as_one_function(tmp_path):
    """XLA's attributes are undocumented: where a version ignores them, each fusion in the loops is a kernel of its own."""
    script = """
        import jax.numpy as jnp
        import fisher_jax as fj

        fj.fit_batch(lambda p, y: -0.5 * (y - p) ** 2, 0.0, jnp.ones((2, 3)))
    """
    dump = f"--xla_dump_to={tmp_path} --xla_dump_hlo_module_re=jit_call$"
    run_script(script, os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {dump}"})
    kernels = [line for file in tmp_path.glob("*.ir-no-opt.ll") for line in file.read_text().splitlines()]
    kernels = [line for line in kernels if line.startswith("define ptr @")]
    assert 1 <= len(kernels) <= 3, kernels


def run_script(script, environment=None):
    """What a script prints in a process of its own."""
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_marked_call_may_leave_an_argument_unused():
    """XLA aborted the process, so in one of its own."""
    script = """
        import jax, jax.numpy as jnp
        from fisher_jax.fitting import cpu

        double = jax.jit(cpu.one_kernel(lambda used, unused: {"twice": 2 * used}))
        print(double(jnp.arange(3.0), jnp.full((2, 2), jnp.nan))["twice"].tolist())
    """
    assert run_script(script) == "[0.0, 2.0, 4.0]\n"


def test_what_does_not_compile_marked_is_compiled_unmarked(monkeypatch):
    def cannot_compile(function):
        def call(*arguments):
            raise jax.errors.JaxRuntimeError("INTERNAL: cannot link")

        return call

    marked = fj.fit_batch(normal, START, NORMAL_DATA)
    monkeypatch.setattr(cpu, "one_kernel", cannot_compile)
    unmarked = fj.fit_batch(new_normal(), START, NORMAL_DATA)
    assert unmarked.engine == "kernel"
    np.testing.assert_array_equal(unmarked.status, marked.status)
    np.testing.assert_allclose(unmarked.free, marked.free, rtol=1e-10)


# --- other devices --------------------------------------------------------------------------------------------------


class ExportingJax:
    """Stands for jax in the engine: what is compiled there is lowered for CUDA as well."""

    def __init__(self):
        self.texts = []

    def __getattr__(self, name):
        return getattr(jax, name)

    def jit(self, function, **options):
        jitted = jax.jit(function, **options)

        class Lowering:
            def lower(_, *arguments):
                lowered = jitted.trace(*arguments).lower(lowering_platforms=("cuda",))
                self.texts.append(lowered.as_text())
                return jitted.lower(*arguments)

        return Lowering()


@pytest.mark.parametrize("way", ["kernel", "arrays", "products"])
def test_fit_programs_lower_for_cuda_without_lapack(way, monkeypatch):
    exporting = ExportingJax()
    monkeypatch.setattr(engine, "jax", exporting)
    if way == "products":
        fits = fj.fit_batch(lambda b, y, z: logistic(b, y, z), jnp.zeros(9), np.ones((2, 20)), given=np.eye(20)[:, :9])
    else:
        fits = fj.fit_batch(new_normal(), START, NORMAL_DATA, engine=way)
    assert fits.engine == ("arrays" if way == "products" else way)
    assert exporting.texts
    assert all("lapack" not in text and "callback" not in text for text in exporting.texts)
