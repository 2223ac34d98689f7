"""`fit_batch` beside the fitters of each field: ``python benchmarks/batches``, with --help for its options.

Each question has a process of its own, so that its first call and its memory are its own. On a GPU they compile side by side.
"""

import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
MODULES = (
    "spots",
    "extremes",
    "counts",
    "regressions",
    "mixtures",
    "survival",
    "volatility",
    "one_large_fit",
    "trouble",
)
ON_GPU = ("on_gpu",)


def main():
    import harness

    settings = harness.read_settings()
    questions = {}
    for module in (*MODULES, *ON_GPU):
        questions |= importlib.import_module(module).QUESTIONS
    if settings.serve:
        harness.serve(questions[settings.serve], settings.size)
    elif settings.only in questions:
        question = questions[settings.only]
        load = f"{harness.CORES} cores, load {os.getloadavg()[0]:.2f} before"
        print(f"\n== {settings.only}: {load}, {harness.fj.__file__}", flush=True)
        if isinstance(question, harness.Question):
            harness.answer(settings.only, question, settings)
        else:
            question(settings)
    else:
        chosen = [name for name in questions if name.startswith(settings.only)]
        if not settings.only:  # the questions of the device
            chosen = [name for name in chosen if name.startswith("gpu-") == (settings.device == "gpu")]
        if not chosen:
            sys.exit(f"--only {settings.only}: choose from {', '.join(questions)}")
        if settings.device == "gpu":
            side_by_side(chosen)
        else:
            for name in chosen:
                subprocess.run(command(name), check=True)


def command(name):
    return [sys.executable, sys.argv[0], *sys.argv[1:], "--only", name]


def side_by_side(names):
    """All questions compile at once, and are timed one after another; what they print comes in their order."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "ONE_AT_A_TIME": str(Path(folder, "lock"))}
        outputs = [Path(folder, name) for name in names]
        processes = []
        for name, output in zip(names, outputs, strict=True):
            with output.open("w") as file:
                process = subprocess.Popen(command(name), env=environment, stdout=file, stderr=subprocess.STDOUT)
            processes.append(process)
        for name, process, output in zip(names, processes, outputs, strict=True):
            failed = process.wait()
            print(output.read_text(), f"{name} failed\n" if failed else "", sep="", flush=True)
        if any(process.returncode for process in processes):
            sys.exit(1)


if __name__ == "__main__":
    main()
