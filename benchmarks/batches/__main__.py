"""`fit_batch` beside the fitters of each field: ``python benchmarks/batches``, with --help for its options.

Each question has a process of its own, so that its first call and its memory are its own.
"""

import importlib
import os
import subprocess
import sys
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
        for name in chosen:
            subprocess.run([sys.executable, sys.argv[0], *sys.argv[1:], "--only", name], check=True)


if __name__ == "__main__":
    main()
