"""Modules import only from packages above their own, every public name is explained, nothing private is used."""

import ast
import builtins
import dis
import importlib
import inspect
import pathlib
import re

import pytest

import fisher_jax as fj

PACKAGE = pathlib.Path(fj.__file__).parent
CONTRIBUTING = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
LAYOUT = CONTRIBUTING[CONTRIBUTING.index("## The layout") : CONTRIBUTING.index("Inside, a problem is flat")]
ORDER = [
    "_version",
    *(name.removesuffix(".py") for name in re.findall(r"^\| `(\w+(?:\.py)?)/?` \|", LAYOUT, re.M)),
    "__init__",
]
# Packages whose results have methods that hand over to a later package, imported inside the method.
HANDED_OVER = {("fitting", "profile")}
MODULES = sorted(PACKAGE.rglob("*.py"))


def package_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """The packages that a module imports from, wherever in the file, and whether at its top."""
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
                yield (first if first in ORDER else "__init__"), node in tree.body


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_packages_above_its_own(path):
    package = package_of(path)
    assert package in ORDER, f"{package} is not in the layout of CONTRIBUTING.md"
    for other, at_top in imported(path):
        is_above = other == package or ORDER.index(other) < ORDER.index(package)
        assert is_above or (not at_top and (package, other) in HANDED_OVER), (
            f"{package} imports {other}, which is below it"
        )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_global_name_that_a_module_uses_exists(path):
    """What the linter and the type checker cannot tell, since shapes in annotations look like names to them."""
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    known = {*vars(importlib.import_module(name)), *vars(builtins)}
    codes = [compile(path.read_text(), str(path), "exec")]
    while codes:
        code = codes.pop()
        codes += [constant for constant in code.co_consts if inspect.iscode(constant)]
        used = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
        assert used <= known, f"{path}: {sorted(used - known)} in {code.co_name}"


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
