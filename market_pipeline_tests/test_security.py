"""What docs/security.md says: its tests exist, and no package is older than its known faults."""

import ast
import re

import pytest
from packaging.version import Version

from market_pipeline_tests.commands import ROOT

# The first version without a fault that is known of the package.
FLOORS = {
    "aiohttp": "3.12.14",  # CVE-2025-53643, smuggled requests
    "certifi": "2024.7.4",  # CVE-2024-39689, distrusted roots
    "cryptography": "44.0.1",  # CVE-2024-12797, OpenSSL in the wheels
    "h11": "0.16.0",  # CVE-2025-43859, smuggled requests
    "idna": "3.7",  # CVE-2024-3651, slow names
    "Jinja2": "3.1.6",  # CVE-2025-27516, out of the sandbox
    "Mako": "1.2.2",  # CVE-2022-40023, slow templates
    "protobuf": "6.31.1",  # CVE-2025-4565, endless recursion
    "pyarrow": "14.0.1",  # CVE-2023-47248, code in files
    "python-multipart": "0.0.18",  # CVE-2024-53981, slow forms
    "redis": "4.5.5",  # CVE-2023-28859, another's answer after a cancelled command
    "requests": "2.32.4",  # CVE-2024-47081, another host's password
    "starlette": "0.49.1",  # CVE-2025-62727, slow ranges
    "urllib3": "2.6.3",  # CVE-2026-21441, bombs behind redirects
}


def read_constraints() -> dict[str, str]:
    """Return the fixed version of each package."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.partition("==") for line in lines if line and not line.startswith("#"))
    return {name: version for name, _, version in pairs}


@pytest.mark.parametrize(("name", "floor"), FLOORS.items(), ids=FLOORS)
def test_no_package_is_older_than_its_known_faults(name: str, floor: str) -> None:
    """A version that is fixed for good reasons may have to move for a better one."""
    assert Version(read_constraints()[name]) >= Version(floor)


def test_the_threat_model_names_tests_that_exist() -> None:
    """A control whose test was renamed would only seem to be tested."""
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", page))
    there = {
        item.name
        for file in (ROOT / "market_pipeline_tests").rglob("test_*.py")
        for item in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert len(named) > 40
    assert named <= there, named - there


def test_every_package_that_is_installed_has_its_licence_told() -> None:
    """Of what setup.py asks for; theirs in turn are found by pip."""
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8").partition("## Licences")[2]
    told = set(re.findall(r"[a-zA-Z_][\w-]+", page))
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    runtime = setup.partition("RUNTIME = [")[2].partition("\n]")[0]
    needed = set(re.findall(r'^    "([\w-]+)', runtime, re.MULTILINE))
    assert len(needed) > 20
    assert needed <= told, needed - told
