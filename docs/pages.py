"""The pages of the documentation site, made from `fisher_jax.__all__`, the notebooks and the README when mkdocs builds it.

mkdocs calls `on_startup`, `on_config` and `on_files`. A public name that is added anywhere has its page without more to do; a
module that has no topic yet is listed under its own name. So has a file in `docs/coming_from/` or `docs/guides/`; the first line is
its title, and the names of this library in its text lead to their pages.
"""

import functools
import gc
import html
import inspect
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fisher_jax
from fisher_jax import families
from fisher_jax.models.constraints import Constraint

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
RECORDS = "reference/records"  # classes, which have a folder of their own: some differ from a function in capitals only
TOPICS = {  # by package, or by module where the package's topics differ
    "models": "Models",
    "models.constraints": "Constraints",
    "families": "Models",
    "combinators": "Models",
    "priors": "Models",
    "fitting": "Fitting",
    "latent": "Models",
    "latent.effects": "Inference",
    "frames": "Models",
    "errors": "Fitting",
    "optimizers": "Optimisers",
    "sources": "Fitting",
    "stream": "Fitting",
    "xarray": "Fitting",
    "profile": "Inference",
    "inference": "Inference",
    "checking": "Inference",
    "information.derivatives": "Derivatives",
    "information": "Information",
    "information.cramer_rao": "Theory and design",
    "information.bartlett": "Theory and design",
    "simulation": "Theory and design",
    "design": "Theory and design",
    "moments": "Theory and design",
    "plots": "Plots",
}


@dataclass(frozen=True)
class Page:
    """One page of the reference: where it stands, what it is called, and its text in Markdown."""

    topic: str
    title: str
    path: str
    text: str


@functools.cache
def reference() -> list[Page]:
    """A page for every public name, for every function in a public namespace, and one for all families."""
    public = {name: getattr(fisher_jax, name) for name in fisher_jax.__all__ if not name.startswith("__")}
    pages = []
    for name, item in public.items():
        if item is families:
            pages.append(Page(TOPICS["families"], name, f"reference/{name}.md", _of_families()))
        elif inspect.ismodule(item):
            pages += [_page(f"{name}.{inner}", getattr(item, inner), public, name) for inner in _offered(item, public)]
        else:
            pages.append(_page(name, item, public))
    order = list(dict.fromkeys(TOPICS.values()))
    place = {topic: k for k, topic in enumerate(order)}
    # Functions first, since they are what is called; the records that they return after them.
    return sorted(
        pages, key=lambda page: (place.get(page.topic, len(place)), page.topic, page.path.startswith(RECORDS))
    )


def lacking_examples() -> list[str]:
    """Public names whose page shows no example."""
    return [page.title for page in reference() if ">>>" not in page.text and not _has_example(_item(page.title))]


def notebooks() -> list[Path]:
    """The numbered notebooks, in order."""
    return sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))


def written(folder: str) -> list[Path]:
    """The pages that are written by hand in a folder of `docs`, by the names of their files."""
    return sorted((DOCS / folder).glob("*.md"))


def front() -> str:
    """The README, its links to notebooks kept and those to files that are no pages made text."""
    return _linked_inside((ROOT / "README.md").read_text())


