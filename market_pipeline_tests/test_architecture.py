"""The floors hold by contract, and each contract was seen to go red."""

import ast
import configparser
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from market_pipeline_tests.code_copies import copy_package
from market_pipeline_tests.commands import ROOT, run_command

ON_TOP = "Dagster stays in orchestration, the front door and two commands"
DOORS = "HTTP leaves by three doors: to providers, receivers of alerts and Dagster"
# The contract, a module, and an import that the module must not have.
FORBIDDEN = [
    ("Each room knows only the floors below it", "ingestion/request", "market_pipeline.cli.main"),
    (
        "Each room knows only the floors below it",
        "storage/tables",
        "market_pipeline.providers.base",
    ),
    ("The domain knows no clock, network, database or Dagster", "domain/symbols", "sqlalchemy"),
    (ON_TOP, "storage/tables", "dagster"),
    (ON_TOP, "cli/options", "dagster_postgres"),
    (DOORS, "providers/yahoo", "httpx"),
    (DOORS, "alerting/messages", "requests"),
]
# The rooms that may import Dagster, and the domain, which may import still less.
DAGSTER_ROOMS = {"orchestration", "definitions", "domain"}
# Modules whose ``cancel`` is asyncio's.
FUTURES = {
    "market_pipeline.api.child_runs",
    "market_pipeline.api.connections",
    "market_pipeline.api.run_watcher",
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the package with its contracts."""
    folder = copy_package(tmp_path_factory.mktemp("copy"))
    yield folder
    shutil.rmtree(folder)


def lint(folder: Path) -> tuple[int, str]:
    """Run the real tool on a copy."""
    done = run_command(
        "lint-imports", "--no-cache", environment={"PYTHONPATH": str(folder)}, folder=folder
    )
    return done.returncode, done.stdout + done.stderr


def test_every_contract_is_tried() -> None:
    """A contract that nobody saw failing may check nothing."""
    lines = (ROOT / ".importlinter").read_text().splitlines()
    names = {line.removeprefix("name = ") for line in lines if line.startswith("name = ")}
    assert names == {contract for contract, _, _ in FORBIDDEN}


def test_dagsters_contract_names_every_room() -> None:
    """A new room would otherwise be outside it without a word."""
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter")
    named = contracts["importlinter:contract:dagster-on-top"]["source_modules"].split()
    package = ROOT / "market_pipeline"
    rooms = {item.stem for item in package.iterdir() if (item / "__init__.py").is_file()}
    rooms |= {item.stem for item in package.glob("*.py")} - {"__init__"}
    assert {name.removeprefix("market_pipeline.") for name in named} == rooms - DAGSTER_ROOMS


def test_the_copy_keeps_all_contracts(copy: Path) -> None:
    """What goes red below does so for the injected import alone."""
    code, said = lint(copy)
    assert code == 0, said
    assert " BROKEN" not in said


@pytest.mark.parametrize(("contract", "module", "imported"), FORBIDDEN)
def test_a_forbidden_import_breaks_its_contract(
    copy: Path, contract: str, module: str, imported: str
) -> None:
    """The tool fails and names the contract."""
    file = copy / "market_pipeline" / f"{module}.py"
    before = file.read_text()
    file.write_text(f"{before}\nimport {imported}\n")
    code, said = lint(copy)
    file.write_text(before)
    assert code == 1
    assert f"{contract} BROKEN" in said


def test_no_module_imports_itself_in_a_circle() -> None:
    """Modules can be read, and loaded, one after the other."""
    remaining = {name: _list_imports(path) for name, path in _list_modules().items()}
    while ready := {name for name, used in remaining.items() if not used & remaining.keys()}:
        remaining = {name: used for name, used in remaining.items() if name not in ready}
    assert sorted(remaining) == []


def test_nobody_cancels_a_call_to_the_database() -> None:
    """psycopg2's ``cancel`` freezes every thread of the process while the server hangs.

    Futures and tasks have the word as well, where ``FUTURES`` says so.
    """
    found = {
        name
        for name, path in _list_modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "cancel"
    }
    assert found <= FUTURES


def test_a_public_class_has_its_name_alone() -> None:
    """Whoever reads a name, or searches for it, finds one thing; type aliases count as well."""
    homes: dict[str, set[str]] = defaultdict(set)
    for module, path in _list_modules().items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].add(module)
    taken = {
        f"{name} in {module}"
        for module, path in _list_modules().items()
        for name in _list_aliases(path)
        if homes.get(name, {module}) != {module}
    }
    assert sorted(taken) == []
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}


def _list_aliases(file: Path) -> list[str]:
    return [
        target.id
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]


def _list_modules() -> dict[str, Path]:
    files = (ROOT / "market_pipeline").rglob("*.py")
    return {_name_module(file): file for file in files}


def _name_module(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _list_imports(file: Path) -> set[str]:
    """Return the modules of the package that a module imports when it is loaded."""
    found: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found - {_name_module(file)}
