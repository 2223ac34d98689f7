"""A million GEV fits from disk to disk: rate, memory, and cost per fit against a hundred thousand in memory.

Three processes: one writes the data (annual maxima, n = 50, location and scale about 1, shape about 0.1); one imports jax and
fisher_jax and says how much is then resident; one streams. The last first fits blocks of a hundred thousand in memory, then
streams, then fits in memory again, all warm, and compares with the mean of the two, so that a slow moment of the machine meets
both. Resident memory is the largest while streaming, pages of the source included.

With `parts`: 100 000 fits by two processes, each a part on half of the cores, and by one process on all, in turn.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import harness

FITS, ROWS, IN_MEMORY = 1_000_000, 50, 100_000
FITS_IN_PARTS = 100_000
START = {"loc": 1.0, "scale": 1.0, "shape": 0.1}


def write(path, fits):
    """GEV by inversion, each data set with parameters of its own."""
    import numpy as np

    rng = np.random.default_rng(1)
    out = np.lib.format.open_memmap(path, "w+", float, (fits, ROWS))
    for start in range(0, fits, IN_MEMORY):
        count = min(IN_MEMORY, fits - start)
        loc, scale = rng.normal(1.0, 0.1, (2, count, 1))
        shape = rng.normal(0.1, 0.05, (count, 1))
        out[start : start + count] = loc + scale * (rng.exponential(size=(count, ROWS)) ** -shape - 1) / shape


class Watch(threading.Thread):
    """The most memory that was resident, looked at every ten milliseconds."""

    def __init__(self):
        super().__init__(daemon=True)
        self.most, self.done = 0, threading.Event()

    def run(self):
        while not self.done.wait(0.01):
            self.most = max(self.most, harness.memory())

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.join()


def imported():
    import jax

    jax.config.update("jax_enable_x64", True)
    import fisher_jax as fj

    jax.block_until_ready(jax.numpy.zeros(3) + 1.0)
    return fj


def measure(source, sink):
    """In this process: stream, between two fits in memory."""
    fj = imported()
    idle = harness.memory()
    import numpy as np

    model = fj.families.gev
    ys = np.load(source, mmap_mode="r")
    some = np.array(ys[:IN_MEMORY])

    def in_memory():
        start = time.perf_counter()
        fj.fit_batch(model, START, some).covariance()
        return (time.perf_counter() - start) / len(some)

    def stream(data, name):
        with Watch() as watch:
            start = time.perf_counter()
            result = fj.fit_stream(model, START, data, pathlib.Path(sink, name))
            return result, time.perf_counter() - start, watch.most

    with_warnings_ignored(in_memory)
    stream(ys[:2000], "warm.zarr")
    before = with_warnings_ignored(in_memory)
    result, seconds, most = stream(ys, "fits.zarr")
    after = with_warnings_ignored(in_memory)
    per_fit = seconds / len(ys)
    print(json.dumps({
        "fits": result.num_fits, "statuses": result.statuses, "per_second": 1 / per_fit, "seconds": seconds,
        "in_memory_per_second": [1 / before, 1 / after], "ratio": per_fit / ((before + after) / 2),
        "gigabytes": (most - idle) / 2**30, "idle_gigabytes": idle / 2**30,
    }))  # fmt: skip


def do_part(source, folder, part, parts, devices):
    """In this process: warm, then stream a part, or the whole where there is one part, to each sink that is named."""
    fj = imported()
    import numpy as np

    ys = np.load(source, mmap_mode="r")
    which = None if parts == "1" else (int(part), int(parts))
    settings = {"devices": int(devices), "block": 2**13}
    fj.fit_stream(fj.families.gev, START, ys[: 2**13], pathlib.Path(folder, f"warm-{part}-{parts}.zarr"), **settings)
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        fj.fit_stream(fj.families.gev, START, ys, line.strip(), part=which, **settings)
        print(time.perf_counter() - start, flush=True)


def measure_parts(source, folder, repeats=3):
    """Seconds of one process, and of two at the same time, with as many threads in all; what compiles is not counted."""
    threads = len(os.sched_getaffinity(0))
    processes = {}
    for parts in (1, 2):
        command = [sys.executable, __file__, "part", source, folder]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        processes[parts] = [
            subprocess.Popen([*command, str(part), str(parts), str(max(1, threads // parts))], **pipes)
            for part in range(parts)
        ]
    for process in (*processes[1], *processes[2]):
        process.stdout.readline()
    seconds = {1: [], 2: []}
    for k in range(repeats):
        for parts, those in processes.items():
            for process in those:
                process.stdin.write(f"{pathlib.Path(folder, f'parts-{k}-{parts}.zarr')}\n")
                process.stdin.flush()
            seconds[parts].append(max(float(process.stdout.readline()) for process in those))
    for process in (*processes[1], *processes[2]):
        process.communicate()
    return seconds


def with_warnings_ignored(function):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of 100 000 do not converge: it is their covariances that are warned of
        return function()


def main(arguments):
    fits = FITS_IN_PARTS if "parts" in arguments else FITS
    fits = next((int(text) for text in arguments if text.isdigit()), fits)
    with tempfile.TemporaryDirectory() as folder:
        source = str(pathlib.Path(folder, "maxima.npy"))
        subprocess.run([sys.executable, __file__, "write", source, str(fits)], check=True)
        if "parts" in arguments:
            seconds = measure_parts(source, folder)
            one, two = (statistics.median(seconds[parts]) for parts in (1, 2))
            rows = [
                ["seconds of one process", f"{one:.2f}"],
                ["seconds of two parts", f"{two:.2f}"],
                ["two parts / one process", f"{two / one:.2f}"],
            ]
            harness.table(f"{fits} GEV fits in parts, n = {ROWS}, float64, with covariances", ["median of 3"], rows)
            return
        command = [sys.executable, __file__, "measure", source, folder]
        result = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    if "--json" in arguments:
        print(json.dumps(result))
        return
    before, after = result["in_memory_per_second"]
    rows = [
        ["fits/s streamed", f"{result['per_second']:.0f}"],
        ["fits/s in memory, before and after", f"{before:.0f} and {after:.0f}"],
        ["cost per fit, streamed / in memory", f"{result['ratio']:.2f}"],
        ["GiB resident above those of Python with fisher_jax", f"{result['gigabytes']:.2f}"],
        ["GiB of Python with fisher_jax", f"{result['idle_gigabytes']:.2f}"],
        *([f"fits: {label}", str(count)] for label, count in result["statuses"].items()),
    ]
    title = f"{result['fits']} GEV fits, n = {ROWS}, float64, with covariances, from .npy to .zarr"
    harness.table(title, [f"{result['seconds']:.0f} s"], rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        write(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1:2] == ["measure"]:
        measure(*sys.argv[2:])
    elif sys.argv[1:2] == ["part"]:
        do_part(*sys.argv[2:])
    else:
        main(sys.argv[1:])
