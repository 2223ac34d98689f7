"""Run every numbered notebook from a clean kernel; with --write, keep the outputs in the file.

A notebook fails if a cell raises, or writes to stderr as a warning does.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

HERE = Path(__file__).resolve().parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
CELL_TIMEOUT = 600  # seconds
# A collection for every 700 new objects, as Python has it, would be a sixth of the time, while JAX traces.
FEW_COLLECTIONS = "--IPKernelApp.exec_lines=import gc; gc.set_threshold(20_000, 20, 50); del gc"


def main() -> int:
    """Run the notebooks, say how each went, and return the number that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="store the outputs in the notebooks")
    parser.add_argument("names", nargs="*", help="which notebooks; by default all that have a number")
    arguments = parser.parse_args()
    names = arguments.names or sorted(path.name for path in HERE.glob("[0-9]*.ipynb"))
    return sum(not report(HERE / name, arguments.write) for name in names)


def report(path: Path, write: bool) -> bool:
    """Run one notebook and print the outcome in a line or, if it failed, with the reason."""
    began = time.perf_counter()
    try:
        notebook = execute(path)
    except CellExecutionError as error:
        print(f"{path.name}: failed\n{error}", file=sys.stderr)
        return False
    if complaints := to_stderr(notebook):
        print(f"{path.name}: wrote to stderr\n{complaints}", file=sys.stderr)
        return False
    if write:
        nbformat.write(notebook, path)
    print(f"{path.name}: ran in {time.perf_counter() - began:.0f} s{', outputs stored' if write else ''}")
    return True


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook with fresh outputs and none of what would differ in the next run for no reason."""
    notebook = nbformat.read(path, as_version=4)
    # With no directories to look into, jupyter_client offers the kernel of the interpreter that runs this script.
    kernel = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    kernel.transport_encryption = "auto"  # older versions of jupyter_client take no notice
    client = NotebookClient(
        notebook,
        km=kernel,
        timeout=CELL_TIMEOUT,
        extra_arguments=[FEW_COLLECTIONS],
        resources={"metadata": {"path": str(HERE)}},
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute(cleanup_kc=True, env=os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"})
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
    return notebook


def to_stderr(notebook: nbformat.NotebookNode) -> str:
    """What the cells wrote to stderr."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.get("name") == "stderr")


if __name__ == "__main__":
    sys.exit(main())
