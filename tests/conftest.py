"""One setting for all tests: float64, two devices, shapes and types checked at run time, no silent rank promotion.

Nearly all of a test's time is compiling, so the tests ask for less of it, where XLA_FLAGS does not say otherwise: code that
is not optimised and, in JAX 0.10, comes from simpler emitters, two fifths of the time in all. `make exhaustive` compiles as
for users.
"""

import gc
import importlib.metadata
import itertools
import os
import pathlib

import pytest

QUICKLY = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    QUICKLY += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
os.environ.setdefault("XLA_FLAGS", " ".join(QUICKLY))

MAPS = pathlib.Path("/proc/self/maps")
_count = itertools.count(1)


def pytest_configure(config):
    """Import the library with its types checked, where tests run: not in the process that hands them out to workers."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return
    import jax  # reads XLA_FLAGS when it first compiles
    import typechecking

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    with typechecking.checking("fisher_jax"):
        import fisher_jax

        for public in fisher_jax.__all__:  # imported when first used, and checked only if that is here
            getattr(fisher_jax, public)
    # A collection for every 700 new objects, as Python has it, would be some hundred while one program is traced.
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


@pytest.fixture(autouse=True)
def few_enough_compiled_programs():
    """Let go of compiled programs before they use up memory, or the maps of it that a process may have (65 530)."""
    yield
    if next(_count) % 10 == 0 and MAPS.exists() and MAPS.read_bytes().count(b"\n") > 20_000:
        import jax

        from fisher_jax.models.programs import Programs

        jax.clear_caches()
        for programs in [thing for thing in gc.get_objects() if type(thing) is Programs]:
            programs.clear()  # those kept with the functions that they were compiled for
        gc.collect()
