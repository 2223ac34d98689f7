"""Crossed effects: time and memory of one fit, first and warm, with hundreds to thousands of effects.

    python benchmarks/crossed.py [LEVELS LEVELS ROWS] …

Each design in a process of its own, since what is measured are the first fit, compilation included, and the peak of memory.
"""

import resource
import subprocess
import sys
import time

DESIGNS = [(300, 25, 7_500), (3_000, 25, 30_000), (3_000, 25, 75_000), (1_000, 300, 30_000)]


def measure(subjects, items, rows, family):
    begun = time.perf_counter()
    import jax

    jax.config.update("jax_enable_x64", True)

    import jax.numpy as jnp
    import numpy as np

    import fisher_jax as fj

    rng = np.random.default_rng(1)
    subject, item = rng.integers(0, subjects, rows), rng.integers(0, items, rows)
    x = rng.normal(size=rows)
    eta = 0.5 + 0.3 * x + 0.6 * rng.normal(size=subjects)[subject] + 0.4 * rng.normal(size=items)[item]
    if family == "poisson":
        y = rng.poisson(np.exp(eta)).astype(float)
    else:
        y = (rng.uniform(size=rows) < 1 / (1 + np.exp(-eta))).astype(float)

    def predictor(params, effects, z):
        eta = params["mean"] + params["slope"] * z["x"] + effects["subject"] + effects["item"]
        return {"rate": jnp.exp(eta)} if family == "poisson" else {"logit": eta}

    model = fj.mixed(
        getattr(fj.families, family),
        predictor,
        {"subject": 0.0, "item": 0.0},
        levels={"subject": subjects, "item": items},
    )
    start = {"mean": 0.0, "slope": 0.0, "sd": {"subject": 1.0, "item": 1.0}}
    table = fj.by_group({"y": y, "x": x, "subject": subject, "item": item}, [])
    imported, processor = time.perf_counter(), time.process_time()
    fit = fj.fit(model, start, table["y"], given=table)
    first, processor = time.perf_counter() - imported, time.process_time() - processor
    warm, again = time.perf_counter(), time.process_time()
    fj.fit(model, start, table["y"], given=table)
    warm, again = time.perf_counter() - warm, time.process_time() - again
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    sd = fit.params["sd"]
    print(
        f"{family:10} {rows:7} {model.algebra:34} {fit.status.label:10} {int(fit.num_steps):3} {imported - begun:7.1f} "
        f"{first:7.1f} {processor:7.1f} {warm:7.2f} {again:7.2f} {peak:6.2f}   {sd['subject']:.4f} {sd['item']:.4f}"
    )


def main():
    if sys.argv[1:2] == ["--one"]:
        subjects, items, rows = map(int, sys.argv[2:5])
        measure(subjects, items, rows, sys.argv[5])
        return
    numbers = [int(argument) for argument in sys.argv[1:]]
    designs = [tuple(numbers[i : i + 3]) for i in range(0, len(numbers), 3)] or DESIGNS
    print(f"{'':53}          {'':4} {'import':>7} {'first fit':>15} {'warm fit':>15} {'peak':>6}   estimates")
    print(
        f"{'family':10} {'rows':>7} {'algebra':34} {'status':10} {'its':>3} {'s':>7} {'s':>7} {'CPU s':>7} {'s':>7} {'CPU s':>7} "
        f"{'GiB':>6}   of the standard deviations"
    )
    for design in designs:
        for family in ("bernoulli", "poisson"):
            subprocess.run([sys.executable, __file__, "--one", *map(str, design), family], check=True)


if __name__ == "__main__":
    main()
