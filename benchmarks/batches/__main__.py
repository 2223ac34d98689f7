"""`fit_batch` beside the fitters of each field: ``python benchmarks/batches [workload] [--fits 1000] [--million]``.

A fit counts if it ends within 0.01 standard error, in every parameter, of a float64 reference. All contenders of a table take
turns in one process; each workload has a process of its own, so that its first call and its memory are its own.
"""

import importlib
import subprocess
import sys

WORKLOADS = ("spots", "extremes", "counts", "survival", "volatility", "trouble")


def main():
    import common

    arguments = common.parser.parse_args()
    if arguments.workload:
        importlib.import_module(arguments.workload).main(arguments)
        return
    for workload in WORKLOADS:
        print(f"\n== {workload}", flush=True)
        subprocess.run([sys.executable, __file__, workload, *sys.argv[1:]], check=True)


if __name__ == "__main__":
    main()
