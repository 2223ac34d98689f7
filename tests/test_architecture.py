"""The house keeps its plan: rooms import only from below, every public name is explained, nothing private is used."""

import ast
import inspect
import pathlib
import re

import pytest

import fisher_jax as fj

PACKAGE = pathlib.Path(fj.__file__).parent
ROWS = {
    "_version": 0,
    "errors": 0,
    "decoding": 0,
    "blocks": 1,
    "moments": 1,
    "numerics": 2,
    "models": 3,
    "families": 4,
    "expectation": 4,
    "information": 5,
    "optimizers": 6,
    "fitting": 7,
    "uncertainty": 8,
    "inference": 9,
    "stream": 10,
    "theory": 11,
    "plots": 12,
    "__init__": 13,
}
# Packages whose results have methods that hand over to a later package, imported inside the method.
HANDED_OVER = {("fitting", "uncertainty")}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """The rooms that a module imports from, wherever in the file, and whether at its top."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("fisher_jax."):
                first = name.split(".")[1]
                yield (first if first in ROWS else "__init__"), node in tree.body


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_rows_above_its_own(path):
    own = room(path)
    assert own in ROWS, f"{own} has no row: give it one here and in CONTRIBUTING.md"
    for other, at_top in imported(path):
        allowed = other == own or ROWS[other] < ROWS[own] or (not at_top and (own, other) in HANDED_OVER)
        assert allowed, f"{own} (row {ROWS[own]}) imports {other} (row {ROWS[other]})"


def test_the_map_in_contributing_is_the_one_held_here():
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    drawn = {
        name.removesuffix(".py").rstrip("/"): int(row)
        for row, name in re.findall(r"^\| (\d+) \| `([\w./]+)`", text, re.M)
    }
    hidden = {"_version", "__init__"}
    assert drawn == {name: row for name, row in ROWS.items() if name not in hidden}


def test_nothing_private_of_jax_is_used_and_nothing_global_is_changed():
    for path in MODULES:
        text = path.read_text()
        assert "jax._src" not in text
        assert "config.update" not in text
        assert "callback" not in text


def public_objects():
    for name in fj.__all__:
        item = getattr(fj, name)
        if callable(item):
            yield name, item
    for name in ("newton", "fisher_scoring", "bhhh", "scale_by_information", "natural_gradient"):
        yield f"optimizers.{name}", getattr(fj.optimizers, name)
    for name in ("covariance", "covariance_matrix", "covariance_of_moments", "moments", "RunningMoments"):
        yield f"moments.{name}", getattr(fj.moments, name)


@pytest.mark.parametrize(("name", "item"), [pytest.param(*pair, id=pair[0]) for pair in public_objects()])
def test_every_public_name_is_explained_with_its_real_arguments(name, item):
    text = inspect.getdoc(item)
    assert text
    assert len(text.splitlines()[0]) > 20
    if inspect.isfunction(item):
        for section in ("Parameters", "Returns", "Examples"):
            assert section in text, f"{name} lacks {section}"
        described = text[text.index("Parameters") : text.index("Returns")]
        for argument in inspect.signature(item).parameters:
            assert re.search(rf"\b{argument}\b", described), f"{name} does not explain {argument}"
