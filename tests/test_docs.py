"""What is written runs: docstring examples, the README's code, the notebooks."""

import doctest
import importlib
import importlib.util
import json
import os
import pathlib
import pkgutil
import re
import subprocess
import sys

import jax
import pytest

import fisher_jax

ROOT = pathlib.Path(fisher_jax.__file__).parent.parent
MODULES = [info.name for info in pkgutil.walk_packages(fisher_jax.__path__, "fisher_jax.")]
QUICK = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
COMPUTING = ("04", "06")  # notebooks that take longer to compute than to compile
PLAIN = {key: value for key, value in QUICK.items() if key != "XLA_FLAGS"}  # compiled as for a user


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run(name):
    with jax.enable_x64(False):  # as a reader's session is who has set nothing
        failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert failed == 0


def test_the_readme_example_runs_and_prints_what_the_readme_says():
    text = (ROOT / "README.md").read_text()
    code, printed = re.search(r"```python\n(.*?)```\n.*?```text\n(.*?)```", text, re.S).groups()
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env=PLAIN)
    assert run.returncode == 0, run.stderr
    assert without_rounding(run.stdout) == without_rounding(printed)


def without_rounding(text):
    """The decrement of a good fit is rounding error, another on each machine."""
    return re.sub(r"\d\.\de-\d\d standard errors", "tiny", text).rstrip()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")))
def test_every_notebook_runs_from_a_clean_kernel(name):
    command = [sys.executable, str(ROOT / "notebooks" / "run.py"), name]
    env = PLAIN if name[:2] in COMPUTING else QUICK
    run = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.slow
def test_the_demo_prints_reports_and_writes_a_picture(tmp_path):
    command = [sys.executable, "-W", "error", str(ROOT / "notebooks" / "demo.py")]
    run = subprocess.run(command, capture_output=True, text=True, env=PLAIN, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("Maximum-likelihood fit") >= 3
    assert "NOT TO BE RELIED ON" not in run.stdout
    assert list(tmp_path.glob("*.png"))


def test_every_public_name_has_a_page_with_an_example():
    titles = {page.title for page in pages().reference()}
    namespaces = {"families", "moments", "optimizers", "plots", "stream"}
    wanted = {name for name in fisher_jax.__all__ if not name.startswith("__")} - namespaces
    for room in namespaces - {"families"}:
        inside = getattr(fisher_jax, room)
        # A figure may have the name of the function whose result it draws.
        same = {name for name in inside.__all__ if getattr(fisher_jax, name, None) is getattr(inside, name)}
        wanted |= {f"{room}.{name}" for name in set(inside.__all__) - same}
    assert titles == wanted | {"families"}
    assert pages().lacking_examples() == []
    families = next(page for page in pages().reference() if page.title == "families")
    for name in fisher_jax.families.__all__:
        assert f"\n## {name}\n" in families.text
    assert {page.topic for page in pages().reference()} <= set(pages().TOPICS.values())
    lowered = [page.path.lower() for page in pages().reference()]
    assert len(set(lowered)) == len(lowered)  # where names of files that differ in capitals only are the same


def pages():
    """docs/pages.py, which needs no mkdocs to say what pages there are."""
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "pages.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["pages"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    run = subprocess.run(command, capture_output=True, text=True, env=PLAIN | {"NO_MKDOCS_2_WARNING": "1"}, cwd=ROOT)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "WARNING" not in run.stdout + run.stderr
    for page in pages().reference():
        shown = (tmp_path / "site" / page.path).with_suffix(".html").read_text()
        assert page.title.split(".")[-1] in shown
    for path in pages().notebooks():
        shown = (tmp_path / "site" / "notebooks" / path.name).with_suffix(".html").read_text()
        assert "data:image/png" in shown
        assert shown.count("<math ") == formulas_of(path)
        assert not re.search(r"<script[^>]*>[^<]*MathJax", shown)  # which would come from the net
        assert not re.findall(r'href="\d\d_\w+\.ipynb"', shown)  # to the pages of notebooks, not to their files
    assert re.findall(r'href="(notebooks/01_\w+\.\w+)"', (tmp_path / "site" / "index.html").read_text())


def formulas_of(notebook):
    cells = json.loads(notebook.read_text())["cells"]
    text = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return len(re.findall(r"(\$\$?)[^$]+\1", text))


def test_links_among_readme_and_notebooks_lead_somewhere():
    for path in [ROOT / "README.md", *pages().notebooks()]:
        for target in re.findall(r"\]\(((?:notebooks/)?\d\d_\w+\.ipynb)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name} leads to {target}, which is not there"


def test_notebooks_are_kept_with_their_figures():
    for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"):
        assert '"image/png"' in path.read_text(), f"{path.name} has no figure: make notebooks"
