"""docs/reliability.md names tests that exist, and every test of a fault is named there."""

import re
from pathlib import Path

from market_pipeline_tests.commands import ROOT

TESTS = ROOT / "market_pipeline_tests"
_ROW = re.compile(r"^\| ([A-J]\d+) \| [^|]+ \| ([^|]+) \| [^|]+ \|$", re.MULTILINE)
_LEFT_OUT = re.compile(r"^\| ([A-J]\d+) \| [^|]+ \|$", re.MULTILINE)
_NAMED = re.compile(r"^(?:async )?def test_([a-j]\d+)_", re.MULTILINE)


def read_page() -> str:
    """Return the page."""
    return (ROOT / "docs/reliability.md").read_text(encoding="utf-8")


def list_files() -> dict[str, set[Path]]:
    """Return the files with a test of each fault, by its id."""
    found: dict[str, set[Path]] = {}
    for file in TESTS.rglob("test_*.py"):
        for name in _NAMED.findall(file.read_text(encoding="utf-8")):
            found.setdefault(name.upper(), set()).add(file.relative_to(TESTS))
    return found


def test_every_fault_of_the_page_is_caused_in_the_files_that_it_names() -> None:
    """A row whose test went away would promise what nobody checks."""
    files, rows = list_files(), _ROW.findall(read_page())
    assert len(rows) > 80
    missing = [
        f"{name}: {path}"
        for name, named in rows
        for path in named.split(", ")
        if Path(path) not in files.get(name, set())
    ]
    assert missing == []


def test_every_fault_that_a_test_causes_is_on_the_page() -> None:
    """Once, and not also among those that are not caused."""
    names = [name for name, _ in _ROW.findall(read_page())]
    assert len(names) == len(set(names))
    assert set(list_files()) <= set(names)
    assert set(_LEFT_OUT.findall(read_page())).isdisjoint(names)
