"""All benchmarks, one after another: what `make bench` runs. `nist.py` needs files that are not in the repository."""

import pathlib
import subprocess
import sys

here = pathlib.Path(__file__).parent
for script in [*sorted(here.glob("*.py")), here / "batches"]:
    if script.name not in ("run.py", "harness.py", "nist.py"):
        print(f"\n== {script.name}", flush=True)
        subprocess.run([sys.executable, str(script)], check=True)
