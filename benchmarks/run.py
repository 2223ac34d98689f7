"""All benchmarks, one after another: what `make bench` runs."""

import pathlib
import subprocess
import sys

for script in sorted(pathlib.Path(__file__).parent.glob("*.py")):
    if script.name != "run.py":
        print(f"\n== {script.name}", flush=True)
        subprocess.run([sys.executable, str(script)], check=True)
