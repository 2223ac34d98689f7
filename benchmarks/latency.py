"""What a person waits for: imports, first calls in fresh processes, programs compiled, warm calls, memory of dropped models.

``python benchmarks/latency.py [--laps N] [--first PATH]``: each measurement is a process of its own, without persistent cache
and with x64; the versions take turns, and the median of the laps counts. Times of first calls begin after the imports.

``python benchmarks/latency.py --cache [--laps N]``: first calls by kind of model, without JAX's persistent cache and with one that
an earlier process has filled.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
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
    for _ in range(300):
        before = time.perf_counter()
        fit = fj.fit(model, start, y)
        jax.block_until_ready((fit.params, fit.standard_errors()))
        warm.append(time.perf_counter() - before)
    return {
        "process start to printed report": seconds,
        "process start to printed report: programs": count,
        "warm fit with standard errors, at first": statistics.median(warm[:50]),
        "warm fit with standard errors": statistics.median(warm[-50:]),  # after a second of them the loop is compiled
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


def kinds_of_model():
    """By name: a model, its start, one data set and its covariates."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.scipy.stats import norm

    fj, gamma, start, y = gamma_model()
    rng = np.random.default_rng(3)
    x = np.column_stack([np.ones(ROWS), rng.normal(size=(ROWS, 3))])
    counts = rng.poisson(np.exp(x @ [0.5, 0.3, -0.2, 0.1]) * rng.gamma(2.0, 0.5, ROWS))
    year = np.linspace(-1, 1, ROWS)
    maxima = rng.gumbel(20.0 + 2.0 * year, 3.0)
    apart = rng.normal(size=ROWS) + rng.choice([-4.0, 0.0, 5.0], ROWS)

    def mixture(params, y):
        return jax.scipy.special.logsumexp(jnp.log(params["weight"]) + norm.logpdf(y, params["loc"], params["scale"]))

    def regression(params, x):
        mean = jnp.exp(x @ params["beta"])
        return {"mean": mean, "size": params["size"]}

    def garch(params, y):
        def step(variance, y):
            return params["omega"] + params["alpha"] * y**2 + params["beta"] * variance, norm.logpdf(
                y, 0, variance**0.5
            )

        return jax.lax.scan(step, jnp.mean(y**2), y)[1]

    def map_of(params, year):
        return {"loc": params["loc"] + params["trend"] * year, "scale": params["scale"], "shape": params["shape"]}

    return {
        "gamma, 2 parameters": (gamma, start, y, None),
        "negative binomial regression, 5": (
            fj.linked(fj.families.negative_binomial, regression, constraints={"size": fj.positive}),
            {"beta": jnp.zeros(4), "size": 1.0},
            counts,
            x,
        ),
        "GEV with a trend, 4": (
            fj.linked(fj.families.gev, map_of, constraints={"scale": fj.positive}),
            {"loc": 20.0, "scale": 3.0, "shape": 0.1, "trend": 0.0},
            maxima,
            year,
        ),
        "mixture of three normals, 8": (
            fj.Model(mixture, constraints={"loc": fj.ordered, "scale": fj.positive, "weight": fj.simplex}),
            {"loc": jnp.array([-3.0, 0.5, 4.0]), "scale": jnp.ones(3), "weight": jnp.full(3, 1 / 3)},
            apart,
            None,
        ),
        "GARCH(1, 1), 3": (
            fj.dependent(garch, constraints=dict.fromkeys(("omega", "alpha", "beta"), fj.positive)),
            {"omega": 0.1, "alpha": 0.1, "beta": 0.8},
            rng.standard_t(5, ROWS),
            None,
        ),
    }


def first_calls_of(kind, call):
    """CPU seconds of one first call, and how many programs were compiled or, from the persistent cache, read.

    CPU seconds, on all cores, vary less on a shared machine than those that pass.
    """
    import jax
    import numpy as np

    import fisher_jax as fj

    model, start, data, given = kinds_of_model()[kind]
    jax.block_until_ready(jax.jit(lambda: 0)())
    programs = counting_programs()
    before = time.process_time()
    if call == "fit":
        print(fj.fit(model, start, data, given=given).summary())
    elif call == "fit_batch":
        print(fj.fit_batch(model, start, np.stack([data] * 100), given=given).summary())
    else:
        print(fj.profile_likelihood(fj.fit(model, start, data, given=given)))
    return {"seconds": time.process_time() - before, "programs": programs()}


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


def measure(name, path, *arguments, cache=None):
    """In a fresh process: its answer is the last line."""
    environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu", "STARTED": repr(time.time())}
    if path:
        environment["PYTHONPATH"] = os.pathsep.join([path, environment.get("PYTHONPATH", "")])
    if cache:
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
    command = [sys.executable, __file__, "--measure", name, *arguments]
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


def cache_table(laps):
    """First calls by kind of model, without the cache, and with one that is full; the least of the laps, since others disturb."""
    from harness import table

    rows = []
    for kind in kinds_of_model():
        for call in ("fit", "profile", "fit_batch"):
            with tempfile.TemporaryDirectory() as cache:
                measure("first_calls_of", None, kind, call, cache=cache)
                runs = [
                    [measure("first_calls_of", None, kind, call, cache=place) for _ in range(laps)]
                    for place in (None, cache)
                ]
            seconds = [written(call, min(run["seconds"] for run in of_place)) for of_place in runs]
            rows.append([f"{kind}: {call}", *seconds, str(runs[0][0]["programs"])])
            print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
    table("CPU time of first calls", ["no cache", "a full cache", "programs"], rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--laps", type=int, default=3)
    parser.add_argument("--first", help="the root of another version of fisher_jax, measured in turn")
    parser.add_argument("--cache", action="store_true", help="first calls by kind of model, and JAX's persistent cache")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        name, *rest = arguments.measure
        print(json.dumps(globals()[name](*rest)))
        return
    if arguments.cache:
        cache_table(arguments.laps)
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
