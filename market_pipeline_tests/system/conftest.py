"""What the system tests use: Debian's PostgreSQL, a browser, project folders of their own."""

from collections.abc import Iterator

import pytest

from market_pipeline_tests.system.debian import Server, run_server
from market_pipeline_tests.system.project import Project, make_project


@pytest.fixture(scope="session")
def debian_server() -> Iterator[Server]:
    """Debian's PostgreSQL, for the whole test session."""
    with run_server() as server:
        yield server


@pytest.fixture
def project() -> Iterator[Project]:
    """A project on the embedded database, with all settings at their defaults."""
    with make_project() as made:
        yield made
