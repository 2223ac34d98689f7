"""What a person waits for: imports, first calls in fresh processes, programs compiled, warm calls, memory of dropped models.

``python benchmarks/latency.py [--laps N] [--first PATH]``: each measurement is a process of its own, without persistent cache
and with x64; the versions take turns, and the median of the laps counts. Times of first calls begin after the imports.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

SHAPE, RATE, ROWS = 4.0, 0.05, 254


def gamma_model():
    import jax
    import numpy as np
    from jax.scipy.stats import gamma

    import fisher_jax as fj

    def log_density(params, y):
        return gamma.logpdf(y, params["shape"], scale=1 / params["rate"])

    def sample(key, params):
        return jax.random.gamma(key, params["shape"]) / params["rate"]

    y = np.random.default_rng(1).gamma(SHAPE, 1 / RATE, size=ROWS)
    constraints = {"shape": fj.positive, "rate": fj.positive}
    return fj, fj.Model(log_density, sample=sample, constraints=constraints), {"shape": 1.0, "rate": 1.0}, y


def counting_programs():
    """A function that says how many programs XLA has compiled since it was last called."""
    import jax

    compiled = []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)

    def new():
        count = len(compiled)
        compiled.clear()
        return count

    return new


def imports():
    start = time.perf_counter()
    import jax  # noqa: F401

    middle = time.perf_counter()
    import fisher_jax  # noqa: F401

    return {"import jax": middle - start, "import fisher_jax after it": time.perf_counter() - middle}


def report():
    fj, model, start, y = gamma_model()
    import jax

    programs = counting_programs()
    print(fj.fit(model, start, y).summary(), flush=True)
    seconds = time.time() - float(os.environ["STARTED"])
    count = programs()
    warm = []
    for _ in range(200):
        before = time.perf_counter()
        fit = fj.fit(model, start, y)
        jax.block_until_ready((fit.params, fit.standard_errors()))
        warm.append(time.perf_counter() - before)
    return {
        "process start to printed report": seconds,
        "process start to printed report: programs": count,
        "warm fit with standard errors": statistics.median(warm),
    }


def first_call(name, call):
    programs = counting_programs()
    before = time.perf_counter()
    call()
    return {f"{name}, printed": time.perf_counter() - before, f"{name}: programs": programs()}


def first_batch():
    import numpy as np

    fj, model, start, _ = gamma_model()
    y = np.random.default_rng(2).gamma(SHAPE, 1 / RATE, size=(1000, 50))
    return first_call("first fit_batch, 1000 fits", lambda: print(fj.fit_batch(model, start, y).summary()))


def first_profile():
    fj, model, start, y = gamma_model()
    return first_call("first fit and profile", lambda: print(fj.profile_likelihood(fj.fit(model, start, y))))


def first_bootstrap():
    import jax

    fj, model, start, y = gamma_model()
    return first_call(
        "first fit and bootstrap", lambda: print(fj.bootstrap(fj.fit(model, start, y), jax.random.key(1)))
    )


def first_sampling_distribution():
    import jax

    fj, model, _, _ = gamma_model()
    truth, key = {"shape": SHAPE, "rate": RATE}, jax.random.key(1)
    return first_call(
        "first sampling_distribution",
        lambda: print(fj.sampling_distribution(model, truth, key, num_observations=50)),
    )


def repeated():
    """New programs for a small change of what has been done before."""
    fj, model, start, y = gamma_model()
    programs, counts = counting_programs(), {}

    def count(name, call):
        programs()
        before = time.perf_counter()
        result = call()
        counts.update({f"{name}: new programs": programs(), f"{name}: seconds": time.perf_counter() - before})
        return result

    fit = fj.fit(model, start, y)
    print(fit.summary(), fj.likelihood_ratio_test(fit, {"shape": 3.5}))
    count("one observation less", lambda: print(fj.fit(model, start, y[:-1]).summary()))
    fixed = fj.Model(model.log_density, constraints={"shape": fj.fixed, "rate": fj.positive})
    count("one parameter fixed", lambda: print(fj.fit(fixed, start, y).summary()))
    count("another value tested", lambda: print(fj.likelihood_ratio_test(fit, {"shape": 3.0})))
    return counts


def dropped_models():
    """Growth of resident memory over 24 models that close over 20 MB each, after a first one that brings what all need."""
    import gc

    import jax
    import jax.numpy as jnp
    import numpy as np
    from harness import memory

    import fisher_jax as fj

    def fit(seed):
        table = jnp.asarray(np.random.default_rng(seed).normal(size=2_500_000))
        model = fj.Model(lambda params, row: -0.5 * (params["loc"] - table[row]) ** 2)
        return float(fj.fit(model, {"loc": 0.0}, np.arange(100)).params["loc"])

    def resident():
        gc.collect()
        return memory() / 2**20

    jax.block_until_ready(fit(0))
    before = resident()
    for seed in range(1, 25):
        fit(seed)
    return {"24 models of 20 MB dropped: growth, MB": resident() - before}


ASKED = {
    "import fisher_jax after it": "0.2 s",
    "process start to printed report": "2 s",
    "warm fit with standard errors": "0.3 ms",
    "first fit_batch, 1000 fits, printed": "3 s",
    "first fit and profile, printed": "3 s",
    "first fit and bootstrap, printed": "3 s",
    "first sampling_distribution, printed": "6 s",
    "one observation less: new programs": "0",
    "one parameter fixed: new programs": "0",
    "another value tested: new programs": "0",
    "24 models of 20 MB dropped: growth, MB": "100",
}
MEASUREMENTS = (
    imports,
    report,
    first_batch,
    first_profile,
    first_bootstrap,
    first_sampling_distribution,
    repeated,
    dropped_models,
)


def measure(name, path):
    """In a fresh process: its answer is the last line."""
    environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu", "STARTED": repr(time.time())}
    if path:
        environment["PYTHONPATH"] = os.pathsep.join([path, environment.get("PYTHONPATH", "")])
    command = [sys.executable, __file__, "--measure", name]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        print(f"{name} failed: {run.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return {}
    return json.loads(run.stdout.splitlines()[-1])


def written(row, value):
    if isinstance(value, int):
        return str(value)
    if "MB" in row:
        return f"{value:.0f}"
    return f"{1e3 * value:.2f} ms" if value < 0.02 else f"{value:.2f} s"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--laps", type=int, default=3)
    parser.add_argument("--first", help="the root of another version of fisher_jax, measured in turn")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(globals()[arguments.measure]()))
        return
    versions = {"this version": None} | ({"first version": arguments.first} if arguments.first else {})
    values: dict[str, dict[str, list]] = {}
    for measurement in MEASUREMENTS:
        for _ in range(arguments.laps):
            for version, path in versions.items():
                for row, value in measure(measurement.__name__, path).items():
                    values.setdefault(row, {name: [] for name in versions})[version].append(value)
    from harness import table

    def median(row, numbers):
        return written(row, statistics.median_low(numbers)) if numbers else "-"

    rows = [
        [row, *(median(row, numbers) for numbers in of_row.values()), ASKED.get(row, "")]
        for row, of_row in values.items()
    ]
    table("latency", [*versions, "asked: below or equal"], rows)


if __name__ == "__main__":
    main()
