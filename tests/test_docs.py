"""What is written runs: docstring examples, the code of the README and of the pages in docs, the notebooks."""

import contextlib
import doctest
import functools
import importlib
import importlib.util
import io
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
from fisher_jax.models.constraints import Constraint

ROOT = pathlib.Path(fisher_jax.__file__).parent.parent
MODULES = [info.name for info in pkgutil.walk_packages(fisher_jax.__path__, "fisher_jax.")]
QUICK = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
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


PAGES = sorted((ROOT / "docs").rglob("*.md"))


def blocks_of(page):
    """Language, title and text of each block of code.

    A block of Python runs, after those before it. One whose title is the name of a file is a script and runs by itself; one with
    another title is the code of another tool, which is shown beside and does not run. A block of text is what the block before
    it prints.
    """
    found = re.findall(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', page.read_text(), re.S | re.M)
    return [(language, title, text) for language, title, text in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs_and_prints_what_the_page_says(page, scripts):
    defined, printed, num_run = {"__name__": page.stem}, None, 0
    with jax.numpy_rank_promotion("allow"):  # as a reader's session is
        for language, title, text in blocks_of(page):
            if language == "text" and printed is not None:
                assert without_rounding(printed) == without_rounding(text)
            printed = None
            if language != "python" or (title and not title.endswith(".py")):
                continue
            num_run += 1
            if title:
                printed = printed_by_script(text, scripts / title)
            else:
                output = io.StringIO()
                with contextlib.redirect_stdout(output):
                    exec(compile(text, f"{page.name}", "exec"), defined)
                printed = output.getvalue()
    assert num_run > 0


def printed_by_script(code, path):
    path.write_text(code)
    command = [sys.executable, "-W", "error", path.name]
    run = subprocess.run(command, capture_output=True, text=True, env=QUICK, cwd=path.parent)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_a_second_process_reads_what_the_first_has_compiled(scripts):
    if not (scripts / "compiled").exists():
        run_cached_script(scripts)
    names = {path.name for path in (scripts / "compiled").glob("*-cache")}
    run_cached_script(scripts)
    assert names == {
        path.name for path in (scripts / "compiled").glob("*-cache")
    }  # it would add what it compiles itself
    assert names


def run_cached_script(folder):
    blocks = blocks_of(ROOT / "docs" / "guides" / "first_calls.md")
    (code,) = [text for _, title, text in blocks if title == "programs.py"]
    printed_by_script(code, folder / "programs.py")


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """A folder of the scripts on the pages, and of what they compile."""
    return tmp_path_factory.mktemp("scripts")


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")))
def test_every_notebook_runs_from_a_clean_kernel(name):
    command = [sys.executable, str(ROOT / "notebooks" / "run.py"), name]
    run = subprocess.run(command, capture_output=True, text=True, env=QUICK, cwd=ROOT)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_demo_prints_reports_and_writes_a_picture(tmp_path):
    command = [sys.executable, "-W", "error", str(ROOT / "notebooks" / "demo.py")]
    run = subprocess.run(command, capture_output=True, text=True, env=QUICK, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("Maximum-likelihood fit") >= 3
    assert "NOT TO BE RELIED ON" not in run.stdout
    assert list(tmp_path.glob("*.png"))


def test_every_public_name_has_a_page_with_an_example():
    titles = {page.title for page in pages().reference()}
    namespaces = {"families", "moments", "optimizers", "plots", "priors", "sources", "xarray"}
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


def test_functions_come_before_records_in_each_topic():
    for topic in {page.topic for page in pages().reference()}:
        of_topic = [page.path for page in pages().reference() if page.topic == topic]
        is_record = [path.startswith("reference/records/") for path in of_topic]
        assert is_record == sorted(is_record), f"{topic}: {of_topic}"


def test_every_topic_belongs_to_a_module():
    for name in pages().TOPICS:
        importlib.import_module(f"fisher_jax.{name}")


@pytest.mark.parametrize(
    "name", [name for name in fisher_jax.__all__ if isinstance(getattr(fisher_jax, name), Constraint)]
)
def test_the_example_on_the_page_of_a_constraint_runs(name):
    (page,) = [page for page in pages().reference() if page.title == name]
    (code,) = re.findall(r"```pycon\n(.*?)```", page.text, re.S)
    test = doctest.DocTestParser().get_doctest(code, {}, name, None, None)
    assert doctest.DocTestRunner().run(test).failed == 0


def test_names_of_the_library_in_a_page_lead_to_their_pages():
    class Page:
        class file:  # noqa: N801
            src_uri = "coming_from/elsewhere.md"

    text = "`fj.fit(model)`, `fj.moments.covariance`, `fit.covariance()`, [`fj.fit`](x.md), `fj.nothing`\n```python\n`fj.fit`\n```"
    assert pages().on_page_markdown(text, Page, None, None) == (
        "[`fj.fit(model)`](../reference/fit.md), [`fj.moments.covariance`](../reference/moments.covariance.md), "
        "[`fit.covariance()`](../reference/records/Fit.md), [`fj.fit`](x.md), `fj.nothing`\n```python\n`fj.fit`\n```"
    )


@functools.cache
def pages():
    """docs/pages.py, which needs no mkdocs to say what pages there are."""
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "pages.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["pages"] = module
    spec.loader.exec_module(module)
    return module


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
    home = (tmp_path / "site" / "index.html").read_text()
    assert re.findall(r'href="(notebooks/01_\w+\.\w+)"', home)
    check_search_from_disk(tmp_path / "site", home)


def check_search_from_disk(site, home):
    """The index is a script that a page at a file:// address can load, holds every name, and nothing comes from the net."""
    assert '<script src="iframe-worker.js">' in home
    assert (site / "iframe-worker.js").exists()
    index = (site / "search" / "search_index.js").read_text().removeprefix("var __index = ")
    entries = json.loads(index)["docs"]
    titles = {entry["title"] for entry in entries}
    assert {page.title for page in pages().reference()} <= titles
    assert "Coming from scipy.optimize and iminuit" in titles
    for path in site.rglob("*.html"):
        assert not re.search(r'<(script|img|link rel="stylesheet")[^>]*(src|href)="https?:', path.read_text()), (
            path.name
        )


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