def on_startup(command: str, dirty: bool) -> None:
    """Collect garbage less often: the trees of two hundred pages are walked through again and again otherwise."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def on_config(config: Any) -> Any:
    """Lay out the navigation."""
    topics: dict[str, list[dict[str, str]]] = {}
    for page in reference():
        topics.setdefault(page.topic, []).append({page.title: page.path})
    config.nav = [
        {"Home": "index.md"},
        {"Coming from": _entries(written("coming_from"))},
        {"Guides": _entries([*written("guides"), DOCS / "gpu.md"])},
        {"Notebooks": [{_title(path): f"notebooks/{path.name}"} for path in notebooks()]},
        {"Reference": [{topic: entries} for topic, entries in topics.items()]},
        {"Project": [{"Changes": "changelog.md"}, {"Contributing": "contributing.md"}]},
    ]
    return config


def _entries(paths: list[Path]) -> list[dict[str, str]]:
    """Entries of the navigation; under "Coming from" these words are not repeated."""
    titles = [path.read_text().splitlines()[0].removeprefix("# ") for path in paths]
    return [
        {title.removeprefix("Coming from "): path.relative_to(DOCS).as_posix()}
        for title, path in zip(titles, paths, strict=True)
    ]


def on_files(files: Any, config: Any) -> Any:
    """Hand mkdocs the pages, which are nowhere on disk, and the notebooks where they lie."""
    from mkdocs.structure.files import File

    texts = {page.path: page.text for page in reference()}
    texts |= {"index.md": front()}
    texts |= {
        f"{name.lower()}.md": _linked_inside((ROOT / f"{name}.md").read_text())
        for name in ("CHANGELOG", "CONTRIBUTING")
    }
    for path, text in texts.items():
        files.append(File.generated(config, path, content=text))
    for path in notebooks():
        files.append(File(f"notebooks/{path.name}", str(ROOT), config.site_dir, config.use_directory_urls))
    return files


on_files.mkdocs_priority = 100  # before the plugin that turns notebooks into pages


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Make links of the library's names in the text of what is written by hand, `fj.fit(…)` and `fit.covariance()`."""
    path = page.file.src_uri
    if path.startswith(("reference/", "notebooks/")):
        return markdown
    pages = {entry.title: entry.path for entry in reference()}
    up = "../" * path.count("/")

    def linked(found: re.Match[str]) -> str:
        code, owner, name = found[0], found[1], found[2]
        parts = name.split(".")
        titles = [".".join(parts[:k]) for k in range(len(parts), 0, -1)] if owner == "fj" else ["Fit"]
        target = next((pages[title] for title in titles if title in pages), None)
        return f"[{code}]({up}{target})" if target else code

    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    parts[::2] = [re.sub(r"(?<!\[)`(fj|fit)\.([\w.]+)[^`\n]*`", linked, part) for part in parts[::2]]
    return "".join(parts)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Let notebooks lead to each other's pages, as on disk to each other's files, and show their formulas without the net."""
    if page.url.startswith("notebooks/"):
        output = _with_formulas(output)
    return re.sub(r'href="(\d\d_\w+)\.ipynb"', r'href="\1.html"', output)


def _with_formulas(output: str) -> str:
    """TeX in the text of a notebook as MathML, which browsers draw by themselves; code is kept.

    Between dollars, or as newer versions of mkdocs-jupyter mark it, in a `span` or a `div` of the class arithmatex.
    """
    script = r"<script\b[^>]*>(?:(?!</script>).)*</script>"
    output = re.sub(script, lambda found: "" if "MathJax" in found[0] else found[0], output, flags=re.DOTALL)
    text = r'<div class="[^"]*jp-RenderedMarkdown.*?(?=<div class="jp-Cell|</body>)'
    return re.sub(text, lambda cell: _outside_code(cell[0]), output, flags=re.DOTALL)


def _outside_code(text: str) -> str:
    parts = re.split(r"(<(?:pre|code|script)\b.*?</(?:pre|code|script)>)", text, flags=re.DOTALL)
    marked = r'<(span|div) class="arithmatex">\s*\\[(\[](.+?)\\[)\]]\s*</\1>'
    for pattern in (marked, r"(\$\$?)([^$<>]+)\1"):
        parts[::2] = [re.sub(pattern, _formula, part, flags=re.DOTALL) for part in parts[::2]]
    return "".join(parts)


def _formula(found: re.Match[str]) -> str:
    from latex2mathml.converter import convert

    return convert(html.unescape(found[2]), display="block" if found[1] in ("$$", "div") else "inline")


def _offered(module: Any, public: dict[str, Any]) -> list[str]:
    """What a namespace offers that has no page under a shorter name."""
    return [name for name in module.__all__ if public.get(name) is not getattr(module, name)]


def _page(name: str, item: Any, public: dict[str, Any], room: str = "") -> Page:
    is_instance = not (inspect.isclass(item) or inspect.isfunction(item))
    room = room or (type(item) if is_instance else item).__module__.removeprefix("fisher_jax.")
    text = _of_instance(name, item) if is_instance else _of_object(name, item, public)
    folder = RECORDS if inspect.isclass(item) else "reference"
    return Page(TOPICS.get(room) or TOPICS.get(room.split(".")[0], room), name, f"{folder}/{name}.md", text)


def _of_object(name: str, item: Any, public: dict[str, Any]) -> str:
    """The docstring by mkdocstrings, and for a record the functions that return it, with their examples."""
    lines = [f"::: {item.__module__}.{item.__qualname__}"]
    if inspect.isclass(item):
        offered = {f"sources.{inner}": getattr(fisher_jax.sources, inner) for inner in fisher_jax.sources.__all__}
        functions = public | offered
        makers = [maker for maker, other in functions.items() if _returns(other, item)]
        if makers:
            lines += ["", "Returned by " + ", ".join(f"[`{maker}`](../{maker}.md)" for maker in makers) + "."]
        if makers and not _has_example(item):
            lines += ["", f"## Example of `{makers[0]}`", "", *_example(functions[makers[0]])]
    return "\n".join(lines) + "\n"


def _of_instance(name: str, item: Constraint) -> str:
    description = f"The constraint that every entry of a parameter is {item.description}."
    if item is fisher_jax.fixed:
        description = "The constraint that a parameter is held at its starting value: known, not estimated."
    code = [
        ">>> import fisher_jax as fj",
        ">>> def log_density(params, y): ...",
        f'>>> model = fj.Model(log_density, constraints={{"theta": fj.{name}}})',
        ">>> model.constraints",
        repr({"theta": item}),
    ]
    return "\n".join(
        [f"# {name}", "", description, "", inspect.cleandoc(type(item).__doc__ or ""), "", "```pycon", *code, "```", ""]
    )


def _of_families() -> str:
    """The table, then every family with what its log-density says of it."""
    intro = inspect.getdoc(families) or ""
    table, _, example = intro.partition("Examples\n--------\n")
    parts = ["# families", "", table, "## Example", "", "```pycon", example.strip(), "```", ""]
    for name in families.__all__:
        parts += [f"## {name}", "", inspect.getdoc(getattr(families, name).log_density) or "", ""]
    return "\n".join(parts)


def _returns(function: Any, record: type) -> bool:
    return inspect.isfunction(function) and inspect.signature(function).return_annotation is record


def _has_example(item: Any) -> bool:
    return ">>>" in (inspect.getdoc(item) or "")


def _item(title: str) -> Any:
    found: Any = fisher_jax
    for part in title.split("."):
        found = getattr(found, part)
    return found


def _example(function: Any) -> list[str]:
    """The Examples section of a docstring as Markdown."""
    text = (inspect.getdoc(function) or "").partition("Examples\n--------\n")[2]
    blocks = re.split(r"\n\s*\n", text.strip())
    found: list[str] = []
    for block in blocks:
        found += ["```pycon", block, "```", ""] if block.startswith(">>>") else [block, ""]
    return found


def _title(path: Path) -> str:
    first = "".join(json.loads(path.read_text())["cells"][0]["source"])
    return first.splitlines()[0].removeprefix("# ")


def _linked_inside(text: str) -> str:
    """Markdown links to what is no page of the site as plain text; nested code marks are kept."""
    kept = {f"notebooks/{path.name}" for path in notebooks()}
    moved = {
        f"docs/{path.relative_to(DOCS).as_posix()}": path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")
    }
    moved |= {
        "CONTRIBUTING.md": "contributing.md",
        "CHANGELOG.md": "changelog.md",
        "fisher_jax/fitting/status.py": "reference/records/Status.md",
    }

    def replace(found: re.Match[str]) -> str:
        label, target = found.groups()
        if target in kept or target.startswith(("http", "#")):
            return found.group(0)
        return f"[{label}]({moved[target]})" if target in moved else label

    return re.sub(r"\[([^\]]+)\]\(([^)]+)\)", replace, text)
