"""Fixtures of the storage tests: a server over TCP, beside the embedded one."""

from collections.abc import Iterator

import pytest

from market_pipeline_tests.databases import create_database
from market_pipeline_tests.storage.tcp_server import TcpServer, run_tcp_server


@pytest.fixture(scope="session")
def tcp_server() -> Iterator[TcpServer]:
    """A server that asks for a password, for the whole test session."""
    with run_tcp_server() as server:
        yield server


@pytest.fixture
def tcp_database(tcp_server: TcpServer) -> Iterator[str]:
    """The name of an empty database of that server."""
    with create_database(tcp_server.make_url(scheme="postgresql+psycopg2")) as address:
        yield address.rpartition("/")[2]
