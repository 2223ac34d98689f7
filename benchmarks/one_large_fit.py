"""One fit of more rows than memory need hold: RAND's Health Insurance Experiment, Poisson, 1000 times over from one Parquet file.

The 20 190 rows of statsmodels.datasets.randhie stand in the file again and again, so that the estimates are those of the original
and the standard errors those divided by √1000. Reported are the seconds of a pass over all rows, the largest memory of the process,
and rows a second beside statsmodels' Newton steps on as many rows as it holds in memory. Each runs in a process of its own.
``python benchmarks/one_large_fit.py 20`` repeats 20 times only.
"""

import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

COLUMNS = ["lncoins", "idp", "lpi", "fmde", "physlm", "disea", "hlthg", "hlthf", "hlthp"]
IN_MEMORY = 20  # repeats that statsmodels is given


def rows():
    import numpy as np
    from statsmodels.datasets import randhie

    table = randhie.load_pandas().data
    return table["mdvis"].to_numpy(), np.column_stack([np.ones(len(table)), table[COLUMNS].to_numpy(float)])


def write(path, repeats):
    import pyarrow as pa
    import pyarrow.parquet as pq

    y, x = rows()
    table = pa.table({"mdvis": y, **{f"x{k}": x[:, k] for k in range(x.shape[1])}})
    with pq.ParquetWriter(path, table.schema) as writer:
        for _ in range(repeats):
            writer.write_table(table)


def fisher_jax(path, repeats):
    import jax

    jax.config.update("jax_enable_x64", True)
    import numpy as np
    from jax import numpy as jnp

    import fisher_jax as fj

    model = fj.linked(fj.families.poisson, lambda beta, z: {"rate": jnp.exp(z @ beta)})
    names = [f"x{k}" for k in range(len(COLUMNS) + 1)]
    arguments = model, np.zeros(len(names)), fj.sources.parquet(path, "mdvis")

    def again():
        return fj.fit(*arguments, given=fj.sources.parquet(path, names))

    start = time.perf_counter()
    again()
    first = time.perf_counter() - start
    start = time.perf_counter()
    fit = again()
    seconds = time.perf_counter() - start
    y, x = rows()
    one = fj.fit(model, fit.params, y, given=x)
    errors = one.standard_errors() / np.sqrt(repeats)
    return {
        "first": first,
        "seconds": seconds,
        "passes": fit.origin.num_passes,
        "rows": fit.origin.num_rows,
        "status": fit.status.label,
        "estimates": float(np.max(np.abs(fit.params - one.params))),
        "errors": float(np.max(np.abs(fit.standard_errors() / errors - 1))),
    }


def statsmodels(path, repeats):
    import numpy as np
    from statsmodels.discrete.discrete_model import Poisson

    y, x = rows()
    y, x = np.tile(y, repeats), np.tile(x, (repeats, 1))
    start = time.perf_counter()
    result = Poisson(y, x).fit(method="newton", disp=False)
    seconds = time.perf_counter() - start
    passes = result.mle_retvals["iterations"] + 1
    return {"first": seconds, "seconds": seconds, "passes": passes, "rows": len(y), "status": "", "estimates": 0.0}


TOOLS = {"fisher_jax": fisher_jax, "statsmodels": statsmodels}


def main(repeats):
    import harness

    table = []
    with tempfile.TemporaryDirectory() as folder:
        path = str(pathlib.Path(folder) / "randhie.parquet")
        write(path, repeats)
        for name, each in (("fisher_jax", repeats), ("statsmodels", min(repeats, IN_MEMORY))):
            command = [sys.executable, __file__, name, path, str(each)]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            result = json.loads(run.stdout.splitlines()[-1])
            seconds = result["seconds"] / result["passes"]
            accuracy = f"{result['estimates']:.0e}, {result['errors']:.0e}" if "errors" in result else "-"
            rate = f"{result['rows'] * result['passes'] / result['seconds'] / 1e6:.2f}"
            times = [
                f"{result['first']:.1f} s",
                f"{result['seconds']:.1f} s",
                f"{result['passes']}",
                f"{seconds:.2f} s",
            ]
            table.append([name, str(result["rows"]), *times, rate, f"{result['memory']:.2f} GiB", accuracy])
    titles = ["rows", "first fit", "fit", "passes", "a pass", "10⁶ rows/s a pass", "memory", "off in estimates, SEs"]
    harness.table("RAND HIE, Poisson, p = 10, from Parquet", titles, table)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        result = TOOLS[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
        result["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps(result))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
