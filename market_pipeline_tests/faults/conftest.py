"""Fixtures of the tests of faults: an installation, and a proxy before its database."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, make_url

from market_pipeline.storage.server import watchdog
from market_pipeline.storage.server.engine import DatabaseAddress, open_engine
from market_pipeline_tests.api.conftest import make_client as make_client  # noqa: PLC0414
from market_pipeline_tests.cli.conftest import command as command  # noqa: PLC0414
from market_pipeline_tests.faults.installations import Disturbed
from market_pipeline_tests.faults.kills.theatre import Theatre, open_theatre
from market_pipeline_tests.faults.proxy import Proxy, run_proxy
from market_pipeline_tests.orchestration.conftest import instance as instance  # noqa: PLC0414
from market_pipeline_tests.orchestration.conftest import materialise as materialise  # noqa: PLC0414


@pytest.fixture
def installation(engine: Engine) -> Disturbed:
    """Markets of three calendars and an empty database."""
    return Disturbed(engine)


@pytest.fixture(scope="module")
def theatre(server_url: str) -> Iterator[Theatre]:
    """Databases of which each seed's kills get a copy."""
    with open_theatre(server_url) as opened:
        yield opened


@pytest.fixture
def proxy(database_url: str) -> Iterator[Proxy]:
    """A proxy before the test's database."""
    folder = make_url(database_url).query["host"]
    (socket_file,) = Path(str(folder)).glob(".s.PGSQL.*[0-9]")
    with run_proxy(str(socket_file)) as running:
        yield running


@pytest.fixture
def proxied_url(database_url: str, proxy: Proxy) -> str:
    """The address of the test's database through the proxy."""
    found = make_url(database_url).set(host="127.0.0.1", port=proxy.port, query={})
    return found.render_as_string(hide_password=False)


@pytest.fixture
def proxied(proxied_url: str) -> Iterator[Engine]:
    """An engine whose connections go through the proxy."""
    opened = open_engine(DatabaseAddress(proxied_url, is_embedded=False))
    yield opened
    opened.dispose()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls give up after seconds, as far as a test waits for that."""
    for patience in watchdog.SECONDS:
        monkeypatch.setitem(watchdog.SECONDS, patience, 5.0)
    monkeypatch.setitem(watchdog.SILENCE_SECONDS, "command", 0.0)
