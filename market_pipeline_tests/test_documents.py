"""The documents: short enough, complete, linked to what exists, and true about the code's names."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.figures import TARGETS
from market_pipeline.cli.main import main
from market_pipeline_tests.commands import ROOT
from market_pipeline_tests.test_runbook import fill, parse

README_LINES = 130
LINE_LENGTH = 110
GLOSSARY_WORDS = 40
LEAST_BEHAVIOURS = 20
QUESTIONS = {"What", "Which", "Who", "Whose", "Where", "How", "When", "Why", "Whether"}
PAGES = [
    *(
        ROOT / name
        for name in (
            "README.md",
            "RUNBOOK.md",
            "CONTRIBUTING.md",
            "SECURITY.md",
            "deploy/README.md",
        )
    ),
    *sorted((ROOT / "docs").rglob("*.md")),
]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def name_page(page: Path) -> str:
    """Return a page's path within the project."""
    return page.relative_to(ROOT).as_posix()


def read_prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def list_anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", read_prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_readme_is_short() -> None:
    """A reader sees all of it: at most 130 lines, none of them long."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= README_LINES
    assert [line for line in lines if len(line) > LINE_LENGTH] == []


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_every_link_within_the_project_leads_somewhere(page: Path) -> None:
    """Files exist, and so do the headings that links name."""
    broken = []
    for link in _LINK.findall(read_prose(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if "://" in link or (target.is_dir() and not anchor):
            continue
        if not target.exists() or (anchor and anchor not in list_anchors(target)):
            broken.append(link)
    assert broken == []


def test_the_index_names_every_page() -> None:
    """No page of docs/ can be found by its file name alone."""
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages <= set(_LINK.findall(index))


def list_commands(page: Path) -> Iterator[str]:
    """Yield the commands of this project in a page's shell blocks; not those that are a choice."""
    for language, block in _FENCE.findall(page.read_text(encoding="utf-8")):
        if language in ("sh", "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                words = re.sub(r"^(\w+=\S+ )+", "", line).split("#")[0].strip()
                if words.startswith("market-pipeline ") and not re.search(r" \| |\[", words):
                    yield words


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_every_command_that_is_shown_exists(page: Path) -> None:
    """Commands and options are parsed by the program itself."""
    for command in list_commands(page):
        parse(main, shlex.split(fill(command, Path()))[1:])


def test_the_page_about_the_command_names_every_command() -> None:
    """No command is known to `--help` alone."""
    page = (ROOT / "docs/command.md").read_text(encoding="utf-8")
    shown = [name for name, command in main.commands.items() if not command.hidden]
    assert [name for name in shown if f"market-pipeline {name}" not in page] == []


def test_the_page_about_benchmarks_names_every_target() -> None:
    """No figure that has to reach a target is left out."""
    page = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    assert [name for name in TARGETS if f"`{name}`" not in page] == []


def test_the_glossary_is_short() -> None:
    """At most forty words of our own, each with a meaning, and none twice."""
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    glossary = contributing.partition("## Glossary")[2]
    rows = re.findall(r"^\| (.+) \| (.+) \|$", glossary, re.MULTILINE)[1:]
    assert 0 < len(rows) <= GLOSSARY_WORDS
    assert len({word for word, _ in rows}) == len(rows)


def list_behaviours() -> list[tuple[str, str, str]]:
    """Return question, file and function of the table in docs/architecture.md."""
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    return re.findall(r"^\| (.+\?) \| `(.+\.py)` \| `(.+)` \|$", page, re.MULTILINE)


def list_functions(file: Path) -> set[str]:
    """Return the functions of a module, those of classes as ``Class.function``."""
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        owner = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        for inner in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(inner, ast.FunctionDef):
                names.add(f"{owner}{inner.name}")
    return names


def test_the_architecture_page_names_functions_that_exist() -> None:
    """One file and one function for each of at least twenty behaviours."""
    behaviours = list_behaviours()
    assert len(behaviours) >= LEAST_BEHAVIOURS
    missing = [
        f"{path}: {name}"
        for _, path, name in behaviours
        if name not in list_functions(ROOT / "market_pipeline" / path)
    ]
    assert missing == []


def test_the_architecture_page_names_files_that_exist() -> None:
    """Every module that the walks pass."""
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    paths = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)*\.py)`", page)) - {"http.py"}
    assert paths
    assert [path for path in paths if not (ROOT / "market_pipeline" / path).exists()] == []


@pytest.mark.parametrize("file", sorted((ROOT / "market_pipeline").rglob("*.py")), ids=name_page)
def test_a_module_says_what_it_is(file: Path) -> None:
    """Its docstring begins with a thing or an action, not with the question that it answers."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    assert docstring
    assert docstring.split()[0] not in QUESTIONS
